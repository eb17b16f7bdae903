"""Makes content-free sessions of a published corpus's size, the same ones every time, as Weka traces.

Requests per trace, longest context, output lengths, call times and waits follow the quantiles below, which were read
from 710 real traces. A context grows to its trace's longest, is compacted at times and then grows again; one trace in
forty has sub-agents. The block hashes are counters: equal within what a request shares with the one before it.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 64
MODEL = "claude-opus-4-5"

type Quantiles = Sequence[tuple[float, float]]
"""(share, value): at least `share` of the values are no larger."""

REQUESTS: Quantiles = ((0, 3), (0.1, 7), (0.25, 18), (0.5, 45), (0.75, 94), (0.9, 157), (0.99, 330), (1, 561))
OUTPUT_TOKENS: Quantiles = (
    *((0, 0), (0.01, 20), (0.1, 105), (0.25, 137), (0.5, 216), (0.75, 426), (0.9, 898), (0.99, 3685), (1, 18195)),
)
LONGEST_CONTEXT: Quantiles = (
    *((0, 8_000), (15 / 710, 32_000), (64 / 710, 64_000), (235 / 710, 128_000), (544 / 710, 200_000)),
    *((586 / 710, 256_000), (0.985, 500_000), (1, 894_371)),
)
API_S: Quantiles = ((0, 0.8), (0.1, 3.4), (0.25, 4.3), (0.5, 6.1), (0.75, 10.3), (0.9, 18.3), (0.99, 60.7), (1, 300))
WAIT_S: Quantiles = ((0, 0), (0.1, 4), (0.25, 5), (0.5, 10), (0.75, 33), (0.9, 162), (0.99, 3_008), (1, 77_589))

COMPACTION_CHANCE = 0.008
WITH_SUBAGENTS_CHANCE = 0.027
LEAST_CONTEXT = 6_343


def value_at(quantiles: Quantiles, share: float) -> float:
    """The value at a share, straight between the given ones."""
    for (low_share, low), (high_share, high) in itertools.pairwise(quantiles):
        if share <= high_share:
            return low + (high - low) * (share - low_share) / (high_share - low_share)
    return quantiles[-1][1]


def write_traces(folder: Path, numbers: Sequence[int], *, seed: int = 5) -> int:
    """Write one file for each number; returns how many requests they hold."""
    requests = 0
    for number in numbers:
        trace = make_trace(number, seed=seed)
        requests += sum(len(entry.get("requests", (entry,))) for entry in trace["requests"])
        (folder / f"trace_{number:04d}.json").write_text(json.dumps(trace, separators=(",", ":")))
    return requests


def make_trace(number: int, *, seed: int = 5) -> dict[str, Any]:
    """One trace; the same number and seed give the same one."""
    return _Trace(number, random.Random(f"{seed}:{number}")).as_json(f"trace_{number:04d}")


class _Trace:
    def __init__(self, number: int, chooser: random.Random) -> None:
        self.chooser = chooser
        self.requests = round(value_at(REQUESTS, chooser.random()))
        self.longest = value_at(LONGEST_CONTEXT, 1.0 if number == 0 else chooser.random())
        self.next_block = 1

    def blocks(self, count: int) -> list[int]:
        first, self.next_block = self.next_block, self.next_block + count
        return list(range(first, self.next_block))

    def contexts(self, requests: int, start: float, longest: float) -> Iterator[tuple[int, list[int]]]:
        """(tokens, block hashes) of each request of a chain."""
        chooser = self.chooser
        breaks = [at for at in range(2, requests) if chooser.random() < COMPACTION_CHANCE]
        hashes: list[int] = []
        begin = 0
        for end in (*breaks, requests):
            if begin:
                start = chooser.uniform(0.2, 0.4) * longest
                hashes = hashes[: int(0.15 * longest / BLOCK_TOKENS)]
            for step in range(begin, end):
                grown = (step - begin + chooser.random()) / (end - begin)
                tokens = max(LEAST_CONTEXT, int(start + (longest - start) * min(1.0, grown)))
                wanted = tokens // BLOCK_TOKENS
                if len(hashes) > wanted:
                    hashes = hashes[:wanted]
                hashes = hashes + self.blocks(wanted - len(hashes))
                yield tokens, hashes
            begin = end

    def chain(self, requests: int, start: float, longest: float, *, waits: bool) -> Iterator[dict[str, Any]]:
        chooser = self.chooser
        at_s = 0.0
        for number, (tokens, hashes) in enumerate(self.contexts(requests, start, longest)):
            api_s = value_at(API_S, chooser.random())
            wait_s = value_at(WAIT_S, chooser.random()) if waits and number else 0.5 if number else 0.0
            at_s += wait_s
            last = number == requests - 1
            yield {
                "t": round(at_s, 3),
                "type": "n",
                "model": MODEL,
                "in": tokens,
                "out": round(value_at(OUTPUT_TOKENS, chooser.random())),
                "hash_ids": hashes,
                "input_types": ["text" if not number else "tool_result"],
                "output_types": ["text"] if last else ["text", "tool_use"],
                "stop": "end_turn" if last or chooser.random() < 0.1 else "tool_use",
                "api_time": round(api_s, 3),
                "think_time": round(wait_s, 3),
            }
            at_s += api_s

    def as_json(self, trace_id: str) -> dict[str, Any]:
        chooser = self.chooser
        start = max(LEAST_CONTEXT, chooser.uniform(0.15, 0.4) * self.longest)
        entries: list[dict[str, Any]] = list(self.chain(self.requests, start, self.longest, waits=True))
        if chooser.random() < WITH_SUBAGENTS_CHANCE:
            for number in range(chooser.randrange(1, 6)):
                caller = entries[chooser.randrange(len(entries))]
                if "api_time" in caller:
                    entries.insert(entries.index(caller) + 1, self.subagent(f"agent_{number}", caller))
        return {
            "id": trace_id,
            "models": [MODEL],
            "block_size": BLOCK_TOKENS,
            "hash_id_scope": "local",
            "tool_tokens": 0,
            "system_tokens": 0,
            "requests": entries,
        }

    def subagent(self, agent_id: str, caller: dict[str, Any]) -> dict[str, Any]:
        chooser = self.chooser
        inner = list(self.chain(chooser.randrange(4, 18), LEAST_CONTEXT, chooser.uniform(12_000, 60_000), waits=False))
        duration_s = inner[-1]["t"] + inner[-1]["api_time"]
        return {
            "t": round(caller["t"] + caller["api_time"] + duration_s, 3),  # its end, as the real traces have it
            "type": "subagent",
            "agent_id": agent_id,
            "subagent_type": "Explore",
            "duration_ms": round(duration_s * 1000),
            "status": "completed",
            "models": [MODEL],
            "tool_tokens": 0,
            "system_tokens": 0,
            "requests": inner,
        }

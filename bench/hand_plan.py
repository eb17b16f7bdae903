"""Plans for benchmarks: a hand-made one whose bodies cost next to nothing, and real ones of 128K-token prompts."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.source import MODEL

if TYPE_CHECKING:
    from replay.plan import Plan, Play, PreparedRequest, Turn

TURNS = 4
TOKENS = 128
PAUSE_S = 0.3
LONG_PROMPT_TOKENS = 128_000
SMALL_PROMPT_TOKENS = 1_000
LONG_OUTPUT_TOKENS = 16
MESSAGES = 40
"""A long session's prompt is many messages."""

type Bodies = Literal["text", "text-small", "ids", "ids-small"]


@functools.cache
def body(turn: int) -> bytes:
    """A conversation that grows by about 200 tokens a turn."""
    messages = [{"role": "user", "content": f"turn {number} " + "word " * 200} for number in range(turn + 1)]
    return json.dumps(
        {
            "model": MODEL,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "messages": messages,
        },
        separators=(",", ":"),
    ).encode()


class HandScript:
    """Four turns, each after the one before and a pause."""

    def __init__(self) -> None:
        from replay.plan import Turn

        self.turns = tuple(
            Turn(
                request_index=number,
                wait_for=(number - 1,) if number else (),
                delay_us=int(PAUSE_S * 1e6),
                delay_kind="tool",
                recorded_prompt_tokens=None,
                planned_prompt_tokens=None,
                output_tokens=TOKENS,
            )
            for number in range(TURNS)
        )

    def request(self, turn: Turn, **_: Any) -> PreparedRequest:
        """The turn's body."""
        from replay.plan import PreparedRequest

        return PreparedRequest(path="/v1/chat/completions", body=body(turn.request_index))


class HandPlan:
    """The same session for everyone, again and again."""

    def __init__(self) -> None:
        self._script = HandScript()

    def plays(self, agent: int, **_: Any) -> Iterator[Play]:
        """An agent's plays, without end."""
        from replay.plan import Play

        number = 0
        while True:
            yield Play(agent=agent, play=number, session_id="s", salt="", first_turn=0)
            number += 1

    def script(self, session_id: str) -> HandScript:
        """The session's turns."""
        del session_id
        return self._script


def long_plan(bodies: Bodies) -> Plan:
    """A real plan of one session with prompts of 128K tokens, or small ones of 1K, as text or as token ids."""
    from capture.importers.messages import import_messages
    from capture.importers.weka import import_weka
    from replay.plan import make_plan

    prompt_tokens = SMALL_PROMPT_TOKENS if bodies.endswith("small") else LONG_PROMPT_TOKENS
    with tempfile.TemporaryDirectory(prefix="agentdyno-bench-") as folder:
        path = Path(folder) / "session.jsonl"
        if bodies.startswith("text"):
            path.write_text(json.dumps({"messages": _talk(prompt_tokens)}) + "\n")
            imported = import_messages([path], b"k" * 32)
        else:
            path = path.with_suffix(".json")
            path.write_text(json.dumps(_trace(prompt_tokens)))
            imported = import_weka([path], b"k" * 32)
    return make_plan(imported.trajectories, dataset_digest="bench")


def _trace(prompt_tokens: int) -> dict[str, Any]:
    block = 64
    requests = [
        {
            "t": 3.0 * number,
            "type": "n",
            "model": MODEL,
            "in": prompt_tokens + number * block,
            "out": LONG_OUTPUT_TOKENS,
            "hash_ids": list(range(prompt_tokens // block + number)),
            "stop": "tool_use",
            "api_time": 2.0,
            "think_time": 1.0 if number else 0.0,
        }
        for number in range(TURNS)
    ]
    return {"id": "long", "models": [MODEL], "block_size": block, "hash_id_scope": "local", "requests": requests}


def _talk(prompt_tokens: int) -> list[dict[str, str]]:
    from bench.sessions import clean_code

    code = "".join(clean_code(1.0))[: prompt_tokens * 4]
    messages = [{"role": "system", "content": "You write code."}]
    size = len(code) // MESSAGES
    for number in range(MESSAGES):
        messages.append({"role": "user", "content": code[number * size : (number + 1) * size]})
        if number >= MESSAGES - TURNS:
            messages.append({"role": "assistant", "content": "All of it was read, go on. " * 2})
    return messages

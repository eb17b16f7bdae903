"""The ideal prefix cache: what part of the prompts a cache that forgets nothing would not have to compute again.

A prompt is its block hashes h[0..b-1]; equal hashes mean equal prefixes up to and including that block. Blocks are
taken in the order of sending. The reused blocks of a prompt are the longest head h[0..k-1] of which every block was in
an earlier prompt of the same scope; the share of a request is k ÷ b, that of a dataset is Σk ÷ Σb. Scopes: the chain
(an agent's own history), the session (sub-agents too), the release (all sessions that hash in one scope, of which any
order gives the same sum: each distinct block is computed once).

Limits. It is a bound, not a forecast: no eviction, no lifetime, and a block counts as cached from the moment at which
its prompt was sent, so that requests in flight together reuse each other's. A last block that is not full has no hash
and counts neither way. Answers enter a cache only where a later prompt repeats them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from curate.frames import Frames, collect

DISTINCT_HELD = 8 << 20  # block hashes of a release held at once: 64 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReuse:
    """Reuse over a whole dataset; shares are None where nothing tells."""

    requests: int  # turns with block hashes
    blocks: int  # in their prompts
    chain_share: float | None
    session_share: float | None
    release_share: float | None  # of the sessions whose hashes compare across sessions
    release_blocks: int  # theirs, auxiliary calls included: each distinct block is computed once for whoever comes
    release_is_estimate: bool  # counted from a sample of the hashes, right to about 0.1 % of the distinct blocks
    measured_requests: int  # turns of which a provider told prompt and cache reads
    measured_prompt_tokens: int
    measured_share: float | None  # cache reads ÷ prompts, over those


@dataclass(frozen=True, slots=True, kw_only=True)
class IdealCache:
    """The reuse of each turn, in the order of `Frames.turns`, and over all."""

    chain: np.ndarray  # NaN where a turn has no block
    session: np.ndarray
    total: CacheReuse


class DistinctSample:
    """How many different hashes there were, in bounded memory.

    Keeps the hashes whose mixed value lies below a limit, and halves the limit when there are too many (adaptive
    sampling; Flajolet, "On adaptive sampling", 1990). Exact until then.
    """

    def __init__(self, held: int = DISTINCT_HELD) -> None:
        self._held = held
        self._halvings = 0
        self._known = np.empty(0, dtype=np.uint64)

    def add(self, hashes: np.ndarray) -> None:
        """Take hashes (u64), repeated ones too."""
        mixed = _mixed(hashes)
        if self._halvings:
            mixed = mixed[mixed < np.uint64(1 << (64 - self._halvings))]
        # Sorted, then less its repetitions: numpy's own union hashes, which takes many times as long.
        found = np.sort(np.concatenate((self._known, mixed)))
        self._known = found[np.append(True, found[1:] != found[:-1])] if len(found) else found
        while len(self._known) > self._held:
            self._halvings += 1
            self._known = self._known[self._known < np.uint64(1 << (64 - self._halvings))]

    @property
    def count(self) -> int:
        """The number of different hashes."""
        return len(self._known) << self._halvings

    @property
    def is_estimate(self) -> bool:
        """Whether `count` comes from a sample."""
        return self._halvings > 0


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """A bijection that spreads any numbers evenly (the finisher of SplitMix64; Steele, Lea, Flood 2014)."""
    mixed = hashes.astype(np.uint64, copy=True)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class _Scope:
    """Blocks seen in one scope."""

    def __init__(self) -> None:
        self.known: set[int] = set()

    def reuse(self, blocks: np.ndarray, head: int) -> int:
        """How long the head of known blocks is, of which `head` are known already; remembers the rest."""
        rest: list[int] = blocks[head:].tolist()
        found = next((position for position, block in enumerate(rest) if block not in self.known), len(rest))
        self.known.update(rest[found:])
        return head + found


def ideal_cache(frames: Frames) -> IdealCache:
    """Walk the block hashes of a dataset, file by file; sessions stand together and requests in order of sending."""
    chain_shares: list[float] = []
    session_shares: list[float] = []
    reused = {"chain": 0, "session": 0}
    requests = blocks_in_all = release_blocks = 0
    distinct = DistinctSample()
    current: str | None = None
    session, chains, last = _Scope(), dict[str, _Scope](), dict[str, np.ndarray]()
    nothing = np.empty(0, dtype=np.uint64)
    facts = ("session_id", "agent_path", "kind", "hash_scope")
    for batch in frames.block_batches((*facts, "block_hashes")):
        if batch.column("block_hashes").null_count == len(batch):
            nothing_told = [math.nan] * batch.column("kind").to_pylist().count("turn")
            chain_shares += nothing_told
            session_shares += nothing_told
            continue
        hashes, offsets = _lists(batch.column("block_hashes"))
        fresh: list[np.ndarray] = []
        for position, (session_id, path, kind, scope) in enumerate(
            zip(*(batch.column(name).to_pylist() for name in facts), strict=True)
        ):
            if session_id != current:
                current, session, chains, last = session_id, _Scope(), {}, {}
            blocks = hashes[offsets[position] : offsets[position + 1]]
            if not len(blocks):
                if kind == "turn":
                    chain_shares.append(math.nan)
                    session_shares.append(math.nan)
                continue
            before = last.get(path, nothing)
            # What the chain's last prompt had at its head is known without looking at each block.
            head = _shared_head(before, blocks)
            chain_reuse = chains.setdefault(path, _Scope()).reuse(blocks, head)
            session_reuse = session.reuse(blocks, chain_reuse)
            last[path] = blocks
            if scope == "release":
                release_blocks += len(blocks)
                fresh.append(blocks[session_reuse:])
            if kind == "turn":
                requests += 1
                blocks_in_all += len(blocks)
                reused["chain"] += chain_reuse
                reused["session"] += session_reuse
                chain_shares.append(chain_reuse / len(blocks))
                session_shares.append(session_reuse / len(blocks))
        if fresh:
            distinct.add(np.concatenate(fresh))
    measured = _measured(frames)
    return IdealCache(
        chain=np.asarray(chain_shares, dtype=np.float64),
        session=np.asarray(session_shares, dtype=np.float64),
        total=CacheReuse(
            requests=requests,
            blocks=blocks_in_all,
            chain_share=_share(reused["chain"], blocks_in_all),
            session_share=_share(reused["session"], blocks_in_all),
            release_share=_share(max(0, release_blocks - distinct.count), release_blocks),
            release_blocks=release_blocks,
            release_is_estimate=distinct.is_estimate,
            measured_requests=measured[0],
            measured_prompt_tokens=measured[1],
            measured_share=_share(measured[2], measured[1]),
        ),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _shared_head(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length


def _lists(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column in one piece, and where each row's begin and end; null is an empty list."""
    filled = column.fill_null([]) if column.null_count else column
    offsets = filled.offsets.to_numpy()
    return filled.values.to_numpy(zero_copy_only=False), offsets


def _measured(frames: Frames) -> tuple[int, int, int]:
    told = frames.turns.filter(
        pl.col("prompt_tokens").is_not_null()
        & pl.col("cache_read_tokens").is_not_null()
        & (pl.col("token_source") == "provider")
    ).select(n=pl.len(), prompt=pl.col("prompt_tokens").sum(), read=pl.col("cache_read_tokens").sum())
    row = collect(told).row(0)
    return int(row[0]), int(row[1]), int(row[2])

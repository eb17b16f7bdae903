"""The sessions of the stores as work for shards: what is done already, what is to be done, what is left out at once."""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from capture.trajectory import Trajectory
from curate.blocks import RELEASE_BLOCK_TOKENS
from curate.filters import facts_reason
from curate.labels import NO_LABEL, Label
from curate.manifest import FORMAT, WORK, Stage
from curate.published import published_json
from curate.receipts import Ledger
from curate.recipe import Recipe
from curate.shard import SessionInput, ShardTask, filters_digest, pack
from curate.source import Source, Twins, hashed, labelled
from curate.split import group_of, split_of
from curate.table import SCHEMA_VERSION

SHARD_BYTES = 32 << 20  # of sessions as JSON: seconds of work, so a kill costs little
SHARD_SESSIONS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """A session that the stores hold and that has, or will have, work of its own."""

    session_id: str
    input: str  # keyed digest of all that its rows are made from
    peak_agents: int | None  # `contributor_peak_agents`
    reason: str | None  # why today's filters leave it out, where it was built under others


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A session that is to be built."""

    split: str
    session: SessionInput
    size: int  # bytes as JSON


@dataclass(slots=True)
class _Shard:
    """A shard that is being filled."""

    sessions: list[SessionInput] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True, kw_only=True)
class Reading:
    """One pass over the stores."""

    folder: Path
    recipe: Recipe
    tokenizer: str
    key: bytes
    ledger: Ledger
    labels: Mapping[str, Label]
    withdrawn: frozenset[str]
    on_session: Callable[[], None] = lambda: None
    read: int = 0  # sessions given by the stores
    to_build: int = 0
    tasks_made: int = 0
    over: bool = False
    seen: set[str] = field(default_factory=set)  # ids
    present: dict[str, Present] = field(default_factory=dict)  # by input, in the order of reading
    left_out: Counter[tuple[Stage, str]] = field(default_factory=Counter)  # sessions that get no work
    places: Counter[str] = field(default_factory=Counter)  # that cannot be read, in words

    def tasks(self, sources: Sequence[Source]) -> Iterator[ShardTask]:
        """The work that is to be done, in shards of one split each, in the order of reading.

        Holds the texts of one unfinished shard a split. A session larger than a shard is one of its own.
        """
        twins = Twins()
        for source in sources:
            settings = self._settings(source)
            shards: dict[str, _Shard] = {}
            problems: list[str] = []
            for trajectory in source.sessions(problems):
                self.read += 1
                out = self._left_out(trajectory, source, twins)
                if out is not None:
                    self.left_out[out] += 1
                elif (given := self._given(trajectory, source, settings)) is not None:
                    yield from self._fill(shards.setdefault(given.split, _Shard()), given, source)
                self.on_session()
            # A reader's words may quote the file that it could not read.
            self.places.update(source.redactor.text(problem)[0] for problem in problems)
            for split, shard in shards.items():
                yield from self._flush(shard, split, source)
        self.over = True

    def _left_out(self, trajectory: Trajectory, source: Source, twins: Twins) -> tuple[Stage, str] | None:
        """Stage and reason of a session that needs no work to be left out."""
        if trajectory.session_id in self.seen:
            return "read", "same session as one read before"
        self.seen.add(trajectory.session_id)
        if trajectory.session_id in self.withdrawn:
            return "withdrawn", "withdrawn from an earlier release"
        if twins.has(trajectory, source.store_id):
            return "read", "same session as one that another store's recorder saw"
        return None

    def _given(self, trajectory: Trajectory, source: Source, settings: bytes) -> _Given | None:
        """A session as input of the map step; None where its work is done."""
        label = hashed(self.labels.get(trajectory.session_id, NO_LABEL), source.key)
        trajectory = labelled(trajectory, label, self.recipe)
        peak_agents = trajectory.contributor_peak_agents
        split = split_of(group_of(trajectory, label, self.recipe.splits), self.recipe.splits)
        blob = published_json(replace(trajectory, contributor_peak_agents=None))
        parts = (settings, split.encode(), msgspec.json.encode(label), hashlib.sha256(blob).digest())
        digest = self._digest(*parts)
        self.present[digest] = Present(
            session_id=trajectory.session_id, input=digest, peak_agents=peak_agents, reason=None
        )
        receipt = self.ledger.receipt_of(digest)
        if receipt is not None:
            if receipt.filters == filters_digest(self.recipe.filters):
                return None
            work = self.ledger.work_of(digest)
            if work is not None and work.digest is not None:
                reason = facts_reason(trajectory, label, self.recipe)
                self.present[digest] = replace(self.present[digest], reason=reason)
                return None
        session = SessionInput(
            session_id=trajectory.session_id, input=digest, packed=pack(blob), label=label, peak_agents=peak_agents
        )
        return _Given(split=split, session=session, size=len(blob))

    def _settings(self, source: Source) -> bytes:
        said = (
            FORMAT,
            SCHEMA_VERSION,
            importlib.metadata.version("agentdyno"),
            self.tokenizer,
            source.rules,
            self.recipe.truncate,
            RELEASE_BLOCK_TOKENS,
        )
        return hashlib.sha256(msgspec.json.encode(said)).digest()

    def _digest(self, *parts: bytes) -> str:
        """Keyed: whoever has the published rows cannot test a guess of what redaction took out of them."""
        lengths = b"".join(len(part).to_bytes(8) for part in parts)
        return hmac.digest(self.key, b"input" + lengths + b"".join(parts), "sha256").hex()

    def _fill(self, shard: _Shard, given: _Given, source: Source) -> Iterator[ShardTask]:
        self.to_build += 1
        if shard.size + given.size > SHARD_BYTES:
            yield from self._flush(shard, given.split, source)
        shard.sessions.append(given.session)
        shard.size += given.size
        if shard.size >= SHARD_BYTES or len(shard.sessions) >= SHARD_SESSIONS:
            yield from self._flush(shard, given.split, source)

    def _flush(self, shard: _Shard, split: str, source: Source) -> Iterator[ShardTask]:
        if not shard.sessions:
            return
        sessions = tuple(shard.sessions)
        shard.sessions, shard.size = [], 0
        self.tasks_made += 1
        yield ShardTask(
            input_digest=self._digest(*(session.input.encode() for session in sessions)),
            split=split,
            sessions=sessions,
            redactor=source.redactor,
            tokenizer=self.tokenizer,
            recipe=replace(self.recipe, card=None),
            block_key=hmac.digest(self.key, b"block hashes", "sha256"),
            folder=self.folder,
            work=self.folder / WORK,
        )

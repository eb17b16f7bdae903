"""A store as a build sees it: its sessions, ready to be published but for redaction, and what redacts them."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from capture.assemble import contributor_id
from capture.trajectory import Trajectory
from curate.labels import Label
from curate.published import valid_json
from curate.recipe import Recipe
from curate.shard import Redacts

SAME_START_US = 2_000_000  # two recorders of one session see its first call at nearly one time


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One store, opened."""

    store_id: str
    key: bytes  # the store's own; never published
    sessions: Callable[[list[str]], Iterator[Trajectory]]  # appends what it cannot read, in words
    redactor: Redacts
    rules: str  # digest of all that redaction goes by, known secrets included: when it changes, shards are done again
    expected: int | None = None  # sessions that it holds, where that is known beforehand


def open_source(path: Path, recipe: Recipe, redactor: Redacts | None) -> Source:
    """Open a store; without a redactor it gets one that knows the secrets its recorder saw."""
    from capture.sessions import read_sessions
    from capture.shelf import Shelf
    from capture.store import Store

    store = Store.open(path)
    known = store.seen_secrets()
    if redactor is None:
        from curate.redact import Redactor

        redactor = Redactor(seen=known, key=store.key, policy=recipe.redaction)
    said = (redactor.policy, msgspec.json.encode(recipe.redaction).decode(), *sorted(repr(secret) for secret in known))

    def sessions(problems: list[str]) -> Iterator[Trajectory]:
        found: list[str] = []
        yield from read_sessions(path, found, once=True)
        # A published file names no folder of this machine.
        problems.extend(problem.replace(f"{path}{os.sep}", "").replace(str(path), path.name) for problem in found)

    return Source(
        store_id=hmac.digest(store.key, b"agentdyno store id", "sha256").hex()[:16],
        key=store.key,
        sessions=sessions,
        redactor=redactor,
        rules=hashlib.sha256("\n".join(said).encode()).hexdigest(),
        expected=None if store.journals() else len(Shelf(path).session_ids()),
    )


def hashed(label: Label, key: bytes) -> Label:
    """A label that names its contributor as the store names people: by a keyed hash."""
    return label if label.contributor is None else replace(label, contributor=contributor_id(key, label.contributor))


def labelled(trajectory: Trajectory, label: Label, recipe: Recipe) -> Trajectory:
    """The session with what its label says, and else with the recipe's licence and consent."""
    return replace(
        trajectory,
        outcome=label.outcome or trajectory.outcome,
        license=label.license or trajectory.license or recipe.license,
        consent=label.consent or trajectory.consent or recipe.consent,
        contributor=label.contributor or trajectory.contributor,
    )


class Twins:
    """Sessions of which recorders of two stores saw the same: one recorder may stand behind the other.

    Each store has ids of its own; all words and all answers alike, at the same time, are no second run of a task.
    """

    def __init__(self) -> None:
        self._said: dict[bytes, tuple[str, int]] = {}  # what was said → store and start of the first that says it

    def has(self, trajectory: Trajectory, store_id: str) -> bool:
        """Whether another store's session is this one; remembers it if not."""
        if trajectory.source != "wire" or not trajectory.pool or trajectory.t0_utc_us is None:
            return False
        words = hashlib.sha256()
        for pooled in trajectory.pool:
            words.update(valid_json(pooled.message))
        known, start_us = self._said.setdefault(words.digest(), (store_id, trajectory.t0_utc_us))
        return known != store_id and abs(trajectory.t0_utc_us - start_us) <= SAME_START_US

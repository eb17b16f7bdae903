"""What reviewers decided, one JSON line each in `.private/review.jsonl`, written to the disk before it is answered.

A decision is bound to the digest of the session's rows: when a rebuild changes them, it is stale and asked again.
One thing is not bound so: a contributor who took their own session out did not mean its bytes, and stays obeyed until
they undo it. A drop wins over an approval, whoever said which.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from capture.atomic import write_once
from curate.manifest import PRIVATE

JOURNAL = "review.jsonl"

REASONS = (
    "a secret is left",
    "personal data",
    "confidential content",
    "no consent or licence",
    "no real work",
    "a broken recording",
)
"""Why a session is dropped, in the order of the page's number keys; any other words may be given."""

type Verdict = Literal["approve", "drop", "undo"]
type State = Literal["undecided", "stale", "approved", "dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision about one session."""

    session_id: str
    digest: str  # of the session's rows that were looked at
    verdict: Verdict
    reason: str | None
    reviewer: str
    contributor: str | None  # the contributor who decided about their own; None: a reviewer of the whole
    at: str  # UTC, ISO 8601
    version: str  # of agentdyno


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What holds for a session now; `decision` is the one that it follows from, or the stale one."""

    state: State
    decision: Decision | None = None

    @property
    def settled(self) -> bool:
        """Nothing is left to ask."""
        return self.state in ("approved", "dropped")

    @property
    def dropped_before(self) -> bool:
        """A reviewer dropped the session as it was before a build changed it, and nobody decided since."""
        return self.state == "stale" and self.decision is not None and self.decision.verdict == "drop"


class Decisions:
    """The decisions of a dataset folder; several processes may add to them at one time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PRIVATE / JOURNAL
        self.unfinished = 0  # lines that a killed process did not finish; they were never answered
        self._latest: dict[tuple[str, bool], Decision] = {}  # by session, and whether by its contributor
        self._read = 0  # bytes
        self._lock = threading.Lock()

    def standing(self, session_id: str, digest: str) -> Standing:
        """What holds for a session whose rows have this digest; reads what others added meanwhile."""
        with self._lock:
            self._refresh()
            return self._standing(session_id, digest)

    def standings(self, digests: Mapping[str, str]) -> dict[str, Standing]:
        """The same for many sessions, by id."""
        with self._lock:
            self._refresh()
            return {session_id: self._standing(session_id, digest) for session_id, digest in digests.items()}

    def append(self, decision: Decision) -> None:
        """Add a decision; it is on the disk when this returns. OSError where it cannot be written."""
        line = msgspec.json.encode(decision) + b"\n"
        with self._lock:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            created = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = file.seek(0, os.SEEK_END)
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line  # what a killed process left stays a line of its own
                written = os.write(descriptor, line)
                if written != len(line):
                    raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written")
                os.fsync(descriptor)
            if created:
                _sync(self.path.parent)
            self._refresh()

    def _refresh(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                decision = msgspec.json.decode(line, type=Decision)
            except msgspec.MsgspecError:
                self.unfinished += 1
                continue
            self._latest[decision.session_id, decision.contributor is not None] = decision

    def _standing(self, session_id: str, digest: str) -> Standing:
        by_contributor, by_reviewer = (self._latest.get((session_id, own)) for own in (True, False))
        said = [each for each in (by_contributor, by_reviewer) if each is not None and each.verdict != "undo"]
        for decision in said:
            if decision.verdict == "drop" and (decision.digest == digest or decision is by_contributor):
                return Standing(state="dropped", decision=decision)
        # An approval does not outweigh a reviewer's drop of the rows as they were: that is asked again.
        if any(decision.verdict == "drop" for decision in said):
            return Standing(state="stale", decision=said[-1])
        for decision in said:
            if decision.digest == digest:
                return Standing(state="approved", decision=decision)
        return Standing(state="stale", decision=said[-1]) if said else Standing(state="undecided")


def drop_reason(standing: Standing) -> str:
    who = "its contributor" if standing.decision is not None and standing.decision.contributor else "the reviewer"
    reason = standing.decision.reason if standing.decision is not None else None
    # Reasons stand in the published funnel: what a reviewer wrote in words of their own may tell what must not be told.
    return f"dropped by {who}: {reason if reason in REASONS else 'another reason'}"


def carry_decisions(previous: Path, folder: Path) -> None:
    """Let a new release begin with the decisions about the one before; those that it has itself stay as they are."""
    old, new = (each / PRIVATE / JOURNAL for each in (previous, folder))
    if old.is_file() and not new.exists():
        data = old.read_bytes()
        new.parent.mkdir(mode=0o700, exist_ok=True)
        write_once(new, data[: data.rfind(b"\n") + 1], mode=0o600)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

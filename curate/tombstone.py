"""A line of `withdrawn.jsonl`: a session that was taken back from a release.

`{"session_id": "…", "day": "2026-11-20", "reason": "contributor"}`. No text: a tombstone says that a session is gone
and must not come back, not what was in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import msgspec

from curate.manifest import DatasetFault

type Why = Literal["contributor", "licence", "personal-data", "secret", "quality", "other"]
"""Who or what asks for it, in one word: nothing else is published about it."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
REASONS: tuple[str, ...] = get_args(Why.__value__)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Tombstone:
    """One session that was taken back."""

    session_id: str
    day: str = "unknown"  # UTC; a line that a person wrote may not say
    reason: Why = "other"


def read_tombstones(data: bytes, where: str) -> tuple[Tombstone, ...]:
    """The lines of a `withdrawn.jsonl`; DatasetFault naming the line that is none."""
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                tombstone = msgspec.json.decode(line, type=Tombstone)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
                raise DatasetFault(f"{where}, line {number}, is no tombstone: {fault}; mend or restore it") from fault
            found.append(tombstone if _DAY.fullmatch(tombstone.day) else replace(tombstone, day="unknown"))
    return tuple(found)


def tombstone_lines(tombstones: Iterable[Tombstone]) -> dict[str, bytes]:
    """Lines by session id, each session once: its first withdrawal."""
    once = {tombstone.session_id: tombstone for tombstone in sorted(tombstones, reverse=True)}
    return {session_id: msgspec.json.encode(once[session_id]) for session_id in sorted(once)}

"""What a reviewer is shown in a text: what redaction put there, and what looks as if it had passed it by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from curate.redact import IDENTITY_KINDS, marks
from curate.review.leftovers import find_leftovers

type Group = Literal["secret", "identity", "leftover"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A stretch of a text; `secret` and `identity` are replacements, `leftover` is suspicious."""

    start: int
    end: int
    kind: str
    group: Group


def findings(text: str) -> list[Found]:
    """What to show in a text, in order and without overlap; a replacement wins over a suspicion."""
    replaced = [
        Found(
            start=mark.start,
            end=mark.end,
            kind=mark.kind,
            group="identity" if mark.kind in IDENTITY_KINDS else "secret",
        )
        for mark in marks(text)
    ]
    suspicious = (
        Found(start=left.start, end=left.end, kind=left.kind, group="leftover") for left in find_leftovers(text)
    )
    return sorted((*replaced, *_outside(suspicious, replaced)), key=lambda found: found.start)


def _outside(suspicious: Iterator[Found], replaced: list[Found]) -> Iterator[Found]:
    """Those that touch no replacement; of those that touch each other, the first and longest."""
    position, end = 0, 0
    for found in sorted(suspicious, key=lambda one: (one.start, -one.end, one.kind)):
        while position < len(replaced) and replaced[position].end <= found.start:
            position += 1
        if found.start >= end and (position == len(replaced) or replaced[position].start >= found.end):
            end = found.end
            yield found

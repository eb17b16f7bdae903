"""Lengths of unions of time intervals, so that what ran side by side counts once."""

from __future__ import annotations

from collections.abc import Iterable

type Interval = tuple[int, int]
"""Half-open, from a start to an end."""


def union(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The same time as disjoint intervals in order; empty ones are dropped."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def subtract(intervals: Iterable[Interval], taken: Iterable[Interval]) -> tuple[Interval, ...]:
    """What of the intervals no other covers."""
    left: list[Interval] = []
    holes = union(taken)
    for start, end in union(intervals):
        for hole_start, hole_end in holes:
            if hole_end <= start or hole_start >= end:
                continue
            if hole_start > start:
                left.append((start, hole_start))
            start = min(end, hole_end)
        if start < end:
            left.append((start, end))
    return tuple(left)


def union_length(intervals: Iterable[Interval]) -> int:
    """Total length covered by half-open intervals; those that end before they start cover nothing."""
    return sum(end - start for start, end in union(intervals))

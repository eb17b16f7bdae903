"""Drift: how a release differs from the one before, quantity by quantity.

The distance is Kolmogorov and Smirnov's D = max |F1(x) − F2(x)| of the two distribution functions, taken at the edges
that both histograms share: a lower bound of the true one. It is called moved where D exceeds
1.358 · sqrt((n + m) / (n · m)), the asymptotic limit at 5 % (Smirnov 1948), with n and m the numbers of *sessions* (or
contributors) of the two releases, not of requests, which are no independent draws. A quantity that moved by chance is
to be expected once in twenty; sessions that both releases hold make the limit wider than it need be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from curate.distribution import Distribution, Number
from curate.manifest import SessionEntry
from curate.quantities import CONTRIBUTORS, Quantity

if TYPE_CHECKING:
    from curate.stats import Stats

LIMIT_5_PERCENT = 1.358
METHOD = (
    "Kolmogorov-Smirnov distance at the edges that both histograms share, a lower bound; moved: above "
    "1.358 * sqrt((n + m) / (n * m)) with n and m the sessions of the two releases"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One quantity in the release before and in this one; None where it was not known there."""

    n_before: int
    n: int
    p50_before: Number | None
    p50: Number | None
    p90_before: Number | None
    p90: Number | None
    distance: float | None  # 0 to 1
    limit: float | None  # what chance alone stays below, 19 times of 20
    moved: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """This release against the one before."""

    previous_digest: str
    method: str
    sessions_added: int | None  # None: the release before is known by its statistics alone
    sessions_removed: int | None
    sessions_changed: int | None  # same id, other content
    sessions_unchanged: int | None
    quantities: dict[str, Moved]  # those that either release knows


def drift(
    stats: Stats,
    previous: Stats,
    *,
    sessions: Sequence[SessionEntry] | None = None,
    previous_sessions: Sequence[SessionEntry] | None = None,
) -> Drift:
    """Compare two releases; with the sessions of both, count those that came, went and stayed."""
    added = removed = changed = unchanged = None
    if sessions is not None and previous_sessions is not None:
        now = {entry.session_id: entry.digest for entry in sessions}
        before = {entry.session_id: entry.digest for entry in previous_sessions}
        both = now.keys() & before.keys()
        unchanged = sum(now[name] == before[name] for name in both)
        added, removed, changed = len(now) - len(both), len(before) - len(both), len(both) - unchanged
    return Drift(
        previous_digest=previous.digest,
        method=METHOD,
        sessions_added=added,
        sessions_removed=removed,
        sessions_changed=changed,
        sessions_unchanged=unchanged,
        quantities=_moved(stats.quantities, previous.quantities, stats.funnel.kept, previous.funnel.kept),
    )


def _moved(
    now: Mapping[str, Quantity], before: Mapping[str, Quantity], sessions: int, previous_sessions: int
) -> dict[str, Moved]:
    found = {}
    for name in (*now, *(name for name in before if name not in now)):
        one, other = now.get(name), before.get(name)
        new, old = (one.all if one else None), (other.all if other else None)
        if not ((new and new.n) or (old and old.n)):
            continue
        distance = None if new is None or old is None else ks_distance(new, old)
        limit = None
        if distance is not None and new is not None and old is not None:
            by_person = one is not None and one.of == CONTRIBUTORS
            n, m = (new.n, old.n) if by_person else (min(sessions, new.n), min(previous_sessions, old.n))
            limit = LIMIT_5_PERCENT * math.sqrt((n + m) / (n * m))
        found[name] = Moved(
            n_before=old.n if old else 0,
            n=new.n if new else 0,
            p50_before=old.p50 if old else None,
            p50=new.p50 if new else None,
            p90_before=old.p90 if old else None,
            p90=new.p90 if new else None,
            distance=distance,
            limit=limit,
            moved=None if distance is None or limit is None else distance > limit,
        )
    return found


def ks_distance(one: Distribution, other: Distribution) -> float | None:
    """The largest difference of two distribution functions at the edges where both are known; None without values."""
    if one.histogram is None or other.histogram is None:
        return None
    edges = sorted({*one.histogram.edges[:-1], *other.histogram.edges[:-1]})
    differences = [
        abs(below - other_below)
        for edge in edges
        if (below := _below(one, edge)) is not None and (other_below := _below(other, edge)) is not None
    ]
    return max(differences, default=0.0)


def _below(found: Distribution, edge: Number) -> float | None:
    """The share of values below an edge: known at the histogram's own edges and outside of them."""
    histogram = found.histogram
    if histogram is None or found.max is None or found.min is None:
        return None
    if edge <= found.min:
        return 0.0
    if edge > found.max:
        return 1.0
    if edge not in histogram.edges:
        return None
    at = histogram.edges.index(edge)
    return list(accumulate(histogram.counts, initial=0))[at] / found.n

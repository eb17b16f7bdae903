"""A distribution in numbers: percentiles, mean, extremes and a histogram whose edges any two datasets share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)
PERCENTILE_METHOD = (
    "linear interpolation between order statistics: with n sorted values x[0..n-1], h = (n - 1) * p / 100, "
    "the percentile is x[floor(h)] + (h - floor(h)) * (x[floor(h) + 1] - x[floor(h)]) "
    "(Hyndman and Fan 1996, type 7; numpy's default)"
)

type Number = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts between edges; a bin holds its lower edge, the last one of shares (0 to 1) holds both."""

    edges: tuple[Number, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Known values of one quantity; everything is None where none is known."""

    n: int  # known values
    null_count: int  # unknown ones
    min: Number | None
    p1: Number | None
    p5: Number | None
    p25: Number | None
    p50: Number | None
    p75: Number | None
    p90: Number | None
    p95: Number | None
    p99: Number | None
    max: Number | None
    mean: Number | None
    histogram: Histogram | None


def percentile(ordered: Sequence[Number] | np.ndarray, p: float) -> float:
    """The p-th percentile (0 to 100) of ascending values by PERCENTILE_METHOD; needs at least one value."""
    h = (len(ordered) - 1) * p / 100
    low = math.floor(h)
    below = float(ordered[low])
    if h == low:
        return below
    above = float(ordered[low + 1])
    share = h - low
    # From the nearer end, so that rounding can never leave the interval.
    return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)


def describe(values: Sequence[Number | None] | np.ndarray, *, share: bool = False) -> Distribution:
    """Describe values, of which None (or NaN) are unknown; `share` asks for linear edges from 0 to 1."""
    given = np.asarray(values, dtype=np.float64)
    known = np.sort(given[~np.isnan(given)])
    if not len(known):
        nothing = dict.fromkeys(("min", *(f"p{p}" for p in PERCENTILES), "max", "mean"))
        return Distribution(n=0, null_count=len(given), histogram=None, **nothing)
    within = share and known[0] >= 0 and known[-1] <= 1
    edges = [step / 20 for step in range(21)] if within else histogram_edges(known[0], known[-1])
    starts = np.searchsorted(known, edges)  # the values are sorted: no need to look at each
    starts[-1] = len(known)
    return Distribution(
        n=len(known),
        null_count=len(given) - len(known),
        min=plain(known[0]),
        max=plain(known[-1]),
        mean=plain(_total(known) / len(known)),
        histogram=Histogram(edges=tuple(plain(edge) for edge in edges), counts=tuple(int(n) for n in np.diff(starts))),
        **{f"p{p}": plain(percentile(known, p)) for p in PERCENTILES},
    )


def _total(known: np.ndarray) -> float:
    """The exact sum: of whole numbers as integers, which is fast; of others by `math.fsum`."""
    largest = max(abs(known[0]), abs(known[-1]))
    if largest * len(known) < 2**53 and bool(np.all(known == np.rint(known))):
        return float(known.sum())  # every partial sum is a whole number that a double holds
    return math.fsum(known)


def histogram_edges(low: float, high: float) -> list[float]:
    """Edges 0, 1, 2, 5, 10, 20, 50, … around low to high, cut to what is needed; negative ones likewise.

    The last edge lies above `high`, so that a count below an edge means the same in every dataset.
    """
    if low < 0:
        return [-edge for edge in reversed(histogram_edges(0, -low))] + histogram_edges(0, max(high, 0))[1:]
    edges = [0.0]
    for step in range(64):
        edges.append(float((1, 2, 5)[step % 3] * 10 ** (step // 3)))
        if edges[-1] > high:
            break
    first = max((position for position, edge in enumerate(edges) if edge <= low), default=0)
    return edges[min(first, len(edges) - 2) :]


def plain(value: float) -> Number:
    """A number that JSON writes plainly: whole values as integers."""
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value

"""Where the margin of a service level crosses zero: a line through trials in ln N, and Fieller's interval of its root.

The margin of a trial is ln(observed / limit) of the worst term, above zero where the level is missed. Over the narrow
span of the confirmation trials it is taken as linear in the logarithm of the number of agents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

CONFIDENCE = 0.95
"""Of the interval, two-sided. Its lower end is exceeded by the true root in 97.5 of 100 cases: that end certifies."""
INFINITE_MARGIN = 1.0
"""What an infinite margin counts as in a fit: 2.7 times the limit, or the largest finite margin where that is more. Or
as no more than the largest finite one, where the root is lower so: a high margin makes the line steep, which raises a
root that lies below most of the trials.
"""


class Point(NamedTuple):
    """One trial in a fit; `margin` may be +inf, which says only that the level was missed."""

    trial: int
    agents: int
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Margin = intercept + slope · ln(agents), by ordinary least squares.

    `low` and `high` are None where the data bounds no interval: the slope is not above zero, or g is 1 or more.
    """

    root: float | None  # agents at which the line crosses zero; None without a positive slope
    low: float | None
    high: float | None
    slope: float  # margin per unit of ln(agents)
    intercept: float  # margin at one agent
    residual_sd: float  # of the margins about the line, with n − 2 degrees of freedom
    g: float  # (t · standard error of the slope / slope)²; +inf for a slope of 0
    confidence: float
    trials: tuple[int, ...]
    infinite: tuple[int, ...]  # of these trials, those whose margin was infinite


def fieller(points: Sequence[Point], confidence: float = CONFIDENCE) -> Fit | None:
    """The line, its root and the root's interval; None for fewer than three points or a single level.

    Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954): the interval holds every x at which
    a margin of zero is not rejected by the t test of the line, so it is exact for normal noise.
    """
    count = len(points)
    if count < 3:
        return None
    infinite = [point.margin == math.inf for point in points]
    far = _line(points, finite_margins([point.margin for point in points]), confidence)
    if not any(infinite):
        return far
    least = max(0.0, *(point.margin for point in points if point.margin != math.inf), 0.0)
    near = _line(points, [min(point.margin, least) for point in points], confidence)
    rooted = [fit for fit in (far, near) if fit is not None and fit.root is not None]
    return min(rooted, key=lambda fit: fit.root or 0.0, default=far)


def _line(points: Sequence[Point], margins: Sequence[float], confidence: float) -> Fit | None:
    """The line through these margins at the points' agents; None for a single level."""
    count = len(points)
    logs = [math.log(point.agents) for point in points]
    mean_log, mean_margin = sum(logs) / count, sum(margins) / count
    spread = sum((log - mean_log) ** 2 for log in logs)
    if spread < 1e-12:
        return None
    slope = sum((log - mean_log) * margin for log, margin in zip(logs, margins, strict=True)) / spread
    squares = sum(
        (margin - mean_margin - slope * (log - mean_log)) ** 2 for log, margin in zip(logs, margins, strict=True)
    )
    residual_sd = math.sqrt(squares / (count - 2))
    error = student_t((1 + confidence) / 2, count - 2) * residual_sd
    # Not error / slope: a tiny slope would overflow before the comparison.
    g = error**2 / (slope**2 * spread) if slope**2 * spread > 0 else math.inf
    root = low = high = None
    if slope > 0:
        offset = -mean_margin / slope
        root = _agents(mean_log + offset)
        if g < 1:
            half = math.sqrt(g * offset**2 + (1 - g) * (error / slope) ** 2 / count)
            low = _agents(mean_log + (offset - half) / (1 - g))
            high = _agents(mean_log + (offset + half) / (1 - g))
    return Fit(
        root=root,
        low=low,
        high=high,
        slope=slope,
        intercept=mean_margin - slope * mean_log,
        residual_sd=residual_sd,
        g=g,
        confidence=confidence,
        trials=tuple(point.trial for point in points),
        infinite=tuple(point.trial for point in points if point.margin == math.inf),
    )


def finite_margins(margins: Sequence[float]) -> list[float]:
    """The margins with every infinite one at INFINITE_MARGIN, or at the largest finite one where that is more."""
    if math.inf not in margins:
        return list(margins)
    ceiling = max((margin for margin in margins if margin != math.inf), default=INFINITE_MARGIN)
    ceiling = max(ceiling, INFINITE_MARGIN)
    return [min(margin, ceiling) for margin in margins]


def _agents(log: float) -> float:
    """e to this power, within what a float and a reader can hold: far extrapolations end at 1e12."""
    return math.exp(min(max(log, -27.0), 27.631))


@lru_cache(maxsize=1024)
def student_t(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, to 12 digits; `probability` is one-sided, in [0.5, 1)."""
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"no t quantile for a probability of {probability} with {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while _t_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, degrees: int) -> float:
    """Abramowitz & Stegun 26.7.3 and 26.7.4: a finite sum, for t >= 0 and whole degrees of freedom."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine2 = math.cos(theta) ** 2
    term = math.cos(theta) if degrees % 2 else 1.0
    total = 0.0
    for step in range(1 + degrees % 2, degrees, 2):
        total += term
        term *= cosine2 * step / (step + 1)
    total *= math.sin(theta)
    two_sided = 2 / math.pi * (theta + total) if degrees % 2 else total
    return (1 + two_sided) / 2

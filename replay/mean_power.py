"""The power that a number of agents is divided by: from the steady windows of the very trials that the number rests on.

Between trials it is interpolated linearly in ln N; trials of one N count alike. Above the highest N it grows as N does,
below the lowest it stays: more than any machine that draws power when idle. No trial has a negative weight, as a fitted
line would give it: a trial that is charged more, because readings are missing, must never make this power less. A scope
that any of these trials has no valid power of has none, for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.power.energy import PowerTotal

if TYPE_CHECKING:
    from replay.judge import Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanPower:
    """Mean power of one scope at a number of agents, in watts, with standard (k = 1) uncertainties.

    `u_gain_w` is common to all sensors of a model, `u_rest_w` is not; `u_scatter_w` is what trials differ by.
    """

    scope: str
    sources: tuple[str, ...]
    measured: bool
    sensors: tuple[str, ...]  # models of the devices, sorted
    power_w: float
    certain_w: float | None  # with 2 u: the most that it, or a trial with no more agents or of a holdout, may be
    u_gain_w: float
    u_rest_w: float
    u_scatter_w: float


def mean_powers(trials: Sequence[Judged], agents: float, holdouts: Sequence[Judged] = ()) -> tuple[MeanPower, ...]:
    """Mean power of every scope that all these trials have valid power of.

    What is certified rests on its `holdouts` too: where one of them has none, nothing is certain.
    """
    scopes = dict.fromkeys(total.scope for item in trials for total in item.power)
    found = (_mean(scope, trials, agents, holdouts) for scope in scopes)
    return tuple(power for power in found if power is not None)


def _mean(scope: str, trials: Sequence[Judged], agents: float, holdouts: Sequence[Judged]) -> MeanPower | None:
    known = [total for item in trials if (total := _total(item, scope)) is not None]
    if not known or len(known) < len(trials):
        return None
    levels = [item.agents for item in trials]
    watts = [total.power_w or 0.0 for total in known]
    weights = interpolation_weights(levels, agents)
    pairs = list(zip(weights, known, strict=True))
    at = math.fsum(weight * value for weight, value in zip(weights, watts, strict=True))
    # Common to all trials, it does not average out.
    u_gain_w = math.fsum(weight * (total.u_gain_w or 0.0) for weight, total in pairs)
    u_rest_w = math.hypot(*(weight * (total.u_rest_w or 0.0) for weight, total in pairs))
    certifying = [_total(item, scope) for item in holdouts]
    below = [total for level, total in zip(levels, known, strict=True) if level <= agents]
    held = [total for total in certifying if total is not None]
    most = [_most_w(total.power_w or 0.0, total.u_gain_w or 0.0, total.u_rest_w or 0.0) for total in (*below, *held)]
    return MeanPower(
        scope=scope,
        sources=tuple(dict.fromkeys(source for total in known for source in total.sources)),
        measured=all(total.measured for total in known),
        sensors=tuple(sorted({sensor for total in known for sensor in total.sensors})),
        power_w=at,
        certain_w=max(_most_w(at, u_gain_w, u_rest_w), *most) if None not in certifying else None,
        u_gain_w=u_gain_w,
        u_rest_w=u_rest_w,
        u_scatter_w=_scatter([math.log(level) for level in levels], watts) * math.hypot(*weights),
    )


def _most_w(power_w: float, u_gain_w: float, u_rest_w: float) -> float:
    return power_w + 2 * math.hypot(u_gain_w, u_rest_w)


def _total(trial: Judged, scope: str) -> PowerTotal | None:
    """What a trial drew over one scope; None where that is not known."""
    return next(
        (total for total in trial.power if total.scope == scope and total.valid and (total.power_w or 0) > 0), None
    )


def interpolation_weights(levels: Sequence[int], agents: float) -> list[float]:
    """How much each trial counts at so many agents; none is negative."""
    below = max((level for level in levels if level <= agents), default=None)
    above = min((level for level in levels if level >= agents), default=None)
    shares: dict[int, float] = {}
    if below is None:
        shares[min(levels)] = 1.0
    elif above is None:
        shares[below] = agents / below
    elif above == below:
        shares[below] = 1.0
    else:
        shares[above] = math.log(agents / below) / math.log(above / below)
        shares[below] = 1 - shares[above]
    return [shares.get(level, 0.0) / levels.count(level) for level in levels]


def _scatter(places: Sequence[float], values: Sequence[float]) -> float:
    """Standard deviation of trials about their least-squares line; 0 of fewer than three."""
    count = len(places)
    if count < 3:
        return 0.0
    middle, mean = math.fsum(places) / count, math.fsum(values) / count
    spread = math.fsum((place - middle) ** 2 for place in places)
    pairs = list(zip(places, values, strict=True))
    slope = math.fsum((place - middle) * (value - mean) for place, value in pairs) / spread if spread else 0.0
    squares = math.fsum((value - mean - slope * (place - middle)) ** 2 for place, value in pairs)
    return math.sqrt(squares / (count - (2 if spread else 1)))

"""Energy of a window by a device's power gauge: laws 4 and 6 of `replay.power.energy`."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import groupby

from replay.power.integral import Cadence, Integral, Points, overlap_s
from replay.power.source import PowerDevice

AVERAGE_S = 1.0  # over which an averaging gauge averages
REFRESH_S = 2.0  # a gauge that shows a new value less often misses too much between two of them
OVER_LIMIT = 1.1
HOLE_CHARGED = "gauge_hole_charged_at_limit"
STALE_TIMES = 3  # that one gauge may have been stale in a window
STALE_PAIRS = 10  # readings that show whether a gauge usually changes from one to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A gauge's readings, and whether each is the mean of about the second before it."""

    readings: Points
    averages: bool


def integrate_gauge(gauge: Gauge, device: PowerDevice, cadence: Cadence, start_ns: int, end_ns: int) -> Integral:
    """Energy over [start, end): trapezoids between readings with none missing, the power limit where one is."""
    times, watts = gauge.readings.times, gauge.readings.values
    span = gauge.readings.bracket(start_ns, end_ns)
    if span is None:
        return Integral(
            energy_j=None,
            readings=len(times),
            reasons=("the power gauge was not read on both sides of the window",),
        )
    pace = cadence.pace(gauge.readings)
    hole_s = pace.hole_s
    flags: list[str] = []
    reasons: list[str] = []
    energies: list[float] = []
    unseen = gap_j = covered_s = largest_s = 0.0
    for index in range(*span):
        low_ns, high_ns, low_w, high_w = times[index], times[index + 1], watts[index], watts[index + 1]
        gap_s = (high_ns - low_ns) / 1e9
        largest_s = max(largest_s, gap_s)
        inside_s = overlap_s(low_ns, high_ns, start_ns, end_ns)
        covered_s += inside_s if gap_s <= hole_s else 0.0
        if device.limit_w is not None and max(low_w, high_w) > OVER_LIMIT * device.limit_w:
            flags.append("gauge_over_limit")
        if pace.adjacent_s < gap_s <= hole_s and device.limit_w is not None:
            charge_j = max(device.limit_w, low_w, high_w) * inside_s
            flags.append(HOLE_CHARGED)
            gap_j += charge_j / math.sqrt(3)
            energies.append(charge_j)
            continue
        if gap_s > hole_s:
            reasons.append(f"the power gauge has a hole of {gap_s:.1f} s, more than {hole_s:.1f} s")
        elif gap_s > pace.adjacent_s:
            reasons.append("a gauge reading is missing and the device's power limit is not known")
        from_s = max(0, start_ns - low_ns) / 1e9
        energies.append((low_w + (high_w - low_w) / gap_s * (from_s + inside_s / 2)) * inside_s)
        unseen += _unseen(gap_s, gauge.averages) * (high_w - low_w) ** 2
    if pace.refresh_s > REFRESH_S:
        reasons.append(
            f"the power gauge shows a new value every {pace.refresh_s:.3g} s: what it missed between two is not known; "
            f"read an energy counter, or the gauge at least every {REFRESH_S:g} s"
        )
    stale_s = _stale_s(watts, times, *span)
    if stale_s > hole_s:
        flags.append("gauge_stale")
        reasons.append(f"the power gauge showed one value for {stale_s:.1f} s, and usually does not: it was stale")
    inside = watts[span[0] : span[1] + 1]
    if len(inside) > STALE_PAIRS and min(inside) == max(inside):
        flags.append("gauge_constant")
    return Integral(
        energy_j=math.fsum(energies),
        coverage=min(1.0, covered_s / ((end_ns - start_ns) / 1e9)),
        largest_gap_s=largest_s,
        readings=len(energies) + 1,
        u_sampling_j=math.sqrt(unseen),
        u_gap_j=gap_j,
        edge_step_w=_edge_step_w(gauge, cadence, span, start_ns, end_ns),
        lag_s=AVERAGE_S / math.sqrt(3) if gauge.averages else 0.0,  # 0 to 1 s late, rectangular, about no lag
        flags=tuple(dict.fromkeys(flags)),
        reasons=tuple(dict.fromkeys(reasons)),
    )


def _unseen(gap_s: float, averages: bool) -> float:
    """Variance of the energy between two readings, in J² per W² of their difference.

    The mean of a systematic sample by its successive differences (Wolter, Introduction to Variance Estimation, 8.2,
    estimator v2). An average over a second has seen what lies in it; there a step of the load only bends the curve
    twice, and a trapezoid misses x(1-x)/2 of each bend, whose mean square is 1/120.
    """
    if not averages:
        return gap_s**2 / 2
    return max(0.0, gap_s - AVERAGE_S) ** 2 / 2 + gap_s**2 * min(gap_s, AVERAGE_S) / AVERAGE_S / 60


def _stale_s(watts: tuple[float, ...], times: tuple[int, ...], first: int, last: int) -> float:
    """The longest time that one value was shown for, by a gauge that changes between most readings; else 0."""
    longest_s, at = 0.0, first
    runs = [len(list(run)) for _, run in groupby(watts[first : last + 1])]
    for run in runs:
        longest_s = max(longest_s, (times[at + run - 1] - times[at]) / 1e9)
        at += run
    # The few times that it may have been stale say nothing of how it usually is.
    usual = sorted(runs)[:-STALE_TIMES]
    pairs, changes = sum(usual), len(usual)
    return longest_s if pairs >= STALE_PAIRS and 2 * changes > pairs else 0.0


def _edge_step_w(gauge: Gauge, cadence: Cadence, span: tuple[int, int], start_ns: int, end_ns: int) -> float:
    """By how much the power around the window's end can differ from that around its start, by any of the readings.

    Shifting the window by a time changes its energy by this much per second of it.
    """
    (least_before, most_before), (least_after, most_after) = (
        _around(gauge, cadence, span, at_ns) for at_ns in (start_ns, end_ns)
    )
    return max(most_after - least_before, most_before - least_after)


def _around(gauge: Gauge, cadence: Cadence, span: tuple[int, int], at_ns: int) -> tuple[float, float]:
    """The least and the most that was read near an instant, of what the window rests on."""
    half_ns = round(max(cadence.clock_u_s, cadence.period_s, AVERAGE_S / 2 if gauge.averages else 0.0) * 1e9)
    times, watts = gauge.readings.times, gauge.readings.values
    first = max(span[0], bisect_right(times, at_ns - half_ns) - 1)
    last = min(span[1], bisect_left(times, at_ns + half_ns))
    near = watts[first : last + 1]
    return min(near), max(near)

"""Energy of a window by a device's own counter: laws 1, 2, 3, 5 and 7 of `replay.power.energy`."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise

from replay.power.gauge import HOLE_CHARGED, Gauge, integrate_gauge
from replay.power.integral import HIGHEST_LIMITS, Cadence, Integral, Pace, Points, overlap_s
from replay.power.source import PowerDevice

STILL_TIMES = 3  # a counter that shows no new value for so many of its updates, or of our readings, stood still
CAUGHT_UP = 0.05  # share of the gauge's energy that it may lack after that
LEAST_RISE = 0.1  # share of its usual rise that a device without a gauge draws at the least, if it only idles


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Energy between two readings, as far as it lies inside the window."""

    energy_j: float | None
    u_sampling_j: float = 0.0
    u_gap_j: float = 0.0
    flags: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interval:
    low_ns: int
    high_ns: int
    before_j: float  # what the counter showed at its start
    rise_j: float  # as read; below 0 where the counter fell
    unread_s: float  # longest time without a reading in it

    @property
    def seconds(self) -> float:
        return (self.high_ns - self.low_ns) / 1e9


def integrate_counter(
    counter: Points, gauge: Gauge | None, device: PowerDevice, cadence: Cadence, start_ns: int, end_ns: int
) -> Integral:
    """Energy over [start, end); `gauge` fills the intervals in which the counter was reset."""
    if len(counter) == 0 or counter.times[0] > start_ns or counter.times[-1] < end_ns:
        return Integral(
            energy_j=None,
            readings=len(counter),
            reasons=("the energy counter was not read on both sides of the window",),
        )
    pace = cadence.pace(counter)
    fresh = counter.fresh(cadence.latched_s)
    times = [counter.times[index] for index in fresh]
    first, last = bisect_right(times, start_ns) - 1, bisect_left(times, end_ns)
    window_s = (end_ns - start_ns) / 1e9
    most_w = math.inf if device.limit_w is None else HIGHEST_LIMITS * device.limit_w
    still_s = _longest_still_s(cadence)
    plain: list[float] = []  # whole rises of the window's inside, of which nothing more is to be said
    parts: list[_Part] = []
    covered_s = largest_s = 0.0
    for low, high in pairwise(fresh[first : last + 1]):
        interval = _Interval(
            low_ns=counter.times[low],
            high_ns=counter.times[high],
            before_j=counter.values[low],
            rise_j=counter.values[high] - counter.values[low],
            unread_s=counter.unread_s(low, high),
        )
        largest_s = max(largest_s, interval.unread_s)
        near = interval.unread_s <= pace.hole_s
        if near:
            covered_s += overlap_s(interval.low_ns, interval.high_ns, start_ns, end_ns)
        inside = start_ns <= interval.low_ns and interval.high_ns <= end_ns
        if interval.seconds > still_s and interval.rise_j >= 0:
            stuck = _stuck(interval, counter, gauge, device, cadence, start_ns, end_ns, read=high - low > 1)
            if stuck is not None:
                parts.append(stuck)
                continue
        if near and inside and 0 <= interval.rise_j <= most_w * (interval.seconds + cadence.slack_s):
            plain.append(interval.rise_j)
        else:
            parts.append(_part(interval, gauge, device, cadence, pace, start_ns, end_ns))
    if last == len(fresh):
        parts.append(_stale_end(times[-1], device, cadence, pace, start_ns, end_ns))
    energies = [part.energy_j for part in parts if part.energy_j is not None]
    energy_j = math.fsum((*plain, *energies)) if len(energies) == len(parts) else None
    return Integral(
        energy_j=energy_j,
        coverage=min(1.0, covered_s / window_s),
        largest_gap_s=largest_s,
        readings=len(plain) + len(parts) + 1,
        u_latch_j=math.sqrt(2 / 12) * (energy_j or 0.0) / window_s * cadence.age_s,  # at either edge, rectangular
        u_sampling_j=math.hypot(*(part.u_sampling_j for part in parts)),
        u_gap_j=math.fsum(part.u_gap_j for part in parts),
        edge_step_w=_edge_step_w(counter, cadence, start_ns, end_ns, (energy_j or 0.0) / window_s),
        flags=tuple(dict.fromkeys(flag for part in parts for flag in part.flags)),
        reasons=tuple(dict.fromkeys(reason for part in parts for reason in part.reasons)),
    )


def median_slope_w(counter: Points, start_ns: int, end_ns: int) -> float | None:
    """The middle one of the rises per second around a window, in W; None where the counter never rose."""
    points = [(counter.times[index], counter.values[index]) for index in counter.fresh(0)]
    slopes = sorted(
        (after - before) / ((high - low) / 1e9)
        for (low, before), (high, after) in pairwise(points)
        if after > before and high > start_ns and low < end_ns
    )
    return slopes[len(slopes) // 2] if slopes else None


def _part(
    interval: _Interval,
    gauge: Gauge | None,
    device: PowerDevice,
    cadence: Cadence,
    pace: Pace,
    start_ns: int,
    end_ns: int,
) -> _Part:
    inside_s = overlap_s(interval.low_ns, interval.high_ns, start_ns, end_ns)
    whole = inside_s * 1e9 >= interval.high_ns - interval.low_ns
    highest_j = None
    if device.limit_w is not None:
        highest_j = HIGHEST_LIMITS * device.limit_w * (interval.seconds + cadence.slack_s)
    rise_j = interval.rise_j
    flags: tuple[str, ...] = ()
    if rise_j < 0 and device.wrap_j is not None:
        rise_j += device.wrap_j
        flags = ("counter_wrapped",)
    if rise_j < 0 or (highest_j is not None and rise_j > highest_j):
        flag = "counter_reset" if interval.rise_j < 0 else "counter_jump"
        return _filled(gauge, device, cadence, flag, max(interval.low_ns, start_ns), min(interval.high_ns, end_ns))
    hole_s = pace.hole_s
    if interval.unread_s > hole_s and not (whole and _knows_its_rise(interval, device, highest_j)):
        where = "" if whole else " at the window's edge"
        reason = f"the energy counter has a hole of {interval.unread_s:.1f} s{where}, more than {hole_s:.1f} s"
        return _Part(energy_j=rise_j * inside_s / interval.seconds, flags=flags, reasons=(reason,))
    if whole:
        flags = (*flags, "counter_bridged_a_hole") if interval.unread_s > hole_s else flags
        return _Part(energy_j=rise_j, flags=flags)
    least_j, most_j = _share(rise_j, inside_s, interval.seconds, device.limit_w)
    if interval.unread_s <= pace.adjacent_s:
        share_j = rise_j * inside_s / interval.seconds
        return _Part(energy_j=share_j, u_sampling_j=(most_j - least_j) / math.sqrt(12), flags=flags)
    # A reading is missing between the edge and here: charge the most that can have been drawn inside the window.
    charge_j = rise_j
    if device.limit_w is not None:
        charge_j = min(rise_j, HIGHEST_LIMITS * device.limit_w * (inside_s + cadence.slack_s))
    return _Part(
        energy_j=charge_j, u_gap_j=max(0.0, charge_j - least_j) / math.sqrt(3), flags=(*flags, "edge_charged_in_full")
    )


def _knows_its_rise(interval: _Interval, device: PowerDevice, highest_j: float | None) -> bool:
    """Whether a counter must have fallen visibly, had it been reset in a hole, and cannot have gone round twice."""
    if highest_j is None or interval.before_j < highest_j:
        return False
    return device.wrap_j is None or device.wrap_j > highest_j


def _longest_still_s(cadence: Cadence) -> float:
    """For how long a counter may show no new value; as long as it likes where nobody knows how often it changes."""
    return math.inf if cadence.latch_s is None else STILL_TIMES * max(cadence.period_s, cadence.latch_s)


def _stuck(
    interval: _Interval,
    counter: Points,
    gauge: Gauge | None,
    device: PowerDevice,
    cadence: Cadence,
    start_ns: int,
    end_ns: int,
    *,
    read: bool,
) -> _Part | None:
    """A time without a new value, where the counter did not catch up afterwards; None where it did.

    What was drawn then is by the gauge. Without one a counter that was `read` meanwhile, and showed the same again, is
    held against its own usual rise.
    """
    found = integrate_gauge(gauge, device, cadence, interval.low_ns, interval.high_ns) if gauge is not None else None
    if found is not None and found.usable_j is not None and HOLE_CHARGED not in found.flags:
        if interval.rise_j >= (1 - CAUGHT_UP) * found.usable_j:
            return None
        low_ns, high_ns = max(interval.low_ns, start_ns), min(interval.high_ns, end_ns)
        return _filled(gauge, device, cadence, "counter_stuck", low_ns, high_ns)
    usual_w = median_slope_w(counter, start_ns, end_ns)
    # What it counted before it stuck and after is of a period at most.
    if not read or usual_w is None or interval.rise_j >= usual_w * (LEAST_RISE * interval.seconds + cadence.period_s):
        return None
    reason = f"the energy counter showed nothing new for {interval.seconds:.1f} s and did not catch up: it was stuck"
    return _Part(energy_j=None, flags=("counter_stuck",), reasons=(reason,))


def _share(rise_j: float, inside_s: float, seconds: float, limit_w: float | None) -> tuple[float, float]:
    """The least and the most of a rise that can lie in part of its interval, under the device's power limit."""
    if limit_w is None:
        return 0.0, rise_j
    least_j = min(rise_j, max(0.0, rise_j - limit_w * (seconds - inside_s)))
    return least_j, max(least_j, min(rise_j, limit_w * inside_s))


def _stale_end(since_ns: int, device: PowerDevice, cadence: Cadence, pace: Pace, start_ns: int, end_ns: int) -> _Part:
    """The window's end where the counter was read after it and still shows a value from before it."""
    stale_s = (end_ns - since_ns) / 1e9
    inside_s = overlap_s(since_ns, end_ns, start_ns, end_ns)
    if device.limit_w is None or stale_s > pace.hole_s:
        return _Part(
            energy_j=None,
            flags=("counter_stale",),
            reasons=(f"the energy counter did not change in the last {stale_s:.1f} s of the window, nor after it",),
        )
    charge_j = HIGHEST_LIMITS * device.limit_w * (inside_s + cadence.age_s)
    return _Part(energy_j=charge_j, u_gap_j=charge_j / math.sqrt(3), flags=("counter_stale",))


def _filled(gauge: Gauge | None, device: PowerDevice, cadence: Cadence, flag: str, low_ns: int, high_ns: int) -> _Part:
    """An interval in which the counter says nothing: by the gauge."""
    found = None if gauge is None else integrate_gauge(gauge, device, cadence, low_ns, high_ns)
    if found is None or found.usable_j is None:
        reason = "the energy counter fell or jumped and no power gauge covers that interval"
        return _Part(energy_j=None, flags=(flag,), reasons=(reason,))
    return _Part(
        energy_j=found.energy_j, u_sampling_j=found.u_sampling_j, u_gap_j=found.u_gap_j, flags=(flag, *found.flags)
    )


def _edge_step_w(counter: Points, cadence: Cadence, start_ns: int, end_ns: int, mean_w: float) -> float:
    """By how much the power around the window's end differs from that around its start.

    Shifting the window by a time changes its energy by this much per second of it.
    """
    half_ns = round(max(cadence.clock_u_s, cadence.period_s) * 1e9)
    rates = [_rate_w(counter, at_ns - half_ns, at_ns + half_ns) for at_ns in (start_ns, end_ns)]
    if rates[0] is None or rates[1] is None:
        return mean_w  # as if the load began at the window's edge
    return abs(rates[1] - rates[0])


def _rate_w(counter: Points, low_ns: int, high_ns: int) -> float | None:
    first = max(0, bisect_right(counter.times, low_ns) - 1)
    last = min(len(counter) - 1, bisect_left(counter.times, high_ns))
    rise_j = counter.values[last] - counter.values[first]
    if last <= first or rise_j < 0:
        return None
    return rise_j / ((counter.times[last] - counter.times[first]) / 1e9)

"""The energy of a window from power samples.

The law: **a reading that is missing never makes a system look better.**

1. A counter is used before a gauge: it has integrated in the device what we could only sample.
2. Between two adjacent readings a window's edge is interpolated linearly. Adjacent means at most 1.5 periods apart.
   Where a reading is missing at an edge, the counter is charged from the last reading before the window, or to the
   first one after it: more than the window used, never less.
3. A gauge is integrated by trapezoids between adjacent readings; where a reading is missing, the device is charged
   at its power limit. A gauge without a known limit cannot be bridged.
4. A hole longer than max(3 s, 5 periods), a window without readings on both sides, a device that was lost: no energy
   is known, and the estimate is invalid. It is never zero and never shorter.
5. A counter that falls has wrapped (where its range is known) or was reset: over that interval the gauge is charged
   instead, and the estimate says so.

Therefore splitting a window conserves energy (and never loses any where readings are missing), adding a device
never lowers a total, and dropping samples never raises agents per megawatt. tests/test_energy.py holds all three.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from replay.power.source import PowerDevice, PowerDomain, PowerSample, SourceInfo

ADJACENT_PERIODS = 1.5
GAIN_RELATIVE = 0.05 / math.sqrt(3)  # uncalibrated device sensors: ±5 %, rectangular (JCGM 100:2008, 4.3.7)
LATCH_S = 0.1  # how stale a counter may be; the update period is undocumented, 20–100 ms are seen
CROSS_CHECK = 0.05  # counter and gauge that differ by more are both published and flagged


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyEstimate:
    """Energy of one device over one window. Joules are None unless `valid`; uncertainties are standard (k = 1)."""

    device: str
    domain: PowerDomain
    method: str  # counter | gauge | declared | none
    energy_j: float | None
    gauge_energy_j: float | None  # the cross-check, where a counter was used and a gauge was read too
    u_gain_j: float  # common to all devices of a kind: add it linearly
    u_rest_j: float  # independent between devices: add it in squares
    coverage: float  # share of the window between readings close enough to count
    largest_gap_s: float | None
    readings: int
    flags: tuple[str, ...]
    valid: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTotal:
    """Mean power of one source over one window: a sum over its expected devices, or nothing."""

    source: str
    domain: PowerDomain
    measured: bool
    devices: tuple[EnergyEstimate, ...]
    energy_j: float | None
    power_w: float | None
    power_u_w: float | None  # expanded, k = 2
    valid: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """Part of an integral: joules between two readings, clipped to the window."""

    energy_j: float | None
    covered_s: float
    gap_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Integral:
    energy_j: float | None
    coverage: float
    largest_gap_s: float | None
    u_rest_j: float
    readings: int
    flags: tuple[str, ...]
    reasons: tuple[str, ...]


type _Series = tuple[list[int], list[float]]


def total_power(
    source: SourceInfo, samples: Sequence[PowerSample], *, start_ns: int, end_ns: int, period_s: float
) -> PowerTotal:
    """Integrates every device of a source over [start, end) and adds them; one invalid device voids the total."""
    by_device: dict[str, list[PowerSample]] = {device.uid: [] for device in source.devices}
    for sample in samples:
        if sample.device in by_device:
            by_device[sample.device].append(sample)
    estimates = tuple(
        integrate(by_device[device.uid], device, start_ns=start_ns, end_ns=end_ns, period_s=period_s)
        for device in source.devices
    )
    reasons = [f"{estimate.device}: {reason}" for estimate in estimates for reason in estimate.reasons]
    if not estimates:
        reasons.append(f"the source {source.kind} has no device")
    seconds = (end_ns - start_ns) / 1e9
    energies = [estimate.energy_j for estimate in estimates if estimate.energy_j is not None]
    valid = not reasons and len(energies) == len(estimates) and seconds > 0
    energy_j = math.fsum(energies) if valid else None
    gain = sum(estimate.u_gain_j for estimate in estimates)
    rest = math.sqrt(sum(estimate.u_rest_j**2 for estimate in estimates))
    return PowerTotal(
        source=source.kind,
        domain=source.devices[0].domain if source.devices else "declared",
        measured=source.measured,
        devices=estimates,
        energy_j=energy_j,
        power_w=None if energy_j is None else energy_j / seconds,
        power_u_w=None if energy_j is None else 2 * math.hypot(gain, rest) / seconds,
        valid=valid,
        reasons=tuple(reasons),
    )


def integrate(
    samples: Sequence[PowerSample], device: PowerDevice, *, start_ns: int, end_ns: int, period_s: float
) -> EnergyEstimate:
    """Energy of one device over [start, end), by the law above. `samples` are of this device, in any order."""
    if end_ns <= start_ns:
        return _invalid(device, "the window is empty")
    if device.domain == "declared":
        return _declared(samples, device, start_ns, end_ns)
    # A lost device stays lost: a reading after the window's start, or shortly before it, voids the device.
    horizon_ns = start_ns - round(_hole_s(period_s) * 1e9)
    if any(sample.flag == "lost" and horizon_ns <= sample.t_ns <= end_ns for sample in samples):
        return _invalid(device, "the device was lost while it was measured")
    flags: list[str] = []
    gauge_series = _series(samples, "power_w")
    gauge = _integrate_gauge(gauge_series, device, start_ns, end_ns, period_s) if gauge_series[0] else None
    counter_series = _series(samples, "energy_j")
    counter = None
    if counter_series[0]:
        counter = _integrate_counter(counter_series, gauge_series, device, start_ns, end_ns, period_s)
        if counter.energy_j == 0 and not counter.reasons:
            flags.append("counter_stuck")
            if gauge is None or gauge.energy_j is None:
                return _invalid(device, "the energy counter did not move")
            counter = None
    if counter is not None and (counter.energy_j is not None or gauge is None or gauge.energy_j is None):
        chosen, method = counter, "counter"
    elif gauge is not None:
        chosen, method = gauge, "gauge"
        flags += ["counter_unusable"] if counter is not None else []
    else:
        return _invalid(device, "the device reports neither energy nor power")
    gauge_energy_j = gauge.energy_j if gauge is not None and method == "counter" else None
    if gauge_energy_j and chosen.energy_j and abs(chosen.energy_j / gauge_energy_j - 1) > CROSS_CHECK:
        flags.append("counter_and_gauge_disagree")
    return EnergyEstimate(
        device=device.uid,
        domain=device.domain,
        method=method,
        energy_j=chosen.energy_j,
        gauge_energy_j=gauge_energy_j,
        u_gain_j=GAIN_RELATIVE * (chosen.energy_j or 0.0),
        u_rest_j=chosen.u_rest_j,
        coverage=chosen.coverage,
        largest_gap_s=chosen.largest_gap_s,
        readings=chosen.readings,
        flags=tuple(dict.fromkeys((*flags, *chosen.flags))),
        valid=chosen.energy_j is not None,
        reasons=chosen.reasons,
    )


def _integrate_counter(
    series: _Series, gauge: _Series, device: PowerDevice, start_ns: int, end_ns: int, period_s: float
) -> _Integral:
    times, joules = series
    span = _bracket(times, start_ns, end_ns)
    if span is None:
        return _unusable("the energy counter was not read on both sides of the window", len(times))
    flags: list[str] = []
    reasons: list[str] = []
    parts: list[_Span] = []
    adjacent_s = ADJACENT_PERIODS * period_s
    for index in range(*span):
        low_ns, high_ns = times[index], times[index + 1]
        gap_s = (high_ns - low_ns) / 1e9
        inside_s = _overlap_s(low_ns, high_ns, start_ns, end_ns)
        rise = joules[index + 1] - joules[index]
        if rise < 0 and device.wrap_j is not None:
            rise += device.wrap_j
            flags.append("counter_wrapped")
        implausible = device.limit_w is not None and rise > 1.2 * device.limit_w * (gap_s + 1.0)
        if rise < 0 or implausible:
            flags.append("counter_reset" if rise < 0 else "counter_jump")
            filled = _integrate_gauge(gauge, device, max(low_ns, start_ns), min(high_ns, end_ns), period_s)
            if filled.energy_j is None:
                reasons.append("the energy counter fell or jumped and no power gauge covers that interval")
            parts.append(_Span(energy_j=filled.energy_j, covered_s=inside_s, gap_s=gap_s))
            continue
        whole = inside_s * 1e9 >= high_ns - low_ns
        # Law 2: interpolate only between adjacent readings, else charge the whole interval.
        share = 1.0 if whole or gap_s > adjacent_s else inside_s / gap_s
        parts.append(_Span(energy_j=rise * share, covered_s=inside_s, gap_s=gap_s))
    window_s = (end_ns - start_ns) / 1e9
    result = _sum(parts, window_s, period_s, "energy counter")
    power_w = (result.energy_j or 0.0) / window_s
    return _Integral(
        energy_j=None if reasons else result.energy_j,
        coverage=result.coverage,
        largest_gap_s=result.largest_gap_s,
        u_rest_j=math.sqrt(2) * power_w * LATCH_S / math.sqrt(12),
        readings=len(parts) + 1,
        flags=tuple(flags),
        reasons=(*reasons, *result.reasons),
    )


def _integrate_gauge(series: _Series, device: PowerDevice, start_ns: int, end_ns: int, period_s: float) -> _Integral:
    times, watts = series
    span = _bracket(times, start_ns, end_ns)
    if span is None:
        return _unusable("the power gauge was not read on both sides of the window", len(times))
    flags: list[str] = []
    reasons: list[str] = []
    parts: list[_Span] = []
    steps_squared = 0.0
    adjacent_s = ADJACENT_PERIODS * period_s
    for index in range(*span):
        low_ns, high_ns = times[index], times[index + 1]
        low_w, high_w = watts[index], watts[index + 1]
        gap_s = (high_ns - low_ns) / 1e9
        inside_s = _overlap_s(low_ns, high_ns, start_ns, end_ns)
        if device.limit_w is not None and max(low_w, high_w) > 1.1 * device.limit_w:
            flags.append("gauge_over_limit")
        if gap_s <= adjacent_s:
            slope = (high_w - low_w) / gap_s
            from_s = max(0, start_ns - low_ns) / 1e9
            energy_j = (low_w + slope * (from_s + inside_s / 2)) * inside_s
            steps_squared += (high_w - low_w) ** 2
        elif device.limit_w is not None:
            energy_j = max(device.limit_w, low_w, high_w) * inside_s
            flags.append("gauge_hole_charged_at_limit")
        else:
            energy_j = 0.0
            reasons.append("a gauge reading is missing and the device's power limit is not known")
        parts.append(_Span(energy_j=energy_j, covered_s=inside_s, gap_s=gap_s))
    result = _sum(parts, (end_ns - start_ns) / 1e9, period_s, "power gauge")
    return _Integral(
        energy_j=None if reasons else result.energy_j,
        coverage=result.coverage,
        largest_gap_s=result.largest_gap_s,
        # Each step between two readings may have happened anywhere between them.
        u_rest_j=period_s * math.sqrt(steps_squared / 12),
        readings=len(parts) + 1,
        flags=tuple(flags),
        reasons=(*dict.fromkeys(reasons), *result.reasons),
    )


def _sum(parts: list[_Span], window_s: float, period_s: float, what: str) -> _Integral:
    hole_s = _hole_s(period_s)
    largest = max(part.gap_s for part in parts)
    covered = sum(part.covered_s for part in parts if part.gap_s <= hole_s)
    reasons = (f"the {what} has a hole of {largest:.1f} s, more than {hole_s:.1f} s",) if largest > hole_s else ()
    energies = [part.energy_j for part in parts if part.energy_j is not None]
    return _Integral(
        energy_j=None if reasons or len(energies) < len(parts) else math.fsum(energies),
        coverage=min(1.0, covered / window_s),
        largest_gap_s=largest,
        u_rest_j=0.0,
        readings=len(parts) + 1,
        flags=(),
        reasons=reasons,
    )


def _hole_s(period_s: float) -> float:
    return max(3.0, 5 * period_s)


def _bracket(times: list[int], start_ns: int, end_ns: int) -> tuple[int, int] | None:
    """Positions of the readings around the window: the last at or before its start, the first at or after its end."""
    first = bisect_right(times, start_ns) - 1
    last = bisect_left(times, end_ns)
    if first < 0 or last >= len(times):
        return None
    return first, last


def _overlap_s(low_ns: int, high_ns: int, start_ns: int, end_ns: int) -> float:
    return max(0, min(high_ns, end_ns) - max(low_ns, start_ns)) / 1e9


def _series(samples: Sequence[PowerSample], kind: str) -> _Series:
    by_time = {
        sample.t_ns: sample.value
        for sample in samples
        if sample.kind == kind
        and sample.flag == "ok"
        and sample.value is not None
        # A device that is on never draws 0 W: a gauge that says so is a gauge that did not answer.
        and (kind == "energy_j" or sample.value > 0)
    }
    times = sorted(by_time)
    return times, [by_time[time] for time in times]


def _declared(samples: Sequence[PowerSample], device: PowerDevice, start_ns: int, end_ns: int) -> EnergyEstimate:
    values = {sample.value for sample in samples}
    if device.limit_w is None or values != {device.limit_w}:
        return _invalid(device, "the samples do not hold the declared watts")
    return EnergyEstimate(
        device=device.uid,
        domain=device.domain,
        method="declared",
        energy_j=device.limit_w * (end_ns - start_ns) / 1e9,
        gauge_energy_j=None,
        u_gain_j=0.0,
        u_rest_j=0.0,
        coverage=1.0,
        largest_gap_s=None,
        readings=len(samples),
        flags=("declared",),
        valid=True,
        reasons=(),
    )


def _invalid(device: PowerDevice, reason: str) -> EnergyEstimate:
    return EnergyEstimate(
        device=device.uid,
        domain=device.domain,
        method="none",
        energy_j=None,
        gauge_energy_j=None,
        u_gain_j=0.0,
        u_rest_j=0.0,
        coverage=0.0,
        largest_gap_s=None,
        readings=0,
        flags=(),
        valid=False,
        reasons=(reason,),
    )


def _unusable(reason: str, readings: int) -> _Integral:
    return _Integral(
        energy_j=None,
        coverage=0.0,
        largest_gap_s=None,
        u_rest_j=0.0,
        readings=readings,
        flags=(),
        reasons=(reason,),
    )

"""The energy of a window from power samples.

The law: **a reading that is missing never makes a system look better.**

1. A device that has a counter is measured by it: it has integrated what we could only sample. A gauge stands beside it
   as a cross-check, and fills an interval in which the counter fell or jumped. A counter's reading that is missing is
   never replaced by a gauge's.
2. Of a counter's readings the first of each value counts: those more than a latch later show it again, older. Between
   two readings with none missing between them (at most 1.5 periods apart) a window's edge is interpolated. Where one is
   missing, the window is charged the whole rise, or what the device can draw inside it at 1.2 times its limit,
   whichever is less.
3. Inside the window a counter's rise is known however long nobody looked, if a reset or a second wrap in that time
   would show: the counter stood above what the device can draw in it. Else a hole is one.
4. A gauge is integrated by trapezoids between adjacent readings, repeated values held; where a reading is missing, the
   device is charged at its power limit. A gauge without a known limit cannot be bridged, and one that shows a new
   value less often than every 2 s is not integrated at all.
5. A counter of which it is known how often it changes, and that shows nothing new for three times as long (or three
   periods), must have caught up afterwards, by the gauge: else that time is the gauge's. Without a gauge it is invalid
   if it was read meanwhile and rose by hardly a tenth of what is usual.
6. A hole longer than max(3 s, 5 periods), a window without readings on both sides, a device that was lost, a gauge that
   is stale, a unit that cannot be right, a counter whose scope is not known: no energy is known, and the estimate is
   invalid. It is never zero and never shorter.
7. A counter that falls has wrapped (where its range is known) or was reset.
8. A total is the sum over every device of its set. One that is missing, invalid, shown twice or that overlaps another
   leaves no total; nor is a total believed that is less than what is measured inside it.

Therefore splitting a window conserves energy (and never loses any where readings are missing), adding a device never
lowers a total, dropping samples never raises agents per megawatt, and neither order nor duplicates matter.
tests/test_energy_properties.py holds all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from replay.power.counter import integrate_counter
from replay.power.cross_check import counter_fault, unit_fault
from replay.power.domain import INSIDE, Scope, ScopeSet
from replay.power.gauge import Gauge, integrate_gauge
from replay.power.integral import Cadence, Integral, Points
from replay.power.source import DeviceState, PowerDevice, PowerDomain, PowerSample, SourceInfo

GAIN_RELATIVE = 0.05 / math.sqrt(3)  # uncalibrated device sensors: ±5 %, rectangular (JCGM 100:2008, 4.3.7)
CROSS_CHECK = 0.05  # counter and gauge that differ by more are both published and flagged
MEAN_OVER_LIMIT = 1.05  # of a device's mean power over its limit; more is flagged


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyEstimate:
    """Energy of one device over one window. Joules are None unless `valid`; uncertainties are standard (k = 1)."""

    device: str
    domain: PowerDomain
    method: str  # counter | gauge | declared | none
    energy_j: float | None
    withheld_j: float | None  # what the readings would give if they could be believed; no total ever holds it
    gauge_energy_j: float | None  # the cross-check, where a counter was used and a gauge was read too
    u_gain_j: float  # common to all devices of a model: add it linearly
    u_clock_j: float  # common to all devices of a source: add it linearly
    u_latch_j: float  # this and the next two are independent between devices: add them in squares
    u_sampling_j: float
    u_gap_j: float
    u_rest_j: float  # all but the gain, together
    coverage: float  # share of the window between readings close enough to count
    largest_gap_s: float | None
    readings: int
    flags: tuple[str, ...]
    valid: bool
    reasons: tuple[str, ...]

    @property
    def u_own_j(self) -> float:
        """The standard uncertainty that this device shares with no other."""
        return math.hypot(self.u_latch_j, self.u_sampling_j, self.u_gap_j)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTotal:
    """Mean power of one scope over one window: a sum over its expected devices, or nothing."""

    scope: Scope
    sources: tuple[str, ...]  # names of those that show its devices
    measured: bool
    devices: tuple[EnergyEstimate, ...]
    energy_j: float | None
    power_w: float | None
    power_u_w: float | None  # expanded, k = 2
    u_gain_w: float | None  # standard (k = 1), common to all windows that these sensors measure
    u_rest_w: float | None  # standard (k = 1), of this window alone
    valid: bool
    reasons: tuple[str, ...]
    sensors: tuple[str, ...]  # models of its devices, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A device as a source shows it."""

    info: SourceInfo
    device: PowerDevice

    @property
    def source(self) -> str:
        return self.info.name or self.info.kind


def scope_totals(
    infos: Sequence[SourceInfo],
    samples: Iterable[PowerSample],
    scopes: Mapping[Scope, ScopeSet],
    *,
    start_ns: int,
    end_ns: int,
) -> tuple[PowerTotal, ...]:
    """One total per scope over [start, end), over all sources; a missing, overlapping or invalid device voids it."""
    by_device: dict[str, list[PowerSample]] = {}
    for sample in samples:
        by_device.setdefault(sample.device, []).append(sample)
    shown: dict[str, list[_Shown]] = {}
    for info in infos:
        for device in info.devices:
            shown.setdefault(device.uid, []).append(_Shown(info=info, device=device))
    estimates = {
        uid: _estimate(by_device.get(uid, ()), shown[uid][0], start_ns, end_ns)
        for uid in {uid for scope in scopes.values() for uid in scope.devices}
        if uid in shown
    }
    seconds = (end_ns - start_ns) / 1e9
    totals = {scope.scope: _total(scope, shown, estimates, seconds) for scope in scopes.values()}
    return tuple(_possible(total, totals) for total in totals.values())


def integrate(
    samples: Sequence[PowerSample],
    device: PowerDevice,
    *,
    start_ns: int,
    end_ns: int,
    period_s: float,
    refresh_s: float | None = None,
    clock_u_s: float = 0.0,
    state: DeviceState | None = None,
) -> EnergyEstimate:
    """Energy of one device over [start, end), by the law above. `samples` are of this device, in any order."""
    if end_ns <= start_ns:
        return _none(device, "the window is empty")
    if device.domain == "declared":
        return _declared(samples, device, start_ns, end_ns)
    latch_s = device.latch_s if device.latch_s is not None or state is None else state.counter_latch_s
    cadence = Cadence(period_s=period_s, refresh_s=refresh_s, latch_s=latch_s, clock_u_s=clock_u_s)
    counter = Points.of(samples, "energy_j")
    gauge = _gauge(samples)
    # A lost device stays lost: a reading after the window's start, or shortly before it, voids the device.
    horizon_ns = start_ns - round(cadence.pace(counter).hole_s * 1e9)
    if any(sample.flag == "lost" and horizon_ns <= sample.t_ns <= end_ns for sample in samples):
        return _none(device, "the device was lost while it was measured")
    flags = _reading_flags(samples, start_ns, end_ns)
    fault, scope_flag = counter_fault(counter, gauge, device, state)
    if fault is not None:
        return _none(device, fault)
    if scope_flag is not None:
        flags.append(scope_flag)
        counter = Points(times=(), values=())
    by_gauge = integrate_gauge(gauge, device, cadence, start_ns, end_ns) if gauge is not None else None
    by_counter = integrate_counter(counter, gauge, device, cadence, start_ns, end_ns) if len(counter) else None
    if _stands_still(counter, start_ns, end_ns):
        flags.append("counter_stuck")
        if by_gauge is None:
            return _none(device, "the energy counter did not move")
        by_counter = None
    chosen = by_counter or by_gauge
    if chosen is None:
        return _none(device, "the device reports neither energy nor power")
    reasons = list(chosen.reasons)
    wrong_unit = unit_fault(counter if by_counter is not None else None, gauge, device, start_ns, end_ns)
    if wrong_unit is not None:
        reasons.insert(0, wrong_unit)
    energy_j = chosen.energy_j
    if not energy_j and not reasons:
        reasons.append("no energy was drawn, by its own sensor: that is none")
    gauge_energy_j = by_gauge.usable_j if by_gauge is not None and chosen is by_counter else None
    if gauge_energy_j and energy_j and abs(energy_j / gauge_energy_j - 1) > CROSS_CHECK:
        flags.append("counter_and_gauge_disagree")
    seconds = (end_ns - start_ns) / 1e9
    if device.limit_w is not None and energy_j and energy_j > MEAN_OVER_LIMIT * device.limit_w * seconds:
        flags.append("mean_over_limit")
    flags += chosen.flags
    if chosen is by_counter and by_gauge is not None:
        flags += [flag for flag in by_gauge.flags if flag in ("gauge_over_limit", "gauge_stale")]
    gain = GAIN_RELATIVE if device.u_gain is None else device.u_gain
    u_clock_j = chosen.edge_step_w * math.hypot(clock_u_s, chosen.lag_s)
    return EnergyEstimate(
        device=device.uid,
        domain=device.domain,
        method="counter" if chosen is by_counter else "gauge",
        energy_j=None if reasons else energy_j,
        withheld_j=energy_j if reasons else None,
        gauge_energy_j=gauge_energy_j,
        u_gain_j=gain * (energy_j or 0.0),
        u_clock_j=u_clock_j,
        u_latch_j=chosen.u_latch_j,
        u_sampling_j=chosen.u_sampling_j,
        u_gap_j=chosen.u_gap_j,
        u_rest_j=math.hypot(u_clock_j, chosen.u_latch_j, chosen.u_sampling_j, chosen.u_gap_j),
        coverage=chosen.coverage,
        largest_gap_s=chosen.largest_gap_s,
        readings=chosen.readings,
        flags=tuple(dict.fromkeys(flags)),
        valid=not reasons,
        reasons=tuple(reasons),
    )


def _estimate(samples: Sequence[PowerSample], shown: _Shown, start_ns: int, end_ns: int) -> EnergyEstimate:
    return integrate(
        samples,
        shown.device,
        start_ns=start_ns,
        end_ns=end_ns,
        period_s=shown.info.period_s,
        refresh_s=shown.info.refresh_s,
        clock_u_s=shown.info.clock_u_s,
        state=next((state for state in shown.info.states if state.device == shown.device.uid), None),
    )


def _total(
    scope: ScopeSet, shown: Mapping[str, Sequence[_Shown]], estimates: Mapping[str, EnergyEstimate], seconds: float
) -> PowerTotal:
    reasons = [f"{what} is expected, and no power source shows it" for what in scope.missing]
    reasons += [
        f"{outer} and {inner} overlap: the same watts would be counted twice" for outer, inner in scope.overlaps
    ]
    for uid in dict.fromkeys(scope.devices):
        sources = [item.source for item in shown.get(uid, ())]
        if not sources and uid not in scope.missing:
            reasons.append(f"{uid} is expected, and no power source shows it")
        elif len(sources) > 1:
            reasons.append(f"{uid} is shown by {' and by '.join(sources)}")
    if len(set(scope.devices)) < len(scope.devices):
        reasons.append("a device is named twice")
    if not scope.devices and not reasons:
        reasons.append("no device is expected")
    found = [(shown[uid][0], estimates[uid]) for uid in scope.devices if uid in estimates]
    reasons += [f"{estimate.device}: {reason}" for _, estimate in found for reason in estimate.reasons]
    energies = [estimate.energy_j for _, estimate in found if estimate.energy_j is not None]
    valid = not reasons and len(energies) == len(scope.devices) and seconds > 0
    gain_j, rest_j = _uncertainties(found)
    energy_j = math.fsum(energies) if valid else None
    return PowerTotal(
        scope=scope.scope,
        sources=tuple(dict.fromkeys(item.source for item, _ in found)),
        measured=bool(found) and all(item.info.measured and item.device.domain != "declared" for item, _ in found),
        devices=tuple(estimate for _, estimate in found),
        energy_j=energy_j,
        power_w=None if energy_j is None else energy_j / seconds,
        power_u_w=None if energy_j is None else 2 * math.hypot(gain_j, rest_j) / seconds,
        u_gain_w=None if energy_j is None else gain_j / seconds,
        u_rest_w=None if energy_j is None else rest_j / seconds,
        valid=valid,
        reasons=tuple(dict.fromkeys(reasons)),
        sensors=tuple(sorted({item.device.name for item, _ in found})),
    )


def _possible(total: PowerTotal, totals: Mapping[Scope, PowerTotal]) -> PowerTotal:
    """The total, without its watts where something inside it draws more by its own readings: it misses a part."""
    for name in INSIDE.get(total.scope, ()):
        part = totals.get(name)
        if part is None or not (part.measured and total.measured):
            continue
        if part.power_w is None or part.power_u_w is None or total.power_w is None or total.power_u_w is None:
            continue
        if total.power_w + total.power_u_w < part.power_w - part.power_u_w:
            outer, inner = total.scope.replace("_", " "), name.replace("_", " ")
            reason = (
                f"{outer} power is {total.power_w:.4g} W, less than the {part.power_w:.4g} W of {inner} power inside "
                "it: a meter, its unit or clock, or the system file is wrong"
            )
            return replace(
                total,
                energy_j=None,
                power_w=None,
                power_u_w=None,
                u_gain_w=None,
                u_rest_w=None,
                valid=False,
                reasons=(reason,),
            )
    return total


def _uncertainties(found: Iterable[tuple[_Shown, EnergyEstimate]]) -> tuple[float, float]:
    """Standard uncertainties of a sum, in joules: of the sensors' gain, and the rest.

    What devices have in common is added linearly, a gain by model and a clock by source; all else in squares. Devices
    whose model is not known are taken for one.
    """
    gains: dict[str, float] = {}
    clocks: dict[str, float] = {}
    own = 0.0
    for item, estimate in found:
        model = _model(item.device)
        gains[model] = gains.get(model, 0.0) + estimate.u_gain_j
        clocks[item.source] = clocks.get(item.source, 0.0) + estimate.u_clock_j
        own = math.hypot(own, estimate.u_own_j)
    return math.hypot(*gains.values()), math.hypot(own, *clocks.values())


def _model(device: PowerDevice) -> str:
    """The model of a device by its name; empty where that is only its own: of packages, meters and what has no name."""
    named = device.domain in ("accelerator", "module", "hbm") and device.name != device.uid
    return device.name if named else ""


def _gauge(samples: Sequence[PowerSample]) -> Gauge | None:
    """The averaging gauge, else the one that does not average: it sees less between two readings."""
    averaged = Points.of(samples, "power_w")
    if len(averaged):
        return Gauge(readings=averaged, averages=True)
    instant = Points.of(samples, "power_instant_w")
    return Gauge(readings=instant, averages=False) if len(instant) else None


def _stands_still(counter: Points, start_ns: int, end_ns: int) -> bool:
    """Whether a counter that was read before and after the window rose nowhere around it."""
    span = counter.bracket(start_ns, end_ns)
    return span is not None and len(set(counter.values[span[0] : span[1] + 1])) == 1


def _reading_flags(samples: Sequence[PowerSample], start_ns: int, end_ns: int) -> list[str]:
    """What readings inside the window failed with, each once."""
    inside = [sample for sample in samples if start_ns <= sample.t_ns <= end_ns]
    answered = {sample.kind for sample in inside if sample.flag == "ok"}
    flags = [
        f"reading_{sample.flag}"
        for sample in inside
        # A reading that a device never has is no failure.
        if sample.flag in ("error", "blank") or (sample.flag == "unsupported" and sample.kind in answered)
    ]
    flags += [
        "gauge_zero" for sample in inside if sample.kind != "energy_j" and sample.flag == "ok" and not sample.value
    ]
    return sorted(set(flags))


def _declared(samples: Sequence[PowerSample], device: PowerDevice, start_ns: int, end_ns: int) -> EnergyEstimate:
    """A nameplate: a convention, which holds or does not and has no uncertainty."""
    values = {sample.value for sample in samples}
    if device.limit_w is None or values != {device.limit_w}:
        return _none(device, "the samples do not hold the declared watts")
    energy_j = device.limit_w * (end_ns - start_ns) / 1e9
    whole = Integral(energy_j=energy_j, coverage=1.0, readings=len(samples), flags=("declared",))
    return _plain(device, "declared", whole)


def _none(device: PowerDevice, reason: str) -> EnergyEstimate:
    return _plain(device, "none", Integral(energy_j=None, reasons=(reason,)))


def _plain(device: PowerDevice, method: str, found: Integral) -> EnergyEstimate:
    return EnergyEstimate(
        device=device.uid,
        domain=device.domain,
        method=method,
        energy_j=found.usable_j,
        withheld_j=None,
        gauge_energy_j=None,
        u_gain_j=0.0,
        u_clock_j=0.0,
        u_latch_j=0.0,
        u_sampling_j=0.0,
        u_gap_j=0.0,
        u_rest_j=0.0,
        coverage=found.coverage,
        largest_gap_s=None,
        readings=found.readings,
        flags=found.flags,
        valid=not found.reasons,
        reasons=found.reasons,
    )

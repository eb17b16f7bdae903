"""What keeps a counter or a gauge from being believed: what it covers, and the unit it is in."""

from __future__ import annotations

import statistics

from replay.power.counter import median_slope_w
from replay.power.gauge import Gauge
from replay.power.integral import Points
from replay.power.source import DeviceState, PowerDevice

WRONG_UNIT = 300.0  # counter and gauge further apart differ by a unit's 1,000 (or more), whatever else is wrong
MOST_OF_LIMIT = 20.0  # nothing draws so many times its power limit; an idle device, read in mJ, shows 50 times
LEAST_OF_LIMIT = 1 / 500  # no device idles at so little of its power limit; one at full load, read in mJ, shows half


def counter_fault(
    counter: Points, gauge: Gauge | None, device: PowerDevice, state: DeviceState | None
) -> tuple[str | None, str | None]:
    """Why a device has no energy, or else a flag that says why its counter is left aside; by its state at the start."""
    if state is None:
        return None, None
    if not len(counter):
        gone = state.counter_latch_s is not None and state.counter_scope in (device.domain, None)
        return ("the energy counter answered at the start and was never read again" if gone else None), None
    silent = state.counter_scope is None and f"{device.domain} energy_j" in state.scopes
    if silent and len(set(counter.values)) > 1:
        return "the energy counter hardly moved at the start and does now: what it covers is not known", None
    if state.counter_scope == "unknown":
        return "the energy counter agrees with no power gauge of the device: what it covers is not known", None
    if state.counter_scope is None or state.counter_scope == device.domain:
        return None, None
    if gauge is None:
        return f"the energy counter covers the {state.counter_scope}, not the {device.domain}, which has no gauge", None
    return None, f"counter_covers_{state.counter_scope}"


def unit_fault(
    counter: Points | None, gauge: Gauge | None, device: PowerDevice, start_ns: int, end_ns: int
) -> str | None:
    """The trap of mJ and J: counter and gauge, or either and the power limit, that are a factor of 1,000 apart."""
    counter_w = None if counter is None else median_slope_w(counter, start_ns, end_ns)
    gauge_w = None if gauge is None else _median_w(gauge, start_ns, end_ns)
    if counter_w is not None and gauge_w is not None and not 1 / WRONG_UNIT < counter_w / gauge_w < WRONG_UNIT:
        return (
            f"the energy counter rises by {counter_w:.3g} W and the power gauge shows {gauge_w:.3g} W: "
            "one of them is read in the wrong unit (mJ for J, or mW for W)"
        )
    shown_w = counter_w if counter_w is not None else gauge_w
    if shown_w is None or device.limit_w is None or LEAST_OF_LIMIT < shown_w / device.limit_w < MOST_OF_LIMIT:
        return None
    what = "energy counter rises by" if counter_w is not None else "power gauge shows"
    unit = "mJ for J" if counter_w is not None else "mW for W"
    return f"the {what} {shown_w:.3g} W, and the power limit is {device.limit_w:.3g} W: the unit is wrong ({unit})"


def _median_w(gauge: Gauge, start_ns: int, end_ns: int) -> float | None:
    inside = [
        watts
        for at_ns, watts in zip(gauge.readings.times, gauge.readings.values, strict=True)
        if start_ns <= at_ns <= end_ns
    ]
    return statistics.median(inside or gauge.readings.values)

"""What a GPU's own readings tell of themselves, found by reading them quickly for some seconds before any load.

NVML documents neither how often its energy counter changes nor, on boards that join a CPU and GPUs, what the counter
covers. Both are observed here: a counter's slope is held against the power gauges of each scope over the same time.
From that follow the devices that a GPU is read as: itself, its memory (a part of it), and the module it stands on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean, quantiles
from typing import Literal

from replay.power.source import DeviceState, PowerDevice, SampleKind

type CounterScope = Literal["accelerator", "module"]
type GpuDomain = Literal["accelerator", "hbm", "module"]
type Reading = Literal[
    "counter",
    "average",
    "instant",
    "memory average",
    "memory instant",
    "module counter",
    "module average",
    "module instant",
]
"""What may be read of a GPU. What `counter` covers is not known before its slope is."""

KIND_OF: Mapping[Reading, tuple[GpuDomain, SampleKind]] = {
    "counter": ("accelerator", "energy_j"),
    "average": ("accelerator", "power_w"),
    "instant": ("accelerator", "power_instant_w"),
    "memory average": ("hbm", "power_w"),
    "memory instant": ("hbm", "power_instant_w"),
    "module counter": ("module", "energy_j"),
    "module average": ("module", "power_w"),
    "module instant": ("module", "power_instant_w"),
}

SHORTEST_S = 2.0  # twenty updates of a counter that changes every 100 ms
LONGEST_S = 10.0  # a load that changes while we look needs longer until both means settle
PACE_S = 0.004  # a fifth of the fastest update that was seen anywhere (20 ms)
AGREE = 0.10  # a counter belongs to the gauge that its slope meets within this share
FEWEST_CHANGES = 5  # fewer say nothing of a period

_WORDS: Mapping[CounterScope, str] = {"accelerator": "the GPU's gauge", "module": "the module's gauge"}
_SUFFIX: Mapping[GpuDomain, str] = {"accelerator": "", "hbm": "/memory", "module": "/module"}
_NAME: Mapping[GpuDomain, str] = {"accelerator": "", "hbm": "memory of ", "module": "module of "}
_GAUGES: Mapping[GpuDomain, tuple[Reading, ...]] = {
    "accelerator": ("average", "instant"),
    "hbm": ("memory average", "memory instant"),
    "module": ("module average", "module instant"),
}


@dataclass(slots=True, kw_only=True)
class Trace:
    """One quantity of one device, read again and again: joules of a counter or watts of a gauge."""

    times_ns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, t_ns: int, value: float) -> None:
        """Appends a reading; times rise."""
        self.times_ns.append(t_ns)
        self.values.append(value)

    def changes(self) -> list[int]:
        """Positions of the readings that differ from the one before them."""
        return [at for at, (before, after) in enumerate(pairwise(self.values), 1) if before != after]


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterFinding:
    """What an energy counter covers.

    Where `scope` is unknown no energy may be taken from it, and where it is None it does not count: `reason` says why.
    """

    scope: CounterScope | Literal["unknown"] | None
    latch_s: float | None
    slope_w: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as the devices that it is read as."""

    devices: tuple[PowerDevice, ...]
    readings: tuple[tuple[str, SampleKind, Reading], ...]  # of which device, as what, by which reading
    states: tuple[DeviceState, ...]
    notes: tuple[str, ...]


def watch(
    poll: Callable[[], Mapping[Reading, float]],
    *,
    shortest_s: float = SHORTEST_S,
    longest_s: float = LONGEST_S,
    pace_s: float = PACE_S,
) -> dict[Reading, Trace]:
    """Polls every `pace_s` for `shortest_s`, then until each counter's scope is known, at most `longest_s` in all."""
    traces: dict[Reading, Trace] = {}
    start_ns = time.monotonic_ns()
    look_ns = start_ns + round(shortest_s * 1e9)
    end_ns = start_ns + round(longest_s * 1e9)
    while True:
        before_ns = time.monotonic_ns()
        values = poll()
        after_ns = time.monotonic_ns()
        for key, value in values.items():
            traces.setdefault(key, Trace()).add((before_ns + after_ns) // 2, value)
        if after_ns >= look_ns:
            findings = find_counters(traces).values()
            if after_ns >= end_ns or all(finding.scope not in ("unknown", None) for finding in findings):
                return traces
            look_ns = after_ns + round(shortest_s * 1e9 / 4)
        time.sleep(max(0.0, pace_s - (after_ns - before_ns) / 1e9))


def update_period_s(trace: Trace) -> float | None:
    """How often a reading changes, in seconds; where every poll saw a change, it may be more often than this.

    The mean of the times between changes, without the long ones: an update that happens to repeat the value before it
    makes an interval look twice as long. What is long is measured by the lower quartile. None where too few changes
    were seen.
    """
    times = [trace.times_ns[at] for at in trace.changes()]
    if len(times) < FEWEST_CHANGES:
        return None
    intervals = [after - before for before, after in pairwise(times)]
    lower: float = quantiles(intervals, n=4, method="inclusive")[0]
    return fmean(interval for interval in intervals if interval <= 1.5 * lower) / 1e9


def describe_gpu(
    traces: Mapping[Reading, Trace],
    state: DeviceState,
    *,
    name: str,
    host: str | None,
    module_limit_w: float | None,
    shown: tuple[GpuDomain, ...] = ("accelerator", "hbm", "module"),
) -> Gpu:
    """The devices of one GPU, what to read of each, and what is known of them; `state` is what the GPU says of itself.

    A GPU of which nothing answers is read all the same, so that what it answers is on record.
    """
    uuid = state.device
    findings = find_counters(traces)
    assigned = {KIND_OF[reading]: reading for reading in traces if not reading.endswith("counter")}
    notes = [f"{uuid}: {finding.reason}" for finding in findings.values() if finding.reason is not None]
    # A counter goes where its slope says. One that says nothing stays where its name says, and is not believed there.
    counter, of_module = findings.get("counter"), findings.get("module counter")
    if counter is not None:
        assigned["module" if counter.scope == "module" else "accelerator", "energy_j"] = "counter"
        notes += [f"{uuid}: its energy counter counts the whole module"] if counter.scope == "module" else []
    if of_module is not None and of_module.scope == "accelerator":
        notes.append(f"{uuid}: its module's energy counter counts the GPU alone, and is not used")
    elif of_module is not None and (of_module.scope == "module" or ("module", "energy_j") not in assigned):
        assigned["module", "energy_j"] = "module counter"
    if not any(domain == "accelerator" for domain, _ in assigned):
        notes.append(f"{uuid} itself reports neither energy nor power")
        unread: tuple[Reading, ...] = ("average", "instant") if counter else ("counter", "average", "instant")
        assigned |= {KIND_OF[reading]: reading for reading in unread}
    answered = tuple(f"{domain} {kind}" for (domain, kind), reading in assigned.items() if reading in traces)
    devices, readings, states = [], [], []
    for domain in shown:
        own = {kind: reading for (of, kind), reading in assigned.items() if of == domain}
        if not own:
            continue
        uid = uuid + _SUFFIX[domain]
        used = findings.get(own["energy_j"]) if "energy_j" in own else None
        told = findings.get("counter") if domain == "accelerator" else used
        periods = [update_period_s(traces[gauge]) for gauge in _GAUGES[domain] if gauge in traces]
        limit_w = {"accelerator": state.power_limit_w, "hbm": None, "module": module_limit_w}[domain]
        devices.append(
            PowerDevice(
                uid=uid,
                name=_NAME[domain] + name,
                domain=domain,
                limit_w=limit_w,
                wrap_j=None,
                host=host,
                place=(f"module of {uuid}",)
                if domain == "module"
                else (f"accelerator {uuid}", "hbm")[: 1 + (domain == "hbm")],
                latch_s=None if used is None else used.latch_s,
            )
        )
        readings += [(uid, kind, reading) for kind, reading in own.items()]
        states.append(
            replace(
                state if domain == "accelerator" else DeviceState(device=uid),
                scopes=tuple(word for word in answered if domain == "accelerator" or word.startswith(f"{domain} ")),
                counter_scope=None if told is None else told.scope,
                counter_latch_s=None if told is None else told.latch_s,
                gauge_latch_s=next((period for period in periods if period is not None), None),
                power_limit_w=limit_w,
            )
        )
    return Gpu(devices=tuple(devices), readings=tuple(readings), states=tuple(states), notes=tuple(notes))


def find_counters(traces: Mapping[Reading, Trace]) -> dict[Reading, CounterFinding]:
    """What each counter that answers covers, by the gauges of the GPU and of the module that answer beside it."""
    scopes: tuple[CounterScope, ...] = ("accelerator", "module")
    gauges = {scope: [traces[gauge] for gauge in _GAUGES[scope] if gauge in traces] for scope in scopes}
    counters: tuple[Reading, ...] = ("counter", "module counter")
    return {reading: find_counter(traces[reading], gauges) for reading in counters if reading in traces}


def find_counter(counter: Trace, gauges: Mapping[CounterScope, Sequence[Trace]]) -> CounterFinding:
    """Whose energy a counter counts: of the one scope that has a gauge which the counter's slope meets within `AGREE`.

    Slope and means are taken from the counter's first change to its last, so that neither end holds part of an update.
    Of a scope's gauges the one that comes closer speaks: one lags behind a changing load, the other sees parts of it.
    """
    changes = counter.changes()
    latch_s = update_period_s(counter)
    if len(changes) < FEWEST_CHANGES:
        seen_s = (counter.times_ns[-1] - counter.times_ns[0]) / 1e9 if counter.times_ns else 0.0
        times = "did not move" if not changes else f"moved {len(changes)} times only"
        return CounterFinding(
            scope=None, latch_s=None, slope_w=None, reason=f"the energy counter {times} in {seen_s:.1f} s"
        )
    first, last = changes[0], changes[-1]
    from_ns, to_ns = counter.times_ns[first], counter.times_ns[last]
    slope_w = (counter.values[last] - counter.values[first]) / ((to_ns - from_ns) / 1e9)
    closest: dict[CounterScope, float] = {}
    for scope, traces in gauges.items():
        means = [watts for trace in traces if (watts := mean_w(trace, from_ns, to_ns)) is not None]
        if means:
            closest[scope] = min(means, key=lambda watts: abs(slope_w / watts - 1))
    agreeing = [scope for scope, watts in closest.items() if abs(slope_w / watts - 1) <= AGREE]
    if len(agreeing) == 1:
        return CounterFinding(scope=agreeing[0], latch_s=latch_s, slope_w=slope_w)
    read = " and ".join(f"{_WORDS[scope]} reads {watts:.0f} W" for scope, watts in closest.items())
    if not closest:
        reason = "no power gauge answers that would tell what the energy counter covers"
    elif agreeing:
        reason = f"both are within {AGREE:.0%}, so what it covers cannot be told"
    else:
        reason = f"what it covers is not known: no gauge is within {AGREE:.0%}"
    if closest:
        reason = f"the energy counter rises by {slope_w:.0f} W, while {read}; {reason}"
    return CounterFinding(scope="unknown", latch_s=latch_s, slope_w=slope_w, reason=reason)


def mean_w(trace: Trace, from_ns: int, to_ns: int) -> float | None:
    """Mean of a gauge over [from, to], each reading held until the next; None without a reading above 0 W."""
    joules = held_ns = 0.0
    ends = [*trace.times_ns[1:], to_ns]
    for start_ns, end_ns, watts in zip(trace.times_ns, ends, trace.values, strict=True):
        inside_ns = min(end_ns, to_ns) - max(start_ns, from_ns)
        if inside_ns > 0 and watts > 0:  # a device that is on never draws 0 W
            joules += watts * inside_ns
            held_ns += inside_ns
    return joules / held_ns if held_ns else None

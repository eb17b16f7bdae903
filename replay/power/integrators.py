"""How far off the ways to integrate power are, against loads whose energy is known. Everything here is simulated.

A load that goes on and off at random is read as NVML, an exporter or a scrape reads it: a gauge, instant or averaged
over a second, and a counter that latches every 100 ms. The ways are those that others use, named in `OTHERS`, and ours.
Every other load mirrors the one before it, on for off, and is read at the same instants (antithetic variates;
Hammersley & Morton, 1956), so that what a way misses by chance it misses in both directions, and only bias remains.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate, pairwise

from replay.power.energy import EnergyEstimate, integrate
from replay.power.source import PowerDevice, PowerSample, SampleKind

ON_W, OFF_W, LIMIT_W = 640.0, 260.0, 700.0
DWELL_S = (0.4, 12.0)  # how long the load stays on or off: uniform
WINDOW_S = 300.0
NOMINAL_J = (ON_W + OFF_W) / 2 * WINDOW_S
LATCH_S = 0.1
JITTER = 0.01  # of a period, by which a reading comes early or late
OTHERS = {
    "clipped": "trapezoids between the readings inside the window, over its whole length (MLPerf Endpoints)",
    "edges": "trapezoids, with the edges interpolated (InferenceX)",
    "ends": "the counter, read at the window's two ends",
    "scraped": "the counter, interpolated between the scrapes around each end",
}
OURS = {
    "our_counter": "replay.power.energy, with a counter that is read at the window's ends too",
    "our_scraped": "replay.power.energy, with a counter that is read as the gauge is",
    "our_gauge": "replay.power.energy, with the gauge alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a simulated load is read."""

    name: str
    source: str  # what reads so
    kind: SampleKind
    period_s: float
    refresh_s: float | None = None  # of a page between the device and its reader
    gap_s: float = 0.0  # without a reading, somewhere inside the window

    @property
    def margin_s(self) -> float:
        """What is read before and after the window."""
        return 5.0 + 3 * max(self.period_s, self.refresh_s or 0.0)


SAMPLINGS = (
    Sampling(name="instant, 1 Hz", source="NVML field 186", kind="power_instant_w", period_s=1.0),
    Sampling(name="instant, 5 Hz", source="NVML field 186, as a run reads it", kind="power_instant_w", period_s=0.2),
    Sampling(name="instant, 10 Hz", source="NVML field 186", kind="power_instant_w", period_s=0.1),
    Sampling(name="1 s average, 1 Hz", source="NVML field 185", kind="power_w", period_s=1.0),
    Sampling(name="1 s average, 5 Hz", source="NVML field 185, as a run reads it", kind="power_w", period_s=0.2),
    Sampling(
        name="instant, 1 Hz, 6 s gap", source="NVML field 186, 6 s lost", kind="power_instant_w", period_s=1.0, gap_s=6
    ),
    Sampling(name="30 s exporter, instant", source="DCGM field 157", kind="power_instant_w", period_s=30.0),
    Sampling(name="30 s exporter, average", source="DCGM field 155", kind="power_w", period_s=30.0),
    Sampling(
        name="30 s page, read at 1 Hz",
        source="DCGM field 155, cached: each value 30 times",
        kind="power_w",
        period_s=1.0,
        refresh_s=30.0,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """How far one way is off over all runs, as shares of the load's mean energy. Simulated."""

    worst: float  # largest magnitude
    bias: float  # mean
    refused: int = 0  # runs in which our law gives no energy; the errors are of what it would have given
    within: float | None = None  # share of the runs not refused whose error is inside the uncertainty (k = 2, no gain)
    reason: str | None = None  # of a refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sampling under every way to integrate."""

    sampling: Sampling
    runs: int
    errors: dict[str, Error]  # by the names of OTHERS and OURS


class Load:
    """Power that is `ON_W` or `OFF_W`, each for a random while; its energy is known exactly."""

    def __init__(self, draw: random.Random, seconds: float) -> None:
        self._times = [0.0]
        while self._times[-1] < seconds:
            self._times.append(self._times[-1] + draw.uniform(*DWELL_S))
        self._set(ON_W if draw.random() < 0.5 else OFF_W)

    def mirrored(self) -> Load:
        """The load that is on where this one is off."""
        other = copy(self)
        other._set(ON_W + OFF_W - self._watts[0])
        return other

    def power_w(self, at_s: float) -> float:
        return self._watts[bisect_right(self._times, at_s) - 1]

    def energy_j(self, at_s: float) -> float:
        index = bisect_right(self._times, at_s) - 1
        return self._joules[index] + self._watts[index] * (at_s - self._times[index])

    def _set(self, first_w: float) -> None:
        self._watts = [first_w if index % 2 == 0 else ON_W + OFF_W - first_w for index in range(len(self._times))]
        spans = zip(self._watts, pairwise(self._times), strict=False)
        self._joules = [0.0, *accumulate(watts * (after - before) for watts, (before, after) in spans)]


def simulate(runs: int, seed: int, on_run: Callable[[], object] = lambda: None) -> tuple[Row, ...]:
    """Every sampling over so many simulated runs, of which every other mirrors the one before; the same by `seed`."""
    return tuple(_row(sampling, runs, seed, on_run) for sampling in SAMPLINGS)


def _row(sampling: Sampling, runs: int, seed: int, on_run: Callable[[], object]) -> Row:
    errors: dict[str, list[float]] = {way: [] for way in (*OTHERS, *OURS)}
    within: dict[str, list[bool]] = {way: [] for way in OURS}
    reasons: dict[str, list[str]] = {way: [] for way in OURS}
    for run in range(runs):
        draw = random.Random(f"{seed}/{run // 2}")
        load = Load(draw, 2 * sampling.margin_s + WINDOW_S + 1)
        load = load.mirrored() if run % 2 else load
        start_s = sampling.margin_s + draw.random()
        end_s = start_s + WINDOW_S
        true_j = load.energy_j(end_s) - load.energy_j(start_s)
        latched = _latched(load, draw.random() * LATCH_S)
        times, watts, joules = _read(load, latched, sampling, start_s, draw)
        found = _others(times, watts, joules, latched, start_s, end_s)
        for way, energy_j in found.items():
            errors[way].append((energy_j - true_j) / NOMINAL_J)
        for way, estimate in _ours(times, watts, joules, latched, sampling, start_s, end_s).items():
            energy = estimate.energy_j if estimate.valid else estimate.withheld_j
            if energy is None:
                raise ValueError(f"{way} gives no energy for {sampling.name}: {estimate.reasons}")
            errors[way].append((energy - true_j) / NOMINAL_J)
            if estimate.valid:
                within[way].append(abs(energy - true_j) <= 2 * estimate.u_rest_j)
            reasons[way] += estimate.reasons[:1]
        on_run()
    return Row(
        sampling=sampling,
        runs=runs,
        errors={
            way: Error(
                worst=max(map(abs, values)),
                bias=math.fsum(values) / runs,
                refused=len(reasons.get(way, ())),
                within=sum(within[way]) / len(within[way]) if within.get(way) else None,
                reason=next(iter(reasons.get(way, ())), None),
            )
            for way, values in errors.items()
        },
    )


def _latched(load: Load, phase_s: float) -> Callable[[float], float]:
    """What the device's counter shows at an instant: its energy at the last latch, above what it counted before."""
    return lambda at_s: 1e6 + load.energy_j(phase_s + LATCH_S * math.floor((at_s - phase_s) / LATCH_S))


def _read(
    load: Load, latched: Callable[[float], float], sampling: Sampling, start_s: float, draw: random.Random
) -> tuple[list[float], list[float], list[float]]:
    """Times, watts and joules as they are read from before the window until after it."""
    period_s = sampling.period_s
    at_s = 1.0 + draw.random() * period_s
    gap_from_s = start_s + draw.uniform(10.0, WINDOW_S - 20.0)
    page_phase_s = draw.random() * (sampling.refresh_s or 0.0)
    times, watts, joules = [], [], []
    while at_s < 2 * sampling.margin_s + WINDOW_S:
        read_s = at_s + draw.uniform(-JITTER, JITTER) * period_s
        at_s += period_s
        if sampling.gap_s and gap_from_s <= read_s <= gap_from_s + sampling.gap_s:
            continue
        shown_s = read_s
        if sampling.refresh_s is not None:
            pages = math.floor((read_s - page_phase_s) / sampling.refresh_s)
            shown_s = max(1.0, page_phase_s + sampling.refresh_s * pages)
        if sampling.kind == "power_instant_w":
            shown_w = load.power_w(shown_s)
        else:
            shown_w = load.energy_j(shown_s) - load.energy_j(shown_s - 1.0)
        times.append(read_s)
        watts.append(shown_w)
        joules.append(latched(shown_s))
    return times, watts, joules


def _others(
    times: Sequence[float],
    watts: Sequence[float],
    joules: Sequence[float],
    latched: Callable[[float], float],
    start_s: float,
    end_s: float,
) -> dict[str, float]:
    inside = [(at_s, value) for at_s, value in zip(times, watts, strict=True) if start_s <= at_s <= end_s]
    edged = [(start_s, _between(times, watts, start_s)), *inside, (end_s, _between(times, watts, end_s))]
    return {
        "clipped": _trapezoids(inside),
        "edges": _trapezoids(edged),
        "ends": latched(end_s) - latched(start_s),
        "scraped": _between(times, joules, end_s) - _between(times, joules, start_s),
    }


def _trapezoids(points: Sequence[tuple[float, float]]) -> float:
    return math.fsum((after + before) / 2 * (high - low) for (low, before), (high, after) in pairwise(points))


def _between(times: Sequence[float], values: Sequence[float], at_s: float) -> float:
    index = bisect_right(times, at_s) - 1
    share = (at_s - times[index]) / (times[index + 1] - times[index])
    return values[index] + share * (values[index + 1] - values[index])


def _ours(
    times: Sequence[float],
    watts: Sequence[float],
    joules: Sequence[float],
    latched: Callable[[float], float],
    sampling: Sampling,
    start_s: float,
    end_s: float,
) -> dict[str, EnergyEstimate]:
    gauge = [_sample(at_s, sampling.kind, value) for at_s, value in zip(times, watts, strict=True)]
    scraped = [_sample(at_s, "energy_j", value) for at_s, value in zip(times, joules, strict=True)]
    ends = [_sample(at_s, "energy_j", latched(at_s)) for at_s in (start_s, end_s)]
    read = [sample for sample in scraped if sampling.refresh_s is None] + ends
    device = PowerDevice(
        uid="simulated", name="simulated", domain="accelerator", limit_w=LIMIT_W, wrap_j=None, latch_s=LATCH_S
    )

    def over(samples: list[PowerSample]) -> EnergyEstimate:
        return integrate(
            samples,
            device,
            start_ns=_ns(start_s),
            end_ns=_ns(end_s),
            period_s=sampling.period_s,
            refresh_s=sampling.refresh_s,
        )

    return {"our_counter": over(read), "our_scraped": over(scraped), "our_gauge": over(gauge)}


def _sample(at_s: float, kind: SampleKind, value: float) -> PowerSample:
    return PowerSample(t_ns=_ns(at_s), device="simulated", kind=kind, value=value, read_us=0, flag="ok")


def _ns(at_s: float) -> int:
    return round(at_s * 1e9)

"""What every device draws now: its newest gauges, and the slope of its counter over the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from replay.power.domain import Scope, ScopeSet
from replay.power.source import PowerDevice, PowerDomain, PowerSample, SampleFlag, SourceInfo

SLOPE_S = 2.0
"""Over which a counter's slope is taken: twenty updates of a counter that changes every 100 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One device now; None is not known. `flag` is that of its newest reading, or `stale` where none comes any more."""

    device: str
    name: str
    domain: PowerDomain
    source: str
    power_w: float | None  # a gauge that averages over about a second
    power_instant_w: float | None
    counter_w: float | None  # slope of the energy counter
    energy_j: float | None  # the counter itself
    limit_w: float | None
    flag: SampleFlag | Literal["stale"]

    @property
    def watts(self) -> float | None:
        """The best that is known: the counter before a gauge."""
        return next((w for w in (self.counter_w, self.power_w, self.power_instant_w) if w is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeReading:
    """One scope now; watts are None unless every expected device is known and none overlaps."""

    scope: Scope
    devices: int
    watts: float | None
    measured: bool
    missing: tuple[str, ...]
    overlaps: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _State:
    device: PowerDevice
    source: SourceInfo
    newest: dict[str, PowerSample] = field(default_factory=dict)
    counts: deque[tuple[int, float]] = field(default_factory=deque)

    def hear(self, sample: PowerSample) -> None:
        self.newest[sample.kind] = sample
        if sample.kind == "energy_j" and sample.value is not None:
            if self.counts and sample.value < self.counts[-1][1]:  # it wrapped or was reset
                self.counts.clear()
            self.counts.append((sample.t_ns, sample.value))
            horizon_ns = sample.t_ns - round(SLOPE_S * 1e9)
            while len(self.counts) > 2 and self.counts[1][0] <= horizon_ns:
                self.counts.popleft()

    def slope_w(self) -> float | None:
        if len(self.counts) < 2 or self.counts[-1][0] <= self.counts[0][0]:
            return None
        (before_ns, before_j), (after_ns, after_j) = self.counts[0], self.counts[-1]
        return (after_j - before_j) / ((after_ns - before_ns) / 1e9)

    def read(self, now_ns: int) -> Reading:
        patience_s = self.source.settle_s + 5 * max(self.source.period_s, self.source.refresh_s or 0.0)
        fresh = {
            kind: sample for kind, sample in self.newest.items() if now_ns - sample.t_ns <= round(patience_s * 1e9)
        }
        last = max(fresh.values(), key=lambda sample: (sample.t_ns, sample.flag == "ok"), default=None)

        def value(kind: str) -> float | None:
            return fresh[kind].value if kind in fresh else None

        return Reading(
            device=self.device.uid,
            name=self.device.name,
            domain=self.device.domain,
            source=self.source.name,
            power_w=value("power_w"),
            power_instant_w=value("power_instant_w"),
            counter_w=self.slope_w() if value("energy_j") is not None else None,
            energy_j=value("energy_j"),
            limit_w=self.device.limit_w,
            flag="stale" if last is None else last.flag,
        )


class Readings:
    """The newest of all devices of a meter."""

    def __init__(self, infos: Sequence[SourceInfo], scopes: Mapping[Scope, ScopeSet]) -> None:
        self._states = {device.uid: _State(device=device, source=info) for info in infos for device in info.devices}
        self._scopes = scopes

    def hear(self, samples: Sequence[PowerSample]) -> None:
        """Takes samples in order of time."""
        for sample in samples:
            if sample.device in self._states:
                self._states[sample.device].hear(sample)

    def devices(self, now_ns: int) -> tuple[Reading, ...]:
        """Every device, in the order of the sources; `now_ns` is monotonic."""
        return tuple(state.read(now_ns) for state in self._states.values())

    def scopes(self, now_ns: int) -> tuple[ScopeReading, ...]:
        """Every scope and its total."""
        found = []
        for scope, part in self._scopes.items():
            watts = [self._states[uid].read(now_ns).watts for uid in part.devices]
            known = [value for value in watts if value is not None]
            found.append(
                ScopeReading(
                    scope=scope,
                    devices=len(part.devices),
                    watts=sum(known) if part.whole and len(known) == len(watts) else None,
                    measured=all(self._states[uid].source.measured for uid in part.devices),
                    missing=part.missing,
                    overlaps=part.overlaps,
                )
            )
        return tuple(found)

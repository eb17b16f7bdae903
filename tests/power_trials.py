"""Judged trials whose power comes from samples that a test has in its hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from replay.judge import Judged
from replay.power.domain import place_devices, scope_devices
from replay.power.energy import PowerTotal, scope_totals
from replay.power.source import PowerDevice, PowerDomain, PowerSample, SampleKind, SourceInfo
from replay.system import System

SECOND = 1_000_000_000
WINDOW_S = 20
PERIOD_NS = SECOND // 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A constant load of one device, as a counter and a gauge show it."""

    uid: str
    watts: float
    domain: PowerDomain = "accelerator"
    limit_w: float | None = 1000.0
    kinds: Sequence[SampleKind] = ("energy_j", "power_w")
    name: str = "H200"
    source: str = "nvml"
    unit: dict[SampleKind, float] = field(default_factory=dict)  # what a kind's values are wrongly multiplied by

    @property
    def device(self) -> PowerDevice:
        return PowerDevice(uid=self.uid, name=self.name, domain=self.domain, limit_w=self.limit_w, wrap_j=None)

    def samples(self) -> list[PowerSample]:
        """From a second before the window to a second after it."""
        found = []
        for t_ns in range(-SECOND, (WINDOW_S + 1) * SECOND + 1, PERIOD_NS):
            for kind in self.kinds:
                value = self.watts if kind != "energy_j" else 5000.0 + self.watts * t_ns / SECOND
                value *= self.unit.get(kind, 1.0)
                found.append(PowerSample(t_ns=t_ns, device=self.uid, kind=kind, value=value, read_us=5, flag="ok"))
        return found


def totals(
    loads: Sequence[Load], system: System, samples: Sequence[PowerSample] | None = None
) -> tuple[PowerTotal, ...]:
    """Totals of these loads, or of what is left of their samples, over the window."""
    names = dict.fromkeys(load.source for load in loads)
    infos = tuple(
        SourceInfo(
            kind=name.partition(":")[0],
            measured=not name.startswith("declared"),
            version=None,
            devices=tuple(load.device for load in loads if load.source == name),
            notes=(),
            name=name,
        )
        for name in names
    )
    placed = place_devices(infos, system)
    every = [sample for load in loads for sample in load.samples()] if samples is None else samples
    return scope_totals(placed, every, scope_devices(placed, system), start_ns=0, end_ns=WINDOW_S * SECOND)


def trial(base: Judged, number: int, agents: int, power: Sequence[PowerTotal]) -> Judged:
    """A judged trial with other power and agents."""
    return dataclasses.replace(base, trial=number, agents=agents, power=tuple(power))

"""What a power source is, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

type PowerDomain = Literal[
    "facility",
    "rack",
    "node",
    "cpu_package",
    "dram",
    "module",
    "accelerator",
    "hbm",
    "nic",
    "switch",
    "declared",
]
"""What a device's watts cover; `replay.power.domain` says which domain lies inside which."""

type SampleKind = Literal["energy_j", "power_w", "power_instant_w"]
"""A counter of joules, a gauge that averages over about a second, and one that does not."""

type SampleFlag = Literal["ok", "unsupported", "lost", "error", "blank"]
"""`blank`: the source answered with a value that stands for none."""

PERIOD_S = 0.2  # counters latch every 20–100 ms: 5 Hz keeps the error at the window's edges under 1 % of 20 s


class PowerFault(Exception):
    """A power source cannot be opened as asked; the sentence names the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerDevice:
    """One thing that draws power, by its stable name."""

    uid: str
    name: str
    domain: PowerDomain
    limit_w: float | None  # the enforced power limit, in watts
    wrap_j: float | None  # the counter starts again at 0 after this many joules; None where it does not wrap
    host: str | None = None  # the machine it is in, where the source says
    place: tuple[str, ...] = ()  # from the outermost known container to itself: ("rack r1", "node n1", "accelerator U")
    latch_s: float | None = None  # how often its counter changes, as measured; None: not known
    u_gain: float | None = None  # standard relative uncertainty of its gain; None: an uncalibrated device's own sensor
    u_evidence: str | None = None  # what that rests on


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What a device said of itself when its source was opened; None where it does not say."""

    device: str
    counter_scope: Literal["accelerator", "module", "unknown"] | None = None  # by its slope against both gauges
    counter_latch_s: float | None = None
    gauge_latch_s: float | None = None
    scopes: tuple[str, ...] = ()  # readings that answered, for example "accelerator power_w", "hbm power_w"
    power_limit_w: float | None = None  # enforced
    default_limit_w: float | None = None
    highest_limit_w: float | None = None
    ecc: bool | None = None
    mig: bool | None = None
    processes: int | None = None  # that use it
    temperature_c: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttled_by: tuple[str, ...] = ()
    power_profile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a source is and which devices it charges."""

    kind: str  # nvml | rapl | declared | exporter | prometheus | remote | command | file
    measured: bool
    version: str | None  # of the driver or interface
    devices: tuple[PowerDevice, ...]
    notes: tuple[str, ...]
    name: str = ""  # unique in a run: as --power names it, without anything secret
    period_s: float = PERIOD_S  # how often it is read
    refresh_s: float | None = None  # how often what it shows changes, where that is longer; an exporter's own interval
    clock_u_s: float = 0.0  # standard uncertainty of its samples' times against this machine's clock
    settle_s: float = 0.0  # how long after an instant its reading of that instant may still arrive
    states: tuple[DeviceState, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSample:
    """One reading. `t_ns` is monotonic; in a run folder it counts from the trial's zero and may be negative."""

    t_ns: int  # middle of the call that read it
    device: str
    kind: SampleKind
    value: float | None  # joules or watts; None unless the flag is `ok`
    read_us: int  # how long the call took
    flag: SampleFlag


class PowerSource(Protocol):
    """Three methods. A device's failure is a flagged sample, never an exception out of `read`.

    `read` returns what is new since it was called last; a source that asks another machine may return samples of
    earlier instants, each once.
    """

    def describe(self) -> SourceInfo: ...

    def read(self) -> list[PowerSample]: ...

    def close(self) -> None: ...

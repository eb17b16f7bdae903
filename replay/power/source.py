"""What a power source is, what it reads, and the thread that reads all of them at a stated rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

type PowerDomain = Literal["accelerator", "cpu_package", "declared"]
"""What a device's watts cover. Domains are never added to each other: a total is a sum inside one domain."""

type SampleKind = Literal["energy_j", "power_w"]

type SampleFlag = Literal["ok", "unsupported", "lost", "error"]

PERIOD_S = 0.2  # counters latch every 20–100 ms: 5 Hz keeps the error at the window's edges under 1 % of 20 s


LATEST = 256  # samples that are looked at for the watts of now: some readings of many devices


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a source is and which devices it charges."""

    kind: str  # nvml | rapl | declared
    measured: bool
    version: str | None  # of the driver or interface
    devices: tuple[PowerDevice, ...]
    notes: tuple[str, ...]


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
    """Three methods. A device's failure is a flagged sample, never an exception out of `read`."""

    def describe(self) -> SourceInfo: ...

    def read(self) -> list[PowerSample]: ...

    def close(self) -> None: ...


class Meter:
    """Reads every source once per period in a thread of its own, until it is closed.

    Ticks keep to a fixed grid: one that is missed is missed, and shows as a gap between samples.
    """

    def __init__(self, sources: Sequence[PowerSource], *, period_s: float = PERIOD_S) -> None:
        self.period_s = period_s
        self._sources = tuple(sources)
        self._samples: list[PowerSample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power-meter", daemon=True)

    def __enter__(self) -> Self:
        self._read()  # before anything starts, so that a window always has a reading in front of it
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes a last reading and ends the thread; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._read()

    @property
    def samples(self) -> tuple[PowerSample, ...]:
        """All readings so far, in order of reading; complete after `stop`."""
        return tuple(self._samples)

    def watts(self) -> float | None:
        """What the first source draws by its latest gauge or its last two counts, in W, for the eye; None unknown."""
        if not self._sources:
            return None
        total = 0.0
        devices = self._sources[0].describe().devices
        latest = self._samples[-LATEST:]
        for device in devices:
            own = [sample for sample in latest if sample.device == device.uid and sample.value is not None]
            gauges = [sample.value for sample in own if sample.kind == "power_w"]
            counts = [(sample.t_ns, sample.value) for sample in own if sample.kind == "energy_j"][-2:]
            if gauges and gauges[-1] is not None:
                total += gauges[-1]
            elif len(counts) == 2 and counts[1][0] > counts[0][0] and counts[0][1] is not None:
                total += max(0.0, (counts[1][1] or 0.0) - counts[0][1]) / ((counts[1][0] - counts[0][0]) / 1e9)
            else:
                return None
        return total

    def _read(self) -> None:
        for source in self._sources:
            self._samples += source.read()

    def _run(self) -> None:
        period_ns = round(self.period_s * 1e9)
        start_ns = time.monotonic_ns()
        while True:
            passed = time.monotonic_ns() - start_ns
            if self._stop.wait((period_ns - passed % period_ns) / 1e9):
                return
            self._read()

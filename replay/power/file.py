"""A file of readings that another program writes: `file:PATH`, power lines or a meter's CSV table.

Beside a run the file is followed as it grows. A file that is finished is read by `read_power_file` after the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from curate.words import printable
from replay.power.lines import AHEAD_NS, PowerLines, unix_offset_ns
from replay.power.meter_table import MeterTable
from replay.power.relayed import LONGEST_PERIOD_S, Silence, as_one
from replay.power.source import PowerDevice, PowerFault, PowerSample, SampleKind, SourceInfo

MOST_READINGS = 4_000_000
MOST_BYTES = 2_000_000_000
SETTLE_S = 5.0
"""Programs write what they buffered a moment later."""
RECENT_S = 60.0
"""A file that is followed has a reading so young, or none yet."""
PERIOD_S = 1.0
"""Of a table that has too few readings to tell."""
MOST_BYTES_AT_ONCE = 8_000_000
_CHUNK = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFile:
    """A file's devices and all of its readings, whose `t_ns` count from the Unix epoch by the file's own clock."""

    info: SourceInfo
    samples: tuple[PowerSample, ...]


def read_power_file(path: Path) -> PowerFile:
    """Everything in a finished file; raises PowerFault naming the line that is wrong."""
    with _opened(path) as file:
        reader = _reader(file, path)
        samples = list(_all(reader, file, path))
        samples += reader.finish()
    return PowerFile(info=_info(reader, samples, path), samples=tuple(samples))


class FileSource:
    """Follows a file as it grows, until it is closed.

    Raises PowerFault where the file is not well formed, or where nothing has been written to it lately. A line that is
    wrong later, or a file that is cut short, ends it: its devices are `lost`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = ""
        self._file = _opened(path)
        try:
            self._reader = _reader(self._file, path)
            samples = list(_all(self._reader, self._file, path))
            self._info = _info(self._reader, samples, path)
            offset_ns = unix_offset_ns()
            newest_ns = max((sample.t_ns for sample in samples), default=None)
            self._check_age(0.0 if newest_ns is None else (time.monotonic_ns() + offset_ns - newest_ns) / 1e9)
        except BaseException:
            self._file.close()
            raise
        self._known = frozenset(device.uid for device in self._info.devices)
        self._silence = Silence(self._info)
        for sample in samples:
            self._silence.saw(sample)
        since_ns = (newest_ns or 0) - round(RECENT_S * 1e9)
        self._found = [_monotonic(sample, offset_ns) for sample in samples if sample.t_ns >= since_ns]

    def describe(self) -> SourceInfo:
        if not self._ended:
            return self._info
        return dataclasses.replace(self._info, notes=(*self._info.notes, self._ended))

    def read(self) -> list[PowerSample]:
        found, self._found = self._found, []
        if self._ended:
            return found
        offset_ns = unix_offset_ns()
        try:
            data = self._more()
            for sample in self._reader.feed(data, now_unix_ns=time.monotonic_ns() + offset_ns):
                if sample.device in self._known:
                    self._silence.saw(sample)
                    found.append(_monotonic(sample, offset_ns))
        except (PowerFault, OSError) as fault:
            self._ended = printable(str(fault))
            found += self._silence.samples("lost", time.monotonic_ns())
        return found

    def close(self) -> None:
        self._file.close()

    def _check_age(self, age_s: float) -> None:
        if age_s < -AHEAD_NS / 1e9:
            raise PowerFault(f"{self._path} has a reading of {-age_s:,.0f} s in the future: set the clock")
        if age_s > RECENT_S:
            raise PowerFault(
                f"{self._path} has had no reading for {age_s:,.0f} s: start the program that writes it, or give a "
                f"finished file after the run: agentdyno replay rescore RUN --power file:{self._path}"
            )

    def _more(self) -> bytes:
        if self._path.stat().st_size < self._file.tell():
            raise PowerFault(f"{self._path} was cut short while it was read")
        return self._file.read(MOST_BYTES_AT_ONCE)


def _opened(path: Path) -> BinaryIO:
    try:
        if not path.is_file():
            raise PowerFault(f"{path} is no file: name one with power lines or a CSV table")
        if path.stat().st_size > MOST_BYTES:
            raise PowerFault(f"{path} is larger than {MOST_BYTES:,} bytes: cut it to the time of the run")
        return path.open("rb")
    except OSError as fault:
        raise PowerFault(f"{path} cannot be read: {fault.strerror or fault}") from fault


def _reader(file: BinaryIO, path: Path) -> PowerLines | MeterTable:
    """By the first sign of the file; it is read from its beginning again."""
    first = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return PowerLines(str(path), kind="file") if first.startswith(b"{") else MeterTable(str(path))


def _all(reader: PowerLines | MeterTable, file: BinaryIO, path: Path) -> Iterator[PowerSample]:
    count = 0
    while data := file.read(_CHUNK):
        for sample in reader.feed(data):
            count += 1
            if count > MOST_READINGS:
                raise PowerFault(f"{path} has more than {MOST_READINGS:,} readings: cut it to the time of the run")
            yield sample


def _info(reader: PowerLines | MeterTable, samples: Sequence[PowerSample], path: Path) -> SourceInfo:
    name = f"file:{printable(path.name)}"
    if isinstance(reader, PowerLines):
        if reader.infos is None:
            raise PowerFault(f'{path} has no whole line yet: the first reads {{"agentdyno_power": 1, …}}')
        return as_one(reader.infos, kind="file", name=name, place=str(path), settle_s=SETTLE_S)
    if not reader.devices:
        raise PowerFault(f"{path} has no reading: its devices are those that its lines name")
    series: dict[tuple[str, SampleKind], list[tuple[int, float]]] = {}
    for sample in samples:
        if sample.value is not None:
            series.setdefault((sample.device, sample.kind), []).append((sample.t_ns, sample.value))
    for points in series.values():
        points.sort()
    period_s = max(map(_period_s, series.values()), default=PERIOD_S)
    devices = tuple(
        PowerDevice(
            uid=uid,
            name=uid,
            domain=domain,
            limit_w=None,
            wrap_j=None,
            place=(f"{domain} {uid}",),
            latch_s=_latch_s(series.get((uid, "energy_j"), []), period_s),
        )
        for uid, domain in reader.devices.items()
    )
    return SourceInfo(
        kind="file",
        measured=True,
        version=None,
        devices=devices,
        notes=(f"a meter's table; its times are by the meter's own clock, written to {reader.finest_s:g} s",),
        name=name,
        period_s=period_s,
        clock_u_s=reader.finest_s / math.sqrt(3),  # times cut off at their last place: rectangular, one-sided
        settle_s=SETTLE_S,
    )


def _period_s(points: Sequence[tuple[int, float]]) -> float:
    """The lower quartile of the gaps between readings: readings that are missing do not lengthen it."""
    gaps = [(later[0] - earlier[0]) / 1e9 for earlier, later in itertools.pairwise(points)]
    gaps = [gap for gap in gaps if gap > 0]
    if len(gaps) < 2:
        return PERIOD_S
    return min(statistics.quantiles(gaps, n=4, method="inclusive")[0], LONGEST_PERIOD_S)


def _latch_s(points: Sequence[tuple[int, float]], period_s: float) -> float | None:
    """How often a counter changes, where that is less often than it was read: its last place is coarse."""
    changes = sum(earlier[1] != later[1] for earlier, later in itertools.pairwise(points))
    if changes < 1:
        return None
    latch_s = (points[-1][0] - points[0][0]) / 1e9 / changes
    return latch_s if latch_s > 1.5 * period_s else None


def _monotonic(sample: PowerSample, offset_ns: int) -> PowerSample:
    return dataclasses.replace(sample, t_ns=sample.t_ns - offset_ns)

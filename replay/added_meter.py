"""Meter data that was added to a finished run: `meters/N/` holds a meter's own samples, on the world's clock.

`power.parquet` has the samples as the meter file gave them, with `t_unix_ns`; `meter.json` says what the meter is and
how its clock is shifted. A trial takes from them what lies in its own time.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars

from capture.atomic import write_atomically
from curate.manifest import file_sha256
from replay.power.meter import margin_s
from replay.power.source import PowerSample, SampleFlag, SampleKind, SourceInfo
from replay.trial import POWER, TrialFault, read_rows, write_rows

METER_VERSION = 1
FACTS = "meter.json"
MOST_OFFSET_S = 86_400.0 * 366  # a meter in another time zone or without a date is hours off, not years


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterFacts:
    """`meter.json`: what was added, from which file, and how its clock stands to that of the run's machine."""

    version: int
    number: int
    source: SourceInfo
    offset_s: float  # is added to the meter's times to make them those of the run's machine
    file_sha256: str  # of the meter file as it was given
    power_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSample:
    """One reading on the meter's own clock."""

    t_unix_ns: int
    device: str
    kind: SampleKind
    value: float | None
    flag: SampleFlag


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedMeter:
    """An added meter as its folder holds it."""

    facts: MeterFacts
    samples: tuple[MeterSample, ...]  # in the order of their times

    def cut(self, *, zero_unix_us: int, end_ns: int) -> tuple[PowerSample, ...]:
        """Its samples around [0, end_ns) after an instant of the world's clock, counted from there."""
        margin_ns = round(margin_s(self.facts.source) * 1e9)
        shift_ns = round(self.facts.offset_s * 1e9) - 1000 * zero_unix_us
        first = bisect_left(self.samples, -margin_ns - shift_ns, key=_time)
        last = bisect_right(self.samples, end_ns + margin_ns - shift_ns, key=_time)
        return tuple(
            PowerSample(
                t_ns=sample.t_unix_ns + shift_ns,
                device=sample.device,
                kind=sample.kind,
                value=sample.value,
                read_us=0,
                flag=sample.flag,
            )
            for sample in self.samples[first:last]
        )


def in_time(samples: Iterable[MeterSample]) -> tuple[MeterSample, ...]:
    """In the order of their times, as an added meter holds them."""
    return tuple(sorted(samples, key=_time))


def _time(sample: MeterSample) -> int:
    return sample.t_unix_ns


def write_meter(meter: AddedMeter, folder: Path) -> AddedMeter:
    """Writes both files beside `folder` and renames them into place; returns the meter with its samples' digest."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_rows(_frame(meter.samples), partial / POWER)
    facts = dataclasses.replace(meter.facts, power_sha256=file_sha256(partial / POWER))
    write_atomically(partial / FACTS, msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    os.replace(partial, folder)  # noqa: PTH105 - Path.replace says less about a folder
    return dataclasses.replace(meter, facts=facts)


def read_meter(folder: Path) -> AddedMeter:
    """An added meter; raises TrialFault. Digests are not checked here: `verify` does."""
    path = folder / FACTS
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=MeterFacts)
    except FileNotFoundError as error:
        raise TrialFault(f"{path} is missing: the run is not whole") from error
    except (msgspec.DecodeError, RecursionError, OSError) as error:
        raise TrialFault(f"{path} does not hold a meter of agentdyno: {error}") from error
    if facts.version != METER_VERSION:
        raise TrialFault(f"{path} has version {facts.version}; this agentdyno reads version {METER_VERSION}")
    if not abs(facts.offset_s) <= MOST_OFFSET_S:
        raise TrialFault(f"{path}: offset_s is {facts.offset_s:g}; at most {MOST_OFFSET_S:,.0f} s either way")
    return AddedMeter(facts=facts, samples=in_time(read_rows(folder / POWER, MeterSample)))


def meter_sources(meters: Iterable[AddedMeter]) -> tuple[SourceInfo, ...]:
    """What the meters are, in their order."""
    return tuple(meter.facts.source for meter in meters)


def _frame(samples: Iterable[MeterSample]) -> polars.DataFrame:
    schema = {
        "t_unix_ns": polars.Int64(),
        "device": polars.String(),
        "kind": polars.String(),
        "value": polars.Float64(),
        "flag": polars.String(),
    }
    rows = tuple(samples)
    return polars.DataFrame({name: [getattr(row, name) for row in rows] for name in schema}, schema=schema)

"""One trial: agents driven while power is read, written as facts. Judging it is done later, from its folder alone."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import polars

from capture.atomic import write_atomically
from curate.manifest import file_sha256
from replay import drive as driving
from replay import loop
from replay.cache import with_ideal
from replay.drive import FinishedPlay
from replay.endpoint import Endpoint
from replay.health import ClientHealth
from replay.plan import Plan
from replay.power.meter import Meter
from replay.power.source import PowerSample, SourceInfo
from replay.protocol import Progress, Protocol
from replay.record import RequestRecord
from replay.scrape import Scraper, ServerSample
from replay.search import Purpose
from replay.window import Window

TRIAL_VERSION = 3

RECORDS, POWER, SERVER, FACTS = "records.parquet", "power.parquet", "server.parquet", "trial.json"


class TrialFault(ValueError):
    """A trial's folder, or another with rows of a run, is not whole or not readable; the sentence names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOrder:
    """What a trial is for: its number in the run, and which fresh draw of sessions it plays."""

    trial: int
    agents: int
    purpose: Purpose | Literal["run"]  # of a search; `run`: the one trial that was asked for
    draw: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The server was restarted before a trial by the user's command, which is not kept: it may hold a key."""

    command_s: float  # until the command had ended, with exit code 0
    answered_s: float  # from then until the server answered a request


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFacts:
    """`trial.json`: what was done and what was seen, without a verdict. `*_ns` count from the trial's zero."""

    version: int
    trial: int
    agents: int
    purpose: Purpose | Literal["run"]
    draw: int  # of sessions and start offsets; 0 is the search's own
    salt_number: int  # part of every salt; never the same twice, so that an interrupted trial warms no later one
    protocol: Protocol
    finite: bool  # the plan was played once and ended by itself
    workers: int  # client processes
    restart: Restart | None  # of the server, just before
    zero_unix_us: int
    ramp_end_ns: int
    settle_end_ns: int
    phase_end_ns: int
    stop_reason: str
    finished_plays: tuple[FinishedPlay, ...]
    health: ClientHealth
    longest_delay_s: float  # of any turn of the plan
    power_sources: tuple[SourceInfo, ...]
    requests: int
    records_sha256: str
    power_sha256: str
    server_sha256: str

    @property
    def window(self) -> Window:
        """The steady window; of a plan that is played once, everything."""
        return Window(start_ns=0 if self.finite else self.settle_end_ns, end_ns=self.phase_end_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trial as its folder holds it."""

    facts: TrialFacts
    records: tuple[RequestRecord, ...]
    samples: tuple[PowerSample, ...]
    server: tuple[ServerSample, ...] = ()  # the server's own metrics, as it published them


def run_trial(
    plan: Plan,
    endpoint: Endpoint,
    *,
    order: TrialOrder,
    protocol: Protocol,
    meter: Meter,
    folder: Path,
    workers: int = 1,
    restart: Restart | None = None,
    earlier: Sequence[RequestRecord] = (),
    on_progress: Callable[[Progress], None] | None = None,
    keep_interrupted: bool = False,
) -> Trial:
    """Runs one trial and writes its folder in one step; raises KeyboardInterrupt after Ctrl-C.

    `earlier` are the records that the server's cache may still hold, where the plan lets trials share it. An
    interrupted trial leaves no folder, unless it is kept. Raises EndpointError when no server answers.
    """
    salt_number = time.time_ns() // 1000
    with Scraper(endpoint) as scraper:
        played = loop.run(
            driving.drive(
                plan,
                endpoint,
                agents=order.agents,
                protocol=protocol,
                trial=salt_number,
                draw=order.draw,
                workers=workers,
                history=plan.history,
                folder=_partial(folder),
                on_progress=_with_watts(on_progress, meter),
            )
        )
        scraper.stop()
    if played.stop_reason == "interrupted" and not keep_interrupted:
        raise KeyboardInterrupt
    zero_ns = played.zero_monotonic_ns
    samples = meter.collect(zero_ns, zero_ns + played.phase_end_ns)
    longest = max(turn.delay_us for script in plan.scripts.values() for turn in script.turns)
    facts = TrialFacts(
        version=TRIAL_VERSION,
        trial=order.trial,
        agents=order.agents,
        purpose=order.purpose,
        draw=order.draw,
        salt_number=salt_number,
        protocol=protocol.for_agents(order.agents),
        finite=plan.once,
        workers=workers,
        restart=restart,
        zero_unix_us=played.zero_unix_us,
        ramp_end_ns=played.ramp_end_ns,
        settle_end_ns=played.settle_end_ns,
        phase_end_ns=played.phase_end_ns,
        stop_reason=played.stop_reason,
        finished_plays=played.finished_plays,
        health=played.health,
        longest_delay_s=longest / 1e6,
        power_sources=meter.infos,
        requests=len(played.records),
        records_sha256="",
        power_sha256="",
        server_sha256="",
    )
    trial = Trial(
        facts=facts,
        records=with_ideal(played.records, plan, earlier=earlier),
        samples=_from_zero(samples, zero_ns),
        server=_from_zero(scraper.samples, zero_ns),
    )
    return write_trial(trial, folder)


def _with_watts(on_progress: Callable[[Progress], None] | None, meter: Meter) -> Callable[[Progress], None] | None:
    """Adds what the first source draws now, for the eye."""
    if on_progress is None:
        return None
    return lambda progress: on_progress(dataclasses.replace(progress, watts=meter.watts()))


def _from_zero[Sample: (PowerSample, ServerSample)](samples: Sequence[Sample], zero_ns: int) -> tuple[Sample, ...]:
    return tuple(dataclasses.replace(sample, t_ns=sample.t_ns - zero_ns) for sample in samples)


def records_since_restart(folder: Path, trial: int) -> tuple[RequestRecord, ...]:
    """Records of the run's trials before this one that the same server process saw, in order; `folder` holds them."""
    found: list[tuple[RequestRecord, ...]] = []
    for number in range(trial - 1, 0, -1):
        found.append(read_trial(folder / str(number)).records)
        if read_facts(folder / str(number)).restart is not None:
            break
    return tuple(record for records in reversed(found) for record in records)


def _partial(folder: Path) -> Path:
    """Where a trial's files are until all of them are there; what a killed run left in it is of no use."""
    return folder.with_name(f".{folder.name}.partial")


def write_trial(trial: Trial, folder: Path) -> Trial:
    """Writes a trial's four files beside `folder` and renames them into place, so that a folder is whole or not there.

    Returns the trial with the digests of its files; raises TrialFault or OSError where the disk takes no more.
    """
    partial = _partial(folder)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_rows(_records_frame(trial.records), partial / RECORDS)
    write_rows(samples_frame(trial.samples), partial / POWER)
    write_rows(server_frame(trial.server), partial / SERVER)
    facts = dataclasses.replace(
        trial.facts,
        records_sha256=file_sha256(partial / RECORDS),
        power_sha256=file_sha256(partial / POWER),
        server_sha256=file_sha256(partial / SERVER),
    )
    write_atomically(partial / FACTS, msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    os.replace(partial, folder)  # noqa: PTH105 - Path.replace says less about a folder
    return dataclasses.replace(trial, facts=facts)


def write_rows(frame: polars.DataFrame, path: Path) -> None:
    """Writes a Parquet file; raises TrialFault where the disk takes no more."""
    try:
        frame.write_parquet(path)
    except (polars.exceptions.PolarsError, OSError) as error:  # polars says so of a full disk
        raise TrialFault(f"{path} cannot be written: {error}") from error


def read_facts(folder: Path) -> TrialFacts:
    """A trial's facts; raises TrialFault."""
    path = folder / FACTS
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=TrialFacts)
    except FileNotFoundError as error:
        raise TrialFault(f"{path} is missing: the trial is not whole") from error
    except (msgspec.DecodeError, RecursionError, OSError) as error:
        raise TrialFault(f"{path} is not a trial of agentdyno: {error}") from error
    if facts.version != TRIAL_VERSION:
        raise TrialFault(f"{path} has version {facts.version}; this agentdyno reads version {TRIAL_VERSION}")
    return facts


def read_trial(folder: Path) -> Trial:
    """A trial with all its rows; raises TrialFault. Digests are not checked here: `verify` does."""
    facts = read_facts(folder)
    records = read_rows(folder / RECORDS, RequestRecord)
    samples = read_rows(folder / POWER, PowerSample)
    server = read_rows(folder / SERVER, ServerSample)
    return Trial(facts=facts, records=records, samples=samples, server=server)


def read_rows[Row](path: Path, kind: type[Row]) -> tuple[Row, ...]:
    """The rows of a Parquet file of a run's folder; raises TrialFault naming it."""
    try:
        rows = polars.read_parquet(path).to_dicts()
        return tuple(msgspec.convert(row, kind) for row in rows)
    except FileNotFoundError as error:
        raise TrialFault(f"{path} is missing: the run is not whole") from error
    except (polars.exceptions.PolarsError, OSError) as error:
        raise TrialFault(f"{path} is not a readable Parquet file: {error}") from error
    except msgspec.ValidationError as error:
        raise TrialFault(f"{path} does not hold rows of {kind.__name__}: {error}") from error


_INTEGERS = frozenset(
    field.name for field in dataclasses.fields(RequestRecord) if str(field.type) in ("int", "int | None")
)


def _records_frame(records: Sequence[RequestRecord]) -> polars.DataFrame:
    schema: dict[str, polars.DataType] = {}
    for field in dataclasses.fields(RequestRecord):
        if field.name in _INTEGERS:
            schema[field.name] = polars.Int64()
        elif field.name in ("ideal_cached_share", "distinct_share"):
            schema[field.name] = polars.Float64()
        elif field.name == "content_gaps_us":
            schema[field.name] = polars.List(polars.Int64)
        else:
            schema[field.name] = polars.Boolean() if str(field.type) == "bool" else polars.String()
    columns = {name: [getattr(record, name) for record in records] for name in schema}
    columns["content_gaps_us"] = [list(gaps) for gaps in columns["content_gaps_us"]]
    return polars.DataFrame(columns, schema=schema)


def samples_frame(samples: Sequence[PowerSample]) -> polars.DataFrame:
    """Power samples as `power.parquet` holds them."""
    schema = {
        "t_ns": polars.Int64(),
        "device": polars.String(),
        "kind": polars.String(),
        "value": polars.Float64(),
        "read_us": polars.Int64(),
        "flag": polars.String(),
    }
    return polars.DataFrame({name: [getattr(sample, name) for sample in samples] for name in schema}, schema=schema)


def server_frame(samples: Sequence[ServerSample]) -> polars.DataFrame:
    """Server samples as `server.parquet` holds them."""
    schema = {"t_ns": polars.Int64(), "server": polars.String(), "metric": polars.String(), "value": polars.Float64()}
    return polars.DataFrame({name: [getattr(sample, name) for sample in samples] for name in schema}, schema=schema)

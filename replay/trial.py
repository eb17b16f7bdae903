"""One trial: agents driven while power is read, written as facts. Judging it is done later, from its folder alone."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars

from curate.manifest import file_sha256
from replay import drive as driving
from replay import loop
from replay.drive import FinishedPlay
from replay.endpoint import Endpoint
from replay.health import ClientHealth
from replay.plan import Plan
from replay.power.source import Meter, PowerSample, PowerSource, SourceInfo
from replay.protocol import Progress, Protocol
from replay.record import RequestRecord
from replay.window import Window

TRIAL_VERSION = 1

RECORDS, POWER, FACTS = "records.parquet", "power.parquet", "trial.json"


class TrialFault(ValueError):
    """A trial's folder is not whole or not readable; the sentence names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFacts:
    """`trial.json`: what was done and what was seen, without a verdict. `*_ns` count from the trial's zero."""

    version: int
    trial: int
    agents: int
    salt_number: int  # part of every salt; never the same twice, so that an interrupted trial warms no later one
    protocol: Protocol
    finite: bool  # the plan was played once and ended by itself
    zero_unix_us: int
    ramp_end_ns: int
    settle_end_ns: int
    phase_end_ns: int
    stop_reason: str
    finished_plays: tuple[FinishedPlay, ...]
    health: ClientHealth
    longest_delay_s: float  # of any turn of the plan
    power_period_s: float
    power_sources: tuple[SourceInfo, ...]
    requests: int
    records_sha256: str
    power_sha256: str

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


def run_trial(
    plan: Plan,
    endpoint: Endpoint,
    *,
    trial: int,
    agents: int,
    protocol: Protocol,
    sources: Sequence[PowerSource],
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
    keep_interrupted: bool = False,
) -> Trial:
    """Runs one trial and writes its folder in one step; raises KeyboardInterrupt after Ctrl-C.

    An interrupted trial leaves no folder, unless it is kept. Raises EndpointError when no server answers.
    """
    salt_number = time.time_ns() // 1000
    with Meter(sources) as meter:
        played = loop.run(
            driving.drive(
                plan,
                endpoint,
                agents=agents,
                protocol=protocol,
                trial=salt_number,
                on_progress=on_progress,
            )
        )
        meter.stop()
    if played.stop_reason == "interrupted" and not keep_interrupted:
        raise KeyboardInterrupt
    samples = tuple(
        dataclasses.replace(sample, t_ns=sample.t_ns - played.zero_monotonic_ns) for sample in meter.samples
    )
    longest = max(turn.delay_us for script in plan.scripts.values() for turn in script.turns)
    facts = TrialFacts(
        version=TRIAL_VERSION,
        trial=trial,
        agents=agents,
        salt_number=salt_number,
        protocol=protocol,
        finite=plan.once,
        zero_unix_us=played.zero_unix_us,
        ramp_end_ns=played.ramp_end_ns,
        settle_end_ns=played.settle_end_ns,
        phase_end_ns=played.phase_end_ns,
        stop_reason=played.stop_reason,
        finished_plays=played.finished_plays,
        health=played.health,
        longest_delay_s=longest / 1e6,
        power_period_s=meter.period_s,
        power_sources=tuple(source.describe() for source in sources),
        requests=len(played.records),
        records_sha256="",
        power_sha256="",
    )
    return write_trial(Trial(facts=facts, records=_with_ideal(played.records, plan), samples=samples), folder)


def _with_ideal(records: Sequence[RequestRecord], plan: Plan) -> tuple[RequestRecord, ...]:
    """Adds how much of each prompt the same play had sent before; nothing of its first one."""
    shares: dict[str, dict[int, float]] = {}
    begun: set[tuple[int, int]] = set()
    found = []
    for record in records:
        session = shares.get(record.session_id)
        if session is None:
            script = plan.script(record.session_id)
            session = shares[record.session_id] = {
                turn.request_index: prefix.shared / prefix.total if prefix.total else 0.0
                for turn, prefix in zip(script.turns, script.prefixes, strict=True)
            }
        play = (record.agent, record.play)
        share = session.get(record.request_index) if play in begun else 0.0
        begun.add(play)
        found.append(dataclasses.replace(record, ideal_cached_share=share))
    return tuple(found)


def write_trial(trial: Trial, folder: Path) -> Trial:
    """Writes a trial's three files beside `folder` and renames them into place, so that a folder is whole or not there.

    Returns the trial with the digests of its files.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    _records_frame(trial.records).write_parquet(partial / RECORDS)
    _samples_frame(trial.samples).write_parquet(partial / POWER)
    facts = dataclasses.replace(
        trial.facts, records_sha256=file_sha256(partial / RECORDS), power_sha256=file_sha256(partial / POWER)
    )
    (partial / FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    os.replace(partial, folder)  # noqa: PTH105 - Path.replace says less about a folder
    return dataclasses.replace(trial, facts=facts)


def read_facts(folder: Path) -> TrialFacts:
    """A trial's facts; raises TrialFault."""
    path = folder / FACTS
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=TrialFacts)
    except FileNotFoundError as error:
        raise TrialFault(f"{path} is missing: the trial is not whole") from error
    except (msgspec.DecodeError, OSError) as error:
        raise TrialFault(f"{path} is not a trial of agentdyno: {error}") from error
    if facts.version != TRIAL_VERSION:
        raise TrialFault(f"{path} has version {facts.version}; this agentdyno reads version {TRIAL_VERSION}")
    return facts


def read_trial(folder: Path) -> Trial:
    """A trial with all its rows; raises TrialFault. Digests are not checked here: `verify` does."""
    facts = read_facts(folder)
    records = _rows(folder / RECORDS, RequestRecord)
    samples = _rows(folder / POWER, PowerSample)
    return Trial(facts=facts, records=records, samples=samples)


def _rows[Row](path: Path, kind: type[Row]) -> tuple[Row, ...]:
    try:
        rows = polars.read_parquet(path).to_dicts()
        return tuple(msgspec.convert(row, kind) for row in rows)
    except FileNotFoundError as error:
        raise TrialFault(f"{path} is missing: the trial is not whole") from error
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


def _samples_frame(samples: Sequence[PowerSample]) -> polars.DataFrame:
    schema = {
        "t_ns": polars.Int64(),
        "device": polars.String(),
        "kind": polars.String(),
        "value": polars.Float64(),
        "read_us": polars.Int64(),
        "flag": polars.String(),
    }
    return polars.DataFrame({name: [getattr(sample, name) for sample in samples] for name in schema}, schema=schema)

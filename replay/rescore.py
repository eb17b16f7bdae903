"""Meter data that arrives after a run: taken into its folder, and the whole run judged again.

What stood stays: the former score is kept beside the new one, which is written last. A rescore that was cut short is
continued by the same command, and one that is repeated changes no byte.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capture.atomic import changing, write_atomically
from curate.manifest import file_sha256, write_json
from replay.added_meter import (
    FACTS,
    METER_VERSION,
    MOST_OFFSET_S,
    AddedMeter,
    MeterFacts,
    MeterSample,
    in_time,
    meter_sources,
    write_meter,
)
from replay.idle import MOMENTS
from replay.judge import judge_trials, read_score, score_json
from replay.power.domain import place_devices
from replay.power.file import read_power_file
from replay.power.source import PowerFault
from replay.runfolder import RunFault, RunFolder
from replay.system import system_from_json
from replay.trial import read_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """What came of it."""

    meter: AddedMeter
    added: bool  # False: the run held this meter already
    score: dict[str, Any]


def rescore(folder: RunFolder, file: Path, *, offset_s: float = 0.0, u_clock_s: float | None = None) -> Rescored:
    """Adds the meter of `file` to a finished run and judges it again.

    `offset_s` is added to the meter's times to make them those of the run's machine; `u_clock_s` is the standard
    uncertainty of what is then left between the two clocks, beside that of the meter's own times. Raises RunFault for
    the run, TrialFault for its files, PowerFault for the meter.
    """
    if not folder.path.is_dir():
        raise RunFault(f"{folder.path} is no run folder")
    with changing(folder.path):
        return _rescore(folder, file, offset_s, u_clock_s)


def _rescore(folder: RunFolder, file: Path, offset_s: float, u_clock_s: float | None) -> Rescored:
    score = read_score(folder.score_path)
    files = score.get("files")
    if not isinstance(files, dict):
        raise RunFault(f"{folder.score_path} names no files: it is not a score of agentdyno")
    meters = folder.meters()
    stand_in_score = sum(f"meters/{meter.facts.number}/{FACTS}" in files for meter in meters)
    for meter in meters[stand_in_score:]:  # a rescore was cut short: it is done first
        score = _judge_again(folder, meter)
    asked = _meter(file, len(meters) + 1, offset_s, u_clock_s)
    same = next((meter for meter in meters if meter.facts.file_sha256 == asked.facts.file_sha256), None)
    if same is not None:
        _check_same(folder, same, asked)
        return Rescored(meter=same, added=False, score=score)
    _check_new(folder, meters, asked)
    added = write_meter(asked, folder.meter_path(asked.facts.number))
    return Rescored(meter=added, added=True, score=_judge_again(folder, added))


def _judge_again(folder: RunFolder, meter: AddedMeter) -> dict[str, Any]:
    """Keeps the score that stands, unless an earlier try has, and writes the new one."""
    former = folder.former_score_path(meter.facts.number)
    if not former.exists():
        write_atomically(former, folder.score_path.read_bytes())
    score = score_json(folder, folder.inputs(), folder.plan(), judge_trials(folder))
    write_json(folder.score_path, score)
    return score


def _meter(file: Path, number: int, offset_s: float, u_clock_s: float | None) -> AddedMeter:
    """The meter as it would stand in the folder."""
    if not abs(offset_s) <= MOST_OFFSET_S:  # neither infinite nor no number at all
        raise PowerFault(f"{file}: an offset of {offset_s:g} s; at most {MOST_OFFSET_S:,.0f} s either way")
    recording = read_power_file(file)  # first: of what is no file, as a pipe, a digest has no end
    sha256 = file_sha256(file)
    info = recording.info
    if u_clock_s is not None:
        if not 0 <= u_clock_s <= MOST_OFFSET_S:
            raise PowerFault(f"{file}: a clock that is uncertain by {u_clock_s:g} s; 0 to {MOST_OFFSET_S:,.0f} s")
        info = dataclasses.replace(info, clock_u_s=math.hypot(info.clock_u_s, u_clock_s))
    return AddedMeter(
        facts=MeterFacts(
            version=METER_VERSION,
            number=number,
            source=dataclasses.replace(info, name=f"{info.name}, added as meter {number}"),
            offset_s=offset_s,
            file_sha256=sha256,
            power_sha256="",
        ),
        samples=in_time(
            MeterSample(
                t_unix_ns=sample.t_ns, device=sample.device, kind=sample.kind, value=sample.value, flag=sample.flag
            )
            for sample in recording.samples
        ),
    )


def _check_same(folder: RunFolder, stands: AddedMeter, asked: AddedMeter) -> None:
    """Raises PowerFault where the same file is given with another clock: which of both counts is not to be chosen."""
    before = (stands.facts.offset_s, stands.facts.source.clock_u_s)
    if before != (asked.facts.offset_s, asked.facts.source.clock_u_s):
        raise PowerFault(
            f"{folder.path} holds this meter file already, with an offset of {before[0]:g} s ± {before[1]:g} s: "
            "give the same, or rescore a copy of the run from before"
        )


def _check_new(folder: RunFolder, meters: tuple[AddedMeter, ...], asked: AddedMeter) -> None:
    """Raises PowerFault unless the meter brings readings inside at least one trial, of devices that are not there."""
    facts = [read_facts(folder.trial_path(number)) for number in folder.trial_numbers()]
    if not facts:
        raise RunFault(f"{folder.path} has no trial: there is nothing to judge")
    inside = any(
        0 <= sample.t_ns < item.phase_end_ns
        for item in facts
        for sample in asked.cut(zero_unix_us=item.zero_unix_us, end_ns=item.phase_end_ns)
    )
    if not inside:
        times = [sample.t_unix_ns + round(asked.facts.offset_s * 1e9) for sample in asked.samples]
        raise PowerFault(
            f"no reading lies inside a trial: the meter read from {_moment(min(times, default=None))} to "
            f"{_moment(max(times, default=None))}, the trials ran from "
            f"{_moment(1000 * facts[0].zero_unix_us)} to "
            f"{_moment(1000 * facts[-1].zero_unix_us + facts[-1].phase_end_ns)}: state the clocks' --offset"
        )
    system, added = system_from_json(folder.inputs().system), meter_sources((*meters, asked))
    read = {item.power_sources for item in facts}
    read |= {idle.facts.power_sources for moment in MOMENTS if (idle := folder.idle(moment)) is not None}
    for sources in read:
        place_devices((*sources, *added), system)


def _moment(t_unix_ns: int | None) -> str:
    if t_unix_ns is None:
        return "never"
    return datetime.fromtimestamp(t_unix_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

"""Does a run's score follow from its files? Everything is computed again and compared field by field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import and_
from typing import Any

import msgspec

from replay.added_meter import AddedMeter
from replay.idle import MOMENTS, Moment
from replay.judge import Judged, file_digests, judge_trial, read_score, score_json
from replay.plan import PlanFile
from replay.power.source import PowerFault, SourceInfo
from replay.results import next_order
from replay.runfolder import RunFault, RunFolder, RunInputs
from replay.sentence import short
from replay.trial import POWER, RECORDS, SERVER, Trial, TrialFacts, TrialFault, TrialOrder, read_trial

_UNJUDGED = (ValueError, TypeError, LookupError, ArithmeticError, PowerFault)
"""What judging raises of files that hold what no run writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place where the score and its files disagree."""

    place: str
    stands: str
    should_be: str

    def __str__(self) -> str:
        return f"{self.place}: stands {self.stands}, should be {self.should_be}"


def verify(folder: RunFolder) -> tuple[Difference, ...]:
    """All differences, altered files first; none means that the score follows from its records.

    Raises RunFault or TrialFault where a file is missing or not readable.
    """
    stored = read_score(folder.score_path)
    found: list[Difference] = []
    digests = file_digests(folder)
    stated = stored.get("files")
    if not isinstance(stated, dict):
        raise RunFault(f"{folder.score_path} names no files: it is not a score of agentdyno")
    for path in sorted({*digests, *stated}):
        if path not in digests:
            raise RunFault(f"{folder.path / path} is missing: the run is not whole")
        if digests[path] != stated.get(path):
            found.append(Difference(place=path, stands="another file", should_be=f"sha256 {stated.get(path)}"))
    try:
        inputs, plan, meters = folder.inputs(), folder.plan(), folder.meters()
        found += _check_meters(meters, digests)
        trials = []
        faults: list[Exception] = []
        for number in folder.trial_numbers():
            try:
                trial = read_trial(folder.trial_path(number))
                found += _check_trial(trial, number, digests, inputs, plan)
                trials.append((trial.facts, judge_trial(trial, inputs, plan, meters)))
            except _UNJUDGED as error:
                faults.append(error)  # the other trials and the plan are looked at all the same
        found += _check_plan(inputs, plan)
        if faults:
            raise faults[0]
        found += _check_idle(folder, digests, inputs, [facts for facts, _ in trials])
        judged = [item for _, item in trials]
        found += _check_orders(inputs, [facts for facts, _ in trials], judged)
        again = msgspec.json.decode(msgspec.json.encode(score_json(folder, inputs, plan, judged)))
    except _UNJUDGED as error:
        if found:
            return tuple(found)  # an altered file that can no longer be judged: its digest has said so
        if isinstance(error, (RunFault, TrialFault)):
            raise
        raise RunFault(
            f"{folder.path} cannot be judged: its files hold what no run writes ({type(error).__name__}: {error})"
        ) from error
    found += _compare("", stored, again, skip={"files"})
    return tuple(found)


def _check_trial(
    trial: Trial, number: int, digests: dict[str, str], inputs: RunInputs, plan: PlanFile
) -> Iterator[Difference]:
    """The trial's own note of its files, and that its records are of the plan."""
    for name, sha in (
        (RECORDS, trial.facts.records_sha256),
        (POWER, trial.facts.power_sha256),
        (SERVER, trial.facts.server_sha256),
    ):
        yield from _check_note(f"trials/{number}/{name}", "trial.json", sha, digests)
    if trial.facts.trial != number:
        yield Difference(
            place=f"trials/{number}/trial.json: trial", stands=str(trial.facts.trial), should_be=str(number)
        )
    protocol = inputs.protocol.for_agents(trial.facts.agents)
    if trial.facts.protocol != protocol:
        yield Difference(
            place=f"trials/{number}/trial.json: protocol",
            stands=short(msgspec.to_builtins(trial.facts.protocol)),
            should_be=short(msgspec.to_builtins(protocol)),
        )
    if trial.facts.requests != len(trial.records):
        yield Difference(
            place=f"trials/{number}: requests", stands=str(len(trial.records)), should_be=str(trial.facts.requests)
        )
    stated = [text.startswith("declared") for text in inputs.power]
    found = [source.measured for source in trial.facts.power_sources]
    strange = len(found) != len(stated) if stated else any(found)
    if strange or any(map(and_, stated, found)):
        yield Difference(
            place=f"trials/{number}/trial.json: power_sources",
            stands=", ".join(_source(source) for source in trial.facts.power_sources) or "none",
            should_be=", ".join(inputs.power) or "none",
        )
    planned = {session.session_id for session in plan.sessions}
    unplanned = {record.session_id for record in trial.records} - planned
    for session_id in sorted(unplanned)[:1]:
        yield Difference(place=f"trials/{number}: sessions", stands=session_id, should_be="a session of plan.json")


def _source(source: SourceInfo) -> str:
    return f"{source.name or source.kind} ({'measured' if source.measured else 'not measured'})"


def _check_meters(meters: Sequence[AddedMeter], digests: dict[str, str]) -> Iterator[Difference]:
    """Each added meter's own note of its samples, that it is the one its folder says, and the score from before it."""
    for number, meter in enumerate(meters, 1):
        place = f"meters/{number}"
        yield from _check_note(f"{place}/{POWER}", "meter.json", meter.facts.power_sha256, digests)
        if meter.facts.number != number:
            yield Difference(place=f"{place}/meter.json: number", stands=str(meter.facts.number), should_be=str(number))
        if (former := f"score.before-{number}.json") not in digests:
            yield Difference(place=former, stands="nothing", should_be="the score from before this meter was added")


def _check_idle(
    folder: RunFolder, digests: dict[str, str], inputs: RunInputs, trials: Sequence[TrialFacts]
) -> Iterator[Difference]:
    """That idle power was read where it was asked for, beside the trials and not during one, and its note of files."""
    measured = any(source.measured for facts in trials for source in facts.power_sources)
    for moment in MOMENTS:
        place = f"idle/{moment}"
        idle = folder.idle(moment)
        if idle is None:
            if inputs.idle_s > 0 and measured:
                yield Difference(place=place, stands="nothing", should_be=f"{inputs.idle_s:g} s of idle power")
            continue
        yield from _check_note(f"{place}/{POWER}", "idle.json", idle.facts.power_sha256, digests)
        yield from _check_note(f"{place}/{SERVER}", "idle.json", idle.facts.server_sha256, digests)
        if idle.facts.end_ns < SHORTER * inputs.idle_s * 1e9:
            stands = f"{idle.facts.end_ns / 1e9:g} s"
            yield Difference(place=f"{place}/idle.json: end_ns", stands=stands, should_be=f"{inputs.idle_s:g} s")
        start_us = idle.facts.zero_unix_us
        end_us = start_us + idle.facts.end_ns // 1000
        for facts in trials:
            trial_end_us = facts.zero_unix_us + facts.phase_end_ns // 1000
            late_us = end_us - facts.zero_unix_us if moment == "before" else trial_end_us - start_us
            if late_us > CLOCK_STEP_US:
                yield Difference(
                    place=f"{place}/idle.json: zero_unix_us",
                    stands=f"during or {_OTHER[moment]} trial {facts.trial}",
                    should_be=f"{moment} every trial",
                )
                break


CLOCK_STEP_US = 5_000_000  # two of the world's times are compared, and a machine's clock may be set between them
SHORTER = 0.999  # of the time that was asked for: a sleep is never cut
_OTHER: dict[Moment, str] = {"before": "after", "after": "before"}


def _check_note(place: str, note: str, sha: str, digests: dict[str, str]) -> Iterator[Difference]:
    """What a folder's own JSON says of a file beside it."""
    if digests.get(place) != sha:
        yield Difference(place=f"{place}, as {note} notes it", stands="another file", should_be=f"sha256 {sha}")


def _check_orders(inputs: RunInputs, trials: Sequence[TrialFacts], judged: Sequence[Judged]) -> Iterator[Difference]:
    """That each trial is the one which the search asked for after those before it: none was put in or taken out."""
    for index, facts in enumerate(trials):
        done = TrialOrder(trial=facts.trial, agents=facts.agents, purpose=facts.purpose, draw=facts.draw)
        due = next_order(inputs, judged[:index])
        if done != due:
            yield Difference(
                place=f"trials/{index + 1}: what it is for",
                stands=_order(done),
                should_be=_order(due) if due else "no trial",
            )
            return
    due = next_order(inputs, judged)
    if due is not None:
        yield Difference(place=f"trials/{due.trial}", stands="no trial", should_be=_order(due))


def _order(order: TrialOrder) -> str:
    return f"trial {order.trial}, {order.purpose} at {order.agents} agents, draw {order.draw}"


def _check_plan(inputs: RunInputs, plan: PlanFile) -> Iterator[Difference]:
    """That run.json and plan.json are of one plan, and that the plan's totals are those of its sessions."""
    for place, stands, should_be in (
        ("run.json: plan_digest", inputs.plan_digest, plan.plan_digest),
        ("run.json: dataset_digest", inputs.dataset_digest, plan.dataset_digest),
        ("plan.json: delay_policy_id", plan.delay_policy_id, plan.delay.policy_id),
        ("plan.json: turns", plan.turns, sum(session.turns for session in plan.sessions)),
        ("plan.json: output_tokens", plan.output_tokens, sum(session.output_tokens for session in plan.sessions)),
    ):
        if stands != should_be:
            yield Difference(place=place, stands=str(stands), should_be=str(should_be))


def _compare(
    place: str, stands: Any, should_be: Any, skip: frozenset[str] | set[str] = frozenset()
) -> Iterator[Difference]:
    if isinstance(stands, dict) and isinstance(should_be, dict):
        for key in dict.fromkeys((*should_be, *stands)):
            if key in skip:
                continue
            here = f"{place}.{key}" if place else key
            if key not in stands or key not in should_be:
                yield Difference(
                    place=here,
                    stands=short(stands[key]) if key in stands else "nothing",
                    should_be=short(should_be[key]) if key in should_be else "nothing",
                )
            else:
                yield from _compare(here, stands[key], should_be[key])
    elif isinstance(stands, list) and isinstance(should_be, list) and len(stands) == len(should_be):
        for index, (left, right) in enumerate(zip(stands, should_be, strict=True)):
            yield from _compare(f"{place}[{index}]", left, right)
    elif not _same(stands, should_be):
        yield Difference(place=place, stands=short(stands), should_be=short(should_be))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        # Other machines may sum in another order; nobody gains by the twelfth digit.
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12)
    return bool(left == right)

"""From a run's folder to its score: a pure function over files, so that `verify` can do it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from curate.manifest import file_sha256
from replay.cache import cross_warming
from replay.canary import compare_canaries
from replay.health import ClientHealth
from replay.interval import cluster_bootstrap
from replay.labels import labels
from replay.measure import Measure, measure
from replay.observation import Observation, observe
from replay.plan import PlanFile
from replay.power.energy import PowerTotal, total_power
from replay.protocol import Protocol
from replay.results import results
from replay.runfolder import CanaryPair, RunFault, RunFolder, RunInputs
from replay.scrape import ServerMetrics, server_metrics
from replay.search import Purpose
from replay.slo import Measured, Slo, unmet_rules
from replay.system import system_from_json
from replay.trial import FACTS, POWER, RECORDS, SERVER, Restart, Trial, TrialFacts, read_trial
from replay.void import late_windows
from replay.window import Window

SCORE_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One trial with its numbers."""

    trial: int
    agents: int
    purpose: Purpose | Literal["run"]
    draw: int
    stop_reason: str
    measure: Measure
    power: tuple[PowerTotal, ...]
    sensors: dict[str, tuple[str, ...]]  # models of each power source's devices
    health: ClientHealth
    server: ServerMetrics | None
    restart: Restart | None
    measured: Measured
    cross_warming: tuple[str, ...]  # why the isolation of its plays is not to be believed
    unmet: tuple[tuple[str, ...], ...]  # rules of each service level's own protocol


def observe_trial(trial: Trial, slos: Sequence[Slo], *, exact_length: bool) -> Observation:
    """What the records of a trial say, as `measure` sees them."""
    facts = trial.facts
    return observe(
        trial.records,
        facts.window,
        exact_length=exact_length,
        finished_plays=facts.finished_plays,
        late=late_windows(facts.health.windows, slos),
        finite=facts.finite,
    )


def judge_trial(trial: Trial, inputs: RunInputs, plan: PlanFile) -> Judged:
    """Measures a trial, integrates its power over the same window, and holds it against its protocol."""
    facts = trial.facts
    slos = inputs.levels
    done = measured(facts)
    numbers = measure(
        trial.records,
        facts.window,
        agents=facts.agents,
        slos=slos,
        exact_length=plan.length.mode == "exact",
        longest_delay_s=facts.longest_delay_s,
        finished_plays=facts.finished_plays,
        late=late_windows(facts.health.windows, slos),
        client_faults=_client_faults(facts),
        finite=facts.finite,
        weights=inputs.system["weights"],
        session_turns={session.session_id: session.turns for session in plan.sessions},
    )
    if not facts.finite:
        numbers = _held_long_enough(numbers, unmet_rules(facts.protocol, done))
    window = Window(start_ns=numbers.window_start_ns, end_ns=numbers.window_end_ns)
    power = tuple(
        total_power(
            source, trial.samples, start_ns=window.start_ns, end_ns=window.end_ns, period_s=facts.power_period_s
        )
        for source in facts.power_sources
    )
    return Judged(
        trial=facts.trial,
        agents=facts.agents,
        purpose=facts.purpose,
        draw=facts.draw,
        stop_reason=facts.stop_reason,
        measure=numbers,
        power=power,
        sensors={
            source.kind: tuple(sorted({device.name for device in source.devices})) for source in facts.power_sources
        },
        health=facts.health,
        server=server_metrics(trial.server, window),
        restart=facts.restart,
        measured=done,
        cross_warming=cross_warming(trial.records, plan),
        unmet=tuple(unmet_rules(slo.protocol, done) for slo in slos),
    )


def _held_long_enough(numbers: Measure, short: Sequence[str]) -> Measure:
    """A level that misses a limit has failed however short it was measured; one that holds must have been held."""
    if not short or not numbers.valid:
        return numbers
    reasons = tuple(reason.replace("the preset", "its protocol") for reason in short)
    slos = tuple(
        replace(found, verdict="invalid", margin=None, reasons=reasons, undecided_matters=False)
        if found.verdict == "met"
        else found
        for found in numbers.slos
    )
    if not slos:
        return replace(numbers, valid=False, invalid_reasons=reasons, verdict="invalid", reasons=reasons)
    first = slos[0]
    return replace(numbers, slos=slos, verdict=first.verdict, reasons=first.reasons)


def _client_faults(facts: TrialFacts) -> tuple[str, ...]:
    """Why nothing of a trial may be believed, by the client's own account."""
    interrupted = "the trial was interrupted" if facts.stop_reason == "interrupted" else None
    return tuple(fault for fault in (interrupted, facts.health.fault) if fault is not None)


def measured(facts: TrialFacts) -> Measured:
    """What a trial did, in the protocol's terms. Trajectories count when they ended inside the phase."""
    finished = [play for play in facts.finished_plays if play.finished_at_ns < facts.phase_end_ns]
    per_agent = [0] * facts.agents
    for play in finished:
        per_agent[play.agent] += 1
    ramp_s = facts.ramp_end_ns / 1e9
    return Measured(
        ramp_per_s=(facts.agents - 1) / ramp_s if ramp_s > 0 else None,
        settle_s=(facts.settle_end_ns - facts.ramp_end_ns) / 1e9,
        measure_s=facts.window.seconds,
        finished_trajectories=len(finished),
        finished_per_agent_min=min(per_agent),
        start_offset_turns=0 if facts.finite else facts.protocol.start_offset_turns,
        request_timeout_s=facts.protocol.request_timeout_s,
    )


def protocol_maximum(protocol: Protocol) -> int | None:
    """The most agents whose ramp still leaves the shortest measurement inside the longest phase; at least 1.

    None where the protocol ramps any number of agents up in time.
    """
    left_s = max(0.0, protocol.max_phase_s - protocol.settle_s - protocol.min_measure_s)
    if protocol.ramp_within_s is not None and protocol.ramp_within_s <= left_s:
        return None
    return max(1, 1 + int(left_s * protocol.ramp_per_s))


def judge_run(folder: RunFolder) -> dict[str, Any]:
    """The contents of `score.json`, from the run's other files. Raises RunFault or TrialFault for what is missing."""
    return score_json(folder, folder.inputs(), folder.plan(), judge_trials(folder))


def judge_trials(folder: RunFolder) -> list[Judged]:
    """Every trial of a run, in order, judged from its files. Raises RunFault or TrialFault for what is missing."""
    inputs, plan = folder.inputs(), folder.plan()
    numbers = folder.trial_numbers()
    return [judge_trial(read_trial(folder.trial_path(number)), inputs, plan) for number in numbers]


def file_digests(folder: RunFolder) -> dict[str, str]:
    """sha256 of every file that the score rests on, by its path in the folder."""
    paths = [folder.inputs_path, folder.plan_path, folder.canary_path]
    for number in folder.trial_numbers():
        paths += [folder.trial_path(number) / name for name in (FACTS, RECORDS, POWER, SERVER)]
    return {str(path.relative_to(folder.path)): file_sha256(path) for path in paths if path.is_file()}


def score_json(folder: RunFolder, inputs: RunInputs, plan: PlanFile, judged: Sequence[Judged]) -> dict[str, Any]:
    """The score as plain JSON values, from judged trials and what else stands in the folder."""
    system = system_from_json(inputs.system)
    found = results(inputs, system, judged, finite=plan.once)
    for slo, result in zip(inputs.levels, found, strict=True):
        result["percentiles"] = _percentiles(folder, plan, inputs.levels, slo, result["reference_trial"])
    canary_json = _canary_json(folder.canary())
    if found:
        first = {key: found[0][key] for key in ("verdict", "reasons", "agents")}
    else:
        only = judged[0] if judged else None
        first = {
            "verdict": "met" if only is not None and only.measure.valid else "invalid",
            "reasons": list(only.measure.invalid_reasons) if only is not None else ["no trial was run"],
            "agents": float(only.agents) if only is not None else None,
        }
    return {
        "score_version": SCORE_VERSION,
        "methodology_version": inputs.methodology_version,
        "agentdyno_version": inputs.agentdyno_version,
        "kind": inputs.kind,
        "class": inputs.run_class,
        "started_unix_us": inputs.started_unix_us,
        "endpoint": msgspec.to_builtins(inputs.endpoint),
        "dataset_digest": plan.dataset_digest,
        "dataset_match": inputs.dataset_match,
        "plan": {
            "digest": plan.plan_digest,
            "seed": plan.seed,
            "once": plan.once,
            "sessions": len(plan.sessions),
            "turns": plan.turns,
            "prompt_tokens": plan.prompt_tokens,
            "output_tokens": plan.output_tokens,
            "left_out": [msgspec.to_builtins(item) for item in plan.left_out],
        },
        "policies": {
            "delay": plan.delay_policy_id,
            "length": msgspec.to_builtins(plan.length),
            "context": msgspec.to_builtins(plan.context),
            "isolation": plan.isolation,
            "share_head": plan.share_head,
            "history": plan.history,
            "temperature": plan.temperature,
            "retries": plan.retries,
        },
        "slos": list(inputs.slos),
        "results": found,
        **first,
        "protocol": msgspec.to_builtins(inputs.protocol),
        "search": msgspec.to_builtins(inputs.rules) | {"maximum_why": inputs.maximum_why}
        if inputs.kind == "score"
        else None,
        "trials": [_trial_json(item) for item in judged],
        "canary": canary_json,
        "labels": labels(inputs, plan, system, judged, found, canary_json),
        "system": inputs.system,
        "undisclosed": list(system.undisclosed),
        "probe": inputs.probe,
        "client_limit": inputs.client_limit,
        "workers": inputs.workers,
        "power": list(inputs.power),
        "restart": {
            "command_given": inputs.restarts,
            "count": sum(item.restart is not None for item in judged),
        },
        "against": msgspec.to_builtins(inputs.against),
        "files": file_digests(folder),
    }


def _percentiles(
    folder: RunFolder, plan: PlanFile, slos: Sequence[Slo], slo: Slo, number: int | None
) -> dict[str, Any] | None:
    """How the percentiles of the reference trial would move with other agents."""
    if number is None:
        return None
    seen = observe_trial(read_trial(folder.trial_path(number)), slos, exact_length=plan.length.mode == "exact")
    value: dict[str, Any] = msgspec.to_builtins(cluster_bootstrap(slo, seen, seed=plan.seed))
    return value


def _canary_json(canary: CanaryPair | None) -> dict[str, Any] | None:
    if canary is None:
        return None
    value: dict[str, Any] = msgspec.to_builtins(canary)
    return {**value, "reasons": list(compare_canaries(canary.before, canary.after))}


def _trial_json(item: Judged) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(item)
    del value["unmet"], value["sensors"]
    value["protocol_unmet"] = list(dict.fromkeys(rule for unmet in item.unmet for rule in unmet))
    for row, total in zip(value["power"], item.power, strict=True):
        row["basis"] = "measured" if total.measured else "declared"
    time = item.measure.agent_time
    value["measure"]["agent_time"]["explained"] = time.explained
    value["measure"]["work"]["output_shortfall"] = item.measure.work.output_shortfall
    return value


def read_score(path: Path) -> dict[str, Any]:
    """A score as it stands; raises RunFault naming the file."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFault(f"{path} is missing: the run is not finished") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise RunFault(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunFault(f"{path} is not a score of agentdyno")
    if value.get("score_version") != SCORE_VERSION:
        raise RunFault(
            f"{path} has score version {value.get('score_version')}; this agentdyno reads version {SCORE_VERSION}: "
            "use the one that wrote it"
        )
    return value

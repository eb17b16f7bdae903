"""From a run's folder to its score: a pure function over files, so that `verify` can do it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from curate.manifest import file_sha256
from replay import added_meter, idle
from replay.added_meter import AddedMeter, meter_sources
from replay.cache import cross_warming
from replay.canary import compare_canaries
from replay.curve import curve
from replay.health import ClientHealth
from replay.idle import MOMENTS, IdlePower, IdleReading, Moment, idle_power, idle_reading
from replay.interval import cluster_bootstrap
from replay.labels import device_words, labels
from replay.measure import Measure, measure
from replay.observation import Observation, observe
from replay.plan import PlanFile
from replay.power.domain import place_devices, scope_devices
from replay.power.energy import PowerTotal, scope_totals
from replay.power.source import PowerSample, SourceInfo
from replay.protocol import Protocol
from replay.results import results
from replay.runfolder import CanaryPair, RunFault, RunFolder, RunInputs
from replay.scrape import ServerMetrics, server_metrics
from replay.search import Purpose
from replay.slo import Measured, Slo, unmet_rules
from replay.system import System, system_from_json
from replay.trial import FACTS, POWER, RECORDS, SERVER, Restart, Trial, TrialFacts, read_trial
from replay.void import late_windows
from replay.window import Window

SCORE_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One trial with its numbers."""

    trial: int
    agents: int
    purpose: Purpose | Literal["run"]
    draw: int
    stop_reason: str
    measure: Measure
    power: tuple[PowerTotal, ...]  # by scope
    limits_w: dict[str, float]  # enforced power limits of each scope's devices together, where all are known
    devices_say: tuple[str, ...]  # of themselves, where it changes what their watts mean
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


def judge_trial(trial: Trial, inputs: RunInputs, plan: PlanFile, meters: Sequence[AddedMeter] = ()) -> Judged:
    """Measures a trial, integrates its power over the same window, and holds it against its protocol.

    Of meters that were added after the run it takes what they read in the trial's own time.
    """
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
    later = [
        sample for meter in meters for sample in meter.cut(zero_unix_us=facts.zero_unix_us, end_ns=facts.phase_end_ns)
    ]
    power, limits_w = power_totals(
        (*facts.power_sources, *meter_sources(meters)),
        (*trial.samples, *later),
        system_from_json(inputs.system),
        window,
    )
    return Judged(
        trial=facts.trial,
        agents=facts.agents,
        purpose=facts.purpose,
        draw=facts.draw,
        stop_reason=facts.stop_reason,
        measure=numbers,
        power=power,
        limits_w=limits_w,
        devices_say=device_words(facts.power_sources),
        health=facts.health,
        server=server_metrics(trial.server, window),
        restart=facts.restart,
        measured=done,
        cross_warming=cross_warming(trial.records, plan),
        unmet=tuple(unmet_rules(slo.protocol, done) for slo in slos),
    )


def power_totals(
    sources: Sequence[SourceInfo], samples: Sequence[PowerSample], system: System, window: Window
) -> tuple[tuple[PowerTotal, ...], dict[str, float]]:
    """Mean power of every scope over a window, and the limits of the scopes' devices; raises PowerFault."""
    placed = place_devices(sources, system)
    scopes = scope_devices(placed, system)
    devices = {device.uid: device for source in placed for device in source.devices}
    limits_w: dict[str, float] = {}
    for scope, found in scopes.items():
        limits = [devices[uid].limit_w for uid in found.devices]
        known = [limit_w for limit_w in limits if limit_w is not None]
        if known and len(known) == len(limits):
            limits_w[scope] = sum(known)
    return scope_totals(placed, samples, scopes, start_ns=window.start_ns, end_ns=window.end_ns), limits_w


def judge_idle(folder: RunFolder, inputs: RunInputs, meters: Sequence[AddedMeter]) -> IdlePower | None:
    """Idle power before and after the run, from its files; None where none was read."""
    system = system_from_json(inputs.system)
    before, after = (_idle_reading(folder, moment, system, meters) for moment in MOMENTS)
    return idle_power(before, after)


def _idle_reading(
    folder: RunFolder, moment: Moment, system: System, meters: Sequence[AddedMeter]
) -> IdleReading | None:
    found = folder.idle(moment)
    if found is None:
        return None
    facts = found.facts
    later = [sample for meter in meters for sample in meter.cut(zero_unix_us=facts.zero_unix_us, end_ns=facts.end_ns)]
    sources = (*facts.power_sources, *meter_sources(meters))
    power, _ = power_totals(sources, (*found.samples, *later), system, facts.window)
    return idle_reading(found, power)


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
    inputs, plan, meters = folder.inputs(), folder.plan(), folder.meters()
    numbers = folder.trial_numbers()
    return [judge_trial(read_trial(folder.trial_path(number)), inputs, plan, meters) for number in numbers]


def file_digests(folder: RunFolder) -> dict[str, str]:
    """sha256 of every file that the score rests on, by its path in the folder."""
    paths = [folder.inputs_path, folder.plan_path, folder.canary_path]
    for number in folder.trial_numbers():
        paths += [folder.trial_path(number) / name for name in (FACTS, RECORDS, POWER, SERVER)]
    for moment in MOMENTS:
        paths += [folder.idle_path(moment) / name for name in (idle.FACTS, POWER, SERVER)]
    for number in folder.meter_numbers():
        paths += [folder.meter_path(number) / name for name in (added_meter.FACTS, POWER)]
        paths.append(folder.former_score_path(number))
    return {str(path.relative_to(folder.path)): file_sha256(path) for path in paths if path.is_file()}


def score_json(folder: RunFolder, inputs: RunInputs, plan: PlanFile, judged: Sequence[Judged]) -> dict[str, Any]:
    """The score as plain JSON values, from judged trials and what else stands in the folder."""
    system = system_from_json(inputs.system)
    meters = folder.meters()
    idle_found = judge_idle(folder, inputs, meters)
    found = results(inputs, system, judged, finite=plan.once, idle=idle_found)
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
        "curve": curve(system, judged, finite=plan.once),
        "canary": canary_json,
        "labels": labels(inputs, plan, system, judged, found, canary_json, idle_found),
        "system": inputs.system,
        "undisclosed": list(system.undisclosed),
        "probe": inputs.probe,
        "client_limit": inputs.client_limit,
        "workers": inputs.workers,
        "power": list(inputs.power),
        "idle": _idle_json(inputs, idle_found),
        "meters": [_meter_json(meter) for meter in meters],
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
    del value["unmet"], value["limits_w"]
    value["protocol_unmet"] = list(dict.fromkeys(rule for unmet in item.unmet for rule in unmet))
    for row, total in zip(value["power"], item.power, strict=True):
        row |= _power_json(total) | {"limit_w": item.limits_w.get(total.scope)}
    time = item.measure.agent_time
    value["measure"]["agent_time"]["explained"] = time.explained
    value["measure"]["work"]["output_shortfall"] = item.measure.work.output_shortfall
    return value


def _power_json(total: PowerTotal) -> dict[str, Any]:
    """What stands beside a total's own fields."""
    return {"basis": "measured" if total.measured else "declared"}


def _idle_json(inputs: RunInputs, found: IdlePower | None) -> dict[str, Any] | None:
    if found is None:
        return None
    value: dict[str, Any] = msgspec.to_builtins(found)
    for moment in MOMENTS:
        reading: IdleReading | None = getattr(found, moment)
        for row, total in zip((value[moment] or {}).get("power", ()), reading.power if reading else (), strict=True):
            row |= _power_json(total)
    return {"asked_s": inputs.idle_s, **value}


def _meter_json(meter: AddedMeter) -> dict[str, Any]:
    facts = meter.facts
    return {
        "number": facts.number,
        "source": msgspec.to_builtins(facts.source),
        "offset_s": facts.offset_s,
        "file_sha256": facts.file_sha256,
        "samples": len(meter.samples),
    }


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

"""From a run's folder to its score: a pure function over files, so that `verify` can do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from curate.manifest import file_sha256
from replay.interval import Interval, cluster_bootstrap
from replay.measure import Measure, judge, measure
from replay.plan import DelayPolicy, PlanFile
from replay.power.energy import PowerTotal, total_power
from replay.protocol import Protocol
from replay.runfolder import RunFault, RunFolder, RunInputs
from replay.search import Done, Level, next_step
from replay.slo import Limits, Measured, slo_from_json, unmet_rules
from replay.system import System, system_from_json
from replay.trial import FACTS, POWER, RECORDS, Trial, TrialFacts, read_trial

LAG_SHARE = 0.02  # of the first-token limit: how late the client's 99th percentile may be in any 5 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One trial with its numbers."""

    trial: int
    agents: int
    stop_reason: str
    measure: Measure
    power: tuple[PowerTotal, ...]
    interval: Interval | None
    measured: Measured
    protocol_unmet: tuple[str, ...]  # of the service level's own protocol

    @property
    def level(self) -> Level:
        return Level(agents=self.agents, verdict=self.measure.verdict)


def judge_trial(trial: Trial, inputs: RunInputs, plan: PlanFile) -> Judged:
    """Measures a trial, integrates its power over the same window, and holds it against its protocol."""
    facts = trial.facts
    slo = slo_from_json(inputs.slo) if inputs.slo is not None else None
    limits = slo.limits if slo is not None else None
    numbers = measure(
        trial.records,
        facts.window,
        agents=facts.agents,
        limits=limits,
        exact_length=plan.length.mode == "exact",
        longest_delay_s=facts.longest_delay_s,
        client_faults=client_faults(facts, limits),
        finite=facts.finite,
    )
    done = measured(facts)
    if numbers.verdict == "met" and not facts.finite:
        # A level that misses a limit has failed however short it was measured; one that holds must have been held.
        short = unmet_rules(facts.protocol, done)
        if short:
            reasons = tuple(reason.replace("the preset", "its protocol") for reason in short)
            numbers = replace(numbers, verdict="invalid", verdict_if_undecided_failed="invalid", reasons=reasons)
    start_ns, end_ns = facts.window.start_ns, facts.window.end_ns
    power = tuple(
        total_power(source, trial.samples, start_ns=start_ns, end_ns=end_ns, period_s=facts.power_period_s)
        for source in facts.power_sources
    )
    interval = None
    if limits is not None and numbers.verdict == "met":
        interval = cluster_bootstrap(judge(trial.records, facts.window, limits), limits, seed=plan.seed)
    return Judged(
        trial=facts.trial,
        agents=facts.agents,
        stop_reason=facts.stop_reason,
        measure=numbers,
        power=power,
        interval=interval,
        measured=done,
        protocol_unmet=unmet_rules(slo.protocol, done) if slo is not None else (),
    )


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


def client_faults(facts: TrialFacts, limits: Limits | None) -> tuple[str, ...]:
    """Why the client's own numbers may not be believed: it was late, or it was stopped."""
    faults = []
    if facts.stop_reason == "interrupted":
        faults.append("the trial was interrupted")
    if limits is None:
        return tuple(faults)
    allowed_ms = 1000 * LAG_SHARE * limits.p95_ttft_s
    for what, name in (("loop", "loop_lag_p99_ms"), ("dispatch", "dispatch_lag_p99_ms")):
        late = [getattr(window, name) for window in facts.health.windows]
        late = [value for value in late if value is not None and value > allowed_ms]
        if late:
            faults.append(
                f"the client was the bottleneck: its {what} lag reached {max(late):.0f} ms (99th percentile of 5 s; "
                f"{allowed_ms:.0f} ms are allowed) in {len(late)} of {len(facts.health.windows)} windows; "
                "give it a core of its own"
            )
    return tuple(faults)


def protocol_maximum(protocol: Protocol) -> int:
    """The most agents whose ramp still leaves the shortest measurement inside the longest phase; at least 1."""
    left_s = protocol.max_phase_s - protocol.settle_s - protocol.min_measure_s
    return max(1, 1 + int(max(0.0, left_s) * protocol.ramp_per_s))


def judge_run(folder: RunFolder) -> dict[str, Any]:
    """The contents of `score.json`, from the run's other files. Raises RunFault or TrialFault for what is missing."""
    inputs, plan = folder.inputs(), folder.plan()
    numbers = folder.trial_numbers()
    judged = [judge_trial(read_trial(folder.trial_path(number)), inputs, plan) for number in numbers]
    return score_json(inputs, plan, judged, file_digests(folder))


def file_digests(folder: RunFolder) -> dict[str, str]:
    """sha256 of every file that the score rests on, by its path in the folder."""
    paths = [folder.inputs_path, folder.plan_path]
    for number in folder.trial_numbers():
        paths += [folder.trial_path(number) / name for name in (FACTS, RECORDS, POWER)]
    return {str(path.relative_to(folder.path)): file_sha256(path) for path in paths if path.is_file()}


def score_json(inputs: RunInputs, plan: PlanFile, judged: Sequence[Judged], files: Mapping[str, str]) -> dict[str, Any]:
    """The score as plain JSON values."""
    system = system_from_json(inputs.system)
    winner, outcome = _winner(inputs, judged)
    score: dict[str, Any] = {
        "score_version": 1,
        "methodology_version": inputs.methodology_version,
        "agentdyno_version": inputs.agentdyno_version,
        "kind": inputs.kind,
        "class": "screen",
        "started_unix_us": inputs.started_unix_us,
        "endpoint": {"url": inputs.url, "model": inputs.model},
        "slo": inputs.slo,
        **outcome,
        "winning_trial": winner.trial if winner else None,
        "agents_goodput": _goodput(inputs, winner),
        "interval": msgspec.to_builtins(winner.interval) if winner and winner.interval else None,
        "interval_of_agents": None,
        "interval_of_agents_why_not": "class screen runs one trial per level; an interval of the number of agents "
        "needs confirmation trials around the answer",
        "protocol": msgspec.to_builtins(inputs.protocol),
        "protocol_unmet": list(winner.protocol_unmet) if winner else [],
        "power": [_power_json(total) for total in winner.power] if winner else [],
        # Without limits that are held, or where agents ran out of work, a number of agents is only what was asked for.
        "denominators": _denominators(system, winner) if winner and inputs.slo and not plan.once else [],
        "policies": {
            "delay": plan.delay_policy_id,
            "length": msgspec.to_builtins(plan.length),
            "context": msgspec.to_builtins(plan.context),
            "isolation": plan.isolation,
            "temperature": plan.temperature,
        },
        "labels": labels(inputs, plan, system, winner),
        "system": inputs.system,
        "undisclosed": list(system.undisclosed),
        "dataset_digest": plan.dataset_digest,
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
        "probe": inputs.probe,
        "trials": [_trial_json(item) for item in judged],
        "files": dict(files),
    }
    return score


def _winner(inputs: RunInputs, judged: Sequence[Judged]) -> tuple[Judged | None, dict[str, Any]]:
    if inputs.kind == "run":
        only = judged[0] if judged else None
        return only, {
            "agents": only.agents if only else None,
            "verdict": only.measure.verdict if only else "invalid",
            "reasons": list(only.measure.reasons) if only else ["no trial was run"],
            "search": None,
        }
    history = [item.level for item in judged]
    end = next_step(history, start=inputs.start_agents, maximum=inputs.maximum_agents)
    path = [
        {
            "trial": item.trial,
            "agents": item.agents,
            "verdict": item.measure.verdict,
            "reasons": list(item.measure.reasons),
        }
        for item in judged
    ]
    if not isinstance(end, Done):
        return None, {
            "agents": None,
            "verdict": "invalid",
            "reasons": [f"the search is not over: {end.agents} agents come next"],
            "search": {"reason": "unfinished", "path": path},
        }
    winner = next((item for item in judged if item.agents == end.agents and item.measure.verdict == "met"), None)
    reasons = {
        "bracketed": [] if winner else ["not even one agent holds both limits"],
        "maximum": [
            f"the search was ended at {end.agents} agents, its maximum ({inputs.maximum_why}): it may hold more"
        ],
        "invalid": [
            f"the search was ended: {history[-1].agents} agents could not be measured twice "
            f"({'; '.join(judged[-1].measure.reasons)})"
        ],
    }[end.reason]
    verdict = "invalid" if end.reason == "invalid" else "met" if winner else "missed"
    return winner, {
        "agents": end.agents if winner or end.reason == "bracketed" else None,
        "verdict": verdict,
        "reasons": reasons,
        "search": {
            "reason": end.reason,
            "start": inputs.start_agents,
            "maximum": inputs.maximum_agents,
            "path": path,
        },
    }


def _goodput(inputs: RunInputs, winner: Judged | None) -> int | None:
    return winner.measure.goodput_agents if winner is not None and inputs.slo is not None else None


def _denominators(system: System, winner: Judged) -> list[dict[str, Any]]:
    """Every ratio that has a denominator, each with what that is and whether it was measured or stated."""
    if winner.measure.verdict != "met":
        return []
    agents, goodput = winner.agents, winner.measure.goodput_agents
    rows: list[dict[str, Any]] = []
    if system.accelerator_count:
        cpus = all(item.kind == "cpu" for item in system.accelerators)
        rows.append(
            {
                "per": "processor" if cpus else "accelerator",
                "scope": "all of the deployment, as the system file lists them",
                "basis": "declared",
                "source": "system file",
                "denominator": system.accelerator_count,
                "unit": "processors" if cpus else "accelerators",
                "agents": agents / system.accelerator_count,
                "agents_goodput": goodput / system.accelerator_count,
            }
        )
    for total in winner.power:
        if not total.valid or not total.power_w:
            continue
        upper_w = total.power_w + (total.power_u_w or 0.0)
        rows.append(
            {
                "per": "megawatt",
                "scope": _SCOPES[total.domain],
                "basis": "measured" if total.measured else "declared",
                "source": total.source,
                "denominator": total.power_w,
                "unit": "W",
                "agents": 1e6 * agents / total.power_w,
                "agents_goodput": 1e6 * goodput / total.power_w,
                "agents_at_upper_power": 1e6 * agents / upper_w,
                "watts_per_agent": total.power_w / agents,
            }
        )
    return rows


_SCOPES = {
    "accelerator": "accelerators only, as their own sensors report them: no CPU, network, cooling or conversion",
    "cpu_package": "CPU packages only: no accelerator, no network, no cooling, no conversion",
    "declared": "a nameplate that the user stated",
}


def labels(inputs: RunInputs, plan: PlanFile, system: System, winner: Judged | None) -> list[str]:
    """What must stand beside the number, because each changes what it means."""
    found = ["class screen: one trial per level, no interval of the number of agents, nothing certified"]
    if inputs.slo is not None:
        found.append(inputs.slo["note"])
    if plan.once:
        found.append(
            "played once: agents end one by one, so their number was not sustained: "
            "nothing is given per accelerator or per megawatt"
        )
    if inputs.quick:
        found.append("quick protocol: far shorter than the preset asks")
    if winner is not None and winner.protocol_unmet:
        found.append(f"{len(winner.protocol_unmet)} rules of the preset's protocol were not met")
    if not system.accelerators:
        found.append("accelerators undisclosed: nothing is given per accelerator")
    elif all(item.kind == "cpu" for item in system.accelerators):
        found.append("CPU engine: no accelerator was involved")
    if system.weights == "made-up":
        found.append("made-up weights: the model knows nothing; speculation and expert routing are distorted")
    elif system.weights is None:
        found.append("weights undisclosed")
    synthetic = sum(session.prompts == "token_ids" for session in plan.sessions)
    if synthetic:
        found.append(
            f"synthetic text in {synthetic} of {len(plan.sessions)} sessions: prefixes are shared as recorded, "
            "but speculation and expert routing are distorted"
        )
    if plan.context.scale != 1:
        found.append(f"contexts scaled by {plan.context.scale:g}")
    if plan.left_out:
        first = plan.left_out[0]
        found.append(
            f"{len(plan.left_out)} of {len(plan.left_out) + len(plan.sessions)} sessions left out; "
            f"{first.session_id}: {first.reason}"
        )
    if plan.length.mode == "exact" and inputs.probe["ignore_eos"] == "unforced":
        found.append("ignore_eos: lengths came as asked, but nothing could make this server stop early without it")
    if plan.length.mode == "free":
        found.append("output length free: the model decides how much work it does")
    if plan.length.scale != 1:
        found.append(f"output lengths scaled by {plan.length.scale:g}")
    if plan.length.cap is not None:
        found.append(f"outputs capped at {plan.length.cap} tokens")
    if plan.delay != DelayPolicy():
        found.append(f"delays: {plan.delay_policy_id} instead of {DelayPolicy().policy_id}")
    unsplit = sum(bool(session.delay_us.get("unsplit")) for session in plan.sessions)
    if unsplit:
        found.append(
            f"unsplit gaps in {unsplit} of {len(plan.sessions)} sessions: their source does not tell tool from human "
            f"time; both together are waited up to {plan.delay.unsplit_cap_s:g} s"
        )
    if plan.isolation != "play":
        found.append(f"prefix cache isolated by {plan.isolation}, not by play")
    if not inputs.power:
        found.append("no power source: nothing is given per megawatt")
    found += [f"power is declared ({power}), not measured" for power in inputs.power if power.startswith("declared")]
    for total in winner.power if winner else ():
        found += [f"no {total.source} power: {reason}" for reason in total.reasons[:3]]
        for device in total.devices:
            found += [f"{device.device}: {flag}" for flag in device.flags if flag != "declared"]
    if winner is not None and winner.measure.verdict_if_undecided_failed != winner.measure.verdict:
        found.append(
            f"{winner.measure.undecided} requests were waiting, within the limit, when the phase ended: "
            "had all of them failed, the level would have too"
        )
    return found


def _power_json(total: PowerTotal) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(total)
    value["basis"] = "measured" if total.measured else "declared"
    return value


def _trial_json(item: Judged) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(item)
    value["power"] = [_power_json(total) for total in item.power]
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
    except msgspec.DecodeError as error:
        raise RunFault(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunFault(f"{path} is not a score of agentdyno")
    return value

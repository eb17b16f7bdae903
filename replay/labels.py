"""What must stand beside a number, because each changes what it means: pure words from a run's files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from replay.idle import IdlePower, load_flags
from replay.nodes import provisioned_refusal
from replay.plan import DelayPolicy, PlanFile
from replay.power.source import SourceInfo
from replay.provisioned import read_provisioned
from replay.system import System

if TYPE_CHECKING:
    from replay.judge import Judged
    from replay.runfolder import RunInputs

CLASS_WORDS = {
    "screen": "class screen: short trials; nothing is certified",
    "standard": "class standard: trials of 300 s, shorter than the record class asks",
    "record": "class record: the service level's own protocol",
}


def labels(
    inputs: RunInputs,
    plan: PlanFile,
    system: System,
    judged: Sequence[Judged],
    results: Sequence[dict[str, Any]],
    canary: dict[str, Any] | None,
    idle: IdlePower | None = None,
) -> list[str]:
    """All labels of a score, the weightiest first."""
    shown = {result["reference_trial"] for result in results}
    trials = [item for item in judged if item.trial in shown] or list(judged)[-1:]
    fitted = {
        number
        for result in results
        if result["search"] is not None and result["search"]["fit"] is not None
        for number in result["search"]["fit"]["trials"]
    }
    basis = [item for item in judged if item.trial in fitted or item in trials]  # what the numbers rest on
    found = [
        *(f"the quality canary shifted: {reason}" for reason in (canary or {}).get("reasons", ())),
        *_of_the_class(inputs, plan, results),
        *_of_the_system(plan, system),
        *_of_the_work(inputs, plan),
        *_of_the_client(inputs, judged),
        *_of_the_power(inputs, system, basis, results),
        *(idle.words if idle is not None else ()),
        *load_flags(basis, idle),
        *_of_the_trials(trials, basis),
    ]
    return list(dict.fromkeys(found))


def _of_the_class(inputs: RunInputs, plan: PlanFile, results: Sequence[dict[str, Any]]) -> Iterator[str]:
    if inputs.run_class is not None:
        yield CLASS_WORDS[inputs.run_class]
    yield from dict.fromkeys(slo["note"] for slo in inputs.slos)
    if plan.once:
        yield (
            "played once: agents end one by one, so their number was not sustained: "
            "nothing is given per accelerator or per megawatt"
        )
    else:
        yield (
            "a trajectory longer than the measured window counts with the requests that it sent inside the window; "
            "its job time is not known"
        )
    if inputs.quick:
        yield "quick protocol: far shorter than the preset asks"
    for result in results:
        if result["protocol_unmet"]:
            unmet = len(result["protocol_unmet"])
            rules, were = ("rules", "were") if unmet > 1 else ("rule", "was")
            yield f"{unmet} {rules} of {result['slo']}'s own protocol {were} not met"
    if inputs.kind == "score" and not inputs.restarts:
        yield "the server was not restarted between trials: an interval excludes what a restart changes"


def speculates(system: System) -> bool:
    """Whether speculative decoding is in play, as far as the system file says."""
    return system.speculation is not None and system.speculation.strip().lower() not in ("none", "no", "off")


def synthetic_sessions(plan: PlanFile) -> int:
    """Sessions whose prompts are made of token ids rather than recorded text."""
    return sum(session.prompts == "token_ids" for session in plan.sessions)


def _of_the_system(plan: PlanFile, system: System) -> Iterator[str]:
    if not system.accelerators:
        yield "accelerators undisclosed: nothing is given per accelerator"
    elif all(item.kind == "cpu" for item in system.accelerators):
        yield "CPU engine: no accelerator was involved"
    idle = sum(item.count for item in system.accelerators if item.role == "idle")
    if idle:
        yield f"{idle} idle accelerators are part of the deployment and counted"
    if system.weights == "made-up":
        yield "made-up weights: the model knows nothing; speculation and expert routing are distorted"
    elif system.weights is None:
        yield "weights undisclosed"
    synthetic = synthetic_sessions(plan)
    if not synthetic:
        return
    yield f"synthetic text in {synthetic} of {len(plan.sessions)} sessions: prefixes are shared as recorded"
    if speculates(system):
        yield f"speculative decoding ({system.speculation}) on synthetic text: its acceptance is distorted"
    elif system.speculation is None:
        yield "speculation undisclosed: where it is in play, synthetic text distorts its acceptance"
    if system.moe:
        yield "a mixture of experts on synthetic text: its routing is distorted"
    elif system.moe is None:
        yield "mixture of experts undisclosed: where it is one, synthetic text distorts its routing"


def _of_the_work(inputs: RunInputs, plan: PlanFile) -> Iterator[str]:
    if plan.history == "live":
        yield "live history: the model's own answers are spliced in, so every run does other work: not comparable"
    if plan.context.scale != 1:
        yield f"contexts scaled by {plan.context.scale:g}"
    if plan.left_out:
        first = plan.left_out[0]
        yield (
            f"{len(plan.left_out)} of {len(plan.left_out) + len(plan.sessions)} sessions left out; "
            f"{first.session_id}: {first.reason}"
        )
    if plan.length.mode == "exact" and inputs.probe["ignore_eos"] == "unforced":
        yield "ignore_eos: lengths came as asked, but nothing could make this server stop early without it"
    if plan.length.mode == "free":
        yield "output length free: the model decides how much work it does"
    if plan.length.scale != 1:
        yield f"output lengths scaled by {plan.length.scale:g}"
    if plan.length.cap is not None:
        yield f"outputs capped at {plan.length.cap} tokens"
    if plan.delay_policy_id != DelayPolicy().policy_id:
        yield f"delays: {plan.delay_policy_id} instead of {DelayPolicy().policy_id}"
    unsplit = sum(bool(session.delay_us.get("unsplit")) for session in plan.sessions)
    if unsplit:
        yield (
            f"unsplit gaps in {unsplit} of {len(plan.sessions)} sessions: their source does not tell tool from human "
            "time; one rule holds for both together"
        )
    if plan.isolation != "play":
        yield f"prefix cache isolated by {plan.isolation}, not by play"
    if plan.share_head:
        yield "system prompt and tools are shared between plays"


def _of_the_client(inputs: RunInputs, judged: Sequence[Judged]) -> Iterator[str]:
    if inputs.client_limit is not None and inputs.rules is not None:
        limit, most = inputs.client_limit["agents"], max((item.agents for item in judged), default=0)
        if inputs.client_limit.get("at_least"):
            if most > limit:
                yield f"client limit: this machine was seen to drive {limit} agents of this kind; trials went to {most}"
        elif most >= limit:
            yield f"client limit: this machine drives at most {limit} agents of this kind; the search ended there"
    voided = [item for item in judged if item.measure.void_requests]
    if voided:
        named = ", ".join(str(item.trial) for item in voided[:5]) + (", …" if len(voided) > 5 else "")
        requests = sum(item.measure.void_requests for item in voided)
        yield f"the client was late in windows of trial {named}: {requests} requests are void and left out"
    if inputs.endpoint.proxy:
        yield "a proxy stands on the measured path: its time is part of every number"


def _of_the_power(
    inputs: RunInputs, system: System, trials: Sequence[Judged], results: Sequence[dict[str, Any]]
) -> Iterator[str]:
    rows = {row["id"]: row for result in results for row in result["denominators"] if row["unit"] == "W"}
    if not inputs.power and not rows:
        yield "no power source: nothing is given per megawatt"
    for power in inputs.power:
        if power.startswith("declared"):
            yield f"power is declared ({power}), not measured"
    refused: set[str] = set()  # of several trials without valid power the first says why
    for total in (total for item in trials for total in item.power):
        if total.reasons and total.scope not in refused:
            refused.add(total.scope)
            yield from (f"no {scope_words(total.scope)} power: {reason}" for reason in total.reasons[:3])
    yield from _device_flags(trials)
    yield from (words for item in trials for words in item.devices_say)
    refusal = provisioned_refusal(system)
    if refusal is not None:
        yield f"no provisioned power: {refusal}"
    yield from _provisioned_too_low(rows)
    measured = {name for name, row in rows.items() if row["basis"] == "measured"}
    if measured and not measured & {"node_or_rack", "facility_measured"}:
        yield "power of whole nodes was not measured: what feeds, cools and joins them is not in the megawatt"
    yield from _of_the_scopes(system, rows)


def _provisioned_too_low(rows: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Where a part of what the system is built to draw was seen to draw more than all of it."""
    if "provisioned" not in rows:
        return
    for name in ("node_or_rack", "module", "accelerator_engaged" if "accelerator_engaged" in rows else "accelerator"):
        row, stated_w = rows.get(name), rows["provisioned"]["denominator"]
        if row is None or row["basis"] != "measured":
            continue
        if row["denominator"] - 2 * math.hypot(row["u_gain"], row["u_rest"]) > stated_w:
            yield (
                f"provisioned power of {stated_w:.4g} W is less than the {row['denominator']:.4g} W that was measured "
                f"of {scope_words(name)}: its system_power.json is of another system"
            )
            return


def _device_flags(trials: Sequence[Judged]) -> Iterator[str]:
    """What readings were flagged with; alike ones of many devices in one label."""
    found: dict[str, dict[str, None]] = {}
    for device in (device for item in trials for total in item.power for device in total.devices):
        for flag in device.flags:
            if flag != "declared":
                found.setdefault(flag, {})[device.device] = None
    for flag, devices in found.items():
        named = list(devices)[:3]
        more = f" and {len(devices) - len(named)} more" if len(devices) > len(named) else ""
        yield f"{', '.join(named)}{more}: {flag}"


def _of_the_scopes(system: System, rows: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """What the watts of a row hold that its name does not say."""
    if "accelerator_engaged" in rows:
        yield "agents per megawatt of the accelerators that serve leaves the idle ones of the deployment out"
    if "provisioned" in rows and system.provisioned is not None:
        provisioned = read_provisioned(system.provisioned)
        if provisioned.estimated:
            yield f"provisioned power rests on MLCommons' own estimates: {', '.join(provisioned.estimated)}"
        yield from (f"provisioned power: {note}" for note in provisioned.notes)
    for name in ("facility_measured", "facility_provisioned"):
        if name in rows and rows[name]["basis"] == "declared":
            yield f"agents per megawatt of the facility rests on a stated {system.pue_kind} PUE of {system.pue:g}"
            break
    if rows and system.power_cap_w is not None:
        yield f"accelerators are capped at {system.power_cap_w:g} W each, by the system file"
    if rows:
        yield from _partial_racks(system)


def _partial_racks(system: System) -> Iterator[str]:
    """Racks of which the deployment has a part, as the system file says."""
    rack_of = {node.name: node.rack for node in system.nodes}
    placed = any(item.node is not None for item in system.accelerators)
    for rack in system.racks:
        nodes = sum(name == rack.name for name in rack_of.values())
        held = sum(
            item.count
            for item in system.accelerators
            if (rack_of.get(item.node or "") == rack.name if placed else len(system.racks) == 1)
        )
        if rack.accelerators is not None and 0 < held < rack.accelerators:
            yield f"partial rack: {held} of the {rack.accelerators} accelerators of {rack.name}"
        elif rack.nodes is not None and 0 < nodes < rack.nodes:
            yield f"partial rack: {nodes} of the {rack.nodes} nodes of {rack.name}"


def device_words(sources: Sequence[SourceInfo]) -> tuple[str, ...]:
    """What devices said of themselves when their source was opened that changes what their watts mean."""
    states = [state for info in sources for state in info.states]
    caps = Counter(
        (state.power_limit_w, state.default_limit_w)
        for state in states
        if state.power_limit_w is not None
        and state.default_limit_w is not None
        and abs(state.power_limit_w - state.default_limit_w) >= 1
    )
    found = [
        f"power limit of {limit_w:g} W on {count} device{'s' if count > 1 else ''}, {default_w:g} W by default"
        for (limit_w, default_w), count in caps.items()
    ]
    split = [state.device for state in states if state.mig]
    if split:
        found.append(
            f"{', '.join(split[:3])} split into instances (MIG): the whole device is charged, others' work too"
        )
    return tuple(found)


def scope_words(scope: str) -> str:
    """A scope's name as a reader says it."""
    return scope.replace("_", " ")


def _of_the_trials(trials: Sequence[Judged], basis: Sequence[Judged]) -> Iterator[str]:
    for item in basis:
        yield from (f"cross-warming in trial {item.trial}: {reason}" for reason in item.cross_warming)
    for item in trials:
        if any(result.undecided_matters for result in item.measure.slos):
            yield (
                f"requests were waiting, within the limit, when the phase of trial {item.trial} ended: "
                "had all of them failed, the level would have too"
            )

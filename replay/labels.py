"""What must stand beside a number, because each changes what it means: pure words from a run's files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from replay.plan import DelayPolicy, PlanFile
from replay.system import System

if TYPE_CHECKING:
    from replay.judge import Judged
    from replay.runfolder import RunInputs

CLASS_WORDS = {
    "screen": "class screen: short trials; the interval is an estimate, nothing is certified",
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
        *_of_the_power(inputs, basis),
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
            yield f"{len(result['protocol_unmet'])} rules of the protocol of {result['slo']} were not met"
    if inputs.kind == "score" and not inputs.restarts:
        yield "the server was not restarted between trials: the interval excludes what a restart changes"


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


def _of_the_power(inputs: RunInputs, trials: Sequence[Judged]) -> Iterator[str]:
    if not inputs.power:
        yield "no power source: nothing is given per megawatt"
    for power in inputs.power:
        if power.startswith("declared"):
            yield f"power is declared ({power}), not measured"
    refused: set[str] = set()  # of several trials without valid power the first says why
    for total in (total for item in trials for total in item.power):
        if total.reasons and total.source not in refused:
            refused.add(total.source)
            yield from (f"no {total.source} power: {reason}" for reason in total.reasons[:3])
        for device in total.devices:
            yield from (f"{device.device}: {flag}" for flag in device.flags if flag != "declared")


def _of_the_trials(trials: Sequence[Judged], basis: Sequence[Judged]) -> Iterator[str]:
    for item in basis:
        yield from (f"cross-warming in trial {item.trial}: {reason}" for reason in item.cross_warming)
    for item in trials:
        if any(result.undecided_matters for result in item.measure.slos):
            yield (
                f"requests were waiting, within the limit, when the phase of trial {item.trial} ended: "
                "had all of them failed, the level would have too"
            )

"""A whole run: probe the server, plan, run trials, write the score last. What was finished before is used again."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from agentdyno import __version__
from capture.trajectory import Trajectory
from curate.manifest import write_json
from replay import loop
from replay.endpoint import Endpoint, EndpointError
from replay.judge import Judged, file_digests, judge_trial, protocol_maximum, score_json
from replay.plan import ContextPolicy, DelayPolicy, Isolation, LengthPolicy, Plan, load_plan, make_plan, token_id_range
from replay.power.choice import PowerChoice
from replay.power.source import PowerSource
from replay.probe import ProbeReport, probe
from replay.protocol import Progress, Protocol
from replay.runfolder import RUN_VERSION, RunFolder, RunInputs
from replay.search import Done, next_step
from replay.slo import Slo, slo_to_json
from replay.system import System, system_to_json
from replay.trial import read_trial, run_trial

METHODOLOGY_VERSION = "0.1"  # of docs/METHODOLOGY.md, which says what a score means
MAXIMUM_AGENTS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """How recorded sessions become requests. `context.limit` is the server's where it is None and the server says."""

    seed: int = 0
    once: bool = False
    delay: DelayPolicy = dataclasses.field(default_factory=DelayPolicy)
    length: LengthPolicy = dataclasses.field(default_factory=LengthPolicy)
    context: ContextPolicy = dataclasses.field(default_factory=ContextPolicy)
    isolation: Isolation = "play"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What is asked of a run. A `score` searches from `agents`; a `run` is one trial of so many."""

    kind: Literal["score", "run"]
    endpoint: Endpoint
    dataset_digest: str
    rules: PlanRules
    slo: Slo | None
    protocol: Protocol
    quick: bool
    system: System
    power: tuple[PowerChoice, ...]
    agents: int
    maximum_agents: int | None
    out: Path
    resume: bool


class Watcher:
    """Is told what happens; does nothing by itself."""

    def say(self, text: str) -> None:
        """A sentence about the run as a whole."""

    def trial_begins(self, trial: int, agents: int, protocol: Protocol) -> None:
        """A trial starts now."""

    def progress(self, progress: Progress) -> None:
        """A few times a second while a trial runs."""

    def trial_ends(self, judged: Judged, reused: bool) -> None:
        """A trial is judged."""


def run(
    request: RunRequest, trajectories: Callable[[], Iterable[Trajectory]], watcher: Watcher | None = None
) -> dict[str, Any]:
    """Does the whole run and returns the contents of its score.json.

    Raises RunFault for the folder, PowerFault for a source, EndpointError for the server, ValueError for the plan,
    KeyboardInterrupt after Ctrl-C: the folder can then be continued.
    """
    watcher = watcher or Watcher()
    folder = RunFolder(path=request.out)
    folder.check_resumable() if request.resume else folder.check_new()
    with contextlib.ExitStack() as stack:
        sources = tuple(stack.enter_context(_opened(choice, request.system)) for choice in request.power)
        watcher.say(f"probing {request.endpoint.model} at {request.endpoint.url}")
        report = loop.run(probe(request.endpoint))
        watcher.say("planning")
        plan = _plan(request, trajectories(), report, folder)
        _check_server(request, plan, report)
        inputs = _inputs(request, plan, report)
        if request.resume:
            folder.check_same(inputs)
            inputs = folder.inputs()
        else:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_json(folder.inputs_path, inputs)
            plan.dump(folder.plan_path)
        watcher.say(expected_length(request, inputs))
        judged = _trials(request, folder, plan, inputs, sources, watcher)
    score = score_json(inputs, folder.plan(), judged, file_digests(folder))
    write_json(folder.score_path, score)
    return score


def expected_length(request: RunRequest, inputs: RunInputs) -> str:
    """How long the run may take, in one sentence."""
    protocol, agents = request.protocol, inputs.start_agents
    if request.rules.once:
        return "playing every session once"
    shortest_s = (agents - 1) / protocol.ramp_per_s + protocol.settle_s + protocol.min_measure_s
    if request.kind == "run":
        return f"one trial of about {shortest_s:,.0f} s"
    doublings = (inputs.maximum_agents // agents).bit_length()
    return (
        f"a trial takes {shortest_s:,.0f} to {protocol.max_phase_s:,.0f} s; a search from {agents} to at most "
        f"{inputs.maximum_agents} agents takes up to {2 * doublings + agents.bit_length() + 1} of them"
    )


def _trials(
    request: RunRequest,
    folder: RunFolder,
    plan: Plan,
    inputs: RunInputs,
    sources: tuple[PowerSource, ...],
    watcher: Watcher,
) -> list[Judged]:
    plan_file = folder.plan()
    judged = []
    for number in folder.trial_numbers():
        judged.append(judge_trial(read_trial(folder.trial_path(number)), inputs, plan_file))
        watcher.trial_ends(judged[-1], reused=True)
    while True:
        if request.kind == "run":
            agents = None if judged else request.agents
        else:
            step = next_step([item.level for item in judged], start=inputs.start_agents, maximum=inputs.maximum_agents)
            agents = None if isinstance(step, Done) else step.agents
        if agents is None:
            return judged
        number = len(judged) + 1
        watcher.trial_begins(number, agents, request.protocol)
        run_trial(
            plan,
            request.endpoint,
            trial=number,
            agents=agents,
            protocol=request.protocol,
            sources=sources,
            folder=folder.trial_path(number),
            on_progress=watcher.progress,
            keep_interrupted=request.kind == "run",
        )
        # Judged from its files, as `verify` will.
        judged.append(judge_trial(read_trial(folder.trial_path(number)), inputs, plan_file))
        watcher.trial_ends(judged[-1], reused=False)


def _plan(request: RunRequest, trajectories: Iterable[Trajectory], report: ProbeReport, folder: RunFolder) -> Plan:
    rules = request.rules
    context = rules.context
    if context.limit is None and report.context_tokens is not None:
        context = dataclasses.replace(context, limit=report.context_tokens)
    if report.text_tokens_x is not None:
        context = dataclasses.replace(context, text_tokens_x=text_bound(report.text_tokens_x))
    return make_plan(
        trajectories,
        dataset_digest=request.dataset_digest,
        seed=rules.seed,
        delay=rules.delay,
        length=rules.length,
        context=context,
        isolation=rules.isolation,
        once=rules.once,
        token_ids=token_id_range(report.vocabulary_tokens),
        nonce=load_plan(folder.plan_path).nonce if request.resume else None,
    )


def text_bound(ratio: float) -> float:
    """How many tokens a server may make of one counted token, from what it made on average.

    Texts spread about the average the more, the less alike the two tokenizers are: twice the excess held for every
    request of agentperf-local on a tokenizer with a ratio of 1.38 (1.28 to 1.70).
    """
    return max(ratio, 2 * ratio - 1)


def _inputs(request: RunRequest, plan: Plan, report: ProbeReport) -> RunInputs:
    bound, why = protocol_maximum(request.protocol), f"the longest phase of the protocol {request.protocol.name}"
    if request.maximum_agents is not None and request.maximum_agents <= bound:
        bound, why = request.maximum_agents, "as asked"
    if bound > MAXIMUM_AGENTS:
        bound, why = MAXIMUM_AGENTS, "the most that one client drives"
    return RunInputs(
        version=RUN_VERSION,
        methodology_version=METHODOLOGY_VERSION,
        agentdyno_version=__version__,
        kind=request.kind,
        started_unix_us=time.time_ns() // 1000,
        url=request.endpoint.url,
        model=request.endpoint.model,
        dataset_digest=request.dataset_digest,
        plan_digest=plan.summary().plan_digest,
        slo=slo_to_json(request.slo) if request.slo is not None else None,
        protocol=request.protocol,
        quick=request.quick,
        system=system_to_json(request.system),
        power=tuple(choice.text for choice in request.power),
        start_agents=request.agents if request.kind == "run" else min(request.agents, bound),
        maximum_agents=request.agents if request.kind == "run" else bound,
        maximum_why=why,
        probe=msgspec.to_builtins(report),
    )


@contextlib.contextmanager
def _opened(choice: PowerChoice, system: System) -> Iterator[PowerSource]:
    source = choice.open(uuids=system.gpu_uuids, accelerators=system.gpu_count)
    try:
        yield source
    finally:
        source.close()


def _check_server(request: RunRequest, plan: Plan, report: ProbeReport) -> None:
    """Raises EndpointError where the server would not do the plan's work."""
    problem = report.problem(
        exact_length=request.rules.length.mode == "exact",
        token_prompts=any(script.prompts == "token_ids" for script in plan.scripts.values()),
    )
    if problem is not None:
        raise EndpointError(problem)

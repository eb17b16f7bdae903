"""A whole run: probe the server, plan, run trials, write the score last. What was finished before is used again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from agentdyno import __version__
from capture.trajectory import Trajectory
from curate.manifest import write_json
from replay.against import check_same_plan
from replay.driver import Driver, LiveDriver
from replay.endpoint import EndpointError
from replay.idle import Moment
from replay.judge import Judged, judge_trial, protocol_maximum, score_json
from replay.plan import Plan, PlanFile, Turn, load_plan, make_plan, token_id_range
from replay.probe import ProbeReport
from replay.protocol import Progress, Protocol
from replay.request import RunRequest
from replay.results import next_order
from replay.runfolder import RUN_VERSION, CanaryPair, EndpointInputs, RunFolder, RunInputs
from replay.search import SearchRules
from replay.slo import slo_to_json
from replay.system import system_to_json
from replay.trial import TrialOrder, read_trial

METHODOLOGY_VERSION = "1.1"  # of docs/METHODOLOGY.md, which says what a score means
MAXIMUM_AGENTS = 65_536
SCREEN_S = 1800.0  # what a screen is meant to take at most
SELFTEST_MOST = 16_384  # agents that the self-test can try
BYTES_PER_TOKEN = 4  # of prompt text, to try the client with; an order of magnitude is enough


class Watcher:
    """Is told what happens; does nothing by itself."""

    def say(self, text: str) -> None:
        """A sentence about the run as a whole."""

    def run_begins(self, inputs: RunInputs) -> None:
        """What was asked is settled; trials follow, or those that were run before."""

    def trial_begins(self, order: TrialOrder, protocol: Protocol) -> None:
        """A trial starts now."""

    def progress(self, progress: Progress) -> None:
        """A few times a second while a trial runs."""

    def trial_ends(self, judged: Judged, reused: bool) -> None:
        """A trial is judged."""


def run(
    request: RunRequest,
    trajectories: Callable[[], Iterable[Trajectory]],
    watcher: Watcher | None = None,
    driver: Driver | None = None,
) -> dict[str, Any]:
    """Does the whole run and returns the contents of its score.json; without `driver` on the real server.

    Raises RunFault for the folder, PowerFault for a source, EndpointError for the server, ValueError for the plan,
    EnvironmentFault for a restart, KeyboardInterrupt after Ctrl-C: the folder can then be continued.
    """
    watcher = watcher or Watcher()
    folder = RunFolder(path=request.out)
    begun = request.resume and folder.check_resumable()
    if not begun:
        folder.check_new()
    with contextlib.ExitStack() as stack:
        driver = driver or stack.enter_context(LiveDriver(request, watcher.say))
        watcher.say(f"probing {request.endpoint.model} at {request.endpoint.url}")
        report = driver.probe()
        watcher.say("planning")
        plan = _plan(request, trajectories(), report, folder if begun else None)
        _check_server(request, plan, report)
        planned = plan.summary()
        if begun:
            folder.check_same(_inputs(request, planned, report, None))
        else:
            limit = _client_limit(request, plan, driver, watcher)
            folder.begin(_inputs(request, planned, report, limit), planned)
        inputs = folder.inputs()
        watcher.say(expected_length(inputs))
        watcher.run_begins(inputs)
        canary = folder.canary()
        if canary is None and request.kind == "score" and (before := driver.canary()) is not None:
            canary = CanaryPair(before=before, after=None)
            write_json(folder.canary_path, canary)
        _idle("before", folder, inputs, driver, watcher)
        judged = _trials(request, folder, plan, inputs, driver, watcher)
        if canary is not None and canary.after is None:
            write_json(folder.canary_path, dataclasses.replace(canary, after=driver.canary()))
        _idle("after", folder, inputs, driver, watcher)
    score = score_json(folder, inputs, folder.plan(), judged)
    write_json(folder.score_path, score)
    return score


def _idle(moment: Moment, folder: RunFolder, inputs: RunInputs, driver: Driver, watcher: Watcher) -> None:
    """Reads what the devices draw while nothing is asked of them; of a continued run what was read before stands."""
    if inputs.idle_s > 0 and not folder.idle_path(moment).exists():
        watcher.say(f"reading idle power {moment} the trials for {inputs.idle_s:g} s")
        driver.idle(folder.idle_path(moment), seconds=inputs.idle_s)


def expected_length(inputs: RunInputs) -> str:
    """How long the run may take, in one sentence."""
    protocol, rules = inputs.protocol, inputs.rules
    if protocol.name == "once":
        return "playing every session once"
    if rules is None:
        return f"one trial of about {protocol.shortest_s(inputs.start_agents):,.0f} s"
    fewest, most = search_trials(rules, len(inputs.slos))
    shortest_s, longest_s = protocol.shortest_s(rules.start), protocol.max_phase_s
    text = (
        f"a trial takes {shortest_s:,.0f} to {longest_s:,.0f} s; a search from {rules.start} to at most "
        f"{rules.maximum} agents takes {fewest} to {most} of them: {_duration(fewest * shortest_s)} at least, "
        f"{_duration(most * longest_s)} at most"
    )
    if inputs.idle_s > 0:
        text += f"; idle power is read for {_duration(inputs.idle_s)} before and after"
    if inputs.run_class == "screen" and fewest * shortest_s > SCREEN_S:
        text += f"; that is more than the {SCREEN_S / 60:.0f} min of a screen: name fewer service levels at once"
    return text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def search_trials(rules: SearchRules, levels: int) -> tuple[int, int]:
    """How many trials a search of so many service levels takes, at least and at most."""
    fewest = 3 + levels * (rules.confirmations + rules.certify)
    doublings = math.ceil(math.log2(rules.maximum / rules.start))
    scouting = 1 + max(doublings, rules.start.bit_length()) + 4 * levels
    return fewest, scouting + levels * (rules.most_confirmations + 2 * rules.certify)


def _trials(
    request: RunRequest, folder: RunFolder, plan: Plan, inputs: RunInputs, driver: Driver, watcher: Watcher
) -> list[Judged]:
    plan_file = folder.plan()
    judged = []
    for number in folder.trial_numbers():
        judged.append(judge_trial(read_trial(folder.trial_path(number)), inputs, plan_file))
        watcher.trial_ends(judged[-1], reused=True)
    while (order := next_order(inputs, judged)) is not None:
        # Around the answer every trial gets a fresh server, so that the interval holds what a restart changes.
        restarted = None
        if inputs.restarts and order.purpose in ("confirm", "holdout"):
            watcher.say("restarting the server")
            restarted = driver.restart()
        if folder.idle_path("after").exists():  # read before a trial that was taken out to be run again
            shutil.rmtree(folder.idle_path("after"))
        watcher.trial_begins(order, request.protocol.for_agents(order.agents))
        driver.trial(
            plan,
            order,
            folder.trial_path(order.trial),
            protocol=request.protocol,
            restart=restarted,
            on_progress=watcher.progress,
        )
        # Judged from its files, as `verify` will.
        judged.append(judge_trial(read_trial(folder.trial_path(order.trial)), inputs, plan_file))
        watcher.trial_ends(judged[-1], reused=False)
    return judged


def _plan(
    request: RunRequest, trajectories: Iterable[Trajectory], report: ProbeReport, begun: RunFolder | None
) -> Plan:
    rules = request.rules
    context, token_ids, nonce = rules.context, rules.token_ids or token_id_range(report.vocabulary_tokens), None
    if begun is not None:  # what the server said when the run began holds for all of it
        stands = load_plan(begun.plan_path)
        token_ids, nonce = stands.token_ids, stands.nonce
        context = dataclasses.replace(
            context, limit=context.limit or stands.context.limit, text_tokens_x=stands.context.text_tokens_x
        )
    elif request.against is None:
        if context.limit is None and report.context_tokens is not None:
            context = dataclasses.replace(context, limit=report.context_tokens)
        if report.text_tokens_x is not None:
            context = dataclasses.replace(context, text_tokens_x=text_bound(report.text_tokens_x))
    plan = make_plan(
        trajectories,
        dataset_digest=request.dataset_digest,
        seed=rules.seed,
        delay=rules.delay,
        length=rules.length,
        context=context,
        isolation=rules.isolation,
        share_head=rules.share_head,
        history=rules.history,
        retries=rules.retries,
        refused_fields=report.refused_fields,
        once=rules.once,
        token_ids=token_ids,
        nonce=nonce,
    )
    if request.against is not None:
        check_same_plan(plan, request.against, report.context_tokens)
    return plan


def text_bound(ratio: float) -> float:
    """How many tokens a server may make of one counted token, from what it made on average.

    Texts spread about the average the more, the less alike the two tokenizers are: twice the excess held for every
    request of agentperf-local on a tokenizer with a ratio of 1.38 (1.28 to 1.70).
    """
    return max(ratio, 2 * ratio - 1)


def _client_limit(request: RunRequest, plan: Plan, driver: Driver, watcher: Watcher) -> dict[str, Any] | None:
    """How many agents this machine can drive, as the user says or as it was tried at the fastest speed asked for."""
    if request.kind != "score":
        return None
    if request.client_limit is not None:
        return {"agents": request.client_limit, "basis": "stated"}
    speeds = [term.limit for slo in request.slos for term in slo.terms if term.quantity == "output_tok_s"]
    tokens = [turn.planned_prompt_tokens or turn.estimated_prompt_tokens or 0 for turn in _turns(plan)]
    most, _ = _maximum(request, None)
    watcher.say("trying how many agents this machine can drive")
    found = driver.client_limit(
        tok_s=max(speeds, default=50.0),
        prompt_bytes=BYTES_PER_TOKEN * sum(tokens) // max(1, len(tokens)),
        most=min(most, SELFTEST_MOST),
    )
    if found is None:
        return None
    watcher.say(found.sentence())
    return {**msgspec.to_builtins(found), "basis": "tried"}


def _turns(plan: Plan) -> Iterator[Turn]:
    return (turn for script in plan.scripts.values() for turn in script.turns)


def _inputs(request: RunRequest, plan: PlanFile, report: ProbeReport, limit: dict[str, Any] | None) -> RunInputs:
    endpoint = request.endpoint
    bound, why = _maximum(request, limit)
    confirmation = request.confirmation
    return RunInputs(
        version=RUN_VERSION,
        methodology_version=METHODOLOGY_VERSION,
        agentdyno_version=__version__,
        kind=request.kind,
        run_class=request.run_class,
        quick=request.quick,
        started_unix_us=time.time_ns() // 1000,
        endpoint=EndpointInputs(
            urls=endpoint.urls,
            model=endpoint.model,
            affinity_headers=endpoint.affinity_headers,
            proxy=endpoint.proxy is not None,
        ),
        workers=request.workers,
        restarts=request.restart_words is not None,
        dataset_digest=request.dataset_digest,
        dataset_match=request.dataset_match,
        plan_digest=plan.plan_digest,
        slos=tuple(slo_to_json(slo) for slo in request.slos),
        protocol=request.protocol,
        start_agents=request.agents,
        maximum_agents=request.maximum_agents,
        rules=None
        if request.kind == "run"
        else SearchRules(
            start=min(request.agents, bound),
            maximum=bound,
            confirmations=confirmation.confirmations,
            most_confirmations=confirmation.most_confirmations,
            certify=confirmation.certify,
            spread=confirmation.spread,
            seed=request.rules.seed,
            order="forward" if request.against is None else request.against.order,
        ),
        maximum_why=why,
        against=request.against,
        system=system_to_json(request.system),
        power=tuple(choice.text for choice in request.power),
        idle_s=request.idle_seconds,
        probe=msgspec.to_builtins(report),
        client_limit=limit,
    )


def _maximum(request: RunRequest, limit: dict[str, Any] | None) -> tuple[int, str]:
    """The most agents that the search may try, and why not more: the smallest of all bounds."""
    bounds = [(MAXIMUM_AGENTS, "the most that one client drives")]
    ramp = protocol_maximum(request.protocol)
    if ramp is not None:
        bounds.append((ramp, f"the longest phase of the protocol {request.protocol.name}"))
    if limit is not None and not limit.get("at_least"):
        bounds.append((max(1, limit["agents"]), f"what this machine can drive, {limit['basis']}"))
    if request.maximum_agents is not None:
        bounds.append((request.maximum_agents, "as asked"))
    return min(bounds, key=lambda bound: bound[0])


def _check_server(request: RunRequest, plan: Plan, report: ProbeReport) -> None:
    """Raises EndpointError where the server would not do the plan's work."""
    problem = report.problem(
        exact_length=request.rules.length.mode == "exact",
        token_prompts=any(script.prompts == "token_ids" for script in plan.scripts.values()),
    )
    if problem is not None:
        raise EndpointError(problem)

"""A run that is made to be compared with another one: the same rules and seed, its confirmation trials in reverse."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from replay.judge import read_score
from replay.request import PlanRules, RunRequest
from replay.runfolder import Against, RunFault, RunFolder

if TYPE_CHECKING:
    from replay.plan import Plan


def request_against(request: RunRequest, other: RunFolder) -> RunRequest:
    """The request with all that a comparison wants equal taken from the other run; raises RunFault.

    Plan rules, service levels, class, protocol and where the search starts are that run's. The order of confirmation
    levels is the other one, so that what drifts while a run lasts drifts against the trend of the levels once each way.
    """
    score = read_score(other.score_path)
    inputs, plan = other.inputs(), other.plan()
    if score["kind"] != "score" or inputs.rules is None:
        raise RunFault(f"{other.path} is a single trial: --against takes the folder of a score")
    if inputs.dataset_digest != request.dataset_digest:
        raise RunFault(
            f"{other.path} is of another dataset ({inputs.dataset_digest[:12]}, this is {request.dataset_digest[:12]})"
        )
    return dataclasses.replace(
        request,
        rules=PlanRules(
            seed=plan.seed,
            once=plan.once,
            delay=plan.delay,
            length=plan.length,
            context=plan.context,
            isolation=plan.isolation,
            share_head=plan.share_head,
            history=plan.history,
            retries=plan.retries,
            token_ids=plan.token_ids,
        ),
        slos=inputs.levels,
        run_class=inputs.run_class,
        quick=inputs.quick,
        protocol=inputs.protocol,
        agents=inputs.start_agents,
        against=Against(
            plan_digest=inputs.plan_digest,
            started_unix_us=inputs.started_unix_us,
            order="reversed" if inputs.rules.order == "forward" else "forward",
        ),
    )


def check_same_plan(plan: Plan, against: Against, context_tokens: int | None) -> None:
    """Raises ValueError where this server cannot be asked for the other run's work."""
    found = plan.summary()
    if found.plan_digest != against.plan_digest:
        raise ValueError(
            "the plan came out unlike that of the run to compare with: was it made by another version of agentdyno?"
        )
    longest = max((session.longest_context_tokens or 0 for session in found.sessions), default=0)
    if context_tokens is not None and longest > context_tokens:
        raise ValueError(
            f"the plan's longest context needs {longest} tokens and this server takes {context_tokens}: run both with "
            "a --context-limit that both take"
        )

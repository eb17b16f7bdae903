"""From judged trials to one result per service level: the number, its interval, and what it is divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from replay.denominator import denominator_rows, denominators
from replay.energy_use import energy_use
from replay.money import engineers, money
from replay.search import Conclusion, Done, SearchRules, TrialPoint, next_step
from replay.system import System
from replay.trial import TrialOrder

if TYPE_CHECKING:
    from replay.idle import IdlePower
    from replay.judge import Judged
    from replay.runfolder import RunInputs

LEVEL = 0.95  # of every interval
VERDICTS = {
    "found": "met",
    "maximum": "met",
    "none_holds": "missed",
    "undecided": "undecided",
    "invalid": "invalid",
}


def points(judged: Sequence[Judged]) -> list[TrialPoint]:
    """The trials as the search sees them."""
    return [
        TrialPoint(
            trial=item.trial,
            agents=item.agents,
            purpose=item.purpose,
            verdicts=tuple(result.verdict for result in item.measure.slos),
            margins=tuple(result.margin for result in item.measure.slos),
        )
        for item in judged
        if item.purpose != "run"
    ]


def next_order(inputs: RunInputs, judged: Sequence[Judged]) -> TrialOrder | None:
    """The trial that comes next; a pure function of what was tried, so a killed run goes on as if it had not been."""
    number = len(judged) + 1
    if inputs.rules is None:
        return None if judged else TrialOrder(trial=1, agents=inputs.start_agents, purpose="run", draw=0)
    step = next_step(points(judged), len(inputs.slos), inputs.rules)
    if isinstance(step, Done):
        return None
    return TrialOrder(trial=number, agents=step.agents, purpose=step.purpose, draw=step.draw)


def results(
    inputs: RunInputs, system: System, judged: Sequence[Judged], *, finite: bool, idle: IdlePower | None = None
) -> list[dict[str, Any]]:
    """One result per service level, in their order; none for a run without one."""
    if inputs.rules is None:
        return [_of_one_trial(inputs, system, judged, index, idle, finite=finite) for index in range(len(inputs.slos))]
    rules = inputs.rules
    end = next_step(points(judged), len(inputs.slos), rules)
    if not isinstance(end, Done):
        why = f"the search is not over: {end.agents} agents come next"
        return [{**_nothing(inputs, index), "reasons": [why]} for index in range(len(inputs.slos))]
    return [
        _of_search(inputs, rules, system, judged, index, conclusion, idle)
        for index, conclusion in enumerate(end.conclusions)
    ]


def reference_trial(judged: Sequence[Judged], index: int, agents: float | None) -> Judged | None:
    """The trial that met the service level nearest below so many agents: its numbers stand beside the result.

    Of several at that level the last one, which is the one that a holdout confirmed.
    """
    if agents is None:
        return None
    met = [item for item in judged if item.measure.slos[index].verdict == "met" and item.agents <= agents]
    return max(met, key=lambda item: (item.agents, item.trial), default=None)


def _nothing(inputs: RunInputs, index: int) -> dict[str, Any]:
    return {
        "slo": inputs.slos[index]["name"],
        "verdict": "invalid",
        "reasons": [],
        "agents": None,
        "whole": None,
        "at_least": False,
        "interval": None,
        "interval_why_not": "nothing was found",
        "certified": None,
        "certified_why_not": "nothing was found",
        "goodput_agents": None,
        "goodput_trial": None,
        "reference_trial": None,
        "protocol_unmet": [],
        "search": None,
        "denominators": [],
        "energy": {},
        "money": None,
        "engineers": None,
    }


def _of_one_trial(
    inputs: RunInputs, system: System, judged: Sequence[Judged], index: int, idle: IdlePower | None, *, finite: bool
) -> dict[str, Any]:
    result = _nothing(inputs, index)
    if not judged:
        return {**result, "reasons": ["no trial was run"]}
    trial = judged[0]
    found = trial.measure.slos[index]
    met = found.verdict == "met"
    result |= {
        "verdict": found.verdict,
        "reasons": list(found.reasons),
        "agents": float(trial.agents),
        "whole": trial.agents,
        "interval_why_not": "one trial was run: an interval needs several around the answer",
        "certified_why_not": "one trial certifies nothing",
        "goodput_agents": found.goodput_agents,
        "goodput_trial": trial.trial,
        "reference_trial": trial.trial if met else None,
        "protocol_unmet": list(trial.unmet[index]),
    }
    # Where agents ran out of work, their number is only what was asked for.
    if met and not finite:
        result |= _divided(system, [trial], float(trial.agents), trial, idle, goodput=found.goodput_agents)
    return result


def _of_search(
    inputs: RunInputs,
    rules: SearchRules,
    system: System,
    judged: Sequence[Judged],
    index: int,
    conclusion: Conclusion,
    idle: IdlePower | None,
) -> dict[str, Any]:
    agents = conclusion.agents
    reference = reference_trial(judged, index, agents)
    interval = conclusion.interval
    goodput = reference.measure.slos[index].goodput_agents if reference is not None else None
    fit_trials = set(conclusion.fit.trials) if conclusion.fit is not None else set()
    basis = [item for item in judged if item.trial in fit_trials] or ([reference] if reference is not None else [])
    divided: dict[str, Any] = {}
    if agents and basis and conclusion.outcome in ("found", "maximum"):
        divided = _divided(
            system,
            basis,
            agents,
            reference,
            idle,
            holdouts=_holdouts(judged, index, conclusion.certified),
            interval=interval,
            certified=conclusion.certified,
            goodput=goodput,
        )
    return {
        **_nothing(inputs, index),
        "verdict": VERDICTS[conclusion.outcome],
        "reasons": [conclusion.why] if conclusion.why and conclusion.outcome != "found" else [],
        "agents": agents,
        "whole": math.floor(agents) if agents is not None else None,
        "at_least": conclusion.outcome == "maximum",
        "interval": None
        if interval is None
        else {"low": interval[0], "high": interval[1], "level": LEVEL, "method": "fieller"},
        "interval_why_not": None if interval is not None else conclusion.why or "the search found no answer",
        "certified": conclusion.certified,
        "certified_why_not": _why_not_certified(inputs, rules, conclusion),
        "goodput_agents": goodput,
        "goodput_trial": reference.trial if reference is not None else None,
        "reference_trial": reference.trial if reference is not None else None,
        "protocol_unmet": list(reference.unmet[index]) if reference is not None else [],
        "search": {
            "outcome": conclusion.outcome,
            "why": conclusion.why,
            "passed": conclusion.passed,
            "fit": msgspec.to_builtins(conclusion.fit) if conclusion.fit is not None else None,
        },
        **divided,
    }


def _holdouts(judged: Sequence[Judged], index: int, certified: int | None) -> list[Judged]:
    """The trials that certify a number of agents."""
    return [
        item
        for item in judged
        if item.purpose == "holdout" and item.agents == certified and item.measure.slos[index].verdict == "met"
    ]


def _why_not_certified(inputs: RunInputs, rules: SearchRules, conclusion: Conclusion) -> str | None:
    if conclusion.certified is None and not rules.certify:
        return f"class {inputs.run_class} certifies nothing"
    return conclusion.certified_why_not


def _divided(
    system: System,
    basis: Sequence[Judged],
    agents: float,
    reference: Judged | None,
    idle: IdlePower | None,
    *,
    holdouts: Sequence[Judged] = (),
    interval: tuple[float, float] | None = None,
    certified: int | None = None,
    goodput: int | None = None,
) -> dict[str, Any]:
    """What a number of agents costs: in accelerators, watts, energy, money and engineers.

    `basis` are the trials that the number rests on, `reference` the one whose work is shown beside it,
    `holdouts` those that certify it.
    """
    powers = denominators(system, basis, agents, holdouts)
    jobs_per_h = reference.measure.metrics.jobs.per_h if reference is not None else None
    return {
        "denominators": denominator_rows(
            system, powers, agents, interval=interval, certified=certified, goodput=goodput
        ),
        "energy": energy_use(system, reference, idle) if reference is not None else {},
        "money": money(system, powers, agents, certified=certified, jobs_per_h=jobs_per_h),
        "engineers": engineers(system, agents, interval=interval, certified=certified),
    }

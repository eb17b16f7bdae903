"""From judged trials to one result per service level: the number, its interval, and what it is divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from replay.power.energy import PowerTotal
from replay.ratio import Estimate, ratio_limits
from replay.search import Conclusion, Done, SearchRules, TrialPoint, next_step
from replay.system import System
from replay.trial import TrialOrder

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Mean power at a number of agents, in watts, with standard (k = 1) uncertainties.

    `u_gain_w` is common to all sensors of a model; `u_rest_w` is not.
    """

    source: str
    domain: str
    measured: bool
    sensors: tuple[str, ...]  # models of the devices, sorted
    power_w: float
    u_gain_w: float
    u_rest_w: float

    @property
    def expanded_w(self) -> float:
        """k = 2."""
        return 2 * math.hypot(self.u_gain_w, self.u_rest_w)


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


def results(inputs: RunInputs, system: System, judged: Sequence[Judged], *, finite: bool) -> list[dict[str, Any]]:
    """One result per service level, in their order; none for a run without one."""
    if inputs.rules is None:
        return [_of_one_trial(inputs, system, judged, index, finite=finite) for index in range(len(inputs.slos))]
    rules = inputs.rules
    end = next_step(points(judged), len(inputs.slos), rules)
    if not isinstance(end, Done):
        why = f"the search is not over: {end.agents} agents come next"
        return [{**_nothing(inputs, index), "reasons": [why]} for index in range(len(inputs.slos))]
    return [
        _of_search(inputs, rules, system, judged, index, conclusion) for index, conclusion in enumerate(end.conclusions)
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
    }


def _of_one_trial(
    inputs: RunInputs, system: System, judged: Sequence[Judged], index: int, *, finite: bool
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
        power = [at for total in trial.power if (at := _power([trial], total.source, None)) is not None]
        result["denominators"] = _denominators(system, power, float(trial.agents), None, None, found.goodput_agents)
    return result


def _of_search(
    inputs: RunInputs,
    rules: SearchRules,
    system: System,
    judged: Sequence[Judged],
    index: int,
    conclusion: Conclusion,
) -> dict[str, Any]:
    agents = conclusion.agents
    reference = reference_trial(judged, index, agents)
    interval = conclusion.interval
    goodput = reference.measure.slos[index].goodput_agents if reference is not None else None
    fit_trials = set(conclusion.fit.trials) if conclusion.fit is not None else set()
    basis = [item for item in judged if item.trial in fit_trials] or ([reference] if reference is not None else [])
    denominators = []
    if agents and basis and conclusion.outcome in ("found", "maximum"):
        found = [_power(basis, total.source, agents) for total in basis[0].power]
        denominators = _denominators(
            system, [item for item in found if item is not None], agents, interval, conclusion.certified, goodput
        )
    return {
        "slo": inputs.slos[index]["name"],
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
        "denominators": denominators,
    }


def _why_not_certified(inputs: RunInputs, rules: SearchRules, conclusion: Conclusion) -> str | None:
    if conclusion.certified is None and not rules.certify:
        return f"class {inputs.run_class} certifies nothing"
    return conclusion.certified_why_not


def _power(trials: Sequence[Judged], source: str, agents: float | None) -> Power | None:
    """Mean power of one source at so many agents: of one trial its own, of several a straight line in ln N.

    None where any of these trials has no valid power: one that is left out could make the mean lower.
    """
    totals = [next((total for total in item.power if total.source == source), None) for item in trials]
    known = [total for total in totals if total is not None and total.valid and total.power_w]
    if not known or len(known) < len(trials):
        return None
    watts = [total.power_w or 0.0 for total in known]
    mean = math.fsum(watts) / len(watts)
    at, u_line = mean, 0.0
    if agents is not None and len(known) >= 3:
        at, u_line = _line([math.log(item.agents) for item in trials], watts, math.log(agents))
    gains, rests = zip(*(_uncertainties(total) for total in known), strict=True)
    scale = at / mean
    return Power(
        source=source,
        domain=known[0].domain,
        measured=known[0].measured,
        sensors=trials[0].sensors.get(source, ()),
        power_w=at,
        u_gain_w=scale * math.fsum(gains) / len(gains),  # common to all trials: it does not average out
        u_rest_w=math.hypot(u_line, scale * math.sqrt(math.fsum(rest * rest for rest in rests)) / len(rests)),
    )


def _line(places: Sequence[float], values: Sequence[float], place: float) -> tuple[float, float]:
    """A least-squares line at a place, and its standard error there (Draper & Smith, Applied Regression, 1.4)."""
    count = len(places)
    middle, mean = math.fsum(places) / count, math.fsum(values) / count
    spread = math.fsum((item - middle) ** 2 for item in places)
    if spread == 0:
        residual = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        return mean, math.sqrt(residual / count)
    pairs = list(zip(places, values, strict=True))
    slope = math.fsum((item - middle) * (value - mean) for item, value in pairs) / spread
    residual = math.fsum((value - mean - slope * (item - middle)) ** 2 for item, value in pairs) / max(1, count - 2)
    return mean + slope * (place - middle), math.sqrt(residual * (1 / count + (place - middle) ** 2 / spread))


def _uncertainties(total: PowerTotal) -> tuple[float, float]:
    """Standard uncertainties of the mean power, in watts: the common gain, and the rest."""
    if total.power_w is None or not total.energy_j:
        return 0.0, 0.0
    seconds = total.energy_j / total.power_w
    gain = math.fsum(device.u_gain_j for device in total.devices) / seconds
    return gain, math.sqrt(math.fsum(device.u_rest_j**2 for device in total.devices)) / seconds


def _denominators(
    system: System,
    powers: Sequence[Power],
    agents: float,
    interval: tuple[float, float] | None,
    certified: int | None,
    goodput: int | None,
) -> list[dict[str, Any]]:
    """Every ratio that has a denominator, each with what that is and whether it was measured or stated."""
    rows: list[dict[str, Any]] = []
    if count := system.accelerator_count:
        cpus = all(item.kind == "cpu" for item in system.accelerators)
        rows.append(
            {
                "per": "processor" if cpus else "accelerator",
                "scope": "all of the deployment, as the system file lists them",
                "basis": "declared",
                "source": "system file",
                "denominator": count,
                "unit": "processors" if cpus else "accelerators",
                "u_gain": 0.0,
                "u_rest": 0.0,
                "sensors": [],
                "agents": agents / count,
                "agents_low": interval[0] / count if interval is not None else None,
                "agents_high": interval[1] / count if interval is not None else None,
                "agents_certified": certified / count if certified is not None else None,
                "agents_goodput": goodput / count if goodput is not None else None,
                "watts_per_agent": None,
            }
        )
    for power in powers:
        per_megawatt = 1e6 / power.power_w
        low, high = _ratio_interval(agents, interval, power)
        rows.append(
            {
                "per": "megawatt",
                "scope": SCOPES[power.domain],
                "basis": "measured" if power.measured else "declared",
                "source": power.source,
                "denominator": power.power_w,
                "unit": "W",
                "u_gain": power.u_gain_w,
                "u_rest": power.u_rest_w,
                "sensors": list(power.sensors),
                "agents": agents * per_megawatt,
                "agents_low": low,
                "agents_high": high,
                "agents_certified": None if certified is None else 1e6 * certified / (power.power_w + power.expanded_w),
                "agents_goodput": goodput * per_megawatt if goodput is not None else None,
                "watts_per_agent": power.power_w / agents,
            }
        )
    return rows


def _ratio_interval(
    agents: float, interval: tuple[float, float] | None, power: Power
) -> tuple[float, float] | tuple[None, None]:
    """The interval of agents per megawatt: that of the agents, with the power's expanded (k = 2) uncertainty."""
    if interval is None or interval[0] <= 0:
        return None, None
    found = Estimate(value=agents, low=interval[0], high=interval[1])
    return ratio_limits(found, Estimate.exact(power.power_w / 1e6), power.expanded_w / power.power_w)


SCOPES = {
    "accelerator": "accelerators only, as their own sensors report them: no CPU, network, cooling or conversion",
    "cpu_package": "CPU packages only: no accelerator, no network, no cooling, no conversion",
    "declared": "a nameplate that the user stated",
}

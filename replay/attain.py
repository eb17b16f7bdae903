"""How a trial's samples stand to a service level: every limit's percentile, its margin, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from replay.job import Job
from replay.sample import Sample
from replay.slo import WORDS, Slo, SloResult, Term, TermResult


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value at rank share x (n − 1) of the sorted values, linearly interpolated; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low = math.floor(rank)
    part = rank - low
    if part == 0 or ordered[low] == ordered[low + 1]:
        return ordered[low]
    return ordered[low] + part * (ordered[low + 1] - ordered[low])  # infinite where the upper one is


@dataclass(frozen=True, slots=True)
class _Values:
    """What counts against one limit: of each agent its values, and how many more are undecided."""

    decided: dict[int, list[float]]
    undecided: dict[int, int]

    def pooled(self, worst: float | None = None) -> list[float]:
        """All values; with `worst`, as if everything undecided had turned out so."""
        values = [value for own in self.decided.values() for value in own]
        return values if worst is None else values + [worst] * sum(self.undecided.values())


def attain(slo: Slo, samples: Sequence[Sample], jobs: Sequence[Job], *, agents: Collection[int]) -> SloResult:
    """Holds samples and jobs of a trial against a service level.

    `agents` are those that must hold it: all that had something due in the window. One without a value of its own, of
    a quantity that its requests have, holds nothing.
    """
    found = [(term, values_of(term, samples, jobs)) for term in slo.terms]
    results = [_result(term, values, slo.agent_share, agents) for term, values in found]
    missed = [result for result in results if result.observed is not None and not result.term.holds(result.observed)]
    # A server so slow that nobody has a speed yet has missed its other limits all the same.
    reasons = [_nothing(result.term, result.undecided) for result in results if result.observed is None]
    if reasons and not missed:
        return _outcome(slo, "invalid", None, results, reasons, 0, False)
    pessimist = [
        _observed(term, values, slo.agent_share, agents, worst=0.0 if term.at_least else math.inf)
        for term, values in found
    ]
    fails = any(value is not None and not term.holds(value) for (term, _), value in zip(found, pessimist, strict=True))
    goodput = sum(all(_agent_holds(term, values, agent) for term, values in found) for agent in agents)
    return _outcome(
        slo,
        "missed" if missed else "met",
        max(result.margin for result in results if result.margin is not None),
        results,
        [_missed(result, slo.agent_share) for result in missed],
        goodput,
        fails and not missed,
    )


def values_of(term: Term, samples: Iterable[Sample], jobs: Iterable[Job]) -> _Values:
    """What counts against a limit, by agent."""
    values = _Values({}, {})
    if term.quantity == "job_s":
        for job in jobs:
            value = job.value(term.limit)
            if value is not None:
                values.decided.setdefault(job.agent, []).append(value)
            elif job.undecided(term.limit):
                values.undecided[job.agent] = values.undecided.get(job.agent, 0) + 1
        return values
    for sample in samples:
        value = sample.value(term.quantity, term.limit)
        if value is not None:
            values.decided.setdefault(sample.agent, []).append(value)
        elif sample.undecided(term):
            values.undecided[sample.agent] = values.undecided.get(sample.agent, 0) + 1
    return values


def _observed(
    term: Term, values: _Values, share: float, agents: Collection[int], *, worst: float | None = None
) -> float | None:
    """A pooled percentile; of scope `agent` the value that the stated share of the agents reach."""
    if term.scope == "pooled":
        return percentile(values.pooled(worst), term.percentile / 100)
    if not values.decided:
        return None
    nothing = 0.0 if term.at_least else math.inf
    own = []
    for agent in agents:
        mine = list(values.decided.get(agent, ()))
        if worst is not None:
            mine += [worst] * values.undecided.get(agent, 0)
        value = percentile(mine, term.percentile / 100)
        if value is None and term.quantity == "job_s":
            continue  # no job of it could be decided: most jobs outlast a window
        own.append(nothing if value is None else value)
    if not own:
        return None
    own.sort(reverse=term.at_least)  # the best first
    return own[min(len(own), max(1, math.ceil(share * len(own) - 1e-9))) - 1]


def _agent_holds(term: Term, values: _Values, agent: int) -> bool:
    value = percentile(values.decided.get(agent, ()), term.percentile / 100)
    if value is None:
        return term.quantity == "job_s" and agent not in values.decided
    return term.holds(value)


def _result(term: Term, values: _Values, share: float, agents: Collection[int]) -> TermResult:
    observed = _observed(term, values, share, agents)
    return TermResult(
        term=term,
        observed=observed,
        infinite=observed is not None and math.isinf(observed),
        samples=len(values.pooled()) if term.scope == "pooled" else len(agents),
        undecided=sum(values.undecided.values()),
        margin=None if observed is None else term.margin(observed),
    )


def _outcome(
    slo: Slo,
    verdict: str,
    margin: float | None,
    results: Sequence[TermResult],
    reasons: Sequence[str],
    goodput: int,
    undecided_matters: bool,
) -> SloResult:
    return SloResult(
        slo=slo.name,
        verdict=verdict,  # type: ignore[arg-type]
        margin=margin,
        terms=tuple(results),
        reasons=tuple(reasons),
        goodput_agents=goodput,
        undecided_matters=undecided_matters,
    )


def _nothing(term: Term, undecided: int) -> str:
    if term.quantity == "job_s":
        return (
            f"no job began {term.limit:g} s before the phase ended: a limit of job time needs a window that is longer "
            "than the limit"
        )
    if term.quantity == "output_tok_s":
        return "no answer of the steady window has two tokens, so there is no output speed"
    what = WORDS[term.quantity][0]
    return f"no request of the steady window was decided: {undecided} still waited, and nothing else has a {what}"


def _missed(result: TermResult, share: float) -> str:
    term, observed = result.term, result.observed
    assert observed is not None
    what, unit = WORDS[term.quantity]
    number = "∞" if math.isinf(observed) else f"{observed:.1f}" if term.at_least else f"{observed:.2f}"
    side = "below" if term.at_least else "above"
    whose = "" if term.scope == "pooled" else f" that {share:.0%} of the agents reach"
    return f"P{term.percentile:g} {what}{whose} {number} {unit} is {side} {term.limit:g} {unit}"

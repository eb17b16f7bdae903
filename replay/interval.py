"""How sure a trial's percentiles are: a bootstrap that draws whole agents, since turns of one agent are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from replay.attain import percentile, values_of
from replay.observation import Observation
from replay.slo import Slo, Term

REPLICATES = 500
LEAST_AGENTS = 5
_INFINITE = 1e15  # stands for a request that was never answered, so that interpolation stays a number


@dataclass(frozen=True, slots=True, kw_only=True)
class TermInterval:
    """95 % percentile interval of one limit's percentile. An infinite end is None."""

    term: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """How the percentiles of one trial would move with other agents of the same kind.

    It is no interval of the number of agents: that needs several trials around the answer. Why none was computed stands
    in `why_not`.
    """

    agents: int
    replicates: int
    terms: tuple[TermInterval, ...]
    share_meeting: float | None  # of the replicates that hold every limit
    why_not: str | None


def cluster_bootstrap(slo: Slo, seen: Observation, *, seed: int) -> Interval:
    """Draws the agents of a trial with replacement; the same seed gives the same interval."""
    import numpy as np

    order = seen.agents
    if len(order) < LEAST_AGENTS:
        return _none(len(order), f"{len(order)} agents sent requests; fewer than {LEAST_AGENTS} say nothing of others")
    by_term: list[list[list[float]]] = []
    for term in slo.terms:
        decided = values_of(term, seen.samples, seen.jobs).decided
        by_term.append([_units(term, decided.get(agent, [])) for agent in order])
    random = np.random.default_rng(seed)
    found: list[list[float]] = []
    meeting = 0
    for _ in range(REPLICATES):
        drawn = random.integers(0, len(order), len(order))
        row = []
        for term, units in zip(slo.terms, by_term, strict=True):
            values = np.concatenate([units[index] for index in drawn])
            if not len(values):
                return _none(len(order), f"some draws of agents hold nothing for {term.name}")
            if term.scope == "pooled":
                row.append(float(np.quantile(values, term.percentile / 100)))
            else:
                ordered = np.sort(values)[::-1] if term.at_least else np.sort(values)
                row.append(float(ordered[max(1, math.ceil(slo.agent_share * len(values) - 1e-9)) - 1]))
        found.append(row)
        meeting += all(term.holds(value) for term, value in zip(slo.terms, row, strict=True))
    table = np.array(found)
    return Interval(
        agents=len(order),
        replicates=REPLICATES,
        terms=tuple(
            TermInterval(
                term=term.name,
                low=_finite(np.quantile(table[:, column], 0.025)),
                high=_finite(np.quantile(table[:, column], 0.975)),
            )
            for column, term in enumerate(slo.terms)
        ),
        share_meeting=meeting / REPLICATES,
        why_not=None,
    )


def _units(term: Term, values: Sequence[float]) -> list[float]:
    """What one agent brings to a draw: its values, or for a limit of scope `agent` its own percentile."""
    if term.scope == "pooled":
        return [min(value, _INFINITE) for value in values]
    own = percentile(values, term.percentile / 100)
    if own is None:
        return [] if term.quantity == "job_s" else [0.0 if term.at_least else _INFINITE]
    return [min(own, _INFINITE)]


def _finite(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]
    # An interpolation towards an unanswered request lies far beyond any latency.
    return number if number < 1e6 else None


def _none(agents: int, why: str) -> Interval:
    return Interval(agents=agents, replicates=0, terms=(), share_meeting=None, why_not=why)

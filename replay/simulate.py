"""How far a search can be trusted: seeded simulated searches of a known capacity, beside the procedures in use.

Trials are simulated, not a server: a trial at N agents has the margin f(ln(N / capacity)) plus noise, and that is all.
The search and the fit are the ones of a real run. Every number that comes from here is a simulated one.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from replay.fit import Fit, Point, fieller
from replay.protocol import CLASSES, ClassRules
from replay.search import Conclusion, Done, SearchRules, TrialPoint, Try, Verdict, next_step

SLOPE = 3.0
"""10 % too many agents raise the margin by about 0.3: the worst percentile is 1.3 times its limit."""
CAPACITIES = (1000.0, 11.0)
"""A cluster, and eight accelerators at which one agent more is 9 %."""
SIGMAS = (0.05, 0.15, 0.30)
"""Standard deviations of a trial's margin: percentiles that repeat within 5, 15 and 30 %."""

type Model = Literal[
    "linear", "convex", "steep", "concave", "cliff", "heavy-tails", "skewed", "growing-noise", "one-bad-in-twenty"
]
MODELS: dict[Model, str] = {
    "linear": "margin 3·x for x = ln(N / capacity), normal noise: what the fit assumes",
    "convex": "margin 3·(exp(2x) − 1) / 2, normal noise",
    "steep": "margin 3·(exp(6x) − 1) / 6, normal noise",
    "concave": "margin 3·(1 − exp(−4x)) / 4, normal noise",
    "cliff": "margin 3·x − 0.3 up to the capacity, infinite beyond it, normal noise",
    "heavy-tails": "margin 3·x, noise of Student's t with 3 degrees of freedom and the same standard deviation",
    "skewed": "margin 3·x, exponential noise shifted to a mean of 0",
    "growing-noise": "margin 3·x, normal noise that grows as N²",
    "one-bad-in-twenty": "margin 3·x, normal noise, and one trial in twenty at twenty times its limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One simulated system and its noise."""

    model: Model
    capacity: float
    sigma: float

    @property
    def start(self) -> int:
        """Where every procedure begins: two or three doublings below the capacity."""
        return max(1, (1 << int(math.log2(self.capacity))) // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one procedure did over all simulated searches of a case. Shares are of 1; None: it claims no such thing."""

    procedure: str
    trials: float  # mean, all of a search's
    answered: float  # share of the searches that gave a number
    bias: float | None  # mean of (answer / capacity − 1), over the answers
    sd: float | None
    over_claims: float | None  # share of the answers that lie above the capacity
    over_claims_of_all: float | None  # the same of all searches
    worst_over_claim: float | None  # 99th percentile of (answer / capacity − 1)
    coverage: float | None  # share of the intervals given that hold the capacity
    coverage_of_all: float | None  # share of all searches with an interval that holds it


class Source:
    """Simulated trials: the margin is a function of the seed, the level and the draw, so a search can be resumed."""

    def __init__(self, case: Case, seed: int, search: int, procedure: int = 0) -> None:
        self._case = case
        self._base = ((seed * 1_000_003 + search) * 8 + procedure) * 1_000_003
        self._random = random.Random()

    def margin(self, agents: int, draw: int) -> float:
        """The simulated margin of one trial."""
        self._random.seed((self._base + agents) * 1_000_003 + draw)
        x = math.log(agents / self._case.capacity)
        return _SHAPES.get(self._case.model, _linear)(x) + _NOISES.get(self._case.model, _normal)(
            self._random, self._case.sigma, x
        )


def simulate(
    case: Case,
    searches: int,
    seed: int,
    *,
    rules: ClassRules = CLASSES["standard"],
    on_search: Callable[[], None] = lambda: None,
) -> tuple[Row, ...]:
    """So many simulated searches of the case by every procedure; the same seed gives the same rows."""
    singles: dict[str, list[tuple[float, int]]] = {name: [] for name in NAIVE}
    roots, bounds, found, certified = _Tally(), _Tally(), _Tally(), _Tally()
    for search in range(searches):
        for place, (name, holds) in enumerate(NAIVE.items(), start=1):
            singles[name].append(_bisect(case, Source(case, seed, search, place), holds))
        conclusion, history = search_once(case, seed, search, rules=rules)
        first = _first_fit(history, rules.confirmations)
        scouted = sum(point.purpose in ("bracket", "bisect") for point in history)
        low, high = (first.low, first.high) if first is not None else (None, None)
        interval = (low, high) if low is not None and high is not None else None
        root = first.root if first is not None and interval is not None else None
        roots.add(root, scouted + rules.confirmations, interval)
        bounds.add(None if low is None else math.floor(low), scouted + rules.confirmations, None)
        agents = conclusion.agents if conclusion.interval is not None else None
        found.add(agents, len(history), conclusion.interval)
        certified.add(conclusion.certified, len(history), None)
        on_search()
    rows = []
    for name, answers in singles.items():
        tally = _Tally()
        for answer, trials in answers:
            tally.add(answer, trials, None)
        rows.append(tally.row(name, case.capacity))
    rows.append(roots.row(f"root of a line through {rules.confirmations} trials", case.capacity, estimate=True))
    rows.append(bounds.row("its Fieller lower bound", case.capacity))
    rows.append(found.row("agentdyno: the estimate", case.capacity, estimate=True))
    if rules.certify:
        rows.append(certified.row("agentdyno: the certified number", case.capacity))
    return tuple(rows)


def search_once(
    case: Case,
    seed: int,
    search: int,
    history: Sequence[TrialPoint] = (),
    *,
    rules: ClassRules = CLASSES["standard"],
) -> tuple[Conclusion, list[TrialPoint]]:
    """One simulated search, by the code of a real one, from the start or from what was tried before."""
    source = Source(case, seed, search)
    asked = SearchRules(
        start=case.start,
        maximum=max(64, round(case.capacity * 64)),
        confirmations=rules.confirmations,
        most_confirmations=rules.most_confirmations,
        certify=rules.certify,
        spread=rules.spread,
        seed=seed + search,
    )
    tried = list(history)
    while isinstance(step := next_step(tried, 1, asked), Try):
        margin = source.margin(step.agents, step.draw)
        verdict: Verdict = "missed" if margin > 0 else "met"
        tried.append(
            TrialPoint(
                trial=len(tried) + 1,
                agents=step.agents,
                purpose=step.purpose,
                verdicts=(verdict,),
                margins=(margin,),
            )
        )
    assert isinstance(step, Done)
    return step.conclusions[0], tried


def _first_fit(history: Sequence[TrialPoint], count: int) -> Fit | None:
    confirmed = [point for point in history if point.purpose == "confirm"][:count]
    return fieller([Point(point.trial, point.agents, point.margins[0] or 0.0) for point in confirmed])


def _one(source: Source, agents: int) -> tuple[bool, int]:
    return source.margin(agents, 0) <= 0, 1


def _any_of_three(source: Source, agents: int) -> tuple[bool, int]:
    for draw in range(3):
        if source.margin(agents, draw) <= 0:
            return True, draw + 1
    return False, 3


def _all_of_three(source: Source, agents: int) -> tuple[bool, int]:
    for draw in range(3):
        if source.margin(agents, draw) > 0:
            return False, draw + 1
    return True, 3


NAIVE: dict[str, Callable[[Source, int], tuple[bool, int]]] = {
    "bisection, one trial per level": _one,
    "retry until one of three passes": _any_of_three,
    "all of three must pass": _all_of_three,
}


def _bisect(case: Case, source: Source, holds: Callable[[Source, int], tuple[bool, int]]) -> tuple[int, int]:
    """Doubling, then bisection to the largest integer that held; and the trials that it took."""
    low, level, trials = 0, case.start, 0
    while True:
        held, used = holds(source, level)
        trials += used
        if not held:
            break
        low, level = level, 2 * level
    high = level
    while high - low > 1:
        middle = (low + high) // 2
        held, used = holds(source, middle)
        trials += used
        low, high = (middle, high) if held else (low, middle)
    return low, trials


class _Tally:
    """Collects the answers of one procedure."""

    def __init__(self) -> None:
        self._answers: list[float | None] = []
        self._trials: list[int] = []
        self._intervals: list[tuple[float, float]] = []

    def add(self, answer: float | None, trials: int, interval: tuple[float, float] | None) -> None:
        self._answers.append(answer)
        self._trials.append(trials)
        if interval is not None:
            self._intervals.append(interval)

    def row(self, procedure: str, capacity: float, *, estimate: bool = False) -> Row:
        """An estimate claims its interval, not that its own number of agents holds."""
        errors = sorted(answer / capacity - 1 for answer in self._answers if answer is not None)
        over = sum(error > 0 for error in errors)
        covered = sum(low <= capacity <= high for low, high in self._intervals)
        count, claims = len(self._answers), bool(errors) and not estimate
        return Row(
            procedure=procedure,
            trials=statistics.fmean(self._trials),
            answered=len(errors) / count,
            bias=statistics.fmean(errors) if errors else None,
            sd=statistics.stdev(errors) if len(errors) > 1 else None,
            over_claims=over / len(errors) if claims else None,
            over_claims_of_all=over / count if claims else None,
            worst_over_claim=errors[int(0.99 * (len(errors) - 1))] if claims else None,
            coverage=covered / len(self._intervals) if self._intervals else None,
            coverage_of_all=covered / count if estimate else None,
        )


def _linear(x: float) -> float:
    return SLOPE * x


_SHAPES: dict[Model, Callable[[float], float]] = {
    "convex": lambda x: SLOPE * (math.exp(2 * min(x, 20.0)) - 1) / 2,
    "steep": lambda x: SLOPE * (math.exp(6 * min(x, 20.0)) - 1) / 6,
    "concave": lambda x: SLOPE * (1 - math.exp(-4 * x)) / 4,
    "cliff": lambda x: SLOPE * x - 0.3 if x <= 0 else math.inf,
}


def _normal(noise: random.Random, sigma: float, _: float) -> float:
    return noise.gauss(0.0, sigma)


def _heavy(noise: random.Random, sigma: float, _: float) -> float:
    # Student's t with 3 degrees of freedom has a variance of 3.
    squares = sum(noise.gauss() ** 2 for _ in range(3))
    return sigma * noise.gauss() / math.sqrt(squares)


def _one_bad(noise: random.Random, sigma: float, x: float) -> float:
    bad = math.log(20) - SLOPE * x if noise.random() < 0.05 else 0.0
    return noise.gauss(0.0, sigma) + bad


_NOISES: dict[Model, Callable[[random.Random, float, float], float]] = {
    "heavy-tails": _heavy,
    "skewed": lambda noise, sigma, _: sigma * (noise.expovariate(1.0) - 1),
    "growing-noise": lambda noise, sigma, x: noise.gauss(0.0, sigma * math.exp(2 * min(max(x, -1.0), 1.0))),
    "one-bad-in-twenty": _one_bad,
}

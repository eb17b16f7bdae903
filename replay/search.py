"""The search for the number of agents at which a service level is just held, as one pure decision over what was tried.

Every trial gives one margin per service level, so all levels of a set share the trials. Scouting trials double from a
start until each level was missed once, then close in on the place where its margin crosses zero. They only choose where
the confirmation trials go: fresh draws, spread about that place, in random order. The answer is the root of a line
through the confirmation trials with Fieller's interval, and what is certified is its low end, after a trial there held.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from replay.fit import CONFIDENCE, Fit, Point, fieller, finite_margins

type Verdict = Literal["met", "missed", "invalid"]
type Purpose = Literal["bracket", "bisect", "confirm", "holdout"]
type Outcome = Literal["found", "undecided", "maximum", "none_holds", "invalid"]

BRACKET_RATIO = 1.2
"""Bisection ends where the lowest missed level is at most this times the highest met one below it: ±10 %."""
WIDEST_RATIO = 1.5
"""An interval whose high end is more than this times its low end is no answer, unless it is within one agent."""
FAR_MARGIN = 0.5
"""At the edges of what may be asked, 1 and the maximum, a margin farther than this from 0 needs no confirmation."""
INVALID_SHARE = 1 / 3
"""Of the confirmation trials asked for: more invalid ones than this end the search of that level."""
MOST_SHIFT = 2.0
"""A further batch of confirmation trials lies about the root of those before, at most this many spreads away."""
HOLDOUT_CONFIDENCES = (CONFIDENCE, 0.99)
"""The interval whose low end the first and, after a miss, the second and last holdout trial are made at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPoint:
    """One trial as the search sees it: one verdict and one margin per service level, in their order."""

    trial: int
    agents: int
    purpose: Purpose
    verdicts: tuple[Verdict, ...]
    margins: tuple[float | None, ...]  # above 0 misses; +inf: only known to miss; None: nothing to judge


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRules:
    """What a search may do."""

    start: int
    maximum: int
    confirmations: int
    most_confirmations: int  # for one service level; more than `confirmations` are bought only where these do not say
    certify: bool
    seed: int
    spread: float = 0.12  # confirmation levels lie within this share of the estimate
    order: Literal["forward", "reversed"] = "forward"  # of the confirmation trials; a comparison reverses one side
    most_trials: int | None = None  # of the whole search, invalid ones included

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.maximum:
            raise ValueError(f"a search starts between 1 and its maximum of {self.maximum} agents, not at {self.start}")
        if not 3 <= self.confirmations <= self.most_confirmations:
            raise ValueError("a search needs three confirmation trials or more, and at most most_confirmations of them")
        if not 0 < self.spread < 1:
            raise ValueError(f"the spread of the confirmation trials lies between 0 and 1, not at {self.spread}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """Run a trial at this many agents next."""

    agents: int
    purpose: Purpose
    slo: int  # the service level that asks for it; the trial counts for all
    draw: int  # of session order and start offsets: 0 while scouting, a fresh one for repeats and all later trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What the trials say of one service level."""

    outcome: Outcome
    agents: float | None  # the root; the maximum where that holds, 0 where one agent misses
    passed: int  # the largest level met with none missed at or below it, as a search of single trials would say
    interval: tuple[float, float] | None
    certified: int | None
    certified_why_not: str | None
    fit: Fit | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The search is over."""

    conclusions: tuple[Conclusion, ...]  # one per service level


def next_step(history: Sequence[TrialPoint], slos: int, rules: SearchRules) -> Try | Done:
    """What to do after these trials, in their order, for so many service levels."""
    spent = rules.most_trials is not None and len(history) >= rules.most_trials
    if not spent:
        wants = [want for slo in range(slos) if (want := _study(history, slo, rules).want) is not None]
        if wants:
            return min(wants, key=_urgency)
    return Done(conclusions=conclusions(history, slos, rules))


def conclusions(history: Sequence[TrialPoint], slos: int, rules: SearchRules) -> tuple[Conclusion, ...]:
    """What these trials say, whether or not the search is over: a level that needs more trials is undecided."""
    return tuple(_conclude(_study(history, slo, rules), history, rules) for slo in range(slos))


def usual_trials(agents: float, slos: int, rules: SearchRules) -> int:
    """How many trials a search takes whose levels lie near so many agents, when no trial is invalid or repeated."""
    doublings = 1 + max(0, math.ceil(math.log2(max(agents, 1) / rules.start)))
    return doublings + slos * (2 + rules.confirmations + rules.certify)


# Scouting ends for all levels before the first confirmation, and so do confirmations before the first holdout: where
# the confirmation trials go is then settled before any of them, and their noise cannot have chosen it.
_ORDER: dict[Purpose, int] = {"bracket": 0, "bisect": 1, "confirm": 2, "holdout": 3}


def _urgency(want: Try) -> tuple[int, int]:
    # Of brackets the lowest first: its outcome may settle that the higher ones are not needed.
    return _ORDER[want.purpose], want.agents if want.purpose == "bracket" else want.slo


@dataclass(slots=True, kw_only=True)
class _Study:
    """What is known of one service level: the trial that it wants next, or why it wants none."""

    seen: list[tuple[TrialPoint, float | None]]  # with the margin that counts; None: invalid
    want: Try | None = None
    outcome: Outcome = "undecided"
    fit: Fit | None = None
    agents: float | None = None
    interval: tuple[float, float] | None = None
    certified: int | None = None
    certified_why_not: str | None = None
    why: str = ""


def _study(history: Sequence[TrialPoint], slo: int, rules: SearchRules) -> _Study:
    study = _Study(seen=[(point, _margin(point, slo)) for point in history])
    scouts: dict[int, list[float | None]] = {}
    for point, margin in study.seen:
        if point.purpose in ("bracket", "bisect"):
            scouts.setdefault(point.agents, []).append(margin)
    # The last valid trial of a level stands for it.
    margins = {agents: valid[-1] for agents, tried in scouts.items() if (valid := [m for m in tried if m is not None])}
    high = min((agents for agents, margin in margins.items() if margin > 0), default=None)
    low = max((agents for agents in margins if high is None or agents < high), default=0)
    agents = _scout_level(margins, low, high, rules)
    if agents is None and high is not None and (margins[low] < -FAR_MARGIN if low else len(margins) == 1):
        # A miss right beside a level far from its limits is a cliff or one bad trial, and so may a lone miss be at one
        # agent: the repeat decides.
        agents = high if sum(margin is not None for margin in scouts[high]) < 2 else None
    if agents is None:
        _confirm(study, margins, low, high, slo, rules)
        return study
    if sum(margin is None for margin in scouts.get(agents, ())) >= 2:
        study.outcome = "invalid"
        study.why = f"the trial at {agents} agents was invalid twice, so nothing is known there"
        return study
    purpose: Purpose = "bisect" if low and high is not None else "bracket"
    study.want = Try(agents=agents, purpose=purpose, slo=slo, draw=_fresh(study.seen) if agents in scouts else 0)
    return study


def _margin(point: TrialPoint, slo: int) -> float | None:
    """The margin that counts: None where the trial says nothing, +inf where it says only that the level was missed."""
    verdict, margin = point.verdicts[slo], point.margins[slo]
    if verdict == "invalid" or (margin is not None and math.isnan(margin)):
        return None
    if verdict == "missed" and (margin is None or margin <= 0):
        return math.inf  # missed for a reason that no limit measures
    return None if margin is None else max(margin, -10.0)


def _scout_level(margins: dict[int, float], low: int, high: int | None, rules: SearchRules) -> int | None:
    """The level that scouting needs next, or None where it is over."""
    if high is None:
        if low >= rules.maximum:
            return None
        return min(rules.maximum, 2 * low if low else rules.start)
    if low == 0:
        return high // 2 if high > 1 else None
    if high - low == 1 or high <= BRACKET_RATIO * low:
        return None
    # A secant in ln N, kept within the middle half of the bracket: it halves at worst like a bisection of bad luck.
    part = min(max(_crossing(margins[low], margins[high]), 0.25), 0.75)
    level = round(_between(low, high, part))
    return min(max(level, low + 1), high - 1)


def _center(margins: dict[int, float], low: int, high: int | None, rules: SearchRules) -> float:
    """Where scouting sees the root, so that the confirmation trials reach over both ends of its bracket."""
    if high is None or low == 0:
        return float(low or 1)
    least, most = high / (1 + rules.spread), low / (1 - rules.spread)
    if least >= most:
        return math.sqrt(low * high)
    points = [Point(0, agents, margin) for agents, margin in margins.items() if low / 1.5 <= agents <= high * 1.5]
    fit = fieller(points)
    if fit is not None and fit.root is not None:
        return min(max(fit.root, least), most)
    return min(max(_between(low, high, _crossing(margins[low], margins[high])), least), most)


def _crossing(below: float, above: float) -> float:
    """The part of the way from a level that is met to one that is missed at which a straight margin is zero."""
    below, above = finite_margins([below, above])
    return -below / (above - below)


def _between(low: int, high: int, part: float) -> float:
    """The level at this part of the way from one to the other, in ln N."""
    return low * math.exp(part * math.log(high / low))


def _confirm(
    study: _Study, margins: dict[int, float], low: int, high: int | None, slo: int, rules: SearchRules
) -> None:
    """Wants the next confirmation trial, or judges them."""
    if high is None and (margins[low] < -FAR_MARGIN or rules.maximum == 1):
        study.outcome, study.agents = "maximum", float(low)
        study.why = f"the largest allowed level, {low} agents, held in a single trial; the system may hold more"
        return
    if low == 0 and (margins[1] > FAR_MARGIN or rules.maximum == 1):
        study.outcome, study.agents = "none_holds", 0.0
        study.why = "a single agent misses the level"
        return
    center = _center(margins, low, high, rules)
    bottom, top = span(center, rules)
    points: list[Point] = []
    begin = asked = 0
    while asked < rules.most_confirmations:
        first, last = span(center, rules)
        bottom, top = min(bottom, first), max(top, last)
        count = min(rules.confirmations, rules.most_confirmations - asked)
        slots = list(_levels(first, last, count, f"{rules.seed}/{slo}/{asked}", rules.order))
        begin, asked = _fill(slots, study.seen, begin), asked + count
        inside = [pair for pair in study.seen if pair[0].purpose == "confirm" and bottom <= pair[0].agents <= top]
        points = [Point(point.trial, point.agents, margin) for point, margin in inside if margin is not None]
        if slots:
            if len(inside) - len(points) > INVALID_SHARE * asked:
                study.outcome = "invalid"
                study.why = f"{len(inside) - len(points)} of {len(inside)} confirmation trials were invalid"
            else:
                study.want = Try(agents=slots[0], purpose="confirm", slo=slo, draw=_fresh(study.seen))
            return
        study.fit = fieller(points)
        if study.fit is not None and _answers(study.fit, bottom, top, rules):
            break
        # Tried in simulation and left: another batch on half the span where the margins bend. The interval shrinks as
        # fast as the error of the straight line does, so it holds the capacity no more often.
        known = {point.trial for point, _ in study.seen[:begin]}
        center = _shifted(center, [point for point in points if point.trial in known], rules)
    _judge(study, points, bottom, top, slo, rules)


def _shifted(center: float, points: Sequence[Point], rules: SearchRules) -> float:
    fit = fieller(points)
    if fit is None or fit.root is None:
        return center
    factor = 1 + MOST_SHIFT * rules.spread
    return min(max(fit.root, center / factor), center * factor)


def span(center: float, rules: SearchRules) -> tuple[int, int]:
    """The lowest and highest level of the confirmation trials: the spread, but at least the next agent on each side."""
    bottom = min(math.floor(center * (1 - rules.spread)), math.ceil(center) - 1)
    top = max(math.ceil(center * (1 + rules.spread)), math.floor(center) + 1)
    return max(1, min(bottom, rules.maximum - 1)), min(max(top, 2), rules.maximum)


@lru_cache(maxsize=1024)
def _levels(bottom: int, top: int, count: int, seed: str, order: str) -> tuple[int, ...]:
    """So many levels between these, evenly spaced in ln N, in a seeded random order."""
    step = math.log(top / bottom) / (count - 1) if count > 1 else 0.0
    levels = [round(bottom * math.exp(index * step)) for index in range(count)]
    random.Random(seed).shuffle(levels)
    return tuple(levels if order == "forward" else reversed(levels))


def _fill(slots: list[int], seen: Sequence[tuple[TrialPoint, float | None]], begin: int) -> int:
    """Strikes out the levels that trials from `begin` on stand for; returns where the last one was struck out.

    A trial that another service level asked for stands for the nearest level that is left.
    """
    near = math.log(max(slots) / min(slots)) / (2 * max(len(slots) - 1, 1))
    for place in range(begin, len(seen)):
        point, margin = seen[place]
        if margin is None or point.purpose != "confirm":
            continue
        if point.agents in slots:
            slots.remove(point.agents)
        else:
            nearest = min(slots, key=lambda level: abs(math.log(level / point.agents)))
            if abs(math.log(nearest / point.agents)) <= near:
                slots.remove(nearest)
        if not slots:
            return place + 1
    return len(seen)


def _fresh(seen: Sequence[tuple[TrialPoint, float | None]]) -> int:
    """A draw that no trial had: they count up over all trials but the first at a scouted level."""
    first = {point.agents for point, _ in seen if point.purpose in ("bracket", "bisect")}
    return 1 + len(seen) - len(first)


def _answers(fit: Fit, bottom: int, top: int, rules: SearchRules) -> bool:
    """Whether the fit bounds the root closely enough, and by trials that lie about it."""
    if fit.root is None or fit.low is None or fit.high is None:
        return False
    near = bottom / (1 + rules.spread) <= fit.root <= top * (1 + rules.spread)
    return near and not _wide(fit.low, fit.high)


def _wide(low: float, high: float) -> bool:
    return high > WIDEST_RATIO * low and high - low > 1


def _judge(study: _Study, points: Sequence[Point], bottom: int, top: int, slo: int, rules: SearchRules) -> None:
    """The outcome of a finished set of confirmation trials, and the holdout trial that certifies it."""
    fit, count = study.fit, len(points)
    root = fit.root if fit is not None else None
    answered = fit is not None and _answers(fit, bottom, top, rules)
    if top == rules.maximum and (
        (answered and root is not None and root >= top) or all(point.margin <= 0 for point in points)
    ):
        study.outcome, study.agents = "maximum", float(top)
        study.why = f"the largest allowed level, {top} agents, holds; the system may hold more"
    elif bottom == 1 and ((answered and root is not None and root < 1) or all(point.margin > 0 for point in points)):
        study.outcome, study.agents = "none_holds", 0.0
        study.why = f"the margin crosses zero below one agent in {count} confirmation trials"
    elif answered:
        study.outcome, study.agents = "found", root
        study.why = f"the margin crosses zero there in {count} confirmation trials" + _infinite(fit)
    else:
        study.why = _no_answer(fit, points, bottom, top)
    if answered and fit is not None and fit.low and fit.high and study.outcome in ("found", "maximum"):
        if study.outcome == "found":  # the maximum is no root: the interval about the root need not hold it
            study.interval = (fit.low, fit.high)
        if rules.certify:
            _certify(study, points, slo)


def _infinite(fit: Fit | None) -> str:
    count = len(fit.infinite) if fit is not None else 0
    return f"; {count} of them only say that they missed, which puts the root lower" if count else ""


def _no_answer(fit: Fit | None, points: Sequence[Point], bottom: int, top: int) -> str:
    where = f"{len(points)} confirmation trials from {bottom} to {top} agents"
    if all(point.margin <= 0 for point in points):
        return f"all {where} met the level, though scouting saw it missed there: look at the missed trials"
    if all(point.margin > 0 for point in points):
        return f"all {where} missed the level, though scouting saw it met there: look at the met trials"
    if fit is None or fit.root is None:
        return f"in {where} the margin does not grow with the number of agents"
    if fit.low is None or fit.high is None:
        return f"in {where} the margin's slope is not told apart from none (Fieller's g = {fit.g:.2f})"
    if _wide(fit.low, fit.high):
        return f"{where} leave an interval from {fit.low:.4g} to {fit.high:.4g} agents: too wide for an answer"
    return f"{where} put the root at {fit.root:.4g}, where none of them lies"


def _certify(study: _Study, points: Sequence[Point], slo: int) -> None:
    """Certifies the low end of the interval if a trial there holds; else once more, lower; never a third time."""
    highest = max(point.agents for point in points)
    missed: list[int] = []
    for confidence in HOLDOUT_CONFIDENCES:
        fit = fieller(points, confidence)
        low = fit.low if fit is not None else None
        # The addend forgives a root of 2.9999999 on a line without noise.
        level = min(math.floor((low or 0.0) + 1e-9), highest, *(level - 1 for level in missed))
        if level < 1:
            study.certified_why_not = "the lower bound is below one agent"
            return
        margins = [
            margin for point, margin in study.seen if point.purpose == "holdout" and point.agents == level
        ]  # fmt: skip
        valid = [margin for margin in margins if margin is not None]
        if not valid:
            if len(margins) >= 2:
                study.certified_why_not = f"the holdout trial at {level} agents was invalid twice"
            else:
                study.want = Try(agents=level, purpose="holdout", slo=slo, draw=_fresh(study.seen))
            return
        if valid[0] <= 0:
            study.certified = level
            return
        missed.append(level)
    study.certified_why_not = f"the holdout trials at {missed[0]} and {missed[1]} agents missed"


def _conclude(study: _Study, history: Sequence[TrialPoint], rules: SearchRules) -> Conclusion:
    missed = min((point.agents for point, margin in study.seen if margin is not None and margin > 0), default=math.inf)
    passed = max(
        (point.agents for point, margin in study.seen if margin is not None and margin <= 0 and point.agents < missed),
        default=0,
    )
    why, certified_why_not = study.why, study.certified_why_not
    if study.want is not None:
        spent = rules.most_trials is not None and len(history) >= rules.most_trials
        left = f"the budget of {rules.most_trials} trials is spent" if spent else "the search is not finished"
        why, certified_why_not = why or left, left
    elif study.certified is None and certified_why_not is None:
        certified_why_not = "this class of run certifies nothing" if not rules.certify else "there is no interval"
    return Conclusion(
        outcome=study.outcome,
        agents=study.agents,
        passed=passed,
        interval=study.interval,
        certified=study.certified,
        certified_why_not=certified_why_not,
        fit=study.fit,
        why=why,
    )

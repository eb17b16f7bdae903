"""The search: each decision from a table, its laws by random trials, and what it concludes."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.fit import INFINITE_MARGIN
from replay.search import (
    Conclusion,
    Done,
    Purpose,
    SearchRules,
    TrialPoint,
    Try,
    Verdict,
    conclusions,
    next_step,
    span,
    usual_trials,
)

SIGNS: dict[str, tuple[Verdict, float | None]] = {
    "+": ("met", -0.3),
    "++": ("met", -1.5),
    "-": ("missed", 0.3),
    "--": ("missed", 1.5),
    "!": ("missed", math.inf),
    "?": ("invalid", None),
}
KINDS: dict[str, Purpose] = {"": "bracket", "c": "confirm", "h": "holdout"}


def rules(**changes: object) -> SearchRules:
    values = {"start": 2, "maximum": 100, "confirmations": 9, "most_confirmations": 18, "certify": True, "seed": 1}
    return SearchRules(**(values | changes))  # type: ignore[arg-type]


def trials(text: str) -> list[TrialPoint]:
    """`4+ 8-- 6? 7c+ 5h-` reads: 4 met, 8 missed by far, 6 invalid, 7 a confirmation that met, 5 a holdout missed."""
    history = []
    for word in text.split():
        found = re.fullmatch(r"(\d+)([ch]?)(\W+)", word)
        assert found, word
        verdict, margin = SIGNS[found[3]]
        history.append(
            TrialPoint(
                trial=len(history) + 1,
                agents=int(found[1]),
                purpose=KINDS[found[2]],
                verdicts=(verdict,),
                margins=(margin,),
            )
        )
    return history


@pytest.mark.parametrize(
    ("what", "history", "agents", "purpose", "draw"),
    [
        ("nothing yet: the start", "", 2, "bracket", 0),
        ("met: twice as many", "2+", 4, "bracket", 0),
        ("the maximum, not 128", "2+ 4+ 8+ 16+ 32+ 64+", 100, "bracket", 0),
        ("missed at the start: half", "8- 4-", 2, "bracket", 0),
        ("one missed: between them", "2+ 4+ 8+ 16-", 11, "bisect", 0),
        ("far below and a little above: nearer to the upper", "2++ 4++ 8++ 16-", 13, "bisect", 0),
        ("met right beside missed: confirmations", "2+ 4- 3-", 2, "confirm", 1),
        ("invalid: once more, with another draw", "2+ 4?", 4, "bracket", 1),
        ("invalid, then missed", "2+ 4? 4-", 3, "bisect", 0),
        ("invalid twice at different levels", "2? 2+ 4? 4+ 8?", 8, "bracket", 3),
        ("far from its limits right beside a miss: the miss is repeated", "2++ 4++ 8++ 16-- 14++", 16, "bisect", 1),
        ("the repeat held: doubling goes on", "2++ 4++ 8++ 16-- 14++ 16++", 32, "bracket", 0),
        ("one agent misses by far in the only trial: it is repeated", "1--", 1, "bracket", 1),
        ("a lower level missed and a higher met: the lower bounds", "4+ 8- 16+", 6, "bisect", 0),
        ("one agent misses narrowly: it is confirmed", "2- 1-", 1, "confirm", 1),
        ("the maximum met narrowly: it is confirmed", "64+ 100+", 91, "confirm", 1),
        ("an invalid confirmation: its level again", "2+ 4- 3- 2c?", 2, "confirm", 2),
    ],
)
def test_each_step(what: str, history: str, agents: int, purpose: Purpose, draw: int) -> None:
    step = next_step(trials(history), 1, rules())
    assert isinstance(step, Try)
    assert (step.agents, step.purpose, step.draw, step.slo) == (agents, purpose, draw, 0)


@pytest.mark.parametrize(
    ("what", "history", "outcome", "agents", "passed", "why"),
    [
        ("the maximum held by far", "64+ 100++", "maximum", 100.0, 100, "may hold more"),
        ("one agent misses by far", "2-- 1--", "none_holds", 0.0, 0, "a single agent misses"),
        ("one agent is not answered", "2! 1!", "none_holds", 0.0, 0, "a single agent misses"),
        ("invalid twice", "2+ 4+ 8? 8?", "invalid", None, 4, "the trial at 8 agents was invalid twice"),
        ("invalid at the start", "2? 2?", "invalid", None, 0, "the trial at 2 agents was invalid twice"),
        (
            "too many invalid confirmations",
            "2+ 4- 3- 3c? 3c? 3c+ 3c? 2c+ 3c?",
            "invalid",
            None,
            2,
            "4 of 6 confirmation trials were invalid",
        ),
    ],
)
def test_each_end(what: str, history: str, outcome: str, agents: float | None, passed: int, why: str) -> None:
    step = next_step(trials(history), 1, rules())
    assert isinstance(step, Done)
    (end,) = step.conclusions
    assert (end.outcome, end.agents, end.passed) == (outcome, agents, passed)
    assert why in end.why
    assert end.interval is None
    assert end.certified is None


@pytest.mark.parametrize(
    ("center", "maximum", "levels"),
    [
        (1000.0, 10_000, (880, 1120)),
        (11.0, 100, (9, 13)),
        (3.0, 100, (2, 4)),
        (3.4, 100, (2, 4)),
        (1.0, 100, (1, 2)),
        (1.6, 100, (1, 2)),
        (100.0, 100, (88, 100)),
        (2.0, 2, (1, 2)),
    ],
)
def test_confirmations_span_the_spread_or_at_least_one_agent(
    center: float, maximum: int, levels: tuple[int, int]
) -> None:
    assert span(center, rules(maximum=maximum)) == levels


def margin_of(capacity: float, noise: random.Random, sigma: float, agents: int) -> float:
    return 3 * math.log(agents / capacity) + noise.gauss(0, sigma)


def searched(
    capacities: tuple[float, ...], sigma: float, asked: SearchRules, seed: int = 1, holdouts: str = ""
) -> tuple[tuple[Conclusion, ...], list[TrialPoint], list[Try]]:
    """A whole search of simulated trials; `holdouts` overrules what each holdout trial finds."""
    noise, history, steps = random.Random(seed), list[TrialPoint](), list[Try]()
    overruled = iter(holdouts)
    while isinstance(step := next_step(history, len(capacities), asked), Try):
        margins = [margin_of(capacity, noise, sigma, step.agents) for capacity in capacities]
        if step.purpose == "holdout" and holdouts:
            margins = [0.3 if next(overruled) == "-" else -0.3 for _ in margins]
        steps.append(step)
        history.append(
            TrialPoint(
                trial=len(history) + 1,
                agents=step.agents,
                purpose=step.purpose,
                verdicts=tuple("missed" if margin > 0 else "met" for margin in margins),
                margins=tuple(margins),
            )
        )
    return step.conclusions, history, steps


def test_a_search_ends_in_a_root_an_interval_and_a_certified_number() -> None:
    (end,), history, steps = searched((1000.0,), 0.1, rules(start=64, maximum=4096))
    assert end.outcome == "found"
    assert end.interval is not None
    assert end.agents is not None
    assert end.fit is not None
    assert end.interval[0] < end.agents < end.interval[1]
    assert end.certified == math.floor(end.interval[0])
    assert end.agents == pytest.approx(1000, rel=0.05)
    assert [step.agents for step in steps][:5] == [64, 128, 256, 512, 1024]
    confirmed = [point for point in history if point.purpose == "confirm"]
    assert end.fit.trials == tuple(point.trial for point in confirmed)  # scouting never enters the fit
    assert [step.draw for step in steps if step.purpose == "confirm"] == list(range(1, 10))
    levels = [point.agents for point in confirmed]
    assert len(set(levels)) == 9
    assert levels not in (sorted(levels), sorted(levels, reverse=True))
    assert max(levels) / min(levels) == pytest.approx(1.12 / 0.88, rel=0.01)
    assert history[-1].purpose == "holdout"
    assert history[-1].agents == end.certified
    assert len(history) == usual_trials(1000, 1, rules(start=64))


def test_a_missed_holdout_is_tried_once_more_lower_and_never_a_third_time() -> None:
    asked = rules(start=64, maximum=4096)
    (held,), _, _ = searched((1000.0,), 0.1, asked, holdouts="+")
    (lower,), _, steps = searched((1000.0,), 0.1, asked, holdouts="-+")
    (none,), _, _ = searched((1000.0,), 0.1, asked, holdouts="--")
    first, second = (step.agents for step in steps if step.purpose == "holdout")
    assert held.certified == first
    assert lower.certified == second < first
    assert none.certified is None
    assert none.certified_why_not == f"the holdout trials at {first} and {second} agents missed"
    assert held.interval == lower.interval == none.interval  # a holdout does not move what was found


def test_a_screen_has_an_interval_and_certifies_nothing() -> None:
    (end,), history, _ = searched((40.0,), 0.1, rules(certify=False, confirmations=5, most_confirmations=10))
    assert end.interval is not None
    assert end.certified is None
    assert end.certified_why_not == "this class of run certifies nothing"
    assert sum(point.purpose == "confirm" for point in history) == 5
    assert all(point.purpose != "holdout" for point in history)


def test_noise_buys_more_trials_and_then_ends_undecided() -> None:
    (end,), history, _ = searched((1000.0,), 0.8, rules(start=64, maximum=4096))
    assert end.outcome == "undecided"
    assert (end.agents, end.interval, end.certified) == (None, None, None)
    assert end.fit is not None
    assert "18 confirmation trials" in end.why
    assert sum(point.purpose == "confirm" for point in history) == 18


def test_near_three_agents_the_levels_are_the_two_beside_the_root() -> None:
    (end,), history, _ = searched((3.05,), 0.05, rules())
    assert end.outcome == "found"
    assert end.agents == pytest.approx(3.05, rel=0.1)
    assert end.certified in (2, 3)
    assert {point.agents for point in history if point.purpose == "confirm"} == {3, 4}


def test_below_one_agent_nothing_holds_and_beyond_the_maximum_more_may() -> None:
    (none,), _, _ = searched((0.95,), 0.05, rules())
    assert (none.outcome, none.agents, none.interval) == ("none_holds", 0.0, None)
    (most,), _, _ = searched((104.0,), 0.05, rules())
    assert (most.outcome, most.agents) == ("maximum", 100.0)
    assert most.certified is not None
    assert most.certified <= 100
    assert "may hold more" in most.why


def test_levels_that_are_alike_share_every_trial() -> None:
    asked = rules(start=64, maximum=4096)
    (one,), alone, _ = searched((1000.0,), 0.0, asked)
    both, shared, _ = searched((1000.0, 1000.0), 0.0, asked)
    assert len(shared) == len(alone)
    assert both == (one, one)


def test_a_set_of_levels_is_scored_from_one_sweep() -> None:
    asked = rules(maximum=4096)
    ends, history, steps = searched((900.0, 1000.0, 40.0), 0.05, asked)
    singly = sum(len(searched((capacity,), 0.05, asked)[1]) for capacity in (900.0, 1000.0, 40.0))
    assert [end.agents for end in ends] == [
        pytest.approx(900, rel=0.05),
        pytest.approx(1000, rel=0.05),
        pytest.approx(40, rel=0.05),
    ]
    assert len(history) < 0.75 * singly
    kinds = [step.purpose for step in steps]
    first, last = kinds.index("confirm"), len(kinds) - kinds[::-1].index("confirm")
    assert set(kinds[:first]) == {"bracket", "bisect"}  # where confirmations go is settled before the first of them
    assert set(kinds[first:last]) == {"confirm"}
    assert set(kinds[last:]) == {"holdout"}


def test_the_budget_ends_a_search_and_says_so() -> None:
    (end,), history, _ = searched((1000.0,), 0.05, rules(maximum=4096, most_trials=15))
    assert len(history) == 15
    assert end.outcome == "undecided"
    assert end.why == "the budget of 15 trials is spent"
    (late,), history, _ = searched((1000.0,), 0.05, rules(maximum=4096, most_trials=21))
    assert len(history) == 21
    assert late.outcome == "found"
    assert late.certified_why_not == "the budget of 21 trials is spent"


def test_the_order_of_confirmations_can_be_reversed() -> None:
    levels = {}
    for order in ("forward", "reversed"):
        _, history, _ = searched((1000.0,), 0.0, rules(maximum=4096, order=order))
        levels[order] = [point.agents for point in history if point.purpose == "confirm"]
    assert levels["forward"] == levels["reversed"][::-1]


def test_a_miss_that_no_limit_measures_counts_as_infinite_and_never_helps() -> None:
    """Verdict missed with a margin that would hold, as of requests that failed."""
    history = trials("2+ 4+ 8+ 16-")
    odd = TrialPoint(trial=5, agents=12, purpose="bisect", verdicts=("missed",), margins=(-0.9,))
    step = next_step([*history, odd], 1, rules())
    assert isinstance(step, Try)
    assert 8 < step.agents < 12
    assert conclusions([*history, odd], 1, rules())[0].passed == 8


@pytest.mark.parametrize("seed", range(20))
def test_a_server_that_stops_answering_beyond_its_capacity_is_not_over_claimed(seed: int) -> None:
    noise, history = random.Random(seed), list[TrialPoint]()
    asked = rules(start=64, maximum=4096, seed=seed)
    while isinstance(step := next_step(history, 1, asked), Try):
        margin = math.inf if step.agents > 1000 else margin_of(1100.0, noise, 0.1, step.agents)
        verdict: Verdict = "missed" if margin > 0 else "met"
        history.append(
            TrialPoint(
                trial=len(history) + 1,
                agents=step.agents,
                purpose=step.purpose,
                verdicts=(verdict,),
                margins=(margin,),
            )
        )
    (end,) = step.conclusions
    assert end.certified is None or end.certified <= 1000
    if end.outcome == "found":
        assert end.agents is not None
        assert 800 < end.agents < 1040
        assert end.fit is not None
        assert bool(end.fit.infinite) == ("only say that they missed" in end.why)
    assert INFINITE_MARGIN == 1.0  # a published constant: changing it changes the method's version


@st.composite
def any_trial(
    draw: st.DrawFn, slos: int, maximum: int
) -> tuple[int, Purpose, tuple[tuple[Verdict, float | None], ...]]:
    outcome = st.one_of(
        st.just(("invalid", None)),
        st.floats(-4, 4).map(lambda margin: ("missed" if margin > 0 else "met", margin)),
        st.just(("missed", math.inf)),
        st.just(("missed", None)),
        st.just(("missed", -0.1)),
    )
    return (
        draw(st.integers(1, maximum)),
        draw(st.sampled_from(("bracket", "bisect", "confirm", "holdout"))),
        tuple(draw(outcome) for _ in range(slos)),  # type: ignore[misc]
    )


@settings(max_examples=60, deadline=None)
@given(
    slos=st.integers(1, 3),
    start=st.integers(1, 64),
    maximum=st.integers(1, 2500),
    confirmations=st.integers(3, 9),
    invalid=st.sampled_from([0.0, 0.0, 0.1, 0.4]),
    infinite=st.sampled_from([0.0, 0.2]),
    sigma=st.sampled_from([0.05, 0.3, 3.0]),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_whatever_trials_say_a_search_stays_in_bounds_ends_and_never_repeats_a_draw(
    slos: int,
    start: int,
    maximum: int,
    confirmations: int,
    invalid: float,
    infinite: float,
    sigma: float,
    seed: int,
    data: st.DataObject,
) -> None:
    asked = rules(
        start=min(start, maximum), maximum=maximum, confirmations=confirmations, most_confirmations=12, seed=seed
    )
    noise, history, draws = random.Random(seed), list[TrialPoint](), set[tuple[int, int]]()
    capacities = [math.exp(noise.uniform(-1, 9)) for _ in range(slos)]
    while isinstance(step := next_step(history, slos, asked), Try):
        assert 1 <= step.agents <= maximum
        assert 0 <= step.slo < slos
        assert (step.agents, step.draw) not in draws
        draws.add((step.agents, step.draw))
        margins: list[float | None] = []
        for capacity in capacities:
            margin = margin_of(capacity, noise, sigma, step.agents)
            margins.append(math.inf if margin > 0 and noise.random() < infinite else margin)
        if noise.random() < invalid:
            margins = [None] * slos
        history.append(
            TrialPoint(
                trial=len(history) + 1,
                agents=step.agents,
                purpose=step.purpose,
                verdicts=tuple("invalid" if m is None else "missed" if m > 0 else "met" for m in margins),
                margins=tuple(margins),
            )
        )
        assert len(history) < 60 + 45 * slos
    assert len(step.conclusions) == slos
    for end in step.conclusions:
        assert end.why
        assert (end.certified is None) == (end.certified_why_not is not None)
        assert (end.interval is not None) == (end.outcome == "found")
        if end.certified is not None:
            assert end.outcome in ("found", "maximum")
            assert end.fit is not None
            assert end.fit.low is not None
            assert 1 <= end.certified <= min(end.fit.low + 1e-6, maximum)
    cut = data.draw(st.integers(0, len(history)))
    again = next_step(history[:cut], slos, asked)
    if cut < len(history):
        assert isinstance(again, Try)
        assert (again.agents, again.purpose) == (history[cut].agents, history[cut].purpose)
    else:
        assert again == step


@settings(max_examples=60, deadline=None)
@given(data=st.data(), slos=st.integers(1, 2), maximum=st.integers(1, 300))
def test_a_history_of_another_search_is_taken_as_it_is(data: st.DataObject, slos: int, maximum: int) -> None:
    """As when a run is judged anew by another service level: no exception, and the search still ends."""
    found = data.draw(st.lists(any_trial(slos, maximum), max_size=25))
    history = [
        TrialPoint(
            trial=trial,
            agents=agents,
            purpose=purpose,
            verdicts=tuple(verdict for verdict, _ in outcomes),
            margins=tuple(margin for _, margin in outcomes),
        )
        for trial, (agents, purpose, outcomes) in enumerate(found, start=1)
    ]
    asked = rules(start=1, maximum=maximum)
    noise = random.Random(1)
    while isinstance(step := next_step(history, slos, asked), Try):
        assert 1 <= step.agents <= maximum
        margins = tuple(margin_of(50.0, noise, 0.2, step.agents) for _ in range(slos))
        history.append(
            TrialPoint(
                trial=len(history) + 1,
                agents=step.agents,
                purpose=step.purpose,
                verdicts=tuple("missed" if margin > 0 else "met" for margin in margins),
                margins=margins,
            )
        )
        assert len(history) < 200
    assert len(step.conclusions) == slos


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": 0}, "starts between 1 and its maximum"),
        ({"start": 101}, "starts between 1 and its maximum of 100 agents, not at 101"),
        ({"confirmations": 2}, "three confirmation trials or more"),
        ({"confirmations": 19}, "at most most_confirmations"),
        ({"spread": 1.0}, "between 0 and 1"),
    ],
)
def test_rules_that_make_no_search_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rules(**changes)

"""Where warm-up ends and what is steady, on series whose answer is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.sample import Sample
from replay.steady import Steady, Stream, find_steady
from replay.window import Window

PHASE = Window(start_ns=60 * 10**9, end_ns=360 * 10**9)


def sample(at_s: float, ttft_s: float, speed: float, prompt: int = 1000, fresh: float = 1000.0) -> Sample:
    return Sample(
        agent=0,
        play=0,
        session_id="s",
        turn=0,
        sent_s=at_s,
        prompt_tokens=prompt,
        fresh_tokens=fresh,
        ideal_fresh_tokens=fresh,
        tokens=100,
        ttft_s=ttft_s,
        turn_s=ttft_s + 100 / speed,
        speed_tok_s=speed,
        end_to_end_tok_s=None,
        whole_tok_s=None,
        waiting_s=None,
    )


def look(
    ttft: Callable[[float], float],
    speed: Callable[[float], float] = lambda _: 50.0,
    *,
    phase: Window = PHASE,
    per_s: float = 2.0,
    seed: int = 0,
) -> Steady:
    draw = random.Random(seed)
    start_s = phase.start_ns / 1e9
    samples: list[Sample] = []
    streams: list[Stream] = []
    for number in range(-20, int(phase.seconds * per_s)):
        at_s = start_s + number / per_s
        pace = speed(max(0.0, at_s - start_s)) * draw.lognormvariate(0, 0.1)
        streams.append((at_s + 0.3, at_s + 0.3 + 100 / pace, 100))
        if number < 0:
            continue
        samples.append(sample(at_s, ttft(at_s - start_s) * draw.lognormvariate(0, 0.2), pace))
    return find_steady(samples, streams, phase)


def test_what_is_steady_is_left_alone() -> None:
    for seed in range(5):
        found = look(lambda _: 0.5, seed=seed)
        assert (found.window, found.warm_up_s, found.unsteady, found.abstained) == (PHASE, 0.0, (), None)


def test_warm_up_ends_where_the_plateau_begins_and_never_before_settling() -> None:
    found = look(lambda at: 2.0 if at < 60 else 0.5)
    assert found.warm_up_s == 60
    assert found.window == Window(start_ns=120 * 10**9, end_ns=PHASE.end_ns)
    assert found.unsteady == ()
    assert found.series[0].warm_up_batches == 12


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_crop_is_the_same_whichever_way_it_goes(factor: float) -> None:
    """It minimises dispersion: a start that was faster than the rest is cut off like one that was slower."""
    slower = look(lambda at: 0.5 * factor if at < 60 else 0.5)
    assert slower.warm_up_s == 60


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), factor=st.floats(1.5, 8), until_s=st.integers(5, 140))
def test_swapping_fast_for_slow_never_changes_the_crop(seed: int, factor: float, until_s: int) -> None:
    draw = random.Random(seed)
    noise = [draw.lognormvariate(0, 0.2) for _ in range(300)]

    def crop(power: float) -> float:
        samples = [
            sample(60 + index, (0.5 * noise[index] * (factor if index < until_s else 1)) ** power, 50.0)
            for index in range(300)
        ]
        return find_steady(samples, (), PHASE).warm_up_s

    assert crop(1.0) == crop(-1.0)


def test_a_trend_has_a_direction() -> None:
    worse = look(lambda at: 0.5 * (1 + at / 150))
    assert {fault.direction for fault in worse.unsteady} == {"worse"}
    assert any("the time to first token rose by a factor of" in fault.reason for fault in worse.unsteady)
    better = look(lambda _: 0.5, lambda at: 30 + at / 10)
    assert {fault.direction for fault in better.unsteady} == {"better"}
    assert any("the output speed rose" in fault.reason for fault in better.unsteady)


def test_a_shift_in_the_second_half_is_not_steady() -> None:
    found = look(lambda at: 0.5 if at < 200 else 1.5)
    assert [fault.direction for fault in found.unsteady] == ["worse"]


def test_a_slow_trend_within_what_is_allowed_is_steady() -> None:
    assert look(lambda at: 0.5 * (1 + at / 1500)).unsteady == ()


def test_contexts_that_grow_are_the_workload_not_the_server() -> None:
    draw = random.Random(1)
    samples = []
    for index in range(600):
        prompt = 5000 + 40 * index
        fresh = draw.uniform(0.05, 0.2) * prompt
        samples.append(sample(60 + index / 2, 1e-3 * fresh * draw.lognormvariate(0, 0.1), 50.0, prompt, fresh))
    assert find_steady(samples, (), PHASE).unsteady == ()


@pytest.mark.parametrize(
    ("seconds", "per_s", "why"),
    [(15, 4, "fewer than 8 batches"), (8, 20, "fewer than 8 batches"), (300, 0.3, "fewer than 2")],
)
def test_too_little_to_say_anything_abstains(seconds: int, per_s: float, why: str) -> None:
    phase = Window(start_ns=0, end_ns=seconds * 10**9)
    found = look(lambda at: 5.0 if at < seconds / 2 else 0.5, phase=phase, per_s=per_s)
    assert found.abstained is not None
    assert why in found.abstained
    assert (found.window, found.unsteady) == (phase, ())


def test_short_phases_have_shorter_batches() -> None:
    phase = Window(start_ns=0, end_ns=30 * 10**9)
    found = look(lambda at: 2.0 if at < 10 else 0.5, phase=phase, per_s=8)
    assert (found.batch_s, found.warm_up_s) == (2.5, 10.0)

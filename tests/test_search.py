"""The search: each decision from a table, and the answer against an oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.search import Done, Level, Try, Verdict, next_step


def levels(text: str) -> list[Level]:
    """`4+ 8- 6?` reads: 4 met, 8 missed, 6 invalid."""
    verdicts: dict[str, Verdict] = {"+": "met", "-": "missed", "?": "invalid"}
    return [Level(agents=int(word[:-1]), verdict=verdicts[word[-1]]) for word in text.split()]


@pytest.mark.parametrize(
    ("history", "step"),
    [
        ("", Try(agents=2)),
        ("2+", Try(agents=4)),
        ("2+ 4+ 8+", Try(agents=16)),
        ("2+ 4+ 8+ 16+ 32+ 64+", Try(agents=100)),  # the maximum, not 128
        ("2+ 4+ 8+ 16+ 32+ 64+ 100+", Done(agents=100, reason="maximum")),
        ("2+ 4-", Try(agents=3)),
        ("2+ 4- 3+", Done(agents=3, reason="bracketed")),
        ("2+ 4- 3-", Done(agents=2, reason="bracketed")),
        ("2+ 4+ 8+ 16-", Try(agents=12)),
        ("2+ 4+ 8+ 16- 12-", Try(agents=10)),
        ("2+ 4+ 8+ 16- 12- 10+", Try(agents=11)),
        ("2-", Try(agents=1)),
        ("2- 1-", Done(agents=0, reason="bracketed")),
        ("2- 1+", Done(agents=1, reason="bracketed")),
        ("2?", Try(agents=2)),
        ("2? 2+", Try(agents=4)),
        ("2? 2?", Done(agents=0, reason="invalid")),
        ("2+ 4?", Try(agents=4)),
        ("2+ 4? 4-", Try(agents=3)),
        ("2+ 4? 4?", Done(agents=2, reason="invalid")),
        ("2+ 4- 3? 3?", Done(agents=2, reason="invalid")),
    ],
)
def test_each_step(history: str, step: Try | Done) -> None:
    assert next_step(levels(history), start=2, maximum=100) == step


@given(capacity=st.integers(0, 3000), start=st.integers(1, 64), maximum=st.integers(1, 2500))
def test_against_a_monotone_oracle_the_largest_passing_number_is_found(capacity: int, start: int, maximum: int) -> None:
    history: list[Level] = []
    while isinstance(step := next_step(history, start=start, maximum=maximum), Try):
        assert 1 <= step.agents <= maximum
        assert step.agents not in {level.agents for level in history}
        history.append(Level(agents=step.agents, verdict="met" if step.agents <= capacity else "missed"))
        assert len(history) <= 2 * maximum.bit_length() + 2
    assert step.agents == min(capacity, maximum)
    assert step.reason == ("maximum" if capacity >= maximum else "bracketed")


@given(capacity=st.integers(0, 300), bad=st.sets(st.integers(1, 300)), data=st.data())
def test_levels_that_cannot_be_measured_never_raise_the_answer(
    capacity: int, bad: set[int], data: st.DataObject
) -> None:
    history: list[Level] = []
    while isinstance(step := next_step(history, start=2, maximum=300), Try):
        invalid = step.agents in bad and data.draw(st.booleans())
        verdict: Verdict = "invalid" if invalid else "met" if step.agents <= capacity else "missed"
        history.append(Level(agents=step.agents, verdict=verdict))
        assert len(history) < 60
    assert step.agents <= capacity
    assert sum(level.agents == history[-1].agents for level in history) <= 2


def test_a_history_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="not a search of this kind"):
        next_step(levels("4- 8+"), start=2, maximum=100)

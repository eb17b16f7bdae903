"""Tool times that an agent declares in a header, by tool name alone and in order of completion."""

from __future__ import annotations

import pytest

from tests.calls import SYSTEM, Wire, result, said, user


def declared(gap_ms: int, *durations: tuple[str, int], tools: tuple[str, ...]) -> list[int | None]:
    """What each call is said to have taken, in ms, where an answer that took a second asked for `tools`."""
    wire = Wire()
    ask = said("", *((f"t{place}", name, "{}") for place, name in enumerate(tools)))
    wire.call(0, [SYSTEM, user("Go")], ask, took_ms=1000)
    results = [result(f"t{place}") for place in range(len(tools))]
    wire.call(1000 + gap_ms, [SYSTEM, user("Go"), ask, *results], said("ok"), tool_durations_ms=durations)
    calls = wire.one().tool_calls
    assert {call.internal_source for call in calls if call.internal_us is not None} <= {"header"}
    return [None if call.internal_us is None else call.internal_us // 1000 for call in calls]


def test_one_call_of_each_tool_is_told_apart_by_its_name() -> None:
    assert declared(650, ("Read", 9), ("Bash", 600), tools=("Bash", "Read")) == [600, 9]


@pytest.mark.parametrize("gap_ms", [600, 850])
def test_of_several_calls_of_one_tool_nobody_says_which_took_how_long(gap_ms: int) -> None:
    # As Claude Code 2.1.328 sent it for `sleep 0.4` beside `sleep 0.2`: the second call ended first.
    assert declared(gap_ms, ("Bash", 274), ("Bash", 558), tools=("Bash", "Bash")) == [None, None]


def test_a_list_that_leaves_calls_out_tells_nothing_of_that_tool() -> None:
    assert declared(900, ("Bash", 400), ("Read", 7), tools=("Bash", "Bash", "Read")) == [None, None, 7]

"""Whose time a gap was: tools, permission, human, client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.call import ToolTime
from capture.gap import Ran, split_gap, split_gaps
from capture.trajectory import GapKind, ToolCall
from tests.calls import SYSTEM, Wire, result, said, user


def test_human_words_beside_tool_results_make_the_gap_mixed() -> None:
    wire = Wire()
    ask = said("", ("t1", "Bash", "{}"), ("t2", "Read", "{}"))
    wire.call(0, [SYSTEM, user("Go")], ask)
    durations = (("Bash", 300), ("Read", 50))
    wire.call(
        2100,
        [SYSTEM, user("Go"), ask, result("t1"), result("t2"), user("<system-reminder>x</system-reminder> Stop that")],
        said("ok"),
        tool_durations_ms=durations,
    )
    found = wire.one()
    assert [(call.mixed, call.wall_us, call.internal_us) for call in found.tool_calls] == [
        (True, 2_000_000, 300_000),
        (True, 2_000_000, 50_000),
    ]
    assert found.requests[1].think_us == 1_650_000
    wire.calls[1] = replace(wire.calls[1], tool_durations_ms=())
    unknown = wire.one()
    assert (unknown.requests[1].gap_kind, unknown.requests[1].think_us, unknown.human_us) == ("tool", None, None)


def test_a_reminder_beside_tool_results_is_no_human() -> None:
    wire = Wire()
    ask = said("", ("t1", "Bash", "{}"))
    wire.call(0, [SYSTEM, user("Go")], ask)
    wire.call(
        900, [SYSTEM, user("Go"), ask, result("t1"), user("<system-reminder>be brief</system-reminder>")], said("ok")
    )
    found = wire.one()
    assert [call.mixed for call in found.tool_calls] == [False]
    assert found.num_user_messages == 1


def test_an_early_send_gives_a_negative_tool_time() -> None:
    wire = Wire()
    ask = said("", ("t1", "Bash", "{}"))
    wire.call(0, [user("Go")], ask, took_ms=500)
    wire.call(480, [user("Go"), ask, result("t1")], said("ok"))
    found = wire.one()
    assert (found.tool_calls[0].wall_us, found.requests[1].gap_us) == (-20_000, 0)


def call(name: str = "Bash", *, number: int = 0, mixed: bool = False, **times: int | None) -> ToolCall:
    values: dict[str, Any] = {
        "tool_call_id": f"t{number}",
        "agent_path": "main",
        "request_index": 0,
        "result_request_index": 1,
        "name": name,
        "kind": "exec",
        "t_emitted_us": 0,
        "t_result_us": 10_000_000,
        "wall_us": 10_000_000,
        "internal_us": None,
        "parallel_group": 0,
        "result_bytes": 1,
        "is_error": None,
        "exit_code": None,
        "timed_out": None,
        "mixed": mixed,
    }
    return ToolCall(**(values | times))


S = 1_000_000


@pytest.mark.parametrize(
    ("tools", "ran", "shares"),
    [
        # One tool, nothing told of permissions: only a short rest is surely the client's.
        ([call(internal_us=9_800_000)], {}, (0, 0, 200_000)),
        ([call(internal_us=4 * S)], {}, (0, None, None)),
        ([call()], {}, (0, None, None)),
        ([call(internal_us=4 * S, permission_us=5 * S)], {}, (0, 5 * S, S)),
        ([call(internal_us=4 * S, permission_us=0)], {}, (0, 0, 6 * S)),
        ([call(internal_us=4 * S, permission_us=60 * S)], {}, (0, 6 * S, 0)),
        ([call(permission_us=5 * S)], {}, (0, 5 * S, None)),
        ([call(internal_us=20 * S)], {}, (0, 0, 0)),
        # One after another if that fits, all at once if it does not.
        ([call(internal_us=5 * S), call(number=1, internal_us=4_900_000)], {}, (0, 0, 100_000)),
        ([call(internal_us=9_900_000), call(number=1, internal_us=9 * S)], {}, (0, 0, 100_000)),
        ([call(internal_us=5 * S), call(number=1)], {}, (0, None, None)),
        # Who knows when each ran needs no guess; the second waits for a person while the first runs.
        (
            [call(internal_us=5 * S, permission_us=S), call(number=1, internal_us=2 * S, permission_us=4 * S)],
            {(0, "t0"): (101 * S, 106 * S), (0, "t1"): (105 * S, 107 * S)},
            (0, S, 3 * S),
        ),
        # With new words of a human the rest is that human's.
        ([call(internal_us=4 * S, mixed=True)], {}, (6 * S, None, None)),
        ([call(mixed=True)], {}, (None, None, None)),
        ([call(internal_us=4 * S, permission_us=S, mixed=True)], {}, (5 * S, S, None)),
        # A question beside a tool.
        ([call(internal_us=4 * S), call("AskUserQuestion", number=1)], {}, (6 * S, None, None)),
    ],
)
def test_shares_of_a_tool_gap(
    tools: list[ToolCall], ran: Ran, shares: tuple[int | None, int | None, int | None]
) -> None:
    wire = Wire()
    wire.call(0, [user("Go")], said("", ("t0", "Bash", "{}")))
    wire.call(10_100, [user("Go"), said("", ("t0", "Bash", "{}")), result("t0")], said("ok"))
    request = wire.one().requests[1]
    assert (request.gap_kind, request.gap_us) == ("tool", 10 * S)
    found = split_gap(request, tools, ran)
    assert (found.think_us, found.permission_us, found.client_us) == shares


@given(
    lengths=st.lists(st.tuples(*[st.none() | st.integers(0, 20 * S)] * 2), min_size=1, max_size=4),
    mixed=st.booleans(),
    kind=st.sampled_from(["tool", "human", "client", "unsplit", "none", "spawn"]),
)
def test_shares_never_exceed_the_gap(lengths: list[tuple[int | None, int | None]], mixed: bool, kind: GapKind) -> None:
    wire = Wire()
    wire.call(0, [user("Go")], said("", ("t0", "Bash", "{}")))
    wire.call(10_100, [user("Go"), said("", ("t0", "Bash", "{}")), result("t0")], said("ok"))
    request = replace(wire.one().requests[1], gap_kind=kind)
    tools = [
        call(number=number, internal_us=internal, permission_us=permission, mixed=mixed)
        for number, (internal, permission) in enumerate(lengths)
    ]
    found = split_gap(request, tools)
    shares = [found.think_us, found.permission_us, found.client_us]
    assert all(share is None or share >= 0 for share in shares)
    assert sum(share or 0 for share in shares) <= 10 * S


def test_a_question_is_the_humans_time() -> None:
    wire = Wire()
    ask = said("", ("q", "AskUserQuestion", "{}"))
    wire.call(0, [user("Go")], ask)
    wire.call(5100, [user("Go"), ask, result("q", "Yes.")], said("ok"))
    found = wire.one()
    assert (found.requests[1].gap_kind, found.requests[1].think_us, found.tool_us) == ("human", 5 * S, 0)
    assert (found.tool_calls[0].kind, found.human_us) == ("other", 5 * S)


def test_the_header_tells_what_was_the_clients() -> None:
    wire = Wire()
    ask = said("", ("t1", "Bash", "{}"))
    wire.call(0, [user("Go")], ask)
    wire.call(1100, [user("Go"), ask, result("t1")], said("ok"), tool_durations_ms=(("Bash", 960),))
    request = wire.one().requests[1]
    assert (request.think_us, request.permission_us, request.client_us) == (0, 0, 40_000)


def test_the_body_tells_when_tools_ran() -> None:
    wire = Wire()
    ask = said("", ("t1", "exec", "{}"), ("t2", "exec", "{}"))
    wire.call(0, [user("Go")], ask)
    times = tuple(
        ToolTime(
            tool_call_id=f"t{number}",
            source="body",
            internal_us=800_000,
            permission_us=0,
            started_utc_us=7 * S + number * 50_000,
            ended_utc_us=7 * S + 800_000 + number * 50_000,
        )
        for number in (1, 2)
    )
    wire.call(1100, [user("Go"), ask, result("t1"), result("t2")], said("ok"), tool_times=times)
    found = wire.one()
    assert [(one.internal_us, one.internal_source, one.permission_us) for one in found.tool_calls] == [
        (800_000, "body", 0),
        (800_000, "body", 0),
    ]
    assert found.requests[1].client_us == 150_000


def test_learning_more_later_splits_anew() -> None:
    wire = Wire()
    ask = said("", ("t1", "Bash", "{}"))
    wire.call(0, [user("Go")], ask)
    wire.call(8100, [user("Go"), ask, result("t1")], said("ok"))
    found = wire.one()
    assert (found.requests[1].client_us, found.requests[1].permission_us) == (None, None)
    told = replace(found.tool_calls[0], internal_us=2 * S, permission_us=5 * S, internal_source="otel")
    again = split_gaps(replace(found, tool_calls=(told,)))
    assert (again.requests[1].permission_us, again.requests[1].client_us, again.human_us) == (5 * S, S, 0)
    assert split_gaps(again) == again

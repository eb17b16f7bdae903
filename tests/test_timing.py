"""Times that others tell, laid into a session: who is believed, and what a contradiction does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.call import TimeSource, ToolTime
from capture.gap import split_gaps
from capture.timing import Statement, ToolOutcome, apply_statements, apply_times
from capture.trajectory import ToolCall, Trajectory
from tests.sample_sessions import text_session

GAP = 8_000_000  # of every tool gap in the sample
T0 = 1_790_000_000_000_000


def session(**changes: Any) -> Trajectory:
    """Two tool gaps of 8 s, one tool each, nothing declared."""
    plain = text_session()
    calls = tuple(replace(call, internal_us=None, **changes) for call in plain.tool_calls)
    return split_gaps(replace(plain, tool_calls=calls))


def time(number: int = 0, source: TimeSource = "otel", **told: Any) -> ToolTime:
    return ToolTime(tool_call_id=f"call-{number}", source=source, **told)


def gap(trajectory: Trajectory, index: int = 1) -> tuple[int | None, int | None, int | None]:
    request = trajectory.requests[index]
    return request.think_us, request.permission_us, request.client_us


def call(trajectory: Trajectory, number: int = 0) -> ToolCall:
    return next(call for call in trajectory.tool_calls if call.tool_call_id == f"call-{number}")


def test_telemetry_gives_a_tool_its_time_and_the_gap_its_shares() -> None:
    told = time(internal_us=5_000_000, permission_us=2_000_000, started_utc_us=T0, ended_utc_us=T0 + 5_000_000)
    found = apply_times(session(), [told], "otel")
    assert (call(found).internal_us, call(found).internal_source) == (5_000_000, "otel")
    assert call(found).permission_us == 2_000_000
    assert gap(found) == (0, 2_000_000, 1_000_000)
    assert found.joined == ("otel",)
    assert (found.human_us, found.tool_us) == (0, session().tool_us)  # the wait is told beside them
    assert gap(found, 2) == gap(session(), 2)  # nothing is told about that one


def test_times_of_other_sessions_change_nothing() -> None:
    assert apply_times(session(), [time(77, internal_us=1)], "otel") == session()
    assert apply_times(session(), [], "otel") == session()


def test_a_log_does_not_join_itself() -> None:
    own = replace(session(), source="claude-code-log")
    found = apply_times(own, [time(source="log", internal_us=5)], "claude-code-log")
    assert (found.joined, call(found).internal_us) == ((), 5)


@pytest.mark.parametrize("better", ["otel", "header", "body"])
@pytest.mark.parametrize("first", [True, False])
def test_the_better_source_wins_in_any_order(better: TimeSource, first: bool) -> None:
    order: list[TimeSource] = ["otel", "header", "body", "log"]
    for worse in order[order.index(better) + 1 :]:
        told = [time(source=better, internal_us=1_000), time(source=worse, internal_us=2_000, permission_us=3_000)]
        found = apply_times(session(), told if first else told[::-1], "both")
        assert (call(found).internal_us, call(found).internal_source) == (1_000, better)
        assert call(found).permission_us == 3_000  # only the other one tells it
        declared = session(internal_source=worse)
        declared = replace(declared, tool_calls=tuple(replace(one, internal_us=9) for one in declared.tool_calls))
        assert call(apply_times(declared, [told[0]], "x")).internal_us == 1_000


def test_a_log_does_not_replace_what_the_header_declares() -> None:
    declared = session(internal_source="header")
    declared = replace(declared, tool_calls=tuple(replace(one, internal_us=7) for one in declared.tool_calls))
    found = apply_times(declared, [time(source="log", internal_us=9, permission_us=11)], "claude-code-log")
    assert (call(found).internal_us, call(found).internal_source, call(found).permission_us) == (7, "header", 11)


def test_stamps_tell_side_by_side_from_one_after_the_other() -> None:
    plain = session()
    pair = replace(plain.tool_calls[0], tool_call_id="call-9")
    both = replace(plain, tool_calls=(plain.tool_calls[0], pair, *plain.tool_calls[1:]))
    apart = [time(0, internal_us=3_000_000), time(9, internal_us=3_000_000)]
    assert gap(apply_times(both, apart, "otel"))[2] is None  # 2 s are left: they may be a permission
    beside = [replace(one, started_utc_us=T0, ended_utc_us=T0 + 3_000_000, permission_us=0) for one in apart]
    assert gap(apply_times(both, beside, "otel")) == (0, 0, 5_000_000)
    behind = [beside[0], replace(beside[1], started_utc_us=T0 + 3_000_000, ended_utc_us=T0 + 6_000_000)]
    assert gap(apply_times(both, behind, "otel")) == (0, 0, 2_000_000)


@pytest.mark.parametrize(
    ("told", "internal_us", "shares"),
    [
        ({"internal_us": 60_000_000, "permission_us": 0}, 60_000_000, (0, 0, 0)),
        ({"internal_us": -5, "permission_us": -6}, None, (0, None, None)),
        ({"internal_us": 6, "permission_us": 60_000_000}, 6, (0, GAP - 6, 0)),
        (
            {"internal_us": 2_000_000, "permission_us": 0, "started_utc_us": T0, "ended_utc_us": T0 - 1},
            2_000_000,
            (0, 0, 6_000_000),
        ),
    ],
    ids=["longer than the gap", "negative", "waited longer than the gap", "ends before it starts"],
)
def test_contradictions_are_kept_but_make_no_negative_time(
    told: dict[str, int], internal_us: int | None, shares: tuple[int | None, ...]
) -> None:
    found = apply_times(session(), [time(**told)], "otel")
    assert call(found).internal_us == internal_us
    assert gap(found) == shares


def test_a_log_tells_how_long_the_human_took_and_the_rest_is_the_agents() -> None:
    plain = text_session()
    requests = list(plain.requests)
    requests[1] = replace(requests[1], gap_kind="human", new_input=("text",))
    spoken = split_gaps(replace(plain, requests=tuple(requests)))
    assert gap(spoken) == (GAP, 0, None)
    wait = Statement(source_name="claude-code-log", waits_us={"journal-1/1": 7_900_000, "elsewhere/1": 5})
    found = apply_statements(spoken, [wait])
    assert gap(found) == (7_900_000, 0, 100_000)
    assert found.human_us == 7_900_000
    assert found.joined == ("claude-code-log",)
    long = apply_statements(spoken, [replace(wait, waits_us={"journal-1/1": 99_000_000})])
    assert gap(long) == (GAP, 0, 0)
    assert apply_statements(spoken, [replace(wait, waits_us={"elsewhere/1": 5})]) == spoken


def test_in_a_mixed_gap_the_wait_is_cut_out_of_what_the_tools_left() -> None:
    mixed = session(mixed=True)
    assert gap(mixed)[0] is None
    wait = Statement(source_name="log", waits_us={"journal-1/1": 2_000_000})
    assert gap(apply_statements(mixed, [wait]))[0] == 2_000_000
    tools = Statement(source_name="otel", times=[time(internal_us=5_000_000, permission_us=0)])
    assert gap(apply_statements(mixed, [tools])) == (3_000_000, 0, None)
    assert gap(apply_statements(mixed, [tools, wait])) == (2_000_000, 0, 1_000_000)
    # Words that were typed while the tools ran: the wait in the log is longer than what is left.
    typed = replace(wait, waits_us={"journal-1/1": 7_000_000})
    assert gap(apply_statements(mixed, [typed, tools])) == (3_000_000, 0, 0)


def test_how_a_tool_ended_is_taken_where_the_wire_does_not_know() -> None:
    unknown = session(is_error=None, exit_code=None, timed_out=None)
    told = ToolOutcome(tool_call_id="call-0", is_error=True, exit_code=2)
    found = apply_statements(unknown, [Statement(source_name="log", outcomes=[told])])
    assert (call(found).is_error, call(found).exit_code, call(found).timed_out) == (True, 2, None)
    known = session(is_error=False, exit_code=0)
    found = apply_statements(known, [Statement(source_name="log", outcomes=[told])])
    assert (call(found).is_error, call(found).exit_code) == (False, 0)


_US = st.none() | st.integers(-(2**40), 2**40)


@given(
    told=st.lists(
        st.builds(
            ToolTime,
            tool_call_id=st.sampled_from(["call-0", "call-1", "call-2", "call-x"]),
            source=st.sampled_from(["otel", "header", "body", "log"]),
            internal_us=_US,
            permission_us=_US,
            started_utc_us=_US,
            ended_utc_us=_US,
        ),
        max_size=8,
    ),
    waits=st.dictionaries(st.sampled_from(["journal-1/1", "journal-1/2", "journal-1/9"]), st.integers(-9, 2**40)),
    mixed=st.booleans(),
)
def test_whatever_is_told_no_share_is_negative_and_none_exceeds_its_gap(
    told: list[ToolTime], waits: dict[str, int], mixed: bool
) -> None:
    found = apply_statements(session(mixed=mixed), [Statement(source_name="any", times=told, waits_us=waits)])
    for request in found.requests:
        shares = [request.think_us, request.permission_us, request.client_us]
        assert all(share is None or share >= 0 for share in shares)
        if request.gap_us is not None:
            assert sum(share or 0 for share in shares) <= request.gap_us
    assert all((one.internal_us or 0) >= 0 and (one.permission_us or 0) >= 0 for one in found.tool_calls)
    assert replace(found, requests=(), tool_calls=(), joined=(), tool_us=0, human_us=0) == replace(
        session(mixed=mixed), requests=(), tool_calls=(), joined=(), tool_us=0, human_us=0
    )

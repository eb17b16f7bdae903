"""How many agents work at one time: small timelines drawn by hand, and laws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.activity import (
    SessionActivity,
    by_contributor,
    concurrency,
    peak_of,
    session_activity,
    with_peaks,
)
from capture.intervals import subtract, union
from capture.trajectory import Request, ToolCall, Trajectory
from tests.sample_sessions import request, text_session

S = 1_000_000  # a second in microseconds
NIGHT = 28_800


def sent(path: str, start: float, end: float | None, kind: str = "tool", **changes: Any) -> tuple[str, dict[str, Any]]:
    """A call of a chain from `start` to `end` s; the gap before it, if it is not the first, is of this kind."""
    return path, {
        "t_send_us": round(start * S),
        "t_end_us": None if end is None else round(end * S),
        "t_headers_us": None,
        "t_first_byte_us": None,
        "t_first_token_us": None,
        "t_last_token_us": None,
        "gap_kind": kind,
    } | changes


def session(*drawn: tuple[str, dict[str, Any]], delegating: Sequence[int] = (), **changes: Any) -> Trajectory:
    """A session of these calls in order of sending; the calls numbered in `delegating` asked for a sub-agent."""
    requests: list[Request] = []
    last: dict[str, Request] = {}
    for index, (path, values) in enumerate(sorted(drawn, key=lambda one: one[1]["t_send_us"])):
        before = last.get(path)
        values = {"think_us": 0, "parent_request_index": None if before is None else before.request_index} | values
        if before is None:
            values |= {"gap_us": None, "gap_kind": "spawn" if path != "main" else "none", "think_us": None}
        elif "gap_us" not in values:
            values["gap_us"] = None if before.t_end_us is None else values["t_send_us"] - before.t_end_us
        requests.append(request(index, agent_path=path, **values))
        last[path] = requests[-1]
    plain = text_session()
    tool: ToolCall = replace(plain.tool_calls[0], kind="subagent")
    tools = tuple(replace(tool, request_index=index) for index in delegating)
    return replace(plain, requests=tuple(requests), tool_calls=tools, t0_utc_us=0, **changes)


def seconds(trajectory: Trajectory) -> dict[str, list[tuple[float, float]]]:
    return {
        path: [(start / S, end / S) for start, end in spans]
        for path, spans in session_activity(trajectory).certain.items()
    }


SUBAGENTS = (
    sent("main", 0, 10),
    sent("main/1", 11, 20, parent_request_index=0),
    sent("main/1", 25, 30),
    sent("main/2", 11, 40, parent_request_index=0),
    sent("main", 41, 50),
)

TABLE: dict[str, tuple[Trajectory, dict[str, list[tuple[float, float]]], int | None]] = {
    "tools run between two calls": (session(sent("main", 0, 2), sent("main", 5, 6)), {"main": [(0, 6)]}, 1),
    "a human thinks": (
        session(sent("main", 0, 2), sent("main", 5, 6, "human", think_us=3 * S)),
        {"main": [(0, 2), (5, 6)]},
        1,
    ),
    "a human thinks, then the agent prepares": (
        session(sent("main", 0, 2), sent("main", 5, 6, "human", think_us=2 * S, client_us=S)),
        {"main": [(0, 2), (4, 6)]},
        1,
    ),
    "parked over night": (
        session(sent("main", 0, 2), sent("main", NIGHT, NIGHT + 1, "human", think_us=(NIGHT - 2) * S)),
        {"main": [(0, 2), (NIGHT, NIGHT + 1)]},
        1,
    ),
    "a permission is waited for, then the tool runs, then a human speaks": (
        session(sent("main", 0, 2), sent("main", 12, 13, permission_us=3 * S, think_us=4 * S)),
        {"main": [(0, 2), (5, 8), (12, 13)]},
        1,
    ),
    "the client waits to try again": (
        session(sent("main", 0, 2, error="overloaded"), sent("main", 5, 6, "client")),
        {"main": [(0, 6)]},
        1,
    ),
    "a cut call counts as far as it was seen": (
        session(sent("main", 0, None, t_last_token_us=3 * S), sent("main", 9, 10)),
        {"main": [(0, 3), (9, 10)]},
        1,
    ),
    "a call of which nothing came": (session(sent("main", 4, None)), {"main": []}, 0),
    "a parent waits for two sub-agents": (
        session(*SUBAGENTS),
        {"main": [(0, 11), (40, 50)], "main/1": [(11, 30)], "main/2": [(11, 40)]},
        2,
    ),
    "a parent works beside a sub-agent in the background": (
        session(
            sent("main", 0, 10),
            sent("main/1", 11, 40, parent_request_index=0),
            sent("main", 12, 20),
            sent("main", 25, 30),
        ),
        {"main": [(0, 11), (12, 30)], "main/1": [(11, 40)]},
        2,
    ),
    "a parent waits by a tool of its own for what it started earlier": (
        session(
            sent("main", 0, 10),
            sent("main/1", 11, 40, parent_request_index=0),
            sent("main", 12, 20),
            sent("main", 41, 50),
            delegating=(0, 2),
        ),
        {"main": [(0, 11), (12, 20), (40, 50)], "main/1": [(11, 40)]},
        2,
    ),
    "a nested sub-agent": (
        session(
            sent("main", 0, 10),
            sent("main/1", 10, 20, parent_request_index=0),
            sent("main/1/1", 20, 30, parent_request_index=1),
            sent("main/1", 30, 35),
            sent("main", 35, 36),
        ),
        {"main": [(0, 10), (35, 36)], "main/1": [(10, 20), (30, 35)], "main/1/1": [(20, 30)]},
        1,
    ),
    "side calls are no agent": (
        session(
            sent("main", 0, 10), sent("side/1", 1, 5, kind="auxiliary"), sent("side/2", 2, 6, parent_request_index=0)
        ),
        {"main": [(0, 10)]},
        1,
    ),
    "two chains that nobody started": (
        session(sent("main", 0, 10), sent("main/1", 5, 15), sent("main", 30, 31, "human", think_us=20 * S)),
        {"main": [(0, 10), (30, 31)], "main/1": [(5, 15)]},
        2,
    ),
    "one chain after the other": (
        session(sent("main", 0, 10), sent("main/1", 10, 15)),
        {"main": [(0, 10)], "main/1": [(10, 15)]},
        1,
    ),
    "nobody tells tools from humans, and it matters": (
        session(sent("main", 0, 2), sent("main/1", 3, 4), sent("main", 9, 10, "unsplit", think_us=None)),
        {"main": [(0, 2), (9, 10)], "main/1": [(3, 4)]},
        None,
    ),
    "nobody tells tools from humans, and it does not matter": (
        session(sent("main", 0, 2), sent("main", 9, 10, "unsplit", think_us=None)),
        {"main": [(0, 2), (9, 10)]},
        1,
    ),
    "new words came with a result, and no tool time is told": (
        session(sent("main", 0, 2), sent("main/1", 3, 4), sent("main", 9, 10, think_us=None)),
        {"main": [(0, 2), (9, 10)], "main/1": [(3, 4)]},
        None,
    ),
}


@pytest.mark.parametrize(("trajectory", "expected", "peak"), TABLE.values(), ids=TABLE)
def test_when_agents_are_active(
    trajectory: Trajectory, expected: dict[str, list[tuple[float, float]]], peak: int | None
) -> None:
    assert seconds(trajectory) == expected
    assert peak_of([session_activity(trajectory)]) == peak


def test_for_how_much_of_the_time_so_many_agents_were_active() -> None:
    found = concurrency(session_activity(session(*SUBAGENTS)).certain.values())
    assert (found.peak, found.active_us) == (2, 50 * S)
    assert found.by_agents == {1: 31 * S, 2: 19 * S}
    assert found.shares == {1: pytest.approx(0.62), 2: pytest.approx(0.38)}
    assert concurrency([]).shares == {}


def person(name: str | None, number: int, start: float, end: float, **changes: Any) -> Trajectory:
    drawn = session(sent("main", 0, end - start), session_id=f"s{number}", contributor=name, **changes)
    return drawn if changes.get("t0_utc_us", 0) is None else replace(drawn, t0_utc_us=round(start * S))


def test_a_persons_sessions_count_together_and_other_peoples_do_not() -> None:
    sessions = [
        person("ada", 1, 0, 10),
        person("ada", 2, 5, 15),
        person("ada", 3, 10, 20),
        person("bob", 4, 0, 30),
        person(None, 5, 0, 1),
    ]
    ada, bob, nobody = by_contributor(map(session_activity, sessions))
    assert (ada.contributor, ada.sessions, ada.agents, ada.peak) == ("ada", 3, 3, 2)
    assert (bob.contributor, bob.peak, nobody.contributor, nobody.peak) == ("bob", 1, None, 1)
    assert ada.concurrency.by_agents == {1: 10 * S, 2: 10 * S}
    peaks = {one.contributor: one.peak for one in (ada, bob, nobody)}
    found = [with_peaks(trajectory, peaks) for trajectory in sessions]
    assert [one.contributor_peak_agents for one in found] == [2, 2, 2, 1, 1]
    assert [one.peak_agents for one in found] == [1] * 5


def test_a_dataset_of_others_is_nobodys_work_and_a_session_without_a_clock_overlaps_nothing_known() -> None:
    weka = with_peaks(person(None, 1, 0, 10, source="weka"), {None: 7})
    assert (weka.peak_agents, weka.contributor_peak_agents) == (1, None)
    log = with_peaks(person(None, 1, 0, 10, source="codex-log"), {None: 7})
    assert log.contributor_peak_agents == 7
    lost = replace(session(sent("main", 0, 1)), t0_utc_us=None)
    assert by_contributor([session_activity(lost)]) == []
    assert with_peaks(lost, {None: 7}).contributor_peak_agents is None
    assert peak_of([session_activity(lost)] * 2) is None


# ---- laws ----

_SPANS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), max_size=8)


def covered(spans: Sequence[tuple[int, int]]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}


@given(spans=_SPANS, others=_SPANS)
def test_union_and_subtraction_are_those_of_sets(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    joined = union(spans)
    assert covered(joined) == covered(spans)
    assert all(start < end for start, end in joined)
    assert all(one[1] < two[0] for one, two in pairwise(joined))
    assert union(joined) == joined == union(reversed(spans))
    left = subtract(spans, others)
    assert covered(left) == covered(spans) - covered(others)
    assert union(left) == left


@given(agents=st.lists(_SPANS.map(union), max_size=6))
def test_concurrency_counts_every_moment(agents: list[tuple[tuple[int, int], ...]]) -> None:
    found = concurrency(agents)
    moments: defaultdict[int, int] = defaultdict(int)
    for spans in agents:
        for at in covered(spans):
            moments[at] += 1
    assert found.peak == max(moments.values(), default=0) <= len(agents)
    assert found.active_us == len(moments)
    assert dict(found.by_agents) == {count: list(moments.values()).count(count) for count in set(moments.values())}
    if moments:
        assert sum(found.shares.values()) == pytest.approx(1)


_CALL = st.builds(
    lambda path, start, length, kind, think, client, permission: sent(
        path, start, None if length is None else start + length, kind,
        think_us=think, client_us=client, permission_us=permission,
    ),
    st.sampled_from(["main", "main/1", "main/2", "side/1"]),
    st.integers(0, 40),
    st.none() | st.integers(0, 20),
    st.sampled_from(["tool", "human", "client", "unsplit"]),
    st.none() | st.integers(0, 30 * S),
    st.none() | st.integers(0, 30 * S),
    st.none() | st.integers(0, 30 * S),
)  # fmt: skip


@given(drawn=st.lists(_CALL, min_size=1, max_size=12), delegating=st.lists(st.integers(0, 11), max_size=3))
def test_no_more_agents_than_chains_and_none_before_the_first_send(
    drawn: list[tuple[str, dict[str, Any]]], delegating: list[int]
) -> None:
    trajectory = session(*drawn, delegating=delegating)
    found: SessionActivity = session_activity(trajectory)
    chains = {one.agent_path for one in trajectory.requests if not one.agent_path.startswith("side")}
    assert set(found.certain) == set(found.possible) == chains
    for path in chains:
        assert covered_us(found.possible[path]) >= covered_us(found.certain[path])
        assert union(found.certain[path]) == found.certain[path]
    peak = peak_of([found])
    assert peak is None or 0 <= peak <= len(chains)
    spans = [span for chain in found.possible.values() for span in chain]
    if spans:
        assert min(start for start, _ in spans) >= min(one.t_send_us for one in trajectory.requests)


def covered_us(spans: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)

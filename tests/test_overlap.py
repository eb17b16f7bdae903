"""What overlapped when it was recorded overlaps again: two triggers, on a virtual clock and against a server."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from capture.importers.weka import import_weka
from capture.trajectory import Request, Trajectory
from replay.drive import drive
from replay.endpoint import Endpoint
from replay.loop import run
from replay.plan import DelayPolicy, make_plan
from replay.protocol import QUICK
from replay.record import RequestRecord
from replay.script import Script
from tests.fake_server import serving
from tests.test_plan import S, after, plan_of, request, script_of, session
from tests.virtual_clock import play_virtually

ROUNDING_S = 3.5  # the traces give gaps in whole seconds: that adds up over the turns of a chain
RECORDED = DelayPolicy(human="recorded", tool="recorded", unsplit="recorded")
SUBAGENTS = ("0274", "0277", "0279", "0282", "0291")  # the traces of the sample that have sub-agents


def waits(script: Script) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    return {turn.request_index: (turn.wait_for, turn.wait_for_dispatch) for turn in script.turns}


def delays(script: Script) -> dict[int, tuple[float, str]]:
    return {turn.request_index: (turn.delay_us / S, turn.delay_kind) for turn in script.turns}


def spawned(index: int, start_s: float, end_s: float, path: str = "main/1", parent: int | None = 0) -> Request:
    times = {"t_send_us": round(start_s * S), "t_end_us": round(end_s * S)}
    return request(index, agent_path=path, parent_request_index=parent, gap_kind="spawn", **times)


# ---- the graph


def test_a_child_that_was_sent_during_its_parents_answer_waits_for_the_dispatch() -> None:
    script = script_of(request(0), spawned(1, 1.5, 9.0), after(2, 0, 6.0))
    # The parent's answer took four seconds; the child ended before request 2 was sent, which therefore joins it.
    assert waits(script) == {0: ((), ()), 1: ((), (0,)), 2: ((0, 1), ())}
    assert delays(script) == {0: (0.0, "none"), 1: (1.5, "spawn"), 2: (11.0, "tool")}


def test_a_background_child_that_nobody_joined_holds_nobody() -> None:
    script = script_of(request(0), spawned(1, 1.5, 60.0), after(2, 0, 6.0), after(3, 2, 6.0))
    assert waits(script) == {0: ((), ()), 1: ((), (0,)), 2: ((0,), ()), 3: ((2,), ())}


def test_requests_of_one_chain_that_overlapped_overlap_again() -> None:
    script = script_of(
        request(0, t_end_us=20 * S),
        request(1, t_send_us=5 * S, t_end_us=8 * S, parent_request_index=0, gap_us=0, gap_kind="tool"),
        request(2, t_send_us=9 * S, t_end_us=30 * S, parent_request_index=1, gap_us=1 * S, gap_kind="tool"),
        request(3, t_send_us=25 * S, t_end_us=26 * S, parent_request_index=2, gap_us=0, gap_kind="tool"),
        request(4, t_send_us=32 * S, t_end_us=33 * S, parent_request_index=3, gap_us=6 * S, gap_kind="tool"),
    )
    # 3 went out while 2 was in flight, after 0 had ended; 4 waits for both that were in flight side by side.
    assert waits(script) == {0: ((), ()), 1: ((), (0,)), 2: ((1,), ()), 3: ((0,), (2,)), 4: ((2, 3), ())}
    assert delays(script) == {
        0: (0.0, "none"),
        1: (5.0, "client"),
        2: (1.0, "tool"),
        3: (5.0, "tool"),
        4: (2.0, "tool"),
    }


def test_a_side_chain_follows_what_happened_last_before_it() -> None:
    script = script_of(
        request(0),
        spawned(1, 0.5, 1.0, path="side/1", parent=None),  # a title, asked for with the first prompt
        after(2, 0, 6.0),
        spawned(3, 17.0, 18.0, path="side/2", parent=None),
        after(4, 2, 6.0, t_send_us=30 * S, t_end_us=34 * S),
    )
    assert waits(script) == {0: ((), ()), 1: ((), (0,)), 2: ((0,), ()), 3: ((0,), ()), 4: ((2,), ())}


def test_rounded_times_are_no_overlap() -> None:
    script = script_of(request(0), after(1, 0, 0.0, t_send_us=4 * S - 60_000))
    assert waits(script)[1] == ((0,), ())
    assert delays(script)[1] == (0.0, "tool")
    loose = session(request(0), after(1, 0, 0.0, t_send_us=3 * S))
    quality = dataclasses.replace(loose.quality, clock_err_us=2 * S)
    assert waits(plan_of(dataclasses.replace(loose, quality=quality)).script("a"))[1] == ((0,), ())


def test_retries_are_left_out_or_kept() -> None:
    requests = (
        request(0),
        after(1, 0, 5.0, status=529, error="overloaded", completion_tokens=None, t_end_us=11 * S),
        after(2, 1, 9.0, "client", retry_of=1),
        after(3, 2, 1.0),
    )
    assert waits(script_of(*requests)) == {0: ((), ()), 2: ((0,), ()), 3: ((2,), ())}
    kept = script_of(*requests, retries="keep")
    assert waits(kept) == {0: ((), ()), 1: ((0,), ()), 2: ((1,), ()), 3: ((2,), ())}
    assert delays(kept)[1] == (5.0, "tool")
    assert delays(kept)[2] == (9.0, "client")  # the recorded back-off
    assert kept.turns[1].output_tokens == 1
    assert not kept.left_out


# ---- on a virtual clock


def test_a_replay_at_the_recorded_speed_sends_everything_when_it_was_sent(weka_traces: Path) -> None:
    traces = [weka_traces / f"trace_{name}.json" for name in SUBAGENTS]
    sessions = import_weka(traces, b"k" * 32).trajectories
    plan = make_plan(sessions, dataset_digest="d", delay=RECORDED)
    for trajectory in sessions:
        assert trajectory.num_subagents > 0
        recorded = {one.request_index: one for one in trajectory.requests}
        records, _ = play_virtually(
            plan.script(trajectory.session_id), {index: took_s(one) for index, one in recorded.items()}
        )
        start_us = min(one.sent_us for one in trajectory.requests)
        now = {record.request_index: (record.sent_at_ns / 1e9, (record.end_at_ns or 0) / 1e9) for record in records}
        then = {
            index: ((one.sent_us - start_us) / S, (ended_us(one) - start_us) / S) for index, one in recorded.items()
        }
        assert now.keys() == then.keys()
        for index, span in then.items():
            assert now[index][0] == pytest.approx(span[0], abs=ROUNDING_S)
        for one in then:
            for two in range(one + 1, len(then)):
                if together(now[one], now[two]) != together(then[one], then[two]):
                    # How far they overlapped, or how far apart they were, is less than the source's own rounding.
                    assert abs(min(then[one][1], then[two][1]) - max(then[one][0], then[two][0])) < ROUNDING_S


def ended_us(one: Request) -> int:
    return one.sent_us if one.t_end_us is None else one.t_end_us


def took_s(one: Request) -> float:
    return 0.0 if one.call_span is None else (one.call_span[1] - one.call_span[0]) / S


@pytest.mark.parametrize("speed", [0.2, 5.0])
def test_the_recorded_overlap_is_replayed_on_faster_and_slower_servers(weka_traces: Path, speed: float) -> None:
    traces = [weka_traces / f"trace_{name}.json" for name in SUBAGENTS]
    sessions = import_weka(traces, b"k" * 32).trajectories
    plan = make_plan(sessions, dataset_digest="d", delay=DelayPolicy(human="none", tool="scaled:0.001", unsplit="none"))
    side_by_side = 0
    for trajectory in sessions:
        recorded = {one.request_index: one for one in trajectory.requests}
        records, _ = play_virtually(plan.script(trajectory.session_id), 2.0 / speed)
        then, now = spans(trajectory, None), spans(trajectory, records)
        for one, two in ((one, two) for one in then for two in then if one < two):
            assert together(then[one], then[two]) == together(now[one], now[two])
            side_by_side += together(now[one], now[two])
        for record in records:
            assert record.trigger == ("start" if record.turn == 0 else "completion")
            assert record.tool_delay_us + record.human_delay_us == record.delay_us
        by_rule = {record.delay_rule for record in records if recorded[record.request_index].gap_kind == "unsplit"}
        assert by_rule == {"none"}
        assert {record.delay_rule for record in records if record.delay_kind == "spawn"} <= {"scaled"}
    assert side_by_side == 10


def spans(trajectory: Trajectory, records: list[RequestRecord] | None) -> dict[str, tuple[float, float]]:
    """When each sub-agent was at work."""
    found: dict[str, tuple[float, float]] = {}
    at = {record.request_index: record for record in records or ()}
    for one in trajectory.requests:
        if one.agent_path == "main":
            continue
        start: float = one.sent_us
        end: float = ended_us(one)
        if records is not None:
            record = at[one.request_index]
            start, end = record.sent_at_ns, record.end_at_ns or math.inf
        before = found.get(one.agent_path, (math.inf, 0))
        found[one.agent_path] = (min(before[0], start), max(before[1], end))
    return found


def together(one: tuple[float, float], two: tuple[float, float]) -> bool:
    return one[0] < two[1] and two[0] < one[1]


def test_a_dispatch_starts_a_child_and_a_slow_answer_does_not_hold_it() -> None:
    script = script_of(request(0), spawned(1, 1.5, 9.0), after(2, 0, 6.0), delay=RECORDED)
    records, _ = play_virtually(script, {0: 100.0, 1: 1.0, 2: 1.0})
    sent = {record.request_index: record.sent_at_ns / 1e9 for record in records}
    assert sent == {0: 0.0, 1: 1.5, 2: 111.0}  # the join waits for both, then the time that the tools took
    assert {record.request_index: record.trigger for record in records} == {0: "start", 1: "dispatch", 2: "completion"}


def test_a_play_that_starts_in_the_middle_waits_for_nothing_before_it() -> None:
    script = script_of(request(0), spawned(1, 1.5, 9.0), after(2, 0, 6.0), after(3, 2, 5.0), delay=RECORDED)
    records, _ = play_virtually(script, 1.0, first_turn=1)
    assert [(record.request_index, record.sent_at_ns / 1e9, record.trigger) for record in records] == [
        (1, 0.0, "start"),
        (2, 12.0, "completion"),
        (3, 18.0, "completion"),
    ]
    assert (records[0].delay_us, records[0].delay_rule) == (0, "none")


def test_long_waits_take_no_time_to_test() -> None:
    script = script_of(request(0), after(1, 0, 86_400.0), delay=RECORDED)
    records, _ = play_virtually(script, 3600.0)
    assert records[1].sent_at_ns == (3600 + 86_400) * 10**9


# ---- against a server


def test_overlap_against_a_server(tmp_path: Path) -> None:
    overlapping = session(
        request(0, t_end_us=20 * S),
        spawned(1, 2.0, 12.0),
        spawned(2, 3.0, 13.0, path="main/2"),
        after(3, 0, 6.0, t_send_us=26 * S, t_end_us=30 * S),
    )
    plan = plan_of(overlapping, delay=DelayPolicy(tool="scaled:0.01", human="none", unsplit="none"), once=True)
    protocol = dataclasses.replace(QUICK, settle_s=0.0, max_phase_s=20.0, min_measure_s=20.0)
    with serving(ttft_ms=200, itl_ms=1) as server:
        endpoint = Endpoint((server.url,), server.knobs.model)
        done = run(drive(plan, endpoint, agents=1, protocol=protocol))
    records = {record.request_index: record for record in records_of(done)}
    assert {index: record.trigger for index, record in records.items()} == {
        0: "start",
        1: "dispatch",
        2: "dispatch",
        3: "completion",
    }
    assert all(record.outcome == "ok" for record in records.values())
    for child, offset_s in ((1, 0.02), (2, 0.03)):
        assert records[child].intended_at_ns - records[0].intended_at_ns >= offset_s * 1e9
        assert records[child].sent_at_ns < (records[0].first_content_at_ns or 0)  # while the parent was in flight
    assert records[3].sent_at_ns >= max(record.end_at_ns or 0 for index, record in records.items() if index < 3)


def records_of(done: Any) -> tuple[RequestRecord, ...]:
    return tuple(done.records)


# ---- live history


def test_a_live_history_says_what_the_model_said() -> None:
    from tests.test_plan import text_session

    recorded = text_session("t")
    script = plan_of(recorded, delay=RECORDED, history="live").script("t")
    records, bodies = play_virtually(script, 1.0, history="live")
    _, plain = play_virtually(plan_of(recorded, delay=RECORDED).script("t"), 1.0)
    first, last = (turn.request_index for turn in (script.turns[0], script.turns[-1]))
    assert bodies[first] == plain[first]
    live, was = (json.loads(body[last])["messages"] for body in (bodies, plain))
    assert len(live) == len(was)
    unlike = [(one, two) for one, two in zip(live, was, strict=True) if one != two]
    assert [one["content"] for one, _ in unlike] == [f"said {first}"]
    assert all(one.get("tool_calls") == two.get("tool_calls") for one, two in unlike)
    assert len(records) == len(script.turns)


def test_a_live_history_needs_text_and_changes_the_plan() -> None:
    from tests.test_plan import text_session

    with pytest.raises(ValueError, match="session a holds no text, so nothing that the model says can be put"):
        plan_of(session(request(0)), history="live")
    plain, live = (plan_of(text_session(), history=kind).summary() for kind in ("recorded", "live"))
    assert (plain.history, live.history) == ("recorded", "live")
    assert plain.plan_digest != live.plan_digest

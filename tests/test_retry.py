"""New attempts: tied to the one that failed, kept, and counted as no turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capture.assemble import assemble
from capture.call import Message, ToolUse
from capture.trajectory import Trajectory
from tests.calls import KEY, MS, SYSTEM, Wire, result, said, user


def test_failed_attempts_are_kept_and_tied() -> None:
    wire = Wire()
    prompt = [SYSTEM, user("Go")]
    wire.call(0, prompt, None, session="s", status=529, error="overloaded_error: Overloaded")
    wire.call(1000, prompt, None, session="s")
    wire.call(3000, prompt, said("a", ("t1", "Bash", "{}")), session="s")
    wire.call(5000, [*prompt, said("a", ("t1", "Bash", "{}")), result("t1")], said("b"), session="s")
    found = wire.one()
    assert [request.retry_of for request in found.requests] == [None, 0, 1, None]
    assert [request.gap_kind for request in found.requests] == ["none", "client", "client", "tool"]
    assert [request.parent_request_index for request in found.requests] == [None, None, None, 2]
    assert {request.agent_path for request in found.requests} == {"main"}
    assert (found.num_user_messages, found.quality.complete) == (1, True)
    assert found.requests[0].error == "overloaded_error: Overloaded"


def test_a_retry_without_ids_is_tied_as_well() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("Go")], None)
    wire.call(1000, [SYSTEM, user("Go")], said("a"))
    assert [request.retry_of for request in wire.one().requests] == [None, 0]


def relations(found: Trajectory) -> list[tuple[str, str, int | None]]:
    return [(request.relation, request.agent_path, request.retry_of) for request in found.requests]


def test_many_attempts_in_a_row_are_one_turn() -> None:
    wire = Wire()
    prompt = [SYSTEM, user("Go")]
    for number in range(4):
        wire.call(number * 2000, prompt, None, session="s", status=529, error="overloaded", attempt=number)
    wire.call(9000, prompt, said("a"), session="s", attempt=4)
    found = wire.one()
    assert [request.retry_of for request in found.requests] == [None, 0, 1, 2, 3]
    assert [request.link_confidence for request in found.requests] == [None] + ["certain"] * 4
    assert {request.gap_kind for request in found.requests[1:]} == {"client"}
    assert [request.client_us for request in found.requests[1:]] == [1_900_000] * 3 + [2_900_000]
    assert (found.num_user_messages, found.human_us, found.quality.complete) == (1, 0, True)


def test_the_same_words_much_later_are_said_anew() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("Go")], None, session="s")
    wire.call(3_600_000, [SYSTEM, user("Go")], said("a"), session="s")
    assert relations(wire.one())[1] == ("fork", "main", None)
    nameless = Wire()
    nameless.call(0, [SYSTEM, user("Go")], None)
    nameless.call(3_600_000, [SYSTEM, user("Go")], said("a"))
    assert [len(one.requests) for one in nameless.assemble()] == [1, 1]


@pytest.mark.parametrize(
    ("first", "second"),
    [({"stream": True}, {"stream": False}), ({}, {"attempt": 1})],
    ids=["asked for in one piece", "the client counts"],
)
def test_a_stream_that_only_the_client_found_broken(first: dict[str, Any], second: dict[str, Any]) -> None:
    wire = Wire()
    prompt = [SYSTEM, user("Go")]
    wire.call(0, prompt, said("a", ("t1", "Bash", "{}")), **first)
    wire.call(1000, prompt, said("b", ("t2", "Bash", "{}")), **second)
    wire.call(2000, [*prompt, said("b", ("t2", "Bash", "{}")), result("t2")], said("c"))
    found = wire.one()
    assert relations(found) == [("start", "main", None), ("retry", "main", 0), ("continue", "main", None)]
    assert [request.parent_request_index for request in found.requests] == [None, None, 1]
    assert found.num_user_messages == 1


def test_a_second_opinion_is_no_retry() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("Go")], said("a"), session="s")
    wire.call(1000, [SYSTEM, user("Go")], said("b"), session="s")
    assert relations(wire.one())[1] == ("fork", "main", None)


def test_from_socket_to_events_with_the_whole_prompt() -> None:
    wire = Wire()
    first = said("I look.", ("c1", "Bash", "{}"))
    wire.call(0, [SYSTEM, user("Look.")], first, response_id="r1", transport="websocket", session="s")
    wire.call(1000, [SYSTEM, result("c1")], None, previous_response_id="r1", transport="websocket", session="s")
    whole = [SYSTEM, user("Look."), first, result("c1")]
    wire.call(2000, whole, said("Fine."), response_id="r2", transport="sse", session="s")
    (found,) = assemble(wire.calls, KEY)
    assert relations(found) == [("start", "main", None), ("continue", "main", None), ("retry", "main", 1)]
    assert [request.transport for request in found.requests] == ["websocket", "websocket", "sse"]


def test_a_retry_after_a_call_that_names_a_response_nobody_recorded() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, result("c1")], None, previous_response_id="r1", session="s")
    first = said("I look.", ("c1", "Bash", "{}"))
    wire.call(1000, [SYSTEM, user("Look."), first, result("c1")], said("Fine."), session="s")
    found = wire.one()
    assert relations(found) == [("start", "main", None), ("retry", "main", 0)]
    assert (found.quality.body_missing, found.quality.complete) == (1, False)


@pytest.mark.parametrize("ids", [True, False])
def test_a_sub_agent_tries_again_while_others_talk(ids: bool) -> None:
    wire = Wire()
    ask = said("I ask.", ("task", "Task", '{"prompt":"Look for the parser in this repository"}'))
    task = [Message(role="system", content="You help."), user("Look for the parser in this repository")]
    named = {"agent": "a1"} if ids else {}
    wire.call(0, [SYSTEM, user("Find it.")], ask, session="s")
    wire.call(200, task, None, session="s", status=529, error="overloaded", **named)
    wire.call(400, [user("quota")], said("q"), session="s", kind="auxiliary", tools=())
    wire.call(600, [user("quota 2")], None, session="s", kind="auxiliary", tools=())
    wire.call(800, [user("quota 2")], said("q"), session="s", kind="auxiliary", tools=())
    wire.call(1000, task, said("found it"), session="s", **named)
    wire.call(2000, [SYSTEM, user("Find it."), ask, result("task", "found it")], said("Done."), session="s")
    found = wire.one()
    assert relations(found) == [
        ("start", "main", None),
        ("subagent", "main/1", None),
        ("side", "side/1", None),
        ("side", "side/2", None),
        ("retry", "side/2", 3),
        ("retry", "main/1", 1),
        ("continue", "main", None),
    ]
    assert (found.num_user_messages, found.num_subagents, found.quality.complete) == (1, 1, True)


def test_an_answer_that_the_user_stopped_is_no_failed_attempt() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("Go")], None, error="client_aborted", status=200)
    wire.call(5000, [SYSTEM, user("Go"), user("No, otherwise.")], said("ok"))
    found = wire.one()
    assert relations(found) == [("start", "main", None), ("continue", "main", None)]
    assert (found.num_user_messages, found.requests[1].gap_kind) == (2, "human")


@pytest.mark.parametrize("words", [[user("Your response above was cut off mid-stream. Resume directly.")], []])
def test_a_broken_answer_that_is_taken_up_is_no_retry(words: list[Message]) -> None:
    """Claude Code and Codex keep the whole blocks of an answer that broke; a tool call that never closed never ran."""
    wire = Wire()
    whole, cut = ToolUse(id="t1", name="Bash", arguments="{}"), ToolUse(id="t2", name="Bash", arguments='{"a')
    partial = Message(role="assistant", content="I begin", tool_calls=(cut,))
    prompt = [SYSTEM, user("Go")]
    call = wire.call(0, prompt, said("I begin"), session="s", transport="sse", status=200)
    wire.calls[0] = replace(call, answer=partial, complete=False, error="overloaded_error: Overloaded")
    taken_up = [*prompt, said("I begin"), *words]
    closed = replace(whole, t_emitted_ns=900 * MS)
    call = wire.call(800, taken_up, said("on"), session="s", transport="sse")
    answer = Message(role="assistant", content="on", tool_calls=(closed, cut))
    wire.calls[1] = replace(call, answer=answer, complete=False, error="upstream_cut")
    echo = Message(role="assistant", content="on", tool_calls=(whole,))
    wire.call(2000, [*taken_up, echo, result("t1")], said("Done."), session="s", transport="sse")
    found = wire.one()
    assert relations(found) == [("start", "main", None), ("continue", "main", None), ("continue", "main", None)]
    assert [request.gap_kind for request in found.requests] == ["none", "client", "tool"]
    assert [request.tool_call_ids for request in found.requests] == [(), ("t1",), ()]
    assert [(one.tool_call_id, one.result_request_index) for one in found.tool_calls] == [("t1", 2)]
    assert (found.num_user_messages, found.quality.complete) == (1, True)


def test_the_same_task_again_is_no_retry_of_what_was_tried_again_already() -> None:
    wire = Wire()
    prompt = [SYSTEM, user("Go")]
    wire.call(0, prompt, None, status=529, error="overloaded")
    wire.call(1000, prompt, said("a", ("t1", "Bash", "{}")))
    wire.call(60_000, prompt, said("b", ("t2", "Bash", "{}")))
    assert [relations(one) for one in wire.assemble()] == [
        [("start", "main", None), ("retry", "main", 0)],
        [("start", "main", None)],
    ]


@pytest.mark.parametrize("words", ["", "I search."])
@pytest.mark.parametrize("session", [None, "s"])
def test_a_paused_answer_is_gone_on_from(words: str, session: str | None) -> None:
    wire = Wire()
    prompt = [SYSTEM, user("What is the news of the day?")]
    paused = replace(said(words), omitted_bytes=900)  # calls of tools that the service runs
    wire.call(0, prompt, paused, stop="pause_turn", session=session)
    wire.call(150, [*prompt, paused], said("This is."), session=session)
    first, second = wire.one().requests
    assert (second.agent_path, second.relation, second.context_event) == ("main", "continue", "append")
    assert (second.parent_request_index, second.gap_kind) == (first.request_index, "client")

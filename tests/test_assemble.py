"""Calls become sessions: who belongs together, what continues what, and whose time it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capture.assemble import assemble, contributor_id, session_id
from capture.call import SessionHint
from capture.pool import render
from capture.tool_kind import exit_code
from tests.calls import KEY, MS, SYSTEM, Wire, conversation, result, said, user


@pytest.mark.parametrize(
    ("named", "links"),
    [
        ({"session": "s"}, ["header"] * 4),
        ({"body_session": "s"}, ["body"] * 4),
        ({}, ["none", "echo", "echo", "echo"]),
    ],
    ids=["header", "body", "echo"],
)
def test_a_linear_session(named: dict[str, Any], links: list[str]) -> None:
    wire = Wire()
    conversation(wire, "alpha", **named)
    found = wire.one()
    assert found.session_id == session_id(KEY, "s" if named else "journal/0")
    assert [request.link for request in found.requests] == links
    assert [request.agent_path for request in found.requests] == ["main"] * 4
    assert [request.parent_request_index for request in found.requests] == [None, 0, 1, 2]
    assert [request.context_event for request in found.requests] == ["append"] * 4
    assert [request.prompt_spans for request in found.requests] == [((0, 2),), ((0, 4),), ((0, 6),), ((0, 8),)]
    assert [request.answer_index for request in found.requests] == [2, 4, 6, 8]
    assert [request.gap_us for request in found.requests] == [None, 900_000, 900_000, 900_000]
    assert [request.gap_kind for request in found.requests] == ["none", "tool", "tool", "tool"]
    assert [request.think_us for request in found.requests] == [None, 0, 0, 0]
    assert [request.new_input for request in found.requests] == [("text",)] + [("tool_result",)] * 3
    assert found.requests[0].new_output == ("text", "tool_use")
    assert found.requests[1].itl_us == (30_000, 44_000)
    assert (found.duration_us, found.api_us, found.tool_us, found.human_us) == (3_100_000, 400_000, 2_700_000, 0)
    assert (found.num_user_messages, found.num_subagents, found.num_compactions) == (1, 0, 0)
    assert (found.t0_utc_us, found.quality.complete) == (wire.anchor_us, True)
    assert [(call.name, call.kind, call.wall_us, call.t_emitted_us) for call in found.tool_calls] == [
        ("Bash", "exec", 900_000, at * 1_000_000 + 95_000) for at in range(3)
    ]
    assert [(call.request_index, call.result_request_index) for call in found.tool_calls] == [(0, 1), (1, 2), (2, 3)]


def test_text_only_turns_link_by_prefix_and_count_as_human_time() -> None:
    wire = Wire()
    first, second = said("Hello, what may I do for you today?"), said("It is done.")
    wire.call(0, [SYSTEM, user("Hi")], first)
    wire.call(5000, [SYSTEM, user("Hi"), first, user("Fix it")], second)
    wire.call(9000, [SYSTEM, user("Hi"), first, user("Fix it"), second, user("Thanks")], said("Bye"))
    found = wire.one()
    assert [request.link for request in found.requests] == ["none", "prefix", "prefix"]
    assert [request.gap_kind for request in found.requests] == ["none", "human", "human"]
    assert [request.think_us for request in found.requests] == [None, 4_900_000, 3_900_000]
    assert (found.human_us, found.tool_us, found.num_user_messages) == (8_800_000, 0, 3)


@pytest.mark.parametrize("named", [[{"session": "a"}, {"session": "b"}, {"session": "c"}], [{}, {}, {}]])
def test_sessions_side_by_side_come_apart(named: list[dict[str, Any]]) -> None:
    wire = Wire()
    for number, (tag, extra) in enumerate(zip(("alpha", "beta", "gamma"), named, strict=True)):
        conversation(wire, tag, base_ms=number * 150, **extra)
    found = wire.assemble()
    assert [len(trajectory.requests) for trajectory in found] == [4, 4, 4]
    for trajectory, tag in zip(found, ("alpha", "beta", "gamma"), strict=True):
        assert all(tag in call.tool_call_id for call in trajectory.tool_calls)
        assert {request.agent_path for request in trajectory.requests} == {"main"}


def test_the_same_task_twice_at_once_stays_two_sessions_even_with_the_same_ids() -> None:
    wire = Wire()
    task = [SYSTEM, user("Count the files.")]
    for number in range(2):
        wire.call(number * 10, task, said(f"run {number}", ("call_1", "Bash", "{}")), connection_id=f"c{number}")
    for number in range(2):
        prompt = [*task, said(f"run {number}", ("call_1", "Bash", "{}")), result("call_1", f"{number} files")]
        wire.call(2000 + number * 10, prompt, said("Done."), connection_id=f"c{number}")
    found = wire.assemble()
    assert [len(trajectory.requests) for trajectory in found] == [2, 2]
    assert [trajectory.tool_calls[0].result_request_index for trajectory in found] == [1, 1]
    assert [trajectory.pool[3].message.content for trajectory in found] == ["0 files", "1 files"]


def test_ids_stay_while_a_session_grows() -> None:
    wire = Wire()
    conversation(wire, "alpha")
    whole = wire.one()
    for count in range(1, 5):
        assert assemble(wire.calls[:count], KEY)[0].session_id == whole.session_id
    assert assemble(wire.calls, b"x" * 32)[0].session_id != whole.session_id
    assert assemble(list(reversed(wire.calls)), KEY) == [whole]


def test_a_session_over_two_journals() -> None:
    first = Wire()
    conversation(first, "alpha", session="s", turns=3)
    second = Wire(anchor_us=first.anchor_us + 60_000_000, name="later")
    conversation(second, "alpha", session="s", turns=4)
    (found,) = assemble([*second.calls[3:], *first.calls], KEY)
    assert [request.t_send_us for request in found.requests] == [0, 1_000_000, 2_000_000, 63_000_000]
    assert found.requests[-1].gap_us == 60_900_000


def test_a_header_that_comes_late_is_adopted() -> None:
    wire = Wire()
    conversation(wire, "alpha")
    hint = (SessionHint(session="s", evidence="header"),)
    wire.calls[2:] = [replace(call, hints=hint) for call in wire.calls[2:]]
    found = wire.one()
    assert [request.link for request in found.requests] == ["none", "echo", "echo", "header"]
    assert found.session_id == session_id(KEY, "journal/0")


def test_a_previous_response_stands_for_the_prompt_before_it() -> None:
    wire = Wire()
    first, second = said("I look.", ("c1", "Bash", "{}")), said("All fine, it seems.")
    wire.call(0, [SYSTEM, user("Look.")], first, response_id="r1")
    wire.call(1000, [SYSTEM, result("c1")], second, response_id="r2", previous_response_id="r1")
    wire.call(2000, [SYSTEM, user("And now?")], said("Done."), response_id="r3", previous_response_id="r2")
    (found,) = assemble(wire.calls, KEY)
    assert [request.agent_path for request in found.requests] == ["main"] * 3
    assert [request.context_event for request in found.requests] == ["append"] * 3
    assert [request.gap_kind for request in found.requests] == ["none", "tool", "human"]
    assert found.requests[2].prompt_spans is not None
    whole = render(found.pool, found.requests[2].prompt_spans)
    assert [message.role for message in whole] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert found.num_user_messages == 2
    assert found.quality.complete


def test_a_previous_response_that_nobody_recorded_leaves_the_prompt_short() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("And now?")], said("Done."), response_id="r3", previous_response_id="r2")
    (found,) = assemble(wire.calls, KEY)
    assert (found.quality.body_missing, found.quality.complete) == (1, False)


@pytest.mark.parametrize(
    "change",
    [
        {"complete": False, "error": "client_aborted", "status": 200},
        {"complete": False, "error": "open", "t_end_ns": None},
        {"gaps": 1},
    ],
    ids=["agent killed", "recorder killed", "recorder lost something"],
)
def test_what_was_cut_is_assembled_and_not_called_whole(change: dict[str, Any]) -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s")
    wire.calls[-1] = replace(wire.calls[-1], **change)
    found = wire.one()
    assert len(found.requests) == 4
    assert not found.quality.complete


def test_an_unreadable_request_body() -> None:
    wire = Wire()
    wire.call(0, [], said("a"), tools=(), session="s")
    wire.call(1000, [], said("b"), tools=(), session="s")
    found = wire.one()
    assert (len(found.requests), found.quality.body_missing, found.quality.complete) == (2, 2, False)


def test_results_of_commands_say_how_they_ended() -> None:
    wire = Wire()
    ask = said(
        "", ("t1", "bash", "{}"), ("t2", "exec_command", "{}"), ("t3", "mcp__x__y", "{}"), ("t4", "apply_patch", "")
    )
    wire.call(0, [user("Go")], ask)
    results = [
        result("t1", "<returncode>2</returncode>\n<output>no</output>"),
        replace(result("t2", "Process exited with code 124\ncommand timed out after 10 s"), is_error=True),
        result("t3", "Exit code: 0"),
    ]
    wire.call(1000, [user("Go"), ask, *results], said("ok"))
    rows = {call.tool_call_id: call for call in wire.one().tool_calls}
    assert (rows["t1"].exit_code, rows["t1"].timed_out, rows["t1"].is_error) == (2, None, None)
    assert (rows["t2"].exit_code, rows["t2"].timed_out, rows["t2"].is_error) == (124, True, True)
    assert (rows["t3"].kind, rows["t3"].exit_code) == ("mcp", None)
    assert (rows["t4"].kind, rows["t4"].wall_us, rows["t4"].result_bytes) == ("edit", None, None)
    assert len({call.parallel_group for call in rows.values()}) == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Exit code 3221225786", -1073741510),  # Ctrl-C on Windows, which says it without a sign
        ("Process exited with code -1073741510", -1073741510),
        ("<returncode>4294967296</returncode>", None),
        (f'"exit_code": {"9" * 5000}', None),
    ],
)
def test_exit_codes_have_32_bits(text: str, code: int | None) -> None:
    assert exit_code(text) == code


def test_ids_that_repeat_in_every_turn() -> None:
    wire = Wire()
    messages = [SYSTEM, user("Go")]
    for turn in range(3):
        answer = said(f"turn {turn}", ("call_0", "Bash", f'{{"n":{turn}}}'))
        wire.call(turn * 1000, list(messages), answer, session="s")
        messages += [answer, result("call_0", "x" * (turn + 1))]
    found = wire.one()
    assert [(call.result_request_index, call.result_bytes) for call in found.tool_calls] == [
        (1, 1),
        (2, 2),
        (None, None),
    ]


def test_a_cache_key_alone_ties_no_two_conversations() -> None:
    wire = Wire()
    hints = (SessionHint(session="my application", evidence="body", cache_key=True),)
    for number, tag in enumerate(("alpha", "beta")):
        conversation(wire, tag, base_ms=number * 150, hints=hints)
    wire.calls.sort(key=lambda call: call.t_send_ns)
    found = wire.assemble()
    assert [len(one.requests) for one in found] == [4, 4]
    assert [request.link for request in found[0].requests] == ["body", "echo", "echo", "echo"]
    # The first session of a key takes its name from it, so that it meets its log again.
    assert found[0].session_id == session_id(KEY, "my application")
    assert found[1].session_id == session_id(KEY, wire.calls[1].exchange_id)


def test_a_cache_key_ties_what_cannot_stand_alone() -> None:
    wire = Wire()
    hints = (SessionHint(session="thread", evidence="body", cache_key=True),)
    conversation(wire, "alpha", hints=hints)
    wire.call(500, [user("Warm up.")], None, hints=hints, kind="auxiliary", tools=())
    wire.call(600, [user("Name it.")], said("Alpha"), hints=hints, tools=())
    wire.calls.sort(key=lambda call: call.t_send_ns)
    assert [request.agent_path for request in wire.one().requests] == ["main", "side/1", "side/2", *["main"] * 3]


def test_a_cache_key_that_is_known_as_a_session_is_its_id() -> None:
    """opencode loses its session headers for a while and still sends the session as cache key."""
    wire = Wire()
    conversation(wire, "alpha", session="s")
    hints = (SessionHint(session="s", evidence="body", cache_key=True),)
    wire.call(9000, [SYSTEM, user("Something else entirely.")], said("ok"), hints=hints)
    found = wire.one()
    assert [request.relation for request in found.requests] == ["start"] + ["continue"] * 3 + ["fork"]


def test_what_different_people_send_never_comes_together() -> None:
    wire = Wire()
    for number, person in enumerate(("ann", "ben")):
        conversation(wire, "alpha", base_ms=number * 10, contributor=person, consent=f"{person} said yes")
        conversation(wire, "alpha", base_ms=20 + number * 10, session="s", contributor=person)
    wire.calls.sort(key=lambda call: call.t_send_ns)
    found = wire.assemble()
    assert [len(one.requests) for one in found] == [4, 4, 4, 4]
    assert len({one.session_id for one in found}) == 4
    assert {one.contributor for one in found} == {contributor_id(KEY, "ann"), contributor_id(KEY, "ben")}
    assert found[0].contributor == session_id(KEY, "contributor:ann")[:16]
    assert (found[0].consent, found[2].consent) == ("ann said yes", None)


def test_ids_that_go_missing_for_a_while() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s", turns=6)
    conversation(wire, "beta", base_ms=50, session="t", turns=6)
    for number in (2, 3, 8):
        wire.calls[number] = replace(wire.calls[number], hints=())
    wire.calls.sort(key=lambda call: call.t_send_ns)
    found = wire.assemble()
    assert [len(one.requests) for one in found] == [6, 6]
    assert [request.link for request in found[0].requests] == ["header", "header", "echo", "echo", "echo", "header"]
    assert {request.link_confidence for request in found[0].requests[1:]} == {"certain"}


def test_a_sub_agent_whose_id_goes_missing_stays_on_its_chain() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s")
    conversation(wire, "beta", base_ms=50, session="s", agent="a1")
    wire.calls[6] = replace(wire.calls[6], hints=())
    wire.calls.sort(key=lambda call: call.t_send_ns)
    assert [request.agent_path for request in wire.one().requests] == ["main", "main/1"] * 4


def test_two_conversations_on_one_socket() -> None:
    """`stream_id`: parallel conversations, and a fork from an older response, each naming what it goes on from."""
    wire = Wire()
    opening = {"response_id": "r1", "transport": "websocket", "took_ms": 100}
    first = said("I look.", ("c1", "Bash", "{}"))
    wire.call(0, [SYSTEM, user("Look.")], first, **opening)
    wire.call(
        200, [SYSTEM, result("c1")], said("Well, it is fine."), response_id="r2", previous_response_id="r1", took_ms=900
    )
    wire.call(400, [SYSTEM, result("c1"), user("Or not?")], said("No."), response_id="r3", previous_response_id="r1")
    wire.call(600, [SYSTEM, user("Sure?")], said("Yes."), response_id="r4", previous_response_id="r3")
    wire.call(2000, [SYSTEM, user("And?")], said("So."), response_id="r5", previous_response_id="r2")
    wire.call(3000, [SYSTEM, user("Back.")], said("Hm."), response_id="r6", previous_response_id="r2")
    (found,) = assemble(wire.calls, KEY)
    assert [(request.agent_path, request.relation, request.parent_request_index) for request in found.requests] == [
        ("main", "start", None),
        ("main", "continue", 0),
        ("main/1", "fork", 0),
        ("main/1", "continue", 2),
        ("main", "continue", 1),
        ("main", "fork", 1),
    ]
    assert {request.link_confidence for request in found.requests[1:]} == {"certain"}
    spans = found.requests[3].prompt_spans
    assert spans is not None
    texts = [message.content for message in render(found.pool, spans)]
    assert texts == ["You are an agent.", "Look.", "I look.", "ok", "Or not?", "No.", "Sure?"]
    assert found.quality.complete


def test_prewarming_is_beside_and_its_prompt_counts() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("Go.")], None, response_id="r0", kind="auxiliary", complete=True, status=200, error=None)
    wire.call(50, [SYSTEM], said("Done."), response_id="r1", previous_response_id="r0")
    (found,) = assemble(wire.calls, KEY)
    assert [(request.agent_path, request.relation) for request in found.requests] == [
        ("side/1", "side"),
        ("main", "start"),
    ]
    assert (found.num_user_messages, found.quality.body_missing, found.quality.complete) == (1, 0, True)


def test_what_goes_on_from_a_short_prompt_is_short_as_well() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("And now?")], said("Done."), response_id="r3", previous_response_id="r2")
    wire.call(900, [SYSTEM, user("Sure?")], said("Yes."), response_id="r4", previous_response_id="r3")
    (found,) = assemble(wire.calls, KEY)
    assert (found.quality.body_missing, found.quality.complete) == (2, False)


def test_one_response_id_on_two_sockets() -> None:
    wire = Wire()
    for number in range(2):
        wire.call(
            number, [SYSTEM, user(f"Job {number}")], said("I look."), response_id="r1", connection_id=f"c{number}"
        )
    for number in range(2):
        wire.call(
            900 + number,
            [SYSTEM, user("Go on.")],
            said("ok"),
            response_id="r2",
            previous_response_id="r1",
            connection_id=f"c{number}",
        )
    found = assemble(wire.calls, KEY)
    assert [len(one.requests) for one in found] == [2, 2]
    for number, one in enumerate(found):
        assert one.requests[1].prompt_spans is not None
        assert render(one.pool, one.requests[1].prompt_spans)[1].content == f"Job {number}"


def test_times_by_kind_of_content_and_how_it_was_sent() -> None:
    wire = Wire()
    wire.call(
        0,
        [SYSTEM, user("Go")],
        said("a"),
        transport="sse",
        mode="forward",
        t_first_thinking_ns=20 * MS,
        t_first_text_ns=40 * MS,
        t_first_tool_call_ns=60 * MS,
    )
    found = wire.one()
    (request,) = found.requests
    assert (request.t_first_thinking_us, request.t_first_text_us, request.t_first_tool_call_us) == (
        20_000,
        40_000,
        60_000,
    )
    assert (request.transport, found.mode) == ("sse", "forward")


def test_a_better_id_that_differs_outweighs_a_worse_one_that_agrees() -> None:
    """One account's id in the body of two sessions, each with a session header of its own."""
    wire = Wire()
    conversation(wire, "alpha", session="s", body_session="account")
    conversation(wire, "beta", base_ms=50, session="t", body_session="account")
    wire.calls.sort(key=lambda call: call.t_send_ns)
    assert [len(one.requests) for one in wire.assemble()] == [4, 4]
    # Where only the worse one is sent, it is all there is.
    wire.call(9000, [SYSTEM, user("More.")], said("ok"), body_session="account")
    assert [len(one.requests) for one in wire.assemble()] == [5, 4]


@pytest.mark.parametrize("element", ["session_context", "environment_details", "environment_context"])
def test_what_an_agent_says_of_its_surroundings_is_no_human_turn(element: str) -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user(f"<{element}>\nToday is Friday.\n</{element}>"), user("Fix it.")], said("Done"))
    assert wire.one().num_user_messages == 1

"""Rewinds, edits and what only looks like one."""

from __future__ import annotations

from dataclasses import replace

from capture.call import Message
from tests.calls import SYSTEM, Wire, conversation, result, said, user


def test_history_rewritten_in_place_is_an_edit() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s", turns=3)
    prompt = list(wire.calls[-1].messages)
    prompt[3] = replace(prompt[3], content="[old result cleared]")
    wire.call(4000, [*prompt, said("alpha 2"), user("And now?")], said("Done"), session="s")
    found = wire.one()
    assert [request.context_event for request in found.requests] == ["append", "append", "append", "edit"]
    assert found.requests[3].prompt_spans == ((0, 3), (7, 8), (4, 7), (8, 9))
    assert found.requests[3].agent_path == "main"


def test_a_rewind_is_a_branch_of_the_same_chain() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s", turns=4)
    early = list(wire.calls[1].messages)
    wire.call(
        9000,
        [*early, said("alpha 1", ("alpha-1", "Bash", '{"command":"alpha 1"}')), user("No, stop.")],
        said("ok"),
        session="s",
    )
    found = wire.one()
    assert [request.context_event for request in found.requests][-1] == "branch"
    assert (found.requests[-1].agent_path, found.requests[-1].parent_request_index) == ("main", 1)


def test_a_new_start_in_the_same_session_is_a_reset() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s", turns=2)
    wire.call(9000, [SYSTEM, user("Something else entirely.")], said("ok"), session="s")
    found = wire.one()
    assert [request.context_event for request in found.requests] == ["append", "append", "reset"]
    assert {request.agent_path for request in found.requests} == {"main"}


def test_moving_reminders_and_dropped_thoughts_do_not_break_a_chain() -> None:
    wire = Wire()
    ask = replace(said("", ("t1", "Bash", '{"command": "ls"}')), reasoning_content="hm")
    wire.call(0, [SYSTEM, user("Go"), user("<system-reminder>one</system-reminder>")], ask, session="s")
    echo = said("", ("t1", "Bash", '{"command":"ls"}'))
    wire.call(
        1000,
        [SYSTEM, user("Go"), echo, result("t1"), user("<system-reminder>two</system-reminder>")],
        said("ok"),
        session="s",
    )
    found = wire.one()
    assert [request.context_event for request in found.requests] == ["append", "append"]
    assert found.requests[1].gap_kind == "tool"


def test_other_instructions_before_the_same_conversation_are_no_fork() -> None:
    """A date in the system prompt, a new attribution: the engine starts anew, the conversation does not."""
    wire = Wire()
    conversation(wire, "alpha", turns=2)
    history = [*wire.calls[-1].messages[1:], said("alpha 1"), user("And now?")]
    wire.call(5000, [Message(role="system", content="You are an agent. Today is Friday."), *history], said("ok"))
    signed = "x-anthropic-billing-header: cch=abc;\nYou are an agent. Today is Friday."
    wire.call(6000, [Message(role="system", content=signed), *history, said("ok"), user("More?")], said("no"))
    found = wire.one()
    assert [(request.relation, request.context_event) for request in found.requests][2:] == [
        ("continue", "edit"),
        ("continue", "append"),
    ]


def test_an_answer_taken_back_is_a_fork() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s", turns=2)
    wire.call(9000, [*wire.calls[-1].messages, user("No, stop.")], said("ok"), session="s")
    request = wire.one().requests[2]
    assert (request.relation, request.context_event, request.parent_request_index) == ("fork", "branch", 1)


def test_an_answer_that_the_agent_words_anew_goes_on() -> None:
    wire = Wire()
    wire.call(0, [SYSTEM, user("Go")], said("<think>hm</think> It is done."), session="s")
    wire.call(5000, [SYSTEM, user("Go"), said("It is done."), user("Sure?")], said("yes"), session="s")
    request = wire.one().requests[1]
    assert (request.relation, request.context_event) == ("continue", "append")


def test_a_message_of_thoughts_alone_goes_with_them() -> None:
    wire = Wire()
    thought = Message(role="assistant", content="", reasoning_content="hm", omitted_bytes=40)
    ask = said("", ("t1", "Bash", "{}"))
    wire.call(0, [SYSTEM, user("Go"), thought, user("On.")], ask, session="s")
    wire.call(900, [SYSTEM, user("Go"), user("On."), ask, result("t1")], said("ok"), session="s")
    assert [request.relation for request in wire.one().requests] == ["start", "continue"]


def test_a_rewind_of_a_sub_agent_stays_there() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s", turns=4)
    conversation(wire, "beta", session="s", agent="a1", base_ms=50, turns=4)
    early = list(wire.calls[5].messages)
    wire.call(9000, [*early, user("beta: no, stop.")], said("ok"), session="s", agent="a1")
    wire.calls.sort(key=lambda call: call.t_send_ns)
    request = wire.one().requests[-1]
    assert (request.agent_path, request.relation, request.parent_request_index) == ("main/1", "fork", 3)


def test_a_rewind_after_a_rewind_is_one_too() -> None:
    wire = Wire()
    prompts = [[SYSTEM, user("Start with this thing.")]]
    for turn in range(4):
        answer = said(f"answer {turn}")
        wire.call(1000 * turn, prompts[-1], answer)
        prompts.append([*prompts[-1], answer, user(f"next {turn}")])
    wire.call(5000, [*prompts[1][:-1], user("No, otherwise.")], said("B"))
    wire.call(6000, [*prompts[2][:-1], user("Or rather so.")], said("C"))  # longer than what it leaves
    found = wire.one().requests[-2:]
    assert [(request.context_event, request.parent_request_index) for request in found] == [
        ("branch", 0),
        ("branch", 1),
    ]

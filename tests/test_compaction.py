"""Compactions: whatever tells of them, each counts once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capture.call import Message, Tool
from capture.trajectory import Trajectory
from tests.calls import LONG, SYSTEM, TOOLS, Wire, conversation, result, said, user


def test_a_compaction_that_says_so() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s", turns=3)
    history = list(wire.calls[-1].messages)
    wire.call(4000, [*history, said("alpha 2"), user("Summarize.")], said(LONG), session="s", compaction="auto")
    shorter = [SYSTEM, user(f"This session is being continued from a previous conversation. {LONG}")]
    wire.call(5000, shorter, said("on", ("n1", "Bash", "{}")), session="s", context_compacted=True)
    wire.call(6000, [*shorter, said("on", ("n1", "Bash", "{}")), result("n1")], said("end"), session="s")
    found = wire.one()
    assert [request.context_event for request in found.requests] == ["append"] * 4 + ["compaction", "append"]
    assert {request.agent_path for request in found.requests} == {"main"}
    assert (found.num_compactions, found.num_user_messages) == (1, 1)


def test_a_compaction_known_by_its_summary_alone() -> None:
    wire = Wire()
    conversation(wire, "alpha", turns=3)
    history = list(wire.calls[-1].messages)
    wire.call(4000, [*history, said("alpha 2"), user("Summarize.")], said(LONG))
    wire.call(5000, [SYSTEM, user(f"Summary: {LONG}")], said("on"))
    found = wire.one()
    assert [request.context_event for request in found.requests][-1] == "compaction"
    assert found.requests[-1].link == "echo"


def events(found: Trajectory) -> list[tuple[str, str, str]]:
    return [(request.agent_path, request.relation, request.context_event) for request in found.requests]


def worked(wire: Wire, **named: Any) -> list[Message]:
    """A session of three calls, and its history so far."""
    conversation(wire, "alpha", turns=3, **named)
    return [*wire.calls[-1].messages, said("alpha 2")]


def test_codex_compacts_by_a_call_of_its_own() -> None:
    wire = Wire()
    history = worked(wire, session="s", context_generation=0)
    compact = {"kind": "auxiliary", "compaction": "auto", "tools": ()}
    wire.call(4000, history, Message(role="assistant", content="", omitted_bytes=900), session="s", **compact)
    shorter = [SYSTEM, user("Do alpha."), Message(role="user", content="", omitted_bytes=900)]
    wire.call(5000, shorter, None, session="s", context_generation=1, status=503, error="busy")
    wire.call(6000, shorter, said("on"), session="s", context_generation=1)
    found = wire.one()
    assert events(found)[3:] == [
        ("side/1", "side", "append"),
        ("main", "compaction", "compaction"),
        ("main", "retry", "append"),
    ]
    assert [request.agent_type for request in found.requests] == [None] * 3 + ["compaction", None, None]
    assert (found.requests[4].link, found.requests[4].link_confidence) == ("header", "certain")
    assert (found.requests[4].parent_request_index, found.requests[4].gap_kind) == (2, "client")
    # 2.9 s, of which the call that wrote the summary took 0.1.
    assert (found.requests[4].gap_us, found.requests[4].client_us) == (2_900_000, 2_800_000)
    assert (found.num_compactions, found.num_user_messages) == (1, 1)


def test_codex_compacts_on_the_chain_and_counts() -> None:
    wire = Wire()
    history = worked(wire, session="s", context_generation=0)
    wire.call(4000, [*history, user("Write a handoff.")], said(LONG), session="s", context_generation=0)
    kept = [SYSTEM, user("Do alpha."), user(f"Another language model started to solve this problem. {LONG}")]
    wire.call(5000, kept, said("on"), session="s", context_generation=1)
    wire.call(9000, [*kept, said("on"), user("Well?")], said("yes"), session="s", context_generation=1)
    found = wire.one()
    assert events(found)[3:] == [
        ("main", "continue", "append"),
        ("main", "compaction", "compaction"),
        ("main", "continue", "append"),
    ]
    assert [request.agent_type for request in found.requests][3:] == ["compaction", None, None]
    assert [request.gap_kind for request in found.requests][4:] == ["client", "human"]
    assert (found.num_compactions, found.num_user_messages) == (1, 2)


def test_pi_writes_its_summary_beside_the_conversation_and_keeps_its_end() -> None:
    wire = Wire()
    task = "Do the whole of alpha in this repository."
    first, second = said("I look.", ("p1", "Bash", "{}")), said("I write.", ("p2", "Bash", "{}"))
    wire.call(0, [SYSTEM, user(task)], first)
    wire.call(1000, [SYSTEM, user(task), first, result("p1", "x" * 500)], second)
    wire.call(2000, [SYSTEM, user(task), first, result("p1", "x" * 500), second, result("p2")], said(LONG.upper()))
    writer = Message(role="system", content="You are a context summarization assistant.")
    shown = user(f"<conversation>[User]: {task} [Assistant]: {LONG.upper()}</conversation> Summarize this.")
    wire.call(3000, [writer, shown], said(LONG), tools=(), harness="unknown", connection_id="c9")
    told = user(f"The conversation history before this point was compacted into the following summary: {LONG}")
    wire.call(4000, [SYSTEM, told, second, result("p2")], said("on"))
    found = wire.one()
    assert events(found)[3:] == [("side/1", "side", "append"), ("main", "compaction", "compaction")]
    assert (found.requests[3].agent_type, found.requests[3].kind) == ("compaction", "auxiliary")
    assert (found.num_compactions, found.num_user_messages) == (1, 1)
    assert (found.requests[4].link, found.requests[4].link_confidence) == ("echo", "likely")


def transcript(*lines: str) -> Message:
    shown = "\n\n".join(lines)
    return user(f"Here is the conversation so far: <conversation>\n{shown}\n</conversation> Write a summary of it.")


WRITER = Message(role="system", content="You are a context summarization agent.")
BEHIND = "The conversation history before this point was compacted into the following summary:"


@pytest.mark.parametrize("named", [{"session": "s"}, {}], ids=["session id", "no id"])
def test_opencode_carries_the_summary_as_the_models_words(named: dict[str, Any]) -> None:
    """A short session: the summary is longer than what it stands for, and the last tool's result is in it alone."""
    wire = Wire()
    step = said("step 1 of it", ("p1", "bash", "{}"))
    wire.call(0, [SYSTEM, user("go")], step, **named)
    wire.call(500, [SYSTEM, user("go"), step, result("p1")], said("step 2 of it", ("p2", "bash", "{}")), **named)
    lines = ("[User]: go", "[Assistant]: step 1 of it", "[Assistant]: step 2 of it")
    wire.call(900, [WRITER, transcript(*lines)], said(LONG), tools=(), **named)
    carried = [SYSTEM, user("What did we do so far?"), said(LONG), user("Continue if you have next steps")]
    third = said("step 3 of it", ("p3", "bash", "{}"))
    wire.call(1500, carried, third, **named)
    wire.call(2000, [*carried, third, result("p3")], said("Done."), **named)
    found = wire.one()
    assert events(found)[2:] == [
        ("side/1", "side", "append"),
        ("main", "compaction", "compaction"),
        ("main", "continue", "append"),
    ]
    assert [request.agent_type for request in found.requests][2:4] == ["compaction", None]
    assert found.requests[4].link == ("header" if named else "echo")
    assert (found.num_compactions, found.num_user_messages, found.num_subagents) == (1, 1, 0)


def test_pi_asks_for_two_summaries_side_by_side() -> None:
    wire = Wire()
    first = said("first turn " * 20, ("p1", "bash", "{}"))
    wire.call(0, [SYSTEM, user("go first")], first)
    wire.call(500, [SYSTEM, user("go first"), first, result("p1", "x" * 900)], said("first end"))
    for number, summary in enumerate(("No prior history.", LONG)):
        shown = transcript("[User]: go first", f"[Assistant]: {first.content.strip()}")
        wire.call(
            1000 + number, [WRITER, shown], said(summary), tools=(), harness="unknown", connection_id=f"c{number}"
        )
    behind = user(f"{BEHIND}\n<summary>\nNo prior history.\n---\n{LONG}\n</summary>")
    wire.call(3000, [SYSTEM, behind, said("first end"), user("go second")], said("second"))
    found = wire.one()
    assert events(found)[2:] == [
        ("side/1", "side", "append"),
        ("side/2", "side", "append"),
        ("main", "compaction", "compaction"),
    ]
    assert [request.parent_request_index for request in found.requests][2:] == [1, 1, 1]
    assert found.requests[3].agent_type == "compaction"
    assert (found.num_compactions, found.num_user_messages, found.requests[4].gap_kind) == (1, 2, "human")


def test_claude_code_sends_the_last_tools_behind_the_summary() -> None:
    wire = Wire()
    first, second = said("step 1", ("b1", "Bash", "{}")), said("step 2", ("b2", "Bash", "{}"))
    opening = [SYSTEM, user("Go on with it.")]
    wire.call(0, opening, first, session="s")
    wire.call(500, [*opening, first, result("b1")], second, session="s")
    ask = [*opening, first, result("b1"), user("Your task is to create a detailed summary.")]
    wire.call(900, ask, said(LONG), session="s", compaction="auto")
    behind = user(f"This session is being continued from a previous conversation. {LONG}")
    durations = (("Bash", 250),)
    wire.call(
        1500,
        [SYSTEM, behind, second, result("b2")],
        said("ok"),
        session="s",
        context_compacted=True,
        tool_durations_ms=durations,
    )
    found = wire.one()
    assert events(found) == [
        ("main", "start", "append"),
        ("main", "continue", "append"),
        ("main", "continue", "append"),
        ("main", "compaction", "compaction"),
    ]
    assert [request.gap_kind for request in found.requests] == ["none", "tool", "tool", "client"]
    assert found.requests[2].parent_request_index == 1
    late = found.tool_calls[1]
    assert (late.result_request_index, late.internal_us) == (3, 250_000)
    assert (found.num_compactions, found.num_user_messages) == (1, 1)


def test_claude_code_without_its_hints_keeps_only_the_inner_summary() -> None:
    wire = Wire()
    history = worked(wire, session="s")
    answer = said(f"<analysis>Let me think.</analysis>\n<summary>\n{LONG}\n</summary>")
    wire.call(4000, [*history, user("Your task is to create a detailed summary.")], answer, session="s")
    wire.call(5000, [SYSTEM, user(f"Summary:\n{LONG}"), user("And now the rest.")], said("on"), session="s")
    found = wire.one()
    assert events(found)[4] == ("main", "compaction", "compaction")
    # The human spoke after a compaction that was asked for: it is that human's time.
    assert (found.requests[4].gap_kind, found.num_user_messages) == ("human", 2)


def test_a_compaction_that_fails_first_counts_once() -> None:
    wire = Wire()
    history = worked(wire, session="s")
    ask = [*history, user("Summarize.")]
    wire.call(4000, ask, None, session="s", compaction="auto", status=529, error="overloaded")
    wire.call(5000, ask, said(LONG), session="s", compaction="auto", attempt=1)
    shorter = [SYSTEM, user(f"This session is being continued from a previous conversation. {LONG}")]
    wire.call(6000, shorter, None, session="s", context_compacted=True, status=529, error="overloaded")
    wire.call(7000, shorter, said("on"), session="s", context_compacted=True, attempt=1)
    found = wire.one()
    assert [request.relation for request in found.requests][3:] == ["continue", "retry", "compaction", "retry"]
    assert (found.num_compactions, found.num_user_messages) == (1, 1)


def test_two_compactions_are_two() -> None:
    wire = Wire()
    history = worked(wire, session="s")
    for number in range(2):
        summary = f"{LONG} ({number})"
        wire.call(4000 + number * 5000, [*history, user("Summarize.")], said(summary), session="s", compaction="auto")
        history = [SYSTEM, user(f"This session is being continued from a previous conversation. {summary}")]
        wire.call(5000 + number * 5000, history, said("on", (f"n{number}", "Bash", "{}")), session="s")
        history += [said("on", (f"n{number}", "Bash", "{}")), result(f"n{number}")]
    found = wire.one()
    assert (found.num_compactions, found.num_user_messages) == (2, 1)
    assert {request.agent_path for request in found.requests} == {"main"}


def test_a_title_that_quotes_the_answer_compacts_nothing() -> None:
    wire = Wire()
    history = [*worked(wire, session="s")[:-1], said(LONG)]
    wire.calls[-1] = replace(wire.calls[-1], answer=said(LONG))
    namer = Message(role="system", content="Name the last step.")
    wire.call(4000, [namer, user(f"Last step: {LONG}")], said("Fixed"), session="s", tools=())
    wire.call(5000, [*history, user("Next.")], said("ok"), session="s")
    found = wire.one()
    assert events(found)[3:] == [("side/1", "side", "append"), ("main", "continue", "append")]
    assert found.num_compactions == 0


def test_a_sub_agents_compaction_is_its_own() -> None:
    wire = Wire()
    ask = said("I ask.", ("task", "Task", '{"prompt":"Look for the parser in this repository"}'))
    task = [Message(role="system", content="You help."), user("Look for the parser in this repository")]
    wire.call(0, [SYSTEM, user("Find it.")], ask, session="s")
    first = said("I look.", ("b1", "Bash", "{}"))
    wire.call(200, task, first, session="s", agent="a1")
    wire.call(
        400,
        [*task, first, result("b1", "x" * 400), user("Summarize.")],
        said(LONG),
        session="s",
        agent="a1",
        compaction="auto",
    )
    wire.call(
        600, [task[0], user(f"Summary: {LONG}")], said("found it"), session="s", agent="a1", context_compacted=True
    )
    wire.call(900, [SYSTEM, user("Find it."), ask, result("task", "found it")], said("Done."), session="s")
    found = wire.one()
    assert events(found) == [
        ("main", "start", "append"),
        ("main/1", "subagent", "append"),
        ("main/1", "continue", "append"),
        ("main/1", "compaction", "compaction"),
        ("main", "continue", "append"),
    ]
    assert found.num_compactions == 1


OTHER_TOOLS = (Tool(name="comment", description="", parameters="{}"),)


@pytest.mark.parametrize(
    ("system", "tools"),
    [(Message(role="system", content="You review."), TOOLS), (SYSTEM, OTHER_TOOLS)],
    ids=["instructions", "tools"],
)
def test_an_answer_that_is_shown_to_another_agent_compacts_nothing(system: Message, tools: tuple[Tool, ...]) -> None:
    wire = Wire()
    history = worked(wire)
    wire.call(4000, [*history, user("Give me a summary.")], said(LONG))
    wire.call(9000, [system, user(f"Review what another agent did: {LONG}")], said("Well done"), tools=tools)
    first, second = wire.assemble()
    assert (first.num_compactions, second.num_compactions) == (0, 0)
    assert (len(second.requests), second.num_user_messages) == (1, 1)

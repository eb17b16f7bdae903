"""Calls become sessions: who belongs together, what continues what, and whose time it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.assemble import assemble, session_id
from capture.call import Message, ModelCall, SessionHint, Tool, ToolUse, Usage
from capture.pool import MessagePool, render
from capture.trajectory import Trajectory

KEY = b"k" * 32
MS = 1_000_000
TOOLS = (Tool(name="Bash", description="", parameters="{}"), Tool(name="Task", description="", parameters="{}"))
SYSTEM = Message(role="system", content="You are an agent.")
LONG = "The user asked for a parser; files a.py and b.py were read, the bug is in line 40 of b.py and is fixed by now."


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str, *calls: tuple[str, str, str]) -> Message:
    uses = tuple(ToolUse(id=call_id, name=name, arguments=arguments) for call_id, name, arguments in calls)
    return Message(role="assistant", content=text, tool_calls=uses)


def result(call_id: str, text: str = "ok") -> Message:
    return Message(role="tool", content=text, tool_call_id=call_id)


class Wire:
    """Builds calls of one recorder in order of sending; times in milliseconds."""

    def __init__(self, anchor_us: int = 1_790_000_000_000_000, name: str = "journal") -> None:
        self.calls: list[ModelCall] = []
        self.anchor_us = anchor_us
        self.name = name

    def call(
        self,
        send_ms: int,
        messages: list[Message],
        answer: Message | None,
        *,
        took_ms: int = 100,
        session: str | None = None,
        agent: str | None = None,
        body_session: str | None = None,
        **changes: Any,
    ) -> ModelCall:
        hints = [SessionHint(session=session, evidence="header", agent=agent)] if session else []
        hints += [SessionHint(session=body_session, evidence="body")] if body_session else []
        start = send_ms * MS
        end = start + took_ms * MS
        if answer is not None:
            timed = tuple(replace(use, t_emitted_ns=end - 5 * MS) for use in answer.tool_calls)
            answer = replace(answer, tool_calls=timed)
        complete = answer is not None
        values: dict[str, Any] = {
            "exchange_id": f"{self.name}/{len(self.calls)}",
            "connection_id": "c1",
            "wall_anchor_us": self.anchor_us,
            "api": "openai.chat",
            "harness": "pi",
            "harness_version": "1",
            "model": "m",
            "stream": True,
            "status": 200 if complete else None,
            "error": None if complete else "upstream_cut",
            "complete": complete,
            "system": tuple(message for message in messages if message.role == "system"),
            "messages": tuple(messages),
            "tools": TOOLS,
            "answer": answer,
            "stop": "stop",
            "usage": Usage(input_total=10 * len(messages), output_total=5),
            "response_id": None,
            "previous_response_id": None,
            "hints": tuple(hints),
            "max_tokens": None,
            "temperature": None,
            "effort": None,
            "t_send_ns": start,
            "t_headers_ns": start + 10 * MS,
            "t_first_byte_ns": start + 11 * MS,
            "t_first_content_ns": start + 20 * MS if complete else None,
            "t_last_content_ns": end - 6 * MS if complete else None,
            "t_end_ns": end,
            "content_at_ns": (start + 20 * MS, start + 50 * MS, end - 6 * MS) if complete else (),
            "events": 6,
            "bytes_up": 100,
            "bytes_down": 200,
        }
        call = ModelCall(**(values | changes))
        self.calls.append(call)
        return call

    def assemble(self) -> list[Trajectory]:
        found = assemble(self.calls, KEY)
        check(found, self.calls)
        return found

    def one(self) -> Trajectory:
        (found,) = self.assemble()
        return found


def check(found: list[Trajectory], calls: list[ModelCall]) -> None:
    """The laws: every call in one place, prompts exact, times in order."""
    by_exchange = {call.exchange_id: call for call in calls}
    seen = [request.exchange_id for trajectory in found for request in trajectory.requests]
    assert sorted(map(str, seen)) == sorted(by_exchange)
    for trajectory in found:
        sends = [request.t_send_us for request in trajectory.requests]
        assert sends == sorted(sends)
        assert sends[0] == 0
        assert [request.request_index for request in trajectory.requests] == list(range(len(sends)))
        for request in trajectory.requests:
            call = by_exchange[str(request.exchange_id)]
            assert request.prompt_spans is not None
            assert render(trajectory.pool, request.prompt_spans) == call.messages
            if call.answer is not None:
                assert request.answer_index is not None
                pooled = trajectory.pool[request.answer_index]
                assert pooled.answer
                assert pooled.message.content == call.answer.content
            if request.parent_request_index is not None:
                assert request.parent_request_index < request.request_index


def conversation(wire: Wire, tag: str, *, base_ms: int = 0, turns: int = 4, **named: Any) -> None:
    """A linear session: a task, then tool calls, then a closing word."""
    messages = [SYSTEM, user(f"Do {tag}.")]
    for turn in range(turns):
        last = turn == turns - 1
        answer = said(f"{tag} {turn}", *(() if last else [(f"{tag}-{turn}", "Bash", f'{{"command":"{tag} {turn}"}}')]))
        wire.call(base_ms + turn * 1000, list(messages), answer, **named)
        messages += [answer, result(f"{tag}-{turn}")]


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
    assert [request.link for request in found.requests] == ["none", "echo", "header", "header"]
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


def parallel(wire: Wire, *, ids: bool) -> None:
    """A main chain that starts two sub-agents at once; each works two calls long."""
    named = {"session": "s"} if ids else {}
    asks = [
        ("task-1", "Task", '{"prompt":"Look for the parser in this repository"}'),
        ("task-2", "Task", '{"prompt":"Look for the printer in this repository"}'),
    ]
    opening = [SYSTEM, user("Find both.")]
    wire.call(0, opening, said("I ask two.", *asks), session="s")
    sub = Message(role="system", content="You are a sub-agent.")
    for number, thing in enumerate(("parser", "printer")):
        agent = f"agent-{thing}" if ids else None
        task = [sub, user(f"Look for the {thing} in this repository")]
        first = said(f"{thing} 1", (f"{thing}-1", "Bash", "{}"))
        wire.call(200 + number, task, first, agent=agent, session="s", took_ms=300)
        wire.call(700 + number, [*task, first, result(f"{thing}-1")], said(f"{thing} found"), agent=agent, session="s")
    wire.calls.sort(key=lambda call: call.t_send_ns)
    back = [*opening, said("I ask two.", *asks), result("task-1", "parser found"), result("task-2", "printer found")]
    wire.call(1500, back, said("Done"), **({"session": "s"} | named))


@pytest.mark.parametrize("ids", [True, False])
def test_sub_agents_that_run_side_by_side(ids: bool) -> None:
    wire = Wire()
    parallel(wire, ids=ids)
    found = wire.one()
    assert [request.agent_path for request in found.requests] == [
        "main",
        "main/1",
        "main/2",
        "main/1",
        "main/2",
        "main",
    ]
    assert [request.parent_request_index for request in found.requests] == [None, 0, 0, 1, 2, 0]
    assert [request.gap_kind for request in found.requests] == ["none", "spawn", "spawn", "tool", "tool", "tool"]
    assert [request.gap_us for request in found.requests] == [None, None, None, 200_000, 200_000, 1_400_000]
    assert (found.num_subagents, found.num_user_messages) == (2, 1)
    tasks = [call for call in found.tool_calls if call.kind == "subagent"]
    assert [(call.wall_us, call.parallel_group) for call in tasks] == [(1_400_000, 0)] * 2
    # 0–100, 200–500 and 201–501, 700–800 and 701–801, 1500–1600
    assert found.api_us == 100_000 + 301_000 + 101_000 + 100_000
    assert found.tool_us == 1_400_000


def test_a_sub_agent_without_any_id_is_known_by_its_task() -> None:
    wire = Wire()
    parallel(wire, ids=False)
    wire.calls = [replace(call, hints=()) for call in wire.calls]
    found = wire.one()
    assert found.num_subagents == 2
    assert [request.link for request in found.requests] == ["none", "echo", "echo", "echo", "echo", "echo"]


def test_side_calls_stand_beside() -> None:
    wire = Wire()
    wire.call(0, [user("quota")], said("q"), session="s", tools=(), kind="auxiliary")
    conversation(wire, "alpha", base_ms=10, session="s", turns=2)
    wire.call(20, [Message(role="system", content="Name it."), user("Do alpha.")], said("Alpha"), session="s", tools=())
    wire.calls.sort(key=lambda call: call.t_send_ns)
    found = wire.one()
    assert [request.agent_path for request in found.requests] == ["side/1", "main", "side/2", "main"]
    assert [request.kind for request in found.requests] == ["auxiliary", "turn", "turn", "turn"]
    assert found.num_subagents == 0


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
    assert (found.num_compactions, found.num_user_messages) == (1, 2)


def test_a_compaction_known_by_its_summary_alone() -> None:
    wire = Wire()
    conversation(wire, "alpha", turns=3)
    history = list(wire.calls[-1].messages)
    wire.call(4000, [*history, said("alpha 2"), user("Summarize.")], said(LONG))
    wire.call(5000, [SYSTEM, user(f"Summary: {LONG}")], said("on"))
    found = wire.one()
    assert [request.context_event for request in found.requests][-1] == "compaction"
    assert found.requests[-1].link == "echo"


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


def test_an_answer_that_the_agent_spells_anew_stands_in_the_pool_once() -> None:
    wire = Wire()
    wire.call(0, [user("Go")], said("I look.", ("t1", "Bash", '{"a": 1}')), session="s")
    echo = said("I look.", ("t1", "Bash", '{"a":1}'))
    wire.call(1000, [user("Go"), echo, result("t1")], said("ok"), session="s")
    found = wire.one()
    assert [request.prompt_spans for request in found.requests] == [((0, 1),), ((0, 3),)]
    assert found.pool[1].answer
    assert found.pool[1].message == echo


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


def test_an_early_send_gives_a_negative_tool_time() -> None:
    wire = Wire()
    ask = said("", ("t1", "Bash", "{}"))
    wire.call(0, [user("Go")], ask, took_ms=500)
    wire.call(480, [user("Go"), ask, result("t1")], said("ok"))
    found = wire.one()
    assert (found.tool_calls[0].wall_us, found.requests[1].gap_us) == (-20_000, 0)


MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool", "system"]),
    content=st.sampled_from(["a", "b", "c"]),
    tool_calls=st.sampled_from(
        [(), (ToolUse(id="1", name="t", arguments='{"a":1}'),), (ToolUse(id="1", name="t", arguments='{"a": 1}'),)]
    ),
    omitted_bytes=st.sampled_from([0, 1]),
)


@given(prompts=st.lists(st.tuples(st.lists(MESSAGES, max_size=8), MESSAGES | st.none()), max_size=10))
def test_spans_give_back_exactly_the_prompt(prompts: list[tuple[list[Message], Message | None]]) -> None:
    pool = MessagePool()
    spans = []
    for number, (prompt, answer) in enumerate(prompts):
        spans.append(pool.add_prompt(prompt, agent_path="main", request_index=number, t_us=number))
        if answer is not None:
            at = pool.add_answer(answer, agent_path="main", request_index=number, t_us=number)
            assert pool.messages[at].message == answer
            assert pool.messages[at].answer
    for (prompt, _), found in zip(prompts, spans, strict=True):
        assert render(pool.messages, found) == tuple(prompt)
        assert all(start < stop for start, stop in found)


@settings(max_examples=60)
@given(
    plan=st.lists(
        st.tuples(
            st.sampled_from([None, "s", "t"]),
            st.sampled_from([None, None, "agent"]),
            st.lists(MESSAGES, max_size=5),
            MESSAGES | st.none(),
            st.integers(0, 300),
            st.sampled_from(["turn", "turn", "turn", "auxiliary"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_any_calls_obey_the_laws(plan: list[tuple[Any, ...]]) -> None:
    wire = Wire()
    history: list[Message] = []
    for number, (session, agent, messages, answer, took_ms, kind, keep) in enumerate(plan):
        prompt = [*history, *messages] if keep else messages
        spoken = None if answer is None else replace(answer, role="assistant")
        wire.call(number * 100, prompt, spoken, session=session, agent=agent, took_ms=took_ms, kind=kind)
        history = [*prompt, *([spoken] if spoken else [])]
    wire.assemble()

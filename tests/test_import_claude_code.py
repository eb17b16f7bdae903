"""Claude Code's logs as sessions: golden logs of the real agent, each known trap on its own, and mutated logs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings

from capture.command import capture
from capture.importers.claude_code import import_claude_code, read_log
from capture.importers.imported import ImportFault
from capture.importers.log_session import LogSession
from capture.pool import render
from capture.store import Store
from tests.log_stamps import printed_stamps
from tests.mutated_logs import mutated_logs
from tests.recorded_sessions import recorded

GOLDEN = Path(__file__).parent / "logs" / "claude-code"
PROJECT = GOLDEN / "-home-user-work"
KEY = bytes(range(32))
SESSION = "11111111-2222-4333-8444-555555555555"


def served() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((GOLDEN / "served.json").read_text(encoding="utf-8"))
    return loaded


def stamp(milliseconds: int) -> str:
    return f"2026-03-01T10:{milliseconds // 60_000:02d}:{milliseconds // 1000 % 60:02d}.{milliseconds % 1000:03d}Z"


def at_us(milliseconds: int) -> int:
    return 1_772_359_200_000_000 + milliseconds * 1000


class Log:
    """Writes lines as a version before the logged requests did."""

    def __init__(self, session: str = SESSION) -> None:
        self.session = session
        self.lines: list[dict[str, Any]] = []
        self.last: str | None = None

    def add(self, kind: str, milliseconds: int | None, *, parent: str | None = "last", **more: Any) -> str:
        name = f"u{len(self.lines)}-{self.session[:4]}"
        line: dict[str, Any] = {
            "parentUuid": self.last if parent == "last" else parent,
            "isSidechain": False,
            "sessionId": self.session,
            "version": "2.0.14",
            "type": kind,
            "uuid": name,
        }
        if milliseconds is not None:
            line["timestamp"] = stamp(milliseconds)
        self.lines.append(line | more)
        self.last = name
        return name

    def user(self, milliseconds: int | None, content: Any, **more: Any) -> str:
        return self.add("user", milliseconds, message={"role": "user", "content": content}, **more)

    def result(self, milliseconds: int, tool: str, text: str = "ok", **more: Any) -> str:
        block = {"type": "tool_result", "tool_use_id": tool, "content": text}
        return self.user(milliseconds, [block], **more)

    def answer(
        self,
        milliseconds: int | None,
        message_id: str,
        *blocks: dict[str, Any],
        output: int = 10,
        stop: str | None = "end_turn",
        request: str | None = "req_1",
        **more: Any,
    ) -> str:
        usage = {"input_tokens": 5, "cache_read_input_tokens": 70, "cache_creation_input_tokens": 25}
        message = {
            "id": message_id,
            "role": "assistant",
            "model": "claude-x",
            "content": list(blocks),
            "stop_reason": stop,
            "usage": usage | {"output_tokens": output},
        }
        if request is not None:
            more = {"requestId": request} | more
        return self.add("assistant", milliseconds, message=message, **more)

    def write(self, folder: Path, name: str | None = None, *, end: str = "\n") -> Path:
        path = folder / f"{name or self.session}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(line) for line in self.lines) + end, encoding="utf-8")
        return path


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def tool(name: str, kind: str = "Bash", **given_: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": kind, "input": given_}


def only(path: Path) -> LogSession:
    (session,) = read_log(path)
    return session


# Golden logs of the real agent


def test_golden_calls_are_the_servers_calls() -> None:
    sessions = read_log(GOLDEN)
    calls = {call.response_id: call for session in sessions for call in session.calls if call.response_id}
    told = [call for call in served() if call["status"] == 200 and call["purpose"] == "turn"]
    assert len(told) == 8
    # No call twice, though the fork's file repeats the session's history; none missing but the two that compact.
    assert sum(len(session.calls) for session in sessions) == len(calls) + 1
    by_text = {call.answer.content: call for call in calls.values() if call.answer is not None}
    assert set(by_text) == {call["text"] for call in told}
    for known in told:
        call = by_text[known["text"]]
        assert call.answer is not None
        assert [use.id for use in call.answer.tool_calls] == known["tool_call_ids"]
        assert call.usage.input_total == known["usage"]["input_total"]
        assert call.usage.cache_read == known["usage"]["cache_read"]
        assert call.usage.output_total == known["usage"]["output_total"]
        assert len(call.tools) == known["tools_offered"]
        # The agent logs the request while it sends it: the server may have it a few ms earlier or later.
        assert abs(known["received_utc_us"] - call.t_send_ns // 1000) <= 60_000
        assert call.t_end_ns is not None
        assert abs(call.t_end_ns // 1000 - known["last_byte_utc_us"]) <= 60_000
        assert call.complete
        assert call.stop in ("end_turn", "tool_use")


def test_golden_failed_attempt_and_its_repetition() -> None:
    (refused,) = [call for call in served() if call["status"] != 200]
    session = next(session for session in read_log(GOLDEN) if len(session.calls) > 1)
    (failed,) = [call for call in session.calls if not call.complete]
    assert (failed.status, failed.answer, failed.attempt) == (529, None, 0)
    assert abs(failed.t_send_ns // 1000 - refused["received_utc_us"]) <= 60_000
    again = session.calls[session.calls.index(failed) + 1]
    assert again.attempt == 1
    assert again.messages == failed.messages


def test_golden_prompts_hold_all_that_was_said() -> None:
    session = next(session for session in read_log(GOLDEN) if len(session.calls) > 1)
    first, second, *_, last = [call for call in session.calls if call.hints[0].agent is None]
    assert [message.role for message in first.messages] == ["system", "user"]
    # Parallel tools: both results are there, though each hangs on the line of its own call.
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "tool", "tool"]
    assert second.messages[:2] == first.messages
    assert [message.tool_call_id for message in second.messages[3:]] == [
        use.id for use in second.messages[2].tool_calls
    ]
    assert second.messages[2].reasoning_content is not None
    assert last.context_compacted
    assert sum(call.context_compacted for call in session.calls) == 1
    assert len(last.messages) == 4
    assert first.max_tokens == 32000
    assert not any(call.notes for call in session.calls)


def test_golden_sub_agent() -> None:
    session = next(session for session in read_log(GOLDEN) if len(session.calls) > 1)
    inside = [call for call in session.calls if call.hints[0].agent is not None]
    assert len(inside) == 2
    assert {call.agent_type for call in inside} == {"general-purpose"}
    assert {call.hints[0].session for call in session.calls} == {session.native_session_id}
    assert session.harness_version == "2.1.328"


def test_golden_tool_times_are_the_commands_own() -> None:
    """The commands print the machine's clock at their start and end."""
    session = next(session for session in read_log(GOLDEN) if len(session.calls) > 1)
    ran = printed_stamps(session)
    assert len(ran) == 3
    times = {time.tool_call_id: time for time in session.tool_times}
    told = 0
    for name, (began, ended) in ran.items():
        time = times[name]
        assert time.source == "log"
        assert time.ended_utc_us is not None
        assert 0 <= time.ended_utc_us - ended * 1e6 <= 150_000
        if time.internal_us is not None:
            told += 1
            assert 0 <= time.internal_us - (ended - began) * 1e6 <= 150_000
    # Two ran one after the other: when the second began the log does not tell.
    assert told == 2


def test_golden_trajectories() -> None:
    imported = import_claude_code([GOLDEN], KEY)
    long, short = sorted(imported.trajectories, key=lambda trajectory: -len(trajectory.requests))
    assert (len(long.requests), len(short.requests)) == (8, 1)
    assert (long.source, long.token_source, long.harness) == ("claude-code-log", "provider", "claude-code")
    assert (long.num_subagents, long.num_compactions) == (1, 1)
    assert sum(request.prompt_tokens or 0 for request in long.requests) == 1000 + 1200 + 500 + 620 + 1400 + 1503 + 700
    assert sum(request.completion_tokens or 0 for request in long.requests) == 100 + 60 + 20 + 15 + 12 + 9 + 8
    assert (short.requests[0].prompt_tokens, short.requests[0].completion_tokens) == (1504, 9)
    for request in (*long.requests, *short.requests):
        # What no log tells is None, never 0.
        assert request.stream is None
        assert request.transport is None
        assert request.bytes_up is None
        assert request.bytes_down is None
        assert request.sse_events is None
        assert request.t_headers_us is None
        assert request.t_first_byte_us is None
        assert request.t_first_token_us is None
        assert request.itl_us is None
    assert [call.internal_source for call in long.tool_calls if call.internal_us is not None] == ["log"] * 3
    assert [request.retry_of for request in long.requests if request.retry_of is not None] == [4]
    assert any("provider's own" in note for note in imported.notes)
    prompt = render(long.pool, long.requests[0].prompt_spans or ())
    assert [message.role for message in prompt] == ["system", "user"]


def test_importing_again_gives_the_same(tmp_path: Path) -> None:
    assert import_claude_code([GOLDEN], KEY) == import_claude_code([GOLDEN, PROJECT], KEY)
    shutil.copytree(GOLDEN, tmp_path / "elsewhere")
    assert import_claude_code([tmp_path], KEY).trajectories == import_claude_code([GOLDEN], KEY).trajectories


def test_a_fork_alone_counts_its_own_calls_only() -> None:
    fork = min(PROJECT.glob("*.jsonl"), key=lambda path: path.stat().st_size)
    session = only(fork)
    assert len(session.calls) == 1
    assert session.calls[0].answer is not None
    # Its prompt still holds the whole copied history.
    assert [message.role for message in session.calls[0].messages].count("assistant") == 4
    assert any("copied" in note for note in session.notes)
    assert {time.tool_call_id for time in session.tool_times} == set()


def test_a_sessions_file_brings_its_sub_agents() -> None:
    main = max(PROJECT.glob("*.jsonl"), key=lambda path: path.stat().st_size)
    session = only(main)
    assert len(session.calls) == 8
    assert len(session.paths) == 2


# Traps, one by one


def test_one_call_on_many_lines(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(1_500, "msg_1", text("He"), output=1, stop=None)
    log.answer(1_600, "msg_1", text("Hello"), output=7, stop=None)
    log.answer(1_700, "msg_1", tool("t1", command="ls"), output=42, stop="tool_use")
    log.answer(1_700, "msg_1", tool("t1", command="ls"), output=3, stop="tool_use")
    log.result(2_000, "t1")
    log.answer(2_400, "msg_2", text("Done."), request="req_2")
    first, second = only(log.write(tmp_path)).calls
    assert first.answer is not None
    assert (first.answer.content, len(first.answer.tool_calls)) == ("Hello", 1)
    assert (first.usage.input_total, first.usage.cache_read, first.usage.cache_write) == (100, 70, 25)
    assert (first.usage.output_total, first.stop, first.response_id) == (42, "tool_use", "msg_1")
    assert (first.t_send_ns // 1000, (first.t_end_ns or 0) // 1000) == (at_us(0), at_us(1_700))
    assert first.answer.tool_calls[0].t_emitted_ns == at_us(1_700) * 1000
    assert (second.t_send_ns // 1000, (second.t_end_ns or 0) // 1000) == (at_us(2_000), at_us(2_400))


def test_request_id_may_be_missing_and_tells_equal_message_ids_apart(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(100, "msg_1", text("a"), request=None)
    log.answer(200, "msg_1", tool("t1"), request="req_1", stop="tool_use")
    log.result(300, "t1")
    log.answer(400, "msg_1", text("b"), request="req_2")
    calls = only(log.write(tmp_path)).calls
    assert [call.answer.content for call in calls if call.answer] == ["a", "b"]


def test_parallel_results_hang_on_their_own_calls(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    one = log.answer(100, "msg_1", tool("t1"), stop="tool_use")
    two = log.answer(110, "msg_1", tool("t2"), stop="tool_use")
    log.result(400, "t2", "second", parent=two)
    log.result(900, "t1", "first", parent=one)
    log.answer(1_000, "msg_2", text("Both."), request="req_2")
    session = only(log.write(tmp_path))
    results = {message.tool_call_id: message.content for message in session.calls[1].messages if message.role == "tool"}
    assert results == {"t1": "first", "t2": "second"}
    assert session.calls[1].t_send_ns // 1000 == at_us(900)
    times = {time.tool_call_id: time.internal_us for time in session.tool_times}
    assert times == {"t1": None, "t2": 290_000}  # t1 may have waited


def test_a_rewind_makes_a_branch(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    fork = log.answer(100, "msg_1", text("A first answer to go on from."))
    log.user(1_000, "This way.")
    log.answer(1_100, "msg_2", text("On the one way."), request="req_2")
    log.user(5_000, "No, that way.", parent=fork)
    log.answer(5_100, "msg_3", text("On the other way."), request="req_3")
    session = only(log.write(tmp_path))
    assert [message.content for message in session.calls[2].messages][-1] == "No, that way."
    assert len(session.calls[2].messages) == 3
    trajectory = import_claude_code([tmp_path], KEY).trajectories[0]
    assert len(trajectory.requests) == 3
    assert trajectory.requests[2].relation == "fork"


@pytest.mark.parametrize("place", ["inline", "beside", "folder"])
def test_sub_agents_of_all_versions(tmp_path: Path, place: str) -> None:
    log = Log()
    log.user(0, "Go.")
    task = "Look at all the files and count them one by one."
    log.answer(100, "msg_1", tool("t1", "Task", prompt=task), stop="tool_use")
    last = log.last
    inside = log if place == "inline" else Log()
    more: dict[str, Any] = {"isSidechain": True} | ({} if place == "inline" else {"agentId": "abc"})
    inside.user(200, task, parent=None, **more)
    inside.answer(300, "msg_2", tool("t2"), stop="tool_use", request="req_2", **more)
    inside.result(400, "t2", **more)
    inside.answer(500, "msg_3", text("Three files."), request="req_3", **more)
    log.last = last
    log.result(600, "t1", "Three files.", toolUseResult={"totalDurationMs": 395})
    log.answer(700, "msg_4", text("Three."), request="req_4")
    path = log.write(tmp_path)
    if place == "beside":
        inside.write(tmp_path, "agent-abc")
    elif place == "folder":
        inside.write(tmp_path, f"{SESSION}/subagents/agent-abc")
        (tmp_path / SESSION / "subagents" / "agent-abc.meta.json").write_text(
            '{"agentType": "Explore", "toolUseId": "t1"}'
        )
    session = only(path)
    agents = {call.response_id: call.hints[0].agent for call in session.calls}
    assert agents["msg_1"] is agents["msg_4"] is None
    assert agents["msg_2"] == agents["msg_3"] != None  # noqa: E711
    assert [len(call.messages) for call in session.calls] == [1, 1, 3, 3]
    assert {call.agent_type for call in session.calls} == ({None, "Explore"} if place == "folder" else {None})
    assert {time.tool_call_id: time.internal_us for time in session.tool_times} == {"t1": 395_000, "t2": 100_000}
    (trajectory,) = import_claude_code([tmp_path], KEY).trajectories
    assert (trajectory.num_subagents, len(trajectory.requests)) == (1, 4)


def test_a_copied_history_counts_once_with_and_without_marks(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(100, "msg_1", text("First."))
    log.add("system", 150, subtype="api_error", error={"status": 529, "message": "Overloaded"}, retryInMs=1_000)
    log.answer(1_300, "msg_2", text("Second."), request="req_2")
    for name, marks in (("aaaa", {}), ("bbbb", {"forkedFrom": {"sessionId": SESSION, "messageUuid": "x"}})):
        fork = Log(f"{name}1111-2222-4333-8444-555555555555")
        fork.add("queue-operation", 8_000, parent=None)
        fork.lines += [line | {"sessionId": fork.session} | marks for line in log.lines]
        fork.last = log.last
        fork.user(9_000, "Another way.")
        fork.answer(9_100, f"msg_{name}", text("Third."), request=f"req_{name}")
        fork.write(tmp_path)
    log.write(tmp_path)
    sessions = {session.native_session_id: session for session in read_log(tmp_path)}
    assert len(sessions) == 3
    assert [call.status for call in sessions[SESSION].calls] == [None, 529, None]
    for name, session in sessions.items():
        if name != SESSION:
            (own,) = session.calls
            assert [message.role for message in own.messages] == ["user", "assistant", "assistant", "user"]


def test_compaction(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(100, "msg_1", text("A long story."))
    kept = log.user(1_000, "Kept words.")
    boundary = log.add("system", 2_000, parent=None, subtype="compact_boundary", logicalParentUuid=kept, content="x")
    summary = log.user(2_001, "This session is being continued from …: a story was told.", isCompactSummary=True)
    log.lines[-2]["compactMetadata"] = {
        "trigger": "auto",
        "preservedMessages": {"anchorUuid": summary, "uuids": [kept]},
    }
    assert boundary
    log.user(3_000, "Go on.")
    log.answer(3_100, "msg_2", text("And then."), request="req_2")
    log.user(4_000, "Go on.")
    log.answer(4_100, "msg_3", text("The end."), request="req_3")
    log.add("summary", None, leafUuid=log.last, summary="A title")
    first, second, third = only(log.write(tmp_path)).calls
    assert [call.context_compacted for call in (first, second, third)] == [False, True, False]
    words = "\n".join(message.content for message in second.messages)
    assert "A long story" not in words
    assert words.index("a story was told") < words.index("Kept words.") < words.index("Go on.")
    assert import_claude_code([tmp_path], KEY).trajectories[0].num_compactions == 1


def test_failed_attempts_and_the_final_error(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    for attempt in (1, 2):
        error = {"status": 529, "error": {"type": "error"}, "message": "529 Overloaded"}
        more = {"subtype": "api_error", "error": error, "retryInMs": 500, "retryAttempt": attempt}
        log.add("system", 1_000 * attempt, **more)
    log.answer(3_000, "m", text("API Error: 529 Overloaded"), isApiErrorMessage=True, request=None)
    log.lines[-1]["message"]["model"] = "<synthetic>"
    log.user(9_000, "Again.")
    log.answer(9_500, "msg_1", text("Now."))
    calls = only(log.write(tmp_path)).calls
    assert [call.status for call in calls] == [529, 529, 529, None]
    assert [call.complete for call in calls] == [False, False, False, True]
    # A repetition was sent after the wait that the error names.
    assert [call.t_send_ns // 1000 for call in calls] == [at_us(0), at_us(1_500), at_us(2_500), at_us(9_000)]
    assert [call.usage.output_total for call in calls] == [None, None, None, 10]
    assert "API Error" not in "".join(message.content for message in calls[-1].messages)


def test_an_interrupted_answer_is_not_complete(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(100, "msg_1", text("Well, I"), stop=None)
    log.user(200, [text("[Request interrupted by user]")])
    log.user(900, "Other words.")
    log.answer(1_000, "msg_2", text("Fine."), stop=None, request="req_2")
    first, second = only(log.write(tmp_path)).calls
    assert (first.complete, second.complete) == (False, True)
    assert any("partial" in note for note in second.notes)


def test_images_thoughts_and_server_tools_keep_their_size(tmp_path: Path) -> None:
    log = Log()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 5_000}}
    log.user(0, [text("See."), image])
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "S" * 300}
    search = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "x"}}
    log.answer(100, "msg_1", thought, {"type": "redacted_thinking", "data": "R" * 90}, search, text("Seen."))
    (call,) = only(log.write(tmp_path)).calls
    assert call.messages[0].omitted_bytes > 5_000
    assert call.answer is not None
    assert call.answer.reasoning_content == "Hm."
    assert call.answer.omitted_bytes >= 390
    assert call.answer.content.endswith("Seen.")
    assert not [use for use in call.answer.tool_calls if use.name != "web_search"]


def test_a_question_is_a_persons_time(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(100, "msg_1", tool("t1", "AskUserQuestion"), stop="tool_use")
    log.result(60_100, "t1", "Yes.")
    log.answer(60_500, "msg_2", tool("t2"), request="req_2", stop="tool_use")
    log.result(90_500, "t2", permissionDecision={"decision": "accept", "source": "user_temporary"})
    log.answer(91_000, "msg_3", text("Done."), request="req_3")
    times = {time.tool_call_id: time for time in only(log.write(tmp_path)).tool_times}
    assert (times["t1"].internal_us, times["t1"].permission_us) == (None, 60_000_000)
    assert times["t2"].internal_us is None  # a person was asked before it ran, for how long the log does not tell


def test_human_waits(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(1_000, "msg_1", text("Done."))
    log.user(5_000, "<local-command-stdout>x</local-command-stdout>")
    log.user(5_001, "A reminder of the agent.", isMeta=True)
    log.user(8_000, "Go on.")
    log.answer(9_000, "msg_2", text("Done again."), request="req_2")
    (wait,) = only(log.write(tmp_path)).human_waits
    assert (wait.started_utc_us, wait.ended_utc_us) == (at_us(1_000), at_us(8_000))


def test_a_line_without_a_time_takes_its_neighbours(tmp_path: Path) -> None:
    log = Log()
    log.user(1_000, "Go.")
    log.answer(None, "msg_1", text("Done."))
    (call,) = only(log.write(tmp_path)).calls
    assert (call.t_send_ns // 1000, call.t_end_ns) == (at_us(1_000), None)
    for line in log.lines:
        line.pop("timestamp", None)
    with pytest.raises(ImportFault, match="carries a time"):
        read_log(log.write(tmp_path))


# Bad input


def test_a_torn_last_line_is_tolerated_and_named(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(100, "msg_1", text("Done."))
    path = log.write(tmp_path, end='\n{"type":"user","mess')
    session = only(path)
    assert len(session.calls) == 1
    assert session.notes[0] == f"{path}:3: the last line is cut off and was left out"


@pytest.mark.parametrize("garbage", ["{not json}", "[1, 2]", '"words"', "\x00\x01"])
def test_garbage_names_file_and_line(tmp_path: Path, garbage: str) -> None:
    log = Log()
    log.user(0, "Go.")
    path = log.write(tmp_path, end=f"\n{garbage}\n")
    with pytest.raises(ImportFault, match=re.escape(f"{path}:2:")):
        read_log(path)


def test_other_files_in_a_folder_are_skipped_and_counted(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.answer(100, "msg_1", text("Done."))
    log.write(tmp_path / "p")
    (tmp_path / "p" / "notes.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "p" / "words.jsonl").write_text("no json at all\n")
    (tmp_path / "p" / "empty.jsonl").write_text("")
    (tmp_path / "p" / "readme.txt").write_text("x")
    imported = import_claude_code([tmp_path], KEY)
    assert len(imported.trajectories) == 1
    assert "3 files that are no Claude Code log were skipped" in imported.notes
    with pytest.raises(ImportFault, match="no Claude Code log"):
        import_claude_code([tmp_path / "p" / "notes.jsonl"], KEY)
    with pytest.raises(ImportFault, match="no such file"):
        import_claude_code([tmp_path / "gone"], KEY)


def test_a_giant_line(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go. " + "x" * 20_000_000)
    log.answer(100, "msg_1", text("Done."))
    (call,) = only(log.write(tmp_path)).calls
    assert len(call.messages[0].content) > 20_000_000


def test_a_loop_of_parents_ends(tmp_path: Path) -> None:
    log = Log()
    log.user(0, "Go.")
    log.lines[0]["parentUuid"] = "u1-1111"
    log.answer(100, "msg_1", text("Done."))
    assert len(only(log.write(tmp_path)).calls) == 1


LOGS = [path.read_bytes() for path in sorted(PROJECT.rglob("*.jsonl"))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=mutated_logs(LOGS))
def test_mutated_logs_raise_nothing_else(tmp_path: Path, log: bytes) -> None:
    place = tmp_path / f"{SESSION}.jsonl"
    place.write_bytes(log)
    try:
        found = import_claude_code([place], KEY).trajectories
    except ImportFault as fault:
        said = str(fault)
    else:
        said = place.name
        requests = [request for trajectory in found for request in trajectory.requests]
        assert all(request.t_end_us is None or request.t_end_us >= request.t_send_us for request in requests)
    assert place.name in said


# The command


def run(*words: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(capture, [str(word) for word in words], env=environment)
    return done.exit_code, done.stdout, done.stderr


def test_the_command_imports_replaces_and_says_so(tmp_path: Path) -> None:
    store = tmp_path / "store"
    code, out, said = run("import", "claude-code", GOLDEN, "--store", store, "--json")
    assert code == 0, said
    summary = json.loads(out)
    assert (summary["format"], summary["calls"], len(summary["session_ids"])) == ("claude-code", 9, 2)
    assert (summary["replaced"], summary["recorded_too"], summary["tool_calls"]) == ([], [], 4)
    code, out, said = run("import", "claude-code", PROJECT, "--store", store, "--json")
    assert code == 0, said
    again = json.loads(out)
    assert sorted(again["replaced"]) == sorted(summary["session_ids"]) == sorted(again["session_ids"])
    code, out, _ = run("sessions", "--store", store, "--json")
    assert (code, len(json.loads(out))) == (0, 2)


def test_the_command_finds_the_agents_own_folder(tmp_path: Path) -> None:
    home = tmp_path / "config"
    shutil.copytree(PROJECT, home / "projects" / PROJECT.name)
    store = tmp_path / "store"
    named = {"CLAUDE_CONFIG_DIR": str(home)}
    code, _, said = run("import", "claude-code", "--store", store, environment=named)
    assert code == 0, said
    assert "imported 2 sessions with 9 calls" in said
    nowhere = {"CLAUDE_CONFIG_DIR": str(tmp_path / "none"), "HOME": str(tmp_path)}
    code, _, said = run("import", "claude-code", "--store", tmp_path / "other", environment=nowhere)
    assert code == 2
    assert "no log folder of claude-code" in said
    assert not (tmp_path / "other").exists()


def test_the_command_says_when_a_recorder_saw_the_session_too(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    recorded(store, [("alpha", 0, 1_000, SESSION, None)])
    log = Log()
    log.user(0, "Start alpha")
    log.answer(100, "msg_alpha_0", tool("toolu_alpha_0", command="alpha 0"), stop="tool_use")
    path = log.write(tmp_path / "logs")
    other = Log("99999999-2222-4333-8444-555555555555")
    other.user(0, "Start.")
    other.answer(100, "msg_other", text("Done."))
    other.write(tmp_path / "logs")
    code, out, said = run("import", "claude-code", tmp_path / "logs", "--store", store.path, "--json")
    assert code == 0, said
    (twin,) = json.loads(out)["recorded_too"]
    assert f"`agentdyno capture join --store {store.path}`" in said
    code, out, _ = run("sessions", "--store", store.path, "--json")
    assert len(json.loads(out)) == 3
    code, _, said = run("join", path, "--store", store.path)
    assert code == 0, said
    code, out, _ = run("sessions", "--store", store.path, "--json")
    assert twin not in [session["session_id"] for session in json.loads(out)]
    assert len(json.loads(out)) == 2
    # Joined: one of two, and importing again makes no second one.
    code, out, said = run("import", "claude-code", tmp_path / "logs", "--store", store.path, "--json")
    assert (code, json.loads(out)["recorded_too"]) == (0, [])
    assert "capture join" not in said


def test_the_command_does_not_drown_in_notes(tmp_path: Path) -> None:
    for number in range(30):
        log = Log(f"{number:08d}-2222-4333-8444-555555555555")
        log.user(0, "Go.")
        log.answer(100, f"msg_{number}", text("Done."))
        log.write(tmp_path / "logs", end='\n{"torn')
    code, out, said = run("import", "claude-code", tmp_path / "logs", "--store", tmp_path / "store", "--json")
    assert code == 0
    assert len(json.loads(out)["notes"]) > 30
    assert len(said.splitlines()) < 30
    assert "notes more: --json has them all" in said


@pytest.mark.parametrize("words", [("import", "nothing"), ("import", "weka"), ("import", "claude-code", "/dev/null")])
def test_the_command_refuses_in_one_sentence(tmp_path: Path, words: Iterable[str]) -> None:
    code, out, said = run(*words, "--store", tmp_path / "store")
    assert (code, out) == (2, "")
    assert len(said.strip().splitlines()[-1]) < 300
    assert not (tmp_path / "store").exists()

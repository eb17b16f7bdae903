"""Codex's logs as sessions: golden logs of the real agent, each known trap on its own, and mutated logs."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings

from capture.command import capture
from capture.importers.codex import import_codex, read_log
from capture.importers.imported import ImportFault
from capture.importers.log_session import LogSession
from tests.log_stamps import printed_stamps
from tests.mutated_logs import mutated_logs

GOLDEN = Path(__file__).parent / "logs" / "codex"
KEY = bytes(range(32))
ROOT = "019d0000-0000-7000-8000-000000000001"
START_MS = 0x019D00000000  # the time in that id


def served() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((GOLDEN / "served.json").read_text(encoding="utf-8"))
    return loaded


def rollouts() -> list[Path]:
    return sorted(GOLDEN.rglob("rollout-*.jsonl"))


def stamp(milliseconds: int) -> str:
    moment = datetime.fromtimestamp((START_MS + milliseconds) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def at_us(milliseconds: int) -> int:
    return (START_MS + milliseconds) * 1000


def minted(milliseconds: int) -> str:
    digits = f"{START_MS + milliseconds:012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-0000000000ff"


class Log:
    """Writes the lines of a version before the usage records."""

    def __init__(self, thread: str = ROOT, **meta: Any) -> None:
        self.thread = thread
        self.lines: list[dict[str, Any]] = []
        head = {"id": thread, "timestamp": stamp(0), "cli_version": "0.98.0", "instructions": "Be brief."}
        self.add(0, "session_meta", **(head | meta))

    def add(self, milliseconds: int, kind: str, **payload: Any) -> None:
        self.lines.append({"timestamp": stamp(milliseconds), "type": kind, "payload": payload})

    def turn(self, milliseconds: int, words: str, turn_id: str | None = None) -> None:
        turn_id = turn_id or minted(milliseconds)
        self.event(milliseconds, "task_started", turn_id=turn_id)
        self.add(milliseconds, "turn_context", turn_id=turn_id, model="gpt-x", effort="high")
        self.user(milliseconds + 1, words)

    def user(self, milliseconds: int, words: str) -> None:
        self.item(milliseconds, type="message", role="user", content=[{"type": "input_text", "text": words}])

    def says(self, milliseconds: int, words: str, **more: Any) -> None:
        content = [{"type": "output_text", "text": words}]
        self.item(milliseconds, type="message", role="assistant", content=content, **more)

    def calls(self, milliseconds: int, call_id: str, name: str = "shell", **given_: Any) -> None:
        self.item(milliseconds, type="function_call", name=name, arguments=json.dumps(given_), call_id=call_id)

    def result(self, milliseconds: int, call_id: str, output: Any = "ok") -> None:
        self.item(milliseconds, type="function_call_output", call_id=call_id, output=output)

    def item(self, milliseconds: int, **payload: Any) -> None:
        self.add(milliseconds, "response_item", **payload)

    def event(self, milliseconds: int, kind: str, **payload: Any) -> None:
        self.add(milliseconds, "event_msg", type=kind, **payload)

    def counts(self, milliseconds: int, total: tuple[int, int], last: tuple[int, int] | None = None) -> None:
        info = {"total_token_usage": {"input_tokens": total[0], "cached_input_tokens": 0, "output_tokens": total[1]}}
        if last is not None:
            info["last_token_usage"] = {"input_tokens": last[0], "cached_input_tokens": 3, "output_tokens": last[1]}
        self.event(milliseconds, "token_count", info=info)

    def text(self) -> str:
        return "".join(json.dumps(line) + "\n" for line in self.lines)

    def write(self, folder: Path, name: str | None = None) -> Path:
        path = folder / (name or f"rollout-2026-03-01T10-00-00-{self.thread}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text(), encoding="utf-8")
        return path


def only(path: Path) -> LogSession:
    (session,) = read_log(path)
    return session


def tokens(session: LogSession) -> list[tuple[int | None, int | None]]:
    return [(call.usage.input_total, call.usage.output_total) for call in session.calls]


# Golden logs of the real agent


def test_golden_calls_are_the_servers_calls() -> None:
    sessions = read_log(GOLDEN)
    calls = {call.response_id: call for session in sessions for call in session.calls}
    told = {call["response_id"]: call for call in served() if call["status"] == 200}
    # The refused attempt is in no log; the request that compacts is, and no fork or resume counts twice.
    assert len(told) == 10
    assert sum(len(session.calls) for session in sessions) == len(calls) == len(told)
    assert set(calls) == set(told)
    for name, known in told.items():
        call = calls[name]
        assert call.answer is not None
        assert call.answer.content == known["text"]
        assert [use.id for use in call.answer.tool_calls] == known["tool_call_ids"]
        assert call.usage.input_total == known["usage"]["input_total"]
        assert call.usage.cache_read == known["usage"]["cache_read"]
        assert call.usage.output_total == known["usage"]["output_total"]
        assert call.t_end_ns is not None
        assert abs(call.t_end_ns // 1000 - known["last_byte_utc_us"]) <= 60_000
        if known["text"] != "All is done.":  # the one that was refused at first: its time holds both attempts
            assert 0 <= known["received_utc_us"] - call.t_send_ns // 1000 <= 60_000
            if call.t_first_content_ns is not None:
                assert abs(call.t_first_content_ns // 1000 - known["first_content_utc_us"]) <= 60_000
    assert sum(call.t_first_content_ns is not None for call in calls.values()) >= 8


def test_golden_fork_goes_on_from_its_parents_history() -> None:
    fork = next(session for session in read_log(GOLDEN) if len(session.calls) == 1)
    (call,) = fork.calls
    said = [message.content for message in call.messages if message.role == "assistant"]
    assert said == ["First two.", "Now a sub-agent.", "I wait.", "All is done.", "Answer 5."]
    # The parent's log is found beside it, though it is not named.
    alone = only(next(path for path in rollouts() if fork.native_session_id in path.name))
    assert alone.calls == fork.calls


def test_a_fork_without_its_parents_log_says_so(tmp_path: Path) -> None:
    fork = next(session for session in read_log(GOLDEN) if len(session.calls) == 1)
    path = next(path for path in rollouts() if fork.native_session_id in path.name)
    shutil.copy(path, tmp_path)
    session = only(tmp_path / path.name)
    assert [message.role for message in session.calls[0].messages] == ["system", "user"]
    assert any("not in this import" in note for note in session.notes)
    assert session.calls[0].notes


def test_golden_sub_agent_belongs_to_its_session() -> None:
    session = next(session for session in read_log(GOLDEN) if len(session.calls) > 1)
    inside = [call for call in session.calls if call.hints[0].agent is not None]
    assert [call.answer.content for call in inside if call.answer] == [
        "The sub-agent looks.",
        "The sub-agent found three files.",
    ]
    assert len(session.paths) == 2
    root = next(path for path in rollouts() if session.native_session_id in path.name)
    assert only(root).calls == session.calls  # found from the root's file alone


def test_golden_compaction() -> None:
    session = next(session for session in read_log(GOLDEN) if len(session.calls) > 1)
    (at,) = [number for number, call in enumerate(session.calls) if call.compaction is not None]
    assert session.calls[at].answer is not None
    assert [call.context_compacted for call in session.calls].index(True) == at + 1
    after = session.calls[at + 1]
    assert not any(message.role in ("assistant", "tool") for message in after.messages)
    assert [call.context_generation for call in session.calls][-2:] == [0, 1]


def test_golden_tool_times_are_the_commands_own() -> None:
    """The commands print the machine's clock at their start and end."""
    session = next(session for session in read_log(GOLDEN) if len(session.calls) > 1)
    ran = printed_stamps(session)
    assert len(ran) == 3
    times = {time.tool_call_id: time for time in session.tool_times}
    assert len(times) == 5
    for name, (began, ended) in ran.items():
        internal = times[name].internal_us
        assert internal is not None
        assert 0 <= internal - (ended - began) * 1e6 <= 150_000


def test_golden_trajectories() -> None:
    imported = import_codex([GOLDEN], KEY)
    long, short = sorted(imported.trajectories, key=lambda trajectory: -len(trajectory.requests))
    assert (len(long.requests), len(short.requests)) == (9, 1)
    assert (long.source, long.token_source, long.harness, long.harness_version) == (
        "codex-log",
        "provider",
        "codex",
        "0.169.0",
    )
    assert (long.num_subagents, long.num_compactions) == (1, 1)
    assert sum(request.prompt_tokens or 0 for request in long.requests) == (
        1000 + 1200 + 1300 + 500 + 620 + 1400 + 1504 + 2100 + 700
    )
    assert sum(request.completion_tokens or 0 for request in long.requests) == 100 + 60 + 14 + 20 + 15 + 12 + 9 + 33 + 8
    assert sum(request.reasoning_tokens or 0 for request in long.requests) == 40
    for request in (*long.requests, *short.requests):
        assert request.stream is None
        assert request.transport is None
        assert request.bytes_up is None
        assert request.bytes_down is None
        assert request.sse_events is None
        assert request.t_headers_us is None
        assert request.t_first_byte_us is None
        assert request.itl_us is None
    assert {call.internal_source for call in long.tool_calls} == {"log"}
    assert {call.exit_code for call in long.tool_calls if call.kind == "exec"} == {0, 3}


def test_importing_again_gives_the_same(tmp_path: Path) -> None:
    assert import_codex([GOLDEN], KEY) == import_codex([GOLDEN, *rollouts()], KEY)
    for path in rollouts():
        place = tmp_path / path.relative_to(GOLDEN)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_name(f"{path.name}.zst").write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
    packed = import_codex([tmp_path], KEY).trajectories
    assert [trajectory.session_id for trajectory in packed] == [
        trajectory.session_id for trajectory in import_codex([GOLDEN], KEY).trajectories
    ]
    # Plain and packed side by side, as an interrupted clean-up leaves them: nothing counts twice.
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    assert [len(found.requests) for found in import_codex([tmp_path], KEY).trajectories] == [
        len(found.requests) for found in packed
    ]


# Traps, one by one


def test_counters_grow_repeat_and_begin_anew(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.counts(1, (50, 5), (50, 5))  # a resumed thread begins with its old total
    log.lines.pop()
    log.says(100, "One.")
    log.counts(110, (1_000, 10), (1_000, 10))
    log.counts(120, (1_000, 10), (1_000, 10))  # repeated with new rate limits
    log.event(130, "task_complete")
    log.turn(1_000, "On.")
    log.counts(1_001, (1_000, 10), (1_000, 10))
    log.calls(1_100, "c1", command=["ls"])
    log.result(1_200, "c1")
    log.counts(1_210, (2_200, 30), (1_200, 20))  # after the tool: it still is the call's
    log.says(1_300, "Two.")
    log.counts(1_310, (700, 7), (700, 7))  # began anew
    log.event(1_320, "task_complete")
    log.turn(2_000, "On.")
    log.says(2_100, "Three.")
    log.counts(2_110, (1_500, 17))  # totals alone
    assert tokens(only(log.write(tmp_path))) == [(1_000, 10), (1_200, 20), (700, 7), (800, 10)]


def test_usage_without_items_is_a_call_too(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.says(100, "One.")
    log.counts(110, (1_000, 10), (1_000, 10))
    log.counts(500, (3_000, 60), (2_000, 50))  # a compaction by the server leaves no item
    log.add(510, "compacted", message="", replacement_history=[{"type": "compaction", "encrypted_content": "x" * 50}])
    log.user(600, "On.")
    log.says(700, "Two.")
    log.counts(710, (3_300, 70), (300, 10))
    session = only(log.write(tmp_path))
    assert tokens(session) == [(1_000, 10), (2_000, 50), (300, 10)]
    assert [call.compaction for call in session.calls] == [None, "unknown", None]
    assert session.calls[1].answer is None
    assert [call.context_compacted for call in session.calls] == [False, False, True]


@pytest.mark.parametrize("counted", [True, False])
def test_times_of_a_call(tmp_path: Path, counted: bool) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.item(900, type="reasoning", id="rs_1", summary=[], encrypted_content="e" * 400)
    log.says(1_000, "One.", id="msg_1")
    log.calls(1_100, "c1", command=["ls"])
    if counted:
        log.counts(1_200, (10, 5), (10, 5))
    log.result(3_000, "c1")
    log.says(3_500, "Two.")
    log.event(3_600, "task_complete", duration_ms=3_600, time_to_first_token_ms=800)
    one, two = only(log.write(tmp_path)).calls
    assert (one.t_send_ns // 1000, one.t_end_ns) == (at_us(1), at_us(1_200 if counted else 1_100) * 1000)
    assert one.t_first_content_ns == at_us(800) * 1000
    assert one.answer is not None
    assert one.answer.omitted_bytes == 400
    assert one.answer.reasoning_content is None
    assert one.answer.tool_calls[0].t_emitted_ns == at_us(1_100) * 1000
    assert (two.t_send_ns // 1000, two.t_first_content_ns) == (at_us(3_000), None)
    assert (one.effort, one.model, one.messages[0].content) == ("high", "gpt-x", "Be brief.")
    assert (two.usage.input_total, two.usage.output_total) == (None, None)
    assert one.complete
    assert two.complete


def test_a_fork_that_replays_counts_only_its_own(tmp_path: Path) -> None:
    parent = Log()
    parent.turn(0, "Go.")
    parent.says(100, "One.")
    parent.counts(110, (1_000, 10), (1_000, 10))
    parent.event(120, "task_complete")
    fork = Log(minted(60_000), timestamp=stamp(60_000), forked_from_id=ROOT)
    for line in parent.lines:  # replayed within a moment, stamped anew
        fork.lines.append(line | {"timestamp": stamp(60_005)})
    fork.turn(61_000, "Another way.")
    fork.says(61_500, "Two.")
    fork.counts(61_510, (2_100, 30), (1_100, 20))
    parent.write(tmp_path)
    fork.write(tmp_path)
    sessions = {session.native_session_id: session for session in read_log(tmp_path)}
    assert tokens(sessions[ROOT]) == [(1_000, 10)]
    own = sessions[fork.thread]
    assert tokens(own) == [(1_100, 20)]
    assert [message.content for message in own.calls[0].messages] == ["Be brief.", "Go.", "One.", "Another way."]


def test_old_forks_without_turn_ids_are_told_by_time(tmp_path: Path) -> None:
    fork = Log(minted(60_000), timestamp=stamp(60_000), forked_from_id=ROOT)
    fork.add(60_010, "turn_context", model="gpt-x")
    fork.user(60_011, "Go.")
    fork.says(60_012, "One.")
    fork.counts(60_012, (1_000, 10), (1_000, 10))
    fork.add(65_000, "turn_context", model="gpt-x")
    fork.user(65_001, "Another way.")
    fork.says(66_000, "Two.")
    fork.counts(66_010, (2_100, 30), (1_100, 20))
    assert tokens(only(fork.write(tmp_path))) == [(1_100, 20)]


def test_sub_agents_of_sub_agents(tmp_path: Path) -> None:
    root = Log()
    root.turn(0, "Go.")
    root.calls(100, "c1", "spawn_agent", message="Look at all the files and count them.")
    root.result(5_000, "c1", "done")
    root.says(5_100, "Done.")
    child = Log(
        minted(200), source={"subagent": {"thread_spawn": {"parent_thread_id": ROOT, "agent_role": "explorer"}}}
    )
    child.turn(300, "Look at all the files and count them.")
    child.says(400, "Three.")
    inner = Log(minted(350), source={"subagent": {"thread_spawn": {"parent_thread_id": child.thread}}})
    inner.turn(360, "Inside.")
    inner.says(380, "Four.")
    for log in (root, child, inner):
        log.write(tmp_path)
    session = only(tmp_path)
    assert session.native_session_id == ROOT
    told = {call.answer.content: call for call in session.calls if call.answer}
    assert (told["Three."].hints[0].agent, told["Three."].hints[0].parent_agent) == (child.thread, None)
    assert (told["Four."].hints[0].agent, told["Four."].hints[0].parent_agent) == (inner.thread, child.thread)
    assert told["Three."].agent_type == "explorer"
    assert told["Done."].hints[0].agent is None


def test_tool_times_of_all_versions(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    for number in range(1, 6):
        log.calls(100, f"c{number}", command=["x"])
    log.event(200, "exec_approval_request", call_id="c1")
    log.event(4_200, "exec_command_begin", call_id="c1")
    log.event(5_000, "exec_command_end", call_id="c1", exit_code=0, duration={"secs": 0, "nanos": 790_000_000})
    log.event(200, "mcp_tool_call_begin", call_id="c2")
    log.event(900, "mcp_tool_call_end", call_id="c2")
    times = {"started_at_ms": START_MS + 250, "completed_at_ms": START_MS + 1_250}
    item = {"type": "FileChange", "id": "c3", "duration": {"secs": 1, "nanos": 0}}
    log.event(1_250, "item_completed", thread_id=ROOT, item=item, **times)
    # The clock of a command starts 150 ms late in 0.169: the start of the call is nearer to the truth.
    late = {
        "type": "CommandExecution",
        "id": "c4",
        "source": "unified_exec_startup",
        "duration": {"secs": 1, "nanos": 0},
    }
    log.event(1_250, "item_completed", thread_id=ROOT, item=late, **times)
    log.event(1_250, "item_completed", thread_id="another", item=item | {"id": "c5"}, **times)
    for number in range(1, 6):
        log.result(6_000, f"c{number}")
    log.says(6_100, "Done.")
    told = {time.tool_call_id: time for time in only(log.write(tmp_path)).tool_times}
    assert {name: time.internal_us for name, time in told.items()} == {
        "c1": 790_000,
        "c2": 700_000,
        "c3": 1_000_000,
        "c4": 1_150_000,
    }
    assert told["c1"].permission_us == 4_000_000
    assert (told["c4"].started_utc_us, told["c4"].ended_utc_us) == (at_us(100), at_us(1_250))


def test_an_aborted_turn_and_a_failed_one(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.says(100, "Well, I")
    log.event(200, "turn_aborted", reason="interrupted")
    log.turn(1_000, "Again.")
    log.event(9_000, "task_complete", error={"message": "stream disconnected"}, last_agent_message=None)
    log.turn(10_000, "Again.")
    log.says(10_100, "Now.")
    cut, failed, done = only(log.write(tmp_path)).calls
    assert (cut.complete, cut.error) == (False, "turn aborted: interrupted")
    assert (failed.complete, failed.answer, failed.error) == (False, None, "stream disconnected")
    assert (failed.usage.output_total, failed.status) == (None, None)
    assert (failed.t_send_ns // 1000, failed.t_end_ns) == (at_us(1_001), at_us(9_000) * 1000)
    assert done.complete is False  # the log ends before anything tells that the answer was whole
    assert done.error is None


def test_turns_taken_back(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.says(100, "One.")
    log.turn(1_000, "This way.")
    log.says(1_100, "Two.")
    log.event(2_000, "thread_rolled_back", num_turns=1)
    log.turn(3_000, "That way.")
    log.says(3_100, "Three.")
    calls = only(log.write(tmp_path)).calls
    assert [message.content for message in calls[2].messages] == ["Be brief.", "Go.", "One.", "That way."]


def test_a_compaction_of_older_versions(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.says(100, "One.")
    log.event(110, "task_complete")
    log.turn(1_000, "On.")
    log.says(1_100, "A summary of what was said.")
    log.add(1_200, "compacted", message="Here it is: A summary of what was said.")
    log.says(1_300, "Two.")
    session = only(log.write(tmp_path))
    assert [call.compaction for call in session.calls] == [None, "unknown", None]
    assert [message.content for message in session.calls[2].messages] == [
        "Be brief.",
        "Go.",
        "On.",
        "Here it is: A summary of what was said.",
    ]
    assert any("rebuilt" in note for note in session.notes)


def test_bare_lines_of_2025(tmp_path: Path) -> None:
    head = {"id": "5973b6c0-94b8-487b-a530-2aeb6098ae0e", "timestamp": stamp(0), "instructions": None}
    lines: list[dict[str, Any]] = [
        head,
        {"record_type": "state"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go."}]},
        {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "c1"},
        {"record_type": "state"},
        {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
        {"record_type": "state"},
    ]
    path = tmp_path / "rollout-2025-05-07T17-24-21-5973b6c0-94b8-487b-a530-2aeb6098ae0e.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    session = only(path)
    assert session.native_session_id == head["id"]
    assert [len(call.messages) for call in session.calls] == [1, 3]
    # One stamp for the whole log: nothing else is made up.
    assert [call.t_send_ns // 1000 for call in session.calls] == [at_us(0), at_us(0)]
    assert [call.t_end_ns for call in session.calls] == [None, None]
    assert tokens(session) == [(None, None), (None, None)]
    (trajectory,) = import_codex([path], KEY).trajectories
    assert [request.t_end_us for request in trajectory.requests] == [None, None]


def test_a_resumed_thread_in_a_second_file(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.says(100, "One.")
    log.counts(110, (1_000, 10), (1_000, 10))
    log.write(tmp_path)
    log.turn(9_000, "On.")
    log.says(9_100, "Two.")
    log.counts(9_110, (2_100, 30), (1_100, 20))
    log.write(tmp_path, f"rollout-2026-03-01T10-00-09-{ROOT}.jsonl")
    assert tokens(only(tmp_path)) == [(1_000, 10), (1_100, 20)]


# Bad input


def test_a_torn_last_line_is_tolerated_and_named(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.says(100, "One.")
    path = log.write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"timestamp":"2026')
    session = only(path)
    assert len(session.calls) == 1
    assert session.notes[0] == f"{path}:{len(log.lines) + 1}: the last line is cut off and was left out"
    packed = path.with_suffix(".jsonl.zst")
    packed.write_bytes(zstandard.ZstdCompressor().compress(whole)[:-20])
    path.unlink()
    with pytest.raises(ImportFault, match=re.escape(str(packed))):
        read_log(packed)


def test_garbage_names_file_and_line(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    path = log.write(tmp_path)
    path.write_bytes(path.read_bytes() + b"{oops\n")
    with pytest.raises(ImportFault, match=re.escape(f"{path}:{len(log.lines) + 1}:")):
        read_log(path)


def test_other_files_in_a_folder_are_skipped_and_counted(tmp_path: Path) -> None:
    log = Log()
    log.turn(0, "Go.")
    log.says(100, "One.")
    log.write(tmp_path)
    (tmp_path / "history.jsonl").write_text('{"session_id": "x", "ts": 1, "text": "Go."}\n')
    (tmp_path / "packed.jsonl.zst").write_bytes(gzip.compress(b"x"))
    assert "2 files that are no Codex log were skipped" in import_codex([tmp_path], KEY).notes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=mutated_logs([path.read_bytes() for path in rollouts()]))
def test_mutated_logs_raise_nothing_else(tmp_path: Path, log: bytes) -> None:
    place = tmp_path / f"rollout-2026-03-01T10-00-00-{ROOT}.jsonl"
    place.write_bytes(log)
    try:
        found = import_codex([place], KEY).trajectories
    except ImportFault as fault:
        said = str(fault)
    else:
        said = place.name
        requests = [request for trajectory in found for request in trajectory.requests]
        assert all(request.t_end_us is None or request.t_end_us >= request.t_send_us for request in requests)
    assert place.name in said


# The command


def test_the_command(tmp_path: Path) -> None:
    home = tmp_path / "codex"
    for name in ("sessions", "archived_sessions"):
        shutil.copytree(GOLDEN, home / name)  # an archived thread may stand in both
    words = ["import", "codex", "--store", str(tmp_path / "store"), "--json"]
    done = CliRunner().invoke(capture, words, env={"CODEX_HOME": str(home)})
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["calls"], len(summary["session_ids"]), summary["tool_calls"]) == (10, 2, 5)
    assert "token counts of Codex logs are the provider's own" in summary["notes"]

"""Gemini CLI's logs as sessions: golden logs of the real agent, each known trap on its own, and mutated logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from capture.importers.gemini_cli import import_gemini_cli, read_log
from capture.importers.imported import ImportFault
from capture.importers.log_session import LogSession
from tests.mutated_logs import mutated_logs

GOLDEN = Path(__file__).parent / "logs" / "gemini-cli"
KEY = bytes(range(32))
HEAD: dict[str, Any] = {"sessionId": "s-1", "projectHash": "abc", "startTime": "2026-10-01T10:00:00Z", "kind": "main"}


def stamp(seconds: int) -> str:
    return f"2026-10-01T10:00:{seconds:02d}.000Z"


def at_us(seconds: int) -> int:
    return 1_790_848_800_000_000 + seconds * 1_000_000


def user(name: str, seconds: int, words: str) -> dict[str, Any]:
    return {"id": name, "timestamp": stamp(seconds), "type": "user", "content": [{"text": words}]}


def gemini(name: str, seconds: int, words: str, **more: Any) -> dict[str, Any]:
    tokens = {"input": 100, "output": 20, "cached": 60, "thoughts": 5, "tool": 3, "total": 128}
    said = {"id": name, "timestamp": stamp(seconds), "type": "gemini", "content": words, "model": "gemini-x"}
    return said | {"tokens": tokens} | more


def tool(name: str, seconds: int, output: str) -> dict[str, Any]:
    response = {"functionResponse": {"id": name, "name": "shell", "response": {"output": output}}}
    return {"id": name, "name": "shell", "args": {"command": "ls"}, "result": [response], "timestamp": stamp(seconds)}


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "session-2026-10-01T10-00-s1.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (HEAD, *lines)), encoding="utf-8")
    return path


def only(path: Path) -> LogSession:
    (session,) = read_log(path)
    return session


def said(session: LogSession) -> list[str]:
    return [call.answer.content for call in session.calls if call.answer is not None]


def test_golden_calls_are_the_servers_calls() -> None:
    session = only(GOLDEN)
    served = json.loads((GOLDEN / "served.json").read_text(encoding="utf-8"))
    told = {call["text"]: call for call in served if call["status"] == 200}
    # The resumed session repeats its history: no call counts twice.
    assert len(session.calls) == len(told) == 6
    for call in session.calls:
        assert call.answer is not None
        known = told[call.answer.content]
        assert call.usage.input_total == known["usage"]["input_total"]
        assert call.usage.cache_read == known["usage"]["cache_read"]
        assert call.usage.output_total == known["usage"]["output_total"]
        assert len(call.answer.tool_calls) == len(known["tool_call_ids"])
        assert call.t_end_ns is not None
        assert 0 <= call.t_end_ns // 1000 - known["last_byte_utc_us"] <= 500_000
        assert call.response_id is None
        assert (call.stream, call.bytes_up, call.t_first_content_ns) == (None, None, None)
    assert sum(call.hints[0].agent is not None for call in session.calls) == 2


def test_golden_trajectory() -> None:
    imported = import_gemini_cli([GOLDEN], KEY)
    (trajectory,) = imported.trajectories
    assert (trajectory.source, trajectory.harness, trajectory.token_source) == (
        "gemini-cli-log",
        "gemini-cli",
        "provider",
    )
    assert (len(trajectory.requests), trajectory.num_subagents, len(trajectory.tool_calls)) == (6, 1, 5)
    assert sum(request.prompt_tokens or 0 for request in trajectory.requests) == 1000 + 1200 + 500 + 620 + 1400 + 1503
    assert sum(request.completion_tokens or 0 for request in trajectory.requests) == 100 + 60 + 20 + 15 + 12 + 9
    # Two tools that ran side by side have one stamp: none of them has a time.
    assert sum(call.internal_us is not None for call in trajectory.tool_calls) == 3
    assert "1 files that are no Gemini CLI log were skipped" in imported.notes


def test_a_sessions_file_brings_its_sub_agents() -> None:
    (path,) = GOLDEN.rglob("session-*.jsonl")
    assert only(path).calls == only(GOLDEN).calls


def test_a_message_that_grows_is_one_call(tmp_path: Path) -> None:
    grown = gemini("b", 3, "Hello.", toolCalls=[tool("t1", 7, "x")])
    path = written(
        tmp_path,
        user("a", 0, "Go."),
        gemini("b", 3, "Hello.", tokens=None),
        {"$set": {"lastUpdated": stamp(3)}},
        grown,
        gemini("c", 9, "Done.", thoughts=[{"subject": "Plan", "description": "End it."}]),
    )
    session = only(path)
    first, second = session.calls
    usage = first.usage
    assert (usage.input_total, usage.cache_read, usage.output_total, usage.reasoning) == (103, 60, 25, 5)
    assert (first.t_send_ns // 1000, first.t_end_ns) == (at_us(0), at_us(3) * 1000)
    # No message of the user carries the result: it stands in the call's.
    assert [message.role for message in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[2].content == "x"
    assert second.answer is not None
    assert second.answer.reasoning_content == "Plan: End it."
    (time,) = session.tool_times
    assert (time.tool_call_id, time.internal_us) == ("t1", 4_000_000)


def test_rewind_and_replacement_change_the_prompt_not_the_calls(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        user("a", 0, "First."),
        gemini("b", 1, "One."),
        user("c", 2, "Second."),
        gemini("d", 3, "Two."),
        {"$rewindTo": "c"},
        user("e", 10, "Third."),
        gemini("f", 11, "Three."),
        {"$set": {"messages": [user("g", 20, "A summary."), {"id": "b", "type": "gemini", "content": "One."}]}},
        user("h", 21, "Fourth."),
        gemini("i", 22, "Four."),
        {"id": "j", "type": "info", "timestamp": stamp(23), "content": "A notice."},
        {"$rewindTo": "unknown"},
        user("k", 24, "Fifth."),
        gemini("l", 25, "Five."),
    )
    session = only(path)
    assert said(session) == ["One.", "Two.", "Three.", "Four.", "Five."]
    prompts = [[message.content for message in call.messages] for call in session.calls]
    assert prompts[2] == ["First.", "One.", "Third."]
    assert prompts[3] == ["A summary.", "One.", "Fourth."]
    assert prompts[4] == ["Fifth."]


def test_a_checkpoint_that_tells_counts_tells_a_call(tmp_path: Path) -> None:
    first = [user("a", 0, "Go."), gemini("b", 1, "One.")]
    path = written(
        tmp_path,
        {"$set": {"messages": first}},
        {"$set": {"messages": [*first, user("c", 2, "On."), gemini("d", 3, "Two.")]}},
    )
    assert said(only(path)) == ["One.", "Two."]


def test_an_older_log_is_one_document(tmp_path: Path) -> None:
    messages = [user("a", 0, "Go."), gemini("b", 1, "One.", toolCalls=[tool("t1", 2, "x")]), gemini("c", 3, "Two.")]
    path = tmp_path / "session-old.json"
    path.write_text(json.dumps(HEAD | {"messages": messages}), encoding="utf-8")
    session = only(path)
    assert said(session) == ["One.", "Two."]
    assert len(session.calls[1].messages) == 3
    path.write_text(json.dumps(HEAD | {"messages": messages}, indent=2)[:-20], encoding="utf-8")
    with pytest.raises(ImportFault, match=str(path)):
        read_log(path)
    path.write_text(json.dumps(HEAD | {"messages": messages}, indent=2), encoding="utf-8")
    assert said(only(path)) == ["One.", "Two."]


def test_a_torn_last_line_is_tolerated_and_named(tmp_path: Path) -> None:
    path = written(tmp_path, user("a", 0, "Go."), gemini("b", 1, "One."))
    path.write_bytes(path.read_bytes() + b'{"id":"c","ti')
    session = only(path)
    assert said(session) == ["One."]
    assert session.notes == (f"{path}:4: the last line is cut off and was left out",)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=mutated_logs([path.read_bytes() for path in sorted(GOLDEN.rglob("*.jsonl"))]))
def test_mutated_logs_raise_nothing_else(tmp_path: Path, log: bytes) -> None:
    place = tmp_path / "session-mutated.jsonl"
    place.write_bytes(log)
    try:
        found = import_gemini_cli([place], KEY).trajectories
    except ImportFault as fault:
        words = str(fault)
    else:
        words = place.name
        requests = [request for trajectory in found for request in trajectory.requests]
        assert all(request.t_end_us is None or request.t_end_us >= request.t_send_us for request in requests)
    assert place.name in words

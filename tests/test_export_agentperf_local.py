"""Replays for agentperf-local: its own loader and its own preparation of a run take them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from agentperf_local.replay.config import RunConfig
from agentperf_local.replay.runner import _prepare_tasks
from agentperf_local.workload.schema import TraceRow, load_manifest, load_trace

from capture.dialects.openai_chat import read_message
from capture.importers.agentperf_local import import_agentperf_local, installed_manifest
from capture.importers.read import import_manifests
from capture.trajectory import Trajectory
from curate.export import ExportFault, export
from tests.calls import KEY, SYSTEM, Wire, result, said, user
from tests.sample_sessions import content_free_session, text_session


def loaded(folder: Path) -> dict[str, list[TraceRow]]:
    """Rows by task as the package's own replay gets them, by the same checks."""
    manifest = load_manifest(folder / "manifest.json")
    config = RunConfig(
        base_url="http://localhost:1/v1", model="m", tool_mode="fixed_delay", output_token_policy="exact"
    )
    prepared = _prepare_tasks(folder / "manifest.json", config, lambda _: None)
    assert [one.task.task_id for one in prepared] == [task.task_id for task in manifest.tasks]
    return {one.task.task_id: list(one.rows) for one in prepared}


def test_its_own_loader_takes_its_own_replay_again(tmp_path: Path) -> None:
    """Words, tools, counts and times of the bundled replay come out as they went in, one line for one line."""
    sessions = import_manifests([], KEY).trajectories
    report = export(sessions, "agentperf-local", tmp_path / "replay")
    assert (report.sessions, report.requests) == (8, 168)
    assert report.left_out == {}
    tasks = loaded(tmp_path / "replay")
    source = Path(str(installed_manifest()))
    theirs = {task.task_id: load_trace(source.parent / task.trace) for task in load_manifest(source).tasks}
    for session in sessions:
        for row, other in zip(tasks[session.session_id], theirs[session.source_ref], strict=True):
            # The index of a tool call in a stream is no part of the message.
            assert [read_message(one.to_dict()) for one in row.messages] == [
                read_message(one.to_dict()) for one in other.messages
            ]
            assert [one.to_dict() for one in row.tools] == [one.to_dict() for one in other.tools]
            for name in ("target_output_tokens", "max_output_tokens", "recorded_prompt_tokens",
                         "recorded_completion_tokens", "recorded_total_tokens"):  # fmt: skip
                assert getattr(row, name) == getattr(other, name), name
            assert row.recorded_model_duration_ms == pytest.approx(other.recorded_model_duration_ms, abs=0.001)
            for call, known in zip(row.recorded_tool_calls_after, other.recorded_tool_calls_after, strict=True):
                assert call.duration_ms == pytest.approx(known.duration_ms, abs=0.001)
                assert (call.tool_call_id, call.tool_name) == (known.tool_call_id, known.tool_name)


def test_a_recorded_session_as_a_task(tmp_path: Path) -> None:
    report = export([text_session(), content_free_session()], "agentperf-local", tmp_path / "replay")
    assert (report.sessions, report.requests) == (1, 3)
    assert report.left_out == {
        "requests of sub-agents and branches (a task is one conversation)": 1,
        "requests without text": 3,
        "sessions without a request that the format can hold": 1,
    }
    (task,) = load_manifest(tmp_path / "replay" / "manifest.json").tasks
    assert (task.family, task.model_calls, task.tool_calls) == ("codex", 3, 3)
    assert task.required_context_tokens == 3050
    first, second, last = loaded(tmp_path / "replay")["session-a"]
    # A tool's own time where it is known, else the gap; nothing is known behind the last call.
    assert [row.recorded_tool_calls_after[0].duration_ms for row in (first, second, last)] == [7500.0, 8000.0, 0.0]
    assert [row.simulated_tool_delay_ms_after for row in (first, second, last)] == [8000.0, 8000.0, 0.0]
    assert first.recorded_tool_calls_after[0].command == "make 0"
    assert (first.max_output_tokens, first.target_output_tokens) == (4096, 50)
    assert (tmp_path / "replay").stat().st_mode & 0o777 == 0o700
    (file,) = (tmp_path / "replay" / "traces").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_tools_of_unknown_time_share_what_is_left_of_the_gap(tmp_path: Path) -> None:
    wire = Wire()
    opening = [SYSTEM, user("Go.")]
    answer = said("", ("a", "Bash", "{}"), ("b", "Bash", "{}"), ("c", "Bash", "[]"))
    wire.call(0, opening, answer, session="s")
    wire.call(1100, [*opening, answer, result("a"), result("b"), result("c")], said("Done."), session="s")
    session = wire.one()
    known = replace(session.tool_calls[0], internal_us=400_000)
    session = replace(session, tool_calls=(known, *session.tool_calls[1:]))
    export([session], "agentperf-local", tmp_path / "replay")
    first, _ = loaded(tmp_path / "replay")[session.session_id]
    assert [call.duration_ms for call in first.recorded_tool_calls_after] == [400.0, 300.0, 300.0]
    assert sum(call.duration_ms for call in first.recorded_tool_calls_after) == first.simulated_tool_delay_ms_after
    assert [call.action for call in first.recorded_tool_calls_after] == [
        {"tool_call_id": "a"},
        {"tool_call_id": "b"},
        None,  # arguments that are no object
    ]


def test_any_letter_comes_back(tmp_path: Path) -> None:
    """Letters that some readers take for ends of lines."""
    session = text_session(secret="a\x85b\u2028c\x0bd")
    export([session], "agentperf-local", tmp_path / "replay")
    (back,) = import_agentperf_local(tmp_path / "replay" / "manifest.json", KEY).trajectories
    assert back.pool[1].message.content == session.pool[1].message.content
    assert loaded(tmp_path / "replay")["session-a"][0].messages[1].content == session.pool[1].message.content


@pytest.mark.parametrize("odd", ["clockless", "no words"])
def test_what_no_replay_can_hold_is_refused(odd: str, tmp_path: Path) -> None:
    session: Trajectory = text_session()
    changes = {"t_send_us": None} if odd == "clockless" else {"prompt_spans": ()}
    session = replace(session, requests=tuple(replace(one, **changes) for one in session.requests[:3]))
    with pytest.raises(ExportFault, match=r"requests (of unknown time|without a message)"):
        export([session], "agentperf-local", tmp_path / "replay")
    assert not list(tmp_path.iterdir())


def test_a_manifest_is_what_the_format_says(tmp_path: Path) -> None:
    export([text_session("b"), text_session("a/c")], "agentperf-local", tmp_path / "two")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["mode"] == "single_user_agentic_replay"
    assert [(task["task_id"], task["trace"]) for task in manifest["tasks"]] == [
        ("b", "traces/b.jsonl"),
        ("a/c", "traces/a-c.jsonl"),
    ]

"""Conversations of messages and ATIF documents: what they hold is there, what they cannot hold is null."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capture.importers.atif import import_atif
from capture.importers.imported import ImportFault
from capture.importers.messages import import_messages
from capture.trajectory import Request, ToolCall, Trajectory
from curate.published import published
from curate.row import rows_of, trajectory_of

KEY = b"k" * 32
CALL = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": "List the files."},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Let me look."},
    {"role": "tool", "tool_call_id": "c1", "content": "a b"},
    {"role": "assistant", "content": "There are two: a and b."},
]
TOOLS = [{"type": "function", "function": {"name": "bash", "description": "Run", "parameters": {"type": "object"}}}]


def assert_no_time_nor_count(found: Trajectory) -> None:
    """Nothing in it is a time or a count that the source did not give."""
    for value in (*found.requests, *found.tool_calls):
        kind = Request if isinstance(value, Request) else ToolCall
        for name in (field.name for field in fields(kind)):
            if name.endswith(("_us", "_tokens")) or name in ("bytes_up", "bytes_down", "stream", "status"):
                assert getattr(value, name) is None, name
    assert {pooled.t_us for pooled in found.pool} == {None}
    for name in ("t0_utc_us", "duration_us", "api_us", "tool_us", "human_us", "peak_agents"):
        assert getattr(found, name) is None, name


def assert_round_trip(found: Trajectory) -> None:
    rows = rows_of(found)
    assert trajectory_of(rows.session, rows.requests, rows.tool_calls) == published(found)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "parquet with JSON text"])
def test_conversations_in_each_container(tmp_path: Path, form: str) -> None:
    row: dict[str, Any] = {"session_id": "s-1", "messages": CONVERSATION, "tools": TOOLS, "model": "m"}
    if form == "jsonl":
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    elif form == "json":
        (tmp_path / "a.json").write_text(json.dumps([row]))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    else:
        row |= {"messages": json.dumps(CONVERSATION), "tools": json.dumps(TOOLS)}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    imported = import_messages([tmp_path], KEY)
    (found,) = imported.trajectories
    assert (found.source, found.token_source, found.models) == ("messages", "none", ("m",))
    assert [request.relation for request in found.requests] == ["start", "continue"]
    assert [request.prompt_spans for request in found.requests] == [((0, 2),), ((0, 4),)]
    assert [pooled.message.content for pooled in found.pool] == [message["content"] or "" for message in CONVERSATION]
    assert [tool.name for tool in found.tool_sets[0]] == ["bash"]
    (call,) = found.tool_calls
    assert (call.tool_call_id, call.result_request_index, call.kind) == ("c1", 1, "exec")
    assert_no_time_nor_count(found)
    assert_round_trip(found)
    assert "unknown" in imported.notes[0]


def test_same_rows_give_the_same_ids_and_rows_without_answers_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": CONVERSATION}, {"messages": CONVERSATION[:2]}, {"id": 7, "messages": CONVERSATION}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, again = (import_messages([tmp_path / "a.jsonl"], KEY) for _ in range(2))
    assert first.trajectories == again.trajectories
    assert len({found.session_id for found in first.trajectories}) == 2
    assert "1 conversations without an assistant message" in first.notes[1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": []}, r"row 1: `messages` is missing \(it has conversations\)"),
        ({"messages": "[1"}, "row 1: messages: no valid JSON"),
        ({"messages": [{"role": "human", "content": "x"}]}, r"messages\[0\]: role 'human'"),
        ({"messages": [17]}, r"messages\[0\]: role ''"),
        ({"messages": []}, "is no list of messages"),
    ],
)
def test_bad_rows_are_refused_with_the_place(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ImportFault, match=said):
        import_messages([tmp_path / "a.jsonl"], KEY)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"messages": []}\n{"mess', "a.jsonl:2: the last line is cut off"),
        ("a.parquet", b"PAR1", "no readable Parquet file"),
        ("a.json", b"[3]", "row 1: no JSON object"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportFault, match=said):
        import_messages([tmp_path], KEY)


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    row = json.dumps({"id": "same", "messages": CONVERSATION})
    (tmp_path / "a.jsonl").write_text(f"{row}\n{row}\n")
    with pytest.raises(ImportFault, match="'same' stands twice"):
        import_messages([tmp_path], KEY)


def atif(**changes: Any) -> dict[str, Any]:
    """A document with a sub-agent, a copied step and a step without inference."""
    call = {"tool_call_id": "t1", "function_name": "task", "arguments": {"prompt": "Count the files in src."}}
    inner = {
        "schema_version": "ATIF-v1.7",
        "trajectory_id": "sub-1",
        "agent": {"name": "helper", "version": "1"},
        "steps": [
            {"step_id": 1, "timestamp": "2026-05-01T10:00:06Z", "source": "user", "message": "Count the files in src."},
            {"step_id": 2, "timestamp": "2026-05-01T10:00:07Z", "source": "agent", "message": "Seven."},
        ],
    }
    steps = [
        {"step_id": 1, "timestamp": "2026-05-01T10:00:00Z", "source": "system", "message": "You are an agent."},
        {"step_id": 2, "timestamp": "2026-05-01T10:00:01Z", "source": "user", "message": "How many files?"},
        {"step_id": 3, "source": "agent", "message": "From an earlier run.", "is_copied_context": True},
        {
            "step_id": 4, "timestamp": "2026-05-01T10:00:05Z", "source": "agent", "message": "I ask a helper.",
            "reasoning_content": "Delegate.", "tool_calls": [call], "model_name": "m-1", "reasoning_effort": "high",
            "metrics": {"prompt_tokens": 100, "completion_tokens": 20, "cached_tokens": 60,
                        "extra": {"reasoning_tokens": 5}},
            "observation": {"results": [{"source_call_id": "t1", "content": "Seven.",
                                         "subagent_trajectory_ref": [{"trajectory_id": "sub-1"}]}]},
        },
        {"step_id": 5, "timestamp": "2026-05-01T10:00:08Z", "source": "agent", "message": "noted", "llm_call_count": 0},
        {"step_id": 6, "timestamp": "2026-05-01T10:00:09Z", "source": "agent", "message": "Seven files.",
         "llm_call_count": 2, "metrics": {"prompt_tokens": 300, "completion_tokens": 9}},
    ]  # fmt: skip
    return {
        "schema_version": "ATIF-v1.8",
        "session_id": "run-1",
        "agent": {"name": "terminus", "version": "2.0", "model_name": "m-0", "tool_definitions": TOOLS},
        "steps": steps,
        "subagent_trajectories": [inner],
        **changes,
    }


def test_atif_document(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(atif()))
    (tmp_path / "other.json").write_text('{"something": "else"}')
    imported = import_atif([tmp_path], KEY)
    (found,) = imported.trajectories
    main = [request for request in found.requests if request.agent_path == "main"]
    assert (found.source, found.harness, found.harness_version, found.token_source) == (
        "atif", "terminus", "2.0", "agent",
    )  # fmt: skip
    assert [(request.prompt_tokens, request.cache_read_tokens, request.completion_tokens) for request in main] == [
        (100, 60, 20),
        (None, None, None),  # a sum over two inferences is the count of neither
    ]
    assert [request.t_send_us for request in main] == [0, 4_000_000]
    assert {request.t_end_us for request in found.requests} == {None}
    assert main[0].effort == "high"
    (helper,) = [request for request in found.requests if request.agent_path != "main"]
    assert (helper.agent_path, helper.relation, helper.parent_request_index) == ("main/1", "subagent", 0)
    spans = main[1].prompt_spans or ()
    said = [found.pool[at].message.content for start, stop in spans for at in range(start, stop)]
    assert said == [
        "You are an agent.",
        "How many files?",
        "From an earlier run.",
        "I ask a helper.",
        "Seven.",
        "noted",
    ]
    assert "sum several inferences" in " ".join(imported.notes)
    assert_round_trip(found)


def test_atif_without_stamps_has_no_times(tmp_path: Path) -> None:
    document = atif(subagent_trajectories=[])
    for step in document["steps"]:
        step.pop("timestamp", None)
        step.pop("metrics", None)
    (tmp_path / "run.json").write_text(json.dumps(document))
    imported = import_atif([tmp_path / "run.json"], KEY)
    assert_no_time_nor_count(imported.trajectories[0])
    assert "times are unknown" in " ".join(imported.notes)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"schema_version": "ATIF-v2.0", "steps": []}, "schema_version is 'ATIF-v2.0'"),
        ({"schema_version": "ATIF-v1.2"}, "`steps` is no list"),
        ({"schema_version": "ATIF-v1.2", "steps": [{"source": "robot"}]}, r"steps\[0\]: source is 'robot'"),
        ([], "schema_version is ''"),
    ],
)
def test_bad_documents_are_refused(tmp_path: Path, document: Any, said: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(ImportFault, match=said):
        import_atif([tmp_path / "run.json"], KEY)


def test_runs_that_share_a_session_id_stay_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(atif()))
    found = import_atif([tmp_path], KEY).trajectories
    assert len({trajectory.session_id for trajectory in found}) == 2

"""Files for the Hub's trace viewer: detected as an agent's log, small, and saying where they were cut."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capture.call import Message, ToolUse
from capture.trajectory import Trajectory
from curate.viewer import MAX_BYTES, viewer_lines, viewer_path, write_viewer_files
from tests.sample_sessions import content_free_session, pooled, text_session


def with_huge(*, characters: int, messages: int = 1) -> Trajectory:
    """The sample session with huge tool results and arguments."""
    session = text_session()
    pool = list(session.pool)
    for position, entry in enumerate(pool):
        if entry.message.role == "tool":
            pool[position] = dataclasses.replace(
                entry, message=dataclasses.replace(entry.message, content="x" * characters)
            )
        elif entry.message.tool_calls:
            (use,) = entry.message.tool_calls
            arguments = json.dumps({"command": "y" * characters, "nested": ["z" * characters]})
            use = ToolUse(id=use.id, name=use.name, arguments=arguments)
            pool[position] = dataclasses.replace(entry, message=dataclasses.replace(entry.message, tool_calls=(use,)))
    first = dataclasses.replace(session.requests[0], prompt_spans=((len(pool), len(pool) + messages),))
    pool += [pooled(Message(role="user", content=f"{n} {'w' * characters}"), 0) for n in range(messages)]
    return dataclasses.replace(session, pool=tuple(pool), requests=(first, *session.requests[1:]))


def entries(data: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in data.splitlines()]


def test_tool_calls_and_their_results_are_there_as_the_viewer_wants_them() -> None:
    lines = entries(viewer_lines(text_session()))
    blocks = [
        block
        for line in lines
        if line["type"] in ("user", "assistant")
        for block in line["message"]["content"]  # type: ignore[index]
        if isinstance(block, dict)
    ]
    uses = {block["id"]: block["name"] for block in blocks if block["type"] == "tool_use"}
    results = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
    assert uses == {"call-0": "bash", "call-1": "bash", "call-2": "bash"}
    assert results <= set(uses)
    assert results
    assert {line["sessionId"] for line in lines} == {"session-a"}


def test_datasets_takes_such_a_file_for_an_agents_log(tmp_path: Path) -> None:
    from datasets import Features
    from datasets.packaged_modules.json.json import Json, has_agent_traces_markers

    path = tmp_path / "trace.jsonl"
    path.write_bytes(viewer_lines(text_session()))
    builder = Json(cache_dir=str(tmp_path / "cache"), data_files=[str(path)])
    files = [[str(path)]]
    _, table = next(iter(builder._generate_tables([str(path)], files, files, allow_full_read=False)))
    assert has_agent_traces_markers(Features.from_arrow_schema(table.schema))


@pytest.mark.parametrize(("characters", "messages"), [(1_000_000, 1), (30_000, 60), (600, 5_000)])
def test_files_stay_small_and_say_what_is_missing(characters: int, messages: int) -> None:
    session = with_huge(characters=characters, messages=messages)
    data = viewer_lines(session)
    assert len(data) <= MAX_BYTES
    assert "viewer" in data.decode()
    lines = entries(data)
    known = {line["uuid"] for line in lines}
    assert all(line["parentUuid"] is None or line["parentUuid"] in known for line in lines if "parentUuid" in line)


def test_a_session_without_text_has_no_file(tmp_path: Path) -> None:
    assert viewer_lines(content_free_session()) == b""
    assert write_viewer_files(tmp_path, [content_free_session(), text_session()]) == 1
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["session-a.jsonl"]


@given(st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_name_is_one_file_in_the_folder(session_id: str) -> None:
    folder, _, name = viewer_path(session_id).partition("/")
    assert folder == "traces"
    assert "/" not in name
    assert name.removesuffix(".jsonl") not in ("", ".", "..")
    assert name.isprintable()


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_sessions_have_two_files(one: str, two: str) -> None:
    assert (viewer_path(one) == viewer_path(two)) == (one == two)

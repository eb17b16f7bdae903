"""Shelf, sessions of a store, their JSON, and the commands that print them."""

from __future__ import annotations

import json
import stat
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from agentdyno import main
from capture.call import Message
from capture.gap import split_gaps
from capture.importers.weka import import_weka
from capture.sessions import NoSuchSession, find_session, read_sessions
from capture.shelf import Shelf, ShelfFault
from capture.store import Store, StoreError
from capture.timeline import print_session, print_sessions
from capture.trajectory import Request, ToolCall, Trajectory
from capture.view import session_json
from tests.calls import SYSTEM, Wire, result, said, user
from tests.sample_sessions import content_free_session, text_session

# The columns of the dataset, as the schema of version 1 names them; `sessions` less its text.
SESSION_COLUMNS = """
session_id harness harness_version t0_utc tools_sha metadata sent_at models num_user_messages num_tool_calls
num_requests num_subagents num_compactions num_errors duration_us api_us tool_us human_us prompt_tokens_total
cached_tokens_total completion_tokens_total reasoning_tokens_total context_tokens_max context_tokens_last tokenizer
tokenizer_sha lang_mix outcome outcome_source resolved exit_status repo_license task_id license consent contributor
redaction_policy redaction_counts review review_digest content_sha dup_cluster dup_role split capture_quality schema
""".split()  # noqa: SIM905 - a table, as the schema prints it
REQUEST_COLUMNS = """
session_id request_index agent_path parent_request_index api model stream status error retry_of t_send_us t_headers_us
t_first_token_us t_last_token_us t_end_us gap_us gap_kind think_us msg_upto context_event lcp_tokens prompt_tokens
cache_read_tokens cache_write_tokens completion_tokens reasoning_tokens prompt_tokens_est system_tokens tools_tokens
max_tokens temperature effort stop new_input tool_call_ids block_size block_hashes bytes_up bytes_down sse_events
itl_us cache_ttl_s
""".split()  # noqa: SIM905 - a table, as the schema prints it
TOOL_CALL_COLUMNS = """
session_id tool_call_id agent_path request_index result_request_index name kind t_emitted_us t_result_us wall_us
internal_us parallel_group args_tokens result_tokens result_bytes is_error exit_code timed_out
""".split()  # noqa: SIM905 - a table, as the schema prints it


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    Store.open(path, create=True)
    return path


def some_weka(weka_traces: Path, key: bytes) -> tuple[Trajectory, ...]:
    return import_weka([weka_traces / f"trace_{number}.json" for number in ("0274", "0035")], key).trajectories


def test_the_columns_of_the_dataset() -> None:
    shown = session_json(text_session())
    assert set(SESSION_COLUMNS) <= set(shown["session"])
    assert set(REQUEST_COLUMNS) | {field.name for field in fields(Request)} <= set(shown["requests"][0])
    assert set(TOOL_CALL_COLUMNS) | {field.name for field in fields(ToolCall)} <= set(shown["tool_calls"][0])
    assert {row["session_id"] for rows in (shown["requests"], shown["tool_calls"]) for row in rows} == {
        shown["session"]["session_id"]
    }


@pytest.mark.parametrize("trajectory", [text_session(), content_free_session()], ids=["text", "content-free"])
def test_plain_json_without_text(trajectory: Trajectory) -> None:
    shown = session_json(trajectory)
    text = json.dumps(shown, allow_nan=False)
    assert json.loads(text) == shown
    for pooled in trajectory.pool:
        if len(pooled.message.content) > 12:
            assert pooled.message.content not in text


def test_sums_and_what_is_unknown(weka_traces: Path) -> None:
    (trajectory, _) = some_weka(weka_traces, b"k" * 32)
    shown = session_json(trajectory)["session"]
    assert shown["prompt_tokens_total"] == sum(request.prompt_tokens or 0 for request in trajectory.requests)
    assert shown["context_tokens_max"] == max(request.prompt_tokens or 0 for request in trajectory.requests)
    assert (shown["num_requests"], shown["num_subagents"]) == (len(trajectory.requests), 3)
    unknown = ("cached_tokens_total", "reasoning_tokens_total", "tool_us", "human_us", "t0_utc", "num_tool_calls")
    assert [shown[name] for name in unknown] == [None] * len(unknown)


def test_msg_upto_only_where_it_is_the_whole_truth() -> None:
    trajectory = text_session()
    request = replace(trajectory.requests[0], prompt_spans=((0, 2),))
    other = replace(trajectory.requests[0], prompt_spans=((0, 1), (2, 3)))
    shown = session_json(replace(trajectory, requests=(request, other)))["requests"]
    assert [row["msg_upto"] for row in shown] == [2, None]
    assert [row["prompt_spans"] for row in shown] == [[[0, 2]], [[0, 1], [2, 3]]]


def test_the_shelf_gives_back_what_was_put(store: Path, weka_traces: Path) -> None:
    shelf = Shelf(store)
    assert list(shelf) == []
    kept = [*some_weka(weka_traces, b"k" * 32), text_session()]
    assert shelf.put_all(kept) == []
    assert sorted(shelf, key=lambda one: one.session_id) == sorted(kept, key=lambda one: one.session_id)
    assert shelf.put(replace(kept[0], harness="other"))
    assert shelf.load(kept[0].session_id).harness == "other"
    assert stat.S_IMODE(shelf.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in shelf.folder.iterdir()} == {0o600}
    assert len(list(shelf.folder.iterdir())) == 3


def test_a_damaged_file_of_the_shelf_is_named_and_hides_nothing(store: Path) -> None:
    shelf = Shelf(store)
    shelf.put_all([text_session(), content_free_session()])
    broken = shelf.folder / f"{text_session().session_id}.json.zst"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ShelfFault, match="is damaged"):
        shelf.load(text_session().session_id)
    problems: list[str] = []
    assert list(read_sessions(store, problems)) == [replace(content_free_session(), peak_agents=1)]
    assert len(problems) == 1
    assert str(broken) in problems[0]


def test_nothing_is_kept_when_one_cannot_be_written(store: Path) -> None:
    shelf = Shelf(store)
    bad = replace(content_free_session(), session_id="no/such/folder")
    with pytest.raises(ShelfFault):
        shelf.put_all([text_session(), bad])
    assert list(shelf.folder.iterdir()) == []


def test_finding_by_the_first_digits(store: Path) -> None:
    ids = ["aaaa1111", "aaaa2222", "bbbb3333"]
    Shelf(store).put_all([replace(content_free_session(), session_id=one) for one in ids])
    assert find_session(store, "B").session_id == "bbbb3333"
    assert find_session(store, "aaaa1111").session_id == "aaaa1111"
    with pytest.raises(NoSuchSession, match="2 sessions start with 'aaaa'"):
        find_session(store, "aaaa")
    with pytest.raises(NoSuchSession, match="no session 'cc' among the 3"):
        find_session(store, "cc")
    with pytest.raises(NoSuchSession):
        find_session(store, "")
    with pytest.raises(StoreError):
        find_session(store / "nowhere", "aaaa1111")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["capture", *map(str, arguments)], terminal_width=200)


def read(*arguments: object) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_import_sessions_show(tmp_path: Path, weka_traces: Path) -> None:
    store = tmp_path / "new"
    files = [weka_traces / f"trace_{number}.json" for number in ("0274", "0035")]
    done = run("import", "weka", *files, "--store", store)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "imported 2 sessions with" in done.stderr
    assert "replaced" not in done.stderr
    assert "read as its end (3 of 3" in done.stderr
    listed = read("sessions", "--store", store)
    assert {session["source"] for session in listed} == {"weka"}
    again = run("import", "weka", *files, "--store", store)
    assert "2 of them replaced" in again.stderr
    assert read("sessions", "--store", store) == listed
    one = next(session for session in listed if session["num_subagents"] == 3)
    shown = read("show", one["session_id"][:8], "--store", store)
    assert shown["session"] == one
    assert len(shown["requests"]) == one["num_requests"]
    table = run("sessions", "--store", store)
    assert one["session_id"] in table.stdout
    timeline = run("show", one["session_id"], "--store", store)
    assert "3 sub-agents" in timeline.stdout
    assert timeline.stdout.count("sub-agent of #0 (source, certain)") == 3


def test_import_agentperf_local_from_the_installed_package(tmp_path: Path) -> None:
    pytest.importorskip("agentperf_local")
    done = run("import", "agentperf-local", "--store", tmp_path / "new")
    assert (done.exit_code, "imported 8 sessions with 168 calls" in done.stderr) == (0, True)
    listed = read("sessions", "--store", tmp_path / "new")
    timeline = run("show", listed[0]["session_id"], "--store", tmp_path / "new")
    assert timeline.exit_code == 0
    assert "bash" in timeline.stdout


def test_a_bad_file_leaves_nothing_behind(tmp_path: Path, weka_traces: Path) -> None:
    cut = tmp_path / "cut.json"
    cut.write_text((weka_traces / "trace_0035.json").read_text()[:3000])
    done = run("import", "weka", weka_traces / "trace_0274.json", cut, "--store", tmp_path / "new")
    assert done.exit_code == 2
    assert f"nothing imported: {cut}: no valid JSON" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "nonsense", "x"], "no format 'nonsense': known are weka, agentperf-local"),
        (["import", "weka"], "weka needs a PATH"),
        (["import", "weka", "missing.json"], "missing.json: cannot be read"),
        (["import", "agentperf-local", "missing.json"], "missing.json: cannot be read"),
        (["sessions"], "no store at"),
        (["show", "abc"], "no store at"),
    ],
)
def test_one_sentence_for_bad_input(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(*arguments, "--store", tmp_path / "none")
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (tmp_path / "none").exists()


def test_an_empty_store(store: Path) -> None:
    assert read("sessions", "--store", store) == []
    assert "holds no session yet" in run("sessions", "--store", store).stderr
    assert "no session 'a' among the 0" in run("show", "a", "--store", store).stderr


def shown(trajectory: Trajectory) -> str:
    console = Console(width=300, file=StringIO(), color_system=None)
    print_session(trajectory, console)
    text = console.file.getvalue()  # type: ignore[attr-defined] - a StringIO
    assert isinstance(text, str)
    return text


def test_the_timeline_tells_how_calls_belong_together() -> None:
    wire = Wire()
    ask = said("I ask.", ("t1", "Task", '{"prompt":"Please look for the parser here"}'))
    wire.call(0, [SYSTEM, user("Go")], ask, session="s", transport="sse", mode="forward")
    task = [Message(role="system", content="You help."), user("Please look for the parser here")]
    wire.call(200, task, None, session="s", agent="a1", agent_type="Explore", status=529, error="overloaded")
    wire.call(400, task, said("found"), session="s", agent="a1", agent_type="Explore", attempt=1)
    back = [SYSTEM, user("Go"), ask, result("t1", "found")]
    wire.call(900, back, said("Done."), session="s", wall_offset_us=2_000_000)
    wire.call(5000, [*back, said("Done."), user("Why?")], said("So."), session="s", wall_offset_us=2_000_000)
    wire.calls = [replace(call, contributor="ann") for call in wire.calls]
    found = wire.one()
    told = replace(found.tool_calls[0], internal_us=500_000, internal_source="otel", permission_us=200_000)
    text = shown(split_gaps(replace(found, tool_calls=(told,))))
    lines = [line for line in text.splitlines() if "prompt" in line]
    assert "start (header)" in lines[0]
    assert "sse" in lines[0]
    assert "  main/1" in lines[1]
    assert "sub-agent of #0 (echo, certain)" in lines[1]
    assert "Explore" in lines[1]
    assert "retry of #1 (header, certain)  after 0.100 s client" in lines[2]
    assert "continue of #0 (header, certain)  after 0.800 s tool (permission 0.200 s, client 0.100 s)" in lines[3]
    assert "wall clock moved by 2.000 s" in lines[3]
    assert "after 4.000 s human" in lines[4]
    assert "Task subagent  0.800 s (own count 0.500 s, otel; permission 0.200 s)" in text
    assert f"recorded by forward; contributor {found.contributor}" in text
    assert "the wall clock moved by 2.000 s" in text


def test_sessions_fit_a_narrow_terminal_and_leave_a_pipe_whole_ids() -> None:
    trajectory = replace(content_free_session(), session_id="0123456789abcdef" * 2)
    for terminal in (True, False):
        text = StringIO()
        print_sessions([trajectory], Console(file=text, force_terminal=terminal, no_color=True, width=80))
        _, row = text.getvalue().splitlines()
        assert trajectory.session_id[:12] in row
        assert (trajectory.session_id in row) is not terminal
        assert (len(row) <= 80) is terminal

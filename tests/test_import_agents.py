"""pi's, opencode's and mini-swe-agent's own logs: golden ones from real runs on a scripted model, and each trap alone.

Expected figures are counted here from the raw records, or are what the script made the model say.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.importers.imported import ImportFault
from capture.importers.mini_swe_agent import import_mini_swe_agent
from capture.importers.opencode import import_opencode
from capture.importers.opencode import read_log as read_opencode
from capture.importers.pi import import_pi
from capture.trajectory import Trajectory
from curate.published import published
from curate.row import rows_of, trajectory_of

LOGS = Path(__file__).parent / "logs"
KEY = b"k" * 32


def the_only(found: tuple[Trajectory, ...]) -> Trajectory:
    (trajectory,) = found
    return trajectory


def opencode_database(sql: str, folder: Path) -> Path:
    """A database as opencode leaves it, from its dump."""
    path = folder / "opencode.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(sql)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(trajectory: Trajectory, index: int) -> list[str]:
    spans = trajectory.requests[index].prompt_spans or ()
    return [trajectory.pool[at].message.content for start, stop in spans for at in range(start, stop)]


def test_pi_session_with_a_compaction() -> None:
    path = LOGS / "pi" / "compaction.jsonl"
    found = the_only(import_pi([path], KEY).trajectories)
    answers = [entry for entry in lines(path) if entry.get("message", {}).get("role") == "assistant"]
    assert (found.source, found.harness, found.token_source, found.num_compactions) == ("pi-log", "pi", "provider", 1)
    assert [request.relation for request in found.requests] == [
        "start", "continue", "continue", "compaction", "continue",
    ]  # fmt: skip
    usage = [entry["message"]["usage"] for entry in answers]
    assert [request.prompt_tokens for request in found.requests] == [
        one["input"] + one["cacheRead"] + one["cacheWrite"] for one in usage
    ]
    assert [request.completion_tokens for request in found.requests] == [one["output"] for one in usage]
    started = answers[0]["message"]["timestamp"]
    assert [request.t_send_us for request in found.requests] == [
        1000 * (entry["message"]["timestamp"] - started) for entry in answers
    ]
    # What the log cannot know.
    assert {request.t_first_token_us for request in found.requests} == {None}
    assert {(request.bytes_up, request.bytes_down, request.stream) for request in found.requests} == {
        (None, None, None)
    }
    assert {call.internal_us for call in found.tool_calls} == {None}
    # After the compaction: its summary first, then what pi kept, then the new words.
    after = texts(found, 3)
    assert "compacted into the following summary" in after[0]
    assert after[-1] == "Now the second half."
    assert "work 1" in "".join(after)
    assert "first half." not in after


def test_pi_broken_answer_is_a_call_that_a_later_one_repeats() -> None:
    found = the_only(import_pi([LOGS / "pi" / "faults.jsonl"], KEY).trajectories)
    broken = next(request for request in found.requests if request.error is not None)
    again = found.requests[broken.request_index + 1]
    assert (again.relation, again.retry_of) == ("retry", broken.request_index)
    assert (broken.prompt_tokens, broken.completion_tokens) == (
        None,
        None,
    )  # pi writes zeros there: nothing was counted


def test_pi_rewind_is_a_fork_and_shares_its_head(tmp_path: Path) -> None:
    records = lines(LOGS / "pi" / "compaction.jsonl")
    cut = next(at for at, record in enumerate(records) if record["type"] == "compaction")
    first_result = next(record for record in records if record.get("message", {}).get("role") == "toolResult")
    branch = {**records[cut - 1], "id": "branch01", "parentId": first_result["id"]}
    branch["message"] = {**branch["message"], "timestamp": branch["message"]["timestamp"] + 9000}
    branch["timestamp"] = "2026-11-20T23:00:00.000Z"
    found = the_only(import_pi([write_lines(tmp_path / "s.jsonl", [*records[:cut], branch])], KEY).trajectories)
    assert len(found.requests) == 4
    assert texts(found, 3) == texts(found, 1)


def test_opencode_sub_agents_are_chains_of_one_session(tmp_path: Path) -> None:
    sql = (LOGS / "opencode" / "sub-agents.sql").read_text()
    path = opencode_database(sql, tmp_path)
    found = the_only(import_opencode([tmp_path], KEY).trajectories)
    with closing(sqlite3.connect(path)) as database:
        said = [json.loads(data) for (data,) in database.execute("SELECT data FROM message")]
        parts = [json.loads(data) for (data,) in database.execute("SELECT data FROM part")]
    answers = [message for message in said if message["role"] == "assistant"]
    assert len(found.requests) == len(answers)
    assert {request.agent_path for request in found.requests} == {"main", "main/1", "main/2", "main/1/1"}
    assert found.num_subagents == 3
    assert sorted(request.prompt_tokens or 0 for request in found.requests) == sorted(
        message["tokens"]["input"] + message["tokens"]["cache"]["read"] for message in answers
    )
    took = {
        part["callID"]: part["state"]["time"]["end"] - part["state"]["time"]["start"]
        for part in parts
        if part["type"] == "tool"
    }
    assert {call.tool_call_id: (call.internal_us, call.internal_source) for call in found.tool_calls} == {
        name: (1000 * milliseconds, "log") for name, milliseconds in took.items()
    }


def test_opencode_compaction_begins_a_new_context(tmp_path: Path) -> None:
    opencode_database((LOGS / "opencode" / "compaction.sql").read_text(), tmp_path)
    found = the_only(import_opencode([tmp_path / "opencode.db"], KEY).trajectories)
    assert found.num_compactions == 1
    (after,) = [request for request in found.requests if request.relation == "compaction"]
    said = texts(found, after.request_index)
    assert said[0] == "What did we do so far?"
    assert "<summary>" in said[1]
    assert (after.prompt_tokens or 0) < (found.requests[after.request_index - 2].prompt_tokens or 0)


def test_opencode_older_messages_hold_several_steps(tmp_path: Path) -> None:
    database = opencode_database((LOGS / "opencode" / "compaction.sql").read_text(), tmp_path)
    one = {"type": "step-start"}
    ran = {"status": "completed", "input": {"command": "ls"}, "output": "a", "time": {"start": 1200, "end": 1300}}
    tool = {"type": "tool", "tool": "bash", "callID": "c1", "state": ran}
    end = {"type": "step-finish", "reason": "tool-calls", "tokens": {"input": 10, "output": 2, "cache": {"read": 5}}}
    text = {"type": "text", "text": "Done.", "time": {"start": 1400, "end": 1500}}
    stop = {"type": "step-finish", "reason": "stop", "tokens": {"input": 20, "output": 3, "reasoning": 4}}
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM session")
        connection.execute("INSERT INTO session VALUES ('ses_1', NULL, '1.2.0', '/w', 1)")
        message = {"role": "assistant", "modelID": "m", "time": {"created": 1000, "completed": 1600}}
        connection.execute("INSERT INTO message VALUES ('m1', 'ses_1', 1, 1, ?)", (json.dumps(message),))
        for number, part in enumerate((one, tool, end, one, text, stop)):
            connection.execute("INSERT INTO part VALUES (?, 'm1', 'ses_1', 1, 1, ?)", (f"p{number}", json.dumps(part)))
    found = the_only(import_opencode([database], KEY).trajectories)
    assert [
        (request.prompt_tokens, request.completion_tokens, request.reasoning_tokens) for request in found.requests
    ] == [
        (15, 2, None),
        (20, 7, 4),
    ]
    assert found.requests[1].gap_us == 200_000
    assert found.tool_calls[0].internal_us == 100_000


def test_opencode_says_what_it_does_not_read(tmp_path: Path) -> None:
    database = opencode_database((LOGS / "opencode" / "compaction.sql").read_text(), tmp_path)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO session_message VALUES ('x', 'ses_new', 'user', 1, 1, 1, '{}')")
    assert "session_message alone" in " ".join(import_opencode([database], KEY).notes)


def test_mini_swe_agent_stamps_and_counts() -> None:
    path = LOGS / "mini-swe-agent" / "run.traj.json"
    found = the_only(import_mini_swe_agent([path.parent], KEY).trajectories)
    messages = json.loads(path.read_text())["messages"]
    answers = [entry for entry in messages if entry["role"] == "assistant"]
    assert (found.harness, found.harness_version, found.outcome) == ("mini-swe-agent", "2.4.6", "success")
    assert [request.prompt_tokens for request in found.requests] == [900, 990, 1100]
    assert [request.cache_read_tokens for request in found.requests] == [100, 880, 0]
    assert [request.completion_tokens for request in found.requests] == [30, 31, 32]
    assert found.requests[0].t_send_us is None  # nobody knows when the first one was sent
    ends = [entry["extra"]["timestamp"] for entry in answers]
    for request, at in zip(found.requests[1:], ends[1:], strict=True):
        assert request.t_end_us == pytest.approx(1e6 * (at - ends[0]), abs=2)
    assert found.requests[1].gap_us == pytest.approx(300_000, abs=150_000)
    assert [call.exit_code for call in found.tool_calls[:2]] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "no pi log"),
        ("a.jsonl", b'{"type":"session"}\n', "no pi log"),
        ("a.jsonl", b'{"type":"session","id":"x"}\n{"broken\n{}\n', r"a\.jsonl:2: no valid JSON"),
    ],
    ids=["empty", "without an id", "damaged in the middle"],
)
def test_bad_pi_logs_are_refused_with_the_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportFault, match=said):
        import_pi([tmp_path / name], KEY)


def test_bad_databases_are_refused(tmp_path: Path) -> None:
    (tmp_path / "opencode.db").write_bytes(b"no database")
    with pytest.raises(ImportFault, match="no SQLite file"):
        import_opencode([tmp_path], KEY)
    (tmp_path / "opencode.db").unlink()
    with closing(sqlite3.connect(tmp_path / "opencode.db")) as connection, connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(ImportFault, match="no database of opencode"):
        import_opencode([tmp_path], KEY)
    whole = opencode_database((LOGS / "opencode" / "sub-agents.sql").read_text(), tmp_path / ".." / tmp_path.name)
    data = whole.read_bytes()
    whole.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with pytest.raises(ImportFault, match="cannot be read as opencode's database"):
        read_opencode(whole)


@pytest.mark.parametrize("form", ['{"trajectory_format": "swe-agent"}', "[]", '{"messages"'])
def test_bad_trajectory_files_are_refused(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.traj.json").write_text(form)
    with pytest.raises(ImportFault, match=r"x\.traj\.json"):
        import_mini_swe_agent([tmp_path], KEY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def spoiled(value: Any, draw: Callable[..., Any]) -> Any:
    """The value with one place inside it replaced by something else."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: spoiled(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], spoiled(value[at], draw), *value[at + 1 :]]
    return draw(JSON)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spoiled_logs_are_read_or_refused_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spoiled")
    which = data.draw(st.sampled_from(["pi", "mini", "opencode"]))
    try:
        if which == "pi":
            records = lines(LOGS / "pi" / "faults.jsonl")
            at = data.draw(st.integers(0, len(records) - 1))
            path = write_lines(folder / "s.jsonl", [*records[:at], spoiled(records[at], data.draw), *records[at + 1 :]])
            found = import_pi([path], KEY)
        elif which == "mini":
            document = spoiled(json.loads((LOGS / "mini-swe-agent" / "run.traj.json").read_text()), data.draw)
            path = folder / "s.traj.json"
            path.write_text(json.dumps(document))
            found = import_mini_swe_agent([path], KEY)
        else:
            path = opencode_database((LOGS / "opencode" / "compaction.sql").read_text(), folder)
            with closing(sqlite3.connect(path)) as connection, connection:
                table = data.draw(st.sampled_from(["message", "part"]))
                rows = connection.execute(f"SELECT id, data FROM {table} ORDER BY id").fetchall()
                own, text = data.draw(st.sampled_from(rows))
                value = json.dumps(spoiled(json.loads(text), data.draw))
                connection.execute(f"UPDATE {table} SET data = ? WHERE id = ?", (value, own))
            found = import_opencode([path], KEY)
    except ImportFault:
        return
    for trajectory in found.trajectories:
        rows = rows_of(trajectory)
        assert trajectory_of(rows.session, rows.requests, rows.tool_calls) == published(trajectory)


@pytest.mark.parametrize("stamp", [float("inf"), float("nan"), 1e300])
def test_mini_swe_agent_stamps_that_are_no_times(tmp_path: Path, stamp: float) -> None:
    document = json.loads((LOGS / "mini-swe-agent" / "run.traj.json").read_text())
    said = next(message for message in document["messages"] if message["role"] == "assistant")
    said["extra"]["timestamp"] = stamp
    path = tmp_path / "run.traj.json"
    path.write_text(json.dumps(document))
    found = the_only(import_mini_swe_agent([path], KEY).trajectories)
    assert {request.t_send_us for request in found.requests} == {None}

"""A recorded session and the agent's own log of it become one: by ids alone, kept without text, and undone again."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentdyno import main
from capture.erase import delete, sessions_held
from capture.importers.claude_code import read_log
from capture.importers.log_session import HumanWait, LogSession
from capture.join import JoinResult, join_logs
from capture.joined import Joined, JoinedFault, forget
from capture.log_files import LogFile, named_log_files, usual_log_files
from capture.sessions import HiddenTwin, find_session, read_sessions
from capture.store import Store
from capture.trajectory import Trajectory
from tests.recorded_sessions import LOG_START, claude_log, recorded
from tests.test_otlp import event, logs

ONE, TWO = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
LOG = "claude-code-log"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One session of three calls; the last tool's result never went over the wire."""
    store = Store.open(tmp_path / "store", create=True)
    recorded(store, [("alpha", turn, 1000 * turn, ONE, None) for turn in range(3)])
    return store


def read(store: Store, hidden: list[HiddenTwin] | None = None) -> list[Trajectory]:
    problems: list[str] = []
    found = list(read_sessions(store.path, problems, hidden))
    assert problems == []
    return found


def joined(store: Store, *paths: Path) -> list[JoinResult]:
    problems: list[str] = []
    found = join_logs(store, list(named_log_files(paths)), problems)
    assert problems == []
    return found


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["capture", *map(str, words)])


def test_the_log_gives_tool_times_and_ends_and_the_wire_keeps_the_rest(store: Store, tmp_path: Path) -> None:
    (before,) = read(store)
    log = claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=640)
    (result,) = joined(store, log)
    assert (result.session_id, result.source, result.log_paths) == (before.session_id, LOG, (str(log),))
    assert (result.calls_matched, result.calls_wire, result.calls_log) == (3, 3, 3)
    assert (result.tools_matched, result.tools_wire, result.tools_log) == (3, 3, 3)
    assert result.notes == ()
    (after,) = read(store)
    assert after.joined == (LOG,)
    assert [call.internal_us for call in after.tool_calls] == [640_000, 640_000, 640_000]
    assert {call.internal_source for call in after.tool_calls} == {"log"}
    assert [call.is_error for call in before.tool_calls] == [None, None, None]
    assert [call.is_error for call in after.tool_calls] == [False, True, None]
    # Sends, first tokens, ends, gaps, bytes: all as the wire saw them, though the log's clock is years away.
    shares = {"think_us": None, "permission_us": None, "client_us": None}
    assert [replace(one, **shares) for one in after.requests] == [replace(one, **shares) for one in before.requests]
    assert after.pool == before.pool
    assert [request.client_us for request in after.requests] == [None, 260_000, 260_000]


def test_what_is_kept_is_private_and_holds_no_text(store: Store, tmp_path: Path) -> None:
    joined(store, claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=640))
    (file,) = (store.path / "joined").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    text = file.read_text(encoding="utf-8")
    assert not any(word in text for word in ("Start", "result 0", "alpha 0", "command", str(tmp_path), "Bash"))


def test_joining_again_replaces_and_forgetting_undoes(store: Store, tmp_path: Path) -> None:
    (before,) = read(store)
    joined(store, claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=640))
    joined(store, claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=123))
    (after,) = read(store)
    assert [call.internal_us for call in after.tool_calls] == [123_000] * 3
    assert forget(store.path, before.session_id)
    assert not forget(store.path, before.session_id)
    assert read(store) == [before]


def test_ids_alone_decide(store: Store, tmp_path: Path) -> None:
    # The same moments, but another session with other ids.
    other = claude_log(tmp_path / "logs", TWO, "gamma", 3, tool_ms=640)
    session, stranger = joined(store, other)
    assert (session.joined, session.notes) == (False, ("no log shares an id with it",))
    assert (stranger.session_id, stranger.log_paths) == (None, (str(other),))
    (found,) = read(store)
    assert found.joined == ()
    # The ids of the answers are enough where the session went on under another name.
    (result,) = joined(store, claude_log(tmp_path / "renamed", TWO, "alpha", 3, tool_ms=640))
    assert (result.calls_matched, result.tools_matched) == (3, 3)


@pytest.mark.parametrize("own", [0, 1])
def test_ids_that_two_sessions_share_prove_nothing(tmp_path: Path, own: int) -> None:
    store = Store.open(tmp_path / "store", create=True)
    pairs = [(turn, number, name) for turn in (0, 1) for number, name in enumerate((ONE, TWO))]
    recorded(store, [("alpha", turn, 1000 * turn + 5 * number, name, None) for turn, number, name in pairs])
    sessions = read(store)
    mine, other = sessions[own].session_id, sessions[1 - own].session_id
    log = claude_log(tmp_path / "logs", (ONE, TWO)[own], "alpha", 2, tool_ms=640)
    results = {result.session_id: result for result in joined(store, log)}
    # The log's own session id decides between two that have the same answers and tools.
    assert (results[mine].calls_matched, results[mine].tools_matched) == (2, 2)
    assert not results[other].joined
    found = {one.session_id: one for one in read(store)}
    assert [call.internal_us for call in found[mine].tool_calls] == [640_000, 640_000]
    assert [call.internal_us for call in found[other].tool_calls] == [None, None]


def test_what_is_only_on_one_side_is_told(store: Store, tmp_path: Path) -> None:
    (result,) = joined(store, claude_log(tmp_path / "logs", ONE, "alpha", 5, tool_ms=640))
    assert (result.calls_matched, result.calls_log, result.tools_log) == (3, 5, 5)
    assert result.notes == (
        "2 calls only in the log: not recorded, or their ids are not in the log",
        "2 tool calls of the log that were not recorded",
    )
    (result,) = joined(store, claude_log(tmp_path / "logs", ONE, "alpha", 1, tool_ms=640))
    assert "2 calls only on the wire: the log has no id for them" in result.notes
    assert "2 tool calls that the log tells nothing about" in result.notes


def test_two_logs_of_one_session_are_united_its_own_first(store: Store, tmp_path: Path) -> None:
    # Resumed under a new id: the new log begins with the old one's lines.
    old = claude_log(tmp_path / "logs", ONE, "alpha", 2, tool_ms=640)
    new = claude_log(tmp_path / "more", TWO, "alpha", 3, tool_ms=5)
    first, second = joined(store, new, old)
    assert first.session_id == second.session_id
    (found,) = read(store)
    assert [call.internal_us for call in found.tool_calls] == [640_000, 640_000, 5_000]


def test_telemetry_is_believed_before_the_log(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    values = {"event.name": "tool_result", "tool_use_id": "toolu_alpha_0", "session.id": ONE, "duration_ms": 611}
    recorded(store, [("alpha", turn, 1000 * turn, ONE, None) for turn in (0, 1)], exports=[logs(event(0, values))])
    joined(store, claude_log(tmp_path / "logs", ONE, "alpha", 2, tool_ms=640))
    (found,) = read(store)
    assert found.joined == ("otel", LOG)
    assert [(call.internal_us, call.internal_source) for call in found.tool_calls] == [
        (611_000, "otel"),
        (640_000, "log"),
    ]


def test_a_humans_wait_is_told_apart_from_the_agents_own_work(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    recorded(store, [("talk", turn, 1000 * turn, ONE, None) for turn in range(3)])
    (before,) = read(store)
    assert [(one.think_us, one.client_us) for one in before.requests[1:]] == [(900_000, None)] * 2
    (result,) = joined(store, claude_log(tmp_path / "logs", ONE, "talk", 3, tool_ms=850))
    assert (result.calls_matched, result.human_waits) == (3, 2)
    (after,) = read(store)
    assert [(one.think_us, one.client_us) for one in after.requests[1:]] == [(850_000, 50_000)] * 2
    assert after.human_us == 1_700_000
    assert after.joined == (LOG,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(LogFile):
    """A log that was read before."""

    logs: tuple[LogSession, ...]

    def read(self) -> list[LogSession]:
        return list(self.logs)


def test_a_wait_belongs_to_the_next_call_of_its_own_log_and_to_no_other(store: Store, tmp_path: Path) -> None:
    path = claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=640)
    (log,) = read_log(path)
    start = round(LOG_START.timestamp() * 1e6)
    waits = (
        HumanWait(started_utc_us=start + 100_000, ended_utc_us=start + 300_000),  # before the second call
        HumanWait(started_utc_us=start + 5_000_000, ended_utc_us=start + 9_000_000),  # after the last one
        HumanWait(started_utc_us=start + 400_000, ended_utc_us=start + 100_000),  # ends before it starts
    )
    # A sub-agent at work in the background sends in between: nobody spoke to it.
    (hint,) = log.calls[1].hints
    beside = replace(
        log.calls[1],
        exchange_id="beside",
        t_send_ns=(start + 350_000) * 1000,
        response_id=None,
        answer=None,
        hints=(replace(hint, agent="helper"),),
    )
    log = replace(log, calls=(*log.calls, beside), human_waits=waits)
    file = Prepared(path=path, harness="claude-code", named=True, logs=(log,))
    (result,) = join_logs(store, [file], [])
    assert result.human_waits == 1
    (kept,) = Joined(store.path).load(result.session_id or "")
    (found,) = read(store)
    assert kept.waits_us == {found.requests[1].exchange_id: 200_000}
    assert found.requests[1].think_us == 0  # nobody spoke in that gap, so nobody was waited for


# ---- where logs are looked for ----


def test_without_a_path_only_logs_of_recorded_sessions_are_opened(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "claude-home"
    claude_log(home / "projects" / "-some-project", ONE, "alpha", 3, tool_ms=640)
    foreign = home / "projects" / "-some-project" / f"{TWO}.jsonl"
    foreign.mkdir()  # to open it would be an error
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(home))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    for name in ("CODEX_HOME", "XDG_DATA_HOME", "PI_CODING_AGENT_DIR"):
        monkeypatch.delenv(name, raising=False)
    done = command("join", "--store", store.path)
    assert done.exit_code == 0, done.output
    assert "claude-code + claude-code-log: 3 of 3 calls, 3 of 3 tool calls" in done.stdout
    assert "1 of 1 recorded sessions joined" in done.stderr
    (found,) = read(store)
    assert found.joined == (LOG,)


@pytest.mark.parametrize("told", [True, False], ids=["by variables", "below the home"])
def test_the_usual_folders_are_those_of_the_agents(tmp_path: Path, told: bool) -> None:
    home = tmp_path / "home"
    places = {
        "claude-code": ("CLAUDE_CONFIG_DIR", ".claude", "projects/x/a.jsonl"),
        "codex": ("CODEX_HOME", ".codex", "sessions/2031/01/01/rollout-b.jsonl"),
        "pi": ("PI_CODING_AGENT_DIR", ".pi/agent", "sessions/x/c.jsonl"),
        "opencode": ("XDG_DATA_HOME", ".local/share", "opencode/opencode.db"),
    }
    environment = {"HOME": str(home)}
    expected = {}
    for harness, (variable, folder, file) in places.items():
        root = tmp_path / harness if told else home / folder
        expected[harness] = root / file
        expected[harness].parent.mkdir(parents=True)
        expected[harness].touch()
        if told:
            environment[variable] = str(root)
    assert {file.harness: file.path for file in usual_log_files(environment)} == expected


def test_a_session_without_a_log_is_named(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    claude_log(folder, TWO, "gamma", 1, tool_ms=1)
    done = command("join", folder, "--store", store.path)
    assert done.exit_code == 1
    assert "no log shares an id with it" in done.stdout
    assert "no recorded session shares an id with it" in done.stdout
    done = command("join", folder, "--store", store.path, "--json")
    session, stranger = json.loads(done.stdout)
    assert (session["joined"], session["calls_wire"], stranger["session_id"]) == (False, 3, None)


@pytest.mark.parametrize(
    ("name", "content"), [("notes.txt", b"hello"), ("x.jsonl", b'{"a": 1}\n'), ("y.jsonl", b"[1]\n")], ids=str
)
def test_a_named_file_that_is_no_log_is_refused(store: Store, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    done = command("join", tmp_path / name, "--store", store.path)
    assert done.exit_code == 2
    assert f"nothing joined: {tmp_path / name}: no log of claude-code, codex" in done.output
    assert command("join", tmp_path / "missing.jsonl", "--store", store.path).exit_code == 2


def test_a_damaged_joined_file_is_told_and_mended_by_joining_again(store: Store, tmp_path: Path) -> None:
    log = claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=640)
    joined(store, log)
    (file,) = (store.path / "joined").iterdir()
    file.write_text("{", encoding="utf-8")
    problems: list[str] = []
    (found,) = read_sessions(store.path, problems)
    assert found.joined == ()
    assert problems == [f"{file} is damaged (Input data was truncated): run `agentdyno capture join` again"]
    joined(store, log)
    assert read(store)[0].joined == (LOG,)
    file.write_text(file.read_text(encoding="utf-8").replace('"version":1', '"version":99'), encoding="utf-8")
    with pytest.raises(JoinedFault, match="format version 99"):
        Joined(store.path).load(found.session_id)


# ---- the same log, imported too ----


def test_an_imported_twin_is_hidden_until_it_is_forgotten(store: Store, tmp_path: Path) -> None:
    log = claude_log(tmp_path / "logs", ONE, "alpha", 4, tool_ms=640)
    assert command("import", "claude-code", log, "--store", store.path).exit_code == 0
    wire, twin = read(store)
    assert (wire.source, twin.source) == ("wire", LOG)
    joined(store, log)
    hidden: list[HiddenTwin] = []
    (only,) = read(store, hidden)
    assert only.session_id == wire.session_id
    assert hidden == [HiddenTwin(session_id=twin.session_id, recorded=wire.session_id, calls_only_in_log=1)]
    listed = command("sessions", "--store", store.path)
    assert twin.session_id not in listed.stdout
    assert f"import {twin.session_id[:12]} is not listed: it is joined to {wire.session_id[:12]}" in listed.stderr
    assert "1 calls are only in the import" in listed.stderr
    assert find_session(store.path, twin.session_id).source == LOG
    forget(store.path, wire.session_id)
    assert [one.session_id for one in read(store)] == [wire.session_id, twin.session_id]


def test_a_dataset_counts_an_import_of_a_recorded_session_once(store: Store, tmp_path: Path) -> None:
    log = claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=640)
    other = claude_log(tmp_path / "logs", TWO, "beta", 1, tool_ms=640)
    for path in (log, other):
        assert command("import", "claude-code", path, "--store", store.path).exit_code == 0
    wire, *imports = read(store)
    assert len(imports) == 2
    for dropped in (1, 0):
        problems: list[str] = []
        found = list(read_sessions(store.path, problems, once=True))
        assert [one.session_id for one in found[:1]] == [wire.session_id]
        assert [one.pool[0].message.content for one in found[1:]] == ["Start beta"]
        assert len(problems) == dropped
        joined(store, log)


# ---- how many agents ----


def test_activity_is_told_per_person(store: Store) -> None:
    done = command("activity", "--store", store.path)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "nobody named: peak 1 at work at one time; 1 sessions, 1 agents, 2.100 s with any at work",
        f"     1 at work  100.0%       2.100 s  {'█' * 40}",
    ]
    (person,) = json.loads(command("activity", "--store", store.path, "--json").stdout)
    assert person == {
        "contributor": None,
        "sessions": 1,
        "agents": 1,
        "peak_agents": 1,
        "peak_agents_at_least": 1,
        "active_us": 2_100_000,
        "agents_us": {"1": 2_100_000},
        "agents_share": {"1": 1.0},
    }


def test_deleting_the_recorded_session_takes_the_join_and_the_twin_with_it(store: Store, tmp_path: Path) -> None:
    log = claude_log(tmp_path / "logs", ONE, "alpha", 3, tool_ms=640)
    assert command("import", "claude-code", log, "--store", store.path).exit_code == 0
    joined(store, log)
    (wire,) = read(store)
    held = sessions_held(store, [])
    assert len(held) == 2
    delete(store, [session for session in held if session.session_id == wire.session_id], held)
    assert read(store) == []
    assert not any((store.path / "joined").iterdir())
    assert not any((store.path / "imported").iterdir())

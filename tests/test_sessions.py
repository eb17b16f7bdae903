"""A store with journals, read as sessions with the times and the activity that others tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import capture.sessions
from capture.assemble import contributor_id
from capture.journal import JournalWriter
from capture.otlp import HOST
from capture.sessions import NoSuchSession, find_session, read_activities, read_sessions
from capture.shelf import Shelf
from capture.store import Store
from capture.trajectory import Trajectory
from tests.exchanges import exchange
from tests.recorded_sessions import recorded, write, write_export
from tests.sample_sessions import content_free_session, text_session
from tests.test_otlp import event, logs, span, traces

SESSIONS = ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def read(store: Store) -> list[Trajectory]:
    problems: list[str] = []
    found = list(read_sessions(store.path, problems))
    assert problems == []
    return found


def test_two_sessions_side_by_side_in_one_journal(store: Store) -> None:
    recorded(
        store,
        [
            (tag, turn, 1000 * turn + 70 * number, SESSIONS[number], None)
            for turn in range(3)
            for number, tag in enumerate(("alpha", "beta"))
        ],
    )
    found = read(store)
    assert [len(trajectory.requests) for trajectory in found] == [3, 3]
    for trajectory, tag in zip(found, ("alpha", "beta"), strict=True):
        assert (trajectory.harness, trajectory.harness_version) == ("claude-code", "2.1.328")
        assert [call.tool_call_id for call in trajectory.tool_calls] == [f"toolu_{tag}_{turn}" for turn in range(3)]
        assert [call.wall_us for call in trajectory.tool_calls] == [900_000, 900_000, None]
        assert [call.t_emitted_us for call in trajectory.tool_calls] == [80_000, 1_080_000, 2_080_000]
        assert [request.prompt_tokens for request in trajectory.requests] == [5, 105, 205]
        assert [request.t_first_token_us for request in trajectory.requests] == [60_000, 1_060_000, 2_060_000]
        assert [request.prompt_spans for request in trajectory.requests] == [((0, 2),), ((0, 4),), ((0, 6),)]
        assert trajectory.quality.complete
        assert (trajectory.peak_agents, trajectory.contributor_peak_agents) == (1, 2)
    assert find_session(store.path, found[1].session_id[:6]) == found[1]
    assert find_session(store.path, found[0].session_id) == found[0]


def test_a_journal_without_its_end_is_read_and_marked(store: Store) -> None:
    recorded(store, [("alpha", 0, 0, None, None), ("alpha", 1, 1000, None, 3)])
    (found,) = read(store)
    first, last = found.requests
    assert (first.error, last.error, last.t_end_us) == (None, "open", None)
    assert last.link == "echo"
    assert last.tool_call_ids == ()  # its block never closed: no agent runs such a call
    assert not found.quality.complete


def test_a_session_goes_on_in_a_second_journal_under_the_same_id(store: Store) -> None:
    recorded(store, [("alpha", 0, 0, SESSIONS[0], None)])
    (before,) = read(store)
    recorded(store, [("alpha", 1, 5000, SESSIONS[0], None)])
    (after,) = read(store)
    assert after.session_id == before.session_id
    assert [request.gap_kind for request in after.requests] == ["none", "tool"]


# ---- telemetry beside the calls ----


def test_exports_of_telemetry_give_tools_their_times_and_are_no_session(store: Store) -> None:
    ran = {"tool_use_id": "toolu_alpha_0", "session.id": SESSIONS[0]}
    waited = span("claude_code.tool.blocked_on_user", 0, 200, {"source": "user_temporary"}, own="bb", parent="aa")
    export = traces(
        waited,
        span("claude_code.tool.execution", 200, 650, ran, own="cc"),
        span("claude_code.tool", 0, 650, ran | {"gen_ai.operation.name": "execute_tool"}, own="aa"),
    )
    calls = [("alpha", turn, 1000 * turn, SESSIONS[0], None) for turn in range(3)]
    recorded(store, calls, exports=[export])
    (found,) = read(store)
    assert len(found.requests) == 3
    assert [call.internal_us for call in found.tool_calls] == [450_000, None, None]
    assert found.tool_calls[0].internal_source == "otel"
    second = found.requests[1]
    assert (second.gap_us, second.permission_us, second.client_us) == (900_000, 200_000, 250_000)
    assert found.joined == ("otel",)


def test_telemetry_reaches_the_session_that_it_names(store: Store) -> None:
    calls = [("alpha", turn, 1000 * turn + 5 * number, SESSIONS[number], None) for turn in (0, 1) for number in (0, 1)]
    values = {"event.name": "tool_result", "tool_use_id": "toolu_alpha_0", "session.id": SESSIONS[1]}
    recorded(store, calls, exports=[logs(event(0, values | {"duration_ms": 77}))])
    first, second = read(store)
    assert first.tool_calls[0].internal_us is None
    assert second.tool_calls[0].internal_us == 77_000


def test_equal_ids_of_two_people_are_told_apart_by_who_exported(store: Store) -> None:
    values = {"event.name": "tool_result", "tool_use_id": "toolu_same_0", "session.id": SESSIONS[0]}
    journal = JournalWriter(store.path, key=store.key, meta={})
    for number, name in enumerate(("ada", "bob")):
        for turn in range(2):
            write(journal, "same", turn, 1000 * turn + 10 * number, session=SESSIONS[0], contributor=name)
        write_export(journal, logs(event(0, values | {"duration_ms": 100 + number})), 3000 + number, contributor=name)
    journal.close()
    assert [trajectory.tool_calls[0].internal_us for trajectory in read(store)] == [100_000, 101_000]


def test_an_export_that_cannot_be_read_is_told_and_hides_nothing(store: Store) -> None:
    broken = replace(exchange("/otlp/v1/traces", b"\xff\xff"), host=HOST)
    recorded(store, [("alpha", 0, 0, SESSIONS[0], None)], exports=[broken])
    problems: list[str] = []
    assert len(list(read_sessions(store.path, problems))) == 1
    assert [problem for problem in problems if "1 exports of telemetry cannot be read" in problem] == problems != []


# ---- activity over all sessions of a person ----


def test_peaks_are_per_person(store: Store) -> None:
    journal = JournalWriter(store.path, key=store.key, meta={})
    for number, name in enumerate(("ada", "ada", "bob")):
        for turn in range(2):
            tag = f"{name}{number}"
            write(journal, tag, turn, 1000 * turn + 10 * number, session=f"session-{number}", contributor=name)
    journal.close()
    Shelf(store.path).put_all([content_free_session(), replace(text_session("logged"), source="codex-log")])
    found = {trajectory.session_id: trajectory for trajectory in read(store)}
    own = [trajectory for trajectory in found.values() if trajectory.source == "wire"]
    ada, bob = (contributor_id(store.key, name) for name in ("ada", "bob"))
    assert [(one.contributor, one.peak_agents, one.contributor_peak_agents) for one in own] == [
        (ada, 1, 2),
        (ada, 1, 2),
        (bob, 1, 1),
    ]
    assert found["logged"].contributor_peak_agents == found["logged"].peak_agents == 2
    others = found["session-f"]
    assert (others.peak_agents, others.contributor_peak_agents) == (1, None)
    assert find_session(store.path, "logged") == found["logged"]
    assert find_session(store.path, "session-f") == others
    activities = list(read_activities(store.path, []))
    assert sorted(str(one.contributor) for one in activities) == ["None", "ada", "ada", "bob"]


# ---- finding one ----


def test_a_session_is_found_by_the_first_digits_with_one_assembly(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(store, [("alpha", 0, 0, SESSIONS[0], None), ("beta", 0, 10, SESSIONS[1], None)])
    first, second = read(store)
    counted: list[int] = []
    assemble = capture.sessions.assemble

    def counting(*arguments: object, **named: object) -> list[Trajectory]:
        counted.append(1)
        return assemble(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(capture.sessions, "assemble", counting)
    assert find_session(store.path, first.session_id[:8]) == first
    assert find_session(store.path, f" {second.session_id.upper()} ") == second
    assert len(counted) == 2
    with pytest.raises(NoSuchSession, match="no session 'zz' among the 2"):
        find_session(store.path, "zz")


def test_what_a_store_holds_of_others_needs_no_journal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    Shelf(store.path).put_all([content_free_session()])
    monkeypatch.setattr(capture.sessions, "assemble", None)  # reading a journal would fail now
    assert find_session(store.path, "session-f").source == "weka"


def test_damaged_files_of_the_shelf_hide_nothing(store: Store) -> None:
    recorded(store, [("alpha", 0, 0, SESSIONS[0], None)])
    Shelf(store.path).put_all([content_free_session()])
    (store.path / "imported" / "broken.json.zst").write_bytes(b"no zstd")
    problems: list[str] = []
    assert len(list(read_sessions(store.path, problems))) == 2
    assert len(problems) == 1
    assert "broken" in problems[0]


def test_activities_and_sessions_are_one_truth(store: Store) -> None:
    recorded(store, [("alpha", turn, 1000 * turn, SESSIONS[0], None) for turn in range(2)])
    (activity,) = read_activities(store.path, [])
    (found,) = read(store)
    assert activity.session_id == found.session_id
    assert found.t0_utc_us is not None
    assert activity.certain == {"main": ((found.t0_utc_us, found.t0_utc_us + 1_100_000),)}

"""Deleting and pruning: nothing of the session stays in any file, everything else reads back as before."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import click.testing
import pytest
import zstandard

import agentdyno
from capture.erase import EraseFault, delete, purge, sessions_held, stale
from capture.exchange import Exchange
from capture.journal import FROM_AGENT, FROM_UPSTREAM, JournalWriter
from capture.rewrite import copy_journal
from capture.store import Store
from capture.tombstone import hide
from tests.kept_store import SESSIONS, everything, record, turn

DAY_US = 86_400 * 1_000_000


def of(found: Iterable[Exchange], word: str) -> list[Exchange]:
    return [exchange for exchange in found if word.encode() in exchange.request_body]


def chosen(store: Store, text: str) -> str:
    """The id of the session whose prompts hold `text`, as `record` wrote it."""
    return chosen_by(store, f"{text} asked")


def invoke(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(agentdyno.main, ["capture", *arguments])


def test_no_byte_of_a_deleted_session_is_left_and_the_others_are_as_before(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    for _ in range(2):  # the second journal repeats the sessions' ids in calls of its own
        record(store)
    before = list(store.exchanges())
    assert b"doomed asked" in everything(store.path)
    result = invoke("delete", chosen(store, "doomed")[:12], "--store", str(store.path), "--yes")
    assert result.exit_code == 0, result.output
    problems: list[str] = []
    after = list(store.exchanges(problems))
    assert problems == []
    assert after == [exchange for exchange in before if b"doomed" not in exchange.request_body]
    assert len(after) == len(before) - 6
    assert b"doomed" not in everything(store.path)
    assert SESSIONS["doomed"].encode() not in everything(store.path)
    assert sorted(path.suffix for path in store.path.glob("journal-*")) == [".sqlite", ".sqlite"]
    assert len(sessions_held(store, [])) == 2
    assert invoke("doctor", "--store", str(store.path)).exit_code == 0
    assert invoke("delete", "bbbb", "--store", str(store.path), "--yes").exit_code == 2


def test_a_journal_that_is_written_hides_at_once_and_is_purged_later(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal = record(store, close=False)
    deadline = time.monotonic() + 20
    while len(list(store.exchanges())) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = list(store.exchanges())
    result = invoke("delete", chosen(store, "doomed"), "--store", str(store.path), "--yes")
    assert result.exit_code == 0, result.output
    assert "is being recorded into" in result.output
    assert [held.exchanges for held in sessions_held(store, []) if held.session_id == "doomed"] == []
    hidden = list(store.exchanges())
    assert hidden == [exchange for exchange in before if b"doomed" not in exchange.request_body]
    turn(journal, SESSIONS["kept"], "kept later", 5000, [])
    journal.close()
    assert b"doomed asked" in everything(store.path)
    done = purge(store)
    assert (done.journals, done.exchanges, done.waiting, done.problems) == (1, 3, [], [])
    assert b"doomed" not in everything(store.path)
    assert list(store.exchanges())[: len(hidden)] == hidden
    assert len(of(store.exchanges(), "kept later")) == 1


def test_a_killed_recorders_journal_keeps_its_log_and_its_marks(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    code = (
        "import os, sys, time; from pathlib import Path; from capture.store import Store; "
        "from tests.kept_store import *\n"
        "store = Store.open(Path(sys.argv[1])); journal = record(store, close=False)\n"
        "number = journal.send(at_ns=9, connection='x', method='POST', host='h:1', path='/in-flight', headers=())\n"
        "while len(list(store.exchanges())) < 9: time.sleep(0.02)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.path)], check=False, cwd=Path(__file__).parent.parent)
    (path,) = store.journals()
    assert Path(f"{path}-wal").stat().st_size > 0
    before = list(store.exchanges())
    assert [gap.kind for gap in before[-1].gaps] == ["recorder_error"]
    held = sessions_held(store, [])
    (doomed,) = [session for session in held if session.session_id == chosen(store, "doomed")]
    done = delete(store, [doomed], held)
    assert done.problems == []
    assert list(store.exchanges()) == [exchange for exchange in before if b"doomed" not in exchange.request_body]
    assert b"doomed" not in everything(store.path)
    assert not Path(f"{path}-wal").exists()


@pytest.mark.parametrize("where", ["copy_journal", "compare", "bury"])
def test_an_interrupted_deletion_is_finished_by_the_next(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store", create=True)
    record(store)
    before = list(store.exchanges())
    held = sessions_held(store, [])
    (doomed,) = [session for session in held if session.session_id == chosen(store, "doomed")]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"capture.erase.{where}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            delete(store, [doomed], held)
    expected = [exchange for exchange in before if b"doomed" not in exchange.request_body]
    assert list(store.exchanges()) == expected
    (store.path / ".draft-left-by-a-kill").mkdir()
    result = invoke("prune", "--older-than", "9999d", "--store", str(store.path))
    assert result.exit_code == 0, result.output
    assert list(store.exchanges()) == expected
    assert b"doomed" not in everything(store.path)
    assert sorted(path.name for path in store.path.glob(".*")) == [".erase.lock"]


def test_two_deletions_at_once_undo_nothing_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while another writes the journal anew: what it hid must not come back with the other's end."""
    store = Store.open(tmp_path / "store", create=True)
    record(store)
    (path,) = store.journals()
    before = list(store.exchanges())
    held = sessions_held(store, [])
    (doomed,) = [session for session in held if session.session_id == chosen(store, "doomed")]
    also = {int(it.exchange_id.rpartition("-")[2]) for it in before if b"also asked" in it.request_body}

    def meanwhile(*arguments: object, **named: object) -> object:
        hide(path, also)
        return copy_journal(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("capture.erase.copy_journal", meanwhile)
        assert delete(store, [doomed], held).problems == []
    assert b"doomed" not in everything(store.path)
    left = [exchange.request_body for exchange in store.exchanges()]
    assert left
    assert not any(b"also asked" in body for body in left)
    assert purge(store).journals == 1
    assert b"also asked" not in everything(store.path)
    assert not list(store.path.glob("*.erase"))


def test_a_full_disk_leaves_the_session_hidden_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store", create=True)
    record(store)
    (path,) = store.journals()
    before = path.read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("capture.erase.copy_journal", refuse)
    result = invoke("delete", chosen(store, "doomed"), "--store", str(store.path), "--yes")
    assert result.exit_code == 1
    assert "hidden but still on disk" in result.output
    assert path.read_bytes() == before
    assert of(store.exchanges(), "doomed") == []


def test_a_journal_without_any_session_left_is_removed_and_its_secrets_are_kept(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={})
    turn(journal, SESSIONS["doomed"], "doomed", 0, [])
    number = journal.send(
        at_ns=1, connection="c", method="GET", host="h:1", path=f"/{SESSIONS['doomed']}?key=abcdefgh-12345", headers=()
    )
    journal.end(number, at_ns=2, outcome="complete")
    journal.close()
    seen = store.seen_secrets()
    assert len(seen) == 1
    assert invoke("delete", chosen(store, "doomed"), "--store", str(store.path), "--yes").exit_code == 0
    assert store.journals() == []
    assert store.seen_secrets() == seen
    record(store, ["kept"])
    assert set(store.seen_secrets()) == set(seen)


def test_sessions_on_one_socket_go_together_or_not_at_all(tmp_path: Path) -> None:
    from capture.erase import Held

    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={})
    number = journal.send(at_ns=1, connection="c", method="GET", host="h:1", path="/ws", headers=())
    journal.read(number, 2, b"doomed words", FROM_AGENT)
    journal.read(number, 3, b"doomed answer", FROM_UPSTREAM)
    journal.end(number, at_ns=4, outcome="complete")
    journal.close()
    (exchange,) = store.exchanges()
    one, other = (
        Held(session_id=name, imported=False, exchanges=frozenset({exchange.exchange_id}), last_utc_us=1)
        for name in ("one", "other")
    )
    with pytest.raises(EraseFault, match="session other shares the connection"):
        delete(store, [one], [one, other])
    assert list(store.exchanges()) == [exchange]
    assert stale(store, [one, replace(other, last_utc_us=9)], 5)[0] == []
    assert delete(store, [one, other], [one, other]).exchanges == 1
    assert store.journals() == []


def test_prune_takes_what_is_old_and_nothing_else(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    old = record(store, ["doomed", "also"])
    database = sqlite3.connect(old.path)
    database.execute("UPDATE meta SET value = value - ? WHERE name = 'wall_anchor_us'", (40 * DAY_US,))
    database.commit()
    database.close()
    record(store, ["kept"])
    kept = [exchange for exchange in store.exchanges() if exchange.exchange_id.startswith(store.journals()[1].stem[8:])]
    # These name no session and were sent near monotonic zero, long before.
    young = [exchange for exchange in kept if exchange.path == "/v1/messages"]
    arguments = ("prune", "--older-than", "30d", "--store", str(store.path))
    shown = invoke(*arguments, "--dry-run")
    assert shown.exit_code == 0
    assert len(of(store.exchanges(), "doomed asked")) == 2
    assert invoke(*arguments).exit_code == 2  # nobody to ask
    result = invoke(*arguments, "--yes")
    assert result.exit_code == 0, result.output
    assert "deleted 2 sessions" in result.output
    found = list(store.exchanges())
    assert [exchange for exchange in found if exchange.path == "/v1/messages"] == young
    assert not old.path.exists()
    assert b"also asked" not in everything(store.path)
    assert "is no time" in invoke("prune", "--older-than", "soon", "--store", str(store.path)).output


def test_what_was_joined_to_a_session_goes_with_it(tmp_path: Path) -> None:
    from capture.joined import Joined, JoinedLog
    from capture.shelf import Shelf
    from tests.sample_sessions import text_session

    store = Store.open(tmp_path / "store", create=True)
    record(store)
    twin = text_session("session-twin")
    Shelf(store.path).put(twin)
    log = JoinedLog(source="claude-code-log", times=(), outcomes=(), waits_us={}, twin=twin.session_id)
    for text in ("kept", "doomed"):
        Joined(store.path).put(chosen(store, text), replace(log, twin=log.twin if text == "doomed" else None))
    doomed, kept = chosen(store, "doomed"), chosen(store, "kept")
    assert invoke("delete", doomed, "--store", str(store.path), "--yes").exit_code == 0
    assert list(Joined(store.path).session_ids()) == [kept]
    assert Shelf(store.path).session_ids() == []


def test_imported_sessions_are_deleted_too(tmp_path: Path) -> None:
    from capture.shelf import Shelf
    from tests.sample_sessions import text_session

    store = Store.open(tmp_path / "store", create=True)
    shelf = Shelf(store.path)
    kept, doomed = text_session("session-kept"), text_session("session-doomed")
    shelf.put_all([kept, doomed])
    result = invoke("delete", doomed.session_id, "--store", str(store.path), "--yes")
    assert result.exit_code == 0, result.output
    assert shelf.session_ids() == [kept.session_id]


def test_a_journal_of_schema_1_is_written_anew_in_todays(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "journals" / "schema-1.sqlite.zst"
    store = Store.open(tmp_path / "store", create=True)
    path = store.path / "journal-20261120T000000.000Z-000001.sqlite"
    path.write_bytes(zstandard.ZstdDecompressor().decompress(golden.read_bytes()))
    before, seen = list(store.exchanges()), store.seen_secrets()
    result = invoke("delete", chosen_by(store, "question 0"), "--store", str(store.path), "--yes")
    assert result.exit_code == 0, result.output
    problems: list[str] = []
    assert list(store.exchanges(problems)) == before[3:]
    assert problems == []
    assert (len(before), store.seen_secrets()) == (5, seen)
    assert b"question" not in everything(store.path)


def chosen_by(store: Store, text: str) -> str:
    """The id of the session that holds `text` in its first request."""
    exchanges = {exchange.exchange_id for exchange in of(store.exchanges(), text)}
    (session,) = [held.session_id for held in sessions_held(store, []) if held.exchanges & exchanges]
    return session

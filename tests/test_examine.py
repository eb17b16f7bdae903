"""`capture doctor`: what is wrong with a store, and how a damaged journal is mended."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import click.testing
import pytest

import agentdyno
from capture import exclusion, pause
from capture.examine import examine
from capture.journal import JournalWriter
from capture.reader import JournalReader
from capture.repair import RepairFault, repair
from capture.store import Store
from tests.kept_store import record


def invoke(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(agentdyno.main, ["capture", *arguments])


def bodies(store: Store, count: int = 60) -> dict[str, bytes]:
    """A journal of incompressible bodies and answers; the bodies by exchange id."""
    journal = JournalWriter(store.path, key=store.key, meta={})
    sent = {}
    for index in range(count):
        body = json.dumps({"messages": [os.urandom(1500).hex()], "index": index}).encode()
        number = journal.send(at_ns=1, connection="c", method="POST", host="h:1", path="/v1/x", headers=())
        journal.sent(number, at_ns=2, body=body)
        journal.headers(number, at_ns=3, status=200, headers=())
        journal.read(number, 4, os.urandom(800))
        journal.end(number, at_ns=5, outcome="complete")
        sent[f"{journal.journal_id}-{number}"] = body
    journal.close()
    return sent


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def test_a_whole_store_in_words_and_as_json(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    record(store)
    pause.pause(store.path, for_s=600)
    exclusion.add(store.path, "/home/ann/secret")
    result = invoke("doctor", "--store", str(store.path))
    assert result.exit_code == 0, result.output
    for words in ("whole", "paused", "excluded: /home/ann/secret", "capture import claude-code", "Cursor", "a day"):
        assert words in result.output
    health = json.loads(invoke("doctor", "--store", str(store.path), "--json").stdout)
    (journal,) = health["journals"]
    assert (journal["writer"], journal["schema"], journal["exchanges"]) == ("closed", 2, 8)
    assert journal["gaps"] == {"recorder_error": 1}
    assert health["read"] == {"api.x:443/v1/messages": 6}
    assert sorted((path, count) for path, _, count in health["unread"]) == [("h:1/v1/metrics", 1), ("h:1/v1/models", 1)]
    assert all(why for _, why, _ in health["unread"])
    found = list(store.exchanges())
    assert health["raw_bytes"]["requests"] == sum(len(exchange.request_body) for exchange in found)
    assert health["raw_bytes"]["responses"] == sum(len(read.data) for exchange in found for read in exchange.reads)
    assert health["stored_bytes"] == store.journals()[0].stat().st_size
    assert (health["problems"], health["paused"], health["excluded"]) == ([], True, ["/home/ann/secret"])
    assert health["bytes_per_day"] > 0
    assert health["days_left"] > 0


def test_an_empty_store_is_whole(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    health = examine(store)
    assert (health.problems, health.journals, health.ratio, health.bytes_per_day) == ([], [], None, None)
    assert invoke("doctor", "--store", str(tmp_path / "none")).exit_code == 2


def test_open_files_leftovers_and_damaged_lists_are_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    record(store)
    store.path.chmod(0o755)
    (store.path / "store.key").chmod(0o644)
    (store.path / "journal-gone.lock").touch(mode=0o600)
    (store.path / "imported").mkdir(mode=0o700)
    (store.path / "imported" / ".x.json.zst.999999999").touch(mode=0o600)
    (store.path / "imported" / f".y.json.zst.{os.getpid()}").touch(mode=0o600)  # its writer lives
    (store.path / ".draft-x").mkdir(mode=0o700)
    (store.path / ".draft-x" / "journal-x.sqlite").touch(mode=0o600)
    (store.path / exclusion.FILE_NAME).touch(mode=0o600)
    result = invoke("doctor", "--store", str(store.path))
    assert result.exit_code == 1
    said = result.stderr.splitlines()
    assert len(said) == 5, said
    for words in ("store is open", "store.key is open", "without its journal", ".draft-x", "excluded.json cannot be"):
        assert sum(words in line for line in said) == 1, words
    result = invoke("doctor", "--repair", "--store", str(store.path))
    assert (result.exit_code, ".draft-x" in result.output, "removed" in result.stderr) == (1, False, True)
    assert sorted(path.name for path in store.path.rglob(".*")) == [".erase.lock", f".y.json.zst.{os.getpid()}"]


@pytest.mark.parametrize("table", ["exchanges", "reads", "packs", "middle"])
def test_one_flipped_bit_is_found_and_mended(tmp_path: Path, table: str) -> None:
    store = Store.open(tmp_path / "store", create=True)
    sent = bodies(store)
    (path,) = store.journals()
    data = path.read_bytes()
    if table == "exchanges":
        at = data.rindex(b"/v1/x")
    elif table == "middle":
        at = len(data) // 2
    else:
        database = sqlite3.connect(path)
        column = "data" if table == "reads" else "digests"
        (blob,) = database.execute(f"SELECT {column} FROM {table} ORDER BY 1 LIMIT 1").fetchone()
        database.close()
        at = data.index(blob[:40]) + 20
    flip(path, at)
    damaged = path.read_bytes()
    before = invoke("doctor", "--store", str(store.path))
    assert before.exit_code == 1
    assert path.name in before.stderr.replace("\n", "")
    readable = list(store.exchanges())
    result = invoke("doctor", "--repair", "--store", str(store.path))
    assert result.exit_code == 0, result.output
    assert "repaired" in result.stderr
    assert Path(f"{path}.damaged").read_bytes() == damaged
    problems: list[str] = []
    mended = list(store.exchanges(problems))
    assert problems == []
    assert [(exchange.exchange_id, exchange.request_body, exchange.reads) for exchange in mended] == [
        (exchange.exchange_id, exchange.request_body, exchange.reads) for exchange in readable
    ]
    whole = [exchange for exchange in mended if not exchange.gaps]
    assert all(exchange.request_body == sent[exchange.exchange_id] for exchange in whole)
    # Bodies of one commit share a pack; a damaged one takes those of its commit, and nothing else.
    assert len(mended) >= 59
    assert "repaired" in invoke("doctor", "--store", str(store.path)).stdout


def test_a_torn_journal_of_a_killed_recorder_is_mended_and_stays_killed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    bodies(store)
    (path,) = store.journals()
    path.with_suffix(".lock").touch(mode=0o600)
    path.write_bytes(path.read_bytes()[: -(path.stat().st_size // 3)])
    Path(f"{path}-wal").write_bytes(b"noise of a torn log")
    readable = list(store.exchanges())
    done = repair(store, path)
    assert done is not None
    assert done.kept is not None
    assert (done.kept.exchanges, done.set_aside.name) == (len(readable), f"{path.name}.damaged")
    assert Path(f"{done.set_aside}-wal").read_bytes() == b"noise of a torn log"
    assert repair(store, path) is None
    with JournalReader(path) as reader:
        assert (reader.state, len(list(reader.exchanges())), reader.problems) == ("killed", len(readable), [])


def test_a_journal_of_which_nothing_can_be_read_is_set_aside(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    path = store.path / "journal-20260101T000000.000Z-aaaaaa.sqlite"
    path.write_bytes(b"noise" * 999)
    path.chmod(0o600)
    result = invoke("doctor", "--repair", "--store", str(store.path))
    assert result.exit_code == 0, result.output
    assert "nothing of it can be read" in result.stderr
    assert [file.name for file in store.path.glob("journal-*")] == [f"{path.name}.damaged"]


def test_a_repair_that_cannot_be_verified_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store", create=True)
    bodies(store, 5)
    (path,) = store.journals()
    flip(path, path.read_bytes().rindex(b"/v1/x"))
    before = path.read_bytes()

    def lossy(*arguments: object, **options: object) -> object:
        from capture.rewrite import copy_journal

        return copy_journal(*arguments, **{**options, "drop": frozenset({3})})  # type: ignore[arg-type]

    monkeypatch.setattr("capture.repair.copy_journal", lossy)
    with pytest.raises(RepairFault, match="nothing was changed"):
        repair(store, path)
    assert path.read_bytes() == before
    assert [file.name for file in store.path.glob("*.damaged")] == []
    monkeypatch.undo()
    journal = JournalWriter(store.path, key=store.key, meta={})
    assert repair(store, journal.path) is None  # a recorder holds it
    journal.close()


def test_pause_resume_and_exclude_from_the_command_line(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    assert "for 30m" in invoke("pause", "--for", "30m", *store).stderr
    assert pause.is_paused(tmp_path / "store")
    assert "again" in invoke("resume", *store).stderr
    assert "was not paused" in invoke("resume", *store).stderr
    assert invoke("pause", "--for", "half an hour", *store).exit_code == 2
    assert invoke("exclude", "add", "git@h.x:a/b.git", *store).exit_code == 0
    assert invoke("exclude", "add", "/home/ann/secret/", *store).exit_code == 0
    assert invoke("exclude", "list", *store).stdout.split() == ["/home/ann/secret", "h.x/a/b"]
    assert invoke("exclude", "remove", "https://h.x/a/b", *store).exit_code == 0
    assert invoke("exclude", "remove", "https://h.x/a/b", *store).exit_code == 2
    assert invoke("exclude", "list", *store).stdout.split() == ["/home/ann/secret"]

"""Journals that no recorder wrote, or that cannot be read now: no exception, no full memory, and no loss."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from capture.exchange import Exchange
from capture.journal import JournalWriter
from capture.layout import encode_times
from capture.parts import decode_runs, encode_runs
from capture.reader import JournalReader
from capture.repair import RepairFault, repair
from capture.rewrite import copy_journal
from capture.store import Store
from capture.tombstone import hide
from tests.kept_store import record

WRONG = [
    None,
    "",
    b"",
    "text",
    b"\xff\xfe",
    -1,
    2**63 - 1,
    1.5,
    float("inf"),
    b"\x02" + b"\xff" * 7 + b"\x7f",
    '{"a": 1}',
]
BOMB_BYTES = 512 << 20


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A journal with something in every table."""
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={"mode": "reverse", "agent": "pi"})
    for turn in range(3):
        number = journal.send(
            at_ns=turn, connection="c", method="POST", host="h:1", path="/x", headers=((b"x-api-key", b"secret" * 9),)
        )
        journal.sent(number, at_ns=turn + 1, body=json.dumps({"turn": turn, "text": "said " * 400}).encode())
        journal.headers(number, at_ns=turn + 2, status=200, headers=((b"a", b"b"),))
        journal.read(number, turn + 3, b"answer")
        if turn:
            journal.end(number, at_ns=turn + 4, outcome="complete")
    journal.gap(2, at_ns=9, kind="queue_full", lost_bytes=3)
    journal.close()
    change(journal.path, "INSERT INTO clock (since_ns, at_ns, offset_us, suspended_us) VALUES (1, 2, 3, 4)")
    change(journal.path, "INSERT INTO erased VALUES (100, 101)")
    return journal.path


def change(path: Path, *statement: object) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(str(statement[0]), *statement[1:])


def read(path: Path) -> tuple[list[Exchange], list[str]]:
    with JournalReader(path) as reader:
        reader.tally()
        list(reader.secrets())
        return list(reader.exchanges()), reader.problems


def usable(exchange: Exchange) -> bool:
    """What every dialect takes for granted."""
    texts = (exchange.connection_id, exchange.method, exchange.host, exchange.path, *sum(exchange.request_headers, ()))
    numbers = (
        exchange.t_send_ns,
        exchange.wall_anchor_us,
        exchange.wall_offset_us,
        *(it.at_ns for it in exchange.reads),
    )
    perhaps = (exchange.t_sent_ns, exchange.t_headers_ns, exchange.t_end_ns, exchange.status, exchange.request_bytes)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in numbers)
        and all(number is None or isinstance(number, int) for number in perhaps)
        and isinstance(exchange.request_body, bytes)
    )


def test_values_that_do_not_belong_where_they_stand_cost_what_they_are_in(tmp_path: Path, whole: Path) -> None:
    with closing(sqlite3.connect(whole)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [(table, row[1]) for table in tables for row in database.execute(f"PRAGMA table_info({table})")]
    assert len(columns) > 40
    copy, tried = tmp_path / whole.name, 0
    for table, column in columns:
        where = "WHERE id > 0" if table == "exchanges" else ""
        for value in WRONG:
            shutil.copyfile(whole, copy)
            try:
                if table in ("exchanges", "reads"):
                    change(copy, f"UPDATE {table} SET crc = NULL")  # as a journal of schema 1, or one that was made
                change(copy, f"UPDATE OR REPLACE {table} SET {column} = ? {where}", (value,))
            except sqlite3.Error:
                continue  # SQLite itself keeps this one out
            exchanges, problems = read(copy)
            assert all(map(usable, exchanges)), (table, column, value)
            if not problems:  # then a copy of it must read alike, as `delete` makes one
                again = tmp_path / "again" / whole.name
                again.parent.mkdir()
                with JournalReader(copy) as reader:
                    copy_journal(reader, again)
                assert [one.reads for one in read(again)[0]] == [one.reads for one in exchanges], (table, column, value)
                shutil.rmtree(again.parent)
            tried += 1
    assert tried > 300


def bomb_of_reads(path: Path) -> None:
    """A few KiB that unpack to half a GiB, and say that they are one byte."""
    packed = zstandard.ZstdCompressor().compress(bytes(BOMB_BYTES))
    change(path, "UPDATE reads SET crc = NULL, times = ?, data = ?", (encode_times([1], [1]), packed))


def bomb_of_parts(path: Path) -> None:
    packed = zstandard.ZstdCompressor().compress(bytes(BOMB_BYTES))
    change(path, "UPDATE packs SET data = ?", (packed,))


def recipe_without_end(path: Path) -> None:
    change(path, "UPDATE exchanges SET crc = NULL, request_body = x'02ffffffffff7f' WHERE id > 0")


def recipe_that_repeats(path: Path) -> None:
    """One part a million times over."""
    with closing(sqlite3.connect(path)) as database:
        (recipe,) = database.execute("SELECT request_body FROM exchanges WHERE id = 1").fetchone()
    runs = encode_runs(decode_runs(recipe)[:1] * 1_000_000)
    change(path, "UPDATE exchanges SET crc = NULL, request_bytes = 1 << 60, request_body = ? WHERE id > 0", (runs,))


def view_without_end(path: Path) -> None:
    change(path, "DROP TABLE gaps")
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i, 'x', i FROM n"
    change(path, f"CREATE VIEW gaps (exchange, at_ns, kind, lost_bytes) AS {rows}")


@pytest.mark.parametrize(
    "make", [bomb_of_reads, bomb_of_parts, recipe_without_end, recipe_that_repeats, view_without_end]
)
def test_a_journal_made_to_fill_a_memory_does_not(whole: Path, make: Callable[[Path], None]) -> None:
    make(whole)
    tracemalloc.start()
    try:
        exchanges, problems = read(whole)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300 << 20  # one piece of zstd may be 128 MiB
    assert len(problems) == 1
    assert all(exchange.gaps or not exchange.reads for exchange in exchanges)


def test_a_schema_that_nothing_wrote_is_one_sentence(whole: Path) -> None:
    for schema in ("0", "-1"):
        change(whole, "UPDATE meta SET value = ? WHERE name = 'schema'", (schema,))
        assert read(whole) == ([], [f"{whole}: it has schema {schema}, which no recorder wrote"])


def test_what_may_be_whole_is_never_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair by an older agentdyno, or without room for a copy, must leave a journal to those who can read it."""
    store = Store.open(tmp_path / "store", create=True)
    record(store).close()
    (path,) = store.journals()
    data = path.read_bytes()
    change(path, "UPDATE meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(RepairFault, match="install a newer one; it is left as it is"):
        repair(store, path)
    path.write_bytes(data)
    path.with_suffix(".erase").write_text("noise")
    with pytest.raises(RepairFault, match=r"\.erase beside it is damaged"):
        repair(store, path)
    path.with_suffix(".erase").unlink()
    at = data.rindex(b"SQLite") + 4096 * 3
    path.write_bytes(data[:at] + bytes(4096) + data[at + 4096 :])  # a page of a table is gone

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("capture.reader.shutil.copyfile", full)
    problems: list[str] = []
    list(store.exchanges(problems))
    assert problems == [f"{path}: cannot be read (No space left on device)"]
    with pytest.raises(RepairFault, match="No space left"):
        repair(store, path)
    assert store.journals() == [path]
    assert not list(store.path.glob("*.damaged"))
    monkeypatch.undo()
    done = repair(store, path)
    assert done is not None
    assert done.set_aside.exists()


def test_a_copy_of_a_journal_that_counts_to_the_sky_is_made_at_once(tmp_path: Path, whole: Path) -> None:
    change(whole, "UPDATE meta SET value = '4000000000000000000' WHERE name = 'exchanges'")
    began = time.monotonic()
    (tmp_path / "copy").mkdir()
    with JournalReader(whole) as reader:
        copied = copy_journal(reader, tmp_path / "copy" / whole.name, drop=frozenset({2}))
    assert copied.exchanges == 2
    assert time.monotonic() - began < 10  # it would have been years
    hide(whole, [2])
    with JournalReader(tmp_path / "copy" / whole.name) as reader:
        assert [exchange.exchange_id[-2:] for exchange in reader.exchanges()] == ["-1", "-3"]
        assert reader.problems == []

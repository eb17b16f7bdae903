from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import parts, pause
from capture.examine import examine
from capture.exchange import Exchange
from capture.journal import FROM_AGENT, FROM_UPSTREAM, QUEUE_BYTES, JournalWriter
from capture.layout import SCHEMA, decode_times, encode_times
from capture.parts import PartPool, cut_points, decode_runs, encode_runs
from capture.reader import JournalReader
from capture.store import Store, StoreError, default_store
from capture.wal import lost_wal_bytes

HEADERS = ((b"Content-Type", b"application/json"), (b"X-Twice", b"a"), (b"X-Twice", b"b"))


@contextmanager
def journal(folder: Path, queue_bytes: int = QUEUE_BYTES) -> Iterator[JournalWriter]:
    store = Store.open(folder, create=True)
    writer = JournalWriter(store.path, key=store.key, meta={"recorder": "test"}, queue_bytes=queue_bytes)
    try:
        yield writer
    finally:
        writer.close()


def record(writer: JournalWriter, body: bytes, reads: list[bytes], at_ns: int = 1_000) -> int:
    number = writer.send(at_ns=at_ns, connection="c", method="POST", host="h:443", path="/v1/messages", headers=HEADERS)
    writer.sent(number, at_ns=at_ns + 1, body=body)
    writer.headers(number, at_ns=at_ns + 2, status=200, headers=HEADERS)
    for index, data in enumerate(reads):
        writer.read(number, at_ns + 3 + index, data)
    writer.end(number, at_ns=at_ns + 3 + len(reads), outcome="complete")
    return number


def read_all(folder: Path) -> tuple[list[Exchange], list[str]]:
    problems: list[str] = []
    return list(Store.open(folder).exchanges(problems)), problems


def wait_for_commit(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(read_all(folder)[0]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=700),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=20), inner, max_size=8),
    max_leaves=60,
)
bodies = st.one_of(
    st.binary(max_size=6000),
    st.builds(
        lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"),
        st.dictionaries(st.sampled_from(["system", "messages", "input", "tools", "contents"]), json_values),
        st.booleans(),
    ),
    st.sampled_from(
        [b"", b"[" * 5000, b'{"a":' * 3000, b'{"m":"' + b"x" * 5000, b"9" * 6000, b'["\xff' + b"y" * 2000 + b'"]']
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(bodies, max_size=6))
def test_bodies_come_back_byte_for_byte(several: list[bytes]) -> None:
    pool = PartPool()
    parts: dict[int, bytes] = {}
    # Growing, shrinking and rewritten neighbours are what a session sends.
    several = [
        *several,
        *(body + b"," + body for body in several),
        *(body[: len(body) // 2] for body in several),
        *several,
    ]
    recipes = []
    for body in several:
        recipes.append(pool.recipe(body))
        for pack in pool.take_packs():
            parts.update(enumerate(pack.unpack(), pack.first_part))
    for body, recipe in zip(several, recipes, strict=True):
        assert b"".join(parts[number] for number in decode_runs(recipe)) == body


@given(st.lists(st.integers(min_value=0, max_value=1 << 40)))
def test_runs_come_back(numbers: list[int]) -> None:
    assert decode_runs(encode_runs(numbers)) == numbers


@given(st.lists(st.tuples(st.integers(min_value=0, max_value=1 << 40), st.binary(max_size=20)), min_size=1))
def test_times_come_back(steps: list[tuple[int, bytes]]) -> None:
    at, reads = 0, []
    for step, data in steps:
        at += step
        reads.append((at, data))
    found, sizes = decode_times(encode_times([at for at, _ in reads], [len(data) for _, data in reads]))
    start = reads[0][0]
    assert [start + sum(found[: index + 1]) for index in range(len(found))] == [at for at, _ in reads]
    assert sizes == [len(data) for _, data in reads]


def test_a_session_of_150_turns_stores_each_message_once(tmp_path: Path) -> None:
    chance = [os.urandom(600).hex() for _ in range(300)]  # nothing to compress but the repetition
    messages, raw = [], 0
    sent = []
    with journal(tmp_path / "store") as writer:
        for turn in range(150):
            messages.append({"role": "user", "content": [{"type": "text", "text": chance[2 * turn]}]})
            last = {"type": "text", "text": chance[2 * turn], "cache_control": {"type": "ephemeral"}}
            marked = [*messages[:-1], {"role": "user", "content": [last]}]
            body = json.dumps({"model": "m", "messages": marked, "stream": True}).encode()
            messages.append({"role": "assistant", "content": chance[2 * turn + 1]})
            raw += len(body)
            sent.append(body)
            record(writer, body, [])
    found, problems = read_all(tmp_path / "store")
    assert problems == []
    assert [exchange.request_body for exchange in found] == sent
    stored = sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
    assert raw / stored > 60


def test_small_messages_are_shared_too() -> None:
    pool = PartPool()
    stored = 0
    messages = []
    for turn in range(400):
        messages.append({"role": "user", "content": f"short message number {turn}"})
        pool.recipe(json.dumps({"messages": messages}).encode())
        stored += sum(len(part) for pack in pool.take_packs() for part in pack.unpack())
    assert stored < 50 * len(json.dumps(messages))


def test_cut_points_are_increasing_and_inside() -> None:
    text = json.dumps({"messages": [{"content": "x" * 300} for _ in range(20)], "tools": [{"d": "y" * 2000}]})
    cuts = cut_points(text)
    assert len(cuts) > 20
    assert cuts == sorted(set(cuts))
    assert cuts[0] > 0
    assert cuts[-1] < len(text)


def test_deep_nesting_costs_no_more_than_a_few_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = 0
    scan = parts._scan_once

    def counting(text: str, at: int) -> tuple[object, int]:
        nonlocal scanned
        value, end = scan(text, at)
        scanned += end - at
        return value, end

    monkeypatch.setattr(parts, "_scan_once", counting)
    text = "[0," * 200 + "1," * 20_000 + "1" + "]" * 200
    cut_points(text)
    assert scanned <= (parts.SCANS + 1) * len(text)


def test_a_journal_that_cannot_be_opened_hides_no_other(tmp_path: Path) -> None:
    with journal(tmp_path / "store") as writer:
        record(writer, b"{}", [b"data: 1\n\n"])
    (tmp_path / "store" / "journal-x.sqlite").mkdir()
    found, problems = read_all(tmp_path / "store")
    assert len(found) == 1
    assert [problem.rpartition(": ")[2] for problem in problems] == ["cannot be read (Is a directory)"]


def test_everything_of_an_exchange_comes_back(tmp_path: Path) -> None:
    with journal(tmp_path / "store") as writer:
        record(writer, b'{"a": 1}', [b"data: 1\n\n", b"", b"data: 2\n\n"])
        number = writer.send(at_ns=50, connection="d", method="GET", host="h:80", path="/w", headers=())
        writer.headers(number, at_ns=51, status=101, headers=())
        writer.read(number, 52, b"up", FROM_AGENT)
        writer.read(number, 53, b"down", FROM_UPSTREAM)
        writer.gap(number, at_ns=54, kind="recorder_error", lost_bytes=7)
        writer.end(number, at_ns=60, outcome="client_aborted", error="gone")
    (first, second), problems = read_all(tmp_path / "store")
    assert problems == []
    assert first.request_headers == (("content-type", "application/json"), ("x-twice", "a"), ("x-twice", "b"))
    assert (first.method, first.host, first.path, first.status) == ("POST", "h:443", "/v1/messages", 200)
    assert [(read.at_ns, read.data) for read in first.reads] == [
        (1_003, b"data: 1\n\n"),
        (1_004, b""),
        (1_005, b"data: 2\n\n"),
    ]
    assert (first.t_send_ns, first.t_sent_ns, first.t_headers_ns, first.t_end_ns) == (1_000, 1_001, 1_002, 1_006)
    assert abs(first.wall_anchor_us * 1000 + time.monotonic_ns() - time.time_ns()) < 60e9
    assert [(message.at_ns, message.from_agent, message.data) for message in second.messages] == [
        (52, True, b"up"),
        (53, False, b"down"),
    ]
    assert (second.outcome, second.error, second.t_sent_ns, second.request_body) == (
        "client_aborted",
        "gone",
        None,
        b"",
    )
    assert [(gap.kind, gap.lost_bytes) for gap in second.gaps] == [("recorder_error", 7)]
    assert first.connection_id != second.connection_id
    assert [file.suffix for file in sorted((tmp_path / "store").iterdir())] == [".sqlite", ".key"]


def test_a_live_journal_is_read_while_it_is_written(tmp_path: Path) -> None:
    with journal(tmp_path / "store") as writer:
        number = writer.send(at_ns=1, connection="c", method="POST", host="h:1", path="/x", headers=HEADERS)
        writer.sent(number, at_ns=2, body=b"{}")
        writer.headers(number, at_ns=3, status=200, headers=())
        writer.read(number, 4, b"one")
        wait_for_commit(tmp_path / "store", 1)
        (exchange,), problems = read_all(tmp_path / "store")
        assert (exchange.outcome, exchange.gaps, problems) == ("open", (), [])
        writer.read(number, 5, b"two")
        writer.end(number, at_ns=6, outcome="complete")
    (exchange,), _ = read_all(tmp_path / "store")
    assert [read.data for read in exchange.reads] == [b"one", b"two"]
    assert exchange.outcome == "complete"


def test_what_the_queue_cannot_hold_is_a_gap_and_not_a_wait(tmp_path: Path) -> None:
    with journal(tmp_path / "store", queue_bytes=10_000) as writer:
        number = record(writer, b"z" * 20_000, [b"x" * 4_000] * 10)
    (exchange,), problems = read_all(tmp_path / "store")
    assert problems == []
    assert number == 1
    assert exchange.request_body == b""
    assert (exchange.outcome, exchange.t_sent_ns) == ("complete", 1_001)
    lost = [gap.lost_bytes for gap in exchange.gaps]
    assert lost[0] == 20_000
    assert {gap.kind for gap in exchange.gaps} == {"queue_full"}
    assert sum(lost[1:]) + sum(len(read.data) for read in exchange.reads) == 40_000  # type: ignore[arg-type]
    assert all(1_003 <= gap.at_ns <= 1_012 for gap in exchange.gaps[1:])


def test_a_write_error_stops_the_recording_and_says_so_once(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store.open(tmp_path / "store", create=True)
    writer = JournalWriter(store.path, key=store.key, meta={}, on_fault=said.append)
    record(writer, b"{}", [])
    wait_for_commit(store.path, 1)
    writer._database.execute("PRAGMA max_page_count = 1")
    for _ in range(5):
        record(writer, os.urandom(200_000), [os.urandom(50_000)])
        time.sleep(0.3)
    writer.close()
    assert len(said) == 1
    assert "full" in said[0]
    assert writer.fault == said[0]
    found, _ = read_all(store.path)
    assert len(found) == 1


def damaged_copies(path: Path) -> list[tuple[str, bytes]]:
    data = path.read_bytes()
    half, page = len(data) // 2, 4096
    return [
        ("truncated inside its last page", data[:-100]),
        ("truncated by a third", data[: len(data) * 2 // 3]),
        ("truncated to half a page", data[: half + 17]),
        ("last page garbled", data[:-page] + os.urandom(page)),
        ("last quarter garbled", data[: len(data) * 3 // 4] + os.urandom(len(data) - len(data) * 3 // 4)),
        ("last page zeros", data[:-page] + bytes(page)),
    ]


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, bytes]]:
    """A store with sixty exchanges in ten commits, and their bodies by number."""
    folder = tmp_path_factory.mktemp("sixty") / "store"
    sent = {}
    with journal(folder) as writer:
        for index in range(60):
            body = json.dumps({"messages": [os.urandom(1500).hex()], "index": index}).encode()
            sent[record(writer, body, [os.urandom(800), b"end"])] = body
            if index % 6 == 0:
                time.sleep(0.25)
    return folder, sent


@pytest.mark.parametrize("case", range(6))
def test_a_damaged_tail_costs_what_lay_there_and_one_sentence(
    tmp_path: Path, case: int, sixty: tuple[Path, dict[int, bytes]]
) -> None:
    folder, bodies_sent = sixty
    shutil.copytree(folder, tmp_path / "store")
    (path,) = Store.open(tmp_path / "store").journals()
    name, data = damaged_copies(path)[case]
    path.write_bytes(data)
    found, problems = read_all(tmp_path / "store")
    assert len(problems) == 1, name
    assert str(path) in problems[0]
    assert "\n" not in problems[0]
    whole = [exchange for exchange in found if not exchange.gaps]
    assert len(whole) >= 10, name
    for exchange in whole:
        number = int(exchange.exchange_id.rpartition("-")[2])
        assert exchange.request_body == bodies_sent[number], name
        assert exchange.reads[-1].data == b"end"
    assert examine(Store.open(tmp_path / "store")).journals[0].problems == problems


@pytest.mark.parametrize(
    "data", [b"", b"SQLite", b"\0" * 5000, os.urandom(5000)], ids=["empty", "short", "zeros", "noise"]
)
def test_a_journal_without_a_beginning(tmp_path: Path, data: bytes) -> None:
    with journal(tmp_path / "store") as writer:
        record(writer, b"{}", [])
    (tmp_path / "store" / "journal-00000000T000000.000Z-abcdef.sqlite").write_bytes(data)
    found, problems = read_all(tmp_path / "store")
    assert len(found) == 1
    assert len(problems) == (0 if data == b"" else 1)


def test_a_damaged_write_ahead_log_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE t (x)")
    database.execute("INSERT INTO t VALUES (randomblob(20000))")
    database.commit()
    log = Path(f"{path}-wal").read_bytes()
    copy = tmp_path / "copy-wal"
    for damage, lost in (
        (log, 0),
        (log[:-10], 4120 - 10),
        (log[:-10] + b"\1" * 10, 4120),
        (b"", 0),
        (log[:20], 20),
        (b"x" + log[1:], len(log)),
    ):
        copy.write_bytes(damage)
        assert lost_wal_bytes(copy) == lost
    assert lost_wal_bytes(tmp_path / "none-wal") == 0
    database.close()


def test_a_journal_of_a_newer_schema(tmp_path: Path) -> None:
    with journal(tmp_path / "store") as writer:
        record(writer, b"{}", [])
    (path,) = Store.open(tmp_path / "store").journals()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (str(SCHEMA + 1),))
    database.close()
    found, problems = read_all(tmp_path / "store")
    assert found == []
    assert "install a newer one" in problems[0]


def test_a_journal_of_schema_1_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "journals" / "schema-1.sqlite.zst"
    path = tmp_path / "journal-20261120T000000.000Z-000001.sqlite"
    before = zstandard.ZstdDecompressor().decompress(golden.read_bytes())
    path.write_bytes(before)
    with JournalReader(path) as reader:
        *turns, failed, socket = reader.exchanges()
        assert (reader.problems, reader.state, len(list(reader.secrets()))) == ([], "closed", 2)
    assert path.read_bytes() == before
    assert [turn.exchange_id for turn in turns] == [f"20261120T000000.000Z-000001-{n}" for n in (1, 2, 3)]
    assert [len(json.loads(turn.request_body)["messages"]) for turn in turns] == [1, 3, 5]
    assert {(turn.mode, turn.contributor, turn.request_decoded, turn.wall_offset_us) for turn in turns} == {
        ("reverse", None, False, 0)
    }
    assert [turn.request_bytes for turn in turns] == [len(turn.request_body) for turn in turns]
    assert [read.at_ns for read in turns[1].reads] == [2_060_000_000, 2_090_000_000]
    assert turns[0].reads[1].data.startswith(b"event: message_stop")
    assert turns[0].path == "/v1/messages?beta=true&key=<redacted>"
    assert turns[0].request_header("authorization") == "<redacted>"
    assert b"compressed" in zstandard.ZstdDecompressor().decompress(failed.request_body)
    assert (failed.status, failed.outcome, failed.error) == (500, "upstream_cut", "reset")
    assert [message.from_agent for message in socket.messages] == [True, False]
    assert ([gap.lost_bytes for gap in socket.gaps], socket.outcome) == ([7], "open")


def test_reading_changes_no_file(tmp_path: Path) -> None:
    with journal(tmp_path / "store") as writer:
        record(writer, b"{}", [b"x"])
    before = {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    read_all(tmp_path / "store")
    assert {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()} == before


def full() -> bytes:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_stores_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no store at"):
        Store.open(tmp_path / "missing")
    with pytest.raises(StoreError, match="is not a store"):
        Store.open(tmp_path)
    (tmp_path / "thing").write_text("x")
    with pytest.raises(StoreError, match="other things"):
        Store.open(tmp_path, create=True)
    with pytest.raises(StoreError, match="cannot make"):
        Store.open(tmp_path / "thing", create=True)
    assert not pause.is_paused(tmp_path / "thing")  # nothing can be paused there: the store's own sentence tells
    with monkeypatch.context() as patched:
        patched.setattr("capture.store.os.urandom", lambda count: b"x" * count if count < 32 else full())
        with pytest.raises(StoreError, match="No space left"):
            Store.open(tmp_path / "new", create=True)
    assert list((tmp_path / "new").iterdir()) == []
    store = Store.open(tmp_path / "new", create=True)
    assert Store.open(tmp_path / "new", create=True).key == store.key
    (tmp_path / "new" / "store.key").write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path / "new")


def test_a_store_of_another_user_is_not_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Store.open(tmp_path / "made", create=True)
    (tmp_path / "waits").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    for folder in ("made", "waits"):
        with pytest.raises(StoreError, match="belongs to user"):
            Store.open(tmp_path / folder, create=True)
    assert list((tmp_path / "waits").iterdir()) == []
    found = Store.open(made.path)  # whoever may read it, may
    assert found.key == made.key
    with pytest.raises(StoreError, match="belongs to user"):
        found.own()


def test_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTDYNO_STORE", "/named")
    assert default_store() == Path("/named")
    monkeypatch.delenv("AGENTDYNO_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_store() == tmp_path / "agentdyno" / "store"


def test_a_recipe_that_ends_early_is_an_error() -> None:
    with pytest.raises(ValueError, match="inside a number"):
        decode_runs(b"\x80")
    with pytest.raises(struct.error):
        decode_times(b"\x00\x01\x02\x03\x04")

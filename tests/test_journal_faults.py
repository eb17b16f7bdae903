"""The journal's writer when something breaks: recording stops loudly, the hooks go on, what was written is there."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capture.examine import examine
from capture.journal import JournalWriter
from capture.reader import JournalReader
from capture.rotation import Journals
from capture.store import Store
from capture.wal import lost_wal_bytes

ROOT = Path(__file__).parent.parent


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def exchange(journal: JournalWriter, body: bytes, answer: bytes = b"") -> int:
    number = journal.send(at_ns=1, connection="c", method="POST", host="h:1", path="/x", headers=())
    journal.sent(number, at_ns=2, body=body)
    journal.headers(number, at_ns=3, status=200, headers=())
    journal.read(number, 4, answer)
    journal.end(number, at_ns=5, outcome="complete")
    return number


def goes_on(journal: JournalWriter) -> None:
    """The hooks of a journal that stopped: nothing raises, nothing is kept in memory, what is lost is counted."""
    gaps = journal.gaps
    for _ in range(50):
        exchange(journal, os.urandom(1000), os.urandom(1000))
    assert journal.gaps > gaps
    assert len(journal._queue) == 0


class Full:
    """A database whose disk is full from now on."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)

    def executemany(self, *_: object) -> None:
        raise OSError(28, "No space left on device")


def test_an_injected_enospc_stops_the_recording_with_a_mark_and_one_sentence(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    said: list[str] = []
    journals = Journals(store, meta={}, on_fault=said.append)
    journal = journals.current
    exchange(journal, b"before")
    eventually(lambda: len(list(store.exchanges())) == 1)
    in_flight = journal.send(at_ns=6, connection="c", method="POST", host="h:1", path="/y", headers=())
    eventually(lambda: len(list(store.exchanges())) == 2)
    journal._database = Full(journal._database)  # type: ignore[assignment]
    journal.read(in_flight, 7, b"lost")
    eventually(lambda: bool(said))
    goes_on(journals.current)
    journals.close()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert journals.fault == said[0]
    assert journals.gaps > 0
    problems: list[str] = []
    before, cut = store.exchanges(problems)
    assert (before.request_body, before.outcome, before.gaps) == (b"before", "complete", ())
    assert (cut.outcome, [gap.kind for gap in cut.gaps]) == ("open", ["disk"])


def test_an_exception_in_the_writers_thread_stops_the_recording_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store", create=True)
    said: list[str] = []
    journal = JournalWriter(store.path, key=store.key, meta={}, on_fault=said.append)
    exchange(journal, b"before")
    eventually(lambda: len(list(store.exchanges())) == 1)

    def planted(*_: object) -> bytes:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(journal._pool, "recipe", planted)
    exchange(journal, b"poison")
    eventually(lambda: bool(said))
    goes_on(journal)
    journal.close()
    assert said == ["the recorder failed inside (ZeroDivisionError: planted)"]
    assert [found.request_body for found in store.exchanges()] == [b"before"]
    with JournalReader(journal.path) as reader:
        assert (reader.state, reader.tally().gaps) == ("killed", 1)  # the lock tells that it did not end well


def test_a_folder_that_cannot_be_written_to_is_said_at_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    if os.geteuid() == 0:
        # The superuser writes anywhere; a folder that is gone refuses everybody.
        shutil.rmtree(store.path)
    else:
        store.path.chmod(0o500)
    with pytest.raises(OSError, match=r"journal-.*sqlite"):
        Journals(store, meta={})


def test_text_that_is_no_utf_8_costs_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={})
    number = journal.send(
        at_ns=1,
        connection="c",
        method="G\udcffT",
        host="h\udcff:1",
        path="/\udcff?a=\udcfe",
        headers=((b"\xff", b"\xfe"),),
    )
    journal.end(number, at_ns=2, outcome="upstream_cut", error="\udcff")
    journal.close()
    assert journal.fault is None
    (found,) = store.exchanges()
    assert (found.path, found.error, found.request_headers) == ("/\\udcff?a=\\udcfe", "\\udcff", (("ÿ", "þ"),))


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_small_disk_fills_up(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "600k"):
        store = Store.open(tmp_path / "disk" / "store", create=True)
        said: list[str] = []
        journal = JournalWriter(store.path, key=store.key, meta={}, on_fault=said.append)
        exchange(journal, b"before")
        eventually(lambda: len(list(store.exchanges())) == 1)
        for _ in range(3):
            exchange(journal, os.urandom(400_000))
        eventually(lambda: bool(said))
        goes_on(journal)
        journal.close()
        problems: list[str] = []
        assert b"before" in [found.request_body for found in store.exchanges(problems)]
        assert len(problems) <= 1
        assert "full" in said[0] or "space" in said[0] or "disk" in said[0]


KILLED = """
import os, sys, threading, time
from pathlib import Path
from capture.journal import JournalWriter
from capture.store import Store
store = Store.open(Path(sys.argv[1]), create=True)
journal = JournalWriter(store.path, key=store.key, meta={})
index = 0
while True:
    body = b"%08d" % index + os.urandom(3000)
    number = journal.send(at_ns=time.monotonic_ns(), connection="c", method="POST", host="h:1", path="/x", headers=())
    journal.sent(number, at_ns=time.monotonic_ns(), body=body)
    for _ in range(5):
        journal.read(number, time.monotonic_ns(), body)
    journal.end(number, at_ns=time.monotonic_ns(), outcome="complete")
    index += 1
    if index % 50 == 0:
        print(index, flush=True)
        time.sleep(0.01)
"""


@pytest.mark.parametrize("commits", [0, 3, 8])
def test_a_kill_during_commits_loses_at_most_the_last_of_them(tmp_path: Path, commits: int) -> None:
    store = Store.open(tmp_path / "store", create=True)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(store.path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    child.stdout.readline()
    # The writer commits without pause: it is killed at whatever point of one it is.
    eventually(lambda: not commits or len(list(store.exchanges())) > 0)
    time.sleep(0.05 + commits * 0.023)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    problems: list[str] = []
    found = list(store.exchanges(problems))
    assert problems == []
    for index, one in enumerate(found):
        assert one.request_body[:8] == b"%08d" % index
        assert [read.data for read in one.reads] == [one.request_body] * 5
    if commits:
        assert found
    assert examine(store).problems == []


def test_a_damaged_middle_of_the_log_costs_what_follows_and_one_sentence(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(store.path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    for _ in range(3):
        child.stdout.readline()
    eventually(lambda: len(list(store.exchanges())) > 50)
    child.kill()
    child.wait()
    child.stdout.close()
    (path,) = store.journals()
    log = Path(f"{path}-wal")
    data = bytearray(log.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    log.write_bytes(data)
    problems: list[str] = []
    for index, one in enumerate(store.exchanges(problems)):
        assert one.request_body[:8] == b"%08d" % index
    assert len(problems) <= 1  # none where the flipped byte lies in frames of an earlier round


MEMORY = """
import os, resource, sys, time
from pathlib import Path
import capture.journal
from capture.journal import FROM_AGENT, FROM_UPSTREAM, JournalWriter
from capture.store import Store

capture.journal.COMMIT_INTERVAL_S = 0.005  # the test need not wait

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

store = Store.open(Path(sys.argv[1]), create=True)
journal = JournalWriter(store.path, key=store.key, meta={})
filler = b'{"role":"user","content":"' + b"lorem ipsum " * 170 + b'"},'

def request(index):
    # Eight sessions in turn; every twentieth request shares nothing with those before it.
    new = os.urandom(8).hex() if index % 20 == 0 else "session %d" % (index % 8)
    said = b'{"role":"user","content":"%s"}' % os.urandom(500).hex().encode()
    head = b'{"model":"m","messages":[{"role":"user","content":"%s"},' % new.encode()
    body = head + filler * ((4_000_000 - len(head)) // len(filler)) + said + b"]}"
    number = journal.send(at_ns=1, connection="c", method="POST", host="h:1", path="/x", headers=())
    journal.sent(number, at_ns=2, body=body)
    journal.end(number, at_ns=3, outcome="complete")

def messages(number, count):
    for index in range(count):
        journal.read(number, index, os.urandom(2000) + b"x" * 6000, FROM_AGENT if index % 10 else FROM_UPSTREAM)
        wait()

def wait():
    while journal._bytes_in - journal._bytes_out > 8 << 20:
        time.sleep(0.005)

for index in range(20):
    request(index); wait()
before = resident()
for index in range(200):
    request(index); wait()
bodies = resident()
number = journal.send(at_ns=1, connection="c", method="GET", host="h:1", path="/ws", headers=())
messages(number, 13_000)
sockets = resident()
journal.end(number, at_ns=9, outcome="complete")
journal.close()
assert journal.fault is None and journal.gaps == 0, (journal.fault, journal.gaps)
print(before, bodies, sockets)
"""


def test_memory_is_flat_over_large_bodies_and_a_long_socket(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(store.path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    before, bodies, sockets = map(int, run.stdout.split())
    assert bodies - before < 60 << 20  # 800 MB of bodies passed
    assert sockets - before < 60 << 20  # and 104 MB of messages
    messages = 0
    size = 0
    for one in store.exchanges():
        messages += len(one.messages)
        size += sum(len(message.data) for message in one.messages)
        assert sum(not message.from_agent for message in one.messages) in (0, 1300)
    assert (messages, size) == (13_000, 104_000_000)


def test_a_kill_between_a_frame_s_head_and_its_page_is_no_damage(tmp_path: Path) -> None:
    """The log's second round: its head says so already, the page behind it is still the first round's."""
    path = tmp_path / "journal.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA wal_autocheckpoint=0")
    database.execute("CREATE TABLE things (body BLOB)")
    for _ in range(20):
        database.execute("INSERT INTO things VALUES (randomblob(3000))")
    database.execute("PRAGMA wal_checkpoint(RESTART)")
    database.execute("INSERT INTO things VALUES (randomblob(3000))")
    log = Path(f"{path}-wal")
    whole = bytearray(log.read_bytes())
    database.close()
    page = int.from_bytes(whole[8:12], "big")
    starts = range(32, len(whole), 24 + page)
    old = [at for at in starts if whole[at + 8 : at + 12] != whole[16:20]]
    assert len(old) > 2
    for places, lost in ((old[:1], False), (old[:2], True)):
        torn = bytearray(whole)
        for at in places:
            torn[at + 8 : at + 16] = whole[16:24]
        log.write_bytes(torn)
        assert (lost_wal_bytes(log) > 0) == lost

"""The writer of a journal: one SQLite file per recorder, filled by a thread that commits five times a second.

The recorder's hooks only append to a queue; JSON, hashing, compression and the disk belong to the thread. The queue
is bounded in bytes: when the disk falls behind, payload is dropped, its time and size are kept as a gap, and the
agent never waits. A disk error ends the recording, not the relaying.

Layout (`SCHEMA` 1): `exchanges` one row each; `reads` batches of one exchange's reads, their data one zstd stream
over the batches of an exchange; `packs` new parts of bodies and headers (see `parts`); `gaps`; `secrets`; `meta`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import sqlite3
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import zstandard

from capture.exchange import Outcome
from capture.parts import PartPool, encode_runs
from capture.secret import SecretFilter

SCHEMA = 1
COMMIT_INTERVAL_S = 0.2
QUEUE_BYTES = 128 << 20
ITEM_BYTES = 100  # what a queued item costs besides its payload

BODY, FROM_AGENT, FROM_UPSTREAM = 0, 1, 2
"""Kinds of reads: response body; WebSocket messages of the agent and of the upstream."""

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE exchanges (
  id INTEGER PRIMARY KEY, connection TEXT NOT NULL, method TEXT NOT NULL, host TEXT NOT NULL, path TEXT NOT NULL,
  t_send_ns INTEGER NOT NULL, request_headers BLOB NOT NULL,
  t_sent_ns INTEGER, request_bytes INTEGER, request_body BLOB,
  t_headers_ns INTEGER, status INTEGER, response_headers BLOB,
  t_end_ns INTEGER, outcome TEXT, error TEXT);
CREATE TABLE reads (
  id INTEGER PRIMARY KEY, exchange INTEGER NOT NULL, kind INTEGER NOT NULL, start_ns INTEGER NOT NULL,
  times BLOB NOT NULL, data BLOB NOT NULL);
CREATE TABLE packs (first_part INTEGER PRIMARY KEY, sizes BLOB NOT NULL, digests BLOB NOT NULL, data BLOB NOT NULL);
CREATE TABLE gaps (
  id INTEGER PRIMARY KEY, exchange INTEGER, at_ns INTEGER NOT NULL, kind TEXT NOT NULL, lost_bytes INTEGER);
CREATE TABLE secrets (digest BLOB PRIMARY KEY, length INTEGER NOT NULL, kind TEXT NOT NULL) WITHOUT ROWID;
"""
# Rows of exchanges are small, so their table would stay in its first page for long and then move to a page near the
# file's end, where a damaged tail would take them all. Two rows without meaning make it grow leaf by leaf at once.
_BALLAST = """
INSERT INTO exchanges (id, connection, method, host, path, t_send_ns, request_headers)
VALUES (-2, '', '', '', '', 0, zeroblob(3000)), (-1, '', '', '', '', 0, zeroblob(3000));
"""
_UPSERT = """
INSERT INTO exchanges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET t_sent_ns = excluded.t_sent_ns, request_bytes = excluded.request_bytes,
  request_body = excluded.request_body, t_headers_ns = excluded.t_headers_ns, status = excluded.status,
  response_headers = excluded.response_headers, t_end_ns = excluded.t_end_ns, outcome = excluded.outcome,
  error = excluded.error
"""

# A window of 256 KiB holds what a stream repeats (its event frames) and keeps 64 open streams small in memory.
_STREAM = zstandard.ZstdCompressionParameters.from_level(3, window_log=18, write_content_size=False)

_INSERT_READS = "INSERT INTO reads (exchange, kind, start_ns, times, data) VALUES (?, ?, ?, ?, ?)"

type RawHeaders = tuple[tuple[bytes, bytes], ...]
type GapKind = Literal["queue_full", "recorder_error", "disk"]


def encode_times(reads: list[tuple[int, bytes]]) -> bytes:
    """Steps between reads and their sizes: a format byte, then u32 ns and u16 bytes each; u64 and u32 if need be."""
    times = [at for at, _ in reads]
    steps = [0, *(max(0, later - earlier) for earlier, later in itertools.pairwise(times))]
    sizes = [len(data) for _, data in reads]
    count = len(reads)
    if max(steps) < 1 << 32 and max(sizes) < 1 << 16:
        return struct.pack(f"<B{count}I{count}H", 0, *steps, *sizes)
    return struct.pack(f"<B{count}Q{count}I", 1, *steps, *sizes)


@dataclass(slots=True)
class _Send:
    number: int
    at_ns: int
    connection: str
    method: str
    host: str
    path: str
    headers: RawHeaders


@dataclass(slots=True)
class _Sent:
    number: int
    at_ns: int
    body: bytes | None


@dataclass(slots=True)
class _Headers:
    number: int
    at_ns: int
    status: int
    headers: RawHeaders


@dataclass(slots=True)
class _Read:
    number: int
    at_ns: int
    data: bytes
    kind: int


@dataclass(slots=True)
class _End:
    number: int
    at_ns: int
    outcome: Outcome
    error: str | None


@dataclass(slots=True)
class _Gap:
    number: int | None
    at_ns: int
    kind: GapKind
    lost_bytes: int | None


type _Item = _Send | _Sent | _Headers | _Read | _End | _Gap


@dataclass(slots=True)
class _Row:
    """What the thread knows of an exchange that has not ended."""

    number: int
    connection: str
    method: str
    host: str
    path: str
    t_send_ns: int
    request_headers: bytes
    t_sent_ns: int | None = None
    request_bytes: int | None = None
    request_body: bytes | None = None
    t_headers_ns: int | None = None
    status: int | None = None
    response_headers: bytes | None = None
    t_end_ns: int | None = None
    outcome: Outcome | None = None
    error: str | None = None
    changed: bool = True
    reads: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    streams: dict[int, _Stream] = field(default_factory=dict)

    def values(self) -> tuple[object, ...]:
        return (
            self.number, self.connection, self.method, self.host, self.path, self.t_send_ns, self.request_headers,
            self.t_sent_ns, self.request_bytes, self.request_body, self.t_headers_ns, self.status,
            self.response_headers, self.t_end_ns, self.outcome, self.error,
        )  # fmt: skip


@dataclass(slots=True)
class _Stream:
    """An open zstd stream; the context is lent from a pool, since making one costs more than a small response."""

    context: zstandard.ZstdCompressor
    writer: zstandard.ZstdCompressionObj


class JournalWriter:
    """Records exchanges into a new journal of a store's folder. Its methods are for one thread (the event loop's).

    `on_fault` is called once, from the writer's thread, when recording stops for good.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: bytes,
        meta: dict[str, str],
        on_fault: Callable[[str], None] | None = None,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        wall_ns = time.time_ns() - time.monotonic_ns()
        self.journal_id = f"{_stamp(time.time_ns())}-{os.urandom(3).hex()}"
        self.path = folder / f"journal-{self.journal_id}.sqlite"
        self.fault: str | None = None
        self.exchanges = 0
        self.gaps = 0
        self._key = key
        self._on_fault = on_fault
        self._queue_bytes = queue_bytes
        self._queue: deque[_Item] = deque()
        # Each counter has one writer, so no lock: what waits is the difference.
        self._bytes_in = 0
        self._bytes_out = 0
        self._idle = True
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._pool = PartPool()
        self._secrets = SecretFilter(key)
        self._header_numbers: dict[tuple[bytes, bytes], int] = {}
        self._rows: dict[int, _Row] = {}
        self._last_written = 0
        self._contexts: list[zstandard.ZstdCompressor] = []
        self._meta = {"schema": str(SCHEMA), "wall_anchor_us": str(wall_ns // 1000), "pid": str(os.getpid()), **meta}
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._lock_file = self.path.with_suffix(".lock")
        self._lock = os.open(self._lock_file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._database = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, cached_statements=32)
        try:
            self._database.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 256;"
                "PRAGMA journal_size_limit = 1048576;" + _TABLES + _BALLAST
            )
            self._write_meta(self._meta)
        except sqlite3.Error as fault:
            self._discard()
            raise OSError(f"cannot begin {self.path}: {fault}") from fault
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    # The recorder's side: append and return.

    def send(self, *, at_ns: int, connection: str, method: str, host: str, path: str, headers: RawHeaders) -> int:
        """Start an exchange; returns its number."""
        self.exchanges += 1
        self._put(_Send(self.exchanges, at_ns, connection, method, host, path, headers), 0)
        return self.exchanges

    def sent(self, number: int, *, at_ns: int, body: bytes) -> None:
        """The request is complete."""
        if self._bytes_in - self._bytes_out + len(body) > self._queue_bytes:
            self.gap(number, at_ns=at_ns, kind="queue_full", lost_bytes=len(body))
            self._put(_Sent(number, at_ns, None), 0)
        else:
            self._put(_Sent(number, at_ns, body), len(body))

    def headers(self, number: int, *, at_ns: int, status: int, headers: RawHeaders) -> None:
        """The response headers are in."""
        self._put(_Headers(number, at_ns, status, headers), 0)

    def read(self, number: int, at_ns: int, data: bytes, kind: int = BODY) -> None:
        """Bytes of the response body, or a WebSocket message."""
        size = len(data) + ITEM_BYTES
        if self._bytes_in - self._bytes_out + size > self._queue_bytes:
            self.gap(number, at_ns=at_ns, kind="queue_full", lost_bytes=len(data))
            return
        self._bytes_in += size
        self._queue.append(_Read(number, at_ns, data, kind))
        if self._idle:
            self._idle = False
            self._wake.set()

    def end(self, number: int, *, at_ns: int, outcome: Outcome, error: str | None = None) -> None:
        """The exchange is over."""
        self._put(_End(number, at_ns, outcome, error), 0)

    def gap(self, number: int | None, *, at_ns: int, kind: GapKind, lost_bytes: int | None) -> None:
        """Something was lost here."""
        self.gaps += 1
        if self._bytes_in - self._bytes_out < 2 * self._queue_bytes:
            self._put(_Gap(number, at_ns, kind, lost_bytes), 0)

    def close(self, *, wait_s: float = 10.0) -> None:
        """Write what waits and close the file; a clean end leaves one plain file without a lock beside it."""
        self._stop.set()
        self._wake.set()
        self._thread.join(wait_s)
        if self._thread.is_alive() and self.fault is None:
            self.fault = f"the disk did not take the end of {self.path} within {wait_s:.0f} s"

    def _put(self, item: _Item, payload: int) -> None:
        if self.fault is not None:
            return
        self._bytes_in += payload + ITEM_BYTES
        self._queue.append(item)
        if self._idle:
            self._idle = False
            self._wake.set()

    # The thread's side.

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._wake.wait()
                self._wake.clear()
                # Sleep first: what comes within one interval is one commit, and the hooks need not wake anybody again.
                self._stop.wait(COMMIT_INTERVAL_S)
                self._idle = True
                self._commit()
            self._commit()
            self._write_meta({"closed_ns": str(time.monotonic_ns()), "exchanges": str(self._last_written)})
            # Somebody reads it just now: everything is written, and the log stays beside the file.
            with contextlib.suppress(sqlite3.OperationalError):
                self._database.execute("PRAGMA journal_mode = DELETE")
            self._database.close()
            self._lock_file.unlink()
        except (sqlite3.Error, OSError) as fault:
            self._give_up(f"cannot write {self.path}: {fault}")
        except Exception as fault:  # noqa: BLE001 - the outermost place of the thread: say it, and keep relaying
            self._give_up(f"the recorder failed inside ({type(fault).__name__}: {fault})")
        finally:
            os.close(self._lock)

    def _discard(self) -> None:
        """Leave nothing of a journal that could not be begun."""
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        os.close(self._lock)
        for file in (self.path, self._lock_file, Path(f"{self.path}-wal"), Path(f"{self.path}-shm")):
            file.unlink(missing_ok=True)

    def _give_up(self, sentence: str) -> None:
        self.fault = sentence
        self._queue_bytes = -1  # from here on every read is a gap
        self._queue.clear()
        self._bytes_out = self._bytes_in
        with contextlib.suppress(sqlite3.Error):
            if self._database.in_transaction:
                self._database.rollback()
            self._database.execute(
                "INSERT INTO gaps (at_ns, kind) VALUES (?, 'disk')", (time.monotonic_ns(),)
            )  # fits where the disk has a page left; the lock file tells the rest
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        if self._on_fault is not None:
            self._on_fault(sentence)

    def _write_meta(self, values: dict[str, str]) -> None:
        self._database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _commit(self) -> None:
        queue = self._queue
        if not queue:
            return
        rows, touched = self._rows, dict[int, _Row]()
        gaps: list[tuple[int | None, int, str, int | None]] = []
        taken = 0
        for _ in range(len(queue)):
            item = queue.popleft()
            taken += ITEM_BYTES
            if isinstance(item, _Read):
                taken += len(item.data)
            elif isinstance(item, _Sent) and item.body is not None:
                taken += len(item.body)
            if isinstance(item, _Gap):
                gaps.append((item.number, item.at_ns, item.kind, item.lost_bytes))
            elif isinstance(item, _Send):
                self._last_written = item.number
                rows[item.number] = touched[item.number] = self._new_row(item)
            elif (row := rows.get(item.number)) is not None:
                touched[item.number] = row
                self._apply(row, item)
        self._bytes_out += taken
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        batches = [batch for row in touched.values() for batch in self._batches(row)]
        database.executemany(_UPSERT, [row.values() for row in touched.values() if row.changed])
        database.executemany(_INSERT_READS, batches)
        packs = self._pool.take_packs()
        database.executemany(
            "INSERT INTO packs VALUES (?, ?, ?, ?)", [(p.first_part, p.sizes, p.digests, p.data) for p in packs]
        )
        if gaps:
            database.executemany("INSERT INTO gaps (exchange, at_ns, kind, lost_bytes) VALUES (?, ?, ?, ?)", gaps)
        for secret in self._secrets.take_new():
            database.execute("INSERT INTO secrets VALUES (?, ?, ?)", (secret.digest, secret.length, secret.kind))
        database.execute("COMMIT")
        for row in touched.values():
            row.changed = False
            if row.outcome is not None:
                del rows[row.number]

    def _new_row(self, item: _Send) -> _Row:
        return _Row(
            number=item.number,
            connection=item.connection,
            method=item.method,
            host=item.host,
            path=self._secrets.path(item.path),
            t_send_ns=item.at_ns,
            request_headers=self._headers(item.headers),
        )

    def _apply(self, row: _Row, item: _Sent | _Headers | _Read | _End) -> None:
        if isinstance(item, _Read):
            row.reads.setdefault(item.kind, []).append((item.at_ns, item.data))
            return
        row.changed = True
        if isinstance(item, _Sent):
            row.t_sent_ns = item.at_ns
            if item.body is not None:
                row.request_bytes = len(item.body)
                row.request_body = self._pool.recipe(item.body)
        elif isinstance(item, _Headers):
            row.t_headers_ns, row.status = item.at_ns, item.status
            row.response_headers = self._headers(item.headers)
        else:
            row.t_end_ns, row.outcome = item.at_ns, item.outcome
            row.error = None if item.error is None else self._secrets.error(item.error)

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        numbers = []
        for pair in headers:
            number = self._header_numbers.get(pair)
            if number is None:
                name = _text(pair[0]).lower()
                value = self._secrets.header(name, _text(pair[1]))
                number = self._pool.number(json.dumps([name, value], ensure_ascii=True).encode())
                if len(self._header_numbers) > 4096:
                    self._header_numbers.clear()
                self._header_numbers[pair] = number
            numbers.append(number)
        return encode_runs(numbers)

    def _batches(self, row: _Row) -> Iterable[tuple[object, ...]]:
        ended = row.outcome is not None
        for kind, reads in row.reads.items():
            joined = b"".join([data for _, data in reads])
            stream = row.streams.get(kind)
            if stream is None and ended:
                context = self._context()
                data = context.compress(joined)
                self._contexts.append(context)
            else:
                if stream is None:
                    context = self._context()
                    stream = row.streams[kind] = _Stream(context, context.compressobj())
                data = stream.writer.compress(joined) + stream.writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            yield row.number, kind, reads[0][0], encode_times(reads), data
        row.reads.clear()
        if ended:
            # The frame's end is not written: a stream cut by a kill and one that ended read alike.
            self._contexts += [stream.context for stream in row.streams.values()]
            row.streams.clear()

    def _context(self) -> zstandard.ZstdCompressor:
        return self._contexts.pop() if self._contexts else zstandard.ZstdCompressor(compression_params=_STREAM)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _stamp(wall_ns: int) -> str:
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d}Z"

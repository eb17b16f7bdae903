"""The writer of a journal: one SQLite file per recorder, filled by a thread that commits five times a second.

The recorder's hooks only append to a queue; JSON, hashing, compression and the disk belong to the thread. The queue
is bounded in bytes: when the disk falls behind, payload is dropped, its time and size are kept as a gap, and the
agent never waits. A disk error ends the recording, not the relaying. `layout` says how the file looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path

from capture.clock import Clocks, WallClock
from capture.exchange import Outcome
from capture.item import End, Headers, Item, Mark, MarkKind, Queued, RawHeaders, ReadBytes, Send, Sent
from capture.layout import (
    BALLAST,
    BODY,
    FROM_AGENT,
    FROM_UPSTREAM,
    INSERT_CLOCK,
    INSERT_ERASED,
    INSERT_GAP,
    INSERT_PACK,
    INSERT_READS,
    INSERT_SECRET,
    SCHEMA,
    TABLES,
    UPSERT_EXCHANGE,
)
from capture.parts import PartPool, encode_runs
from capture.pause import LOOK_S
from capture.row import Contexts, Row
from capture.secret import SecretFilter
from capture.sieve import Sieve
from capture.tombstone import hide

__all__ = ["BODY", "FROM_AGENT", "FROM_UPSTREAM", "QUEUE_BYTES", "JournalWriter"]

COMMIT_INTERVAL_S = 0.2
QUEUE_BYTES = 128 << 20
ITEM_BYTES = 100  # what a queued item costs besides its payload
_PRAGMAS = (
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 256;"
    "PRAGMA journal_size_limit = 1048576;"
)
_DIGEST_BYTES = 16
_HEADER_NUMBERS = 4096


class JournalWriter:
    """Records exchanges into a new journal of a store's folder. Its methods are for one thread (the event loop's).

    `on_fault` is called once, from the writer's thread, when recording stops for good; `on_full` from the same thread
    after every commit that finds the file larger than `full_bytes`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: bytes,
        meta: dict[str, str],
        on_fault: Callable[[str], None] | None = None,
        queue_bytes: int = QUEUE_BYTES,
        full_bytes: int | None = None,
        on_full: Callable[[], None] | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        self._clock = WallClock(clocks or Clocks())
        self.journal_id = f"{_stamp(time.time_ns())}-{os.urandom(3).hex()}"
        self.path = folder / f"journal-{self.journal_id}.sqlite"
        self.fault: str | None = None
        self.exchanges = 0
        self.gaps = 0
        self.gap_kinds: Counter[str] = Counter()
        self._on_fault = on_fault
        self._on_full = on_full
        self._full_bytes = full_bytes
        self._queue_bytes = queue_bytes
        self._queue: deque[Queued] = deque()
        # Each counter has one writer, so no lock: what waits is the difference.
        self._bytes_in = 0
        self._bytes_out = 0
        self._idle = True
        self._retired = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._silent: set[int] = set()  # exchanges that have their mark for the pause in force
        self._pool = PartPool()
        self._secrets = SecretFilter(key)
        self._sieve = Sieve(folder, self._secrets)
        self._header_numbers: dict[tuple[bytes, bytes], int] = {}
        self._rows: dict[int, Row] = {}
        self._unused: list[tuple[int, int]] = []
        self._last_written = 0
        self._contexts = Contexts()
        self._meta = {
            "schema": str(SCHEMA),
            "wall_anchor_us": str(self._clock.anchor_us),
            "pid": str(os.getpid()),
            **meta,
        }
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._log = Path(f"{self.path}-wal")
        self._lock_file = self.path.with_suffix(".lock")
        self._lock = os.open(self._lock_file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._database = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, cached_statements=32)
        try:
            self._database.executescript(_PRAGMAS + TABLES + BALLAST)
            self._write_meta(self._meta)
        except sqlite3.Error as fault:
            self._discard()
            raise OSError(f"cannot begin {self.path}: {fault}") from fault
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the file is closed, or recording into it stopped."""
        return not self._thread.is_alive()

    @property
    def waiting_bytes(self) -> int:
        """What the disk has not taken yet."""
        return self._bytes_in - self._bytes_out

    @property
    def list_unreadable(self) -> bool:
        """Whether nothing is written because nobody can tell what is excluded."""
        return self._sieve.fault is not None

    @property
    def overflowing(self) -> bool:
        """Whether the disk is so far behind that what comes may be lost."""
        return self.waiting_bytes * 10 > self._queue_bytes * 9

    # The recorder's side: append and return. A number of 0 stands for an exchange of which nothing is written.

    def send(
        self,
        *,
        at_ns: int,
        connection: str,
        method: str,
        host: str,
        path: str,
        headers: RawHeaders,
        contributor: str | None = None,
        consent: str | None = None,
    ) -> int:
        """Start an exchange; returns its number, 0 while the store is paused."""
        if self._sieve.paused:
            if self._sieve.fault is None:
                self._put(Mark(None, at_ns, "paused", None), 0)
            else:  # nobody wanted this one left out
                self.gap(None, at_ns=at_ns, kind="recorder_error", lost_bytes=None)
            return 0
        self.exchanges += 1
        self._put(Send(self.exchanges, at_ns, connection, method, host, path, headers, contributor, consent), 0)
        return self.exchanges

    def sent(self, number: int, *, at_ns: int, body: bytes) -> None:
        """The request is complete."""
        if not number:
            return
        if self._sieve.paused:
            self._hush(number, at_ns)
            self._put(Sent(number, at_ns, None), 0)
        elif self._bytes_in - self._bytes_out + len(body) > self._queue_bytes:
            self.gap(number, at_ns=at_ns, kind="queue_full", lost_bytes=len(body))
            self._put(Sent(number, at_ns, None), 0)
        else:
            self._put(Sent(number, at_ns, body), len(body))

    def headers(self, number: int, *, at_ns: int, status: int, headers: RawHeaders) -> None:
        """The response headers are in."""
        if number:
            self._put(Headers(number, at_ns, status, () if self._sieve.paused else headers), 0)

    def read(self, number: int, at_ns: int, data: bytes, kind: int = BODY) -> None:
        """Bytes of the response body, or a WebSocket message."""
        if not number:
            return
        if self._sieve.paused:
            self._hush(number, at_ns)
            return
        size = len(data) + ITEM_BYTES
        if self._bytes_in - self._bytes_out + size > self._queue_bytes:
            self.gap(number, at_ns=at_ns, kind="queue_full", lost_bytes=len(data))
            return
        self._bytes_in += size
        self._queue.append((number, at_ns, data, kind))
        if self._idle:
            self._idle = False
            self._wake.set()

    def end(self, number: int, *, at_ns: int, outcome: Outcome, error: str | None = None) -> None:
        """The exchange is over."""
        if number:
            self._put(End(number, at_ns, outcome, None if self._sieve.paused else error), 0)

    def gap(self, number: int | None, *, at_ns: int, kind: MarkKind, lost_bytes: int | None) -> None:
        """Something was lost here."""
        if number == 0:
            return
        self.gaps += 1
        self.gap_kinds[kind] += 1
        if self._bytes_in - self._bytes_out < 2 * self._queue_bytes:
            self._put(Mark(number, at_ns, kind, lost_bytes), 0)

    def retire(self) -> None:
        """No exchange will begin here any more: close once the last one has ended."""
        self._retired = True
        self._wake.set()

    def close(self, *, wait_s: float = 10.0) -> None:
        """Write what waits and close the file; a clean end leaves one plain file without a lock beside it."""
        self._stop.set()
        self._wake.set()
        self._thread.join(wait_s)
        if self._thread.is_alive() and self.fault is None:
            self.fault = f"the disk did not take the end of {self.path} within {wait_s:.0f} s"

    def _hush(self, number: int, at_ns: int) -> None:
        if number not in self._silent:
            self._silent.add(number)
            self._put(Mark(number, at_ns, "paused", None), 0)

    def _put(self, item: Item, payload: int) -> None:
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
            while not self._stop.is_set() and not self._is_over():
                if self._wake.wait(LOOK_S):
                    self._wake.clear()
                    # What comes within one interval is one commit, and the hooks need not wake anybody again.
                    self._stop.wait(COMMIT_INTERVAL_S)
                self._idle = True
                self._look()
                self._commit()
            self._commit(last=True)
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
            self._pool = PartPool()  # a recorder may outlive many journals

    def _is_over(self) -> bool:
        return self._retired and not (self._queue or self._rows or self._sieve.waits)

    def _look(self) -> None:
        """Look at what changes without traffic: the pause, the list of exclusions, the wall clock, the file's size."""
        was_paused, fault_before = self._sieve.paused, self._sieve.fault
        self._sieve.look()
        if was_paused and not self._sieve.paused:
            self._silent.clear()
        if self._sieve.fault is not None and self._sieve.fault != fault_before and self._on_fault is not None:
            self._on_fault(f"{self._sieve.fault}; until then nothing is written")
        moved = self._clock.look()
        if moved is not None:
            self._database.execute(INSERT_CLOCK, (moved.since_ns, moved.at_ns, moved.offset_us, moved.suspended_us))
        if (
            self._full_bytes is not None
            and self._on_full is not None
            and not self._retired
            and self.path.stat().st_size + self._log.stat().st_size >= self._full_bytes
        ):
            self._on_full()

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

    def _commit(self, *, last: bool = False) -> None:
        queue = self._queue
        if not queue and not last:
            return
        touched = dict[int, Row]()
        gaps: list[tuple[int | None, int, str, int | None]] = []
        rows, sieve = self._rows, self._sieve
        busy = sieve.busy
        waiting = len(queue)
        taken = waiting * ITEM_BYTES
        for _ in range(waiting):
            item = queue.popleft()
            if isinstance(item, tuple):
                number, at_ns, data, kind = item
                taken += len(data)
                if not busy:  # nearly all items: no more work than needed
                    row = touched.get(number) or rows.get(number)
                    if row is not None:
                        touched[number] = row
                        if (reads := row.reads.get(kind)) is None:
                            reads = row.reads[kind] = ([], [])
                        reads[0].append(at_ns)
                        reads[1].append(data)
                    continue
                item = ReadBytes(number, at_ns, data, kind)
            elif isinstance(item, Sent) and item.body is not None:
                taken += len(item.body)
            for admitted in sieve.admit(item):
                self._apply(admitted, touched, gaps)
            busy = sieve.busy
        if last:
            for admitted in self._sieve.release():
                self._apply(admitted, touched, gaps)
        self._bytes_out += taken
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        batches = [batch for row in touched.values() for batch in row.batches(self._contexts)]
        database.executemany(UPSERT_EXCHANGE, [row.values() for row in touched.values() if row.changed])
        database.executemany(INSERT_READS, batches)
        packs = self._pool.take_packs()
        database.executemany(INSERT_PACK, [(p.first_part, p.sizes, p.digests, p.data) for p in packs])
        database.executemany(INSERT_GAP, gaps)
        database.executemany(INSERT_ERASED, self._unused)
        self._unused.clear()
        for secret in self._secrets.take_new():
            database.execute(INSERT_SECRET, (secret.digest, secret.length, secret.kind))
        database.execute("COMMIT")
        if regretted := self._sieve.take_regretted():
            hide(self.path, regretted)
        for row in touched.values():
            row.changed = False
            if row.outcome is not None:
                del self._rows[row.number]

    def _apply(self, item: Item, touched: dict[int, Row], gaps: list[tuple[int | None, int, str, int | None]]) -> None:
        if isinstance(item, Mark):
            gaps.append((item.number, item.at_ns, item.kind, item.lost_bytes))
            if item.unused is not None:
                self._unused.append((item.unused, item.unused))
            return
        if isinstance(item, Send):
            row = self._rows[item.number] = touched[item.number] = self._new_row(item)
            self._last_written = max(self._last_written, item.number)
            return
        found = self._rows.get(item.number)
        if found is None:
            return
        row = touched[item.number] = found
        if isinstance(item, ReadBytes):
            row.read(item.kind, item.at_ns, item.data)
            return
        row.changed = True
        if isinstance(item, Sent):
            row.t_sent_ns = item.at_ns
            if item.body is not None:
                row.request_bytes = len(item.body)
                row.request_body = self._pool.recipe(item.body if item.decoded is None else item.decoded)
                if item.decoded is not None:
                    row.decoded_bytes = len(item.decoded)
                    row.wire_digest = hashlib.blake2b(item.body, digest_size=_DIGEST_BYTES).digest()
        elif isinstance(item, Headers):
            row.t_headers_ns, row.status = item.at_ns, item.status
            row.response_headers = self._headers(item.headers)
        else:
            row.t_end_ns, row.outcome = item.at_ns, item.outcome
            row.error = None if item.error is None else _storable(self._secrets.error(item.error))

    def _new_row(self, item: Send) -> Row:
        return Row(
            number=item.number,
            connection=item.connection,
            method=_storable(item.method),
            host=_storable(self._secrets.host(item.host)),
            path=_storable(self._secrets.path(item.path)),
            t_send_ns=item.at_ns,
            request_headers=self._headers(item.headers),
            contributor=item.contributor,
            consent=item.consent,
        )

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        numbers = []
        for pair in headers:
            number = self._header_numbers.get(pair)
            if number is None:
                name = _text(pair[0]).lower()
                value = self._secrets.header(name, _text(pair[1]))
                number = self._pool.number(json.dumps([name, value], ensure_ascii=True).encode())
                if len(self._header_numbers) > _HEADER_NUMBERS:
                    self._header_numbers.clear()
                self._header_numbers[pair] = number
            numbers.append(number)
        return encode_runs(numbers)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _stamp(wall_ns: int) -> str:
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d}Z"


def _storable(text: str) -> str:
    """Text that SQLite takes: bytes that are no UTF-8 arrive as lone surrogates and are written as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text

"""The reader of a journal: whole, still being written, left by a killed recorder, or damaged at its end."""

from __future__ import annotations

import fcntl
import json
import shutil
import sqlite3
import struct
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from capture.batches import fill_streams
from capture.convert import CONVERTERS, converted
from capture.exchange import Exchange, Gap, Read, SocketMessage
from capture.layout import BODY, FROM_AGENT, SCHEMA, SELECT_EXCHANGES, exchange_crc, is_exchange
from capture.parts import Pack, PartReader, decode_runs
from capture.secret import SecretKind, SeenSecret
from capture.tombstone import hidden_numbers
from capture.wal import lost_wal_bytes

_MISSES_AT_END = 2000  # in a damaged file: rows missing in a row before the table counts as over
_UNREADABLE = (sqlite3.DatabaseError, ValueError, TypeError, KeyError, IndexError, RecursionError)
_SELECT_BATCH = "SELECT exchange, kind, start_ns, times, data, crc FROM reads"
_GAP = (int | None, int, str, int | None)
_MOVE = (int, int, int, int | None)
_OWN_KINDS = frozenset({"paused", "excluded"})  # marks of what was never meant to be written: nothing is lost

type Row = tuple[Any, ...]
type WriterState = Literal["closed", "live", "killed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a journal holds, without its bodies."""

    exchanges: tuple[tuple[str, str, int | None], ...]  # method, path, status
    gaps: int  # places where something was lost
    skipped: int = 0  # requests that were not written on purpose: paused, or of an excluded repository


class _Unread(ValueError):
    """Nothing is wrong with the file itself."""


class JournalReader:
    """Reads one journal; `problems` holds one sentence once something of it turned out to be lost.

    `withheld` says why the file was not read although it may be whole: no right to, no room for a copy, a newer schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self.withheld: str | None = None
        self.schema: int | None = None
        self.state = writer_state(path)
        self.meta: dict[str, str] = {}
        self._damage: str | None = None
        self._salvaged = False
        self._lost = 0
        self._partly = 0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._parts = PartReader(self._pack)
        self.hidden: frozenset[int] = frozenset()
        # Filled by `stored` (rows as `layout` has them).
        self.gaps: defaultdict[int | None, list[Gap]] = defaultdict(list)
        self.erased: list[tuple[int, int]] = []
        self.clock: list[tuple[int, int, int, int | None]] = []
        self._wall_anchor_us = 0
        self._header_parts: dict[int, tuple[str, str]] = {}
        self._database: sqlite3.Connection | None = None
        self._attempt(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        if self._database is not None:
            self._database.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def exchanges(self) -> Iterator[Exchange]:
        """Exchanges in order of send; what cannot be read is left out and counted in `problems`."""
        for row, batches in self.stored():
            exchange = self._exchange(row, batches)
            if exchange is not None:
                yield exchange
        self._report()

    def stored(self) -> Iterator[tuple[Row, list[Row]]]:
        """The rows of each exchange and of its reads, unread but for what tells that rows are missing."""
        if self._database is None:
            return
        last = 0
        if not self._salvaged:
            try:
                # One snapshot: a recorder that still writes would otherwise add exchanges between our questions.
                if not self._database.in_transaction:
                    self._database.execute("BEGIN")
                batches = self._batches()
                self._read_sides()
                for row in self._database.execute(f"{SELECT_EXCHANGES} WHERE id > 0 ORDER BY id"):
                    own = [] if row[0] in self.hidden else [self._batch(number) for number in batches.get(row[0], ())]
                    self._lost += self._missing(last + 1, row[0] - 1)
                    last = row[0]
                    if row[0] not in self.hidden:
                        yield row, own
                self._lost += self._missing(last + 1, self.number("exchanges", last))
            except sqlite3.DatabaseError as fault:
                self._attempt(self._salvage, str(fault))
        if self._salvaged:
            yield from self._salvaged_rows(last)

    def secrets(self) -> Iterator[SeenSecret]:
        """Credentials that the recorder saw."""
        if self._database is None:
            return
        try:
            rows = self._database.execute("SELECT digest, length, kind FROM secrets").fetchall()
        except sqlite3.DatabaseError as fault:
            self._attempt(self._salvage, str(fault))
            return
        for digest, length, kind in rows:
            if isinstance(digest, bytes) and isinstance(length, int) and isinstance(kind, str):
                yield SeenSecret(length=length, digest=digest, kind=cast("SecretKind", kind))

    def tally(self) -> Tally:
        """Counts for a summary; zero where the file does not open."""
        if self._database is None:
            return Tally(exchanges=(), gaps=0)
        try:
            rows = self._database.execute(
                "SELECT id, method, path, status FROM exchanges WHERE id > 0 ORDER BY id"
            ).fetchall()
            kinds = [kind for (kind,) in self._database.execute("SELECT kind FROM gaps")]
        except sqlite3.DatabaseError:
            return Tally(exchanges=(), gaps=0)
        skipped = sum(kind in _OWN_KINDS for kind in kinds)
        lost = sum(kind not in _OWN_KINDS and kind != "credential" for kind in kinds)
        shown = tuple((method, path, status) for number, method, path, status in rows if number not in self.hidden)
        return Tally(exchanges=shown, gaps=lost, skipped=skipped)

    def number(self, name: str, default: int) -> int:
        """A number out of `meta`; the default where it is missing, or damaged."""
        try:
            return int(self.meta.get(name, default))
        except ValueError:
            self._damage = self._damage or f"what it tells of itself is damaged ({name})"
            return default

    def part(self, number: int) -> bytes:
        """One part of the pool; ValueError, KeyError or IndexError where it is damaged or missing."""
        return self._parts.part(number)

    # Opening.

    def _attempt[**P](self, step: Callable[P, object], *given: P.args, **named: P.kwargs) -> None:
        """Say what is in the way of a step, which then has left nothing to read."""
        try:
            step(*given, **named)
            return
        except (_Unread, OSError) as fault:
            reason = str(fault) if isinstance(fault, _Unread) else f"cannot be read ({fault.strerror or fault})"
            self.withheld = f"{self.path}: {reason}"
            self._say(self.withheld)
        except ValueError as fault:
            self._say(f"{self.path}: {fault}")
        self._salvaged = False
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self) -> None:
        try:
            self.hidden = hidden_numbers(self.path)
        except ValueError as fault:
            raise _Unread(str(fault)) from fault
        head = b""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            head = file.read(100)
        if not head:
            return  # a recorder that was killed before its first commit
        if not head.startswith(b"SQLite format 3\0") or len(head) < 100:
            raise ValueError("its beginning is damaged, so nothing of it can be read")
        page = struct.unpack(">H", head[16:18])[0]
        if self.state != "live" and page >= 512 and self.path.stat().st_size % page:
            self._damage = "the file ends inside a page"
        if self.state != "live" and (lost := lost_wal_bytes(Path(f"{self.path}-wal"))):
            self._damage = f"the last {lost} bytes of its write-ahead log are damaged"
        try:
            self._database = _connect(self.path)
            self._read_meta()
        except sqlite3.OperationalError as fault:
            if "malformed" in str(fault):
                self._salvage(str(fault))
            else:  # a folder that we may not write to: SQLite needs its shared-memory file even to read
                self._copy()
                self._read_meta()
        except sqlite3.DatabaseError as fault:
            self._salvage(str(fault))
        try:
            self._convert()
        except sqlite3.DatabaseError as fault:
            self._salvage(str(fault))
            self._convert()
        self._wall_anchor_us = self.number("wall_anchor_us", 0)

    def _read_meta(self) -> None:
        assert self._database is not None
        tables, others = self._database.execute(
            "SELECT count(*), sum(type != 'table' AND sql IS NOT NULL) FROM sqlite_master"
        ).fetchone()
        if others:  # a view could be read without end
            raise ValueError("it holds more than tables, so no recorder wrote it")
        told = self._database.execute("SELECT name, value FROM meta").fetchall() if tables else []
        self.meta = {name: value for name, value in told if isinstance(name, str) and isinstance(value, str)}
        if not tables:  # killed while it made its tables
            self._database.close()
            self._database = None

    def _convert(self) -> None:
        if self._database is None:
            return
        schema = self.schema = self.number("schema", SCHEMA)
        if schema > SCHEMA:
            raise _Unread(f"it has schema {schema}, this agentdyno reads up to {SCHEMA}: install a newer one")
        if schema < min(CONVERTERS):
            raise ValueError(f"it has schema {schema}, which no recorder wrote")
        if schema < SCHEMA:
            copy = converted(self._database, schema)
            self._database.close()
            self._database = copy

    def _copy(self) -> Path:
        self._scratch = tempfile.TemporaryDirectory(prefix="agentdyno-journal-")
        copy = Path(self._scratch.name) / self.path.name
        shutil.copyfile(self.path, copy)
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{self.path}-wal", f"{copy}-wal")
        if self._database is not None:
            self._database.close()
        self._database = _connect(copy)
        return copy

    def _salvage(self, reason: str) -> None:
        """Go over to a private copy in which each row is asked for by itself."""
        self._damage = self._damage or f"the file is damaged ({reason})"
        self._salvaged = True
        copy = self._copy()
        assert self._database is not None
        self._database.close()
        with copy.open("r+b") as file:
            # SQLite refuses a file shorter than its header says; pages of zeros let it read the others.
            page, pages = struct.unpack(">H", file.read(18)[16:])[0] or 512, 0
            file.seek(28)
            pages = struct.unpack(">I", file.read(4))[0]
            page = 65536 if page == 1 else page
            if page >= 512 and pages * page < 1 << 36:
                file.truncate(max(pages * page, copy.stat().st_size))
        self._database = _connect(copy)
        try:
            self._database.execute("PRAGMA writable_schema = ON")
            if not self.meta:
                self._read_meta()
        except sqlite3.DatabaseError as fault:
            self._database.close()
            self._database = None
            raise ValueError(f"its table of contents is damaged, so nothing of it can be read ({fault})") from fault

    def _salvaged_rows(self, last: int) -> Iterator[tuple[Row, list[Row]]]:
        reads: defaultdict[int, list[Row]] = defaultdict(list)
        for row in self._rows_one_by_one("reads", _SELECT_BATCH, 0):
            if isinstance(row[0], int):
                reads[row[0]].append(row)
        self._read_sides()
        expected = last + 1
        for row in self._rows_one_by_one("exchanges", SELECT_EXCHANGES, last):
            batches = reads.pop(row[0], [])
            self._lost += self._missing(expected, row[0] - 1)
            expected = row[0] + 1
            if row[0] not in self.hidden:
                yield row, batches
        self._lost += self._missing(expected, max(self.number("exchanges", 0), 0, *reads))

    def _rows_one_by_one(self, table: str, select: str, last: int) -> Iterator[Row]:
        assert self._database is not None
        number, missing = last, 0
        erased = dict(self.erased) if table == "exchanges" else {}
        while missing < _MISSES_AT_END:
            number += 1
            number = erased.get(number, number - 1) + 1
            try:
                row = self._database.execute(f"{select} WHERE id = ?", (number,)).fetchone()
            except sqlite3.DatabaseError:
                row = None
            if row is None:
                missing += 1
                continue
            missing = 0
            yield row

    def _batches(self) -> dict[int, list[int]]:
        """Numbers of the rows of reads, by exchange. A hole in the numbering is noted as damage."""
        assert self._database is not None
        found: defaultdict[int, list[int]] = defaultdict(list)
        expected = 1
        for number, exchange in self._database.execute("SELECT id, exchange FROM reads ORDER BY id"):
            if number != expected:
                self._damage = self._damage or "some batches of reads are missing"
            expected = number + 1
            found[exchange].append(number)
        return found

    def _batch(self, number: int) -> Row:
        assert self._database is not None
        found: Row = self._database.execute(f"{_SELECT_BATCH} WHERE id = ?", (number,)).fetchone()
        return found

    def _read_sides(self) -> None:
        """What is told of the journal as a whole: marks, the wall clock's movements, the numbers that were erased."""
        assert self._database is not None
        self.gaps.clear()
        self.erased.clear()
        self.clock.clear()
        for query, types, keep in (
            ("SELECT exchange, at_ns, kind, lost_bytes FROM gaps", _GAP, self._keep_gaps),
            ("SELECT first, last FROM erased ORDER BY first", (int, int), self.erased.extend),
            ("SELECT since_ns, at_ns, offset_us, suspended_us FROM clock ORDER BY since_ns", _MOVE, self.clock.extend),
        ):
            try:
                rows = self._database.execute(query).fetchall()
            except sqlite3.DatabaseError:
                if not self._salvaged:
                    raise
            else:
                right = [row for row in rows if all(map(isinstance, row, types))]
                if len(right) < len(rows):
                    self._damage = self._damage or "some of its marks are damaged"
                keep(right)

    def _keep_gaps(self, rows: list[Row]) -> None:
        for number, at_ns, kind, lost in rows:
            self.gaps[number].append(Gap(at_ns=at_ns, kind=kind, lost_bytes=lost))

    def _missing(self, first: int, last: int) -> int:
        """How many of these numbers were never erased, so that their exchanges are lost."""
        if self.state == "live" and not self._salvaged:
            return 0  # the writer may hold one until it knows whether it is excluded
        gone = sum(max(0, min(last, end) - max(first, start) + 1) for start, end in self.erased)
        return max(0, last - first + 1 - gone)

    def _offset_us(self, at_ns: int) -> int:
        at = bisect_right(self.clock, at_ns, key=lambda movement: movement[0])
        return self.clock[at - 1][2] if at else 0

    # Building.

    def _exchange(self, row: Row, batches: list[Row]) -> Exchange | None:
        (number, connection, method, host, path, t_send, request_headers, contributor, consent,
         t_sent, request_bytes, recipe, decoded_bytes, _, t_headers, status, response_headers, t_end, outcome, error,
         crc) = row  # fmt: skip
        own = list(self.gaps.get(number, ()))
        whole = True
        if not is_exchange(row) or crc not in (None, exchange_crc(row[:-1])):
            self._lost += 1
            return None
        try:
            sent_headers = self._headers(request_headers)
            got_headers = self._headers(response_headers) if response_headers is not None else ()
        except _UNREADABLE:
            self._lost += 1
            return None
        try:
            size = (request_bytes if decoded_bytes is None else decoded_bytes) or 0
            body = self._parts.body(recipe, size) if recipe or size else b""
        except _UNREADABLE:
            body, whole = b"", False
            own.append(Gap(at_ns=t_sent or t_send, kind="disk", lost_bytes=request_bytes))
        streams: dict[int, list[Read]] = {}
        try:
            fill_streams(batches, streams)
        except _UNREADABLE:
            whole = False
            own.append(Gap(at_ns=t_end or t_headers or t_send, kind="disk", lost_bytes=None))
        if not whole:
            self._partly += 1
        reads = tuple(streams.get(BODY, ()))
        if outcome is None and self.state == "killed":
            last = max(t for t in (t_send, t_sent, t_headers, *(r.at_ns for r in reads[-1:])) if t is not None)
            own += [gap for gap in self.gaps.get(None, ()) if gap.kind not in _OWN_KINDS] or [
                Gap(at_ns=last, kind="killed", lost_bytes=None)
            ]
        messages = [
            SocketMessage(at_ns=read.at_ns, from_agent=kind == FROM_AGENT, data=read.data)
            for kind, found in streams.items()
            if kind != BODY
            for read in found
        ]
        journal = self.path.name.removeprefix("journal-").removesuffix(".sqlite")
        return Exchange(
            exchange_id=f"{journal}-{number}",
            connection_id=f"{journal}-{connection}",
            wall_anchor_us=self._wall_anchor_us,
            method=method,
            host=host,
            path=path,
            request_headers=sent_headers,
            request_body=body,
            t_send_ns=t_send,
            t_sent_ns=t_sent,
            status=status,
            response_headers=got_headers,
            t_headers_ns=t_headers,
            reads=reads,
            t_end_ns=t_end,
            outcome=outcome or "open",
            error=error,
            gaps=tuple(own),
            messages=tuple(sorted(messages, key=lambda message: message.at_ns)),
            mode=self.meta.get("mode"),
            contributor=contributor,
            consent=consent,
            request_decoded=decoded_bytes is not None,
            request_bytes=request_bytes,
            wall_offset_us=self._offset_us(t_send),
            wall_offset_end_us=None if t_end is None else self._offset_us(t_end),
            agent=self.meta.get("agent"),
            agent_version=self.meta.get("agent_version"),
        )

    def _headers(self, recipe: bytes) -> tuple[tuple[str, str], ...]:
        headers = []
        for number in decode_runs(recipe):
            pair = self._header_parts.get(number)
            if pair is None:
                name, value = json.loads(self.part(number))
                if not isinstance(name, str) or not isinstance(value, str):
                    raise ValueError("a header is no text")
                pair = self._header_parts[number] = (name, value)
            headers.append(pair)
        return tuple(headers)

    def _pack(self, number: int) -> Pack | None:
        assert self._database is not None
        try:
            row = self._database.execute(
                "SELECT first_part, sizes, digests, data FROM packs WHERE first_part <= ? "
                "ORDER BY first_part DESC LIMIT 1",
                (number,),
            ).fetchone()
        except (sqlite3.DatabaseError, OverflowError) as fault:
            raise ValueError(f"part {number} cannot be read ({fault})") from fault
        return None if row is None else Pack(first_part=row[0], sizes=row[1], digests=row[2], data=row[3])

    def _report(self) -> None:
        if self._database is None or (self._damage is None and not self._lost and not self._partly):
            return
        lost = f"{self._lost} exchanges are lost" if self._lost else "whatever came after the damage is lost"
        partly = f", {self._partly} are incomplete" if self._partly else ""
        reason = self._damage or "some of its blocks are damaged"
        self._say(f"{self.path}: {reason}; {lost}{partly}, the others were read")

    def _say(self, sentence: str) -> None:
        if sentence not in self.problems:
            self.problems.append(sentence)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def writer_state(path: Path) -> WriterState:
    """A writer holds its lock file while it lives and removes it when it ends well."""
    try:
        with path.with_suffix(".lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return "live"
            return "killed"
    except OSError:
        return "closed"

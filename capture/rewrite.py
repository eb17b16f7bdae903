"""A journal copied without some of its exchanges: row by row, with only the parts that the others still need."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from capture.batches import unpack_batches
from capture.layout import (
    BALLAST,
    EXCHANGE_COLUMNS,
    INSERT_CLOCK,
    INSERT_ERASED,
    INSERT_EXCHANGE,
    INSERT_GAP,
    INSERT_PACK,
    INSERT_READS,
    INSERT_SECRET,
    SCHEMA,
    TABLES,
    exchange_crc,
    is_exchange,
)
from capture.parts import PartPool, decode_runs, encode_runs
from capture.reader import JournalReader, Row

DRAFT = ".draft-"
"""Begins the names of folders in a store in which a journal is written anew."""
_LOCK = ".erase.lock"
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError)
_AT = {name: index for index, name in enumerate(EXCHANGE_COLUMNS)}
_COMMIT_EVERY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What went into the copy."""

    exchanges: int
    cut: int  # exchanges of which a part could not be read; the copy marks them


@contextmanager
def rewriting(store_path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Be the only process that writes journals of this store anew; without a wait False where another one does."""
    descriptor = os.open(store_path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def copy_journal(
    reader: JournalReader, target: Path, *, drop: frozenset[int] = frozenset(), meta: dict[str, str] | None = None
) -> Copied:
    """Write what `reader` can read into a new file, without the exchanges in `drop`; OSError where it cannot.

    Numbers stay as they are: the copy reads back as the original does, less what was dropped or damaged. What is not
    in the copy counts as erased, and is missed no more; `meta` is added to what is told of the journal.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    database = sqlite3.connect(target, isolation_level=None)
    try:
        # The file gets its name only once it is whole, so a torn one is never read.
        database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES + BALLAST)
        copied = _Copy(reader, database, drop).run(meta or {})
    except sqlite3.Error as fault:
        raise OSError(f"cannot write {target}: {fault}") from fault
    finally:
        database.close()
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return copied


class _Copy:
    def __init__(self, reader: JournalReader, database: sqlite3.Connection, drop: frozenset[int]) -> None:
        self._reader = reader
        self._database = database
        self._drop = drop
        self._pool = PartPool()
        self._numbers: dict[int, int] = {}
        self._cut = 0

    def run(self, meta: dict[str, str]) -> Copied:
        database, reader = self._database, self._reader
        database.execute("BEGIN")
        kept: set[int] = set()
        last = reader.number("exchanges", 0)
        for row, batches in reader.stored():
            last = max(last, row[0])
            if row[0] in self._drop:
                continue
            if self._exchange(row, batches):
                kept.add(row[0])
            if len(kept) % _COMMIT_EVERY == 0:
                self._packs()
        self._packs()
        for number, gaps in reader.gaps.items():
            if number is None or number in kept:
                database.executemany(INSERT_GAP, [(number, gap.at_ns, gap.kind, gap.lost_bytes) for gap in gaps])
        database.executemany(INSERT_CLOCK, reader.clock)
        database.executemany(INSERT_ERASED, _holes(kept, last))
        for secret in reader.secrets():
            database.execute(INSERT_SECRET, (secret.digest, secret.length, secret.kind))
        told = {**reader.meta, "schema": str(SCHEMA), **meta}
        database.executemany("INSERT INTO meta VALUES (?, ?)", told.items())
        database.execute("COMMIT")
        return Copied(exchanges=len(kept), cut=self._cut)

    def _exchange(self, row: Row, batches: list[Row]) -> bool:
        values = list(row)
        if not is_exchange(row) or row[_AT["crc"]] not in (None, exchange_crc(row[:-1])):
            return False
        try:
            for name in ("request_headers", "response_headers"):
                values[_AT[name]] = self._recipe(row[_AT[name]])
        except _UNREADABLE:
            return False
        cut = False
        try:
            values[_AT["request_body"]] = self._recipe(row[_AT["request_body"]])
        except _UNREADABLE:
            values[_AT["request_body"]] = None
            values[_AT["request_bytes"]] = values[_AT["decoded_bytes"]] = None
            at_ns = row[_AT["t_sent_ns"]] or row[_AT["t_send_ns"]]
            self._database.execute(INSERT_GAP, (row[0], at_ns, "disk", row[_AT["request_bytes"]]))
            cut = True
        values[-1] = exchange_crc(values[:-1])
        self._database.execute(INSERT_EXCHANGE, values)
        try:
            for batch, unpacked in zip(batches, unpack_batches(batches), strict=True):
                self._database.execute(INSERT_READS, (*batch[:-1], unpacked.crc))
        except ValueError:
            at_ns = row[_AT["t_end_ns"]] or row[_AT["t_headers_ns"]] or row[_AT["t_send_ns"]]
            self._database.execute(INSERT_GAP, (row[0], at_ns, "disk", None))
            cut = True
        self._cut += cut
        return True

    def _recipe(self, recipe: bytes | None) -> bytes | None:
        if not recipe:
            return recipe
        numbers = []
        for old in decode_runs(recipe):
            new = self._numbers.get(old)
            if new is None:
                new = self._numbers[old] = self._pool.number(self._reader.part(old))
            numbers.append(new)
        return encode_runs(numbers)

    def _packs(self) -> None:
        self._database.executemany(
            INSERT_PACK, [(p.first_part, p.sizes, p.digests, p.data) for p in self._pool.take_packs()]
        )


def _holes(kept: set[int], last: int) -> Iterator[tuple[int, int]]:
    """Runs of the numbers up to `last` that are not kept."""
    expected = 1
    for number in (*sorted(kept), last + 1):
        if expected < number:
            yield expected, number - 1
        expected = number + 1

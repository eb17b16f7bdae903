"""Converters of journals from older schemas, each one step; they run on a copy in memory.

A journal on disk is never changed by reading it. To change the schema: raise `layout.SCHEMA`, add the step from the old
number here, and add a journal that the old code wrote to the tests.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from capture.layout import SCHEMA


def _from_1_to_2(database: sqlite3.Connection) -> None:
    """People, decoded bodies, checksums, the wall clock and erased runs; schema 1 knew none of them."""
    for column in ("contributor TEXT", "consent TEXT", "decoded_bytes INTEGER", "wire_digest BLOB", "crc INTEGER"):
        database.execute(f"ALTER TABLE exchanges ADD COLUMN {column}")
    database.execute("ALTER TABLE reads ADD COLUMN crc INTEGER")
    database.execute(
        "CREATE TABLE clock (id INTEGER PRIMARY KEY, since_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, "
        "offset_us INTEGER NOT NULL, suspended_us INTEGER)"
    )
    database.execute("CREATE TABLE erased (first INTEGER PRIMARY KEY, last INTEGER NOT NULL)")


CONVERTERS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1_to_2}
"""Step from schema n to n + 1."""


def converted(database: sqlite3.Connection, schema: int) -> sqlite3.Connection:
    """A copy in memory in today's schema; sqlite3.DatabaseError where the original cannot be copied."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        database.backup(copy)
        for step in range(schema, SCHEMA):
            CONVERTERS[step](copy)
    except BaseException:
        copy.close()
        raise
    return copy

"""How a journal lies on disk: tables of schema 2, and how the times of reads are packed.

`exchanges` has one row each; `reads` batches of one exchange's reads, their data one zstd stream over the batches of
an exchange; `packs` new parts of bodies and headers (see `parts`); `gaps`; `clock` movements of the wall clock against
the monotonic one; `erased` runs of exchange numbers that were deleted or never used; `secrets`; `meta`. Rows of the
two large tables carry a CRC-32, because SQLite keeps no checksum of its own and a flipped bit would be read back as if
it was sent.
"""

from __future__ import annotations

import operator
import struct
import zlib
from collections.abc import Iterable
from types import NoneType

SCHEMA = 2

BODY, FROM_AGENT, FROM_UPSTREAM = 0, 1, 2
"""Kinds of reads: response body; WebSocket messages of the agent and of the upstream."""

EXCHANGE_COLUMNS = (
    "id", "connection", "method", "host", "path", "t_send_ns", "request_headers", "contributor", "consent",
    "t_sent_ns", "request_bytes", "request_body", "decoded_bytes", "wire_digest",
    "t_headers_ns", "status", "response_headers", "t_end_ns", "outcome", "error", "crc",
)  # fmt: skip
"""`request_bytes` is the length on the wire; `decoded_bytes` that of the kept body where it was decoded, with
`wire_digest`, the BLAKE2b (16 bytes) of what was on the wire."""

_FIXED_AT_SEND = 9  # columns that never change once an exchange is sent

LARGEST_BYTES = 256 << 20
"""A recorder's queue holds less, so no body, pack or batch is larger: one that says so was made to fill a memory."""

_NUMBER, _TEXT, _BYTES = (int,), (str,), (bytes,)
_EXCHANGE_TYPES = (
    _NUMBER, _TEXT, _TEXT, _TEXT, _TEXT, _NUMBER, _BYTES, (str, NoneType), (str, NoneType),
    (int, NoneType), (int, NoneType), (bytes, NoneType), (int, NoneType), (bytes, NoneType),
    (int, NoneType), (int, NoneType), (bytes, NoneType), (int, NoneType), (str, NoneType), (str, NoneType),
    (int, NoneType),
)  # fmt: skip
_BATCH_TYPES = (_NUMBER, _NUMBER, _NUMBER, _BYTES, _BYTES, (int, NoneType))

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE exchanges (
  id INTEGER PRIMARY KEY, connection TEXT NOT NULL, method TEXT NOT NULL, host TEXT NOT NULL, path TEXT NOT NULL,
  t_send_ns INTEGER NOT NULL, request_headers BLOB NOT NULL, contributor TEXT, consent TEXT,
  t_sent_ns INTEGER, request_bytes INTEGER, request_body BLOB, decoded_bytes INTEGER, wire_digest BLOB,
  t_headers_ns INTEGER, status INTEGER, response_headers BLOB,
  t_end_ns INTEGER, outcome TEXT, error TEXT, crc INTEGER);
CREATE TABLE reads (
  id INTEGER PRIMARY KEY, exchange INTEGER NOT NULL, kind INTEGER NOT NULL, start_ns INTEGER NOT NULL,
  times BLOB NOT NULL, data BLOB NOT NULL, crc INTEGER);
CREATE TABLE packs (first_part INTEGER PRIMARY KEY, sizes BLOB NOT NULL, digests BLOB NOT NULL, data BLOB NOT NULL);
CREATE TABLE gaps (
  id INTEGER PRIMARY KEY, exchange INTEGER, at_ns INTEGER NOT NULL, kind TEXT NOT NULL, lost_bytes INTEGER);
CREATE TABLE clock (
  id INTEGER PRIMARY KEY, since_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, offset_us INTEGER NOT NULL,
  suspended_us INTEGER);
CREATE TABLE erased (first INTEGER PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE secrets (digest BLOB PRIMARY KEY, length INTEGER NOT NULL, kind TEXT NOT NULL) WITHOUT ROWID;
"""

# Rows of exchanges are small, so their table would stay in its first page for long and then move to a page near the
# file's end, where a damaged tail would take them all. Two rows without meaning make it grow leaf by leaf at once.
BALLAST = """
INSERT INTO exchanges (id, connection, method, host, path, t_send_ns, request_headers)
VALUES (-2, '', '', '', '', 0, zeroblob(3000)), (-1, '', '', '', '', 0, zeroblob(3000));
"""

SELECT_EXCHANGES = f"SELECT {', '.join(EXCHANGE_COLUMNS)} FROM exchanges"  # noqa: S608
INSERT_EXCHANGE = f"INSERT INTO exchanges VALUES ({', '.join('?' * len(EXCHANGE_COLUMNS))})"  # noqa: S608
UPSERT_EXCHANGE = f"{INSERT_EXCHANGE} ON CONFLICT (id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in EXCHANGE_COLUMNS[_FIXED_AT_SEND:]
)
INSERT_READS = "INSERT INTO reads (exchange, kind, start_ns, times, data, crc) VALUES (?, ?, ?, ?, ?, ?)"
INSERT_PACK = "INSERT INTO packs VALUES (?, ?, ?, ?)"
INSERT_GAP = "INSERT INTO gaps (exchange, at_ns, kind, lost_bytes) VALUES (?, ?, ?, ?)"
INSERT_CLOCK = "INSERT INTO clock (since_ns, at_ns, offset_us, suspended_us) VALUES (?, ?, ?, ?)"
INSERT_ERASED = "INSERT INTO erased VALUES (?, ?)"
INSERT_SECRET = "INSERT OR IGNORE INTO secrets VALUES (?, ?, ?)"  # noqa: S105 - a statement, no password


def is_exchange(row: tuple[object, ...]) -> bool:
    """Whether the columns of `exchanges` hold what belongs there; SQLite keeps any type in any of them."""
    return all(map(isinstance, row, _EXCHANGE_TYPES))


def is_batch(row: tuple[object, ...]) -> bool:
    """The same for `reads`, without its own number."""
    return all(map(isinstance, row, _BATCH_TYPES))


def exchange_crc(values: Iterable[object]) -> int:
    """The checksum of a row of `exchanges`, from its values without the checksum itself."""
    return zlib.crc32(b"".join([value if isinstance(value, bytes) else repr(value).encode() for value in values]))


def reads_crc(exchange: int, kind: int, start_ns: int, times: bytes, data: bytes) -> int:
    """The checksum of a batch of reads; `data` as it was on the wire, before compression."""
    return zlib.crc32(data, zlib.crc32(times, zlib.crc32(b"%d %d %d" % (exchange, kind, start_ns))))


def encode_times(times_ns: list[int], sizes: list[int]) -> bytes:
    """Steps between reads and their sizes: a format byte, then u32 ns and u16 bytes each; u64 and u32 if need be."""
    steps = [0, *map(operator.sub, times_ns[1:], times_ns)]
    if min(steps) < 0:
        steps = [max(0, step) for step in steps]
    count = len(sizes)
    if max(steps) < 1 << 32 and max(sizes) < 1 << 16:
        return struct.pack(f"<B{count}I{count}H", 0, *steps, *sizes)
    return struct.pack(f"<B{count}Q{count}I", 1, *steps, *sizes)


def decode_times(blob: bytes) -> tuple[list[int], list[int]]:
    """Steps in ns and sizes in bytes, as `encode_times` wrote them."""
    body = len(blob) - 1
    if blob[0] == 0:
        count = body // 6
        values = struct.unpack(f"<{count}I{count}H", blob[1:])
    else:
        count = body // 12
        values = struct.unpack(f"<{count}Q{count}I", blob[1:])
    return list(values[:count]), list(values[count:])

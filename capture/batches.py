"""Batches of reads unpacked, never beyond the size they state: a journal may be damaged, or made to fill a memory."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import zstandard

from capture.exchange import Read
from capture.layout import LARGEST_BYTES, decode_times, is_batch, reads_crc

_PIECE_BYTES = 4096  # of zstd, which gives at most 128 KiB for each 4 of them


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of `reads`."""

    kind: int
    start_ns: int
    steps_ns: list[int]  # from one read to the next, the first 0
    sizes: list[int]
    data: bytes  # of all its reads, as on the wire
    crc: int


def unpack_batches(rows: Iterable[tuple[Any, ...]]) -> Iterator[Batch]:
    """The batches of one exchange, in order; ValueError at the first one that is not what was written."""
    decoders: dict[int, zstandard.ZstdDecompressionObj] = {}
    for row in rows:
        if not is_batch(row):
            raise ValueError("a batch of reads holds what does not belong there")
        exchange, kind, start_ns, times, packed, crc = row
        if kind not in decoders:
            decoders[kind] = zstandard.ZstdDecompressor().decompressobj()
        try:
            steps_ns, sizes = decode_times(times)
            data = _unpacked(decoders[kind], packed, sum(sizes))
        except (zstandard.ZstdError, struct.error, IndexError) as fault:
            raise ValueError(f"a batch of reads cannot be unpacked ({fault})") from fault
        right = reads_crc(exchange, kind, start_ns, times, data)
        if crc not in (None, right):
            raise ValueError("a batch of reads is not what was written")
        yield Batch(kind, start_ns, steps_ns, sizes, data, right)


def fill_streams(rows: Iterable[tuple[Any, ...]], streams: dict[int, list[Read]]) -> None:
    """The reads of one exchange by kind, as far as `unpack_batches` gets; ValueError with what came before kept."""
    for batch in unpack_batches(rows):
        at, at_ns = 0, batch.start_ns
        found = streams.setdefault(batch.kind, [])
        for step, size in zip(batch.steps_ns, batch.sizes, strict=True):
            at_ns += step
            found.append(Read(at_ns=at_ns, data=batch.data[at : at + size]))
            at += size


def _unpacked(decoder: zstandard.ZstdDecompressionObj, packed: bytes, size: int) -> bytes:
    pieces: list[bytes] = []
    left = size
    for at in range(0, len(packed), _PIECE_BYTES) if size <= LARGEST_BYTES else ():
        pieces.append(decoder.decompress(packed[at : at + _PIECE_BYTES]))
        left -= len(pieces[-1])
        if left < 0:
            break
    if left:
        raise ValueError("a batch of reads has another length than was written")
    return b"".join(pieces)

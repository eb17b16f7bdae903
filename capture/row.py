"""An exchange that has not ended, as the rows of the journal that it becomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import zstandard

from capture.exchange import Outcome
from capture.layout import encode_times, exchange_crc, reads_crc

# A window of 256 KiB holds what a stream repeats (its event frames) and keeps 64 open streams small in memory.
_STREAM = zstandard.ZstdCompressionParameters.from_level(3, window_log=18, write_content_size=False)
type Reads = tuple[list[int], list[bytes]]  # when, monotonic ns, and what
_BATCH_BYTES = 4 << 20  # reads of one commit that are joined and compressed at once


@dataclass(slots=True)
class _Stream:
    context: zstandard.ZstdCompressor
    writer: zstandard.ZstdCompressionObj


class Contexts:
    """zstd contexts lent to open streams, since making one costs more than a small response."""

    def __init__(self) -> None:
        self._free: list[zstandard.ZstdCompressor] = []

    def take(self) -> zstandard.ZstdCompressor:
        """A free context, or a new one."""
        return self._free.pop() if self._free else zstandard.ZstdCompressor(compression_params=_STREAM)

    def give(self, context: zstandard.ZstdCompressor) -> None:
        """Take one back."""
        self._free.append(context)


@dataclass(slots=True)
class Row:
    """What the writer's thread knows of an exchange; `reads` are those since the last commit, by kind."""

    number: int
    connection: str
    method: str
    host: str
    path: str
    t_send_ns: int
    request_headers: bytes
    contributor: str | None
    consent: str | None
    t_sent_ns: int | None = None
    request_bytes: int | None = None
    request_body: bytes | None = None
    decoded_bytes: int | None = None
    wire_digest: bytes | None = None
    t_headers_ns: int | None = None
    status: int | None = None
    response_headers: bytes | None = None
    t_end_ns: int | None = None
    outcome: Outcome | None = None
    error: str | None = None
    changed: bool = True
    reads: dict[int, Reads] = field(default_factory=dict)
    streams: dict[int, _Stream] = field(default_factory=dict)

    def values(self) -> tuple[object, ...]:
        """The columns of `exchanges`."""
        values = (
            self.number, self.connection, self.method, self.host, self.path, self.t_send_ns, self.request_headers,
            self.contributor, self.consent, self.t_sent_ns, self.request_bytes, self.request_body, self.decoded_bytes,
            self.wire_digest, self.t_headers_ns, self.status, self.response_headers, self.t_end_ns, self.outcome,
            self.error,
        )  # fmt: skip
        return (*values, exchange_crc(values))

    def read(self, kind: int, at_ns: int, data: bytes) -> None:
        """Take one read."""
        reads = self.reads.get(kind)
        if reads is None:
            reads = self.reads[kind] = ([], [])
        reads[0].append(at_ns)
        reads[1].append(data)

    def batches(self, contexts: Contexts) -> Iterator[tuple[object, ...]]:
        """Rows of `reads` for what came since the last commit."""
        ended = self.outcome is not None
        for kind, (all_times, all_data) in self.reads.items():
            sizes = list(map(len, all_data))
            cuts = _cuts(sizes)
            for start, stop in itertools.pairwise(cuts):
                joined = b"".join(all_data[start:stop])
                stream = self.streams.get(kind)
                if stream is None and ended and len(cuts) == 2:
                    context = contexts.take()
                    data = context.compress(joined)
                    contexts.give(context)
                else:
                    if stream is None:
                        context = contexts.take()
                        stream = self.streams[kind] = _Stream(context, context.compressobj())
                    data = stream.writer.compress(joined) + stream.writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
                times, start_ns = encode_times(all_times[start:stop], sizes[start:stop]), all_times[start]
                yield self.number, kind, start_ns, times, data, reads_crc(self.number, kind, start_ns, times, joined)
        self.reads.clear()
        if ended:
            # The frame's end is not written: a stream cut by a kill and one that ended read alike.
            for stream in self.streams.values():
                contexts.give(stream.context)
            self.streams.clear()


def _cuts(sizes: list[int]) -> list[int]:
    """Where to cut reads into batches: 0, and the end of each."""
    if sum(sizes) <= _BATCH_BYTES:
        return [0, len(sizes)]
    cuts, size = [0], 0
    for index, own in enumerate(sizes, 1):
        size += own
        if size >= _BATCH_BYTES:
            cuts.append(index)
            size = 0
    return cuts if cuts[-1] == len(sizes) else [*cuts, len(sizes)]

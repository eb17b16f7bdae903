"""Content encodings of HTTP bodies, undone piece by piece, so that each read keeps its own time.

A few kilobytes can unpack to gigabytes: no step gives more than a bound, and none makes much more before it is told so.
"""

from __future__ import annotations

import zlib
from typing import Protocol

LARGEST_DECODED = 256 * 1024 * 1024
"""Bytes that a decoder gives at most: far above any prompt, far below any memory."""

_SLICE = 1024  # bytes fed to zstd at once: it has no bound of its own, and four bytes may become 128 KiB


class EncodingFault(ValueError):
    """A body does not decode as its content-encoding says, or to more than any body should hold."""


class _Step(Protocol):
    def feed(self, data: bytes, limit: int) -> bytes:
        """What `data` adds; raises EncodingFault. Stops soon after `limit` bytes."""


class _Zlib:
    """gzip (several members in a row too) and deflate, with or without the zlib header."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._head = b""
        self._object = zlib.decompressobj(31) if gzip else None

    def feed(self, data: bytes, limit: int) -> bytes:
        if self._object is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            data = self._head
            # Many servers call a bare deflate stream "deflate", although RFC 9110 8.4.1.2 asks for the zlib wrapper,
            # whose first two bytes RFC 1950 2.2 makes recognisable.
            wrapped = data[0] & 0x0F == 8 and (data[0] * 256 + data[1]) % 31 == 0
            self._object = zlib.decompressobj(15 if wrapped else -15)
        try:
            pieces = [self._object.decompress(data, limit + 1)]
            size = len(pieces[0])
            while self._gzip and self._object.eof and self._object.unused_data.startswith(b"\x1f\x8b"):
                rest = self._object.unused_data
                self._object = zlib.decompressobj(31)
                pieces.append(self._object.decompress(rest, max(1, limit + 1 - size)))
                size += len(pieces[-1])
                if size > limit:
                    break
        except zlib.error as fault:
            raise EncodingFault(f"zlib: {fault}") from fault
        return b"".join(pieces)


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._error: type[Exception] = brotli.error
        self._object = brotli.Decompressor()

    def feed(self, data: bytes, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            while size <= limit:
                piece = bytes(self._object.process(data, output_buffer_limit=min(limit + 1, 1 << 20)))
                data = b""
                pieces.append(piece)
                size += len(piece)
                if self._object.can_accept_more_data() or self._object.is_finished():
                    break
        except self._error as fault:
            raise EncodingFault(f"brotli: {fault}") from fault
        return b"".join(pieces)


class _Zstandard:
    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._object = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)

    def feed(self, data: bytes, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            for start in range(0, len(data), _SLICE):
                pieces.append(self._object.decompress(data[start : start + _SLICE]))
                size += len(pieces[-1])
                if size > limit:
                    break
        except self._error as fault:
            raise EncodingFault(f"zstd: {fault}") from fault
        return b"".join(pieces)


def _step(name: str) -> _Step:
    match name:
        case "gzip" | "x-gzip":
            return _Zlib(gzip=True)
        case "deflate":
            return _Zlib(gzip=False)
        case "br":
            return _Brotli()
        case "zstd":
            return _Zstandard()
        case _:
            raise EncodingFault(f"content-encoding {name!r} is not one of gzip, deflate, br, zstd")


class BodyDecoder:
    """Undoes a content-encoding header (also a list of several) on a stream of pieces.

    After the first fault the decoder gives no more bytes; `fault` says why. `limit` bounds the decoded bytes.
    """

    def __init__(self, content_encoding: str | None, *, limit: int = LARGEST_DECODED) -> None:
        self.fault: str | None = None
        self._limit = limit
        self._steps: list[_Step] = []
        names = [name.strip().lower() for name in (content_encoding or "").split(",")]
        try:
            # The header lists encodings in the order they were applied: undo the last one first.
            self._steps = [_step(name) for name in reversed(names) if name and name != "identity"]
        except EncodingFault as fault:
            self.fault = str(fault)
        self._given = [0] * len(self._steps)

    def feed(self, data: bytes) -> bytes:
        """Return what this piece adds to the decoded body; b"" once `fault` is set."""
        if self.fault is not None:
            return b""
        try:
            for number, step in enumerate(self._steps):
                data = step.feed(data, self._limit - self._given[number])
                self._given[number] += len(data)
                if self._given[number] > self._limit:
                    self.fault = f"more than {self._limit} bytes when decoded: left as it came"
                    return b""
        except EncodingFault as fault:
            self.fault = str(fault)
            return b""
        return data

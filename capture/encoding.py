"""Content encodings of HTTP bodies, undone piece by piece, so that each read keeps its own time."""

from __future__ import annotations

import zlib
from typing import Protocol


class _Step(Protocol):
    def feed(self, data: bytes) -> bytes: ...


class EncodingFault(ValueError):
    """A body does not decode as its content-encoding says."""


class _Zlib:
    """gzip (several members in a row too) and deflate, with or without the zlib header."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._head = b""
        self._object = zlib.decompressobj(31) if gzip else None

    def feed(self, data: bytes) -> bytes:
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
            out = self._object.decompress(data)
            while self._gzip and self._object.eof and self._object.unused_data.startswith(b"\x1f\x8b"):
                rest = self._object.unused_data
                self._object = zlib.decompressobj(31)
                out += self._object.decompress(rest)
        except zlib.error as fault:
            raise EncodingFault(f"zlib: {fault}") from fault
        return out


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._error: type[Exception] = brotli.error
        self._object = brotli.Decompressor()

    def feed(self, data: bytes) -> bytes:
        try:
            return bytes(self._object.process(data))
        except self._error as fault:
            raise EncodingFault(f"brotli: {fault}") from fault


class _Zstandard:
    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._object = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)

    def feed(self, data: bytes) -> bytes:
        try:
            return self._object.decompress(data)
        except self._error as fault:
            raise EncodingFault(f"zstd: {fault}") from fault


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

    After the first fault the decoder gives no more bytes; `fault` says why.
    """

    def __init__(self, content_encoding: str | None) -> None:
        self.fault: str | None = None
        self._steps: list[_Step] = []
        names = [name.strip().lower() for name in (content_encoding or "").split(",")]
        try:
            # The header lists encodings in the order they were applied: undo the last one first.
            self._steps = [_step(name) for name in reversed(names) if name and name != "identity"]
        except EncodingFault as fault:
            self.fault = str(fault)

    def feed(self, data: bytes) -> bytes:
        """Return what this piece adds to the decoded body; b"" once `fault` is set."""
        if self.fault is not None:
            return b""
        try:
            for step in self._steps:
                data = step.feed(data)
        except EncodingFault as fault:
            self.fault = str(fault)
            return b""
        return data

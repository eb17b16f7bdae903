"""A whole request body without its content-encoding, if it decodes to its very end within bounds."""

from __future__ import annotations

import io
import zlib

LARGEST_BYTES = 64 << 20
"""A body that grows beyond this is kept as it was sent: a few bytes can be made to decode to gigabytes."""


def decode_whole(body: bytes, content_encoding: str, largest_bytes: int = LARGEST_BYTES) -> bytes | None:
    """The decoded body; None where it is cut, damaged, too large, followed by other bytes or in another encoding.

    `content_encoding` is the header's value, also a list of several (RFC 9110 8.4).
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    data: bytes | None = body
    for name in reversed([name for name in names if name and name != "identity"]):
        if not data:
            return None
        match name:
            case "gzip" | "x-gzip":
                data = _gunzip(data, largest_bytes)
            case "deflate":
                data = _inflate(data, 15, largest_bytes) or _inflate(data, -15, largest_bytes)
            case "zstd":
                data = _unzstd(data, largest_bytes)
            case "br":
                data = _unbrotli(data, largest_bytes)
            case _:
                return None
    return data


def _inflate(data: bytes, window: int, largest_bytes: int) -> bytes | None:
    decoder = zlib.decompressobj(window)
    try:
        out = decoder.decompress(data, largest_bytes + 1)
    except zlib.error:
        return None
    return out if decoder.eof and not decoder.unused_data and len(out) <= largest_bytes else None


def _gunzip(data: bytes, largest_bytes: int) -> bytes | None:
    out = b""
    while data:  # members may follow one another (RFC 1952 2.2)
        decoder = zlib.decompressobj(31)
        try:
            out += decoder.decompress(data, largest_bytes + 1 - len(out))
        except zlib.error:
            return None
        if not decoder.eof or len(out) > largest_bytes:
            return None
        data = decoder.unused_data
    return out


def _unzstd(data: bytes, largest_bytes: int) -> bytes | None:
    import zstandard

    out = io.BytesIO()
    try:
        while data:  # so may frames (RFC 8878 3.1)
            frame = zstandard.get_frame_parameters(data)
            if frame.window_size > largest_bytes:
                return None
            decoder = zstandard.ZstdDecompressor().decompressobj()
            at = 0
            while not decoder.eof:
                # 1 KiB of input gives at most about 350 blocks of 128 KiB.
                if at >= len(data) or out.tell() > largest_bytes:
                    return None
                out.write(decoder.decompress(data[at : at + 1024]))
                at += 1024
            data = decoder.unused_data + data[at:]
    except zstandard.ZstdError:
        return None
    return out.getvalue() if out.tell() <= largest_bytes else None


def _unbrotli(data: bytes, largest_bytes: int) -> bytes | None:
    import brotli

    decoder = brotli.Decompressor()
    out = bytearray()
    piece = data
    try:
        while not decoder.is_finished():
            more = decoder.process(piece, output_buffer_limit=1 << 20)
            if (not more and not piece) or len(out) > largest_bytes:
                return None
            out += more
            piece = b""
    except brotli.error:
        return None
    return bytes(out) if len(out) <= largest_bytes else None

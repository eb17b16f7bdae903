"""HTTP/1.1 for the scripted server: just enough to read requests and to write answers at a stated pace."""

from __future__ import annotations

import asyncio
import http
import time
from dataclasses import dataclass

from capture.scripted_log import Times

LARGEST_HEAD = 256 * 1024
_LARGEST_BODY = 512 * 1024 * 1024
_KNOWN_STATUS = {status.value for status in http.HTTPStatus}


class Hangup(Exception):
    """The client left."""


@dataclass(slots=True, kw_only=True)
class Head:
    """A request's first line and headers (names lower case), and when they had come (monotonic ns)."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    at_ns: int

    def value(self, name: str) -> str:
        """First value of a header, or nothing."""
        return next((value for key, value in self.headers if key == name), "")


def read_head(data: bytes) -> Head:
    """Reads a request head. Raises ValueError where the first line is none."""
    at_ns = time.monotonic_ns()
    first, *lines = data.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers.append((name.strip().lower(), value.strip()))
    return Head(method=method, path=path, headers=headers, at_ns=at_ns)


async def read_body(reader: asyncio.StreamReader, head: Head) -> bytes:
    """Reads the body that a head announces, still content-encoded."""
    if head.value("transfer-encoding").lower() == "chunked":
        chunks = []
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            chunks.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while (await reader.readuntil(b"\r\n")) != b"\r\n":
            pass  # trailers
        return b"".join(chunks)
    length = int(head.value("content-length") or 0)
    if length > _LARGEST_BODY:
        raise asyncio.LimitOverrunError("the body is larger than any prompt", length)
    return await reader.readexactly(length)


def head_bytes(status: int, headers: dict[str, str]) -> bytes:
    """Status line and headers of a response."""
    reason = http.HTTPStatus(status).phrase if status in _KNOWN_STATUS else "Scripted"
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def write_json(
    writer: asyncio.StreamWriter,
    times: Times,
    status: int,
    content: bytes,
    *,
    headers: dict[str, str] | None = None,
    without_body: bool = False,
) -> None:
    """Writes a whole JSON response and stamps it."""
    head = {"content-type": "application/json", "content-length": str(len(content))} | (headers or {})
    times.status = status
    writer.write(head_bytes(status, head) + (b"" if without_body else content))
    times.headers = times.last_byte = time.monotonic_ns()
    await writer.drain()

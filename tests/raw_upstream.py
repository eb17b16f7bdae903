"""A server whose every byte a test prescribes, and a client that takes every byte as it comes: for comparisons."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

type Script = Callable[[socket.socket, bytes, bytes], None]
"""Answers one request, given its head and its body, on a connection that is closed afterwards."""


@dataclass
class RawUpstream:
    """`scripts` by path; `requests` holds (head, body) as they arrived; `ended` is set when a script ends, by path."""

    scripts: dict[str, Script]
    port: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    faults: list[tuple[str, BaseException | None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            with contextlib.suppress(OSError):
                head, body = read_request(connection)
                self.requests.append((head, body))
                path = head.split(b" ")[1].partition(b"?")[0].decode()
                fault: BaseException | None = None
                try:
                    self.scripts[path](connection, head, body)
                except OSError as caught:
                    fault = caught
                self.faults.append((path, fault))


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """A request's head and its body as it stands on the wire."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    if b"expect" in fields:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if fields.get(b"transfer-encoding", b"").strip() == b"chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += _more(connection)
        return head, unchunked(body)
    while len(body) < int(fields.get(b"content-length", b"0")):
        body += _more(connection)
    return head, body


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionError("closed in the middle")
    return data


def unchunked(data: bytes) -> bytes:
    """A chunked body without its framing and trailers; as far as it goes where it was cut."""
    body = b""
    while b"\r\n" in data:
        size, _, data = data.partition(b"\r\n")
        count = int(size.partition(b";")[0], 16)
        if count == 0:
            break
        body, data = body + data[:count], data[count + 2 :]
    return body


@contextmanager
def running_raw_upstream(scripts: dict[str, Script]) -> Iterator[RawUpstream]:
    """The server, a thread per connection, gone at the end."""
    upstream = RawUpstream(scripts)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    upstream.port = listener.getsockname()[1]
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=upstream.serve, args=(connection,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield upstream
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(25)


def talk(port: int, request: bytes, *pieces: bytes, wait_for: bytes = b"") -> bytes:
    """Everything that comes back for a raw request until the other side closes; a reset ends it too.

    `pieces` are sent one after the other, once `wait_for` was received.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        with contextlib.suppress(ConnectionError):
            while wait_for not in received:
                received += _more(connection)
            for piece in pieces:
                connection.sendall(piece)
            while data := connection.recv(1 << 16):
                received += data
    return received


@dataclass(frozen=True)
class RawAnswer:
    """An answer in comparable form: framing apart, since chunk sizes are nobody's content."""

    status: bytes
    fields: tuple[bytes, ...]
    body: bytes
    whole: bool  # the framing says that nothing is missing


def parse_answer(data: bytes, *, to_head: bool = False) -> RawAnswer:
    """The final answer among what came back."""
    while True:
        head, separator, body = data.partition(b"\r\n\r\n")
        code = head[9:12]
        if not code.startswith(b"1") or code == b"101":
            break
        data = body
    status, *fields = head.split(b"\r\n")
    lower = dict(line.lower().split(b":", 1) for line in fields)
    whole = bool(separator)
    if to_head or status.split(b" ")[1] in (b"204", b"304"):
        pass
    elif lower.get(b"transfer-encoding", b"").strip() == b"chunked":
        whole = b"\r\n0\r\n" in b"\r\n" + body
        body = unchunked(body)
    elif b"content-length" in lower:
        whole = len(body) == int(lower[b"content-length"])
    return RawAnswer(status, tuple(fields), body, whole)


def slowly(pieces: list[bytes], pause_s: float = 0.0) -> Script:
    """A script that sends pieces with pauses between them."""

    def script(connection: socket.socket, _head: bytes, _body: bytes) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)

    return script


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# WebSocket frames (RFC 6455 5.2)


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = False, compressed: bool = False) -> bytes:
    """One frame."""
    first = (0x80 if final else 0) | (0x40 if compressed else 0) | opcode
    size = len(payload)
    bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


def read_frames(data: bytes) -> list[tuple[int, bool, bytes]]:
    """Whole frames in order: (opcode, final, payload)."""
    frames = []
    while len(data) >= 2:
        first, second = data[0], data[1]
        size, at = second & 0x7F, 2
        if size == 126:
            size, at = int.from_bytes(data[2:4]), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10]), 10
        key = data[at : at + 4] if second & 0x80 else b""
        at += len(key)
        if len(data) < at + size:
            break
        payload = data[at : at + size]
        if key:
            payload = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
        frames.append((first & 0x0F, bool(first & 0x80), payload))
        data = data[at + size :]
    return frames


def accept_socket(connection: socket.socket, head: bytes) -> None:
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
    assert key is not None
    accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept
    )


# What many of the comparisons send

TEXT = b"".join(b'event: delta\ndata: {"number": %d, "text": "\xc3\xa9"}\n\n' % number for number in range(400))
LARGE = os.urandom(1 << 20) * 4


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces), end]


def sized(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> list[bytes]:
    return [b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"content-length: %d" % len(body), b"", body])]


def encoded(name: bytes, body: bytes) -> list[bytes]:
    return sized(body, b"content-encoding: " + name, b"X-Odd-Case: Kept; as=it is", b"x-odd-case: twice")


def echo(connection: socket.socket, _head: bytes, body: bytes) -> None:
    connection.sendall(sized(body)[0])


def request(path: str, *fields: bytes, method: bytes = b"GET", body: bytes = b"", version: bytes = b"1.1") -> bytes:
    lines = [b"%s %s HTTP/%s" % (method, path.encode(), version), b"Host: localhost", b"Connection: close", *fields]
    if body or method == b"POST":
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def both(upstream: RawUpstream, port: int, sent: bytes, *, to_head: bool = False) -> tuple[RawAnswer, RawAnswer]:
    """What an agent gets directly and through the recorder."""
    return (
        parse_answer(talk(upstream.port, sent), to_head=to_head),
        parse_answer(talk(port, sent), to_head=to_head),
    )

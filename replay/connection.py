"""One socket to a server and one request at a time on it: stamps each read, takes the HTTP framing off many at a time.

A load generator that decodes every event while it arrives is late for the next one, and its lateness ends up in the
numbers. So the read callback looks at the clock and appends; a hundred reads are framed, and read, in one go.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import termios
from time import monotonic_ns
from typing import cast

import httptools
import httpx

from replay.wire import Target, Timeouts, Wire

FRAMED_TOGETHER = 128
STALE_WITHIN_NS = 5_000_000_000
"""A close that comes later than this after the send is the server's doing, not a race with its idle timer."""
JOINED_BELOW_BYTES = 65_536
_NO_LIMITS = Timeouts()


class StaleConnectionError(Exception):
    """A kept-alive connection turned out to be closed before any byte of a response."""


class Connection(asyncio.Protocol):
    """One socket, one request at a time; the protocol of both asyncio and httptools."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.WriteTransport | None = None
        self._parser = httptools.HttpResponseParser(self)  # and it refers back to us until connection_lost
        self._waiter: asyncio.Future[None] | None = None
        self._wire = Wire()
        self._data, self._data_at_ns = self._wire.data, self._wire.data_at_ns
        self._now = 0  # of the read at hand; 0 until the first byte of a response
        self._framed_bytes = 0  # of the response, headers and framing included
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_head = False
        self._until_close = False
        self._chunked = False
        self._raw: list[bytes] = []  # reads whose framing is still on
        self._raw_at_ns: list[int] = []
        self._timeouts = _NO_LIMITS
        self._timer: asyncio.TimerHandle | None = None
        self._descriptor = -1
        self._writing = False
        self._keep_alive_s: float | None = None
        self._idle_since_ns = 0
        self.home: list[Connection] | None = None  # the pool's list while idle
        self.open_connections: dict[Connection, None] | None = None
        self.all_closed: asyncio.Event | None = None
        self.reusable = False

    # -- the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports do not derive from asyncio's.
        self._transport = transport = cast(asyncio.WriteTransport, transport)
        # Limits this low make resume_writing say that the kernel has taken everything. TLS pauses at the limit already,
        # so 0 would pause and resume it for nothing.
        secure = transport.get_extra_info("ssl_object") is not None
        transport.set_write_buffer_limits(high=1 if secure else 0, low=0)
        plain_socket = transport.get_extra_info("socket")
        if plain_socket is not None:
            self._descriptor = plain_socket.fileno()
        if plain_socket is not None and plain_socket.family in (socket.AF_INET, socket.AF_INET6):
            plain_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._raw_at_ns.append(monotonic_ns())
        raw = self._raw
        raw.append(data)
        # A chunked body ends with an empty line, whole or as a short last read: until such a read, or one in 128,
        # framing waits. Doing it in a row later takes a third of the time, and the next socket is stamped sooner.
        if self._chunked and len(raw) < FRAMED_TOGETHER and len(data) > 7 and not data.endswith(b"\r\n\r\n"):
            return
        self._frame()

    def _frame(self) -> None:
        """Take the HTTP framing off what has been read, and give it to the request's reader once it is much."""
        raw, raw_at_ns = self._raw, self._raw_at_ns
        if not raw:  # a closed connection, whose last reads are framed, has no parser any more
            return
        self._raw, self._raw_at_ns = [], []
        feed = self._parser.feed_data
        try:
            for self._now, data in zip(raw_at_ns, raw, strict=True):
                if self._waiter is None:  # nobody asked: a server that says why it closes, or one that is broken
                    self.abort()
                    return
                feed(data)
        except httptools.HttpParserError as error:
            self._settle(httpx.RemoteProtocolError(f"the server does not speak HTTP/1.1: {error}"))
            self.abort()
        wire = self._wire
        self._framed_bytes += sum(map(len, raw))
        if self._framed_bytes > wire.most_bytes and self._waiter is not None:
            most_mb = wire.most_bytes // 1024**2
            self._settle(httpx.RemoteProtocolError(f"the answer was given up after {most_mb} MB: it is too long"))
            self.abort()
        if len(self._data) >= FRAMED_TOGETHER and wire.reader is not None and wire.status == 200:
            wire.hand_over()

    def pause_writing(self) -> None:
        self._writing = True

    def resume_writing(self) -> None:
        self._writing = False
        if self._waiter is not None and self._wire.written_at_ns is None:
            self._wire.written_at_ns = monotonic_ns()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.reusable = False
        if self.home is not None:
            self.home.remove(self)
            self.home = None
        if self._waiter is not None:
            self._frame()
        if self._waiter is not None:
            now = monotonic_ns()
            if self._until_close and exc is None:
                self._wire.end_at_ns = now
                self._settle(None)
            elif (
                self._wire.reused_connection
                and self._now == 0
                and now - (self._wire.sent_at_ns or now) < STALE_WITHIN_NS
            ):
                self._settle(StaleConnectionError())
            else:
                seen = f"after {self._wire.bytes_down()} bytes of the answer" if self._now else "before any answer"
                why = f": {exc}" if exc is not None else ""
                self._settle(httpx.RemoteProtocolError(f"the server closed the connection {seen}{why}"))
        del self._parser
        if self.open_connections is not None:
            self.open_connections.pop(self, None)
            if not self.open_connections and self.all_closed is not None:
                self.all_closed.set()

    # -- the parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        if self._waiter is None:  # a second response in the same read
            self.reusable = False
            return
        wire = self._wire
        wire.status = status
        wire.headers = self._headers
        wire.headers_at_ns = self._now
        framed = status in (204, 304)
        self._chunked = False
        for name, value in self._headers:
            name = name.lower()
            if name in (b"content-length", b"transfer-encoding"):
                framed = True
                self._chunked |= name == b"transfer-encoding"
            elif name == b"keep-alive":
                self._keep_alive_s = _keep_alive_timeout_s(value)
        self._until_close = not framed
        if self._is_head:
            self._finish(reusable=False)

    def on_body(self, body: bytes) -> None:
        self._data.append(body)
        self._data_at_ns.append(self._now)

    def on_message_complete(self) -> None:
        if self._waiter is None:
            return
        if self._wire.status is None:  # 1xx: the real response is still to come
            self._headers = []
            return
        self._finish(reusable=self._parser.should_keep_alive() and not self._writing)

    def _finish(self, *, reusable: bool) -> None:
        self._wire.end_at_ns = self._idle_since_ns = self._now
        self._data, self._data_at_ns = [], []
        self._chunked = False
        self.reusable = reusable
        self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            if self._wire.end_at_ns is None and not isinstance(error, StaleConnectionError):
                self._wire.end_at_ns = monotonic_ns()
            waiter.set_exception(error)

    # -- the pool's side

    async def exchange(self, wire: Wire, target: Target, body: bytes, *, extra: bytes, timeouts: Timeouts) -> None:
        """Send one request, `extra` header lines included, and return once the last byte of its response is in."""
        transport = self._transport
        if transport is None:
            raise StaleConnectionError
        self._wire, self._data, self._data_at_ns = wire, wire.data, wire.data_at_ns
        self._headers, self._now, self._is_head = [], 0, target.method == "HEAD"
        self._framed_bytes = 0
        self._until_close = self._chunked = False
        self.reusable = False
        length = b"" if target.method in ("GET", "HEAD") and not body else b"content-length: %d\r\n" % len(body)
        head = b"%b%b%b\r\n" % (target.head, extra, length)
        waiter: asyncio.Future[None] | None
        waiter = self._waiter = self._loop.create_future()
        self._timeouts = timeouts
        try:
            wire.sent_at_ns = monotonic_ns()
            self._watch_time()
            transport.write(head + body if len(body) < JOINED_BELOW_BYTES else head)
            if len(body) >= JOINED_BELOW_BYTES:  # joining would copy the whole prompt
                transport.write(body)
            if transport.get_write_buffer_size() == 0:
                self._writing = False
                wire.written_at_ns = monotonic_ns()
            else:
                self._writing = True
            await waiter
        except asyncio.CancelledError:
            self._frame()
            self.abort()
            raise
        finally:
            # A fault holds this frame, and the frame would hold the fault: no cycle, nothing for the collector.
            waiter = self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _watch_time(self) -> None:
        """Fail the request where a phase is over time; else look again when the next one could be.

        One timer that looks back, instead of one that every read pushes ahead.
        """
        self._timer = None
        if self._wire.sent_at_ns is None:
            return
        now, idle_s = monotonic_ns(), self._timeouts.idle_s
        due = self._timeouts.due(self._wire, self._last_read_at_ns())
        if due is not None and due[0] <= now:
            self._frame()
            if self._waiter is not None and not self._waiter.done():  # else its last byte was among those
                self._settle(httpx.ReadTimeout(due[2].format(due[1])))
                self.abort()
            return
        # A read that has yet to come may stand still before what is due now.
        looks = [due[0]] if due is not None else []
        looks += [now + int(idle_s * 1e9)] if idle_s is not None else []
        if looks:
            self._timer = self._loop.call_later((min(looks) - now) / 1e9, self._watch_time)

    def _last_read_at_ns(self) -> int | None:
        if self._chunked and self._raw_at_ns:  # not framed yet, but of the body
            return self._raw_at_ns[-1]
        return self._now if self._wire.first_byte_at_ns() is not None else None

    def unread_bytes(self) -> int | None:
        """What the kernel holds for us that we have not read; None where it does not say."""
        if self._transport is None or self._descriptor < 0:
            return None
        size = array.array("i", [0])
        try:
            fcntl.ioctl(self._descriptor, termios.FIONREAD, size)
        except OSError:
            return None
        return size[0]

    def rest(self) -> None:
        """Begin to be idle."""
        self._wire = Wire()  # frees the last response
        self._data, self._data_at_ns = self._wire.data, self._wire.data_at_ns
        self._headers = []

    def usable(self) -> bool:
        """Whether the connection is open and the server has not announced that it closes about now."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._keep_alive_s is None:
            return True
        return (monotonic_ns() - self._idle_since_ns) / 1e9 < self._keep_alive_s - min(1.0, self._keep_alive_s / 2)

    def close(self) -> None:
        """Close, but do not wait until the server takes what is left of a request that it has answered already."""
        if self._transport is not None:
            if self._writing:
                self._transport.abort()
            else:
                self._transport.close()

    def abort(self) -> None:
        """Close at once, unsent bytes dropped."""
        if self._transport is not None:
            self._transport.abort()


def _keep_alive_timeout_s(value: bytes) -> float | None:
    for part in value.split(b","):
        name, _, number = part.strip().partition(b"=")
        if name.lower() == b"timeout" and number.strip().isdigit():
            return float(number)
    return None

"""An httpx transport that collects: it stores each read with its time and wakes the caller once, at the end.

A load generator that decodes every event while it arrives is late for the next one, and its lateness ends up in the
numbers. So the read callback looks at the clock and appends; httptools takes the HTTP framing off many reads at a time,
and what the bytes mean is read after the close (`replay.answer`).

Laws of this file:
1. No request waits for another one's connection: there is no limit on connections, and an idle connection
   belongs to the lane (the agent) that opened it.
2. Whatever happened is on the `Wire`, also when the request failed, timed out or was cancelled.
3. A request is sent once, with a single exception: a kept-alive connection may have been closed by the server
   while the request was on its way. Some servers announce keep-alive and close after every stream. If not one byte of
   a response came and the close came soon, the request is sent once more, on a fresh connection, and the wire says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from time import monotonic_ns
from typing import cast

import httptools
import httpx

WIRE = "agentdyno.wire"
"""Request and response extension: the request's `Wire`. Who must see the facts of a failure brings one along."""
LANE = "agentdyno.lane"
"""Request extension: any hashable; connections are kept alive within a lane and never cross to another."""

CONNECT_TIMEOUT_S = 10.0
FRAMED_TOGETHER = 256
STALE_WITHIN_NS = 5_000_000_000
"""A close that comes later than this after the send is the server's doing, not a race with its idle timer."""

type _PoolKey = tuple[bytes, bytes, int, object]


class Wire:
    """What happened to one request on the wire; times are absolute monotonic ns, None while not reached.

    The transport fills it while the request runs and leaves it alone afterwards. After a redial the stamps are
    those of the second sending; `redialled_from_ns` keeps the first one's.
    """

    __slots__ = (
        "asked_at_ns",
        "bytes_up",
        "end_at_ns",
        "headers",
        "headers_at_ns",
        "reads",
        "redialled_from_ns",
        "reused_connection",
        "sent_at_ns",
        "status",
        "written_at_ns",
    )

    def __init__(self) -> None:
        self.asked_at_ns: int | None = None  # the transport was given the request; a fresh connection is dialled after
        self.sent_at_ns: int | None = None  # first byte handed to the socket
        self.written_at_ns: int | None = None  # last byte handed to the kernel
        self.headers_at_ns: int | None = None
        self.end_at_ns: int | None = None  # last byte read, or the moment at which it failed
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []  # of the response, names as they came
        self.reads: list[tuple[int, bytes]] = []  # body bytes, HTTP framing taken off; one read may give several
        self.reused_connection = False
        self.redialled_from_ns: int | None = None
        self.bytes_up = 0  # of the body

    def first_byte_at_ns(self) -> int | None:
        """When the first byte of the response body was read."""
        return self.reads[0][0] if self.reads else None

    def bytes_down(self) -> int:
        """Size of the response body as far as it came."""
        return sum(len(data) for _, data in self.reads)

    def body(self) -> bytes:
        """The response body as far as it came."""
        return b"".join([data for _, data in self.reads])

    def read_count(self) -> int:
        """How many reads of the socket brought body bytes."""
        return len({at_ns for at_ns, _ in self.reads})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request goes and what its head says, but for the length of its body."""

    scheme: bytes
    host: bytes
    port: int
    method: str
    head: bytes  # request line and headers, the last line end included

    @classmethod
    def of(cls, request: httpx.Request) -> Target:
        """The target of an httpx request."""
        url = request.url
        lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), url.raw_path)]
        for name, value in request.headers.raw:
            # We announce the length ourselves, and reads that a server compressed could not be told apart by event.
            if name.lower() not in (b"accept-encoding", b"content-length", b"transfer-encoding"):
                lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"accept-encoding: identity\r\n")
        return cls(
            scheme=url.raw_scheme,
            host=url.raw_host,
            port=url.port or (443 if url.scheme == "https" else 80),
            method=request.method,
            head=b"".join(lines),
        )


class _StaleConnectionError(Exception):
    """A kept-alive connection turned out to be closed before any byte of a response."""


class _Connection(asyncio.Protocol):
    """One socket, one request at a time; the protocol of both asyncio and httptools."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.WriteTransport | None = None
        self._parser = httptools.HttpResponseParser(self)  # and it refers back to us until connection_lost
        self._waiter: asyncio.Future[None] | None = None
        self._wire = Wire()
        self._reads = self._wire.reads
        self._now = 0  # of the read at hand; 0 until the first byte of a response
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_head = False
        self._until_close = False
        self._chunked = False
        self._pending: list[tuple[int, bytes]] = []  # reads whose framing is still on
        self._writing = False
        self._keep_alive_s: float | None = None
        self._idle_since_ns = 0
        self.home: list[_Connection] | None = None  # the pool's list while idle
        self.open_connections: set[_Connection] | None = None
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
        if plain_socket is not None and plain_socket.family in (socket.AF_INET, socket.AF_INET6):
            plain_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._pending.append((monotonic_ns(), data))
        # A chunked body ends with an empty line, whole or as a short last read: until such a read, or one in 256,
        # framing waits. Doing it in a row later takes a third of the time, and the next socket is stamped sooner.
        if self._chunked and not data.endswith(b"\r\n\r\n") and len(data) > 7 and len(self._pending) < FRAMED_TOGETHER:
            return
        self._frame()

    def _frame(self) -> None:
        """Take the HTTP framing off what has been read."""
        pending, self._pending = self._pending, []
        try:
            for self._now, data in pending:
                if self._waiter is None:  # nobody asked: a server that says why it closes, or one that is broken
                    self.abort()
                    return
                self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._settle(httpx.RemoteProtocolError(f"the server does not speak HTTP/1.1: {error}"))
            self.abort()

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
                self._settle(_StaleConnectionError())
            else:
                seen = f"after {self._wire.bytes_down()} bytes of the answer" if self._now else "before any answer"
                why = f": {exc}" if exc is not None else ""
                self._settle(httpx.RemoteProtocolError(f"the server closed the connection {seen}{why}"))
        del self._parser
        if self.open_connections is not None:
            self.open_connections.discard(self)
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
        self._reads.append((self._now, body))

    def on_message_complete(self) -> None:
        if self._waiter is None:
            return
        if self._wire.status is None:  # 1xx: the real response is still to come
            self._headers = []
            return
        self._finish(reusable=self._parser.should_keep_alive() and not self._writing)

    def _finish(self, *, reusable: bool) -> None:
        self._wire.end_at_ns = self._idle_since_ns = self._now
        self._reads = []
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
            if self._wire.end_at_ns is None and not isinstance(error, _StaleConnectionError):
                self._wire.end_at_ns = monotonic_ns()
            waiter.set_exception(error)

    # -- the pool's side

    async def exchange(self, wire: Wire, target: Target, body: bytes, *, timeout_s: float | None) -> None:
        """Send one request and return once the last byte of its response is in."""
        transport = self._transport
        if transport is None:
            raise _StaleConnectionError
        self._wire, self._reads = wire, wire.reads
        self._headers, self._now, self._is_head = [], 0, target.method == "HEAD"
        self._until_close = self._chunked = False
        self.reusable = False
        length = b"" if target.method in ("GET", "HEAD") and not body else b"content-length: %d\r\n" % len(body)
        head = b"%b%b\r\n" % (target.head, length)
        waiter = self._waiter = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._time_out, timeout_s)
        try:
            wire.sent_at_ns = monotonic_ns()
            transport.write(head + body if len(body) < 65_536 else head)
            if len(body) >= 65_536:  # joining would copy the whole prompt
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
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _time_out(self, timeout_s: float) -> None:
        self._frame()
        self._settle(httpx.ReadTimeout(f"the answer was not complete after {timeout_s:g} s"))
        self.abort()

    def rest(self) -> None:
        """Begin to be idle."""
        self._wire = Wire()  # frees the last response
        self._reads = self._wire.reads
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


class CollectingTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 without redirects, proxies, retries or compression; one instance belongs to one event loop.

    A response is handed over when it is whole, so httpx's `read` time-out bounds the whole request. The response's
    extension `agentdyno.wire` is its `Wire`. Failures: `httpx.ConnectError`, `ConnectTimeout`, `ReadTimeout`,
    `RemoteProtocolError` (closed early, or not HTTP).
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context
        self._idle: dict[_PoolKey, list[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._all_closed = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return the whole response."""
        wire = request.extensions.get(WIRE)
        if wire is None:
            wire = Wire()
        assert isinstance(wire, Wire)
        timeout = request.extensions.get("timeout", {})
        try:
            await self.collect(
                Target.of(request),
                await request.aread(),
                wire,
                lane=request.extensions.get(LANE),
                timeout_s=timeout.get("read"),
                connect_timeout_s=timeout.get("connect"),
            )
        except httpx.TransportError as error:
            error.request = request
            raise
        assert wire.status is not None
        return httpx.Response(
            wire.status,
            headers=wire.headers,
            stream=httpx.ByteStream(wire.body()),
            extensions={"http_version": b"HTTP/1.1", WIRE: wire},
        )

    async def collect(
        self,
        target: Target,
        body: bytes,
        wire: Wire,
        *,
        lane: object = None,
        timeout_s: float | None = None,
        connect_timeout_s: float | None = None,
    ) -> None:
        """Send a body to a target and fill the wire: the same as above, without a new httpx request each time.

        Building and parsing httpx's objects costs more than all the rest of a request.
        """
        wire.asked_at_ns = monotonic_ns()
        wire.bytes_up = len(body)
        key = (target.scheme, target.host, target.port, lane)
        connection = self._take(key)
        wire.reused_connection = connection is not None
        while True:
            if connection is None:
                connection = await self._dial(target, connect_timeout_s or CONNECT_TIMEOUT_S)
            try:
                await connection.exchange(wire, target, body, timeout_s=timeout_s)
                break
            except _StaleConnectionError:
                if not wire.reused_connection:
                    wire.end_at_ns = monotonic_ns()
                    raise httpx.RemoteProtocolError("the server closed the connection before any answer") from None
                # Safe: not one byte of an answer exists, so nobody has acted on one.
                wire.redialled_from_ns = wire.sent_at_ns
                wire.sent_at_ns = wire.written_at_ns = None
                wire.reused_connection = False
                connection = None
        if connection.reusable and connection.usable():
            connection.rest()
            connection.home = self._idle.setdefault(key, [])
            connection.home.append(connection)
        else:
            connection.close()

    def _take(self, key: _PoolKey) -> _Connection | None:
        idle = self._idle.get(key, [])
        while idle:
            connection = idle.pop()  # the most recently used one is the least likely to have been closed
            connection.home = None
            if connection.usable():
                return connection
            connection.close()
        return None

    async def _dial(self, target: Target, limit_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        secure = target.scheme == b"https"
        if secure and self._ssl_context is None:
            # Loading the trust store takes tens of ms: once, shared by every connection.
            self._ssl_context = await asyncio.to_thread(ssl.create_default_context)
        host, port = target.host.decode("ascii"), target.port
        try:
            async with asyncio.timeout(limit_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop),
                    host,
                    port,
                    ssl=self._ssl_context if secure else None,
                    server_hostname=host if secure else None,
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} in {limit_s:g} s") from None
        except (OSError, ssl.SSLError) as error:
            raise httpx.ConnectError(f"no connection to {host}:{port}: {error.strerror or error}") from error
        connection.open_connections, connection.all_closed = self._open, self._all_closed
        self._open.add(connection)
        self._all_closed.clear()
        return connection

    async def aclose(self) -> None:
        """Close every connection, idle or not, and wait (at most 1 s) until the sockets are gone."""
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), 1.0)
        self._idle.clear()


def _keep_alive_timeout_s(value: bytes) -> float | None:
    for part in value.split(b","):
        name, _, number = part.strip().partition(b"=")
        if name.lower() == b"timeout" and number.strip().isdigit():
            return float(number)
    return None

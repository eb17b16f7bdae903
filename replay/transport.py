"""An httpx transport that collects: it stores each read with its time and wakes the caller once, at the end.

Laws of this file and of `replay.connection`:
1. No request waits for another one's connection: there is no limit on connections, and an idle connection
   belongs to the lane (the agent) that opened it.
2. Whatever happened is on the `Wire`, also when the request failed, timed out or was cancelled.
3. A request is sent once, with a single exception: a kept-alive connection may have been closed by the server
   while the request was on its way. Some servers announce keep-alive and close after every stream. If not one byte of
   a response came and the close came soon, the request is sent once more, on a fresh connection, and the wire says so.
4. A proxy is tunnelled through (CONNECT) by this transport itself, so that every byte still passes the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from time import monotonic_ns

import httpx

from replay.connection import Connection, StaleConnectionError
from replay.proxy import MOST_OF_A_REPLY, Proxy, tunnel_refusal
from replay.wire import CONNECT_TIMEOUT_S, Target, Timeouts, Wire

WIRE = "agentdyno.wire"
"""Request and response extension: the request's `Wire`. Who must see the facts of a failure brings one along."""
LANE = "agentdyno.lane"
"""Request extension: any hashable; connections are kept alive within a lane and never cross to another."""

type _PoolKey = tuple[bytes, bytes, int, object]


class CollectingTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 without redirects, retries or compression; one instance belongs to one event loop.

    A response is handed over when it is whole, so httpx's `read` time-out bounds the whole request. The response's
    extension `agentdyno.wire` is its `Wire`. Failures: `httpx.ConnectError`, `ConnectTimeout`, `ReadTimeout`,
    `RemoteProtocolError` (closed early, or not HTTP).
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None, proxy: Proxy | None = None) -> None:
        self._ssl_context = ssl_context
        self._proxy = proxy
        self._idle: dict[_PoolKey, list[Connection]] = {}
        self._open: dict[Connection, None] = {}  # in the order of dialling
        self._all_closed = asyncio.Event()
        self._looked_at = 0

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
                timeouts=Timeouts(connect_s=timeout.get("connect") or CONNECT_TIMEOUT_S, total_s=timeout.get("read")),
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
        extra: bytes = b"",
        timeouts: Timeouts | None = None,
    ) -> None:
        """Send a body to a target and fill the wire: the same as above, without a new httpx request each time.

        `extra` are further header lines, each with its line end.

        Building and parsing httpx's objects costs more than all the rest of a request.
        """
        wire.asked_at_ns = monotonic_ns()
        wire.bytes_up = len(body)
        if timeouts is None:
            timeouts = Timeouts()
        key = (target.scheme, target.host, target.port, lane)
        connection = self._take(key)
        wire.reused_connection = connection is not None
        while True:
            if connection is None:
                connection = await self._dial(target, timeouts.connect_s)
            try:
                await connection.exchange(wire, target, body, extra=extra, timeouts=timeouts)
                break
            except StaleConnectionError:
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

    def _take(self, key: _PoolKey) -> Connection | None:
        idle = self._idle.get(key, [])
        while idle:
            connection = idle.pop()  # the most recently used one is the least likely to have been closed
            connection.home = None
            if connection.usable():
                return connection
            connection.close()
        return None

    async def _dial(self, target: Target, limit_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        secure = target.scheme == b"https"
        if secure and self._ssl_context is None:
            # Loading the trust store takes tens of ms: once, shared by every connection.
            self._ssl_context = await asyncio.to_thread(_ssl_context)
        host, port = target.host.decode("ascii"), target.port
        at = f"{host}:{port}" if self._proxy is None else f"{host}:{port} through the proxy"
        try:
            async with asyncio.timeout(limit_s):
                # TLS, where asked for, is inside the tunnel.
                context, name = (self._ssl_context, host) if secure else (None, None)
                if self._proxy is None:
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop), host, port, ssl=context, server_hostname=name
                    )
                else:
                    tunnel = await _tunnel(self._proxy, host, port)
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop), sock=tunnel, ssl=context, server_hostname=name
                    )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection to {at} in {limit_s:g} s (connect time-out)") from None
        except (OSError, ssl.SSLError) as error:
            said = str(error.strerror or error)
            if not said:
                said = "it was closed while TLS was set up" if secure else type(error).__name__
            raise httpx.ConnectError(f"no connection to {at}: {said}") from error
        connection.open_connections, connection.all_closed = self._open, self._all_closed
        self._open[connection] = None
        self._all_closed.clear()
        return connection

    def unread_bytes(self, most_sockets: int) -> int | None:
        """The most that the kernel holds unread for one of the open sockets; looks at some of them in turn."""
        if not self._open:
            return None
        first = self._looked_at % len(self._open)
        self._looked_at = first + most_sockets
        some = itertools.islice(
            itertools.chain(self._open, self._open), first, first + min(most_sockets, len(self._open))
        )
        return max((size for each in some if (size := each.unread_bytes()) is not None), default=None)

    async def aclose(self) -> None:
        """Close every connection, idle or not, and wait (at most 1 s) until the sockets are gone."""
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), 1.0)
        self._idle.clear()


def _ssl_context() -> ssl.SSLContext:
    """Certificates are verified against the system's store (or SSL_CERT_FILE); only HTTP/1.1 is offered."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _tunnel(proxy: Proxy, host: str, port: int) -> socket.socket:
    """A socket that the proxy has connected to host:port; raises OSError."""
    loop = asyncio.get_running_loop()
    fault = OSError(f"the proxy {proxy.host} has no address")
    for family, kind, number, _, address in await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM):
        tunnel = socket.socket(family, kind, number)
        tunnel.setblocking(False)
        try:
            await loop.sock_connect(tunnel, address)
            await loop.sock_sendall(tunnel, proxy.greeting(host, port))
            reply = b""
            # Byte by byte: what follows the reply belongs to the tunnel.
            while not reply.endswith(b"\r\n\r\n") and len(reply) < MOST_OF_A_REPLY:
                byte = await loop.sock_recv(tunnel, 1)
                if not byte:
                    break
                reply += byte
        except OSError as error:
            tunnel.close()
            fault = error
            continue
        except BaseException:
            tunnel.close()
            raise
        refusal = tunnel_refusal(reply)
        if refusal is None:
            return tunnel
        tunnel.close()
        raise ConnectionError(f"the proxy {proxy.host}:{proxy.port} refuses: {refusal}")
    raise fault

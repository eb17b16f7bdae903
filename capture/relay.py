"""Where mitmproxy changes, holds or drops what passes, and what this recorder does about each.

`correct()` replaces pieces of mitmproxy 12.2 once per process, each with its reason. What stays as mitmproxy does it:
chunk sizes of HTTP/1 follow the reads; trailers of HTTP/1 and informational answers (103) are not passed on;
`Expect: 100-continue` is answered by the proxy; a request, or a WebSocket message, goes on once it is whole, and the
message is compressed anew where both sides agreed on compression; an agent that closes its half of a connection after
an HTTP request is taken to be gone. Bodies, messages and close codes are equal to a direct connection's.
"""

# mitmproxy's layers are half typed, and a correction reaches where no type is promised.
# mypy: disable-error-code="no-untyped-call,no-untyped-def,attr-defined,name-defined,assignment,method-assign,misc"
from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import re
import weakref
from dataclasses import dataclass
from typing import Any

from mitmproxy import connection, http
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, server
from mitmproxy.proxy.layers import TCPLayer, tls, websocket
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers.http import _http1, _http2, _http_h2
from mitmproxy.proxy.layers.http._events import RequestProtocolError
from mitmproxy.proxy.server import ConnectionHandler

from capture.gate import refusal
from capture.outbound import Dialler, OutboundProxy, for_proxy
from capture.secret import SecretFilter
from capture.upstream import Upstream

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_BREAK = re.compile(rb"[\r\n\0]")
_ABNORMAL_CLOSURE = 1006  # RFC 6455 7.1.5: never in a frame, only the name of what happened
_NO_LIMIT = 1 << 16
_MOST_HEAD = 1 << 18
"""Bytes of a request's head, of a chunk's and of trailers. Agents send some ten thousand; servers allow less."""

UNREAD = "agentdyno.unread"
"""Key in the metadata of a flow that is answered without a look at its body, which is dropped as it comes."""

_draining: weakref.WeakSet[connection.Connection] = weakref.WeakSet()
"""Upstream connections that take no new request."""

_asked: weakref.WeakKeyDictionary[connection.Connection, OutboundProxy] = weakref.WeakKeyDictionary()
"""Upstream connections that end at a proxy, which is asked by each request's whole URL."""

_opened: contextvars.ContextVar[tuple[connection.Connection, bool]] = contextvars.ContextVar("opened")
"""What the current task connects to, and whether its bytes have to reach the host as they are."""

_done = False


def correct() -> None:
    """Apply the corrections; a second call changes nothing."""
    global _done
    if _done:
        return
    _done = True
    _http1.ChunkedReader = _ChunkedReader
    _skip_informational()
    _cut_sockets_as_they_were_cut()
    _finish_streams_after_goaway()
    _ask_proxies_by_whole_urls()
    _try_again_after_a_failure()
    _tell_errors_as_model_servers_do()
    _http2.Http2Server.ReceiveProtocolError = _AgentsReset
    _drop_bodies_that_nobody_reads()
    _bound_heads()
    _close_what_still_talks()
    _refuse_what_two_servers_read_differently()


def lift_limits(handler: ConnectionHandler) -> None:
    """Let an agent's connection have as many upstream connections as it asks for.

    mitmproxy allows five; over HTTP/2 towards an HTTP/1 upstream the sixth parallel call would wait for another's end.
    """
    handler.max_conns = collections.defaultdict(lambda: asyncio.Semaphore(_NO_LIMIT))


def _try_again_after_a_failure() -> None:
    """mitmproxy answers every later request of an agent's connection with the first one's failure to connect.

    Over HTTP/2 that is every retry of the agent.
    """
    matches = http_layers.GetHttpConnection.connection_spec_matches

    def spec_matches(self, candidate):
        return candidate not in _draining and not candidate.error and matches(self, candidate)

    http_layers.GetHttpConnection.connection_spec_matches = spec_matches


def _tell_errors_as_model_servers_do() -> None:
    """mitmproxy answers with a page in HTML, which agents show as it is or not at all."""

    def body(status: int, message: str) -> bytes:
        kind = "invalid_request_error" if status < 500 else "api_error"
        # Behind the colon stands what was sent, with keys and tokens; agents write answers into their logs.
        said = message.partition(": ")[0] if status < 500 else SecretFilter(b"").error(message)
        return refusal(status, said or "the upstream cannot be reached", reason="relay", kind=kind).body

    def answer(status: int, message: str = "") -> Any:
        headers = http.Headers(content_type="application/json", connection="close")
        return http1.assemble_response(http.Response.make(status, body(status, message), headers))

    _http1.make_error_response = answer
    _http2.format_error = body


def _drop_bodies_that_nobody_reads() -> None:
    """mitmproxy keeps the whole body of a request that was answered at its head, and of one without a valid token."""
    consume = http_layers.HttpStream.state_consume_request_body

    def consume_unless_unread(self, event):
        if isinstance(event, http_layers.RequestData) and UNREAD in self.flow.metadata:
            return
        yield from consume(self, event)

    http_layers.HttpStream.state_consume_request_body = consume_unless_unread


def _bound_heads() -> None:
    """mitmproxy waits for the end of a head, or of a chunk's or a ClientHello, however much of it has come.

    HTTP/2 has its own bounds: 64 frames of 16 KiB, 64 KiB decompressed.
    """
    handle = _http1.Http1Server._handle_event

    def handle_bounded(self, event):
        yield from handle(self, event)
        # What is left over of a body is the head of a chunk.
        if len(self.buf) <= _MOST_HEAD or self.state not in (self.read_headers, self.read_body):
            return
        self.buf = _http1.ReceiveBuffer()
        in_body = self.state == self.read_body
        self.state = self.done
        if in_body:
            message = "HTTP/1 protocol error: the head of a chunk has no end"
            yield _http1.ReceiveHttp(
                RequestProtocolError(self.stream_id, message, http_layers.ErrorCode.GENERIC_CLIENT_ERROR)
            )
            yield commands.CloseConnection(self.conn)
        else:
            sentence = f"the head of the request is larger than {_MOST_HEAD >> 10} KiB"
            yield commands.SendData(self.conn, _http1.make_error_response(431, sentence))
            yield commands.CloseConnection(self.conn)

    _http1.Http1Server._handle_event = handle_bounded
    greet = tls.ClientTLSLayer.receive_handshake_data

    def greet_bounded(self, data):
        if len(self.recv_buffer) + len(data) > _MOST_HEAD:
            self.recv_buffer.clear()
            return False, "the ClientHello is too large"
        return (yield from greet(self, data))

    tls.ClientTLSLayer.receive_handshake_data = greet_bounded


def _close_what_still_talks() -> None:
    """mitmproxy may leave a connection open for ever that it wants closed while the other side still sends."""
    handle = ConnectionHandler.handle_connection

    async def handle_to_its_end(self, conn):
        try:
            await handle(self, conn)
        finally:
            left = self.transports.pop(conn, None)
            if left is not None and left.writer is not None:
                left.writer.close()

    ConnectionHandler.handle_connection = handle_to_its_end


def _refuse_what_two_servers_read_differently() -> None:
    """mitmproxy's own checks of heads would refuse more than servers do; without them none is left."""
    validate = http_layers.validate_request

    def validate_framing(mode, request, inbound):
        if mode is http_layers.HTTPMode.transparent and request.method == "CONNECT":
            return "this recorder is a base URL, no proxy; one that takes CONNECT is started with `--mode forward`"
        framing = [
            name.lower() for name, _ in request.headers.fields if name.strip().lower() in _FRAMING
        ]  # fmt: skip
        if len(set(framing)) > 1 or not _FRAMING.issuperset(framing):
            return "the end of the body is given twice, or by a header with blanks in its name"
        if request.is_http2 and any(_BREAK.search(part) for field in request.headers.fields for part in field):
            return "a header holds a line break"
        return validate(mode, request, inbound)

    http_layers.validate_request = validate_framing


def dial_by(dialler: Dialler) -> None:
    """Let upstreams and tunnels be reached as `dialler` says: mitmproxy itself ignores the user's proxy.

    Its own upstream mode knows one proxy for all hosts, asks it for a tunnel to port 80 even, and connects to the hosts
    of other people's tunnels directly.
    """
    server.asyncio = _Asyncio(dialler)


class _Asyncio:
    """asyncio as mitmproxy's connection handler sees it."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def open_connection(self, host: str, port: int, **more: Any) -> Any:
        upstream, tunnel = _opened.get()
        opened = await self._dialler.open(host, port, tunnel=tunnel, **more)
        if not tunnel and (proxy := self._dialler.asked(host, port)) is not None:
            _asked[upstream] = proxy
        return opened


def _ask_proxies_by_whole_urls() -> None:
    open_connection = ConnectionHandler.open_connection
    send = _http1.Http1Client.send

    async def open_noted(self, command):
        # A tunnel is opened over the connection that CONNECT named; requests get connections of their own.
        tunnel = command.connection.tls or command.connection is self.layer.context.server
        _opened.set((command.connection, tunnel))
        await open_connection(self, command)

    def send_whole(self, event):
        if not isinstance(event, http_layers.RequestHeaders) or (proxy := _asked.get(self.conn)) is None:
            yield from send(self, event)
            return
        host, port = self.conn.address[:2]
        origin = Upstream(scheme="http", host=host, port=port).origin
        for command in send(self, event):
            command.data = for_proxy(command.data, origin, proxy)
            yield command

    ConnectionHandler.open_connection = open_noted
    _http1.Http1Client.send = send_whole


class Tunnel(TCPLayer):
    """Bytes to a host that is not looked at. mitmproxy closes both ways inside CONNECT when an agent closes its own."""

    def __init__(self, context, handler: ConnectionHandler) -> None:
        super().__init__(context, ignore=True)
        self._handler = handler

    def relay_messages(self, event):
        upstream = self.context.server
        if (
            isinstance(event, events.ConnectionClosed)
            and event.connection is self.context.client
            and upstream.state & connection.ConnectionState.CAN_READ
        ):
            # TLS, towards a proxy, has no half.
            with contextlib.suppress(NotImplementedError):
                self._handler.close_connection(upstream, half_close=True)
                return
        yield from super().relay_messages(event)


class _ChunkedReader(_http1.ChunkedReader):
    """mitmproxy crashes on trailers and the stream never ends; an intermediary may leave them out (RFC 9110 6.5.1)."""

    def __call__(self, buf: Any) -> Any:
        event = super().__call__(buf)
        if isinstance(event, _http1.h11.EndOfMessage) and event.headers:
            return _http1.h11.EndOfMessage()
        return event


@dataclass
class _AgentsReset(RequestProtocolError):
    """mitmproxy words a reset stream alike whoever reset it; the recorder has to tell who cut."""

    def __post_init__(self) -> None:
        if self.message.startswith("stream reset"):
            self.message = f"Client disconnected: {self.message}"


def _skip_informational() -> None:
    """mitmproxy takes an informational answer (100, 102, 103) for the final one."""
    read_headers = _http1.Http1Client.read_headers

    def read_final_headers(self, event):
        if self.request and isinstance(event, events.DataReceived):
            while (
                (start := bytes(self.buf)[:12]).startswith(b"HTTP/1.") and start[9:10] == b"1" and start[9:] != b"101"
            ):
                if self.buf.maybe_extract_lines() is None:
                    return
            if not self.buf:
                return
        yield from read_headers(self, event)

    _http1.Http1Client.read_headers = read_final_headers


def _cut_sockets_as_they_were_cut() -> None:
    """mitmproxy tells the other side of a torn WebSocket that it was closed in good order (1000)."""
    send = websocket.WebsocketConnection.send2

    def send_unless_torn(self, event):
        if getattr(event, "code", None) == _ABNORMAL_CLOSURE:
            return commands.SendData(self.conn, b"")
        return send(self, event)

    websocket.WebsocketConnection.send2 = send_unless_torn


def _finish_streams_after_goaway() -> None:
    """mitmproxy cuts every running stream when a peer announces that it takes no new ones (RFC 9113 6.8)."""
    receive = _http_h2.BufferedH2Connection._receive_goaway_frame
    make = _http2.Http2Client.__init__

    def receive_goaway(self, frame):
        running = [number for number, stream in self.streams.items() if not stream.closed]
        promised = not self.config.client_side or all(number <= frame.last_stream_id for number in running)
        if not running or not promised or frame.error_code:
            return receive(self, frame)
        if (upstream := getattr(self, "upstream", None)) is not None:
            _draining.add(upstream)
        return [], []

    def make_client(self, context):
        make(self, context)
        self.h2_conn.upstream = self.conn

    _http_h2.BufferedH2Connection._receive_goaway_frame = receive_goaway
    _http2.Http2Client.__init__ = make_client

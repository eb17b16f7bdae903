"""Where mitmproxy changes, holds or drops what passes, and what this recorder does about each.

`correct()` replaces pieces of mitmproxy 12.2 once per process, each with its reason. What stays as mitmproxy does it:
chunk sizes of HTTP/1 follow the reads; trailers of HTTP/1 and informational answers (103) are not passed on;
`Expect: 100-continue` is answered by the proxy; a request, or a WebSocket message, goes on once it is whole, and the
message is compressed anew where both sides agreed on compression; half a close of a tunnel closes it. Bodies, messages
and close codes are equal to a direct connection's.
"""

# mitmproxy's layers are half typed, and a correction reaches where no type is promised.
# mypy: disable-error-code="no-untyped-call,no-untyped-def,attr-defined,name-defined,assignment,method-assign,misc"
from __future__ import annotations

import asyncio
import collections
import weakref
from dataclasses import dataclass
from typing import Any

from mitmproxy import connection
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers import http as http_layers
from mitmproxy.proxy.layers import websocket
from mitmproxy.proxy.layers.http import _http1, _http2, _http_h2
from mitmproxy.proxy.layers.http._events import RequestProtocolError
from mitmproxy.proxy.server import ConnectionHandler

_ABNORMAL_CLOSURE = 1006  # RFC 6455 7.1.5: never in a frame, only the name of what happened
_NO_LIMIT = 1 << 16

_draining: weakref.WeakSet[connection.Connection] = weakref.WeakSet()
"""Upstream connections that take no new request."""

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
    _http2.Http2Server.ReceiveProtocolError = _AgentsReset


def lift_limits(handler: ConnectionHandler) -> None:
    """Let an agent's connection have as many upstream connections as it asks for.

    mitmproxy allows five; over HTTP/2 towards an HTTP/1 upstream the sixth parallel call would wait for another's end.
    """
    handler.max_conns = collections.defaultdict(lambda: asyncio.Semaphore(_NO_LIMIT))


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
    matches = http_layers.GetHttpConnection.connection_spec_matches

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

    def spec_matches(self, candidate):
        return candidate not in _draining and matches(self, candidate)

    _http_h2.BufferedH2Connection._receive_goaway_frame = receive_goaway
    _http2.Http2Client.__init__ = make_client
    http_layers.GetHttpConnection.connection_spec_matches = spec_matches

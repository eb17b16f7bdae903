"""HTTP/2 with every frame under the test's control: a model server over TLS, and a client behind a forward proxy."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events

from tests.loop_server import running_on_loopback


@dataclass
class H2Upstream:
    """Paths: /slow/N/MS streams N events; /goaway/N/MS the same, but announces its end after the first."""

    port: int = 0
    connections: int = 0
    cancelled: int = 0
    requests: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answers: dict[int, asyncio.Task[None]] = {}
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        try:
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        headers = dict(event.headers or [])
                        self.requests.append(headers)
                        path = headers[":path"]
                        stream = event.stream_id or 0
                        answers[stream] = asyncio.create_task(self._answer(connection, writer, stream, path))
                    elif isinstance(event, h2.events.StreamReset):
                        answers[event.stream_id or 0].cancel()
                        self.cancelled += 1
                    elif isinstance(event, h2.events.DataReceived):
                        connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                writer.write(connection.data_to_send())
        except ConnectionError:
            pass
        finally:
            for answer in answers.values():
                answer.cancel()
            writer.close()

    async def _answer(
        self, connection: h2.connection.H2Connection, writer: asyncio.StreamWriter, stream: int, path: str
    ) -> None:
        _, kind, count, pause_ms = path.split("/")
        connection.send_headers(stream, [(":status", "200"), ("content-type", "text/event-stream")])
        for number in range(int(count)):
            connection.send_data(stream, b'data: {"number": %d}\n\n' % number)
            writer.write(connection.data_to_send())
            if kind == "goaway" and number == 0:
                # A raw frame: the library would let nothing follow it.
                writer.write(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + stream.to_bytes(4) + bytes(4))
            await asyncio.sleep(int(pause_ms) / 1000)
        connection.end_stream(stream)
        writer.write(connection.data_to_send())


@contextmanager
def running_h2_upstream(leaf: Path) -> Iterator[H2Upstream]:
    """The server in a thread of its own, gone at the end; `leaf`: key and certificate of localhost in one file."""
    upstream = H2Upstream()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(leaf)
    context.set_alpn_protocols(["h2"])
    with running_on_loopback(upstream.serve, context=context) as upstream.port:
        yield upstream


class H2Client:
    """One HTTP/2 connection through a forward proxy, driven call by call."""

    def __init__(self, proxy_port: int, host: str, trust: ssl.SSLContext) -> None:
        raw = socket.create_connection(("127.0.0.1", proxy_port), timeout=20)
        raw.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")
        trust.set_alpn_protocols(["h2"])
        self._socket = trust.wrap_socket(raw, server_hostname=host)
        assert self._socket.selected_alpn_protocol() == "h2"
        self._host = host
        self._connection = h2.connection.H2Connection()
        self._connection.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()

    def get(self, path: str) -> int:
        """Send a request; returns its stream."""
        stream = self._connection.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", self._host), (":path", path)]
        self._connection.send_headers(stream, head, end_stream=True)
        self.bodies[stream] = b""
        self._socket.sendall(self._connection.data_to_send())
        return stream

    def cancel(self, stream: int) -> None:
        """Give a stream up, as an agent does that was interrupted."""
        self._connection.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self._socket.sendall(self._connection.data_to_send())

    def read_until(self, done: Callable[[], bool]) -> None:
        """Take what comes until `done()`."""
        while not done():
            data = self._socket.recv(65536)
            assert data, "the connection was closed"
            for event in self._connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.bodies[event.stream_id or 0] += event.data or b""
                    self._connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                elif isinstance(event, h2.events.StreamEnded):
                    self.ended.add(event.stream_id or 0)
                elif isinstance(event, h2.events.StreamReset):
                    self.reset.add(event.stream_id or 0)
                    self.ended.add(event.stream_id or 0)
            self._socket.sendall(self._connection.data_to_send())

    def close(self) -> None:
        """Drop the connection."""
        self._socket.close()

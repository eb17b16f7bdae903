"""A WebSocket client for tests: blocking, text frames, no extensions."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Any, Self

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, RejectConnection, Request, TextMessage


class WebSocketClient:
    """One socket; frames are JSON objects."""

    def __init__(
        self,
        port: int,
        path: str = "/v1/responses",
        headers: dict[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 20,
    ) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._socket = raw if tls is None else tls.wrap_socket(raw, server_hostname="localhost")
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._ready: list[str] = []
        self._part = ""
        self.refused: int | None = None  # status, where the handshake was refused
        self.closed = False
        extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self._socket.sendall(self._protocol.send(Request(host="localhost", target=path, extra_headers=extra)))
        self._accepted = False
        while not self._accepted and self.refused is None and not self.closed:
            self._pump()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: dict[str, Any] | str) -> None:
        """Sends one text frame."""
        text = frame if isinstance(frame, str) else json.dumps(frame)
        self._socket.sendall(self._protocol.send(TextMessage(data=text)))

    def receive(self) -> dict[str, Any] | None:
        """The next frame; None once the other side has closed or cut the socket."""
        while not self._ready and not self.closed:
            self._pump()
        read: dict[str, Any] | None = json.loads(self._ready.pop(0)) if self._ready else None
        return read

    def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Frames up to the first of one of these types, that one included, or up to the end of the socket."""
        frames: list[dict[str, Any]] = []
        while (frame := self.receive()) is not None:
            frames.append(frame)
            if frame.get("type") in kinds:
                break
        return frames

    def _pump(self) -> None:
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events():
            if isinstance(event, AcceptConnection):
                self._accepted = True
            elif isinstance(event, RejectConnection):
                self.refused = event.status_code
            elif isinstance(event, TextMessage):
                self._part += event.data
                if event.message_finished:
                    self._ready.append(self._part)
                    self._part = ""
            elif isinstance(event, CloseConnection):
                self.closed = True

"""OpenAI Responses over a WebSocket, server side: one text frame in per request, the answer's events out as frames.

A request may carry only what follows an earlier response (`previous_response_id`), may be a prewarm
(`generate: false`), and may name a stream of its own (`stream_id`) that its events then name as well; streams run side
by side, requests of one stream one after the other. permessage-deflate is declined.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from capture.script import HttpError
from capture.scripted_frame import Answer, Frame, as_json
from capture.scripted_http import Hangup, Head
from capture.scripted_log import Times
from capture.scripted_play import pause, play_frames

type Take = Callable[[Socket, bytes, dict[str, Any], int], Awaitable[None]]
"""Handles one `response.create`: the socket, the frame, the frame read, when it had come (monotonic ns)."""


class Socket:
    """One upgraded connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from wsproto import ConnectionType, WSConnection

        self._reader = reader
        self._writer = writer
        self._protocol = WSConnection(ConnectionType.SERVER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: defaultdict[str | None, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def serve(self, head: Head, take: Take) -> None:
        """Accepts the upgrade and handles frames until either side ends. Raises ValueError where it is no upgrade."""
        from wsproto.events import AcceptConnection, CloseConnection, Ping, TextMessage
        from wsproto.utilities import RemoteProtocolError

        try:
            headers = [(name.encode(), value.encode("latin-1")) for name, value in head.headers]
            self._protocol.initiate_upgrade_connection(headers, head.path)
            list(self._protocol.events())
            self._writer.write(self._protocol.send(AcceptConnection()))
        except RemoteProtocolError as error:
            raise ValueError(f"no upgrade to a WebSocket: {error}") from error
        text: list[str] = []
        try:
            while not self._writer.is_closing():
                data = await self._reader.read(65536)
                self._protocol.receive_data(data or None)
                for event in self._protocol.events():
                    if isinstance(event, TextMessage):
                        text.append(event.data)
                        if event.message_finished:
                            self._receive("".join(text).encode(), take)
                            text.clear()
                    elif isinstance(event, Ping):
                        self._writer.write(self._protocol.send(event.response()))
                    elif isinstance(event, CloseConnection):
                        if data:
                            self._writer.write(self._protocol.send(event.response()))
                        return
                if not data:
                    return
        except RemoteProtocolError:
            return
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _receive(self, data: bytes, take: Take) -> None:
        at_ns = time.monotonic_ns()
        try:
            frame = json.loads(data)
            kind = frame.get("type")
        except (ValueError, AttributeError):
            return self._error(None, 400, "invalid_request_error", "the frame is no JSON object")
        if kind == "response.create":
            task = asyncio.create_task(self._in_turn(data, frame, at_ns, take))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind not in ("response.processed", "response.steer", "response.cancel", "response.inject"):
            self._error(frame.get("stream_id"), 400, "invalid_request_error", f"unknown frame type {kind!r}")
        return None

    async def _in_turn(self, data: bytes, frame: dict[str, Any], at_ns: int, take: Take) -> None:
        async with self._turns[frame.get("stream_id")]:
            try:
                await take(self, data, frame, at_ns)
            except (ConnectionError, Hangup):
                self._writer.close()

    def _error(self, stream_id: str | None, status: int, kind: str, message: str, **extra: Any) -> None:
        error = {"type": kind, "code": kind, "message": message, "param": None}
        self.send({"type": "error", "status": status, "error": error} | extra, stream_id)

    def refuse(self, stream_id: str | None, error: HttpError) -> None:
        """Answers a request with an error frame, as the API wraps what would be an HTTP status."""
        headers = {} if error.retry_after_s is None else {"headers": {"retry-after": str(error.retry_after_s)}}
        self._error(stream_id, error.status, error.kind, error.message, **headers)

    def send(self, value: dict[str, Any], stream_id: str | None) -> None:
        """Sends one event as a text frame, with the stream's id where it has one."""
        from wsproto.events import TextMessage

        if self._writer.is_closing() or self._reader.at_eof():
            raise Hangup
        whole = value if stream_id is None else value | {"stream_id": stream_id}
        self._writer.write(self._protocol.send(TextMessage(data=as_json(whole).decode())))

    async def play(self, answer: Answer, times: Times) -> None:
        """Sends an answer at its step's pace."""
        stream_id = answer.request.stream_id
        await pause(answer.step.headers_ms)
        if answer.step.error is not None:
            times.status, times.fault = answer.step.error.status, f"HTTP {answer.step.error.status}"
            self.refuse(stream_id, answer.step.error)
            times.last_byte = time.monotonic_ns()
            return
        times.status = 200

        async def write(frame: Frame) -> None:
            self.send(json.loads(frame.payload), stream_id)
            times.headers = times.headers or time.monotonic_ns()
            await self._writer.drain()

        if await play_frames(answer, times, write):
            times.last_byte = time.monotonic_ns()
        else:
            self._writer.close()

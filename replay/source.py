"""A cheap source of streamed answers for the self-test: prebuilt chunks, sent when they are due; logs its own lateness.

Not a model server: it reads a request to its end and answers every one alike. Runs as a process of its own
(`python -m replay.source`), talks lines of JSON over its pipes, and ends when stdin does.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import math
import os
import select
import socket
import time
from dataclasses import dataclass, field

READ_BYTES = 262_144
LONGEST_WAIT_S = 0.5
_WORDS = (" the", " a", " model", " says", " little", " of", " much", " here")


@dataclass(slots=True, kw_only=True)
class _Stream:
    """One connection of the client."""

    socket: socket.socket
    head: bytes = b""  # of the request that is coming, as far as it has come
    body_left: int = 0
    reading_body: bool = False
    due_ns: int = 0
    sent: int = 0  # tokens of the answer at hand
    rest: bytes = b""  # what the kernel did not take


@dataclass(slots=True, kw_only=True)
class Source:
    """The listening socket and the streams; times in ns."""

    listener: socket.socket
    ttft_ns: int
    gap_ns: int
    tokens: int
    streams: dict[int, _Stream] = field(default_factory=dict)
    due: list[tuple[int, int]] = field(default_factory=list)  # heap of (when, descriptor)
    late_ns: list[int] = field(default_factory=list)
    events: int = 0
    requests: int = 0
    bytes_up: int = 0
    blocked: int = 0

    def serve(self, orders: int) -> None:
        """Answer until the descriptor `orders` ends; a line on it is answered with the counts since the last one."""
        chunks = [_chunked(_event({"index": 0, "delta": {"content": word}, "finish_reason": None})) for word in _WORDS]
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        usage = {"prompt_tokens": 0, "completion_tokens": self.tokens}
        tail = b"".join(
            [
                _chunked(_event({"index": 0, "delta": {}, "finish_reason": "length"})),
                _chunked(_event(None, usage)),
                _chunked(b"data: [DONE]\n\n"),
                b"0\r\n\r\n",
            ]
        )
        epoll = select.epoll()
        epoll.register(self.listener.fileno(), select.EPOLLIN)
        epoll.register(orders, select.EPOLLIN)
        buffer = memoryview(bytearray(READ_BYTES))
        self.reset()
        while True:
            wait_s = LONGEST_WAIT_S
            if self.due:
                wait_s = max(0.0, (self.due[0][0] - time.monotonic_ns()) / 1e9)
            for descriptor, _ in epoll.poll(min(wait_s, LONGEST_WAIT_S)):
                stream = self.streams.get(descriptor)
                if stream is not None:
                    self._read(epoll, stream, buffer)
                elif descriptor == self.listener.fileno():
                    self._accept(epoll)
                elif os.read(orders, 4096):
                    os.write(1, json.dumps(self.report()).encode() + b"\n")
                    self.reset()
                else:
                    return
            now = time.monotonic_ns()
            while self.due and self.due[0][0] <= now:
                due_ns, descriptor = heapq.heappop(self.due)
                stream = self.streams.get(descriptor)
                if stream is None or stream.due_ns != due_ns:
                    continue
                self.late_ns.append(now - due_ns)
                data = stream.rest + chunks[stream.sent % len(chunks)]
                if not stream.sent:
                    data = head + data
                stream.sent += 1
                self.events += 1
                if stream.sent == self.tokens:
                    data += tail
                    self.events += 3
                    stream.due_ns = 0
                else:
                    stream.due_ns = due_ns + self.gap_ns
                    heapq.heappush(self.due, (stream.due_ns, descriptor))
                self._send(epoll, stream, data)

    def reset(self) -> None:
        """Begin to count anew."""
        self.late_ns.clear()
        self.events = self.requests = self.bytes_up = self.blocked = 0
        self._cpu_ns, self._since_ns = time.process_time_ns(), time.monotonic_ns()

    _cpu_ns: int = 0
    _since_ns: int = 0

    def report(self) -> dict[str, float | int | None]:
        """What happened since the last one."""
        ordered = sorted(self.late_ns)
        return {
            "events": self.events,
            "requests": self.requests,
            "bytes_up": self.bytes_up,
            "blocked": self.blocked,
            "late_p99_ms": ordered[max(0, math.ceil(0.99 * len(ordered)) - 1)] / 1e6 if ordered else None,
            "cpu_share": (time.process_time_ns() - self._cpu_ns) / max(1, time.monotonic_ns() - self._since_ns),
        }

    def _accept(self, epoll: select.epoll) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, _ = self.listener.accept()
                accepted.setblocking(False)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.streams[accepted.fileno()] = _Stream(socket=accepted)
                epoll.register(accepted.fileno(), select.EPOLLIN)

    def _read(self, epoll: select.epoll, stream: _Stream, buffer: memoryview) -> None:
        try:
            size = stream.socket.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._close(epoll, stream)
            return
        self.bytes_up += size
        if not stream.reading_body:
            stream.head += bytes(buffer[:size])
            end = stream.head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = 0
            for line in stream.head[:end].lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            posted = stream.head.startswith(b"POST ")
            size = len(stream.head) - end - 4
            stream.head = b""
            if not posted:
                self._send(epoll, stream, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                return
            stream.body_left, stream.reading_body = length, True
        stream.body_left -= size
        if stream.body_left <= 0:
            stream.reading_body = False
            stream.sent = 0
            self.requests += 1
            stream.due_ns = time.monotonic_ns() + self.ttft_ns
            heapq.heappush(self.due, (stream.due_ns, stream.socket.fileno()))

    def _send(self, epoll: select.epoll, stream: _Stream, data: bytes) -> None:
        try:
            sent = stream.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(epoll, stream)
            return
        # The client has not read for long: the rest goes out with the next token.
        stream.rest = data[sent:]
        self.blocked += bool(stream.rest)

    def _close(self, epoll: select.epoll, stream: _Stream) -> None:
        descriptor = stream.socket.fileno()
        if self.streams.pop(descriptor, None) is not None:
            epoll.unregister(descriptor)
            stream.socket.close()


def _event(choice: dict[str, object] | None, usage: dict[str, int] | None = None) -> bytes:
    chunk: dict[str, object] = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "selftest",
        "choices": [] if choice is None else [choice],
    }
    if usage is not None:
        chunk["usage"] = usage
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def main() -> None:
    """Listen on a free port of the loopback and say its URL in the first line."""
    import gc

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ttft-s", type=float, required=True)
    parser.add_argument("--tok-s", type=float, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    options = parser.parse_args()
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.disable()  # its objects are few, make no cycles, and a pause would be its lateness
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    os.write(1, b"http://127.0.0.1:%d\n" % listener.getsockname()[1])
    Source(
        listener=listener,
        ttft_ns=int(options.ttft_s * 1e9),
        gap_ns=int(1e9 / options.tok_s),
        tokens=options.tokens,
    ).serve(0)


if __name__ == "__main__":
    main()

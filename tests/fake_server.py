"""A scripted OpenAI-compatible model server: known times, known counts, faults on purpose, a log of the truth.

    python tests/fake_server.py --port 0 --ttft-ms 200 --itl-ms 20

prints its URL and serves until it is interrupted. In a test:

    with serving(ttft_ms=50, itl_ms=5) as server:
        ... server.url ... server.log ... server.knobs.fail_status = 500

It answers with as many tokens as `max_tokens` asks for (`default_tokens` where it does not), fakes an end token
(id 2, `</s>`) that `logit_bias` can force, and stamps every answer's first and last write on the monotonic clock,
which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic_ns

import httptools

from tests.fake_knobs import Knobs, Served

END_TOKEN = 2
END_TEXT = "</s>"
VOCABULARY = 32_000


@dataclass
class _Stream:
    """An answer that is being written."""

    connection: _Connection
    served: Served
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    finish: str
    faulty: bool
    due_ns: int
    chat: bool = True
    include_usage: bool = False
    written: int = 0
    chunks: dict[str, bytes] = field(default_factory=dict)


class FakeServer:
    """The server's state; `start` and `stop` on its event loop."""

    def __init__(self, knobs: Knobs, *, keep_bodies: bool = True) -> None:
        self.knobs = knobs
        self.log: list[Served] = []
        self.keep_bodies = keep_bodies
        self.connections = 0
        self.answering = 0
        self.url = ""
        self._open: set[_Connection] = set()
        self._due: dict[int, list[_Stream]] = {}  # by millisecond
        self._next_ms = 0
        self._timer: asyncio.TimerHandle | None = None
        self._seen: dict[bytes, int] = {}  # start of a conversation → prompt tokens sent so far
        self._server: asyncio.Server | None = None
        self._chunk_cache: dict[object, bytes] = {}

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(
            lambda: _Connection(self), host, port, ssl=tls, backlog=4096, reuse_address=True
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{port}"

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._server is not None
        self._server.close()
        quiet = 0
        for _ in range(200):
            for connection in tuple(self._open):
                connection.transport.abort()
            await asyncio.sleep(0.005)
            quiet = 0 if self._open else quiet + 1
            if quiet == 3:  # what was being accepted has arrived by then
                break
        await self._server.wait_closed()

    # -- answers

    def load(self) -> float:
        """By how much every wait grows."""
        return max(1.0, self.answering / self.knobs.capacity) if self.knobs.capacity else 1.0

    def schedule(self, stream: _Stream) -> None:
        due_ms = stream.due_ns // 1_000_000
        self._due.setdefault(max(due_ms, self._next_ms), []).append(stream)
        if self._timer is None:
            self._next_ms = min(due_ms, monotonic_ns() // 1_000_000)
            self._timer = self._loop.call_later(0.001, self._tick)

    def _tick(self) -> None:
        now_ms = monotonic_ns() // 1_000_000
        while self._next_ms <= now_ms:
            while streams := self._due.pop(self._next_ms, ()):
                for stream in streams:
                    self._step(stream)
            self._next_ms += 1
        self._timer = self._loop.call_later(0.001, self._tick) if self._due else None

    def _step(self, stream: _Stream) -> None:
        knobs, connection, served = self.knobs, stream.connection, stream.served
        if connection.closed:
            return
        if stream.faulty:
            at = stream.written
            if knobs.cut_after is not None and at >= knobs.cut_after:
                connection.transport.abort()
                return
            if knobs.hang_after is not None and at >= knobs.hang_after:
                return
            if knobs.error_event_after is not None and at >= knobs.error_event_after:
                error = {"error": {"message": "the engine gave up", "type": "server_error", "code": 500}}
                connection.write_event(json.dumps(error))
                self._finish(stream, usage=False)
                return
            if knobs.garbage_after is not None and at == knobs.garbage_after:
                connection.write_event("<html>502 Bad Gateway</html>")
        count = min(knobs.tokens_per_chunk, stream.tokens - stream.written)
        served.last_token_at_ns = monotonic_ns()
        if served.first_token_at_ns is None:
            served.first_token_at_ns = served.last_token_at_ns
        connection.write_raw(self._chunk(stream, count))
        stream.written += count
        served.tokens = stream.written
        if stream.written >= stream.tokens:
            self._finish(stream, usage=True)
            return
        stream.due_ns += int(knobs.itl_ms * 1e6 * self.load())
        self.schedule(stream)

    def _chunk(self, stream: _Stream, count: int) -> bytes:
        knobs = self.knobs
        kind = "text"
        if stream.written < knobs.reasoning_tokens:
            kind = "reasoning"
        elif stream.written >= stream.tokens - knobs.tool_call_tokens:
            kind = "tool"
        key = (stream.chat, kind, count, stream.connection.framing_key())
        chunk = self._chunk_cache.get(key)
        if chunk is None:
            text = " token" * count
            if not stream.chat:
                choice: dict[str, object] = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
            elif kind == "reasoning":
                choice = {"index": 0, "delta": {"reasoning_content": text}, "logprobs": None, "finish_reason": None}
            elif kind == "tool":
                call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "ls", "arguments": text}}
                choice = {"index": 0, "delta": {"tool_calls": [call]}, "logprobs": None, "finish_reason": None}
            else:
                choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
            chunk = self._chunk_cache[key] = stream.connection.framed(json.dumps(self._envelope(stream.chat, choice)))
        return chunk

    def _envelope(self, chat: bool, choice: dict[str, object] | None) -> dict[str, object]:
        return {
            "id": "chatcmpl-0123456789abcdef0123456789abcdef",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1_780_000_000,
            "model": self.knobs.model,
            "choices": [] if choice is None else [choice],
        }

    def begin(self, stream: _Stream) -> None:
        self.answering += 1
        if stream.chat and self.knobs.role_chunk:
            delta = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            stream.connection.write_event(json.dumps(self._envelope(True, delta)))
        self.schedule(stream)

    def _finish(self, stream: _Stream, *, usage: bool) -> None:
        connection = stream.connection
        if usage:
            last = {"index": 0, "finish_reason": stream.finish, **({"delta": {}} if stream.chat else {"text": ""})}
            connection.write_event(json.dumps(self._envelope(stream.chat, last)))
            if stream.include_usage and self.knobs.usage:
                chunk = self._envelope(stream.chat, None)
                chunk["usage"] = self.usage(stream)
                connection.write_event(json.dumps(chunk))
        if self.knobs.done_marker:
            connection.write_event("[DONE]")
        self._end(stream)
        connection.end_answer()

    def usage(self, stream: _Stream) -> dict[str, object]:
        usage: dict[str, object] = {
            "prompt_tokens": stream.prompt_tokens,
            "completion_tokens": stream.tokens if self.knobs.claims_tokens is None else self.knobs.claims_tokens,
            "total_tokens": stream.prompt_tokens + stream.tokens,
        }
        if self.knobs.cached_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": stream.cached_tokens}
        if self.knobs.reasoning_tokens:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.knobs.reasoning_tokens}
        return usage

    def _end(self, stream: _Stream) -> None:
        self.answering -= 1
        stream.served.ended_at_ns = monotonic_ns()
        stream.connection.stream = None

    def cached(self, start: bytes, prompt_tokens: int) -> int:
        """How much of a prompt an earlier one with the same start brought: as if every conversation only grew."""
        seen = self._seen.get(start, 0)
        self._seen[start] = max(seen, prompt_tokens)
        return min(seen, prompt_tokens - 1)


class _Connection(asyncio.Protocol):
    """One client connection; the protocol of asyncio and of httptools."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.closed = False
        self.stream: _Stream | None = None
        self.requests = 0
        self._url, self._body = b"", []  # type: bytes, list[bytes]
        self._headers: dict[str, str] = {}
        self._held: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self.server.connections += 1
        self.number = self.server.connections
        self.server._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.closed = True
        self.server._open.discard(self)
        if self.stream is not None:
            self.stream.served.client_left = True
            self.server._end(self.stream)
        del self.parser

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        url, body = self._url.decode(), b"".join(self._body)
        method = self.parser.get_method().decode()
        self._url, self._body = b"", []
        self.headers, self._headers = self._headers, {}
        self.requests += 1
        knobs = self.server.knobs
        if knobs.close_on_reuse and self.requests > 1:
            self.transport.close()
            return
        path = url.partition("?")[0]
        if method == "GET":
            self._control(path)
        elif path == "/tokenize":
            self._tokenize(body)
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self._complete(path, body)
        else:
            self._json(404, {"error": {"message": f"no such path: {path}"}})

    # -- control

    def _control(self, path: str) -> None:
        knobs = self.server.knobs
        if path == "/v1/models" and knobs.list_models:
            card: dict[str, object] = {"id": knobs.model, "object": "model", "owned_by": "fake"}
            if knobs.tell_context and knobs.context_tokens:
                card["max_model_len"] = knobs.context_tokens
            card["meta"] = {"n_vocab": VOCABULARY}
            self._json(200, {"object": "list", "data": [card]})
        elif path == "/props" and knobs.properties:
            properties: dict[str, object] = {"eos_token": END_TEXT}
            if knobs.tell_context and knobs.context_tokens:
                properties["default_generation_settings"] = {"n_ctx": knobs.context_tokens}
            self._json(200, properties)
        elif path == "/log":
            self._json(200, [_entry(served) for served in self.server.log])
        else:
            self._json(404, {"error": {"message": f"no such path: {path}"}})

    def _tokenize(self, body: bytes) -> None:
        if not self.server.knobs.tokenize:
            self._json(404, {"error": {"message": "no such path"}})
            return
        asked = json.loads(body)
        text = asked.get("content", asked.get("prompt", ""))
        self._json(200, {"tokens": [END_TOKEN] if text == END_TEXT else [3 + byte for byte in text.encode()]})

    # -- completions

    def _complete(self, path: str, body: bytes) -> None:
        server, knobs = self.server, self.server.knobs
        asked = json.loads(body)
        served = Served(
            number=len(server.log), path=path, connection=self.number, arrived_at_ns=monotonic_ns(),
            body=body if server.keep_bodies else b"", headers=self.headers,
        )  # fmt: skip
        server.log.append(served)
        faulty = (served.number + 1) % knobs.fail_every == 0
        if faulty and knobs.fail_status is not None:
            self._json(knobs.fail_status, {"error": {"message": "broken on purpose", "code": knobs.fail_status}})
            return
        if asked.get("model") != knobs.model:
            self._json(404, {"error": {"message": f"no model {asked.get('model')!r}"}})
            return
        refused = next((name for name in knobs.refused_fields if name in asked), None)
        if refused is not None:
            self._json(422, {"detail": f"Unexpected keys in the request: {{{refused!r}}}"})
            return
        chat = path == "/v1/chat/completions"
        prompt = asked["messages"] if chat else asked["prompt"]
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            if knobs.refuse_token_ids:
                self._json(400, {"error": {"message": "prompt must be a string"}})
                return
            prompt_tokens, start = len(prompt), json.dumps(prompt[:8]).encode()
        else:
            text = json.dumps(prompt)
            prompt_tokens, start = max(1, len(text) // 4), text[:64].encode()
        tokens = asked.get("max_tokens") or asked.get("max_completion_tokens") or knobs.default_tokens
        limit = knobs.context_tokens
        if limit is not None and prompt_tokens + tokens > limit:
            self._json(
                400,
                {
                    "error": {
                        "code": 400,
                        "type": "exceed_context_size_error",
                        "message": f"This model's maximum context length is {limit} tokens; you asked for more.",
                    }
                },
            )
            return
        finish = "length"
        if not (asked.get("ignore_eos") and knobs.obey_ignore_eos):
            bias = asked.get("logit_bias") or {}
            ends_at = 1 if float(bias.get(str(END_TOKEN), 0)) >= 50 else knobs.natural_tokens
            if ends_at is not None and ends_at <= tokens:
                tokens, finish = ends_at, "stop"
        if knobs.tool_call_tokens and finish == "stop":
            finish = "tool_calls"
        served.prompt_tokens = prompt_tokens
        cached = server.cached(start, prompt_tokens)
        if not asked.get("stream") or not knobs.stream:
            message = {"role": "assistant", "content": " token" * tokens}
            choice = {"index": 0, "message": message, "text": " token" * tokens, "finish_reason": finish}
            self._json(200, {"object": "chat.completion", "choices": [choice]})
            return
        ttft_ns = (knobs.ttft_ms + knobs.prefill_ms_per_1000_tokens * (prompt_tokens - cached) / 1000) * 1e6
        stream = _Stream(
            connection=self, served=served, tokens=tokens, prompt_tokens=prompt_tokens, cached_tokens=cached,
            finish=finish, faulty=faulty, chat=chat, due_ns=served.arrived_at_ns + int(ttft_ns * server.load()),
            include_usage=bool((asked.get("stream_options") or {}).get("include_usage")),
        )  # fmt: skip
        self.stream = stream
        if knobs.slow_headers_ms:
            server._loop.call_later(knobs.slow_headers_ms / 1000, self._start, stream)
        else:
            self._start(stream)

    def _start(self, stream: _Stream) -> None:
        if self.closed:
            return
        knobs = self.server.knobs
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        head += "transfer-encoding: chunked\r\n" if knobs.chunked else "connection: close\r\n"
        if knobs.compress:
            head += "content-encoding: gzip\r\n"
        if knobs.close_each:
            head += "keep-alive: timeout=5, max=100\r\n"
        self._write((head + "\r\n").encode())
        self.server.begin(stream)

    def framing_key(self) -> object:
        return self.server.knobs.chunked, self.server.knobs.line_end

    def framed(self, payload: str) -> bytes:
        end = self.server.knobs.line_end
        event = f"data: {payload}{end}{end}".encode()
        return b"%x\r\n%b\r\n" % (len(event), event) if self.server.knobs.chunked else event

    def write_event(self, payload: str) -> None:
        self._write(b"".join([*self._held, self.framed(payload)]))
        self._held.clear()

    def write_raw(self, data: bytes) -> None:
        if self.server.knobs.hold_back:
            self._held.append(data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        size = self.server.knobs.write_bytes
        if size is None:
            self.transport.write(data)
            return
        for start in range(0, len(data), size):
            self.transport.write(data[start : start + size])

    def end_answer(self) -> None:
        if self.server.knobs.chunked:
            self.transport.write(b"0\r\n\r\n")
        if self.server.knobs.close_each or not self.server.knobs.chunked:
            self.transport.close()

    def _json(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} Fake\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


def _entry(served: Served) -> dict[str, object]:
    return {key: value for key, value in dataclasses.asdict(served).items() if key != "body"}


@contextlib.contextmanager
def serving(*, tls: ssl.SSLContext | None = None, **knobs: object) -> Iterator[FakeServer]:
    """A server in a thread of its own, gone at the end of the block."""
    server = FakeServer(Knobs(**knobs))  # type: ignore[arg-type]
    started = threading.Event()
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()

    async def main() -> None:
        await server.start(tls=tls)
        started.set()
        await leave.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), name="fake-server", daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join(10)
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    kinds = {item.name: item for item in dataclasses.fields(Knobs)}
    for name, item in kinds.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(item.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default)
        else:
            kind = float if "float" in str(item.type) else int if "int" in str(item.type) else str
            parser.add_argument(flag, type=kind, default=item.default)
    options = vars(parser.parse_args())
    port = options.pop("port")

    async def serve() -> None:
        server = FakeServer(Knobs(**options), keep_bodies=False)
        await server.start(port=port)
        print(server.url, flush=True)
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        try:
            import uvloop
        except ImportError:
            asyncio.run(serve())
        else:
            uvloop.run(serve())


if __name__ == "__main__":
    main()

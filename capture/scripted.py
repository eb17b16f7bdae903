"""A scripted model server on loopback: it answers like a provider, by a script, and writes down when.

It speaks Anthropic Messages, OpenAI Chat Completions and OpenAI Responses, streaming and not, so that demo, tests
and benches can drive agents, real ones too, without a provider. Start it with `with ScriptedServer(script) as server:`
in a thread of this process (server and caller then read one monotonic clock) or as a process:
`python -m capture.scripted SCRIPT.json --ready-file F --log L`.
"""

from __future__ import annotations

import argparse
import asyncio
import http
import json
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from capture.atomic import write_atomically
from capture.script import Choose, Dialect, HttpError, ScriptedRequest, Step, ToolResult, read_script
from capture.scripted_answer import Answer, Frame, body, error_body, error_frame, frames
from capture.scripted_request import decode_body, dialect_of, read_request

_LARGEST_HEAD = 256 * 1024
_LARGEST_BODY = 512 * 1024 * 1024
_KNOWN_STATUS = {status.value for status in http.HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCall:
    """A tool call as it went out."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLog:
    """One request as the server saw it, without the values of headers. Times are the process's monotonic ns."""

    number: int  # from 1, in order of arrival
    connection: int
    method: str
    path: str
    header_names: tuple[str, ...]  # lower case, as sent, in order
    user_agent: str
    content_encoding: str
    dialect: Dialect | None  # None: no call to a model (models list, count_tokens, telemetry, unknown paths)
    model: str
    stream: bool
    tool_names: tuple[str, ...]
    tool_results: tuple[ToolResult, ...]
    answered: int | None
    calls: tuple[MadeCall, ...]  # tool calls of the answer
    status: int | None
    received_headers_ns: int
    received_body_ns: int
    headers_written_ns: int | None
    first_content_ns: int | None
    last_content_ns: int | None
    last_byte_ns: int | None
    content_events: int
    body_bytes: int  # of the request, as it came
    client_left: bool  # the client hung up before the last byte


class _Hangup(Exception):
    """The client left."""


@dataclass(slots=True, kw_only=True)
class _Head:
    method: str
    path: str
    headers: list[tuple[str, str]]
    at_ns: int

    def value(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


class _Times:
    """Stamps of one answer while it is being written."""

    def __init__(self) -> None:
        self.headers: int | None = None
        self.first_content: int | None = None
        self.last_content: int | None = None
        self.last_byte: int | None = None
        self.content_events = 0
        self.status: int | None = None


class ScriptedServer:
    """The server as a context manager; it runs in a thread and stops with the block.

    `script` says what to answer: a `Script` or any function of the request. `salt` makes ids repeatable.
    """

    def __init__(
        self,
        script: Choose,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: tuple[str, ...] = ("scripted-model",),
        salt: str | None = None,
        on_finished: Callable[[RequestLog], None] | None = None,
    ) -> None:
        self._script = script
        self._address = (host, port)
        self._models = models
        self._salt = secrets.token_hex(6) if salt is None else salt
        self._on_finished = on_finished
        self._log: list[RequestLog] = []
        self._issued: dict[str, int] = {}
        self._requests = 0
        self._connections = 0
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="scripted-model", daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """Base URL without a path: append /v1 where a client wants it."""
        return f"http://{self._address[0]}:{self.port}"

    @property
    def log(self) -> tuple[RequestLog, ...]:
        """Finished requests in order of arrival; readable during and after the run."""
        return tuple(sorted(self._log, key=lambda entry: entry.number))

    @property
    def calls(self) -> tuple[RequestLog, ...]:
        """The finished requests that are calls to a model which offer tools: the turns of the script."""
        return tuple(entry for entry in self.log if entry.dialect is not None and entry.tool_names)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop may have ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connected, *self._address, limit=_LARGEST_HEAD, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        connection = self._connections
        try:
            while await self._one_request(reader, writer, connection):
                pass
        except (
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ConnectionError,
            _Hangup,
            asyncio.CancelledError,
        ):
            pass  # whatever the client did is in the log; nothing is left to answer
        except ValueError as error:
            await self._refuse(writer, error)
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> bool:
        head = _read_head(await reader.readuntil(b"\r\n\r\n"))
        if head.value("expect").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        sent = await _read_body(reader, head)
        received_ns = time.monotonic_ns()
        self._requests += 1
        number = self._requests
        times = _Times()
        request: ScriptedRequest | None = None
        made: tuple[MadeCall, ...] = ()
        left = False
        keep = head.value("connection").lower() != "close"
        try:
            dialect = dialect_of(head.path) if head.method == "POST" else None
            if dialect is None:
                await self._other(writer, head, sent, times)
            else:
                try:
                    decoded = decode_body(sent, head.value("content-encoding"))
                    request = read_request(dialect, head.path, decoded, self._issued)
                except (ValueError, OSError, AttributeError, TypeError) as error:
                    text = error_body(dialect, "invalid_request_error", f"the body cannot be read: {error}")
                    await _write_json(writer, times, 400, text)
                else:
                    step = self._choose(request)
                    answer = Answer(
                        request=request,
                        step=step,
                        number=number,
                        salt=self._salt,
                        created_s=time.time_ns() // 1_000_000_000,
                    )
                    if step.error is None:
                        made = self._issue(answer)
                    keep = await _write_answer(reader, writer, times, answer) and keep
        except (ConnectionError, _Hangup):
            left = True
            raise
        finally:
            entry = RequestLog(
                number=number,
                connection=connection,
                method=head.method,
                path=head.path,
                header_names=tuple(name for name, _ in head.headers),
                user_agent=head.value("user-agent"),
                content_encoding=head.value("content-encoding"),
                dialect=request.dialect if request else None,
                model=request.model if request else "",
                stream=request.stream if request else False,
                tool_names=request.tool_names if request else (),
                tool_results=request.tool_results if request else (),
                answered=request.answered if request else None,
                calls=made,
                status=times.status,
                received_headers_ns=head.at_ns,
                received_body_ns=received_ns,
                headers_written_ns=times.headers,
                first_content_ns=times.first_content,
                last_content_ns=times.last_content,
                last_byte_ns=times.last_byte,
                content_events=times.content_events,
                body_bytes=len(sent),
                client_left=left,
            )
            self._log.append(entry)
            if self._on_finished is not None:
                self._on_finished(entry)
        return keep

    async def _refuse(self, writer: asyncio.StreamWriter, error: ValueError) -> None:
        with suppress(ConnectionError):
            text = error_body(None, "invalid_request_error", f"no HTTP request that this server can read: {error}")
            await _write_json(writer, _Times(), 400, text, headers={"connection": "close"})

    def _choose(self, request: ScriptedRequest) -> Step:
        try:
            return self._script(request)
        except Exception as error:  # noqa: BLE001 - a fault of the caller's script, raised where the block ends
            self._failure = self._failure or error
            return Step(error=HttpError(status=500, message=f"the script failed: {error!r}"))

    def _issue(self, answer: Answer) -> tuple[MadeCall, ...]:
        made = []
        for call_id, call in zip(answer.call_ids, answer.step.calls, strict=True):
            self._issued[call_id] = answer.number
            made.append(MadeCall(call_id=call_id, name=call.name, arguments=call.arguments))
        return tuple(made)

    async def _other(self, writer: asyncio.StreamWriter, head: _Head, sent: bytes, times: _Times) -> None:
        """Answers what is no call to a model, so that no agent stumbles over it."""
        plain = head.path.partition("?")[0].rstrip("/")
        if "websocket" in head.value("upgrade").lower():
            text = error_body(None, "upgrade_required", "this server speaks HTTP with server-sent events only")
            await _write_json(writer, times, 426, text)
        elif head.method == "GET" and plain.endswith("/models"):
            await _write_json(writer, times, 200, self._model_list())
        elif plain.endswith("/messages/count_tokens"):
            await _write_json(writer, times, 200, json.dumps({"input_tokens": len(sent) // 4 + 1}).encode())
        else:
            await _write_json(writer, times, 200, b"{}", without_body=head.method == "HEAD")

    def _model_list(self) -> bytes:
        made = "2026-01-01T00:00:00Z"
        models = [
            {
                "id": name,
                "object": "model",
                "type": "model",
                "display_name": name,
                "created": 0,
                "created_at": made,
                "owned_by": "scripted",
            }
            for name in self._models
        ]
        return json.dumps(
            {
                "object": "list",
                "data": models,
                "has_more": False,
                "first_id": self._models[0] if self._models else None,
                "last_id": self._models[-1] if self._models else None,
            }
        ).encode()


def _read_head(data: bytes) -> _Head:
    at_ns = time.monotonic_ns()
    first, *lines = data.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers.append((name.strip().lower(), value.strip()))
    return _Head(method=method, path=path, headers=headers, at_ns=at_ns)


async def _read_body(reader: asyncio.StreamReader, head: _Head) -> bytes:
    if head.value("transfer-encoding").lower() == "chunked":
        chunks = []
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            chunks.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while (await reader.readuntil(b"\r\n")) != b"\r\n":
            pass  # trailers
        return b"".join(chunks)
    length = int(head.value("content-length") or 0)
    if length > _LARGEST_BODY:
        raise asyncio.LimitOverrunError("the body is larger than any prompt", length)
    return await reader.readexactly(length)


def _head_bytes(status: int, headers: dict[str, str]) -> bytes:
    reason = http.HTTPStatus(status).phrase if status in _KNOWN_STATUS else "Scripted"
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _write_json(
    writer: asyncio.StreamWriter,
    times: _Times,
    status: int,
    content: bytes,
    *,
    headers: dict[str, str] | None = None,
    without_body: bool = False,
) -> None:
    head = {"content-type": "application/json", "content-length": str(len(content))} | (headers or {})
    times.status = status
    writer.write(_head_bytes(status, head) + (b"" if without_body else content))
    times.headers = times.last_byte = time.monotonic_ns()
    await writer.drain()


async def _write_answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: _Times, answer: Answer
) -> bool:
    """Writes an answer at the step's pace; true where the connection may carry another request."""
    step, request = answer.step, answer.request
    await _pause(step.headers_ms)
    if step.error is not None:
        await _write_http_error(writer, times, request.dialect, step.error)
        return True
    identity = {"request-id" if request.dialect == "anthropic.messages" else "x-request-id": answer.identity("req_")}
    if not request.stream:
        await _pause(step.first_content_ms)
        if step.broken is not None:
            writer.close()
            return False
        times.first_content = times.last_content = time.monotonic_ns()
        await _write_json(writer, times, 200, body(answer), headers=identity)
        return True
    head = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "transfer-encoding": "chunked",
    }
    times.status = 200
    writer.write(_head_bytes(200, head | identity))
    times.headers = time.monotonic_ns()
    pause_ms = step.first_content_ms
    for frame in frames(answer):
        if frame.starts_block or frame.content:
            await _pause(pause_ms)
            pause_ms = 0.0
        if step.broken is not None and frame.content and times.content_events >= step.broken.after_content_events:
            if step.broken.how == "error_event":
                await _write_frame(reader, writer, times, error_frame(answer, step.broken.kind, step.broken.message))
                break
            writer.close()
            return False
        await _write_frame(reader, writer, times, frame)
        if frame.content:
            pause_ms = step.between_ms
    writer.write(b"0\r\n\r\n")
    times.last_byte = time.monotonic_ns()
    await writer.drain()
    return True


async def _write_http_error(writer: asyncio.StreamWriter, times: _Times, dialect: Dialect, error: HttpError) -> None:
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    await _write_json(writer, times, error.status, error_body(dialect, error.kind, error.message), headers=headers)


async def _write_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: _Times, frame: Frame) -> None:
    if writer.is_closing() or reader.at_eof():
        raise _Hangup
    writer.write(b"%x\r\n%b\r\n" % (len(frame.data), frame.data))
    if frame.content:
        # Taken after the write: the bytes are with the kernel, as no client can have read them before.
        times.last_content = time.monotonic_ns()
        times.first_content = times.first_content or times.last_content
        times.content_events += 1
    await writer.drain()


async def _pause(milliseconds: float) -> None:
    if milliseconds > 0:
        await asyncio.sleep(milliseconds / 1000)


def main(arguments: list[str] | None = None) -> int:
    """Runs the server as a process until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m capture.scripted",
        description="Answers model requests by a script, on loopback.",
        epilog="Example: python -m capture.scripted script.json --ready-file url.txt --log log.jsonl",
    )
    parser.add_argument("script", type=Path, help="JSON file: {'steps': [{'text': …, 'calls': […]}, …]}")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--ready-file", type=Path, help="gets the base URL once connections are accepted")
    parser.add_argument("--log", type=Path, help="gets one JSON line per finished request")
    parser.add_argument("--model", action="append", help="a model name for /v1/models; repeatable")
    given = parser.parse_args(arguments)
    try:
        script = read_script(given.script)
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - a program of its own, without click
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    log_path: Path | None = given.log
    models = tuple(given.model or ("scripted-model",))

    def write_log(entry: RequestLog) -> None:
        if log_path is not None:
            with log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(entry)) + "\n")

    with ScriptedServer(script, port=given.port, models=models, on_finished=write_log) as server:
        if given.ready_file is not None:
            write_atomically(given.ready_file, f"{server.url}\n".encode())
        else:
            print(server.url, flush=True)  # noqa: T201
        stop.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

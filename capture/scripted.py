"""A scripted model server on loopback: it answers like a provider, by a script, and writes down when.

It speaks Anthropic Messages, OpenAI Chat Completions, OpenAI Responses (also over a WebSocket, and `/compact`) and
Gemini, streaming and not, so that demo, tests and benches can drive agents, real ones too, without a provider. Start it
with `with ScriptedServer(script) as server:` in a thread of this process (server and caller then read one monotonic
clock) or as a process: `python -m capture.scripted SCRIPT.json --ready-file F --log L`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from capture.atomic import write_atomically
from capture.script import Choose, HttpError, ScriptedRequest, Step, read_script
from capture.scripted_answer import Answer, error_body
from capture.scripted_http import LARGEST_HEAD, Hangup, Head, read_body, read_head, write_json
from capture.scripted_log import MadeCall, Memory, RequestLog, Times, Transport
from capture.scripted_other import other_answer
from capture.scripted_play import write_answer
from capture.scripted_request import UnknownResponse, decode_body, dialect_of, prompt_items, read_request
from capture.scripted_responses import output
from capture.scripted_socket import Socket

__all__ = ["MadeCall", "RequestLog", "ScriptedServer", "main"]


class ScriptedServer:
    """The server as a context manager; it runs in a thread and stops with the block.

    `script` says what to answer: a `Script`, `Scripts` or any function of the request. `salt` makes ids repeatable.
    `ssl_context` makes it speak TLS. `websocket_refusal` is the status that an upgrade gets; None: it is accepted.
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
        ssl_context: ssl.SSLContext | None = None,
        websocket_refusal: int | None = None,
    ) -> None:
        self._script = script
        self._address = (host, port)
        self._models = models
        self._salt = secrets.token_hex(6) if salt is None else salt
        self._on_finished = on_finished
        self._ssl = ssl_context
        self._websocket_refusal = websocket_refusal
        self._log: list[RequestLog] = []
        self._memory = Memory()
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
        return f"{'http' if self._ssl is None else 'https'}://{self._address[0]}:{self.port}"

    @property
    def log(self) -> tuple[RequestLog, ...]:
        """Finished requests in order of arrival; readable during and after the run."""
        return tuple(sorted(self._log, key=lambda entry: entry.number))

    @property
    def calls(self) -> tuple[RequestLog, ...]:
        """The finished requests that are calls to a model which offer tools, but for prewarms: the script's turns."""
        return tuple(e for e in self.log if e.dialect is not None and e.tool_names and e.purpose != "prewarm")

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
        server = await asyncio.start_server(
            self._connected, *self._address, limit=LARGEST_HEAD, backlog=1024, ssl=self._ssl
        )
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
            Hangup,
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
        head = read_head(await reader.readuntil(b"\r\n\r\n"))
        if head.value("expect").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        sent = await read_body(reader, head)
        if "websocket" in head.value("upgrade").lower() and self._websocket_refusal is None:
            await self._upgraded(reader, writer, connection, head)
            return False
        received_ns = time.monotonic_ns()
        number = self._next_number()
        times = Times()
        answer: Answer | None = None
        left = False
        keep = head.value("connection").lower() != "close"
        try:
            dialect = dialect_of(head.path) if head.method == "POST" else None
            if dialect is None:
                status, content = other_answer(head, sent, self._models, self._websocket_refusal)
                await write_json(writer, times, status, content, without_body=head.method == "HEAD")
            else:
                try:
                    decoded = decode_body(sent, head.value("content-encoding"))
                    request = read_request(dialect, head.path, decoded, self._memory, head.headers)
                except (ValueError, OSError, AttributeError, TypeError, LookupError) as error:
                    unknown = isinstance(error, UnknownResponse)
                    kind = "previous_response_not_found" if unknown else "invalid_request_error"
                    text = error_body(dialect, kind, str(error) if unknown else f"the body cannot be read: {error}")
                    await write_json(writer, times, 400, text)
                else:
                    answer = self._answer(request, number, decoded)
                    keep = await write_answer(reader, writer, times, answer) and keep
        except (ConnectionError, Hangup):
            left = True
            raise
        finally:
            stream = answer is not None and answer.request.stream
            transport: Transport = "sse" if stream else "http"
            self._finish(
                head, connection, number, answer, times, left=left, transport=transport, sent=sent,
                received_ns=received_ns,
            )  # fmt: skip
        return keep

    async def _upgraded(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int, head: Head
    ) -> None:
        async def take(socket: Socket, data: bytes, frame: dict[str, Any], at_ns: int) -> None:
            number = self._next_number()
            times = Times()
            answer: Answer | None = None
            left = True
            try:
                try:
                    request = read_request("openai.responses", head.path, data, self._memory, head.headers)
                except (ValueError, AttributeError, TypeError, LookupError) as error:
                    unknown = isinstance(error, UnknownResponse)
                    kind = "previous_response_not_found" if unknown else "invalid_request_error"
                    socket.refuse(frame.get("stream_id"), HttpError(status=400, kind=kind, message=str(error)))
                    times.status, times.last_byte = 400, time.monotonic_ns()
                else:
                    answer = self._answer(request, number, data)
                    await socket.play(answer, times)
                left = False
            finally:
                self._finish(
                    head, connection, number, answer, times, left=left, transport="websocket", sent=data,
                    received_ns=at_ns,
                )  # fmt: skip

        await Socket(reader, writer).serve(head, take)

    def _next_number(self) -> int:
        self._requests += 1
        return self._requests

    def _answer(self, request: ScriptedRequest, number: int, body: bytes) -> Answer:
        """The answer that is due, remembered as given unless the step refuses it."""
        step = self._choose(request).at_attempt(request.attempt)
        if request.purpose == "prewarm":  # nothing is said, so nothing of the step may be logged as said
            step = replace(step, text="", reasoning="", calls=())
        created_s = time.time_ns() // 1_000_000_000
        answer = Answer(request=request, step=step, number=number, salt=self._salt, created_s=created_s)
        if step.error is not None:
            return answer
        for call_id in answer.call_ids:
            self._memory.issued[call_id] = number
        if request.purpose == "summary" and step.broken is None:
            self._memory.summaries.append((step.text.strip(), number))
        if request.dialect == "openai.responses":
            items = [*prompt_items(body, self._memory), *output(answer)]
            self._memory.chains[answer.response_id] = (items, request.body_bytes)
        return answer

    def _finish(
        self,
        head: Head,
        connection: int,
        number: int,
        answer: Answer | None,
        times: Times,
        *,
        left: bool,
        transport: Transport,
        sent: bytes,
        received_ns: int,
    ) -> None:
        request = answer.request if answer else None
        step = answer.step if answer and answer.step.error is None else None
        made = zip(answer.call_ids, step.calls, strict=True) if answer and step else ()
        ended = step is not None and times.fault is None and times.last_byte is not None
        entry = RequestLog(
            number=number,
            connection=connection,
            method=head.method if transport != "websocket" else "WEBSOCKET",
            path=head.path,
            header_names=tuple(name for name, _ in head.headers),
            user_agent=head.value("user-agent"),
            content_encoding=head.value("content-encoding"),
            dialect=request.dialect if request else None,
            model=request.model if request else "",
            stream=transport == "websocket" or (request is not None and request.stream),
            tool_names=request.tool_names if request else (),
            tool_results=request.tool_results if request else (),
            answered=request.answered if request else None,
            calls=tuple(MadeCall(call_id=i, name=c.name, arguments=c.arguments) for i, c in made),
            status=times.status,
            received_headers_ns=received_ns if transport == "websocket" else head.at_ns,
            received_body_ns=received_ns,
            headers_written_ns=times.headers,
            first_content_ns=times.first_content,
            last_content_ns=times.last_content,
            last_byte_ns=times.last_byte,
            content_events=times.content_events,
            body_bytes=len(sent),
            client_left=left,
            transport=transport,
            purpose=request.purpose if request else None,
            identity=request.identity if request else (),
            previous_response_id=request.previous_response_id if request else None,
            stream_id=request.stream_id if request else None,
            response_id=answer.response_id if answer and step else None,
            step=answer.step.label if answer else "",
            attempt=request.attempt if request else 0,
            usage=answer.usage if answer and ended else None,
            text=step.text if step else "",
            fault=times.fault,
            opening_text=request.opening_text if request else "",
        )
        self._log.append(entry)
        if self._on_finished is not None:
            self._on_finished(entry)

    async def _refuse(self, writer: asyncio.StreamWriter, error: ValueError) -> None:
        with suppress(ConnectionError):
            text = error_body(None, "invalid_request_error", f"no HTTP request that this server can read: {error}")
            await write_json(writer, Times(), 400, text, headers={"connection": "close"})

    def _choose(self, request: ScriptedRequest) -> Step:
        try:
            return self._script(request)
        except Exception as error:  # noqa: BLE001 - a fault of the caller's script, raised where the block ends
            self._failure = self._failure or error
            return Step(error=HttpError(status=500, message=f"the script failed: {error!r}"))


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

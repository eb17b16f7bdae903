"""A tiny model server for the recorder's tests: raw HTTP/1.1 on loopback, so that every byte and pause is known."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.loop_server import running_on_loopback

ROOT = Path(__file__).parent.parent
GZIP_BODY = gzip.compress(b'{"answer": "' + b"x" * 5000 + b'"}', mtime=0)


@dataclass
class Upstream:
    """`requests` holds (head, body) as they arrived; paths: /slow/N/MS, /cut, /gzip, /silent, /malformed, others."""

    port: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        body = await reader.readexactly(length)
        self.requests.append((head, body))
        path = head.split(b" ")[1].decode()
        if path.startswith("/slow/"):
            _, _, count, pause_ms = path.partition("?")[0].split("/")
            await self._stream(writer, int(count), int(pause_ms) / 1000)
        elif path == "/cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            await writer.drain()
            return False
        elif path == "/silent":
            return False
        elif path == "/malformed":
            writer.write(b"HTTP/1.1 200 OK\r\nset-cookie session=cookie-value-1\r\ncontent-length: 2\r\n\r\n{}")
        elif path == "/gzip":
            head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(GZIP_BODY)
            writer.write(head + GZIP_BODY)
        else:
            writer.write(
                b"HTTP/1.1 200 OK\r\nset-cookie: session=cookie-value-1; Path=/\r\ncontent-length: 2\r\n\r\n{}"
            )
        await writer.drain()
        return True

    @staticmethod
    async def _stream(writer: asyncio.StreamWriter, count: int, pause_s: float) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(count):
            event = b'event: delta\ndata: {"number": %d}\n\n' % number
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.write(b"0\r\n\r\n")


@contextmanager
def running_upstream(port: int = 0) -> Iterator[Upstream]:
    """The server in a thread of its own, gone at the end; `port` 0: a free one."""
    upstream = Upstream()
    with running_on_loopback(upstream.serve, port=port) as upstream.port:
        yield upstream


def agentdyno(*arguments: str, planted: str = "") -> list[str]:
    """The command line of agentdyno in this interpreter; `planted` is Python that runs before it."""
    return [sys.executable, "-c", f"{planted}\nfrom agentdyno import main; main()", *arguments]


@dataclass
class Served:
    """A running `capture serve`."""

    process: subprocess.Popen[bytes]
    url: str
    stderr: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def wait_for(path: Path, process: subprocess.Popen[bytes], stderr: Path) -> str:
    """The content of a ready file; fails with the process's own words."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, stderr.read_text()
        assert time.monotonic() < deadline, "not ready within 60 s"
        time.sleep(0.02)
    return path.read_text().strip()


@contextmanager
def running_serve(
    folder: Path, *arguments: str, name: str = "serve", limit_bytes: int | None = None, planted: str = ""
) -> Iterator[Served]:
    """`capture serve --store FOLDER/store …`, killed at the end if it still runs; `limit_bytes` is of each file."""
    ready, stderr = folder / f"{name}.ready", folder / f"{name}.stderr"

    def limit() -> None:
        import resource

        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    with stderr.open("wb") as log:
        process = subprocess.Popen(
            agentdyno(
                *("capture", "serve", "--store", str(folder / "store"), "--ready-file", str(ready), *arguments),
                planted=planted,
            ),
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=limit if limit_bytes is not None else None,
            env={**os.environ, "HOME": str(folder)},
        )
    try:
        yield Served(process, wait_for(ready, process, stderr), stderr)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)

"""The last resort when the recorder cannot be started again: a relay that records nothing, so that the agent goes on.

Standard library only. Each connection carries one request: its target is rewritten as the recorder would have done
it, `Connection: close` is asked for, and from then on bytes are copied both ways unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from capture.outbound import Dialler, Outbound, for_proxy
from capture.roots import tls_context
from capture.upstream import Routes, Upstream

_HEAD_BYTES = 1 << 20
_CHUNK = 1 << 16
_CONNECT_S = 30.0


@dataclass(slots=True)
class BareRelay:
    """Listens on loopback in a thread of its own. `routes` None: a forward proxy."""

    routes: Routes | None
    outbound: Outbound = field(default_factory=Outbound)
    requests: int = 0
    _context: ssl.SSLContext | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _task: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, host: str, port: int) -> None:
        """Begin to listen. OSError where the address cannot be had."""
        listening = threading.Event()
        fault: list[OSError] = []

        async def serve() -> None:
            try:
                server = await asyncio.start_server(self._accept, host, port, limit=_HEAD_BYTES)
            except OSError as error:
                fault.append(error)
                listening.set()
                return
            listening.set()
            # Not serve_forever(): cancelled, it would wait for every connection to end by itself.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        def run() -> None:
            loop = self._loop = asyncio.new_event_loop()
            self._task = loop.create_task(serve())
            loop.run_until_complete(self._task)
            loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        listening.wait()
        if fault:
            self._thread.join()
            raise fault[0]

    def stop(self) -> None:
        """Close everything."""
        if self._thread is not None and self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # closed already
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(5)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ValueError):
            pass
        finally:
            self._tasks.discard(task)
            await _close(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        dialler = Dialler(self.outbound, self._tls)
        line, _, rest = head.partition(b"\r\n")
        method, target, version = line.split(b" ", 2)
        self.requests += 1
        if method == b"CONNECT":
            host, _, port = target.decode("ascii").rpartition(":")
            opened = dialler.open(host.strip("[]"), int(port), tunnel=True)
            far_reader, far_writer = await asyncio.wait_for(opened, _CONNECT_S)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            found = self._find(target.decode("latin-1"))
            if found is None:
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                await writer.drain()
                return
            upstream, path = found
            secure = upstream.scheme == "https"
            opened = dialler.open(upstream.host, upstream.port, tunnel=secure)
            far_reader, far_writer = await asyncio.wait_for(opened, _CONNECT_S)
            if secure:
                await asyncio.wait_for(far_writer.start_tls(self._tls(), server_hostname=upstream.host), _CONNECT_S)
            first = b" ".join((method, path.encode("latin-1"), version))
            asked = first + b"\r\n" + _headers(rest, upstream.authority)
            proxy = None if secure else dialler.asked(upstream.host, upstream.port)
            far_writer.write(asked if proxy is None else for_proxy(asked, upstream.origin, proxy))
        try:
            await asyncio.gather(_copy(reader, far_writer, half=True), _copy(far_reader, writer, half=False))
        finally:
            # Not closed in good order: with TLS that waits for the other side, for half a minute.
            far_writer.transport.abort()

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = tls_context()
        return self._context

    def _find(self, target: str) -> tuple[Upstream, str] | None:
        if self.routes is not None:
            return self.routes.target(target)
        parts = urlsplit(target)
        if parts.scheme != "http" or not parts.hostname:
            return None
        path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        return Upstream(scheme="http", host=parts.hostname, port=parts.port or 80), path


def _headers(block: bytes, authority: str) -> bytes:
    lines = [line for line in block.split(b"\r\n") if line]
    upgrades = any(line.lower().startswith(b"upgrade:") for line in lines)
    dropped: tuple[bytes, ...] = (b"host:", b"proxy-connection:", b"proxy-authorization:")
    if not upgrades:
        dropped += (b"connection:", b"keep-alive:")
    kept = [line for line in lines if not line.lower().startswith(dropped)]
    own = [f"Host: {authority}".encode("ascii"), *([] if upgrades else [b"Connection: close"])]
    return b"\r\n".join((*own, *kept)) + b"\r\n\r\n"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, half: bool) -> None:
    """Copy to the end. `half`: of the two ways the one to the server, whose end leaves the other open."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if not half:
            await _close(writer)
        elif writer.can_write_eof():
            writer.write_eof()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()

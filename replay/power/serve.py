"""A power server: this node's sources for a run that is made elsewhere, over HTTPS and with a token.

Every source is read at its own period into a bounded memory; a client asks for what is new since it asked last. What
an outsider can do is bounded too: connections, their time, and what they may send.
"""

from __future__ import annotations

import contextlib
import hmac
import http.server
import ipaddress
import secrets
import signal
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from capture.atomic import write_atomically
from replay.power.exchange import (
    MOST_SAMPLES,
    PAGE,
    POWER_SERVER_VERSION,
    PowerAnswer,
    encode_answer,
    pack_sample,
)
from replay.power.source import PowerFault, PowerSample, PowerSource

MOST_KEPT = 200_000
"""Readings; of 8 GPUs in three kinds at 5 Hz, 28 minutes."""
MOST_CONNECTIONS = 64
FIRST_S = 10.0
"""In which a connection must have shown its token."""
IDLE_S = 60.0
POLL_S = 0.1
"""Between two looks for connections whose time is over."""
SHORTEST_TOKEN = 16
_STOP_S = 2.0


class _Kept:
    """The latest readings, numbered from the start of the server."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._first = 0  # the number of the oldest one that is kept
        self._samples: list[PowerSample] = []

    def add(self, samples: Sequence[PowerSample]) -> None:
        with self._lock:
            self._samples += samples
            if len(self._samples) > 2 * self._most:  # seldom, since it moves all of them
                dropped = len(self._samples) - self._most
                del self._samples[:dropped]
                self._first += dropped

    @property
    def next(self) -> int:
        with self._lock:
            return self._first + len(self._samples)

    def after(self, number: int) -> tuple[list[PowerSample], int, bool]:
        """Readings from this number on, how many of them are gone, and whether there are more than these."""
        with self._lock:
            begin = max(0, number - self._first)
            found = self._samples[begin : begin + MOST_SAMPLES]
            return found, max(0, self._first - number), begin + len(found) < len(self._samples)


class PowerServer:
    """Serves open sources until it is left; a context manager. The sources are the caller's to close.

    Raises PowerFault where the address cannot be taken. `clock` is what the sources' times are by.
    """

    def __init__(
        self,
        sources: Sequence[PowerSource],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        most_kept: int = MOST_KEPT,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._sources = tuple(sources)
        infos = tuple(source.describe() for source in self._sources)
        self._kept = _Kept(most_kept)
        self._stop = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(source, info.period_s), name=f"power-{info.kind}", daemon=True)
            for source, info in zip(self._sources, infos, strict=True)
        ]
        try:
            self._server = _Server((host, port), _Answers(infos, self._kept, token, clock), tls)
        except OSError as fault:
            raise PowerFault(f"cannot listen at {host}:{port}: {fault.strerror or fault}") from fault
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="power-server", daemon=True
        )
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls is not None else 'http'}://{shown}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        for thread in (*self._readers, self._thread):
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.close_all()
        for thread in (*self._readers, self._thread):
            thread.join(_STOP_S)

    def _read(self, source: PowerSource, period_s: float) -> None:
        """On a fixed grid: a tick that is missed is missed."""
        period_ns = round(period_s * 1e9)
        start_ns = time.monotonic_ns()
        while True:
            with contextlib.suppress(Exception):  # a source promises to raise nothing; if it does, there is no reading
                self._kept.add(source.read())
            passed_ns = time.monotonic_ns() - start_ns
            if self._stop.wait((period_ns - passed_ns % period_ns) / 1e9):
                return


class _Answers:
    """What is answered to whom."""

    def __init__(self, infos: Sequence[Any], kept: _Kept, token: str | None, clock: Callable[[], int]) -> None:
        self._sources = msgspec.to_builtins(list(infos))
        self._kept = kept
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self._id = secrets.token_hex(8)
        self.clock = clock

    def allows(self, authorization: str) -> bool:
        return self._authorization is None or hmac.compare_digest(
            authorization.encode("utf-8", "replace"), self._authorization
        )

    def is_meant(self, host: str) -> bool:
        """Without a token, whether a request names this machine: a web page whose name was bent to it does not."""
        if self._authorization is not None or not host:
            return True
        try:
            return is_loopback(urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return False

    def answer(self, target: str, received_ns: int) -> bytes | None:
        """The body for a request's target; None where it is none of ours."""
        parts = urlsplit(target)
        if parts.path != PAGE:
            return None
        asked = parse_qs(parts.query, max_num_fields=4).get("after")
        answer = PowerAnswer(
            agentdyno_power_server=POWER_SERVER_VERSION,
            server=self._id,
            received_ns=received_ns,
            sent_ns=0,
            next=self._kept.next,
        )
        if asked is None:
            answer.sources = self._sources
        elif not asked[-1].isdecimal() or len(asked[-1]) > 15:
            return None
        else:
            samples, answer.dropped, answer.more = self._kept.after(int(asked[-1]))
            answer.samples = [pack_sample(sample) for sample in samples]
            answer.next = int(asked[-1]) + answer.dropped + len(samples)
        answer.sent_ns = self.clock()
        return encode_answer(answer)


class _Server(socketserver.ThreadingTCPServer):
    """A thread per connection, of which there are few, each with a deadline."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], answers: _Answers, tls: ssl.SSLContext | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answers = answers
        self._tls = tls
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # until when, by the monotonic clock in seconds
        super().__init__(address, _Handler)

    def extend(self, connection: socket.socket, seconds: float) -> None:
        with self._lock:
            if connection in self._open:
                self._open[connection] = time.monotonic() + seconds

    def close_all(self) -> None:
        self.server_close()
        with self._lock:
            for connection in self._open:
                _cut(connection)

    def service_actions(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            for connection, until_s in self._open.items():
                if until_s < now_s:
                    _cut(connection)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the names are the library's
        with self._lock:
            return len(self._open) < MOST_CONNECTIONS

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Runs in the connection's own thread, so that a slow handshake keeps nobody else waiting."""
        connection: socket.socket = request
        if self._tls is not None:
            connection = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._open[connection] = time.monotonic() + FIRST_S
        try:
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            _Handler(connection, client_address, self)
        finally:
            with self._lock:
                del self._open[connection]
            connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is its client's affair."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait for the other side
    server: _Server

    def do_GET(self) -> None:
        received_ns = self.server.answers.clock()
        if self.headers.get("content-length") or self.headers.get("transfer-encoding"):
            self.close_connection = True
            self._send(400, b"a request has no body here\n", "text/plain")
            return
        if not self.server.answers.allows(self.headers.get("authorization") or ""):
            self.close_connection = True
            self._send(401, b"the token is missing or wrong\n", "text/plain")
            return
        if not self.server.answers.is_meant(self.headers.get("host") or ""):
            self.close_connection = True
            self._send(403, b"without a token, ask by the name of the loopback\n", "text/plain")
            return
        self.server.extend(self.connection, IDLE_S)
        try:
            body = self.server.answers.answer(self.path, received_ns)
        except ValueError:  # no URL
            body = None
        if body is None:
            self._send(404, f"ask for {PAGE} or {PAGE}?after=NUMBER\n".encode(), "text/plain")
        else:
            self._send(200, body, "application/json")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Of the library's own refusals; a page that quotes the request is of no use here."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self._send(int(code), b"not a request that is answered here\n", "text/plain")

    def version_string(self) -> str:
        return "agentdyno"

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a request's line and its refusals are no news."""

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if code == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name below `.localhost` may be asked of a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server shows of itself; raises PowerFault naming the file."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)

    def no_password() -> str:
        raise PowerFault(f"{key} is encrypted: give a key without a passphrase, readable by you alone")

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError as fault:
        raise PowerFault(
            f"{certificate} and {key} are no certificate and its key in PEM ({fault.reason or fault})"
        ) from fault
    except OSError as fault:
        raise PowerFault(f"{certificate} or {key} cannot be read: {fault.strerror or fault}") from fault
    return context


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # The plain socket's own: TLS's would wait for the other side.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def serve_until_told(
    sources: Sequence[PowerSource],
    *,
    host: str,
    port: int,
    token: str | None,
    tls: ssl.SSLContext | None,
    ready_file: Path | None,
    on_ready: Callable[[str], None],
) -> None:
    """Serves until SIGINT or SIGTERM; raises PowerFault where the address cannot be taken.

    `ready_file` gets one line, the URL, by a rename once requests are accepted; it is removed at the end.
    """
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with PowerServer(sources, host=host, port=port, token=token, tls=tls) as server:
            if ready_file is not None:
                write_atomically(ready_file, f"{server.url}\n".encode())
            on_ready(server.url)
            try:
                while not told.wait(0.2):  # a plain wait() would hold the signal back
                    pass
            finally:
                if ready_file is not None:
                    ready_file.unlink(missing_ok=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A loopback OTLP/HTTP receiver: what agents export to it, as the exchanges that the recorder would keep."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from capture.exchange import Exchange
from capture.otlp import HOST
from tests.exchanges import exchange


def export(
    path: str, body: bytes, *, headers: tuple[tuple[str, str], ...] = (("content-type", "application/x-protobuf"),)
) -> Exchange:
    """One export as the recorder keeps it; header names in lower case."""
    return replace(exchange(path, body, b"", headers=headers), host=HOST)


class OtlpReceiver:
    """Takes exports in at `endpoint` while its block lasts; `exchanges` holds them in order of arrival."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        received = self.exchanges

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = tuple((name.lower(), value) for name, value in self.headers.items())
                received.append(export(self.path, body, headers=headers))
                self.send_response(200)
                self.send_header("content-type", self.headers.get("content-type", ""))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/otlp"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def numbered(exchanges: list[Exchange]) -> list[tuple[str, Exchange]]:
    """Each export with a file name: 01-logs, 02-traces, …"""
    counter = itertools.count(1)
    return [(f"{next(counter):02}-{exchange.path.rpartition('/')[2]}", exchange) for exchange in exchanges]

"""A metrics page on loopback whose content a test sets, and an exporter that shows simulated GPUs on it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGES = Path(__file__).parent / "data" / "metrics_pages"


@dataclass
class Site:
    """What a server answers, and what it was asked."""

    answer: Callable[[str], tuple[int, bytes]]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)
    date: Callable[[], float] = time.time  # noqa: TID251  # a server's own clock, which may be wrong


@contextlib.contextmanager
def site(answer: Callable[[str], tuple[int, bytes]] | bytes) -> Iterator[Site]:
    """A server on loopback; `answer` gets the path and gives status and body."""
    told = answer
    found = Site(answer=(lambda _: (200, told)) if isinstance(told, bytes) else told)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked.append(self.path)
            found.headers.append(self.headers)
            status, body = found.answer(self.path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response_only(status)
                self.send_header("date", formatdate(found.date(), usegmt=True))
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Exporter:
    """Two GPUs of 400 and 650 W, shown as dcgm-exporter does, read anew every `refresh_s` and never in between."""

    refresh_s: float = 0.05
    watts: tuple[float, ...] = (400.0, 650.0)
    millijoules: float = 1000.0  # of one joule: 1 where it counts joules
    gauge: bool = True
    start_ns: int = field(default_factory=time.monotonic_ns)
    gone: set[int] = field(default_factory=set)
    extra: str = ""

    def __call__(self, _: str) -> tuple[int, bytes]:
        passed_s = (time.monotonic_ns() - self.start_ns) / 1e9
        at_s = passed_s // self.refresh_s * self.refresh_s
        lines = ["# TYPE DCGM_FI_DEV_POWER_USAGE gauge", "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter"]
        for index, watts in enumerate(self.watts):
            if index in self.gone:
                continue
            labels = f'{{gpu="{index}",UUID="GPU-{index}",modelName="H200",Hostname="n1",DCGM_FI_DRIVER_VERSION="580"}}'
            if self.gauge:
                lines.append(f"DCGM_FI_DEV_POWER_USAGE{labels} {watts:.6f}")
            joules = 1e6 + watts * at_s
            lines.append(f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{labels} {round(joules * self.millijoules)}")
        return 200, ("\n".join(lines) + "\n" + self.extra).encode()

    def joules(self, index: int, t_ns: int) -> float:
        """The truth at an instant."""
        return 1e6 + self.watts[index] * (t_ns - self.start_ns) / 1e9

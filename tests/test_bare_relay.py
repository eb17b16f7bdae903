"""The relay of last resort: nothing recorded, every byte passed on."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from capture.bare_relay import BareRelay
from capture.upstream import Routes
from capture.upstream import Upstream as Target
from tests.sse_upstream import Upstream, running_upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fetch(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, data=data, headers={"x-api-key": "k"}), timeout=20) as got:
        return got.status, got.read()


def test_a_stream_comes_through_as_the_upstream_sends_it(upstream: Upstream, port: int) -> None:
    relay = BareRelay(routes=Routes(by_segment=(("a", Target.parse(f"{upstream.url}")),)))
    relay.start("127.0.0.1", port)
    try:
        answer = fetch(f"http://127.0.0.1:{port}/a/slow/20/2", b"{}")
        assert answer == fetch(f"{upstream.url}/slow/20/2", b"{}")
        head, body = upstream.requests[-2]
        assert head.startswith(b"POST /slow/20/2 HTTP/1.1\r\n")
        assert f"Host: 127.0.0.1:{upstream.port}\r\n".encode() in head
        assert b"key: k" in head.lower()
        assert body == b"{}"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(f"http://127.0.0.1:{port}/elsewhere/x")
        assert relay.requests == 2
    finally:
        relay.stop()
    with pytest.raises(OSError):  # noqa: PT011 - whatever a closed port answers
        fetch(f"http://127.0.0.1:{port}/a/x")


def test_as_a_forward_proxy_it_tunnels_and_passes_plain_requests(upstream: Upstream, port: int) -> None:
    relay = BareRelay(routes=None)
    relay.start("127.0.0.1", port)
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as tunnel:
            tunnel.sendall(f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert tunnel.recv(4096).startswith(b"HTTP/1.1 200 ")
            tunnel.sendall(b"GET /inside HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tunnel.recv(4096).startswith(b"HTTP/1.1 200 OK")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{port}"}))
        assert opener.open(f"{upstream.url}/plain?x=1", timeout=20).read() == b"{}"
        assert [head.split(b" ")[1] for head, _ in upstream.requests[-2:]] == [b"/inside", b"/plain?x=1"]
    finally:
        relay.stop()


def test_what_is_no_http_and_an_upstream_that_is_away_cost_one_connection(port: int) -> None:
    relay = BareRelay(routes=Routes(default=Target.parse("http://127.0.0.1:1")))
    relay.start("127.0.0.1", port)
    try:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                connection.sendall(b"nonsense\r\n\r\n")
                assert connection.recv(10) == b""
            with pytest.raises(OSError):  # noqa: PT011 - a connection without an answer
                fetch(f"http://127.0.0.1:{port}/x")
        with pytest.raises(OSError):  # noqa: PT011 - the system's words
            BareRelay(routes=None).start("127.0.0.1", port)
    finally:
        relay.stop()

"""The way to the servers: several URLs, affinity headers, proxies, and time-outs per phase."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from replay.drive import drive
from replay.endpoint import Endpoint, EndpointError
from replay.loop import run
from replay.probe import probe
from replay.proxy import Proxy
from replay.transport import CollectingTransport
from replay.wire import Timeouts, Wire
from tests.fake_server import FakeServer, serving
from tests.test_drive import WHOLE, HandPlan, HandScript, chain, turn
from tests.test_transport import SIZED, certificate, raw_server

__all__ = ["certificate"]  # a fixture

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@asynccontextmanager
async def connect_proxy(answer: bytes | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """An HTTP proxy that knows CONNECT alone; with `answer` it says that and closes. Its port and the heads it took."""
    heads: list[bytes] = []
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if answer is not None:
            writer.write(answer)
            writer.close()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\nvia: 1.1 here\r\n\r\n")
        for task in (pump(reader, back), pump(there, writer)):
            pumps.add(asyncio.create_task(task))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


# -- several URLs


def test_agents_are_dealt_among_equal_servers_and_stay_there() -> None:
    scripts = {f"s{number}": HandScript(chain(2)) for number in range(5)}
    with serving() as first, serving() as second:
        endpoint = Endpoint([first.url, second.url + "/v1/"], "fake-model", affinity_headers=("X-Session-ID", "X-Lane"))
        result = run(drive(HandPlan(scripts), endpoint, agents=5, protocol=WHOLE))
    assert [len(first.log), len(second.log)] == [6, 4]
    assert {(record.agent, record.server) for record in result.records} == {(agent, agent % 2) for agent in range(5)}
    ids = [served.headers["x-session-id"] for server in (first, second) for served in server.log]
    assert len(set(ids)) == 5  # one per play, the same for both of its turns
    assert all(ids.count(each) == 2 for each in ids)
    assert all(served.headers["x-lane"] == served.headers["x-session-id"] for served in first.log)
    assert not any(record.salt in each for record in result.records for each in ids)


def test_servers_must_be_alike() -> None:
    async def check(*urls: str) -> object:
        async with Endpoint(urls, "fake-model").connect() as caller:
            return await caller.check_model()

    with serving() as first, serving(context_tokens=4096) as second, serving(model="other") as third:
        assert run(check(first.url)) is not None
        with pytest.raises(EndpointError, match=r"not alike: .* put a router and name its URL"):
            run(check(first.url, second.url))
        with pytest.raises(EndpointError, match=r"has no model 'fake-model'.*put a router"):
            run(check(first.url, third.url))


def test_a_second_server_that_is_missing_is_named() -> None:
    with serving() as server, pytest.raises(EndpointError, match=r"no server answers at http://127\.0\.0\.1:9 "):
        run(drive(HandPlan({"s": HandScript(chain(1))}), Endpoint((server.url, "http://127.0.0.1:9"), "m"),
                  agents=1, protocol=WHOLE))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"urls": ()}, "no URL is named"),
        ({"urls": ("http://h", "http://h/v1")}, "named twice"),
        ({"affinity_headers": ("Authorization",)}, "cannot carry a play's id"),
        ({"affinity_headers": ("X-A: b\r\nX-C",)}, "cannot carry a play's id"),
        ({"proxy": "socks5://h:1"}, "is not an HTTP proxy"),
        ({"proxy": "http://user:secret@h:1"}, "--proxy holds credentials"),
        ({"proxy": "http://h:1/path"}, "is not an HTTP proxy"),
    ],
)
def test_endpoints_that_are_none(options: dict[str, object], words: str) -> None:
    with pytest.raises(EndpointError, match=words) as fault:
        Endpoint(**{"urls": "http://h", "model": "m", **options})  # type: ignore[arg-type]
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize("in_stream", [False, True], ids=["refusal", "error event"])
def test_a_key_that_a_server_repeats_is_neither_kept_nor_printed(
    in_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-0123456789")

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            key = next(line for line in head.splitlines() if line.startswith("authorization"))
            body = f'data: {{"error": "no {key}"}}\n\n' if in_stream else f'{{"error": "no {key}"}}'
            status = 200 if in_stream and "POST" in head else 500
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        endpoint = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m", "SOME_KEY")
        try:
            result = await drive(HandPlan({"s": HandScript(chain(1))}), endpoint, agents=1, protocol=WHOLE)
            assert result.records[0].error == "no authorization: Bearer [credential]"
            with pytest.raises(EndpointError, match=r"no authorization: Bearer \[credential\]"):
                await probe(endpoint)
        finally:
            server.close()

    run(main())


# -- proxies


def test_every_byte_goes_through_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_PROXY", "user:p4ss")

    async def main(server: FakeServer) -> None:
        async with connect_proxy() as (port, heads):
            endpoint = Endpoint(server.url, "fake-model", proxy=f"http://127.0.0.1:{port}", proxy_key_env="OUR_PROXY")
            result = await drive(HandPlan({"s": HandScript(chain(3))}), endpoint, agents=1, protocol=WHOLE)
        assert [record.outcome for record in result.records] == ["ok"] * 3
        assert [record.reused_connection for record in result.records] == [False, True, True]
        assert len(heads) == 2  # the question at the start, and the agent's own connection
        authority = server.url.removeprefix("http://").encode()
        assert all(head.startswith(b"CONNECT " + authority + b" HTTP/1.1\r\n") for head in heads)
        assert all(b"Proxy-Authorization: Basic " + base64.b64encode(b"user:p4ss") in head for head in heads)
        # The server is told nothing of it.
        assert not any("proxy-authorization" in served.headers for served in server.log)
        assert "p4ss" not in repr(endpoint) + repr(endpoint.way())

    with serving(ttft_ms=5) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("runner", [asyncio.run, run], ids=["asyncio", "uvloop"])
def test_tls_inside_the_tunnel(runner, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def main(url: str) -> None:
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with connect_proxy() as (port, heads):
            proxy = Proxy(host="127.0.0.1", port=port)
            for tls, fails in ((trusting, False), (None, True)):  # our own context does not know the certificate
                transport = CollectingTransport(ssl_context=tls, proxy=proxy)
                async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
                    if fails:
                        with pytest.raises(httpx.ConnectError, match=r"through the proxy: .*certificate"):
                            await http.get(url + "/v1/models")
                    else:
                        assert (await http.get(url + "/v1/models")).status_code == 200
        assert len(heads) == 2

    with serving(tls=context) as server:
        runner(main(server.url))


def test_our_tls_context_is_one_and_offers_http_1_1_alone(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # how a private authority is trusted
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    made: list[ssl.SSLContext] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: made.append(create()) or made[-1])

    async def main(url: str) -> None:
        async with Endpoint(url, "fake-model").connect() as caller:
            await caller.reach()
            wires = [Wire(), Wire()]
            for lane, wire in enumerate(wires):  # a connection each
                await caller.collect("/tokenize", b'{"content":"x"}', wire, lane=lane)
            assert [wire.status for wire in wires] == [200, 200]
            (connection, *_) = caller.transport._open
            told = connection._transport.get_extra_info("ssl_object")  # type: ignore[union-attr]
            assert told.selected_alpn_protocol() == "http/1.1"

    with serving(tls=context) as server:
        asyncio.run(main(server.url))
    (only,) = made
    assert only.verify_mode == ssl.CERT_REQUIRED
    assert only.check_hostname


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "refuses: 407 Proxy Authentication Required"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "refuses: 502 Bad Gateway"),
        (b"", "it does not speak HTTP/1.1: ''"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP/1.1: 'SSH-2.0-OpenSSH'"),
    ],
)
def test_a_proxy_that_refuses_is_named(answer: bytes, words: str) -> None:
    async def main() -> None:
        async with connect_proxy(answer) as (port, _):
            endpoint = Endpoint("http://127.0.0.1:9", "m", proxy=f"http://127.0.0.1:{port}")
            async with endpoint.connect() as caller:
                with pytest.raises(EndpointError, match=words):
                    await caller.reach()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("environment", "url", "refused"),
    [
        ({"HTTP_PROXY": "http://u:secret@p:1"}, "http://model.example", "HTTP_PROXY"),
        ({"https_proxy": "http://p:1"}, "https://model.example", "HTTPS_PROXY"),
        ({"ALL_PROXY": "socks5://p:1"}, "http://model.example:8000/v1", "ALL_PROXY"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://model.example", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "other, .example"}, "http://model.example", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, "http://model.example", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:8000", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://localhost:8000", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://[::1]:8000", None),
        ({}, "http://model.example", None),
    ],
)
def test_a_proxy_of_the_environment_is_settled_or_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, refused: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    endpoint = Endpoint(url, "m")
    if refused is None:
        assert endpoint.way() is None
    else:
        with pytest.raises(EndpointError, match=rf"names a proxy \({refused}\) for .*--proxy none to go directly") as f:
            endpoint.connect()
        assert "secret" not in str(f.value)
    assert Endpoint(url, "m", proxy="none").way() is None
    assert Endpoint(url, "m", proxy="http://p:3128").way() == Proxy(host="p", port=3128)


def test_missing_credentials_of_a_proxy_are_named() -> None:
    with pytest.raises(EndpointError, match="NO_SUCH_VARIABLE is not set"):
        Endpoint("http://h", "m", proxy="http://p:1", proxy_key_env="NO_SUCH_VARIABLE").connect()


# -- time-outs


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """A port that takes connections into its queue and never says a word, not even in TLS."""
    import socket

    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("knobs", "limits", "phase"),
    [
        (
            {"slow_headers_ms": 3000},
            {"first_byte_timeout_s": 0.2},
            "no answer began within 0.2 s (first-byte time-out)",
        ),
        # Headers at once and then nothing: no byte of the answer itself.
        ({"hang_after": 0, "role_chunk": False}, {"first_byte_timeout_s": 0.2}, "(first-byte time-out)"),
        ({"hang_after": 3}, {"idle_timeout_s": 0.2}, "the answer stood still for 0.2 s (idle time-out)"),
        ({"hang_after": 3}, {"request_timeout_s": 0.4}, "not complete after 0.4 s (total time-out)"),
        ({"itl_ms": 40}, {"request_timeout_s": 0.4, "idle_timeout_s": 0.3}, "(total time-out)"),
    ],
)
def test_a_time_out_names_its_phase(knobs: dict[str, object], limits: dict[str, float], phase: str) -> None:
    protocol = dataclasses.replace(WHOLE, **limits)
    with serving(**{"ttft_ms": 10, "itl_ms": 5, **knobs}) as server:
        result = run(
            drive(
                HandPlan({"s": HandScript([turn(0, tokens=60)])}),
                Endpoint(server.url, "fake-model"),
                agents=1,
                protocol=protocol,
            )
        )
    (record,) = result.records
    assert record.outcome == "timeout"
    assert phase in (record.error or "")
    assert record.end_at_ns is not None
    limit_s = min(limits.values()) + (0.3 if "hang_after" in knobs and "idle_timeout_s" in limits else 0.0)
    assert record.end_at_ns - record.sent_at_ns < (limit_s + 0.5) * 1e9


def test_steady_reads_push_the_idle_time_out_ahead() -> None:
    protocol = dataclasses.replace(WHOLE, idle_timeout_s=0.25, first_byte_timeout_s=0.5)
    with serving(ttft_ms=10, itl_ms=30) as server:
        plan = HandPlan({"s": HandScript([turn(0, tokens=25)])})
        (record,) = run(drive(plan, Endpoint(server.url, "fake-model"), agents=1, protocol=protocol)).records
    assert record.outcome == "ok"
    assert record.end_at_ns is not None
    assert record.end_at_ns - record.sent_at_ns > 0.6e9


def test_the_connect_time_out_covers_the_tls_handshake() -> None:
    async def main(url: str) -> None:
        wire = Wire()
        async with Endpoint(url, "m").connect() as caller:
            with pytest.raises(httpx.ConnectTimeout, match=r"in 0.2 s \(connect time-out\)"):
                await caller.collect("/x", b"{}", wire, timeouts=Timeouts(connect_s=0.2))
        assert wire.sent_at_ns is None

    with silent() as url:
        run(main(url))


def test_a_time_out_of_one_request_is_not_the_next_ones() -> None:
    """The same connection carries both."""

    async def main() -> None:
        async with raw_server([SIZED], [SIZED]) as (url, _), Endpoint(url, "m").connect() as caller:
            first, second = Wire(), Wire()
            await caller.collect("/x", b"{}", first, timeouts=Timeouts(total_s=0.1))
            await asyncio.sleep(0.15)
            await caller.collect("/x", b"{}", second, timeouts=Timeouts(total_s=5.0))
            assert (first.status, second.status) == (200, 200)
            assert second.reused_connection

    run(main())


@pytest.mark.parametrize("url", ["me:secret@host:80", "http://host?key=secret", "http://me:secret@host:port"])
def test_a_url_that_may_hold_a_secret_is_not_quoted(url: str) -> None:
    with pytest.raises(EndpointError) as fault:
        Endpoint(urls=(url,), model="m")
    assert "secret" not in str(fault.value)

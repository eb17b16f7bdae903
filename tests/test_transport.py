"""The collecting transport: HTTP framing in all its cuts, times against the server's log, faults on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from replay.connection import Connection
from replay.transport import LANE, WIRE, CollectingTransport
from replay.wire import Target, Timeouts, Wire
from tests.fake_server import FakeServer, serving

RUNNERS = {"asyncio": asyncio.run, "uvloop": uvloop.run}
BODY = b'data: {"a":1}\n\ndata: [DONE]\n\n'
TOLERANCE_NS = 250e6
CHUNKED = b"".join(
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        *(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:20], BODY[20:])),
        b"0\r\n\r\n",
    ]
)
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n" + BODY


@pytest.fixture(params=RUNNERS.values(), ids=list(RUNNERS))
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[object]], object]:
    return request.param


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@asynccontextmanager
async def raw_server(*answers: list[bytes] | None, read_slowly: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers the n-th request (on any connection) with the n-th list of pieces; None or an end of lists closes."""
    requests: list[bytes] = []
    waiting = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                if read_slowly:
                    await asyncio.sleep(0.2)
                requests.append(head + await reader.readexactly(length))
                answer = waiting.pop(0) if waiting else None
                if answer is None:
                    return
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                if answer[0].endswith(BODY) and b"ontent-length" not in answer[0]:
                    return  # the close is the end of this answer
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    finally:
        server.close()
        await asyncio.sleep(0.02)


def client(**options: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=CollectingTransport(**options), trust_env=False)  # type: ignore[arg-type]


def chat(tokens: int = 8, **fields: object) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    return json.dumps(
        {"model": "fake-model", "messages": messages, "max_tokens": tokens, "stream": True, **fields}
    ).encode()


async def ask(http: httpx.AsyncClient, server: FakeServer, body: bytes, **extensions: object) -> httpx.Response:
    return await http.post(server.url + "/v1/chat/completions", content=body, extensions=extensions)


@pytest.mark.parametrize("answer", [CHUNKED, SIZED], ids=["chunked", "sized"])
@pytest.mark.parametrize("size", [1, 2, 7, 10_000], ids=lambda size: f"by {size}")
def test_any_cut_of_a_response_gives_the_same_body(run, answer: bytes, size: int) -> None:
    async def main() -> None:
        async with raw_server(pieces(answer, size), pieces(answer, size)) as (url, _), client() as http:
            for number in range(2):
                response = await http.get(url)
                wire = response.extensions[WIRE]
                assert response.content == BODY
                assert b"".join(data for _, data in wire.reads) == BODY
                assert wire.reused_connection == (number == 1)
                assert wire.redialled_from_ns is None

    run(main())


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (UNTIL_CLOSE, 200, BODY),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED, 200, BODY),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + CHUNKED, 200, BODY),
        (CHUNKED[:-2] + b"x-trailer: 1\r\n\r\n", 200, BODY),
        (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, 200, BODY),
        (SIZED + SIZED, 200, BODY),
        (b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n", 302, b""),
    ],
    ids=["until close", "204", "100 first", "103 first", "trailer", "HTTP/1.0", "two answers", "redirect"],
)
def test_framing(run, answer: bytes, status: int, body: bytes) -> None:
    async def main() -> None:
        async with raw_server([answer]) as (url, _), client() as http:
            response = await http.get(url)
            assert (response.status_code, response.content) == (status, body)

    run(main())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        (SIZED[:-3], "after 26 bytes of the answer"),
        (CHUNKED[:-5], "after 29 bytes of the answer"),
        (b"HTTP/1.1 200", "before any answer|after 0 bytes"),
    ],
    ids=["not HTTP", "sized, cut", "chunked, cut", "status line, cut"],
)
def test_a_broken_answer_is_an_error_that_keeps_its_facts(run, answer: bytes, words: str) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        wire = Wire()
        async with client() as http:
            with pytest.raises(httpx.RemoteProtocolError, match=words):
                await http.get(url, extensions={WIRE: wire})
        server.close()
        assert wire.sent_at_ns is not None
        assert wire.end_at_ns is not None
        if answer.startswith(b"HTTP/1.1 200 OK"):
            assert wire.status == 200
            assert wire.bytes_down() in (26, 29)

    run(main())


@pytest.mark.parametrize("endless", [b"x: %b\r\n" % (b"y" * 60_000), b"\r\n" + b"x" * 60_000], ids=["head", "body"])
def test_an_answer_without_an_end_does_not_fill_the_memory(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.wire.MOST_KEPT_BYTES", 2 * 1024**2)
    sent = 0

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n")
            with contextlib.suppress(ConnectionError):
                while sent < 64 * 1024**2:
                    writer.write(endless)
                    await writer.drain()
                    sent += len(endless)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with client() as http:
            with pytest.raises(httpx.RemoteProtocolError, match="given up after 2 MB"):
                await http.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        server.close()

    uvloop.run(main())
    assert sent < 32 * 1024**2  # what our buffers and the kernel's took before the close


def test_an_answer_that_is_read_on_its_way_may_be_longer() -> None:
    reading = Wire(lambda _: None)
    assert reading.most_bytes == Wire().most_bytes  # of a head or a refusal
    reading.status = 200
    assert reading.most_bytes > Wire().most_bytes


def test_times_agree_with_the_servers_log(run) -> None:
    async def main(server: FakeServer) -> None:
        async with client() as http:
            responses = [await ask(http, server, chat(20)) for _ in range(3)]
        for response, served in zip(responses, server.log, strict=True):
            wire = response.extensions[WIRE]
            stamps = [wire.asked_at_ns, wire.sent_at_ns, wire.written_at_ns, wire.headers_at_ns, wire.end_at_ns]
            assert stamps == sorted(stamps)
            content_at = [at_ns for at_ns, data in wire.reads if b" token" in data]
            # The same clock in two threads: a read is never before its write, and a busy machine delays it by little.
            assert 0 <= served.arrived_at_ns - wire.sent_at_ns < TOLERANCE_NS
            assert 0 <= content_at[0] - served.first_token_at_ns < TOLERANCE_NS
            assert 0 <= content_at[-1] - served.last_token_at_ns < TOLERANCE_NS
            assert wire.read_count() >= 5  # a busy machine hands over several writes at once

    with serving(ttft_ms=30, itl_ms=5) as server:
        run(main(server))


def test_a_connection_belongs_to_its_lane(run) -> None:
    async def main(server: FakeServer) -> None:
        async with client() as http:
            for _ in range(3):
                for lane in ("a", "b"):
                    await ask(http, server, chat(), **{LANE: lane})
            assert [served.connection for served in server.log] == [1, 2, 1, 2, 1, 2]
            await asyncio.gather(*(ask(http, server, chat(), **{LANE: "a"}) for _ in range(4)))
            assert server.connections == 5  # no limit, no waiting for each other

    with serving() as server:
        run(main(server))


@pytest.mark.parametrize("knob", ["close_each", "close_on_reuse"])
def test_a_server_that_closes_in_spite_of_keep_alive_fails_no_request(run, knob: str) -> None:
    async def main(server: FakeServer) -> None:
        async with client() as http:
            wires = [(await ask(http, server, chat())).extensions[WIRE] for _ in range(20)]
        assert len(server.log) == 20
        assert all(wire.status == 200 for wire in wires)
        if knob == "close_on_reuse":
            redialled = [wire for wire in wires if wire.redialled_from_ns is not None]
            assert len(redialled) == 19
            assert all(wire.redialled_from_ns < wire.sent_at_ns for wire in redialled)
            assert not any(wire.reused_connection for wire in redialled)

    with serving(ttft_ms=1, itl_ms=0, **{knob: True}) as server:
        run(main(server))


def test_a_fresh_connection_that_is_closed_unanswered_is_not_dialled_again(run) -> None:
    async def main() -> None:
        async with raw_server(None, [SIZED]) as (url, requests), client() as http:
            with pytest.raises(httpx.RemoteProtocolError, match="before any answer"):
                await http.get(url)
            assert len(requests) == 1

    run(main())


def test_an_announced_idle_limit_is_kept(run) -> None:
    answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1, max=5\r\ncontent-length: 0\r\n\r\n"

    async def main() -> None:
        async with raw_server([answer], [answer], [answer]) as (url, _), client() as http:
            reused = []
            for pause_s in (0.0, 0.0, 0.6):
                await asyncio.sleep(pause_s)
                reused.append((await http.get(url)).extensions[WIRE].reused_connection)
            assert reused == [False, True, False]

    run(main())


def test_nobody_listens(run) -> None:
    async def main() -> None:
        async with client() as http:
            with pytest.raises(httpx.ConnectError, match="no connection to"):
                await http.get("http://127.0.0.1:9/")

    run(main())


def test_a_timeout_bounds_the_whole_request_and_keeps_what_came(run) -> None:
    async def main(server: FakeServer) -> None:
        wire = Wire()
        async with client() as http:
            with pytest.raises(httpx.ReadTimeout, match=r"not complete after 0\.3 s"):
                await ask(http, server, chat(100), timeout={"read": 0.3}, **{WIRE: wire})
            assert 0.29e9 <= wire.end_at_ns - wire.sent_at_ns < 1e9
            assert wire.bytes_down() > 0
            await asyncio.sleep(0.1)
        assert server.log[0].client_left

    with serving(ttft_ms=10, itl_ms=20) as server:
        run(main(server))


def test_cancelling_closes_the_socket_and_keeps_what_came(run) -> None:
    async def main(server: FakeServer) -> None:
        wire = Wire()
        async with client() as http:
            asking = asyncio.create_task(ask(http, server, chat(500), **{WIRE: wire}))
            await asyncio.sleep(0.2)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.sleep(0.1)
            assert server.log[0].client_left
        assert wire.status == 200
        assert wire.end_at_ns is None
        assert wire.reads

    with serving(ttft_ms=10, itl_ms=20) as server:
        run(main(server))


def test_a_large_prompt_is_written_as_the_server_takes_it(run) -> None:
    async def main() -> None:
        body = b"x" * 12_000_000
        async with raw_server([SIZED], read_slowly=True) as (url, requests), client() as http:
            wire = (await http.post(url, content=body)).extensions[WIRE]
        assert requests[0].endswith(body)
        assert wire.bytes_up == len(body)
        assert wire.written_at_ns - wire.sent_at_ns > 100e6  # the server looked at it only after 200 ms
        assert wire.written_at_ns <= wire.headers_at_ns

    run(main())


def test_an_answer_before_the_prompt_is_taken_ends_the_request(run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
            await asyncio.sleep(0.3)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with client() as http:
            response = await http.post(url, content=b"x" * 30_000_000)
            assert response.status_code == 413
        server.close()
        await asyncio.sleep(0.35)

    run(main())


def test_what_goes_over_the_wire(run) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    async def main() -> None:
        async with raw_server([SIZED]) as (url, requests), client() as http:
            await http.post(url + "/v1/x?y=1", content=parts(), headers={"Authorization": "Bearer k"})
        head, _, body = requests[0].partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /v1/x?y=1 HTTP/1.1"
        assert b"Authorization: Bearer k" in lines
        assert [line for line in lines if line.lower().startswith(b"accept-encoding")] == [b"accept-encoding: identity"]
        assert b"content-length: 4" in lines
        assert b"transfer-encoding" not in head.lower()
        assert body == b"abcd"

    run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36_500))
        .add_extension(loopback, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_tls(run, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def main(server: FakeServer) -> None:
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with client(ssl_context=trusting) as http:
            body = chat(50, padding="x" * 3_000_000)
            for number in range(3):
                response = await ask(http, server, body)
                assert response.status_code == 200
                assert response.content.count(b" token") == 50
                wire = response.extensions[WIRE]
                assert wire.reused_connection == (number > 0)
                assert wire.sent_at_ns <= wire.written_at_ns <= wire.headers_at_ns
        async with client() as http:  # the system's trust store does not know this certificate
            with pytest.raises(httpx.ConnectError, match="no connection to"):
                await ask(http, server, body)

    with serving(tls=context, ttft_ms=5, itl_ms=1) as server:
        run(main(server))


def test_a_request_that_is_given_up_as_its_connection_closes_is_cancelled_and_no_more(
    run: Callable[[Awaitable[object]], object],
) -> None:
    async def both_at_once() -> None:
        loop = asyncio.get_running_loop()
        async with raw_server([b""]) as (url, _):
            host, port = url.removeprefix("http://").split(":")
            _, connection = await loop.create_connection(lambda: Connection(loop), host, int(port))
            target = Target.of(httpx.Request("POST", f"{url}/x"))
            sent = connection.exchange(Wire(), target, b"{}", extra=b"", timeouts=Timeouts())
            task = asyncio.create_task(sent)
            await asyncio.sleep(0)  # it is sent
            connection.connection_lost(None)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(both_at_once())

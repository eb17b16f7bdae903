"""What passes through the recorder is what was sent: every kind of body, both ways, and WebSockets frame by frame."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import brotli
import pytest
import zstandard

from capture.exchange import Exchange
from capture.store import Store
from tests.raw_upstream import (
    LARGE,
    TEXT,
    RawUpstream,
    Script,
    accept_socket,
    both,
    chunked,
    echo,
    encoded,
    frame,
    parse_answer,
    read_frames,
    request,
    reset,
    running_raw_upstream,
    sized,
    slowly,
    talk,
)
from tests.sse_upstream import Served, running_serve

SCRIPTS: dict[str, Script] = {
    "/chunked": slowly(chunked(*[TEXT[at : at + 97] for at in range(0, len(TEXT), 97)])),
    "/chunked-one-byte": slowly([bytes([byte]) for byte in b"".join(chunked(b"data: x\n\n", b"y"))]),
    "/trailers": slowly(chunked(TEXT, end=b"0\r\nserver-timing: db;dur=5\r\nx-more: 1\r\n\r\n")),
    "/chunk-extensions": slowly([chunked()[0], b"5;name=value\r\nhello\r\n", b"0\r\n\r\n"]),
    "/nothing-chunked": slowly(chunked()),
    "/sized": slowly(sized(TEXT)),
    "/large": slowly(sized(LARGE)),
    "/gzip": slowly(encoded(b"gzip", gzip.compress(TEXT))),
    "/br": slowly(encoded(b"br", brotli.compress(TEXT))),
    "/zstd": slowly(encoded(b"zstd", zstandard.ZstdCompressor().compress(TEXT))),
    "/no-gzip-at-all": slowly(encoded(b"gzip", b"\xff\x00 this is no gzip")),
    "/until-closed": slowly([b"HTTP/1.0 200 Fine By Me\r\ncontent-type: text/plain\r\n\r\n", TEXT]),
    "/no-content": slowly([b"HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n"]),
    "/not-modified": slowly([b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\n\r\n']),
    "/head": slowly([b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n"]),
    "/early-hints": slowly(
        [b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n", *chunked(TEXT)], 0.05
    ),
    "/huge-header": slowly(sized(b"{}", b"x-huge: " + b"h" * 200_000)),
    "/overloaded": slowly(sized(b'{"type":"error"}', b"retry-after: 3", status=b"529 Site Is Overloaded")),
    "/echo": echo,
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with running_raw_upstream(SCRIPTS) as server:
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, upstream: RawUpstream) -> Iterator[Served]:
    with running_serve(tmp_path_factory.mktemp("shared"), "--upstream", upstream.url) as served:
        yield served


def exchanges(folder: Path) -> list[Exchange]:
    return list(Store.open(folder / "store").exchanges())


@pytest.mark.parametrize(
    "path",
    [
        *("/chunked", "/chunked-one-byte", "/trailers", "/chunk-extensions", "/nothing-chunked", "/sized", "/large"),
        *("/gzip", "/br", "/zstd", "/no-gzip-at-all", "/until-closed", "/no-content", "/not-modified"),
        *("/early-hints", "/huge-header", "/overloaded"),
    ],
)
def test_every_kind_of_answer_arrives_as_it_was_sent(upstream: RawUpstream, shared: Served, path: str) -> None:
    direct, through = both(upstream, shared.port, request(path))
    assert through == direct
    assert direct.whole
    assert len(direct.body) > 0 or path in ("/nothing-chunked", "/no-content", "/not-modified")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("path", ["/sized", "/until-closed"])
def test_http_1_0(upstream: RawUpstream, shared: Served, version: bytes, path: str) -> None:
    direct, through = both(upstream, shared.port, request(path, version=version))
    assert through == direct
    assert through.body == TEXT


def test_an_answer_to_head_has_no_body(upstream: RawUpstream, shared: Served) -> None:
    direct, through = both(upstream, shared.port, request("/head", method=b"HEAD"), to_head=True)
    assert through == direct
    assert (through.body, through.fields) == (b"", (b"content-length: 12345",))


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ((b"content-encoding: gzip",), gzip.compress(TEXT)),
        ((b"content-encoding: br",), brotli.compress(TEXT)),
        ((b"content-encoding: zstd",), zstandard.ZstdCompressor().compress(TEXT)),
        ((b"content-encoding: zstd",), b"\xff no zstd"),
        ((b"content-type: application/json",), LARGE),
        ((b"x-huge: " + b"h" * 100_000,), b"{}"),
        ((b"Expect: 100-continue",), b"x" * 5000),
        ((b"X-Odd: two  spaces; a=B", b"x-odd: again", "x-latin: é".encode("latin-1")), b"{}"),
    ],
    ids=["gzip", "br", "zstd", "no zstd", "4 MB", "huge header", "100-continue", "odd headers"],
)
def test_every_kind_of_request_arrives_as_it_was_sent(
    upstream: RawUpstream, shared: Served, fields: tuple[bytes, ...], body: bytes
) -> None:
    sent = request("/echo", *fields, method=b"POST", body=body)
    heads = []
    for port in (upstream.port, shared.port):
        answer = parse_answer(talk(port, sent))
        assert (answer.status, answer.body) == (b"HTTP/1.1 200 OK", body)
        heads.append(
            [line for line in upstream.requests[-1][0].split(b"\r\n") if not line.lower().startswith(b"host:")]
        )
        assert upstream.requests[-1][1] == body
    assert heads[1] == [line for line in heads[0] if not line.startswith(b"Expect")]  # the proxy itself answers that


def test_a_chunked_request_arrives_whole(upstream: RawUpstream, shared: Served) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(
        b"%x\r\n%s\r\n" % (len(TEXT[at : at + 999]), TEXT[at : at + 999]) for at in range(0, len(TEXT), 999)
    )
    for port in (upstream.port, shared.port):
        assert parse_answer(talk(port, head + body + b"0\r\n\r\n")).body == TEXT


# WebSocket


FRAMES_DOWN = [
    frame(1, "grüße".encode()),
    frame(2, bytes(range(256)) * 300),
    frame(1, b"first ", final=False),
    frame(9, b"ping in between"),
    frame(0, b"second ", final=False),
    frame(0, b"third"),
    frame(2, b""),
]
FRAMES_UP = [
    frame(1, b"x" * 70_000, masked=True),
    frame(2, b"\x00\xff", final=False, masked=True),
    frame(10, b"ping in between", masked=True),
    frame(0, b"\x01", masked=True),
]


def socket_script(end: bytes | None) -> Script:
    """Takes the agent's frames until `done`, sends its own, and closes with `end`, or hard where that is None."""

    def script(connection: socket.socket, head: bytes, _body: bytes) -> None:
        accept_socket(connection, head)
        connection.sendall(b"".join(FRAMES_DOWN))
        data = b""
        while not any(payload == b"done" for _, _, payload in read_frames(data)):
            data += connection.recv(1 << 16)
        UP.append(read_frames(data))
        if end is None:
            reset(connection)
            return
        connection.sendall(end)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                pass

    return script


UP: list[list[tuple[int, bool, bytes]]] = []
SCRIPTS |= {
    "/socket-closed": socket_script(frame(8, (1000).to_bytes(2) + b"bye")),
    "/socket-policy": socket_script(frame(8, (4001).to_bytes(2) + "grund ü".encode())),
    "/socket-no-code": socket_script(frame(8, b"")),
    "/socket-torn": socket_script(None),
}


type Frames = list[tuple[int, bool, bytes]]


def apart(frames: Frames) -> tuple[Frames, Frames]:
    """Messages' frames and control frames: a message goes on once it is whole, and a ping inside it overtakes it."""
    return [one for one in frames if one[0] < 8], [one for one in frames if one[0] >= 8]


@pytest.mark.parametrize("path", ["/socket-closed", "/socket-policy", "/socket-no-code", "/socket-torn"])
def test_a_websocket_passes_frame_by_frame(tmp_path: Path, upstream: RawUpstream, path: str, shared: Served) -> None:
    fields = (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    opening = request(path, *fields).replace(b"Connection: close", b"Connection: Upgrade")
    down = []
    for port in (upstream.port, shared.port):
        UP.clear()
        done = frame(1, b"done", masked=True)
        received = talk(port, opening, *FRAMES_UP, done, wait_for=FRAMES_DOWN[-2])
        head, _, data = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        down.append(read_frames(data))
        (up,) = UP
        assert apart(up) == apart([*read_frames(b"".join(FRAMES_UP)), (1, True, b"done")])
    assert apart(down[1]) == apart(down[0])
    closes = [payload for opcode, _, payload in down[1] if opcode == 8]
    assert len(closes) == (0 if path == "/socket-torn" else 1)


def test_the_end_of_a_websocket_is_told_and_its_messages_are_recorded(tmp_path: Path, upstream: RawUpstream) -> None:
    fields = (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    with running_serve(tmp_path, "--upstream", upstream.url) as served:
        for path in ("/socket-closed", "/socket-torn"):
            opening = request(path, *fields).replace(b"Connection: close", b"Connection: Upgrade")
            talk(served.port, opening, frame(1, b"done", masked=True), wait_for=FRAMES_DOWN[-2])
        assert served.stop() == 0
    closed, torn = exchanges(tmp_path)
    assert (closed.status, closed.outcome) == (101, "complete")
    assert torn.outcome == "upstream_cut"
    for exchange in (closed, torn):
        assert [message.data for message in exchange.messages if not message.from_agent] == [
            *("grüße".encode(), bytes(range(256)) * 300, b"first second third", b"")
        ]
        assert [message.data for message in exchange.messages if message.from_agent] == [b"done"]
        times = [message.at_ns for message in exchange.messages]
        assert times == sorted(times)


def test_compressed_websocket_messages_are_equal_on_both_sides(tmp_path: Path) -> None:
    import asyncio

    import aiohttp
    from aiohttp import web

    sent: list[str | bytes] = ["a" * 5000, b"\x00" * 5000, "é" * 100, os.urandom(5000), "a" * 5000]

    async def answer(asked: web.Request) -> web.WebSocketResponse:
        server = web.WebSocketResponse(compress=True)
        await server.prepare(asked)
        async for message in server:
            if message.type is aiohttp.WSMsgType.TEXT:
                await server.send_str(message.data)
            else:
                await server.send_bytes(message.data)
        return server

    async def converse(url: str) -> tuple[list[str | bytes], object]:
        async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15) as client:
            got: list[str | bytes] = []
            for message in sent:
                await (client.send_str(message) if isinstance(message, str) else client.send_bytes(message))
                got.append((await client.receive(20)).data)
            return got, client.compress

    async def main() -> None:
        application = web.Application()
        application.router.add_get("/v1/responses", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]

        def start() -> tuple[contextlib.ExitStack, Served]:
            stack = contextlib.ExitStack()
            return stack, stack.enter_context(running_serve(tmp_path, "--upstream", f"http://127.0.0.1:{port}"))

        stack, served = await asyncio.to_thread(start)
        try:
            direct = await converse(f"ws://127.0.0.1:{port}/v1/responses")
            through = await converse(f"ws://127.0.0.1:{served.port}/v1/responses")
        finally:
            await asyncio.to_thread(served.stop)
            stack.close()
            await runner.cleanup()
        assert direct[1]  # compression was agreed on
        assert through == direct
        assert through[0] == sent

    asyncio.run(main())
    (exchange,) = exchanges(tmp_path)
    plain = [message.encode() if isinstance(message, str) else message for message in sent]
    assert [message.data for message in exchange.messages if message.from_agent] == plain
    assert [message.data for message in exchange.messages if not message.from_agent] == plain

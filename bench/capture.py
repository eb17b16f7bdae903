"""The recorder's cost against bare mitmdump, and the size of what it stores. Ratios from one run.

CPU is user + system time of the proxy process (all its threads) from /proc/PID/stat; rounds are interleaved and
medians taken, because this machine may have neighbours. "bare" is `mitmdump -q` with a stream callable that returns
its argument: what streams at all through mitmproxy and records nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

if sys.path[0] == str(Path(__file__).parent):
    sys.path[0] = str(Path(__file__).parent.parent)  # this file's own name would hide the package

BARE = """
class Bare:
    def responseheaders(self, flow):
        flow.response.stream = lambda data: data

addons = [Bare()]
"""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SMALL_REQUEST = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
SMALL_ANSWER = b'{"id":"msg_1","content":[{"type":"text","text":"hello"}],"usage":{"input_tokens":5,"output_tokens":1}}'


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, finer than a clock tick where the kernel says so (sum over its threads)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) * TICK_S
    return total / 1e9


class Source:
    """The upstream: small JSON answers, and streams of events at a fixed pace."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                if b"/stream" in head.partition(b"\r\n")[0]:
                    await self._stream(writer)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                    writer.write(b"content-length: %d\r\n\r\n%s" % (len(SMALL_ANSWER), SMALL_ANSWER))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @staticmethod
    async def _stream(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(EVENTS):
            event = (
                b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
                b'"delta":{"type":"text_delta","text":" word%d"}}\n\n' % number
            )
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await asyncio.sleep(PAUSE_S)
        writer.write(b"0\r\n\r\n")


EVENTS = 100
PAUSE_S = 0.02


async def ask(port: int, path: str, requests: int) -> list[float]:
    """Seconds from request to the end of each answer, one after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\naccept: application/json\r\n"
        "user-agent: bench\r\nx-api-key: sk-bench-0123456789abcdef\r\nanthropic-version: 2023-06-01\r\n"
        f"content-length: {len(SMALL_REQUEST)}\r\n\r\n"
    ).encode()
    times = []
    for _ in range(requests):
        start = time.perf_counter()
        writer.write(head + SMALL_REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(SMALL_ANSWER))
        times.append(time.perf_counter() - start)
    writer.close()
    return times


async def read_stream(port: int) -> int:
    """Relay one stream; returns the events seen."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /stream HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % len(SMALL_REQUEST))
    writer.write(SMALL_REQUEST)
    seen = b""
    events = 0
    while not seen.endswith(b"\r\n0\r\n\r\n"):
        data = await reader.read(65536)
        if not data:
            break
        events += data.count(b"data:")
        seen = (seen + data)[-16:]
    writer.close()
    return events


@dataclass
class Proxy:
    """One of the two under comparison."""

    name: str
    pid: int
    port: int
    per_request_us: list[float] = field(default_factory=list)
    per_chunk_us: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)


@contextmanager
def bare(folder: Path, upstream: int) -> Iterator[Proxy]:
    """`mitmdump -q` with the callable that does nothing."""
    script = folder / "bare.py"
    script.write_text(BARE)
    port = free_port()
    command = [
        *(str(Path(sys.executable).parent / "mitmdump"), "-q", "-s", str(script)),
        *("--mode", f"reverse:http://127.0.0.1:{upstream}", "--listen-host", "127.0.0.1", "-p", str(port)),
        *("--set", f"confdir={folder / 'mitmproxy'}", "--set", "connection_strategy=lazy"),
    ]
    with started(command) as process:
        while True:
            try:
                asyncio.run(_touch(port))
                break
            except OSError:
                time.sleep(0.05)
        yield Proxy("bare mitmdump", process.pid, port)


@contextmanager
def ours(folder: Path, upstream: int) -> Iterator[Proxy]:
    """`agentdyno capture serve`."""
    ready = folder / "ready"
    command = [
        *(sys.executable, "-c", "from agentdyno import main; main()", "capture", "serve"),
        *("--upstream", f"http://127.0.0.1:{upstream}", "--store", str(folder / "store"), "--ready-file", str(ready)),
    ]
    with started(command) as process:
        while not ready.exists():
            time.sleep(0.02)
        yield Proxy("capture serve", process.pid, int(ready.read_text().rpartition(":")[2]))


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, stopped at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _touch(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def measure(proxies: list[Proxy], upstream: int, *, rounds: int, requests: int, streams: int) -> float:
    """Interleaved rounds over the proxies; returns the direct p50 in ms."""
    direct = []
    for proxy in proxies:
        await ask(proxy.port, "/v1/messages", 100)  # warm-up
    for number in range(rounds):
        direct.append(statistics.median(await ask(upstream, "/v1/messages", requests)) * 1e3)
        for proxy in proxies if number % 2 else proxies[::-1]:
            before = cpu_s(proxy.pid)
            times = await ask(proxy.port, "/v1/messages", requests)
            await asyncio.sleep(0.4)  # the journal's last commit belongs to these requests
            proxy.per_request_us.append((cpu_s(proxy.pid) - before) / requests * 1e6)
            proxy.p50_ms.append(statistics.median(times) * 1e3)
        for proxy in proxies if number % 2 else proxies[::-1]:
            before = cpu_s(proxy.pid)
            events = await asyncio.gather(*(read_stream(proxy.port) for _ in range(streams)))
            await asyncio.sleep(0.4)
            assert sum(events) == streams * EVENTS
            proxy.per_chunk_us.append((cpu_s(proxy.pid) - before) / sum(events) * 1e6)
    return statistics.median(direct)


def store_ratios(folder: Path) -> tuple[float, float, float]:
    """Raw request bytes over stored request bytes, all raw bytes over the whole store, MB raw: a 150-turn session."""
    from capture.journal import JournalWriter
    from capture.store import Store

    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(4000)]

    def text(count: int) -> str:
        return " ".join(chance.choices(words, k=count))

    tools = [{"name": f"tool_{i}", "description": text(200), "input_schema": {"type": "object"}} for i in range(20)]
    system = [{"type": "text", "text": text(1500)}]
    headers = tuple((f"x-header-{i}".encode(), text(3).encode()) for i in range(25))
    sizes = {}
    for with_answers in (False, True):
        store = Store.open(folder / f"ratio-{with_answers}", create=True)
        journal = JournalWriter(store.path, key=store.key, meta={})
        turns: list[dict[str, object]] = []
        raw_requests = raw_answers = 0
        at = time.monotonic_ns()
        for turn in range(150):
            result = {
                "type": "tool_result",
                "tool_use_id": f"toolu_{turn:04d}",
                "content": text(chance.randint(50, 1000)),
            }
            turns.append({"role": "user", "content": [result]})
            marked = [*turns[:-1], {"role": "user", "content": [{**result, "cache_control": {"type": "ephemeral"}}]}]
            body = json.dumps({"model": "m", "max_tokens": 32000, "stream": True, "system": system, "tools": tools,
                               "messages": marked, "metadata": {"user_id": "u"}}).encode()  # fmt: skip
            raw_requests += len(body)
            answer = text(chance.randint(30, 120))
            use = {"type": "tool_use", "id": f"toolu_{turn + 1:04d}", "name": "Bash", "input": {"command": text(8)}}
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}, use]})
            number = journal.send(
                at_ns=at, connection="c", method="POST", host="h:443", path="/v1/messages", headers=headers
            )
            journal.sent(number, at_ns=at, body=body)
            if with_answers:
                journal.headers(number, at_ns=at, status=200, headers=(*headers, (b"request-id", b"req_%024d" % turn)))
                for word in answer.split():
                    event = (
                        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
                        b'"delta":{"type":"text_delta","text":" %s"}}\n\n' % word.encode()
                    )
                    at += chance.randint(5_000_000, 30_000_000)
                    journal.read(number, at, event)
                    raw_answers += len(event)
                journal.end(number, at_ns=at, outcome="complete")
            time.sleep(0.21 if turn % 10 == 0 else 0)
        journal.close()
        sizes[with_answers] = sum(file.stat().st_size for file in store.path.iterdir())
        found = list(store.exchanges())
        assert sum(len(exchange.request_body) for exchange in found) == raw_requests
    return raw_requests / sizes[False], (raw_requests + raw_answers) / sizes[True], raw_requests / 1e6


async def main_async(rounds: int, requests: int, streams: int) -> None:
    """Run it and print."""
    source = Source()
    server = await asyncio.start_server(source.serve, "127.0.0.1", 0)
    upstream = server.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="agentdyno-bench-") as name:
        folder = Path(name)
        request_ratio, store_ratio, raw_mb = await asyncio.to_thread(store_ratios, folder)
        with contextlib.ExitStack() as stack:
            one = await asyncio.to_thread(stack.enter_context, bare(folder, upstream))
            two = await asyncio.to_thread(stack.enter_context, ours(folder, upstream))
            direct_ms = await measure([one, two], upstream, rounds=rounds, requests=requests, streams=streams)
    server.close()
    report(one, two, direct_ms, request_ratio, store_ratio, raw_mb)


def report(
    bare_: Proxy, ours_: Proxy, direct_ms: float, request_ratio: float, store_ratio: float, raw_mb: float
) -> None:
    """A table on stderr, one JSON object on stdout."""
    median = statistics.median
    table = Table(title="recorder against bare mitmdump (medians of interleaved rounds)")
    for column in ("", "CPU us / request", "CPU us / SSE chunk", "p50 ms", "added p50 ms"):
        table.add_column(column, justify="left" if not column else "right")
    for proxy in (bare_, ours_):
        table.add_row(
            proxy.name,
            f"{median(proxy.per_request_us):.0f}",
            f"{median(proxy.per_chunk_us):.0f}",
            f"{median(proxy.p50_ms):.3f}",
            f"{median(proxy.p50_ms) - direct_ms:.3f}",
        )
    console = Console(stderr=True)
    console.print(table)
    console.print(
        f"150-turn session, {raw_mb:.1f} MB of requests: bodies stored {request_ratio:.0f}x smaller, whole store "
        f"{store_ratio:.0f}x smaller than the raw bytes"
    )
    result = {
        "cpu_per_request_x": round(
            median(o / b for o, b in zip(ours_.per_request_us, bare_.per_request_us, strict=True)), 3
        ),
        "cpu_per_chunk_x": round(median(o / b for o, b in zip(ours_.per_chunk_us, bare_.per_chunk_us, strict=True)), 3),
        "added_p50_ms": round(median(ours_.p50_ms) - direct_ms, 3),
        "bare_added_p50_ms": round(median(bare_.p50_ms) - direct_ms, 3),
        "cpu_us_per_request": round(median(ours_.per_request_us), 1),
        "cpu_us_per_chunk": round(median(ours_.per_chunk_us), 1),
        "request_bodies_x": round(request_ratio, 1),
        "store_ratio_x": round(store_ratio, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds, under a minute")
    quick = parser.parse_args().quick
    asyncio.run(main_async(rounds=3 if quick else 9, requests=400 if quick else 1000, streams=16))

"""The recorder's cost against bare mitmdump and claude-tap, and the size of what it stores. Ratios from one run.

CPU is user + system time of the proxy process (all its threads) from /proc; rounds are interleaved and medians taken,
because this machine may have neighbours. "bare" is `mitmdump -q` with a stream callable that returns its argument:
what streams at all through mitmproxy and records nothing. claude-tap, a recorder for coding agents, is installed from
its package index into .cache/bench (pinned); where it cannot be had its columns are empty and the reason is printed.
A "turn of 1 MB" repeats a conversation with one new message, as agents do; a "new 1 MB" shares nothing with the last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
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
CLAUDE_TAP = "claude-tap==0.1.146"
ROOT = Path(__file__).parent.parent
BIG_BYTES = 1_000_000
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


def rss_mb(pid: int) -> float:
    """Resident memory of a process now."""
    resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(resident.split()[1]) / 1024


class Source:
    """The upstream: small JSON answers, and streams of events at a fixed pace."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                if b"?stream" in head.partition(b"\r\n")[0]:
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


async def ask(port: int, bodies: Iterable[bytes]) -> list[float]:
    """Seconds from request to the end of each answer, one after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for body in bodies:
        head = (
            "POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            "user-agent: bench\r\nx-api-key: sk-bench-0123456789abcdef\r\nanthropic-version: 2023-06-01\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode()
        start = time.perf_counter()
        writer.write(head + body)
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
        # claude-tap passes the answer on in chunks, the others with its length.
        if b"chunked" in answer.lower():
            await reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            await reader.readexactly(len(SMALL_ANSWER))
        times.append(time.perf_counter() - start)
    writer.close()
    return times


class BigBodies:
    """Request bodies of 1 MB: turns of one conversation, or each one new."""

    def __init__(self) -> None:
        self._chance = random.Random(11)
        words = ["".join(self._chance.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(4000)]
        self._words = words
        self._history = [self._message(BIG_BYTES // 100) for _ in range(100)]

    def _message(self, size: int) -> dict[str, str]:
        return {"role": "user", "content": " ".join(self._chance.choices(self._words, k=size // 8))}

    def turn(self) -> bytes:
        """The same conversation with one message changed."""
        return json.dumps({"model": "m", "messages": [*self._history[1:], self._message(BIG_BYTES // 100)]}).encode()

    def new(self) -> bytes:
        """Another conversation."""
        return json.dumps({"model": "m", "messages": [self._message(BIG_BYTES // 100) for _ in range(100)]}).encode()


async def read_stream(port: int) -> int:
    """Relay one stream; returns the events seen."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    # claude-tap streams only what the request's body asks to be streamed.
    body = SMALL_REQUEST.removesuffix(b"}") + b',"stream":true}'
    head = "POST /v1/messages?stream HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
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
    """One of those under comparison."""

    name: str
    pid: int
    port: int
    per_request_us: list[float] = field(default_factory=list)
    per_chunk_us: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    per_turn_us: list[float] = field(default_factory=list)  # a turn of 1 MB
    per_new_us: list[float] = field(default_factory=list)  # a new 1 MB
    rss_mb: list[float] = field(default_factory=list)  # after each round


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
            if process.poll() is not None:
                raise SystemExit("capture serve does not start: run it by hand to see why")
            time.sleep(0.02)
        yield Proxy("capture serve", process.pid, int(ready.read_text().rpartition(":")[2]))


def install_claude_tap() -> Path:
    """Its program, installed once; OSError where it cannot be had."""
    folder = ROOT / ".cache" / "bench" / CLAUDE_TAP.replace("==", "-")
    program = folder / "bin" / "claude-tap"
    if not program.exists():
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), CLAUDE_TAP],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                raise OSError(f"{CLAUDE_TAP} cannot be installed: {done.stderr.strip()[-300:]}")
    return program


@contextmanager
def claude_tap(program: Path, folder: Path, upstream: int) -> Iterator[Proxy]:
    """claude-tap as a reverse proxy that launches nothing, its dashboard off."""
    port = free_port()
    home = folder / "claude-tap"
    home.mkdir()
    command = [
        *(str(program), "--tap-no-launch", "--tap-host", "127.0.0.1", "--tap-port", str(port), "--tap-no-live"),
        *("--tap-no-open", "--tap-target", f"http://127.0.0.1:{upstream}", "--tap-output-dir", str(home / "traces")),
    ]
    environment = {"HOME": str(home), "PATH": os.environ.get("PATH", os.defpath)}
    with started(command, environment) as process:
        until = time.monotonic() + 30
        while True:
            try:
                asyncio.run(_touch(port))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise OSError(f"{CLAUDE_TAP} does not listen") from None
                time.sleep(0.05)
        yield Proxy("claude-tap 0.1.146", process.pid, port)


@contextmanager
def started(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, stopped at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
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
    bodies = BigBodies()
    big = max(10, requests // 20)
    small = [SMALL_REQUEST] * requests
    for proxy in proxies:
        await ask(proxy.port, [SMALL_REQUEST] * 100)  # warm-up
    for number in range(rounds):
        direct.append(statistics.median(await ask(upstream, small)) * 1e3)
        turns, news = [bodies.turn() for _ in range(big)], [bodies.new() for _ in range(big)]
        for proxy in proxies if number % 2 else proxies[::-1]:
            for batch, found in ((small, proxy.per_request_us), (turns, proxy.per_turn_us), (news, proxy.per_new_us)):
                before = cpu_s(proxy.pid)
                times = await ask(proxy.port, batch)
                await asyncio.sleep(0.4)  # the journal's last commit belongs to these requests
                found.append((cpu_s(proxy.pid) - before) / len(batch) * 1e6)
                if batch is small:
                    proxy.p50_ms.append(statistics.median(times) * 1e3)
        for proxy in proxies if number % 2 else proxies[::-1]:
            before = cpu_s(proxy.pid)
            events = await asyncio.gather(*(read_stream(proxy.port) for _ in range(streams)))
            await asyncio.sleep(0.4)
            assert sum(events) == streams * EVENTS
            proxy.per_chunk_us.append((cpu_s(proxy.pid) - before) / sum(events) * 1e6)
            proxy.rss_mb.append(rss_mb(proxy.pid))
    return statistics.median(direct)


async def main_async(rounds: int, requests: int, streams: int) -> None:
    """Run it and print."""
    from bench.store_size import store_ratios

    console = Console(stderr=True, width=120)
    source = Source()
    server = await asyncio.start_server(source.serve, "127.0.0.1", 0, limit=4 << 20)
    upstream = server.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="agentdyno-bench-") as name:
        folder = Path(name)
        sizes = await asyncio.to_thread(store_ratios, folder)
        with contextlib.ExitStack() as stack:
            proxies = [
                await asyncio.to_thread(stack.enter_context, bare(folder, upstream)),
                await asyncio.to_thread(stack.enter_context, ours(folder, upstream)),
            ]
            try:
                program = await asyncio.to_thread(install_claude_tap)
                proxies.append(await asyncio.to_thread(stack.enter_context, claude_tap(program, folder, upstream)))
            except OSError as fault:
                console.print(f"not compared with claude-tap: {fault}", soft_wrap=True)
            direct_ms = await measure(proxies, upstream, rounds=rounds, requests=requests, streams=streams)
    server.close()
    report(console, proxies, direct_ms, sizes)


def settled(proxy: Proxy) -> float:
    """Resident memory after the third round: by then every buffer and every allocator has seen its largest."""
    return proxy.rss_mb[min(2, len(proxy.rss_mb) - 1)]


def ratio(of: list[float], to: list[float]) -> float:
    """Median of the rounds' ratios."""
    return round(statistics.median(one / other for one, other in zip(of, to, strict=True)), 3)


def report(console: Console, proxies: list[Proxy], direct_ms: float, sizes: tuple[float, float, float]) -> None:
    """A table on stderr, one JSON object on stdout."""
    median = statistics.median
    bare_, ours_, *others = proxies
    table = Table(title=f"proxies on one SSE load (medians of {len(ours_.p50_ms)} interleaved rounds)")
    for column in (
        "",
        "CPU us / request",
        "CPU us / SSE chunk",
        "CPU ms / turn of 1 MB",
        "CPU ms / new 1 MB",
        "added p50 ms",
        "RSS MB, third and last round",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for proxy in proxies:
        table.add_row(
            proxy.name,
            f"{median(proxy.per_request_us):.0f}",
            f"{median(proxy.per_chunk_us):.0f}",
            f"{median(proxy.per_turn_us) / 1e3:.1f}",
            f"{median(proxy.per_new_us) / 1e3:.1f}",
            f"{median(proxy.p50_ms) - direct_ms:.3f}",
            f"{settled(proxy):.0f} and {proxy.rss_mb[-1]:.0f}",
        )
    request_ratio, store_ratio, raw_mb = sizes
    console.print(table)
    console.print(
        f"150-turn session, {raw_mb:.1f} MB of requests: bodies stored {request_ratio:.0f}x smaller, whole store "
        f"{store_ratio:.0f}x smaller than the raw bytes"
    )
    tap = others[0] if others else None
    result = {
        "cpu_per_request_x": ratio(ours_.per_request_us, bare_.per_request_us),
        "cpu_per_chunk_x": ratio(ours_.per_chunk_us, bare_.per_chunk_us),
        "cpu_per_turn_1mb_x": ratio(ours_.per_turn_us, bare_.per_turn_us),
        "cpu_per_request_to_claude_tap_x": None if tap is None else ratio(ours_.per_request_us, tap.per_request_us),
        "cpu_per_chunk_to_claude_tap_x": None if tap is None else ratio(ours_.per_chunk_us, tap.per_chunk_us),
        "cpu_per_turn_1mb_to_claude_tap_x": None if tap is None else ratio(ours_.per_turn_us, tap.per_turn_us),
        "cpu_per_new_1mb_to_claude_tap_x": None if tap is None else ratio(ours_.per_new_us, tap.per_new_us),
        "added_p50_ms": round(median(ours_.p50_ms) - direct_ms, 3),
        "bare_added_p50_ms": round(median(bare_.p50_ms) - direct_ms, 3),
        "cpu_us_per_request": round(median(ours_.per_request_us), 1),
        "cpu_us_per_chunk": round(median(ours_.per_chunk_us), 1),
        "rss_mb_settled": round(settled(ours_), 1),
        "rss_mb_last": round(ours_.rss_mb[-1], 1),
        "request_bodies_x": round(request_ratio, 1),
        "store_ratio_x": round(store_ratio, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds, under a minute")
    quick = parser.parse_args().quick
    asyncio.run(main_async(rounds=3 if quick else 9, requests=400 if quick else 1000, streams=16))

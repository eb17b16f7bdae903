"""One client in one process, for `bench/replay.py`: drives agents against a source and prints what it saw and took.

    python -m bench.replay_clients ours --url http://127.0.0.1:1234 --streams 400 --seconds 5

`ours` is the whole driver: plan, collecting transport, parsing, records to disk and back. `httpx` reads lines and
decodes each event as it comes, one client per agent with one SSL context for all (one shared client collapses at 200
streams). `raw` is a bare asyncio protocol with httptools on uvloop: it keeps reads with their times, decodes after the
close and records nothing: the floor. CPU is this process's own, from after the imports to the last record, and that of
its worker processes, imports included. Latencies are of requests sent after the ramp and a second of settling.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import itertools
import json
import resource
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bench.hand_plan import PAUSE_S, TURNS, HandPlan, body, long_plan
from bench.source import MODEL

SETTLE_S = 1.0
AGENTS_PER_S = 500.0


@dataclass
class Seen:
    """What one client measured of the source, and how many events it read."""

    events: int = 0
    requests: int = 0
    bytes_up: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    client_late: bool | None = None
    failed: int = 0


def cpu_s() -> tuple[float, float]:
    """CPU time of this process and of the children that it waited for: in user code, in the kernel."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime for one in used), sum(one.ru_stime for one in used)


_clock = [(0.0, 0.0), (0.0, 0.0)]


async def ours(options: argparse.Namespace) -> Seen:
    from replay.drive import drive
    from replay.endpoint import Endpoint
    from replay.protocol import QUICK

    plan = long_plan(options.bodies) if options.bodies else HandPlan()
    gc.collect()
    protocol = replace(
        QUICK,
        name="bench",
        ramp_per_s=AGENTS_PER_S,
        settle_s=SETTLE_S,
        min_measure_s=options.seconds,
        max_phase_s=10 * options.seconds + 60,
        start_offset_turns=0,
        request_timeout_s=60.0,
    )
    more: dict[str, Any] = {}
    if options.workers > 1:
        if "workers" not in inspect.signature(drive).parameters:
            raise SystemExit("this agentdyno drives from one process only: leave out --workers")
        more["workers"] = options.workers
    _clock[0] = cpu_s()
    result = await drive(plan, Endpoint(options.url, MODEL), agents=options.streams, protocol=protocol, **more)
    _clock[1] = cpu_s()
    seen = [
        one for one in result.records if one.first_content_at_ns is not None and one.sent_at_ns >= result.settle_end_ns
    ]
    failed = [one for one in result.records if one.outcome not in ("ok", "stopped")]
    if failed:
        print(f"{len(failed)} requests failed, the first: {failed[0].outcome}: {failed[0].error}")
    return Seen(
        events=sum(one.events for one in result.records),
        requests=len(result.records),
        bytes_up=sum(one.bytes_up for one in result.records),
        ttft_ms=[((one.first_content_at_ns or 0) - one.sent_at_ns) / 1e6 for one in seen],
        gap_ms=[gap / 1000 for one in seen for gap in one.content_gaps_us],
        client_late=result.health.late,
        failed=len(failed),
    )


async def closed_loop(
    options: argparse.Namespace, request: Callable[[int, bytes, Callable[[int, int, list[int]], None]], Awaitable[None]]
) -> Seen:
    """The same agents as in `ours`: a request each, a pause, the next turn; stopped at the same time."""
    seen = Seen()
    begun_ns = time.monotonic_ns()
    settled_ns = begun_ns + int((options.streams / AGENTS_PER_S + SETTLE_S) * 1e9)

    def note(events: int, sent_ns: int, content_at: list[int]) -> None:
        seen.events += events
        seen.requests += 1
        if sent_ns >= settled_ns and content_at:
            seen.ttft_ms.append((content_at[0] - sent_ns) / 1e6)
            seen.gap_ms.extend((later - earlier) / 1e6 for earlier, later in itertools.pairwise(content_at))

    async def agent(number: int) -> None:
        await asyncio.sleep(number / AGENTS_PER_S)
        while True:
            for turn in range(TURNS):
                if turn:
                    await asyncio.sleep(PAUSE_S)
                prepared = (
                    body(turn)
                    if not options.body_bytes
                    else b'{"stream":true,"max_tokens":16,"x":"' + (b"x" * options.body_bytes) + b'"}'
                )
                seen.bytes_up += len(prepared)
                await request(number, prepared, note)

    tasks = [asyncio.create_task(agent(number)) for number in range(options.streams)]
    await asyncio.sleep((settled_ns - begun_ns) / 1e9 + options.seconds)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


async def plain_httpx(options: argparse.Namespace) -> Seen:
    import httpx

    context = ssl.create_default_context()
    limits = httpx.Limits(max_connections=4)
    clients = [
        httpx.AsyncClient(verify=context, trust_env=False, timeout=60.0, limits=limits) for _ in range(options.streams)
    ]

    async def request(number: int, prepared: bytes, note: Callable[[int, int, list[int]], None]) -> None:
        sent_ns, content_at, events = time.monotonic_ns(), [], 0
        headers = {"content-type": "application/json"}
        try:
            async with clients[number].stream(
                "POST", options.url + "/v1/chat/completions", content=prepared, headers=headers
            ) as response:
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    events += 1
                    if line != "data: [DONE]":
                        choices = json.loads(line[6:])["choices"]
                        if choices and choices[0]["delta"].get("content"):
                            content_at.append(time.monotonic_ns())
        finally:
            note(events, sent_ns, content_at)

    gc.collect()
    gc.freeze()
    _clock[0] = cpu_s()
    seen = await closed_loop(options, request)
    _clock[1] = cpu_s()
    for client in clients:
        await client.aclose()
    return seen


async def raw(options: argparse.Namespace) -> Seen:
    import httptools
    import msgspec

    host, _, port = options.url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()
    decode = msgspec.json.decode

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
            self.parser = httptools.HttpResponseParser(self)
            self.reads: list[tuple[int, bytes]] = []

        def data_received(self, data: bytes) -> None:
            self.now = time.monotonic_ns()
            self.parser.feed_data(data)

        def on_body(self, data: bytes) -> None:
            self.reads.append((self.now, data))

        def on_message_complete(self) -> None:
            if not self.done.done():  # cancelled at the end of the run
                self.done.set_result(None)

        async def ask(self, prepared: bytes) -> None:
            self.done = loop.create_future()
            self.reads = []
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(prepared)}\r\n\r\n"
            self.transport.write(head.encode() + prepared)
            await self.done

    clients: dict[int, Client] = {}

    async def request(number: int, prepared: bytes, note: Callable[[int, int, list[int]], None]) -> None:
        if number not in clients:
            clients[number] = (await loop.create_connection(Client, host, int(port)))[1]
        sent_ns, content_at, events = time.monotonic_ns(), [], 0
        try:
            await clients[number].ask(prepared)
        finally:  # cancelled at the end of the run: what came is counted, as it cost time
            for at_ns, data in clients[number].reads:
                for event in data.split(b"\n\n"):
                    if not event:
                        continue
                    events += 1
                    if event != b"data: [DONE]":
                        choices = decode(event[6:])["choices"]
                        if choices and choices[0]["delta"].get("content"):
                            content_at.append(at_ns)
            note(events, sent_ns, content_at)

    gc.collect()
    gc.freeze()
    _clock[0] = cpu_s()
    seen = await closed_loop(options, request)
    _clock[1] = cpu_s()
    for client in clients.values():
        client.transport.abort()
    return seen


CLIENTS = {"ours": ours, "httpx": plain_httpx, "raw": raw}


def quantile(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=list(CLIENTS))
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=1, help="processes; ours only")
    kinds = ["text", "text-small", "ids", "ids-small"]
    parser.add_argument("--bodies", choices=kinds, help="a real plan with such prompts; ours only")
    parser.add_argument("--body-bytes", type=int, default=0, help="one body of this size; raw only")
    options = parser.parse_args()
    from replay.loop import run

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    begun = time.monotonic()
    seen = run(CLIENTS[options.client](options))
    print(
        json.dumps(
            {
                "events": seen.events,
                "requests": seen.requests,
                "bytes_up": seen.bytes_up,
                "failed": seen.failed,
                "cpu_s": sum(_clock[1]) - sum(_clock[0]),
                "kernel_s": _clock[1][1] - _clock[0][1],
                "whole_cpu_s": sum(cpu_s()),  # with imports
                "wall_s": time.monotonic() - begun,
                "ttft_p50_ms": quantile(seen.ttft_ms, 0.5),
                "ttft_p99_ms": quantile(seen.ttft_ms, 0.99),
                "itl_p50_ms": quantile(seen.gap_ms, 0.5),
                "itl_p99_ms": quantile(seen.gap_ms, 0.99),
                "measured_requests": len(seen.ttft_ms),
                "client_late": seen.client_late,
            }
        )
    )


if __name__ == "__main__":
    main()

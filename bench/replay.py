"""CPU per server-sent event of our replay client, beside plain httpx and beside raw uvloop + httptools.

    python bench/replay.py --quick

Ours is the whole driver: plan, collecting transport, parsing, one record per request. httpx reads lines and decodes
each event as it comes, with one client per agent (one shared client collapses at 200 streams). Raw stores reads and
decodes each event after the close, and records nothing: the floor. The server is Python too and keeps up with about
45,000 events a second, so more than 1,000 streams measure the server. Interleaved rounds, each client in a fresh
process, the same scripted server in its own; medians. Ends stdout with one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TTFT_MS = 200.0
ITL_MS = 20.0
TOKENS = 128
TURNS = 4
PAUSE_S = 0.3
RAMP_S = 0.5
MODEL = "fake-model"


def body(turn: int) -> bytes:
    """A conversation that grows by about 200 tokens a turn."""
    messages = [{"role": "user", "content": f"turn {number} " + "word " * 200} for number in range(turn + 1)]
    return json.dumps(
        {
            "model": MODEL,
            "messages": messages,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


@dataclass
class Seen:
    """What one client measured of the server, and how many events it read."""

    events: int
    ttft_ms: list[float]
    gap_ms: list[float]
    client_late: bool | None = None


# -- the three clients


async def ours(url: str, streams: int, seconds: float) -> Seen:
    from replay.drive import drive
    from replay.endpoint import Endpoint
    from replay.plan import Play, PreparedRequest, Turn
    from replay.protocol import Protocol

    turns = tuple(
        Turn(
            request_index=number,
            wait_for=(number - 1,) if number else (),
            delay_us=int(PAUSE_S * 1e6),
            delay_kind="tool",
            recorded_prompt_tokens=None,
            planned_prompt_tokens=None,
            output_tokens=TOKENS,
        )
        for number in range(TURNS)
    )

    class Script:
        def __init__(self) -> None:
            self.turns = turns

        def request(self, turn: Turn, *, salt: str, model: str) -> PreparedRequest:
            del salt, model
            return PreparedRequest(path="/v1/chat/completions", body=body(turn.request_index))

    script = Script()

    class Plan:
        def plays(
            self, agent: int, *, agents: int | None = None, start_offset_turns: int = 0, trial: int = 0
        ) -> Iterator[Play]:
            del agents, start_offset_turns, trial
            for number in range(1_000_000):
                yield Play(agent=agent, play=number, session_id="s", salt="", first_turn=0)

        def script(self, session_id: str) -> Script:
            del session_id
            return script

    protocol = Protocol(
        name="bench",
        ramp_per_s=streams / RAMP_S,
        settle_s=0.0,
        min_measure_s=seconds,
        min_trajectories=0,
        min_trajectories_per_agent=0,
        max_phase_s=10 * seconds,
        start_offset_turns=0,
        request_timeout_s=60.0,
    )
    result = await drive(Plan(), Endpoint(url, MODEL), agents=streams, protocol=protocol)
    failed = [record for record in result.records if record.outcome not in ("ok", "stopped")]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed, the first: {failed[0].error}")
    whole = [record for record in result.records if record.outcome == "ok"]
    return Seen(
        events=sum(record.events for record in result.records),
        ttft_ms=[((record.first_content_at_ns or 0) - record.sent_at_ns) / 1e6 for record in whole],
        gap_ms=[gap / 1000 for record in whole for gap in record.content_gaps_us],
        client_late=result.health.late,
    )


async def closed_loop(streams: int, seconds: float, request: Callable[[int, bytes, Seen], Awaitable[None]]) -> Seen:
    """The same agents as in `ours`: a request each, a pause, the next turn; stopped after `seconds`."""
    seen = Seen(0, [], [])

    async def agent(number: int) -> None:
        await asyncio.sleep(number / streams * RAMP_S)
        while True:
            for turn in range(TURNS):
                prepared = body(turn)
                if turn:
                    await asyncio.sleep(PAUSE_S)
                await request(number, prepared, seen)

    tasks = [asyncio.create_task(agent(number)) for number in range(streams)]
    await asyncio.sleep(RAMP_S + seconds)
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


def note(seen: Seen, sent_ns: int, content_at: list[int]) -> None:
    seen.ttft_ms.append((content_at[0] - sent_ns) / 1e6)
    seen.gap_ms += [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(content_at)]


async def plain_httpx(url: str, streams: int, seconds: float) -> Seen:
    import httpx

    clients = [httpx.AsyncClient(verify=False, trust_env=False, timeout=60.0) for _ in range(streams)]
    start_clock()

    async def request(number: int, prepared: bytes, seen: Seen) -> None:
        sent_ns, content_at = time.monotonic_ns(), []
        headers = {"content-type": "application/json"}
        async with clients[number].stream(
            "POST", url + "/v1/chat/completions", content=prepared, headers=headers
        ) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                seen.events += 1
                if line != "data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        content_at.append(time.monotonic_ns())
        note(seen, sent_ns, content_at)

    seen = await closed_loop(streams, seconds, request)
    stop_clock()
    for client in clients:
        await client.aclose()
    return seen


async def raw(url: str, streams: int, seconds: float) -> Seen:
    import httptools
    import msgspec

    host, _, port = url.removeprefix("http://").partition(":")
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
            self.done.set_result(None)

        async def ask(self, prepared: bytes) -> None:
            self.done = loop.create_future()
            self.reads = []
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(prepared)}\r\n\r\n"
            self.transport.write(head.encode() + prepared)
            await self.done

    clients: dict[int, Client] = {}

    async def request(number: int, prepared: bytes, seen: Seen) -> None:
        if number not in clients:
            clients[number] = (await loop.create_connection(Client, host, int(port)))[1]
        sent_ns, content_at = time.monotonic_ns(), []
        try:
            await clients[number].ask(prepared)
        finally:  # cancelled at the end of the run: what came is counted, as it cost time
            for at_ns, data in clients[number].reads:
                for event in data.split(b"\n\n"):
                    if not event:
                        continue
                    seen.events += 1
                    if event != b"data: [DONE]":
                        choices = decode(event[6:])["choices"]
                        if choices and choices[0]["delta"].get("content"):
                            content_at.append(at_ns)
        note(seen, sent_ns, content_at)

    seen = await closed_loop(streams, seconds, request)
    for client in clients.values():
        client.transport.abort()
    return seen


CLIENTS = {"ours": ours, "httpx": plain_httpx, "raw": raw}

# -- one client in its own process

_cpu_s = [0.0, 0.0]


def start_clock() -> None:
    _cpu_s[0] = time.process_time()


def stop_clock() -> None:
    _cpu_s[1] = time.process_time()


def run_client(name: str, url: str, streams: int, seconds: float) -> None:
    import gc

    from replay.health import peak_memory_mb
    from replay.loop import run

    if name == "ours":
        import replay.drive
        import replay.plan  # noqa: F401 - importing is not what is measured
    gc.collect()
    start_clock()
    seen = run(CLIENTS[name](url, streams, seconds))
    if _cpu_s[1] == 0.0:
        stop_clock()
    result = {
        "events": seen.events,
        "cpu_s": _cpu_s[1] - _cpu_s[0],
        "requests": len(seen.ttft_ms),
        "ttft_ms": [round(value, 3) for value in seen.ttft_ms],
        "gap_p99_ms": quantile(seen.gap_ms, 0.99),
        "client_late": seen.client_late,
        "memory_mb": peak_memory_mb(),
    }
    print(json.dumps(result))


def quantile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


# -- the rounds


@contextlib.contextmanager
def server() -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests" / "fake_server.py"), "--context-tokens", "1000000"]
    command += ["--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def measure(name: str, streams: int, seconds: float) -> dict[str, float]:
    """One client process against a fresh server process; with what the server itself says it took to answer."""
    import urllib.request

    with server() as url:
        # As a module: run as a file, this one would hide the package of the same name.
        command = [sys.executable, "-m", "bench.replay", "--client", name, "--url", url]
        command += ["--streams", str(streams), "--seconds", str(seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        with urllib.request.urlopen(url + "/log") as response:
            log = json.load(response)
    result = json.loads(done.stdout.splitlines()[-1])
    truth_ms = [
        (served["first_token_at_ns"] - served["arrived_at_ns"]) / 1e6 for served in log if served["first_token_at_ns"]
    ]
    ttft_ms = result.pop("ttft_ms")
    return {
        **result,
        "us_per_event": result["cpu_s"] / result["events"] * 1e6,
        "events_per_s": result["events"] / (seconds + RAMP_S),
        "ttft_p50_ms": quantile(ttft_ms, 0.5),
        "ttft_p99_ms": quantile(ttft_ms, 0.99),
        "truth_p50_ms": quantile(truth_ms, 0.5),
        "truth_p99_ms": quantile(truth_ms, 0.99),
    }


def row(name: str, streams: int, result: dict[str, float]) -> str:
    late = {True: "yes", False: "no", None: "-"}[result.get("client_late")]  # type: ignore[index]
    return (
        f"{name:<22}{streams:>8}{result['events_per_s']:>10.0f}{result['us_per_event']:>10.2f}"
        f"{result['ttft_p50_ms']:>10.1f}{result['ttft_p99_ms']:>9.1f}{result['truth_p50_ms']:>10.1f}"
        f"{result['truth_p99_ms']:>9.1f}{result['gap_p99_ms']:>9.1f}{result['memory_mb']:>8.0f}{late:>6}"
    )


def median(results: list[dict[str, float]]) -> dict[str, float]:
    joined = {
        key: statistics.median(values)
        for key in results[0]
        if None not in (values := [result[key] for result in results])
    }
    joined["client_late"] = results[0]["client_late"] and any(result["client_late"] for result in results)
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute: three short rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--scale", type=int, nargs="*", help="more numbers of streams, without httpx")
    parser.add_argument("--client", choices=list(CLIENTS), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        run_client(options.client, options.url, options.streams, options.seconds)
        return
    rounds = options.rounds or (3 if options.quick else 5)
    seconds = options.seconds or (3.5 if options.quick else 8.0)
    scale = options.scale if options.scale is not None else ([1000] if options.quick else [100, 1000])
    load_before = os.getloadavg()[0]
    print(f"server: {TTFT_MS:g} ms to the first token, {ITL_MS:g} ms a token, {TOKENS} tokens; truth: its own log")
    print(f"load average before: {load_before:.1f} on {os.cpu_count()} cores\n")
    print(
        f"{'client':<22}{'streams':>8}{'events/s':>10}{'us/event':>10}{'TTFT p50':>10}{'p99 ms':>9}"
        f"{'truth p50':>10}{'p99 ms':>9}{'gap p99':>9}{'MB':>8}{'late':>6}"
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CLIENTS}
    for _ in range(rounds):
        for name, measured in results.items():
            measured.append(measure(name, options.streams, seconds))
    medians = {name: median(measured) for name, measured in results.items()}
    for name, result in medians.items():
        print(row(name, options.streams, result), flush=True)
    scaled = []
    for streams in scale:
        for name in ("ours", "raw"):
            result = measure(name, streams, max(seconds, 4.0))
            scaled.append({"client": name, "streams": streams, **result})
            print(row(name, streams, result), flush=True)
    print(f"\nload average after: {os.getloadavg()[0]:.1f}")
    summary = {
        "us_per_event": round(medians["ours"]["us_per_event"], 3),
        "us_per_event_httpx": round(medians["httpx"]["us_per_event"], 3),
        "us_per_event_raw": round(medians["raw"]["us_per_event"], 3),
        "x_of_raw": round(medians["ours"]["us_per_event"] / medians["raw"]["us_per_event"], 3),
        "httpx_x_of_ours": round(medians["httpx"]["us_per_event"] / medians["ours"]["us_per_event"], 2),
        "rounds": rounds,
        "streams": options.streams,
        "load_before": load_before,
        "scale": scaled,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

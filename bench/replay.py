"""What our replay client costs and how truthful it is, against a compiled source of events on the same machine.

    python bench/replay.py --quick            # within a minute
    python bench/replay.py                    # all parts, about eight minutes
    python bench/replay.py --only scale --rounds 3

Four parts; `bench/replay_clients.py` says what the clients are, `bench/sse_source.c` what they talk to.

- `event`: CPU per server-sent event, ours (the whole driver, records to disk) beside plain httpx and beside raw uvloop
  with httptools: interleaved rounds, each client in a fresh process; medians.
- `scale`: 1,000 agents at 50 tokens a second each, the client pinned to one core and the source to another: how far p99
  TTFT and p99 ITL lie above the truth, and the most memory.
- `many`: 2,000 agents, pinned to nothing; with one and with two worker processes.
- `bodies`: CPU and memory per MB of request at 128K-token prompts, as text and as token ids, by real plans. What
  such a plan costs with prompts of 1K tokens is taken off; `raw` sends ready bodies of that size and is the floor.

The truth is what the source was told: 200 ms to the first token (1,000 ms where bodies are long), 20 ms a token. It
logs how late it was itself; a run in which it was late is repeated, and after three tries left out. `source` is its p99
lateness in ms. Every 0.25 ms it sends what has fallen due: a server of longer steps sends larger groups, which cost a
client less by the event (`--quantum-us`). `foreign` is how many cores others used meanwhile: above 0.4 (marked !)
latencies are an upper bound. CPU is the client's own, user and kernel. The source runs at real-time priority and all
clients at a raised one, where that is allowed. Ends stdout with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # run as a file, this one would hide the package of the same name

from bench.source import FOREIGN_CORES, Machine, cpu_s, favour, serving, was_late  # noqa: E402
from bench.watch import proportional_bytes, tree  # noqa: E402

TTFT_MS, LONG_TTFT_MS, ITL_MS = 200.0, 1000.0, 20.0
TRIES = 3
PARTS = ("event", "scale", "many", "bodies")
TARGETS = {"scale": (10.0, 5.0, 150.0), "many": (40.0, None, None)}
"""TTFT p99 and ITL p99 above the truth in ms, and MB."""
CALM = {"OPENBLAS_NUM_THREADS": "1"}  # its idle threads would spin on the core that is measured

type Row = dict[str, Any]


def run_once(words: list[str], *, ttft_ms: float, quantum_us: float, split: bool) -> Row:
    """One client process against a fresh source; `split`: the source on one core, the client on another."""
    cores = sorted(os.sched_getaffinity(0))
    apart = split and len(cores) > 1
    with serving(ttft_ms=ttft_ms, itl_ms=ITL_MS, quantum_us=quantum_us, cores=cores[:1] if apart else None) as source:
        machine = Machine()
        source_before_s, own_before_s = cpu_s(source.pid), time.process_time()
        command = [sys.executable, "-m", "bench.replay_clients", *words, "--url", source.url]
        client = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | CALM
        )
        favour(client.pid)
        if apart:
            os.sched_setaffinity(client.pid, cores[1:2])
        peak, done = [0.0], threading.Event()

        def look() -> None:
            while not done.wait(0.5):
                peak[0] = max(peak[0], sum(map(proportional_bytes, tree(client.pid))) / 1e6)

        looker = threading.Thread(target=look)
        looker.start()
        out, error = client.communicate()
        done.set()
        looker.join()
        if client.returncode:
            sys.exit(f"the client {' '.join(words)} failed:\n{error[-3000:]}")
        *talk, last = out.splitlines()
        if talk:
            print("\n".join(talk), file=sys.stderr)
        row: Row = json.loads(last)
        log = source.log()
        ours_s = row["whole_cpu_s"] + cpu_s(source.pid) - source_before_s + time.process_time() - own_before_s
        foreign = machine.foreign(ours_s)
    events_per_s = row["events"] / row["wall_s"]
    return row | {
        "us_per_event": row["cpu_s"] / max(1, row["events"]) * 1e6,
        "events_per_s": events_per_s,
        "ttft_over_ms": over(row["ttft_p99_ms"], ttft_ms),
        "itl_over_ms": over(row["itl_p99_ms"], ITL_MS),
        "peak_mb": peak[0],
        "source_late_p99_ms": log["late_p99_us"] / 1000,
        "source_us_per_token": log["cpu_s"] / max(1, log["tokens"]) * 1e6,
        "source_stalls": log["stalls"],
        "source_late": was_late(log),
        "foreign": foreign,
    }


def over(value: float | None, truth: float) -> float | None:
    """How far above the truth."""
    return None if value is None else value - truth


def run_row(
    options: argparse.Namespace, words: list[str], *, ttft_ms: float = TTFT_MS, split: bool = False
) -> Row | None:
    """The same, repeated while the source was late; None when it always was."""
    for _ in range(TRIES):
        row = run_once(words, ttft_ms=ttft_ms, quantum_us=options.quantum_us, split=split)
        if not row["source_late"]:
            return row
        late_ms = row["source_late_p99_ms"]
        print(f"{' '.join(words)}: the source was late (p99 {late_ms:.1f} ms): again", file=sys.stderr)
    return None


def median(rows: list[Row]) -> Row:
    """The rows' medians, number by number."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    joined = {key: None if None in values else statistics.median(values) for key, values in columns.items()}
    return joined | {"client_late": rows[0]["client_late"] is not None and any(row["client_late"] for row in rows)}


HEAD = (
    f"{'client':<24}{'streams':>8}{'events/s':>10}{'us/event':>10}{'of it kernel':>13}{'TTFT p99':>10}{'ITL p99':>9}"
    f"{'MB':>7}{'late':>6}{'source':>8}{'foreign':>9}"
)


def line(name: str, streams: int, row: Row) -> str:
    """A row of the table."""
    late = "-" if row.get("client_late") is None else "yes" if row["client_late"] else "no"
    return (
        f"{name:<24}{streams:>8}{row['events_per_s']:>10.0f}{row['us_per_event']:>10.2f}"
        f"{row['kernel_s'] / max(1, row['events']) * 1e6:>13.2f}{number(row['ttft_over_ms']):>10}"
        f"{number(row['itl_over_ms']):>9}{row['peak_mb']:>7.0f}{late:>6}{row['source_late_p99_ms']:>8.2f}"
        f"{row['foreign']:>8.2f}{'!' if row['foreign'] > FOREIGN_CORES else ' '}"
    )


def number(value: float | None) -> str:
    """Milliseconds above the truth."""
    return "-" if value is None else f"+{value:.1f}" if value >= 0 else f"{value:.1f}"


def bench_event(options: argparse.Namespace) -> Row:
    """CPU per event of the three clients."""
    rows: dict[str, list[Row]] = {"ours": [], "httpx": [], "raw": []}
    words = ["--streams", str(options.streams), "--seconds", str(options.seconds)]
    for _ in range(options.rounds):
        for name, found in rows.items():
            if (row := run_row(options, [name, *words])) is not None:
                found.append(row)
    medians = {name: median(found) for name, found in rows.items() if found}
    for name, row in medians.items():
        print(line(name, options.streams, row), flush=True)
    if len(medians) < len(rows):
        print("no result where the source was late every time: run it on a quieter machine")
        return {}
    ours, httpx, raw = (medians[name]["us_per_event"] for name in ("ours", "httpx", "raw"))
    print(f"ours is {ours / raw:.2f} x raw; httpx is {httpx / ours:.1f} x ours\n")
    return {
        "us_per_event": round(ours, 3),
        "us_per_event_httpx": round(httpx, 3),
        "us_per_event_raw": round(raw, 3),
        "x_of_raw": round(ours / raw, 3),
        "httpx_x_of_ours": round(httpx / ours, 2),
        "event": {name: kept(row) for name, row in medians.items()},
    }


def kept(row: Row) -> Row:
    """What the JSON keeps of a row."""
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def bench_scale(options: argparse.Namespace, part: str) -> Row:
    """Latency over the truth with many agents."""
    streams = 1000 if part == "scale" else 2000
    clients = [("ours", 1), ("raw", 1)] if part == "scale" else [("ours", 1), ("ours", 2)]
    ttft_ms, itl_ms, most_mb = TARGETS[part]
    result: Row = {}
    for client, workers in clients:
        name = f"{client}{f', {workers} workers' if workers > 1 else ''}{', one core' if part == 'scale' else ''}"
        words = [client, "--streams", str(streams), "--seconds", str(options.seconds), "--workers", str(workers)]
        rows = [
            row
            for _ in range(options.scale_rounds)
            if (row := run_row(options, words, split=part == "scale")) is not None
        ]
        if not rows:
            print(f"{name:<24}{streams:>8}  not reported: the source was late every time")
            continue
        row = median(rows)
        print(line(name, streams, row), flush=True)
        result[name] = kept(row)
    limits = [f"TTFT p99 +{ttft_ms:.0f} ms"]
    limits += [f"ITL p99 +{itl_ms:.0f} ms"] if itl_ms else []
    limits += [f"{most_mb:.0f} MB"] if most_mb else []
    print(f"goal at {streams}: at most {', '.join(limits)}\n")
    return {part: result}


def bench_bodies(options: argparse.Namespace) -> Row:
    """CPU and memory per MB of request."""
    agents = options.body_agents
    words = ["--streams", str(agents), "--seconds", str(options.seconds)]
    print(
        f"{'128K-token prompts':<24}{'agents':>8}{'requests/s':>11}{'MB each':>9}{'CPU ms each':>12}{'CPU ms/MB':>11}"
        f"{'peak MB':>9}{'MB/MB':>7}{'TTFT p99':>10}{'late':>6}{'foreign':>9}"
    )
    result: Row = {}
    for bodies in ("text-small", "text", "ids-small", "ids", "raw"):
        client = ["ours", *words, "--bodies", bodies]
        if bodies == "raw":  # the floor: bodies that are ready, of the same size
            client = ["raw", *words, "--body-bytes", str(round(result["ids"]["mb_each"] * 1e6))]
        row = run_row(options, client, ttft_ms=LONG_TTFT_MS)
        if row is None:
            print(f"{bodies:<24}{agents:>8}  not reported: the source was late every time")
            return {"bodies": result}
        small = result.get(f"{bodies}-small", {"cpu_ms_each": 0.0, "peak_mb": 0.0, "mb_each": 0.0})
        each_mb = row["bytes_up"] / row["requests"] / 1e6
        each_ms = row["cpu_s"] / row["requests"] * 1000
        row |= {
            "mb_each": each_mb,
            "cpu_ms_each": each_ms,
            "cpu_ms_per_mb": (each_ms - small["cpu_ms_each"]) / (each_mb - small["mb_each"]),
            "mb_per_mb": (row["peak_mb"] - small["peak_mb"]) / (agents * (each_mb - small["mb_each"])),
        }
        result[bodies] = kept(row)
        late = "-" if row["client_late"] is None else "yes" if row["client_late"] else "no"
        per_mb, memory = (
            "-" if "small" in bodies or (bodies, name) == ("raw", "mb_per_mb") else f"{row[name]:.2f}"
            for name in ("cpu_ms_per_mb", "mb_per_mb")
        )
        print(
            f"{bodies:<24}{agents:>8}{row['requests'] / row['wall_s']:>11.1f}{each_mb:>9.3f}{each_ms:>12.2f}"
            f"{per_mb:>11}{row['peak_mb']:>9.0f}{memory:>7}{number(row['ttft_over_ms']):>10}{late:>6}"
            f"{row['foreign']:>8.2f}{'!' if row['foreign'] > FOREIGN_CORES else ' '}",
            flush=True,
        )
    print("MB/MB: memory above that with small prompts, by the MB of one body for each agent")
    return {"bodies": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute: short rounds, no two workers")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="of `event` [5, quick 2]")
    parser.add_argument("--scale-rounds", type=int, help="of `scale` and `many` [3, quick 1]")
    parser.add_argument("--seconds", type=float, help="measured in each run, after ramp and settling [10, quick 3]")
    parser.add_argument("--streams", type=int, default=400, help="of `event`")
    parser.add_argument("--body-agents", type=int, default=100, help="of `bodies`")
    parser.add_argument(
        "--quantum-us", type=float, default=250.0, help="the source sends what fell due this often [250]"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.scale_rounds = options.scale_rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (3.0 if options.quick else 10.0)
    if options.quick:
        options.only = [part for part in options.only if part != "many"]
    load_before = os.getloadavg()[0]
    print(f"source: {TTFT_MS:g} ms to the first token, {ITL_MS:g} ms a token; latencies are ms above that")
    print(f"load average before: {load_before:.1f} on {os.cpu_count()} cores\n")
    summary: Row = {
        "quantum_us": options.quantum_us,
        "cores": os.cpu_count(),
        "load_before": load_before,
        "seconds": options.seconds,
    }
    if set(options.only) - {"bodies"}:
        print(HEAD)
    for part in options.only:
        if part == "event":
            summary |= bench_event(options)
        elif part == "bodies":
            summary |= bench_bodies(options)
        else:
            summary |= bench_scale(options, part)
    print(f"\nload average after: {os.getloadavg()[0]:.1f}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

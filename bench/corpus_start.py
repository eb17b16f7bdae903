"""Time to the first request, and memory, when a replay starts on 700 sessions of a published corpus's size.

    python bench/corpus_start.py                        # makes the sessions (two minutes), then measures
    python bench/corpus_start.py --keep DIR             # the same, and keeps the dataset
    python bench/corpus_start.py --dataset DIR          # measures only

The sessions are content-free and generated (`bench/weka_sessions.py`): 51,000 requests, contexts to 844k tokens, in
all 6.1 G prompt tokens, 92 M block hashes. They go through the importer and `curate build`, as real ones would; that is
not measured. Measured is `replay run` in a fresh process: from its start to the first request of an agent that reaches
a source on loopback (the probe that comes before is part of that time), and the most memory of its whole run
(proportional set size of its processes). `importing alone` is an interpreter that imports what the command needs and
stops. Files are in the page cache, as after a download. Ends stdout with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # run as a file, this one would hide packages

from bench.source import FOREIGN_CORES, MODEL, Machine, serving  # noqa: E402
from bench.watch import watch  # noqa: E402

SESSIONS = 700
GOAL_S, GOAL_MB = 5.0, 500.0
PROBE_BYTES = 16_384
"""The probe's bodies are smaller, an agent's larger."""
PER_TASK = 20


def import_some(work: Path, store: Path, numbers: range) -> int:
    """Write a few traces, put them on the store's shelf and delete them; returns their requests."""
    from bench.weka_sessions import write_traces
    from capture.importers.weka import import_weka
    from capture.shelf import Shelf
    from capture.store import Store

    folder = Path(tempfile.mkdtemp(dir=work))
    requests = write_traces(folder, numbers)
    Shelf(store).put_all(import_weka([folder], Store.open(store).key).trajectories)
    shutil.rmtree(folder)
    return requests


def make_dataset(out: Path, sessions: int, processes: int) -> int:
    """Make the dataset; returns how many requests it holds."""
    from capture.store import Store

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="agentdyno-corpus-", dir=out.parent) as name:
        work = Path(name)
        store = Store.open(work / "store", create=True).path
        parts = [range(first, min(first + PER_TASK, sessions)) for first in range(0, sessions, PER_TASK)]
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            requests = sum(pool.map(import_some, [work] * len(parts), [store] * len(parts), parts))
        imported_s = time.perf_counter() - begun
        command = [sys.executable, str(ROOT / "agentdyno.py"), "curate", "build", "--store", str(store)]
        subprocess.run([*command, "--out", str(out), "--jobs", str(processes)], check=True, stdout=subprocess.DEVNULL)
    print(
        f"{sessions} sessions, {requests:,} requests: imported in {imported_s:.0f} s, "
        f"built in {time.perf_counter() - begun - imported_s:.0f} s",
        file=sys.stderr,
    )
    return requests


def start_once(dataset: Path, agents: int) -> dict[str, Any]:
    """One `replay run` against a source that answers at once."""
    fast = serving(ttft_ms=20, itl_ms=1, notable_bytes=PROBE_BYTES)
    with tempfile.TemporaryDirectory(prefix="agentdyno-start-") as name, fast as source:
        run = Path(name) / "run"
        command = [sys.executable, str(ROOT / "agentdyno.py"), "replay", "run", str(dataset), "--url", source.url]
        command += ["--model", MODEL, "--agents", str(agents), "--duration", "1", "--out", str(run)]
        machine, before = Machine(), os.times()
        begun_ns = time.monotonic_ns()
        took = watch(command, error=Path(name) / "stderr")
        log, after = source.log(), os.times()
        if not log["first_request_ns"]:
            sys.exit(f"no request came; the command said:\n{(Path(name) / 'stderr').read_text()[-2000:]}")
        return {
            "first_request_s": (log["first_request_ns"] - begun_ns) / 1e9,
            "peak_mb": took.peak_mb,
            "cpu_s": took.cpu_s,
            "wall_s": took.wall_s,
            "requests": log["requests"],
            "foreign": machine.foreign(sum(after[:4]) - sum(before[:4]) + log["cpu_s"]),
        }


def import_s() -> float:
    """What it takes an interpreter to start and to import what the command needs."""
    begun = time.perf_counter()
    code = "import curate.dataset, replay.score, replay.plan, replay.drive, replay.live"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="measure with this one, made earlier by --keep")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the dataset here and leave it; must be new")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="for making the dataset")
    options = parser.parse_args()
    if options.dataset is not None:
        measure(options.dataset, options)
    elif options.keep is not None:
        make_dataset(options.keep.absolute(), options.sessions, options.processes)
        measure(options.keep, options)
    else:
        with tempfile.TemporaryDirectory(prefix="agentdyno-corpus-") as name:
            make_dataset(Path(name) / "dataset", options.sessions, options.processes)
            measure(Path(name) / "dataset", options)


def measure(dataset: Path, options: argparse.Namespace) -> None:
    """The rounds, the table and the JSON."""
    size_mb = sum(file.stat().st_size for file in (dataset / "data").rglob("*.parquet")) / 1e6
    imports = statistics.median(import_s() for _ in range(options.rounds))
    print(f"dataset: {size_mb:.0f} MB of Parquet; importing alone: {imports:.2f} s")
    print(f"goal: below {GOAL_S:g} s and {GOAL_MB:g} MB\n")
    print(f"{'round':<8}{'first request s':>16}{'peak MB':>9}{'CPU s':>8}{'run s':>8}{'foreign':>9}")
    rows = []
    for number in range(options.rounds):
        row = start_once(dataset, options.agents)
        rows.append(row)
        print(
            f"{number + 1:<8}{row['first_request_s']:>16.2f}{row['peak_mb']:>9.0f}{row['cpu_s']:>8.2f}"
            f"{row['wall_s']:>8.2f}{row['foreign']:>8.2f}{'!' if row['foreign'] > FOREIGN_CORES else ' '}",
            flush=True,
        )
    middle = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
    met = middle["first_request_s"] < GOAL_S and middle["peak_mb"] < GOAL_MB
    print(
        f"median: {middle['first_request_s']:.2f} s, {middle['first_request_s'] / imports:.1f} x importing alone; "
        f"{middle['peak_mb']:.0f} MB: {'within the goal' if met else 'over the goal'}"
    )
    told = {"import_s": round(imports, 3), "dataset_mb": round(size_mb, 1), "rounds": options.rounds}
    print(json.dumps(middle | told))


if __name__ == "__main__":
    main()

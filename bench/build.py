"""The same sessions curated three ways in one run: `curate build`, a naive `datasets.map` pipeline, DataClaw.

Part of `bench/curate.py`: `--build [--gigabytes 1] [--dataclaw-python PATH] [--folder DIR]`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.sessions import Made, projects, write_sessions
from bench.watch import Watched, watch

PROCESSES = 2
ROOT = Path(__file__).resolve().parent.parent


def import_project(logs: Path, store: Path) -> int:
    """Put the sessions of a folder of Claude Code logs on the store's shelf, as `capture import` does."""
    from capture.importers.claude_code import import_claude_code
    from capture.shelf import Shelf
    from capture.store import Store

    imported = import_claude_code([logs], Store.open(store).key)
    Shelf(store).put_all(imported.trajectories)
    return len(imported.trajectories)


def prepare(folder: Path, gigabytes: float) -> tuple[Made, Path]:
    """The sessions in all shapes; none of it is timed against anything."""
    from capture.store import Store

    begun = time.perf_counter()
    made = write_sessions(folder, gigabytes)
    store = Store.open(folder / "store", create=True).path
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = sum(pool.map(import_project, *zip(*((logs, store) for logs in projects(made)), strict=True)))
    assert found == made.sessions, f"{found} of {made.sessions} sessions were imported"
    print(
        f"{made.sessions:,} sessions, {made.requests:,} requests: {made.json_bytes / 1e6:,.0f} MB as nested JSON "
        f"lines, {made.log_bytes / 1e6:,.0f} MB as Claude Code logs, {size(store) / 1e6:,.0f} MB as a store "
        f"({time.perf_counter() - begun:.0f} s to make)",
        flush=True,
    )
    return made, store


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else path.stat().st_size


def bench_build(gigabytes: float, dataclaw: Path | None, folder: Path | None, *, naive: bool) -> dict[str, float]:
    """Run all that there is; the result holds seconds, megabytes and ratios."""
    with tempfile.TemporaryDirectory(prefix="agentdyno-bench-", dir=folder) as work:
        return _bench(Path(work), gigabytes, dataclaw, naive=naive)


def _bench(work: Path, gigabytes: float, dataclaw: Path | None, *, naive: bool) -> dict[str, float]:
    made, store = prepare(work, gigabytes)
    runs: dict[str, tuple[Watched, int]] = {}

    def run(name: str, command: list[str], out: Path, environment: dict[str, str] | None = None) -> None:
        error = work / f"{name}.stderr"
        took = watch(command, environment=environment, error=error)
        if took.code:
            said = error.read_text(errors="replace").strip().splitlines()[-5:]
            print(f"{name} ended with {took.code}: {' | '.join(said)}", file=sys.stderr)
            return
        runs[name] = took, size(out)

    dataset = work / "dataset"
    run(
        "curate build",
        [
            *(sys.executable, str(ROOT / "agentdyno.py"), "curate", "build"),
            *("--store", str(store), "--out", str(dataset), "--jobs", str(PROCESSES)),
        ],
        dataset,
    )
    if naive:
        out = work / "naive"
        out.mkdir()
        run(
            "datasets.map",
            [
                *(sys.executable, str(ROOT / "bench" / "naive_pipeline.py")),
                *(str(made.json_lines), str(out), str(PROCESSES)),
            ],
            out / "sessions.parquet",
            {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache")},
        )
    if dataclaw is not None:
        home = made.logs.parent.parent
        (home / ".dataclaw").mkdir()
        (home / ".dataclaw" / "config.json").write_text(
            json.dumps({"source": "claude", "projects_confirmed": True, "excluded_projects": [], "redact_strings": []})
        )
        out = work / "dataclaw.jsonl"
        run(
            "DataClaw",
            [
                *(str(dataclaw), "-m", "dataclaw.cli", "export"),
                *("--source", "claude", "--no-push", "--output", str(out)),
            ],
            out,
            {"HOME": str(home), "PYTHONUTF8": "1", "DATACLAW_WORKERS": str(PROCESSES)},
        )
    return _table(made, runs)


def _table(made: Made, runs: dict[str, tuple[Watched, int]]) -> dict[str, float]:
    result: dict[str, float] = {"gigabytes": round(made.json_bytes / 1e9, 3), "sessions": made.sessions}
    ours = runs.get("curate build")
    print(
        f"{'':14} {'wall s':>9} {'CPU s':>9} {'peak MB':>9} {'processes':>10} {'written MB':>11} "
        f"{'MB/s of JSON':>13} {'× our wall':>11}"
    )
    for name, (took, written) in runs.items():
        ratio = took.wall_s / ours[0].wall_s if ours else float("nan")
        print(
            f"{name:14} {took.wall_s:9.1f} {took.cpu_s:9.1f} {took.peak_mb:9.0f} {took.most_processes:10} "
            f"{written / 1e6:11.1f} {made.json_bytes / 1e6 / took.wall_s:13.2f} {ratio:11.2f}"
        )
        key = {"curate build": "build", "datasets.map": "naive", "DataClaw": "dataclaw"}[name]
        result |= {f"{key}_s": round(took.wall_s, 1), f"{key}_peak_mb": round(took.peak_mb)}
        if name != "curate build" and ours:
            result[f"build_vs_{key}_x"] = round(ratio, 2)
    print(f"on {os.cpu_count()} cores, {PROCESSES} processes each; the tools do not do the same work, see the docs")
    return result

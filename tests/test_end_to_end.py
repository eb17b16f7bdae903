"""The manual as a test: import, build, serve, replay, verify, report, each by the command a user would type.

The eight tasks of agentperf-local and the ten Weka sessions with the fewest input tokens, all of them, once.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest

ROOT = Path(__file__).parent.parent
RULES = [
    *("--context-scale", "0.0625", "--length", "capped:32"),
    *("--tool-delay", "capped:0.1", "--unsplit-delay", "capped:0.1"),
]


def agentdyno(*arguments: str | Path) -> str:
    """Run one command of the tool to its end and return what it printed."""
    command = [sys.executable, "-m", "agentdyno", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def engine(tmp_path: Path) -> Iterator[str]:
    """`agentdyno replay engine` on a free port, until the block ends."""
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "agentdyno", "replay", "engine", "--slots", "10", "--context", "36864"]
    child = subprocess.Popen([*command, "--ready-file", str(ready)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield ready.read_text().strip()
    finally:
        child.terminate()
        assert child.wait(30) == 0


def input_tokens(path: Path) -> int:
    """All input tokens of a Weka file, sub-agents included, read without our importer."""
    return sum(map(int, re.findall(r'"in":\s*(\d+)', path.read_text())))


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_recorded_work_becomes_a_verified_run(weka_traces: Path, tmp_path: Path) -> None:
    store, dataset, run = tmp_path / "store", tmp_path / "dataset", tmp_path / "run"

    # 1. Sessions that others recorded come into a store.
    smallest = sorted(weka_traces.glob("trace_*.json"), key=input_tokens)[:10]
    agentdyno("capture", "import", "weka", *smallest, "--store", store)
    agentdyno("capture", "import", "agentperf-local", "--store", store)
    sessions = json.loads(agentdyno("capture", "sessions", "--store", store, "--json"))
    assert len(sessions) == 18
    shown = json.loads(agentdyno("capture", "show", sessions[0]["session_id"], "--store", store, "--json"))
    assert shown["session"] == sessions[0]

    # 2. The store becomes a dataset with statistics.
    agentdyno("curate", "build", "--store", store, "--out", dataset)
    statistics = json.loads(agentdyno("curate", "stats", dataset, "--json"))
    assert (dataset / "README.md").read_text().startswith("---\n")
    assert statistics

    # 3. The dataset is replayed against a real engine, every session once; rules that shorten it are printed.
    with engine(tmp_path) as url:
        probed = json.loads(agentdyno("replay", "probe", "--url", url, "--model", "agentdyno-nano", "--json"))
        assert probed["ignore_eos"] == "obeyed"
        assert probed["token_prompts"] == "exact"
        server = ["--url", url, "--model", "agentdyno-nano"]
        # The level's limits are wide, and with them what this client may be late on a machine that does other work.
        asked = ["--agents", "8", "--once", "--slo", "aa-shape-2026-07/20", *RULES]
        score = json.loads(agentdyno("replay", "run", dataset, *server, *asked, "--out", run, "--json"))
    labels = " ".join(score["labels"])
    assert "contexts scaled by 0.0625" in labels
    assert "tool0.1-unsplit0.1" in labels
    records = polars.read_parquet(run / "trials" / "1" / "records.parquet")
    assert records.height == sum(session["num_requests"] for session in sessions) == 291
    assert set(records["outcome"]) == {"ok"}
    assert records["session_id"].n_unique() == 18
    exact = records.filter(polars.col("planned_prompt_tokens").is_not_null())
    assert exact.height == 123
    assert (exact["planned_prompt_tokens"] == exact["prompt_tokens"]).all()
    assert (records["planned_output_tokens"] == records["completion_tokens"]).all()

    # 4. Anyone can recompute the result from its records, and look at it.
    assert "follows from its records" in agentdyno("replay", "verify", run)
    report = Path(agentdyno("replay", "report", run).strip())
    assert "<svg" in report.read_text() or "data:image/png" in report.read_text()

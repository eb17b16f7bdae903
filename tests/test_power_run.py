"""The whole way: a command line, a fake NVML whose load rises and falls, a node's meter, and a score to verify."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from capture.shelf import Shelf
from capture.store import Store
from curate.build import build
from replay.runfolder import RunFolder
from replay.verify import verify
from tests.fake_nvml import GPU_IS_LOST, LATCH_S, Page, build_library, open_page, write_page
from tests.fake_server import serving
from tests.sample_sessions import text_session

ROOT = Path(__file__).parent.parent
PROGRAM = "from agentdyno import main; main()"
PERIOD_S = 0.2  # of every source here
IDLE_W, LOAD_W, MODULE_W, NODE_W = 120.0, 600.0, 300.0, 2600.0

SYSTEM = """
name = "two modules, one of them idle"
pue = 1.25
pue_kind = "annual"
agents_per_engineer = 4.0
provisioned = "system_power.json"
[[nodes]]
name = "n1"
[[accelerators]]
name = "F"
uuid = "GPU-fake-0"
node = "n1"
module = "m0"
[[accelerators]]
name = "F"
uuid = "GPU-fake-1"
node = "n1"
module = "m1"
role = "idle"
[[meters]]
device = "pdu"
covers = "node n1"
u_percent = 1.0
evidence = "its data sheet"
[prices]
currency = "EUR"
per_hour = 8.0
energy_per_kwh = 0.2
"""

METER = f"""
import json, time
devices = [{{"uid": "pdu", "domain": "node"}}]
print(json.dumps({{"agentdyno_power": 1, "period_s": 0.2, "devices": devices}}), flush=True)
begin = time.monotonic()
while True:
    print(json.dumps({{"device": "pdu", "energy_j": {NODE_W} * (time.monotonic() - begin)}}), flush=True)
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


def draw(page: Page, device: int, watts: float) -> None:
    """From now on the device draws so much, and its counter goes on from where it is."""
    dial = page.dials[device]
    now_s = math.floor(time.monotonic() / LATCH_S) * LATCH_S
    joules = dial.base_w * (now_s - dial.zero_s)
    dial.zero_s = now_s - joules / watts
    dial.base_w = watts


def follow(page: Page, out: Path, ended: threading.Event, *, lost: bool) -> None:
    """What the hardware does while the command runs: works in the trial, idles around it, and may fall off the bus."""

    def wait_for(path: Path) -> None:
        while not path.exists() and not ended.wait(0.01):
            pass

    wait_for(out / "idle" / "before" / "idle.json")
    draw(page, 0, LOAD_W)
    if lost:
        time.sleep(0.5)
        page.dials[1].code = GPU_IS_LOST
    wait_for(out / "trials" / "1" / "trial.json")
    draw(page, 0, IDLE_W)


def run_command(folder: Path, name: str, library: Path, url: str) -> None:
    """One run in `folder`; of that named `lost` the idle accelerator falls off the bus once the trial has begun."""
    usual = {"base_w": IDLE_W, "limit_w": 700.0, "module_w": MODULE_W, "zero_s": time.monotonic() - 1000}
    answers = {"module_average": 0, "module_instant": 0}
    write_page(folder / f"page-{name}", [{**usual, "codes": answers} for _ in range(3)])
    ended = threading.Event()
    hardware = threading.Thread(
        target=follow,
        args=(open_page(folder / f"page-{name}"), folder / name, ended),
        kwargs={"lost": name == "lost"},
    )
    hardware.start()
    words = ["replay", "run", "dataset", "--url", url, "--model", "fake-model", "--agents", "2", "--duration", "2"]
    words += ["--slo", "level.toml", "--system", "system.toml", "--idle", "1", "--out", name]
    for power in ("nvml", f"command:{sys.executable} meter.py", "declared:2kW"):
        words += ["--power", power]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, "--tool-delay", "none", "--length", "capped:8"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_PAGE": str(folder / f"page-{name}"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ended.set()
    hardware.join()
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def scores(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Two runs side by side: in one every device is there to the end, in the other one is lost."""
    folder = tmp_path_factory.mktemp("power")
    Store.open(folder / "store", create=True)
    Shelf(folder / "store").put(text_session())
    build([folder / "store"], folder / "dataset", jobs=1)
    (folder / "level.toml").write_text("[limits]\np25_output_tok_s = 1\np95_ttft_s = 10\n")
    (folder / "system.toml").write_text(SYSTEM)
    (folder / "system_power.json").write_text(json.dumps({"provisioned_power_w": 4000}))
    (folder / "meter.py").write_text(METER)
    with serving(ttft_ms=10, itl_ms=2) as server, ThreadPoolExecutor() as pool:
        runs = [pool.submit(run_command, folder, name, library, server.url) for name in ("whole", "lost")]
        for run in runs:
            run.result()
    found = {}
    for name in ("whole", "lost"):
        assert verify(RunFolder(path=folder / name)) == ()
        found[name] = json.loads((folder / name / "score.json").read_text())
    return found


def rows_of(score: dict[str, Any]) -> dict[str, Any]:
    return {row["id"]: row for row in score["results"][0]["denominators"]}


def near(watts: float, truth: float, seconds: float) -> bool:
    """A reading that a busy machine takes late is charged: more than the window used, never less than a latch period.

    At each end of the window that is two periods at most.
    """
    return truth * (1 - LATCH_S / seconds) <= watts <= truth * (1 + 4 * PERIOD_S / seconds)


def test_every_denominator_side_by_side(scores: dict[str, dict[str, Any]]) -> None:
    score = scores["whole"]
    rows = rows_of(score)
    measured = {
        "accelerator": LOAD_W + IDLE_W,
        "accelerator_engaged": LOAD_W,
        "module": LOAD_W + IDLE_W + 2 * MODULE_W,
        "node_or_rack": NODE_W,
    }
    for name, watts in measured.items():
        assert near(rows[name]["denominator"], watts, 2), name
    stated = {
        "accelerator_count": 2,
        "provisioned": 4000,
        "facility_provisioned": 1.25 * 4000,
        "facility_measured": 1.25 * rows["node_or_rack"]["denominator"],
        "declared": 2000,
    }
    for name, watts in stated.items():
        assert rows[name]["denominator"] == pytest.approx(watts), name
    assert {name: row["basis"] for name, row in rows.items()} == {
        **dict.fromkeys(measured, "measured"),
        **dict.fromkeys(stated, "declared"),  # measured × a stated PUE is declared
        "provisioned": "provisioned",
        "facility_provisioned": "declared",
    }
    for name, row in rows.items():
        assert row["agents"] == pytest.approx(2 * (1e6 if row["unit"] == "W" else 1) / row["denominator"]), name
    for name, limit in (("accelerator", 0.05), ("node_or_rack", 0.01)):  # an uncalibrated sensor, and a data sheet
        assert rows[name]["u_gain"] == pytest.approx(limit / 3**0.5 * rows[name]["denominator"], rel=0.01)
    assert not any("times idle" in label or "times the power limit" in label for label in score["labels"])


def test_idle_power_is_that_before_and_after_the_load(scores: dict[str, dict[str, Any]]) -> None:
    score = scores["whole"]
    idle = {
        moment: {row["scope"]: row["power_w"] for row in score["idle"][moment]["power"]}
        for moment in ("before", "after")
    }
    for watts in idle.values():
        assert near(watts["accelerator"], 2 * IDLE_W, 1)
        assert near(watts["accelerator_engaged"], IDLE_W, 1)
        assert near(watts["node_or_rack"], NODE_W, 1)
        assert "declared" not in watts
    assert {row["scope"] for row in score["idle"]["drift"]} == set(idle["before"])
    result = score["results"][0]
    lower = min(watts["accelerator"] for watts in idle.values())
    drawn = rows_of(score)["accelerator"]["denominator"]
    assert result["energy"]["accelerator"]["idle_share"] == pytest.approx(lower / drawn)
    assert result["energy"]["accelerator"]["dynamic_watts_per_agent"] == pytest.approx((drawn - lower) / 2)
    assert result["money"]["per_agent_hour"] == pytest.approx(4.0)
    assert result["engineers"]["engineers"] == pytest.approx(0.5)


def test_a_gpu_lost_on_the_way_leaves_nothing_that_rests_on_it(scores: dict[str, dict[str, Any]]) -> None:
    score = scores["lost"]
    rows = rows_of(score)
    assert not {"accelerator", "module"} & set(rows)
    assert near(rows["accelerator_engaged"]["denominator"], LOAD_W, 2)
    assert near(rows["node_or_rack"]["denominator"], NODE_W, 2)
    assert "no accelerator power: GPU-fake-1: the device was lost while it was measured" in score["labels"]
    assert score["results"][0]["energy"]["accelerator_engaged"]["idle_share"] is not None
    assert "accelerator" not in score["results"][0]["energy"]

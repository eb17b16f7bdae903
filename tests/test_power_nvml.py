"""NVML through the real nvidia-ml-py, against a compiled stand-in whose energy has a closed form."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from capture.shelf import Shelf
from capture.store import Store
from curate.build import build
from replay.runfolder import RunFolder
from replay.verify import verify
from tests.fake_server import serving
from tests.sample_sessions import text_session

SOURCE = Path(__file__).parent / "native" / "fake_nvml.c"
ROOT = Path(__file__).parent.parent

# Runs in a process of its own: the library is found by LD_LIBRARY_PATH, which is read when a process starts.
DRIVER = """
import json, mmap, struct, sys, time
from replay.power.energy import total_power
from replay.power.nvml import NvmlSource
from replay.power.source import Meter, PowerFault

settings = json.loads(sys.argv[1])
def knob(index, which):
    with open(settings["control"], "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
        page[(index * 4 + which) * 4 : (index * 4 + which) * 4 + 4] = struct.pack("i", 1)

for index, which in settings["before"]:
    knob(index, which)
try:
    source = NvmlSource(uuids=tuple(settings["uuids"]), count=settings["count"])
except PowerFault as fault:
    print(json.dumps({"fault": str(fault)}))
    raise SystemExit
with Meter([source], period_s=0.1) as meter:
    time.sleep(0.35)
    start = time.monotonic_ns()
    time.sleep(settings["seconds"] / 2)
    for index, which in settings["during"]:
        knob(index, which)
    time.sleep(settings["seconds"] / 2)
    end = time.monotonic_ns()
    time.sleep(0.35)
info = source.describe()
total = total_power(info, meter.samples, start_ns=start, end_ns=end, period_s=0.1)
source.close()
print(json.dumps({
    "start_s": start / 1e9, "end_s": end / 1e9, "energy_j": total.energy_j, "power_w": total.power_w,
    "power_u_w": total.power_u_w, "valid": total.valid, "reasons": total.reasons,
    "methods": [device.method for device in total.devices], "flags": [device.flags for device in total.devices],
    "uids": [device.uid for device in info.devices], "limits": [device.limit_w for device in info.devices],
    "notes": info.notes, "flagged": sorted({sample.flag for sample in meter.samples}),
}))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler: these tests may not be skipped here")
        pytest.skip("no C compiler for the stand-in library")
    folder = tmp_path_factory.mktemp("nvml")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", folder / "libnvidia-ml.so.1", SOURCE, "-lm"], check=True)
    return folder


def measure(
    library: Path | None,
    tmp_path: Path,
    *,
    devices: int = 1,
    uuids: tuple[str, ...] = (),
    count: int | None = None,
    before: tuple[tuple[int, int], ...] = (),
    during: tuple[tuple[int, int], ...] = (),
    seconds: float = 1.0,
) -> dict[str, Any]:
    control = tmp_path / "control"
    control.write_bytes(struct.pack("32i", *([0] * 32)))
    settings = {
        "control": str(control),
        "uuids": uuids,
        "count": count,
        "before": before,
        "during": during,
        "seconds": seconds,
    }
    environment = {
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": str(library or tmp_path),
        "FAKE_NVML_COUNT": str(devices),
        "FAKE_NVML_CONTROL": str(control),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def truth_j(found: dict[str, Any], *devices: int) -> float:
    """The closed form of fake_nvml.c."""
    start, end, turn = found["start_s"], found["end_s"], 2 * math.pi / 1.7
    swing = 150 / turn * (math.cos(turn * start) - math.cos(turn * end))
    return sum((400 + 100 * device) * (end - start) + swing for device in devices)


LOST, NO_ENERGY, NO_POWER, RESET = range(4)


def test_the_counter_gives_the_true_energy(library: Path, tmp_path: Path) -> None:
    found = measure(library, tmp_path, devices=2, count=2)
    assert found["valid"]
    assert found["methods"] == ["counter", "counter"]
    assert found["limits"] == [1400.0, 1400.0]
    truth = truth_j(found, 0, 1)
    # A reading that a busy machine delays past its tick is charged whole: more, never less.
    assert truth * 0.99 <= found["energy_j"] <= truth * 1.25
    assert found["power_w"] == pytest.approx(found["energy_j"] / (found["end_s"] - found["start_s"]))
    assert found["power_u_w"] >= 2 * 0.05 / math.sqrt(3) * found["power_w"]


def test_without_a_counter_the_gauge_is_integrated(library: Path, tmp_path: Path) -> None:
    found = measure(library, tmp_path, before=((0, NO_ENERGY),))
    assert found["methods"] == ["gauge"]
    assert found["flagged"] == ["ok", "unsupported"]
    assert truth_j(found, 0) * 0.97 <= found["energy_j"] <= truth_j(found, 0) * 2


def test_without_either_there_is_no_power(library: Path, tmp_path: Path) -> None:
    found = measure(library, tmp_path, before=((0, NO_ENERGY), (0, NO_POWER)), seconds=0.4)
    assert (found["valid"], found["power_w"]) == (False, None)
    assert found["reasons"] == ["GPU-fake-0: the device reports neither energy nor power"]


def test_a_gpu_lost_on_the_way_leaves_no_power_at_all(library: Path, tmp_path: Path) -> None:
    found = measure(library, tmp_path, devices=2, during=((1, LOST),))
    assert (found["valid"], found["power_w"], found["energy_j"]) == (False, None, None)
    assert found["reasons"] == ["GPU-fake-1: the device was lost while it was measured"]
    assert "lost" in found["flagged"]


def test_a_reset_counter_is_bridged_by_the_gauge(library: Path, tmp_path: Path) -> None:
    found = measure(library, tmp_path, during=((0, RESET),))
    assert found["valid"]
    assert "counter_reset" in found["flags"][0]
    assert truth_j(found, 0) * 0.95 <= found["energy_j"] <= truth_j(found, 0) * 2


def test_only_the_expected_devices_are_charged(library: Path, tmp_path: Path) -> None:
    found = measure(library, tmp_path, devices=3, uuids=("GPU-fake-2", "GPU-fake-0"), seconds=0.4)
    assert found["uids"] == ["GPU-fake-2", "GPU-fake-0"]


def test_without_an_expected_set_all_are_charged_and_it_says_so(library: Path, tmp_path: Path) -> None:
    found = measure(library, tmp_path, devices=3, seconds=0.4)
    assert len(found["uids"]) == 3
    assert any("all 3 visible GPUs are charged" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"uuids": ("GPU-other",)}, "expects GPU-other, but NVML shows GPU-fake-0"),
        ({"count": 8}, "has 8 accelerators, but NVML shows 1"),
        ({"devices": 0}, "NVML shows no GPU"),
        ({"devices": 2, "count": 1}, "has 1 accelerators, but NVML shows 2 (GPU-fake-0, GPU-fake-1): give each"),
    ],
)
def test_another_set_than_expected_is_refused(library: Path, tmp_path: Path, wanted: dict[str, Any], says: str) -> None:
    assert says in measure(library, tmp_path, **wanted)["fault"]


def test_without_a_driver_it_says_what_to_do(tmp_path: Path) -> None:
    if any(
        Path(folder, "libnvidia-ml.so.1").exists() for folder in ("/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu")
    ):
        pytest.skip("this machine has an NVIDIA driver")
    fault = measure(None, tmp_path)["fault"]
    assert fault.startswith("NVML does not start")
    assert "declared:700W" in fault


@pytest.mark.parametrize("lost", [False, True], ids=["all there", "one lost"])
def test_a_run_has_a_megawatt_only_when_every_gpu_was_read(library: Path, tmp_path: Path, lost: bool) -> None:
    """The whole way, from the command line to the score."""
    Store.open(tmp_path / "store", create=True)
    Shelf(tmp_path / "store").put(text_session())
    build([tmp_path / "store"], tmp_path / "dataset", jobs=1)
    (tmp_path / "level.toml").write_text("[limits]\np25_output_tok_s = 1\np95_ttft_s = 10\n")
    (tmp_path / "system.toml").write_text(
        'name = "two"\n[[accelerators]]\nname = "F"\nuuid = "GPU-fake-0"\n'
        '[[accelerators]]\nname = "F"\nuuid = "GPU-fake-1"\nrole = "idle"\n'
    )
    control = tmp_path / "control"
    control.write_bytes(bytes(128))
    out = tmp_path / "run"
    with serving(ttft_ms=10, itl_ms=2) as server:
        words = ["replay", "run", "dataset", "--url", server.url, "--model", "fake-model", "--agents", "2"]
        words += [
            "--duration",
            "2",
            "--slo",
            "level.toml",
            "--system",
            "system.toml",
            "--power",
            "nvml",
            "--out",
            "run",
        ]
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from agentdyno import main; main()",
                *words,
                "--tool-delay",
                "none",
                "--length",
                "capped:8",
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "LD_LIBRARY_PATH": str(library),
                "FAKE_NVML_COUNT": "3",
                "FAKE_NVML_CONTROL": str(control),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if lost:
            # Lost for good once the trial has begun: from then on every reading says so.
            deadline = time.monotonic() + 60
            while not (out / "run.json").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(1.0)
            with control.open("r+b") as file:
                file.seek(16)
                file.write(struct.pack("i", 1))
        _, talk = process.communicate(timeout=60)
    assert process.returncode == 0, talk
    score = json.loads((out / "score.json").read_text())
    rows = {row["per"]: row for row in score["results"][0]["denominators"]}
    assert rows["accelerator"]["agents"] == 1.0
    assert verify(RunFolder(path=out)) == ()
    if lost:
        assert "megawatt" not in rows
        assert "no nvml power: GPU-fake-1: the device was lost while it was measured" in score["labels"]
    else:
        watts = rows["megawatt"]["denominator"]
        assert rows["megawatt"]["basis"] == "measured"
        assert 600 < watts < 1400  # 900 W on average, swinging by 300
        assert rows["megawatt"]["agents"] == pytest.approx(2e6 / watts)
        assert rows["megawatt"]["u_gain"] == pytest.approx(0.05 / 3**0.5 * watts, rel=0.01)

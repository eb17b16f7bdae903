"""`replay power`: what the live meter shows, records and prints, and what `power check` says before any load."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from replay.command import replay
from replay.power.domain import ScopeSet, scope_devices
from replay.power.file import read_power_file
from replay.power.reading import Reading, Readings, ScopeReading
from replay.power.source import PowerDevice, PowerSample, SampleFlag, SampleKind, SourceInfo
from replay.system import UNDISCLOSED
from tests.fake_nvml import build_library, write_page

ROOT = Path(__file__).parent.parent
METER = """
import sys, time
print('{"agentdyno_power": 1, "period_s": 0.1, "devices": ['
      '{"uid": "A", "domain": "accelerator", "limit_w": 700}, {"uid": "pdu", "domain": "node"}]}', flush=True)
joules = 0
while True:
    joules += 50
    print('{"device": "A", "energy_j": %d}' % joules)
    print('{"device": "A", "power_w": 500}')
    print('{"device": "pdu", "power_w": 900}', flush=True)
    time.sleep(0.1)
"""
SYSTEM = """
name = "s"
[[nodes]]
name = "n1"
[[accelerators]]
name = "H"
uuid = "A"
[[meters]]
device = "pdu"
covers = "node n1"
"""


@pytest.fixture
def meter(tmp_path: Path) -> str:
    (tmp_path / "meter.py").write_text(METER)
    return f"command:{sys.executable} {tmp_path / 'meter.py'}"


def power(*words: str) -> Result:
    return CliRunner().invoke(replay, ["power", *words])


# -- the live meter


def test_a_line_of_json_a_second_and_a_recording_that_reads_back(meter: str, tmp_path: Path) -> None:
    (tmp_path / "system.toml").write_text(SYSTEM)
    out = tmp_path / "out.jsonl"
    words = ["--power", meter, "--system", str(tmp_path / "system.toml"), "--record", str(out), "--seconds", "1.05"]
    result = power(*words, "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 2
    gpu, node = lines[-1]["devices"]
    assert (gpu["device"], gpu["domain"], gpu["flag"], gpu["power_w"], gpu["limit_w"]) == (
        "A", "accelerator", "ok", 500, 700
    )  # fmt: skip
    assert 50 < gpu["counter_w"] < 5000  # a busy machine may hold the program up
    assert (node["power_w"], node["counter_w"]) == (900, None)
    scopes = {scope["scope"]: scope for scope in lines[-1]["scopes"]}
    assert scopes["node_or_rack"]["watts"] == 900
    assert scopes["accelerator"]["watts"] == gpu["counter_w"]
    assert sys.executable not in result.stdout  # nor what stands behind it

    found = read_power_file(out)
    assert {device.uid: device.place for device in found.info.devices} == {
        "A": ("node n1", "accelerator A"),
        "pdu": ("node n1",),
    }
    assert {sample.kind for sample in found.samples} == {"energy_j", "power_w"}
    assert abs(found.samples[-1].t_ns / 1e9 - lines[-1]["t_unix_ns"] / 1e9) < 5
    assert power(*words).exit_code == 2  # the recording is there


def test_the_table_goes_with_the_terminal(meter: str) -> None:
    """Through a terminal, until Ctrl-C."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from agentdyno import main; main()", "replay", "power", "--power", meter],
        cwd=ROOT,
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "140"},
    )
    os.close(child)
    shown = b""
    while b"900.0" not in shown:
        shown += os.read(parent, 65536)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            more = os.read(parent, 65536)
        except OSError:  # the terminal's other side is closed
            break
        if not more:
            break
        shown += more
    os.close(parent)
    assert process.wait(10) == 0
    text = shown.decode()
    assert "accelerator" in text
    assert "Traceback" not in text
    assert "missing the machines that make the system" in text


def test_without_a_source_the_machines_own_are_tried() -> None:
    result = power("--seconds", "0.1")
    assert result.exit_code in (0, 3)
    if result.exit_code == 3:
        assert "no power source here. nvml: NVML does not start" in result.output
        assert "rapl: " in result.output


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["--power", "watts"], "is not known: use nvml", 2),
        (["--power", "rapl", "check", "--system", "s.toml"], "stand before 'check'", 2),
        (["--power", "command:/no/such/program"], "program", 3),
        (["--seconds", "0"], "--seconds", 2),
        (["check", "--system", "no-such.toml", "--power", "nvml"], "does not exist", 2),
    ],
)
def test_what_is_wrong_is_one_sentence(words: list[str], says: str, code: int) -> None:
    result = power(*words)
    assert result.exit_code == code, result.output
    assert says in result.output
    assert "Traceback" not in result.output


def test_a_meter_that_ends_by_itself_says_so(tmp_path: Path) -> None:
    (tmp_path / "meter.py").write_text(METER.replace("while True:", "for _ in range(5):"))
    result = power("--power", f"command:{sys.executable} {tmp_path / 'meter.py'}", "--seconds", "0.9", "--json")
    last = json.loads(result.stdout.splitlines()[-1])
    assert {device["flag"] for device in last["devices"]} == {"lost"}
    assert all(scope["watts"] is None for scope in last["scopes"])


# -- before a run


def test_check_says_what_is_found(meter: str, tmp_path: Path) -> None:
    (tmp_path / "system.toml").write_text(SYSTEM)
    result = power("check", "--system", str(tmp_path / "system.toml"), "--power", meter)
    assert result.exit_code == 0, result.output
    assert "  found accelerator A (A, limit 700 W, in node n1)" in result.output
    assert "accelerator: 1 found, whole" in result.output
    assert "node or rack: 1 found, whole" in result.output


def test_check_names_what_is_missing_and_what_overlaps(meter: str, tmp_path: Path) -> None:
    system = SYSTEM.replace('uuid = "A"', 'uuid = "B"').replace('device = "pdu"', 'device = "A"')
    system += '[[meters]]\ndevice = "pdu"\ncovers = "node n1"\n[[meters]]\ndevice = "site"\ncovers = "facility"\n'
    (tmp_path / "system.toml").write_text(system)
    words = ["check", "--system", str(tmp_path / "system.toml"), "--power", meter]
    result = power(*words)
    assert result.exit_code == 1, result.output
    assert "node or rack: 2 found, no total\n  overlapping: A and pdu" in result.output
    assert "facility: 0 found, no total\n  missing: site" in result.output
    said = " ".join(result.output.split())
    assert "a run would measure no total of node or rack, facility: what is missing needs a --power" in said
    assert "what overlaps stops a run before it begins: leave one of the two out" in said
    found = json.loads(power(*words, "--json").stdout)
    assert {scope["scope"]: (scope["missing"], scope["overlaps"]) for scope in found["scopes"]} == {
        "node_or_rack": ([], [["A", "pdu"]]),
        "facility": (["site"], []),
    }
    (tmp_path / "system.toml").write_text(SYSTEM.replace('uuid = "A"', 'uuid = "B"'))
    result = power(*words)
    assert result.exit_code == 1
    assert "found accelerator A (A, limit 700 W, in node n1); in no total" in result.output
    assert "accelerator: 0 found, no total\n  missing: B" in result.output


GB300 = {"base_w": 180.0, "module_w": 300.0, "codes": {"module_average": 0, "module_instant": 0}, "zero_s": -1000.0}


def test_a_superchips_gpus_are_looked_at_before_a_run(tmp_path: Path) -> None:
    """Two GPUs of one module, a third that is not there, and what the machine says of itself."""
    build_library(tmp_path)
    write_page(tmp_path / "page", [{**GB300, "mate": 1}, {**GB300, "mate": 0}])
    system = 'name = "s"\n' + "".join(
        f'[[accelerators]]\nname = "GB300"\nuuid = "GPU-fake-{number}"\nmodule = "m{number // 2}"\n'
        for number in range(3)
    )
    (tmp_path / "system.toml").write_text(system)
    check = ["replay", "power", "check", "--system", str(tmp_path / "system.toml"), "--power", "nvml", "--json"]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", "from agentdyno import main; main()", *words],
            cwd=ROOT,
            env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "FAKE_NVML_PAGE": str(tmp_path / "page")},
            stdout=subprocess.PIPE,
        )
        for words in (check, ["doctor", "--json"])
    ]
    found, seen = (json.loads(process.communicate(timeout=60)[0]) for process in both)
    assert [process.returncode for process in both] == [1, 0]
    scopes = {scope["scope"]: scope for scope in found["scopes"]}
    assert scopes["accelerator"]["devices"] == ["GPU-fake-0", "GPU-fake-1"]
    assert scopes["accelerator"]["missing"] == ["GPU-fake-2"]
    assert scopes["module"]["devices"] == ["GPU-fake-0/module"]  # both report it; it is charged once
    assert scopes["module"]["missing"] == ["module m1 (GPU-fake-2)"]
    assert scopes["hbm"]["missing"] == ["GPU-fake-2/memory"]
    (gpus, *_) = (item["detail"] for item in seen if item["topic"] == "GPU power (NVML)")
    assert "GPU-fake-0 · limit 1400 W · energy counter of accelerator scope every " in gpus


def test_check_wants_a_source(tmp_path: Path) -> None:
    (tmp_path / "system.toml").write_text(SYSTEM)
    result = power("check", "--system", str(tmp_path / "system.toml"))
    assert result.exit_code == 2
    assert "name the power sources" in result.output


# -- what is shown of a device

SECOND = 1_000_000_000
GPU = PowerDevice(uid="A", name="H", domain="accelerator", limit_w=700.0, wrap_j=None)
INFO = SourceInfo(kind="nvml", name="nvml", measured=True, version=None, devices=(GPU,), notes=())


def sample(t_s: float, kind: SampleKind, value: float | None, flag: SampleFlag = "ok") -> PowerSample:
    return PowerSample(t_ns=round(t_s * SECOND), device="A", kind=kind, value=value, read_us=1, flag=flag)


def reading(*samples: PowerSample, now_s: float) -> tuple[Reading, ScopeReading]:
    scopes: dict[Any, ScopeSet] = scope_devices((INFO,), UNDISCLOSED)
    readings = Readings((INFO,), scopes)
    readings.hear(samples)
    (device,), (scope,) = readings.devices(round(now_s * SECOND)), readings.scopes(round(now_s * SECOND))
    return device, scope


def test_the_counters_slope_goes_before_the_gauges() -> None:
    counts = [sample(number / 5, "energy_j", 300.0 * number / 5) for number in range(51)]
    device, scope = reading(*counts, sample(10, "power_w", 250), sample(10, "power_instant_w", 280), now_s=10.1)
    assert (device.power_w, device.power_instant_w, device.energy_j) == (250, 280, 3000)
    assert device.counter_w == pytest.approx(300)
    assert device.watts == device.counter_w == scope.watts


def test_the_slope_is_of_the_last_seconds_only() -> None:
    counts = [sample(number / 5, "energy_j", min(number, 25) * 100.0) for number in range(51)]
    device, _ = reading(*counts, now_s=10.0)
    assert device.counter_w == 0


def test_a_counter_that_fell_has_no_slope_until_it_has_risen() -> None:
    falls = [sample(1, "energy_j", 900), sample(2, "energy_j", 5)]
    device, scope = reading(*falls, sample(2, "power_w", 250), now_s=2)
    assert (device.counter_w, device.watts, scope.watts) == (None, 250, 250)


def test_what_is_old_or_not_known_is_no_watt() -> None:
    device, scope = reading(sample(1, "power_w", 250), now_s=3)
    assert (device.flag, device.power_w, scope.watts) == ("stale", None, None)
    device, scope = reading(sample(1, "power_w", 250), sample(1.2, "power_w", None, "lost"), now_s=1.3)
    assert (device.flag, device.power_w, scope.watts) == ("lost", None, None)
    device, scope = reading(now_s=1)
    assert (device.flag, scope.watts) == ("stale", None)
    started_s = time.monotonic()
    assert reading(sample(started_s, "power_w", 9), now_s=started_s)[0].watts == 9

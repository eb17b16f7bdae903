"""Scores under several power caps: only the user's commands touch a device, and the cap never outlives the sweep."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agentdyno import main
from capture.fault import EnvironmentFault
from replay.against import request_against
from replay.runfolder import RunFault, RunFolder
from replay.score import run
from replay.sweep import SweepOrder, check_place, parse_caps, sweep, sweep_lines
from replay.system import Accelerator, System
from tests.sample_sessions import text_session
from tests.simulated_run import SimulatedDriver, simulated_request

CAPS = (400.0, 600.0)


def sessions() -> list[Any]:
    return [text_session(f"session-{number}", turns=4) for number in range(4)]


class Devices:
    """What the user's commands did, as they wrote it down themselves."""

    def __init__(self, tmp_path: Path) -> None:
        self.log = tmp_path / "device.log"
        self.log.touch()
        self.said: list[str] = []
        write = f"import sys; open({str(self.log)!r}, 'a').write(sys.argv[1] + chr(10))"
        self.order = SweepOrder(
            caps_w=CAPS,
            set_words=(sys.executable, "-c", write, "{watts}"),
            restore_words=(sys.executable, "-c", write, "restored"),
            out=tmp_path / "caps",
            resume=False,
        )

    @property
    def done(self) -> list[str]:
        return self.log.read_text().split()

    def sweep(self, run_at: Any = None, **changes: Any) -> dict[str, Any]:
        return sweep(dataclasses.replace(self.order, **changes), run_at or simulated, self.said.append)


def simulated(cap_w: float, folder: Path, resume: bool, first: RunFolder | None) -> dict[str, Any]:
    """A server that is slower under a lower cap."""
    system = System(
        name="simulated",
        accelerators=(Accelerator(name="H200", count=2),),
        weights="trained",
        speculation="none",
        power_cap_w=cap_w,
    )
    request = simulated_request(folder, resume=resume, system=system)
    if first is not None:
        request = request_against(request, first)
    return run(request, sessions, driver=SimulatedDriver(capacity=30 * cap_w / 600))


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path)


def test_each_cap_is_set_scored_and_compared_with_the_first(devices: Devices) -> None:
    found = devices.sweep()
    assert devices.done == ["400", "600", "restored"]
    rows = found["rows"]
    assert [row["cap_w"] for row in rows] == [400.0, 600.0]
    assert [row["verdict"] for row in rows] == ["met", "met"]
    assert rows[0]["results"][0]["agents"] < rows[1]["results"][0]["agents"]
    assert rows[1]["not_comparable_with_first"] == []
    assert any(ratio["ratio"] > 1 for ratio in rows[1]["against_first"] if ratio["what"] == "agents")
    assert json.loads((devices.order.out / "sweep.json").read_text()) == json.loads(json.dumps(found))
    score = json.loads((devices.order.out / "cap-400w" / "score.json").read_text())
    assert score["system"]["power_cap_w"] == 400.0
    # Declared watts cannot show that a cap was set, and the table says so.
    assert rows[0]["cap_seen"] is None
    text = "\n".join(sweep_lines(found))
    assert "! 400 W: no device stated its limit" in text
    assert "a stated nameplate (declared)" in text
    line = next(line for line in text.splitlines() if line.startswith("600 W"))
    assert "met" in line
    # A finished sweep stands, and nothing touches a device for it again.
    with pytest.raises(RunFault, match="is finished"):
        devices.sweep(resume=True)
    assert len(devices.done) == 3


def test_a_device_that_states_another_limit_is_named(devices: Devices) -> None:
    def uncapped(cap_w: float, folder: Path, resume: bool, first: RunFolder | None) -> dict[str, Any]:
        return run(simulated_request(folder), sessions, driver=SimulatedDriver(measured=True))

    found = devices.sweep(uncapped, caps_w=(400.0,))
    assert found["rows"][0]["limits_w"] == [700.0]
    assert found["rows"][0]["cap_seen"] is False
    assert found["notes"] == ["400 W was asked for, and the devices stated a limit of 700 W"]
    agreeing = devices.sweep(uncapped, caps_w=(700.0,), out=devices.order.out.with_name("other"))
    assert agreeing["notes"] == []


def test_what_was_scored_before_is_used_again_and_its_cap_is_not_set_again(devices: Devices) -> None:
    def broken(cap_w: float, folder: Path, resume: bool, first: RunFolder | None) -> dict[str, Any]:
        if first is not None:
            raise EnvironmentFault("the server went away")
        return simulated(cap_w, folder, resume, first)

    with pytest.raises(EnvironmentFault, match="went away"):
        devices.sweep(broken)
    assert devices.done == ["400", "600", "restored"]
    assert not (devices.order.out / "sweep.json").exists()
    with pytest.raises(RunFault, match="exists already"):
        devices.sweep()
    with pytest.raises(RunFault, match="other caps or commands"):
        devices.sweep(resume=True, caps_w=(400.0, 500.0))
    inputs = (devices.order.out / "sweep-inputs.json").read_text()
    assert str(Path(sys.executable).parent) not in inputs  # a program's folder may name a person
    before = (devices.order.out / "cap-400w" / "score.json").read_bytes()
    found = devices.sweep(resume=True)
    assert devices.done == ["400", "600", "restored", "600", "restored"]
    assert (devices.order.out / "cap-400w" / "score.json").read_bytes() == before
    assert len(found["rows"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_an_interrupted_sweep_restores_the_cap(devices: Devices, number: signal.Signals) -> None:
    def interrupted(*_: Any) -> dict[str, Any]:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not arrive")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        devices.sweep(interrupted)
    assert devices.done == ["400", "restored"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cap_that_is_refused_starts_no_run_and_is_still_restored(devices: Devices) -> None:
    refused = (sys.executable, "-c", "import sys; sys.exit('no permission')", "{watts}")

    def never(*_: Any) -> dict[str, Any]:
        raise AssertionError("a score began under a cap that was not set")

    with pytest.raises(EnvironmentFault, match=r"the power cap command .* exit code 1: no permission"):
        devices.sweep(never, set_words=refused)
    assert devices.done == ["restored"]


def test_without_a_restore_command_it_says_that_the_cap_stays(devices: Devices) -> None:
    with pytest.raises(EnvironmentFault):
        devices.sweep(fail, restore_words=None)
    assert devices.done == ["400"]
    assert devices.said[-1] == "the last cap stays: no --power-cap-restore-cmd was given"


def fail(*_: Any) -> dict[str, Any]:
    raise EnvironmentFault("nothing runs here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("400,", "'' is not a number of watts"),
        ("nan", "'nan' is not a number"),
        ("400,-1", "'-1' is not a number"),
        ("400,400.0", "names 400 W twice"),
        (",".join(str(number) for number in range(1, 40)), "names 39 caps"),
    ],
)
def test_caps_that_are_none_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_caps(text)


def test_caps_and_the_place_of_the_watts() -> None:
    assert parse_caps("400, 512.5,600") == (400.0, 512.5, 600.0)
    check_place(("nvidia-smi", "-pl", "{watts}"))
    with pytest.raises(ValueError, match=r"needs the word \{watts\}"):
        check_place(("nvidia-smi", "-pl", "400"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sweep-power-cap", "400"], "--power-cap-cmd stand together"),
        (["--power-cap-cmd", "cap {watts}"], "--power-cap-cmd stand together"),
        (["--sweep-power-cap", "400", "--power-cap-cmd", "cap 400"], "needs the word {watts}"),
        (["--sweep-power-cap", "x", "--power-cap-cmd", "cap {watts}"], "'x' is not a number of watts"),
    ],
)
def test_the_command_refuses_half_a_sweep(tmp_path: Path, words: list[str], says: str) -> None:
    command = ["replay", "score", str(tmp_path), "--url", "http://127.0.0.1:9", "--model", "m"]
    command += ["--slo", "aa-shape-2026-07/20", "--out", str(tmp_path / "run"), *words]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "run").exists()

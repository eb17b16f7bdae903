"""The meter's child process: what it reads arrives in time, and whatever a source does wrong is a gap, never a hang."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replay.driver import LiveDriver
from replay.power import meter as power_meter
from replay.power.choice import parse_powers
from replay.power.meter import Meter, margin_s
from replay.power.source import PowerFault, SourceInfo
from replay.system import read_system
from tests.power_choices import Manner, OddChoice
from tests.simulated_run import simulated_request

ROOT = Path(__file__).parent.parent


def meter_of(*choices: Any, **options: Any) -> Meter:
    return Meter(choices, **options)


def children() -> set[int]:
    """Processes that this one started and that are there; for the name of the meter's child nobody asks."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        found |= {int(word) for word in (thread / "children").read_text().split()}
    return found


def until(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.005)
    return False


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_without_a_source_there_is_no_process_and_no_power() -> None:
    before = children()
    with meter_of() as meter:
        assert children() == before
        assert (meter.infos, meter.watts(), meter.collect(0, 10)) == ((), None, ())


def test_a_window_has_readings_on_both_sides() -> None:
    with meter_of(OddChoice(manner="plain"), OddChoice(manner="plain", name="slow", period_s=0.1)) as meter:
        start_ns = time.monotonic_ns()  # the first reading was made before
        time.sleep(0.1)
        end_ns = time.monotonic_ns()
        samples = meter.collect(start_ns, end_ns)
        for device in ("odd-0", "slow-0"):
            times = [sample.t_ns for sample in samples if sample.device == device]
            assert min(times) < start_ns
            assert max(times) >= end_ns
        assert [sample.t_ns for sample in samples] == sorted(sample.t_ns for sample in samples)
        assert meter.watts() == pytest.approx(2000)
        assert [info.name for info in meter.infos] == ["odd", "slow"]


def test_what_lies_before_a_window_is_forgotten_and_never_what_the_next_needs() -> None:
    with meter_of(OddChoice(manner="plain")) as meter:
        first_ns = time.monotonic_ns()
        assert meter.collect(first_ns, first_ns)
        again = meter.collect(first_ns, time.monotonic_ns())
        assert min(sample.t_ns for sample in again) < first_ns
        taken = meter.take()
        assert {sample.t_ns for sample in again} <= {sample.t_ns for sample in taken}
        assert all(sample.t_ns > taken[-1].t_ns for sample in meter.take())


def test_readings_that_arrive_late_are_waited_for() -> None:
    with meter_of(OddChoice(manner="late")) as meter:
        end_ns = time.monotonic_ns()
        assert max(sample.t_ns for sample in meter.collect(end_ns, end_ns)) >= end_ns


@pytest.mark.parametrize(("manner", "most"), [("raises", None), ("prints", None), ("hangs", 3), ("dies", 3)])
def test_a_source_that_misbehaves_leaves_a_gap(manner: Manner, most: int | None) -> None:
    with meter_of(OddChoice(manner=manner)) as meter:
        start_ns = time.monotonic_ns()
        time.sleep(0.2)
        end_ns = time.monotonic_ns()
        samples = meter.collect(start_ns, end_ns)
        waited_s = (time.monotonic_ns() - end_ns) / 1e9
    assert waited_s < 5  # three periods, and not for ever
    assert samples
    assert all(sample.value is not None for sample in samples)
    if most is not None:
        assert len(samples) <= most
        assert max(sample.t_ns for sample in samples) < end_ns


def test_a_meter_that_is_killed_leaves_no_reading_and_no_hang() -> None:
    before = children()
    with meter_of(OddChoice(manner="plain", period_s=0.02)) as meter:
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not meter.alive)
        end_ns = time.monotonic_ns() + 3_600_000_000_000
        samples = meter.collect(end_ns, end_ns)
        assert time.monotonic_ns() < end_ns
        assert samples == ()  # the window's end lies an hour ahead, and nothing is near it
        assert meter.watts() is None


def test_an_interrupt_is_the_parents_business() -> None:
    before = children()
    with meter_of(OddChoice(manner="plain")) as meter:
        (pid,) = children() - before
        assert os.getsid(pid) != os.getsid(0)  # Ctrl-C of a terminal does not reach it
        os.kill(pid, signal.SIGINT)
        end_ns = time.monotonic_ns() + 50_000_000
        time.sleep(0.05)
        assert max(sample.t_ns for sample in meter.collect(end_ns, end_ns)) >= end_ns
    assert until(lambda: is_gone(pid))
    meter.close()  # a second call does nothing


@pytest.mark.parametrize("manner", ["plain", "hangs"])
def test_the_child_ends_with_its_parent(manner: Manner) -> None:
    code = f"""
import os, time
from pathlib import Path
from replay.power.meter import Meter
from tests.power_choices import OddChoice
with Meter((OddChoice(manner={manner!r}),)):
    time.sleep(0.2)
    print(Path("/proc/self/task", str(os.getpid()), "children").read_text(), flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    (pid,) = (int(word) for word in done.stdout.split())
    assert until(lambda: is_gone(pid))


def test_a_child_that_is_left_while_it_opens_takes_its_commands_along(tmp_path: Path) -> None:
    for name, then in (
        ("open.sh", 'echo \'{"agentdyno_power": 1, "devices": [{"uid": "n1", "domain": "node"}]}\'\n'),
        ("silent.sh", ""),
    ):
        (tmp_path / name).write_text(f"echo $$ > {tmp_path / name}.pid\n{then}exec sleep 600\n")
    files = [tmp_path / "open.sh.pid", tmp_path / "silent.sh.pid"]
    code = f"""
import sys
from replay.power.choice import parse_powers
from replay.power.meter import Meter
Meter(parse_powers([f"command:sh {tmp_path}/" + name for name in ("open.sh", "silent.sh")])).__enter__()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
        parent.send_signal(signal.SIGINT)
        parent.wait(30)
    finally:
        parent.kill()
        parent.wait()
    assert until(lambda: all(is_gone(int(file.read_text())) for file in files))


def test_no_module_of_the_folder_that_it_is_started_in_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('a stranger is at work')\n")
    monkeypatch.chdir(tmp_path)
    with meter_of(*parse_powers(["declared:5W"])) as meter:
        assert meter.alive


def test_a_source_that_would_take_for_ever_does_not_hold_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_meter, "COLLECT_WITHIN_S", 0.1)
    with meter_of(OddChoice(manner="plain", period_s=3600.0)) as meter:
        began_ns = time.monotonic_ns()
        meter.collect(began_ns, began_ns + 50_000_000)
        assert time.monotonic_ns() - began_ns < 60e9


@pytest.mark.parametrize(
    ("manner", "says"),
    [("refuses", "odd is locked: unlock it"), ("breaks", "odd cannot be opened: RuntimeError: a driver's [31m words")],
)
def test_a_source_that_does_not_open_is_one_sentence(manner: Manner, says: str) -> None:
    before = children()
    with pytest.raises(PowerFault) as caught, meter_of(OddChoice(manner="plain", name="a"), OddChoice(manner=manner)):
        pytest.fail("it opened")
    assert says in str(caught.value)
    assert children() == before


def test_a_child_that_ends_while_it_opens_says_why() -> None:
    class Unknown:  # the child cannot unpickle it
        text = "unknown"

        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("no_such_thing",)

    with pytest.raises(PowerFault, match=r"process ended with exit status 1: .*no_such_thing"), meter_of(Unknown()):
        pytest.fail("it opened")


def test_a_device_that_two_sources_show_is_refused() -> None:
    with (
        pytest.raises(PowerFault, match=r"odd-0 is shown by odd and by odd #2"),
        meter_of(OddChoice(manner="plain"), OddChoice(manner="late")),
    ):
        pytest.fail("it opened")


def test_devices_stand_where_the_system_file_says() -> None:
    system = read_system(
        {
            "name": "s",
            "nodes": [{"name": "n1", "rack": "r1"}],
            "meters": [{"device": "odd-0", "covers": "node n1", "u_percent": 1, "evidence": "class 1"}],
        },
        "s",
    )
    with meter_of(OddChoice(manner="plain"), system=system) as meter:
        (device,) = meter.infos[0].devices
        assert device.place == ("rack r1", "node n1")
        assert device.u_gain == pytest.approx(0.01 / 3**0.5)
        assert meter.scopes["node_or_rack"].whole


def test_two_nameplates_are_one_sum() -> None:
    with Meter(parse_powers(["declared:700W*2", "declared:5W"])) as meter:
        assert meter.watts() == 1405
        assert meter.scopes["declared"].devices == ("declared:700W*2/1", "declared:700W*2/2", "declared:5W*1/1")


def test_the_margin_holds_the_longest_hole_of_a_source() -> None:
    info = SourceInfo(kind="exporter", measured=True, version=None, devices=(), notes=(), refresh_s=30.0)
    assert margin_s(info) == 300


# -- what a run does with it


def driver_of(tmp_path: Path, tables: dict[str, Any], *choices: Any) -> tuple[LiveDriver, list[str]]:
    said: list[str] = []
    system = read_system({"name": "s", **tables}, "s")
    request = dataclasses.replace(simulated_request(tmp_path / "run"), power=choices, system=system)
    return LiveDriver(request, said.append), said


def test_a_run_does_not_begin_with_meters_that_overlap(tmp_path: Path) -> None:
    tables = {
        "nodes": [{"name": "n1"}],
        "meters": [{"device": "odd-0", "covers": "node n1"}, {"device": "slow-0", "covers": "node n1"}],
    }
    choices = (OddChoice(manner="plain"), OddChoice(manner="plain", name="slow"))
    driver, _ = driver_of(tmp_path, tables, *choices)
    before = children()
    with pytest.raises(PowerFault, match="odd-0 and slow-0 overlap: the same watts would be charged twice"), driver:
        pytest.fail("it began")
    assert children() == before


def test_a_run_says_at_its_start_what_its_meters_lack(tmp_path: Path) -> None:
    tables = {"nodes": [{"name": "n1"}, {"name": "n2"}], "meters": [{"device": "odd-0", "covers": "node n1"}]}
    driver, said = driver_of(tmp_path, tables, OddChoice(manner="plain"))
    with driver:
        assert said == ["no node or rack power: no source shows node n2"]


def test_modules_that_are_not_stated_stop_only_a_run_that_has_nothing_else(tmp_path: Path) -> None:
    modules = (OddChoice(manner="module", name="a"), OddChoice(manner="module", name="b"))
    driver, said = driver_of(tmp_path, {}, *modules, *parse_powers(["declared:5W"]))
    with driver:
        assert said == [
            "no module power: a-0 and b-0 overlap: the same watts would be charged twice; "
            "give each accelerator its module in the system file"
        ]
    driver, _ = driver_of(tmp_path, {}, *modules)
    with pytest.raises(PowerFault, match="a-0 and b-0 overlap"), driver:
        pytest.fail("it began")

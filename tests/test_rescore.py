"""Meter data that comes after the run: taken in, judged, kept apart from what stood, and the same when repeated."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import polars
import pytest
from click.testing import CliRunner

from agentdyno import main
from curate.manifest import file_sha256
from replay.added_meter import read_meter
from replay.power.source import PowerFault
from replay.rescore import rescore
from replay.runfolder import RunFault, RunFolder
from replay.system import Meter, Node, System
from replay.trial import TrialFault
from replay.verify import verify
from tests.simulated_run import SLOT_US, START_UNIX_US, SimulatedDriver, simulated_request
from tests.test_idle import NVML, rows_of
from tests.test_score import score_of
from tests.test_verify import alter_json, places, sign_again

RACK_W = 3000.0


def metered_system() -> System:
    system = simulated_request(Path("unused")).system
    return dataclasses.replace(
        system,
        nodes=(Node(name="n1"),),
        meters=(Meter(device=("pdu-1",), covers="node n1", u_percent=1.0, evidence="class 1"),),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose node has a meter by the system file, and whose readings come later."""
    out = tmp_path_factory.mktemp("rescore") / "run"
    score_of(out, SimulatedDriver(measured=True), power=NVML, system=metered_system())
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def meter_file(path: Path, *, late_s: float = 0.0, start_s: float = -100.0, end_s: float | None = None) -> Path:
    """A meter of the node at a constant draw, on a clock that is late by so much."""
    end_s = 20 * SLOT_US / 1e6 if end_s is None else end_s
    lines = ["time,device,energy_wh,power_w"]
    at_s = start_s
    while at_s <= end_s:
        lines.append(f"{START_UNIX_US / 1e6 + at_s - late_s:.3f},pdu-1,{RACK_W * (at_s - start_s) / 3600:.6f},{RACK_W}")
        at_s += 1.0
    path.write_text("\n".join(lines) + "\n")
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_meter_that_comes_later_gives_the_denominator_that_was_missing(copy: Path, tmp_path: Path) -> None:
    before = everything(copy)
    former = json.loads(before["score.json"])
    assert "node_or_rack" not in rows_of(former)
    assert any("pdu-1 is expected, and no power source shows it" in label for label in former["labels"])
    found = rescore(RunFolder(path=copy), meter_file(tmp_path / "rack.csv"))
    assert (found.added, found.meter.facts.number) == (True, 1)
    row = rows_of(found.score)["node_or_rack"]
    assert row["denominator"] == pytest.approx(RACK_W, rel=1e-6)
    assert row["basis"] == "measured"
    assert row["agents"] == pytest.approx(1e6 * found.score["agents"] / RACK_W, rel=1e-6)
    assert rows_of(found.score)["accelerator"] == rows_of(former)["accelerator"]
    for key in ("agents", "verdict"):
        assert found.score["results"][0][key] == former["results"][0][key]
    idle = {row["scope"]: row["power_w"] for row in found.score["idle"]["before"]["power"]}
    assert idle["node_or_rack"] == pytest.approx(RACK_W, rel=1e-6)
    assert found.score["meters"][0]["file_sha256"] == file_sha256(tmp_path / "rack.csv")
    # Nothing is lost: what stood still stands, and the former score beside the new one.
    after = everything(copy)
    assert after["score.before-1.json"] == before["score.json"]
    assert {name: data for name, data in after.items() if name in before and name != "score.json"} == {
        name: data for name, data in before.items() if name != "score.json"
    }
    assert verify(RunFolder(path=copy)) == ()


def test_a_rescore_that_is_repeated_changes_no_byte(copy: Path, tmp_path: Path) -> None:
    file = meter_file(tmp_path / "rack.csv")
    rescore(RunFolder(path=copy), file)
    once = everything(copy)
    again = rescore(RunFolder(path=copy), file)
    assert (again.added, everything(copy)) == (False, once)
    with pytest.raises(PowerFault, match="holds this meter file already, with an offset of 0 s"):
        rescore(RunFolder(path=copy), file, offset_s=1.0)
    assert everything(copy) == once


@pytest.mark.parametrize("cut", ["meter written", "former score kept", "half a meter"])
def test_a_rescore_that_was_cut_short_goes_on(finished: Path, tmp_path: Path, cut: str) -> None:
    file = meter_file(tmp_path / "rack.csv")
    whole = Path(shutil.copytree(finished, tmp_path / "whole"))
    rescore(RunFolder(path=whole), file)
    half = Path(shutil.copytree(finished, tmp_path / "half"))
    if cut == "half a meter":
        (half / "meters" / ".1.partial").mkdir(parents=True)
        (half / "meters" / ".1.partial" / "power.parquet").write_bytes(b"PAR1")
    else:
        shutil.copytree(whole / "meters", half / "meters")
    if cut == "former score kept":
        shutil.copy(whole / "score.before-1.json", half)
    rescore(RunFolder(path=half), file)
    assert everything(half) == everything(whole)


def test_a_second_meter_finds_the_first_one_done(copy: Path, tmp_path: Path) -> None:
    first = meter_file(tmp_path / "rack.csv")
    second = tmp_path / "other.csv"
    second.write_text(first.read_text().replace("pdu-1", "facility").replace("power_w", "power_w,domain", 1))
    lines = second.read_text().splitlines()
    second.write_text("\n".join([lines[0], *(line + ",facility" for line in lines[1:])]) + "\n")
    # The first rescore was killed after its meter was written: the second one ends it.
    done = Path(shutil.copytree(copy, tmp_path / "done"))
    rescore(RunFolder(path=done), first)
    shutil.copytree(done / "meters", copy / "meters")
    found = rescore(RunFolder(path=copy), second)
    assert found.meter.facts.number == 2
    assert (copy / "score.before-2.json").read_bytes() == (done / "score.json").read_bytes()
    assert {"node_or_rack", "facility_measured"} <= set(rows_of(found.score))
    assert verify(RunFolder(path=copy)) == ()


def test_a_clock_that_is_off_is_set_right_by_its_offset(copy: Path, tmp_path: Path) -> None:
    file = meter_file(tmp_path / "rack.csv", late_s=7200.0)
    with pytest.raises(PowerFault, match=r"no reading lies inside a trial: the meter read from 2025-.* --offset"):
        rescore(RunFolder(path=copy), file)
    assert not (copy / "meters").exists()
    found = rescore(RunFolder(path=copy), file, offset_s=7200.0, u_clock_s=0.5)
    assert rows_of(found.score)["node_or_rack"]["denominator"] == pytest.approx(RACK_W, rel=1e-6)
    assert found.score["meters"][0]["source"]["clock_u_s"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("u_clock_s", [-1.0, math.nan, math.inf])
def test_what_is_stated_of_a_clock_makes_no_time_surer(copy: Path, tmp_path: Path, u_clock_s: float) -> None:
    file = meter_file(tmp_path / "rack.csv")
    with pytest.raises(PowerFault, match="a clock that is uncertain by"):
        rescore(RunFolder(path=copy), file, u_clock_s=u_clock_s)
    found = rescore(RunFolder(path=copy), file, u_clock_s=0.0)
    assert found.meter.facts.source.clock_u_s == pytest.approx(0.001 / math.sqrt(3))  # its last written place


def test_a_meter_that_ended_early_gives_no_score(copy: Path, tmp_path: Path) -> None:
    """What is missing never makes a result better: one trial without readings is one too many."""
    found = rescore(RunFolder(path=copy), meter_file(tmp_path / "rack.csv", end_s=3 * SLOT_US / 1e6))
    assert "node_or_rack" not in rows_of(found.score)
    assert any(label.startswith("no ") and "pdu-1" in label for label in found.score["labels"])
    assert verify(RunFolder(path=copy)) == ()


def test_a_device_that_was_read_already_is_not_charged_twice(copy: Path, tmp_path: Path) -> None:
    file = meter_file(tmp_path / "rack.csv")
    text = file.read_text()
    file.write_text(text.replace("pdu-1", "GPU-0"))
    with pytest.raises(PowerFault, match="GPU-0"):
        rescore(RunFolder(path=copy), file)
    file.write_text(text)
    rescore(RunFolder(path=copy), file)
    file.write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(PowerFault, match="pdu-1"):
        rescore(RunFolder(path=copy), file)


def test_a_run_that_is_not_finished_is_not_rescored(copy: Path, tmp_path: Path) -> None:
    (copy / "score.json").unlink()
    with pytest.raises(RunFault, match="the run is not finished"):
        rescore(RunFolder(path=copy), meter_file(tmp_path / "rack.csv"))


def test_verify_covers_added_meters(copy: Path, tmp_path: Path) -> None:
    rescore(RunFolder(path=copy), meter_file(tmp_path / "rack.csv"))
    path = copy / "meters" / "1" / "power.parquet"
    good = path.read_bytes()
    polars.read_parquet(path).with_columns(polars.col("value") * 0.9).write_parquet(path)
    assert places(copy)[0] == "meters/1/power.parquet"
    sign_again(copy, "meters/1/power.parquet")
    assert "meters/1/power.parquet, as meter.json notes it" in places(copy)
    assert any("denominators" in place for place in places(copy))
    path.write_bytes(good)
    sign_again(copy, "meters/1/power.parquet")
    facts = copy / "meters" / "1" / "meter.json"
    alter_json(facts, lambda value: value.update(offset_s=0.4))
    assert places(copy)[0] == "meters/1/meter.json"
    alter_json(facts, lambda value: value.update(number=2, offset_s=0.0))
    sign_again(copy, "meters/1/meter.json")
    assert "meters/1/meter.json: number" in places(copy)
    alter_json(facts, lambda value: value.update(offset_s=1e12))
    with pytest.raises(TrialFault, match="at most"):
        read_meter(facts.parent)
    facts.write_text("{")
    with pytest.raises(TrialFault, match="does not hold a meter"):
        read_meter(facts.parent)


def test_a_pipe_is_no_meter_file_and_is_not_waited_for(copy: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "meter.csv")
    with pytest.raises(PowerFault, match="is no file"):
        rescore(RunFolder(path=copy), tmp_path / "meter.csv")


def test_the_former_score_cannot_be_lost(copy: Path, tmp_path: Path) -> None:
    rescore(RunFolder(path=copy), meter_file(tmp_path / "rack.csv"))
    value = json.loads((copy / "score.json").read_text())
    (copy / "score.before-1.json").unlink()
    with pytest.raises(RunFault, match=r"score\.before-1\.json is missing"):
        verify(RunFolder(path=copy))
    del value["files"]["score.before-1.json"]
    (copy / "score.json").write_text(json.dumps(value))
    assert "score.before-1.json" in places(copy)


def test_what_a_meter_brings_is_said_and_how_to_take_it_out(copy: Path, finished: Path, tmp_path: Path) -> None:
    file = meter_file(tmp_path / "rack.csv")
    done = CliRunner().invoke(main, ["replay", "rescore", str(copy), "--power", f"file:{file}"])
    assert done.exit_code == 0, done.output
    assert "  now per megawatt of nodes or racks (measured), too" in done.stderr
    assert "take the meter out" not in done.stderr

    foreign = tmp_path / "foreign.csv"
    foreign.write_text(file.read_text().replace("pdu-1", "pdu-9"))
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    done = CliRunner().invoke(main, ["replay", "rescore", str(other), "--power", f"file:{foreign}"])
    assert done.exit_code == 0, done.output
    assert "nothing new is given per megawatt: [[meters]] of the system file" in done.stderr
    assert "score.before-1.json in the place of score.json, and remove meters/1" in done.stderr
    (other / "score.before-1.json").replace(other / "score.json")
    shutil.rmtree(other / "meters" / "1")
    assert verify(RunFolder(path=other)) == ()


def test_a_sweeps_folder_is_no_run_and_its_runs_are_named(tmp_path: Path) -> None:
    (tmp_path / "cap-400w").mkdir()
    (tmp_path / "cap-400w" / "run.json").write_text("{}")
    for words in (("report",), ("verify",), ("rescore", "--power", f"file:{meter_file(tmp_path / 'rack.csv')}")):
        refused = CliRunner().invoke(main, ["replay", *words, str(tmp_path)])
        assert refused.exit_code == 3, refused.output
        assert "is a sweep over power caps: name one of its runs" in " ".join(refused.stderr.split())


def test_the_command_line(copy: Path, tmp_path: Path) -> None:
    file = meter_file(tmp_path / "rack.csv")

    def command(*words: object) -> Any:
        return CliRunner().invoke(main, ["replay", "rescore", *map(str, words)])

    done = command(copy, "--power", f"file:{file}", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((copy / "score.json").read_text())
    again = command(copy, "--power", f"file:{file}")
    assert (again.exit_code, "was there already" in again.stderr) == (0, True)
    assert "agents" in again.stdout
    for code, says, words in (
        (2, "is a file here", (copy, "--power", "nvml")),
        (2, "is not known", (copy, "--power", "watts")),
        (3, "at most", (copy, "--power", f"file:{file}", "--offset", "nan")),
        (3, "nothing.csv", (copy, "--power", "file:nothing.csv")),
        (3, "is missing", (tmp_path, "--power", f"file:{file}")),
    ):
        refused = command(*words)
        assert (refused.exit_code, refused.stdout) == (code, ""), refused.output
        assert says in " ".join(refused.stderr.split())

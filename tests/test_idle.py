"""Idle power: read before and after, kept when a run goes on, held against the load, and never believed on its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import polars
import pytest

from replay.idle import IdleReading, idle_power, idle_reading, load_flags, read_idle, write_idle
from replay.judge import judge_idle, judge_trials, power_totals
from replay.power.choice import parse_power
from replay.request import RunRequest
from replay.runfolder import RunFault, RunFolder
from replay.scrape import READ_US, ServerSample
from replay.system import UNDISCLOSED
from replay.trial import TrialFault
from replay.verify import verify
from tests.simulated_run import SECOND, SimulatedDriver, simulated_request
from tests.test_score import score_of
from tests.test_verify import alter_json, places, sign_again

NVML = (parse_power("nvml"),)


def measured_score(out: Path, driver: SimulatedDriver | None = None, **changes: Any) -> dict[str, Any]:
    return score_of(out, driver or SimulatedDriver(measured=True), power=NVML, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("idle") / "run"
    measured_score(out)
    return out


@pytest.fixture(scope="module")
def score(finished: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((finished / "score.json").read_text())
    return value


def test_idle_power_stands_beside_the_number(score: dict[str, Any], finished: Path) -> None:
    idle = score["idle"]
    assert idle["asked_s"] == 20
    for moment in ("before", "after"):
        row = idle[moment]["power"][0]
        assert (row["scope"], row["basis"], row["valid"]) == ("accelerator", "measured", True)
        assert row["power_w"] == pytest.approx(240)
        assert idle[moment]["seconds"] == 20
    assert [(row["scope"], row["flagged"]) for row in idle["drift"]] == [("accelerator", False)]
    energy = score["results"][0]["energy"]["accelerator"]
    reference = score["trials"][score["results"][0]["reference_trial"] - 1]
    assert energy["idle_share"] == pytest.approx(240 / 1400, rel=1e-6)
    assert energy["dynamic_watts_per_agent"] == pytest.approx(1160 / reference["agents"], rel=1e-6)
    assert verify(RunFolder(path=finished)) == ()
    assert {f"idle/{moment}/{name}" for moment in ("before", "after") for name in FILES} <= set(score["files"])


FILES = ("idle.json", "power.parquet", "server.parquet")


def test_how_long_idle_power_is_read(tmp_path: Path) -> None:
    def seconds(**changes: Any) -> float:
        request: RunRequest = simulated_request(tmp_path / "run", **changes)
        return request.idle_seconds

    assert seconds(power=NVML) == 20
    assert seconds(power=NVML, run_class="standard") == seconds(power=NVML, run_class="record") == 60
    assert seconds(power=NVML, quick=True) == 5
    assert seconds(power=NVML, kind="run", run_class=None) == 0
    assert seconds(power=NVML, idle_s=3.0, run_class="record") == 3
    # A nameplate has no idle power, and nobody waits for one.
    assert seconds() == seconds(power=()) == seconds(idle_s=9.0) == 0


def test_a_run_without_idle_readings_says_nothing_of_them(tmp_path: Path) -> None:
    driver = SimulatedDriver(measured=True)
    found = measured_score(tmp_path / "run", driver, idle_s=0.0)
    assert (found["idle"], driver.idles) == (None, [])
    energy = found["results"][0]["energy"]["accelerator"]
    assert (energy["idle_share"], energy["dynamic_watts_per_agent"]) == (None, None)
    assert energy["joules_per_turn"] is not None
    assert verify(RunFolder(path=tmp_path / "run")) == ()


def test_a_run_that_goes_on_keeps_its_first_idle_reading(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "score.json").read_bytes()
    all_trials = len(RunFolder(path=finished).trial_numbers())
    for trials_kept, idle_kept in ((0, ()), (2, ("before",)), (all_trials - 1, ("before", "after"))):
        half = tmp_path / f"half-{trials_kept}"
        shutil.copytree(finished, half)
        (half / "score.json").unlink()
        (half / "idle" / ".after.partial").mkdir()
        for moment in {"before", "after"} - set(idle_kept):
            shutil.rmtree(half / "idle" / moment)
        for path in (half / "trials").iterdir():
            if int(path.name) > trials_kept:
                shutil.rmtree(path)
        driver = SimulatedDriver(measured=True)
        measured_score(half, driver, resume=True)
        # After a trial that was taken out and run again, idle power is read again too.
        assert driver.idles == (["after"] if "before" in idle_kept else ["before", "after"])
        assert (half / "score.json").read_bytes() == whole


def test_drift_is_flagged_the_lower_reading_counts_and_labels_say_what_is_odd(tmp_path: Path) -> None:
    driver = SimulatedDriver(measured=True, watts=280.0, idle_watts=(240.0, 300.0))
    found = measured_score(tmp_path / "run", driver)
    assert found["idle"]["drift"][0]["change"] == pytest.approx(0.25)
    assert "idle power of accelerator moved by +25% during the run, from 240 W to 300 W" in found["labels"]
    assert found["results"][0]["energy"]["accelerator"]["idle_share"] == pytest.approx(240 / 280)
    odd = [label for label in found["labels"] if "140 W per accelerator is below 1.2 times idle (150 W)" in label]
    fitted = found["results"][0]["search"]["fit"]["trials"]
    assert {f"trial {number}" for number in fitted} <= {label.partition(":")[0] for label in odd}


def test_a_load_that_is_hardly_above_idle_or_above_the_limit_is_flagged(finished: Path) -> None:
    folder = RunFolder(path=finished)
    idle, judged = judge_idle(folder, folder.inputs(), ()), judge_trials(folder)

    def flags(watts: float, scope: str = "accelerator") -> list[str]:
        drawn = [
            dataclasses.replace(
                item, power=tuple(dataclasses.replace(total, power_w=watts, scope=scope) for total in item.power)
            )
            for item in judged[1:2]
        ]
        return load_flags(drawn, idle)

    assert flags(289.0) == flags(1469.0) == []
    assert flags(287.0) == [
        "trial 2: 144 W per accelerator is below 1.2 times idle (120 W): they hardly worked, or other devices did the "
        "work"
    ]
    assert flags(1471.0) == [
        "trial 2: 736 W per accelerator is above 1.05 times the power limit (700 W): the reading or the limit is wrong"
    ]
    assert flags(287.0, "node_or_rack") == []  # a machine has other consumers
    assert load_flags(judged, None) == []


def at_work(metric: str, first: float, last: float) -> tuple[ServerSample, ...]:
    return tuple(
        ServerSample(t_ns=t_ns, server="http://s", metric=name, value=number)
        for t_ns, value in ((SECOND, first), (15 * SECOND, last))
        for name, number in ((READ_US, 100.0), (metric, value))
    )


def test_idle_power_of_a_server_at_work_is_not_believed(finished: Path, tmp_path: Path) -> None:
    """Somebody else's requests make idle look expensive, and the load on top of it cheap."""
    server = at_work("vllm:num_requests_running", 3.0, 3.0)
    found = measured_score(tmp_path / "run", SimulatedDriver(measured=True, idle_server=server))
    words = "idle power before the run is not known: the server was at work: up to 3 requests ran"
    assert words in found["labels"]
    assert found["results"][0]["energy"]["accelerator"]["idle_share"] is None
    assert not found["idle"]["drift"]
    idle = read_idle(finished / "idle" / "before")
    assert idle is not None
    busy = dataclasses.replace(idle, server=at_work("vllm:generation_tokens_total", 5.0, 905.0))
    assert idle_reading(busy, ()).reasons[0].startswith("the server was at work: it made ")
    quiet = dataclasses.replace(idle, server=at_work("vllm:generation_tokens_total", 5.0, 5.0))
    assert idle_reading(quiet, ()).reasons == ()


def test_a_device_that_was_lost_while_it_idled_leaves_no_idle_power(finished: Path, tmp_path: Path) -> None:
    half = Path(shutil.copytree(finished, tmp_path / "half"))
    idle = read_idle(half / "idle" / "after")
    assert idle is not None
    lost = tuple(
        dataclasses.replace(sample, value=None, flag="lost")
        if sample.device == "GPU-1" and sample.t_ns > 3 * SECOND
        else sample
        for sample in idle.samples
    )
    shutil.rmtree(half / "idle" / "after")
    write_idle(dataclasses.replace(idle, samples=lost), half / "idle" / "after")
    (half / "score.json").unlink()
    found = measured_score(half, resume=True)
    label = next(label for label in found["labels"] if "idle power of accelerator after the run is not known" in label)
    assert "GPU-1" in label
    assert found["results"][0]["energy"]["accelerator"]["idle_share"] is None
    assert rows_of(found)["accelerator"]["denominator"] == pytest.approx(1400)


def rows_of(score: dict[str, Any]) -> dict[str, Any]:
    return {row["id"]: row for row in score["results"][0]["denominators"]}


def test_one_reading_alone_is_none() -> None:
    reading = IdleReading(started_unix_us=1, seconds=20.0, power=(), reasons=())
    assert idle_power(None, None) is None
    alone = idle_power(reading, None)
    assert alone is not None
    assert (alone.watts("accelerator"), alone.drift) == (None, ())


# -- verify


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_idle_readings_that_were_changed_show_even_with_new_digests(copy: Path) -> None:
    path = copy / "idle" / "after" / "power.parquet"
    frame = polars.read_parquet(path)
    frame.with_columns(polars.col("value") * 1.2).write_parquet(path)
    assert places(copy)[0] == "idle/after/power.parquet"
    sign_again(copy, "idle/after/power.parquet")
    found = places(copy)
    assert "idle/after/power.parquet, as idle.json notes it" in found
    assert any(place.startswith("idle.after.power[0]") for place in found)


def test_idle_readings_that_were_taken_out_show_even_without_their_digests(copy: Path) -> None:
    shutil.rmtree(copy / "idle")
    value = json.loads((copy / "score.json").read_text())
    value["files"] = {name: digest for name, digest in value["files"].items() if not name.startswith("idle/")}
    (copy / "score.json").write_text(json.dumps(value))
    assert {"idle/before", "idle/after"} <= set(places(copy))


def test_a_trial_passed_off_as_idle_shows(copy: Path) -> None:
    """Idle power read while a trial ran makes the load on top of it look cheap."""
    first = json.loads((copy / "trials" / "1" / "trial.json").read_text())
    alter_json(copy / "idle" / "before" / "idle.json", lambda facts: facts.update(zero_unix_us=first["zero_unix_us"]))
    sign_again(copy, "idle/before/idle.json")
    assert "idle/before/idle.json: zero_unix_us" in places(copy)


def test_an_idle_window_that_was_cut_short_shows(copy: Path) -> None:
    alter_json(copy / "idle" / "before" / "idle.json", lambda facts: facts.update(end_ns=facts["end_ns"] // 4))
    sign_again(copy, "idle/before/idle.json")
    assert "idle/before/idle.json: end_ns" in places(copy)


def test_idle_files_that_are_not_whole_are_one_sentence(copy: Path) -> None:
    path = copy / "idle" / "before" / "idle.json"
    alter_json(path, lambda facts: facts.update(version=9))
    with pytest.raises(TrialFault, match="has version 9"):
        read_idle(path.parent)
    alter_json(path, lambda facts: facts.update(version=1, end_ns=0))
    with pytest.raises(TrialFault, match="end_ns must be above 0"):
        read_idle(path.parent)
    path.write_text("[" * 100_000)
    with pytest.raises(TrialFault, match="does not hold idle readings"):
        read_idle(path.parent)
    path.unlink()
    with pytest.raises(TrialFault, match=r"idle\.json is missing: the run is not whole"):
        read_idle(path.parent)
    with pytest.raises(RunFault, match=r"idle\.json is missing: the run is not whole"):
        verify(RunFolder(path=copy))
    assert read_idle(copy / "idle" / "never") is None


def test_another_length_of_idle_is_another_run(finished: Path, tmp_path: Path) -> None:
    half = Path(shutil.copytree(finished, tmp_path / "half"))
    (half / "score.json").unlink()
    with pytest.raises(RunFault, match="another idle_s"):
        measured_score(half, resume=True, idle_s=7.0)


def test_a_total_of_stated_watts_is_no_idle_reading(finished: Path) -> None:
    idle = read_idle(finished / "idle" / "before")
    assert idle is not None
    stated = (dataclasses.replace(idle.facts.power_sources[0], measured=False),)
    totals, _ = power_totals(stated, idle.samples, UNDISCLOSED, idle.facts.window)
    assert totals
    assert idle_reading(idle, totals).power == ()

"""`verify` finds what was altered: a record, a sample, a fact, a number of the score, a file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
from click.testing import CliRunner

from agentdyno import main
from curate.manifest import file_sha256
from replay.runfolder import RunFault, RunFolder
from replay.trial import TrialFault
from replay.verify import verify
from tests.simulated_run import SimulatedDriver
from tests.test_score import canary, score_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished score of a drawn server; its canary sang alike before and after."""
    out = tmp_path_factory.mktemp("verify") / "run"
    score_of(out, SimulatedDriver(canaries=[canary("two three five"), canary("two three five")]))
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def alter_parquet(path: Path, column: str, change: Callable[[Any], Any]) -> None:
    frame = polars.read_parquet(path)
    values = frame[column].to_list()
    row = len(values) // 2
    values[row] = change(values[row])
    frame.with_columns(polars.Series(column, values, dtype=frame.schema[column])).write_parquet(path)


def alter_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def restate(folder: Path, place: str) -> None:
    """What a careful forger does: makes the digests fit again."""
    digest = file_sha256(folder / place)
    trial = folder / "trials" / "1" / "trial.json"
    if place.endswith(".parquet"):
        name = place.rsplit("/", 1)[1].removesuffix(".parquet") + "_sha256"
        alter_json(trial, lambda value: value.update({name: digest}))
    alter_json(
        folder / "score.json",
        lambda value: value["files"].update({place: digest, "trials/1/trial.json": file_sha256(trial)}),
    )


def places(folder: Path) -> list[str]:
    return [difference.place for difference in verify(RunFolder(path=folder))]


def test_what_nobody_touched_follows(finished: Path) -> None:
    assert verify(RunFolder(path=finished)) == ()
    done = CliRunner().invoke(main, ["replay", "verify", str(finished)])
    assert (done.exit_code, done.stdout.strip()) == (0, f"{finished}: the score follows from its records")


@pytest.mark.parametrize(
    ("column", "change", "field"),
    [
        ("first_content_at_ns", lambda value: value - 5_000_000, "ttft"),
        ("completion_tokens", lambda value: value - 5, "speed"),
        ("outcome", lambda _: "http_error", "outcomes"),
    ],
    ids=["first token earlier", "other tokens", "an outcome"],
)
def test_a_record_that_was_changed_shows_even_with_new_digests(
    copy: Path, column: str, change: Callable[[Any], Any], field: str
) -> None:
    place = "trials/1/records.parquet"
    alter_parquet(copy / place, column, change)
    assert places(copy)[0] == place
    restate(copy, place)
    found = places(copy)
    assert place not in found
    assert any(field in item for item in found), found


def test_a_power_sample_that_was_changed_shows(copy: Path) -> None:
    place = "trials/1/power.parquet"
    alter_parquet(copy / place, "value", lambda value: value - 20)
    assert places(copy)[0] == place
    restate(copy, place)
    assert any("power" in item or "denominators" in item for item in places(copy))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda score: score.update(agents=3), "agents"),
        (lambda score: score["results"][0].update(agents=11.0), "results[0].agents"),
        (lambda score: score["results"][0].update(certified=11), "results[0].certified"),
        (lambda score: score["results"][0].update(goodput_agents=1), "results[0].goodput_agents"),
        (lambda score: score["results"][0]["interval"].update(low=9.99), "results[0].interval.low"),
        (lambda score: score["results"][0]["search"]["fit"].update(slope=4.0), "results[0].search.fit.slope"),
        (
            lambda score: score["results"][0]["percentiles"].update(share_meeting=0.5),
            "results[0].percentiles.share_meeting",
        ),
        (lambda score: score["results"][0]["protocol_unmet"].append("none"), "results[0].protocol_unmet"),
        (
            lambda score: score["results"][0]["denominators"][0].update(agents=99_999.0),
            "results[0].denominators[0].agents",
        ),
        (lambda score: score["labels"].pop(), "labels"),
        (lambda score: score["trials"][0]["measure"]["ttft_s"].update(p95=0.001), "trials[0].measure.ttft_s.p95"),
        (
            lambda score: score["trials"][0]["measure"]["slos"][0].update(margin=-3.0),
            "trials[0].measure.slos[0].margin",
        ),
        (
            lambda score: score["trials"][0]["measure"]["metrics"]["jobs"].update(per_h=1e6),
            "trials[0].measure.metrics.jobs.per_h",
        ),
        (lambda score: score["trials"].pop(), "trials"),
        (lambda score: score["canary"].update(reasons=["none"]), "canary.reasons"),
        (lambda score: score.pop("policies"), "policies"),
        (lambda score: score.update(certified=True), "certified"),
    ],
)
def test_a_number_of_the_score_that_was_changed_shows(
    copy: Path, change: Callable[[dict[str, Any]], None], place: str
) -> None:
    alter_json(copy / "score.json", change)
    assert place in places(copy)
    done = CliRunner().invoke(main, ["replay", "verify", str(copy)])
    assert done.exit_code == 1
    assert f"{place}: stands" in done.stdout
    listed = CliRunner().invoke(main, ["replay", "verify", str(copy), "--json"])
    assert place in [item["place"] for item in json.loads(listed.stdout)]


def test_a_canary_that_was_changed_shows_even_with_a_new_digest(copy: Path) -> None:
    alter_json(
        copy / "canary.json", lambda pair: [item.update(first="x") for item in pair["after"]["servers"][0]["greedy"]]
    )
    assert places(copy)[0] == "canary.json"
    sign_again(copy, "canary.json")
    assert "canary.reasons" in places(copy)


def test_a_trial_that_no_search_asked_for_shows_even_with_new_digests(copy: Path) -> None:
    place = "trials/3/trial.json"
    alter_json(copy / place, lambda facts: facts.update(draw=9))
    sign_again(copy, place)
    assert "trials/3: what it is for" in places(copy)


def test_a_trial_that_was_taken_out_shows_even_without_its_digests(copy: Path) -> None:
    last = max(int(path.name) for path in (copy / "trials").iterdir())
    shutil.rmtree(copy / "trials" / str(last))
    alter_json(
        copy / "score.json",
        lambda score: [score["files"].pop(name) for name in list(score["files"]) if name.startswith(f"trials/{last}/")],
    )
    assert f"trials/{last}" in places(copy)


def test_a_fact_or_an_input_that_was_changed_shows(copy: Path) -> None:
    alter_json(
        copy / "trials" / "1" / "trial.json", lambda facts: facts.update(settle_end_ns=facts["settle_end_ns"] - 9)
    )
    assert places(copy)[0] == "trials/1/trial.json"
    alter_json(copy / "run.json", lambda inputs: inputs["slos"][0]["terms"][1].update(limit=0.01))
    assert places(copy)[0] == "run.json"
    alter_json(copy / "plan.json", lambda plan: plan.update(seed=9))
    assert "plan.seed" in places(copy)


def sign_again(folder: Path, name: str) -> None:
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    alter_json(folder / "score.json", lambda score: score["files"].update({name: digest}))


def test_a_trial_under_another_protocol_shows_even_with_new_digests(copy: Path) -> None:
    place = "trials/2/trial.json"
    alter_json(copy / place, lambda facts: facts["protocol"].update(min_measure_s=1.0))
    sign_again(copy, place)
    assert f"{place}: protocol" in places(copy)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda plan: plan["delay"].update(tool="capped:5"), "plan.json: delay_policy_id"),
        (lambda plan: plan["sessions"][0].update(output_tokens=3), "plan.json: output_tokens"),
        (lambda plan: plan.update(plan_digest="0" * 64), "run.json: plan_digest"),
    ],
)
def test_a_plan_that_does_not_agree_with_itself_shows_even_with_new_digests(
    copy: Path, change: Callable[[dict[str, Any]], None], place: str
) -> None:
    alter_json(copy / "plan.json", change)
    sign_again(copy, "plan.json")
    assert place in places(copy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trials/1/trial.json", lambda facts: facts.update(agents=0)),
        ("run.json", lambda inputs: inputs["slos"][0]["terms"][0].update(limit="x")),
        ("run.json", lambda inputs: inputs["slos"][0].pop("name")),
        ("run.json", lambda inputs: inputs["system"].update(accelerators=None)),
        ("run.json", lambda inputs: inputs["probe"].pop("ignore_eos")),
    ],
)
def test_a_file_that_makes_no_sense_is_a_sentence_and_no_traceback(
    copy: Path, name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    alter_json(copy / name, change)
    assert places(copy)[0] == name
    sign_again(copy, name)
    with pytest.raises(RunFault, match="cannot be judged"):
        verify(RunFolder(path=copy))


@pytest.mark.parametrize(
    "name", ["plan.json", "run.json", "trials/1/records.parquet", "trials/1/power.parquet", "trials/1/server.parquet"]
)
def test_a_missing_file_is_one_sentence(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises((RunFault, TrialFault), match="is missing"):
        verify(RunFolder(path=copy))
    done = CliRunner().invoke(main, ["replay", "verify", str(copy)])
    assert done.exit_code == 3
    assert name in done.stderr.replace("\n", "")
    assert "Traceback" not in done.output


def test_a_missing_trial_and_a_missing_score_are_named(copy: Path) -> None:
    shutil.rmtree(copy / "trials" / "1")
    with pytest.raises(RunFault, match="is missing"):
        verify(RunFolder(path=copy))
    (copy / "score.json").unlink()
    with pytest.raises(RunFault, match=r"score\.json is missing: the run is not finished"):
        verify(RunFolder(path=copy))


def test_a_file_that_is_no_longer_readable_is_named(copy: Path) -> None:
    path = copy / "trials" / "1" / "records.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    assert places(copy)[0] == "trials/1/records.parquet"
    for name in ("score.json", "run.json", "plan.json", "trials/1/trial.json"):
        good = (copy / name).read_bytes()
        (copy / name).write_text('{"version": 2, "x": ' + "[" * 100_000)
        if name != "score.json":
            sign_again(copy, name)
        done = CliRunner().invoke(main, ["replay", "verify", str(copy)])
        assert done.exit_code in (1, 3)
        assert isinstance(done.exception, SystemExit), name  # no RecursionError
        (copy / name).write_bytes(good)
    (copy / "score.json").write_text("{")
    done = CliRunner().invoke(main, ["replay", "verify", str(copy)])
    assert done.exit_code == 3
    assert "is not JSON" in done.stderr


def test_a_nameplate_that_is_passed_off_as_measured_shows_even_with_new_digests(copy: Path) -> None:
    alter_json(copy / "trials" / "1" / "trial.json", lambda facts: facts["power_sources"][0].update(measured=True))
    restate(copy, "trials/1/trial.json")
    assert "trials/1/trial.json: power_sources" in places(copy)


def test_a_device_that_stands_twice_is_a_difference_and_no_fault(copy: Path) -> None:
    def twice(facts: dict[str, Any]) -> None:
        facts["power_sources"][0]["devices"] *= 2

    alter_json(copy / "trials" / "1" / "trial.json", twice)
    assert "trials/1/trial.json" in places(copy)

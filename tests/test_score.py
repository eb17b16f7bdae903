"""A score from end to end: on drawn trials, where every case is instant, and on a scripted server by the command."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from capture.fault import EnvironmentFault
from capture.trajectory import Trajectory
from replay.canary import CanaryResult, FreeAnswer, Greedy, LogProbability, ServerCanary, ToolCalls
from replay.delay import DelayPolicy
from replay.endpoint import Endpoint
from replay.judge import judge_trials, score_json
from replay.protocol import CLASSES, FULL, QUICK, SCREEN, STANDARD, protocol_of, strictest
from replay.request import PlanRules
from replay.restart import restart
from replay.rules import LengthPolicy
from replay.runfolder import RunFault, RunFolder
from replay.score import expected_length, run
from replay.slo import Slo, Term
from replay.system import System
from replay.trial import read_trial
from replay.verify import verify
from tests.fake_server import serving
from tests.sample_sessions import content_free_session, text_session
from tests.simulated_run import PROTOCOL, SLO, SimulatedDriver, simulated_request

RULES = PlanRules(delay=DelayPolicy(tool="none", unsplit="none"), length=LengthPolicy(cap=30))


def sessions() -> list[Trajectory]:
    return [text_session(f"session-{index}", turns=4) for index in range(3)] + [content_free_session("session-c")]


def score_of(out: Path, driver: SimulatedDriver | None = None, **changes: Any) -> dict[str, Any]:
    request = simulated_request(out, **{"rules": RULES, **changes})
    return run(request, sessions, driver=driver or SimulatedDriver())


def slo(name: str, speed: float) -> Slo:
    terms = (Term(quantity="output_tok_s", percentile=25.0, limit=speed), SLO.terms[1])
    return dataclasses.replace(SLO, name=name, terms=terms)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished score of a drawn server that holds 10 agents; tests that alter it copy it first."""
    out = tmp_path_factory.mktemp("score") / "run"
    score_of(out)
    return out


@pytest.fixture(scope="module")
def score(finished: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((finished / "score.json").read_text())
    return value


# -- what a score says


def test_the_search_finds_the_capacity_with_an_interval(score: dict[str, Any]) -> None:
    result = score["results"][0]
    assert (score["verdict"], result["verdict"], result["search"]["outcome"]) == ("met", "met", "found")
    assert result["interval"]["low"] < 10 < result["interval"]["high"]
    assert result["interval"]["method"] == "fieller"
    assert result["agents"] == score["agents"] == pytest.approx(10, rel=0.05)
    assert result["whole"] == int(result["agents"])
    assert (result["certified"], result["certified_why_not"]) == (None, "class screen certifies nothing")
    purposes = [trial["purpose"] for trial in score["trials"]]
    assert purposes.count("confirm") == 5
    assert [trial["agents"] for trial in score["trials"]][:4] == [2, 4, 8, 16]
    draws = [trial["draw"] for trial in score["trials"] if trial["purpose"] == "confirm"]
    assert len(set(draws)) == 5
    assert 0 not in draws
    assert score["score_version"] == 3
    assert score["class"] == "screen"
    assert score["methodology_version"] == "1.1"


def test_what_is_shown_beside_the_number_is_a_trial_that_met_it(score: dict[str, Any]) -> None:
    result = score["results"][0]
    shown = score["trials"][result["reference_trial"] - 1]
    assert shown["measure"]["slos"][0]["verdict"] == "met"
    assert shown["agents"] <= result["agents"]
    assert 0 < result["goodput_agents"] <= shown["agents"]
    assert result["percentiles"]["terms"][0]["term"] == "p25_output_tok_s"


def test_every_ratio_names_its_denominator_and_has_the_intervals_ends(score: dict[str, Any]) -> None:
    result = score["results"][0]
    accelerators, megawatts = result["denominators"]
    assert (accelerators["per"], accelerators["denominator"]) == ("accelerator", 2)
    assert accelerators["agents_low"] == pytest.approx(result["interval"]["low"] / 2)
    assert (megawatts["basis"], megawatts["source"], megawatts["denominator"]) == ("declared", "declared", 1400)
    assert megawatts["agents"] == pytest.approx(1e6 * result["agents"] / 1400)
    # A nameplate is a convention without uncertainty: only the number of agents is uncertain.
    assert megawatts["agents_high"] == pytest.approx(1e6 * result["interval"]["high"] / 1400)


def test_labels_say_what_changes_the_meaning(score: dict[str, Any]) -> None:
    labels = " | ".join(score["labels"])
    for words in (
        "class screen",
        "not restarted between trials: an interval excludes",
        "trajectory longer than the measured window",
        "synthetic text in 1 of 4",
        "mixture of experts undisclosed",
        "capped at 30",
        "power is declared",
        "delays: human0-tool0-unsplit0 instead of",
    ):
        assert words in labels
    assert "precision" in score["undisclosed"]


def test_labels_are_of_every_trial_that_the_number_rests_on(finished: Path, score: dict[str, Any]) -> None:
    """Not only of the one that is shown: one trial of the fit without power leaves nothing per megawatt."""
    folder = RunFolder(path=finished)
    result = score["results"][0]
    other = next(number for number in result["search"]["fit"]["trials"] if number != result["reference_trial"])
    judged = [
        dataclasses.replace(
            item,
            cross_warming=("a play was warm",),
            power=tuple(
                dataclasses.replace(total, valid=False, power_w=None, reasons=("GPU-0: lost",)) for total in item.power
            ),
        )
        if item.trial == other
        else item
        for item in judge_trials(folder)
    ]
    found = score_json(folder, folder.inputs(), folder.plan(), judged)
    assert [row["per"] for row in found["results"][0]["denominators"]] == ["accelerator"]
    assert "no declared power: GPU-0: lost" in found["labels"]
    assert f"cross-warming in trial {other}: a play was warm" in found["labels"]


def test_labels_of_a_system_that_speculates_on_synthetic_text(tmp_path: Path) -> None:
    system = System(name="s", accelerators=(), weights="made-up", speculation="eagle, 3 tokens", moe=True)
    out = tmp_path / "run"
    found = score_of(out, system=system, slos=(), kind="run", run_class=None, agents=3, power=())
    labels = " | ".join(found["labels"])
    assert "speculative decoding (eagle, 3 tokens) on synthetic text" in labels
    assert "mixture of experts on synthetic text" in labels
    assert "no power source" in labels
    assert "class screen" not in labels
    assert (found["verdict"], found["results"], found["class"]) == ("met", [], None)
    assert verify(RunFolder(path=out)) == ()


def test_every_service_level_of_a_set_is_scored_from_one_sweep(tmp_path: Path) -> None:
    driver = SimulatedDriver()
    # Speed falls as (10 / N)^1.5 from 20 tok/s at 10 agents: 40 tok/s hold for 6.3 agents.
    found = score_of(tmp_path / "both", driver, slos=(SLO, slo("fast", 40.0), slo("never", 5000.0)))
    slow, fast, never = found["results"]
    assert (slow["slo"], fast["slo"]) == ("simulated", "fast")
    assert slow["interval"]["low"] < 10 < slow["interval"]["high"]
    assert fast["interval"]["low"] < 6.3 < fast["interval"]["high"]
    assert (never["verdict"], never["agents"], never["denominators"]) == ("missed", 0, [])
    assert all(len(trial["measure"]["slos"]) == 3 for trial in found["trials"])
    alone = SimulatedDriver()
    for number, level in enumerate((SLO, slo("fast", 40.0), slo("never", 5000.0))):
        score_of(tmp_path / str(number), alone, slos=(level,))
    assert len(driver.orders) < len(alone.orders)
    assert verify(RunFolder(path=tmp_path / "both")) == ()


def test_class_record_certifies_by_a_holdout_trial(tmp_path: Path) -> None:
    found = score_of(tmp_path / "record", run_class="record")
    result = found["results"][0]
    assert result["certified"] == int(result["interval"]["low"])
    assert result["certified_why_not"] is None
    last = found["trials"][-1]
    assert (last["purpose"], last["agents"]) == ("holdout", result["certified"])
    assert sum(trial["purpose"] == "confirm" for trial in found["trials"]) >= 9
    row = result["denominators"][1]
    assert row["agents_certified"] == pytest.approx(1e6 * result["certified"] / 1400)


def test_a_server_that_no_agent_likes_and_one_that_holds_all(tmp_path: Path) -> None:
    none = score_of(tmp_path / "none", SimulatedDriver(capacity=0.5))
    assert (none["agents"], none["verdict"]) == (0, "missed")
    assert none["reasons"] == ["a single agent misses the level"]
    most = score_of(tmp_path / "most", SimulatedDriver(capacity=500.0), maximum_agents=5)
    result = most["results"][0]
    assert (result["whole"], result["at_least"], result["interval"]) == (5, True, None)
    assert "may hold more" in most["reasons"][0]
    assert most["search"]["maximum_why"] == "as asked"


def test_noise_that_hides_the_answer_is_undecided(tmp_path: Path) -> None:
    found = score_of(tmp_path / "noise", SimulatedDriver(noise=0.8, seed=4))
    result = found["results"][0]
    assert (found["verdict"], result["agents"], result["denominators"]) == ("undecided", None, [])
    assert result["reasons"]
    assert result["interval_why_not"] == result["reasons"][0]


def test_a_search_goes_no_further_than_the_client(tmp_path: Path) -> None:
    found = score_of(tmp_path / "limit", SimulatedDriver(capacity=500.0, limit=6))
    assert found["results"][0]["whole"] == 6
    assert found["search"]["maximum_why"] == "what this machine can drive, tried"
    assert any("client limit: this machine drives at most 6" in label for label in found["labels"])
    stated = score_of(tmp_path / "stated", SimulatedDriver(capacity=500.0, limit=6), client_limit=7)
    assert stated["client_limit"] == {"agents": 7, "basis": "stated"}
    assert stated["results"][0]["whole"] == 7


def canary(words: str) -> CanaryResult:
    server = ServerCanary(
        greedy=tuple(Greedy(first=words, second=words, error=None) for _ in range(3)),
        tools=ToolCalls(asked=3, answered=3, sound=0, skipped=None),
        free=FreeAnswer(words=2, distinct_share=1.0, skipped=None),
        recorded=LogProbability(tokens=0, mean_nats=None, skipped="none"),
    )
    return CanaryResult(version=1, model="simulated", seconds=0.1, servers=(server,))


def test_the_canary_sings_before_and_after(tmp_path: Path) -> None:
    same = score_of(tmp_path / "same", SimulatedDriver(canaries=[canary("two three five"), canary("two three five")]))
    assert same["canary"]["reasons"] == []
    other = score_of(tmp_path / "other", SimulatedDriver(canaries=[canary("two three five"), canary("seven eleven")]))
    assert "greedy answers agree" in other["canary"]["reasons"][0]
    assert other["labels"][0].startswith("the quality canary shifted")
    assert verify(RunFolder(path=tmp_path / "other")) == ()


def test_the_server_is_restarted_around_the_answer_and_the_label_goes(tmp_path: Path) -> None:
    driver = SimulatedDriver()
    found = score_of(tmp_path / "run", driver, restart_words=("true",))
    confirmed = [trial for trial in found["trials"] if trial["purpose"] == "confirm"]
    assert driver.restarts == len(confirmed) == found["restart"]["count"]
    assert all(trial["restart"] for trial in confirmed)
    assert not any("not restarted" in label for label in found["labels"])


# -- folders, and runs that were cut short


def test_the_facts_are_in_the_folder(finished: Path) -> None:
    trial = read_trial(finished / "trials" / "1")
    assert (trial.facts.agents, trial.facts.purpose, trial.facts.draw) == (2, "bracket", 0)
    assert {record.agent for record in trial.records} == {0, 1}
    other = read_trial(finished / "trials" / "2")
    assert not {record.salt for record in trial.records} & {record.salt for record in other.records}
    assert sorted(path.name for path in finished.iterdir()) == ["plan.json", "run.json", "score.json", "trials"]


def test_a_run_that_was_cut_anywhere_resumes_to_the_identical_score(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "score.json").read_bytes()
    trials = len(RunFolder(path=finished).trial_numbers())
    for kept in range(0, trials + 1, 2):
        half = tmp_path / f"half-{kept}"
        shutil.copytree(finished, half)
        (half / "score.json").unlink()
        for number in range(kept + 1, trials + 1):
            shutil.rmtree(half / "trials" / str(number))
        (half / "trials" / f".{kept + 1}.partial").mkdir(parents=True)  # what a killed trial leaves
        driver = SimulatedDriver()
        score_of(half, driver, resume=True)
        assert len(driver.orders) == trials - kept
        assert (half / "score.json").read_bytes() == whole


KILLED = """
import sys
from pathlib import Path
from tests.test_score import score_of
score_of(Path(sys.argv[1]))
"""


def test_a_run_that_is_killed_goes_on(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [sys.executable, "-c", KILLED, str(out)]
    with subprocess.Popen(words, cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (out / "trials" / "3").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.communicate()
    assert not (out / "score.json").exists()
    before = {path: path.read_bytes() for path in out.glob("trials/*/records.parquet")}
    score_of(out, resume=True)
    assert all(path.read_bytes() == content for path, content in before.items())
    done, reference = (json.loads((folder / "score.json").read_text()) for folder in (out, finished))
    for value in (done, reference):
        del value["started_unix_us"], value["files"]  # the nonce of every salt is drawn anew for each run
    assert done == reference


def test_a_run_that_was_killed_before_it_began_begins_anew(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "plan.json", out)
    (out / ".run.json.tmp").touch()
    again = tmp_path / "again"
    shutil.copytree(out, again)
    assert score_of(out, resume=True)["verdict"] == "met"
    assert score_of(again)["verdict"] == "met"


def test_a_folder_that_is_there_is_left_alone(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFault, match="exists already"):
        score_of(finished)
    with pytest.raises(RunFault, match="is finished"):
        score_of(finished, resume=True)
    with pytest.raises(RunFault, match="no unfinished run"):
        score_of(tmp_path / "new", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for resume in (False, True):
        with pytest.raises(RunFault, match=r"exists already|no unfinished run"):
            score_of(tmp_path / "mine", resume=resume)
    assert not (tmp_path / "new").exists()


def test_a_resumed_run_must_be_asked_the_same(finished: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    (half / "score.json").unlink()
    for changes, says in (
        ({"endpoint": Endpoint("http://127.0.0.1:8", "simulated")}, "another endpoint"),
        ({"protocol": dataclasses.replace(PROTOCOL, settle_s=0.2)}, "another protocol"),
        ({"slos": (slo("other", 30.0),)}, "another slos"),
        ({"agents": 3}, "another start_agents"),
        ({"rules": dataclasses.replace(RULES, seed=5)}, "another plan_digest"),
        ({"run_class": "record"}, "another run_class"),
    ):
        with pytest.raises(RunFault, match=says):
            score_of(half, resume=True, **changes)
    upgraded = SimulatedDriver()
    upgraded.report = dataclasses.replace(upgraded.report, engine_version="2")
    with pytest.raises(RunFault, match="a server with another engine_version"):
        score_of(half, upgraded, resume=True)
    text = (half / "run.json").read_text()
    (half / "run.json").write_text(text.replace('"version": 3', '"version": 2'))
    with pytest.raises(RunFault, match="has version 2; this agentdyno reads version 3"):
        score_of(half, resume=True)


# -- classes and protocols


def test_the_length_of_a_run_is_said_before_it_starts(finished: Path) -> None:
    inputs = RunFolder(path=finished).inputs()
    screen = dataclasses.replace(inputs, protocol=SCREEN)
    said = expected_length(screen)
    assert "a trial takes 76 to 120 s; a search from 2 to at most 200 agents takes 8 to" in said
    assert "10 min at least" in said
    assert "than the 30 min" not in said
    many = dataclasses.replace(screen, slos=inputs.slos * 6)
    assert "more than the 30 min of a screen: name fewer service levels at once" in expected_length(many)


def test_a_class_has_its_protocol() -> None:
    assert protocol_of("screen", quick=False, own=[FULL]) == SCREEN
    assert protocol_of("screen", quick=True, own=[FULL]) == QUICK
    assert protocol_of("standard", quick=False, own=[FULL]) == STANDARD
    assert protocol_of("record", quick=False, own=[FULL, FULL]) == FULL
    assert (FULL.min_measure_s, FULL.min_trajectories, FULL.min_trajectories_per_agent) == (600, 30, 3)
    both = strictest([FULL, dataclasses.replace(STANDARD, settle_s=90.0)])
    assert (both.name, both.settle_s, both.min_measure_s, both.ramp_within_s) == ("full+standard", 90, 600, None)
    assert [CLASSES[name].certify for name in ("screen", "standard", "record")] == [False, True, True]
    fast = SCREEN.for_agents(201)
    assert (fast.ramp_per_s, fast.ramp_within_s) == (10.0, None)
    assert SCREEN.for_agents(2).ramp_per_s == SCREEN.ramp_per_s
    assert SCREEN.shortest_s(1000) == pytest.approx(95)


# -- restarting


def test_a_restart_waits_until_the_server_answers() -> None:
    with serving() as server:
        server.knobs.fail_status = 503
        code = f"import urllib.request as u; u.urlopen({server.url!r} + '/health-of-nothing', timeout=1)"
        words = (sys.executable, "-c", f"try:\n {code}\nexcept Exception: pass")
        with pytest.raises(EnvironmentFault, match=r"did not answer within 0\.2 s after its restart: HTTP 503"):
            restart(words, Endpoint(server.url, "fake-model"), answer_timeout_s=0.2)
        server.knobs.fail_status = None
        facts = restart(words, Endpoint(server.url, "fake-model"))
    assert facts.command_s > 0
    assert 0 < facts.answered_s < 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("no-such-command-at-all",), "does not exist"),
        ((sys.executable, "-c", "import sys; sys.exit('broken')"), "failed with exit code 1: broken"),
        ((sys.executable, "-c", "import time; time.sleep(30)"), "did not end within"),
    ],
)
def test_a_restart_command_that_fails_says_so(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(EnvironmentFault, match=says):
        restart(words, Endpoint("http://127.0.0.1:9", "m"), command_timeout_s=1.0)

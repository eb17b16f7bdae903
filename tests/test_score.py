"""A score from end to end on a scripted server, by its functions and by the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agentdyno import main
from capture.shelf import Shelf
from capture.store import Store
from capture.trajectory import Trajectory
from curate.build import build
from curate.manifest import write_json
from replay.endpoint import Endpoint
from replay.measure import FAILED
from replay.plan import ContextPolicy, DelayPolicy, LengthPolicy
from replay.power.choice import parse_power
from replay.protocol import Protocol
from replay.report import write_report
from replay.runfolder import RunFault, RunFolder
from replay.score import PlanRules, RunRequest, Watcher, run
from replay.slo import Limits, Slo
from replay.system import Accelerator, System, SystemFault, read_system
from replay.trial import read_trial
from replay.verify import verify
from tests.fake_server import FakeServer, serving
from tests.sample_sessions import content_free_session, text_session

TINY = Protocol(
    name="tiny",
    ramp_per_s=50.0,
    settle_s=0.1,
    min_measure_s=0.8,
    min_trajectories=0,
    min_trajectories_per_agent=0,
    max_phase_s=6.0,
    start_offset_turns=2,
    request_timeout_s=10.0,
)
# Up to four answers at a time come at 100 tok/s; n > 4 come at 400/n tok/s. So 70 tok/s hold for five agents.
SLO = Slo(name="test", limits=Limits(p25_output_tok_s=70.0, p95_ttft_s=10.0), protocol=TINY, note="a test's own limits")
SYSTEM = System(name="fake", accelerators=(Accelerator(name="core", kind="cpu"),), weights="made-up")


def sessions() -> list[Trajectory]:
    return [text_session("session-a", turns=4), text_session("session-b", turns=3), content_free_session("session-c")]


def asked(server: FakeServer, out: Path, **changes: Any) -> RunRequest:
    rules = PlanRules(
        delay=DelayPolicy(tool_cap_s=0.0, unsplit_cap_s=0.0),
        length=LengthPolicy(cap=12),
        context=ContextPolicy(limit=60_000),
    )
    request = RunRequest(
        kind="score",
        endpoint=Endpoint(server.url, "fake-model"),
        dataset_digest="d" * 64,
        rules=rules,
        slo=SLO,
        protocol=TINY,
        quick=False,
        system=SYSTEM,
        power=(parse_power("declared:50W*2"),),
        agents=2,
        maximum_agents=16,
        out=out,
        resume=False,
    )
    return dataclasses.replace(request, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished score; tests that alter it copy it first."""
    out = tmp_path_factory.mktemp("score") / "run"
    with serving(ttft_ms=10, itl_ms=10, capacity=4) as server:
        run(asked(server, out), sessions)
    return out


def test_the_search_finds_the_servers_capacity(finished: Path) -> None:
    score = json.loads((finished / "score.json").read_text())
    tried = [(level["agents"], level["verdict"]) for level in score["search"]["path"]]
    assert tried[:3] == [(2, "met"), (4, "met"), (8, "missed")]
    assert score["verdict"] == "met"
    assert 4 <= score["agents"] <= 6
    assert score["search"]["reason"] == "bracketed"
    assert 0 < score["agents_goodput"] <= score["agents"]
    per_processor, per_megawatt = score["denominators"]
    assert (per_processor["per"], per_processor["agents"]) == ("processor", score["agents"])
    assert per_megawatt["agents"] == pytest.approx(1e6 * score["agents"] / 100)
    assert (per_megawatt["basis"], per_megawatt["source"]) == ("declared", "declared")
    labels = " | ".join(score["labels"])
    for words in ("CPU engine", "made-up weights", "synthetic text in 1 of 3", "capped at 12", "power is declared"):
        assert words in labels
    assert score["methodology_version"] == "0.1"
    assert score["class"] == "screen"
    assert score["protocol_unmet"] == []
    assert "precision" in score["undisclosed"]


def test_the_facts_are_in_the_folder(finished: Path) -> None:
    trial = read_trial(finished / "trials" / "1")
    assert trial.facts.agents == 2
    assert trial.facts.stop_reason == "measured"
    assert {record.agent for record in trial.records} == {0, 1}
    assert {record.salt for record in trial.records} != {""}
    shares = [record.ideal_cached_share for record in trial.records]
    assert 0.0 in shares
    assert max(share for share in shares if share is not None) > 0.3
    other = read_trial(finished / "trials" / "2")
    assert not {record.salt for record in trial.records} & {record.salt for record in other.records}
    assert sorted(path.name for path in finished.iterdir()) == ["plan.json", "run.json", "score.json", "trials"]


def test_verify_agrees_and_the_report_is_whole(finished: Path, tmp_path: Path) -> None:
    assert verify(RunFolder(path=finished)) == ()
    page = write_report(RunFolder(path=finished), tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "nothing differed" in page
    assert "What the number does not say" in page
    assert "http" not in page.replace("http://127.0.0.1", "").replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
    assert write_report(RunFolder(path=finished), tmp_path / "again.html").read_text() == page


def test_a_folder_that_is_there_is_left_alone(finished: Path, tmp_path: Path) -> None:
    with serving() as server:
        with pytest.raises(RunFault, match="exists already"):
            run(asked(server, finished), sessions)
        with pytest.raises(RunFault, match="is finished"):
            run(asked(server, finished, resume=True), sessions)
        with pytest.raises(RunFault, match="no unfinished run"):
            run(asked(server, tmp_path / "new", resume=True), sessions)
    assert not (tmp_path / "new").exists()


def test_an_unfinished_run_goes_on_where_it_was(finished: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    (half / "score.json").unlink()
    shutil.rmtree(half / "trials" / str(max(int(path.name) for path in (half / "trials").iterdir())))
    kept = {path: path.read_bytes() for path in half.rglob("*.parquet")}
    inputs = RunFolder(path=half).inputs()
    seen: list[bool] = []

    class Noting(Watcher):
        def trial_ends(self, judged: Any, reused: bool) -> None:  # noqa: ARG002
            seen.append(reused)

    with serving(ttft_ms=10, itl_ms=10, capacity=4) as server:
        request = asked(server, half, resume=True)
        with pytest.raises(RunFault, match="another url"):
            run(request, sessions)
        # The server's port is the only thing that another process changes.
        same = dataclasses.replace(inputs, url=request.endpoint.url)
        write_json(half / "run.json", same)
        with pytest.raises(RunFault, match="another protocol"):
            run(dataclasses.replace(request, protocol=dataclasses.replace(TINY, settle_s=0.2)), sessions)
        score = run(request, sessions, Noting())
    assert seen.count(False) >= 1
    assert seen.count(True) == len(kept) // 2
    assert score["verdict"] == "met"
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert verify(RunFolder(path=half)) == ()


def test_nothing_passes(tmp_path: Path) -> None:
    slo = dataclasses.replace(SLO, limits=Limits(p25_output_tok_s=5000.0, p95_ttft_s=10.0))
    with serving(ttft_ms=10, itl_ms=5) as server:
        score = run(asked(server, tmp_path / "none", slo=slo), sessions)
    assert (score["agents"], score["verdict"], score["denominators"]) == (0, "missed", [])
    assert score["reasons"] == ["not even one agent holds both limits"]
    assert verify(RunFolder(path=tmp_path / "none")) == ()
    write_report(RunFolder(path=tmp_path / "none"))


def test_a_maximum_is_said(tmp_path: Path) -> None:
    with serving(ttft_ms=10, itl_ms=1) as server:
        score = run(asked(server, tmp_path / "most", maximum_agents=3, power=()), sessions)
    assert (score["agents"], score["search"]["reason"]) == (3, "maximum")
    assert "it may hold more" in score["reasons"][0]
    assert [row["per"] for row in score["denominators"]] == ["processor"]
    assert "no power source: nothing is given per megawatt" in score["labels"]


def test_requests_that_fail_break_the_level_and_say_why(tmp_path: Path) -> None:
    class Breaking(Watcher):
        def trial_begins(self, trial: int, agents: int, protocol: Protocol) -> None:  # noqa: ARG002
            server.knobs.fail_status = 503 if agents >= 4 else None
            server.knobs.fail_every = 3

    with serving(ttft_ms=10, itl_ms=1) as server:
        # Longer than the second for which the driver holds a chain back after a failure.
        protocol = dataclasses.replace(TINY, min_measure_s=2.5)
        score = run(asked(server, tmp_path / "fails", protocol=protocol), sessions, Breaking())
    assert score["agents"] == 3
    reasons = score["search"]["path"][1]["reasons"]
    assert any("requests failed, the first: http_error 503" in reason for reason in reasons)
    trial = read_trial(tmp_path / "fails" / "trials" / "2")
    assert any(record.outcome in FAILED for record in trial.records)


def test_a_phase_too_short_for_the_protocol_is_invalid(tmp_path: Path) -> None:
    protocol = dataclasses.replace(TINY, min_trajectories=10_000, max_phase_s=0.8, min_measure_s=0.3)
    with serving(ttft_ms=10, itl_ms=1) as server:
        score = run(asked(server, tmp_path / "short", protocol=protocol), sessions)
    assert score["verdict"] == "invalid"
    assert score["agents"] is None
    assert [level["agents"] for level in score["search"]["path"]] == [2, 2]
    assert "its protocol asks for 10000" in score["reasons"][0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder, as the command line wants one."""
    folder = tmp_path_factory.mktemp("dataset")
    Store.open(folder / "store", create=True)
    Shelf(folder / "store").put_all(sessions())
    build([folder / "store"], folder / "dataset", jobs=1)
    return folder / "dataset"


@pytest.fixture
def level(tmp_path: Path) -> Path:
    """A service level with a protocol of a second."""
    path = tmp_path / "level.toml"
    path.write_text(
        "[limits]\np25_output_tok_s = 70\np95_ttft_s = 10\n[protocol]\nramp_per_s = 50\nsettle_s = 0.1\n"
        "min_measure_s = 0.8\nmin_trajectories = 0\nmin_trajectories_per_agent = 0\nmax_phase_s = 6\n"
    )
    return path


def command(*words: object) -> Any:
    return CliRunner().invoke(main, ["replay", *map(str, words)], catch_exceptions=False)


RULES = ("--tool-cap", 0, "--unsplit-cap", 0, "--output-cap", 12)


def test_the_command_line_from_score_to_report(dataset: Path, level: Path, tmp_path: Path) -> None:
    system = tmp_path / "system.toml"
    system.write_text('name = "fake"\n[[accelerators]]\nname = "H200"\ncount = 2\n')
    out = tmp_path / "run"
    with serving(ttft_ms=10, itl_ms=10, capacity=4) as server:
        common = (dataset, "--url", server.url, "--model", "fake-model", *RULES)
        done = command(
            *("score", *common, "--slo", level, "--max-agents", 4, "--power", "declared:700W*2"),
            *("--system", system, "--out", out),
        )
        assert done.exit_code == 0, done.output
        assert "at least 4 agents" in done.stdout
        assert "2 agents per accelerator (2 accelerators, declared)" in done.stdout
        assert "2,857 agents per MW (declared" in done.stdout
        assert "trial 1: 2 agents met" in done.stderr
        again = command("score", *common, "--slo", level, "--out", out)
        assert again.exit_code == 2
        assert "exists already" in again.stderr
        missed = command(
            *("run", *common, "--agents", 12, "--duration", 1, "--slo", level, "--out", tmp_path / "missed"), "--json"
        )
        assert missed.exit_code == 1
        assert json.loads(missed.stdout)["verdict"] == "missed"
        once = command("run", *common, "--agents", 2, "--once", "--out", tmp_path / "once", "--json")
        assert once.exit_code == 0, once.stderr
        score = json.loads(once.stdout)
        assert score["denominators"] == []
        idle = command(
            *("run", *common, "--agents", 50, "--once", "--slo", level, "--power", "declared:700W"),
            *("--out", tmp_path / "idle", "--json"),
        )
        # Fifty agents share two sessions: most never work, and no watt may be divided by them.
        played = json.loads(idle.stdout)
        assert (played["verdict"], played["denominators"]) == ("met", [])
        assert any(label.startswith("played once") for label in played["labels"])
        plan = json.loads((tmp_path / "once" / "plan.json").read_text())
        assert score["trials"][0]["measure"]["outcomes"] == {"ok": plan["turns"]}
        assert score["trials"][0]["stop_reason"] == "plays_done"
        probed = command("probe", "--url", server.url, "--model", "fake-model", "--json")
        assert json.loads(probed.stdout)["ignore_eos"] == "obeyed"
    for run_folder in (out, tmp_path / "missed", tmp_path / "once"):
        assert command("verify", run_folder).exit_code == 0
        page = command("report", run_folder)
        assert page.exit_code == 0
        assert Path(page.stdout.strip()).stat().st_size > 20_000


def test_the_presets_are_listed_without_anything_else() -> None:
    listed = command("score", "--slo", "list")
    assert listed.exit_code == 0
    assert "aa-shape-2026-07/180" in listed.stdout


def test_bad_input_is_one_sentence(dataset: Path, level: Path, tmp_path: Path) -> None:
    with serving(ttft_ms=5, itl_ms=1) as server:
        url = server.url
        common: tuple[object, ...] = (dataset, "--url", url, "--model", "fake-model", "--out", tmp_path / "bad", *RULES)
        search = ("score", *common, "--slo", level)

        def refused(code: int, says: str, *words: object) -> None:
            done = command(*words)
            assert (done.exit_code, done.stdout) == (code, ""), done.output
            assert says in " ".join(done.stderr.split()), done.stderr
            assert not (tmp_path / "bad").exists()

        refused(2, "is neither a preset", *search[:-1], "aa-shape/1")
        refused(2, "is not known: use nvml, rapl", *search, "--power", "watts")
        refused(2, "system.toml does not exist", *search, "--system", tmp_path / "system.toml")
        refused(2, "declared is named 2 times", *search, "--power", "declared:7W", "--power", "declared:5W")
        refused(2, "the longest is 86,400", "run", *common, "--agents", 1, "--duration", "nan")
        refused(2, "the longest is 86,400", "run", *common, "--agents", 1, "--duration", "inf")
        refused(3, "NVML does not start", *search, "--power", "nvml")
        refused(2, "context policy: scale", *search, "--context-scale", 3)
        refused(2, "the plan is empty", *search, "--context-limit", 5)
        refused(3, "has no model 'other'", "score", dataset, "--url", url, "--model", "other", *search[4:][2:])
        refused(3, "is not set", *search, "--key-env", "AGENTDYNO_TEST_NO_SUCH_KEY")
        missing = ("run", tmp_path / "nothing", *common[1:], "--agents", 1)
        refused(3, "nothing", *missing)
        server.knobs.obey_ignore_eos = False
        server.knobs.natural_tokens = 4
        refused(3, "does not honour ignore_eos", *search)
        server.knobs.natural_tokens = None
    refused(3, "no server answers at", *search)
    for name in ("verify", "report"):
        done = command(name, tmp_path / "nothing")
        assert done.exit_code == 3
        assert "score.json is missing: the run is not finished" in done.stderr


def test_ctrl_c_leaves_a_folder_that_goes_on(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    level = tmp_path / "level.toml"
    level.write_text(
        "[limits]\np25_output_tok_s = 20\np95_ttft_s = 10\n[protocol]\nramp_per_s = 50\nsettle_s = 0.1\n"
        "min_measure_s = 1.5\nmin_trajectories = 0\nmin_trajectories_per_agent = 0\nmax_phase_s = 6\n"
    )
    with serving(ttft_ms=5, itl_ms=1) as server:
        words = ["replay", "score", dataset, "--url", server.url, "--model", "fake-model", "--slo", level, "--out", out]
        words += ["--max-agents", 4, *RULES]
        process = subprocess.Popen(
            [sys.executable, "-c", "from agentdyno import main; main()", *map(str, words)],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not (out / "trials" / "1").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)  # into the second trial
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 130, talk
        assert "--resume" in talk
        assert "Traceback" not in talk
        assert (out / "trials" / "1" / "trial.json").exists()
        assert not (out / "score.json").exists()
        assert not (out / "trials" / "2").exists()
        done = command(*words[1:], "--resume", "--json")
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["agents"] == 4
        assert "reused" in done.stderr


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "name is missing"),
        ({"name": "a", "gpus": 1}, "unknown key 'gpus'"),
        ({"name": "a", "pue": 0.9}, "at least 1"),
        ({"name": "a", "weights": "random"}, '"trained" or "made-up"'),
        ({"name": "a", "accelerators": [{"name": "x", "cores": 1}]}, "accelerator 1: unknown key 'cores'"),
        ({"name": "a", "accelerators": [{"name": "x", "role": "spare"}]}, "role must be one of"),
        ({"name": "a", "accelerators": [{"name": "x", "uuid": "u", "count": 2}]}, "exactly one accelerator"),
        ({"name": "a", "accelerators": [{"name": "x", "uuid": "u"}, {"name": "y", "uuid": "u"}]}, "same uuid"),
        ({"name": "a", "power_cap_w": "700"}, "must be a number"),
        ({"name": 7}, "name must be a text"),
    ],
)
def test_a_system_file_says_what_is_wrong(table: dict[str, Any], says: str) -> None:
    with pytest.raises(SystemFault, match=r"system\.toml") as caught:
        read_system(table, "system.toml")
    assert says in str(caught.value)


def test_a_system_knows_its_power_devices() -> None:
    gpus = [{"name": "H200", "uuid": f"GPU-{index}"} for index in range(2)]
    system = read_system({"name": "a", "accelerators": [*gpus, {"name": "cpu", "kind": "cpu"}]}, "s")
    assert system.gpu_uuids == ("GPU-0", "GPU-1")
    assert (system.gpu_count, system.accelerator_count) == (2, 3)
    partly = read_system({"name": "a", "accelerators": [gpus[0], {"name": "H200", "count": 7}]}, "s")
    assert (partly.gpu_uuids, partly.gpu_count) == ((), 8)
    assert "launch_command" in partly.undisclosed

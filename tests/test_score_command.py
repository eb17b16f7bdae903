"""A score on a scripted server that answers: the command line from end to end."""

from __future__ import annotations

import dataclasses
import json
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
from curate.build import build
from replay.endpoint import Endpoint
from replay.protocol import Protocol
from replay.rules import LengthPolicy
from replay.runfolder import RunFolder
from replay.score import Watcher, run
from replay.trial import TrialOrder, read_trial
from replay.verify import verify
from tests.fake_server import serving
from tests.simulated_run import simulated_request
from tests.test_score import RULES, score_of, sessions

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


@pytest.mark.usefixtures("_busy_machine")
def test_requests_that_fail_break_the_level_and_say_why(tmp_path: Path) -> None:
    class Breaking(Watcher):
        def trial_begins(self, order: TrialOrder, protocol: Protocol) -> None:  # noqa: ARG002
            server.knobs.fail_status, server.knobs.fail_every = 503, 3

    with serving(ttft_ms=10, itl_ms=1) as server:
        request = simulated_request(
            tmp_path / "fails",
            kind="run",
            run_class=None,
            endpoint=Endpoint(server.url, "fake-model"),
            rules=dataclasses.replace(RULES, length=LengthPolicy(cap=12)),
            # Longer than the second for which the driver holds a chain back after a failure.
            protocol=dataclasses.replace(TINY, min_measure_s=2.0),
        )
        found = run(request, sessions, Breaking())
    assert found["verdict"] != "met"
    assert any("503" in reason for reason in found["reasons"])
    assert verify(RunFolder(path=tmp_path / "fails")) == ()


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
        "[limits]\np25_output_tok_s = 20\np95_ttft_s = 100\n[protocol]\nramp_per_s = 50\nsettle_s = 0.1\n"
        "min_measure_s = 0.8\nmin_trajectories = 0\nmin_trajectories_per_agent = 0\nmax_phase_s = 6\n"
    )
    return path


@pytest.fixture
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that runs other tests too the client may be late: here only what it then says is looked at."""
    monkeypatch.setattr("replay.health.LATE_LOOP_LAG_MS", 1900.0)
    monkeypatch.setattr("replay.health.LATE_DISPATCH_MS", 1900.0)


def command(*words: object) -> Any:
    return CliRunner().invoke(main, ["replay", *map(str, words)], catch_exceptions=False)


SHORT = ("--tool-delay", "none", "--unsplit-delay", "none", "--length", "capped:12")


@pytest.mark.usefixtures("_busy_machine")
def test_the_command_line_from_score_to_report(dataset: Path, level: Path, tmp_path: Path) -> None:
    system = tmp_path / "system.toml"
    system.write_text('name = "fake"\n[[accelerators]]\nname = "H200"\ncount = 2\n')
    out = tmp_path / "run"
    with serving(ttft_ms=10, itl_ms=5) as server:
        common = (dataset, "--url", server.url, "--model", "fake-model", *SHORT)
        done = command(
            *("score", *common, "--slo", level, "--class", "record", "--max-agents", 4, "--client-limit", 100),
            *("--power", "declared:700W*2", "--system", system, "--out", out),
        )
        assert done.exit_code == 0, done.output
        assert "At least 4 agents" in done.stdout
        assert "trial 1" in done.stderr
        again = command("score", *common, "--slo", level, "--out", out)
        assert again.exit_code == 2
        assert "exists already" in again.stderr
        high = tmp_path / "high.toml"
        high.write_text(level.read_text().replace("20", "20000", 1))
        missed = command(
            *("run", *common, "--agents", 3, "--duration", 1, "--slo", level, "--slo", high),
            *("--out", tmp_path / "missed", "--json"),
        )
        assert missed.exit_code == 1
        assert [item["verdict"] for item in json.loads(missed.stdout)["results"]] == ["met", "missed"]
        once = command("run", *common, "--agents", 2, "--once", "--out", tmp_path / "once", "--json")
        assert once.exit_code == 0, once.stderr
        idle = command(
            *("run", *common, "--agents", 16, "--once", "--slo", level, "--power", "declared:700W"),
            *("--out", tmp_path / "idle", "--json"),
        )
        # Sixteen agents share four sessions: most never work, and no watt may be divided by them.
        played = json.loads(idle.stdout)
        assert (played["verdict"], played["results"][0]["denominators"]) == ("met", [])
        assert any(label.startswith("played once") for label in played["labels"])
        plan, once_score = json.loads((tmp_path / "once" / "plan.json").read_text()), json.loads(once.stdout)
        assert once_score["trials"][0]["measure"]["outcomes"] == {"ok": plan["turns"]}
        assert once_score["trials"][0]["stop_reason"] == "plays_done"
    folders = (out, tmp_path / "missed", tmp_path / "once")
    for run_folder in folders:
        assert command("verify", run_folder).exit_code == 0
        assert command("report", run_folder).exit_code == 0
    refused = command("compare", out, tmp_path / "missed")
    assert refused.exit_code == 1
    assert "is a single trial" in refused.stdout
    found = json.loads((out / "score.json").read_text())
    assert found["canary"]["reasons"] == []
    assert found["canary"]["after"] is not None
    shares = [record.ideal_cached_share for record in read_trial(out / "trials" / "1").records]
    assert max(share for share in shares if share is not None) > 0.3


def test_the_presets_are_listed_without_anything_else() -> None:
    listed = command("score", "--slo", "list")
    assert listed.exit_code == 0
    assert "aa-shape-2026-07/180" in listed.stdout
    assert "all of these in one sweep" in listed.stdout


def test_bad_input_is_one_sentence(dataset: Path, level: Path, tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    score_of(finished)
    with serving(ttft_ms=5, itl_ms=1) as server:
        url = server.url
        common: tuple[object, ...] = (dataset, "--url", url, "--model", "fake-model", "--out", tmp_path / "bad", *SHORT)
        search = ("score", *common, "--slo", level, "--client-limit", 9)

        def refused(code: int, says: str, *words: object) -> None:
            done = command(*words)
            assert (done.exit_code, done.stdout) == (code, ""), done.output
            assert says in " ".join(done.stderr.split()), done.stderr
            assert not (tmp_path / "bad").exists()

        refused(2, "is neither a preset", *search, "--slo", "aa-shape/1")
        refused(2, "--slo is missing", "score", *common)
        refused(2, "--quick is a screen", *search, "--quick", "--class", "record")
        refused(2, "is not known: use nvml, nvml,scope=module, rapl", *search, "--power", "watts")
        refused(2, "system.toml does not exist", *search, "--system", tmp_path / "system.toml")
        refused(2, "is named 2 times", *search, "--power", "declared:7W", "--power", "declared:7W")
        refused(2, "the longest is 86,400", "run", *common, "--agents", 1, "--duration", "nan")
        refused(2, "the longest is 86,400", "run", *common, "--agents", 1, "--duration", "inf")
        refused(2, "the longest is 600", *search, "--idle", "nan")
        refused(3, "NVML does not start", *search, "--power", "nvml")
        refused(2, "context policy: scale", *search, "--context-scale", 3)
        refused(2, "the plan is empty", *search, "--context-limit", 5)
        refused(3, "has no model 'other'", "score", dataset, "--url", url, "--model", "other", *search[4:][2:])
        refused(3, "is not set", *search, "--key-env", "AGENTDYNO_TEST_NO_SUCH_KEY")
        refused(2, "a URL is named twice", *search, "--url", url)
        refused(2, "is not a command", *search, "--restart-cmd", "'open")
        refused(2, "--slo is settled by --against", *search, "--against", finished)
        refused(2, "--length is settled by --against", "score", *common, "--against", finished)
        refused(2, "is of another dataset", "score", *common[:-6], "--against", finished)
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
        assert "missing" in done.stderr


@pytest.mark.usefixtures("_busy_machine")
def test_ctrl_c_leaves_a_folder_that_goes_on(dataset: Path, level: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(ttft_ms=5, itl_ms=1) as server:
        words = ["replay", "score", dataset, "--url", server.url, "--model", "fake-model", "--slo", level, "--out", out]
        words += ["--class", "record", "--client-limit", 4, *SHORT]
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
        first = (out / "trials" / "1" / "records.parquet").read_bytes()
        digest = json.loads((out / "plan.json").read_text())["plan_digest"]
        done = command(*words[1:], "--resume", "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["results"][0]["whole"] == 4
        assert found["plan"]["digest"] == digest
        assert (out / "trials" / "1" / "records.parquet").read_bytes() == first
        assert "reused" in done.stderr

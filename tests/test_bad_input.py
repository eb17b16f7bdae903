"""Bad input gets one clear sentence that names the place and the next step, a non-zero exit, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentdyno import main
from capture.importers.weka import import_weka
from capture.shelf import Shelf
from capture.store import Store
from curate.build import build
from tests.fake_server import serving
from tests.sample_sessions import NO_PLOTS

ROOT = Path(__file__).parent.parent
NOTHING_LISTENS = "http://127.0.0.1:9"


def refused(*arguments: str | Path, code: int) -> str:
    """Run a command that must fail, and return the one sentence it says."""
    done = CliRunner().invoke(main, [str(word) for word in arguments])
    assert isinstance(done.exception, SystemExit), done.exception
    return sentence_of(done.exit_code, done.stdout, done.stderr, code)


def refused_in_a_process(*arguments: str | Path, code: int) -> str:
    """The same as a user would type it."""
    command = [sys.executable, "-m", "agentdyno", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return sentence_of(done.returncode, done.stdout, done.stderr, code)


def sentence_of(ended: int, stdout: str, stderr: str, code: int) -> str:
    assert ended == code, (ended, stderr)
    assert "Traceback" not in stderr
    assert stdout == ""
    (sentence,) = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    return sentence


@pytest.fixture(scope="module")
def dataset(weka_traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the smallest Weka session."""
    folder = tmp_path_factory.mktemp("small")
    key = Store.open(folder / "store", create=True).key
    Shelf(folder / "store").put_all(import_weka([weka_traces / "trace_0026.json"], key).trajectories)
    return build([folder / "store"], folder / "dataset", jobs=1, recipe=NO_PLOTS).folder


@pytest.mark.parametrize(
    "command",
    [
        ["capture", "sessions", "--store", "STORE"],
        ["capture", "show", "abc", "--store", "STORE"],
        ["curate", "build", "--store", "STORE", "--out", "OUT"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_missing_store_is_named(command: list[str], tmp_path: Path) -> None:
    places = {"STORE": tmp_path / "no-store", "OUT": tmp_path / "out"}
    sentence = refused(*[places.get(word, word) for word in command], code=2)
    assert str(tmp_path / "no-store") in sentence
    assert not (tmp_path / "out").exists()


def test_modules_of_the_users_folder_are_never_taken_for_ours(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("capture", "click", "random"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the folder was imported')\n")
    command = [Path(sys.executable).with_name("agentdyno"), "capture", "run", "--store", tmp_path / "store"]
    command += ["--upstream", NOTHING_LISTENS, "--", "true"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_truncated_trace_imports_nothing(weka_traces: Path, tmp_path: Path) -> None:
    whole = weka_traces / "trace_0026.json"
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole.read_bytes()[:2000])
    sentence = refused_in_a_process("capture", "import", "weka", whole, cut, "--store", tmp_path / "store", code=2)
    assert "cut.json" in sentence
    assert "character" in sentence
    assert not (tmp_path / "store").exists()


def test_an_unknown_import_format_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    sentence = refused("capture", "import", "fortran", tmp_path, "--store", tmp_path / "store", code=2)
    assert "weka" in sentence
    assert "agentperf-local" in sentence


def test_an_unknown_export_format_is_answered_with_the_known_ones(dataset: Path, tmp_path: Path) -> None:
    sentence = refused("curate", "export", dataset, "--format", "fortran", "--out", tmp_path / "out", code=2)
    assert "weka" in sentence
    assert not (tmp_path / "out").exists()


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    server = ["--url", NOTHING_LISTENS, "--model", "m"]
    sentence = refused("replay", "run", tmp_path / "none", *server, "--agents", "1", "--out", tmp_path / "run", code=3)
    assert str(tmp_path / "none") in sentence


def test_a_server_that_is_down_is_named(dataset: Path, tmp_path: Path) -> None:
    server = ["--url", NOTHING_LISTENS, "--model", "m"]
    sentence = refused("replay", "run", dataset, *server, "--agents", "1", "--out", tmp_path / "run", code=3)
    assert NOTHING_LISTENS in sentence
    assert not (tmp_path / "run").exists()


def test_a_model_that_the_server_lacks_is_answered_with_those_it_has(dataset: Path, tmp_path: Path) -> None:
    with serving() as server:
        where = ["--url", server.url, "--model", "gpt-17"]
        sentence = refused_in_a_process(
            "replay", "run", dataset, *where, "--agents", "1", "--out", tmp_path / "run", code=3
        )
    assert "gpt-17" in sentence
    assert "fake-model" in sentence
    assert not (tmp_path / "run").exists()


def test_a_server_that_ignores_ignore_eos_stops_an_exact_run(dataset: Path, tmp_path: Path) -> None:
    with serving(obey_ignore_eos=False, natural_tokens=5) as server:
        where = ["--url", server.url, "--model", "fake-model"]
        sentence = refused("replay", "run", dataset, *where, "--agents", "1", "--out", tmp_path / "run", code=3)
    assert "ignore_eos" in sentence
    assert "--length free" in sentence
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_exists_stays_untouched(dataset: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    server = ["--url", NOTHING_LISTENS, "--model", "m"]
    for command in (
        ["curate", "build", "--store", dataset.parent / "store", "--out", mine],
        ["curate", "export", dataset, "--format", "weka", "--out", mine],
        ["replay", "run", dataset, *server, "--agents", "1", "--out", mine],
        ["replay", "score", dataset, *server, "--slo", "aa-shape-2026-07/20", "--out", mine],
        ["demo", "--out", mine],
    ):
        assert str(mine) in refused_in_a_process(*command, code=2)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_an_unknown_service_level_is_answered_with_the_known_ones(dataset: Path, tmp_path: Path) -> None:
    server = ["--url", NOTHING_LISTENS, "--model", "m"]
    sentence = refused("replay", "score", dataset, *server, "--slo", "fast", "--out", tmp_path / "run", code=2)
    assert "aa-shape-2026-07/20" in sentence


def test_a_power_source_that_is_not_there_is_named(dataset: Path, tmp_path: Path) -> None:
    server = ["--url", NOTHING_LISTENS, "--model", "m"]
    power = ["--power", "hamster", "--out", tmp_path / "run"]
    sentence = refused("replay", "score", dataset, *server, "--slo", "aa-shape-2026-07/20", *power, code=2)
    assert "nvml" in sentence


def test_an_encoding_nobody_has_is_refused(dataset: Path, tmp_path: Path) -> None:
    store = dataset.parent / "store"
    sentence = refused("curate", "build", "--store", store, "--out", tmp_path / "o", "--tokenizer", "klingon", code=2)
    assert "o200k_base" in sentence
    assert not (tmp_path / "o").exists()

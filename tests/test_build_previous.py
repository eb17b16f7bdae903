"""A build does only what is new: over an earlier release, over its own unfinished folder, under another recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import curate.intake
from capture.shelf import Shelf
from capture.store import Store
from capture.trajectory import Trajectory
from curate.build import build, build_sources
from curate.command import curate as curate_group
from curate.dataset import Dataset
from curate.labels import Label, read_labels
from curate.manifest import MANIFEST, PRIVATE, DatasetFault, Drop, read_manifest
from curate.receipts import forget
from curate.recipe import Duplicates, Filters, Recipe, Sample, Splits, Truncate
from tests.sample_sessions import NO_PLOTS, make, seven, source, text_session

SECRET_WORDS = "the moon is made of green cheese"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 2)


def files(folder: Path, *, private: bool = True) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (private or PRIVATE not in path.parts)
    }


def sessions_of(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "data/sessions/*.parquet").sort("session_id")


# Over an earlier release ------------------------------------------------------------------------------------------


def test_a_store_grown_by_one_session_redoes_one_shard_only(tmp_path: Path) -> None:
    first = make(seven(), tmp_path / "one")
    assert (first.built, first.shards) == (7, 4)
    new = text_session("newest", turns=9)
    grown = [*seven()[:3], new, *seven()[3:]]  # read in the middle, where it would shift every shard behind it
    second = make(grown, tmp_path / "two", previous=tmp_path / "one")
    assert (second.built, second.reused_shards, second.shards) == (1, 4, 5)
    assert second.digest == make(grown, tmp_path / "anew").digest
    assert Dataset.open(tmp_path / "two").verify() == []
    old = {path.name: path for path in (tmp_path / "one/data").rglob("*.parquet") if path.parent.name == "sessions"}
    again = {path.name: path for path in (tmp_path / "two/data").rglob("*.parquet") if path.parent.name == "sessions"}
    assert len(again.keys() - old.keys()) == 1
    assert all(again[name].samefile(old[name]) for name in old)  # no copy where the file system can link
    assert Dataset.open(tmp_path / "one").verify() == []


def test_a_session_that_went_on_is_done_again_alone(tmp_path: Path) -> None:
    make(seven(), tmp_path / "one")
    changed = seven()
    changed[2] = text_session("session-2", turns=8)
    report = make(changed, tmp_path / "two", previous=tmp_path / "one")
    assert (report.built, report.kept) == (1, 7)
    assert report.digest == make(changed, tmp_path / "anew").digest
    assert sessions_of(tmp_path / "two")["num_requests"].to_list() == [2, 3, 9, 5, 6, 7, 3]


def test_withdrawn_sessions_stay_out_for_good(tmp_path: Path) -> None:
    made = seven()
    made[1] = text_session("session-1", secret=SECRET_WORDS)
    make(made, tmp_path / "one")
    (tmp_path / "one/withdrawn.jsonl").write_text('{"session_id": "session-1", "day": "2026-11-20"}\n')
    second = make(made, tmp_path / "two", previous=tmp_path / "one")
    assert second.built == 0
    assert second.drops == (Drop(stage="withdrawn", reason="withdrawn from an earlier release", n=1),)
    assert (second.read, second.kept) == (7, 6)
    assert "session-1" not in set(sessions_of(tmp_path / "two")["session_id"])
    for path in (tmp_path / "two").rglob("*.parquet"):  # its text is not among the private work either
        assert SECRET_WORDS not in str(pq.read_table(path).to_pylist())
    third = make(made, tmp_path / "three", previous=tmp_path / "two")
    assert third.drops == second.drops
    assert third.digest == second.digest


def test_a_damaged_list_of_withdrawals_stops_the_build(tmp_path: Path) -> None:
    make(seven()[:2], tmp_path / "one")
    (tmp_path / "one/withdrawn.jsonl").write_text("session-1\n")
    with pytest.raises(DatasetFault, match=r"withdrawn.jsonl, line 1, names no session_id"):
        make(seven()[:2], tmp_path / "two", previous=tmp_path / "one")
    assert not (tmp_path / "two").exists()


def test_another_store_joins_and_the_first_ones_work_stays(tmp_path: Path) -> None:
    make(seven()[:3], tmp_path / "one")
    both = [source(seven()[:3]), source(seven()[3:], store_id="store-b", key=b"b" * 32)]
    report = build_sources(
        both, tmp_path / "two", tokenizer="o200k_base", jobs=1, previous=tmp_path / "one", recipe=NO_PLOTS
    )
    assert (report.built, report.kept) == (4, 7)


def test_a_published_copy_has_no_work_and_the_report_says_so(tmp_path: Path) -> None:
    make(seven()[:2], tmp_path / "one")
    for path in sorted((tmp_path / "one" / PRIVATE).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    report = make(seven()[:2], tmp_path / "two", previous=tmp_path / "one")
    assert report.built == 2
    assert "keeps no work to go on from" in report.notes[0]


def test_damaged_work_of_the_earlier_release_is_done_again(tmp_path: Path) -> None:
    make(seven(), tmp_path / "one")
    spoiled = min((tmp_path / "one" / PRIVATE / "shards/requests").iterdir())
    spoiled.unlink()
    spoiled.write_bytes(b"spoiled")
    report = make(seven(), tmp_path / "two", previous=tmp_path / "one")
    assert report.built in (1, 2)
    assert Dataset.open(tmp_path / "two").verify() == []
    assert report.digest == read_manifest(tmp_path / "one").digest


def test_what_is_forgotten_is_done_again(tmp_path: Path) -> None:
    make(seven(), tmp_path / "d")
    forget(tmp_path / "d", {"session-1"})
    assert Dataset.open(tmp_path / "d").verify() == []  # the published files are their own
    assert make(seven(), tmp_path / "d").built == 2


def test_a_release_is_not_its_own_previous(tmp_path: Path) -> None:
    make(seven()[:1], tmp_path / "d")
    with pytest.raises(DatasetFault, match="cannot be its own previous release"):
        make(seven()[:1], tmp_path / "d", previous=tmp_path / "d")


# Under another recipe ---------------------------------------------------------------------------------------------


def test_words_of_the_card_statistics_and_filters_cost_no_work(tmp_path: Path) -> None:
    make(seven(), tmp_path / "one")
    recipe = Recipe(
        card="## Why\n\nBecause.",
        tags=("x",),
        pretty_name="P",
        filters=Filters(min_requests=4, not_harnesses=("pi",), max_output_tokens=300),
    )
    report = make(seven(), tmp_path / "two", previous=tmp_path / "one", recipe=recipe)
    assert report.built == 0
    assert report.kept == 3
    assert {drop.stage for drop in report.drops} == {"filter"}
    assert report.digest == make(seven(), tmp_path / "anew", recipe=recipe).digest
    assert read_manifest(tmp_path / "anew").drops == report.drops
    # What the filters left out is there again when they go, without work where it was done once.
    third = make(seven(), tmp_path / "three", previous=tmp_path / "two")
    assert (third.built, third.kept, third.drops) == (0, 7, ())
    assert third.digest == read_manifest(tmp_path / "one").digest
    # What was never built is built then.
    fourth = make(seven(), tmp_path / "four", previous=tmp_path / "anew")
    assert (fourth.built, fourth.kept, fourth.digest) == (4, 7, third.digest)


def test_what_rows_are_made_from_is_done_again(tmp_path: Path) -> None:
    make(seven(), tmp_path / "one")
    for number, recipe in enumerate(
        (Recipe(license="MIT"), Recipe(consent="signed"), Recipe(truncate=Truncate(message_bytes=1000)))
    ):
        report = make(seven(), tmp_path / f"d{number}", previous=tmp_path / "one", recipe=recipe)
        # The imported session has a licence of its own, so the recipe's changes nothing in it.
        assert report.built == (6 if recipe.license else 7)


def test_duplicates_and_samples_are_drawn_anew_without_work(tmp_path: Path) -> None:
    twins = [text_session("a"), text_session("b"), text_session("c", turns=5)]
    marked = make(twins, tmp_path / "mark", recipe=Recipe(duplicates=Duplicates(exact="mark")))
    rows = sessions_of(tmp_path / "mark")
    assert marked.kept == 3
    assert sorted(filter(None, rows["dup_role"])) == ["duplicate", "kept"]
    assert len(set(filter(None, rows["dup_cluster"]))) == 1
    dropped = make(
        twins, tmp_path / "drop", previous=tmp_path / "mark", recipe=Recipe(duplicates=Duplicates(exact="drop"))
    )
    assert (dropped.built, dropped.kept) == (0, 2)
    assert [(drop.stage, drop.n) for drop in dropped.drops] == [("duplicate", 1)]
    assert Dataset.open(tmp_path / "drop").verify() == []
    kept = make(twins, tmp_path / "keep", previous=tmp_path / "drop")
    assert (kept.built, kept.kept) == (0, 3)
    plain = make(twins, tmp_path / "plain")
    assert kept.digest == plain.digest != marked.digest
    sampled = make(
        twins,
        tmp_path / "sample",
        previous=tmp_path / "plain",
        recipe=Recipe(sample=Sample(by="num_requests", edges=(0, 5, 10), shares=(0.5, 0.5))),
    )
    assert (sampled.built, sampled.kept) == (0, 2)
    assert [(drop.stage, drop.n) for drop in sampled.drops] == [("sample", 1)]
    assert sessions_of(tmp_path / "sample")["num_requests"].to_list()[-1] == 6


def test_a_release_whose_contributor_got_busier_says_so_without_work(tmp_path: Path) -> None:
    def at(peak: int) -> list[Trajectory]:
        return [replace(each, contributor="someone", contributor_peak_agents=peak) for each in seven()]

    make(at(2), tmp_path / "one")
    report = make(at(3), tmp_path / "two", previous=tmp_path / "one")
    assert report.built == 0
    assert set(sessions_of(tmp_path / "two")["contributor_peak_agents"]) == {3}
    assert report.digest == make(at(3), tmp_path / "anew").digest
    assert Dataset.open(tmp_path / "two").verify() == []
    for table in ("requests", "tool_calls"):  # which do not tell of it
        one, two = ({path.name for path in (tmp_path / name / "data" / table).iterdir()} for name in ("one", "two"))
        assert one == two
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two/data").rglob("*.parquet")}
    assert make(at(3), tmp_path / "two").built == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "two/data").rglob("*.parquet")} == before


# Splits and labels ------------------------------------------------------------------------------------------------


def test_each_shard_is_of_one_split_and_the_card_knows_them(tmp_path: Path) -> None:
    made = [text_session(f"session-{n}") for n in range(12)]
    recipe = Recipe(splits=Splits(shares={"train": 0.5, "test": 0.5}))
    make(made, tmp_path / "d", recipe=recipe)
    manifest = read_manifest(tmp_path / "d")
    assert manifest.splits == ("train", "test")
    assert sum(manifest.rows_of("sessions", split) for split in manifest.splits) == 12
    for shard in manifest.shards:
        for table, entry in shard.files.items():
            assert entry.path.startswith(f"data/{table}/{shard.split}-")
        rows = pq.read_table(tmp_path / "d" / shard.files["sessions"].path, columns=["split", "session_id"])
        assert set(rows.column("split").to_pylist()) == {shard.split}
        assert rows.column("session_id").to_pylist() == [entry.session_id for entry in shard.sessions]
    back = {each.session_id: len(each.requests) for each in Dataset.open(tmp_path / "d").trajectories()}
    assert back == dict.fromkeys((each.session_id for each in made), 4)
    # Only sessions that another division moves are done again.
    moved = make(
        made, tmp_path / "e", previous=tmp_path / "d", recipe=Recipe(splits=Splits(shares={"train": 0.6, "test": 0.4}))
    )
    before, after = (sessions_of(tmp_path / name)["split"] for name in ("d", "e"))
    assert moved.built == (before != after).sum() < 6


def test_labels_become_columns_and_a_name_becomes_a_hash(tmp_path: Path) -> None:
    lines = [
        {
            "session_id": "session-0",
            "outcome": "success",
            "outcome_source": "tests",
            "resolved": True,
            "task_id": "t-1",
        },
        {"session_id": "session-1", "repo_license": "MIT", "license": "CC0-1.0", "consent": "signed"},
        {"session_id": "session-2", "contributor": "ada@example.com", "exit_status": "ghp_" + "a1B2c3D4e5" * 4},
        {"session_id": "elsewhere", "outcome": "failure"},
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    labels = read_labels(path)
    report = make(seven(), tmp_path / "d", labels=labels, recipe=Recipe(license="CC-BY-4.0", consent="all agreed"))
    assert report.notes == ("1 of 4 labels are about sessions that no store holds",)
    rows = {row["session_id"]: row for row in sessions_of(tmp_path / "d").to_dicts()}
    first, second, third, free = (rows[f"session-{name}"] for name in "012f")
    assert (first["outcome"], first["outcome_source"], first["resolved"]) == ("success", "tests", True)
    assert first["task_id"] == "t-1"
    assert (first["license"], first["consent"]) == ("CC-BY-4.0", "all agreed")
    assert (second["repo_license"], second["license"], second["consent"]) == ("MIT", "CC0-1.0", "signed")
    assert (second["outcome"], second["resolved"]) == ("unknown", None)
    assert free["license"] == "Apache-2.0"  # its own
    assert len(third["contributor"]) == 16
    for data in files(tmp_path / "d").values():
        assert b"ada@example.com" not in data
        assert b"ghp_a1B2c3D4e5" not in data
    again = make(
        seven(),
        tmp_path / "e",
        previous=tmp_path / "d",
        labels={**labels, "session-0": Label(outcome="failure")},
        recipe=Recipe(license="CC-BY-4.0", consent="all agreed"),
    )
    assert again.built == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2: is no JSON"),
        ("[]", "line 2: must be an object with a text session_id"),
        ('{"session_id": "a", "verdict": 1}', "unknown key 'verdict'; known are session_id, outcome"),
        ('{"session_id": "a", "outcome": "won"}', "outcome 'won' is none of success, failure"),
        ('{"session_id": "a", "resolved": "yes"}', "line 2: "),
        ('{"session_id": "s", "task_id": "other"}', "session 's' is labelled twice, unlike"),
        (b"\xff\xfe", "line 2: is no JSON"),
    ],
)
def test_bad_labels_are_named_by_line(tmp_path: Path, line: str | bytes, sentence: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b'{"session_id": "s"}\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(DatasetFault, match=sentence):
        read_labels(path)


# The same bytes; kills --------------------------------------------------------------------------------------------


def test_two_builds_are_the_same_in_every_byte(tmp_path: Path) -> None:
    recipe = Recipe(
        splits=Splits(shares={"train": 0.7, "test": 0.3}),
        duplicates=Duplicates(exact="drop", near="mark"),
        card="Words.",
    )
    made = [*seven(), text_session("twin-of-2", turns=3)]
    one = make(made, tmp_path / "one", jobs=1, recipe=recipe, plots=True)
    two = make(made, tmp_path / "two", jobs=2, recipe=recipe, plots=True)
    assert one.digest == two.digest
    first, second = files(tmp_path / "one"), files(tmp_path / "two")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_private_work_is_the_owners_alone(tmp_path: Path) -> None:
    make(seven(), tmp_path / "d")
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d" / PRIVATE).stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "d" / PRIVATE / "receipts").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert not any(PRIVATE in entry.path for entry in Dataset.open(tmp_path / "d").manifest.files)


# One process that has loaded everything forks each build: most of the time of a short build is its start.
KILLED = """
import os, signal, sys
from pathlib import Path
import curate.intake
from curate.recipe import Duplicates, Recipe
from curate.tokens import load_encoding
from tests.sample_sessions import make, seven, text_session
load_encoding("o200k_base")
curate.intake.SHARD_SESSIONS = 2
def counted(change):
    def wrapper(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **named)
    return wrapper
for name in ("replace", "unlink", "rename"):
    setattr(Path, name, counted(getattr(Path, name)))
os.link = counted(os.link)
recipe = Recipe(duplicates=Duplicates(exact="drop"))
for out, left in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    child = os.fork()
    if child == 0:
        make([*seven(), text_session("twin-of-2", turns=3)], Path(out), recipe=recipe)
        print("left", left, flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def changes_until(*builds: tuple[Path, int]) -> list[str]:
    """Build each folder in a process that dies at its nth change of a file; what each said and how it ended."""
    arguments = [str(word) for build in builds for word in build]
    run = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def killed_and_resumed(builds: dict[Path, int], whole: dict[str, bytes]) -> None:
    assert changes_until(*builds.items()) == [str(-signal.SIGKILL)] * len(builds)
    for folder in builds:
        build_whole(folder)
        assert {name for name, data in files(folder).items() if whole.get(name) != data} == set()
        assert files(folder).keys() == whole.keys()


def build_whole(folder: Path) -> None:
    recipe = Recipe(duplicates=Duplicates(exact="drop"))
    make([*seven(), text_session("twin-of-2", turns=3)], folder, recipe=recipe)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    build_whole(tmp_path / "whole")
    return files(tmp_path / "whole")


def test_a_kill_in_the_middle_costs_nothing_that_was_done(tmp_path: Path, whole: dict[str, bytes]) -> None:
    killed_and_resumed({tmp_path / "d": 30}, whole)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_what_the_same_command_finishes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    said, code = changes_until((tmp_path / "count", 10**6))
    assert code == "0"
    total = 10**6 - int(said.removeprefix("left "))
    kills = range(1, total + 1, max(1, total // 12))
    killed_and_resumed({tmp_path / f"d{number}": number for number in kills}, whole)


# The command ------------------------------------------------------------------------------------------------------


def kept_store(path: Path) -> Path:
    Store.open(path, create=True)
    Shelf(path).put_all([replace(each, source="claude-code-log") for each in seven()])
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(curate_group, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_recipe_names_stores_and_labels_and_json_tells_all(tmp_path: Path) -> None:
    kept_store(tmp_path / "traces")
    (tmp_path / "labels.jsonl").write_text('{"session_id": "session-0", "outcome": "success"}\n')
    recipe = tmp_path / "team.toml"
    plain = "[statistics]\nplots = false\n"
    recipe.write_text('stores = ["traces"]\nlabels = "labels.jsonl"\n[filters]\noutcomes = ["success"]\n' + plain)
    code, out, err = run("build", "--recipe", recipe, "--out", tmp_path / "d", "--jobs", 1, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["folder"], said["read"], said["kept"]) == (str(tmp_path / "d"), 7, 1)
    assert [drop["stage"] for drop in said["drops"]] == ["filter"]
    assert "1 of 7 sessions kept" in err
    assert "left out (filter): " in err
    (tmp_path / "all.toml").write_text('stores = ["traces"]\n' + plain)
    arguments = ("--out", tmp_path / "e", "--previous", tmp_path / "d", "--jobs", 1)
    code, out, err = run("build", "--recipe", tmp_path / "all.toml", *arguments)
    assert (code, out) == (0, f"{tmp_path / 'e'}\n"), err
    assert "7 of 7 sessions kept" in err


def test_ctrl_c_leaves_a_folder_that_goes_on_and_says_so(tmp_path: Path) -> None:
    store = kept_store(tmp_path / "traces")
    code = (
        "import os, signal, sys, curate.pool, curate.shard\n"
        "from agentdyno import main\n"
        "real = curate.pool.build_shard\n"
        "def stop(task):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(task)\n"
        "curate.pool.build_shard = stop\n"
        "main()\n"
    )
    arguments = ["curate", "build", "--store", str(store), "--out", str(tmp_path / "d"), "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"stopped; what is done stays in {tmp_path / 'd'}, and the same command goes on from there"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "d" / MANIFEST).exists()
    assert build([store], tmp_path / "d", jobs=1, recipe=NO_PLOTS).kept == 7

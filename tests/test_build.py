"""Stores become dataset folders that open everywhere, continue after a kill and never overwrite what is not theirs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import curate.intake
from capture.importers.agentperf_local import import_agentperf_local
from capture.importers.weka import import_weka
from capture.journal import JournalWriter
from capture.sessions import read_sessions
from capture.shelf import Shelf
from capture.store import Store
from curate.build import build
from curate.command import curate as curate_group
from curate.dataset import Dataset
from curate.manifest import MANIFEST, WORK, DatasetFault
from curate.published import published
from curate.shard import row_groups
from curate.table import TABLES
from tests.sample_sessions import NO_PLOTS, content_free_session, make, seven, text_session

TOKEN = "ghp_" + "a1B2c3D4e5" * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, weka_traces: Path) -> Path:
    """A store that holds what the importers bring: 35 Weka sessions and 8 agent tasks with text."""
    path = tmp_path_factory.mktemp("import") / "store"
    key = Store.open(path, create=True).key
    Shelf(path).put_all(
        [*import_weka([weka_traces], key).trajectories, *import_agentperf_local(None, key).trajectories]
    )
    return path


@pytest.fixture(scope="module")
def imported(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "dataset"
    report = build([store], out, jobs=1, recipe=NO_PLOTS)
    assert report.dropped == {}
    assert report.rows["sessions"] == 43
    return out


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What comes out ---------------------------------------------------------------------------------------------------


def test_all_weka_sessions_and_agent_tasks_build_and_read_back(imported: Path, store: Path) -> None:
    dataset = Dataset.open(imported)
    back = {trajectory.session_id: trajectory for trajectory in dataset.trajectories()}
    assert tuple(back) == dataset.session_ids
    for trajectory in read_sessions(store, []):
        found = back[trajectory.session_id]
        if trajectory.source == "weka":
            assert found == published(trajectory)
        else:  # our own counts and at most a redaction came in between
            assert len(found.pool) == len(trajectory.pool)
            assert found.tool_calls == trajectory.tool_calls
            assert [request.prompt_spans for request in found.requests] == [
                request.prompt_spans for request in trajectory.requests
            ]
            assert all(request.tools_tokens is not None for request in found.requests)


def test_token_sums_and_sharing_of_the_weka_traces_are_exact(imported: Path, weka_traces: Path) -> None:
    requests = pl.read_parquet(imported / "data/requests/*.parquet")
    sessions = pl.read_parquet(imported / "data/sessions/*.parquet", columns=["session_id", "source", "source_ref"])
    ours = requests.join(sessions.filter(pl.col("source") == "weka"), on="session_id")
    told_in = told_out = told_requests = told_blocks = 0
    for path in weka_traces.glob("trace_*.json"):
        for entry in json.loads(path.read_text())["requests"]:
            for call in entry["requests"] if entry["type"] == "subagent" else [entry]:
                told_in += call["in"]
                told_out += call["out"]
                told_requests += 1
                told_blocks += len(call.get("hash_ids", ()))
    assert len(ours) == told_requests
    assert ours["prompt_tokens"].sum() == told_in
    assert ours["completion_tokens"].sum() == told_out
    assert ours["block_hashes"].list.len().sum() == told_blocks


def test_redaction_leaves_no_token_in_any_file(tmp_path: Path) -> None:
    report = make([text_session(secret=TOKEN)], tmp_path / "d")
    assert report.redactions == {"github_token": 4}
    for path in (tmp_path / "d").rglob("*.parquet"):
        assert TOKEN not in str(pq.read_table(path).to_pylist())
    (row,) = pq.read_table(next((tmp_path / "d/data/sessions").glob("*"))).to_pylist()
    assert row["redaction_counts"] == [{"rule": "github_token", "n": 4}]
    assert [message["redactions"] for message in row["messages"]][:4] == [0, 1, 0, 1]


def test_parquet_is_written_for_the_hub(imported: Path) -> None:
    for path in imported.rglob("*.parquet"):
        with pq.ParquetFile(path) as file:
            for group in range(file.metadata.num_row_groups):
                found = file.metadata.row_group(group)
                assert found.total_byte_size <= 64 << 20
                assert found.column(0).compression == "ZSTD"
                assert found.column(0).has_offset_index
    assert "arrow.json" not in str([pq.read_schema(path) for path in imported.rglob("*.parquet")])


def test_row_groups_are_cut_by_size_and_never_inside_a_row() -> None:
    table = pa.table({"text": ["a" * 1000] * 10 + ["b" * 5000]})
    pieces = list(row_groups(table, 3000))
    assert pa.concat_tables(pieces).equals(table)
    assert all(piece.nbytes <= 3000 or piece.num_rows == 1 for piece in pieces)


LOAD = """
import json, sys
from datasets import Features, load_dataset
from datasets.packaged_modules.json.json import has_agent_traces_markers
found = {}
for name in ("sessions", "requests", "tool_calls"):
    data = load_dataset(sys.argv[1], name, split="train")
    assert not has_agent_traces_markers(data.features), name
    data[0], data[len(data) - 1]
    found[name] = [data.column_names, len(data)]
print(json.dumps(found))
"""


def test_datasets_opens_every_table_with_every_column(imported: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(imported)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    rows = Dataset.open(imported).manifest.rows
    for table in TABLES:
        assert found[table.name] == [[column.name for column in table.columns], rows[table.name]]


def test_datasets_opens_a_table_that_is_empty_in_some_shards(tmp_path: Path) -> None:
    """A row group without rows, as Arrow writes an empty table, stops `load_dataset`; a table without rows does too."""
    make([text_session(), content_free_session()], tmp_path / "d")
    (free,) = make([content_free_session()], tmp_path / "free").folder.glob("data/tool_calls/*")
    assert pq.read_table(free).num_rows == pq.ParquetFile(free).metadata.num_row_groups == 0
    shutil.copy(free, tmp_path / "d/data/tool_calls/0.parquet")
    wanted = {("d", "tool_calls"): 3, ("free", "sessions"): 1, ("free", "requests"): 3}
    load = (
        "import sys; from datasets import load_dataset\n"
        "for folder, name in zip(sys.argv[1::2], sys.argv[2::2]): print(len(load_dataset(folder, name, split='train')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", load, *(word for folder, name in wanted for word in (str(tmp_path / folder), name))],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert [int(line) for line in run.stdout.split()] == list(wanted.values()), run.stderr


def test_drafts_of_a_killed_build_do_not_stay(tmp_path: Path) -> None:
    out = make([text_session()], tmp_path / "d").folder
    for name in ("README.md", "stats.json", MANIFEST):
        (out / f".{name}.4711").write_text("half")
    make([text_session()], out, plots=True)
    assert {path.name for path in out.iterdir()} == {".private", "README.md", "data", MANIFEST, "plots", "stats.json"}


def test_text_that_looks_like_a_placeholder_is_no_finding(tmp_path: Path) -> None:
    make([text_session(secret="<SECRET:github_token:abcdef>")], tmp_path / "d")
    (row,) = pq.read_table(next((tmp_path / "d/data/sessions").glob("*"))).to_pylist()
    assert row["redaction_counts"] == []
    assert {message["redactions"] for message in row["messages"]} == {0}


def test_polars_opens_every_table_with_every_column(imported: Path) -> None:
    for table in TABLES:
        frame = pl.read_parquet(imported / "data" / table.name / "*.parquet")
        assert frame.columns == [column.name for column in table.columns]
    sessions = pl.read_parquet(imported / "data/sessions/*.parquet")
    roles = sessions["messages"].drop_nulls().list.eval(pl.element().struct.field("role")).explode().unique()
    assert {"system", "user", "assistant", "tool"} >= set(roles) > {"user"}


SEEN = "mondays-are-quiet-in-the-old-harbour"  # no key shape: only the recorder can know it


def record(store: Path, turns: int, *, key: str | None) -> None:
    """A chat of some turns as the recorder writes it: a second per answer, two between them."""
    writer = JournalWriter(store, key=Store.open(store, create=True).key, meta={})
    messages: list[dict[str, object]] = [{"role": "user", "content": f"Deploy {turns}"}]
    for turn in range(turns):
        start = (1 + 3 * turn) * 1_000_000_000
        use = {"id": f"c{turn}", "type": "function", "function": {"name": "bash", "arguments": '{"command": "env"}'}}
        answer = {"role": "assistant", "content": None, "tool_calls": [use]}
        body = {"model": "m", "messages": messages}
        reply = {
            "id": f"r{turns}{turn}",
            "object": "chat.completion",
            "model": "m",
            "choices": [{"index": 0, "message": answer, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 10 + turn, "completion_tokens": 5, "total_tokens": 15 + turn},
        }
        headers = [(b"content-type", b"application/json")]
        if key:
            headers.append((b"authorization", f"Bearer {key}".encode()))
        number = writer.send(
            at_ns=start,
            connection="1",
            method="POST",
            host="127.0.0.1:1",
            path="/v1/chat/completions",
            headers=tuple(headers),
        )
        writer.sent(number, at_ns=start, body=json.dumps(body).encode())
        end = start + 1_000_000_000
        writer.headers(number, at_ns=end, status=200, headers=((b"content-type", b"application/json"),))
        writer.read(number, end, json.dumps(reply).encode())
        writer.end(number, at_ns=end, outcome="complete")
        messages = [*messages, answer, {"role": "tool", "tool_call_id": f"c{turn}", "content": f"KEY IS {SEEN} OK"}]
    writer.close()


def test_a_recorded_store_builds_without_the_key_that_passed_through_it(tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "d"
    record(store, 2, key=None)
    first = build([store], out, jobs=1, recipe=NO_PLOTS)
    assert first.rows == {"sessions": 1, "requests": 2, "tool_calls": 2}
    record(store, 3, key=SEEN)  # the store grows, and now its recorder has seen the key
    second = build([store], out, jobs=1, recipe=NO_PLOTS)
    assert second.rows == {"sessions": 2, "requests": 5, "tool_calls": 5}
    assert second.reused_shards == 0  # what is known now must be taken out of the old session too
    for path in out.rglob("*.parquet"):
        assert SEEN not in str(pq.read_table(path).to_pylist())
    longer = max(Dataset.open(out).trajectories(), key=lambda trajectory: len(trajectory.requests))
    assert [request.t_send_us for request in longer.requests] == [0, 3_000_000, 6_000_000]
    assert [call.wall_us for call in longer.tool_calls] == [2_000_000, 2_000_000, None]
    assert [request.gap_kind for request in longer.requests] == ["none", "tool", "tool"]
    assert [request.exchange_id for request in longer.requests] == [None] * 3
    assert second.digest == build([store], tmp_path / "again", jobs=1, recipe=NO_PLOTS).digest


# The folder -------------------------------------------------------------------------------------------------------


def test_the_same_build_again_changes_no_table_and_no_digest(tmp_path: Path) -> None:
    out = tmp_path / "d"
    first = make(seven(), out)
    before = snapshot(out)
    second = make(seven(), out)
    assert (second.digest, second.reused_shards, second.shards) == (first.digest, 1, 1)
    after = snapshot(out)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    assert all(after[name] == before[name] for name in before if name.endswith(".parquet"))


def test_a_grown_store_refreshes_the_folder_and_leaves_no_stray_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 3)
    out = tmp_path / "d"
    make(seven()[:4], out)
    grown = make(seven(), out)
    assert (grown.reused_shards, grown.shards, grown.built) == (2, 3, 3)
    assert grown.rows["sessions"] == 7
    assert len(list((out / "data/sessions").iterdir())) == 3
    assert Dataset.open(out).verify() == []
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 512)
    assert make(seven(), tmp_path / "one shard").digest == grown.digest


def refused(out: Path, sentence: str, **changes: str) -> None:
    before = snapshot(out) if out.is_dir() else out.read_bytes()
    with pytest.raises(DatasetFault, match=sentence):
        make([text_session()], out, **changes)
    assert (snapshot(out) if out.is_dir() else out.read_bytes()) == before


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "README.md").write_text("mine")
    refused(foreign, "is not a build of ours; choose a new folder")
    file = tmp_path / "file"
    file.write_text("mine")
    refused(file, "is a file; choose a new folder")


def test_a_dataset_of_other_inputs_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "d"
    make([text_session()], out)
    refused(out, "built from tokenizer o200k_base", tokenizer="cl100k_base")
    refused(out, "built from other stores", store_id="store-b")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert make([text_session()], tmp_path).rows["sessions"] == 1


def test_nothing_to_build_from_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DatasetFault, match="no session to build from: the journal is empty"):
        make([], tmp_path / "d", problems=("the journal is empty",))
    assert not (tmp_path / "d").exists()


def test_a_session_that_two_stores_hold_is_built_once(tmp_path: Path) -> None:
    near, behind = tmp_path / "near", tmp_path / "behind"
    record(near, 2, key=None)
    record(behind, 2, key=None)
    record(behind, 3, key=None)
    report = build([near, behind], tmp_path / "d", recipe=NO_PLOTS)
    assert (report.rows["sessions"], report.rows["requests"]) == (2, 5)
    assert report.dropped == {"same session as one that another store's recorder saw": 1}


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    broken = replace(text_session("broken"), requests=(replace(text_session().requests[0], prompt_spans=((0, 99),)),))
    report = make(
        [text_session("a"), text_session("a"), replace(text_session("b"), requests=()), broken],
        tmp_path / "d",
        problems=("journal-1: row 7 is cut",),
    )
    assert report.rows["sessions"] == 1
    assert report.dropped == {
        "same session as one read before": 1,
        "holds no request": 1,
        "a prompt reaches beyond the session's messages": 1,
        "journal-1: row 7 is cut": 1,
    }


# Kills and processes ----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import curate.intake
from tests.sample_sessions import make, seven
curate.intake.SHARD_SESSIONS = 2
def kill(progress):
    if progress.shards == 2:
        os.kill(os.getpid(), signal.SIGKILL)
make(seven(), Path(sys.argv[1]), on_progress=kill)
"""


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "d"
    run = subprocess.run([sys.executable, "-c", KILLED, str(out)], capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    with pytest.raises(DatasetFault, match="unfinished build"):
        Dataset.open(out)
    refused(out, "built from other stores", store_id="store-b")
    done = {name: entry for name, entry in snapshot(out).items() if name.endswith(".parquet")}
    assert len(done) == 6
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 2)
    report = make(seven(), out)
    assert (report.reused_shards, report.shards) == (2, 4)
    after = snapshot(out)
    assert all(after[name] == entry for name, entry in done.items())
    assert report.digest == make(seven(), tmp_path / "whole").digest
    assert not (out / WORK).exists()


def test_a_damaged_shard_is_done_again(tmp_path: Path) -> None:
    out = tmp_path / "d"
    first = make(seven(), out)
    next((out / "data/requests").iterdir()).write_bytes(b"spoiled")
    with pytest.raises(DatasetFault, match="was changed since it was built"):
        Dataset.open(out)
    second = make(seven(), out)
    assert (second.digest, second.reused_shards) == (first.digest, 0)
    assert Dataset.open(out).verify() == []


def test_processes_build_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 2)
    alone = make(seven(), tmp_path / "alone", jobs=1)
    together = make(seven(), tmp_path / "together", jobs=2)
    assert together.digest == alone.digest
    parquet = [
        {name: data for name, (_, data) in snapshot(tmp_path / folder).items() if name.endswith(".parquet")}
        for folder in ("alone", "together")
    ]
    assert parquet[0] == parquet[1]


# Commands ---------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(curate_group, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_build_prints_the_path_and_talks_on_stderr(store: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "team.toml"
    recipe.write_text('pretty_name = "Team traces"\nlicense = "CC-BY-4.0"\ncard = "card.md"\n')
    (tmp_path / "card.md").write_text("## Why\n\nBecause.\n")
    code, out, err = run("build", "--store", store, "--out", tmp_path / "d", "--recipe", recipe, "--jobs", 1)
    assert (code, out) == (0, f"{tmp_path / 'd'}\n"), err
    assert "43 sessions, " in err
    assert "## Why\n\nBecause." in (tmp_path / "d" / "README.md").read_text()
    code, out, err = run("stats", tmp_path / "d")
    assert code == 0
    assert "context_max_tokens" in out
    code, out, err = run("stats", tmp_path / "d", "--json")
    assert json.loads(out)["rows"]["sessions"] == 43
    assert str(tmp_path) not in (tmp_path / "d" / MANIFEST).read_text()
    code, out, err = run("export", tmp_path / "d", "--format", "weka", "--out", tmp_path / "traces")
    assert (code, out) == (0, f"{tmp_path / 'traces'}\n"), err
    assert len(list((tmp_path / "traces").iterdir())) == 43
    code, out, err = run("export", tmp_path / "d", "--format", "messages", "--out", tmp_path / "m.jsonl")
    assert code == 0, err
    assert "left out: sessions without text (35×)" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("build", "--store", "{tmp}/none", "--out", "{tmp}/d"), "no store at"),
        (("build", "--store", "{store}", "--out", "{tmp}/d", "--tokenizer", "words"), "unknown encoding 'words'"),
        (("build", "--store", "{store}", "--out", "{tmp}/d", "--recipe", "{tmp}/none.toml"), "none.toml"),
        (("build", "--store", "{store}", "--out", "{store}/set"), "lies in the store"),
        (("stats", "{tmp}/none"), "no such folder"),
        (("export", "{tmp}/none", "--format", "weka", "--out", "{tmp}/e"), "no such folder"),
    ],
    ids=["no store", "tokenizer", "recipe", "foreign folder", "stats", "export"],
)
def test_bad_input_gets_one_sentence_and_code_2(
    store: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = run(*(argument.format(tmp=tmp_path, store=store) for argument in arguments))
    assert (code, out) == (2, "")
    assert sentence in err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("licence = 'MIT'", "unknown key 'licence'"),
        ("license = 3", "license must be a text"),
        ("tags = 'x'", "tags must be a list, not a text"),
        ("card = 'none.md'", "card text .*none.md cannot be read"),
        ("name = ", "Invalid value"),
    ],
    ids=["unknown key", "number", "no list", "no card", "no TOML"],
)
def test_a_bad_recipe_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    from curate.recipe import read_recipe

    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_recipe(tmp_path / "r.toml")

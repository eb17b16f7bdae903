"""A built folder opens with `datasets`, polars, duckdb and pyarrow alike, and none of the known traps catches it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import curate.shard
from capture.trajectory import Trajectory
from curate.exports.one_line import one_line
from curate.manifest import read_manifest
from curate.recipe import Recipe, Splits
from curate.release import write_release_papers
from curate.staging import stage
from curate.table import TABLES
from tests.package_environment import python_with
from tests.released import RECIPE, approved
from tests.sample_sessions import content_free_session, make, text_session

datasets = pytest.importorskip("datasets")
from datasets.packaged_modules.json.json import has_agent_traces_markers  # noqa: E402

ENDS = "line\u2028ends\x85of other readers"
TWO = Recipe(splits=Splits(shares={"train": 0.6, "test": 0.4}))
WHOLE = replace(RECIPE, splits=TWO.splits)


def sessions() -> list[Trajectory]:
    return [text_session(f"session-{n}", secret=ENDS, turns=n + 1) for n in range(6)] + [content_free_session()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as they are built and as they leave."""
    root = tmp_path_factory.mktemp("opens")
    make(sessions(), root / "full", recipe=TWO, plots=True)
    make([content_free_session(f"session-{n}", turns=n + 1) for n in range(3)], root / "no-tools", recipe=RECIPE)
    make(sessions(), root / "source", recipe=WHOLE)
    approved(root / "source")
    for tier in ("text", "content-free"):
        manifest = stage(root / "source", tier, root / tier)
        write_release_papers(root / tier, manifest)
    return {name: root / name for name in ("full", "no-tools", "text", "content-free")}


NAMES = ("full", "no-tools", "text", "content-free")


def configs(folder: Path) -> dict[str, dict[str, str]]:
    """Patterns by config and split, as the card tells them."""
    card = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    return {
        config["config_name"]: {one["split"]: one["path"] for one in config["data_files"]}
        for config in yaml.safe_load(card)["configs"]
    }


def plain(value: Any) -> Any:
    """A value in words that all readers share: moments as microseconds, no number that is none."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1e6)
    assert not (isinstance(value, float) and math.isnan(value))
    return value


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(map(plain, rows), key=lambda row: json.dumps(row, sort_keys=True, default=str))


def by_pyarrow(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(pattern))]).to_pylist()


def by_polars(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return pl.read_parquet(folder / pattern).to_dicts()


def by_duckdb(folder: Path, pattern: str) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        # As an Arrow table: duckdb's own rows need a package for time zones.
        return connection.read_parquet(str(folder / pattern)).to_arrow_table().to_pylist()


@pytest.mark.parametrize("name", NAMES)
def test_all_readers_see_the_same_rows(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders[name]
    told = read_manifest(folder).rows
    seen: dict[str, int] = {}
    for config, splits in configs(folder).items():
        for split, pattern in splits.items():
            expected = in_order(by_pyarrow(folder, pattern))
            assert expected
            seen[config] = seen.get(config, 0) + len(expected)
            readers: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
                "polars": lambda pattern=pattern: by_polars(folder, pattern),
                "duckdb": lambda pattern=pattern: by_duckdb(folder, pattern),
                # By the folder's name, as one would by a repository's.
                "datasets": lambda config=config, split=split: datasets.load_dataset(
                    str(folder), config, split=split, cache_dir=str(tmp_path / "cache")
                ).to_list(),
            }
            for reader, read in readers.items():
                assert in_order(read()) == expected, (reader, config, split)
    assert seen == {table: n for table, n in told.items() if n}
    assert ("tool_calls" in seen) == (name != "no-tools")


def test_all_splits_at_once_and_the_default_config(folders: dict[str, Path], tmp_path: Path) -> None:
    """`load_dataset(DIR)` opens sessions, whatever else lies in the folder (`.private` has tables of its own)."""
    folder = folders["full"]
    assert any(path.suffix == ".parquet" for path in (folder / ".private").rglob("*"))
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert set(found) == {"train", "test"}
    ids = {row["session_id"] for split in found.values() for row in split}
    assert ids == {session.session_id for session in sessions()}


@pytest.mark.parametrize("name", NAMES)
def test_patterns_meet_the_tables_and_nothing_else(name: str, folders: dict[str, Path]) -> None:
    folder = folders[name]
    shards = {entry.path for shard in read_manifest(folder).shards for entry in shard.files.values() if entry.rows}
    met: list[str] = []
    for splits in configs(folder).values():
        for pattern in splits.values():
            met += [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]
    assert sorted(met) == sorted(shards)
    others = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - shards
    assert {"README.md", "manifest.json", "stats.json"} <= others
    if name == "text":
        assert any(path.startswith("traces/") for path in others)
    if name == "full":
        assert any(path.startswith("plots/") for path in others)
    if name in ("text", "content-free"):
        assert not any(path.startswith((".private", ".build")) for path in others)


def fields(type_: pa.DataType) -> Iterator[pa.DataType]:
    """A type and all types inside it."""
    yield type_
    for at in range(type_.num_fields):
        yield from fields(type_.field(at).type)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_plain_parquet(name: str, folders: dict[str, Path]) -> None:
    """Typed columns, small row groups, a page index, no type that only some readers know."""
    files = sorted((folders[name] / "data").rglob("*.parquet"))
    assert files
    for path in files:
        with pq.ParquetFile(path) as file:
            assert b"ARROW:extension" not in path.read_bytes()
            for field in file.schema_arrow:
                for type_ in fields(field.type):
                    assert not isinstance(type_, pa.BaseExtensionType), field.name
                    assert not pa.types.is_null(type_), field.name  # a column of nulls alone has its type too
                    assert not pa.types.is_large_string(type_), field.name
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                assert group.total_byte_size <= 64 << 20
                for column in range(group.num_columns):
                    assert group.column(column).has_offset_index
                    assert group.column(column).compression == "ZSTD"


def test_row_groups_keep_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below what the Hub's viewer takes (286 MiB) by far; shown with a smaller limit than the real one."""
    assert curate.shard.ROW_GROUP_BYTES <= 64 << 20
    monkeypatch.setattr(curate.shard, "ROW_GROUP_BYTES", 10_000)
    make([text_session(f"session-{n}", turns=12) for n in range(8)], tmp_path / "d")
    groups = 0
    for path in sorted((tmp_path / "d" / "data").rglob("*.parquet")):
        metadata = pq.read_metadata(path)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups += 1
            assert group.num_rows == 1 or group.total_byte_size <= 20_000
    assert groups > 6


# Traps of `datasets`: some names of columns turn a table into something else.


@pytest.mark.parametrize("name", NAMES)
def test_no_table_is_taken_for_an_agents_log(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Not even where somebody turns the rows into JSON lines, which `datasets` interprets."""
    folder = folders[name]
    for config, splits in configs(folder).items():
        rows = [row for pattern in splits.values() for row in in_order(by_pyarrow(folder, pattern))]
        path = tmp_path / f"{config}.jsonl"
        path.write_bytes(b"".join(one_line(json.dumps(row).encode()) + b"\n" for row in rows))
        found = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert not has_agent_traces_markers(found.features)
        assert set(found.column_names) == set(rows[0])
        assert found.num_rows == len(rows)
    for table in TABLES:
        names = {column.name for column in table.columns}
        for taken in ({"id", "source", "model", "system_prompt", "messages"}, {"type", "message"}, {"type", "payload"}):
            assert not taken <= names


HERMES = [
    {"id": str(n), "source": "a", "model": "m", "system_prompt": "s", "duration_us": n,
     "messages": [{"role": "user", "content": "Hello."}]}
    for n in range(3)
]  # fmt: skip
STS = [
    {"type": "session", "harness": "agentdyno", "id": "s1"},
    {"type": "message", "message": {"role": "user", "content": "Look."}},
    {"type": "message", "message": {
        "role": "assistant", "content": "", "reasoningContent": "Hm.",
        "toolCalls": [{"id": "c1", "function": {"name": "bash", "arguments": "{}"}}]}},
    {"type": "message", "message": {"role": "tool", "content": "ok", "toolCallId": "c1"}},
    {"type": "message", "message": {"role": "assistant", "content": "Done."}},
]  # fmt: skip


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("rows", [HERMES, STS], ids=["columns of Hermes", "STS"])
def test_why_no_json_lines_of_ours_are_published(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """`datasets` takes such files for agents' logs: without its converter it cannot open them at all."""
    path = written(rows, tmp_path / "rows.jsonl")
    raw = datasets.load_dataset(
        "json", data_files=str(path), split="train", parse_agent_traces=False, cache_dir=str(tmp_path / "raw")
    )
    assert has_agent_traces_markers(raw.features)
    if datasets.config.TEICH_AVAILABLE:
        pytest.skip("teich is installed here; what it makes of them is the next test's")
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "taken"))


LOADER = """
import json, sys, datasets
datasets.disable_progress_bars()
for number, path in enumerate(sys.argv[2:]):
    found = datasets.load_dataset("json", data_files=path, split="train", cache_dir=f"{sys.argv[1]}/{number}")
    rows = [{name: row.get(name) for name in ("harness", "session_id", "num_tool_calls", "messages")} for row in found]
    print("told:" + json.dumps({"columns": found.column_names, "rows": rows}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_hubs_converter_makes_of_each_shape(folders: dict[str, Path], tmp_path: Path) -> None:
    """Why the viewer's files are in Claude Code's shape: it alone keeps tool calls and thoughts."""
    python = python_with("datasets==5.2.0", "teich==0.3.6")
    traces = sorted((folders["text"] / "traces").glob("*.jsonl"))
    assert len(traces) == 6
    paths = [written(HERMES, tmp_path / "hermes.jsonl"), written(STS, tmp_path / "sts.jsonl"), *traces]
    done = subprocess.run(
        [str(python), "-c", LOADER, str(tmp_path / "cache"), *map(str, paths)],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    hermes, sts, *ours = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("told:")]
    assert "duration_us" not in hermes["columns"]  # our own column is gone, without a word
    (session,) = sts["rows"]
    assert session["num_tool_calls"] == 0
    assert [message["role"] for message in session["messages"]] == [
        "user",
        "tool",
        "assistant",
    ]  # a call and a thought lost
    for path, found in zip(traces, ours, strict=True):
        (session,) = found["rows"]
        turns = int(re.sub(r"\D", "", path.stem)) + 1
        assert session["harness"] == "claude_code"
        assert session["session_id"] == path.stem
        assert session["num_tool_calls"] == turns
        assert ENDS in session["messages"][0]["content"]
        assert sum("reasoning_content" in message for message in session["messages"]) == turns

"""A dataset folder reads back as trajectories, with text or without, and anything else is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import curate.intake
from curate.dataset import Dataset
from curate.manifest import MANIFEST, WORK, DatasetFault
from curate.table import SESSIONS
from tests.sample_sessions import make, seven, text_session


def test_trajectories_by_id_come_in_the_datasets_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 2)
    make(seven(), tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    chosen = [trajectory.session_id for trajectory in dataset.trajectories(["session-f", "session-3"])]
    assert chosen == ["session-3", "session-f"]
    with pytest.raises(DatasetFault, match="has no session 'nobody'"):
        next(dataset.trajectories(["nobody"]))


def strip(folder: Path, keep: frozenset[str]) -> None:
    """Make a content-free copy as a publisher would: drop columns or the whole sessions table, in place."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for shard in manifest["shards"]:
        entry = shard["files"]["sessions"]
        path = folder / entry["path"]
        if keep:
            pq.write_table(pq.read_table(path, columns=[c.name for c in SESSIONS.columns if c.name in keep]), path)
            entry["bytes"] = path.stat().st_size
        else:
            path.unlink()
            del shard["files"]["sessions"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("with_sessions", [True, False], ids=["sessions without text", "no sessions table"])
def test_a_content_free_dataset_reads(tmp_path: Path, *, with_sessions: bool) -> None:
    make(seven(), tmp_path / "d")
    names = frozenset(column.name for column in SESSIONS.columns) - SESSIONS.text_columns
    strip(tmp_path / "d", names if with_sessions else frozenset())
    back = list(Dataset.open(tmp_path / "d").trajectories())
    assert [trajectory.session_id for trajectory in back] == [trajectory.session_id for trajectory in seven()]
    for trajectory, original in zip(back, seven(), strict=True):
        assert trajectory.pool == ()
        assert trajectory.tool_calls == original.tool_calls
        assert [request.t_send_us for request in trajectory.requests] == [
            request.t_send_us for request in original.requests
        ]
        if original.pool:  # they got hashes of the release
            assert [len(request.block_hashes or ()) for request in trajectory.requests] == [
                (request.prompt_tokens_est or 0) // 64 for request in trajectory.requests
            ]
            assert trajectory.hash_scope == "release"
        else:
            assert [request.block_hashes for request in trajectory.requests] == [
                request.block_hashes for request in original.requests
            ]
            assert trajectory.hash_scope == original.hash_scope
        assert trajectory.harness == ("codex" if with_sessions else "unknown")
    packed = list(Dataset.open(tmp_path / "d").trajectories(packed=True))
    for trajectory, same in zip(back, packed, strict=True):
        for one, other in zip(trajectory.requests, same.requests, strict=True):
            assert isinstance(other.block_hashes, memoryview | None)
            hashes = None if other.block_hashes is None else tuple(other.block_hashes)
            assert dataclasses.replace(other, block_hashes=hashes) == one


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda _: None, "no such folder"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "is not a dataset: it has no manifest.json"),
        (lambda path: (path / WORK).mkdir(parents=True), "holds an unfinished build"),
        (lambda path: (path.mkdir(), (path / MANIFEST).write_text("{")), "cannot be read"),
        (lambda path: (path.mkdir(), (path / MANIFEST).write_text('{"format": "x/9"}')), "has format 'x/9'"),
    ],
    ids=["missing", "file", "empty", "unfinished", "cut manifest", "other version"],
)
def test_opening_what_is_no_dataset_says_what_is_wrong(
    tmp_path: Path, prepare: Callable[[Path], object], sentence: str
) -> None:
    prepare(tmp_path / "d")
    with pytest.raises(DatasetFault, match=sentence):
        Dataset.open(tmp_path / "d")


def test_other_tables_are_refused(tmp_path: Path) -> None:
    make([text_session()], tmp_path / "d")
    path = tmp_path / "d" / MANIFEST
    path.write_text(path.read_text().replace('"schema": "agentdyno/3"', '"schema": "agentdyno/4"'))
    with pytest.raises(DatasetFault, match="tables of version 'agentdyno/4'"):
        Dataset.open(tmp_path / "d")

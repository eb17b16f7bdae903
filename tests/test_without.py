"""Sessions go from a finished folder: the rest is byte for byte what it was; a kill leaves one state or the other."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import curate.intake
from curate.dataset import Dataset
from curate.manifest import MANIFEST, DatasetFault, Stage, file_sha256, read_manifest
from curate.tombstone import Tombstone
from curate.without import without_sessions
from tests.released import built
from tests.sample_sessions import content_free_session, text_session

DROPS: dict[str, tuple[Stage, str]] = {"session-1": ("review", "dropped by a reviewer")}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards: sessions 0 and 1, and session 2 with one that holds no text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curate.intake, "SHARD_SESSIONS", 2)
        of = [text_session(f"session-{n}", turns=2 + n) for n in range(3)] + [content_free_session()]
        return built(tmp_path_factory.mktemp("built") / "dataset", of)


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "dataset"))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and ".private" not in path.parts and ".build" not in path.parts
    }


def test_only_the_shard_that_held_it_is_written_again(dataset: Path) -> None:
    before, old = digests(dataset), read_manifest(dataset)
    kept = {trajectory.session_id: trajectory for trajectory in Dataset.open(dataset).trajectories()}
    manifest = without_sessions(dataset, DROPS)
    assert manifest == read_manifest(dataset)
    opened = Dataset.open(dataset)
    assert opened.verify() == []
    del kept["session-1"]
    assert {found.session_id: found for found in opened.trajectories()} == kept
    after = digests(dataset)
    same = {path for path in before if path.startswith("data/") and after.get(path) == before[path]}
    assert len(same) == 3
    assert len([path for path in after if path.startswith("data/")]) == 6
    assert set(after) == {entry.path for entry in manifest.files} | {MANIFEST}
    assert [(drop.stage, drop.reason, drop.n) for drop in manifest.drops] == [("review", "dropped by a reviewer", 1)]
    assert manifest.rows["sessions"] == old.rows["sessions"] - 1
    assert manifest.digest != old.digest
    assert not (dataset / ".build").exists()


def test_it_is_deterministic_and_the_files_are_written_like_those_of_a_build(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    without_sessions(dataset, DROPS)
    without_sessions(copy, DROPS)
    assert digests(dataset) == digests(copy)
    for path in dataset.rglob("data/*/*.parquet"):
        with pq.ParquetFile(path) as file:
            for group in range(file.metadata.num_row_groups):
                column = file.metadata.row_group(group).column(0)
                assert (column.compression, column.has_offset_index) == ("ZSTD", True)


def test_a_shard_that_loses_all_goes_and_the_list_of_the_withdrawn_stays(dataset: Path) -> None:
    stone = Tombstone(session_id="session-0", day="2026-11-20", reason="contributor")
    gone: dict[str, tuple[Stage, str]] = dict.fromkeys(("session-0", "session-1"), ("withdrawn", "contributor"))
    manifest = without_sessions(dataset, gone, tombstones=(stone,))
    assert len(manifest.shards) == 1
    assert len(list(dataset.glob("data/*/*"))) == 3
    line = (dataset / "withdrawn.jsonl").read_text()
    assert line == '{"session_id":"session-0","day":"2026-11-20","reason":"contributor"}\n'
    without_sessions(dataset, {"session-2": ("review", "x")})
    assert (dataset / "withdrawn.jsonl").read_text() == line
    assert Dataset.open(dataset).verify() == []


@pytest.mark.parametrize(
    ("drops", "said"),
    [
        ({"session-9": ("review", "x")}, "no session 'session-9'"),
        (dict.fromkeys(("session-0", "session-1", "session-2", "session-f"), ("review", "x")), "no session any more"),
    ],
)
def test_refusals_change_nothing(dataset: Path, drops: Any, said: str) -> None:
    before = digests(dataset)
    with pytest.raises(DatasetFault, match=said):
        without_sessions(dataset, drops)
    assert digests(dataset) == before


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


@pytest.mark.parametrize("name", ["replace", "unlink", "rename", "link"])
def test_a_kill_at_any_step_leaves_one_state_or_the_other(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old = digests(dataset)
    done = Path(shutil.copytree(dataset, tmp_path / "done"))
    without_sessions(done, DROPS)
    new = digests(done)
    states = set()
    for step in range(100):
        folder = Path(shutil.copytree(dataset, tmp_path / f"{name}-{step}"))
        with monkeypatch.context() as patch:
            reached = kill_at(patch, name, step)
            with contextlib.suppress(Killed):
                without_sessions(folder, DROPS)
        if not reached():
            break
        Dataset.open(folder)  # whoever opens it next finishes what was begun
        assert digests(folder) in (old, new), step
        states.add(digests(folder) == new)
        assert Dataset.open(folder).verify() == []
        if digests(folder) == old:
            without_sessions(folder, DROPS)
            assert digests(folder) == new
    else:
        pytest.fail("a hundred steps and not done")
    assert False in states
    assert True in states or name in ("rename", "link")  # these come before the new state holds


def kill_at(patch: pytest.MonkeyPatch, name: str, step: int) -> Callable[[], bool]:
    """Raise at the n-th call of a function of `os` and at all later ones, as a killed process does nothing more."""
    calls = 0
    real = getattr(os, name)

    def fake(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed
        return real(*arguments, **options)

    def remove(path: Path, **options: Any) -> None:
        if calls > step:
            raise Killed
        real_remove(path, **options)

    real_remove = shutil.rmtree
    patch.setattr(os, name, fake)
    patch.setattr(shutil, "rmtree", remove)
    return lambda: calls > step


def test_another_writer_is_waited_for_by_a_sentence(dataset: Path) -> None:
    import fcntl

    (dataset / ".build").mkdir()
    with (dataset / ".build/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatasetFault, match="another process is writing"):
            without_sessions(dataset, DROPS)

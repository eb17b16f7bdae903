"""Publishing to a folder or an object store: complete when the manifest is there, resumed, compared, not mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from agentdyno import main
from curate.dataset import Dataset
from curate.manifest import MANIFEST
from curate.storage import UNDER_WAY, StorageTarget
from curate.target import PublishRefused
from tests.released import built, sessions

MEMORY = "memory://bucket/release"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("built") / "dataset")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    return built(tmp_path_factory.mktemp("built") / "grown", sessions(4), previous=dataset)


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A local folder, and an object store without rename."""
    yield str(tmp_path / "place") if request.param == "folder" else MEMORY
    fsspec.filesystem("memory").store.clear()


def publish(dataset: Path, place: str, *more: str) -> Any:
    return CliRunner().invoke(main, ["curate", "publish", str(dataset), "--to", place, "--yes", *more])


def held(place: str) -> dict[str, bytes]:
    store, root = fsspec.core.url_to_fs(place)
    return {name[len(root.rstrip("/")) + 1 :]: store.cat_file(name) for name in store.find(root)}


def assert_whole(place: str) -> None:
    files = held(place)
    manifest = json.loads(files.pop(MANIFEST))
    listed = [entry for shard in manifest["shards"] for entry in shard["files"].values()] + manifest["papers"]
    assert {entry["path"]: entry["sha256"] for entry in listed} == {
        path: hashlib.sha256(data).hexdigest() for path, data in files.items()
    }


class Recorded:
    """What a target wrote, and a kill after some of it."""

    def __init__(self, patch: pytest.MonkeyPatch, *, kill_after: int | None = None) -> None:
        self.paths: list[str] = []
        real = StorageTarget._put

        def put(target: StorageTarget, local: Path, path: str) -> None:
            if kill_after is not None and len(self.paths) >= kill_after:
                raise KeyboardInterrupt
            real(target, local, path)
            self.paths.append(path)

        patch.setattr(StorageTarget, "_put", put)


def test_a_release_is_complete_and_the_manifest_came_last(
    dataset: Path, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrote = Recorded(monkeypatch)
    ran = publish(dataset, place)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout == f"{place}\n"
    assert_whole(place)
    assert wrote.paths[-1] == MANIFEST
    assert all(path.startswith("data/") for path in wrote.paths[:3])
    for path, data in held(place).items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    assert Dataset.open(tmp_path / "copy").verify() == []


def test_again_sends_nothing_and_more_sends_what_is_new(
    dataset: Path, grown: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(dataset, place).exit_code == 0
    before = held(place)
    with monkeypatch.context() as patch:
        wrote = Recorded(patch)
        ran = publish(dataset, place)
    assert "already published" in ran.stderr
    assert (wrote.paths, held(place)) == ([], before)
    ran = publish(grown, place)
    assert ran.exit_code == 0, ran.output
    assert_whole(place)
    wrote = Recorded(monkeypatch)
    assert "already published" in publish(grown, place).stderr
    assert wrote.paths == []


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_killed_upload_goes_on_and_writes_nothing_twice(
    dataset: Path, place: str, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patch:
        one = Recorded(patch, kill_after=after)
        assert publish(dataset, place).exit_code != 0
    assert MANIFEST not in held(place)
    assert UNDER_WAY in held(place)
    two = Recorded(monkeypatch)
    ran = publish(dataset, place)
    assert ran.exit_code == 0, ran.output
    assert sorted((*one.paths, *two.paths)) == sorted({*one.paths, *two.paths})
    assert_whole(place)


def test_what_a_killed_upload_of_another_release_left_goes(
    dataset: Path, grown: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Recorded(patch, kill_after=2)
        publish(dataset, place)
    assert publish(grown, place).exit_code == 0
    assert_whole(place)


def test_a_publisher_that_comes_in_between_wins(
    dataset: Path, grown: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(dataset, place).exit_code == 0
    store, root = fsspec.core.url_to_fs(place)
    real = StorageTarget._put

    def put(target: StorageTarget, local: Path, path: str) -> None:
        real(target, local, path)
        store.pipe_file(f"{root}/{MANIFEST}", b"{}")

    with monkeypatch.context() as patch:
        patch.setattr(StorageTarget, "_put", put)
        ran = publish(grown, place)
    assert ran.exit_code == 1
    assert "somebody else published" in ran.stderr
    assert held(place)[MANIFEST] == b"{}"


def test_what_is_not_ours_is_left_alone(dataset: Path, place: str) -> None:
    store, root = fsspec.core.url_to_fs(place)
    store.makedirs(root, exist_ok=True)
    store.pipe_file(f"{root}/thesis.tex", b"mine")
    ran = publish(dataset, place)
    assert ran.exit_code == 1
    assert "'thesis.tex'" in ran.stderr
    assert held(place) == {"thesis.tex": b"mine"}


def test_a_file_that_comes_back_changed_is_said(dataset: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = StorageTarget.fetch

    def fetch(target: StorageTarget, path: str, head: str | None, to: Path) -> None:
        real(target, path, head, to)
        if path.startswith("data/tool_calls/"):
            to.write_bytes(to.read_bytes()[:-1])

    monkeypatch.setattr(StorageTarget, "fetch", fetch)
    ran = publish(dataset, place)
    assert ran.exit_code == 1
    assert "data/tool_calls/" in ran.stderr


def test_a_manifest_that_names_a_file_outside_is_refused(dataset: Path, place: str) -> None:
    assert publish(dataset, place).exit_code == 0
    store, root = fsspec.core.url_to_fs(place)
    manifest = json.loads(store.cat_file(f"{root}/{MANIFEST}"))
    manifest["papers"][0]["path"] = "../../outside"
    store.pipe_file(f"{root}/{MANIFEST}", json.dumps(manifest).encode())
    ran = CliRunner().invoke(main, ["curate", "withdraw", "session-1", "--to", place, "--yes"])
    assert ran.exit_code == 1
    assert "'../../outside'" in ran.stderr


@pytest.mark.parametrize(
    ("place", "code", "said"), [("nosuch://x/y", 3, "nosuch"), ("file.txt", 1, "is a file")], ids=["protocol", "file"]
)
def test_places_that_are_none(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    ran = publish(dataset, place)
    assert (ran.exit_code, said in ran.stderr) == (code, True), ran.output


def test_who_may_read_is_not_ours_to_say(dataset: Path, place: str) -> None:
    ran = publish(dataset, place, "--private")
    assert ran.exit_code == 1
    assert "set there" in ran.stderr
    with pytest.raises(PublishRefused):
        StorageTarget(__file__).state()

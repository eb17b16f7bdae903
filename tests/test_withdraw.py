"""A session that is taken back is gone from every file of the release, and stays gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

import curate.intake
from curate.command import curate as command
from curate.dataset import Dataset
from curate.manifest import read_manifest
from curate.withdraw import withdraw_here
from tests.hub_client import Client, running_client
from tests.hub_server import TOKEN, Hub, first, running_hub
from tests.released import RECIPE, approved, built
from tests.sample_sessions import make, text_session
from tests.test_publish import assert_whole, manifest_at, published

WRITER = {"HF_TOKEN": TOKEN}
WORD = "Zaunkoenig"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as found:
        yield found


@pytest.fixture(scope="module")
def run(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running_client(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sessions in two shards; the second says a word that no other does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curate.intake, "SHARD_SESSIONS", 2)
        of = [text_session(f"session-{n}", secret=WORD if n == 1 else "", turns=2 + n) for n in range(4)]
        return approved(built(tmp_path_factory.mktemp("built") / "dataset", of))


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "dataset"))


def fetched(hub: Hub, repo: str, to: Path) -> Path:
    for path, data in hub.repos[repo].files.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_bytes(data)
    return to


def words_in(folder: Path) -> str:
    """All that a release says, tables decoded."""
    tables = [str(pl.read_parquet(path).to_dicts()) for path in folder.rglob("*.parquet")]
    texts = [path.read_text("utf-8", "replace") for path in folder.rglob("*") if path.is_file()]
    return "\n".join((*tables, *texts))


def test_a_withdrawn_session_is_gone_everywhere_and_its_tombstone_stands(
    run: Client, hub: Hub, dataset: Path, tmp_path: Path
) -> None:
    published(run, dataset, "me/text", "--with-text")
    repo = hub.repos["me/text"]
    before = dict(repo.files)
    assert WORD in words_in(fetched(hub, "me/text", tmp_path / "before"))
    arguments = ("curate", "withdraw", "session-1", "--repo", "me/text", "--reason", "contributor", "--yes")
    ran = run(*arguments, environment=WRITER)
    assert ran.code == 0, ran.stderr
    assert "1 shard to write again" in ran.stderr
    assert "cannot be called back" in ran.stderr
    manifest = assert_whole(repo)
    folder = fetched(hub, "me/text", tmp_path / "after")
    said = words_in(folder)
    assert WORD not in said
    tombstone = json.loads(repo.files["withdrawn.jsonl"])
    assert tombstone == {"session_id": "session-1", "day": tombstone["day"], "reason": "contributor"}
    assert said.count("session-1") == 1
    assert manifest.rows["sessions"] == 3
    assert next(drop for drop in manifest.drops if drop.stage == "withdrawn").n == 1
    assert b"1 session withdrawn" in repo.files["README.md"]
    assert "traces/session-1.jsonl" in before
    assert "traces/session-1.jsonl" not in repo.files
    kept = {path for path in before if path.startswith("data/") and repo.files.get(path) == before[path]}
    assert len(kept) == 3  # the shard that did not hold it
    assert sorted(Dataset.open(folder).session_ids) == ["session-0", "session-2", "session-3"]
    assert len(list(Dataset.open(folder).trajectories())) == 3
    assert len(repo.messages) == 3
    again = run(*arguments, environment=WRITER)
    assert again.code == 0
    assert "was withdrawn before" in again.stderr
    assert len(repo.messages) == 3


def test_what_was_withdrawn_does_not_come_back(run: Client, hub: Hub, dataset: Path, tmp_path: Path) -> None:
    published(run, dataset, "me/back")
    assert run("curate", "withdraw", "session-1", "--repo", "me/back", "--yes", environment=WRITER).code == 0
    ran = run("curate", "publish", dataset, "--repo", "me/back", "--yes", environment=WRITER)
    assert ran.code == 1
    assert "session 'session-1' was withdrawn" in ran.stderr
    ran = run("curate", "withdraw", "session-1", "--dataset", dataset, "--yes")
    assert ran.code == 0, ran.stderr
    assert WORD not in words_in(dataset)
    published(run, dataset, "me/back")
    assert [json.loads(line)["session_id"] for line in hub.repos["me/back"].files["withdrawn.jsonl"].splitlines()] == [
        "session-1"
    ]
    # Nor by a later build from the same store.
    of = [text_session(f"session-{n}", secret=WORD if n == 1 else "", turns=2 + n) for n in range(5)]
    make(of, tmp_path / "next", recipe=RECIPE, previous=dataset)
    published(run, tmp_path / "next", "me/back")
    ids = [entry.session_id for shard in manifest_at(hub.repos["me/back"]).shards for entry in shard.sessions]
    assert sorted(ids) == ["session-0", "session-2", "session-3", "session-4"]


def test_a_purge_forgets_history_and_old_files(run: Client, hub: Hub, dataset: Path) -> None:
    published(run, dataset, "me/purge", "--with-text")
    repo = hub.repos["me/purge"]
    old = set(repo.objects)
    ran = run("curate", "withdraw", "session-1", "--repo", "me/purge", "--purge", "--yes", environment=WRITER)
    assert ran.code == 0, ran.stderr
    assert_whole(repo)
    assert list(repo.commits) == [repo.head]
    assert list(repo.tags.values()) == [repo.head]
    assert set(repo.objects) == {oid for oid in repo.objects if oid in {*map(_sha256, repo.files.values())}}
    assert old - set(repo.objects)
    assert WORD.encode() not in b"".join(repo.objects.values())


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_a_withdrawal_that_meets_a_release_loses_cleanly(run: Client, hub: Hub, dataset: Path) -> None:
    published(run, dataset, "me/race")
    repo = hub.repos["me/race"]
    files = {**repo.files, "NOTES.md": b"x"}
    hub.on("POST", "/commit/", first(lambda: repo.commit(files, "theirs")))
    ran = run("curate", "withdraw", "session-1", "--repo", "me/race", "--yes", environment=WRITER)
    assert ran.code == 1
    assert "somebody else published" in ran.stderr
    assert repo.files == files


@pytest.mark.parametrize(
    ("sessions", "code", "said"),
    [
        (("session-9",), 2, "no session 'session-9'"),
        (("session-0", "session-1", "session-2", "session-3"), 1, "no session any more"),
    ],
)
def test_refusals(run: Client, hub: Hub, dataset: Path, sessions: tuple[str, ...], code: int, said: str) -> None:
    if "me/refused" not in hub.repos:
        published(run, dataset, "me/refused")
    head = hub.repos["me/refused"].head
    ran = run("curate", "withdraw", *sessions, "--repo", "me/refused", "--yes", environment=WRITER)
    assert (ran.code, said in ran.stderr) == (code, True), ran.stderr
    assert hub.repos["me/refused"].head == head


def test_usage(run: Client, tmp_path: Path) -> None:
    for arguments, said in (
        (("s",), "--repo"),
        (("s", "--to", tmp_path, "--purge"), "--purge"),
        (("s", "--to", tmp_path / "nothing", "--yes"), "no release"),
        (("s", "--dataset", tmp_path / "nothing", "--yes"), "no such folder"),
    ):
        ran = run("curate", "withdraw", *arguments)
        assert ran.code in (1, 2), arguments
        assert said in ran.stderr


def test_from_a_folder(run: Client, dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert run("curate", "publish", dataset, "--to", place, "--yes").code == 0
    ran = run("curate", "withdraw", "session-1", "--to", place, "--yes", "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["removed_files"] == 3
    assert "session-1" not in words_in(place).replace((place / "withdrawn.jsonl").read_text(), "")
    assert Dataset.open(place).verify() == []


def test_nothing_is_taken_out_before_somebody_says_yes(run: Client, dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert run("curate", "publish", dataset, "--to", place, "--yes").code == 0
    ran = run("curate", "withdraw", "session-1", "--to", place, "--dataset", dataset)
    assert ran.code == 2
    assert "nobody is here to ask: say --yes" in ran.stderr
    for folder in (place, dataset):
        assert read_manifest(folder).rows["sessions"] == 4
    ran = run("curate", "withdraw", "session-1", "--to", place, "--dataset", dataset, "--yes")
    assert ran.code == 0, ran.stderr
    for folder in (place, dataset):
        assert read_manifest(folder).rows["sessions"] == 3


def test_private_work_of_a_withdrawn_session_goes_too(dataset: Path) -> None:
    assert WORD in words_in(dataset / ".private")
    assert withdraw_here(dataset, ["session-1", "session-7"], reason="secret", day="2026-11-20") == ("session-1",)
    assert WORD not in words_in(dataset)
    assert read_manifest(dataset).rows["sessions"] == 3
    assert Dataset.open(dataset).verify() == []


def test_a_mistyped_session_of_a_built_dataset_is_refused(dataset: Path) -> None:
    result = CliRunner().invoke(command, ["withdraw", "session-1", "sesion-2", "--dataset", str(dataset), "--yes"])
    assert result.exit_code == 2
    assert "has no session 'sesion-2'" in result.stderr
    assert read_manifest(dataset).rows["sessions"] == 4

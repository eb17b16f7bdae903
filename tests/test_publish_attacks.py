"""What must not leave does not leave, and what comes from others does no harm: attacks on publishing, each by name."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

import curate.withdraw
from agentdyno import main
from curate.commands.publish import publish as publish_command
from curate.dataset import Dataset
from curate.disposition import Pseudonyms, harness_pattern, model_pattern, version
from curate.front_matter import front_matter
from curate.manifest import MANIFEST, DatasetFault, Drop, file_entry, file_sha256, read_manifest, write_json
from curate.publish import plan, send
from curate.receipts import forget
from curate.recipe import Filters, Recipe, Sample, Statistics
from curate.review.approve import approve
from curate.review.queue import Queue
from curate.stats import Stats
from curate.storage import StorageTarget
from curate.target import PlaceState, PublishRefused, Wish, without_credentials
from curate.withdraw import withdraw_here
from tests.hub_client import Client, running_client
from tests.hub_server import TOKEN, Hub, Repo, first, running_hub, status
from tests.released import RECIPE, approved, built, sessions
from tests.sample_sessions import make, text_session

CANARY = "kanarienvogel"
HOSTILE = f"MIT\r\n---\n# Owned [x](javascript:alert(1)) <b> | \x1b]0;{CANARY}\x07 `b` \u202e"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return approved(built(tmp_path_factory.mktemp("built") / "dataset"))


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "dataset"))


def run(*arguments: str | Path) -> Result:
    ran = CliRunner().invoke(main, ["curate", *map(str, arguments)])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), repr(ran.exception)
    return ran


def publish(dataset: Path, place: Path | str, *more: str) -> Result:
    return run("publish", dataset, "--to", place, "--yes", *more)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest as somebody else would write it."""
    found = json.loads((folder / MANIFEST).read_bytes())
    change(found)
    (folder / MANIFEST).write_text(json.dumps(found))


# A drop is obeyed in every tier -------------------------------------------------------------------------------------


def drop(folder: Path, session_id: str) -> None:
    queue = Queue.open(folder)
    queue.decide(queue.cases[session_id], "drop", reason="a secret is left", reviewer="r", version="0")


@pytest.mark.parametrize("tier", [(), ("--with-text",)], ids=["content-free", "text"])
def test_a_session_that_a_reviewer_dropped_does_not_leave(dataset: Path, tmp_path: Path, tier: tuple[str, ...]) -> None:
    drop(dataset, "session-1")
    ran = publish(dataset, tmp_path / "place", *tier)
    assert ran.exit_code == 2
    assert "1 session" in ran.stderr
    assert f"curate approve {dataset}" in ran.stderr
    assert not (tmp_path / "place").exists()
    approve(dataset, reviewer="r", without_review=True)
    assert publish(dataset, tmp_path / "place", *tier).exit_code == 0
    assert "session-1" not in Dataset.open(tmp_path / "place").session_ids


def test_a_drop_that_a_build_made_stale_is_asked_again(dataset: Path, tmp_path: Path) -> None:
    drop(dataset, "session-1")
    journal = dataset / ".private/review.jsonl"
    said = json.loads(journal.read_text())
    journal.write_text(json.dumps({**said, "digest": "0" * 64}) + "\n")  # of the rows before the build
    ran = publish(dataset, tmp_path / "place")
    assert ran.exit_code == 2
    assert "decide again" in ran.stderr
    assert "curate approve" in ran.stderr


# What was checked is what leaves ------------------------------------------------------------------------------------


class Busy(StorageTarget):
    """A place that takes its time: something else happens on this machine while it answers."""

    def __init__(self, url: str, meanwhile: Callable[[], object]) -> None:
        super().__init__(url)
        self.meanwhile = meanwhile

    def state(self) -> PlaceState:
        self.meanwhile()
        return super().state()


def test_a_build_between_the_check_and_the_staging_is_noticed(dataset: Path, tmp_path: Path) -> None:
    other = built(tmp_path / "other", sessions(4))

    def build() -> None:
        (dataset / "data").rename(tmp_path / "before")
        for path in other.iterdir():
            if path.is_file():
                shutil.copyfile(path, dataset / path.name)
        shutil.copytree(other / "data", dataset / "data")

    with pytest.raises(DatasetFault, match="changed meanwhile"):
        plan(dataset, "text", Busy(str(tmp_path / "place"), build))


def test_a_drop_between_the_check_and_the_staging_is_noticed(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetFault, match="dropped in a review"):
        plan(dataset, "text", Busy(str(tmp_path / "place"), lambda: drop(dataset, "session-0")))


def test_what_was_staged_and_changed_is_not_sent(dataset: Path, tmp_path: Path) -> None:
    target = StorageTarget(str(tmp_path / "place"))
    made = plan(dataset, "content-free", target)
    card = made.staged / "README.md"
    card.write_text(card.read_text().replace("content-free", "content-full"))
    with pytest.raises(PublishRefused, match="changed after it was staged"):
        send(made, target, wish=Wish())
    assert not (tmp_path / "place").exists()


def test_a_shard_of_the_same_size_with_other_bytes_is_refused(dataset: Path, tmp_path: Path) -> None:
    path = next((dataset / "data/sessions").iterdir())
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    for tier in ((), ("--with-text",)):
        ran = publish(dataset, tmp_path / "place", *tier)
        assert ran.exit_code == 2
        assert "build the dataset again" in ran.stderr
    assert not (tmp_path / "place").exists()


# The place is not the dataset ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [".", "sub", "..", ".private"])
def test_a_release_among_the_files_of_its_dataset_is_refused(dataset: Path, inside: str) -> None:
    before = sorted(dataset.rglob("*"))
    ran = publish(dataset, dataset / inside)
    assert ran.exit_code == 1
    assert "beside it" in ran.stderr
    assert sorted(dataset.rglob("*")) == before


def test_a_built_dataset_is_not_replaced_by_a_release(dataset: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    for ran in (publish(dataset, other), run("withdraw", "session-1", "--to", other, "--yes")):
        assert ran.exit_code == 1
        assert "as it was built" in ran.stderr
    assert Dataset.open(other).verify() == []
    assert read_manifest(other).tier == "full"


def test_nothing_is_written_through_a_link_in_a_folder(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert publish(dataset, place).exit_code == 0
    shutil.move(place / "data", tmp_path / "elsewhere")
    (place / "data").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    ran = publish(built(tmp_path / "grown", sessions(4)), place)
    assert ran.exit_code == 1
    assert "is a link" in ran.stderr
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_a_file_that_somebody_changed_in_a_folder_is_sent_again(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert publish(dataset, place).exit_code == 0
    path = next((place / "data/requests").iterdir())
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    ran = publish(dataset, place)
    assert ran.exit_code == 0
    assert "sent 1 file " in ran.stderr
    assert path.read_bytes() == data
    assert "already published" in publish(dataset, place).stderr


@pytest.mark.parametrize("place", ["", "nosuch://x/y", "\0", "/dev/null/x"])
def test_a_place_that_is_none_is_said(dataset: Path, place: str) -> None:
    ran = publish(dataset, place)
    assert ran.exit_code in (1, 3)
    assert len([line for line in ran.stderr.splitlines() if line.startswith("Error: ")]) == 1


def test_credentials_in_a_url_are_neither_shown_nor_kept(dataset: Path) -> None:
    ran = publish(dataset, "ftp://me:geheim@127.0.0.1:9/x")
    assert ran.exit_code == 3
    assert "127.0.0.1:9" in ran.stderr
    assert "geheim" not in ran.output
    assert without_credentials("GET https://a:b@c@host/x@y failed") == "GET https://host/x@y failed"


# Folders of others --------------------------------------------------------------------------------------------------


def swap(folder: Path, removed: object) -> Path:
    """A swap that seems to have been cut short."""
    ready = folder / ".build/swap"
    ready.mkdir(parents=True)
    shutil.copy(folder / MANIFEST, ready / MANIFEST)
    (ready / "removed.json").write_text(removed if isinstance(removed, str) else json.dumps(removed))
    return ready


@pytest.mark.parametrize(
    "removed",
    [["../victim"], ["/{tmp}/victim"], ["data/../../victim"], ["link/victim"], [".private/release.key"], [3], {}, "{"],
)
def test_opening_a_folder_of_somebody_else_removes_nothing_outside(
    dataset: Path, tmp_path: Path, removed: object
) -> None:
    (tmp_path / "victim").write_text("mine")
    (dataset / "link").symlink_to(tmp_path)
    swap(dataset, json.loads(json.dumps(removed).replace("{tmp}", str(tmp_path)[1:])))
    ran = run("stats", dataset)
    assert ran.exit_code == 2
    assert "not left by a command of ours" in ran.stderr
    assert (tmp_path / "victim").read_text() == "mine"
    assert (dataset / ".private/release.key").exists()


def test_opening_a_folder_of_somebody_else_writes_nothing_outside(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (dataset / "link").symlink_to(tmp_path / "keys")
    ready = swap(dataset, [])
    (ready / "link").mkdir()
    (ready / "link/authorized_keys").write_text("theirs")
    assert run("stats", dataset).exit_code == 2
    assert list((tmp_path / "keys").iterdir()) == []
    shutil.rmtree(dataset / ".build")
    (tmp_path / "work/swap").mkdir(parents=True)
    (tmp_path / "work/lock").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("mine")
    (dataset / ".build").symlink_to(tmp_path / "work")
    assert run("stats", dataset).exit_code == 2
    (dataset / ".build").unlink()
    shutil.move(tmp_path / "work", dataset / ".build")
    assert run("stats", dataset).exit_code == 3  # the lock is a link
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    "path",
    [
        *("../x", "/etc/passwd", "data/../../x", ".build/swap/removed.json", ".private/release.key", "data/.x"),
        *("data\\..\\x", "data//x", "", ".", MANIFEST, "a\0b"),
    ],
)
def test_a_manifest_names_files_of_its_folder_alone(dataset: Path, path: str) -> None:
    rewritten(dataset, lambda manifest: manifest["papers"][0].update(path=path))
    with pytest.raises(DatasetFault, match="no file of a dataset"):
        read_manifest(dataset)


def test_what_a_file_of_others_says_is_no_order_to_the_terminal(dataset: Path) -> None:
    rewritten(dataset, lambda manifest: manifest.update(tier="\x1b]0;owned\x07"))
    ran = run("stats", dataset)
    assert ran.exit_code == 2
    assert "owned" in ran.stderr
    assert "\x1b" not in ran.stderr


def test_a_split_is_no_path(dataset: Path) -> None:
    rewritten(dataset, lambda manifest: manifest["shards"][0].update(split="../../x"))
    with pytest.raises(DatasetFault, match="no name"):
        read_manifest(dataset)


@pytest.mark.parametrize("data", [b'{"format":"\xff"}', b'{"x":' + b"[" * 200_000, b"[]", b"", b'{"format": 1}'])
def test_a_manifest_that_is_none_is_one_sentence(dataset: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / MANIFEST).write_bytes(data)
    (dataset / MANIFEST).write_bytes(data)
    for ran, code in (
        (run("stats", dataset), 2),
        (run("withdraw", "session-1", "--to", tmp_path / "place", "--yes"), 1),
    ):
        assert ran.exit_code == code
        assert MANIFEST in ran.stderr


def test_a_private_receipt_of_somebody_else_removes_nothing(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (receipt,) = (dataset / ".private/receipts").iterdir()
    found = json.loads(receipt.read_bytes())
    found["files"]["sessions"]["path"] = ".private/shards/../../../victim"
    receipt.write_text(json.dumps(found))
    forget(dataset, ["session-1"])
    assert (tmp_path / "victim").exists()


def test_a_hostile_release_cannot_reach_who_withdraws_from_it(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert publish(dataset, place).exit_code == 0
    (tmp_path / "victim").write_text("mine")
    ready = swap(place, ["../" * 12 + str(tmp_path / "victim")[1:]])

    def name_them(manifest: dict[str, Any]) -> None:
        for path in (ready / MANIFEST, ready / "removed.json"):
            entry = file_entry(place, path)
            manifest["papers"].append({"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256, "rows": 0})

    rewritten(place, name_them)
    ran = run("withdraw", "session-1", "--to", place, "--yes")
    assert ran.exit_code == 1
    assert "no file of a dataset" in ran.stderr
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["review.json", "data"])
def test_a_release_that_is_no_release_is_one_sentence(dataset: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "place"
    assert publish(dataset, place, "--with-text").exit_code == 0

    def spoil(manifest: dict[str, Any]) -> None:
        files = [entry for shard in manifest["shards"] for entry in shard["files"].values()]
        for entry in files if name == "data" else manifest["papers"]:
            if name in entry["path"]:
                (place / entry["path"]).write_bytes(b"{}")
                entry.update(bytes=2, sha256=file_sha256(place / entry["path"]))

    rewritten(place, spoil)
    ran = run("withdraw", "session-1", "--to", place, "--yes")
    assert ran.exit_code in (1, 2)
    assert "publish the dataset again" in ran.stderr


# No word of others without text -------------------------------------------------------------------------------------


def everything(folder: Path) -> str:
    """Names, rows, and bytes of all files of a release."""
    parts = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                parts += [str(file.read().to_pylist()), str(file.metadata.metadata), str(file.schema_arrow)]
        elif path.is_file():
            parts.append(path.read_text("utf-8", "replace"))
    return "\n".join(parts)


def test_no_word_of_a_recipe_or_a_reader_leaves(tmp_path: Path) -> None:
    recipe = replace(
        RECIPE,
        filters=Filters(
            models=(f"{CANARY}-*", "model-*", f"[{CANARY}]*"),
            not_models=(CANARY,),
            not_harnesses=(f"{CANARY}*", f"code[{CANARY}]*"),
            repo_licenses=(),
        ),
        sample=Sample(by="model", values=(f"{CANARY}-7b", "model-a"), shares=(0.0, 1.0)),
        statistics=Statistics(by=("model", "harness", "task_id", "contributor"), plots=False),
    )
    dataset = tmp_path / "dataset"
    make(sessions(2), dataset, recipe=recipe)
    manifest = read_manifest(dataset)
    drops = (
        Drop(stage="read", reason=f"{CANARY}: 3 exports of telemetry cannot be read", n=1),
        Drop(stage="read", reason=f"{CANARY} is cut off", n=2),
        Drop(stage="read", reason="same session as one read before", n=1),
        Drop(stage="sample", reason=f"over the share of model {CANARY}-7b", n=1),
    )
    shards = tuple(replace(shard, drops=drops) for shard in manifest.shards)
    write_json(dataset / MANIFEST, replace(manifest, drops=drops, shards=shards))
    assert CANARY in (dataset / MANIFEST).read_text()
    ran = publish(dataset, tmp_path / "place")
    assert ran.exit_code == 0, ran.stderr
    assert CANARY not in everything(tmp_path / "place")
    said = read_manifest(tmp_path / "place")
    assert {drop.reason: drop.n for drop in said.drops if drop.stage == "read"} == {
        "a recording or a file that cannot be read whole": 3,
        "same session as one read before": 1,
    }
    names = set(pq.read_table(tmp_path / "place/data/requests")["model"].to_pylist())
    assert said.recipe.sample.values[1] in names  # the same pseudonym as in the column


def test_a_release_with_text_tells_nothing_to_the_next_one_without(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert publish(dataset, place, "--with-text").exit_code == 0
    digests = [entry.digest for shard in read_manifest(place).shards for entry in shard.sessions]
    assert publish(dataset, place).exit_code == 0
    said = everything(place)
    assert not any(digest in said for digest in digests)
    assert not (place / "previous-release.json").exists()


def test_statements_stay_on_their_line(tmp_path: Path) -> None:
    evil = replace(
        text_session("session-evil"), license=HOSTILE, consent=HOSTILE, harness=HOSTILE, models=(HOSTILE, "gpt-4o")
    )
    dataset = approved(built(tmp_path / "dataset", [evil, text_session("session-9")]))
    for number, tier in enumerate(((), ("--with-text",))):
        place = tmp_path / f"place-{number}"
        ran = publish(dataset, place, *tier)
        assert ran.exit_code == 0, ran.stderr
        shown = ran.stderr + run("publish", dataset, "--to", place, "--dry-run", *tier).stdout
        assert all(letter.isprintable() or letter == "\n" for letter in shown)
        for name in ("LICENSE.md", "CONSENT.md", "README.md"):
            lines = (place / name).read_text().splitlines()
            assert not [line for line in lines if line.startswith(("# Owned", "---\n# ")) or "\x1b" in line]
            assert lines.count("---") == (2 if name == "README.md" else 0)
            for line in lines:
                assert "javascript:" not in line or "`" in line.partition("javascript:")[0]
        rows = pq.read_table(place / "data/sessions").to_pylist()
        assert all(row[name].isprintable() for row in rows for name in ("license", "consent"))


def test_a_text_in_the_place_of_a_number_stops_everything(dataset: Path, tmp_path: Path) -> None:
    manifest = read_manifest(dataset)
    (shard,) = manifest.shards
    path = dataset / shard.files["requests"].path
    rows = pq.read_table(path)
    position = rows.column_names.index("bytes_up")
    rows = rows.set_column(position, pa.field("bytes_up", pa.string()), pa.array([CANARY] * len(rows)))
    path.unlink()
    pq.write_table(rows, path)
    files = {**shard.files, "requests": file_entry(dataset, path, rows=len(rows))}
    write_json(dataset / MANIFEST, replace(manifest, shards=(replace(shard, files=files),)))
    ran = publish(dataset, tmp_path / "place")
    assert ran.exit_code == 2
    assert "'bytes_up' of requests holds string" in ran.stderr


@pytest.mark.parametrize(
    ("value", "left"),
    [
        *((each, each) for each in ("1.2.3", "v2.1.0-beta.1", "0.5.0rc1", "2.1.42", "1.0.0-nightly.20251120", "7")),
        *(("1.2.3-acme-secret", "1.2.3"), ("1-acme", None), ("2.0+jane.doe", "2.0"), ("acme", None), ("", None)),
        *(("1.0.0-betajane", "1.0.0"), ("\u0661.\u0662", None), ("1" * 200, None)),
    ],
)
def test_a_version_holds_no_word_of_its_own(value: str, left: str | None) -> None:
    assert version(value, Pseudonyms(b"k")) == left


@pytest.mark.parametrize(
    ("change", "pattern", "kept"),
    [
        *((model_pattern, each, True) for each in ("claude-*", "gpt-5*", "*", "claude-opus-4-?")),
        *((model_pattern, each, False) for each in ("acme-*", "*acme*", "claude-[acme]*", "ft:gpt-4o:acme", "")),
        *((harness_pattern, each, True) for each in ("codex", "Claude-*", "*")),
        *((harness_pattern, each, False) for each in ("acme*", "[acme]odex", "code*acme")),
    ],
)
def test_a_pattern_is_kept_where_its_words_are_public(change: Any, pattern: str, kept: bool) -> None:
    assert (change(pattern, Pseudonyms(b"k")) == pattern) is (kept or not pattern)


def test_a_title_beyond_the_first_plane_is_yaml(dataset: Path) -> None:
    import msgspec

    stats = msgspec.json.decode((dataset / "stats.json").read_bytes(), type=Stats)
    for title in ("Agenten \U0001f600", "\\ud83d\\ude00", 'a"\n---\nb: c', "\u2028\x85"):
        head = front_matter(stats, Recipe(pretty_name=title, tags=(title,)))
        found = yaml.safe_load(head.strip("-"))
        assert found["pretty_name"] == title
        assert title in found["tags"]


# Disks and folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(dataset: Path) -> Iterator[None]:
    """No file can grow beyond a few kilobytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_sentence(dataset: Path, tmp_path: Path) -> None:
    ran = publish(dataset, tmp_path / "place")
    assert ran.exit_code == 3
    assert "run the same command again" in ran.stderr
    assert not (tmp_path / "place").exists()
    assert Dataset.open(dataset).verify() == []


def test_a_private_folder_that_is_none_is_one_sentence(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (dataset / ".private/release-content-free").symlink_to(tmp_path / "elsewhere")
    assert publish(dataset, tmp_path / "place").exit_code == 0  # the link goes, not what it leads to
    assert list((tmp_path / "elsewhere").iterdir()) == []
    shutil.rmtree(dataset / ".private")
    (dataset / ".private").write_text("a file")
    assert publish(dataset, tmp_path / "place-2").exit_code == 3
    assert run("publish", dataset, "--to", "x", "--dry-run", "--out", "/proc/none/x").exit_code == 3


def test_what_was_staged_of_a_withdrawn_session_goes_too(dataset: Path, tmp_path: Path) -> None:
    assert publish(dataset, tmp_path / "place", "--with-text").exit_code == 0
    assert (dataset / ".private/release-text").is_dir()
    withdraw_here(dataset, ["session-1"], reason="contributor", day="2026-11-20")
    left = [path for path in dataset.rglob("*") if path.suffix == ".parquet" and ".build" not in path.parts]
    assert left
    assert not [path for path in left if "session-1" in pq.read_table(path)["session_id"].to_pylist()]
    assert not (dataset / ".private/release-text").exists()


class Killed(BaseException):
    """Ends a command where it stands, as a kill does."""


def killed(*_: object) -> None:
    raise Killed


def test_a_withdrawal_that_was_killed_on_this_machine_is_finished_by_the_next(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(dataset, tmp_path / "place", "--with-text").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(curate.withdraw, "forget", killed)
        with pytest.raises(Killed):
            withdraw_here(dataset, ["session-1"], reason="contributor", day="2026-11-20")
    assert withdraw_here(dataset, ["session-1"], reason="contributor", day="2026-11-20") == ()
    assert not [
        path for path in dataset.rglob("*.parquet") if "session-1" in pq.read_table(path)["session_id"].to_pylist()
    ]


def test_a_withdrawal_that_was_killed_ahead_of_the_manifest_is_finished_by_the_next(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    assert publish(dataset, place, "--with-text").exit_code == 0
    put = StorageTarget._put

    def until_the_manifest(target: StorageTarget, local: Path, path: str) -> None:
        if path == MANIFEST:
            raise Killed
        put(target, local, path)

    arguments = ["withdraw", "session-1", "--to", str(place), "--yes"]
    with monkeypatch.context() as patch:
        patch.setattr(StorageTarget, "_put", until_the_manifest)
        with pytest.raises(Killed):
            CliRunner().invoke(main, ["curate", *arguments])
    assert Dataset.open(place).verify() != []  # its papers are ahead of its manifest
    assert run(*arguments).exit_code == 0
    left = Dataset.open(place)
    assert left.verify() == []
    assert "session-1" not in left.session_ids
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        *(entry.path for entry in left.manifest.files),
        MANIFEST,
    }


# The Hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as found:
        yield found


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running_client(hub, tmp_path_factory.mktemp("home")) as found:
        yield found


WRITER = {"HF_TOKEN": TOKEN}


def to_hub(client: Client, dataset: Path, *more: str) -> Any:
    return client("curate", "publish", dataset, "--yes", *more, environment=WRITER)


def test_a_repository_that_somebody_made_meanwhile_is_closed_before_anything_is_in_it(
    client: Client, hub: Hub, dataset: Path
) -> None:
    def theirs() -> None:
        hub.repos["me/race"] = Repo()
        hub.repos["me/race"].commit({".gitattributes": b""}, "initial commit")

    hub.on("POST", "/api/repos/create", first(theirs))
    assert to_hub(client, dataset, "--repo", "me/race", "--private").code == 0
    assert hub.repos["me/race"].private_when_first_filled is True


def test_a_repository_that_stays_open_gets_nothing(client: Client, hub: Hub, dataset: Path) -> None:
    def swallowed(handler: Any) -> bool:
        handler.read_body()
        handler.tell({})
        return True

    hub.on("PUT", "/settings", swallowed)
    ran = to_hub(client, dataset, "--repo", "me/open", "--gated", "auto")
    assert ran.code == 1
    assert "did not become gated" in ran.stderr
    assert list(hub.repos["me/open"].files) == [".gitattributes"]


def test_a_name_that_is_somebody_elses_private_repository_is_said(client: Client, hub: Hub, dataset: Path) -> None:
    hub.on("POST", "/api/repos/create", status(409))
    ran = to_hub(client, dataset, "--repo", "they/secret")
    assert ran.code == 3
    assert "cannot be seen by this token" in ran.stderr
    hub.on("POST", "/api/repos/create", status(403))
    ran = to_hub(client, dataset, "--repo", "org/none")
    assert ran.code == 3
    assert "may not write there" in ran.stderr


def test_a_card_that_the_hub_does_not_take_is_said(client: Client, hub: Hub, dataset: Path) -> None:
    def refused(handler: Any) -> bool:
        handler.read_body()
        handler.tell({"errors": [{"message": "license is no licence"}], "warnings": []}, 400)
        return True

    hub.on("POST", "/validate-yaml", refused)
    ran = to_hub(client, dataset, "--repo", "me/card")
    assert ran.code == 3
    assert "license is no licence" in ran.stderr
    assert list(hub.repos["me/card"].files) == [".gitattributes"]


def test_a_token_does_not_follow_a_redirect_to_another_host(client: Client, hub: Hub, dataset: Path) -> None:
    heard: list[str | None] = []
    with running_hub() as other:
        assert to_hub(client, dataset, "--repo", "me/moved").code == 0
        other.repos["me/moved"] = hub.repos["me/moved"]
        hub.on("GET", "/resolve/.*manifest", status(302, Location=f"{other.url}/caught"))

        def caught(handler: Any) -> bool:
            heard.append(handler.headers.get("authorization"))
            handler.answer(404, b"{}")
            return True

        other.on("GET", "/caught", caught)
        assert to_hub(client, dataset, "--repo", "me/moved").code == 3
    assert heard == [None]


def test_a_token_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://me:geheim@hub.example")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ran = CliRunner().invoke(publish_command, ["nothing", "--repo", "me/x", "--yes"])
    assert ran.exit_code == 3
    assert "not encrypted" in ran.stderr
    assert "geheim" not in ran.output
    assert TOKEN not in ran.output

"""Publishing against a stand-in Hub: what leaves, in one piece, once, and back again byte for byte."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import curate.intake
from curate.manifest import MANIFEST, Manifest, read_manifest
from tests.hub_client import ROOT, Client, command, running_client
from tests.hub_server import READ_TOKEN, TOKEN, Hub, Repo, cut, deaf, first, garbled, running_hub, stalled, status
from tests.released import CODE_NAME, approved, built, sessions
from tests.sample_sessions import text_session

TABLES = ("sessions", "requests", "tool_calls")


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
    return approved(built(tmp_path_factory.mktemp("built") / "dataset"))


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    """A dataset of four sessions, three of them with text, approved."""
    return Path(shutil.copytree(original, tmp_path / "dataset"))


@pytest.fixture
def repo(request: pytest.FixtureRequest, hub: Hub) -> Iterator[str]:
    """A name that no other test uses; the faults and the log of the Hub are clean."""
    hub.faults.clear()
    hub.log.clear()
    yield f"me/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    assert hub.faults == [], "a fault that was asked for never happened"


WRITER = {"HF_TOKEN": TOKEN}


def published(run: Client, dataset: Path, repo: str, *more: str) -> None:
    ran = run("curate", "publish", dataset, "--repo", repo, "--yes", *more, environment=WRITER)
    assert ran.code == 0, ran.stderr


def manifest_at(repo: Repo) -> Manifest:
    import msgspec

    return msgspec.json.decode(repo.files[MANIFEST], type=Manifest)


def assert_whole(repo: Repo) -> Manifest:
    """Every file of the repository is one that its manifest lists, with its digest."""
    manifest = manifest_at(repo)
    listed = {entry.path: entry for entry in manifest.files}
    assert set(repo.files) == {*listed, MANIFEST, ".gitattributes"}
    for path, entry in listed.items():
        assert hashlib.sha256(repo.files[path]).hexdigest() == entry.sha256
        assert len(repo.files[path]) == entry.bytes
    return manifest


def objects_sent(hub: Hub) -> Counter[str]:
    return Counter(hub.asked("PUT", "^/lfs/"))


# One release ------------------------------------------------------------------------------------------------------


def test_a_release_is_one_commit_whole_private_gated_tagged_and_receipted(
    run: Client, hub: Hub, dataset: Path, repo: str
) -> None:
    ran = run(
        *("curate", "publish", dataset, "--repo", repo, "--private", "--gated", "manual", "--yes", "--json"),
        environment=WRITER,
    )
    assert ran.code == 0, ran.stderr
    found = hub.repos[repo]
    manifest = assert_whole(found)
    assert manifest.tier == "content-free"
    assert len(found.messages) == 2  # the Hub's own first commit, and the release
    assert (found.private, found.gated) == (True, "manual")
    assert (found.private_when_first_filled, found.gated_when_first_filled) == (True, "manual")
    said = json.loads(ran.stdout)
    assert found.tags == {said["tag"]: found.head}
    (line,) = (dataset / ".private/publish.jsonl").read_text().splitlines()
    receipt = json.loads(line)
    assert receipt["head"] == found.head
    assert receipt["fetched_files"] == len(manifest.files) + 1
    assert (dataset / ".private/publish.jsonl").stat().st_mode & 0o777 == 0o600
    assert TOKEN not in ran.stdout + ran.stderr + line


def test_publishing_again_sends_nothing(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    published(run, dataset, repo)
    head = hub.repos[repo].head
    hub.log.clear()
    ran = run("curate", "publish", dataset, "--repo", repo, environment=WRITER)  # nothing to ask either
    assert ran.code == 0, ran.stderr
    assert "already published" in ran.stderr
    assert hub.repos[repo].head == head
    assert [path for method, path, _ in hub.log if method in ("PUT", "POST") and "/tag/" not in path] == []


def test_a_killed_upload_goes_on_where_it_was(hub: Hub, dataset: Path, repo: str, tmp_path: Path) -> None:
    reached, over = threading.Event(), threading.Event()
    hub.on("PUT", "^/lfs/", first(lambda: None))
    hub.on("PUT", "^/lfs/", stalled(reached, over))
    arguments = command("curate", "publish", dataset, "--repo", repo, "--yes")
    process = subprocess.Popen(arguments, cwd=ROOT, env=hub.environment(tmp_path / "home"), stderr=subprocess.DEVNULL)
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    over.set()
    found = hub.repos[repo]
    assert MANIFEST not in found.files
    before = objects_sent(hub)
    assert before
    again = subprocess.run(
        arguments, cwd=ROOT, env=hub.environment(tmp_path / "home"), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert_whole(found)
    assert set(objects_sent(hub).values()) == {1}
    assert len(found.messages) == 2


def test_of_two_publishers_one_loses_cleanly(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    published(run, dataset, repo)
    found = hub.repos[repo]
    theirs = {**found.files, "NOTES.md": b"somebody else was here\n"}
    hub.on("POST", "/commit/", first(lambda: found.commit(theirs, "theirs")))
    grown = built(dataset.with_name("grown"), sessions(4))
    ran = run("curate", "publish", grown, "--repo", repo, "--yes", environment=WRITER)
    assert ran.code == 1
    assert "somebody else published" in ran.stderr
    assert "run the same command again" in ran.stderr
    assert found.files == theirs
    assert len(found.tags) == 1
    published(run, grown, repo)  # as it said
    assert found.files["NOTES.md"] == b"somebody else was here\n"
    assert manifest_at(found).rows["sessions"] == 5


def test_what_passes_is_tried_again(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    hub.on("GET", "/whoami", status(429, Retry_After="0"))
    hub.on("GET", "/tree/", status(503))
    hub.on("POST", "/preupload/", cut(10))
    hub.on("PUT", "^/lfs/", status(500))
    hub.on("PUT", "^/lfs/", cut())
    hub.on("PUT", "^/lfs/", status(429))
    hub.on("POST", "/validate-yaml", status(502))
    hub.on("POST", "/commit/", status(500))
    hub.on("GET", "/resolve/", cut(0))
    published(run, dataset, repo)
    assert_whole(hub.repos[repo])
    assert len(hub.repos[repo].messages) == 2


def test_a_commit_whose_answer_is_lost_is_not_made_twice(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    hub.on("POST", "/commit/", deaf())
    published(run, dataset, repo)
    assert_whole(hub.repos[repo])
    assert len(hub.repos[repo].messages) == 2


def test_a_file_that_comes_back_changed_is_said(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    hub.on("GET", "/resolve/.*/data/requests/", garbled())
    ran = run("curate", "publish", dataset, "--repo", repo, "--yes", environment=WRITER)
    assert ran.code == 1
    assert "data/requests/" in ran.stderr
    assert "other bytes" in ran.stderr


def test_the_next_release_sends_only_what_is_new(
    run: Client, hub: Hub, repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 2)
    one = built(tmp_path / "one", [text_session(f"session-{n}") for n in range(4)])
    published(run, one, repo)
    found = hub.repos[repo]
    before = {path for path in found.files if path.startswith("data/")}
    assert len(before) == 6
    hub.log.clear()
    two = built(tmp_path / "two", [text_session(f"session-{n}") for n in range(6)], previous=one)
    published(run, two, repo)
    after = set(assert_whole(found).files)
    assert before < {entry.path for entry in after}
    new = {entry.sha256 for entry in after if entry.path.startswith("data/") and entry.path not in before}
    assert len(new) == 3
    assert {path.rpartition("/")[2] for path in objects_sent(hub)} == new
    assert b"previous release" in found.files["README.md"].lower() or b"release before" in found.files["README.md"]
    hub.log.clear()
    published(run, two, repo)  # the drift on the card is against `one` still, so this is the same release
    assert objects_sent(hub) == {}
    assert len(found.messages) == 3


def test_a_place_that_stays_away_is_said_in_one_sentence(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    hub.on("POST", "/preupload/", status(400))
    ran = run("curate", "publish", dataset, "--repo", repo, "--yes", environment=WRITER)
    assert ran.code == 3
    assert "status 400" in ran.stderr
    assert "not sent twice" in ran.stderr
    assert list(hub.repos[repo].files) == [".gitattributes"]


# Who may not ------------------------------------------------------------------------------------------------------


def test_a_place_that_is_not_ours_is_left_alone(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    hub.repos[repo] = Repo()
    hub.repos[repo].commit({"train.csv": b"a,b\n"}, "a dataset of somebody")
    ran = run("curate", "publish", dataset, "--repo", repo, "--yes", environment=WRITER)
    assert ran.code == 1
    assert "'train.csv'" in ran.stderr
    assert hub.repos[repo].files == {"train.csv": b"a,b\n"}


def test_a_strangers_file_among_our_tables_is_refused(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    published(run, dataset, repo)
    found = hub.repos[repo]
    found.commit({**found.files, "data/requests/train-more.parquet": b"PAR1"}, "theirs")
    ran = run(
        "curate", "publish", built(dataset.with_name("g"), sessions(4)), "--repo", repo, "--yes", environment=WRITER
    )
    assert ran.code == 1
    assert "train-more.parquet" in ran.stderr


@pytest.mark.parametrize(
    ("token", "said"),
    [(READ_TOKEN, "may only read"), ("hf_" + "x" * 34, "not accepted"), ("", "no token")],
    ids=["reads", "unknown", "none"],
)
def test_a_token_that_may_not_write_is_said(
    run: Client, hub: Hub, dataset: Path, repo: str, token: str, said: str
) -> None:
    ran = run("curate", "publish", dataset, "--repo", repo, "--yes", environment={"HF_TOKEN": token})
    assert ran.code == 3
    assert said in ran.stderr
    assert not token or token not in ran.stderr
    assert repo not in hub.repos


def test_usage(run: Client, dataset: Path, repo: str, tmp_path: Path) -> None:
    for arguments, said in (
        (("--repo", repo), "--dry-run"),  # nobody to ask
        ((), "one place"),
        (("--repo", repo, "--to", "x"), "one place"),
        (("--repo", "no-slash", "--yes"), "ORG/NAME"),
        (("--repo", repo, "--token-env", "NO_SUCH_NAME", "--yes"), "NO_SUCH_NAME"),
        (("--repo", repo, "--tag", "a b", "--yes"), "--tag"),
        (("--repo", repo, "--out", tmp_path / "x"), "--dry-run"),
    ):
        ran = run("curate", "publish", dataset, *arguments, environment=WRITER)
        assert ran.code == 2, arguments
        assert said in ran.stderr
    ran = run("curate", "publish", tmp_path / "nothing", "--to", tmp_path / "x", "--yes")
    assert ran.code == 2
    assert "no such folder" in ran.stderr


def test_a_tag_that_names_another_state_is_refused_before_anything_is_sent(
    run: Client, hub: Hub, dataset: Path, repo: str
) -> None:
    published(run, dataset, repo, "--tag", "v1")
    hub.log.clear()
    grown = built(dataset.with_name("grown"), sessions(4))
    ran = run("curate", "publish", grown, "--repo", repo, "--yes", "--tag", "v1", environment=WRITER)
    assert ran.code == 1
    assert "'v1'" in ran.stderr
    assert objects_sent(hub) == {}


# Text -------------------------------------------------------------------------------------------------------------


def test_text_needs_an_approval_of_these_very_bytes(run: Client, hub: Hub, dataset: Path, repo: str) -> None:
    arguments = ("curate", "publish", dataset, "--repo", repo, "--with-text", "--yes")
    with (dataset / MANIFEST).open("ab") as file:
        file.write(b"\n")
    ran = run(*arguments, environment=WRITER)
    assert ran.code == 2
    assert "changed since" in ran.stderr
    (dataset / ".private/approval.json").unlink()
    ran = run(*arguments, environment=WRITER)
    assert ran.code == 2
    assert "not approved" in ran.stderr
    assert repo not in hub.repos


def test_a_release_with_text_loads_and_its_viewer_files_are_nobodys_rows(
    run: Client, hub: Hub, dataset: Path, repo: str, tmp_path: Path
) -> None:
    published(run, dataset, repo, "--with-text")
    found = hub.repos[repo]
    assert assert_whole(found).tier == "text"
    traces = [path for path in found.files if path.startswith("traces/")]
    assert len(traces) == 3
    card = found.files["README.md"].decode()
    assert all(f"({path})" in card for path in traces)
    assert "looked at each of 4 sessions" in card
    assert CODE_NAME not in b"".join(found.files.values()).decode("utf-8", "replace")
    code = """
import json, sys
from datasets import load_dataset
for name in ("sessions", "requests", "tool_calls"):
    data = load_dataset(sys.argv[1], name, split="train")
    print(json.dumps([name, len(data), sorted(data.column_names)]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, repo],
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    loaded = {name: (rows, columns) for name, rows, columns in map(json.loads, ran.stdout.splitlines())}
    local = read_manifest(dataset)
    assert {name: rows for name, (rows, _) in loaded.items()} == local.rows
    assert "messages" in loaded["sessions"][1]


# Dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_every_byte_and_sends_none(
    run: Client, hub: Hub, dataset: Path, repo: str, tmp_path: Path
) -> None:
    arguments = ("curate", "publish", dataset, "--repo", repo, "--dry-run")
    ran = run(*arguments, "--json", "--out", tmp_path / "staged", environment=WRITER)
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    staged = {
        path.relative_to(tmp_path / "staged").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "staged").rglob("*")
        if path.is_file()
    }
    assert {entry["path"]: entry["sha256"] for entry in said["files"]} == staged
    assert sorted(said["to_send"]) == sorted(staged)
    assert said["licenses"] == ["Apache-2.0", "CC-BY-4.0"]
    columns = {(entry["table"], entry["column"]): entry for entry in said["columns"]}
    assert columns["sessions", "messages"]["action"] == "removed"
    assert columns["sessions", "messages"]["example"] is None
    assert columns["requests", "t_send_us"]["example"] == "0"
    text = run(*arguments, environment=WRITER).stdout
    assert all(path in text and digest in text for path, digest in staged.items())
    assert repo not in hub.repos
    published(run, dataset, repo)
    found = hub.repos[repo].files
    assert {path: hashlib.sha256(found[path]).hexdigest() for path in staged} == staged


def test_a_dry_run_works_without_a_network(run: Client, dataset: Path, hub: Hub, repo: str) -> None:
    ran = run(
        "curate", "publish", dataset, "--repo", repo, "--dry-run", "--with-text", environment={"HF_TOKEN": "hf_no"}
    )
    assert ran.code == 0, ran.stderr
    assert "as for an empty place" in ran.stderr
    assert "session-0" in ran.stdout


def test_content_free_rows_are_the_same_numbers(
    run: Client, hub: Hub, dataset: Path, repo: str, tmp_path: Path
) -> None:
    published(run, dataset, repo)
    for path, data in hub.repos[repo].files.items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    same = ["session_id", "request_index", "t_send_us", "prompt_tokens", "completion_tokens", "gap_us", "block_hashes"]
    ours = pl.read_parquet(dataset / "data/requests/*.parquet").select(same).sort(same[:2])
    theirs = pl.read_parquet(tmp_path / "copy/data/requests/*.parquet").select(same).sort(same[:2])
    assert ours.equals(theirs)

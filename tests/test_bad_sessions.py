"""What no session should be like: each gets a reason in the funnel or one clear sentence, and no row is lost."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings

import curate.build
import curate.intake
from capture.call import Message, ToolUse
from capture.journal import JournalWriter
from capture.shelf import Shelf
from capture.store import Store
from capture.trajectory import Trajectory
from curate.build import LostSessions, build, build_sources
from curate.choice import Choice
from curate.command import curate as curate_group
from curate.dataset import Dataset
from curate.manifest import WORK
from curate.pool import WorkerDied
from curate.receipts import ShardReceipt
from curate.redact import Redacted, Redactor
from curate.shard import ShardTask
from tests.kept_store import SESSIONS, record
from tests.sample_sessions import (
    KEY,
    NO_PLOTS,
    any_of,
    content_free_session,
    make,
    pooled,
    request,
    seven,
    source,
    text_session,
)


def changed(**changes: Any) -> Trajectory:
    """A session of which the second request is other."""
    session = text_session("bad")
    requests = list(session.requests)
    requests[1] = replace(requests[1], **changes)
    return replace(session, requests=tuple(requests))


def called(**changes: Any) -> Trajectory:
    session = text_session("bad")
    return replace(session, tool_calls=(replace(session.tool_calls[0], **changes), *session.tool_calls[1:]))


BACKWARDS = "its clock goes backwards: "
EARLY = f"{BACKWARDS}a request is answered or over before it was sent"
BAD: dict[str, tuple[Trajectory, str]] = {
    "empty": (replace(text_session("bad"), requests=()), "holds no request"),
    "nothing at all": (replace(text_session("bad"), requests=(), pool=(), tool_sets=()), "holds no request"),
    "its own parent": (changed(parent_request_index=1), "a request is its own ancestor"),
    "a circle of parents": (
        replace(
            text_session("bad"),
            requests=tuple(
                replace(each, parent_request_index=(each.request_index + 1) % 4) for each in text_session().requests
            ),
        ),
        "a request is its own ancestor",
    ),
    "a circle of retries": (changed(retry_of=1), "a request is its own ancestor"),
    "no parent": (changed(parent_request_index=99), "a request continues one that is not there"),
    "twice": (changed(request_index=0), "a request index stands twice"),
    "ends before it was sent": (
        changed(t_end_us=9_999_999),
        EARLY,
    ),
    "speaks before it was asked": (
        changed(t_first_token_us=1),
        EARLY,
    ),
    "sent before the first": (
        changed(t_send_us=-5, t_headers_us=None, t_first_byte_us=None, t_first_token_us=None),
        f"{BACKWARDS}a request was sent before the first one",
    ),
    "negative gap": (changed(gap_us=-1), f"{BACKWARDS}a gap is negative"),
    "negative time between events": (changed(itl_us=(5, -5)), f"{BACKWARDS}a gap is negative"),
    "negative tool": (called(wall_us=-8), f"{BACKWARDS}a tool's time is negative"),
    "negative session": (
        replace(text_session("bad"), duration_us=-1),
        f"{BACKWARDS}a duration of the session is negative",
    ),
    "negative tokens": (changed(prompt_tokens=-1), "a token count is negative"),
    "tool of nobody": (called(request_index=77), "a tool call belongs to a request that is not there"),
    "prompt beyond": (changed(prompt_spans=((0, 99),)), "a prompt reaches beyond the session's messages"),
    "tools beyond": (changed(tools_index=9), "a request offers tools that are not there"),
    "hash of 65 bits": (
        replace(
            content_free_session("bad"), requests=(replace(content_free_session().requests[0], block_hashes=(2**64,)),)
        ),
        "a block hash is no 64-bit number",
    ),
    "negative hash": (
        replace(
            content_free_session("bad"), requests=(replace(content_free_session().requests[0], block_hashes=(-1,)),)
        ),
        "a block hash is no 64-bit number",
    ),
    "status of 40 bits": (changed(status=2**40), "a value does not fit its column of `requests`"),
    "bytes of 80 bits": (changed(bytes_up=2**80), "a value does not fit its column of `requests`"),
}


def test_bad_sessions_leave_the_good_ones_alone(tmp_path: Path) -> None:
    bad = [replace(session, session_id=f"bad-{number}") for number, (session, _) in enumerate(BAD.values())]
    mixed = [
        each for pair in zip(bad, [text_session(f"good-{n}") for n in range(len(bad))], strict=True) for each in pair
    ]
    report = make(mixed, tmp_path / "d")
    assert report.dropped == Counter(reason for _, reason in BAD.values())
    assert {drop.stage for drop in report.drops} == {"filter"}
    assert (report.read, report.kept) == (2 * len(bad), len(bad))
    assert set(Dataset.open(tmp_path / "d").session_ids) == {f"good-{n}" for n in range(len(bad))}
    again = make(mixed, tmp_path / "d")  # what was left out is known to be left out
    assert (again.built, again.dropped, again.digest) == (0, report.dropped, report.digest)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_of(Trajectory))
def test_any_trajectory_is_built_or_left_out(tmp_path_factory: pytest.TempPathFactory, trajectory: Trajectory) -> None:
    from curate.labels import NO_LABEL
    from curate.published import published_json
    from curate.recipe import Recipe
    from curate.shard import SessionInput, ShardTask, build_shard, pack

    folder = tmp_path_factory.mktemp("any")
    (folder / WORK).mkdir()
    given = SessionInput(
        session_id=trajectory.session_id,
        input="0",
        packed=pack(published_json(trajectory)),
        label=NO_LABEL,
        peak_agents=None,
    )
    receipt = build_shard(
        ShardTask(
            input_digest="0" * 64,
            split="train",
            sessions=(given,),
            redactor=Redactor(key=KEY),
            tokenizer="o200k_base",
            recipe=Recipe(),
            block_key=KEY,
            folder=folder,
            work=folder / WORK,
        )
    )
    (work,) = receipt.sessions
    assert (work.digest is None) == bool(work.reason)
    assert bool(receipt.files) == (work.digest is not None)
    shutil.rmtree(folder)


# Texts ------------------------------------------------------------------------------------------------------------


def test_text_that_is_no_text(tmp_path: Path) -> None:
    """Half characters, zeros, a BOM, no end of blanks."""
    texts = ["a\ud800b", "\x00\x01\x7f", "\ufeffx", " " * 300_000, "\u202e" * 50, "é" * 100_000, ""]
    session = text_session("odd")
    pool = tuple(pooled(Message(role="user", content=text, reasoning_content=text), 0) for text in texts)
    use = ToolUse(id="\udfff", name="\x00", arguments='{"a": \ud83d}')
    pool += (pooled(Message(role="assistant", content="", tool_calls=(use,)), 0, answer=True),)
    one = request(0, prompt_spans=((0, len(texts)),), answer_index=len(texts), error="\udc00", tools_index=None)
    make([replace(session, pool=pool, requests=(one,), tool_calls=())], tmp_path / "d")
    (back,) = Dataset.open(tmp_path / "d").trajectories()
    assert [each.message.content for each in back.pool[:-1]] == [text.replace("\ud800", "\ufffd") for text in texts]
    assert back.requests[0].error == "\ufffd"


def test_a_tool_output_of_50_megabytes(tmp_path: Path) -> None:
    line = "drwxr-xr-x 2 builder builder 4096 Nov 20 10:00 node_modules/left-pad/index.js\n"
    huge = line * (50_000_000 // len(line))
    session = text_session("huge")
    pool = tuple(
        replace(each, message=replace(each.message, content=huge)) if number == 3 else each
        for number, each in enumerate(session.pool)
    )
    report = make([replace(session, pool=pool), text_session("small")], tmp_path / "d")
    assert (report.kept, report.dropped) == (2, {})
    rows = pl.read_parquet(tmp_path / "d/data/sessions/*.parquet").filter(pl.col("session_id") == "huge")
    (messages,) = rows["messages"].to_list()
    assert messages[3]["truncated_bytes"] > 41_000_000
    assert len(messages[3]["content"].encode()) <= 8_000_000
    assert {each["truncated_bytes"] for at, each in enumerate(messages) if at != 3} == {0}


# Stores -----------------------------------------------------------------------------------------------------------


def kept_store(path: Path) -> Store:
    store = Store.open(path, create=True)
    Shelf(path).put_all([replace(each, source="claude-code-log") for each in seven()])
    return store


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    envelope = msgspec.json.decode(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
    change(envelope)
    path.write_bytes(zstandard.ZstdCompressor().compress(msgspec.json.encode(envelope)))


def newer(envelope: dict[str, Any]) -> None:
    envelope["version"] = 9
    envelope["trajectory"] = {"all": "is other"}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: rewrite(path, newer), "has format version 9, this agentdyno reads 1: install a newer one"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is damaged"),
        (lambda path: path.write_bytes(b"\xff\xfe not a session"), "is damaged"),
        (lambda path: path.write_bytes(zstandard.ZstdCompressor().compress(b'{"version": 1, "traj\xff')), "is damaged"),
    ],
    ids=["newer", "cut", "foreign", "broken UTF-8"],
)
def test_a_session_of_a_store_that_cannot_be_read_is_in_the_funnel(
    tmp_path: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    kept_store(tmp_path / "store")
    spoil(tmp_path / "store/imported/session-3.json.zst")
    report = build([tmp_path / "store"], tmp_path / "d", jobs=1, recipe=NO_PLOTS)
    (reason,) = report.dropped
    assert sentence in reason
    assert str(tmp_path) not in reason
    assert (report.kept, [drop.stage for drop in report.drops]) == (6, ["read"])


@pytest.mark.parametrize("damage", ["newer schema", "not a journal", "cut", "broken bodies"])
def test_a_damaged_journal_is_in_the_funnel_and_the_rest_is_built(tmp_path: Path, damage: str) -> None:
    store = Store.open(tmp_path / "store", create=True)
    record(store)
    journal = store.journals()[0]
    if damage == "newer schema":
        with sqlite3.connect(journal) as database:
            database.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
        database.close()
    elif damage == "not a journal":
        journal.write_bytes(b"\xff" * 5000)
    elif damage == "cut":
        journal.write_bytes(journal.read_bytes()[:-3000])
    else:
        bodies(store)
    Shelf(store.path).put_all([replace(each, source="claude-code-log") for each in seven()])
    report = build([store.path], tmp_path / "d", jobs=1, recipe=NO_PLOTS)
    assert report.kept >= 7
    if damage == "broken bodies":
        assert report.kept >= 7 + len(SESSIONS)
    else:
        assert any(drop.stage == "read" and drop.reason.startswith("journal-") for drop in report.drops)
        assert not any(str(tmp_path) in drop.reason for drop in report.drops)


def bodies(store: Store) -> None:
    """Calls whose bodies are no UTF-8, no JSON, nothing."""
    writer = JournalWriter(store.path, key=store.key, meta={})
    for number, body in enumerate(
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}', b"\xc3(", b"")
    ):
        headers = ((b"content-type", b"application/json"),)
        call = writer.send(
            at_ns=number, connection="1", method="POST", host="h:1", path="/v1/chat/completions", headers=headers
        )
        writer.sent(call, at_ns=number, body=body)
        writer.headers(call, at_ns=number + 1, status=200, headers=headers)
        writer.read(call, number + 2, body)
        writer.end(call, at_ns=number + 3, outcome="complete")
    writer.close()


# Workers ----------------------------------------------------------------------------------------------------------


@dataclass
class Deadly:
    """A redactor in whose process the kernel runs out of memory at one session."""

    session_id: str
    rules: str = "deadly"
    policy: str = "deadly"

    def trajectory(self, trajectory: Trajectory) -> Redacted:
        if trajectory.session_id == self.session_id:
            os.kill(os.getpid(), signal.SIGKILL)
        return Redactor(key=KEY).trajectory(trajectory)

    def text(self, text: str) -> tuple[str, Counter[str]]:
        return text, Counter()


def test_a_worker_that_is_killed_is_one_sentence_and_what_is_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curate.intake, "SHARD_SESSIONS", 1)
    deadly = replace(source(seven()), redactor=Deadly("session-5"))
    with pytest.raises(WorkerDied, match=r"a worker process was killed .* memory .* fewer --jobs"):
        build_sources([deadly], tmp_path / "d", tokenizer="o200k_base", jobs=2, recipe=NO_PLOTS)
    report = build_sources(
        [replace(deadly, redactor=Deadly("nobody"))], tmp_path / "d", tokenizer="o200k_base", jobs=1, recipe=NO_PLOTS
    )
    assert report.kept == 7
    assert report.built < 7


def test_the_command_says_it_with_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_store(tmp_path / "store")

    def die(*_: object) -> None:
        raise WorkerDied("a worker process was killed in the middle of its shard")

    monkeypatch.setattr(curate.build, "run_shards", die)
    done = CliRunner().invoke(curate_group, ["build", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "d")])
    assert (done.exit_code, done.stdout) == (3, "")
    assert "Error: a worker process was killed in the middle of its shard" in done.stderr


# Nothing is lost --------------------------------------------------------------------------------------------------


def test_a_session_that_gets_lost_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = curate.build.choose

    def lose(*arguments: Any) -> Choice:
        choice = real(*arguments)
        del choice.kept["session-2"]
        return choice

    monkeypatch.setattr(curate.build, "choose", lose)
    with pytest.raises(LostSessions, match="7 sessions read, 6 kept, 0 left out"):
        make(seven(), tmp_path / "d")


def test_a_session_that_a_worker_does_not_bring_back_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import curate.pool

    real = curate.pool.build_shard

    def lose(task: ShardTask) -> ShardReceipt:
        return replace(receipt := real(task), sessions=receipt.sessions[1:])

    monkeypatch.setattr(curate.pool, "build_shard", lose)
    with pytest.raises(LostSessions, match="session-0 was given to a worker and did not come back"):
        make(seven(), tmp_path / "d")

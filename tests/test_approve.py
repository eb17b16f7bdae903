"""Approval: what must be looked at first, what a sample says, which bytes are bound; and the two commands."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agentdyno import main
from curate.approval import check_approval, read_approval
from curate.dataset import Dataset
from curate.manifest import MANIFEST, PRIVATE, DatasetFault, read_manifest
from curate.review import approve as approving
from curate.review.approve import Undecided, approve
from curate.review.decision import REASONS, Decisions
from curate.review.queue import Queue
from curate.review.sampling import SampleSize, draw, most_bad_left
from curate.review.server import Review, serving
from tests.review_client import Client
from tests.review_sample import RECIPE, build_sample
from tests.sample_sessions import make, text_session


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sample(tmp_path_factory.mktemp("review") / "sample", ordinary_sessions=6)


@pytest.fixture
def sample(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "sample"))


def decide_all(folder: Path, verdict: Any = "approve", **options: Any) -> Queue:
    queue = Queue.open(folder, **options)
    for case in queue.cases.values():
        queue.decide(case, verdict, reason=None, reviewer="r", version="0")
    return queue


# Sample


@pytest.mark.parametrize(("text", "of_40"), [("50", 40), ("7", 7), ("10%", 4), ("0.1%", 1), ("100%", 40), ("12.5%", 5)])
def test_a_sample_is_a_number_or_a_share(text: str, of_40: int) -> None:
    assert SampleSize.parse(text).of(40) == of_40
    assert str(SampleSize.parse(text)) == text


@pytest.mark.parametrize("text", ["", "0", "-3", "0%", "101%", "ten", "10 %%", "1e3"])
def test_what_is_no_sample_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a sample is a number"):
        SampleSize.parse(text)


@given(
    st.sets(st.text(min_size=1, max_size=6), min_size=1), st.sets(st.text(min_size=1, max_size=6)), st.integers(1, 9)
)
def test_a_draw_holds_all_of_high_risk_and_depends_on_the_digest_alone(
    high: set[str], others: set[str], n: int
) -> None:
    others -= high
    drawn = draw(SampleSize(sessions=n), "digest", high, others)
    assert drawn.always == high
    assert len(drawn.drawn) == min(n, len(others))
    assert drawn.drawn <= others
    assert draw(SampleSize(sessions=n), "digest", sorted(high), sorted(others, reverse=True)) == drawn


def test_another_digest_draws_others() -> None:
    names = [f"s{n}" for n in range(200)]
    draws = [draw(SampleSize(sessions=20), f"digest-{n}", (), names).drawn for n in range(5)]
    assert len(set(draws)) == 5


@pytest.mark.parametrize(("bad", "drawn", "population"), [(0, 5, 12), (1, 5, 12), (2, 9, 30), (0, 1, 2), (0, 20, 40)])
def test_the_bound_is_the_most_that_a_draw_does_not_rule_out(bad: int, drawn: int, population: int) -> None:
    from math import comb

    def chance(bad_in_all: int) -> float:
        return sum(comb(bad_in_all, k) * comb(population - bad_in_all, drawn - k) for k in range(bad + 1)) / comb(
            population, drawn
        )

    most = most_bad_left(bad, drawn, population)
    assert chance(bad + most) > 0.05 or most == 0
    assert bad + most == population - drawn + bad or chance(bad + most + 1) <= 0.05


def test_the_bound_of_a_clean_sample_of_many_is_the_rule_of_three() -> None:
    assert most_bad_left(0, 300, 1_000_000) / 1_000_000 == pytest.approx(3 / 300, rel=0.01)
    assert most_bad_left(0, 0, 7) == 7
    assert most_bad_left(0, 7, 7) == 0


# Approve


def test_approval_is_refused_while_sessions_are_undecided(sample: Path) -> None:
    queue = Queue.open(sample)
    *rest, last = queue.cases.values()
    for case in rest:
        queue.decide(case, "approve", reason=None, reviewer="r", version="0")
    with pytest.raises(Undecided, match=r"1 session of .* is not decided: agentdyno curate review"):
        approve(sample, reviewer="r")
    with pytest.raises(DatasetFault, match="is not approved"):
        check_approval(sample, read_manifest(sample))
    queue.decide(last, "approve", reason=None, reviewer="r", version="0")
    approval = approve(sample, reviewer="r").approval
    assert (approval.sessions, approval.approved, approval.dropped, approval.unseen) == (9, 9, 0, 0)
    check_approval(sample, read_manifest(sample))
    assert (sample / PRIVATE / "approval.json").stat().st_mode & 0o777 == 0o600


def test_dropped_sessions_are_gone_and_the_rest_is_approved(sample: Path) -> None:
    queue = decide_all(sample)
    first, second, *_ = queue.cases.values()
    queue.decide(first, "drop", reason=REASONS[0], reviewer="r", version="0")
    queue.decide(second, "drop", reason="Bob's salary is in it", reviewer="r", version="0")
    done = approve(sample, reviewer="r")
    assert (done.approval.approved, done.approval.dropped) == (7, 2)
    manifest = Dataset.open(sample).manifest
    assert {first.session_id, second.session_id}.isdisjoint(Dataset.open(sample).session_ids)
    reasons = {drop.reason: drop.n for drop in manifest.drops if drop.stage == "review"}
    assert reasons == {"dropped by the reviewer: a secret is left": 1, "dropped by the reviewer: another reason": 1}
    assert "salary" not in (sample / MANIFEST).read_text() + (sample / "README.md").read_text()
    check_approval(sample, manifest)
    assert approve(sample, reviewer="r") == dataclasses.replace(done, already=True)
    assert done.approval.public.sentence == "A person looked at each of 9 sessions; 2 were dropped."
    assert '"r"' not in json.dumps(dataclasses.asdict(done.approval.public))


@pytest.mark.parametrize("which", ["shard", "paper", "manifest"])
def test_any_changed_byte_voids_an_approval(sample: Path, which: str) -> None:
    approve(sample, reviewer="r", without_review=True)
    manifest = read_manifest(sample)
    check_approval(sample, manifest)
    path = {
        "shard": sample / manifest.shards[0].files["sessions"].path,
        "paper": sample / manifest.papers[0].path,
        "manifest": sample / MANIFEST,
    }[which]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DatasetFault, match=r"has changed since|not what was approved"):
        check_approval(sample, manifest)
    path.write_bytes(data)
    check_approval(sample, manifest)


def test_a_drop_after_the_approval_voids_it_and_the_next_one_obeys(sample: Path) -> None:
    decide_all(sample)
    approve(sample, reviewer="r")
    own = Queue.open(sample, contributor="c-90aa")
    case = next(iter(own.cases.values()))
    own.decide(case, "drop", reason="no consent or licence", reviewer="jo", version="0")
    with pytest.raises(DatasetFault, match=r"1 session of .* was dropped in a review and is in it still"):
        check_approval(sample, read_manifest(sample))
    done = approve(sample, reviewer="r")
    assert not done.already
    assert case.session_id not in Dataset.open(sample).session_ids
    assert {drop.reason for drop in read_manifest(sample).drops if drop.stage == "review"} == {
        "dropped by its contributor: no consent or licence"
    }
    check_approval(sample, read_manifest(sample))


def test_after_a_rebuild_only_what_is_new_or_changed_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sessions = [text_session(f"session-{n}", turns=n + 1) for n in range(4)]
    make(sessions, folder, recipe=RECIPE)
    decide_all(folder)
    approve(folder, reviewer="r")
    make([*sessions, text_session("session-new")], folder, recipe=RECIPE)
    with pytest.raises(DatasetFault, match="has changed since"):
        check_approval(folder, read_manifest(folder))
    states = {name: standing.state for name, standing in Queue.open(folder).standings().items()}
    assert states == {**{f"session-{n}": "approved" for n in range(4)}, "session-new": "undecided"}
    make([text_session("session-0", turns=2), *sessions[1:]], folder, recipe=RECIPE)
    states = {name: standing.state for name, standing in Queue.open(folder).standings().items()}
    assert states["session-0"] == "stale"
    with pytest.raises(Undecided, match="1 of them decided before a build changed them"):
        approve(folder, reviewer="r")


def test_a_dropped_session_stays_out_of_a_rebuild(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sessions = [text_session(f"session-{n}", turns=n + 1) for n in range(3)]
    make(sessions, folder, recipe=RECIPE)
    queue = decide_all(folder)
    queue.decide(queue.cases["session-1"], "drop", reason="personal data", reviewer="r", version="0")
    approve(folder, reviewer="r")
    report = make([*sessions, text_session("session-3", turns=4)], folder, recipe=RECIPE)
    assert [(drop.stage, drop.reason, drop.n) for drop in report.drops] == [
        ("review", "dropped by the reviewer: personal data", 1)
    ]
    queue = Queue.open(folder)
    states = {name: standing.state for name, standing in queue.standings().items()}
    assert states == {"session-0": "approved", "session-2": "approved", "session-3": "undecided"}
    queue.decide(queue.cases["session-3"], "approve", reason=None, reviewer="r", version="0")
    approve(folder, reviewer="r")
    assert set(Dataset.open(folder).session_ids) == {"session-0", "session-2", "session-3"}


def test_a_release_that_continues_another_begins_with_its_decisions(tmp_path: Path) -> None:
    sessions = [text_session(f"session-{n}", turns=n + 1) for n in range(2)]
    make(sessions, tmp_path / "one", recipe=RECIPE)
    decide_all(tmp_path / "one")
    more = [*sessions, text_session("session-2", turns=3)]
    make(more, tmp_path / "two", recipe=RECIPE, previous=tmp_path / "one")
    states = {name: standing.state for name, standing in Queue.open(tmp_path / "two").standings().items()}
    assert states == {"session-0": "approved", "session-1": "approved", "session-2": "undecided"}
    queue = Queue.open(tmp_path / "two")
    queue.decide(queue.cases["session-0"], "drop", reason=None, reviewer="r", version="0")
    make(more, tmp_path / "two", recipe=RECIPE, previous=tmp_path / "one")
    assert Dataset.open(tmp_path / "two").session_ids == ("session-1", "session-2")


def test_a_sample_states_what_it_looked_at_and_what_it_does_not_rule_out(sample: Path) -> None:
    size = SampleSize.parse("3")
    queue = Queue.open(sample, sample=size)
    high = [case.session_id for case in Queue.open(sample).cases.values() if case.risk.level == "high"]
    assert set(high) < set(queue.cases)
    assert len(queue.cases) == len(high) + 3
    with pytest.raises(Undecided, match=rf"{len(queue.cases)} sessions .* --sample 3"):
        approve(sample, reviewer="r", sample=size)
    for case in queue.cases.values():
        queue.decide(case, "approve", reason=None, reviewer="r", version="0")
    approval = approve(sample, reviewer="r", sample=size).approval
    assert approval.sample is not None
    assert (approval.sample.high_risk, approval.sample.drawn) == (len(high), 3)
    assert approval.sample.population == 9 - len(high)
    assert approval.sample.bad_left_at_most == most_bad_left(0, 3, 9 - len(high))
    assert approval.sample.seed == queue.manifest.digest
    assert "drawn at random" in approval.public.sentence
    check_approval(sample, read_manifest(sample))
    with pytest.raises(Undecided):
        approve(sample, reviewer="r")  # a sample is no review of all


def test_a_sampled_approval_with_drops_is_not_drawn_again(sample: Path) -> None:
    size = SampleSize.parse("4")
    queue = decide_all(sample, sample=size)
    assert queue.draw is not None
    gone = min(queue.draw.drawn)
    queue.decide(queue.cases[gone], "drop", reason="personal data", reviewer="r", version="0")
    done = approve(sample, reviewer="r", sample=size)
    assert done.approval.sample is not None
    assert done.approval.sample.drawn_dropped == 1
    assert approve(sample, reviewer="r", sample=size).already


def test_an_approval_that_was_cut_after_its_drops_is_finished(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = SampleSize.parse("4")
    queue = decide_all(sample, sample=size)
    assert queue.draw is not None
    queue.decide(queue.cases[min(queue.draw.drawn)], "drop", reason="personal data", reviewer="r", version="0")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(approving, "write_approval", killed)
        with pytest.raises(KeyboardInterrupt):
            approve(sample, reviewer="r", sample=size)
    assert read_approval(sample) is None
    approval = approve(sample, reviewer="r", sample=size).approval
    assert (approval.sessions, approval.dropped) == (9, 1)
    check_approval(sample, read_manifest(sample))


def test_approving_without_review_says_so_but_obeys_drops(sample: Path) -> None:
    queue = Queue.open(sample, contributor="c-90aa")
    case = next(iter(queue.cases.values()))
    queue.decide(case, "drop", reason="personal data", reviewer="jo", version="0")
    approval = approve(sample, reviewer="r", without_review=True).approval
    assert approval.public.sentence == (
        "The owner approved the 9 sessions without a review of each. 1 of them had been looked at; 1 was dropped."
    )
    assert approval.by_contributors == 1
    assert case.session_id not in Dataset.open(sample).session_ids


def test_a_stale_drop_is_asked_again_even_without_review(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    make([text_session("session-0"), text_session("session-1")], folder, recipe=RECIPE)
    decide_all(folder, "drop")
    make([text_session("session-0", turns=2), text_session("session-1", turns=2)], folder, recipe=RECIPE)
    with pytest.raises(Undecided, match="2 sessions"):
        approve(folder, reviewer="r", without_review=True)


def test_nothing_is_approved_when_all_was_dropped(sample: Path) -> None:
    decide_all(sample, "drop")
    with pytest.raises(DatasetFault, match=r"every session .* was dropped"):
        approve(sample, reviewer="r")


# Commands


def reviewing(folder: Path, ready: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agentdyno", "curate", "review", str(folder)]
    return subprocess.Popen(
        [*command, "--no-browser", "--ready-file", str(ready)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_commands_say_what_they_did_and_end_cleanly(sample: Path, tmp_path: Path) -> None:
    ready = tmp_path / "url"
    review = reviewing(sample, ready)
    try:
        assert review.stdout is not None
        url = review.stdout.readline().strip()
        assert ready.read_text().strip() == url
        client = Client(url)
        first = client.json("/api/queue")["cases"][0]
        client.decide(first["session_id"], first["digest"], "approve")
        review.send_signal(signal.SIGINT)
        _, said = review.communicate(timeout=60)
    finally:
        review.kill()
        review.wait()
    assert review.returncode == 0, said
    assert "1 approved, 0 dropped, 8 left" in said
    assert f"go on: agentdyno curate review {sample}" in said
    assert "Traceback" not in said
    assert not ready.exists()

    told = CliRunner().invoke(main, ["curate", "approve", str(sample), "--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout) == {"approved": False, "undecided": 8}
    assert "8 sessions" in told.stderr
    told = CliRunner().invoke(
        main, ["curate", "approve", str(sample), "--without-review", "--reviewer", "me", "--json"]
    )
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["reviewer"] == "me"
    assert "without a review of each" in told.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["review", "SET", "--listen", "0.0.0.0:0"], "not a loopback address"),
        (["review", "SET", "--sample", "many"], "a sample is a number"),
        (["review", "SET", "--sample", "3", "--contributor", "c"], "leave --sample away"),
        (["review", "SET", "--contributor", "nobody"], "no session of contributor"),
        (["review", "SET/nowhere"], "no such folder"),
        (["approve", "SET/nowhere"], "no such folder"),
        (["approve", "SET", "--sample", "3", "--without-review"], "exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_usage_errors(built: Path, words: list[str], said: str) -> None:
    told = CliRunner().invoke(main, ["curate", *(word.replace("SET", str(built)) for word in words)])
    assert told.exit_code == 2
    assert said in " ".join(told.stderr.split())


def test_a_port_in_use_is_one_sentence(built: Path) -> None:
    with serving(Review(Queue.open(built), reviewer="r")) as server:
        told = CliRunner().invoke(main, ["curate", "review", str(built), "--listen", f"127.0.0.1:{server.port}"])
    assert told.exit_code == 2
    assert "cannot listen on" in told.stderr


def test_the_browser_is_led_by_a_file_that_only_its_owner_reads(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.review.browser import opened

    seen: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: seen.append(url) or True)
    with opened("http://127.0.0.1:9/#token=secret", sample):
        [url] = seen
        assert "secret" not in url
        path = Path(url.removeprefix("file://"))
        assert path.stat().st_mode & 0o777 == 0o600
        assert "#token=secret" in path.read_text()
    assert not path.exists()


def test_a_decision_that_was_answered_survives_a_kill(sample: Path, tmp_path: Path) -> None:
    ready = tmp_path / "url"
    review = reviewing(sample, ready)
    try:
        until = time.monotonic() + 60
        while not ready.exists():
            assert review.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        assert ready.stat().st_mode & 0o777 == 0o600
        case = next(iter(Queue.open(sample).cases.values()))
        status, told = Client(ready.read_text().strip()).decide(case.session_id, case.digest, "drop", REASONS[0])
        assert (status, told["state"]) == (200, "dropped")
    finally:
        review.kill()
        review.communicate()
    standing = Decisions(sample).standing(case.session_id, case.digest)
    assert standing.state == "dropped"
    assert standing.decision is not None
    assert standing.decision.reason == REASONS[0]

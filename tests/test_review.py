"""Review: what a reviewer is shown, what a decision is bound to, and whom the server refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.call import Message
from curate.dataset import Dataset
from curate.manifest import MANIFEST, PRIVATE, DatasetFault, read_manifest
from curate.redact import marks
from curate.review.decision import JOURNAL, Decision, Decisions
from curate.review.finding import findings
from curate.review.queue import Queue
from curate.review.risk import HIGH, Evidence, risk_of
from curate.review.server import ListenFault, Review, loopback_address, serving
from curate.review.view import FOLD_FROM, HEAD, SessionView, read_rows
from tests.review_client import Client
from tests.review_sample import RECIPE, TOKEN, build_sample, hostile, invoice, long_output
from tests.sample_sessions import content_free_session, make, pooled, text_session

QUIET = Evidence(
    with_text=True,
    redacted=True,
    secrets={},
    identity=0,
    leftovers={},
    sensitive_files=(),
    longest_bytes=100,
    complete=True,
    gaps=0,
    body_missing=0,
    license="MIT",
    consent="agreed",
)


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


# Risk


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"redacted": False}, "no redaction ran over it"),
        ({"secrets": {"aws": 2, "github": 3}}, "5 secrets taken out: github, aws"),
        ({"identity": 40}, "40 names of people, paths or hosts replaced"),
        ({"leftovers": {"private key": 1}}, "left in: private key (1×)"),
        ({"leftovers": {"named value": 2}}, "left in: named value (2×)"),
        ({"sensitive_files": (".env",)}, "touched .env"),
        ({"longest_bytes": 3_000_000}, "a message of 3.0 MB"),
        ({"complete": False}, "recorded with gaps"),
        ({"license": None}, "no licence said"),
        ({"consent": None}, "no consent said"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_kind_of_evidence_raises_the_risk_and_says_so(change: dict[str, Any], reason: str) -> None:
    quiet = risk_of(QUIET, first_of_harness=False)
    assert quiet.score == 0
    assert quiet.reasons == ()
    assert quiet.level == "low"
    found = risk_of(dataclasses.replace(QUIET, **change), first_of_harness=False)
    assert found.score > 0
    assert found.reasons == (reason,)


def test_what_was_never_redacted_is_high_and_so_is_a_private_key_or_a_read_secrets_file_with_more() -> None:
    for change in ({"redacted": False}, {"leftovers": {"private key": 1}}, {"sensitive_files": (".env", "id_rsa")}):
        assert risk_of(dataclasses.replace(QUIET, **change), first_of_harness=False).score >= HIGH  # type: ignore[arg-type]
    assert risk_of(QUIET, first_of_harness=True).reasons == ("the first of its agent program",)


@given(
    st.dictionaries(st.sampled_from(["named value", "random text", "e-mail"]), st.integers(0, 50)), st.integers(0, 99)
)
def test_more_evidence_never_lowers_the_risk(leftovers: dict[str, int], secrets: int) -> None:
    evidence = dataclasses.replace(QUIET, leftovers=leftovers, secrets={"x": secrets} if secrets else {})
    more = dataclasses.replace(
        evidence, leftovers={kind: n + 1 for kind, n in leftovers.items()}, secrets={"x": secrets + 1}
    )
    assert risk_of(more, first_of_harness=False).score >= risk_of(evidence, first_of_harness=False).score


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the password is Winter-Abend7 for now", "named value"),
        ('"api_key": "k9-4471-zz"', "named value"),
        ("use AbCd1234EfGh5678IjKl9012 there", "random text"),
        ("mail jo.berger@mueller-und-co.de", "e-mail"),
        ("listens on 10.20.4.17:5432", "internal address"),
        ("cat /home/hannah/notes", "home folder"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ("cat config/.env", "sensitive file"),
        ("cat deploy/server.pem", "sensitive file"),
        ("if (admin\u202e \u2066// a comment", "hidden characters"),
    ],
)
def test_what_redaction_may_pass_by_is_pointed_out(text: str, kind: str) -> None:
    assert kind in [found.kind for found in findings(text)]


@pytest.mark.parametrize(
    "text",
    [
        "token: str = field()",
        "password = os.environ['DB_PASSWORD']",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "import aVeryLongCamelCaseNameWithoutDigits",
        "see docs/user-guide/getting-started-with-the-tool.md",
        "user@example.com asked",
        "cp .env.example somewhere",
        "version 10.2.1",
    ],
)
def test_plain_code_and_talk_are_not_pointed_out(text: str) -> None:
    assert findings(text) == []


@given(
    st.lists(
        st.sampled_from(["password is ab1cd2ef", TOKEN, "jo@firma.de ", "<SECRET:x:abcdef>", " word ", "\n", "🚀"])
    )
)
def test_findings_are_in_order_and_do_not_overlap(parts: list[str]) -> None:
    text = "".join(parts)
    found = findings(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    replaced = [(mark.start, mark.end) for mark in marks(text)]
    assert [(one.start, one.end) for one in found if one.group != "leftover"] == replaced


# Queue


def test_the_queue_puts_the_riskiest_first_and_reads_a_session_once(sample: Path) -> None:
    shutil.rmtree(sample / PRIVATE, ignore_errors=True)
    read: list[int] = []
    queue = Queue.open(sample, on_progress=read.append)
    scores = [case.risk.score for case in queue.cases.values()]
    assert scores == sorted(scores, reverse=True)
    assert next(iter(queue.cases)) == invoice().session_id
    assert "touched .env" in queue.cases[invoice().session_id].risk.reasons
    assert len(read) == len(queue.cases)
    again: list[int] = []
    assert Queue.open(sample, on_progress=again.append).cases == queue.cases
    assert again == []


def test_a_session_without_text_and_one_without_a_session_row_can_be_reviewed(tmp_path: Path) -> None:
    make([content_free_session(), text_session()], tmp_path / "set", recipe=RECIPE)
    queue = Queue.open(tmp_path / "set")
    assert "holds no text" in queue.cases["session-f"].risk.reasons
    view = SessionView(read_rows(queue.folder, queue.manifest, "session-f"))
    assert [entry.kind for entry in view.outline.entries] == ["request"] * 3
    assert [call.entry for call in view.outline.requests] == [0, 1, 2]


def test_a_changed_file_is_not_shown_for_review(sample: Path) -> None:
    path = sample / read_manifest(sample).shards[0].files["requests"].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetFault, match="changed since it was built"):
        Queue.open(sample)


# View


def test_a_sub_agent_is_read_where_it_was_started(built: Path) -> None:
    view = SessionView(read_rows(built, read_manifest(built), invoice().session_id))
    chains = [(chain.path, chain.depth) for chain in view.outline.chains]
    assert chains == [("main", 0), ("main/1", 1), ("main", 0), ("tools offered", 0)]
    before = view.outline.entries[view.outline.chains[1].start - 1]
    assert "task" in before.tools
    assert view.outline.chains[1].title == "sub-agent main/1 · Explore"
    every = [position for chain in view.outline.chains for position in range(chain.start, chain.stop)]
    assert every == list(range(len(view.outline.entries)))


def test_every_text_of_a_session_is_shown_once_and_whole(built: Path) -> None:
    manifest = read_manifest(built)
    for trajectory in Dataset.open(built).trajectories():
        view = SessionView(read_rows(built, manifest, trajectory.session_id))
        shown: list[str] = []
        for position, text in enumerate(view.outline.texts):
            at, parts = 0, []
            while at < text.length:
                stretch = view.stretch(position, at, at + 7_777)
                assert stretch.start == at
                assert stretch.end > at
                parts += [piece.text for piece in stretch.pieces]
                at = stretch.end
            shown.append("".join(parts))
        said = [
            text
            for each in trajectory.pool
            for text in (
                each.message.reasoning_content,
                each.message.content,
                *(use.arguments for use in each.message.tool_calls),
            )
            if text
        ]
        said += [
            text
            for tool in {tool: None for tools in trajectory.tool_sets for tool in tools}
            for text in (tool.description, tool.parameters)
        ]
        said += [request.error for request in trajectory.requests if request.error]
        assert sorted(shown) == sorted(said)


@given(st.integers(0, 400), st.integers(0, 400))
def test_a_stretch_never_cuts_a_finding(start: int, end: int) -> None:
    view = _view_of(f"ab <SECRET:github_token:abcdef> cd password is hunter2x7 {'🚀' * 30} <SECRET:x:012345>" * 3)
    stretch = view.stretch(0, start, end)
    assert stretch.start <= max(start, 0)
    inside = [one for one in view.outline.findings if one[1] < stretch.end and one[2] > stretch.start]
    assert all(stretch.start <= one[1] and one[2] <= stretch.end for one in inside)
    assert [piece.text for piece in stretch.pieces if piece.kind is not None] == [
        view._texts[0][one[1] : one[2]] for one in inside
    ]


def _view_of(text: str) -> SessionView:
    from curate.review.view import SessionRows
    from curate.row import rows_of

    one = dataclasses.replace(
        text_session(),
        pool=(pooled(Message(role="user", content=text), 0),),
        requests=(),
        tool_calls=(),
        tool_sets=(),
    )
    rows = rows_of(one)
    return SessionView(SessionRows(session=rows.session, requests=[], tool_calls=[]))


def test_a_huge_message_comes_in_stretches(built: Path) -> None:
    view = SessionView(read_rows(built, read_manifest(built), long_output().session_id))
    position = max(range(len(view.outline.texts)), key=lambda each: view.outline.texts[each].length)
    assert view.outline.texts[position].length > 200_000
    head = next(each for each in view.heads(0, 99) if each.text == position)
    assert HEAD <= head.end < FOLD_FROM
    [hit], n = view.search("NEEDLE 4711")
    assert n == 1
    assert "needle 4711" in "".join(piece.text for piece in view.stretch(position, hit[1], hit[2]).pieces)


# Decisions


def test_decisions_are_kept_and_the_last_one_holds(sample: Path) -> None:
    queue = Queue.open(sample)
    case = next(iter(queue.cases.values()))
    assert queue.standing(case).state == "undecided"
    for verdict, state in (
        ("approve", "approved"),
        ("drop", "dropped"),
        ("undo", "undecided"),
        ("approve", "approved"),
    ):
        assert queue.decide(case, verdict, reason="personal data", reviewer="r", version="0").state == state  # type: ignore[arg-type]
        assert Decisions(sample).standing(case.session_id, case.digest).state == state
    assert (sample / PRIVATE / JOURNAL).stat().st_mode & 0o777 == 0o600
    assert (sample / PRIVATE).stat().st_mode & 0o777 == 0o700
    assert len((sample / PRIVATE / JOURNAL).read_text().splitlines()) == 4


def _decision(digest: str, verdict: Any, contributor: str | None = None) -> Decision:
    return Decision(
        session_id="s",
        digest=digest,
        verdict=verdict,
        reason=None,
        reviewer="r",
        contributor=contributor,
        at="2026-01-01T00:00:00Z",
        version="0",
    )


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ([], "undecided"),
        ([("new", "approve", None)], "approved"),
        ([("old", "approve", None)], "stale"),
        ([("old", "drop", None)], "stale"),
        ([("old", "drop", None), ("new", "approve", None)], "approved"),
        ([("old", "drop", "c")], "dropped"),
        ([("new", "approve", None), ("old", "drop", "c")], "dropped"),
        ([("old", "drop", "c"), ("new", "approve", None)], "dropped"),
        ([("old", "drop", "c"), ("new", "undo", "c")], "undecided"),
        ([("new", "approve", "c")], "approved"),
        ([("new", "approve", "c"), ("new", "drop", None)], "dropped"),
        ([("new", "approve", "c"), ("old", "drop", None)], "stale"),
        ([("new", "drop", "c"), ("new", "undo", None)], "dropped"),
        ([("new", "approve", None), ("new", "undo", None)], "undecided"),
    ],
    ids=lambda value: (
        "+".join(f"{a}-{b}{'-own' if c else ''}" for a, b, c in value) if isinstance(value, list) else value
    ),
)
def test_what_holds_after_a_rebuild_and_between_contributor_and_reviewer(
    tmp_path: Path, said: list[tuple[str, str, str | None]], state: str
) -> None:
    decisions = Decisions(tmp_path)
    for digest, verdict, contributor in said:
        decisions.append(_decision(digest, verdict, contributor))
    assert decisions.standing("s", "new").state == state
    assert Decisions(tmp_path).standing("s", "new").state == state


def test_a_line_that_a_kill_cut_is_left_aside_and_the_next_one_counts(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path)
    decisions.append(_decision("d", "approve"))
    with (tmp_path / PRIVATE / JOURNAL).open("ab") as file:
        file.write(b'{"session_id":"s","digest":"d","verd')
    again = Decisions(tmp_path)
    assert again.standing("s", "d").state == "approved"
    again.append(_decision("d", "drop"))
    assert again.unfinished == 1
    for each in (again, decisions, Decisions(tmp_path)):
        assert each.standing("s", "d").state == "dropped"


# Server


@pytest.fixture
def client(sample: Path) -> Iterator[Client]:
    with serving(Review(Queue.open(sample), reviewer="hannah")) as server:
        yield Client(server.url)


def test_the_api_shows_a_session_and_takes_a_decision(client: Client, sample: Path) -> None:
    about = client.json("/api/queue")
    assert about["reviewer"] == "hannah"
    assert about["cases"][0]["session_id"] == invoice().session_id
    first = about["cases"][0]
    outline = client.json(f"/api/session?id={first['session_id']}")
    assert outline["findings"]
    heads = client.json(f"/api/heads?id={first['session_id']}&from=0&to=5")
    assert heads[0]["pieces"][0]["text"].startswith("You are a coding agent")
    status, told = client.decide(first["session_id"], first["digest"], "approve")
    assert (status, told["state"], told["tally"]["approved"]) == (200, "approved", 1)
    assert Decisions(sample).standing(first["session_id"], first["digest"]).state == "approved"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": None}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Host": None}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/queue", "/api/session?id=x", "/api/decide"])
def test_strangers_get_nothing(client: Client, path: str, headers: dict[str, str | None], status: int) -> None:
    posts = path == "/api/decide"
    given, _, body = client.ask(path, method="POST" if posts else "GET", body={} if posts else None, headers=headers)
    assert given == status
    assert list(json.loads(body)) == ["error"]


def test_the_page_itself_holds_no_data_and_no_markup_for_others(client: Client) -> None:
    for path in ("/", "/main.js", "/style.css", "/icon.svg"):
        status, headers, body = client.ask(path, headers={"Authorization": None})
        assert status == 200
        assert invoice().session_id.encode() not in body
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "://" not in body.decode().replace("http://www.w3.org/2000/svg", "")
    assert client.ask("/", headers={"Host": "evil.example"})[0] == 421


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/%2e%2e/server.py",
        "/..%2fserver.py",
        "/page/../../server.py",
        "//etc/passwd",
        "/etc/passwd",
        "/.private/review.jsonl",
        "/manifest.json",
        "/index.html/..",
        "/api/",
        "/api/../main.js",
        "/api/session?id=../../manifest.json",
        "/api/session?id=%2e%2e%2fmanifest.json",
        "/api/session",
    ],
)
def test_no_path_leads_to_a_file(client: Client, path: str) -> None:
    status, _, body = client.ask(path)
    assert status == 404
    assert list(json.loads(body)) == ["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"session_id": "\xff"}', {}, 400),
        (b'{"session_id": "' + b"x" * 16_384 + b'"}', {}, 413),
        ({"session_id": 1}, {}, 400),
        ({"session_id": "s", "digest": "d", "verdict": "publish"}, {}, 400),
        ({"session_id": "nobody", "digest": "d", "verdict": "approve"}, {}, 404),
        ({"session_id": invoice().session_id, "digest": "d", "verdict": "approve"}, {}, 409),
        ({}, {"Content-Type": "text/plain"}, 415),
        ({}, {"Content-Length": "99999999"}, 413),
        ({}, {"Content-Length": "-1"}, 413),
        ({}, {"Content-Length": "x"}, 413),
    ],
    ids=str,
)
def test_what_is_no_decision_is_refused_and_nothing_is_written(
    client: Client, sample: Path, body: Any, headers: dict[str, str | None], status: int
) -> None:
    assert client.ask("/api/decide", method="POST", body=body, headers=headers)[0] == status
    assert not (sample / PRIVATE / JOURNAL).exists()


def test_a_body_that_nobody_reads_does_not_become_the_next_request(client: Client) -> None:
    host, port = client.host.rsplit(":", 1)
    next_one = f"GET /api/queue HTTP/1.1\r\nHost: {client.host}\r\nAuthorization: Bearer {client.token}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"GET /style.css HTTP/1.1\r\nHost: {client.host}\r\nContent-Length: {len(next_one)}\r\n\r\n"
        connection.sendall((head + next_one).encode())
        told = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65_536):
                told += piece
    assert told.count(b"HTTP/1.1 ") == 1


def test_a_drop_without_a_reason_is_refused(client: Client) -> None:
    first = client.json("/api/queue")["cases"][0]
    assert client.decide(first["session_id"], first["digest"], "drop", "  ")[0] == 400


def test_texts_that_are_not_there_are_refused(client: Client) -> None:
    name = invoice().session_id
    for query in ("text=9999&start=0&end=9", "text=-1&start=0&end=9", "text=0&start=x&end=9", "text=0"):
        assert client.ask(f"/api/text?id={name}&{query}")[0] in (400, 404)
    assert client.json(f"/api/text?id={name}&text=0&start=5&end=2")["pieces"] == []
    assert client.json(f"/api/search?id={name}&q=")["n"] == 0


def test_hostile_text_travels_as_json_only(client: Client) -> None:
    name = hostile().session_id
    status, headers, body = client.ask(f"/api/heads?id={name}&from=0&to=60")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert "<script>" in "".join(piece["text"] for head in json.loads(body) for piece in head["pieces"])


def test_a_contributor_sees_and_decides_about_their_own_alone(sample: Path) -> None:
    queue = Queue.open(sample, contributor="c-90aa")
    every = {case.session_id: case for case in Queue.open(sample).cases.values()}
    own = [name for name, case in every.items() if case.contributor == "c-90aa"]
    others = [name for name, case in every.items() if case.contributor != "c-90aa"]
    assert own
    assert others
    with serving(Review(queue, reviewer="jo")) as server:
        client = Client(server.url)
        about = client.json("/api/queue")
        assert sorted(case["session_id"] for case in about["cases"]) == sorted(own)
        assert about["tally"]["sessions"] == len(own)
        for name in others:
            for path in ("session?", "heads?from=0&to=9&", "text?text=0&start=0&end=9&", "search?q=a&"):
                status, _, body = client.ask(f"/api/{path}id={name}")
                assert status == 404
                assert json.loads(body) == {"error": "this review has no such session"}
            assert client.decide(name, every[name].digest, "drop", "mine")[0] == 404
        assert client.decide(own[0], every[own[0]].digest, "drop", "personal data")[0] == 200
    lines = [json.loads(line) for line in (sample / PRIVATE / JOURNAL).read_text().splitlines()]
    assert [(line["session_id"], line["contributor"]) for line in lines] == [(own[0], "c-90aa")]
    whole = Queue.open(sample)
    whole.decide(whole.cases[own[0]], "approve", reason=None, reviewer="r", version="0")
    assert whole.standing(whole.cases[own[0]]).state == "dropped"
    with pytest.raises(DatasetFault, match=r"no session of contributor 'nobody'; it has c-4f21, c-90aa"):
        Queue.open(sample, contributor="nobody")


def test_a_dataset_that_is_built_again_under_a_review_takes_no_decision(client: Client, sample: Path) -> None:
    first = client.json("/api/queue")["cases"][0]
    (sample / MANIFEST).write_text((sample / MANIFEST).read_text() + " ")
    status, told = client.decide(first["session_id"], first["digest"], "approve")
    assert status == 409
    assert "built or approved again meanwhile" in told["error"]
    assert client.ask(f"/api/session?id={first['session_id']}")[0] == 409


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:0", "192.168.1.5:80", "[::]:0", "example.org:80", "127.0.0.1", "8080", "127.0.0.1:99999", ""]
)
def test_no_address_but_loopback_is_served(listen: str) -> None:
    with pytest.raises(ListenFault):
        loopback_address(listen)


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("localhost:81", ("127.0.0.1", 81)), ("[::1]:0", ("::1", 0))],
)
def test_loopback_addresses_are_served(listen: str, address: tuple[str, int]) -> None:
    assert loopback_address(listen) == address

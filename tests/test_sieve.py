"""What never gets into a journal: pauses, excluded repositories, logins, credentials in any of their places."""

from __future__ import annotations

import base64
import gzip
import hmac
import json
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capture import exclusion, pause
from capture.erase import purge
from capture.exclusion import ExclusionError, excluded, read_exclusions
from capture.journal import FROM_AGENT, FROM_UPSTREAM, JournalWriter
from capture.login import is_grant, is_login
from capture.reader import JournalReader
from capture.store import Store
from tests.kept_store import everything

type Headers = tuple[tuple[bytes, bytes], ...]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def post(
    journal: JournalWriter, body: bytes, answer: bytes = b"answer", *, headers: Headers = (), path: str = "/v1/messages"
) -> int:
    number = journal.send(at_ns=1, connection="c", method="POST", host="api.x:443", path=path, headers=headers)
    journal.sent(number, at_ns=2, body=body)
    journal.headers(number, at_ns=3, status=200, headers=())
    journal.read(number, 4, answer)
    journal.end(number, at_ns=5, outcome="complete")
    return number


def marks(store: Store) -> list[tuple[bool, str]]:
    found: list[tuple[bool, str]] = []
    for path in store.journals():
        with JournalReader(path) as reader:
            list(reader.stored())
            found += [(number is not None, gap.kind) for number, gaps in reader.gaps.items() for gap in gaps]
    return found


# Pause.


def test_a_paused_store_gets_nothing_but_a_mark(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={})
    socket = journal.send(at_ns=1, connection="c", method="GET", host="api.x:443", path="/ws", headers=())
    journal.read(socket, 2, b"said before", FROM_AGENT)
    answered = journal.send(at_ns=1, connection="c", method="POST", host="api.x:443", path="/a", headers=())
    pause.pause(store.path)
    assert pause.is_paused(store.path)
    begun = time.monotonic()
    eventually(lambda: journal._sieve.paused)
    assert time.monotonic() - begun < 5
    assert post(journal, b"paused body", b"paused answer", headers=((b"x-paused", b"paused header"),)) == 0
    journal.gap(0, at_ns=6, kind="recorder_error", lost_bytes=None)
    journal.sent(answered, at_ns=2, body=b"paused body")
    journal.headers(answered, at_ns=3, status=200, headers=((b"x-paused", b"paused header"),))
    journal.read(answered, 4, b"paused answer")
    journal.end(answered, at_ns=5, outcome="complete", error="paused error")
    journal.read(socket, 7, b"paused message", FROM_UPSTREAM)
    journal.read(socket, 8, b"paused message", FROM_AGENT)
    assert pause.resume(store.path)
    assert not pause.is_paused(store.path)
    eventually(lambda: not journal._sieve.paused)
    journal.read(socket, 9, b"said after", FROM_UPSTREAM)
    journal.end(socket, at_ns=10, outcome="complete")
    assert post(journal, b"after") == 3
    journal.close()
    first, second, last = store.exchanges()
    assert [message.data for message in first.messages] == [b"said before", b"said after"]
    assert [gap.kind for gap in first.gaps] == ["paused"]
    assert (second.request_body, second.reads, second.outcome, second.error) == (b"", (), "complete", None)
    assert last.request_body == b"after"
    assert sorted(marks(store)) == [(False, "paused"), (True, "paused"), (True, "paused")]
    assert b"paused " not in everything(store.path).replace(b'"paused"', b"")
    with JournalReader(journal.path) as reader:
        tally = reader.tally()
    assert (len(tally.exchanges), tally.gaps, tally.skipped, journal.gaps) == (3, 0, 3, 0)


def test_a_pause_ends_by_itself_and_a_damaged_one_holds(tmp_path: Path) -> None:
    assert pause.read_pause(tmp_path) is None
    pause.pause(tmp_path, for_s=60)
    assert pause.read_pause(tmp_path) is not None
    assert (tmp_path / pause.FILE_NAME).stat().st_mode & 0o777 == 0o600
    pause.pause(tmp_path, for_s=-1)
    assert pause.read_pause(tmp_path) is None
    assert not pause.resume(tmp_path)
    for damaged in (b"{", b"\xff"):
        (tmp_path / pause.FILE_NAME).write_bytes(damaged)
        assert pause.read_pause(tmp_path) == pause.Pause(None)


# Excluded repositories.

CWD = "/home/ann/secret"
TURN_METADATA = json.dumps(
    {"workspaces": {CWD: {"associated_remote_urls": {"origin": "git@github.com:ann/secret.git"}}}}
)
STATED: dict[str, tuple[Headers, dict[str, object]]] = {
    "claude code": ((), {"system": [{"text": f"<env>\nWorking directory: {CWD}\nIs directory a git repo: Yes\n"}]}),
    "claude code 2": ((), {"system": f"# Environment\n - Primary working directory: {CWD}\n"}),
    "codex": ((), {"input": [{"text": f"<environment_context>\n  <cwd>{CWD}/src</cwd>\n  <shell>bash</shell>"}]}),
    "codex header": (((b"x-codex-turn-metadata", TURN_METADATA.encode()),), {"input": []}),
    "codex body": ((), {"client_metadata": {"x-codex-turn-metadata": TURN_METADATA}}),
    "opencode": ((), {"messages": [{"content": f"<env>\n  Working directory: {CWD}\n  Platform: linux"}]}),
    "pi": ((), {"messages": [{"content": f"Current date: today\nCurrent working directory: {CWD}"}]}),
    "gemini": ((), {"contents": [{"text": f"I'm currently working in the directory: {CWD}\nHere is"}]}),
    "gemini several": ((), {"t": f"I'm currently working in the following directories:\n  - /x\n  - {CWD}\n  - /y\n"}),
    "quoted": ((), {"t": f"The current working directory is `{CWD}`."}),
    "a key": ((), {"working_directory": CWD}),
    "json in json": ((), {"t": json.dumps({"cwd": CWD})}),
}


@pytest.mark.parametrize("agent", STATED)
@pytest.mark.parametrize("encoding", ["", "zstd"])
def test_what_an_agent_sends_from_an_excluded_folder_is_not_written(tmp_path: Path, agent: str, encoding: str) -> None:
    store = Store.open(tmp_path / "store", create=True)
    exclusion.add(store.path, CWD)
    journal = JournalWriter(store.path, key=store.key, meta={})
    headers, body = STATED[agent]
    inside = json.dumps({**body, "prompt": "hidden words"}).encode()
    outside = json.dumps({**body, "prompt": "other words"}).replace(CWD, f"{CWD}-not").encode()
    other = tuple((name, value.replace(CWD.encode(), b"/home/ann/secret.d")) for name, value in headers)
    if encoding:
        inside, headers = zstandard.ZstdCompressor().compress(inside), (*headers, (b"content-encoding", b"zstd"))
    post(journal, inside, b"hidden answer", headers=(*headers, (b"x-hidden", b"hidden header")))
    post(journal, outside, b"other answer", headers=other)
    journal.close()
    (exchange,) = store.exchanges()
    assert b"other words" in exchange.request_body
    assert marks(store) == [(False, "excluded")]
    assert b"hidden " not in everything(store.path)


def test_calls_of_an_excluded_session_need_not_name_the_folder_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    exclusion.add(store.path, CWD)
    journal = JournalWriter(store.path, key=store.key, meta={})
    session = (b"x-claude-code-session-id", b"0b6e1c52-7d52-4c34-a1b7-111111111111")
    post(journal, b'{"title": "hidden, before"}', headers=(session,))
    # Telemetry, as protobuf and as JSON.
    post(journal, b"\n\nsession.id\x12&\n$" + session[1] + b"\n\nuser.email\x12\x08\n\x06hidden")
    attribute = {"key": "session.id", "value": {"stringValue": session[1].decode()}}
    post(journal, json.dumps({"attributes": [attribute, {"key": "hidden"}]}).encode())
    eventually(lambda: len(list(store.exchanges())) == 3)
    post(journal, f'{{"system": "Working directory: {CWD}"}}'.encode(), headers=(session,))
    post(journal, b'{"title": "hidden, after"}', headers=(session,))
    post(journal, b'{"title": "of another"}', headers=((session[0], session[1].replace(b"1111", b"2222")),))
    journal.close()
    assert [exchange.request_body for exchange in store.exchanges()] == [b'{"title": "of another"}']
    assert b"hidden, before" in everything(store.path)
    assert purge(store).problems == []  # as the start of the next recorder does
    assert [exchange.request_body for exchange in store.exchanges()] == [b'{"title": "of another"}']
    assert b"hidden" not in everything(store.path)


def test_words_that_all_sessions_share_exclude_none_of_them(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    exclusion.add(store.path, CWD)
    journal = JournalWriter(store.path, key=store.key, meta={})
    shared = "In this session troubleshooting-instructions apply; thread: conversation-summarisation-4."
    post(journal, json.dumps({"system": f"{shared} Working directory: {CWD}"}).encode())
    post(journal, json.dumps({"system": f"{shared} Working directory: /home/ann/open"}).encode())
    journal.close()
    (found,) = store.exchanges()
    assert b"/home/ann/open" in found.request_body


def test_a_socket_is_not_written_from_the_message_that_names_the_folder(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    exclusion.add(store.path, CWD)
    journal = JournalWriter(store.path, key=store.key, meta={})

    def upgrade() -> int:
        number = journal.send(
            at_ns=1, connection="c", method="GET", host="h:1", path="/ws", headers=((b"Upgrade", b"websocket"),)
        )
        journal.sent(number, at_ns=1, body=b"")
        journal.headers(number, at_ns=2, status=101, headers=())
        return number

    whole, later, silent, waiting = upgrade(), upgrade(), upgrade(), upgrade()
    naming = f'{{"type": "response.create", "input": "<cwd>{CWD}</cwd> hidden"}}'.encode()
    journal.read(whole, 3, naming, FROM_AGENT)
    journal.read(whole, 4, b"hidden answer", FROM_UPSTREAM)
    journal.read(later, 3, b"of an open session", FROM_AGENT)
    journal.read(later, 4, b"its answer", FROM_UPSTREAM)
    journal.read(later, 5, naming, FROM_AGENT)
    journal.read(later, 6, b"hidden answer", FROM_UPSTREAM)
    for number in (whole, later, silent):
        journal.end(number, at_ns=9, outcome="complete")
    journal.close()
    problems: list[str] = []
    assert waiting == 4  # the recorder stops before it says a word
    shown, nothing, unspoken = store.exchanges(problems)
    assert [message.data for message in shown.messages] == [b"of an open session", b"its answer"]
    assert ([gap.kind for gap in shown.gaps], shown.outcome) == (["excluded"], "complete")
    assert nothing.messages == ()
    assert (unspoken.outcome, unspoken.status) == ("open", 101)
    assert problems == []
    assert b"hidden" not in everything(store.path)


def test_a_list_that_cannot_be_read_stops_the_writing_and_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    said: list[str] = []
    journal = JournalWriter(store.path, key=store.key, meta={}, on_fault=said.append)
    (store.path / exclusion.FILE_NAME).write_text("[]")
    eventually(lambda: bool(said))
    assert "excluded.json" in said[0]
    assert post(journal, b"{}") == 0
    journal.close()
    assert journal.fault is None


def test_folders_and_remotes(tmp_path: Path) -> None:
    store, repository = tmp_path / "store", tmp_path / "repository"
    store.mkdir()
    (repository / "deep").mkdir(parents=True)
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (
        ["init", "-q"],
        ["remote", "add", "origin", "https://user:x@GitHub.com/Ann/Secret.git"],
        ["commit", "-q", "--allow-empty", "-m", "x"],
        ["worktree", "add", "-q", str(tmp_path / "tree")],
    ):
        subprocess.run([*git, *arguments], check=True)
    assert excluded(store, repository) is None
    assert exclusion.add(store, "git@github.com:ann/secret.git") == "github.com/ann/secret"
    for place in (repository, repository / "deep", tmp_path / "tree"):
        assert excluded(store, place) == "github.com/ann/secret"
    assert excluded(store, tmp_path) is None
    assert exclusion.remove(store, "https://github.com/ann/secret") == "github.com/ann/secret"
    entry = exclusion.add(store, str(repository))
    assert entry == str(repository)
    assert excluded(store, tmp_path / "tree") == entry  # a worktree of the same repository
    assert excluded(store, repository / "deep") == entry
    assert excluded(store, tmp_path / "repository-2") is None
    (tmp_path / "link").symlink_to(repository)
    assert excluded(store, tmp_path / "link" / "deep") == entry
    assert (store / exclusion.FILE_NAME).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ExclusionError, match="is not excluded"):
        exclusion.remove(store, "/nowhere")
    with pytest.raises(ExclusionError, match="name a folder"):
        exclusion.add(store, " ")
    (store / exclusion.FILE_NAME).write_text('{"folders": [1], "remotes": []}')
    with pytest.raises(ExclusionError, match="cannot be read"):
        read_exclusions(store)


@given(st.binary(max_size=400), st.sampled_from([b"<cwd>", b'"cwd": "', b"Working directory: ", b"workspaces"]))
def test_any_bytes_can_be_asked_for_a_folder(rest: bytes, before: bytes) -> None:
    assert exclusion.Exclusions(folders=("/secret",), remotes=("h/p",)).entry_in(before + rest, rest) in (
        None,
        "/secret",
    )


# Logins.

TOKEN = "q8Zr-secret-of-the-login-0123456789"


@pytest.mark.parametrize(
    ("host", "path", "body"),
    [
        ("console.anthropic.com:443", "/v1/oauth/token", {"grant_type": "refresh_token", "refresh_token": TOKEN}),
        ("api.anthropic.com:443", "/api/oauth/claude_cli/create_api_key", {"x": 1}),
        ("auth.openai.com:443", "/anything", {"code_verifier": TOKEN}),
        ("oauth2.googleapis.com:443", "/token", f"grant_type=authorization_code&code={TOKEN}"),
        ("github.com:443", "/login/device/code", "client_id=x&scope=y"),
        ("api.github.com:443", "/copilot_internal/v2/token", ""),
        ("proxy.company:443", "/unknown", f"client_id=a&client_secret={TOKEN}&grant_type=client_credentials"),
        ("proxy.company:443", "/unknown", {"grant_type": "urn:x", "client_secret": TOKEN}),
        ("api.openai.com:443", "/v1/realtime/client_secrets", {"session": {}}),
    ],
)
@pytest.mark.parametrize("encoded", [False, True])
def test_bodies_of_logins_are_not_written(tmp_path: Path, host: str, path: str, body: object, encoded: bool) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={})
    sent = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    given = f"{TOKEN}-given"
    answer = json.dumps({"access_token": given, "token_type": "Bearer", "user": {"id": "hidden"}}).encode()
    encoding: Headers = ((b"content-encoding", b"gzip"),) if encoded else ()
    number = journal.send(at_ns=1, connection="c", method="POST", host=host, path=path, headers=encoding)
    journal.sent(number, at_ns=2, body=gzip.compress(sent) if encoded else sent)
    journal.headers(number, at_ns=3, status=200, headers=encoding)
    journal.read(number, 4, (gzip.compress(answer) if encoded else answer)[:20])
    journal.read(number, 5, (gzip.compress(answer) if encoded else answer)[20:])
    journal.end(number, at_ns=6, outcome="complete")
    journal.close()
    (exchange,) = store.exchanges()
    assert (exchange.host, exchange.path, exchange.status) == (host, path, 200)
    assert (exchange.request_body, exchange.reads) == (b"", ())
    assert {gap.kind for gap in exchange.gaps} == {"credential"}
    stored = everything(store.path)
    assert TOKEN.encode() not in stored
    assert b"hidden" not in stored
    digests = {secret.digest: secret.length for secret in store.seen_secrets()}
    for value in (given, *([TOKEN] if TOKEN in str(body) else [])):
        assert digests[hmac.digest(store.key, value.encode(), "sha256")] == len(value)


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("api.anthropic.com:443", "/v1/messages/count_tokens"),
        ("auth.gateway:443", "/auth/v1/chat/completions"),
        ("api.openai.com:443", "/v1/responses"),
        ("generativelanguage.googleapis.com:443", "/v1beta/models/token:streamGenerateContent?alt=sse"),
        ("api.x:443", "/v1/models"),
        ("localhost:1", "/api/event_logging/batch"),
    ],
)
def test_calls_to_models_are_no_logins(host: str, path: str) -> None:
    assert not is_login(host, path)


def test_a_prompt_that_quotes_a_grant_is_none() -> None:
    assert not is_grant(json.dumps({"messages": [{"content": '{"grant_type": "refresh_token"}'}]}).encode())
    assert not is_grant(b'{"messages": "a=1&grant_type=x"')
    assert is_grant(b"a=1&grant_type=refresh_token&refresh_token=x")


# Credentials, wherever a connection carries them.


def jwt(value: str) -> bytes:
    return f"eyJhbGciOiJIUzI1NiJ9.eyJ{re.sub(r'[^-A-Za-z0-9]', '_', value)}x.{'s' * 20}".encode()


CARRIERS: dict[str, Callable[[str], tuple[str, Headers]]] = {
    "bearer": lambda value: ("/x", ((b"Authorization", f"Bearer {value}".encode()),)),
    "basic": lambda value: (
        "/x",
        ((b"authorization", b"Basic " + base64.b64encode(f"user:{value}".encode())),),
    ),
    "proxy": lambda value: ("/x", ((b"Proxy-Authorization", f"Bearer {value}".encode()),)),
    "x-api-key": lambda value: ("/x", ((b"X-Api-Key", value.encode()),)),
    "goog": lambda value: ("/x", ((b"x-goog-api-key", value.encode()),)),
    "azure": lambda value: ("/x", ((b"api-key", value.encode()),)),
    "cookie": lambda value: ("/x", ((b"Cookie", f"theme=dark; session={value}".encode()),)),
    "aws token": lambda value: ("/x", ((b"X-Amz-Security-Token", value.encode()),)),
    "aws header": lambda value: (
        "/x",
        ((b"Authorization", f"AWS4-HMAC-SHA256 Credential=K/d, SignedHeaders=host, Signature={value}".encode()),),
    ),
    "unusual": lambda value: ("/x", ((b"X-Company-LLM-Access-Token", value.encode()),)),
    "any name": lambda value: ("/x", ((b"X-Company", f"Bearer {value}".encode()),)),
    "query": lambda value: (f"/x?alt=sse&key={value}", ()),
    "query with marks": lambda value: (f"/x?alt=sse&key={value[:9]}?{value[9:]};x={value}&a=b", ()),
    "tab": lambda value: ("/x", ((b"Authorization", f"Bearer\t{value}".encode()),)),
    "quoted cookie": lambda value: ("/x", ((b"Cookie", f'session="{value}"'.encode()),)),
    "signed": lambda value: (f"/x?X-Amz-Signature={value}&X-Amz-Date=1", ()),
    "fragment": lambda value: (f"/x#access_token={value}", ()),
    "user info": lambda value: (f"http://user:{value}@host/x", ()),
    "referer": lambda value: ("/x", ((b"Referer", f"https://user:{value}@host/x?a=1".encode()),)),
    "protocol": lambda value: ("/x", ((b"Sec-WebSocket-Protocol", f"realtime, {value}".encode()),)),
    "openai protocol": lambda value: (
        "/x",
        ((b"Sec-WebSocket-Protocol", f"realtime, openai-insecure-api-key.{value}, openai-beta.realtime-v1".encode()),),
    ),
    "redirect": lambda value: ("/x", ((b"Location", f"https://h/cb?code={value}&state=1".encode()),)),
    "set-cookie": lambda value: ("/x", ((b"Set-Cookie", f"a={value}; Path=/; HttpOnly".encode()),)),
    "jwt": lambda value: ("/x", ((b"X-Assertion-Of-Whoever", jwt(value)),)),
}  # fmt: skip
FINDS_ITSELF = sorted(set(CARRIERS) - {"jwt", "query with marks"})  # the first is remembered whole, the other in parts

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
values = st.text(LETTERS + "!$%'*+.^`|~", min_size=20, max_size=60).filter(
    lambda value: len(set(value)) > 8 and any(sign.isalpha() for sign in value)
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(values, min_size=len(CARRIERS), max_size=len(CARRIERS), unique=True))
def test_no_credential_of_a_connection_reaches_the_disk(tmp_path: Path, several: list[str]) -> None:
    folder = tmp_path / str(time.monotonic_ns())
    store = Store.open(folder, create=True)
    journal = JournalWriter(store.path, key=store.key, meta={})
    for (_, carrier), value in zip(CARRIERS.items(), several, strict=True):
        path, headers = carrier(value)
        number = journal.send(at_ns=1, connection="c", method="POST", host="h:443", path=path, headers=headers)
        journal.headers(number, at_ns=2, status=302, headers=headers)
        journal.end(number, at_ns=3, outcome="upstream_cut", error=f"Invalid header line: {headers!r}")
    journal.close()
    stored = everything(store.path)
    digests = {(secret.digest, secret.length) for secret in store.seen_secrets()}
    for name, value in zip(CARRIERS, several, strict=True):
        assert value.encode() not in stored, name
        assert base64.b64encode(f"user:{value}".encode()) not in stored, name
        if name in FINDS_ITSELF:
            assert (hmac.digest(store.key, value.encode(), "sha256"), len(value)) in digests, name


def test_exclusions_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    folders = [f"/secret/{number}" for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda folder: exclusion.add(store.path, folder), folders))
    assert read_exclusions(store.path).folders == tuple(sorted(folders))

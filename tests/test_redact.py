"""Redaction: made-up secrets of every kind in the contexts of a transcript, and nothing else."""

from __future__ import annotations

import base64
import hmac
import json
import pickle
import random
import re
import string
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.call import Message, Tool, ToolUse
from capture.journal import JournalWriter
from capture.secret import SecretFilter, SeenSecret
from capture.store import Store
from curate.command import curate
from curate.recipe import RedactionPolicy
from curate.redact import PLACEHOLDER, Redactor, marks, merge
from curate.shapes import ASSIGNED, SHAPE, Finding
from tests.sample_sessions import content_free_session, text_session

KEY = b"k" * 32
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
WORD = ALNUM + "_-"


class Maker:
    """Draws secrets; every alphabet gets at least one digit and both cases where it has them, as real keys have."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self, length: int, alphabet: str = ALNUM) -> str:
        while True:
            drawn = "".join(self.random.choices(alphabet, k=length))
            wanted = [string.digits, string.ascii_lowercase, string.ascii_uppercase]
            if (
                all(any(c in drawn for c in kind) for kind in wanted if set(kind) & set(alphabet))
                and drawn[-1].isalnum()
            ):
                return drawn


def pem(maker: Maker) -> str:
    lines = [maker.draw(64, ALNUM + "+/") for _ in range(6)]
    return "\n".join(
        ["-----BEGIN RSA PRIVATE KEY-----", *lines, maker.draw(40) + "==", "-----END RSA PRIVATE KEY-----"]
    )


def jwt(maker: Maker) -> str:
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": maker.draw(12), "iat": maker.random.randrange(10**9)})
    )
    return f"{head}.{body}.{maker.draw(43, WORD)}"


SHAPES: dict[str, Callable[[Maker], str]] = {
    "anthropic": lambda m: f"sk-ant-api03-{m.draw(93, WORD)}AA",
    "anthropic oauth": lambda m: f"sk-ant-oat01-{m.draw(93, WORD)}AA",
    "openai": lambda m: f"sk-{m.draw(20)}T3BlbkFJ{m.draw(20)}",
    "openai project": lambda m: f"sk-proj-{m.draw(70, WORD)}T3BlbkFJ{m.draw(60, WORD)}",
    "openai service": lambda m: f"sk-svcacct-{m.draw(80, WORD)}",
    "openrouter": lambda m: f"sk-or-v1-{m.draw(64, HEX)}",
    "deepseek": lambda m: f"sk-{m.draw(32, HEX)}",
    "github classic": lambda m: f"ghp_{m.draw(36)}",
    "github oauth": lambda m: f"gho_{m.draw(36)}",
    "github user": lambda m: f"ghu_{m.draw(36)}",
    "github server": lambda m: f"ghs_{m.draw(36)}",
    "github fine": lambda m: f"github_pat_{m.draw(22)}_{m.draw(59)}",
    "gitlab": lambda m: f"glpat-{m.draw(20, WORD)}",
    "aws id": lambda m: "AKIA" + m.draw(16, string.ascii_uppercase + "234567"),
    "aws session id": lambda m: "ASIA" + m.draw(16, string.ascii_uppercase + "234567"),
    "google": lambda m: f"AIza{m.draw(35, WORD)}",
    "google oauth": lambda m: f"ya29.{m.draw(80, WORD)}",
    "slack bot": lambda m: f"xoxb-{m.draw(12, string.digits)}-{m.draw(13, string.digits)}-{m.draw(24)}",
    "slack hook": lambda m: f"https://hooks.slack.com/services/T{m.draw(10)}/B{m.draw(10)}/{m.draw(24)}",
    "stripe": lambda m: f"sk_live_{m.draw(24)}",
    "stripe restricted": lambda m: f"rk_live_{m.draw(99)}",
    "npm": lambda m: f"npm_{m.draw(36)}",
    "pypi": lambda m: f"pypi-AgEIcHlwaS5vcmc{m.draw(120, WORD)}",
    "huggingface": lambda m: f"hf_{m.draw(34)}",
    "groq": lambda m: f"gsk_{m.draw(52)}",
    "jwt": jwt,
    "pem": pem,
    "sendgrid": lambda m: f"SG.{m.draw(22, WORD)}.{m.draw(43, WORD)}",
    "twilio": lambda m: f"SK{m.draw(32, HEX)}",
    "telegram": lambda m: f"{m.draw(10, '123456789')}:AA{m.draw(33, WORD)}",
    "discord": lambda m: f"M{m.draw(25)}.{m.draw(6)}.{m.draw(38)}",
    "digitalocean": lambda m: f"dop_v1_{m.draw(64, HEX)}",
    "docker": lambda m: f"dckr_pat_{m.draw(27)}",
    "shopify": lambda m: f"shpat_{m.draw(32, HEX)}",
    "vault": lambda m: f"hvs.{m.draw(90)}",
    "age": lambda m: "AGE-SECRET-KEY-1" + m.draw(58, string.ascii_uppercase + string.digits),
    "azure app": lambda m: f"{m.draw(3)}8Q~{m.draw(34)}",
}

CONTEXTS: dict[str, Callable[[str], str]] = {
    "alone": lambda s: s,
    "prose": lambda s: f"I used {s} for this, it worked.",
    "brackets": lambda s: f"(see <{s}>)",
    "environment": lambda s: f"PATH=/bin\nSERVICE_VALUE={s}\nHOME=/root",
    "python": lambda s: f'client = Client("{s}", timeout=3)',
    "json": lambda s: json.dumps({"a": 1, "v": s, "b": [s]}),
    "json in json": lambda s: json.dumps({"arguments": json.dumps({"content": f"line\n{s}\nnext\t{s}"})}),
    "json in json in json": lambda s: json.dumps(json.dumps(json.dumps({"x": f"\n{s}"}))),
    "yaml": lambda s: f"service:\n  value: {s}\n",
    "url": lambda s: f"GET https://api.example.org/v1?x=1&k={quote(s, safe='')}&y=2",
    "base64": lambda s: "data: " + base64.b64encode(f"user:{s}".encode()).decode(),
    "coloured": lambda s: f"\x1b[1;31m{s[:9]}\x1b[0m{s[9:]}\x1b[m ok",
    "coloured in json": lambda s: json.dumps({"out": f"\x1b[1;31m{s[:9]}\x1b[0m{s[9:]}\x1b[m ok"}),
    "diff": lambda s: f"@@ -1 +1 @@\n-old\n+{s}\n",
    "shell": lambda s: f"curl -H 'X-Thing: {s}' https://example.org | jq .",
}


def survives(secret: str, text: str, length: int = 12) -> bool:
    """Whether that many characters in a row of the secret still stand in the text, in clear."""
    body = re.sub(r"-----[A-Z ]+-----|\s", "", secret)
    fixed = (
        "https://hooks.slack.com/services/",
        "pypi-AgEIcHlwaS5vcmc",
        "sk-ant-api03-",
        "sk-ant-oat01-",
        "AGE-SECRET-KEY-1",
    )
    for prefix in fixed:
        body = body.removeprefix(prefix)
    return any(body[at : at + length] in text for at in range(max(1, len(body) - length + 1)))


@pytest.mark.parametrize("context", CONTEXTS)
def test_shapes_in_context(context: str) -> None:
    redactor = Redactor(key=KEY)
    left = []
    for kind, make in SHAPES.items():
        maker = Maker(hash_of(kind + context))
        for _ in range(3):
            secret = make(maker)
            text = CONTEXTS[context](secret)
            redacted, counts = redactor.text(text)
            if survives(secret, redacted) or not counts:
                left.append((kind, redacted))
    assert not left


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[:8])


NAMED: dict[str, Callable[[str], str]] = {
    "env": lambda s: f"export DB_PASSWORD={s}\n",
    "env quoted": lambda s: f"APP_SECRET='{s}'\n",
    "json": lambda s: json.dumps({"user": "ann", "password": s}),
    "json in json": lambda s: json.dumps({"arguments": json.dumps({"client_secret": s})}),
    "yaml": lambda s: f"db:\n  password: {s}\n  port: 5432\n",
    "yaml next line": lambda s: f'env:\n  - name: API_KEY\n    value: "{s}"\n',
    "json name and value": lambda s: json.dumps({"name": "ACCESS_TOKEN", "value": s}),
    "python": lambda s: f'connect(password="{s}", retries=2)',
    "go": lambda s: f'apiKey := "{s}"',
    "typed": lambda s: f'const apiKey: string = "{s}";',
    "xml": lambda s: f"<password>{s}</password>",
    "flag": lambda s: f"deploy --api-key {s} --verbose",
    "flag with sign": lambda s: f"deploy --password={s}",
    "header": lambda s: f"X-Api-Key: {s}\nAccept: */*",
    "bearer": lambda s: f"Authorization: Bearer {s}\n",
    "bearer in code": lambda s: json.dumps({"Authorization": f"Bearer {s}"}),
    "basic": lambda s: f"Authorization: Basic {base64.b64encode(f'ann:{s}'.encode()).decode()}",
    "docker config": lambda s: json.dumps(
        {"auths": {"r.io": {"auth": base64.b64encode(f"ann:{s}".encode()).decode()}}}
    ),
    "url user": lambda s: f"postgres://ann:{s}@db.example.org:5432/app",
    "connection string": lambda s: f"Server=db;User Id=ann;Password={s};Encrypt=true",
    "curl": lambda s: f"curl -u ann:{s} https://example.org",
    "netrc": lambda s: f"machine example.org login ann password {s}\n",
    "cookie": lambda s: f"Cookie: theme=dark; session={s}",
    "shared access signature": lambda s: f"https://x.example.org/c?sv=2024&sig={quote(s + s, safe='')}&se=1",
    "account key": lambda s: f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={s}{s}==;EndpointSuffix=y",
    "escaped line": lambda s: json.dumps({"text": f"first\nTOKEN={s}\nlast"}),
    "aws file": lambda s: f"aws_access_key_id = AKIAQ3RX7YK2ZP5LM4NB\naws_secret_access_key = {s[:8]}{s}{s[:8]}",
}


@pytest.mark.parametrize("context", NAMED)
def test_values_of_telling_names(context: str) -> None:
    redactor = Redactor(key=KEY)
    maker = Maker(hash_of(context))
    for _ in range(20):
        secret = maker.draw(24)
        redacted, counts = redactor.text(NAMED[context](secret))
        assert not survives(secret, redacted, 8), redacted
        assert counts


@pytest.mark.parametrize(
    "text",
    [
        'password = "hunter2!x"',
        '{"password": "Tr0ub4dor&3"}',
        "DB_PASSWORD=s3cretpw\n",
        "mysql://root:sw0rdfish@localhost/app",
    ],
)
def test_passwords_of_people(text: str) -> None:
    redacted, _ = Redactor(key=KEY).text(text)
    assert "<SECRET:" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 4096, token_count = 12345678901",
        "password = os.environ['DB_PASSWORD']",
        'password: str = Field(description="the password of the user")',
        "token = self.next_token()  # advance",
        "secret = config.get_secret_value(name)",
        'api_key="<your-api-key>"',
        "API_KEY=${API_KEY}",
        'headers = {"Authorization": f"Bearer {token}"}',
        "postgres://user:password@localhost/db",
        'if token == "identifier": return None',
        "key = lambda item: (item.name, item.version_2)",
        'password="password", secret="changeme"',
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        '"integrity": "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6SfaPg=="',
        "commit 2d85efa1b6c1e7f0c2a9d3e4b5f60718293a4b5c",
        "task-runner-implementation-details-2024 disk-usage-report-v2",
        "-----BEGIN CERTIFICATE-----\nMIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBaMQswCQYDVQQGEwJJ\n",
        "arn:aws:secretsmanager:us-west-2:123456789012:secret:MyTestDatabaseSecret-a1b2c3",
        "AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE",
        "import { tokenType2Parser } from './token/types2'",
    ],
)
def test_clean_text_stays(text: str) -> None:
    assert Redactor(key=KEY).text(text) == (text, {})


def test_no_shape_in_clean_code() -> None:
    """A fixed sample of the standard library: code about tokens, keys, passwords, base64 and URLs."""
    import ast
    import getpass
    import http.cookiejar
    import netrc
    import secrets
    import ssl
    import tokenize
    import urllib.request

    redactor = Redactor(key=KEY)
    modules = (ast, getpass, http.cookiejar, netrc, secrets, ssl, tokenize, urllib.request)
    for module in modules:
        assert module.__file__ is not None
        with open(module.__file__, encoding="utf-8") as file:  # noqa: PTH123
            text = file.read()
        assert [finding for finding in redactor.find(text) if finding.rank <= SHAPE] == []


# Without its first line, a numbered listing of base64 is not known as a key.
@pytest.mark.parametrize(
    ("line_break", "cut"),
    [
        *product(["\n", "\\n", "\\\\n", "\r\n"], ["whole", "no end", "no begin"]),
        *product(["\n  12\t"], ["whole", "no end"]),
    ],
)
def test_private_keys_in_pieces(line_break: str, cut: str) -> None:
    lines = pem(Maker(9)).split("\n")
    lines = {"whole": lines, "no end": lines[:-2], "no begin": lines[2:]}[cut]
    text = f"cat key.pem{line_break}{line_break.join(lines)}{line_break}Then restart the server."
    redacted, counts = Redactor(key=KEY).text(text)
    assert counts == {"private_key": 1}
    assert "Then restart the server." in redacted
    assert not any(line in redacted for line in lines)


def test_placeholders_are_typed_stable_and_unique() -> None:
    maker = Maker(1)
    one, other = f"ghp_{maker.draw(36)}", f"ghp_{maker.draw(36)}"
    redactor = Redactor(key=KEY)
    text, counts = redactor.text(f"{one} {other} {one}")
    first, second, third = text.split()
    assert first == third != second
    assert re.fullmatch(r"<SECRET:github_token:[0-9a-f]{6}>", first)
    assert counts == {"github_token": 3}
    # The same value under another name or encoding has the same suffix; under another key it has not.
    named, _ = redactor.text(f'{{"token": "{one}"}}')
    encoded, _ = redactor.text(base64.b64encode(f"v={one}".encode()).decode())
    assert first in named
    assert first == encoded
    assert Redactor(key=b"x" * 32).text(one)[0] != first
    assert pickle.loads(pickle.dumps(redactor)).text(one)[0] == first


def test_placeholders_are_never_redacted() -> None:
    redactor = Redactor(key=KEY)
    text = 'password: "<SECRET:password:012345>" token=<SECRET:api_token:7f3a91> x'
    assert redactor.text(text) == (text, {})


FRAGMENTS = st.one_of(
    st.sampled_from([make(Maker(5)) for make in SHAPES.values()]),
    st.sampled_from([context("aB3dE6gH9kL2mN5pQ8sT1vW4") for context in NAMED.values()]),
    st.sampled_from(
        ["password", "=", ": ", '"', "\\", "\\n", "\n", " ", "<SECRET:", "<SECRET:jwt:0123ab>", "Bearer ", "%2D"]
    ),
    st.text(string.printable + "é漢İ\ud800\x1b", max_size=12),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=10).map("".join))
def test_redacting_twice_changes_nothing(text: str) -> None:
    redactor = Redactor(key=KEY)
    once, counts = redactor.text(text)
    assert redactor.text(once) == (once, {})
    assert Redactor(key=KEY).text(text) == (once, counts)
    assert len(PLACEHOLDER.findall(once)) >= bool(counts)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(FRAGMENTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FRAGMENTS, inner, max_size=3))
)
def test_json_stays_json(value: object) -> None:
    for text in (json.dumps(value), json.dumps({"outer": json.dumps(value)})):
        json.loads(Redactor(key=KEY).text(text)[0])


def seen(*headers: tuple[str, str]) -> tuple[SeenSecret, ...]:
    """What the recorder remembers of a connection's headers."""
    secrets_of_connection = SecretFilter(KEY)
    for name, value in headers:
        secrets_of_connection.header(name, value)
    return tuple(secrets_of_connection.take_new())


@pytest.mark.parametrize("context", CONTEXTS)
def test_values_seen_on_the_wire(context: str) -> None:
    """No name, no shape: a 33-letter word, a cookie with odd characters, a password of a person."""
    key, cookie, password = "internal-gateway-credential-of-ann", "v1.(x)!2~Zz:99", "correct+horse"
    redactor = Redactor(
        seen=seen(
            ("x-api-key", key),
            ("cookie", f"theme=dark; sid={cookie}"),
            ("authorization", "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()),
        ),
        key=KEY,
    )
    for value in (key, cookie, password):
        redacted, counts = redactor.text(CONTEXTS[context](value))
        assert value not in redacted
        assert counts
        assert not survives(value, redacted, 8), redacted


def test_seen_value_inside_a_word_and_a_long_line() -> None:
    value = Maker(3).draw(40, HEX)
    redactor = Redactor(seen=seen(("authorization", f"Bearer {value}")), key=KEY)
    for text in (f"prefix{value}suffix", "x" * 5000 + f"/{value}/" + "y" * 5000, f"ключ{value}"):
        redacted, counts = redactor.text(text)
        assert value not in redacted
        assert counts == {"seen_header": 1}


def test_seen_secrets_need_their_key() -> None:
    with pytest.raises(ValueError, match="pass the key too"):
        Redactor(seen=[SeenSecret(length=8, digest=hmac.digest(KEY, b"12345678", "sha256"), kind="header")])


def test_every_string_of_a_trajectory() -> None:
    secret = SHAPES["github classic"](Maker(4))
    session = text_session(secret=secret)
    tools = (Tool(name="f", description=f"use {secret}", parameters=json.dumps({"default": secret})),)
    answer = Message(
        role="assistant",
        content=secret,
        reasoning_content=f"the key is {secret}",
        name=secret,
        tool_calls=(ToolUse(id=secret, name="f", arguments=json.dumps({"v": f"\n{secret}"})),),
    )
    requests = (replace(session.requests[0], error=f"401 for {secret}", model=secret), *session.requests[1:])
    session = replace(
        session,
        pool=(*session.pool, replace(session.pool[0], message=answer)),
        tool_sets=(tools,),
        requests=requests,
        source_ref=secret,
    )
    redactor = Redactor(key=KEY)
    done = redactor.trajectory(session)
    redacted = done.trajectory
    assert secret not in repr(redacted)
    assert done.counts.total() == repr(session).count(secret) == repr(redacted).count("<SECRET:github_token:")
    assert done.by_message[-1] == 5
    assert json.loads(redacted.pool[-1].message.tool_calls[0].arguments)["v"].startswith("\n<SECRET:")
    assert redacted.session_id == session.session_id
    assert redactor.trajectory(redacted).trajectory is redacted
    message, found = redactor.message(answer)
    assert message == redacted.pool[-1].message
    assert found.total() == 5


def test_clean_trajectories_come_back_as_they_are() -> None:
    for session in (text_session(), content_free_session()):
        redacted = Redactor(key=KEY).trajectory(session)
        assert redacted.trajectory is session
        assert not redacted.counts
        assert not any(redacted.by_message)


def test_overlapping_findings_become_one() -> None:
    def finding(start: int, end: int, kind: str, rank: int) -> Finding:
        return Finding(start=start, end=end, kind=kind, rank=rank, value=kind)

    assert merge(
        [finding(5, 20, "assigned", ASSIGNED), finding(8, 30, "shape", SHAPE), finding(30, 40, "next", SHAPE)]
    ) == [
        finding(5, 30, "shape", SHAPE),
        finding(30, 40, "next", SHAPE),
    ]


def test_policy_names_what_was_applied() -> None:
    everything = Redactor(key=KEY)
    assert re.fullmatch(r"own-\d+\+betterleaks-[\w.-]+\+identity-\d+", everything.rules)
    assert everything.policy == everything.rules
    known = seen(("x-api-key", "abcdefgh1"))
    policy = RedactionPolicy(identity=False, scanner=False, values=("Nightjar",), allow=("x",))
    own = Redactor(seen=known, key=KEY, policy=policy)
    assert own.rules == everything.rules.partition("+")[0]
    assert own.policy == f"{own.rules}+seen+values+allow-without-scanner"


def test_values_named_by_the_recipe() -> None:
    policy = RedactionPolicy(values=("Project Nightjar", "nightjar"), allow=("ghp_" + "aB3" * 12,))
    text, counts = Redactor(key=KEY, policy=policy).text(f"Project Nightjar is in nightjar/, {policy.allow[0]}")
    assert re.fullmatch(r"<SECRET:named_value:\w{6}> is in <SECRET:named_value:\w{6}>/, ghp_(aB3){12}", text)
    assert counts == {"named_value": 2}


def test_marks_are_found_again() -> None:
    maker = Maker(8)
    text, counts = Redactor(key=KEY).text(f"ann.lee@corp.io wrote /home/annlee/x with ghp_{maker.draw(36)}")
    found = list(marks(text))
    assert Counter(mark.kind for mark in found) == counts
    assert [text[mark.start : mark.end] for mark in found] == re.findall(r"user-\S+invalid|user-\w+|<SECRET\S+>", text)


def test_texts_together_are_redacted_as_one_by_one() -> None:
    maker = Maker(11)
    texts = [
        "plain text about nothing",
        "the commit is 2d85efa1b6c1e7f0c2a9d3e4b5f60718293a4b5c\n",
        f"the key is {maker.draw(32)}",
        maker.draw(40),
        "password: |",
        "next",
        f"token={maker.draw(20)}",
        *(f"line {number} of an output" for number in range(50)),
    ]
    alone = [Redactor(key=KEY).text(text) for text in texts]
    assert Redactor(key=KEY).texts(texts) == alone
    assert sum(bool(counts) for _, counts in alone) == 3


def test_long_texts_are_redacted_in_blocks_as_a_whole() -> None:
    maker = Maker(12)
    secrets_ = [f"ghp_{maker.draw(36)}" for _ in range(30)]
    filler = "\n".join("def add(one, other): return one + other" for _ in range(100))
    key = pem(maker)
    text = "\n".join(f"{filler}\nVALUE = '{secret}'" for secret in secrets_) + key + filler
    redacted, counts = Redactor(key=KEY).text(text)
    assert counts == {"github_token": 30, "private_key": 1}
    assert re.sub(r"<SECRET:\w+:\w+>", "", redacted) == re.sub(r"ghp_\w+|-----BEGIN[^!]*?END[A-Z ]+-----", "", text)


def test_from_the_wire_to_the_text_through_a_store(tmp_path: Path) -> None:
    """A credential that a recorder saw in a header is gone from a text, with only the store at hand."""
    value, folder = "gateway-credential-without-a-shape", tmp_path / "store"
    store = Store.open(folder, create=True)
    journal = JournalWriter(folder, key=store.key, meta={})
    number = journal.send(
        at_ns=time.monotonic_ns(),
        connection="c1",
        method="POST",
        host="api.example.org:443",
        path="/v1/messages",
        headers=((b"x-api-key", value.encode()),),
    )
    journal.sent(number, at_ns=time.monotonic_ns(), body=b"{}")
    journal.close()
    assert value.encode() not in b"".join(path.read_bytes() for path in folder.iterdir())
    text = tmp_path / "text"
    text.write_text(f'The key is {value}, or "{value[::-1]}".\n')
    outcome = CliRunner().invoke(curate, ["redact", "--store", str(folder), str(text)])
    assert outcome.exit_code == 0
    assert re.fullmatch(rf'The key is <SECRET:seen_header:[0-9a-f]{{6}}>, or "{value[::-1]}"\.\n', outcome.stdout)
    assert outcome.stderr == "redacted: seen_header 1\n"


def test_command_copies_what_is_no_text(tmp_path: Path) -> None:
    data = b"a \xff\xfe b\r\n" + SHAPES["npm"](Maker(6)).encode() + b"\x00\n"
    outcome = CliRunner().invoke(curate, ["redact"], input=data)
    assert outcome.exit_code == 0
    assert re.fullmatch(rb"a \xff\xfe b\r\n<SECRET:npm_token:[0-9a-f]{6}>\x00\n", outcome.stdout_bytes)
    clean = CliRunner().invoke(curate, ["redact"], input=b"nothing here\n")
    assert (clean.stdout, clean.stderr) == ("nothing here\n", "redacted: nothing found\n")


def test_command_names_a_missing_store(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(curate, ["redact", "--store", str(tmp_path / "none")], input=b"x")
    assert outcome.exit_code == 2
    assert "no store at" in outcome.stderr

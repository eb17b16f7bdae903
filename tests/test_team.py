"""A recorder for several people: tokens, TLS, what it says about itself, and what it never writes."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import re
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.counters import Counters, Gauges, exposition
from capture.exchange import Exchange
from capture.gate import Answer, Entry, Gate, host_of
from capture.people import FILE_NAME, People, PeopleError, add_person, revoke_person
from capture.store import Store
from tests.certificates import make_certificates
from tests.raw_upstream import talk
from tests.sse_upstream import Served, Upstream, agentdyno, running_serve, running_upstream

CONSENT = "internal benchmarks, 2026"
HOST = "api.anthropic.com"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def exchanges(store: Store) -> list[Exchange]:
    problems: list[str] = []
    found = list(store.exchanges(problems))
    assert problems == []
    return found


def everything_written(tmp_path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(agentdyno("capture", *arguments), capture_output=True, text=True, timeout=60)


# Tokens on disk


def test_a_token_is_printed_once_and_kept_only_as_a_hash(tmp_path: Path) -> None:
    place = ("--store", str(tmp_path / "store"))
    made = command("token", "add", "ada", "--consent", CONSENT, "--base-url", "https://rec.example:8443/", *place)
    assert made.returncode == 0
    token = made.stdout.strip()
    assert f"ANTHROPIC_BASE_URL=https://rec.example:8443/p/{token}/anthropic\n" in made.stderr
    assert f"OPENAI_BASE_URL=https://rec.example:8443/p/{token}/openai/v1\n" in made.stderr
    assert f"HTTPS_PROXY=https://ada:{token}@rec.example:8443 " in made.stderr
    file = tmp_path / "store" / FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token.encode() not in everything_written(tmp_path)
    listed = command("token", "list", "--json", *place)
    (entry,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert (entry["name"], entry["consent"], entry["revoked"]) == ("ada", CONSENT, None)
    again = command("token", "add", "ada", "--consent", CONSENT, *place)
    assert (again.returncode, "revoke it first" in again.stderr) == (2, True)
    assert command("token", "revoke", "ada", *place).returncode == 0
    assert "revoked" in command("token", "list", *place).stdout
    nobody = command("token", "revoke", "ada", *place)
    assert (nobody.returncode, "has no token" in nobody.stderr) == (2, True)
    assert command("token", "add", "ada", "--consent", CONSENT, *place).returncode == 0


@pytest.mark.parametrize(
    ("name", "consent"), [("", "c"), ("a:b", "c"), ("a\nb", "c"), ("x" * 65, "c"), (" a", "c"), ("a", " "), ("a", "\n")]
)
def test_a_name_or_consent_that_cannot_be_kept_is_said(store: Store, name: str, consent: str) -> None:
    with pytest.raises(PeopleError):
        add_person(store, name, consent)
    assert not (store.path / FILE_NAME).exists()


def test_whose_token(store: Store) -> None:
    ada, grace = add_person(store, "ada", CONSENT), add_person(store, 'grace "π" 😀 \\', "yes")
    people = People.load(store)
    assert [people.whose(token).name for token in (ada, grace)] == ["ada", 'grace "π" 😀 \\']  # type: ignore[union-attr]
    assert [people.whose(token) for token in ("", "adt_", ada[:-1], ada + "x", "\udcff")] == [None] * 5
    person = people.whose(ada)
    assert person is not None
    revoke_person(store, "ada")
    later = People.load(store)
    assert later.whose(ada) is None
    assert not later.is_active(person)
    assert later.whose(grace) is not None
    assert later.label("ada") == people.label("ada") != people.label("grace")
    assert len(ada) in {secret.length for secret in store.seen_secrets()}


@pytest.mark.parametrize(
    "data", [b"[[person]]\nname = 1", b"not toml", b'[[person]]\nname = "a"', b"person = 3", b"\xff"]
)
def test_a_damaged_file_of_people_is_named(store: Store, data: bytes) -> None:
    (store.path / FILE_NAME).write_bytes(data)
    with pytest.raises(PeopleError, match="is damaged"):
        People.load(store)


# The gate's rules


def gate(*, require_token: bool = False, people: People | None = None, fault: str | None = None) -> Gate:
    def gauges() -> Gauges:
        return Gauges(
            recording=True, paused=False, queue_bytes=0, journal_bytes=1, disk_free_bytes=None, gaps=Counter(disk=2)
        )

    return Gate(
        people=people or People(b"key"),
        counters=Counters(),
        health=lambda: fault,
        gauges=gauges,
        public_hosts=frozenset({"Recorder.example"}),
        require_token=require_token,
    )


def enter(
    at: Gate,
    path: str,
    *,
    authority: str = "127.0.0.1:1",
    origin: str | None = None,
    method: str = "GET",
    peer: str = "",
) -> Entry | Answer:
    return at.enter(
        authority=authority, origin=origin, method=method, path=path, content_type=None, peer=peer or "127.0.0.1"
    )


@pytest.mark.parametrize(
    ("authority", "origin", "passes"),
    [
        ("recorder.example:8443", None, True),
        ("RECORDER.example", "https://recorder.EXAMPLE:8443", True),
        ("[::1]:80", "null", True),
        ("", None, True),
        ("localhost", "vscode-file://vscode-app", True),
        ("rebound.example:8443", None, False),
        ("127.0.0.1.rebound.example", None, False),
        ("recorder.example", "https://page.example", False),
        ("recorder.example", "HTTPS://page.example", False),
    ],
)
def test_names_and_origins(authority: str, origin: str | None, passes: bool) -> None:
    entered = enter(gate(), "/v1/messages", authority=authority, origin=origin)
    assert isinstance(entered, Entry) is passes
    if isinstance(entered, Answer):
        assert (entered.status, entered.recorded_as) == (403, None)


@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
def test_no_request_head_breaks_the_gate(path: str, authority: str, require: bool) -> None:
    entered = enter(gate(require_token=require), f"/{path}", authority=authority)
    assert isinstance(entered, Answer) or not require
    assert "[" not in host_of(authority) or not authority.startswith("[")


@pytest.mark.parametrize("encoded", ["", "Basic", "Basic !!", "Bearer x", "Basic " + base64.b64encode(b"a:b").decode()])
def test_proxy_credentials_that_are_none(store: Store, encoded: str) -> None:
    add_person(store, "ada", CONSENT)
    answer = gate(require_token=True, people=People.load(store)).proxy_person(encoded)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.headers[0][0]) == (407, "proxy-authenticate")


def test_numbers_need_loopback_or_a_token(store: Store) -> None:
    token = add_person(store, "ada", CONSENT)
    own = gate(require_token=True, people=People.load(store))
    for path, authority, peer, status in (
        ("/metrics", "127.0.0.1:9", "127.0.0.1", 200),
        ("/metrics", "recorder.example", "127.0.0.1", 401),  # through a TLS front on this machine
        ("/metrics", "localhost", "10.0.0.9", 401),
        (f"/p/{token}/metrics", "recorder.example", "10.0.0.9", 200),
        ("/healthz", "recorder.example", "10.0.0.9", 200),
    ):
        answer = enter(own, path, authority=authority, peer=peer)
        assert isinstance(answer, Answer)
        assert answer.status == status, path


def test_health_says_why_without_a_path() -> None:
    answer = enter(gate(fault="the store cannot be written"), "/healthz")
    assert isinstance(answer, Answer)
    assert answer.status == 503
    assert json.loads(answer.body) == {"status": "stopped", "reason": "the store cannot be written"}


def test_health_warns_of_a_journal_that_nothing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    at = gate()
    gauges = dataclasses.replace(at._gauges(), overfull=True)
    monkeypatch.setattr(at, "_gauges", lambda: gauges)
    answer = enter(at, "/healthz")
    assert isinstance(answer, Answer)
    assert answer.status == 200
    assert json.loads(answer.body)["status"] == "recording"
    assert "no further journal" in json.loads(answer.body)["warning"]


def test_the_numbers_are_what_prometheus_reads() -> None:
    counters = Counters(in_flight=2)
    counters.ended('a"b\\c\nd', 529, "complete")
    counters.ended("x", None, "upstream_refused")
    gauges = Gauges(
        recording=True, paused=True, queue_bytes=3, journal_bytes=4, disk_free_bytes=5, gaps=Counter(queue_full=6)
    )
    text = exposition(counters, gauges)
    assert 'agentdyno_route_exchanges_total{route="a\\"b\\\\c\\nd",result="5xx"} 1\n' in text
    assert 'agentdyno_route_exchanges_total{route="x",result="upstream_refused"} 1\n' in text
    assert 'agentdyno_gaps_total{kind="queue_full"} 6\n' in text
    assert "agentdyno_recording 0\n" in text
    line = re.compile(r'(# (HELP|TYPE) agentdyno_\w+ .+|agentdyno_\w+(\{(\w+="(\\.|[^"\\\n])*",?)+\})? \d+)')
    assert [row for row in text.splitlines() if not line.fullmatch(row)] == []


# A running recorder


def get(served: Served, path: str, *, trust: ssl.SSLContext | None = None, **headers: str) -> tuple[int, bytes]:
    connection = (
        http.client.HTTPConnection("localhost", served.port, timeout=20)
        if trust is None
        else http.client.HTTPSConnection("localhost", served.port, timeout=20, context=trust)
    )
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_token_names_the_person_and_is_nowhere_else(tmp_path: Path, store: Store, upstream: Upstream) -> None:
    token, other = add_person(store, "ada", CONSENT), add_person(store, "grace", "yes")
    with running_serve(tmp_path, "--route", f"anthropic={upstream.url}", "--require-token") as served:
        assert get(served, f"/p/{token}/anthropic/v1/messages?beta=true")[0] == 200
        assert upstream.requests[-1][0].startswith(b"GET /v1/messages?beta=true HTTP/1.1\r\n")
        assert token.encode() not in upstream.requests[-1][0]
        reached = len(upstream.requests)
        for path in (
            "/anthropic/v1/x",
            "/p/adt_wrong/anthropic/v1/x",
            "/p//anthropic/v1/x",
            f"/p/{token}x/anthropic/v1",
        ):
            status, body = get(served, path)
            assert (status, json.loads(body)["error"]["type"]) == (401, "authentication_error")
        assert get(served, f"/p/{token}/nowhere/v1/x")[0] == 404
        revoke_person(store, "ada")
        deadline = time.monotonic() + 10
        while get(served, f"/p/{token}/anthropic/v1/last")[0] != 401:
            assert time.monotonic() < deadline, "a revoked token still opens"
            time.sleep(0.1)
        assert get(served, f"/p/{other}/anthropic/v1/messages")[0] == 200
        head = talk(served.port, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")
        numbers = get(served, "/metrics")[1].decode()
        assert served.stop() == 0
    assert len([head for head, _ in upstream.requests[reached:] if b"/v1/x" in head]) == 0
    people = People.load(store)
    assert f'person_exchanges_total{{person="{people.label("grace")}"}} 1\n' in numbers
    assert re.search(r'refused_total{reason="token"} \d\n', numbers)
    assert "ada" not in numbers
    found = [exchange for exchange in exchanges(store) if "/last" not in exchange.path]
    assert [(exchange.path, exchange.contributor, exchange.consent) for exchange in found] == [
        ("/v1/messages?beta=true", "ada", CONSENT),
        ("/nowhere/v1/x", "ada", CONSENT),
        ("/v1/messages", "grace", "yes"),
    ]
    assert token.encode() not in everything_written(tmp_path)
    # Curation can still find it where an agent printed its own environment.
    assert {person.digest for person in people.persons} <= {secret.digest for secret in store.seen_secrets()}


def test_off_loopback_there_is_tls_and_a_token_or_nothing(tmp_path: Path, store: Store, upstream: Upstream) -> None:
    token = add_person(store, "ada", CONSENT)
    authority, leaf = make_certificates(tmp_path)
    trust = ssl.create_default_context(cafile=str(authority))
    with running_serve(
        tmp_path,
        *("--route", f"anthropic={upstream.url}", "--listen", "0.0.0.0:0", "--public-host", "localhost"),
        *("--tls-cert", str(leaf), "--tls-key", str(leaf)),
    ) as served:
        assert served.url.startswith("https://")
        assert get(served, f"/p/{token}/anthropic/slow/3/1", trust=trust)[1].count(b"data:") == 3
        assert get(served, "/anthropic/v1/x", trust=trust)[0] == 401
        assert get(served, f"/p/{token}/anthropic/v1/x", trust=trust, Host="rebound.example")[0] == 403
        assert get(served, "/healthz", trust=trust) == (200, b'{"status": "recording"}')
        with socket.create_connection(("localhost", served.port), timeout=20) as clear:
            clear.sendall(f"GET /p/{token}/anthropic/v1/clear HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert clear.recv(4096) == b""
        with httpx.Client(http2=True, verify=trust, trust_env=False) as client:
            answer = client.get(f"https://localhost:{served.port}/p/{token}/anthropic/slow/3/1")
            assert answer.content.count(b"data:") == 3
        assert served.stop() == 0
    assert [exchange.path for exchange in exchanges(store)] == ["/slow/3/1", "/slow/3/1"]
    assert token.encode() not in everything_written(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "openssl req -x509"),
        (("--tls-cert", "LEAF", "--tls-key", "LEAF"), "--public-host NAME"),
        (("--tls-cert", "AUTHORITY", "--tls-key", "LEAF", "--public-host", "x"), "do not belong together"),
        (("--tls-cert", "/nowhere", "--tls-key", "LEAF", "--public-host", "x"), "the certificate is not usable"),
    ],
    ids=["no certificate", "no name", "another's key", "no file"],
)
def test_off_loopback_what_is_missing_is_said(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    authority, leaf = make_certificates(tmp_path)
    named = [word.replace("LEAF", str(leaf)).replace("AUTHORITY", str(authority)) for word in arguments]
    done = command(
        *("serve", "--store", str(tmp_path / "store"), "--upstream", "http://127.0.0.1:1", "--listen", "0.0.0.0:0"),
        *named,
    )
    assert done.returncode == 3
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_forward_proxy_takes_the_token_as_proxy_credentials(tmp_path: Path, store: Store, upstream: Upstream) -> None:
    token = add_person(store, "ada", CONSENT)
    route = ("--mode", "forward", "--route", f"{HOST}={upstream.url}", "--require-token")
    with running_serve(tmp_path, *route) as served:
        bundle = ssl.create_default_context(cafile=str(tmp_path / "store" / "ca" / "bundle.pem"))
        proxy = f"http://ada:{token}@127.0.0.1:{served.port}"
        with httpx.Client(proxy=proxy, verify=bundle, trust_env=False) as client:
            assert client.get(f"https://{HOST}/v1/messages").content == b"{}"
            assert client.get(f"{upstream.url}/v1/plain").content == b"{}"
            assert b"proxy-authorization" not in upstream.requests[-1][0].lower()
            revoke_person(store, "ada")
            deadline = time.monotonic() + 10
            while client.get(f"https://{HOST}/v1/last").status_code != 401:  # on the tunnel that was admitted
                assert time.monotonic() < deadline, "a revoked token still opens"
                time.sleep(0.1)
        for stranger in (f"http://127.0.0.1:{served.port}", f"http://x:adt_wrong@127.0.0.1:{served.port}"):
            with httpx.Client(proxy=stranger, verify=bundle, trust_env=False) as client:
                with pytest.raises(httpx.ProxyError, match="407"):
                    client.get(f"https://{HOST}/v1/messages")
                assert client.get(f"{upstream.url}/v1/plain").status_code == 407
        assert served.stop() == 0
    assert {(exchange.host, exchange.contributor) for exchange in exchanges(store)} == {(f"{HOST}:443", "ada")}
    assert token.encode() not in everything_written(tmp_path)
    assert base64.b64encode(f"ada:{token}".encode()) not in everything_written(tmp_path)


def test_off_loopback_a_forward_proxy_leads_to_model_hosts_only(
    tmp_path: Path, store: Store, upstream: Upstream
) -> None:
    token = add_person(store, "ada", CONSENT)
    authority, leaf = make_certificates(tmp_path)
    with running_serve(
        tmp_path,
        *("--mode", "forward", "--route", f"{HOST}={upstream.url}", "--listen", "0.0.0.0:0"),
        *("--public-host", "localhost", "--tls-cert", str(leaf), "--tls-key", str(leaf)),
    ) as served:
        proxy = httpx.Proxy(
            f"https://ada:{token}@localhost:{served.port}",
            ssl_context=ssl.create_default_context(cafile=str(authority)),
        )
        bundle = ssl.create_default_context(cafile=str(tmp_path / "store" / "ca" / "bundle.pem"))
        with httpx.Client(proxy=proxy, verify=bundle, trust_env=False) as client:
            assert client.get(f"https://{HOST}/v1/messages").content == b"{}"
            assert client.get(f"{upstream.url}/v1/plain").status_code == 403
            with pytest.raises(httpx.ProxyError, match="403"):
                client.get(f"https://localhost:{upstream.port}/v1/tunnel")
        assert served.stop() == 0
    assert [exchange.path for exchange in exchanges(store)] == ["/v1/messages"]


def test_a_stop_waits_for_streams_no_longer_than_told(tmp_path: Path, upstream: Upstream) -> None:
    with running_serve(tmp_path, "--upstream", upstream.url, "--grace", "0.3") as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.request("GET", "/slow/200/50")
        response = connection.getresponse()
        response.readline()
        started = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises((http.client.IncompleteRead, OSError)):
            response.read()
        assert served.process.wait(20) == 1
        assert time.monotonic() - started < 5
        assert "has 1 gap" in served.stderr.read_text()
        connection.close()
    (exchange,) = Store.open(tmp_path / "store").exchanges()
    assert (exchange.outcome, [gap.kind for gap in exchange.gaps]) == ("open", ["killed"])
    assert exchange.reads

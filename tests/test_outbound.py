"""The way out: what the proxy variables mean, and a recorder whose user sits behind a company's proxy."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.bare_relay import BareRelay
from capture.exchange import Exchange
from capture.outbound import Outbound, OutboundError, OutboundProxy, is_exempt
from capture.reader import JournalReader
from capture.store import Store
from capture.upstream import Routes
from capture.upstream import Upstream as Target
from tests.certificates import make_certificates, tls_front
from tests.corporate_proxy import BASIC, PASSWORD, URL_CREDENTIALS, CorporateProxy, running_corporate_proxy
from tests.h2_upstream import H2Client
from tests.sse_upstream import Upstream, agentdyno, running_serve, running_upstream

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
MODEL, PLAIN, OTHER = "api.anthropic.com", "plain.corp.example", "files.corp.example"


# What the variables mean.


@pytest.mark.parametrize(
    ("environment", "scheme", "found"),
    [
        ({}, "https", None),
        ({"HTTPS_PROXY": "http://a:1"}, "https", ("HTTPS_PROXY", "a", 1)),
        ({"HTTPS_PROXY": "http://a:1"}, "http", None),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}, "https", ("https_proxy", "b", 2)),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": ""}, "https", None),
        ({"ALL_PROXY": "http://a:1", "http_proxy": "http://b"}, "http", ("http_proxy", "b", 80)),
        ({"ALL_PROXY": "https://a", "http_proxy": "http://b"}, "https", ("ALL_PROXY", "a", 443)),
        ({"HTTPS_PROXY": "proxy.corp:3128"}, "https", ("HTTPS_PROXY", "proxy.corp", 3128)),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128/"}, "https", ("HTTPS_PROXY", "fd00::1", 3128)),
        ({"all_proxy": "socks5://a:1", "https_proxy": "http://b:2"}, "https", ("https_proxy", "b", 2)),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "h.example"}, "https", None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "h.example", "no_proxy": "x"}, "https", ("HTTPS_PROXY", "a", 1)),
    ],
)
def test_which_proxy(environment: dict[str, str], scheme: str, found: tuple[str, str, int] | None) -> None:
    proxy = Outbound.of(environment).find("https" if scheme == "https" else "http", "h.example", 443)
    assert (None if proxy is None else (proxy.variable, proxy.host, proxy.port)) == found


@pytest.mark.parametrize(
    ("entry", "host", "port", "exempt"),
    [
        ("*", "h", 1, True),
        ("corp.example", "corp.example", 443, True),
        ("corp.example", "LLM.Corp.Example.", 443, True),
        (".corp.example", "llm.corp.example", 443, True),
        ("*.corp.example", "llm.corp.example", 443, True),
        ("corp.example", "evilcorp.example", 443, False),
        ("corp.example:8443", "corp.example", 8443, True),
        ("corp.example:8443", "corp.example", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.1.2.3:80", "10.1.2.3", 80, True),
        ("0.0.1", "10.0.0.1", 80, False),
        ("fd00::/8", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("[fd00::1]:443", "fd00::1", 80, False),
        (".", "h", 80, False),
    ],
)
def test_entries_of_no_proxy(entry: str, host: str, port: int, *, exempt: bool) -> None:
    assert is_exempt(entry, host, port) is exempt


def test_loopback_needs_no_proxy_whatever_the_variables_say() -> None:
    outbound = Outbound.of({"ALL_PROXY": "http://a:1"})
    for host in ("localhost", "api.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"):
        assert outbound.find("http", host, 80) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("socks5h://u:secret-1@a:1", "SOCKS"),
        ("ftp://u:secret-1@a:1", "no HTTP proxy"),
        ("http://u:secret-1@", "no HTTP proxy"),
        ("http://u:secret-1@a:port", "no HTTP proxy"),
        ("http://u:secret-1@[a", "no HTTP proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said_when_it_is_needed(value: str, words: str) -> None:
    outbound = Outbound.of({"all_proxy": value, "NO_PROXY": "near.example"})
    assert outbound.find("https", "near.example", 443) is None
    with pytest.raises(OutboundError, match=f"all_proxy names .*{words}") as said:
        outbound.find("https", "far.example", 443)
    with pytest.raises(OutboundError):
        outbound.check()
    assert "secret-1" not in str(said.value) + repr(outbound)


def test_nothing_prints_what_a_proxy_url_holds() -> None:
    outbound = Outbound.of({"HTTPS_PROXY": f"http://{URL_CREDENTIALS}@corp.example:3128"})
    proxy = outbound.find("https", "h.example", 443)
    assert isinstance(proxy, OutboundProxy)
    assert proxy.authorization == BASIC
    assert all(word not in repr(outbound) for word in ("ada", "corp", PASSWORD, BASIC.decode()))


@given(st.text(max_size=60), st.text(max_size=40), st.text(max_size=40), st.integers(1, 65535))
def test_no_variable_and_no_host_is_more_than_an_error(url: str, exempt: str, host: str, port: int) -> None:
    outbound = Outbound.of({"https_proxy": url, "NO_PROXY": exempt})
    with contextlib.suppress(OutboundError):
        outbound.find("https", host, port)
    for entry in (exempt, url):
        assert is_exempt(entry, host, port) in (True, False)


# Behind a company's proxy.


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@dataclass
class Company:
    proxy: CorporateProxy
    environment: dict[str, str]  # as a user of this company has it
    authority: Path


@pytest.fixture
def company(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    """Hosts that only the proxy can reach; one that answers by TLS is signed by the company's own authority."""
    authority, leaf = make_certificates(tmp_path, MODEL, OTHER)
    with tls_front(leaf, upstream.port) as secure:
        leads = {f"{MODEL}:443": secure, f"{OTHER}:443": secure, f"{PLAIN}:80": upstream.port}
        with running_corporate_proxy(leads) as proxy:
            environment = {"HTTPS_PROXY": proxy.url, "HTTP_PROXY": proxy.url, "REQUESTS_CA_BUNDLE": str(authority)}
            for name in PROXIES:
                monkeypatch.delenv(name, raising=False)
                monkeypatch.delenv(name.upper(), raising=False)
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            yield Company(proxy, environment, authority)


def exchanges(tmp_path: Path) -> list[Exchange]:
    problems: list[str] = []
    found = list(Store.open(tmp_path / "store").exchanges(problems))
    assert problems == []
    return found


def assert_no_credential_on_disk(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for secret in (PASSWORD.encode(), URL_CREDENTIALS.encode(), BASIC, BASIC.split()[1]):
                assert secret not in content, file


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET" if body is None else "POST", path, body=body, headers={"x-api-key": "k"})
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def test_a_reverse_recorder_reaches_its_upstreams_through_the_proxy(
    tmp_path: Path, upstream: Upstream, company: Company
) -> None:
    routes = ("--route", f"a=https://{MODEL}", "--route", f"b=http://{PLAIN}", "--route", "c=https://shut.example")
    with running_serve(tmp_path, *routes) as served:
        status, stream = ask(served.port, "/a/slow/3/5")
        assert (status, stream.count(b"data:")) == (200, 3)
        kept = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        for number in range(2):
            kept.request("POST", "/b/v1/messages", body=b'{"number": %d}' % number)
            assert kept.getresponse().read() == b"{}"
        kept.close()
        assert upstream.requests[-1][0].startswith(b"POST /v1/messages HTTP/1.1\r\n")
        assert f"Host: {PLAIN}\r\n".encode() in upstream.requests[-1][0]
        assert not any(b"proxy-" in head.lower() for head, _ in upstream.requests)
        status, refused = ask(served.port, "/c/v1/messages")
        assert status == 502
        assert b"refused the tunnel: 403 Forbidden" in refused
        assert company.proxy.asked == [
            f"CONNECT {MODEL}:443 HTTP/1.1",
            *[f"POST http://{PLAIN}/v1/messages HTTP/1.1"] * 2,
            "CONNECT shut.example:443 HTTP/1.1",
        ]
        assert served.stop() == 0
    assert [(exchange.host, exchange.outcome) for exchange in exchanges(tmp_path)] == [
        (f"{MODEL}:443", "complete"),
        *[(f"{PLAIN}:80", "complete")] * 2,
        ("shut.example:443", "upstream_refused"),
    ]
    with JournalReader(Store.open(tmp_path / "store").journals()[0]) as reader:
        assert reader.meta["outbound_proxy"] == "HTTPS_PROXY,HTTP_PROXY"
    assert_no_credential_on_disk(tmp_path)


def test_what_the_proxy_refuses_is_told_without_what_it_was_sent(
    tmp_path: Path, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = company.proxy.url.replace(URL_CREDENTIALS, "ada:wrong-password-1")
    monkeypatch.setenv("HTTPS_PROXY", wrong)
    with running_serve(tmp_path, "--upstream", f"https://{MODEL}") as served:
        status, body = ask(served.port, "/v1/messages")
        assert (status, b"407 Proxy Authentication Required" in body) == (502, True)
        monkeypatch.undo()
        served.stop()
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"wrong-password-1" not in everything + body
    assert b"Nobody said" not in everything + body


def test_a_forward_recorder_decrypts_tunnels_and_passes_on_through_the_proxy(
    tmp_path: Path, upstream: Upstream, company: Company
) -> None:
    with running_serve(tmp_path, "--mode", "forward", "--route", f"api.openai.com=http://{PLAIN}") as served:
        bundle = ssl.create_default_context(cafile=str(tmp_path / "store" / "ca" / "bundle.pem"))
        model = http.client.HTTPSConnection("127.0.0.1", served.port, context=bundle, timeout=20)
        model.set_tunnel(MODEL, 443)
        model.request("POST", "/v1/messages", body=b"{}")
        assert model.getresponse().read() == b"{}"
        model.close()
        over_http2 = H2Client(served.port, "api.openai.com", bundle)
        stream = over_http2.get("/v1/models")
        over_http2.read_until(lambda: stream in over_http2.ended)
        assert over_http2.bodies[stream] == b"{}"
        over_http2.close()
        assert f"Host: {PLAIN}\r\n".encode() in upstream.requests[-1][0]
        bare = ssl.create_default_context(cafile=str(company.authority))  # a tunnel shows the far end's certificate
        other = http.client.HTTPSConnection("127.0.0.1", served.port, context=bare, timeout=20)
        other.set_tunnel(OTHER, 443)
        other.request("GET", "/file")
        assert other.getresponse().read() == b"{}"
        other.close()
        for host, expected in ((PLAIN, 200), ("shut.example", 403)):
            plain = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
            plain.request("POST", f"http://{host}/plain?x=1", body=b"{}")
            assert plain.getresponse().status == expected
            plain.close()
        shut = http.client.HTTPSConnection("127.0.0.1", served.port, context=bundle, timeout=20)
        shut.set_tunnel("shut.example", 443)
        with pytest.raises(OSError, match="502"):
            shut.connect()
        assert company.proxy.asked == [
            f"CONNECT {MODEL}:443 HTTP/1.1",
            f"GET http://{PLAIN}/v1/models HTTP/1.1",
            f"CONNECT {OTHER}:443 HTTP/1.1",
            f"POST http://{PLAIN}/plain?x=1 HTTP/1.1",
            "POST http://shut.example/plain?x=1 HTTP/1.1",
            "CONNECT shut.example:443 HTTP/1.1",
        ]
        assert served.stop() == 0
    assert [(exchange.host, exchange.path) for exchange in exchanges(tmp_path)] == [
        (f"{MODEL}:443", "/v1/messages"),
        ("api.openai.com:443", "/v1/models"),
    ]
    assert_no_credential_on_disk(tmp_path)


AGENT = """
import os, sys, urllib.request
base = os.environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
request = urllib.request.Request(base + "/v1/messages", data=b"{}", headers={"x-api-key": "sk-k"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_an_agent_is_run_and_recorded_behind_the_proxy(tmp_path: Path, company: Company, mode: str) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "NO_PROXY": "intern.example"}
    done = subprocess.run(
        agentdyno(
            *("capture", "run", "--store", str(tmp_path / "store"), "--mode", mode),
            *("--", sys.executable, "-c", AGENT),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr
    assert company.proxy.asked == [f"CONNECT {MODEL}:443 HTTP/1.1"]
    assert [exchange.host for exchange in exchanges(tmp_path)] == [f"{MODEL}:443"]
    assert PASSWORD not in done.stderr
    assert_no_credential_on_disk(tmp_path)


def test_a_proxy_that_is_reached_by_tls(tmp_path: Path, company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    authority, leaf = make_certificates(tmp_path / "own")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with tls_front(leaf, company.proxy.port) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"https://{URL_CREDENTIALS}@localhost:{port}")
        with running_serve(tmp_path, "--upstream", f"https://{MODEL}") as served:
            assert ask(served.port, "/v1/messages", b"{}") == (200, b"{}")
            assert served.stop() == 0
    assert company.proxy.asked == [f"CONNECT {MODEL}:443 HTTP/1.1"]


def test_the_relay_of_last_resort_takes_the_same_way(company: Company, upstream: Upstream) -> None:
    named = (("a", Target.parse(f"https://{MODEL}")), ("b", Target.parse(f"http://{PLAIN}")))
    for routes in (Routes(by_segment=named), None):
        relay = BareRelay(routes=routes, outbound=Outbound.of(company.environment))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        relay.start("127.0.0.1", port)
        try:
            if routes is not None:
                assert ask(port, "/a/v1/messages", b"{}") == (200, b"{}")
                assert ask(port, "/b/v1/messages", b"{}") == (200, b"{}")
            else:
                context = ssl.create_default_context(cafile=str(company.authority))
                handler = urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), f"http://127.0.0.1:{port}"))
                opener = urllib.request.build_opener(handler, urllib.request.HTTPSHandler(context=context))
                assert opener.open(f"https://{MODEL}/v1", timeout=20).read() == b"{}"
                assert opener.open(f"http://{PLAIN}/v1", timeout=20).read() == b"{}"
        finally:
            relay.stop()
    assert company.proxy.asked == [
        *(f"CONNECT {MODEL}:443 HTTP/1.1", f"POST http://{PLAIN}/v1/messages HTTP/1.1"),
        *(f"CONNECT {MODEL}:443 HTTP/1.1", f"GET http://{PLAIN}/v1 HTTP/1.1"),
    ]


def test_what_serve_says_of_a_proxy_that_it_cannot_use(tmp_path: Path) -> None:
    def say(*arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            agentdyno("capture", "serve", "--store", str(tmp_path / "store"), *arguments),
            capture_output=True,
            text=True,
            timeout=60,
            env={**{name: value for name, value in os.environ.items() if name.lower() not in PROXIES}, **environment},
        )
        return done.returncode, done.stderr

    code, words = say("--upstream", "https://far.example", HTTPS_PROXY="socks5://u:secret-1@a:1")
    assert (code, "SOCKS" in words, "secret-1" in words) == (3, True, False)
    code, words = say("--mode", "forward", "--listen", "127.0.0.1:8123", ALL_PROXY="http://localhost:8123")
    assert (code, "this very recorder" in words) == (3, True)

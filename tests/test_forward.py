"""The recorder as a forward proxy: what it decrypts, what it lets alone, and whom agents trust."""

from __future__ import annotations

import datetime
import http.client
import json
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from capture.exchange import Exchange
from capture.forward import Authority, AuthorityError, load_store, prepare_ca
from capture.model_hosts import MODEL_HOSTS, HostError, ModelHosts, parse_host
from capture.roots import read_roots
from capture.store import Store
from tests.certificates import make_certificates, tls_front
from tests.h2_upstream import H2Client, running_h2_upstream
from tests.raw_upstream import accept_socket, frame, read_frames, running_raw_upstream
from tests.sse_upstream import GZIP_BODY, Served, Upstream, agentdyno, running_serve, running_upstream

HOST = "api.anthropic.com"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture
def proxy(tmp_path: Path, upstream: Upstream) -> Iterator[Served]:
    with running_serve(tmp_path, "--mode", "forward", "--route", f"{HOST}={upstream.url}") as served:
        yield served


def exchanges(tmp_path: Path) -> list[Exchange]:
    problems: list[str] = []
    found = list(Store.open(tmp_path / "store").exchanges(problems))
    assert problems == []
    return found


def strict(tmp_path: Path) -> ssl.SSLContext:
    """What Python 3.13 makes by itself: it refuses leaves without an authority key identifier."""
    context = ssl.create_default_context(cafile=str(tmp_path / "store" / "ca" / "bundle.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def tunnelled(served: Served, tmp_path: Path, host: str = HOST) -> http.client.HTTPSConnection:
    connection = http.client.HTTPSConnection("127.0.0.1", served.port, context=strict(tmp_path), timeout=20)
    connection.set_tunnel(host, 443)
    return connection


def metric(served: Served, name: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next((line.rpartition(" ")[2] for line in lines if line.startswith(f"agentdyno_{name} ")), "none")


def test_a_strict_client_reads_through_and_the_record_names_the_host_it_meant(
    proxy: Served, tmp_path: Path, upstream: Upstream
) -> None:
    connection = tunnelled(proxy, tmp_path)
    connection.request("POST", "/v1/messages?beta=true", body=b'{"a": 1}', headers={"x-api-key": "sk-key-0123456789"})
    assert connection.getresponse().read() == b"{}"
    connection.request("GET", "/gzip", headers={"accept-encoding": "gzip"})
    assert connection.getresponse().read() == GZIP_BODY
    connection.close()
    assert upstream.requests[-2][0].startswith(b"POST /v1/messages?beta=true HTTP/1.1\r\n")
    assert b"Host: 127.0.0.1:%d\r\n" % upstream.port in upstream.requests[-2][0]
    assert proxy.stop() == 0
    first, second = exchanges(tmp_path)
    assert (first.mode, first.host, first.path) == ("forward", f"{HOST}:443", "/v1/messages?beta=true")
    assert (first.request_body, first.outcome) == (b'{"a": 1}', "complete")
    assert b"".join(read.data for read in second.reads) == GZIP_BODY
    assert b"sk-key-0123456789" not in b"".join(
        file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file()
    )


def test_a_recorder_that_outlives_its_certificates_makes_new_ones(tmp_path: Path) -> None:
    # Leaves that are valid for half an hour more.
    planted = "import datetime, mitmproxy.certs as c; c.CERT_EXPIRY = datetime.timedelta(days=2, minutes=30)"
    shown = []
    with running_serve(tmp_path, "--mode", "forward", planted=planted) as served:
        for _ in range(2):
            connection = tunnelled(served, tmp_path)
            connection.connect()
            shown.append(connection.sock.getpeercert(binary_form=True))
            connection.close()
    assert shown[0] != shown[1]


NODE = """
const net = require('net'), tls = require('tls');
const [port, host] = process.argv.slice(1);
const raw = net.connect(+port, '127.0.0.1', () =>
  raw.write(`CONNECT ${host}:443 HTTP/1.1\\r\\nHost: ${host}:443\\r\\n\\r\\n`));
raw.once('data', () => {
  const secure = tls.connect({socket: raw, servername: host}, () =>
    secure.write(`GET /slow/3/1 HTTP/1.1\\r\\nHost: ${host}\\r\\nConnection: close\\r\\n\\r\\n`));
  secure.on('data', data => process.stdout.write(data));
  secure.on('end', () => process.exit(0));
  secure.on('error', fault => { console.error(fault); process.exit(1); });
});
"""


@pytest.mark.parametrize("program", ["curl", "curl over HTTP/1.1", "node"])
def test_other_programs_trust_it_and_read_through(proxy: Served, tmp_path: Path, program: str) -> None:
    name = program.partition(" ")[0]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    folder = tmp_path / "store" / "ca"
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "NODE_EXTRA_CA_CERTS": str(folder / "ca.pem")}
    if name == "curl":
        version = ["--http1.1"] if "1.1" in program else []
        command = ["curl", "-sS", *version, "--cacert", str(folder / "bundle.pem"), f"https://{HOST}/slow/3/1"]
        environment["https_proxy"] = proxy.url
    else:
        command = ["node", "-e", NODE, str(proxy.port), HOST]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=30)
    assert (done.stdout.count(b"data:"), done.stderr) == (3, b"")


@contextmanager
def greeter() -> Iterator[int]:
    """A server that speaks first, in no protocol that a proxy knows, then answers what it is sent backwards."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"\x00hello first\xff")
                while data := connection.recv(4096):
                    connection.sendall(data[::-1])

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_another_host_is_tunnelled_byte_for_byte_and_only_counted(proxy: Served, tmp_path: Path) -> None:
    with greeter() as port, socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as raw:
        raw.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
        received = b""
        while b"\xff" not in received:
            received += raw.recv(4096)
        assert received == b"HTTP/1.1 200 Connection established\r\n\r\n\x00hello first\xff"
        raw.sendall(b"\x16\x03 no TLS, no HTTP")
        assert raw.recv(4096) == b"\x16\x03 no TLS, no HTTP"[::-1]
        raw.sendall(b"the last words")
        raw.shutdown(socket.SHUT_WR)  # one way only: the answer is still to come
        assert raw.recv(4096) == b"the last words"[::-1]
        assert raw.recv(4096) == b""
        assert metric(proxy, 'passed_total{reason="tunnel"}') == "1"
    assert proxy.stop() == 0
    assert exchanges(tmp_path) == []
    stored = b"".join(file.read_bytes() for file in (tmp_path / "store").glob("journal-*"))
    assert str(port).encode() not in stored


def test_a_plain_request_to_another_host_passes_unrecorded(proxy: Served, tmp_path: Path, upstream: Upstream) -> None:
    with httpx.Client(proxy=proxy.url, trust_env=False) as client:
        answer = client.post(f"{upstream.url}/v1/other", content=b"x" * 70_000)
        assert (answer.status_code, answer.content) == (200, b"{}")
        assert client.get(f"{upstream.url}/slow/3/1").content.count(b"data:") == 3
    head, body = upstream.requests[-2]
    assert head.startswith(b"POST /v1/other HTTP/1.1\r\n")
    assert body == b"x" * 70_000
    assert metric(proxy, 'passed_total{reason="plain"}') == "2"
    assert proxy.stop() == 0
    assert exchanges(tmp_path) == []


def test_a_host_that_cannot_be_reached_is_told_before_the_tunnel_is_promised(proxy: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as raw:
        raw.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
        assert raw.recv(4096).startswith(b"HTTP/1.1 502 ")


def test_telemetry_reaches_the_proxys_own_address(proxy: Served, tmp_path: Path) -> None:
    for path, kind, body, empty in (
        ("/otlp/v1/traces", "application/x-protobuf", b"\x0a\x00", b""),
        ("/otlp/v1/logs?x=1", "application/json; charset=utf-8", b"{}", b"{}"),
    ):
        answer = httpx.post(proxy.url + path, content=body, headers={"content-type": kind}, trust_env=False)
        assert (answer.status_code, answer.content) == (200, empty)
        assert answer.headers["content-type"] == kind.partition(";")[0]
    # An exporter that honours HTTP_PROXY asks through the proxy for the proxy.
    answer = httpx.post(f"{proxy.url}/otlp/v1/metrics", content=b"m", proxy=proxy.url, trust_env=False)
    assert answer.status_code == 200
    assert httpx.get(f"{proxy.url}/v1/messages", trust_env=False).status_code == 404
    proxy.stop()
    assert [(exchange.host, exchange.path, exchange.request_body) for exchange in exchanges(tmp_path)] == [
        ("agentdyno.otlp", "/v1/traces", b"\x0a\x00"),
        ("agentdyno.otlp", "/v1/logs?x=1", b"{}"),
        ("agentdyno.otlp", "/v1/metrics", b"m"),
    ]


def test_parallel_calls_over_one_http2_connection_do_not_wait_for_each_other(proxy: Served, tmp_path: Path) -> None:
    calls = 40  # mitmproxy lets five through to an upstream that speaks HTTP/1
    client = H2Client(proxy.port, HOST, strict(tmp_path))
    for _ in range(calls):
        client.get("/slow/10/50")
    client.read_until(lambda: len(client.ended) == calls)
    client.close()
    assert [body.count(b"data:") for body in client.bodies.values()] == [10] * calls
    assert proxy.stop() == 0
    found = exchanges(tmp_path)
    assert len(found) == calls
    assert len({exchange.connection_id for exchange in found}) == 1
    starts = [exchange.t_headers_ns for exchange in found if exchange.t_headers_ns is not None]
    ends = [exchange.t_end_ns for exchange in found if exchange.t_end_ns is not None]
    assert len(starts) == len(ends) == calls
    assert max(starts) < min(ends)  # all ran at once


def test_http2_on_both_sides_and_a_server_that_goes_away_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, leaf = make_certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with (
        running_h2_upstream(leaf) as upstream,
        running_serve(tmp_path, "--mode", "forward", "--route", f"{HOST}={upstream.url}") as served,
    ):
        client = H2Client(served.port, HOST, strict(tmp_path))
        leaving = client.get("/goaway/10/50")
        client.read_until(lambda: client.bodies[leaving].count(b"data:") >= 2)
        other = client.get("/slow/3/1")  # over a new connection: the first one takes no call any more
        client.read_until(lambda: client.ended == {leaving, other})
        client.close()
        assert served.stop() == 0
    assert client.reset == set()
    assert client.bodies[leaving] == b"".join(b'data: {"number": %d}\n\n' % number for number in range(10))
    assert client.bodies[other].count(b"data:") == 3
    assert upstream.connections == 2
    assert upstream.requests[0][":authority"] == f"localhost:{upstream.port}"
    assert "host" not in upstream.requests[0]
    assert {exchange.outcome for exchange in exchanges(tmp_path)} == {"complete"}


def test_a_retry_over_http2_is_a_new_attempt(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with running_serve(tmp_path, "--mode", "forward", "--route", f"{HOST}=http://127.0.0.1:{port}") as served:
        client = H2Client(served.port, HOST, strict(tmp_path))
        first = client.get("/v1/first")
        client.read_until(lambda: first in client.ended)
        assert b'"api_error"' in client.bodies[first]
        with running_upstream(port):
            retry = client.get("/v1/retry")
            client.read_until(lambda: retry in client.ended)
        assert client.bodies[retry] == b"{}"
        client.close()
        assert served.stop() == 0
    assert [exchange.outcome for exchange in exchanges(tmp_path)] == ["upstream_refused", "complete"]


def test_one_cancelled_stream_is_the_agents_doing_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, leaf = make_certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with (
        running_h2_upstream(leaf) as upstream,
        running_serve(tmp_path, "--mode", "forward", "--route", f"{HOST}={upstream.url}") as served,
    ):
        client = H2Client(served.port, HOST, strict(tmp_path))
        given_up, kept = client.get("/slow/500/20"), client.get("/slow/20/20")
        client.read_until(lambda: client.bodies[given_up].count(b"data:") >= 2)
        client.cancel(given_up)
        client.read_until(lambda: kept in client.ended)
        client.close()
        assert served.stop() == 0
        assert upstream.cancelled == 1  # it stops generating
    assert client.bodies[kept].count(b"data:") == 20
    assert {exchange.path: exchange.outcome for exchange in exchanges(tmp_path)} == {
        "/slow/500/20": "client_aborted",
        "/slow/20/20": "complete",
    }


def test_a_websocket_inside_a_tunnel(proxy: Served, tmp_path: Path, upstream: Upstream) -> None:
    fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"

    def script(connection: socket.socket, head: bytes, _body: bytes) -> None:
        accept_socket(connection, head)
        connection.sendall(frame(1, read_frames(connection.recv(100))[0][2]))
        connection.sendall(frame(8, (1000).to_bytes(2)))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(100)

    with (
        running_raw_upstream({"/v1/responses": script}) as sockets,
        running_serve(tmp_path, "--mode", "forward", "--route", f"api.openai.com={sockets.url}", name="ws") as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw,
    ):
        raw.sendall(b"CONNECT api.openai.com:443 HTTP/1.1\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")
        with strict(tmp_path).wrap_socket(raw, server_hostname="api.openai.com") as secure:
            secure.sendall(f"GET /v1/responses HTTP/1.1\r\nHost: api.openai.com\r\n{fields}\r\n".encode())
            received = b""
            while b"\r\n\r\n" not in received:
                received += secure.recv(4096)
            secure.sendall(frame(1, b"hello", masked=True))
            while data := secure.recv(4096):
                received += data
        assert served.stop() == 0
    assert [opcode for opcode, _, _ in read_frames(received.partition(b"\r\n\r\n")[2])] == [1, 8]
    (exchange,) = exchanges(tmp_path)
    assert (exchange.host, exchange.status, len(exchange.messages)) == ("api.openai.com:443", 101, 2)


def test_the_authority_is_private_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_root, _ = make_certificates(tmp_path)
    folder = tmp_path / "store" / "ca"

    def prepare(_: int) -> Authority:
        return prepare_ca(folder, {"NODE_EXTRA_CA_CERTS": str(own_root), "CURL_CA_BUNDLE": "/nowhere"})

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(prepare, range(4)))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert {file.name for file in folder.iterdir()} == {"ca.pem", "ca-key.pem", "bundle.pem", "roots.pem"}
    certificate, bundle = made[0].ca_pem.read_bytes(), made[0].bundle_pem.read_bytes()
    assert certificate.count(b"BEGIN CERTIFICATE") == 1
    assert b"PRIVATE KEY" not in certificate + bundle + made[0].roots_pem.read_bytes()
    assert certificate in made[0].key_pem.read_bytes()
    assert certificate in bundle
    assert own_root.read_bytes().strip() in bundle  # a person's own root is replaced with the variable: it must be here
    assert certificate not in made[0].roots_pem.read_bytes()
    assert bundle.count(b"BEGIN CERTIFICATE") > 50
    before = made[0].bundle_pem.stat().st_mtime_ns
    prepare(0)
    assert made[0].bundle_pem.stat().st_mtime_ns == before  # nothing new, nothing written
    prepare_ca(folder, {})
    assert own_root.read_bytes().strip() not in made[0].bundle_pem.read_bytes()
    assert made[0].ca_pem.read_bytes() == certificate


@pytest.mark.parametrize("damage", ["empty", "no key", "another's key", "no certificate", "cut certificate"])
def test_a_damaged_authority_is_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "ca"
    key = prepare_ca(folder, {}).key_pem
    whole = key.read_bytes()
    private, _, certificate = whole.partition(b"-----BEGIN CERT")
    (tmp_path / "other").mkdir()
    other = prepare_ca(tmp_path / "other" / "ca", {}).key_pem.read_bytes().partition(b"-----BEGIN CERT")[0]
    damaged = {
        "empty": b"",
        "no key": b"-----BEGIN CERT" + certificate,
        "another's key": other + b"-----BEGIN CERT" + certificate,
        "no certificate": private,
        "cut certificate": whole.replace(b"-----END CERT", b"AAAA\n-----END CERT"),
    }
    key.write_bytes(damaged[damage])
    with pytest.raises(AuthorityError, match=f"{folder} is not usable.*rm -r"):
        load_store(prepare_ca(folder, {}))


def test_an_authority_of_another_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = prepare_ca(tmp_path / "ca", {})

    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Past:
            return cls(2020, 1, 1, tzinfo=tz)

    monkeypatch.setattr("capture.forward.datetime.datetime", Past)
    with pytest.raises(AuthorityError, match="clock"):
        load_store(authority)


def test_a_damaged_root_of_the_users_spoils_no_other(tmp_path: Path) -> None:
    own, _ = make_certificates(tmp_path)
    broken = tmp_path / "broken.pem"
    broken.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + own.read_bytes())
    roots = read_roots({"REQUESTS_CA_BUNDLE": str(broken)})
    assert own.read_bytes().strip() in roots
    assert b"\nAAAA\n" not in roots


def test_an_upstream_whose_certificate_is_wrong_gets_nothing_and_the_agent_a_sentence(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "expired").mkdir()
    authority, leaf = make_certificates(tmp_path)
    late_authority, late_leaf = make_certificates(tmp_path / "expired", expired=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(late_authority))
    before = len(upstream.requests)
    with tls_front(leaf, upstream.port) as port, tls_front(late_leaf, upstream.port) as late:
        hosts = (f"127.0.0.1:{port}", f"localhost:{late}")
        options = [word for host in hosts for word in ("--host", host)]
        with running_serve(tmp_path, "--mode", "forward", *options) as served:
            for host, words in zip(hosts, ("IP address mismatch", "certificate has expired"), strict=True):
                name, _, number = host.partition(":")
                connection = http.client.HTTPSConnection("127.0.0.1", served.port, context=strict(tmp_path), timeout=20)
                connection.set_tunnel(name, int(number))
                connection.request("POST", "/v1/messages", body=b"{}", headers={"x-api-key": "sk"})
                answer = connection.getresponse()
                assert (answer.status, answer.headers["content-type"]) == (502, "application/json")
                error = json.loads(answer.read())["error"]
                assert (error["type"], words in error["message"]) == ("api_error", True)
                connection.close()
            assert served.stop() == 0
    assert len(upstream.requests) == before
    assert [(exchange.outcome, exchange.host) for exchange in exchanges(tmp_path)] == [
        ("upstream_refused", host) for host in hosts
    ]


@pytest.mark.parametrize(
    ("host", "port", "is_model"),
    [
        ("api.anthropic.com", 443, True),
        ("API.OpenAI.com.", 443, True),
        ("europe-west4-aiplatform.googleapis.com", 443, True),
        ("aiplatform.googleapis.com", 443, True),
        ("evil-api.anthropic.com.example.org", 443, False),
        ("xapi.anthropic.com", 443, False),
        ("www.googleapis.com", 443, False),
        ("openai.com", 443, False),
        ("llm.corp.example", 443, False),
        ("llm.corp.example", 8443, True),
        ("a.b.models.example", 1, True),
        ("models.example", 1, False),
    ],
)
def test_which_hosts_are_decrypted(host: str, port: int, is_model: bool) -> None:
    added = [parse_host(" LLM.corp.example:8443 "), parse_host(".models.example")]
    assert ((host, port) in ModelHosts.of(added)) is is_model


def test_the_known_hosts_are_written_as_one_that_is_added() -> None:
    assert [parse_host(host) for host in MODEL_HOSTS] == list(MODEL_HOSTS)


@pytest.mark.parametrize("text", ["https://x.example", "", ".", "x:y", "a b", "x/y"])
def test_a_host_that_is_none_is_said(text: str) -> None:
    with pytest.raises(HostError, match="write a name"):
        parse_host(text)


def test_an_added_host_is_recorded_without_tls_too(tmp_path: Path, upstream: Upstream) -> None:
    with running_serve(tmp_path, "--mode", "forward", "--host", f"127.0.0.1:{upstream.port}") as served:
        answer = httpx.get(f"{upstream.url}/v1/local", proxy=served.url, trust_env=False)
        assert answer.content == b"{}"
        assert served.stop() == 0
    assert upstream.requests[-1][0].startswith(b"GET /v1/local HTTP/1.1\r\n")
    (exchange,) = exchanges(tmp_path)
    assert (exchange.host, exchange.path) == (f"127.0.0.1:{upstream.port}", "/v1/local")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "x.example", "--upstream", "http://127.0.0.1:1"), "--host is for --mode forward"),
        (("--mode", "forward", "--host", "https://x"), "write a name"),
        (("--mode", "sideways"), "'sideways' is not one of"),
        (("--mode", "forward", "--tls-cert", "x.pem"), "belong together"),
    ],
)
def test_bad_words_get_one_sentence(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run(
        agentdyno("capture", "serve", "--store", str(tmp_path / "store"), *arguments),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "store").exists()

"""The recorder as agents meet it: a real `capture serve`, a real upstream, real connections."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.exchange import Exchange
from capture.store import Store
from tests.certificates import make_certificates, tls_front
from tests.sse_upstream import GZIP_BODY, ROOT, Served, Upstream, agentdyno, running_serve, running_upstream, wait_for

KEY = "sk-secret-value-0123456789abcdef"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture
def serve(tmp_path: Path, upstream: Upstream) -> Iterator[Served]:
    with running_serve(tmp_path, "--upstream", upstream.url) as served:
        yield served


def exchanges(tmp_path: Path) -> list[Exchange]:
    problems: list[str] = []
    found = list(Store.open(tmp_path / "store").exchanges(problems))
    assert problems == []
    return found


def connect(served: Served) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)


def get(served: Served, path: str, **headers: str) -> tuple[int, bytes]:
    connection = connect(served)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def body_of(exchange: Exchange) -> bytes:
    return b"".join(read.data for read in exchange.reads)


def wait_until_recorded(tmp_path: Path, path: str, marker: bytes) -> None:
    """Wait until the journal holds a response of `path` that contains `marker`."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for exchange in exchanges(tmp_path):
            if exchange.path == path and marker in body_of(exchange):
                return
        time.sleep(0.05)
    pytest.fail(f"{path} with {marker!r} did not reach the journal")


def test_a_stream_arrives_as_it_is_sent_and_is_recorded_with_its_times(serve: Served, tmp_path: Path) -> None:
    connection = connect(serve)
    connection.request("POST", "/slow/20/50", body=b'{"stream": true}', headers={"x-api-key": KEY})
    response = connection.getresponse()
    assert response.fp is not None
    arrivals = []
    for line in response:
        if line.startswith(b"data:"):
            arrivals.append(time.monotonic_ns())
    connection.close()
    assert len(arrivals) == 20
    assert arrivals[-1] - arrivals[0] > 0.6e9  # held back, they would come together
    assert sum(later - earlier > 20e6 for earlier, later in itertools.pairwise(arrivals)) >= 15
    assert serve.stop() == 0
    (exchange,) = exchanges(tmp_path)
    assert exchange.outcome == "complete"
    assert exchange.request_body == b'{"stream": true}'
    assert exchange.status == 200
    assert body_of(exchange).count(b"data:") == 20
    times = [exchange.t_send_ns, exchange.t_sent_ns, exchange.t_headers_ns, exchange.reads[0].at_ns, exchange.t_end_ns]
    assert times == sorted(times)  # type: ignore[type-var]
    assert exchange.reads[-1].at_ns - exchange.reads[0].at_ns > 0.6e9


def test_encoded_bodies_pass_byte_for_byte(serve: Served, tmp_path: Path, upstream: Upstream) -> None:
    sent = os.urandom(200_000)  # no JSON, no text
    connection = connect(serve)
    connection.request("POST", "/gzip", body=sent, headers={"content-encoding": "zstd", "accept-encoding": "gzip"})
    response = connection.getresponse()
    got = response.read()
    connection.close()
    assert got == GZIP_BODY
    assert response.headers["content-encoding"] == "gzip"
    assert upstream.requests[-1][1] == sent
    serve.stop()
    (exchange,) = exchanges(tmp_path)
    assert exchange.request_body == sent
    assert body_of(exchange) == GZIP_BODY


def test_host_and_path_reach_the_upstream_as_a_direct_call_would_write_them(serve: Served, upstream: Upstream) -> None:
    get(serve, "/v1/models?beta=true", **{"X-Custom": "kept", "anthropic-beta": "a,b"})
    head = upstream.requests[-1][0]
    assert head.startswith(b"GET /v1/models?beta=true HTTP/1.1\r\n")
    assert b"host: 127.0.0.1:%d\r\n" % upstream.port in head.lower()
    assert b"X-Custom: kept\r\n" in head
    assert b"anthropic-beta: a,b\r\n" in head


def test_no_credential_reaches_the_disk(serve: Served, tmp_path: Path, upstream: Upstream) -> None:
    get(serve, f"/v1/x?key={KEY}-query&alt=sse", Authorization=f"Bearer {KEY}", Cookie=f"c={KEY}-cookie")
    get(serve, "/v1/x", **{"x-goog-api-key": f"{KEY}-goog", "api-key": KEY})
    assert f"Bearer {KEY}".encode() in upstream.requests[-2][0]  # the upstream still gets it
    wait_until_recorded(tmp_path, "/v1/x", b"{}")
    live = b"".join(file.read_bytes() for file in (tmp_path / "store").iterdir())
    serve.stop()
    closed = b"".join(file.read_bytes() for file in (tmp_path / "store").iterdir())
    for data in (live, closed, serve.stderr.read_bytes()):
        assert KEY.encode() not in data
        assert b"cookie-value-1" not in data
    store = Store.open(tmp_path / "store")
    assert {(secret.length, secret.kind) for secret in store.seen_secrets()} >= {
        (len(KEY), "header"),
        (len(KEY) + 7, "cookie"),
        (len(KEY) + 6, "query"),
        (14, "cookie"),
    }
    first = exchanges(tmp_path)[0]
    assert first.path == "/v1/x?key=<redacted>&alt=sse"
    assert first.request_header("authorization") == "<redacted>"
    assert first.response_header("set-cookie") == "<redacted>"


def test_what_the_recorder_itself_says_holds_no_credential(tmp_path: Path, upstream: Upstream) -> None:
    with running_serve(tmp_path, "--route", f"anthropic={upstream.url}/{KEY}") as served:
        status, refusal = get(served, f"/v1/x?key={KEY}-query")
        assert (status, b"/v1/x?key=<redacted>" in refusal) == (404, True)
        assert get(served, "/anthropic/v1/x")[0] == 200
        assert get(served, "/v1/x", Host=f"user:{KEY}@localhost")[0] == 403
        wait_until_recorded(tmp_path, "/<redacted>/v1/x", b"{}")
        live = b"".join(file.read_bytes() for file in (tmp_path / "store").iterdir())
        served.stop()
    assert upstream.requests[-1][0].startswith(f"GET /{KEY}/v1/x ".encode())
    closed = b"".join(file.read_bytes() for file in (tmp_path / "store").iterdir())
    assert KEY.encode() not in live + closed + served.stderr.read_bytes()


def test_a_malformed_answer_is_told_without_the_line_that_was_wrong(serve: Served, tmp_path: Path) -> None:
    assert get(serve, "/malformed")[0] == 502
    serve.stop()
    (exchange,) = exchanges(tmp_path)
    assert exchange.outcome == "upstream_cut"
    assert "Invalid header line" in str(exchange.error)
    assert b"cookie-value-1" not in b"".join(file.read_bytes() for file in (tmp_path / "store").iterdir())


def test_a_target_in_absolute_form_reaches_the_upstream_as_its_path(serve: Served, upstream: Upstream) -> None:
    get(serve, "http://localhost/v1/models?beta=true")
    assert upstream.requests[-1][0].startswith(b"GET /v1/models?beta=true HTTP/1.1\r\n")


def test_a_stop_while_somebody_reads_ends_well(serve: Served, tmp_path: Path) -> None:
    for path in ("/v1/x", "/v1/y"):
        get(serve, path)
        wait_until_recorded(tmp_path, path, b"{}")
    reading = Store.open(tmp_path / "store").exchanges()
    next(reading)
    assert serve.stop() == 0
    assert len(list(reading)) == 1
    assert [exchange.outcome for exchange in exchanges(tmp_path)] == ["complete", "complete"]
    assert not list((tmp_path / "store").glob("*.lock"))


def test_a_disk_that_is_full_from_the_start_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError) as said,
        running_serve(tmp_path, "--upstream", "http://127.0.0.1:1", limit_bytes=8_000),
    ):
        pass
    assert "cannot record into" in str(said.value)
    assert "Traceback" not in str(said.value)
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["store.key"]


def test_a_store_is_private(serve: Served, tmp_path: Path) -> None:
    get(serve, "/v1/x")
    wait_until_recorded(tmp_path, "/v1/x", b"{}")
    folder = tmp_path / "store"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_an_upstream_that_is_down_is_a_502_and_recorded_as_refused(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    with running_serve(tmp_path, "--upstream", f"http://127.0.0.1:{port}") as served:
        status, _ = get(served, "/v1/messages")
        served.stop()
    assert status == 502
    (exchange,) = exchanges(tmp_path)
    assert exchange.outcome == "upstream_refused"
    assert exchange.status is None
    assert exchange.error is not None


def test_cuts_are_told_apart_by_who_cut(serve: Served, tmp_path: Path) -> None:
    connection = connect(serve)
    connection.request("GET", "/cut")
    with pytest.raises(http.client.IncompleteRead):
        connection.getresponse().read()
    connection.close()
    assert get(serve, "/silent")[0] == 502
    connection = connect(serve)
    connection.request("GET", "/slow/100/20")
    connection.getresponse().read(30)
    connection.close()
    deadline = time.monotonic() + 10
    while len([e for e in exchanges(tmp_path) if e.outcome != "open"]) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    serve.stop()
    cut, silent, aborted = exchanges(tmp_path)
    assert (cut.outcome, body_of(cut)) == ("upstream_cut", b"only this")
    assert silent.outcome == "upstream_cut"
    assert aborted.outcome == "client_aborted"
    assert aborted.reads


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["stopped", "the terminal closed"])
def test_a_stop_lets_a_running_stream_end(serve: Served, tmp_path: Path, number: signal.Signals) -> None:
    connection = connect(serve)
    connection.request("GET", "/slow/20/50")
    response = connection.getresponse()
    response.readline()
    serve.process.send_signal(number)
    assert response.read().count(b"data:") == 20
    connection.close()
    assert serve.process.wait(20) == 0
    (exchange,) = exchanges(tmp_path)
    assert exchange.outcome == "complete"


def test_two_recorders_on_one_store(tmp_path: Path, upstream: Upstream) -> None:
    with (
        running_serve(tmp_path, "--upstream", upstream.url, name="one") as one,
        running_serve(tmp_path, "--upstream", upstream.url, name="two") as two,
    ):
        get(one, "/from/one")
        get(two, "/from/two")
        one.stop()
        two.stop()
    found = exchanges(tmp_path)
    assert {exchange.path for exchange in found} == {"/from/one", "/from/two"}
    assert len({exchange.exchange_id for exchange in found}) == 2
    assert len(Store.open(tmp_path / "store").journals()) == 2


def test_routes_are_told_apart_by_the_first_segment(tmp_path: Path, upstream: Upstream) -> None:
    routes = ("--route", f"anthropic={upstream.url}", "--route", f"openai={upstream.url}/prefix/")
    with running_serve(tmp_path, *routes) as served:
        assert get(served, "/anthropic/v1/messages?beta=true")[0] == 200
        assert upstream.requests[-1][0].startswith(b"GET /v1/messages?beta=true ")
        assert get(served, "/openai/responses")[0] == 200
        assert upstream.requests[-1][0].startswith(b"GET /prefix/responses ")
        status, body = get(served, "/other/responses")
        served.stop()
    assert status == 404
    assert b"/anthropic" in body
    assert [exchange.path for exchange in exchanges(tmp_path)][:2] == ["/v1/messages?beta=true", "/prefix/responses"]


def test_a_web_page_cannot_reach_through(serve: Served) -> None:
    assert get(serve, "/x", Host="rebound.example:80")[0] == 403
    assert get(serve, "/x", Origin="https://page.example")[0] == 403
    assert get(serve, "/x", Origin="http://localhost:3000")[0] == 200


def test_a_full_disk_stops_the_recording_and_not_the_agent(tmp_path: Path, upstream: Upstream) -> None:
    with running_serve(tmp_path, "--upstream", upstream.url, limit_bytes=400_000) as served:
        for _ in range(6):
            connection = connect(served)
            connection.request("POST", "/v1/x", body=os.urandom(150_000))
            assert connection.getresponse().read() == b"{}"
            connection.close()
            time.sleep(0.3)
        code = served.stop()
        words = served.stderr.read_text()
    assert code == 3
    assert "RECORDING STOPPED" in words
    assert "Traceback" not in words
    kept = list(Store.open(tmp_path / "store").exchanges())
    assert 1 <= len(kept) < 6
    assert len(kept[0].request_body) == 150_000


def test_a_damaged_list_of_exclusions_is_told_by_health_and_by_the_exit_code(
    serve: Served, tmp_path: Path, upstream: Upstream
) -> None:
    assert get(serve, "/healthz") == (200, b'{"status": "recording"}')
    (tmp_path / "store" / "excluded.json").write_text("[]")
    deadline = time.monotonic() + 20
    while (health := get(serve, "/healthz"))[0] == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert health[0] == 503
    assert b"excluded cannot be read" in health[1]
    assert b"\nagentdyno_recording 0\n" in get(serve, "/metrics")[1]
    assert get(serve, "/v1/x") == (200, b"{}")  # relaying goes on
    (tmp_path / "store" / "excluded.json").unlink()
    while get(serve, "/healthz")[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    get(serve, "/v1/y")
    assert serve.stop() == 1
    assert [exchange.path for exchange in exchanges(tmp_path)] == ["/v1/y"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--upstream", "http://127.0.0.1:1", "--listen", "0.0.0.0:0"), 3, "not a loopback address"),
        (("--upstream", "http://127.0.0.1:1", "--listen", "8000x"), 2, "HOST:PORT"),
        (("--upstream", "127.0.0.1:1"), 2, "no base URL"),
        (("--upstream", "http://name:word@127.0.0.1:1"), 2, "leave credentials out"),
        (("--route", "anthropic"), 2, "NAME=URL"),
        (("--route", "a=http://127.0.0.1:1", "--route", "a=http://127.0.0.1:2"), 2, "given twice"),
        (("--upstream", "http://127.0.0.1:1/?key=k"), 2, "upstream '127.0.0.1': a base URL has no query"),
        (("--upstream", "http://127.0.0.1:1", "--ready-file", "/dev/null/x"), 3, "cannot write the ready file"),
        ((), 2, "name an upstream"),
    ],
    ids=[
        "other address",
        "no port",
        "no scheme",
        "credentials",
        "route without URL",
        "route twice",
        "query",
        "ready file",
        "nothing",
    ],
)
def test_bad_words_get_one_sentence(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = subprocess.run(
        agentdyno("capture", "serve", "--store", str(tmp_path / "store"), *arguments),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said(tmp_path: Path, serve: Served) -> None:
    done = subprocess.run(
        agentdyno(
            *("capture", "serve", "--store", str(tmp_path / "store"), "--upstream", "http://127.0.0.1:1"),
            *("--listen", f"127.0.0.1:{serve.port}"),
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{serve.port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_addon_works_in_somebody_elses_mitmdump(tmp_path: Path, upstream: Upstream) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store, log = tmp_path / "store", tmp_path / "mitmdump.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(str(Path(sys.executable).parent / "mitmdump"), "-q", "-s", str(ROOT / "capture" / "addon.py")),
                *("--mode", f"reverse:{upstream.url}", "--listen-host", "127.0.0.1", "-p", str(port)),
                *("--set", f"confdir={tmp_path / 'mitmproxy'}"),
            ],
            env={**os.environ, "AGENTDYNO_STORE": str(store)},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            try:
                answer = get(
                    Served(process, f"http://127.0.0.1:{port}", log), "/slow/3/10", Authorization=f"Bearer {KEY}"
                )
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
    assert answer[1].count(b"data:") == 3
    (exchange,) = exchanges(tmp_path)
    assert exchange.outcome == "complete"
    assert body_of(exchange).count(b"data:") == 3
    assert KEY not in log.read_text()


def test_the_ready_file_holds_one_line(serve: Served, tmp_path: Path) -> None:
    text = (tmp_path / "serve.ready").read_text()
    assert text == f"{serve.url}\n"
    assert wait_for(tmp_path / "serve.ready", serve.process, serve.stderr) == serve.url


def test_an_upstream_with_tls_is_verified_and_recorded(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, leaf = make_certificates(tmp_path)
    with tls_front(leaf, upstream.port) as port:
        url = f"https://localhost:{port}"
        with running_serve(tmp_path, "--upstream", url, name="stranger") as served:
            assert get(served, "/slow/3/10")[0] == 502
            served.stop()
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        with running_serve(tmp_path, "--upstream", url, name="friend") as served:
            status, body = get(served, "/slow/3/10")
            served.stop()
    assert (status, body.count(b"data:")) == (200, 3)
    refused, complete = exchanges(tmp_path)
    assert refused.outcome == "upstream_refused"
    assert "certificate" in (refused.error or "").lower()
    assert (complete.outcome, complete.host) == ("complete", f"localhost:{port}")

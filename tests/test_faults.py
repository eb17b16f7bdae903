"""Faults on purpose, the agent's bytes compared to those of a direct run: the recorder must not be noticed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from capture.command import capture
from capture.exchange import Exchange
from capture.store import Store
from tests.raw_upstream import (
    LARGE,
    TEXT,
    RawAnswer,
    RawUpstream,
    Script,
    accept_socket,
    both,
    chunked,
    echo,
    frame,
    parse_answer,
    request,
    reset,
    running_raw_upstream,
    sized,
    slowly,
    talk,
)
from tests.sse_upstream import Served, running_serve


def cut_short(connection: socket.socket, _head: bytes, _body: bytes) -> None:
    connection.sendall(b"".join(chunked(b"data: 1\n\n", b"data: 2\n\n", end=b"")))
    time.sleep(0.2)


def cut_hard(connection: socket.socket, head: bytes, body: bytes) -> None:
    cut_short(connection, head, body)
    reset(connection)


def silent_then_done(connection: socket.socket, _head: bytes, _body: bytes) -> None:
    pieces = chunked(b"data: before\n\n", b"data: after\n\n")
    connection.sendall(pieces[0] + pieces[1])
    time.sleep(2)
    connection.sendall(b"".join(pieces[2:]))


def until_told(connection: socket.socket, _head: bytes, _body: bytes) -> None:
    connection.sendall(chunked()[0])
    for number in range(2000):
        connection.sendall(b"f\r\ndata: %07d\n\n\r\n" % number)
        time.sleep(0.01)


SCRIPTS: dict[str, Script] = {
    "/chunked": slowly(chunked(*[TEXT[at : at + 97] for at in range(0, len(TEXT), 97)])),
    "/sized": slowly(sized(TEXT)),
    "/large": slowly(sized(LARGE)),
    "/echo": echo,
    "/cut-short": cut_short,
    "/cut-hard": cut_hard,
    "/silent": silent_then_done,
    "/until-told": until_told,
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with running_raw_upstream(SCRIPTS) as server:
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, upstream: RawUpstream) -> Iterator[Served]:
    with running_serve(tmp_path_factory.mktemp("shared"), "--upstream", upstream.url) as served:
        yield served


def exchanges(folder: Path) -> list[Exchange]:
    return list(Store.open(folder / "store").exchanges())


def body_of(exchange: Exchange) -> bytes:
    return b"".join(read.data for read in exchange.reads)


@pytest.mark.parametrize("path", ["/cut-short", "/cut-hard"])
def test_an_upstream_that_cuts_is_seen_as_it_is(tmp_path: Path, upstream: RawUpstream, path: str) -> None:
    with running_serve(tmp_path, "--upstream", upstream.url) as served:
        direct, through = both(upstream, served.port, request(path))
        assert served.stop() == 0
    assert (through, through.whole) == (direct, False)
    (exchange,) = exchanges(tmp_path)
    assert (exchange.outcome, body_of(exchange)) == ("upstream_cut", direct.body)


def test_a_silence_is_cut_only_when_it_is_longer_than_told(
    tmp_path: Path, upstream: RawUpstream, shared: Served
) -> None:
    (default,) = [option.default for option in capture.commands["serve"].params if option.name == "idle_timeout_s"]
    assert default >= 86_400  # mitmproxy's own is 600 s, and an agent may be thought for longer
    with running_serve(tmp_path, "--upstream", upstream.url, "--idle-timeout", "1") as impatient:
        with ThreadPoolExecutor(2) as pool:
            patient = pool.submit(talk, shared.port, request("/silent"))
            cut = parse_answer(talk(impatient.port, request("/silent")))
        whole = parse_answer(patient.result())
        impatient.stop()
    assert (whole.body, whole.whole) == (b"data: before\n\ndata: after\n\n", True)
    assert (cut.body, cut.whole) == (b"data: before\n\n", False)


def test_an_agent_that_goes_away_stops_the_upstream_too(tmp_path: Path, upstream: RawUpstream) -> None:
    with running_serve(tmp_path, "--upstream", upstream.url) as served:
        upstream.faults.clear()
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as agent:
            agent.sendall(request("/until-told"))
            received = b""
            while received.count(b"data:") < 5:
                received += agent.recv(4096)
        deadline = time.monotonic() + 10
        while not upstream.faults and time.monotonic() < deadline:
            time.sleep(0.02)
        assert served.stop() == 0
    ((path, fault),) = upstream.faults
    assert (path, isinstance(fault, ConnectionError)) == ("/until-told", True)  # it stops generating
    (exchange,) = exchanges(tmp_path)
    assert exchange.outcome == "client_aborted"
    assert body_of(exchange).startswith(b"data: 0000000\n\n")


def test_sigkill_in_mid_stream_and_the_agents_own_retry(tmp_path: Path, upstream: RawUpstream) -> None:
    with (
        running_serve(tmp_path, "--upstream", upstream.url, name="first") as first,
        socket.create_connection(("127.0.0.1", first.port), timeout=20) as agent,
    ):
        agent.sendall(request("/until-told", method=b"POST", body=b'{"turn": 1}'))
        received = b""
        while received.count(b"data:") < 60:  # longer than a commit takes
            received += agent.recv(4096)
        first.stop(signal.SIGKILL)
        with contextlib.suppress(ConnectionError):
            while data := agent.recv(4096):
                received += data
    assert not parse_answer(received).whole
    listen = ("--listen", f"127.0.0.1:{first.port}")
    with running_serve(tmp_path, "--upstream", upstream.url, *listen, name="second") as second:
        direct, through = both(upstream, second.port, request("/chunked", method=b"POST", body=b'{"turn": 1}'))
        assert second.stop() == 0
    assert through == direct
    cut, again = exchanges(tmp_path)
    assert (cut.outcome, [gap.kind for gap in cut.gaps]) == ("open", ["killed"])
    assert cut.request_body == b'{"turn": 1}'
    assert parse_answer(received).body.startswith(body_of(cut))
    assert len(body_of(cut)) > 0
    assert (again.outcome, again.gaps) == ("complete", ())


HOOKS = """
from capture.journal import JournalWriter
def plant(name, number):
    real = getattr(JournalWriter, name)
    def failing(self, *arguments, **named):
        at = self.exchanges + 1 if name == "send" else arguments[0]
        if at == number:
            raise RuntimeError("a bug")
        return real(self, *arguments, **named)
    setattr(JournalWriter, name, failing)
for number, name in enumerate(("sent", "headers", "read", "end"), start=1):
    plant(name, number)
real_send = JournalWriter.send
def send(self, **named):
    if named["path"].endswith("?plant"):
        raise RuntimeError("a bug")
    return real_send(self, **named)
JournalWriter.send = send
from capture.counters import Counters
real_ended = Counters.ended
def ended(self, route, status, outcome):
    real_ended(self, route, status, outcome)
    if sum(self.exchanges.values()) == 6:
        raise RuntimeError("a bug")
Counters.ended = ended
"""


def test_a_bug_in_any_hook_costs_a_recording_and_no_byte(tmp_path: Path, upstream: RawUpstream) -> None:
    with running_serve(tmp_path, "--upstream", upstream.url, planted=HOOKS) as served:
        for path in ("/chunked", "/chunked", "/chunked", "/chunked", "/chunked?plant", "/sized", "/sized"):
            direct, through = both(upstream, served.port, request(path, method=b"POST", body=b"{}"))
            assert through == direct
        assert served.stop() == 1  # something was lost, and the exit tells
        assert "Traceback" not in served.stderr.read_text()
    found = exchanges(tmp_path)
    marked = [[gap.kind for gap in exchange.gaps] for exchange in found]
    assert marked[:4] == [["recorder_error"]] * 4
    assert marked[-1] == []
    assert [body_of(exchange) for exchange in found][-1] == TEXT


@pytest.mark.parametrize(
    "planted",
    [
        "from capture.parts import PartPool\ndef bad(*_): raise RuntimeError('a bug')\nPartPool.recipe = bad",
        "import errno\nfrom capture.journal import JournalWriter\n"
        "def bad(*_): raise OSError(errno.ENOSPC, 'No space left on device')\nJournalWriter._commit = bad",
    ],
    ids=["a bug", "no space"],
)
def test_a_fault_of_the_writer_stops_the_recording_and_no_byte(
    tmp_path: Path, upstream: RawUpstream, planted: str
) -> None:
    with running_serve(tmp_path, "--upstream", upstream.url, planted=planted) as served:
        for _ in range(3):
            direct, through = both(upstream, served.port, request("/chunked", method=b"POST", body=b"{}"))
            assert through == direct
            time.sleep(0.4)
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        body = response.read()
        connection.close()
        assert (response.status, b"relaying goes on" in body, str(tmp_path).encode() in body) == (503, True, False)
        assert served.stop() == 3
        words = served.stderr.read_text()
    assert "RECORDING STOPPED, relaying goes on" in words
    assert "Traceback" not in words


def test_a_small_disk_that_fills_up(tmp_path: Path, upstream: RawUpstream) -> None:
    disk = tmp_path / "store"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k,mode=700", "tmpfs", str(disk)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with running_serve(tmp_path, "--upstream", upstream.url) as served:
            for _ in range(3):
                direct, through = both(
                    upstream, served.port, request("/large", method=b"POST", body=os.urandom(400_000))
                )
                assert through == direct
                time.sleep(0.3)
            assert served.stop() == 3
            assert "RECORDING STOPPED" in served.stderr.read_text()
        assert len(exchanges(tmp_path)) <= 3  # it can still be read
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_bug_in_a_dialect_hides_no_other_session(
    tmp_path: Path, upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capture import dialect

    prompt = b'{"model": "m", "messages": [{"role": "user", "content": "%s"}]}'
    with running_serve(tmp_path, "--upstream", upstream.url) as served:
        for path, name in (("/v1/messages", b"one"), ("/v1/chat/completions", b"two")):
            SCRIPTS[path] = slowly(chunked(TEXT))
            talk(served.port, request(path, method=b"POST", body=prompt % name))
        assert served.stop() == 0

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    planted = tuple(
        (pattern, replace(known, read_stream=broken) if pattern.search("/v1/messages") else known)
        for pattern, known in dialect._BY_PATH
    )
    monkeypatch.setattr(dialect, "_BY_PATH", planted)
    listed = CliRunner().invoke(capture, ["sessions", "--json", "--store", str(tmp_path / "store")])
    assert listed.exit_code == 0, listed.output
    assert len(json.loads(listed.stdout)) == 2


def test_sixty_four_agents_at_once(tmp_path: Path, upstream: RawUpstream) -> None:
    agents = 64
    ready = threading.Barrier(agents)

    def agent(port: int, number: int) -> RawAnswer:
        body = (b'{"agent": %d}' % number) + os.urandom(20_000)
        ready.wait(20)
        answer = parse_answer(talk(port, request("/echo", method=b"POST", body=body)))
        assert answer.body == body
        return parse_answer(talk(port, request(f"/chunked?{number}")))

    with running_serve(tmp_path, "--upstream", upstream.url) as served, ThreadPoolExecutor(agents) as pool:
        answers = list(pool.map(agent, [served.port] * agents, range(agents)))
        direct = parse_answer(talk(upstream.port, request("/chunked")))
        assert answers == [direct] * agents
        assert served.stop() == 0
    found = exchanges(tmp_path)
    assert len(found) == 2 * agents
    assert {exchange.outcome for exchange in found} == {"complete"}
    assert [exchange.gaps for exchange in found] == [()] * len(found)
    assert {exchange.path for exchange in found} == {"/echo", *(f"/chunked?{number}" for number in range(agents))}
    assert {body_of(exchange) for exchange in found if exchange.path != "/echo"} == {TEXT}


def resident_bytes(served: Served) -> int:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_flat_under_large_bodies_and_a_long_websocket(tmp_path: Path, upstream: RawUpstream) -> None:
    message = os.urandom(1 << 10) * 1024

    def pour(connection: socket.socket, head: bytes, _body: bytes) -> None:
        accept_socket(connection, head)
        for _ in range(100):  # 100 MB
            connection.sendall(frame(2, message))
            connection.recv(6)  # a ping: as fast as it is taken
            time.sleep(0.015)
        connection.sendall(frame(8, (1000).to_bytes(2)))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(64)

    SCRIPTS["/pour"] = pour
    fields = (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    opening = request("/pour", *fields).replace(b"Connection: close", b"Connection: Upgrade")
    with running_serve(tmp_path, "--upstream", upstream.url) as served:

        def drink() -> int:
            received = 0
            with socket.create_connection(("127.0.0.1", served.port), timeout=20) as agent:
                agent.sendall(opening)
                while data := agent.recv(1 << 20):
                    before, received = received, received + len(data)
                    for _ in range(received // len(message) - before // len(message)):
                        with contextlib.suppress(OSError):
                            agent.sendall(frame(9, b"", masked=True))
            return received

        for _ in range(3):
            talk(served.port, request("/echo", method=b"POST", body=LARGE))
        warm = resident_bytes(served)
        assert drink() > 100 << 20
        for _ in range(6):
            talk(served.port, request("/echo", method=b"POST", body=LARGE))
        grown = resident_bytes(served) - warm
        assert served.stop() == 0
    assert grown < 96 << 20, f"{grown >> 20} MB more after 100 MB over a socket and 48 MB of bodies"
    problems: list[str] = []
    found = list(Store.open(tmp_path / "store").exchanges(problems))
    assert problems == []
    (poured,) = [exchange for exchange in found if exchange.path == "/pour"]
    assert [message.data for message in poured.messages if not message.from_agent] == [message] * 100

"""A power server and its client, over TLS on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from replay.commands.power_serve import serve
from replay.power import remote
from replay.power import serve as power_serve
from replay.power.choice import parse_power
from replay.power.energy import integrate
from replay.power.exchange import ClockMatch
from replay.power.meter import Meter
from replay.power.remote import WORST_U_S, RemoteSource
from replay.power.serve import PowerServer, server_tls
from replay.power.source import PowerDevice, PowerFault, PowerSample, SourceInfo
from tests.certificates import make_certificates

TOKEN = "a-token-of-twenty-six-signs"
GPU = PowerDevice(uid="GPU-a", name="H200", domain="accelerator", limit_w=700.0, wrap_j=None, host="n1")
CPU = PowerDevice(
    uid="n1/intel-rapl:0", name="package-0", domain="cpu_package", limit_w=None, wrap_j=65_712.0, host="n1"
)


class Counters:
    """500 W since the beginning of its clock, whose time is ahead of this machine's."""

    def __init__(self, *devices: PowerDevice, ahead_ns: int = 0, kind: str = "nvml", period_s: float = 0.02) -> None:
        self._ahead_ns = ahead_ns
        self._info = SourceInfo(
            kind=kind, measured=True, version="580.1", devices=devices, notes=("as it says",), period_s=period_s
        )

    def describe(self) -> SourceInfo:
        return self._info

    def clock(self) -> int:
        return time.monotonic_ns() + self._ahead_ns

    def read(self) -> list[PowerSample]:
        now_ns = self.clock()
        value = 500 * (now_ns - self._ahead_ns) / 1e9
        return [
            PowerSample(t_ns=now_ns, device=device.uid, kind="energy_j", value=value, read_us=3, flag="ok")
            for device in self._info.devices
        ]

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def token_env(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("POWER_TOKEN", TOKEN)
    return "POWER_TOKEN"


@contextmanager
def opened(url: str, **options: object) -> Iterator[RemoteSource]:
    source = RemoteSource(url, **options)  # type: ignore[arg-type]
    try:
        yield source
    finally:
        source.close()


def port_of(server: PowerServer) -> int:
    return int(server.url.rpartition(":")[2])


def until(source: RemoteSource, seen: Callable[[list[PowerSample]], bool]) -> list[PowerSample]:
    samples: list[PowerSample] = []
    end = time.monotonic() + 20
    while not seen(samples):
        assert time.monotonic() < end, samples
        samples += source.read()
        time.sleep(0.01)
    return samples


def both(samples: list[PowerSample]) -> bool:
    """Some good readings of either device."""
    return all(sum(item.device == one.uid and item.flag == "ok" for item in samples) > 3 for one in (GPU, CPU))


def many(samples: list[PowerSample]) -> bool:
    return len(samples) > 8


def test_readings_come_over_tls_and_at_the_times_of_this_machine(
    certificates: tuple[Path, Path], token_env: str
) -> None:
    authority, leaf = certificates
    ahead_ns = 3 * 86_400 * 1_000_000_000  # another machine was started three days earlier
    gpus, cpus = Counters(GPU, ahead_ns=ahead_ns), Counters(CPU, ahead_ns=ahead_ns, kind="rapl", period_s=0.05)
    with PowerServer([gpus, cpus], token=TOKEN, tls=server_tls(leaf, leaf), clock=gpus.clock) as server:
        url = f"https://localhost:{port_of(server)}"
        with opened(url, token_env=token_env, ca_file=authority) as source:
            info = source.describe()
            began_ns = time.monotonic_ns()
            found = until(source, both)
    assert (info.kind, info.measured, info.name, info.devices) == ("remote", True, url, (GPU, CPU))
    assert (info.period_s, info.version) == (0.05, "nvml 580.1, rapl 580.1")
    assert info.notes == ("nvml: as it says", "rapl: as it says")
    assert info.clock_u_s >= WORST_U_S
    good = [item for item in found if item.flag == "ok"]
    for sample in good:  # the counter tells when it was read, by this machine's clock
        assert sample.value is not None
        assert abs(sample.t_ns - sample.value / 500 * 1e9) <= 3 * info.clock_u_s * 1e9
    assert abs(found[0].t_ns - began_ns) < 20e9
    own = [item for item in good if item.device == GPU.uid]
    assert len({item.t_ns for item in own}) == len(own)  # each once
    seconds = (own[-1].t_ns - own[0].t_ns) / 1e9
    energy = integrate(own, GPU, start_ns=own[0].t_ns, end_ns=own[-1].t_ns, period_s=0.02)
    assert energy.energy_j == pytest.approx(500 * seconds, abs=500 * 2 * info.clock_u_s)


def test_who_has_no_token_or_a_wrong_one_gets_nothing(
    certificates: tuple[Path, Path], token_env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, leaf = certificates
    with PowerServer([Counters(GPU)], token=TOKEN, tls=server_tls(leaf, leaf)) as server:
        url = f"https://localhost:{port_of(server)}"
        with pytest.raises(PowerFault, match="wants a token: name the variable that holds it"):
            RemoteSource(url, ca_file=authority)
        for wrong in (TOKEN[:-1], TOKEN + "x", "another"):
            monkeypatch.setenv(token_env, wrong)
            with pytest.raises(PowerFault, match="refuses the token in POWER_TOKEN") as refused:
                RemoteSource(url, token_env=token_env, ca_file=authority)
            assert wrong not in str(refused.value)
        monkeypatch.setenv(token_env, "two words\r\nx: y")
        with pytest.raises(PowerFault, match="POWER_TOKEN holds what is no token"):
            RemoteSource(url, token_env=token_env, ca_file=authority)
        monkeypatch.delenv(token_env)
        with pytest.raises(PowerFault, match="POWER_TOKEN, which is not set"):
            RemoteSource(url, token_env=token_env, ca_file=authority)


def test_a_server_that_is_not_the_one_that_was_meant_is_not_asked(
    certificates: tuple[Path, Path], token_env: str, tmp_path: Path
) -> None:
    authority, leaf = certificates
    other = tmp_path / "other"
    other.mkdir()
    others_authority, _ = make_certificates(other)
    expired = tmp_path / "expired"
    expired.mkdir()
    expired_authority, expired_leaf = make_certificates(expired, expired=True)
    with PowerServer([Counters(GPU)], token=TOKEN, tls=server_tls(leaf, leaf)) as server:
        url = f"https://localhost:{port_of(server)}"
        for known in (None, others_authority):
            with pytest.raises(
                PowerFault, match=r"certificate of https://localhost:\d+ is not trusted \(.*ca-file=FILE"
            ):
                RemoteSource(url, token_env=token_env, ca_file=known)
        with pytest.raises(PowerFault, match=r"is not trusted \(.*127\.0\.0\.1"):  # it is localhost's
            RemoteSource(f"https://127.0.0.1:{port_of(server)}", token_env=token_env, ca_file=authority)
        with pytest.raises(PowerFault, match=r"ca-file .*none\.pem cannot be read"):
            RemoteSource(url, token_env=token_env, ca_file=tmp_path / "none.pem")
        with pytest.raises(PowerFault, match="holds no certificate in PEM"):
            RemoteSource(url, token_env=token_env, ca_file=Path(__file__))
        with pytest.raises(PowerFault, match=r"does not answer|no HTTP"):  # plain words to a TLS server
            RemoteSource(f"http://127.0.0.1:{port_of(server)}", token_env=token_env)
    with (
        PowerServer([Counters(GPU)], token=TOKEN, tls=server_tls(expired_leaf, expired_leaf)) as server,
        pytest.raises(PowerFault, match="certificate has expired"),
    ):
        RemoteSource(f"https://localhost:{port_of(server)}", token_env=token_env, ca_file=expired_authority)


def test_a_server_that_is_gone_is_an_error_and_its_time_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AGAIN_S", 0.02)
    with PowerServer([Counters(GPU, CPU)]) as server, opened(server.url) as source:
        before = until(source, many)
        server.__exit__(None, None, None)
        found = until(source, lambda samples: any(item.flag == "error" for item in samples))
        assert [(item.device, item.flag) for item in found if item.flag != "ok"] == [
            (GPU.uid, "error"),
            (CPU.uid, "error"),
        ]
        time.sleep(0.1)
        assert source.read() == []  # said once
        with PowerServer([Counters(GPU)], port=port_of(server)):  # another start, which shows one device less
            after = until(source, many)
            lost = [item.device for item in after if item.flag == "lost"]
            assert lost == [CPU.uid]
            assert {item.device for item in after if item.flag == "ok"} == {GPU.uid}
            first = min(item.t_ns for item in after if item.flag == "ok")
            assert first > max(item.t_ns for item in before)
            assert "it did not answer 1 times" in source.describe().notes[-1]
            assert CPU.uid not in {item.device for item in until(source, many)}


def test_a_connection_that_breaks_costs_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AGAIN_S", 0.02)
    with PowerServer([Counters(GPU, period_s=0.05)]) as server, opened(server.url) as source:
        found = until(source, many)
        server._server.service_actions()
        with server._server._lock:
            for connection in server._server._open:
                power_serve._cut(connection)
        found += until(source, many)
        kept = [item.value for item in server._kept.after(0)[0]]
    good = [item.value for item in found if item.flag == "ok"]
    assert len([item for item in found if item.flag == "error"]) == 1
    first = kept.index(good[0])
    assert good == kept[first : first + len(good)]  # they were kept until they were asked for again


def test_what_is_kept_is_bounded_and_what_is_dropped_is_said() -> None:
    with PowerServer([Counters(GPU, period_s=0.005)], most_kept=20) as server, opened(server.url) as source:
        while server._kept.after(source._next)[1] == 0:
            time.sleep(0.01)
        found = source.read()
        assert 0 < len(found) <= 40
        assert "readings were no longer kept" in source.describe().notes[-1]


def asked(server: PowerServer, request: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    with socket.create_connection(("127.0.0.1", port_of(server)), 10) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
        return answer


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /power HTTP/1.1\r\nConnection: close\r\n\r\n", b"HTTP/1.1 401"),
        (b"GET /power HTTP/1.1\r\nAuthorization: Bearer \xff\r\n\r\n", b"HTTP/1.1 401"),
        (b"GET /other HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /power?after=-1 HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /power?after=1e9 HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /power?after=" + b"9" * 99 + b" HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET /power?" + b"a=1&" * 9 + b" HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"GET http://[/power HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404"),
        (b"POST /power HTTP/1.1\r\n%s\r\n\r\n", b"HTTP/1.1 501"),
        (b"GET /power HTTP/1.1\r\n%s\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /power HTTP/1.1\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", b""),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"HTTP/1.1 414"),
        (b"GET /power HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", b"HTTP/1.1 431"),
    ],
)
def test_whatever_is_asked_gets_a_short_answer_without_a_secret(request_: bytes, answer: bytes) -> None:
    authorization = f"Authorization: Bearer {TOKEN}".encode()
    with PowerServer([Counters(GPU)], token=TOKEN) as server:
        found = asked(server, request_.replace(b"%s", authorization))
        assert found.startswith(answer)
        assert len(found) < 500
        assert TOKEN.encode() not in found
        assert b"Python" not in found
        good = asked(server, b"GET /power HTTP/1.1\r\n" + authorization + b"\r\nConnection: close\r\n\r\n")
        assert json.loads(good.partition(b"\r\n\r\n")[2])["sources"][0]["kind"] == "nvml"


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:9470", b"200"),
        ("localhost", b"200"),
        ("[::1]:1", b"200"),
        ("evil.example:9470", b"403"),
        ("[", b"403"),
    ],
)
def test_without_a_token_a_name_that_was_bent_to_the_loopback_gets_nothing(host: str, code: bytes) -> None:
    with PowerServer([Counters(GPU)]) as server:
        found = asked(server, f"GET /power HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 " + code)
    assert (b"GPU-a" in found) == (code == b"200")


def test_connections_that_say_nothing_are_closed_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_serve, "FIRST_S", 0.2)
    monkeypatch.setattr(power_serve, "MOST_CONNECTIONS", 3)
    with PowerServer([Counters(GPU)], token=TOKEN) as server:
        address = ("127.0.0.1", port_of(server))
        idle = [socket.create_connection(address, 10) for _ in range(8)]
        for connection in idle:
            assert connection.recv(1) == b""  # closed by the other side
            connection.close()


class Nobody(threading.Thread):
    """Answers every request with the same bytes."""

    def __init__(self, answer: bytes, *, then: str = "close") -> None:
        super().__init__(daemon=True)
        self._answer, self._then = answer, then
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Nobody:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(10)

    def run(self) -> None:
        kept = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            kept.append(connection)
            connection.recv(65_536)
            connection.sendall(self._answer)
            if self._then == "close":
                connection.close()
        for connection in kept:
            connection.close()


def http(body: bytes, code: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (code, len(body), body)


ANSWER = {"agentdyno_power_server": 1, "server": "s", "received_ns": 1, "sent_ns": 2, "next": 0}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "does not answer|no HTTP"),
        (b"SSH-2.0-x\r\n", "answers with no HTTP"),
        (http(b"", 500), "answers with HTTP 500"),
        (http(b"", 302), "answers with HTTP 302"),
        (http(b"<html>"), "is no power server of agentdyno"),
        (http(json.dumps({**ANSWER, "agentdyno_power_server": 9}).encode()), "it speaks version 9"),
        (http(json.dumps({**ANSWER, "received_ns": 3}).encode()), "clock does not run"),
        (http(json.dumps({**ANSWER, "sent_ns": 2**62}).encode()), "clock does not run"),
        (http(json.dumps(ANSWER).encode()), "array"),
        (http(json.dumps({**ANSWER, "sources": []}).encode()), "0 sources"),
        (http(json.dumps({**ANSWER, "samples": [[1, "a", "power_w", 1, 0, "ok"]] * 5001}).encode()), "no power server"),
        (http(json.dumps({**ANSWER, "sources": [{"kind": "\x1b[2J"}]}).encode()), "not printable"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\n{}", "does not answer to the end"),
        (b"HTTP/1.1 200 X\r\n" + b"a: b\r\n" * 300 + b"\r\n", "answers with no HTTP"),
    ],
)
def test_what_is_no_power_server_is_one_sentence(answer: bytes, says: str) -> None:
    with Nobody(answer) as nobody, pytest.raises(PowerFault, match=says) as fault:
        RemoteSource(nobody.url)
    assert str(fault.value).isprintable()


def test_a_server_that_does_not_come_to_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.3)
    with (
        Nobody(b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n{", then="keep") as nobody,
        pytest.raises(PowerFault, match=r"did not answer within 0\.3 s"),
    ):
        RemoteSource(nobody.url)
    with (
        Nobody(b"", then="keep") as nobody,  # no handshake
        pytest.raises(PowerFault, match=r"did not answer within 0\.3 s"),
    ):
        RemoteSource(nobody.url.replace("http:", "https:"))


def test_nobody_there_says_what_to_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PowerFault, match=r"refused.*start agentdyno replay power serve there"):
        RemoteSource(f"http://127.0.0.1:{port}")


def test_readings_that_cannot_be_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AGAIN_S", 0.02)
    strange = Counters(GPU)
    sane = strange.read
    with PowerServer([strange]) as server, opened(server.url) as source:
        until(source, many)
        monkeypatch.setattr(strange, "read", lambda: [replace(item, device="GPU-b") for item in sane()])
        source.read()
        time.sleep(0.1)
        assert all(item.device == GPU.uid for item in source.read())  # what was not described is not ours
        monkeypatch.setattr(strange, "read", lambda: [replace(item, t_ns=item.t_ns + 2**50) for item in sane()])
        assert {item.flag for item in until(source, bool)} == {"error"}


def test_a_time_that_is_too_uncertain_makes_an_error_of_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    with PowerServer([Counters(GPU)]) as server, opened(server.url) as source:
        assert "ok" in {item.flag for item in until(source, many)}
        monkeypatch.setattr(ClockMatch, "u_s", lambda *_: 1.0)
        samples = until(source, many)
        assert {(item.value, item.flag) for item in samples} == {(None, "error")}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--listen", "0.0.0.0:0"], "0.0.0.0 can be reached from other machines: give --cert, --key and --token-env"),
        (["--listen", "0.0.0.0:0", "--token-env", "POWER_TOKEN"], "can be reached from other machines"),
        (["--listen", "[::]:0", "--token-env", "POWER_TOKEN"], "can be reached from other machines"),
        (["--listen", "node1:0", "--cert", "a.pem", "--key", "b.pem"], "can be reached from other machines"),
        (["--listen", "nine"], "--listen takes HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "--listen takes HOST:PORT"),
        (["--cert", "a.pem"], "--cert and --key belong together"),
        (["--token-env", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN, which is not set: export NO_SUCH_TOKEN="),
        (["--token-env", "SHORT_TOKEN"], "SHORT_TOKEN holds no token: one word of at least 16"),
        (["--power", "declared:700W"], "a nameplate is stated where the score is made"),
        (["--power", "moon"], "power 'moon' is not known"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str], says: str, token_env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "short")
    found = CliRunner().invoke(serve, ["--power", "rapl", *words])
    assert found.exit_code == 2
    assert says in " ".join(found.stderr.split())
    assert TOKEN not in found.output


def test_certificates_that_are_none_are_one_sentence(certificates: tuple[Path, Path], tmp_path: Path) -> None:
    authority, leaf = certificates
    with pytest.raises(PowerFault, match="are no certificate and its key in PEM"):
        server_tls(authority, leaf)
    with pytest.raises(PowerFault, match="cannot be read: No such file"):
        server_tls(tmp_path / "none.pem", leaf)


def test_the_command_takes_its_sources_along_while_it_opens_them(tmp_path: Path) -> None:
    (tmp_path / "silent.sh").write_text(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 600\n")
    command = [sys.executable, "-m", "agentdyno", "replay", "power", "serve", "--listen", "127.0.0.1:0"]
    server = subprocess.Popen([*command, "--power", f"command:sh {tmp_path}/silent.sh"], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        server.terminate()
        assert server.wait(30) > 0
    finally:
        server.kill()
        server.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_command_serves_until_ctrl_c(certificates: tuple[Path, Path], token_env: str, tmp_path: Path) -> None:
    authority, leaf = certificates
    ready = tmp_path / "url"
    script = (
        'echo \'{"agentdyno_power": 1, "period_s": 0.05, "devices": [{"uid": "n1", "domain": "node"}]}\'; '
        'while :; do echo \'{"device": "n1", "power_w": 512.5}\'; sleep 0.05; done'
    )
    meter = tmp_path / "meter.sh"
    meter.write_text(script)
    command = [sys.executable, "-m", "agentdyno", "replay", "power", "serve", "--power", f"command:sh {meter}"]
    command += ["--listen", "localhost:0", "--token-env", token_env, "--cert", str(leaf), "--key", str(leaf)]
    server = subprocess.Popen(
        [*command, "--ready-file", str(ready)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 60
        while not ready.exists():
            assert server.poll() is None, server.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        url = ready.read_text().strip()
        assert url.startswith("https://localhost:")
        with Meter([parse_power(f"{url},token-env={token_env},ca-file={authority}")]) as meter:
            now_ns = time.monotonic_ns()
            samples = meter.collect(now_ns, now_ns + 200_000_000)
            assert {(item.device, item.kind, item.value) for item in samples} == {("n1", "power_w", 512.5)}
            assert any(item.t_ns >= now_ns + 200_000_000 for item in samples)
            os.kill(server.pid, signal.SIGINT)
            stdout, stderr = server.communicate(timeout=30)
            assert server.returncode == 0
            assert stdout == f"{url}\n"
            assert stderr == "serving power readings; stop with Ctrl-C\n"
            assert not ready.exists()
            while "did not answer" not in " ".join(meter.infos[0].notes):
                assert time.monotonic() < end
                time.sleep(0.02)
    finally:
        server.kill()
        server.communicate()

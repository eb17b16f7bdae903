"""What somebody without a token sends to a recorder: it gets a refusal, and neither memory nor a way around."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.importers.read import read_imported
from capture.launch import Wishes, plan_launch
from capture.people import add_person
from capture.store import Store
from capture.upstream import Upstream as Target
from capture.upstream import UpstreamError
from tests.certificates import make_certificates
from tests.raw_upstream import talk
from tests.sse_upstream import Served, Upstream, agentdyno, running_serve, running_upstream

HOST = "api.anthropic.com"
MIB = 1 << 20
TOKEN = "adt_" + "Ab3" * 11
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    return add_person(Store.open(_folder(tmp_path_factory) / "store", create=True), "ada", "yes")


@pytest.fixture(scope="module")
def reverse(tmp_path_factory: pytest.TempPathFactory, token: str, upstream: Upstream) -> Iterator[Served]:
    route = ("--route", f"anthropic={upstream.url}", "--require-token")
    with running_serve(_folder(tmp_path_factory), *route, name="reverse") as served:
        yield served


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory, token: str, upstream: Upstream) -> Iterator[Served]:
    route = ("--mode", "forward", "--route", f"{HOST}={upstream.url}", "--require-token")
    with running_serve(_folder(tmp_path_factory), *route, name="forward") as served:
        yield served


def _folder(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "attacked"
    folder.mkdir(exist_ok=True)
    return folder


def peak_bytes(served: Served) -> int:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def flood(port: int, head: bytes, piece: bytes, count: int, end: bytes = b"") -> bytes:
    """What came back for a request of `count` pieces; less where the other side hung up."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head)
        for _ in range(count):
            connection.sendall(piece)
        connection.sendall(end)
        while b"\r\n\r\n" not in received and (data := connection.recv(1 << 16)):
            received += data
    return received


# Ways around the token


def test_a_refused_tunnel_opens_nothing(forward: Served, upstream: Upstream) -> None:
    reached = len(upstream.requests)
    with socket.create_connection(("127.0.0.1", forward.port), timeout=20) as connection:
        connection.sendall(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 407 ")
        with contextlib.suppress(ConnectionError):
            for url in (f"http://{HOST}", upstream.url):
                connection.sendall(f"GET {url}/around HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                time.sleep(0.2)
            while data := connection.recv(1 << 16):
                assert b"HTTP/1.1 200" not in data
    assert upstream.requests[reached:] == []


def test_each_request_outside_a_tunnel_shows_its_own_token(forward: Served, upstream: Upstream) -> None:
    plain = f"GET http://{HOST}/x HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    closing = plain.replace(b"Host: x", b"Host: x\r\nConnection: close")
    reached = len(upstream.requests)
    assert talk(forward.port, plain + plain + closing).count(b"HTTP/1.1 407 ") == 3
    assert upstream.requests[reached:] == []


# Memory


@needs_proc
@pytest.mark.parametrize(
    ("mode", "target", "host", "status"),
    [
        ("reverse", "/p/adt_wrong/anthropic/v1", "localhost", b"401"),
        ("reverse", "/anthropic/v1", "rebound.example", b"403"),
        ("reverse", "/p/TOKEN/nowhere", "localhost", b"404"),
        ("reverse", "/healthz", "localhost", b"401"),
        ("forward", f"http://{HOST}/v1", HOST, b"407"),
        ("forward", "http://localhost:PORT/v1", "localhost", b"401"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_of_a_refused_request_is_not_kept(
    request: pytest.FixtureRequest, token: str, mode: str, target: str, host: str, status: bytes, *, chunked: bool
) -> None:
    served: Served = request.getfixturevalue(mode)
    before = peak_bytes(served)
    count = 48
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (count * MIB)
    named = target.replace("TOKEN", token).replace("PORT", str(served.port)).encode()
    head = b"POST %s HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n" % (named, host.encode(), framing)
    piece = b"%x\r\n%s\r\n" % (MIB, bytes(MIB)) if chunked else bytes(MIB)
    answer = flood(served.port, head, piece, count, b"0\r\n\r\n" if chunked else b"")
    assert answer[9:12] == status
    assert peak_bytes(served) - before < 16 * MIB


@needs_proc
@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize(
    "head",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"CONNECT x:443 HTTP/1.1\r\nX: ",
        b"POST /p/x/y HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["line", "header", "tunnel", "chunk"],
)
def test_a_head_without_end_is_cut_off(request: pytest.FixtureRequest, mode: str, head: bytes) -> None:
    served: Served = request.getfixturevalue(mode)
    before = peak_bytes(served)
    flood(served.port, head, b"A" * MIB, 32)
    assert peak_bytes(served) - before < 8 * MIB


@needs_proc
def test_a_tls_greeting_without_end_is_cut_off(tmp_path: Path, upstream: Upstream) -> None:
    _, leaf = make_certificates(tmp_path)
    own = ("--tls-cert", str(leaf), "--tls-key", str(leaf))
    with running_serve(tmp_path, "--upstream", upstream.url, *own) as served:
        before = peak_bytes(served)
        record = b"\x16\x03\x01\x40\x00"
        hello = record + b"\x01\xff\xff\xff" + bytes(0x3FFC)
        flood(served.port, hello, record + bytes(0x4000), 1000)
        assert peak_bytes(served) - before < 8 * MIB


def test_a_large_head_passes_and_one_that_is_too_large_gets_431(
    reverse: Served, token: str, upstream: Upstream
) -> None:
    line = f"GET /p/{token}/anthropic/large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: ".encode()
    assert talk(reverse.port, line + b"A" * 60_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert len(upstream.requests[-1][0]) > 60_000
    refused = talk(reverse.port, line + b"A" * (256 * 1024))
    assert refused.startswith(b"HTTP/1.1 431 ")
    assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["message"].endswith("larger than 256 KiB")


# What an answer says


@pytest.mark.parametrize(
    "sent",
    [
        f"GET /p/{TOKEN}/anthropic/x y HTTP/1.1\r\nHost: localhost",
        f"GET http://user:{TOKEN}@localhost/x HTTP/1.1\r\nHost: localhost",
        f"GET /p/{TOKEN}/x HTTP/1.1\r\nHost: localhost\r\nauthorization Bearer {TOKEN}",
        f"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {TOKEN}",
        f"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {TOKEN}",
        f"CONNECT {TOKEN} HTTP/1.1\r\nHost: localhost",
        f"GET {TOKEN}://localhost/x HTTP/1.1\r\nHost: localhost",
    ],
)
def test_no_answer_to_a_bad_request_repeats_it(reverse: Served, forward: Served, sent: str) -> None:
    for served in (reverse, forward):
        answer = talk(served.port, sent.encode() + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        assert TOKEN.encode() not in answer
        assert b"mitmproxy" not in answer


def test_a_tunnel_asked_of_a_base_url_is_told_the_mode(reverse: Served) -> None:
    answer = talk(reverse.port, b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"`--mode forward`" in answer
    assert b"mitmproxy" not in answer


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"transfer-encoding: chunked\r\nX: y\r\ncontent-length: 5",
        b"Transfer-Encoding : chunked",
        b"Content-Length : 5",
    ],
)
def test_a_body_with_two_ends_is_refused(reverse: Served, token: str, upstream: Upstream, fields: bytes) -> None:
    reached = len(upstream.requests)
    head = f"POST /p/{token}/anthropic/two HTTP/1.1\r\nHost: localhost\r\n".encode() + fields
    answer = talk(reverse.port, head + b"\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert upstream.requests[reached:] == []


@pytest.mark.parametrize(
    "url",
    [
        "http://u:PASSWORD@h:99999",
        "u:PASSWORD@h",
        f"rec.example/p/{TOKEN}/openai",
        "ftp://u:PASSWORD@h",
        "http://u:PASSWORD@[::1/x",
        "http://u:PASSWORD@h\u2100x",
        "https://a b/k/0123456789abcdefPASSWORD",
    ],
)
def test_a_bad_upstream_is_named_without_its_key(url: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        Target.parse(url)
    assert "PASSWORD" not in str(caught.value)
    assert TOKEN not in str(caught.value)


# Command lines, which every user of a machine can read

_LOOK = """
import os, pathlib, urllib.request
parent = os.getppid()
for children in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
    for child in children.read_text().split():
        print(pathlib.Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\\0", b" ").decode())
print(os.environ.get("OPENAI_BASE_URL"))
if "BASE" in os.environ.get("WHAT", ""):
    urllib.request.urlopen(os.environ["OPENAI_BASE_URL"] + "/models", timeout=20).read()
"""


@needs_proc
@pytest.mark.parametrize("how", ["environment", "option", "forward"])
def test_no_command_line_of_a_run_holds_the_key_of_a_base_url(tmp_path: Path, upstream: Upstream, how: str) -> None:
    url = f"{upstream.url}/p/{TOKEN}/openai/v1"
    options = ["--mode", "forward"] if how == "forward" else []
    options += [] if how == "environment" else ["--upstream", url]
    clean = {name: value for name, value in os.environ.items() if not name.endswith(("_BASE_URL", "_API_BASE"))}
    named = {"OPENAI_BASE_URL": url} if how == "environment" else {}
    done = subprocess.run(
        agentdyno("capture", "run", "--store", str(tmp_path / "store"), *options, "--", sys.executable, "-c", _LOOK),
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **named, "WHAT": "" if how == "forward" else "BASE"},
    )
    assert done.returncode == 0, done.stderr
    assert "--stop-with-stdin" in done.stdout  # the recorder was found
    assert TOKEN not in done.stdout + done.stderr
    if how != "forward":
        assert upstream.requests[-1][0].startswith(f"GET /p/{TOKEN}/openai/v1/models ".encode())
        assert "/openai/v1\n" in done.stdout
    assert not any(TOKEN.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize("key", [TOKEN, "9f8a7b6c5d4e3f2a1b0c9d8e"])
@pytest.mark.parametrize("word", ["codex", "aider", "claude", "pi", "opencode"])
def test_no_agent_is_told_a_key_by_an_argument(tmp_path: Path, word: str, key: str) -> None:
    (tmp_path / "home").mkdir()
    names = ("OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_BASE_URL")
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "OPENAI_API_KEY": "k"}
    environment |= dict.fromkeys(names, f"https://rec.example/p/{key}/openai/v1")
    for wishes in (Wishes(), Wishes(upstream=f"https://rec.example/p/{key}/openai/v1")):
        plan = plan_launch((word,), wishes=wishes, environment=environment, folder=tmp_path)
        change = plan.change("http://127.0.0.1:9", store=tmp_path / "store", work=tmp_path)
        assert key not in " ".join((*change.command, *plan.serve_options(), *plan.warnings))
        if plan.mode == "reverse" and wishes.upstream is not None:
            assert any(key in route for route in plan.serve_routes())


def test_two_keys_of_one_server_are_two_routes(tmp_path: Path) -> None:
    urls = {
        "ANTHROPIC_BASE_URL": f"https://rec.example/p/{TOKEN}/anthropic",
        "OPENAI_BASE_URL": f"https://rec.example/p/{TOKEN}x/openai/v1",
        "GOOGLE_GEMINI_BASE_URL": f"https://rec.example/p/{TOKEN}y/google",
    }
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **urls}
    plan = plan_launch(("my-agent",), wishes=Wishes(), environment=environment, folder=tmp_path)
    routes = plan.relay_routes()
    assert routes is not None
    reached = []
    for base in plan.bases.values():
        found = routes.target(base + "/x")
        assert found is not None
        reached.append(f"{found[0].origin}{found[1]}")
    assert sorted(reached) == sorted(f"{url}/x" for url in urls.values())


# Imports


@pytest.mark.parametrize(
    ("form", "name", "content"),
    [
        ("messages", "a.jsonl", ""),
        ("messages", "a.json", "[]"),
        ("messages", "a.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}\n'),
        ("atif", "a.json", '{"schema_version": "ATIF-v1.4", "steps": []}'),
        ("mini-swe-agent", "a.traj.json", '{"trajectory_format": "mini-swe-agent-1.1", "messages": []}'),
        ("pi", "a.jsonl", '{"type": "session", "id": "x", "version": 3}\n'),
        ("claude-code", "a.jsonl", '{"type": "user", "sessionId": "x", "uuid": "u", "message": {"content": "hi"}}\n'),
    ],
)
def test_an_import_that_finds_nothing_says_so(tmp_path: Path, form: str, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    done = subprocess.run(
        agentdyno("capture", "import", form, str(tmp_path / name), "--store", str(tmp_path / "store")),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing imported" in done.stderr
    assert name in done.stderr
    assert not (tmp_path / "store").exists()


def test_an_import_tells_a_terminal_which_file_it_reads(tmp_path: Path) -> None:
    slow = tmp_path / "slow.json"
    os.mkfifo(slow)

    def write() -> None:
        with slow.open("w") as file:
            time.sleep(1)
            file.write('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')

    ours, theirs = pty.openpty()
    writer = threading.Thread(target=write)
    writer.start()
    process = subprocess.Popen(
        agentdyno("capture", "import", "messages", str(slow), "--store", str(tmp_path / "store")),
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's last reader is gone
        while data := os.read(ours, 1 << 16):
            shown += data
    os.close(ours)
    writer.join(20)
    assert process.wait(20) == 0, shown
    assert b"reading slow.json" in shown
    assert b"imported 1 sessions" in shown


def test_each_file_of_an_import_is_told_before_it_is_read(tmp_path: Path) -> None:
    for name, content in (("a.json", '{"messages": [{"role": "assistant", "content": "a"}]}'), ("b.json", "{")):
        (tmp_path / name).write_text(content)
    told: list[str] = []
    with pytest.raises(ValueError, match=r"b\.json"):
        read_imported("messages", [tmp_path], b"k" * 32, on_file=lambda path: told.append(path.name))
    assert told == ["a.json", "b.json"]

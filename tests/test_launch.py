"""`capture run`: a small agent that really calls, behind a recorder that really runs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture import exclusion, pause
from capture.reader import JournalReader
from capture.store import Store
from capture.upstream import Routes, UpstreamError
from capture.upstream import Upstream as Target
from tests.sse_upstream import ROOT, Upstream, agentdyno, running_upstream

AGENT = """
import json, os, sys, urllib.request
def call(url, body):
    key = {"x-api-key": "sk-run-secret-0123456789"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=key)
    return urllib.request.urlopen(request, timeout=20).read()
print("stdout of the agent", sys.stdin.read())
call(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", {"stream": True})
call(os.environ["OPENAI_BASE_URL"] + "/chat/completions", {"messages": []})
print(os.environ["CLAUDE_CODE_GATEWAY_HINT_HEADERS"])
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


def run(tmp_path: Path, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.endswith(("_BASE_URL", "_API_BASE"))}
    return subprocess.run(
        agentdyno("capture", "run", "--store", str(tmp_path / "store"), *arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, **environment},
    )


def test_an_agent_is_recorded_and_its_streams_and_exit_code_pass_through(tmp_path: Path, upstream: Upstream) -> None:
    done = run(tmp_path, "--upstream", upstream.url, "--", sys.executable, "-c", AGENT, "7", stdin="from outside")
    assert done.returncode == 7, done.stderr
    assert done.stdout == "stdout of the agent from outside\n1\n"
    assert "new store" in done.stderr
    assert "2 exchanges, 2 model calls in 2 sessions (" in done.stderr
    assert "anthropic.messages, openai.chat), 0 gaps; store" in done.stderr
    assert "sk-run-secret" not in done.stderr
    exchanges = list(Store.open(tmp_path / "store").exchanges())
    assert [exchange.path for exchange in exchanges] == ["/v1/messages", "/v1/chat/completions"]
    assert {exchange.outcome for exchange in exchanges} == {"complete"}
    again = run(tmp_path, "--upstream", upstream.url + "/v1", "--", sys.executable, "-c", AGENT, "0")
    assert again.returncode == 0
    assert "new store" not in again.stderr
    assert "2 exchanges" in again.stderr  # of this run, not of the store
    assert len(Store.open(tmp_path / "store").journals()) == 2


def test_base_urls_of_the_environment_become_the_upstreams(tmp_path: Path, upstream: Upstream) -> None:
    done = run(
        tmp_path,
        *("--", sys.executable, "-c", AGENT, "0"),
        ANTHROPIC_BASE_URL=upstream.url + "/gateway",
        OPENAI_BASE_URL=upstream.url + "/v1",
    )
    assert done.returncode == 0, done.stderr
    assert [head.split(b" ")[1] for head, _ in upstream.requests[-2:]] == [
        b"/gateway/v1/messages",
        b"/v1/chat/completions",
    ]


def test_a_missing_agent_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--upstream", "http://127.0.0.1:1", "--", "no-such-agent-anywhere", "--flag")
    assert done.returncode == 3
    assert "no-such-agent-anywhere: not found" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_url_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--", "true", ANTHROPIC_BASE_URL="not a url")
    assert done.returncode == 2
    assert "ANTHROPIC_BASE_URL" in done.stderr


def test_a_recorder_that_dies_is_started_again_on_the_same_port(tmp_path: Path, upstream: Upstream) -> None:
    ready = tmp_path / "called-once"
    agent = f"""
import json, os, time, urllib.request
def call():
    for attempt in range(300):
        try:
            return urllib.request.urlopen(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", data=b"x").read()
        except OSError:
            time.sleep(0.1)
    raise SystemExit("never came back")
call()
time.sleep(0.5)
open({str(ready)!r}, "w").close()
time.sleep(1)
call()
"""
    process = subprocess.Popen(
        agentdyno(
            *("capture", "run", "--store", str(tmp_path / "store"), "--upstream", upstream.url),
            *("--", sys.executable, "-c", agent),
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    recorder = next(int(child) for child in children if b"--label" in Path(f"/proc/{child}/cmdline").read_bytes())
    os.kill(recorder, signal.SIGKILL)
    _, words = process.communicate(timeout=120)
    assert process.returncode == 0, words
    assert "the recorder was started again 1 time" in words
    assert "2 exchanges" in words


def test_two_terminals_at_once_just_work(tmp_path: Path, upstream: Upstream) -> None:
    wait = "import pathlib, sys, time\nopen(sys.argv[2], 'w').close()\n"
    wait += "while len(list(pathlib.Path(sys.argv[2]).parent.glob('here-*'))) < 2: time.sleep(0.01)\n"
    agent = wait + "sys.stdin = open('/dev/null')\n" + AGENT
    command = agentdyno("capture", "run", "--store", str(tmp_path / "store"), "--upstream", upstream.url, "--")
    running = [
        subprocess.Popen(
            [*command, sys.executable, "-c", agent, "0", str(tmp_path / f"here-{number}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for process in running:
        _, words = process.communicate(timeout=120)
        assert process.returncode == 0, words
        assert "2 exchanges, 2 model calls" in words
    assert len(Store.open(tmp_path / "store").journals()) == 2
    assert len(list(Store.open(tmp_path / "store").exchanges())) == 4


FORWARD_AGENT = """
import os, urllib.request
request = urllib.request.Request("https://api.anthropic.com/v1/messages", data=b"{}", headers={"x-api-key": "sk-k"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
assert not [name for name in os.environ if name.endswith("_BASE_URL")]
"""


def test_forward_mode_records_an_agent_that_knows_no_base_url(tmp_path: Path, upstream: Upstream) -> None:
    done = run(tmp_path, "--mode", "forward", "--upstream", upstream.url, "--", sys.executable, "-c", FORWARD_AGENT)
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr
    (exchange,) = Store.open(tmp_path / "store").exchanges()
    assert (exchange.mode, exchange.path) == ("forward", "/v1/messages")
    assert exchange.host.startswith("api.anthropic.com")


def test_the_journal_says_what_was_started_and_how_without_values(tmp_path: Path, upstream: Upstream) -> None:
    agent = tmp_path / "claude"
    asked = tmp_path / "asked"  # the agent ends no sooner than it was asked for its version
    agent.write_text(
        f"#!/bin/sh\nif test \"$1\" = --version; then echo '2.1.999 (Claude Code)'; touch {asked}; exit; fi\n"
        f"until test -e {asked}; do sleep 0.02; done\n"
    )
    agent.chmod(0o700)
    done = run(tmp_path, "--upstream", upstream.url, "--", str(agent), "-p", "hi", ANTHROPIC_API_KEY="sk-of-mine-1234")
    assert done.returncode == 0
    assert "recording Claude Code (reverse mode)" in done.stderr
    assert "managed settings file" in done.stderr  # no call was seen: what to look at for this very agent
    (journal,) = Store.open(tmp_path / "store").journals()
    with JournalReader(journal) as reader:
        meta = reader.meta
    assert (meta["agent"], meta["mode"], meta["launch_mode"]) == ("claude-code", "reverse", "reverse")
    assert "ANTHROPIC_BASE_URL" in meta["environment"].split(",")
    assert "sk-of-mine" not in str(meta)
    assert meta["agent_version"] == "2.1.999"


def test_an_excluded_folder_and_a_paused_store_run_unrecorded(tmp_path: Path, upstream: Upstream) -> None:
    store = Store.open(tmp_path / "store", create=True)
    exclusion.add(store.path, str(Path.cwd()))
    agent = ("--", sys.executable, "-c", "import os; print([n for n in os.environ if n.endswith('BASE_URL')])")
    done = run(tmp_path, *agent)
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "not recorded" in done.stderr
    exclusion.remove(store.path, str(Path.cwd()))
    pause.pause(store.path)
    done = run(tmp_path, *agent)
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "is paused" in done.stderr
    assert not store.journals()


def test_where_nothing_can_be_recorded_the_agent_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("x")
    agent = ("--", sys.executable, "-c", "print('ran')")
    done = run(tmp_path, *agent)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Error: " in done.stderr
    done = run(tmp_path, "--best-effort", *agent)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "NOT RECORDED" in done.stderr
    done = subprocess.run(
        agentdyno("capture", "run", *agent),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": "/proc/no-such-home", "XDG_DATA_HOME": "", "AGENTDYNO_STORE": ""},
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "--store or AGENTDYNO_STORE" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_wrong_around_the_agent_changes_neither_its_start_nor_its_exit_code(
    tmp_path: Path, upstream: Upstream
) -> None:
    """A removed folder, a full disk under stderr: a shell would start the agent in them."""
    (tmp_path / "gone").mkdir()
    call = "import os, urllib.request as u; u.urlopen(os.environ['ANTHROPIC_BASE_URL'] + '/v1/messages', b'{}')"
    python, *command = agentdyno("capture", "run", "--store", str(tmp_path / "store"), "--upstream", upstream.url)
    # -P: Python itself stumbles over a removed folder on its path.
    quoted = shlex.join([python, "-P", *command, "--", python, "-P", "-c", f"{call}; raise SystemExit(7)"])
    done = subprocess.run(
        ["sh", "-c", f"rmdir ../gone; {quoted} 2>/dev/full"],
        cwd=tmp_path / "gone",
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 7
    assert [exchange.status for exchange in Store.open(tmp_path / "store").exchanges()] == [200]


def test_a_launcher_that_is_ended_before_the_agent_starts_leaves_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    started = tmp_path / "started"
    command = agentdyno("capture", "run", "--store", str(tmp_path / "store"), "--", "touch", str(started))
    launcher = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(scratch)}, start_new_session=True
    )
    while not any(scratch.glob("*/recorder.log")):
        assert launcher.poll() is None
        time.sleep(0.001)
    launcher.terminate()
    assert launcher.wait(60) == 128 + signal.SIGTERM
    assert not started.exists()
    assert list(scratch.iterdir()) == []


def test_a_store_that_is_a_file_is_no_paused_store(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    done = run(tmp_path, "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot make a store" in done.stderr


def test_an_agent_that_no_mode_can_read_runs_by_best_effort(tmp_path: Path) -> None:
    agent = tmp_path / "claude"
    agent.write_text("#!/bin/sh\necho ran; exit 5\n")
    done = run(tmp_path, "--", str(agent))
    assert (done.returncode, "is no program" in done.stderr) == (3, True)
    agent.chmod(0o700)
    done = run(tmp_path, "--", str(agent), CLAUDE_CODE_USE_BEDROCK="1")
    assert (done.returncode, done.stdout, "--best-effort" in done.stderr) == (3, "", True)
    done = run(tmp_path, "--best-effort", "--", str(agent), CLAUDE_CODE_USE_BEDROCK="1")
    assert (done.returncode, done.stdout, "NOT RECORDED" in done.stderr) == (5, "ran\n", True)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://h", "http://h"),
        ("http://h:80/", "http://h"),
        ("https://h:443/a/b/", "https://h/a/b"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("https://h:80", "https://h:80"),
        ("http://model_server.h.", "http://model_server.h."),
    ],
)
def test_upstreams(url: str, text: str) -> None:
    assert str(Target.parse(url)) == text


@pytest.mark.parametrize(
    "url",
    [
        *("", "h:80", "ftp://h", "http://", "http://h:99999", "http://h?x=1", "http://u:p@h"),
        *("http://two words", "http://a..b", f"http://{'a' * 64}.example"),
    ],
)
def test_upstreams_that_are_none(url: str) -> None:
    with pytest.raises(UpstreamError):
        Target.parse(url)


def test_targets_of_paths() -> None:
    one, two = Target.parse("https://one/p"), Target.parse("https://two")
    routes = Routes(by_segment=(("a", one), ("b", two)))
    assert routes.target("/a/v1/x?y=/b/") == (one, "/p/v1/x?y=/b/")
    assert routes.target("/b") == (two, "/")
    assert routes.target("/b?x=1") == (two, "/?x=1")
    assert routes.target("/ab/x") is None
    assert Routes(default=one).target("/x?y") == (one, "/p/x?y")

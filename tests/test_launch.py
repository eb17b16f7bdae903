"""`capture run`: a small agent that really calls, behind a recorder that really runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.launch import plan_launch
from capture.store import Store
from capture.upstream import Routes, UpstreamError
from capture.upstream import Upstream as Target
from tests.sse_upstream import Upstream, agentdyno, running_upstream

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
    assert "2 exchanges, 2 model calls (/v1/messages 1, /v1/chat/completions 1), 0 gaps; store" in done.stderr
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


def test_an_agent_that_calls_nobody_is_pointed_out(tmp_path: Path) -> None:
    done = run(tmp_path, "--upstream", "http://127.0.0.1:1", "--", sys.executable, "-c", "pass")
    assert done.returncode == 0
    assert "no model call passed the recorder" in done.stderr


def test_a_signal_that_ends_the_agent_is_passed_on_as_the_shell_would(tmp_path: Path) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    done = run(tmp_path, "--upstream", "http://127.0.0.1:1", "--", sys.executable, "-c", script)
    assert done.returncode == 128 + signal.SIGTERM


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
    assert "starting it again" in words
    assert "2 exchanges, 2 model calls" in words


def test_no_recorder_outlives_its_launcher(tmp_path: Path) -> None:
    process = subprocess.Popen(
        agentdyno(
            *("capture", "run", "--store", str(tmp_path / "store"), "--upstream", "http://127.0.0.1:1"),
            *("--", sys.executable, "-c", "import time; print('up', flush=True); time.sleep(3)"),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    recorder = next(child for child in children if b"--label" in Path(f"/proc/{child}/cmdline").read_bytes())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{recorder}/cmdline").exists() and Path(f"/proc/{recorder}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the recorder still runs"
        time.sleep(0.05)


def test_codex_gets_a_provider_without_websockets() -> None:
    plan = plan_launch(["/opt/bin/codex", "exec", "hi"], upstream="http://127.0.0.1:9/v1", environment={})
    command = plan.agent_command("http://127.0.0.1:5")
    assert command[0] == "/opt/bin/codex"
    assert command[-2:] == ["exec", "hi"]
    assert 'model_providers.agentdyno.base_url="http://127.0.0.1:5/v1"' in command
    assert "model_providers.agentdyno.supports_websockets=false" in command
    assert 'model_provider="agentdyno"' in command


def test_codex_with_a_chatgpt_login_goes_where_that_login_counts(tmp_path: Path) -> None:
    (tmp_path / "auth.json").write_text('{"OPENAI_API_KEY": null, "tokens": {"id_token": "x"}}')
    environment = {"CODEX_HOME": str(tmp_path)}
    plan = plan_launch(["codex"], upstream=None, environment=environment)
    assert str(plan.routes["openai"]) == "https://chatgpt.com"
    assert plan.bases["openai"] == "/openai/backend-api/codex"
    assert str(plan_launch(["pi"], upstream=None, environment=environment).routes["openai"]) == "https://api.openai.com"


def test_claude_settings_that_name_a_base_url_do_not_bypass_the_recorder(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"env": {"ANTHROPIC_BASE_URL": "https://gateway.example/x"}}')
    environment = {"CLAUDE_CONFIG_DIR": str(tmp_path), "ANTHROPIC_BASE_URL": "https://other.example"}
    plan = plan_launch(["claude", "-p", "hi"], upstream=None, environment=environment)
    assert str(plan.routes["anthropic"]) == "https://gateway.example"
    command = plan.agent_command("http://127.0.0.1:5")
    assert command[:2] == ["claude", "--settings"]
    assert json.loads(command[2]) == {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:5/anthropic/x"}}
    assert plan_launch(["claude"], upstream=None, environment={"CLAUDE_CONFIG_DIR": "/none"}).agent_command(
        "http://127.0.0.1:5"
    ) == ["claude"]


def test_a_proxy_of_the_user_is_not_asked_for_loopback() -> None:
    plan = plan_launch(["pi"], upstream="http://127.0.0.1:9", environment={})
    environment = plan.environment("http://127.0.0.1:5", {"HTTPS_PROXY": "http://corp:1", "no_proxy": "intern"})
    assert environment["NO_PROXY"] == "intern,127.0.0.1,localhost"
    assert "NO_PROXY" not in plan.environment("http://127.0.0.1:5", {})


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://h", "http://h"),
        ("http://h:80/", "http://h"),
        ("https://h:443/a/b/", "https://h/a/b"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("https://h:80", "https://h:80"),
    ],
)
def test_upstreams(url: str, text: str) -> None:
    assert str(Target.parse(url)) == text


@pytest.mark.parametrize("url", ["", "h:80", "ftp://h", "http://", "http://h:99999", "http://h?x=1", "http://u:p@h"])
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

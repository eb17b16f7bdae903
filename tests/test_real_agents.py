"""Real agents, headless, through `capture serve` against a scripted model: nothing may be missing, and the times true.

The scripted server runs in this process and the recorder in another one; both, and the commands that the agents run,
read the clock of this machine, so the server's log and the commands' own stamps are the measure of the recording.
Noise of a busy machine only ever adds time, so one session that holds every bound is enough; up to six may try.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from capture.scripted import RequestLog, ScriptedServer
from tests import real_agents
from tests.real_agents import AGENTS, Agent, Unavailable

pytestmark = [pytest.mark.agents, pytest.mark.slow, pytest.mark.timeout(600)]

ATTEMPTS = 6
ROOT = Path(__file__).parent.parent
# Stamps itself: EPOCHREALTIME is bash's clock with microseconds, read without starting a program.
TIMED = """\
started=$EPOCHREALTIME
sleep "$2"
echo "$1 $started $EPOCHREALTIME" >> times.txt
echo "$1 is done"
"""
# The first command of a session also pays for the first look at the shell: it gets the wider bound of a long one.
GROUPS = (("first 1.1",), ("quick 0",), ("short 0.4",), ("left 0.7", "right 0.4"), ("again 0",))


@contextmanager
def recorder(upstream: str, folder: Path) -> Iterator[str]:
    """`agentdyno capture serve` as a user would start it; gives its URL."""
    ready, log = folder / "ready", folder / "recorder.log"
    command = [sys.executable, "-m", "agentdyno", "capture", "serve", "--upstream", upstream]
    command += ["--store", str(folder / "store"), "--ready-file", str(ready)]
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as process:
        try:
            until = time.monotonic() + 60
            while not ready.exists():
                assert process.poll() is None, f"the recorder ended: {log.read_text(encoding='utf-8')}"
                assert time.monotonic() < until, f"the recorder is not ready: {log.read_text(encoding='utf-8')}"
                time.sleep(0.02)
            yield ready.read_text(encoding="utf-8").strip()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
    assert process.returncode == 0, log.read_text(encoding="utf-8")


def agentdyno_json(*arguments: str) -> Any:
    """What a command prints, read as JSON."""
    command = [sys.executable, "-m", "agentdyno", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def record(agent: Agent, folder: Path) -> tuple[dict[str, Any], tuple[RequestLog, ...], dict[str, tuple[float, float]]]:
    """One session: what the recorder shows, what the server saw, and when each command began and ended (s)."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "timed.sh").write_text(TIMED, encoding="utf-8")
    script = agent.script(tuple(tuple(f"bash timed.sh {command}" for command in group) for group in GROUPS))
    with ScriptedServer(script, models=(agent.model,)) as server:
        with recorder(server.url, folder) as url:
            try:
                done = real_agents.run(agent, url, folder)
            except Unavailable as reason:
                pytest.skip(f"{agent.name}: {reason}")
        said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, said
    assert server.calls, said
    store = str(folder / "store")
    sessions = agentdyno_json("capture", "sessions", "--store", store)
    assert len(sessions) == 1, sessions
    shown = agentdyno_json("capture", "show", sessions[0]["session_id"], "--store", store)
    stamps = {}
    for line in (work / "times.txt").read_text(encoding="utf-8").splitlines():
        name, began, ended = line.split()
        stamps[name] = (float(began), float(ended))
    return shown, server.log, stamps


def check_what_was_said(agent: Agent, shown: dict[str, Any], log: tuple[RequestLog, ...]) -> None:
    """Every call, tool call and result is in the recording, in order."""
    calls = [entry for entry in log if entry.dialect is not None]
    requests, tools = shown["requests"], shown["tool_calls"]
    assert shown["session"]["harness"] == agent.harness
    assert shown["session"]["capture_quality"]["gaps"] == 0
    assert len(requests) == len(calls)
    assert [request["request_index"] for request in requests] == list(range(len(calls)))
    assert [(request["api"], request["model"], request["stream"]) for request in requests] == [
        (agent.api, agent.model, agent.streams)
    ] * len(calls)
    assert [request["status"] for request in requests] == [200] * len(calls)
    assert [request["error"] for request in requests] == [None] * len(calls)
    assert [tuple(request["tool_call_ids"]) for request in requests] == [
        tuple(call.call_id for call in entry.calls) for entry in calls
    ]
    assert {request["agent_path"] for request in requests} == {"main"}
    made = [(index, call) for index, entry in enumerate(calls) for call in entry.calls]
    assert [(tool["tool_call_id"], tool["name"], tool["request_index"]) for tool in tools] == [
        (call.call_id, call.name, index) for index, call in made
    ]
    answered = {
        result.call_id: index for index, entry in reversed(list(enumerate(calls))) for result in entry.tool_results
    }
    assert [tool["result_request_index"] for tool in tools] == [answered.get(call.call_id) for _, call in made]
    for place, group in enumerate(GROUPS):
        mine = [tool for tool in tools if tool["request_index"] == place]
        assert len(mine) == len(group)
        assert {tool["kind"] for tool in mine} == {"exec"}
        assert len({tool["parallel_group"] for tool in mine}) == 1
        assert not any(tool["mixed"] for tool in mine)
        assert not any(tool["is_error"] for tool in mine)
        assert requests[place + 1]["gap_kind"] == "tool"


def differences(
    agent: Agent, shown: dict[str, Any], log: tuple[RequestLog, ...], stamps: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Each measured difference with what it may be at most, in ms, by name."""
    calls = [entry for entry in log if entry.dialect is not None]
    requests, tools = shown["requests"], shown["tool_calls"]
    found: dict[str, tuple[float, float]] = {}
    for place, group in enumerate(GROUPS):
        names = [command.split()[0] for command in group]
        took_ms = 1000 * (max(stamps[name][1] for name in names) - min(stamps[name][0] for name in names))
        mine = [tool for tool in tools if tool["request_index"] == place]
        for name, tool in zip(names, mine, strict=True):
            found[f"tool {name}: wall"] = (abs(tool["wall_us"] / 1000 - took_ms), 50 + 0.05 * took_ms)
            if tool["internal_us"] is not None:
                own_ms = 1000 * (stamps[name][1] - stamps[name][0])
                found[f"tool {name}: declared"] = (abs(tool["internal_us"] / 1000 - own_ms), 50 + 0.05 * own_ms)
        seen_ms = (calls[place + 1].received_headers_ns - (calls[place].last_byte_ns or 0)) / 1e6
        found[f"gap {names[0]}: against the server"] = (abs(mine[0]["wall_us"] / 1000 - seen_ms), 50)
    firsts, ends = [], []
    for request, entry in zip(requests, calls, strict=True):
        assert entry.first_content_ns is not None
        assert entry.last_byte_ns is not None
        first_ms = (request["t_first_token_us"] - request["t_send_us"]) / 1000
        end_ms = (request["t_end_us"] - request["t_send_us"]) / 1000
        firsts.append(abs(first_ms - (entry.first_content_ns - entry.received_headers_ns) / 1e6))
        ends.append(abs(end_ms - (entry.last_byte_ns - entry.received_headers_ns) / 1e6))
    for name, values in (("time to first token", firsts), ("end", ends)):
        found[f"{name}: median"] = (statistics.median(values), 5)
        found[f"{name}: largest"] = (max(values), 50)
    return found


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_a_recorded_session_is_whole_and_its_times_are_true(
    agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not on PATH; the timed commands need it")
    for attempt in range(ATTEMPTS):
        shown, log, stamps = record(agent, tmp_path / str(attempt))
        check_what_was_said(agent, shown, log)
        found = differences(agent, shown, log, stamps)
        table = "\n".join(f"{name:36} {value:7.1f} ms of {bound:6.1f} ms" for name, (value, bound) in found.items())
        with capsys.disabled():
            print(f"\n{agent.name}, attempt {attempt + 1}\n{table}")
        missed = [name for name, (value, bound) in found.items() if value > bound]
        if not missed:
            break
    assert not missed, table

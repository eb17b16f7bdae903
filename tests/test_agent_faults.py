"""Real agents under `capture run`: the recorder killed in the middle of a stream, and calls that go by proxy and CA."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from capture.script import Script, ScriptedRequest, Step
from capture.scripted import RequestLog, ScriptedServer
from capture.sessions import read_sessions
from capture.trajectory import Trajectory
from tests import agent_scripts, real_agents
from tests.agent_scripts import Play
from tests.real_agents import CLAUDE_CODE, CODEX, PI, Agent, Unavailable

pytestmark = [pytest.mark.agents, pytest.mark.slow, pytest.mark.timeout(600)]

KILLED = (CLAUDE_CODE, CODEX, PI)
FORWARD = (CLAUDE_CODE, CODEX)
AT_ONCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One `capture run`: how it ended, what the server saw, what is in the store."""

    code: int
    said: str
    log: tuple[RequestLog, ...]  # calls to a model alone
    paths: tuple[str, ...]
    sessions: list[Trajectory]
    store: Path


class SlowOnce:
    """A script whose second answer takes seconds at the first attempt, and says when that has begun."""

    def __init__(self, agent: Agent) -> None:
        self._script = Script(
            steps=(
                Step(text="First.", calls=(agent.call("echo first"),)),
                Step(text="A long answer. " * 40, calls=(agent.call("echo second"),)),
                agent.end(),
            )
        )
        self.begun = threading.Event()

    def __call__(self, request: ScriptedRequest) -> Step:
        step = self._script(request)
        if request.purpose == "turn" and request.answered == 1 and not self.begun.is_set():
            self.begun.set()
            return replace(step, between_ms=200)
        return step


def recorder_of(launcher: int) -> int:
    """Process id of the recorder that this `capture run` has started."""
    for task in Path(f"/proc/{launcher}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"serve" in words:
                return int(child)
    raise AssertionError("the launcher has no recorder")


def run_killed(agent: Agent, folder: Path) -> Ran | Unavailable:
    script = SlowOnce(agent)

    def kill(launcher: int) -> None:
        assert script.begun.wait(60), "the answer to cut was never asked for"
        time.sleep(1)  # so that a part of it has passed, and is in the journal
        os.kill(recorder_of(launcher), signal.SIGKILL)

    return _run(agent, folder, script, kill=kill)


def run_forward(agent: Agent, folder: Path) -> Ran | Unavailable:
    scenario = agent_scripts.plain(agent, f"forward.{agent.name}", steps=2)
    return _run(agent, folder, Play([scenario]), prompts=scenario.prompts, forward=True)


def _run(
    agent: Agent,
    folder: Path,
    script: Callable[[ScriptedRequest], Step],
    *,
    prompts: tuple[str, ...] = (),
    forward: bool = False,
    kill: Callable[[int], None] | None = None,
) -> Ran | Unavailable:
    folder.mkdir()
    with ScriptedServer(script, models=(agent.model,)) as server:
        launcher = [sys.executable, "-m", "agentdyno", "capture", "run", "--store", str(folder / "store")]
        if forward:  # by the provider's own name; the recorder alone sends it elsewhere
            launcher += ["--mode", "forward", "--upstream", server.url]
        url = "" if forward else server.url
        try:
            process = real_agents.start(agent, url, folder, *prompts, recorder=(*launcher, "--"))
        except Unavailable as reason:
            return reason
        with process:
            try:
                if kill is not None:
                    kill(process.pid)
                said, warned = process.communicate(timeout=120)
            finally:
                process.kill()
        log = server.log
    return Ran(
        code=process.returncode,
        said=f"{said[-1000:]}\n{warned[-3000:]}",
        log=tuple(entry for entry in log if entry.dialect is not None),
        paths=tuple(entry.path for entry in log),
        sessions=list(read_sessions(folder / "store", [])),
        store=folder / "store",
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran | Unavailable]:
    """Every run of this file by name; they go side by side, since nothing here measures a time."""
    folder = tmp_path_factory.mktemp("faults")
    runs: dict[str, Callable[[], Ran | Unavailable]] = {
        f"forward-{agent.name}": partial(run_forward, agent, folder / f"forward-{agent.name}") for agent in FORWARD
    }
    if sys.platform == "linux":
        runs |= {
            f"killed-{agent.name}": partial(run_killed, agent, folder / f"killed-{agent.name}") for agent in KILLED
        }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {name: pool.submit(run) for name, run in runs.items()}
        return {name: future.result() for name, future in futures.items()}


def of(ran: dict[str, Ran | Unavailable], name: str) -> Ran:
    found = ran.get(name)
    if found is None:
        pytest.skip("finding the recorder among the launcher's children needs /proc")
    if isinstance(found, Unavailable):
        pytest.skip(str(found))
    return found


@pytest.mark.parametrize("agent", KILLED, ids=lambda agent: agent.name)
def test_the_agent_finishes_after_its_recorder_was_killed(ran: dict[str, Ran | Unavailable], agent: Agent) -> None:
    run = of(ran, f"killed-{agent.name}")
    assert run.code == 0, run.said
    assert "the recorder was started again 1 time" in run.said
    assert [(entry.answered, entry.client_left) for entry in run.log] == [
        (0, False),
        (1, True),  # the one under way
        (1, False),  # the agent's own retry, through the new recorder
        (2, False),
    ]
    assert len(run.sessions) == 1
    [session] = run.sessions
    cut, again = session.requests[1:3]
    assert [request.error is not None for request in session.requests] == [False, True, False, False], session.requests
    assert (cut.status, cut.tool_call_ids, cut.completion_tokens) == (200, (), None)
    assert cut.t_first_token_us is not None
    assert (again.relation, again.retry_of) == ("retry", 1)
    assert [tuple(call.call_id for call in entry.calls) for entry in run.log if not entry.client_left] == [
        request.tool_call_ids for request in session.requests if request is not cut
    ]
    assert [tool.result_request_index for tool in session.tool_calls] == [1, 3]


@pytest.mark.parametrize("agent", KILLED, ids=lambda agent: agent.name)
def test_both_journals_of_a_killed_recorder_are_whole(ran: dict[str, Ran | Unavailable], agent: Agent) -> None:
    run = of(ran, f"killed-{agent.name}")
    journals = sorted(run.store.glob("journal-*.sqlite"))
    assert len(journals) == 2
    for path in journals:
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()


@pytest.mark.parametrize("agent", FORWARD, ids=lambda agent: agent.name)
def test_calls_to_the_provider_itself_are_recorded_by_proxy(ran: dict[str, Ran | Unavailable], agent: Agent) -> None:
    run = of(ran, f"forward-{agent.name}")
    assert run.code == 0, run.said
    [session] = run.sessions
    assert session.mode == "forward"
    assert [(request.api, request.status, request.prompt_tokens) for request in session.requests] == [
        (entry.dialect, 200, entry.usage.input_total if entry.usage else None) for entry in run.log
    ]
    assert [tool.tool_call_id for tool in session.tool_calls] == [
        call.call_id for entry in run.log for call in entry.calls
    ]
    secret = real_agents.KEY.encode()
    files = [path for path in run.store.rglob("*") if path.is_file()]
    assert files
    assert not any(secret in path.read_bytes() for path in files)

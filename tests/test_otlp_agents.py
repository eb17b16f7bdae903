"""Real agents that export their telemetry to the recorder: its tool times against what each command stamped itself.

Noise of a busy machine only ever adds time, so one session that holds every bound is enough; up to four may try.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.join import join_logs
from capture.log_files import usual_log_files
from capture.otlp import Telemetry, is_telemetry
from capture.scripted import ScriptedServer
from capture.sessions import read_sessions
from capture.store import Store
from capture.trajectory import Trajectory
from tests import real_agents
from tests.otlp.make import GROUPS, TIMED, read_stamps, telling
from tests.real_agents import AGENTS, Agent, Unavailable
from tests.recorder_process import recorder

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

ATTEMPTS = 4
EXPORTING = tuple(agent for agent in AGENTS if agent.name in ("claude-code", "codex"))


def sessions(store: Path) -> Iterator[Trajectory]:
    """Sessions once the recorder has written all of them."""
    problems: list[str] = []
    yield from read_sessions(store, problems)
    assert problems == []


def record(agent: Agent, folder: Path) -> tuple[Trajectory, Telemetry, dict[str, tuple[int, int]]]:
    """One session, what was exported beside it, and when each command began and ended (UTC microseconds)."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "timed.sh").write_text(TIMED, encoding="utf-8")
    script = agent.script(tuple(tuple(f"bash timed.sh {command}" for command in group) for group in GROUPS))
    with ScriptedServer(script, models=(agent.model,)) as server, recorder(server.url, folder) as url:
        try:
            done = real_agents.run(telling(agent, f"{url}/otlp"), url, folder)
        except Unavailable as reason:
            pytest.skip(f"{agent.name}: {reason}")
    assert done.returncode == 0, done.stderr[-2000:]
    telemetry = Telemetry()
    for exchange in Store.open(folder / "store").exchanges():
        if is_telemetry(exchange):
            telemetry.add(exchange)
    (found,) = sessions(folder / "store")
    return found, telemetry, read_stamps(work)


def check_join(agent: Agent, before: Trajectory, folder: Path) -> None:
    """The agent's own log, where it keeps one, belongs to the session, tells of each tool and overrules nothing."""
    logs = list(usual_log_files({"HOME": str(folder / "home")}))
    assert bool(logs) == (agent.name == "claude-code")  # Codex is started without a log of its own
    if not logs:
        return
    (result,) = join_logs(Store.open(folder / "store"), logs, [])
    assert (result.calls_matched, result.tools_matched) == (len(before.requests), len(before.tool_calls))
    assert result.notes == ()
    (after,) = sessions(folder / "store")
    assert after.joined == ("otel", "claude-code-log")
    assert after.requests == before.requests
    assert [call.internal_us for call in after.tool_calls] == [call.internal_us for call in before.tool_calls]


@pytest.mark.parametrize("agent", EXPORTING, ids=lambda agent: agent.name)
def test_exported_tool_times_are_what_the_commands_took(
    agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not on PATH; the timed commands need it")
    for attempt in range(ATTEMPTS):
        found, telemetry, stamps = record(agent, tmp_path / str(attempt))
        assert telemetry.unreadable == 0
        assert found.joined == ("otel",)
        assert {call.internal_source for call in found.tool_calls} == {"otel"}
        assert {call.permission_us for call in found.tool_calls} == {0}  # nobody was asked
        names = [command.split()[0] for group in GROUPS for command in group]
        extra = {}
        for name, call in zip(names, found.tool_calls, strict=True):
            assert call.internal_us is not None
            took = stamps[name][1] - stamps[name][0]
            extra[name] = ((call.internal_us - took) / 1000, 50 + 0.05 * took / 1000)
        for request in found.requests[1:]:
            assert request.gap_us is not None
            assert request.client_us is not None
            assert (request.think_us, request.permission_us) == (0, 0)
            assert 0 <= request.client_us <= request.gap_us
        for fact in telemetry.calls:  # Claude Code counts to the first byte of the stream
            assert fact.attempt == 1
            spans = [
                abs(one.t_first_byte_us - one.t_send_us - fact.ttft_us) / 1000
                for one in found.requests
                if one.t_first_byte_us is not None and fact.ttft_us is not None
            ]
            extra[f"first byte of {fact.request_id[-4:]}"] = (min(spans), 50)
        with capsys.disabled():
            print(f"\n{agent.name}, attempt {attempt + 1}")
            for name, (milliseconds, bound) in extra.items():
                print(f"  {name:20} {milliseconds:6.1f} ms over, of {bound:5.1f} ms")
        check_join(agent, found, tmp_path / str(attempt))
        if all(-1 <= milliseconds <= bound for milliseconds, bound in extra.values()):
            return
    pytest.fail(f"no session of {ATTEMPTS} held every bound: {extra}")

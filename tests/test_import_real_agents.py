"""The same sessions of real agents from both sides: what the recorder saw on the wire, and what the agent logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.call import ModelCall
from capture.dialect import read_calls
from capture.importers import claude_code, codex
from capture.scripted import ScriptedServer
from capture.store import Store
from tests.logs import make
from tests.real_agents import AGENTS, Unavailable
from tests.recorder_process import recorder

pytestmark = [pytest.mark.agents, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", ["claude-code", "codex"])
def test_the_log_tells_what_the_wire_told(name: str, tmp_path: Path) -> None:
    agent = next(agent for agent in AGENTS if agent.name == name)
    try:
        agent.find()
    except Unavailable as reason:
        pytest.skip(str(reason))
    play = {"claude-code": make.play_claude_code, "codex": make.play_codex}[name]
    script = make.Play(agent)
    with ScriptedServer(script, models=(agent.model,)) as server, recorder(server.url, tmp_path) as url:
        logs = play(agent, url, tmp_path)
    wire = {call.response_id: call for call in wire_calls(tmp_path / "store") if call.response_id}
    reader = {"claude-code": claude_code, "codex": codex}[name]
    logged = [call for session in reader.read_log(logs) for call in session.calls]
    print(f"{name} {logged[0].harness_version}: {len(wire)} answered calls on the wire, {len(logged)} calls logged")
    told = {call.response_id: call for call in logged if call.response_id}
    # Claude Code logs no request that compacts; Codex logs it.
    assert {call.compaction is not None for key, call in wire.items() if key not in told} <= {True}
    assert len(wire) - len(told) == (2 if name == "claude-code" else 0)
    assert set(told) <= set(wire)
    for key, call in told.items():
        seen = wire[key]
        assert call.hints[0].session == seen.hints[0].session
        assert call.hints[0].agent == seen.hints[0].agent
        assert (call.usage.input_total, call.usage.output_total) == (seen.usage.input_total, seen.usage.output_total)
        assert call.answer is not None
        assert seen.answer is not None
        assert call.answer.content == seen.answer.content
        assert [use.id for use in call.answer.tool_calls] == [use.id for use in seen.answer.tool_calls]
        if name == "claude-code":
            assert call.messages == seen.messages  # word for word, the system prompt included
            assert call.tools == seen.tools
        else:
            # Of its instructions the agent sends a part, and the words that ask for a summary are not logged.
            upto = len(call.messages) if call.compaction else None
            assert call.messages[1:] == seen.messages[1:upto]
        if call.t_first_content_ns is not None:
            assert abs(wall_us(seen, seen.t_first_content_ns) - call.t_first_content_ns // 1000) <= 300_000
        assert call.t_end_ns is not None
        assert abs(wall_us(seen, seen.t_end_ns) - call.t_end_ns // 1000) <= 300_000


def wall_us(call: ModelCall, at_ns: int | None) -> int:
    assert at_ns is not None
    return call.wall_anchor_us + at_ns // 1000


def wire_calls(store: Path) -> list[ModelCall]:
    return [call for exchange in Store.open(store).exchanges() for call in read_calls(exchange)]

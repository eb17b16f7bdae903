"""Makes the golden recordings that one call does not show: a sub-agent's call, and a WebSocket with its calls.

python -m tests.recordings.make_sessions [NAME…]    (from the root of the checkout; needs npm)
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from capture.exchange import Exchange
from capture.script import Choose, Script
from capture.scripted import RequestLog, ScriptedServer
from capture.store import Store
from tests import real_agents
from tests.agent_scripts import Play, Scenario, parent
from tests.real_agents import CLAUDE_CODE, CODEX, CODEX_WEBSOCKETS, OPENCODE, Agent, Unavailable
from tests.recorder_process import recorder
from tests.recordings.make import (
    COMMANDS,
    FOLDER,
    KEPT,
    SALT,
    USAGE,
    answer_id,
    clean,
    clean_text,
    dump,
    replace_ids,
    write,
)


def main(names: list[str]) -> int:
    """Records what is named (all, without a name); 1 where an agent could not be had."""
    makers = {f"{agent.name}-sub-agent": (sub_agent, agent) for agent in (CLAUDE_CODE, CODEX, OPENCODE)}
    makers[CODEX_WEBSOCKETS.name] = (socket, CODEX_WEBSOCKETS)
    missing = 0
    for name, (make, agent) in makers.items():
        if names and name not in names:
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                make(agent, Path(folder), FOLDER / name)
        except Unavailable as reason:
            print(f"{name}: {reason}", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def _kept_script(agent: Agent) -> Script:
    script = agent.script(COMMANDS)
    kept = replace(script.steps[KEPT], reasoning="Two commands — side by side: naïve, but quick.", usage=USAGE)
    return replace(script, steps=(*script.steps[:KEPT], kept, *script.steps[KEPT + 1 :]))


def _play(agent: Agent, folder: Path, scripts: dict[str, Choose]) -> tuple[list[Exchange], tuple[RequestLog, ...]]:
    scenario = Scenario(
        key="golden-whole", prompts=("Task golden-whole: let a helper do it. Run the steps.",), scripts=scripts
    )
    with (
        ScriptedServer(Play([scenario]), models=(agent.model,), salt=SALT) as server,
        recorder(server.url, folder) as url,
    ):
        done = real_agents.run(agent, url, folder, *scenario.prompts)
    if done.returncode != 0:
        raise RuntimeError(f"{agent.name} failed: {done.stdout}{done.stderr}")
    return list(Store.open(folder / "store").exchanges()), server.log


def sub_agent(agent: Agent, folder: Path, target: Path) -> None:
    """The second call of a sub-agent; `identity` in its expected.json is what the server read in the headers."""
    script = _kept_script(agent)
    main_script = parent(agent, "One helper.", ("golden-part",), count=100, work="Run the steps.")
    exchanges, log = _play(agent, folder, {"golden-part": script, "golden-whole": main_script})
    (wanted,) = [entry for entry in log if entry.step == f"golden-part/steps[{KEPT}]"]
    (kept,) = [exchange for exchange in exchanges if exchange.reads and answer_id(exchange) == wanted.number]
    write(agent, kept, wanted, script, folder, target=target)
    expected = json.loads((target / "expected.json").read_text(encoding="utf-8"))
    names = ("agent-id", "session-id", "thread-id")
    dump(target / "expected.json", expected | {"identity": {k: v for k, v in wanted.identity if k.endswith(names)}})


def socket(agent: Agent, folder: Path, target: Path) -> None:
    """One WebSocket: its handshake, and every message of it."""
    script = _kept_script(agent)
    exchanges, log = _play(agent, folder, {"golden-whole": script})
    (kept,) = [exchange for exchange in exchanges if exchange.messages]
    start = kept.t_send_ns
    target.mkdir(exist_ok=True)
    headers = [(name, clean_text(value, folder)) for name, value in kept.request_headers if name != "host"]
    dump(
        target / "socket.json",
        {
            "method": kept.method,
            "path": kept.path,
            "status": kept.status,
            "request_headers": [[name, replace_ids(value)] for name, value in headers],
            "response_headers": [list(pair) for pair in kept.response_headers],
            "t_headers_us": None if kept.t_headers_ns is None else (kept.t_headers_ns - start) // 1000,
            "t_end_us": None if kept.t_end_ns is None else (kept.t_end_ns - start) // 1000,
            "outcome": kept.outcome,
            "messages": [
                {
                    "at_us": (message.at_ns - start) // 1000,
                    "from_agent": message.from_agent,
                    "data": clean(json.loads(message.data), folder) if message.from_agent else json.loads(message.data),
                }
                for message in kept.messages
            ],
        },
    )
    dump(
        target / "expected.json",
        [
            {
                "purpose": entry.purpose,
                "response_id": entry.response_id,
                "previous_response_id": entry.previous_response_id,
                "text": entry.text,
                "calls": [[call.call_id, call.name, call.arguments] for call in entry.calls],
                "tool_result_ids": [result.call_id for result in entry.tool_results],
                "input_total": entry.usage.input_total if entry.usage else None,
                "output_total": entry.usage.output_total if entry.usage else None,
            }
            for entry in log
            if entry.dialect is not None
        ],
    )
    print(f"{target.name}: {len(kept.messages)} messages")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

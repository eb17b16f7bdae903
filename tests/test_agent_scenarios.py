"""Real agents, headless, through `capture serve` and `capture run`: graph, counts and times are the server's.

All sessions of this file are played at once to one scripted server, most of them through one recorder, so each is
recorded in between the others. What a recording must hold is worked out here from the server's own log and the
script's labels, by no code of the recorder.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from subprocess import CompletedProcess

import pytest

from capture.scripted import RequestLog, ScriptedServer
from capture.sessions import read_sessions
from capture.trajectory import Request, ToolCall, Trajectory
from tests import agent_scripts, real_agents
from tests.agent_scripts import SESSION_NAMES, Play, Scenario
from tests.real_agents import (
    AGENTS,
    CLAUDE_CODE,
    CODEX,
    CODEX_BUILT_IN,
    CODEX_WEBSOCKETS,
    GEMINI_CLI,
    MINI_SWE_AGENT,
    OPENCODE,
    PI,
    Agent,
    Unavailable,
)
from tests.recorder_process import recorder

pytestmark = [pytest.mark.agents, pytest.mark.slow, pytest.mark.timeout(600)]

AT_ONCE = 4  # agents side by side
NAMELESS = "google.gemini"  # an API whose tool calls need no ids: they are told by their order
TOLERANCE_MS = 250  # of tool times, beside the server's log, on a machine that runs four agents at once

SCENARIOS = {
    "faults": (agent_scripts.faults, (CLAUDE_CODE, CODEX, CODEX_WEBSOCKETS, OPENCODE, PI, MINI_SWE_AGENT)),
    "sub-agents": (agent_scripts.sub_agents, (CLAUDE_CODE, CODEX, CODEX_WEBSOCKETS, OPENCODE)),
    "compaction": (agent_scripts.compaction, (CLAUDE_CODE, CODEX, CODEX_WEBSOCKETS, OPENCODE, PI)),
    "plain": (agent_scripts.plain, (GEMINI_CLI,)),
    "twin-a": (agent_scripts.plain, (CLAUDE_CODE, PI)),
    "twin-b": (agent_scripts.plain, (CLAUDE_CODE, PI)),
}
RUN = {
    "faults": SCENARIOS["faults"][1],
    "sub-agents": (CLAUDE_CODE, CODEX),
    "compaction": (CODEX_BUILT_IN,),
    "plain": (GEMINI_CLI,),
}
# The twins first and so at the same time; then the agents that take longest, which nothing then waits for at the end.
SLOW = (OPENCODE, MINI_SWE_AGENT, GEMINI_CLI)
PLAYED = [
    *(("serve", kind, agent) for kind in ("twin-a", "twin-b") for agent in SCENARIOS[kind][1]),
    *sorted(
        [
            *(("run", kind, agent) for kind, agents in RUN.items() for agent in agents),
            *(
                ("serve", kind, agent)
                for kind in ("faults", "sub-agents", "compaction", "plain")
                for agent in SCENARIOS[kind][1]
            ),
        ],
        key=lambda session: session[2] not in SLOW,
    ),
]


def key_of(mode: str, kind: str, agent: Agent) -> str:
    return f"{mode}.{agent.name}.{kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One session: what the server saw of it and what was recorded."""

    mode: str
    agent: Agent
    scenario: Scenario
    done: CompletedProcess[str]
    log: tuple[RequestLog, ...]  # in order of arrival
    recorded: Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that was played, and every session found in the two stores."""

    done: dict[str, CompletedProcess[str] | Unavailable]
    scenarios: dict[str, Scenario]
    log: tuple[RequestLog, ...]
    sessions: dict[str, list[Trajectory]]  # by mode


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    if shutil.which("bash") is None:
        pytest.skip("bash is not on PATH; the scripted commands need it")
    folder = tmp_path_factory.mktemp("agents")
    scenarios = {
        key_of(mode, kind, agent): SCENARIOS[kind][0](agent, key_of(mode, kind, agent)) for mode, kind, agent in PLAYED
    }
    stores = {mode: folder / mode / "store" for mode in ("serve", "run")}
    launcher = (sys.executable, "-m", "agentdyno", "capture", "run", "--store", str(stores["run"]))

    def play(mode: str, kind: str, agent: Agent, *, server: str, recorder: str) -> CompletedProcess[str] | Unavailable:
        key = key_of(mode, kind, agent)
        own = folder / key
        own.mkdir()
        try:
            if mode == "serve":
                return real_agents.run(agent, recorder, own, *scenarios[key].prompts)
            options = ["--websocket"] if agent is CODEX_WEBSOCKETS else []
            if agent is CODEX_BUILT_IN:  # it names no server: only the launcher knows where its calls are to go
                options, server = ["--upstream", server], ""
            return real_agents.run(agent, server, own, *scenarios[key].prompts, recorder=(*launcher, *options, "--"))
        except Unavailable as reason:
            return reason

    with ScriptedServer(Play(scenarios.values()), models=tuple({agent.model for agent in AGENTS})) as server:
        with recorder(server.url, folder / "serve") as url, ThreadPoolExecutor(AT_ONCE) as pool:
            playing = {
                key_of(*session): pool.submit(partial(play, *session, server=server.url, recorder=url))
                for session in PLAYED
            }
            done = {key: future.result() for key, future in playing.items()}
        log = server.log
    sessions = {mode: list(read_sessions(store, [])) if store.exists() else [] for mode, store in stores.items()}
    return Outcome(done=done, scenarios=scenarios, log=log, sessions=sessions)


def keys_in(session: Trajectory, outcome: Outcome) -> set[str]:
    """Keys of the scenarios that a session's texts speak of."""
    texts = [pooled.message.content for pooled in session.pool]
    return {key for key in outcome.scenarios if any(f"Task {key}" in text for text in texts)}


def played(outcome: Outcome, mode: str, kind: str, agent: Agent) -> Played:
    """The one session of this scenario. Skips where the agent cannot be had."""
    key = key_of(mode, kind, agent)
    done = outcome.done[key]
    if isinstance(done, Unavailable):
        pytest.skip(f"{agent.name}: {done}")
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    scenario = outcome.scenarios[key]
    keyed = [entry for entry in outcome.log if entry.step.partition("/")[0] in scenario.scripts]
    ids = {value for entry in keyed for name, value in entry.identity if name in SESSION_NAMES}
    log = tuple(
        entry
        for entry in outcome.log
        if entry in keyed or (entry.purpose == "prewarm" and ids & {value for _, value in entry.identity})
    )
    assert log, f"the server saw nothing of it: {done.stderr[-1500:]}"
    holding = [session for session in outcome.sessions[mode] if key in keys_in(session, outcome)]
    assert len(holding) == 1, f"{key} is recorded in {len(holding)} sessions"
    return Played(mode=mode, agent=agent, scenario=scenario, done=done, log=log, recorded=holding[0])


def chain_of(entry: RequestLog) -> str:
    """Key of the agent that made a call."""
    return entry.step.partition("/")[0]


type Row = tuple[object, ...]


def shape_recorded(request: Request) -> Row:
    """What a recorded call and the server's log must agree on."""
    return (
        request.api,
        request.model,
        request.transport,
        request.status,
        "a fault" if request.error is not None else None,
        None if request.error is not None else request.prompt_tokens,  # what a broken stream still said is not compared
        None if request.error is not None else request.cache_read_tokens,
        None if request.error is not None else request.completion_tokens,
        len(request.tool_call_ids) if request.api == NAMELESS else request.tool_call_ids,
    )


def shape_seen(entry: RequestLog) -> Row:
    """The same as the server's log has it."""
    whole = entry.fault is None
    calls = entry.calls if whole else ()
    usage = entry.usage if whole else None
    return (
        entry.dialect,
        entry.model,
        "http" if entry.transport == "sse" and entry.status != 200 else entry.transport,  # a refusal is no stream
        entry.status,
        None if whole else "a fault",
        usage.input_total if usage else None,
        usage.cache_read if usage else None,
        usage.output_total if usage else None,
        (len(calls) if entry.dialect == NAMELESS else tuple(call.call_id for call in calls)),
    )


def chains_seen(session: Played) -> dict[str, list[RequestLog]]:
    """The calls of each agent of the session by its key, in order; side calls and prewarms under `side`."""
    chains: dict[str, list[RequestLog]] = defaultdict(list)
    for entry in session.log:
        beside = entry.purpose in ("side", "prewarm") or (entry.purpose == "summary" and session.agent.summary_beside)
        chains["side" if beside else chain_of(entry)].append(entry)
    return chains


def pair(session: Played) -> dict[int, Request]:
    """The recorded call for each number of the server's log: by agent and order, side calls by what they hold."""
    requests = session.recorded.requests
    seen = chains_seen(session)
    main = session.scenario.key
    paths = {main: "main"}
    for key in sorted(seen.keys() - {main, "side"}, key=len):
        # A sub-agent's chain hangs below that of its parent, whose key its own begins with.
        above = paths[max((known for known in paths if key.startswith(known)), key=len)]
        below = [
            request
            for request in requests
            if request.agent_path.rpartition("/")[0] == above and shape_recorded(request) == shape_seen(seen[key][0])
        ]
        assert len(below) == 1, f"{len(below)} sub-agents of {above} begin as {key} did"
        paths[key] = below[0].agent_path
    pairs = {}
    for key, entries in seen.items():
        path = paths.get(key)
        mine = [request for request in requests if (request.agent_path == path if path else request.relation == "side")]
        if path is None:
            mine.sort(key=lambda request: repr(shape_recorded(request)))
            entries = sorted(entries, key=lambda entry: repr(shape_seen(entry)))
        assert [shape_recorded(request) for request in mine] == [shape_seen(entry) for entry in entries], key
        pairs |= {entry.number: request for entry, request in zip(entries, mine, strict=True)}
    assert len(pairs) == len(requests), "the recording holds calls that the server never saw"
    return pairs


def spawner(session: Played, key: str) -> RequestLog:
    """The call whose answer gave a sub-agent its task."""
    [found] = [
        entry
        for entry in session.log
        if entry.fault is None and any(f"Task {key}:" in call.arguments for call in entry.calls)
    ]
    return found


def check_graph(session: Played, pairs: dict[int, Request]) -> None:
    """Relation, parent and event of every call against what the log and the script say."""
    index = {number: request.request_index for number, request in pairs.items()}
    for key, entries in chains_seen(session).items():
        if key == "side":
            assert {pairs[entry.number].relation for entry in entries} == {"side"}
            continue
        expected: list[Row] = []
        parent = None if key == session.scenario.key else index[spawner(session, key).number]
        for place, entry in enumerate(entries):
            before = entries[place - 1] if place else None
            retry = before is not None and before.fault is not None and before.step == entry.step
            if before is None:
                relation = "start" if key == session.scenario.key else "subagent"
            elif retry:
                relation = "retry"  # of the one before it, with the same parent
            else:
                parent = index[before.number]
                relation = "compaction" if entry.step.endswith("/behind[0]") else "continue"
            event = "compaction" if relation == "compaction" else "append"
            expected.append((entry.step, relation, parent, index[before.number] if retry and before else None, event))
        found = [
            (entry.step, request.relation, request.parent_request_index, request.retry_of, request.context_event)
            for entry in entries
            for request in [pairs[entry.number]]
        ]
        assert found == expected
    sub_agents = chains_seen(session).keys() - {session.scenario.key, "side"}
    assert session.recorded.num_subagents == len(sub_agents)
    assert session.recorded.num_compactions == any(entry.step.endswith("/behind[0]") for entry in session.log)


def check_tools(session: Played, pairs: dict[int, Request]) -> None:
    """Every tool call is there, with the call that carried its result and the time that the server saw go by."""
    agent = session.agent
    made = [(entry, place) for entry in session.log if entry.fault is None for place in range(len(entry.calls))]
    assert len(session.recorded.tool_calls) == len(made)
    for entry, place in made:
        call = entry.calls[place]
        mine = [tool for tool in session.recorded.tool_calls if tool.request_index == pairs[entry.number].request_index]
        assert len(mine) == len(entry.calls)
        assert len({tool.parallel_group for tool in mine}) == 1
        tool = mine[place]
        kind = "exec" if call.name == agent.shell_tool else "subagent"
        assert (tool.name, tool.kind) == (call.name, kind)
        if entry.dialect == NAMELESS:
            carried = [later for later in session.log if later.number > entry.number]
        else:
            assert tool.tool_call_id == call.call_id
            carried = [
                later for later in session.log if any(result.call_id == call.call_id for result in later.tool_results)
            ]
        if not carried:  # the command that ends a session; a result that only a summary's prompt tells, as text
            assert (agent.finish is not None and agent.finish in call.arguments) or session.agent.summary_beside
            assert (tool.result_request_index, tool.wall_us) == (None, None)
            continue
        assert tool.result_request_index == pairs[carried[0].number].request_index
        assert entry.last_byte_ns is not None
        assert tool.wall_us is not None
        seen_ms = (carried[0].received_headers_ns - entry.last_byte_ns) / 1e6
        assert tool.wall_us / 1000 == pytest.approx(seen_ms, abs=TOLERANCE_MS)
        slept = re.search(r"sleep ([0-9.]+)", call.arguments)
        if slept is not None:
            assert tool.wall_us / 1000 >= 1000 * float(slept[1])
        check_declared(session, entry, tool, slept)


def check_declared(session: Played, entry: RequestLog, tool: ToolCall, slept: re.Match[str] | None) -> None:
    """What the agent itself says of a tool's time is within the gap, and no less than the command slept."""
    by_telemetry = session.mode == "run" and session.agent.program in ("claude", "codex")
    if session.agent is not CLAUDE_CODE and not by_telemetry:
        assert (tool.internal_us, tool.internal_source) == (None, None)
        return
    if not by_telemetry and len({call.name for call in entry.calls}) < len(entry.calls):
        assert tool.internal_us is None  # its header tells times by tool name, in order of completion
        return
    assert tool.internal_source == ("otel" if by_telemetry else "header")
    assert tool.internal_us is not None
    assert tool.t_result_us is not None
    assert tool.t_emitted_us is not None
    # Codex starts a tool at the end of the call's own block, before the answer is over.
    assert 0 <= tool.internal_us <= tool.t_result_us - tool.t_emitted_us + 5000
    if slept is not None and tool.kind == "exec":
        assert tool.internal_us / 1000 >= 1000 * float(slept[1])


def check_gaps(session: Played, pairs: dict[int, Request]) -> None:
    """Nobody sat before these agents: no gap is a person's, save that before a second prompt."""
    for entry in session.log:
        request = pairs[entry.number]
        if len(session.scenario.prompts) == 1:
            assert request.gap_kind != "human", entry.step
        if request.relation == "continue" and any(
            result.call_id in {call.call_id for call in before.calls}
            for before in session.log
            if before.number != entry.number and pairs[before.number].request_index == request.parent_request_index
            for result in entry.tool_results
        ):
            assert request.gap_kind == "tool", entry.step
    assert session.recorded.quality.gaps == 0
    assert session.recorded.quality.complete


@pytest.mark.parametrize(
    ("mode", "kind", "agent"), PLAYED, ids=[f"{mode}-{kind}-{agent.name}" for mode, kind, agent in PLAYED]
)
def test_a_recorded_session_is_what_the_server_saw(outcome: Outcome, mode: str, kind: str, agent: Agent) -> None:
    session = played(outcome, mode, kind, agent)
    nameless = mode == "run" and agent.harness == "unknown"
    known = agent.name if nameless else agent.harness  # the launcher says what the wire does not
    assert (session.recorded.harness, session.recorded.mode) == (known, "reverse")
    pairs = pair(session)
    check_graph(session, pairs)
    check_tools(session, pairs)
    check_gaps(session, pairs)


@pytest.mark.parametrize("mode", ["serve", "run"])
def test_no_two_sessions_are_mixed(outcome: Outcome, mode: str) -> None:
    expected = {
        key for key, done in outcome.done.items() if key.startswith(f"{mode}.") and not isinstance(done, Unavailable)
    }
    found = [keys_in(session, outcome) for session in outcome.sessions[mode]]
    assert sorted(key for keys in found for key in keys) == sorted(expected)
    assert all(len(keys) == 1 for keys in found)


@pytest.mark.parametrize("agent", [CLAUDE_CODE, PI], ids=lambda agent: agent.name)
def test_two_sessions_of_one_agent_on_one_recorder_were_interleaved(outcome: Outcome, agent: Agent) -> None:
    twins = [played(outcome, "serve", kind, agent).log for kind in ("twin-a", "twin-b")]
    order = sorted((entry.number, place) for place, log in enumerate(twins) for entry in log)
    changes = sum(one[1] != other[1] for one, other in pairwise(order))
    assert changes >= 3, "they did not overlap"


def test_different_agents_on_one_recorder_were_interleaved(outcome: Outcome) -> None:
    agents = [
        key.split(".")[1]
        for entry in outcome.log
        for key in [chain_of(entry)]
        if key.startswith("serve.") and entry.purpose == "turn"
    ]
    if len(set(agents)) < 2:
        pytest.skip("fewer than two agents can be had")
    assert sum(one != other for one, other in pairwise(agents)) >= 10


def test_which_versions_were_driven(capsys: pytest.CaptureFixture[str]) -> None:
    pinned = json.loads((real_agents.MANIFEST / "package.json").read_text(encoding="utf-8"))["dependencies"].values()
    for agent in AGENTS:
        try:
            version = agent.version()
        except Unavailable as reason:
            pytest.skip(f"{agent.name}: {reason}")
        with capsys.disabled():
            print(f"\n{agent.name} {version}", end="")
        assert agent is MINI_SWE_AGENT or version in pinned
        if agent is CLAUDE_CODE:
            assert tuple(int(part) for part in version.split(".")) >= (2, 1, 273), "it declares no tool times"

"""What each export carries: written, read back, compared field by field; the table of what it drops is exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capture.call import Message, ToolUse, Usage
from capture.importers.agentperf_local import import_agentperf_local
from capture.importers.atif import import_atif
from capture.importers.claude_code import import_claude_code
from capture.importers.read import import_manifests
from capture.importers.weka import import_weka
from capture.trajectory import Request, ToolCall, Trajectory
from curate.blocks import prompt_blocks
from curate.export import FORMATS, ExportFault, export
from curate.exports.carried import CARRIED, FIELDS, TEXT_FIELDS, dropped_fields
from curate.exports.fit import unfit, unfit_chat
from curate.tokens import TokenCounter
from tests.calls import KEY, SYSTEM, Wire, conversation, result, said, user
from tests.export_readers import read_mooncake, read_openai, read_otel
from tests.exported_fields import Facts, differing, facts
from tests.sample_sessions import content_free_session, text_session

type Reader = Callable[[Path], list[Facts]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """One format there and back: what of a session it takes, and how it is read."""

    name: str
    read: Reader
    keep: Callable[[Trajectory, Request], bool]
    takes: frozenset[bool]  # sessions with text, without
    keep_call: Callable[[Trajectory, ToolCall], bool] = lambda _, __: True
    with_messages: bool = False
    folder: bool = True

    @property
    def key(self) -> str:
        return self.name + ("+messages" if self.with_messages else "")

    def write(self, sessions: Sequence[Trajectory], out: Path) -> Path:
        path = out if self.folder else out.with_suffix(".jsonl")
        export(sessions, self.name, path, with_messages=self.with_messages)
        return path

    def differing(self, session: Trajectory, folder: Path) -> set[str]:
        """Fields that do not come back; ExportFault where the format does not take the session."""
        (back,) = self.read(self.write([session], folder / f"{self.key}-{len(list(folder.iterdir()))}"))
        before = facts(session, partial(self.keep, session), partial(self.keep_call, session))
        assert len(before.requests) == len(back.requests)
        return differing(before, back)


def imported(read: Callable[..., Any]) -> Reader:
    return lambda path: [facts(session) for session in read([path], KEY).trajectories]


def load(session: Trajectory, request: Request) -> bool:
    return unfit(request, None) is None or (bool(session.pool) and unfit_chat(request) is None)


def sent(session: Trajectory, request: Request) -> bool:
    return load(session, request) and request.completion_tokens != 0


def spoken(session: Trajectory, request: Request) -> bool:
    return request.kind != "auxiliary" and request.prompt_spans is not None


def logged(session: Trajectory, request: Request) -> bool:
    return spoken(session, request) and (request.answer_index is not None or request.error is not None)


def answered(session: Trajectory, request: Request) -> bool:
    again = {one.retry_of for one in session.requests}
    return spoken(session, request) and request.answer_index is not None and request.request_index not in again


def placed(session: Trajectory, call: ToolCall) -> bool:
    emitter = next(one for one in session.requests if one.request_index == call.request_index)
    start = emitter.t_end_us if call.t_emitted_us is None else call.t_emitted_us
    known = call.internal_us is not None or (call.t_result_us is not None and start is not None
                                             and call.t_result_us >= start)  # fmt: skip
    return start is not None and known and emitter.call_span is not None


BOTH, TEXT = frozenset((True, False)), frozenset((True,))
TRIPS = (
    Trip(name="weka", read=imported(import_weka), keep=load, takes=BOTH),
    Trip(name="mooncake", read=read_mooncake, keep=sent, takes=BOTH, folder=False),
    Trip(name="mooncake", read=read_mooncake, keep=sent, takes=TEXT, folder=False, with_messages=True),
    Trip(
        name="openai",
        read=read_openai,
        keep=lambda _, request: request.prompt_spans is not None,
        takes=TEXT,
        folder=False,
    ),
    Trip(name="atif", read=imported(import_atif), keep=answered, takes=TEXT),
    Trip(
        name="otel",
        read=read_otel,
        keep=lambda _, request: request.call_span is not None,
        keep_call=placed,
        takes=BOTH,
    ),
    Trip(
        name="agentperf-local",
        read=lambda path: [facts(one) for one in import_agentperf_local(path / "manifest.json", KEY).trajectories],
        keep=lambda _, request: request.agent_path == "main" and unfit_chat(request) is None,
        takes=TEXT,
    ),
    Trip(name="claude-code", read=imported(import_claude_code), keep=logged, takes=TEXT),
)
BY_KEY = {trip.key: trip for trip in TRIPS}


# Sessions as a recorder gives them.


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call of the main agent, and what comes after it."""

    text: str = "I look."
    thought: str | None = None
    tools: tuple[str, ...] = ()  # arguments of each call, as the model wrote them
    output: str = "ok"
    human: str | None = None
    fails: bool = False  # once before, and is sent again
    cut: bool = False  # the answer breaks off
    agent: bool = False  # a sub-agent runs before the next call
    rewinds: bool = False  # the next call goes back to the beginning
    took_ms: int = 400
    gap_ms: int = 900
    counts: tuple[int | None, int | None, int | None, int | None] = (100, 60, None, 7)  # input, read, written, output
    temperature: float | None = None
    effort: str | None = None


SCRIPT = (
    Turn(thought="First the files.", tools=('{"command": "ls"}', '{"command":"cat a.py"}'), temperature=0.5),
    Turn(tools=('{"command": "make"}',), fails=True, effort="high", counts=(120, 80, 30, 9)),
    Turn(text="", tools=("not JSON",), output="Exit code 2\nmake: error", gap_ms=70_000),
    Turn(text="Which one?", human="The second.", counts=(200, None, None, None), effort="budget:2000"),
    Turn(tools=('{"command": "sleep"}',), agent=True, human="And be quick."),
    Turn(text="Half an answ", cut=True, human="Go on."),
    Turn(text="Another way.", rewinds=True),
    Turn(text="Done.", counts=(None, None, None, 4)),
)
COUNTER = TokenCounter()
TASK = "Count all the files of this folder, please."


def play(script: Sequence[Turn], *, harness: str = "pi", api: str = "openai.chat") -> Trajectory:
    """The session of a script."""
    wire = Wire()
    now = 30
    opening = [SYSTEM, user("Mend the build of this project.")]
    messages = list(opening)
    named: dict[str, Any] = {"session": "s-1", "harness": harness, "api": api}
    wire.call(0, [user("A title for: Mend the build")], said("Build"), kind="auxiliary", tools=(), **named)
    for number, turn in enumerate(script):
        asked = dict(named, took_ms=turn.took_ms, temperature=turn.temperature, effort=turn.effort, max_tokens=4096)
        if turn.fails:
            refused = {"status": 529, "error": "overloaded", "stop": None, "usage": Usage()}
            wire.call(now, list(messages), None, **asked | refused)
            now += turn.took_ms + 50
        given_ids = [f"call-{number}-{place}" for place in range(len(turn.tools))]
        uses = [ToolUse(id=one, name="Bash", arguments=text) for one, text in zip(given_ids, turn.tools, strict=True)]
        if turn.agent:
            uses.append(ToolUse(id=f"task-{number}", name="Task", arguments=json.dumps({"prompt": TASK})))
        answer = Message(role="assistant", content=turn.text, reasoning_content=turn.thought, tool_calls=tuple(uses))
        total, read, written, output = turn.counts
        usage = Usage(input_total=total, cache_read=read, cache_write=written, output_total=output)
        broken = {"complete": False, "stop": None, "error": "upstream_cut"} if turn.cut and not turn.agent else {}
        stop = "tool_calls" if uses else "stop"
        wire.call(now, list(messages), answer, **asked | {"usage": usage, "stop": stop} | broken)
        now += turn.took_ms
        if turn.agent:
            prompt = [Message(role="system", content="You count."), user(TASK)]
            wire.call(now + 20, prompt, said("Three."), took_ms=200, agent="agent-7", model="small", **named)
            now += 300
        messages += [answer, *(result(use.id, turn.output) for use in uses)]
        if turn.human is not None or not uses:
            messages.append(user(turn.human or "Next."))
        if turn.rewinds:
            messages = [*opening, user("Start over, and this time with care.")]
        now += turn.gap_ms
    return wire.one()


def written_by_hand() -> Trajectory:
    """The sample session, with what follows from its texts and calls made true."""
    session = text_session()
    first, second, third, agent = session.requests
    bytes_of = {one.message.tool_call_id: len(one.message.content) for one in session.pool}
    return replace(
        session,
        requests=(
            replace(first, relation="start"),
            second,
            third,
            replace(agent, relation="subagent", context_event="append", new_output=("text",), think_us=None),
        ),
        tool_calls=tuple(
            replace(
                one,
                result_bytes=None if one.result_request_index is None else bytes_of[one.tool_call_id],
                is_error=None if one.result_request_index is None else one.is_error,
                exit_code=None,
                timed_out=None,
            )
            for one in session.tool_calls
        ),
    )


def content_free(session: Trajectory, counter: TokenCounter) -> Trajectory:
    """The session as the tier without text has it."""
    requests = tuple(
        replace(
            request,
            prompt_spans=None,
            answer_index=None,
            tools_index=None,
            prompt_tokens_est=blocks.tokens,
            block_size=64,
            block_hashes=blocks.ids,
            system_tokens=10 + request.request_index,
            tools_tokens=20,
        )
        for request, blocks in prompt_blocks(session, counter, 64)
        if blocks is not None
    )
    return replace(session, pool=(), tool_sets=(), requests=requests, hash_scope="session")


def filled(session: Trajectory) -> Trajectory:
    """The session with a value in every field that a recording may fill."""
    return replace(
        session,
        license="MIT",
        outcome="success",
        mode="forward",
        joined=("otel",),
        contributor="c1",
        consent="public",
        peak_agents=2,
        contributor_peak_agents=3,
        tokenizer="some",
        hash_scope="release",
        requests=tuple(
            replace(
                one,
                transport="sse",
                clock_jump_us=7,
                prompt_tokens_est=1000 + one.request_index,
                t_first_text_us=one.sent_us + 1,
                t_first_thinking_us=one.sent_us + 2,
                t_first_tool_call_us=one.sent_us + 3,
                permission_us=11,
                client_us=12,
                think_us=13,
                reasoning_tokens=None if one.completion_tokens is None else 3,
                system_tokens=20 + one.request_index,
                tools_tokens=30 + one.request_index,
                block_size=64,
                block_hashes=(1, 2),
                stream=one.request_index % 2 == 0,
                agent_type="Explore" if one.agent_path != "main" else None,
                new_input=("text", "image"),
            )
            for one in session.requests
        ),
        tool_calls=tuple(
            replace(one, internal_us=321_000, internal_source="otel", permission_us=2_000, timed_out=True, exit_code=3)
            for one in session.tool_calls
        ),
        pool=tuple(
            replace(
                one,
                message=replace(one.message, name="n", is_error=one.message.role == "tool" or None, omitted_bytes=9),
            )
            for one in session.pool
        ),
    )


@pytest.fixture(scope="module")
def sessions(weka_traces: Path) -> dict[bool, list[Trajectory]]:
    """Sessions by whether they have text."""
    talk = Wire()
    conversation(talk, "a", session="s-9")
    played = [play(SCRIPT), play(SCRIPT, harness="claude-code", api="anthropic.messages"), talk.one()]
    undated = replace(played[0], t0_utc_us=None)
    return {
        True: [
            written_by_hand(),
            *played,
            undated,
            filled(played[0]),
            *import_manifests([], KEY).trajectories,
        ],
        False: [
            content_free_session(),
            *(content_free(one, COUNTER) for one in played),
            content_free(filled(played[0]), COUNTER),
            *import_weka([weka_traces], KEY).trajectories,
        ],
    }


def test_every_format_has_its_table() -> None:
    assert {trip.name for trip in TRIPS} == set(FORMATS)
    assert set(CARRIED) == {(trip.key, text) for trip in TRIPS for text in trip.takes}
    for carried in CARRIED.values():
        assert carried <= set(FIELDS)


@pytest.mark.parametrize(("key", "text"), sorted(CARRIED), ids=lambda value: str(value))
def test_what_is_dropped_is_what_does_not_come_back(
    key: str, text: bool, sessions: dict[bool, list[Trajectory]], tmp_path: Path
) -> None:
    trip = BY_KEY[key]
    found: set[str] = set()
    for session in sessions[text]:
        found |= trip.differing(session, tmp_path)
    if not text:
        found -= TEXT_FIELDS  # there is nothing that they could drop
    dropped = dropped_fields(trip.name, text=text, with_messages=trip.with_messages)
    assert found & set(dropped) == found, f"comes back as something else: {sorted(found - set(dropped))}"
    assert found == set(dropped), f"comes back after all: {sorted(set(dropped) - found)}"


def turns() -> st.SearchStrategy[Turn]:
    words = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
    count = st.none() | st.integers(0, 10**6)
    return st.builds(
        Turn,
        text=words,
        thought=st.none() | words,
        tools=st.lists(st.sampled_from(('{"command": "ls"}', "{}", "[1]", "no JSON")), max_size=3).map(tuple),
        output=words,
        human=st.none() | words,
        fails=st.booleans(),
        cut=st.booleans(),
        agent=st.booleans(),
        took_ms=st.integers(100, 10**6),
        gap_ms=st.integers(400, 10**7),
        counts=st.tuples(st.integers(2 * 10**6, 10**7), count, count, st.integers(0, 10**6)),
        temperature=st.none() | st.floats(0, 2),
        effort=st.none() | st.sampled_from(("low", "max", "budget:1024")),
    )


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(turns(), min_size=1, max_size=5), anthropic=st.booleans())
def test_no_other_field_of_any_session_is_lost(
    script: list[Turn], anthropic: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    spoken_session = play(script, api="anthropic.messages" if anthropic else "openai.chat")
    by_text = {True: spoken_session, False: content_free(spoken_session, COUNTER)}
    for trip in TRIPS:
        for text in trip.takes:
            try:
                found = trip.differing(by_text[text], folder)
            except ExportFault:  # nothing left that the format can hold
                continue
            assert not found & CARRIED[trip.key, text], (trip.key, text, sorted(found & CARRIED[trip.key, text]))

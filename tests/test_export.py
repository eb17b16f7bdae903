"""Exports: what goes out, comes in again, and holds no key that readers refuse."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from capture.call import Message
from capture.importers.weka import import_weka
from capture.shelf import Shelf
from capture.store import Store
from capture.trajectory import Trajectory
from curate.blocks import prompt_blocks
from curate.build import build
from curate.export import ExportFault, export
from curate.tokens import TokenCounter
from tests.sample_sessions import content_free_session, text_session

# What AIPerf's models allow (ai-dynamo/aiperf, dataset/loader/weka_trace_models.py); they forbid everything else.
TRACE_KEYS = {
    "id", "models", "block_size", "hash_id_scope", "tool_tokens", "system_tokens", "requests", "totals",
}  # fmt: skip
CALL_KEYS = {
    "t", "type", "model", "in", "out", "hash_ids", "input_types", "output_types", "stop", "api_time", "think_time",
}  # fmt: skip
AGENT_KEYS = {
    "t", "type", "agent_id", "subagent_type", "duration_ms", "total_tokens", "tool_use_count", "status", "requests",
    "models", "tool_tokens", "system_tokens",
}  # fmt: skip
CALL_REQUIRED = {"t", "type", "model", "in", "out", "hash_ids", "input_types", "output_types", "stop"}
AGENT_REQUIRED = AGENT_KEYS - {"duration_ms", "total_tokens", "tool_use_count"}


@pytest.fixture(scope="module")
def weka_sessions(weka_traces: Path) -> tuple[Trajectory, ...]:
    return import_weka([weka_traces], b"k" * 32).trajectories


@pytest.fixture(scope="module")
def weka_export(weka_sessions: tuple[Trajectory, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "traces"
    report = export(weka_sessions, "weka", out)
    assert report.sessions == 35
    assert report.left_out == {}
    return out


def exported(out: Path, session_id: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / f"{session_id}.json").read_text())
    return value


def check_keys(trace: dict[str, Any]) -> None:
    assert set(trace) == TRACE_KEYS
    for entry in trace["requests"]:
        if entry["type"] == "subagent":
            assert AGENT_REQUIRED <= set(entry) <= AGENT_KEYS
        for call in entry["requests"] if entry["type"] == "subagent" else [entry]:
            allowed = CALL_KEYS | {"ttft"} if call["type"] == "s" else CALL_KEYS
            assert CALL_REQUIRED <= set(call) <= allowed
            assert len(call["hash_ids"]) == call["in"] // trace["block_size"]
    assert [entry["t"] for entry in trace["requests"]] == sorted(entry["t"] for entry in trace["requests"])


def test_weka_comes_out_as_it_came_in(
    weka_traces: Path, weka_sessions: tuple[Trajectory, ...], weka_export: Path
) -> None:
    """All fields of all requests and sessions, but `id` and some of a sub-agent's entry, which are named here."""
    sources = {path.name: json.loads(path.read_text()) for path in weka_traces.glob("*.json")}
    differing: Counter[str] = Counter()
    calls = 0
    for session in weka_sessions:
        source = sources[session.source_ref.partition(":")[0]]
        trace = exported(weka_export, session.session_id)
        check_keys(trace)
        for key in TRACE_KEYS - {"id", "requests"}:
            assert trace[key] == source[key], key
        theirs = [entry for entry in source["requests"] if entry["type"] != "subagent"]
        ours = [entry for entry in trace["requests"] if entry["type"] != "subagent"]
        their_agents = [entry for entry in source["requests"] if entry["type"] == "subagent"]
        our_agents = [entry for entry in trace["requests"] if entry["type"] == "subagent"]
        # Ours are in order of their start, the source's in order of their end.
        their_agents.sort(key=lambda entry: round(entry["t"] * 1000) - entry["duration_ms"])
        for agent, own in zip(their_agents, our_agents, strict=True):
            for key in ("type", "status", "models", "tool_tokens", "system_tokens"):
                assert own[key] == agent[key], key
            for key in AGENT_KEYS - {"requests"}:
                differing[key] += own.get(key) != agent[key]
            assert own["t"] == pytest.approx(agent["t"] - agent["duration_ms"] / 1000)
            theirs += agent["requests"]
            ours += own["requests"]
        for call, own in zip(theirs, ours, strict=True):
            calls += 1
            for key in call.keys() | own.keys():
                assert own.get(key) == call.get(key), key
    assert calls == 1811
    lost = {"t", "duration_ms", "agent_id", "subagent_type", "total_tokens", "tool_use_count"}
    assert set(+differing) <= lost


def test_weka_import_export_import_is_a_fixed_point(weka_sessions: tuple[Trajectory, ...], weka_export: Path) -> None:
    again = import_weka([weka_export], b"k" * 32)
    by_id = {session.source_ref.partition(": ")[2]: session for session in again.trajectories}
    for session in weka_sessions:
        other = by_id[session.session_id]
        assert replace(
            other,
            session_id=session.session_id,
            source_ref=session.source_ref,
            license=session.license,
        ) == renumbered(session)


def renumbered(session: Trajectory) -> Trajectory:
    """The session with its sub-agents numbered by their start, as an export has them."""
    paths = ["main", *dict.fromkeys(one.agent_path for one in session.requests if one.agent_path != "main")]
    new = {path: path if path == "main" else f"main/{number}" for number, path in enumerate(paths)}
    return replace(session, requests=tuple(replace(one, agent_path=new[one.agent_path]) for one in session.requests))


def test_text_session_as_weka(tmp_path: Path) -> None:
    counter = TokenCounter()
    session = text_session(turns=40, secret="Mind all the tests, " * 20)
    export([session], "weka", tmp_path / "out")
    trace = exported(tmp_path / "out", "session-a")
    check_keys(trace)
    main = [entry for entry in trace["requests"] if entry["type"] != "subagent"]
    (agent,) = (entry for entry in trace["requests"] if entry["type"] == "subagent")
    assert (agent["t"], agent["requests"][0]["t"], agent["duration_ms"]) == (0.5, 0.0, 2000)
    for request, call in zip(session.requests, main, strict=False):
        spans = request.prompt_spans
        assert spans is not None
        messages = [pooled.message for start, end in spans for pooled in session.pool[start:end]]
        assert call["in"] == counter.request(messages, session.tool_sets[0])
        assert call["out"] == 50  # the provider's word
        assert (call["t"], call["api_time"], call["ttft"]) == (request.t_send_us / 1e6, 2.0, 0.2)
        assert (call["type"], call["stop"]) == ("s", "tool_use")
    for before, after in pairwise(main):
        assert after["hash_ids"][: len(before["hash_ids"])] == before["hash_ids"]
        assert after["think_time"] == 8.0
    seen = [value for call in main for value in call["hash_ids"]]
    assert sorted(set(seen)) == list(range(1, max(seen) + 1))
    assert trace["tool_tokens"] == counter.tools(session.tool_sets[0])
    assert trace["system_tokens"] == counter.message(session.pool[0].message)
    assert "coding agent" not in json.dumps(trace)
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    assert provenance["sessions"][0]["in_counted_by"] == "o200k_base"


def test_a_prefix_that_the_blocks_do_not_cover_is_not_told(tmp_path: Path) -> None:
    """AIPerf builds tools and system prompt out of the first prompt's blocks, and refuses a file with fewer."""
    export([text_session()], "weka", tmp_path / "out")
    trace = exported(tmp_path / "out", "session-a")
    assert len(trace["requests"][0]["hash_ids"]) == 1
    assert (trace["tool_tokens"], trace["system_tokens"]) == (0, 0)


def test_a_changed_message_changes_every_block_after_it() -> None:
    counter = TokenCounter()
    session = text_session(turns=30)
    edited = list(session.pool)
    edited[1] = replace(edited[1], message=Message(role="user", content="Another task."))
    before = [blocks.ids for _, blocks in prompt_blocks(session, counter, 8) if blocks]
    joined = replace(
        session,
        pool=(*session.pool, *edited),
        requests=(
            *session.requests,
            *(
                replace(one, prompt_spans=tuple((a + len(edited), b + len(edited)) for a, b in one.prompt_spans or ()))
                for one in session.requests
            ),
        ),
    )
    after = [blocks.ids for _, blocks in prompt_blocks(joined, counter, 8) if blocks][len(before) :]
    *main, sub_agent = zip(before, after, strict=True)
    assert sub_agent[0] == sub_agent[1]
    for one, other in main:
        shared = sum(a == b for a, b in zip(one, other, strict=False))
        assert 0 < shared < len(one)
        assert one[:shared] == other[:shared]
        assert not set(one[shared:]) & set(other[shared:])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "auxiliary"}, "auxiliary requests (token counts, titles)"),
        ({"status": 529, "error": "overloaded"}, "failed requests"),
        ({"prompt_tokens": None, "block_hashes": None}, "requests of unknown input length"),
        ({"completion_tokens": None}, "requests of unknown output length"),
    ],
    ids=["auxiliary", "failed", "no input length", "no output length"],
)
def test_weka_leaves_out_with_a_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    session = content_free_session()
    odd = replace(session, requests=(*session.requests[:-1], replace(session.requests[-1], **changes)))
    report = export([odd], "weka", tmp_path / "out")
    assert report.left_out == {reason: 1}
    assert report.requests == len(session.requests) - 1


def test_release_wide_hashes_become_local(tmp_path: Path) -> None:
    session = content_free_session()
    wide = replace(
        session,
        hash_scope="release",
        requests=tuple(
            replace(one, block_hashes=tuple(value * 2**40 for value in one.block_hashes or ()))
            for one in session.requests
        ),
    )
    export([wide], "weka", tmp_path / "wide")
    export([session], "weka", tmp_path / "local")
    for one, other in zip(
        exported(tmp_path / "wide", "session-f")["requests"],
        exported(tmp_path / "local", "session-f")["requests"],
        strict=True,
    ):
        assert len(one["hash_ids"]) == len(other["hash_ids"])
        assert max(one["hash_ids"]) < 2**40


def test_weka_as_one_file(tmp_path: Path, weka_sessions: tuple[Trajectory, ...]) -> None:
    export(weka_sessions[:3], "weka", tmp_path / "traces.jsonl")
    lines = (tmp_path / "traces.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [session.session_id for session in weka_sessions[:3]]
    assert (tmp_path / "traces.jsonl").stat().st_mode & 0o777 == 0o600


def rebuilt(line: dict[str, Any], request: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What a reader of the format would send again: messages and tools."""
    holder = line if request["conversation"] == 0 else line["conversations"][request["conversation"] - 1]
    return holder["messages"][: request["message_count"]], holder["tools"]


def test_openai_line_rebuilds_every_request(tmp_path: Path) -> None:
    session = text_session(turns=5)
    # A compaction: the last main request starts over from the system prompt.
    requests = list(session.requests)
    requests[4] = replace(requests[4], prompt_spans=((0, 1), (8, 10)), context_event="compaction")
    session = replace(session, requests=tuple(requests))
    report = export([session, content_free_session()], "openai", tmp_path / "chat.jsonl")
    assert (report.sessions, report.requests) == (1, 6)
    assert report.left_out == {"requests without text": 3, "sessions without text": 1}
    (line,) = map(json.loads, (tmp_path / "chat.jsonl").read_text().splitlines())
    assert [one["request_index"] for one in line["requests"]] == [0, 1, 2, 3, 4, 5]
    for one, request in zip(line["requests"], session.requests, strict=True):
        messages, tools = rebuilt(line, one)
        assert request.prompt_spans is not None
        expected = [pooled.message for a, b in request.prompt_spans for pooled in session.pool[a:b]]
        assert [(m["role"], m["content"]) for m in messages] == [(m.role, m.content) for m in expected]
        assert len(tools) == len(session.tool_sets[request.tools_index or 0])
    # The line's own messages are the main agent's last context, closed by its last answer.
    assert line["messages"][-1]["role"] == "assistant"
    assert line["messages"][-1]["tool_calls"][0]["function"]["arguments"].startswith('{"command": "make 4"')
    assert len(line["conversations"]) == 2
    assert line["tools"][0]["function"]["parameters"] == {"type": "object"}


def test_openai_keeps_one_conversation_plain(tmp_path: Path) -> None:
    session = text_session(turns=3)
    session = replace(session, requests=session.requests[:3])
    export([session], "openai", tmp_path / "chat.jsonl")
    line = json.loads((tmp_path / "chat.jsonl").read_text())
    assert "conversations" not in line
    assert [message["role"] for message in line["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert line["messages"][2]["reasoning_content"] == "Look first."
    assert line["messages"][3]["tool_call_id"] == "call-0"


def test_a_dataset_folder_exports_like_its_sessions(
    weka_traces: Path, weka_sessions: tuple[Trajectory, ...], weka_export: Path, tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "store", create=True)
    Shelf(store.path).put(weka_sessions[0])
    build([store.path], tmp_path / "dataset", jobs=1)
    report = export(tmp_path / "dataset", "weka", tmp_path / "out")
    assert report.sessions == 1
    name = f"{weka_sessions[0].session_id}.json"
    assert (tmp_path / "out" / name).read_bytes() == (weka_export / name).read_bytes()
    assert len(json.loads((tmp_path / "out.provenance.json").read_text())["dataset_digest"]) == 64


def test_openai_agent_that_sends_no_reasoning_back(tmp_path: Path) -> None:
    """The echoed answer is another message than the model's; that does not break the conversation."""
    session = text_session(turns=2)
    first, second, *_ = session.requests
    echoed = replace(session.pool[2], message=replace(session.pool[2].message, reasoning_content=None))
    end = len(session.pool)
    second = replace(second, prompt_spans=((0, 2), (end, end + 1), (3, 4)))
    export([replace(session, pool=(*session.pool, echoed), requests=(first, second))], "openai", tmp_path / "x.jsonl")
    line = json.loads((tmp_path / "x.jsonl").read_text())
    assert "conversations" not in line
    assert [message["role"] for message in line["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert "reasoning_content" not in line["messages"][2]
    assert [one["message_count"] for one in line["requests"]] == [2, 4]


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    session = text_session(secret="\ud83d")
    export([session], "openai", tmp_path / "chat.jsonl")
    assert "\ud83d" in json.loads((tmp_path / "chat.jsonl").read_text())["messages"][1]["content"]


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ExportFault, match="taken exists; name a new path"):
        export([text_session()], "weka", tmp_path / "taken")
    with pytest.raises(ExportFault, match="unknown format 'parquet'; known: weka, openai"):
        export([text_session()], "parquet", tmp_path / "new")
    with pytest.raises(ExportFault, match=r"nothing to export: 3 requests without text.* export as weka"):
        export([content_free_session()], "openai", tmp_path / "new")
    with pytest.raises(ExportFault, match="is no folder"):
        export([text_session()], "weka", tmp_path / "missing" / "new")

    def broken() -> Any:
        yield text_session()
        raise OSError("the dataset's disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        export(broken(), "weka", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]

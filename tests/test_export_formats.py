"""ATIF, Mooncake and OpenTelemetry exports, judged by others' models and by our own readers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import atif
import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from capture.call import Message, ToolUse
from capture.importers.atif import import_atif
from capture.importers.clockless import without_clock
from capture.otlp import HOST, Telemetry
from capture.trajectory import PooledMessage, Request, ToolCall, Trajectory
from curate.export import ExportFault, export
from tests.exchanges import exchange
from tests.sample_sessions import any_of, content_free_session, pooled, text_session

NEW = ("atif", "mooncake", "otel")


def written(sessions: Iterable[Trajectory], name: str, folder: Path) -> list[dict[str, Any]]:
    out = folder / f"{name}.jsonl"
    export(sessions, name, out)
    assert out.stat().st_mode & 0o777 == 0o600
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def exported(session: Trajectory, name: str, folder: Path) -> dict[str, Any]:
    (value,) = written([session], name, folder)
    return value


def with_subagent() -> Trajectory:
    """A session whose second tool call starts the sub-agent, and whose result holds its answer."""
    session = text_session()
    pool = list(session.pool)
    calls = list(session.tool_calls)
    use = replace(pool[2].message.tool_calls[0], name="task", arguments='{"prompt": "Search the tree."}')
    pool[2] = replace(pool[2], message=replace(pool[2].message, tool_calls=(use,)))
    pool[3] = replace(pool[3], message=replace(pool[3].message, content="Report: Found it."))
    calls[0] = replace(calls[0], kind="subagent", name="task")
    requests = [
        one if one.agent_path == "main" else replace(one, relation="subagent", agent_type="Explore")
        for one in session.requests
    ]
    return replace(session, pool=tuple(pool), tool_calls=tuple(calls), requests=tuple(requests))


# ATIF.


def document(session: Trajectory, folder: Path) -> tuple[dict[str, Any], atif.Trajectory]:
    value = exported(session, "atif", folder)
    return value, atif.Trajectory.model_validate(value)


def test_atif_holds_steps_results_usage_and_our_times(tmp_path: Path) -> None:
    session = with_subagent()
    value, model = document(session, tmp_path)
    assert [(step.source, step.llm_call_count) for step in model.steps] == [
        ("system", None), ("user", None), ("agent", 1), ("agent", 1), ("agent", 1),
    ]  # fmt: skip
    first = model.steps[2]
    assert first.timestamp == "2025-10-09T08:53:20.123456Z"
    assert first.reasoning_content == "Look first."
    assert first.metrics is not None
    assert (first.metrics.prompt_tokens, first.metrics.completion_tokens, first.metrics.cached_tokens) == (1000, 50, 0)
    ours = value["steps"][3]["extra"]["agentdyno"]
    assert (ours["t_send_us"], ours["t_first_token_us"], ours["t_end_us"]) == (10_000_000, 10_200_000, 12_000_000)
    assert (ours["gap_us"], ours["gap_kind"], ours["think_us"]) == (8_000_000, "tool", 0)
    assert value["steps"][2]["tool_calls"][0]["extra"]["agentdyno"]["internal_us"] == 7_500_000
    assert model.final_metrics is not None
    assert model.final_metrics.total_prompt_tokens == 6000
    # The sub-agent is inside, and the result that holds its answer names it.
    assert first.observation is not None
    (result,) = first.observation.results
    assert result.content == "Report: Found it."
    assert result.subagent_trajectory_ref is not None
    assert model.subagent_trajectories is not None
    assert result.subagent_trajectory_ref[0].trajectory_id == model.subagent_trajectories[0].trajectory_id
    assert [step.message for step in model.subagent_trajectories[0].steps][-1] == "Found it."
    # Not all of its counts are known, so their sum is not.
    totals = value["subagent_trajectories"][0]["final_metrics"]
    assert totals == {"total_steps": 3, "total_completion_tokens": 50}


def test_atif_comes_back_with_its_times(tmp_path: Path) -> None:
    session = with_subagent()
    export([session], "atif", tmp_path / "atif")
    (found,) = import_atif([tmp_path / "atif"], b"k" * 32).trajectories
    assert found.t0_utc_us == session.t0_utc_us
    for back, request_ in zip(found.requests, sorted(session.requests, key=lambda one: one.sent_us), strict=True):
        for name in (
            "agent_path", "model", "stream", "status", "stop", "max_tokens", "temperature", "t_send_us", "t_headers_us",
            "t_first_byte_us", "t_first_token_us", "t_last_token_us", "t_end_us", "gap_us", "gap_kind", "prompt_tokens",
            "cache_read_tokens", "completion_tokens", "tool_call_ids", "agent_type",
        ):  # fmt: skip
            assert getattr(back, name) == getattr(request_, name), name
    for back, call in zip(found.tool_calls, session.tool_calls, strict=True):
        for name in ("tool_call_id", "t_emitted_us", "wall_us", "internal_us", "is_error", "exit_code", "timed_out"):
            assert getattr(back, name) == getattr(call, name), name
    main = [one for one in found.requests if one.agent_path == "main"]
    assert main[1].client_us == 500_000  # the gap of 8 s less the tool's 7.5 s, told apart again
    assert said(found, main[-1]) == said(session, session.requests[2])


def test_atif_lines_come_back_as_their_sessions(tmp_path: Path) -> None:
    export([with_subagent(), text_session("session-b")], "atif", tmp_path / "all.jsonl")
    found = import_atif([tmp_path / "all.jsonl"], b"k" * 32).trajectories
    assert [len(one.requests) for one in found] == [4, 4]
    assert len({one.session_id for one in found}) == 2


def said(session: Trajectory, of: Request) -> list[Message]:
    """A prompt, without when its calls were emitted and how their JSON was spelled."""
    return [
        replace(
            pooled_.message,
            tool_calls=tuple(
                replace(use, t_emitted_ns=None, arguments=json.dumps(json.loads(use.arguments)))
                for use in pooled_.message.tool_calls
            ),
        )
        for start, end in of.prompt_spans or ()
        for pooled_ in session.pool[start:end]
    ]


def test_atif_says_where_a_context_starts_over(tmp_path: Path) -> None:
    session = text_session(turns=4)
    requests = [one for one in session.requests if one.agent_path == "main"]
    summary = pooled(Message(role="user", content="Summary: the build is broken."), 3)
    at = len(session.pool)
    requests[3] = replace(
        requests[3], prompt_spans=((0, 1), (at, at + 1)), context_event="compaction", relation="compaction"
    )
    session = replace(session, pool=(*session.pool, summary), requests=tuple(requests), tool_calls=())
    value, model = document(session, tmp_path)
    *_, system, words, _ = value["steps"]
    assert (system["message"], system["is_copied_context"]) == ("You are a coding agent.", True)
    assert system["extra"]["agentdyno"]["new_context"] == "compaction"
    assert (words["message"], words.get("is_copied_context")) == ("Summary: the build is broken.", None)
    assert "starts over" in (model.notes or "")
    (found,) = import_atif([tmp_path / "atif.jsonl"], b"k" * 32).trajectories
    assert said(found, found.requests[-1]) == said(session, session.requests[3])


def test_atif_keeps_an_undated_and_a_clockless_session(tmp_path: Path) -> None:
    session = replace(text_session(), t0_utc_us=None)
    value = exported(session, "atif", tmp_path)
    assert "timestamp" not in value["steps"][2]
    (found,) = import_atif([tmp_path / "atif.jsonl"], b"k" * 32).trajectories
    assert found.t0_utc_us is None
    assert [one.t_end_us for one in found.requests] == [2_000_000, 2_500_000, 12_000_000, 22_000_000]
    (tmp_path / "clockless").mkdir()
    value = exported(without_clock(text_session()), "atif", tmp_path / "clockless")
    atif.Trajectory.model_validate(value)
    (found,) = import_atif([tmp_path / "clockless" / "atif.jsonl"], b"k" * 32).trajectories
    assert {one.t_send_us for one in found.requests} == {None}


def test_atif_leaves_out_what_is_no_step(tmp_path: Path) -> None:
    session = text_session()
    first, second, *rest = session.requests
    failed = replace(second, answer_index=None, status=529, error="overloaded")
    again = replace(first, request_index=9, retry_of=0)
    title = replace(rest[-1], kind="auxiliary")
    report = export(
        [replace(session, requests=(first, again, failed, title)), content_free_session()], "atif", tmp_path / "out"
    )
    assert report.left_out == {
        "auxiliary requests (token counts, titles)": 1,
        "requests that were sent again": 1,
        "requests without an answer": 1,
        "requests without text": 3,
        "sessions without a request that the format can hold": 1,
    }
    assert (report.sessions, report.requests) == (1, 1)


def test_atif_takes_arguments_that_are_no_object(tmp_path: Path) -> None:
    session = text_session(turns=1)
    pool = list(session.pool)
    use = ToolUse(id="call-0", name="apply_patch", arguments="*** Begin Patch")
    pool[2] = replace(pool[2], message=replace(pool[2].message, tool_calls=(use,)))
    session = replace(session, pool=tuple(pool), requests=session.requests[:1])
    value = exported(session, "atif", tmp_path)
    (call,) = value["steps"][2]["tool_calls"]
    assert (call["arguments"], call["extra"]["agentdyno"]["arguments"]) == ({}, "*** Begin Patch")
    (found,) = import_atif([tmp_path / "atif.jsonl"], b"k" * 32).trajectories
    answer = found.requests[0].answer_index
    assert answer is not None
    assert found.pool[answer].message.tool_calls[0].arguments == "*** Begin Patch"


# Mooncake.


def check_rows(rows: list[dict[str, Any]]) -> None:
    """What AIPerf's and Dynamo's readers ask of a file."""
    names: set[str] = set()
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    assert rows[0]["timestamp"] == 0
    everyone = {row["request_id"] for row in rows}
    for row in rows:
        assert "session_id" not in row  # AIPerf would add up prompts that are complete already
        assert row["input_length"] > 0
        assert row["output_length"] >= 0
        assert len(row["hash_ids"]) == -(-row["input_length"] // 512)
        assert row["request_id"] not in names
        names.add(row["request_id"])
        assert set(row.get("wait_for", ())) <= everyone
        if "wait_for" in row:
            assert row["delay"] >= 0
            assert row["tool_wait_ms"] >= 0


def test_mooncake_of_text_shares_prefixes_across_sessions(tmp_path: Path) -> None:
    long = "word " * 3000
    sessions = [
        replace(text_session(name, secret=long), t0_utc_us=1_760_000_000_000_000 + shift)
        for name, shift in (("session-b", 60_000_000), ("session-a", 0))
    ]
    rows = written(sessions, "mooncake", tmp_path)
    check_rows(rows)
    # A minute apart, as they were recorded, in order of sending.
    assert [row["timestamp"] for row in rows] == [0, 500, 10_000, 20_000, 60_000, 60_500, 70_000, 80_000]
    one, other = rows[0], rows[4]
    assert (one["request_id"], other["request_id"]) == ("session-a:0", "session-b:0")
    assert one["hash_ids"] == other["hash_ids"]  # the same words from the first token
    grown = rows[2]
    full = one["input_length"] // 512
    assert grown["hash_ids"][:full] == one["hash_ids"][:full]
    assert grown["hash_ids"][full] != one["hash_ids"][full]  # a block that was not full before
    assert grown["wait_for"] == ["session-a:0"]
    assert (grown["delay"], grown["tool_wait_ms"]) == (0, 8000)
    about = json.loads((tmp_path / "mooncake.jsonl.provenance.json").read_text())
    assert about["block_size"] == 512
    assert [source["begins_at_ms"] for source in about["sessions"]] == [60_000, 0]
    assert "word" not in json.dumps(rows)


def test_mooncake_waits_for_a_subagent_where_its_result_comes_back(tmp_path: Path) -> None:
    session = with_subagent()
    rows = {row["request_id"]: row for row in written([session], "mooncake", tmp_path)}
    assert rows["session-a:3"]["wait_for"] == ["session-a:0"]
    assert rows["session-a:1"]["wait_for"] == ["session-a:0", "session-a:3"]
    # From the sub-agent's end at 2.5 s to the send at 10 s.
    assert rows["session-a:1"]["tool_wait_ms"] == 7500


def test_mooncake_of_blocks_puts_them_together(tmp_path: Path) -> None:
    turns = 3
    session = content_free_session(turns=turns)
    requests = tuple(
        replace(one, block_hashes=tuple(range(100, 100 + 10 * (turn + 1))), prompt_tokens=640 * (turn + 1) + extra)
        for turn, (one, extra) in enumerate(zip(session.requests, (0, 0, 5), strict=True))
    )
    other = replace(session, session_id="other", hash_scope="session")
    sessions = [replace(session, requests=requests), replace(other, requests=requests[:1])]
    rows = written(sessions, "mooncake", tmp_path)
    check_rows(rows)
    first, elsewhere, second, third = (row["hash_ids"] for row in rows)
    assert (len(first), len(second), len(third)) == (2, 3, 4)
    assert first[0] == second[0] == third[0]
    assert first[1] != second[1] == third[1]
    assert not set(first) & set(elsewhere)  # hashes of one session say nothing about another's
    released = [replace(one, hash_scope="release") for one in sessions]
    (tmp_path / "release").mkdir()
    first, elsewhere, *_ = (row["hash_ids"] for row in written(released, "mooncake", tmp_path / "release"))
    assert first == elsewhere


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_size": None}, "requests of unknown blocks"),
        ({"block_size": 100}, "requests whose blocks do not make up 512 tokens"),
        ({"block_hashes": (1,)}, "requests whose blocks do not cover their input"),
        ({"t_send_us": None}, "requests of unknown time"),
    ],
)
def test_mooncake_leaves_out_with_a_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    session = content_free_session()
    odd = replace(session, requests=(*session.requests[:-1], replace(session.requests[-1], **changes)))
    assert export([odd], "mooncake", tmp_path / "out.jsonl").left_out == {reason: 1}


# OpenTelemetry.


def spans_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans of a trace with their attributes as a mapping, after OTLP's own schema has read the whole."""
    json_format.ParseDict(value, ExportTraceServiceRequest())
    (resource,) = value["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    found = []
    for span in scope["spans"]:
        told = {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}
        assert len(told) == len(span["attributes"])
        found.append({**span, "attributes": told})
    return found


def check_tree(spans: list[dict[str, Any]]) -> None:
    ids = [span["spanId"] for span in spans]
    assert len(set(ids)) == len(ids)
    assert {len(one) for one in ids} == {16}
    assert {len(span["traceId"]) for span in spans} == {32}
    assert len([span for span in spans if "parentSpanId" not in span]) == 1
    assert {span["parentSpanId"] for span in spans if "parentSpanId" in span} <= set(ids)
    assert all(0 < int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)


def test_otel_spans_nest_and_carry_the_conventions(tmp_path: Path) -> None:
    spans = spans_of(exported(with_subagent(), "otel", tmp_path))
    check_tree(spans)
    by_name = {span["name"]: span for span in spans}
    root, helper, task = by_name["invoke_agent codex"], by_name["invoke_agent Explore"], by_name["execute_tool task"]
    assert helper["parentSpanId"] == task["spanId"]
    assert task["parentSpanId"] == root["spanId"]
    chat = next(span for span in spans if span["name"] == "chat model-a")
    assert chat["kind"] == 3
    assert int(chat["endTimeUnixNano"]) - int(chat["startTimeUnixNano"]) == 2_000_000_000
    assert chat["startTimeUnixNano"] == "1760000000123456000"
    told = chat["attributes"]
    assert told["gen_ai.request.model"] == "model-a"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.cache_read.input_tokens"]) == ("1000", "0")
    assert told["gen_ai.usage.output_tokens"] == "50"
    assert told["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.11)
    assert told["agentdyno.time_to_first_token"] == pytest.approx(0.2)
    assert told["gen_ai.response.finish_reasons"] == {"values": [{"stringValue": "tool_calls"}]}
    failed = next(span for span in spans if span.get("status"))
    assert failed["attributes"]["error.type"] == "tool_error"
    text = json.dumps(spans)
    assert "Fix the build" not in text
    assert "make 0" not in text


def test_otel_gives_our_own_reader_the_tool_times_back(tmp_path: Path) -> None:
    session = text_session()
    first, *rest = session.tool_calls
    asked = replace(first, permission_us=1_250_000, internal_us=3_000_000)
    export([replace(session, tool_calls=(asked, *rest))], "otel", tmp_path / "out")
    telemetry = Telemetry()
    body = (tmp_path / "out" / "session-a.json").read_bytes()
    sent = exchange("/otlp/v1/traces", {}, headers=[("content-type", "application/json")])
    telemetry.add(replace(sent, host=HOST, request_body=body))
    assert telemetry.unreadable == 0
    times = {time.tool_call_id: (name, time) for _, name, time in telemetry.tool_times()}
    name, time = times["call-0"]
    assert name == "session-a"
    assert (time.internal_us, time.permission_us) == (3_000_000, 1_250_000)
    assert times["call-1"][1].internal_us is None  # only the gap is known, which is no tool's time


def test_otel_tells_of_failures_and_undated_sessions(tmp_path: Path) -> None:
    session = content_free_session()
    first, second, third = session.requests
    odd = replace(
        session,
        requests=(
            replace(first, status=529, error="overloaded"),
            replace(second, t_end_us=None, t_last_token_us=None, t_first_token_us=None, t_first_byte_us=None),
            replace(third, t_end_us=third.sent_us - 1),
        ),
    )
    report = export([odd], "otel", tmp_path / "out")
    assert report.left_out == {"requests of unknown end": 1, "requests that end before they begin": 1}
    value = json.loads((tmp_path / "out" / "session-f.json").read_text())
    agent, call = spans_of(value)
    assert call["attributes"]["error.type"] == "529"
    assert call["status"] == {"code": 2}
    assert agent["startTimeUnixNano"] == str(86_400 * 10**9)
    clock = {one["key"]: one["value"] for one in value["resourceSpans"][0]["resource"]["attributes"]}
    assert clock["agentdyno.clock"] == {"stringValue": "relative"}


# All of them.


@st.composite
def random_sessions(draw: st.DrawFn) -> Trajectory:
    """Any session whose positions exist: what a store may hold after any agent, log and accident."""
    base = draw(st.sampled_from((text_session(), content_free_session())))
    pool = (*base.pool, *draw(st.lists(any_of(PooledMessage), max_size=3)))
    spans = st.none()
    if pool:
        position = st.integers(0, len(pool) - 1)
        spans = st.lists(st.tuples(position, position).map(sorted).map(tuple), max_size=3).map(tuple) | spans
    requests = [
        replace(
            draw(any_of(Request)),
            request_index=index,
            agent_path=draw(st.sampled_from(("main", "main/1", "main/1/1", "main/2", "side/1"))),
            parent_request_index=draw(st.none() | st.integers(0, 4)),
            retry_of=draw(st.none() | st.integers(0, 4)),
            prompt_spans=draw(spans),
            answer_index=draw(st.none() | st.integers(0, len(pool) - 1)) if pool else None,
            tools_index=draw(st.none() | st.integers(0, len(base.tool_sets) - 1)) if base.tool_sets else None,
            block_size=draw(st.sampled_from((None, 16, 64, 100, 512))),
            prompt_tokens=draw(st.none() | st.integers(0, 300)),
        )
        for index in range(draw(st.integers(0, 5)))
    ]
    calls = [
        replace(draw(any_of(ToolCall)), request_index=draw(st.integers(0, 4)), tool_call_id=f"call-{number}")
        for number in range(draw(st.integers(0, 3)))
    ]
    changed = replace(base, pool=pool, requests=(*base.requests, *requests) if not requests else tuple(requests))
    return replace(changed, tool_calls=tuple(calls), t0_utc_us=draw(st.none() | st.integers(1, 2**51)))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(session=random_sessions())
def test_any_session_is_exported_or_refused_with_its_reasons(
    session: Trajectory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in NEW:
        out = folder / f"{name}.jsonl"
        try:
            report = export([session], name, out)
        except ExportFault as fault:
            refused = str(fault)
            report = None
        if report is None:
            assert "nothing to export: " in refused
            assert not out.exists()
            continue
        dropped = (n for reason, n in report.left_out.items() if not reason.startswith(("sessions", "tool calls")))
        assert report.requests + sum(dropped) == len(session.requests)
        values = [json.loads(line) for line in out.read_bytes().splitlines()]
        match name:
            case "atif":
                atif.Trajectory.model_validate(values[0])
            case "mooncake":
                check_rows(values)
            case "otel":
                check_tree(spans_of(values[0]))


# Mooncake with messages.


def test_mooncake_with_messages_sends_whole_prompts(tmp_path: Path) -> None:
    session = with_subagent()
    report = export([session, content_free_session()], "mooncake", tmp_path / "chat.jsonl", with_messages=True)
    assert (report.sessions, report.requests) == (1, 4)
    assert report.left_out == {"requests without text": 3, "sessions without a request that the format can hold": 1}
    assert "message.content" not in report.not_carried
    rows = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_bytes().splitlines()]
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    by_request = {row["request_id"]: row for row in rows}
    chains: dict[str, list[dict[str, Any]]] = {}
    for request in session.requests:
        row = by_request[f"{session.session_id}:{request.request_index}"]
        chains.setdefault(row["session_id"], []).append(row)
        assert row["session_id"] == f"{session.session_id}:{request.agent_path}"
        # AIPerf takes one kind of input per row.
        assert not {"input_length", "hash_ids", "text_input", "payload"} & row.keys()
        expected = [one.content for one in said(session, request)]
        assert [message["content"] for message in row["messages"]] == expected
        assert len(row["tools"]) == len(session.tool_sets[request.tools_index or 0])
        assert (row["output_length"], row["extra"]) == (50, {"temperature": 0.7})
    for rows_of_chain in chains.values():
        first, *others = rows_of_chain
        assert "delay" not in first
        assert all(row["delay"] == 8000.0 for row in others)
        assert "tool_wait_ms" not in first


def test_messages_are_for_mooncake(tmp_path: Path) -> None:
    with pytest.raises(ExportFault, match="--with-messages is for mooncake; weka has one shape only"):
        export([text_session()], "weka", tmp_path / "x", with_messages=True)

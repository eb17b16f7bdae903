"""What holds for every dialect: the wire's facts, encodings, kinds of content, and what is said of unread exchanges."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace
from typing import Any

import brotli
import pytest
import zstandard

from capture.dialect import read_call, read_calls, why_unread
from capture.exchange import Gap, SocketMessage
from tests.exchanges import MS, call, exchange, sse

CHAT: dict[str, Any] = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "go"}]}
CHAT_PATH = "/v1/chat/completions"


def delta(**fields: Any) -> tuple[None, dict[str, Any]]:
    return None, {"id": "c1", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def finish(reason: str = "stop") -> tuple[None, dict[str, Any]]:
    return None, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


DONE = (None, "[DONE]")


def fragment(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments, **more.pop("function", {})}, **more}


def test_first_content_is_told_by_kind_in_chat() -> None:
    named = fragment(0, "", id="call_1", function={"name": "run"})
    found = call(
        CHAT_PATH,
        CHAT,
        sse(
            delta(role="assistant", content=""),
            delta(reasoning_content="hm"),
            delta(tool_calls=[named]),
            delta(content="Hello"),
            finish(),
            DONE,
        ),
    )
    assert (found.t_first_thinking_ns, found.t_first_tool_call_ns, found.t_first_text_ns) == (
        110 * MS,
        120 * MS,
        130 * MS,
    )
    assert found.t_first_content_ns == 110 * MS


def test_first_content_is_told_by_kind_in_responses() -> None:
    item = {"type": "function_call", "call_id": "c", "name": "run", "arguments": "{}"}
    events = (
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.reasoning_summary_text.delta", "delta": "hm", "output_index": 0},
        {"type": "response.output_text.delta", "delta": "Hello", "output_index": 1},
        {"type": "response.output_item.added", "item": item, "output_index": 2},
        {"type": "response.output_item.done", "item": item, "output_index": 2},
        {"type": "response.completed", "response": {"id": "r", "status": "completed"}},
    )
    found = call("/v1/responses", {"model": "m", "input": "go"}, sse(*((e["type"], e) for e in events)))  # type: ignore[misc]
    assert (found.t_first_thinking_ns, found.t_first_text_ns, found.t_first_tool_call_ns) == (
        110 * MS,
        120 * MS,
        130 * MS,
    )


def test_a_whole_answer_came_in_one_moment() -> None:
    message = {"role": "assistant", "content": "Hello", "reasoning": "hm"}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    found = call(CHAT_PATH, CHAT | {"stream": False}, body)
    assert found.t_first_text_ns == found.t_first_thinking_ns == found.t_first_content_ns == found.t_end_ns
    assert (found.t_first_tool_call_ns, found.transport) == (None, "http")


def test_the_wires_facts_go_through() -> None:
    base = exchange(CHAT_PATH, CHAT, sse(delta(content="x"), finish(), DONE))
    found = read_call(
        replace(
            base,
            mode="forward",
            contributor="ada",
            consent="research",
            wall_offset_us=5,
            wall_offset_end_us=9,
            request_bytes=77,
            gaps=(Gap(at_ns=1, kind="disk", lost_bytes=None),),
        )
    )
    assert found is not None
    assert (found.mode, found.contributor, found.consent) == ("forward", "ada", "research")
    assert (found.wall_offset_us, found.wall_offset_end_us, found.bytes_up, found.gaps) == (5, 9, 77, 1)
    assert (found.transport, found.complete) == ("sse", True)
    plain = read_call(base)
    assert plain is not None
    assert (plain.bytes_up, plain.mode) == (len(base.request_body), None)


def test_a_body_that_the_journal_decoded_is_not_decoded_again() -> None:
    header = [("content-encoding", "zstd")]
    base = exchange(CHAT_PATH, CHAT, sse(delta(content="x"), finish()), headers=header)
    found = read_call(replace(base, request_decoded=True, request_bytes=None))
    assert found is not None
    assert (found.messages[0].content, found.notes, found.bytes_up) == ("go", (), None)


STACKS = {
    "gzip, br": lambda body: brotli.compress(gzip.compress(body)),
    "deflate, zstd": lambda body: zstandard.ZstdCompressor().compress(zlib.compress(body)),
}


@pytest.mark.parametrize("stack", STACKS)
def test_encodings_may_be_stacked_on_both_ways(stack: str) -> None:
    encode = STACKS[stack]
    header = [("content-encoding", stack)]
    body = encode(b"".join(sse(delta(content="Hello"), finish(), DONE)))
    found = call(
        CHAT_PATH,
        encode(json.dumps(CHAT).encode()),
        [body[at : at + 9] for at in range(0, len(body), 9)],
        headers=header,
        response_headers=[("content-type", "text/event-stream"), *header],
    )
    assert found.answer is not None
    assert (found.messages[0].content, found.answer.content, found.complete) == ("go", "Hello", True)


def test_a_bomb_is_noted_and_left_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capture.encoding.BodyDecoder.__init__.__kwdefaults__", {"limit": 1000})
    bomb = gzip.compress(bytes(100_000))
    header = [("content-encoding", "gzip")]
    found = call(CHAT_PATH, bomb, bomb, headers=header, response_headers=header)
    assert [note.partition(":")[0] for note in found.notes[:2]] == ["request body", "response body"]
    assert all("more than 1000 bytes" in note for note in found.notes[:2])
    assert (found.complete, found.bytes_up, found.bytes_down) == (False, len(bomb), len(bomb))


def test_parallel_calls_may_come_interleaved_and_out_of_order() -> None:
    found = call(
        CHAT_PATH,
        CHAT,
        sse(
            delta(tool_calls=[fragment(1, '{"b"', id="call_b", function={"name": "two"})]),
            delta(tool_calls=[fragment(0, '{"a"', id="call_a", function={"name": "one"}), fragment(1, ":2}")]),
            delta(tool_calls=[fragment(0, ":1}")]),
            finish("tool_calls"),
            DONE,
        ),
    )
    assert found.answer is not None
    calls = [(use.id, use.name, use.arguments, use.t_emitted_ns) for use in found.answer.tool_calls]
    assert calls == [("call_a", "one", '{"a":1}', 120 * MS), ("call_b", "two", '{"b":2}', 110 * MS)]


def test_a_call_that_was_cut_is_left_out() -> None:
    named = fragment(0, '{"a":1}', id="call_a", function={"name": "one"})
    begun = fragment(1, '{"b"', id="call_b", function={"name": "two"})
    found = call(CHAT_PATH, CHAT, sse(delta(content="x", tool_calls=[named]), delta(tool_calls=[begun])))
    assert found.answer is not None
    assert [use.id for use in found.answer.tool_calls] == ["call_a"]
    assert (found.complete, found.notes) == (False, ("a call of two was cut and is left out",))


def test_functions_of_the_first_days_find_their_results() -> None:
    stream = sse(
        delta(function_call={"name": "run", "arguments": ""}),
        delta(function_call={"arguments": '{"x":'}),
        delta(function_call={"arguments": "1}"}),
        finish("function_call"),
        DONE,
    )
    live = call(CHAT_PATH, CHAT, stream).answer
    assert live is not None
    (asked,) = live.tool_calls
    assert (asked.name, asked.arguments, bool(asked.id)) == ("run", '{"x":1}', True)
    echo = {"role": "assistant", "content": None, "function_call": {"name": "run", "arguments": '{"x":1}'}}
    result = {"role": "function", "name": "run", "content": "done"}
    again = call(CHAT_PATH, CHAT | {"messages": [*CHAT["messages"], echo, result]}, stream)
    assert again.messages[1].tool_calls[0].id == again.messages[2].tool_call_id == asked.id
    assert again.answer is not None
    assert again.answer.tool_calls[0].id != asked.id  # the same words, said again


@pytest.mark.parametrize(
    ("fields", "thought", "omitted"),
    [
        ({"reasoning": "hm"}, "hm", 0),
        ({"reasoning_content": "hm", "reasoning": "hm"}, "hm", 0),
        ({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm", "signature": "abc"}]},
         "hm", 3),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}, "hm", 0),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "AAAA"}]}, None, 4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [True, False])
def test_reasoning_under_any_vendors_name(
    fields: dict[str, Any], thought: str | None, omitted: int, streamed: bool
) -> None:
    if streamed:
        found = call(CHAT_PATH, CHAT, sse(delta(**fields), delta(content="x"), finish(), DONE))
    else:
        message = {"role": "assistant", "content": "x", **fields}
        found = call(CHAT_PATH, CHAT, json.dumps({"choices": [{"message": message}]}).encode())
    assert found.answer is not None
    assert (found.answer.reasoning_content, found.answer.omitted_bytes) == (thought, omitted)
    assert (found.t_first_thinking_ns is None) == (thought is None)


def test_a_filtered_answer_without_usage() -> None:
    found = call(CHAT_PATH, CHAT, sse(delta(content="x"), finish("content_filter"), DONE))
    assert (found.stop, found.complete) == ("content_filter", True)
    usage = found.usage
    assert (usage.input_total, usage.output_total, usage.cache_read, usage.reasoning, usage.raw) == (None,) * 5


def test_auxiliary_endpoints_of_responses() -> None:
    counted = call("/v1/responses/input_tokens", {"model": "m", "input": "go"}, b'{"input_tokens": 9}')
    assert (counted.kind, counted.usage.raw) == ("auxiliary", None)
    memory = call("/v1/memories/trace_summarize", {"model": "m", "traces": []}, b'{"output": []}')
    assert (memory.kind, memory.api, memory.complete) == ("auxiliary", "openai.responses", True)


def test_a_compact_request_gives_the_opaque_summary_alone() -> None:
    kept = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]}
    summary = {"type": "compaction", "id": "cmp_1", "encrypted_content": "AAAA"}
    body = {"id": "r", "object": "response.compaction", "output": [kept, summary], "usage": {"input_tokens": 7}}
    found = call("/v1/responses/compact", {"model": "m", "input": [kept]}, json.dumps(body).encode())
    assert (found.compaction, found.kind, found.complete, found.usage.input_total) == ("unknown", "turn", True, 7)
    assert found.answer is not None
    assert (found.answer.content, found.answer.omitted_bytes > 0) == ("", True)


BEDROCK = "/model/anthropic.claude-opus-4-8-v1:0/invoke-with-response-stream"
VERTEX = "/v1/projects/p/locations/l/publishers/anthropic/models/claude:streamRawPredict"


@pytest.mark.parametrize(
    ("path", "host", "sent", "got", "says"),
    [
        (BEDROCK, "bedrock-runtime.us-east-1.amazonaws.com:443", "application/json", "", "Bedrock"),
        ("/own/path", "gateway:443", "application/json", "application/vnd.amazon.eventstream", "Bedrock"),
        (VERTEX, "us-east5-aiplatform.googleapis.com:443", "application/json", "text/event-stream", "Vertex"),
        ("/agent.v1.AgentService/Run", "api2.cursor.sh:443", "application/connect+proto", "", "Cursor"),
        ("/v1/messages/batches", "api.anthropic.com:443", "application/json", "application/json", "batch"),
        ("/v1/completions", "api.openai.com:443", "application/json", "text/event-stream", "old text completion"),
        ("/v1/novelty", "api.openai.com:443", "application/json", "text/event-stream", "neither its path"),
        ("/v1/novelty", "api.openai.com:443", "application/grpc", "application/grpc", "protobuf"),
        ("/api/event_logging/batch", "api.anthropic.com:443", "application/json", "application/json", None),
        ("/v1/embeddings", "api.openai.com:443", "application/json", "application/json", None),
    ],
)
def test_what_is_not_read_says_why(path: str, host: str, sent: str, got: str, says: str | None) -> None:
    base = exchange(path, b"{}", b"{}", headers=[("content-type", sent)], response_headers=[("content-type", got)])
    unread = replace(base, host=host)
    assert read_calls(unread) == []
    reason = why_unread(unread)
    assert (reason is None) if says is None else (reason is not None and says in reason)
    assert why_unread(replace(unread, method="GET")) is None or "eventstream" in got or "cursor" in host


def test_an_unknown_socket_says_why() -> None:
    frame = SocketMessage(at_ns=1, from_agent=True, data=b'{"type": "session.update"}')
    realtime = replace(exchange("/v1/realtime?model=m", b"", b"", method="GET", status=101), messages=(frame,))
    assert read_calls(realtime) == []
    assert "realtime" in (why_unread(realtime) or "")
    assert "no Responses frames" in (why_unread(replace(realtime, path="/v1/other")) or "")

"""Anthropic Messages: what the service does by itself, opaque thoughts, edited contexts, Claude Code's own words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capture.dialect import read_call
from tests.exchanges import MS, call, exchange, sse

REQUEST: dict[str, Any] = {
    "model": "claude-opus-4-8",
    "max_tokens": 1000,
    "stream": True,
    "messages": [{"role": "user", "content": "look it up"}],
    "tools": [{"type": "web_search_20260209", "name": "web_search"}, {"name": "Bash", "input_schema": {}}],
}
START = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "claude-opus-4-8", "usage": {"input_tokens": 10, "output_tokens": 1}},
}
SEARCH_RESULT = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [{"type": "web_search_result", "url": "https://example.org", "encrypted_content": "AAAA"}],
}


def block(index: int, opening: dict[str, Any], *deltas: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("content_block_start", {"type": "content_block_start", "index": index, "content_block": opening}),
        *(("content_block_delta", {"type": "content_block_delta", "index": index, "delta": one}) for one in deltas),
        ("content_block_stop", {"type": "content_block_stop", "index": index}),
    ]


def end(stop: str, **more: Any) -> list[tuple[str, Any]]:
    delta = {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 40}} | more
    return [("message_delta", delta), ("message_stop", {"type": "message_stop"})]


def stream(*parts: list[tuple[str, Any]]) -> list[bytes]:
    return sse(("message_start", START), ("ping", {"type": "ping"}), *(event for part in parts for event in part))


SEARCHES = stream(
    block(0, {"type": "redacted_thinking", "data": "b3BhcXVl"}),
    block(
        1,
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"query": "x"}'},
    ),
    block(2, SEARCH_RESULT),
    block(3, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Found."}),
    block(
        4,
        {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"command": "ls"}'},
    ),
    end("tool_use"),
)


def test_a_tool_of_the_service_is_no_call_of_the_agent() -> None:
    found = call("/v1/messages", REQUEST, SEARCHES)
    assert found.answer is not None
    assert [(use.id, use.name) for use in found.answer.tool_calls] == [("toolu_1", "Bash")]
    assert found.answer.content == "Found."
    assert found.answer.omitted_bytes > len("b3BhcXVl")
    assert found.notes == ("the service itself ran web_search",)
    assert found.answer.tool_calls[0].t_emitted_ns == (100 + 10 * 14) * MS
    # The opaque thought came first, then the service's call; text came after both.
    first = (found.t_first_thinking_ns, found.t_first_tool_call_ns, found.t_first_text_ns)
    assert first == (120 * MS, 140 * MS, 200 * MS)
    assert found.t_first_content_ns == 120 * MS


def test_a_live_answer_and_its_echo_are_one_message() -> None:
    live = call("/v1/messages", REQUEST, SEARCHES).answer
    echo = [
        {"type": "redacted_thinking", "data": "b3BhcXVl"},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
        SEARCH_RESULT,
        {"type": "text", "text": "Found."},
        {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
    ]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a"}]}
    messages = [*REQUEST["messages"], {"role": "assistant", "content": echo}, result]
    said = call("/v1/messages", REQUEST | {"messages": messages}, SEARCHES).messages[1]
    assert live is not None
    assert (said.content, said.omitted_bytes) == (live.content, live.omitted_bytes)
    assert [(use.id, use.arguments) for use in said.tool_calls] == [(use.id, use.arguments) for use in live.tool_calls]


def test_edits_of_the_context_are_noted_on_both_ways() -> None:
    asked = {"edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}]}
    done = {"type": "clear_tool_uses_20250919", "cleared_tool_uses": 8, "cleared_input_tokens": 50000}
    notes = (
        "context_management asks for clear_tool_uses_20250919",
        "context_management applied clear_tool_uses_20250919, cleared_tool_uses 8, cleared_input_tokens 50000",
    )
    request = REQUEST | {"context_management": asked}
    text = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "x"})
    edits = {"context_management": {"applied_edits": [done]}}
    assert call("/v1/messages", request, stream(text, end("end_turn", **edits))).notes == notes
    whole = {"id": "m", "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", **edits}
    assert call("/v1/messages", request | {"stream": False}, json.dumps(whole).encode()).notes == notes


@pytest.mark.parametrize(
    "stop", ["pause_turn", "refusal", "model_context_window_exceeded", "max_tokens", "stop_sequence", "compaction"]
)
def test_every_stop_is_kept_in_the_providers_word(stop: str) -> None:
    text = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "x"})
    found = call("/v1/messages", REQUEST, stream(text, end(stop)))
    assert (found.stop, found.complete, found.error) == (stop, True, None)


def test_an_error_within_a_good_stream_keeps_what_came() -> None:
    text = block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "half"})[:2]
    error = ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    found = call("/v1/messages", REQUEST, stream(text, [error]))
    assert (found.status, found.complete, found.error) == (200, False, "overloaded_error: Overloaded")
    assert found.answer is not None
    assert found.answer.content == "half"
    assert found.usage.output_total is None  # only a placeholder came


HINTS = [
    ("user-agent", "claude-cli/2.1.328 (external, cli)"),
    ("x-claude-code-session-id", "s"),
    ("x-claude-code-agent-id", "a"),
    ("x-claude-code-request-class", "subagent"),
    ("x-claude-code-agent-type", "Explore"),
    ("x-claude-code-novelty", "unknown headers are no trouble"),
    ("x-stainless-retry-count", "2"),
]


def test_claude_codes_own_words_are_kept() -> None:
    found = call("/v1/messages", REQUEST, SEARCHES, headers=HINTS)
    assert (found.request_class, found.agent_type, found.attempt) == ("subagent", "Explore", 2)
    assert (found.hints[0].session, found.hints[0].agent, found.kind) == ("s", "a", "turn")
    plain = call("/v1/messages", REQUEST, SEARCHES)
    assert (plain.request_class, plain.agent_type, plain.attempt, plain.context_generation) == (None,) * 4


@pytest.mark.parametrize(
    ("name", "kind"), [("main", "turn"), ("workflow", "turn"), ("auxiliary", "auxiliary"), ("compaction", "turn")]
)
def test_only_auxiliary_calls_are_no_turns(name: str, kind: str) -> None:
    found = call("/v1/messages", REQUEST, SEARCHES, headers=[("x-claude-code-request-class", name)])
    assert (found.request_class, found.kind) == (name, kind)


@pytest.mark.parametrize("count", ["", "x", "²", "-1", "9" * 30])
def test_a_count_of_attempts_that_is_none(count: str) -> None:
    assert call("/v1/messages", REQUEST, SEARCHES, headers=[("x-stainless-retry-count", count)]).attempt is None


def test_a_batch_is_no_call() -> None:
    body = {"requests": [{"custom_id": "1", "params": REQUEST}]}
    assert read_call(exchange("/v1/messages/batches", body, b'{"id": "msgbatch_1"}')) is None

"""Anthropic Messages, from the bytes that Claude Code and its service exchange."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import brotli
import pytest
import zstandard

from capture.call import Message, SessionHint, ToolUse
from capture.dialect import read_call, read_tool_durations
from capture.exchange import Gap
from tests.exchanges import MS, at_ms, call, exchange, sse

SESSION = "7f3c0d1e-1111-4222-8333-944455556666"
CLAUDE = [
    ("host", "api.anthropic.com"),
    ("user-agent", "claude-cli/2.1.283 (external, cli)"),
    ("anthropic-version", "2023-06-01"),
    ("x-claude-code-session-id", SESSION),
    ("content-type", "application/json"),
]
REQUEST: dict[str, Any] = {
    "model": "claude-opus-4-5-20251101",
    "max_tokens": 32000,
    "temperature": 1,
    "stream": True,
    "metadata": {"user_id": f"user_0a1b_account_2c3d_session_{SESSION}"},
    "thinking": {"type": "enabled", "budget_tokens": 31999},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.283; cch=8f1a2;"},
        {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Work in /repo."},
    ],
    "tools": [{"name": "Bash", "description": "Run a command", "input_schema": {"type": "object"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>today</system-reminder>"},
                {"type": "text", "text": "Run the tests.", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Let me see.", "signature": "EqQB"},
                {"type": "text", "text": "I run them."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "make test", "timeout": 5}},
                {"type": "tool_use", "id": "toolu_2", "name": "Bash", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2 failed", "is_error": True},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [
                        {"type": "text", "text": "seen"},
                        {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
                    ],
                },
                {"type": "text", "text": "Only the first, please."},
            ],
        },
    ],
}


def start(**usage: int) -> tuple[str, Any]:
    message = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-5-20251101",
        "content": [],
        "stop_reason": None,
        "usage": usage,
    }
    return "message_start", {"type": "message_start", "message": message}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any], stop: bool = True) -> list[tuple[str, Any]]:
    events: list[tuple[str, Any]] = [
        ("content_block_start", {"type": "content_block_start", "index": index, "content_block": content})
    ]
    events += [
        ("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas
    ]
    if stop:
        events.append(("content_block_stop", {"type": "content_block_stop", "index": index}))
    return events


THINKING = block(
    0,
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "Read it "},
    {"type": "thinking_delta", "thinking": "first."},
    {"type": "signature_delta", "signature": "EqQBCkYI"},
)
TEXT = block(
    1,
    {"type": "text", "text": ""},
    {"type": "text_delta", "text": "Wird "},
    {"type": "text_delta", "text": "gemacht 🙂"},
)
TOOLS = block(
    2,
    {"type": "tool_use", "id": "toolu_3", "name": "Bash", "input": {}},
    {"type": "input_json_delta", "partial_json": ""},
    {"type": "input_json_delta", "partial_json": '{"command": "cat a'},
    {"type": "input_json_delta", "partial_json": '.py", "timeout": 5}'},
) + block(3, {"type": "tool_use", "id": "toolu_4", "name": "Bash", "input": {}})
END = [
    (
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "input_tokens": 10,
                "cache_creation_input_tokens": 200,
                "cache_read_input_tokens": 3000,
                "output_tokens": 87,
            },
        },
    ),
    ("message_stop", {"type": "message_stop"}),
]
STREAM = sse(
    start(input_tokens=10, cache_creation_input_tokens=200, cache_read_input_tokens=3000, output_tokens=1),
    ("ping", {"type": "ping"}),
    *THINKING,
    *TEXT,
    *TOOLS,
    *END,
)


def test_a_request_becomes_chat_messages() -> None:
    found = call("/v1/messages?beta=true", REQUEST, STREAM, headers=CLAUDE)
    assert (found.api, found.harness, found.harness_version) == ("anthropic.messages", "claude-code", "2.1.283")
    assert (found.model, found.stream, found.max_tokens, found.temperature) == (REQUEST["model"], True, 32000, 1.0)
    assert found.effort == "budget:31999"
    assert found.messages == (
        Message(role="system", content="You are Claude Code.\nWork in /repo."),
        Message(role="user", content="<system-reminder>today</system-reminder>\nRun the tests."),
        Message(
            role="assistant",
            content="I run them.",
            reasoning_content="Let me see.",
            tool_calls=(
                ToolUse(id="toolu_1", name="Bash", arguments='{"command":"make test","timeout":5}'),
                ToolUse(id="toolu_2", name="Bash", arguments="{}"),
            ),
            omitted_bytes=4,
        ),
        Message(role="tool", content="2 failed", tool_call_id="toolu_1", is_error=True),
        Message(role="tool", content="seen", tool_call_id="toolu_2", omitted_bytes=57),
        Message(role="user", content="Only the first, please."),
    )
    assert found.system == found.messages[:1]
    assert [(tool.name, tool.parameters) for tool in found.tools] == [("Bash", '{"type":"object"}')]
    assert found.notes == ()


def test_a_stream_becomes_an_answer_with_its_times() -> None:
    found = call("/v1/messages", REQUEST, STREAM, headers=CLAUDE, first_ms=100, step_ms=10)
    assert found.answer == Message(
        role="assistant",
        content="Wird gemacht 🙂",
        reasoning_content="Read it first.",
        tool_calls=(
            ToolUse(
                id="toolu_3", name="Bash", arguments='{"command":"cat a.py","timeout":5}', t_emitted_ns=(100 + 150) * MS
            ),
            ToolUse(id="toolu_4", name="Bash", arguments="{}", t_emitted_ns=(100 + 170) * MS),
        ),
        omitted_bytes=8,
    )
    assert (found.stop, found.response_id, found.complete, found.error) == ("tool_use", "msg_01", True, None)
    # Start, ping and block start come first; an empty fragment, a signature and a block's end are no content.
    assert at_ms(found, found.t_first_byte_ns) == 100
    assert at_ms(found, found.t_first_content_ns) == 130
    assert [at_ms(found, at) for at in found.content_at_ns] == [130, 140, 180, 190, 210, 230, 240, 260]
    assert at_ms(found, found.t_end_ns) == 290
    assert found.events == len(STREAM)


def test_usage_is_cumulative_and_leaves_the_cache_out() -> None:
    usage = call("/v1/messages", REQUEST, STREAM, headers=CLAUDE).usage
    assert (usage.input_total, usage.cache_read, usage.cache_write) == (3210, 3000, 200)
    assert (usage.output_total, usage.reasoning) == (87, None)
    assert json.loads(usage.raw or "")["output_tokens"] == 87


def test_the_placeholder_of_a_cut_stream_is_no_count() -> None:
    stream = sse(start(input_tokens=3, output_tokens=1), *TEXT[:2])
    usage = call("/v1/messages", REQUEST, stream, outcome="upstream_cut").usage
    assert (usage.input_total, usage.output_total) == (3, None)
    assert json.loads(usage.raw or "")["output_tokens"] == 1


def test_usage_that_never_came_is_unknown() -> None:
    usage = call("/v1/messages", REQUEST, sse(start(), *TEXT, ("message_stop", {"type": "message_stop"}))).usage
    assert (usage.input_total, usage.cache_read, usage.output_total, usage.raw) == (None, None, None, None)


@pytest.mark.parametrize("pieces", ["one", "bytes"])
@pytest.mark.parametrize("coding", ["", "gzip", "deflate", "raw deflate", "br", "zstd", "zstd, gzip"])
def test_encodings_are_undone_on_both_ways(coding: str, pieces: str) -> None:
    encode = {
        "": lambda data: data,
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "raw deflate": lambda data: zlib.compress(data)[2:-4],
        "br": brotli.compress,
        "zstd": zstandard.compress,
        "zstd, gzip": lambda data: gzip.compress(zstandard.compress(data)),
    }[coding]
    header = [("content-encoding", coding.removeprefix("raw "))] if coding else []
    sent = encode(json.dumps(REQUEST).encode())
    received = encode(b"".join(STREAM))
    answer = [received] if pieces == "one" else [received[at : at + 1] for at in range(len(received))]
    found = call(
        "/v1/messages",
        sent,
        answer,
        headers=[*CLAUDE, *header],
        response_headers=[("content-type", "text/event-stream; charset=utf-8"), *header],
    )
    plain = call("/v1/messages", REQUEST, STREAM, headers=CLAUDE)
    assert found.messages == plain.messages
    assert found.answer is not None
    assert found.answer.content == "Wird gemacht 🙂"
    assert (found.complete, found.notes, found.usage) == (True, (), plain.usage)
    assert (found.bytes_up, found.bytes_down) == (len(sent), len(received))


def test_times_stay_per_read_under_compression() -> None:
    compressor = zlib.compressobj(wbits=31)
    pieces = [compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH) for event in STREAM]
    pieces[-1] += compressor.flush()
    header = [("content-type", "text/event-stream"), ("content-encoding", "gzip")]
    found = call("/v1/messages", REQUEST, pieces, response_headers=header)
    assert found.content_at_ns == call("/v1/messages", REQUEST, STREAM).content_at_ns


def test_an_answer_in_one_piece() -> None:
    body = {
        "id": "msg_9",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": "end_turn",
        "content": [
            {"type": "text", "text": "Done."},
            {"type": "tool_use", "id": "t", "name": "Read", "input": {"p": 1}},
        ],
        "usage": {"input_tokens": 5, "output_tokens": 7},
    }
    found = call("/v1/messages", REQUEST | {"stream": False}, json.dumps(body).encode(), first_ms=400)
    assert (found.complete, found.stop, found.stream) == (True, "end_turn", False)
    assert found.answer is not None
    assert found.answer.content == "Done."
    assert at_ms(found, found.answer.tool_calls[0].t_emitted_ns) == 400
    assert (found.usage.input_total, found.usage.cache_read, found.usage.output_total) == (5, None, 7)


def test_an_error_event_after_status_200() -> None:
    error = ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    found = call("/v1/messages", REQUEST, sse(start(input_tokens=3), *TEXT[:2], error))
    assert (found.status, found.complete, found.error) == (200, False, "overloaded_error: Overloaded")
    assert found.answer is not None
    assert found.answer.content == "Wird "


def test_a_refused_request() -> None:
    body = json.dumps({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}).encode()
    found = call("/v1/messages", REQUEST, body, status=429)
    assert (found.status, found.complete, found.error, found.answer) == (
        429,
        False,
        "rate_limit_error: slow down",
        None,
    )


@pytest.mark.parametrize("size", [10, 400, 900, 1500])
def test_a_stream_cut_anywhere_keeps_what_came(size: int) -> None:
    whole = b"".join(STREAM)
    found = call("/v1/messages", REQUEST, [whole[:size]], outcome="upstream_cut", error="peer closed the connection")
    assert (found.complete, found.error) == (False, "peer closed the connection")
    assert found.messages
    assert (found.answer is None) == (size < 500)


def test_a_tool_call_that_was_cut_is_left_out_as_its_agent_does() -> None:
    found = call("/v1/messages", REQUEST, sse(start(), *TOOLS[:3]), outcome="client_aborted")
    assert found.answer is None  # nothing but the cut call came
    assert found.notes == ("a call of Bash was cut and is left out",)
    assert found.t_first_tool_call_ns is not None  # it came, all the same
    assert (found.complete, found.error) == (False, "client_aborted")


def test_nothing_came() -> None:
    found = call("/v1/messages", REQUEST, status=None, outcome="upstream_refused", error="connection refused")
    assert (found.answer, found.complete, found.error) == (None, False, "connection refused")
    assert found.t_first_byte_ns is None


def test_a_killed_recorder_leaves_the_end_unknown() -> None:
    found = call("/v1/messages", REQUEST, STREAM[:6], outcome="open")
    assert (found.complete, found.t_end_ns, found.error) == (False, None, "open")
    assert found.answer is not None


def test_recorder_gaps_are_counted() -> None:
    from dataclasses import replace

    gap = Gap(at_ns=5, kind="queue_full", lost_bytes=None)
    found = read_call(replace(exchange("/v1/messages", REQUEST, STREAM), gaps=(gap,)))
    assert found is not None
    assert found.gaps == 1


HINTS: dict[str, tuple[list[tuple[str, str]], str, tuple[SessionHint, ...]]] = {
    "header and old user id": (
        [("x-claude-code-session-id", "s-1")],
        "user_x_account_y_session_aaaa-bbbb-cccc",
        (
            SessionHint(session="s-1", evidence="header"),
            SessionHint(session="aaaa-bbbb-cccc", evidence="body"),
        ),
    ),
    "a sub-agent by header": (
        [
            ("x-claude-code-session-id", "s-1"),
            ("x-claude-code-agent-id", "a-2"),
            ("x-claude-code-parent-agent-id", "a-1"),
        ],
        "",
        (SessionHint(session="s-1", evidence="header", agent="a-2", parent_agent="a-1"),),
    ),
    "new user id": (
        [],
        json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s-3"}),
        (SessionHint(session="s-3", evidence="body"),),
    ),
    "new user id of a sub-session": (
        [],
        json.dumps({"session_id": "s-4", "parent_session_id": "s-3"}),
        (SessionHint(session="s-3", evidence="body", agent="s-4"),),
    ),
    "no id": ([], "user-7", ()),
    "a broken id": ([], '{"session_id": "s', ()),
}


@pytest.mark.parametrize(("headers", "user_id", "hints"), HINTS.values(), ids=HINTS.keys())
def test_session_hints(headers: list[tuple[str, str]], user_id: str, hints: tuple[SessionHint, ...]) -> None:
    request = REQUEST | {"metadata": {"user_id": user_id}}
    assert call("/v1/messages", request, STREAM, headers=headers).hints == hints


@pytest.mark.parametrize(
    ("path", "change", "headers"),
    [
        ("/v1/messages/count_tokens?beta=true", {}, []),
        ("/v1/messages", {"max_tokens": 1, "tools": []}, []),
        ("/v1/messages", {}, [("x-claude-code-request-class", "auxiliary")]),
        ("/v1/messages", {"tools": [], "system": "You are a title generator. You output only a thread title."}, []),
    ],
    ids=["count_tokens", "quota probe", "says so", "title"],
)
def test_auxiliary_calls(path: str, change: dict[str, Any], headers: list[tuple[str, str]]) -> None:
    assert call(path, REQUEST | change, json.dumps({"input_tokens": 7}).encode(), headers=headers).kind == "auxiliary"
    assert call("/v1/messages", REQUEST, STREAM, headers=CLAUDE).kind == "turn"


def test_hint_headers_of_claude_code() -> None:
    headers = [
        ("x-claude-code-prev-tool-durations", "Bash=742;mcp__my%20server__go=9;odd;=3;Read=x"),
        ("x-claude-code-compaction", "auto"),
        ("x-claude-code-context-compacted", "1"),
    ]
    found = call("/v1/messages", REQUEST, STREAM, headers=headers)
    assert found.tool_durations_ms == (("Bash", 742), ("mcp__my server__go", 9))
    assert (found.compaction, found.context_compacted) == ("auto", True)
    assert read_tool_durations(None) == ()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", b""),
        ("HEAD", "/api/hello", b""),
        ("POST", "/api/event_logging/batch", b'{"events": []}'),
        ("POST", "/oauth/token", b"grant_type=x"),
        ("GET", "/v1/messages", b""),
    ],
)
def test_other_traffic_is_no_model_call(method: str, path: str, body: bytes) -> None:
    assert read_call(exchange(path, body, b"{}", method=method)) is None


@pytest.mark.parametrize(
    ("body", "answer", "kind"),
    [
        (b"", b"", "empty"),
        (b"\xff\x00garbage", b"\x00\xff", "no JSON"),
        (b"[1, 2]", b"[]", "no JSON object"),
        (b'{"messages": 3, "system": {"a": 1}, "tools": "x", "metadata": []}', b'{"content": 5}', ""),
        (
            b'{"messages": [null, 3, {"role": 7, "content": {"x": 1}}, {"content": [1, null, {"type": []}]}]}',
            b"null",
            "",
        ),
        (b"[" * 100_000, b"{" * 100_000, "no JSON"),
    ],
    ids=["empty", "binary", "arrays", "wrong types", "wrong messages", "deep"],
)
def test_garbage_becomes_a_note(body: bytes, answer: bytes, kind: str) -> None:
    for streamed in (answer, [answer]):
        found = call("/v1/messages", body, streamed)
        assert kind in " ".join(found.notes)
        assert not found.complete or "content" in answer.decode("latin-1")


def test_lone_surrogates_do_not_reach_a_file() -> None:
    request = json.dumps(REQUEST | {"messages": [{"role": "user", "content": "cut \ud83d"}]}).encode()
    found = call("/v1/messages", request, STREAM)
    assert found.messages[-1].content == "cut \ufffd"
    assert found.messages[-1].content.encode()

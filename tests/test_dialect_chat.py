"""OpenAI Chat Completions, as vLLM, llama.cpp, litellm, pi and mini-swe-agent speak it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from capture.call import Message, SessionHint, ToolUse
from capture.dialect import read_call
from tests.exchanges import MS, at_ms, call, exchange, sse

REQUEST: dict[str, Any] = {
    "model": "qwen3-coder",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_completion_tokens": 4096,
    "temperature": 0.2,
    "reasoning_effort": "high",
    "prompt_cache_key": "conversation-1",
    "messages": [
        {"role": "system", "content": "You are operating inside pi, a coding agent harness."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "List it."}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "ls will do",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "name": "bash", "content": "a.py\n"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "bash", "description": "Run", "parameters": {"type": "object"}}}
    ],
}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> tuple[None, dict[str, Any]]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return None, {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "qwen3-coder",
        "choices": choices,
    } | more


def arguments(index: int, text: str, **more: Any) -> tuple[None, dict[str, Any]]:
    return chunk({"tool_calls": [{"index": index, "function": {"arguments": text}} | more]})


USAGE = {
    "prompt_tokens": 900,
    "completion_tokens": 40,
    "total_tokens": 940,
    "prompt_tokens_details": {"cached_tokens": 832},
    "completion_tokens_details": {"reasoning_tokens": 12},
}
STREAM = sse(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Look "}),
    chunk({"reasoning_content": "inside."}),
    chunk({"content": "Hier: "}),
    chunk({"content": "ä"}),
    chunk(
        {
            "tool_calls": [
                {"index": 0, "id": "call_2", "type": "function", "function": {"name": "bash", "arguments": ""}}
            ]
        }
    ),
    arguments(0, '{"command":'),
    arguments(0, ' "cat a.py"}'),
    chunk(
        {
            "tool_calls": [
                {"index": 1, "id": "call_3", "type": "function", "function": {"name": "read", "arguments": "{}"}}
            ]
        }
    ),
    chunk({}, "tool_calls"),
    chunk(None, usage=USAGE),
    (None, "[DONE]"),
)


def test_a_request() -> None:
    found = call("/v1/chat/completions", REQUEST, STREAM)
    assert (found.api, found.harness, found.max_tokens, found.effort) == ("openai.chat", "pi", 4096, "high")
    assert found.messages == (
        Message(role="system", content="You are operating inside pi, a coding agent harness."),
        Message(role="user", content="List it.", omitted_bytes=44),
        Message(
            role="assistant",
            content="",
            reasoning_content="ls will do",
            tool_calls=(ToolUse(id="call_1", name="bash", arguments='{"command": "ls"}'),),
        ),
        Message(role="tool", content="a.py\n", name="bash", tool_call_id="call_1"),
    )
    assert found.hints == (SessionHint(session="conversation-1", evidence="body", cache_key=True),)
    assert found.tools[0].parameters == '{"type":"object"}'


def test_a_stream() -> None:
    found = call("/v1/chat/completions", REQUEST, STREAM)
    assert found.answer == Message(
        role="assistant",
        content="Hier: ä",
        reasoning_content="Look inside.",
        tool_calls=(
            ToolUse(id="call_2", name="bash", arguments='{"command": "cat a.py"}', t_emitted_ns=170 * MS),
            ToolUse(id="call_3", name="read", arguments="{}", t_emitted_ns=180 * MS),
        ),
    )
    assert (found.stop, found.complete, found.error, found.response_id) == ("tool_calls", True, None, "chatcmpl-1")
    assert [at_ms(found, at) for at in found.content_at_ns] == [110, 120, 130, 140, 150, 160, 170, 180]
    usage = found.usage
    assert (usage.input_total, usage.cache_read, usage.cache_write) == (900, 832, None)
    assert (usage.output_total, usage.reasoning) == (40, 12)


def test_one_piece_without_streaming() -> None:
    body = {
        "id": "chatcmpl-2",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {"role": "assistant", "content": "ok", "tool_calls": REQUEST["messages"][2]["tool_calls"]},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    found = call("/api/v1/chat/completions", REQUEST | {"stream": False}, json.dumps(body).encode(), first_ms=250)
    assert (found.complete, found.stop, found.usage.output_total, found.usage.cache_read) == (
        True,
        "tool_calls",
        4,
        None,
    )
    assert found.answer is not None
    assert at_ms(found, found.answer.tool_calls[0].t_emitted_ns) == 250


@pytest.mark.parametrize(
    ("events", "complete", "error"),
    [
        (STREAM, True, None),
        (STREAM[:-1], True, None),
        (STREAM[:-2], True, None),
        (STREAM[:-3], False, "the answer ended before its own end"),
        (
            sse(chunk({"content": "a"}), (None, {"error": {"message": "CUDA out of memory", "code": 500}})),
            False,
            "CUDA out of memory",
        ),
        ([*STREAM[:-1], b"data: [DONE]"], True, None),
        ([*STREAM[:-3], b'data: {"choices": [{"ind'], False, "the answer ended before its own end"),
    ],
    ids=["whole", "no [DONE]", "no usage either", "no finish reason", "an error frame", "no line end", "cut in JSON"],
)
def test_ends(events: list[bytes], complete: bool, error: str | None) -> None:
    found = call("/v1/chat/completions", REQUEST, events)
    assert (found.complete, found.error) == (complete, error)
    assert found.answer is not None


def test_missing_usage_is_unknown() -> None:
    usage = call("/v1/chat/completions", REQUEST, STREAM[:-2]).usage
    assert (usage.input_total, usage.output_total, usage.cache_read) == (None, None, None)


def test_the_other_vendor_word_for_thoughts() -> None:
    stream = sse(chunk({"reasoning": "a"}), chunk({"reasoning": "b", "reasoning_content": "b"}), chunk({}, "stop"))
    answer = call("/v1/chat/completions", REQUEST, stream).answer
    assert answer is not None
    assert answer.reasoning_content == "ab"


def test_calls_without_an_index_and_whole() -> None:
    one = {"id": "x", "type": "function", "function": {"name": "a", "arguments": '{"n":1}'}}
    two = {"id": "y", "type": "function", "function": {"name": "b", "arguments": {"n": 2}}}
    stream = sse(chunk({"tool_calls": [one]}), chunk({"tool_calls": [two]}), chunk({}, "stop"))
    answer = call("/v1/chat/completions", REQUEST, stream).answer
    assert answer is not None
    assert [(use.id, use.arguments) for use in answer.tool_calls] == [("x", '{"n":1}'), ("y", '{"n":2}')]


def test_only_the_first_choice_is_the_answer() -> None:
    second = (None, {"choices": [{"index": 1, "delta": {"content": "other"}}]})
    answer = call("/v1/chat/completions", REQUEST, sse(chunk({"content": "one"}), second, chunk({}, "stop"))).answer
    assert answer is not None
    assert answer.content == "one"


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ([("x-session-id", "s1")], SessionHint(session="s1", evidence="header")),
        (
            [("x-session-id", "s2"), ("x-parent-session-id", "s1")],
            SessionHint(session="s1", evidence="header", agent="s2"),
        ),
        ([("x-session-affinity", "s3")], SessionHint(session="s3", evidence="header")),
    ],
)
def test_hints_of_headers_come_first(headers: list[tuple[str, str]], hint: SessionHint) -> None:
    found = call("/v1/chat/completions", REQUEST, STREAM, headers=headers)
    assert found.hints == (hint, SessionHint(session="conversation-1", evidence="body", cache_key=True))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("user-agent", "opencode/1.18.18 ai-sdk/provider-utils/4")], ("opencode", "1.18.18")),
        ([("user-agent", "pi/0.55.1 (linux 6.8; x64)")], ("pi", "0.55.1")),
        ([("user-agent", "codex_cli_rs/0.140.0 (Ubuntu 24.4)")], ("codex", "0.140.0")),
        ([("user-agent", "codex_exec/0.140.0 (x)"), ("originator", "codex_exec")], ("codex", "0.140.0")),
        ([("user-agent", "OpenAI/JS 6.1"), ("originator", "codex_vscode"), ("version", "1")], ("codex", "1")),
        ([("user-agent", "mini-swe-agent/2.4.6")], ("mini-swe-agent", "2.4.6")),
        ([("user-agent", "OpenAI/Python 3.51.0")], ("pi", None)),
        ([], ("pi", None)),
    ],
)
def test_which_agent_called(headers: list[tuple[str, str]], expected: tuple[str, str | None]) -> None:
    found = call("/v1/chat/completions", REQUEST, STREAM, headers=headers)
    assert (found.harness, found.harness_version) == expected


def test_a_path_of_a_gateways_own() -> None:
    assert call("/openai/deployments/x/generate", REQUEST, STREAM).api == "openai.chat"


def test_mistrals_content_in_parts() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]}
    pieces = [
        chunk({"role": "assistant", "content": [thought]}),
        chunk({"content": [{"type": "text", "text": "Hel"}]}),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
    ]
    wanted = Message(role="assistant", content="Hello", reasoning_content="Let me see.")
    live = call("/v1/chat/completions", REQUEST, sse(*pieces))
    assert live.answer == wanted
    assert (live.t_first_thinking_ns, live.t_first_text_ns) == (100 * MS, 110 * MS)
    echo = {"role": "assistant", "content": [thought, {"type": "text", "text": "Hello"}]}
    assert call("/v1/chat/completions", REQUEST | {"messages": [echo]}, b"{}").messages == (wanted,)


def test_calls_that_are_all_numbered_0() -> None:
    def part(name: str, call_id: str, text: str) -> dict[str, Any]:
        return {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": text}}

    stream = sse(
        chunk({"tool_calls": [part("a", "x", '{"n":'), {"index": 0, "function": {"arguments": "1}"}}]}),
        chunk({"tool_calls": [part("a", "y", '{"n":')]}),
        chunk({"tool_calls": [part("", "z", "2}")]}),  # another id on a mere fragment begins nothing
        chunk({}, "tool_calls"),
    )
    answer = call("/v1/chat/completions", REQUEST, stream).answer
    assert answer is not None
    assert [(use.id, use.arguments) for use in answer.tool_calls] == [("x", '{"n":1}'), ("y", '{"n":2}')]


@pytest.mark.parametrize("place", ["choice", "x_groq"])
def test_usage_at_other_places(place: str) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "cached_tokens": 4}
    last = chunk({}, "stop", x_groq={"id": "r", "usage": usage}) if place == "x_groq" else chunk({}, "stop")
    if place == "choice":
        last[1]["choices"][0]["usage"] = usage
    found = call("/v1/chat/completions", REQUEST, sse(chunk({"content": "a"}), last)).usage
    assert (found.input_total, found.cache_read, found.output_total) == (7, 4, 2)


def test_an_error_inside_a_choice() -> None:
    broken = chunk({"content": ""}, "error")
    broken[1]["choices"][0]["error"] = {"code": 502, "message": "provider hung up"}
    found = call("/v1/chat/completions", REQUEST, sse(chunk({"content": "a"}), broken, (None, "[DONE]")))
    assert (found.complete, found.error) == (False, "provider hung up")


@pytest.mark.parametrize("count", [10**30, 2**63, 1e300])
def test_counts_that_no_file_holds_are_unknown(count: float) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 2}
    found = call(
        "/v1/chat/completions", REQUEST | {"max_completion_tokens": count}, sse(chunk({}, "stop", usage=usage))
    )
    assert (found.usage.input_total, found.usage.output_total, found.max_tokens) == (None, 2, None)


@pytest.mark.parametrize(
    ("user_agent", "launched", "expected"),
    [
        ("litellm/1.99.0", ("mini-swe-agent", "2.4.5"), ("mini-swe-agent", "2.4.5")),
        ("litellm/1.99.0", ("mini-swe-agent", None), ("mini-swe-agent", None)),
        ("litellm/1.99.0", (None, None), ("unknown", None)),
        ("Aider/0.86", ("claude-code", "2.1"), ("aider", "0.86")),  # started by the agent: the wire knows better
        ("gemini-cli", ("gemini-cli", "0.33"), ("gemini-cli", "0.33")),
    ],
)
def test_where_the_wire_names_no_agent_the_launched_one_is_meant(
    user_agent: str, launched: tuple[str | None, str | None], expected: tuple[str, str | None]
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    recorded = exchange("/v1/chat/completions", body, b"{}", headers=[("user-agent", user_agent)])
    found = read_call(replace(recorded, agent=launched[0], agent_version=launched[1]))
    assert found is not None
    assert (found.harness, found.harness_version) == expected

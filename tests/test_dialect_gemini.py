"""Gemini: streamed as events or as one growing array, whole, wrapped by Code Assist, counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capture.call import Message, ModelCall, SessionHint, Tool, ToolUse
from capture.dialect import read_calls
from capture.dialects.reading import with_call_ids
from capture.json_array import JsonArrayParser
from capture.script import Script, ScriptedCall, ScriptedUsage, Step
from capture.scripted import ScriptedServer
from tests.exchanges import MS, call, exchange, sse
from tests.test_scripted import finished, post

SIGNATURE = "c2lnbmF0dXJl"
REQUEST: dict[str, Any] = {
    "systemInstruction": {"role": "user", "parts": [{"text": "You are Gemini CLI."}, {"text": "Be brief."}]},
    "contents": [
        {"role": "user", "parts": [{"text": "look"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
        {"role": "model", "parts": [{"text": "I need ", "thought": True}, {"text": "I lo"}]},
        {
            "role": "model",
            "parts": [
                {"text": "ok."},
                {"functionCall": {"name": "ls", "args": {"path": "."}}, "thoughtSignature": SIGNATURE},
                {"functionCall": {"name": "read", "args": {"path": "a"}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "read-1", "name": "read", "response": {"error": "no such file"}}},
                {"functionResponse": {"id": "ls-1", "name": "ls", "response": {"output": "a.py"}}},
                {"text": "and now?"},
            ],
        },
    ],
    "tools": [
        {"functionDeclarations": [{"name": "ls", "description": "Lists", "parametersJsonSchema": {"type": "object"}}]},
        {"googleSearch": {}},
    ],
    "generationConfig": {
        "temperature": 0.5,
        "maxOutputTokens": 900,
        "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 8192},
    },
}
USAGE = {
    "promptTokenCount": 1000,
    "cachedContentTokenCount": 600,
    "toolUsePromptTokenCount": 50,
    "candidatesTokenCount": 30,
    "thoughtsTokenCount": 20,
    "totalTokenCount": 1100,
}
PATH = "/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse"


def chunk(*parts: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": USAGE if finish else {"promptTokenCount": 1000},
        "modelVersion": "gemini-3-pro-001",
        "responseId": "resp-1",
    }


CHUNKS = (
    chunk({"text": "**Plan** ", "thought": True}),
    chunk({"text": "I will "}),
    chunk({"text": "run it."}),
    chunk({"functionCall": {"name": "ls", "args": {"path": "."}}, "thoughtSignature": SIGNATURE}),
    chunk({"functionCall": {"id": "own", "name": "run", "args": {"cmd": "x"}}}),
    chunk({"text": ""}, finish="STOP"),
)
STREAM = sse(*((None, one) for one in CHUNKS))
ARRAY = [b"[", *((b",\r\n" if number else b"") + json.dumps(one).encode() for number, one in enumerate(CHUNKS)), b"]"]


def unnamed(name: str, arguments: str, before: int = 0) -> str:
    """The id that a call without one gets after `before` equal ones."""
    asked = Message(
        role="assistant", content="", tool_calls=(ToolUse(id="", name=name, arguments=arguments),) * (before + 1)
    )
    named = with_call_ids((asked,), None)[0][0]
    return named.tool_calls[-1].id


def test_a_request() -> None:
    found = call(PATH, REQUEST, STREAM)
    assert (found.api, found.model, found.stream) == ("google.gemini", "gemini-3-pro", True)
    ls, read = unnamed("ls", '{"path":"."}'), unnamed("read", '{"path":"a"}')
    assert found.messages == (
        Message(role="system", content="You are Gemini CLI.\nBe brief."),
        Message(role="user", content="look", omitted_bytes=found.messages[1].omitted_bytes),
        Message(
            role="assistant",
            content="I look.",
            reasoning_content="I need ",
            tool_calls=(
                ToolUse(id=ls, name="ls", arguments='{"path":"."}'),
                ToolUse(id=read, name="read", arguments='{"path":"a"}'),
            ),
            omitted_bytes=len(SIGNATURE),
        ),
        Message(role="tool", content="no such file", name="read", tool_call_id=read, is_error=True),
        Message(role="tool", content="a.py", name="ls", tool_call_id=ls),
        Message(role="user", content="and now?"),
    )
    assert found.messages[1].omitted_bytes > 0
    assert found.tools == (
        Tool(name="ls", description="Lists", parameters='{"type":"object"}'),
        Tool(name="googleSearch", description="", parameters="{}"),
    )
    assert (found.max_tokens, found.temperature, found.effort) == (900, 0.5, "budget:8192")
    assert (found.system, found.hints) == (found.messages[:1], ())


@pytest.mark.parametrize("form", ["events", "array"])
def test_a_streamed_answer_in_either_form(form: str) -> None:
    if form == "events":
        found = call(PATH, REQUEST, STREAM)
    else:
        json_type = [("content-type", "application/json; charset=UTF-8")]
        found = call(PATH.partition("?")[0], REQUEST, ARRAY, response_headers=json_type, first_ms=90)
    assert found.answer is not None
    assert (found.answer.content, found.answer.reasoning_content) == ("I will run it.", "**Plan** ")
    again = unnamed("ls", '{"path":"."}', before=1)  # the prompt holds the same call once
    assert [(use.id, use.name, use.arguments) for use in found.answer.tool_calls] == [
        (again, "ls", '{"path":"."}'),
        ("own", "run", '{"cmd":"x"}'),
    ]
    assert (found.stop, found.complete, found.error, found.response_id) == ("STOP", True, None, "resp-1")
    usage = found.usage
    assert (usage.input_total, usage.cache_read, usage.output_total, usage.reasoning) == (1050, 600, 50, 20)
    assert usage.cache_write is None
    times = (found.t_first_thinking_ns, found.t_first_text_ns, found.t_first_tool_call_ns)
    assert times == (100 * MS, 110 * MS, 130 * MS)
    assert [use.t_emitted_ns for use in found.answer.tool_calls] == [130 * MS, 140 * MS]
    assert (found.t_first_content_ns, found.t_last_content_ns, len(found.content_at_ns)) == (100 * MS, 140 * MS, 5)
    assert (found.events, found.transport) == (6, "sse" if form == "events" else "http")


def test_an_answer_and_its_echo_have_the_same_ids() -> None:
    first = call(PATH, REQUEST, STREAM)
    echo = [part for one in CHUNKS for part in one["candidates"][0]["content"]["parts"]]
    results = [
        {"functionResponse": {"id": "client-made", "name": "ls", "response": {"output": "b"}}},
        {"functionResponse": {"id": "own", "name": "run", "response": {"a": 1}}},
    ]
    contents = [*REQUEST["contents"], {"role": "model", "parts": echo}, {"role": "user", "parts": results}]
    second = call(PATH, REQUEST | {"contents": contents}, STREAM)
    assert first.answer is not None
    asked = [use.id for use in first.answer.tool_calls]
    assert [use.id for use in second.messages[-3].tool_calls] == asked
    assert [message.tool_call_id for message in second.messages[-2:]] == asked
    assert second.messages[-1].content == '{"a":1}'


def test_ids_that_gemini_cli_makes_up_are_none() -> None:
    live = call(PATH, REQUEST | {"contents": REQUEST["contents"][:1]}, STREAM).answer
    made = "ls_1795170848255_0"
    asked = {"functionCall": {"id": made, "args": {"path": "."}, "name": "ls"}, "thoughtSignature": SIGNATURE}
    result = {"functionResponse": {"id": made, "name": "ls", "response": {"output": "a.py"}}}
    contents = [
        REQUEST["contents"][0],
        {"role": "model", "parts": [{"text": "I will run it."}, asked]},
        {"role": "user", "parts": [result]},
    ]
    echo = call(PATH, REQUEST | {"contents": contents}, STREAM).messages
    assert live is not None
    assert echo[-2].tool_calls[0].id == echo[-1].tool_call_id == live.tool_calls[0].id


def test_code_assist_wraps_both_halves_and_names_the_session() -> None:
    wrapped = {
        "model": "gemini-3-pro",
        "project": "p",
        "user_prompt_id": "session-9########2",
        "request": REQUEST | {"session_id": "session-9"},
    }
    stream = sse(*((None, {"response": one, "traceId": "t"}) for one in CHUNKS))
    agent = [("user-agent", "GeminiCLI/0.33.1/gemini-3-pro (linux; x64)")]
    found = call("/v1internal:streamGenerateContent?alt=sse", wrapped, stream, headers=agent)
    assert found.hints == (SessionHint(session="session-9", evidence="body"),)
    assert (found.model, found.harness, found.harness_version) == ("gemini-3-pro", "gemini-cli", "0.33.1")
    assert found.answer == call(PATH, REQUEST, STREAM).answer
    assert found.usage.input_total == 1050
    assert len(found.messages) == 6


@pytest.mark.parametrize(
    ("last", "stop", "complete"),
    [
        (chunk({"text": "x"}, finish="MAX_TOKENS"), "MAX_TOKENS", True),
        (chunk(finish="MALFORMED_FUNCTION_CALL"), "MALFORMED_FUNCTION_CALL", True),
        ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {}}, "PROHIBITED_CONTENT", True),
        (chunk({"text": "x"}), None, False),
    ],
)
def test_how_an_answer_may_end(last: dict[str, Any], stop: str | None, complete: bool) -> None:
    found = call(PATH, REQUEST, sse((None, last)))
    assert (found.stop, found.complete) == (stop, complete)
    assert (found.error is None) == complete
    assert any("blocked" in note for note in found.notes) == (stop == "PROHIBITED_CONTENT")


def test_errors_before_and_within_a_stream() -> None:
    error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    found = call(PATH, REQUEST, [*STREAM[:2], *sse((None, error))])
    assert (found.complete, found.error) == (False, "UNAVAILABLE: The model is overloaded.")
    assert found.answer is not None
    assert found.answer.content == "I will "
    for body in (json.dumps(error).encode(), json.dumps([error]).encode()):
        refused = call(PATH, REQUEST, body, status=503)
        assert refused.error is not None
        assert "overloaded" in refused.error


def test_a_whole_answer_and_a_count() -> None:
    whole = json.dumps(chunk({"text": "hm", "thought": True}, {"text": "Hello"}, finish="STOP")).encode()
    found = call("/v1beta/models/g:generateContent", REQUEST, whole)
    assert (found.stream, found.transport, found.model, found.kind) == (False, "http", "g", "turn")
    assert found.answer is not None
    assert (found.answer.content, found.answer.reasoning_content) == ("Hello", "hm")
    assert found.t_first_text_ns == found.t_first_thinking_ns == found.t_end_ns
    counted = {"generateContentRequest": REQUEST | {"model": "models/g"}}
    count = call("/v1beta/models/g:countTokens", counted, b'{"totalTokens": 31}')
    assert (count.kind, count.complete, count.model) == ("auxiliary", True, "g")
    assert count.usage.input_total is None  # counted, but never worked on
    assert len(count.messages) == 6


def test_missing_usage_is_unknown_and_thoughts_alone_are_output() -> None:
    silent = call(PATH, REQUEST, sse((None, {"candidates": [{"content": {"parts": [{"text": "x"}]}}]})))
    assert (silent.usage.input_total, silent.usage.output_total, silent.usage.raw) == (None, None, None)
    cut = chunk(finish="MAX_TOKENS") | {"usageMetadata": {"promptTokenCount": 5, "thoughtsTokenCount": 9}}
    thought = call(PATH, REQUEST, sse((None, cut)))
    assert (thought.usage.input_total, thought.usage.output_total, thought.usage.cache_read) == (5, 9, None)


def test_an_array_comes_apart_wherever_it_is_cut() -> None:
    elements = [{"a": 'br[ack]et } "quoted\\" {'}, [1, {"b": "é — 語"}], {"c": []}]
    data = json.dumps(elements, ensure_ascii=False).encode()
    for size in (1, 2, 3, 7, len(data)):
        parser = JsonArrayParser()
        found = [one for at in range(0, len(data), size) for one in parser.feed(data[at : at + size])]
        assert [json.loads(one) for one in found] == elements


@pytest.mark.parametrize("method", ["streamGenerateContent?alt=sse", "streamGenerateContent", "generateContent"])
def test_what_the_scripted_server_said_is_what_is_read(method: str) -> None:
    usage = ScriptedUsage(input_total=1000, cache_read=300, output_total=50, reasoning=20)
    made = ScriptedCall(name="run", arguments='{"cmd":"ls"}')
    script = Script(steps=(Step(text="Both.", reasoning="Hm.", calls=(made, made), usage=usage, between_ms=0),))
    path = f"/v1beta/models/g:{method}"
    body = {"contents": [{"role": "user", "parts": [{"text": "go"}]}], "tools": REQUEST["tools"]}
    with ScriptedServer(script) as server:
        _, answer, headers = post(server, path, body)
        (log,) = finished(server, 1)
    (found,) = read_calls(exchange(path, body, answer, response_headers=list(headers.items())))
    said: ModelCall = found
    assert said.answer is not None
    assert (said.answer.content, said.answer.reasoning_content, said.complete) == ("Both.", "Hm.", True)
    assert [use.arguments for use in said.answer.tool_calls] == [entry.arguments for entry in log.calls]
    assert len({use.id for use in said.answer.tool_calls}) == 2
    read = said.usage
    assert (read.input_total, read.cache_read, read.output_total, read.reasoning) == (1000, 300, 50, 20)

"""What no input may break: any cut of the bytes, any damage, any JSON; and what reading and writing must keep."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.call import Message, ModelCall, ToolUse
from capture.canonical import canonical_hash
from capture.dialect import read_call, read_calls, why_unread
from capture.exchange import Exchange, SocketMessage
from capture.script import ScriptedCall, ScriptedRequest, Step
from capture.scripted_answer import Answer, body, frames
from tests.exchanges import exchange
from tests.vendor_requests import PATHS, render

DIALECTS = tuple(PATHS)
FORMS = (*DIALECTS, "gemini array")
ARRAY_PATH = "/v1beta/models/m:streamGenerateContent"
BRIEF = settings(max_examples=40, deadline=None)

JSON_OBJECTS = st.dictionaries(st.text(max_size=6), st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                               max_size=3)  # fmt: skip
ARGUMENTS = JSON_OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")))
NAMES = st.sampled_from(["Bash", "Read", "mcp__x__y"])
STEPS = st.builds(
    Step,
    text=st.text(max_size=40),
    reasoning=st.text(max_size=20),
    calls=st.lists(st.builds(ScriptedCall, name=NAMES, arguments=ARGUMENTS), max_size=3).map(tuple),
    piece_chars=st.integers(1, 9),
)


def said(form: str, step: Step) -> Answer:
    """A scripted answer to a request in the dialect."""
    request = ScriptedRequest(
        dialect="google.gemini" if form == "gemini array" else form,  # type: ignore[arg-type]
        path=ARRAY_PATH if form == "gemini array" else PATHS[form],
        model="m",
        stream=True,
        include_usage=True,
        tool_names=("Bash",),
        custom_tool_names=(),
        tool_results=(),
        answered=0,
        last_user_text="go",
        body_bytes=400,
    )
    return Answer(request=request, step=step, number=1, salt="00", created_s=1)


def streamed(form: str, step: Step) -> bytes:
    """The answer's bytes on the wire."""
    answer = said(form, step)
    if form == "gemini array":
        return b"[" + b",\r\n".join(frame.payload for frame in frames(answer)) + b"]"
    return b"".join(frame.sse for frame in frames(answer))


def asked(form: str, request: Any, answer: list[bytes]) -> Exchange:
    path = ARRAY_PATH if form == "gemini array" else PATHS[form]
    kind = "application/json" if form == "gemini array" else "text/event-stream"
    return exchange(path, request, answer, response_headers=[("content-type", kind)])


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def timeless(call: ModelCall | None) -> ModelCall:
    """The call without any time of its answer."""
    assert call is not None
    times = {field.name: None for field in fields(call) if field.name.startswith("t_") and field.name != "t_send_ns"}
    answer = call.answer and replace(
        call.answer, tool_calls=tuple(replace(use, t_emitted_ns=None) for use in call.answer.tool_calls)
    )
    return replace(call, answer=answer, content_at_ns=(len(call.content_at_ns),), **times)


GO = (Message(role="user", content="go"),)


@pytest.mark.parametrize("form", FORMS)
@given(step=STEPS, places=st.lists(st.integers(0, 5000), max_size=40))
@BRIEF
def test_any_cut_of_the_bytes_gives_the_same_call(form: str, step: Step, places: list[int]) -> None:
    data = streamed(form, step)
    dialect = "google.gemini" if form == "gemini array" else form
    request = render(dialect, GO)
    whole = timeless(read_call(asked(form, request, [data])))
    assert timeless(read_call(asked(form, request, cut(data, places)))) == whole
    assert whole.complete
    assert whole.notes == ()


@pytest.mark.parametrize("form", FORMS)
@given(step=STEPS)
@BRIEF
def test_what_was_said_is_what_is_read(form: str, step: Step) -> None:
    found = read_call(
        asked(form, render("google.gemini" if form == "gemini array" else form, GO), [streamed(form, step)])
    )
    assert found is not None
    answer = found.answer or Message(role="assistant", content="")
    assert (answer.content, answer.reasoning_content or "") == (step.text, step.reasoning)
    assert [(use.name, use.arguments) for use in answer.tool_calls] == [(c.name, c.arguments) for c in step.calls]
    assert found.usage.output_total == said(form, step).usage.output_total
    kinds = (found.t_first_text_ns, found.t_first_thinking_ns, found.t_first_tool_call_ns)
    assert [kind is not None for kind in kinds] == [bool(step.text), bool(step.reasoning), bool(step.calls)]
    assert found.t_first_content_ns == min((kind for kind in kinds if kind is not None), default=None)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(step=STEPS)
@BRIEF
def test_one_piece_says_what_a_stream_says(dialect: str, step: Step) -> None:
    request = render(dialect, GO)
    path = PATHS[dialect].replace("streamG", "g").partition("?")[0]
    whole = read_call(exchange(path, request | {"stream": False}, body(said(dialect, step))))
    assert whole is not None
    stream = timeless(read_call(asked(dialect, request, [streamed(dialect, step)])))
    empty = Message(role="assistant", content="")
    assert replace(timeless(whole).answer or empty, omitted_bytes=0) == replace(stream.answer or empty, omitted_bytes=0)
    assert (whole.stop, replace(whole.usage, raw=None), whole.response_id) == (
        stream.stop,
        replace(stream.usage, raw=None),
        stream.response_id,
    )


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "flip", "insert", "cut", "repeat"]), st.integers(0, 5000), st.binary(max_size=4)
    ),
    min_size=1,
    max_size=6,
)


def damage(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """The bytes after some accidents."""
    for kind, place, extra in edits:
        at = place % (len(data) + 1)
        match kind:
            case "drop":
                data = data[:at] + data[at + 1 + len(extra) :]
            case "flip":
                data = data[:at] + bytes(byte ^ 0x15 for byte in data[at : at + 1]) + data[at + 1 :]
            case "insert":
                data = data[:at] + extra + data[at:]
            case "cut":
                data = data[:at]
            case _:
                data = data[:at] + data[max(0, at - 20) :]
    return data


@pytest.mark.parametrize("form", FORMS)
@given(step=STEPS, edits=EDITS, request_edits=st.just([]) | EDITS, split=st.integers(1, 300))
@BRIEF
def test_damaged_bytes_never_raise(
    form: str, step: Step, edits: list[Any], request_edits: list[Any], split: int
) -> None:
    data = damage(streamed(form, step), edits)
    sent = render("google.gemini" if form == "gemini array" else form, GO)
    request = damage(json.dumps(sent).encode(), request_edits)
    found = read_call(asked(form, request, cut(data, range(0, len(data), split))))
    assert found is not None
    assert_writable(found)


def assert_writable(call: ModelCall) -> None:
    """Every text of a call can go into a UTF-8 file."""
    for message in (*call.messages, *((call.answer,) if call.answer else ())):
        texts = (message.content, message.reasoning_content or "", message.name or "", message.tool_call_id or "")
        for text in (*texts, *(word for use in message.tool_calls for word in (use.id, use.name, use.arguments))):
            text.encode()


KEYS = [
    "type",
    "role",
    "content",
    "index",
    "delta",
    "text",
    "message",
    "usage",
    "id",
    "input",
    "tool_calls",
    "output",
    "response",
    "item",
    "choices",
    "model",
    "messages",
    "system",
    "tools",
    "error",
    "metadata",
    "contents",
    "parts",
    "functionCall",
    "functionResponse",
    "candidates",
    "finishReason",
    "request",
    "name",
    "args",
    "usageMetadata",
    "promptFeedback",
    "generationConfig",
    "systemInstruction",
    "thought",
    "client_metadata",
    "stream_id",
    "call_id",
    "reasoning_details",
    "function_call",
    "function",
    "context_management",
    "edits",
    "summary",
    "encrypted_content",
    "status",
    "instructions",
    "previous_response_id",
    "output_index",
    "arguments",
    "functionDeclarations",
    "thinkingConfig",
    "conversation",
]
WORDS = [
    "response.create",
    "response.created",
    "response.completed",
    "response.output_item.added",
    "response.output_item.done",
    "error",
    "user",
    "response.output_text.delta",
    "response.failed",
    "function_call",
    "function_call_output",
    "reasoning",
    "message",
    "compaction",
    "model",
    "response.function_call_arguments.delta",
    "assistant",
    "tool",
    "text",
    "tool_use",
    "tool_result",
    "thinking",
    "input_json_delta",
    "namespace",
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(allow_nan=True)
    | st.text(max_size=4)
    | st.sampled_from(WORDS)
    | st.just("\ud83d")
)
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)
ANY_PATHS = [
    *PATHS.values(),
    "/v1/messages/count_tokens",
    "/v1/responses/compact",
    "/v1/memories/trace_summarize",
    "/v1/responses/input_tokens",
    "/v1internal:streamGenerateContent?alt=sse",
    "/v1internal:generateContent",
    "/v1beta/models/m:countTokens",
    "/of/a/gateway",
]


@given(
    path=st.sampled_from(ANY_PATHS),
    request=ANY_JSON,
    events=st.lists(st.tuples(st.sampled_from(WORDS), ANY_JSON), max_size=5),
    form=st.sampled_from(["events", "array", "one"]),
)
@settings(max_examples=300, deadline=None)
def test_no_json_makes_a_reader_raise(path: str, request: Any, events: list[tuple[str, Any]], form: str) -> None:
    typed = [{"type": word} | data if isinstance(data, dict) else data for word, data in events]
    if form == "events":
        answer: Any = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in typed]
    else:
        answer = json.dumps(typed if form == "array" else (typed or [None])[0]).encode()
    sent = exchange(path, json.dumps(request).encode(), answer)
    for call in read_calls(sent):
        assert_writable(call)
        assert_read_with_care(call)
    why_unread(sent)


def assert_read_with_care(call: ModelCall) -> None:
    """No reader fell into the net that catches what it should have foreseen."""
    assert not [note for note in call.notes if "Error" in note]


@given(frames_=st.lists(st.tuples(st.booleans(), ANY_JSON | st.binary(max_size=6)), max_size=12))
@settings(max_examples=250, deadline=None)
def test_no_frame_makes_a_socket_raise(frames_: list[tuple[bool, Any]]) -> None:
    messages = []
    for number, (sent, value) in enumerate(frames_):
        if sent and isinstance(value, dict):
            value = {"type": "response.create"} | value
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        messages.append(SocketMessage(at_ns=number, from_agent=sent, data=data))
    base = exchange("/v1/responses", b"", b"", method="GET", status=101)
    found = read_calls(replace(base, messages=tuple(messages)))
    assert [call.exchange_id for call in found] == [f"journal/1#{number + 1}" for number in range(len(found))]
    for call in found:
        assert_writable(call)
        assert_read_with_care(call)


def conversation(dialect: str) -> st.SearchStrategy[tuple[Message, ...]]:
    """Conversations that every part of the dialect's shape can hold."""
    texts = st.text(min_size=1, max_size=20)
    errors = st.sampled_from([None, True, False] if dialect == "anthropic.messages" else [None])

    @st.composite
    def turns(draw: st.DrawFn) -> tuple[Message, ...]:
        messages: list[Message] = []
        if draw(st.booleans()):
            messages.append(Message(role="system", content=draw(texts)))
        made = 0
        for _ in range(draw(st.integers(0, 4))):
            messages.append(Message(role="user", content=draw(texts)))
            calls = []
            for _ in range(draw(st.integers(0, 2))):
                calls.append(ToolUse(id=f"call_{made}", name=draw(NAMES), arguments=draw(ARGUMENTS)))
                made += 1
            messages.append(
                Message(
                    role="assistant",
                    content=draw(st.text(max_size=20) if calls else texts),
                    reasoning_content=draw(st.none() | texts),
                    tool_calls=tuple(calls),
                )
            )
            for use in calls:
                name = use.name if dialect == "google.gemini" else None
                result = Message(
                    role="tool", content=draw(texts), name=name, tool_call_id=use.id, is_error=draw(errors)
                )
                messages.append(result)
        return tuple(messages)

    return turns()


@pytest.mark.parametrize("dialect", DIALECTS)
@given(data=st.data())
@BRIEF
def test_reading_writing_and_reading_again_is_stable(dialect: str, data: st.DataObject) -> None:
    messages = data.draw(conversation(dialect))
    first = read_call(asked(dialect, render(dialect, messages), []))
    assert first is not None
    assert first.messages == messages
    second = read_call(asked(dialect, render(dialect, first.messages), []))
    assert second is not None
    assert second.messages == first.messages
    assert [canonical_hash(one) for one in second.messages] == [canonical_hash(one) for one in messages]


@pytest.mark.parametrize("dialect", DIALECTS)
@given(step=STEPS)
@BRIEF
def test_a_live_answer_and_its_echo_are_the_same_to_the_graph(dialect: str, step: Step) -> None:
    live = timeless(read_call(asked(dialect, render(dialect, GO), [streamed(dialect, step)]))).answer
    if live is None or not (live.content or live.tool_calls):
        return
    again = Message(role="user", content="and on")
    echoed = read_call(asked(dialect, render(dialect, (*GO, live, again)), []))
    assert echoed is not None
    assert canonical_hash(echoed.messages[1]) == canonical_hash(live)
    assert [use.id for use in echoed.messages[1].tool_calls] == [use.id for use in live.tool_calls]

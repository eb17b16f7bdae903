"""OpenAI Responses over server-sent events, as Codex, pi and the SDKs speak it.

One turn of the model is a run of items (reasoning, messages, calls); the chat shape has one assistant message for it.
A run is read alike in a live answer and in its echo, so that the two compare equal. Codex's own backend ends with a
`response.completed` whose `output` is empty: the items then come from `response.output_item.done` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from capture.call import Message, SessionHint, Tool, ToolUse, Usage
from capture.dialects.openai_chat import read_content
from capture.dialects.reading import (
    Answer,
    Json,
    Prompt,
    as_count,
    as_list,
    as_number,
    as_object,
    as_text,
    compact_json,
    error_text,
    join_texts,
    read_json,
    size_of,
    with_emission_times,
)
from capture.sse import ServerEvent

API = "openai.responses"

_CALLS = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    "local_shell_call": "action",
    "shell_call": "action",
    "apply_patch_call": "operation",
    "mcp_call": "arguments",
    "web_search_call": "action",
    "tool_search_call": "arguments",
    "computer_call": "action",
}
_CONTENT_EVENTS = frozenset(
    f"response.{name}.delta"
    for name in (
        "output_text",
        "refusal",
        "reasoning_text",
        "reasoning_summary_text",
        "function_call_arguments",
        "custom_tool_call_input",
        "mcp_call_arguments",
        "shell_call_command",
        "apply_patch_call_operation_diff",
    )
)


def read_prompt(request: Json, headers: Mapping[str, str], path: str) -> Prompt:
    """Read a request body; headers are lower case."""
    instructions = as_text(request.get("instructions"))
    system = (Message(role="system", content=instructions),) if instructions else ()
    given = request.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else list(map(as_object, as_list(given)))
    turn = _turn_metadata(request, headers)
    compacts = path.endswith("/compact") or turn.get("request_kind") == "compaction"
    return Prompt(
        model=as_text(request.get("model")),
        stream=request.get("stream") is True,
        system=system,
        messages=system + tuple(read_items(items)),
        tools=tuple(_read_tools(request)),
        hints=read_hints(request, headers),
        max_tokens=as_count(request.get("max_output_tokens")),
        temperature=as_number(request.get("temperature")),
        effort=as_text(as_object(request.get("reasoning")).get("effort")) or None,
        previous_response_id=as_text(request.get("previous_response_id")) or None,
        auxiliary=request.get("generate") is False
        or path.endswith(("/compact", "/input_tokens"))
        or as_text(turn.get("request_kind")) in ("prewarm", "memory"),
        compaction=(as_text(as_object(turn.get("compaction")).get("trigger")) or "unknown") if compacts else None,
    )


def _turn_metadata(request: Json, headers: Mapping[str, str]) -> Json:
    """Codex's own description of the turn, from its header or from `client_metadata`."""
    name = "x-codex-turn-metadata"
    text = headers.get(name) or as_text(as_object(request.get("client_metadata")).get(name))
    try:
        return as_object(read_json(text)) if text else {}
    except ValueError:
        return {}


def read_hints(request: Json, headers: Mapping[str, str]) -> tuple[SessionHint, ...]:
    """Session ids of Codex (session, thread, parent thread) and of pi (`session_id`), then `prompt_cache_key`."""
    hints: list[SessionHint] = []
    session = headers.get("session-id") or headers.get("session_id") or headers.get("x-session-id")
    thread = headers.get("thread-id") or headers.get("thread_id") or headers.get("conversation_id")
    parent = (
        headers.get("x-codex-parent-thread-id")
        or headers.get("x-parent-session-id")
        or as_text(_turn_metadata(request, headers).get("parent_thread_id"))
        or None
    )
    if root := session or thread:
        if parent and root == (thread or root):
            # The session's own id is the sub-agent's: the parent's thread names the session.
            hints.append(SessionHint(session=parent, evidence="header", agent=root))
        elif thread and thread != root:
            hints.append(SessionHint(session=root, evidence="header", agent=thread, parent_agent=parent))
        else:
            hints.append(SessionHint(session=root, evidence="header"))
    conversation = request.get("conversation")
    named = (
        request.get("prompt_cache_key"),
        conversation if isinstance(conversation, str) else as_object(conversation).get("id"),
    )
    hints.extend(SessionHint(session=text, evidence="body") for value in named if (text := as_text(value)))
    return tuple(hints)


def _read_tools(request: Json) -> Iterable[Tool]:
    for entry in map(as_object, as_list(request.get("tools"))):
        rest = {key: value for key, value in entry.items() if key not in ("name", "description", "type", "strict")}
        yield Tool(
            name=as_text(entry.get("name")) or as_text(entry.get("type")),
            description=as_text(entry.get("description")),
            parameters=compact_json(entry.get("parameters", entry.get("format", rest))),
        )


class _Turn:
    """Collects one run of the model's items into one assistant message."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[ToolUse] = []
        self.omitted = 0
        self.any = False

    def take(self, item: Json) -> None:
        self.any = True
        kind = as_text(item.get("type"))
        if kind in _CALLS:
            body = item.get(_CALLS[kind], "")
            self.calls.append(
                ToolUse(
                    id=as_text(item.get("call_id")) or as_text(item.get("id")),
                    name=as_text(item.get("name")) or kind.removesuffix("_call"),
                    arguments=body if isinstance(body, str) else compact_json(body),
                )
            )
        elif kind == "reasoning":
            for part in [*as_list(item.get("summary")), *as_list(item.get("content"))]:
                if words := as_text(as_object(part).get("text")):
                    self.thoughts.append(words)
            self.omitted += size_of(item.get("encrypted_content") or "")
        elif kind in ("message", ""):
            text, omitted = read_content(item.get("content"))
            if text:
                self.texts.append(text)
            self.omitted += omitted
        else:
            self.omitted += size_of(item)

    def message(self) -> Message:
        return Message(
            role="assistant",
            content=join_texts(self.texts),
            reasoning_content=join_texts(self.thoughts) if self.thoughts else None,
            tool_calls=tuple(self.calls),
            omitted_bytes=self.omitted,
        )


def read_items(items: Iterable[Json]) -> Iterable[Message]:
    """Messages of an item list; neighbouring items of the model become one assistant message."""
    turn = _Turn()
    for item in items:
        kind, role = as_text(item.get("type")), as_text(item.get("role"))
        if kind in ("message", "") and role != "assistant":
            given = _given(item, role)
        elif kind.endswith("_output") or ("output" in item and kind not in _CALLS):
            given = _result(item)
        else:
            turn.take(item)
            continue
        if turn.any:
            yield turn.message()
            turn = _Turn()
        yield given
    if turn.any:
        yield turn.message()


def _given(item: Json, role: str) -> Message:
    text, omitted = read_content(item.get("content"))
    return Message(
        role="system" if role == "system" else "developer" if role == "developer" else "user",
        content=text,
        omitted_bytes=omitted,
    )


def _result(item: Json) -> Message:
    output = item.get("output")
    if isinstance(output, dict):
        text, omitted = as_text(output.get("content")) or compact_json(output), 0
    else:
        text, omitted = read_content(output)
    success = as_object(output).get("success")
    return Message(
        role="tool",
        content=text,
        tool_call_id=as_text(item.get("call_id")) or as_text(item.get("id")),
        is_error=not success if isinstance(success, bool) else None,
        omitted_bytes=omitted,
    )


def read_usage(usage: Json) -> Usage:
    """Normalise: `input_tokens` already includes what was read from cache."""
    before = as_object(usage.get("input_tokens_details"))
    after = as_object(usage.get("output_tokens_details"))
    return Usage(
        input_total=as_count(usage.get("input_tokens")),
        cache_read=as_count(before.get("cached_tokens")),
        cache_write=as_count(before.get("cache_write_tokens")),
        output_total=as_count(usage.get("output_tokens")),
        reasoning=as_count(after.get("reasoning_tokens")),
        raw=compact_json(usage) if usage else None,
    )


def _ending(response: Json) -> tuple[str | None, str | None]:
    """(stop, error) of a finished response object."""
    status = as_text(response.get("status")) or None
    reason = as_text(as_object(response.get("incomplete_details")).get("reason"))
    error = error_text(response["error"]) if response.get("error") else None
    if status == "failed" and error is None:
        error = "response failed"
    return reason or status, error


def _assistant(items: Iterable[Json], emitted_at: Mapping[str, int], otherwise_ns: int | None) -> Message | None:
    turn = _Turn()
    for item in items:
        turn.take(item)
    if not turn.any:
        return None
    message = turn.message()
    times = {
        position: at
        for position, call in enumerate(message.tool_calls)
        if (at := emitted_at.get(call.id, otherwise_ns)) is not None
    }
    return with_emission_times(message, times)


def read_body(body: Json, at_ns: int) -> Answer:
    """Read a non-streaming answer; every tool call was emitted when the last byte came, `at_ns`."""
    stop, error = _ending(body)
    output = [as_object(item) for item in as_list(body.get("output"))]
    message = _assistant(output, {}, at_ns)
    return Answer(
        message=message,
        stop=stop,
        usage=read_usage(as_object(body.get("usage"))),
        response_id=as_text(body.get("id")) or None,
        content_at_ns=(at_ns,) if message is not None else (),
        error=error,
        complete=error is None and ("output" in body or "input_tokens" in body),
        model=as_text(body.get("model")) or None,
    )


def read_stream(events: Iterable[ServerEvent]) -> Answer:
    """Read a streamed answer, also one that was cut anywhere, or that the client left after its own end."""
    items: dict[int, Json] = {}
    partial: dict[int, dict[str, Any]] = {}
    emitted_at: dict[str, int] = {}
    content_at: list[int] = []
    notes: list[str] = []
    last: Json = {}
    error = None
    complete = failed = False
    for event in events:
        if event.data.strip() == "[DONE]":
            continue
        try:
            data = as_object(read_json(event.data))
        except ValueError:
            notes.append(f"event {event.event!r} holds no JSON")
            continue
        kind = as_text(data.get("type")) or event.event
        index = as_count(data.get("output_index"))
        if kind in _CONTENT_EVENTS:
            content_at.append(event.at_ns)
            _add_fragment(partial.setdefault(index or 0, {}), kind, as_text(data.get("delta")))
        elif kind == "response.output_item.added":
            item = as_object(data.get("item"))
            partial.setdefault(index if index is not None else len(partial), {}).update(item)
            if as_text(item.get("type")) in _CALLS:
                content_at.append(event.at_ns)
        elif kind == "response.output_item.done":
            item = as_object(data.get("item"))
            items[index if index is not None else len(items)] = item
            if as_text(item.get("type")) in _CALLS:
                emitted_at[as_text(item.get("call_id")) or as_text(item.get("id"))] = event.at_ns
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.done"):
            last = as_object(data.get("response"))
            failed = kind == "response.failed"
            complete = not failed
            if failed:
                error = _ending(last)[1] or "response failed"
        elif kind in ("response.created", "response.in_progress", "response.queued"):
            last = as_object(data.get("response")) or last
        elif kind == "error":
            error = error_text(data) or "error"
    output = [as_object(item) for item in as_list(last.get("output"))] if complete and not items else []
    message = _assistant(output or _in_order(items, partial), emitted_at, None)
    stop = _ending(last)[0] if complete or failed else None
    return Answer(
        message=message,
        stop=stop,
        usage=read_usage(as_object(last.get("usage"))),
        response_id=as_text(last.get("id")) or None,
        content_at_ns=tuple(content_at),
        error=error,
        complete=complete and error is None,
        model=as_text(last.get("model")) or None,
        notes=tuple(notes),
    )


def _add_fragment(item: dict[str, Any], kind: str, piece: str) -> None:
    """Keep what came of an item that may never be done."""
    name = kind.removeprefix("response.").removesuffix(".delta")
    if name in ("output_text", "refusal"):
        field = "partial_text"
    elif name.startswith("reasoning"):
        field = "partial_thought"
    else:
        field = "partial_arguments"
    item[field] = as_text(item.get(field)) + piece


def _in_order(items: Mapping[int, Json], partial: Mapping[int, Json]) -> list[Json]:
    """Finished items, and what came of the unfinished ones, in the order of the output."""
    ordered: list[Json] = []
    for index in sorted({*items, *partial}):
        if index in items:
            ordered.append(items[index])
            continue
        item = dict(partial[index])
        if text := item.pop("partial_text", ""):
            item = {"type": "message", "content": text}
        elif thought := item.pop("partial_thought", ""):
            item = {"type": "reasoning", "summary": [{"text": thought}]}
        elif (arguments := item.pop("partial_arguments", "")) and item.get("type") in _CALLS:
            item[_CALLS[item["type"]]] = arguments
        if item.get("type"):
            ordered.append(item)
    return ordered

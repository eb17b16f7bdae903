"""Anthropic Messages: `POST /v1/messages`, streamed or not, and `count_tokens`.

Sources: the vendor's streaming page and the types of its SDK. Two facts that are easy to get wrong: `input_tokens`
leaves out what was read from or written to the cache, and the usage of `message_delta` is cumulative, so a later
value replaces an earlier one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from capture.call import Message, SessionHint, Tool, ToolUse, Usage
from capture.dialects.reading import (
    Answer,
    ContentClock,
    ContentKind,
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
    whole_content,
    with_emission_times,
)
from capture.sse import ServerEvent

API = "anthropic.messages"

_OLD_USER_ID = re.compile(r"_session_([0-9A-Za-z-]{8,})$")
# Claude Code's first system block is a line for billing that the service takes out by position and that changes from
# call to call; kept, it would make every prompt differ from its first byte on.
_ATTRIBUTION = "x-anthropic-billing-header:"
# Calls that the service runs by itself: the agent never answers them, so they are no tool calls of the conversation.
_SERVICE_CALLS = ("server_tool_use", "mcp_tool_use")
_CALLS = ("tool_use", *_SERVICE_CALLS)
_OPAQUE_THOUGHT = "redacted_thinking"


def read_prompt(request: Json, headers: Mapping[str, str], path: str) -> Prompt:
    """Read a request body; headers are lower case."""
    system = _read_system(request.get("system"))
    messages = list(system)
    for entry in as_list(request.get("messages")):
        messages.extend(_read_message(as_object(entry)))
    thinking = as_object(request.get("thinking"))
    output = as_object(request.get("output_config"))
    budget = as_count(thinking.get("budget_tokens"))
    effort = as_text(output.get("effort")) or (f"budget:{budget}" if budget is not None else None)
    return Prompt(
        model=as_text(request.get("model")),
        stream=request.get("stream") is True,
        system=system,
        messages=tuple(messages),
        tools=tuple(_read_tool(as_object(tool)) for tool in as_list(request.get("tools"))),
        hints=read_hints(request, headers),
        max_tokens=as_count(request.get("max_tokens")),
        temperature=as_number(request.get("temperature")),
        effort=effort or as_text(thinking.get("type")) or None,
        request_class=headers.get("x-claude-code-request-class"),
        agent_type=headers.get("x-claude-code-agent-type"),
        notes=_edits(as_object(request.get("context_management")).get("edits"), "asks for"),
        auxiliary=path.endswith("/count_tokens")
        or headers.get("x-claude-code-request-class") == "auxiliary"
        # The quota probe: one token of answer to the word "quota".
        or (as_count(request.get("max_tokens")) == 1 and not request.get("tools")),
    )


def read_hints(request: Json, headers: Mapping[str, str]) -> tuple[SessionHint, ...]:
    """Session ids of Claude Code: its headers first, then both shapes of `metadata.user_id`."""
    hints: list[SessionHint] = []
    if session := headers.get("x-claude-code-session-id"):
        hints.append(
            SessionHint(
                session=session,
                evidence="header",
                agent=headers.get("x-claude-code-agent-id"),
                parent_agent=headers.get("x-claude-code-parent-agent-id"),
            )
        )
    user_id = as_text(as_object(request.get("metadata")).get("user_id"))
    if user_id.startswith("{"):
        try:
            ids = as_object(read_json(user_id))
        except ValueError:
            ids = {}
        session, parent = as_text(ids.get("session_id")), as_text(ids.get("parent_session_id"))
        if parent and session and parent != session:
            hints.append(SessionHint(session=parent, evidence="body", agent=session))
        elif session:
            hints.append(SessionHint(session=session, evidence="body"))
    elif found := _OLD_USER_ID.search(user_id):
        hints.append(SessionHint(session=found[1], evidence="body"))
    return tuple(hints)


def _read_system(system: Any) -> tuple[Message, ...]:
    if isinstance(system, str):
        texts = [system]
    else:
        texts = [as_text(as_object(block).get("text")) for block in as_list(system)]
        # Not counted as omitted either: its length changes too, and it never reaches the model.
        texts = [text for text in texts if text and not text.startswith(_ATTRIBUTION)]
    return (Message(role="system", content=join_texts(texts)),) if any(texts) else ()


def _read_tool(tool: Json) -> Tool:
    schema = tool.get("input_schema")
    if schema is None:  # a tool that the service runs is only named and configured
        schema = {key: value for key, value in tool.items() if key not in ("name", "description", "cache_control")}
    return Tool(
        name=as_text(tool.get("name")), description=as_text(tool.get("description")), parameters=compact_json(schema)
    )


def _read_message(entry: Json) -> list[Message]:
    content = entry.get("content")
    role = as_text(entry.get("role"))
    blocks: list[Json] = [as_object(block) for block in as_list(content)]
    if isinstance(content, str):
        blocks = [{"type": "text", "text": content}]
    if role == "assistant":
        return [read_assistant(blocks)]
    messages: list[Message] = []
    texts: list[str] = []
    omitted = 0

    def flush() -> None:
        nonlocal omitted
        if texts or omitted:
            text = join_texts(texts)
            messages.append(Message(role="system" if role == "system" else "user", content=text, omitted_bytes=omitted))
        texts.clear()
        omitted = 0

    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            flush()
            messages.append(_read_result(block))
        elif kind == "text":
            texts.append(as_text(block.get("text")))
        else:
            omitted += size_of(block)
    flush()
    return messages or [Message(role="user", content="")]


def _read_result(block: Json) -> Message:
    content = block.get("content")
    texts, omitted = [], 0
    if isinstance(content, str):
        texts = [content]
    else:
        for part in map(as_object, as_list(content)):
            if part.get("type") == "text":
                texts.append(as_text(part.get("text")))
            else:
                omitted += size_of(part)
    error = block.get("is_error")
    return Message(
        role="tool",
        content=join_texts(texts),
        tool_call_id=as_text(block.get("tool_use_id")),
        is_error=error if isinstance(error, bool) else None,
        omitted_bytes=omitted,
    )


def read_assistant(blocks: list[Json]) -> Message:
    """One assistant message from content blocks, alike for a live answer and for its echo in a later request."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolUse] = []
    omitted = 0
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(as_text(block.get("text")))
        elif kind == "thinking":
            thoughts.append(as_text(block.get("thinking")))
            omitted += size_of(block.get("signature") or "")
        elif kind == "tool_use":
            calls.append(
                ToolUse(
                    id=as_text(block.get("id")),
                    name=as_text(block.get("name")),
                    # The echo holds an object where the stream held text: one spelling for both.
                    arguments=block["raw_input"] if "raw_input" in block else compact_json(block.get("input", {})),
                )
            )
        else:  # redacted thinking; calls of tools that the service runs, and their results
            omitted += size_of(block)
    return Message(
        role="assistant",
        content=join_texts(texts),
        reasoning_content=join_texts(thoughts) if thoughts else None,
        tool_calls=tuple(calls),
        omitted_bytes=omitted,
    )


def read_usage(merged: Json) -> Usage:
    """Normalise: the whole input is fresh + read + written."""
    fresh = as_count(merged.get("input_tokens"))
    read = as_count(merged.get("cache_read_input_tokens"))
    written = as_count(merged.get("cache_creation_input_tokens"))
    details = as_object(merged.get("output_tokens_details"))
    return Usage(
        input_total=None if fresh is None else fresh + (read or 0) + (written or 0),
        cache_read=read,
        cache_write=written,
        output_total=as_count(merged.get("output_tokens")),
        reasoning=as_count(details.get("thinking_tokens", details.get("reasoning_tokens"))),
        raw=compact_json(merged) if merged else None,
    )


def read_body(body: Json, at_ns: int) -> Answer:
    """Read a non-streaming answer; every tool call was emitted when the last byte came, `at_ns`."""
    error = error_text(body) if body.get("type") == "error" or "error" in body else None
    blocks = [as_object(block) for block in as_list(body.get("content"))]
    message = read_assistant(blocks) if blocks else None
    if message is not None:
        message = with_emission_times(message, dict.fromkeys(range(len(message.tool_calls)), at_ns))
    return Answer(
        message=message,
        stop=as_text(body.get("stop_reason")) or None,
        usage=read_usage(as_object(body.get("usage"))),
        response_id=as_text(body.get("id")) or None,
        content=whole_content(message, at_ns),
        error=error,
        complete=error is None and ("content" in body or "input_tokens" in body),
        model=as_text(body.get("model")) or None,
        notes=(*_applied(body), *_service_calls(blocks)),
    )


def read_stream(events: Iterable[ServerEvent]) -> Answer:
    """Read a streamed answer, also one that was cut anywhere."""
    blocks: dict[int, dict[str, Any]] = {}
    closed_at: dict[int, int] = {}
    content = ContentClock()
    usage: dict[str, Any] = {}
    notes: list[str] = []
    stop = response_id = error = model = None
    complete = started = counted = False
    for event in events:
        try:
            data = as_object(read_json(event.data))
        except ValueError:
            notes.append(f"event {event.event!r} holds no JSON")
            continue
        kind = as_text(data.get("type")) or event.event
        index = as_count(data.get("index")) or 0
        if kind == "message_start":
            started = True
            start = as_object(data.get("message"))
            response_id = as_text(start.get("id")) or None
            model = as_text(start.get("model")) or None
            usage.update(as_object(start.get("usage")))
            notes += _applied(start)
        elif kind == "content_block_start":
            blocks[index] = dict(as_object(data.get("content_block")))
            if blocks[index].get("type") in _CALLS:
                content.see(event.at_ns, "tool_call")
            elif blocks[index].get("type") == _OPAQUE_THOUGHT:  # comes whole
                content.see(event.at_ns, "thinking")
        elif kind == "content_block_delta":
            content.see(event.at_ns, *_add_delta(blocks.setdefault(index, {}), as_object(data.get("delta"))))
        elif kind == "content_block_stop":
            closed_at[index] = event.at_ns
        elif kind == "message_delta":
            stop = as_text(as_object(data.get("delta")).get("stop_reason")) or stop
            # Cumulative, and null where a gateway does not know: overwrite, but never with nothing.
            final = {key: value for key, value in as_object(data.get("usage")).items() if value is not None}
            usage.update(final)
            notes += _applied(data)
            counted = counted or "output_tokens" in final
        elif kind == "message_stop":
            complete = True
        elif kind == "error":
            error = error_text(data) or "error"
    message = _close(blocks, closed_at, notes, complete=complete) if started or blocks else None
    notes += _service_calls(blocks[index] for index in sorted(blocks))
    merged = read_usage(usage)
    if not complete and not counted:
        merged = replace(merged, output_total=None)  # `message_start` holds a placeholder, no count of what came
    return Answer(
        message=message,
        stop=stop,
        usage=merged,
        response_id=response_id,
        content=content.times(),
        error=error,
        complete=complete,
        model=model,
        notes=tuple(notes),
    )


def _edits(edits: Any, verb: str) -> tuple[str, ...]:
    """One note for each edit of the context on the service's side: the model then sees less than the body holds."""
    notes = []
    for edit in map(as_object, as_list(edits)):
        numbers = [f"{name} {value}" for name, value in edit.items() if as_count(value) is not None]
        notes.append(f"context_management {verb} {as_text(edit.get('type')) or 'an edit'}" + ", ".join(["", *numbers]))
    return tuple(notes)


def _applied(whole: Json) -> tuple[str, ...]:
    return _edits(as_object(whole.get("context_management")).get("applied_edits"), "applied")


def _service_calls(blocks: Iterable[Json]) -> tuple[str, ...]:
    """One note for each call that the service ran by itself."""
    return tuple(
        f"the service itself ran {as_text(block.get('name')) or 'a tool'}"
        for block in blocks
        if block.get("type") in _SERVICE_CALLS
    )


def _add_delta(block: dict[str, Any], delta: Json) -> tuple[ContentKind, ...]:
    """Add one fragment; which kind of content it was, or nothing for none."""
    match delta.get("type"):
        case "text_delta":
            block.setdefault("type", "text")
            block["text"] = as_text(block.get("text")) + as_text(delta.get("text"))
            return ("text",)
        case "thinking_delta":
            block.setdefault("type", "thinking")
            block["thinking"] = as_text(block.get("thinking")) + as_text(delta.get("thinking"))
            return ("thinking",)
        case "input_json_delta":
            block["partial"] = as_text(block.get("partial")) + as_text(delta.get("partial_json"))
            return ("tool_call",) if delta.get("partial_json") else ()
        case "signature_delta":
            block["signature"] = as_text(block.get("signature")) + as_text(delta.get("signature"))
    return ()


def _close(
    blocks: dict[int, dict[str, Any]], closed_at: Mapping[int, int], notes: list[str], *, complete: bool
) -> Message | None:
    """The message of a stream's blocks. A call that was cut is left out: no agent runs it or sends it back."""
    times: dict[int, int] = {}
    ordered: list[Json] = []
    calls = 0
    for index in sorted(blocks):
        block = blocks[index]
        partial = block.pop("partial", "")
        if block.get("type") in _CALLS and not complete and index not in closed_at:
            notes.append(f"a call of {as_text(block.get('name')) or 'a tool'} was cut and is left out")
            continue
        if block.get("type") in _CALLS:
            try:
                block["input"] = read_json(partial) if partial.strip() else block.get("input", {})
            except ValueError:  # cut, or a model that wrote broken JSON: keep its own words
                block["raw_input"] = partial
                notes.append(f"arguments of tool call {as_text(block.get('id'))} are no JSON")
        if block.get("type") == "tool_use":
            if index in closed_at:
                times[calls] = closed_at[index]
            calls += 1
        ordered.append(block)
    return with_emission_times(read_assistant(ordered), times) if ordered else None

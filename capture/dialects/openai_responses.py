"""OpenAI Responses as Codex, pi and the SDKs speak it: requests, items, usage and whole answers.

One turn of the model is a run of items (reasoning, messages, calls); the chat shape has one assistant message for it.
A run is read alike in a live answer and in its echo, so that the two compare equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

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
    whole_content,
    with_emission_times,
)

API = "openai.responses"

CALLS = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    "local_shell_call": "action",
    "shell_call": "action",
    "apply_patch_call": "operation",
    "tool_search_call": "arguments",
    "computer_call": "action",
}
"""Calls that the agent answers, each with the field that holds what it asks for."""

# Calls that the service runs by itself: no later item answers them.
# Their results stand in the very item, so that an `output` does not make it the agent's.
_SERVICE_CALLS = ("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call")
_COMPACTION_WANTED = ("compaction_trigger", "context_compaction")  # last item of a prompt that asks for a compaction


def read_prompt(request: Json, headers: Mapping[str, str], path: str) -> Prompt:
    """Read a request body; headers are lower case."""
    instructions = as_text(request.get("instructions"))
    system = (Message(role="system", content=instructions),) if instructions else ()
    given = request.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else list(map(as_object, as_list(given)))
    turn = _turn_metadata(request, headers)
    kind = as_text(turn.get("request_kind")) or None
    last = as_text(as_object(items[-1]).get("type")) if items else ""
    compacts = path.endswith("/compact") or kind == "compaction" or last in _COMPACTION_WANTED
    prewarms = request.get("generate") is False or kind == "prewarm"
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
        auxiliary=prewarms or kind == "memory" or path.endswith(("/input_tokens", "/trace_summarize")),
        compaction=(as_text(as_object(turn.get("compaction")).get("trigger")) or "unknown") if compacts else None,
        request_class="prewarm" if prewarms else kind,
        agent_type=_client_metadata(request).get("x-openai-subagent")
        or headers.get("x-openai-subagent")
        or as_text(turn.get("subagent_kind"))
        or None,
        context_generation=_generation(turn, request, headers),
    )


def _client_metadata(request: Json) -> dict[str, str]:
    """Texts of `client_metadata`, where Codex puts into the body what it also says in headers.

    Over a WebSocket the headers are those of the handshake and may be stale: the body is the call's own.
    """
    given = as_object(request.get("client_metadata"))
    return {name: value for name, value in given.items() if isinstance(value, str) and value}


def _turn_metadata(request: Json, headers: Mapping[str, str]) -> Json:
    """Codex's own description of the turn."""
    name = "x-codex-turn-metadata"
    text = _client_metadata(request).get(name) or headers.get(name)
    try:
        return as_object(read_json(text)) if text else {}
    except ValueError:
        return {}


def _generation(turn: Json, request: Json, headers: Mapping[str, str]) -> int | None:
    """How often Codex compacted the context: its window's number, also the end of `x-codex-window-id`."""
    name = "x-codex-window-id"
    if (number := as_count(turn.get("window_number"))) is not None:
        return number
    window = as_text(turn.get("window_id")) or _client_metadata(request).get(name) or headers.get(name, "")
    end = window.rpartition(":")[2]
    return int(end) if ":" in window and end.isascii() and end.isdigit() and len(end) < 10 else None


def read_hints(request: Json, headers: Mapping[str, str]) -> tuple[SessionHint, ...]:
    """Session ids of Codex (session, thread, parent thread) and of pi (`session_id`), then `prompt_cache_key`."""
    own, turn = _client_metadata(request), _turn_metadata(request, headers)

    def named(keys: tuple[str, ...], names: tuple[str, ...]) -> str | None:
        texts = [own.get(key) or as_text(turn.get(key)) for key in keys] + [headers.get(name) for name in names]
        return next((text for text in texts if text), None)

    session = named(("session_id",), ("session-id", "session_id", "x-session-id"))
    thread = named(("thread_id",), ("thread-id", "thread_id", "conversation_id"))
    parent = named(
        ("x-codex-parent-thread-id", "parent_thread_id"), ("x-codex-parent-thread-id", "x-parent-session-id")
    )
    hints: list[SessionHint] = []
    if root := session or thread:
        in_header = root in headers.values() or (parent is not None and parent in headers.values())
        evidence: Literal["header", "body"] = "header" if in_header else "body"
        if parent and root == (thread or root):
            # The session's own id is the sub-agent's: the parent's thread names the session.
            hints.append(SessionHint(session=parent, evidence=evidence, agent=root))
        elif thread and thread != root:
            hints.append(SessionHint(session=root, evidence=evidence, agent=thread, parent_agent=parent))
        else:
            hints.append(SessionHint(session=root, evidence=evidence))
    conversation = request.get("conversation")
    if named_here := as_text(conversation) or as_text(as_object(conversation).get("id")):
        hints.append(SessionHint(session=named_here, evidence="body"))
    if key := as_text(request.get("prompt_cache_key")):
        hints.append(SessionHint(session=key, evidence="body", cache_key=True))
    return tuple(hints)


def _read_tools(request: Json) -> Iterable[Tool]:
    for entry in map(as_object, as_list(request.get("tools"))):
        if entry.get("type") == "namespace":  # a group of tools under one name
            yield from _read_tools(entry)
            continue
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
        if kind in CALLS:
            body = item.get(CALLS[kind], "")
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
        elif kind == "mcp_approval_response":
            given = _given({"content": compact_json(item)}, "user")
        elif kind.endswith("_output") or ("output" in item and kind not in (*CALLS, *_SERVICE_CALLS)):
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


def read_ending(response: Json) -> tuple[str | None, str | None]:
    """(stop, error) of a finished response object."""
    status = as_text(response.get("status")) or None
    reason = as_text(as_object(response.get("incomplete_details")).get("reason"))
    error = error_text(response["error"]) if response.get("error") else None
    if status == "failed" and error is None:
        error = "response failed"
    return reason or status, error


def read_answer_items(items: Iterable[Json], emitted_at: Mapping[str, int], otherwise_ns: int | None) -> Message | None:
    """One assistant message of the items of an answer; None for no item."""
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


def service_calls(items: Iterable[Json]) -> tuple[str, ...]:
    """One note for each call that the service ran by itself."""
    kinds = (as_text(item.get("type")) for item in items)
    return tuple(f"the service itself ran {kind.removesuffix('_call')}" for kind in kinds if kind in _SERVICE_CALLS)


def read_body(body: Json, at_ns: int) -> Answer:
    """Read a non-streaming answer; every tool call was emitted when the last byte came, `at_ns`.

    `/responses/compact` gives the kept messages of the user beside the opaque summary: only the latter is the model's.
    """
    stop, error = read_ending(body)
    if stop in ("queued", "in_progress"):  # a background response, which the client fetches later
        error = error or f"the answer was still {stop.replace('_', ' ')}; what was fetched later is not read"
    output = [item for item in map(as_object, as_list(body.get("output"))) if item.get("role") in (None, "assistant")]
    message = read_answer_items(output, {}, at_ns)
    if body.get("object") == "response.compaction" and message is not None:
        stop = stop or "completed"
    return Answer(
        message=message,
        stop=stop,
        usage=read_usage(as_object(body.get("usage"))),
        response_id=as_text(body.get("id")) or None,
        content=whole_content(message, at_ns),
        error=error,
        complete=error is None and ("output" in body or "input_tokens" in body),
        model=as_text(body.get("model")) or None,
        notes=service_calls(output),
    )

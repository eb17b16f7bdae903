"""Reads a request to the scripted model: enough of each dialect to choose an answer, and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from capture.encoding import BodyDecoder
from capture.script import Dialect, ScriptedRequest, ToolResult


def dialect_of(path: str) -> Dialect | None:
    """Dialect that a request path (query allowed) belongs to; None for anything that is no call to a model."""
    plain = path.partition("?")[0].rstrip("/")
    if plain.endswith("/messages"):
        return "anthropic.messages"
    if plain.endswith("/chat/completions"):
        return "openai.chat"
    if plain.endswith("/responses"):
        return "openai.responses"
    return None


def decode_body(body: bytes, content_encoding: str) -> bytes:
    """Request body without its content encoding. Raises ValueError where it does not decode."""
    decoder = BodyDecoder(content_encoding)
    decoded = decoder.feed(body)
    if decoder.fault is not None:
        raise ValueError(decoder.fault)
    return decoded


def read_request(dialect: Dialect, path: str, body: bytes, issued: Mapping[str, int]) -> ScriptedRequest:
    """Reads a decoded body. `issued` maps ids of calls the server made to the number of the answer that held them.

    Raises ValueError where the body is no JSON object.
    """
    raw = json.loads(body)
    if not isinstance(raw, dict):
        raise ValueError("the body is no JSON object")  # noqa: TRY004 - a fault of the input, not of a type
    items = list(_ITEMS[dialect](raw))
    tools = [tool for tool in raw.get("tools") or () if isinstance(tool, dict)]
    return ScriptedRequest(
        dialect=dialect,
        path=path,
        model=str(raw.get("model", "")),
        stream=bool(raw.get("stream", False)),
        include_usage=bool((raw.get("stream_options") or {}).get("include_usage", False)),
        tool_names=tuple(_tool_name(tool) for tool in tools),
        custom_tool_names=tuple(_tool_name(tool) for tool in tools if tool.get("type") == "custom"),
        tool_results=tuple(item for item in items if isinstance(item, ToolResult)),
        answered=_answered(items, issued),
        last_user_text=next((text for kind, text in reversed(_pairs(items)) if kind == "user"), ""),
        body_bytes=len(body),
    )


def _tool_name(tool: dict[str, Any]) -> str:
    function = tool.get("function")
    named = function if isinstance(function, dict) else tool
    return str(named.get("name") or tool.get("type") or "")


# A prompt flattened: ("user", text), ("answer", ""), ("call", id) or a ToolResult.
type _Item = tuple[str, str] | ToolResult


def _pairs(items: list[_Item]) -> list[tuple[str, str]]:
    return [item for item in items if not isinstance(item, ToolResult)]


def _answered(items: list[_Item], issued: Mapping[str, int]) -> int:
    """Answers in a prompt: runs of the model's items, where a run goes on when it names a call of the same answer.

    Clients may put each parallel call beside its own result, so a result alone does not end an answer.
    """
    answers = 0
    open_run = False
    seen: set[int] = set()
    for item in items:
        if isinstance(item, ToolResult) or item[0] == "user":
            open_run = False
            continue
        kind, call_id = item
        number = issued.get(call_id) if kind == "call" else None
        if not open_run and (number is None or number not in seen):
            answers += 1
        open_run = True
        if number is not None:
            seen.add(number)
    return answers


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else json.dumps(content)


def _anthropic_items(raw: dict[str, Any]) -> Iterator[_Item]:
    for message in raw.get("messages") or ():
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for block in blocks:
            kind = block.get("type")
            if message.get("role") == "assistant":
                yield ("call", str(block.get("id"))) if kind == "tool_use" else ("answer", "")
            elif kind == "tool_result":
                yield ToolResult(
                    call_id=str(block.get("tool_use_id")),
                    text=_text(block.get("content")),
                    is_error=bool(block.get("is_error", False)),
                )
            else:
                yield ("user", str(block.get("text", "")))


def _chat_items(raw: dict[str, Any]) -> Iterator[_Item]:
    for message in raw.get("messages") or ():
        match message.get("role"):
            case "assistant":
                if message.get("content"):
                    yield ("answer", "")
                for call in message.get("tool_calls") or ():
                    yield ("call", str(call.get("id")))
            case "tool":
                yield ToolResult(call_id=str(message.get("tool_call_id")), text=_text(message.get("content")))
            case "user":
                yield ("user", _text(message.get("content")))


def _responses_items(raw: dict[str, Any]) -> Iterator[_Item]:
    given = raw.get("input") or ()
    if isinstance(given, str):
        yield ("user", given)
        return
    for item in given:
        kind = item.get("type", "message")
        if kind in ("function_call_output", "custom_tool_call_output"):
            yield ToolResult(call_id=str(item.get("call_id")), text=_text(item.get("output")))
        elif kind in ("function_call", "custom_tool_call"):
            yield ("call", str(item.get("call_id")))
        elif kind == "reasoning" or item.get("role") == "assistant":
            yield ("answer", "")
        elif item.get("role") == "user":
            yield ("user", _text(item.get("content")))


_ITEMS = {"anthropic.messages": _anthropic_items, "openai.chat": _chat_items, "openai.responses": _responses_items}

"""Messages written back into the request shape of each dialect, for tests that read them again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from capture.call import Message

PATHS = {
    "anthropic.messages": "/v1/messages",
    "openai.chat": "/v1/chat/completions",
    "openai.responses": "/v1/responses",
    "google.gemini": "/v1beta/models/m:streamGenerateContent?alt=sse",
}


def render(dialect: str, messages: Iterable[Message]) -> dict[str, Any]:
    """A request that carries these messages."""
    system = [message for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    match dialect:
        case "anthropic.messages":
            head: dict[str, Any] = {"system": system[0].content} if system else {}
            return {"model": "m", "stream": True, "messages": [_anthropic(one) for one in rest], **head}
        case "openai.chat":
            return {"model": "m", "stream": True, "messages": [_chat(one) for one in (*system, *rest)]}
        case "openai.responses":
            head = {"instructions": system[0].content} if system else {}
            return {"model": "m", "stream": True, "input": [item for one in rest for item in _items(one)], **head}
        case _:
            head = {"systemInstruction": {"parts": [{"text": system[0].content}]}} if system else {}
            return {"contents": [_gemini(one) for one in rest], **head}


def _anthropic(message: Message) -> dict[str, Any]:
    if message.role == "user":
        return {"role": "user", "content": message.content}
    blocks: list[dict[str, Any]] = []
    if message.role == "tool":
        error = {} if message.is_error is None else {"is_error": message.is_error}
        blocks.append({"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content} | error)
        return {"role": "user", "content": blocks}
    if message.reasoning_content is not None:
        blocks.append({"type": "thinking", "thinking": message.reasoning_content})
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    blocks += [
        {"type": "tool_use", "id": use.id, "name": use.name, "input": json.loads(use.arguments)}
        for use in message.tool_calls
    ]
    return {"role": "assistant", "content": blocks}


def _chat(message: Message) -> dict[str, Any]:
    raw: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "tool":
        raw["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        raw["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        raw["tool_calls"] = [
            {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.arguments}}
            for use in message.tool_calls
        ]
    return raw


def _items(message: Message) -> Iterable[dict[str, Any]]:
    if message.role == "user":
        yield {"type": "message", "role": "user", "content": [{"type": "input_text", "text": message.content}]}
    elif message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}
    else:
        if message.reasoning_content is not None:
            yield {"type": "reasoning", "summary": [{"type": "summary_text", "text": message.reasoning_content}]}
        if message.content:
            text = [{"type": "output_text", "text": message.content}]
            yield {"type": "message", "role": "assistant", "content": text}
        for use in message.tool_calls:
            yield {"type": "function_call", "call_id": use.id, "name": use.name, "arguments": use.arguments}


def _gemini(message: Message) -> dict[str, Any]:
    if message.role == "user":
        return {"role": "user", "parts": [{"text": message.content}]}
    if message.role == "tool":
        key = "error" if message.is_error else "output"
        response = {"id": message.tool_call_id, "name": message.name, "response": {key: message.content}}
        return {"role": "user", "parts": [{"functionResponse": response}]}
    parts: list[dict[str, Any]] = []
    if message.reasoning_content is not None:
        parts.append({"text": message.reasoning_content, "thought": True})
    if message.content:
        parts.append({"text": message.content})
    parts += [
        {"functionCall": {"id": use.id, "name": use.name, "args": json.loads(use.arguments)}}
        for use in message.tool_calls
    ]
    return {"role": "model", "parts": parts}

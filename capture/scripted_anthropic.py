"""Writes scripted answers as Anthropic Messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from capture.scripted_frame import Answer, Frame, named, pieces


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    fresh = (usage.input_total or 0) - usage.cache_read - usage.cache_write
    return {
        "input_tokens": max(0, fresh),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": usage.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage.output_total,
        "service_tier": "standard",
    }


def _stop(answer: Answer) -> str:
    return answer.step.stop or ("tool_use" if answer.step.calls else "end_turn")


def body(answer: Answer) -> dict[str, Any]:
    """The whole message."""
    step = answer.step
    content: list[dict[str, Any]] = []
    if step.reasoning:
        content.append({"type": "thinking", "thinking": step.reasoning, "signature": answer.identity("sig_")})
    if step.text:
        content.append({"type": "text", "text": step.text})
    for call_id, call in zip(answer.call_ids, step.calls, strict=True):
        content.append({"type": "tool_use", "id": call_id, "name": call.name, "input": json.loads(call.arguments)})
    return {
        "id": answer.identity("msg_"),
        "type": "message",
        "role": "assistant",
        "model": answer.request.model,
        "content": content,
        "stop_reason": _stop(answer),
        "stop_sequence": None,
        "usage": _usage(answer),
    }


def frames(answer: Answer) -> Iterator[Frame]:
    """The message as a stream."""
    step = answer.step
    usage = _usage(answer)
    start = body(answer) | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    yield named("message_start", {"type": "message_start", "message": start})
    yield named("ping", {"type": "ping"})
    blocks: list[tuple[dict[str, Any], str, str, str]] = []
    opening: dict[str, Any]
    if step.reasoning:
        opening = {"type": "thinking", "thinking": "", "signature": ""}
        blocks.append((opening, "thinking_delta", "thinking", step.reasoning))
    if step.text:
        blocks.append(({"type": "text", "text": ""}, "text_delta", "text", step.text))
    for call_id, call in zip(answer.call_ids, step.calls, strict=True):
        opening = {"type": "tool_use", "id": call_id, "name": call.name, "input": {}}
        blocks.append((opening, "input_json_delta", "partial_json", call.arguments))
    for index, (opening, kind, field, text) in enumerate(blocks):
        yield named(
            "content_block_start",
            {"type": "content_block_start", "index": index, "content_block": opening},
            starts_block=True,
        )
        deltas = [({"type": kind, field: piece}, True) for piece in pieces(text, step.piece_chars)]
        if kind == "thinking_delta":
            deltas.append(({"type": "signature_delta", "signature": answer.identity("sig_")}, False))
        for delta, is_content in deltas:
            yield named(
                "content_block_delta",
                {"type": "content_block_delta", "index": index, "delta": delta},
                content=is_content,
            )
        yield named("content_block_stop", {"type": "content_block_stop", "index": index})
    yield named(
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": _stop(answer), "stop_sequence": None},
            "usage": usage,
        },
    )
    yield named("message_stop", {"type": "message_stop"})


def error_frame(answer: Answer, kind: str, message: str) -> Frame:  # noqa: ARG001 - one signature for all
    """The event with which a stream fails."""
    return named("error", {"type": "error", "error": {"type": kind, "message": message}})

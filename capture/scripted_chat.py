"""Writes scripted answers as OpenAI Chat Completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capture.scripted_frame import Answer, Frame, pieces, plain


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    prompt, completion = usage.input_total or 0, usage.output_total or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _stop(answer: Answer) -> str:
    return answer.step.stop or ("tool_calls" if answer.step.calls else "stop")


def body(answer: Answer) -> dict[str, Any]:
    """The whole completion."""
    step = answer.step
    message: dict[str, Any] = {"role": "assistant", "content": step.text or None, "refusal": None}
    if step.reasoning:
        message["reasoning_content"] = step.reasoning
    if step.calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call_id, call in zip(answer.call_ids, step.calls, strict=True)
        ]
    return {
        "id": answer.identity("chatcmpl-"),
        "object": "chat.completion",
        "created": answer.created_s,
        "model": answer.request.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _stop(answer)}],
        "usage": _usage(answer),
    }


def frames(answer: Answer) -> Iterator[Frame]:
    """The completion as a stream of chunks."""
    step = answer.step
    head = {
        "id": answer.identity("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": answer.created_s,
        "model": answer.request.model,
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        whole = head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        return whole | {"usage": None} if answer.request.include_usage else whole

    yield plain(chunk({"role": "assistant", "content": ""}))
    for field, text in (("reasoning_content", step.reasoning), ("content", step.text)):
        for piece in pieces(text, step.piece_chars):
            yield plain(chunk({field: piece}), content=True)
    for index, (call_id, call) in enumerate(zip(answer.call_ids, step.calls, strict=True)):
        opening = {"index": index, "id": call_id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield plain(chunk({"tool_calls": [opening]}), starts_block=True)
        for piece in pieces(call.arguments, step.piece_chars):
            fragment = {"index": index, "function": {"arguments": piece}}
            yield plain(chunk({"tool_calls": [fragment]}), content=True)
    yield plain(chunk({}, _stop(answer)))
    if answer.request.include_usage:
        yield plain(head | {"choices": [], "usage": _usage(answer)})
    yield Frame(payload=b"[DONE]")


def error_frame(answer: Answer, kind: str, message: str) -> Frame:  # noqa: ARG001 - one signature for all
    """The chunk with which a stream fails."""
    return plain({"error": {"message": message, "type": kind, "param": None, "code": kind}})

"""Writes a scripted answer in a dialect: server-sent events with their content marked, or one JSON body."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from capture.script import Dialect, ScriptedRequest, ScriptedUsage, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One server-sent event. `content`: it carries text, reasoning or a piece of a tool call."""

    data: bytes
    content: bool = False
    starts_block: bool = False  # structure that belongs to the content behind it: written in the same breath


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a step says to one request, with the ids that the server gave."""

    request: ScriptedRequest
    step: Step
    number: int  # of the request, from 1
    salt: str
    created_s: int

    def identity(self, prefix: str) -> str:
        """An id of this answer in the manner of the provider: unique per server and request."""
        return f"{prefix}{self.salt}{self.number:06d}"

    @property
    def call_ids(self) -> tuple[str, ...]:
        """Id of each tool call of the step."""
        prefix = "toolu_" if self.request.dialect == "anthropic.messages" else "call_"
        return tuple(f"{prefix}{self.salt}{self.number:06d}{place:02d}" for place in range(len(self.step.calls)))

    @property
    def usage(self) -> ScriptedUsage:
        """The step's usage, with what it leaves open estimated at four bytes a token."""
        given = self.step.usage
        written = (
            len(self.step.text) + len(self.step.reasoning) + sum(len(c.name + c.arguments) for c in self.step.calls)
        )
        return ScriptedUsage(
            input_total=self.request.body_bytes // 4 + 1 if given.input_total is None else given.input_total,
            cache_read=given.cache_read,
            cache_write=given.cache_write,
            output_total=written // 4 + 1 + given.reasoning if given.output_total is None else given.output_total,
            reasoning=given.reasoning,
        )


def pieces(text: str, size: int) -> list[str]:
    """Text cut into pieces of `size` characters; none for no text."""
    return [text[start : start + size] for start in range(0, len(text), max(1, size))]


def frames(answer: Answer) -> Iterator[Frame]:
    """The answer as a stream, in the dialect of its request."""
    match answer.request.dialect:
        case "anthropic.messages":
            yield from _anthropic_frames(answer)
        case "openai.chat":
            yield from _chat_frames(answer)
        case "openai.responses":
            yield from _responses_frames(answer)


def body(answer: Answer) -> bytes:
    """The answer as one JSON document, in the dialect of its request."""
    match answer.request.dialect:
        case "anthropic.messages":
            whole = _anthropic_message(answer)
        case "openai.chat":
            whole = _chat_completion(answer)
        case "openai.responses":
            items = [item for _, item in _responses_items(answer)]
            whole = _response(answer, _responses_status(answer), items)
    return _json(whole)


def error_body(dialect: Dialect | None, kind: str, message: str) -> bytes:
    """Body of an HTTP error in a dialect's shape."""
    if dialect == "anthropic.messages":
        return _json({"type": "error", "error": {"type": kind, "message": message}, "request_id": None})
    return _json({"error": {"message": message, "type": kind, "param": None, "code": kind}})


def error_frame(answer: Answer, kind: str, message: str) -> Frame:
    """The event with which a stream fails after it has begun well."""
    match answer.request.dialect:
        case "anthropic.messages":
            return _event("error", {"type": "error", "error": {"type": kind, "message": message}})
        case "openai.chat":
            return _data({"error": {"message": message, "type": kind, "param": None, "code": kind}})
        case "openai.responses":
            failed = _response(answer, "failed", []) | {"error": {"code": kind, "message": message}}
            return _event("response.failed", {"type": "response.failed", "sequence_number": 99999, "response": failed})


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _event(name: str, value: object, *, content: bool = False, starts_block: bool = False) -> Frame:
    data = b"event: " + name.encode() + b"\ndata: " + _json(value) + b"\n\n"
    return Frame(data=data, content=content, starts_block=starts_block)


def _data(value: object, *, content: bool = False, starts_block: bool = False) -> Frame:
    return Frame(data=b"data: " + _json(value) + b"\n\n", content=content, starts_block=starts_block)


# Anthropic Messages


def _anthropic_usage(answer: Answer) -> dict[str, Any]:
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


def _anthropic_stop(answer: Answer) -> str:
    return answer.step.stop or ("tool_use" if answer.step.calls else "end_turn")


def _anthropic_message(answer: Answer) -> dict[str, Any]:
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
        "stop_reason": _anthropic_stop(answer),
        "stop_sequence": None,
        "usage": _anthropic_usage(answer),
    }


def _anthropic_frames(answer: Answer) -> Iterator[Frame]:
    step = answer.step
    usage = _anthropic_usage(answer)
    start = _anthropic_message(answer) | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    yield _event("message_start", {"type": "message_start", "message": start})
    yield _event("ping", {"type": "ping"})
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
        yield _event(
            "content_block_start",
            {"type": "content_block_start", "index": index, "content_block": opening},
            starts_block=True,
        )
        deltas = [({"type": kind, field: piece}, True) for piece in pieces(text, step.piece_chars)]
        if kind == "thinking_delta":
            deltas.append(({"type": "signature_delta", "signature": answer.identity("sig_")}, False))
        for delta, is_content in deltas:
            yield _event(
                "content_block_delta",
                {"type": "content_block_delta", "index": index, "delta": delta},
                content=is_content,
            )
        yield _event("content_block_stop", {"type": "content_block_stop", "index": index})
    yield _event(
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": _anthropic_stop(answer), "stop_sequence": None},
            "usage": usage,
        },
    )
    yield _event("message_stop", {"type": "message_stop"})


# OpenAI Chat Completions


def _chat_usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    prompt, completion = usage.input_total or 0, usage.output_total or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _chat_stop(answer: Answer) -> str:
    return answer.step.stop or ("tool_calls" if answer.step.calls else "stop")


def _chat_completion(answer: Answer) -> dict[str, Any]:
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
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _chat_stop(answer)}],
        "usage": _chat_usage(answer),
    }


def _chat_frames(answer: Answer) -> Iterator[Frame]:
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

    yield _data(chunk({"role": "assistant", "content": ""}))
    for field, text in (("reasoning_content", step.reasoning), ("content", step.text)):
        for piece in pieces(text, step.piece_chars):
            yield _data(chunk({field: piece}), content=True)
    for index, (call_id, call) in enumerate(zip(answer.call_ids, step.calls, strict=True)):
        named = {"index": index, "id": call_id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield _data(chunk({"tool_calls": [named]}), starts_block=True)
        for piece in pieces(call.arguments, step.piece_chars):
            fragment = {"index": index, "function": {"arguments": piece}}
            yield _data(chunk({"tool_calls": [fragment]}), content=True)
    yield _data(chunk({}, _chat_stop(answer)))
    if answer.request.include_usage:
        yield _data(head | {"choices": [], "usage": _chat_usage(answer)})
    yield Frame(data=b"data: [DONE]\n\n")


# OpenAI Responses


def _responses_status(answer: Answer) -> str:
    return answer.step.stop or "completed"


def _response(answer: Answer, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    usage = answer.usage
    whole: dict[str, Any] = {
        "id": answer.identity("resp_"),
        "object": "response",
        "created_at": answer.created_s,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "model": answer.request.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "usage": None,
    }
    if status in ("completed", "incomplete"):
        whole["usage"] = {
            "input_tokens": usage.input_total,
            "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
            "output_tokens": usage.output_total,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": (usage.input_total or 0) + (usage.output_total or 0),
        }
    return whole


def _responses_items(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    """The output items with the text that streams in each."""
    step = answer.step
    if step.reasoning:
        summary = [{"type": "summary_text", "text": step.reasoning}]
        yield (
            step.reasoning,
            {"id": answer.identity("rs_"), "type": "reasoning", "summary": summary, "encrypted_content": None},
        )
    if step.text:
        content = [{"type": "output_text", "text": step.text, "annotations": [], "logprobs": []}]
        yield (
            step.text,
            {
                "id": answer.identity("msg_"),
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": content,
            },
        )
    for call_id, call in zip(answer.call_ids, step.calls, strict=True):
        custom = call.name in answer.request.custom_tool_names
        yield (
            call.arguments,
            {
                "id": ("ctc_" if custom else "fc_") + call_id.removeprefix("call_"),
                "type": "custom_tool_call" if custom else "function_call",
                "status": "completed",
                "call_id": call_id,
                "name": call.name,
                "input" if custom else "arguments": call.arguments,
            },
        )


_RESPONSES_DELTA = {
    "reasoning": "response.reasoning_summary_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}


def _responses_empty(kind: str) -> dict[str, Any]:
    """What an output item lacks while it has only been added."""
    if kind == "reasoning":
        return {"summary": []}
    if kind == "message":
        return {"content": [], "status": "in_progress"}
    return {"input" if kind == "custom_tool_call" else "arguments": "", "status": "in_progress"}


def _responses_frames(answer: Answer) -> Iterator[Frame]:
    sequence = -1

    def event(name: str, fields: dict[str, Any], *, content: bool = False, starts_block: bool = False) -> Frame:
        nonlocal sequence
        sequence += 1
        value = {"type": name, "sequence_number": sequence} | fields
        return _event(name, value, content=content, starts_block=starts_block)

    yield event("response.created", {"response": _response(answer, "in_progress", [])})
    yield event("response.in_progress", {"response": _response(answer, "in_progress", [])})
    done: list[dict[str, Any]] = []
    for index, (text, item) in enumerate(_responses_items(answer)):
        kind = item["type"]
        place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        opened = {"output_index": index, "item": item | _responses_empty(kind)}
        yield event("response.output_item.added", opened, starts_block=True)
        part: dict[str, Any] | None = None
        part_name = ""
        if kind == "reasoning":
            part_name, part = "response.reasoning_summary_part", {"type": "summary_text", "text": text}
            place |= {"summary_index": 0}
        elif kind == "message":
            part_name, part = "response.content_part", item["content"][0]
            place |= {"content_index": 0}
        if part is not None:
            yield event(f"{part_name}.added", place | {"part": part | {"text": ""}}, starts_block=True)
        extra: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        for piece in pieces(text, answer.step.piece_chars):
            yield event(f"{_RESPONSES_DELTA[kind]}.delta", place | {"delta": piece} | extra, content=True)
        whole_field = {"function_call": "arguments", "custom_tool_call": "input"}.get(kind, "text")
        yield event(f"{_RESPONSES_DELTA[kind]}.done", place | {whole_field: text} | extra)
        if part is not None:
            yield event(f"{part_name}.done", place | {"part": part})
        yield event("response.output_item.done", {"output_index": index, "item": item})
        done.append(item)
    status = _responses_status(answer)
    yield event(f"response.{status}", {"response": _response(answer, status, done)})

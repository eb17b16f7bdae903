"""Writes scripted answers as OpenAI Responses, for server-sent events and for a WebSocket alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capture.scripted_frame import Answer, Frame, named, pieces


def _status(answer: Answer) -> str:
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
        "previous_response_id": answer.request.previous_response_id,
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


def _items(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    """The output items with the text that streams in each."""
    step = answer.step
    if answer.request.purpose == "prewarm":
        return
    if answer.request.compaction_item:
        yield "", {"id": answer.identity("cmp_"), "type": "compaction", "encrypted_content": step.text}
        return
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
        namespace = call.namespace or answer.request.namespaces.get(call.name)
        yield (
            call.arguments,
            {
                "id": ("ctc_" if custom else "fc_") + call_id.removeprefix("call_"),
                "type": "custom_tool_call" if custom else "function_call",
                "status": "completed",
                "call_id": call_id,
                "name": call.name,
                **({"namespace": namespace} if namespace else {}),
                "input" if custom else "arguments": call.arguments,
            },
        )


_DELTA = {
    "reasoning": "response.reasoning_summary_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}


def _empty(kind: str) -> dict[str, Any]:
    """What an output item lacks while it has only been added."""
    if kind == "compaction":
        return {}
    if kind == "reasoning":
        return {"summary": []}
    if kind == "message":
        return {"content": [], "status": "in_progress"}
    return {"input" if kind == "custom_tool_call" else "arguments": "", "status": "in_progress"}


def frames(answer: Answer) -> Iterator[Frame]:
    """The response as a stream of events, numbered from 0."""
    sequence = -1

    def event(name: str, fields: dict[str, Any], *, content: bool = False, starts_block: bool = False) -> Frame:
        nonlocal sequence
        sequence += 1
        value = {"type": name, "sequence_number": sequence} | fields
        return named(name, value, content=content, starts_block=starts_block)

    yield event("response.created", {"response": _response(answer, "in_progress", [])})
    yield event("response.in_progress", {"response": _response(answer, "in_progress", [])})
    done: list[dict[str, Any]] = []
    for index, (text, item) in enumerate(_items(answer)):
        kind = item["type"]
        place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        opened = {"output_index": index, "item": item | _empty(kind)}
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
        if kind == "compaction":
            yield event("response.output_item.done", {"output_index": index, "item": item}, content=True)
            done.append(item)
            continue
        for piece in pieces(text, answer.step.piece_chars):
            yield event(f"{_DELTA[kind]}.delta", place | {"delta": piece} | extra, content=True)
        whole_field = {"function_call": "arguments", "custom_tool_call": "input"}.get(kind, "text")
        yield event(f"{_DELTA[kind]}.done", place | {whole_field: text} | extra)
        if part is not None:
            yield event(f"{part_name}.done", place | {"part": part})
        yield event("response.output_item.done", {"output_index": index, "item": item})
        done.append(item)
    status = _status(answer)
    yield event(f"response.{status}", {"response": _response(answer, status, done)})


def body(answer: Answer) -> dict[str, Any]:
    """The whole response; for `/responses/compact` the user's messages and the compaction item."""
    items = output(answer)
    if not answer.request.path.partition("?")[0].rstrip("/").endswith("/compact"):
        return _response(answer, _status(answer), items)
    kept = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        for text in answer.request.user_texts
    ]
    usage = _response(answer, "completed", [])["usage"]
    return {
        "id": answer.response_id,
        "object": "response.compaction",
        "created_at": answer.created_s,
        "output": kept + items,
        "usage": usage,
    }


def output(answer: Answer) -> list[dict[str, Any]]:
    """The output items: what a later prompt that names this response goes on from."""
    return [item for _, item in _items(answer)]


def error_frame(answer: Answer, kind: str, message: str) -> Frame:
    """The event with which a stream fails."""
    failed = _response(answer, "failed", []) | {"error": {"code": kind, "message": message}}
    return named("response.failed", {"type": "response.failed", "sequence_number": 99999, "response": failed})

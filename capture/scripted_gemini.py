"""Writes scripted answers as Gemini's GenerateContentResponse, bare or wrapped as Code Assist does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from capture.scripted_frame import Answer, Frame, pieces, plain

_STATUS_WORDS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    prompt, output = usage.input_total or 0, usage.output_total or 0
    return {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": usage.cache_read,
        "candidatesTokenCount": output - usage.reasoning,  # Gemini counts thoughts apart
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": prompt + output,
    }


def _wrapped(answer: Answer, response: dict[str, Any]) -> dict[str, Any]:
    if "v1internal:" in answer.request.path:
        return {"response": response, "traceId": answer.identity("trace")}
    return response


def _response(answer: Answer, parts: list[dict[str, Any]], finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    whole = {
        "candidates": [candidate],
        "usageMetadata": _usage(answer),
        "modelVersion": answer.request.model,
        "responseId": answer.response_id,
    }
    return _wrapped(answer, whole)


def _call_parts(answer: Answer) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for call in answer.step.calls:
        part: dict[str, Any] = {"functionCall": {"name": call.name, "args": json.loads(call.arguments)}}
        if not parts:  # the first call of an answer carries the signature
            part["thoughtSignature"] = answer.identity("c2ln")
        parts.append(part)
    return parts


def body(answer: Answer) -> dict[str, Any]:
    """The whole response."""
    step = answer.step
    parts: list[dict[str, Any]] = []
    if step.reasoning:
        parts.append({"text": step.reasoning, "thought": True})
    if step.text:
        parts.append({"text": step.text})
    return _response(answer, parts + _call_parts(answer), step.stop or "STOP")


def frames(answer: Answer) -> Iterator[Frame]:
    """The response as chunks; a tool call comes whole, and the end of the connection is the end."""
    step = answer.step
    for text, extra in ((step.reasoning, {"thought": True}), (step.text, {})):
        for piece in pieces(text, step.piece_chars):
            yield plain(_response(answer, [{"text": piece, **extra}]), content=True)
    for part in _call_parts(answer):
        yield plain(_response(answer, [part]), content=True)
    yield plain(_response(answer, [{"text": ""}], step.stop or "STOP"))


def error(kind: str, message: str, status: int) -> dict[str, Any]:
    """An error as Google's services spell it."""
    word = _STATUS_WORDS.get(status, kind.upper())
    return {"error": {"code": status, "message": message, "status": word}}


def error_frame(answer: Answer, kind: str, message: str) -> Frame:  # noqa: ARG001 - one signature for all
    """The chunk with which a stream fails."""
    return plain(error(kind, message, 503))

"""A scripted answer: what a step says to one request, and its frames or its one JSON body in the request's dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capture import scripted_anthropic, scripted_chat, scripted_gemini, scripted_responses
from capture.script import Dialect, ScriptedRequest
from capture.scripted_frame import Answer, Frame, as_json, pieces

__all__ = ["Answer", "Frame", "body", "error_body", "error_frame", "frames", "is_array", "pieces", "response_headers"]

_WRITERS: dict[Dialect, Any] = {
    "anthropic.messages": scripted_anthropic,
    "openai.chat": scripted_chat,
    "openai.responses": scripted_responses,
    "google.gemini": scripted_gemini,
}


def frames(answer: Answer) -> Iterator[Frame]:
    """The answer as a stream, in the dialect of its request."""
    yield from _WRITERS[answer.request.dialect].frames(answer)


def body(answer: Answer) -> bytes:
    """The answer as one JSON document, in the dialect of its request."""
    return as_json(_WRITERS[answer.request.dialect].body(answer))


def error_body(dialect: Dialect | None, kind: str, message: str, status: int = 400) -> bytes:
    """Body of an HTTP error in a dialect's shape."""
    if dialect == "anthropic.messages":
        return as_json({"type": "error", "error": {"type": kind, "message": message}, "request_id": None})
    if dialect == "google.gemini":
        return as_json(scripted_gemini.error(kind, message, status))
    return as_json({"error": {"message": message, "type": kind, "param": None, "code": kind}})


def error_frame(answer: Answer, kind: str, message: str) -> Frame:
    """The event with which a stream fails after it has begun well."""
    frame: Frame = _WRITERS[answer.request.dialect].error_frame(answer, kind, message)
    return frame


def is_array(request: ScriptedRequest) -> bool:
    """Whether a streamed answer is one JSON array that grows (Gemini without `alt=sse`)."""
    return request.dialect == "google.gemini" and request.stream and "alt=sse" not in request.path


def response_headers(answer: Answer) -> dict[str, str]:
    """The header with the request's id, by its name in the dialect."""
    name = "request-id" if answer.request.dialect == "anthropic.messages" else "x-request-id"
    return {name: answer.identity("req_")}

"""What every dialect hands back, and careful access to JSON that others wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from capture.call import Message, SessionHint, Tool, ToolUse, Usage

type Json = Mapping[str, Any]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The request half of a call."""

    model: str
    stream: bool
    system: tuple[Message, ...]
    messages: tuple[Message, ...]  # `system` included at its head
    tools: tuple[Tool, ...]
    hints: tuple[SessionHint, ...]
    max_tokens: int | None
    temperature: float | None
    effort: str | None
    previous_response_id: str | None = None
    auxiliary: bool = False
    compaction: str | None = None  # the agent says that this call summarises the context
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response half of a call."""

    message: Message | None
    stop: str | None
    usage: Usage
    response_id: str | None
    content_at_ns: tuple[int, ...]  # one per content event
    error: str | None  # an error that the answer itself carries
    complete: bool  # the answer's own end was seen
    model: str | None = None
    notes: tuple[str, ...] = ()


def read_json(text: str | bytes) -> Any:
    """Decode JSON; ValueError where it is none. Lone surrogates, which no UTF-8 file can hold, become U+FFFD."""
    try:
        value = json.loads(text)
    except RecursionError as fault:
        raise ValueError("nested too deeply") from fault
    probe = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return _without_surrogates(value) if b"\\ud" in probe or b"\\uD" in probe or b"\xed" in probe else value


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def compact_json(value: Any) -> str:
    """JSON text with key order kept and no spaces, so that equal values read equal."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_object(value: Any) -> Json:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """The value if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def as_count(value: Any) -> int | None:
    """A non-negative whole number, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and value >= 0 else None


def as_number(value: Any) -> float | None:
    """A number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def size_of(value: Any) -> int:
    """Bytes of a part that text cannot hold, as it stood in the JSON."""
    return len(value.encode("utf-8", "replace")) if isinstance(value, str) else len(compact_json(value).encode())


def join_texts(texts: Iterable[str]) -> str:
    """Texts of neighbouring parts as one; vendors keep them apart, the chat shape does not."""
    return "\n".join(texts)


def error_text(value: Any) -> str | None:
    """`type: message` of an error object in any vendor's shape; None where there is none."""
    if isinstance(value, str):
        return value or None
    error = as_object(value)
    inner = error.get("error")
    if isinstance(inner, dict | str):
        return error_text(inner)
    kinds = (as_text(error.get("type")), as_text(error.get("code")))
    kind = next((word for word in kinds if word and word != "error"), "")  # "error" names the event alone
    words = as_text(error.get("message")) or as_text(error.get("detail"))
    return ": ".join(part for part in (kind, words) if part) or (compact_json(error) if error else None)


def with_emission_times(message: Message, times: Mapping[int, int]) -> Message:
    """The message with `t_emitted_ns` set on its tool calls, by their position."""
    calls = tuple(
        ToolUse(id=call.id, name=call.name, arguments=call.arguments, t_emitted_ns=times.get(position))
        for position, call in enumerate(message.tool_calls)
    )
    return Message(
        role=message.role,
        content=message.content,
        reasoning_content=message.reasoning_content,
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=calls,
        is_error=message.is_error,
        omitted_bytes=message.omitted_bytes,
    )

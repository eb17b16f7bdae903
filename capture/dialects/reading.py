"""What every dialect hands back, and careful access to JSON that others wrote."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from capture.call import Message, SessionHint, Tool, ToolUse, Usage

type Json = Mapping[str, Any]

_MOST = 2**53  # from here on JSON's numbers are no longer whole ones everywhere
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
    request_class: str | None = None  # the agent's own word for what the call is
    agent_type: str | None = None  # the agent's own word for its sub-agent
    context_generation: int | None = None  # how often the context was compacted, where the agent counts it


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentTimes:
    """When content came (monotonic ns): every content event, and the first of each kind."""

    at_ns: tuple[int, ...] = ()
    first_text_ns: int | None = None
    first_thinking_ns: int | None = None
    first_tool_call_ns: int | None = None


type ContentKind = Literal["text", "thinking", "tool_call"]


class ContentClock:
    """Collects content times while a stream is read."""

    def __init__(self) -> None:
        self._at: list[int] = []
        self._first: dict[ContentKind, int] = {}

    def see(self, at_ns: int, *kinds: ContentKind) -> None:
        """One content event, and what it held; nothing for no kind."""
        if kinds:
            self._at.append(at_ns)
        for kind in kinds:
            self._first.setdefault(kind, at_ns)

    def times(self) -> ContentTimes:
        """What was collected."""
        return ContentTimes(
            at_ns=tuple(self._at),
            first_text_ns=self._first.get("text"),
            first_thinking_ns=self._first.get("thinking"),
            first_tool_call_ns=self._first.get("tool_call"),
        )


def whole_content(message: Message | None, at_ns: int) -> ContentTimes:
    """Content times of an answer that came in one piece at `at_ns`."""
    if message is None:
        return ContentTimes()
    return ContentTimes(
        at_ns=(at_ns,),
        first_text_ns=at_ns if message.content else None,
        first_thinking_ns=at_ns if message.reasoning_content else None,
        first_tool_call_ns=at_ns if message.tool_calls else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response half of a call."""

    message: Message | None
    stop: str | None
    usage: Usage
    response_id: str | None
    content: ContentTimes
    error: str | None  # an error that the answer itself carries
    complete: bool  # the answer's own end was seen
    model: str | None = None
    notes: tuple[str, ...] = ()


NO_ANSWER = Answer(
    message=None, stop=None, usage=Usage(), response_id=None, content=ContentTimes(), error=None, complete=False
)


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
    """A non-negative whole number, or None; what no file could hold (2**53 and more) counts nothing."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and 0 <= value < _MOST else None


def as_number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST < value < _MOST:
        return None
    return float(value)


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
    calls = tuple(replace(call, t_emitted_ns=times.get(position)) for position, call in enumerate(message.tool_calls))
    return replace(message, tool_calls=calls)


def with_call_ids(messages: tuple[Message, ...], answer: Message | None) -> tuple[tuple[Message, ...], Message | None]:
    """Conversation and answer with an id on every tool call that came without one, and on its result.

    Gemini need not send ids, nor did the first function calls of Chat Completions. The id is made of the call's own
    words and of how often they stood before, so that a live answer and its echo get the same one. A result without an
    id that a call has belongs to the first open call of its name, else to the first open one.
    """
    said = (*messages, *(() if answer is None else (answer,)))
    if all(use.id for message in said for use in message.tool_calls):
        return messages, answer
    given = {use.id for message in said for use in message.tool_calls if use.id}
    seen: Counter[tuple[str, str]] = Counter()
    waiting: list[ToolUse] = []
    named: list[Message] = []
    for message in said:
        if message.tool_calls:
            calls = []
            for use in message.tool_calls:
                if not use.id:
                    words = (use.name, use.arguments)
                    digest = hashlib.blake2b("\0".join(words).encode("utf-8", "replace"), digest_size=9).hexdigest()
                    use = replace(use, id=f"unnamed-{digest}-{seen[words]}")
                    seen[words] += 1
                    waiting.append(use)
                calls.append(use)
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool" and message.tool_call_id not in given and waiting:
            place = next((at for at, use in enumerate(waiting) if use.name == message.name), 0)
            message = replace(message, tool_call_id=waiting.pop(place).id)
        named.append(message)
    return tuple(named[: len(messages)]), named[-1] if answer is not None else None

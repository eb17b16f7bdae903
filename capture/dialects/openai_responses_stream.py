"""The events of one OpenAI response, read alike from server-sent events and from the frames of a WebSocket.

Codex's own backend ends with a `response.completed` whose `output` is empty: the items then come from
`response.output_item.done` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from capture.dialects.openai_responses import CALLS, read_answer_items, read_ending, read_usage, service_calls
from capture.dialects.reading import (
    Answer,
    ContentClock,
    ContentKind,
    Json,
    as_count,
    as_list,
    as_object,
    as_text,
    error_text,
    read_json,
)
from capture.sse import ServerEvent

_CONTENT_EVENTS: dict[str, ContentKind] = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "text",
    "response.reasoning_text.delta": "thinking",
    "response.reasoning_summary_text.delta": "thinking",
    "response.function_call_arguments.delta": "tool_call",
    "response.custom_tool_call_input.delta": "tool_call",
    "response.mcp_call_arguments.delta": "tool_call",
    "response.shell_call_command.delta": "tool_call",
    "response.apply_patch_call_operation_diff.delta": "tool_call",
}
ENDINGS = ("response.completed", "response.incomplete", "response.failed", "response.done", "response.cancelled")


class ResponseReader:
    """Collects the events of one response; it may be cut anywhere."""

    def __init__(self) -> None:
        self.ended = False  # the response's own end was seen, a good one or a bad one
        self._items: dict[int, Json] = {}
        self._partial: dict[int, dict[str, Any]] = {}
        self._emitted_at: dict[str, int] = {}
        self._content = ContentClock()
        self._notes: list[str] = []
        self._last: Json = {}
        self._error: str | None = None
        self._complete = self._failed = False

    def note(self, words: str) -> None:
        """Adds a note to the answer."""
        self._notes.append(words)

    def take(self, kind: str, data: Json, at_ns: int) -> None:
        """Takes one event."""
        index = as_count(data.get("output_index"))
        if kind in _CONTENT_EVENTS:
            if piece := as_text(data.get("delta")):
                self._content.see(at_ns, _CONTENT_EVENTS[kind])
                _add_fragment(self._partial.setdefault(index or 0, {}), kind, piece)
        elif kind == "response.output_item.added":
            item = as_object(data.get("item"))
            self._partial.setdefault(index if index is not None else len(self._partial), {}).update(item)
            if as_text(item.get("type")) in CALLS:
                self._content.see(at_ns, "tool_call")
        elif kind == "response.output_item.done":
            item = as_object(data.get("item"))
            if index is None or index not in self._partial or item.get("type") == "compaction":  # came whole
                self._content.see(at_ns, *_kinds(item))
            self._items[index if index is not None else len(self._items)] = item
            if as_text(item.get("type")) in CALLS:
                self._emitted_at[as_text(item.get("call_id")) or as_text(item.get("id"))] = at_ns
        elif kind in ENDINGS:
            self._end(kind, as_object(data.get("response")))
        elif kind in ("response.created", "response.in_progress", "response.queued"):
            self._last = as_object(data.get("response")) or self._last
        elif kind == "error":
            self._error = error_text(data) or "error"
            self.ended = True

    def _end(self, kind: str, response: Json) -> None:
        self._last = response or self._last
        self.ended = True
        self._failed = kind in ("response.failed", "response.cancelled")
        self._complete = not self._failed
        if self._failed:
            self._error = read_ending(self._last)[1] or kind.replace(".", " ")

    def answer(self) -> Answer:
        """What has come so far."""
        output = [as_object(item) for item in as_list(self._last.get("output"))] if self._complete else []
        items = output if output and not self._items else self._in_order()
        return Answer(
            message=read_answer_items(items, self._emitted_at, None),
            stop=read_ending(self._last)[0] if self._complete or self._failed else None,
            usage=read_usage(as_object(self._last.get("usage"))),
            response_id=as_text(self._last.get("id")) or None,
            content=self._content.times(),
            error=self._error,
            complete=self._complete and self._error is None,
            model=as_text(self._last.get("model")) or None,
            notes=(*self._notes, *service_calls(items)),
        )

    def _in_order(self) -> list[Json]:
        """Finished items, and what came of the unfinished ones, in the order of the output.

        A call that was cut is left out: no agent runs it or sends it back.
        """
        ordered: list[Json] = []
        for index in sorted({*self._items, *self._partial}):
            if index in self._items:
                ordered.append(self._items[index])
                continue
            item = dict(self._partial[index])
            kind = as_text(item.get("type"))
            if text := item.pop("partial_text", ""):
                item = {"type": "message", "content": text}
            elif thought := item.pop("partial_thought", ""):
                item = {"type": "reasoning", "summary": [{"text": thought}]}
            elif kind in CALLS and not self._complete:
                self.note(f"a call of {as_text(item.get('name')) or kind} was cut and is left out")
                continue
            elif (arguments := item.pop("partial_arguments", "")) and kind in CALLS:
                item[CALLS[kind]] = arguments
            if item.get("type"):
                ordered.append(item)
        return ordered


def read_stream(events: Iterable[ServerEvent]) -> Answer:
    """Read a streamed answer, also one that was cut anywhere, or that the client left after its own end."""
    reader = ResponseReader()
    for event in events:
        if event.data.strip() == "[DONE]":
            continue
        try:
            data = as_object(read_json(event.data))
        except ValueError:
            reader.note(f"event {event.event!r} holds no JSON")
            continue
        reader.take(as_text(data.get("type")) or event.event, data, event.at_ns)
    return reader.answer()


def _kinds(item: Json) -> tuple[ContentKind, ...]:
    """What a whole item holds."""
    kind = as_text(item.get("type"))
    if kind in CALLS:
        return ("tool_call",)
    if kind == "reasoning":
        return ("thinking",)
    return ("text",) if kind in ("message", "compaction") else ()


def _add_fragment(item: dict[str, Any], kind: str, piece: str) -> None:
    """Keep what came of an item that may never be done."""
    name = kind.removeprefix("response.").removesuffix(".delta")
    if name in ("output_text", "refusal"):
        field = "partial_text"
    elif name.startswith("reasoning"):
        field = "partial_thought"
    else:
        field = "partial_arguments"
    item[field] = as_text(item.get(field)) + piece

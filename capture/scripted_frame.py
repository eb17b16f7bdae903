"""What every dialect's writer shares: an answer with its ids and usage, and one event of a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass

from capture.script import ScriptedRequest, ScriptedUsage, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One event of a stream. `content`: it carries text, reasoning or a piece of a tool call."""

    payload: bytes  # JSON, or a dialect's own word
    event: str = ""  # name of the server-sent event; none where the dialect names none
    content: bool = False
    starts_block: bool = False  # structure that belongs to the content behind it: written in the same breath

    @property
    def sse(self) -> bytes:
        """The frame as one server-sent event."""
        name = b"event: " + self.event.encode() + b"\n" if self.event else b""
        return name + b"data: " + self.payload + b"\n\n"


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
    def response_id(self) -> str:
        """The answer's id in its dialect."""
        prefixes = {"anthropic.messages": "msg_", "openai.chat": "chatcmpl-", "openai.responses": "resp_"}
        return self.identity(prefixes.get(self.request.dialect, "gen_"))

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


def as_json(value: object) -> bytes:
    """JSON without spaces, as providers write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def named(name: str, value: object, *, content: bool = False, starts_block: bool = False) -> Frame:
    """An event with a name."""
    return Frame(payload=as_json(value), event=name, content=content, starts_block=starts_block)


def plain(value: object, *, content: bool = False, starts_block: bool = False) -> Frame:
    """An event without a name."""
    return Frame(payload=as_json(value), content=content, starts_block=starts_block)

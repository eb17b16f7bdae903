"""Recorded messages as the pre-encoded pieces of an OpenAI chat request, cut shorter where the plan says so.

Each message is encoded once a session; the body of a turn is a join of pieces. A message is cut by a rule that sees
nothing but the message, so that prompts that shared a prefix still share it.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import msgspec

from curate.tokens import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tiktoken

    from capture.call import Message, Tool, ToolUse

    type Json = dict[str, Json] | list[Json] | str | int | float | bool | None

PER_MESSAGE_TOKENS = 6
"""Tokens that a chat template puts around a message, for estimates only; the server's own count is what is recorded."""

SYSTEM_ROLES = frozenset({"system", "developer"})


class Cutter:
    """Cuts a text to `ceil(scale × its tokens)` tokens, keeping its head."""

    def __init__(self, encoding: tiktoken.Encoding, scale: float) -> None:
        self._encoding = encoding
        self._scale = scale

    def cut(self, text: str) -> tuple[str, int]:
        """The shortened text and its tokens."""
        if not text:
            return text, 0
        tokens = encode(self._encoding, text)
        keep = math.ceil(len(tokens) * self._scale - 1e-9)
        if keep >= len(tokens):
            return text, len(tokens)
        # A cut inside a character leaves half of it: that half goes too.
        return self._encoding.decode(tokens[:keep], errors="ignore"), keep

    def count(self, text: str) -> int:
        """Tokens of a text that is not cut."""
        return len(encode(self._encoding, text))

    def cut_json(self, value: Json, key: str | None = None) -> tuple[Json, int]:
        """JSON of the same shape whose strings are cut (all of them, or under `key` only), and the tokens of those."""
        if isinstance(value, str):
            return self.cut(value) if key is None else (value, 0)
        if isinstance(value, list):
            items = [self.cut_json(item, key) for item in value]
            return [item for item, _ in items], sum(tokens for _, tokens in items)
        if isinstance(value, dict):
            shape: dict[str, Json] = {}
            total = 0
            for name, item in value.items():
                inside = None if name == key and isinstance(item, str) else key
                shape[name], tokens = self.cut_json(item, inside)
                total += tokens
            return shape, total
        return value, 0


class Piece(msgspec.Struct, frozen=True):
    """One encoded message (or list of tools) and its tokens; None where nothing had to be counted."""

    data: bytes
    tokens: int | None


def encode_message(role: str, content: str, message: Message, cutter: Cutter | None) -> Piece:
    """A message as JSON bytes that begin with the role, then the content."""
    tokens = PER_MESSAGE_TOKENS
    content, counted = _shorten(content, cutter)
    tokens += counted
    shape: dict[str, object] = {"role": role, "content": content}
    if role == "assistant":
        if message.reasoning_content:
            shape["reasoning_content"], counted = _shorten(message.reasoning_content, cutter)
            tokens += counted
        if message.tool_calls:
            calls = [_encode_call(call, cutter) for call in message.tool_calls]
            shape["tool_calls"] = [call for call, _ in calls]
            tokens += sum(counted for _, counted in calls)
    if message.name is not None:
        shape["name"] = message.name
    if message.tool_call_id is not None and role == "tool":
        shape["tool_call_id"] = message.tool_call_id
    return Piece(data=msgspec.json.encode(shape), tokens=None if cutter is None else tokens)


def sendable(text: str) -> str:
    """A text as UTF-8 can carry it: half a surrogate pair, as a truncated tool result may hold, becomes `?`."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _shorten(text: str, cutter: Cutter | None) -> tuple[str, int]:
    text = sendable(text)
    return (text, 0) if cutter is None else cutter.cut(text)


def _encode_call(call: ToolUse, cutter: Cutter | None) -> tuple[dict[str, object], int]:
    """A tool call whose arguments are a JSON object; free text, as custom tools take it, stands under `input`."""
    try:
        arguments: Json = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = call.arguments
    sound = isinstance(arguments, dict) and bool(call.arguments)
    if not isinstance(arguments, dict):
        arguments = {"input": call.arguments}
    text, tokens = call.arguments, PER_MESSAGE_TOKENS
    if cutter is not None:
        shorter, counted = cutter.cut_json(arguments)
        tokens += counted
        sound = sound and shorter == arguments
        arguments = shorter
    if not sound:
        text = json.dumps(arguments, ensure_ascii=False)
    text, _ = _shorten(text, None)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": text}}, tokens


def encode_tools(tools: Sequence[Tool], cutter: Cutter | None) -> Piece:
    """Tools as a JSON list; when cut, only descriptions become shorter, so that the schemas stay what they were."""
    tokens = 0
    shapes = []
    for tool in tools:
        description, counted = _shorten(tool.description, cutter)
        try:
            parameters: Json = json.loads(tool.parameters or "{}")
        except ValueError:
            parameters = None
        if not isinstance(parameters, dict) or not parameters:
            # A custom tool (free text in, no schema): any object will do, since nobody validates a replayed call.
            parameters = {"type": "object", "properties": {}}
        if cutter is not None:
            parameters, _ = cutter.cut_json(parameters, "description")
            structure = cutter.count(json.dumps(parameters, ensure_ascii=False))
            tokens += PER_MESSAGE_TOKENS + counted + structure
        function = {"name": tool.name, "description": description, "parameters": parameters}
        shapes.append({"type": "function", "function": function})
    return Piece(data=msgspec.json.encode(shapes), tokens=None if cutter is None else tokens)

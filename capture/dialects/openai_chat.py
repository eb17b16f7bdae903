"""OpenAI Chat Completions, and the vendor fields that serving stacks add (`reasoning_content`, `reasoning`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from capture.call import Message, SessionHint, Tool, ToolUse, Usage
from capture.dialects.reading import (
    Answer,
    ContentClock,
    ContentKind,
    Json,
    Prompt,
    as_count,
    as_list,
    as_number,
    as_object,
    as_text,
    compact_json,
    error_text,
    join_texts,
    read_json,
    size_of,
    whole_content,
    with_emission_times,
)
from capture.sse import ServerEvent

API = "openai.chat"


def read_prompt(request: Json, headers: Mapping[str, str], path: str) -> Prompt:  # noqa: ARG001 - one signature for all
    """Read a request body; headers are lower case."""
    messages = tuple(read_message(as_object(entry)) for entry in as_list(request.get("messages")))
    head = 0
    while head < len(messages) and messages[head].role in ("system", "developer"):
        head += 1
    max_tokens = as_count(request.get("max_completion_tokens"))
    return Prompt(
        model=as_text(request.get("model")),
        stream=request.get("stream") is True,
        system=messages[:head],
        messages=messages,
        tools=tuple(read_tools(request)),
        hints=read_hints(request, headers),
        max_tokens=as_count(request.get("max_tokens")) if max_tokens is None else max_tokens,
        temperature=as_number(request.get("temperature")),
        effort=as_text(request.get("reasoning_effort"))
        or as_text(as_object(request.get("reasoning")).get("effort"))
        or None,
    )


def read_hints(request: Json, headers: Mapping[str, str]) -> tuple[SessionHint, ...]:
    """Session ids that agents put into headers (opencode, pi and gateways), then into the body."""
    hints: list[SessionHint] = []
    own = next((headers[name] for name in _SESSION_HEADERS if headers.get(name)), None)
    parent = next((headers[name] for name in _PARENT_HEADERS if headers.get(name)), None)
    if parent and own and parent != own:
        hints.append(SessionHint(session=parent, evidence="header", agent=own))
    elif own:
        hints.append(SessionHint(session=own, evidence="header"))
    metadata = as_object(request.get("metadata"))
    named = (metadata.get("session_id"), request.get("session_id"))
    hints.extend(SessionHint(session=session, evidence="body") for value in named if (session := as_text(value)))
    if key := as_text(request.get("prompt_cache_key")):
        hints.append(SessionHint(session=key, evidence="body", cache_key=True))
    return tuple(hints)


_SESSION_HEADERS = ("x-session-id", "x-session-affinity", "x-opencode-session", "session-id", "session_id")
_PARENT_HEADERS = ("x-parent-session-id", "x-opencode-parent-session", "parent-session-id")


def read_tools(request: Json) -> Iterable[Tool]:
    """Tools that a request offers, in the present spelling or the older one."""
    for entry in map(as_object, as_list(request.get("tools"))):
        body = as_object(entry.get("function")) or as_object(entry.get("custom")) or entry
        schema = body.get("parameters", body.get("format", {}))
        yield Tool(
            name=as_text(body.get("name")) or as_text(entry.get("type")),
            description=as_text(body.get("description")),
            parameters=compact_json(schema),
        )
    for entry in map(as_object, as_list(request.get("functions"))):  # the older spelling
        yield Tool(
            name=as_text(entry.get("name")),
            description=as_text(entry.get("description")),
            parameters=compact_json(entry.get("parameters", {})),
        )


def read_content(content: Any) -> tuple[str, int]:
    """Text of a message's content, and the bytes of parts that text cannot hold; thoughts are in neither."""
    if isinstance(content, str):
        return content, 0
    texts, omitted = [], 0
    for part in as_list(content):
        if _is_thought(part):
            continue
        words = part if isinstance(part, str) else as_object(part).get("text", as_object(part).get("refusal"))
        if isinstance(words, str):
            texts.append(words)
        else:
            omitted += size_of(part)
    return join_texts(texts), omitted


def _is_thought(part: Any) -> bool:
    return as_object(part).get("type") == "thinking"


def read_thought(entry: Json) -> tuple[str, int]:
    """Reasoning of a message or a delta, and the bytes of what is signed or encrypted in it.

    Vendors name the same thought twice or thrice (`reasoning_content`, `reasoning`, the texts of `reasoning_details`):
    the first that is there counts. Mistral's stands in the content, as parts of their own.
    """
    texts: list[str] = []
    omitted = 0
    for part in filter(_is_thought, as_list(entry.get("content"))):
        thought = as_object(part).get("thinking")
        texts.append(
            thought
            if isinstance(thought, str)
            else "".join(as_text(as_object(t).get("text")) for t in as_list(thought))
        )
    for part in map(as_object, as_list(entry.get("reasoning_details"))):
        texts.append(as_text(part.get("text")) or as_text(part.get("summary")))
        omitted += sum(size_of(part[name]) for name in ("data", "signature") if part.get(name))
    return as_text(entry.get("reasoning_content")) or as_text(entry.get("reasoning")) or "".join(texts), omitted


def _read_calls(entry: Json) -> tuple[ToolUse, ...]:
    calls = []
    for call in map(as_object, as_list(entry.get("tool_calls"))):
        body = as_object(call.get("function")) or as_object(call.get("custom"))
        arguments = body.get("arguments", body.get("input", ""))
        calls.append(
            ToolUse(
                id=as_text(call.get("id")),
                name=as_text(body.get("name")),
                arguments=arguments if isinstance(arguments, str) else compact_json(arguments),
            )
        )
    if not calls and (legacy := as_object(entry.get("function_call"))):
        calls.append(ToolUse(id="", name=as_text(legacy.get("name")), arguments=as_text(legacy.get("arguments"))))
    return tuple(calls)


def read_message(entry: Json) -> Message:
    """One message of a request, or of a non-streaming answer."""
    content, omitted = read_content(entry.get("content"))
    role = as_text(entry.get("role"))
    if role == "assistant":
        thought, hidden = read_thought(entry)
        refusal = as_text(entry.get("refusal"))
        return Message(
            role="assistant",
            content=content or refusal,
            reasoning_content=thought or None,
            name=as_text(entry.get("name")) or None,
            tool_calls=_read_calls(entry),
            omitted_bytes=omitted + hidden,
        )
    if role in ("tool", "function"):
        return Message(
            role="tool",
            content=content,
            name=as_text(entry.get("name")) or None,
            tool_call_id=as_text(entry.get("tool_call_id")),
            omitted_bytes=omitted,
        )
    return Message(
        role="system" if role == "system" else "developer" if role == "developer" else "user",
        content=content,
        name=as_text(entry.get("name")) or None,
        omitted_bytes=omitted,
    )


def read_usage(usage: Json) -> Usage:
    """Normalise: `prompt_tokens` already includes what was read from cache."""
    before = as_object(usage.get("prompt_tokens_details"))
    after = as_object(usage.get("completion_tokens_details"))
    cached = as_count(before.get("cached_tokens", usage.get("cached_tokens")))
    return Usage(
        input_total=as_count(usage.get("prompt_tokens")),
        cache_read=as_count(usage.get("prompt_cache_hit_tokens")) if cached is None else cached,
        cache_write=as_count(before.get("cache_write_tokens")),
        output_total=as_count(usage.get("completion_tokens")),
        reasoning=as_count(after.get("reasoning_tokens")),
        raw=compact_json(usage) if usage else None,
    )


def _usage_in(data: Json) -> Json:
    """Usage of an answer or of a chunk: at its head, in Groq's own field, or (Moonshot) in the last choice."""
    places = (data, as_object(data.get("x_groq")), *map(as_object, as_list(data.get("choices"))))
    return next((usage for place in places if (usage := as_object(place.get("usage")))), {})


def read_body(body: Json, at_ns: int) -> Answer:
    """Read a non-streaming answer; every tool call was emitted when the last byte came, `at_ns`."""
    choice = as_object(next(iter(as_list(body.get("choices"))), None))
    entry = as_object(choice.get("message"))
    message = read_message({"role": "assistant", **entry}) if entry else None
    if message is not None:
        message = with_emission_times(message, dict.fromkeys(range(len(message.tool_calls)), at_ns))
    failure = next((holder for holder in (body, choice) if holder.get("error") is not None), None)
    error = None if failure is None else error_text(failure) or "error"
    return Answer(
        message=message,
        stop=as_text(choice.get("finish_reason")) or None,
        usage=read_usage(_usage_in(body)),
        response_id=as_text(body.get("id")) or None,
        content=whole_content(message, at_ns),
        error=error,
        complete=error is None and message is not None,
        model=as_text(body.get("model")) or None,
    )


@dataclass(slots=True)
class _Call:
    index: int
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    last_at_ns: int = 0


@dataclass(slots=True)
class _Stream:
    """What has been collected of the first choice."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)  # in order of their index
    content: ContentClock = field(default_factory=ContentClock)
    role_seen: bool = False
    ended: bool = False
    stop: str | None = None
    omitted: int = 0

    def take(self, delta: Json, at_ns: int) -> None:
        """Add one delta; an empty string is no content."""
        self.role_seen = self.role_seen or bool(delta)
        found: list[ContentKind] = []
        words, hidden = read_content(delta.get("content"))
        if words := words + as_text(delta.get("refusal")):
            self.texts.append(words)
            found.append("text")
        thought, omitted = read_thought(delta)
        self.omitted += hidden + omitted
        if thought:
            self.thoughts.append(thought)
            found.append("thinking")
        for part in map(as_object, as_list(delta.get("tool_calls"))):
            self._take_call(part, at_ns)
            found.append("tool_call")
        if legacy := as_object(delta.get("function_call")):
            self._take_call({"index": 0, "function": legacy}, at_ns)
            found.append("tool_call")
        self.content.see(at_ns, *found)

    def _take_call(self, part: Json, at_ns: int) -> None:
        index = as_count(part.get("index"))
        body = as_object(part.get("function")) or as_object(part.get("custom"))
        if index is None:  # some stacks leave the index out and send each call whole
            known = self.calls[-1] if self.calls and not part.get("id") else None
            index = len(self.calls)
        else:
            known = next((call for call in reversed(self.calls) if call.index == index), None)
            # Others number every call 0: a new id with a new name is a new call.
            if known is not None and known.id and body.get("name") and part.get("id", known.id) not in ("", known.id):
                known = None
        call = known or _Call(index)
        if known is None:
            self.calls.append(call)
            self.calls.sort(key=attrgetter("index"))
        call.id = call.id or as_text(part.get("id"))
        call.name = call.name or as_text(body.get("name"))
        arguments = body.get("arguments", body.get("input", ""))
        call.arguments.append(arguments if isinstance(arguments, str) else compact_json(arguments or {}))
        call.last_at_ns = at_ns

    def message(self) -> Message | None:
        if not (self.role_seen or self.texts or self.calls):
            return None
        ordered = [call for call in self.calls if not self._is_cut(call)]
        return Message(
            role="assistant",
            content="".join(self.texts),
            reasoning_content="".join(self.thoughts) or None,
            tool_calls=tuple(
                # The protocol has no end of a call: its last fragment is the latest that can be known.
                ToolUse(id=call.id, name=call.name, arguments="".join(call.arguments), t_emitted_ns=call.last_at_ns)
                for call in ordered
            ),
            omitted_bytes=self.omitted,
        )

    def _is_cut(self, call: _Call) -> bool:
        """Whether a broken stream left a call unfinished: no agent runs such a one or sends it back."""
        if self.ended or self.stop is not None:
            return False
        try:
            read_json("".join(call.arguments))
        except ValueError:
            return True
        return False

    def notes(self) -> tuple[str, ...]:
        """One note for each call that was left out."""
        cut = [call.name or "a tool" for call in self.calls if self._is_cut(call)]
        return tuple(f"a call of {name} was cut and is left out" for name in cut)


def read_stream(events: Iterable[ServerEvent]) -> Answer:
    """Read a streamed answer, also one that was cut anywhere; the first choice is the answer."""
    stream = _Stream()
    usage: Json = {}
    notes: list[str] = []
    response_id = error = model = None
    for event in events:
        if event.data.strip() == "[DONE]":
            stream.ended = True
            continue
        try:
            data = as_object(read_json(event.data))
        except ValueError:
            notes.append(f"event {event.event!r} holds no JSON")
            continue
        if data.get("error") is not None:
            error = error_text(data) or "error"
            continue
        response_id = response_id or as_text(data.get("id")) or None
        model = model or as_text(data.get("model")) or None
        usage = _usage_in(data) or usage
        for choice in map(as_object, as_list(data.get("choices"))):
            if (as_count(choice.get("index")) or 0) != 0:
                continue
            stream.take(as_object(choice.get("delta")), event.at_ns)
            stream.stop = as_text(choice.get("finish_reason")) or stream.stop
            if choice.get("error") is not None:  # a gateway's, after the answer had begun
                error = error_text(choice) or "error"
    return Answer(
        message=stream.message(),
        stop=stream.stop,
        usage=read_usage(usage),
        response_id=response_id,
        content=stream.content.times(),
        error=error,
        # Not every server ends with [DONE]; a finish reason is the answer's own end as well.
        complete=error is None and (stream.ended or stream.stop is not None),
        model=model,
        notes=(*notes, *stream.notes()),
    )

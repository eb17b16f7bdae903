"""Gemini: `generateContent`, `streamGenerateContent` and `countTokens`, bare or wrapped as Code Assist does.

Sources: the API's reference and the types of its SDK. Easy to get wrong: `promptTokenCount` includes what was read from
cache, `candidatesTokenCount` leaves thoughts out; tool calls need not have ids; a stream has no event for its end, its
last chunk has a `finishReason`; clients echo an answer in as many contents as it came in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

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

API = "google.gemini"

_CLIENT_MADE = re.compile(r"_\d{13}_\d+")  # Gemini CLI: tool name, Unix ms, number
_MODEL_IN_PATH = re.compile(r"/models/([^/:]+):")


def read_prompt(request: Json, headers: Mapping[str, str], path: str) -> Prompt:  # noqa: ARG001 - one signature for all
    """Read a request body."""
    outer = request
    request = as_object(outer.get("request")) or as_object(outer.get("generateContentRequest")) or outer
    instruction = request.get("systemInstruction", request.get("system_instruction"))
    parts = as_list(as_object(instruction).get("parts")) or [instruction]
    texts = [as_text(part) or as_text(as_object(part).get("text")) for part in parts]
    system = (Message(role="system", content=join_texts(texts)),) if any(texts) else ()
    options = as_object(request.get("generationConfig", request.get("generation_config")))
    thinking = as_object(options.get("thinkingConfig"))
    budget = thinking.get("thinkingBudget")
    named = _MODEL_IN_PATH.search(path)
    model = as_text(outer.get("model")) or as_text(request.get("model")) or (named[1] if named else "")
    return Prompt(
        model=model.removeprefix("models/"),
        stream=":stream" in path,
        system=system,
        messages=system + tuple(_read_contents(as_list(request.get("contents")))),
        tools=tuple(_read_tools(request)),
        hints=read_hints(outer, request),
        max_tokens=as_count(options.get("maxOutputTokens")),
        temperature=as_number(options.get("temperature")),
        effort=as_text(thinking.get("thinkingLevel")) or (f"budget:{budget}" if isinstance(budget, int) else None),
        auxiliary=path.endswith(":countTokens"),
    )


def read_hints(outer: Json, request: Json) -> tuple[SessionHint, ...]:
    """Ids that Gemini CLI puts into a Code Assist request: its session, and in each prompt's id the session again."""
    named = (
        as_text(request.get("session_id")),
        as_text(outer.get("user_prompt_id")).partition("########")[0],
    )
    return tuple(SessionHint(session=session, evidence="body") for session in dict.fromkeys(named) if session)


def _read_tools(request: Json) -> Iterable[Tool]:
    for entry in map(as_object, as_list(request.get("tools"))):
        declared = as_list(entry.get("functionDeclarations", entry.get("function_declarations")))
        for tool in map(as_object, declared):
            yield Tool(
                name=as_text(tool.get("name")),
                description=as_text(tool.get("description")),
                parameters=compact_json(tool.get("parametersJsonSchema", tool.get("parameters", {}))),
            )
        if not declared:  # a tool that the service runs is only named and configured
            yield from (
                Tool(name=name, description="", parameters=compact_json(value)) for name, value in entry.items()
            )


@dataclass(slots=True)
class _Turn:
    """Parts of the model, neighbouring contents included, as one assistant message."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolUse] = field(default_factory=list)
    omitted: int = 0
    any: bool = False

    def take(self, part: Json) -> ContentKind | None:
        """Add one part; which kind of content it was."""
        self.any = True
        self.omitted += size_of(part.get("thoughtSignature") or "")
        words = as_text(part.get("text"))
        if call := as_object(part.get("functionCall")):
            self.calls.append(
                ToolUse(
                    id=_provider_id(call),
                    name=as_text(call.get("name")),
                    arguments=compact_json(call.get("args", {})),
                )
            )
            return "tool_call"
        if part.get("thought") is True:
            self.thoughts.append(words)
            return "thinking" if words else None
        if words:
            self.texts.append(words)
            return "text"
        if not {"text", "thoughtSignature"} & part.keys():  # images, code that the service ran and its result
            self.omitted += size_of(part)
        return None

    def message(self) -> Message:
        """The message so far."""
        return Message(
            role="assistant",
            content="".join(self.texts),  # chunks of one text, wherever they were cut
            reasoning_content="".join(self.thoughts) or None,
            tool_calls=tuple(self.calls),
            omitted_bytes=self.omitted,
        )


def _provider_id(call: Json) -> str:
    """Id of a call or of its result; none where the client made it up, since the live answer cannot know that one."""
    name, given = as_text(call.get("name")), as_text(call.get("id"))
    return "" if _CLIENT_MADE.fullmatch(given.removeprefix(name)) and given.startswith(name) else given


def _read_contents(contents: Iterable[object]) -> Iterable[Message]:
    turn = _Turn()
    for content in map(as_object, contents):
        parts = [as_object(part) for part in as_list(content.get("parts"))]
        if content.get("role") == "model":
            turn.any = True
            for part in parts:
                turn.take(part)
            continue
        if turn.any:
            yield turn.message()
            turn = _Turn()
        yield from _given(parts)
    if turn.any:
        yield turn.message()


def _given(parts: list[Json]) -> Iterable[Message]:
    """Messages of one content of the user: a result of a tool each, and what stands between them."""
    texts: list[str] = []
    omitted = 0
    found = False
    for part in parts:
        if result := as_object(part.get("functionResponse")):
            if texts or omitted:
                yield Message(role="user", content=join_texts(texts), omitted_bytes=omitted)
                texts, omitted = [], 0
            found = True
            yield _result(result)
        elif words := as_text(part.get("text")):
            texts.append(words)
        else:
            omitted += size_of(part)
    if texts or omitted or not found:
        yield Message(role="user", content=join_texts(texts), omitted_bytes=omitted)


def _result(result: Json) -> Message:
    response = as_object(result.get("response"))
    only = next(iter(response.items())) if len(response) == 1 else ("", None)
    failed = only[0] == "error"
    text = only[1] if only[0] in ("output", "error", "result") and isinstance(only[1], str) else compact_json(response)
    return Message(
        role="tool",
        content=text,
        name=as_text(result.get("name")) or None,
        tool_call_id=_provider_id(result),
        is_error=True if failed else None,
        omitted_bytes=sum(size_of(part) for part in as_list(result.get("parts"))),
    )


def read_usage(usage: Json) -> Usage:
    """Normalise: what tools of the service put into the prompt is input, thoughts are output."""
    prompt, tools = as_count(usage.get("promptTokenCount")), as_count(usage.get("toolUsePromptTokenCount"))
    said, thought = as_count(usage.get("candidatesTokenCount")), as_count(usage.get("thoughtsTokenCount"))
    return Usage(
        input_total=None if prompt is None else prompt + (tools or 0),
        cache_read=as_count(usage.get("cachedContentTokenCount")),
        output_total=None if said is None and thought is None else (said or 0) + (thought or 0),
        reasoning=thought,
        raw=compact_json(usage) if usage else None,
    )


class _Reader:
    """Collects the chunks of one answer."""

    def __init__(self) -> None:
        self.turn = _Turn()
        self.content = ContentClock()
        self.emitted: dict[int, int] = {}
        self.usage: Json = {}
        self.notes: list[str] = []
        self.stop: str | None = None
        self.error: str | None = None
        self.response_id: str | None = None
        self.model: str | None = None

    def take(self, data: Json, at_ns: int) -> None:
        if data.get("error") is not None:
            self.error = _error(data["error"])
            return
        data = as_object(data.get("response")) or data
        self.usage = as_object(data.get("usageMetadata")) or self.usage
        self.response_id = self.response_id or as_text(data.get("responseId")) or None
        self.model = self.model or as_text(data.get("modelVersion")) or None
        if blocked := as_text(as_object(data.get("promptFeedback")).get("blockReason")):
            self.stop = blocked
            self.notes.append(f"the service blocked the prompt: {blocked}")
        for candidate in map(as_object, as_list(data.get("candidates"))):
            if (as_count(candidate.get("index")) or 0) != 0:
                continue
            kinds: list[ContentKind] = []
            for part in map(as_object, as_list(as_object(candidate.get("content")).get("parts"))):
                before = len(self.turn.calls)
                if (kind := self.turn.take(part)) is not None:
                    kinds.append(kind)
                if len(self.turn.calls) > before:
                    self.emitted[before] = at_ns
                if "partialArgs" in as_object(part.get("functionCall")):
                    self.notes.append("arguments of a tool call came in parts, which are not read")
            self.content.see(at_ns, *kinds)
            self.stop = as_text(candidate.get("finishReason")) or self.stop

    def answer(self) -> Answer:
        message = self.turn.message() if self.turn.any else None
        return Answer(
            message=None if message is None else with_emission_times(message, self.emitted),
            stop=self.stop,
            usage=read_usage(self.usage),
            response_id=self.response_id,
            content=self.content.times(),
            error=self.error,
            complete=self.error is None and self.stop is not None,
            model=self.model,
            notes=tuple(self.notes),
        )


def _error(error: object) -> str:
    """Google's errors carry a status word beside the number."""
    status, words = as_text(as_object(error).get("status")), error_text(error)
    return ": ".join(part for part in (status, words) if part) or "error"


def read_body(body: Json, at_ns: int) -> Answer:
    """Read a non-streaming answer, or a count of tokens; every tool call was emitted at `at_ns`."""
    reader = _Reader()
    reader.take(body, at_ns)
    answer = reader.answer()
    return replace(
        answer,
        content=whole_content(answer.message, at_ns),
        complete=answer.complete or as_count(body.get("totalTokens")) is not None,
    )


def read_stream(events: Iterable[ServerEvent]) -> Answer:
    """Read a streamed answer, also one that was cut anywhere."""
    reader = _Reader()
    for event in events:
        try:
            data = as_object(read_json(event.data))
        except ValueError:
            reader.notes.append(f"event {event.event!r} holds no JSON")
            continue
        reader.take(data, event.at_ns)
    return reader.answer()

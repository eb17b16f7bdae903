"""Reads a request to the scripted model: enough of each dialect to choose an answer, and no more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from capture.encoding import BodyDecoder
from capture.script import Dialect, Purpose, ScriptedRequest, ToolResult, asks_summary
from capture.scripted_log import Memory

_GEMINI = re.compile(r"(?:/models/([^/:]+)|v1internal):(?:streamG|g)enerateContent$")

# Headers that name a session, an agent or a kind of request; `_SCOPE`: those that tell one conversation from another.
_SCOPE = (
    "x-claude-code-session-id",
    "x-claude-code-agent-id",
    "x-claude-code-parent-agent-id",
    "session-id",
    "session_id",
    "thread-id",
    "thread_id",
    "conversation_id",
    "x-codex-parent-thread-id",
    "x-session-id",
    "x-session-affinity",
    "x-parent-session-id",
    "x-opencode-session",
    "body.prompt_cache_key",
    "body.session_id",
    "body.thread_id",
    "body.parent_thread_id",
)
_IDENTITY = frozenset(
    (
        *_SCOPE,
        "x-claude-code-agent-type",
        "x-claude-code-request-class",
        "x-claude-code-compaction",
        "x-claude-code-context-compacted",
        "x-claude-code-prompt-id",
        "x-claude-code-prev-tool-durations",
        "x-stainless-retry-count",
        "x-codex-window-id",
        "x-openai-subagent",
        "body.request_kind",
        "body.window_id",
        "body.agent_name",
        "body.subagent_kind",
        "body.user_prompt_id",
    )
)
_SECRET = frozenset(("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key"))


class UnknownResponse(ValueError):
    """A request goes on from a response that this server did not give."""


def dialect_of(path: str) -> Dialect | None:
    """Dialect that a request path (query allowed) belongs to; None for anything that is no call to a model."""
    plain = path.partition("?")[0].rstrip("/")
    if plain.endswith("/messages"):
        return "anthropic.messages"
    if plain.endswith("/chat/completions"):
        return "openai.chat"
    if plain.endswith(("/responses", "/responses/compact")):
        return "openai.responses"
    if _GEMINI.search(plain):
        return "google.gemini"
    return None


def decode_body(body: bytes, content_encoding: str) -> bytes:
    """Request body without its content encoding. Raises ValueError where it does not decode."""
    decoder = BodyDecoder(content_encoding)
    decoded = decoder.feed(body)
    if decoder.fault is not None:
        raise ValueError(decoder.fault)
    return decoded


def read_request(
    dialect: Dialect, path: str, body: bytes, memory: Memory, headers: list[tuple[str, str]]
) -> ScriptedRequest:
    """Reads a decoded body in the light of what the server has answered so far.

    Raises ValueError where the body is no JSON object, UnknownResponse where it names a response that nobody gave.
    """
    raw = json.loads(body)
    if not isinstance(raw, dict):
        raise ValueError("the body is no JSON object")  # noqa: TRY004 - a fault of the input, not of a type
    plain = path.partition("?")[0].rstrip("/")
    before = 0
    if dialect == "openai.responses":
        raw, before = _with_chain(raw, memory)
    inner = raw.get("request") if dialect == "google.gemini" else None
    asked = inner if isinstance(inner, dict) else raw  # Code Assist wraps the request that the API takes bare
    items = list(_ITEMS[dialect](asked))
    tools = list(_tools(asked))
    named_model = _GEMINI.search(plain)
    texts = [text for kind, text in _pairs(items) if kind == "user"]
    kind = raw["input"][-1].get("type") if dialect == "openai.responses" and raw.get("input") else None
    compaction_item = plain.endswith("/compact") or kind in ("compaction_trigger", "context_compaction")
    given = dict(reversed(headers))
    identity = tuple(sorted(_identity(given, raw)))
    metadata = dict(identity)
    wants_summary = (
        compaction_item
        or metadata.get("x-claude-code-request-class") == "compaction"
        or "x-claude-code-compaction" in metadata
        or metadata.get("body.request_kind") == "compaction"
        or asks_summary(texts[-1] if texts else "")
        or (not tools and asks_summary(_system(asked)))
    )
    purpose: Purpose = (
        "prewarm"
        if raw.get("generate") is False
        else "summary" if wants_summary else "turn" if tools else "side"
    )  # fmt: skip
    answered, since, compactions = _count_answers(items, memory)
    opening = _opening(items)
    results = tuple(item for item in items if isinstance(item, ToolResult))
    scope = tuple(value for name, value in identity if name in _SCOPE)
    place = (scope, opening, answered, since, len(results), texts[-1] if texts else "", purpose)
    attempt = memory.attempts[place]
    memory.attempts[place] += 1
    return ScriptedRequest(
        dialect=dialect,
        path=path,
        model=str(raw.get("model") or (named_model[1] if named_model else "") or ""),
        stream=":stream" in plain if dialect == "google.gemini" else bool(raw.get("stream", False)),
        include_usage=bool((raw.get("stream_options") or {}).get("include_usage", False)),
        tool_names=tuple(_tool_name(tool) for tool in tools),
        custom_tool_names=tuple(_tool_name(tool) for tool in tools if tool.get("type") == "custom"),
        tool_results=results,
        answered=answered,
        last_user_text=texts[-1] if texts else "",
        body_bytes=before + len(body),
        purpose=purpose,
        system_text=_system(asked),
        opening_text=opening,
        user_texts=tuple(texts),
        headers={name: value for name, value in given.items() if name not in _SECRET},
        identity=identity,
        previous_response_id=raw.get("previous_response_id"),
        compaction_item=compaction_item,
        namespaces={
            _tool_name(tool): str(group.get("name"))
            for group in _list(raw.get("tools"))
            if isinstance(group, dict) and group.get("type") == "namespace"
            for tool in _tools({"tools": [group]})
        },
        stream_id=raw.get("stream_id"),
        attempt=attempt,
        compactions=compactions,
        answered_since_summary=since,
    )


def prompt_items(body: bytes, memory: Memory) -> list[Any]:
    """Every input item that a Responses request stands for: the chain that it goes on from, then its own."""
    return list(_with_chain(json.loads(body), memory)[0]["input"])


def _with_chain(raw: dict[str, Any], memory: Memory) -> tuple[dict[str, Any], int]:
    """The request with its whole input as items, and the bytes of the chain that it goes on from."""
    given = raw.get("input") or []
    own = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    previous = raw.get("previous_response_id")
    if not previous:
        return raw | {"input": own}, 0
    if previous not in memory.chains:
        raise UnknownResponse(f"Previous response with id {previous!r} not found.")
    items, size = memory.chains[previous]
    return raw | {"input": items + own}, size


def _identity(headers: Mapping[str, str], raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the request says about whose it is: headers by their name, fields of the body as `body.NAME`."""
    declared: dict[str, Any] = dict(headers)
    client = raw.get("client_metadata")
    body: dict[str, Any] = dict(client) if isinstance(client, dict) else {}
    turn = body.get("x-codex-turn-metadata") or headers.get("x-codex-turn-metadata")  # a frame has its own
    try:
        read = json.loads(turn) if isinstance(turn, str) else {}
    except ValueError:
        read = {}
    inner = raw.get("request")
    own = {"session_id": inner.get("session_id")} if isinstance(inner, dict) else {}
    for source in (raw, own, body, read if isinstance(read, dict) else {}):
        for name, value in source.items():
            declared.setdefault(f"body.{name}" if not name.startswith("x-") else name, value)
    for name, value in declared.items():
        if name in _IDENTITY and isinstance(value, str) and value:
            yield name, value


def _tools(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Tool definitions, those inside a namespace or a list of declarations included."""
    for tool in raw.get("tools") or ():
        if not isinstance(tool, dict):
            continue
        nested = tool.get("functionDeclarations") or tool.get("function_declarations")
        if tool.get("type") == "namespace":
            nested = tool.get("tools")
        if isinstance(nested, list):
            yield from (entry for entry in nested if isinstance(entry, dict))
        else:
            yield tool


def _system(raw: dict[str, Any]) -> str:
    texts = [_text(raw.get("system")), _text(raw.get("instructions"))]
    instruction = raw.get("systemInstruction") or raw.get("system_instruction")
    texts.append(_text(instruction.get("parts")) if isinstance(instruction, dict) else _text(instruction))
    entries = [entry for name in ("messages", "input") for entry in _list(raw.get(name)) if isinstance(entry, dict)]
    texts += [_text(entry.get("content")) for entry in entries if entry.get("role") in ("system", "developer")]
    return "\n".join(text for text in texts if text)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _tool_name(tool: dict[str, Any]) -> str:
    function = tool.get("function")
    named = function if isinstance(function, dict) else tool
    return str(named.get("name") or tool.get("type") or "")


# A prompt flattened: ("user", text), ("answer", ""), ("call", id) or a ToolResult.
type _Item = tuple[str, str] | ToolResult


def _pairs(items: list[_Item]) -> list[tuple[str, str]]:
    return [item for item in items if not isinstance(item, ToolResult)]


def _opening(items: list[_Item]) -> str:
    """User text before the model's first answer."""
    texts: list[str] = []
    for item in items:
        if isinstance(item, ToolResult) or item[0] != "user":
            break
        texts.append(item[1])
    return "\n".join(texts)


def _count_answers(items: list[_Item], memory: Memory) -> tuple[int, int, int]:
    """(answers in a prompt, those given since the latest summary that it carries, how many summaries up to that).

    Answers are runs of the model's items, where a run goes on when it names a call of the same answer: clients may put
    each parallel call beside its own result, so a result alone does not end an answer. An agent may keep some messages
    behind its summary: an answer without a known call counts as later only behind one that is known to be.
    """
    said = "\n".join(text for kind, text in _pairs(items) if kind == "user")
    compactions, summary = 0, 0
    for place, (text, number) in enumerate(memory.summaries):
        if text and text in said:
            compactions, summary = place + 1, number
    runs: list[int | None] = []  # number of the answer, where a call tells it
    open_run = False
    seen: set[int] = set()
    for item in items:
        if isinstance(item, ToolResult) or item[0] == "user":
            open_run = False
            continue
        kind, call_id = item
        call = memory.issued.get(call_id) if kind == "call" else None
        if not open_run and (call is None or call not in seen):
            runs.append(None)
        open_run = True
        if call is not None and call not in seen:
            seen.add(call)
            runs[-1] = call
    later = False
    since = 0
    for run in runs:
        later = later if run is None else run > summary
        since += later
    return len(runs), since, compactions


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else json.dumps(content)


def _anthropic_items(raw: dict[str, Any]) -> Iterator[_Item]:
    for message in raw.get("messages") or ():
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for block in blocks:
            kind = block.get("type")
            if message.get("role") == "assistant":
                yield ("call", str(block.get("id"))) if kind == "tool_use" else ("answer", "")
            elif kind == "tool_result":
                yield ToolResult(
                    call_id=str(block.get("tool_use_id")),
                    text=_text(block.get("content")),
                    is_error=bool(block.get("is_error", False)),
                )
            else:
                yield ("user", str(block.get("text", "")))


def _chat_items(raw: dict[str, Any]) -> Iterator[_Item]:
    for message in raw.get("messages") or ():
        match message.get("role"):
            case "assistant":
                if message.get("content"):
                    yield ("answer", "")
                for call in message.get("tool_calls") or ():
                    yield ("call", str(call.get("id")))
            case "tool":
                yield ToolResult(call_id=str(message.get("tool_call_id")), text=_text(message.get("content")))
            case "user":
                yield ("user", _text(message.get("content")))


def _responses_items(raw: dict[str, Any]) -> Iterator[_Item]:
    given = raw.get("input") or ()
    if isinstance(given, str):
        yield ("user", given)
        return
    for item in given:
        kind = item.get("type", "message")
        if kind in ("compaction", "compaction_summary"):
            yield ("user", str(item.get("encrypted_content", "")))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            yield ToolResult(call_id=str(item.get("call_id")), text=_text(item.get("output")))
        elif kind in ("function_call", "custom_tool_call"):
            yield ("call", str(item.get("call_id")))
        elif kind == "reasoning" or item.get("role") == "assistant":
            yield ("answer", "")
        elif item.get("role") == "user":
            yield ("user", _text(item.get("content")))


def _gemini_items(raw: dict[str, Any]) -> Iterator[_Item]:
    for content in raw.get("contents") or ():
        for part in content.get("parts") or ():
            if content.get("role") == "model":
                call = part.get("functionCall")
                yield ("call", str(call.get("id"))) if call else ("answer", "")
            elif given := part.get("functionResponse"):
                yield ToolResult(
                    call_id=str(given.get("id") or given.get("name")), text=json.dumps(given.get("response"))
                )
            else:
                yield ("user", str(part.get("text", "")))


_ITEMS = {
    "anthropic.messages": _anthropic_items,
    "openai.chat": _chat_items,
    "openai.responses": _responses_items,
    "google.gemini": _gemini_items,
}

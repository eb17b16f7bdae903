"""From an exchange to a model call: choose the dialect, undo the encodings, put both halves together.

Reading is pure: the journal keeps the raw bytes, so a dialect can be mended later and read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from urllib.parse import unquote

from capture.call import Message, ModelCall, Usage
from capture.dialects import anthropic_messages, openai_chat, openai_responses
from capture.dialects.reading import Answer, Json, Prompt, as_text, error_text, read_json
from capture.encoding import BodyDecoder
from capture.exchange import Exchange
from capture.sse import ServerEvent, SseParser


@dataclass(frozen=True, slots=True)
class _Dialect:
    api: str
    read_prompt: Callable[[Json, Mapping[str, str], str], Prompt]
    read_stream: Callable[[Iterable[ServerEvent]], Answer]
    read_body: Callable[[Json, int], Answer]


def _dialect(module: ModuleType) -> _Dialect:
    return _Dialect(module.API, module.read_prompt, module.read_stream, module.read_body)


_ANTHROPIC = _dialect(anthropic_messages)
_CHAT = _dialect(openai_chat)
_RESPONSES = _dialect(openai_responses)

_BY_PATH = (
    (re.compile(r"/messages(/count_tokens)?$"), _ANTHROPIC),
    (re.compile(r"/chat/completions$"), _CHAT),
    (re.compile(r"/responses(/compact|/input_tokens)?$"), _RESPONSES),
)
_TITLE = re.compile(r"title generator|generate an? [^.\n]{0,60}\btitle\b|5-10 word title", re.IGNORECASE)
_EMPTY = Answer(message=None, stop=None, usage=Usage(), response_id=None, content_at_ns=(), error=None, complete=False)


def read_calls(exchange: Exchange) -> list[ModelCall]:
    """Every call to a model that an exchange holds, in order; a WebSocket may hold many, most exchanges one or none."""
    call = read_call(exchange)
    return [] if call is None else [call]


def read_call(exchange: Exchange) -> ModelCall | None:
    """Read one exchange; None where it is not a call to a model. Never raises: what cannot be read becomes a note."""
    path = exchange.path.partition("?")[0].rstrip("/")
    if exchange.method.upper() != "POST":
        return None
    notes: list[str] = []
    headers = dict(reversed(exchange.request_headers))  # of a repeated header the first value
    request = _read_request(exchange, headers, notes)
    dialect = _choose(path, headers, request)
    if dialect is None:
        return None
    try:
        prompt = dialect.read_prompt(request, headers, path)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        notes.append(f"request: {type(fault).__name__}: {fault}")
        prompt = dialect.read_prompt({}, headers, path)
    try:
        answer, events = _read_answer(exchange, dialect, notes)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        notes.append(f"answer: {type(fault).__name__}: {fault}")
        answer, events = _EMPTY, 0
    return _put_together(exchange, dialect, headers, prompt, answer, events, notes)


def _choose(path: str, headers: Mapping[str, str], request: Json) -> _Dialect | None:
    for pattern, dialect in _BY_PATH:
        if pattern.search(path):
            return dialect
    # A gateway may use a path of its own; then the body has to look like one of ours.
    if not as_text(request.get("model")):
        return None
    if isinstance(request.get("messages"), list):
        return _ANTHROPIC if "anthropic-version" in headers else _CHAT
    if isinstance(request.get("input"), list) and ("instructions" in request or "tools" in request):
        return _RESPONSES
    return None


def _read_request(exchange: Exchange, headers: Mapping[str, str], notes: list[str]) -> Json:
    decoder = BodyDecoder(headers.get("content-encoding"))
    body = decoder.feed(exchange.request_body)
    if decoder.fault is not None:
        notes.append(f"request body: {decoder.fault}")
        return {}
    if not body:
        notes.append("request body: empty")
        return {}
    try:
        value = read_json(body)
    except ValueError as fault:
        notes.append(f"request body: no JSON ({fault})")
        return {}
    if not isinstance(value, dict):
        notes.append("request body: no JSON object")
        return {}
    return value


def _read_answer(exchange: Exchange, dialect: _Dialect, notes: list[str]) -> tuple[Answer, int]:
    """The answer and the number of its events (0 when it was not streamed)."""
    if exchange.status is None or not exchange.reads:
        return _EMPTY, 0
    decoder = BodyDecoder(exchange.response_header("content-encoding"))
    pieces = [(read.at_ns, decoder.feed(read.data)) for read in exchange.reads]
    if decoder.fault is not None:
        notes.append(f"response body: {decoder.fault}")
    body = b"".join(piece for _, piece in pieces)
    content_type = (exchange.response_header("content-type") or "").lower()
    looks_streamed = body.lstrip()[:6] in (b"event:", b"data: ") or body.lstrip().startswith((b"data:", b": "))
    if "text/event-stream" in content_type or ("json" not in content_type and looks_streamed):
        parser = SseParser()
        events: list[ServerEvent] = []
        for at_ns, piece in pieces:
            events.extend(parser.feed(at_ns, piece))
        events.extend(parser.close(pieces[-1][0]))
        events = [event for event in events if not event.comment]
        # An event that lacks its blank line counts if its JSON is whole: some servers close right after it.
        readable = [event for event in events if event.terminated or _is_whole(event)]
        return dialect.read_stream(readable), len(readable)
    try:
        value = read_json(body)
    except ValueError:
        cut = exchange.outcome != "complete" or decoder.fault is not None
        notes.append("response body: cut" if cut else "response body: no JSON")
        return _EMPTY, 0
    if not isinstance(value, dict):
        notes.append("response body: no JSON object")
        return _EMPTY, 0
    if exchange.status >= 400:
        return _replace_error(_EMPTY, error_text(value)), 0
    answer = dialect.read_body(value, exchange.t_end_ns or pieces[-1][0])
    return answer, 0


def _is_whole(event: ServerEvent) -> bool:
    if event.data.strip() == "[DONE]":
        return True
    try:
        return isinstance(read_json(event.data), dict)
    except ValueError:
        return False


def _replace_error(answer: Answer, error: str | None) -> Answer:
    return Answer(
        message=answer.message,
        stop=answer.stop,
        usage=answer.usage,
        response_id=answer.response_id,
        content_at_ns=answer.content_at_ns,
        error=error,
        complete=answer.complete,
    )


def _put_together(
    exchange: Exchange,
    dialect: _Dialect,
    headers: Mapping[str, str],
    prompt: Prompt,
    answer: Answer,
    events: int,
    notes: list[str],
) -> ModelCall:
    first_byte = next((read.at_ns for read in exchange.reads if read.data), None)
    last_byte = exchange.reads[-1].at_ns if exchange.reads else None
    harness, version = read_harness(headers, prompt.system or prompt.messages[:1])
    failed = exchange.status is not None and exchange.status >= 400
    complete = answer.complete and not failed
    end = exchange.t_end_ns
    if complete and exchange.outcome != "complete" and last_byte is not None:
        # Codex hangs up once it has read the end it waits for: the answer was over with its last byte.
        end = last_byte
    return ModelCall(
        exchange_id=exchange.exchange_id,
        connection_id=exchange.connection_id,
        wall_anchor_us=exchange.wall_anchor_us,
        api=dialect.api,
        harness=harness,
        harness_version=version,
        model=prompt.model or answer.model or "",
        stream=prompt.stream,
        status=exchange.status,
        error=_error(exchange, answer, complete=complete),
        complete=complete,
        system=prompt.system,
        messages=prompt.messages,
        tools=prompt.tools,
        answer=answer.message,
        stop=answer.stop,
        usage=answer.usage,
        response_id=answer.response_id,
        previous_response_id=prompt.previous_response_id,
        hints=prompt.hints,
        max_tokens=prompt.max_tokens,
        temperature=prompt.temperature,
        effort=prompt.effort,
        t_send_ns=exchange.t_send_ns,
        t_headers_ns=exchange.t_headers_ns,
        t_first_byte_ns=first_byte,
        t_first_content_ns=answer.content_at_ns[0] if answer.content_at_ns else None,
        t_last_content_ns=answer.content_at_ns[-1] if answer.content_at_ns else None,
        t_end_ns=end,
        content_at_ns=answer.content_at_ns,
        events=events,
        bytes_up=len(exchange.request_body),
        bytes_down=sum(len(read.data) for read in exchange.reads),
        kind="auxiliary" if prompt.auxiliary or _asks_for_title(prompt) else "turn",
        gaps=len(exchange.gaps),
        notes=(*notes, *prompt.notes, *answer.notes),
        tool_durations_ms=read_tool_durations(headers.get("x-claude-code-prev-tool-durations")),
        compaction=headers.get("x-claude-code-compaction") or prompt.compaction,
        context_compacted="x-claude-code-context-compacted" in headers,
    )


def _error(exchange: Exchange, answer: Answer, *, complete: bool) -> str | None:
    if complete:
        return None
    if answer.error is not None:
        return answer.error
    if exchange.status is not None and exchange.status >= 400:
        return f"HTTP {exchange.status}"
    if exchange.error is not None:
        return exchange.error
    if exchange.outcome == "complete":
        return "the answer ended before its own end" if exchange.reads else "empty answer"
    return exchange.outcome


def _asks_for_title(prompt: Prompt) -> bool:
    """Whether a call without tools says in its instructions that all it wants is a title."""
    if prompt.tools:
        return False
    return any(_TITLE.search(message.content[:2000]) for message in prompt.system)


def read_tool_durations(value: str | None) -> tuple[tuple[str, int], ...]:
    """Claude Code's `Bash=742;Read=9`, percent-encoded: tool name and milliseconds, in the order of the results."""
    durations = []
    for part in (value or "").split(";"):
        name, _, milliseconds = part.strip().rpartition("=")
        if name and milliseconds.isdigit():
            durations.append((unquote(name), int(milliseconds)))
    return tuple(durations)


_AGENTS = (
    (re.compile(r"claude-(?:cli|code)(?:/([\w.+-]+))?", re.IGNORECASE), "claude-code"),
    (re.compile(r"codex[\w -]*?(?:/([\w.+-]+))", re.IGNORECASE), "codex"),
    (re.compile(r"opencode(?:/([\w.+-]+))?", re.IGNORECASE), "opencode"),
    (re.compile(r"(?:^|\s)pi(?:-coding-agent)?(?:/([\w.+-]+)|\s*\(|$)", re.IGNORECASE), "pi"),
    (re.compile(r"mini-?swe-?agent(?:/([\w.+-]+))?", re.IGNORECASE), "mini-swe-agent"),
    (re.compile(r"qwen-?code(?:/([\w.+-]+))?", re.IGNORECASE), "qwen-code"),
    (re.compile(r"gemini-?cli(?:/([\w.+-]+))?", re.IGNORECASE), "gemini-cli"),
)
_BY_PROMPT = (
    ("You are Claude Code", "claude-code"),
    ("Claude Agent SDK", "claude-code"),
    ("operating inside pi", "pi"),
    ("You are opencode", "opencode"),
    ("Codex CLI", "codex"),
)


def read_harness(headers: Mapping[str, str], head: Iterable[Message]) -> tuple[str, str | None]:
    """Which agent called, and its version: from the user agent, else the originator header, else its own prompt."""
    agent = headers.get("user-agent", "")
    originator = headers.get("originator", "")
    for text in (agent, originator):
        for pattern, name in _AGENTS:
            if found := pattern.search(text):
                return name, found[1]
    if originator.lower().startswith("codex"):
        return "codex", headers.get("version")
    for message in head:
        for words, name in _BY_PROMPT:
            if words in message.content[:4000]:
                return name, None
    return "unknown", None

"""From an exchange to its model calls: choose the dialect, undo the encodings, put both halves together.

Reading is pure: the journal keeps the raw bytes, so a dialect can be mended later and read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from capture.call import ModelCall
from capture.dialects import anthropic_messages, google_gemini, openai_chat, openai_responses, openai_responses_stream
from capture.dialects.openai_responses_socket import read_socket
from capture.dialects.put_together import Wire, put_together, read_tool_durations
from capture.dialects.reading import NO_ANSWER, Answer, Json, Prompt, as_text, error_text, read_json
from capture.encoding import BodyDecoder
from capture.exchange import Exchange
from capture.harness import read_harness
from capture.json_array import JsonArrayParser
from capture.sse import ServerEvent, SseParser
from capture.unread import why_unread

__all__ = ["read_call", "read_calls", "read_harness", "read_tool_durations", "why_unread"]


@dataclass(frozen=True, slots=True)
class _Dialect:
    api: str
    read_prompt: Callable[[Json, Mapping[str, str], str], Prompt]
    read_stream: Callable[[Iterable[ServerEvent]], Answer]
    read_body: Callable[[Json, int], Answer]


_ANTHROPIC = _Dialect(
    anthropic_messages.API,
    anthropic_messages.read_prompt,
    anthropic_messages.read_stream,
    anthropic_messages.read_body,
)
_CHAT = _Dialect(openai_chat.API, openai_chat.read_prompt, openai_chat.read_stream, openai_chat.read_body)
_RESPONSES = _Dialect(
    openai_responses.API,
    openai_responses.read_prompt,
    openai_responses_stream.read_stream,
    openai_responses.read_body,
)
_GEMINI = _Dialect(google_gemini.API, google_gemini.read_prompt, google_gemini.read_stream, google_gemini.read_body)

_BY_PATH = (
    (re.compile(r"/messages(/count_tokens)?$"), _ANTHROPIC),
    (re.compile(r"/chat/completions$"), _CHAT),
    (re.compile(r"/(responses(/compact|/input_tokens)?|memories/trace_summarize)$"), _RESPONSES),
    (re.compile(r":((streamG|g)enerateContent|countTokens)$"), _GEMINI),
)
_SOCKET = re.compile(r"/responses$")
_TITLE = re.compile(r"title generator|generate an? [^.\n]{0,60}\btitle\b|5-10 word title", re.IGNORECASE)
_FAULTS = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)


def read_calls(exchange: Exchange) -> list[ModelCall]:
    """Every call to a model that an exchange holds, in order; a WebSocket may hold many, most exchanges one or none."""
    path = exchange.path.partition("?")[0].rstrip("/")
    if exchange.messages and _SOCKET.search(path):
        return read_socket(exchange, _headers(exchange))
    call = read_call(exchange)
    return [] if call is None else [call]


def read_call(exchange: Exchange) -> ModelCall | None:
    """Read one HTTP exchange; None where it is no call to a model. Never raises: what cannot be read becomes a note."""
    path = exchange.path.partition("?")[0].rstrip("/")
    if exchange.method.upper() != "POST":
        return None
    notes: list[str] = []
    headers = _headers(exchange)
    request = _read_request(exchange, headers, notes)
    dialect = _choose(path, headers, request)
    if dialect is None:
        return None
    try:
        prompt = dialect.read_prompt(request, headers, path)
    except _FAULTS as fault:
        notes.append(f"request: {type(fault).__name__}: {fault}")
        prompt = dialect.read_prompt({}, headers, path)
    try:
        answer, events = _read_answer(exchange, dialect, notes)
    except _FAULTS as fault:
        notes.append(f"answer: {type(fault).__name__}: {fault}")
        answer, events = NO_ANSWER, 0
    return put_together(exchange, _wire(exchange, prompt, answer, events, notes), dialect.api, headers, prompt, answer)


def _headers(exchange: Exchange) -> dict[str, str]:
    return dict(reversed(exchange.request_headers))  # of a repeated header the first value


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
    decoder = BodyDecoder(None if exchange.request_decoded else headers.get("content-encoding"))
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
        return NO_ANSWER, 0
    decoder = BodyDecoder(exchange.response_header("content-encoding"))
    pieces = [(read.at_ns, decoder.feed(read.data)) for read in exchange.reads]
    if decoder.fault is not None:
        notes.append(f"response body: {decoder.fault}")
    body = b"".join(piece for _, piece in pieces)
    if _is_event_stream(exchange, body):
        events = _server_events(pieces)
        return dialect.read_stream(events), len(events)
    in_array = dialect is _GEMINI and body.lstrip()[:1] == b"["
    if in_array and exchange.status < 400:
        events = _array_events(pieces)
        return dialect.read_stream(events), len(events)
    try:
        value = read_json(body)
    except ValueError:
        cut = exchange.outcome != "complete" or decoder.fault is not None
        notes.append("response body: cut" if cut else "response body: no JSON")
        return NO_ANSWER, 0
    if in_array and isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        notes.append("response body: no JSON object")
        return NO_ANSWER, 0
    if exchange.status >= 400:
        return replace(NO_ANSWER, error=error_text(value)), 0
    return dialect.read_body(value, exchange.t_end_ns or pieces[-1][0]), 0


def _is_event_stream(exchange: Exchange, body: bytes) -> bool:
    content_type = (exchange.response_header("content-type") or "").lower()
    looks_streamed = body.lstrip()[:6] in (b"event:", b"data: ") or body.lstrip().startswith((b"data:", b": "))
    return "text/event-stream" in content_type or ("json" not in content_type and looks_streamed)


def _server_events(pieces: list[tuple[int, bytes]]) -> list[ServerEvent]:
    parser = SseParser()
    events: list[ServerEvent] = []
    for at_ns, piece in pieces:
        events.extend(parser.feed(at_ns, piece))
    events.extend(parser.close(pieces[-1][0]))
    events = [event for event in events if not event.comment]
    # An event that lacks its blank line counts if its JSON is whole: some servers close right after it.
    return [event for event in events if event.terminated or _is_whole(event)]


def _array_events(pieces: list[tuple[int, bytes]]) -> list[ServerEvent]:
    """Elements of an array that grew, as events: Gemini streams so where the client asks for no event stream."""
    parser = JsonArrayParser()
    return [
        ServerEvent(at_ns=at_ns, event="message", data=element)
        for at_ns, piece in pieces
        for element in parser.feed(piece)
    ]


def _is_whole(event: ServerEvent) -> bool:
    if event.data.strip() == "[DONE]":
        return True
    try:
        return isinstance(read_json(event.data), dict)
    except ValueError:
        return False


def _wire(exchange: Exchange, prompt: Prompt, answer: Answer, events: int, notes: list[str]) -> Wire:
    first_byte = next((read.at_ns for read in exchange.reads if read.data), None)
    failed = exchange.status is not None and exchange.status >= 400
    end = exchange.t_end_ns
    if answer.complete and not failed and exchange.outcome != "complete" and exchange.reads:
        # Codex hangs up once it has read the end it waits for: the answer was over with its last byte.
        end = exchange.reads[-1].at_ns
    streamed = "text/event-stream" in (exchange.response_header("content-type") or "").lower()
    sent = exchange.request_bytes
    if sent is None and not exchange.request_decoded:
        sent = len(exchange.request_body)
    return Wire(
        exchange_id=exchange.exchange_id,
        transport="sse" if streamed else "http",
        status=exchange.status,
        t_send_ns=exchange.t_send_ns,
        t_headers_ns=exchange.t_headers_ns,
        t_first_byte_ns=first_byte,
        t_end_ns=end,
        bytes_up=sent,
        bytes_down=sum(len(read.data) for read in exchange.reads),
        events=events,
        error=_error(exchange),
        auxiliary=_asks_for_title(prompt),
        gaps=len(exchange.gaps),
        wall_offset_us=exchange.wall_offset_us,
        wall_offset_end_us=exchange.wall_offset_end_us,
        notes=tuple(notes),
    )


def _error(exchange: Exchange) -> str:
    """What to call the failure of a call whose answer does not say."""
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

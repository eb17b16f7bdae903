"""What a streamed answer says, read after its last byte has come: when content came, how many tokens, how it ended.

Reads `/v1/chat/completions` and `/v1/completions` streams. Content is a non-empty fragment of text, reasoning or a tool
call; an event's time is the time of the read that completes it. Tokens are the server's own count, never the
number of events: a server under load puts several tokens into one event.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from capture.sse import ServerEvent, SseParser

MOST_CHARACTERS_OF_AN_ERROR = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer; times on the clock of the reads. Unknown is None."""

    events: int
    content_events: int
    first_content_at_ns: int | None
    last_content_at_ns: int | None
    content_gaps_us: tuple[int, ...]
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    finish_reason: str | None
    done: bool  # `[DONE]` was seen
    error: str | None  # an error event, or what could not be read

    @property
    def ended(self) -> bool:
        """Whether the stream's own end was seen: `[DONE]`, or a finish reason where the server sends no `[DONE]`."""
        return self.done or self.finish_reason is not None


class _ToolFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolFragment(msgspec.Struct):
    function: _ToolFunction | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolFragment] | None = None
    function_call: _ToolFunction | None = None  # the form before tool_calls; some servers still stream it


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


_NO_ERROR = msgspec.Raw()


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NO_ERROR  # not `| None`: msgspec then takes nothing but null


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class AnswerReader:
    """Takes an answer's reads, in one go or in slices, and gives the `Answer`.

    A long answer is read in slices so that its reader does not hold up the loop that takes other answers' reads.
    """

    def __init__(self) -> None:
        self._parser = SseParser()
        self._between_events = True  # the parser holds nothing back
        self._content_at: list[int] = []
        self._events = 0
        self._usage: _Usage | None = None
        self._finish_reason: str | None = None
        self._done = False
        self._error: str | None = None

    def feed(self, reads: Iterable[tuple[int, bytes]]) -> None:
        """Take reads in order; they may cut the stream anywhere."""
        for at_ns, data in reads:
            # Nearly every read holds whole events of one data line each: cutting these here instead of in the parser
            # saves 2 of 3 microseconds an event.
            if self._between_events and data.startswith(b"data: ") and data.endswith(b"\n\n"):
                payloads = data[6:-2].split(b"\n\ndata: ")
                if data.count(b"\n") == 2 * len(payloads):
                    for payload in payloads:
                        self._read_event(at_ns, payload)
                    continue
            self._take(self._parser.feed(at_ns, data))
            self._between_events = data.endswith(b"\n\n")

    def _take(self, events: list[ServerEvent]) -> None:
        for event in events:
            if event.comment:
                continue
            if event.event == "error":
                self._events += 1
                self._fail(_error_text(event.data.encode()))
            else:
                self._read_event(event.at_ns, event.data.encode())

    def _read_event(self, at_ns: int, payload: bytes) -> None:
        self._events += 1
        try:
            chunk = _decode_chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if payload.strip() == b"[DONE]":
                self._done = True
            else:
                self._fail(f"event {self._events} is not a chunk of a completion: {_shorten(payload)}")
            return
        if chunk.choices:
            for choice in chunk.choices:
                if choice.finish_reason is not None:
                    self._finish_reason = choice.finish_reason
                if choice.text or (choice.delta is not None and _holds_content(choice.delta)):
                    self._content_at.append(at_ns)
                    break
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.error is not _NO_ERROR and bytes(chunk.error) != b"null":
            self._fail(_error_text(bytes(chunk.error)))

    def _fail(self, error: str) -> None:
        if self._error is None:
            self._error = error

    def close(self, at_ns: int | None) -> Answer:
        """End the stream, an unfinished last event included, and return what was read."""
        if at_ns is not None:
            # Some servers leave out the last blank line. An event that was cut short is no second fault.
            error = self._error
            self._take(self._parser.close(at_ns))
            self._error = error
        usage, content_at = self._usage, self._content_at
        prompt = usage.prompt_tokens_details if usage is not None else None
        completion = usage.completion_tokens_details if usage is not None else None
        return Answer(
            events=self._events,
            content_events=len(content_at),
            first_content_at_ns=content_at[0] if content_at else None,
            last_content_at_ns=content_at[-1] if content_at else None,
            content_gaps_us=tuple([(later - earlier) // 1000 for earlier, later in itertools.pairwise(content_at)]),
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            cached_tokens=prompt.cached_tokens if prompt is not None else None,
            completion_tokens=usage.completion_tokens if usage is not None else None,
            reasoning_tokens=completion.reasoning_tokens if completion is not None else None,
            finish_reason=self._finish_reason,
            done=self._done,
            error=self._error,
        )


def read_answer(reads: Iterable[tuple[int, bytes]]) -> Answer:
    """Read a whole answer at once."""
    reads = list(reads)
    reader = AnswerReader()
    reader.feed(reads)
    return reader.close(reads[-1][0] if reads else None)


def error_message(body: bytes) -> str | None:
    """What the body of a refused request says, shortened; None when it says nothing."""
    return _error_text(body.strip()) if body.strip() else None


def _holds_content(delta: _Delta) -> bool:
    if delta.content or delta.reasoning_content or delta.reasoning or delta.refusal:
        return True
    if delta.tool_calls:
        for fragment in delta.tool_calls:
            if fragment.function is not None and (fragment.function.name or fragment.function.arguments):
                return True
    call = delta.function_call
    return call is not None and bool(call.name or call.arguments)


def _error_text(raw: bytes) -> str:
    """The message inside `{"error": {"message": …}}`, `{"message": …}`, `{"detail": …}` or plain text."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        value: object = msgspec.json.decode(raw)
        while isinstance(value, dict):
            inner = next((value[key] for key in ("error", "message", "detail") if value.get(key)), None)
            if inner is None:
                break
            value = inner
        if isinstance(value, str):
            return _shorten(value.encode())
    return _shorten(raw)


def _shorten(raw: bytes) -> str:
    text = " ".join(raw[: 4 * MOST_CHARACTERS_OF_AN_ERROR].decode("utf-8", "replace").split())
    return text if len(text) <= MOST_CHARACTERS_OF_AN_ERROR else text[: MOST_CHARACTERS_OF_AN_ERROR - 1] + "…"

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
from curate.words import printable

MOST_CHARACTERS_OF_AN_ERROR = 300

DISTINCT_WINDOW = 256
"""Content fragments are told apart within so many: all of a long answer would take memory, and any long text repeats
its words, so that only windows of one size compare."""


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
    distinct_share: float | None = None  # distinct among its content fragments, window by window
    content_bytes: int | None = None  # of its content fragments, as UTF-8
    text: str | None = None  # what it said beside reasoning and tool calls, where that was to be kept

    @property
    def ended(self) -> bool:
        """Whether the stream's own end was seen: `[DONE]`, or a finish reason where the server sends no `[DONE]`."""
        return self.done or self.finish_reason is not None


# gc=False: a chunk holds no cycle, and the collector would count every one of them.
class _ToolFunction(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolFragment(msgspec.Struct, gc=False):
    function: _ToolFunction | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolFragment] | None = None
    function_call: _ToolFunction | None = None  # the form before tool_calls; some servers still stream it


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


_NO_ERROR = msgspec.Raw()


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NO_ERROR  # not `| None`: msgspec then takes nothing but null


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class AnswerReader:
    """Takes an answer's reads, in one go or in slices, and gives the `Answer`.

    A long answer is read in slices so that its reader does not hold up the loop that takes other answers' reads.
    """

    def __init__(self, *, keep_text: bool = False) -> None:
        self._texts: list[str] | None = [] if keep_text else None
        self._distinct: set[str] = set()  # of the window under way
        self._distinct_before = 0
        self._content_bytes = 0
        self._parser = SseParser()
        self._between_events = True  # the parser holds nothing back
        self._at_ns: int | None = None  # of the last read
        self._content_at: list[int] = []
        self._events = 0
        self._usage: _Usage | None = None
        self._finish_reason: str | None = None
        self._done = False
        self._error: str | None = None

    def feed(self, reads: Iterable[tuple[int, bytes]]) -> None:
        """Take reads in order; they may cut the stream anywhere."""
        at_ns = self._at_ns
        for at_ns, data in reads:
            # Nearly every read holds whole events of one data line each: cutting these here instead of in the parser
            # saves 2 of 3 microseconds an event.
            if self._between_events and data.startswith(b"data: ") and data.endswith(b"\n\n"):
                line_ends = data.count(b"\n")
                if line_ends == 2:
                    self._read_event(at_ns, data[6:-2])
                    continue
                payloads = data[6:-2].split(b"\n\ndata: ")
                if line_ends == 2 * len(payloads):
                    for payload in payloads:
                        self._read_event(at_ns, payload)
                    continue
            self._take(self._parser.feed(at_ns, data))
            self._between_events = data.endswith(b"\n\n")
        self._at_ns = at_ns

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
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if payload.strip() == b"[DONE]":
                self._done = True
            else:
                self._fail(f"event {self._events} is not a chunk of a completion: {_shorten(payload)}")
            return
        if chunk.choices:
            for choice in chunk.choices:
                if choice.finish_reason is not None:
                    self._finish_reason = choice.finish_reason
                fragment = choice.text
                if choice.delta is not None:
                    fragment = choice.delta.content or _other_content(choice.delta) or fragment
                if fragment:
                    content_at = self._content_at
                    content_at.append(at_ns)
                    self._distinct.add(fragment)
                    if not len(content_at) % DISTINCT_WINDOW:
                        self._distinct_before += len(self._distinct)
                        self._distinct.clear()
                    self._content_bytes += (
                        len(fragment) if fragment.isascii() else len(fragment.encode("utf-8", "replace"))
                    )
                    if self._texts is not None:
                        self._texts.append(choice.text or (choice.delta and choice.delta.content) or "")
                    break
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.error is not _NO_ERROR and bytes(chunk.error) != b"null":
            self._fail(_error_text(bytes(chunk.error)))

    def _fail(self, error: str) -> None:
        if self._error is None:
            self._error = error

    def close(self) -> Answer:
        """End the stream, an unfinished last event included, and return what was read."""
        if self._at_ns is not None:
            # Some servers leave out the last blank line. An event that was cut short is no second fault.
            error = self._error
            self._take(self._parser.close(self._at_ns))
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
            distinct_share=(self._distinct_before + len(self._distinct)) / len(content_at) if content_at else None,
            content_bytes=self._content_bytes,
            text=None if self._texts is None else "".join(self._texts),
        )


def read_answer(reads: Iterable[tuple[int, bytes]]) -> Answer:
    """Read a whole answer at once."""
    reader = AnswerReader()
    reader.feed(reads)
    return reader.close()


def error_message(body: bytes) -> str | None:
    """What the body of a refused request says, shortened; None when it says nothing."""
    return _error_text(body.strip()) if body.strip() else None


def _other_content(delta: _Delta) -> str | None:
    """The first fragment of a delta that is no plain text: reasoning, a refusal, a tool call."""
    fragment = delta.reasoning_content or delta.reasoning or delta.refusal
    if fragment:
        return fragment
    if delta.tool_calls:
        for call in delta.tool_calls:
            if call.function is not None and (call.function.name or call.function.arguments):
                return call.function.arguments or call.function.name
    function = delta.function_call
    return None if function is None else function.arguments or function.name


def _error_text(raw: bytes) -> str:
    """The message inside `{"error": {"message": …}}`, `{"message": …}`, `{"detail": …}` or plain text."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
    # It is kept and printed: nothing in it may be an order to a terminal.
    text = " ".join(printable(raw[: 4 * MOST_CHARACTERS_OF_AN_ERROR].decode("utf-8", "replace")).split())
    return text if len(text) <= MOST_CHARACTERS_OF_AN_ERROR else text[: MOST_CHARACTERS_OF_AN_ERROR - 1] + "…"

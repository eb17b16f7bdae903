"""OpenAI Responses over a WebSocket: many calls in one exchange.

The agent sends a `response.create` frame for each call, the service answers with the events of a stream, one text frame
each. A frame may go on from an earlier response (`previous_response_id`), may only warm the service up
(`generate: false`), and may name a stream (`stream_id`) when several conversations share the socket: its events then
name it too. Within one stream, calls come one after the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from capture.call import ModelCall
from capture.dialects.openai_responses import API, read_prompt
from capture.dialects.openai_responses_stream import ResponseReader
from capture.dialects.put_together import Wire, put_together
from capture.dialects.reading import NO_ANSWER, Json, as_count, as_object, as_text, read_json
from capture.exchange import Exchange, SocketMessage

_ACKNOWLEDGES = "response.processed"  # Codex says that it has read an answer: nothing of the conversation
_OF_THE_FIRST_CALL = ("x-codex-turn-metadata", "x-codex-window-id")  # stale by the second; each frame brings its own
_ABOUT_THE_ACCOUNT = ("codex.", "rate_limits", "session.", "keepalive")  # events that belong to no response


@dataclass(slots=True)
class _Call:
    """One `response.create` and what came for it."""

    number: int
    frame: Json
    at_ns: int
    bytes_up: int
    stream_id: str
    reader: ResponseReader = field(default_factory=ResponseReader)
    response_id: str = ""
    status: int | None = None
    first_ns: int | None = None
    end_ns: int | None = None
    bytes_down: int = 0
    events: int = 0
    notes: list[str] = field(default_factory=list)


class _Socket:
    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self._open: list[_Call] = []
        self._before: list[str] = []  # notes from before the first call

    def take(self, message: SocketMessage) -> None:
        try:
            data = read_json(message.data)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            self._note(f"a frame of the {'agent' if message.from_agent else 'service'} holds no JSON object")
        elif message.from_agent:
            self._from_agent(data, message)
        else:
            self._from_service(data, message)

    def _from_agent(self, data: Json, message: SocketMessage) -> None:
        kind = as_text(data.get("type"))
        stream_id = as_text(data.get("stream_id"))
        if kind == "response.create":
            call = _Call(len(self.calls) + 1, data, message.at_ns, len(message.data), stream_id, notes=self._before)
            self._before = []
            self.calls.append(call)
            self._open.append(call)
        elif kind != _ACKNOWLEDGES:
            self._note(f"the agent sent {kind or 'a frame without a type'}", self._of_stream(stream_id))

    def _from_service(self, data: Json, message: SocketMessage) -> None:
        kind = as_text(data.get("type"))
        if kind.startswith(_ABOUT_THE_ACCOUNT):
            return
        call = self._addressee(data)
        if call is None:
            self._note(f"the service sent {kind or 'an event without a type'} outside of any response")
            return
        call.first_ns = call.first_ns if call.first_ns is not None else message.at_ns
        call.bytes_down += len(message.data)
        call.events += 1
        call.response_id = call.response_id or as_text(as_object(data.get("response")).get("id"))
        status = as_count(data.get("status", data.get("status_code"))) if kind == "error" else None
        call.status = status if status in range(100, 1000) else call.status or 200
        call.reader.take(kind, data, message.at_ns)
        if call.reader.ended:
            call.end_ns = message.at_ns
            self._open.remove(call)

    def _addressee(self, data: Json) -> _Call | None:
        """The open call that an event belongs to: by its stream, by the response it names, else the oldest."""
        named = as_text(as_object(data.get("response")).get("id")) or as_text(data.get("response_id"))
        if named and (known := next((call for call in self._open if call.response_id == named), None)):
            return known
        if stream_id := as_text(data.get("stream_id")):
            return self._of_stream(stream_id)
        waiting = [call for call in self._open if not call.response_id] if named else []
        return next(iter(waiting or self._open), None)

    def _of_stream(self, stream_id: str) -> _Call | None:
        return next((call for call in self._open if call.stream_id == stream_id), None)

    def _note(self, words: str, call: _Call | None = None) -> None:
        target = call or next(reversed(self._open or self.calls), None)
        (self._before if target is None else target.notes).append(words)


def read_socket(exchange: Exchange, headers: Mapping[str, str]) -> list[ModelCall]:
    """Every call of an upgraded exchange, in order of sending; `headers` are the handshake's, lower case."""
    socket = _Socket()
    for message in exchange.messages:
        socket.take(message)
    if not socket.calls:
        return []
    gaps = [0] * len(socket.calls)
    sends = [call.at_ns for call in socket.calls]
    for gap in exchange.gaps:
        gaps[max(0, bisect_right(sends, gap.at_ns) - 1)] += 1
    return [_model_call(exchange, headers, call, lost) for call, lost in zip(socket.calls, gaps, strict=True)]


def _model_call(exchange: Exchange, handshake: Mapping[str, str], call: _Call, gaps: int) -> ModelCall:
    headers = {name: value for name, value in handshake.items() if name not in _OF_THE_FIRST_CALL}
    path = exchange.path.partition("?")[0].rstrip("/")
    try:
        prompt = read_prompt(call.frame, headers, path)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        call.notes.append(f"request: {type(fault).__name__}: {fault}")
        prompt = read_prompt({}, headers, path)
    try:
        answer = call.reader.answer()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        call.notes.append(f"answer: {type(fault).__name__}: {fault}")
        answer = NO_ANSWER
    # The wall clock was compared only at the socket's two ends; what lies between is known if it did not move.
    still = exchange.wall_offset_end_us == exchange.wall_offset_us
    wire = Wire(
        exchange_id=f"{exchange.exchange_id}#{call.number}",
        transport="websocket",
        status=call.status,
        t_send_ns=call.at_ns,
        t_headers_ns=None,
        t_first_byte_ns=call.first_ns,
        t_end_ns=call.end_ns if call.reader.ended else exchange.t_end_ns,
        bytes_up=call.bytes_up,
        bytes_down=call.bytes_down,
        events=call.events,
        error=_error(exchange, call),
        auxiliary=False,
        gaps=gaps,
        wall_offset_us=exchange.wall_offset_us,
        wall_offset_end_us=exchange.wall_offset_end_us if still else None,
        notes=tuple(call.notes),
    )
    return put_together(exchange, wire, API, headers, prompt, answer)


def _error(exchange: Exchange, call: _Call) -> str:
    if call.status is not None and call.status >= 400:
        return f"HTTP {call.status}"
    if exchange.error is not None:
        return exchange.error
    if exchange.outcome not in ("complete", "open"):
        return exchange.outcome
    return "the socket is still open" if exchange.outcome == "open" else "the socket ended before the answer did"

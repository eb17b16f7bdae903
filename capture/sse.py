"""Server-sent events: bytes in, events out; no I/O.

Follows the event stream format of the HTML standard (section 9.2.6): lines end in CR, LF or CRLF, one leading byte
order mark is skipped, `data` lines are joined by LF, an event without `data` is not dispatched. Two things that the
standard drops are kept, because a recording must show them: comments (a server's keep-alive) and an event that the
end of the stream cut short.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event, or one comment line, stamped with the time of the read that completed it (monotonic ns)."""

    at_ns: int
    event: str  # "message" where the stream names none
    data: str
    comment: bool = False  # a line that starts with a colon; `data` is its text
    terminated: bool = True  # False: the stream ended before the blank line that ends an event


class SseParser:
    """Cuts a byte stream into events; any cut of the input, even inside a UTF-8 sequence, gives the same events."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the line that has not ended; joined once, so that tiny reads stay cheap
        self._skip_line_feed = False  # the last read ended in CR: an LF that follows belongs to it
        self._first_line = True
        self._event = ""
        self._data: list[str] = []

    def feed(self, at_ns: int, data: bytes) -> list[ServerEvent]:
        """Take one read and return the events that it completes, in order."""
        if self._skip_line_feed and data:
            self._skip_line_feed = False
            if data[0] == 0x0A:
                data = data[1:]
        if not data:
            return []
        *whole, rest = _LINE_END.split(data) if b"\r" in data else data.split(b"\n")
        self._skip_line_feed = data[-1] == 0x0D
        if not whole:
            self._pieces.append(rest)
            return []
        if self._pieces:
            whole[0] = b"".join(self._pieces) + whole[0]
            self._pieces.clear()
        if rest:
            self._pieces.append(rest)
        events: list[ServerEvent] = []
        for line in whole:
            self._take_line(at_ns, line, events)
        return events

    def close(self, at_ns: int) -> list[ServerEvent]:
        """End the stream; returns the event that it cut short, if there is one, with `terminated` False."""
        events: list[ServerEvent] = []
        if self._pieces:
            line = b"".join(self._pieces)
            self._pieces.clear()
            self._take_line(at_ns, line, events)
        events = [
            ServerEvent(at_ns=event.at_ns, event=event.event, data=event.data, comment=event.comment, terminated=False)
            for event in events
        ]
        if self._data:
            events.append(
                ServerEvent(at_ns=at_ns, event=self._event or "message", data="\n".join(self._data), terminated=False)
            )
        self._event, self._data = "", []
        return events

    def _take_line(self, at_ns: int, raw: bytes, events: list[ServerEvent]) -> None:
        if self._first_line:
            self._first_line = False
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        if not raw:
            if self._data:
                events.append(ServerEvent(at_ns=at_ns, event=self._event or "message", data="\n".join(self._data)))
            self._event, self._data = "", []
            return
        # Only whole lines are decoded, so a sequence that two reads share is never torn.
        name, _, value = raw.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif not name:
            events.append(ServerEvent(at_ns=at_ns, event="", data=value, comment=True))
        # `id`, `retry` and unknown fields carry nothing that a recording of model calls needs.

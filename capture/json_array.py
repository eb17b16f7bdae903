"""A JSON array that arrives in pieces: each element as soon as its last byte is there; no I/O."""

from __future__ import annotations

_QUOTE, _BACKSLASH = 0x22, 0x5C
_OPENS, _CLOSES = b"{[", b"}]"


class JsonArrayParser:
    """Cuts a byte stream into the objects of one array; any cut of the input gives the same elements."""

    def __init__(self) -> None:
        self._element = bytearray()
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def feed(self, data: bytes) -> list[str]:
        """Take one read and return the objects and arrays that it completes, as JSON text."""
        elements: list[str] = []
        for byte in data:
            if self._depth > 1:
                self._element.append(byte)
            if self._in_text:
                if self._escaped:
                    self._escaped = False
                elif byte == _BACKSLASH:
                    self._escaped = True
                elif byte == _QUOTE:
                    self._in_text = False
            elif byte == _QUOTE:
                self._in_text = True
            elif byte in _OPENS:
                self._depth += 1
                if self._depth == 2:
                    self._element[:] = bytes((byte,))
            elif byte in _CLOSES and self._depth:
                self._depth -= 1
                if self._depth == 1:
                    elements.append(self._element.decode("utf-8", "replace"))
                    self._element.clear()
        return elements

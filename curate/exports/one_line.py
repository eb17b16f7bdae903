"""JSON that stays on one line for every reader: some take letters of Unicode for ends of lines."""

from __future__ import annotations

# Python's `str.splitlines` ends lines at these too, and with it `datasets` reads agents' logs.
_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))
_END_BYTES = tuple((letter.encode(), escape.encode()) for letter, escape in _ENDS)


def one_line(data: bytes) -> bytes:
    """JSON in UTF-8 with these letters escaped; they stand in strings alone, so the value is the same."""
    for letter, escape in _END_BYTES:
        if letter in data:
            data = data.replace(letter, escape)
    return data

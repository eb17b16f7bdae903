"""Finds the credentials that the recorder saw on the wire, of which only length and keyed digest are known.

Only stretches of exactly a remembered length can match. Digesting every window of every line would cost more than all
other rules together, so candidates begin and end at an edge of an unbroken stretch or at a delimiter in it; secrets of
some length are also looked for at any offset where key characters look random. Each distinct stretch is digested once.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator

from capture.secret import SeenSecret
from curate.glance import Glance, long_runs
from curate.shapes import SEEN, Finding

_ANYWHERE_FROM = 24  # bytes: a secret this long is looked for at any offset …
_ANYWHERE_IN = 600  # … of a run this long; longer ones are encoded files
_REMEMBERED_MISSES = 200_000
_DELIMITER, _BREAK, _BACKSLASH = 1, 2, 3
# What ends a value in text: white space and quotes, as a header or a cookie may hold anything else.
_MARKS = bytes(
    _BACKSLASH if code == ord("\\")
    else _BREAK if code <= 32 or code in b"\"'<>`"
    else _DELIMITER if code in b"=:/,;&?@|.()[]{}%+-_~#!*$^"
    else 0
    for code in range(256)
)  # fmt: skip
_UNBROKEN = bytes(mark <= _DELIMITER for mark in _MARKS)
# What stands around a value that holds spaces, as the pass phrase of a person.
_ENCLOSING = b"\"'`<>\\\n\r=:;,"
_PARTS = re.compile(r"[\s=:;,&|()\[\]{}]+")


class SeenSecrets:
    """The credentials of a store, by length."""

    def __init__(self, seen: Iterable[SeenSecret], key: bytes) -> None:
        self._key = key
        self._kinds: dict[int, dict[bytes, str]] = {}
        for secret in seen:
            self._kinds.setdefault(secret.length, {})[secret.digest] = secret.kind
        self._shortest = min(self._kinds, default=0)
        self._longest = max(self._kinds, default=0)
        self._misses: set[bytes] = set()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_misses": set()}

    def find(self, glance: Glance) -> Iterator[Finding]:
        """Every occurrence of every known value."""
        if not self._kinds:
            return
        text = glance.text
        values = dict(self._aligned(glance))
        for stretch in glance.between(_ENCLOSING, self._kinds):
            if (known := self._known(stretch.encode("utf-8", "surrogatepass"))) is not None:
                values[known[0]] = known[1]
        for run in self._random_runs(glance) if self._longest >= _ANYWHERE_FROM else ():
            values.update(self._anywhere(run))
        for value, kind in values.items():
            at = text.find(value)
            while at >= 0:
                yield Finding(start=at, end=at + len(value), kind=kind, rank=SEEN, value=value)
                at = text.find(value, at + len(value))

    def _aligned(self, glance: Glance) -> Iterator[tuple[str, str]]:
        """Values that begin and end at an edge of an unbroken stretch or at a delimiter in it."""
        import numpy as np

        data = glance.data
        if not glance.text.isascii():
            yield from self._not_ascii(glance)
        first, last = long_runs(data.translate(_UNBROKEN), self._shortest)
        if not len(first):
            return
        lengths = last - first
        marks = np.frombuffer(b" " + data.translate(_MARKS) + b"\x02", dtype=np.uint8)[1:]
        # Each character of a long stretch, with the stretch's own begin and end.
        begins, ends = np.repeat(first, lengths), np.repeat(last, lengths)
        places = np.arange(len(begins)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + begins
        is_start = (places - begins <= 1) | (marks[places] == _DELIMITER) | (marks[places - 1] == _DELIMITER)
        places, ends = places[is_start], ends[is_start]
        for length in self._kinds:
            stops = places + length
            inside = stops <= ends
            stops = stops[inside]
            stops = stops[(stops == ends[inside]) | (marks[stops] == _DELIMITER) | (marks[stops - 1] == _DELIMITER)]
            for window in {data[at - length : at] for at in stops.tolist()} - self._misses:
                if (known := self._known(window)) is not None:
                    yield known
                    continue
                if len(self._misses) >= _REMEMBERED_MISSES:
                    self._misses.clear()
                self._misses.add(window)

    def _not_ascii(self, glance: Glance) -> Iterator[tuple[str, str]]:
        """Values with letters beyond ASCII, whole between delimiters; a glance has question marks in their places."""
        import numpy as np

        first, last = long_runs(glance.data.translate(_UNBROKEN), 1)
        places = np.flatnonzero(np.frombuffer(glance.data, dtype=np.uint8) == ord("?"))
        within = np.unique(np.searchsorted(last, places, side="right"))
        for begin, end in zip(first[within].tolist(), last[within].tolist(), strict=True):
            for part in _PARTS.split(glance.text[begin:end]):
                if not part.isascii() and (known := self._known(part.encode("utf-8", "surrogatepass"))) is not None:
                    yield known

    def _random_runs(self, glance: Glance) -> set[str]:
        """Runs of key characters around what looks random: there a value may be glued to other letters."""
        text = glance.text
        found = set()
        for begin, end in (*((begin, end) for begin, end, _ in glance.spots), *glance.hex_runs):
            start, stop = glance.run_around(begin, end)
            if stop - start <= _ANYWHERE_IN:  # longer ones are encoded files
                found.add(text[start:stop])
        return found

    def _anywhere(self, run: str) -> Iterator[tuple[str, str]]:
        data = run.encode("ascii")
        for length in self._kinds:
            if length >= _ANYWHERE_FROM:
                for at in range(len(data) - length + 1):
                    if (known := self._known(data[at : at + length])) is not None:
                        yield known

    def _known(self, window: bytes) -> tuple[str, str] | None:
        kinds = self._kinds.get(len(window))
        kind = kinds.get(hmac.digest(self._key, window, "sha256")) if kinds else None
        return (window.decode("utf-8", "replace"), f"seen_{kind}") if kind is not None else None

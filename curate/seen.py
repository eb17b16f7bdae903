"""Finds the credentials that the recorder saw on the wire, of which only length and keyed digest are known.

Only stretches of exactly a remembered length can match. Digesting every window of every line would cost more than all
other rules together, so candidates begin and end at an edge of an unbroken stretch or at a delimiter in it; secrets of
some length are also looked for at any offset of a run of key characters. Each distinct stretch is digested once.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator

from capture.secret import SeenSecret
from curate.shapes import SEEN, Finding

_ANYWHERE_FROM = 24  # bytes: a secret this long is looked for at any offset …
_ANYWHERE_IN = 600  # … of a run this long; longer ones are encoded files
_DELIMITERS = frozenset(b"=:/,;&?@|.()[]{}%+-_~#!*$^")
_REMEMBERED_MISSES = 200_000
# What ends a value in text beside white space; a header or a cookie may hold anything else.
_SEPARATORS = "\"'<>`\\"


class SeenSecrets:
    """The credentials of a store, by length."""

    def __init__(self, seen: Iterable[SeenSecret], key: bytes) -> None:
        self._key = key
        self._kinds: dict[int, dict[bytes, str]] = {}
        for secret in seen:
            self._kinds.setdefault(secret.length, {})[secret.digest] = secret.kind
        shortest = min(self._kinds, default=0)
        self._shortest = shortest
        self._misses: set[str] = set()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_misses": set()}

    def find(self, text: str, runs: Iterable[str]) -> Iterator[Finding]:
        """Every occurrence of every known value; `runs` are the text's runs of key characters."""
        if not self._kinds:
            return
        separated = text
        for separator in _SEPARATORS:
            separated = separated.replace(separator, " ")
        shortest = self._shortest
        stretches = {
            stretch
            for stretch in (*separated.split(), *runs)
            if len(stretch) >= shortest or (not stretch.isascii() and 4 * len(stretch) >= shortest)
        }
        values: dict[str, str] = {}
        for stretch in stretches - self._misses:
            found = dict(self._in_stretch(stretch))
            values |= found
            if not found:
                if len(self._misses) >= _REMEMBERED_MISSES:
                    self._misses.clear()
                self._misses.add(stretch)
        for value, kind in values.items():
            at = text.find(value)
            while at >= 0:
                yield Finding(start=at, end=at + len(value), kind=kind, rank=SEEN, value=value)
                at = text.find(value, at + len(value))

    def _in_stretch(self, stretch: str) -> Iterator[tuple[str, str]]:
        data = stretch.encode("utf-8", "surrogatepass")
        aligned: tuple[set[int], set[int]] | None = None
        for length, kinds in self._kinds.items():
            last = len(data) - length
            if last < 0:
                continue
            offsets: Iterable[int]
            if length >= _ANYWHERE_FROM and len(data) <= _ANYWHERE_IN and _is_run(stretch):
                offsets = range(last + 1)
            else:
                aligned = aligned or _alignments(data)
                starts, ends = aligned
                offsets = [start for start in starts if start + length in ends]
            for window in {data[at : at + length] for at in offsets}:  # a ruled line is one window, not thousands
                kind = kinds.get(hmac.digest(self._key, window, "sha256"))
                if kind is not None:
                    yield window.decode("utf-8", "surrogatepass"), f"seen_{kind}"


_RUN_ONLY = re.compile(r"[A-Za-z0-9_.~+/=%:-]*")


def _is_run(stretch: str) -> bool:
    return _RUN_ONLY.fullmatch(stretch) is not None


def _alignments(data: bytes) -> tuple[set[int], set[int]]:
    """Where a value may begin and end. It may itself begin or end with a delimiter."""
    delimiters = [at for at, byte in enumerate(data) if byte in _DELIMITERS]
    # Offset 1: the stretch may begin with the letter of an escape, `\\n` in JSON.
    starts = {0, 1, *delimiters, *(at + 1 for at in delimiters)}
    ends = {len(data), *delimiters, *(at + 1 for at in delimiters)}
    return starts, ends

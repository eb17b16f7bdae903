"""Other readings of a text in which a secret would show: without colours, unescaped, percent- and base64-decoded.

A view keeps where each stretch came from, so that what is found in it is cut out of the original.
"""

from __future__ import annotations

import base64
import binascii
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

DEPTH = 4  # views of views: JSON in JSON in JSON, percent-encoding in JSON

_COLOUR = re.compile(r"(?:\x1b|\\u001b|\\x1b|\\033|\\e)\[[0-9;:?]*[A-Za-z]")
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_STRETCH_BEFORE = re.compile(r"[^\s\"'<>`\\]*\Z")
_STRETCH_AFTER = re.compile(r"[^\s\"'<>`\\]*")
_STRETCH = 2_000  # characters on either side
_PERCENT_SIGNS = re.compile(r"%[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2})*")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{20,}={0,2}")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A reading of a text. `span` maps a stretch of it to the stretch of the original that must go."""

    text: str
    starts: tuple[int, ...]  # in the view, ascending
    origins: tuple[tuple[int, int, bool], ...]  # in the original: begin, end, whether character for character

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Original [begin, end) of the view's [start, end), start < end."""
        first = bisect_right(self.starts, start) - 1
        begin, _, plain = self.origins[first]
        if plain:
            begin += start - self.starts[first]
        last = bisect_right(self.starts, end - 1) - 1
        base, stop, plain = self.origins[last]
        if plain:
            stop = base + end - self.starts[last]
        return begin, stop


def views(text: str) -> Iterator[View]:
    """Readings of the whole text, none when it has neither colours nor escapes in it."""
    if ("\x1b[" in text or "1b[" in text or "\\033[" in text or "\\e[" in text) and _COLOUR.search(text):
        yield _view(text, _COLOUR, lambda _: "")
    if "\\u00" in text or "\\/" in text:  # other escapes do not break up a secret, and rules allow for them
        yield _view(text, _ESCAPE, _unescape)


def percent_decoded(text: str) -> Iterator[tuple[int, View]]:
    """Readings of the stretches that hold percent-encoded characters, each with its place."""
    end = 0
    for signs in _PERCENT_SIGNS.finditer(text) if "%" in text else ():
        if signs.start() < end:
            continue
        before = _STRETCH_BEFORE.search(text, max(end, signs.start() - _STRETCH), signs.start())
        after = _STRETCH_AFTER.match(text, signs.end(), signs.end() + _STRETCH)
        start, end = before.start() if before else signs.start(), after.end() if after else signs.end()
        yield start, _view(text[start:end], _PERCENT_SIGNS, lambda match: unquote(match[0], errors="replace"))


def base64_decoded(text: str, runs: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Stretches that are base64 of readable text: begin, end, the text. `runs` are the text's unbroken runs."""
    for run in {match[0] for each in runs for match in _BASE64.finditer(each)}:
        head = _decode(run[:24])
        if head is None or not head.isascii() or not _is_readable(head):
            continue  # names, hashes, images
        decoded = _decode(run)
        if decoded is None:
            continue
        try:
            readable = decoded.decode()
        except UnicodeDecodeError:
            continue
        at = text.find(run)
        while at >= 0:
            yield at, at + len(run), readable
            at = text.find(run, at + len(run))


def _decode(run: str) -> bytes | None:
    run = run.rstrip("=").replace("-", "+").replace("_", "/")
    run = run[: len(run) - (len(run) % 4 == 1)]
    try:
        return base64.b64decode(run + "=" * (-len(run) % 4))
    except binascii.Error:
        return None


def _is_readable(data: bytes) -> bool:
    return all(byte >= 32 or byte in (9, 10, 13) for byte in data)


def _unescape(match: re.Match[str]) -> str:
    escape = match[0][1:]
    if escape[0] == "u" and len(escape) == 5:
        return chr(int(escape[1:], 16))
    return _ESCAPED.get(escape, escape)


def _view(text: str, pattern: re.Pattern[str], decode: Callable[[re.Match[str]], str]) -> View:
    pieces: list[str] = []
    starts: list[int] = []
    origins: list[tuple[int, int, bool]] = []
    length = position = 0

    def add(piece: str, begin: int, end: int, plain: bool) -> None:
        nonlocal length
        if piece:
            pieces.append(piece)
            starts.append(length)
            origins.append((begin, end, plain))
            length += len(piece)

    for match in pattern.finditer(text):
        add(text[position : match.start()], position, match.start(), True)
        add(decode(match), match.start(), match.end(), False)
        position = match.end()
    add(text[position:], position, len(text), True)
    return View(text="".join(pieces), starts=tuple(starts), origins=tuple(origins))

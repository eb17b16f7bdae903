"""Other readings of a text in which a secret would show: without colours, unescaped, joined, decoded.

A reading keeps where each stretch came from, so that what is found in it is cut out of the original.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from urllib.parse import unquote

from curate.glance import Glance, is_wide_line
from curate.randomness import LETTERS

DEPTH = 4  # views of views: JSON in JSON in JSON, percent-encoding in JSON

_COLOUR = re.compile(
    r"(?:\x1b|\\u001b|\\x1b|\\033|\\e)(?:\[[0-9;:?]*[A-Za-z]|\][^\x07\x1b\\]{0,300}(?:\x07|\x1b\\|\\u0007))"
    "|[\u200b-\u200d\u2060\ufeff\u00ad]"
)
_INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad")
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|quot|amp|lt|gt|apos|nbsp);")
_QUOTED_PRINTABLE = re.compile(r"=(?:[0-9A-F]{2}|\r?\n)")
_QUOTED_SIGNS = re.compile(r"=3D|(?<=[^\s=])=\r?\n(?=\S)")
_SOFT_BREAK = re.compile(rb"[^\s=]=\r?\n\S")
_CODE = re.compile(r"\\(?:u00|x[0-7]|/)")
# Anchors that tell of them.
_CODES = (b"\\u00", *(b"\\x%x" % digit for digit in range(8)))
_ENTITIES = (b"&quot;", b"&amp;", b"&lt;", b"&#x", *(b"&#%d" % digit for digit in range(10)))
_EQUALS_SIGN = (b"=3d",)
_APART = "\n\n\0\n"  # between stretches that have nothing to do with each other: no rule reads across a NUL
_STRETCH = 400  # characters on either side
# Of letters, signs and spaces: `%02d` of a format is none.
_PERCENT_SIGNS = re.compile(
    r"%(?:2[0-9A-Fa-f]|3[0-9A-Fa-f]|[4-6][0-9A-Fa-f]|7[0-9A-Ea-e]|0[ADad]|[C-Fc-f][0-9A-Fa-f]%[89ABab][0-9A-Fa-f])"
)
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2})*")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
# A piece of a stream, as providers and agents print it one line each: {"delta":"sk-ant-a"}, {"delta":"pi03-"}.
_DELTA = re.compile(
    r"\"(?:delta|partial_json|text|content|arguments|thinking|chunk|data|token|output)\\*\"[ \t]*:[ \t]*"
    r"\\*\"(?P<piece>(?:[^\"\\\n]|\\[^\"\n])*?)\\*\""
)
_DELTA_WORDS = (
    *(b'delta"', b'delta\\"', b"partial_json", b'chunk"', b'text"', b'content"', b'arguments"', b'thinking"', b'data"'),
    *(b'token"', b'output"', b'text\\"', b'content\\"'),
)
_BETWEEN_DELTAS = 600  # characters of one event's other fields
# A line's end inside a token: a literal in two parts, a shell's backslash, or a terminal's width, behind which numbers
# and marks of a listing may stand. A terminal breaks no line before an assignment.
_WRAP = re.compile(
    r"(?:(?P<quote>[\"'])[ \t]*[+\\]?[ \t]*\r?\n[ \t]*(?P=quote)|\\\r?\n[ \t]*"
    r"|(?P<width>\r?\n)(?:[ \t]*\d{1,6}(?:→|[:|]|\t))?[ \t]*(?:[+|>#-][ \t]?)?(?![A-Za-z_][\w.-]*[ \t]*[=:(]))"
    r"(?=[A-Za-z0-9_+/=.~-]*[0-9A-Z])(?=[A-Za-z0-9_+/=.~-])"
)
_WRAP_AROUND = 400  # characters before and after
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
_BASE64_LINES = re.compile(
    r"[A-Za-z0-9+/_-]{40,}(?:(?:\r?\n|\\+n)[ \t]*[A-Za-z0-9+/_-]{40,})*"
    r"(?:(?:\r?\n|\\+n)[ \t]*[A-Za-z0-9+/_-]+)?={0,2}"
)
_LINE_BREAKS = re.compile(r"(?:\r?\n|\\+n)[ \t]*")
_LARGEST = 16 << 20  # bytes out of a compressed stretch
_HEX_TEXT = re.compile(r"(?:[0-9a-fA-F]{2}){12,}")
_READABLE = 0.85  # share of printable characters


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A reading of a text."""

    text: str
    starts: tuple[int, ...]  # in the view, ascending
    origins: tuple[tuple[int, int, bool], ...]  # in the original: begin, end, whether character for character
    apart: bool = False  # what lies between the origins is no part of the token and must stay
    looks: bool = True  # whether looks alone may find something: lines of a file put together look random

    def spans(self, start: int, end: int) -> list[tuple[int, int]]:
        """What must go of the original for the view's [start, end), start < end."""
        first = bisect_right(self.starts, start) - 1
        last = bisect_right(self.starts, end - 1) - 1
        if self.apart:
            pieces = [self._within(number, start, end) for number in range(first, last + 1)]
        else:
            pieces = [(self._within(first, start, end)[0], self._within(last, start, end)[1])]
        return [(begin, stop) for begin, stop in pieces if begin < stop]

    def _within(self, number: int, start: int, end: int) -> tuple[int, int]:
        begin, stop, plain = self.origins[number]
        if not plain:
            return begin, stop
        at = self.starts[number]
        return begin + max(0, start - at), min(stop, begin + end - at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What a stretch of a text says once it is decoded; it can only go as a whole."""

    text: str
    begin: int
    end: int
    looks: bool = True

    def spans(self, start: int, end: int) -> list[tuple[int, int]]:  # noqa: ARG002
        """The stretch, whatever part of what it says was found."""
        return [(self.begin, self.end)]


def views(glance: Glance) -> Iterator[View | Decoded]:
    """Every other reading of a text."""
    text = glance.text
    if _has_colours(glance) and _COLOUR.search(text):
        yield _view(text, _COLOUR, lambda _: "")
    # Other escapes do not break up a secret, and rules allow for them.
    if "\\" in text and (glance.has(_CODES) or "\\/" in text):
        yield from _around(text, _CODE, _ESCAPE, _unescape)
    if glance.has(_ENTITIES):
        yield from _around(text, _ENTITY, _ENTITY, lambda match: html.unescape(match[0]))
    if glance.has(_EQUALS_SIGN) or _has_soft_break(glance.data):
        yield from _around(text, _QUOTED_SIGNS, _QUOTED_PRINTABLE, _unquote)
    if "%" in text:
        yield from _around(text, _PERCENT_SIGNS, _PERCENT, _unpercent)
    yield from _streamed(glance)
    yield from _unwrapped(glance)
    yield from _cells(glance)
    yield from _decoded(glance)


def _has_colours(glance: Glance) -> bool:
    text = glance.text
    if "\x1b" in text or glance.at(b"1b[", b"033[", b"\\e["):
        return True
    return not text.isascii() and any(letter in text for letter in _INVISIBLE)


def _has_soft_break(data: bytes) -> bool:
    """Whether a word goes on behind an equals sign at a line's end."""
    import numpy as np

    letters = np.frombuffer(data, dtype=np.uint8)
    ends = ((letters[:-1] == ord("=")) & (letters[1:] <= ord("\r"))).nonzero()[0].tolist()
    return any(_SOFT_BREAK.match(data, max(0, end - 1)) for end in ends)


def _around(
    text: str, signs: re.Pattern[str], pattern: re.Pattern[str], decode: Callable[[re.Match[str]], str]
) -> Iterator[View]:
    """A reading of the stretches around the signs of an encoding: their lines, less what is far off."""
    stretches: list[tuple[int, int]] = []
    begin = end = -1
    whole = False  # up to the line's end
    for sign in signs.finditer(text):
        if sign.start() > end:
            if end > begin:
                stretches.append((begin, end))
            least = max(end, 0, sign.start() - _STRETCH)
            line = text.rfind("\n", least, sign.start())
            begin, end = (least if line < 0 else line + 1), sign.end()
            whole = False
        if not whole and sign.end() > end - _STRETCH // 2:
            line = text.find("\n", sign.end(), sign.end() + _STRETCH)
            whole = line >= 0
            end = line if whole else min(len(text), sign.end() + _STRETCH)
    if end > begin:
        stretches.append((begin, end))
    if stretches:
        yield _view(text, pattern, decode, stretches)


def _unpercent(match: re.Match[str]) -> str:
    return unquote(match[0], errors="replace")


def _streamed(glance: Glance) -> Iterator[View]:
    """The pieces of streams, each put together."""
    text = glance.text
    words = glance.at(*_DELTA_WORDS)
    if len(words) < 2:
        return
    pieces: list[tuple[int, int]] = []
    last = 0
    for word in words:
        match = _DELTA.match(text, text.rfind('"', max(0, word - 14), word)) if word >= last else None
        if match is None:
            continue
        if pieces and (match.start() - last > _BETWEEN_DELTAS or "\n" not in text[last : match.start()]):
            pieces.append((last, last))
        last = match.end()
        if match.end("piece") > match.start("piece"):
            pieces.append(match.span("piece"))
    if len(pieces) > 1:
        yield _joined(text, pieces)


def _joined(text: str, pieces: Iterable[tuple[int, int]]) -> View:
    """Stretches of a text put together; an empty one parts what stands before it from what comes."""
    found: list[str] = []
    starts: list[int] = []
    origins: list[tuple[int, int, bool]] = []
    length = 0
    for begin, end in pieces:
        piece = text[begin:end] or _APART
        found.append(piece)
        starts.append(length)
        origins.append((begin, end, begin < end))
        length += len(piece)
    return View(text="".join(found), starts=tuple(starts), origins=tuple(origins), apart=True)


def _unwrapped(glance: Glance) -> Iterator[View]:
    """The surroundings of tokens that touch a line's end, with the lines put together: one view for all of a kind."""
    text, data = glance.text, glance.data
    done = 0
    pieces: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for begin, end, _ in glance.spots:
        if begin < done:
            continue
        wrap = _WRAP.match(text, end) or (_WRAP.match(text, end + 1) if text[end : end + 1] in _JOINTS else None)
        line = data.rfind(b"\n", 0, begin) + 1
        if wrap is None and (begin - line > 12 or line < 2 or not _is_token_end(data, line - 1)):
            continue
        first = max(done, data.rfind(b"\n", 0, max(0, line - 1)) + 1, begin - _WRAP_AROUND)
        last = min(len(text), end + _WRAP_AROUND)
        breaks = [match.span() for match in _WRAP.finditer(text, first, last) if _is_in_token(data, match)]
        if not breaks or "PRIVATE KEY" in text[first:last]:
            continue
        done = last
        edges = [first, *(edge for span in breaks for edge in span), last]
        looks = all(_is_wrapped(data, begin) for begin, _ in breaks)
        pieces[looks] += [pair for pair in zip(edges[::2], edges[1::2], strict=True) if pair[0] < pair[1]]
        pieces[looks].append((last, last))
    for looks, found in pieces.items():
        if found:
            yield replace(_joined(text, found), looks=looks)


def _cells(glance: Glance) -> Iterator[View]:
    """The rows of drawn tables of which a cell goes on in the line below, each cell put together."""
    text = glance.text
    pieces: list[tuple[int, int]] = []
    done = 0
    data = glance.data
    for at_blank in glance.at(*_BLANK_CELL_SIGNS):
        if at_blank < done or _BLANK_CELL.match(data, at_blank) is None:
            continue
        last = text.rfind("\n", 0, at_blank) + 1
        first = text.rfind("\n", 0, max(0, last - 1)) + 1
        bars = _bars(text, first)
        lines = [first]
        at = last
        while bars and len(lines) < _MOST_LINES and _bars(text, at) == bars and _has_blank_cell(text, at, bars):
            lines.append(at)
            at = text.find("\n", at) + 1
            if not at:
                break
        if len(lines) < 2:
            continue
        done = at or len(text)
        found: list[tuple[int, int]] = []
        for low, high in pairwise(bars):
            for line in lines:
                cell = text[line + low + 1 : line + high]
                if bare := cell.strip():
                    begin = line + low + 1 + cell.index(bare)
                    found.append((begin, begin + len(bare)))
            found.append((first + high, first + high + 1))
        pieces += [(first + bars[0], first + bars[0] + 1), *found, (last, last)]
    if pieces:
        yield _joined(text, pieces)


def _bars(text: str, line: int) -> tuple[int, ...]:
    """Columns of a line that hold the bars of a table's row; none where the line is none."""
    end = text.find("\n", line)
    row = text[line : end if end >= 0 else len(text)]
    if len(row) > _WIDEST_TABLE or row.rstrip()[-1:] not in _BARS:
        return ()
    return tuple(match.start() for match in _BAR.finditer(row))


def _has_blank_cell(text: str, line: int, bars: tuple[int, ...]) -> bool:
    cells = [text[line + low + 1 : line + high].strip() for low, high in pairwise(bars)]
    return any(cells) and not all(cells)


def _is_wrapped(data: bytes, end: int) -> bool:
    """Whether the line that ends here is prose or a log that a terminal broke, rather than part of an encoded file."""
    return is_wide_line(data, end) and b" " in data[data.rfind(b"\n", 0, end) + 1 : end].strip()


def _is_in_token(data: bytes, wrap: re.Match[str]) -> bool:
    """Whether a line's end may be no end of the token before it."""
    at = wrap.start()
    if not _is_token_end(data, at):
        return False
    return wrap["width"] is None or is_wide_line(data, at)


def _is_token_end(data: bytes, at: int) -> bool:
    return at > 1 and data[at - 1] in _TOKEN_ENDS and data[at - 2 : at] != b"--"


_BARS = ("|", "│", "┃", "║")
_BAR = re.compile(r"[|│┃║]")
# A question mark stands for a bar that is not ASCII.
_BLANK_CELL_SIGNS = (b"|   ", b"?   ")
_BLANK_CELL = re.compile(rb"[|?] {3,}(?=[|?])")
_MOST_LINES = 60
_WIDEST_TABLE = 1_000
_JOINTS = ("=", ".", "~", "+", "/", "-", "_")
_TOKEN_ENDS = LETTERS + b"=.~\"'\\"


def _decoded(glance: Glance) -> Iterator[Decoded]:
    """Stretches that are base64 of text, plain or compressed, on one line or many; and text in hexadecimal."""
    text = glance.text
    done = 0
    seen: dict[str, str | None] = {}
    for begin, end, _ in glance.spots:
        if begin < done:
            continue
        lines = _BASE64_LINES.match(text, begin) if end - begin >= 40 else None
        match = lines or _BASE64.match(text, begin)
        if match is None:
            continue
        begin, done = match.span()
        run = match[0]
        if run not in seen:
            seen[run] = base64_text(_LINE_BREAKS.sub("", run) if lines else run)
        if (said := seen[run]) is not None:
            yield Decoded(text=said, begin=begin, end=done)
    for begin, _ in glance.hex_runs:
        match = _HEX_TEXT.match(text, begin)
        if match is not None and (said := _readable(bytes.fromhex(match[0]))) is not None:
            yield Decoded(text=said, begin=begin, end=match.end())


def base64_text(run: str) -> str | None:
    """The text that base64 hides, plain or compressed; None where it hides none."""
    if run.startswith("H4sI"):
        data = _decode(run)
        try:
            return None if data is None else _readable(zlib.decompressobj(31).decompress(data, _LARGEST))
        except zlib.error:
            return None
    head = _decode(run[:24])
    if head is None or not _is_readable(head):
        return None  # names, hashes, images
    data = _decode(run)
    return None if data is None else _readable(data)


def _decode(run: str) -> bytes | None:
    run = run.rstrip("=").replace("-", "+").replace("_", "/")
    run = run[: len(run) - (len(run) % 4 == 1)]
    try:
        return base64.b64decode(run + "=" * (-len(run) % 4))
    except binascii.Error:
        return None


def _is_readable(data: bytes) -> bool:
    return sum(byte >= 128 or (byte < 32 and byte not in (9, 10, 13)) or byte == 127 for byte in data) <= len(data) // 8


def _readable(data: bytes) -> str | None:
    if not _is_readable(data[:64]) and not data[:64].decode("utf-8", "ignore").isprintable():
        return None
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return text if wrong <= (1 - _READABLE) * len(text) else None


def _unescape(match: re.Match[str]) -> str:
    escape = match[0][1:]
    if escape[0] in "ux" and len(escape) > 2:
        return chr(int(escape[1:], 16))
    return _ESCAPED.get(escape, escape)


def _unquote(match: re.Match[str]) -> str:
    return "" if match[0].endswith("\n") else chr(int(match[0][1:], 16))


def _view(
    text: str,
    pattern: re.Pattern[str],
    decode: Callable[[re.Match[str]], str],
    stretches: Iterable[tuple[int, int]] | None = None,
) -> View:
    """The text, or some stretches of it, with what the pattern matches decoded."""
    pieces: list[str] = []
    starts: list[int] = []
    origins: list[tuple[int, int, bool]] = []
    length = 0

    def add(piece: str, begin: int, end: int, plain: bool) -> None:
        nonlocal length
        if piece:
            pieces.append(piece)
            starts.append(length)
            origins.append((begin, end, plain))
            length += len(piece)

    for begin, end in stretches if stretches is not None else ((0, len(text)),):
        position = begin
        for match in pattern.finditer(text, begin, end):
            add(text[position : match.start()], position, match.start(), True)
            add(decode(match), match.start(), match.end(), False)
            position = match.end()
        add(text[position:end], position, end, True)
        if stretches is not None:
            add(_APART, end, end, False)
    return View(text="".join(pieces), starts=tuple(starts), origins=tuple(origins))

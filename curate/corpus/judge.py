"""Whether a secret is still to be read in a text, by any decoding that a reader would think of.

The judge shares no code with redaction: what redaction cannot decode, the judge must still see. A secret counts as
removed when no stretch of `STRETCH` characters of it survives in the text or in a decoding of it; of a value shorter
than that, the whole value.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import html
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from urllib.parse import unquote

STRETCH = 12
DEPTH = 5
MOST_VIEWS = 600

ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b|\\x1b|\\u001b|\\033|\\e)(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))", re.IGNORECASE
)
BACKSLASH = re.compile(r"""\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))""", re.DOTALL)
LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
LINE_PREFIX = re.compile(r"^(?:[ \t]*\d+(?:\t|→|[|:] ?|  )|[^\s:]+:\d+:|[+\-> ] ?|#+ ?)", re.MULTILINE)
BASE64_RUN = re.compile(r"[A-Za-z0-9+/_\-]{10,}={0,2}")
BASE64_LINES = re.compile(r"[A-Za-z0-9+/_\-]{16,}(?:(?:\\r|\\n|[\s\"'>+|])+[A-Za-z0-9+/_\-]{4,})+")
HEX_RUN = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){12,}")
PIECE = re.compile(
    r'"(?:text|partial_json|arguments|content|delta|data|thinking|value)"\s*:\s*"((?:[^"\\]|\\.)*)"', re.DOTALL
)
TABLE_LINE = re.compile(r"^[ \t]*([│|┃].*[│|┃])[ \t]*$", re.MULTILINE)
BETWEEN_LITERALS = re.compile(r"""["'`]\s*[+,.\\]?\s*["'`]""")


def without_colour(text: str) -> Iterator[str]:
    yield ESCAPE_SEQUENCE.sub("", text)


def without_backslashes(text: str) -> Iterator[str]:
    """JSON, Python, shell and properties escapes undone once."""

    def character(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        return chr(int(code, 16)) if code else LETTERS.get(match[3], match[3])

    if "\\" in text:
        yield BACKSLASH.sub(character, text)


def without_percent(text: str) -> Iterator[str]:
    if "%" in text:
        yield unquote(text, errors="replace")


def without_entities(text: str) -> Iterator[str]:
    if "&" in text:
        yield html.unescape(text)


def without_line_ends(text: str) -> Iterator[str]:
    """Lines joined: as they are, without what tools write before each, and without indentation."""
    if "\n" in text:
        yield text.replace("\r", "").replace("\n", "")
        yield LINE_PREFIX.sub("", text)
        yield re.sub(r"\s*\n\s*", "", text)


def joined_cells(text: str) -> Iterator[str]:
    """The lines of each column of a drawn table, as one."""
    rows = [[cell.strip() for cell in re.split(r"[│|┃]", line[1:-1])] for line in TABLE_LINE.findall(text)]
    if len(rows) > 1:
        yield "\n".join("".join(column) for column in zip_longest(*rows, fillvalue=""))


def joined_literals(text: str) -> Iterator[str]:
    """Adjacent string literals of source code, as one."""
    if BETWEEN_LITERALS.search(text):
        yield BETWEEN_LITERALS.sub("", text)


def joined_pieces(text: str) -> Iterator[str]:
    """The string values of streamed events, joined."""
    pieces = PIECE.findall(text)
    if len(pieces) > 1:
        yield "".join(pieces)
        yield "".join(decoded(piece) for piece in pieces)


def decoded(literal: str) -> str:
    try:
        return str(json.loads(f'"{literal}"', strict=False))
    except ValueError:
        return literal


def from_base64(text: str) -> Iterator[str]:
    """What base64 runs say, at each of the four places that a torn run may begin at."""
    runs = [match[0] for match in BASE64_RUN.finditer(text)]
    runs += [re.sub(r"\\[rn]|[^A-Za-z0-9+/_\-]", "", match[0]) for match in BASE64_LINES.finditer(text)]
    for run in runs:
        plain = run.rstrip("=").replace("-", "+").replace("_", "/")
        for start in range(4):
            part = plain[start:]
            part = part[: len(part) // 4 * 4] if len(part) % 4 == 1 else part + "=" * (-len(part) % 4)
            try:
                data = base64.b64decode(part)
            except (binascii.Error, ValueError):
                continue
            yield from readable(data)


def from_hex(text: str) -> Iterator[str]:
    for match in HEX_RUN.finditer(text):
        yield from readable(bytes.fromhex(re.sub(r"[^0-9a-fA-F]", "", match[0])))


def readable(data: bytes) -> Iterator[str]:
    """Bytes as text where a fair part of it is printable; unpacked first where they are packed."""
    for unpack in (gzip.decompress, zlib.decompress):
        try:
            data = unpack(data)
            break
        except (OSError, EOFError, zlib.error):
            continue
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in data)
    if printable * 4 >= len(data) * 3:
        yield data.decode("latin-1")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data.count(0) * 3 > len(data):
        yield data.decode("utf-16", "replace")


DECODINGS: tuple[Callable[[str], Iterable[str]], ...] = (
    *(without_colour, without_backslashes, without_percent, without_entities, joined_pieces, from_base64),
    *(without_line_ends, joined_cells, joined_literals, from_hex),
)


def decodings(text: str) -> Iterator[str]:
    """The text, and whatever it decodes to, nearest first."""
    seen = {text}
    layer = [text]
    yield text
    for _ in range(DEPTH):
        following: list[str] = []
        for view in layer:
            for decode in DECODINGS:
                for other in decode(view):
                    if len(other) >= 4 and other not in seen and len(seen) < MOST_VIEWS:
                        seen.add(other)
                        following.append(other)
                        yield other
        layer = following


def stretches(secret: str) -> set[str]:
    """Every stretch of a secret whose survival is a leak."""
    size = min(STRETCH, len(secret))
    return {secret[at : at + size] for at in range(len(secret) - size + 1)}


def survivor(text: str, secrets: Iterable[str]) -> str | None:
    """A stretch of a secret that is still to be read in the text or in a decoding of it; None when none is."""
    wanted = {stretch for secret in secrets for stretch in stretches(secret)}
    if not wanted:
        return None
    size = min(len(stretch) for stretch in wanted)
    sizes = sorted({len(stretch) for stretch in wanted})
    for view in decodings(text):
        if len(view) < size:
            continue
        for length in sizes:
            for at in range(len(view) - length + 1):
                if view[at : at + length] in wanted:
                    return view[at : at + length]
    return None

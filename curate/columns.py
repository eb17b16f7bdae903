"""Values of the column of a table that a telling name heads, whatever parts the columns."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

from curate.literal import is_groups, is_literal
from curate.shapes import ASSIGNED, Finding

_HEADER_CELL = re.compile(r"[ \t]*[\"'`*]{0,2}[A-Za-z][\w .-]{0,40}[\"'`*]{0,2}[ \t]*")
_RULE = re.compile(r"[\s|+:=\-─-╿]*")
_BARS = re.compile(r"[|│┃║]")
_CELL_MARKS = (re.compile(r","), re.compile(r";"), re.compile(r"\t"), _BARS)
_COLUMNS = re.compile(r"[ \t]{2,}")
_ROWS = 200
_INSERT = re.compile(r"\)\s*values\s*\(", re.IGNORECASE)


def find_below(text: str, lowered: str, start: int, end: int, kind: str) -> Generator[Finding, None, int]:
    """Values of the column that a name heads, whatever parts the columns; returns where its rows end."""
    line_begin = text.rfind("\n", max(0, start - 400), start) + 1
    line_end = text.find("\n", end, end + 400)
    line_end = min(len(text), end + 400) if line_end < 0 else line_end
    header = text[line_begin:line_end].rstrip("\r")
    if (insert := lowered.rfind("(", line_begin, start)) >= 0:
        close = text.find(")", end, line_end)
        values = _INSERT.match(text, close) if close >= 0 else None
        if values is not None:
            yield from _inserted(text, text[insert + 1 : close], start - insert - 1, values.end() - 1, kind)
        return 0
    for marks in (*_CELL_MARKS, _COLUMNS):
        if marks.search(header.strip()) is None:
            continue
        cells = list(_cells(header, marks))
        inner = [cell for cell in cells if cell[1] > cell[0]] if marks is _BARS else cells
        if len(inner) < 2 or not all(
            _HEADER_CELL.fullmatch(header, *cell) for cell in inner if header[slice(*cell)].strip()
        ):
            continue
        place = start - line_begin
        column = next((number for number, (low, high) in enumerate(cells) if low <= place < high), None)
        if (
            column is None
            or header[slice(*cells[column])].strip(" \t\"'`*").lower()[-(end - start) :] != lowered[start:end]
        ):
            continue
        return (yield from _column(text, line_end + 1, marks, len(cells), column, kind))
    return 0


def _cells(line: str, marks: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    at = len(line) - len(line.lstrip()) if marks is _COLUMNS else 0
    for mark in marks.finditer(line.rstrip(), at):
        yield at, mark.start()
        at = mark.end()
    yield at, len(line.rstrip())


def _column(
    text: str, at: int, marks: re.Pattern[str], count: int, column: int, kind: str
) -> Generator[Finding, None, int]:
    for _ in range(_ROWS):
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop
        row = text[at:stop].rstrip("\r")
        if _RULE.fullmatch(row) is None or (marks is _BARS and row.strip(" |│┃║") and not _RULE.fullmatch(row)):
            cells = list(_cells(row, marks))
            if len(cells) != count:
                return at
            low, high = cells[column]
            value = row[low:high].strip(" \t\"'`*")
            if value and (is_literal(value) or is_groups(value)):
                begin = at + row.index(value, low)
                yield _finding(text, begin, begin + len(value), kind)
        elif not row.strip():
            return at
        if stop >= len(text):
            return at
        at = stop + 1
    return at


def _inserted(text: str, names: str, place: int, at: int, kind: str) -> Iterator[Finding]:
    """Values of a column of an SQL INSERT."""
    column = names.count(",", 0, place)
    for row in re.compile(r"\((?P<row>(?:'(?:[^'\n]|'')*'|[^'()\n]|\([^()\n]*\))*)\)\s*,?\s*").finditer(
        text, at, at + 20_000
    ):
        if row.start() != at:
            return
        at = row.end()
        cells = list(re.compile(r"(?:'(?:[^'\n]|'')*'|[^',()\n]|\([^()\n]*\))+").finditer(row["row"]))
        if len(cells) != names.count(",") + 1:
            return
        cell = cells[column][0].strip()
        if cell.startswith("'") and len(cell) > 2 and is_literal(cell[1:-1]):
            begin = text.index(cell, row.start() + 1 + cells[column].start()) + 1
            yield _finding(text, begin, begin + len(cell) - 2, kind)


def _finding(text: str, start: int, end: int, kind: str) -> Finding:
    return Finding(start=start, end=end, kind=kind, rank=ASSIGNED, value=text[start:end])

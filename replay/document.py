"""A report as a document: sections of sentences, tables and charts, the same for the HTML page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

type Tone = Literal["met", "missed", "undecided", "invalid", "quiet"]
"""How a word is coloured on the page; the word itself says the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value of a table, as text."""

    text: str
    tone: Tone | None = None
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's heading; numbers stand to the right."""

    name: str
    number: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table. A `note` belongs to this line and takes the table's whole width below it."""

    cells: tuple[Cell, ...]
    note: str | None = None
    marked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with the caption that says what its numbers are."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    folded: bool = False  # long, and not what a reader comes for: shown when opened; always printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """An inline SVG, drawn when a page asks for it: Markdown leaves charts out.

    `says` is what a reader who does not see it is told.
    """

    draw: Callable[[], str]
    caption: str
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One question that a reader has. `slug` is its anchor."""

    slug: str
    title: str
    lead: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    blocks: tuple[Table | Chart, ...] = ()
    command: str | None = None  # to copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A result in one sentence, in two halves: the claim, and what it rests on."""

    claim: str
    detail: str
    tone: Tone

    @property
    def sentence(self) -> str:
        return f"{self.claim}: {self.detail}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The whole report. The first finding is the verdict."""

    findings: tuple[Finding, ...]
    because: tuple[str, ...]
    subject: str
    alarm: tuple[str, ...]  # the files do not give these numbers, or the run is not finished
    not_said: tuple[str, ...]
    at_a_glance: Table | None
    beside: tuple[str, ...]  # labels: each changes what the number means
    sections: tuple[Section, ...]
    foot: str


def columns(*names: str) -> tuple[Column, ...]:
    """Columns of numbers; a name that ends in `:` holds text."""
    return tuple(Column(name=name.rstrip(":"), number=not name.endswith(":")) for name in names)


def row(*texts: str | Cell, note: str | None = None, marked: bool = False) -> Row:
    """A line of plain or prepared cells."""
    return Row(cells=tuple(_cell(text) for text in texts), note=note, marked=marked)


def pairs(caption: str, items: Iterable[tuple[str, str | Cell]]) -> Table:
    """A table of two columns: what, and its value."""
    return Table(caption=caption, columns=columns("what:", "value:"), rows=tuple(row(*item) for item in items))


def _cell(text: str | Cell) -> Cell:
    return text if isinstance(text, Cell) else Cell(text=text)

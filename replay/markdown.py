"""A report as Markdown: the same sentences and tables as the page, without its charts."""

from __future__ import annotations

import re

from replay.document import Document, Row, Section, Table


def markdown(document: Document) -> str:
    """The document's text."""
    verdict, *others = document.findings
    lines = [f"# {_text(verdict.claim)}", "", f"**{_text(verdict.sentence)}**", "", _text(document.subject)]
    for line in document.because:
        lines += ["", f"Because {_text(line)}."]
    for finding in others:
        lines += ["", _text(finding.sentence)]
    lines += _list("", document.alarm)
    lines += _list("## What this does not say", document.not_said)
    lines += _list("## What must stand beside it", document.beside)
    if document.at_a_glance is not None:
        lines += ["", *_table(document.at_a_glance)]
    for section in document.sections:
        lines += _section(section)
    return "\n".join([*lines, "", "---", "", _text(document.foot), ""])


def _section(section: Section) -> list[str]:
    lines = ["", f"## {_text(section.title)}"]
    for sentence in section.lead:
        lines += ["", _text(sentence)]
    if section.command is not None:
        lines += ["", "```", section.command, "```"]
    lines += _list("", section.points)
    for block in section.blocks:
        if isinstance(block, Table):
            lines += ["", *_table(block)]
    return lines


def _list(title: str, items: tuple[str, ...]) -> list[str]:
    if not items:
        return []
    return [*(["", title] if title else []), "", *(f"- {_text(item)}" for item in items)]


def _table(table: Table) -> list[str]:
    """The notes of a table's rows stand below it, by the row's first cell: a Markdown cell has no second line."""
    rule = "|".join("--:" if column.number else "---" for column in table.columns)
    lines = [f"*{_text(table.caption)}*", "", _line([column.name for column in table.columns]), f"|{rule}|"]
    lines += [_line([_cell(item.text, code=item.code) for item in row.cells]) for row in table.rows]
    noted: list[Row] = [row for row in table.rows if row.note]
    return lines + _list("", tuple(f"{row.cells[0].text}: {row.note}" for row in noted))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str, *, code: bool) -> str:
    return f"`{text.replace('`', '').replace('|', ' ')}`" if code else _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Text from anywhere, so that it stays text: no heading, link, picture or HTML of its own."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", " ".join(text.split()))

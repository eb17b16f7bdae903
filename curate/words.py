"""Numbers of things in words, as cards and messages say them."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """`1 session`, `1,200 sessions`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def count_rows(rows: dict[str, int]) -> str:
    """The rows of a dataset, by table; a table that is not there is not named."""
    return ", ".join(
        count(rows[table], noun)
        for table, noun in (("sessions", "session"), ("requests", "request"), ("tool_calls", "tool call"))
        if table in rows
    )


def printable(text: str) -> str:
    """A text of somebody else's on one line, without what a terminal or a page takes for an order."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def printable_lines(text: str) -> str:
    """The same of a text whose line ends are ours."""
    return "\n".join(map(printable, text.split("\n")))

"""What was deleted from a journal and still lies in its file: hidden from every reader until the file is rewritten.

One small file beside the journal, `journal-….erase`, JSON: `{"exchanges": [numbers]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from capture.atomic import write_atomically

SUFFIX = ".erase"


def hidden_numbers(journal: Path) -> frozenset[int]:
    """Numbers of the exchanges that were deleted; ValueError where the file is damaged."""
    path = journal.with_suffix(SUFFIX)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return frozenset()
    try:
        return frozenset(int(number) for number in json.loads(text)["exchanges"])
    except (ValueError, TypeError, KeyError) as fault:
        raise ValueError(f"{path.name} beside it is damaged, so what was deleted is not known") from fault


def hide(journal: Path, numbers: Iterable[int]) -> None:
    """Hide more exchanges of a journal, at once and for every reader. OSError where it cannot be written."""
    hidden = sorted(hidden_numbers(journal).union(numbers))
    write_atomically(journal.with_suffix(SUFFIX), json.dumps({"exchanges": hidden}).encode() + b"\n", mode=0o600)


def bury(journal: Path) -> None:
    """Nothing hidden lies in the file any more."""
    journal.with_suffix(SUFFIX).unlink(missing_ok=True)

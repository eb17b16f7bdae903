"""What was deleted from a journal and still lies in its file: hidden from every reader until the file is rewritten.

One small file beside the journal, `journal-….erase`, JSON: `{"exchanges": [numbers]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from capture.atomic import changing, write_atomically

SUFFIX = ".erase"


def hidden_numbers(journal: Path) -> frozenset[int]:
    """Numbers of the exchanges that were deleted; ValueError where the file is damaged."""
    path = journal.with_suffix(SUFFIX)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return frozenset()
    try:
        return frozenset(int(number) for number in json.loads(data)["exchanges"])
    except (ValueError, TypeError, KeyError) as fault:
        raise ValueError(f"{path.name} beside it is damaged, so what was deleted is not known") from fault


def hide(journal: Path, numbers: Iterable[int]) -> None:
    """Hide more exchanges of a journal, at once and for every reader. OSError where it cannot be written."""
    with changing(journal.parent):
        _write(journal, hidden_numbers(journal).union(numbers))


def bury(journal: Path, numbers: Iterable[int]) -> None:
    """These lie in the file no more; what was hidden meanwhile still does."""
    with changing(journal.parent):
        left = hidden_numbers(journal).difference(numbers)
        if left:
            _write(journal, left)
        else:
            journal.with_suffix(SUFFIX).unlink(missing_ok=True)


def _write(journal: Path, numbers: Iterable[int]) -> None:
    text = json.dumps({"exchanges": sorted(numbers)})
    write_atomically(journal.with_suffix(SUFFIX), text.encode() + b"\n", mode=0o600)

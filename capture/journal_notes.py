"""Words that are known only after a journal was closed, added to what it says about itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path


def add_notes(path: Path, notes: Mapping[str, str]) -> bool:
    """Add entries to a journal's `meta`, never over one that is there; whether it was done.

    A journal that a recorder still holds, or that a killed one left behind, stays as it is: it is evidence.
    """
    if path.with_suffix(".lock").exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database, database:
            database.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", notes.items())
    except sqlite3.Error:
        return False
    return True

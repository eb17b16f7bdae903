"""Files that are one JSON document each, and files of a kind under the paths that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capture.dialects.reading import read_json
from capture.importers.imported import ImportFault, json_fault


def files_under(paths: Sequence[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """The named files, and those with one of the suffixes in named folders, each once.

    ImportFault for a path that does not exist and for a folder that has none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name.endswith(suffixes)]
            if not inside:
                raise ImportFault(f"{path}: no {' or '.join(suffixes)} file in there")
            found.update(dict.fromkeys(inside))
        elif not path.exists():
            raise ImportFault(f"{path}: no such file or folder")
        else:
            found[path] = None
    return list(found)


def read_text(path: Path) -> str:
    """The text of a file; bytes that are no UTF-8 become U+FFFD. ImportFault where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as fault:
        raise ImportFault(f"{path}: cannot be read: {fault.strerror or fault}") from fault


def parse_document(path: Path, text: str) -> Any:
    """The JSON value of a file's text; ImportFault naming file and place where it is none."""
    try:
        return read_json(text)
    except ValueError as fault:
        raise json_fault(str(path), text, fault) from fault

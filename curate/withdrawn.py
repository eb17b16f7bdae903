"""Sessions that were withdrawn from a release: `withdrawn.jsonl` of its folder, one object with `session_id` a line.

The list goes from release to release, so that no later build brings one back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from capture.atomic import write_atomically
from curate.manifest import DatasetFault

WITHDRAWN = "withdrawn.jsonl"


def read_withdrawn(folder: Path) -> dict[str, bytes]:
    """Lines by session id; raises DatasetFault where one cannot be read, since a lost line would publish a session."""
    path = folder / WITHDRAWN
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as fault:
        raise DatasetFault(f"{path} cannot be read: {fault.strerror or fault}") from fault
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            said: Any = msgspec.json.decode(line)
            found.setdefault(said["session_id"], line)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError) as fault:
            raise DatasetFault(f"{path}, line {number}, names no session_id; mend or remove that line") from fault
    return found


def write_withdrawn(folder: Path, lines: dict[str, bytes]) -> None:
    """Write the list, where it names any."""
    data = b"".join(lines[session_id] + b"\n" for session_id in sorted(lines))
    path = folder / WITHDRAWN
    if data and not (path.is_file() and path.read_bytes() == data):
        write_atomically(path, data)

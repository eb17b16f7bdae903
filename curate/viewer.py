"""One small file per session for the Hub's trace viewer: Claude Code's log format, huge texts cut.

The viewer shows one file as one session; files above 1.5 MB never appear (seen on the Hub in 2026-07), and of the
formats that it knows this one keeps its tool calls. The Parquet tables stay the truth: no config of the card names
these files, and each says where it was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from capture.atomic import write_atomically
from capture.trajectory import Trajectory
from curate.exports.claude_code import claude_code_lines, file_stem
from curate.exports.one_line import one_line

FOLDER = "traces"
MAX_BYTES = 1_400_000
MAX_FILES = 2_000  # of a folder with as many as 10,000; the others are in the tables
_CUTS = (20_000, 5_000, 1_500, 400)  # characters left of one text, until the file is small enough
_WHOLE = frozenset({"uuid", "parentUuid", "sessionId", "id", "tool_use_id", "timestamp", "type", "role", "model"})


def viewer_path(session_id: str) -> str:
    """Where a session's file lies in a release; its name is a hash's where the id is no file name."""
    stem = file_stem(session_id)
    if stem != session_id:
        stem = hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{FOLDER}/{stem}.jsonl"


def viewer_lines(trajectory: Trajectory, *, max_bytes: int = MAX_BYTES) -> bytes:
    """A session as JSON lines of at most `max_bytes`; empty for one without text."""
    lines, _ = claude_code_lines(trajectory, requests=False)
    if not lines:
        return b""
    data = b""
    for limit in _CUTS:
        data = _encoded(_cut(line, limit) for line in lines)
        if len(data) <= max_bytes:
            return data
    return _beginning(data, lines[0], max_bytes)


def write_viewer_files(folder: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write the files of a release's sessions that hold text; gives their number."""
    written = 0
    for trajectory in trajectories:
        data = viewer_lines(trajectory)
        if data:
            path = folder / viewer_path(trajectory.session_id)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, data)
            written += 1
    return written


def _encoded(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(one_line(msgspec.json.encode(line)) + b"\n" for line in lines)


def _cut(value: Any, limit: int, name: str = "") -> Any:
    """The same with every text of it cut to a length, ids left whole."""
    if isinstance(value, str):
        if len(value) <= limit or name in _WHOLE:
            return value
        half = limit // 2
        return (
            f"{value[:half]}\n[… {len(value) - 2 * half:,} characters left out for the viewer; "
            f"the whole text is in data/sessions …]\n{value[-half:]}"
        )
    if isinstance(value, dict):
        return {key: _cut(item, limit, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, limit) for item in value]
    return value


def _beginning(data: bytes, first: dict[str, Any], max_bytes: int) -> bytes:
    """As many whole lines as fit, and a last one that says so; lines hang on earlier ones alone."""
    lines = data.splitlines(keepends=True)
    room, kept = max_bytes - 1_000, []
    for line in lines:
        room -= len(line)
        if room < 0:
            break
        kept.append(line)
    last = msgspec.json.decode(kept[-1]) if kept else first
    said = (
        f"Cut for the viewer: {len(lines) - len(kept):,} of {len(lines):,} entries are left out. The whole session is "
        "in data/sessions."
    )
    note: dict[str, Any] = {
        **{key: first[key] for key in ("sessionId", "version", "cwd") if key in first},
        "type": "system",
        "subtype": "informational",
        "content": said,
        "uuid": "cut",
        "parentUuid": last.get("uuid"),
        **({"timestamp": last["timestamp"]} if "timestamp" in last else {}),
    }
    return b"".join((*kept, _encoded([note])))

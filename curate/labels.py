"""Labels: what people or graders know about a session and its bytes do not say. A JSON Lines file, by session id.

One object a line, of which every field but `session_id` may be left out:

    {"session_id": "…", "outcome": "success", "outcome_source": "tests", "resolved": true, "exit_status": "submitted",
     "repo_license": "MIT", "task_id": "django__django-11039", "license": "CC-BY-4.0", "consent": "signed-2026-11",
     "contributor": "a name or an address, which is published as a keyed hash only"}
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from curate.manifest import DatasetFault

type Outcome = Literal["success", "failure", "abandoned", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What is known about one session; None: nothing said. Fields are columns of `sessions`."""

    outcome: Outcome | None = None
    outcome_source: str | None = None
    resolved: bool | None = None
    exit_status: str | None = None
    repo_license: str | None = None
    task_id: str | None = None
    license: str | None = None
    consent: str | None = None
    contributor: str | None = None


NO_LABEL = Label()


def read_labels(path: Path) -> dict[str, Label]:
    """Labels by session id; raises DatasetFault naming the line that is wrong."""
    labels: dict[str, Label] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as fault:
        raise DatasetFault(f"labels {path} cannot be read: {fault.strerror or fault}") from fault
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            session_id, label = _label(line)
        except ValueError as fault:
            raise DatasetFault(f"labels {path}, line {number}: {fault}") from fault
        if labels.setdefault(session_id, label) != label:
            raise DatasetFault(f"labels {path}, line {number}: session {session_id!r} is labelled twice, unlike")
    return labels


def _label(line: bytes) -> tuple[str, Label]:
    try:
        found: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise ValueError(f"is no JSON: {fault}") from fault
    if not isinstance(found, dict) or not isinstance(found.get("session_id"), str):
        raise ValueError("must be an object with a text session_id")  # noqa: TRY004 - of the file, not of the caller
    session_id = found.pop("session_id")
    known = [field.name for field in fields(Label)]
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known are session_id, {', '.join(known)}")
    outcomes = get_args(Outcome.__value__)
    if found.get("outcome") not in (None, *outcomes):
        raise ValueError(f"outcome {found['outcome']!r} is none of {', '.join(outcomes)}")
    try:
        label = msgspec.convert(found, Label)
    except msgspec.ValidationError as fault:
        raise ValueError(str(fault)) from fault
    return session_id, label

"""Labels: what people or graders know about a session and its bytes do not say. A JSON Lines file, by session id."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What is known about one session; None: nothing said. Fields are columns of `sessions`."""

    outcome: str | None = None  # success | failure | abandoned | unknown
    outcome_source: str | None = None
    resolved: bool | None = None
    exit_status: str | None = None
    repo_license: str | None = None
    task_id: str | None = None
    license: str | None = None
    consent: str | None = None
    contributor: str | None = None

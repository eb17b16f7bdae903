"""How much a session deserves a look, as a pure function of what is known about it, with its reasons in words.

Points add up; 40 and more is high, 15 and more is medium. They are a rule of thumb that orders a queue, no
probability. Each line of `risk_of` is one rule; docs/CURATE.md has them as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from curate.words import count

VERSION = 1  # of what `Evidence` says; goes up with a change of how it is gathered
HIGH, MEDIUM = 40, 15
LONG_BYTES = 200_000  # more than a person reads

type Level = Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a session shows without its neighbours; None: not known."""

    with_text: bool
    redacted: bool  # a redaction ran
    secrets: Mapping[str, int]  # rule → secrets that it took out
    identity: int  # e-mails, names, paths and hosts that it replaced
    leftovers: Mapping[str, int]  # kind → suspicious stretches still there
    sensitive_files: tuple[str, ...]  # names of files that agents touched and that usually hold secrets
    longest_bytes: int  # of one message
    complete: bool
    gaps: int
    body_missing: int
    license: str | None
    consent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """A score from 0 up, and why."""

    score: int
    reasons: tuple[str, ...]  # the weightiest first

    @property
    def level(self) -> Level:
        """The score in three classes; all of `high` is looked at in every sample."""
        return "high" if self.score >= HIGH else "medium" if self.score >= MEDIUM else "low"


def risk_of(evidence: Evidence, *, first_of_harness: bool) -> Risk:
    """Score a session; `first_of_harness`: no other session of its agent program comes before it in the dataset."""
    points: list[tuple[int, str]] = []
    if not evidence.with_text:
        points.append((0, "holds no text"))
    elif not evidence.redacted:
        points.append((HIGH, "no redaction ran over it"))
    if evidence.secrets:
        n = sum(evidence.secrets.values())
        rules = sorted(evidence.secrets, key=lambda rule: (-evidence.secrets[rule], rule))
        kinds = ", ".join(rules[:3]) + (", …" if len(rules) > 3 else "")
        points.append((min(30, 8 + 2 * n), f"{count(n, 'secret')} taken out: {kinds}"))
    if evidence.identity:
        said = f"{count(evidence.identity, 'name')} of people, paths or hosts replaced"
        points.append((min(5, 1 + evidence.identity // 20), said))
    for kind, each, most in _LEFTOVERS:
        n = evidence.leftovers.get(kind, 0)
        if n:
            points.append((min(most, each * n), f"left in: {kind} ({n:,}×)"))
    if evidence.sensitive_files:
        named = ", ".join(evidence.sensitive_files[:3])
        points.append((min(40, 20 * len(evidence.sensitive_files)), f"touched {named}"))
    if evidence.longest_bytes > LONG_BYTES:
        points.append((8, f"a message of {evidence.longest_bytes / 1e6:.1f} MB"))
    if not evidence.complete or evidence.gaps or evidence.body_missing:
        points.append((4, "recorded with gaps"))
    if first_of_harness:
        points.append((10, "the first of its agent program"))
    if evidence.license is None:
        points.append((1, "no licence said"))
    if evidence.consent is None:
        points.append((1, "no consent said"))
    points.sort(key=lambda item: -item[0])
    return Risk(score=sum(score for score, _ in points), reasons=tuple(reason for _, reason in points))


_LEFTOVERS = (
    ("private key", 40, 40),
    ("named value", 15, 30),
    ("random text", 4, 24),
    ("e-mail", 3, 15),
    ("hidden characters", 3, 15),
    ("home folder", 3, 6),
    ("internal address", 1, 5),
)

"""What the global steps of a build need of each session: small, no text, so that a corpus fits in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capture.trajectory import Trajectory
from curate.recipe import Sample

if TYPE_CHECKING:
    from curate.row import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Keys of one session, made from its redacted text and rows; kept in the owner's receipts, never published."""

    session_id: str
    split: str
    requests: int
    t0_utc_us: int | None
    exact_key: str  # equal: the same words (or, without text, the same lengths and sharing) in the same order
    heads: bytes  # 8 bytes for each answer on the main chain: digest of all that was said until then
    minhash: bytes | None  # 128 × 4 bytes over shingles of what was said; None when there is too little to compare
    sample_value: float | str | None  # of the recipe's [sample] by


def features_of(trajectory: Trajectory, rows: Rows, split: str, sample: Sample) -> Features:
    """Keys of a session as it will stand in the dataset: redacted and truncated."""
    from curate.fingerprint import exact_key, heads, minhash

    return Features(
        session_id=trajectory.session_id,
        split=split,
        requests=len(trajectory.requests),
        t0_utc_us=trajectory.t0_utc_us,
        exact_key=exact_key(trajectory, rows.requests),
        heads=heads(trajectory, rows.requests),
        minhash=minhash(trajectory, rows.requests),
        sample_value=sample_value(rows, sample.by),
    )


def sample_value(rows: Rows, by: str | None) -> float | str | None:
    """A session's value of the column that a sample is spread by; None where it is unknown.

    Of lists the first counts: the model called first, the language of most files. The harness and outcome `unknown`
    are None, as any other unknown.
    """
    if by is None:
        return None
    match by:
        case "model":
            value = next(iter(rows.session["models"]), None)
        case "language":
            value = next((part["lang"] for part in rows.session["lang_mix"] or ()), None)
        case _:
            value = rows.session[by]
    return None if value == "unknown" else value

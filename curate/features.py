"""What the global steps of a build need of each session: small, no text, so that a corpus fits in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Keys of one session, made from its redacted rows; kept in the owner's receipts, never published."""

    session_id: str
    split: str
    requests: int
    t0_utc_us: int | None
    exact_key: str  # equal: the same words (or, without text, the same lengths and sharing) in the same order
    head_keys: tuple[
        str, ...
    ]  # digests of growing heads of the session; a session that another begins with has its last there
    minhash: bytes | None  # 128 × 4 bytes over shingles; None when there is too little to compare
    sample_value: float | str | None  # of the recipe's [sample] by

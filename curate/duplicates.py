"""Duplicates among the sessions of a dataset: which belong together, whom to keep, and why the others go.

Sessions are taken longest first (ties: the earlier, then the lower id), so the result does not depend on the order of
reading. Each joins the cluster of the first session kept before it that says the same (`exact_key`), begins with it
(`heads`) or is near it (MinHash, at least `similarity` by estimate); else it is kept itself. So every session that goes
was compared with the very one that stays for it: likeness is never passed on along a chain.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from curate.features import Features
from curate.fingerprint import HEAD_BYTES, PERMUTATIONS
from curate.recipe import Duplicates, OnDuplicate

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTHING = bytes(4 * PERMUTATIONS)  # stands where a session has no minima; never compared
MISSED = 1e-3  # most pairs of just the asked-for similarity that banding may overlook

EXACT = "says the same as another session"
HEAD = "another session begins with it and goes on"
NEAR = "near duplicate of another session"

STRICTNESS: dict[OnDuplicate, int] = {"keep": 0, "mark": 1, "drop": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found about one session of a cluster."""

    cluster: str
    role: Literal["kept", "duplicate"]
    reason: str | None  # why it is left out; None: it stays


def find_duplicates(features: Sequence[Features], policy: Duplicates) -> dict[str, Verdict]:
    """Verdicts by session id, for the sessions of a cluster of two or more.

    What is done about near duplicates is done about exact ones at the least: nothing is nearer.
    """
    exact = max(policy.exact, policy.near, key=lambda policy: STRICTNESS[policy])
    if exact == "keep":
        return {}
    ranked = sorted(features, key=_rank)
    found = _exact(ranked)
    if policy.near != "keep":
        found |= _near([each for each in ranked if each.session_id not in found], policy.similarity)
    verdicts: dict[str, Verdict] = {}
    for session_id, (kept, reason) in found.items():
        while kept in found:  # the one that says the same is itself near another
            kept = found[kept][0]
        cluster = hashlib.sha256(f"agentdyno cluster\n{kept}".encode()).hexdigest()[:16]
        dropped = (exact if reason == EXACT else policy.near) == "drop"
        verdicts[kept] = Verdict(cluster=cluster, role="kept", reason=None)
        verdicts[session_id] = Verdict(cluster=cluster, role="duplicate", reason=reason if dropped else None)
    return verdicts


def _rank(features: Features) -> tuple[int, bool, int, str]:
    start = features.t0_utc_us
    return -features.requests, start is None, start or 0, features.session_id


def _exact(ranked: Sequence[Features]) -> dict[str, tuple[str, str]]:
    """Session → (whom it repeats, reason)."""
    first: dict[str, str] = {}
    found = {}
    for each in ranked:
        kept = first.setdefault(each.exact_key, each.session_id)
        if kept != each.session_id:
            found[each.session_id] = kept, EXACT
    return found


def _near(ranked: Sequence[Features], similarity: float) -> dict[str, tuple[str, str]]:
    """The same for sessions that begin another or are near one, among those that repeat none."""
    shared_heads = _shared_heads(ranked)
    shared_bands = _shared_bands(ranked, similarity)
    minima = np.frombuffer(b"".join(each.minhash or NOTHING for each in ranked), dtype="<u4").reshape(-1, PERMUTATIONS)
    begins: dict[bytes, int] = {}  # head → the first kept session that holds it
    banded: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # band → kept sessions
    found: dict[str, tuple[str, str]] = {}
    for at, each in enumerate(ranked):
        last = each.heads[-HEAD_BYTES:]
        whole = begins.get(last) if last else None
        if whole is not None:
            reason = NEAR if ranked[whole].heads[-HEAD_BYTES:] == last else HEAD
            found[each.session_id] = ranked[whole].session_id, reason
            continue
        near = _nearest(at, shared_bands.get(at, ()), banded, minima, similarity)
        if near is not None:
            found[each.session_id] = ranked[near].session_id, NEAR
            continue
        for head in shared_heads.get(at, ()):
            begins.setdefault(head, at)
        for band in shared_bands.get(at, ()):
            banded[band].append(at)
    return found


def _nearest(
    at: int,
    bands: Sequence[tuple[int, int]],
    banded: dict[tuple[int, int], list[int]],
    minima: NDArray[np.uint32],
    similarity: float,
) -> int | None:
    """The kept session that is most like this one, at least `similarity`; the first of equals."""
    candidates = np.array(sorted({kept for band in bands for kept in banded.get(band, ())}), dtype=np.intp)
    if len(candidates) == 0:
        return None
    equal = np.count_nonzero(minima[candidates] == minima[at], axis=1)
    best = int(np.argmax(equal))
    return int(candidates[best]) if equal[best] >= similarity * PERMUTATIONS else None


def _shared_heads(ranked: Sequence[Features]) -> dict[int, list[bytes]]:
    """Of each session the heads that are some session's whole: the only ones worth remembering."""
    wholes = np.unique(np.frombuffer(b"".join(each.heads[-HEAD_BYTES:] for each in ranked), dtype="<u8"))
    found = {}
    for at, each in enumerate(ranked):
        heads = np.frombuffer(each.heads, dtype="<u8")
        if len(heads) == 0:
            continue
        places = np.minimum(np.searchsorted(wholes, heads), len(wholes) - 1)
        found[at] = [head.tobytes() for head in heads[wholes[places] == heads]]
    return found


def _shared_bands(ranked: Sequence[Features], similarity: float) -> dict[int, list[tuple[int, int]]]:
    """Of each session the bands of its minima that another session has as well."""
    places = [at for at, each in enumerate(ranked) if each.minhash is not None]
    if not places:
        return {}
    joined = b"".join(ranked[at].minhash or NOTHING for at in places)
    table = np.frombuffer(joined, dtype="<u4").reshape(len(places), PERMUTATIONS)
    rows = band_rows(similarity)
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for band, keys in enumerate(_bands(table, rows)):
        _, place, count = np.unique(keys, return_inverse=True, return_counts=True)
        for row in np.flatnonzero(count[place] > 1):
            found[places[int(row)]].append((band, int(keys[row])))
    return found


def band_rows(similarity: float) -> int:
    """Minima per band: as many as overlook at most `MISSED` of the pairs that are just similar enough."""
    for rows in range(PERMUTATIONS, 1, -1):
        if (1 - similarity**rows) ** (PERMUTATIONS // rows) <= MISSED:
            return rows
    return 1


def _bands(table: NDArray[np.uint32], rows: int) -> Iterator[NDArray[np.uint64]]:
    """A 64-bit key of each row's band, band by band; chance collisions are sorted out by comparing."""
    for band in range(PERMUTATIONS // rows):
        keys = np.full(len(table), band, dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            keys = (keys ^ table[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        yield keys

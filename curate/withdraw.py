"""Take sessions back from a published release.

The release is fetched, its affected shards written again without the sessions, statistics, card and manifest made
anew, a tombstone added, and the difference sent like any release: in one commit where the place knows commits. What
remains is said, not hidden: older states of a repository until they are purged, and copies that others made.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import msgspec

from curate.approval import PublicApproval
from curate.manifest import MANIFEST, DatasetFault, Manifest, Tier, file_sha256
from curate.publish import OURS, Plan, compare, published_manifest, published_tombstones
from curate.receipts import forget
from curate.release import PREVIOUS, REVIEW, PreviousRelease, read_previous_release, write_release_papers
from curate.staging import staged_folder
from curate.target import PlaceState, PublishRefused, Target
from curate.tombstone import Tombstone, Why
from curate.viewer import viewer_path
from curate.without import without_sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What a withdrawal is going to do."""

    plan: Plan | None  # None: every session named was withdrawn before
    sessions: tuple[str, ...]
    already: tuple[str, ...]
    shards: int  # rewritten or removed


def plan_withdrawal(sessions: Sequence[str], target: Target, *, reason: Why, day: str, scratch: Path) -> Withdrawal:
    """Make the release without these sessions in an empty folder. DatasetFault for a session that was never there."""
    state = target.state()
    manifest = published_manifest(target, state)
    if manifest is None:
        raise PublishRefused(f"{target.name} holds no release of agentdyno; name the place that you published to")
    tombstones = published_tombstones(target, state)
    buried = {tombstone.session_id for tombstone in tombstones}
    there = {entry.session_id for shard in manifest.shards for entry in shard.sessions}
    asked = tuple(dict.fromkeys(sessions))
    unknown = [name for name in asked if name not in there and name not in buried]
    if unknown:
        raise DatasetFault(
            f"{target.name} has no session {unknown[0]!r} and never withdrew one; the column session_id of `sessions` "
            "says what it has"
        )
    gone = tuple(name for name in asked if name in there)
    already = tuple(name for name in asked if name not in there)
    if not gone:
        return Withdrawal(plan=None, sessions=(), already=already, shards=0)
    if there == set(gone):
        raise PublishRefused(
            f"{target.name} would hold no session any more; remove the whole release there (on the Hub: settings, "
            "delete this dataset)"
        )
    fetch_release(target, state, manifest, scratch)
    buried_now = (*tombstones, *(Tombstone(session_id=name, day=day, reason=reason) for name in gone))
    try:
        left = _without(scratch, gone, reason, buried_now)
    except (DatasetFault, OSError):
        raise
    except Exception as fault:  # what lies there may be of anybody's making
        raise PublishRefused(
            f"{target.name}: its tables are not those of a release ({type(fault).__name__}: {_first_line(fault)}); "
            "publish the dataset again, then withdraw"
        ) from fault
    return Withdrawal(
        plan=compare(target, state, manifest, dataset=None, staged=scratch, manifest=left),
        sessions=gone,
        already=already,
        shards=_changed_shards(manifest, left),
    )


def _without(folder: Path, gone: Sequence[str], reason: Why, tombstones: Sequence[Tombstone]) -> Manifest:
    """A fetched release without these sessions, its papers made anew."""
    left = without_sessions(folder, dict.fromkeys(gone, ("withdrawn", reason)))
    for name in gone:
        (folder / viewer_path(name)).unlink(missing_ok=True)
    return write_release_papers(
        folder, left, tombstones=tombstones, review=_review(folder), previous=_previous(folder, gone)
    )


def _first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), "")[:200]


def fetch_release(target: Target, state: PlaceState, manifest: Manifest, folder: Path) -> None:
    """Fetch every file of a release; PublishRefused for one that is not what its manifest says.

    Papers that a killed upload replaced already, ahead of the manifest, are made anew from the rows.
    """
    for entry in manifest.files:
        target.fetch(entry.path, state.head, folder / entry.path)
        replaced = entry.path in state.unfinished and not entry.path.startswith(OURS)
        if file_sha256(folder / entry.path) != entry.sha256 and not replaced:
            raise PublishRefused(
                f"{target.name}: {entry.path} is not what its manifest says; publish the dataset again, then withdraw"
            )
    target.fetch(MANIFEST, state.head, folder / MANIFEST)


def refuse_unknown(folder: Path, sessions: Sequence[str]) -> None:
    """Raise DatasetFault for a session that the dataset neither has nor had."""
    from curate.dataset import Dataset
    from curate.withdrawn import read_withdrawn

    unknown = sorted(set(sessions).difference(Dataset.open(folder).session_ids, read_withdrawn(folder)))
    if unknown:
        raise DatasetFault(
            f"{folder} has no session {unknown[0]!r}; the column session_id of `sessions` says what it has"
        )


def withdraw_here(folder: Path, sessions: Sequence[str], *, reason: Why, day: str) -> tuple[str, ...]:
    """Take sessions out of a dataset of our own, private work included, so that no later build brings them back.

    Gives those that were there.
    """
    from curate.dataset import Dataset

    there = set(Dataset.open(folder).session_ids)
    gone = tuple(name for name in dict.fromkeys(sessions) if name in there)
    if gone:
        without_sessions(
            folder,
            dict.fromkeys(gone, ("withdrawn", reason)),
            tombstones=tuple(Tombstone(session_id=name, day=day, reason=reason) for name in gone),
        )
    # Also where a call before this one was killed behind the first step.
    forget(folder, sessions)
    for tier in get_args(Tier.__value__):  # what was staged for a release holds their words too
        shutil.rmtree(staged_folder(folder, tier), ignore_errors=True)
    return gone


def _changed_shards(before: Manifest, after: Manifest) -> int:
    kept = {shard.input_digest for shard in after.shards}
    return sum(shard.input_digest not in kept for shard in before.shards)


def _previous(folder: Path, gone: Sequence[str]) -> PreviousRelease | None:
    """What drift is told against, without the digests of what is withdrawn."""
    data = _bytes(folder / PREVIOUS)
    found = None if data is None else read_previous_release(data)
    if found is None:
        return None
    return replace(found, sessions=tuple(entry for entry in found.sessions if entry.session_id not in gone))


def _review(folder: Path) -> PublicApproval | None:
    data = _bytes(folder / REVIEW)
    try:
        return None if data is None else msgspec.json.decode(data, type=PublicApproval)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise DatasetFault(f"{REVIEW} of the release cannot be read ({fault}); publish the dataset again") from fault


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None

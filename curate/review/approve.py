"""Approve a dataset: all that must be looked at is decided, drops are taken out, and the bytes that are left are bound.

An approval that a kill cuts between the drops and its own file is finished by the next call: what it will say is
written down first, with the digest that the folder will have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from agentdyno import __version__
from capture.atomic import write_atomically
from curate.approval import FORMAT, Approval, SampleStatement, check_approval, read_approval, write_approval
from curate.dataset import Dataset
from curate.manifest import MANIFEST, PRIVATE, DatasetFault, Manifest, Stage, content_digest, file_sha256
from curate.review.decision import Standing, drop_reason
from curate.review.queue import Case, Queue, now
from curate.review.sampling import CONFIDENCE, Draw, SampleSize, most_bad_left
from curate.without import without_sessions

PENDING = "approval-pending.json"


class Undecided(DatasetFault):
    """Sessions that must be looked at are not decided; `n` says how many."""

    def __init__(self, sentence: str, n: int) -> None:
        super().__init__(sentence)
        self.n = n


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """What an approval did; `already`: the folder was approved in this way before, and nothing was done."""

    approval: Approval
    already: bool


def approve(
    folder: Path,
    *,
    reviewer: str,
    sample: SampleSize | None = None,
    without_review: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Approved:
    """Take out what was dropped and bind the approval to what is left.

    Raises Undecided while a session that must be looked at is not decided, and DatasetFault where the folder was
    changed since it was built or nothing would be left of it.
    """
    known = _known(folder, sample, without_review=without_review)
    if known is not None:
        return Approved(approval=known, already=True)
    queue = Queue.open(folder, on_progress=on_progress)
    finished = _finish(queue, sample, without_review=without_review)
    if finished is not None:
        return Approved(approval=finished, already=False)
    draw = queue.drawn(sample) if sample is not None else None
    standings = queue.standings()
    _refuse_undecided(queue, standings, draw, sample, without_review=without_review)
    drops: dict[str, tuple[Stage, str]] = {
        session_id: ("review", drop_reason(standing))
        for session_id, standing in standings.items()
        if standing.state == "dropped"
    }
    approval = _statement(standings, draw, sample, reviewer, without_review=without_review)
    left = [entry for shard in queue.manifest.shards for entry in shard.sessions if entry.session_id not in drops]
    if not left:
        raise DatasetFault(f"every session of {folder} was dropped: nothing is left to approve")
    approval = replace(approval, digest=content_digest(left))
    _write_pending(folder, approval)
    if not queue.unchanged:
        raise DatasetFault(f"{folder} was built again meanwhile; approve again")
    manifest = without_sessions(folder, drops) if drops else queue.manifest
    return Approved(approval=_bind(folder, manifest, approval), already=False)


def _known(folder: Path, sample: SampleSize | None, *, without_review: bool) -> Approval | None:
    """An approval of the very same bytes that says the same: a draw from what is left would ask for others."""
    manifest = Dataset.open(folder).manifest
    try:
        approval = read_approval(folder)
        check_approval(folder, manifest)
    except DatasetFault:
        return None
    return approval if approval is not None and _asked(approval, sample, without_review=without_review) else None


def _asked(approval: Approval, sample: SampleSize | None, *, without_review: bool) -> bool:
    size = approval.sample.size if approval.sample is not None else None
    return approval.without_review == without_review and size == (str(sample) if sample is not None else None)


def _finish(queue: Queue, sample: SampleSize | None, *, without_review: bool) -> Approval | None:
    """Finish an approval that was cut after its drops; None where there is none for these sessions."""
    path = queue.folder / PRIVATE / PENDING
    try:
        approval = msgspec.json.decode(path.read_bytes(), type=Approval)
    except (OSError, msgspec.MsgspecError):
        return None
    if approval.digest != queue.manifest.digest or not _asked(approval, sample, without_review=without_review):
        return None
    if any(standing.state == "dropped" for standing in queue.standings().values()):
        return None  # dropped since
    return _bind(queue.folder, queue.manifest, approval)


def _bind(folder: Path, manifest: Manifest, approval: Approval) -> Approval:
    if manifest.digest != approval.digest:
        raise DatasetFault(f"{folder} was built again meanwhile; approve again")
    approval = replace(approval, manifest_sha256=file_sha256(folder / MANIFEST))
    write_approval(folder, approval)
    (folder / PRIVATE / PENDING).unlink(missing_ok=True)
    return approval


def _write_pending(folder: Path, approval: Approval) -> None:
    path = folder / PRIVATE / PENDING
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, msgspec.json.encode(approval), mode=0o600)


def _refuse_undecided(
    queue: Queue,
    standings: Mapping[str, Standing],
    draw: Draw | None,
    sample: SampleSize | None,
    *,
    without_review: bool,
) -> None:
    def asked(case: Case) -> bool:
        standing = standings[case.session_id]
        if standing.settled:
            return False
        # A drop that a rebuild made stale is asked again in every way of approving.
        return standing.dropped_before or not (without_review or (draw is not None and case.session_id not in draw))

    waiting = [case for case in queue.cases.values() if asked(case)]
    if not waiting:
        return
    n = len(waiting)
    stale = sum(standings[case.session_id].state == "stale" for case in waiting)
    changed = f", {stale:,} of them decided before a build changed them" if stale else ""
    option = f" --sample {sample}" if sample is not None else ""
    raise Undecided(
        f"{n:,} session{'' if n == 1 else 's'} of {queue.folder} {'is' if n == 1 else 'are'} not decided{changed}: "
        f"agentdyno curate review {queue.folder}{option}",
        n,
    )


def _statement(
    standings: Mapping[str, Standing],
    draw: Draw | None,
    sample: SampleSize | None,
    reviewer: str,
    *,
    without_review: bool,
) -> Approval:
    settled = {session_id: standing for session_id, standing in standings.items() if standing.settled}
    dropped = {session_id for session_id, standing in settled.items() if standing.state == "dropped"}
    statement = None
    if draw is not None and sample is not None:
        bad = len(draw.drawn & dropped)
        statement = SampleStatement(
            size=str(sample),
            seed=draw.seed,
            high_risk=len(draw.always),
            high_risk_dropped=len(draw.always & dropped),
            drawn=len(draw.drawn),
            drawn_dropped=bad,
            population=draw.rest,
            bad_left_at_most=most_bad_left(bad, len(draw.drawn), draw.rest),
            confidence=CONFIDENCE,
        )
    return Approval(
        format=FORMAT,
        manifest_sha256="",
        digest="",
        reviewer=reviewer,
        at=now(),
        version=__version__,
        sessions=len(standings),
        approved=len(settled) - len(dropped),
        dropped=len(dropped),
        unseen=len(standings) - len(settled),
        by_contributors=sum(
            standing.decision is not None and standing.decision.contributor is not None for standing in settled.values()
        ),
        without_review=without_review,
        sample=statement,
    )

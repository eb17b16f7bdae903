"""A person's word that a dataset may be published with its text, bound to the bytes of the folder as they are.

Lies in `.private/approval.json`, which is never published; what may be said to others is `Approval.public`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from capture.atomic import write_atomically
from curate.manifest import MANIFEST, PRIVATE, DatasetFault, Manifest, file_sha256
from curate.review.decision import Decisions
from curate.words import count

FORMAT = "agentdyno-approval/1"
APPROVAL = "approval.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStatement:
    """How the sessions that a person looked at were chosen, and what they say about the others."""

    size: str  # as asked: 50 or 10%
    seed: str  # content digest of the dataset that it was drawn from, before drops
    high_risk: int  # all of them were looked at
    high_risk_dropped: int
    drawn: int  # at random, without replacement, from `population`
    drawn_dropped: int
    population: int  # sessions not of high risk
    bad_left_at_most: int  # of the `population - drawn` others: one-sided bound, hypergeometric
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicApproval:
    """What a published dataset says about its review: no names, no times."""

    sessions: int  # before drops
    looked_at: int
    dropped: int
    by_contributors: int  # of those looked at, decided by the contributors themselves
    without_review: bool
    sample: SampleStatement | None

    @property
    def sentence(self) -> str:
        """The same in plain words, for a card."""
        of = f"{self.sessions:,} session{'' if self.sessions == 1 else 's'}"
        dropped = f"{self.dropped:,} {'was' if self.dropped == 1 else 'were'} dropped"
        if self.without_review:
            seen = f" {self.looked_at:,} of them had been looked at; {dropped}." if self.looked_at else ""
            return f"The owner approved the {of} without a review of each.{seen}"
        if self.sample is None:
            return f"A person looked at each of {of}; {dropped}."
        sample = self.sample
        more = self.looked_at - sample.high_risk - sample.drawn
        said = (
            f"A person looked at {self.looked_at:,} of {of}: all {sample.high_risk:,} of high risk "
            f"({sample.high_risk_dropped:,} dropped), {sample.drawn:,} drawn at random of the other "
            f"{sample.population:,} ({sample.drawn_dropped:,} dropped){f' and {more:,} more' if more else ''}."
        )
        left = sample.population - sample.drawn
        if not left:
            return said
        return (
            f"{said} With {sample.confidence:.0%} confidence at most {sample.bad_left_at_most:,} "
            f"({sample.bad_left_at_most / left:.1%}) of the {left:,} that were not drawn are such as a reviewer would "
            "drop."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What was approved, how, by whom and when."""

    format: str
    manifest_sha256: str
    digest: str  # the manifest's content digest
    reviewer: str
    at: str  # UTC, ISO 8601
    version: str  # of agentdyno
    sessions: int  # before drops
    approved: int  # by a look at each
    dropped: int
    unseen: int  # kept without a look
    by_contributors: int  # decisions that contributors made about their own
    without_review: bool
    sample: SampleStatement | None

    @property
    def public(self) -> PublicApproval:
        """What may be published of it."""
        return PublicApproval(
            sessions=self.sessions,
            looked_at=self.approved + self.dropped,
            dropped=self.dropped,
            by_contributors=self.by_contributors,
            without_review=self.without_review and self.unseen > 0,
            sample=self.sample,
        )


def write_approval(folder: Path, approval: Approval) -> None:
    """Put an approval beside its dataset, for its owner's eyes."""
    path = folder / PRIVATE / APPROVAL
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(approval), indent=1) + b"\n", mode=0o600)


def read_approval(folder: Path) -> Approval | None:
    """The approval of a folder, stale or not; None where there is none. DatasetFault for one that cannot be read."""
    path = folder / PRIVATE / APPROVAL
    try:
        approval = msgspec.json.decode(path.read_bytes(), type=Approval)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as fault:
        raise DatasetFault(
            f"{path} cannot be read: {fault}; approve again: agentdyno curate approve {folder}"
        ) from fault
    if approval.format != FORMAT:
        raise DatasetFault(f"{path} has format {approval.format!r}, this version reads {FORMAT!r}; approve again")
    return approval


def check_approval(folder: Path, manifest: Manifest) -> None:
    """Raises DatasetFault unless these very bytes were approved, all of them, and no session was dropped since.

    Reads every file that is listed.
    """
    approval = read_approval(folder)
    again = f"review and approve it: agentdyno curate review {folder}, then agentdyno curate approve {folder}"
    if approval is None:
        raise DatasetFault(f"{folder} is not approved for publishing with text; {again}")
    if approval.manifest_sha256 != file_sha256(folder / MANIFEST) or approval.digest != manifest.digest:
        raise DatasetFault(
            f"{folder} was approved on {approval.at} and has changed since; {again} "
            "(sessions that did not change are not asked again)"
        )
    if approval.approved + approval.dropped + approval.unseen != approval.sessions or (
        approval.unseen and approval.sample is None and not approval.without_review
    ):
        raise DatasetFault(f"the approval of {folder} covers only a part of its sessions; {again}")
    refuse_dropped(folder, manifest)
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file() or path.stat().st_size != entry.bytes or file_sha256(path) != entry.sha256:
            raise DatasetFault(
                f"{path} is missing or not what was approved on {approval.at}; build the dataset again, then {again}"
            )


def refuse_dropped(folder: Path, manifest: Manifest) -> None:
    """Raises DatasetFault while a session that somebody dropped is in the folder still, in whatever tier it leaves.

    A drop of rows that a later build changed counts too: nobody said that the session may go.
    """
    digests = {entry.session_id: entry.digest for shard in manifest.shards for entry in shard.sessions}
    standings = Decisions(folder).standings(digests).values()
    dropped = sum(standing.state == "dropped" for standing in standings)
    if dropped:
        raise DatasetFault(
            f"{count(dropped, 'session')} of {folder} {'was' if dropped == 1 else 'were'} dropped in a review and "
            f"{'is' if dropped == 1 else 'are'} in it still; take {'it' if dropped == 1 else 'them'} out by "
            f"'agentdyno curate approve {folder}'"
        )
    changed = sum(standing.dropped_before for standing in standings)
    if changed:
        raise DatasetFault(
            f"{count(changed, 'session')} of {folder} {'was' if changed == 1 else 'were'} dropped before a build "
            f"changed {'it' if changed == 1 else 'them'}; decide again by 'agentdyno curate review {folder}', then "
            f"'agentdyno curate approve {folder}'"
        )

"""Publish a dataset: stage a tier, say what would leave, send it in one piece, fetch it again and compare.

`plan` changes nothing outside the dataset's `.private/`; `send` does what the plan says. What is there already is not
sent again: shards are known by their content, so a grown dataset costs what is new. After sending, every file that was
sent is fetched and hashed against the manifest; of the others the place's own list of digests is compared.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from curate.approval import check_approval, read_approval, refuse_dropped
from curate.dataset import Dataset
from curate.manifest import (
    MANIFEST,
    PRIVATE,
    DatasetFault,
    FileEntry,
    Manifest,
    Tier,
    decoded_manifest,
    file_entry,
    file_sha256,
)
from curate.release import PREVIOUS, PreviousRelease, previous_release, read_previous_release, write_release_papers
from curate.staging import stage, staged_folder
from curate.stats import STATS
from curate.target import Limits, PlacedFile, PlaceState, PublishRefused, Target, Wish
from curate.tombstone import Tombstone, read_tombstones
from curate.withdrawn import WITHDRAWN

RECEIPTS = "publish.jsonl"
OURS = ("data/", "traces/", "plots/")  # folders in which a release owns every file
_KEPT_BY_HUB = frozenset((".gitattributes", ".gitignore"))

type Tell = Callable[[str, int], None]
"""Told of each file that was sent or fetched again: what was done with it and its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A staged release and what is to be done to have it at its place."""

    dataset: Path | None  # keeps the receipt
    staged: Path
    tier: Tier
    manifest: Manifest
    state: PlaceState
    earlier: Manifest | None  # what is published there now
    entries: tuple[FileEntry, ...]  # every file of the release, the manifest included
    additions: tuple[str, ...]  # paths to send
    deletions: tuple[str, ...]  # paths to remove
    warnings: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether all of it is there already."""
        return not self.additions and not self.deletions

    @property
    def tag(self) -> str:
        """The release's own name: the same content has the same."""
        return default_tag(self.manifest.digest, self.entry(MANIFEST).sha256)

    def entry(self, path: str) -> FileEntry:
        """The entry of a file of the release."""
        return next(entry for entry in self.entries if entry.path == path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was sent, and what it was compared with."""

    place: str
    head: str
    tag: str | None
    tier: Tier
    digest: str
    manifest_sha256: str
    sent_files: int
    sent_bytes: int
    removed_files: int
    fetched_files: int  # sent, fetched again and equal
    compared_files: int  # there already: equal by the digest that the place lists


def default_tag(digest: str, manifest_sha256: str) -> str:
    """A tag for a release: the digest of what is in it, and of how it is told."""
    return f"release-{digest[:8]}-{manifest_sha256[:8]}"


def plan(
    folder: Path,
    tier: Tier,
    target: Target,
    *,
    limits: Limits | None = None,
    out: Path | None = None,
    state: PlaceState | None = None,
) -> Plan:
    """Stage a release for a place, in `out` or in the dataset's `.private/`; `state` is taken for what is there.

    Raises DatasetFault and PublishRefused when it must not be published there.
    """
    _refuse_overlap(folder, target)
    dataset = Dataset.open(folder)
    before = file_sha256(folder / MANIFEST)
    review = None
    if tier == "text":
        check_approval(folder, dataset.manifest)
        approval = read_approval(folder)
        review = None if approval is None else approval.public
    refuse_dropped(folder, dataset.manifest)
    state = state or target.state()
    earlier = published_manifest(target, state)
    tombstones = _tombstones(target, state, folder)
    _refuse_withdrawn(dataset, tombstones, target.name)
    staged = out or staged_folder(folder, tier)
    manifest = stage(folder, tier, staged)
    refuse_dropped(folder, dataset.manifest)
    if file_sha256(folder / MANIFEST) != before:  # what was staged is not what was checked
        raise DatasetFault(f"{folder} was changed meanwhile by another command; run the same command again")
    manifest = write_release_papers(
        staged,
        manifest,
        tombstones=tombstones,
        review=review,
        previous=_previous(target, state, earlier, manifest),
    )
    return compare(
        target,
        state,
        earlier,
        dataset=folder,
        staged=staged,
        manifest=manifest,
        limits=limits,
    )


def compare(
    target: Target,
    state: PlaceState,
    earlier: Manifest | None,
    *,
    dataset: Path | None,
    staged: Path,
    manifest: Manifest,
    limits: Limits | None = None,
) -> Plan:
    """What to send and to remove so that a place holds a staged release and nothing of the one before."""
    entries = (*manifest.files, file_entry(staged, staged / MANIFEST))
    _refuse_too_much(entries, limits)
    ours = {entry.path for entry in entries}
    before = {entry.path: entry for entry in (earlier.files if earlier else ())}
    strangers = sorted(
        path
        for path in state.files
        if path.startswith(OURS) and path not in ours and path not in before and path not in state.unfinished
    )
    if strangers:  # the card's globs would take them for ours
        raise PublishRefused(_foreign(target.name, strangers[0]))
    additions = tuple(
        sorted(entry.path for entry in entries if not _same(entry, state.files.get(entry.path), staged, before))
    )
    deletions = tuple(sorted((before.keys() | state.unfinished) & state.files.keys() - ours))
    warnings = list(state.notes)
    if earlier is not None and earlier.tier == "text" and manifest.tier == "content-free":
        warnings.append(
            "the release that is there holds text; it goes from the newest state, and older states keep it until "
            "'agentdyno curate withdraw … --purge'"
        )
    return Plan(
        dataset=dataset,
        staged=staged,
        tier=manifest.tier,
        manifest=manifest,
        state=state,
        earlier=earlier,
        entries=entries,
        additions=additions,
        deletions=deletions,
        warnings=tuple(warnings),
    )


def send(
    made: Plan,
    target: Target,
    *,
    wish: Wish,
    tag: str | None = None,
    message: str | None = None,
    tell: Tell | None = None,
) -> Published:
    """Send what a plan says, name it by a tag, fetch it again and compare, and keep a receipt.

    Raises PublishRefused when somebody else published meanwhile, when the tag names something else already, and when
    a file comes back changed.
    """
    name = tag or made.tag
    named = made.state.tags.get(name)
    if named is not None and (not made.done or named != made.state.head):
        raise PublishRefused(f"{target.name} has a tag {name!r} already, for another state; choose another by --tag")
    for path in made.additions:  # what was shown and agreed to is what leaves
        if file_sha256(made.staged / path) != made.entry(path).sha256:
            raise PublishRefused(
                f"{made.staged / path} was changed after it was staged, by another command or a person; nothing was "
                "sent. Run the same command again"
            )
    say = tell or _silent
    sent = set(made.additions)
    head = made.state.head or ""
    if not made.done or wish != Wish():
        head = target.send(
            made.staged,
            made.additions,
            made.deletions,
            state=made.state,
            wish=wish,
            message=message or f"Release {made.manifest.digest[:12]} ({made.tier})",
            on_file=lambda path, size: say(f"sent {path}", size),
        )
    target.tag(name, head)
    fetched = _verify_sent(made, target, head, say)
    compared = 0 if made.done else _verify_list(made, target.files(head), target.name)
    published = Published(
        place=target.name,
        head=head,
        tag=name,
        tier=made.tier,
        digest=made.manifest.digest,
        manifest_sha256=made.entry(MANIFEST).sha256,
        sent_files=len(sent),
        sent_bytes=sum(entry.bytes for entry in made.entries if entry.path in sent),
        removed_files=len(made.deletions),
        fetched_files=fetched,
        compared_files=compared,
    )
    if not made.done and made.dataset is not None:
        keep_receipt(made.dataset, published)
    return published


def published_manifest(target: Target, state: PlaceState) -> Manifest | None:
    """The manifest at a place; None where nothing is published. PublishRefused where what is there is not ours."""
    if not state.has_release:
        others = sorted(path for path in state.files if path not in _KEPT_BY_HUB | state.unfinished)
        if others and others != ["README.md"]:
            raise PublishRefused(_foreign(target.name, others[0]))
        return None
    data = target.read(MANIFEST, state.head)
    try:
        manifest = decoded_manifest(data)
    except ValueError as fault:
        raise PublishRefused(f"{target.name}: its {MANIFEST} {fault}; publish to another place") from fault
    if manifest.tier == "full":
        raise PublishRefused(
            f"{target.name} holds a dataset as it was built, not a release; nothing was changed. Publish to a new "
            "or an empty place"
        )
    return manifest


def published_tombstones(target: Target, state: PlaceState) -> tuple[Tombstone, ...]:
    """The withdrawals that a place lists."""
    if WITHDRAWN not in state.files:
        return ()
    return read_tombstones(target.read(WITHDRAWN, state.head), f"{target.name}/{WITHDRAWN}")


def keep_receipt(folder: Path, published: Published) -> None:
    """Add a line to the dataset's own record of what was published when."""
    path = folder / PRIVATE / RECEIPTS
    path.parent.mkdir(mode=0o700, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    line = msgspec.json.encode({"at": at, **msgspec.to_builtins(published)}) + b"\n"
    with os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab") as file:
        file.write(line)


def _silent(_: str, __: int) -> None: ...


def _refuse_overlap(folder: Path, target: Target) -> None:
    """A release among the files of its own dataset would replace them, or take what is private along."""
    if target.folder is None:
        return
    place, dataset = target.folder.resolve(), folder.resolve()
    if place == dataset or place in dataset.parents or dataset in place.parents:
        raise PublishRefused(f"{target.name} and the dataset {folder} lie in one another; name a place beside it")


def _tombstones(target: Target, state: PlaceState, folder: Path) -> tuple[Tombstone, ...]:
    """Withdrawals that the place lists, and those that the dataset itself knows of."""
    local = folder / WITHDRAWN
    known = read_tombstones(local.read_bytes(), str(local)) if local.is_file() else ()
    return (*published_tombstones(target, state), *known)


def _refuse_withdrawn(dataset: Dataset, tombstones: tuple[Tombstone, ...], place: str) -> None:
    gone = sorted({tombstone.session_id for tombstone in tombstones}.intersection(dataset.session_ids))
    if gone:
        raise PublishRefused(
            f"session {gone[0]!r} was withdrawn from {place} and is in {dataset.folder} again"
            f"{f' (and {len(gone) - 1} more)' if len(gone) > 1 else ''}; take it out by 'agentdyno curate withdraw "
            f"{gone[0]} --dataset {dataset.folder}', or list it in the recipe's exclude_sessions and build again"
        )


def _previous(
    target: Target, state: PlaceState, earlier: Manifest | None, manifest: Manifest
) -> PreviousRelease | None:
    """What the card's drift is against: the published release, or where nothing changed what that was against.

    A release of another tier says of its rows what this one must not say again.
    """
    if earlier is None or earlier.tier != manifest.tier:
        return None
    if earlier.digest != manifest.digest:
        return previous_release(target.read(STATS, state.head), earlier) if STATS in state.files else None
    return read_previous_release(target.read(PREVIOUS, state.head)) if PREVIOUS in state.files else None


def _refuse_too_much(entries: tuple[FileEntry, ...], limits: Limits | None) -> None:
    if limits is None:
        return
    for entry in entries:
        if entry.bytes > limits.file_bytes:
            raise PublishRefused(
                f"{entry.path} has {entry.bytes:,} bytes and the place takes {limits.file_bytes:,} a file; build with "
                "smaller sessions (recipe: [truncate])"
            )
    folders = Counter(entry.path.rpartition("/")[0] for entry in entries)
    fullest, n = folders.most_common(1)[0]
    if n > limits.folder_files or len(entries) > limits.files:
        raise PublishRefused(
            f"{len(entries):,} files, {n:,} of them in {fullest or 'one folder'}, are more than the place takes "
            f"({limits.files:,}, {limits.folder_files:,} a folder); publish in parts (recipe: [filters], [sample])"
        )


def _foreign(place: str, path: str) -> str:
    return (
        f"{place} holds {path!r}, which no release of agentdyno put there; nothing was changed. Publish to a new or an "
        "empty place, or move that file away"
    )


def _same(entry: FileEntry, placed: PlacedFile | None, staged: Path, before: Mapping[str, FileEntry]) -> bool:
    """Whether a place holds this very file already, by its digest or, where it tells none, by its own manifest."""
    if placed is None or placed.bytes != entry.bytes:
        return False
    if placed.sha256 is not None:
        return placed.sha256 == entry.sha256
    if placed.git_sha1 is not None:
        return placed.git_sha1 == _git_sha1(staged / entry.path)
    if entry.path == MANIFEST:
        return False
    known = before.get(entry.path)
    return known is not None and known.sha256 == entry.sha256


def _git_sha1(path: Path) -> str:
    """Git's name of a file's content (git-scm.com, Git Objects)."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _verify_sent(made: Plan, target: Target, head: str, say: Tell) -> int:
    """Fetch what was sent and hash it; one file at a time lies on this machine's disk."""
    with tempfile.TemporaryDirectory(prefix="agentdyno-verify-") as scratch:
        for path in made.additions:
            entry = made.entry(path)
            copy = Path(scratch) / "copy"
            target.fetch(path, head, copy)
            if file_sha256(copy) != entry.sha256:
                raise PublishRefused(_changed(target.name, path))
            say(f"checked {path}", entry.bytes)
    return len(made.additions)


def _verify_list(made: Plan, files: Mapping[str, PlacedFile], place: str) -> int:
    """Compare what was there already with the place's own list."""
    n = 0
    before = {entry.path: entry for entry in (made.earlier.files if made.earlier else ())}
    for entry in made.entries:
        if entry.path not in made.additions:
            if not _same(entry, files.get(entry.path), made.staged, before):
                raise PublishRefused(_changed(place, entry.path))
            n += 1
    left = [path for path in made.deletions if path in files]
    if left:
        raise PublishRefused(f"{place} still holds {left[0]!r}, which this release removes; publish it again")
    return n


def _changed(place: str, path: str) -> str:
    return (
        f"{place} gives other bytes for {path!r} than were sent: point nobody to this release. Publish it again; where "
        "that does not help, the place is at fault"
    )

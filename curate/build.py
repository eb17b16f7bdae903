"""Stores in, a dataset folder out: read, map in shards, reduce over keys, finish.

The folder must be new, or hold an earlier or unfinished result of the same inputs. Work is known by what it was made
from (`curate.receipts`), so a killed build goes on where it stopped, and one that continues a release (`previous`)
does only what is new.

What a session's rows are made from, and so what makes its work be done again: the session, its label, its split, the
recipe's licence, consent, tokenizer, truncation and redaction, the secrets that its store knows, this program's
version. Filters, duplicates, sample, statistics and the words of the card are not: sessions that were built are only
looked at again, and what is left out stays in `.private/` for another day. A session that earlier filters left out is
done when new ones let it in.

What remains O(all) where nothing is new: reading the stores (journals are assembled anew each time, imported sessions
are decoded), a digest of each session, a SHA-256 of each file of work, and the statistics.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from curate.choice import Choice, choose
from curate.finish import DATA, current_shard, publish_shard
from curate.intake import Reading
from curate.labels import Label
from curate.manifest import (
    FORMAT,
    MANIFEST,
    WORK,
    DatasetFault,
    Drop,
    Inputs,
    Manifest,
    Receipt,
    SessionEntry,
    content_digest,
    drops_of,
    file_entry,
    read_manifest,
    write_json,
)
from curate.pool import run_shards
from curate.receipts import Ledger, prepare, release_key
from curate.recipe import Recipe, published
from curate.review.decision import carry_decisions
from curate.shard import Redacts
from curate.source import Source, open_source
from curate.table import REQUESTS, SCHEMA_VERSION, SESSIONS, TABLES
from curate.withdrawn import read_withdrawn, write_withdrawn

if TYPE_CHECKING:
    from curate.stats import Stats


class LostSessions(RuntimeError):
    """A build does not add up: a session was read and neither kept nor left out with a reason. A bug, never data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """Where a build is; `sessions` counts those read so far. Totals are None until they are known."""

    step: str
    sessions: int
    shards: int  # worked on in this run
    total_sessions: int | None
    total_shards: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build made."""

    folder: Path
    digest: str
    rows: dict[str, int]  # by table
    read: int  # sessions that the stores gave, and places that could not be read
    kept: int
    drops: tuple[Drop, ...]  # in the order of the funnel
    shards: int
    reused_shards: int  # of them, made from work done before
    built: int  # sessions worked on in this run
    redactions: dict[str, int]  # rule → findings
    notes: tuple[str, ...]  # what the caller should know and the dataset does not say

    @property
    def dropped(self) -> dict[str, int]:
        """Sessions, or places that cannot be read, by the reason for which they are left out."""
        found: Counter[str] = Counter()
        for drop in self.drops:
            found[drop.reason] += drop.n
        return dict(found)


def build(
    stores: Sequence[Path],
    out: Path,
    *,
    recipe: Recipe | None = None,
    tokenizer: str | None = None,
    previous: Path | None = None,
    jobs: int | None = None,
    labels: Mapping[str, Label] | None = None,
    redactor: Redacts | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """Build the dataset of some stores into `out`; `previous` is the folder of the release before.

    The tokenizer is the one named, else the recipe's, else o200k_base. Raises DatasetFault when `out` holds something
    else (and leaves it untouched) or when no session is left, `curate.tokens.EncodingUnavailable` when the tokenizer is
    not at hand, `curate.pool.WorkerDied`, and what the redactor raises when a scanner that it needs is missing.
    """
    from curate.tokens import DEFAULT_ENCODING, load_encoding

    recipe = recipe or Recipe()
    tokenizer = tokenizer or recipe.tokenizer or DEFAULT_ENCODING
    load_encoding(tokenizer)  # fail before the folder is touched
    for store in map(Path, stores):
        if out.resolve().is_relative_to(store.resolve()):
            raise DatasetFault(f"{out} lies in the store {store}; choose a folder outside it")
    return build_sources(
        [open_source(Path(store), recipe, redactor) for store in stores],
        out,
        tokenizer=tokenizer,
        recipe=recipe,
        previous=previous,
        jobs=jobs,
        labels=labels,
        on_progress=on_progress,
    )


def build_sources(
    sources: Sequence[Source],
    out: Path,
    *,
    tokenizer: str,
    recipe: Recipe | None = None,
    previous: Path | None = None,
    jobs: int | None = None,
    labels: Mapping[str, Label] | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """As `build`, from stores already opened."""
    recipe, labels = recipe or Recipe(), labels or {}
    before = None if previous is None else _previous(previous, out)
    inputs = Inputs(
        stores=tuple(sorted(source.store_id for source in sources)),
        tokenizer=tokenizer,
        # Not the whole policy: whether a recorder has seen secrets may change while a store grows.
        redaction=", ".join(sorted({source.redactor.rules for source in sources})),
        recipe=recipe.name,
    )
    with _claimed(out, inputs) as created:
        withdrawn = read_withdrawn(out) | (before.withdrawn if before else {})
        own = hashlib.sha256(b"agentdyno release" + b"".join(sorted(source.key for source in sources))).digest()
        ledger = Ledger(out, previous)
        reading = Reading(
            folder=out,
            recipe=recipe,
            tokenizer=tokenizer,
            key=release_key(out, previous, own),
            ledger=ledger,
            labels=labels,
            withdrawn=frozenset(withdrawn),
        )
        made = _map(reading, sources, ledger, jobs or os.cpu_count() or 1, on_progress)
        if previous is not None:
            carry_decisions(previous, out)
        choice = choose(out, tuple(reading.present.values()), ledger, recipe)
        left_out = reading.left_out + choice.counts
        if reading.read != len(choice.kept) + left_out.total():
            raise LostSessions(f"{reading.read} sessions read, {len(choice.kept)} kept, {left_out.total()} left out")
        drops = drops_of(left_out + Counter({("read", reason): n for reason, n in reading.places.items()}))
        if not choice.kept:
            if created:
                shutil.rmtree(out)
            said = "; ".join(f"{drop.reason} ({drop.n}×)" for drop in drops[:3])
            raise DatasetFault(f"no session to build from: {said or 'the stores are empty'}")
        # From here on the folder is unfinished, until a new manifest says otherwise.
        (out / MANIFEST).unlink(missing_ok=True)
        shards = _finish(out, reading, choice, ledger)
        manifest = Manifest(
            format=FORMAT,
            schema=SCHEMA_VERSION,
            tier="full",
            digest=content_digest([entry for shard in shards.values() for entry in shard.sessions]),
            inputs=inputs,
            recipe=published(recipe),
            rows={table.name: sum(shard.files[table.name].rows for shard in shards.values()) for table in TABLES},
            shards=tuple(shards.values()),
            papers=(),
            drops=drops,
        )
        if manifest.rows[SESSIONS.name] != len(choice.kept) or manifest.rows[REQUESTS.name] != choice.requests:
            raise LostSessions(f"{len(choice.kept)} sessions of {choice.requests} requests kept, rows: {manifest.rows}")
        write_withdrawn(out, withdrawn)
        _tell(on_progress, reading, "statistics, plots, card", len(made), len(made))
        manifest = _with_papers(out, manifest, before)
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / WORK)
    return BuildReport(
        folder=out,
        digest=manifest.digest,
        rows=manifest.rows,
        read=len(choice.kept) + sum(drop.n for drop in drops),
        kept=len(choice.kept),
        drops=manifest.drops,
        shards=len(shards),
        reused_shards=len(shards.keys() - made),
        built=reading.to_build,
        redactions=dict(sorted(sum((Counter(shard.redactions) for shard in shards.values()), Counter()).items())),
        notes=_notes(previous, ledger, labels, reading),
    )


def _notes(previous: Path | None, ledger: Ledger, labels: Mapping[str, Label], reading: Reading) -> tuple[str, ...]:
    notes = []
    if previous is not None and not ledger.has_previous:
        notes.append(f"{previous} keeps no work to go on from (a published copy does not): every session was done anew")
    unknown = len(labels.keys() - reading.seen)
    if unknown:
        notes.append(f"{unknown} of {len(labels)} labels are about sessions that no store holds")
    return tuple(notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What a build takes from the release before, besides its work."""

    stats: Stats
    sessions: tuple[SessionEntry, ...]
    withdrawn: dict[str, bytes]


def _previous(previous: Path, out: Path) -> _Before:
    from curate.stats import read_stats

    if previous.resolve() == out.resolve():
        raise DatasetFault(
            f"{out} cannot be its own previous release: a build goes on in its folder without --previous"
        )
    sessions = tuple(entry for shard in read_manifest(previous).shards for entry in shard.sessions)
    return _Before(stats=read_stats(previous), sessions=sessions, withdrawn=read_withdrawn(previous))


def _map(
    reading: Reading,
    sources: Sequence[Source],
    ledger: Ledger,
    jobs: int,
    listener: Callable[[BuildProgress], None] | None,
) -> set[str]:
    """Do the work that is not done; gives the shards made."""
    known = [source.expected for source in sources]
    total = None if None in known else sum(count or 0 for count in known)
    made: set[str] = set()
    reading.on_session = lambda: _tell(listener, reading, "sessions", len(made), None, total)
    for receipt in run_shards(reading.tasks(sources), jobs):
        ledger.add(receipt)
        made.add(receipt.input_digest)
        _tell(listener, reading, "sessions", len(made), reading.tasks_made if reading.over else None, total)
    for present in reading.present.values():
        if ledger.work_of(present.input) is None:
            raise LostSessions(f"session {present.session_id} was given to a worker and did not come back")
    return made


def _tell(
    listener: Callable[[BuildProgress], None] | None,
    reading: Reading,
    step: str,
    shards: int,
    total_shards: int | None,
    total_sessions: int | None = None,
) -> None:
    if listener is not None:
        listener(
            BuildProgress(
                step=step,
                sessions=reading.read,
                shards=shards,
                total_sessions=reading.read if reading.over else total_sessions,
                total_shards=total_shards,
            )
        )


def _finish(out: Path, reading: Reading, choice: Choice, ledger: Ledger) -> dict[str, Receipt]:
    """Publish the shards, in the order of reading; nothing else stays in `data/` and among the private work."""
    members: dict[str, dict[str, int | None]] = {}  # shard → its sessions' inputs, with their peaks
    for present in reading.present.values():
        receipt = ledger.receipt_of(present.input)
        assert receipt is not None
        members.setdefault(receipt.input_digest, {})[present.input] = present.peak_agents
    shards: dict[str, Receipt] = {}
    used = []
    for name, peaks in members.items():
        receipt = ledger.receipt(name)
        works = [replace(work, peak_agents=peaks[work.input]) for work in receipt.sessions if work.input in peaks]
        whole = current_shard(out, receipt, works)
        if whole is not receipt:
            ledger.add(whole)
        used.append(whole.input_digest)
        shard = publish_shard(out, whole, choice.kept)
        if shard is not None:
            counts = Counter(
                choice.left_out[work.session_id] for work in whole.sessions if work.session_id in choice.left_out
            )
            shards[name] = replace(shard, drops=drops_of(counts))
    _remove_strays(out, shards.values())
    ledger.prune(used)
    return shards


def _with_papers(out: Path, manifest: Manifest, before: _Before | None) -> Manifest:
    from curate.card import write_papers

    papers = write_papers(
        out,
        manifest,
        previous=None if before is None else before.stats,
        previous_sessions=None if before is None else before.sessions,
    )
    return replace(manifest, papers=tuple(file_entry(out, path) for path in sorted(papers)))


@contextmanager
def _claimed(out: Path, inputs: Inputs) -> Iterator[bool]:
    """Take the folder, or refuse it untouched; gives whether it is new."""
    created = not out.exists()
    empty = created or _check_ours(out, inputs)
    work = out / WORK
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    if empty:
        out.chmod(0o700)  # redaction has limits: what was private stays the owner's until published
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise DatasetFault(f"another build is writing {out}; wait for it, or choose another folder") from fault
        write_json(work / "inputs.json", inputs)
        prepare(out)
        yield created


def _check_ours(out: Path, inputs: Inputs) -> bool:
    """Whether the folder is empty; DatasetFault where it holds anything but a build of these inputs."""
    if not out.is_dir():
        raise DatasetFault(f"{out} is a file; choose a new folder")
    if {path.name for path in out.iterdir()} <= {WORK} and not (out / WORK / "inputs.json").exists():
        return True
    earlier: Inputs | None = None
    if (out / MANIFEST).is_file() or (out / WORK / "swap").is_dir():
        try:
            found = read_manifest(out)
        except DatasetFault as fault:
            raise DatasetFault(f"{fault}: into a new folder") from fault
        if found.tier != "full":
            raise DatasetFault(f"{out} is the {found.tier} tier of a dataset; choose a new folder")
        earlier = found.inputs
    elif (out / WORK / "inputs.json").is_file():
        try:
            earlier = msgspec.json.decode((out / WORK / "inputs.json").read_bytes(), type=Inputs)
        except msgspec.MsgspecError as fault:
            raise DatasetFault(f"{out} holds an unfinished build of another version; choose a new folder") from fault
    if earlier is None:
        raise DatasetFault(f"{out} exists and is not a build of ours; choose a new folder")
    difference = inputs.difference(earlier)
    if difference is not None:
        raise DatasetFault(f"{out} holds a dataset built from {difference}, unlike this build; choose a new folder")
    return False


def _remove_strays(out: Path, shards: Iterable[Receipt]) -> None:
    """Remove what a published folder must not hold: shards that no longer belong, and drafts of a killed build.

    The card's globs would load the shards; a draft may tell of sessions that are gone.
    """
    for name in ("README.md", "stats.json", MANIFEST, "withdrawn.jsonl"):
        for draft in out.glob(f".{name}.*"):
            draft.unlink()
    wanted = {entry.path for shard in shards for entry in shard.files.values()}
    for path in (out / DATA).glob("*/*"):
        if path.relative_to(out).as_posix() not in wanted:
            path.unlink()

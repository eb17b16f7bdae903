"""What a build keeps for the next one: the shards of work as the map step made them, with a receipt each.

They lie in `.private/` of the dataset, owner-only, and are never published:

    .private/release.key              keys the digests of inputs and the block hashes of the release
    .private/shards/TABLE/*.parquet   rows of every session that was built, those left out as duplicates included
    .private/receipts/*.json          what each shard was made from, with the features that the reduce step needs

A published file that holds the same rows is the same file under a second name, so a shard takes its room once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from capture.atomic import write_atomically
from curate.features import Features
from curate.manifest import PRIVATE, FileEntry, file_sha256
from curate.swap import is_inside

FORMAT = "agentdyno-receipt/1"
KEY = f"{PRIVATE}/release.key"
SHARDS = f"{PRIVATE}/shards"
RECEIPTS = f"{PRIVATE}/receipts"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionWork:
    """What became of one session in the map step."""

    session_id: str
    input: str  # keyed digest of all that its rows are made from
    digest: str | None  # of its rows, late columns left out; None when it was dropped
    reason: str | None  # why it was dropped
    features: Features | None
    redactions: dict[str, int]  # rule → findings
    peak_agents: int | None  # `contributor_peak_agents` as its row says it


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """What one shard of work was made from and what it wrote."""

    format: str
    input_digest: str  # keyed, over its sessions
    split: str
    filters: str  # digest of the filters that its sessions passed
    sample_by: str | None  # quantity that the features' `sample_value` holds
    files: dict[str, FileEntry]  # by table, paths from the dataset folder; empty when every session was dropped
    sessions: tuple[SessionWork, ...]

    @property
    def built(self) -> tuple[SessionWork, ...]:
        """Sessions that have rows, in the order of the files."""
        return tuple(work for work in self.sessions if work.digest is not None)


class Ledger:
    """Receipts by what they were made from: those of the folder, and behind them those of an earlier release.

    Files of the earlier release become the folder's own, by a second name, when a session of theirs is asked for.
    """

    def __init__(self, folder: Path, previous: Path | None) -> None:
        self._folder = folder
        self._receipts: dict[str, ShardReceipt] = {}
        self._works: dict[str, tuple[str, SessionWork]] = {}  # by input of a session, with its receipt
        self._elsewhere: dict[str, Path] = {}  # receipts whose files are still the earlier release's alone
        for receipt in _read(folder):
            if _intact(folder, receipt):
                self._enter(receipt)
        if previous is not None:
            for receipt in _read(previous):
                if receipt.input_digest not in self._receipts:
                    self._elsewhere[receipt.input_digest] = previous
                    self._enter(receipt)
        self.has_previous = bool(self._elsewhere)

    def receipt(self, input_digest: str) -> ShardReceipt:
        """The receipt of this name."""
        return self._receipts[input_digest]

    def receipt_of(self, session: str) -> ShardReceipt | None:
        """The receipt that holds the session of this input, its files whole; None: the work is to be done."""
        name = self._works.get(session, ("", None))[0]
        if name in self._elsewhere:
            home = self._elsewhere.pop(name)
            if not _intact(home, self._receipts[name]):
                self._leave(name)
                return None
            for entry in self._receipts[name].files.values():
                place(home / entry.path, self._folder / entry.path)
            _write(self._folder, self._receipts[name])
        return self._receipts.get(name)

    def work_of(self, session: str) -> SessionWork | None:
        """What became of the session of this input."""
        return self._works.get(session, ("", None))[1]

    def add(self, receipt: ShardReceipt) -> None:
        """Keep a receipt, in memory and on the disk; from here on a killed build need not do the work again."""
        _write(self._folder, receipt)
        self._enter(receipt)

    def prune(self, keep: Collection[str]) -> None:
        """Remove receipts and shards of the folder that nothing refers to any more."""
        wanted = {entry.path for name in keep for entry in self._receipts[name].files.values()}
        wanted |= {_path(self._folder, name).relative_to(self._folder).as_posix() for name in keep}
        for path in (*(self._folder / SHARDS).glob("*/*"), *(self._folder / RECEIPTS).iterdir()):
            if path.relative_to(self._folder).as_posix() not in wanted:
                path.unlink()

    def _enter(self, receipt: ShardReceipt) -> None:
        self._receipts[receipt.input_digest] = receipt
        for work in receipt.sessions:
            self._works[work.input] = receipt.input_digest, work

    def _leave(self, name: str) -> None:
        for work in self._receipts.pop(name).sessions:
            if self._works.get(work.input, ("",))[0] == name:
                del self._works[work.input]


def forget(folder: Path, session_ids: Collection[str]) -> None:
    """Remove the private work that holds one of these sessions; the next build does the rest of those shards again."""
    for receipt in _read(folder):
        if any(work.session_id in session_ids for work in receipt.sessions):
            for entry in receipt.files.values():  # first: a receipt without files is done again, files without one stay
                (folder / entry.path).unlink(missing_ok=True)
            _path(folder, receipt.input_digest).unlink(missing_ok=True)


def prepare(folder: Path) -> None:
    """Make the private folders."""
    for name in (PRIVATE, SHARDS, RECEIPTS):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)


def release_key(folder: Path, previous: Path | None, derived: bytes) -> bytes:
    """The key of the release: of the earlier one where there is one, so that its shards stay and blocks compare."""
    for home in (previous, folder):
        if home is not None:
            with contextlib.suppress(OSError):
                key = (home / KEY).read_bytes()
                if len(key) == len(derived):
                    derived = key
                    break
    write_atomically(folder / KEY, derived, mode=0o600)
    return derived


def place(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system has no links across these folders."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except OSError:
        shutil.copyfile(source, draft)
    draft.replace(target)
    draft.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing


def is_entry(folder: Path, entry: FileEntry) -> bool:
    """Whether a file is what its entry says."""
    path = folder / entry.path
    return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256


def _intact(home: Path, receipt: ShardReceipt) -> bool:
    return all(is_entry(home, entry) for entry in receipt.files.values())


def _path(folder: Path, input_digest: str) -> Path:
    return folder / RECEIPTS / f"{input_digest[:16]}.json"


def _write(folder: Path, receipt: ShardReceipt) -> None:
    write_atomically(_path(folder, receipt.input_digest), msgspec.json.encode(receipt), mode=0o600)


def _read(folder: Path) -> Iterator[ShardReceipt]:
    """Receipts of a folder; those that cannot be read count as not done."""
    for path in sorted((folder / RECEIPTS).glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            receipt = msgspec.json.decode(path.read_bytes(), type=ShardReceipt)
            if receipt.format == FORMAT and all(_is_private(entry.path) for entry in receipt.files.values()):
                yield receipt


def _is_private(path: str) -> bool:
    """Whether a path is one of a private shard: the folder may be somebody else's."""
    return path.startswith(f"{SHARDS}/") and is_inside(path.removeprefix(f"{SHARDS}/"))

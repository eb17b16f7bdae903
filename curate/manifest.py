"""The manifest of a dataset folder: which files belong to it, what they hold, and what they were made from.

`manifest.json` is written last, by rename: a folder that has one is whole. Work in progress lies in `.build/`; what
the owner's next commands need and nobody else may have (receipts of work, review decisions) in `.private/`, which no
manifest names, so it is never published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from capture.atomic import write_atomically
from curate.recipe import SPLIT_NAME, Recipe
from curate.swap import MANIFEST as MANIFEST
from curate.swap import WORK as WORK
from curate.swap import ForeignSwap, finish_swap, is_inside

FORMAT = "agentdyno-dataset/2"
PRIVATE = ".private"

type Tier = Literal["full", "text", "content-free"]
"""`full`: as built, the owner's; `text` and `content-free`: as published."""

type Stage = Literal["read", "filter", "duplicate", "sample", "review", "withdrawn"]
"""Where a session was left out, in the order of the funnel."""

STAGES: tuple[Stage, ...] = get_args(Stage.__value__)


class DatasetFault(ValueError):
    """A dataset folder is not what was asked for; the text names the place and the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the dataset, by its path inside the folder."""

    path: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEntry:
    """One session of a shard: its id and the SHA-256 of its rows."""

    session_id: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Drop:
    """Sessions (or sources that hold them) left out at one stage for one reason."""

    stage: Stage
    reason: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one shard of work was made from and what it wrote; equal `input_digest` means nothing to do again."""

    input_digest: str
    split: str
    files: dict[str, FileEntry]  # by table; empty when every session of the shard was dropped
    sessions: tuple[SessionEntry, ...]
    drops: tuple[Drop, ...]
    redactions: dict[str, int]  # rule → findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a build was asked to do; a folder continues only a build with equal inputs."""

    stores: tuple[str, ...]  # keyed ids, so that no path of the machine is published
    tokenizer: str
    redaction: str
    recipe: str | None  # its name

    def difference(self, other: Inputs) -> str | None:
        """The first thing that differs, in words; None if nothing does."""
        for name, said in (
            ("stores", "other stores"),
            ("tokenizer", f"tokenizer {other.tokenizer}"),
            ("redaction", f"redaction {other.redaction}"),
            ("recipe", f"recipe {other.recipe}" if other.recipe else "no recipe"),
        ):
            if getattr(self, name) != getattr(other, name):
                return said
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole dataset folder."""

    format: str
    schema: str  # version of the tables
    tier: Tier
    digest: str  # SHA-256 over the sessions' digests, in order of session id
    inputs: Inputs
    recipe: Recipe
    rows: dict[str, int]  # by table
    shards: tuple[Receipt, ...]
    papers: tuple[FileEntry, ...]  # card, statistics, plots; `rows` is 0
    drops: tuple[Drop, ...]  # over the whole build, in the order of the funnel

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file that belongs to the dataset, `manifest.json` left out."""
        return (*(entry for shard in self.shards for entry in shard.files.values()), *self.papers)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold sessions, in the recipe's order."""
        found = {shard.split for shard in self.shards}
        return tuple(name for name in self.recipe.splits.shares if name in found)

    def rows_of(self, table: str, split: str) -> int:
        """Rows of a table in a split."""
        return sum(shard.files[table].rows for shard in self.shards if shard.split == split and table in shard.files)


def drops_of(counts: Mapping[tuple[Stage, str], int]) -> tuple[Drop, ...]:
    """Drops in the order of the funnel."""
    ordered = sorted(counts.items(), key=lambda item: (STAGES.index(item[0][0]), item[0][1]))
    return tuple(Drop(stage=stage, reason=reason, n=n) for (stage, reason), n in ordered)


def content_digest(sessions: list[SessionEntry]) -> str:
    """Digest of a dataset's content: independent of shards, their order and the Parquet writer's version."""
    lines = (f"{entry.session_id} {entry.digest}\n" for entry in sorted(sessions, key=lambda entry: entry.session_id))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(folder: Path, path: Path, *, rows: int = 0) -> FileEntry:
    """The entry of a file in the folder of a dataset."""
    name = path.relative_to(folder).as_posix()
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=file_sha256(path), rows=rows)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON by rename."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a finished dataset's manifest; raises DatasetFault for anything that is not one."""
    if not folder.exists():
        raise DatasetFault(f"{folder}: no such folder; make a dataset with 'agentdyno curate build'")
    if not folder.is_dir():
        raise DatasetFault(f"{folder} is a file; a dataset is the folder that 'agentdyno curate build' wrote")
    try:
        finish_swap(folder)
    except ForeignSwap as fault:
        raise DatasetFault(str(fault)) from fault
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / WORK).is_dir():
            raise DatasetFault(
                f"{folder} holds an unfinished build; finish it by the same 'agentdyno curate build … --out {folder}'"
            )
        raise DatasetFault(f"{folder} is not a dataset: it has no {MANIFEST}; name a folder made by 'curate build'")
    try:
        return decoded_manifest(path.read_bytes())
    except ValueError as fault:
        raise DatasetFault(f"{path} {fault}; build the dataset again with this version") from fault


def decoded_manifest(data: bytes) -> Manifest:
    """A manifest, which may be somebody else's; ValueError with what is wrong, to be read behind the file's name."""
    try:
        found = msgspec.json.decode(data, type=_Head).format
        if found != FORMAT:
            raise ValueError(f"has format {found!r}, this version reads {FORMAT!r}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ValueError(f"cannot be read ({fault})") from fault
    for entry in manifest.files:
        if not is_inside(entry.path) or entry.path == MANIFEST:
            raise ValueError(f"names {entry.path!r}, which is no file of a dataset")
    for shard in manifest.shards:
        if SPLIT_NAME.fullmatch(shard.split) is None:
            raise ValueError(f"has a split {shard.split!r}, which is no name")
    return manifest


class _Head(msgspec.Struct):
    format: Any = None

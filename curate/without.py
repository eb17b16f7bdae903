"""A finished dataset folder without some of its sessions: only the shards that hold them are written again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.dataset import Dataset
from curate.manifest import (
    MANIFEST,
    DatasetFault,
    Drop,
    FileEntry,
    Manifest,
    Receipt,
    Stage,
    content_digest,
    file_entry,
    write_json,
)
from curate.receipts import place
from curate.shard import parquet_writer
from curate.swap import commit, swapping
from curate.table import SESSIONS, TABLES
from curate.tombstone import Tombstone, tombstone_lines
from curate.withdrawn import WITHDRAWN, read_withdrawn, write_withdrawn

STAGES: tuple[Stage, ...] = ("read", "filter", "duplicate", "sample", "review", "withdrawn")


def without_sessions(
    folder: Path, drops: Mapping[str, tuple[Stage, str]], *, tombstones: Iterable[Tombstone] = ()
) -> Manifest:
    """Take sessions out of a finished folder; gives the new manifest, which counts them by stage and reason.

    Tombstones are added to its `withdrawn.jsonl`, which later builds honour. A killed call leaves the old folder or,
    once opened again, the new one. Raises DatasetFault for a session that is not there, when none would be left, and
    while another process writes the folder.
    """
    dataset = Dataset.open(folder)
    missing = sorted(set(drops).difference(dataset.session_ids))
    if missing:
        raise DatasetFault(
            f"{folder} has no session {missing[0]!r}; the column session_id of `sessions` says what it has"
        )
    if len(drops) == len(dataset.session_ids):
        raise DatasetFault(f"{folder} would hold no session any more; remove the folder instead")
    if not drops:
        return dataset.manifest
    try:
        with swapping(folder) as draft:
            # Read again under the lock: what was opened above may have changed since.
            return _swap(Dataset.open(folder), draft, drops, tuple(tombstones))
    except BlockingIOError as fault:
        raise DatasetFault(f"another process is writing {folder}; wait for it and try again") from fault


def _swap(
    dataset: Dataset, draft: Path, drops: Mapping[str, tuple[Stage, str]], tombstones: tuple[Tombstone, ...]
) -> Manifest:
    from curate.card import write_papers

    folder, old = dataset.folder, dataset.manifest
    shards = tuple(
        shard for shard in (_without(folder, draft, shard, drops) for shard in old.shards) if shard is not None
    )
    manifest = replace(
        old,
        digest=content_digest([entry for shard in shards for entry in shard.sessions]),
        rows={
            table.name: sum(shard.files[table.name].rows for shard in shards if table.name in shard.files)
            for table in TABLES
            if table.name in old.rows
        },
        shards=shards,
        papers=(),
        drops=_merged(old.drops, drops.values()),
    )
    kept = {entry.path for shard in shards for entry in shard.files.values()}
    for name in sorted(kept):  # statistics are made from the whole, and a link costs nothing
        if not (draft / name).exists():
            place(folder / name, draft / name)
    papers = {*write_papers(draft, manifest)}
    if tombstones:
        write_withdrawn(draft, {**tombstone_lines(tombstones), **read_withdrawn(folder)})
        papers.add(draft / WITHDRAWN)
    for entry in old.papers:  # what is no matter of the tables stays, such as the list of withdrawn sessions
        if not entry.path.startswith("plots/") and not (draft / entry.path).exists():
            place(folder / entry.path, draft / entry.path)
            papers.add(draft / entry.path)
    manifest = replace(manifest, papers=tuple(file_entry(draft, path) for path in sorted(papers)))
    write_json(draft / MANIFEST, manifest)
    kept |= {entry.path for entry in manifest.papers}
    commit(folder, draft, {entry.path for entry in old.files} - kept)
    return manifest


def _without(folder: Path, draft: Path, shard: Receipt, drops: Mapping[str, tuple[Stage, str]]) -> Receipt | None:
    """A shard without the sessions, written to the draft; itself where it holds none of them, None when all go."""
    gone = [entry.session_id for entry in shard.sessions if entry.session_id in drops]
    if not gone:
        return shard
    left = tuple(entry for entry in shard.sessions if entry.session_id not in drops)
    if not left:
        return None
    digest = hashlib.sha256("\n".join((shard.input_digest, *sorted(gone))).encode()).hexdigest()
    files = {name: _filtered(folder, draft, entry, gone, digest) for name, entry in shard.files.items()}
    return replace(
        shard,
        input_digest=digest,
        files=files,
        sessions=left,
        drops=_merged(shard.drops, (drops[name] for name in gone)),
        redactions=_redactions(draft / files[SESSIONS.name].path) if SESSIONS.name in files else shard.redactions,
    )


def _filtered(folder: Path, draft: Path, entry: FileEntry, gone: list[str], digest: str) -> FileEntry:
    """One file without the rows of these sessions; holds one row group in memory."""
    old = Path(entry.path)
    split, dash, _ = old.stem.rpartition("-")
    path = draft / old.parent / f"{split}{dash}{digest[:16]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with pq.ParquetFile(folder / old) as file, parquet_writer(path, file.schema_arrow) as writer:
        for piece in _row_groups(file, gone):
            rows += piece.num_rows
            writer.write_table(piece, row_group_size=piece.num_rows)
    return replace(file_entry(draft, path), rows=rows)


def _row_groups(file: pq.ParquetFile, gone: list[str]) -> Iterator[pa.Table]:
    kept = ~pc.field("session_id").isin(gone)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        left = table.filter(kept)
        if left.num_rows:
            yield left


def _redactions(path: Path) -> dict[str, int]:
    """Findings by rule over the sessions of a file."""
    found: Counter[str] = Counter()
    with pq.ParquetFile(path) as file:
        if "redaction_counts" not in file.schema_arrow.names:
            return {}
        for batch in file.iter_batches(columns=["redaction_counts"]):
            for counts in batch.column(0).to_pylist():
                found.update({count["rule"]: count["n"] for count in counts or ()})
    return dict(sorted(found.items()))


def _merged(known: tuple[Drop, ...], more: Iterable[tuple[Stage, str]]) -> tuple[Drop, ...]:
    counts: Counter[tuple[Stage, str]] = Counter({(drop.stage, drop.reason): drop.n for drop in known})
    counts.update(more)
    return tuple(
        Drop(stage=stage, reason=reason, n=n)
        for (stage, reason), n in sorted(counts.items(), key=lambda item: (STAGES.index(item[0][0]), item[0][1]))
    )

"""Read a dataset folder back as trajectories, by row group and without HF datasets.

Reads three kinds of folder: with text; content-free (`sessions` without its text columns); and `requests` with
`tool_calls` alone.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from capture.trajectory import Trajectory
from curate.manifest import DatasetFault, Manifest, Receipt, file_sha256, read_manifest
from curate.row import Row, trajectory_of
from curate.table import REQUESTS, SCHEMA_VERSION, SESSIONS, TOOL_CALLS

BATCH_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A finished dataset folder."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> Dataset:
        """Open a folder that `curate build` finished; raises DatasetFault for anything else."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest.schema != SCHEMA_VERSION:
            raise DatasetFault(
                f"{folder} has tables of version {manifest.schema!r}, this version reads {SCHEMA_VERSION!r}; "
                "build the dataset again with this version"
            )
        for shard in manifest.shards:
            for entry in shard.files.values():
                path = folder / entry.path
                if not path.is_file() or path.stat().st_size != entry.bytes:
                    raise DatasetFault(f"{path} is missing or was changed since it was built; build the dataset again")
        return cls(folder=folder, manifest=manifest)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the contents of all tables; the same for the same rows in other files."""
        return self.manifest.digest

    @property
    def session_ids(self) -> tuple[str, ...]:
        """Ids of all sessions, in the order in which `trajectories` gives them."""
        return tuple(entry.session_id for shard in self.manifest.shards for entry in shard.sessions)

    def trajectories(self, ids: Iterable[str] | None = None, *, packed: bool = False) -> Iterator[Trajectory]:
        """All sessions, or those named, in the dataset's order; holds about one row group in memory.

        With `packed`, block hashes come as memory of 64-bit words instead of tuples: a release of hundreds of sessions
        has a hundred million of them, and making Python's integers of all takes most of the reading's time.
        Raises DatasetFault for an id that the dataset does not have.
        """
        wanted = None if ids is None else set(ids)
        if wanted is not None:
            missing = sorted(wanted.difference(self.session_ids))
            if missing:
                raise DatasetFault(
                    f"{self.folder} has no session {missing[0]!r}; the column session_id of `sessions` says what it has"
                )
        for shard in self.manifest.shards:
            chosen = [entry.session_id for entry in shard.sessions if wanted is None or entry.session_id in wanted]
            if chosen:
                yield from self._shard(shard, chosen, packed=packed)

    def _shard(self, shard: Receipt, chosen: list[str], *, packed: bool) -> Iterator[Trajectory]:
        """Walk the three files of a shard side by side: their sessions come in the same order."""
        sessions, requests, tool_calls = (
            _Reader(self.folder / shard.files[table.name].path, chosen, packed=packed)
            if table.name in shard.files
            else None
            for table in (SESSIONS, REQUESTS, TOOL_CALLS)
        )
        for session_id in chosen:
            rows = sessions.rows(session_id) if sessions else []
            yield trajectory_of(
                rows[0] if rows else None,
                requests.rows(session_id) if requests else [],
                tool_calls.rows(session_id) if tool_calls else [],
            )

    def verify(self) -> list[str]:
        """What differs from the manifest, in words; reads every byte."""
        entries = [*(entry for shard in self.manifest.shards for entry in shard.files.values()), *self.manifest.papers]
        return [
            f"{entry.path}: {'changed' if (self.folder / entry.path).is_file() else 'missing'}"
            for entry in entries
            if not (self.folder / entry.path).is_file() or file_sha256(self.folder / entry.path) != entry.sha256
        ]


class _Reader:
    """Gives the rows of one session after the other, in file order; a session may have none."""

    def __init__(self, path: Path, chosen: list[str], *, packed: bool) -> None:
        self._groups = _groups(path, frozenset(chosen), packed=packed)
        self._next = next(self._groups, None)

    def rows(self, session_id: str) -> list[Row]:
        if self._next is None or self._next[0] != session_id:
            return []
        rows = self._next[1]
        self._next = next(self._groups, None)
        return rows


def _groups(path: Path, chosen: frozenset[str], *, packed: bool) -> Iterator[tuple[str, list[Row]]]:
    for session_id, pieces in groupby(_pieces(path, chosen, packed=packed), key=lambda piece: piece[0]):
        yield session_id, [row for _, rows in pieces for row in rows]


def _pieces(path: Path, chosen: frozenset[str], *, packed: bool) -> Iterator[tuple[str, list[Row]]]:
    """Runs of rows of one session; becomes Python values only what was asked for."""
    with pq.ParquetFile(path) as file, contextlib.closing(_ahead(file.iter_batches(batch_size=BATCH_ROWS))) as batches:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            if "t0_utc" in table.column_names:  # an integer again: a datetime would need a time zone database
                position = table.column_names.index("t0_utc")
                table = table.set_column(position, "t0_utc", table.column(position).cast(pa.int64()))
            hashes = None
            if packed and "block_hashes" in table.column_names:
                hashes = table.column("block_hashes")
                table = table.drop_columns("block_hashes")
            start = 0
            for session_id, run in groupby(table.column("session_id").to_pylist()):
                length = sum(1 for _ in run)
                if session_id in chosen:
                    rows = table.slice(start, length).to_pylist()
                    if hashes is not None:
                        for row, packet in zip(rows, _packed(hashes.slice(start, length)), strict=True):
                            row["block_hashes"] = packet
                    yield session_id, rows
                start += length


def _ahead(batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch]:
    """The same batches, the next one read by a thread while this one is used: Arrow decodes without Python's lock."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def _packed(lists: pa.ChunkedArray) -> Iterator[memoryview[int] | None]:
    """Lists of unsigned 64-bit words, still where Arrow has put them."""
    for chunk in lists.chunks:
        # Its buffer, not `to_numpy`, which imports pandas where that is installed.
        buffer = chunk.values.buffers()[1]
        whole = memoryview(buffer).cast("B").cast("Q") if buffer else memoryview(array("Q"))
        words = whole[chunk.values.offset :]
        offsets = chunk.offsets.to_pylist()
        for known, start, stop in zip(chunk.is_valid().to_pylist(), offsets[:-1], offsets[1:], strict=True):
            yield words[start:stop] if known else None

"""One shard of a build: sessions in, three Parquet files and a receipt out; the same work gives the same bytes."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from capture.trajectory import Trajectory
from curate.consistency import Inconsistent, check
from curate.manifest import Drop, FileEntry, Receipt, SessionEntry, file_sha256
from curate.redact import Redacted
from curate.row import Provenance, Row, Rows, rows_of
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS, Table
from curate.tally import Counter as Tokens
from curate.tally import tally

ROW_GROUP_BYTES = 64 << 20  # uncompressed; the Hub's viewer refuses row groups above 286 MiB
ZSTD_LEVEL = 9


class Redacts(Protocol):
    """What redaction needs; `curate.redact.Redactor` is the real one."""

    policy: str

    def trajectory(self, trajectory: Trajectory) -> Redacted: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """Everything a worker needs to know; it reads nothing else."""

    input_digest: str
    sessions: tuple[bytes, ...]  # trajectories as msgspec JSON
    redactor: Redacts
    tokenizer: str
    license: str | None
    folder: Path  # the dataset
    work: Path  # for drafts


@functools.cache
def _counter(name: str) -> Tokens:
    """One counter per process: loading ranks takes a quarter of a second, and its memo spans shards."""
    from curate.tokens import TokenCounter

    return TokenCounter(name)


def build_shard(task: ShardTask) -> Receipt:
    """Redact, count and write one shard; a session that cannot be turned into rows is dropped with its reason."""
    counter = _counter(task.tokenizer)
    dropped: Counter[str] = Counter()
    redactions: Counter[str] = Counter()
    built: list[Rows] = []
    for blob in task.sessions:
        trajectory = msgspec.json.decode(blob, type=Trajectory)
        try:
            check(trajectory)
        except Inconsistent as fault:
            dropped[str(fault)] += 1
            continue
        redacted = task.redactor.trajectory(trajectory)
        rows = rows_of(
            redacted.trajectory,
            tally(redacted.trajectory, counter),
            Provenance(
                tokenizer=counter.encoding_name,
                tokenizer_sha=counter.sha,
                license=task.license,
                redaction_policy=task.redactor.policy,
                redaction_counts=redacted.counts,
                message_redactions=redacted.by_message,
            ),
        )
        redactions += redacted.counts
        built.append(rows)
    return Receipt(
        input_digest=task.input_digest,
        split="train",
        files=_write(task, built) if built else {},
        sessions=tuple(SessionEntry(session_id=rows.session["session_id"], digest=rows.digest) for rows in built),
        drops=tuple(Drop(stage="filter", reason=reason, n=n) for reason, n in sorted(dropped.items())),
        redactions=dict(sorted(redactions.items())),
    )


def _write(task: ShardTask, built: Sequence[Rows]) -> dict[str, FileEntry]:
    rows_by_table: dict[str, list[Row]] = {
        SESSIONS.name: [rows.session for rows in built],
        REQUESTS.name: [row for rows in built for row in rows.requests],
        TOOL_CALLS.name: [row for rows in built for row in rows.tool_calls],
    }
    return {table.name: _write_table(task, table, rows_by_table[table.name]) for table in TABLES}


def _write_table(task: ShardTask, table: Table, rows: list[Row]) -> FileEntry:
    name = f"{task.input_digest[:16]}.parquet"
    draft = task.work / f"{table.name}-{name}.{os.getpid()}"
    write_parquet(draft, pa.Table.from_pylist(rows, schema=table.schema))
    path = task.folder / "data" / table.name / name
    entry = FileEntry(
        path=path.relative_to(task.folder).as_posix(),
        bytes=draft.stat().st_size,
        sha256=file_sha256(draft),
        rows=len(rows),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.replace(path)
    return entry


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a published table: zstd, page index, content-defined chunks (an edit re-sends few bytes to the Hub)."""
    with pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        write_page_index=True,
        use_content_defined_chunking=True,
    ) as writer:
        for piece in row_groups(table, ROW_GROUP_BYTES):
            writer.write_table(piece, row_group_size=max(1, piece.num_rows))


def row_groups(table: pa.Table, limit: int) -> Iterator[pa.Table]:
    """Cut a table into slices of at most `limit` bytes in memory; a single row is never cut.

    A table without rows gives no slice: `load_dataset` fails on a row group of no rows, and reads a file of no groups.
    """
    if table.num_rows == 0:
        return
    if table.num_rows == 1 or table.nbytes <= limit:
        yield table
        return
    half = table.num_rows // 2
    yield from row_groups(table.slice(0, half), limit)
    yield from row_groups(table.slice(half), limit)


def input_digest(sessions: Sequence[bytes], settings: str) -> str:
    """Digest of everything a shard is made from: the sessions, the rules, the versions."""
    digest = hashlib.sha256(settings.encode())
    for blob in sessions:
        digest.update(hashlib.sha256(blob).digest())
    return digest.hexdigest()

"""One shard of a build: sessions in, three Parquet files and a receipt out; the same work gives the same bytes.

`build_shard` is a pure function of its task: it opens no store, asks no clock and draws nothing, and its task is all
that it knows (picklable; some megabytes). What it leaves are the files that its receipt names. So any executor may
run it: a Ray task returns the receipt, a Slurm job unpickles a task and writes the receipt as JSON. It needs this
package, the ranks of the tokenizer, and a file system that the collecting process sees as well (or `folder` and `work`
on its own disk and the named files sent along). The collecting process is `curate.build`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from capture.trajectory import Trajectory
from curate.blocks import Encoded, with_release_hashes
from curate.consistency import Inconsistent, check
from curate.features import features_of
from curate.filters import facts_reason, lengths_reason
from curate.labels import Label
from curate.manifest import FileEntry, file_entry
from curate.receipts import FORMAT, SHARDS, SessionWork, ShardReceipt
from curate.recipe import Filters, Recipe
from curate.redact import Redacted
from curate.row import Provenance, Rows, rows_of
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS, Table
from curate.tally import tally
from curate.truncate import truncate

ROW_GROUP_BYTES = 64 << 20  # uncompressed; the Hub's viewer refuses row groups above 286 MiB
ZSTD_LEVEL = 9


class Redacts(Protocol):
    """What redaction needs; `curate.redact.Redactor` is the real one."""

    rules: str  # names and versions of all that finds
    policy: str  # the same and what it was told, as rows say it

    def trajectory(self, trajectory: Trajectory) -> Redacted: ...

    def text(self, text: str) -> tuple[str, Counter[str]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInput:
    """One session as the map step takes it."""

    session_id: str
    input: str  # keyed digest of all that its rows are made from
    packed: bytes  # its trajectory by `pack`: labels applied, without `contributor_peak_agents`
    label: Label
    peak_agents: int | None  # its `contributor_peak_agents`, which other sessions decide


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """Everything a worker needs to know; it reads nothing else."""

    input_digest: str
    split: str
    sessions: tuple[SessionInput, ...]
    redactor: Redacts
    tokenizer: str
    recipe: Recipe
    block_key: bytes
    folder: Path  # the dataset
    work: Path  # for drafts, on the same file system


def pack(trajectory: bytes) -> bytes:
    """A trajectory in JSON as a task carries it: a fifth of its size, in every process that holds it."""
    return zstandard.compress(trajectory, 1)


class Dropped(ValueError):
    """A session does not become rows; the text is its reason in the funnel."""


@functools.cache
def _encoded(name: str) -> Encoded:
    """One counter per process: loading ranks takes a quarter of a second, and its memo spans shards."""
    from curate.tokens import TokenCounter

    return Encoded(TokenCounter(name))


def build_shard(task: ShardTask) -> ShardReceipt:
    """Redact, truncate, count and write the sessions of one shard; one that gives no rows is dropped with its reason.

    Holds the texts of one session and the tables of the shard in memory.
    """
    pieces: dict[str, list[pa.Table]] = {table.name: [] for table in TABLES}
    done: list[SessionWork] = []
    for session in task.sessions:
        try:
            work, rows = _build_session(task, session)
            tables = _tables(rows)
        except (Dropped, Inconsistent) as fault:
            done.append(_dropped(session, str(fault)))
        else:
            done.append(work)
            for name, table in tables.items():
                pieces[name].append(table)
    built = [work for work in done if work.digest is not None]
    return ShardReceipt(
        format=FORMAT,
        input_digest=task.input_digest,
        split=task.split,
        filters=filters_digest(task.recipe.filters),
        sample_by=task.recipe.sample.by,
        files=_write(task, pieces, shard_name(task.split, built)) if built else {},
        sessions=tuple(done),
    )


def _build_session(task: ShardTask, session: SessionInput) -> tuple[SessionWork, Rows]:
    encoded = _encoded(task.tokenizer)
    encoded.next_session()
    trajectory = msgspec.json.decode(zstandard.decompress(session.packed), type=Trajectory)
    check(trajectory)
    _drop(facts_reason(trajectory, session.label, task.recipe))
    redacted = task.redactor.trajectory(trajectory)
    label, label_counts = _redacted_label(task.redactor, session.label)
    counts = redacted.counts + label_counts
    truncated = truncate(redacted.trajectory, encoded, task.recipe.truncate)
    if truncated.trajectory is None:
        raise Dropped(truncated.reason or "is empty behind truncation")
    trajectory = with_release_hashes(truncated.trajectory, encoded, task.block_key)
    trajectory = replace(trajectory, contributor_peak_agents=session.peak_agents)
    rows = rows_of(
        trajectory,
        tally(trajectory, encoded),
        Provenance(
            tokenizer=encoded.encoding_name,
            tokenizer_sha=encoded.sha,
            redaction_policy=task.redactor.policy,
            redaction_counts=counts,
            message_redactions=tuple(redacted.by_message[position] for position in truncated.positions),
            message_truncated_bytes=truncated.truncated_bytes,
            truncated_requests=truncated.requests_left_out,
            split=task.split,
            label=label,
        ),
    )
    _drop(lengths_reason(rows, task.recipe.filters))
    work = SessionWork(
        session_id=session.session_id,
        input=session.input,
        digest=rows.digest,
        reason=None,
        features=features_of(trajectory, rows, task.split, task.recipe.sample),
        redactions=dict(sorted(counts.items())),
        peak_agents=session.peak_agents,
    )
    return work, rows


def _drop(reason: str | None) -> None:
    if reason is not None:
        raise Dropped(reason)


def _dropped(session: SessionInput, reason: str) -> SessionWork:
    return SessionWork(
        session_id=session.session_id,
        input=session.input,
        digest=None,
        reason=reason,
        features=None,
        redactions={},
        peak_agents=session.peak_agents,
    )


def _redacted_label(redactor: Redacts, label: Label) -> tuple[Label, Counter[str]]:
    """What people wrote into the labels goes the way of every other text."""
    counts: Counter[str] = Counter()
    changed: dict[str, Any] = {}
    for name in ("outcome_source", "exit_status", "task_id"):
        value = getattr(label, name)
        if value is not None:
            changed[name], found = redactor.text(value)
            counts += found
    return replace(label, **changed), counts


def _tables(rows: Rows) -> dict[str, pa.Table]:
    """The rows of one session, typed; Dropped when a value does not fit its column."""
    tables = {}
    for table, values in ((SESSIONS, [rows.session]), (REQUESTS, rows.requests), (TOOL_CALLS, rows.tool_calls)):
        try:
            tables[table.name] = pa.Table.from_pylist(values, schema=table.schema)
        except (pa.ArrowException, OverflowError) as fault:
            raise Dropped(f"a value does not fit its column of `{table.name}`") from fault
    return tables


def filters_digest(filters: Filters) -> str:
    """Digest of what filters ask for."""
    return hashlib.sha256(msgspec.json.encode(filters)).hexdigest()


def shard_name(split: str, sessions: Sequence[SessionWork], late: Sequence[str] = ()) -> str:
    """File name of a shard: its split and its content, so that a name never means two things."""
    content = "\n".join((*(f"{work.session_id} {work.digest}" for work in sessions), *late))
    return f"{split}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.parquet"


def _write(task: ShardTask, pieces: dict[str, list[pa.Table]], name: str) -> dict[str, FileEntry]:
    return {table.name: _write_table(task, table, pa.concat_tables(pieces.pop(table.name)), name) for table in TABLES}


def _write_table(task: ShardTask, table: Table, content: pa.Table, name: str) -> FileEntry:
    draft = task.work / f"{table.name}-{name}.{os.getpid()}"
    write_parquet(draft, content)
    path = task.folder / SHARDS / table.name / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft.replace(path)
    return file_entry(task.folder, path, rows=content.num_rows)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a published table in row groups of bounded size."""
    with parquet_writer(path, table.schema) as writer:
        for piece in row_groups(table, ROW_GROUP_BYTES):
            writer.write_table(piece, row_group_size=max(1, piece.num_rows))


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """How published tables are written: zstd, page index, content-defined chunks (an edit re-sends few bytes)."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        write_page_index=True,
        use_content_defined_chunking=True,
    )


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

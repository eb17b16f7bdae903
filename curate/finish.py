"""The last step of a build for each shard: its published files, without the sessions that the reduce step left out."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.manifest import WORK, FileEntry, Receipt, SessionEntry, file_entry
from curate.receipts import SHARDS, SessionWork, ShardReceipt, is_entry, place
from curate.row import LATE, Late, Row, Rows
from curate.shard import parquet_writer, shard_name
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS

DATA = "data"
_NOT_LENGTHS = frozenset({"messages", "prompt", "tools", "tool_sets", "block_hashes", "prompt_spans", "itl_us"})


def publish_shard(folder: Path, receipt: ShardReceipt, kept: Mapping[str, Late]) -> Receipt | None:
    """Put a shard's kept sessions into `data/`: the very files where nothing is left out, else rewritten ones.

    None when no session of the shard is kept.
    """
    works = [work for work in receipt.built if work.session_id in kept]
    if not works:
        return None
    if len(works) == len(receipt.built) and all(kept[work.session_id] == _as_built(work) for work in works):
        files = {
            name: _placed(folder, entry, f"{DATA}/{name}/{Path(entry.path).name}")
            for name, entry in receipt.files.items()
        }
    else:
        files = _rewritten(folder, receipt, works, kept, DATA)
    return Receipt(
        input_digest=receipt.input_digest,
        split=receipt.split,
        files=files,
        sessions=tuple(
            SessionEntry(session_id=work.session_id, digest=kept[work.session_id].digest(work.digest or ""))
            for work in works
        ),
        drops=(),
        redactions=dict(sorted(sum((Counter(work.redactions) for work in works), Counter()).items())),
    )


def current_shard(folder: Path, receipt: ShardReceipt, present: Sequence[SessionWork]) -> ShardReceipt:
    """The private shard as the stores are today; itself where nothing changed.

    Sessions that no store holds any more, or that were withdrawn, go with their text; `contributor_peak_agents` is
    what the contributor's newer sessions made of it.
    """
    if tuple(present) == receipt.sessions:
        return receipt
    works = [work for work in present if work.digest is not None]
    files = receipt.files
    if works != list(receipt.built):
        late = {work.session_id: _as_built(work) for work in works}
        files = _rewritten(folder, receipt, works, late, SHARDS) if works else {}
    said = [receipt.input_digest, *((work.input, work.peak_agents) for work in present)]
    return replace(
        receipt,
        input_digest=hashlib.sha256(msgspec.json.encode(said)).hexdigest(),
        files=files,
        sessions=tuple(present),
    )


def rows_without_text(folder: Path, receipt: ShardReceipt) -> dict[str, Rows]:
    """Rows of a shard by session id, long lists and texts left out: what filters and samples look at."""
    tables: dict[str, dict[str, list[Row]]] = {}
    for table in TABLES:
        columns = [column.name for column in table.columns if column.name not in _NOT_LENGTHS]
        by_session: dict[str, list[Row]] = {}
        content = pq.read_table(folder / receipt.files[table.name].path, columns=columns)
        if table is SESSIONS:  # an integer again, as rows have it
            position = content.column_names.index("t0_utc")
            content = content.set_column(position, "t0_utc", content.column(position).cast(pa.int64()))
        for row in content.to_pylist():
            by_session.setdefault(row["session_id"], []).append(row)
        tables[table.name] = by_session
    return {
        session_id: Rows(
            session=sessions[0],
            requests=tables[REQUESTS.name].get(session_id, []),
            tool_calls=tables[TOOL_CALLS.name].get(session_id, []),
        )
        for session_id, sessions in tables[SESSIONS.name].items()
    }


def _placed(folder: Path, entry: FileEntry, path: str) -> FileEntry:
    """A file under another name."""
    placed = replace(entry, path=path)
    if not is_entry(folder, placed):
        place(folder / entry.path, folder / path)
    return placed


def _as_built(work: SessionWork) -> Late:
    return Late(contributor_peak_agents=work.peak_agents)


def _rewritten(
    folder: Path, receipt: ShardReceipt, works: Sequence[SessionWork], late: Mapping[str, Late], under: str
) -> dict[str, FileEntry]:
    """Files with the rows of these sessions and their late columns; holds one row group in memory.

    Where only late columns change, the tables that have none stay the files that they are.
    """
    whole = len(works) == len(receipt.built)
    said = [msgspec.json.encode(late[work.session_id]).decode() for work in works]
    name = shard_name(receipt.split, works, said)
    files = {}
    for table in TABLES:
        entry = receipt.files[table.name]
        old = folder / entry.path
        if whole and table is not SESSIONS:
            files[table.name] = _placed(folder, entry, f"{under}/{table.name}/{old.name}")
            continue
        path = folder / under / table.name / name
        draft = folder / WORK / f"{table.name}-{name}.{os.getpid()}"
        rows = 0
        with pq.ParquetFile(old) as file, parquet_writer(draft, file.schema_arrow) as writer:
            for piece in _pieces(file, [work.session_id for work in works]):
                content = _patched(piece, late) if table is SESSIONS else piece
                rows += content.num_rows
                writer.write_table(content, row_group_size=content.num_rows)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.replace(path)
        files[table.name] = file_entry(folder, path, rows=rows)
    return files


def _pieces(file: pq.ParquetFile, session_ids: list[str]) -> Iterator[pa.Table]:
    wanted = pc.field("session_id").isin(session_ids)
    for group in range(file.num_row_groups):
        piece = file.read_row_group(group).filter(wanted)
        if piece.num_rows:
            yield piece


def _patched(sessions: pa.Table, late: Mapping[str, Late]) -> pa.Table:
    ids = sessions.column("session_id").to_pylist()
    for name in LATE:
        position = sessions.column_names.index(name)
        values = [getattr(late[session_id], name) for session_id in ids]
        sessions = sessions.set_column(position, name, pa.array(values, type=sessions.schema.field(name).type))
    return sessions

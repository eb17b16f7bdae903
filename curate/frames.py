"""The tables of a dataset as statistics and plots read them: scalar columns, scanned as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curate.manifest import Manifest
from curate.recipe import PARTS
from curate.row import Rows
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS, Table

BATCH_ROWS = 4096
# Long lists and texts: never held for a whole table.
LONG = frozenset({"messages", "prompt", "tools", "tool_sets", "block_hashes", "prompt_spans"})
# What a session tells that a row of another table counts under.
SESSION_PARTS = tuple(name for name in PARTS if name != "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """A dataset's tables. Rows of `requests` and `tool_calls` are scanned anew for each question asked of them."""

    sessions: pl.DataFrame  # with `session`, its number, `language`, the most frequent one, and `counter`
    requests: pl.LazyFrame
    tool_calls: pl.LazyFrame
    request_files: tuple[Path | pa.Table, ...]  # for what looks at block hashes, one file at a time

    @property
    def turns(self) -> pl.LazyFrame:
        """Requests without token counts, titles and probes, which would pull every percentile down."""
        return self.requests.filter(pl.col("kind") == "turn")

    def numbers(self, rows: pl.LazyFrame) -> np.ndarray:
        """The session of each row, as its position in `sessions`."""
        joined = rows.select("session_id").join(
            self.sessions.lazy().select("session_id", "session"),
            on="session_id",
            how="left",
            maintain_order="left",
        )
        return collect(joined)["session"].to_numpy()

    def turns_by_file(self) -> Iterator[pl.LazyFrame]:
        """`turns`, one file after the other."""
        for file in self.request_files:
            rows = (
                cast("pl.DataFrame", pl.from_arrow(file)).lazy()
                if isinstance(file, pa.Table)
                else pl.scan_parquet(file, glob=False)
            )
            yield rows.filter(pl.col("kind") == "turn")

    def block_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows of `requests` in order, a few thousand at a time."""
        for file in self.request_files:
            if isinstance(file, pa.Table):
                yield from file.select(list(columns)).to_batches(BATCH_ROWS)
                continue
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Run a query; rows stay in the order of the files."""
    return frame.collect(engine="in-memory")


def read_frames(folder: Path, manifest: Manifest) -> Frames:
    """Open the tables that a manifest names; a folder may lack the columns of text, or the table of sessions."""
    files = {
        table.name: tuple(
            folder / shard.files[table.name].path for shard in manifest.shards if table.name in shard.files
        )
        for table in TABLES
    }
    requests = _scan(REQUESTS, files[REQUESTS.name])
    sessions = collect(_scan(SESSIONS, files[SESSIONS.name]))
    if not files[SESSIONS.name]:
        named = collect(requests.select("session_id").unique(maintain_order=True))
        sessions = pl.concat([sessions, named], how="diagonal")
    return Frames(
        sessions=_with_parts(sessions),
        requests=requests,
        tool_calls=_scan(TOOL_CALLS, files[TOOL_CALLS.name]),
        request_files=files[REQUESTS.name],
    )


def frames_of(rows: Iterable[Rows]) -> Frames:
    """The tables of sessions that are not in a folder."""
    sessions: list[dict[str, object]] = []
    requests: list[dict[str, object]] = []
    tool_calls: list[dict[str, object]] = []
    for each in rows:
        sessions.append(each.session)
        requests += each.requests
        tool_calls += each.tool_calls
    tables = [
        pa.Table.from_pylist(found, schema=table.schema)
        for table, found in zip(TABLES, (sessions, requests, tool_calls), strict=True)
    ]
    frames = [
        cast("pl.DataFrame", pl.from_arrow(held.drop_columns([name for name in held.column_names if name in LONG])))
        for held in tables
    ]
    return Frames(
        sessions=_with_parts(frames[0]),
        requests=frames[1].lazy(),
        tool_calls=frames[2].lazy(),
        request_files=(tables[1],),
    )


def _scan(table: Table, files: Sequence[Path]) -> pl.LazyFrame:
    empty = cast("pl.DataFrame", pl.from_arrow(table.schema.empty_table()))
    empty = empty.drop([name for name in empty.columns if name in LONG])
    if not files:
        return empty.lazy()
    found = pl.scan_parquet(list(files), glob=False)
    held = set(found.collect_schema().names())
    return found.select(
        pl.col(name) if name in held else pl.lit(None, dtype).alias(name) for name, dtype in empty.schema.items()
    )


def _with_parts(sessions: pl.DataFrame) -> pl.DataFrame:
    return sessions.with_columns(
        session=pl.int_range(pl.len(), dtype=pl.UInt32),
        language=pl.Series(map(_first_language, sessions["lang_mix"].to_list()), dtype=pl.String),
        # Who counted `prompt_tokens`: a tokenizer by its name, so that two of them are never taken for one.
        counter=pl.when(pl.col("token_source") == "tokenizer")
        .then(pl.coalesce("source_tokenizer", pl.lit("tokenizer")))
        .otherwise("token_source"),
    )


def _first_language(mix: list[dict[str, object]] | None) -> str | None:
    if not mix:
        return None
    best = min(mix, key=lambda part: (-cast("float", part["share"]), str(part["lang"])))
    return str(best["lang"])

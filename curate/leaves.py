"""What leaves: a release in words and examples, for the person who answers for it, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from curate.manifest import FileEntry
from curate.publish import Plan
from curate.table import SESSIONS, TABLES, Table
from curate.tier import disposition

_EXAMPLE = 72  # characters of a value


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingColumn:
    """One column of a release."""

    table: str
    column: str
    action: str  # kept | coarsened | pseudonym | removed
    sentence: str
    example: str | None  # the first value that is not null; None: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """All that would leave."""

    place: str
    tier: str
    files: tuple[FileEntry, ...]  # the whole release
    to_send: tuple[str, ...]
    to_remove: tuple[str, ...]
    columns: tuple[LeavingColumn, ...]
    sessions: tuple[str, ...]
    licenses: tuple[str | None, ...]
    consents: tuple[str | None, ...]
    warnings: tuple[str, ...]

    @property
    def bytes_to_send(self) -> int:
        """Bytes of the files that are not there yet."""
        sent = set(self.to_send)
        return sum(entry.bytes for entry in self.files if entry.path in sent)


def leaving(made: Plan, place: str) -> Leaving:
    """What a plan would have leave."""
    return Leaving(
        place=place,
        tier=made.tier,
        files=made.entries,
        to_send=made.additions,
        to_remove=made.deletions,
        columns=tuple(column for table in TABLES for column in _columns(made, table)),
        sessions=tuple(sorted(entry.session_id for shard in made.manifest.shards for entry in shard.sessions)),
        licenses=_statements(made, "license"),
        consents=_statements(made, "consent"),
        warnings=made.warnings,
    )


def _columns(made: Plan, table: Table) -> list[LeavingColumn]:
    shards = [shard for shard in made.manifest.shards if table.name in shard.files]
    if not shards:
        return []
    with pq.ParquetFile(made.staged / shards[0].files[table.name].path) as file:
        present = file.schema_arrow.names
        examples = _examples(file, present)
    found = []
    for column in table.columns:
        what = disposition(table, column.name, made.tier)
        if column.name in present or what.action == "removed":
            found.append(
                LeavingColumn(
                    table=table.name,
                    column=column.name,
                    action=what.action,
                    sentence=what.sentence,
                    example=examples.get(column.name),
                )
            )
    return found


def _examples(file: pq.ParquetFile, names: list[str]) -> dict[str, str]:
    """The first value of each column that is not null, among the first rows."""
    if file.num_row_groups == 0:
        return {}
    batch = next(file.iter_batches(batch_size=64))
    found = {}
    for name in names:
        column = batch.column(names.index(name))
        known = column.drop_null()
        values = [value for value in (known.slice(0, 8).to_pylist()) if value not in ([], {}, "")]
        if values:
            found[name] = _short(values[0])
    return found


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 1]}…"


def _statements(made: Plan, column: str) -> tuple[str | None, ...]:
    found: set[str | None] = set()
    for shard in made.manifest.shards:
        if SESSIONS.name in shard.files:
            with pq.ParquetFile(made.staged / shard.files[SESSIONS.name].path) as file:
                if column in file.schema_arrow.names:
                    found.update(file.read(columns=[column]).column(0).unique().to_pylist())
    return tuple(sorted(found, key=lambda value: (value is None, value)))

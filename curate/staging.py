"""A release, made beside the dataset: its tables in one tier, its papers, and a manifest of every file that leaves.

The same folder, tier and earlier withdrawals give the same bytes. What is staged lies in `.private/` of the dataset
until it is sent, so that `--dry-run` shows the very files that would leave.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capture.atomic import write_atomically
from curate import disposition as of
from curate.dataset import Dataset
from curate.disposition import Calls, Change, Pseudonyms
from curate.language import LANGUAGES
from curate.manifest import (
    MANIFEST,
    PRIVATE,
    DatasetFault,
    Drop,
    FileEntry,
    Manifest,
    Receipt,
    SessionEntry,
    Stage,
    Tier,
    content_digest,
    file_entry,
    write_json,
)
from curate.receipts import KEY
from curate.recipe import Recipe
from curate.row import Late, Rows
from curate.sample import over_share
from curate.shard import ROW_GROUP_BYTES, parquet_writer, row_groups
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS
from curate.tier import disposition, staged_table
from curate.viewer import MAX_FILES, write_viewer_files

READ_REASONS = frozenset(
    (
        "same session as one read before",
        "same session as one that another store's recorder saw",
        "an import of a session that is recorded too: `agentdyno capture join` makes one of both",
    )
)
"""Words of ours at the stage `read`; every other says what a reader could not read, in words from the file."""
UNREADABLE = "a recording or a file that cannot be read whole"


def stage(folder: Path, tier: Tier, out: Path) -> Manifest:
    """Make the tables of a tier, and for `text` the viewer's files, in a new folder; gives a manifest without papers.

    Raises DatasetFault when the dataset is not what its manifest says, or holds a column that nobody decided on.
    """
    dataset = Dataset.open(folder)
    wrong = dataset.verify()
    if wrong:
        raise DatasetFault(f"{folder} is not what was built: {wrong[0]}; build the dataset again")
    if dataset.manifest.tier != "full":
        raise DatasetFault(
            f"{folder} is a published dataset already (tier {dataset.manifest.tier}); name the built one"
        )
    if out.is_symlink():
        out.unlink()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(mode=0o700, parents=True)
    names = Pseudonyms(_key(folder))
    old = dataset.manifest
    shards = tuple(_stage_shard(folder, out, shard, old.recipe, tier, names) for shard in old.shards)
    manifest = replace(
        old,
        tier=tier,
        digest=content_digest([entry for shard in shards for entry in shard.sessions]),
        recipe=published_recipe(old.recipe, tier, names),
        rows={table: sum(shard.files[table].rows for shard in shards if table in shard.files) for table in old.rows},
        shards=tuple(sorted(shards, key=lambda shard: shard.input_digest)),
        papers=(),
        drops=_published_drops(old.drops, old.recipe, tier, names),
    )
    if tier == "text":
        write_json(out / MANIFEST, manifest)  # so that the staged tables read as a dataset
        ids = sorted(entry.session_id for shard in shards for entry in shard.sessions)[:MAX_FILES]
        write_viewer_files(out, Dataset.open(out).trajectories(ids))
        (out / MANIFEST).unlink()
    return manifest


def published_recipe(recipe: Recipe, tier: Tier, names: Pseudonyms) -> Recipe:
    """The recipe without the texts that are taken out of the sessions: they are what must not be told.

    Content-free, what it says of models, agents and the values of columns stands as in the columns: as a pseudonym
    where it is not public.
    """
    recipe = replace(recipe, redaction=replace(recipe.redaction, values=(), allow=()))
    if tier != "content-free":
        return recipe
    filters = replace(
        recipe.filters,
        models=tuple(of.model_pattern(each, names) for each in recipe.filters.models),
        not_models=tuple(of.model_pattern(each, names) for each in recipe.filters.not_models),
        harnesses=tuple(of.harness_pattern(each, names) for each in recipe.filters.harnesses),
        not_harnesses=tuple(of.harness_pattern(each, names) for each in recipe.filters.not_harnesses),
        repo_licenses=tuple(of.repo_license(each, names) for each in recipe.filters.repo_licenses),
    )
    values = tuple(_sample_value(recipe, value, names) for value in recipe.sample.values)
    return replace(recipe, filters=filters, sample=replace(recipe.sample, values=values))


def _sample_value(recipe: Recipe, value: str, names: Pseudonyms) -> str:
    """A value that a sample is spread by, as its column shows it."""
    by = recipe.sample.by or ""
    if by == "model":
        return _told(of.model, value, names)
    if by == "language":
        return value if value in LANGUAGES else "other"
    return _told(disposition(SESSIONS, by, "content-free").change, value, names)


def _told(change: Change | None, value: str, names: Pseudonyms) -> str:
    changed = None if change is None else change(value, names)
    return changed if isinstance(changed, str) else "other"


def _key(folder: Path) -> bytes:
    """The key of pseudonyms: derived from the release's, which stays in `.private/` and goes from build to build."""
    path = folder / KEY
    if not path.is_file():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, secrets.token_bytes(32), mode=0o600)
    return hashlib.sha256(b"agentdyno pseudonyms" + path.read_bytes()).digest()


def _published_drops(drops: Sequence[Drop], recipe: Recipe, tier: Tier, names: Pseudonyms) -> tuple[Drop, ...]:
    """The funnel without words of others: readers quote names and lines of files, samples the values of a column."""
    values = {}
    if tier == "content-free":
        values = {
            over_share(recipe.sample, value): _sample_value(recipe, value, names) for value in recipe.sample.values
        }
    merged: dict[tuple[Stage, str], int] = {}
    for drop in drops:
        reason = drop.reason
        if drop.stage == "read" and reason not in READ_REASONS:
            reason = UNREADABLE
        elif drop.stage == "sample" and reason in values:
            reason = over_share(recipe.sample, values[reason])
        merged[drop.stage, reason] = merged.get((drop.stage, reason), 0) + drop.n
    return tuple(Drop(stage=stage, reason=reason, n=n) for (stage, reason), n in merged.items())


def _stage_shard(folder: Path, out: Path, shard: Receipt, recipe: Recipe, tier: Tier, names: Pseudonyms) -> Receipt:
    """One shard in a tier; its files are named by the digest of what they hold."""
    calls = Calls()
    tables = {
        # Requests name the calls in the order of the answers, so they number them.
        table.name: staged_table(table, pq.read_table(folder / shard.files[table.name].path), tier, names, calls)
        for table in (REQUESTS, TOOL_CALLS, SESSIONS)
        if table.name in shard.files
    }
    sessions = tuple(_session_entries([entry.session_id for entry in shard.sessions], tables))
    digest = hashlib.sha256("\n".join((tier, *(entry.digest for entry in sessions))).encode()).hexdigest()
    files = {
        table.name: _write(out, table.name, shard.split, digest, tables[table.name])
        for table in TABLES
        if table.name in tables
    }
    return Receipt(
        input_digest=digest,  # that of the work itself is over words that do not leave
        split=shard.split,
        files=files,
        sessions=sessions,
        drops=_published_drops(shard.drops, recipe, tier, names),
        redactions=shard.redactions,
    )


def _write(out: Path, table: str, split: str, digest: str, rows: pa.Table) -> FileEntry:
    path = out / "data" / table / f"{split}-{digest[:16]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet_writer(path, rows.schema) as writer:
        for piece in row_groups(rows, ROW_GROUP_BYTES):
            writer.write_table(piece, row_group_size=piece.num_rows)
    return file_entry(out, path, rows=len(rows))


def _session_entries(ids: Sequence[str], tables: Mapping[str, pa.Table]) -> Iterator[SessionEntry]:
    """Digests of the staged rows: those of the build are over what does not leave."""
    walks = {name: _by_session(table) for name, table in tables.items()}
    heads: dict[str, tuple[str, list[dict[str, Any]]] | None] = {name: next(walk, None) for name, walk in walks.items()}

    def rows_of(name: str, session_id: str) -> list[dict[str, Any]]:
        head = heads.get(name)
        if head is None or head[0] != session_id:
            return []
        heads[name] = next(walks[name], None)
        return head[1]

    for session_id in ids:
        found = rows_of(SESSIONS.name, session_id)
        session: dict[str, Any] = found[0] if found else {"session_id": session_id}
        rows = Rows(
            session=session,
            requests=rows_of(REQUESTS.name, session_id),
            tool_calls=rows_of(TOOL_CALLS.name, session_id),
        )
        late = Late(
            contributor_peak_agents=session.get("contributor_peak_agents"),
            dup_cluster=session.get("dup_cluster"),
            dup_role=session.get("dup_role"),
        )
        yield SessionEntry(session_id=session_id, digest=late.digest(rows.digest))
    if any(head is not None for head in heads.values()):
        raise DatasetFault("a shard's tables hold sessions in unlike order; build the dataset again")


def _by_session(table: pa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    start = 0
    if "t0_utc" in table.column_names:
        position = table.column_names.index("t0_utc")
        table = table.set_column(position, "t0_utc", table.column(position).cast(pa.int64()))
    for session_id, run in groupby(table.column("session_id").to_pylist()):
        length = sum(1 for _ in run)
        yield session_id, table.slice(start, length).to_pylist()
        start += length


def staged_folder(folder: Path, tier: Tier) -> Path:
    """Where a release of a dataset is staged."""
    return folder / PRIVATE / f"release-{tier}"

"""Gather what risk goes by from the tables of a dataset; what was read once is kept in `.private/`, by row digest."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from capture.atomic import write_atomically
from curate.manifest import PRIVATE, Manifest, Receipt
from curate.redact import IDENTITY_KINDS
from curate.review import leftovers, risk
from curate.review.finding import findings
from curate.review.leftovers import sensitive_files
from curate.review.risk import Evidence
from curate.row import Row
from curate.table import SESSIONS

CACHE = "review-evidence.json"
REPEATED = 50_000  # characters; system prompts and tool definitions are the same in many sessions
BATCH_ROWS = 16  # sessions in memory at one time
_VERSION = f"{risk.VERSION}.{leftovers.VERSION}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cache:
    version: str
    evidence: dict[str, Evidence]  # by the digest of a session's rows


def gather(folder: Path, manifest: Manifest, on_progress: Callable[[int], None] | None = None) -> dict[str, Evidence]:
    """Evidence by session id; tells how many sessions were read. Only shards with new sessions are read."""
    path = folder / PRIVATE / CACHE
    known = _read(path)
    found: dict[str, Evidence] = {}
    done = 0
    for shard in manifest.shards:
        digests = {entry.session_id: entry.digest for entry in shard.sessions}
        new = {session_id for session_id, digest in digests.items() if digest not in known}
        found.update({session_id: known[digest] for session_id, digest in digests.items() if digest in known})
        for session_id, evidence in _of_shard(folder, shard, new):
            found[session_id] = evidence
            done += 1
            if on_progress is not None:
                on_progress(done)
    kept = {entry.digest: found[entry.session_id] for shard in manifest.shards for entry in shard.sessions}
    if kept.keys() != known.keys():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, msgspec.json.encode(_Cache(version=_VERSION, evidence=kept)), mode=0o600)
    return found


def _read(path: Path) -> Mapping[str, Evidence]:
    try:
        cache = msgspec.json.decode(path.read_bytes(), type=_Cache)
    except (OSError, msgspec.MsgspecError):
        return {}
    return cache.evidence if cache.version == _VERSION else {}


def _of_shard(folder: Path, shard: Receipt, wanted: set[str]) -> Iterator[tuple[str, Evidence]]:
    if not wanted:
        return
    if SESSIONS.name not in shard.files:
        for session_id in sorted(wanted):
            yield session_id, evidence_of({}, None)
        return
    with pq.ParquetFile(folder / shard.files[SESSIONS.name].path) as file:
        names = file.schema_arrow.names
        facts = [name for name in _FACTS if name in names]
        texts = [name for name in ("messages", "tools") if name in names]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=facts + texts):
            rows = batch.select(facts).to_pylist()
            for position, row in enumerate(rows):
                if row["session_id"] in wanted:
                    messages = batch.column("messages")[position] if "messages" in names else None
                    if messages is None or not messages.is_valid:
                        yield row["session_id"], evidence_of(row, None)
                    else:
                        tools = batch.column("tools")[position].as_py() or ()
                        yield row["session_id"], evidence_of(row, _texts(messages.values, tools))


_FACTS = ("session_id", "redaction_counts", "capture_quality", "license", "consent")

type Texts = Iterator[tuple[str, bool]]
"""Texts of a session, each with whether it is the arguments of a tool call."""


def _texts(messages: pa.StructArray, tools: Sequence[Row]) -> Texts:
    """Column by column, which is several times faster than message by message."""
    columns = dict(zip((field.name for field in messages.type), messages.flatten(), strict=True))
    for name in ("content", "reasoning_content"):
        for text in columns[name]:
            if text.is_valid:
                yield text.as_py(), False
    for uses in columns["tool_calls"].to_pylist():
        for use in uses or ():
            yield use["function"]["arguments"] or "", True
    for tool in tools:
        yield tool["description"] or "", False
        yield tool["parameters"] or "", False


def _leftovers(text: str) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(found.kind for found in findings(text) if found.group == "leftover").items())


_repeated = functools.lru_cache(maxsize=2_000)(_leftovers)


def evidence_of(session: Row, texts: Texts | None) -> Evidence:
    """Evidence of one session row; `texts` None: it holds none."""
    left: Counter[str] = Counter()
    files: set[str] = set()
    longest = 0
    for text, is_arguments in texts or ():
        longest = max(longest, len(text))
        left.update(dict(_repeated(text) if len(text) <= REPEATED else _leftovers(text)))
        if is_arguments:
            files.update(text[start:end] for start, end in sensitive_files(text))
    del left["sensitive file"]
    counts: list[dict[str, Any]] | None = session.get("redaction_counts")
    quality = session.get("capture_quality") or {}
    return Evidence(
        with_text=texts is not None,
        redacted=counts is not None,
        secrets={count["rule"]: count["n"] for count in counts or () if count["rule"] not in IDENTITY_KINDS},
        identity=sum(count["n"] for count in counts or () if count["rule"] in IDENTITY_KINDS),
        leftovers=dict(sorted(left.items())),
        sensitive_files=tuple(sorted(files)),
        longest_bytes=longest,
        complete=quality.get("complete", False),
        gaps=quality.get("gaps") or 0,
        body_missing=quality.get("body_missing") or 0,
        license=session.get("license"),
        consent=session.get("consent"),
    )

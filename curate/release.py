"""The papers of a release: card, statistics, licence, consent, review, tombstones, and the manifest that lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from capture.atomic import write_atomically
from curate.approval import PublicApproval
from curate.manifest import MANIFEST, Manifest, SessionEntry, file_entry, write_json
from curate.stats import Stats
from curate.table import SESSIONS
from curate.tombstone import Tombstone, tombstone_lines
from curate.viewer import FOLDER as TRACES
from curate.withdrawn import WITHDRAWN, write_withdrawn
from curate.words import count

LICENSE = "LICENSE.md"
CONSENT = "CONSENT.md"
REVIEW = "review.json"
PREVIOUS = "previous-release.json"
"""Statistics and sessions of the release before: what the card's drift is against, so that the same release is made
again from the same dataset."""
LINKED = 20  # sessions that the card links to in the viewer


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousRelease:
    """What drift is told against."""

    stats: Stats
    sessions: tuple[SessionEntry, ...]


def write_release_papers(
    folder: Path,
    manifest: Manifest,
    *,
    tombstones: Iterable[Tombstone] = (),
    review: PublicApproval | None = None,
    previous: PreviousRelease | None = None,
) -> Manifest:
    """Write all papers of a release whose tables lie in `folder`, and its manifest last; gives the manifest."""
    from curate.card import write_papers

    for name in (LICENSE, CONSENT, REVIEW, WITHDRAWN, PREVIOUS, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    write_withdrawn(folder, tombstone_lines(tombstones))
    if review is not None:
        write_json(folder / REVIEW, {"sentence": review.sentence, **msgspec.to_builtins(review)})
    if previous is not None:
        write_json(folder / PREVIOUS, previous)
    facts = _facts(folder, manifest)
    write_atomically(folder / LICENSE, _license_text(facts).encode())
    write_atomically(folder / CONSENT, _consent_text(facts).encode())
    traces = sorted((folder / TRACES).glob("*.jsonl"))
    text = "\n\n".join(part for part in (manifest.recipe.card, _review_text(review), _viewer_text(traces)) if part)
    papers = write_papers(
        folder,
        replace(manifest, recipe=replace(manifest.recipe, card=text)),
        previous=None if previous is None else previous.stats,
        previous_sessions=None if previous is None else previous.sessions,
    )
    others = [folder / name for name in (LICENSE, CONSENT, REVIEW, WITHDRAWN, PREVIOUS) if (folder / name).is_file()]
    manifest = replace(manifest, papers=tuple(file_entry(folder, path) for path in sorted({*papers, *others, *traces})))
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_previous_release(data: bytes) -> PreviousRelease | None:
    """A `previous-release.json`; None where this version cannot read it."""
    try:
        return msgspec.json.decode(data, type=PreviousRelease)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def previous_release(stats: bytes, manifest: Manifest) -> PreviousRelease | None:
    """A published release as the one before; None where this version cannot read its statistics."""
    sessions = tuple(entry for shard in manifest.shards for entry in shard.sessions)
    try:
        return PreviousRelease(stats=msgspec.json.decode(stats, type=Stats), sessions=sessions)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _review_text(review: PublicApproval | None) -> str:
    return "" if review is None else f"## Review\n\n{review.sentence} `{REVIEW}` has the numbers."


def _viewer_text(traces: Sequence[Path]) -> str:
    """Links to the first sessions of the viewer; the Hub renders such a file as a conversation."""
    if not traces:
        return ""
    links = "\n".join(f"- [`{path.stem}`]({TRACES}/{path.name})" for path in traces[:LINKED])
    more = f"\n\n{len(traces) - LINKED:,} more under `{TRACES}/`." if len(traces) > LINKED else ""
    return (
        f"## Read a session\n\n`{TRACES}/` holds {count(len(traces), 'session')} in Claude Code's log format, one file "
        "each, for the trace viewer; long texts are cut there and whole in the tables. No configuration of this "
        f"dataset loads them.\n\n{links}{more}"
    )


def _facts(folder: Path, manifest: Manifest) -> Counter[tuple[str | None, str | None, str | None]]:
    """(source, licence, consent) → sessions."""
    found: Counter[tuple[str | None, str | None, str | None]] = Counter()
    for shard in manifest.shards:
        if SESSIONS.name in shard.files:
            columns = ["source", "license", "consent"]
            with pq.ParquetFile(folder / shard.files[SESSIONS.name].path) as file:
                for batch in file.iter_batches(columns=columns):
                    found.update(zip(*(batch.column(name).to_pylist() for name in columns), strict=True))
    return found


def _license_text(facts: Counter[tuple[str | None, str | None, str | None]]) -> str:
    from curate.card import ATTRIBUTION
    from curate.card_lengths import code

    by_license: Counter[tuple[str | None, str | None]] = Counter()
    for (source, license_, _), n in facts.items():
        by_license[license_, source] += n
    lines = [
        "# Licences",
        "",
        "The licence of each session stands in the column `license` of `sessions`, as an SPDX identifier; the full",
        "texts are at https://spdx.org/licenses/.",
        "",
        *(
            f"- {count(n, 'session')} of source {code(source or 'unknown')}: "
            f"{'no licence stated' if license_ is None else code(license_)}"
            for (license_, source), n in sorted(by_license.items(), key=str)
        ),
    ]
    if any(license_ is None for license_, _ in by_license):
        lines += ["", "Without a stated licence nobody but the rights holder may use a session."]
    named = [text for source, text in ATTRIBUTION.items() if any(found == source for _, found in by_license)]
    if named:
        lines += ["", "## Attribution", "", *(f"- {text}" for text in named)]
    return "\n".join(lines) + "\n"


def _consent_text(facts: Counter[tuple[str | None, str | None, str | None]]) -> str:
    from curate.card_lengths import code

    by_consent: Counter[str | None] = Counter()
    for (_, _, consent), n in facts.items():
        by_consent[consent] += n
    stated = [
        f"- {count(n, 'session')}: {'no statement of consent recorded' if consent is None else code(consent)}"
        for consent, n in sorted(by_consent.items(), key=str)
    ]
    return "\n".join(
        (
            "# Consent",
            "",
            "What the publisher states about the agreement of those who contributed the sessions; per session in the",
            "column `consent` of `sessions`.",
            "",
            *stated,
            "",
            f"A contributor may withdraw a session; `{WITHDRAWN}` lists those that were. Copies that others made",
            "before cannot be called back.",
            "",
        )
    )

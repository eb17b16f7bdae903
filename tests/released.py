"""Small datasets to publish: without plots, which take longer than all the rest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from capture.trajectory import Trajectory
from curate.approval import FORMAT, Approval, write_approval
from curate.manifest import MANIFEST, file_sha256, read_manifest
from curate.recipe import Recipe, RedactionPolicy, Statistics
from tests.sample_sessions import content_free_session, make, text_session

CODE_NAME = "Blaumeise"
RECIPE = Recipe(
    name="released",
    license="CC-BY-4.0",
    consent="signed-2026-11",
    statistics=Statistics(plots=False),
    redaction=RedactionPolicy(values=(CODE_NAME,)),
)


def sessions(n: int = 3) -> list[Trajectory]:
    return [text_session(f"session-{number}", turns=2 + number) for number in range(n)] + [content_free_session()]


def built(folder: Path, of: Iterable[Trajectory] | None = None, *, previous: Path | None = None) -> Path:
    make(sessions() if of is None else of, folder, recipe=RECIPE, previous=previous)
    return folder


def approved(folder: Path) -> Path:
    """The dataset with an approval as `curate approve --without-review` writes it."""
    manifest = read_manifest(folder)
    n = sum(len(shard.sessions) for shard in manifest.shards)
    write_approval(
        folder,
        Approval(
            format=FORMAT,
            manifest_sha256=file_sha256(folder / MANIFEST),
            digest=manifest.digest,
            reviewer="somebody",
            at="2026-11-20T00:00:00Z",
            version="0",
            sessions=n,
            approved=n,
            dropped=0,
            unseen=0,
            by_contributors=0,
            without_review=False,
            sample=None,
        ),
    )
    return folder

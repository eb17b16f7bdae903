"""The sessions of a dataset that a reviewer is to look at, the riskiest first, and what was decided about them."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from curate.dataset import Dataset
from curate.manifest import MANIFEST, DatasetFault, Manifest, file_sha256
from curate.review.decision import Decision, Decisions, Standing, Verdict
from curate.review.evidence import gather
from curate.review.risk import Evidence, Risk, risk_of
from curate.review.sampling import Draw, SampleSize, draw
from curate.row import Row
from curate.table import SESSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One session as the queue shows it; None: not known."""

    session_id: str
    digest: str  # of its rows
    contributor: str | None
    harness: str
    models: tuple[str, ...]
    requests: int | None
    context_tokens: int | None  # longest prompt
    risk: Risk


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How far a review is."""

    sessions: int
    approved: int
    dropped: int
    stale: int  # decided before a rebuild changed them
    undecided: int  # stale ones included

    @classmethod
    def of(cls, standings: Mapping[str, Standing]) -> Tally:
        """Count standings."""
        counts = Counter(standing.state for standing in standings.values())
        return cls(
            sessions=len(standings),
            approved=counts["approved"],
            dropped=counts["dropped"],
            stale=counts["stale"],
            undecided=counts["stale"] + counts["undecided"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A dataset under review, as one reviewer or contributor may see it."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    cases: dict[str, Case]  # by session id, the riskiest first; only those to be looked at
    decisions: Decisions
    contributor: str | None
    draw: Draw | None  # None: all sessions

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        contributor: str | None = None,
        sample: SampleSize | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Queue:
        """Read a finished dataset; reads every byte of it, so that what is shown is what the manifest names.

        Raises DatasetFault for a folder that is no finished dataset or was changed since it was built, and where a
        contributor has no session in it.
        """
        # Before the folder is opened: if it is built again meanwhile, the older sum refuses all decisions.
        sha256 = file_sha256(folder / MANIFEST) if (folder / MANIFEST).is_file() else ""
        dataset = Dataset.open(folder)
        check_bytes(dataset)
        every = _cases(dataset, gather(folder, dataset.manifest, on_progress))
        chosen = None
        if contributor is not None:
            cases = [case for case in every if case.contributor == contributor]
            if not cases:
                known = sorted({case.contributor for case in every if case.contributor})
                said = f"it has {', '.join(known[:5])}{' …' if len(known) > 5 else ''}" if known else "it names none"
                raise DatasetFault(f"{folder} has no session of contributor {contributor!r}; {said}")
        else:
            cases = every
            if sample is not None:
                chosen = _draw(sample, dataset.manifest, every)
                cases = [case for case in every if case.session_id in chosen]
        return cls(
            folder=folder,
            manifest=dataset.manifest,
            manifest_sha256=sha256,
            cases={case.session_id: case for case in cases},
            decisions=Decisions(folder),
            contributor=contributor,
            draw=chosen,
        )

    @property
    def unchanged(self) -> bool:
        """Whether the folder still holds the build that was opened."""
        path = self.folder / MANIFEST
        return path.is_file() and file_sha256(path) == self.manifest_sha256

    def drawn(self, sample: SampleSize) -> Draw:
        """The sample of a queue that was opened whole."""
        return _draw(sample, self.manifest, self.cases.values())

    def standings(self) -> dict[str, Standing]:
        """What holds for each case now."""
        return self.decisions.standings({case.session_id: case.digest for case in self.cases.values()})

    def standing(self, case: Case) -> Standing:
        """What holds for one case now."""
        return self.decisions.standing(case.session_id, case.digest)

    def decide(self, case: Case, verdict: Verdict, *, reason: str | None, reviewer: str, version: str) -> Standing:
        """Write a decision to the disk; gives what holds then."""
        self.decisions.append(
            Decision(
                session_id=case.session_id,
                digest=case.digest,
                verdict=verdict,
                reason=reason,
                reviewer=reviewer,
                contributor=self.contributor,
                at=now(),
                version=version,
            )
        )
        return self.standing(case)


def now() -> str:
    """The wall time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def check_bytes(dataset: Dataset) -> None:
    """Raises DatasetFault where a file is not as the manifest says."""
    differences = dataset.verify()
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise DatasetFault(
            f"{dataset.folder} was changed since it was built ({differences[0]}{more}); build the dataset again"
        )


def _draw(sample: SampleSize, manifest: Manifest, cases: Iterable[Case]) -> Draw:
    high = {case.session_id: case.risk.level == "high" for case in cases}
    return draw(
        sample,
        manifest.digest,
        (session_id for session_id, is_high in high.items() if is_high),
        (session_id for session_id, is_high in high.items() if not is_high),
    )


_FACTS = ("session_id", "contributor", "harness", "models", "num_requests", "context_tokens_max")


def _cases(dataset: Dataset, evidence: Mapping[str, Evidence]) -> list[Case]:
    facts = _session_facts(dataset)
    seen: set[str] = set()
    cases: list[Case] = []
    for shard in dataset.manifest.shards:
        for entry in shard.sessions:
            row = facts.get(entry.session_id, {})
            harness = row.get("harness") or "unknown"
            cases.append(
                Case(
                    session_id=entry.session_id,
                    digest=entry.digest,
                    contributor=row.get("contributor"),
                    harness=harness,
                    models=tuple(row.get("models") or ()),
                    requests=row.get("num_requests"),
                    context_tokens=row.get("context_tokens_max"),
                    risk=risk_of(evidence[entry.session_id], first_of_harness=harness not in seen),
                )
            )
            seen.add(harness)
    return sorted(cases, key=lambda case: (-case.risk.score, case.session_id))


def _session_facts(dataset: Dataset) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for shard in dataset.manifest.shards:
        if SESSIONS.name in shard.files:
            with pq.ParquetFile(dataset.folder / shard.files[SESSIONS.name].path) as file:
                names = [name for name in _FACTS if name in file.schema_arrow.names]
                found.update({row["session_id"]: row for row in file.read(columns=names).to_pylist()})
    return found

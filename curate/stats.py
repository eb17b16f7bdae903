"""`stats.json`: what a dataset holds, in percentiles; recomputed from the tables, never carried along."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec
import polars as pl

from curate.cache import CacheReuse, IdealCache, ideal_cache
from curate.distribution import PERCENTILE_METHOD
from curate.drift import Drift
from curate.frames import Frames, collect
from curate.manifest import STAGES, DatasetFault, Drop, FileEntry, Manifest, Stage, Tier
from curate.measured import MeasuredRedaction, measured_for
from curate.measurement import measure
from curate.quantities import Quantity
from curate.recipe import PARTS
from curate.table import SESSIONS, TABLES

FORMAT = "agentdyno-stats/2"
STATS = "stats.json"
SOFTWARE = ("agentdyno", "pyarrow", "polars", "tiktoken", "numpy", "altair", "vl-convert-python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Sessions that have something in common."""

    value: str | None
    source: str | None  # what they were read from: `wire` or the name of an importer
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stage of the funnel, in order."""

    stage: Stage
    left_out: int
    kept: int  # after it
    reasons: tuple[Drop, ...]  # the most frequent first


@dataclass(frozen=True, slots=True, kw_only=True)
class Funnel:
    """Sessions read, kept and left out; at the stage `read` also sources that hold an unknown number of them."""

    read: int
    kept: int
    stages: tuple[Step, ...]  # those that left something out


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What was replaced, and what the rules were measured to find."""

    policies: tuple[str, ...]  # of the sessions: rules and their version
    sessions: int  # that went through redaction
    counts: dict[str, int]  # rule → findings replaced
    measured: MeasuredRedaction | None  # None: nobody measured these rules


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTotals:
    """Sums over all requests, auxiliary ones included, of the sessions that one counter counted."""

    counted_by: str  # `provider`, `agent` or the name of a tokenizer
    own: bool  # by the dataset's tokenizer, from the text: the same requests may stand under their provider too
    requests: int  # with a known prompt
    prompt_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The content of `stats.json`."""

    format: str
    digest: str  # of the dataset's content
    tier: Tier
    percentile_method: str
    rows: dict[str, int]  # by table
    splits: dict[str, dict[str, int]]  # split → rows by table
    sessions_with_text: int  # the others are content-free
    tokens: tuple[TokenTotals, ...]
    bytes_up: int | None  # request bodies
    bytes_down: int | None  # response bodies
    quantities: dict[str, Quantity]
    cache: CacheReuse  # of an ideal prefix cache, beside the provider's own
    funnel: Funnel
    withdrawals: int  # sessions taken out after they were published
    redaction: Redaction
    licenses: tuple[Share, ...]
    consent: tuple[Share, ...]
    harnesses: tuple[Share, ...]  # value: name and version
    token_sources: tuple[Share, ...]  # value: `provider`, `agent`, `none` or the tokenizer behind `prompt_tokens`
    outcomes: dict[str, int]  # sessions
    contributors: int | None  # None where no session names one
    models: dict[str, int]  # requests
    languages: dict[str, float]  # mean share over the sessions that name files
    language_sessions: int  # that name any
    complete_sessions: int  # recorder saw all of it, by `capture_quality.complete`
    tokenizer: str  # of our own counts
    tokenizer_sha: str | None
    software: dict[str, str]  # versions that made the tables and this file
    drift: Drift | None = None  # against the release before
    shards: tuple[FileEntry, ...]  # every file of the tables with its SHA-256


def compute_stats(
    frames: Frames, manifest: Manifest, *, cache: IdealCache | None = None, by: tuple[str, ...] | None = None
) -> Stats:
    """Describe a dataset; `by` names the parts (default: the recipe's). Raises DatasetFault for an unknown part."""
    by = manifest.recipe.statistics.by if by is None else by
    for name in by:
        if name not in PARTS:
            raise DatasetFault(f"[statistics] by: unknown part {name!r}; known are {', '.join(PARTS)}")
    cache = ideal_cache(frames) if cache is None else cache
    quantities = measure(frames, cache, by=by, tokenizer=manifest.inputs.tokenizer).quantities
    sessions = frames.sessions
    models = collect(frames.requests.group_by("model").agg(n=pl.len()).sort("n", "model", descending=[True, False]))
    shas = _distinct(sessions, "tokenizer_sha")
    sent = collect(frames.requests.select("bytes_up", "bytes_down"))
    language_mixes = [mix for mix in sessions["lang_mix"].to_list() if mix]
    quality = sessions["capture_quality"].struct.field("complete")
    return Stats(
        format=FORMAT,
        digest=manifest.digest,
        tier=manifest.tier,
        percentile_method=PERCENTILE_METHOD,
        rows=manifest.rows,
        splits={
            split: {table.name: manifest.rows_of(table.name, split) for table in TABLES} for split in _splits(manifest)
        },
        sessions_with_text=0 if manifest.tier == "content-free" else len(sessions) - sessions["tools_sha"].null_count(),
        tokens=_token_totals(frames, manifest.inputs.tokenizer),
        bytes_up=_sum(sent["bytes_up"]),
        bytes_down=_sum(sent["bytes_down"]),
        quantities=quantities,
        cache=cache.total,
        funnel=_funnel(manifest),
        withdrawals=sum(drop.n for drop in manifest.drops if drop.stage == "withdrawn"),
        redaction=_redaction(sessions, manifest),
        licenses=_shares(sessions, "license"),
        consent=_shares(sessions, "consent"),
        harnesses=_shares(
            sessions.with_columns(
                program=pl.concat_str("harness", "harness_version", separator=" ", ignore_nulls=True)
            ),
            "program",
        ),
        token_sources=_shares(sessions, "counter"),
        outcomes=dict(
            sessions["outcome"]
            .fill_null("unknown")
            .value_counts(name="n")
            .sort("n", "outcome", descending=[True, False])
            .iter_rows()
        ),
        contributors=sessions["contributor"].drop_nulls().n_unique() or None,
        models=dict(models.iter_rows()),
        languages=_languages(language_mixes),
        language_sessions=len(language_mixes),
        complete_sessions=int(quality.fill_null(value=False).sum()),
        tokenizer=manifest.inputs.tokenizer,
        tokenizer_sha=shas[0] if shas else None,
        software={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in SOFTWARE}},
        shards=tuple(entry for shard in manifest.shards for entry in shard.files.values()),
    )


def _splits(manifest: Manifest) -> tuple[str, ...]:
    """The splits that hold rows, the recipe's first."""
    others = dict.fromkeys(shard.split for shard in manifest.shards if shard.files)
    return tuple(dict.fromkeys((*(name for name in manifest.splits if name in others), *others)))


def _funnel(manifest: Manifest) -> Funnel:
    kept = manifest.rows.get(SESSIONS.name) or len({e.session_id for s in manifest.shards for e in s.sessions})
    ordered = sorted(manifest.drops, key=lambda drop: (STAGES.index(drop.stage), -drop.n, drop.reason))
    remaining = read = kept + sum(drop.n for drop in ordered)
    steps = []
    for stage, drops in groupby(ordered, key=lambda drop: drop.stage):
        reasons = tuple(drops)
        left_out = sum(drop.n for drop in reasons)
        remaining -= left_out
        steps.append(Step(stage=stage, left_out=left_out, kept=remaining, reasons=reasons))
    return Funnel(read=read, kept=kept, stages=tuple(steps))


def _redaction(sessions: pl.DataFrame, manifest: Manifest) -> Redaction:
    counts: dict[str, int] = {}
    for shard in manifest.shards:
        for rule, n in shard.redactions.items():
            counts[rule] = counts.get(rule, 0) + n
    policies = _distinct(sessions, "redaction_policy")
    measured = [measured_for(_rules(policy)) for policy in policies]
    same = bool(measured) and measured[0] is not None and all(each == measured[0] for each in measured)
    return Redaction(
        policies=policies,
        sessions=len(sessions) - sessions["redaction_policy"].null_count(),
        counts=dict(sorted(counts.items())),
        measured=measured[0] if same else None,
    )


def _rules(policy: str) -> str:
    """The rules of a policy: without what tells of a recorder's secrets or a recipe's texts."""
    parts = policy.removesuffix("-without-scanner").split("+")
    return "+".join(part for part in parts if part not in ("seen", "values", "allow"))


def _token_totals(frames: Frames, tokenizer: str) -> tuple[TokenTotals, ...]:
    names = ("prompt_tokens", "cache_read_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens")
    counters = frames.sessions["counter"].gather(frames.numbers(frames.requests))
    sums = [
        expr for name in names for expr in (pl.col(name).sum().alias(name), pl.col(name).count().alias(f"n_{name}"))
    ]
    found = (
        collect(frames.requests.select(*names))
        .with_columns(counter=counters)
        .filter(pl.col("counter").is_not_null() & (pl.col("counter") != "none"))
        .group_by("counter")
        .agg(sums)
        .sort("counter")
    )
    totals = [
        TokenTotals(
            counted_by=row["counter"],
            own=False,
            requests=row["n_prompt_tokens"],
            **{name: row[name] if row[f"n_{name}"] else None for name in names},
        )
        for row in found.iter_rows(named=True)
    ]
    own = collect(frames.requests.select(pl.col("prompt_tokens_est").sum(), n=pl.col("prompt_tokens_est").count())).row(
        0
    )
    if own[1]:
        totals.append(
            TokenTotals(
                counted_by=tokenizer,
                own=True,
                requests=int(own[1]),
                prompt_tokens=int(own[0]),
                cache_read_tokens=None,
                cache_write_tokens=None,
                completion_tokens=None,
                reasoning_tokens=None,
            )
        )
    return tuple(totals)


def _sum(values: pl.Series) -> int | None:
    return int(values.sum()) if len(values) > values.null_count() else None


def _distinct(frame: pl.DataFrame, column: str) -> tuple[str, ...]:
    return tuple(frame[column].drop_nulls().unique().sort().to_list())


def _shares(sessions: pl.DataFrame, column: str) -> tuple[Share, ...]:
    counts = sessions.group_by(column, "source").len().sort("len", column, "source", descending=[True, False, False])
    return tuple(Share(value=value, source=source, sessions=n) for value, source, n in counts.iter_rows())


def _languages(mixes: list[list[dict[str, object]]]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for mix in mixes:
        for part in mix:
            language, share = str(part["lang"]), part["share"]
            assert isinstance(share, float)
            shares[language] = shares.get(language, 0.0) + share / len(mixes)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def read_stats(folder: Path) -> Stats:
    """Read a dataset's `stats.json`; raises DatasetFault when it is missing or of another version."""
    path = folder / STATS
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stats)
    except FileNotFoundError as fault:
        raise DatasetFault(f"{path} is missing; build the dataset again") from fault
    except msgspec.MsgspecError as fault:
        raise DatasetFault(f"{path} cannot be read: {fault}; build the dataset again") from fault

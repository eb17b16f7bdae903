"""`stats.json`: what a dataset holds, in percentiles; recomputed from the tables, never carried along."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl

from curate.distribution import PERCENTILE_METHOD, Distribution, describe
from curate.manifest import DatasetFault, FileEntry, Manifest
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS

FORMAT = "agentdyno-stats/1"
STATS = "stats.json"
SOFTWARE = ("agentdyno", "pyarrow", "polars", "tiktoken", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One quantity over the whole dataset and over its parts."""

    of: str  # the table whose rows it describes
    unit: str
    sentence: str
    all: Distribution
    by_model: dict[str, Distribution]  # of a session: the model that it called most
    by_harness: dict[str, Distribution]
    by_kind: dict[str, Distribution]  # kind of tool or of gap; empty where there is no such thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Sessions that have something in common."""

    value: str | None
    source: str | None
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why sessions (or sources that hold them) were left out."""

    reason: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Funnel:
    """Sessions read, kept and left out."""

    read: int
    kept: int
    dropped: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """Findings that were replaced, by rule."""

    policies: tuple[str, ...]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The content of `stats.json`."""

    format: str
    digest: str  # of the dataset
    percentile_method: str
    rows: dict[str, int]
    sessions_with_text: int  # the others are content-free
    totals: dict[str, int | None]
    quantities: dict[str, Quantity]
    funnel: Funnel
    redaction: Redaction
    licenses: tuple[Share, ...]
    consent: tuple[Share, ...]
    harnesses: tuple[Share, ...]  # value: name and version
    token_sources: tuple[Share, ...]  # value: `provider`, or the tokenizer behind prompt_tokens and completion_tokens
    models: dict[str, int]  # requests
    languages: dict[str, float]  # mean share over the sessions that name files
    tokenizer: str
    tokenizer_sha: str | None
    software: dict[str, str]
    shards: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """The tables without their texts and long lists, each row with the model and harness it counts under."""

    sessions: pl.DataFrame
    requests: pl.DataFrame
    tool_calls: pl.DataFrame


def read_frames(folder: Path, manifest: Manifest) -> Frames:
    """Load the scalar columns of the tables a manifest names."""
    leave_out = {"messages", "prompt", "tools", "tool_sets", "block_hashes", "itl_us", "prompt_spans"}
    raw = {
        table.name: pl.concat(
            pl.read_parquet(
                folder / shard.files[table.name].path,
                columns=[column.name for column in table.columns if column.name not in leave_out],
            )
            for shard in manifest.shards
        )
        for table in TABLES
    }
    requests = raw[REQUESTS.name].join(
        raw[SESSIONS.name].select("session_id", "harness"), on="session_id", how="left", maintain_order="left"
    )
    main_model = (
        requests.group_by("session_id", "model", maintain_order=True)
        .len()
        .sort("len", descending=True, maintain_order=True)
        .unique("session_id", keep="first", maintain_order=True)
        .select("session_id", "model")
    )
    sessions = (
        raw[SESSIONS.name]
        .join(main_model, on="session_id", how="left", maintain_order="left")
        .join(_per_session(requests), on="session_id", how="left", maintain_order="left")
    )
    tool_calls = raw[TOOL_CALLS.name].join(
        requests.select("session_id", "request_index", "model", "harness"),
        on=["session_id", "request_index"],
        how="left",
        maintain_order="left",
    )
    return Frames(sessions=sessions, requests=requests, tool_calls=tool_calls)


def _per_session(requests: pl.DataFrame) -> pl.DataFrame:
    """Turns and peak concurrency of each session."""
    timed = requests.filter(pl.col("t_send_us").is_not_null() & pl.col("t_end_us").is_not_null())
    events = pl.concat(
        [
            timed.select("session_id", t="t_send_us", step=pl.lit(1, pl.Int32)),
            timed.select("session_id", t="t_end_us", step=pl.lit(-1, pl.Int32)),
        ]
    ).sort("session_id", "t", "step")  # an end at the moment of a send comes first: they never overlapped
    peaks = (
        events.with_columns(open=pl.col("step").cum_sum().over("session_id"))
        .group_by("session_id")
        .agg(peak=pl.col("open").max())
    )
    turns = requests.group_by("session_id").agg(turns=(pl.col("agent_path") == "main").sum())
    return turns.join(peaks, on="session_id", how="left")


def _known(condition: pl.Expr, value: str) -> pl.Expr:
    """A column's value where a condition holds, else unknown."""
    return pl.when(condition).then(pl.col(value))


# name, unit, sentence, value, kind
type _Entry = tuple[str, str, str, pl.Expr, str | None]

SESSION_QUANTITIES: tuple[_Entry, ...] = (
    ("requests_per_session", "requests", "Calls to a model, sub-agents included", pl.col("num_requests"), None),
    ("turns_per_session", "requests", "Calls to a model on the main chain", pl.col("turns"), None),
    ("user_messages_per_session", "messages", "Messages a human wrote", pl.col("num_user_messages"), None),
    ("tool_calls_per_session", "calls", "Tool calls", pl.col("num_tool_calls"), None),
    ("subagents_per_session", "chains", "Chains besides the main one", pl.col("num_subagents"), None),
    (
        "context_first_tokens",
        "tokens",
        "Prompt of the main chain's first request",
        pl.col("context_tokens_first"),
        None,
    ),
    ("context_last_tokens", "tokens", "Prompt of the main chain's last request", pl.col("context_tokens_last"), None),
    ("context_max_tokens", "tokens", "Longest prompt of the session", pl.col("context_tokens_max"), None),
    ("session_duration_us", "µs", "First send to last end", pl.col("duration_us"), None),
    ("session_api_us", "µs", "Time with at least one request open", pl.col("api_us"), None),
    ("peak_concurrency", "requests", "Most requests of one session open at once", pl.col("peak"), None),
)
REQUEST_QUANTITIES: tuple[_Entry, ...] = (
    (
        "input_tokens",
        "tokens",
        "Prompt, cache reads included",
        pl.coalesce("prompt_tokens", "prompt_tokens_est"),
        None,
    ),
    (
        "new_tokens",
        "tokens",
        "Prompt less what the parent's prompt already held",
        # Both terms by one counter: our own where there is text, else the source's.
        pl.coalesce("prompt_tokens_est", "prompt_tokens") - pl.col("lcp_tokens"),
        None,
    ),
    ("output_tokens", "tokens", "Answer, reasoning included", pl.col("completion_tokens"), None),
    ("reasoning_tokens", "tokens", "Reasoning part of the answer", pl.col("reasoning_tokens"), None),
    (
        "cache_read_share",
        "share",
        "Part of the prompt that the provider read from its cache",
        _known(pl.col("prompt_tokens") > 0, "cache_read_tokens") / pl.col("prompt_tokens"),
        None,
    ),
    ("ttft_us", "µs", "Send to the first content", pl.col("t_first_token_us") - pl.col("t_send_us"), None),
    ("request_us", "µs", "Send to the last byte", pl.col("t_end_us") - pl.col("t_send_us"), None),
    (
        "gap_us",
        "µs",
        "End of a chain's request to the send of its next",
        pl.col("gap_us"),
        "gap_kind",
    ),
    (
        "human_gap_us",
        "µs",
        "Human part of a gap, where there was one",
        _known(pl.col("think_us") > 0, "think_us"),
        None,
    ),
)
TOOL_CALL_QUANTITIES: tuple[_Entry, ...] = (
    (
        "tool_wall_us",
        "µs",
        "Answer's last byte to the send of the result; unknown where human time came in between",
        _known(~pl.col("mixed"), "wall_us"),
        "kind",
    ),
    ("tool_internal_us", "µs", "Duration that the agent itself declares", pl.col("internal_us"), "kind"),
    ("tool_result_tokens", "tokens", "Result of a tool call", pl.col("result_tokens"), "kind"),
)


def compute_stats(frames: Frames, manifest: Manifest) -> Stats:
    """Describe a dataset."""
    quantities: dict[str, Quantity] = {}
    for table, frame, entries in (
        (SESSIONS, frames.sessions, SESSION_QUANTITIES),
        # Token counts, titles and probes are no turns: they would pull every percentile down.
        (REQUESTS, frames.requests.filter(pl.col("kind") == "turn"), REQUEST_QUANTITIES),
        (TOOL_CALLS, frames.tool_calls, TOOL_CALL_QUANTITIES),
    ):
        for name, unit, sentence, value, kind in entries:
            quantities[name] = _quantity(frame, table.name, unit, sentence, value, kind)
    kept = manifest.rows[SESSIONS.name]
    sessions = frames.sessions
    redactions: dict[str, int] = {}
    for shard in manifest.shards:
        for rule, n in shard.redactions.items():
            redactions[rule] = redactions.get(rule, 0) + n
    shas = _distinct(sessions, "tokenizer_sha")
    return Stats(
        format=FORMAT,
        digest=manifest.digest,
        percentile_method=PERCENTILE_METHOD,
        rows=manifest.rows,
        sessions_with_text=len(sessions) - sessions["tokenizer"].null_count(),
        totals={
            name: _total(frames.requests, name)
            for name in (
                "prompt_tokens",
                "cache_read_tokens",
                "cache_write_tokens",
                "completion_tokens",
                "reasoning_tokens",
                "bytes_up",
                "bytes_down",
            )
        },
        quantities=quantities,
        funnel=Funnel(
            read=kept + sum(drop.n for drop in manifest.drops),
            kept=kept,
            dropped=tuple(
                Reason(reason=drop.reason, n=drop.n)
                for drop in sorted(manifest.drops, key=lambda drop: (-drop.n, drop.reason))
            ),
        ),
        redaction=Redaction(policies=_distinct(sessions, "redaction_policy"), counts=dict(sorted(redactions.items()))),
        licenses=_shares(sessions, "license"),
        consent=_shares(sessions, "consent"),
        harnesses=_shares(
            sessions.with_columns(
                program=pl.concat_str("harness", "harness_version", separator=" ", ignore_nulls=True)
            ),
            "program",
        ),
        token_sources=_shares(
            sessions.with_columns(counted_by=pl.coalesce("source_tokenizer", "token_source")), "counted_by"
        ),
        models=dict(
            frames.requests["model"]
            .value_counts(sort=True, name="n")
            .sort("n", "model", descending=[True, False])
            .iter_rows()
        ),
        languages=_languages(sessions),
        tokenizer=manifest.inputs.tokenizer,
        tokenizer_sha=shas[0] if shas else None,
        software={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in SOFTWARE}},
        shards=tuple(entry for shard in manifest.shards for entry in shard.files.values()),
    )


def _quantity(frame: pl.DataFrame, of: str, unit: str, sentence: str, value: pl.Expr, kind: str | None) -> Quantity:
    valued = frame.with_columns(value.cast(pl.Float64).alias("_value"))
    share = unit == "share"

    def by(column: str | None) -> dict[str, Distribution]:
        if column is None:
            return {}
        parts = valued.filter(pl.col(column).is_not_null()).partition_by(column, as_dict=True, maintain_order=True)
        return {
            str(key[0]): describe(part["_value"].to_numpy(), share=share)
            for key, part in sorted(parts.items(), key=lambda item: str(item[0][0]))
        }

    return Quantity(
        of=of,
        unit=unit,
        sentence=sentence,
        all=describe(valued["_value"].to_numpy(), share=share),
        by_model=by("model"),
        by_harness=by("harness"),
        by_kind=by(kind),
    )


def _distinct(frame: pl.DataFrame, column: str) -> tuple[str, ...]:
    return tuple(frame[column].drop_nulls().unique().sort().to_list())


def _total(requests: pl.DataFrame, column: str) -> int | None:
    known = requests[column].drop_nulls()
    return int(known.sum()) if len(known) else None


def _shares(sessions: pl.DataFrame, column: str) -> tuple[Share, ...]:
    counts = sessions.group_by(column, "source").len().sort("len", column, "source", descending=[True, False, False])
    return tuple(Share(value=value, source=source, sessions=n) for value, source, n in counts.iter_rows())


def _languages(sessions: pl.DataFrame) -> dict[str, float]:
    mixes = [mix for mix in sessions["lang_mix"].to_list() if mix]
    shares: dict[str, float] = {}
    for mix in mixes:
        for part in mix:
            shares[part["lang"]] = shares.get(part["lang"], 0.0) + part["share"] / len(mixes)
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

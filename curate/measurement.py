"""Every quantity taken from a dataset's tables: whole columns at a time, one quantity after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from curate.cache import IdealCache
from curate.distribution import describe
from curate.frames import SESSION_PARTS, Frames, collect
from curate.quantities import (
    CONTRIBUTOR_MEASURES,
    CONTRIBUTORS,
    REQUEST_MEASURES,
    SESSION_MEASURES,
    TOOL_CALL_MEASURES,
    Measure,
    Quantity,
    counted_name,
)
from curate.table import REQUESTS, SESSIONS, TOOL_CALLS

PARTS_DESCRIBED = 40  # most frequent models, languages, …; a contributor column may hold thousands
PROVIDER = "provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was taken from the tables."""

    quantities: dict[str, Quantity]
    sessions: pl.DataFrame  # of `Frames`, with `model`, the one called most, and what only requests tell


def measure(
    frames: Frames, cache: IdealCache, *, by: Sequence[str], tokenizer: str | None, only: frozenset[str] | None = None
) -> Measured:
    """Take every quantity, or those named in `only` (without a counter's suffix), whole and by parts."""
    turns = frames.turns
    numbers = frames.numbers(turns)
    sessions = frames.sessions.join(
        _per_session(frames, turns, numbers), on="session", how="left", maintain_order="left"
    )
    quantities: dict[str, Quantity] = {}

    def take(measures: Sequence[Measure], rows: _Rows) -> None:
        for each in measures:
            if only is None or each.name in only:
                quantities.update(rows.quantities(each))

    take(
        SESSION_MEASURES,
        _Rows(
            of=SESSIONS.name,
            frame=sessions.lazy(),
            labels={name: sessions[name] for name in by},
            counters=sessions["counter"],
            tokenizer=tokenizer,
        ),
    )
    contributors = (
        sessions.filter(pl.col("contributor").is_not_null())
        .group_by("contributor", maintain_order=True)
        .agg(pl.col("contributor_peak_agents").max())
    )
    take(
        CONTRIBUTOR_MEASURES,
        _Rows(of=CONTRIBUTORS, frame=contributors.lazy(), labels={}, counters=None, tokenizer=tokenizer),
    )
    take(
        REQUEST_MEASURES,
        _Rows(
            of=REQUESTS.name,
            frame=turns,
            labels=_labels(by, sessions, numbers, turns),
            counters=sessions["counter"].gather(numbers),
            tokenizer=tokenizer,
            ready={
                "ideal_cache_share_chain": cache.chain,
                "ideal_cache_share_session": cache.session,
                "itl_us": _itl(frames),
            },
        ),
    )
    calls = _with_model(frames.tool_calls, frames.requests) if "model" in by else frames.tool_calls
    call_numbers = frames.numbers(frames.tool_calls)
    take(
        TOOL_CALL_MEASURES,
        _Rows(
            of=TOOL_CALLS.name,
            frame=calls,
            labels=_labels(by, sessions, call_numbers, calls),
            counters=sessions["counter"].gather(call_numbers),
            tokenizer=tokenizer,
        ),
    )
    return Measured(quantities=quantities, sessions=sessions)


def _labels(by: Sequence[str], sessions: pl.DataFrame, numbers: np.ndarray, rows: pl.LazyFrame) -> dict[str, pl.Series]:
    return {
        name: sessions[name].cast(pl.Categorical).gather(numbers)
        if name in SESSION_PARTS
        else collect(rows.select(pl.col(name).cast(pl.Categorical))).to_series()
        for name in by
    }


def _with_model(calls: pl.LazyFrame, requests: pl.LazyFrame) -> pl.LazyFrame:
    """Tool calls with the model whose answer held them."""
    models = collect(requests.select("session_id", "request_index", "model"))
    joined = collect(
        calls.select("session_id", "request_index").join(
            models.lazy(), on=["session_id", "request_index"], how="left", maintain_order="left"
        )
    )
    return calls.with_columns(model=pl.lit(joined["model"]))


def _itl(frames: Frames) -> np.ndarray:
    """One file at a time: the lists of a large dataset do not fit in memory together."""
    pieces = [
        collect(part.select(pl.col("itl_us").list.median().cast(pl.Float64))).to_series().to_numpy()
        for part in frames.turns_by_file()
    ]
    return np.concatenate(pieces) if pieces else np.empty(0)


def _per_session(frames: Frames, turns: pl.LazyFrame, numbers: np.ndarray) -> pl.DataFrame:
    """What only the requests tell of a session."""
    held = collect(
        turns.select(
            pl.col("agent_path", "model").cast(pl.Categorical), "retry_of", "prompt_tokens", "prompt_tokens_est"
        )
    ).with_columns(session=pl.Series(numbers))
    main = held.filter(pl.col("agent_path") == "main")
    prompts = ("prompt_tokens", "prompt_tokens_est")
    per_session = held.group_by("session").agg(
        retries=pl.col("retry_of").count(), **{f"max_{prompt}": pl.col(prompt).max() for prompt in prompts}
    )
    per_main = main.group_by("session").agg(
        turns=pl.len(),
        **{f"first_{prompt}": pl.col(prompt).drop_nulls().first() for prompt in prompts},
        **{f"last_{prompt}": pl.col(prompt).drop_nulls().last() for prompt in prompts},
        **{f"main_max_{prompt}": pl.col(prompt).max() for prompt in prompts},
    )
    models = (
        held.group_by("session", "model")
        .len()
        .with_columns(pl.col("model").cast(pl.String))
        .sort("session", "len", "model", descending=[False, True, False])
        .unique("session", keep="first", maintain_order=True)
        .select("session", "model")
    )
    return (
        frames.sessions.select("session")
        .join(per_session, on="session", how="left", maintain_order="left")
        .join(per_main, on="session", how="left", maintain_order="left")
        .join(models, on="session", how="left", maintain_order="left")
        .join(concurrency(frames), on="session", how="left", maintain_order="left")
        .with_columns(pl.col("turns").fill_null(0))
    )


def concurrency(frames: Frames) -> pl.DataFrame:
    """Most requests open at once and the sum of their times, auxiliary calls included."""
    timed = collect(frames.requests.select("t_send_us", "t_end_us")).with_columns(
        session=pl.Series(frames.numbers(frames.requests))
    )
    timed = timed.filter(pl.col("t_send_us").is_not_null() & pl.col("t_end_us").is_not_null())
    events = pl.concat(
        [
            timed.select("session", t="t_send_us", step=pl.lit(1, pl.Int8)),
            timed.select("session", t="t_end_us", step=pl.lit(-1, pl.Int8)),
        ]
    ).sort("session", "t", "step")  # an end at the moment of a send comes first: they never overlapped
    # Over all sessions in one go: each ends with nothing open.
    peaks = (
        events.with_columns(open=pl.col("step").cast(pl.Int32).cum_sum())
        .group_by("session")
        .agg(peak=pl.col("open").max())
    )
    spent = timed.group_by("session").agg(open_us=(pl.col("t_end_us") - pl.col("t_send_us")).sum())
    return peaks.join(spent, on="session", how="left")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    """Some rows, and their positions by the value of each label."""

    rows: np.ndarray | None  # None: all
    parts: dict[str, dict[str, np.ndarray]]


@dataclass(kw_only=True)
class _Rows:
    """Rows of one table and how they are parted."""

    of: str
    frame: pl.LazyFrame
    labels: Mapping[str, pl.Series]
    counters: pl.Series | None
    tokenizer: str | None
    ready: Mapping[str, np.ndarray] = field(default_factory=dict)
    _selections: dict[tuple[str | None, str | None], _Selection] = field(default_factory=dict)

    def quantities(self, each: Measure) -> dict[str, Quantity]:
        """One quantity by its name; several where several counted."""
        values = self._values(each)
        if each.counter != "source" or self.counters is None:
            counted_by = self.tokenizer if each.counter == "own" else None
            return {each.name: self._quantity(each, values, self._selection(None, each.kind), counted_by)}
        # The provider's always, so that a reader finds it by name; nobody counts where the source has no counts.
        counters = [PROVIDER, *sorted({name for name in self.counters.unique() if name} - {PROVIDER, "none"})]
        return {
            counted_name(each.name, name): self._quantity(each, values, self._selection(name, each.kind), name)
            for name in counters
        }

    def _values(self, each: Measure) -> np.ndarray:
        if each.value is None:
            return self.ready[each.name]
        return collect(self.frame.select(each.value.cast(pl.Float64))).to_series().to_numpy()

    def _selection(self, counter: str | None, kind: str | None) -> _Selection:
        found = self._selections.get((counter, kind))
        if found is None:
            rows = None
            if counter is not None and self.counters is not None:
                chosen = (self.counters == counter).fill_null(value=False).to_numpy()
                rows = None if chosen.all() else np.flatnonzero(chosen)
            if counter is not None and rows is None:  # one counter for all: nothing to choose
                found = self._selection(None, kind)
            elif kind is not None:
                kinds = collect(self.frame.select(pl.col(kind).cast(pl.Categorical))).to_series()
                parts = self._selection(counter, None).parts
                found = _Selection(rows=rows, parts={**parts, "kind": _parts(kinds, rows)})
            else:
                found = _Selection(
                    rows=rows, parts={name: _parts(series, rows) for name, series in self.labels.items()}
                )
            self._selections[counter, kind] = found
        return found

    def _quantity(self, each: Measure, values: np.ndarray, selection: _Selection, counted_by: str | None) -> Quantity:
        share = each.unit == "share"
        whole = describe(values if selection.rows is None else values[selection.rows], share=share)
        parts = selection.parts if whole.n else {}
        return Quantity(
            of=self.of,
            unit=each.unit,
            sentence=each.sentence,
            counted_by=counted_by,
            all=whole,
            by={
                label: {name: describe(values[rows], share=share) for name, rows in positions.items()}
                for label, positions in parts.items()
            },
        )


def _parts(labels: pl.Series, rows: np.ndarray | None) -> dict[str, np.ndarray]:
    """Positions of the rows with each of the most frequent labels, the labels in their order."""
    chosen = (labels if rows is None else labels.gather(rows)).cast(pl.Categorical)
    counts = chosen.drop_nulls().value_counts(name="n").with_columns(pl.first().cast(pl.String))
    names = sorted(counts.sort("n", chosen.name, descending=[True, False])[chosen.name].head(PARTS_DESCRIBED).to_list())
    if not names:
        return {}
    codes = (
        chosen.replace_strict(names, range(len(names)), default=len(names), return_dtype=pl.Int16)
        .fill_null(len(names))
        .to_numpy()
    )
    order = np.argsort(codes, kind="stable").astype(np.uint32)
    starts = np.searchsorted(codes[order], range(len(names) + 1))
    return {
        name: order[starts[at] : starts[at + 1]] if rows is None else rows[order[starts[at] : starts[at + 1]]]
        for at, name in enumerate(names)
    }

"""The quantities of `stats.json`: what each is, over which rows, counted by whom.

Token counts of two counters are never mixed in one percentile. What the source counted has one quantity per counter:
the bare name is the provider's, another counter stands behind it (`prompt_tokens_agent`, `prompt_tokens_cl100k_base`).
What ends in `_est` is our own count by the dataset's tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from curate.distribution import Distribution
from curate.table import REQUESTS, SESSIONS, TOOL_CALLS

OWN = "_est"
CONTRIBUTORS = "contributors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One quantity over the whole dataset and over its parts."""

    of: str  # the table whose rows it describes; `contributors` has a row per contributor
    unit: str  # tokens | µs | share | ratio | tokens/s | requests | …
    sentence: str
    counted_by: str | None  # of tokens: `provider`, `agent` (its log) or the name of a tokenizer
    all: Distribution
    # `model` (of a session: the one that it called most), `harness`, … and `kind` of tool or gap; the most frequent 40
    by: dict[str, dict[str, Distribution]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How a quantity is taken from the rows of a table."""

    name: str
    of: str
    unit: str
    sentence: str
    value: pl.Expr | None  # None: computed elsewhere, under this name
    kind: str | None = None  # column whose values part it as well
    counter: str | None = None  # who counted: `source`, whoever counted the session, or `own`, the dataset's tokenizer


def _known(condition: pl.Expr, value: pl.Expr) -> pl.Expr:
    """A value where a condition holds, else unknown."""
    return pl.when(condition).then(value)


def _ratio(above: str, below: str) -> pl.Expr:
    return _known(pl.col(below) > 0, pl.col(above) / pl.col(below))


def _by_both(
    name: str, of: str, unit: str, sentence: str, value: Callable[[str], pl.Expr], *, source: pl.Expr | None = None
) -> tuple[Measure, Measure]:
    """A quantity of prompts as the source counted them, and as we do."""
    return (
        Measure(
            name=name,
            of=of,
            unit=unit,
            sentence=sentence,
            value=value("prompt_tokens") if source is None else source,
            counter="source",
        ),
        Measure(name=name + OWN, of=of, unit=unit, sentence=sentence, value=value("prompt_tokens_est"), counter="own"),
    )


def _of_sessions(name: str, unit: str, sentence: str, value: pl.Expr) -> Measure:
    return Measure(name=name, of=SESSIONS.name, unit=unit, sentence=sentence, value=value)


SESSION_MEASURES = (
    _of_sessions("requests_per_session", "requests", "Calls to a model, sub-agents included", pl.col("num_requests")),
    _of_sessions("turns_per_session", "requests", "Calls to a model on the main chain", pl.col("turns")),
    _of_sessions("user_messages_per_session", "messages", "Messages a human wrote", pl.col("num_user_messages")),
    _of_sessions("tool_calls_per_session", "calls", "Tool calls", pl.col("num_tool_calls")),
    _of_sessions("subagents_per_session", "chains", "Chains besides the main one", pl.col("num_subagents")),
    _of_sessions(
        "compactions_per_session",
        "compactions",
        "Times the context was summarised and started over",
        pl.col("num_compactions"),
    ),
    _of_sessions("errors_per_session", "requests", "Requests that ended in an error", pl.col("num_errors")),
    _of_sessions("retries_per_session", "requests", "Requests that repeat another", pl.col("retries")),
    *_by_both(
        "context_first_tokens",
        SESSIONS.name,
        "tokens",
        "Prompt of the main chain's first turn",
        lambda prompt: pl.col(f"first_{prompt}"),
    ),
    *_by_both(
        "context_last_tokens",
        SESSIONS.name,
        "tokens",
        "Prompt of the main chain's last turn",
        lambda prompt: pl.col(f"last_{prompt}"),
    ),
    *_by_both(
        "context_max_tokens",
        SESSIONS.name,
        "tokens",
        "Longest prompt of the session, on any chain",
        lambda prompt: pl.col(f"max_{prompt}"),
    ),
    *_by_both(
        "context_growth_ratio",
        SESSIONS.name,
        "ratio",
        "Longest prompt of the main chain ÷ its first",
        lambda prompt: _ratio(f"main_max_{prompt}", f"first_{prompt}"),
    ),
    _of_sessions("session_duration_us", "µs", "First send to last end", pl.col("duration_us")),
    _of_sessions("session_api_us", "µs", "Time with at least one request open", pl.col("api_us")),
    _of_sessions("session_tool_us", "µs", "Time with at least one tool gap open", pl.col("tool_us")),
    _of_sessions("session_human_us", "µs", "Time spent waiting for a human", pl.col("human_us")),
    _of_sessions(
        "duty_cycle", "share", "Part of the session with at least one request open", _ratio("api_us", "duration_us")
    ),
    _of_sessions("peak_concurrency", "requests", "Most requests of one session open at once", pl.col("peak")),
    _of_sessions(
        "mean_concurrency",
        "requests",
        "Requests of one session open at once, mean over its time",
        _ratio("open_us", "duration_us"),
    ),
    _of_sessions("peak_agents", "agents", "Most agents of one session at work at once", pl.col("peak_agents")),
)

CONTRIBUTOR_MEASURES = (
    Measure(
        name="active_agents_per_contributor",
        of=CONTRIBUTORS,
        unit="agents",
        sentence="Most agents of one contributor at work at once, over all sessions of the store",
        value=pl.col("contributor_peak_agents"),
    ),
)


def _of_requests(
    name: str, unit: str, sentence: str, value: pl.Expr | None, kind: str | None = None, counter: str | None = None
) -> Measure:
    return Measure(name=name, of=REQUESTS.name, unit=unit, sentence=sentence, value=value, kind=kind, counter=counter)


DECODE_US = pl.col("t_last_token_us") - pl.col("t_first_token_us")
# Reasoning that was counted but not streamed was decoded before the first token: its time is not in the window.
ALL_STREAMED = (pl.col("reasoning_tokens").fill_null(0) == 0) | pl.col("t_first_thinking_us").is_not_null()
CHAIN = ("session_id", "agent_path")

REQUEST_MEASURES = (
    *_by_both("prompt_tokens", REQUESTS.name, "tokens", "Prompt, cache reads included", lambda prompt: pl.col(prompt)),
    *_by_both(
        "growth_tokens",
        REQUESTS.name,
        "tokens",
        "Prompt less the prompt of the chain's turn before; below 0 after a compaction",
        lambda prompt: pl.col(prompt).diff().over(CHAIN),
    ),
    *_by_both(
        "new_tokens",
        REQUESTS.name,
        "tokens",
        "Prompt less the head that the parent's prompt held as well",
        lambda prompt: pl.col(prompt) - pl.col("lcp_tokens"),
        # The head is in our count where there is text, and in blocks of the source's tokens where there is none.
        source=_known(pl.col("prompt_tokens_est").is_null(), pl.col("prompt_tokens") - pl.col("lcp_tokens")),
    ),
    _of_requests(
        "completion_tokens", "tokens", "Answer, reasoning included", pl.col("completion_tokens"), counter="source"
    ),
    _of_requests(
        "reasoning_tokens", "tokens", "Reasoning part of the answer", pl.col("reasoning_tokens"), counter="source"
    ),
    _of_requests(
        "cache_read_share",
        "share",
        "Part of the prompt that was read from the provider's cache",
        _ratio("cache_read_tokens", "prompt_tokens"),
        counter="source",
    ),
    _of_requests(
        "ideal_cache_share_chain",
        "share",
        "Part of the prompt's blocks that the same chain sent before, at the prompt's head",
        None,
    ),
    _of_requests(
        "ideal_cache_share_session",
        "share",
        "Part of the prompt's blocks that the session sent before, at the prompt's head",
        None,
    ),
    _of_requests("ttft_us", "µs", "Send to the first content", pl.col("t_first_token_us") - pl.col("t_send_us")),
    _of_requests("request_us", "µs", "Send to the last byte", pl.col("t_end_us") - pl.col("t_send_us")),
    _of_requests("itl_us", "µs", "Median time between an answer's content events", None),
    _of_requests(
        "output_tokens_per_second",
        "tokens/s",
        "Output tokens per second: those after the first ÷ first to last content, where all reasoning was streamed",
        _known(
            (pl.col("completion_tokens") >= 2) & (DECODE_US > 0) & ALL_STREAMED,
            (pl.col("completion_tokens") - 1) * 1e6 / DECODE_US,
        ),
        counter="source",
    ),
    _of_requests("gap_us", "µs", "End of a chain's request to the send of its next", pl.col("gap_us"), kind="gap_kind"),
    _of_requests(
        "human_gap_us",
        "µs",
        "Human part of a gap, where there was one",
        _known(pl.col("think_us") > 0, pl.col("think_us")),
    ),
    _of_requests(
        "permission_us",
        "µs",
        "Part of a gap that waited for a person's permission, where there was one",
        _known(pl.col("permission_us") > 0, pl.col("permission_us")),
    ),
)


def _of_tool_calls(name: str, unit: str, sentence: str, value: pl.Expr, counter: str | None = None) -> Measure:
    return Measure(
        name=name, of=TOOL_CALLS.name, unit=unit, sentence=sentence, value=value, kind="kind", counter=counter
    )


TOOL_CALL_MEASURES = (
    _of_tool_calls(
        "tool_wall_us",
        "µs",
        "Answer's last byte to the send of the result; unknown where human time came in between",
        _known(~pl.col("mixed"), pl.col("wall_us")),
    ),
    _of_tool_calls("tool_internal_us", "µs", "Duration that the agent itself declares", pl.col("internal_us")),
    _of_tool_calls(
        "tool_permission_us", "µs", "Wait for a person's permission before the call ran", pl.col("permission_us")
    ),
    _of_tool_calls("tool_args_tokens_est", "tokens", "Arguments of a tool call", pl.col("args_tokens"), "own"),
    _of_tool_calls("tool_result_tokens_est", "tokens", "Result of a tool call", pl.col("result_tokens"), "own"),
    _of_tool_calls("tool_result_bytes", "bytes", "Result of a tool call, in bytes", pl.col("result_bytes")),
)


def counted_name(name: str, counter: str) -> str:
    """The name of a quantity as one source counted it: bare for the provider's."""
    if counter == "provider":
        return name
    plain = "".join(letter if letter.isalnum() else "_" for letter in counter.lower())
    return f"{name}_{plain}"


def best_counted(quantities: Mapping[str, Quantity], name: str) -> tuple[str, Quantity] | None:
    """The quantity of that name, by the counter that knows most rows; our own count only where it knows far more."""
    counted = [
        (key, quantity)
        for key, quantity in quantities.items()
        if quantity.all.n
        and (
            key == name
            or (quantity.counted_by is not None and key in (name + OWN, counted_name(name, quantity.counted_by)))
        )
    ]
    if not counted:
        return None
    # Twice: an estimate is no substitute for what was counted where it happened.
    return max(counted, key=lambda item: (item[1].all.n * (1 if item[0] == name + OWN else 2), item[0] == name))

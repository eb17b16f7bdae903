"""The card's tables of percentiles: what the dataset holds, in numbers, with the pictures beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from curate.distribution import Distribution
from curate.drift import Drift
from curate.plot import Plot
from curate.quantities import OWN, Quantity, counted_name
from curate.stats import Stats
from curate.units import format_value
from curate.words import count, printable

PARTS_SHOWN = 12  # rows of a table by model, reason or language; stats.json has them all
SHOWN = ("min", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "max", "mean")
HEADS = ("", "n", "unknown", *SHOWN)
# heading, quantities by the names that the provider's count has
LENGTH_TABLES = (
    (
        "Sessions",
        (
            "requests_per_session",
            "turns_per_session",
            "user_messages_per_session",
            "tool_calls_per_session",
            "subagents_per_session",
            "compactions_per_session",
            "errors_per_session",
            "retries_per_session",
            "context_first_tokens",
            "context_last_tokens",
            "context_max_tokens",
            "context_growth_ratio",
            "session_duration_us",
            "session_api_us",
            "session_tool_us",
            "session_human_us",
            "duty_cycle",
            "peak_concurrency",
            "mean_concurrency",
            "peak_agents",
            "active_agents_per_contributor",
        ),
    ),
    (
        "Requests",
        (
            "prompt_tokens",
            "growth_tokens",
            "new_tokens",
            "completion_tokens",
            "reasoning_tokens",
            "cache_read_share",
            "ideal_cache_share_chain",
            "ideal_cache_share_session",
            "ttft_us",
            "request_us",
            "itl_us",
            "output_tokens_per_second",
            "gap_us",
            "human_gap_us",
            "permission_us",
        ),
    ),
    (
        "Tool calls",
        (
            "tool_wall_us",
            "tool_internal_us",
            "tool_permission_us",
            "tool_args_tokens_est",
            "tool_result_tokens_est",
            "tool_result_bytes",
        ),
    ),
)
BY_KIND = (("tool_wall_us", "Tool wall time by kind"), ("gap_us", "Gaps between requests by kind"))
BY_MODEL = (("prompt_tokens", "Prompt tokens by model"), ("completion_tokens", "Answer tokens by model"))


def lengths_section(stats: Stats, plots: Sequence[Plot]) -> str:
    """Percentiles of everything, and the pictures."""
    parts = [
        "## Lengths and times",
        "Every row says over how many values it is taken (*n*) and how many are unknown. Percentiles interpolate "
        "linearly between order statistics (as numpy does by default). Counts of different counters never stand in "
        "one row: a row names its counter. `stats.json` has the same by model, by harness and by kind, with "
        "histograms. Auxiliary calls (token counts, titles) are rows of `requests`, but no turns: they count in no "
        "percentile of requests.",
    ]
    parts += [f"[![{plot.title}]({plot.path})]({plot.svg})\n\n*{plot.caption}*" for plot in plots]
    for heading, names in LENGTH_TABLES:
        rows = []
        unmeasured = []
        for name in names:
            found = versions(stats, name)
            rows += [distribution_row(sentence(key, each), each, each.all) for key, each in found]
            if not found and name in stats.quantities:
                unmeasured.append(stats.quantities[name].sentence)
        if rows:
            parts.append(f"### {heading}\n\n{markdown_table(HEADS, rows)}")
            if unmeasured:
                parts.append(f"Not known here: {'; '.join(unmeasured)}.")
    for name, heading in BY_KIND:
        quantity = stats.quantities[name]
        kinds = {kind: part for kind, part in quantity.by.get("kind", {}).items() if part.n}
        if len(kinds) > 1:
            rows = [distribution_row(kind, quantity, part) for kind, part in kinds.items()]
            parts.append(f"### {heading}\n\n{markdown_table(HEADS, rows)}")
    for name, heading in BY_MODEL:
        for _, quantity in versions(stats, name):
            models = {model: part for model, part in quantity.by.get("model", {}).items() if part.n}
            if len(models) > 1:
                most = sorted(models.items(), key=lambda item: -item[1].n)[:PARTS_SHOWN]
                rows = [distribution_row(code(model or "not named"), quantity, part) for model, part in most]
                parts.append(f"### {heading}, {counter_words(quantity)}\n\n{markdown_table(HEADS, rows)}")
                break
    return "\n\n".join(parts)


def versions(stats: Stats, name: str) -> list[tuple[str, Quantity]]:
    """A quantity as each counter knows it: the provider's first, our own last."""
    keys = [key for key, each in stats.quantities.items() if key == name or _is_version(key, name, each)]
    return [(key, stats.quantities[key]) for key in keys if stats.quantities[key].all.n]


def _is_version(key: str, name: str, quantity: Quantity) -> bool:
    return quantity.counted_by is not None and key in (name + OWN, counted_name(name, quantity.counted_by))


def sentence(key: str, quantity: Quantity) -> str:
    """What a row is, with who counted it."""
    return quantity.sentence if quantity.counted_by is None else f"{quantity.sentence} ({_counter(key, quantity)})"


def _counter(key: str, quantity: Quantity) -> str:
    return f"our count, {quantity.counted_by}" if key.endswith(OWN) else counter_words(quantity)


def counter_words(quantity: Quantity) -> str:
    """Who counted, in words."""
    if quantity.counted_by == "provider":
        return "by the provider"
    if quantity.counted_by == "agent":
        return "by the agent's log"
    return f"by {quantity.counted_by}"


def cache_section(stats: Stats) -> str:
    """What an ideal prefix cache would hold, beside what the provider's held."""
    cache = stats.cache
    shares = [
        (words, share)
        for words, share in (
            ("the same chain", cache.chain_share),
            ("its session", cache.session_share),
            ("any session of this release", cache.release_share),
        )
        if share is not None
    ]
    parts = []
    if shares:
        said = ", ".join(f"{100 * share:.1f} % if it kept what {words} sent before" for words, share in shares)
        parts.append(
            f"Of the prompts' blocks in {count(cache.requests, 'turn')} with block hashes, a prefix cache that forgets "
            f"nothing would have held {said}. It is a bound, not a forecast: nothing is evicted, and a block counts as "
            "cached from the moment at which its prompt was sent."
        )
        if cache.release_is_estimate:
            parts.append("The last of them is estimated from a sample of the hashes.")
    if cache.measured_share is not None:
        parts.append(
            f"The providers' own caches served {100 * cache.measured_share:.1f} % of prompt tokens, over "
            f"{count(cache.measured_requests, 'turn')} of which they told."
        )
    return "## Prefix cache\n\n" + " ".join(parts) if parts else ""


def drift_section(found: Drift | None) -> str:
    """How this release differs from the one before."""
    if found is None:
        return ""
    parts = ["## Since the release before"]
    if found.sessions_added is not None:
        parts.append(
            f"{count(found.sessions_added, 'session')} added, {found.sessions_removed:,} removed, "
            f"{found.sessions_changed:,} changed, {found.sessions_unchanged:,} unchanged."
        )
    moved = sorted(
        ((name, each) for name, each in found.quantities.items() if each.moved),
        key=lambda item: (-(item[1].distance or 0), item[0]),
    )
    compared = sum(each.moved is not None for each in found.quantities.values())
    parts.append(
        f"{len(moved)} of {compared} quantities are spread otherwise than before ({found.method}). "
        "`stats.json` has them all."
    )
    if moved:
        rows = [
            (
                code(name),
                f"{each.n_before:,}",
                f"{each.n:,}",
                *(
                    format_value(value, unit_of(name))
                    for value in (each.p50_before, each.p50, each.p90_before, each.p90)
                ),
                f"{each.distance:.2f}",
            )
            for name, each in moved[:PARTS_SHOWN]
        ]
        heads = ("", "n before", "n", "p50 before", "p50", "p90 before", "p90", "distance")
        parts.append(markdown_table(heads, rows))
    parts.append(f"Content digest before: `{found.previous_digest}`.")
    return "\n\n".join(parts)


def unit_of(name: str) -> str:
    """The unit that the name of a quantity tells."""
    if name.endswith("_us"):
        return "µs"
    return "share" if "_share" in name or name == "duty_cycle" else ""


def distribution_row(name: str, quantity: Quantity, part: Distribution) -> tuple[str, ...]:
    """One row of a table of percentiles."""
    return (
        name,
        f"{part.n:,}",
        f"{part.null_count:,}",
        *(format_value(getattr(part, column), quantity.unit) for column in SHOWN),
    )


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; the first columns are text, the others are numbers."""
    lines = [heads, [*["---"] * texts, *["---:"] * (len(heads) - texts)], *rows]
    return "\n".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    """A name as Markdown code on one line, which nothing in it can end."""
    return f"`{printable(text).replace('`', '')}`"

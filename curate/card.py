"""The dataset card: README.md with front matter that the Hub and `datasets` read, made from the statistics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from capture.atomic import write_atomically
from curate.distribution import Distribution, Number
from curate.manifest import Manifest, write_json
from curate.plot import Plot, draw_plots, short_number, short_time
from curate.recipe import Recipe
from curate.stats import STATS, Quantity, Stats, compute_stats, read_frames
from curate.table import SESSIONS, TABLES, TOOL_CALLS, Table
from curate.words import count

CARD = "README.md"
TAGS = ("agentdyno", "agent-traces", "coding-agents", "llm-inference", "benchmark")
PARTS_SHOWN = 12  # rows of a table by model, reason or language; stats.json has them all
# Where imported data come from, and whom to name when using them.
ATTRIBUTION = {
    "weka": (
        "Sessions of source `weka` come from the traces in callanjfox/kv-cache-tester "
        "(https://github.com/callanjfox/kv-cache-tester), Apache-2.0; they hold no text, and prompts "
        "appear as block hashes."
    ),
    "agentperf-local": (
        "Sessions of source `agentperf-local` come from the PyPI package of that name by Artificial Analysis, "
        "Apache-2.0."
    ),
}
# What the Hub's front matter takes as `license` (hub docs, repositories-licenses); others are `other` with a name.
HUB_LICENSES = frozenset(
    """
    apache-2.0 mit cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 odc-by odbl pddl bsd-2-clause bsd-3-clause mpl-2.0 isc
    agpl-3.0 gpl-2.0 gpl-3.0 lgpl-2.1 lgpl-3.0 eupl-1.1 eupl-1.2 etalab-2.0 c-uda unlicense zlib artistic-2.0
    afl-3.0 bsl-1.0 epl-2.0 ms-pl osl-3.0
    """.split()  # noqa: SIM905 - a list of forty strings would be forty lines
)
HUB_SPELLINGS = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl", "c-uda-1.0": "c-uda"}
# The Hub's classes, by the first number of rows that no longer fits.
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)


def write_papers(folder: Path, manifest: Manifest) -> tuple[Path, ...]:
    """Write statistics, plots and card from the tables; gives the files written."""
    frames = read_frames(folder, manifest)
    stats = compute_stats(frames, manifest)
    plots = draw_plots(frames, folder)
    for stray in set((folder / "plots").glob("*.png")) - {folder / plot.path for plot in plots}:
        stray.unlink()
    write_atomically(folder / CARD, card(stats, plots, manifest.recipe).encode())
    write_json(folder / STATS, stats)
    return (folder / CARD, folder / STATS, *(folder / plot.path for plot in plots))


def size_category(rows: int) -> str:
    """The Hub's class for a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "n>1T")


def card(stats: Stats, plots: Sequence[Plot], recipe: Recipe) -> str:
    """The whole README.md."""
    sections = (
        _front_matter(stats, recipe),
        f"# {recipe.pretty_name or recipe.name or 'Coding-agent sessions'}",
        _opening(stats),
        (recipe.card or "").strip(),
        _load(stats),
        _lengths(stats, plots),
        _sources(stats),
        _funnel(stats),
        _redaction(stats),
        _licenses(stats),
        _absent(stats),
        "## Columns\n\nTimes ending in `_us` are integer microseconds since the session's first send. "
        "Null is unknown, never 0.",
        *(column_table(table) for table in TABLES),
        _making(stats),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(stats: Stats, recipe: Recipe) -> str:
    """YAML of which every scalar is written as JSON, which is YAML too: no name can break out of it."""
    lines = []
    licenses = sorted({share.value for share in stats.licenses if share.value})
    complete = bool(licenses) and all(share.value for share in stats.licenses)
    if complete and len(licenses) == 1:
        lines += _license_lines(licenses[0])
    elif licenses:
        lines += ["license: other", "license_name: mixed", "license_link: README.md"]
    if recipe.language:
        lines += ["language:", *(f"- {json.dumps(language)}" for language in recipe.language)]
    lines.append(f"pretty_name: {json.dumps(recipe.pretty_name or recipe.name or 'Coding-agent sessions')}")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys((*TAGS, *recipe.tags)))]
    lines += ["task_categories:", "- text-generation"]
    lines += ["size_categories:", f"- {size_category(stats.rows[SESSIONS.name])}", "configs:"]
    for table in _tables(stats):
        lines += [f"- config_name: {table.name}", "  data_files:", "  - split: train"]
        lines.append(f"    path: data/{table.name}/*.parquet")
        if table is SESSIONS:
            lines.append("  default: true")
    return "\n".join(("---", *lines, "---"))


def _license_lines(spdx: str) -> list[str]:
    """A licence as the Hub knows it, or by name where it does not."""
    name = spdx.lower().removesuffix("-only").removesuffix("-or-later")
    name = HUB_SPELLINGS.get(name, name)
    if name in HUB_LICENSES:
        return [f"license: {json.dumps(name)}"]
    return ["license: other", f"license_name: {json.dumps(spdx.lower())}", "license_link: README.md"]


def _tables(stats: Stats) -> list[Table]:
    """The tables that hold a row: `load_dataset` refuses one without."""
    return [table for table in TABLES if stats.rows[table.name]]


def _opening(stats: Stats) -> str:
    rows = stats.rows
    harnesses = _listing(dict.fromkeys((share.value or "unknown").split(" ")[0] for share in stats.harnesses))
    requests = stats.quantities["requests_per_session"].all
    context = stats.quantities["context_max_tokens"].all
    text = (
        f"{count(rows['sessions'], 'recorded session')} of coding agents ({harnesses}): "
        f"{count(rows['requests'], 'call')} to models"
    )
    if rows["tool_calls"]:
        text += f" and {count(rows['tool_calls'], 'tool call')}"
    text += (
        ", with times and token counts as far as their sources tell, and for every call to a model what its prompt "
        "shared with that of the call before."
    )
    if not stats.sessions_with_text:
        text += " Content-free: lengths, times and hashes, no text."
    if requests.p50 is not None and context.p50 is not None and context.max is not None:
        if rows["sessions"] > 1:
            text += (
                f" The median session makes {short_number(requests.p50)} calls; the median of the sessions' longest "
                f"contexts is {short_number(context.p50)} tokens."
            )
        text += f" The longest context has {short_number(context.max)} tokens."
    return text


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names)


def _load(stats: Stats) -> str:
    lines = "\n".join(
        f'{table.name} = load_dataset("PATH_OR_REPO", "{table.name}", split="train")' for table in _tables(stats)
    )
    joins = "`sessions` joins `requests` on `session_id`"
    if stats.rows[TOOL_CALLS.name]:
        joins += ", and `requests` joins `tool_calls` on `session_id` and `request_index`."
    else:
        joins += (
            ". `tool_calls` has no row here: `load_dataset` cannot open an empty table, and the card declares none; "
            "other readers open its file."
        )
    if stats.sessions_with_text:
        joins += (
            " The prompt of a request is the slices `prompt_spans` of its session's `messages`, one after the other; "
            "its answer is `messages[answer_index]`."
        )
    return f"""## Load

```python
from datasets import load_dataset

{lines}
```

```python
import polars as pl

requests = pl.scan_parquet("PATH/data/requests/*.parquet")
requests.group_by("model").agg(pl.col("completion_tokens").quantile(0.9, "linear")).collect()
```

{joins} `agentdyno replay run PATH …` replays the folder as it is."""


# heading, quantities
LENGTH_TABLES = (
    (
        "Sessions",
        (
            "requests_per_session",
            "turns_per_session",
            "user_messages_per_session",
            "tool_calls_per_session",
            "subagents_per_session",
            "peak_concurrency",
            "context_first_tokens",
            "context_last_tokens",
            "context_max_tokens",
            "session_duration_us",
        ),
    ),
    (
        "Requests",
        (
            "input_tokens",
            "new_tokens",
            "output_tokens",
            "reasoning_tokens",
            "cache_read_share",
            "ttft_us",
            "request_us",
            "gap_us",
            "human_gap_us",
        ),
    ),
    ("Tool calls", ("tool_wall_us", "tool_internal_us", "tool_result_tokens")),
)
SHOWN = ("min", "p1", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "max", "mean")


def _lengths(stats: Stats, plots: Sequence[Plot]) -> str:
    parts = [
        "## Lengths and times",
        "Every row says over how many values it is taken (*n*) and how many are unknown. Percentiles interpolate "
        "linearly between order statistics (as numpy does by default). `stats.json` has the same by model, by harness "
        "and by kind, with histograms. Auxiliary calls (token counts, titles) are rows, but count in no percentile of "
        "requests.",
    ]
    parts += [f"![{plot.title}]({plot.path})\n\n*{plot.caption}*" for plot in plots]
    for heading, names in LENGTH_TABLES:
        rows = [
            _distribution_row(quantity.sentence, quantity, quantity.all)
            for name in names
            if (quantity := stats.quantities[name]).all.n
        ]
        if rows:
            parts.append(f"### {heading}\n\n{_table(('', 'n', 'unknown', *SHOWN), rows)}")
        unmeasured = [stats.quantities[name].sentence for name in names if not stats.quantities[name].all.n]
        if rows and unmeasured:
            parts.append(f"Not measured here: {'; '.join(unmeasured)}.")
    for name, heading in (("tool_wall_us", "Tool wall time by kind"), ("gap_us", "Gaps between requests by kind")):
        quantity = stats.quantities[name]
        if len(quantity.by_kind) > 1 and quantity.all.n:
            rows = [_distribution_row(kind, quantity, part) for kind, part in quantity.by_kind.items() if part.n]
            parts.append(f"### {heading}\n\n{_table(('', 'n', 'unknown', *SHOWN), rows)}")
    for name, heading in (("input_tokens", "Input tokens by model"), ("output_tokens", "Output tokens by model")):
        quantity = stats.quantities[name]
        if len(quantity.by_model) > 1:
            most = sorted(quantity.by_model.items(), key=lambda item: -item[1].n)[:PARTS_SHOWN]
            rows = [_distribution_row(_code(model or "not named"), quantity, part) for model, part in most]
            parts.append(f"### {heading}\n\n{_table(('', 'n', 'unknown', *SHOWN), rows)}")
    return "\n\n".join(parts)


def _distribution_row(name: str, quantity: Quantity, part: Distribution) -> tuple[str, ...]:
    return (
        name,
        f"{part.n:,}",
        f"{part.null_count:,}",
        *(format_value(getattr(part, column), quantity.unit) for column in SHOWN),
    )


def format_value(value: Number | None, unit: str) -> str:
    """A value of a table in its unit, three digits; a dash for the unknown."""
    if value is None:
        return "–"
    if unit == "µs":
        return "0 s" if value == 0 else short_time(value / 1e6)
    if unit == "share":
        return f"{100 * value:.3g} %"
    return short_number(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; the first columns are text, the others are numbers."""
    lines = [heads, [*["---"] * texts, *["---:"] * (len(heads) - texts)], *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _sources(stats: Stats) -> str:
    harnesses = [
        (_code(share.value or "unknown"), _code(share.source or "unknown"), f"{share.sessions:,}")
        for share in stats.harnesses[:PARTS_SHOWN]
    ]
    models = [(_code(model or "not named"), f"{n:,}") for model, n in list(stats.models.items())[:PARTS_SHOWN]]
    parts = [
        "## Where the sessions come from",
        _table(("agent", "source", "sessions"), harnesses, texts=2),
        _table(("model", "requests"), models),
    ]
    if max(len(stats.harnesses), len(stats.models)) > PARTS_SHOWN:
        parts.append("The rest of them is in `stats.json`.")
    counted = [
        f"{count(share.sessions, 'session')} of {_code(share.source or 'unknown')} by "
        + ("the provider" if share.value == "provider" else _code(share.value or "unknown"))
        for share in stats.token_sources
    ]
    parts.append(f"`prompt_tokens` and `completion_tokens` were counted in {_listing(counted)}.")
    if stats.languages:
        mix = list(stats.languages.items())
        text = ", ".join(f"{language} {100 * share:.0f} %" for language, share in mix[:PARTS_SHOWN])
        parts.append(f"Languages of the files that tool calls name, mean over the sessions that name any: {text}.")
    return "\n\n".join(parts)


def _funnel(stats: Stats) -> str:
    funnel = stats.funnel
    parts = ["## What was left out", f"{funnel.read:,} read, {funnel.kept:,} kept."]
    if funnel.dropped:
        parts.append(
            _table(("reason", "n"), [(reason.reason, f"{reason.n:,}") for reason in funnel.dropped[:PARTS_SHOWN]])
        )
        if len(funnel.dropped) > PARTS_SHOWN:
            parts.append(f"{len(funnel.dropped) - PARTS_SHOWN} more reasons in `stats.json`.")
    return "\n\n".join(parts)


def _redaction(stats: Stats) -> str:
    total = sum(stats.redaction.counts.values())
    rules = _listing(map(_code, stats.redaction.policies)) or "none"
    outcome = f"put typed placeholders in the place of secrets, {total:,} in all" if total else "found no secret"
    parts = [
        "## Redaction",
        f"Rules {rules} {outcome}. Rules find what they know: a secret of an unknown shape that never passed "
        "through the recorder can remain. Names, paths and "
        "e-mail addresses of people are not searched for.",
    ]
    if total:
        parts.append(
            _table(("rule", "findings"), [(_code(rule), f"{n:,}") for rule, n in stats.redaction.counts.items()])
        )
    return "\n\n".join(parts)


def _licenses(stats: Stats) -> str:
    rows = [
        (_code(share.value) if share.value else "none stated", _code(share.source or "unknown"), f"{share.sessions:,}")
        for share in stats.licenses
    ]
    parts = ["## Licences and attribution", _table(("licence", "source", "sessions"), rows, texts=2)]
    sources = {share.source for share in stats.licenses}
    parts += [text for source, text in ATTRIBUTION.items() if source in sources]
    if any(share.value is None for share in stats.licenses):
        parts.append(
            "Sessions without a stated licence may not be used by others until whoever recorded them gives one."
        )
    return "\n\n".join(parts)


def _absent(stats: Stats) -> str:
    lines = [
        "The bytes of the wire, HTTP headers, connection credentials, or the ids under which the recorder keeps them."
    ]
    if stats.sessions_with_text:
        lines.append("Images, files and encrypted reasoning: `messages.omitted_bytes` says how much was there.")
    without_text = stats.rows[SESSIONS.name] - stats.sessions_with_text
    if without_text:
        lines.append(
            f"The text of {count(without_text, 'content-free session')}: `messages` is null there, and "
            "`requests.block_hashes` tells which prompts share a head."
        )
    if stats.rows[TOOL_CALLS.name]:
        lines.append(
            "What an agent did without calling a model: tool times are seen from the wire unless the agent declared "
            "them."
        )
    lines.append("A judgement: `outcome` is `unknown` where nobody checked.")
    return "## What it does not contain\n\n" + "\n".join(f"- {line}" for line in lines)


def column_table(table: Table) -> str:
    """The columns of a table as Markdown: name, type, what it means."""
    rows = "\n".join(
        f"| `{column.name}` | `{_type_name(column.type)}` | {column.sentence.replace('|', chr(92) + '|')} |"
        for column in table.columns
    )
    return f"### `{table.name}`\n\n{table.sentence}\n\n| column | type | |\n| --- | --- | --- |\n{rows}"


def _type_name(type_: object) -> str:
    """Arrow's name of a type, the inner fields of a struct left to the schema."""
    text = str(type_).replace("element: ", "").replace("item: ", "")
    return text if len(text) <= 60 else text[: text.index("<")] + "<struct…>"


def _making(stats: Stats) -> str:
    software = ", ".join(f"{name} {version}" for name, version in stats.software.items())
    counts = (
        f" Own token counts by `{stats.tokenizer}` (SHA-256 of its ranks `{stats.tokenizer_sha}`), each message once."
        if stats.tokenizer_sha
        else ""
    )
    return f"""## How it was made

`agentdyno curate build`, with {software}.{counts}
Content digest of the tables: `{stats.digest}`; SHA-256 of every file in `manifest.json`."""

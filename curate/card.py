"""The dataset card: README.md with front matter that the Hub and `datasets` read, made from the statistics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from capture.atomic import write_atomically
from curate.cache import ideal_cache
from curate.card_lengths import (
    PARTS_SHOWN,
    cache_section,
    code,
    drift_section,
    lengths_section,
    markdown_table,
)
from curate.drift import drift
from curate.frames import read_frames
from curate.front_matter import front_matter, splits_of, tables, title
from curate.manifest import Manifest, SessionEntry, write_json
from curate.measured import MeasuredRedaction
from curate.plot import Plot, draw_plots
from curate.quantities import Quantity, best_counted
from curate.recipe import Recipe
from curate.stats import STATS, Stats, compute_stats
from curate.table import TABLES, TOOL_CALLS, Table
from curate.units import short_number
from curate.words import count

CARD = "README.md"
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


def write_papers(
    folder: Path,
    manifest: Manifest,
    *,
    previous: Stats | None = None,
    previous_sessions: Sequence[SessionEntry] | None = None,
) -> tuple[Path, ...]:
    """Write statistics, plots and card from the tables; gives the files written.

    With the statistics of the release before, and its sessions, they tell the drift too.
    """
    frames = read_frames(folder, manifest)
    cache = ideal_cache(frames)
    stats = compute_stats(frames, manifest, cache=cache)
    if previous is not None:
        sessions = [entry for shard in manifest.shards for entry in shard.sessions]
        stats = replace(stats, drift=drift(stats, previous, sessions=sessions, previous_sessions=previous_sessions))
    plots = draw_plots(frames, cache, stats, folder) if manifest.recipe.statistics.plots else ()
    pictures = [path for plot in plots for path in (folder / plot.path, folder / plot.svg)]
    if (folder / "plots").is_dir():
        for stray in sorted(set((folder / "plots").iterdir()) - set(pictures)):
            stray.unlink()
        if not pictures:
            (folder / "plots").rmdir()
    write_atomically(folder / CARD, card(stats, plots, manifest.recipe).encode())
    write_json(folder / STATS, stats)
    return (folder / CARD, folder / STATS, *pictures)


def card(stats: Stats, plots: Sequence[Plot], recipe: Recipe) -> str:
    """The whole README.md."""
    sections = (
        front_matter(stats, recipe),
        f"# {title(recipe)}",
        _opening(stats),
        (recipe.card or "").strip(),
        _load(stats),
        lengths_section(stats, plots),
        cache_section(stats),
        drift_section(stats.drift),
        _sources(stats),
        _funnel(stats),
        _redaction(stats, recipe),
        _licenses(stats),
        _withdrawals(stats),
        _absent(stats),
        "## Columns\n\nTimes ending in `_us` are integer microseconds since the session's first send. "
        "Null is unknown, never 0.",
        *(column_table(table, with_text=stats.tier != "content-free") for table in TABLES if table.name in stats.rows),
        _making(stats),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


TIERS = {
    "full": "This is the full tier: everything that was built, as its owner holds it.",
    "text": "This is the text tier: what people and models wrote is in it, redacted and reviewed.",
    "content-free": (
        "This is the content-free tier: lengths, times and keyed hashes, and nothing that people or models wrote."
    ),
}


def _opening(stats: Stats) -> str:
    rows = stats.rows
    harnesses = _listing(dict.fromkeys(_word((share.value or "unknown").split(" ")[0]) for share in stats.harnesses))
    requests = stats.quantities["requests_per_session"].all
    longest = best_counted(stats.quantities, "context_max_tokens")
    sessions = stats.funnel.kept
    text = (
        f"{count(sessions, 'recorded session')} of coding agents ({harnesses}): "
        f"{count(rows['requests'], 'call')} to models"
    )
    if rows.get(TOOL_CALLS.name):
        text += f" and {count(rows['tool_calls'], 'tool call')}"
    text += (
        ", with times and token counts as far as their sources tell, and for every call to a model what its prompt "
        "shared with that of the call before."
    )
    if requests.p50 is not None and longest is not None:
        context = longest[1].all
        of = "" if context.n == sessions else f" of the {count(context.n, 'session')} that {_counter(longest)} counted"
        if sessions > 1:
            text += f" The median session makes {short_number(requests.p50)} calls."
        if context.n > 1 and context.p50 is not None:
            text += (
                f" The median of the longest contexts{of or ' of the sessions'} is {short_number(context.p50)} tokens."
            )
        if context.max is not None:
            text += f" The longest context{of} has {short_number(context.max)} tokens."
    tier = TIERS[stats.tier]
    if stats.tier == "full" and not stats.sessions_with_text:
        tier += " Its sessions came without text: lengths, times and hashes."
    return f"{text}\n\n{tier}"


def _counter(counted: tuple[str, Quantity]) -> str:
    return _counter_words(counted[1].counted_by or "provider")


def _word(name: str) -> str:
    """A name in running text; as code where a letter of it may mean something to Markdown."""
    return name if re.fullmatch(r"[A-Za-z0-9.-]+", name) else code(name)


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names)


def _load(stats: Stats) -> str:
    shown = [(table, splits_of(stats, table)) for table in tables(stats)]
    lines = "\n".join(
        f'{table.name} = load_dataset("PATH_OR_REPO", "{table.name}", split="{splits[0]}")'
        for table, splits in shown
        if splits
    )
    joins = "`sessions` joins `requests` on `session_id`"
    if stats.rows.get(TOOL_CALLS.name):
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
    splits = ""
    if len(stats.splits) > 1:
        rows = [
            (code(split), *(f"{counts.get(table.name, 0):,}" for table in TABLES))
            for split, counts in stats.splits.items()
        ]
        splits = "\n\n" + markdown_table(("split", *(table.name for table in TABLES)), rows)
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

{joins} `agentdyno replay run PATH …` replays the folder as it is.{splits}"""


def _sources(stats: Stats) -> str:
    harnesses = [
        (code(share.value or "unknown"), code(share.source or "unknown"), f"{share.sessions:,}")
        for share in stats.harnesses[:PARTS_SHOWN]
    ]
    models = [(code(model or "not named"), f"{n:,}") for model, n in list(stats.models.items())[:PARTS_SHOWN]]
    parts = [
        "## Where the sessions come from",
        markdown_table(("agent", "source", "sessions"), harnesses, texts=2),
        markdown_table(("model", "requests"), models),
    ]
    if max(len(stats.harnesses), len(stats.models)) > PARTS_SHOWN:
        parts.append("The rest of them is in `stats.json`.")
    counted, uncounted = [], []
    for share in stats.token_sources:
        said = f"{count(share.sessions, 'session')} of {code(share.source or 'unknown')}"
        if share.value in (None, "none"):
            uncounted.append(said)
        else:
            counted.append(f"{said} by {_counter_words(share.value)}")
    if counted:
        parts.append(f"`prompt_tokens` and `completion_tokens` were counted in {_listing(counted)}.")
    if uncounted:
        parts.append(f"Nobody counted them in {_listing(uncounted)}: there they are null.")
    if stats.contributors is not None:
        parts.append(
            f"{count(stats.contributors, 'contributor')} recorded the sessions that name one, by a keyed hash in the "
            "column `contributor`."
        )
    if stats.languages:
        mix = list(stats.languages.items())
        text = ", ".join(f"{language} {100 * share:.0f} %" for language, share in mix[:PARTS_SHOWN])
        parts.append(
            f"Languages of the files that tool calls name, mean over the {count(stats.language_sessions, 'session')} "
            f"that name any: {text}."
        )
    whole = stats.funnel.kept - stats.complete_sessions
    if whole:
        parts.append(f"Of {count(whole, 'session')} the record has gaps, or an end that nobody saw: `capture_quality`.")
    return "\n\n".join(parts)


def _counter_words(counter: str) -> str:
    return {"provider": "the provider", "agent": "the agent's own log"}.get(counter, code(counter))


def _funnel(stats: Stats) -> str:
    funnel = stats.funnel
    parts = ["## What was left out", f"{funnel.read:,} read, {funnel.kept:,} kept."]
    rows = [
        (step.stage, reason.reason, f"{reason.n:,}", f"{step.kept:,}" if reason is step.reasons[-1] else "")
        for step in funnel.stages
        for reason in step.reasons
    ]
    if rows:
        parts.append(markdown_table(("stage", "reason", "left out", "still there"), rows[: 2 * PARTS_SHOWN], texts=2))
        if len(rows) > 2 * PARTS_SHOWN:
            parts.append(f"{len(rows) - 2 * PARTS_SHOWN} more reasons in `stats.json`.")
        if any(step.stage == "read" for step in funnel.stages):
            parts.append("At the stage `read` a source that cannot be read counts once, however many it held.")
    return "\n\n".join(parts)


def _redaction(stats: Stats, recipe: Recipe) -> str:
    total = sum(stats.redaction.counts.values())
    rules = _listing(map(code, stats.redaction.policies)) or "none"
    outcome = f"put typed placeholders in the place of {total:,} findings" if total else "found nothing to take out"
    limits = "Rules find what they know: a secret of an unknown shape that never passed through the recorder can remain"
    if recipe.redaction.identity:
        people = (
            "E-mail addresses, user names, home paths, host names and git remotes stand as consistent pseudonyms; "
            "names of people in running text, and what only its readers can recognise, are not searched for."
        )
    else:
        people = "Names, paths and e-mail addresses of people were not searched for."
    if not recipe.redaction.scanner:
        people += " The secret scanner was switched off by the recipe, so that only our own rules looked."
    if not stats.sessions_with_text:
        people += " This tier holds no text; redaction ran before anything was counted or hashed."
    parts = ["## Redaction", f"Rules {rules} {outcome}. {limits}. {people}", _measured(stats.redaction.measured)]
    if total:
        parts.append(
            markdown_table(("rule", "findings"), [(code(rule), f"{n:,}") for rule, n in stats.redaction.counts.items()])
        )
    return "\n\n".join(parts)


def _measured(found: MeasuredRedaction | None) -> str:
    if found is None:
        return "How much of the secrets in a test corpus they find: not measured for these rules."
    rows = [
        (
            words,
            f"{rate.found:,} of {rate.n:,}",
            f"{100 * rate.value:.1f} %",
            f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %",
        )
        for words, rate in (
            ("secrets of kinds and contexts that the rules were not made with", found.unseen),
            ("of those that they were made with", found.tuned),
        )
    ]
    clean = [
        (
            words,
            f"{rate.findings:,} in {rate.megabytes:.0f} MB",
            f"{rate.value:.2f} / MB",
            f"{rate.low:.2f} to {rate.high:.2f}",
        )
        for words, rate in (
            (f"findings in {found.clean_source} called secrets", found.clean),
            ("e-mails, names and paths there, counted apart", found.clean_identity),
        )
    ]
    return (
        f"Measured on corpus {code(found.corpus)} by `agentdyno curate measure-redaction` (intervals of 95 %):\n\n"
        + markdown_table(("", "found", "", "interval"), [*rows, *clean])
        + _moved(found.first_met)
    )


def _moved(first_met: dict[str, float]) -> str:
    if not first_met:
        return ""
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in first_met.items())
    return (
        "\n\nThe first row is the better for what was moved to the second after it was measured; when held out, "
        f"these were found with: {shares}."
    )


def _licenses(stats: Stats) -> str:
    rows = [
        (code(share.value) if share.value else "none stated", code(share.source or "unknown"), f"{share.sessions:,}")
        for share in stats.licenses
    ]
    parts = ["## Licences, consent and attribution", markdown_table(("licence", "source", "sessions"), rows, texts=2)]
    consents = [
        (code(share.value) if share.value else "none recorded", code(share.source or "unknown"), f"{share.sessions:,}")
        for share in stats.consent
    ]
    parts.append(markdown_table(("consent", "source", "sessions"), consents, texts=2))
    sources = {share.source for share in stats.licenses}
    parts += [text for source, text in ATTRIBUTION.items() if source in sources]
    if any(share.value is None for share in stats.licenses):
        parts.append(
            "Sessions without a stated licence may not be used by others until whoever recorded them gives one."
        )
    return "\n\n".join(parts)


def _withdrawals(stats: Stats) -> str:
    said = f"{count(stats.withdrawals, 'session')} withdrawn so far." if stats.withdrawals else "None so far."
    return (
        "## Withdrawals\n\n"
        "Whoever took part in a session may have it taken out: ask the owners of this dataset, naming its "
        "`session_id`. They run `agentdyno curate withdraw`; the next release is without its rows, and counts it below "
        f'"What was left out". Copies that others made before cannot be called back. {said}'
    )


def _absent(stats: Stats) -> str:
    lines = [
        "The bytes of the wire, HTTP headers, connection credentials, or the ids under which the recorder keeps them."
    ]
    if stats.sessions_with_text:
        lines.append("Images, files and encrypted reasoning: `messages.omitted_bytes` says how much was there.")
    without_text = stats.funnel.kept - stats.sessions_with_text
    if without_text and stats.sessions_with_text:
        lines.append(
            f"The text of {count(without_text, 'content-free session')}: `messages` is null there, and "
            "`requests.block_hashes` tells which prompts share a head."
        )
    elif without_text:
        lines.append("Any text: `requests.block_hashes`, where it is known, tells which prompts share a head.")
    if stats.rows.get(TOOL_CALLS.name):
        lines.append(
            "What an agent did without calling a model: tool times are seen from the wire unless the agent declared "
            "them."
        )
    lines.append("A judgement: `outcome` is `unknown` where nobody checked.")
    return "## What it does not contain\n\n" + "\n".join(f"- {line}" for line in lines)


def column_table(table: Table, *, with_text: bool = True) -> str:
    """The columns of a table as Markdown: name, type, what it means; without text those that the tables still have."""
    rows = "\n".join(
        f"| `{column.name}` | `{_type_name(column.type)}` | {column.sentence.replace('|', chr(92) + '|')} |"
        for column in table.columns
        if with_text or column.name not in table.text_columns
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

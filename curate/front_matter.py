"""The YAML head of a card, which the Hub and `datasets` read (hub docs, datasets-cards)."""

from __future__ import annotations

import json
import re

from curate.recipe import Recipe
from curate.stats import Stats
from curate.table import SESSIONS, TABLES, Table

TAGS = ("agentdyno", "agent-traces", "coding-agents", "llm-inference", "benchmark")
CONTENT_FREE = "content-free"
_PAIR = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")
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


def front_matter(stats: Stats, recipe: Recipe) -> str:
    """YAML of which every free text is written as JSON, which is YAML too: no name can break out of it."""
    lines = []
    licenses = sorted({share.value for share in stats.licenses if share.value})
    complete = bool(licenses) and all(share.value for share in stats.licenses)
    if complete and len(licenses) == 1:
        lines += _license_lines(licenses[0])
    elif licenses:
        lines += ["license: other", "license_name: mixed", "license_link: README.md"]
    if recipe.language:
        lines += ["language:", *(f"- {_quoted(language)}" for language in recipe.language)]
    lines.append(f"pretty_name: {_quoted(title(recipe))}")
    tags = (*TAGS, *(() if stats.sessions_with_text else (CONTENT_FREE,)), *recipe.tags)
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in dict.fromkeys(tags))]
    lines += ["task_categories:", "- text-generation"]
    lines += ["size_categories:", f"- {size_category(stats.rows[tables(stats)[0].name])}", "configs:"]
    for table in tables(stats):
        lines += [f"- config_name: {table.name}", "  data_files:"]
        for split in splits_of(stats, table):
            lines += [f"  - split: {split}", f"    path: data/{table.name}/{split}-*.parquet"]
        if table is tables(stats)[0]:
            lines.append("  default: true")
    return "\n".join(("---", *lines, "---"))


def _quoted(text: str) -> str:
    """A text in YAML: as JSON, but for letters beyond U+FFFF, of whose two escapes YAML makes no letter."""
    return _PAIR.sub(lambda pair: f"\\U{ord(json.loads(f'"{pair[0]}"')):08x}", json.dumps(text))


def title(recipe: Recipe) -> str:
    """What the dataset calls itself."""
    return recipe.pretty_name or recipe.name or "Coding-agent sessions"


def tables(stats: Stats) -> list[Table]:
    """The tables that hold a row: `load_dataset` refuses one without. `sessions` first, where it is there."""
    return [table for table in TABLES if stats.rows.get(table.name)] or [SESSIONS]


def splits_of(stats: Stats, table: Table) -> list[str]:
    """The splits that hold a row of this table."""
    return [split for split, rows in stats.splits.items() if rows.get(table.name)]


def size_category(rows: int) -> str:
    """The Hub's class for a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "n>1T")


def _license_lines(spdx: str) -> list[str]:
    """A licence as the Hub knows it, or by name where it does not."""
    name = spdx.lower().removesuffix("-only").removesuffix("-or-later")
    name = HUB_SPELLINGS.get(name, name)
    if name in HUB_LICENSES:
        return [f"license: {_quoted(name)}"]
    return ["license: other", f"license_name: {_quoted(spdx.lower())}", "license_link: README.md"]

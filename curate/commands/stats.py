"""`agentdyno curate stats`: a dataset in numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.commands.shared import faults
from curate.words import count_rows

if TYPE_CHECKING:
    from curate.stats import Stats


@click.command(epilog="\b\nExample: agentdyno curate stats my-dataset --json | jq .quantities.ttft_us.all.p95")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print stats.json itself.")
def stats(dataset: Path, as_json: bool) -> None:
    """Print a dataset's length and time statistics: percentiles, not just means."""
    with faults():
        from curate.dataset import Dataset
        from curate.stats import STATS, read_stats

        Dataset.open(dataset)
        found = read_stats(dataset)
        if as_json:
            sys.stdout.write((dataset / STATS).read_text(encoding="utf-8"))
            return
        _print_stats(found)


def _print_stats(stats: Stats) -> None:
    from rich.console import Console
    from rich.table import Table

    from curate.card import format_value

    # Wide where nobody looks at a terminal, so that a file or a pipe gets whole lines.
    console = Console(width=None if sys.stdout.isatty() else 160)
    shown = ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max", "mean")
    table = Table(box=None, pad_edge=False, title=None)
    table.add_column("quantity", no_wrap=True)
    for head in ("n", "unknown", *shown):
        table.add_column(head, justify="right", no_wrap=True)
    for name, quantity in stats.quantities.items():
        parts = [(name, quantity.all)]
        if len(quantity.by_kind) > 1:
            parts += [(f"  {kind}", part) for kind, part in quantity.by_kind.items() if part.n]
        for label, part in parts:
            table.add_row(
                label,
                f"{part.n:,}",
                f"{part.null_count:,}",
                *(format_value(getattr(part, column), quantity.unit) for column in shown),
            )
    console.print(
        f"{count_rows(stats.rows)}; {stats.funnel.read - stats.funnel.kept:,} left out; "
        f"own counts by {stats.tokenizer}",
        highlight=False,
    )
    console.print(table)


COMMANDS = (stats,)

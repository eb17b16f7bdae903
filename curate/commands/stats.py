"""`agentdyno curate stats`: a dataset in numbers, and against another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.commands.shared import faults
from curate.words import count, count_rows, printable

if TYPE_CHECKING:
    from rich.console import Console

    from curate.drift import Drift
    from curate.stats import Stats

SHOWN = ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max", "mean")


@click.command(
    epilog="\b\nExample: agentdyno curate stats my-dataset --json | jq .quantities.ttft_us.all.p95\n"
    "         agentdyno curate stats my-dataset --against last-week"
)
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print stats.json, with what --by and --against add.")
@click.option(
    "--against", type=click.Path(path_type=Path), help="Another dataset: what has changed since, quantity by quantity."
)
@click.option("--by", metavar="PART", help="Show every quantity by model, harness, language, split, source, …")
def stats(dataset: Path, against: Path | None, by: str | None, *, as_json: bool) -> None:
    """Print a dataset's length and time statistics: percentiles, not just means."""
    with faults():
        from dataclasses import replace

        import msgspec

        from curate.dataset import Dataset
        from curate.drift import drift
        from curate.frames import read_frames
        from curate.recipe import PARTS
        from curate.stats import compute_stats, read_stats

        opened = Dataset.open(dataset)
        found = read_stats(dataset)
        if by is not None and by not in PARTS:
            raise click.UsageError(f"--by: unknown part {by!r}; known are {', '.join(PARTS)}")
        if by is not None and not any(by in quantity.by for quantity in found.quantities.values()):
            found = replace(compute_stats(read_frames(dataset, opened.manifest), opened.manifest, by=(by,)), drift=None)
        if against is not None:
            other = Dataset.open(against)
            found = replace(
                found,
                drift=drift(
                    found,
                    read_stats(against),
                    sessions=[entry for shard in opened.manifest.shards for entry in shard.sessions],
                    previous_sessions=[entry for shard in other.manifest.shards for entry in shard.sessions],
                ),
            )
        if as_json:
            sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
            return
        from rich.console import Console

        # Wide where nobody looks at a terminal, so that a file or a pipe gets whole lines.
        console = Console(width=None if sys.stdout.isatty() else 160)
        if against is not None and found.drift is not None:
            _print_drift(console, found.drift)
        else:
            _print_stats(console, found, by)


def _print_stats(console: Console, stats: Stats, by: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from curate.units import format_value

    table = Table(box=None, pad_edge=False, title=None)
    table.add_column("quantity", no_wrap=True)
    for head in ("n", "unknown", *SHOWN):
        table.add_column(head, justify="right", no_wrap=True)
    unknown = []
    for name, quantity in stats.quantities.items():
        if not quantity.all.n:
            unknown.append(name)
            continue
        parts = [(name, quantity.all)]
        kinds = quantity.by.get(by or "kind", {})
        if by is not None or len(kinds) > 1:
            parts += [(f"  {printable(kind) or 'not named'}", part) for kind, part in kinds.items() if part.n]
        for label, part in parts:
            table.add_row(
                Text(label),  # a model's name may hold what rich takes for markup
                f"{part.n:,}",
                f"{part.null_count:,}",
                *(format_value(getattr(part, column), quantity.unit) for column in SHOWN),
            )
    console.print(
        f"{count_rows(stats.rows)}; {stats.tier}; {stats.funnel.read - stats.funnel.kept:,} left out; "
        f"*_est: our count by {stats.tokenizer}",
        highlight=False,
    )
    console.print(table)
    if unknown:
        console.print(f"unknown here: {', '.join(unknown)}", highlight=False)


def _print_drift(console: Console, drift: Drift) -> None:
    from rich.table import Table

    from curate.card_lengths import unit_of
    from curate.units import format_value

    table = Table(box=None, pad_edge=False)
    table.add_column("quantity", no_wrap=True)
    for head in ("n then", "n now", "p50 then", "p50 now", "p90 then", "p90 now", "distance", "limit", "moved"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, each in drift.quantities.items():
        table.add_row(
            name,
            f"{each.n_before:,}",
            f"{each.n:,}",
            *(format_value(value, unit_of(name)) for value in (each.p50_before, each.p50, each.p90_before, each.p90)),
            "–" if each.distance is None else f"{each.distance:.3f}",
            "–" if each.limit is None else f"{each.limit:.3f}",
            {True: "yes", False: "no", None: "unknown"}[each.moved],
        )
    if drift.sessions_added is not None:
        console.print(
            f"{count(drift.sessions_added, 'session')} added, {drift.sessions_removed:,} removed, "
            f"{drift.sessions_changed:,} changed, {drift.sessions_unchanged:,} unchanged",
            highlight=False,
        )
    console.print(table)
    console.print(f"distance: {drift.method}", highlight=False)


COMMANDS = (stats,)

"""`agentdyno curate match`: a dataset against another workload, axis by axis."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.commands.shared import faults
from curate.words import printable

if TYPE_CHECKING:
    from curate.match import AxisMatch, Match

AGENTPERF = "agentperf"
AGENTPERF_LOCAL = "agentperf-local"


@click.command(
    epilog="\b\nExample: agentdyno curate match my-dataset --against agentperf\n"
    "         agentdyno curate match my-dataset --against other-dataset --json | jq '.axes[].verdict'"
)
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--against",
    required=True,
    metavar="agentperf|agentperf-local|DATASET",
    help="The published figures of AA-AgentPerf, the replays of the installed package agentperf-local, or a folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def match(dataset: Path, against: str, *, as_json: bool) -> None:
    """Say per axis (input and output lengths, turns, languages, tool time, …) whether a dataset is inside or outside of
    another workload. There is no overall score. Exit 0 either way.
    """
    with faults():
        import msgspec

        from curate.match import agentperf_local_sides, dataset_sides, match_published, match_sessions, published

        ours = dataset_sides(dataset)
        if against == AGENTPERF:
            found = match_published(ours, published())
        elif against == AGENTPERF_LOCAL:
            found = match_sessions(ours, agentperf_local_sides(), AGENTPERF_LOCAL)
        else:
            found = match_sessions(ours, dataset_sides(Path(against)), Path(against).name)
        if as_json:
            sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
            return
        _print(found)


def _print(found: Match) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, pad_edge=False)
    for head in ("axis", "verdict", "ours", "theirs", "what it is"):
        table.add_column(head, overflow="fold")
    colours = {"inside": "green", "outside": "red"}
    for axis in found.axes:
        # As text: the name of a model or an agent may hold what rich takes for markup.
        told = (printable(_ours(axis)), printable(_theirs(axis)), axis.sentence)
        table.add_row(axis.name, Text(axis.verdict, style=colours.get(axis.verdict, "")), *map(Text, told))
    as_of = f" as published by {found.as_of}" if found.as_of else ""
    console.print(f"against {printable(found.against)}{as_of}; rule: {found.rule}", highlight=False, markup=False)
    console.print(table, highlight=False)
    sources = dict.fromkeys(
        f"{check.source} ({check.date})" for axis in found.axes for check in axis.checks if check.source
    )
    for source in sources:
        console.print(f"source: {source}", highlight=False, markup=False)


def _ours(axis: AxisMatch) -> str:
    if axis.checks:
        said = dict.fromkeys(
            check.ours if check.source is not None else f"{check.statistic} {check.ours}" for check in axis.checks
        )
        counted = f" ({axis.ours.counted_by})" if axis.ours.counted_by not in (None, "provider") else ""
        return "; ".join(said) + counted
    if axis.ours.p50 is not None and axis.ours.p95 is not None:
        from curate.match import shown

        return f"p50 {shown(axis.ours.p50, axis.unit)}, p95 {shown(axis.ours.p95, axis.unit)}"
    return "unknown" if not axis.ours.n else _names(axis)


def _names(axis: AxisMatch) -> str:
    from curate.match import shown

    if axis.ours.names:
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(axis.ours.names.items())[:4])
    return "" if axis.ours.value is None else shown(axis.ours.value, axis.unit)


def _theirs(axis: AxisMatch) -> str:
    return "; ".join(
        f"{check.theirs} [“{check.words}”]" if check.words else f"{check.statistic} {check.theirs}"
        for check in axis.checks
    )


COMMANDS = (match,)

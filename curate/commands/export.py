"""`agentdyno curate export`: a dataset in other tools' formats."""

from __future__ import annotations

from pathlib import Path

import click

from curate.commands.shared import faults
from curate.words import count


@click.command(epilog="\b\nExample: agentdyno curate export my-dataset --format weka --out traces")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["weka", "mooncake", "otel", "atif", "openai", "messages"]),
    required=True,
    help="Without text: weka (block-hash traces), mooncake (request rows with block hashes), otel (GenAI spans as "
    "OTLP/JSON). With text: atif (trajectory documents), openai or messages (messages and tools as JSON Lines).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="New file or folder; weka, otel and atif write one file where it ends in .jsonl.",
)
def export(dataset: Path, format_name: str, out: Path) -> None:
    """Write a dataset in a format that other tools read. Prints the path."""
    with faults():
        from curate.export import export as export_dataset

        try:
            report = export_dataset(dataset, "openai" if format_name == "messages" else format_name, out)
        except ValueError as fault:
            raise click.UsageError(str(fault)) from fault
    click.echo(f"{count(report.sessions, 'session')}, {count(report.requests, 'request')}", err=True)
    for reason, n in report.left_out.items():
        click.echo(f"left out: {reason} ({n:,}×)", err=True)
    click.echo(str(out))


COMMANDS = (export,)

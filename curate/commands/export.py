"""`agentdyno curate export`: a dataset in other tools' formats."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.commands.shared import faults
from curate.words import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from curate.export import ExportReport

NAMES = ("weka", "mooncake", "otel", "atif", "openai", "messages", "agentperf-local", "claude-code")


@click.command(epilog="\b\nExample: agentdyno curate export my-dataset --format weka --out traces")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(NAMES),
    required=True,
    help="Without text: weka (block-hash traces), mooncake (request rows with block hashes), otel (GenAI spans as "
    "OTLP/JSON). With text: atif (trajectory documents), openai or messages (messages and tools as JSON Lines), "
    "agentperf-local (a replay with its manifest), claude-code (logs as under ~/.claude/projects).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="New file or folder; weka, otel and atif write one file where it ends in .jsonl.",
)
@click.option("--with-messages", is_flag=True, help="mooncake: the messages themselves instead of block hashes.")
@click.option("--session", "sessions", multiple=True, help="Only the session of this id; repeat it for several.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written, left out and not carried as JSON.")
def export(
    dataset: Path, format_name: str, out: Path, with_messages: bool, sessions: tuple[str, ...], as_json: bool
) -> None:
    """Write a dataset in a format that other tools read.

    Says which requests it left out and why, and which fields the format has no place for. Prints the path.
    """
    with faults():
        from curate.export import export as export_dataset

        try:
            with _progress() as on_session:
                report = export_dataset(
                    dataset,
                    "openai" if format_name == "messages" else format_name,
                    out,
                    with_messages=with_messages,
                    sessions=sessions or None,
                    on_session=on_session,
                )
        except ValueError as fault:
            raise click.UsageError(str(fault)) from fault
    click.echo(f"{count(report.sessions, 'session')}, {count(report.requests, 'request')}", err=True)
    for reason, n in report.left_out.items():
        click.echo(f"left out: {reason} ({n:,}×)", err=True)
    for what, fields in _by_row(report.not_carried).items():
        click.echo(f"not carried by this format: {what}: {', '.join(fields)}", err=True)
    click.echo(_as_json(report) if as_json else str(out))


def _by_row(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Fields by what they are of."""
    found: dict[str, list[str]] = {}
    for name in names:
        what, _, field = name.partition(".")
        found.setdefault(what.replace("_", " "), []).append(field)
    return found


def _as_json(report: ExportReport) -> str:
    return json.dumps(
        {
            "format": report.format,
            "path": str(report.path),
            "sessions": report.sessions,
            "requests": report.requests,
            "left_out": report.left_out,
            "not_carried": report.not_carried,
        }
    )


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A line on stderr; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} sessions"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        line = bar.add_task("sessions", total=None)
        yield lambda sessions: bar.update(line, completed=sessions)


COMMANDS = (export,)

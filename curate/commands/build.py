"""`agentdyno curate build`: stores in, a dataset folder out."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.fault import EnvironmentFault
from curate.commands.shared import faults
from curate.words import count, count_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from curate.build import BuildProgress, BuildReport


@click.command(
    epilog="""\b
Examples:
  agentdyno curate build --store ~/traces --out my-dataset
  agentdyno curate build --recipe team.toml --out week-12 --previous week-11
  agentdyno curate build --store ~/traces --out my-dataset --json | jq .drops
""",
)
@click.option(
    "--store",
    "stores",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A store of recorded or imported sessions; repeat it to build from several. "
    "[the recipe's, else AGENTDYNO_STORE, else the one in your data folder]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The dataset folder: new, or one that this command made from the same inputs, which is then continued.",
)
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file that says what is kept, and how: filters, duplicates, sample, redaction, splits, card and more.",
)
@click.option(
    "--previous",
    type=click.Path(path_type=Path),
    help="The folder of the release before: what did not change is not done again, what was withdrawn stays out, and "
    "the card tells what drifted.",
)
@click.option(
    "--labels",
    "labels_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON Lines with session_id and outcome, resolved, task_id, repo_license, license, consent, contributor, … "
    "[the recipe's]",
)
@click.option(
    "--tokenizer",
    help="Encoding of our own counts: o200k_base, cl100k_base, o200k_harmony. [the recipe's, else o200k_base]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes. [the number of cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of the folder's path.")
def build(
    stores: tuple[Path, ...],
    out: Path,
    recipe_path: Path | None,
    previous: Path | None,
    labels_path: Path | None,
    tokenizer: str | None,
    jobs: int | None,
    *,
    as_json: bool,
) -> None:
    """Build a dataset folder: Parquet tables, stats.json, plots and a card.

    Without a recipe it leaves out nothing but what cannot be read, and says why. A build that was stopped goes on
    by the same command. Prints the folder's path.
    """
    with faults():
        from capture.store import default_store
        from curate.build import build as build_dataset
        from curate.labels import read_labels
        from curate.pool import WorkerDied
        from curate.recipe import read_recipe
        from curate.tokens import DEFAULT_ENCODING, load_encoding

        try:
            file = None if recipe_path is None else read_recipe(recipe_path)
            named = tokenizer or (file.recipe.tokenizer if file else None) or DEFAULT_ENCODING
            load_encoding(named)
        except ValueError as fault:
            raise click.UsageError(str(fault)) from fault
        labels = labels_path or (file.labels if file else None)
        try:
            with _progress() as on_progress:
                report = build_dataset(
                    stores or (file.stores if file else ()) or (default_store(),),
                    out,
                    recipe=file.recipe if file else None,
                    tokenizer=named,
                    previous=previous,
                    jobs=jobs,
                    labels=None if labels is None else read_labels(labels),
                    on_progress=on_progress,
                )
        except KeyboardInterrupt:
            click.echo(f"stopped; what is done stays in {out}, and the same command goes on from there", err=True)
            sys.exit(130)
        except WorkerDied as fault:
            raise EnvironmentFault(str(fault)) from fault
    _tell(report)
    if as_json:
        _print_json(report)
    else:
        click.echo(str(report.folder))


@contextmanager
def _progress() -> Iterator[Callable[[BuildProgress], None]]:
    """A bar on stderr; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        line = bar.add_task("sessions", total=None, done="")

        def tell(progress: BuildProgress) -> None:
            reading = progress.total_shards is None
            sessions = f"{progress.sessions:,}{_of(progress.total_sessions if reading else None)} sessions read"
            shards = f"{progress.shards:,}{_of(progress.total_shards)} shards done"
            bar.update(
                line,
                description=progress.step,
                completed=progress.sessions if reading else progress.shards,
                total=progress.total_sessions if reading else progress.total_shards,
                done=f"{sessions}, {shards}",
            )

        yield tell


def _of(total: int | None) -> str:
    return "" if total is None else f" of {total:,}"


def _tell(report: BuildReport) -> None:
    """What was built, in a few lines on stderr."""
    click.echo(
        f"{count_rows(report.rows)} in {count(report.shards, 'shard')} ({report.reused_shards:,} done before); "
        f"{report.kept:,} of {count(report.read, 'session')} kept",
        err=True,
    )
    for drop in report.drops:
        click.echo(f"left out ({drop.stage}): {drop.reason} ({drop.n:,}×)", err=True)
    found = ", ".join(f"{rule} {n:,}" for rule, n in report.redactions.items())
    click.echo(f"redacted: {found or 'nothing found'}", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)


def _print_json(report: BuildReport) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(report, enc_hook=str), indent=1).decode())


COMMANDS = (build,)

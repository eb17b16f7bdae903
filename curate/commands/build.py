"""`agentdyno curate build`: stores in, a dataset folder out."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.commands.shared import faults
from curate.words import count, count_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from curate.build import BuildProgress, BuildReport


@click.command(
    epilog="\b\nExample: agentdyno curate build --store ~/traces --out my-dataset",
)
@click.option(
    "--store",
    "stores",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A store of recorded or imported sessions; repeat it to build from several [AGENTDYNO_STORE, else data home].",
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
    help="A TOML file with name, pretty_name, license, tokenizer, language, tags, card (a Markdown file beside it).",
)
@click.option("--tokenizer", help="Encoding for our own counts: o200k_base (the default), cl100k_base, o200k_harmony.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; the number of cores by default.")
def build(
    stores: tuple[Path, ...], out: Path, recipe_path: Path | None, tokenizer: str | None, jobs: int | None
) -> None:
    """Build a dataset folder: Parquet tables, stats.json, plots and a card.

    Drops nothing but what cannot be read, and says why. Prints the folder's path.
    """
    with faults():
        from capture.store import default_store
        from curate.build import build as build_dataset
        from curate.recipe import read_recipe
        from curate.tokens import DEFAULT_ENCODING

        recipe = None
        if recipe_path is not None:
            try:
                recipe = read_recipe(recipe_path).recipe
            except ValueError as fault:
                raise click.UsageError(str(fault)) from fault
        named = tokenizer or (recipe.tokenizer if recipe else None) or DEFAULT_ENCODING
        from curate.tokens import load_encoding

        try:
            load_encoding(named)
        except ValueError as fault:
            raise click.UsageError(str(fault)) from fault
        with _progress() as on_progress:
            sources = stores or (default_store(),)
            report = build_dataset(sources, out, tokenizer=named, on_progress=on_progress, recipe=recipe, jobs=jobs)
    _tell(report)
    click.echo(str(report.folder))


@contextmanager
def _progress() -> Iterator[Callable[[BuildProgress], None]]:
    """A bar on stderr; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} sessions, {task.fields[shards]} shards written"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        line = bar.add_task("sessions", total=None, shards=0)

        def tell(progress: BuildProgress) -> None:
            bar.update(line, description=progress.step, completed=progress.sessions, shards=progress.shards)

        yield tell


def _tell(report: BuildReport) -> None:
    """What was built, in a few lines on stderr."""
    click.echo(
        f"{count_rows(report.rows)} in {count(report.shards, 'shard')} ({report.reused_shards} of them done before)",
        err=True,
    )
    for reason, n in report.dropped.items():
        click.echo(f"left out: {reason} ({n}×)", err=True)
    found = ", ".join(f"{rule} {n:,}" for rule, n in report.redactions.items())
    click.echo(f"redacted: {found or 'nothing found'}", err=True)


COMMANDS = (build,)

"""`agentdyno curate …`: turn a store into a dataset."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from capture.fault import EnvironmentFault
from curate.words import count, count_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from curate.build import BuildProgress, BuildReport
    from curate.stats import Stats


@click.group()
def curate() -> None:
    """Turn recorded sessions into a dataset with length statistics on its card."""


@contextmanager
def _faults() -> Iterator[None]:
    """Turn the library's errors into one sentence and an exit code."""
    from capture.store import StoreError
    from curate.manifest import DatasetFault
    from curate.tokens import EncodingUnavailable

    try:
        yield
    except (DatasetFault, StoreError) as fault:
        raise click.UsageError(str(fault)) from fault
    except EncodingUnavailable as fault:
        raise EnvironmentFault(str(fault)) from fault
    except ModuleNotFoundError as fault:
        raise EnvironmentFault(
            f"{fault.name} is not installed: install agentdyno with its extra [curate], or with [all] for every stage"
        ) from fault


@curate.command(
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
    with _faults():
        from capture.store import default_store
        from curate.build import build as build_dataset
        from curate.recipe import read_recipe
        from curate.tokens import DEFAULT_ENCODING

        recipe = None
        if recipe_path is not None:
            try:
                recipe = read_recipe(recipe_path)
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


@curate.command(epilog="\b\nExample: agentdyno curate stats my-dataset --json | jq .quantities.ttft_us.all.p95")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print stats.json itself.")
def stats(dataset: Path, as_json: bool) -> None:
    """Print a dataset's length and time statistics: percentiles, not just means."""
    with _faults():
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


@curate.command(epilog="\b\nExample: agentdyno curate export my-dataset --format weka --out traces")
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
    with _faults():
        from curate.export import export as export_dataset

        try:
            report = export_dataset(dataset, "openai" if format_name == "messages" else format_name, out)
        except ValueError as fault:
            raise click.UsageError(str(fault)) from fault
    click.echo(f"{count(report.sessions, 'session')}, {count(report.requests, 'request')}", err=True)
    for reason, n in report.left_out.items():
        click.echo(f"left out: {reason} ({n:,}×)", err=True)
    click.echo(str(out))


@curate.command(epilog="Example: git diff | agentdyno curate redact > diff.txt")
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--store", type=click.Path(path_type=Path), help="Also remove the credentials that this store's recorder saw."
)
def redact(file: BinaryIO, store: Path | None) -> None:
    """Copy text to stdout without its secrets; what was found is counted on stderr.

    A first pass: known key shapes, values of telling names. It does not prove a text clean. Placeholders are the same
    for the same value within a run, and across runs with the same --store.
    """
    from curate.redact import Redactor

    redactor = Redactor()
    if store is not None:
        with _faults():
            from capture.store import Store

            opened = Store.open(store)
            redactor = Redactor(seen=opened.seen_secrets(), key=opened.key)
    # Bytes that are no UTF-8 pass through as they came.
    redacted, counts = redactor.text(file.read().decode("utf-8", "surrogateescape"))
    sys.stdout.buffer.write(redacted.encode("utf-8", "surrogateescape"))
    found = ", ".join(f"{kind} {number:,}" for kind, number in counts.most_common())
    click.echo(f"redacted: {found or 'nothing found'}", err=True)

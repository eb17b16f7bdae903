"""`agentdyno curate measure-redaction`: how much redaction finds, and what it takes by mistake."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.commands.shared import faults

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from curate.measure import Measurement
    from curate.measured import MeasuredRedaction, Rate
    from curate.recipe import RedactionPolicy

DEFAULT_SEED = 20261219


@click.command("measure-redaction", epilog="\b\nExample: agentdyno curate measure-redaction --clean my-repository")
@click.option("--seed", type=int, default=DEFAULT_SEED, show_default=True, help="Of the secrets that are made up.")
@click.option(
    "--clean",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of text without secrets. Default: the standard library of this Python.",
)
@click.option("--recipe", type=click.Path(path_type=Path), help="Measure with this recipe's [redaction].")
@click.option(
    "--each", type=click.IntRange(1, 50), default=2, show_default=True, help="Cases of each kind in each context."
)
@click.option("--json", "as_json", is_flag=True, help="Print the measurement as JSON.")
@click.option(
    "--show-missed", type=click.IntRange(min=0), default=0, metavar="N", help="Print so many of the secrets missed."
)
@click.option("--write", is_flag=True, help="Ship this measurement with the rules; for whoever changes them.")
def measure_redaction(
    seed: int, clean: Path | None, recipe: Path | None, each: int, as_json: bool, show_missed: int, write: bool
) -> None:
    """Plant made-up secrets in texts like those of agents, redact them, and count what is left.

    About half of the kinds and of the contexts were kept from the rules; their share decides. Clean text tells what is
    taken by mistake. Exit code 1 when recall or precision falls short of its limit.

    --show-missed shows cases that were kept from the rules too: a rule changed after it is measured on another seed and
    another family.
    """
    with faults():
        from curate.measure import NothingToMeasure, clean_folder, measure, standard_library
        from curate.redact import IDENTITY_KINDS, Redactor

    policy = _policy(recipe)
    if write and (recipe is not None or clean is not None):
        raise click.UsageError("--write ships what everybody can repeat: leave --recipe and --clean out")
    try:
        texts = standard_library() if clean is None else clean_folder(clean)
    except NothingToMeasure as fault:
        raise click.UsageError(str(fault)) from fault
    with faults():
        found = measure(
            lambda chosen: Redactor(seen=(), key=bytes(32), policy=chosen),
            seed,
            texts,
            IDENTITY_KINDS,
            policy=policy,
            each=each,
            say=lambda part: click.echo(f"measuring: {part}", err=True),
        )
    measured = found.measured
    if write:
        _write(measured)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(measured), indent=2))
    else:
        _print(found, show_missed)
    if not (measured.recall_suffices and measured.precision_suffices):
        sys.exit(1)


def _policy(recipe: Path | None) -> RedactionPolicy:
    from curate.recipe import RedactionPolicy, read_recipe

    if recipe is None:
        return RedactionPolicy()
    try:
        return read_recipe(recipe).recipe.redaction
    except ValueError as fault:
        raise click.UsageError(str(fault)) from fault


def _write(measured: MeasuredRedaction) -> None:
    import msgspec

    from capture.atomic import write_atomically
    from curate.measured import SHIPPED, shipped

    SHIPPED.parent.mkdir(exist_ok=True)
    write_atomically(SHIPPED, msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")
    shipped.cache_clear()
    click.echo(f"wrote {SHIPPED.name}", err=True)


def _print(found: Measurement, show_missed: int) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    _print_grid(console, found)
    _print_cells(console, found.measured)
    _print_look_alikes(console, found.measured)
    _print_clean(console, found)
    _print_verdict(console, found.measured)
    missed = [outcome for outcome in found.outcomes if outcome.survived is not None]
    for outcome in missed[:: max(1, len(missed) // show_missed)][:show_missed] if show_missed else ():
        case = outcome.case
        console.print(f"\n[bold]{case.family}, {case.kind.name}, in {case.context}[/]; left: {outcome.survived!r}")
        console.print(outcome.redacted, markup=False, soft_wrap=True)


def _percent(rate: Rate | None) -> str:
    return "unknown" if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}), {rate.n:,} cases"


def _print_grid(console: Console, found: Measurement) -> None:
    """Families down, contexts across, the share removed in each; in as many tables as the terminal's width asks for."""
    from rich.table import Table
    from rich.text import Text

    from curate.measure import table

    measured, cells = found.measured, table(found.outcomes)
    heads = [f"{n}{'*' if c in measured.held_out_contexts else ''}" for n, c in enumerate(measured.by_context, 1)]
    contexts = list(zip(heads, measured.by_context, strict=True))
    names = {family: family + (" *" if family in measured.held_out_families else "") for family in measured.by_family}
    fitting = max(5, (console.width - max(map(len, names.values())) - 6) // 4)
    console.print("Secrets removed, % of cases; * held out from whoever writes the rules")
    for at in range(0, len(contexts), fitting):
        shown = contexts[at : at + fitting]
        grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        grid.add_column("", no_wrap=True)
        grid.add_column("all", justify="right")
        for head, _ in shown:
            grid.add_column(head, justify="right", no_wrap=True, min_width=3)
        for family, rate in measured.by_family.items():
            row = [_heat(*cells.get((family, context), (0, 0))) for _, context in shown]
            grid.add_row(Text(names[family]), _heat(rate.found, rate.n), *row)
        columns = [measured.by_context[context] for _, context in shown]
        everything = (sum(found for found, _ in cells.values()), sum(n for _, n in cells.values()))
        grid.add_row(Text("all", style="bold"), _heat(*everything), *(_heat(each.found, each.n) for each in columns))
        console.print(grid)
    console.print("Contexts: " + ", ".join(f"{head} {context}" for head, context in contexts))


def _heat(found: int, n: int) -> Text:
    from rich.text import Text

    if n == 0:
        return Text("·", style="dim")
    share = found / n
    style = "green" if share == 1 else "yellow" if share >= 0.9 else "red" if share >= 0.5 else "bold red"
    return Text(f"{int(share * 100)}", style=style)


def _print_cells(console: Console, measured: MeasuredRedaction) -> None:
    low, high = measured.unseen_resampled or (float("nan"), float("nan"))
    console.print(
        f"\nRules: {measured.rules}; corpus {measured.corpus}, seed {measured.seed}. Shares with 95 % intervals."
    )
    console.print(f"[bold]Held-out kinds in held-out contexts: {_percent(measured.unseen)}[/]")
    console.print(f"  with families and contexts drawn anew: {low:.1%} to {high:.1%}")
    console.print(f"  of kinds that the scanner has no rule for: {_percent(measured.unseen_without_scanner_rule)}")
    console.print(f"Held-out kinds in tuned contexts: {_percent(measured.unseen_kinds)}")
    console.print(f"Tuned kinds in held-out contexts: {_percent(measured.unseen_contexts)}")
    console.print(f"Tuned kinds in tuned contexts: {_percent(measured.tuned)}")
    console.print(f"Secrets that no reader could tell, in none of the above: {_percent(measured.undecidable)}")
    console.print(f"  the first share with those of its cell: {_percent(measured.unseen_with_undecidable)}")
    if measured.first_met:
        met = ", ".join(f"{name} {share:.1%}" for name, share in measured.first_met.items())
        console.print(f"Moved to the tuned side, share removed while held out: {met}", soft_wrap=True)
    console.print(
        "The first interval takes cases for independent; the second allows for cases of one family or context that "
        "fail together.\nNeither covers how far the corpus is from what people really leave in their sessions."
    )


def _print_look_alikes(console: Console, measured: MeasuredRedaction) -> None:
    wrong = [
        f"{name}{' *' if name in measured.held_out_look_alikes else ''} {rate.found} of {rate.n}"
        for name, rate in measured.false_alarms.items()
        if rate.found
    ]
    tried = sum(rate.n for rate in measured.false_alarms.values())
    taken = sum(rate.found for rate in measured.false_alarms.values())
    said = f": {', '.join(wrong)}" if wrong else ""
    console.print(
        f"\nLook-alikes taken for secrets: {taken} of {tried:,} in {len(measured.false_alarms)} classes{said}"
    )


def _print_clean(console: Console, found: Measurement) -> None:
    measured = found.measured
    clean, identity = measured.clean, measured.clean_identity
    console.print(f"\nClean text: {measured.clean_source}, {clean.megabytes:.1f} MB")
    for name, rate, kinds in (("secret", clean, found.clean.secret), ("identity", identity, found.clean.identity)):
        listed = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common(8))
        console.print(
            f"  {name} findings: {rate.value:.2f} per MB ({rate.low:.2f} to {rate.high:.2f}), {rate.findings}"
            + (f": {listed}" if listed else "")
        )
    console.print(f"  characters lost: {measured.clean_characters_lost:.4%}")
    shares = ", ".join(f"{part} {share:.0%}" for part, share in measured.where_time_goes.items())
    console.print(f"  speed: {measured.mb_per_s:.1f} MB/s of one core; CPU time by switching parts off: {shares}")


def _print_verdict(console: Console, measured: MeasuredRedaction) -> None:
    from curate.measured import LEAST_MB_PER_S, LEAST_RECALL, MOST_FINDINGS_PER_MB

    console.print()
    for said, holds in (
        (f"recall {measured.unseen.value:.3f}, limit at least {LEAST_RECALL}", measured.recall_suffices),
        (
            f"secret findings {measured.clean.value:.2f} per MB, limit at most {MOST_FINDINGS_PER_MB:g}",
            measured.precision_suffices,
        ),
        (
            f"speed {measured.mb_per_s:.1f} MB/s of one core, aim {LEAST_MB_PER_S:g}; does not decide",
            measured.speed_suffices,
        ),
    ):
        console.print(f"{'[green]holds[/]' if holds else '[red]falls short[/]'}  {said}")


COMMANDS = (measure_redaction,)

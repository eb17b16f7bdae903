"""`agentdyno replay statistics`: how far a search can be trusted, by simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replay.commands.shared import plain_faults

if TYPE_CHECKING:
    from replay.protocol import RunClass
    from replay.simulate import Case, Row


@click.command()
@click.option(
    "--searches", default=5000, show_default=True, type=click.IntRange(1, 1_000_000), help="Simulated searches a case."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the simulated noise.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="How the simulated margin behaves: a name, `all`, or `list` to see them; repeatable.  [default: linear]",
)
@click.option(
    "--class",
    "run_class",
    default="standard",
    show_default=True,
    type=click.Choice(["screen", "standard", "record"]),
    help="Whose confirmation trials are simulated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every number.")
def statistics(searches: int, seed: int, models: tuple[str, ...], run_class: RunClass, as_json: bool) -> None:
    """Simulate searches of a known capacity: how often the interval holds it and a certified number is too high.

    The trials are simulated: no server is involved. The search and the fit are those of `replay score`, beside the
    procedures that others use. Half a minute for one model.

    \b
    agentdyno replay statistics
    agentdyno replay statistics --searches 1000 --model all --json
    """
    with plain_faults():
        import msgspec
        from rich.console import Console
        from rich.progress import Progress

        from replay.protocol import CLASSES
        from replay.simulate import CAPACITIES, MODELS, SIGMAS, Case, simulate

        if "list" in models:
            for name, what in MODELS.items():
                click.echo(f"{name:18} {what}")
            return
        unknown = [name for name in models if name not in (*MODELS, "all")]
        if unknown:
            raise click.BadParameter(f"no model {unknown[0]!r}; one of {', '.join(MODELS)}, all", param_hint="--model")
        chosen = [name for name in MODELS if name in (models or ("linear",)) or "all" in models]
        cases = [
            Case(model=name, capacity=capacity, sigma=sigma)
            for name in chosen
            for capacity in CAPACITIES
            for sigma in SIGMAS
        ]
        found: list[tuple[Case, tuple[Row, ...]]] = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("simulated searches", total=len(cases) * searches)
            for case in cases:
                rows = simulate(
                    case, searches, seed, rules=CLASSES[run_class], on_search=lambda: progress.advance(task)
                )
                found.append((case, rows))
    if as_json:
        document = {
            "simulated": True,
            "searches": searches,
            "seed": seed,
            "class": run_class,
            "cases": [
                {"simulated": True, **msgspec.to_builtins(case), "start": case.start, "rows": msgspec.to_builtins(rows)}
                for case, rows in found
            ],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
        return
    click.echo(f"Simulated trials, no server: {searches:,} simulated searches a case, class {run_class}, seed {seed}.")
    for case, rows in found:
        click.echo(
            f"\nsimulated: {MODELS[case.model]}; true capacity {case.capacity:,.0f} agents, sigma {case.sigma:.2f}"
        )
        columns = f"{'trials':>7}{'no answer':>11}{'bias':>8}{'sd':>8}{'too high':>10}{'in 95 %':>9}{'of all':>9}"
        click.echo(f"  {'procedure':34}{columns}")
        for row in rows:
            click.echo(_line(row))
    click.echo(
        "\nAll of it simulated. trials: mean of a search, scouting included; bias and sd: of answer / true capacity; "
        "too high: share of\nthe answers above it; in 95 %: share of the 95 % intervals given that hold it; "
        "of all: of all searches, those without an answer included."
    )


def _line(row: Row) -> str:
    def percent(value: float | None, digits: int = 1, sign: str = "") -> str:
        return "–" if value is None else f"{100 * value:{sign}.{digits}f} %"

    return (
        f"  {row.procedure:34}{row.trials:7.1f}{percent(1 - row.answered):>11}{percent(row.bias, sign='+'):>8}"
        f"{percent(row.sd):>8}{percent(row.over_claims):>10}{percent(row.coverage):>9}{percent(row.coverage_of_all):>9}"
    )


COMMANDS = (statistics,)

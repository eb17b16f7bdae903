"""`agentdyno replay power integrators`: how far off the ways to integrate power are, by simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replay.commands.shared import plain_faults

if TYPE_CHECKING:
    from replay.power.integrators import Error, Row

HEADINGS = {
    "clipped": "clipped",
    "edges": "edges",
    "ends": "counter, ends",
    "scraped": "counter, scraped",
    "our_counter": "ours, ends",
    "our_scraped": "ours, scraped",
    "our_gauge": "ours, gauge",
}
WIDTH = 17  # of a column


@click.command()
@click.option("--runs", default=60, show_default=True, type=click.IntRange(2, 10_000), help="Simulated runs a row.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the simulated loads.")
@click.option("--json", "as_json", is_flag=True, help="Print every number.")
def integrators(runs: int, seed: int, as_json: bool) -> None:
    """Simulate loads of known energy: how far off each way to integrate power is, ours beside those of others.

    The load, its gauge and its counter are simulated: no device is read. Every other load mirrors the one before it,
    on for off, so that chance errs in both directions alike. Some seconds.

    \b
    agentdyno replay power integrators
    agentdyno replay power integrators --runs 200 --json
    """
    with plain_faults():
        import msgspec
        from rich.console import Console
        from rich.progress import Progress

        from replay.power.integrators import (
            DWELL_S,
            LATCH_S,
            LIMIT_W,
            NOMINAL_J,
            OFF_W,
            ON_W,
            OTHERS,
            OURS,
            SAMPLINGS,
            WINDOW_S,
            simulate,
        )

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("simulated runs", total=runs * len(SAMPLINGS))
            rows = simulate(runs, seed, on_run=lambda: progress.advance(task))
    if as_json:
        document = {
            "simulated": True,
            "runs": runs,
            "seed": seed,
            "window_s": WINDOW_S,
            "load": {"on_w": ON_W, "off_w": OFF_W, "dwell_s": DWELL_S, "limit_w": LIMIT_W, "counter_latch_s": LATCH_S},
            "errors_are_shares_of_j": NOMINAL_J,
            "ways": {**OTHERS, **OURS},
            "rows": [{"simulated": True, **msgspec.to_builtins(row)} for row in rows],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
        return
    click.echo(
        f"Simulated, no device was read: {runs} simulated runs a row, seed {seed}; a load of {OFF_W:g} or {ON_W:g} W, "
        f"each for {DWELL_S[0]:g} to {DWELL_S[1]:g} s, over {WINDOW_S:g} s."
    )
    click.echo(f"Largest error (and mean error) of the energy, in % of {NOMINAL_J / 1000:g} kJ.\n")
    click.echo("".join(f"{HEADINGS[way]:>{WIDTH}}" for way in HEADINGS))
    for row in rows:
        click.echo(f"simulated {row.sampling.name}: {row.sampling.source}")
        click.echo("".join(f"{_cell(row.errors[way]):>{WIDTH}}" for way in HEADINGS))
    notes = _notes(rows)
    if notes:
        click.echo("\n* refused: this is what it would have given")
        for note in notes:
            click.echo(f"  {note}")
    click.echo()
    for way, what in {**OTHERS, **OURS}.items():
        click.echo(f"{HEADINGS[way]:17} {what}")
    click.echo(_within(rows))


def _cell(error: Error) -> str:
    return f"{100 * error.worst:.2f} ({100 * error.bias:+.2f}){'*' if error.refused else ' '}"


def _notes(rows: tuple[Row, ...]) -> list[str]:
    return [
        f"{row.sampling.name}, {HEADINGS[way]}, {error.refused} of {row.runs} runs: {error.reason}"
        for row in rows
        for way, error in row.errors.items()
        if error.refused
    ]


def _within(rows: tuple[Row, ...]) -> str:
    shares = [error.within for row in rows for error in row.errors.values() if error.within is not None]
    return (
        "\nWhere ours gives an energy, its uncertainty (k = 2, without the sensor's gain) held the simulated truth in "
        f"{100 * min(shares):.0f} % of the runs of every row, or more."
    )


COMMANDS = (integrators,)

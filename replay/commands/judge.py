"""`agentdyno replay verify` and `report`: a finished run, looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from capture.fault import EnvironmentFault
from replay.commands.shared import (
    FOLDER,
    plain_faults,
    print_text,
)


@click.command()
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the differences as a JSON list.")
def verify(run_folder: Path, as_json: bool) -> None:
    """Compute the score of RUN again from its records; exit code 1 when anything differs.

    \b
    agentdyno replay verify runs/first
    """
    with plain_faults():
        from replay.runfolder import RunFault, RunFolder
        from replay.verify import verify as verify_run

        try:
            differences = verify_run(RunFolder(path=run_folder))
        except (RunFault, FileNotFoundError) as fault:
            raise EnvironmentFault(str(fault)) from fault
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(difference) for difference in differences], indent=1))
    elif differences:
        for difference in differences[:10]:
            print_text(str(difference))
        if len(differences) > 10:
            click.echo(f"… and {len(differences) - 10} more")
        click.echo(f"{run_folder}: {len(differences)} differences: the score does not follow from these files")
    else:
        click.echo(f"{run_folder}: the score follows from its records")
    if differences:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "json"]),
    default="html",
    show_default=True,
    help="html: one page with charts that needs nothing beside it; md: its text and tables; json: score.json with the "
    "verdict in words.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Where to write it; - for stdout. [default: RUN/report.html, .md or .json]",
)
def report(run_folder: Path, form: Literal["html", "md", "json"], out: Path | None) -> None:
    """Write a self-contained report of RUN; of one that is not finished, from the trials so far.

    \b
    agentdyno replay report runs/first
    agentdyno replay report runs/first --format md --out -
    """
    with plain_faults():
        from replay.report import render, write_report
        from replay.runfolder import RunFault, RunFolder

        folder = RunFolder(path=run_folder)
        try:
            said = render(folder, form) if str(out) == "-" else str(write_report(folder, out, form))
        except (RunFault, FileNotFoundError) as fault:
            raise EnvironmentFault(str(fault)) from fault
        click.echo(said)


COMMANDS = (
    verify,
    report,
)

"""`agentdyno replay compare`: two finished runs against each other."""

from __future__ import annotations

from pathlib import Path

import click

from capture.fault import EnvironmentFault
from replay.commands.shared import FOLDER, plain_faults, print_comparison


@click.command()
@click.argument("run_a", metavar="A", type=FOLDER)
@click.argument("run_b", metavar="B", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--markdown", is_flag=True, help="Print the comparison as Markdown tables.")
def compare(run_a: Path, run_b: Path, as_json: bool, markdown: bool) -> None:
    """Compare the scores of two runs: ratios B/A with 95 % intervals, and every setting that differs.

    Exit code 1 with every reason where the two are not comparable.

    \b
    agentdyno replay compare runs/before runs/after
    """
    if as_json and markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    with plain_faults():
        from replay.compare import compare as compare_runs
        from replay.runfolder import RunFault, RunFolder

        try:
            found = compare_runs(RunFolder(path=run_a), RunFolder(path=run_b))
        except RunFault as fault:
            raise EnvironmentFault(str(fault)) from fault
        print_comparison(found, as_json=as_json, markdown=markdown)
    if not found.comparable:
        raise click.exceptions.Exit(1)


COMMANDS = (compare,)

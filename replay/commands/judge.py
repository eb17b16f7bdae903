"""`agentdyno replay verify`, `rescore` and `report`: a finished run, looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
            raise EnvironmentFault(_sentence(run_folder, fault)) from fault
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
    "--power",
    required=True,
    metavar="file:PATH",
    help="Readings of a meter that covers the time of the run: power lines or CSV, on the world's clock.",
)
@click.option(
    "--offset",
    "offset_s",
    default=0.0,
    show_default=True,
    metavar="S",
    help="Seconds to add to the meter's times to make them those of the machine that drove the run.",
)
@click.option(
    "--u-clock",
    "u_clock_s",
    type=click.FloatRange(min=0, max=3600),
    metavar="S",
    help="Standard uncertainty of what is then left between both clocks. [default: as the file says, or 0]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the contents of the new score.json.")
def rescore(run_folder: Path, power: str, offset_s: float, u_clock_s: float | None, as_json: bool) -> None:
    """Add a meter's readings to the finished RUN and compute its score again.

    What the meter covers stands in `system.toml`, as it was when the run began. The former score stays in the folder.
    A CSV has the columns time (ISO 8601 with a zone, or Unix seconds), device, and at least one of energy_j, energy_wh,
    energy_kwh and power_w.

    \b
    agentdyno replay rescore runs/first --power file:rack.csv
    agentdyno replay rescore runs/first --power file:rack.csv --offset -3600 --u-clock 0.5
    """
    with plain_faults():
        from replay.power.choice import parse_power
        from replay.rescore import rescore as rescore_run
        from replay.runfolder import RunFault, RunFolder
        from replay.summary import summary_lines

        choice = parse_power(power)
        if choice.path is None:
            raise click.UsageError("--power is a file here: file:PATH; other sources are read while a run goes on")
        try:
            found = rescore_run(RunFolder(path=run_folder), choice.path, offset_s=offset_s, u_clock_s=u_clock_s)
        except (RunFault, FileNotFoundError) as fault:
            raise EnvironmentFault(_sentence(run_folder, fault)) from fault
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found.score), indent=1).decode())
        return
    number = found.meter.facts.number
    said = "is added" if found.added else "was there already"
    click.echo(
        f"meter {number} {said}; the score from before it is {run_folder / f'score.before-{number}.json'}", err=True
    )
    for line in _changes(run_folder, number, found.score) if found.added else ():
        click.echo(line, err=True)
    print_text("\n".join(summary_lines(found.score)))


def _changes(run_folder: Path, number: int, score: dict[str, Any]) -> list[str]:
    """What a meter brought and what it took away, with how to take it out where it took or brought nothing."""
    from curate.words import printable
    from replay.judge import read_score
    from replay.runfolder import RunFolder
    from replay.sentence import denominator_of

    former = read_score(RunFolder(path=run_folder).former_score_path(number))
    before, after = (
        {row["id"]: denominator_of(row) for result in each["results"] for row in result["denominators"]}
        for each in (former, score)
    )
    new, lost = ([name for key, name in a.items() if key not in b] for a, b in ((after, before), (before, after)))
    lines = [f"  now per megawatt of {', '.join(new)}, too"] if new else []
    lines += [f"  no longer per megawatt of {', '.join(lost)}"] if lost else []
    if lost or (not new and score["results"]):
        told = [*dict.fromkeys(label for label in score["labels"] if label not in former["labels"])]
        lines += [f"  {printable(label)}" for label in told]
        lines += [
            "  nothing new is given per megawatt: [[meters]] of the system file, as it was when the run began, says "
            "what each device covers"
        ] * (not new)
        lines += [
            f"  to take the meter out again: put score.before-{number}.json in the place of score.json, and remove "
            f"meters/{number}"
        ]
    return lines


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
@click.option(
    "--feed",
    metavar="POWER",
    help="Say what a feed of so much power holds (1MW, 250kW, 800000W): whole nodes as provisioned, by the "
    "system file's system_power.json, and the agents and engineers under it.",
)
def report(run_folder: Path, form: Literal["html", "md", "json"], out: Path | None, feed: str | None) -> None:
    """Write a self-contained report of RUN; of one that is not finished, from the trials so far.

    \b
    agentdyno replay report runs/first
    agentdyno replay report runs/first --format md --out -
    agentdyno replay report runs/first --feed 1MW
    """
    with plain_faults():
        from replay.report import render, write_report
        from replay.runfolder import RunFault, RunFolder
        from replay.sections.feed import parse_feed

        feed_w = parse_feed(feed) if feed is not None else None
        folder = RunFolder(path=run_folder)
        try:
            said = (
                render(folder, form, feed_w=feed_w)
                if str(out) == "-"
                else str(write_report(folder, out, form, feed_w=feed_w))
            )
        except (RunFault, FileNotFoundError) as fault:
            raise EnvironmentFault(_sentence(run_folder, fault)) from fault
        click.echo(said)


def _sentence(run_folder: Path, fault: Exception) -> str:
    """The fault; of a sweep's folder, which holds runs and is none, the run to name."""
    run = next(iter(sorted(path.parent for path in run_folder.glob("cap-*w/run.json"))), None)
    if run is None or (run_folder / "run.json").exists():
        return str(fault)
    return f"{run_folder} is a sweep over power caps: name one of its runs, for example {run}"


COMMANDS = (
    verify,
    rescore,
    report,
)

"""`agentdyno replay power provisioned`: a system_power.json, checked, summed and written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.commands.shared import plain_faults, print_text


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write it as Appendix E asks, with computed; - for stdout.",
)
@click.option(
    "--name", help="system_desc_id, where the file has none. [default: the name of the run's system, or the file's]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the sum and its parts as JSON.")
def provisioned(path: Path, out: Path | None, name: str | None, as_json: bool) -> None:
    """Check a system_power.json of MLPerf Endpoints and say what it comes to; FILE may be a run's folder.

    Read are the form of Appendix E and the flat form of earlier drafts. Where a figure is missing nothing is filled in.

    \b
    agentdyno replay power provisioned system_power.json
    agentdyno replay power provisioned runs/first --out system_power.json
    """
    with plain_faults():
        from replay.provisioned import read_provisioned, system_power_json

        data, place, default = _content(path)
        found = read_provisioned(data, place)
        written = system_power_json(data, place, name=name or default) if out is not None else None
    if written is not None:
        _write(written, out)
    if out is not None and str(out) == "-":
        return
    if as_json:
        import dataclasses
        import json

        value = dataclasses.asdict(found) | {"sum_w": found.sum_w, "power_w": found.power_w, "nodes": found.nodes}
        click.echo(json.dumps(value, indent=1))
    else:
        from replay.provisioned import provisioned_lines

        print_text("\n".join(provisioned_lines(found)))


def _content(path: Path) -> tuple[dict[str, Any], str, str]:
    """What a file or a run's folder holds, its place for a fault, and the system's name."""
    from capture.fault import EnvironmentFault
    from replay.provisioned import load_json

    if not path.is_dir():
        return load_json(path), str(path), path.stem
    from replay.runfolder import RunFault, RunFolder

    try:
        system = RunFolder(path=path).inputs().system
    except RunFault as fault:
        raise EnvironmentFault(str(fault)) from fault
    if system.get("provisioned") is None:
        raise EnvironmentFault(
            f'the system of {path} names no system_power.json: write provisioned = "system_power.json" into the '
            "system file and score again"
        )
    return system["provisioned"], f"{path}: the system's system_power.json", str(system.get("name") or path.name)


def _write(written: dict[str, object], out: Path | None) -> None:
    import json

    text = json.dumps(written, indent=1) + "\n"
    if out is None or str(out) == "-":
        click.echo(text, nl=False)
        return
    from capture.atomic import write_atomically

    write_atomically(out, text.encode())
    click.echo(f"{out} is written", err=True)

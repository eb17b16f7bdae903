"""`agentdyno replay probe`: what a server is and honours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replay.commands.shared import FILE, FOLDER, endpoint_of, plain_faults, print_text, server_options

if TYPE_CHECKING:
    from replay.fitting import Fitting
    from replay.identify import Identity
    from replay.probe import ProbeReport


@click.command()
@server_options
@click.option("--dataset", type=FOLDER, help="List which sessions of this dataset the server can be asked to serve.")
@click.option(
    "--context-scale", default=1.0, show_default=True, help="With --dataset: shorten contexts by this factor."
)
@click.option("--length", default="exact", show_default=True, metavar="RULE", help="With --dataset: as for a run.")
@click.option(
    "--write", type=FILE, metavar="FILE", help="Draft a system.toml from what the server tells; the file must be new."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found.")
def probe(
    dataset: Path | None, context_scale: float, length: str, write: Path | None, as_json: bool, **options: Any
) -> None:
    """Ask a server what it is and honours: engine, output length, usage, tools, token ids, context, prefix cache.

    Of several URLs the first is asked.

    \b
    agentdyno replay probe --url http://127.0.0.1:8000 --model m
    agentdyno replay probe --url http://127.0.0.1:8000 --model m --dataset my-dataset
    agentdyno replay probe --url http://127.0.0.1:8000 --model m --write system.toml
    """
    if write is not None and write.exists():
        raise click.UsageError(f"{write} exists: name a new file, or remove it")
    with plain_faults():
        from replay import loop
        from replay.probe import examine, probe_lines

        report, identity = loop.run(examine(endpoint_of(options)))
        found = _fitting(dataset, report, context_scale, length) if dataset is not None else None
        if write is not None:
            _write(write, report, identity)
    if as_json:
        import msgspec

        value: dict[str, Any] = msgspec.to_builtins(report)
        if found is not None:
            value["dataset"] = msgspec.to_builtins(found)
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())
    else:
        from replay.fitting import fitting_lines

        print_text("\n".join(probe_lines(report) + ([] if found is None else fitting_lines(found))))
    if write is not None:
        click.echo(f"wrote {write}: check it and fill in what is missing", err=True)


def _fitting(folder: Path, report: ProbeReport, scale: float, length: str) -> Fitting:
    from curate.dataset import Dataset
    from replay.fitting import fitting
    from replay.rules import ContextPolicy, LengthPolicy

    dataset = Dataset.open(folder)
    return fitting(
        dataset.trajectories(packed=True),
        report,
        dataset_digest=dataset.digest,
        context=ContextPolicy(scale=scale),
        length=LengthPolicy.parse(length),
    )


def _write(path: Path, report: ProbeReport, identity: Identity) -> None:
    from capture.atomic import write_once
    from replay.draft import draft_system, is_local, local_gpus

    text = draft_system(report, identity, local_gpus() if is_local(report.url) else ())
    if not write_once(path, text.encode(), mode=0o666):
        raise click.UsageError(f"{path} exists: name a new file, or remove it")


COMMANDS = (probe,)

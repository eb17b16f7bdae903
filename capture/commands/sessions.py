"""`capture import`, `sessions` and `show`: sessions in a store, recorded and imported."""

from __future__ import annotations

from pathlib import Path

import click

from capture.commands.shared import named_store, reading_faults, recording_store, say, store_option, warn

_FORMATS = ("weka", "agentperf-local")


@click.command("import")
@click.argument("form", metavar="FORMAT")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@store_option
def import_(form: str, paths: tuple[Path, ...], store_path: Path | None) -> None:
    """Import sessions that another tool recorded: all of the named files, or none.

    FORMAT is weka (trace files, or folders of them) or agentperf-local (manifests; without a PATH the replay inside
    the installed package). A session that was imported before is replaced.

    \b
    Example:
      agentdyno capture import weka traces/*.json --store ~/traces
      agentdyno capture import agentperf-local --store ~/traces
    """
    if form not in _FORMATS:
        raise click.UsageError(f"no format {form!r}: known are {', '.join(_FORMATS)}")
    if form == "weka" and not paths:
        raise click.UsageError("name the Weka trace files, or folders of them")
    with reading_faults():
        from rich.console import Console
        from rich.progress import Progress

        from capture.importers.imported import ImportFault
        from capture.importers.read import read_imported
        from capture.shelf import Shelf
        from capture.store import Store

        console = Console(stderr=True)
        # Read before the store is made: a bad file leaves nothing behind, not even a folder.
        path = named_store(store_path)
        key = Store.open(path).key if Store.exists(path) else None
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"reading {form}", total=None)
            try:
                imported = read_imported(form, paths, key or b"", on_file=lambda _: progress.advance(task))
            except ImportFault as fault:
                raise click.UsageError(f"nothing imported: {fault}") from fault
        if key is None:
            imported = imported.with_key(recording_store(path).key)
        replaced = Shelf(path).put_all(imported.trajectories)
        for note in imported.notes:
            say(note)
        calls = sum(len(trajectory.requests) for trajectory in imported.trajectories)
        again = f", {len(replaced)} of them replaced" if replaced else ""
        say(f"imported {len(imported.trajectories)} sessions with {calls} calls into {path}{again}")


@click.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="A JSON list of sessions, with the dataset's column names.")
def sessions(store_path: Path | None, as_json: bool) -> None:
    """List the sessions of a store, recorded and imported.

    \b
    Example:
      agentdyno capture sessions --store ~/traces --json
    """
    with reading_faults():
        from capture.sessions import read_sessions

        problems: list[str] = []
        found = read_sessions(named_store(store_path), problems)
        if as_json:
            import json

            from capture.view import session_columns

            click.echo(json.dumps([session_columns(trajectory) for trajectory in found], indent=2))
        else:
            from rich.console import Console

            from capture.timeline import print_sessions

            listed = list(found)
            if listed:
                print_sessions(listed, Console())
            else:
                say(f"{named_store(store_path)} holds no session yet")
        warn(problems)


@click.command()
@click.argument("session")
@store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: session, requests, tool_calls.")
def show(session: str, store_path: Path | None, as_json: bool) -> None:
    """Show one session: each call and each tool, with times and tokens. The first digits of its id are enough.

    \b
    Example:
      agentdyno capture show 3fa2 --store ~/traces
    """
    with reading_faults():
        from capture.sessions import find_session

        problems: list[str] = []
        trajectory = find_session(named_store(store_path), session, problems)
        if as_json:
            import json

            from capture.view import session_json

            click.echo(json.dumps(session_json(trajectory), indent=2))
        else:
            from rich.console import Console

            from capture.timeline import print_session

            print_session(trajectory, Console())
        warn(problems)


COMMANDS = (import_, sessions, show)

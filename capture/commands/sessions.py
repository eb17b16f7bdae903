"""`capture import`, `sessions`, `show`, `join` and `activity`: sessions in a store, recorded and imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.commands.shared import named_store, reading_faults, recording_store, say, store_option, warn
from capture.fault import EnvironmentFault
from capture.importers.formats import FORMATS

if TYPE_CHECKING:
    from capture.activity import ContributorActivity
    from capture.importers.imported import Imported
    from capture.join import JoinResult
    from capture.sessions import HiddenTwin


_MOST_NOTES = 20  # a folder of a thousand sessions may have one for each


def _formats() -> str:
    """The table of formats, for the help."""
    width = max(len(known.name) for known in FORMATS)
    rows = "\n".join(f"  {known.name:{width}}  {known.what}" for known in FORMATS)
    return f"\b\nFormats, and what a PATH is [where none is named]:\n{rows}"


@click.command("import", epilog=_formats())
@click.argument("form", metavar="FORMAT")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@store_option
@click.option("--json", "as_json", is_flag=True, help="A JSON object that sums the import up.")
def import_(form: str, paths: tuple[Path, ...], store_path: Path | None, as_json: bool) -> None:
    """Import sessions that another tool recorded, or that an agent logged by itself: all of the named files, or none.

    A session that was imported before is replaced. What a source does not tell stays unknown; a note says whose token
    counts it carries.

    \b
    Example:
      agentdyno capture import claude-code
      agentdyno capture import codex ~/.codex/sessions/2026/11 --json
      agentdyno capture import weka traces/*.json --store ~/traces
    """
    with reading_faults():
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from capture.importers.formats import find_format
        from capture.importers.imported import ImportFault
        from capture.shelf import Shelf
        from capture.store import Store

        try:
            known = find_format(form)
        except ImportFault as fault:
            raise click.UsageError(str(fault)) from fault
        if known.needs_path and not paths:
            raise click.UsageError(f"{form} needs a PATH: {known.what}")
        console = Console(stderr=True)
        # Read before the store is made: a bad file leaves nothing behind, not even a folder.
        path = named_store(store_path)
        key = Store.open(path).key if Store.exists(path) else None
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"reading {form}", total=None)

            def reading(file: Path) -> None:
                progress.update(task, description=escape(f"reading {file.name}"), advance=1)

            try:
                imported = known.read(paths, key or b"", on_file=reading)
            except ImportFault as fault:
                raise click.UsageError(f"nothing imported: {fault}") from fault
            if not imported.trajectories:
                places = ", ".join(map(str, paths)) or f"the folders of {form}"
                raise click.UsageError(f"nothing imported: no session with an answer of a model in {places}")
            if key is None:
                progress.stop()  # what a new store will hold is to be read
                imported = imported.with_key(recording_store(path).key)
                progress.start()
            progress.update(task, description=f"writing {len(imported.trajectories)} sessions")
            replaced = Shelf(path).put_all(imported.trajectories)
            recorded = _recorded_too(path, imported)
        calls = sum(len(trajectory.requests) for trajectory in imported.trajectories)
        for note in imported.notes[:_MOST_NOTES]:
            say(note)
        if len(imported.notes) > _MOST_NOTES:
            say(f"and {len(imported.notes) - _MOST_NOTES} notes more: --json has them all")
        if recorded:
            say(
                f"{len(recorded)} of these sessions are in the store from the wire as well, so they are listed twice: "
                f"`agentdyno capture join --store {path}` makes one of two"
            )
        again = f", {len(replaced)} of them replaced" if replaced else ""
        say(f"imported {len(imported.trajectories)} sessions with {calls} calls into {path}{again}")
        if as_json:
            import json

            summary = {
                "format": form,
                "store": str(path),
                "session_ids": [trajectory.session_id for trajectory in imported.trajectories],
                "calls": calls,
                "tool_calls": sum(len(trajectory.tool_calls) for trajectory in imported.trajectories),
                "replaced": replaced,
                "recorded_too": recorded,
                "notes": list(imported.notes),
            }
            click.echo(json.dumps(summary, indent=2))


def _recorded_too(store_path: Path, imported: Imported) -> list[str]:
    """Ids of the imported sessions whose calls a recorder of this store saw as well, and that are not joined to them.

    The agent's session id in a request's header tells; assembling the recordings for it would cost as much again.
    """
    from capture.joined import Joined, JoinedFault
    from capture.store import Store

    store = Store.open(store_path)
    names = {
        native.partition(":")[2]: trajectory.session_id
        for native, trajectory in zip(imported.native_ids, imported.trajectories, strict=True)
    }
    seen: set[str] = set()
    if store.journals():
        seen.update(value for exchange in store.exchanges([]) for _, value in exchange.request_headers)
    joined = Joined(store_path)
    for name in joined.session_ids():
        with suppress(JoinedFault):  # said wherever sessions are listed
            seen.difference_update(
                native for log in joined.load(name) for native, session in names.items() if log.twin == session
            )
    return [session for name, session in names.items() if name in seen]


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
        hidden: list[HiddenTwin] = []
        found = read_sessions(named_store(store_path), problems, hidden)
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
        for twin in hidden:
            more = f"; {twin.calls_only_in_log} calls are only in the import" if twin.calls_only_in_log else ""
            say(f"import {twin.session_id[:12]} is not listed: it is joined to {twin.recorded[:12]}{more}")


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


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@store_option
@click.option("--json", "as_json", is_flag=True, help="A JSON list: what matched, per session and log.")
def join(paths: tuple[Path, ...], store_path: Path | None, as_json: bool) -> None:
    """Make one of the recorded sessions and the agents' own logs of them.

    The recording stays the truth for bytes and latency; a log adds how long tools and people took, and how tools ended
    where that was not recorded. Only ids decide what belongs together. Kept are ids and durations, no text: from now
    on every command reads the session with them. Joining again replaces; deleting the session forgets it.

    PATH is a log or a folder of logs. Without one, the agents' usual folders are searched for the sessions of the
    store: by the names of the files for Claude Code and Codex, for pi and opencode in what has changed since the first
    recorded session. Where the same log was imported into this store too, the import is no longer
    listed beside the recorded session (`sessions` says so; `show` with its whole id still has it).

    \b
    Example:
      agentdyno capture join --store ~/traces
      agentdyno capture join ~/.claude/projects/my-project --store ~/traces
    """
    with reading_faults():
        import os

        from capture.importers.imported import ImportFault
        from capture.join import join_logs
        from capture.joined import JoinedFault
        from capture.log_files import named_log_files, usual_log_files
        from capture.store import Store

        store = Store.open(named_store(store_path)).own()
        problems: list[str] = []
        try:
            files = list(named_log_files(paths) if paths else usual_log_files(os.environ))
            results = join_logs(store, files, problems)
        except ImportFault as fault:
            raise click.UsageError(f"nothing joined: {fault}") from fault
        except JoinedFault as fault:
            raise EnvironmentFault(str(fault)) from fault
        if as_json:
            import dataclasses
            import json

            click.echo(
                json.dumps([{"joined": result.joined} | dataclasses.asdict(result) for result in results], indent=2)
            )
        else:
            for result in results:
                click.echo(_join_line(result))
                for note in result.notes:
                    click.echo(f"    {note}")
        warn(problems)
        count = len({result.session_id for result in results if result.joined})
        say(f"{count} of {len({result.session_id for result in results} - {None})} recorded sessions joined")
    if paths and not count:
        raise SystemExit(1)


def _join_line(result: JoinResult) -> str:
    if result.session_id is None:
        return f"{', '.join(result.log_paths)}: not joined"
    if result.source is None:
        return f"{result.session_id}  {result.harness}: no log"
    both = f"{result.session_id}  {result.harness} + {result.source}"
    calls = f"{result.calls_matched} of {result.calls_wire} calls"
    tools = f"{result.tools_matched} of {result.tools_wire} tool calls"
    return f"{both}: {calls}, {tools}, {result.human_waits} waits for a person"


@click.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="A JSON list: per contributor the peak and the time per number.")
def activity(store_path: Path | None, as_json: bool) -> None:
    """How many agents each person had at work at one time, sub-agents included.

    An agent is at work while a model answers it or its own tools run, not while it waits for its human or for its
    sub-agents. The bars say for which part of the time with any agent at work so many were. Sessions without a name
    count together; imported datasets of others do not count.

    \b
    Example:
      agentdyno capture activity --store ~/traces
    """
    with reading_faults():
        from capture.activity import by_contributor
        from capture.sessions import read_activities

        problems: list[str] = []
        people = by_contributor(read_activities(named_store(store_path), problems))
        if as_json:
            import json

            click.echo(json.dumps([_activity_json(person) for person in people], indent=2))
        else:
            for person in people:
                for line in _activity_lines(person):
                    click.echo(line)
            if not people:
                say(f"{named_store(store_path)} holds no session of its own people yet")
        warn(problems)


def _activity_json(person: ContributorActivity) -> dict[str, object]:
    return {
        "contributor": person.contributor,
        "sessions": person.sessions,
        "agents": person.agents,
        "peak_agents": person.peak,
        "peak_agents_at_least": person.concurrency.peak,
        "active_us": person.concurrency.active_us,
        "agents_us": {str(count): spent for count, spent in person.concurrency.by_agents.items()},
        "agents_share": {str(count): round(share, 6) for count, share in person.concurrency.shares.items()},
    }


def _activity_lines(person: ContributorActivity) -> Iterator[str]:
    from capture.timeline import seconds

    peak = f"peak {person.peak}" if person.peak is not None else f"peak at least {person.concurrency.peak}"
    yield (
        f"{person.contributor or 'nobody named'}: {peak} at work at one time; {person.sessions} sessions, "
        f"{person.agents} agents, {seconds(person.concurrency.active_us)} with any at work"
    )
    for count, share in person.concurrency.shares.items():
        bar = "█" * round(40 * share) or "▏"
        spent = seconds(person.concurrency.by_agents[count])
        yield f"  {count:>4} at work  {share:>6.1%}  {spent:>12}  {bar}"


COMMANDS = (import_, sessions, show, join, activity)

"""`agentdyno capture …`: record, import and look at sessions."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.atomic import write_atomically
from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capture.store import Store
    from capture.upstream import Routes


@click.group()
def capture() -> None:
    """Record real coding-agent sessions, or import recorded ones."""


def _default_store() -> Path:
    from capture.store import default_store

    return default_store()


def _need_recorder() -> None:
    """Stop before a store is made where nothing could be recorded into it."""
    if importlib.util.find_spec("mitmproxy") is None:
        raise EnvironmentFault("mitmproxy is missing: install the extra `agentdyno[capture]`")


def _recording_store(path: Path | None) -> Store:
    """The store to record into, made if missing; the first time it says what will be in it."""
    from capture.store import Store, StoreError

    path = path or _default_store()
    first = not Store.exists(path)
    try:
        store = Store.open(path, create=True)
    except StoreError as fault:
        raise EnvironmentFault(str(fault)) from fault
    if first:
        _say(
            f"new store {path}, readable by you alone: requests and responses go in as sent, with the text of prompts "
            "and answers; authorization headers, cookies and keys in URLs never do. Delete the folder to forget it all."
        )
    return store


def _say(sentence: str) -> None:
    """A line on stderr at once: stdout belongs to data, or to the agent."""
    sys.stderr.write(f"agentdyno: {sentence}\n")
    sys.stderr.flush()


def _routes(upstream: str | None, routes: tuple[str, ...]) -> Routes:
    from capture.upstream import Routes, Upstream, UpstreamError

    if not upstream and not routes:
        raise click.UsageError("name an upstream: --upstream URL, or --route anthropic=URL --route openai=URL")
    try:
        named: list[tuple[str, Upstream]] = []
        for route in routes:
            segment, equals, url = route.partition("=")
            if not equals or not segment or "/" in segment:
                raise click.UsageError(
                    f"--route {route!r}: write NAME=URL, where NAME is the first segment of the path"
                )
            if segment in dict(named):
                raise click.UsageError(f"--route {segment}=… is given twice: which upstream is meant?")
            named.append((segment, Upstream.parse(url)))
        return Routes(default=Upstream.parse(upstream) if upstream else None, by_segment=tuple(named))
    except UpstreamError as fault:
        raise click.UsageError(str(fault)) from fault


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"--listen {text!r}: write HOST:PORT, for example 127.0.0.1:0 for a free port")
    return host, int(port)


@capture.command()
@click.option("--upstream", metavar="URL", help="Base URL that every request goes to.")
@click.option(
    "--route", "routes", multiple=True, metavar="NAME=URL", help="Requests under /NAME/… go there. Repeatable."
)
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Port 0 picks a free one."
)
@click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    help="Folder to record into [AGENTDYNO_STORE, else data home].",
)
@click.option("--ready-file", type=click.Path(path_type=Path), help="Gets the base URL once connections are accepted.")
@click.option("--label", default="", hidden=True, help="Written into the journal, to find it again.")
@click.option("--stop-with-stdin", is_flag=True, hidden=True, help="Stop when stdin ends: the launcher is gone.")
def serve(
    upstream: str | None,
    routes: tuple[str, ...],
    listen: str,
    store_path: Path | None,
    ready_file: Path | None,
    label: str,
    stop_with_stdin: bool,
) -> None:
    """Record what agents send through this reverse proxy, until it is stopped.

    Prints its base URL on stdout; point the agent there.

    \b
    Example:
      agentdyno capture serve --upstream https://api.anthropic.com --listen 127.0.0.1:8100
      ANTHROPIC_BASE_URL=http://127.0.0.1:8100 claude
    """
    where = _routes(upstream, routes)
    address = _address(listen)
    _need_recorder()
    store = _recording_store(store_path)
    try:
        from capture.proxy import ListenError, serve
    except ModuleNotFoundError as error:
        raise EnvironmentFault(f"{error.name} is missing: install the extra `agentdyno[capture]`") from error

    def ready(url: str) -> None:
        if ready_file is not None:
            try:
                write_atomically(ready_file, f"{url}\n".encode())
            except OSError as error:
                raise EnvironmentFault(f"cannot write the ready file {ready_file}: {error.strerror}") from error
        with suppress(OSError):  # nobody reads it: then the ready file or a fixed port names the address
            click.echo(url)

    def loud(sentence: str) -> None:
        _say(f"RECORDING STOPPED, relaying goes on: {sentence}")

    try:
        served = serve(
            where,
            store=store,
            listen=address,
            on_ready=ready,
            on_fault=loud,
            label=label,
            stop_with_stdin=stop_with_stdin,
        )
    except ListenError as error:
        raise EnvironmentFault(str(error)) from error
    except OSError as error:
        raise EnvironmentFault(f"cannot record into {store.path}: {error}") from error
    if served.fault is not None:
        raise EnvironmentFault(f"the recording in {served.journal} is not complete: {served.fault}")


@capture.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--upstream", metavar="URL", help="The provider's root URL [the agent's own setting, else the public one]."
)
@click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    help="Folder to record into [AGENTDYNO_STORE, else data home].",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(upstream: str | None, store_path: Path | None, command: tuple[str, ...]) -> None:
    """Run an agent behind a recorder of its own, and pass its exit code through.

    \b
    Example:
      agentdyno capture run -- claude -p "fix the failing test"
      agentdyno capture run --upstream http://127.0.0.1:9000 -- codex exec "say hello"
    """
    from capture.launch import LaunchError, launch
    from capture.upstream import UpstreamError

    _need_recorder()
    store = _recording_store(store_path)
    try:
        code = launch(list(command), store=store, upstream=upstream, say=_say)
    except UpstreamError as fault:
        raise click.UsageError(str(fault)) from fault
    except LaunchError as fault:
        raise EnvironmentFault(str(fault)) from fault
    raise SystemExit(code)


def _existing_store(path: Path | None) -> Path:
    return path or _default_store()


@contextmanager
def _reading_faults() -> Iterator[None]:
    """Turn the library's errors into one sentence and an exit code."""
    try:
        from capture.sessions import NoSuchSession
        from capture.shelf import ShelfFault
        from capture.store import StoreError
    except ModuleNotFoundError as error:
        raise EnvironmentFault(f"{error.name} is missing: install the extra `agentdyno[capture]`") from error
    try:
        yield
    except (NoSuchSession, StoreError) as fault:
        raise click.UsageError(str(fault)) from fault
    except ShelfFault as fault:
        raise EnvironmentFault(str(fault)) from fault


def _warn(problems: list[str]) -> None:
    for problem in problems:
        _say(problem)


_FORMATS = ("weka", "agentperf-local")

_store_option = click.option(
    "--store", "store_path", type=click.Path(path_type=Path), help="The store [AGENTDYNO_STORE, else data home]."
)


@capture.command("import")
@click.argument("form", metavar="FORMAT")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@_store_option
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
    with _reading_faults():
        from rich.console import Console
        from rich.progress import Progress

        from capture.importers.imported import ImportFault
        from capture.importers.read import read_imported
        from capture.shelf import Shelf
        from capture.store import Store

        console = Console(stderr=True)
        # Read before the store is made: a bad file leaves nothing behind, not even a folder.
        path = _existing_store(store_path)
        key = Store.open(path).key if Store.exists(path) else None
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"reading {form}", total=None)
            try:
                imported = read_imported(form, paths, key or b"", on_file=lambda _: progress.advance(task))
            except ImportFault as fault:
                raise click.UsageError(f"nothing imported: {fault}") from fault
        if key is None:
            imported = imported.with_key(_recording_store(path).key)
        replaced = Shelf(path).put_all(imported.trajectories)
        for note in imported.notes:
            _say(note)
        calls = sum(len(trajectory.requests) for trajectory in imported.trajectories)
        again = f", {len(replaced)} of them replaced" if replaced else ""
        _say(f"imported {len(imported.trajectories)} sessions with {calls} calls into {path}{again}")


@capture.command()
@_store_option
@click.option("--json", "as_json", is_flag=True, help="A JSON list of sessions, with the dataset's column names.")
def sessions(store_path: Path | None, as_json: bool) -> None:
    """List the sessions of a store, recorded and imported.

    \b
    Example:
      agentdyno capture sessions --store ~/traces --json
    """
    with _reading_faults():
        from capture.sessions import read_sessions

        problems: list[str] = []
        found = read_sessions(_existing_store(store_path), problems)
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
                _say(f"{_existing_store(store_path)} holds no session yet")
        _warn(problems)


@capture.command()
@click.argument("session")
@_store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: session, requests, tool_calls.")
def show(session: str, store_path: Path | None, as_json: bool) -> None:
    """Show one session: each call and each tool, with times and tokens. The first digits of its id are enough.

    \b
    Example:
      agentdyno capture show 3fa2 --store ~/traces
    """
    with _reading_faults():
        from capture.sessions import find_session

        problems: list[str] = []
        trajectory = find_session(_existing_store(store_path), session, problems)
        if as_json:
            import json

            from capture.view import session_json

            click.echo(json.dumps(session_json(trajectory), indent=2))
        else:
            from rich.console import Console

            from capture.timeline import print_session

            print_session(trajectory, Console())
        _warn(problems)

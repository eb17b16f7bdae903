"""`capture serve` and `capture run`: record."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.atomic import write_atomically
from capture.commands.shared import recording_store, say
from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from capture.upstream import Routes


def _need_recorder() -> None:
    """Stop before a store is made where nothing could be recorded into it."""
    if importlib.util.find_spec("mitmproxy") is None:
        raise EnvironmentFault("mitmproxy is missing: install the extra `agentdyno[capture]`")


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


@click.command()
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
    store = recording_store(store_path)
    from capture.proxy import ListenError, serve

    def ready(url: str) -> None:
        if ready_file is not None:
            try:
                write_atomically(ready_file, f"{url}\n".encode())
            except OSError as error:
                raise EnvironmentFault(f"cannot write the ready file {ready_file}: {error.strerror}") from error
        with suppress(OSError):  # nobody reads it: then the ready file or a fixed port names the address
            click.echo(url)

    def loud(sentence: str) -> None:
        say(f"RECORDING STOPPED, relaying goes on: {sentence}")

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


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
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
    store = recording_store(store_path)
    try:
        code = launch(list(command), store=store, upstream=upstream, say=say)
    except UpstreamError as fault:
        raise click.UsageError(str(fault)) from fault
    except LaunchError as fault:
        raise EnvironmentFault(str(fault)) from fault
    raise SystemExit(code)


COMMANDS = (serve, run)

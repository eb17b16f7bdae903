"""`capture pause`, `resume`, `exclude`: what is not recorded in the first place."""

from __future__ import annotations

from pathlib import Path

import click

from capture.commands.shared import named_store, reading_faults, recording_store, say, store_option
from capture.fault import EnvironmentFault


@click.command()
@click.option("--for", "time", metavar="TIME", help="30m, 2h: record again after that [until `capture resume`].")
@store_option
def pause(time: str | None, store_path: Path | None) -> None:
    """Stop writing into a store within a second; its recorders go on relaying.

    \b
    Example:
      agentdyno capture pause --for 30m
    """
    from capture.commands.keep import seconds
    from capture.pause import pause

    for_s = None if time is None else seconds(time)
    with reading_faults():
        store = recording_store(named_store(store_path))
        try:
            pause(store.path, for_s)
        except OSError as fault:
            raise EnvironmentFault(f"cannot pause {store.path}: {fault.strerror or fault}") from fault
    until = "until `agentdyno capture resume`" if time is None else f"for {time}"
    say(f"paused {store.path} {until}: requests are relayed, and nothing of them is written but that they were")


@click.command()
@store_option
def resume(store_path: Path | None) -> None:
    """Write into a paused store again.

    \b
    Example:
      agentdyno capture resume
    """
    from capture.pause import resume
    from capture.store import Store

    with reading_faults():
        store = Store.open(named_store(store_path))
        try:
            was = resume(store.path)
        except OSError as fault:
            raise EnvironmentFault(f"cannot resume {store.path}: {fault.strerror or fault}") from fault
    say(f"recording into {store.path} again" if was else f"{store.path} was not paused")


@click.group()
def exclude() -> None:
    """Repositories whose sessions are never recorded."""


@exclude.command()
@click.argument("what", metavar="PATH-OR-REMOTE")
@store_option
def add(what: str, store_path: Path | None) -> None:
    """Exclude a folder with all below it, or a repository by the address of a git remote.

    `capture run` does not start a recorder there. A running recorder reads the folder out of each request, as the
    agent states it, and writes nothing of that session. What the session sent before it stated its folder is hidden
    then, and leaves the disk when the next recorder starts; what no session id ties to it stays.

    \b
    Example:
      agentdyno capture exclude add ~/work/secret
      agentdyno capture exclude add git@github.com:owner/secret.git
    """
    from capture.exclusion import ExclusionError, add

    with reading_faults():
        store = recording_store(named_store(store_path))
        try:
            entry = add(store.path, what)
        except ExclusionError as fault:
            raise click.UsageError(str(fault)) from fault
    say(f"excluded from {store.path}: {entry}")


@exclude.command("list")
@store_option
def list_(store_path: Path | None) -> None:
    """Print what is excluded, one entry a line.

    \b
    Example:
      agentdyno capture exclude list
    """
    from capture.exclusion import ExclusionError, read_exclusions
    from capture.store import Store

    with reading_faults():
        try:
            listed = read_exclusions(Store.open(named_store(store_path)).path)
        except ExclusionError as fault:
            raise EnvironmentFault(str(fault)) from fault
    for entry in (*listed.folders, *listed.remotes):
        click.echo(entry)


@exclude.command()
@click.argument("what", metavar="PATH-OR-REMOTE")
@store_option
def remove(what: str, store_path: Path | None) -> None:
    """Record a folder or repository again.

    \b
    Example:
      agentdyno capture exclude remove ~/work/secret
    """
    from capture.exclusion import ExclusionError, remove
    from capture.store import Store

    with reading_faults():
        try:
            entry = remove(Store.open(named_store(store_path)).path, what)
        except ExclusionError as fault:
            raise click.UsageError(str(fault)) from fault
    say(f"recorded again: {entry}")


COMMANDS = (pause, resume, exclude)

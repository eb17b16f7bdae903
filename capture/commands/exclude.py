"""`capture exclude`: repositories of which nothing is recorded."""

from __future__ import annotations

from pathlib import Path

import click

from capture.commands.shared import named_store, reading_faults, recording_store, say, store_option
from capture.fault import EnvironmentFault


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
        except OSError as fault:
            raise EnvironmentFault(f"cannot change what {store.path} excludes: {fault.strerror or fault}") from fault
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
        store = Store.open(named_store(store_path)).own()
        try:
            entry = remove(store.path, what)
        except ExclusionError as fault:
            raise click.UsageError(str(fault)) from fault
        except OSError as fault:
            raise EnvironmentFault(f"cannot change what {store.path} excludes: {fault.strerror or fault}") from fault
    say(f"recorded again: {entry}")


COMMANDS = (exclude,)

"""`capture pause` and `resume`: what is relayed and not recorded for a while."""

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


COMMANDS = (pause, resume)

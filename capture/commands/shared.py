"""What the capture commands share: the store that is meant, words on stderr, faults as exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from capture.store import Store


def named_store(path: Path | None) -> Path:
    """The store that is meant: the one named, else the default one."""
    from capture.store import default_store

    return path or default_store()


def recording_store(path: Path | None) -> Store:
    """The store to record into, made if missing; the first time it says what will be in it."""
    from capture.store import Store, StoreError

    path = named_store(path)
    first = not Store.exists(path)
    try:
        store = Store.open(path, create=True)
    except StoreError as fault:
        raise EnvironmentFault(str(fault)) from fault
    if first:
        say(
            f"new store {path}, readable by you alone. Written into it: requests and responses as sent, with the text "
            "of prompts, files and answers, their times and sizes. Never written: authorization headers, cookies, keys "
            "in URLs, bodies of logins. `agentdyno capture pause`, `exclude`, `delete` and `prune` keep things out of "
            "it, or take them out; delete the folder to forget it all."
        )
    _finish_deleting(store)
    return store


def _finish_deleting(store: Store) -> None:
    """What was deleted while a recorder still wrote it leaves the disk before the next one starts."""
    from capture.erase import purge

    try:
        warn(purge(store).problems)
    except OSError as fault:
        say(f"cannot finish deleting in {store.path}: {fault.strerror or fault}")


def say(sentence: str) -> None:
    """A line on stderr at once: stdout belongs to data, or to the agent. Nothing where stderr is closed or full."""
    with suppress(ValueError, AttributeError):  # Python has none where its descriptor was closed
        try:
            sys.stderr.write(f"agentdyno: {sentence}\n")
            sys.stderr.flush()
        except OSError:
            # What stays in the buffer would fail once more when Python ends, and 3.12 makes that its exit code.
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end of the process


@contextmanager
def reading_faults() -> Iterator[None]:
    """Turn the library's errors into one sentence and an exit code."""
    from capture.sessions import NoSuchSession
    from capture.shelf import ShelfFault
    from capture.store import StoreError

    try:
        yield
    except (NoSuchSession, StoreError) as fault:
        raise click.UsageError(str(fault)) from fault
    except ShelfFault as fault:
        raise EnvironmentFault(str(fault)) from fault


def warn(problems: list[str]) -> None:
    """Say each problem in a line of its own."""
    for problem in problems:
        say(problem)


store_option = click.option(
    "--store", "store_path", type=click.Path(path_type=Path), help="The store [AGENTDYNO_STORE, else data home]."
)

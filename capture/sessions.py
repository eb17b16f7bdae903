"""All sessions of a store: those on its journals, assembled anew each time, and the imported ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from capture.assemble import assemble
from capture.call import Message, ModelCall, Tool
from capture.dialect import read_calls
from capture.shelf import Shelf, ShelfFault
from capture.store import Store
from capture.trajectory import Trajectory


class NoSuchSession(ValueError):
    """No session, or more than one, goes by this id."""


def read_sessions(store_path: Path | str, problems: list[str]) -> Iterator[Trajectory]:
    """Recorded sessions in order of their first send, then imported ones; a sentence per damaged place to `problems`.

    StoreError when there is no store. A damaged place never hides the rest.
    """
    store = Store.open(store_path)
    yield from assemble(_read_calls(store, problems), store.key)
    shelf = Shelf(store_path)
    for session_id in shelf.session_ids():
        try:
            yield shelf.load(session_id)
        except ShelfFault as fault:
            problems.append(str(fault))


def _read_calls(store: Store, problems: list[str]) -> Iterator[ModelCall]:
    # Every turn repeats the whole prompt: equal messages become one object, or a long session would fill the memory.
    messages: dict[Message, Message] = {}
    tools: dict[tuple[Tool, ...], tuple[Tool, ...]] = {}
    for exchange in store.exchanges(problems):
        for call in read_calls(exchange):
            yield replace(
                call,
                system=tuple(messages.setdefault(message, message) for message in call.system),
                messages=tuple(messages.setdefault(message, message) for message in call.messages),
                tools=tools.setdefault(call.tools, call.tools),
            )


def find_session(store_path: Path | str, session_id: str, problems: list[str] | None = None) -> Trajectory:
    """The session with this id, or the only one whose id starts so; NoSuchSession otherwise."""
    wanted = session_id.strip().lower()
    problems = [] if problems is None else problems
    shelf = Shelf(Store.open(store_path).path)
    if wanted in shelf.session_ids():
        return shelf.load(wanted)  # a whole id needs no look at the journals
    found: list[Trajectory] = []
    seen = 0
    for trajectory in read_sessions(store_path, problems):
        seen += 1
        if trajectory.session_id == wanted:
            return trajectory
        if wanted and trajectory.session_id.startswith(wanted):
            found.append(trajectory)
    if len(found) == 1:
        return found[0]
    if found:
        few = ", ".join(trajectory.session_id[: len(wanted) + 4] for trajectory in found[:4])
        raise NoSuchSession(f"{len(found)} sessions start with {session_id!r} ({few} …): give more digits")
    raise NoSuchSession(
        f"no session {session_id!r} among the {seen} of {store_path}: "
        f"`agentdyno capture sessions --store {store_path}` lists them"
    )

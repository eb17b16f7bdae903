"""All sessions of a store: those on its journals, assembled anew each time, and the imported ones.

The way of a recorded session: exchanges → calls → `assemble` → tool times of the agent's telemetry and of joined logs
→ how many agents were active. Of an imported one: its file on the shelf → how many agents were active.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from capture.activity import SessionActivity, by_contributor, is_own, session_activity, with_peaks
from capture.assemble import assemble, contributor_id, session_id
from capture.call import Message, ModelCall, Tool
from capture.dialect import read_calls
from capture.joined import Joined, JoinedFault, JoinedLog
from capture.log_files import LOG_SOURCES
from capture.otlp import Telemetry, is_telemetry, times_of
from capture.shelf import Shelf, ShelfFault
from capture.store import Store
from capture.timing import Statement, apply_statements
from capture.trajectory import Trajectory


class NoSuchSession(ValueError):
    """No session, or more than one, goes by this id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenTwin:
    """An imported log that is not listed, because a recorded session has it joined."""

    session_id: str  # of the import; `capture show` still takes it
    recorded: str  # the session that stands for it
    calls_only_in_log: int  # calls that the recording does not hold


def read_sessions(
    store_path: Path | str, problems: list[str], hidden: list[HiddenTwin] | None = None, *, once: bool = False
) -> Iterator[Trajectory]:
    """Recorded sessions in order of their first send, then imported ones; a sentence per damaged place to `problems`.

    The import of a log that is joined to a recorded session is left out and put into `hidden`. With `once`, so is one
    that is not joined but has the id of a recorded session, and `problems` says so. StoreError when there is no store.
    A damaged place never hides the rest.
    """
    store = Store.open(store_path)
    natives: set[str] = set()
    recorded = _recorded(store, problems, natives=natives)
    shelf = Shelf(store_path)
    twins = _twins(store, recorded)
    doubles = {session_id(store.key, f"{log}:{native}") for native in natives for log in LOG_SOURCES} if once else set()
    listed = []
    for name in shelf.session_ids():
        if name in twins:
            if hidden is not None:
                hidden.append(twins[name])
        elif name in doubles:
            problems.append("an import of a session that is recorded too: `agentdyno capture join` makes one of both")
        else:
            listed.append(name)
    activities = [session_activity(trajectory) for trajectory in recorded]
    activities += _activities(shelf, listed)
    peaks = {person.contributor: person.peak for person in by_contributor(activities)}
    recorded.reverse()
    while recorded:  # each is let go once it is handed over
        yield with_peaks(recorded.pop(), peaks)
    for name in listed:
        try:
            trajectory = shelf.load(name)
        except ShelfFault as fault:
            problems.append(str(fault))
        else:
            yield with_peaks(trajectory, peaks)


def read_activities(store_path: Path | str, problems: list[str]) -> Iterator[SessionActivity]:
    """When each agent of the sessions of the store's people was active; see `capture.activity`.

    Contributors go by the names in the recorder's configuration, which leave the store in no other way.
    """
    store = Store.open(store_path)
    names: dict[str, str] = {}
    recorded = _recorded(store, problems, names)
    for activity in map(session_activity, recorded):
        yield replace(activity, contributor=names.get(activity.contributor or "", activity.contributor))
    shelf = Shelf(store_path)
    twins = _twins(store, recorded)
    yield from _activities(shelf, [name for name in shelf.session_ids() if name not in twins])


def _recorded(
    store: Store, problems: list[str], names: dict[str, str] | None = None, natives: set[str] | None = None
) -> list[Trajectory]:
    """Sessions of the journals with all that is known of their times.

    `names` gets the names of contributors by id, `natives` all ids by which a log may name one of the sessions.
    """
    telemetry = Telemetry()

    def calls() -> Iterator[ModelCall]:
        for call in read_wire(store, problems, telemetry):
            if names is not None and call.contributor is not None:
                names[contributor_id(store.key, call.contributor)] = call.contributor
            if natives is not None:
                natives.update(hint.session for hint in call.hints)
                natives.update(filter(None, (call.response_id,)))
            yield call

    trajectories = assemble(calls(), store.key)
    joined = Joined(store.path)
    told = {
        None if name is None else contributor_id(store.key, name): (name, by_call)
        for name, by_call in telemetry.by_contributor().items()
    }
    person_of = {trajectory.session_id: trajectory.contributor for trajectory in trajectories}

    def whole(trajectory: Trajectory) -> Trajectory:
        name, by_call = told.get(trajectory.contributor, (None, {}))

        @cache
        def owner(native: str) -> str | None:
            # Of two people whose sessions have one id, the second one's goes by the name too; see `capture.grouping`.
            for candidate in (session_id(store.key, f"{name}:{native}"), session_id(store.key, native)):
                if person_of.get(candidate, "") == trajectory.contributor:
                    return candidate
            return None

        tools = dict.fromkeys(call.tool_call_id for call in trajectory.tool_calls)
        times = times_of(by_call, tools, trajectory.session_id, owner)
        heard = [Statement(source_name="otel", times=times)]
        heard += [log.statement for log in _logs(joined, trajectory.session_id, problems)]
        return apply_statements(trajectory, heard)

    if telemetry.unreadable:
        lost = f"{telemetry.unreadable} exports of telemetry cannot be read"
        problems.append(f"{store.path}: {lost}; the tool times in them are lost")
    return [whole(trajectory) for trajectory in trajectories]


def _logs(joined: Joined, name: str, problems: list[str]) -> tuple[JoinedLog, ...]:
    try:
        return joined.load(name)
    except JoinedFault as fault:
        problems.append(str(fault))
        return ()


def _twins(store: Store, recorded: Iterable[Trajectory]) -> dict[str, HiddenTwin]:
    """Imports that a recorded session stands for, by their session ids."""
    joined = Joined(store.path)
    return {
        log.twin: HiddenTwin(
            session_id=log.twin, recorded=trajectory.session_id, calls_only_in_log=log.calls_only_in_log
        )
        for trajectory in recorded
        for log in _logs(joined, trajectory.session_id, [])
        if log.twin is not None
    }


def _activities(shelf: Shelf, names: Iterable[str]) -> Iterator[SessionActivity]:
    """Activity of imported sessions of the store's people; others are not even read whole."""
    for name in names:
        try:
            if is_own(*shelf.belongs_to(name)):
                yield session_activity(shelf.load(name))
        except ShelfFault:
            continue  # told when the session itself is read


def read_wire(store: Store, problems: list[str], telemetry: Telemetry | None = None) -> Iterator[ModelCall]:
    """Every call on the journals of a store, in order of send; exports of telemetry go to `telemetry`."""
    # Every turn repeats the whole prompt: equal messages become one object, or a long session would fill the memory.
    messages: dict[Message, Message] = {}
    tools: dict[tuple[Tool, ...], tuple[Tool, ...]] = {}
    for exchange in store.exchanges(problems):
        if is_telemetry(exchange):
            if telemetry is not None:
                telemetry.add(exchange)
            continue
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
    hidden: list[HiddenTwin] = []
    if wanted in shelf.session_ids() and not is_own(*shelf.belongs_to(wanted)):
        return with_peaks(shelf.load(wanted), {})  # others' work stands alone: no need to look at the journals
    found: list[Trajectory] = []
    seen = 0
    for trajectory in read_sessions(store_path, problems, hidden):
        seen += 1
        if trajectory.session_id == wanted:
            return trajectory
        if wanted and trajectory.session_id.startswith(wanted):
            found.append(trajectory)
    if wanted in {twin.session_id for twin in hidden}:
        return with_peaks(shelf.load(wanted), {})
    if len(found) == 1:
        return found[0]
    if found:
        few = ", ".join(trajectory.session_id[: len(wanted) + 4] for trajectory in found[:4])
        raise NoSuchSession(f"{len(found)} sessions start with {session_id!r} ({few} …): give more digits")
    raise NoSuchSession(
        f"no session {session_id!r} among the {seen} of {store_path}: "
        f"`agentdyno capture sessions --store {store_path}` lists them"
    )

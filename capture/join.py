"""The wire's session and the agent's own log of it become one: what `capture join` does.

The wire stays the truth for bytes and latency; the log gives tool and human time, and how tools ended where the wire
did not see it. A log belongs to a recorded session by ids alone, never by time: the session id that the agent sends,
the provider's id of an answer, a tool call's id where no second session of the store has the same one. Within a
matched log, a person's wait is tied to the request that follows it by the log's own clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from capture.assemble import Origin, assemble, session_id
from capture.call import ModelCall
from capture.importers.imported import ImportFault, native_id
from capture.importers.log_session import LogSession
from capture.joined import Joined, JoinedLog
from capture.log_files import LogFile
from capture.otlp import Telemetry
from capture.sessions import read_wire
from capture.store import Store
from capture.timing import ToolOutcome
from capture.trajectory import Request, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinResult:
    """What became of one recorded session, or (without a session) of one log."""

    session_id: str | None  # None: a log that belongs to no recorded session
    harness: str
    source: str | None  # None: no log of this session was found
    log_paths: tuple[str, ...]
    calls_wire: int = 0
    calls_log: int = 0
    calls_matched: int = 0
    tools_wire: int = 0
    tools_log: int = 0  # tool calls that the log tells anything about
    tools_matched: int = 0
    human_waits: int = 0
    notes: tuple[str, ...] = ()  # what was not matched, and why

    @property
    def joined(self) -> bool:
        """Whether something of a log is in the session now."""
        return self.session_id is not None and self.source is not None


@dataclass(slots=True)
class _Wire:
    """The recorded sessions, and who owns which id."""

    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    of_native: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    # Each id → {session: exchange}: servers of one's own may give an id to two sessions.
    of_response: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    of_tool: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    @classmethod
    def read(cls, store: Store, problems: list[str]) -> _Wire:
        wire = cls()
        told: dict[str, tuple[set[str], str | None]] = {}

        def watched(calls: Iterable[ModelCall]) -> Iterator[ModelCall]:
            for call in calls:
                told[call.exchange_id] = ({hint.session for hint in call.hints}, call.response_id)
                yield call

        for trajectory in assemble(watched(read_wire(store, problems, Telemetry())), store.key):
            name = trajectory.session_id
            wire.trajectories[name] = trajectory
            exchanges = [request.exchange_id or "" for request in trajectory.requests]
            for exchange in exchanges:
                natives, response = told.get(exchange, (set(), None))
                for native in natives:
                    wire.of_native[native].add(name)
                if response is not None:
                    wire.of_response[response][name] = exchange
            for call in trajectory.tool_calls:
                wire.of_tool[call.tool_call_id][name] = exchanges[call.request_index]
        return wire

    def natives(self) -> set[str]:
        """Session ids as the agents name them."""
        return set(self.of_native)

    def owner_of_tool(self, tool_call_id: str, preferred: set[str]) -> tuple[str, str] | None:
        """(session id, exchange id) of the call that asked for a tool; None where two sessions may be meant."""
        return _owner(self.of_tool.get(tool_call_id, {}), preferred)

    def owner_of_response(self, response_id: str, preferred: set[str]) -> tuple[str, str] | None:
        """The same for an answer."""
        return _owner(self.of_response.get(response_id, {}), preferred)


def _owner(owners: Mapping[str, str], preferred: set[str]) -> tuple[str, str] | None:
    chosen = [name for name in owners if name in preferred] or list(owners)
    return (chosen[0], owners[chosen[0]]) if len(chosen) == 1 else None


def join_logs(store: Store, files: Sequence[LogFile], problems: list[str]) -> list[JoinResult]:
    """Join the logs in these files to the store's recorded sessions, and keep what they tell.

    A result per recorded session, then one per log that belongs to none. JoinedFault where it cannot be kept.
    """
    wire = _Wire.read(store, problems)
    natives = wire.natives()
    found: defaultdict[tuple[str, str], list[_Match]] = defaultdict(list)  # by session and source
    strangers: list[JoinResult] = []
    for file in files:
        if not file.may_hold(natives, _earliest(wire, file.harness)):
            continue
        try:
            logs = file.read()
        except ImportFault as fault:
            strangers.append(_unreadable(file, fault))
            continue
        for log in logs:
            matches = _match(log, wire, store.key)
            for match in matches:
                found[(match.session_id, log.source)].append(match)
            if not matches and (file.named or log.native_session_id in natives):
                strangers.append(_stranger(log))
    results: defaultdict[str, list[JoinResult]] = defaultdict(list)
    joined = Joined(store.path)
    for (name, _), matches in found.items():
        matches.sort(key=lambda match: (match.named, match.result.tools_matched), reverse=True)
        joined.put(name, _merged([match.kept for match in matches]))
        results[name] += [match.result for match in matches]
    for name, trajectory in wire.trajectories.items():
        if name not in results:
            results[name].append(_without_log(trajectory))
    return [result for name in wire.trajectories for result in results[name]] + strangers


def _merged(logs: Sequence[JoinedLog]) -> JoinedLog:
    """Several logs of one agent about one session (it was resumed under a new id), the best first."""
    best = logs[0]
    return replace(
        best,
        times=tuple({time.tool_call_id: time for log in reversed(logs) for time in log.times}.values()),
        outcomes=tuple({end.tool_call_id: end for log in reversed(logs) for end in log.outcomes}.values()),
        waits_us={exchange: wait for log in reversed(logs) for exchange, wait in log.waits_us.items()},
    )


def _earliest(wire: _Wire, harness: str) -> int | None:
    """UTC microseconds of the first recorded send of an agent; one that the wire does not name may be any agent."""
    starts = [
        trajectory.t0_utc_us
        for trajectory in wire.trajectories.values()
        if trajectory.t0_utc_us is not None and trajectory.harness in (harness, "unknown")
    ]
    return min(starts, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    session_id: str
    named: bool  # the log has the session's own id
    kept: JoinedLog
    result: JoinResult


def _match(log: LogSession, wire: _Wire, key: bytes) -> list[_Match]:
    """What one log gives to each recorded session that it shares ids with."""
    named = wire.of_native.get(log.native_session_id, set())
    calls: dict[int, tuple[str, str]] = {}  # call of the log → (session id, exchange id)
    for position, call in enumerate(log.calls):
        place = wire.owner_of_response(call.response_id, named) if call.response_id is not None else None
        for use in call.answer.tool_calls if call.answer is not None else ():
            place = place or wire.owner_of_tool(use.id, named)
        if place is not None:
            calls[position] = place
    outcomes = _outcomes(log, key)
    times = {time.tool_call_id: time for time in log.tool_times}
    told = dict.fromkeys([*times, *outcomes])
    tools = {name: place[0] for name in told if (place := wire.owner_of_tool(name, named)) is not None}
    votes = Counter([*(name for name, _ in calls.values()), *tools.values()])
    # Where an agent goes on under a new id, its log repeats the old session's lines: they belong to that one.
    best = max(votes, key=lambda name: (name in named, votes[name]), default=None)
    found = []
    for name in votes:
        trajectory = wire.trajectories[name]
        own = [tool for tool, owner in tools.items() if owner == name]
        waits = _waits(log, {at: exchange for at, (owner, exchange) in calls.items() if owner == name})
        matched = {exchange for owner, exchange in calls.values() if owner == name}
        only_in_log = len(log.calls) - len(calls) if name == best else 0
        kept = JoinedLog(
            source=log.source,
            times=tuple(times[tool] for tool in own if tool in times),
            outcomes=tuple(outcomes[tool] for tool in own if tool in outcomes),
            waits_us=waits,
            twin=session_id(key, native_id(log.source, log.native_session_id)) if name == best else None,
            calls_only_in_log=only_in_log,
        )
        result = JoinResult(
            session_id=name,
            harness=trajectory.harness,
            source=log.source,
            log_paths=log.paths,
            calls_wire=len(trajectory.requests),
            calls_log=len(log.calls),
            calls_matched=len(matched),
            tools_wire=len(trajectory.tool_calls),
            tools_log=len(told),
            tools_matched=len(own),
            human_waits=len(waits),
            notes=tuple(_unmatched(trajectory, matched, own, only_in_log, len(told) - len(tools))),
        )
        found.append(_Match(session_id=name, named=name in named, kept=kept, result=result))
    return found


def _outcomes(log: LogSession, key: bytes) -> dict[str, ToolOutcome]:
    """How the log's tools ended, where it tells."""
    found: dict[str, ToolOutcome] = {}
    for trajectory in assemble(log.calls, key, Origin(source=log.source, token_source="agent")):  # noqa: S106
        for call in trajectory.tool_calls:
            if (call.is_error, call.exit_code, call.timed_out) != (None, None, None):
                found[call.tool_call_id] = ToolOutcome(
                    tool_call_id=call.tool_call_id,
                    is_error=call.is_error,
                    exit_code=call.exit_code,
                    timed_out=call.timed_out,
                )
    return found


def _waits(log: LogSession, matched: dict[int, str]) -> dict[str, int]:
    """Human waits by the exchange that each of them ended in: the log's next call, if the wire holds that one.

    It is the main agent that waits: sub-agents may be at work in the background meanwhile.
    """
    sends = sorted(
        (call.t_send_ns // 1000, position) for position, call in enumerate(log.calls) if call.hints[0].agent is None
    )
    found: defaultdict[str, int] = defaultdict(int)
    for wait in log.human_waits:
        following = next((position for at, position in sends if at >= wait.ended_utc_us), None)
        if following in matched and wait.ended_utc_us >= wait.started_utc_us:
            found[matched[following]] += wait.ended_utc_us - wait.started_utc_us
    return dict(found)


def _unmatched(
    trajectory: Trajectory, matched: set[str], tools: Sequence[str], calls_in_log: int, tools_in_log: int
) -> Iterator[str]:
    """What is only on one side, and why as far as it shows."""
    alone: Counter[str] = Counter(
        _why_alone(request) for request in trajectory.requests if request.exchange_id not in matched
    )
    for why, count in alone.items():
        yield f"{count} calls only on the wire: {why}"
    if calls_in_log:
        yield f"{calls_in_log} calls only in the log: not recorded, or their ids are not in the log"
    missing = len({call.tool_call_id for call in trajectory.tool_calls}.difference(tools))
    if missing:
        yield f"{missing} tool calls that the log tells nothing about"
    if tools_in_log:
        yield f"{tools_in_log} tool calls of the log that were not recorded"


def _why_alone(request: Request) -> str:
    if request.kind == "auxiliary" or request.agent_path.startswith("side"):
        return "side calls, which agents do not log"
    if request.error is not None or request.status is None or request.status >= 400:
        return "failed attempts"
    return "the log has no id for them"


def _without_log(trajectory: Trajectory) -> JoinResult:
    return JoinResult(
        session_id=trajectory.session_id,
        harness=trajectory.harness,
        source=None,
        log_paths=(),
        calls_wire=len(trajectory.requests),
        tools_wire=len(trajectory.tool_calls),
        notes=("no log shares an id with it",),
    )


def _stranger(log: LogSession) -> JoinResult:
    return JoinResult(
        session_id=None,
        harness=log.harness,
        source=log.source,
        log_paths=log.paths,
        calls_log=len(log.calls),
        tools_log=len(log.tool_times),
        notes=("no recorded session shares an id with it",),
    )


def _unreadable(file: LogFile, fault: ImportFault) -> JoinResult:
    return JoinResult(
        session_id=None, harness=file.harness, source=None, log_paths=(str(file.path),), notes=(str(fault),)
    )

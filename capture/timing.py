"""What others tell about a session's times, laid into it: the agent's telemetry, its local log.

Who is believed: the agent's telemetry first (it measures the execution itself, in microseconds, by call id), then a
duration declared in a request header (the same measure in whole milliseconds, but matched by name and order), then one
in a request's body, then the local log's stamps, then nobody: then only `wall_us` is known, which bounds it from above.
Each fact is taken from the best source that has it, so a permission wait may come from another source than a duration.

Contradictions: a negative duration is dropped; stamps whose end lies before their start are dropped, the duration that
came with them stays. A duration longer than the gap on the wire stays as it was declared, for a client may start a tool
before the answer is over, and clocks differ; the shares of the gap are cut to the gap, so that no share is negative.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from capture.call import TimeSource, ToolTime
from capture.gap import split_gaps
from capture.trajectory import Request, ToolCall, Trajectory

_RANK: Mapping[TimeSource, int] = {"otel": 0, "header": 1, "body": 2, "log": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """How a tool call ended, as a source other than the wire tells it; None where that source does not tell."""

    tool_call_id: str
    is_error: bool | None = None
    exit_code: int | None = None
    timed_out: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What one source tells about one session."""

    source_name: str  # goes to `Trajectory.joined`: otel, claude-code-log, …
    times: Sequence[ToolTime] = ()
    outcomes: Sequence[ToolOutcome] = ()  # used where the wire does not know
    waits_us: Mapping[str, int] | None = None  # by exchange id: the human wait that ended in this request


def apply_times(trajectory: Trajectory, times: Iterable[ToolTime], source_name: str) -> Trajectory:
    """The session with these tool times in it and its gaps split anew; `source_name` goes to `joined`.

    Times of other sessions' calls are passed over; without any of its own the session stays as it is.
    """
    return apply_statements(trajectory, [Statement(source_name=source_name, times=tuple(times))])


def apply_statements(trajectory: Trajectory, statements: Sequence[Statement]) -> Trajectory:
    """The session with what all sources tell, taken together: the gaps need all of their stamps at once."""
    times: defaultdict[str, list[ToolTime]] = defaultdict(list)
    outcomes: defaultdict[str, list[ToolOutcome]] = defaultdict(list)
    waits: dict[str, int] = {}
    known = {call.tool_call_id for call in trajectory.tool_calls}
    sent = {request.exchange_id for request in trajectory.requests}
    heard: list[str] = []
    for statement in statements:
        own = [time for time in statement.times if time.tool_call_id in known]
        ends = [outcome for outcome in statement.outcomes if outcome.tool_call_id in known]
        mine = {key: wait for key, wait in (statement.waits_us or {}).items() if key in sent}
        if own or ends or mine:
            heard.append(statement.source_name)
        for time in own:
            times[time.tool_call_id].append(_without_contradiction(time))
        for outcome in ends:
            outcomes[outcome.tool_call_id].append(outcome)
        waits |= mine
    if not heard:
        return trajectory
    calls = tuple(_told(call, times[call.tool_call_id], outcomes[call.tool_call_id]) for call in trajectory.tool_calls)
    split = split_gaps(replace(trajectory, tool_calls=calls), _ran(calls, times))
    split = _with_waits(split, waits)
    others = (name for name in heard if name != trajectory.source)  # a log does not join itself
    return replace(split, joined=tuple(dict.fromkeys((*trajectory.joined, *others))))


def _without_contradiction(time: ToolTime) -> ToolTime:
    """The same without what cannot be: negative lengths, an end before its start."""
    start, end = time.started_utc_us, time.ended_utc_us
    if start is not None and end is not None and end < start:
        start = end = None
    return replace(
        time,
        internal_us=_length(time.internal_us),
        permission_us=_length(time.permission_us),
        started_utc_us=start,
        ended_utc_us=end,
    )


def _length(duration_us: int | None) -> int | None:
    return None if duration_us is None or duration_us < 0 else duration_us


def _told(call: ToolCall, times: Sequence[ToolTime], outcomes: Sequence[ToolOutcome]) -> ToolCall:
    """A tool call with the best of what is told about it."""
    lengths = [(_RANK[time.source], time.internal_us, time.source) for time in times if time.internal_us is not None]
    if call.internal_us is not None and call.internal_source is not None:
        lengths.append((_RANK[call.internal_source], call.internal_us, call.internal_source))
    _, internal, source = min(lengths, default=(0, call.internal_us, call.internal_source), key=lambda told: told[0])
    waits = [(_RANK[time.source], time.permission_us) for time in times if time.permission_us is not None]
    _, permission = min(waits, default=(0, call.permission_us), key=lambda told: told[0])

    def end[T](of_wire: T | None, told: Iterable[T | None]) -> T | None:
        return of_wire if of_wire is not None else next((value for value in told if value is not None), None)

    return replace(
        call,
        internal_us=internal,
        internal_source=source,
        permission_us=permission,
        is_error=end(call.is_error, (outcome.is_error for outcome in outcomes)),
        exit_code=end(call.exit_code, (outcome.exit_code for outcome in outcomes)),
        timed_out=end(call.timed_out, (outcome.timed_out for outcome in outcomes)),
    )


def _ran(calls: Iterable[ToolCall], times: Mapping[str, Sequence[ToolTime]]) -> dict[tuple[int, str], tuple[int, int]]:
    """When each tool ran, by the best source that has both stamps; sources of one session read one machine's clock."""
    found: dict[tuple[int, str], tuple[int, int]] = {}
    for call in calls:
        for time in sorted(times.get(call.tool_call_id, ()), key=lambda time: _RANK[time.source]):
            if time.started_utc_us is not None and time.ended_utc_us is not None:
                found[(call.request_index, call.tool_call_id)] = (time.started_utc_us, time.ended_utc_us)
                break
    return found


def _with_waits(trajectory: Trajectory, waits_us: Mapping[str, int]) -> Trajectory:
    """Human time cut to what the agent's log says that it waited for its person's words; the rest was the agent's."""
    if not waits_us:
        return trajectory
    requests = tuple(_with_wait(request, waits_us.get(request.exchange_id or "")) for request in trajectory.requests)
    thought = [request.think_us for request in requests if request.think_us is not None]
    return replace(trajectory, requests=requests, human_us=sum(thought) if thought else None)


def _with_wait(request: Request, wait_us: int | None) -> Request:
    if wait_us is None or wait_us < 0 or request.gap_us is None:
        return request
    most = request.gap_us - (request.permission_us or 0) if request.think_us is None else request.think_us
    think = min(most, wait_us)
    if request.gap_kind == "human":
        return replace(request, think_us=think, client_us=request.gap_us - think)
    if request.gap_kind == "tool" and request.think_us != 0:
        rest = None if request.think_us is None else most - think + (request.client_us or 0)
        return replace(request, think_us=think, client_us=rest)
    return request

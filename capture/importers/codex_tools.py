"""When the tools of a Codex thread ran, as its log says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from capture.call import ToolTime
from capture.dialects.reading import Json, as_count, as_object, as_text
from capture.importers.log_calls import microseconds

# Codex starts the clock of a command only after its own wait for the start (0.169: 150 ms), so a short command takes
# no time by it. A start that close to the call is the call's own.
_STARTUP_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    tool_call_id: str
    started_ns: int | None
    ended_ns: int | None
    duration_us: int | None
    lags: bool  # its clock starts late


class ToolClock:
    """Takes what a thread's log says of its tools, in order."""

    def __init__(self) -> None:
        self._emitted: dict[str, int | None] = {}
        self._asked: dict[str, int] = {}
        self._began: dict[str, int] = {}
        self._runs: list[_Run] = []

    def emitted(self, tool_call_id: str, at_ns: int | None) -> None:
        """The model had written the call."""
        self._emitted.setdefault(tool_call_id, at_ns)

    def take_item(self, item: Json, started_ns: int | None, ended_ns: int | None) -> None:
        """An item of the turn is over; those of tools are named for their call."""
        name = as_text(item.get("id"))
        if name in self._emitted:
            self._add(name, item, started_ns, ended_ns)

    def take_event(self, kind: str, event: Json, at_ns: int | None) -> None:
        """Events of a tool's life, as versions before the items logged them."""
        name = as_text(event.get("call_id"))
        if not name or at_ns is None:
            return
        if kind.endswith("approval_request"):
            self._asked[name] = at_ns
        elif kind.endswith("_begin"):
            self._began[name] = at_ns
        elif kind.endswith("_end"):
            self._add(name, event, self._began.get(name), at_ns)

    def _add(self, name: str, told: Json, started_ns: int | None, ended_ns: int | None) -> None:
        self._runs.append(
            _Run(
                tool_call_id=name,
                started_ns=started_ns,
                ended_ns=ended_ns,
                duration_us=_duration_us(told.get("duration")),
                lags=as_text(told.get("source")).startswith("unified_exec"),
            )
        )

    def times(self) -> Iterator[ToolTime]:
        """What the log says of each tool; permission is the wait from the question to the start."""
        for run in self._runs:
            started, duration = run.started_ns, run.duration_us
            asked, emitted = self._asked.get(run.tool_call_id), self._emitted.get(run.tool_call_id)
            permission = max(0, started - asked) // 1000 if asked is not None and started is not None else None
            if run.lags and asked is None and emitted is not None and run.ended_ns is not None:
                near = started is None or started - emitted <= _STARTUP_NS
                started, duration = (emitted, None) if near else (started, duration)
            span = None
            if started is not None and run.ended_ns is not None and run.ended_ns >= started:
                span = (run.ended_ns - started) // 1000
            yield ToolTime(
                tool_call_id=run.tool_call_id,
                source="log",
                internal_us=duration if duration is not None else span,
                permission_us=permission,
                started_utc_us=microseconds(started),
                ended_utc_us=microseconds(run.ended_ns),
            )


def _duration_us(value: object) -> int | None:
    """A duration in microseconds: {secs, nanos}."""
    fields = as_object(value)
    seconds, nanoseconds = as_count(fields.get("secs")), as_count(fields.get("nanos"))
    if seconds is not None and nanoseconds is not None and seconds < 10**9:
        return seconds * 1_000_000 + nanoseconds // 1000
    return None

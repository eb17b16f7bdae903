"""The steady window of a trial, and what belongs to it.

A request belongs to the window when it was sent in it: after settling and what `steady` finds to be warm-up, before the
phase's end. What it was sent into is then steady, and whether it is over by the phase's end does not choose it: slow
requests are not left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capture.intervals import union_length
from replay.record import RequestRecord

BACK_OFF_NS = 1_000_000_000
"""After a failed request its chain waits at least this long, so that nobody spins against a server that is down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Monotonic nanoseconds since the trial's zero."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return max(0, self.end_ns - self.start_ns) / 1e9


def in_window(records: Iterable[RequestRecord], window: Window) -> tuple[RequestRecord, ...]:
    """Requests that were sent inside the window."""
    return tuple(record for record in records if window.start_ns <= record.sent_at_ns < window.end_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTime:
    """How the agents spent the window, in agent-seconds. What is neither model, delay nor open is unexplained."""

    total_s: float  # agents x window
    model_s: float  # at least one request of the agent was due or in flight
    delay_s: float  # no request in flight, a planned delay running
    open_s: float  # after the agent's last answer, until the phase ended: the delay of a request never sent

    @property
    def explained(self) -> float:
        """Share of all agent time that the plan accounts for: Little's law, N = X(R + Z), is this being 1."""
        return (self.model_s + self.delay_s + self.open_s) / self.total_s if self.total_s else 0.0

    @property
    def duty_cycle(self) -> float | None:
        """Share of time that agents wait on the model, of the time that is accounted for."""
        known = self.model_s + self.delay_s + self.open_s
        return self.model_s / known if known else None


def agent_time(
    records: Sequence[RequestRecord], window: Window, *, agents: int, longest_delay_s: float | None
) -> AgentTime:
    """Accounts for every agent's time in the window.

    With N agents, X requests per second, mean response time R and mean delay Z, Little's law says N = X(R + Z).
    Summed over agents with the window's edges cut exactly, that is: every second of every agent is spent either in
    a request, from the moment it was due, or in a planned delay. A last answer may be followed by a delay that the
    phase's end cut; it counts as open only up to the plan's longest delay, so that an agent that died shows.
    """
    of_agent: dict[int, list[RequestRecord]] = {}
    for record in records:
        of_agent.setdefault(record.agent, []).append(record)
    model_ns = delay_ns = open_ns = 0
    for own in of_agent.values():
        requests = [(record.intended_at_ns, _end(record, window)) for record in own]
        delays = [(record.intended_at_ns - record.delay_us * 1000, record.intended_at_ns) for record in own]
        busy = _union_ns(requests, window)
        model_ns += busy
        delay_ns += _union_ns([*requests, *delays], window) - busy
        last_ns = max(end for _, end in requests)
        tail_ns = window.end_ns - max(last_ns, window.start_ns)
        if tail_ns > 0 and (longest_delay_s is None or window.end_ns - last_ns <= (longest_delay_s + 1) * 1e9):
            open_ns += tail_ns
    return AgentTime(
        total_s=agents * window.seconds, model_s=model_ns / 1e9, delay_s=delay_ns / 1e9, open_s=open_ns / 1e9
    )


def _end(record: RequestRecord, window: Window) -> int:
    if record.end_at_ns is None:
        return window.end_ns
    # After a failure the driver keeps the chain back for a while: the server's doing, not lost time.
    return record.end_at_ns + (0 if record.outcome in ("ok", "stopped") else BACK_OFF_NS)


def _union_ns(spans: Iterable[tuple[int, int]], window: Window) -> int:
    return union_length((max(start, window.start_ns), min(end, window.end_ns)) for start, end in spans)

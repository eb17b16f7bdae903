"""Requests whose decisive moments fell into a window in which the client itself was late: void, not averaged in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from replay.record import RequestRecord
from replay.slo import Slo

LAG_SHARE = 0.02  # of the strictest first-token limit: how late the client's 99th percentile may be in a window
VOID_MOST = 0.2  # of a trial's requests: above it the client, not the server, was measured


class ClientWindow(Protocol):
    """How late the client was over a few seconds, as `health` records it; ns since the trial's zero."""

    @property
    def start_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...
    @property
    def loop_lag_p99_ms(self) -> float | None: ...
    @property
    def dispatch_lag_p99_ms(self) -> float | None: ...
    @property
    def late(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LateWindow:
    """A stretch in which the client was late, and by how much."""

    start_ns: int
    end_ns: int
    why: str


def late_windows(windows: Iterable[ClientWindow], slos: Sequence[Slo]) -> tuple[LateWindow, ...]:
    """Those in which the client was too late for the strictest first-token limit; without one, by its own measure."""
    limits = [term.limit for slo in slos for term in slo.terms if term.quantity == "ttft_s"]
    allowed_ms = 1000 * LAG_SHARE * min(limits) if limits else None
    found = []
    for window in windows:
        lags = [("loop", window.loop_lag_p99_ms), ("dispatch", window.dispatch_lag_p99_ms)]
        worst = max(((lag, name) for name, lag in lags if lag is not None), default=None)
        if worst is None or not (window.late if allowed_ms is None else worst[0] > allowed_ms):
            continue
        lag, name = worst
        found.append(
            LateWindow(
                start_ns=window.start_ns,
                end_ns=window.end_ns,
                why=f"{name} lag {lag:.0f} ms (99th percentile)"
                + ("" if allowed_ms is None else f", {allowed_ms:.0f} ms allowed"),
            )
        )
    return tuple(sorted(found, key=lambda window: window.start_ns))


def without_void(
    requests: Sequence[RequestRecord], late: Sequence[LateWindow]
) -> tuple[tuple[RequestRecord, ...], tuple[RequestRecord, ...]]:
    """The requests that count, and the void ones.

    A request is void when it was due, sent, or its first or last content was read in a late window. One that the server
    itself failed is never void: an error status or a cut does not come from our being late.
    """
    if not late:
        return tuple(requests), ()
    starts = [window.start_ns for window in late]

    def inside(at_ns: int | None) -> bool:
        if at_ns is None:
            return False
        place = bisect_right(starts, at_ns) - 1
        return place >= 0 and at_ns < late[place].end_ns

    kept: list[RequestRecord] = []
    void: list[RequestRecord] = []
    for record in requests:
        ours = record.outcome in ("ok", "stopped", "timeout")
        moments = (record.intended_at_ns, record.sent_at_ns, record.first_content_at_ns, record.last_content_at_ns)
        (void if ours and any(inside(moment) for moment in moments) else kept).append(record)
    return tuple(kept), tuple(void)


def client_fault(requests: int, void: int, late: Sequence[LateWindow]) -> str | None:
    """Why the client's numbers may not be believed; None where few enough requests are void."""
    if not late or void <= VOID_MOST * requests:
        return None
    return (
        f"the client was the bottleneck: {void} of {requests} requests are void, since it was late in {len(late)} "
        f"windows, the first with {late[0].why}; give it a core of its own"
    )

"""Was the client itself in time? Loop lag, dispatch lag, unread bytes, own CPU, and the windows in which it was late.

A request that was sent late, or whose bytes were stamped late, makes the server look slower than it is. So the
client watches itself for as long as it drives, and a window in which it was late is named, not averaged away.
Of several client processes the worst counts, window by window.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import resource
import sys
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_EVERY_NS = 20_000_000
WINDOW_NS = 5_000_000_000
SHORTEST_WINDOW_NS = 1_000_000_000
LEAST_WINDOWS = 12  # where that leaves windows of a second
LATE_LOOP_LAG_MS = 25.0
"""A window is late when its p99 loop lag exceeds this: half the gap between tokens at 20 tokens a second."""
LATE_DISPATCH_MS = 50.0
"""… or when its p99 dispatch lag exceeds this."""
LOOK_AT_SOCKETS_EVERY_NS = 100_000_000
SOCKETS_AT_A_TIME = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthWindow:
    """A stretch of the trial, in ns since its zero, and how late the client was in it. No sample: None."""

    start_ns: int
    end_ns: int
    loop_lag_p99_ms: float | None
    dispatch_lag_p99_ms: float | None
    cpu_seconds: float
    late: bool
    socket_backlog_max_bytes: int | None = None  # most that the kernel held unread for one of the sockets looked at
    workers: int = 1  # client processes whose worst this is


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHealth:
    """One of several client processes during the measured window."""

    worker: int
    loop_lag_p99_ms: float | None
    dispatch_lag_p99_ms: float | None
    cpu_share: float  # of one core
    peak_memory_mb: float
    late_windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """How the client kept up during the measured window (the whole drive where it never settled).

    Loop lag: how long the loop kept something waiting that was due, looked at every 20 ms: a stall of 200 ms is ten
    samples of 200, 180, … 20 ms and not a single one. The loop's timers are a millisecond coarse.
    Dispatch lag: from a request's intended time until it was handed to the transport; dialling is not in it.
    Of several processes: lags are the worst one's, CPU and memory are sums.
    """

    loop_lag_p50_ms: float | None
    loop_lag_p99_ms: float | None
    loop_lag_max_ms: float | None
    dispatch_lag_p50_ms: float | None
    dispatch_lag_p99_ms: float | None
    dispatch_lag_max_ms: float | None
    cpu_seconds: float  # own process, user and system
    cpu_share: float  # of one core
    peak_memory_mb: float  # resident, of the process since its start
    late_loop_lag_ms: float  # the thresholds that `late` was judged by
    late_dispatch_ms: float
    windows: tuple[HealthWindow, ...]
    socket_backlog_max_bytes: int | None = None
    workers: tuple[WorkerHealth, ...] = ()  # where there were several
    fault: str | None = None  # why the client failed the trial, such as a process of it that died

    @property
    def late_windows(self) -> tuple[HealthWindow, ...]:
        """Windows in which the client, not the server, was late: what was measured in them may be wrong."""
        return tuple(window for window in self.windows if window.late)

    @property
    def late(self) -> bool:
        """Whether the client was late in any window: a trial that wants to be believed is void then."""
        return bool(self.late_windows)


class HealthWatch:
    """Samples the running loop from `start` until `stop`."""

    def __init__(self, zero_ns: int, unread_bytes: Callable[[int], int | None] | None = None) -> None:
        self._zero_ns = zero_ns
        self._unread_bytes = unread_bytes  # of that many sockets, the most
        self._looked_at_ns = array("q")
        self._backlog = array("q")
        self._look_at_ns = 0
        self._sampled_at_ns = array("q")
        self._lag_ns = array("q")
        self._cpu_ns = array("q")
        self._dispatched_at_ns = array("q")
        self._dispatch_lag_ns = array("q")
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to sample the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._due_ns = time.monotonic_ns() + SAMPLE_EVERY_NS
        self._timer = self._loop.call_later(SAMPLE_EVERY_NS / 1e9, self._sample)

    def stop(self) -> None:
        """End sampling."""
        if self._timer is not None:
            self._timer.cancel()

    def _sample(self) -> None:
        # A timer, not a sleeping task: it costs a quarter of the time.
        now, due_ns, cpu_ns = time.monotonic_ns(), self._due_ns, time.process_time_ns()
        while True:
            # What was due meanwhile waited as well: one sample for a long stall would vanish among the on-time ones.
            self._sampled_at_ns.append(due_ns - self._zero_ns)
            self._lag_ns.append(max(0, now - due_ns))
            self._cpu_ns.append(cpu_ns)
            due_ns += SAMPLE_EVERY_NS
            if due_ns > now:
                break
        if self._unread_bytes is not None and now >= self._look_at_ns:
            self._look_at_ns = now + LOOK_AT_SOCKETS_EVERY_NS
            backlog = self._unread_bytes(SOCKETS_AT_A_TIME)
            if backlog is not None:
                self._looked_at_ns.append(now - self._zero_ns)
                self._backlog.append(backlog)
        self._due_ns = time.monotonic_ns() + SAMPLE_EVERY_NS
        self._timer = self._loop.call_later(SAMPLE_EVERY_NS / 1e9, self._sample)

    def dispatched(self, intended_at_ns: int, handed_over_at_ns: int) -> None:
        """Note one request; both times since the trial's zero."""
        self._dispatched_at_ns.append(handed_over_at_ns)  # in order, as bisection wants it
        self._dispatch_lag_ns.append(max(0, handed_over_at_ns - intended_at_ns))

    def judge(self, start_ns: int, end_ns: int) -> ClientHealth:
        """What was seen in [start, end), since the trial's zero, cut into windows; a short last one joins.

        A window is 5 s, in a phase shorter than a minute a twelfth of it, but no less than a second.
        """
        lags, dispatches, cpu_seconds = self._between(start_ns, end_ns)
        # In a short trial one stall must not void all of it.
        width_ns = min(WINDOW_NS, max(SHORTEST_WINDOW_NS, (end_ns - start_ns) // LEAST_WINDOWS))
        count = max(1, (end_ns - start_ns) // width_ns)
        edges = [start_ns + index * width_ns for index in range(count)] + [end_ns]
        windows = []
        for begin, end in itertools.pairwise(edges):
            window_lags, window_dispatches, window_cpu = self._between(begin, end)
            lag, dispatch = quantile_ms(window_lags, 0.99), quantile_ms(window_dispatches, 0.99)
            windows.append(
                HealthWindow(
                    start_ns=begin,
                    end_ns=end,
                    loop_lag_p99_ms=lag,
                    dispatch_lag_p99_ms=dispatch,
                    cpu_seconds=window_cpu,
                    late=_late(lag, dispatch),
                    socket_backlog_max_bytes=self._backlog_between(begin, end),
                )
            )
        return ClientHealth(
            loop_lag_p50_ms=quantile_ms(lags, 0.5),
            loop_lag_p99_ms=quantile_ms(lags, 0.99),
            loop_lag_max_ms=quantile_ms(lags, 1.0),
            dispatch_lag_p50_ms=quantile_ms(dispatches, 0.5),
            dispatch_lag_p99_ms=quantile_ms(dispatches, 0.99),
            dispatch_lag_max_ms=quantile_ms(dispatches, 1.0),
            cpu_seconds=cpu_seconds,
            cpu_share=cpu_seconds / max(1e-9, (end_ns - start_ns) / 1e9),
            peak_memory_mb=peak_memory_mb(),
            late_loop_lag_ms=LATE_LOOP_LAG_MS,
            late_dispatch_ms=LATE_DISPATCH_MS,
            windows=tuple(windows),
            socket_backlog_max_bytes=self._backlog_between(start_ns, end_ns),
        )

    def _between(self, start_ns: int, end_ns: int) -> tuple[list[int], list[int], float]:
        first, last = (bisect_left(self._sampled_at_ns, edge) for edge in (start_ns, end_ns))
        cpu_ns = self._cpu_ns[last - 1] - self._cpu_ns[first] if last > first else 0
        begin, end = (bisect_left(self._dispatched_at_ns, edge) for edge in (start_ns, end_ns))
        return self._lag_ns[first:last].tolist(), self._dispatch_lag_ns[begin:end].tolist(), cpu_ns / 1e9

    def _backlog_between(self, start_ns: int, end_ns: int) -> int | None:
        first, last = (bisect_left(self._looked_at_ns, edge) for edge in (start_ns, end_ns))
        return max(self._backlog[first:last], default=None)


def _late(loop_lag_ms: float | None, dispatch_lag_ms: float | None) -> bool:
    return (loop_lag_ms or 0.0) > LATE_LOOP_LAG_MS or (dispatch_lag_ms or 0.0) > LATE_DISPATCH_MS


def merge_health(healths: Sequence[ClientHealth]) -> ClientHealth:
    """The health of several client processes that were judged over the same window, as that of one client."""
    if len(healths) == 1:
        return healths[0]
    windows = [
        HealthWindow(
            start_ns=parts[0].start_ns,
            end_ns=parts[0].end_ns,
            loop_lag_p99_ms=_worst(part.loop_lag_p99_ms for part in parts),
            dispatch_lag_p99_ms=_worst(part.dispatch_lag_p99_ms for part in parts),
            cpu_seconds=sum(part.cpu_seconds for part in parts),
            late=any(part.late for part in parts),
            socket_backlog_max_bytes=_worst(part.socket_backlog_max_bytes for part in parts),
            workers=len(parts),
        )
        for parts in zip(*(health.windows for health in healths), strict=True)
    ]
    return ClientHealth(
        loop_lag_p50_ms=_worst(health.loop_lag_p50_ms for health in healths),
        loop_lag_p99_ms=_worst(health.loop_lag_p99_ms for health in healths),
        loop_lag_max_ms=_worst(health.loop_lag_max_ms for health in healths),
        dispatch_lag_p50_ms=_worst(health.dispatch_lag_p50_ms for health in healths),
        dispatch_lag_p99_ms=_worst(health.dispatch_lag_p99_ms for health in healths),
        dispatch_lag_max_ms=_worst(health.dispatch_lag_max_ms for health in healths),
        cpu_seconds=sum(health.cpu_seconds for health in healths),
        cpu_share=sum(health.cpu_share for health in healths),
        peak_memory_mb=sum(health.peak_memory_mb for health in healths),
        late_loop_lag_ms=healths[0].late_loop_lag_ms,
        late_dispatch_ms=healths[0].late_dispatch_ms,
        windows=tuple(windows),
        socket_backlog_max_bytes=_worst(health.socket_backlog_max_bytes for health in healths),
        workers=tuple(
            WorkerHealth(
                worker=worker,
                loop_lag_p99_ms=health.loop_lag_p99_ms,
                dispatch_lag_p99_ms=health.dispatch_lag_p99_ms,
                cpu_share=health.cpu_share,
                peak_memory_mb=health.peak_memory_mb,
                late_windows=len(health.late_windows),
            )
            for worker, health in enumerate(healths)
        ),
    )


def _worst[Number: (int, float)](values: Iterable[Number | None]) -> Number | None:
    return max((value for value in values if value is not None), default=None)


def quantile_ms(values_ns: list[int], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed, in ms; None of nothing."""
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1e6


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB; since the last exec, where Linux says it."""
    if sys.platform == "linux":
        # getrusage's value survives exec and would report the parent that started us.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) / 1e6

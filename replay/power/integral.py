"""What counters and gauges share: readings in order, how dense they must be, and the integral that comes of them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from replay.power.source import PowerSample, SampleKind

ADJACENT_PERIODS = 1.5  # readings further apart have one missing between them
LATCH_S = 0.1  # how stale a counter may be where that was not measured; 20–100 ms are seen
HIGHEST_LIMITS = 1.2  # a device that draws more than so many times its limit was misread


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Values of one kind that a device gave, in order of time, one for each instant."""

    times: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, samples: Iterable[PowerSample], kind: SampleKind) -> Points:
        """Those of a kind. A device that is on never draws 0 W: a gauge that says so did not answer."""
        at: dict[int, float] = {}
        for sample in samples:
            value = sample.value
            if sample.kind != kind or sample.flag != "ok" or value is None or not math.isfinite(value):
                continue
            if value < 0 or (value == 0 and kind != "energy_j"):
                continue
            # Two values of one instant: the same one, whatever the order of samples.
            at[sample.t_ns] = max(value, at.get(sample.t_ns, value))
        times = tuple(sorted(at))
        return cls(times=times, values=tuple(at[time] for time in times))

    def __len__(self) -> int:
        return len(self.times)

    def fresh(self, within_s: float) -> tuple[int, ...]:
        """Positions of readings whose value was new, or new less than so long before.

        Later ones show the same value again, older: what was drawn since is not in it.
        """
        kept: list[int] = []
        new_ns = 0
        for index, (at_ns, value) in enumerate(zip(self.times, self.values, strict=True)):
            if index == 0 or value != self.values[index - 1]:
                new_ns = at_ns
            elif at_ns - new_ns >= within_s * 1e9:
                continue
            kept.append(index)
        return tuple(kept)

    def bracket(self, start_ns: int, end_ns: int) -> tuple[int, int] | None:
        """Positions of the last reading at or before the start and of the first at or after the end."""
        first = bisect_right(self.times, start_ns) - 1
        last = bisect_left(self.times, end_ns)
        return None if first < 0 or last >= len(self.times) else (first, last)

    def unread_s(self, first: int, last: int) -> float:
        """The longest time without a reading between two positions."""
        return max((high - low for low, high in pairwise(self.times[first : last + 1])), default=0) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """How one device is read, as its source says."""

    period_s: float
    refresh_s: float | None = None  # of a page or database between the device and us
    latch_s: float | None = None  # how often its counter changes
    clock_u_s: float = 0.0

    @property
    def slack_s(self) -> float:
        """For how long before an interval energy may have been drawn that only its own readings show, at most."""
        return max(self.latch_s or 0.0, self.refresh_s or 0.0, LATCH_S) + self.period_s

    @property
    def age_s(self) -> float:
        """How old a value may be when it is read for the first time."""
        return min(self.period_s, max(self.latch_s or LATCH_S, self.refresh_s or 0.0))

    @property
    def latched_s(self) -> float:
        """For how long a value that is read again may still be the device's latest."""
        return min(self.period_s, self.latch_s or LATCH_S)

    def pace(self, readings: Points) -> Pace:
        """How these readings follow each other.

        A source whose page is refreshed less often than it is read either shows each value once or repeats it; one
        of several devices behind a source may also be refreshed more often than the source says of all of them.
        """
        if self.refresh_s is None:
            return Pace.of(spacing_s=self.period_s, refresh_s=self.period_s)
        times = [readings.times[index] for index in readings.fresh(0)]
        gaps = sorted(high - low for low, high in pairwise(times))
        refresh_s = min(self.refresh_s, gaps[len(gaps) // 2] / 1e9) if gaps else self.refresh_s
        refresh_s = max(self.period_s, refresh_s)
        half_ns = refresh_s / 2 * 1e9
        repeated = any(
            low == high and after - before < half_ns
            for low, high, before, after in zip(
                readings.values, readings.values[1:], readings.times, readings.times[1:], strict=False
            )
        )
        return Pace.of(spacing_s=self.period_s if repeated else refresh_s, refresh_s=refresh_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How readings of one kind follow each other, and how far apart they may stand."""

    refresh_s: float
    adjacent_s: float  # two readings further apart have one missing between them
    hole_s: float  # the longest time without a reading that can be charged

    @classmethod
    def of(cls, *, spacing_s: float, refresh_s: float) -> Pace:
        """By how far apart readings stand when none is missing."""
        return cls(refresh_s=refresh_s, adjacent_s=ADJACENT_PERIODS * spacing_s, hole_s=max(3.0, 5 * spacing_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Integral:
    """Joules of a window by one kind of reading. They may be believed only where `reasons` is empty.

    The standard uncertainties (k = 1) are of this window and device alone.
    """

    energy_j: float | None
    coverage: float = 0.0
    largest_gap_s: float | None = None
    readings: int = 0
    u_latch_j: float = 0.0
    u_sampling_j: float = 0.0
    u_gap_j: float = 0.0
    edge_step_w: float = 0.0  # how much more or less is drawn at the window's end than at its start
    lag_s: float = 0.0  # standard uncertainty of the instant that a reading speaks of
    flags: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def usable_j(self) -> float | None:
        return None if self.reasons else self.energy_j


def overlap_s(low_ns: int, high_ns: int, start_ns: int, end_ns: int) -> float:
    """How long two spans of time overlap, in seconds."""
    return max(0, min(high_ns, end_ns) - max(low_ns, start_ns)) / 1e9

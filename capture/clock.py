"""The wall clock against the monotonic one: a laptop that slept, or a clock that was set, moves it.

Linux stops CLOCK_MONOTONIC while the machine is suspended and goes on with CLOCK_BOOTTIME, so the difference of those
two tells sleep from a clock that was set. Elsewhere there is no CLOCK_BOOTTIME, and `suspended_us` stays None.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

SMALLEST_US = 10_000  # a smaller movement is not noted: NTP slews by less than 0.5 ms each second
_TIGHT_NS = 1_000_000  # both clocks must be read within this time of each other


def _boot_ns() -> int | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime_ns(clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The clocks of the machine, all in ns."""

    monotonic: Callable[[], int] = time.monotonic_ns
    wall: Callable[[], int] = time.time_ns
    boot: Callable[[], int | None] = _boot_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """The wall clock stands elsewhere than at the last look."""

    since_ns: int  # monotonic, of the look before, when it had not moved yet
    at_ns: int  # monotonic, of the look that found it
    offset_us: int  # all movement since the anchor
    suspended_us: int | None  # all time in suspend since the anchor; None where the system does not tell


class WallClock:
    """Watches the wall clock from an anchor on. For one thread."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        wall_ns, self._looked_ns, boot_ns = clocks.wall(), clocks.monotonic(), clocks.boot()
        self._zero_ns = wall_ns - self._looked_ns
        self._boot_zero_ns = None if boot_ns is None else boot_ns - self._looked_ns
        self._offset_us = 0

    @property
    def anchor_us(self) -> int:
        """UTC in µs at monotonic zero, as the clocks stood in the beginning."""
        return self._zero_ns // 1000

    def look(self) -> Movement | None:
        """The movement since the last one, if it is as large as `SMALLEST_US`."""
        clocks = self._clocks
        before_ns, wall_ns, boot_ns, after_ns = clocks.monotonic(), clocks.wall(), clocks.boot(), clocks.monotonic()
        if after_ns - before_ns > _TIGHT_NS:
            return None  # the thread was held between the clocks; the next look comes soon
        since_ns, self._looked_ns = self._looked_ns, after_ns
        offset_us = (wall_ns - after_ns - self._zero_ns) // 1000
        if abs(offset_us - self._offset_us) < SMALLEST_US:
            return None
        self._offset_us = offset_us
        suspended_us = None
        if boot_ns is not None and self._boot_zero_ns is not None:
            suspended_us = max(0, boot_ns - after_ns - self._boot_zero_ns) // 1000
        return Movement(since_ns=since_ns, at_ns=after_ns, offset_us=offset_us, suspended_us=suspended_us)

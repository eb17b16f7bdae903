"""A session's time axis: microseconds since its first send.

Inside one journal it is that journal's monotonic clock, so a duration is true whatever the wall clock did: a laptop's
sleep is in none. Journals have unlike monotonic clocks; where a session goes over to another one, the wall clock as
both journals saw it at that place ties them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from capture.call import ModelCall

JUMP_US = 50_000  # a wall clock that is slewed moves less in a call


class Axis:
    """Places the times of a session's calls; the calls are given in order of sending."""

    def __init__(self, calls: Sequence[ModelCall]) -> None:
        first = calls[0]
        self.zero_utc_us = _wall_us(first)
        self._base_us = {first.wall_anchor_us: -(first.t_send_ns // 1000)}  # of a journal: what to add to its clock
        for before, call in pairwise(calls):
            if call.wall_anchor_us in self._base_us:
                continue
            since_us = _wall_us(call) - _wall_us(before, at_end=True)
            if since_us < 0:  # side by side: the ends tell nothing
                since_us = max(0, _wall_us(call) - _wall_us(before))
                reached_us = self._place(before, before.t_send_ns)
            else:
                reached_us = self._place(before, before.t_send_ns if before.t_end_ns is None else before.t_end_ns)
            self._base_us[call.wall_anchor_us] = reached_us + since_us - call.t_send_ns // 1000

    def _place(self, call: ModelCall, at_ns: int) -> int:
        return self._base_us[call.wall_anchor_us] + at_ns // 1000

    def send_us(self, call: ModelCall) -> int:
        """When a call was sent."""
        return self._place(call, call.t_send_ns)

    def at_us(self, call: ModelCall, at_ns: int | None) -> int | None:
        """Where a monotonic time of the call's journal lies; None where it is unknown."""
        return None if at_ns is None else self._place(call, at_ns)


def _wall_us(call: ModelCall, *, at_end: bool = False) -> int:
    """UTC of the send, or of the end where it is known, as the wall clock stood then."""
    if at_end and call.t_end_ns is not None:
        moved = call.wall_offset_us if call.wall_offset_end_us is None else call.wall_offset_end_us
        return call.wall_anchor_us + moved + call.t_end_ns // 1000
    return call.wall_anchor_us + call.wall_offset_us + call.t_send_ns // 1000


def clock_jump_us(previous: ModelCall | None, call: ModelCall) -> int | None:
    """How far the wall clock moved against the monotonic one since the end of the call before, or in this call.

    The larger of the two movements, positive when it went forward; None below `JUMP_US`.
    """
    moved = []
    if previous is not None and previous.wall_anchor_us == call.wall_anchor_us:
        then = previous.wall_offset_us if previous.wall_offset_end_us is None else previous.wall_offset_end_us
        moved.append(call.wall_offset_us - then)
    if call.wall_offset_end_us is not None:
        moved.append(call.wall_offset_end_us - call.wall_offset_us)
    return max((one for one in moved if abs(one) > JUMP_US), key=abs, default=None)

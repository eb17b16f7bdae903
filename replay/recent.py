"""The latest answers of a running trial in two short lists, for the eye only: verdicts come from the records."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from replay.record import RequestRecord

KEPT = 128  # per worker


class Recent:
    """Time to first token and output speed of the latest requests that ended; a failed one never had a first token."""

    def __init__(self) -> None:
        self._ttfts_s: deque[float] = deque(maxlen=KEPT)
        self._speeds_tok_s: deque[float] = deque(maxlen=KEPT)

    def note(self, record: RequestRecord) -> None:
        """Take one that ended."""
        first_ns, last_ns = record.first_content_at_ns, record.last_content_at_ns
        if record.outcome == "stopped":
            return
        if record.outcome != "ok" or first_ns is None or last_ns is None:
            self._ttfts_s.append(NEVER_S)
            return
        self._ttfts_s.append(round((first_ns - record.intended_at_ns) / 1e9, 4))
        tokens = record.completion_tokens or record.content_events
        if last_ns > first_ns and tokens > 1:
            self._speeds_tok_s.append(round((tokens - 1) / ((last_ns - first_ns) / 1e9), 2))

    @property
    def ttfts_s(self) -> tuple[float, ...]:
        return tuple(self._ttfts_s)

    @property
    def speeds_tok_s(self) -> tuple[float, ...]:
        return tuple(self._speeds_tok_s)


NEVER_S = 1e12  # stands for infinity where JSON carries the list


def at_rank(values: Sequence[float], share: float) -> float | None:
    """The value at a rank of the sorted values, roughly; None of nothing, and where it never came."""
    if not values:
        return None
    found = sorted(values)[min(len(values) - 1, math.floor(share * len(values)))]
    return found if found < NEVER_S else None

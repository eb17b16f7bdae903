"""Jobs: whole trajectories of an agent, from the start of a play to its end, every planned delay included."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from replay.failure import failed_requests
from replay.record import RequestRecord
from replay.window import Window


class EndedPlay(Protocol):
    """A trajectory that an agent worked through to its end, as the driver saw it; ns since the trial's zero."""

    @property
    def agent(self) -> int: ...
    @property
    def play(self) -> int: ...
    @property
    def first_turn(self) -> int: ...
    @property
    def started_at_ns(self) -> int: ...
    @property
    def finished_at_ns(self) -> int: ...
    @property
    def failed_requests(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A play that began inside the window, with its first turn. Its job is not done when one of its requests failed."""

    agent: int
    play: int
    session_id: str
    job_s: float | None  # None while it runs
    failed: bool  # one of its requests did, so its work is not done
    known_s: float  # from its start to the phase's end: how long a job of this start could have been seen to take

    def value(self, limit_s: float) -> float | None:
        """Its time as it counts against a limit; None for a job that began too late to break the limit.

        Jobs that began within the limit of the phase's end are left out, finished or not: of those only the quick ones
        would be known, and the window's end would make the server look fast.
        """
        if self.failed:
            return math.inf
        if self.undecided(limit_s):
            return None
        return self.known_s if self.job_s is None else self.job_s

    def undecided(self, limit_s: float) -> bool:
        """Whether it began too late to be judged."""
        return self.known_s <= limit_s and not self.failed


def take_jobs(records: Iterable[RequestRecord], finished: Sequence[EndedPlay], window: Window) -> tuple[Job, ...]:
    """The jobs that began in the window, from their records and from what the driver saw end."""
    plays: dict[tuple[int, int], list[RequestRecord]] = {}
    for record in records:
        plays.setdefault((record.agent, record.play), []).append(record)
    ended = {(play.agent, play.play): play.finished_at_ns for play in finished}
    jobs = []
    for key, own in sorted(plays.items()):
        start_ns = min(record.intended_at_ns for record in own)
        if min(record.turn for record in own) > 0 or not window.start_ns <= start_ns < window.end_ns:
            continue
        end_ns = ended.get(key)
        done = end_ns is not None and end_ns < window.end_ns
        jobs.append(
            Job(
                agent=key[0],
                play=key[1],
                session_id=own[0].session_id,
                job_s=(end_ns - start_ns) / 1e9 if done and end_ns is not None else None,
                failed=bool(failed_requests(own)),
                known_s=(window.end_ns - start_ns) / 1e9,
            )
        )
    return tuple(jobs)

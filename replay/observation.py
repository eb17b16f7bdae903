"""What of a trial's records counts: the steady window, the requests that are judged, their samples and jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from replay.buffering import Buffering, find_buffering
from replay.job import EndedPlay, Job, take_jobs
from replay.record import RequestRecord
from replay.sample import (
    FAILED,
    Pace,
    Sample,
    believed_tokens,
    find_pace,
    take_samples,
    whole_request_speeds,
)
from replay.silence import silences_of_agents_s, silences_s
from replay.steady import Steady, Stream, find_steady
from replay.void import LateWindow, without_void
from replay.window import Window, in_window


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The part of a trial that is judged. `samples` and `requests` go together, one by one."""

    phase: Window  # from the end of settling to the end of the phase
    steady: Steady
    requests: tuple[RequestRecord, ...]
    void: tuple[RequestRecord, ...]
    late: tuple[LateWindow, ...]
    samples: tuple[Sample, ...]
    jobs: tuple[Job, ...]
    agents: tuple[int, ...]  # that had a request due or in flight: each must hold what is asked of an agent
    buffering: Buffering
    pace: Pace
    longest_silence_s: float  # of the phase: nobody was sent anything while requests were in flight
    stalls_s: tuple[float, ...]  # silences while at least half of the agents waited. Like failures, never warm-up
    agent_silences_s: tuple[float, ...]  # each agent's own, over the phase

    @property
    def window(self) -> Window:
        """The steady window."""
        return self.steady.window


def observe(
    records: Sequence[RequestRecord],
    phase: Window,
    *,
    exact_length: bool,
    finished_plays: Sequence[EndedPlay] = (),
    late: Sequence[LateWindow] = (),
    finite: bool = False,
) -> Observation:
    """Takes what counts from a trial. A `finite` plan ends agents one by one: nothing of it is asked to be steady."""
    kept, void = without_void(in_window(records, phase), late)
    pace = find_pace(records, exact_length=exact_length)
    samples = take_samples(kept, phase, pace, exact_length=exact_length)
    steady = find_steady(() if finite else samples, _streams(records, pace, exact_length), phase)
    # Failures are never warm-up: a server that turns requests away at first has turned them away.
    judged = [
        (record, sample)
        for record, sample in zip(kept, samples, strict=True)
        if record.sent_at_ns >= steady.window.start_ns or record.outcome in FAILED
    ]
    samples = tuple(sample for _, sample in judged)
    buffering = find_buffering(samples)
    agents = _active(records, steady.window)
    return Observation(
        phase=phase,
        steady=steady,
        requests=tuple(record for record, _ in judged),
        void=void,
        late=tuple(late),
        samples=whole_request_speeds(samples) if buffering.found else samples,
        jobs=take_jobs(records, finished_plays, steady.window),
        agents=agents,
        buffering=buffering,
        pace=pace,
        longest_silence_s=max(silences_s(records, phase), default=0.0),
        stalls_s=tuple(silences_s(records, phase, waiting_least=max(2, math.ceil(len(agents) / 2)))),
        agent_silences_s=tuple(silences_of_agents_s(records, phase)),
    )


def _streams(records: Iterable[RequestRecord], pace: Pace, exact_length: bool) -> Iterator[Stream]:
    for record in records:
        first_ns, last_ns = record.first_content_at_ns, record.last_content_at_ns
        if first_ns is not None and last_ns is not None:
            counted = record.outcome == "ok" and record.completion_tokens is not None
            tokens = believed_tokens(record, exact_length=exact_length) if counted else None
            estimate = record.content_events * pace.tokens_per_event
            yield first_ns / 1e9, last_ns / 1e9, estimate if tokens is None else tokens


def _active(records: Iterable[RequestRecord], window: Window) -> tuple[int, ...]:
    found = {
        record.agent
        for record in records
        if record.intended_at_ns < window.end_ns and (record.end_at_ns is None or record.end_at_ns >= window.start_ns)
    }
    return tuple(sorted(found))

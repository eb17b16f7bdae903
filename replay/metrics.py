"""What a trial says beside its verdict: jobs per hour, bands of context and turn, cache hits over time, gaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from capture.intervals import union_length
from replay.attain import percentile
from replay.job import EndedPlay
from replay.observation import Observation
from replay.record import RequestRecord
from replay.sample import Sample, believed_tokens
from replay.window import Window

CONTEXT_BANDS = (8_192, 32_768, 65_536, 131_072)  # prompt tokens, upper ends
TURN_BANDS = (5, 20, 50, 100)  # turns of a session, counted from 1, upper ends
QUARTERS = 4
_STEP = 0.01  # of the logarithm of a gap: percentiles of gaps are within 1 %
_PLACES = 2600  # up to a day


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A distribution in a few numbers. None where there is nothing; infinite percentiles are None and counted."""

    count: int
    infinite: int
    p5: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p95: float | None
    p99: float | None
    mean: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Requests of one range of context or of turns, both ends included. `high` is None for the last."""

    low: int
    high: int | None
    requests: int
    ttft_s: Spread
    speed_tok_s: Spread
    cached_share: float | None
    ideal_cached_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHits:
    """Cached prompt tokens as the server reports them, beside those of a cache that forgets nothing of a play."""

    start_s: float  # since the trial's zero
    end_s: float
    prompt_tokens: int
    cached_share: float | None
    ideal_cached_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Trajectories of agents. A job is one that was begun at its first turn; its delays count as part of it."""

    finished: int  # ended in the window, begun at their first turn, without a failed request
    per_h: float | None  # by work: every answered request is its share of its session's turns
    per_h_per_agent: float | None
    per_h_finished: float  # by finished jobs alone: few where jobs outlast the window
    job_s: Spread  # of the finished
    wait_share: Spread  # of a finished job's time, spent waiting for the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Numbers for the report; none of them decides."""

    jobs: Jobs
    requests_per_agent: Spread
    by_context: tuple[Band, ...]  # bands that hold a request
    by_turn: tuple[Band, ...]
    cache_over_time: tuple[CacheHits, ...]  # quarters of the window
    itl_s: Spread  # between tokens: a gap between content events counts for each of the tokens of one event
    longest_gap_s: Spread  # of each answer: stalls inside answers show in its tail
    longest_silence_s: float  # no content for anyone while requests were in flight
    first_burst_tokens: Spread  # of each answer: tokens that were decoded before its first was sent
    context_tokens_first: float | None  # median prompt tokens of the window's first quarter
    context_tokens_last: float | None  # and of its last: contexts grow while sessions are worked through


def make_metrics(
    observation: Observation,
    *,
    agents: int,
    exact_length: bool,
    finished_plays: Sequence[EndedPlay] = (),
    session_turns: Mapping[str, int] | None = None,
) -> Metrics:
    """All of them, from what counts of a trial. `session_turns` are the plan's turns per session."""
    pairs = list(zip(observation.requests, observation.samples, strict=True))
    answered = [record for record, _ in pairs if record.first_content_at_ns is not None]
    per_agent: dict[int, int] = dict.fromkeys(observation.agents, 0)
    for record, _ in pairs:
        per_agent[record.agent] = per_agent.get(record.agent, 0) + 1
    over_time = cache_over_time(observation.requests, observation.window)
    contexts = [_median_context(observation.requests, part) for part in (over_time[0], over_time[-1])]
    return Metrics(
        jobs=_jobs(observation, agents, finished_plays, session_turns),
        requests_per_agent=spread(per_agent.values()),
        by_context=_bands(pairs, CONTEXT_BANDS, lambda record: record.prompt_tokens),
        by_turn=_bands(pairs, TURN_BANDS, lambda record: record.turn + 1),
        cache_over_time=over_time,
        itl_s=_itl(answered, exact_length=exact_length),
        longest_gap_s=spread(_longest_gap_s(record, observation.window) for record in answered),
        longest_silence_s=observation.longest_silence_s,
        first_burst_tokens=spread(
            sample.first_burst_tokens for _, sample in pairs if sample.first_burst_tokens is not None
        ),
        context_tokens_first=contexts[0],
        context_tokens_last=contexts[1],
    )


def spread(values: Iterable[float]) -> Spread:
    """Percentiles of values that may hold infinities."""
    known = list(values)
    finite = [value for value in known if math.isfinite(value)]

    def at(share: float) -> float | None:
        value = percentile(known, share)
        return value if value is not None and math.isfinite(value) else None

    return Spread(
        count=len(known),
        infinite=len(known) - len(finite),
        p5=at(0.05),
        p25=at(0.25),
        p50=at(0.5),
        p75=at(0.75),
        p95=at(0.95),
        p99=at(0.99),
        mean=math.fsum(finite) / len(finite) if finite and len(finite) == len(known) else None,
    )


def cached_share(done: Sequence[RequestRecord]) -> float | None:
    """Where a server reports cached tokens at all, an answer without the field had none (SGLang leaves out a 0)."""
    if all(record.cached_tokens is None for record in done):
        return None
    total = sum(record.prompt_tokens or 0 for record in done)
    hits = sum(min(record.cached_tokens or 0, record.prompt_tokens or 0) for record in done)
    return hits / total if total else None


def ideal_share(done: Iterable[RequestRecord]) -> float | None:
    """Weighted by what the server counted, so that it compares with the measured share."""
    known = [
        (record.ideal_cached_share, record.prompt_tokens)
        for record in done
        if record.ideal_cached_share is not None and record.prompt_tokens
    ]
    weight = sum(tokens for _, tokens in known)
    return sum(share * tokens for share, tokens in known) / weight if weight else None


def cache_over_time(requests: Iterable[RequestRecord], window: Window) -> tuple[CacheHits, ...]:
    """Cache hits of the requests sent in each quarter of the window."""
    length_ns = max(1, window.end_ns - window.start_ns)
    quarters: list[list[RequestRecord]] = [[] for _ in range(QUARTERS)]
    for record in requests:
        if record.outcome == "ok":
            place = (record.sent_at_ns - window.start_ns) * QUARTERS // length_ns
            quarters[min(QUARTERS - 1, max(0, place))].append(record)
    return tuple(
        CacheHits(
            start_s=(window.start_ns + length_ns * index / QUARTERS) / 1e9,
            end_s=(window.start_ns + length_ns * (index + 1) / QUARTERS) / 1e9,
            prompt_tokens=sum(record.prompt_tokens or 0 for record in done),
            cached_share=cached_share(done),
            ideal_cached_share=ideal_share(done),
        )
        for index, done in enumerate(quarters)
    )


def _median_context(requests: Iterable[RequestRecord], part: CacheHits) -> float | None:
    return percentile(
        [
            record.prompt_tokens
            for record in requests
            if record.prompt_tokens is not None and part.start_s <= record.sent_at_ns / 1e9 < part.end_s
        ],
        0.5,
    )


def _jobs(
    observation: Observation,
    agents: int,
    finished_plays: Sequence[EndedPlay],
    session_turns: Mapping[str, int] | None,
) -> Jobs:
    window = observation.window
    hours = window.seconds / 3600
    finished = [
        play
        for play in finished_plays
        if window.start_ns <= play.finished_at_ns < window.end_ns and play.first_turn == 0 and not play.failed_requests
    ]
    times = [(play.finished_at_ns - play.started_at_ns) / 1e9 for play in finished]
    model_s: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for record in observation.requests:
        if record.end_at_ns is not None:
            model_s.setdefault((record.agent, record.play), []).append((record.intended_at_ns, record.end_at_ns))
    shares = []
    for play, time_s in zip(finished, times, strict=True):
        # Of a job that began before the window not every request is known here.
        if play.started_at_ns >= window.start_ns and time_s > 0:
            shares.append(union_length(model_s.get((play.agent, play.play), ())) / 1e9 / time_s)
    work = None
    if session_turns is not None and hours > 0:
        work = math.fsum(
            1 / session_turns[record.session_id]
            for record in observation.requests
            if record.outcome == "ok" and session_turns.get(record.session_id)
        )
    return Jobs(
        finished=len(finished),
        per_h=None if work is None else work / hours,
        per_h_per_agent=None if work is None else work / hours / agents,
        per_h_finished=len(finished) / hours if hours > 0 else 0.0,
        job_s=spread(times),
        wait_share=spread(shares),
    )


def _bands(
    pairs: Sequence[tuple[RequestRecord, Sample]], ends: Sequence[int], of: Callable[[RequestRecord], int | None]
) -> tuple[Band, ...]:
    bands = []
    for low, high in zip((0, *(end + 1 for end in ends)), (*ends, None), strict=True):
        own = [
            (record, sample)
            for record, sample in pairs
            if (value := of(record)) is not None and value >= low and (high is None or value <= high)
        ]
        if not own:
            continue
        done = [record for record, _ in own if record.outcome == "ok"]
        bands.append(
            Band(
                low=low,
                high=high,
                requests=len(own),
                ttft_s=spread(sample.ttft_s for _, sample in own if sample.ttft_s is not None),
                speed_tok_s=spread(sample.speed_tok_s for _, sample in own if sample.speed_tok_s is not None),
                cached_share=cached_share(done),
                ideal_cached_share=ideal_share(done),
            )
        )
    return tuple(bands)


def _itl(answered: Iterable[RequestRecord], *, exact_length: bool) -> Spread:
    """Time between tokens, pooled over all answers, from a histogram of logarithms: millions of gaps need no memory."""
    import numpy as np

    counts = np.zeros(_PLACES)
    total_s = 0.0
    for record in answered:
        if not record.content_gaps_us or record.outcome != "ok":
            continue
        tokens = believed_tokens(record, exact_length=exact_length)
        per_event = max(1.0, tokens / record.content_events) if record.content_events else 1.0
        gaps_us = np.array(record.content_gaps_us, dtype=float)
        places = np.minimum(_PLACES - 1, np.rint(np.log1p(gaps_us / per_event) / _STEP).astype(int))
        counts += per_event * np.bincount(places, minlength=_PLACES)
        total_s += float(gaps_us.sum()) / 1e6
    reached = np.cumsum(counts)
    total = float(reached[-1])

    def at(share: float) -> float | None:
        if not total:
            return None
        return math.expm1(int(np.searchsorted(reached, share * total)) * _STEP) / 1e6

    return Spread(
        count=round(total),
        infinite=0,
        p5=at(0.05),
        p25=at(0.25),
        p50=at(0.5),
        p75=at(0.75),
        p95=at(0.95),
        p99=at(0.99),
        mean=total_s / total if total else None,
    )


def _longest_gap_s(record: RequestRecord, window: Window) -> float:
    """The longest silence inside an answer; of one in flight also the one that it ended with."""
    longest_s = max(record.content_gaps_us, default=0) / 1e6
    if record.outcome == "stopped" and record.last_content_at_ns is not None:
        longest_s = max(longest_s, (window.end_ns - record.last_content_at_ns) / 1e9)
    return longest_s

"""From the records of one trial to its numbers and its verdict: pure functions, recomputed by `verify`.

Definitions (docs/METHODOLOGY.md has them in words):

- *Time to first token*: first content − the moment the plan wanted the request sent. What an agent waits for our
  own client, a connection or a slot counts.
- *Output speed* of a request: (completion tokens − 1) / (last content − first content). Answers of fewer than two
  tokens have none. An answer whose content came in a single read has no such span: its speed is that of the whole
  request, so a server that holds an answer back and sends it at once does not look infinitely fast.
- *End-to-end speed*: completion tokens / (last content − the moment the plan wanted it sent).
- A percentile interpolates linearly between order statistics, at rank p(n − 1) from 0.
- A request that failed is a violation of both limits: its time to first token is infinite, its speed 0.
- A request still in flight at the end is right-censored. Without content yet: past the limit it is a violation, before
  it is *undecided*, counted, and the verdict is also given as if all undecided ones had failed. With content: its speed
  so far counts.
- Nothing that is missing improves a number: where the server counted no tokens, content events stand in, and each
  holds at least one token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from replay.record import RequestRecord
from replay.search import Verdict
from replay.slo import Limits
from replay.window import AgentTime, Window, agent_time, in_window

EXPLAINED_LEAST = 0.98  # Little's law: at most 2 % of agent time may be unaccounted for
SHORTFALL_MOST = 0.01  # of forced output tokens that may be missing

HELD_BACK_TOK_S = 10_000.0  # no system decodes one stream this fast; a buffer between it and us empties so

FAILED = ("http_error", "stream_error", "refused", "timeout", "cut")


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
class Sample:
    """One request of the window, judged. `ttft_s` is None while undecided; `speed` is None where there is none."""

    agent: int
    session_id: str
    turn: int
    ttft_s: float | None
    ttft_censored: bool  # the true value is at least this
    speed_tok_s: float | None
    end_to_end_tok_s: float | None
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWork:
    """Planned against served tokens, over the window's finished requests.

    Prompts where both are known; outputs that the server did not count by their content events, which hold more or as
    many tokens.
    """

    planned_prompt: int
    served_prompt: int
    prompt_requests: int
    planned_output: int
    served_output: int
    short_requests: int
    uncounted_requests: int  # finished, but the server counted no completion tokens

    @property
    def output_shortfall(self) -> float | None:
        """Share of the planned output tokens that the server did not produce."""
        return max(0.0, 1 - self.served_output / self.planned_output) if self.planned_output else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The numbers of one trial."""

    window_s: float
    requests: int
    outcomes: dict[str, int]
    ttft_s: Spread
    ttft_from_send_s: Spread  # the same answers, from the first byte sent: other tools count so
    speed_tok_s: Spread
    end_to_end_tok_s: Spread
    undecided: int
    without_speed: int
    held_back: int
    counted_by_events: int
    agents_seen: int
    goodput_agents: int  # agents that hold both limits over their own requests
    duty_cycle: float | None
    agent_time: AgentTime
    lateness_s: Spread
    cached_share: float | None  # of the prompt tokens, where the server says
    ideal_cached_share: float | None  # of the same requests, with a cache that forgets nothing of its play
    work: TokenWork
    requests_per_s: float
    output_tok_per_s: float
    prompt_tok_per_s: float
    verdict: Verdict
    reasons: tuple[str, ...]
    verdict_if_undecided_failed: Verdict
    notes: tuple[str, ...]


def measure(
    records: Sequence[RequestRecord],
    window: Window,
    *,
    agents: int,
    limits: Limits | None,
    exact_length: bool,
    longest_delay_s: float | None,
    client_faults: Collection[str] = (),
    finite: bool = False,
) -> Measure:
    """Measures one trial; without limits the verdict only says whether the numbers may be believed (`met`).

    `client_faults` are reasons to believe none of it. A `finite` plan ends agents one by one: no law of its steady
    state is asked for.
    """
    inside = in_window(records, window)
    ratio = tokens_per_event(records)
    samples = judge(records, window, limits)
    speeds = [sample.speed_tok_s for sample in samples if sample.speed_tok_s is not None]
    ttfts = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
    undecided = len(samples) - len(ttfts)
    time = agent_time(records, window, agents=agents, longest_delay_s=longest_delay_s)
    lateness = [(record.sent_at_ns - record.intended_at_ns) / 1e9 for record in inside]
    work = _token_work(inside)
    done = [record for record in inside if record.outcome == "ok"]
    ended = _ended_inside(records, window)

    invalid = [*client_faults]
    invalid += _gates(window, inside, speeds, ttfts, None if finite else time, work, limits, exact_length=exact_length)
    verdict, reasons = _verdict(invalid, speeds, ttfts, limits)
    failed = [record for record in inside if record.outcome in FAILED]
    if failed and verdict == "missed":
        reasons.append(f"{len(failed)} of {len(inside)} requests failed, the first: {_failure(failed[0])}")
    pessimist, _ = _verdict(invalid, speeds, [*ttfts, *[math.inf] * undecided], limits)
    held_back = sum(_held_back(record) for record in done)
    return Measure(
        window_s=window.seconds,
        requests=len(inside),
        outcomes=dict(sorted(Counter(record.outcome for record in inside).items())),
        ttft_s=spread(ttfts),
        ttft_from_send_s=spread(
            (record.first_content_at_ns - record.sent_at_ns) / 1e9
            for record in inside
            if record.first_content_at_ns is not None
        ),
        speed_tok_s=spread(speeds),
        end_to_end_tok_s=spread(sample.end_to_end_tok_s for sample in samples if sample.end_to_end_tok_s is not None),
        undecided=undecided,
        without_speed=len(samples) - len(speeds),
        held_back=held_back,
        counted_by_events=sum(record.completion_tokens is None for record in done),
        agents_seen=len({sample.agent for sample in samples}),
        goodput_agents=goodput_agents(samples, limits) if limits is not None else 0,
        duty_cycle=time.duty_cycle,
        agent_time=time,
        lateness_s=spread(lateness),
        cached_share=_cached_share(done),
        ideal_cached_share=_ideal_share(done),
        work=work,
        requests_per_s=_per_second((1 for _ in inside), window),
        output_tok_per_s=_per_second((_served_output(record, ratio) for record in ended), window),
        prompt_tok_per_s=_per_second((record.prompt_tokens or 0 for record in ended), window),
        verdict=verdict,
        reasons=tuple(reasons),
        verdict_if_undecided_failed=pessimist,
        notes=tuple(_notes(samples, done, held_back, ratio)),
    )


def judge(records: Sequence[RequestRecord], window: Window, limits: Limits | None) -> tuple[Sample, ...]:
    """Every request of the window with its time to first token and its speed."""
    ratio = tokens_per_event(records)
    return tuple(_sample(record, window, limits, ratio) for record in in_window(records, window))


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value at rank share x (n − 1) of the sorted values, linearly interpolated; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low = math.floor(rank)
    part = rank - low
    if part == 0 or ordered[low] == ordered[low + 1]:
        return ordered[low]
    return ordered[low] + part * (ordered[low + 1] - ordered[low])  # infinite where the upper one is


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


def tokens_per_event(records: Iterable[RequestRecord]) -> float:
    """Tokens that one content event held, over the trial's finished requests; at least 1."""
    tokens = events = 0
    for record in records:
        if record.outcome == "ok" and record.completion_tokens and record.content_events:
            tokens += record.completion_tokens
            events += record.content_events
    return max(1.0, tokens / events) if events else 1.0


def holds(ttfts: Sequence[float], speeds: Sequence[float], limits: Limits) -> bool:
    """Whether both limits hold; an empty side does not."""
    speed, ttft = percentile(speeds, 0.25), percentile(ttfts, 0.95)
    return speed is not None and ttft is not None and speed >= limits.p25_output_tok_s and ttft <= limits.p95_ttft_s


def goodput_agents(samples: Iterable[Sample], limits: Limits) -> int:
    """How many agents hold both limits over their own requests; an agent with nothing to judge does not."""
    of_agent: dict[int, list[Sample]] = {}
    for sample in samples:
        of_agent.setdefault(sample.agent, []).append(sample)
    return sum(
        holds(
            [sample.ttft_s for sample in own if sample.ttft_s is not None],
            [sample.speed_tok_s for sample in own if sample.speed_tok_s is not None],
            limits,
        )
        for own in of_agent.values()
    )


def _sample(record: RequestRecord, window: Window, limits: Limits | None, ratio: float) -> Sample:
    ttft: float | None
    speed: float | None = None
    whole: float | None = None
    censored = False
    first_ns, last_ns = record.first_content_at_ns, record.last_content_at_ns
    if record.outcome in FAILED:
        ttft, speed = math.inf, 0.0
    elif first_ns is None or last_ns is None:
        if record.outcome == "ok":
            ttft = math.inf  # an answer without content never had a first token
        else:
            elapsed_s = (window.end_ns - record.intended_at_ns) / 1e9
            censored = True
            ttft = elapsed_s if limits is not None and elapsed_s > limits.p95_ttft_s else None
    else:
        ttft = (first_ns - record.intended_at_ns) / 1e9
        if record.outcome == "ok":
            tokens = record.completion_tokens if record.completion_tokens is not None else record.content_events
            total_s = (last_ns - record.intended_at_ns) / 1e9
            whole = tokens / total_s if total_s > 0 else None
            if tokens >= 2:
                speed = whole if _held_back(record) else (tokens - 1) / ((last_ns - first_ns) / 1e9)
        else:
            speed = _speed_so_far(record, window.end_ns - first_ns, limits, ratio)
    return Sample(
        agent=record.agent,
        session_id=record.session_id,
        turn=record.turn,
        ttft_s=ttft,
        ttft_censored=censored,
        speed_tok_s=speed,
        end_to_end_tok_s=whole,
        prompt_tokens=record.prompt_tokens,
    )


def _speed_so_far(record: RequestRecord, elapsed_ns: int, limits: Limits | None, ratio: float) -> float | None:
    """Speed of an answer that the phase's end cut, counting the silence up to that end."""
    if elapsed_ns <= 0:
        return None
    tokens = record.content_events * ratio
    if record.content_events >= 2:
        return (tokens - 1) / (elapsed_ns / 1e9)
    at_most = tokens / (elapsed_ns / 1e9)
    return at_most if limits is not None and at_most < limits.p25_output_tok_s else None


def _verdict(
    invalid: Sequence[str], speeds: Sequence[float], ttfts: Sequence[float], limits: Limits | None
) -> tuple[Verdict, list[str]]:
    if invalid:
        return "invalid", [*invalid]
    if limits is None or holds(ttfts, speeds, limits):
        return "met", []
    speed, ttft = percentile(speeds, 0.25), percentile(ttfts, 0.95)
    assert speed is not None
    assert ttft is not None
    reasons = []
    if speed < limits.p25_output_tok_s:
        reasons.append(f"P25 output speed {speed:.1f} tok/s is below {limits.p25_output_tok_s:g} tok/s")
    if ttft > limits.p95_ttft_s:
        reasons.append(f"P95 time to first token {ttft:.2f} s is above {limits.p95_ttft_s:g} s")
    return "missed", reasons


def _gates(
    window: Window,
    inside: Sequence[RequestRecord],
    speeds: Sequence[float],
    ttfts: Sequence[float],
    time: AgentTime | None,
    work: TokenWork,
    limits: Limits | None,
    *,
    exact_length: bool,
) -> list[str]:
    """Why the numbers may not be believed."""
    if window.seconds <= 0:
        return ["the phase ended before settling did: nothing was measured"]
    reasons = []
    if not ttfts:
        reasons.append("no request of the steady window was decided")
    elif limits is not None and not speeds:
        reasons.append("no answer of the steady window has two tokens, so there is no output speed")
    if limits is None and inside and all(record.outcome in FAILED for record in inside):
        reasons.append(f"all {len(inside)} requests failed, the first: {_failure(inside[0])}")
    if time is not None and time.explained < EXPLAINED_LEAST:
        reasons.append(
            f"Little's law: {1 - time.explained:.1%} of the agents' time is neither a request nor a planned delay"
        )
    shortfall = work.output_shortfall
    if exact_length and shortfall is not None and shortfall > SHORTFALL_MOST:
        reasons.append(f"the server produced {shortfall:.1%} fewer output tokens than the plan forces")
    return reasons


def _token_work(inside: Iterable[RequestRecord]) -> TokenWork:
    done = [record for record in inside if record.outcome == "ok"]
    prompts = [
        (record.planned_prompt_tokens, record.prompt_tokens)
        for record in done
        if record.planned_prompt_tokens is not None and record.prompt_tokens is not None
    ]
    # An answer that nobody counted must not hide that it was short: it holds at least a token per content event.
    outputs = [
        (
            record.planned_output_tokens,
            record.completion_tokens if record.completion_tokens is not None else record.content_events,
        )
        for record in done
    ]
    return TokenWork(
        planned_prompt=sum(planned for planned, _ in prompts),
        served_prompt=sum(served for _, served in prompts),
        prompt_requests=len(prompts),
        planned_output=sum(planned for planned, _ in outputs),
        # A request that produced more than planned does not make up for one that produced less.
        served_output=sum(min(planned, served) for planned, served in outputs),
        short_requests=sum(served < planned for planned, served in outputs),
        uncounted_requests=sum(record.completion_tokens is None for record in done),
    )


def _cached_share(done: Sequence[RequestRecord]) -> float | None:
    """Where a server reports cached tokens at all, an answer without the field had none (SGLang leaves out a 0)."""
    if all(record.cached_tokens is None for record in done):
        return None
    total = sum(record.prompt_tokens or 0 for record in done)
    return sum(record.cached_tokens or 0 for record in done if record.prompt_tokens) / total if total else None


def _ideal_share(done: Iterable[RequestRecord]) -> float | None:
    """Weighted by what the server counted, so that it compares with the measured share."""
    known = [
        (record.ideal_cached_share, record.prompt_tokens)
        for record in done
        if record.ideal_cached_share is not None and record.prompt_tokens
    ]
    weight = sum(tokens for _, tokens in known)
    return sum(share * tokens for share, tokens in known) / weight if weight else None


def _held_back(record: RequestRecord) -> bool:
    tokens = record.completion_tokens if record.completion_tokens is not None else record.content_events
    first_ns, last_ns = record.first_content_at_ns, record.last_content_at_ns
    if tokens < 2 or first_ns is None or last_ns is None:
        return False
    return (tokens - 1) * 1e9 > HELD_BACK_TOK_S * (last_ns - first_ns)


def _ended_inside(records: Iterable[RequestRecord], window: Window) -> list[RequestRecord]:
    return [
        record
        for record in records
        if record.outcome == "ok"
        and record.end_at_ns is not None
        and window.start_ns <= record.end_at_ns < window.end_ns
    ]


def _failure(record: RequestRecord) -> str:
    status = f" {record.status}" if record.status is not None else ""
    return f"{record.outcome}{status}" + (f" ({record.error})" if record.error else "")


def _per_second(values: Iterable[float], window: Window) -> float:
    return sum(values) / window.seconds if window.seconds else 0.0


def _served_output(record: RequestRecord, ratio: float) -> float:
    return record.completion_tokens if record.completion_tokens is not None else record.content_events * ratio


def _notes(samples: Sequence[Sample], done: Sequence[RequestRecord], held_back: int, ratio: float) -> list[str]:
    notes = []
    if 0 < len(samples) < 59:
        notes.append(
            f"only {len(samples)} requests: fewer than the 59 that bound a 95th percentile at 95 % confidence "
            "without one violation"
        )
    if done and held_back > 0.05 * len(done):
        notes.append(
            f"{held_back / len(done):.0%} of the answers came all at once: the server, a proxy or this client holds "
            "them back; their speed is that of the whole request"
        )
    if ratio > 1.2:
        notes.append(f"{ratio:.2f} tokens per content event: the first event's tokens make output speed look higher")
    return notes

"""From the records of one trial to its numbers and its verdict: pure functions, recomputed by `verify`.

What counts of a trial stands in `observation`, what a quantity is in `sample` and `job`, how limits are held against it
in `attain`, what voids it in `failure`, `void` and `steady`; docs/METHODOLOGY.md has all of it in words. A percentile
interpolates linearly between order statistics, at rank p(n − 1) from 0. Nothing that is missing improves a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from replay.attain import attain, percentile
from replay.buffering import Buffering
from replay.failure import (
    FLATTERING,
    MANY_PER_EVENT,
    FailureCount,
    count_failures,
    describe,
    failed_requests,
    failure_margin,
    unbelievable_count,
)
from replay.job import EndedPlay
from replay.metrics import Metrics, Spread, cached_share, ideal_share, make_metrics, spread
from replay.observation import Observation, observe
from replay.record import RequestRecord
from replay.sample import FAILED, believed_tokens
from replay.search import Verdict
from replay.silence import STARVED_MOST, stall_margin, starvation_margin
from replay.slo import Slo, SloResult
from replay.steady import Steady
from replay.void import LateWindow, client_fault
from replay.window import AgentTime, Window, agent_time

EXPLAINED_LEAST = 0.98  # Little's law: at most 2 % of agent time may be unaccounted for
SILENCE_NOTED_S = 10.0  # without content for anyone while requests are in flight
SHORTFALL_MOST = 0.01  # of forced output tokens that may be missing


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
    """The numbers of one trial, over its steady window."""

    window_start_ns: int  # since the trial's zero: where warm-up was found to end
    window_end_ns: int
    window_s: float
    requests: int
    outcomes: dict[str, int]
    void_requests: int  # left out, because the client itself was late
    late: tuple[LateWindow, ...]
    ttft_s: Spread  # against the first service level's limit: in flight beyond it counts
    ttft_from_send_s: Spread  # the same answers, from the first byte sent: other tools count so
    speed_tok_s: Spread
    end_to_end_tok_s: Spread
    turn_s: Spread  # of answers that ended
    undecided: int
    without_speed: int
    held_back: int
    counted_by_events: int
    tokens_per_event: float
    agents_seen: int
    goodput_agents: int  # agents that hold every limit of the first service level over their own requests
    duty_cycle: float | None
    agent_time: AgentTime
    lateness_s: Spread
    cached_share: float | None  # of the prompt tokens, where the server says
    ideal_cached_share: float | None  # of the same requests, with a cache that forgets nothing of its play
    work: TokenWork
    failures: tuple[FailureCount, ...]
    buffering: Buffering
    steady: Steady
    metrics: Metrics
    requests_per_s: float
    output_tok_per_s: float
    prompt_tok_per_s: float
    slos: tuple[SloResult, ...]  # in the order in which they were asked for
    valid: bool  # whether the numbers may be believed
    invalid_reasons: tuple[str, ...]
    verdict: Verdict  # of the first service level; without any `met` where the numbers may be believed
    reasons: tuple[str, ...]
    verdict_if_undecided_failed: Verdict
    notes: tuple[str, ...]


def measure(
    records: Sequence[RequestRecord],
    phase: Window,
    *,
    agents: int,
    slos: Sequence[Slo],
    exact_length: bool,
    longest_delay_s: float | None,
    finished_plays: Sequence[EndedPlay] = (),
    late: Sequence[LateWindow] = (),
    client_faults: Collection[str] = (),
    finite: bool = False,
    weights: str | None = None,
    session_turns: Mapping[str, int] | None = None,
) -> Measure:
    """Measures one trial against every service level; without one the verdict only says whether to believe it.

    `phase` lasts from the end of settling to the end of the trial. `client_faults` are reasons to believe none of it,
    `late` the windows in which the client was late. A `finite` plan ends agents one by one: no law of a steady state is
    asked for. `weights` are those of the system file, `session_turns` the plan's turns per session.
    """
    seen = observe(records, phase, exact_length=exact_length, finished_plays=finished_plays, late=late, finite=finite)
    inside, samples, window, ratio = seen.requests, seen.samples, seen.window, seen.pace.tokens_per_event
    time = agent_time(records, window, agents=agents, longest_delay_s=longest_delay_s)
    work = _token_work(inside)
    done = [record for record in inside if record.outcome == "ok"]
    ended = _ended_inside(records, window)
    failures = count_failures(inside, exact_length=exact_length, weights=weights)

    too_late = client_fault(len(inside) + len(seen.void), len(seen.void), seen.late)
    gate = _gate(window, None if finite else time)
    invalid = [*client_faults, *(reason for reason in (too_late, gate) if reason is not None)]
    # What flatters a server: less work than asked for, or more tokens counted than came. A miss in spite of it is one.
    # So is a stall through which nobody could send anything.
    doubts = [_short_work(work)] if exact_length else []
    if not inside and not seen.void and window.seconds > 0:
        doubts.append("no request was sent in the steady window")
    doubts += [count.sentence for count in failures if count.voids and count.failure in FLATTERING]
    untrue = unbelievable_count(done)
    if untrue is not None and all(record.completion_tokens is None for record in done):
        # Pieces of tokens are held against a server that counts nothing: it need not have missed.
        invalid.append(untrue)
    else:
        doubts.append(untrue)
    unless_missed = [reason for reason in doubts if reason is not None]
    invalid += [count.sentence for count in failures if count.voids and count.failure not in FLATTERING]
    if not slos and inside and all(record.outcome in FAILED for record in inside):
        invalid.append(f"all {len(inside)} requests failed, the first: {describe(inside[0])}")
    results = tuple(
        _believed(slo, attain(slo, samples, seen.jobs, agents=seen.agents), invalid, unless_missed, seen)
        for slo in slos
    )
    invalid += unless_missed
    invalid += [fault.reason for fault in seen.steady.unsteady]
    first = results[0] if results else None
    verdict: Verdict = first.verdict if first else "invalid" if invalid else "met"
    limit_s = next((term.limit for slo in slos[:1] for term in slo.terms if term.quantity == "ttft_s"), None)
    ttfts = [value for sample in samples if (value := sample.value("ttft_s", limit_s)) is not None]
    speeds = [sample.speed_tok_s for sample in samples if sample.speed_tok_s is not None]
    metrics = make_metrics(
        seen, agents=agents, exact_length=exact_length, finished_plays=finished_plays, session_turns=session_turns
    )
    return Measure(
        window_start_ns=window.start_ns,
        window_end_ns=window.end_ns,
        window_s=window.seconds,
        requests=len(inside),
        outcomes=dict(sorted(Counter(record.outcome for record in inside).items())),
        void_requests=len(seen.void),
        late=seen.late,
        ttft_s=spread(ttfts),
        ttft_from_send_s=spread(
            (record.first_content_at_ns - record.sent_at_ns) / 1e9
            for record in inside
            if record.first_content_at_ns is not None
        ),
        speed_tok_s=spread(speeds),
        end_to_end_tok_s=spread(sample.end_to_end_tok_s for sample in samples if sample.end_to_end_tok_s is not None),
        turn_s=spread(sample.turn_s for sample in samples if sample.turn_s is not None),
        undecided=len(samples) - len(ttfts),
        without_speed=len(samples) - len(speeds),
        held_back=sum(sample.held_back for sample in samples),
        counted_by_events=sum(record.completion_tokens is None for record in done),
        tokens_per_event=ratio,
        agents_seen=len({sample.agent for sample in samples}),
        goodput_agents=first.goodput_agents if first else 0,
        duty_cycle=time.duty_cycle,
        agent_time=time,
        lateness_s=spread((record.sent_at_ns - record.intended_at_ns) / 1e9 for record in inside),
        cached_share=cached_share(done),
        ideal_cached_share=ideal_share(done),
        work=work,
        failures=failures,
        buffering=seen.buffering,
        steady=seen.steady,
        metrics=metrics,
        requests_per_s=_per_second((1 for record in inside if record.sent_at_ns >= window.start_ns), window),
        output_tok_per_s=_per_second((_served_output(record, ratio, exact_length) for record in ended), window),
        prompt_tok_per_s=_per_second((record.prompt_tokens or 0 for record in ended), window),
        slos=results,
        valid=not invalid,
        invalid_reasons=tuple(invalid),
        verdict=verdict,
        reasons=first.reasons if first else tuple(invalid),
        verdict_if_undecided_failed="missed" if first and first.undecided_matters else verdict,
        notes=tuple(_notes(seen, done, failures, metrics.longest_silence_s)),
    )


def _believed(
    slo: Slo, result: SloResult, invalid: Sequence[str], unless_missed: Sequence[str], seen: Observation
) -> SloResult:
    """The result of a trial that may be believed, or why it may not.

    A level at which too many requests failed, the server stalled or agents starved has missed, whatever the percentiles
    are. So has one that misses a limit while the server was getting worse: more of the same would not have saved it; or
    in spite of what flatters the server (`unless_missed`): else it could have its bad trials done again.
    """
    failed = failed_requests(seen.requests)
    limit_s = min((term.limit for term in slo.terms if term.quantity == "ttft_s"), default=None)
    failing = failure_margin(len(failed), len(seen.requests))
    stalled = stall_margin(seen.stalls_s, seen.phase, limit_s=limit_s)
    starved = starvation_margin(seen.agent_silences_s, seen.phase, agents=len(seen.agents), limit_s=limit_s)
    broken = [margin for margin in (failing, stalled, starved) if margin is not None]
    unsteady = [fault.reason for fault in seen.steady.unsteady]
    worse = all(fault.direction == "worse" for fault in seen.steady.unsteady)
    if not broken and result.verdict != "missed":
        invalid = (*invalid, *unless_missed)
    if not broken and not (worse and result.verdict == "missed"):
        invalid = (*invalid, *unsteady)
    if invalid or (result.verdict == "invalid" and not broken):
        reasons = tuple(invalid) or result.reasons
        return replace(result, verdict="invalid", margin=None, reasons=reasons, undecided_matters=False)
    if result.verdict == "met" and not broken:
        return result
    reasons = (*(result.reasons if result.verdict == "missed" else ()), *unsteady, *unless_missed)
    if stalled is not None:
        reasons = (*reasons, f"the server stalled: it sent nothing to anyone for up to {max(seen.stalls_s):.1f} s")
    elif starved is not None:
        share = math.exp(starved) * STARVED_MOST
        reasons = (*reasons, f"agents were starved: for {share:.0%} of their time they waited and were sent nothing")
    if failed:
        count = f"{len(failed)} of {len(seen.requests)} requests failed"
        reasons = (*reasons, f"{count}, the first: {describe(failed[0])}")
    margin = max([*broken, *(() if result.margin is None else (result.margin,))])
    return replace(result, verdict="missed", margin=margin, reasons=reasons, undecided_matters=False)


def _gate(window: Window, time: AgentTime | None) -> str | None:
    """Why the numbers may not be believed."""
    if window.seconds <= 0:
        return "the phase ended before settling did: nothing was measured"
    if time is not None and time.explained < EXPLAINED_LEAST:
        return f"Little's law: {1 - time.explained:.1%} of the agents' time is neither a request nor a planned delay"
    return None


def _short_work(work: TokenWork) -> str | None:
    """Why a forced length was not: the server did less work."""
    shortfall = work.output_shortfall
    if shortfall is None or shortfall <= SHORTFALL_MOST:
        return None
    return f"the server produced {shortfall:.1%} fewer output tokens than the plan forces"


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


def _ended_inside(records: Iterable[RequestRecord], window: Window) -> list[RequestRecord]:
    return [
        record
        for record in records
        if record.outcome == "ok"
        and record.end_at_ns is not None
        and window.start_ns <= record.end_at_ns < window.end_ns
    ]


def _per_second(values: Iterable[float], window: Window) -> float:
    return sum(values) / window.seconds if window.seconds else 0.0


def _served_output(record: RequestRecord, ratio: float, exact_length: bool) -> float:
    if record.completion_tokens is None:
        return record.content_events * ratio
    return believed_tokens(record, exact_length=exact_length)


def _notes(
    seen: Observation, done: Sequence[RequestRecord], failures: Sequence[FailureCount], silence_s: float
) -> list[str]:
    samples, notes = seen.samples, []
    if 0 < len(samples) < 59:
        notes.append(
            f"only {len(samples)} requests: fewer than the 59 that bound a 95th percentile at 95 % confidence "
            "without one violation"
        )
    at_once = sum(sample.held_back for sample in samples)
    if done and at_once > 0.05 * len(done):
        notes.append(
            f"{at_once / len(done):.0%} of the answers came all at once: the server, a proxy or this client holds "
            "them back; their speed is that of the whole request"
        )
    share = seen.buffering.held_share
    if seen.buffering.found and share is not None:
        notes.append(
            f"the server holds answers back: {share:.0%} of the time per token passes before the first one "
            f"(z = {seen.buffering.z:.1f}); every speed is that of the whole request"
        )
    if seen.buffering.untested is not None and seen.buffering.answers:
        notes.append(f"whether the server holds answers back was not tested: {seen.buffering.untested}")
    if seen.pace.tokens_per_event > MANY_PER_EVENT:
        notes.append(
            f"{seen.pace.tokens_per_event:.2f} tokens per content event: how many tokens came rests on the server's "
            "count"
        )
    if seen.void:
        notes.append(
            f"{len(seen.void)} requests are void and left out: the client was late in {len(seen.late)} windows, "
            f"the first with {seen.late[0].why}"
        )
    if seen.steady.abstained is not None:
        notes.append(f"whether the trial was steady was not tested: {seen.steady.abstained}")
    if silence_s > SILENCE_NOTED_S:
        notes.append(f"the server was silent to all of its requests for {silence_s:.1f} s: a stall")
    turns = [sample.turn_s for sample in samples if sample.turn_s is not None]
    longest_s = percentile([turn for turn in turns if turn < float("inf")], 0.99)
    if longest_s is not None and seen.window.seconds < 5 * longest_s:
        notes.append(f"the window of {seen.window.seconds:.0f} s is shorter than five turns of {longest_s:.1f} s (P99)")
    notes += seen.steady.notes
    notes += [count.sentence for count in failures if count.noted]
    return notes

"""From records to numbers and a verdict, on hand-made records whose answer is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.attain import percentile
from replay.interval import cluster_bootstrap
from replay.measure import Measure, measure
from replay.observation import observe
from replay.protocol import FULL
from replay.record import RequestRecord
from replay.sample import Sample
from replay.slo import Slo, Term
from replay.window import Window, agent_time, in_window

MS = 1_000_000
SECOND = 1000 * MS
WINDOW = Window(start_ns=10 * SECOND, end_ns=40 * SECOND)
SPEED = Term(quantity="output_tok_s", percentile=25.0, limit=20.0)
TTFT = Term(quantity="ttft_s", percentile=95.0, limit=2.0)


def level(*terms: Term, agent_share: float = 1.0) -> Slo:
    return Slo(name="test", version="1", terms=terms, agent_share=agent_share, protocol=FULL, note="")


LEVEL = level(SPEED, TTFT)


def record(**changes: Any) -> RequestRecord:
    """Sent at 12 s, first token after 500 ms, then 50 tok/s: 101 tokens in 2 s."""
    sent = changes.pop("sent_s", 12.0)
    ttft, speed, tokens = changes.pop("ttft_s", 0.5), changes.pop("speed", 50.0), changes.get("completion_tokens", 101)
    late = changes.pop("late_s", 0.0)
    sent_ns = round(sent * SECOND)
    first_ns = sent_ns + round(ttft * SECOND)
    last_ns = first_ns + (round((tokens - 1) / speed * SECOND) if tokens else 0)
    values: dict[str, Any] = {
        "agent": 0,
        "play": 0,
        "session_id": "s",
        "request_index": 0,
        "turn": 0,
        "salt": "",
        "intended_at_ns": sent_ns - round(late * SECOND),
        "sent_at_ns": sent_ns,
        "written_at_ns": sent_ns,
        "headers_at_ns": first_ns,
        "first_byte_at_ns": first_ns,
        "first_content_at_ns": first_ns,
        "last_content_at_ns": last_ns,
        "end_at_ns": last_ns,
        "status": 200,
        "outcome": "ok",
        "error": None,
        "reused_connection": True,
        "recorded_prompt_tokens": 1000,
        "planned_prompt_tokens": 1000,
        "prompt_tokens": 1000,
        "cached_tokens": 600,
        "planned_output_tokens": 101,
        "completion_tokens": 101,
        "reasoning_tokens": None,
        "finish_reason": "length",
        "delay_us": 0,
        "delay_kind": "tool",
        "bytes_up": 4000,
        "bytes_down": 9000,
        "reads": 101,
        "events": 103,
        "content_events": 101,
        "content_gaps_us": (),
    }
    return RequestRecord(**{**values, **changes})


def failed(**changes: Any) -> RequestRecord:
    nothing = {"first_content_at_ns": None, "last_content_at_ns": None, "completion_tokens": None}
    return record(**{**nothing, "outcome": "http_error", "status": 500, "error": "boom", **changes})


def stopped(sent_s: float, *, first_s: float | None = None, events: int = 0, **changes: Any) -> RequestRecord:
    """In flight when the phase ended at 40 s."""
    first = None if first_s is None else round(first_s * SECOND)
    values = {
        "outcome": "stopped",
        "end_at_ns": None,
        "completion_tokens": None,
        "first_content_at_ns": first,
        "last_content_at_ns": first,
        "content_events": events,
    }
    return record(sent_s=sent_s, **{**values, **changes})


def look(records: list[RequestRecord], **changes: Any) -> Measure:
    values: dict[str, Any] = {
        "agents": 1,
        "slos": (LEVEL,),
        "exact_length": True,
        "longest_delay_s": None,
        "finite": True,
        **changes,
    }
    return measure(records, WINDOW, **values)


def take(*records: RequestRecord) -> tuple[Sample, ...]:
    return observe(records, WINDOW, exact_length=True, finite=True).samples


def test_one_request_by_hand() -> None:
    found = look([record()])
    assert found.ttft_s.p50 == pytest.approx(0.5)
    assert found.speed_tok_s.p50 == pytest.approx(50.0)
    assert found.end_to_end_tok_s.p50 == pytest.approx(101 / 2.5)
    assert (found.verdict, found.reasons, found.goodput_agents) == ("met", (), 1)
    assert found.cached_share == pytest.approx(0.6)
    assert found.output_tok_per_s == pytest.approx(101 / 30)


@pytest.mark.parametrize(
    ("cached", "share"),
    [((600, 400), 0.5), ((600, None), 0.3), ((None, None), None), ((0, None), 0.0)],
    ids=["both say", "a field left out is a 0", "a server that never says", "only zeros"],
)
def test_a_missing_cache_count_never_raises_the_share(cached: tuple[int | None, ...], share: float | None) -> None:
    found = look([record(cached_tokens=count) for count in cached])
    assert found.cached_share == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(("sent_s", "inside"), [(9.999, False), (10.0, True), (39.999, True), (40.0, False)], ids=str)
def test_the_window_is_about_when_a_request_was_sent(sent_s: float, inside: bool) -> None:
    assert bool(in_window([record(sent_s=sent_s)], WINDOW)) is inside


def test_waiting_for_our_own_client_counts_in_the_first_token() -> None:
    found = look([record(late_s=0.7)])
    assert found.ttft_s.p50 == pytest.approx(1.2)
    assert found.ttft_from_send_s.p50 == pytest.approx(0.5)
    assert found.lateness_s.p50 == pytest.approx(0.7)


def test_percentiles_interpolate_linearly() -> None:
    assert percentile([1, 2, 3, 4], 0.25) == pytest.approx(1.75)
    assert percentile([4, 1, 3, 2], 0.95) == pytest.approx(3.85)
    assert percentile([7], 0.95) == 7
    assert percentile([], 0.5) is None
    assert percentile([1, 2, math.inf], 0.5) == 2
    assert percentile([1, 2, math.inf], 0.51) == math.inf


def test_the_pooled_rule_takes_the_25th_and_the_95th() -> None:
    records = [record(speed=speed) for speed in (10, 19, 25, 30, 40)]
    assert look(records).speed_tok_s.p25 == pytest.approx(19)
    missed = look(records)
    assert missed.verdict == "missed"
    assert missed.reasons == ("P25 output speed 19.0 tok/s is below 20 tok/s",)
    slow = look([record(ttft_s=ttft) for ttft in (0.1, 0.2, 0.3, 5.0)])
    assert slow.reasons == ("P95 time to first token 4.29 s is above 2 s",)


def test_a_failed_request_breaks_both_limits() -> None:
    found = look([record() for _ in range(18)] + [failed(), failed()])
    assert found.ttft_s.infinite == 2
    assert found.ttft_s.p95 is None
    assert found.speed_tok_s.p5 == 0
    assert found.verdict == "missed"
    assert found.reasons[-1] == "2 of 20 requests failed, the first: http_error 500 (boom)"
    assert found.outcomes == {"http_error": 2, "ok": 18}


@pytest.mark.parametrize("outcome", ["http_error", "stream_error", "refused", "timeout", "cut"])
def test_every_failure_counts(outcome: str) -> None:
    # Even when content had come in time.
    assert look([record(outcome=outcome)]).verdict == "missed"


def test_an_answer_without_content_never_had_a_first_token() -> None:
    found = look([record(first_content_at_ns=None, last_content_at_ns=None)])
    assert found.ttft_s.infinite == 1
    assert found.verdict == "missed"


def test_in_flight_past_the_limit_is_a_violation_before_it_is_undecided() -> None:
    good = [record() for _ in range(10)]
    past = look([*good, stopped(37.0)])
    assert (past.undecided, past.ttft_s.count, past.verdict) == (0, 11, "met")
    (waiting,) = take(stopped(37.0))
    assert waiting.ttft_s is None
    assert waiting.value("ttft_s", 2.0) == pytest.approx(3.0)
    assert waiting.value("ttft_s", 3.5) is None
    before = look([*good, stopped(39.0)])
    assert (before.undecided, before.ttft_s.count, before.requests) == (1, 10, 11)
    assert (before.verdict, before.verdict_if_undecided_failed) == ("met", "missed")


def test_an_answer_cut_by_the_end_counts_with_its_speed_so_far() -> None:
    whole = record(completion_tokens=202, content_events=101)  # two tokens an event
    cut = stopped(30.0, first_s=30.0, events=51)
    speeds = [sample.speed_tok_s for sample in observe([whole, cut], WINDOW, exact_length=False, finite=True).samples]
    assert speeds[1] == pytest.approx((51 * 2 - 2) / 10)
    # One event and then silence for so long that the limit is out of reach; or too young to say.
    assert take(stopped(30.0, first_s=38.0, events=1))[0].value("output_tok_s", 20.0) == pytest.approx(0.5)
    assert take(stopped(30.0, first_s=39.99, events=1))[0].value("output_tok_s", 20.0) is None


@pytest.mark.parametrize("span_ms", [0, 0.1, 9], ids="{} ms".format)
def test_an_answer_held_back_and_sent_at_once_is_not_fast(span_ms: float) -> None:
    held = record(ttft_s=1.9, last_content_at_ns=round(13.9 * SECOND + span_ms * MS))
    found = look([held] * 4)
    assert found.held_back == 4
    assert found.speed_tok_s.p50 == pytest.approx(101 / (1.9 + span_ms / 1000))
    assert "all at once" in " ".join(found.notes)
    steady = look([record(ttft_s=1.9, last_content_at_ns=round(13.9 * SECOND + 11 * MS))])
    assert steady.held_back == 0
    assert steady.speed_tok_s.p50 == pytest.approx(100 / 0.011)


def test_short_answers_have_no_speed_and_missing_counts_are_bounded_from_below() -> None:
    short = look([record(completion_tokens=1, planned_output_tokens=1, content_events=1), record()])
    assert (short.without_speed, short.speed_tok_s.count) == (1, 1)
    uncounted = record(completion_tokens=None, content_events=51, last_content_at_ns=round(14.5 * SECOND))
    found = look([uncounted])
    assert found.counted_by_events == 1
    assert found.speed_tok_s.p50 == pytest.approx(50 / 2)
    assert found.work.uncounted_requests == 1


def test_token_work_that_falls_short_voids_a_forced_length() -> None:
    short = record(completion_tokens=60)
    found = look([record(), short])
    assert found.work.output_shortfall == pytest.approx(41 / 202)
    assert found.work.short_requests == 1
    assert found.verdict == "invalid"
    assert "20.3% fewer output tokens" in found.reasons[0]
    assert look([record(), short], exact_length=False).verdict == "met"
    # One that rambles does not make up for one that stops early.
    assert look([record(completion_tokens=161), short]).work.served_output == 161


def test_a_server_that_does_not_count_what_it_cuts_short_is_found_out() -> None:
    uncounted = record(completion_tokens=None, content_events=60)
    found = look([record(), uncounted])
    assert found.work.output_shortfall == pytest.approx(41 / 202)
    assert (found.work.uncounted_requests, found.work.short_requests, found.verdict) == (1, 1, "invalid")


def test_nothing_measured_is_invalid() -> None:
    assert look([]).verdict == "invalid"
    assert measure(
        [record()], Window(start_ns=5, end_ns=5), agents=1, slos=(LEVEL,), exact_length=True, longest_delay_s=1.0
    ).reasons == ("the phase ended before settling did: nothing was measured",)


def test_without_limits_only_a_run_in_which_all_fails_is_no_run() -> None:
    assert look([record(), failed()], slos=()).verdict == "met"
    nothing = look([failed(), failed()], slos=())
    assert (nothing.verdict, nothing.reasons) == (
        "invalid",
        ("all 2 requests failed, the first: http_error 500 (boom)",),
    )


def test_goodput_counts_agents_that_hold_both_limits_themselves() -> None:
    good = [record(agent=0) for _ in range(4)]
    slow = [record(agent=1, speed=15) for _ in range(4)]
    late = [record(agent=2, ttft_s=3.0)]
    dead = [failed(agent=3)]
    assert look([*good, *slow, *late, *dead], agents=4).goodput_agents == 1


def test_faults_of_the_client_void_everything() -> None:
    found = look([record()], client_faults=("the client was late",))
    assert (found.verdict, found.reasons) == ("invalid", ("the client was late",))


def cycle(agent: int, start_s: float, response_s: float, delay_s: float, until_s: float) -> list[RequestRecord]:
    """Back to back: a delay, then a request."""
    found, at = [], start_s
    while at + delay_s < until_s:
        sent = at + delay_s
        end = sent + response_s
        in_flight = end > 40.0
        found.append(
            record(
                agent=agent,
                sent_s=sent,
                delay_us=round(delay_s * 1e6),
                end_at_ns=None if in_flight else round(end * SECOND),
                outcome="stopped" if in_flight else "ok",
            )
        )
        at = end
    return found


def test_littles_law_holds_for_agents_that_are_busy_or_wait_by_plan() -> None:
    records = [item for agent in range(4) for item in cycle(agent, 0.3 * agent, 1.7, 0.6, 40.0)]
    time = agent_time(records, WINDOW, agents=4, longest_delay_s=0.6)
    assert time.explained == pytest.approx(1.0, abs=1e-6)
    assert time.duty_cycle == pytest.approx(1.7 / 2.3, abs=0.02)


def test_an_agent_that_died_breaks_littles_law() -> None:
    alive = [item for agent in range(3) for item in cycle(agent, 0.0, 1.7, 0.6, 40.0)]
    died = cycle(3, 0.0, 1.7, 0.6, 20.0)
    found = look([*alive, *died], agents=4, finite=False, longest_delay_s=0.6, exact_length=False)
    assert found.verdict == "invalid"
    assert "Little's law" in found.reasons[0]
    missing = look(alive, agents=4, finite=False, longest_delay_s=0.6, exact_length=False)
    assert "Little's law: 25.0%" in missing.reasons[0]
    waits = look([*alive, *died], agents=4, finite=False, longest_delay_s=60.0, exact_length=False)
    assert waits.verdict == "met"


def test_parallel_requests_of_one_agent_are_one_agents_time() -> None:
    both = [record(sent_s=10, end_at_ns=30 * SECOND), record(sent_s=20, end_at_ns=40 * SECOND)]
    time = agent_time(both, WINDOW, agents=1, longest_delay_s=0.0)
    assert (time.model_s, time.explained) == (30.0, 1.0)


def test_the_bootstrap_is_seeded_and_says_when_it_is_none() -> None:
    records = [record(agent=agent, speed=20 + agent, sent_s=12 + turn) for agent in range(12) for turn in range(5)]
    seen = observe(records, WINDOW, exact_length=True)
    first, again = (cluster_bootstrap(LEVEL, seen, seed=3) for _ in range(2))
    assert first == again
    speed = first.terms[0]
    assert (speed.term, first.why_not) == ("p25_output_tok_s", None)
    assert speed.low is not None
    assert speed.high is not None
    assert speed.low < 22.75 < speed.high
    few = cluster_bootstrap(
        LEVEL, observe([item for item in records if item.agent < 4], WINDOW, exact_length=True), seed=3
    )
    assert (few.terms, few.share_meeting) == ((), None)
    assert few.why_not is not None
    assert "4 agents" in few.why_not


def term(name: str, limit: float, scope: str = "pooled") -> Term:
    percentile, _, quantity = name.partition("_")
    return Term(quantity=quantity, percentile=float(percentile[1:]), limit=limit, scope=scope)  # type: ignore[arg-type]


def test_every_quantity_has_its_percentile_and_its_margin() -> None:
    """One answer: due at 12 s, first content at 12.5 s, last at 14.5 s, 101 tokens."""
    slo = level(
        term("p50_output_tok_s", 50.0),
        term("p50_end_to_end_tok_s", 50.5),
        term("p50_ttft_s", 0.25),
        term("p50_turn_s", 5.0),
    )
    (result,) = look([record()], slos=(slo,)).slos
    observed = [item.observed for item in result.terms]
    assert observed == [pytest.approx(value) for value in (50.0, 40.4, 0.5, 2.5)]
    margins = [item.margin for item in result.terms]
    assert margins == [pytest.approx(math.log(value)) for value in (1.0, 50.5 / 40.4, 2.0, 0.5)]
    assert result.verdict == "missed"
    assert result.margin == pytest.approx(math.log(2.0))
    assert result.reasons == (
        "P50 end-to-end speed 40.4 tok/s is below 50.5 tok/s",
        "P50 time to first token 0.50 s is above 0.25 s",
    )


def test_no_speed_at_all_is_an_infinite_margin() -> None:
    (result,) = look([failed(), failed()]).slos
    assert (result.verdict, result.margin) == ("missed", math.inf)
    assert [item.infinite for item in result.terms] == [False, True]


def test_end_to_end_speed_in_flight_is_bounded_by_what_was_asked_for() -> None:
    slo = level(term("p50_end_to_end_tok_s", 20.0), term("p50_turn_s", 8.0))
    # 101 tokens were asked for: after 10 s at most 10.1 tok/s can come of it, after 2 s still anything.
    (late,) = look([stopped(30.0, first_s=31.0, events=20)], slos=(slo,)).slos
    assert [item.observed for item in late.terms] == [pytest.approx(10.1), pytest.approx(10.0)]
    (young,) = look([record(), stopped(38.0, first_s=39.0, events=20)], slos=(slo,)).slos
    assert [(item.samples, item.undecided) for item in young.terms] == [(1, 1), (1, 1)]
    assert (young.verdict, young.undecided_matters) == ("met", True)


def test_a_limit_of_each_agent_asks_a_share_of_them() -> None:
    records = [record(agent=agent, ttft_s=0.5 + agent, sent_s=11.0) for agent in range(4)]

    def result(share: float, limit: float) -> tuple[str, float]:
        slo = level(term("p95_ttft_s", limit, "agent"), agent_share=share)
        (found,) = look(records, agents=4, slos=(slo,)).slos
        return found.verdict, round(found.terms[0].observed or 0.0, 6)

    assert result(1.0, 4.0) == ("met", 3.5)
    assert result(1.0, 3.0) == ("missed", 3.5)
    assert result(0.75, 3.0) == ("met", 2.5)
    assert result(0.75, 2.0) == ("missed", 2.5)
    assert result(0.5, 2.0) == ("met", 1.5)
    (found,) = look(records, agents=4, slos=(level(term("p95_ttft_s", 2.0, "agent"), agent_share=1.0),)).slos
    assert found.reasons == ("P95 time to first token that 100% of the agents reach 3.50 s is above 2 s",)
    assert found.goodput_agents == 2


def test_an_agent_that_waits_through_the_whole_window_holds_nothing() -> None:
    slo = level(term("p95_ttft_s", 2.0, "agent"), agent_share=0.6)
    stuck = stopped(5.0, agent=1)  # sent before the window, never answered: no request of the window
    idle = record(agent=2, sent_s=3.0, completion_tokens=101)  # done before the window: its tool runs through it
    (found,) = look([record(agent=0), stuck, idle], agents=3, slos=(slo,)).slos
    assert (found.verdict, found.terms[0].samples, found.terms[0].infinite) == ("missed", 2, True)


@dataclass(frozen=True, kw_only=True)
class Ended:
    agent: int
    play: int
    finished_at_ns: int
    first_turn: int = 0
    started_at_ns: int = 0
    failed_requests: int = 0


def test_jobs_are_judged_when_they_could_have_broken_the_limit() -> None:
    """Window from 10 s to 40 s, limit 12 s: of jobs that began after 28 s only the quick ones would be known."""
    quick = [record(agent=0, play=0, sent_s=12.0), record(agent=0, play=0, turn=1, sent_s=16.0)]
    slow = [record(agent=1, play=0, sent_s=11.0)]
    young = [record(agent=2, play=0, sent_s=30.0), record(agent=3, play=0, sent_s=35.0)]
    midway = [record(agent=4, play=0, turn=3, sent_s=12.0)]
    before = [record(agent=5, play=0, sent_s=2.0), record(agent=5, play=0, turn=1, sent_s=12.0)]
    records = [*quick, *slow, *young, *midway, *before]
    plays = [
        Ended(agent=0, play=0, finished_at_ns=20 * SECOND),
        Ended(agent=2, play=0, finished_at_ns=32 * SECOND),
        Ended(agent=4, play=0, finished_at_ns=14 * SECOND, first_turn=3),
        Ended(agent=5, play=0, finished_at_ns=14 * SECOND, started_at_ns=2 * SECOND),
    ]
    slo = level(term("p40_job_s", 12.0))
    (found,) = look(records, agents=6, slos=(slo,), finished_plays=plays).slos
    assert (found.terms[0].samples, found.terms[0].undecided) == (2, 2)
    assert found.terms[0].observed == pytest.approx(8 + 0.4 * (29 - 8))  # done after 8 s, and running for 29 s
    assert found.verdict == "missed"
    assert found.reasons == ("P40 job time 16.40 s is above 12 s",)


def test_a_job_whose_request_failed_is_not_done() -> None:
    plays = [Ended(agent=0, play=0, finished_at_ns=20 * SECOND)]
    slo = level(term("p50_job_s", 60.0))
    (found,) = look([record(), failed(turn=1, sent_s=16.0)], slos=(slo,), finished_plays=plays).slos
    assert (found.verdict, found.terms[0].infinite) == ("missed", True)


def test_a_job_limit_longer_than_the_window_says_so() -> None:
    (found,) = look([record()], slos=(level(term("p50_job_s", 60.0)),)).slos
    assert (found.verdict, found.margin) == ("invalid", None)
    assert "a window that is longer than the limit" in found.reasons[0]


def test_every_level_of_a_set_is_scored_from_one_trial() -> None:
    slos = [level(term("p25_output_tok_s", speed)) for speed in (20.0, 60.0)]
    found = look([record()] * 4, slos=slos)
    assert [result.verdict for result in found.slos] == ["met", "missed"]
    assert (found.verdict, found.reasons, found.valid) == ("met", (), True)


def test_tokens_that_came_with_the_first_content_were_not_decoded_in_the_span() -> None:
    """10 of 50 events in the first read: 80 of 100 tokens came in the 4 s that follow, 49 gaps later at 10 Hz."""
    gaps = (*[0] * 9, *[100_000] * 40)
    slow = record(
        completion_tokens=100,
        planned_output_tokens=100,
        content_events=50,
        content_gaps_us=gaps,
        last_content_at_ns=round(16.5 * SECOND),
    )
    found = look([slow])
    assert found.speed_tok_s.p50 == pytest.approx(2 * 39 / 3.9, rel=1e-6)
    assert found.metrics.first_burst_tokens.p50 == pytest.approx(20)


def test_metrics_of_jobs_bands_and_caches() -> None:
    records = [
        record(agent=agent, turn=turn, sent_s=11.0 + 4 * turn, prompt_tokens=prompt, cached_tokens=prompt // 2)
        for agent in range(2)
        for turn, prompt in enumerate((4000, 30_000, 60_000, 100_000, 200_000))
    ]
    plays = [Ended(agent=0, play=0, finished_at_ns=31 * SECOND, started_at_ns=11 * SECOND)]
    found = look(records, agents=2, finished_plays=plays, session_turns={"s": 5}).metrics
    assert [(band.low, band.high, band.requests) for band in found.by_context] == [
        (0, 8192, 2),
        (8193, 32_768, 2),
        (32_769, 65_536, 2),
        (65_537, 131_072, 2),
        (131_073, None, 2),
    ]
    assert [band.requests for band in found.by_turn] == [10]
    assert found.jobs.finished == 1
    assert found.jobs.per_h == pytest.approx(2 * 3600 / 30)  # ten of five turns each in 30 s
    assert found.jobs.per_h_per_agent == pytest.approx(3600 / 30)
    assert found.jobs.wait_share.p50 == pytest.approx(5 * 2.5 / 20)
    assert [part.prompt_tokens for part in found.cache_over_time] == [68_000, 320_000, 400_000, 0]
    assert [part.cached_share for part in found.cache_over_time] == [0.5, 0.5, 0.5, None]


def test_time_between_tokens_counts_each_of_several_tokens_in_an_event() -> None:
    answer = record(completion_tokens=20, content_events=10, content_gaps_us=(200_000,) * 9)
    found = look([answer], exact_length=False).metrics
    assert found.itl_s.p50 == pytest.approx(0.1, rel=0.01)
    assert found.itl_s.mean == pytest.approx(0.1)
    assert found.longest_gap_s.p50 == pytest.approx(0.2)


requests = st.builds(
    record,
    agent=st.integers(0, 4),
    sent_s=st.floats(10, 39),
    ttft_s=st.floats(0.05, 4),
    speed=st.floats(5, 100),
    completion_tokens=st.integers(2, 200),
)


@given(records=st.lists(requests, min_size=1, max_size=30), index=st.integers(0, 29), data=st.data())
def test_losing_what_is_known_of_a_request_never_helps(
    records: list[RequestRecord], index: int, data: st.DataObject
) -> None:
    """A request that fails instead of succeeding never lets a level pass that did not."""
    index %= len(records)
    worse = [*records]
    worse[index] = failed(agent=records[index].agent, sent_s=records[index].sent_at_ns / SECOND)
    before, after = look(records, exact_length=False), look(worse, exact_length=False)
    assert not (before.verdict != "met" and after.verdict == "met")
    assert after.goodput_agents <= before.goodput_agents
    margins = [found.slos[0].margin for found in (before, after)]
    assert None in margins or margins[1] >= margins[0]  # type: ignore[operator]


LOSSES: dict[str, dict[str, object]] = {
    "its content": {"first_content_at_ns": None, "last_content_at_ns": None, "content_events": 0},
    "its end": {"outcome": "cut"},
    "its time": {"outcome": "timeout", "first_content_at_ns": None, "last_content_at_ns": None},
}


@given(
    records=st.lists(requests, min_size=1, max_size=20),
    index=st.integers(0, 19),
    loss=st.sampled_from(sorted(LOSSES)),
    scope=st.sampled_from(["pooled", "agent"]),
)
def test_an_answer_of_which_less_came_never_helps(
    records: list[RequestRecord], index: int, loss: str, scope: str
) -> None:
    """For every quantity and scope: no loss lets a level pass that did not."""
    index %= len(records)
    worse = [*records]
    worse[index] = replace(worse[index], **LOSSES[loss])  # type: ignore[arg-type]
    slo = level(
        term("p25_output_tok_s", 20.0, scope),
        term("p25_end_to_end_tok_s", 15.0, scope),
        term("p95_ttft_s", 2.0, scope),
        term("p95_turn_s", 15.0, scope),
        agent_share=0.8,
    )
    before, after = (look(found, slos=(slo,), exact_length=False) for found in (records, worse))
    assert not (before.verdict != "met" and after.verdict == "met")
    assert after.goodput_agents <= before.goodput_agents

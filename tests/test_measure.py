"""From records to numbers and a verdict, on hand-made records whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.interval import cluster_bootstrap
from replay.measure import Measure, judge, measure, percentile
from replay.record import RequestRecord
from replay.slo import Limits
from replay.window import Window, agent_time, in_window

MS = 1_000_000
SECOND = 1000 * MS
WINDOW = Window(start_ns=10 * SECOND, end_ns=40 * SECOND)
LIMITS = Limits(p25_output_tok_s=20.0, p95_ttft_s=2.0)


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
        "limits": LIMITS,
        "exact_length": True,
        "longest_delay_s": None,
        "finite": True,
        **changes,
    }
    return measure(records, WINDOW, **values)


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
    assert found.verdict == "invalid"  # nothing has an output speed


def test_in_flight_past_the_limit_is_a_violation_before_it_is_undecided() -> None:
    good = [record() for _ in range(10)]
    past = look([*good, stopped(37.0)])
    assert (past.undecided, past.ttft_s.count, past.verdict) == (0, 11, "met")
    assert [sample.ttft_s for sample in judge([stopped(37.0)], WINDOW, LIMITS)] == [pytest.approx(3.0)]
    assert judge([stopped(37.0)], WINDOW, LIMITS)[0].ttft_censored
    before = look([*good, stopped(39.0)])
    assert (before.undecided, before.ttft_s.count, before.requests) == (1, 10, 11)
    assert (before.verdict, before.verdict_if_undecided_failed) == ("met", "missed")


def test_an_answer_cut_by_the_end_counts_with_its_speed_so_far() -> None:
    whole = record(completion_tokens=202, content_events=101)  # two tokens an event
    cut = stopped(30.0, first_s=30.0, events=51)
    speeds = [sample.speed_tok_s for sample in judge([whole, cut], WINDOW, LIMITS)]
    assert speeds[1] == pytest.approx((51 * 2 - 1) / 10)
    # One event and then silence for so long that the limit is out of reach; or too young to say.
    assert judge([stopped(30.0, first_s=38.0, events=1)], WINDOW, LIMITS)[0].speed_tok_s == pytest.approx(0.5)
    assert judge([stopped(30.0, first_s=39.99, events=1)], WINDOW, LIMITS)[0].speed_tok_s is None


@pytest.mark.parametrize("span_ms", [0, 0.1, 9], ids="{} ms".format)
def test_an_answer_held_back_and_sent_at_once_is_not_fast(span_ms: float) -> None:
    held = record(ttft_s=1.9, last_content_at_ns=round(13.9 * SECOND + span_ms * MS))
    found = look([held] * 4)
    assert found.held_back == 4
    assert found.speed_tok_s.p50 == pytest.approx(101 / (1.9 + span_ms / 1000))
    assert "all at once" in " ".join(found.notes)
    steady = look([record(ttft_s=1.9, last_content_at_ns=round(13.9 * SECOND + 11 * MS))])
    assert (steady.held_back, steady.speed_tok_s.p50) == (0, pytest.approx(100 / 0.011))


def test_short_answers_have_no_speed_and_missing_counts_are_bounded_from_below() -> None:
    short = look([record(completion_tokens=1, planned_output_tokens=1), record()])
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
        [record()], Window(start_ns=5, end_ns=5), agents=1, limits=LIMITS, exact_length=True, longest_delay_s=1.0
    ).reasons == ("the phase ended before settling did: nothing was measured",)


def test_without_limits_only_a_run_in_which_all_fails_is_no_run() -> None:
    assert look([record(), failed()], limits=None).verdict == "met"
    nothing = look([failed(), failed()], limits=None)
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
    samples = judge(
        [record(agent=agent, speed=20 + agent, sent_s=12 + turn) for agent in range(12) for turn in range(5)],
        WINDOW,
        LIMITS,
    )
    first, again = (cluster_bootstrap(samples, LIMITS, seed=3) for _ in range(2))
    assert first == again
    assert first.p25_speed_low is not None
    assert first.p25_speed_high is not None
    assert first.p25_speed_low < 22.75 < first.p25_speed_high
    few = cluster_bootstrap([sample for sample in samples if sample.agent < 4], LIMITS, seed=3)
    assert few.p25_speed_low is None
    assert few.why_not is not None
    assert "4 agents" in few.why_not


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

"""Ways to a better score that are none: waits outside the percentiles, tokens without text, bad trials made invalid."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from replay.failure import failed_requests
from replay.fit import Point, fieller
from replay.job import take_jobs
from replay.measure import Measure
from replay.record import RequestRecord
from replay.sample import Pace, find_pace, take_samples
from replay.search import Conclusion
from replay.window import Window
from tests.test_measure import SECOND, WINDOW, failed, record, stopped
from tests.test_search import rules, searched
from tests.virtual_trial import SETTLE_S, Asked, Reply, VirtualTrial, level

WAITING: dict[str, Any] = {
    "outcome": "stopped",
    "first_byte_at_ns": None,
    "first_content_at_ns": None,
    "last_content_at_ns": None,
    "end_at_ns": None,
    "completion_tokens": None,
    "content_events": 0,
    "content_gaps_us": (),
    "content_bytes": 0,
}


def judged(records: list[RequestRecord], *, agents: int = 12, measure_s: float = 60.0) -> Measure:
    trial = VirtualTrial(agents=agents, measure_s=measure_s)
    trial.records = records
    return trial.judge(level(speed=20.0, ttft=10.0))


def test_a_stall_that_began_before_the_phase_is_one() -> None:
    """From 5 s before settling ends to 50 s after: nobody can send anything that would be late."""
    stall_s, over_s = SETTLE_S - 5, SETTLE_S + 50

    def behaviour(asked: Asked, reply: Reply) -> Reply:
        if asked.at_s >= over_s:
            return reply
        left_s = over_s - max(asked.at_s, stall_s)
        return replace(reply, content_s=tuple(at if at < stall_s else at + left_s for at in reply.content_s))

    found = judged(VirtualTrial(behaviour=behaviour, measure_s=300.0).run(), measure_s=300.0)
    assert found.verdict == "missed"
    assert found.reasons == ("the server stalled: it sent nothing to anyone for up to 50.0 s",)
    assert found.metrics.longest_silence_s == pytest.approx(50.0, abs=0.1)


@pytest.mark.parametrize(("served", "verdict"), [(12, "met"), (4, "missed")])
def test_agents_that_wait_while_a_few_are_served_were_not_held(served: int, verdict: str) -> None:
    """The others' one request each was sent before the window: no percentile over its requests sees them."""
    records: list[RequestRecord] = []
    stuck: set[int] = set()
    for item in VirtualTrial(measure_s=60.0).run():
        if item.agent in stuck:
            continue
        if item.agent >= served:
            stuck.add(item.agent)
            item = replace(item, **WAITING)
        records.append(item)
    found = judged(records)
    assert found.verdict == verdict
    assert found.ttft_s.p95 is not None
    assert found.ttft_s.p95 < 10
    if verdict == "missed":
        assert all(item.sent_at_ns < SETTLE_S * SECOND for item in records if item.agent in stuck)
        assert found.reasons == ("agents were starved: for 67% of their time they waited and were sent nothing",)
        assert found.slos[0].margin == pytest.approx(math.log(8 / 12 / 0.1))


def test_a_level_that_misses_one_limit_missed_it_though_another_says_nothing() -> None:
    """All wait for their first token beyond the limit: nobody has a speed."""
    trial = VirtualTrial(agents=3, measure_s=60.0)
    trial.records = [
        replace(item, **WAITING, intended_at_ns=at_ns, sent_at_ns=at_ns, agent=agent, delay_us=0)
        for agent, item in enumerate(VirtualTrial(agents=3, measure_s=60.0).run()[:3])
        for at_ns in (round(SETTLE_S * SECOND),)
    ]
    found = trial.judge(level(speed=20.0, ttft=10.0))
    assert (found.verdict, found.slos[0].terms[0].observed) == ("missed", None)
    assert found.slos[0].terms[1].margin == pytest.approx(math.log(6))


def test_a_miss_in_spite_of_less_work_is_a_miss_and_no_reason_to_try_again() -> None:
    def half(asked: Asked, reply: Reply) -> Reply:
        half = max(1, asked.tokens // 2)
        return replace(reply, content_s=reply.content_s[:half], completion_tokens=half)

    short = VirtualTrial(behaviour=half, measure_s=60.0)
    assert short.judge(level(speed=20.0, ttft=10.0)).verdict == "invalid"
    found = short.judge(level(speed=60.0, ttft=10.0))
    assert (found.verdict, found.valid) == ("missed", False)
    assert any("length not honoured" in reason for reason in found.reasons)


def test_a_server_that_fails_or_hangs_has_missed_whatever_else_is_wrong() -> None:
    """Of invalid trials new ones are made; a server must not choose which."""

    def half_or_nothing(asked: Asked, reply: Reply) -> Reply:
        if asked.number % 20 == 0:
            return replace(reply, outcome="http_error", status=503, completion_tokens=None, content_s=())
        half = max(1, asked.tokens // 2)
        return replace(reply, content_s=reply.content_s[:half], completion_tokens=half)

    found = VirtualTrial(behaviour=half_or_nothing, measure_s=60.0).judge(level(speed=20.0, ttft=10.0))
    assert found.verdict == "missed"
    assert any("503" in reason for reason in found.reasons)

    first = {item.agent: item for item in reversed(VirtualTrial(measure_s=60.0).run())}
    hung = [replace(item, **WAITING) for item in first.values()]
    found = judged(hung)
    assert (found.requests, found.verdict) == (0, "missed")
    assert found.slos[0].margin == pytest.approx(math.log(20))
    assert found.reasons[0] == "no request was sent in the steady window"


def test_tokens_without_a_text_came_after_the_last_content_and_make_no_speed() -> None:
    """A forced length decodes past the end of turn: 20 tokens with text in 0.5 s, 180 without in 4.5 s more."""
    answer = record(
        planned_output_tokens=200,
        completion_tokens=200,
        events=203,
        content_events=20,
        content_bytes=60,
        content_gaps_us=(25_000,) * 19,
        last_content_at_ns=12_975 * 1_000_000,
        end_at_ns=17_500 * 1_000_000,
    )
    (sample,) = take_samples([answer], WINDOW, Pace(tokens_per_event=1.0, gap_us=25_000.0), exact_length=True)
    assert sample.speed_tok_s == pytest.approx(40.0)


def test_answers_alike_in_length_say_that_holding_back_was_not_tested() -> None:
    def same_length(asked: Asked, reply: Reply) -> Reply:
        return replace(reply, content_s=reply.content_s[:16], completion_tokens=min(asked.tokens, 16))

    alike = VirtualTrial(behaviour=same_length, measure_s=60.0).judge(exact_length=False)
    assert "whether the server holds answers back was not tested: they are alike in length" in alike.notes
    assert not any("was not tested" in note for note in VirtualTrial(measure_s=60.0).judge().notes)


def test_pieces_of_tokens_in_flight_are_no_more_tokens() -> None:
    pieces = record(completion_tokens=50, planned_output_tokens=50, content_events=150)
    pace = find_pace([pieces], exact_length=True)
    assert pace.tokens_per_event == pytest.approx(1 / 3)
    (sample,) = take_samples([stopped(30.0, first_s=30.0, events=91)], WINDOW, pace, exact_length=True)
    assert sample.speed_tok_s == pytest.approx((91 / 3 - 1) / 10)


def test_a_job_with_an_empty_answer_is_not_done() -> None:
    empty = record(turn=1, sent_s=16.0, first_content_at_ns=None, last_content_at_ns=None)
    for records in ([record(), empty], [record(), failed(turn=1, sent_s=16.0)]):
        assert failed_requests(records)
        (job,) = take_jobs(records, (), Window(start_ns=0, end_ns=60 * SECOND))
        assert job.failed


def test_an_unknown_margin_far_above_the_root_does_not_raise_it() -> None:
    known = [Point(trial, round(1000 * math.exp(0.03 * trial)), 0.09 * trial) for trial in range(9)]
    unknown = [point if point.trial < 7 else point._replace(margin=math.inf) for point in known]
    whole, part = fieller(known), fieller(unknown)
    assert whole is not None
    assert part is not None
    assert whole.root == pytest.approx(1000, rel=0.001)
    assert part.root is not None
    assert part.root <= 1000
    assert part.infinite == (7, 8)


def test_a_search_that_ended_at_its_maximum_gives_no_interval_that_excludes_it() -> None:
    most: Conclusion
    (most,), _, _ = searched((104.0,), 0.005, rules())
    assert (most.outcome, most.agents, most.interval) == ("maximum", 100.0, None)
    assert most.certified is not None

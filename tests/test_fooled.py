"""Servers that misbehave, and a client that is starved: each ends in the right verdict, none in a better score.

Most run on a virtual clock (*simulated* answers, the real judgement); a few on the scripted server over a socket.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from replay.drive import Drive, drive
from replay.endpoint import Endpoint
from replay.health import HealthWindow
from replay.loop import run
from replay.measure import Measure, measure
from replay.void import LateWindow, late_windows
from replay.window import Window
from tests.fake_server import serving
from tests.test_drive import WHOLE, HandPlan, HandScript, chain
from tests.virtual_trial import SETTLE_S, Asked, Behaviour, Reply, VirtualTrial, late, level

TOLERANCE = 0.01  # of a log margin: another behaviour shifts which requests fall into the window


@functools.cache
def played(behaviour: Behaviour, measure_s: float = 300.0) -> VirtualTrial:
    trial = VirtualTrial(behaviour=behaviour, measure_s=measure_s)
    trial.run()
    return trial


@functools.cache
def honest(measure_s: float = 300.0) -> Measure:
    return VirtualTrial(measure_s=measure_s).judge()


def fooled(behaviour: Behaviour, measure_s: float = 300.0, **changes: Any) -> Measure:
    """The same trial with another server; asserts that nothing about it scores better."""
    found = played(behaviour, measure_s).judge(**changes)
    true = honest(measure_s)
    assert true.verdict == "met"
    before, after = true.slos[0], found.slos[0]
    assert before.margin is not None
    assert after.verdict != "met" or (after.margin is not None and after.margin >= before.margin - TOLERANCE)
    assert after.verdict != "missed" or (after.margin is not None and after.margin > 0)
    assert after.goodput_agents <= before.goodput_agents
    return found


def in_one_read(_: Asked, reply: Reply) -> Reply:
    return replace(reply, content_s=(reply.content_s[-1],) * len(reply.content_s))


def held_then_streamed(_: Asked, reply: Reply) -> Reply:
    """All of the answer is held back and leaves as 2,000 tokens a second."""
    end_s = reply.content_s[-1]
    return replace(reply, content_s=tuple(end_s + 0.0005 * index for index in range(len(reply.content_s))))


def half_held(_: Asked, reply: Reply) -> Reply:
    middle_s = reply.content_s[len(reply.content_s) // 2]
    return replace(reply, content_s=tuple(max(at, middle_s + 0.0005 * i) for i, at in enumerate(reply.content_s)))


def held_for_two_seconds(_: Asked, reply: Reply) -> Reply:
    """However long the answer is, so its first token does not come the later the longer it is."""
    free_s = reply.content_s[0] + 2
    return replace(reply, content_s=tuple(max(at, free_s + 0.0005 * i) for i, at in enumerate(reply.content_s)))


def in_bursts(_: Asked, reply: Reply) -> Reply:
    """Forty tokens at a time, each in a read of its own."""
    times, last = reply.content_s, len(reply.content_s) - 1
    return replace(
        reply, content_s=tuple(times[min(last, i - i % 40 + 39)] + 0.0002 * (i % 40) for i in range(len(times)))
    )


@pytest.mark.parametrize("behaviour", [in_one_read, held_then_streamed, half_held, in_bursts, held_for_two_seconds])
def test_buffering_and_bursting_does_not_make_a_server_fast(behaviour: Behaviour) -> None:
    found = fooled(behaviour)
    true = honest()
    assert found.speed_tok_s.p25 is not None
    assert true.speed_tok_s.p25 is not None
    assert found.speed_tok_s.p25 <= true.speed_tok_s.p25 * 1.01


@pytest.mark.parametrize(("behaviour", "share"), [(held_then_streamed, 0.98), (half_held, 0.5)])
def test_a_server_that_holds_answers_back_is_named(behaviour: Behaviour, share: float) -> None:
    found = fooled(behaviour)
    assert found.buffering.held_share == pytest.approx(share, abs=0.05)
    assert any("holds answers back" in note for note in found.notes)
    # Held against a limit that its true speed misses, it misses: it looked 50 times as fast.
    slow = played(behaviour).judge(level(speed=45.0, ttft=60.0))
    assert slow.verdict == "missed"
    assert not honest().buffering.found


def test_an_answer_in_one_read_says_so() -> None:
    found = fooled(in_one_read)
    assert (found.verdict, found.held_back) == ("missed", found.outcomes["ok"])
    assert any("all at once" in note for note in found.notes)


def claims_twice(asked: Asked, reply: Reply) -> Reply:
    return replace(reply, content_s=reply.content_s[: max(1, asked.tokens // 2)])


def claims_four_times(asked: Asked, reply: Reply) -> Reply:
    return replace(reply, content_s=reply.content_s[: max(1, asked.tokens // 4)])


def counts_three_times(asked: Asked, reply: Reply) -> Reply:
    return replace(reply, completion_tokens=3 * asked.tokens)


def more_than_asked(asked: Asked, reply: Reply) -> Reply:
    return replace(reply, completion_tokens=round(1.2 * asked.tokens) + 3)


def counts_too_many_cached(asked: Asked, reply: Reply) -> Reply:
    return replace(reply, prompt_tokens=asked.prompt_tokens // 2)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (claims_twice, "tokens have at least 2.5 on average, so the count is not true"),
        (claims_four_times, "impossible count"),
        (counts_three_times, "impossible count"),
        (more_than_asked, "more than asked"),
        (counts_too_many_cached, "prompt unlike planned"),
    ],
)
def test_a_count_that_cannot_be_true_voids_the_trial(behaviour: Behaviour, reason: str) -> None:
    found = fooled(behaviour)
    assert found.verdict == "invalid"
    assert any(reason in text for text in found.reasons)


def test_a_server_that_counts_nothing_gains_nothing() -> None:
    found = fooled(lambda _, reply: replace(reply, completion_tokens=None))
    assert found.verdict == "met"
    assert found.speed_tok_s == honest().speed_tok_s
    assert found.counted_by_events == found.outcomes["ok"]


def in_single_characters(_: Asked, reply: Reply) -> Reply:
    """A quarter of the tokens, each cut into four events, and no count: as many events as tokens were asked for."""
    times = reply.content_s[::4]
    events = [at + 0.002 * part for at in times for part in range(4)][: len(reply.content_s)]
    return replace(reply, content_s=tuple(events), completion_tokens=None, bytes_per_event=1)


def test_tokens_cut_into_pieces_are_no_more_tokens() -> None:
    found = fooled(in_single_characters)
    assert found.verdict == "invalid"
    assert any("sends events of 1.0 bytes each" in reason for reason in found.reasons)


def test_a_slow_answer_does_not_lose_its_speed_by_counting_one_token() -> None:
    """Under free lengths nothing else would notice."""

    def shy(asked: Asked, reply: Reply) -> Reply:
        slow = asked.number % 3 == 0
        times = tuple(asked.at_s + (4 if slow else 1) * (at - asked.at_s) for at in reply.content_s)
        return replace(reply, content_s=times, completion_tokens=1 if slow else asked.tokens)

    found = played(shy).judge(exact_length=False)
    assert found.verdict == "missed"
    assert found.without_speed < 10


def half_as_long(asked: Asked, reply: Reply) -> Reply:
    length = max(1, asked.tokens // 2)
    return replace(reply, content_s=reply.content_s[:length], completion_tokens=length)


def test_stopping_early_voids_a_forced_length() -> None:
    found = fooled(half_as_long)
    assert found.verdict == "invalid"
    assert "fewer output tokens than the plan forces" in found.reasons[0]
    assert "length not honoured" in found.reasons[1]
    quiet = fooled(lambda asked, reply: replace(half_as_long(asked, reply), completion_tokens=None))
    assert quiet.verdict == "invalid"


def test_one_token_again_and_again_voids_trained_weights_and_labels_made_up_ones() -> None:
    def loops(_: Asked, reply: Reply) -> Reply:
        return replace(reply, distinct_share=1 / len(reply.content_s))

    trained = fooled(loops, weights="trained")
    assert trained.verdict == "invalid"
    assert "repetition" in trained.reasons[0]
    for weights in (None, "made-up"):
        found = fooled(loops, weights=weights)
        assert found.verdict == "met"
        assert any("repetition" in note for note in found.notes)
    assert not any("repetition" in note for note in honest().notes)


def every(number: int, what: Callable[[Asked, Reply], Reply]) -> Behaviour:
    return lambda asked, reply: reply if asked.number % number else what(asked, reply)


def test_one_connection_in_fifty_dropped_is_a_miss_though_percentiles_allow_five_in_a_hundred() -> None:
    def drops(_: Asked, reply: Reply) -> Reply:
        return replace(reply, content_s=reply.content_s[:3], completion_tokens=None, outcome="cut")

    found = fooled(every(50, drops))
    assert found.verdict == "missed"
    assert found.reasons[-1].endswith("requests failed, the first: cut 200")
    (count,) = found.failures
    assert (count.failure, count.effect, count.voids) == ("cut", "missed", False)
    assert count.requests / count.of == pytest.approx(0.02, abs=0.003)
    # One in 200 is within what may fail, and it costs what it costs.
    assert fooled(every(200, drops)).verdict == "met"


@pytest.mark.parametrize(
    ("status", "error", "verdict", "failure"),
    [
        (500, "boom", "missed", "server_error"),
        (503, "no capacity left", "missed", "overloaded"),
        (429, "slow down", "missed", "overloaded"),
        (422, "unknown field ignore_eos", "invalid", "rejected"),
        (400, "This model's maximum context length is 4096 tokens", "invalid", "context_overflow"),
        (
            400,
            "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
            "invalid",
            "context_overflow",
        ),
        (400, "the request exceeds the available context size (4096 tokens)", "invalid", "context_overflow"),
        (500, "Prompt length (5056) exceeds maximum sequence length (2048)", "invalid", "context_overflow"),
        (
            400,
            "The sum of prompt length and max_tokens should not exceed max_num_tokens",
            "invalid",
            "context_overflow",
        ),
        (413, "payload too large", "invalid", "context_overflow"),
    ],
)
def test_every_error_status_has_its_class(status: int, error: str, verdict: str, failure: str) -> None:
    def fails(asked: Asked, reply: Reply) -> Reply:
        return replace(reply, content_s=(), outcome="http_error", status=status, error=error, completion_tokens=None)

    found = fooled(every(20, fails), measure_s=60.0)
    assert found.verdict == verdict
    assert [count.failure for count in found.failures] == [failure]
    assert any(error in reason for reason in found.reasons)


def stalls(start_s: float, end_s: float) -> Behaviour:
    """Everything that would come after the stall's start comes later by what is left of it."""

    def behaviour(asked: Asked, reply: Reply) -> Reply:
        if asked.at_s >= end_s:
            return reply
        left_s = end_s - max(asked.at_s, start_s)
        return replace(reply, content_s=tuple(at if at < start_s else at + left_s for at in reply.content_s))

    return behaviour


@pytest.mark.parametrize(("measure_s", "at_s"), [(60.0, 20.0), (300.0, 140.0)])
def test_a_stall_of_30_s_is_a_miss_however_few_requests_it_is(measure_s: float, at_s: float) -> None:
    found = fooled(stalls(SETTLE_S + at_s, SETTLE_S + at_s + 30), measure_s)
    assert found.verdict == "missed"
    assert any("the server stalled" in reason for reason in found.reasons)
    assert found.metrics.longest_silence_s == pytest.approx(30, abs=1)
    assert found.metrics.longest_gap_s.p99 is not None
    assert found.metrics.longest_gap_s.p99 > 5
    assert honest(measure_s).metrics.longest_silence_s < 2


def test_a_stall_at_the_start_is_no_warm_up() -> None:
    found = fooled(stalls(SETTLE_S + 20, SETTLE_S + 50))
    assert found.steady.warm_up_s > 0
    assert found.verdict == "missed"
    assert found.reasons == ("the server stalled: it sent nothing to anyone for up to 30.0 s",)


def cold_until(end_s: float) -> Behaviour:
    def behaviour(asked: Asked, reply: Reply) -> Reply:
        if asked.at_s >= end_s:
            return reply
        return replace(reply, content_s=tuple(asked.at_s + 4 * (at - asked.at_s) for at in reply.content_s))

    return behaviour


def test_a_minute_of_warm_up_is_found_and_left_out() -> None:
    found = fooled(cold_until(SETTLE_S + 60))
    assert found.verdict == "met"
    assert 60 <= found.steady.warm_up_s <= 100
    assert found.window_start_ns == round((SETTLE_S + found.steady.warm_up_s) * 1e9)
    before, after = honest().slos[0].margin, found.slos[0].margin
    assert before is not None
    assert after == pytest.approx(before, abs=0.05)
    assert any("warm-up" in note for note in found.notes)


@pytest.mark.parametrize(("measure_s", "verdict"), [(100.0, "invalid"), (60.0, "missed")])
def test_a_window_that_is_mostly_warm_up_gives_no_score(measure_s: float, verdict: str) -> None:
    found = fooled(cold_until(SETTLE_S + 60), measure_s)
    assert found.verdict == verdict
    assert ("not steady" in found.reasons[0]) is (verdict == "invalid")


def test_a_server_that_turns_everybody_away_at_first_has_failed_not_warmed_up() -> None:
    def closed(asked: Asked, reply: Reply) -> Reply:
        if asked.at_s >= SETTLE_S + 60:
            return reply
        return replace(reply, content_s=(), outcome="http_error", status=503, completion_tokens=None, error="loading")

    found = fooled(closed)
    assert found.verdict == "missed"
    assert found.outcomes["http_error"] > 50


def test_a_server_that_gets_slower_all_the_time_is_not_steady() -> None:
    def slower(asked: Asked, reply: Reply) -> Reply:
        by = 1 + max(0.0, asked.at_s - SETTLE_S) / 300
        return replace(reply, content_s=tuple(asked.at_s + by * (at - asked.at_s) for at in reply.content_s))

    found = fooled(slower)
    assert found.verdict in ("invalid", "missed")
    assert any("not steady" in reason for reason in found.reasons)
    # Against a limit that it misses as it is, it has missed: it was getting worse, not better.
    assert played(slower).judge(level(speed=45.0)).verdict == "missed"


def test_a_client_that_is_starved_of_cpu_says_so_and_blames_nobody() -> None:
    trial = VirtualTrial(measure_s=60.0)
    records, window = late(trial, SETTLE_S + 10, SETTLE_S + 40, 3.0)
    trial.records = records
    found = trial.judge(late=(window,))
    assert found.verdict == "invalid"
    assert "the client was the bottleneck" in found.reasons[0]
    assert "loop lag 3000 ms" in found.reasons[0]


def test_a_few_late_seconds_are_void_and_not_averaged_in() -> None:
    trial = VirtualTrial()
    records, window = late(trial, SETTLE_S + 100, SETTLE_S + 110, 3.0)
    trial.records = records
    found = trial.judge(late=(window,))
    assert 0 < found.void_requests < 0.2 * found.requests
    assert found.verdict == "met"
    before, after = honest().slos[0].margin, found.slos[0].margin
    assert before is not None
    assert after == pytest.approx(before, abs=0.02)
    assert any("void" in note for note in found.notes)
    unsaid = trial.judge()
    assert unsaid.ttft_s.p99 is not None
    assert found.ttft_s.p99 is not None
    assert unsaid.ttft_s.p99 > found.ttft_s.p99


def test_the_servers_own_failures_are_not_void_because_the_client_was_late() -> None:
    def fails(_: Asked, reply: Reply) -> Reply:
        return replace(reply, content_s=(), outcome="http_error", status=500, completion_tokens=None)

    trial = VirtualTrial(behaviour=every(20, fails))
    everything = (LateWindow(start_ns=0, end_ns=trial.phase.end_ns, why="all of it"),)
    found = trial.judge(late=everything)
    assert found.outcomes == {"http_error": found.requests}
    assert found.verdict == "invalid"


def test_a_better_looking_trial_is_never_the_price_of_a_lie() -> None:
    """All at once: no combination of the lies above holds a limit that the honest server misses."""
    strict = level(speed=45.0, ttft=30.0)
    assert VirtualTrial().judge(strict).verdict == "missed"
    lies: list[Behaviour] = [in_one_read, held_then_streamed, half_held, in_bursts, held_for_two_seconds, half_as_long]
    lies += [claims_twice, claims_four_times, counts_three_times, more_than_asked]
    for lie in lies:
        found = played(lie).judge(strict)
        margin = found.slos[0].margin
        assert found.verdict == "invalid" or (margin is not None and 0 < margin < math.inf), lie


# -- over a socket

SPEEDY = level(speed=100.0, ttft=2.0)


def driven(prepare_s: float = 0.0, once: bool = True, **knobs: Any) -> tuple[Measure, Drive]:
    """Four agents with four turns of 40 tokens at 200 tokens a second, from a real server over a real socket."""
    turns = chain(4, tokens=40)
    plan = HandPlan({f"s{agent}": HandScript(turns, prepare_s=prepare_s) for agent in range(4)}, once=once)
    protocol = WHOLE if once else replace(WHOLE, min_measure_s=1.0)
    with serving(**{"ttft_ms": 100.0, "itl_ms": 5.0, **knobs}) as server:
        endpoint = Endpoint(server.url, server.knobs.model)
        result = run(drive(plan, endpoint, agents=4, protocol=protocol))
    phase = Window(start_ns=result.settle_end_ns if not once else 0, end_ns=result.phase_end_ns)
    found = measure(
        result.records,
        phase,
        agents=4,
        slos=(SPEEDY,),
        exact_length=True,
        longest_delay_s=None,
        finished_plays=result.finished_plays,
        late=late_windows(result.health.windows, (SPEEDY,)) if not once else (),
        finite=True,
    )
    return found, result


def test_the_scripted_server_is_met_when_it_is_honest() -> None:
    found, result = driven()
    assert found.verdict == "met"
    assert found.invalid_reasons == ()
    assert [count.failure for count in found.failures] == ["repetition"]  # it says "token" and nothing else
    assert found.speed_tok_s.p50 == pytest.approx(200, rel=0.3)
    assert all(record.content_bytes == 40 * len(" token") for record in result.records)


@pytest.mark.parametrize(
    ("knobs", "verdict", "reason"),
    [
        ({"hold_back": True, "itl_ms": 10.0}, "missed", "P25 output speed"),
        ({"natural_tokens": 5, "obey_ignore_eos": False, "claims_tokens": 40}, "invalid", "impossible count"),
        ({"natural_tokens": 20, "obey_ignore_eos": False}, "invalid", "fewer output tokens"),
        ({"claims_tokens": 80}, "invalid", "more than asked"),
        ({"fail_every": 5, "cut_after": 3}, "missed", "3 of 16 requests failed, the first: cut 200"),
    ],
    ids=["held back", "claims more than it sent", "stops early", "counts too many", "drops one in five"],
)
def test_the_scripted_server_is_found_out(knobs: dict[str, Any], verdict: str, reason: str) -> None:
    found, _ = driven(**knobs)
    assert found.verdict == verdict
    assert any(reason in text for text in found.reasons), found.reasons


def test_a_client_whose_loop_is_blocked_voids_its_own_trial() -> None:
    found, result = driven(prepare_s=0.1, once=False)
    assert result.health.late
    assert found.verdict == "invalid"
    assert "the client was the bottleneck" in found.reasons[0]


def test_how_late_a_client_may_be_follows_from_the_first_token_limit() -> None:
    def window(start_s: int, loop_ms: float | None, dispatch_ms: float | None, late: bool) -> HealthWindow:
        return HealthWindow(
            start_ns=start_s * 10**9,
            end_ns=(start_s + 5) * 10**9,
            loop_lag_p99_ms=loop_ms,
            dispatch_lag_p99_ms=dispatch_ms,
            cpu_seconds=1.0,
            late=late,
        )

    windows = [window(0, 30, 1, True), window(5, 1, 250, True), window(10, None, None, False), window(15, 90, 2, True)]
    found = late_windows(windows, [level(ttft=10.0), level(ttft=4.0)])
    assert [(part.start_ns, part.why) for part in found] == [
        (5 * 10**9, "dispatch lag 250 ms (99th percentile), 80 ms allowed"),
        (15 * 10**9, "loop lag 90 ms (99th percentile), 80 ms allowed"),
    ]
    assert len(late_windows(windows, [])) == 3

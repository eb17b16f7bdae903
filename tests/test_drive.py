"""The driver against a scripted server: order, delays, faults, phases, and records that agree with the server's log."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from replay.connection import Connection
from replay.drive import Drive, drive
from replay.endpoint import Endpoint, EndpointError
from replay.health import HealthWatch
from replay.loop import run
from replay.plan import Play, PreparedRequest, Turn
from replay.protocol import Progress, Protocol
from replay.record import RequestRecord
from replay.transport import CollectingTransport
from replay.wire import Target
from tests.fake_server import FakeServer, serving

TOLERANCE_NS = 250e6  # between the two sides' stamps of one moment, on a busy machine
SHORT = Protocol(
    name="short",
    ramp_per_s=1000.0,
    settle_s=0.0,
    min_measure_s=0.5,
    min_trajectories=0,
    min_trajectories_per_agent=0,
    max_phase_s=20.0,
    start_offset_turns=0,
    request_timeout_s=10.0,
)
WHOLE = replace(SHORT, min_measure_s=20.0)  # until the plays are done


def turn(index: int, *wait_for: int, delay_ms: float = 0, tokens: int = 5) -> Turn:
    return Turn(
        request_index=index,
        wait_for=wait_for,
        delay_us=int(delay_ms * 1000),
        delay_kind="tool",
        recorded_prompt_tokens=100 + index,
        planned_prompt_tokens=None,
        output_tokens=tokens,
    )


def chain(length: int, **options: float) -> list[Turn]:
    return [turn(index, *([index - 1] if index else []), **options) for index in range(length)]  # type: ignore[arg-type]


@dataclass
class HandScript:
    turns: Sequence[Turn]
    prompt: str = "hello"
    prepare_s: float = 0.0
    broken_at: int | None = None

    def request(self, turn: Turn, *, salt: str, model: str, said: Mapping[int, str] | None = None) -> PreparedRequest:
        del said
        if turn.request_index == self.broken_at:
            raise ValueError(f"request {turn.request_index} has no text")
        time.sleep(self.prepare_s)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"{salt} {turn.request_index} {self.prompt}"}],
            "max_tokens": turn.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return PreparedRequest(path="/v1/chat/completions", body=json.dumps(body).encode())


@dataclass
class HandPlan:
    scripts: dict[str, HandScript]
    once: bool = True
    first_turn: int = 0

    def script(self, session_id: str) -> HandScript:
        return self.scripts[session_id]

    def plays(
        self, agent: int, *, agents: int | None = None, start_offset_turns: int = 0, trial: int = 0, draw: int = 0
    ) -> Iterator[Play]:
        del draw
        names = list(self.scripts)
        order = names[agent :: agents or 1] if self.once else itertools.cycle(names)
        for play, session_id in enumerate(order):
            salt = f"{trial}-{agent}-{play}"
            first_turn = min(self.first_turn, start_offset_turns) if play == 0 else 0
            yield Play(agent=agent, play=play, session_id=session_id, salt=salt, first_turn=first_turn)


def plan(*turns: Turn, **options: object) -> HandPlan:
    return HandPlan({"s": HandScript(turns)}, **options)  # type: ignore[arg-type]


def play_it(
    server: FakeServer, plan: HandPlan, *, agents: int = 1, protocol: Protocol = WHOLE, **options: object
) -> Drive:
    endpoint = Endpoint(server.url, server.knobs.model)
    return run(drive(plan, endpoint, agents=agents, protocol=protocol, **options))  # type: ignore[arg-type]


def by_index(result: Drive) -> dict[int, RequestRecord]:
    return {record.request_index: record for record in result.records}


def test_a_chain_is_recorded_as_the_server_saw_it() -> None:
    with serving(ttft_ms=30, itl_ms=5) as server:
        before_us = time.time_ns() // 1000
        result = play_it(server, plan(*chain(3, delay_ms=50, tokens=10)))
    assert result.stop_reason == "plays_done"
    assert abs(result.zero_unix_us - before_us) < 5e6
    assert len(result.records) == len(server.log) == 3
    previous_end_ns = 0
    for position, (record, served) in enumerate(zip(result.records, server.log, strict=True)):
        assert record.outcome == "ok"
        assert (record.agent, record.play, record.session_id, record.turn) == (0, 0, "s", position)
        assert record.salt == "0-0-0"
        assert record.status == 200
        assert record.error is None
        assert (record.planned_output_tokens, record.completion_tokens) == (10, 10)
        assert record.finish_reason == "length"
        assert record.prompt_tokens == served.prompt_tokens
        assert record.cached_tokens is not None
        assert record.recorded_prompt_tokens == 100 + position
        assert record.delay_us == (50_000 if position else 0)
        assert record.events == 14  # role, ten tokens, finish, usage, [DONE]
        assert record.content_events == 10
        assert len(record.content_gaps_us) == 9
        assert 1 <= record.reads <= 15
        assert record.bytes_up == len(served.body)
        assert record.reused_connection == (position > 0)
        stamps = [
            record.intended_at_ns, record.sent_at_ns, record.written_at_ns, record.headers_at_ns,
            record.first_byte_at_ns, record.first_content_at_ns, record.last_content_at_ns, record.end_at_ns,
        ]  # fmt: skip
        assert None not in stamps
        assert stamps == sorted(stamps)  # type: ignore[type-var]
        zero = result.zero_monotonic_ns
        assert 0 <= served.arrived_at_ns - zero - record.sent_at_ns < TOLERANCE_NS
        assert 0 <= record.first_content_at_ns + zero - served.first_token_at_ns < TOLERANCE_NS
        assert 0 <= record.last_content_at_ns + zero - served.last_token_at_ns < TOLERANCE_NS
        if position:
            assert record.intended_at_ns == previous_end_ns + 50_000_000
        previous_end_ns = record.end_at_ns
    (finished,) = result.finished_plays
    assert (finished.requests, finished.failed_requests, finished.session_id) == (3, 0, "s")


def test_turns_wait_for_what_they_name_and_sub_agents_overlap() -> None:
    turns = [turn(0), turn(10, 0, tokens=60), turn(20, 0, tokens=60), turn(30, 10, 20, delay_ms=40), turn(40, 30)]
    with serving(ttft_ms=10, itl_ms=3) as server:
        record = by_index(play_it(server, plan(*turns)))
    ends = {index: record[index].end_at_ns or 0 for index in record}
    assert record[10].sent_at_ns < ends[20]
    assert record[20].sent_at_ns < ends[10]
    assert record[30].intended_at_ns == max(ends[10], ends[20]) + 40_000_000
    assert record[40].intended_at_ns == ends[30]
    assert min(record[10].sent_at_ns, record[20].sent_at_ns) >= ends[0]


def test_a_play_may_start_in_its_middle() -> None:
    protocol = replace(WHOLE, start_offset_turns=10)
    with serving() as server:
        result = play_it(server, plan(*chain(4, delay_ms=300), first_turn=2), protocol=protocol)
    first, second = result.records
    assert [first.turn, second.turn] == [2, 3]
    assert first.delay_us == 0  # nobody waits for a tool that ran before the trial
    assert first.intended_at_ns < 200e6
    assert second.delay_us == 300_000


def test_agents_ramp_up_and_each_has_its_own_connection() -> None:
    scripts = {f"s{number}": HandScript(chain(3)) for number in range(4)}
    with serving(ttft_ms=40) as server:
        result = play_it(server, HandPlan(scripts), agents=4, protocol=replace(WHOLE, ramp_per_s=10.0))
    assert result.ramp_end_ns == 300_000_000
    starts = [next(record for record in result.records if record.agent == agent) for agent in range(4)]
    for agent, record in enumerate(starts):
        assert 0 <= record.sent_at_ns - agent * 100e6 < TOLERANCE_NS
    of_agent = {record.agent: set() for record in result.records}
    for record, served in zip(result.records, server.log, strict=True):
        of_agent[record.agent].add(served.connection)
    assert sum(len(connections) for connections in of_agent.values()) == 4


def test_bodies_are_prepared_before_their_time() -> None:
    script = HandScript(chain(6, tokens=40), prepare_s=0.03)
    script.turns = [*script.turns, *(turn(index, index - 1, delay_ms=200) for index in (6, 7))]
    with serving(ttft_ms=20, itl_ms=3) as server:
        result = play_it(server, HandPlan({"s": script}))
    lags_ns = [record.sent_at_ns - record.intended_at_ns for record in result.records[1:]]
    assert sorted(lags_ns)[len(lags_ns) // 2] < 20e6  # preparing takes 30 ms


def test_the_phase_ends_when_its_minimums_are_met_and_requests_in_flight_are_stopped() -> None:
    seen: list[Progress] = []
    protocol = replace(SHORT, settle_s=0.3, min_measure_s=0.4, min_trajectories=6, min_trajectories_per_agent=2)
    with serving(ttft_ms=20, itl_ms=20) as server:
        result = play_it(
            server, plan(*chain(2), once=False), agents=3, protocol=protocol, on_progress=seen.append
        )  # fmt: skip
        time.sleep(0.1)
        assert server.answering == 0  # the server saw us leave
    assert result.stop_reason == "measured"
    assert result.settle_end_ns == result.ramp_end_ns + 300_000_000
    assert result.phase_end_ns >= result.settle_end_ns + 400_000_000
    assert len(result.finished_plays) >= 6
    stopped = [record for record in result.records if record.outcome == "stopped"]
    assert 1 <= len(stopped) <= 3
    assert all(record.end_at_ns is None and record.error is None for record in stopped)
    assert {record.outcome for record in result.records} == {"ok", "stopped"}
    assert len(seen) >= 3
    assert seen[-1].measured_s >= 0.4
    assert seen[-1].finished_per_agent_min >= 2


def test_a_request_that_still_dials_when_the_phase_ends_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, a server that accepts no more connections would look as fast as those that got one."""
    dial = CollectingTransport._dial
    dialled = 0

    async def hang(self: CollectingTransport, target: Target, limit_s: float) -> Connection:
        nonlocal dialled
        dialled += 1
        if dialled > 2:  # the driver's own question, and the first agent
            await asyncio.sleep(60)
        return await dial(self, target, limit_s)

    monkeypatch.setattr(CollectingTransport, "_dial", hang)
    with serving() as server:
        result = play_it(server, HandPlan({"s": HandScript(chain(50))}, once=False), agents=2, protocol=SHORT)
    assert result.stop_reason == "measured"
    (waiting,) = [record for record in result.records if record.agent == 1]
    assert (waiting.outcome, waiting.first_content_at_ns, waiting.end_at_ns) == ("stopped", None, None)
    assert waiting.intended_at_ns <= waiting.sent_at_ns < result.phase_end_ns


def test_the_phase_runs_out() -> None:
    protocol = replace(SHORT, min_trajectories=1000, max_phase_s=0.6)
    with serving() as server:
        result = play_it(server, plan(*chain(2), once=False), protocol=protocol)
    assert result.stop_reason == "max_phase"
    assert 0.6e9 <= result.phase_end_ns < 2e9


def test_cancelling_returns_what_was_recorded() -> None:
    async def main(server: FakeServer) -> Drive:
        endpoint = Endpoint(server.url, "fake-model")
        driving = asyncio.create_task(drive(plan(*chain(50, tokens=20)), endpoint, agents=1, protocol=WHOLE))
        while len(server.log) < 3:  # noqa: ASYNC110 - the server runs in a thread; a turn is over by then
            await asyncio.sleep(0.01)
        driving.cancel()
        return await driving

    with serving(ttft_ms=20, itl_ms=5) as server:
        result = run(main(server))
    assert result.stop_reason == "interrupted"
    assert {record.outcome for record in result.records[:-1]} == {"ok"}
    assert result.records[-1].outcome in ("ok", "stopped")
    assert not result.finished_plays


@pytest.mark.parametrize(
    ("knobs", "outcome", "status", "words"),
    [
        ({"fail_status": 500}, "http_error", 500, "broken on purpose"),
        ({"context_tokens": 3}, "http_error", 400, "maximum context length is 3 tokens"),
        ({"error_event_after": 2}, "stream_error", 200, "the engine gave up"),
        ({"garbage_after": 2}, "stream_error", 200, "is not a chunk of a completion: <html>502"),
        ({"stream": False}, "stream_error", 200, "not an event stream"),
        ({"compress": True}, "stream_error", 200, "compressed"),
        ({"cut_after": 2}, "cut", 200, "closed the connection after"),
        ({"cut_after": 0, "role_chunk": False, "slow_headers_ms": 5}, "cut", 200, "closed the connection"),
        ({"hang_after": 2}, "timeout", 200, "not complete after 0.5 s"),
        ({"slow_headers_ms": 2000}, "timeout", None, "not complete after 0.5 s"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_failed_request_is_recorded_and_the_play_goes_on(
    knobs: dict[str, object], outcome: str, status: int | None, words: str
) -> None:
    protocol = replace(WHOLE, request_timeout_s=0.5)
    with serving(fail_every=1, **knobs) as server:
        result = play_it(server, plan(turn(0, tokens=10), turn(1, 0, tokens=10)), protocol=protocol)
    assert [record.outcome for record in result.records] == [outcome, outcome]
    first, second = result.records
    assert first.status == status
    assert words in (first.error or "")
    assert first.end_at_ns is not None
    assert second.intended_at_ns == first.end_at_ns + 1_000_000_000  # backs off
    assert not result.finished_plays  # every request failed: nothing was worked through


def test_one_failure_among_many() -> None:
    with serving(fail_status=503, fail_every=3) as server:
        result = play_it(server, plan(*chain(4)))
    assert [record.outcome for record in result.records] == ["ok", "ok", "http_error", "ok"]
    assert [play.failed_requests for play in result.finished_plays] == [1]


def test_a_server_that_goes_away_is_not_stormed() -> None:
    with serving() as server:
        gone = Endpoint(server.url, "fake-model")

    async def main() -> Drive:
        with serving() as server:
            server_url = server.url
            driving = asyncio.create_task(
                drive(
                    plan(*chain(1), once=False),
                    Endpoint(server_url, "fake-model"),
                    agents=2,
                    protocol=replace(SHORT, min_measure_s=2.5),
                )
            )
            await asyncio.sleep(0.5)
        return await driving

    result = run(main())
    refused = [record for record in result.records if record.outcome == "refused"]
    assert 2 <= len(refused) <= 8
    assert all(record.status is None and record.headers_at_ns is None for record in refused)
    with pytest.raises(EndpointError, match="no server answers at"):
        run(drive(plan(*chain(1)), gone, agents=1, protocol=SHORT))


@pytest.mark.parametrize("knob", ["close_each", "close_on_reuse"])
def test_a_server_that_closes_in_spite_of_keep_alive_fails_no_turn(knob: str) -> None:
    with serving(ttft_ms=1, itl_ms=0, **{knob: True}) as server:
        result = play_it(server, plan(*chain(30)))
    assert [record.outcome for record in result.records] == ["ok"] * 30
    assert not any(record.reused_connection for record in result.records)
    redialled = [record.redialled for record in result.records]
    if knob == "close_on_reuse":
        assert redialled == [False] + [True] * 29
        # The first sending counts: whoever takes a request, waits and hangs up is not faster for it.
        assert all(served.arrived_at_ns - result.zero_monotonic_ns > record.sent_at_ns
                   for record, served in zip(result.records, server.log, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    "knobs",
    [
        {"done_marker": False}, {"role_chunk": False}, {"line_end": "\r\n"}, {"chunked": False},
        {"tokens_per_chunk": 3}, {"reasoning_tokens": 4}, {"tool_call_tokens": 4}, {"write_bytes": 7},
    ],
    ids=lambda knobs: next(iter(knobs)),
)  # fmt: skip
def test_servers_differ_and_are_read_alike(knobs: dict[str, object]) -> None:
    with serving(ttft_ms=5, itl_ms=1, **knobs) as server:
        result = play_it(server, plan(turn(0, tokens=12)))
    (record,) = result.records
    assert record.outcome == "ok"
    assert record.completion_tokens == 12
    assert record.content_events == (4 if "tokens_per_chunk" in knobs else 12)
    assert record.reasoning_tokens == (4 if "reasoning_tokens" in knobs else None)


def test_no_usage_is_unknown_not_zero() -> None:
    with serving(usage=False) as server:
        (record,) = play_it(server, plan(turn(0))).records
    assert record.outcome == "ok"
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (None, None, None)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (plan(turn(0), turn(1, 7)), "session s: turn 1 waits for request 7, which no earlier turn"),
        (plan(turn(0, 1), turn(1, 0)), "session s: turn 0 waits for request 1, which no earlier turn"),
        (plan(), "session s: its script has no turns"),
        (HandPlan({"s": HandScript(chain(3), broken_at=1)}), "request 1 has no text"),
    ],
    ids=["unknown", "cycle", "empty", "no body"],
)
def test_a_fault_of_the_plan_stops_the_run(broken: HandPlan, words: str) -> None:
    with serving() as server, pytest.raises(ValueError, match=words):
        play_it(server, broken)


def test_no_agents() -> None:
    with serving() as server, pytest.raises(ValueError, match="at least one agent"):
        play_it(server, plan(*chain(1)), agents=0)


def test_health_of_a_client_that_keeps_up() -> None:
    with serving(ttft_ms=20, itl_ms=2) as server:
        health = play_it(server, plan(*chain(20, tokens=20)), protocol=WHOLE).health
    assert health.loop_lag_p50_ms is not None
    assert health.loop_lag_p50_ms < 10
    assert health.dispatch_lag_max_ms is not None
    assert health.cpu_seconds > 0
    assert 0 < health.cpu_share < 2
    assert 10 < health.peak_memory_mb < 5000


def test_a_late_client_says_so() -> None:
    class Slow(HandScript):
        def request(
            self, turn: Turn, *, salt: str, model: str, said: Mapping[int, str] | None = None
        ) -> PreparedRequest:
            time.sleep(0.15)  # blocks the loop, as a client that is short of CPU would
            return super().request(turn, salt=salt, model=model, said=said)

    scripts = {f"s{number}": Slow(chain(4, tokens=5)) for number in range(8)}
    with serving(ttft_ms=5, itl_ms=1) as server:
        health = play_it(server, HandPlan(scripts), agents=8).health
    assert health.late
    assert health.late_windows
    assert (health.loop_lag_max_ms or 0) > 100


def test_late_windows_are_named() -> None:
    async def main() -> HealthWatch:
        watch = HealthWatch(time.monotonic_ns())
        watch.start()
        await asyncio.sleep(0.1)
        time.sleep(0.2)  # noqa: ASYNC251 - the fault on purpose
        await asyncio.sleep(0.05)
        watch.stop()
        return watch

    watch = run(main())
    watch.dispatched(0, 7_000_000_000)
    health = watch.judge(0, 62_000_000_000)
    assert [window.late for window in health.windows] == [True, True] + 10 * [False]
    assert health.windows[-1].end_ns == 62_000_000_000  # the short rest joined
    assert health.windows[1].loop_lag_p99_ms is None
    assert health.dispatch_lag_p99_ms == 7000
    short = watch.judge(0, 12_000_000_000)  # a stall voids the second that it is in, not all of a short trial
    assert [number for number, window in enumerate(short.windows) if window.late] == [0, 7]

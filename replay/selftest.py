"""How many agents this machine can drive: our client against a cheap source of our own, at growing numbers of agents.

The answer is the largest number that was tried and held: TTFT and the gaps between tokens agree with what the
source did, and the client's own health names no late window. Where the source is late first, the answer is "at least".
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from replay.plan import Play, PreparedRequest
from replay.script import Turn

LATE_TTFT_MS = 10.0
LATE_GAP_MS = 5.0
LATE_SOURCE_MS = 3.0
"""The source's own lateness at p99 beyond which a failure may be its own."""
FULL_SHARE = 0.75
"""Of a core for each worker: what is tried next when the client had time to spare."""
BUSY_SHARE = 0.5
"""Whoever is late with less than this of a core did not get the CPU that it wanted."""
CLOSE_ENOUGH = 1.1
START_AGENTS = 128
MOST_AGENTS = 16_384
ANSWER_TOKENS = 100
BYTES_PER_TOKEN = 4
RAMP_S = 1.0
SETTLE_S = 0.3
MEASURE_S = 1.5
PROMPT_PROBE_BYTES = 1_000_000
PROMPT_PROBE_AGENTS = 16
MODEL = "selftest"

type Why = Literal[
    "as asked", "the client was late", "the source was late", "something else took the CPU", "no time left"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What was seen at one number of agents. Errors are the client's stamps against the source's schedule; p99."""

    agents: int
    held: bool
    source_late: bool  # the source itself did not keep its schedule
    ttft_error_ms: float | None
    gap_error_ms: float | None
    loop_lag_ms: float | None
    source_late_ms: float | None
    source_cpu_share: float  # of one core
    cpu_share: float  # of one core, all workers together
    cpu_us_per_event: float | None
    events: int
    memory_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCost:
    """What sending prompts costs the client, per MB (10⁶ bytes) of request body."""

    cpu_ms_per_mb: float
    memory_mb_per_mb: float | None  # above what it holds without, per MB in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """How many agents the client keeps up with at a speed and a prompt size."""

    agents: int  # the largest number that held; 0 where none did
    at_least: bool  # nothing above it was seen to fail because of the client
    why: Why
    workers: int
    tok_s: float
    ttft_s: float
    prompt_bytes: int
    streams_per_core: float | None  # at the CPU share of the largest level that held
    cpu_us_per_event: float | None
    prompt_cost: PromptCost | None
    levels: tuple[Level, ...]

    @property
    def limit(self) -> int | None:
        """The most agents that this client may be asked for; None where no limit of its own was found."""
        return None if self.at_least else self.agents

    def sentence(self) -> str:
        """The answer in one sentence."""
        number = f"at least {self.agents:,}" if self.at_least else f"{self.agents:,}"
        with_what = "one process" if self.workers == 1 else f"{self.workers} processes"
        return (
            f"this machine drives {number} agents at {self.tok_s:g} tokens a second and prompts of "
            f"{self.prompt_bytes / 1e6:.2g} MB, with {with_what} ({self.why})"
        )


def selftest(
    *,
    tok_s: float = 50.0,
    prompt_bytes: int = 27_000 * BYTES_PER_TOKEN,
    seconds: float = 10.0,
    ttft_s: float = 0.2,
    workers: int = 1,
    most: int | None = None,
    prompt_cost: bool = False,
    on_level: Callable[[Level], None] | None = None,
) -> SelfTest:
    """Find how many agents the client keeps up with, in about `seconds`; nothing above `most` is tried.

    Raises EnvironmentFault where the source does not start.
    """
    began_s = time.monotonic()
    with _source(tok_s=tok_s, ttft_s=ttft_s, tokens=ANSWER_TOKENS) as source:

        def measure(agents: int) -> Level:
            level = _measure(source, agents, tok_s=tok_s, ttft_s=ttft_s, prompt_bytes=prompt_bytes, workers=workers)
            if on_level is not None:
                on_level(level)
            return level

        def time_left() -> bool:
            return time.monotonic() - began_s + RAMP_S + SETTLE_S + MEASURE_S + 0.5 < seconds

        levels, why = find_limit(measure, most=most or MOST_AGENTS, workers=workers, time_left=time_left)
        cost = _prompt_cost() if prompt_cost else None
    held = max((level for level in levels if level.held), key=lambda level: level.agents, default=None)
    return SelfTest(
        agents=held.agents if held is not None else 0,
        at_least=why != "the client was late",
        why=why,
        workers=workers,
        tok_s=tok_s,
        ttft_s=ttft_s,
        prompt_bytes=prompt_bytes,
        streams_per_core=held.agents / held.cpu_share if held is not None and held.cpu_share else None,
        cpu_us_per_event=held.cpu_us_per_event if held is not None else None,
        prompt_cost=cost,
        levels=tuple(levels),
    )


def find_limit(
    measure: Callable[[int], Level], *, most: int, workers: int, time_left: Callable[[], bool]
) -> tuple[list[Level], Why]:
    """Levels tried, and why no more: upwards by what the CPU allows, then by halves; the first is always measured.

    A level has failed when it failed twice: one bad moment of the machine is not its limit.
    """
    levels: list[Level] = []
    held, failed = 0, most + 1
    agents = min(most, START_AGENTS)
    while True:
        level = measure(agents)
        levels.append(level)
        if not level.held and time_left():
            level = measure(agents)
            levels.append(level)
        if level.held:
            held = agents
        else:
            failed = agents
        if held >= most:
            return levels, "as asked"
        if failed <= max(held + 1, held * CLOSE_ENOUGH):
            return levels, _why([each for each in levels if each.agents == failed], workers)
        if not time_left():
            return levels, "no time left"
        if failed > most:
            allowed = held * FULL_SHARE * workers / max(level.cpu_share, 0.01)
            agents = min(most, max(int(held * CLOSE_ENOUGH) + 1, int(allowed)))
        else:
            agents = max(held + 1, int((max(1, held) * failed) ** 0.5))


def _why(failures: list[Level], workers: int) -> Why:
    """Who was late at the level that failed."""
    if any(level.cpu_share < BUSY_SHARE * workers and level.source_cpu_share < BUSY_SHARE for level in failures):
        return "something else took the CPU"
    return "the source was late" if any(level.source_late for level in failures) else "the client was late"


class SamePlan:
    """Endless plays of one turn each: a prompt of so many bytes, the same for everybody, and no pause."""

    def __init__(self, prompt_bytes: int, tokens: int) -> None:
        self.turns = (
            Turn(
                request_index=0,
                wait_for=(),
                delay_us=0,
                delay_kind="tool",
                recorded_prompt_tokens=None,
                planned_prompt_tokens=None,
                output_tokens=tokens,
            ),
        )
        line = "the quick brown fox jumps over the lazy dog, and the dog sleeps on; "
        text = (line * (prompt_bytes // len(line) + 1))[:prompt_bytes]
        start = {"model": MODEL, "stream": True, "max_tokens": tokens}
        body = json.dumps({**start, "messages": [{"role": "user", "content": text}]})
        half = len(body) // 2
        self._parts = (body[:half].encode(), body[half:].encode())

    def plays(
        self, agent: int, *, agents: int | None = None, start_offset_turns: int = 0, trial: int = 0, draw: int = 0
    ) -> Iterator[Play]:
        """One play after another."""
        del agents, start_offset_turns, trial, draw
        play = 0
        while True:
            yield Play(agent=agent, play=play, session_id="selftest", salt="", first_turn=0)
            play += 1

    def script(self, session_id: str) -> SamePlan:
        """The only session."""
        del session_id
        return self

    def request(self, turn: Turn, *, salt: str, model: str, said: object = None) -> PreparedRequest:
        """The only request; its body is joined anew each time, as a plan's is."""
        del turn, salt, model, said
        return PreparedRequest(path="/v1/chat/completions", body=b"".join(self._parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """The source process."""

    url: str
    process: subprocess.Popen[str]

    def report(self) -> dict[str, float | None]:
        """What it counted since the last report."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("report\n")
        self.process.stdin.flush()
        found: dict[str, float | None] = json.loads(self.process.stdout.readline())
        return found


@contextlib.contextmanager
def _source(*, tok_s: float, ttft_s: float, tokens: int) -> Iterator[_Running]:
    from capture.fault import EnvironmentFault

    command = [sys.executable, "-P", "-m", "replay.source", "--ttft-s", str(ttft_s), "--tok-s", str(tok_s)]
    with subprocess.Popen(
        [*command, "--tokens", str(tokens)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise EnvironmentFault("the self-test's source of answers did not start; its reason is above")
            yield _Running(url=url, process=process)
        finally:
            if process.stdin is not None:
                process.stdin.close()  # it ends by itself then
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def _measure(source: _Running, agents: int, *, tok_s: float, ttft_s: float, prompt_bytes: int, workers: int) -> Level:
    from replay import loop
    from replay.drive import drive
    from replay.endpoint import Endpoint
    from replay.health import quantile_ms
    from replay.protocol import Protocol

    protocol = Protocol(
        name="selftest",
        ramp_per_s=agents / RAMP_S,
        settle_s=SETTLE_S,
        min_measure_s=MEASURE_S,
        min_trajectories=0,
        min_trajectories_per_agent=0,
        max_phase_s=10 * (RAMP_S + SETTLE_S + MEASURE_S),
        start_offset_turns=0,
        request_timeout_s=30.0,
    )
    source.report()
    done = loop.run(
        drive(
            SamePlan(prompt_bytes, ANSWER_TOKENS),
            Endpoint(source.url, MODEL),
            agents=agents,
            protocol=protocol,
            workers=workers,
        )
    )
    told = source.report()
    first, gaps, fine = [], [], True
    for record in done.records:
        fine = fine and record.outcome in ("ok", "stopped")
        if record.first_content_at_ns is not None:
            first.append(record.first_content_at_ns - record.sent_at_ns - int(ttft_s * 1e9))
        if record.sent_at_ns >= done.settle_end_ns or record.outcome == "stopped":
            gaps += [gap_us * 1000 - int(1e9 / tok_s) for gap_us in record.content_gaps_us]
    ttft_error_ms, gap_error_ms = quantile_ms(first, 0.99), quantile_ms(gaps, 0.99)
    events = sum(record.events for record in done.records)
    source_late_ms = told["late_p99_ms"]
    health = done.health
    cpu_all_s = health.cpu_share * done.phase_end_ns / 1e9  # of the window, stretched to the whole phase
    return Level(
        agents=agents,
        held=fine
        and health.fault is None
        and not health.late
        and ttft_error_ms is not None
        and gap_error_ms is not None
        and ttft_error_ms <= LATE_TTFT_MS
        and gap_error_ms <= LATE_GAP_MS,
        source_late=source_late_ms is not None and source_late_ms > LATE_SOURCE_MS,
        ttft_error_ms=ttft_error_ms,
        gap_error_ms=gap_error_ms,
        loop_lag_ms=health.loop_lag_p99_ms,
        source_late_ms=source_late_ms,
        source_cpu_share=told["cpu_share"] or 0.0,
        cpu_share=health.cpu_share,
        cpu_us_per_event=cpu_all_s / events * 1e6 if events else None,
        events=events,
        memory_mb=health.peak_memory_mb,
    )


def _prompt_cost() -> PromptCost:
    """The difference between large prompts and small ones, in fresh processes whose memory starts at nothing."""
    from replay import loop
    from replay.drive import drive
    from replay.endpoint import Endpoint
    from replay.protocol import Protocol

    protocol = Protocol(
        name="selftest",
        ramp_per_s=PROMPT_PROBE_AGENTS / 0.2,
        settle_s=0.0,
        min_measure_s=MEASURE_S,
        min_trajectories=0,
        min_trajectories_per_agent=0,
        max_phase_s=10 * MEASURE_S,
        start_offset_turns=0,
        request_timeout_s=30.0,
    )
    seen = []
    with _source(tok_s=1000.0, ttft_s=0.05, tokens=1) as source:
        for prompt_bytes in (1_000, PROMPT_PROBE_BYTES):
            done = loop.run(
                drive(
                    SamePlan(prompt_bytes, 1),
                    Endpoint(source.url, MODEL),
                    agents=PROMPT_PROBE_AGENTS,
                    protocol=protocol,
                    workers=2,
                )
            )
            inside = [record for record in done.records if record.sent_at_ns >= done.settle_end_ns]
            seen.append((len(inside), done.health))
    (small_count, small), (large_count, large) = seen
    # What a request costs whatever its size is taken off; it is little beside a megabyte.
    fixed_s = small.cpu_seconds / max(1, small_count)
    sent_mb = max(1, large_count) * PROMPT_PROBE_BYTES / 1e6
    return PromptCost(
        cpu_ms_per_mb=max(0.0, large.cpu_seconds - fixed_s * large_count) / sent_mb * 1e3,
        memory_mb_per_mb=(large.peak_memory_mb - small.peak_memory_mb)
        / (PROMPT_PROBE_AGENTS * PROMPT_PROBE_BYTES / 1e6),
    )

"""Drive a plan against an endpoint: N agents, each working through its plays turn by turn, recorded as it happened.

Closed loop: an agent sends a recorded turn with its recorded history, drains the live answer, throws it away,
waits the turn's delay and goes on. One request is in flight per chain; turns that do not wait for each other
(sub-agents) overlap. A failed request is a record and the play goes on, since its history is the recorded one.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from replay.endpoint import Caller, Endpoint
from replay.health import ClientHealth, HealthWatch
from replay.protocol import Progress, Protocol, phase_over
from replay.record import RequestRecord
from replay.runner import PlayRunner, Replayable, Track

FILES_PER_AGENT = 4  # a connection for the agent and for a few sub-agents
CHECK_EVERY_S = 0.1
REPORT_EVERY_S = 0.3

type StopReason = Literal["measured", "max_phase", "plays_done", "interrupted"]
"""`measured`: every minimum of the protocol is met. `max_phase`: time ran out before. `plays_done`: a plan that is
played once is through. `interrupted`: cancelled from outside (Ctrl-C); the records up to there are whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedPlay:
    """A trajectory that an agent worked through to its end; times in ns since the trial's zero."""

    agent: int
    play: int
    session_id: str
    first_turn: int
    started_at_ns: int
    finished_at_ns: int
    requests: int
    failed_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """Everything that one trial's drive recorded. `*_end_ns` are monotonic since `zero_monotonic_ns`.

    The measured window is [settle_end_ns, phase_end_ns); it is empty when the phase ended before settling did.
    A play all of whose requests failed is not among `finished_plays`.
    """

    zero_unix_us: int
    zero_monotonic_ns: int
    ramp_end_ns: int  # the last agent's start, or when it would have been
    settle_end_ns: int
    phase_end_ns: int
    stop_reason: StopReason
    records: tuple[RequestRecord, ...]  # in order of sending
    health: ClientHealth
    finished_plays: tuple[FinishedPlay, ...]


async def drive(
    plan: Replayable,
    endpoint: Endpoint,
    *,
    agents: int,
    protocol: Protocol,
    trial: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Drive:
    """Run one trial and return its records; when cancelled, stop, and return what was recorded until then.

    `trial` keeps the salts of trials of one plan apart, so that none warms the prefix cache of the next.

    Raises `EndpointError` when no server answers at the start, and `ValueError` for a fault of the plan.
    """
    if agents < 1:
        raise ValueError(f"a trial needs at least one agent, not {agents}")
    raise_file_limit(agents + 64, wanted=agents * FILES_PER_AGENT + 64)
    async with endpoint.connect() as caller:
        await caller.reach()
        # What exists now stays: collecting it again and again would stop the loop for as long as the plan is large.
        gc.collect()
        gc.freeze()
        try:
            return await _Driver(plan, caller, agents, protocol, trial, on_progress).run()
        finally:
            gc.unfreeze()


class _Driver:
    """The state of one drive."""

    def __init__(
        self,
        plan: Replayable,
        caller: Caller,
        agents: int,
        protocol: Protocol,
        trial: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.plan = plan
        self.agents = agents
        self.protocol = protocol
        self.trial = trial
        self.on_progress = on_progress
        self.zero_unix_us = time.time_ns() // 1000
        zero_ns = time.monotonic_ns()
        self.track = Track(
            caller=caller, request_timeout_s=protocol.request_timeout_s, zero_ns=zero_ns, watch=HealthWatch(zero_ns)
        )
        self.finished: list[FinishedPlay] = []
        self.finished_per_agent = [0] * agents

    async def run(self) -> Drive:
        """Start the agents, wait until the phase is over, stop them."""
        ramp_end_ns = int((self.agents - 1) / self.protocol.ramp_per_s * 1e9)
        settle_end_ns = ramp_end_ns + int(self.protocol.settle_s * 1e9)
        self.track.watch.start()
        tasks = [asyncio.create_task(self._agent(agent)) for agent in range(self.agents)]
        try:
            stop_reason = await self._until_over(tasks, settle_end_ns)
        except asyncio.CancelledError:
            # Swallowed on purpose: an interrupted trial keeps its records, and `interrupted` says what they are.
            stop_reason = "interrupted"
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
        finally:
            phase_end_ns = self.track.now()
            self.track.watch.stop()
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        window_start_ns = settle_end_ns if settle_end_ns < phase_end_ns else 0
        self.track.records.sort(key=lambda record: record.sent_at_ns)
        return Drive(
            zero_unix_us=self.zero_unix_us,
            zero_monotonic_ns=self.track.zero_ns,
            ramp_end_ns=ramp_end_ns,
            settle_end_ns=settle_end_ns,
            phase_end_ns=phase_end_ns,
            stop_reason=stop_reason,
            records=tuple(self.track.records),
            health=self.track.watch.judge(window_start_ns, phase_end_ns),
            finished_plays=tuple(self.finished),
        )

    async def _until_over(self, tasks: list[asyncio.Task[None]], settle_end_ns: int) -> StopReason:
        reported_at_s = -REPORT_EVERY_S
        # One future for all agents: waiting for a thousand tasks ten times a second would take the loop's time.
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        agents_left = len(tasks)

        def count(task: asyncio.Task[None]) -> None:
            nonlocal agents_left
            agents_left -= 1
            failed = not task.cancelled() and task.exception() is not None
            if (failed or not agents_left) and not ended.done():
                ended.set_result(None)

        for task in tasks:
            task.add_done_callback(count)
        while True:
            await asyncio.wait((ended,), timeout=CHECK_EVERY_S)
            progress = self._progress(settle_end_ns)
            over = phase_over(self.protocol, progress)
            if self.on_progress is not None and (
                over or ended.done() or progress.elapsed_s - reported_at_s >= REPORT_EVERY_S
            ):
                reported_at_s = progress.elapsed_s
                self.on_progress(progress)
            if ended.done():  # a fault of the plan, or of ours, is raised by the caller
                return "plays_done"
            if over:
                return "max_phase" if progress.elapsed_s >= self.protocol.max_phase_s else "measured"

    def _progress(self, settle_end_ns: int) -> Progress:
        now = self.track.now()
        return Progress(
            agents=self.agents,
            elapsed_s=now / 1e9,
            measured_s=max(0, now - settle_end_ns) / 1e9,
            finished_trajectories=len(self.finished),
            finished_per_agent_min=min(self.finished_per_agent),
            requests=len(self.track.records),
            in_flight=self.track.in_flight,
        )

    async def _agent(self, agent: int) -> None:
        await self.track.sleep_until(int(agent / self.protocol.ramp_per_s * 1e9))
        plays = self.plan.plays(
            agent, agents=self.agents, start_offset_turns=self.protocol.start_offset_turns, trial=self.trial
        )
        not_before_ns = 0
        for play in plays:
            script = self.plan.script(play.session_id)
            if not script.turns:
                raise ValueError(f"session {play.session_id}: its script has no turns")
            runner = PlayRunner(self.track, play, script, not_before_ns)
            await runner.run()
            not_before_ns = runner.back_off_until_ns
            if runner.failed < runner.sent:
                self.finished_per_agent[agent] += 1
                self.finished.append(
                    FinishedPlay(
                        agent=agent,
                        play=play.play,
                        session_id=play.session_id,
                        first_turn=play.first_turn,
                        started_at_ns=runner.started_at_ns,
                        finished_at_ns=self.track.now(),
                        requests=runner.sent,
                        failed_requests=runner.failed,
                    )
                )


def raise_file_limit(needed: int, *, wanted: int) -> None:
    """Let this process open `wanted` files, as far as the system allows; `ValueError` where not even `needed` go."""
    try:
        import resource
    except ImportError:  # Windows knows no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted < needed:
        raise ValueError(
            f"so many agents need {needed} open files, and the limit is {hard}: "
            "raise it (`ulimit -Hn` as root, LimitNOFILE of a service), or drive fewer agents"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

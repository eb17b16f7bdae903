"""Drive a plan against an endpoint: N agents, each working through its plays turn by turn, recorded as it happened.

Closed loop: an agent sends a recorded turn with its recorded history, drains the live answer, throws it away,
waits the turn's delay and goes on. One request is in flight per chain; turns that do not wait for each other
(sub-agents) overlap. A failed request is a record and the play goes on, since its history is the recorded one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from replay.crew import Crew
from replay.endpoint import Caller, Endpoint
from replay.health import ClientHealth, HealthWatch, merge_health
from replay.protocol import Progress, Protocol, phase_over
from replay.recent import at_rank
from replay.record import RequestRecord
from replay.rules import History
from replay.runner import Replayable
from replay.spool import read_spool
from replay.worker import Agents, Count, FinishedPlay, Job, Share, quiet_memory

__all__ = ["Drive", "FinishedPlay", "StopReason", "drive"]

CHECK_EVERY_S = 0.1
REPORT_EVERY_S = 0.3

type StopReason = Literal["measured", "max_phase", "plays_done", "interrupted", "client_failed"]
"""`measured`: every minimum of the protocol is met. `max_phase`: time ran out before. `plays_done`: a plan that is
played once is through. `interrupted`: cancelled from outside (Ctrl-C); the records up to there are whole.
`client_failed`: a process of the client died, which voids the trial; `health.fault` says how."""


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
    draw: int = 0,
    workers: int = 1,
    history: History = "recorded",
    folder: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Drive:
    """Run one trial and return its records; when cancelled, stop, and return what was recorded until then.

    `trial` keeps the salts of trials of one plan apart, so that none warms the prefix cache of the next; `draw` makes
    a fresh draw of session order and start offsets. `workers` processes share the agents. Records wait in `folder`
    (a temporary one unless given) until the phase is over; what a killed client leaves there is of no use.

    Raises `EndpointError` when no server answers at the start, `ValueError` for a fault of the plan, `OSError` when
    records cannot be written, `EnvironmentFault` when the worker processes do not start.
    """
    if agents < 1:
        raise ValueError(f"a trial needs at least one agent, not {agents}")
    if workers < 1:
        raise ValueError(f"a trial needs at least one worker, not {workers}")
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentdyno-")))
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(
            plan=plan,
            endpoint=endpoint,
            agents=agents,
            protocol=protocol.for_agents(agents),
            trial=trial,
            draw=draw,
            history=history,
            workers=min(workers, agents),
            folder=str(folder),
        )
        async with endpoint.connect() as caller:
            await caller.reach_all()
            async with _Inside(job, caller) if job.workers == 1 else Crew(job) as team:
                return await _run(job, team, on_progress)


class _Inside:
    """The one worker that is this very process, with the face of a crew."""

    stop_lead_ns = 0

    def __init__(self, job: Job, caller: Caller) -> None:
        self._agents = Agents(job, 0, caller)
        self._stack = contextlib.ExitStack()

    @property
    def ended(self) -> asyncio.Future[None]:
        assert self._agents.ended is not None
        return self._agents.ended

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self._agents)
        self._stack.enter_context(quiet_memory())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, zero_ns: int) -> None:
        self._agents.start(zero_ns)

    def count(self) -> Count:
        return self._agents.count()

    async def stop(self, window_start_ns: int, phase_end_ns: int) -> tuple[tuple[Share, ...], str | None]:
        return (await self._agents.stop(window_start_ns, phase_end_ns),), None


async def _run(job: Job, team: _Inside | Crew, on_progress: Callable[[Progress], None] | None) -> Drive:
    """Start the agents, wait until the phase is over, stop them."""
    ramp_end_ns = int((job.agents - 1) / job.protocol.ramp_per_s * 1e9)
    settle_end_ns = ramp_end_ns + int(job.protocol.settle_s * 1e9)
    zero_unix_us = time.time_ns() // 1000
    zero_ns = time.monotonic_ns()
    team.start(zero_ns)
    stop_reason: StopReason = "client_failed"
    try:
        stop_reason = await _until_over(job, team, zero_ns, settle_end_ns, on_progress)
    except asyncio.CancelledError:
        # Swallowed on purpose: an interrupted trial keeps its records, and `interrupted` says what they are.
        stop_reason = "interrupted"
        current = asyncio.current_task()
        if current is not None:
            current.uncancel()
    phase_end_ns = time.monotonic_ns() - zero_ns + team.stop_lead_ns
    window_start_ns = settle_end_ns if settle_end_ns < phase_end_ns else 0
    shares, fault = await team.stop(window_start_ns, phase_end_ns)
    # Without a single share, nothing was seen of the client: every number of its health is None.
    healths = [share.health for share in shares] or [HealthWatch(zero_ns).judge(window_start_ns, phase_end_ns)]
    records: list[RequestRecord] = []
    for worker in range(job.workers):
        path = job.spool_path(worker)
        if path.exists():
            records += read_spool(path)
            path.unlink()
    return Drive(
        zero_unix_us=zero_unix_us,
        zero_monotonic_ns=zero_ns,
        ramp_end_ns=ramp_end_ns,
        settle_end_ns=settle_end_ns,
        phase_end_ns=phase_end_ns,
        stop_reason=stop_reason if fault is None or stop_reason == "interrupted" else "client_failed",
        records=tuple(sorted(records, key=lambda record: record.sent_at_ns)),
        health=dataclasses.replace(merge_health(healths), fault=fault),
        finished_plays=tuple(
            sorted((play for share in shares for play in share.finished_plays), key=lambda play: play.finished_at_ns)
        ),
    )


async def _until_over(
    job: Job,
    team: _Inside | Crew,
    zero_ns: int,
    settle_end_ns: int,
    on_progress: Callable[[Progress], None] | None,
) -> StopReason:
    reported_at_s = -REPORT_EVERY_S
    while True:
        await asyncio.wait((team.ended,), timeout=CHECK_EVERY_S)
        now, count = time.monotonic_ns() - zero_ns, team.count()
        progress = Progress(
            agents=job.agents,
            elapsed_s=now / 1e9,
            measured_s=max(0, now - settle_end_ns) / 1e9,
            finished_trajectories=count.finished,
            finished_per_agent_min=count.finished_per_agent_min,
            requests=count.requests,
            in_flight=count.in_flight,
        )
        over = phase_over(job.protocol, progress)
        if on_progress is not None and (
            over or team.ended.done() or progress.elapsed_s - reported_at_s >= REPORT_EVERY_S
        ):
            reported_at_s = progress.elapsed_s
            on_progress(
                dataclasses.replace(
                    progress,
                    p25_output_tok_s=at_rank(count.speeds_tok_s, 0.25),
                    p95_ttft_s=at_rank(count.ttfts_s, 0.95),
                )
            )
        if team.ended.done():  # or an agent failed by a fault of the plan, or of ours: `stop` raises it
            return "plays_done"
        if over:
            return "max_phase" if progress.elapsed_s >= job.protocol.max_phase_s else "measured"

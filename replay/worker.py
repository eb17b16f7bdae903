"""The agents of one client process: in this process, or one of several that share a clock and a plan.

One Python process keeps up with about a thousand agents. More take more processes: each is started anew (a fork of
a process with threads, as polars and the power meters have, may hang), loads the plan from a file that its parent
wrote, and drives the agents whose number modulo the number of workers is its own. CLOCK_MONOTONIC is one for
the machine, so all stamp against the zero that the parent gives. Words between them are lines of JSON over pipes;
records go to a spool for each worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from replay.endpoint import Caller, Endpoint
from replay.health import ClientHealth, HealthWatch
from replay.protocol import Protocol
from replay.rules import History
from replay.runner import PlayRunner, Replayable, Track
from replay.spool import Spool
from replay.wire import Timeouts

FILES_PER_AGENT = 4  # a connection for the agent and for a few sub-agents
REPORT_EVERY_S = 0.1
NEW_OBJECTS_TO_COLLECT = 100_000
"""Net of those freed. A thousand agents hold 85,000 that came after the plan."""
LONGEST_LINE_BYTES = 64 * 1024 * 1024


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
class Job:
    """What a trial asks of its client, whichever process does it."""

    plan: Replayable
    endpoint: Endpoint
    agents: int  # of the whole trial
    protocol: Protocol
    trial: int
    draw: int
    history: History
    workers: int
    folder: str  # for spools

    def agents_of(self, worker: int) -> range:
        """The numbers of the agents that one worker drives."""
        return range(worker, self.agents, self.workers)

    def spool_path(self, worker: int) -> Path:
        """Where one worker's records go."""
        return Path(self.folder) / f"records.{worker}.spool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How far a worker is."""

    finished: int
    finished_per_agent_min: int
    requests: int
    in_flight: int
    ttfts_s: tuple[float, ...] = ()  # of the latest requests, for the eye
    speeds_tok_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one worker has to say when it is over; its records are in its spool."""

    finished_plays: tuple[FinishedPlay, ...]
    health: ClientHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Said to a worker process: begin, against this zero."""

    zero_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Said to a worker process: end at the phase's end (ns since the zero), and judge health over the window."""

    window_start_ns: int
    phase_end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What a worker process says; one of these, in a line of JSON."""

    ready: bool = False
    count: Count | None = None
    ended: bool = False  # no agent has anything left to do, or one failed
    share: Share | None = None
    fault: str | None = None  # a fault of the plan or of the environment, as a sentence


class Agents:
    """The agents of one worker, on the loop that runs; a context manager that holds their spool."""

    def __init__(self, job: Job, worker: int, caller: Caller) -> None:
        self._job = job
        self._worker = worker
        self._caller = caller
        self._numbers = job.agents_of(worker)
        raise_file_limit(len(self._numbers) + 64, wanted=len(self._numbers) * FILES_PER_AGENT + 64)
        self._spool = Spool(job.spool_path(worker))
        self._track: Track | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._finished: list[FinishedPlay] = []
        self._finished_per_agent = dict.fromkeys(self._numbers, 0)
        self.ended: asyncio.Future[None] | None = None
        """Done when every play is over, or when an agent failed by a fault of the plan or of ours."""

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def start(self, zero_ns: int) -> None:
        """Begin; the agents' starts are spread from the zero (monotonic ns) on."""
        job, loop = self._job, asyncio.get_running_loop()
        self._track = Track(
            caller=self._caller,
            timeouts=timeouts_of(job.protocol),
            zero_ns=zero_ns,
            watch=HealthWatch(zero_ns, self._caller.transport.unread_bytes),
            spool=self._spool,
            trial=job.trial,
            worker=self._worker,
            history=job.history,
        )
        self._track.watch.start()
        # One future for all agents: waiting for a thousand tasks ten times a second would take the loop's time.
        self.ended = loop.create_future()
        left = len(self._numbers)

        def count(task: asyncio.Task[None]) -> None:
            nonlocal left
            left -= 1
            failed = not task.cancelled() and task.exception() is not None
            if (failed or not left) and self.ended is not None and not self.ended.done():
                self.ended.set_result(None)

        for agent in self._numbers:
            task = loop.create_task(self._agent(self._track, agent))
            task.add_done_callback(count)
            self._tasks.append(task)

    def count(self) -> Count:
        """How far the agents are."""
        assert self._track is not None
        return Count(
            finished=len(self._finished),
            finished_per_agent_min=min(self._finished_per_agent.values()),
            requests=self._spool.count,
            in_flight=self._track.in_flight,
            ttfts_s=self._track.recent.ttfts_s,
            speeds_tok_s=self._track.recent.speeds_tok_s,
        )

    def failed(self) -> bool:
        """Whether the agents ended by a fault, which `stop` then raises."""
        return any(task.done() and not task.cancelled() and task.exception() is not None for task in self._tasks)

    async def stop(self, window_start_ns: int, phase_end_ns: int) -> Share:
        """End every agent and close the spool; health is judged over the window. Raises what an agent raised."""
        assert self._track is not None
        self._track.watch.stop()
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        self._spool.close()
        return Share(
            finished_plays=tuple(self._finished),
            health=self._track.watch.judge(window_start_ns, phase_end_ns),
        )

    async def _agent(self, track: Track, agent: int) -> None:
        job = self._job
        await track.sleep_until(int(agent / job.protocol.ramp_per_s * 1e9))
        plays = job.plan.plays(
            agent,
            agents=job.agents,
            start_offset_turns=job.protocol.start_offset_turns,
            trial=job.trial,
            draw=job.draw,
        )
        not_before_ns = 0
        for play in plays:
            script = job.plan.script(play.session_id)
            if not script.turns:
                raise ValueError(f"session {play.session_id}: its script has no turns")
            runner = PlayRunner(track, play, script, not_before_ns)
            await runner.run()
            not_before_ns = runner.back_off_until_ns
            if runner.failed < runner.sent:
                self._finished_per_agent[agent] += 1
                self._finished.append(
                    FinishedPlay(
                        agent=agent,
                        play=play.play,
                        session_id=play.session_id,
                        first_turn=play.first_turn,
                        started_at_ns=runner.started_at_ns,
                        finished_at_ns=track.now(),
                        requests=runner.sent,
                        failed_requests=runner.failed,
                    )
                )


@contextlib.contextmanager
def quiet_memory() -> Iterator[None]:
    """Keep the garbage collector from stopping the loop.

    It leaves alone what exists now: walking a large plan takes long. And it comes seldom: requests leave it nothing,
    failed ones neither, and each time it would walk what a thousand agents hold (20 to 40 ms).
    """
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS_TO_COLLECT, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def timeouts_of(protocol: Protocol) -> Timeouts:
    """The time-outs of a request's phases."""
    return Timeouts(
        connect_s=protocol.connect_timeout_s,
        first_byte_s=protocol.first_byte_timeout_s,
        idle_s=protocol.idle_timeout_s,
        total_s=protocol.request_timeout_s,
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


class _AloneError(Exception):
    """Whoever started us is gone."""


async def serve(job_file: int, worker: int, out: int) -> None:
    """Be one worker process: read the job from the descriptor `job_file`, take words on stdin, say words on the
    descriptor `out`, until stdin ends."""
    encode = msgspec.json.Encoder().encode

    def say(word: Word) -> None:
        try:
            os.write(out, encode(word) + b"\n")
        except BrokenPipeError:
            raise _AloneError from None

    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    with os.fdopen(job_file, "rb") as file:
        job: Job = pickle.load(file)  # noqa: S301 - our parent wrote it, and gave it to us open
    try:
        async with job.endpoint.connect() as caller:
            with quiet_memory(), Agents(job, worker, caller) as agents:
                say(Word(ready=True))
                line = await orders.readline()
                if not line:  # whoever started us is gone
                    return
                zero_ns = msgspec.json.decode(line, type=Start).zero_ns
                agents.start(zero_ns)
                order = loop.create_task(orders.readline())
                said_end = False
                while not order.done():
                    assert agents.ended is not None
                    waiting: set[asyncio.Future[Any]] = {order} if said_end else {order, agents.ended}
                    await asyncio.wait(waiting, timeout=REPORT_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                    say(Word(count=agents.count()))
                    if agents.ended.done() and not said_end:
                        said_end = True
                        say(Word(ended=True))
                if not order.result():
                    return
                stop = msgspec.json.decode(order.result(), type=Stop)
                await asyncio.sleep(max(0.0, (zero_ns + stop.phase_end_ns - time.monotonic_ns()) / 1e9))
                say(Word(share=await agents.stop(stop.window_start_ns, stop.phase_end_ns)))
    except _AloneError:
        return
    except (ValueError, OSError) as fault:
        say(Word(fault=str(fault)))


def main() -> None:
    """Run as `python -m replay.worker DESCRIPTOR WORKER`."""
    from replay import loop
    from replay.worker import serve  # not this module's, which is named __main__: the job's classes are that one's

    # What anybody prints must not come between the words.
    out = os.dup(1)
    os.dup2(2, 1)
    loop.run(serve(int(sys.argv[1]), int(sys.argv[2]), out))


if __name__ == "__main__":
    main()

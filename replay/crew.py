"""Several worker processes as one client: started, given one zero, counted together, stopped, and missed when they die.

A worker that dies takes its agents out of the trial, so the rest of it measured fewer agents than it says: the trial
is void, with the reason in its health.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Self

import msgspec

from capture.fault import EnvironmentFault
from replay.worker import LONGEST_LINE_BYTES, Count, Job, Share, Start, Stop, Word

READY_WITHIN_S = 300.0
"""A plan of many gigabytes takes a while to load."""
DONE_WITHIN_S = 60.0
GONE_WITHIN_S = 5.0
STOP_LEAD_NS = 100_000_000
"""Workers are told to stop this far ahead, so that they all stop at one time."""


class _Worker:
    """One process and what it has said so far."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.process = process
        self.count = Count(finished=0, finished_per_agent_min=0, requests=0, in_flight=0)
        self.share: Share | None = None
        self.fault: str | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.silent: asyncio.Future[None] = loop.create_future()  # it will say nothing more
        self.listening = loop.create_task(self._listen())

    async def _listen(self) -> None:
        decode = msgspec.json.Decoder(Word).decode
        assert self.process.stdout is not None
        with contextlib.suppress(msgspec.DecodeError, ValueError):
            while line := await self.process.stdout.readline():
                word = decode(line)
                if word.count is not None:
                    self.count = word.count
                self.share = word.share or self.share
                self.fault = word.fault or self.fault
                if word.ready:
                    _set(self.ready)
                if word.ended or word.fault or word.share:
                    _set(self.ended)
                if word.fault or word.share:
                    break
        for future in (self.silent, self.ready, self.ended):
            _set(future)

    def tell(self, order: Start | Stop) -> None:
        """Say a word to the process; one that is gone does not hear it."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def end(self) -> None:
        """End the process, by force where it does not end by itself."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(GONE_WITHIN_S):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        self.listening.cancel()
        await asyncio.gather(self.listening, return_exceptions=True)


class Crew:
    """The worker processes of one trial; an async context manager that leaves none behind."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._workers: list[_Worker] = []
        self._watching: asyncio.Task[None] | None = None
        self.stop_lead_ns = STOP_LEAD_NS
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when every worker is through with its plays, or one of them is gone or at fault."""

    async def __aenter__(self) -> Self:
        path = Path(self._job.folder) / "job.pickle"
        try:
            with contextlib.ExitStack() as stack:
                _write_privately(path, self._job)
                stack.callback(path.unlink, missing_ok=True)
                for number in range(self._job.workers):
                    # Open files, not their name: nobody can put another file there, and a client that is killed while
                    # its workers load leaves none.
                    file = stack.enter_context(path.open("rb"))
                    self._workers.append(_Worker(number, await _start(file.fileno(), number)))
            await self._all_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(worker.end() for worker in self._workers))

    async def _all_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await asyncio.gather(*(asyncio.shield(worker.ready) for worker in self._workers))
        except TimeoutError:
            raise EnvironmentFault(f"the client's processes were not ready after {READY_WITHIN_S:g} s") from None
        self._raise_fault()
        for worker in self._workers:
            if worker.silent.done():
                await worker.process.wait()
                raise EnvironmentFault(f"{self._epitaph(worker)} before the trial began")

    def start(self, zero_ns: int) -> None:
        """Begin, against a zero (monotonic ns)."""
        for worker in self._workers:
            worker.tell(Start(zero_ns=zero_ns))
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        left = {worker.ended: worker for worker in self._workers}
        while left:
            done, _ = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            over = [left.pop(future) for future in done]
            if any(worker.silent.done() for worker in over):
                break
        _set(self.ended)

    def count(self) -> Count:
        """How far the workers are together."""
        counts = [worker.count for worker in self._workers]
        return Count(
            finished=sum(count.finished for count in counts),
            finished_per_agent_min=min(count.finished_per_agent_min for count in counts),
            requests=sum(count.requests for count in counts),
            in_flight=sum(count.in_flight for count in counts),
            ttfts_s=tuple(value for count in counts for value in count.ttfts_s),
            speeds_tok_s=tuple(value for count in counts for value in count.speeds_tok_s),
        )

    async def stop(self, window_start_ns: int, phase_end_ns: int) -> tuple[tuple[Share, ...], str | None]:
        """End the trial; what each worker that lives has to say, and why one does not. Raises the plan's faults."""
        for worker in self._workers:
            worker.tell(Stop(window_start_ns=window_start_ns, phase_end_ns=phase_end_ns))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DONE_WITHIN_S):
                await asyncio.gather(*(asyncio.shield(worker.silent) for worker in self._workers))
        self._raise_fault()
        reasons = []
        for worker in self._workers:
            if worker.share is None:
                if worker.silent.done():
                    await worker.process.wait()
                    reasons.append(self._epitaph(worker))
                else:
                    reasons.append(f"{self._name(worker)} did not end within {DONE_WITHIN_S:g} s")
        shares = tuple(worker.share for worker in self._workers if worker.share is not None)
        return shares, "; ".join(reasons) or None

    def _raise_fault(self) -> None:
        fault = next((worker.fault for worker in self._workers if worker.fault is not None), None)
        if fault is not None:
            raise ValueError(fault)

    def _name(self, worker: _Worker) -> str:
        return f"client process {worker.number + 1} of {len(self._workers)}"

    def _epitaph(self, worker: _Worker) -> str:
        code = worker.process.returncode
        how = f"exit status {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        return f"{self._name(worker)} ended by {how}"


def _write_privately(path: Path, job: Job) -> None:
    """A file for its owner alone: the plan in it holds the text of sessions."""
    path.unlink(missing_ok=True)  # of a client that was killed
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        pickle.dump(job, file, protocol=pickle.HIGHEST_PROTOCOL)


async def _start(job: int, number: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "replay.worker", str(job), str(number)),
        pass_fds=(job,),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LONGEST_LINE_BYTES,
        # Idle threads of numpy's linear algebra, which nobody here uses, would spin on cores that are measured with.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is the parent's: it stops its workers and keeps what they recorded
    )


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

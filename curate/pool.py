"""Shards of work run by processes of this machine, in order, with few of them in memory at once."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection

from curate.receipts import ShardReceipt
from curate.shard import ShardTask, build_shard

_QUEUED = 1  # tasks that wait beside those that run


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of its work, most likely for want of memory."""


def run_shards(tasks: Iterable[ShardTask], jobs: int) -> Iterator[ShardReceipt]:
    """Receipts in the order of the tasks. A single task, or one job, needs no process beside this one.

    Raises WorkerDied; whatever ends the caller's loop, Ctrl-C too, ends the workers at once.
    """
    tasks = iter(tasks)
    first = next(tasks, None)
    if first is None:
        return
    second = next(tasks, None) if jobs > 1 else None
    if second is None:
        yield build_shard(first)
        del first
        for task in tasks:
            yield build_shard(task)
        return
    yield from _in_processes(_chained(first, second, tasks), jobs)


def _chained(first: ShardTask, second: ShardTask, rest: Iterator[ShardTask]) -> Iterator[ShardTask]:
    yield first
    yield second
    yield from rest


def _in_processes(tasks: Iterator[ShardTask], jobs: int) -> Iterator[ShardReceipt]:
    # Spawned: a fork would copy the threads of a progress bar in an unknown state.
    context = multiprocessing.get_context("spawn")
    stop, stopper = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(stop,))
    waiting: deque[Future[ShardReceipt]] = deque()
    try:
        for task in tasks:
            with _no_interrupt():
                waiting.append(pool.submit(build_shard, task))
            del task
            while len(waiting) >= jobs + _QUEUED:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as fault:
        raise WorkerDied(
            "a worker process was killed in the middle of its shard, most likely because memory ran out; "
            "the shards that are done stay: run the same command again, with fewer --jobs"
        ) from fault
    except BaseException:
        stopper.close()  # at once, rather than at the end of a shard that nobody waits for
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        stopper.close()
        stop.close()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: they inherit that, and say nothing of one that comes as they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(stop: Connection) -> None:
    """Leave Ctrl-C to the parent, and end when it does or says so: a worker would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_when_told() -> None:
        multiprocessing.connection.wait([stop, *(() if parent is None else (parent.sentinel,))])
        os._exit(1)

    threading.Thread(target=end_when_told, daemon=True).start()

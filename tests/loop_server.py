"""A server of a test in a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def running_on_loopback(serve: Serve, *, port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Accepts connections until the block ends, and then ends what still runs; gives its port. `port` 0: a free one."""
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    listening: list[int] = []

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
        listening.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    started.wait(10)
    try:
        yield listening[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()

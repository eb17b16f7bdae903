"""The event loop that replays run on: uvloop where it is installed, asyncio's own elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


def run[T](main: Coroutine[object, object, T]) -> T:
    """Run a coroutine to its end on the fastest loop at hand; Ctrl-C cancels it, as under `asyncio.run`."""
    try:
        import uvloop
    except ImportError:  # uvloop has no Windows wheel
        return asyncio.run(main)
    return uvloop.run(main)

"""Restarting the server between trials by a command of the user's, so that an interval holds what a restart changes."""

from __future__ import annotations

import asyncio
import time

import httpx
import msgspec

from capture.fault import EnvironmentFault
from replay import loop
from replay.endpoint import Endpoint
from replay.trial import Restart
from replay.user_command import run_command

COMMAND_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 1800.0
REQUEST_TIMEOUT_S = 60.0
POLL_S = 0.5


def restart(
    words: tuple[str, ...],
    endpoint: Endpoint,
    *,
    command_timeout_s: float = COMMAND_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> Restart:
    """Runs the command and waits until every server answers a request; raises EnvironmentFault.

    The command runs without a shell. It must end with exit code 0 once the old server is gone, and leave the new one
    starting in the background.
    """
    began = time.monotonic()
    run_command(
        words,
        "restart",
        timeout_s=command_timeout_s,
        advice=": it must leave the server in the background and end",
    )
    ended = time.monotonic()
    loop.run(_until_all_answer(endpoint, ended + answer_timeout_s, answer_timeout_s))
    return Restart(command_s=ended - began, answered_s=time.monotonic() - ended)


async def _until_all_answer(endpoint: Endpoint, deadline: float, limit_s: float) -> None:
    for server, url in enumerate(endpoint.urls):
        while (problem := await _problem(endpoint, server)) is not None:
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"the server at {url} did not answer within {limit_s:g} s after its restart: {problem}"
                )
            await asyncio.sleep(POLL_S)


async def _problem(endpoint: Endpoint, server: int) -> str | None:
    """Why a server does not work yet. A model list is no sign: some give it while weights are still loading."""
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    try:
        async with endpoint.connect() as caller:
            response = await caller.post(
                "/v1/chat/completions", msgspec.json.encode(body), timeout_s=REQUEST_TIMEOUT_S, server=server
            )
    except httpx.HTTPError as fault:
        return str(fault) or type(fault).__name__
    return None if response.status_code == 200 else f"HTTP {response.status_code}"

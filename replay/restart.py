"""Restarting the server between trials by a command of the user's, so that an interval holds what a restart changes."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import tempfile
import time

import httpx
import msgspec

from capture.fault import EnvironmentFault
from replay import loop
from replay.endpoint import Endpoint
from replay.trial import Restart

COMMAND_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 1800.0
REQUEST_TIMEOUT_S = 60.0
POLL_S = 0.5
TAIL_CHARACTERS = 300


def command_words(command: str) -> tuple[str, ...]:
    """A command's words as a shell would cut them; raises ValueError with a sentence."""
    try:
        words = tuple(shlex.split(command))
    except ValueError as fault:
        raise ValueError(f"--restart-cmd {command!r} is not a command: {fault}") from fault
    if not words:
        raise ValueError("--restart-cmd is empty: name the command that restarts the server")
    return words


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
    name = words[0]
    # What it prints goes to a file: a server that keeps a pipe open would never let the command end. It gets a session
    # of its own, so that Ctrl-C here does not end the server that it starts.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=command_timeout_s,
                check=False,
                start_new_session=True,
            )
        except FileNotFoundError as fault:
            raise EnvironmentFault(f"the restart command {name!r} does not exist") from fault
        except OSError as fault:
            raise EnvironmentFault(f"the restart command {name!r} cannot be run: {fault.strerror or fault}") from fault
        except subprocess.TimeoutExpired as fault:
            raise EnvironmentFault(
                f"the restart command {name!r} did not end within {command_timeout_s:g} s: it must leave the server in "
                "the background and end"
            ) from fault
        if done.returncode != 0:
            output.seek(0)
            tail = output.read().decode(errors="replace").strip()[-TAIL_CHARACTERS:]
            raise EnvironmentFault(f"the restart command {name!r} failed with exit code {done.returncode}: {tail}")
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

"""A command of the user's that changes what is measured: cut into words, run without a shell, named where it fails."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import PurePath
from typing import IO

from capture.fault import EnvironmentFault
from curate.words import printable

TAIL_CHARACTERS = 300
END_WITHIN_S = 5.0
"""Of a command that is told to end."""


def command_words(command: str, option: str) -> tuple[str, ...]:
    """A command's words as a shell would cut them; raises ValueError with a sentence that names the option.

    It quotes nothing: any word may be a key.
    """
    try:
        words = tuple(shlex.split(command))
    except ValueError as fault:
        raise ValueError(f"{option} is not a command: {fault}") from fault
    if not words:
        raise ValueError(f"{option} is empty: name the command")
    if "=" in words[0]:
        raise ValueError(f"{option} begins with an assignment, and no shell reads it: export the variable instead")
    return words


def program_name(words: Sequence[str]) -> str:
    """What may be said and kept of a command: its program, without the folders before it."""
    return printable(PurePath(words[0]).name)


def run_command(words: Sequence[str], called: str, *, timeout_s: float, advice: str = "") -> None:
    """Runs the command to its end with exit code 0; raises EnvironmentFault naming it as it is `called`.

    What it prints goes to a file: a process that it leaves behind and that keeps a pipe open would never let it end. It
    gets a session of its own, so that Ctrl-C reaches neither what it left behind nor half of what it started. Where it
    takes too long, or is interrupted, all of it is ended before this returns: what is done next is not undone by it.
    """
    name = f"the {called} command {program_name(words)!r}"
    with tempfile.TemporaryFile() as output:
        try:
            code = _run(words, output, timeout_s)
        except FileNotFoundError as fault:
            raise EnvironmentFault(f"{name} does not exist") from fault
        except (OSError, ValueError) as fault:
            raise EnvironmentFault(f"{name} cannot be run: {getattr(fault, 'strerror', None) or fault}") from fault
        except subprocess.TimeoutExpired as fault:
            raise EnvironmentFault(f"{name} did not end within {timeout_s:g} s{advice}") from fault
        if code != 0:
            output.seek(max(0, output.seek(0, os.SEEK_END) - 4 * TAIL_CHARACTERS))
            tail = output.read().decode(errors="replace").strip()[-TAIL_CHARACTERS:]
            raise EnvironmentFault(f"{name} failed with exit code {code}: {printable(tail)}")


def _run(words: Sequence[str], output: IO[bytes], timeout_s: float) -> int:
    child = subprocess.Popen(
        list(words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return child.wait(timeout_s)
    except BaseException:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # of another user, as behind sudo
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_WITHIN_S)
        raise

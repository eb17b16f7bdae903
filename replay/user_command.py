"""A command of the user's that changes what is measured: cut into words, run without a shell, named where it fails."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Sequence

from capture.fault import EnvironmentFault
from curate.words import printable

TAIL_CHARACTERS = 300


def command_words(command: str, option: str) -> tuple[str, ...]:
    """A command's words as a shell would cut them; raises ValueError with a sentence that names the option."""
    try:
        words = tuple(shlex.split(command))
    except ValueError as fault:
        raise ValueError(f"{option} {command!r} is not a command: {fault}") from fault
    if not words:
        raise ValueError(f"{option} is empty: name the command")
    return words


def run_command(words: Sequence[str], called: str, *, timeout_s: float, advice: str = "") -> None:
    """Runs the command to its end with exit code 0; raises EnvironmentFault naming it as it is `called`.

    What it prints goes to a file: a process that it leaves behind and that keeps a pipe open would never let it end. It
    gets a session of its own, so that Ctrl-C here ends neither it nor what it starts.
    """
    name = f"the {called} command {printable(words[0])!r}"
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=timeout_s,
                check=False,
                start_new_session=True,
            )
        except FileNotFoundError as fault:
            raise EnvironmentFault(f"{name} does not exist") from fault
        except OSError as fault:
            raise EnvironmentFault(f"{name} cannot be run: {fault.strerror or fault}") from fault
        except subprocess.TimeoutExpired as fault:
            raise EnvironmentFault(f"{name} did not end within {timeout_s:g} s{advice}") from fault
        if done.returncode != 0:
            output.seek(0)
            tail = output.read().decode(errors="replace").strip()[-TAIL_CHARACTERS:]
            raise EnvironmentFault(f"{name} failed with exit code {done.returncode}: {printable(tail)}")

"""Runs an agent as the shell would: the terminal in its hands, its signals and its exit code passed through.

On a terminal the agent gets a process group of its own in the foreground: Ctrl-C, Ctrl-\\ and changes of the window go
to it alone, and when it stops (Ctrl-Z) so do we, so that the shell's `fg` and `bg` work on both. Where our stdin is no
terminal the agent stays in our group: nothing is taken from whoever else uses that terminal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
_FG_UNDER_WAY_S = 0.5  # longer than a shell on a busy machine takes to hand its terminal over


class CannotRun(OSError):
    """The command is not there, or is no program."""


def run_on_terminal(
    command: Sequence[str], environment: Mapping[str, str], *, running: Callable[[], None] = lambda: None
) -> int:
    """Run a command to its end; its exit code, 128 + n where signal n ended it. CannotRun where it cannot be started.

    `running` is called once it runs. On Linux the command is sent SIGTERM should this process be killed.
    """
    hand = _Hand.of_stdin()
    agent = _Agent(hand)
    before = {number: signal.getsignal(number) for number in (*_PASSED_ON, signal.SIGINT, signal.SIGQUIT)}
    try:
        # Handlers before the start: nothing may get between the agent's start and our readiness for its signals.
        # An exec sets handlers back to the default, and what was ignored stays ignored.
        for number in before:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, agent.on_signal)
        agent.start(command, environment)
        if hand is not None:
            before[signal.SIGCONT] = signal.signal(signal.SIGCONT, agent.on_continue)
        running()
        return agent.wait()
    finally:
        if hand is not None:
            hand.take_back(agent.pid)
        for number, handler in before.items():
            signal.signal(number, handler)
        if hand is not None:
            hand.close()


@dataclass(slots=True)
class _Hand:
    """The terminal, as far as it is ours to give."""

    terminal: int
    group: int
    modes: list[Any]

    @classmethod
    def of_stdin(cls) -> _Hand | None:
        """None where stdin is no terminal, or another process group has it."""
        with suppress(OSError, termios.error):
            if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
                terminal = os.dup(0)
                os.set_inheritable(terminal, False)
                return cls(terminal=terminal, group=os.getpgrp(), modes=termios.tcgetattr(terminal))
        return None

    def give(self, group: int) -> bool:
        """Put a process group into the foreground if ours is there; whether it is there now."""
        with suppress(OSError):
            there = os.tcgetpgrp(self.terminal)
            if there == self.group:
                self._put(group)
            return there in (self.group, group)
        return False

    def take_back(self, group: int) -> None:
        """Put ours into the foreground if `group` is there."""
        with suppress(OSError):
            if os.tcgetpgrp(self.terminal) == group:
                self._put(self.group)

    def restore_modes(self) -> None:
        """Undo raw mode and the like, left by an agent that was killed."""
        with suppress(OSError, termios.error):
            termios.tcsetattr(self.terminal, termios.TCSADRAIN, self.modes)

    def close(self) -> None:
        os.close(self.terminal)

    def _put(self, group: int) -> None:
        # From the background this call raises SIGTTOU, which would stop us.
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            os.tcsetpgrp(self.terminal, group)
        finally:
            signal.signal(signal.SIGTTOU, before)


class _Agent:
    """The child process."""

    def __init__(self, hand: _Hand | None) -> None:
        self.pid = 0
        self._hand = hand
        self._early: list[int] = []
        self._continued = False
        self._has_terminal = _has_controlling_terminal()

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        before_exec = _before_exec(self._hand)
        try:
            process = subprocess.Popen(command, env=environment, preexec_fn=before_exec)
        except FileNotFoundError as fault:
            raise CannotRun(f"{command[0]}: not found; is it installed and on PATH?") from fault
        except OSError as fault:
            raise CannotRun(f"{command[0]}: {fault.strerror or fault}") from fault
        process.returncode = 0  # we wait for it ourselves, to see it stop as well as end
        self.pid = process.pid
        for number in self._early:
            self.on_signal(number, None)

    def wait(self) -> int:
        while True:
            _, status = os.waitpid(self.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                self._stop_too(os.WSTOPSIG(status))
            elif os.WIFSIGNALED(status):
                if self._hand is not None:
                    self._hand.take_back(self.pid)
                    self._hand.restore_modes()
                return 128 + os.WTERMSIG(status)
            else:
                return os.WEXITSTATUS(status)

    def on_signal(self, number: int, _: FrameType | None) -> None:
        if not self.pid:
            self._early.append(number)
            return
        if number in (signal.SIGINT, signal.SIGQUIT) and self._hand is None and self._has_terminal:
            return  # the terminal sent it to our whole group, the agent included
        with suppress(ProcessLookupError):
            if number == signal.SIGHUP and self._hand is not None:
                os.killpg(self.pid, number)  # as a terminal that hangs up does to all of a group
            else:
                os.kill(self.pid, number)

    def on_continue(self, _: int, __: FrameType | None) -> None:
        self._continued = True
        if self._hand is not None:
            self._hand.give(self.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGCONT)

    def _stop_too(self, reason: int) -> None:
        if self._hand is None:
            return  # the terminal, or whoever stopped it, is not ours to answer for
        if reason in (signal.SIGTTIN, signal.SIGTTOU) and self._is_handed(self._hand):
            self.on_continue(signal.SIGCONT, None)  # it asked for the terminal and then `fg` brought it
            return
        self._hand.take_back(self.pid)
        self._continued = False
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        try:
            os.killpg(self._hand.group, signal.SIGTSTP)  # with whatever else is in the shell's job
        finally:
            signal.signal(signal.SIGTSTP, before)  # runs the handler of the SIGCONT that brought us here
        if not self._continued:  # no shell could have continued us, so the system did not stop us
            self.on_continue(signal.SIGCONT, None)

    def _is_handed(self, hand: _Hand) -> bool:
        """Whether the terminal is the agent's now, or within a moment.

        An `fg` under way sends a job that it believes to run no SIGCONT, so stopping would throw the job out again.
        """
        deadline = time.monotonic() + _FG_UNDER_WAY_S
        while not hand.give(self.pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True


def _has_controlling_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _before_exec(hand: _Hand | None) -> Callable[[], None]:
    """What the child does before it becomes the agent."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
        if hand is not None:
            os.setpgid(0, 0)
            # Done by the child itself, or it could read before the terminal is its own, and be stopped.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(hand.terminal, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)

    return prepare

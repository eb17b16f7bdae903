"""A command of the user's that prints power lines: `command:PROGRAM ARGUMENT…`, for whatever no other source reads.

What goes wrong with it is a state by name, said in the notes of the source:

- `ended`: it closed its output or died. `garbled`: it printed what is no power line. `flooded`: it printed more than
  is read. From then on its devices are `lost`.
- `silent`: it has printed nothing for max(3 s, 5 periods). Its devices have an `error` reading, and go on once it does.

Its words and what it prints on stderr may hold keys: neither is kept anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

from curate.words import printable
from replay.power.lines import PowerLines, unix_offset_ns
from replay.power.relayed import Silence, as_one
from replay.power.source import PowerFault, PowerSample, SourceInfo

START_S = 10.0
"""Until its first line is there."""
STOP_S = 1.0
SILENT_S = 3.0
SETTLE_S = 2.0
"""Programs print what they measured a moment ago."""
MOST_BYTES_PER_S = 4_000_000
MOST_LINES_PER_S = 20_000
MOST_WAITING = 100_000
"""Readings that nobody has taken yet."""
_CHUNK = 65_536
_TAIL = 300

_running: set[CommandSource] = set()

type CommandState = Literal["running", "silent", "ended", "garbled", "flooded"]


class CommandSource:
    """Runs a command without a shell, in a session of its own, and reads what it prints until it is closed.

    Raises PowerFault where it does not start, or prints no first line within `start_s` seconds.
    """

    def __init__(self, words: Sequence[str], *, start_s: float = START_S) -> None:
        self._name = f"command:{printable(PurePath(words[0]).name)}"
        self._lines = PowerLines(f"what {self._name} printed", kind="command")
        self._waiting: deque[PowerSample] = deque()
        self._state: CommandState = "running"
        self._why = ""
        self._fault = ""
        self._stderr = b""
        self._ready = threading.Event()
        self._heard_ns = time.monotonic_ns()
        try:
            self._child = subprocess.Popen(
                tuple(words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is ours to answer
            )
        except FileNotFoundError as fault:
            raise PowerFault(f"{self._name} does not exist: name a program that is there") from fault
        except (OSError, ValueError) as fault:
            raise PowerFault(f"{self._name} cannot be run: {getattr(fault, 'strerror', None) or fault}") from fault
        _running.add(self)
        self._threads = (
            threading.Thread(target=self._listen, name="power-command", daemon=True),
            threading.Thread(target=self._overhear, name="power-command-stderr", daemon=True),
        )
        for thread in self._threads:
            thread.start()
        try:
            self._info = self._described(start_s)
            self._known = frozenset(device.uid for device in self._info.devices)
            self._silence = Silence(self._info)
            self._told = False
        except BaseException:
            self.close()
            raise

    def describe(self) -> SourceInfo:
        if self._state == "running":
            return self._info
        notes = (*self._info.notes, f"{self._name} is {self._state}{self._why}")
        return dataclasses.replace(self._info, notes=notes)

    def read(self) -> list[PowerSample]:
        samples = []
        state = self._state  # before the rest is taken: what ends it has put its last readings there already
        while self._waiting:
            sample = self._waiting.popleft()
            if sample.device in self._known:
                self._silence.saw(sample)
                samples.append(sample)
        if state in ("ended", "garbled", "flooded"):
            if not self._told:
                self._told = True
                samples += self._silence.samples("lost", time.monotonic_ns())
        elif state == "running":
            now_ns = time.monotonic_ns()
            if now_ns - self._heard_ns > max(SILENT_S, 5 * self._info.period_s) * 1e9:
                self._state = "silent"
                samples += self._silence.samples("error", now_ns)
        return samples

    def close(self) -> None:
        _running.discard(self)
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._kill(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_S)
        ended = [thread for thread in self._threads if _joined(thread)]
        # A grandchild in a session of its own may hold a pipe open: its reader ends with this process.
        if len(ended) == len(self._threads):
            for pipe in (self._child.stdout, self._child.stderr):
                if pipe is not None:
                    pipe.close()

    def _described(self, start_s: float) -> SourceInfo:
        if not self._ready.wait(start_s):
            raise PowerFault(f"{self._name} printed no first power line within {start_s:g} s: try it by hand")
        infos = self._lines.infos
        if infos is None:
            self._threads[1].join(STOP_S)
            tail = printable(self._stderr.decode("utf-8", "replace").strip())[-_TAIL:]
            raise PowerFault(
                f"{self._name} is no power source{self._fault or self._why}{f'; it says: {tail}' if tail else ''}"
            )
        return as_one(infos, kind="command", name=self._name, place=self._name, settle_s=SETTLE_S)

    def _listen(self) -> None:
        assert self._child.stdout is not None
        second_ns, read, ended = time.monotonic_ns(), 0, 0
        try:
            while data := os.read(self._child.stdout.fileno(), _CHUNK):
                now_ns, offset_ns = time.monotonic_ns(), unix_offset_ns()
                if now_ns - second_ns > 1_000_000_000:
                    second_ns, read, ended = now_ns, 0, 0
                read, ended = read + len(data), ended + data.count(b"\n")
                if read > MOST_BYTES_PER_S or ended > MOST_LINES_PER_S or len(self._waiting) > MOST_WAITING:
                    self._end("flooded", ": it prints more than is read")
                    return
                for sample in self._lines.feed(data, now_unix_ns=now_ns + offset_ns):
                    self._waiting.append(dataclasses.replace(sample, t_ns=sample.t_ns - offset_ns))
                    self._heard_ns = now_ns
                    if self._state == "silent":
                        self._state = "running"
                if self._lines.infos is not None:
                    self._ready.set()
        except PowerFault as fault:
            self._fault = f": {fault}"  # it quotes the line: for the terminal, not for a file
            self._end("garbled", f": line {self._lines.line} is no power line")
        else:
            self._end("ended", self._how_it_ended())

    def _end(self, state: CommandState, why: str) -> None:
        self._why = why  # before the state: another thread reads both
        self._state = state
        self._ready.set()
        if state != "ended":
            self._kill(signal.SIGTERM)

    def _kill(self, number: signal.Signals) -> None:
        """Ends the command and what it started, while its process id is still its own."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    def _how_it_ended(self) -> str:
        try:
            code = self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return ": it closed its output"
        return f" with exit code {code}" if code >= 0 else f" by signal {-code}"

    def _overhear(self) -> None:
        """Keeps the last of stderr, so that a command which does not start can say why."""
        assert self._child.stderr is not None
        while data := os.read(self._child.stderr.fileno(), _CHUNK):
            self._stderr = (self._stderr + data)[-4 * _TAIL :]


def end_all() -> None:
    """Ends every command that was not closed: for a process that ends while one of them is still starting."""
    for source in tuple(_running):
        source.close()


def _joined(thread: threading.Thread) -> bool:
    thread.join(STOP_S)
    return not thread.is_alive()

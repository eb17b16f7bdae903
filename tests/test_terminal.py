"""The terminal in the agent's hands: pseudo-terminals, a real shell with job control, signals, exit codes."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.sse_upstream import agentdyno

OWN = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
LAUNCH = """
import os, sys
from capture.terminal import run_on_terminal
sys.exit(run_on_terminal([sys.executable, sys.argv[1]], dict(os.environ)))
"""
# Says what it gets; SIGINT and SIGWINCH do not end it.
AGENT = """
import fcntl, os, select, signal, struct, sys, termios
def say(text): os.write(1, (text + "\\n").encode())
def size(*_):
    rows, columns = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\\0" * 8))[:2]
    say(f"size {rows}x{columns}")
signal.signal(signal.SIGINT, lambda *_: say("got SIGINT"))
signal.signal(signal.SIGWINCH, size)
signal.signal(signal.SIGCONT, lambda *_: say("got SIGCONT"))
say(f"foreground {os.tcgetpgrp(0) == os.getpgrp()} own-group {os.getpgrp() == os.getpid()}")
while True:
    while not select.select([0], [], [], 0.05)[0]:
        pass  # a handler runs between calls: one that blocks might begin just after its signal
    line = sys.stdin.readline().strip()
    if not line or line.startswith("exit "):
        sys.exit(int(line[5:] or 0) if line else 0)
    if line == "die": os.kill(os.getpid(), signal.SIGTERM)
    if line == "raw":
        import tty
        tty.setraw(0)
        os.kill(os.getpid(), signal.SIGKILL)
    say(f"read {line}")
"""


@dataclass
class Terminal:
    """The far side of a pseudo-terminal, and the process on its near side."""

    descriptor: int
    pid: int
    seen: str = ""
    at: int = field(default=0)

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def expect(self, pattern: str, within_s: float = 20.0) -> re.Match[str]:
        """Wait for words after those that were waited for before."""
        deadline = time.monotonic() + within_s
        while (found := re.search(pattern, self.seen[self.at :])) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen[self.at :]!r}"
            if select.select([self.descriptor], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.descriptor, 4096).decode(errors="replace")
                except OSError:  # the other side is closed
                    assert re.search(pattern, self.seen[self.at :]), f"ended without {pattern!r}: {self.seen!r}"
        self.at += found.end()
        return found

    def wait(self) -> int:
        """Exit code as a shell would show it."""
        deadline = time.monotonic() + 30
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            assert time.monotonic() < deadline
            if select.select([self.descriptor], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.descriptor, 4096).decode(errors="replace")
                except OSError:
                    time.sleep(0.01)


@contextmanager
def terminal(command: list[str], folder: Path) -> Iterator[Terminal]:
    # A process of one thread that lets the shell begin: pytest's own may have several.
    starter = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"
    far, near = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", starter, *command],
        stdin=near, stdout=near, stderr=near, close_fds=True, start_new_session=True, cwd=folder,
        env={**OWN, "PS1": "$ ", "HISTFILE": "", "TERM": "dumb"},
    )  # fmt: skip
    os.close(near)
    opened = Terminal(far, process.pid)
    try:
        yield opened
    finally:
        if opened.pid:
            os.killpg(opened.pid, signal.SIGKILL)
            process.wait()
        process.returncode = 0
        os.close(far)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "agent.py"
    path.write_text(AGENT)
    (tmp_path / "launch.py").write_text(LAUNCH)
    return path


def start(folder: Path) -> list[str]:
    return [sys.executable, str(folder / "launch.py"), str(folder / "agent.py")]


def test_the_agent_has_the_terminal_and_ctrl_c_is_its_own(tmp_path: Path, agent: Path) -> None:
    with terminal(start(tmp_path), tmp_path) as screen:
        screen.expect("foreground True own-group True")
        screen.type("\x03")
        screen.expect("got SIGINT")
        screen.type("hello\n")
        screen.expect("read hello")
        screen.type("exit 7\n")
        assert screen.wait() == 7


def test_a_changed_window_reaches_it(tmp_path: Path, agent: Path) -> None:
    with terminal(start(tmp_path), tmp_path) as screen:
        screen.expect("foreground True")
        termios.tcsetwinsize(screen.descriptor, (31, 97))
        screen.expect("size 31x97")
        screen.type("\x04")
        assert screen.wait() == 0


def test_where_no_shell_could_continue_it_ctrl_z_does_not_hang(tmp_path: Path, agent: Path) -> None:
    with terminal(start(tmp_path), tmp_path) as screen:
        screen.expect("foreground True")
        screen.type("\x1a")
        screen.expect("got SIGCONT")
        screen.type("still here\n")
        screen.expect("read still here")
        screen.type("exit 0\n")
        assert screen.wait() == 0


def test_a_shell_can_stop_and_continue_it(tmp_path: Path, agent: Path) -> None:
    with terminal(["bash", "--norc", "--noprofile", "-i"], tmp_path) as screen:
        screen.expect(r"\$ ")
        screen.type(f"{sys.executable} launch.py agent.py\n")
        screen.expect("foreground True own-group True")
        screen.type("\x1a")
        screen.expect("Stopped")
        screen.type("echo shell-$((40+2))\n")
        screen.expect("shell-42")
        screen.type("fg\n")
        screen.expect("got SIGCONT")
        screen.type("after\n")
        screen.expect("read after")
        screen.type("\x1a")
        screen.expect("Stopped")
        screen.type("bg\n")
        screen.expect("got SIGCONT")
        screen.type("fg\n")
        screen.type("again\n")
        screen.expect("read again")
        screen.type("exit 5\n")
        screen.expect(r"\$ ")
        screen.type("echo code-$?\n")
        screen.expect("code-5")
        # The terminal is the shell's again: its Ctrl-C ends what it runs.
        screen.type("sh -c 'echo $((50+1)); exec cat'\n")
        screen.expect("51")
        screen.type("\x03")
        screen.expect(r"\$ ")
        screen.type("echo interrupted-$?\n")
        screen.expect("interrupted-130")


def test_an_interactive_shell_as_the_agent_has_its_own_job_control(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(LAUNCH.replace("[sys.executable, sys.argv[1]]", "sys.argv[1:]"))
    (tmp_path / "child.py").write_text(
        "import os, signal, time\n"
        # Written at once: print inside a handler is not reentrant.
        "signal.signal(signal.SIGCONT, lambda *_: os.write(1, b'61\\n'))\n"
        "print(50 + 1, flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    command = [sys.executable, "launch.py", "bash", "--norc", "--noprofile", "-i"]
    with terminal(command, tmp_path) as screen:
        screen.expect(r"\$ ")
        screen.type(f"{sys.executable} child.py\n")
        screen.expect("51")
        screen.type("\x1a")
        screen.expect("Stopped")
        screen.type("fg\n")
        screen.expect("61")
        screen.type("\x03")
        screen.expect(r"\$ ")
        screen.type("exit 9\n")
        assert screen.wait() == 9, screen.seen


def test_a_killed_agent_leaves_a_usable_terminal(tmp_path: Path, agent: Path) -> None:
    with terminal(["bash", "--norc", "--noprofile"], tmp_path) as screen:
        screen.type(f"{sys.executable} launch.py agent.py; echo code-$?; stty -a | grep -o '[-]*icanon'\n")
        screen.expect("foreground True")
        screen.type("raw\n")
        screen.expect(r"code-137\s+icanon")


@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(255)", 255), ("os.kill(os.getpid(), 9)", 137), ("os.abort()", 134), ("pass", 0)]
)
def test_exit_codes_and_signals_pass_through_without_a_terminal(tmp_path: Path, ending: str, code: int) -> None:
    (tmp_path / "launch.py").write_text(LAUNCH)
    words = "import os, sys; sys.stdout.write(sys.stdin.read().upper()); sys.stdout.flush(); "
    (tmp_path / "agent.py").write_text(words + ending)
    done = subprocess.run(start(tmp_path), input="through", text=True, capture_output=True, timeout=60, env=OWN)
    assert (done.returncode, done.stdout) == (code, "THROUGH")


def test_sigterm_is_passed_on_and_the_agent_decides(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(LAUNCH)
    (tmp_path / "agent.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(21))\n"
        # Not print: the signal may come while the line before it is still being printed.
        "signal.signal(signal.SIGHUP, lambda *_: os.write(1, b'hup\\n'))\n"
        "os.write(1, b'up\\n')\n"
        "while True: time.sleep(0.05)\n"
    )
    process = subprocess.Popen(start(tmp_path), stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
                               env=OWN)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "hup\n"
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(30) == 21


def test_one_ctrl_c_too_many_costs_neither_summary_nor_exit_code(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(3))\n"
        "print('agent-up', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = agentdyno("capture", "run", "--store", str(tmp_path / "s"), "--upstream", "http://127.0.0.1:1", "--")
    with terminal([*command, sys.executable, "agent.py"], tmp_path) as screen:
        screen.expect("agent-up")
        for _ in range(3):
            screen.type("\x03")
            time.sleep(0.1)
        screen.expect("0 exchanges, 0 model calls")
        assert screen.wait() == 3

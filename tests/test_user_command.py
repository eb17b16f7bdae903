"""Commands of the user's: cut into words, run without a shell, named where they fail."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from capture.fault import EnvironmentFault
from replay.user_command import command_words, run_command


def test_a_command_is_cut_into_words_as_a_shell_does() -> None:
    assert command_words("systemctl restart 'my model'", "--restart-cmd") == ("systemctl", "restart", "my model")
    for text in ("", "'open"):
        with pytest.raises(ValueError, match="--power-cap-cmd"):
            command_words(text, "--power-cap-cmd")


@pytest.mark.parametrize("text", ["cap --key s-1 '", "TOKEN=s-1 cap {watts}"])
def test_what_is_no_command_is_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="--power-cap-cmd") as fault:
        command_words(text, "--power-cap-cmd")
    assert "s-1" not in str(fault.value)


@pytest.mark.parametrize("ended_by", ["time", "ctrl-c"])
def test_one_that_is_given_up_leaves_nothing_at_work(ended_by: str, tmp_path: Path) -> None:
    words = ("sh", "-c", f"sleep 600 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait")

    def interrupt() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    if ended_by == "ctrl-c":
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_command(words, "power cap", timeout_s=60)
    else:
        with pytest.raises(EnvironmentFault, match=r"the power cap command 'sh' did not end within 0\.5 s"):
            run_command(words, "power cap", timeout_s=0.5)
    state = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    end = time.monotonic() + 20
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_shell_reads_the_words(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    run_command((sys.executable, "-c", "pass", f"; rm {kept}"), "restart", timeout_s=30)
    assert kept.exists()


def test_what_a_failing_command_prints_is_no_order_to_the_terminal() -> None:
    words = (sys.executable, "-c", "import sys; print('\\x1b[2Jbroken'); sys.exit(4)")
    with pytest.raises(EnvironmentFault, match=r"the power cap command .* failed with exit code 4:  \[2Jbroken"):
        run_command(words, "power cap", timeout_s=30)

"""The demo cleans up after itself, also when it is interrupted: no process, no folder, one sentence."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MARK = "AGENTDYNO_TEST_MARK"


def marked_processes(mark: str) -> list[str]:
    """Command lines of all processes that inherited a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds what is left running by /proc")
@pytest.mark.parametrize(
    ("step", "number"),
    [(1, signal.SIGINT), (5, signal.SIGINT), (5, signal.SIGTERM), (5, signal.SIGHUP)],
    ids=["Ctrl-C while recording", "Ctrl-C while searching", "SIGTERM while searching", "a closed terminal"],
)
def test_an_interrupted_demo_leaves_nothing_behind(step: int, number: signal.Signals, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    where = tmp_path / "a folder"
    where.mkdir()
    (where / "capture.py").write_text("raise SystemExit('a module of the folder was imported')\n")
    with subprocess.Popen(
        [Path(sys.executable).with_name("agentdyno"), "demo", "--out", str(tmp_path / "result")],
        cwd=where,
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stderr is not None
        assert any(re.match(rf"{step}/6 ", line) for line in demo.stderr)
        time.sleep(2.0 if step == 5 else 0.7)  # in the middle of it
        assert len(marked_processes(mark)) >= 2
        demo.send_signal(number)
        output, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130, errors
    assert "interrupted: everything is stopped" in errors
    assert "Traceback" not in errors
    assert output == ""
    assert marked_processes(mark) == []
    assert list(tmp_path.iterdir()) == [where]

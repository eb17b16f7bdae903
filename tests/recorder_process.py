"""`agentdyno capture serve` as a process, for tests that drive real agents through it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def recorder(upstream: str, folder: Path) -> Iterator[str]:
    """`agentdyno capture serve` as a user would start it, into `folder`/store; gives its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "ready", folder / "recorder.log"
    command = [sys.executable, "-m", "agentdyno", "capture", "serve", "--upstream", upstream]
    command += ["--store", str(folder / "store"), "--ready-file", str(ready)]
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as process:
        try:
            until = time.monotonic() + 60
            while not ready.exists():
                assert process.poll() is None, f"the recorder ended: {log.read_text(encoding='utf-8')}"
                assert time.monotonic() < until, f"the recorder is not ready: {log.read_text(encoding='utf-8')}"
                time.sleep(0.02)
            yield ready.read_text(encoding="utf-8").strip()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
    assert process.returncode == 0, log.read_text(encoding="utf-8")

"""Runs a program and watches it with all its children: wall and CPU time, and the most memory at one time.

Memory is the sum of the processes' proportional set sizes (pages that several share count once), from
`/proc/PID/smaps_rollup` every tenth of a second: a peak between two looks is missed.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a run took."""

    wall_s: float
    cpu_s: float  # of the program and of all children that it waited for
    peak_mb: float
    most_processes: int
    code: int
    out: str


def watch(command: Sequence[str], *, environment: Mapping[str, str] | None = None, error: Path) -> Watched:
    """Run a command to its end; its stderr goes to a file."""
    start = time.perf_counter()
    with error.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        peak, most = 0, 0
        done = threading.Event()

        def look() -> None:
            nonlocal peak, most
            while not done.wait(_EVERY_S):
                found = tree(process.pid)
                peak = max(peak, sum(map(proportional_bytes, found)))
                most = max(most, len(found))

        looker = threading.Thread(target=look)
        looker.start()
        assert process.stdout is not None
        out = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        done.set()
        looker.join()
    return Watched(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=peak / 1e6,
        most_processes=most,
        code=process.returncode,
        out=out,
    )


def tree(root: int) -> list[int]:
    """A process and its descendants, as far as they are alive."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                # The name, in brackets, may hold anything.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = [root]
    for one in found:
        found.extend(pid for pid, parent in parents.items() if parent == one)
    return found


def proportional_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)

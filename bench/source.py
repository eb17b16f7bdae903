"""The compiled source of events as a context manager, and what else used the machine while it ran.

`sse_source.c` is compiled at first use into a cache folder, under a name that says which text it was made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

TEXTS = [Path(__file__).with_name(name) for name in ("sse_source.c", "sse_log.h", "sse_text.h")]
MODEL = "fake-model"
LATE_P99_US = 1000.0
"""A source whose p99 lateness is above this was late: its run is repeated, not reported."""
FOREIGN_CORES = 0.4
"""With more than this used by others, latencies are an upper bound."""
_TICKS = os.sysconf("SC_CLK_TCK")


def built() -> Path:
    """The program; compiled where it is not yet. Exits with a sentence where there is no compiler."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentdyno-bench"
    version = hashlib.sha256(b"".join(text.read_bytes() for text in TEXTS)).hexdigest()[:16]
    program = cache / f"sse_source-{version}"
    if program.exists():
        return program
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        sys.exit("no C compiler: install one (Debian: apt install gcc libc6-dev), or name one in CC")
    if sys.platform != "linux":
        sys.exit("the source of events needs Linux (epoll, timerfd): run this benchmark there")
    cache.mkdir(parents=True, exist_ok=True)
    making = program.with_suffix(f".{os.getpid()}")
    done = subprocess.run([compiler, "-O2", "-o", str(making), str(TEXTS[0])], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{compiler} does not compile {TEXTS[0].name}:\n{done.stderr.strip()}")
    making.rename(program)
    return program


@dataclass(frozen=True, slots=True)
class Source:
    """A running source."""

    url: str
    pid: int

    def log(self) -> dict[str, Any]:
        """What it served since its last reset, and how late it was."""
        with urllib.request.urlopen(self.url + "/log", timeout=10) as response:
            log: dict[str, Any] = json.load(response)
            return log

    def reset(self) -> None:
        """Forget what was logged."""
        urllib.request.urlopen(self.url + "/reset", timeout=10).close()


@contextlib.contextmanager
def serving(
    *,
    ttft_ms: float = 200.0,
    itl_ms: float = 20.0,
    tokens: int = 0,
    quantum_us: float = 250.0,
    notable_bytes: int = 0,
    cores: Iterable[int] | None = None,
) -> Iterator[Source]:
    """A source in a process of its own, at real-time priority where that is allowed.

    `tokens` 0: as many as a request asks. Its log's `first_request_ns` is of a body of at least `notable_bytes`.
    """
    command = [str(built()), "--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms), "--tokens", str(tokens)]
    command += ["--quantum-us", str(quantum_us), "--notable-bytes", str(notable_bytes), "--model", MODEL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        try:
            os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, process.pid, -15)
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)
        assert process.stdout is not None
        yield Source(process.stdout.readline().strip(), process.pid)
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def favour(pid: int) -> None:
    """Give a client that is measured a better priority than its surroundings, where that is allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, -12)


def was_late(log: dict[str, Any]) -> bool:
    """Whether the source itself was late or stalled, so that what a client saw of it proves nothing."""
    return log["late_p99_us"] > LATE_P99_US or log["stalls"] > 0.001 * max(1, log["tokens"])


# ---- who else used the machine


def cpu_s(pid: int, *, children: bool = True) -> float:
    """CPU time of a process, and of the children that it waited for; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11 : 15 if children else 13]) / _TICKS


class Machine:
    """Cores used by anyone, from the machine's own count, since it was made."""

    def __init__(self) -> None:
        self._begun, self._busy = monotonic(), self._busy_s()

    @staticmethod
    def _busy_s() -> float:
        # user nice system idle iowait irq softirq steal: what is stolen was wanted, and was not had
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / _TICKS

    def foreign(self, own_cpu_s: float) -> float:
        """Cores used by others, ours being `own_cpu_s` of CPU time within the same stretch."""
        return max(0.0, (self._busy_s() - self._busy - own_cpu_s) / max(1e-9, monotonic() - self._begun))

"""How long `agentdyno --help` takes over a Python that only imports click. Goal: at most 150 ms over it.

usage: python bench/help_time.py [--quick]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time


def milliseconds(arguments: list[str]) -> float:
    """Wall time of one fresh process."""
    began = time.monotonic_ns()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic_ns() - began) / 1e6


def main() -> None:
    rounds = 7 if "--quick" in sys.argv else 25
    help_ms, click_ms = [], []
    for _ in range(rounds):  # interleaved, so that a busy machine burdens both alike
        help_ms.append(milliseconds(["-m", "agentdyno", "--help"]))
        click_ms.append(milliseconds(["-c", "import click"]))
    ours, base = statistics.median(help_ms), statistics.median(click_ms)
    print(f"agentdyno --help  {ours:7.1f} ms (median of {rounds})")
    print(f"import click      {base:7.1f} ms")
    print(
        json.dumps(
            {
                "help_ms": round(ours, 1),
                "import_click_ms": round(base, 1),
                "help_over_click_ms": round(ours - base, 1),
                "goal_ms": 150,
            }
        )
    )


if __name__ == "__main__":
    main()

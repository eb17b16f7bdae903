"""The command line against a stand-in Hub, in a process of its own: huggingface_hub reads `HF_ENDPOINT` at import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hub_server import Hub

ROOT = Path(__file__).parent.parent

# One process for many commands: importing all that publishing needs takes longer than publishing.
# Between two tries it waits a tenth of what a user would.
_LOOP = """
import json, os, sys, time
from click.testing import CliRunner
import agentdyno
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 10)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.update(asked["environment"])
    found = CliRunner().invoke(agentdyno.main, asked["arguments"], input=asked["input"])
    fault = found.exception
    if fault is not None and not isinstance(fault, SystemExit):
        raise fault
    print(json.dumps({"code": found.exit_code, "stdout": found.stdout, "stderr": found.stderr}), flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    stdout: str
    stderr: str


class Client:
    """Runs commands one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *arguments: str | Path, environment: dict[str, str] | None = None) -> Ran:
        asked: dict[str, Any] = {"arguments": [str(part) for part in arguments], "input": ""}
        asked["environment"] = {"HF_TOKEN": "", **(environment or {})}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the command line ended with a traceback"
        return Ran(**json.loads(line))


def command(*arguments: str | Path) -> list[str]:
    """A command in a fresh process."""
    return [sys.executable, "-c", "import agentdyno; agentdyno.main()", *map(str, arguments)]


@contextmanager
def running_client(hub: Hub, home: Path) -> Iterator[Client]:
    """A process that takes the stand-in for the Hub, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LOOP],
        cwd=ROOT,
        env=hub.environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Client(process)
    finally:
        assert process.stdin is not None
        with process:  # closes the pipes and waits for the end
            process.stdin.close()

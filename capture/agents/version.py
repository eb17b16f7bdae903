"""Which version of an agent a command starts: from the files beside the program, else by asking it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

from capture.agents.agent import Agent, Situation

_ANSWER_S = 10.0
_IN_PATH = re.compile(r"/(?:versions|Cellar/[^/]+|cask/[^/]+)/v?(\d+\.\d+[\w.+-]*)(?:/|$)", re.IGNORECASE)
_IN_WORDS = re.compile(r"\bv?(\d+\.\d+(?:\.\d+)?[\w.+-]*)")


def read_version(agent: Agent, situation: Situation) -> str | None:
    """The version as files tell it, without running anything; None where they do not."""
    program = find_program(situation)
    if program is None:
        return None
    for parent in program.parents:
        try:
            package = json.loads((parent / "package.json").read_text())
            if package["name"] in agent.packages:
                return str(package["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for name in agent.packages:
        # A Python program lies in the `bin` of the environment that holds its package.
        pattern = f"lib/python*/site-packages/{name.replace('-', '_')}-*.dist-info"
        for folder in program.parent.parent.glob(pattern) if program.parent.name == "bin" else ():
            return folder.name.removesuffix(".dist-info").rpartition("-")[2]
    found = _IN_PATH.search(str(program))
    return found[1] if found else None


def find_program(situation: Situation) -> Path | None:
    """The file behind the word that names the agent, links followed; None where it is no file here."""
    word = situation.command[situation.at]
    named = str(situation.folder / word) if "/" in word else shutil.which(word, path=situation.environment.get("PATH"))
    try:
        return Path(named).resolve(strict=True) if named is not None else None
    except (OSError, RuntimeError):
        return None


class AgentVersion:
    """Found at once where files tell it; else asked for while the agent runs, so that it never waits."""

    def __init__(self, agent: Agent, situation: Situation) -> None:
        self.at_once = read_version(agent, situation) if agent.programs else None
        self._situation = situation
        # What is not known may do anything on `--version`, and a package runner may fetch packages for it.
        self._may_ask = bool(agent.programs) and self.at_once is None and situation.at == 0
        self._answer: str | None = None
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Begin to ask the program itself, in a thread, where the files do not tell."""
        if self._may_ask:
            self._thread = threading.Thread(target=self._ask, name="agent version", daemon=True)
            self._thread.start()

    def wait(self, at_most_s: float = _ANSWER_S) -> None:
        """Wait for the answer."""
        if self._thread is not None:
            self._thread.join(at_most_s)

    def late(self) -> str | None:
        """What the program answered; None where it was not asked or has not answered."""
        return self._answer

    def _ask(self) -> None:
        try:
            done = subprocess.run(
                [self._situation.command[0], "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ANSWER_S,
                env=dict(self._situation.environment),
                check=False,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired):
            return
        found = _IN_WORDS.search(done.stdout) if done.returncode == 0 else None
        self._answer = found[1].rstrip(".-+") if found is not None else None

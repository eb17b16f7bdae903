"""The table of agents, and which of them a command line starts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from capture.agents.agent import Agent
from capture.agents.claude_code import CLAUDE_CODE
from capture.agents.codex import CODEX
from capture.agents.copilot_cli import COPILOT_CLI
from capture.agents.environment import AIDER, ANY, MINI_SWE_AGENT, OPENHANDS, SWE_AGENT
from capture.agents.gemini_cli import GEMINI_CLI
from capture.agents.goose import GOOSE
from capture.agents.opencode import OPENCODE
from capture.agents.pi import PI
from capture.agents.qwen_code import QWEN_CODE

AGENTS: tuple[Agent, ...] = (
    CLAUDE_CODE, CODEX, OPENCODE, PI, GEMINI_CLI, MINI_SWE_AGENT, AIDER, QWEN_CODE, COPILOT_CLI, GOOSE, OPENHANDS,
    SWE_AGENT,
)  # fmt: skip

_RUNNERS = frozenset({"npx", "bunx", "uvx", "pipx", "env", "nice", "nohup", "time", "sudo", "doas", "stdbuf", "exec"})
_TWO_WORDS = frozenset(
    {("npm", "exec"), ("npm", "x"), ("pnpm", "dlx"), ("pnpm", "exec"), ("yarn", "dlx"), ("bun", "x"), ("bun", "run"),
     ("uv", "run"), ("uv", "tool"), ("deno", "run")}
)  # fmt: skip
_INTERPRETERS = re.compile(r"(node|bun|deno|python[\d.]*|pypy[\d.]*)$")
_SHELLS = frozenset({"sh", "bash", "zsh", "dash", "ksh"})
_SCRIPT_BYTES = 16 << 10
_VALUED = frozenset({"-u", "-C", "-n", "-g", "-p", "--from", "--with", "--python", "--package"})  # options of runners
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def find_agent(command: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> tuple[Agent, int]:
    """The agent that a command starts and the index of the word that names it; (ANY, 0) where none is known.

    Looks through package runners, interpreters, `env` and small shell scripts, by program and package names.
    """
    at = 0
    runner = ""
    while at < len(command):
        word = command[at]
        name = Path(word).name
        agent = _by_word(word)
        if agent is not None:
            return agent, at
        if (name, *command[at + 1 : at + 2]) in _TWO_WORDS:
            runner = name
            at += 1
        elif name in _RUNNERS or name in _SHELLS or _INTERPRETERS.match(name):
            runner = name
        elif not runner:
            agent = _by_file(word, environment, folder)
            return (agent, at) if agent is not None else (ANY, 0)
        elif word in _VALUED and not _INTERPRETERS.match(runner):
            at += 1  # the option's value may name a package, but it is not what is run
        elif not (word.startswith("-") or _ASSIGNMENT.match(word) or word == "run"):
            agent = _by_file(word, environment, folder)
            return (agent, at) if agent is not None else (ANY, 0)
        at += 1
    return ANY, 0


def _by_word(word: str) -> Agent | None:
    bare = word if word.startswith("@") else Path(word).name
    package = re.sub(r"(?<=.)(@|==|\[).*$", "", word)
    names = {package, package.partition(".")[0]}  # `python -m package.module`
    return next((it for it in AGENTS if bare in it.programs or not names.isdisjoint(it.packages)), None)


def _by_file(word: str, environment: Mapping[str, str], folder: Path) -> Agent | None:
    """By what a program is: a file of a known package, or a small shell script that starts one."""
    found = shutil.which(word, path=environment.get("PATH")) if "/" not in word else None
    path = Path(found) if found is not None else folder / word
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    parts = "/".join(real.parts)
    for agent in AGENTS:
        if any(f"/node_modules/{name}/" in parts or f"/site-packages/{name}/" in parts for name in agent.packages):
            return agent
    return _by_script(real)


def _by_script(path: Path) -> Agent | None:
    try:
        with path.open("rb") as file:
            head = file.read(_SCRIPT_BYTES)
    except OSError:
        return None
    first, _, rest = head.partition(b"\n")
    if not first.startswith(b"#!") or b"sh" not in first:
        return None
    for line in rest.decode(errors="replace").splitlines():
        for word in () if line.lstrip().startswith("#") else re.split(r"[\s;&|()\"']+", line):
            agent = _by_word(word) if word else None
            if agent is not None:
                return agent
    return None

"""What the launcher knows of one agent, and what it is told about the machine that the agent runs on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A command as the user typed it, and what it would find around itself."""

    command: tuple[str, ...]
    at: int  # index of the word that names the agent; its own arguments come after it
    environment: Mapping[str, str]
    folder: Path  # where it runs
    websocket: bool = False  # the user asks for WebSockets where the agent can do both

    @property
    def arguments(self) -> tuple[str, ...]:
        """The agent's own arguments."""
        return self.command[self.at + 1 :]

    @property
    def home(self) -> Path:
        """The user's home folder; a folder that does not exist where there is none."""
        named = self.environment.get("HOME")
        if named:
            return Path(named)
        try:
            return Path.home()
        except RuntimeError:  # neither HOME nor an entry in the password database
            return Path("/nonexistent")

    def config_home(self) -> Path:
        """Where programs keep their configuration (XDG base directory specification)."""
        return Path(self.environment.get("XDG_CONFIG_HOME") or self.home / ".config")

    def data_home(self) -> Path:
        """Where programs keep their data (XDG base directory specification)."""
        return Path(self.environment.get("XDG_DATA_HOME") or self.home / ".local" / "share")

    def option(self, *names: str) -> str | None:
        """The value of the last of these options among the agent's arguments, as `--name VALUE` or `--name=VALUE`."""
        found = None
        for index, word in enumerate(self.arguments):
            name, equals, value = word.partition("=")
            if name in names and equals:
                found = value
            elif word in names and index + 1 < len(self.arguments):
                found = self.arguments[index + 1]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one provider's calls go when nobody records."""

    url: str
    suffix: str = ""  # what follows the root of a server that speaks this API: `/v1` for OpenAI's clients
    source: str | None = None  # the variable that names it; None: one of several providers in a settings file


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an agent is started with beside what the user gave."""

    environment: Mapping[str, str]
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """How the recorder is reached."""

    bases: Mapping[str, str]  # provider → base URL on the recorder; empty in forward mode
    environment: Mapping[str, str]  # that the launcher sets by itself: proxy and certificates, telemetry
    arguments: tuple[str, ...] = ()  # telemetry options for agents that take them on the command line
    work: Path  # a private folder that lives as long as the agent


def nothing(_: Situation) -> str | None:
    """No reason."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One row of the table. The name is the one that recordings use."""

    name: str
    title: str
    programs: tuple[str, ...]  # file names
    packages: tuple[str, ...]  # as npm, PyPI or `python -m` name them
    targets: Callable[[Situation], dict[str, Target]]
    tell: Callable[[Situation, Telling], Change]
    unrecordable: Callable[[Situation], str | None] = nothing  # why no mode can read this agent's calls
    needs_forward: Callable[[Situation], str | None] = nothing  # why reverse mode would miss calls
    bypasses: Callable[[Situation], str | None] = nothing  # a setting that goes past the recorder in reverse mode
    has_telemetry: Callable[[Situation], str | None] = nothing  # a telemetry setting of the user's own
    declares_tool_times: bool = False  # on the wire
    exports_tool_times: bool = False  # by OpenTelemetry, when it is asked to
    advice: str  # what to look at when no call was seen


def insert(situation: Situation, *words: str) -> tuple[str, ...]:
    """The command with words put before the agent's own arguments."""
    return (*situation.command[: situation.at + 1], *words, *situation.arguments)


def read_json(path: Path) -> Any:
    """A JSON file with comments and trailing commas allowed; None where there is none, or none to be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return parse_json(text)


def parse_json(text: str) -> Any:
    """JSON with comments and trailing commas allowed; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(_plain(text))
    except ValueError:
        return None


def _plain(text: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(text):
        sign = text[at]
        if sign == '"':
            end = at + 1
            while end < len(text) and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            out.append(text[at : end + 1])
            at = end + 1
        elif text.startswith("//", at):
            at = text.find("\n", at)
            at = len(text) if at < 0 else at
        elif text.startswith("/*", at):
            at = text.find("*/", at)
            at = len(text) if at < 0 else at + 2
        else:
            if sign in "]}":
                while out and out[-1].isspace():
                    out.pop()
                if out and out[-1] == ",":
                    out.pop()
            out.append(sign)
            at += 1
    return "".join(out)


def member(value: Any, *path: str) -> Any:
    """What lies at a path of keys in nested JSON objects; None where it does not go that far."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def text_member(value: Any, *path: str) -> str | None:
    """A text that is not empty at a path of keys; None otherwise."""
    found = member(value, *path)
    return found if isinstance(found, str) and found else None


def read_dotenv(path: Path) -> dict[str, str]:
    """NAME=VALUE lines as dotenv libraries read them, without expansion; empty where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else value.partition(" #")[0].strip()
    return found

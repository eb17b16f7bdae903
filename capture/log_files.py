"""Where agents keep their own logs, and which importer reads one.

Folders and their variables: Claude Code `$CLAUDE_CONFIG_DIR/projects` (else `~/.claude`), Codex `$CODEX_HOME/sessions`
and `archived_sessions` (`~/.codex`), Gemini CLI `~/.gemini/tmp`, pi `$PI_CODING_AGENT_DIR/sessions` (`~/.pi/agent`),
opencode `$XDG_DATA_HOME/opencode` (`~/.local/share`).
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from capture.importers.imported import ImportFault
from capture.importers.log_session import LogSession

_SQLITE = b"SQLite format 3\x00"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_SLACK_US = 60_000_000  # file systems and clocks round
_MODULES = {
    "claude-code": "capture.importers.claude_code",
    "codex": "capture.importers.codex",
    "gemini-cli": "capture.importers.gemini_cli",
    "pi": "capture.importers.pi",
    "opencode": "capture.importers.opencode",
}
LOG_SOURCES = (*(f"{harness}-log" for harness in _MODULES), "mini-swe-agent-log")
"""Sources of imported logs. Most of their native ids are those that the agents send; mini-swe-agent, which sends none,
goes by the id of its first answer."""

_NAMED_BY_SESSION = ("claude-code", "codex")  # the file's name holds the id that goes over the wire


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """A file that holds logs of one agent."""

    path: Path
    harness: str
    named: bool  # the user named it, rather than its folder being the usual one

    def may_hold(self, natives: Collection[str], earliest_utc_us: int | None) -> bool:
        """Whether a look inside is worth while, for sessions of these ids of which the first began then."""
        if self.named:
            return True
        if self.harness in _NAMED_BY_SESSION:
            return any(native in self.path.name for native in natives)
        try:
            changed_us = self.path.stat().st_mtime_ns // 1000
        except OSError:
            return False
        return earliest_utc_us is not None and changed_us >= earliest_utc_us - _SLACK_US

    def read(self) -> list[LogSession]:
        """Sessions in the file; ImportFault where it cannot be read."""
        module = importlib.import_module(_MODULES[self.harness])
        found: LogSession | Iterable[LogSession] = module.read_log(self.path)
        return [found] if isinstance(found, LogSession) else list(found)


def usual_log_files(environment: Mapping[str, str]) -> Iterator[LogFile]:
    """Logs in the folders where the agents keep them by themselves."""
    for harness, folder, pattern in _places(environment):
        for path in sorted(folder.glob(pattern)):
            yield LogFile(path=path, harness=harness, named=False)


def usual_folders(harness: str, environment: Mapping[str, str]) -> list[Path]:
    """The folders where this agent keeps its logs by itself, those that there are."""
    return [folder for owner, folder, _ in _places(environment) if owner == harness and folder.is_dir()]


def _places(environment: Mapping[str, str]) -> tuple[tuple[str, Path, str], ...]:
    """(agent, folder, pattern of the files to look at)."""
    home = Path(environment.get("HOME") or Path.home())
    data = Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share")
    claude = Path(environment.get("CLAUDE_CONFIG_DIR") or home / ".claude")
    codex = Path(environment.get("CODEX_HOME") or home / ".codex")
    pi = Path(environment.get("PI_CODING_AGENT_DIR") or home / ".pi" / "agent")
    return (
        # Logs of sub-agents lie deeper, or are named for the sub-agent: the reader finds them from their session's.
        ("claude-code", claude / "projects", "*/*.jsonl"),
        ("codex", codex / "sessions", "**/rollout-*.jsonl*"),
        ("codex", codex / "archived_sessions", "**/rollout-*.jsonl*"),
        ("gemini-cli", home / ".gemini" / "tmp", "*/chats/session-*.json*"),
        ("pi", pi / "sessions", "**/*.jsonl"),
        ("opencode", data / "opencode", "opencode*.db"),
    )


def named_log_files(paths: Iterable[Path]) -> Iterator[LogFile]:
    """Logs that the user names, and those in folders he names. ImportFault where a named file is of no known agent."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and (harness := _harness_of(file)) is not None:
                    yield LogFile(path=file, harness=harness, named=True)
            continue
        try:
            path.open("rb").close()
        except OSError as fault:
            raise ImportFault(f"{path}: cannot be read: {fault.strerror or fault}") from fault
        harness = _harness_of(path)
        if harness is None:
            raise ImportFault(f"{path}: no log of {', '.join(_MODULES)}: name a log file of one of these agents")
        yield LogFile(path=path, harness=harness, named=True)


def _harness_of(path: Path) -> str | None:
    """Whose log a file is, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(64 * 1024)
    except OSError:
        return None
    if head.startswith(_SQLITE):
        return "opencode"
    if head.startswith(_ZSTANDARD):
        return "codex" if path.name.endswith(".jsonl.zst") else None
    for line in head.splitlines()[:20]:
        try:
            record = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return None
        if not isinstance(record, dict):
            return None
        if "payload" in record and "type" in record:
            return "codex"
        if "sessionId" in record and "projectHash" in record:
            return None if record.get("kind") == "subagent" else "gemini-cli"
        if "sessionId" in record:
            # A sub-agent's log is read with its session's.
            return None if path.name.startswith("agent-") else "claude-code"
        if record.get("type") == "session" and "id" in record:
            return "pi"
    return None

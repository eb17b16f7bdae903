"""What was joined to recorded sessions: one small file per session beside the journals, owner-only.

Content-free: ids, durations and stamps; no text, no path, no argument. Written by `capture join`, read whenever
sessions are read; a session that is erased is forgotten here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from capture.atomic import write_atomically
from capture.call import ToolTime
from capture.timing import Statement, ToolOutcome

FORMAT_VERSION = 1
_FOLDER = "joined"
_SUFFIX = ".json"


class JoinedFault(ValueError):
    """A joined file cannot be read or written. The sentence names it and the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedLog:
    """What one log tells about one recorded session."""

    source: str  # name of the source: claude-code-log, codex-log, …
    times: tuple[ToolTime, ...]
    outcomes: tuple[ToolOutcome, ...]
    waits_us: dict[str, int]  # by exchange id: the human wait that ended in this request
    twin: str | None = None  # session id under which an import of this log is listed; hidden from now on
    calls_only_in_log: int = 0  # calls of the log that the wire does not hold

    @property
    def statement(self) -> Statement:
        """The same for `capture.timing`."""
        return Statement(source_name=self.source, times=self.times, outcomes=self.outcomes, waits_us=self.waits_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    version: int
    session_id: str
    logs: tuple[JoinedLog, ...]


class Joined:
    """The joined logs of the store at `store_path`, in the folder `joined`; made when the first one is put."""

    def __init__(self, store_path: Path | str) -> None:
        self.folder = Path(store_path) / _FOLDER

    def put(self, session_id: str, log: JoinedLog) -> None:
        """Keep a log of a session; another log of the same source is replaced. JoinedFault when it cannot be kept."""
        logs = [known for known in self._load_or_none(session_id) if known.source != log.source]
        data = msgspec.json.encode(_File(version=FORMAT_VERSION, session_id=session_id, logs=(*logs, log)))
        final = self._path(session_id)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(final, data, mode=0o600)
        except OSError as fault:
            raise JoinedFault(f"{final}: cannot keep what was joined: {fault.strerror or fault}") from fault

    def load(self, session_id: str) -> tuple[JoinedLog, ...]:
        """Logs joined to a session, none if there are none; JoinedFault when the file is damaged."""
        path = self._path(session_id)
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as fault:
            raise JoinedFault(f"{path} is damaged ({fault}): run `agentdyno capture join` again") from fault
        if file.version != FORMAT_VERSION:
            raise JoinedFault(f"{path}: format version {file.version}, this program reads {FORMAT_VERSION}")
        return file.logs

    def session_ids(self) -> Iterator[str]:
        """Sessions that something was joined to."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            if not path.name.startswith("."):
                yield path.name.removesuffix(_SUFFIX)

    def forget(self, session_id: str) -> bool:
        """Remove what was joined to a session; True if there was something."""
        try:
            self._path(session_id).unlink()
        except FileNotFoundError:
            return False
        return True

    def _load_or_none(self, session_id: str) -> tuple[JoinedLog, ...]:
        try:
            return self.load(session_id)
        except JoinedFault:
            return ()  # a damaged file is replaced by what is joined now

    def _path(self, session_id: str) -> Path:
        return self.folder / f"{session_id}{_SUFFIX}"


def forget(store_path: Path | str, session_id: str) -> bool:
    """Remove what was joined to a session of this store; True if there was something."""
    return Joined(store_path).forget(session_id)

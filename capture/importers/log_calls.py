"""From an agent's log to sessions: what all log importers share.

A log keeps what was said and, at best, one stamp per line. Everything that only the wire knows (bytes, headers, the
times of single tokens) is None in the calls made here. Stamps are the agent's wall clock: anchor zero, nanoseconds of
UTC in the `t_*_ns` fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capture.assemble import Origin, assemble
from capture.call import Message, ModelCall, SessionHint, ToolTime, Usage
from capture.dialects.reading import Json
from capture.importers.imported import Imported, ImportFault, native_id
from capture.importers.log_lines import first_lines
from capture.importers.log_session import LogSession
from capture.timing import apply_times
from capture.trajectory import TokenSource, Trajectory

_LATEST_NS = 2**62  # the year 2116: whatever is later is no stamp
_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")


def stamp_ns(value: Any) -> int | None:
    """UTC nanoseconds of an ISO 8601 stamp (without a zone: UTC), None where it is none."""
    if not isinstance(value, str) or not _ISO.match(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    at_ns = ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
    return at_ns if 0 <= at_ns < _LATEST_NS else None


def stamp_of_ms(value: Any) -> int | None:
    """UTC nanoseconds of a stamp in milliseconds since 1970, None where it is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _LATEST_NS / 1e6:
        return None
    return int(value * 1_000_000)


def microseconds(at_ns: int | None) -> int | None:
    """A stamp of a call as `ToolTime` and `HumanWait` want it."""
    return None if at_ns is None else at_ns // 1000


def log_call(
    *,
    exchange_id: str,
    api: str,
    harness: str,
    harness_version: str | None,
    model: str,
    hints: tuple[SessionHint, ...],
    system: tuple[Message, ...],
    messages: tuple[Message, ...],
    answer: Message | None,
    usage: Usage,
    t_send_ns: int,
    t_end_ns: int | None,
    complete: bool,
    error: str | None = None,
    status: int | None = None,
    stop: str | None = None,
    response_id: str | None = None,
    t_first_content_ns: int | None = None,
    notes: tuple[str, ...] = (),
) -> ModelCall:
    """A call out of a log; the fields that no log tells are None. Further ones are set by `dataclasses.replace`.

    `t_end_ns` before `t_send_ns` (a clock that was set back, lines out of order) makes the end unknown.
    """
    if t_end_ns is not None and t_end_ns < t_send_ns:
        t_end_ns = None
    if t_first_content_ns is not None and not t_send_ns <= t_first_content_ns <= (t_end_ns or _LATEST_NS):
        t_first_content_ns = None
    return ModelCall(
        exchange_id=exchange_id,
        connection_id="",
        wall_anchor_us=0,
        api=api,
        harness=harness,
        harness_version=harness_version,
        model=model,
        stream=None,
        status=status,
        error=error,
        complete=complete,
        system=system,
        messages=messages,
        tools=(),
        answer=answer,
        stop=stop,
        usage=usage,
        response_id=response_id,
        previous_response_id=None,
        hints=hints,
        max_tokens=None,
        temperature=None,
        effort=None,
        t_send_ns=t_send_ns,
        t_headers_ns=None,
        t_first_byte_ns=None,
        t_first_content_ns=t_first_content_ns,
        t_last_content_ns=None,
        t_end_ns=t_end_ns,
        content_at_ns=(),
        events=0,
        bytes_up=None,
        bytes_down=None,
        notes=notes,
    )


def import_sessions(
    sessions: Iterable[LogSession], key: bytes, *, token_source: TokenSource, notes: Sequence[str]
) -> Imported:
    """Trajectories of the sessions, with the tool times of the log on their tool calls."""
    trajectories: list[Trajectory] = []
    names: list[str] = []
    said: list[str] = []
    for session in sessions:
        said.extend(session.notes)
        if not session.calls:
            continue
        for trajectory in assemble(session.calls, key, Origin(source=session.source, token_source=token_source)):
            trajectories.append(apply_times(trajectory, session.tool_times, session.source))
            names.append(native_id(session.source, session.native_session_id))
    return Imported(
        trajectories=tuple(trajectories), native_ids=tuple(names), notes=tuple(dict.fromkeys((*notes, *said)))
    )


def find_logs(
    paths: Sequence[Path],
    *,
    suffixes: tuple[str, ...],
    is_log: Callable[[Sequence[Json]], bool],
    what: str,
    peek: Callable[[Path], Sequence[Json]] = first_lines,
) -> tuple[list[Path], list[str]]:
    """(log files, notes) under the paths, sorted and each once.

    A named file has to be a log; in a folder what is none is skipped and counted. ImportFault where nothing is found.
    """
    found: dict[Path, None] = {}
    skipped = 0
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if not file.is_file() or not file.name.endswith(suffixes):
                    continue
                if is_log(peek(file)):
                    found.setdefault(file.resolve())
                else:
                    skipped += 1
        elif not path.exists():
            raise ImportFault(f"{path}: no such file or folder")
        elif not is_log(peek(path)):
            raise ImportFault(f"{path}: this is no {what}")
        else:
            found.setdefault(path.resolve())
    if not found:
        places = ", ".join(str(path) for path in paths)
        raise ImportFault(f"{places}: no {what} in there{f' ({skipped} other files)' if skipped else ''}")
    notes = [f"{skipped} files that are no {what} were skipped"] if skipped else []
    return list(found), notes


def log_times(times: Iterable[ToolTime]) -> tuple[ToolTime, ...]:
    """Tool times, one per tool call: of two, the one that knows more, then the later."""
    best: dict[str, ToolTime] = {}
    for time in times:
        old = best.get(time.tool_call_id)
        if old is None or _knows(time) >= _knows(old):
            best[time.tool_call_id] = time
    return tuple(best.values())


def _knows(time: ToolTime) -> int:
    told = (time.internal_us, time.permission_us, time.started_utc_us, time.ended_utc_us)
    return sum(value is not None for value in told) + 4 * (time.internal_us is not None)

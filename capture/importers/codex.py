"""Codex's own logs: `sessions/<year>/<month>/<day>/rollout-*.jsonl`, plain or zstd, one file per thread.

Source of the format: logs of real versions up to 0.169.0 and the project's public reports on older ones. What it tells
and what not:

- The run of items that the model wrote is one call. Token counts are the provider's own: the record that names the
  response (0.16x), else `token_count`, whose totals only grow: the last count is taken, a repeated total is the same.
- A call was sent at the stamp of the last thing that its prompt holds, and ended at its usage record, else at its last
  item. The first content is the start of its first item, where the log has one, else the turn's own time to the first
  token. Retries that worked in the end are inside that time: the log does not tell them.
- The tools on offer are unknown. The instructions are the agent's own base: what it sends of them may be less (0.169
  leaves sections out). The words that ask for a summary are not logged. Encrypted reasoning is there as a length alone.
- Forks and sub-agents may replay their parent's history, stamped anew: only what came after is theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from capture.call import SessionHint
from capture.dialects.reading import Json, as_text
from capture.importers.codex_thread import Thread, ThreadMeta, read_meta, unwrap
from capture.importers.imported import Imported
from capture.importers.log_calls import find_logs, import_sessions, log_times
from capture.importers.log_lines import LogFile, first_lines, read_log_file
from capture.importers.log_session import LogSession

SOURCE = "codex-log"
HARNESS = "codex"
_KINDS = frozenset(("session_meta", "response_item", "event_msg", "turn_context", "compacted"))
_SUFFIXES = (".jsonl", ".jsonl.zst")


def import_codex(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Sessions of the logs under `paths` (files or folders); ImportFault when any of them is bad."""
    files, notes = find_logs(paths, suffixes=_SUFFIXES, is_log=_is_log, what="Codex log")
    notes.append("token counts of Codex logs are the provider's own")
    return import_sessions(read_sessions(_with_agents(files), on_file), key, token_source="provider", notes=notes)  # noqa: S106


def read_log(path: Path) -> list[LogSession]:
    """The sessions of one log file or of a folder of them; ImportFault when it is none or damaged."""
    files, _ = find_logs([path], suffixes=_SUFFIXES, is_log=_is_log, what="Codex log")
    return list(read_sessions(_with_agents(files)))


def _with_agents(files: Sequence[Path]) -> list[Path]:
    """The files and those of their sub-agents, which lie in the same day's folder, named for their own threads."""
    found = dict.fromkeys(files)
    threads = {meta.thread for file in files if (meta := _meta_of(file)).thread}
    others = {path.resolve() for file in files for path in file.parent.glob("rollout-*.jsonl*")} - set(files)
    heads = [(path, _meta_of(path)) for path in sorted(others)]
    while more := [
        (path, meta) for path, meta in heads if path not in found and {meta.session, meta.parent} & threads - {""}
    ]:
        found.update(dict.fromkeys(path for path, _ in more))
        threads |= {meta.thread for _, meta in more}
    return list(found)


def _meta_of(path: Path) -> ThreadMeta:
    """What the head of a file says; the thread's id from its name where there is no head."""
    heads = (payload for kind, payload, _ in map(unwrap, first_lines(path)) if kind == "session_meta")
    meta = next((read_meta(payload) for payload in heads), None)
    return meta if meta is not None and meta.thread else ThreadMeta(thread=_thread_in_name(path))


def _is_log(lines: Sequence[Json]) -> bool:
    if any(as_text(line.get("type")) in _KINDS and isinstance(line.get("payload"), dict) for line in lines):
        return True
    # Logs of 2025 begin with a bare header, and each line after it is a bare item.
    return bool(lines) and "type" not in lines[0] and {"id", "timestamp", "instructions"} <= set(lines[0])


@dataclass(slots=True)
class _Session:
    """The threads of one session: the root, and the sub-agents that it started."""

    root: str
    threads: dict[str, list[Path]] = field(default_factory=dict)


def read_sessions(files: Sequence[Path], on_file: Callable[[Path], None] | None = None) -> Iterator[LogSession]:
    """Sessions of the files, one after the other in memory; a sub-agent's file belongs to the session of its root."""
    metas: dict[str, ThreadMeta] = {}
    paths: dict[str, list[Path]] = {}
    for path in files:
        meta = _meta_of(path)
        metas.setdefault(meta.thread, meta)
        paths.setdefault(meta.thread, []).append(path)
    sessions: dict[str, _Session] = {}
    for thread, meta in metas.items():
        root = _root(meta, metas)
        sessions.setdefault(root, _Session(root)).threads[thread] = paths[thread]
    for session in sessions.values():
        yield _read_session(session, metas, paths, on_file)


def _thread_in_name(path: Path) -> str:
    stem = path.name.split(".")[0]
    return stem[-36:] if len(stem) > 36 else stem


def _root(meta: ThreadMeta, metas: Mapping[str, ThreadMeta]) -> str:
    """The thread that the person talks to: named by newer logs, else found along the parents."""
    seen: set[str] = set()
    while meta.thread not in seen:
        seen.add(meta.thread)
        if meta.session and meta.session != meta.thread:
            return meta.session
        if not meta.parent:
            return meta.thread
        if meta.parent not in metas:
            return meta.parent
        meta = metas[meta.parent]
    return meta.thread


def _read_session(
    session: _Session,
    metas: Mapping[str, ThreadMeta],
    paths: Mapping[str, list[Path]],
    on_file: Callable[[Path], None] | None,
) -> LogSession:
    notes: list[str] = []
    threads: list[Thread] = []
    for name, files in session.threads.items():
        meta = metas[name]
        agent = None if name == session.root else name
        hint = SessionHint(
            session=session.root,
            evidence="source",
            agent=agent,
            parent_agent=meta.parent if agent and meta.parent and meta.parent != session.root else None,
        )
        thread = Thread(meta, hint)
        _take_base(thread, meta, paths, notes)
        for path in files:
            if on_file is not None:
                on_file(path)
            log = read_log_file(path)
            if log.torn is not None:
                notes.append(f"{path}:{log.torn}: the last line is cut off and was left out")
            thread.take(log)
        thread.finish()
        notes.extend(thread.notes)
        threads.append(thread)
    calls = sorted(
        (call for thread in threads for call in thread.finished_calls()),
        key=lambda call: (call.t_send_ns, call.exchange_id),
    )
    waits = [wait for thread in threads if thread.hint.agent is None for wait in thread.waits]
    return LogSession(
        native_session_id=session.root,
        harness=HARNESS,
        harness_version=next((call.harness_version for call in reversed(calls) if call.harness_version), None),
        source=SOURCE,
        paths=tuple(str(path) for files in session.threads.values() for path in files),
        calls=tuple(calls),
        tool_times=log_times(time for thread in threads for time in thread.tool_times()),
        human_waits=tuple(waits),
        notes=tuple(dict.fromkeys(notes)),
    )


def _take_base(
    thread: Thread,
    meta: ThreadMeta,
    paths: Mapping[str, list[Path]],
    notes: list[str],
    depth: int = 0,
) -> None:
    """Give a fork the history that it shares with its parent, where the log only points to it (since 0.16x)."""
    if not meta.base_thread:
        return
    files = paths.get(meta.base_thread) or _logs_of(meta.base_thread, [path for own in paths.values() for path in own])
    if not files or depth > 32:
        notes.append(
            f"thread {meta.thread} goes on from {meta.base_thread}, whose log is not in this import: "
            "the beginning of its prompts is missing"
        )
        thread.base_missing = True
        return
    head = _meta_of(files[0])
    parent = Thread(head, thread.hint)
    _take_base(parent, head, paths, notes, depth + 1)
    for path in files:
        parent.take(_upto(read_log_file(path), meta.base_end))
    parent.finish()
    thread.inherit(parent)


def _logs_of(thread: str, near: Sequence[Path]) -> list[Path]:
    """Files of a thread that is not part of the import, in the tree of days that the others lie in."""
    if not re.fullmatch(r"[0-9a-f-]{36}", thread):
        return []
    roots = {path.parents[3] if len(path.parents) > 3 and path.parent.name.isdigit() else path.parent for path in near}
    return sorted(found for root in roots for found in root.rglob(f"rollout-*{thread}.jsonl*"))


def _upto(log: LogFile, end: int | None) -> LogFile:
    """The lines before an ordinal number; logs that count count every line."""
    if end is None:
        return log
    kept = tuple(
        line for line in log.lines if not isinstance(ordinal := line.data.get("ordinal"), int) or ordinal < end
    )
    return replace(log, lines=kept)

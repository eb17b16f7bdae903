"""opencode's own log: the SQLite file `$XDG_DATA_HOME/opencode/opencode*.db` (since version 1.2).

Source of the format: databases that version 1.18.33 wrote. A session is a tree over `session.parent_id`: sub-agents are
sessions of their own there and chains of one session here. Each step of an assistant message is a call: sent at the
message's `time.created` (a later step: when the step began), ended at the last moment that its answer shows, the end of
a text or of reasoning or the start of a tool (milliseconds). Token counts are the provider's, as opencode passes them
on. Tools have times of their own (`state.time`). Not told: system prompt, tools on offer, first token, retries.

The JSON files of older versions hold the same sessions up to their migration and are not read, so nothing counts twice.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from capture.call import Message, ModelCall, SessionHint, ToolTime, ToolUse, Usage
from capture.dialects.reading import Json, as_count, as_list, as_object, as_text, compact_json, read_json, size_of
from capture.importers.documents import files_under
from capture.importers.imported import Imported, ImportFault
from capture.importers.log_calls import import_sessions, log_call, log_times, stamp_of_ms
from capture.importers.log_session import LogSession

SOURCE = "opencode-log"
HARNESS = "opencode"
_SQLITE = b"SQLite format 3\0"


def import_opencode(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Sessions of the databases under `paths` (files or folders); ImportFault when any of them is bad."""
    notes = ["token counts of opencode's log are the provider's own, its system prompt and tools are not in the log"]

    def read() -> Iterator[LogSession]:
        for path in files_under(paths, (".db",)):
            if on_file is not None:
                on_file(path)
            yield from read_log(path)

    return import_sessions(read(), key, token_source="provider", notes=notes)  # noqa: S106 - a word, no secret


def read_log(path: Path) -> list[LogSession]:
    """The sessions of one database, which opencode may be writing; ImportFault when it is none or damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except OSError as fault:
        raise ImportFault(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    if head != _SQLITE:
        raise ImportFault(f"{path}: this is no SQLite file: name opencode's database, opencode.db")
    try:
        # Not immutable: the log beside the file holds what was written last.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("BEGIN")
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"session", "message", "part"} <= tables:
                raise ImportFault(
                    f"{path}: no tables session, message and part: this is no database of opencode 1.2 on"
                )
            return _Database(path, database, newer="session_message" in tables).sessions()
    except sqlite3.Error as fault:
        raise ImportFault(f"{path}: cannot be read as opencode's database: {fault}") from fault


@dataclass(slots=True)
class _Thread:
    """One session of opencode's: the root, or a sub-agent."""

    id: str
    parent: str | None
    version: str
    messages: list[tuple[str, Json, list[Json]]] = field(default_factory=list)  # id, message, its parts


class _Database:
    def __init__(self, path: Path, database: sqlite3.Connection, *, newer: bool) -> None:
        self.path = path
        self.notes: list[str] = []
        self.threads: dict[str, _Thread] = {}
        for own, parent, version in database.execute(
            "SELECT id, parent_id, version FROM session ORDER BY time_created, id"
        ):
            self.threads[own] = _Thread(id=own, parent=parent, version=version or "")
        parts: defaultdict[str, list[Json]] = defaultdict(list)
        for message, number, data in database.execute("SELECT message_id, id, data FROM part ORDER BY id"):
            parts[message].append(self._json(data, f"part {number}"))
        for own, session, data in database.execute(
            "SELECT id, session_id, data FROM message ORDER BY time_created, id"
        ):
            if session in self.threads:
                self.threads[session].messages.append((own, self._json(data, f"message {own}"), parts[own]))
        if newer:
            (unread,) = database.execute(
                "SELECT count(DISTINCT session_id) FROM session_message "
                "WHERE session_id NOT IN (SELECT session_id FROM message)"
            ).fetchone()
            if unread:
                self.notes.append(
                    f"{path}: {unread} sessions are kept in the newer table session_message alone, not read"
                )

    def _json(self, data: str, place: str) -> Json:
        try:
            return as_object(read_json(data))
        except (ValueError, TypeError) as fault:
            raise ImportFault(f"{self.path}: {place}: no valid JSON: {fault}") from fault

    def _root(self, thread: _Thread) -> _Thread:
        seen = {thread.id}
        while thread.parent is not None and thread.parent in self.threads and thread.parent not in seen:
            thread = self.threads[thread.parent]
            seen.add(thread.id)
        return thread

    def sessions(self) -> list[LogSession]:
        """Root sessions with all their sub-agents."""
        members: defaultdict[str, list[_Thread]] = defaultdict(list)
        for thread in self.threads.values():
            members[self._root(thread).id].append(thread)
        return [self._session(root, threads) for root, threads in members.items()]

    def _session(self, root: str, threads: Sequence[_Thread]) -> LogSession:
        calls: list[ModelCall] = []
        times: list[ToolTime] = []
        for thread in threads:
            sub_agent = thread.id != root
            hint = SessionHint(
                session=root,
                evidence="source",
                agent=thread.id if sub_agent else None,
                parent_agent=thread.parent if sub_agent and thread.parent != root else None,
            )
            reading = _Reading(thread, hint)
            calls.extend(reading.calls)
            times.extend(reading.times)
        return LogSession(
            native_session_id=root,
            harness=HARNESS,
            harness_version=self.threads[root].version or None,
            source=SOURCE,
            paths=(str(self.path),),
            calls=tuple(sorted(calls, key=lambda call: (call.t_send_ns, call.exchange_id))),
            tool_times=log_times(times),
            notes=tuple(self.notes),
        )


class _Reading:
    """One thread's messages as calls."""

    def __init__(self, thread: _Thread, hint: SessionHint) -> None:
        self.thread = thread
        self.hint = hint
        self.calls: list[ModelCall] = []
        self.times: list[ToolTime] = []
        self.prompt: list[Message] = []
        self.compacting: str | None = None  # auto | manual: the next assistant message is the summary
        self.compacted = False
        for own, said, parts in thread.messages:
            if said.get("role") == "assistant":
                self._assistant(own, said, parts)
            else:
                self._user(parts)

    def _user(self, parts: Sequence[Json]) -> None:
        marker = next((part for part in parts if part.get("type") == "compaction"), None)
        if marker is not None:
            self.compacting = "auto" if marker.get("auto") is True else "manual"
            return
        texts = [as_text(part.get("text")) for part in parts if part.get("type") == "text" and not part.get("ignored")]
        omitted = sum(size_of(part) for part in parts if part.get("type") == "file")
        self.prompt.append(Message(role="user", content="\n".join(texts), omitted_bytes=omitted))

    def _assistant(self, own: str, said: Json, parts: Sequence[Json]) -> None:
        summary = said.get("summary") is True
        steps = _steps(parts)
        for number, step in enumerate(steps):
            answer = _answer(step)
            self._call(f"{own}#{number}", said, step, answer, first=number == 0, last=number == len(steps) - 1)
            if answer is not None and not summary:
                self.prompt.append(answer)
                self.prompt.extend(_results(step))
            self.times.extend(_tool_times(step))
        if summary:
            texts = [as_text(part.get("text")) for part in parts if part.get("type") == "text"]
            # The words of opencode's own request: a question, the summary as its answer, then what follows.
            self.prompt = [
                Message(role="user", content="What did we do so far?"),
                Message(role="assistant", content="\n".join(texts)),
            ]
            self.compacting, self.compacted = None, True

    def _call(
        self, place: str, said: Json, step: Sequence[Json], answer: Message | None, *, first: bool, last: bool
    ) -> None:
        summary = said.get("summary") is True
        time = as_object(said.get("time"))
        starts = [as_object(part.get("time")).get("start") for part in step]
        send_ns = stamp_of_ms(time.get("created")) if first else _least(starts)
        if send_ns is None:
            return
        error = as_object(said.get("error")) if last else {}
        finish = next((part for part in step if part.get("type") == "step-finish"), None)
        tools = any(part.get("type") == "tool" for part in step)
        done = None if tools or not last else stamp_of_ms(time.get("completed"))
        words = as_text(as_object(error.get("data")).get("message")) or as_text(error.get("name"))
        call = log_call(
            exchange_id=place,
            api="unknown",  # whichever the provider's package speaks
            harness=HARNESS,
            harness_version=self.thread.version or None,
            model=as_text(said.get("modelID")),
            hints=(self.hint,),
            system=(),
            messages=tuple(self.prompt),
            answer=answer,
            usage=_usage(as_object((finish or {}).get("tokens"))),
            t_send_ns=send_ns,
            t_end_ns=done or _answer_end(step),
            complete=finish is not None and not error,
            error=(words or "error") if error else None if finish is not None else "the answer has no end in the log",
            stop=as_text((finish or {}).get("reason")) or None,
        )
        self.calls.append(
            replace(
                call,
                compaction=(self.compacting or "auto") if summary else None,
                context_compacted=self.compacted and not summary,
                agent_type=as_text(said.get("agent")) or None if self.hint.agent else None,
            )
        )
        self.compacted = False


def _steps(parts: Sequence[Json]) -> list[list[Json]]:
    """Parts of each model call: a step begins with its own mark; what stands before the first belongs to it."""
    steps: list[list[Json]] = [[]]
    for part in parts:
        if part.get("type") == "step-start" and any(one.get("type") != "step-start" for one in steps[-1]):
            steps.append([])
        steps[-1].append(part)
    return [step for step in steps if step]


def _answer(step: Sequence[Json]) -> Message | None:
    texts = [as_text(part.get("text")) for part in step if part.get("type") == "text"]
    thoughts = [as_text(part.get("text")) for part in step if part.get("type") == "reasoning"]
    calls = tuple(
        ToolUse(
            id=as_text(part.get("callID")),
            name=as_text(part.get("tool")),
            arguments=compact_json(as_object(part.get("state")).get("input", {})),
        )
        for part in step
        if part.get("type") == "tool"
    )
    if not (texts or thoughts or calls):
        return None
    return Message(
        role="assistant",
        content="\n".join(texts),
        reasoning_content="\n".join(thoughts) if thoughts else None,
        tool_calls=calls,
    )


def _results(step: Sequence[Json]) -> Iterator[Message]:
    for part in step:
        state = as_object(part.get("state"))
        if part.get("type") == "tool" and state.get("status") in ("completed", "error"):
            failed = state.get("status") == "error"
            yield Message(
                role="tool",
                content=as_text(state.get("error")) if failed else as_text(state.get("output")),
                tool_call_id=as_text(part.get("callID")),
                is_error=failed,
                omitted_bytes=sum(size_of(file) for file in as_list(state.get("attachments"))),
            )


def _tool_times(step: Sequence[Json]) -> Iterator[ToolTime]:
    for part in step:
        time = as_object(as_object(part.get("state")).get("time"))
        start_ns, end_ns = stamp_of_ms(time.get("start")), stamp_of_ms(time.get("end"))
        if part.get("type") == "tool" and start_ns is not None and end_ns is not None and end_ns >= start_ns:
            yield ToolTime(
                tool_call_id=as_text(part.get("callID")),
                source="log",
                internal_us=(end_ns - start_ns) // 1000,
                started_utc_us=start_ns // 1000,
                ended_utc_us=end_ns // 1000,
            )


def _answer_end(step: Sequence[Json]) -> int | None:
    """The last moment that the answer shows."""
    ends: list[int] = []
    for part in step:
        if part.get("type") in ("text", "reasoning"):
            at_ns = stamp_of_ms(as_object(part.get("time")).get("end"))
        else:
            at_ns = stamp_of_ms(as_object(as_object(part.get("state")).get("time")).get("start"))
        if at_ns is not None:
            ends.append(at_ns)
    return max(ends, default=None)


def _least(values: Sequence[object]) -> int | None:
    known = [at_ns for value in values if (at_ns := stamp_of_ms(value)) is not None]
    return min(known, default=None)


def _usage(tokens: Mapping[str, object]) -> Usage:
    """opencode counts fresh input apart from what the cache gave and took, and reasoning apart from other output."""
    cache = as_object(tokens.get("cache"))
    fresh, read, written = as_count(tokens.get("input")), as_count(cache.get("read")), as_count(cache.get("write"))
    output, reasoning = as_count(tokens.get("output")), as_count(tokens.get("reasoning"))
    return Usage(
        input_total=None if fresh is None else fresh + (read or 0) + (written or 0),
        cache_read=read,
        cache_write=written,
        output_total=None if output is None else output + (reasoning or 0),
        reasoning=reasoning,
        raw=compact_json(tokens) if tokens else None,
    )

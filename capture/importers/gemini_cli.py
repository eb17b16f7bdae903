"""Gemini CLI's own logs: `~/.gemini/tmp/<project>/chats/session-*.jsonl` (older: `.json`), sub-agents in a folder each.

Source of the format: logs of version 0.61.0, and the project's public reports on older ones. What it tells and what
not:

- A message is written again each time it grows: the last line of its id is the whole. `$set.messages` replaces what
  the model is sent (a resumed session repeats its history there, stamped anew and without its counts), `$rewindTo`
  cuts it; calls that were made stay made.
- Token counts are the provider's own, per answer. There is no id of the answer, no system prompt, no tools on offer.
- A call was sent at the stamp of the last message of its prompt and ended by its own, which the agent takes when it has
  read the answer. Attempts that failed are inside
  that time. A tool's stamp is that of its whole group: only a tool that ran alone has a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from capture.call import ModelCall, SessionHint, ToolTime, Usage
from capture.canonical import human_text
from capture.dialects import google_gemini
from capture.dialects.reading import Json, as_list, as_object, as_text, read_json
from capture.importers.imported import Imported, ImportFault, json_fault
from capture.importers.log_calls import find_logs, import_sessions, log_call, log_times, stamp_ns
from capture.importers.log_lines import LogFile, LogLine, first_lines, read_log_file
from capture.importers.log_session import HumanWait, LogSession

SOURCE = "gemini-cli-log"
HARNESS = "gemini-cli"
_WHAT = "Gemini CLI log"
_SUFFIXES = (".jsonl", ".json")


def import_gemini_cli(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Sessions of the logs under `paths` (files or folders); ImportFault when any of them is bad."""
    files, notes = find_logs(paths, suffixes=_SUFFIXES, is_log=_is_log, what=_WHAT, peek=_peek)
    notes.append("token counts of Gemini CLI logs are the provider's own; system prompt and tools are in none")
    sessions = _read_sessions(_with_agents(files), on_file)
    return import_sessions(sessions, key, token_source="provider", notes=notes)  # noqa: S106 - a word, no secret


def read_log(path: Path) -> list[LogSession]:
    """The sessions of one log file or of a folder of them; ImportFault when it is none or damaged."""
    files, _ = find_logs([path], suffixes=_SUFFIXES, is_log=_is_log, what=_WHAT, peek=_peek)
    return list(_read_sessions(_with_agents(files)))


def _is_log(lines: Sequence[Json]) -> bool:
    return any("sessionId" in line and "projectHash" in line for line in lines[:1])


def _peek(path: Path) -> Sequence[Json]:
    """The head of a log; of a document all of it, since it may be spread over lines."""
    if path.suffix != ".json":
        return first_lines(path, 1)
    try:
        return [as_object(read_json(path.read_bytes()))]
    except (OSError, ValueError):
        return []


def _with_agents(files: Sequence[Path]) -> list[Path]:
    """The files and those of the sub-agents: in a folder that is named for the session."""
    found = dict.fromkeys(files)
    for file in files:
        session = _head(_read(file)).session
        if session and (folder := file.parent / session).is_dir():
            found.update(dict.fromkeys(path.resolve() for path in sorted(folder.rglob("*.json*"))))
    return list(found)


def _read(path: Path) -> LogFile:
    """The file; an older log, which is one JSON document, as a head and a line per message."""
    if path.suffix != ".json":
        return read_log_file(path)
    try:
        document = read_json(path.read_bytes())
    except OSError as fault:
        raise ImportFault(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    except ValueError as fault:
        raise json_fault(str(path), path.read_bytes().decode("utf-8", "replace"), fault) from fault
    whole = as_object(document)
    head = {name: value for name, value in whole.items() if name != "messages"}
    entries = [head, *map(as_object, as_list(whole.get("messages")))]
    lines = tuple(LogLine(number=number, data=data) for number, data in enumerate(entries, 1))
    return LogFile(path=path, lines=lines, torn=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    session: str
    is_agent: bool
    started_ns: int | None


def _head(log: LogFile) -> _Head:
    data = log.lines[0].data if log.lines else {}
    return _Head(
        session=as_text(data.get("sessionId")),
        is_agent=data.get("kind") == "subagent",
        started_ns=stamp_ns(data.get("startTime")),
    )


def _read_sessions(files: Sequence[Path], on_file: Callable[[Path], None] | None = None) -> Iterator[LogSession]:
    """Sessions of the files; a session that was resumed into a second file is one."""
    groups: dict[str, list[tuple[Path, str | None]]] = {}
    for path in files:
        head = _head(_read(path))
        name = head.session or path.stem
        root = path.parent.name if head.is_agent else name
        groups.setdefault(root, []).append((path, name if head.is_agent else None))
    for root, members in groups.items():
        talks: list[_Talk] = []
        notes: list[str] = []
        known: set[str] = set()
        for path, agent in members:
            if on_file is not None:
                on_file(path)
            log = _read(path)
            if log.torn is not None:
                notes.append(f"{path}:{log.torn}: the last line is cut off and was left out")
            talk = _Talk(log, SessionHint(session=root, evidence="source", agent=agent), known)
            talk.read()
            talks.append(talk)
        calls = sorted(
            (call for talk in talks for call in talk.calls), key=lambda call: (call.t_send_ns, call.exchange_id)
        )
        yield LogSession(
            native_session_id=root,
            harness=HARNESS,
            harness_version=None,
            source=SOURCE,
            paths=tuple(str(path) for path, _ in members),
            calls=tuple(calls),
            tool_times=log_times(time for talk in talks for time in talk.times),
            human_waits=tuple(wait for talk in talks for wait in talk.waits),
            notes=tuple(notes),
        )


@dataclass(slots=True)
class _Talk:
    """One file, message by message."""

    log: LogFile
    hint: SessionHint
    known: set[str]  # ids of messages that another file of the session held
    calls: list[ModelCall] = field(default_factory=list)
    times: list[ToolTime] = field(default_factory=list)
    waits: list[HumanWait] = field(default_factory=list)
    _context: dict[str, Json] = field(default_factory=dict)  # what the model is sent, by id
    _whole: dict[str, Json] = field(default_factory=dict)  # each message as the last line that tells of it has it
    _idle_ns: int | None = None

    def read(self) -> None:
        """Read all lines. Two passes: what a message grew into has to be known when it is first met."""
        for line in self.log.lines[1:]:
            self._whole.update((as_text(message.get("id")), message) for message in _told_in(line.data))
        met: set[str] = set()
        for line in self.log.lines[1:]:
            data = line.data
            held = as_object(data.get("$set")).get("messages")
            if isinstance(data.get("$rewindTo"), str):
                names = list(self._context)
                at = names.index(data["$rewindTo"]) if data["$rewindTo"] in self._context else 0
                self._context = {name: self._context[name] for name in names[:at]}
            elif isinstance(held, list):
                self._context = {}
            told = {as_text(message.get("id")) for message in _told_in(data)}
            for message in [data] if as_text(data.get("id")) else map(as_object, as_list(held)):
                name = as_text(message.get("id"))
                whole = self._whole[name] if name in told else message
                if name in told and name not in met | self.known:
                    if whole.get("type") == "gemini":
                        self._call(whole, self.log.place(line))
                    self._person(whole)
                    met.add(name)
                if name:
                    self._context[name] = whole
        self.known.update(met)

    def _person(self, message: Json) -> None:
        at_ns = stamp_ns(message.get("timestamp"))
        if message.get("type") == "gemini":
            self._idle_ns = None if message.get("toolCalls") else at_ns
        elif message.get("type") == "user" and self.hint.agent is None:
            said = google_gemini.read_prompt(
                {"contents": [{"role": "user", "parts": _parts(message)}]}, {}, ""
            ).messages
            if any(human_text(part) for part in said):
                if self._idle_ns is not None and at_ns is not None and at_ns >= self._idle_ns:
                    self.waits.append(HumanWait(started_utc_us=self._idle_ns // 1000, ended_utc_us=at_ns // 1000))
                self._idle_ns = None

    def _call(self, message: Json, place: str) -> None:
        before = list(self._context.values())
        contents = _contents(before)
        prompt = google_gemini.read_prompt({"contents": contents}, {}, "")
        answer = google_gemini.read_prompt({"contents": [_spoken(message)]}, {}, "").messages[0]
        ended = stamp_ns(message.get("timestamp"))
        stamps = [at for earlier in before if (at := stamp_ns(earlier.get("timestamp"))) is not None]
        sent = max(stamps, default=ended if ended is not None else _head(self.log).started_ns)
        if sent is None:
            raise ImportFault(f"{self.log.path}: neither {place} nor the head of the log carries a time")
        self.calls.append(
            replace(
                log_call(
                    exchange_id=place,
                    api=google_gemini.API,
                    harness=HARNESS,
                    harness_version=None,
                    model=as_text(message.get("model")),
                    hints=(self.hint,),
                    system=(),
                    messages=prompt.messages,
                    answer=answer,
                    usage=_usage(as_object(message.get("tokens"))),
                    t_send_ns=sent,
                    t_end_ns=ended,
                    complete=True,
                ),
                request_class="subagent" if self.hint.agent else None,
            )
        )
        tools = [as_object(tool) for tool in as_list(message.get("toolCalls"))]
        over = stamp_ns(tools[0].get("timestamp")) if len(tools) == 1 else None
        if over is not None and ended is not None and over >= ended:
            self.times.append(
                ToolTime(
                    tool_call_id=as_text(tools[0].get("id")),
                    source="log",
                    internal_us=(over - ended) // 1000,
                    started_utc_us=ended // 1000,
                    ended_utc_us=over // 1000,
                )
            )


def _told_in(data: Json) -> list[Json]:
    """Messages that a line tells of, rather than repeats: its own, and in a checkpoint those with counts."""
    if as_text(data.get("id")):
        return [data]
    held = map(as_object, as_list(as_object(data.get("$set")).get("messages")))
    return [message for message in held if as_text(message.get("id")) and as_object(message.get("tokens"))]


def _contents(messages: Sequence[Json]) -> list[Json]:
    """The messages as the API takes them; results of tools that no message of the user carries stand in the call's."""
    found: list[Json] = []
    for number, message in enumerate(messages):
        if message.get("type") == "user":
            found.append({"role": "user", "parts": _parts(message)})
        elif message.get("type") == "gemini":
            found.append(_spoken(message))
            after = _parts(messages[number + 1]) if number + 1 < len(messages) else []
            if not any("functionResponse" in as_object(part) for part in after):
                results = [
                    part
                    for tool in as_list(message.get("toolCalls"))
                    for part in as_list(as_object(tool).get("result"))
                ]
                if results:
                    found.append({"role": "user", "parts": results})
    return found  # notices of the agent itself (info, warning, error) are not sent


def _parts(message: Json) -> list[object]:
    content = message.get("content")
    return [{"text": content}] if isinstance(content, str) else as_list(content)


def _spoken(message: Json) -> Json:
    if any("functionCall" in as_object(part) or "thought" in as_object(part) for part in _parts(message)):
        return {"role": "model", "parts": _parts(message)}  # as a checkpoint holds it: whole
    thoughts = [as_object(thought) for thought in as_list(message.get("thoughts"))]
    words = [
        ": ".join(filter(None, (as_text(one.get("subject")), as_text(one.get("description"))))) for one in thoughts
    ]
    parts: list[object] = [{"text": text, "thought": True} for text in words if text]
    parts += [part for part in _parts(message) if as_text(as_object(part).get("text"))]
    for tool in map(as_object, as_list(message.get("toolCalls"))):
        parts.append({"functionCall": {"id": tool.get("id"), "name": tool.get("name"), "args": tool.get("args")}})
    return {"role": "model", "parts": parts}


def _usage(tokens: Json) -> Usage:
    """Gemini CLI's own shape of the provider's counts."""
    names = {"input": "promptTokenCount", "cached": "cachedContentTokenCount", "output": "candidatesTokenCount"}
    names |= {"thoughts": "thoughtsTokenCount", "tool": "toolUsePromptTokenCount", "total": "totalTokenCount"}
    return google_gemini.read_usage({names[name]: tokens[name] for name in names if name in tokens})

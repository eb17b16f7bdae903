"""Claude Code's own logs: `projects/<folder>/<session>.jsonl` and the files of its sub-agents.

Source of the format: logs of real versions up to 2.1.328; the vendor documents none. What it tells and what not:

- Token counts are the provider's own, per answer. One answer stands on several lines, one per content block: they are
  put together by `message.id` and `requestId`, and the largest output count is the final one.
- A call was sent at the stamp of its `api-request` line (2.1.3xx); in older logs at the last stamp of what its prompt
  holds, or after the wait that an `api_error` line names. It ended at the stamp of its last content block. Nothing
  tells headers, first tokens or bytes.
- Older logs hold neither system prompt nor tools. No version logs titles, probes and the request that compacts.
- A fork copies history into its own file: a call counts once, in the session that made it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from capture.call import ModelCall, SessionHint, ToolTime, Usage
from capture.canonical import human_text
from capture.dialects import anthropic_messages
from capture.dialects.reading import Json, as_count, as_object, as_text, error_text, read_json
from capture.importers.claude_code_history import SYNTHETIC_MODEL, Answer, History, Line, LoggedRequest, make_line
from capture.importers.imported import Imported, ImportFault
from capture.importers.log_calls import find_logs, import_sessions, log_call, log_times, microseconds, stamp_ns
from capture.importers.log_lines import LogFile, first_lines, read_log_file
from capture.importers.log_session import HumanWait, LogSession

SOURCE = "claude-code-log"
HARNESS = "claude-code"
_SUFFIXES = (".jsonl", ".jsonl.zst")
_KINDS = frozenset(("user", "assistant", "attachment", "system", "summary", "queue-operation", "mode", "progress"))
# Tools whose time is a person's: questions, and plans that wait for a yes.
_ASKING = frozenset(("AskUserQuestion", "ExitPlanMode"))
_STATUS = re.compile(r"\b([45]\d\d)\b")


def import_claude_code(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Sessions of the logs under `paths` (files or folders); ImportFault when any of them is bad."""
    files, notes = find_logs(paths, suffixes=_SUFFIXES, is_log=_is_log, what="Claude Code log")
    notes.append("token counts of Claude Code logs are the provider's own")
    return import_sessions(read_sessions(_with_agents(files), on_file), key, token_source="provider", notes=notes)  # noqa: S106


def read_log(path: Path) -> list[LogSession]:
    """The sessions of one log file or of a folder of them; ImportFault when it is none or damaged."""
    files, _ = find_logs([path], suffixes=_SUFFIXES, is_log=_is_log, what="Claude Code log")
    return list(read_sessions(_with_agents(files)))


def _with_agents(files: Sequence[Path]) -> list[Path]:
    """The files and those of their sub-agents: in a folder of the session, or (older) beside it."""
    found = dict.fromkeys(files)
    beside: dict[Path, dict[Path, str]] = {}
    for file in files:
        session = file.name.split(".")[0]
        if session.startswith("agent-"):
            continue
        for path in sorted((file.parent / session).rglob("agent-*.jsonl*")):
            found.setdefault(path.resolve())
        if file.parent not in beside:
            beside[file.parent] = {
                path.resolve(): next(
                    (text for line in first_lines(path, 3) if (text := as_text(line.get("sessionId")))), ""
                )
                for path in sorted(file.parent.glob("agent-*.jsonl*"))
            }
        for path, owner in beside[file.parent].items():
            if owner == session:
                found.setdefault(path)
    return list(found)


def _is_log(lines: Sequence[Json]) -> bool:
    return any(
        as_text(line.get("type")) in _KINDS and ("sessionId" in line or "leafUuid" in line or "uuid" in line)
        for line in lines
    )


@dataclass(slots=True)
class _Group:
    """The files of one session."""

    session: str
    files: list[Path] = field(default_factory=list)


def read_sessions(files: Sequence[Path], on_file: Callable[[Path], None] | None = None) -> Iterator[LogSession]:
    """Sessions of the files, one after the other in memory; copied calls go to the session that made them."""
    groups: dict[str, _Group] = {}
    claims: defaultdict[tuple[str, str], list[tuple[bool, int, str]]] = defaultdict(list)
    for path in files:
        if on_file is not None:
            on_file(path)
        log = read_log_file(path)
        session = _session_of(log)
        groups.setdefault(session, _Group(session)).files.append(path)
        started = next((at for line in log.lines if (at := stamp_ns(line.data.get("timestamp"))) is not None), 0)
        for name, copied in _calls_in(log, session, started).items():
            claims[name].append((copied, started, session))
    owners = {name: min(claimed) for name, claimed in claims.items()}
    for group in groups.values():
        foreign = {
            name for name, (copied, _, session) in owners.items() if copied or session != group.session
        }  # a copy whose original is not in this import counts nowhere: importing that one later must not double it
        yield _Reader(group, foreign).session()


def _session_of(log: LogFile) -> str:
    """The id of the session that a file belongs to: its name, except for a sub-agent's file."""
    named = [text for line in log.lines if (text := as_text(line.data.get("sessionId")))]
    stem = log.path.name.split(".")[0]
    if stem in named or not named:
        return stem
    return named[0]


def _calls_in(log: LogFile, session: str, started: int) -> dict[tuple[str, str], bool]:
    """(message id, request id) of each answer, ("", uuid) of each failure, and whether it is another session's."""
    found: dict[tuple[str, str], bool] = {}
    for line in log.lines:
        data = line.data
        if _is_failure(data):
            # Copied errors carry no mark, but are older than the file that they stand in.
            at = stamp_ns(data.get("timestamp"))
            found["", as_text(data.get("uuid"))] = at is not None and at < started
        elif data.get("type") == "assistant" and (name := as_text(as_object(data.get("message")).get("id"))):
            forked = as_object(data.get("forkedFrom"))
            made_by = as_text(data.get("requestSessionId")) or as_text(forked.get("sessionId"))
            key = (name, as_text(data.get("requestId")))
            found[key] = found.get(key, False) or bool(made_by and made_by != session)
    return found


def _is_failure(data: Json) -> bool:
    """A line about a failed attempt: one that is repeated, or the last one, which speaks in the model's role."""
    return (data.get("type") == "system" and data.get("subtype") == "api_error") or (
        data.get("type") == "assistant" and data.get("isApiErrorMessage") is True
    )


class _Reader:
    """Reads one session."""

    def __init__(self, group: _Group, foreign: set[tuple[str, str]]) -> None:
        self.session_id = group.session
        self.foreign = foreign
        self.paths = group.files
        self.notes: list[str] = []
        self.agent_types: dict[str, str] = {}
        self.spawned_by: dict[str, str] = {}  # agent → the tool call that started it
        lines: list[Line] = []
        for path in group.files:
            log = read_log_file(path)
            if log.torn is not None:
                self.notes.append(f"{path}:{log.torn}: the last line is cut off and was left out")
            agent = path.name.split(".")[0].removeprefix("agent-") if path.name.startswith("agent-") else None
            if agent is not None:
                self._read_meta(path, agent)
            for line in log.lines:
                lines.append(make_line(len(lines), log.place(line), line.data, agent))
        self.history = History(_with_inline_agents(lines))
        self.caller = {tool_id: answer.first.agent for answer in self.history.answers for tool_id in answer.tool_ids()}
        self.stamps = sorted((line.position, line.at_ns) for line in lines if line.at_ns is not None)
        self.version: str | None = None
        self.boundaries = {
            line.uuid
            for line in lines
            if line.data.get("subtype") == "compact_boundary" or line.data.get("isCompactSummary") is True
        }
        self.compacted: set[tuple[str | None, str]] = set()

    def _read_meta(self, path: Path, agent: str) -> None:
        try:
            meta = as_object(read_json(path.with_name(f"agent-{agent}.meta.json").read_bytes()))
        except (OSError, ValueError):
            return
        if kind := as_text(meta.get("agentType")):
            self.agent_types[agent] = kind
        self.spawned_by[agent] = as_text(meta.get("toolUseId"))

    def session(self) -> LogSession:
        """All that the files tell."""
        history = self.history
        calls: list[tuple[int, ModelCall]] = []
        spoken = [answer for answer in history.answers if answer.model() != SYNTHETIC_MODEL]
        own = [answer for answer in spoken if answer.key not in self.foreign]
        copied = len(spoken) - len(own)
        by_request = {name: answer for answer in own if (name := as_text(answer.first.data.get("requestRef")))}
        done: set[int] = set()
        errors = self._errors()
        for request in history.requests:
            if (answered := by_request.pop(request.id, None)) is not None:
                calls.append((answered.first.position, self._answered(answered, request)))
                done.add(id(answered))
            else:
                error = errors.pop(self._error_after(request, errors), None)
                calls.append((request.line.position, self._failed(request.line, request, error)))
        calls += [(answer.first.position, self._answered(answer, None)) for answer in own if id(answer) not in done]
        calls += [(position, self._failed(error, None, error)) for position, error in errors.items()]
        if copied:
            self.notes.append(f"session {self.session_id}: {copied} calls are history copied from another session")
        if calls and not history.requests:
            self.notes.append(
                "logs of this Claude Code version hold neither system prompt nor tools; titles, probes and "
                "compaction requests are in none"
            )
        ordered = tuple(call for _, call in sorted(calls, key=lambda entry: (entry[1].t_send_ns, entry[0])))
        return LogSession(
            native_session_id=self.session_id,
            harness=HARNESS,
            harness_version=next((call.harness_version for call in reversed(ordered) if call.harness_version), None),
            source=SOURCE,
            paths=tuple(str(path) for path in self.paths),
            calls=ordered,
            tool_times=log_times(self._tool_times()),
            human_waits=tuple(self._human_waits(ordered)),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _hints(self, line: Line) -> tuple[SessionHint, ...]:
        parent = self.caller.get(self.spawned_by.get(line.agent or "", ""))
        return (SessionHint(session=self.session_id, evidence="source", agent=line.agent, parent_agent=parent),)

    def _stamp(self, line: Line) -> int:
        """The line's own time, else that of the nearest earlier line, else of the first later one."""
        if line.at_ns is not None:
            return line.at_ns
        if not self.stamps:
            raise ImportFault(f"{self.paths[0]}: no line of the log carries a time")
        return next((at for position, at in reversed(self.stamps) if position < line.position), self.stamps[0][1])

    def _answered(self, answer: Answer, request: LoggedRequest | None) -> ModelCall:
        first, last = answer.first, answer.lines[-1]
        blocks = answer.blocks()
        message = anthropic_messages.read_assistant([block for block, _ in blocks])
        closed = {as_text(block.get("id")): at for block, at in blocks}
        message = replace(
            message,
            tool_calls=tuple(replace(use, t_emitted_ns=closed.get(use.id)) for use in message.tool_calls),
        )
        stop = answer.stop()
        usage = anthropic_messages.read_usage(answer.usage())
        complete = stop is not None or not self._interrupted(last)
        notes = () if stop is not None else ("the log has no stop reason: its output count may be a partial one",)
        call = self._call(first, request, path_leaf=first.parent)
        end = max((line.at_ns for line in answer.lines if line.at_ns is not None), default=None)
        return replace(
            call,
            model=answer.model() or call.model,
            answer=message,
            usage=usage,
            stop=stop,
            complete=complete,
            response_id=answer.message_id if answer.first.message.get("id") else None,
            t_end_ns=end if end is not None and end >= call.t_send_ns else None,
            notes=(*call.notes, *notes),
        )

    def _interrupted(self, last: Line) -> bool:
        """Whether the user stopped the answer: the next words in the tree say so."""
        return any(
            as_text(block.get("text")).startswith("[Request interrupted")
            for line in self.history.children.get(last.uuid, ())
            if line.kind == "user"
            for block in line.blocks
        )

    def _failed(self, line: Line, request: LoggedRequest | None, error: Line | None) -> ModelCall:
        """A call without an answer: an attempt that the agent repeats, or one that was cut off."""
        leaf = line.parent if request is None else (error.parent if error is not None else self._leaf_before(line))
        call = self._call(line, request, path_leaf=leaf)
        if error is None:
            return replace(call, notes=(*call.notes, "the log holds no answer to it"))
        detail = as_object(error.data.get("error"))
        words = as_text(detail.get("formatted")) or as_text(detail.get("message")) or error_text(detail)
        if error.kind == "assistant":
            words = "\n".join(as_text(block.get("text")) for block in error.blocks)
        status = as_count(detail.get("status")) or as_count(error.data.get("apiErrorStatus"))
        if status is None and (found := _STATUS.search(words or "")):
            status = int(found[1])
        retry = as_count(error.data.get("retryAttempt"))
        end = error.at_ns
        return replace(
            call,
            status=status,
            error=words or "the request failed",
            attempt=retry - 1 if retry else None,
            t_end_ns=end if end is not None and end >= call.t_send_ns else None,
        )

    def _leaf_before(self, line: Line) -> str:
        """The last line of the same agent before a request: lines are written in order."""
        earlier = self.history.lines[: line.position]
        return next((other.uuid for other in reversed(earlier) if other.uuid and other.agent == line.agent), "")

    def _call(self, line: Line, request: LoggedRequest | None, *, path_leaf: str) -> ModelCall:
        """The request's half of a call, told by the logged request or else by the tree."""
        path = self.history.path(path_leaf)
        notes: list[str] = []
        messages = None
        parameters: dict[str, object] = {}
        if request is not None:
            parameters = dict(request.parameters)
            messages = self.history.spoken(request, path)
            if messages is not None and request.shape is not None:
                parameters |= {"system": request.shape.get("system"), "tools": request.shape.get("tools")}
        if messages is None:
            messages = self.history.prompt(path, line.position)
            notes.append("prompt rebuilt from the log; its system prompt and tools are unknown")
        prompt = anthropic_messages.read_prompt(parameters, {}, "/v1/messages")
        sent = self._sent(line, path) if request is None else self._stamp(request.line)
        retries = [error for error in _trailing(path) if error.data.get("subtype") == "api_error"]
        call = log_call(
            exchange_id=line.place,
            api=anthropic_messages.API,
            harness=HARNESS,
            harness_version=as_text(line.data.get("version")) or None,
            model=prompt.model or as_text(line.data.get("requestedModel")),
            hints=self._hints(line),
            system=prompt.system,
            messages=(*prompt.system, *messages),
            answer=None,
            usage=Usage(),
            t_send_ns=sent,
            t_end_ns=None,
            complete=False,
            notes=tuple(notes),
        )
        source = as_text(request.line.data.get("querySource")) if request is not None else ""
        return replace(
            call,
            tools=prompt.tools,
            max_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            effort=prompt.effort,
            attempt=len(retries) if retries else None,
            agent_type=self.agent_types.get(line.agent) if line.agent else None,
            request_class="subagent" if line.agent else "compaction" if source == "compact" else None,
            compaction="unknown" if source == "compact" else None,
            context_compacted=self._newly_compacted(line.agent, path),
        )

    def _sent(self, line: Line, path: Sequence[Line]) -> int:
        """When a call was sent, as far as an older log tells: after the last thing that its prompt holds."""
        best = None
        for other in _trailing(path):
            at = other.at_ns
            if at is not None and other.data.get("subtype") == "api_error":
                wait = other.data.get("retryInMs")
                at += int(wait * 1_000_000) if isinstance(wait, int | float) and 0 <= wait < 86_400_000 else 0
            if at is not None and (best is None or at > best):
                best = at
        answers = (self.history.answer_of.get(other.uuid) for other in reversed(path))
        answered = next((answer for answer in answers if answer is not None), None)
        for tool_id in answered.tool_ids() if answered is not None else ():
            for result in self.history.results.get(tool_id, ()):
                if result.position < line.position and result.at_ns is not None and (best or 0) < result.at_ns:
                    best = result.at_ns
        own = self._stamp(line)
        return own if best is None or best > own else best

    def _newly_compacted(self, agent: str | None, path: Sequence[Line]) -> bool:
        """Whether a compaction stands on the path that no earlier prompt of the agent had."""
        marks = {(agent, line.uuid) for line in path if line.uuid in self.boundaries} if self.boundaries else set()
        new = bool(marks - self.compacted)
        self.compacted |= marks
        return new

    def _errors(self) -> dict[int, Line]:
        """Lines about failed attempts, by position."""
        return {
            line.position: line
            for line in self.history.lines
            if _is_failure(line.data) and ("", line.uuid) not in self.foreign
        }

    def _error_after(self, request: LoggedRequest, errors: dict[int, Line]) -> int:
        """Position of the error that answers a request: the next of its agent, before the next request."""
        own = [other.line for other in self.history.requests if other.line.agent == request.line.agent]
        start = request.line.position
        until = min((line.position for line in own if line.position > start), default=len(self.history.lines))
        return next((at for at, line in errors.items() if start < at < until and line.agent == request.line.agent), -1)

    def _tool_times(self) -> Iterator[ToolTime]:
        """What the log tells of each tool call: its own duration, else the time from the call to the result.

        Of several calls in one answer only the first to finish can be told so: another may have waited for it.
        """
        for answer in self.history.answers:
            if answer.key in self.foreign:
                continue
            ended: dict[str, tuple[int, Line]] = {}
            emitted: dict[str, int | None] = {}
            names: dict[str, str] = {}
            for block, at in answer.blocks():
                if block.get("type") != "tool_use":
                    continue
                tool_id = as_text(block.get("id"))
                emitted[tool_id], names[tool_id] = at, as_text(block.get("name"))
                results = self.history.results.get(tool_id, ())
                if results and results[0].at_ns is not None:
                    ended[tool_id] = (results[0].at_ns, results[0])
            first = min((at for at, _ in ended.values()), default=None)
            for tool_id, (end, result) in ended.items():
                start = emitted[tool_id]
                span = (end - start) // 1000 if start is not None and start <= end else None
                told = _told_us(result.data.get("toolUseResult"))
                asked = names[tool_id] in _ASKING
                decided = as_text(as_object(result.data.get("permissionDecision")).get("source"))
                alone = end == first and not decided.startswith("user") and not _untimed(result.data)
                yield ToolTime(
                    tool_call_id=tool_id,
                    source="log",
                    internal_us=None if asked else told if told is not None else span if alone else None,
                    permission_us=span if asked else None,
                    started_utc_us=microseconds(start),
                    ended_utc_us=microseconds(end),
                )

    def _human_waits(self, calls: Sequence[ModelCall]) -> Iterator[HumanWait]:
        """From the end of a turn to the person's next words, on the main conversation."""
        ends = sorted(
            call.t_end_ns
            for call in calls
            if call.t_end_ns is not None
            and call.hints[0].agent is None
            and not (call.answer and call.answer.tool_calls)
        )
        spoken = 0
        for line in self.history.lines:
            if line.kind != "user" or line.agent is not None or line.at_ns is None or not self._typed(line):
                continue
            before = bisect_right(ends, line.at_ns)
            start = max(ends[before - 1], spoken) if before else None
            if start is not None and start <= line.at_ns:
                yield HumanWait(started_utc_us=start // 1000, ended_utc_us=line.at_ns // 1000)
            spoken = line.at_ns

    @staticmethod
    def _typed(line: Line) -> bool:
        data = line.data
        if data.get("isMeta") or data.get("isCompactSummary") or data.get("promptSource") == "system":
            return False
        if any(block.get("type") == "tool_result" for block in line.blocks):
            return False
        messages = anthropic_messages.read_prompt({"messages": [line.message]}, {}, "/v1/messages").messages
        return any(human_text(message) for message in messages)


def _trailing(path: Sequence[Line]) -> list[Line]:
    """What the prompt got after the model's last word."""
    at = next((number for number in range(len(path) - 1, -1, -1) if path[number].kind == "assistant"), -1)
    return list(path[at + 1 :])


def _told_us(result: object) -> int | None:
    """A tool's own duration in microseconds, where its result tells it."""
    fields = as_object(result)
    for name, factor in (("durationMs", 1_000), ("totalDurationMs", 1_000), ("durationSeconds", 1_000_000)):
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
            return round(value * factor)
    return None


def _untimed(data: Json) -> bool:
    """Whether a result says that nobody timed the tool: an export of ours, of a recording that does not know."""
    result = as_object(data.get("toolUseResult"))
    return "durationMs" in result and result["durationMs"] is None


def _with_inline_agents(lines: list[Line]) -> list[Line]:
    """Old logs keep sub-agents in the main file: each root of a side chain names one."""
    by_uuid = {line.uuid: line for line in lines if line.uuid}
    agents: dict[str, str] = {}
    found = []
    for line in lines:
        if line.agent is None and line.data.get("isSidechain") is True:
            agent = agents.get(line.parent)
            if agent is None:
                parent = by_uuid.get(line.parent)
                inside = parent is not None and parent.data.get("isSidechain") is True and parent is not line
                agent = f"sidechain-{line.parent if inside else line.uuid}"
            if line.uuid:
                agents[line.uuid] = agent
            line = replace(line, agent=agent)
        found.append(line)
    return found

"""Agent Trajectory Interchange Format (ATIF) 1.0 to 1.8, as harbor and others write it.

Source of the format: the models of the PyPI package `atif` 1.8.0. A step of an agent is a call whose prompt is what
the steps before it said. The format is lossy: one optional stamp per step, taken as the moment of sending; no end, no
first token, no retries, no request bodies. Steps copied from another trajectory and steps without inference are part
of the prompt and no calls; the token counts of a step that sums several inferences are unknown. Times of a trajectory
in which an agent's step lacks its stamp are unknown.

The documents that agentdyno itself exports hold all of that under `extra.agentdyno`, and it comes back: request times,
declared tool times, where a context starts over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from capture.assemble import Origin, assemble
from capture.call import Message, ModelCall, Role, SessionHint, Tool, ToolTime, ToolUse, Usage
from capture.dialects.openai_chat import read_content, read_tools
from capture.dialects.reading import Json, as_count, as_list, as_number, as_object, as_text, compact_json
from capture.importers.clockless import STEP_NS, without_clock
from capture.importers.documents import parse_document, read_text
from capture.importers.imported import Imported, ImportFault, native_id
from capture.importers.log_calls import log_call, stamp_ns
from capture.timing import Statement, ToolOutcome, apply_statements
from capture.trajectory import Trajectory

SOURCE = "atif"
_OURS = "agentdyno"  # the key under `extra` of the documents that agentdyno exports
_UNDATED_US = 86_400_000_000  # where a session of ours lies whose date is unknown, until it is read
_VERSION = re.compile(r"ATIF-v1\.(\d+)$")
_NOTE = "ATIF has one time per step at most: ends and tool times are unknown; token counts are the agent's"


def import_atif(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Sessions of the documents under `paths`; ImportFault when any of them is bad."""
    found: dict[str, Trajectory] = {}
    notes = [_NOTE]
    for path, document in _documents(paths, on_file):
        own = as_text(document.get("trajectory_id")) or as_text(document.get("session_id")) or path.name
        # Runs share a session_id by design: then the file's name tells them apart.
        name = own if own not in found else f"{own}/{path.name}"
        if name in found:
            raise ImportFault(f"{path}: the trajectory {own!r} stands twice in this import")
        reading = _Document(path, document, name, notes)
        if not reading.calls:
            notes.append(f"{path}: no step of an agent in it")
            continue
        found[name] = reading.trajectory(key)
    return Imported(
        trajectories=tuple(found.values()),
        native_ids=tuple(native_id(SOURCE, name) for name in found),
        notes=tuple(dict.fromkeys(notes)),
    )


def _documents(paths: Sequence[Path], on_file: Callable[[Path], None] | None) -> Iterator[tuple[Path, Json]]:
    def text_of(file: Path) -> str:
        if on_file is not None:
            on_file(file)
        return read_text(file)

    for path in paths:
        if not path.is_dir():
            lines = text_of(path).split("\n") if path.suffix == ".jsonl" else [text_of(path)]
            yield from ((path, _document(path, line)) for line in lines if line.strip())
            continue
        inside = [
            (file, _document(file, text))
            for file in sorted(path.rglob("*.json"))
            if '"ATIF-v' in (text := text_of(file))[:4096]
        ]
        if not inside:
            raise ImportFault(f"{path}: no ATIF document in there")
        yield from inside


def _document(path: Path, text: str) -> Json:
    document = as_object(parse_document(path, text))
    version = as_text(document.get("schema_version"))
    if not _VERSION.match(version):
        raise ImportFault(f"{path}: schema_version is {version!r}, known are ATIF-v1.0 to ATIF-v1.8")
    return document


class _Document:
    """One document and the sub-agents that it holds, as calls."""

    def __init__(self, path: Path, document: Json, name: str, notes: list[str]) -> None:
        self.path = path
        self.name = name
        self.notes = notes
        self.calls: list[ModelCall] = []
        self.clock = True
        self.times: list[ToolTime] = []
        self.outcomes: list[ToolOutcome] = []
        self._order = 0
        self._t0_us = as_count(_ours(document).get("t0_utc_us"))
        self._read(document, str(path), agent=None, parent=None)
        if document.get("continued_trajectory_ref"):
            notes.append(f"{path}: goes on in another document, which is a session of its own here")

    def trajectory(self, key: bytes) -> Trajectory:
        """The session."""
        calls = self.calls
        if not self.clock:
            calls = [replace(call, t_send_ns=at * STEP_NS) for at, call in enumerate(calls)]
            self.notes.append(f"{self.path}: not every step has a stamp, so its times are unknown")
        first, *rest = assemble(calls, key, Origin(source=SOURCE, token_source="agent"))  # noqa: S106 - a word
        assert not rest, "every call names its session"
        first = replace(first, source_ref=self.path.name)
        if not self.clock:
            return without_clock(first)
        if self._t0_us is None and any(call.t_send_ns < 2 * _UNDATED_US * 1000 for call in calls):
            first = replace(first, t0_utc_us=None)
        told = Statement(source_name=SOURCE, times=self.times, outcomes=self.outcomes)
        return apply_statements(first, [told])

    def _read(self, document: Json, place: str, *, agent: str | None, parent: str | None) -> None:
        about = as_object(document.get("agent"))
        steps = document.get("steps")
        if not isinstance(steps, list):
            raise ImportFault(f"{place}: `steps` is no list")
        inner = {
            as_text(entry.get("trajectory_id")): entry
            for entry in map(as_object, as_list(document.get("subagent_trajectories")))
        }
        messages: list[Message] = []
        tools = tuple(read_tools({"tools": about.get("tool_definitions")}))
        for number, value in enumerate(steps):
            where = f"{place}: steps[{number}]"
            step = as_object(value)
            source = as_text(step.get("source"))
            if source not in ("system", "user", "agent"):
                raise ImportFault(f"{where}: source is {source!r}, known are system, user and agent")
            message = self._message(step, source)
            if _ours(step).get("new_context"):
                messages.clear()
            if source == "agent" and step.get("llm_call_count") != 0 and not step.get("is_copied_context"):
                self._call(step, about, messages, message, tools, SessionHint(
                    session=self.name, evidence="source", agent=agent, parent_agent=parent
                ))  # fmt: skip
            messages.append(message)
            for result in map(as_object, as_list(as_object(step.get("observation")).get("results"))):
                messages.extend(_result(result))
                for ref in map(as_object, as_list(result.get("subagent_trajectory_ref"))):
                    self._sub_agent(ref, inner, where, agent)
        for name, rest in list(inner.items()):  # held, but no step refers to it
            self._read(rest, f"{place}: {name}", agent=name or "sub-agent", parent=agent)

    def _sub_agent(self, ref: Json, inner: dict[str, Json], where: str, agent: str | None) -> None:
        name = as_text(ref.get("trajectory_id"))
        if name in inner:
            self._read(inner.pop(name), f"{where}: {name}", agent=name, parent=agent)
        elif path := as_text(ref.get("trajectory_path")):
            self.notes.append(f"{where}: the sub-agent's trajectory is in {path}, a session of its own once imported")

    def _call(
        self,
        step: Json,
        about: Json,
        messages: list[Message],
        answer: Message,
        tools: tuple[Tool, ...],
        hint: SessionHint,
    ) -> None:
        self._order += 1
        ours = _ours(step)
        stamp = self._at_ns(ours, "t_send_us")
        if stamp is None:
            stamp = stamp_ns(step.get("timestamp"))
        self.clock = self.clock and stamp is not None
        count = step.get("llm_call_count")
        metrics = as_object(step.get("metrics")) if count in (None, 1) else {}
        if count not in (None, 1):
            self.notes.append(f"{self.path}: some steps sum several inferences, whose token counts are unknown")
        head = next((at for at, one in enumerate(messages) if one.role != "system"), len(messages))
        call = log_call(
            exchange_id=f"{self.name}#{self._order:06d}",
            api="openai.chat",
            harness=as_text(about.get("name")) or "unknown",
            harness_version=as_text(about.get("version")) or None,
            model=as_text(step.get("model_name")) or as_text(about.get("model_name")),
            hints=(hint,),
            system=tuple(messages[:head]),
            messages=tuple(messages),
            answer=answer,
            usage=_usage(metrics),
            t_send_ns=stamp or self._order * STEP_NS,
            t_end_ns=self._at_ns(ours, "t_end_us"),
            complete=True,
            status=as_count(ours.get("status")),
            stop=as_text(ours.get("stop")) or None,
            t_first_content_ns=self._at_ns(ours, "t_first_token_us"),
        )
        effort, stream = step.get("reasoning_effort"), ours.get("stream")
        self.calls.append(
            replace(
                call,
                tools=tools,
                effort=None if effort is None else str(effort),
                stream=stream if isinstance(stream, bool) else None,
                max_tokens=as_count(ours.get("max_tokens")),
                temperature=as_number(ours.get("temperature")),
                t_headers_ns=self._at_ns(ours, "t_headers_us"),
                t_first_byte_ns=self._at_ns(ours, "t_first_byte_us"),
                t_first_text_ns=self._at_ns(ours, "t_first_text_us"),
                t_first_thinking_ns=self._at_ns(ours, "t_first_thinking_us"),
                t_first_tool_call_ns=self._at_ns(ours, "t_first_tool_call_us"),
                t_last_content_ns=self._at_ns(ours, "t_last_token_us"),
                agent_type=as_text(ours.get("agent_type")) or None,
            )
        )

    def _at_ns(self, ours: Json, name: str) -> int | None:
        at_us = as_count(ours.get(name))
        return None if at_us is None else ((self._t0_us or _UNDATED_US) + at_us) * 1000

    def _message(self, step: Json, source: str) -> Message:
        text, omitted = read_content(step.get("message"))
        ours = _ours(step)
        omitted += as_count(ours.get("omitted_bytes")) or 0
        if source == "agent":
            return Message(
                role="assistant",
                content=text,
                reasoning_content=as_text(step.get("reasoning_content")) or None,
                tool_calls=tuple(self._tool_use(as_object(call)) for call in as_list(step.get("tool_calls"))),
                omitted_bytes=omitted,
            )
        if call_id := as_text(ours.get("tool_call_id")):
            return Message(
                role="tool",
                content=text,
                name=as_text(ours.get("name")) or None,
                tool_call_id=call_id,
                is_error=_flag(ours, "is_error"),
                omitted_bytes=omitted,
            )
        developer = ours.get("role") == "developer"
        role: Role = "developer" if developer else "system" if source == "system" else "user"
        return Message(role=role, content=text, name=as_text(ours.get("name")) or None, omitted_bytes=omitted)

    def _hear(self, call_id: str, ours: Json) -> None:
        source = ours.get("internal_source")
        self.times.append(
            ToolTime(
                tool_call_id=call_id,
                source=source if source in ("header", "body", "otel") else "log",
                internal_us=as_count(ours.get("internal_us")),
                permission_us=as_count(ours.get("permission_us")),
            )
        )
        self.outcomes.append(
            ToolOutcome(
                tool_call_id=call_id,
                is_error=_flag(ours, "is_error"),
                exit_code=as_count(ours.get("exit_code")),
                timed_out=_flag(ours, "timed_out"),
            )
        )

    def _tool_use(self, call: Json) -> ToolUse:
        ours = _ours(call)
        call_id = as_text(call.get("tool_call_id"))
        if ours:
            self._hear(call_id, ours)
        text = ours.get("arguments")
        return ToolUse(
            id=call_id,
            name=as_text(call.get("function_name")),
            arguments=text if isinstance(text, str) else compact_json(call.get("arguments", {})),
            t_emitted_ns=self._at_ns(ours, "t_emitted_us"),
        )


def _ours(value: Json) -> Json:
    """What agentdyno's own export says of a document, a step, a call or a result; empty in others' documents."""
    return as_object(as_object(value.get("extra")).get(_OURS))


def _flag(ours: Json, name: str) -> bool | None:
    told = ours.get(name)
    return told if isinstance(told, bool) else None


def _usage(metrics: Json) -> Usage:
    return Usage(
        input_total=as_count(metrics.get("prompt_tokens")),
        cache_read=as_count(metrics.get("cached_tokens")),
        cache_write=as_count(as_object(metrics.get("extra")).get("cache_write_tokens")),
        output_total=as_count(metrics.get("completion_tokens")),
        reasoning=as_count(as_object(metrics.get("extra")).get("reasoning_tokens")),
    )


def _result(result: Json) -> list[Message]:
    text, omitted = read_content(result.get("content"))
    call_id = as_text(result.get("source_call_id"))
    if call_id:
        return [
            Message(
                role="tool",
                content=text,
                name=as_text(_ours(result).get("name")) or None,
                tool_call_id=call_id,
                is_error=_flag(_ours(result), "is_error"),
                omitted_bytes=omitted + (as_count(_ours(result).get("omitted_bytes")) or 0),
            )
        ]
    # What the environment says by itself reaches the model in the user's role.
    return [Message(role="user", content=text, omitted_bytes=omitted)] if text or omitted else []

"""Agent Trajectory Interchange Format (ATIF) 1.0 to 1.8, as harbor and others write it.

Source of the format: the models of the PyPI package `atif` 1.8.0. A step of an agent is a call whose prompt is what
the steps before it said. The format is lossy: one optional stamp per step, taken as the moment of sending; no end, no
first token, no retries, no request bodies. Steps copied from another trajectory and steps without inference are part
of the prompt and no calls; the token counts of a step that sums several inferences are unknown. Times of a trajectory
in which an agent's step lacks its stamp are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from capture.assemble import Origin, assemble
from capture.call import Message, ModelCall, SessionHint, Tool, ToolUse, Usage
from capture.dialects.openai_chat import read_content, read_tools
from capture.dialects.reading import Json, as_count, as_list, as_object, as_text, compact_json
from capture.importers.clockless import STEP_NS, without_clock
from capture.importers.documents import parse_document, read_text
from capture.importers.imported import Imported, ImportFault, native_id
from capture.importers.log_calls import log_call, stamp_ns
from capture.trajectory import Trajectory

SOURCE = "atif"
_VERSION = re.compile(r"ATIF-v1\.(\d+)$")
_NOTE = "ATIF has one time per step at most: ends and tool times are unknown; token counts are the agent's"


def import_atif(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Sessions of the documents under `paths`; ImportFault when any of them is bad."""
    found: dict[str, Trajectory] = {}
    notes = [_NOTE]
    for path, document in _documents(paths):
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
        if on_file is not None:
            on_file(path)
    return Imported(
        trajectories=tuple(found.values()),
        native_ids=tuple(native_id(SOURCE, name) for name in found),
        notes=tuple(dict.fromkeys(notes)),
    )


def _documents(paths: Sequence[Path]) -> Iterator[tuple[Path, Json]]:
    for path in paths:
        if not path.is_dir():
            yield path, _document(path, named=True)
            continue
        inside = [(file, found) for file in sorted(path.rglob("*.json")) if (found := _document(file, named=False))]
        if not inside:
            raise ImportFault(f"{path}: no ATIF document in there")
        yield from inside


def _document(path: Path, *, named: bool) -> Json:
    """A document; an empty one where a file of a folder is something else."""
    text = read_text(path)
    if not named and '"ATIF-v' not in text[:4096]:
        return {}
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
        self._order = 0
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
        return first if self.clock else without_clock(first)

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
            message = _message(step, source)
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
            t_end_ns=None,
            complete=True,
        )
        effort = step.get("reasoning_effort")
        self.calls.append(replace(call, tools=tools, effort=None if effort is None else str(effort)))


def _usage(metrics: Json) -> Usage:
    return Usage(
        input_total=as_count(metrics.get("prompt_tokens")),
        cache_read=as_count(metrics.get("cached_tokens")),
        output_total=as_count(metrics.get("completion_tokens")),
        reasoning=as_count(as_object(metrics.get("extra")).get("reasoning_tokens")),
    )


def _message(step: Json, source: str) -> Message:
    text, omitted = read_content(step.get("message"))
    if source == "agent":
        return Message(
            role="assistant",
            content=text,
            reasoning_content=as_text(step.get("reasoning_content")) or None,
            tool_calls=tuple(
                ToolUse(
                    id=as_text(call.get("tool_call_id")),
                    name=as_text(call.get("function_name")),
                    arguments=compact_json(call.get("arguments", {})),
                )
                for call in map(as_object, as_list(step.get("tool_calls")))
            ),
            omitted_bytes=omitted,
        )
    return Message(role="system" if source == "system" else "user", content=text, omitted_bytes=omitted)


def _result(result: Json) -> list[Message]:
    text, omitted = read_content(result.get("content"))
    call_id = as_text(result.get("source_call_id"))
    if call_id:
        return [Message(role="tool", content=text, tool_call_id=call_id, omitted_bytes=omitted)]
    # What the environment says by itself reaches the model in the user's role.
    return [Message(role="user", content=text, omitted_bytes=omitted)] if text or omitted else []

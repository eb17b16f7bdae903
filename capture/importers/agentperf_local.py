"""agentperf-local replays, version 1: a manifest and one JSON-lines file per task, with text.

Every line repeats the whole prompt; the pool stores each message once. The format has no clock: times follow from the
recorded duration of each model call and the recorded delay of the tools after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources, util
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from capture.assemble import session_id
from capture.call import Message, Tool
from capture.dialects.openai_chat import read_message, read_tools
from capture.importers.imported import Imported, ImportFault, json_fault, native_id
from capture.intervals import union_length
from capture.pool import MessagePool
from capture.tool_kind import exit_code, timed_out, tool_kind
from capture.trajectory import CaptureQuality, Request, ToolCall, Trajectory

SOURCE = "agentperf-local"
PACKAGE = "agentperf_local"
LICENSE = "Apache-2.0"  # of the package that carries the replays


def import_agentperf_local(
    manifest: Path | None, key: bytes, *, on_file: Callable[[Path], None] | None = None
) -> Imported:
    """Read a manifest's tasks; None reads the default replay of the installed package."""
    source: Traversable = installed_manifest() if manifest is None else manifest
    content = _read_json(source, str(source))
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list):
        raise ImportFault(f"{source}: no list `tasks`: is this an agentperf-local manifest?")
    if content.get("version") != 1:
        raise ImportFault(f"{source}: version is {content.get('version')!r}, known is 1")
    folder = _folder_of(source)
    trajectories: dict[str, Trajectory] = {}
    for number, task in enumerate(content["tasks"]):
        place = f"{source}: tasks[{number}]"
        if not isinstance(task, dict) or not all(isinstance(task.get(name), str) for name in ("task_id", "trace")):
            raise ImportFault(f"{place}: `task_id` or `trace` is missing")
        if on_file is not None:
            on_file(Path(task["trace"]))
        trajectory = _read_task(task, folder.joinpath(task["trace"]), key)
        if task["task_id"] in trajectories:
            raise ImportFault(f"{place}: the task {task['task_id']!r} stands twice in the manifest")
        trajectories[task["task_id"]] = trajectory
    return Imported(
        trajectories=tuple(trajectories.values()),
        native_ids=tuple(native_id(SOURCE, name) for name in trajectories),
        notes=(),
    )


def installed_manifest() -> Traversable:
    """The default replay's manifest inside the installed package; its command line is never run."""
    if util.find_spec(PACKAGE) is None:
        raise ImportFault("the package agentperf-local is not installed: install it, or name a manifest file")
    folder = resources.files(PACKAGE).joinpath("data", "replays", "agentperf-default-v1")
    # One manifest per processor type; they differ in the names of container images alone.
    found = (
        sorted((entry for entry in folder.iterdir() if entry.name.startswith("manifest")), key=lambda entry: entry.name)
        if folder.is_dir()
        else []
    )
    if not found:
        raise ImportFault("the installed agentperf-local has no replay agentperf-default-v1: name a manifest file")
    return found[-1]


def _folder_of(source: Traversable) -> Traversable:
    if isinstance(source, Path):
        return source.parent
    return resources.files(PACKAGE).joinpath("data", "replays", "agentperf-default-v1")


def _read_text(source: Traversable, place: str) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except OSError as fault:
        raise ImportFault(f"{place}: cannot be read: {fault.strerror or fault}") from fault
    except UnicodeDecodeError as fault:
        raise ImportFault(f"{place}: not UTF-8 text at byte {fault.start}") from fault


def _read_json(source: Traversable, place: str) -> Any:
    return _parse(_read_text(source, place), place)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as fault:
        raise ImportFault(f"{place}: nested too deeply") from fault
    except ValueError as fault:
        raise json_fault(place, text, fault) from fault


class _Row:
    """One model call of a trace, checked."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise ImportFault(f"{place}: no JSON object")
        messages, calls = value.get("messages"), value.get("recorded_tool_calls_after", [])
        if not isinstance(messages, list) or not messages or not all(isinstance(entry, dict) for entry in messages):
            raise ImportFault(f"{place}: `messages` is no list of messages")
        if not isinstance(calls, list) or not all(isinstance(entry, dict) for entry in calls):
            raise ImportFault(f"{place}: `recorded_tool_calls_after` is no list of calls")
        self.messages = tuple(read_message(entry) for entry in messages)
        self.tools: tuple[Tool, ...] = tuple(read_tools(value))
        self.tool_records: list[Mapping[str, Any]] = calls
        delay = _microseconds(value, "simulated_tool_delay_ms_after", place)
        if delay is None:
            raise ImportFault(f"{place}: `simulated_tool_delay_ms_after` is missing")
        self.delay_us = delay
        self.model_us = _microseconds(value, "recorded_model_duration_ms", place)
        self.prompt_tokens = _count(value, "recorded_prompt_tokens", place)
        completion = _count(value, "recorded_completion_tokens", place)
        self.completion_tokens = _count(value, "target_output_tokens", place) if completion is None else completion
        self.max_tokens = _count(value, "max_output_tokens", place)


def _count(value: Mapping[str, Any], name: str, place: str) -> int | None:
    found = value.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise ImportFault(f"{place}: `{name}` is {found!r}, not a whole number from 0 on")
    return found


def _microseconds(value: Mapping[str, Any], name: str, place: str) -> int | None:
    found = value.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e12:
        raise ImportFault(f"{place}: `{name}` is {found!r}, not a number of milliseconds")
    return round(found * 1000)


def _read_task(task: Mapping[str, Any], trace: Traversable, key: bytes) -> Trajectory:
    name: str = task["task_id"]
    place = str(trace)
    rows = [
        _Row(_parse(line, f"{place}, line {number}"), f"{place}, line {number}")
        for number, line in enumerate(_read_text(trace, place).split("\n"), 1)
        if line.strip()
    ]
    if not rows:
        raise ImportFault(f"{place}: the file is empty")
    for counted, found in (("model_calls", len(rows)), ("tool_calls", sum(len(row.tool_records) for row in rows))):
        told = task.get(counted)
        if isinstance(told, int) and told != found:
            raise ImportFault(f"{place}: {found} {counted.replace('_', ' ')} where the manifest says {told}: "
                              "the file looks cut off, fetch it again")  # fmt: skip
    return _Task(name, str(task.get("family") or "unknown"), place, rows).trajectory(key)


class _Task:
    """One task on its way to a trajectory; the clock starts with its first call."""

    def __init__(self, name: str, family: str, place: str, rows: Sequence[_Row]) -> None:
        self.name, self.family, self.place, self.rows = name, family, place, rows
        self.pool = MessagePool()
        self.tool_sets: dict[tuple[Tool, ...], int] = {}
        self.sends: list[int] = []
        self.ends: list[int | None] = []
        clock = 0
        for row in rows:
            self.sends.append(clock)
            # Without a recorded duration the call takes no time on this clock, and its end stays unknown.
            self.ends.append(None if row.model_us is None else clock + row.model_us)
            clock += (row.model_us or 0) + row.delay_us

    def _answer(self, index: int) -> Message | None:
        """The model's answer, as the next prompt repeats it; the last answer's text is not in the format."""
        if index + 1 == len(self.rows):
            return None
        old, new = self.rows[index].messages, self.rows[index + 1].messages
        shared = _shared(old, new)
        return next((message for message in new[shared:] if message.role == "assistant"), None)

    def trajectory(self, key: bytes) -> Trajectory:
        requests = tuple(self._request(index) for index in range(len(self.rows)))
        tool_calls = tuple(call for index in range(len(self.rows)) for call in self._tool_calls(index))
        spent = [span for request in requests if (span := request.call_span) is not None]
        waits = [span for request in requests if request.gap_kind == "tool" and (span := request.gap_span) is not None]
        first = self.rows[0].messages
        lasting = self.rows[1].messages if len(self.rows) > 1 else first
        return Trajectory(
            session_id=session_id(key, native_id(SOURCE, self.name)),
            source=SOURCE,
            source_ref=self.name,
            harness=self.family,
            harness_version=None,
            t0_utc_us=None,
            models=(),
            pool=self.pool.messages,
            tool_sets=tuple(self.tool_sets),
            requests=requests,
            tool_calls=tool_calls,
            duration_us=self.sends[-1] + (self.rows[-1].model_us or 0) + self.rows[-1].delay_us,
            api_us=union_length(spent) if spent else None,
            tool_us=union_length(waits),
            human_us=0,
            # A note at the end of each prompt ("turn 3 of 100") is the harness's and is gone in the next one.
            num_user_messages=sum(message.role == "user" for message in first[: _shared(first, lasting)]),
            num_subagents=0,
            num_compactions=0,
            hash_scope=None,
            token_source="provider",  # noqa: S106 - a word, no secret
            tokenizer=None,
            license=LICENSE,
            quality=CaptureQuality(complete=True, gaps=0, clock_err_us=None, body_missing=0),
        )

    def _request(self, index: int) -> Request:
        row = self.rows[index]
        send_us = self.sends[index]
        before = self.rows[index - 1] if index else None
        whole = before is None or _shared(before.messages, row.messages) == len(before.messages)
        spans = self.pool.add_prompt(row.messages, agent_path="main", request_index=index, t_us=send_us)
        answer = self._answer(index)
        end_us = self.ends[index]
        answer_index = None
        if answer is not None:
            answer_index = self.pool.add_answer(
                answer, agent_path="main", request_index=index, t_us=send_us if end_us is None else end_us
            )
        new = row.messages if before is None else row.messages[_shared(before.messages, row.messages) :]
        return Request(
            request_index=index,
            agent_path="main",
            parent_request_index=index - 1 if index else None,
            link="source",
            api="openai.chat",
            model="",  # the format does not name the recorded model
            stream=True,
            status=None,
            error=None,
            retry_of=None,
            t_send_us=send_us,
            t_headers_us=None,
            t_first_byte_us=None,
            t_first_token_us=None,
            t_last_token_us=None,
            t_end_us=end_us,
            gap_us=None if before is None else before.delay_us,
            gap_kind="none" if before is None else ("tool" if before.tool_records else "client"),
            think_us=None if before is None else 0,
            prompt_spans=spans,
            answer_index=answer_index,
            context_event="append" if whole else "edit",
            relation="start" if before is None else "continue" if whole else "fork",
            link_confidence=None if before is None else "certain",
            prompt_tokens=row.prompt_tokens,
            cache_read_tokens=None,
            cache_write_tokens=None,
            completion_tokens=row.completion_tokens,
            reasoning_tokens=None,
            system_tokens=None,
            tools_tokens=None,
            max_tokens=row.max_tokens,
            temperature=None,
            effort=None,
            stop=None,
            new_input=tuple(
                dict.fromkeys(
                    "tool_result" if message.role == "tool" else "text"
                    for message in new
                    if message.role in ("tool", "user")
                )
            ),
            tool_call_ids=tuple(str(record.get("tool_call_id") or "") for record in row.tool_records),
            block_size=None,
            block_hashes=None,
            bytes_up=None,
            bytes_down=None,
            sse_events=None,
            itl_us=None,
            exchange_id=None,
            tools_index=self.tool_sets.setdefault(row.tools, len(self.tool_sets)) if row.tools else None,
        )

    def _tool_calls(self, index: int) -> list[ToolCall]:
        row = self.rows[index]
        last = index + 1 == len(self.rows)
        end_us = self.ends[index]
        t_result = None if last else self.sends[index + 1]
        results = (
            {}
            if last
            else {message.tool_call_id: message for message in self.rows[index + 1].messages if message.role == "tool"}
        )
        calls = []
        for record in row.tool_records:
            call_id, name = str(record.get("tool_call_id") or ""), str(record.get("tool_name") or "")
            result = results.get(call_id)
            internal = record.get("duration_ms")
            code = record.get("recorded_returncode")
            text = result.content if result is not None else None
            calls.append(
                ToolCall(
                    tool_call_id=call_id,
                    agent_path="main",
                    request_index=index,
                    result_request_index=None if result is None else index + 1,
                    name=name,
                    kind=tool_kind(name),
                    t_emitted_us=None,
                    t_result_us=t_result if result is not None else None,
                    wall_us=t_result - end_us
                    if result is not None and t_result is not None and end_us is not None
                    else None,
                    internal_us=round(internal * 1000) if isinstance(internal, int | float) else None,
                    parallel_group=index,
                    result_bytes=None if text is None else len(text.encode()),
                    is_error=None,
                    exit_code=code if isinstance(code, int) else None if text is None else exit_code(text),
                    timed_out=None if text is None else timed_out(text),
                    mixed=False,
                )
            )
        return calls


def _shared(old: Sequence[Message], new: Sequence[Message]) -> int:
    for at, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            return at
    return min(len(old), len(new))

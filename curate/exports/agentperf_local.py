"""agentperf-local replays, version 1: `manifest.json` and a file of JSON lines per task, with text.

A task is one linear conversation: each line repeats the whole prompt and says how long the recorded call took, how many
tokens it gave, and the tool calls after it. The replay sends a line, sleeps the `duration_ms` of its tool calls one
after the other, and goes on; so they are made to fill the gap: a tool's own time where it is known, else its share of
what is left of the gap. A person's time is part of `simulated_tool_delay_ms_after` but, without tool calls, not slept.

A session gives its main conversation. The format has no place for sub-agents, failed attempts, models, the last answer.

Source: the package agentperf-local 0.3.4, agentperf_local/workload/schema.py (its reader skips keys that it does not
know: `reasoning_content`, which it does not send again, is one for us).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from capture.trajectory import Request, ToolCall, Trajectory
from curate.exports.fit import unfit_chat
from curate.exports.openai import openai_message, openai_tool
from curate.tokens import TokenCounter

type Json = dict[str, Any]


def manifest(tasks: Sequence[Json], name: str) -> Json:
    """The manifest of some tasks."""
    return {"name": name, "source": "agentdyno", "mode": "single_user_agentic_replay", "version": 1, "tasks": tasks}


def replay_task(
    trajectory: Trajectory, counter: TokenCounter, file: str
) -> tuple[Json | None, list[Json], Counter[str]]:
    """(manifest entry, lines of its trace `file`, what was left out by reason); no entry when no request is left."""
    left_out: Counter[str] = Counter()
    kept: list[Request] = []
    for request in trajectory.requests:
        reason = _unfit(request)
        if reason is None:
            kept.append(request)
        else:
            left_out[reason] += 1
    if not kept:
        return None, [], left_out
    nexts: list[Request | None] = [after for _, after in pairwise(kept)]
    task_id = trajectory.session_id
    calls: dict[int, list[ToolCall]] = {}
    for call in trajectory.tool_calls:
        calls.setdefault(call.request_index, []).append(call)
    messages = {
        position: openai_message(trajectory.pool[position].message)
        for request in kept
        for start, end in request.prompt_spans or ()
        for position in range(start, end)
    }
    rows = [
        _row(trajectory, request, after, number, messages, calls.get(request.request_index, ()), counter)
        for number, (request, after) in enumerate(zip(kept, [*nexts, None], strict=True))
    ]
    delays = [row["simulated_tool_delay_ms_after"] for row in rows]
    entry: Json = {
        "task_id": task_id,
        "trace": file,
        "source_recording": f"{trajectory.source}/{task_id}",
        "model_calls": len(rows),
        "tool_calls": sum(len(row["recorded_tool_calls_after"]) for row in rows),
        "total_recorded_tool_delay_ms": sum(delays),
        "family": trajectory.harness or "unknown",
    }
    lengths = [row["recorded_prompt_tokens"] + row["target_output_tokens"] for row in rows
               if "recorded_prompt_tokens" in row]  # fmt: skip
    if len(lengths) == len(rows):
        entry["required_context_tokens"] = max(lengths)
    return entry, rows, left_out


def _unfit(request: Request) -> str | None:
    if request.agent_path != "main" and request.kind != "auxiliary":
        return "requests of sub-agents and branches (a task is one conversation)"
    return unfit_chat(request)


def _row(
    trajectory: Trajectory,
    request: Request,
    after: Request | None,
    number: int,
    messages: Mapping[int, Json],
    calls: Sequence[ToolCall],
    counter: TokenCounter,
) -> Json:
    out = request.completion_tokens
    if out is None and request.answer_index is not None:
        out = counter.message(trajectory.pool[request.answer_index].message)
    ended = request.sent_us if request.t_end_us is None else request.t_end_us
    delay_us = 0 if after is None else max(0, after.sent_us - ended)
    row: Json = {
        "version": 1,
        "turn_id": f"{trajectory.session_id}:{number:04d}",
        "task_id": trajectory.session_id,
        "conversation_id": trajectory.session_id,
        "conversation_idx": number,
        "messages": [messages[at] for start, end in request.prompt_spans or () for at in range(start, end)],
        "tools": []
        if request.tools_index is None
        else [openai_tool(tool) for tool in trajectory.tool_sets[request.tools_index]],
        "simulated_tool_delay_ms_after": delay_us / 1000,
        "recorded_tool_calls_after": _tool_records(trajectory, request, calls, delay_us),
        "target_output_tokens": out,
    }
    told = {
        "max_output_tokens": request.max_tokens or None,
        "recorded_prompt_tokens": request.prompt_tokens,
        "recorded_completion_tokens": request.completion_tokens,
        "recorded_model_duration_ms": None if request.t_end_us is None else (request.t_end_us - request.sent_us) / 1000,
    }
    row |= {key: value for key, value in told.items() if value is not None}
    if request.prompt_tokens is not None and request.completion_tokens is not None:
        row["recorded_total_tokens"] = request.prompt_tokens + request.completion_tokens
    return row


def _tool_records(trajectory: Trajectory, request: Request, calls: Sequence[ToolCall], delay_us: int) -> list[Json]:
    known = sum(call.internal_us for call in calls if call.internal_us is not None)
    unknown = sum(call.internal_us is None for call in calls)
    share = max(0, delay_us - known) / unknown if unknown else 0
    answer = None if request.answer_index is None else trajectory.pool[request.answer_index].message
    given = {} if answer is None else {use.id: use.arguments for use in answer.tool_calls}
    records = []
    for number, call in enumerate(calls):
        record: Json = {
            "duration_ms": (share if call.internal_us is None else call.internal_us) / 1000,
            "action_index": number,
            "tool_call_id": call.tool_call_id,
            "tool_name": call.name,
        }
        if call.exit_code is not None:
            record["recorded_returncode"] = call.exit_code
        try:
            arguments = json.loads(given.get(call.tool_call_id, ""))
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            record["action"] = arguments | {"tool_call_id": call.tool_call_id}
        records.append(record)
    return records

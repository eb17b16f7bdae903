"""A session as values by field, so that what an export carries can be compared field by field.

As `curate.exports.carried` says it: indices count the requests that are kept, the clock starts with the first of them,
agents are numbered by their start, JSON as text is its value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import Any

from capture.call import Message
from capture.trajectory import Request, ToolCall, Trajectory
from curate.exports.carried import FIELDS

type Values = dict[str, Any]

_TIMES = (
    "t_send_us", "t_headers_us", "t_first_byte_us", "t_first_token_us", "t_last_token_us", "t_end_us",
    "t_first_text_us", "t_first_thinking_us", "t_first_tool_call_us", "t_emitted_us", "t_result_us",
)  # fmt: skip


@dataclass(slots=True)
class Facts:
    """Values by field: requests in order of sending, answers by their request, tool calls by (id, occurrence)."""

    session: Values = field(default_factory=dict)
    requests: list[Values] = field(default_factory=list)
    prompts: list[list[Values]] = field(default_factory=list)
    tools: list[list[Values]] = field(default_factory=list)
    answers: dict[int, Values] = field(default_factory=dict)
    calls: dict[tuple[str, int], Values] = field(default_factory=dict)


def facts(
    trajectory: Trajectory,
    keep: Callable[[Request], bool] = lambda _: True,
    keep_call: Callable[[ToolCall], bool] = lambda _: True,
) -> Facts:
    """Values of all fields of a session, of those requests and tool calls that a format can hold."""
    kept = sorted(
        (request for request in trajectory.requests if keep(request)),
        key=lambda one: (one.t_send_us or 0, one.request_index),
    )
    zero = next((request.t_send_us for request in kept if request.t_send_us is not None), 0)
    rank = {request.request_index: number for number, request in enumerate(kept)}
    paths, blocks, groups = Numbers(), Numbers(), Numbers()

    def values(prefix: str, value: Any, **instead: Any) -> Values:
        shifted = {name: at - zero for name in _TIMES if (at := getattr(value, name, None)) is not None}
        told = {each.name: getattr(value, each.name) for each in fields(value)} | shifted | instead
        return {name: told[name.partition(".")[2]] for name in FIELDS if name.startswith(f"{prefix}.")}

    t0 = None if trajectory.t0_utc_us is None else trajectory.t0_utc_us + zero
    models = tuple(dict.fromkeys(request.model for request in kept if request.model))
    found = Facts(session=values("session", trajectory, t0_utc_us=t0, models=models))
    for number, request in enumerate(kept):
        prompt = [at for start, end in request.prompt_spans or () for at in range(start, end)]
        tools = () if request.tools_index is None else trajectory.tool_sets[request.tools_index]
        found.requests.append(
            values(
                "request",
                request,
                request_index=number,
                agent_path=paths.of(request.agent_path),
                # The first token of an answer that came in one piece tells nothing.
                **({"t_first_token_us": None} if request.stream is False else {}),
                parent_request_index=rank.get(-1 if request.parent_request_index is None else
                                              request.parent_request_index),
                retry_of=rank.get(-1 if request.retry_of is None else request.retry_of),
                prompt_spans=len(prompt),
                answer_index=request.answer_index is not None,
                tools_index=len(tools),
                block_hashes=None if request.block_hashes is None else [blocks.of(one) for one in request.block_hashes],
            )
        )  # fmt: skip
        found.prompts.append([message_values(trajectory.pool[position].message) for position in prompt])
        found.tools.append([values("tool", tool, parameters=json_value(tool.parameters)) for tool in tools])
        if request.answer_index is not None:
            found.answers[number] = message_values(trajectory.pool[request.answer_index].message)
    for call in trajectory.tool_calls:
        if call.request_index not in rank or not keep_call(call):
            continue
        result = -1 if call.result_request_index is None else call.result_request_index
        # With the request that carried the result, the result is left out.
        lost = {} if result in rank else dict.fromkeys(("t_result_us", "wall_us", "result_bytes"))
        found.calls[occurrence(found, call.tool_call_id)] = values(
            "tool_call",
            call,
            agent_path=paths.of(call.agent_path),
            request_index=rank[call.request_index],
            result_request_index=rank.get(result),
            parallel_group=groups.of(call.parallel_group),
            **lost,
        )
    return found


def occurrence(found: Facts, call_id: str) -> tuple[str, int]:
    """The key of one more tool call of an id, which need not be alone."""
    return call_id, sum(known == call_id for known, _ in found.calls)


def message_values(message: Message) -> Values:
    """Fields of a message."""
    uses = [(use.id, use.name, json_value(use.arguments)) for use in message.tool_calls]
    return {f"message.{each.name}": getattr(message, each.name) for each in fields(message)} | {
        "message.tool_calls": uses,
        "message.reasoning_content": message.reasoning_content or None,
    }


def differing(before: Facts, after: Facts) -> set[str]:
    """Fields that do not come back; of what is missing whole (an answer, a tool call) it is the one that names it."""
    found = _differing([before.session], [after.session])
    found |= _differing(_without_first_gaps(before.requests), _without_first_gaps(after.requests))
    for mine, theirs in ((before.prompts, after.prompts), (before.tools, after.tools)):
        found |= _differing([one for each in mine for one in each], [one for each in theirs for one in each])
    both = before.answers.keys() & after.answers.keys()
    found |= _differing([before.answers[at] for at in both], [after.answers[at] for at in both])
    common = before.calls.keys() & after.calls.keys()
    if before.calls.keys() != after.calls.keys():
        found.add("tool_call.tool_call_id")
    if not common:
        return found | _differing(list(before.calls.values()), [])
    return found | _differing([before.calls[at] for at in common], [after.calls[at] for at in common])


def _without_first_gaps(requests: list[Values]) -> list[Values]:
    """The requests, the first of each agent without a gap: what it came after is not there."""
    seen: set[Any] = set()
    found = []
    for request in requests:
        path = request.get("request.agent_path")
        first = "request.gap_us" in request and path not in seen
        seen.add(path)
        found.append(request | {"request.gap_us": None} if first else request)
    return found


def _differing(before: list[Values], after: list[Values]) -> set[str]:
    if len(before) != len(after):
        return {name for one in before for name in one}
    return {
        name
        for one, other in zip(before, after, strict=True)
        for name, value in one.items()
        if name not in other or other[name] != value
    }


class Numbers:
    """Numbers in order of appearance."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def of(self, value: Hashable) -> int:
        """The number of a value."""
        return self._known.setdefault(value, len(self._known))


def json_value(text: str) -> Any:
    """The value of JSON as text; the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

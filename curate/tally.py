"""Token counts of one session by one named tokenizer, each message counted once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from capture.call import Message, Tool
from capture.trajectory import Request, Trajectory


class Counter(Protocol):
    """What counting needs; `curate.tokens.TokenCounter` is the real one."""

    encoding_name: str
    sha: str

    def message(self, message: Message) -> int: ...

    def tools(self, tools: Iterable[Tool]) -> int: ...

    def text(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTally:
    """Counts of one prompt. None where neither text nor block hashes tell."""

    prompt_tokens_est: int | None
    system_tokens: int | None
    tools_tokens: int | None
    lcp_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallTally:
    """Counts of one tool call."""

    args_tokens: int | None
    result_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of one session, in the order of its pool, requests and tool calls."""

    messages: tuple[int, ...]
    requests: tuple[RequestTally, ...]
    tool_calls: tuple[ToolCallTally, ...]


def tally(trajectory: Trajectory, counter: Counter) -> Tally:
    """Count every message of the pool once and add up the rest from these counts."""
    messages = tuple(counter.message(pooled.message) for pooled in trajectory.pool)
    tool_sets = tuple(counter.tools(tools) for tools in trajectory.tool_sets)
    upto = (0, *accumulate(messages))
    by_index = {request.request_index: request for request in trajectory.requests}
    return Tally(
        messages=messages,
        requests=tuple(_request(trajectory, request, by_index, upto, tool_sets) for request in trajectory.requests),
        tool_calls=_tool_calls(trajectory, counter, messages),
    )


def _request(
    trajectory: Trajectory,
    request: Request,
    by_index: dict[int, Request],
    upto: tuple[int, ...],
    tool_sets: tuple[int, ...],
) -> RequestTally:
    parent = None if request.parent_request_index is None else by_index.get(request.parent_request_index)
    if request.prompt_spans is None:
        return RequestTally(
            prompt_tokens_est=None,
            system_tokens=request.system_tokens,
            tools_tokens=request.tools_tokens,
            lcp_tokens=_shared_blocks(request, parent),
        )
    tools = 0 if request.tools_index is None else tool_sets[request.tools_index]
    prompt = tools + sum(upto[stop] - upto[start] for start, stop in request.prompt_spans)
    system = 0
    for position in _positions(request.prompt_spans):
        if trajectory.pool[position].message.role not in ("system", "developer"):
            break
        system += upto[position + 1] - upto[position]
    return RequestTally(
        prompt_tokens_est=prompt,
        system_tokens=system if request.system_tokens is None else request.system_tokens,
        tools_tokens=tools if request.tools_tokens is None else request.tools_tokens,
        lcp_tokens=_shared_messages(request, parent, upto, tools),
    )


def _positions(spans: tuple[tuple[int, int], ...]) -> list[int]:
    return [position for start, stop in spans for position in range(start, stop)]


def _shared_messages(request: Request, parent: Request | None, upto: tuple[int, ...], tools_tokens: int) -> int | None:
    """Tokens of the common head of two prompts; templates put tools first, so other tools share nothing."""
    if parent is None:
        return 0
    if parent.prompt_spans is None or request.prompt_spans is None:
        return None
    if parent.tools_index != request.tools_index:
        return 0
    shared = tools_tokens
    for ours, theirs in zip(_positions(request.prompt_spans), _positions(parent.prompt_spans), strict=False):
        if ours != theirs:
            break
        shared += upto[ours + 1] - upto[ours]
    return shared


def _shared_blocks(request: Request, parent: Request | None) -> int | None:
    """Tokens of the hashed blocks that two prompts have in common at their heads."""
    if parent is None:
        return 0
    ours, theirs = request.block_hashes, parent.block_hashes
    if ours is None or theirs is None or request.block_size is None or request.block_size != parent.block_size:
        return None
    low, high = 0, min(len(ours), len(theirs))
    while low < high:  # by halves, comparing whole slices: does not trust hashes to chain, and stays fast
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ours[low:middle] == theirs[low:middle] else (low, middle - 1)
    shared = low * request.block_size
    return shared if request.prompt_tokens is None else min(shared, request.prompt_tokens)


def _tool_calls(trajectory: Trajectory, counter: Counter, messages: tuple[int, ...]) -> tuple[ToolCallTally, ...]:
    # An id may be used again on another chain, and a retried answer repeats it: the last one said stands.
    arguments: dict[tuple[str, str], int] = {}
    results: dict[tuple[str, str], int] = {}
    for pooled, tokens in zip(trajectory.pool, messages, strict=True):
        for use in pooled.message.tool_calls:
            arguments[pooled.agent_path, use.id] = counter.text(use.arguments)
        if pooled.message.role == "tool" and pooled.message.tool_call_id is not None:
            results[pooled.agent_path, pooled.message.tool_call_id] = tokens
    return tuple(
        ToolCallTally(
            args_tokens=arguments.get((call.agent_path, call.tool_call_id)),
            result_tokens=results.get((call.agent_path, call.tool_call_id)),
        )
        for call in trajectory.tool_calls
    )

"""Weka traces, version 1: content-free, seconds and tokens; read by AIPerf, inference-perf, guidellm and others.

A conversation is {id, models, block_size, hash_id_scope, tool_tokens, system_tokens, requests, totals}. A request is
{t, type: "n" | "s", model, in, out, hash_ids, input_types, output_types, stop} and, where known, api_time, ttft (of a
streamed one) and think_time. A sub-agent is {t, type: "subagent", agent_id, subagent_type, duration_ms, tool_use_count,
status, requests, models, tool_tokens, system_tokens}; its `t` is its start and its requests count from there. No other
key is written, since AIPerf's models forbid unknown ones: what else there is to say goes to a file beside the export.

Source: callanjfox/kv-cache-tester, docs/trace_replay_tester.md; ai-dynamo/aiperf, dataset/loader/weka_trace_models.py.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

from capture.trajectory import Request, ToolCall, Trajectory
from curate.blocks import PromptBlocks, prompt_blocks
from curate.exports.fit import unfit
from curate.tokens import TokenCounter

BLOCK_SIZE = 64
_STOPS = {
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "stop": "end_turn",
    "stop_sequence": "end_turn",
    "completed": "end_turn",
}

type Json = dict[str, Any]


def weka_trace(trajectory: Trajectory, counter: TokenCounter) -> tuple[Json | None, Counter[str]]:
    """One conversation, and what was left out of it, by reason; None when no request is left.

    Lengths and block ids of a content-free session are its own. For a session with text the prompt's length and blocks
    are those of `counter`, so that they agree with each other; the answer's length is the provider's where it told.
    """
    left_out: Counter[str] = Counter()
    chains: dict[str, list[Json]] = defaultdict(list)
    members: dict[str, list[Request]] = defaultdict(list)
    renumbered: dict[int, int] = {}
    sizes = {request.block_size for request in trajectory.requests if request.block_size is not None}
    if len(sizes) > 1:
        return None, Counter({"sessions with blocks of several sizes": 1})
    block_size = sizes.pop() if sizes else BLOCK_SIZE
    for request, blocks in prompt_blocks(trajectory, counter, block_size):
        reason = unfit(request, blocks)
        if reason is not None:
            left_out[reason] += 1
            continue
        if blocks is None:
            hashes = tuple(request.block_hashes or ())
            if trajectory.hash_scope == "release":  # readers take local ids only
                hashes = tuple(renumbered.setdefault(value, len(renumbered) + 1) for value in hashes)
            blocks = PromptBlocks(tokens=request.hashed_tokens or 0, ids=hashes)
        first = not chains[request.agent_path]
        chains[request.agent_path].append(_call(trajectory, request, blocks, counter, first=first))
        members[request.agent_path].append(request)
    if not chains:
        return None, left_out
    prefixes = {
        path: _prefix(trajectory, members[path][0], calls[0], block_size, counter) for path, calls in chains.items()
    }
    main = chains.pop("main", [])
    agents = [
        _agent(trajectory, members[path], calls, number, prefixes[path])
        for number, (path, calls) in enumerate(sorted(chains.items(), key=lambda item: item[1][0]["t"]), 1)
    ]
    trace = {
        "id": trajectory.session_id,
        "models": list(dict.fromkeys(call["model"] for call in main or agents[0]["requests"])),
        "block_size": block_size,
        "hash_id_scope": "local",
        **prefixes["main" if main else next(iter(prefixes))],
        "requests": sorted([*main, *agents], key=lambda entry: entry["t"]),
        "totals": _totals(main, agents),
    }
    return trace, left_out


def _call(
    trajectory: Trajectory, request: Request, blocks: PromptBlocks, counter: TokenCounter, *, first: bool
) -> Json:
    out = request.completion_tokens
    if out is None and request.answer_index is not None:
        out = counter.message(trajectory.pool[request.answer_index].message)
    call: Json = {
        "t": request.sent_us / 1e6,
        "type": "s" if request.stream else "n",
        "model": request.model,
        "in": blocks.tokens,
        "out": out,
        "hash_ids": list(blocks.ids),
        "input_types": list(request.new_input),
        "output_types": list(request.new_output or ()),
        "stop": _STOPS.get(request.stop or "", request.stop or ""),
    }
    if request.t_end_us is not None:
        call["api_time"] = (request.t_end_us - request.sent_us) / 1e6
    if request.stream and request.t_first_token_us is not None:
        call["ttft"] = (request.t_first_token_us - request.sent_us) / 1e6
    if first:
        call["think_time"] = 0.0  # a chain's first request waits for nothing of its own chain
    elif request.gap_us is not None:
        call["think_time"] = request.gap_us / 1e6
    return call


def _prefix(
    trajectory: Trajectory, first: Request, call: Json, block_size: int, counter: TokenCounter
) -> dict[str, int]:
    """Tokens of the tools and of the system prompt; 0, "not known", where the first prompt's blocks do not cover them.

    AIPerf builds both out of those blocks and refuses a file that has fewer.
    """
    found = {
        "tool_tokens": _tool_tokens(trajectory, first, counter),
        "system_tokens": _system_tokens(trajectory, first, counter),
    }
    return found if sum(found.values()) <= len(call["hash_ids"]) * block_size else dict.fromkeys(found, 0)


def _agent(
    trajectory: Trajectory, requests: list[Request], calls: list[Json], number: int, prefix: dict[str, int]
) -> Json:
    start_us = requests[0].sent_us
    for call, request in zip(calls, requests, strict=True):
        call["t"] = (request.sent_us - start_us) / 1e6
    ends = [request.t_end_us for request in requests if request.t_end_us is not None]
    entry: Json = {
        "t": start_us / 1e6,
        "type": "subagent",
        "agent_id": f"agent_{number:03}",
        "subagent_type": _agent_type(trajectory, requests[0]),
    }
    if ends:
        entry["duration_ms"] = round((max(ends) - start_us) / 1e3)
    if trajectory.pool:
        entry["tool_use_count"] = sum(len(request.tool_call_ids) for request in requests)
    return entry | {
        "status": "completed" if requests[-1].t_end_us is not None else "unknown",
        "requests": calls,
        "models": list(dict.fromkeys(call["model"] for call in calls)),
        **prefix,
    }


def _agent_type(trajectory: Trajectory, first: Request) -> str:
    """The kind of sub-agent that its parent's tool call asked for, where exactly one call can be meant."""
    spawns: list[ToolCall] = [
        call
        for call in trajectory.tool_calls
        if call.kind == "subagent" and call.request_index == first.parent_request_index
    ]
    parent = next((one for one in trajectory.requests if one.request_index == first.parent_request_index), None)
    if parent is None or parent.answer_index is None:
        return "unknown"
    uses = {use.id: use.arguments for use in trajectory.pool[parent.answer_index].message.tool_calls}
    kinds = set()
    for spawn in spawns:
        try:
            arguments = json.loads(uses.get(spawn.tool_call_id, ""))
        except ValueError:
            continue
        kind = arguments.get("subagent_type") if isinstance(arguments, dict) else None
        if isinstance(kind, str) and kind:
            kinds.add(kind)
    return kinds.pop() if len(kinds) == 1 else "unknown"


def _tool_tokens(trajectory: Trajectory, request: Request, counter: TokenCounter) -> int:
    if request.tools_tokens is None and request.tools_index is not None:
        return counter.tools(trajectory.tool_sets[request.tools_index])
    return request.tools_tokens or 0  # the format's own word for "not known"


def _system_tokens(trajectory: Trajectory, request: Request, counter: TokenCounter) -> int:
    if request.system_tokens is None and request.prompt_spans is not None:
        total = 0
        for start, end in request.prompt_spans:
            for pooled in trajectory.pool[start:end]:
                if pooled.message.role not in ("system", "developer"):
                    return total
                total += counter.message(pooled.message)
        return total
    return request.system_tokens or 0


def _totals(main: list[Json], agents: list[Json]) -> Json:
    nested = [call for agent in agents for call in agent["requests"]]
    return {
        "parent_tokens": _sum(main),
        "subagent_tokens": _sum(nested),
        "combined_tokens": _sum([*main, *nested]),
        "subagent_count": len(agents),
    }


def _sum(calls: list[Json]) -> Json:
    return {"input": sum(call["in"] for call in calls), "output": sum(call["out"] for call in calls)}

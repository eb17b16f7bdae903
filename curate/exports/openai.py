"""OpenAI chat messages, one session per line, so that each of its requests can be built again.

A line is {session_id, harness, models, license, messages, tools, requests} and, where the session has more than one
linear conversation, `conversations`: [{agent_path, messages, tools}]. `messages` and `tools` are those of the main
agent's last conversation, complete with its last answer: what a fine-tuning tool or a reader wants.

Each of `requests` says how to send it again: its prompt is the first `message_count` messages of conversation number
`conversation`, where 0 is the line's own `messages` and n is `conversations[n - 1]`; the tools are the conversation's.
A conversation ends where a prompt is not the earlier one continued: a compaction, an edit, another agent, other tools.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from capture.call import Message, Tool
from capture.trajectory import Request, Trajectory

type Json = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class _Conversation:
    """One linear conversation: pool positions of its longest prompt, and of the answer to that."""

    agent_path: str
    tools_index: int | None
    prompt: list[int]
    answer: int | None = None
    members: list[tuple[Request, int]] = field(default_factory=list)


def openai_session(trajectory: Trajectory) -> tuple[Json | None, Counter[str]]:
    """One session as a JSON value, and what was left out of it, by reason; None when it has no text."""
    left_out: Counter[str] = Counter()
    conversations: list[_Conversation] = []
    current: dict[str, _Conversation] = {}
    for request in trajectory.requests:
        if request.prompt_spans is None:
            left_out["requests without text"] += 1
            continue
        prompt = [position for start, end in request.prompt_spans for position in range(start, end)]
        open_one = current.get(request.agent_path)
        if open_one is None or open_one.tools_index != request.tools_index or not _continues(open_one, prompt):
            open_one = _Conversation(agent_path=request.agent_path, tools_index=request.tools_index, prompt=prompt)
            current[request.agent_path] = open_one
            conversations.append(open_one)
        elif len(prompt) > len(open_one.prompt):
            open_one.prompt, open_one.answer = prompt, None
        open_one.members.append((request, len(prompt)))
        if request.answer_index is not None and len(prompt) == len(open_one.prompt):
            open_one.answer = request.answer_index
    if not conversations:
        return None, left_out or Counter({"sessions without requests": 1})
    turns = [one for one in conversations if one.agent_path == "main" and one.members[-1][0].kind == "turn"]
    chief = turns[-1] if turns else conversations[-1]
    ordered = [chief, *(one for one in conversations if one is not chief)]
    line: Json = {
        "session_id": trajectory.session_id,
        "harness": trajectory.harness,
        "models": list(trajectory.models),
        "license": trajectory.license,
        "messages": _messages(trajectory, chief),
        "tools": _tools(trajectory, chief),
        "requests": sorted(
            (
                _request(request, number, count)
                for number, conversation in enumerate(ordered)
                for request, count in conversation.members
            ),
            key=lambda request: request["request_index"],
        ),
    }
    if len(ordered) > 1:
        line["conversations"] = [
            {
                "agent_path": one.agent_path,
                "messages": _messages(trajectory, one),
                "tools": _tools(trajectory, one),
            }
            for one in ordered[1:]
        ]
    return line, left_out


def _continues(conversation: _Conversation, prompt: list[int]) -> bool:
    """Whether a prompt is the longest so far and maybe more, or a part of that once more (a retry).

    The answers in between are as the agent sent them back, which may be less than what the model gave (no reasoning).
    """
    shared = min(len(prompt), len(conversation.prompt))
    return prompt[:shared] == conversation.prompt[:shared]


def _request(request: Request, conversation: int, message_count: int) -> Json:
    return {
        "request_index": request.request_index,
        "agent_path": request.agent_path,
        "conversation": conversation,
        "message_count": message_count,
        "model": request.model,
        "stream": request.stream,
        "status": request.status,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.completion_tokens,
        "t_send_us": request.t_send_us,
        "t_end_us": request.t_end_us,
        "gap_us": request.gap_us,
        "gap_kind": request.gap_kind,
    }


def _messages(trajectory: Trajectory, conversation: _Conversation) -> list[Json]:
    answer = () if conversation.answer is None else (conversation.answer,)
    return [openai_message(trajectory.pool[position].message) for position in (*conversation.prompt, *answer)]


def _tools(trajectory: Trajectory, conversation: _Conversation) -> list[Json]:
    if conversation.tools_index is None:
        return []
    return [openai_tool(tool) for tool in trajectory.tool_sets[conversation.tools_index]]


def openai_message(message: Message) -> Json:
    """A message as chat completions take it; `reasoning_content` as vLLM and llama.cpp name it."""
    found: Json = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        found["reasoning_content"] = message.reasoning_content
    if message.name is not None:
        found["name"] = message.name
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.arguments}}
            for use in message.tool_calls
        ]
    return found


def openai_tool(tool: Tool) -> Json:
    """A tool as chat completions take it; without `parameters` where the source's are no JSON object."""
    function: Json = {"name": tool.name, "description": tool.description}
    try:
        parameters = json.loads(tool.parameters)
    except ValueError:
        parameters = None
    if isinstance(parameters, dict):
        function["parameters"] = parameters
    return {"type": "function", "function": function}

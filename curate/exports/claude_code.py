"""Claude Code's own log format: a file of JSON lines per session, and one per sub-agent.

Laid out as under `~/.claude/projects`: `FOLDER/SESSION.jsonl`, `FOLDER/SESSION/subagents/agent-ID.jsonl` and beside it
`agent-ID.meta.json`. Lines form a tree by `parentUuid`: an answer is a line per content block under one `message.id`,
a tool result is a user's line, a rewound history is a branch, a compacted one a new root behind a `compact_boundary`.
The requests themselves are `api-request` lines, which name the prompt's messages by hash (`-blob`) and its system
prompt and tools (`-shape`): with them a prompt comes back word for word.

What the format has no word for is left out (`curate.exports.carried` has the list): bytes, first tokens, block hashes.
Words in the model's role that no call of the session spoke are Claude Code's `<synthetic>` model. A tool's duration
that nobody knows is a `durationMs` of null: the time to the next request does not measure the tool. Undated sessions
begin in 1970, and one without a clock has no timestamps.

Source: logs of real versions up to 2.1.328 (the vendor documents none); read back by `capture.importers.claude_code`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from capture.call import Message, ToolUse
from capture.dialects.reading import compact_json
from capture.trajectory import COMPACTION, Request, ToolCall, Trajectory

type Json = dict[str, Any]

SYNTHETIC_MODEL = "<synthetic>"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STOPS = {
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "stop": "end_turn",
    "completed": "end_turn",
    "length": "max_tokens",
}
# How a chain begins that is the same agent with another history.
_SAME_AGENT = frozenset(("fork", "compaction", "retry"))


def claude_code_lines(trajectory: Trajectory, *, requests: bool = True) -> tuple[list[Json], Counter[str]]:
    """The lines of a session in order of time, those of sub-agents marked by `agentId`; what was left out, by reason.

    Without `requests` the log is an older version's: half the size, and neither system prompt nor tools in it.
    """
    log = _Log(trajectory, with_requests=requests)
    return log.lines, log.left_out


def claude_code_files(trajectory: Trajectory) -> tuple[dict[str, list[Json]], int, Counter[str]]:
    """(lines by path inside a project's folder, requests in them, what was left out); no path when none is left.

    The format needs times: a session without a clock is left out.
    """
    log = _Log(trajectory, with_requests=True)
    if any(request.t_send_us is None for request in log.requests):
        return {}, 0, log.left_out + Counter({"sessions of unknown times": 1})
    files: dict[str, list[Json]] = {}
    name = file_stem(trajectory.session_id)
    for line in log.lines:
        agent = line.get("agentId")
        path = f"{name}.jsonl" if agent is None else f"{name}/subagents/agent-{agent}.jsonl"
        files.setdefault(path, []).append(line)
    files |= {
        f"{name}/subagents/agent-{agent.id}.meta.json": [agent.meta]
        for agent in log.agents.values()
        if agent.id is not None
    }
    return files, len(log.requests), log.left_out


def file_stem(session_id: str) -> str:
    """A session's id as a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in session_id) or "session"


@dataclass(slots=True, eq=False)
class _Place:
    """A message's place in the tree; its last line is what the next one hangs on."""

    uuid: str | None
    message: Message | None = None
    children: dict[int, _Place] = field(default_factory=dict)  # by position in the pool
    failures: int = 0


@dataclass(slots=True, eq=False)
class _Agent:
    """One file: the main conversation or a sub-agent."""

    id: str | None
    meta: Json
    roots: list[_Place] = field(default_factory=lambda: [_Place(None)])  # where its contexts begin
    said: list[int] = field(default_factory=list)  # the last logged request's messages, by position in the pool
    request_id: str = ""


class _Log:
    """One session on its way to lines."""

    def __init__(self, trajectory: Trajectory, *, with_requests: bool) -> None:
        self.trajectory = trajectory
        self.with_requests = with_requests
        self.lines: list[Json] = []
        self.left_out: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.agents: dict[str, _Agent] = {}  # by chain
        self._written: set[str] = set()  # hashes of blobs and shapes
        self._count = 0
        self._calls: dict[str, list[ToolCall]] = {}
        self._spawned: set[str] = set()
        for call in trajectory.tool_calls:
            self._calls.setdefault(call.tool_call_id, []).append(call)
        self._by_index = {request.request_index: request for request in trajectory.requests}
        for request in trajectory.requests:
            if request.kind == "auxiliary":
                self.left_out["auxiliary requests (token counts, titles)"] += 1
            elif request.prompt_spans is None:
                self.left_out["requests without text"] += 1
            else:
                self._add(request, [at for start, end in request.prompt_spans for at in range(start, end)])

    # ---- one request

    def _add(self, request: Request, prompt: list[int]) -> None:
        pool = self.trajectory.pool
        system = pool[prompt[0]].message.content if prompt and _is_system(pool[prompt[0]].message) else None
        prompt = prompt[1:] if system is not None else prompt
        agent = self._agent(request, prompt)
        place = self._walk(agent, request, prompt)
        failed = request.error is not None or (request.status is not None and request.status >= 400)
        if request.answer_index is None and not failed:
            self.left_out["requests whose answer nobody has (what they said is there)"] += 1
            return
        self.requests.append(request)
        request_id = self._hash("request", str(request.request_index))[:32]
        if self.with_requests:
            self._request(agent, request, request_id, system, prompt)
        if request.answer_index is not None:
            message = pool[request.answer_index].message
            place.children[request.answer_index] = self._answer(agent, request, request_id, place, message)
        else:
            place.failures += 1
            words = request.error or f"status {request.status}"
            place.uuid = self._line(
                agent,
                "system",
                place.uuid,
                request.t_end_us,
                subtype="api_error",
                level="error",
                error={"status": request.status, "message": words, "formatted": words},
                retryAttempt=place.failures,
            )

    def _agent(self, request: Request, prompt: list[int]) -> _Agent:
        """Whose log a request stands in; a chain that rewinds or compacts another's history is the same agent's."""
        path = request.agent_path
        if path not in self.agents:
            parent = self._by_index.get(-1 if request.parent_request_index is None else request.parent_request_index)
            if path == "main":
                self.agents[path] = _Agent(None, {})
            elif parent is not None and parent.agent_path in self.agents and request.relation in _SAME_AGENT:
                self.agents[path] = self.agents[parent.agent_path]
            else:
                spawn = None if parent is None else self._spawn(parent, prompt)
                meta: Json = {} if request.agent_type is None else {"agentType": request.agent_type}
                if spawn is not None:
                    self._spawned.add(spawn)
                    meta["toolUseId"] = spawn
                self.agents[path] = _Agent(f"a{self._hash('agent', path)[:16]}", meta)
        return self.agents[path]

    def _spawn(self, parent: Request, prompt: list[int]) -> str | None:
        """The tool call that started a sub-agent: the one that says its task, else the only one that can."""
        calls = [
            call.tool_call_id
            for call in self.trajectory.tool_calls
            if call.kind == "subagent"
            and call.request_index == parent.request_index
            and call.tool_call_id not in self._spawned
        ]
        if parent.answer_index is not None and len(calls) > 1:
            pool = self.trajectory.pool
            told = {use.id: use.arguments for use in pool[parent.answer_index].message.tool_calls}
            tasks = [pool[at].message.content for at in prompt if pool[at].message.role == "user"]
            calls = [one for one in calls if any(json.dumps(task)[1:-1] in told.get(one, "") for task in tasks if task)]
        return calls[0] if len(calls) == 1 else None

    def _walk(self, agent: _Agent, request: Request, prompt: list[int]) -> _Place:
        """The place of the prompt's last message; what the tree does not have yet is written."""
        if request.context_event == "compaction":
            boundary = self._line(
                agent,
                "system",
                None,
                request.t_send_us,
                subtype="compact_boundary",
                content="Conversation compacted",
                level="info",
            )
            agent.roots.append(_Place(boundary))
            place, depth = agent.roots[-1], 0
        else:
            # The longest known beginning; of two, in the latest context.
            found = [self._follow(root, prompt) for root in reversed(agent.roots)]
            place, depth = max(found, key=lambda one: one[1])
        for position in prompt[depth:]:
            message = self.trajectory.pool[position].message
            child = self._said(agent, request, place, position, message)
            place.children[position] = child
            place = child
        return place

    def _follow(self, root: _Place, prompt: list[int]) -> tuple[_Place, int]:
        place = root
        for depth, position in enumerate(prompt):
            child = place.children.get(position)
            if child is None:
                # An agent may send an answer back without its reasoning: that is no other history.
                message = self.trajectory.pool[position].message
                child = next((one for one in place.children.values() if _echoes(message, one.message)), None)
                if child is None:
                    return place, depth
                place.children[position] = child
            place = child
        return place, len(prompt)

    # ---- lines

    def _said(self, agent: _Agent, request: Request, place: _Place, position: int, message: Message) -> _Place:
        """The lines of a prompt's message that no answer of the session is."""
        at = request.t_send_us
        if message.role == "assistant":
            name = f"msg_{self._hash('said', str(position), str(place.uuid))[:24]}"
            said = {
                "id": name,
                "type": "message",
                "role": "assistant",
                "model": SYNTHETIC_MODEL,
                "content": list(_blocks(message)),
                "stop_reason": "end_turn",
            }
            return _Place(self._line(agent, "assistant", place.uuid, at, message=said), message)
        if message.role in ("system", "developer"):
            told = {"subtype": "informational", "content": message.content, "isMeta": True}
            return _Place(self._line(agent, "system", place.uuid, at, **told), message)
        more: Json = {"message": _vendor_message(message)}
        if message.role == "tool":
            calls = self._calls.get(message.tool_call_id or "", [])
            call = next((one for one in calls if one.result_request_index == request.request_index), None)
            internal_us = None if call is None else call.internal_us
            more["toolUseResult"] = {"durationMs": None if internal_us is None else internal_us / 1000}
            if call is not None:
                at = self._ended(call, request)
        return _Place(self._line(agent, "user", place.uuid, at, **more), message)

    def _ended(self, call: ToolCall, request: Request) -> int | None:
        """When a tool's result was there: after its own time where that is known, else when it was sent."""
        made_by = self._by_index.get(call.request_index)
        start = made_by.t_end_us if call.t_emitted_us is None and made_by is not None else call.t_emitted_us
        if start is None or call.internal_us is None or request.t_send_us is None:
            return request.t_send_us
        return min(request.t_send_us, start + (call.permission_us or 0) + call.internal_us)

    def _answer(self, agent: _Agent, request: Request, request_id: str, place: _Place, message: Message) -> _Place:
        uuid = place.uuid
        stop = _STOPS.get(request.stop or "", request.stop)
        emitted = {call.tool_call_id: call.t_emitted_us for call in self._made_by(request, message)}
        blocks: list[Json | None] = [*_blocks(message)] or [None]
        for number, block in enumerate(blocks):
            last = number == len(blocks) - 1
            at = request.t_end_us
            if not last and block is not None and at is not None:
                at = min(at, emitted.get(block.get("id", "")) or at)
            said = {
                "id": f"msg_{request_id[:24]}",
                "type": "message",
                "role": "assistant",
                "model": request.model,
                "content": [] if block is None else [block],
                "stop_reason": stop,
                "stop_sequence": None,
                "usage": _usage(request),
            }
            more: Json = {"requestId": f"req_{request_id[:24]}", "apiBlockIndex": number}
            if self.with_requests:
                more["requestRef"] = request_id
            uuid = self._line(agent, "assistant", uuid, at, message=said, **more)
        return _Place(uuid, message)

    def _made_by(self, request: Request, message: Message) -> Iterator[ToolCall]:
        for use in message.tool_calls:
            yield from (one for one in self._calls.get(use.id, ()) if one.request_index == request.request_index)

    def _request(self, agent: _Agent, request: Request, request_id: str, system: str | None, prompt: list[int]) -> None:
        """The request itself: what it shares with the agent's last one, then the hashes of what is new."""
        pool = self.trajectory.pool
        keep = 0
        while keep < min(len(prompt), len(agent.said)) and prompt[keep] == agent.said[keep]:
            keep += 1
        tail = []
        for position in prompt[keep:]:
            vendor = _vendor_message(pool[position].message)
            name = _digest(vendor)
            tail.append(name)
            if name not in self._written:
                self._written.add(name)
                self._note(agent, "api-request-blob", hash=name, message=vendor)
        tools: list[Json] = []
        if request.tools_index is not None:
            tools = [
                {"name": tool.name, "description": tool.description, "input_schema": _schema(tool.parameters)}
                for tool in self.trajectory.tool_sets[request.tools_index]
            ]
        shape = {"system": system, "tools": tools}
        shape_hash = _digest(shape)
        if shape_hash not in self._written:
            self._written.add(shape_hash)
            self._note(agent, "api-request-shape", shapeHash=shape_hash, shape=shape)
        source = f"agent:{request.agent_type or 'unknown'}" if agent.id is not None else "repl_main_thread"
        told: Json = {
            "id": request_id,
            "querySource": "compact" if request.agent_type == COMPACTION else source,
            "shapeHash": shape_hash,
            "params": _parameters(request),
            "tail": tail,
        }
        if keep:
            told |= {"base": agent.request_id, "keep": keep}
        self._note(agent, "api-request", at_us=request.t_send_us, **told)
        agent.said, agent.request_id = prompt, request_id

    def _line(self, agent: _Agent, kind: str, parent: str | None, at_us: int | None, **more: Any) -> str:
        """A line of the tree; gives its uuid."""
        self._count += 1
        digits = self._hash("line", str(self._count))
        uuid = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"
        self._note(agent, kind, at_us=at_us, uuid=uuid, parentUuid=parent, isSidechain=agent.id is not None, **more)
        return uuid

    def _note(self, agent: _Agent, kind: str, *, at_us: int | None = None, **more: Any) -> None:
        """A line beside the tree."""
        trajectory = self.trajectory
        line: Json = {"type": kind, "sessionId": trajectory.session_id}
        if agent.id is not None:
            line["agentId"] = agent.id
        if at_us is not None:
            line["timestamp"] = _stamp((trajectory.t0_utc_us or 0) + at_us)
        if trajectory.harness_version is not None:
            line["version"] = trajectory.harness_version
        self.lines.append(line | more)

    def _hash(self, *words: str) -> str:
        return hashlib.blake2b(
            "\0".join((self.trajectory.session_id, *words)).encode("utf-8", "replace"), digest_size=16
        ).hexdigest()


def _is_system(message: Message) -> bool:
    """Whether a prompt's first message can be the format's `system`."""
    return message.role in ("system", "developer") and bool(message.content)


def _echoes(message: Message, answer: Message | None) -> bool:
    """Whether an assistant's message is an answer as the agent sent it back."""
    return (
        answer is not None
        and message.role == answer.role == "assistant"
        and message.content == answer.content
        and [(use.id, use.name) for use in message.tool_calls] == [(use.id, use.name) for use in answer.tool_calls]
    )


def _vendor_message(message: Message) -> Json:
    """A message as Anthropic's API takes it."""
    match message.role:
        case "assistant":
            return {"role": "assistant", "content": list(_blocks(message))}
        case "tool":
            result: Json = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
            if message.is_error is not None:
                result["is_error"] = message.is_error
            return {"role": "user", "content": [result]}
        case "user":
            return {"role": "user", "content": message.content}
        case _:
            return {"role": "system", "content": message.content}


def _blocks(message: Message) -> Iterable[Json]:
    if message.reasoning_content is not None:
        yield {"type": "thinking", "thinking": message.reasoning_content}
    if message.content:
        yield {"type": "text", "text": message.content}
    for use in message.tool_calls:
        yield _tool_use(use)


def _tool_use(use: ToolUse) -> Json:
    """A tool call; words that are no JSON object stand beside an empty input."""
    block: Json = {"type": "tool_use", "id": use.id, "name": use.name}
    try:
        given = json.loads(use.arguments)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict):
        return block | {"input": given}
    return block | {"input": {}, "raw_input": use.arguments}


def _schema(parameters: str) -> Any:
    try:
        return json.loads(parameters)
    except (ValueError, RecursionError):
        return {}


def _parameters(request: Request) -> Json:
    found: Json = {"model": request.model}
    if request.max_tokens is not None:
        found["max_tokens"] = request.max_tokens
    if request.temperature is not None:
        found["temperature"] = request.temperature
    effort = request.effort or ""
    budget = effort.removeprefix("budget:")
    if effort != budget and budget.isdecimal():
        found["thinking"] = {"type": "enabled", "budget_tokens": int(budget)}
    elif effort:
        found["output_config"] = {"effort": effort}
    return found


def _usage(request: Request) -> Json:
    """The vendor's counts: its `input_tokens` are what was neither read from a cache nor written to it."""
    read, written = request.cache_read_tokens, request.cache_write_tokens
    found: Json = {}
    if request.prompt_tokens is not None:
        found["input_tokens"] = max(0, request.prompt_tokens - (read or 0) - (written or 0))
    if read is not None:
        found["cache_read_input_tokens"] = read
    if written is not None:
        found["cache_creation_input_tokens"] = written
    if request.completion_tokens is not None:
        found["output_tokens"] = request.completion_tokens
    if request.reasoning_tokens is not None:
        found["output_tokens_details"] = {"thinking_tokens": request.reasoning_tokens}
    return found


def _digest(value: Json) -> str:
    return hashlib.sha256(compact_json(value).encode("utf-8", "replace")).hexdigest()


def _stamp(utc_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=utc_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")

"""Agent Trajectory Interchange Format 1.8: a document per session, its sub-agents inside it.

A step of an agent is a request that was answered; its time is that of the send. Everything that the format has no place
for is under `extra.agentdyno`, in microseconds since the session's first send: of a step the request's times and gap
shares, of a tool call its declared times. A sub-agent's document hangs on the tool result that holds its answer.

ATIF is one line of steps. Where the context starts over (a compaction, an edit, another branch), the first step of the
new one says so in `extra.agentdyno.new_context`; steps that stood in the session before are marked as copied. A
branch of the history is a document of its own among the sub-agents, `extra.agentdyno.relation` says `fork`.

Source: harbor-framework/harbor, rfcs/0001-trajectory-format.md; the models of the PyPI package `atif` 1.8.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from capture.call import Message, ToolUse
from capture.trajectory import PooledMessage, Request, ToolCall, Trajectory
from curate.exports.openai import openai_tool

VERSION = "ATIF-v1.8"
OURS = "agentdyno"
_REQUEST_FIELDS = (
    "request_index", "api", "stream", "status", "stop", "relation", "context_event", "transport", "max_tokens",
    "temperature", "t_send_us", "t_headers_us", "t_first_byte_us", "t_first_token_us", "t_first_text_us",
    "t_first_thinking_us", "t_first_tool_call_us", "t_last_token_us", "t_end_us", "gap_us", "gap_kind", "think_us",
    "permission_us", "client_us",
)  # fmt: skip
_CALL_FIELDS = (
    "kind", "t_emitted_us", "t_result_us", "wall_us", "internal_us", "internal_source", "permission_us", "is_error",
    "exit_code", "timed_out",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

type Json = dict[str, Any]


def atif_document(trajectory: Trajectory) -> tuple[Json | None, int, Counter[str]]:
    """One document, the number of requests in it, and what was left out, by reason; None when no request is left."""
    left_out: Counter[str] = Counter()
    superseded = {request.retry_of for request in trajectory.requests}
    chains: dict[str, list[Request]] = {}
    for request in trajectory.requests:
        reason = _unfit(request, superseded)
        if reason is None:
            chains.setdefault(request.agent_path, []).append(request)
        else:
            left_out[reason] += 1
    if not chains:
        return None, 0, left_out
    documents = {path: _Document(trajectory, path, chain) for path, chain in chains.items()}
    root = "main" if "main" in documents else next(iter(documents))
    for path, document in documents.items():
        if path != root:
            documents[_above(path, documents, root)].holds(document)
    value = documents[root].value()
    extra = {
        "source": trajectory.source,
        "t0_utc_us": trajectory.t0_utc_us,
        "token_source": trajectory.token_source,
        "license": trajectory.license,
        "outcome": trajectory.outcome,
        "times": "microseconds since the session's first send",
    }
    value["extra"][OURS] |= {key: told for key, told in extra.items() if told is not None}
    return value, sum(map(len, chains.values())), left_out


def _unfit(request: Request, superseded: set[int | None]) -> str | None:
    if request.kind == "auxiliary":
        return "auxiliary requests (token counts, titles)"
    if request.prompt_spans is None:
        return "requests without text"
    if request.answer_index is None:
        return "requests without an answer"
    if request.request_index in superseded:
        return "requests that were sent again"
    return None


def _above(path: str, documents: Iterable[str], root: str) -> str:
    """The chain that started this one, or the nearest one above it that has a document."""
    while "/" in path:
        path = path.rpartition("/")[0]
        if path in documents:
            return path
    return root


class _Document:
    """One chain as a trajectory."""

    def __init__(self, trajectory: Trajectory, path: str, chain: list[Request]) -> None:
        self.trajectory = trajectory
        self.path = path
        self.chain = chain
        self.steps: list[Json] = []
        self.inside: list[_Document] = []
        self._results: dict[str, Json] = {}  # by tool call id, the last one
        self._open: set[str] = set()  # calls of the last step that its observation can still answer
        self._calls = {(call.request_index, call.tool_call_id): call for call in trajectory.tool_calls}
        context: list[int] = []  # what stands in the steps, as pool positions
        first = chain[0]
        inherits = first.relation == "fork" or any(
            trajectory.pool[position].message.role == "assistant" for position in _positions(first)
        )
        seen = {
            position
            for request in trajectory.requests
            if inherits and request.agent_path != path and request.request_index < first.request_index
            for position in (*_positions(request), request.answer_index)
        }
        for request in chain:
            prompt = _positions(request)
            event = _event(context, prompt, trajectory.pool)
            if event is not None and context:
                event = request.context_event if request.context_event != "append" else "edit"
            new = prompt if event is not None else prompt[len(context) :]
            for position in new:
                self._message(trajectory.pool[position], copied=position in seen, event=event)
                event = None
                seen.add(position)
            assert request.answer_index is not None
            self._answer(request, trajectory.pool[request.answer_index].message)
            context = [*prompt, request.answer_index]
            seen.add(request.answer_index)

    def holds(self, other: _Document) -> None:
        """Take a chain in that this one started."""
        self.inside.append(other)

    def value(self) -> Json:
        """The document."""
        first, last = self.chain[0], self.chain[-1]
        agent: Json = {
            "name": self.trajectory.harness,
            "version": self.trajectory.harness_version or "unknown",
            "model_name": first.model or None,
        }
        if first.agent_type is not None:
            agent["extra"] = {"agent_type": first.agent_type}
        offered = {request.tools_index for request in self.chain}
        if last.tools_index is not None:
            agent["tool_definitions"] = [openai_tool(tool) for tool in self.trajectory.tool_sets[last.tools_index]]
        notes = ["The tools offered changed: tool_definitions are the last."] if len(offered) > 1 else []
        if any("new_context" in step["extra"][OURS] for step in self.steps):
            notes.append("The context starts over at steps with extra.agentdyno.new_context.")
        value: Json = {
            "schema_version": VERSION,
            "session_id": self.trajectory.session_id,
            "trajectory_id": f"{self.trajectory.session_id}/{self.path}",
            "agent": agent,
            "steps": self.steps,
            "notes": " ".join(notes) or None,
            "final_metrics": _totals(self.steps),
            "extra": {OURS: {"agent_path": self.path, "relation": first.relation}},
        }
        for other in self.inside:
            self._link(other)
        if self.inside:
            value["subagent_trajectories"] = [other.value() for other in self.inside]
        return _clean(value)

    def _link(self, other: _Document) -> None:
        """Name a sub-agent on the tool result that holds its answer, else on the only one that it can be."""
        first = other.chain[0]
        calls = [
            call
            for call in self.trajectory.tool_calls
            if call.request_index == first.parent_request_index and call.tool_call_id in self._results
        ]
        words = other.answer.strip()
        holders = [call for call in calls if words and words in self._results[call.tool_call_id]["content"]]
        if len(holders) != 1:
            holders = [call for call in calls if call.kind == "subagent"]
        if len(holders) == 1 and first.relation != "fork":
            refs = self._results[holders[0].tool_call_id].setdefault("subagent_trajectory_ref", [])
            refs.append({"trajectory_id": f"{other.trajectory.session_id}/{other.path}"})

    @property
    def answer(self) -> str:
        """The last words of this chain."""
        position = self.chain[-1].answer_index
        assert position is not None
        return self.trajectory.pool[position].message.content

    def _message(self, pooled: PooledMessage, *, copied: bool, event: str | None) -> None:
        """A message of a prompt, as a step or as a result of the step before."""
        message = pooled.message
        extra: Json = {} if event is None else {"new_context": event}
        if message.role == "tool" and message.tool_call_id in self._open and not extra:
            self._result(message)
            return
        self._open = set()
        if message.role == "assistant":
            # Said by a model, but in no request of this chain that was recorded with its answer.
            step = self._step("agent", message, extra)
            step |= _said(message, {})
            step["is_copied_context"] = True
            self._open = {use.id for use in message.tool_calls}
            return
        if message.role not in ("system", "user"):
            extra["role"] = message.role
        if message.role == "tool":
            extra |= {"tool_call_id": message.tool_call_id, "is_error": message.is_error}
        if message.name is not None:
            extra["name"] = message.name
        step = self._step("system" if message.role in ("system", "developer") else "user", message, extra)
        step["timestamp"] = self._stamp(pooled.t_us)
        step["is_copied_context"] = copied or None

    def _result(self, message: Message) -> None:
        assert message.tool_call_id is not None
        result: Json = {"source_call_id": message.tool_call_id, "content": message.content}
        extra = {"is_error": message.is_error, "name": message.name, "omitted_bytes": message.omitted_bytes or None}
        if any(told is not None for told in extra.values()):
            result["extra"] = {OURS: _without_nulls(extra)}
        self.steps[-1].setdefault("observation", {"results": []})["results"].append(result)
        self._results[message.tool_call_id] = result
        self._open.discard(message.tool_call_id)

    def _answer(self, request: Request, message: Message) -> None:
        step = self._step("agent", message, _told(request, _REQUEST_FIELDS))
        if request.agent_type is not None:
            step["extra"][OURS]["agent_type"] = request.agent_type
        calls = {
            use.id: call
            for use in message.tool_calls
            if (call := self._calls.get((request.request_index, use.id))) is not None
        }
        step |= _said(message, calls)
        step["timestamp"] = self._stamp(request.t_send_us)
        step["model_name"] = request.model or None
        step["reasoning_effort"] = request.effort
        step["llm_call_count"] = 1
        step["metrics"] = _metrics(request)
        self._open = {use.id for use in message.tool_calls}

    def _step(self, source: str, message: Message, extra: Json) -> Json:
        if message.omitted_bytes:
            extra = {**extra, "omitted_bytes": message.omitted_bytes}
        step: Json = {
            "step_id": len(self.steps) + 1,
            "source": source,
            "message": message.content,
            "extra": {OURS: extra},
        }
        self.steps.append(step)
        return step

    def _stamp(self, at_us: int | None) -> str | None:
        if at_us is None or self.trajectory.t0_utc_us is None:
            return None
        moment = _EPOCH + timedelta(microseconds=self.trajectory.t0_utc_us + at_us)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _positions(request: Request) -> list[int]:
    return [position for start, end in request.prompt_spans or () for position in range(start, end)]


def _event(context: list[int], prompt: list[int], pool: tuple[PooledMessage, ...]) -> str | None:
    """None where a prompt is the context continued; the agent may spell the answer anew, all but its calls."""
    shared = len(context)
    if not context or len(prompt) < shared or prompt[: shared - 1] != context[:-1]:
        return "reset" if context else None
    answer, echo = pool[context[-1]].message, pool[prompt[shared - 1]].message
    calls = [[use.id for use in message.tool_calls] for message in (answer, echo)]
    return None if echo.role == "assistant" and calls[0] == calls[1] else "edit"


def _said(message: Message, calls: dict[str, ToolCall]) -> Json:
    """What an agent's step says beside its message."""
    found: Json = {}
    if message.reasoning_content is not None:
        found["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        found["tool_calls"] = [_tool_call(use, calls.get(use.id)) for use in message.tool_calls]
    return found


def _tool_call(use: ToolUse, call: ToolCall | None) -> Json:
    extra = {} if call is None else _told(call, _CALL_FIELDS)
    try:
        arguments = json.loads(use.arguments, parse_constant=_refuse)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments, extra["arguments"] = {}, use.arguments  # text for a tool that takes no JSON
    found: Json = {"tool_call_id": use.id, "function_name": use.name, "arguments": arguments}
    return found | {"extra": {OURS: extra}} if extra else found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _told(value: Request | ToolCall, names: tuple[str, ...]) -> Json:
    """Fields of a record that are known."""
    known = {field.name for field in fields(value)}
    assert known.issuperset(names)
    return {name: told for name in names if (told := getattr(value, name)) is not None}


def _metrics(request: Request) -> Json | None:
    extra = {"reasoning_tokens": request.reasoning_tokens, "cache_write_tokens": request.cache_write_tokens}
    found: Json = {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.completion_tokens,
        "cached_tokens": request.cache_read_tokens,
        "extra": {name: count for name, count in extra.items() if count is not None} or None,
    }
    return found if any(told is not None for told in found.values()) else None


def _totals(steps: list[Json]) -> Json:
    """Sums over the document's own steps; a sum of which a part is unknown is unknown."""
    counted = [step["metrics"] or {} for step in steps if "metrics" in step]
    found: Json = {"total_steps": len(steps)}
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
        told = [metrics.get(name) for metrics in counted]
        if told and None not in told:
            found[f"total_{name}"] = sum(told)
    return found


def _clean(value: Json) -> Json:
    """Without keys that have no value, in the document and its steps."""
    steps = [_without_nulls(step) for step in value["steps"]]
    agent = _without_nulls(value["agent"])
    return _without_nulls({**value, "agent": agent, "steps": steps})


def _without_nulls(value: Json) -> Json:
    kept = {key: told for key, told in value.items() if told is not None}
    if "metrics" in kept:
        kept["metrics"] = {key: told for key, told in kept["metrics"].items() if told is not None}
    if kept.get("extra") == {OURS: {}}:
        del kept["extra"]
    return kept

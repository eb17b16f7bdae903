"""OpenTelemetry traces with the semantic conventions for generative AI, as OTLP/JSON; without any text.

One trace per session: an `invoke_agent` span per chain (a sub-agent's under the tool call that started it, where that
is known), under it a `chat` (Gemini: `generate_content`) span per request and an `execute_tool` span per tool call.
Usage, finish reason, time to first chunk and error type are the conventions' attributes; what they have no name for is
under `agentdyno.`: gap shares in milliseconds, times of the first token, how a tool's time is known.

A tool span is as long as its permission wait and its execution, where somebody declared that (`agentdyno.tool.time` =
`declared`): the wait is a child span `Permission.ask`. It begins where the call was complete, the earliest moment at
which it can have begun. Elsewhere (`gap`) it reaches to the next request, which bounds the tool's time from above.

A session of unknown date lies at the start of 1970-01-02 (`agentdyno.clock` = `relative`).

Source: opentelemetry.io, semantic conventions for generative AI (spans, agent spans), OTLP/JSON and file exporter.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from capture.trajectory import Request, ToolCall, Trajectory

_INTERNAL, _CLIENT = 1, 3  # SpanKind
_ERROR = 2  # StatusCode
_UNDATED_US = 86_400_000_000
_PROVIDERS = {"anthropic": "anthropic", "openai": "openai", "google": "gcp.gemini"}

type Json = dict[str, Any]
type Value = str | bool | int | float | list[str] | None


def otel_trace(trajectory: Trajectory) -> tuple[Json | None, int, Counter[str]]:
    """One `TracesData` value, the requests in it, and what was left out, by reason; None when no request is left."""
    trace = _Trace(trajectory)
    spans = trace.spans()
    if not spans:
        return None, 0, trace.left_out
    about: dict[str, Value] = {
        "service.name": trajectory.harness,
        "service.version": trajectory.harness_version,
        "agentdyno.source": trajectory.source,
        "agentdyno.clock": "relative" if trajectory.t0_utc_us is None else "utc",
        "agentdyno.token_source": trajectory.token_source,
        "agentdyno.license": trajectory.license,
    }
    scope = {"scope": {"name": "agentdyno"}, "spans": spans}
    value = {"resourceSpans": [{"resource": {"attributes": _attributes(about)}, "scopeSpans": [scope]}]}
    return value, len(trace.kept), trace.left_out


class _Trace:
    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.left_out: Counter[str] = Counter()
        self._trace_id = _id(trajectory.session_id, "trace", 16)
        self._zero_us = _UNDATED_US if trajectory.t0_utc_us is None else trajectory.t0_utc_us
        self.kept: dict[int, tuple[Request, int]] = {}  # by index, with the end
        for request in trajectory.requests:
            end_us, reason = _end(request)
            if reason is not None:
                self.left_out[reason] += 1
            else:
                self.kept[request.request_index] = (request, end_us)
        self._chains: dict[str, list[Request]] = {}
        for request, _ in self.kept.values():
            self._chains.setdefault(request.agent_path, []).append(request)
        self._root = "main" if "main" in self._chains else next(iter(self._chains), "")

    def spans(self) -> list[Json]:
        """Agents, then calls, then tools."""
        tools: list[Json] = []
        ends = {path: max(self.kept[one.request_index][1] for one in chain) for path, chain in self._chains.items()}
        for number, call in enumerate(self.trajectory.tool_calls):
            for span in self._tool(call, number):
                tools.append(span)
                end_us = int(span["endTimeUnixNano"]) // 1000 - self._zero_us
                ends[call.agent_path] = max(ends.get(call.agent_path, 0), end_us)
        if self._chains:  # a trace has one root, and it is as long as the session
            ends[self._root] = max(ends.values())
        agents = [self._agent(path, chain, ends[path]) for path, chain in self._chains.items()]
        return [*agents, *(self._call(request, end_us) for request, end_us in self.kept.values()), *tools]

    def _agent(self, path: str, chain: list[Request], end_us: int) -> Json:
        first = chain[0]
        root = path == self._root
        start_us = min(one.sent_us for one in (chain if not root else [one for one, _ in self.kept.values()]))
        name = self.trajectory.harness if root else first.agent_type or path
        return self._span(
            key=f"agent {path}",
            parent=None if root else self._parent_of(path, first),
            name=f"invoke_agent {name}",
            kind=_INTERNAL,
            start_us=start_us,
            end_us=end_us,
            values={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": _provider(first.api),
                "gen_ai.agent.name": name,
                "gen_ai.agent.id": path,
                "gen_ai.agent.version": self.trajectory.harness_version if root else None,
                "gen_ai.conversation.id": self.trajectory.session_id,
                "agentdyno.relation": first.relation,
            },
        )

    def _parent_of(self, path: str, first: Request) -> str:
        """The span that a chain's agent hangs under: a tool call where exactly one can be meant, else an agent."""
        starts = [
            number
            for number, call in enumerate(self.trajectory.tool_calls)
            if call.kind == "subagent"
            and call.request_index == first.parent_request_index
            and self._tool_span(call) is not None
        ]
        if len(starts) == 1 and first.relation == "subagent":
            return f"tool {starts[0]}"
        above = path
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in self._chains:
                return f"agent {above}"
        return f"agent {self._root}"

    def _call(self, request: Request, end_us: int) -> Json:
        operation = "generate_content" if request.api.startswith("google") else "chat"
        chunk_us = request.t_first_token_us if request.t_first_byte_us is None else request.t_first_byte_us
        return self._span(
            key=f"request {request.request_index}",
            parent=f"agent {request.agent_path}",
            name=f"{operation} {request.model}".strip(),
            kind=_CLIENT,
            start_us=request.sent_us,
            end_us=end_us,
            error=_error_type(request),
            values={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": _provider(request.api),
                "gen_ai.conversation.id": self.trajectory.session_id,
                "gen_ai.request.model": request.model or None,
                "gen_ai.request.max_tokens": request.max_tokens,
                "gen_ai.request.temperature": request.temperature,
                "gen_ai.request.stream": request.stream,
                "gen_ai.response.finish_reasons": None if request.stop is None else [request.stop],
                "gen_ai.response.time_to_first_chunk": _seconds(request, chunk_us) if request.stream else None,
                "gen_ai.usage.input_tokens": request.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": request.cache_read_tokens,
                "gen_ai.usage.cache_creation.input_tokens": request.cache_write_tokens,
                "gen_ai.usage.output_tokens": request.completion_tokens,
                "gen_ai.usage.reasoning.output_tokens": request.reasoning_tokens,
                "http.response.status_code": request.status,
                "agentdyno.request.index": request.request_index,
                "agentdyno.request.kind": request.kind,
                "agentdyno.relation": request.relation,
                "agentdyno.context_event": request.context_event,
                "agentdyno.retry_of": request.retry_of,
                "agentdyno.time_to_first_token": _seconds(request, request.t_first_token_us),
                "agentdyno.incomplete": True if request.t_end_us is None else None,
                "agentdyno.gap.kind": request.gap_kind,
                "agentdyno.gap_ms": _milliseconds(request.gap_us),
                "agentdyno.gap.human_ms": _milliseconds(request.think_us),
                "agentdyno.gap.permission_ms": _milliseconds(request.permission_us),
                "agentdyno.gap.client_ms": _milliseconds(request.client_us),
            },
        )

    def _tool_span(self, call: ToolCall) -> tuple[int, int, str] | None:
        """(start, end, how that is known) of a tool call in the session's microseconds; None where it is not."""
        if call.request_index not in self.kept or call.agent_path not in self._chains:
            return None
        start_us = self.kept[call.request_index][1] if call.t_emitted_us is None else call.t_emitted_us
        if call.internal_us is not None:
            return start_us, start_us + (call.permission_us or 0) + call.internal_us, "declared"
        if call.t_result_us is not None and call.t_result_us >= start_us:
            return start_us, call.t_result_us, "gap"
        return None

    def _tool(self, call: ToolCall, number: int) -> list[Json]:
        placed = self._tool_span(call)
        if placed is None:
            self.left_out["tool calls of unknown time"] += 1
            return []
        start_us, end_us, known_by = placed
        span = self._span(
            key=f"tool {number}",
            parent=f"agent {call.agent_path}",
            name=f"execute_tool {call.name}".strip(),
            kind=_INTERNAL,
            start_us=start_us,
            end_us=end_us,
            error="tool_error" if call.is_error else None,
            values={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.conversation.id": self.trajectory.session_id,
                "gen_ai.tool.name": call.name,
                "gen_ai.tool.call.id": call.tool_call_id,
                "gen_ai.tool.type": "function",
                "agentdyno.tool.kind": call.kind,
                "agentdyno.tool.time": known_by,
                "agentdyno.tool.time_source": call.internal_source,
                "agentdyno.tool.wall_ms": _milliseconds(call.wall_us),
                "agentdyno.tool.exit_code": call.exit_code,
                "agentdyno.tool.timed_out": call.timed_out,
                "agentdyno.tool.result_bytes": call.result_bytes,
            },
        )
        if call.permission_us is None:
            return [span]
        wait = self._span(
            key=f"permission {number}",
            parent=f"tool {number}",
            name="Permission.ask",
            kind=_INTERNAL,
            start_us=start_us,
            end_us=min(end_us, start_us + call.permission_us),
            values={"gen_ai.conversation.id": self.trajectory.session_id},
        )
        return [span, wait]

    def _span(
        self,
        *,
        key: str,
        parent: str | None,
        name: str,
        kind: int,
        start_us: int,
        end_us: int,
        values: dict[str, Value],
        error: str | None = None,
    ) -> Json:
        span: Json = {
            "traceId": self._trace_id,
            "spanId": _id(self.trajectory.session_id, key, 8),
            "name": name,
            "kind": kind,
            # 64-bit integers are strings in OTLP/JSON.
            "startTimeUnixNano": str((self._zero_us + start_us) * 1000),
            "endTimeUnixNano": str((self._zero_us + end_us) * 1000),
            "attributes": _attributes({**values, "error.type": error}),
        }
        if parent is not None:
            span["parentSpanId"] = _id(self.trajectory.session_id, parent, 8)
        if error is not None:
            span["status"] = {"code": _ERROR}
        return span


def _end(request: Request) -> tuple[int, str | None]:
    """The last moment that is known of a request, or why it cannot be a span."""
    if request.t_send_us is None:
        return 0, "requests of unknown time"
    told = (request.t_end_us, request.t_last_token_us, request.t_first_token_us, request.t_first_byte_us)
    end_us = next((at for at in told if at is not None), None)
    if end_us is None:
        return 0, "requests of unknown end"
    if end_us < request.t_send_us:
        return 0, "requests that end before they begin"
    return end_us, None


def _error_type(request: Request) -> str | None:
    if request.status is not None and request.status >= 400:
        return str(request.status)
    return None if request.error is None else "_OTHER"  # the conventions' word for what has no name


def _provider(api: str) -> str | None:
    return _PROVIDERS.get(api.partition(".")[0])


def _seconds(request: Request, at_us: int | None) -> float | None:
    return None if at_us is None or at_us < request.sent_us else (at_us - request.sent_us) / 1e6


def _milliseconds(duration_us: int | None) -> float | None:
    return None if duration_us is None else duration_us / 1000


def _id(session_id: str, key: str, size: int) -> str:
    """Hex of an id that is the same in every export of the session."""
    return hashlib.blake2b(f"{session_id}\0{key}".encode("utf-8", "replace"), digest_size=size).hexdigest()


def _attributes(values: dict[str, Value]) -> list[Json]:
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: str | bool | int | float | list[str]) -> Json:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [{"stringValue": one} for one in value]}}
    return {"stringValue": value}

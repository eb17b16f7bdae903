"""Tool times out of the telemetry that agents export by OTLP/HTTP to the recorder itself.

The recorder answers `POST <base>/otlp/v1/traces|logs|metrics` and keeps each export as an exchange of the host
`agentdyno.otlp`. Read here are only ids, durations and stamps: the e-mail, account, machine and prompt fields that such
exports may carry are never looked at. What was seen from the agents themselves (`tests/otlp/README.md`):

- Claude Code, beta traces: the span `claude_code.tool.execution` has `tool_use_id`; `claude_code.tool.blocked_on_user`
  has none, its parent span has, and comes in a later export; its `source` says whether a person or the configuration
  decided. Log events: `tool_result` with `tool_use_id` and `duration_ms` (execution alone).
- Codex: the event `codex.tool_result` with `call_id` and `duration_ms` from dispatch to result, an approval included;
  `codex.tool_decision` says who decided, and when. It comes as a log record, and on spans as a span event.
- opencode, where the user told it an endpoint: the span `Tool.execute` with `tool.call_id`; under it `Permission.ask`.
- OpenTelemetry's GenAI conventions: a span with `gen_ai.operation.name` = `execute_tool` and `gen_ai.tool.call.id`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from capture.call import ToolTime
from capture.encoding import BodyDecoder
from capture.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

HOST = "agentdyno.otlp"
"""The host of recorded telemetry: nobody's server, the recorder took it itself."""
_CALL_IDS = ("tool_use_id", "call_id", "gen_ai.tool.call.id", "tool_call_id", "tool.call_id")
_SESSIONS = ("session.id", "conversation.id", "gen_ai.conversation.id")
_DEEPEST = 5  # spans between a wait and its tool
_LONGEST_MS = 30 * 24 * 3_600_000.0  # a longer tool is a broken number

type _Value = str | bool | int | float
type _Key = tuple[str | None, str | None, str]  # contributor, session as the agent names it, tool call id
type _SpanId = tuple[bytes, bytes]  # trace, span


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFact:
    """A model call as the agent's telemetry tells it, to check the wire against."""

    session: str | None  # native id
    request_id: str  # the provider's
    attempt: int | None  # 1: the first attempt
    ttft_us: int | None  # to the first byte of the stream
    duration_us: int | None


@dataclass(frozen=True, slots=True)
class _Stretch:
    """One statement on how long a tool ran; a higher rank is nearer to the execution alone."""

    rank: int
    duration_us: int
    start_us: int | None
    end_us: int | None
    with_waits: bool = False  # waits for a permission are inside


@dataclass(slots=True)
class _Tool:
    stretches: list[_Stretch] = field(default_factory=list)
    decisions: set[tuple[int | None, bool]] = field(default_factory=set)  # (when, by a person)


def is_telemetry(exchange: Exchange) -> bool:
    """Whether an exchange is an export that the recorder took in, not a call that passed through."""
    return exchange.host.partition(":")[0] == HOST


class Telemetry:
    """Gathers exports in any order; what cannot be read is left out and never raises."""

    def __init__(self) -> None:
        self.unreadable = 0
        self._contributor: str | None = None  # of the export that is being read
        self._tools: dict[_Key, _Tool] = {}
        self._calls: dict[str, CallFact] = {}
        self._tool_of_span: dict[_SpanId, _Key] = {}
        self._parent_of: dict[_SpanId, _SpanId] = {}  # of waits, and of spans that only stand around one
        self._waits: dict[_SpanId, tuple[int, bool]] = {}  # (microseconds, for a person)

    def add(self, exchange: Exchange) -> None:
        """Take in one export; the same export twice changes nothing."""
        signal = exchange.path.partition("?")[0].rstrip("/").rpartition("/v1/")[2]
        if exchange.method.upper() != "POST" or signal not in ("traces", "logs"):
            return
        from google.protobuf import json_format  # type: ignore[import-untyped]
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self._contributor = exchange.contributor
        message = ExportTraceServiceRequest() if signal == "traces" else ExportLogsServiceRequest()
        try:
            body = _body(exchange)
            if "json" in (exchange.request_header("content-type") or "").lower():
                # OTLP writes ids as hex where protobuf's JSON means base64: longer, but equal ids stay equal.
                json_format.Parse(body, message, ignore_unknown_fields=True)
            else:
                message.ParseFromString(body)
        except (
            DecodeError,
            json_format.ParseError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            RecursionError,
        ):
            self.unreadable += 1
            return
        if isinstance(message, ExportTraceServiceRequest):
            self._add_spans(message)
        else:
            self._add_logs(message)

    def _add_spans(self, message: ExportTraceServiceRequest) -> None:
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._add_span(span)

    def _add_logs(self, message: ExportLogsServiceRequest) -> None:
        for resource in message.resource_logs:
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    values = _values(record.attributes)
                    stamp = _stamp(record.time_unix_nano or record.observed_time_unix_nano)
                    self._add_event(_text(values, "event.name") or record.event_name, values, stamp)

    def _add_span(self, span: Span) -> None:
        values = _values(span.attributes)
        own = (span.trace_id, span.span_id)
        start, end = _stamp(span.start_time_unix_nano), _stamp(span.end_time_unix_nano)
        took = None if start is None or end is None or end < start else end - start
        for event in span.events:
            of_event = _values(event.attributes)
            name = _text(of_event, "event.name") or event.name
            self._add_event(name, of_event, _stamp(event.time_unix_nano))
        kind = span.name.removeprefix("claude_code.")
        if kind == "tool.blocked_on_user" or kind.endswith(".ask"):
            self._parent_of[own] = (span.trace_id, span.parent_span_id)
            if took is not None and kind in ("tool.blocked_on_user", "Permission.ask"):
                self._waits[own] = (took, _by_person(values, True))
            return
        if kind == "llm_request":
            self._add_call(values, took)
        key = self._key(values)
        if key is None:
            return
        execution = kind == "tool.execution"
        if execution or kind == "Tool.execute" or _text(values, "gen_ai.operation.name") == "execute_tool":
            self._tool_of_span[own] = key
            tool = self._tools.setdefault(key, _Tool())
            # Our own export says so where a span only reaches from the call to its result: that is no tool's time.
            if took is not None and _text(values, "agentdyno.tool.time") != "gap":
                tool.stretches.append(_Stretch(3 if execution else 1, took, start, end, with_waits=not execution))

    def _add_event(self, name: str, values: Mapping[str, _Value], stamp: int | None) -> None:
        owner, _, kind = name.rpartition(".")
        key = self._key(values)
        if kind == "api_request":
            self._add_call(values, None)
        if key is None:
            return
        at = stamp if stamp is not None else _read_time(values.get("event.timestamp"))
        if kind == "tool_result":
            tool = self._tools.setdefault(key, _Tool())
            took = _microseconds(values.get("duration_ms"))
            if took is not None:
                start = None if at is None else at - took
                tool.stretches.append(_Stretch(2, took, start, at, with_waits=owner == "codex"))
        elif kind == "tool_decision":
            self._tools.setdefault(key, _Tool()).decisions.add((at, _by_person(values, False)))

    def _add_call(self, values: Mapping[str, _Value], took: int | None) -> None:
        request_id = _text(values, "request_id")
        if request_id is None:
            return
        attempt = values.get("attempt")
        known = self._calls.get(request_id)
        fact = CallFact(
            session=_session(values),
            request_id=request_id,
            attempt=attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else None,
            ttft_us=_microseconds(values.get("ttft_ms")),
            duration_us=took if took is not None else _microseconds(values.get("duration_ms")),
        )
        if known is None or known.attempt is None:  # the span knows more than the log event
            self._calls[request_id] = fact

    def _key(self, values: Mapping[str, _Value]) -> _Key | None:
        session = _session(values)
        tool_call_id = next((value for key in _CALL_IDS if (value := _text(values, key))), None)
        return None if tool_call_id is None else (self._contributor, session, tool_call_id)

    @property
    def calls(self) -> tuple[CallFact, ...]:
        """Model calls that were told of, in order of arrival."""
        return tuple(self._calls.values())

    def tool_times(self) -> Iterator[tuple[str | None, str | None, ToolTime]]:
        """(contributor, session as the agent names it, time) of every tool call that was told of."""
        waits: defaultdict[_Key, list[tuple[int, bool]]] = defaultdict(list)
        for span, wait in self._waits.items():
            at: _SpanId | None = span
            for _ in range(_DEEPEST):
                at = self._parent_of.get(at) if at is not None else None
                if at in self._tool_of_span:
                    waits[self._tool_of_span[at]].append(wait)
                    break
        for key, tool in self._tools.items():
            contributor, session, tool_call_id = key
            yield contributor, session, _conclude(tool_call_id, tool, waits[key])

    def by_contributor(self) -> dict[str | None, dict[str, list[tuple[str | None, ToolTime]]]]:
        """The same by contributor and tool call id, for `times_of`."""
        found: defaultdict[str | None, defaultdict[str, list[tuple[str | None, ToolTime]]]]
        found = defaultdict(lambda: defaultdict(list))
        for contributor, session, time in self.tool_times():
            found[contributor][time.tool_call_id].append((session, time))
        return {contributor: dict(by_call) for contributor, by_call in found.items()}


def times_of(
    by_call: Mapping[str, Sequence[tuple[str | None, ToolTime]]],
    tool_call_ids: Iterable[str],
    session_id: str,
    owner: Callable[[str], str | None],
) -> list[ToolTime]:
    """Times of one session's tool calls; `owner` gives the recorded session that a native id names, if any.

    An export may name nobody, or a sub-agent by an id of its own: then a call id that only one export has is enough.
    """
    found = []
    for tool_call_id in tool_call_ids:
        told = [(None if native is None else owner(native), time) for native, time in by_call.get(tool_call_id, ())]
        own = [time for name, time in told if name == session_id]
        if own or (len(told) == 1 and told[0][0] is None):
            found.append(own[0] if own else told[0][1])
    return found


def _conclude(tool_call_id: str, tool: _Tool, waits: Collection[tuple[int, bool]]) -> ToolTime:
    best = max(tool.stretches, key=lambda stretch: stretch.rank, default=None)
    permission: int | None = None
    inside = 0  # of the stretch, and no execution
    if waits:
        permission = sum(wait for wait, person in waits if person)
        inside = sum(wait for wait, _ in waits)
    elif tool.decisions and not any(person for _, person in tool.decisions):
        permission = 0  # configuration decided: nobody was asked
    if best is None:
        return ToolTime(tool_call_id=tool_call_id, source="otel", permission_us=permission)
    internal: int | None = best.duration_us
    start = best.start_us
    if best.with_waits:
        asked = [at for at, person in tool.decisions if person]
        if permission is None and len(asked) == 1 and asked[0] is not None and start is not None:
            permission = inside = min(max(0, asked[0] - start), best.duration_us)
        elif permission is None and asked:  # asked twice: nobody can tell the runs from the questions
            internal = start = None
        inside = min(inside, best.duration_us)
        internal = None if internal is None else internal - inside
        start = None if start is None else start + inside
    return ToolTime(
        tool_call_id=tool_call_id,
        source="otel",
        internal_us=internal,
        permission_us=permission,
        started_utc_us=start,
        ended_utc_us=best.end_us if start is not None else None,
    )


def _body(exchange: Exchange) -> bytes:
    if exchange.request_decoded:
        return exchange.request_body
    decoder = BodyDecoder(exchange.request_header("content-encoding"))
    body = decoder.feed(exchange.request_body)
    if decoder.fault is not None:
        raise ValueError(decoder.fault)
    return body


def _values(attributes: Iterable[KeyValue]) -> dict[str, _Value]:
    found: dict[str, _Value] = {}
    for attribute in attributes:
        value = attribute.value
        match value.WhichOneof("value"):
            case "string_value":
                found[attribute.key] = value.string_value
            case "bool_value":
                found[attribute.key] = value.bool_value
            case "int_value":
                found[attribute.key] = value.int_value
            case "double_value":
                found[attribute.key] = value.double_value
    return found


def _text(values: Mapping[str, _Value], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) and value else None


def _session(values: Mapping[str, _Value]) -> str | None:
    return next((value for key in _SESSIONS if (value := _text(values, key))), None)


def _by_person(values: Mapping[str, _Value], default: bool) -> bool:
    """Whether a person decided: Claude Code says user_temporary, user_reject, config, hook; Codex User, Config."""
    source = _text(values, "source")
    return default if source is None else source.lower().startswith("user")


def _microseconds(milliseconds: _Value | None) -> int | None:
    if isinstance(milliseconds, bool) or milliseconds is None:
        return None
    try:
        value = float(milliseconds)
    except (ValueError, OverflowError):
        return None
    return round(value * 1000) if math.isfinite(value) and 0 <= value <= _LONGEST_MS else None


def _stamp(nanoseconds: int) -> int | None:
    return nanoseconds // 1000 if nanoseconds > 0 else None


def _read_time(value: _Value | None) -> int | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return round(moment.timestamp() * 1e6) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


# ---- what the launcher tells an agent, so that it exports here ----


def agent_environment(harness: str, endpoint: str) -> dict[str, str]:
    """Variables with which an agent exports tool times to `endpoint`/v1/traces and /v1/logs; none for most agents.

    Prompts, tool contents and raw bodies stay off, as they are by default; metrics are not asked for. Claude Code keeps
    OTEL_* from the programs that its tools start.
    """
    if harness == "copilot-cli":
        # Set by name of the signal too, because a general endpoint of the user's is theirs.
        return {
            "COPILOT_OTEL_ENABLED": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint.rstrip("/"),
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    if harness != "claude-code":
        return {}
    found = {"CLAUDE_CODE_ENABLE_TELEMETRY": "1", "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1"}
    for signal in ("traces", "logs"):
        name = signal.upper()
        found[f"OTEL_{name}_EXPORTER"] = "otlp"
        # Named per signal: a general endpoint in a settings file would else take what the user never sent there.
        found[f"OTEL_EXPORTER_OTLP_{name}_PROTOCOL"] = "http/protobuf"
        found[f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT"] = f"{endpoint.rstrip('/')}/v1/{signal}"
    return found


def agent_overrides(endpoint: str) -> list[str]:
    """Options with which Codex exports its events to `endpoint`/v1/logs.

    Logs rather than traces: traces are four times as large. The results in them also hold the tool's output, which the
    next request carries past the recorder anyway; prompts stay out.
    """
    exporter = f'{{otlp-http={{endpoint="{endpoint.rstrip("/")}/v1/logs",protocol="binary"}}}}'
    return ["-c", f"otel.exporter={exporter}"]

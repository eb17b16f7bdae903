"""A model call from its parts: what was asked, what was answered, and what the wire says about both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from capture.call import ModelCall, Transport
from capture.dialects.reading import Answer, Prompt, with_call_ids
from capture.exchange import Exchange
from capture.harness import read_harness


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The part of an exchange that one call is: all of it over HTTP, some messages of a WebSocket. Monotonic ns."""

    exchange_id: str
    transport: Transport
    status: int | None
    t_send_ns: int
    t_headers_ns: int | None
    t_first_byte_ns: int | None
    t_end_ns: int | None
    bytes_up: int | None
    bytes_down: int
    events: int
    error: str | None  # what the call failed of where its answer does not say; None: it did not fail
    auxiliary: bool  # the call is no turn, whatever its prompt says
    gaps: int
    wall_offset_us: int
    wall_offset_end_us: int | None
    notes: tuple[str, ...]


def put_together(
    exchange: Exchange, wire: Wire, api: str, headers: Mapping[str, str], prompt: Prompt, answer: Answer
) -> ModelCall:
    """The call; `headers` are the request's, lower case."""
    harness, version = _harness(exchange, headers, prompt)
    failed = wire.status is not None and wire.status >= 400
    complete = answer.complete and not failed
    messages, said = with_call_ids(prompt.messages, answer.message)
    content = answer.content
    return ModelCall(
        exchange_id=wire.exchange_id,
        connection_id=exchange.connection_id,
        wall_anchor_us=exchange.wall_anchor_us,
        api=api,
        harness=harness,
        harness_version=version,
        model=prompt.model or answer.model or "",
        stream=prompt.stream or wire.transport == "websocket",
        status=wire.status,
        error=None if complete else answer.error or wire.error,
        complete=complete,
        system=prompt.system,
        messages=messages,
        tools=prompt.tools,
        answer=said,
        stop=answer.stop,
        usage=answer.usage,
        response_id=answer.response_id,
        previous_response_id=prompt.previous_response_id,
        hints=prompt.hints,
        max_tokens=prompt.max_tokens,
        temperature=prompt.temperature,
        effort=prompt.effort,
        t_send_ns=wire.t_send_ns,
        t_headers_ns=wire.t_headers_ns,
        t_first_byte_ns=wire.t_first_byte_ns,
        t_first_content_ns=content.at_ns[0] if content.at_ns else None,
        t_last_content_ns=content.at_ns[-1] if content.at_ns else None,
        t_end_ns=wire.t_end_ns,
        content_at_ns=content.at_ns,
        events=wire.events,
        bytes_up=wire.bytes_up,
        bytes_down=wire.bytes_down,
        kind="auxiliary" if prompt.auxiliary or wire.auxiliary else "turn",
        gaps=wire.gaps,
        notes=(*wire.notes, *prompt.notes, *answer.notes),
        tool_durations_ms=read_tool_durations(headers.get("x-claude-code-prev-tool-durations")),
        compaction=headers.get("x-claude-code-compaction") or prompt.compaction,
        context_compacted="x-claude-code-context-compacted" in headers,
        transport=wire.transport,
        t_first_text_ns=content.first_text_ns,
        t_first_thinking_ns=content.first_thinking_ns,
        t_first_tool_call_ns=content.first_tool_call_ns,
        request_class=prompt.request_class,
        agent_type=prompt.agent_type,
        attempt=_attempt(headers),
        context_generation=prompt.context_generation,
        mode=exchange.mode,
        contributor=exchange.contributor,
        consent=exchange.consent,
        wall_offset_us=wire.wall_offset_us,
        wall_offset_end_us=wire.wall_offset_end_us,
    )


def _harness(exchange: Exchange, headers: Mapping[str, str], prompt: Prompt) -> tuple[str, str | None]:
    """Which agent called, and its version: as the wire tells; where it does not, the one that was launched."""
    harness, version = read_harness(headers, prompt.system or prompt.messages[:1])
    if harness == "unknown" and exchange.agent is not None:
        return exchange.agent, exchange.agent_version
    if version is None and harness == exchange.agent:
        return harness, exchange.agent_version
    return harness, version


def _attempt(headers: Mapping[str, str]) -> int | None:
    """Retries before this request, as the SDKs of Anthropic and OpenAI count them."""
    count = headers.get("x-stainless-retry-count", "")
    return int(count) if count.isascii() and count.isdigit() and len(count) < 6 else None


def read_tool_durations(value: str | None) -> tuple[tuple[str, int], ...]:
    """Claude Code's `Bash=742;Read=9`, percent-encoded: tool name and milliseconds, in the order of the results."""
    durations = []
    for part in (value or "").split(";"):
        name, _, milliseconds = part.strip().rpartition("=")
        if name and milliseconds.isascii() and milliseconds.isdigit() and len(milliseconds) < 16:
            durations.append((unquote(name), int(milliseconds)))
    return tuple(durations)

"""What a dialect reads out of an exchange: one call to a model, in words that no vendor owns.

Messages follow the OpenAI chat shape (role, content, tool_calls, tool_call_id), because every serving stack
takes it. A dialect splits one vendor message into several where that shape needs it (an Anthropic user message
with two tool results and a text becomes three messages).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

type Transport = Literal["http", "sse", "websocket"]

type TimeSource = Literal["header", "body", "otel", "log"]
"""Who declares a tool's time: a request header, the request's body, the agent's telemetry, its local log."""

type Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """A tool call inside an assistant message."""

    id: str
    name: str
    arguments: str  # JSON text as the model wrote it; free text for custom tools
    t_emitted_ns: int | None = None  # the call's own block closed (only in a live answer, never in an echoed one)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    reasoning_content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None  # role tool: the call that this answers
    tool_calls: tuple[ToolUse, ...] = ()
    is_error: bool | None = None  # role tool: the agent marked the result as a failure
    omitted_bytes: int = 0  # bytes of parts that text cannot hold (images, encrypted reasoning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool offered to the model."""

    name: str
    description: str
    parameters: str  # JSON Schema as text


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as the provider reports them, normalised: `input_total` includes what was read from cache.

    `raw` is the provider's own object as JSON text. None: the provider did not say.
    """

    input_total: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    output_total: int | None = None  # includes reasoning
    reasoning: int | None = None
    raw: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHint:
    """Evidence that a call belongs to a session, best first in `ModelCall.hints`."""

    session: str
    evidence: Literal["header", "body", "source"]  # source: the log of the agent that it was read from
    agent: str | None = None  # id of the sub-agent, where the wire names one
    parent_agent: str | None = None
    cache_key: bool = False  # a `prompt_cache_key`: often the session's id, but several sessions may share one


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTime:
    """How long one tool call took, as somebody who saw it run says: the agent, its log, its telemetry.

    Durations in microseconds. None: that source does not tell.
    """

    tool_call_id: str
    source: TimeSource
    internal_us: int | None = None  # execution alone
    permission_us: int | None = None  # waiting for a person's permission before it
    started_utc_us: int | None = None  # wall clock of whoever says so
    ended_utc_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """One request to a model and its answer. Times are monotonic ns of the journal it came from."""

    exchange_id: str
    connection_id: str
    wall_anchor_us: int
    api: str  # anthropic.messages | openai.chat | openai.responses | google.gemini
    harness: str  # from the user agent: claude-code, codex, pi, …; "unknown"
    harness_version: str | None
    model: str
    stream: bool | None  # None: a log that does not tell
    status: int | None
    error: str | None  # transport error, HTTP error body or error event; None when the call succeeded
    complete: bool  # the stream's own end was seen
    system: tuple[Message, ...]  # system prompt messages that precede the conversation, if the API keeps them apart
    messages: tuple[Message, ...]  # the whole prompt in order, `system` included at its head
    tools: tuple[Tool, ...]
    answer: Message | None  # None when nothing came
    stop: str | None  # the provider's word
    usage: Usage
    response_id: str | None
    previous_response_id: str | None
    hints: tuple[SessionHint, ...]
    max_tokens: int | None
    temperature: float | None
    effort: str | None
    t_send_ns: int
    t_headers_ns: int | None
    t_first_byte_ns: int | None
    t_first_content_ns: int | None  # first text, reasoning or tool-call fragment
    t_last_content_ns: int | None
    t_end_ns: int | None  # last byte of the response
    content_at_ns: tuple[int, ...]  # one per content event
    events: int
    bytes_up: int | None  # None in what was read from a log
    bytes_down: int | None
    kind: Literal["turn", "auxiliary"] = "turn"  # auxiliary: count_tokens, prewarm, title and quota probes that say so
    gaps: int = 0  # recorder gaps inside this exchange
    notes: tuple[str, ...] = field(default=())  # what the dialect could not read, in words
    tool_durations_ms: tuple[tuple[str, int], ...] = ()  # (tool, ms) that the agent declares for the results it sends
    compaction: str | None = None  # auto | manual | reactive: the agent says that this call summarises the context
    context_compacted: bool = False  # the agent says that this prompt follows a compaction
    transport: Transport | None = None  # None in what was read from a log
    t_first_text_ns: int | None = None  # first content by kind; the earliest of the three is `t_first_content_ns`
    t_first_thinking_ns: int | None = None
    t_first_tool_call_ns: int | None = None
    request_class: str | None = None  # the agent's own word: main, subagent, auxiliary, compaction, prewarm, …
    agent_type: str | None = None  # the agent's own word for its sub-agent: Explore, general-purpose, review, …
    attempt: int | None = None  # retries before this one, as the client counts them (0: the first attempt)
    context_generation: int | None = None  # how often the context was compacted, where the agent counts it
    tool_times: tuple[ToolTime, ...] = ()  # tool times that the request's body itself declares
    mode: str | None = None  # reverse | forward | script
    contributor: str | None = None
    consent: str | None = None
    wall_offset_us: int = 0  # movement of the wall clock against the anchor, at send and at end
    wall_offset_end_us: int | None = None

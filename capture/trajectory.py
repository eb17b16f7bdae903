"""A session as one value: what was said, by whom, when. Field names are the dataset's column names.

Times (`t_*_us`) are integer microseconds since the session's first send. Unknown is None, never 0.
A content-free trajectory (imported from hashes) has no messages and carries `block_hashes` instead.
Anything that an engine, a tokenizer or a redactor must add is added by curate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capture.call import Message, TimeSource, Tool, Transport

type GapKind = Literal["tool", "human", "client", "spawn", "unsplit", "none"]
"""What the time before a request was: tools ran, a human thought, the client worked, a sub-agent started,
`unsplit` where the source does not tell tool from human time, `none` for the first request."""

type ContextEvent = Literal["append", "compaction", "edit", "branch", "reset"]

type LinkEvidence = Literal["header", "body", "echo", "prefix", "source", "none"]
"""The best evidence that ties a request to the one that it belongs to: a header, an id in the body, the echo of an
earlier answer (its ids, its summary, its task), the longest common prefix, the imported source itself. Where only the
times tell which one that is, it is what put the request into its session. `none` for a request that starts one."""

type LinkConfidence = Literal["certain", "likely", "possible"]
"""How sure the link is: an id that the agent sent or the provider made; content that cannot well be chance; a guess
that fits the times."""

type Relation = Literal["start", "continue", "retry", "fork", "compaction", "subagent", "side"]
"""What a request is to its parent. `fork`: the history was rewound or edited; `side`: no turn of the agent."""

COMPACTION = "compaction"  # `Request.agent_type` of a call that writes the summary of a context

type TokenSource = Literal["provider", "tokenizer", "agent", "none"]
"""Who counted `prompt_tokens` and `completion_tokens`: the provider, a tokenizer, the agent's own log, nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledMessage:
    """A message of the session's pool; requests refer to it by position."""

    message: Message
    agent_path: str  # "main", "main/1", …: the chain that first sent it
    request_index: int  # the request that first carried it (for an answer: that produced it)
    t_us: int | None  # when that request was sent (for an answer: when its last byte came)
    answer: bool  # came from the model in this session, rather than from the client


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call to a model."""

    request_index: int  # order of sending within the session, from 0
    agent_path: str  # one linear chain: "main", "main/2" started by it, "main/2/1" by that, "side/1" beside them
    parent_request_index: int | None  # the request it continues; for a chain's first: the one that spawned it
    link: LinkEvidence
    api: str
    model: str
    stream: bool | None
    status: int | None
    error: str | None
    retry_of: int | None
    t_send_us: int | None  # None: a source without a clock, which tells the order alone
    t_headers_us: int | None
    t_first_byte_us: int | None
    t_first_token_us: int | None
    t_last_token_us: int | None
    t_end_us: int | None
    gap_us: int | None  # previous end to this send, on the same chain; None for the chain's first
    gap_kind: GapKind
    think_us: int | None  # human time in the gap; None where the source does not split it
    # The prompt is pool[a:b] + pool[c:d] + …; `msg_upto` is b when the prompt is exactly pool[0:b] of a session
    # with one chain. Both None in a content-free trajectory.
    prompt_spans: tuple[tuple[int, int], ...] | None
    answer_index: int | None  # position of the answer in the pool
    context_event: ContextEvent
    prompt_tokens: int | None  # as the provider counted, cache reads included
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    completion_tokens: int | None  # reasoning included
    reasoning_tokens: int | None
    system_tokens: int | None
    tools_tokens: int | None
    max_tokens: int | None
    temperature: float | None
    effort: str | None
    stop: str | None
    new_input: tuple[str, ...]  # kinds of what is new in the prompt: text, tool_result, image, …
    tool_call_ids: tuple[str, ...]  # calls in the answer
    block_size: int | None  # tokens per hashed block
    block_hashes: tuple[int, ...] | None  # equal hash means equal prefix up to and including that block
    bytes_up: int | None
    bytes_down: int | None
    sse_events: int | None
    itl_us: tuple[int, ...] | None  # gaps between content events
    exchange_id: str | None  # the journal's record, for audits; never published
    tools_index: int | None  # position in Trajectory.tool_sets
    # auxiliary: a call that is no turn of the agent (count_tokens, prewarm, a title); its agent_path is "side/N"
    kind: Literal["turn", "auxiliary"] = "turn"
    new_output: tuple[str, ...] | None = None  # kinds of what the answer holds: text, thinking, tool_use
    relation: Relation = "continue"
    link_confidence: LinkConfidence | None = None  # None for a request that starts a session
    transport: Transport | None = None
    t_first_text_us: int | None = None
    t_first_thinking_us: int | None = None
    t_first_tool_call_us: int | None = None
    permission_us: int | None = None  # part of the gap that waited for a person's permission; None: not told
    client_us: int | None = None  # part of the gap that was the agent's own work; None: not told
    clock_jump_us: int | None = None  # the wall clock moved against the monotonic one in this gap or call
    # The agent's own word for its sub-agent; `compaction` on a call that writes the summary of a context.
    agent_type: str | None = None
    # Our own count of the prompt, as a dataset tells it; None in a store.
    prompt_tokens_est: int | None = None

    @property
    def sent_us(self) -> int:
        """`t_send_us` of a source that keeps a clock; ValueError where it is unknown."""
        if self.t_send_us is None:
            raise ValueError(f"request {self.request_index}: nobody knows when it was sent")
        return self.t_send_us

    @property
    def hashed_tokens(self) -> int | None:
        """Length of the prompt in the count that `block_hashes` cut; None where nobody told."""
        return self.prompt_tokens if self.prompt_tokens_est is None else self.prompt_tokens_est

    @property
    def call_span(self) -> tuple[int, int] | None:
        """From the send to the last byte, in microseconds; None where either is unknown."""
        return None if self.t_send_us is None or self.t_end_us is None else (self.t_send_us, self.t_end_us)

    @property
    def gap_span(self) -> tuple[int, int] | None:
        """The gap before the send, in microseconds; None where there is none or it is unknown."""
        return None if self.t_send_us is None or self.gap_us is None else (self.t_send_us - self.gap_us, self.t_send_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One tool call and its time, as far as the source tells it."""

    tool_call_id: str
    agent_path: str
    request_index: int  # the request whose answer held the call
    result_request_index: int | None  # the request that carried the result
    name: str
    kind: Literal["read", "edit", "search", "exec", "web", "mcp", "subagent", "other"]
    t_emitted_us: int | None  # end of the call's own block
    t_result_us: int | None  # send of the request that carries the result
    wall_us: int | None  # t_result_us − last byte of the response that held the call
    internal_us: int | None  # execution alone, as `internal_source` declares it
    parallel_group: int  # calls of one answer share it
    result_bytes: int | None
    is_error: bool | None
    exit_code: int | None
    timed_out: bool | None
    mixed: bool  # the request that carried the result also carried new human text: wall_us includes human time
    internal_source: TimeSource | None = None
    permission_us: int | None = None  # waited for a person's permission before it ran


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureQuality:
    """How much of the session the source really holds."""

    complete: bool
    gaps: int
    clock_err_us: int | None
    body_missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One session."""

    session_id: str  # stable: the same for the same session of the same store, and in its dataset
    source: str  # wire | weka | agentperf-local | claude-code-log | codex-log | pi-log | opencode-log | messages | …
    source_ref: str  # journal, file or task it came from
    harness: str
    harness_version: str | None
    t0_utc_us: int | None  # wall time of the first send
    models: tuple[str, ...]
    pool: tuple[PooledMessage, ...]
    tool_sets: tuple[tuple[Tool, ...], ...]
    requests: tuple[Request, ...]
    tool_calls: tuple[ToolCall, ...]
    duration_us: int | None
    api_us: int | None  # union of the requests' time
    tool_us: int | None  # union of the tool gaps
    human_us: int | None  # sum of think_us; None where the source does not split
    num_user_messages: int | None
    num_subagents: int
    num_compactions: int
    hash_scope: Literal["session", "release"] | None  # scope in which block hashes may be compared
    token_source: TokenSource
    tokenizer: str | None  # named when token_source is tokenizer
    license: str | None  # SPDX id of the imported data; None for own recordings
    quality: CaptureQuality
    outcome: Literal["success", "failure", "abandoned", "unknown"] = "unknown"
    mode: str | None = None  # how it was recorded: reverse | forward | script; redirecting by URL changes some agents
    joined: tuple[str, ...] = ()  # what else told about it: otel, claude-code-log, …
    contributor: str | None = None
    consent: str | None = None
    peak_agents: int | None = None  # most agents of this session at work at one time, sub-agents included
    contributor_peak_agents: int | None = None  # the same over all sessions of this person in the store

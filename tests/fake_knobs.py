"""What the fake server can be told to do, and the truth that it logs about each request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Knobs:
    """What the server does; may be changed while it runs, and counts from the next request on."""

    model: str = "fake-model"
    ttft_ms: float = 20.0
    itl_ms: float = 2.0
    capacity: int | None = None  # above so many answers at a time, all waits grow in proportion
    prefill_ms_per_1000_tokens: float = 0.0  # of prompt tokens that are not cached
    default_tokens: int = 16
    tokens_per_chunk: int = 1
    natural_tokens: int | None = None  # the model ends by itself after so many tokens, unless ignore_eos holds
    role_chunk: bool = True
    done_marker: bool = True
    usage: bool = True
    cached_tokens: bool = True
    line_end: str = "\n"
    reasoning_tokens: int = 0  # of the first tokens, sent as reasoning_content
    tool_call_tokens: int = 0  # of the last tokens, sent as fragments of a tool call
    # faults
    obey_ignore_eos: bool = True
    refused_fields: tuple[str, ...] = ()  # 422 for a request that has one of them, as transformers serve does
    refuse_token_ids: bool = False
    list_models: bool = True
    tokenize: bool = True
    properties: bool = True
    context_tokens: int | None = 65_536
    tell_context: bool = True  # in the model list and /props; the error tells it anyway
    fail_status: int | None = None
    fail_every: int = 1  # the faults above and below strike each n-th request
    error_event_after: int | None = None  # tokens
    garbage_after: int | None = None
    cut_after: int | None = None
    hang_after: int | None = None
    slow_headers_ms: float = 0.0
    close_each: bool = False  # close after each answer, in spite of an announced keep-alive
    close_on_reuse: bool = False  # close a kept-alive connection when the next request comes, unanswered
    chunked: bool = True  # else the answer ends when the connection closes
    stream: bool = True  # else one JSON object, whatever was asked
    hold_back: bool = False  # all content leaves at once, when the last token is there
    claims_tokens: int | None = None  # what its usage counts, whatever was sent
    write_bytes: int | None = None  # split each write into pieces of this size
    compress: bool = False


@dataclass(slots=True)
class Served:
    """The truth about one request, in monotonic ns."""

    number: int
    path: str
    connection: int
    arrived_at_ns: int  # its last byte was read
    tokens: int = 0
    prompt_tokens: int = 0
    first_token_at_ns: int | None = None
    last_token_at_ns: int | None = None
    ended_at_ns: int | None = None
    client_left: bool = False
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)  # of the request, names in lower case

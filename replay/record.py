"""What happened to one replayed request: written once, judged later by functions over the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

type RequestOutcome = Literal["ok", "http_error", "stream_error", "refused", "timeout", "cut", "stopped"]
"""`ok`: status 200 and the stream's own end was seen. `stream_error`: an error event after 200. `cut`: the server
closed early. `stopped`: we ended the trial while it was in flight, which is not the server's failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request of one agent. All `*_ns` are monotonic, since the trial's zero. Unknown is None.

    The file `records.parquet` holds these fields as columns, one row per request, in order of sending.
    """

    agent: int
    play: int  # how many trajectories this agent had begun before this one
    session_id: str
    request_index: int  # of the recorded session
    turn: int  # position in the play, from 0; a play that starts mid-way starts with a larger turn
    salt: str
    intended_at_ns: int  # when the plan wanted it sent: predecessors done, delay waited
    sent_at_ns: int  # first byte handed to the socket; where it never got a connection: when it asked for one
    written_at_ns: int | None  # last byte handed to the kernel
    headers_at_ns: int | None
    first_byte_at_ns: int | None  # of the response body
    first_content_at_ns: int | None  # read that held the first text, reasoning or tool-call fragment
    last_content_at_ns: int | None
    end_at_ns: int | None  # None only for `stopped`
    status: int | None
    outcome: RequestOutcome
    error: str | None
    reused_connection: bool
    recorded_prompt_tokens: int | None  # in the dataset, as its source counted
    planned_prompt_tokens: int | None  # after the plan's rules; exact for token-id prompts, else None
    prompt_tokens: int | None  # as the server counted
    cached_tokens: int | None
    planned_output_tokens: int
    completion_tokens: int | None
    reasoning_tokens: int | None
    finish_reason: str | None
    delay_us: int  # waited before this request, after the plan's rules
    delay_kind: str
    bytes_up: int
    bytes_down: int
    reads: int
    events: int
    content_events: int
    content_gaps_us: tuple[int, ...]  # between reads that held content; a read with k content events gives k−1 zeros
    ideal_cached_share: float | None = None  # of its prompt, what the same play had sent before; set with the file
    tool_delay_us: int = 0  # part of `delay_us` that stands for tools (and for gaps that the source does not split)
    human_delay_us: int = 0  # part of `delay_us` that stands for a human
    delay_rule: str = "recorded"  # mode of the rule it came from; `tool+human` where a gap holds both
    trigger: str = "completion"  # what it waited for: start | completion | dispatch
    redialled: bool = False  # a kept-alive connection was closed before any byte; sent once more on a fresh one
    server: int = 0  # which of the URLs it went to, from 0
    worker: int = 0  # which client process sent it, from 0
    content_bytes: int | None = None  # of its content fragments, as UTF-8
    distinct_share: float | None = None  # distinct among its content fragments; near 0 for a repetition loop

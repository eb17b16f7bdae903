"""Every way in which an answer can go wrong, how often it did, and what that does to the trial: one published table.

A failed request breaks every limit anyway. Beyond that a class either stays with this (`missed`: the server could not
serve the load), makes the trial `invalid` above a share of the window's requests (the plan does not fit the server, or
the server's numbers cannot be true: a percentile over what is left would mean nothing), or is a `note`. None can lead
to a better score: an invalid trial holds no limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from replay.record import RequestRecord
from replay.sample import FAILED

type FailureClass = Literal[
    "refused",
    "timeout",
    "cut",
    "overloaded",
    "server_error",
    "rejected",
    "context_overflow",
    "error_event",
    "malformed_stream",
    "no_content",
    "length_not_honoured",
    "more_than_asked",
    "impossible_count",
    "prompt_unlike_planned",
    "truncated",
    "repetition",
]
type Effect = Literal["missed", "invalid", "note"]

SHORT_SHARE = 0.02  # of a forced length that may be missing, or be too much, and at least 2 tokens
PROMPT_SHARE = 0.01  # of a token-id prompt that the server may count differently, and at least 8 tokens
FAILED_MOST = 0.01  # of a window's requests, and at least one: more failures are a miss, whatever the percentiles say
MANY_PER_EVENT = 1.2  # tokens: above it the count of output tokens rests on the server's word
BYTES_LEAST = 2.5  # of content per counted token, over all answers
LOOP_ROOTS = 1.0  # fewer distinct content fragments than so many square roots of their number: a repetition
LOOP_LEAST_EVENTS = 32  # content events of an answer, below which nothing is said about repetition


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a class of failure does. Above `most` of the window's requests the effect is more than a count."""

    effect: Effect
    most: float
    words: str


POLICIES: dict[FailureClass, Policy] = {
    "refused": Policy(effect="missed", most=0.0, words="no connection was accepted"),
    "timeout": Policy(effect="missed", most=0.0, words="no answer within the time-out"),
    "cut": Policy(effect="missed", most=0.0, words="the connection ended before the answer did"),
    "overloaded": Policy(effect="missed", most=0.0, words="HTTP 429 or 503: the server turned the request away"),
    "server_error": Policy(effect="missed", most=0.0, words="HTTP 5xx"),
    "error_event": Policy(effect="missed", most=0.0, words="an error event inside a stream that began with 200"),
    "malformed_stream": Policy(effect="missed", most=0.0, words="the stream could not be read"),
    "no_content": Policy(effect="missed", most=0.0, words="an answer without any content"),
    "rejected": Policy(effect="invalid", most=0.01, words="HTTP 4xx: the server does not take the plan's requests"),
    "context_overflow": Policy(
        effect="invalid", most=0.01, words="the prompt is longer than the server's context: the plan does not fit it"
    ),
    "length_not_honoured": Policy(
        effect="invalid", most=0.01, words="the answer is shorter than its forced length: the server did less work"
    ),
    "more_than_asked": Policy(
        effect="invalid", most=0.01, words="more completion tokens are counted than were allowed: the count is not true"
    ),
    "impossible_count": Policy(
        effect="invalid",
        most=0.1,
        words="more tokens are counted than the answer's bytes or the prompt can hold: the count is not true",
    ),
    "prompt_unlike_planned": Policy(
        effect="invalid",
        most=0.01,
        words="the server counts another number of prompt tokens than the token ids that were sent",
    ),
    "truncated": Policy(effect="note", most=0.01, words="a free answer ended at the length cap"),
    "repetition": Policy(effect="note", most=0.1, words="the answer repeats itself"),
}
"""Repetition is `invalid` instead where the weights are trained: a model that loops is not the model that was named."""

FLATTERING: frozenset[FailureClass] = frozenset(
    {"length_not_honoured", "more_than_asked", "impossible_count", "prompt_unlike_planned"}
)
"""Classes that can only make a server look better: a limit that is missed in spite of them is missed."""

_OVERFLOW = re.compile(
    r"context[ _](length|size|window)|maximum (model|input|sequence) length|max_model_len|max_seq_len|max_input_len"
    r"|max_num_tokens|longer than the model|prompt .{0,60}too long|exceeds? .{0,40}(n_ctx|context)",
    re.IGNORECASE,
)
_MALFORMED = re.compile("is not a chunk of a completion|is not an event stream|the server compressed its answer")
"""What `answer` and `runner` say of a stream that they cannot read; all else is the server's own error event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCount:
    """One class in one trial."""

    failure: FailureClass
    requests: int
    of: int
    effect: Effect
    voids: bool  # the trial: its share is above what the table allows
    first: str  # of the first such request: what was seen

    @property
    def noted(self) -> bool:
        """Whether it is worth a sentence beside the number: every real failure, and of the rest what is frequent."""
        often = self.requests > POLICIES[self.failure].most * self.of
        return not self.voids and (self.effect != "note" or often)

    @property
    def sentence(self) -> str:
        """The count with its share and what it means."""
        share = self.requests / self.of
        amount = f"{self.requests} of {self.of} requests ({share:.1%})"
        return f"{self.failure.replace('_', ' ')}: {amount}: {POLICIES[self.failure].words}; the first: {self.first}"


def classify(record: RequestRecord, *, exact_length: bool) -> FailureClass | None:
    """The class of a request, None where nothing is wrong with it; of several the one that says most."""
    if record.outcome in FAILED:
        return _failed(record)
    if record.outcome != "ok":
        return None
    if record.first_content_at_ns is None and record.planned_output_tokens > 0:
        return "no_content"
    return _unlike(record, exact_length=exact_length) or _loop(record)


def count_failures(
    inside: Sequence[RequestRecord], *, exact_length: bool, weights: str | None
) -> tuple[FailureCount, ...]:
    """Every class that occurs among the window's requests, the voiding ones first."""
    found: dict[FailureClass, list[RequestRecord]] = {}
    for record in inside:
        failure = classify(record, exact_length=exact_length)
        if failure is not None:
            found.setdefault(failure, []).append(record)
    counts = []
    for failure, records in found.items():
        policy = POLICIES[failure]
        trained = failure == "repetition" and weights == "trained"
        effect: Effect = "invalid" if trained else policy.effect
        counts.append(
            FailureCount(
                failure=failure,
                requests=len(records),
                of=len(inside),
                effect=effect,
                voids=effect == "invalid" and len(records) > policy.most * len(inside),
                first=_seen(records[0]),
            )
        )
    return tuple(sorted(counts, key=lambda count: (not count.voids, -count.requests, count.failure)))


def unbelievable_count(done: Iterable[RequestRecord]) -> str | None:
    """Why the tokens of all answers together cannot be as many as they seem; None where they can.

    Where events hold several tokens the count rests on the server's word; where they do not, on each event being one.
    """
    tokens = events = content_events = content_bytes = 0
    for record in done:
        if record.content_bytes is not None:
            tokens += record.completion_tokens or 0
            events += record.events
            content_events += record.content_events
            content_bytes += record.content_bytes
    many = tokens > MANY_PER_EVENT * events
    seeming = tokens if many else content_events
    if not seeming or content_bytes >= BYTES_LEAST * seeming:
        return None
    what = f"counts {tokens / events:.1f} tokens in an event, of" if many else "sends events of"
    return (
        f"the server {what} {content_bytes / seeming:.1f} bytes each: tokens have at least {BYTES_LEAST:g} on average, "
        "so the count is not true"
    )


def failure_margin(failed: int, requests: int) -> float | None:
    """ln of how far the failed share is beyond the most that may fail; None within it."""
    allowed = max(1.0, FAILED_MOST * requests)
    return math.log(failed / allowed) if failed > allowed else None


def failed_requests(inside: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Those that count as failed: infinite times, no speed. An answer without any content is one."""
    return [
        record
        for record in inside
        if record.outcome in FAILED
        or (record.outcome == "ok" and record.first_content_at_ns is None and record.planned_output_tokens > 0)
    ]


def describe(record: RequestRecord) -> str:
    """A failed request in a few words."""
    status = f" {record.status}" if record.status is not None else ""
    return f"{record.outcome}{status}" + (f" ({record.error})" if record.error else "")


def _failed(record: RequestRecord) -> FailureClass:
    status, error = record.status, record.error or ""
    readable = record.outcome in ("http_error", "stream_error") and status not in (429, 503)
    if readable and (status == 413 or _OVERFLOW.search(error)):
        return "context_overflow"
    if record.outcome == "refused":
        return "refused"
    if record.outcome == "timeout":
        return "timeout"
    if record.outcome == "cut":
        return "cut"
    if record.outcome == "http_error":
        if status in (429, 503):
            return "overloaded"
        return "rejected" if status is not None and 400 <= status < 500 and status != 408 else "server_error"
    return "malformed_stream" if _MALFORMED.search(error) else "error_event"


def _unlike(record: RequestRecord, *, exact_length: bool) -> FailureClass | None:
    """Counts that cannot be true, or not what was asked for."""
    prompt, planned_prompt = record.prompt_tokens, record.planned_prompt_tokens
    if (
        prompt is not None
        and planned_prompt is not None
        and abs(prompt - planned_prompt) > max(8, PROMPT_SHARE * planned_prompt)
    ):
        return "prompt_unlike_planned"
    if record.cached_tokens is not None and prompt is not None and record.cached_tokens > prompt:
        return "impossible_count"
    tokens, planned = record.completion_tokens, record.planned_output_tokens
    room = max(2, SHORT_SHARE * planned)
    bound = record.bytes_down if record.content_bytes is None else max(record.events, record.content_bytes // 2)
    if tokens is not None and tokens > bound + room:
        return "impossible_count"
    if exact_length:
        if tokens is not None and tokens > planned + room:
            return "more_than_asked"
        if (record.content_events if tokens is None else tokens) < planned - room:
            return "length_not_honoured"
    elif record.finish_reason == "length":
        return "truncated"
    return None


def _loop(record: RequestRecord) -> FailureClass | None:
    """Text and code have more distinct fragments than the root of their number at any length: words come anew."""
    share, events = record.distinct_share, record.content_events
    if share is None or events < LOOP_LEAST_EVENTS:
        return None
    return "repetition" if share * events < LOOP_ROOTS * math.sqrt(events) else None


def _seen(record: RequestRecord) -> str:
    if record.outcome in FAILED:
        return describe(record)
    return (
        f"{record.completion_tokens} of {record.planned_output_tokens} output tokens in {record.content_events} "
        f"content events, {record.prompt_tokens} prompt tokens, finish reason {record.finish_reason}"
    )

"""What one request of the window says about each quantity of a service level: pure functions over its record.

- *Time to first token*: first content − the moment the plan wanted the request sent. What an agent waits for our
  own client, a connection or a slot counts.
- *Turn time*: last content − that same moment.
- *Output speed*: (n − n₁) / (last − first content), where n₁ are the tokens that came in the first burst: the leading
  content events whose gaps are each under a tenth of the trial's usual gap (one event, where the server sends as it
  decodes). They were decoded before the span began. After a burst of several events the pace of what follows it bounds
  the speed: the first gap after it began before it. An answer that came all at once has the speed of its whole
  request, so a server that holds an answer back does not look fast.
- *End-to-end speed*: n / turn time. No way of buffering changes it.
- n is what the server counts, but never more than a forced length, nor than one for each content event or every three
  bytes of content; where it counts nothing, content events stand in, up to one for every three bytes.
- A request that failed breaks every limit: its times are infinite, its speeds 0.
- A request still in flight at the end is right-censored: what is known of it is a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from replay.record import RequestRecord
from replay.slo import Quantity, Term
from replay.window import Window

HELD_BACK_TOK_S = 10_000.0  # no system decodes one stream this fast; a buffer between it and us empties so
BYTES_PER_TOKEN = 3  # of content: bounds a server's count for its speed, where an event holds several tokens
BURST_SHARE = 0.1  # of the trial's usual gap between events: below it an event was not decoded after the one before

_PLACES = 500  # up to a day, in steps of 5 %

FAILED = ("http_error", "stream_error", "refused", "timeout", "cut")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request of the window. A quantity that it does not have, or not yet, is None."""

    agent: int
    play: int
    session_id: str
    turn: int
    sent_s: float  # since the trial's zero
    prompt_tokens: int | None
    fresh_tokens: float | None  # of the prompt: not cached, as the server says, else with a cache that forgets nothing
    ideal_fresh_tokens: float | None  # of the prompt: not sent before by the same play
    tokens: int | None  # of its answer, as far as they are believed; None unless it ended well
    ttft_s: float | None
    turn_s: float | None
    speed_tok_s: float | None
    end_to_end_tok_s: float | None
    whole_tok_s: float | None  # its output speed had nothing been streamed: over the time since it was due
    waiting_s: float | None  # in flight at the end: how long since it was due, a lower bound of its unknown times
    speed_at_most_tok_s: float | None = None  # in flight: upper bounds of its unknown speeds
    end_to_end_at_most_tok_s: float | None = None
    first_burst_tokens: float | None = None  # decoded before its first token was sent, among `tokens`
    held_back: bool = False  # its answer came all at once

    def value(self, quantity: Quantity, limit: float | None) -> float | None:
        """The quantity as it counts against a limit: known, or bounded beyond the limit; None while undecided."""
        known, bound = self._known(quantity)
        if known is not None or bound is None or limit is None:
            return known
        beyond = bound < limit if quantity.endswith("_tok_s") else bound > limit
        return bound if beyond else None

    def undecided(self, term: Term) -> bool:
        """Whether the phase ended before this request could keep or break the limit."""
        return self.waiting_s is not None and self.value(term.quantity, term.limit) is None

    def _known(self, quantity: Quantity) -> tuple[float | None, float | None]:
        if quantity == "ttft_s":
            return self.ttft_s, self.waiting_s
        if quantity == "turn_s":
            return self.turn_s, self.waiting_s
        if quantity == "output_tok_s":
            return self.speed_tok_s, self.speed_at_most_tok_s
        if quantity == "end_to_end_tok_s":
            return self.end_to_end_tok_s, self.end_to_end_at_most_tok_s
        raise ValueError(f"a request has no {quantity}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a trial's answers come, all together."""

    tokens_per_event: float  # for answers that the phase's end cut; below 1 where a server cuts tokens into pieces
    gap_us: float  # the usual gap between content events: half of all streaming time is spent in longer ones; or 0


def take_samples(
    requests: Iterable[RequestRecord], window: Window, pace: Pace, *, exact_length: bool
) -> tuple[Sample, ...]:
    """A sample of each request, with what the trial's answers have in common."""
    return tuple(_sample(record, window, pace, exact_length=exact_length) for record in requests)


def find_pace(records: Iterable[RequestRecord], *, exact_length: bool) -> Pace:
    """The pace of a trial, from its finished requests."""
    import numpy as np

    tokens = events = 0
    time_in = np.zeros(_PLACES)  # by the logarithm of a gap, in steps of 5 %
    for record in records:
        if record.outcome != "ok":
            continue
        if record.content_gaps_us:
            gaps = np.array(record.content_gaps_us, dtype=float)
            places = np.minimum(_PLACES - 1, np.rint(20 * np.log1p(gaps)).astype(int))
            time_in += np.bincount(places, weights=gaps, minlength=_PLACES)
        if record.completion_tokens and record.content_events:
            tokens += believed_tokens(record, exact_length=exact_length)
            events += record.content_events
    reached = np.cumsum(time_in)
    usual_us = math.expm1(int(np.searchsorted(reached, reached[-1] / 2)) / 20) if reached[-1] > 0 else 0.0
    return Pace(tokens_per_event=tokens / events if events else 1.0, gap_us=usual_us)


def whole_request_speeds(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The same samples with the output speed of their whole request, where that is lower."""
    return tuple(
        replace(sample, speed_tok_s=min(sample.speed_tok_s, sample.whole_tok_s))
        if sample.speed_tok_s is not None and sample.whole_tok_s is not None
        else sample
        for sample in samples
    )


def believed_tokens(record: RequestRecord, *, exact_length: bool) -> int:
    """Tokens of an answer: the server's count where it can be true, content events where there is none."""
    tokens = record.completion_tokens
    if tokens is None:
        # Events of a few bytes each are pieces of tokens.
        most = record.content_events if record.content_bytes is None else record.content_bytes // BYTES_PER_TOKEN
        return min(record.content_events, max(1, most))
    tokens = max(0, min(tokens, most_tokens(record)))
    return min(tokens, record.planned_output_tokens) if exact_length else tokens


def most_tokens(record: RequestRecord) -> int:
    """How many tokens an answer can hold: one for every three bytes of its content, or one for each content event.

    Tokens of the vocabularies in use are three bytes and more on average, over text, code and CJK alike. Those without
    a text, such as an end of turn that a forced length decodes past, are not among them: they come after the last
    content, so that its time says nothing of theirs.
    """
    if record.content_bytes is None:
        return record.bytes_down
    return max(record.content_events, record.content_bytes // BYTES_PER_TOKEN)


def first_burst_events(record: RequestRecord, pace: Pace) -> int:
    """Content events that were decoded before the first of them was sent: 1 for a server that sends as it decodes."""
    short_us = BURST_SHARE * pace.gap_us
    for index, gap_us in enumerate(record.content_gaps_us):
        if gap_us > 0 and gap_us >= short_us:
            return index + 1
    return len(record.content_gaps_us) + 1


def held_back(record: RequestRecord, tokens: int) -> bool:
    """Whether an answer of at least two tokens came all at once, or faster than anything decodes."""
    first_ns, last_ns = record.first_content_at_ns, record.last_content_at_ns
    if tokens < 2 or first_ns is None or last_ns is None:
        return False
    return (tokens - 1) * 1e9 > HELD_BACK_TOK_S * (last_ns - first_ns)


def _sample(record: RequestRecord, window: Window, pace: Pace, *, exact_length: bool) -> Sample:
    prompt = record.prompt_tokens or record.planned_prompt_tokens or record.recorded_prompt_tokens or 0
    ideal = prompt * (1 - (record.ideal_cached_share or 0.0)) if prompt else None
    sample = Sample(
        agent=record.agent,
        play=record.play,
        session_id=record.session_id,
        turn=record.turn,
        sent_s=record.sent_at_ns / 1e9,
        prompt_tokens=record.prompt_tokens,
        fresh_tokens=ideal if record.cached_tokens is None else max(0, prompt - record.cached_tokens),
        ideal_fresh_tokens=ideal,
        tokens=None,
        ttft_s=None,
        turn_s=None,
        speed_tok_s=None,
        end_to_end_tok_s=None,
        whole_tok_s=None,
        waiting_s=None,
    )
    first_ns, last_ns = record.first_content_at_ns, record.last_content_at_ns
    failed = record.outcome in FAILED
    if failed or (record.outcome == "ok" and (first_ns is None or last_ns is None)):
        # An answer without content never had a first token; where at least two were asked for, it has no speed either.
        speed = 0.0 if failed or record.planned_output_tokens >= 2 else None
        return replace(sample, ttft_s=math.inf, turn_s=math.inf, speed_tok_s=speed, end_to_end_tok_s=0.0)
    if record.outcome != "ok":
        return _in_flight(sample, record, window, pace)
    assert first_ns is not None
    assert last_ns is not None
    tokens = believed_tokens(record, exact_length=exact_length)
    turn_s = (last_ns - record.intended_at_ns) / 1e9
    whole = tokens / turn_s if turn_s > 0 else None
    at_once = held_back(record, tokens)
    speed = before = None
    # An answer that came in several events has a speed, even where the server counts one token or none.
    if tokens >= 2 or record.content_events > 2:
        burst = first_burst_events(record, pace)
        before = max(1.0, tokens * burst / record.content_events) if record.content_events else 1.0
        speed = whole if at_once or before >= tokens else (tokens - before) / ((last_ns - first_ns) / 1e9)
        if speed is not None and burst > 1 and not at_once:
            speed = _after_burst(record, tokens, burst, speed, whole)
    return replace(
        sample,
        tokens=tokens,
        ttft_s=(first_ns - record.intended_at_ns) / 1e9,
        turn_s=turn_s,
        speed_tok_s=speed,
        end_to_end_tok_s=whole,
        whole_tok_s=whole,
        first_burst_tokens=before,
        held_back=at_once,
    )


def _after_burst(record: RequestRecord, tokens: int, burst: int, speed: float, whole: float | None) -> float | None:
    """The lower of the speed and of the pace between the events that follow a first burst."""
    following = record.content_gaps_us[burst:]
    if not following or not sum(following):
        return whole
    return min(speed, tokens / record.content_events * len(following) / (sum(following) / 1e6))


def _in_flight(sample: Sample, record: RequestRecord, window: Window, pace: Pace) -> Sample:
    """What is known of an answer that the phase's end cut, counting the silence up to that end."""
    waiting_s = (window.end_ns - record.intended_at_ns) / 1e9
    at_most = record.planned_output_tokens / waiting_s if waiting_s > 0 else None
    sample = replace(sample, waiting_s=waiting_s, end_to_end_at_most_tok_s=at_most)
    first_ns = record.first_content_at_ns
    if first_ns is None:
        return sample
    sample = replace(sample, ttft_s=(first_ns - record.intended_at_ns) / 1e9)
    elapsed_s = (window.end_ns - first_ns) / 1e9
    if elapsed_s <= 0:
        return sample
    burst, ratio = first_burst_events(record, pace), pace.tokens_per_event
    if record.content_events > burst:
        before = max(1.0, ratio * burst)
        tokens = record.content_events * ratio
        return replace(sample, speed_tok_s=(tokens - before) / elapsed_s, whole_tok_s=tokens / waiting_s)
    return replace(sample, speed_at_most_tok_s=record.content_events * ratio / elapsed_s)

"""Truncation: a session cut to a context limit, and messages cut to a size, rather than dropped.

Both run behind redaction: a cut through a secret would hide its halves from the rules, and counts must be of the text
that is published. What is left is a session of its own that fits together (`curate.consistency`): requests are
numbered anew, the pool holds what they say, totals are of them alone. Truncating it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

from capture.activity import peak_of, session_activity
from capture.canonical import human_text
from capture.intervals import Interval, union_length
from capture.trajectory import PooledMessage, Request, ToolCall, Trajectory
from curate.recipe import Truncate
from curate.tally import Counter

MARKER_BYTES = 80  # room for the longest marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """A session after truncation."""

    trajectory: Trajectory | None  # None: no turn is left; `reason` says why
    reason: str | None
    requests_left_out: int
    truncated_bytes: tuple[int, ...]  # of each message of the pool: bytes cut out of its middle
    positions: tuple[int, ...]  # of each message of the pool: where it stood before


def truncate(trajectory: Trajectory, counter: Counter, policy: Truncate) -> Truncated:
    """Cut a redacted session as the recipe says.

    `context_tokens`: a request whose prompt is longer is left out, with all that come after it on its chain and all
    that they started. The prompt counts as `curate.tally` counts it; without text, as the source did or by its
    blocks, and one of unknown length counts as too long. `message_bytes`: the middle of a longer content or reasoning
    makes way for a line that says how many bytes are gone. Arguments of tool calls stay whole: they are JSON.
    """
    pool, cut = _cut_messages(trajectory.pool, policy.message_bytes)
    trajectory = replace(trajectory, pool=pool) if any(cut) else trajectory
    everything = tuple(range(len(pool)))
    limit = policy.context_tokens
    gone = frozenset[int]() if limit is None else _beyond(trajectory, _prompt_tokens(trajectory, counter), limit)
    left: Trajectory | None = trajectory
    positions, reason = everything, None
    if gone:
        kept = tuple(request for request in trajectory.requests if request.request_index not in gone)
        if any(request.kind == "turn" for request in kept):
            positions = _positions(kept)
            left = _without(trajectory, kept, positions)
        else:
            left, positions, reason = None, (), f"first prompt beyond {limit} tokens"
    return Truncated(
        trajectory=left,
        reason=reason,
        requests_left_out=len(gone),
        truncated_bytes=tuple(cut[position] for position in positions),
        positions=positions,
    )


# Messages ---------------------------------------------------------------------------------------------------------


def _cut_messages(
    pool: tuple[PooledMessage, ...], limit: int | None
) -> tuple[tuple[PooledMessage, ...], tuple[int, ...]]:
    """(pool with long messages cut, bytes cut of each)."""
    if limit is None:
        return pool, (0,) * len(pool)
    if limit < MARKER_BYTES:
        raise ValueError(f"a message cannot be cut to fewer than {MARKER_BYTES} bytes")
    cut, gone = [], []
    for pooled in pool:
        message = pooled.message
        content, of_content = cut_middle(message.content, limit)
        reasoning, of_reasoning = cut_middle(message.reasoning_content or "", limit)
        gone.append(of_content + of_reasoning)
        if gone[-1]:
            changed = replace(
                message,
                content=content,
                reasoning_content=None if message.reasoning_content is None else reasoning,
            )
            pooled = replace(pooled, message=changed)
        cut.append(pooled)
    return tuple(cut), tuple(gone)


def cut_middle(text: str, limit: int) -> tuple[str, int]:
    """(the text in at most `limit` bytes of UTF-8, its middle replaced by a marker line; bytes gone)."""
    if 4 * len(text) <= limit or (text.isascii() and len(text) <= limit):
        return text, 0
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= limit:
        return text, 0
    half = (limit - MARKER_BYTES) // 2
    start, end = half, len(data) - half
    while start > 0 and data[start] & 0xC0 == 0x80:  # never inside a character
        start -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    head, tail = (part.decode("utf-8", "surrogatepass") for part in (data[:start], data[end:]))
    return f"{head}\n[... {end - start} bytes left out of this dataset ...]\n{tail}", end - start


# Requests ---------------------------------------------------------------------------------------------------------


def _prompt_tokens(trajectory: Trajectory, counter: Counter) -> list[int | None]:
    """Tokens of each request's prompt; None where nobody can tell."""
    upto = (0, *accumulate(counter.message(pooled.message) for pooled in trajectory.pool))
    tools = [counter.tools(offered) for offered in trajectory.tool_sets]

    def of(request: Request) -> int | None:
        if request.prompt_spans:
            offered = 0 if request.tools_index is None else tools[request.tools_index]
            return offered + sum(upto[stop] - upto[start] for start, stop in request.prompt_spans)
        if request.prompt_tokens is not None or request.block_hashes is None or request.block_size is None:
            return request.prompt_tokens
        return len(request.block_hashes) * request.block_size

    return [of(request) for request in trajectory.requests]


def _beyond(trajectory: Trajectory, tokens: Sequence[int | None], limit: int) -> frozenset[int]:
    """Requests to leave out: too long ones, what follows on their chains, and what those started."""
    gone: set[int] = set()
    cut: set[str] = set()  # chains that have ended
    for request, length in sorted(
        zip(trajectory.requests, tokens, strict=True), key=lambda pair: pair[0].request_index
    ):
        path, parent = request.agent_path, request.parent_request_index
        orphan = parent is None and "main" in cut  # such as a title asked for later: nobody is left to ask
        if path in cut or orphan or parent in gone or request.retry_of in gone or length is None or length > limit:
            cut.add(path)
            gone.add(request.request_index)
    return frozenset(gone)


def _positions(requests: Iterable[Request]) -> tuple[int, ...]:
    """Messages of the pool that these requests send or answer with."""
    used: set[int] = set()
    for request in requests:
        used.update(position for start, stop in request.prompt_spans or () for position in range(start, stop))
        used.update(() if request.answer_index is None else (request.answer_index,))
    return tuple(sorted(used))


def _without(trajectory: Trajectory, kept: Sequence[Request], positions: Sequence[int]) -> Trajectory:
    """The session of these requests alone."""
    number = {request.request_index: index for index, request in enumerate(kept)}
    place = {position: index for index, position in enumerate(positions)}
    offered = sorted({request.tools_index for request in kept if request.tools_index is not None})
    tool_set = {old: new for new, old in enumerate(offered)}
    requests = tuple(_renumbered(request, number, place, tool_set) for request in kept)
    left = replace(
        trajectory,
        requests=requests,
        pool=_pool(trajectory, kept, number, positions),
        tool_sets=tuple(trajectory.tool_sets[index] for index in offered),
        tool_calls=tuple(_tool_call(call, number) for call in trajectory.tool_calls if call.request_index in number),
        models=tuple(model for model in trajectory.models if model in {request.model for request in requests}),
    )
    return _totals(trajectory, _from_first_send(left))


def _renumbered(
    request: Request, number: Mapping[int, int], place: Mapping[int, int], tool_set: Mapping[int, int]
) -> Request:
    return replace(
        request,
        request_index=number[request.request_index],
        parent_request_index=None if request.parent_request_index is None else number[request.parent_request_index],
        retry_of=None if request.retry_of is None else number[request.retry_of],
        prompt_spans=None if request.prompt_spans is None else _spans(request.prompt_spans, place),
        answer_index=None if request.answer_index is None else place[request.answer_index],
        tools_index=None if request.tools_index is None else tool_set[request.tools_index],
    )


def _spans(spans: Iterable[tuple[int, int]], place: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """Spans over the new pool; all their messages are in it, so each stays one, and neighbours join."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if start == stop:
            continue
        new = place[start], place[stop - 1] + 1
        if joined and joined[-1][1] == new[0]:
            new = joined.pop()[0], new[1]
        joined.append(new)
    return tuple(joined)


def _pool(
    trajectory: Trajectory, kept: Sequence[Request], number: Mapping[int, int], positions: Sequence[int]
) -> tuple[PooledMessage, ...]:
    """The messages at these positions, each with the request that first carries it now."""
    carriers: dict[int, Request] = {}
    for request in kept:
        for start, stop in request.prompt_spans or ():
            for position in range(start, stop):
                carriers.setdefault(position, request)
    pool = []
    for position in positions:
        pooled = trajectory.pool[position]
        if pooled.request_index in number:
            pool.append(replace(pooled, request_index=number[pooled.request_index]))
        else:  # who first said it is gone, and another chain goes on with it
            carrier = carriers[position]
            pool.append(
                replace(
                    pooled,
                    agent_path=carrier.agent_path,
                    request_index=number[carrier.request_index],
                    t_us=carrier.t_send_us,
                    answer=False,
                )
            )
    return tuple(pool)


def _tool_call(call: ToolCall, number: Mapping[int, int]) -> ToolCall:
    carrier = None if call.result_request_index is None else number.get(call.result_request_index)
    call = replace(call, request_index=number[call.request_index], result_request_index=carrier)
    if carrier is not None:
        return call
    # Its result is not in the session any more.
    return replace(
        call,
        t_result_us=None,
        wall_us=None,
        result_bytes=None,
        is_error=None,
        exit_code=None,
        timed_out=None,
        mixed=False,
    )


def _from_first_send(trajectory: Trajectory) -> Trajectory:
    """The session with its clock set to its first send, which may have been left out."""
    sends = [request.t_send_us for request in trajectory.requests]
    first = min((send for send in sends if send is not None), default=0)
    if not first:
        return trajectory

    def moved[T: (Request, ToolCall, PooledMessage)](item: T) -> T:
        times = [each.name for each in fields(item) if each.name.startswith("t_") and each.name.endswith("_us")]
        return replace(item, **{name: value - first for name in times if (value := getattr(item, name)) is not None})

    return replace(
        trajectory,
        t0_utc_us=None if trajectory.t0_utc_us is None else trajectory.t0_utc_us + first,
        requests=tuple(map(moved, trajectory.requests)),
        tool_calls=tuple(map(moved, trajectory.tool_calls)),
        pool=tuple(map(moved, trajectory.pool)),
    )


def _totals(whole: Trajectory, left: Trajectory) -> Trajectory:
    """The session's totals over its own requests; what was unknown of the whole stays unknown."""
    requests = left.requests
    sends = [request.t_send_us for request in requests if request.t_send_us is not None]
    ends = [request.t_end_us for request in requests if request.t_end_us is not None]
    thought = [request.think_us for request in requests if request.think_us is not None]
    started = {
        request.agent_path: request.relation for request in reversed(requests) if request.agent_path.startswith("main/")
    }
    return replace(
        left,
        duration_us=None if whole.duration_us is None else max((*sends, *ends), default=None),
        api_us=None if whole.api_us is None else union_length(_spans_of(request.call_span for request in requests)),
        tool_us=None
        if whole.tool_us is None
        else union_length(_spans_of(request.gap_span for request in requests if request.gap_kind == "tool")),
        human_us=None if whole.human_us is None or not thought else sum(thought),
        num_user_messages=_user_messages(whole, left),
        num_subagents=sum(relation != "fork" for relation in started.values()),
        num_compactions=sum(request.context_event == "compaction" for request in requests),
        peak_agents=None if whole.peak_agents is None else peak_of([session_activity(left)]),
    )


def _spans_of(spans: Iterable[Interval | None]) -> list[Interval]:
    return [span for span in spans if span is not None]


def _user_messages(whole: Trajectory, left: Trajectory) -> int | None:
    """Messages a human wrote, if counting them in the pool gives what the source counted of the whole."""

    def spoken(trajectory: Trajectory) -> int:
        return sum(
            pooled.agent_path == "main" and not pooled.answer and bool(human_text(pooled.message))
            for pooled in trajectory.pool
        )

    return spoken(left) if whole.num_user_messages == spoken(whole) else None

"""The gap between two calls of a chain, cut without rest: tools, a person's permission, a person, the agent itself.

The law: tools + permission + human + client = gap, as far as the sources tell; a share that nobody tells is None. Time
in which a call beside the chain wrote the summary that the next one begins with is the model's and in no share.

1. Tools take the union of their own times: exact where a source says when each ran. Where only lengths are told, one
   after another if that fits into the gap (a person is never given a tool's time), else all at once.
2. Permission is what a source says that a tool waited for it, as far as no tool ran meanwhile.
3. What is left is the human's if new words of a human came with the results, else the client's.
4. Where nobody tells of permissions, the rest may hide one. Only a rest too short for a person to read and answer is
   called the client's then.
5. A tool that is itself a question to a person takes human time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from capture.intervals import union_length
from capture.tool_kind import asks_human
from capture.trajectory import COMPACTION, Request, ToolCall, Trajectory

type Ran = Mapping[tuple[int, str], tuple[int, int]]
"""When a tool ran: (`ToolCall.request_index`, `tool_call_id`) → start and end in microseconds. Any clock that all of
one gap share will do: only how they lie to each other counts."""

_REACTION_US = 500_000  # nobody reads a prompt and answers it faster


@dataclass(frozen=True, slots=True, kw_only=True)
class GapShares:
    """Parts of a gap in microseconds; None: not told."""

    think_us: int | None
    permission_us: int | None
    client_us: int | None


_UNTOLD = GapShares(think_us=None, permission_us=None, client_us=None)
_NOTHING_RAN: Ran = {}


def split_gap(request: Request, answered: Sequence[ToolCall], ran: Ran = _NOTHING_RAN) -> GapShares:
    """Shares of the gap before a request; `answered`: the tool calls that ran in it (see `answered_by`)."""
    gap = request.gap_us
    if gap is None:
        return _UNTOLD
    match request.gap_kind:
        case "human":
            return GapShares(think_us=gap, permission_us=0, client_us=None)
        case "client":
            return GapShares(think_us=0, permission_us=0, client_us=gap)
        case "tool":
            return _split_tools(gap, answered, ran)
        case _:
            return _UNTOLD


def _split_tools(gap: int, answered: Sequence[ToolCall], ran: Ran) -> GapShares:
    tools = [call for call in answered if not asks_human(call.name)]
    human = len(tools) < len(answered) or any(call.mixed for call in answered)
    told = any(call.permission_us is not None for call in tools)
    work, waited = _spent(gap, tools, ran)
    permission = None if not told else min(gap if work is None else max(0, gap - work), waited)
    if work is None:
        return GapShares(think_us=None if human else 0, permission_us=permission, client_us=None)
    rest = max(0, gap - work - (permission or 0))
    if human:
        return GapShares(think_us=rest, permission_us=permission, client_us=None)
    if permission is None and rest > _REACTION_US:
        return GapShares(think_us=0, permission_us=None, client_us=None)
    return GapShares(think_us=0, permission_us=permission or 0, client_us=rest)


def _spent(gap: int, tools: Sequence[ToolCall], ran: Ran) -> tuple[int | None, int]:
    """(time in which tools ran, None where it is not told; time in which permission was waited for and none ran)."""
    spans = [ran.get((call.request_index, call.tool_call_id)) for call in tools]
    placed = [span for span in spans if span is not None]
    if tools and len(placed) == len(tools):
        work = union_length(placed)
        waits = [(start - (call.permission_us or 0), start) for call, (start, _) in zip(tools, placed, strict=True)]
        return work, union_length([*placed, *waits]) - work
    lengths = [call.internal_us for call in tools if call.internal_us is not None]
    waited = sum(call.permission_us or 0 for call in tools)
    if not tools or len(lengths) < len(tools):
        return None, waited
    # A client may start a tool at the end of its own block, before the answer is over.
    early = [call.t_result_us - call.t_emitted_us for call in tools if call.t_result_us and call.t_emitted_us]
    return (sum(lengths) if sum(lengths) <= max([gap, *early]) else max(lengths)), waited


def answered_by(requests: Sequence[Request], tool_calls: Sequence[ToolCall]) -> dict[int, list[ToolCall]]:
    """Tool calls by the request whose gap they fill: only those that the call just before it on its chain asked for.

    A result that comes later than the next request is a background tool's: the agent did not wait for it.
    """
    before: dict[int, int] = {}
    last: dict[str, int] = {}
    for request in requests:
        if request.agent_path in last:
            before[request.request_index] = last[request.agent_path]
        last[request.agent_path] = request.request_index
    found: defaultdict[int, list[ToolCall]] = defaultdict(list)
    for call in tool_calls:
        carried = call.result_request_index
        if carried is not None and before.get(carried) == call.request_index:
            found[carried].append(call)
    return found


def split_gaps(trajectory: Trajectory, ran: Ran = _NOTHING_RAN) -> Trajectory:
    """The session with every gap split anew from its tool calls' times, and the total of the human ones.

    For whoever learns more about tools after assembly: replace `tool_calls`, then call this.
    """
    answered = answered_by(trajectory.requests, trajectory.tool_calls)
    writers = [
        span
        for request in trajectory.requests
        if request.relation in ("side", "retry")
        and request.agent_type == COMPACTION
        and (span := request.call_span) is not None
    ]
    requests = []
    for request in trajectory.requests:
        shares = split_gap(request, answered.get(request.request_index, ()), ran)
        if request.relation == "compaction" and shares.client_us and (gap := request.gap_span) is not None:
            inside = [(max(gap[0], start), min(gap[1], end)) for start, end in writers]
            shares = replace(shares, client_us=max(0, shares.client_us - union_length(inside)))
        requests.append(
            replace(request, think_us=shares.think_us, permission_us=shares.permission_us, client_us=shares.client_us)
        )
    waits = [request.think_us for request in requests if request.think_us is not None]
    return replace(
        trajectory,
        requests=tuple(requests),
        human_us=sum(waits) if waits else None,
    )

"""What each request of a session waits for, and how long: the recorded order as a graph that any server can replay.

A request waits for the completion of the request before it on its own chain; a sub-agent's first request for that of
the one that spawned it; a request waits for sub-agents that began after its predecessor was sent and had ended when it
was sent (a join). What was sent while the request that it follows was still in flight waits for that one's *dispatch*
and for the recorded time since then: a sub-agent, a background child, a side chain, a request that overlapped the one
before it on its chain. A chain that nobody is known to have started follows whatever happened last before it, an end
or a dispatch. Nobody waits for a chain that was not joined.

Requests that failed or repeat one that succeeded are left out unless retries are kept, and requests that only warm a
cache always; what waited for them waits for what they waited for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from replay.delay import Gap, gap_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capture.trajectory import GapKind, Request, Trajectory
    from replay.rules import Retries

OVERLAP_LEAST_US = 100_000
"""Two requests overlapped when one was sent this long before the other ended: sources round their times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A request that will be replayed, and its place in the order."""

    request: Request
    wait_for: tuple[int, ...]  # request indices that must be complete, ascending
    wait_for_dispatch: tuple[int, ...]  # request indices that must have been sent
    gap: Gap  # after the last of them


def steps(trajectory: Trajectory, retries: Retries = "drop") -> tuple[tuple[Step, ...], Counter[str]]:
    """Requests to replay in order of sending, and how many were left out, by reason."""
    requests = sorted(_timed(trajectory.requests), key=lambda request: (request.sent_us, request.request_index))
    graph = _Graph(requests, trajectory, retries)
    ordered = tuple(graph.step(request) for request in requests if request.request_index in graph.kept)
    return ordered, graph.left_out


def _timed(requests: Sequence[Request]) -> list[Request]:
    """Requests that all have a time of sending.

    Where the source does not tell one, the order of the requests is all there is: a request then counts as sent when
    the one before it was, and waits for it without a delay unless a gap is recorded.
    """
    timed: list[Request] = []
    last_us = 0
    for request in sorted(requests, key=lambda request: request.request_index):
        if request.t_send_us is None:
            gap_us = 0 if request.gap_us is None else request.gap_us
            request = replace(request, t_send_us=last_us, gap_us=gap_us)
        last_us = max(last_us, request.sent_us)
        timed.append(request)
    return timed


class _Graph:
    def __init__(self, requests: Sequence[Request], trajectory: Trajectory, retries: Retries) -> None:
        self.with_text = bool(trajectory.pool)
        self.retries = retries
        self.noise_us = max(OVERLAP_LEAST_US, trajectory.quality.clock_err_us or 0)
        self.by_index = {request.request_index: request for request in requests}
        self.left_out: Counter[str] = Counter()
        self.kept: set[int] = set()
        self.chains: dict[str, list[Request]] = {}
        self.place: dict[int, int] = {}  # on its chain
        self.latest_end_us: dict[int, int] = {}  # of the requests before it on its chain
        for request in requests:
            reason = self._why_not(request)
            if reason is None:
                self.kept.add(request.request_index)
                chain = self.chains.setdefault(request.agent_path, [])
                self.place[request.request_index] = len(chain)
                if chain:
                    last = chain[-1]
                    before_us = self.latest_end_us.get(last.request_index, 0)
                    self.latest_end_us[request.request_index] = max(before_us, _ended_us(last))
                chain.append(request)
            else:
                self.left_out[reason] += 1
        self.tools: dict[int, tuple[str, ...]] = {}  # whose results a request brings
        for call in trajectory.tool_calls:
            if call.result_request_index is not None:
                names = self.tools.get(call.result_request_index, ())
                self.tools[call.result_request_index] = (*names, call.name)
        # For each chain that somebody started: who, and when its last request ended. In the order of its first request.
        self.started_by: dict[str, int | None] = {
            path: self._spawner(chain[0]) for path, chain in self.chains.items() if self._has_parent(chain[0])
        }

    @property
    def start_us(self) -> int:
        """When the first request that is replayed was sent."""
        return min(chain[0].sent_us for chain in self.chains.values())

    def _why_not(self, request: Request) -> str | None:
        if self.retries == "drop" and (
            request.error is not None or (request.status is not None and request.status >= 400)
        ):
            return "failed"
        if request.max_tokens is not None and request.max_tokens <= 1:
            return "auxiliary: asks for one token"
        if self.retries == "drop" and request.retry_of in self.kept:
            return "repeats a request that succeeded"
        known = request.prompt_spans if self.with_text else request.block_hashes is not None and request.block_size
        if not known:
            return "prompt not recorded"
        return None

    def step(self, request: Request) -> Step:
        place = self.place[request.request_index]
        if place:
            before, offset = self._follow(request, self.chains[request.agent_path][:place])
            before |= self._joined(request, self.chains[request.agent_path][place - 1])
        else:
            before, offset = self._first(request)
        return Step(
            request=request,
            wait_for=tuple(sorted(before)),
            wait_for_dispatch=() if offset is None else (offset,),
            gap=self._gap(request, before, offset),
        )

    def _follow(self, request: Request, earlier: Sequence[Request]) -> tuple[set[int], int | None]:
        """What a request waits for among the earlier ones of its chain: completions, and perhaps a dispatch.

        The one sent last, and those that ended after it was sent: for all others that one has waited. Its parent may
        lie further back (a rewind), but the agent did what stands between before it.
        """
        last = earlier[-1]
        ended: set[int] = set()
        if self.latest_end_us.get(last.request_index, 0) - self.noise_us > last.sent_us:
            ended = {
                other.request_index
                for other in earlier[:-1]
                if _ended_us(other) - self.noise_us > last.sent_us and not self._in_flight(other, request)
            }
        if self._in_flight(last, request):
            return ended, last.request_index
        return ended | {last.request_index}, None

    def _first(self, request: Request) -> tuple[set[int], int | None]:
        """What the first request of a chain waits for: the one that spawned it, or whatever happened last before it."""
        spawner = self._spawner(request)
        if spawner is not None:
            if self._in_flight(self.by_index[spawner], request):
                return set(), spawner
            return {spawner}, None
        last: tuple[int, bool, int] | None = None  # when, whether it was an end, which request
        for chain in self.chains.values():
            for other in chain:
                if self._sent_before(other.request_index, request):
                    ended = not self._in_flight(other, request)
                    moment = (_ended_us(other) if ended else other.sent_us, ended, other.request_index)
                    last = moment if last is None else max(last, moment)
        if last is None:
            return set(), None
        return ({last[2]}, None) if last[1] else (set(), last[2])

    def _has_parent(self, request: Request) -> bool:
        return request.parent_request_index is not None

    def _spawner(self, request: Request) -> int | None:
        """The replayed request that started the chain of this one, as far as the source tells it."""
        seen = {request.request_index}
        index = request.parent_request_index
        while index is not None and index not in self.kept and index in self.by_index and index not in seen:
            seen.add(index)
            skipped = self.by_index[index]
            index = skipped.retry_of if skipped.retry_of is not None else skipped.parent_request_index
        return index if index in self.kept and self._sent_before(index, request) else None

    def _sent_before(self, index: int, request: Request) -> bool:
        other = self.by_index[index]
        return (other.sent_us, other.request_index) < (request.sent_us, request.request_index)

    def _in_flight(self, other: Request, request: Request) -> bool:
        """Whether `other` was still being answered when `request` was sent."""
        return _ended_us(other) - request.sent_us > self.noise_us

    def _joined(self, request: Request, before: Request) -> set[int]:
        """The last requests of sub-agents that ended between the sending of `before` and of this one."""
        last_of: set[int] = set()
        for path, spawner in self.started_by.items():
            chain = self.chains[path]
            if path == request.agent_path or spawner is None:
                continue
            if self.by_index[spawner].agent_path != request.agent_path:
                continue
            if not self._sent_before(spawner, request) or not self._sent_before(chain[-1].request_index, request):
                continue
            if chain[0].sent_us < before.sent_us or any(self._in_flight(other, request) for other in chain):
                continue
            last_of.add(chain[-1].request_index)
            last_of |= {
                other.request_index for other in chain[:-1] if _ended_us(other) - self.noise_us > chain[-1].sent_us
            }
        return last_of

    def _gap(self, request: Request, before: Iterable[int], offset: int | None) -> Gap:
        ends_us = [_ended_us(self.by_index[index]) for index in before]
        tools = self.tools.get(request.request_index, ())
        if offset is not None:
            dispatched_us = self.by_index[offset].sent_us
            if max(ends_us, default=dispatched_us) <= dispatched_us:
                # Neither tools nor a human stand between a dispatch and what was sent during its answer.
                kind: GapKind = "spawn" if self.by_index[offset].agent_path != request.agent_path else "client"
                return Gap(kind=kind, tool_us=request.sent_us - dispatched_us, offset=True)
        chain_before = self.chains[request.agent_path][: self.place[request.request_index]]
        if set(before) - {chain_before[-1].request_index if chain_before else None} and chain_before:
            # The sub-agents' time is replayed by their own requests: only what came after the last of them is waited.
            return gap_of(max(0, request.sent_us - max(ends_us)), request.gap_kind, request.think_us, tools)
        source = request
        while source.retry_of is not None and source.retry_of not in self.kept and source.retry_of in self.by_index:
            # A retry stands for the request that failed: its gap is what the agent did, back-off is the failure's.
            source = self.by_index[source.retry_of]
            tools = self.tools.get(source.request_index, tools)
        if source.gap_us is not None:
            return gap_of(source.gap_us, source.gap_kind, source.think_us, tools)
        since_us = max(ends_us, default=self.start_us)
        if since_us >= source.sent_us:
            return gap_of(0, source.gap_kind, source.think_us, tools)
        kind = "spawn" if source.gap_kind == "none" else source.gap_kind
        return gap_of(source.sent_us - since_us, kind, source.think_us, tools)


def _ended_us(request: Request) -> int:
    for moment in (request.t_end_us, request.t_last_token_us, request.t_first_token_us):
        if moment is not None:
            return moment
    return request.sent_us

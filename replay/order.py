"""What each request of a session waits for, and how long: the recorded order as a graph that any server can replay.

A request waits for the request before it on its own chain; a sub-agent's first request waits for the one that
spawned it; a request waits for sub-agents that began after its predecessor was sent and had ended when it was sent
(a join). A chain that nobody is known to have started waits for whatever ended last before it. Requests that failed,
repeat one that succeeded, or only warm a cache are left out, and what waited for them waits for what they waited for.
Requests of one chain that overlapped when they were recorded are sent one after the other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capture.trajectory import GapKind, Request, Trajectory
    from replay.rules import DelayPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A request that will be replayed, and its place in the order."""

    request: Request
    wait_for: tuple[int, ...]  # request indices, ascending
    delay_us: int
    delay_kind: GapKind


def steps(trajectory: Trajectory, delay: DelayPolicy) -> tuple[tuple[Step, ...], Counter[str]]:
    """Requests to replay in order of sending, and how many were left out, by reason."""
    requests = sorted(_timed(trajectory.requests), key=lambda request: (request.sent_us, request.request_index))
    graph = _Graph(requests, with_text=bool(trajectory.pool))
    ordered = tuple(graph.step(request, delay) for request in requests if request.request_index in graph.kept)
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
    def __init__(self, requests: Sequence[Request], *, with_text: bool) -> None:
        self.with_text = with_text
        self.by_index = {request.request_index: request for request in requests}
        self.left_out: Counter[str] = Counter()
        self.kept: set[int] = set()
        self.chains: dict[str, list[Request]] = {}
        for request in requests:
            reason = self._why_not(request)
            if reason is None:
                self.kept.add(request.request_index)
                self.chains.setdefault(request.agent_path, []).append(request)
            else:
                self.left_out[reason] += 1

    @property
    def start_us(self) -> int:
        """When the first request that is replayed was sent."""
        return min(chain[0].sent_us for chain in self.chains.values())

    def _why_not(self, request: Request) -> str | None:
        if request.error is not None or (request.status is not None and request.status >= 400):
            return "failed"
        if request.max_tokens is not None and request.max_tokens <= 1:
            return "auxiliary: asks for one token"
        if request.retry_of in self.kept:
            return "repeats a request that succeeded"
        known = request.prompt_spans if self.with_text else request.block_hashes is not None and request.block_size
        if not known:
            return "prompt not recorded"
        return None

    def step(self, request: Request, delay: DelayPolicy) -> Step:
        before = self._before(request)
        joined = self._joined(request, before)
        gap_us, kind, think_us = self._gap(request, before, joined)
        return Step(
            request=request,
            wait_for=tuple(sorted({*joined, *(() if before is None else (before,))})),
            delay_us=delay.delay_us(gap_us, kind, think_us),
            delay_kind=kind,
        )

    def _before(self, request: Request) -> int | None:
        """Nearest replayed request before this one on its chain; for a chain's first: the one that spawned it."""
        chain = self.chains[request.agent_path]
        place = next(i for i, other in enumerate(chain) if other is request)
        if place:  # its parent may lie further back (a rewind), but the agent did what stands between before it
            return chain[place - 1].request_index
        seen = {request.request_index}
        index = request.parent_request_index
        while index is not None and index not in self.kept and index in self.by_index and index not in seen:
            seen.add(index)
            skipped = self.by_index[index]
            index = skipped.retry_of if skipped.retry_of is not None else skipped.parent_request_index
        if index in self.kept and self._sent_before(index, request):
            return index
        # A chain that nobody is known to have started: whatever ended last before it, so that it keeps its time.
        ended = [
            other
            for path in self.chains.values()
            for other in path
            if _ended_us(other) <= request.sent_us and self._sent_before(other.request_index, request)
        ]
        return max(ended, key=_ended_us).request_index if ended else None

    def _sent_before(self, index: int, request: Request) -> bool:
        other = self.by_index[index]
        return (other.sent_us, other.request_index) < (request.sent_us, request.request_index)

    def _joined(self, request: Request, before: int | None) -> tuple[int, ...]:
        if before is None or self.by_index[before].agent_path != request.agent_path:
            return ()
        opened_us = self.by_index[before].sent_us
        last_of = []
        for path, chain in self.chains.items():
            if chain[0].parent_request_index is None:
                continue  # a side call: nobody is known to have waited for it
            spawner = self._before(chain[0]) if path != request.agent_path else None
            if spawner is None or self.by_index[spawner].agent_path != request.agent_path:
                continue
            if not self._sent_before(spawner, request) or not self._sent_before(chain[-1].request_index, request):
                continue
            ended_us = max(_ended_us(other) for other in chain)
            if opened_us <= chain[0].sent_us and ended_us <= request.sent_us:
                last_of.append(chain[-1].request_index)
        return tuple(last_of)

    def _gap(self, request: Request, before: int | None, joined: tuple[int, ...]) -> tuple[int, GapKind, int | None]:
        if joined:
            # The sub-agents' time is replayed by their own requests: only what came after the last of them is waited.
            last_us = max(
                _ended_us(self.by_index[index]) for index in (*joined, *(() if before is None else (before,)))
            )
            return max(0, request.sent_us - last_us), request.gap_kind, request.think_us
        source = request
        while source.retry_of is not None and source.retry_of not in self.kept and source.retry_of in self.by_index:
            # A retry stands for the request that failed: its gap is what the agent did, back-off is the failure's.
            source = self.by_index[source.retry_of]
        if source.gap_us is not None:
            return source.gap_us, source.gap_kind, source.think_us
        since_us = self.start_us if before is None else _ended_us(self.by_index[before])
        if since_us >= source.sent_us:
            return 0, source.gap_kind, source.think_us
        kind: GapKind = "spawn" if source.gap_kind == "none" else source.gap_kind
        return source.sent_us - since_us, kind, source.think_us


def _ended_us(request: Request) -> int:
    for moment in (request.t_end_us, request.t_last_token_us, request.t_first_token_us):
        if moment is not None:
            return moment
    return request.sent_us

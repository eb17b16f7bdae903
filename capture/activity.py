"""How many agents are at work at one time: per session, and over all sessions of a person.

An agent is a chain of a session (`agent_path`), a sub-agent too; side calls (titles, probes) are none. It is active

- while a model call of it is in flight, a failed or cut one included as far as it was seen;
- in a gap in which its tools ran or it worked itself (gap kinds tool and client), and in the time that a human gap
  gives to the client, less what the gap gives to a person: a permission at its start, thinking at its end.

It is not active while it waits for a person, nor while it waits for its sub-agents: of a gap that follows a call which
started some, or asked a tool of the sub-agent kind (start, wait, send), only the time counts in which none lives
(first send to last end). So a parent blocked on two sub-agents makes two active agents, not three: it occupies nothing.
Another tool that runs beside such a wait is not counted.

Where nobody tells tools from a person (`unsplit` gaps, tool gaps that brought new words and no tool times), the peak is
known only if it is the same whether such gaps count or not; else it is None. All from microseconds, before any
coarsening.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from capture.intervals import Interval, subtract, union
from capture.trajectory import Request, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionActivity:
    """When each agent of a session was active: half-open intervals in microseconds, disjoint and sorted per agent.

    UTC where `placed`, else since the session's first send.
    """

    session_id: str
    contributor: str | None
    placed: bool
    timed: bool  # the source tells how long its calls took
    certain: Mapping[str, tuple[Interval, ...]]  # by agent path
    possible: Mapping[str, tuple[Interval, ...]]  # with gaps that may have been a person's


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """For how long how many agents were active, in microseconds."""

    peak: int
    active_us: int  # at least one was
    by_agents: Mapping[int, int]  # number of agents (1, 2, …) → time

    @property
    def shares(self) -> dict[int, float]:
        """Part of the active time in which exactly so many agents were active; they sum to one."""
        return {agents: spent / self.active_us for agents, spent in self.by_agents.items()} if self.active_us else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributorActivity:
    """A person's sessions taken together; `contributor` None: the sessions of nobody named."""

    contributor: str | None
    sessions: int
    agents: int  # chains, however long each lived
    concurrency: Concurrency
    peak: int | None  # None: the sources do not tell


def concurrency(agents: Iterable[Sequence[Interval]]) -> Concurrency:
    """How many of the agents were active together; intervals of one agent must be disjoint."""
    changes: defaultdict[int, int] = defaultdict(int)
    for intervals in agents:
        for start, end in intervals:
            changes[start] += 1
            changes[end] -= 1
    by_agents: defaultdict[int, int] = defaultdict(int)
    active = since = 0
    for at in sorted(changes):
        if active:
            by_agents[active] += at - since
        active, since = active + changes[at], at
    return Concurrency(
        peak=max(by_agents, default=0), active_us=sum(by_agents.values()), by_agents=dict(sorted(by_agents.items()))
    )


def session_activity(trajectory: Trajectory) -> SessionActivity:
    """When each agent of a session was active."""
    zero = trajectory.t0_utc_us or 0
    chains: defaultdict[str, list[Request]] = defaultdict(list)
    for request in trajectory.requests:
        if request.kind == "turn" and not request.agent_path.startswith("side"):
            chains[request.agent_path].append(request)
    children = _Children(trajectory, chains)
    certain, possible = {}, {}
    for path, requests in chains.items():
        sure: list[Interval] = []
        perhaps: list[Interval] = []
        previous: Request | None = None
        for request in requests:
            if request.t_send_us is None:
                continue
            sure.append((request.t_send_us, _end(request)))
            if (gap := request.gap_span) is not None and previous is not None:
                lives = children.awaited_after(previous)
                sure += subtract([_own_part(request)], lives)
                if _untold(request):
                    perhaps += subtract([gap], lives)
            previous = request
        certain[path] = _moved(union(sure), zero)
        possible[path] = _moved(union([*sure, *perhaps]), zero)
    return SessionActivity(
        session_id=trajectory.session_id,
        contributor=trajectory.contributor,
        placed=trajectory.t0_utc_us is not None,
        timed=trajectory.source == "wire"
        or all(_is_timed(request) for requests in chains.values() for request in requests),
        certain=certain,
        possible=possible,
    )


def _is_timed(request: Request) -> bool:
    """Whether a log tells how long a call took. (A recorded call that never ended has the time it was seen.)"""
    return request.t_send_us is not None and _end(request) > request.t_send_us


def _untold(request: Request) -> bool:
    """Whether nobody tells how much of the gap before a request was a person's."""
    return request.gap_kind == "unsplit" or (request.gap_kind == "tool" and request.think_us is None)


def _own_part(request: Request) -> Interval:
    """Part of the gap before a request in which the agent or its tools worked."""
    gap, sent_us = request.gap_us or 0, request.sent_us
    start = sent_us - gap
    if _untold(request):
        return start, start
    match request.gap_kind:
        case "tool" | "client" | "spawn":
            return start + (request.permission_us or 0), sent_us - (request.think_us or 0)
        case "human":
            return sent_us - min(gap, request.client_us or 0), sent_us
        case _:
            return start, start


def _end(request: Request) -> int:
    """End of a call, or the last moment that was seen of it."""
    seen = (request.t_headers_us, request.t_first_byte_us, request.t_first_token_us, request.t_last_token_us)
    if request.t_end_us is not None:
        return request.t_end_us
    return max([request.sent_us, *(at for at in seen if at is not None)])


class _Children:
    """Lives of a session's sub-agents, by who may wait for them."""

    def __init__(self, trajectory: Trajectory, chains: Mapping[str, Sequence[Request]]) -> None:
        path_of = {request.request_index: request.agent_path for request in trajectory.requests}
        self._delegating = {call.request_index for call in trajectory.tool_calls if call.kind == "subagent"}
        self._of_request: defaultdict[int, list[Interval]] = defaultdict(list)
        self._of_chain: defaultdict[str, list[Interval]] = defaultdict(list)
        for path, requests in chains.items():
            first = requests[0]
            parent = first.parent_request_index
            requests = [request for request in requests if request.t_send_us is not None]
            if parent is None or path_of.get(parent, path) == path or not requests:
                continue
            if first.gap_kind == "spawn" or first.relation == "subagent":
                life = requests[0].sent_us, max(_end(request) for request in requests)
                self._of_request[parent].append(life)
                self._of_chain[path_of[parent]].append(life)

    def awaited_after(self, request: Request) -> Sequence[Interval]:
        """Lives that a chain may wait for in the gap after this request of it."""
        if request.request_index in self._delegating:
            return self._of_chain.get(request.agent_path, ())
        return self._of_request.get(request.request_index, ())


def _moved(intervals: Sequence[Interval], by: int) -> tuple[Interval, ...]:
    return tuple((start + by, end + by) for start, end in intervals)


def peak_of(activities: Iterable[SessionActivity]) -> int | None:
    """Most agents at work at one time over these sessions; None where the sources leave it open or tell no clock."""
    activities = list(activities)
    if not all(activity.timed for activity in activities):
        return None
    if len(activities) > 1 and not all(activity.placed for activity in activities):
        return None
    least = concurrency(chain for activity in activities for chain in activity.certain.values()).peak
    most = concurrency(chain for activity in activities for chain in activity.possible.values()).peak
    return least if least == most else None


def is_own(source: str, contributor: str | None) -> bool:
    """Whether a session is work of the store's people: recorded, read from an agent's own log, or signed by a name.

    Imported datasets are other people's work: they have a peak each, but no part in anybody's.
    """
    return contributor is not None or source == "wire" or source.endswith("-log")


def by_contributor(activities: Iterable[SessionActivity]) -> list[ContributorActivity]:
    """Each person's sessions taken together, by name; those of nobody named come last, as one.

    Sessions without a wall clock are left out: nobody knows what they overlap.
    """
    groups: defaultdict[str | None, list[SessionActivity]] = defaultdict(list)
    for activity in activities:
        if activity.placed:
            groups[activity.contributor].append(activity)
    return [
        ContributorActivity(
            contributor=name,
            sessions=len(groups[name]),
            agents=sum(len(activity.certain) for activity in groups[name]),
            concurrency=concurrency(chain for activity in groups[name] for chain in activity.certain.values()),
            peak=peak_of(groups[name]),
        )
        for name in sorted(groups, key=lambda name: (name is None, name or ""))
    ]


def with_peaks(trajectory: Trajectory, peaks: Mapping[str | None, int | None]) -> Trajectory:
    """The session with its own peak and that of its contributor."""
    own = is_own(trajectory.source, trajectory.contributor) and trajectory.t0_utc_us is not None
    return replace(
        trajectory,
        peak_agents=peak_of([session_activity(trajectory)]),
        contributor_peak_agents=peaks.get(trajectory.contributor) if own else None,
    )

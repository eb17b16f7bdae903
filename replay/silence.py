"""Stretches in which agents waited and the server sent nothing to any of them.

Agents work in a closed loop: while a server stalls they ask for nothing more, so a stall is few requests however long
it is, and a percentile over requests hardly sees it. Time does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from replay.record import RequestRecord
from replay.window import Window

GAP_US = 1_000_000  # between content events of one answer: a shorter one is no silence
STALLED_MOST = 0.05  # of a window's time may pass in silences that are longer than a first token may take
STALL_S = 10.0  # where no first-token limit says how long that is
STARVED_FACTOR = 3  # times that: so long a silence of one agent is starvation, whoever else is served meanwhile
STARVED_MOST = 0.1  # of all agents' time may pass so: one first token in twenty may be late, and some are very late


def silences_s(requests: Iterable[RequestRecord], window: Window, *, waiting_least: int = 1) -> list[float]:
    """Lengths of all silences in a window, in seconds, while at least so many requests were in flight."""
    edges: list[tuple[int, int, int]] = []  # moment, change of those in flight, change of those being sent to
    edges.append((window.start_ns, 0, 0))  # a silence may have begun before the window
    for record in requests:
        end_ns = window.end_ns if record.end_at_ns is None else record.end_at_ns
        edges += [(record.sent_at_ns, 1, 0), (end_ns, -1, 0)]
        at_ns = record.first_content_at_ns
        if at_ns is None:
            continue
        edges.append((at_ns, 0, 1))
        if max(record.content_gaps_us, default=0) > GAP_US:
            for gap_us in record.content_gaps_us:
                if gap_us > GAP_US:
                    edges += [(at_ns, 0, -1), (at_ns + gap_us * 1000, 0, 1)]
                at_ns += gap_us * 1000
        edges.append((max(at_ns, record.last_content_at_ns or at_ns), 0, -1))
    found: list[float] = []
    waiting = sent_to = 0
    since_ns: int | None = None
    # Of what happens at one moment what begins comes first, so that a read between two silences parts them.
    for at_ns, flight, sent in sorted(edges, key=lambda edge: (edge[0], -edge[1] - edge[2])):
        waiting, sent_to = waiting + flight, sent_to + sent
        silent = waiting >= waiting_least and not sent_to and window.start_ns <= at_ns < window.end_ns
        if silent and since_ns is None:
            since_ns = at_ns
        elif not silent and since_ns is not None:
            found.append((min(at_ns, window.end_ns) - since_ns) / 1e9)
            since_ns = None
    return found


def silences_of_agents_s(requests: Iterable[RequestRecord], window: Window) -> list[float]:
    """Lengths of each agent's own silences in a window, in seconds: it waits and is sent nothing, others may be."""
    of_agent: dict[int, list[RequestRecord]] = {}
    for record in requests:
        of_agent.setdefault(record.agent, []).append(record)
    return [silence for own in of_agent.values() for silence in silences_s(own, window)]


def starvation_margin(silences: Iterable[float], window: Window, *, agents: int, limit_s: float | None) -> float | None:
    """ln of how far the share of agent time in long silences is beyond what is allowed; None within it.

    A server that serves a few agents well and lets the others wait sends the few ones' requests into the percentiles;
    of the others there is one request each, or none where it was sent before the window.
    """
    least_s = STARVED_FACTOR * (STALL_S if limit_s is None else limit_s)
    starved_s = math.fsum(silence for silence in silences if silence > least_s)
    allowed_s = STARVED_MOST * window.seconds * agents
    return math.log(starved_s / allowed_s) if starved_s > allowed_s > 0 else None


def stall_margin(silences: Iterable[float], window: Window, *, limit_s: float | None) -> float | None:
    """ln of how far the time in stalls is beyond what is allowed; None within it."""
    stalled_s = math.fsum(silence for silence in silences if silence > (STALL_S if limit_s is None else limit_s))
    allowed_s = STALLED_MOST * window.seconds
    return math.log(stalled_s / allowed_s) if stalled_s > allowed_s > 0 else None

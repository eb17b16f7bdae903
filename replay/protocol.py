"""How long a trial lasts and which part of it counts: the measurement protocol, as data and one pure decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Phases of a trial, in seconds. AA-AgentPerf's own minimums are the `full` protocol's values.

    A trial ramps agents up, lets them settle, then measures until every minimum is met or `max_phase_s` is over.
    """

    name: str
    ramp_per_s: float  # agents started per second
    settle_s: float  # after the last agent has started
    min_measure_s: float
    min_trajectories: int  # finished inside the phase, over all agents
    min_trajectories_per_agent: int
    max_phase_s: float  # from the first start to the end of measuring, whatever is met
    start_offset_turns: int  # an agent's first trajectory starts up to this many turns in
    request_timeout_s: float


FULL = Protocol(
    name="full",
    ramp_per_s=1.0,
    settle_s=60.0,
    min_measure_s=600.0,
    min_trajectories=30,
    min_trajectories_per_agent=3,
    max_phase_s=2400.0,
    start_offset_turns=10,
    request_timeout_s=300.0,
)
QUICK = Protocol(
    name="quick",
    ramp_per_s=8.0,
    settle_s=2.0,
    min_measure_s=15.0,
    min_trajectories=0,
    min_trajectories_per_agent=0,
    max_phase_s=60.0,
    start_offset_turns=10,
    request_timeout_s=60.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the driver knows while a trial runs."""

    agents: int
    elapsed_s: float  # since the first agent started
    measured_s: float  # since settling ended; 0 before
    finished_trajectories: int
    finished_per_agent_min: int
    requests: int
    in_flight: int


def phase_over(protocol: Protocol, progress: Progress) -> bool:
    """Whether measuring may end: every minimum is met, or the phase has run out."""
    if progress.elapsed_s >= protocol.max_phase_s:
        return True
    return (
        progress.measured_s >= protocol.min_measure_s
        and progress.finished_trajectories >= protocol.min_trajectories
        and progress.finished_per_agent_min >= protocol.min_trajectories_per_agent
    )

"""How long a trial lasts and which part of it counts: the measurement protocol, as data and one pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

type RunClass = Literal["screen", "standard", "record"]
"""How much a score is worth. `screen`: short trials, an interval, nothing certified. `standard`: long trials, a
certified bound. `record`: the service level's own protocol, a certified bound."""


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
    request_timeout_s: float  # of a request as a whole
    ramp_within_s: float | None = None  # start agents faster than `ramp_per_s` where it would take longer than this
    connect_timeout_s: float = 10.0
    first_byte_timeout_s: float | None = None  # of the answer's body, from the request's first byte; None: as the whole
    idle_timeout_s: float | None = None  # between two reads of an answer; None: as the whole

    def for_agents(self, agents: int) -> Self:
        """The protocol of a trial of so many agents: its ramp is a number of agents per second."""
        if self.ramp_within_s is None:
            return self
        rate = max(self.ramp_per_s, (agents - 1) / self.ramp_within_s)
        return replace(self, ramp_per_s=rate, ramp_within_s=None)

    def shortest_s(self, agents: int) -> float:
        """Seconds that a trial of so many agents takes at least."""
        ramp_s = (agents - 1) / self.for_agents(agents).ramp_per_s
        return min(self.max_phase_s, ramp_s + self.settle_s + self.min_measure_s)


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
STANDARD = Protocol(
    name="standard",
    ramp_per_s=1.0,
    ramp_within_s=120.0,
    settle_s=60.0,
    min_measure_s=300.0,
    min_trajectories=30,
    min_trajectories_per_agent=0,
    max_phase_s=1200.0,
    start_offset_turns=10,
    request_timeout_s=300.0,
)
SCREEN = Protocol(
    name="screen",
    ramp_per_s=1.0,
    ramp_within_s=20.0,
    settle_s=15.0,
    min_measure_s=60.0,
    min_trajectories=0,
    min_trajectories_per_agent=0,
    max_phase_s=120.0,
    start_offset_turns=10,
    request_timeout_s=300.0,
)
QUICK = Protocol(
    name="quick",
    ramp_per_s=8.0,
    ramp_within_s=10.0,
    settle_s=2.0,
    min_measure_s=15.0,
    min_trajectories=0,
    min_trajectories_per_agent=0,
    max_phase_s=60.0,
    start_offset_turns=10,
    request_timeout_s=300.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRules:
    """How a class confirms what the search found."""

    confirmations: int  # trials around the answer before the fit is asked
    most_confirmations: int  # where the fit does not say yet
    certify: bool  # a holdout trial at the interval's lower end must pass
    spread: float = 0.12  # they lie within this share of the scouted level


CLASSES: dict[RunClass, ClassRules] = {
    "screen": ClassRules(confirmations=5, most_confirmations=10, certify=False),
    "standard": ClassRules(confirmations=9, most_confirmations=18, certify=True),
    "record": ClassRules(confirmations=9, most_confirmations=18, certify=True),
}
QUICK_RULES = ClassRules(confirmations=3, most_confirmations=6, certify=False, spread=0.2)
"""Short trials are noisy: over a wider span three of them tell a slope more often."""


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
    # Of the measured window so far, for the eye only: the verdict comes from the records.
    p25_output_tok_s: float | None = None
    p95_ttft_s: float | None = None
    watts: float | None = None


def strictest(protocols: Sequence[Protocol]) -> Protocol:
    """One protocol that meets every rule of all of these."""
    first = protocols[0]
    if all(protocol == first for protocol in protocols):
        return first
    ramps = [protocol.ramp_within_s for protocol in protocols]
    slow = [protocol.ramp_per_s for protocol in protocols]
    longest = {
        field.name: max(getattr(protocol, field.name) for protocol in protocols)
        for field in fields(Protocol)
        if field.name.startswith(("settle", "min_", "max_", "start_", "request_", "connect_"))
    }
    return replace(
        first,
        name="+".join(dict.fromkeys(protocol.name for protocol in protocols)),
        ramp_per_s=min(slow),
        ramp_within_s=None if None in ramps else max(ramp for ramp in ramps if ramp is not None),
        **longest,
    )


def protocol_of(run_class: RunClass, *, quick: bool, own: Sequence[Protocol]) -> Protocol:
    """The protocol of a class; `own` are those of the service levels, which class record takes."""
    if quick:
        return QUICK
    return {"screen": SCREEN, "standard": STANDARD}.get(run_class) or strictest(own)


def phase_over(protocol: Protocol, progress: Progress) -> bool:
    """Whether measuring may end: every minimum is met, or the phase has run out."""
    if progress.elapsed_s >= protocol.max_phase_s:
        return True
    return (
        progress.measured_s >= protocol.min_measure_s
        and progress.finished_trajectories >= protocol.min_trajectories
        and progress.finished_per_agent_min >= protocol.min_trajectories_per_agent
    )

"""How sure a trial's percentiles are: a bootstrap that draws whole agents, since turns of one agent are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replay.measure import Sample
from replay.slo import Limits

REPLICATES = 500
LEAST_AGENTS = 5
_INFINITE = 1e15  # stands for a request that was never answered, so that interpolation stays a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """95 % percentile intervals of the two percentiles at one level. An infinite end is None.

    It says how the percentiles of this trial would move with other agents of the same kind. It is no interval of the
    number of agents: that needs several trials around the answer. Why none was computed stands in `why_not`.
    """

    agents: int
    replicates: int
    p25_speed_low: float | None
    p25_speed_high: float | None
    p95_ttft_low_s: float | None
    p95_ttft_high_s: float | None
    share_meeting: float | None  # of the replicates that hold both limits
    why_not: str | None


def cluster_bootstrap(samples: Sequence[Sample], limits: Limits, *, seed: int) -> Interval:
    """Draws the agents of a trial with replacement; the same seed gives the same interval."""
    import numpy as np

    by_agent: dict[int, list[Sample]] = {}
    for sample in samples:
        by_agent.setdefault(sample.agent, []).append(sample)
    if len(by_agent) < LEAST_AGENTS:
        return _none(
            len(by_agent), f"{len(by_agent)} agents sent requests; fewer than {LEAST_AGENTS} say nothing of others"
        )
    speeds = [np.array([item.speed_tok_s for item in own if item.speed_tok_s is not None]) for own in by_agent.values()]
    ttfts = [
        np.minimum(np.array([item.ttft_s for item in own if item.ttft_s is not None], dtype=float), _INFINITE)
        for own in by_agent.values()
    ]
    random = np.random.default_rng(seed)
    found: list[tuple[float, float]] = []
    for _ in range(REPLICATES):
        drawn = random.integers(0, len(by_agent), len(by_agent))
        speed = np.concatenate([speeds[index] for index in drawn])
        ttft = np.concatenate([ttfts[index] for index in drawn])
        if len(speed) and len(ttft):
            found.append((float(np.quantile(speed, 0.25)), float(np.quantile(ttft, 0.95))))
    if len(found) < REPLICATES:
        return _none(len(by_agent), "some draws of agents hold no output speed or no first token at all")
    p25, p95 = np.array(found).T
    return Interval(
        agents=len(by_agent),
        replicates=REPLICATES,
        p25_speed_low=_finite(np.quantile(p25, 0.025)),
        p25_speed_high=_finite(np.quantile(p25, 0.975)),
        p95_ttft_low_s=_finite(np.quantile(p95, 0.025)),
        p95_ttft_high_s=_finite(np.quantile(p95, 0.975)),
        share_meeting=sum(speed >= limits.p25_output_tok_s and ttft <= limits.p95_ttft_s for speed, ttft in found)
        / REPLICATES,
        why_not=None,
    )


def _finite(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]
    # An interpolation towards an unanswered request lies far beyond any latency.
    return number if number < 1e6 else None


def _none(agents: int, why: str) -> Interval:
    return Interval(
        agents=agents,
        replicates=0,
        p25_speed_low=None,
        p25_speed_high=None,
        p95_ttft_low_s=None,
        p95_ttft_high_s=None,
        share_meeting=None,
        why_not=why,
    )

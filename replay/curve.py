"""The whole curve of agents per megawatt over the number of agents: one point per trial, whatever became of it.

Below the knee idle power dominates and the ratio falls; above it the service level is missed. A point is no score: its
verdicts stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from replay.denominator import agents_per_megawatt, denominators
from replay.system import System

if TYPE_CHECKING:
    from replay.judge import Judged


def curve(system: System, judged: Sequence[Judged], *, finite: bool) -> list[dict[str, Any]]:
    """One row per trial, in order. `verdicts` are of the service levels in their order; `u_w` is expanded (k = 2).

    Where a plan was played once its agents ended one by one: no number of them drew that power.
    """
    return [
        {
            "trial": item.trial,
            "agents": item.agents,
            "purpose": item.purpose,
            "verdicts": [found.verdict for found in item.measure.slos],
            "power": {}
            if finite
            else {
                power.id: {
                    "power_w": power.power_w,
                    "u_w": power.expanded_w,
                    "agents_per_megawatt": agents_per_megawatt(item.agents, power.power_w),
                    "watts_per_agent": power.power_w / item.agents,
                }
                for power in denominators(system, [item], item.agents)
            },
        }
        for item in judged
    ]

"""What the work of one trial cost in energy, by each denominator: per turn, per output token and per job.

Everything is of the steady window of that one trial: its mean power over its own rates. A job is a whole session's
worth of answered requests, as `replay.metrics` counts them; failed requests are no work, but their energy is spent.
Idle power is what was drawn without a request under way, before the first trial or after the last: the lower of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.denominator import SCOPE_IDS, Denominator, denominators
from replay.system import System

if TYPE_CHECKING:
    from replay.idle import IdlePower
    from replay.judge import Judged

JOULES_PER_KWH = 3.6e6


def energy_use(system: System, trial: Judged, idle: IdlePower | None) -> dict[str, dict[str, float | None]]:
    """Energy of a trial's work by the id of each denominator; what is not known is None."""
    scopes = {name: scope for scope, name in SCOPE_IDS.items()}
    return {
        power.id: _of(power, trial, idle.watts(scopes[power.id]) if idle is not None and power.id in scopes else None)
        for power in denominators(system, [trial], trial.agents)
    }


def _of(power: Denominator, trial: Judged, idle_w: float | None) -> dict[str, float | None]:
    numbers = trial.measure
    turns_per_s = numbers.outcomes.get("ok", 0) / numbers.window_s if numbers.window_s > 0 else 0.0
    jobs_per_h = numbers.metrics.jobs.per_h
    kwh_per_job = power.power_w / 1000 / jobs_per_h if jobs_per_h else None
    # Below its idle power nothing was measured that may be called the work's own.
    dynamic_w = power.power_w - idle_w if idle_w is not None and idle_w <= power.power_w else None
    return {
        "joules_per_turn": power.power_w / turns_per_s if turns_per_s else None,
        "joules_per_output_token": power.power_w / numbers.output_tok_per_s if numbers.output_tok_per_s else None,
        "kwh_per_job": kwh_per_job,
        "jobs_per_mwh": 1000 / kwh_per_job if kwh_per_job else None,
        "idle_share": idle_w / power.power_w if idle_w is not None else None,
        "dynamic_watts_per_agent": dynamic_w / trial.agents if dynamic_w is not None else None,
    }

"""What an agent and a job cost by the prices of the system file, and how many engineers the agents serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replay.denominator import WIDEST, Denominator
from replay.system import System


def money(
    system: System, powers: Sequence[Denominator], agents: float, *, certified: int | None, jobs_per_h: float | None
) -> dict[str, Any] | None:
    """Prices per agent-hour and per job, in the currency of the system file; None where it states none."""
    prices = system.prices
    if prices is None:
        return None
    per_hour, words = _per_hour(system)
    by_id = {power.id: power for power in powers}
    widest = next((by_id[name] for name in WIDEST if name in by_id), None)
    energy = None
    if prices.energy_per_kwh is not None and widest is not None:
        energy = widest.power_w / 1000 * prices.energy_per_kwh / agents
        words.append(
            f"energy at {prices.energy_per_kwh:g} {prices.currency}/kWh of {widest.basis} power: {widest.scope}"
        )
    if per_hour is None and energy is None:
        return None
    return {
        "currency": prices.currency,
        "per_hour": per_hour,
        "per_agent_hour": per_hour / agents if per_hour is not None else None,
        "per_agent_hour_certified": per_hour / certified if per_hour is not None and certified else None,
        "per_job": per_hour / jobs_per_h if per_hour is not None and jobs_per_h else None,
        "energy_per_agent_hour": energy,
        "energy_of": widest.id if energy is not None and widest is not None else None,
        "basis": "; ".join(words),
    }


def engineers(
    system: System, agents: float, *, interval: tuple[float, float] | None, certified: int | None
) -> dict[str, Any] | None:
    """How many engineers so many agents serve, at the number that the system file states for one."""
    each = system.agents_per_engineer
    if each is None:
        return None
    return {
        "agents_per_engineer": each,
        "engineers": agents / each,
        "low": interval[0] / each if interval is not None else None,
        "certified": certified / each if certified is not None else None,
    }


def _per_hour(system: System) -> tuple[float | None, list[str]]:
    """The price of the whole system for an hour, and where it is from."""
    prices, count = system.prices, system.accelerator_count
    if prices is not None and prices.per_hour is not None:
        return prices.per_hour, [f"{prices.per_hour:g} {prices.currency} an hour for the whole system, as stated"]
    if prices is not None and prices.per_accelerator_hour is not None and count:
        each = f"{prices.per_accelerator_hour:g} {prices.currency} an hour"
        return prices.per_accelerator_hour * count, [f"{each} for each of {count} accelerators, as stated"]
    return None, []

"""What a number of agents is divided by, side by side: accelerators, and the watts of each scope that is known.

No row stands for another. `id` names it, `scope` says in words what its watts cover, `basis` where they come from:
measured; declared, as the user stated them; provisioned, as `system_power.json` sums them. A product takes the weaker
basis: measured power × a stated PUE is declared.

    S = 10⁶ · N / P       agents per megawatt, which are agent-hours per megawatt-hour
    w = P / N             its inverse, watts per agent
    certified S = 10⁶ · N_certified / max(P + 2 u_P), each mean power P with its own u_P: of any trial that the number
    rests on and that had no more agents than was found, of the holdout that certifies, and as interpolated
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replay.mean_power import MeanPower, mean_powers
from replay.nodes import charged_nodes
from replay.provisioned import ProvisionedFault
from replay.ratio import Estimate, ratio_limits
from replay.system import System

if TYPE_CHECKING:
    from replay.judge import Judged

type DenominatorId = Literal[
    "accelerator_count",
    "accelerator",
    "accelerator_engaged",
    "module",
    "cpu_package",
    "node_or_rack",
    "provisioned",
    "facility_measured",
    "facility_provisioned",
    "declared",
]
type Basis = Literal["measured", "declared", "provisioned"]

SCOPE_IDS: dict[str, DenominatorId] = {
    "accelerator": "accelerator",
    "accelerator_engaged": "accelerator_engaged",
    "module": "module",
    "cpu_package": "cpu_package",
    "node_or_rack": "node_or_rack",
    "facility": "facility_measured",
    "declared": "declared",
}
"""Scopes of power that agents are divided by. Memory, network and DRAM alone serve nobody: they are shown, no more."""

SCOPES: dict[DenominatorId, str] = {
    "accelerator": "accelerators only: no CPU, network, cooling or conversion",
    "accelerator_engaged": "accelerators that serve, without the idle ones of the deployment: no CPU, network, cooling "
    "or conversion",
    "module": "modules of accelerators and their CPU: no network, cooling or conversion",
    "cpu_package": "CPU packages only: no accelerator, no network, no cooling, no conversion",
    "node_or_rack": "whole nodes or racks at their inlets: no cooling of the room",
    "provisioned": "what the system is built to draw, by its system_power.json: nothing was measured",
    "facility_measured": "the facility: everything behind its meter",
    "declared": "a nameplate that the user stated",
}
ORDER: tuple[DenominatorId, ...] = (
    "accelerator",
    "accelerator_engaged",
    "module",
    "cpu_package",
    "node_or_rack",
    "provisioned",
    "facility_measured",
    "facility_provisioned",
    "declared",
)
WIDEST: tuple[DenominatorId, ...] = (
    "facility_measured",
    "node_or_rack",
    "module",
    "accelerator",
    "cpu_package",
    "declared",
    "facility_provisioned",
    "provisioned",
)
"""Where one power must stand for all: what was measured before what was stated, the widest first."""

PUE_WORDS = {
    "annual": "a stated annual PUE of {pue:g}: what a year's bill holds, not what a feed must carry",
    "design": "a stated design PUE of {pue:g}: what a feed must carry, not what a year's bill holds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominator:
    """Watts of one scope at a number of agents, with standard (k = 1) uncertainties."""

    id: DenominatorId
    scope: str
    basis: Basis
    source: str
    power_w: float
    certain_w: float | None  # what a certified number is divided by: the highest of the trials, with 2 u of its reading
    u_gain_w: float = 0.0
    u_rest_w: float = 0.0
    sensors: tuple[str, ...] = ()  # models of the devices

    @property
    def expanded_w(self) -> float:
        """k = 2."""
        return 2 * math.hypot(self.u_gain_w, self.u_rest_w)


def denominators(
    system: System, trials: Sequence[Judged], agents: float, holdouts: Sequence[Judged] = ()
) -> tuple[Denominator, ...]:
    """Every scope whose power at so many agents is known from all these trials, or from the system file.

    `holdouts` are the trials that certify a number.
    """
    found: dict[DenominatorId, Denominator] = {}
    for power in mean_powers(trials, agents, holdouts):
        if (name := SCOPE_IDS.get(power.scope)) is not None:
            found[name] = _of_scope(name, power)
    if (provisioned := _provisioned(system)) is not None:
        found["provisioned"] = provisioned
    _with_pue(system, found, "node_or_rack", "facility_measured")
    _with_pue(system, found, "provisioned", "facility_provisioned")
    return tuple(found[name] for name in ORDER if name in found)


def denominator_rows(
    system: System,
    powers: Sequence[Denominator],
    agents: float,
    *,
    interval: tuple[float, float] | None,
    certified: int | None,
    goodput: int | None,
) -> list[dict[str, Any]]:
    """Every ratio that has a denominator, as score.json holds it: the estimate, its interval, what is certified."""
    rows: list[dict[str, Any]] = []
    cpus = all(item.kind == "cpu" for item in system.accelerators)
    # A processor beside accelerators is none of them: the one is not to be counted with the watts of the other.
    count = sum(item.count for item in system.accelerators if cpus or item.kind != "cpu")
    if count:
        rows.append(
            {
                "id": "accelerator_count",
                "per": "processor" if cpus else "accelerator",
                "scope": "all of the deployment, as the system file lists them",
                "basis": "declared",
                "source": "system file",
                "denominator": count,
                "unit": "processors" if cpus else "accelerators",
                "u_gain": 0.0,
                "u_rest": 0.0,
                "sensors": [],
                "agents": agents / count,
                "agents_low": interval[0] / count if interval is not None else None,
                "agents_high": interval[1] / count if interval is not None else None,
                "agents_certified": certified / count if certified is not None else None,
                "agents_goodput": goodput / count if goodput is not None else None,
                "watts_per_agent": None,
                "watts_per_accelerator": None,
            }
        )
    for power in powers:
        low, high = _limits(agents, interval, power)
        per_megawatt = agents_per_megawatt(agents, power.power_w)
        certain = None
        if certified is not None and power.certain_w is not None:
            certain = agents_per_megawatt(certified, power.certain_w)
        counted = engaged_count(system) if power.id == "accelerator_engaged" else 0 if cpus else count
        rows.append(
            {
                "id": power.id,
                "per": "megawatt",
                "scope": power.scope,
                "basis": power.basis,
                "source": power.source,
                "denominator": power.power_w,
                "unit": "W",
                "u_gain": power.u_gain_w,
                "u_rest": power.u_rest_w,
                "sensors": list(power.sensors),
                "agents": per_megawatt,
                "agents_low": low,
                "agents_high": high,
                "agents_certified": certain,
                "agents_goodput": agents_per_megawatt(goodput, power.power_w) if goodput is not None else None,
                "watts_per_agent": power.power_w / agents,
                "watts_per_accelerator": watts_per_accelerator(agents / counted, per_megawatt) if counted else None,
            }
        )
    return rows


def agents_per_megawatt(agents: float, power_w: float) -> float:
    """Agents per megawatt; the same number is agent-hours per megawatt-hour."""
    return 1e6 * agents / power_w


def watts_per_accelerator(agents_per_accelerator: float, per_megawatt: float) -> float:
    """The power of one accelerator that two published ratios imply, in watts: N/A over N/P."""
    return 1e6 * agents_per_accelerator / per_megawatt


def engaged_count(system: System) -> int:
    """Accelerators that serve; idle ones are part of the deployment, but do no work."""
    return sum(item.count for item in system.accelerators if item.role != "idle" and item.kind != "cpu")


def _of_scope(name: DenominatorId, power: MeanPower) -> Denominator:
    return Denominator(
        id=name,
        scope=SCOPES[name],
        basis="measured" if power.measured else "declared",
        source=", ".join(power.sources),
        power_w=power.power_w,
        certain_w=power.certain_w,
        u_gain_w=power.u_gain_w,
        u_rest_w=math.hypot(power.u_rest_w, power.u_scatter_w),
        sensors=power.sensors,
    )


def _provisioned(system: System) -> Denominator | None:
    """None where it is not stated, or refused: `replay.nodes` says why."""
    try:
        charged = charged_nodes(system)
    except ProvisionedFault:
        return None
    if charged is None:
        return None
    words = f"; {charged.words}" if charged.words is not None else ""
    return Denominator(
        id="provisioned",
        scope=SCOPES["provisioned"] + words,
        basis="provisioned",
        source="system_power.json",
        power_w=charged.power_w,
        certain_w=charged.power_w,
    )


def _with_pue(system: System, found: dict[DenominatorId, Denominator], of: DenominatorId, name: DenominatorId) -> None:
    """Adds power × PUE, unless the facility itself was metered."""
    base = found.get(of)
    if base is None or name in found or system.pue is None or system.pue_kind is None:
        return
    stated = PUE_WORDS[system.pue_kind].format(pue=system.pue)
    found[name] = Denominator(
        id=name,
        scope=f"the facility: {base.basis} power of {base.source} times {stated}",
        basis="declared",
        source=base.source,
        power_w=base.power_w * system.pue,
        certain_w=None if base.certain_w is None else base.certain_w * system.pue,
        u_gain_w=base.u_gain_w * system.pue,
        u_rest_w=base.u_rest_w * system.pue,
        sensors=base.sensors,
    )


def _limits(
    agents: float, interval: tuple[float, float] | None, power: Denominator
) -> tuple[float, float] | tuple[None, None]:
    """The interval of agents per megawatt: that of the agents, with the power's expanded (k = 2) uncertainty."""
    if interval is None or interval[0] <= 0:
        return None, None
    found = Estimate(value=agents, low=interval[0], high=interval[1])
    return ratio_limits(found, Estimate.exact(power.power_w / 1e6), power.expanded_w / power.power_w)

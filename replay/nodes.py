"""The whole nodes that a system is charged for, where its power is provisioned: never a part of a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replay.provisioned import FeedFit, Provisioned, ProvisionedFault, nodes_under_feed, read_provisioned
from replay.system import Accelerator, System


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedNodes:
    """What of a system's provisioned power is charged, in watts, and in words where that is not all of it."""

    provisioned: Provisioned
    power_w: float
    nodes: int | None  # None of the flat form, whose sum is of the whole system
    words: str | None


def charged_nodes(system: System) -> ChargedNodes | None:
    """The nodes that serve: all of them, unless the system file says on which ones nothing but idle accelerators are.

    None where the system file names no system_power.json. Raises ProvisionedFault where that one provisions fewer nodes
    than the system has, or yields no total.
    """
    if system.provisioned is None:
        return None
    found = read_provisioned(system.provisioned)
    power_w, nodes, words = found.power_w, found.nodes, None
    charged: Sequence[Accelerator] = system.accelerators
    engaged = {item.node for item in charged if item.role != "idle"}
    idle = any(item.role == "idle" for item in charged)
    if idle and engaged and None not in engaged and len(found.node_sets) == 1:
        charged = [item for item in charged if item.node in engaged]
        power_w, nodes = found.nodes_w(len(engaged)), len(engaged)
        words = f"{nodes} nodes serve and are charged whole, of the {found.nodes} that it provisions"
    machines = nodes if words is not None else len(system.nodes)
    if found.nodes is not None and machines is not None and machines > found.nodes:
        raise ProvisionedFault(
            f"the system file has {machines} nodes and system_power.json provisions {found.nodes}: what it says of the "
            "others is missing"
        )
    accelerators = sum(item.count for item in charged if item.kind != "cpu")
    held = found.accelerators
    if held is None and (group := system.provisioned.get("accelerator")):  # the flat form counts them itself
        count = group.get("count") if group.get("num_accelerator") is None else group["num_accelerator"]
        held = int(count)
    if held is None and found.nodes is not None and (each := _accelerators_per_node(system)) is not None:
        held = found.nodes * each
    if held is not None and held < accelerators:
        raise ProvisionedFault(
            f"the system file lists {accelerators} accelerators and system_power.json provisions nodes for {held}: a "
            "part of a node is provisioned as the whole of it"
        )
    return ChargedNodes(provisioned=found, power_w=power_w, nodes=nodes, words=words)


def provisioned_refusal(system: System) -> str | None:
    """Why a system that names a system_power.json is given no provisioned power; None where it is."""
    try:
        charged_nodes(system)
    except ProvisionedFault as fault:
        return str(fault)
    return None


def system_under_feed(system: System, watts: float) -> FeedFit | None:
    """Whole nodes of this system under a feed, with cooling where a design PUE is stated.

    None where the system file names no system_power.json. Raises ProvisionedFault as `charged_nodes` does, and for a
    feed that is no positive number.
    """
    charged = charged_nodes(system)
    if charged is None:
        return None
    pue = system.pue if system.pue_kind == "design" else None
    return nodes_under_feed(charged.provisioned, watts, pue=pue, nodes=charged.nodes)


def _accelerators_per_node(system: System) -> int | None:
    """By the whole racks of the system file, where all of them agree."""
    known = {
        rack.accelerators // rack.nodes
        for rack in system.racks
        if rack.accelerators is not None and rack.nodes and rack.accelerators % rack.nodes == 0
    }
    return known.pop() if len(known) == 1 else None

"""What a system is built to draw: `system_power.json` of MLPerf Endpoints, read, checked and written again.

The form is Appendix E of the MLPerf Endpoints rules (MLCommons, v1.0 draft, pending ratification), its arithmetic their
section 4.5.2:

    total   = major + overhead × major + published + switches
    major   = Σ nodes × (CPUs + accelerators + scale-up network), and the scale-out adapters where they are counted
    overhead  0.30 of a liquid-cooled system, 0.50 of an air-cooled one
    published = Σ nodes × published node power, or published rack power × nodes / nodes in that rack

Published power holds its own overhead, and switches are charged as drawn. A `declared_provisioned_power` governs over
the sum. Earlier drafts wrote one flat table of groups: these are read too, and written as Appendix E. Where a figure is
missing nothing is filled in: there is then no provisioned power. Power is given to whole nodes only, never to a part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

type PowerMethod = Literal["component_sum", "published_system", "node_scaling"]
type Cooling = Literal["liquid", "air"]

LARGEST_FILE_BYTES = 1_000_000
LARGEST_NUMBER = 1e18
DEEPEST = 64
OVERHEADS: dict[Cooling, float] = {"liquid": 0.30, "air": 0.50}  # section 4.5.2


class ProvisionedFault(ValueError):
    """A system_power.json is not well formed or yields no total; the sentence names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSet:
    """Alike nodes: what all of them are built to draw, in watts, without a share of scale-out switches."""

    name: str
    nodes: int
    method: PowerMethod
    power_w: float
    accelerators_per_node: int | None  # None where the file does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """A system's provisioned power, in watts, and the parts that it is a sum of."""

    form: Literal["appendix E", "groups"]
    name: str | None
    cooling: Cooling | None  # None where no part of the sum needs it
    overhead_fraction: float | None
    node_sets: tuple[NodeSet, ...]  # empty in the flat form, unless it scales a rack
    major_w: float
    other_w: float
    published_w: float
    switches_w: float
    declared_w: float | None  # governs over the sum
    gaps: tuple[str, ...]  # places beneath a declared figure that say nothing: the sum is then less than the system
    estimated: tuple[str, ...]  # figures that are MLCommons' own defaults and reach the total
    notes: tuple[str, ...]

    @property
    def sum_w(self) -> float:
        """The four terms."""
        return self.major_w + self.other_w + self.published_w + self.switches_w

    @property
    def power_w(self) -> float:
        """What the system is charged."""
        return self.sum_w if self.declared_w is None else self.declared_w

    @property
    def nodes(self) -> int | None:
        return sum(item.nodes for item in self.node_sets) or None

    @property
    def accelerators(self) -> int | None:
        """All that its nodes hold; None where any set of nodes does not say."""
        each = [item.accelerators_per_node for item in self.node_sets]
        if not each or None in each:
            return None
        return sum(item.nodes * (item.accelerators_per_node or 0) for item in self.node_sets)

    def nodes_w(self, nodes: int) -> float:
        """Power of so many of its nodes, of one kind only: P × Y/N (section 4.5.3). Raises ProvisionedFault."""
        if len(self.node_sets) != 1:
            raise ProvisionedFault("power of part of the nodes is known of alike nodes only: there are several sets")
        of = self.node_sets[0].nodes
        if not 1 <= nodes <= of:
            raise ProvisionedFault(f"{nodes} nodes are engaged and {of} are provisioned")
        return self.power_w * nodes / of


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedFit:
    """How much of a feed a whole number of nodes fills. Of unlike nodes the unit is the whole system."""

    feed_w: float
    unit: Literal["node", "system"]
    unit_w: float  # at the feed: with the PUE, where one was given
    units: int
    used_w: float
    systems: float  # units as a share of the system that was scored: times its agents, that is what the feed holds
    accelerators: int | None
    pue: float | None


def nodes_under_feed(
    provisioned: Provisioned, watts: float, *, pue: float | None = None, nodes: int | None = None
) -> FeedFit:
    """Whole nodes whose provisioned power fits under so many watts; scale-out switches are shared out by nodes.

    A feed carries cooling too, unless it feeds the room's racks alone: `pue` is the design value, or None for the
    latter. `nodes` is how many of the provisioned nodes were scored, by default all. Raises ProvisionedFault for a feed
    that is not a positive number.
    """
    if not (math.isfinite(watts) and watts > 0):
        raise ProvisionedFault(f"a feed is a number of watts above 0, not {watts!r}")
    alike = provisioned.node_sets[0] if len(provisioned.node_sets) == 1 else None
    of = alike.nodes if alike is not None else 1
    unit_w = provisioned.power_w / of * (pue or 1.0)
    units = math.floor(watts / unit_w * (1 + 1e-12))  # a feed of exactly so many is not lost to rounding
    return FeedFit(
        feed_w=watts,
        unit="node" if alike is not None else "system",
        unit_w=unit_w,
        units=units,
        used_w=units * unit_w,
        systems=units / (nodes if alike is not None and nodes is not None else of),
        accelerators=None if provisioned.accelerators is None else provisioned.accelerators // of * units,
        pue=pue,
    )


def read_provisioned(data: Any, place: str = "system_power.json") -> Provisioned:
    """Reads either form; raises ProvisionedFault naming `place` and the key."""
    from replay import provisioned_form  # it builds what is declared here

    return provisioned_form.read(data, place)


def system_power_json(data: Mapping[str, Any], place: str, *, name: str) -> dict[str, Any]:
    """The same system in the form of Appendix E, with `computed`; `name` is used where the file gives none.

    Raises ProvisionedFault where the flat form lacks what Appendix E asks of every figure: a public source.
    """
    from replay import provisioned_form

    return provisioned_form.write(data, place, name=name)


def load_json(path: Path) -> dict[str, Any]:
    """What a system_power.json holds, not yet checked; raises ProvisionedFault, or OSError where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    if len(content) > LARGEST_FILE_BYTES:
        raise ProvisionedFault(f"{path} is larger than {LARGEST_FILE_BYTES:,} bytes")
    try:
        found = json.loads(content, parse_constant=_no_number)
        _check_plain(found)
    except (ValueError, RecursionError) as error:
        raise ProvisionedFault(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise ProvisionedFault(f"{path} must hold a JSON object")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _check_plain(value: object, depth: int = 0) -> None:
    """Raises ValueError for what cannot be kept in a run's files: too deep, a huge number, half a character."""
    if depth > DEEPEST:
        raise ValueError(f"it is more than {DEEPEST} deep")
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError is a ValueError
    elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise ValueError("a number in it is too large")
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key)
            _check_plain(item, depth + 1)


def provisioned_lines(found: Provisioned) -> list[str]:
    """A provisioned power and its parts as text."""
    by = "as declared" if found.declared_w is not None else "by its sum"
    lines = [f"{found.power_w / 1000:,.2f} kW provisioned, {by} ({found.form})"]
    if found.declared_w is None or not found.gaps:
        lines.append(
            f"  {found.major_w:,.0f} W of major components + {found.other_w:,.0f} W of overhead"
            + (
                f" ({found.overhead_fraction:.0%}, {found.cooling}-cooled)"
                if found.overhead_fraction is not None
                else ""
            )
            + f" + {found.published_w:,.0f} W published + {found.switches_w:,.0f} W of scale-out switches"
            + f" = {found.sum_w:,.0f} W"
        )
    for item in found.node_sets:
        each = f", {item.accelerators_per_node} accelerators each" if item.accelerators_per_node is not None else ""
        lines.append(
            f"  {item.name}: {item.nodes} node{'s' * (item.nodes > 1)}{each}, {item.power_w:,.0f} W ({item.method})"
        )
    lines += [f"  MLCommons' own estimate: {place}" for place in found.estimated]
    lines += [f"  {place} says nothing: the declared power stands for it" for place in found.gaps]
    lines += [f"  {note}" for note in found.notes]
    return lines

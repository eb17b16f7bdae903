"""Reads and writes `system_power.json`, in the form of Appendix E and in the flat form of earlier drafts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from replay.provisioned import OVERHEADS, Cooling, NodeSet, PowerMethod, Provisioned, ProvisionedFault

SOURCE_TYPES = ("vendor_spec", "publication", "public_statement", "mlc_default")  # E.1
DEFAULTS = ("D.1", "D.2", "D.3", "D.4")  # subsections of Appendix D, MLCommons' own estimates
METHODS: dict[str, PowerMethod] = {name: name for name in get_args(PowerMethod.__value__)}
CABLINGS = ("passive", "active_optical")
SCALE_UP_METHODS = ("declared_tdp", "bandwidth_estimate", "none")
MOST_SETS, MOST_COUNT, MOST_W = 1000, 10_000_000, 1e12  # more is no system, but a file that is wrong
AGREE_W, AGREE_KW = 0.5, 0.005  # E.7: a `computed` that is further off than its rounding is refused
BITS_PER_BYTE = 8  # E.6.2 counts a bandwidth in terabytes a second, whatever the name of its key says


@dataclass(slots=True)
class _Sum:
    """What the parts of a file come to while it is read."""

    major_w: float = 0.0
    published_w: float = 0.0
    switches_w: float = 0.0
    governed: bool = False  # by a declared figure: what is missing beneath it is no fault
    gaps: list[str] = field(default_factory=list)
    estimated: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """One table of the file, and where it stands: every fault names it."""

    table: Mapping[str, Any]
    name: str

    def fault(self, key: str, why: str) -> ProvisionedFault:
        return ProvisionedFault(f"{self.at(key)} {why}")

    def at(self, key: str) -> str:
        return f"{self.name}{'' if self.name.endswith(': ') else '.'}{key}"

    def has(self, key: str) -> bool:
        return self.table.get(key) is not None

    def number(self, key: str) -> float:
        """At least 0; a fault where it is missing."""
        value = self.table.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_W:
            raise self.fault(key, f"must be a number of at least 0, not {_said(value)}")
        return float(value)

    def whole(self, key: str, least: int = 0) -> int:
        value = self.table.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= MOST_COUNT
            or value % 1
        ):
            raise self.fault(key, f"must be a whole number of at least {least}, not {_said(value)}")
        return int(value)

    def flag(self, key: str) -> bool:
        value = self.table.get(key)
        if not isinstance(value, bool):
            raise self.fault(key, f"must be true or false, not {_said(value)}")
        return value

    def text(self, key: str) -> str:
        value = self.table.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(key, f"must be a text, not {_said(value)}")
        return value

    def word(self, key: str, words: tuple[str, ...]) -> str:
        value = self.table.get(key)
        if value not in words:
            raise self.fault(key, f"must be one of {', '.join(words)}, not {_said(value)}")
        return str(value)

    def inside(self, key: str) -> _Place:
        value = self.table.get(key)
        if not isinstance(value, dict):
            raise self.fault(key, f"must be an object, not {_said(value)}")
        return _Place(value, self.at(key))

    def each(self, key: str) -> list[_Place]:
        value = self.table.get(key)
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_SETS:
            raise self.fault(key, f"must be a list of 1 to {MOST_SETS:,} objects, not {_said(value)}")
        places = [_Place(item, f"{self.at(key)}[{number}]") for number, item in enumerate(value)]
        for place in places:
            if not isinstance(place.table, dict):
                raise ProvisionedFault(f"{place.name} must be an object, not {_said(place.table)}")
        return places


def _said(value: Any) -> str:
    text = "nothing" if value is None else f"{value!r}"
    return text if len(text) <= 60 else f"{text[:57]}…"


def read(data: Any, place: str) -> Provisioned:
    """Either form; raises ProvisionedFault naming `place` and the key."""
    if not isinstance(data, dict):
        raise ProvisionedFault(f"{place} must hold a JSON object")
    root = _Place(data, f"{place}: ")
    found = _read_sets(root) if "node_sets" in data else _read_groups(root)
    if not (math.isfinite(found.power_w) and found.power_w > 0):
        raise ProvisionedFault(f"{place} yields a total of {found.power_w:g} W: a system that serves draws more")
    _check_computed(root, found)
    return found


# -- Appendix E


def _read_sets(root: _Place) -> Provisioned:
    root.text("system_desc_id")
    cooling: Cooling = "liquid" if root.word("cooling", tuple(OVERHEADS)) == "liquid" else "air"
    places = root.each("node_sets")
    total = _Sum(governed=root.has("declared_provisioned_power"))
    numbers = [place.whole("node_set_id") for place in places]
    if len(set(numbers)) < len(numbers):
        raise root.fault("node_sets", "must have unlike node_set_id")
    parts = [_node_set(place, total) for place in places]
    fabric_w = _scale_out(root.inside("scale_out"), places, total)
    majors = [major + nics for (_, major, _), nics in zip(parts, fabric_w, strict=True)]
    overhead = OVERHEADS[cooling]
    declared_w = _sourced(root, "declared_provisioned_power", total) if total.governed else None
    if total.governed:  # E.1: what stands beneath it is a cross-check, and its estimates are not the result's
        only = root.inside("declared_provisioned_power")
        total.estimated = ["declared_provisioned_power"] if only.table["source_type"] == "mlc_default" else []
    return Provisioned(
        form="appendix E",
        name=root.text("system_desc_id"),
        cooling=cooling,
        overhead_fraction=overhead,
        node_sets=tuple(
            NodeSet(
                name=f"node set {number}",
                nodes=place.whole("nodes_provisioned", 1),
                method=method,
                power_w=(1 + overhead) * major + published,
                accelerators_per_node=_accelerators(place),
            )
            for place, number, (method, _, published), major in zip(places, numbers, parts, majors, strict=True)
        ),
        major_w=math.fsum(majors),
        other_w=overhead * math.fsum(majors),
        published_w=math.fsum(published for _, _, published in parts),
        switches_w=total.switches_w,
        declared_w=declared_w,
        gaps=tuple(total.gaps),
        estimated=tuple(total.estimated),
        notes=tuple(total.notes),
    )


def _node_set(place: _Place, total: _Sum) -> tuple[PowerMethod, float, float]:
    """How its power is known, and the watts of its components and of its published power, for all its nodes."""
    nodes = place.whole("nodes_provisioned", 1)
    place.whole("system_node_ensemble_id")
    method = METHODS[place.word("power_method", tuple(METHODS))]
    if method == "component_sum":
        return method, nodes * _components(place.inside("components"), total), 0.0
    published_w = _sourced(place, "published_power", total)
    if method == "published_system":
        return method, 0.0, nodes * published_w
    of = place.whole("nodes_in_published_rack", 1)
    if of <= nodes:
        raise place.fault("nodes_in_published_rack", f"must be more than the {nodes} nodes that are provisioned")
    return method, 0.0, published_w * nodes / of


def _components(place: _Place, total: _Sum) -> float:
    """Watts of one node's major components."""
    scale_up_w = _scale_up(place.inside("scale_up_network"), total)
    if place.has("combined_cpu_accelerator"):
        for key in ("cpu", "accelerator"):
            if place.has(key) and place.inside(key).has("tdp_per_unit"):
                raise place.fault(key, "must not give tdp_per_unit beside combined_cpu_accelerator")
        return _sourced(place, "combined_cpu_accelerator", total) + scale_up_w
    watts = [
        part.whole("count_per_node") * _sourced(part, "tdp_per_unit", total)
        for part in (place.inside("cpu"), place.inside("accelerator"))
    ]
    return math.fsum((*watts, scale_up_w))


def _scale_up(place: _Place, total: _Sum) -> float:
    method = place.word("method", SCALE_UP_METHODS)
    if method == "none":
        return 0.0
    if method == "declared_tdp":
        return place.whole("switch_count") * _sourced(place, "tdp_per_switch", total)
    picojoules = _sourced(place, "energy_per_bit_pj", total, unit="value_pj")
    return place.number("aggregate_bandwidth_tbps") * BITS_PER_BYTE * picojoules  # 10¹² bit/s × 10⁻¹² J/bit


def _scale_out(place: _Place, sets: list[_Place], total: _Sum) -> list[float]:
    """Adds the switches, and returns the watts of the adapters of each set, which are major components."""
    nodes = [item.whole("nodes_provisioned", 1) for item in sets]
    by_formula = [item.table["power_method"] == "component_sum" for item in sets]
    if not place.flag("present"):
        unjoined = all(
            formula and item.inside("components").inside("scale_up_network").table["method"] == "none"
            for item, formula in zip(sets, by_formula, strict=True)
        )
        if sum(nodes) > 1 and unjoined:
            raise place.fault("present", f"must be true: nothing else joins {sum(nodes)} nodes")
        if sum(nodes) > 1:
            total.notes.append(f"{sum(nodes)} nodes and no scale-out network: nothing is charged for one")
        return [0.0] * len(sets)
    place.word("cabling", CABLINGS)
    nics = place.inside("nics")
    each, counted = nics.whole("count_per_node"), nics.flag("counted")
    evidenced = nics.has("excluded_from_published_power")
    if counted and not any(by_formula) and not evidenced:
        raise nics.fault(
            "counted",
            "must be false: published power holds the adapters, unless excluded_from_published_power says not",
        )
    if not counted and any(by_formula):
        raise nics.fault("counted", "must be true: the sum of components has no other term for the adapters")
    needed = place.number("required_bandwidth_tbps")
    from_nics = sum(nodes) * each * nics.number("bandwidth_per_nic_gbps") / 1000
    if needed < from_nics - 1e-6:
        raise place.fault("required_bandwidth_tbps", f"must be at least the adapters' sum, {from_nics:g}")
    offered = 0.0
    for switch in place.each("switches"):
        switch.text("model")
        count = switch.whole("count", 1)
        total.switches_w += count * _sourced(switch, "power_per_switch", total)
        offered += count * switch.number("bandwidth_tbps")
    if offered < needed - 1e-6:
        raise place.fault("switches", f"carry {offered:g} Tb/s and {needed:g} are required")
    if not counted:
        return [0.0] * len(sets)
    per_nic_w = _sourced(nics, "tdp_per_nic", total)
    return [
        count * each * per_nic_w if formula or evidenced else 0.0
        for count, formula in zip(nodes, by_formula, strict=True)
    ]


def _sourced(place: _Place, key: str, total: _Sum, *, unit: str | None = None) -> float:
    """A figure with its public source (E.1), in watts, or in picojoules where that is its unit."""
    if not place.has(key):
        if total.governed:
            total.gaps.append(place.at(key))
            return 0.0
        raise place.fault(key, "is missing; nothing is filled in: give the value, its source_type and its source")
    value = place.inside(key)
    units = ("value_w", "value_kw", "value_pj")
    given = [name for name in units if value.has(name)]
    wanted = (unit,) if unit is not None else units[:2]
    if len(given) != 1 or given[0] not in wanted:
        raise ProvisionedFault(f"{value.name} must give {' or '.join(wanted)}, and one value only")
    kind, source = value.word("source_type", SOURCE_TYPES), value.text("source")
    if kind == "mlc_default":
        value.word("source", DEFAULTS)
        total.estimated.append(f"{value.name} ({source})")
    elif not source.startswith(("https://", "http://")):
        raise value.fault("source", f"must be the URL of a public {kind}, not {_said(source)}")
    return value.number(given[0]) * (1000 if given[0] == "value_kw" else 1)


def _accelerators(place: _Place) -> int | None:
    if not place.has("components"):
        return None
    components = place.inside("components")
    return components.inside("accelerator").whole("count_per_node") if components.has("accelerator") else None


def _check_computed(root: _Place, found: Provisioned) -> None:
    """Raises where a `computed` that the file brings differs from the sum (E.7): it is not corrected in silence."""
    if root.has("computed") and not found.gaps:
        stated = root.inside("computed")
        for key, value in _computed(found).items():
            tolerance = 1e-9 if key == "overhead_fraction" else AGREE_W
            if stated.has(key) and value is not None and abs(stated.number(key) - value) > tolerance:
                raise stated.fault(key, f"is {stated.number(key):g}, and the sum says {value:g}")
    if (
        root.has("provisioned_power_kw")
        and abs(root.number("provisioned_power_kw") - found.power_w / 1000) > 2 * AGREE_KW
    ):
        raise root.fault(
            "provisioned_power_kw",
            f"is {root.number('provisioned_power_kw'):g}, and the sum says {found.power_w / 1000:.2f}",
        )


def _computed(found: Provisioned) -> dict[str, float | None]:
    return {
        "major_components_w": found.major_w,
        "overhead_fraction": found.overhead_fraction,
        "other_components_w": found.other_w,
        "published_node_power_w": found.published_w,
        "scale_out_switch_power_w": found.switches_w,
        "total_system_power_w": found.sum_w,
    }


# -- the flat form of earlier drafts

GROUPS = {  # count and power of one, as section 4.5.2 named them; any group may say count and tdp_per_unit
    "cpu": ("num_cpu", "tdp_per_cpu"),
    "accelerator": ("num_accelerator", "tdp_per_accelerator"),
    "compute": ("count", "tdp_per_unit"),  # both in one figure, instead of these
    "scale_up_network": ("num_switches", "tdp_per_switch"),
    "scale_out_network": ("num_switches", "tdp_per_switch"),
}
RACK = ("rack_power_w", "rack_nodes", "submitted_nodes")


@dataclass(frozen=True, slots=True)
class _Group:
    count: int
    each_w: float
    link: str | None


def _read_groups(root: _Place) -> Provisioned:
    known = {*GROUPS, *RACK, "provisioned_power_w", "overhead_fraction", "cooling"}
    if not known & root.table.keys():
        raise ProvisionedFault(
            f"{root.name}no node_sets (Appendix E), and none of the earlier {', '.join(sorted(known - {'cooling'}))}"
        )
    groups = dict(_groups(root))
    notes = []
    if "scale_out_network" in groups:
        notes.append("the scale-out network is part of the overhead in this form: it is not added")
    declared_w = root.number("provisioned_power_w") if root.has("provisioned_power_w") else None
    node_sets: tuple[NodeSet, ...] = ()
    major_w = published_w = 0.0
    cooling, overhead = _overhead(root)
    if any(root.has(key) for key in RACK):
        rack_w, of, nodes = root.number(RACK[0]), root.whole(RACK[1], 1), root.whole(RACK[2], 1)
        if nodes > of:
            raise root.fault(RACK[2], f"is {nodes}, more than the {of} nodes of the rack")
        published_w = rack_w * nodes / of
        node_sets = (_rack_set(nodes, of, published_w),)
    else:
        charged = [name for name in ("compute", "cpu", "accelerator") if name in groups]
        if declared_w is None and "compute" not in groups and not {"cpu", "accelerator"} <= groups.keys():
            raise ProvisionedFault(f"{root.name}cpu and accelerator are needed, or compute: nothing is filled in")
        if "compute" in groups:
            charged = ["compute"]
        major_w = math.fsum(
            groups[name].count * groups[name].each_w for name in (*charged, "scale_up_network") if name in groups
        )
        if overhead is None and declared_w is None:
            raise root.fault(
                "overhead_fraction", "is missing: 0.30 of a liquid-cooled system, 0.50 of an air-cooled one"
            )
    return Provisioned(
        form="groups",
        name=None,
        cooling=cooling,
        overhead_fraction=overhead,
        node_sets=node_sets,
        major_w=major_w,
        other_w=(overhead or 0.0) * major_w,
        published_w=published_w,
        switches_w=0.0,
        declared_w=declared_w,
        gaps=(),
        estimated=(),
        notes=tuple(notes),
    )


def _rack_set(nodes: int, of: int, power_w: float) -> NodeSet:
    method: PowerMethod = "published_system" if nodes == of else "node_scaling"
    return NodeSet(name="rack", nodes=nodes, method=method, power_w=power_w, accelerators_per_node=None)


def _groups(root: _Place) -> Iterator[tuple[str, _Group]]:
    for name, (count, each) in GROUPS.items():
        if not root.has(name):
            continue
        place = root.inside(name)
        count = count if place.has(count) else "count"
        each = each if place.has(each) else "tdp_per_unit"
        link = next((key for key in ("link", "public_specification") if place.has(key)), None)
        yield name, _Group(place.whole(count), place.number(each), place.text(link) if link is not None else None)


def _overhead(root: _Place) -> tuple[Cooling | None, float | None]:
    cooling: Cooling | None = None
    if root.has("cooling"):
        cooling = "liquid" if root.word("cooling", tuple(OVERHEADS)) == "liquid" else "air"
    if not root.has("overhead_fraction"):
        return cooling, None if cooling is None else OVERHEADS[cooling]
    stated = root.number("overhead_fraction")
    allowed = {value: name for name, value in OVERHEADS.items()}
    if stated not in allowed or cooling not in (None, allowed[stated]):
        raise root.fault("overhead_fraction", f"must be 0.30 (liquid) or 0.50 (air), as cooling says, not {stated:g}")
    return allowed[stated], stated


# -- writing


def write(data: Mapping[str, Any], place: str, *, name: str) -> dict[str, Any]:
    """Appendix E with `computed`; raises ProvisionedFault where the flat form lacks a source."""
    found = read(data, place)
    written = (
        copy.deepcopy(dict(data)) if found.form == "appendix E" else _converted(_Place(data, f"{place}: "), found, name)
    )
    found = read(written, place)
    written.pop("computed", None)
    if not found.gaps:
        written["computed"] = _computed(found)
    written["provisioned_power_kw"] = round(found.power_w / 1000, 2)  # rounded once, and only here
    written["mlc_estimated_power"] = bool(found.estimated)
    return written


def _converted(root: _Place, found: Provisioned, name: str) -> dict[str, Any]:
    """The flat form as Appendix E. It does not say how many nodes its groups are of: they become one."""
    if root.has("provisioned_power_w"):
        raise root.fault(
            "provisioned_power_w",
            "has no source in this form: write declared_provisioned_power with source_type and source (Appendix E)",
        )
    if found.node_sets:
        raise root.fault(
            RACK[0], "has no source in this form: write node_sets with published_power and its source (Appendix E)"
        )
    groups = dict(_groups(root))
    if "compute" in groups:
        group = groups["compute"]
        parts: dict[str, Any] = {
            "combined_cpu_accelerator": _vendor(root, "compute", group, group.count * group.each_w)
        }
    else:
        parts = {
            key: {
                "count_per_node": groups[key].count,
                "tdp_per_unit": _vendor(root, key, groups[key], groups[key].each_w),
            }
            for key in ("cpu", "accelerator")
        }
    scale_up = groups.get("scale_up_network")
    parts["scale_up_network"] = (
        {"method": "none"}
        if scale_up is None or scale_up.count == 0
        else {
            "method": "declared_tdp",
            "switch_count": scale_up.count,
            "tdp_per_switch": _vendor(root, "scale_up_network", scale_up, scale_up.each_w),
        }
    )
    return {
        "system_desc_id": name,
        "cooling": found.cooling,
        "node_sets": [
            {
                "node_set_id": 0,
                "system_node_ensemble_id": 0,
                "nodes_provisioned": 1,
                "power_method": "component_sum",
                "components": parts,
            }
        ],
        "scale_out": {"present": False},
    }


def _vendor(root: _Place, key: str, group: _Group, watts: float) -> dict[str, Any]:
    if group.link is None or not group.link.startswith(("https://", "http://")):
        raise root.fault(f"{key}.link", "must be the URL of a public specification: Appendix E asks for one")
    return {"value_w": watts, "source_type": "vendor_spec", "source": group.link}

"""Which power lies inside which: the tree of domains, where each device stands in it, and the sets that may be summed.

A total is a sum over an antichain: no device of it contains another. A set names what is expected and not shown, and
what overlaps, and is then no total at all: missing data never improves a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from replay.power.source import PowerDevice, PowerDomain, PowerFault, SourceInfo
from replay.system import Accelerator, Meter, System

type Scope = Literal[
    "accelerator",
    "accelerator_engaged",
    "module",
    "cpu_package",
    "dram",
    "hbm",
    "nic",
    "switch",
    "node_or_rack",
    "facility",
    "declared",
]
"""What a total charges. `accelerator` holds idle ones too; `accelerator_engaged` leaves them out."""

SCOPES: tuple[Scope, ...] = get_args(Scope.__value__)

_INSIDE: Mapping[PowerDomain, PowerDomain] = {
    "rack": "facility",
    "node": "rack",
    "cpu_package": "node",
    "dram": "node",
    "module": "node",
    "nic": "node",
    "switch": "node",
    "accelerator": "module",
    "hbm": "accelerator",
}
INSIDE: Mapping[Scope, tuple[Scope, ...]] = {
    "module": ("accelerator",),
    "node_or_rack": ("module", "accelerator", "cpu_package"),
    "facility": ("node_or_rack", "module", "accelerator", "cpu_package"),
}
"""Totals that are part of a total, each of the whole system: the outer one is never less than one inside it."""

_SCOPE_OF: Mapping[PowerDomain, Scope] = {"node": "node_or_rack", "rack": "node_or_rack"}
_MODULE, _MEMORY = "/module", "/memory"  # how a GPU's other readings are named: <UUID>/module


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeSet:
    """The devices that a total of one scope adds, and all that keeps it from being one."""

    scope: Scope
    devices: tuple[str, ...]  # an antichain, unless `overlaps` names a pair
    sources: tuple[str, ...]  # names of the sources that show them
    missing: tuple[str, ...]  # expected, and shown by no source
    overlaps: tuple[tuple[str, str], ...]  # the first contains or equals the second
    notes: tuple[str, ...] = ()  # what a reader should know of the set

    @property
    def whole(self) -> bool:
        return bool(self.devices) and not self.missing and not self.overlaps


def contains(outer: PowerDomain, inner: PowerDomain) -> bool:
    """Whether the watts of a domain are part of those of another, by the tree; a domain contains itself."""
    at: PowerDomain | None = inner
    while at is not None and at != outer:
        at = _INSIDE.get(at)
    return at is not None


def overlaps(devices: Iterable[PowerDevice]) -> tuple[tuple[str, str], ...]:
    """Pairs of devices of which the first stands where the second does, or contains it, by their places."""
    at: dict[tuple[str, ...], str] = {}
    found = []
    placed = sorted(((device.place or (device.uid,)), device.uid) for device in devices)
    for place, uid in placed:  # sorted: what contains comes before what it contains
        outer = next((at[place[:depth]] for depth in range(1, len(place) + 1) if place[:depth] in at), None)
        if outer is not None:
            found.append((outer, uid))
        else:
            at[place] = uid
    return tuple(found)


def overlap_sentence(found: ScopeSet) -> str:
    """Why a scope's devices cannot be added, and what to do; naming both of the first pair."""
    first, second = found.overlaps[0]
    if found.scope == "module":
        remedy = "give each accelerator its module in the system file"
    else:
        remedy = "leave one of them out, or say in [[meters]] what each covers"
    return f"{first} and {second} overlap: the same watts would be charged twice; {remedy}"


def lack_sentences(found: ScopeSet) -> tuple[str, ...]:
    """What keeps a scope from a total, or changes what it means, a sentence each."""
    words = found.scope.replace("_", " ")
    said = []
    if found.overlaps:
        said.append(f"no {words} power: {overlap_sentence(found)}")
    if found.missing:
        more = f" and {len(found.missing) - 3} more" if len(found.missing) > 3 else ""
        said.append(f"no {words} power: no source shows {', '.join(found.missing[:3])}{more}")
    return (*said, *(f"{words} power: {note}" for note in found.notes))


def place_devices(infos: Sequence[SourceInfo], system: System) -> tuple[SourceInfo, ...]:
    """The sources with each device where the system file says that it stands; raises PowerFault for one shown twice.

    A device of [[meters]] takes the domain that it covers and the accuracy that is stated.
    """
    shown: dict[str, str] = {}
    for info in infos:
        for device in info.devices:
            if device.uid in shown:
                raise PowerFault(
                    f"the device {device.uid} is shown by {shown[device.uid]} and by {_name(info)}: "
                    "it would be charged twice; leave one source out, or narrow a metrics page with match={…}"
                )
            shown[device.uid] = _name(info)
    map_ = _Map(system, facility=_has_facility(infos, system))
    return tuple(replace(info, devices=tuple(map(map_.placed, info.devices))) for info in infos)


def scope_devices(infos: Sequence[SourceInfo], system: System) -> dict[Scope, ScopeSet]:
    """The set of each scope that the placed sources show a device of, or that the system file has meters for."""
    by_domain: dict[Scope, list[PowerDevice]] = {}
    source_of: dict[str, str] = {}
    for info in infos:
        for device in info.devices:
            by_domain.setdefault(_scope_of(device.domain), []).append(device)
            source_of[device.uid] = _name(info)
    for meter in system.meters:
        by_domain.setdefault(_metered_scope(meter), [])
    found = {}
    for scope in SCOPES:
        if scope == "accelerator_engaged":
            shown = by_domain.get("accelerator")
            if not shown or not any(item.role == "idle" for item in _accelerators(system)):
                continue
            part = _engaged(shown, system)
        elif scope in by_domain:
            part = _PARTS.get(scope, _all_shown)(by_domain[scope], system)
            absent = [uid for uid in _metered(scope, system) if uid not in source_of]
            part = replace(part, missing=tuple(dict.fromkeys((*part.missing, *absent))))
        else:
            continue
        found[scope] = ScopeSet(
            scope=scope,
            devices=tuple(device.uid for device in part.devices),
            sources=tuple(dict.fromkeys(source_of[device.uid] for device in part.devices)),
            missing=part.missing,
            overlaps=part.overlaps or overlaps(part.devices),
            notes=part.notes,
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What a scope charges of the devices of its domains."""

    devices: tuple[PowerDevice, ...]
    missing: tuple[str, ...] = ()
    overlaps: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class _Map:
    """Where things stand, by the system file, and by what a source says where the file is silent."""

    def __init__(self, system: System, *, facility: bool) -> None:
        self._facility = ("facility",) if facility else ()
        self._rack_of = {node.name: node.rack for node in system.nodes}
        self._accelerators = {item.uuid: item for item in system.accelerators if item.uuid is not None}
        self._meters = {uid: meter for meter in system.meters for uid in meter.device}
        self._node_of_module = {item.module: item.node for item in system.accelerators if item.module is not None}

    def placed(self, device: PowerDevice) -> PowerDevice:
        """The device with its whole place; of a metered one also domain and accuracy."""
        meter = self._meters.get(device.uid)
        if meter is not None:
            return self._metered(device, meter)
        owner = device.uid.removesuffix(_MODULE if device.domain == "module" else _MEMORY)
        accelerator = self._accelerators.get(owner)
        module = accelerator.module if accelerator is not None else None
        module = module or _named(device.place, "module")
        node = self._node(device, accelerator)
        if device.domain == "facility":
            return replace(device, place=("facility",))
        if device.domain == "declared":  # stands nowhere: it is no reading of anything
            return replace(device, place=(device.uid,))
        if device.domain == "rack":
            rack = _named(device.place, "rack") or device.uid
            return replace(device, place=(*self._facility, f"rack {rack}"))
        path = self._path(node or (device.uid if device.domain == "node" else None), device)
        if device.domain == "node":
            return replace(device, place=path)
        if device.domain in ("module", "accelerator", "hbm") and module is not None:
            path = (*path, f"module {module}")
        elif device.domain == "module":
            path = (*path, f"module of {owner}")
        if device.domain in ("accelerator", "hbm"):
            path = (*path, f"accelerator {owner}")
        if device.domain == "hbm":
            path = (*path, "hbm")
        elif device.domain not in ("module", "accelerator"):
            path = (*path, f"{device.domain} {device.uid}")
        return replace(device, place=path)

    def _metered(self, device: PowerDevice, meter: Meter) -> PowerDevice:
        path: tuple[str, ...]
        if meter.domain == "facility":
            path = ("facility",)
        elif meter.domain == "rack":
            path = (*self._facility, meter.covers)
        elif meter.domain == "node":
            path = self._path(meter.name, device)
        elif meter.domain == "accelerator":
            accelerator = self._accelerators.get(meter.name)
            path = self._path(self._node(device, accelerator), device)
            if accelerator is not None and accelerator.module is not None:
                path = (*path, f"module {accelerator.module}")
            path = (*path, meter.covers)
        else:
            path = (*self._path(self._node_of_module.get(meter.name) or self._node(device, None), device), meter.covers)
        if len(meter.device) > 1:
            path = (*path, f"feed {device.uid}")
        gain = device.u_gain
        if meter.u_percent is not None:
            gain = meter.u_percent / 100 / 3**0.5  # ± a limit: a rectangular distribution (JCGM 100:2008, 4.3.7)
        evidence = meter.evidence or ("stated in the system file" if meter.u_percent is not None else device.u_evidence)
        domain: PowerDomain = meter.domain  # type: ignore[assignment]  # one of COVERS, which are domains
        return replace(device, domain=domain, place=path, u_gain=gain, u_evidence=evidence)

    def _node(self, device: PowerDevice, accelerator: Accelerator | None) -> str | None:
        if accelerator is not None and accelerator.node is not None:
            return accelerator.node
        for name in (device.host, _named(device.place, "node"), device.uid, device.name):
            if name is None:
                continue
            for node in self._rack_of:
                if name == node or name.partition(".")[0] == node:
                    return node
        if len(self._rack_of) == 1:
            return next(iter(self._rack_of))
        return device.host or _named(device.place, "node")

    def _path(self, node: str | None, device: PowerDevice) -> tuple[str, ...]:
        rack = self._rack_of.get(node) if node is not None else None
        rack = rack or _named(device.place, "rack")
        return (*self._facility, *([f"rack {rack}"] if rack else []), *([f"node {node}"] if node else []))


def _named(place: Sequence[str], domain: str) -> str | None:
    """The name behind a domain's word in a place."""
    prefix = f"{domain} "
    return next((word.removeprefix(prefix) for word in place if word.startswith(prefix)), None)


def _name(info: SourceInfo) -> str:
    return info.name or info.kind


def _scope_of(domain: PowerDomain) -> Scope:
    return _SCOPE_OF.get(domain, domain)  # type: ignore[arg-type]  # every other domain is a scope


def _metered_scope(meter: Meter) -> Scope:
    return _scope_of(meter.domain)  # type: ignore[arg-type]  # one of COVERS, which are domains


def _metered(scope: Scope, system: System) -> Iterator[str]:
    """The metered devices that the system file expects in a scope."""
    for meter in system.meters:
        if _metered_scope(meter) == scope:
            yield from meter.device


def _has_facility(infos: Sequence[SourceInfo], system: System) -> bool:
    metered = any(meter.domain == "facility" for meter in system.meters)
    return metered or any(device.domain == "facility" for info in infos for device in info.devices)


def _accelerators(system: System) -> tuple[Accelerator, ...]:
    return tuple(item for item in system.accelerators if item.kind != "cpu")


def _uuids(accelerators: Sequence[Accelerator]) -> tuple[str, ...] | None:
    """The names of all of them; None where one has none."""
    uuids = tuple(item.uuid for item in accelerators if item.uuid is not None)
    return uuids if len(uuids) == len(accelerators) else None


def _all_shown(shown: Sequence[PowerDevice], system: System) -> _Part:  # noqa: ARG001 - as its neighbours
    return _Part(devices=tuple(shown))


def _accelerator_part(shown: Sequence[PowerDevice], system: System) -> _Part:
    expected = _accelerators(system)
    uuids = _uuids(expected)
    if uuids:
        return _charged(shown, uuids)
    if not expected:
        return _Part(devices=tuple(shown), notes=("the system file lists no accelerator: all shown are charged",))
    count = sum(item.count for item in expected)
    if len(shown) < count:
        return _Part(
            devices=tuple(shown), missing=(f"{count - len(shown)} of the {count} accelerators of the system file",)
        )
    more = len(shown) - count
    note = f"the system file has {count} accelerators and {more} more are shown: all are charged, as none has a uuid"
    return _Part(devices=tuple(shown), notes=(note,) if more else ())


def _engaged(shown: Sequence[PowerDevice], system: System) -> _Part:
    engaged = [item for item in _accelerators(system) if item.role != "idle"]
    uuids = _uuids(engaged)
    if uuids is None:
        return _Part(devices=(), missing=("which accelerators are engaged: give each its uuid in the system file",))
    return _charged(shown, uuids)


def _charged(shown: Sequence[PowerDevice], uuids: Sequence[str]) -> _Part:
    """The devices of these accelerators: each by its own name, or by the meter that covers it."""
    covering: dict[str, list[PowerDevice]] = {}
    for device in shown:
        covering.setdefault(_named(device.place, "accelerator") or device.uid, []).append(device)
    return _Part(
        devices=tuple(device for uuid in uuids for device in covering.get(uuid, ())),
        missing=tuple(uuid for uuid in uuids if uuid not in covering),
    )


def _hbm_part(shown: Sequence[PowerDevice], system: System) -> _Part:
    uuids = _uuids(_accelerators(system))
    if not uuids:
        return _Part(devices=tuple(shown))
    part = _charged(shown, uuids)
    return replace(part, missing=tuple(f"{uuid}{_MEMORY}" for uuid in part.missing))


def _module_part(shown: Sequence[PowerDevice], system: System) -> _Part:
    """One reading for each module, which each of its accelerators shows again."""
    expected = _accelerators(system)
    modules: dict[tuple[str | None, str], list[str]] = {}
    for item in expected:
        if item.module is not None and item.uuid is not None:
            modules.setdefault((item.node, item.module), []).append(item.uuid)
    if not modules:
        return _unstated_modules(shown, sum(item.count for item in expected))
    missing = [f"the module of {item.uuid or item.name}" for item in expected if item.module is None]
    by_uid = {device.uid: device for device in shown}
    charged: list[PowerDevice] = []
    pairs: list[tuple[str, str]] = []
    for (node, module), uuids in modules.items():
        word, inside = f"module {module}", f"node {node}"
        every = [by_uid[name] for uuid in uuids if (name := f"{uuid}{_MODULE}") in by_uid]
        hosts = sorted({device.host for device in every if device.host is not None})
        if len(hosts) > 1:
            missing.append(f"{word} of one machine ({' and '.join(hosts)} have one: give its accelerators their node)")
        own = every[:1]
        metered = [
            device
            for device in shown
            if device.uid not in {f"{uuid}{_MODULE}" for uuid in uuids}
            and word in device.place
            and (node is None or inside in device.place)
        ]
        pairs += [(device.uid, own[0].uid) for device in metered if own]
        charged += metered + own
        if not own and not metered:
            missing.append(f"{word} ({', '.join(uuids)})")
    return _Part(devices=tuple(charged), missing=tuple(missing), overlaps=tuple(pairs))


def _unstated_modules(shown: Sequence[PowerDevice], accelerators: int) -> _Part:
    if len(shown) > 1:  # any two may be one sensor
        return _Part(devices=tuple(shown), overlaps=tuple((shown[0].uid, item.uid) for item in shown[1:]))
    missing = ("which accelerators share a module: give each its module in the system file",)
    return _Part(devices=tuple(shown), missing=missing if accelerators > 1 else ())


def _package_part(shown: Sequence[PowerDevice], system: System) -> _Part:
    """As many packages as the system file lists processors, and at least one of each machine."""
    count = sum(item.count for item in system.accelerators if item.kind == "cpu")
    part = _by_node(shown, system)
    if len(shown) >= count:
        return part
    absent = f"{count - len(shown)} of the {count} processors of the system file"
    return replace(part, missing=(*part.missing, absent))


def _by_node(shown: Sequence[PowerDevice], system: System) -> _Part:
    """All that is shown; of several machines each must show one at least."""
    if len(system.nodes) < 2:
        return _Part(devices=tuple(shown))
    bare = [node.name for node in system.nodes if not any(f"node {node.name}" in device.place for device in shown)]
    what = shown[0].domain if shown else "meter"
    return _Part(devices=tuple(shown), missing=tuple(f"the {what} of node {name}" for name in bare))


def _node_part(shown: Sequence[PowerDevice], system: System) -> _Part:
    """Meters of machines and racks; together they must cover the whole system."""
    if not system.nodes and not system.racks:
        return _Part(devices=tuple(shown), missing=("the machines that make the system: name them in [[nodes]]",))
    places = {device.place for device in shown}
    if system.nodes:
        wanted = [(f"node {node.name}", f"rack {node.rack}" if node.rack else None) for node in system.nodes]
    else:
        wanted = [(f"rack {rack.name}", None) for rack in system.racks]
    missing = [
        name
        for name, rack in wanted
        if not any(name in place or (rack is not None and place[-1:] == (rack,)) for place in places)
        and not any(rack is not None and place[-2:-1] == (rack,) and place[-1].startswith("feed ") for place in places)
    ]
    return _Part(devices=tuple(shown), missing=tuple(missing), notes=tuple(_partial_racks(shown, system)))


def _partial_racks(shown: Sequence[PowerDevice], system: System) -> Iterator[str]:
    """What is metered whole and belongs to the system in part: it is charged whole."""
    for rack in system.racks:
        metered = any(device.domain == "rack" and f"rack {rack.name}" in device.place for device in shown)
        own = sum(node.rack == rack.name for node in system.nodes)
        if metered and rack.nodes is not None and own < rack.nodes:
            yield f"rack {rack.name} has {rack.nodes} nodes, {own} of them the system's: all of the rack is charged"


_PARTS = {
    "accelerator": _accelerator_part,
    "module": _module_part,
    "hbm": _hbm_part,
    "cpu_package": _package_part,
    "dram": _by_node,
    "node_or_rack": _node_part,
}

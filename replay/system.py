"""The system under test, as its owner discloses it in `system.toml`."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from replay.provisioned import ProvisionedFault, load_json, read_provisioned

ROLES = ("serve", "prefill", "decode", "idle")
KINDS = ("gpu", "cpu", "other")
LARGEST = 1e15  # of any number: more is no system, and a run's files would not hold it
COVERS = ("facility", "rack", "node", "cpu_package", "dram", "module", "accelerator", "nic", "switch")


class SystemFault(ValueError):
    """The system file is missing or not well formed; the sentence names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator by UUID, or `count` alike ones. `idle` ones are charged: they are part of what was bought."""

    name: str
    kind: Literal["gpu", "cpu", "other"] = "gpu"
    role: Literal["serve", "prefill", "decode", "idle"] = "serve"
    uuid: str | None = None
    count: int = 1
    node: str | None = None  # one of `nodes`
    module: str | None = None  # accelerators of one node and module share a module sensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the system; the `nodes` are all of it."""

    name: str
    rack: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rack:
    """A rack in its whole size, of which the system may use a part."""

    name: str
    accelerators: int | None = None
    nodes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What a metered device covers: `facility`, or a domain and a name, as in `node n1`.

    Several devices, as the two feeds of one machine, cover it together. `u_percent` is the accuracy that the data
    sheet or a calibration states, as a limit (± percent).
    """

    device: tuple[str, ...]
    covers: str
    u_percent: float | None = None
    evidence: str | None = None

    @property
    def domain(self) -> str:
        return self.covers.partition(" ")[0]

    @property
    def name(self) -> str:
        """Of what it covers; empty of the facility."""
        return self.covers.partition(" ")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What the system costs, in one currency: by the hour for the whole or for each accelerator, and for energy."""

    currency: str
    per_hour: float | None = None
    per_accelerator_hour: float | None = None
    energy_per_kwh: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What is None was not disclosed, and prints as such."""

    name: str
    accelerators: tuple[Accelerator, ...]
    nodes: tuple[Node, ...] = ()
    racks: tuple[Rack, ...] = ()
    meters: tuple[Meter, ...] = ()
    engine: str | None = None
    engine_version: str | None = None
    launch_command: str | None = None
    model: str | None = None
    weights: Literal["trained", "made-up"] | None = None
    precision: str | None = None
    kv_dtype: str | None = None
    moe: bool | None = None  # a mixture of experts
    speculation: str | None = None  # method and draft; "none" where there is none
    parallelism: str | None = None
    router: str | None = None
    offload: str | None = None
    power_cap_w: float | None = None
    pue: float | None = None
    pue_kind: Literal["annual", "design"] | None = None  # of a year's energy, or of the largest load
    prices: Prices | None = None
    agents_per_engineer: float | None = None  # at work at a time
    provisioned: dict[str, Any] | None = None  # the content of a `system_power.json`
    tuned_by: str | None = None
    run_by: str | None = None
    notes: str | None = None

    @property
    def accelerator_count(self) -> int:
        """All accelerators of the deployment, idle ones too."""
        return sum(accelerator.count for accelerator in self.accelerators)

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """The expected power devices, where every GPU is named; empty otherwise."""
        gpus = [accelerator for accelerator in self.accelerators if accelerator.kind == "gpu"]
        uuids = tuple(gpu.uuid for gpu in gpus if gpu.uuid is not None)
        return uuids if len(uuids) == len(gpus) else ()

    @property
    def gpu_count(self) -> int | None:
        """How many GPUs the power source must find; None where the file names no GPU."""
        return sum(item.count for item in self.accelerators if item.kind == "gpu") or None

    @property
    def undisclosed(self) -> tuple[str, ...]:
        """Names of what the file leaves out."""
        named = tuple(
            field.name for field in fields(self) if getattr(self, field.name) is None and field.name not in _NOT_ASKED
        )
        return named if self.accelerators else ("accelerators", *named)


UNDISCLOSED = System(name="undisclosed", accelerators=())

_NOT_ASKED = frozenset({"pue_kind", "agents_per_engineer"})  # the one stands beside pue; the other is of people
_TABLES = frozenset({"accelerators", "nodes", "racks", "meters", "prices", "provisioned"})


def load_system(path: Path) -> System:
    """Reads a system file; raises SystemFault naming the key."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise SystemFault(f'{path} does not exist; write at least: name = "my system"') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise SystemFault(f"{path}: not a readable TOML file: {error}") from error
    return read_system(data, str(path), folder=path.parent)


def read_system(data: dict[str, Any], place: str, *, folder: Path = Path()) -> System:
    """A system from the tables of its file; raises SystemFault naming `place` and the key.

    `folder` is where a relative path of the file begins.
    """
    scalars = {key: value for key, value in data.items() if key not in _TABLES}
    _check(System, data.keys(), scalars, place, "a system")
    if "name" not in data:
        raise SystemFault(f'{place}: name is missing; write for example: name = "8 x H200, one node"')
    if data.get("weights") not in (None, "trained", "made-up"):
        raise SystemFault(f'{place}: weights must be "trained" or "made-up", not {data["weights"]!r}')
    _check_pue(data, place)
    racks = tuple(Rack(**table) for table in _tables(data, "racks", Rack, place))
    nodes = tuple(Node(**table) for table in _tables(data, "nodes", Node, place))
    _check_unlike(place, "racks", (rack.name for rack in racks))
    _check_unlike(place, "nodes", (node.name for node in nodes))
    accelerators = tuple(
        _accelerator(table, f"{place}: accelerator {number}", nodes)
        for number, table in enumerate(_tables(data, "accelerators", Accelerator, place), 1)
    )
    uuids = [accelerator.uuid for accelerator in accelerators if accelerator.uuid is not None]
    if len(set(uuids)) < len(uuids):
        raise SystemFault(f"{place}: two accelerators have the same uuid")
    system = System(
        accelerators=accelerators,
        nodes=nodes,
        racks=racks,
        prices=_prices(data, place),
        provisioned=_provisioned(data, place, folder),
        **scalars,
    )
    return _with_meters(system, data, place)


def system_to_json(system: System) -> dict[str, Any]:
    """The system as a run folder holds it: what was not disclosed is null."""
    return asdict(system)


def system_from_json(data: dict[str, Any]) -> System:
    """The inverse of system_to_json; raises ValueError where the file was altered."""
    import msgspec

    return msgspec.convert(data, System)


def _tables(data: dict[str, Any], key: str, kind: type, place: str) -> list[dict[str, Any]]:
    """The tables of an array of tables, each with known keys of the right types."""
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise SystemFault(f"{place}: {key} are written as [[{key}]] tables")
    for number, table in enumerate(found, 1):
        where = f"{place}: {key.removesuffix('s')} {number}"
        _check(kind, table.keys(), table, where, "it")
        if "name" in kind.__dataclass_fields__ and "name" not in table:  # type: ignore[attr-defined]
            raise SystemFault(f"{where}: name is missing")
    return found


def _check(kind: type, keys: Iterable[str], values: dict[str, Any], place: str, what: str) -> None:
    """Raises SystemFault for a key that the dataclass does not have, or a value that is not of its type."""
    known = {field.name: str(field.type) for field in fields(kind)}
    for key in keys:
        if key not in known:
            raise SystemFault(f"{place}: unknown key {key!r}; {what} may hold {', '.join(sorted(known))}")
    for key, value in values.items():
        if "tuple" in known[key]:
            continue  # a list, which its own reader checks
        if "bool" in known[key]:
            if not isinstance(value, bool):
                raise SystemFault(f"{place}: {key} must be true or false, not {value!r}")
        elif "float" in known[key]:
            number = not isinstance(value, bool) and isinstance(value, int | float)
            if not number or not 0 < value < LARGEST:
                raise SystemFault(f"{place}: {key} must be a number above 0, not {value!r}")
        elif "int" in known[key]:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < LARGEST:
                raise SystemFault(f"{place}: {key} must be a whole number of at least 1, not {value!r}")
        elif not isinstance(value, str) or not value:
            raise SystemFault(f"{place}: {key} must be a text, not {value!r}")


def _check_pue(data: dict[str, Any], place: str) -> None:
    if data.get("pue", 1.0) < 1:
        raise SystemFault(f"{place}: pue is a ratio of at least 1, not {data['pue']!r}")
    if ("pue" in data) != ("pue_kind" in data):
        raise SystemFault(f'{place}: pue and pue_kind stand together; pue_kind is "annual" or "design", as for a feed')
    if data.get("pue_kind") not in (None, "annual", "design"):
        raise SystemFault(f'{place}: pue_kind must be "annual" or "design", not {data["pue_kind"]!r}')


def _check_unlike(place: str, key: str, names: Iterable[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise SystemFault(f"{place}: two {key} are named {name!r}")


def _accelerator(table: dict[str, Any], place: str, nodes: tuple[Node, ...]) -> Accelerator:
    if table.get("kind", "gpu") not in KINDS:
        raise SystemFault(f"{place}: kind must be one of {', '.join(KINDS)}")
    if table.get("role", "serve") not in ROLES:
        raise SystemFault(f"{place}: role must be one of {', '.join(ROLES)}")
    found = Accelerator(**table)
    if found.uuid is not None and found.count != 1:
        raise SystemFault(f"{place}: uuid is a text, and names exactly one accelerator")
    if found.node is not None and found.node not in {node.name for node in nodes}:
        raise SystemFault(f"{place}: node {found.node!r} is not one of [[nodes]]: write a table with its name")
    if found.module is not None and found.uuid is None:
        raise SystemFault(f"{place}: module needs uuid, by which the module's readings are known")
    return found


def _with_meters(system: System, data: dict[str, Any], place: str) -> System:
    """The system with its [[meters]], each of which covers something that the file names."""
    meters = tuple(
        _meter(table, f"{place}: meter {number}", system)
        for number, table in enumerate(_tables(data, "meters", Meter, place), 1)
    )
    _check_unlike(place, "meters", (device for meter in meters for device in meter.device))
    return System(**{field.name: getattr(system, field.name) for field in fields(System)} | {"meters": meters})


def _meter(table: dict[str, Any], place: str, system: System) -> Meter:
    devices = table.get("device")
    devices = [devices] if isinstance(devices, str) else devices
    if not isinstance(devices, list) or not devices or not all(isinstance(item, str) and item for item in devices):
        raise SystemFault(f"{place}: device is the name under which a power source shows it, or a list of such names")
    covers = table.get("covers", "")
    domain, _, name = covers.partition(" ")
    if domain not in COVERS or bool(name.strip()) != (domain != "facility"):
        raise SystemFault(f'{place}: covers is "facility", or a name behind {", ".join(COVERS[1:])}, as in "node n1"')
    known: Any = {
        "node": {node.name for node in system.nodes},
        "rack": {rack.name for rack in system.racks} | {node.rack for node in system.nodes},
        "accelerator": {item.uuid for item in system.accelerators},
        "module": {item.module for item in system.accelerators},
    }.get(domain)
    if known is not None and name not in known:
        key = "accelerators" if domain in ("accelerator", "module") else f"{domain}s"
        raise SystemFault(f"{place}: the file has no {covers}: name it in [[{key}]]")
    return Meter(**{**table, "device": tuple(devices)})


def _prices(data: dict[str, Any], place: str) -> Prices | None:
    table = data.get("prices")
    if table is None:
        return None
    where = f"{place}: prices"
    if not isinstance(table, dict):
        raise SystemFault(f"{where} are written as a [prices] table")
    _check(Prices, table.keys(), table, where, "they")
    if "currency" not in table:
        raise SystemFault(f'{where}: currency is missing; write for example: currency = "USD"')
    if len(table) < 2:
        raise SystemFault(f"{where}: no price is stated; write per_hour, per_accelerator_hour or energy_per_kwh")
    if "per_hour" in table and "per_accelerator_hour" in table:
        raise SystemFault(f"{where}: per_hour is of the whole system: state it or per_accelerator_hour, not both")
    return Prices(**table)


def _provisioned(data: dict[str, Any], place: str, folder: Path) -> dict[str, Any] | None:
    """The content of the file that `provisioned` names, which yields a total."""
    name = data.get("provisioned")
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise SystemFault(f"{place}: provisioned is the path of a system_power.json, not {name!r}")
    path = folder / name
    try:
        found = load_json(path)
        read_provisioned(found, str(path))
    except OSError as error:
        raise SystemFault(f"{place}: provisioned: {path} cannot be read: {error.strerror or error}") from error
    except ProvisionedFault as fault:
        raise SystemFault(f"{place}: provisioned: {fault}") from fault
    return found

"""The system under test, as its owner discloses it in `system.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

ROLES = ("serve", "prefill", "decode", "idle")
KINDS = ("gpu", "cpu", "other")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What is None was not disclosed, and prints as such."""

    name: str
    accelerators: tuple[Accelerator, ...]
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
    price_per_hour: str | None = None
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
        named = tuple(field.name for field in fields(self) if getattr(self, field.name) is None)
        return named if self.accelerators else ("accelerators", *named)


UNDISCLOSED = System(name="undisclosed", accelerators=())


def load_system(path: Path) -> System:
    """Reads a system file; raises SystemFault naming the key."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise SystemFault(f'{path} does not exist; write at least: name = "my system"') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SystemFault(f"{path}: not a readable TOML file: {error}") from error
    return read_system(data, str(path))


def read_system(data: dict[str, Any], place: str) -> System:
    """A system from the tables of its file; raises SystemFault naming `place` and the key."""
    known = {field.name: str(field.type) for field in fields(System)}
    for key, value in data.items():
        if key not in known:
            raise SystemFault(f"{place}: unknown key {key!r}; a system may hold {', '.join(sorted(known))}")
        if key == "accelerators":
            continue
        if "bool" in known[key]:
            if not isinstance(value, bool):
                raise SystemFault(f"{place}: {key} must be true or false, not {value!r}")
        elif "float" in known[key]:
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise SystemFault(f"{place}: {key} must be a number above 0, not {value!r}")
        elif not isinstance(value, str) or not value:
            raise SystemFault(f"{place}: {key} must be a text, not {value!r}")
    if "name" not in data:
        raise SystemFault(f'{place}: name is missing; write for example: name = "8 x H200, one node"')
    if data.get("weights") not in (None, "trained", "made-up"):
        raise SystemFault(f'{place}: weights must be "trained" or "made-up", not {data["weights"]!r}')
    if data.get("pue", 1.0) < 1:
        raise SystemFault(f"{place}: pue is a ratio of at least 1, not {data['pue']!r}")
    tables = data.get("accelerators", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SystemFault(f"{place}: accelerators are written as [[accelerators]] tables")
    accelerators = tuple(
        _accelerator(table, f"{place}: accelerator {number}") for number, table in enumerate(tables, 1)
    )
    uuids = [accelerator.uuid for accelerator in accelerators if accelerator.uuid is not None]
    if len(set(uuids)) < len(uuids):
        raise SystemFault(f"{place}: two accelerators have the same uuid")
    scalars = {key: value for key, value in data.items() if key != "accelerators"}
    return System(accelerators=accelerators, **scalars)


def system_to_json(system: System) -> dict[str, Any]:
    """The system as a run folder holds it: what was not disclosed is null."""
    return asdict(system)


def system_from_json(data: dict[str, Any]) -> System:
    """The inverse of system_to_json."""
    accelerators = tuple(Accelerator(**item) for item in data["accelerators"])
    return System(**{**data, "accelerators": accelerators})


def _accelerator(table: dict[str, Any], place: str) -> Accelerator:
    known = {field.name for field in fields(Accelerator)}
    for key in table:
        if key not in known:
            raise SystemFault(f"{place}: unknown key {key!r}; it may hold {', '.join(sorted(known))}")
    if not isinstance(table.get("name"), str) or not table["name"]:
        raise SystemFault(f"{place}: name is missing")
    if table.get("kind", "gpu") not in KINDS:
        raise SystemFault(f"{place}: kind must be one of {', '.join(KINDS)}")
    if table.get("role", "serve") not in ROLES:
        raise SystemFault(f"{place}: role must be one of {', '.join(ROLES)}")
    count = table.get("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SystemFault(f"{place}: count must be a whole number of at least 1")
    if table.get("uuid") is not None and (not isinstance(table["uuid"], str) or count != 1):
        raise SystemFault(f"{place}: uuid is a text, and names exactly one accelerator")
    return Accelerator(**table)

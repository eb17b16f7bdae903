"""CPU package energy by the kernel's powercap files (RAPL counters, in microjoules).

Only package zones are read: sub-zones (core, uncore, dram) lie inside or beside them in ways that differ by
processor, and `psys` overlaps them. See the kernel's Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from replay.power.source import PowerDevice, PowerFault, PowerSample, SourceInfo

POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl:\d+")  # AMD's driver uses the same name; a second colon marks a sub-zone


@dataclass(frozen=True, slots=True, kw_only=True)
class _Zone:
    device: PowerDevice
    counter: Path


class RaplSource:
    """Reads the energy counter of every CPU package under `root`.

    Raises PowerFault when there is none, or when the files are not readable for this user.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = _find_zones(root)
        for zone in self._zones:
            try:
                zone.counter.read_text()
            except PermissionError as error:
                raise _not_readable(zone.counter) from error

    def describe(self) -> SourceInfo:
        return SourceInfo(
            kind="rapl",
            measured=True,
            version=None,
            devices=tuple(zone.device for zone in self._zones),
            notes=("CPU packages only: no accelerator, no other memory, no network, no cooling",),
        )

    def read(self) -> list[PowerSample]:
        samples = []
        for zone in self._zones:
            before_ns = time.monotonic_ns()
            try:
                joules = int(zone.counter.read_text()) / 1e6
            except (OSError, ValueError):
                joules = None
            after_ns = time.monotonic_ns()
            samples.append(
                PowerSample(
                    t_ns=(before_ns + after_ns) // 2,
                    device=zone.device.uid,
                    kind="energy_j",
                    value=joules,
                    read_us=(after_ns - before_ns) // 1000,
                    flag="error" if joules is None else "ok",
                )
            )
        return samples

    def close(self) -> None:
        pass


def _find_zones(root: Path) -> tuple[_Zone, ...]:
    zones = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not _ZONE.fullmatch(folder.name):
            continue
        name = (folder / "name").read_text().strip()
        if name == "psys":
            continue
        counter = folder / "energy_uj"
        if not counter.exists():
            continue
        wrap_j = int((folder / "max_energy_range_uj").read_text()) / 1e6
        device = PowerDevice(uid=folder.name, name=name, domain="cpu_package", limit_w=None, wrap_j=wrap_j)
        zones.append(_Zone(device=device, counter=counter))
    if not zones:
        raise PowerFault(
            f"no RAPL package counter under {root}: this machine or container shows none; "
            "state a nameplate instead, for example --power declared:150W"
        )
    return tuple(zones)


def _not_readable(counter: Path) -> PowerFault:
    return PowerFault(
        f"{counter} is readable by root only: run `sudo chmod a+r {counter}` for each package, "
        "or state a nameplate with --power declared:150W"
    )

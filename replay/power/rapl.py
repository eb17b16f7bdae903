"""Energy of CPU packages and their memory by the kernel's powercap files (RAPL counters, in microjoules).

A package is a zone `intel-rapl:N`; AMD's driver uses the same names. Of the zones inside it `core` and `uncore` are
parts of the package. `dram` stands beside it and is a domain of its own. `psys` overlaps all of them and is left out,
as is `intel-rapl-mmio`, which shows the same packages again. See the kernel's
Documentation/power/powercap/powercap.rst. Counters wrap: at 500 W one of 65 kJ does so every 131 s.
"""

from __future__ import annotations

import errno
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

from replay.power.source import PowerDevice, PowerDomain, PowerFault, PowerSample, SampleFlag, SourceInfo

POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl:\d+(?P<inside>:\d+)?")
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Zone:
    device: PowerDevice
    counter: Path


class RaplSource:
    """Reads the energy counters of every CPU package and its memory under `root`.

    Raises PowerFault when there is none, or when the files are not readable for this user.
    """

    def __init__(self, root: Path = POWERCAP, *, host: str | None = None) -> None:
        self._host = host or platform.node() or "localhost"
        self._zones = _find_zones(root, self._host)
        for zone in self._zones:
            try:
                zone.counter.read_text()
            except PermissionError as error:
                raise _not_readable(zone.counter) from error
            except OSError:
                pass  # it may come back: each reading says so

    def describe(self) -> SourceInfo:
        domains = {zone.device.domain for zone in self._zones}
        covered = "CPU packages and their memory" if "dram" in domains else "CPU packages, without memory"
        return SourceInfo(
            kind="rapl",
            measured=True,
            version=None,
            devices=tuple(zone.device for zone in self._zones),
            notes=(f"{covered}: no accelerator, no network, no cooling",),
            name="rapl",
        )

    def read(self) -> list[PowerSample]:
        return [_sample(zone) for zone in self._zones]

    def close(self) -> None:
        pass


def _sample(zone: _Zone) -> PowerSample:
    joules: float | None = None
    flag: SampleFlag = "ok"
    before_ns = time.monotonic_ns()
    try:
        joules = _microjoules(zone.counter)
    except OSError as error:
        flag = "lost" if error.errno in _GONE else "error"
    except ValueError:
        flag = "error"
    after_ns = time.monotonic_ns()
    return PowerSample(
        t_ns=(before_ns + after_ns) // 2,
        device=zone.device.uid,
        kind="energy_j",
        value=joules,
        read_us=(after_ns - before_ns) // 1000,
        flag=flag,
    )


def _find_zones(root: Path, host: str) -> tuple[_Zone, ...]:
    zones = []
    for folder in sorted(root.iterdir(), key=_in_order) if root.is_dir() else ():
        match = _ZONE.fullmatch(folder.name)
        if match is None or not (folder / "energy_uj").exists():
            continue
        try:
            name = (folder / "name").read_text().strip()
            domain = _domain(name, inside=match["inside"] is not None)
            if domain is None:
                continue
            wrap_j = _microjoules(folder / "max_energy_range_uj")
        except (OSError, ValueError) as error:
            raise PowerFault(f"the RAPL zone {folder} is not readable: {error}") from error
        if wrap_j <= 0:
            raise PowerFault(f"the RAPL zone {folder} wraps at {wrap_j:g} J: its max_energy_range_uj cannot be")
        uid = f"{host}/{folder.name}"
        device = PowerDevice(
            uid=uid,
            name=name,
            domain=domain,
            limit_w=None,  # a package may draw more than its long-term limit for many seconds
            wrap_j=wrap_j,
            host=host,
            place=(f"{domain} {uid}",),
        )
        zones.append(_Zone(device=device, counter=folder / "energy_uj"))
    if not any(zone.device.domain == "cpu_package" for zone in zones):
        raise PowerFault(
            f"no RAPL package counter under {root}: this machine or container shows none; "
            "state a nameplate instead, for example --power declared:150W"
        )
    return tuple(zones)


def _domain(name: str, *, inside: bool) -> PowerDomain | None:
    if inside:
        return "dram" if name == "dram" else None
    return "cpu_package" if name.startswith("package") else None


def _in_order(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


def _microjoules(path: Path) -> float:
    """Joules of a file of whole microjoules; raises OSError, or ValueError for anything else in it."""
    text = path.read_text(encoding="ascii").strip()
    if not text.isdecimal() or len(text) > 20:  # 2^64 has 20 digits
        raise ValueError(f"{path.name} holds no number")
    return int(text) / 1e6


def _not_readable(counter: Path) -> PowerFault:
    return PowerFault(
        f"{counter} is readable by root only: run `sudo chmod a+r {counter}` for each zone, "
        "or state a nameplate with --power declared:150W"
    )

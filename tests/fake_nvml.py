"""The page that the compiled stand-in for NVML reads (tests/native/fake_nvml.c), and how it is built."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from ctypes import CDLL, Structure, c_char_p, c_double, c_int, c_int32, sizeof
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent / "native" / "fake_nvml.c"
DEVICES = 32
SHAPES = {"constant": 0, "square": 1, "ramp": 2, "sine": 3, "noisy": 4}
READINGS = (
    "counter",
    "average",
    "instant",
    "module_counter",
    "module_average",
    "module_instant",
    "memory_average",
    "plain_gauge",
)
NOT_SUPPORTED, NOT_FOUND, DRIVER_NOT_LOADED, GPU_IS_LOST, RESET_REQUIRED = 3, 6, 9, 15, 16
LATCH_S = 0.1

_MODULE = {"module_counter": NOT_SUPPORTED, "module_average": NOT_SUPPORTED, "module_instant": NOT_SUPPORTED}
_USUAL: dict[str, Any] = {
    "base_w": 500.0,
    "swing_w": 0.0,
    "period_s": 1.0,
    "counter_latch_s": LATCH_S,
    "counter_step_j": 0.001,
    "counter_gain": 1.0,
    "gauge_latch_s": 0.1,
    "gauge_step_w": 0.001,
    "average_s": 1.0,
    "module_w": 300.0,
    "memory_share": 0.2,
    "limit_w": 1400.0,
    "default_limit_w": 1400.0,
    "highest_limit_w": 1400.0,
    "module_limit_w": 0.0,
    "zero_s": 0.0,
    "shape": "constant",
    "counter_of_module": 0,
    "mate": -1,
    "code": 0,
    "mig": -1,
    "virtual_mode": 0,
    "processes": 0,
    "profile": -1,
}


class Dial(Structure):
    """One device: what it draws and what it answers."""

    _fields_ = [
        *((name, c_double) for name, value in _USUAL.items() if isinstance(value, float)),
        *((name, c_int32) for name, value in _USUAL.items() if not isinstance(value, float)),
        ("codes", c_int32 * len(READINGS)),
    ]


class Page(Structure):
    """All devices, and the driver they hang on."""

    _fields_ = [
        ("count", c_int32),
        ("loads", c_int32),
        ("init_code", c_int32),
        ("fields", c_int32),
        ("dials", Dial * DEVICES),
    ]


def write_page(path: Path, devices: list[dict[str, Any]], **of_page: int) -> None:
    """A new page: one dial a device, by what differs from a plain GPU; `codes` names readings that fail."""
    page = Page(count=len(devices), fields=1, **of_page)
    for dial, device in zip(page.dials, devices, strict=False):
        change(dial, _USUAL | device | {"codes": _MODULE | device.get("codes", {})})
    path.write_bytes(bytes(page))


def change(at: Page | Dial, values: dict[str, Any]) -> None:
    """Sets what `values` names; a reading's code by its name."""
    for name, value in values.items():
        if name == "codes":
            for reading, code in value.items():
                at.codes[READINGS.index(reading)] = code
        else:
            setattr(at, name, SHAPES[value] if name == "shape" else value)


def open_page(path: Path) -> Page:
    """The live page: what is set in it is seen by the library at once."""
    with path.open("r+b") as file:
        return Page.from_buffer(mmap.mmap(file.fileno(), sizeof(Page)))


class Truth:
    """Watts and joules of a page's devices by the library's own closed form, at any time of the monotonic clock."""

    def __init__(self, library: Path, page: Path) -> None:
        self._library = CDLL(str(library / "libnvidia-ml.so.1"))
        self._library.fake_open.argtypes = [c_char_p]
        assert self._library.fake_open(str(page).encode())

    def power_w(self, device: int, at_s: float) -> float:
        return self._ask("fake_power_w", device, at_s)

    def energy_j(self, device: int, start_s: float, end_s: float, *, module: bool = False) -> float:
        name = "fake_module_energy_j" if module else "fake_energy_j"
        return self._ask(name, device, end_s) - self._ask(name, device, start_s)

    def _ask(self, name: str, device: int, at_s: float) -> float:
        function = self._library[name]
        function.argtypes, function.restype = [c_int, c_double], c_double
        return float(function(device, at_s))


def build_library(folder: Path) -> Path:
    """Compiles the stand-in into `folder`; without a compiler the tests fail where they may not be skipped."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler: these tests may not be skipped here")
        pytest.skip("no C compiler for the stand-in library")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", folder / "libnvidia-ml.so.1", SOURCE, "-lm"], check=True)
    return folder

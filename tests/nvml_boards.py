"""GPUs of the stand-in for NVML, each with something the matter, and one reading of all of them beside the truth."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replay.power.energy import EnergyEstimate, integrate
from replay.power.source import DeviceState, PowerDevice, PowerSample, SourceInfo
from tests.fake_nvml import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    NOT_FOUND,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    Truth,
    write_page,
)

ROOT = Path(__file__).parent.parent
PERIOD_S = 0.2
LATE_S = 0.4 * PERIOD_S  # a reading that came later than this is this machine's fault: the run is repeated
SLOW_US = 3000  # a call that took longer does not say when its value was read
TRIES = 8
LOADS = ("constant", "square", "ramp", "sine", "noisy", "quantised")
TICKS = 14
MIDDLE = 6  # the tick at which something happens to a device
UNSUPPORTED = dict.fromkeys(("counter", "average", "instant", "memory_average", "plain_gauge"), NOT_SUPPORTED)
ON_MODULE = {"module_average": 0, "module_instant": 0}
GRACE_HOPPER = {
    "counter_of_module": 1,
    "module_limit_w": 1000.0,
    "codes": {**UNSUPPORTED, **ON_MODULE, "counter": 0},
}


def event(device: int | None, tick: int = MIDDLE, **values: Any) -> dict[str, Any]:
    return {"tick": tick, "device": device, "set": values}


# One device each, all read by one source: how it differs from a plain GPU that draws 500 W, and what happens to it.
BOARDS: dict[str, dict[str, Any]] = {
    "constant": {},
    "square": {"shape": "square", "base_w": 450.0, "swing_w": 190.0, "period_s": 1.3},
    "ramp": {"shape": "ramp", "base_w": 400.0, "swing_w": 200.0, "period_s": 2.1},
    "sine": {"shape": "sine", "base_w": 600.0, "swing_w": 150.0, "period_s": 1.7, "counter_latch_s": 0.02},
    "noisy": {"shape": "noisy", "base_w": 600.0, "swing_w": 300.0, "period_s": 0.01},
    "quantised": {
        "shape": "sine",
        "base_w": 300.3,
        "swing_w": 40.7,
        "period_s": 1.1,
        "counter_step_j": 1.0,
        "gauge_step_w": 1.0,
    },
    "no counter": {"codes": {"counter": NOT_SUPPORTED}},
    "only instant": {
        "shape": "ramp",
        "base_w": 400.0,
        "swing_w": 100.0,
        "period_s": 2.9,
        "codes": {"counter": NOT_SUPPORTED, "average": NOT_SUPPORTED, "memory_average": NOT_SUPPORTED},
    },
    "nothing": {"codes": UNSUPPORTED},
    "lost": {},
    "to be reset": {},
    "counter reset": {"shape": "square", "base_w": 450.0, "swing_w": 190.0, "period_s": 1.3},
    "transient": {},
    "standing counter": {"counter_gain": 0.0},
    "unknown counter": {"counter_gain": 0.7},
    "GH200": GRACE_HOPPER,
    "GB300 a": {"mate": 17, "module_limit_w": 2900.0, "codes": {**ON_MODULE, "module_counter": 0}},
    "GB300 b": {"mate": 16, "base_w": 700.0, "module_limit_w": 2900.0, "codes": ON_MODULE},
    "GB200": {"counter_of_module": 1, "base_w": 165.0, "module_limit_w": 2500.0, "codes": ON_MODULE},
    "one and the same": {"module_w": 10.0, "codes": ON_MODULE},
    "zero gauge": {"gauge_step_w": 1e6, "codes": {"counter": NOT_SUPPORTED}},
    "over its limit": {"base_w": 900.0, "limit_w": 700.0, "codes": {"counter": NOT_SUPPORTED}},
    "blank": {
        "base_w": 4294967.295,
        "codes": {"counter": NOT_SUPPORTED, "average": NOT_SUPPORTED, "memory_average": NOT_SUPPORTED},
    },
    "gone": {},
    "stated": {
        "limit_w": 500.0,
        "default_limit_w": 700.0,
        "highest_limit_w": 750.0,
        "mig": 1,
        "virtual_mode": 2,
        "processes": 3,
        "profile": 6,
        "base_w": 400.0,
    },
}
INDEX = {name: index for index, name in enumerate(BOARDS)}
EVENTS = [
    event(INDEX["lost"], code=GPU_IS_LOST),
    event(INDEX["to be reset"], code=RESET_REQUIRED),
    event(INDEX["gone"], code=NOT_FOUND),
    event(INDEX["counter reset"], zero_s="now"),
    event(INDEX["transient"], codes={"counter": NOT_SUPPORTED}),
    event(INDEX["transient"], MIDDLE + 2, codes={"counter": 0}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a source said and read, and the truth about the same devices."""

    info: SourceInfo
    samples: tuple[PowerSample, ...]
    library: Path
    page: Path

    @property
    def truth(self) -> Truth:
        return Truth(self.library, self.page)

    def device(self, uid: str) -> PowerDevice:
        return next(device for device in self.info.devices if device.uid == uid)

    def state(self, uid: str) -> DeviceState:
        return next(state for state in self.info.states if state.device == uid)

    def of(self, uid: str, kind: str | None = None) -> list[PowerSample]:
        return [sample for sample in self.samples if sample.device == uid and kind in (None, sample.kind)]

    def flags(self, uid: str, kind: str) -> list[str]:
        return [sample.flag for sample in self.of(uid, kind)]

    def notes(self, uid: str) -> list[str]:
        return [note for note in self.info.notes if uid in note.replace(":", " ").split()]

    def windows(self, uid: str, count: int = 20, *, at_readings: bool = False) -> Iterator[tuple[int, int]]:
        """Windows over what was read, cut at readings or at any time beside them; never at one that took long."""
        kind = "energy_j" if self.of(uid, "energy_j") else self.of(uid)[0].kind
        read = [sample for sample in self.of(uid, kind) if sample.read_us < SLOW_US]
        early = [sample.t_ns for sample in read[:5]][1:]
        late = [sample.t_ns for sample in read[-5:]][:-1]
        assert early
        assert late
        chance = random.Random(uid)
        beside_ns = 0 if at_readings else round(PERIOD_S * 1e9)
        for _ in range(count):
            start_ns, end_ns = chance.choice(early), chance.choice(late)
            yield start_ns + chance.randint(0, beside_ns), end_ns + chance.randint(-beside_ns, 0)

    def energy(self, uid: str, start_ns: int, end_ns: int) -> EnergyEstimate:
        return integrate(
            self.of(uid),
            self.device(uid),
            start_ns=start_ns,
            end_ns=end_ns,
            period_s=PERIOD_S,
            state=next((state for state in self.info.states if state.device == uid), None),
        )

    def middle(self, uid: str) -> EnergyEstimate:
        return self.energy(uid, *next(self.windows(uid)))


def gpu(name: str) -> str:
    return f"GPU-fake-{INDEX[name]}"


def start(library: Path | None, page: Path, steps: list[dict[str, Any]]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.nvml_reader"],
        cwd=ROOT,
        env={"LD_LIBRARY_PATH": str(library or page.parent), "FAKE_NVML_PAGE": str(page)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(
        json.dumps([{"page": str(page), "period_s": PERIOD_S, "ticks": 0, "open": {}} | step for step in steps])
    )
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, talk = process.communicate(timeout=120)
    assert process.returncode == 0, talk
    found: list[dict[str, Any]] = json.loads(out)
    return found


def as_read(found: dict[str, Any], library: Path, page: Path) -> Read:
    return Read(
        info=msgspec.convert(found["info"], SourceInfo),
        samples=msgspec.convert(found["samples"], tuple[PowerSample, ...]),
        library=library,
        page=page,
    )


BOARDS_OPENED = {
    "uuids": [f"GPU-fake-{index}" for index in range(len(BOARDS))],
    "shortest_s": 1.5,
    "longest_s": 1.5,
    "pace_s": 0.01,
}
SOON = {"shortest_s": 0.4, "longest_s": 0.4, "pace_s": 0.01}
BOTH = {**SOON, "uuids": ["GPU-fake-0", "GPU-fake-1"]}
# One process opens one source after another on two plain GPUs, and something else is the matter each time.
STEPS: dict[str, dict[str, Any]] = {
    "reload": {
        "open": BOTH,
        "ticks": 10,
        "events": [
            event(None, 4, loads=1, init_code=DRIVER_NOT_LOADED),
            event(0, 4, zero_s="now"),
            event(1, 4, zero_s="now"),
            event(None, 6, init_code=0),
        ],
    },
    "fewer": {"open": BOTH, "period_s": 0.02, "ticks": 8, "events": [event(None, 4, count=1)]},
    "more": {"open": SOON, "period_s": 0.02, "ticks": 4, "events": [event(None, 2, count=2)]},
    "old library": {
        "set": {"fields": 0},
        "open": {**SOON, "uuids": ["GPU-fake-1"]},
        "period_s": 0.02,
        "ticks": 4,
    },
    "no module": {"set": {"fields": 1}, "open": {**SOON, "scope": "module"}},
    "another uuid": {"open": {"uuids": ["GPU-other"]}},
    "part of a GPU": {"open": {"uuids": ["MIG-1"]}},
    "too few": {"open": {"count": 8}},
    "too many": {"open": {"count": 1}},
    "lost before": {"dials": {"1": {"code": GPU_IS_LOST}}, "open": {}},
    "none": {"set": {"count": 0}, "open": {}},
    "not loaded": {"set": {"init_code": DRIVER_NOT_LOADED}, "open": {}},
    "no permission": {"set": {"init_code": 4}, "open": {}},
    "mismatch": {"set": {"init_code": 18}, "open": {}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """All boards read at once, and the steps: what was read, or the fault."""

    boards: Read
    steps: dict[str, Read]
    faults: dict[str, str]


def read_all(library: Path, folder: Path) -> Reads:
    """Both processes side by side; each is repeated where this machine was too busy to read on time."""
    works: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
        "boards": (list(BOARDS.values()), [{"open": BOARDS_OPENED, "ticks": TICKS, "events": EVENTS}]),
        "steps": ([{"counter_latch_s": 0.05}, {"counter_latch_s": 0.05, "base_w": 700.0}], list(STEPS.values())),
    }
    done: dict[str, tuple[list[dict[str, Any]], Path]] = {}
    for attempt in range(TRIES):
        running = {}
        for name in works.keys() - done.keys():
            page = folder / f"{name}{attempt}"
            write_page(page, works[name][0])
            running[name] = start(library, page, works[name][1]), page
        for name, (process, page) in running.items():
            found = finish(process)
            if found[0]["late_s"] <= LATE_S:  # of the steps only the first one's times matter
                done[name] = found, page
        if len(done) == len(works):
            break
    else:
        pytest.fail(f"this machine was too busy in {TRIES} runs to read every {PERIOD_S} s")
    steps, page = done["steps"]
    named = dict(zip(STEPS, steps, strict=True))
    return Reads(
        boards=as_read(done["boards"][0][0], library, done["boards"][1]),
        steps={name: as_read(found, library, page) for name, found in named.items() if "fault" not in found},
        faults={name: found["fault"] for name, found in named.items() if "fault" in found},
    )

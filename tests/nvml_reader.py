"""Opens an NvmlSource on the stand-in library and reads it for a while, in a process of its own.

The library is found by LD_LIBRARY_PATH, which is read when a process starts. Told on stdin as a JSON list of steps: the
page, how to open the source, for how long to read, and what to change on the page at which tick. One answer a step.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from replay.power.nvml import NvmlSource
from replay.power.source import PowerFault, PowerSample
from tests.fake_nvml import change, open_page


def main() -> None:
    steps = msgspec.json.decode(sys.stdin.buffer.read())
    print(msgspec.json.encode([read_out(step) for step in steps]).decode())


def read_out(step: dict[str, Any]) -> dict[str, Any]:
    page = open_page(Path(step["page"]))
    change(page, step.get("set", {}))
    for index, values in step.get("dials", {}).items():
        change(page.dials[int(index)], values)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in step["open"].items()}
    began_ns = time.monotonic_ns()
    try:
        source = NvmlSource(**options)
    except PowerFault as fault:
        return {"fault": str(fault)}
    opened_s = (time.monotonic_ns() - began_ns) / 1e9
    samples: list[PowerSample] = []
    times: list[int] = []
    period_ns = round(step["period_s"] * 1e9)
    start_ns = time.monotonic_ns()
    for tick in range(step["ticks"]):
        time.sleep(max(0.0, (start_ns + tick * period_ns - time.monotonic_ns()) / 1e9))
        for event in step.get("events", ()):
            if event["tick"] == tick:
                at = page if event["device"] is None else page.dials[event["device"]]
                change(at, {key: time.monotonic() if value == "now" else value for key, value in event["set"].items()})
        times.append(time.monotonic_ns())
        samples += source.read()
    times.append(time.monotonic_ns())
    source.close()
    return {
        "info": msgspec.to_builtins(source.describe()),
        "samples": [msgspec.to_builtins(sample) for sample in samples],
        "opened_s": opened_s,
        "late_s": max(((after - before - period_ns) / 1e9 for before, after in pairwise(times)), default=0.0),
    }


if __name__ == "__main__":
    main()

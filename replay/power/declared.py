"""A nameplate that the user states: `declared:700W` or `declared:700W*8`. It is a convention, never a measurement."""

from __future__ import annotations

import time

from replay.power.source import PowerDevice, PowerSample, SourceInfo


class DeclaredSource:
    """Answers the stated watts at every reading."""

    def __init__(self, watts: float, count: int) -> None:
        self._watts = watts
        name = f"declared:{watts:g}W*{count}"  # of two nameplates each device keeps its own name
        self._devices = tuple(
            PowerDevice(
                uid=f"{name}/{number}",
                name="declared",
                domain="declared",
                limit_w=watts,
                wrap_j=None,
                place=(f"{name}/{number}",),
            )
            for number in range(1, count + 1)
        )

    def describe(self) -> SourceInfo:
        return SourceInfo(
            kind="declared",
            measured=False,
            version=None,
            devices=self._devices,
            notes=(f"{self._watts:g} W x {len(self._devices)}, stated by the user; nothing was measured",),
        )

    def read(self) -> list[PowerSample]:
        now_ns = time.monotonic_ns()
        return [
            PowerSample(t_ns=now_ns, device=device.uid, kind="power_w", value=self._watts, read_us=0, flag="ok")
            for device in self._devices
        ]

    def close(self) -> None:
        pass

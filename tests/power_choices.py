"""Power choices whose sources do wrong what a source can do wrong; the meter's child opens them by pickle."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Literal

from replay.power.source import PowerDevice, PowerFault, PowerSample, SourceInfo
from replay.system import System

type Manner = Literal["plain", "raises", "hangs", "dies", "prints", "late", "refuses", "breaks", "module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OddChoice:
    """Counts 1000 W by the clock, in its own manner."""

    manner: Manner
    name: str = "odd"
    period_s: float = 0.02

    @property
    def kind(self) -> str:
        return "command"

    @property
    def text(self) -> str:
        return self.name

    def open(self, _expected: System) -> OddSource:
        if self.manner == "refuses":
            raise PowerFault(f"{self.name} is locked: unlock it")
        if self.manner == "breaks":
            raise RuntimeError("a driver's\x1b[31m words")
        return OddSource(self)


class OddSource:
    def __init__(self, choice: OddChoice) -> None:
        self._choice = choice
        self._reads = 0

    def describe(self) -> SourceInfo:
        device = PowerDevice(
            uid=f"{self._choice.name}-0",
            name="odd",
            domain="module" if self._choice.manner == "module" else "node",
            limit_w=None,
            wrap_j=None,
        )
        return SourceInfo(
            kind="command",
            measured=True,
            version=None,
            devices=(device,),
            notes=(),
            period_s=self._choice.period_s,
            settle_s=0.2 if self._choice.manner == "late" else 0.0,
        )

    def read(self) -> list[PowerSample]:
        self._reads += 1
        if self._reads > 3:
            match self._choice.manner:
                case "raises" if self._reads % 2:
                    raise RuntimeError("out of manners")
                case "hangs":
                    time.sleep(3600)
                case "dies":
                    os._exit(7)
        if self._choice.manner == "prints":
            print("a driver's chatter", file=sys.stdout, flush=True)
        now_ns = time.monotonic_ns() - (150_000_000 if self._choice.manner == "late" else 0)
        return [
            PowerSample(
                t_ns=now_ns, device=f"{self._choice.name}-0", kind="energy_j", value=now_ns / 1e6, read_us=1, flag="ok"
            )
        ]

    def close(self) -> None:
        pass

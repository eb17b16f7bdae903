"""What `--power` says: `nvml`, `rapl` or `declared:700W*8`, read strictly and opened later."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from replay.power.source import PowerSource

_DECLARED = re.compile(r"declared:(?P<watts>\d+(?:\.\d+)?)(?P<unit>[kM]?)W(?:\*(?P<count>\d+))?")
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerChoice:
    """A source by name; `watts` and `count` are of a declared nameplate."""

    kind: Literal["nvml", "rapl", "declared"]
    watts: float | None = None
    count: int = 1

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return self.kind if self.watts is None else f"declared:{self.watts:g}W*{self.count}"

    def open(self, *, uuids: tuple[str, ...] = (), accelerators: int | None = None) -> PowerSource:
        """Opens the source for the expected accelerators; raises PowerFault with the next step."""
        if self.kind == "nvml":
            from replay.power.nvml import NvmlSource

            return NvmlSource(uuids=uuids, count=accelerators)
        if self.kind == "rapl":
            from replay.power.rapl import RaplSource

            return RaplSource()
        from replay.power.declared import DeclaredSource

        assert self.watts is not None
        return DeclaredSource(self.watts, self.count)


def parse_powers(texts: Sequence[str]) -> tuple[PowerChoice, ...]:
    """Reads every `--power`; raises ValueError where one kind is named twice, since its devices would be mixed up."""
    choices = tuple(parse_power(text) for text in texts)
    for kind, times in Counter(choice.kind for choice in choices).items():
        if times > 1:
            more = "; state the sum of all nameplates once" if kind == "declared" else ""
            raise ValueError(f"power {kind} is named {times} times: each source counts once{more}")
    return choices


def parse_power(text: str) -> PowerChoice:
    """Reads one `--power` value; raises ValueError naming what is allowed."""
    if text == "nvml":
        return PowerChoice(kind="nvml")
    if text == "rapl":
        return PowerChoice(kind="rapl")
    if text.startswith("declared"):
        match = _DECLARED.fullmatch(text)
        if match is None:
            raise ValueError(f"power {text!r}: a nameplate reads declared:700W, declared:1.2kW or declared:700W*8")
        watts, count = float(match["watts"]) * _SCALE[match["unit"]], int(match["count"] or 1)
        if watts <= 0 or count <= 0:
            raise ValueError(f"power {text!r}: watts and count must be above 0")
        return PowerChoice(kind="declared", watts=watts, count=count)
    raise ValueError(f"power {text!r} is not known: use nvml, rapl or declared:700W")

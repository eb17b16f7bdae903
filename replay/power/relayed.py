"""What another process says of its power sources, held to bounds, and seen here as one source.

A recording, a command and a remote server describe their sources as `SourceInfo`. Whatever they say is untrusted: its
texts are short and printable, its numbers finite, its devices few enough and each named once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from curate.words import printable
from replay.power.source import PowerFault, PowerSample, SampleFlag, SampleKind, SourceInfo

MOST_SOURCES = 64
MOST_DEVICES = 4096
MOST_ENTRIES = 4096
"""Of any list in a description."""
MOST_CHARACTERS = 300
"""Of any text in a description."""
MOST_NUMBER = 1e18
DEEPEST = 16
"""Of lists and tables in a description, one in another."""
LONGEST_PERIOD_S = 3600.0


def read_infos(value: object, place: str) -> tuple[SourceInfo, ...]:
    """Sources from decoded JSON; raises PowerFault naming `place` and what is wrong."""
    _bounded(value, place)
    try:
        infos = msgspec.convert(value, tuple[SourceInfo, ...])
    except msgspec.ValidationError as fault:
        raise PowerFault(f"{place}: {printable(str(fault))}") from fault
    _known_keys(value, msgspec.to_builtins(infos), place)
    if not 0 < len(infos) <= MOST_SOURCES:
        raise PowerFault(f"{place}: it names {len(infos)} sources, not 1 to {MOST_SOURCES}")
    for info in infos:
        if not 0 < info.period_s <= LONGEST_PERIOD_S:
            raise PowerFault(f"{place}: a period of {info.period_s:g} s is not within 0 to {LONGEST_PERIOD_S:g} s")
        for name in ("refresh_s", "settle_s", "clock_u_s"):
            seconds = getattr(info, name)
            if seconds is not None and seconds > LONGEST_PERIOD_S:  # a run would wait for it, or keep all readings
                raise PowerFault(f"{place}: {name} of {seconds:g} s is more than {LONGEST_PERIOD_S:g} s")
    check_devices(infos, place)
    return infos


def check_devices(infos: Sequence[SourceInfo], place: str) -> None:
    """Raises PowerFault where there is no device, one too many, or one whose numbers or name cannot be."""
    devices = [device for info in infos for device in info.devices]
    if not 0 < len(devices) <= MOST_DEVICES:
        raise PowerFault(f"{place}: it names {len(devices)} devices, not 1 to {MOST_DEVICES}")
    seen: set[str] = set()
    for device in devices:
        if not device.uid:
            raise PowerFault(f"{place}: a device has no uid")
        if device.uid in seen:
            raise PowerFault(f"{place}: the device {device.uid} is named twice")
        seen.add(device.uid)
        for name in ("limit_w", "wrap_j", "latch_s"):
            number = getattr(device, name)
            if number is not None and number <= 0:
                raise PowerFault(f"{place}: {name} of {device.uid} must be above 0")


def as_one(
    infos: Sequence[SourceInfo],
    *,
    kind: str,
    name: str,
    place: str,
    notes: Sequence[str] = (),
    clock_u_s: float = 0.0,
    settle_s: float = 0.0,
) -> SourceInfo:
    """The measured sources of another process as one source here: the slowest period, the least certain clock.

    Nameplates are left out, with a note: they are stated where the score is made. Raises PowerFault where nothing
    else is there.
    """
    measured = [info for info in infos if info.measured]
    if not measured:
        raise PowerFault(f"{place}: it holds nameplates only; state them with --power declared:700W")
    said = [f"{info.name or info.kind}: {note}" for info in measured for note in info.notes]
    left_out = [info.name or info.kind for info in infos if not info.measured]
    if left_out:
        said.append(f"{', '.join(left_out)}: a nameplate, left out; state it with --power declared")
    refresh = [info.refresh_s for info in measured if info.refresh_s is not None]
    return SourceInfo(
        kind=kind,
        measured=True,
        version=", ".join(f"{info.kind} {info.version}" for info in measured if info.version) or None,
        devices=tuple(device for info in measured for device in info.devices),
        notes=(*said, *notes),
        name=name,
        period_s=max(info.period_s for info in measured),
        refresh_s=max(refresh, default=None),
        clock_u_s=math.hypot(max(info.clock_u_s for info in measured), clock_u_s),
        settle_s=max(info.settle_s for info in measured) + settle_s,
        states=tuple(state for info in measured for state in info.states),
    )


class Silence:
    """Which readings a source has given, so that each of them can be said to have stopped."""

    def __init__(self, info: SourceInfo) -> None:
        self._uids = tuple(device.uid for device in info.devices)
        self._kinds: dict[str, dict[SampleKind, None]] = {}

    def saw(self, sample: PowerSample) -> None:
        self._kinds.setdefault(sample.device, {})[sample.kind] = None

    def samples(self, flag: SampleFlag, t_ns: int, uids: Collection[str] | None = None) -> list[PowerSample]:
        """One sample without a value for each of the readings; of the devices named, or of all."""
        return [
            PowerSample(t_ns=t_ns, device=uid, kind=kind, value=None, read_us=0, flag=flag)
            for uid in self._uids
            if uids is None or uid in uids
            for kind in self._kinds.get(uid, {"energy_j": None})
        ]


def _bounded(value: object, place: str, depth: int = 0) -> None:
    """Every text short and printable, every number finite and not negative, every list bounded, nothing deep."""
    if depth > DEEPEST:
        raise PowerFault(f"{place}: lists and tables stand more than {DEEPEST} deep in one another")
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS or not value.isprintable():
            raise PowerFault(f"{place}: a text is longer than {MOST_CHARACTERS} characters or not printable")
    elif isinstance(value, int | float):
        if not 0 <= value <= MOST_NUMBER:  # false for what is not a number too
            shown = f"the number {value:g}" if isinstance(value, float) else "a whole number"  # it may be any length
            raise PowerFault(f"{place}: {shown} is not within 0 to {MOST_NUMBER:g}")
    elif isinstance(value, list):
        if len(value) > MOST_ENTRIES:
            raise PowerFault(f"{place}: a list has more than {MOST_ENTRIES} entries")
        for item in value:
            _bounded(item, place, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _bounded(key, place)
            _bounded(item, place, depth + 1)


def _known_keys(value: Any, read: Any, place: str) -> None:
    """Raises PowerFault for a key that was not read: a newer format, or a word written wrongly."""
    if isinstance(value, dict) and isinstance(read, dict):
        for key, item in value.items():
            if key not in read:
                raise PowerFault(f"{place}: unknown key {key!r}; it may hold {', '.join(sorted(read))}")
            _known_keys(item, read[key], place)
    elif isinstance(value, list) and isinstance(read, list | tuple):
        for item, found in zip(value, read, strict=False):
            _known_keys(item, found, place)

"""Power lines: one JSON object a line, the format of `--record`, `file:` and `command:`.

The first line names the devices, either as our own recordings do or in short::

    {"agentdyno_power": 1, "sources": [{"kind": "nvml", "measured": true, "devices": […], …}]}
    {"agentdyno_power": 1, "period_s": 1, "devices": [{"uid": "node n1", "domain": "node", "limit_w": 10200}]}

Every further line is one reading; `flag` stands instead of a number where there is none::

    {"t_unix_ns": 1790000000000000000, "device": "node n1", "power_w": 5120.5}
    {"t_unix_ns": 1790000000200000000, "device": "node n1", "power_w": null, "flag": "error"}

A command may leave `t_unix_ns` out: the reading then counts as made when its line arrived.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from replay.power.line_reader import LineReader
from replay.power.relayed import LONGEST_PERIOD_S, MOST_NUMBER, check_devices, read_infos
from replay.power.source import PowerDevice, PowerDomain, PowerSample, SampleFlag, SampleKind, SourceInfo

POWER_LINES_VERSION = 1

LONGEST_HEADER = 8_000_000
"""Bytes; 4,096 devices fit."""
LONGEST_LINE = 4096
"""Bytes of a reading."""
PERIOD_S = 1.0
"""Of a short header that states none."""
AHEAD_NS = 5_000_000_000
"""How far a reading that was just made may lie in the future; a clock that is further off measures nothing."""

_KINDS: tuple[SampleKind, ...] = ("energy_j", "power_w", "power_instant_w")
_FIRST = '{"agentdyno_power": 1, …}, the first of power lines'

type _Value = Annotated[float, msgspec.Meta(ge=0, le=MOST_NUMBER)] | UnsetType | None
type _Positive = Annotated[float, msgspec.Meta(gt=0, le=MOST_NUMBER)] | None
type _Word = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    uid: _Word
    domain: PowerDomain
    name: _Word | None = None
    limit_w: _Positive = None
    wrap_j: _Positive = None


class _Short(msgspec.Struct, forbid_unknown_fields=True):
    agentdyno_power: int
    devices: list[_Device]
    period_s: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_PERIOD_S)] = PERIOD_S


class _Reading(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    device: str
    t_unix_ns: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    energy_j: _Value = UNSET
    power_w: _Value = UNSET
    power_instant_w: _Value = UNSET
    flag: SampleFlag = "ok"
    read_us: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0


_decode_reading = msgspec.json.Decoder(_Reading).decode


def unix_offset_ns() -> int:
    """What to add to this machine's monotonic clock to get Unix time, now."""
    return time.time_ns() - time.monotonic_ns()


def encode_header(infos: Sequence[SourceInfo]) -> bytes:
    """The first line of a recording of these sources."""
    return msgspec.json.encode({"agentdyno_power": POWER_LINES_VERSION, "sources": list(infos)}) + b"\n"


def encode_sample(sample: PowerSample, offset_ns: int) -> bytes:
    """A line of one reading; `offset_ns` makes Unix time of its time, see `unix_offset_ns`."""
    reading = _Reading(
        device=sample.device, t_unix_ns=sample.t_ns + offset_ns, flag=sample.flag, read_us=sample.read_us
    )
    setattr(reading, sample.kind, sample.value)
    return msgspec.json.encode(reading) + b"\n"


class PowerLines(LineReader):
    """Reads power lines; `infos` is None until the first line is whole."""

    def __init__(self, place: str, *, kind: str) -> None:
        """`kind` is that of a source whose header is in short form."""
        super().__init__(place)
        self.infos: tuple[SourceInfo, ...] | None = None
        self._kind = kind
        self._devices: frozenset[str] = frozenset()

    def _longest(self) -> int:
        return LONGEST_HEADER if self.infos is None else LONGEST_LINE

    def _begun(self) -> bool:
        return self.infos is not None

    def _wanted(self) -> str:
        return f"its first line reads {_FIRST}"

    def _read(self, line: bytes, now_unix_ns: int | None) -> Iterator[PowerSample]:
        if self.infos is None:
            self.infos = self._header(line)
            self._devices = frozenset(device.uid for info in self.infos for device in info.devices)
        else:
            yield self._sample(line, now_unix_ns)

    def _sample(self, line: bytes, now_unix_ns: int | None) -> PowerSample:
        try:
            reading = _decode_reading(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise self.fault(f"is not a reading: {fault}", line) from fault
        if reading.device not in self._devices:
            raise self.fault("names a device that the first line does not", reading.device)
        given = [kind for kind in _KINDS if getattr(reading, kind) is not UNSET]
        if len(given) != 1:
            raise self.fault(f"must have one of {', '.join(_KINDS)}")
        value = getattr(reading, given[0])
        if (value is None) != (reading.flag != "ok"):
            raise self.fault("must have a number, or null and a flag that says why")
        t_unix_ns = reading.t_unix_ns if reading.t_unix_ns is not None else now_unix_ns
        if t_unix_ns is None:
            raise self.fault("has no t_unix_ns")
        if now_unix_ns is not None and t_unix_ns > now_unix_ns + AHEAD_NS:
            raise self.fault(f"is {(t_unix_ns - now_unix_ns) / 1e9:.0f} s in the future: set the clock")
        return PowerSample(
            t_ns=t_unix_ns,
            device=reading.device,
            kind=given[0],
            value=value,
            read_us=reading.read_us,
            flag=reading.flag,
        )

    def _header(self, line: bytes) -> tuple[SourceInfo, ...]:
        try:
            value: Any = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise self.fault(f"is not {_FIRST}", line) from fault
        version = value.get("agentdyno_power") if isinstance(value, dict) else None
        if version is None:
            raise self.fault(f"is not {_FIRST}", line)
        if type(version) is not int or version != POWER_LINES_VERSION:
            raise self.fault(
                f"has a version that is not {POWER_LINES_VERSION}, the one of this agentdyno", str(version)
            )
        if "sources" not in value:
            return self._short(value)
        if len(value) > 2:
            raise self.fault("may hold agentdyno_power and sources only")
        return read_infos(value["sources"], f"{self._place}: line {self.line}")

    def _short(self, value: object) -> tuple[SourceInfo, ...]:
        try:
            short = msgspec.convert(value, _Short)
        except msgspec.ValidationError as fault:
            raise self.fault(f"is not {_FIRST}: {fault}") from fault
        for device in short.devices:
            if not (device.uid + (device.name or "")).isprintable():
                raise self.fault("names a device that is not printable", device.uid)
            if device.domain == "declared":
                raise self.fault("has a nameplate: state it with --power declared:700W", device.uid)
        info = SourceInfo(
            kind=self._kind,
            measured=True,
            version=None,
            devices=tuple(
                PowerDevice(
                    uid=device.uid,
                    name=device.name or device.uid,
                    domain=device.domain,
                    limit_w=device.limit_w,
                    wrap_j=device.wrap_j,
                    place=(f"{device.domain} {device.uid}",),
                )
                for device in short.devices
            ),
            notes=(),
            period_s=short.period_s,
        )
        check_devices((info,), f"{self._place}: line {self.line}")
        return (info,)

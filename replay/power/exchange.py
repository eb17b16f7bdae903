"""What a power server answers to one request, and how two machines' clocks are matched by such answers."""

from __future__ import annotations

import math
from collections import deque
from typing import Annotated, Any

import msgspec

from replay.power.relayed import MOST_CHARACTERS, MOST_NUMBER
from replay.power.source import PowerSample, SampleFlag, SampleKind

POWER_SERVER_VERSION = 1
PAGE = "/power"
"""`GET /power` describes the sources; `GET /power?after=N` gives the readings from number N on."""

MOST_SAMPLES = 5000
"""Of one answer."""
MOST_BYTES = 16_000_000
"""Of one answer: a description of 4,096 devices fits."""

DRIFT = 500e-6
"""How fast two monotonic clocks may drift apart: the kernel slews by at most 500 ppm (adjtimex(2), ADJ_FREQUENCY)."""
_EXCHANGES = 64

type _Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
type _Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Sample(msgspec.Struct, array_like=True):
    """A `PowerSample` without the names of its fields."""

    t_ns: _Nanoseconds
    device: Annotated[str, msgspec.Meta(max_length=MOST_CHARACTERS)]
    kind: SampleKind
    value: Annotated[float, msgspec.Meta(ge=0, le=MOST_NUMBER)] | None
    read_us: _Number
    flag: SampleFlag


class PowerAnswer(msgspec.Struct, omit_defaults=True):
    """Times are of the server's monotonic clock."""

    agentdyno_power_server: int  # the version of this format
    server: Annotated[str, msgspec.Meta(max_length=64)]  # another one after each start
    received_ns: _Nanoseconds
    sent_ns: _Nanoseconds
    next: _Number  # the number of the first reading that is not in here
    sources: Any = None  # as `SourceInfo`, in a description
    samples: Annotated[list[_Sample], msgspec.Meta(max_length=MOST_SAMPLES)] = []
    dropped: _Number = 0  # readings that were asked for too late
    more: bool = False


_decode = msgspec.json.Decoder(PowerAnswer).decode


def encode_answer(answer: PowerAnswer) -> bytes:
    return msgspec.json.encode(answer)


def decode_answer(body: bytes) -> PowerAnswer:
    """Raises ValueError where the body is no answer of a power server of this version."""
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise ValueError("it is no power server of agentdyno") from fault
    if answer.agentdyno_power_server != POWER_SERVER_VERSION:
        raise ValueError(f"it speaks version {answer.agentdyno_power_server}, this agentdyno {POWER_SERVER_VERSION}")
    return answer


def pack_sample(sample: PowerSample) -> _Sample:
    return _Sample(
        t_ns=sample.t_ns,
        device=sample.device,
        kind=sample.kind,
        value=sample.value,
        read_us=sample.read_us,
        flag=sample.flag,
    )


def unpack_sample(sample: _Sample, offset_ns: int) -> PowerSample | None:
    """With its time moved back by the offset; None for a number that contradicts its flag."""
    if (sample.value is None) != (sample.flag != "ok"):
        return None
    return PowerSample(
        t_ns=sample.t_ns - offset_ns,
        device=sample.device,
        kind=sample.kind,
        value=sample.value,
        read_us=sample.read_us,
        flag=sample.flag,
    )


class ClockMatch:
    """How far another machine's clock is ahead, by the exchange that left least doubt.

    The offset of an exchange is that of NTP (RFC 5905, section 8), the half of its round trip the most that it can be
    wrong by, however unlike the two ways are. Doubt grows with age, since clocks drift.
    """

    def __init__(self) -> None:
        self._exchanges: deque[tuple[int, int, int]] = deque(maxlen=_EXCHANGES)  # when, offset, half of the round trip

    def add(self, asked_ns: int, received_ns: int, sent_ns: int, answered_ns: int) -> None:
        """One exchange; raises ValueError where its times cannot be."""
        way_ns = (answered_ns - asked_ns) - (sent_ns - received_ns)
        if sent_ns < received_ns or way_ns < 0:
            raise ValueError("its clock does not run as this one")
        found = (answered_ns, ((received_ns - asked_ns) + (sent_ns - answered_ns)) // 2, way_ns // 2)
        if self._exchanges:
            best = self._best(answered_ns)
            if abs(found[1] - best[1]) > found[2] + self._doubt_ns(best, answered_ns) + 2:
                self._exchanges.clear()  # one of the clocks stood still or was set, as a machine's that slept
        self._exchanges.append(found)

    def offset_ns(self, now_ns: int) -> int:
        """The other clock's reading less this one's."""
        return self._best(now_ns)[1]

    def u_s(self, now_ns: int) -> float:
        """Standard uncertainty of the offset, in seconds: its bound is rectangular (JCGM 100:2008, 4.3.7)."""
        return self._doubt_ns(self._best(now_ns), now_ns) / math.sqrt(3) / 1e9

    def _best(self, now_ns: int) -> tuple[int, int, int]:
        return min(self._exchanges, key=lambda exchange: self._doubt_ns(exchange, now_ns))

    @staticmethod
    def _doubt_ns(exchange: tuple[int, int, int], now_ns: int) -> float:
        return exchange[2] + DRIFT * abs(now_ns - exchange[0])

"""The CSV table of a meter: a line of names, then a reading a line, in any order of columns.

`time` is ISO 8601 with its zone, or Unix seconds; `device` names what the line is about. At least one of `energy_j`,
`energy_wh`, `energy_kwh` (counters that only grow) and `power_w` follows; an empty cell is a reading that is missing.
A column `domain` may say what a device covers; without one it is a node, until the system file says otherwise.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import get_args

from replay.power.line_reader import LineReader
from replay.power.lines import AHEAD_NS
from replay.power.relayed import MOST_CHARACTERS, MOST_DEVICES, MOST_NUMBER
from replay.power.source import PowerDomain, PowerSample, SampleKind

LONGEST_LINE = 4096
LATEST_S = 9_000_000_000
"""Unix time; nanoseconds of it fit into 64 bits."""

_VALUES: dict[str, tuple[SampleKind, float]] = {
    "energy_j": ("energy_j", 1.0),
    "energy_wh": ("energy_j", 3600.0),
    "energy_kwh": ("energy_j", 3.6e6),
    "power_w": ("power_w", 1.0),
}
_COLUMNS = ("time", "device", "domain", *_VALUES)
_DOMAINS = tuple(name for name in get_args(PowerDomain.__value__) if name != "declared")
_NOTHING = frozenset({"", "-", "n/a", "na", "nan", "null", "none"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MeterTable(LineReader):
    """Reads such a table; `devices` grows as they are named."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.devices: dict[str, PowerDomain] = {}
        self.finest_s = 1.0  # the last place that any time was written to
        self._columns: tuple[str, ...] = ()
        self._separator = ","

    def _longest(self) -> int:
        return LONGEST_LINE

    def _begun(self) -> bool:
        return bool(self._columns)

    def _wanted(self) -> str:
        return "its first line reads time,device,energy_j"

    def _read(self, line: bytes, now_unix_ns: int | None) -> Iterator[PowerSample]:
        try:
            text = line.removeprefix(b"\xef\xbb\xbf").decode()
        except UnicodeDecodeError as fault:
            raise self.fault("is not UTF-8", line) from fault
        if not self._columns:
            self._separator = ";" if ";" in text else ","
            self._columns = self._header(self._cells(text))
            return
        cells = self._cells(text)
        if len(cells) != len(self._columns):
            raise self.fault(f"has {len(cells)} cells, not {len(self._columns)}")
        row = dict(zip(self._columns, cells, strict=True))
        t_ns, uid = self._time(row["time"]), self._device(row)
        if now_unix_ns is not None and t_ns > now_unix_ns + AHEAD_NS:
            raise self.fault(f"is {(t_ns - now_unix_ns) / 1e9:.0f} s in the future: set the clock")
        for name in self._columns:
            if name in _VALUES:
                yield self._sample(t_ns, uid, name, row[name])

    def _cells(self, text: str) -> list[str]:
        try:
            rows = list(csv.reader([text], delimiter=self._separator, strict=True))
        except csv.Error as fault:
            raise self.fault(f"is not CSV: {fault}") from fault
        return [cell.strip() for cell in rows[0]]

    def _header(self, cells: list[str]) -> tuple[str, ...]:
        names = tuple(cell.lower() for cell in cells)
        for name in names:
            if name not in _COLUMNS:
                raise self.fault(f"has a column other than {', '.join(_COLUMNS)}", name)
        if len(set(names)) < len(names):
            raise self.fault("names a column twice")
        for name in ("time", "device"):
            if name not in names:
                raise self.fault(f"has no column {name}: it reads for example time,device,energy_j")
        if not any(name in _VALUES for name in names):
            raise self.fault(f"has no column of readings: one of {', '.join(_VALUES)}")
        return names

    def _device(self, row: dict[str, str]) -> str:
        uid = row["device"]
        if not uid or len(uid) > MOST_CHARACTERS or not uid.isprintable():
            raise self.fault("has no device")
        domain = row.get("domain") or "node"
        if domain not in _DOMAINS:
            raise self.fault(f"has a domain other than {', '.join(_DOMAINS)}", domain)
        known: PowerDomain = next(item for item in _DOMAINS if item == domain)
        if self.devices.setdefault(uid, known) != known:
            raise self.fault("gives a device another domain than before", uid)
        if len(self.devices) > MOST_DEVICES:
            raise self.fault(f"names more than {MOST_DEVICES} devices")
        return uid

    def _sample(self, t_ns: int, uid: str, name: str, text: str) -> PowerSample:
        kind, scale = _VALUES[name]
        if text.lower() in _NOTHING:
            return PowerSample(t_ns=t_ns, device=uid, kind=kind, value=None, read_us=0, flag="blank")
        try:
            value = float(text) * scale
        except ValueError as fault:
            raise self.fault(f"has no number as {name}", text) from fault
        if not 0 <= value <= MOST_NUMBER:
            raise self.fault(f"has a number as {name} that is not within 0 to {MOST_NUMBER / scale:g}", text)
        return PowerSample(t_ns=t_ns, device=uid, kind=kind, value=value, read_us=0, flag="ok")

    def _time(self, text: str) -> int:
        """Unix time in nanoseconds; raises PowerFault for a time without a zone."""
        try:
            seconds = Decimal(text)
        except InvalidOperation:
            return self._date(text)
        if not (seconds.is_finite() and 100_000_000 <= seconds < LATEST_S):  # from 1973; 20261120 is a date
            raise self.fault("has a time that is not Unix seconds: write those, or 2026-11-20T19:30:00Z", text)
        exponent = seconds.as_tuple().exponent
        assert isinstance(exponent, int)  # it is finite
        self._seen(-exponent)
        return int(seconds * 1_000_000_000)

    def _date(self, text: str) -> int:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as fault:
            raise self.fault("has no time: write 2026-11-20T19:30:00.250Z, or Unix seconds", text) from fault
        if moment.tzinfo is None:
            raise self.fault("has a time without its zone: write 2026-11-20T19:30:00Z", text)
        fraction = text.replace(",", ".").partition(".")[2]
        self._seen(next((place for place, sign in enumerate(fraction) if not sign.isdigit()), len(fraction)))
        passed = moment - _EPOCH
        if passed.days < 0:
            raise self.fault("has a time before 1970", text)
        if passed.days * 86_400 >= LATEST_S:
            raise self.fault("has a time after 2255", text)
        return (passed.days * 86_400 + passed.seconds) * 1_000_000_000 + passed.microseconds * 1000

    def _seen(self, places: int) -> None:
        self.finest_s = min(self.finest_s, 10.0 ** -min(max(places, 0), 9))

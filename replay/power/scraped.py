"""The devices that scraped series show: found once, then followed from one look to the next.

An exporter shows what it read at its own last refresh, for as long as it likes: looking twice gives the same reading
twice. So a reading is taken when it changes, its time is the middle between the last look at the old one and the
first look at the new one, and the time between changes is the exporter's refresh interval, measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from replay.exposition import SeriesName
from replay.power.series import ATTRIBUTION, Meaning, Meant, Rule, Table
from replay.power.source import PowerDevice, PowerFault, PowerSample, SampleFlag, SampleKind

KINDS: tuple[SampleKind, ...] = ("energy_j", "power_w", "power_instant_w")
BLANK_FROM = 9.2e18
"""DCGM's values that stand for none begin at 2^63 − 16; a page's 9223372036854775794 is such a one (not supported)."""
_BLANK_DOUBLES = (2.0**47, 2.0**47 + 3)  # the same of its floating-point fields
STEADY_S = 60.0
"""For so long a page of counters may show the same before it is taken for a dead one; a gauge alone, five times."""
CHANGES = 64  # that a refresh interval is taken over
PLAUSIBLE_ACCELERATOR_W = (1.0, 20_000.0)  # an idle one draws several watts, none draws more than a few kilowatts
DEAD_CHANGES, DEAD_COUNTS = 8, 100  # of a gauge, and of a counter beside it that did not move
METERED = ("node", "rack", "facility")
LEAST_METERED_W = 20.0
PLAUSIBLE_RATIO = 30.0  # a counter read in the wrong unit is off by 1,000 or more
PLAUSIBLE_LIMIT = (0.01, 1.5)  # share of its power limit that a device draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One series at one look. `t_ns` is the server's own time of that look, where it gives one."""

    series: SeriesName
    value: float
    t_ns: int | None = None


@dataclass(slots=True, kw_only=True)
class _Channel:
    """One kind of reading of one device."""

    meant: Meant
    raw: float | None = None
    looked_ns: int | None = None  # when that value was last looked at
    taken_ns: int | None = None  # time of the last sample
    changes: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=CHANGES))  # as looked at
    repeats: int = 0
    fixed_s: float | None = None
    fixed: bool = False

    @property
    def cached(self) -> bool:
        """Whether looks are clearly closer together than changes: one look in three, or more, shows the same again."""
        return 2 * self.repeats >= max(1, len(self.changes))

    @property
    def refresh_s(self) -> float | None:
        """Mean time between changes; None where nearly every look showed a new value, or too few were seen."""
        if self.fixed or not self.cached or len(self.changes) < 2:
            return self.fixed_s
        return (self.changes[-1][0] - self.changes[0][0]) / 1e9 / (len(self.changes) - 1)


@dataclass(slots=True, kw_only=True)
class _Device:
    uid: str
    title: str
    host: str
    channels: dict[SampleKind, _Channel] = field(default_factory=dict)
    limit_w: float | None = None

    @property
    def refresh_s(self) -> float | None:
        """By its counter where that moves: a gauge may show the same twice."""
        counter = self.channels.get("energy_j")
        if counter is not None and len(counter.changes) >= 2:
            return counter.refresh_s
        told = [channel.refresh_s for channel in self.channels.values() if channel.refresh_s is not None]
        return min(told, default=None)

    @property
    def first(self) -> _Channel:
        """What it is measured by: the counter, where it has one."""
        return next(self.channels[kind] for kind in KINDS if kind in self.channels)


class Devices:
    """The devices of a page or a server.

    `find` sets them, from what a first look shows; `look` follows them. Raises PowerFault where two series are the
    same reading of one device, or one device's series do not agree on what it is.
    """

    def __init__(self, table: Table, default_host: str, where: str) -> None:
        self._table = table
        self._default_host = default_host
        self._where = where
        self._devices: dict[str, _Device] = {}
        self._meant: dict[SeriesName, Meant | None] = {}
        self._last_change_ns: int | None = None
        self.derived = False
        self.notes: tuple[str, ...] = ()

    def find(self, seen: Sequence[Seen]) -> None:
        """Set the devices; none where no series is known."""
        meant = [(each, meaning) for each in seen if (meaning := self._meaning(each.series)) is not None]
        direct = [(each, meaning) for each, meaning in meant if not meaning.rule.derived]
        readings = [pair for pair in direct if pair[1].rule.meaning != "limit_w"]
        self.derived = bool(meant) and not readings
        chosen = direct if readings else meant
        notes = []
        if self.derived:
            notes.append(
                "its figures are the exporter's own computation, not a device's: nothing of it is called measured"
            )
        elif len(chosen) < len(meant):
            notes.append("derived counters beside a device's own readings are left out")
        best = _preferred(chosen, self._where)
        unread: set[str] = set()
        for (uid, kind), pairs in best.items():
            unread |= {f"{other.rule.name}" for _, other in pairs[1:] if other.rule.name != pairs[0][1].rule.name}
            meaning = pairs[0][1]
            if kind == "limit_w":
                continue
            device = self._devices.setdefault(uid, _Device(uid=uid, title=meaning.title, host=meaning.host))
            device.channels[kind] = _Channel(
                meant=meaning, fixed_s=meaning.rule.refresh_s, fixed=meaning.rule.refresh_s is not None
            )
        for device in self._devices.values():
            domains = {channel.meant.rule.domain: channel.meant for channel in device.channels.values()}
            if len(domains) > 1:
                one, other = list(domains.values())[:2]
                raise PowerFault(
                    f"{self._where}: {_written(one.series)} and {_written(other.series)} are both of {device.uid}, "
                    f"but one is {one.rule.domain} and the other {other.rule.domain}: give them uids of their own"
                )
            limit = best.get((device.uid, "limit_w"))
            if limit is not None and _flag(limit[0][0].value) == "ok":
                device.limit_w = limit[0][0].value * limit[0][1].rule.scale or None
        if unread:
            notes.append(f"not read, since another series of the same reading is: {', '.join(sorted(unread))}")
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self._devices)

    @property
    def counters(self) -> int:
        """Devices that have an energy counter."""
        return sum("energy_j" in device.channels for device in self._devices.values())

    def described(self) -> tuple[PowerDevice, ...]:
        """The devices, with their refresh interval as far as it is known."""
        return tuple(_described(device) for device in self._devices.values())

    @property
    def refresh_s(self) -> float | None:
        """The longest refresh interval of any device; None where none was longer than the time between two looks."""
        found = (told for device in self._devices.values() if (told := device.refresh_s) is not None)
        return max(found, default=None)

    def u_time_s(self, *, gap_s: float, first_gap_s: float) -> float:
        """Standard uncertainty of a reading's time: looks are `gap_s` apart, and were `first_gap_s` at the start.

        A reading lies somewhere between two looks, at most a refresh interval back, and is put in the middle. Where
        every look showed a new one it may be as old as the time between two, and is not moved for it.
        """
        refresh_s = self.refresh_s
        return first_gap_s / math.sqrt(3) if refresh_s is None else min(gap_s, refresh_s) / math.sqrt(12)

    def settled(self, changes: int) -> bool:
        """Whether every counter that moves has changed so often; of a page without counters, every gauge.

        One whose refresh interval was stated is not waited for.
        """
        if self.counters:
            return all(
                counter.fixed or len(counter.changes) >= changes or _is_dead(device)
                for device in self._devices.values()
                if (counter := device.channels.get("energy_j")) is not None
            )
        gauges = [channel for device in self._devices.values() for channel in device.channels.values()]
        return all(gauge.fixed or len(gauge.changes) >= changes for gauge in gauges)

    def fix(self) -> None:
        """Keep the refresh intervals as measured so far: later looks may be rarer than the changes."""
        for device in self._devices.values():
            for channel in device.channels.values():
                channel.fixed_s, channel.fixed = channel.refresh_s, True

    def look(self, t_ns: int, read_us: int, seen: Iterable[Seen], *, whole: bool = True) -> list[PowerSample]:
        """What is new at a look, in order of devices.

        Of a `whole` page, a device that is gone while others of its machine are there is lost; where none is there,
        the page is at fault. A part of a page says nothing of what it does not hold.
        """
        here: dict[tuple[str, SampleKind], list[Seen]] = {}
        for each in seen:
            meaning = self._meaning(each.series)
            if meaning is None or meaning.uid not in self._devices or meaning.rule.meaning == "limit_w":
                continue
            channel = self._devices[meaning.uid].channels.get(meaning.rule.meaning)
            if channel is not None and channel.meant.rule == meaning.rule:
                here.setdefault((meaning.uid, meaning.rule.meaning), []).append(each)
        fine: dict[tuple[str, SampleKind], Seen] = {}
        samples: list[PowerSample] = []
        for key, found in here.items():
            flag = _flag(found[0].value) if _same([each.value for each in found]) else "error"
            if flag == "ok":
                fine[key] = found[0]
            else:
                samples.append(_sample(_time(found[0], t_ns), *key, None, read_us, flag))
        if whole:
            samples += self._missing(t_ns, read_us, here.keys())
        return samples + self._new(t_ns, read_us, fine)

    def _missing(self, t_ns: int, read_us: int, here: Collection[tuple[str, SampleKind]]) -> list[PowerSample]:
        hosts = {self._devices[uid].host for uid, _ in here}
        samples = []
        for device in self._devices.values():
            absent = [kind for kind in device.channels if (device.uid, kind) not in here]
            if len(absent) == len(device.channels):
                samples.append(self.gone(device.uid, t_ns, read_us, "lost" if device.host in hosts else "error"))
            else:
                samples += [_sample(t_ns, device.uid, kind, None, read_us, "error") for kind in absent]
        return samples

    @property
    def newest_ns(self) -> dict[str, int]:
        """When each device was last looked at; one that never was is left out."""
        looks = {
            uid: [channel.looked_ns for channel in device.channels.values() if channel.looked_ns is not None]
            for uid, device in self._devices.items()
        }
        return {uid: max(told) for uid, told in looks.items() if told}

    def host(self, uid: str) -> str:
        """The machine of a device; empty where no series says."""
        return self._devices[uid].host

    def gone(self, uid: str, t_ns: int, read_us: int, flag: SampleFlag) -> PowerSample:
        """A device of which nothing was shown."""
        return _sample(t_ns, uid, _kind(self._devices[uid].first), None, read_us, flag)

    def failed(self, t_ns: int, read_us: int) -> list[PowerSample]:
        """A look that showed nothing at all."""
        return [self.gone(uid, t_ns, read_us, "error") for uid in self._devices]

    def unit_faults(self) -> list[str]:
        """Readings that cannot be in the unit that the table gives them: the trap of mJ and J."""
        faults = (_unit_fault(device) for device in self._devices.values())
        return [fault for fault in faults if fault is not None]

    def unit_notes(self) -> list[str]:
        """Meters that show so little that their unit may be another: one may also be a feed that idles."""
        notes = []
        for device in self._devices.values():
            watts = _shown_w(device)
            rule = device.first.meant.rule
            if rule.domain in METERED and watts is not None and watts < LEAST_METERED_W:
                little = f"{device.uid} shows {watts:.3g} W, which is little for a {rule.domain}"
                notes.append(f"{little}: is it counted in {_counted(rule)}?")
        return notes

    def _meaning(self, series: SeriesName) -> Meant | None:
        if series not in self._meant:
            if len(self._meant) > 50_000:  # labels that change with every look
                self._meant.clear()
            self._meant[series] = self._table.meaning(series, self._default_host)
        return self._meant[series]

    def _new(self, t_ns: int, read_us: int, fine: dict[tuple[str, SampleKind], Seen]) -> list[PowerSample]:
        """The readings that are new; a look at a time that was looked at already is none."""
        looks = {
            key: each
            for key, each in fine.items()
            if (looked := self._channel(key).looked_ns) is None or _time(each, t_ns) > looked
        }
        changed = {key for key, each in looks.items() if self._channel(key).raw != each.value}
        if changed or self._last_change_ns is None:
            self._last_change_ns = t_ns
        alive = t_ns - self._last_change_ns <= (STEADY_S if self.counters else 5 * STEADY_S) * 1e9
        samples = []
        for key, each in looks.items():
            device, channel = self._devices[key[0]], self._channel(key)
            first, at_ns = channel.raw is None, _moment(_time(each, t_ns), channel, device.refresh_s)
            if key in changed and not first:
                channel.changes.append((_time(each, t_ns), each.value))
            channel.repeats += key not in changed
            channel.raw, channel.looked_ns = each.value, _time(each, t_ns)
            if key[1] == "energy_j":
                # How long a counter's first reading had been shown is not known: it is taken when it changes.
                new = key in changed and not first
            elif "energy_j" in device.channels:
                # A gauge may show the same twice; its counter tells when it was read anew.
                new = key in changed or (key[0], "energy_j") in changed
            else:
                new = key in changed or (alive and (bool(changed) or device.refresh_s is None))
            if new and (channel.taken_ns is None or at_ns > channel.taken_ns):
                channel.taken_ns = at_ns
                samples.append(_sample(at_ns, *key, each.value * channel.meant.rule.scale, read_us, "ok"))
        return samples

    def _channel(self, key: tuple[str, SampleKind]) -> _Channel:
        return self._devices[key[0]].channels[key[1]]


def _time(seen: Seen, t_ns: int) -> int:
    return t_ns if seen.t_ns is None else seen.t_ns


def _moment(t_ns: int, channel: _Channel, refresh_s: float | None) -> int:
    """When a value was read that is seen anew: in the middle since the last look, or since it can have been read."""
    if channel.looked_ns is None or (refresh_s is None and (channel.fixed or not channel.cached)):
        return t_ns
    back_ns = t_ns - channel.looked_ns
    return t_ns - (back_ns if refresh_s is None else min(back_ns, round(refresh_s * 1e9))) // 2


def _described(device: _Device) -> PowerDevice:
    rule = device.first.meant.rule
    counter = device.channels.get("energy_j")
    wrap = None if counter is None else counter.meant.rule.wrap
    return PowerDevice(
        uid=device.uid,
        name=device.title,
        domain=rule.domain,
        limit_w=device.limit_w,
        wrap_j=None if wrap is None or counter is None else wrap * counter.meant.rule.scale,
        host=device.host or None,
        place=(f"{rule.domain} {device.uid}",),
        latch_s=None if counter is None else counter.refresh_s,
    )


def _preferred(pairs: Sequence[tuple[Seen, Meant]], where: str) -> dict[tuple[str, Meaning], list[tuple[Seen, Meant]]]:
    """By device and kind, the surest series first; PowerFault where two of the same name are one reading."""
    found: dict[tuple[str, Meaning], list[tuple[Seen, Meant]]] = {}
    for pair in pairs:
        found.setdefault((pair[1].uid, pair[1].rule.meaning), []).append(pair)
    for (uid, kind), same in found.items():
        same.sort(key=lambda pair: pair[1].rank)
        first = same[0]
        for other in same[1:]:
            if other[1].rule.name != first[1].rule.name or kind == "limit_w":
                continue
            if _told_apart_by(first[0].series, other[0].series) <= ATTRIBUTION and _agree(first[0], other[0]):
                continue
            raise PowerFault(
                f"{where}: {_written(first[0].series)} and {_written(other[0].series)} are both the reading of {uid}: "
                "say which one counts, by match={…} or by a row of the table (map=FILE)"
            )
    return found


def _told_apart_by(one: SeriesName, other: SeriesName) -> set[str]:
    ours, theirs = dict(one.labels), dict(other.labels)
    return {label for label in ours.keys() | theirs.keys() if ours.get(label, "") != theirs.get(label, "")}


def _agree(one: Seen, other: Seen) -> bool:
    """Whether two lines are of one reading: equal, or of different times, as when a device passes from pod to pod."""
    return one.t_ns != other.t_ns or _same([one.value, other.value])


def _same(values: Sequence[float]) -> bool:
    return all(value == values[0] or (math.isnan(value) and math.isnan(values[0])) for value in values)


def _written(series: SeriesName) -> str:
    labels = ",".join(f'{label}="{value}"' for label, value in series.labels)
    text = "".join(letter if letter.isprintable() else " " for letter in f"{series.name}{{{labels}}}")
    return text if len(text) <= 400 else text[:399] + "…"


def _flag(value: float) -> SampleFlag:
    if not math.isfinite(value) or abs(value) >= BLANK_FROM or _BLANK_DOUBLES[0] <= value <= _BLANK_DOUBLES[1]:
        return "blank"
    return "unsupported" if value < 0 else "ok"


def _sample(t_ns: int, uid: str, kind: SampleKind, value: float | None, read_us: int, flag: SampleFlag) -> PowerSample:
    return PowerSample(t_ns=t_ns, device=uid, kind=kind, value=value, read_us=read_us, flag=flag)


def _kind(channel: _Channel) -> SampleKind:
    meaning = channel.meant.rule.meaning
    assert meaning != "limit_w"
    return meaning


def _shown_w(device: _Device) -> float | None:
    """What a device draws by its gauge, else by its counter; None where neither tells yet."""
    gauge = next((device.channels[kind] for kind in KINDS[1:] if kind in device.channels), None)
    if gauge is not None:
        return None if gauge.raw is None else gauge.raw * gauge.meant.rule.scale
    return _slope_w(device.channels["energy_j"])


def _is_dead(device: _Device) -> bool:
    """Whether a counter stands still while the device's own gauge moves and says that it should have counted far."""
    gauge = next((device.channels[kind] for kind in KINDS[1:] if kind in device.channels), None)
    counter = device.channels["energy_j"]
    if counter.changes or gauge is None or gauge.raw is None or len(gauge.changes) < DEAD_CHANGES:
        return False
    seconds = (gauge.changes[-1][0] - gauge.changes[0][0]) / 1e9
    return gauge.raw * gauge.meant.rule.scale * seconds / counter.meant.rule.scale >= DEAD_COUNTS


def _slope_w(counter: _Channel) -> float | None:
    if len(counter.changes) < 2:
        return None
    (start_ns, low), (end_ns, high) = counter.changes[0], counter.changes[-1]
    return (high - low) * counter.meant.rule.scale / ((end_ns - start_ns) / 1e9)


def _unit_fault(device: _Device) -> str | None:
    counter = device.channels.get("energy_j")
    slope_w = None if counter is None else _slope_w(counter)
    gauge = next((device.channels[kind] for kind in KINDS[1:] if kind in device.channels), None)
    told_w = _shown_w(device) if gauge is not None else None
    end = "say its unit in a row of a table (map=FILE)"
    if counter is not None and slope_w is not None and slope_w > 0:
        begin = f"{_written(counter.meant.series)} rises by {slope_w:.3g} W if it counts {_counted(counter.meant.rule)}"
        if gauge is not None and told_w:
            if 1 / PLAUSIBLE_RATIO <= slope_w / told_w <= PLAUSIBLE_RATIO:
                return None
            return f"{begin}, while {gauge.meant.rule.name} says {told_w:.3g} W: one of the two has another unit; {end}"
        shown_w = slope_w
    elif gauge is not None and told_w:
        begin = f"{_written(gauge.meant.series)} says {told_w:.3g} W if it counts {_counted(gauge.meant.rule)}"
        shown_w = told_w
    else:
        return None
    if device.limit_w is not None:
        if PLAUSIBLE_LIMIT[0] <= shown_w / device.limit_w <= PLAUSIBLE_LIMIT[1]:
            return None
        return f"{begin}, but the power limit is {device.limit_w:.3g} W; {end}"
    low_w, high_w = PLAUSIBLE_ACCELERATOR_W
    if device.first.meant.rule.domain != "accelerator" or low_w <= shown_w <= high_w:
        return None
    return f"{begin}, which no accelerator draws; {end}"


def _counted(rule: Rule) -> str:
    return rule.unit if rule.count == 1 else f"{rule.count:g} {rule.unit}"

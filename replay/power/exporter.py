"""A metrics page that is read directly: `--power exporter:http://node1:9400/metrics`."""

from __future__ import annotations

import math
import time
from pathlib import Path

from replay.exposition import Page, read_page
from replay.power.page import Answer, ClockOffset, NoPage, PageReader
from replay.power.scraped import Devices, Seen
from replay.power.series import Matcher, parse_match, read_table
from replay.power.source import PowerFault, PowerSample, SourceInfo

PERIOD_S = 0.5  # dcgm-exporter is often told to read its GPUs every second: twice in that, or some would be missed
LOOK_S = 0.25  # between two looks while the refresh interval is measured
PATIENCE_S = 75.0
"""For how long counters are waited for: dcgm-exporter reads its GPUs every 30 s unless it is told otherwise, and two
changes take up to twice that."""
GAUGE_PATIENCE_S = 5.0  # a page of gauges alone may stand still for good reason
LEAST_S = 2.0
HANDSHAKES = 11  # with a page that gives its own times
HANDSHAKE_S = 0.13  # a fraction of a second in which no whole number of steps is one
CHANGES = 2
TIMEOUT_S = 5.0
MOST_BYTES = 16_000_000  # 72 GPUs with 40 fields are about 1 MB
MOST_SERIES = 20_000
MOST_HINTS = 5
MOST_UNIX_MS = 1e14  # the year 5138
OLDEST_S, AHEAD_S = 3600.0, 10.0  # of a reading with a time of its own


class ExporterSource:
    """The devices of one page.

    Opening it looks at the page until its counters have changed twice, so that its refresh interval and the unit of
    its counters are known. Raises PowerFault where the page cannot be read, shows no known series of power, shows two
    for the same reading, or shows a counter that cannot be in its unit.
    """

    def __init__(self, url: str, *, table: Path | None, match: str | None, header_env: tuple[str, str] | None) -> None:
        self._url = url
        self._match = parse_match(match)
        self._table = read_table(table)
        self._clock = ClockOffset()
        self._version: str | None = None
        self._waited_s: float | None = None
        self._reader = PageReader(
            url,
            header_env=header_env,
            most_bytes=MOST_BYTES,
            timeout_s=TIMEOUT_S,
            accept="text/plain;version=0.0.4;q=1, */*;q=0.1",
        )
        self._devices = Devices(self._table, self._reader.host, self._reader.shown)
        try:
            self._early = self._start()
        except BaseException:
            self._reader.close()
            raise

    def describe(self) -> SourceInfo:
        """What the page shows. Where a counter was waited for in vain, `refresh_s` is that long: it is no shorter."""
        refresh_s = self._devices.refresh_s
        if self._waited_s is not None:
            refresh_s = max(refresh_s or 0.0, self._waited_s)
        clock_u_s = self._clock.u_s if self._clock.known else 0.0
        return SourceInfo(
            kind="exporter",
            measured=not self._devices.derived,
            version=self._version,
            devices=self._devices.described(),
            notes=(*self._devices.notes, *self._devices.unit_notes(), *self._stood_still()),
            name=f"exporter:{self._reader.shown}",
            period_s=PERIOD_S,
            refresh_s=refresh_s if refresh_s is not None and refresh_s > PERIOD_S else None,
            clock_u_s=math.hypot(clock_u_s, self._devices.u_time_s(gap_s=PERIOD_S, first_gap_s=LOOK_S)),
            settle_s=PERIOD_S + (refresh_s or 0.0),
        )

    def read(self) -> list[PowerSample]:
        """What the page shows anew; a page that cannot be read is an error of every device."""
        early, self._early = self._early, []
        before_ns = time.monotonic_ns()
        try:
            answer = self._reader.get(self._url)
        except NoPage:
            after_ns = time.monotonic_ns()
            return early + self._devices.failed((before_ns + after_ns) // 2, (after_ns - before_ns) // 1000)
        seen = self._seen(self._page(answer))
        return early + self._devices.look(answer.t_ns, answer.read_us, seen)

    def close(self) -> None:
        """Hang up."""
        self._reader.close()

    def _start(self) -> list[PowerSample]:
        try:
            answer = self._reader.get(self._url)
            page = self._page(answer)
            if any(line.t_unix_ms is not None for line in page.values):
                self._set_clock(answer)
                answer = self._reader.get(self._url)
                page = self._page(answer)
        except NoPage as error:
            raise PowerFault(f"{self._reader.shown} cannot be read: {error}") from None
        seen = self._seen(page)
        self._version = _version(seen)
        self._devices.find(seen)
        if not len(self._devices):
            raise PowerFault(self._nothing(answer, page))
        samples = self._devices.look(answer.t_ns, answer.read_us, seen)
        start_ns = time.monotonic_ns()
        patience_s = PATIENCE_S if self._devices.counters else GAUGE_PATIENCE_S
        while (passed_s := (time.monotonic_ns() - start_ns) / 1e9) < patience_s:
            if passed_s >= LEAST_S and self._devices.settled(CHANGES):
                break
            time.sleep(LOOK_S)
            try:
                answer = self._reader.get(self._url)
            except NoPage:
                continue
            samples += self._devices.look(answer.t_ns, answer.read_us, self._seen(self._page(answer)))
        if self._devices.settled(CHANGES):
            self._devices.fix()
        elif self._devices.counters:
            self._waited_s = (time.monotonic_ns() - start_ns) / 1e9
        for fault in self._devices.unit_faults():
            raise PowerFault(f"{self._reader.shown}: {fault}")
        return samples

    def _page(self, answer: Answer) -> Page:
        return read_page(answer.body, self._table.names, most=MOST_SERIES)

    def _set_clock(self, answer: Answer) -> None:
        """Compare the server's clock with ours: its Date has whole seconds, so it is asked while they change."""
        for _ in range(HANDSHAKES):
            if answer.date_unix_s is not None:
                self._clock.see(round(answer.date_unix_s * 1e9), 10**9, answer.before_ns, answer.after_ns)
            time.sleep(HANDSHAKE_S)
            answer = self._reader.get(self._url)

    def _seen(self, page: Page) -> list[Seen]:
        now_ns = time.monotonic_ns()
        seen = []
        for line in page.values:
            if not _fits(dict(line.name.labels), self._match):
                continue
            t_ns = None
            if line.t_unix_ms is not None and not abs(line.t_unix_ms) < MOST_UNIX_MS:
                continue  # no time at all
            if line.t_unix_ms is not None and self._clock.known:
                t_ns = self._clock.monotonic_ns(round(line.t_unix_ms * 1e6))
                if not -OLDEST_S < (t_ns - now_ns) / 1e9 < AHEAD_S:
                    continue  # of another time: no reading of now
            seen.append(Seen(series=line.name, value=line.value, t_ns=t_ns))
        return seen

    def _nothing(self, answer: Answer, page: Page) -> str:
        if not page.is_metrics:
            return f"{self._reader.shown} is no page of metrics: give its whole address, as in …:9400/metrics"
        if page.values:
            what = "match={…} leaves nothing of" if self._match else "no label names a device in"
            return (
                f"{self._reader.shown}: {what} its {len(page.values)} series of power; correct it, or name them in a "
                "table (map=FILE)"
            )
        hints = power_names(answer.body)
        told = f"; {', '.join(hints)} may be such" if hints else ""
        return (
            f"{self._reader.shown} shows none of the {len(self._table.names)} series of power that are known{told}: "
            "name what it shows in a table (map=FILE)"
        )

    def _stood_still(self) -> tuple[str, ...]:
        if self._devices.settled(CHANGES):
            return ()
        return ("not every reading changed while the page was opened: how often it is refreshed is not known",)


def _fits(labels: dict[str, str], matchers: tuple[Matcher, ...]) -> bool:
    return all(matcher.fits(labels) for matcher in matchers)


def _version(seen: list[Seen]) -> str | None:
    for label in ("DCGM_FI_DRIVER_VERSION", "driver_version", "driver"):
        for each in seen:
            value = dict(each.series.labels).get(label)
            if value:
                return "".join(letter for letter in value if letter.isprintable())[:60]
    return None


def power_names(body: bytes) -> list[str]:
    """Names on a page that look like power or energy, for a hint; the first few."""
    found: dict[str, None] = {}
    for line in body.splitlines():
        if line.startswith(b"# TYPE "):
            name = line[7:].split(b" ")[0].decode("ascii", "replace")
            if any(word in name.lower() for word in ("power", "watt", "energy", "joule")) and name.isprintable():
                found[name[:80]] = None
        if len(found) == MOST_HINTS:
            break
    return list(found)

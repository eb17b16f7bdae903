"""Raw samples out of a Prometheus server: `--power prometheus:http://prometheus:9090,match={job="dcgm"}`.

An instant query of a range (`name[60s]`) answers with the samples as they were scraped, each with its own time. A
range query or rate() and increase() would resample, hold a value for up to five minutes, and extrapolate to the edges.
See https://prometheus.io/docs/prometheus/latest/querying/api/.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from pathlib import Path

import msgspec

from curate.words import printable
from replay.exposition import SeriesName
from replay.power.page import ClockOffset, NoPage, PageReader
from replay.power.scraped import Devices, Seen
from replay.power.series import parse_match, read_table
from replay.power.source import PowerFault, PowerSample, SourceInfo

HISTORY_S = 300  # that is looked at when it is opened
MOST_HISTORY_S = 3600  # that is caught up with after a server was away
PATIENCE_S = 75.0  # for a server that has only begun to scrape
WAIT_S = 1.0
LEAST_SAMPLES = 3
LIVE_INTERVALS = 2.5  # a series that is older than so many scrapes of it has ended
TIMEOUT_S = 10.0
MOST_BYTES = 64_000_000
HANDSHAKES = 5
MOST_HINTS = 5
AHEAD_NS = 10_000_000_000


class _Result(msgspec.Struct):
    metric: dict[str, str] = {}
    values: list[tuple[float, str]] = []


class _Answer(msgspec.Struct):
    status: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""


class _Vector(msgspec.Struct):
    result: list[_Result]


class _Scalar(msgspec.Struct):
    result: tuple[float, str]


class _BuildData(msgspec.Struct):
    version: str = ""


class _Build(msgspec.Struct):
    data: _BuildData


type _History = dict[SeriesName, list[tuple[int, float]]]
"""Series → its samples, as Unix time in nanoseconds and value, in order of time."""


class PrometheusSource:
    """The devices that a Prometheus server has scraped of late.

    Opening it reads the last five minutes: how often each series is scraped, how often what it shows changes, and
    whether its counters can be in their units. Raises PowerFault as an exporter's page does, and where a device has
    two series at once.
    """

    def __init__(self, url: str, *, match: str | None, table: Path | None, header_env: tuple[str, str] | None) -> None:
        self._match = parse_match(match)
        self._table = read_table(table)
        self._clock = ClockOffset()
        self._reader = PageReader(
            url, header_env=header_env, most_bytes=MOST_BYTES, timeout_s=TIMEOUT_S, accept="application/json"
        )
        self._query_url = url.partition("?")[0].rstrip("/").removesuffix("/api/v1/query") + "/api/v1/query"
        self._devices = Devices(self._table, "", self._reader.shown)
        self._newest: dict[SeriesName, int] = {}
        self._lost_until: dict[str, int] = {}
        try:
            for _ in range(HANDSHAKES):
                self._handshake()
            self._early = self._start()
        except NoPage as error:
            self._reader.close()
            raise PowerFault(f"{self._reader.shown} cannot be asked: {error}") from None
        except BaseException:
            self._reader.close()
            raise

    def describe(self) -> SourceInfo:
        """What the server has. `refresh_s` is how often new readings come: its scrapes, or the exporter's own."""
        refresh_s = max(self._interval_s, self._devices.refresh_s or 0.0)
        period_s = min(max(self._interval_s / 2, 1.0), 5.0)
        return SourceInfo(
            kind="prometheus",
            measured=not self._devices.derived,
            version=self._version,
            devices=self._devices.described(),
            notes=(
                *self._devices.notes,
                *self._devices.unit_notes(),
                f"scraped every {self._interval_s:g} s",
            ),
            name=f"prometheus:{self._reader.shown}",
            period_s=period_s,
            refresh_s=refresh_s if refresh_s > period_s else None,
            clock_u_s=math.hypot(
                self._clock.u_s, self._devices.u_time_s(gap_s=self._interval_s, first_gap_s=self._interval_s)
            ),
            settle_s=refresh_s + self._interval_s + period_s,
        )

    def read(self) -> list[PowerSample]:
        """What was scraped since the last call; while the server does not answer, nothing, and all of it afterwards."""
        samples, self._early = self._early, []
        before_ns = time.monotonic_ns()
        newest_ns = max(self._newest.values())
        behind_s = (before_ns - self._clock.monotonic_ns(newest_ns)) / 1e9
        window_s = min(max(behind_s, 0.0) + 3 * self._interval_s + 5, MOST_HISTORY_S)
        try:
            history = self._history(math.ceil(window_s))
        except (NoPage, PowerFault):
            return samples
        return samples + self._follow(history, (time.monotonic_ns() - before_ns) // 1000)

    def close(self) -> None:
        """Hang up."""
        self._reader.close()

    def _start(self) -> list[PowerSample]:
        self._version = self._build()
        start_ns = time.monotonic_ns()
        while True:
            history = self._history(HISTORY_S)
            enough = bool(history) and max(map(len, history.values())) >= LEAST_SAMPLES
            if enough or (time.monotonic_ns() - start_ns) / 1e9 > PATIENCE_S:
                break
            if not history and (time.monotonic_ns() - start_ns) / 1e9 > 5 * WAIT_S:
                raise PowerFault(self._nothing())
            time.sleep(WAIT_S)
        spacings = [later[0] - earlier[0] for told in history.values() for earlier, later in itertools.pairwise(told)]
        if not spacings:
            raise PowerFault(f"{self._reader.shown} has not scraped any series of power twice: is its target up?")
        self._interval_s = round(statistics.median(spacings) / 1e9, 3)
        newest_ns = max(told[-1][0] for told in history.values())
        live = {
            series: told
            for series, told in history.items()
            if newest_ns - told[-1][0] <= LIVE_INTERVALS * self._interval_s * 1e9
        }
        self._devices.find([Seen(series=series, value=told[-1][1], t_ns=told[-1][0]) for series, told in live.items()])
        if not len(self._devices):
            raise PowerFault(self._nothing())
        samples = self._follow(history, 0)
        for fault in self._devices.unit_faults():
            raise PowerFault(f"{self._reader.shown}: {fault}")
        # Only the last of it may lie in front of what is measured.
        recent_ns = self._clock.monotonic_ns(newest_ns) - round(
            2 * max(self._interval_s, self._devices.refresh_s or 0.0) * 1e9
        )
        return [sample for sample in samples if sample.t_ns >= recent_ns]

    def _follow(self, history: _History, read_us: int) -> list[PowerSample]:
        """The samples that are new, scrape by scrape; what ends while the rest of its machine goes on is lost."""
        scrapes: dict[int, list[Seen]] = {}
        for series, told in history.items():
            after_ns = self._newest.get(series, -1)
            for unix_ns, value in told:
                if unix_ns > after_ns:
                    t_ns = self._clock.monotonic_ns(unix_ns)
                    scrapes.setdefault(unix_ns, []).append(Seen(series=series, value=value, t_ns=t_ns))
                    self._newest[series] = unix_ns
        samples: list[PowerSample] = []
        for unix_ns in sorted(scrapes):
            t_ns = self._clock.monotonic_ns(unix_ns)
            samples += self._devices.look(t_ns, read_us, scrapes[unix_ns], whole=False)
        return samples + self._lost(read_us)

    def _lost(self, read_us: int) -> list[PowerSample]:
        newest = self._devices.newest_ns
        hosts: dict[str, int] = {}
        for uid, t_ns in newest.items():
            host = self._devices.host(uid)
            hosts[host] = max(t_ns, hosts.get(host, t_ns))
        samples = []
        for uid, t_ns in newest.items():
            now_ns = hosts[self._devices.host(uid)]
            late = now_ns - t_ns > LIVE_INTERVALS * self._interval_s * 1e9
            if late and now_ns > self._lost_until.get(uid, t_ns):
                self._lost_until[uid] = now_ns
                samples.append(self._devices.gone(uid, now_ns, read_us, "lost"))
        return samples

    def _history(self, seconds: int) -> _History:
        names = "|".join(sorted(self._table.names))
        conditions = [f'__name__=~"{names}"', *(matcher.text for matcher in self._match)]
        vector = self._ask(f"{{{','.join(conditions)}}}[{seconds}s]", _Vector)
        history: _History = {}
        now_ns = time.monotonic_ns()
        for result in vector.result:
            name = result.metric.pop("__name__", "")
            series = SeriesName(name=name, labels=tuple(sorted(result.metric.items())))
            told = [(round(at * 1e3) * 10**6, _number(value)) for at, value in result.values if 0 < at < 1e11]
            # What a target dates into the future, or far back, is no reading of this window.
            history[series] = [point for point in told if self._clock.monotonic_ns(point[0]) < now_ns + AHEAD_NS]
        return {series: told for series, told in history.items() if told}

    def _handshake(self) -> None:
        """The server's clock: time() is when it evaluated the query, in milliseconds."""
        before_ns = time.monotonic_ns()
        scalar = self._ask("time()", _Scalar)
        after_ns = time.monotonic_ns()
        unix_s = _number(scalar.result[1])
        if not 0 < unix_s < 1e11:
            raise PowerFault(self._no_server())
        unix_ns = round(unix_s * 1e3) * 10**6
        self._clock.see(unix_ns, 10**6, before_ns, after_ns)

    def _build(self) -> str | None:
        """The server's version, where it tells."""
        try:
            answer = self._reader.get(self._query_url.removesuffix("query") + "status/buildinfo")
            told = msgspec.json.decode(answer.body, type=_Build)
        except (NoPage, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return f"Prometheus {printable(told.data.version)[:40]}" if told.data.version else None

    def _ask[Told](self, query: str, kind: type[Told]) -> Told:
        answer = self._reader.get(self._query_url, {"query": query})
        try:
            told = msgspec.json.decode(answer.body, type=_Answer)
            if told.status != "success":
                raise PowerFault(f"{self._reader.shown} refuses the query: {printable(told.error)[:300]}")
            return msgspec.json.decode(told.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise PowerFault(self._no_server()) from None

    def _no_server(self) -> str:
        return f"{self._reader.shown} does not answer as a Prometheus server: give the address in front of /api/v1"

    def _nothing(self) -> str:
        conditions = ['__name__=~"(?i).*(power|watt|energy|joule).*"', *(matcher.text for matcher in self._match)]
        try:
            found = self._ask(f"count by (__name__) ({{{','.join(conditions)}}})", _Vector)
        except (NoPage, PowerFault):
            found = _Vector(result=[])
        hints = [printable(result.metric.get("__name__", ""))[:80] for result in found.result[:MOST_HINTS]]
        told = f"; {', '.join(hints)} may be such" if hints else "; correct match={…}, or start what is scraped"
        return (
            f"{self._reader.shown} has none of the {len(self._table.names)} series of power that are known with a "
            f"sample of the last {HISTORY_S} s{told}: name others in a table (map=FILE)"
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

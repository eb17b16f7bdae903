"""The server's own metrics beside a trial: read once a second, kept as facts, and what they say about a window.

The reader is a thread per server with a client of its own. It shares nothing with the load but the interpreter, reads
bounded pages in bounded time, and takes a server's failure to answer as one more fact: a trial never fails by it.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx

from replay.exposition import KINDS, NAMES, NotMetrics, Quantity, Series, SeriesName, parse_series, read_exposition

if TYPE_CHECKING:
    from replay.endpoint import Endpoint
    from replay.window import Window

PERIOD_S = 1.0
TIMEOUT_S = 2.0
"""Of one reading. A server that needs longer to say how it is has other troubles; the reading is missed, not late."""
MOST_BYTES = 4_000_000
PAGES = ("/metrics", "/prometheus/metrics")
"""TensorRT-LLM has its Prometheus text at the second and JSON at the first."""
GIVE_UP_AFTER = 3
"""Readings in a row to which a server answered that it has no such page."""

READ_US = "agentdyno:read_us"
"""The sample that marks a reading: how long it took. Its time is the time of all samples of that reading."""
FAILED = "agentdyno:read_failed"
"""A reading that failed, with a label for the reason; its value is how long it took, in microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSample:
    """One value as the server gave it. `t_ns` is monotonic; in a run folder it counts from the trial's zero."""

    t_ns: int
    server: str  # base URL
    metric: str  # name and labels as the server wrote them
    value: float


class Scraper:
    """Reads every server of an endpoint until it is stopped; a context manager.

    `metrics_urls` name where the metrics are instead, when a router without metrics stands in front of the engines.
    They are read without the endpoint's key.
    """

    def __init__(self, endpoint: Endpoint, *, metrics_urls: Sequence[str] = (), period_s: float = PERIOD_S) -> None:
        key = endpoint.key()
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        way = endpoint.way()
        proxy = None
        if way is not None:
            authorization = {} if way.authorization is None else {"proxy-authorization": way.authorization.decode()}
            proxy = httpx.Proxy(f"http://{way.host}:{way.port}", headers=authorization)
        urls = tuple(dict.fromkeys(map(_base, metrics_urls))) or endpoint.urls
        servers = [(url, headers if url in endpoint.urls else {}) for url in urls]
        self._stop = threading.Event()
        # Clients are made here, before anything is measured: loading certificates takes tens of milliseconds.
        self._readers = tuple(_Reader(url, fields, proxy, period_s, self._stop) for url, fields in servers)

    def __enter__(self) -> Self:
        for reader in self._readers:
            reader.start()
        for reader in self._readers:  # so that a window always has a reading in front of it
            reader.first.wait(2 * TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take a last reading and end the threads; a second call does nothing. Takes at most a few seconds."""
        self._stop.set()
        for reader in self._readers:
            reader.join(4 * TIMEOUT_S)

    @property
    def samples(self) -> tuple[ServerSample, ...]:
        """All samples so far, in order of time; complete after `stop`."""
        found = [sample for reader in self._readers for sample in tuple(reader.samples)]
        return tuple(sorted(found, key=lambda sample: sample.t_ns))


def _base(url: str) -> str:
    url = url.strip().rstrip("/")
    for page in sorted(PAGES, key=len, reverse=True):
        url = url.removesuffix(page)
    return url


class _FailedReading(Exception):
    """Its text is the reason, one of few."""


class _Reader(threading.Thread):
    def __init__(
        self, url: str, headers: dict[str, str], proxy: httpx.Proxy | None, period_s: float, stop: threading.Event
    ) -> None:
        super().__init__(name="server-metrics", daemon=True)
        self.samples: list[ServerSample] = []
        self.first = threading.Event()
        self._url = url
        self._period_s = period_s
        self._stop_event = stop
        self._page: str | None = None  # the one that has metrics, once it is known
        self._refused = 0
        self._client = httpx.Client(
            headers={
                "user-agent": "agentdyno",
                "accept-encoding": "identity",
                "accept": "text/plain, */*;q=0.5",
                **headers,
            },
            timeout=TIMEOUT_S,
            trust_env=False,
            proxy=proxy,
            follow_redirects=True,  # vLLM sends /metrics to /metrics/
            max_redirects=3,
        )

    def run(self) -> None:
        with self._client:
            start_ns = time.monotonic_ns()
            period_ns = round(self._period_s * 1e9)
            stopping = False
            while True:
                self._read()
                self.first.set()
                if stopping or self._refused >= GIVE_UP_AFTER:
                    return
                passed = time.monotonic_ns() - start_ns
                stopping = self._stop_event.wait((period_ns - passed % period_ns) / 1e9)

    def _read(self) -> None:
        before_ns = time.monotonic_ns()
        series: Series = {}
        reason = None
        try:
            series = self._series()
            self._refused = 0
        except _FailedReading as fault:
            reason = str(fault)
        except httpx.TimeoutException:
            reason = "time-out"
        except httpx.ConnectError:
            reason = "no connection"
        except (httpx.HTTPError, httpx.InvalidURL):
            reason = "broken HTTP"
        after_ns = time.monotonic_ns()
        t_ns, took_us = (before_ns + after_ns) // 2, (after_ns - before_ns) / 1000
        mark = READ_US if reason is None else f'{FAILED}{{reason="{reason}"}}'
        self.samples.append(ServerSample(t_ns=t_ns, server=self._url, metric=mark, value=took_us))
        self.samples += [
            ServerSample(t_ns=t_ns, server=self._url, metric=metric, value=value) for metric, value in series.items()
        ]

    def _series(self) -> Series:
        if self._page is not None:
            return read_exposition_of(self._get(self._page))
        found: tuple[str, Series] | None = None
        refusal: _FailedReading | None = None
        for page in PAGES:
            try:
                body = self._get(page)
                series = read_exposition_of(body)
            except _FailedReading as fault:
                refusal = refusal or fault
                continue
            if found is None or series:
                found = (page, series)
            if body.lstrip()[:1] != b"[":  # text; after JSON, look whether there is text as well
                break
        if found is None:
            assert refusal is not None
            if str(refusal).startswith("HTTP 4") or str(refusal) == "no metrics":
                self._refused += 1
            raise refusal
        self._page = found[0]
        return found[1]

    def _get(self, page: str) -> bytes:
        deadline_ns = time.monotonic_ns() + round(TIMEOUT_S * 1e9)
        body = bytearray()
        with self._client.stream("GET", self._url + page) as response:
            if response.status_code != 200:
                raise _FailedReading(f"HTTP {response.status_code}")
            for piece in response.iter_raw():
                body += piece
                if len(body) > MOST_BYTES:
                    raise _FailedReading("too long")
                if time.monotonic_ns() > deadline_ns:  # httpx bounds each read, and a page may come in many
                    raise _FailedReading("time-out")
        return bytes(body)


def read_exposition_of(body: bytes) -> Series:
    """The series of a page; its faults are those of a reading."""
    try:
        return read_exposition(body)
    except NotMetrics:
        raise _FailedReading("no metrics") from None


# -- what the samples say


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A quantity that goes up and down, over the readings inside a window."""

    mean: float
    peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWindow:
    """What one server, or all of them, said about a window. None: it does not say."""

    server: str  # base URL, or `all`
    readings: int  # inside the window
    failed_readings: int
    failures: tuple[str, ...]  # reasons, the most frequent first
    longest_gap_s: float | None  # of the window without a reading
    resets: int  # restarts of the server that its counters show
    running: Gauge | None  # requests that are computed
    waiting: Gauge | None  # requests in the server's queue
    kv_use: Gauge | None  # 0 to 1, of the fullest part
    prompt_tokens: float | None
    generation_tokens: float | None
    prefix_queries: float | None  # in the unit of `prefix_hits`: tokens, for some engines blocks
    prefix_hits: float | None
    prefix_hit_share: float | None
    preemptions: float | None
    acceptance_length: float | None  # tokens per step of speculative decoding, 1 included
    queued_requests: float | None  # that left the queue inside the window
    queue_mean_s: float | None  # of these


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetrics:
    """All servers of a trial over a window.

    In `total`, counters and mean loads are sums; peaks and `kv_use` are those of the single server that had most.
    """

    servers: tuple[ServerWindow, ...]
    total: ServerWindow


def server_metrics(samples: Iterable[ServerSample], window: Window) -> ServerMetrics | None:
    """What the servers said about a window; None where nobody was asked. A pure function of the samples.

    A counter's growth is taken at the window's edges by interpolation between two readings. Where it falls the server
    was started anew, and counts from 0; what it had counted between its last reading and its end is lost.
    """
    by_server: dict[str, list[ServerSample]] = {}
    for sample in samples:
        by_server.setdefault(sample.server, []).append(sample)
    if not by_server:
        return None
    read = [(_Readings(server, own), window) for server, own in by_server.items()]
    parts = tuple(readings.over(inside) for readings, inside in read)
    return ServerMetrics(servers=parts, total=_together(parts))


class _Readings:
    """One server's samples, by reading."""

    def __init__(self, server: str, samples: Sequence[ServerSample]) -> None:
        self.server = server
        self.failures: list[tuple[int, str]] = []
        times = set()
        names: dict[str, SeriesName | None] = {}
        # name → part of the server → time → value
        self._values: dict[str, dict[object, dict[int, float]]] = {}
        for sample in samples:
            if sample.metric == READ_US:
                times.add(sample.t_ns)
                continue
            if sample.metric not in names:
                names[sample.metric] = parse_series(sample.metric)
            series = names[sample.metric]
            if series is None:
                continue
            if series.name == FAILED:
                self.failures.append((sample.t_ns, dict(series.labels).get("reason", "unknown")))
                continue
            part = self._values.setdefault(series.name, {}).setdefault(series.part, {})
            part[sample.t_ns] = max(sample.value, part.get(sample.t_ns, sample.value))  # ranks report the same load
        self.times = sorted(times)

    def over(self, window: Window) -> ServerWindow:
        inside = [t_ns for t_ns in self.times if window.start_ns <= t_ns < window.end_ns]
        reasons = Counter(reason for t_ns, reason in self.failures if window.start_ns <= t_ns < window.end_ns)
        edges = [window.start_ns, *inside, window.end_ns]
        gap_ns = max(later - earlier for earlier, later in itertools.pairwise(edges))
        counted = {quantity: self._growth(quantity, window) for quantity, kind in KINDS.items() if kind == "counter"}
        queries, hits = self._prefix(window)
        drafts, accepted = counted["drafts"], counted["accepted"]
        acceptance = 1 + accepted / drafts if drafts and accepted is not None else None
        if acceptance is None:
            gauge = self._gauge("acceptance_length", inside, least=1.0)  # 0 where nothing is drafted
            acceptance = gauge.mean if gauge is not None else None
        return ServerWindow(
            server=self.server,
            readings=len(inside),
            failed_readings=reasons.total(),
            failures=tuple(reason for reason, _ in reasons.most_common()),
            longest_gap_s=gap_ns / 1e9 if inside else None,
            resets=self._resets(window),
            running=self._gauge("running", inside),
            waiting=self._gauge("waiting", inside),
            kv_use=self._gauge("kv_use", inside),
            prompt_tokens=counted["prompt_tokens"],
            generation_tokens=counted["generation_tokens"],
            prefix_queries=queries,
            prefix_hits=hits,
            prefix_hit_share=_ratio(hits, queries),
            preemptions=counted["preemptions"],
            acceptance_length=acceptance,
            queued_requests=counted["queue_s_count"],
            queue_mean_s=_ratio(counted["queue_s_sum"], counted["queue_s_count"]),
        )

    def _name(self, quantity: Quantity) -> str | None:
        return next((name for name in NAMES[quantity] if name in self._values), None)

    def _gauge(self, quantity: Quantity, inside: Sequence[int], least: float | None = None) -> Gauge | None:
        name = self._name(quantity)
        if name is None:
            return None
        join = sum if KINDS[quantity] == "load" else max
        values = []
        for t_ns in inside:
            parts = [part[t_ns] for part in self._values[name].values() if t_ns in part]
            if parts and (least is None or max(parts) >= least):
                values.append(join(parts))
        return Gauge(mean=statistics.fmean(values), peak=max(values)) if values else None

    def _growth(self, quantity: Quantity, window: Window) -> float | None:
        name = self._name(quantity)
        return None if name is None else self._growth_of(name, window)

    def _prefix(self, window: Window) -> tuple[float | None, float | None]:
        """Queries and hits by the same engine's count."""
        for queries, hits in zip(NAMES["prefix_queries"], NAMES["prefix_hits"], strict=True):
            if queries in self._values and hits in self._values:
                return self._growth_of(queries, window), self._growth_of(hits, window)
        return None, None

    def _growth_of(self, name: str, window: Window) -> float | None:
        if len(self.times) < 2 or self.times[-1] <= window.start_ns or self.times[0] >= window.end_ns:
            return None
        return sum(
            _at(self.times, grown, window.end_ns) - _at(self.times, grown, window.start_ns)
            for grown in (self._unrolled(part)[0] for part in self._values[name].values())
        )

    def _unrolled(self, part: dict[int, float]) -> tuple[list[float], list[int]]:
        """How much a counter had grown by each reading since the first, and where it began anew."""
        total, last = 0.0, None
        grown, resets = [], []
        for t_ns in self.times:
            value = part.get(t_ns)
            if value is not None:
                if last is None:
                    # Not there at the first reading: engines show a counter once there is something to count.
                    total += 0.0 if t_ns == self.times[0] else value
                elif value < last:
                    total += value
                    resets.append(t_ns)
                else:
                    total += value - last
                last = value
            grown.append(total)
        return grown, resets

    def _resets(self, window: Window) -> int:
        at: set[int] = set()
        for name in (self._name("generation_tokens"), self._name("prompt_tokens")):
            for part in self._values.get(name or "", {}).values():
                at.update(self._unrolled(part)[1])
        return sum(window.start_ns <= t_ns < window.end_ns for t_ns in at)


def _at(times: Sequence[int], grown: Sequence[float], t_ns: int) -> float:
    """A counter's growth at a time, on a straight line between two readings, and flat outside of them."""
    place = bisect.bisect_left(times, t_ns)
    if place in (0, len(times)):
        return grown[0 if place == 0 else -1]
    share = (t_ns - times[place - 1]) / (times[place] - times[place - 1])
    return grown[place - 1] + share * (grown[place] - grown[place - 1])


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum, None where a server does not say: a part would pass for the whole."""
    found = list(values)
    return None if any(value is None for value in found) else sum(value for value in found if value is not None)


def _together(parts: Sequence[ServerWindow]) -> ServerWindow:
    if len(parts) == 1:
        return parts[0]

    def load(gauges: Sequence[Gauge | None]) -> Gauge | None:
        known = [gauge for gauge in gauges if gauge is not None]
        if len(known) < len(gauges):
            return None
        return Gauge(mean=sum(gauge.mean for gauge in known), peak=max(gauge.peak for gauge in known))

    fullest = [part.kv_use for part in parts if part.kv_use is not None]
    queries, hits = _sum(part.prefix_queries for part in parts), _sum(part.prefix_hits for part in parts)
    queued = _sum(part.queued_requests for part in parts)
    lengths = [part.acceptance_length for part in parts if part.acceptance_length is not None]
    gaps = [part.longest_gap_s for part in parts if part.longest_gap_s is not None]
    return ServerWindow(
        server="all",
        readings=min(part.readings for part in parts),
        failed_readings=sum(part.failed_readings for part in parts),
        failures=tuple(dict.fromkeys(reason for part in parts for reason in part.failures)),
        longest_gap_s=max(gaps) if len(gaps) == len(parts) else None,
        resets=sum(part.resets for part in parts),
        running=load([part.running for part in parts]),
        waiting=load([part.waiting for part in parts]),
        kv_use=max(fullest, key=lambda gauge: gauge.mean) if len(fullest) == len(parts) else None,
        prompt_tokens=_sum(part.prompt_tokens for part in parts),
        generation_tokens=_sum(part.generation_tokens for part in parts),
        prefix_queries=queries,
        prefix_hits=hits,
        prefix_hit_share=_ratio(hits, queries),
        preemptions=_sum(part.preemptions for part in parts),
        acceptance_length=statistics.fmean(lengths) if lengths else None,
        queued_requests=queued,
        queue_mean_s=_ratio(_sum((part.queue_mean_s or 0.0) * (part.queued_requests or 0.0) for part in parts), queued),
    )

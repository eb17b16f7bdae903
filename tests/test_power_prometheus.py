"""A Prometheus server as a source of power: raw samples at their own times, from a real server and from a false one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from replay.power import prometheus as module
from replay.power.prometheus import PrometheusSource
from replay.power.source import PowerFault, PowerSample
from tests.metric_site import Exporter, site
from tests.prometheus_server import INTERVAL_S, prometheus

COUNTER = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
GAUGE = "DCGM_FI_DEV_POWER_USAGE"


def opened(url: str, match: str = '{job="dcgm"}', *, header: tuple[str, str] | None = None) -> PrometheusSource:
    return PrometheusSource(url, match=match, table=None, header_env=header)


def follow(source: PrometheusSource, seconds: float, every_s: float = 0.1) -> list[PowerSample]:
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples += source.read()
        time.sleep(every_s)
    return samples


# -- a real server


@pytest.mark.slow
def test_a_real_server_gives_raw_samples_of_what_it_scraped_at_their_own_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    gpus, wrong = Exporter(refresh_s=0.01), Exporter(refresh_s=0.01, millijoules=1.0)
    with site(gpus) as right, site(wrong) as joules:
        target, other = right.url.removeprefix("http://"), joules.url.removeprefix("http://")
        with prometheus(tmp_path, {"dcgm": target, "again": target, "joules": other}) as url:
            source = opened(url)
            samples = follow(source, 1.0)
            info = source.describe()
            with pytest.raises(PowerFault, match="has none of the"):
                opened(url, '{job="none"}')
            with pytest.raises(PowerFault, match="has another unit"):
                opened(url, '{job="joules"}')
            with pytest.raises(PowerFault) as twice:
                opened(url, '{job=~"dcgm|again"}')
            gpus.gone = {1}
            samples_after = follow(source, 0.9)
            source.close()
    assert 'job="dcgm"' in str(twice.value)
    assert 'job="again"' in str(twice.value)
    assert info.kind == "prometheus"
    assert info.version is not None
    assert info.version.startswith("Prometheus 2") or info.version.startswith("Prometheus 3")
    assert info.refresh_s is None  # 0.2 s: it is read more rarely than it scrapes
    assert info.settle_s >= 2 * INTERVAL_S
    assert {device.uid: (device.host, device.domain) for device in info.devices} == {
        "GPU-0": ("n1", "accelerator"),
        "GPU-1": ("n1", "accelerator"),
    }
    for index, watts in enumerate(gpus.watts):
        counts = [sample for sample in samples if (sample.device, sample.kind) == (f"GPU-{index}", "energy_j")]
        assert len(counts) >= 5
        assert [sample.t_ns for sample in counts] == sorted({sample.t_ns for sample in counts})
        for sample in counts:
            assert sample.value is not None
            # The server's time against ours by a handshake, and the truth of what it scraped then.
            late_s = (gpus.joules(index, sample.t_ns) - sample.value) / watts
            assert abs(late_s) < 0.1 + 4 * info.clock_u_s
        # Between any two samples the energy is the truth to the latch: nothing was resampled or extrapolated.
        first, last = counts[0], counts[-1]
        assert first.value is not None
        assert last.value is not None
        measured_w = (last.value - first.value) / ((last.t_ns - first.t_ns) / 1e9)
        assert measured_w == pytest.approx(watts, rel=0.1)
    assert {sample.device for sample in samples_after if sample.flag == "lost"} == {"GPU-1"}


# -- a false one


class Clock:
    """The clock of the source and of the server, which a test sets forward."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + round(self.skipped_s * 1e9)

    def sleep(self, seconds: float) -> None:
        self.skipped_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@dataclass
class Server:
    """Answers as Prometheus does, of samples that a test makes up."""

    clock: Clock
    series: dict[str, Callable[[float], float]]  # labels as JSON → value at a time in seconds since the start
    interval_s: float = 15.0
    age_s: float = 200.0  # how much history there is when it starts
    ends_s: dict[str, float] = field(default_factory=dict)
    begins_s: dict[str, float] = field(default_factory=dict)
    start_ns: int = field(default_factory=time.monotonic_ns)
    down: bool = False
    windows: list[int] = field(default_factory=list)

    def now_s(self) -> float:
        return (self.clock.monotonic_ns() - self.start_ns) / 1e9

    def __call__(self, path: str) -> tuple[int, bytes]:
        parts = urlsplit(path)
        if self.down:
            return 503, b""
        if parts.path.endswith("buildinfo"):
            return 200, b'{"status":"success","data":{"version":"9.9"}}'
        query = parse_qs(parts.query)["query"][0]
        base_s = 1_700_000_000.0
        if query == "time()":
            told = f"{base_s + self.now_s():.3f}"
            return 200, json.dumps(
                {"status": "success", "data": {"resultType": "scalar", "result": [0, told]}}
            ).encode()
        if not query.endswith("s]"):
            return 200, b'{"status":"success","data":{"result":[{"metric":{"__name__":"pdu_watts"},"value":[1,"2"]}]}}'
        window_s = int(query.rpartition("[")[2].rstrip("s]"))
        self.windows.append(window_s)
        result = []
        now_s = self.now_s()
        for labels, value in self.series.items():
            first = max(-self.age_s, now_s - window_s, self.begins_s.get(labels, -self.age_s))
            count = int(-(-first // self.interval_s))
            values = []
            while (at_s := count * self.interval_s) <= min(now_s, self.ends_s.get(labels, now_s)):
                values.append([base_s + at_s, repr(value(at_s))])
                count += 1
            if values:
                result.append({"metric": json.loads(labels), "values": values})
        return 200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()


def series(name: str, uid: str, **labels: str) -> str:
    return json.dumps({"__name__": name, "UUID": uid, "Hostname": "n1", "instance": "n1:9400", **labels})


def test_history_tells_scrape_interval_and_refresh_and_a_lagging_clock_is_seen_through(clock: Clock) -> None:
    refreshed = lambda at_s: (1e6 + 500.0 * (at_s // 30 * 30)) * 1000  # noqa: E731  # counted every 30 s
    server = Server(clock, series={series(COUNTER, "GPU-a"): refreshed}, age_s=300)
    with site(server) as found:
        source = opened(found.url, '{Hostname="n1"}')
        info = source.describe()
        early = source.read()
        clock.skipped_s += 120
        later = source.read()
        source.close()
    assert info.refresh_s == pytest.approx(30)
    assert info.devices[0].latch_s == pytest.approx(30)
    assert "scraped every 15 s" in info.notes
    # The middle between two scrapes, 15 s apart, is known to 15 s, rectangular.
    assert info.clock_u_s == pytest.approx(15 / 12**0.5, abs=0.05)
    assert early
    assert len(later) == 4
    for sample in early + later:
        assert sample.value is not None
        counted_at_s = (sample.value - 1e6) / 500.0
        our_s = (sample.t_ns - server.start_ns) / 1e9
        assert abs(our_s - counted_at_s) <= 7.6


def test_a_server_that_was_away_is_caught_up_with(clock: Clock) -> None:
    server = Server(clock, series={series(COUNTER, "GPU-a"): lambda at_s: (1e6 + 500.0 * at_s) * 1000})
    with site(server) as found:
        source = opened(found.url, '{Hostname="n1"}')
        seen = source.read()
        server.down = True
        clock.skipped_s += 600
        assert source.read() == []
        server.down = False
        caught = source.read()
        assert source.read() == []
        source.close()
    assert len(caught) == 40
    assert len({sample.t_ns for sample in seen + caught}) == len(seen) + 40
    assert max(server.windows) >= 600


def test_a_gpu_that_passes_from_pod_to_pod_is_one_device(clock: Clock) -> None:
    energy = lambda at_s: (1e6 + 500.0 * at_s) * 1000  # noqa: E731
    one, two = series(COUNTER, "GPU-a", pod="x"), series(COUNTER, "GPU-a", pod="y")
    server = Server(clock, series={one: energy, two: energy}, ends_s={one: -20.0}, begins_s={two: -19.0})
    with site(server) as found:
        source = opened(found.url, '{Hostname="n1"}')
        source.read()
        server.ends_s[two] = 65.0
        server.begins_s[one] = 65.0
        server.ends_s[one] = 1e9
        clock.skipped_s += 120
        later = source.read()
        source.close()
    assert len(source.describe().devices) == 1
    assert len(later) == 8
    assert {sample.flag for sample in later} == {"ok"}


def test_a_gpu_that_ends_while_its_machine_goes_on_is_lost_and_a_machine_that_ends_is_not(clock: Clock) -> None:
    energy = lambda at_s: (1e6 + 500.0 * at_s) * 1000  # noqa: E731
    a, b = series(COUNTER, "GPU-a"), series(COUNTER, "GPU-b")
    c = json.dumps({"__name__": COUNTER, "UUID": "GPU-c", "Hostname": "n2"})
    server = Server(clock, series={a: energy, b: energy, c: energy})
    with site(server) as found:
        source = opened(found.url, '{UUID!=""}')
        source.read()
        server.ends_s = {b: 10.0, c: 10.0}
        clock.skipped_s += 90
        later = source.read()
        source.close()
    assert {(sample.device, sample.flag) for sample in later} == {("GPU-a", "ok"), ("GPU-b", "lost")}


def test_a_header_comes_from_the_environment_and_conditions_reach_the_server(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv("PROMETHEUS_KEY", "Bearer s3cret")
    server = Server(clock, series={series(GAUGE, "GPU-a"): lambda at_s: 300.0 + at_s % 7})
    with site(server) as found:
        source = opened(found.url + "/", '{job="dcgm",pod!~"a\\"b"}', header=("Authorization", "PROMETHEUS_KEY"))
        assert "s3cret" not in repr(source.describe())
        source.close()
        asked = [parse_qs(urlsplit(path).query).get("query", [""])[0] for path in found.asked]
        assert all(headers["authorization"] == "Bearer s3cret" for headers in found.headers)
    ranges = [query for query in asked if query.endswith("s]")]
    assert all('job="dcgm",pod!~"a\\"b"' in query for query in ranges)
    assert not any("rate(" in query or "increase(" in query for query in asked)
    assert all(urlsplit(path).path.startswith("/api/v1/") for path in found.asked)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _: (200, b"<html></html>"), "does not answer as a Prometheus server"),
        (
            lambda _: (200, b'{"status":"error","error":"parse \\u001b[2J fault"}'),
            "refuses the query: parse  [2J fault",
        ),
        (lambda _: (401, b""), "header-env=Authorization=VARIABLE"),
        (lambda _: (404, b""), "HTTP 404"),
        (lambda _: (200, b'{"status":"success","data":{"result":[0,"soon"]}}'), "does not answer as"),
    ],
)
def test_a_server_that_is_none_is_refused(answer: Callable[[str], tuple[int, bytes]], words: str) -> None:
    with site(answer) as found, pytest.raises(PowerFault) as fault:
        opened(found.url)
    assert words in str(fault.value)


def test_samples_of_impossible_times_and_values_are_no_readings(clock: Clock) -> None:
    server = Server(clock, series={series(COUNTER, "GPU-a"): lambda at_s: (1e6 + 500.0 * at_s) * 1000})

    def answer(path: str) -> tuple[int, bytes]:
        status, body = server(path)
        wild = b'"values": [[1e30, "1"], [-5, "2"], [99999999999.9, "3"], '
        return status, body.replace(b'"values": [', wild, 1).replace(b'"]]}', b'"], [1700000000.5, "NaN"]]}', 1)

    with site(answer) as found:
        source = opened(found.url, '{Hostname="n1"}')
        samples = source.read()
        clock.skipped_s += 60
        samples += source.read()
        source.close()
    now_ns = clock.monotonic_ns()
    assert samples
    assert all(now_ns - 400 * 10**9 < sample.t_ns <= now_ns for sample in samples)
    assert {sample.flag for sample in samples} <= {"ok", "blank"}


def test_a_server_without_known_series_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    with site(Server(clock, series={})) as found, pytest.raises(PowerFault, match="pdu_watts may be such"):
        opened(found.url)

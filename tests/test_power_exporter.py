"""A metrics page as a source of power: what is new on it, when that was read, and what is wrong with it."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.exposition import parse_series, read_page
from replay.power import exporter, page, scraped
from replay.power.choice import parse_power
from replay.power.energy import integrate
from replay.power.exporter import ExporterSource
from replay.power.page import ClockOffset, NoPage, PageReader, shown_url
from replay.power.scraped import Devices, Seen
from replay.power.series import read_table
from replay.power.source import PowerFault, PowerSample
from tests.certificates import make_certificates, tls_front
from tests.metric_site import PAGES, Exporter, Site, site

SECOND = 1_000_000_000
NAME = "DCGM_FI_DEV_POWER_USAGE"
COUNTER = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds at an exporter of 30 s takes hundredths here."""
    monkeypatch.setattr(exporter, "LOOK_S", 0.01)
    monkeypatch.setattr(exporter, "LEAST_S", 0.1)
    monkeypatch.setattr(exporter, "PATIENCE_S", 0.8)
    monkeypatch.setattr(exporter, "GAUGE_PATIENCE_S", 0.1)
    monkeypatch.setattr(exporter, "HANDSHAKES", 7)


def opened(
    url: str, *, table: Path | None = None, match: str | None = None, header: tuple[str, str] | None = None
) -> ExporterSource:
    return ExporterSource(url + "/metrics", table=table, match=match, header_env=header)


def follow(source: ExporterSource, seconds: float, every_s: float = 0.01) -> list[PowerSample]:
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples += source.read()
        time.sleep(every_s)
    return samples


def test_the_command_line_opens_a_page(tmp_path: Path) -> None:
    table = tmp_path / "series.toml"
    table.write_text(
        '[[series]]\nname = "pdu_watts"\ndomain = "rack"\nkind = "power_instant_w"\nunit = "W"\nuid = "pdu-{feed}"\n'
    )
    with site(Exporter(extra='pdu_watts{feed="A",Hostname="n1"} 2200\n')) as found:
        source = parse_power(f'exporter:{found.url}/metrics,map={table},match={{Hostname="n1"}}').open()
        info = source.describe()
        source.close()
    assert [(device.uid, device.domain) for device in info.devices] == [
        ("GPU-0", "accelerator"),
        ("GPU-1", "accelerator"),
        ("pdu-A", "rack"),
    ]


# -- the page


def test_a_page_is_read_line_by_line_with_times_of_either_form() -> None:
    text = b'# TYPE a gauge\na{x="}"} 1 1700000000000\nb 2\na 3 # {trace_id="t"} 1\na 4 soon\nab 5\na{x=1} 6\n'
    found = read_page(text, frozenset({"a"}), most=10)
    assert [(line.series, line.value, line.t_unix_ms) for line in found.values] == [
        ('a{x="}"}', 1.0, 1_700_000_000_000.0),
        ("a", 3.0, None),
    ]
    metrics = read_page(b"# TYPE a gauge\na 1 1700000000.25\n# EOF\n", frozenset({"a"}), most=10)
    assert [line.t_unix_ms for line in metrics.values] == [1_700_000_000_250.0]
    assert not read_page(b"<html>a page</html>", frozenset({"a"}), most=10).is_metrics
    assert len(read_page(b"a 1\n" * 50, frozenset({"a"}), most=10).values) == 10


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader_of_pages(noise: bytes) -> None:
    for body in (noise, b"a{" + noise, b'a{x="' + noise, b"a " + noise):
        assert all(line.name.name == "a" for line in read_page(body, frozenset({"a"}), most=100).values)


# -- what is new, and when it was read


def test_counters_of_a_cached_page_are_read_once_each_at_their_own_time() -> None:
    gpus = Exporter(refresh_s=0.2)
    with site(gpus) as found:
        source = opened(found.url)
        info = source.describe()
        samples = follow(source, 0.7)
        source.close()
    assert info.kind == "exporter"
    assert info.measured
    assert info.version == "580"
    assert info.name == f"exporter:{found.url}/metrics"
    for index in (0, 1):
        device = next(device for device in info.devices if device.uid == f"GPU-{index}")
        assert device.latch_s == pytest.approx(0.2, abs=0.1)
        counts = [sample for sample in samples if sample.device == device.uid and sample.kind == "energy_j"]
        assert len({sample.value for sample in counts}) == len(counts) >= 4
        assert [sample.t_ns for sample in counts] == sorted({sample.t_ns for sample in counts})
        for sample in counts:
            assert sample.value is not None
            # The exporter counted at its own refresh, and a look came at most some hundredths of a second later.
            late_s = (gpus.joules(index, sample.t_ns) - sample.value) / gpus.watts[index]
            assert abs(late_s) < 0.3
        # A constant gauge is one reading for each refresh, not for each look.
        gauges = [sample for sample in samples if sample.device == device.uid and sample.kind == "power_w"]
        assert {sample.value for sample in gauges} == {gpus.watts[index]}
        assert len(gauges) <= len(counts) + 2
    assert len(found.asked) > 10


def test_an_exporter_of_thirty_seconds_has_that_interval_and_times_within_a_look() -> None:
    """On a clock of ours: pages of an exporter that reads its GPUs every 30 s, looked at each second."""
    devices = Devices(read_table(None), "n1", "the page")
    series = read_page(b'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{UUID="GPU-a"} 1\n', read_table(None).names, most=9).values
    name = series[0].name
    samples: list[PowerSample] = []
    for look in range(200):
        tick_s = (look + 7) // 30 * 30 - 7
        shown = Seen(series=name, value=(1e6 + 500.0 * tick_s) * 1000)
        if look == 0:
            devices.find([shown])
        samples += devices.look(look * SECOND, 10, [shown])
    assert devices.refresh_s == 30
    assert devices.described()[0].latch_s == 30
    assert devices.u_time_s(gap_s=1.0, first_gap_s=0.25) == pytest.approx(1 / 12**0.5)
    assert len(samples) == 6
    for sample in samples[1:]:
        assert sample.value is not None
        assert abs((sample.value - 1e6) / 500.0 - sample.t_ns / SECOND) <= 0.5


def test_an_exporter_that_is_faster_than_its_reader_keeps_the_time_of_each_look() -> None:
    """Looked at every 0.25 s while it is opened, once more at once, and then every second: nothing is moved."""
    devices = Devices(read_table(None), "n1", "the page")
    name = read_page(COUNTER.encode() + b'{UUID="GPU-a"} 1\n', read_table(None).names, most=9).values[0].name
    devices.find([Seen(series=name, value=0.0)])
    samples: list[PowerSample] = []
    looks = [0.25 * look for look in range(9)] + [2.01] + [3.0 + look for look in range(60)]
    for look in looks:
        if look == 2.01:
            assert devices.settled(2)
            devices.fix()
        shown = Seen(series=name, value=500.0 * (look // 0.1 * 0.1) * 1000)
        samples += devices.look(round(look * SECOND), 1, [shown])
    assert devices.refresh_s is None
    assert devices.u_time_s(gap_s=1.0, first_gap_s=0.25) == pytest.approx(0.25 / 3**0.5)
    for sample in samples:
        assert sample.value is not None
        assert -0.001 <= sample.t_ns / SECOND - sample.value / 500.0 <= 0.101


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=3, max_size=60))
def test_no_order_of_looks_and_refreshes_gives_a_reading_twice_or_ahead_of_its_look(
    steps: list[tuple[int, bool]],
) -> None:
    devices = Devices(read_table(None), "n1", "the page")
    name = read_page(COUNTER.encode() + b'{UUID="GPU-a"} 1\n', read_table(None).names, most=9).values[0].name
    devices.find([Seen(series=name, value=0.0)])
    samples: list[PowerSample] = []
    now, millijoules = 0, 0.0
    for gap, moves in steps:
        before = now
        now += gap * 100_000_000
        millijoules += 1000.0 * gap if moves else 0.0
        new = devices.look(now, 1, [Seen(series=name, value=millijoules)])
        assert all(before <= sample.t_ns <= now for sample in new)
        samples += new
    assert [sample.t_ns for sample in samples] == sorted({sample.t_ns for sample in samples})
    counted = [sample.value for sample in samples]
    assert len(set(counted)) == len(counted)


def test_times_that_the_page_gives_itself_are_taken_against_its_own_clock() -> None:
    ahead_s = 5_000.0

    def answer(_: str) -> tuple[int, bytes]:
        ms = (time.time_ns() // 10**6 // 50) * 50 + ahead_s * 1000
        text = f'# TYPE {NAME} gauge\n{NAME}{{UUID="GPU-a",Hostname="n"}} {ms % 7 + 100} {ms:.0f}\n'
        return 200, text.encode()

    with site(answer) as found:
        found.date = lambda: time.time_ns() / 1e9 + ahead_s
        before = time.monotonic_ns()
        source = opened(found.url)
        samples = follow(source, 0.25)
        info = source.describe()
        source.close()
    times = [sample.t_ns for sample in samples]
    assert len(times) >= 4
    assert times == sorted(set(times))
    # A Date has whole seconds: a second each way, less what all answers together rule out.
    assert all(before - SECOND < t_ns < time.monotonic_ns() + SECOND for t_ns in times)
    assert 0 < info.clock_u_s < 0.3


def test_readings_of_another_time_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "HANDSHAKES", 1)
    now_ms = time.time_ns() // 10**6
    lines = [f'{NAME}{{UUID="GPU-{index}"}} 100 {ms}' for index, ms in enumerate((now_ms, 10**300, 5, now_ms + 10**6))]
    with site("\n".join(lines).encode()) as found:
        source = opened(found.url)
        assert [device.uid for device in source.describe().devices] == ["GPU-0"]
        source.close()


def test_the_energy_of_a_page_that_is_read_anew_every_thirty_seconds_is_near_the_truth() -> None:
    """A random load of 260 and 640 W over 300 s, simulated: interpolated scrapes are off by up to 2.6 % there."""
    name = parse_series(f'{COUNTER}{{UUID="GPU-a"}}')
    assert name is not None
    for seed in range(10):
        draw = random.Random(seed)
        edges, energies, watts = [0.0], [0.0], 260.0
        while edges[-1] < 500:
            edges.append(edges[-1] + draw.expovariate(1 / 8))
            energies.append(energies[-1] + watts * (edges[-1] - edges[-2]))
            watts = 900.0 - watts
        first = draw.uniform(0, 30)

        def energy(at_s: float, edges: list[float] = edges, energies: list[float] = energies) -> float:
            after = bisect.bisect_right(edges, at_s)
            share = (at_s - edges[after - 1]) / (edges[after] - edges[after - 1])
            return energies[after - 1] + (energies[after] - energies[after - 1]) * share

        devices = Devices(read_table(None), "n1", "the page")
        samples: list[PowerSample] = []
        for look in range(960):
            at_s = look / 2 + draw.uniform(0, 0.02)
            shown_at_s = max(0.0, first + (at_s - first) // 30 * 30)
            shown = Seen(series=name, value=round(energy(shown_at_s) * 1000))
            if look == 0:
                devices.find([shown])
            elif look == 150:
                devices.fix()
            samples += devices.look(round(at_s * SECOND), 1, [shown])
        device = dataclasses.replace(devices.described()[0], limit_w=700.0)
        found = integrate(
            samples,
            device,
            start_ns=100 * SECOND,
            end_ns=400 * SECOND,
            period_s=0.5,
            refresh_s=devices.refresh_s,
            clock_u_s=devices.u_time_s(gap_s=0.5, first_gap_s=0.5),
        )
        assert found.valid, found.reasons
        assert found.energy_j == pytest.approx(energy(400) - energy(100), rel=0.026)


# -- what is wrong with it


def test_a_gpu_that_vanishes_is_lost_and_a_page_without_any_is_at_fault() -> None:
    gpus = Exporter()
    with site(gpus) as found:
        source = opened(found.url)
        gpus.gone = {1}
        flags = {(sample.device, sample.flag) for sample in source.read() if sample.flag != "ok"}
        assert flags == {("GPU-1", "lost")}
        gpus.gone = {0, 1}
        assert {(sample.device, sample.flag) for sample in source.read()} == {("GPU-0", "error"), ("GPU-1", "error")}
        found.answer = lambda _: (503, b"")
        failed = source.read()
        assert {(sample.device, sample.flag, sample.value) for sample in failed} == {
            ("GPU-0", "error", None),
            ("GPU-1", "error", None),
        }
        source.close()


@pytest.mark.parametrize("gauge", [True, False])
@pytest.mark.parametrize("millijoules", [1.0, 1e6])
def test_a_counter_in_another_unit_is_refused_by_name(millijoules: float, gauge: bool) -> None:
    with (
        site(Exporter(millijoules=millijoules, gauge=gauge, watts=(400.0,))) as found,
        pytest.raises(PowerFault) as fault,
    ):
        opened(found.url)
    words = str(fault.value)
    assert COUNTER in words
    assert 'UUID="GPU-0"' in words
    assert "map=FILE" in words
    assert ("says 400 W" if gauge else "no accelerator draws") in words


def test_a_counter_in_another_unit_is_refused_against_a_power_limit() -> None:
    limit = 'DCGM_FI_DEV_ENFORCED_POWER_LIMIT{UUID="GPU-0",Hostname="n1"} 700\n'
    gpus = Exporter(millijoules=1.0, gauge=False, watts=(1400.0,), extra=limit)  # 1.4 W: an accelerator may draw it
    with site(gpus) as found, pytest.raises(PowerFault, match="the power limit is 700 W"):
        opened(found.url)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b'DCGM_FI_DEV_POWER_USAGE{UUID="GPU-a"} 0.412\n', "says 0.412 W if it counts W, which no accelerator draws"),
        (
            b'habanalabs_power_mW{UUID="a"} 385\nhabanalabs_power_default_limit_mW{UUID="a"} 900000\n',
            "says 0.385 W if it counts mW, but the power limit is 900 W",
        ),
    ],
)
def test_a_gauge_in_another_unit_is_refused_by_name(page: bytes, words: str) -> None:
    with site(page) as found, pytest.raises(PowerFault) as fault:
        opened(found.url)
    assert words in str(fault.value)


def test_a_meter_that_shows_little_is_asked_for_its_unit() -> None:
    with site(b'rPDU2DeviceStatusPower{rPDU2DeviceStatusIndex="1"} 1\n') as found:
        source = opened(found.url)
        notes = source.describe().notes
        source.close()
    assert any("shows 10 W" in note and "counted in 10 W" in note for note in notes)


def test_the_right_unit_is_said_in_a_table(tmp_path: Path) -> None:
    table = tmp_path / "series.toml"
    table.write_text(
        f'[[series]]\nname = "{COUNTER}"\ndomain = "accelerator"\nkind = "energy_j"\nunit = "J"\nuid = "{{UUID}}"\n'
    )
    gpus = Exporter(millijoules=1.0)
    with site(gpus) as found:
        source = opened(found.url, table=table)
        counts = [sample.value for sample in follow(source, 0.2) if sample.kind == "energy_j"]
        source.close()
    assert min(value for value in counts if value is not None) >= 1e6


def test_one_of_two_series_is_chosen_by_a_condition() -> None:
    other = f'{COUNTER}{{gpu="0",UUID="GPU-0",modelName="H200",Hostname="n1",job="other"}} 5\n'
    with site(Exporter(extra=other)) as found:
        with pytest.raises(PowerFault, match="both the reading of GPU-0"):
            opened(found.url)
        source = opened(found.url, match='{job="",Hostname="n1"}')
        assert {device.uid for device in source.describe().devices} == {"GPU-0", "GPU-1"}
        source.close()
        with pytest.raises(PowerFault, match="leaves nothing of its"):
            opened(found.url, match='{Hostname="n2"}')


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda _: (404, b""), "HTTP 404"),
        (lambda _: (401, b""), "header-env=Authorization=VARIABLE"),
        (lambda _: (302, b""), "points elsewhere"),
        (lambda _: (200, b"<html></html>"), "no page of metrics"),
        (lambda _: (200, b"# TYPE node_power_draw_watt gauge\nnode_power_draw_watt 4\n"), "node_power_draw_watt"),
        (lambda _: (200, b"# TYPE up gauge\nup 1\n"), "shows none of the"),
        (lambda _: (200, b"# TYPE a gauge\nDCGM_FI_DEV_POWER_USAGE 4\n"), "no label names a device"),
    ],
)
def test_a_page_that_shows_no_power_is_refused_with_the_next_step(
    answer: Callable[[str], tuple[int, bytes]], words: str
) -> None:
    with site(answer) as found, pytest.raises(PowerFault) as fault:
        opened(found.url)
    assert words in str(fault.value)


def test_nobody_there_is_said_so() -> None:
    with site(b"") as found:
        url = found.url
    with pytest.raises(PowerFault, match="no connection"):
        opened(url)


def test_an_endless_page_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "MOST_BYTES", 1000)
    with site(b"a" * 5000) as found, pytest.raises(PowerFault, match="larger than 1000 bytes"):
        opened(found.url)


@pytest.mark.parametrize(
    "begin",
    [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"HTTP/1.1 200 OK\r\n\r\n"],
    ids=["head", "chunk", "page"],
)
def test_a_page_that_drips_is_left_in_its_time(begin: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(begin)
                for _ in range(1000):
                    connection.sendall(b"a")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        reader = PageReader(url, header_env=None, most_bytes=10_000, timeout_s=0.2, accept="*/*")
        with pytest.raises(NoPage, match=r"no complete answer in 0\.2 s"):
            reader.get(url)
        reader.close()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("url", ["http://n1:9400/metrics", "http://10.0.0.1/", "http://n1.localhost/"])
def test_a_header_does_not_leave_this_machine_in_clear(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METER_KEY", "Bearer s3cret")
    with pytest.raises(PowerFault, match=r"METER_KEY would go over the network in clear: .*https://") as fault:
        ExporterSource(url, table=None, match=None, header_env=("Authorization", "METER_KEY"))
    assert "s3cret" not in str(fault.value)


def test_a_time_that_cannot_be_costs_its_line_alone() -> None:
    gauge = 'DCGM_FI_DEV_POWER_USAGE{UUID="GPU-%s"} 300 %s\n'
    with site((gauge % ("a", round(time.time() * 1000)) + gauge % ("b", "1e304")).encode()) as found:  # noqa: TID251
        source = opened(found.url)
        assert [device.uid for device in source.describe().devices] == ["GPU-a"]
        source.close()


def test_a_header_comes_from_the_environment_and_nothing_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METER_KEY", "Bearer s3cret")
    with site(Exporter()) as found:
        url = found.url
        source = ExporterSource(
            url + "/metrics?token=abc", table=None, match=None, header_env=("Authorization", "METER_KEY")
        )
        info = source.describe()
        source.close()
        assert found.headers[0]["authorization"] == "Bearer s3cret"
        assert found.asked[0] == "/metrics?token=abc"
    assert "s3cret" not in repr(info)
    assert "abc" not in repr(info)
    assert shown_url("https://me:pw@h:1/p?q=1#f") == "https://h:1/p"
    for value in ("", "two\nlines"):
        monkeypatch.setenv("METER_KEY", value)
        with pytest.raises(PowerFault, match="METER_KEY"):
            opened(url, header=("Authorization", "METER_KEY"))


def test_a_slow_counter_is_waited_for_and_its_interval_is_at_least_that() -> None:
    """A PDU that counts tenths of a kilowatt-hour at 3.6 kW takes 100 s for each."""
    index = b'{rPDU2DeviceStatusIndex="1"}'
    page = b"rPDU2DeviceStatusPower" + index + b" 360\nrPDU2DeviceStatusEnergy" + index + b" 9\n"
    with site(page) as found:
        source = opened(found.url)
        info = source.describe()
        samples = source.read()
        source.close()
    assert info.refresh_s is not None
    assert info.refresh_s >= 0.8
    assert {sample.kind for sample in samples} == {"power_instant_w"}
    assert any("not known" in note for note in info.notes)


def test_a_counter_that_never_moves_beside_a_gauge_that_does_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporter, "PATIENCE_S", 1e6)  # it would be waited for until the test is ended
    start_ns = time.monotonic_ns()

    def answer(_: str) -> tuple[int, bytes]:
        watts = 300 + (time.monotonic_ns() - start_ns) // 10_000_000 % 50
        return 200, f'{NAME}{{UUID="GPU-a"}} {watts}\n{COUNTER}{{UUID="GPU-a"}} 0\n'.encode()

    with site(answer) as found:
        source = opened(found.url)
        samples = follow(source, 0.1)
        source.close()
    assert {sample.kind for sample in samples} == {"power_w"}


def test_a_page_that_stands_still_is_no_reading_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gauge may be constant for good reason; a page on which nothing ever moves is not believed for long."""
    monkeypatch.setattr(scraped, "STEADY_S", 60.0)
    devices = Devices(read_table(None), "n1", "the page")
    name = read_page(b"ipmi_dcmi_power_consumption_watts 1\n", read_table(None).names, most=9).values[0].name
    devices.find([Seen(series=name, value=3700.0)])
    times = [look for look in range(0, 400, 5) if devices.look(look * SECOND, 1, [Seen(series=name, value=3700.0)])]
    assert times == list(range(0, 305, 5))


def test_a_page_over_tls_is_read_where_its_authority_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, leaf = make_certificates(tmp_path)
    with site(Exporter()) as found, tls_front(leaf, int(found.url.rpartition(":")[2])) as port:
        with pytest.raises(PowerFault, match="certificate"):
            opened(f"https://localhost:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        source = opened(f"https://localhost:{port}")
        assert len(source.describe().devices) == 2
        source.close()


@pytest.fixture
def gauge_page() -> Iterator[Site]:
    with site((PAGES / "bmc.txt").read_bytes()) as found:
        yield found


def test_a_page_of_gauges_is_not_waited_for(gauge_page: Site) -> None:
    source = opened(gauge_page.url)
    info = source.describe()
    source.close()
    assert {device.domain for device in info.devices} == {"node"}
    assert info.refresh_s is None
    assert any("not known" in note for note in info.notes)


# -- another machine's clock


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=20))
def test_the_clock_offset_is_within_what_the_calls_allow(calls: list[tuple[int, int, int]]) -> None:
    """A clock 10^12 ms ahead, read in whole seconds, in calls whose two ways take unlike times."""
    offset = ClockOffset()
    ahead_ms = 10**12
    for start_ms, there_ms, back_ms in calls:
        shown_ms = (start_ms + there_ms + ahead_ms) // 1000 * 1000
        offset.see(shown_ms * 10**6, SECOND, start_ms * 10**6, (start_ms + there_ms + back_ms) * 10**6)
    error_s = abs(offset.monotonic_ns((ahead_ms + 5) * 10**6) - 5 * 10**6) / 1e9
    assert error_s <= offset.u_s * 12**0.5 / 2 + 1e-9
    assert offset.u_s <= (1 + 1.8) / 12**0.5 + 1e-9


def test_a_clock_that_was_set_is_followed() -> None:
    offset = ClockOffset()
    offset.see(1000 * SECOND, 1000, 0, 100)
    offset.see(5000 * SECOND, 1000, SECOND, SECOND + 100)
    assert abs(offset.monotonic_ns(5000 * SECOND) - SECOND) < 1000
    assert page.shown_url("http://h/metrics") == "http://h/metrics"

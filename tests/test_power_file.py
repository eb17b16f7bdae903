"""Files of readings: a meter's CSV table and power lines, whole or as they grow."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.power import file as power_file
from replay.power.file import FileSource, read_power_file
from replay.power.lines import encode_header, encode_sample, unix_offset_ns
from replay.power.meter_table import MeterTable
from replay.power.source import PowerDevice, PowerFault, PowerSample, SourceInfo

START = datetime(2026, 11, 20, 19, 30, tzinfo=UTC)
START_NS = int(START.timestamp()) * 1_000_000_000
SECOND = 1_000_000_000


def written(folder: Path, text: str, name: str = "meter.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_table_of_counters_and_gauges_is_read_in_its_units(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "time,device,energy_kwh,energy_wh,power_w\n"
        "2026-11-20T19:30:00.000Z,rack r1,12.5,,5120\n"
        "2026-11-20T20:30:01.000+01:00,rack r1,12.501,12501.5,\n"
        "\n"
        "1795203002.5,rack r1,n/a,NaN,5130.25",
    )
    found = read_power_file(path)
    assert [(item.t_ns - START_NS, item.kind, item.value, item.flag) for item in found.samples] == [
        (0, "energy_j", 12.5 * 3.6e6, "ok"),
        (0, "energy_j", None, "blank"),
        (0, "power_w", 5120.0, "ok"),
        (SECOND, "energy_j", pytest.approx(12.501 * 3.6e6), "ok"),
        (SECOND, "energy_j", pytest.approx(12501.5 * 3600), "ok"),
        (SECOND, "power_w", None, "blank"),
        (2_500_000_000, "energy_j", None, "blank"),
        (2_500_000_000, "energy_j", None, "blank"),
        (2_500_000_000, "power_w", 5130.25, "ok"),
    ]
    (device,) = found.info.devices
    assert (device.uid, device.domain, device.place) == ("rack r1", "node", ("node rack r1",))
    assert (found.info.kind, found.info.measured, found.info.name) == ("file", True, "file:meter.csv")
    assert found.info.clock_u_s == pytest.approx(0.001 / math.sqrt(3))  # the finest place that a time was written to


def test_semicolons_a_byte_order_mark_quotes_and_domains_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '\ufefftime;device;domain;power_w\r\n1795203000;"PDU; left";rack;5000\r\n1795203001;hall;facility;90000\r\n',
    )
    found = read_power_file(path)
    assert [(device.uid, device.domain) for device in found.info.devices] == [
        ("PDU; left", "rack"),
        ("hall", "facility"),
    ]
    assert [item.value for item in found.samples] == [5000.0, 90_000.0]
    assert found.info.clock_u_s == pytest.approx(1 / math.sqrt(3))  # whole seconds


def test_the_period_is_of_the_readings_that_are_there(tmp_path: Path) -> None:
    rows = [f"{1795203000 + 2 * row},pdu,{1000 + row}\n" for row in range(40) if row % 3]  # a third is missing
    found = read_power_file(written(tmp_path, "time,device,energy_j\n" + "".join(rows)))
    assert found.info.period_s == 2.0
    assert found.info.devices[0].latch_s is None


def test_a_coarse_counter_says_how_often_it_changes(tmp_path: Path) -> None:
    # 5 kW in steps of 0.01 kWh: one every 7.2 s.
    rows = [f"{1795203000 + row},pdu,{math.floor(row * 5 / 36) / 100:.2f}\n" for row in range(300)]
    found = read_power_file(written(tmp_path, "time,device,energy_kwh\n" + "".join(rows)))
    assert found.info.devices[0].latch_s == pytest.approx(7.2, rel=0.05)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty: its first line reads time,device"),
        ("time,device\n", "no column of readings"),
        ("device,power_w\n", "no column time"),
        ("time,power_w\n", "no column device"),
        ("time,device,volts\n", "line 1 has a column other than .*: volts"),
        ("time,device,power_w,power_w\n", "names a column twice"),
        ("time,device,power_w\n", "has no reading"),
        ("time,device,power_w\n1795203000,a\n", "line 2 has 2 cells, not 3"),
        ("time,device,power_w\n1795203000,,5\n", "line 2 has no device"),
        ("time,device,power_w\n1795203000,a,five\n", "line 2 has no number as power_w: five"),
        ("time,device,power_w\n1795203000,a,-5\n", "line 2 has a number as power_w that is not within"),
        ("time,device,power_w\n1795203000,a,inf\n", "line 2 has a number as power_w that is not within"),
        ("time,device,power_w\n1795203000,a,1e19\n", "not within 0 to 1e"),
        ("time,device,power_w\n1795203000000,a,5\n", "line 2 has a time that is not Unix seconds.*: 1795203000000"),
        ("time,device,power_w\n20261120,a,5\n", "not Unix seconds"),
        ("time,device,power_w\n99999999999,a,5\n", "not Unix seconds"),
        ("time,device,power_w\n9999-12-31T23:59:59Z,a,5\n", "line 2 has a time after 2255"),
        ("time,device,power_w\nnan,a,5\n", "not Unix seconds"),
        ("time,device,power_w\n1e9999999,a,5\n", "not Unix seconds"),
        ("time,device,power_w\n2026-11-20T19:30:00,a,5\n", "line 2 has a time without its zone"),
        ("time,device,power_w\nyesterday,a,5\n", "line 2 has no time: write"),
        ("time,device,power_w\n1969-11-20T19:30:00Z,a,5\n", "before 1970"),
        ("time,device,domain,power_w\n1795203000,a,moon,5\n", "has a domain other than .*: moon"),
        ("time,device,domain,power_w\n1795203000,a,declared,5\n", "has a domain other than"),
        (
            "time,device,domain,power_w\n1795203000,a,node,5\n1795203000,a,rack,5\n",
            "line 3 gives a device another domain",
        ),
        ('time,device,power_w\n1795203000,"a,5\n', "line 2 is not CSV"),
        ("time,device,power_w\n" + "1" * 5000, "line 2 is too long"),
        (
            '{"agentdyno_power": 1, "devices": [{"uid": "a", "domain": "node"}]}\n{"device": "a", "power_w": 1}',
            "line 2 has no",
        ),
        ('{"agentdyno_power": 1, "sour', "line 1 is not"),
    ],
)
def test_a_wrong_line_is_one_sentence_with_its_number(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PowerFault, match=f"meter.csv.*{says}"):
        read_power_file(written(tmp_path, text))


def test_what_is_no_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(PowerFault, match="is no file"):
            read_power_file(path)
    path = written(tmp_path, "time,device,power_w\n1795203000,a,5\n1795203001,a,5\n")
    monkeypatch.setattr(power_file, "MOST_READINGS", 1)
    with pytest.raises(PowerFault, match="more than 1 readings: cut it to the time of the run"):
        read_power_file(path)
    monkeypatch.setattr(power_file, "MOST_BYTES", 10)
    with pytest.raises(PowerFault, match="larger than 10 bytes"):
        read_power_file(path)


rows = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["a", "b c", "d;e", 'f"g']),
        st.none() | st.floats(min_value=0, max_value=1e9),
        st.none() | st.floats(min_value=0, max_value=1e9),
    ),
    max_size=12,
)


@given(rows, st.data())
def test_a_table_is_the_same_however_it_is_cut(
    rows: list[tuple[int, str, float | None, float | None]], data: st.DataObject
) -> None:
    def cell(value: float | None) -> str:
        return "" if value is None else repr(value)

    quoted = {name: '"' + name.replace('"', '""') + '"' for name in ("a", "b c", "d;e", 'f"g')}
    text = "device,power_w,time,energy_wh\n" + "".join(
        f"{quoted[name]},{cell(power)},{1795203000 + at / 1000:.3f},{cell(energy)}\n"
        for at, name, power, energy in rows
    )
    table, rest, found = MeterTable("meter.csv"), text.encode(), []
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        found += table.feed(rest[:cut])
        rest = rest[cut:]
    found += table.finish()
    expected = []
    for at, name, power, energy in rows:
        t_ns = 1795203000 * SECOND + at * 1_000_000
        expected.append((t_ns, name, "power_w", power))
        expected.append((t_ns, name, "energy_j", None if energy is None else energy * 3600))
    assert [(item.t_ns, item.device, item.kind, item.value) for item in found] == expected
    assert set(table.devices) == {name for _, name, _, _ in rows}


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_table_is_readings_or_a_sentence(data: str | bytes) -> None:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    table = MeterTable("meter.csv")
    try:
        found = [*table.feed(b"time,device,power_w\n" + raw), *table.finish()]
    except PowerFault as fault:
        assert str(fault).isprintable()  # noqa: PT017 - there may be none
    else:
        assert all((item.value is None) == (item.flag == "blank") for item in found)


NODE = PowerDevice(uid="n1", name="n1", domain="node", limit_w=None, wrap_j=None)
INFO = SourceInfo(kind="exporter", measured=True, version="4", devices=(NODE,), notes=("a PDU",), period_s=0.5)
STATED = SourceInfo(
    kind="declared",
    measured=False,
    version=None,
    devices=(PowerDevice(uid="declared-0", name="declared", domain="declared", limit_w=700.0, wrap_j=None),),
    notes=(),
)


def reading(at_ns: int, value: float, device: str = "n1") -> PowerSample:
    return PowerSample(t_ns=at_ns, device=device, kind="energy_j", value=value, read_us=3, flag="ok")


def test_a_recording_is_one_measured_source_without_its_nameplates(tmp_path: Path) -> None:
    path = tmp_path / "meter.jsonl"
    path.write_bytes(
        encode_header([INFO, STATED])
        + encode_sample(reading(5, 1.0), 0)
        + encode_sample(reading(6, 7.0, "declared-0"), 0)
    )
    found = read_power_file(path)
    assert found.info.devices == (NODE,)
    assert (found.info.version, found.info.period_s) == ("exporter 4", 0.5)
    assert "declared: a nameplate, left out" in found.info.notes[-1]
    path.write_bytes(encode_header([STATED]))
    with pytest.raises(PowerFault, match="nameplates only"):
        read_power_file(path)


def test_a_file_is_followed_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "meter.jsonl"
    offset_ns = unix_offset_ns()
    now_ns = time.monotonic_ns()
    old = reading(now_ns - 3600 * SECOND, 0.5)
    path.write_bytes(
        b"".join([encode_header([INFO]), encode_sample(old, offset_ns), encode_sample(reading(now_ns, 1.0), offset_ns)])
    )
    source = FileSource(path)
    (first,) = source.read()  # what is long past has no part in a run that begins now
    assert first.value == 1.0
    assert abs(first.t_ns - now_ns) < SECOND
    assert source.read() == []
    line = encode_sample(reading(now_ns + 5_000_000, 2.0), offset_ns)
    with path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert source.read() == []
        file.write(line[20:])
    assert [item.value for item in source.read()] == [2.0]
    assert source.describe() == source.describe()
    with path.open("ab") as file:
        file.write(line + b"oops\n" + line)
    assert [(item.value, item.flag) for item in source.read()] == [(2.0, "ok"), (None, "lost")]
    assert "line 6 is not a reading" in source.describe().notes[-1]
    assert source.read() == []
    source.close()


def test_a_file_that_is_cut_short_is_lost(tmp_path: Path) -> None:
    path = written(tmp_path, f"time,device,power_w\n{time.time_ns() / 1e9:.3f},pdu,500\n")
    source = FileSource(path)
    assert [(item.kind, item.value) for item in source.read()] == [("power_w", 500.0)]
    path.write_text("time,device,power_w\n")
    assert [(item.kind, item.flag) for item in source.read()] == [("power_w", "lost")]
    assert "was cut short" in source.describe().notes[-1]
    source.close()


def test_a_file_of_the_future_is_not_followed(tmp_path: Path) -> None:
    path = written(tmp_path, "time,device,power_w\n8000000000,pdu,500\n")
    with pytest.raises(PowerFault, match=r"has a reading of .* s in the future: set the clock"):
        FileSource(path)


def test_a_file_that_nobody_writes_names_rescore(tmp_path: Path) -> None:
    path = written(tmp_path, "time,device,power_w\n1795203000,pdu,500\n")
    age_s = time.time_ns() / 1e9 - 1795203000
    if age_s < 60:
        pytest.skip("this machine's clock stands before the readings of this test")
    with pytest.raises(PowerFault, match=r"has had no reading for .* rescore RUN --power file:"):
        FileSource(path)

"""What the series of exporters mean: our table on pages of every exporter, the user's table, and conditions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.exposition import parse_series, read_page
from replay.power.scraped import Devices, Seen
from replay.power.series import BUILT_IN, UNITS, parse_match, read_table
from replay.power.source import PowerDevice, PowerFault, PowerSample
from tests.metric_site import PAGES

SECOND = 1_000_000_000


def seen(page: bytes, table: Path | None = None) -> list[Seen]:
    names = read_table(table).names
    return [Seen(series=line.name, value=line.value) for line in read_page(page, names, most=1000).values]


def devices_of(page: bytes, table: Path | None = None) -> Devices:
    devices = Devices(read_table(table), "host", "the page")
    devices.find(seen(page, table))
    return devices


def first(name: str) -> tuple[dict[str, PowerDevice], list[PowerSample], Devices]:
    """Devices of a golden page by uid, and its readings: those of gauges at once, of counters after they moved."""
    page = (PAGES / name).read_bytes()
    devices = devices_of(page)
    samples = devices.look(0, 100, seen(page))
    return {device.uid: device for device in devices.described()}, samples, devices


def values(samples: list[PowerSample]) -> dict[tuple[str, str], float | str]:
    return {(sample.device, sample.kind): sample.flag if sample.value is None else sample.value for sample in samples}


H200 = "GPU-aaaaaaaa-0000-4000-8000-00000000000"


def test_dcgm_old_names_count_millijoules_and_a_blank_is_no_reading() -> None:
    devices, samples, found = first("dcgm-exporter-old-names.txt")
    assert devices.keys() == {H200 + "1", H200 + "2"}
    one = devices[H200 + "1"]
    assert (one.name, one.domain, one.host, one.wrap_j) == ("NVIDIA H200", "accelerator", "node1", None)
    assert one.place == (f"accelerator {H200}1",)
    assert values(samples) == {(H200 + "1", "power_w"): 412.508, (H200 + "2", "power_w"): "blank"}
    # 7,299,606,661 mJ → one more reading, 412.5 J later.
    page = (PAGES / "dcgm-exporter-old-names.txt").read_bytes().replace(b"7299606661", b"7300019161")
    later = found.look(SECOND, 100, seen(page))
    assert values(later)[H200 + "1", "energy_j"] == pytest.approx(7_300_019.161)


def test_dcgm_new_names_count_joules_and_a_grace_socket_is_a_device_of_its_own() -> None:
    devices, samples, found = first("dcgm-exporter-new-names.txt")
    one, two = "GPU-bbbbbbbb-0000-4000-8000-000000000001", "GPU-bbbbbbbb-0000-4000-8000-000000000002"
    assert devices.keys() == {one, two, "tray1/cpu0"}
    assert devices[one].limit_w == 1200
    assert devices["tray1/cpu0"].domain == "cpu_package"
    assert devices["tray1/cpu0"].host == "tray1"
    assert values(samples) == {
        (one, "power_w"): 846.12,
        (one, "power_instant_w"): 902.7,
        (two, "power_w"): 851.4,
        (two, "power_instant_w"): 799.25,
        ("tray1/cpu0", "power_instant_w"): 118.375,
    }
    page = (PAGES / "dcgm-exporter-new-names.txt").read_bytes().replace(b"40113422", b"40114268")
    assert values(found.look(SECOND, 100, seen(page)))[one, "energy_j"] == 40_114_268


def test_the_old_namespace_is_read_too() -> None:
    devices, samples, _ = first("dcgm-exporter-old-namespace.txt")
    assert values(samples) == {("GPU-cccccccc-0000-4000-8000-000000000001", "power_w"): 66.25}
    assert next(iter(devices.values())).host == "host"  # no label says: the host of the page


def test_a_gpu_that_pods_or_instances_share_is_one_device() -> None:
    devices, samples, _ = first("dcgm-exporter-shared.txt")
    assert len(devices) == 2
    assert sorted(value for value in values(samples).values() if isinstance(value, float)) == [122.75, 301.5]


def test_amd_counts_microjoules_and_the_first_partition_has_the_watts_of_its_socket() -> None:
    devices, samples, found = first("amd-device-metrics-exporter.txt")
    assert devices.keys() == {"692251001124", "692251001125"}
    assert values(samples) == {
        ("692251001124", "power_instant_w"): 748,
        ("692251001125", "power_instant_w"): 731,
    }
    assert any("gpu_power_usage" in note for note in found.notes)
    page = (PAGES / "amd-device-metrics-exporter.txt").read_bytes().replace(b"2.2391250021e+13", b"22391981021000")
    assert values(found.look(SECOND, 1, seen(page)))["692251001125", "energy_j"] == pytest.approx(22_391_981.021)


def test_gaudi_shows_milliwatts_and_its_energy_without_a_unit_is_not_read() -> None:
    devices, samples, _ = first("gaudi-exporter.txt")
    uid = "01P4-HL3090A0-18-U4V193-22-07-00"
    assert values(samples) == {(uid, "power_instant_w"): 385.0}
    assert devices[uid].limit_w == 900


def test_a_derived_counter_is_left_out_beside_a_gauge_and_is_never_measured_alone() -> None:
    _, samples, all_smi = first("all-smi.txt")
    assert values(samples) == {("GPU-eeeeeeee-0000-4000-8000-000000000001", "power_w"): 402.5}
    assert not all_smi.derived
    assert any("derived" in note for note in all_smi.notes)
    devices, _, kepler = first("kepler.txt")
    assert kepler.derived
    assert {device.domain for device in devices.values()} == {"cpu_package", "dram", "accelerator"}
    assert "edge1/package" in devices


def test_a_pdu_counts_in_its_own_steps_and_minus_one_is_no_reading() -> None:
    devices, samples, found = first("snmp-apc-pdu.txt")
    assert values(samples) == {
        ("host/pdu1", "power_instant_w"): 4370.0,
        ("host/pdu2", "power_instant_w"): "unsupported",
    }
    assert {device.domain for device in devices.values()} == {"rack"}
    page = (PAGES / "snmp-apc-pdu.txt").read_bytes().replace(b"170982", b"170983")
    assert values(found.look(SECOND, 1, seen(page)))["host/pdu1", "energy_j"] == pytest.approx(170_983 * 360_000)


def test_a_bmc_is_a_node() -> None:
    devices, samples, _ = first("bmc.txt")
    assert {device.domain for device in devices.values()} == {"node"}
    assert values(samples) == {
        ("host/dcmi", "power_instant_w"): 3712,
        ("host/power-control-0", "power_instant_w"): 3720,
    }


def test_values_that_stand_for_none_are_never_watts() -> None:
    devices, samples, _ = first("not-numbers.txt")
    assert devices.keys() == {f"GPU-{letter}" for letter in "abcdef"}
    assert values(samples) == {
        ("GPU-a", "power_w"): "blank",
        ("GPU-b", "power_w"): "blank",
        ("GPU-c", "power_w"): "blank",
        ("GPU-d", "power_w"): "blank",
        ("GPU-e", "power_w"): "unsupported",
        ("GPU-f", "power_w"): 250.5,
    }


def test_two_series_of_one_reading_are_a_fault_that_names_both() -> None:
    page = (
        b'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a"} 100\nDCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",x="1"} 100\n'
    )
    with pytest.raises(PowerFault) as fault:
        devices_of(page)
    assert 'x="1"' in str(fault.value)
    assert "GPU-a" in str(fault.value)
    assert "match=" in str(fault.value)


def test_lines_of_one_gpu_that_differ_are_not_one_reading() -> None:
    page = (PAGES / "dcgm-exporter-shared.txt").read_bytes().replace(b'pod="serve-1"} 301.5', b'pod="serve-1"} 20')
    with pytest.raises(PowerFault, match="both the reading of"):
        devices_of(page)


# -- the user's table

TABLE = """
[[series]]
name = "rack_pdu_outlet_kwh_total"
where = { feed = ["A", "B"] }
domain = "node"
kind = "energy_j"
unit = "kWh"
uid = "{pdu}/outlet-{outlet}"
host = "{server}"
title = "pdu"
wrap = 1000.0

[[series]]
name = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
domain = "accelerator"
kind = "energy_j"
unit = "J"
uid = "{UUID}"
refresh_s = 30
"""


def test_a_table_of_the_users_comes_before_ours(tmp_path: Path) -> None:
    path = tmp_path / "series.toml"
    path.write_text(TABLE)
    page = (
        b'rack_pdu_outlet_kwh_total{pdu="p1",outlet="7",feed="A",server="n1"} 12.5\n'
        b'rack_pdu_outlet_kwh_total{pdu="p1",outlet="8",feed="C",server="n1"} 12.5\n'
        b'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{UUID="GPU-a"} 7\nDCGM_FI_DEV_POWER_USAGE{UUID="GPU-a"} 70\n'
    )
    devices = devices_of(page, path)
    described = {device.uid: device for device in devices.described()}
    assert described.keys() == {"p1/outlet-7", "GPU-a"}
    outlet = described["p1/outlet-7"]
    assert (outlet.domain, outlet.host, outlet.name, outlet.wrap_j) == ("node", "n1", "p1", 3.6e9)
    assert devices.refresh_s == 30
    devices.look(0, 1, seen(page, path))
    moved = page.replace(b"} 12.5", b"} 12.6").replace(b"} 7\n", b"} 77\n")
    later = values(devices.look(SECOND, 1, seen(moved, path)))
    assert later["p1/outlet-7", "energy_j"] == pytest.approx(12.6 * 3.6e6)
    assert later["GPU-a", "energy_j"] == 77  # joules now, as the table says


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "one [[series]] for each metric"),
        ("series = 3", "one [[series]] for each metric"),
        ("[[series]", "is no TOML"),
        ('[[series]]\nname = "a"', "[[series]] 1: unit is missing"),
        ('[[series]]\nnome = "a"', "nome is not known"),
        ('[[series]]\nname = "a b"\nunit = "W"\nuid = "u"', "no name of a metric"),
        ('[[series]]\nname = "a"\nunit = "W"\nuid = "u"\ndomain = "declared"\nkind = "power_w"', "domain 'declared'"),
        ('[[series]]\nname = "a"\nunit = "J"\nuid = "u"\ndomain = "node"\nkind = "power_w"', "does not fit the kind"),
        ('[[series]]\nname = "a"\nunit = "erg"\nuid = "u"\ndomain = "node"\nkind = "power_w"', "unit 'erg'"),
        ('[[series]]\nname = "a"\nunit = "W"\nuid = "u"\ndomain = "node"\nkind = "power_w"\ncount = -1', "count is"),
        ('[[series]]\nname = "a"\nunit = "W"\nuid = "u"\ndomain = "node"\nkind = "power_w"\nwhere = 1', "where has"),
        ('[[series]]\nname = "a"\nunit = "W"\nuid = "u"\ndomain = "node"\nkind = "power_w"\nderived = 1', "derived is"),
        ('[[series]]\nname = "a"\nunit = "W"\nuid = "u\\u001b[2J"\n', "uid is a text on one line"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_the_place(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "series.toml"
    path.write_text(text)
    with pytest.raises(PowerFault) as fault:
        read_table(path)
    assert words in str(fault.value)
    assert "series.toml" in str(fault.value)


def test_a_table_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PowerFault, match="cannot be read"):
        read_table(tmp_path / "none.toml")


def test_every_rule_of_ours_has_a_unit_that_fits() -> None:
    for rule in BUILT_IN:
        assert UNITS[rule.unit][0] == ("energy" if rule.meaning == "energy_j" else "power"), rule.name
        assert rule.uid
    names = [(rule.name, tuple(rule.where.items())) for rule in BUILT_IN]
    assert len(names) == len(set(names))


# -- conditions


def test_conditions_are_read_as_promql_writes_them() -> None:
    matchers = parse_match('{job="dcgm",Hostname=~"n[12]",pod!="",gpu!~"3|4"}')
    assert [matcher.text for matcher in matchers] == ['job="dcgm"', 'Hostname=~"n[12]"', 'pod!=""', 'gpu!~"3|4"']
    fits = {"job": "dcgm", "Hostname": "n1", "pod": "x", "gpu": "1"}
    assert all(matcher.fits(fits) for matcher in matchers)
    for label, value in (("job", "other"), ("Hostname", "n10"), ("pod", ""), ("gpu", "3")):
        assert not all(matcher.fits({**fits, label: value}) for matcher in matchers)


@pytest.mark.parametrize("text", ["", "{}", "{job}", "{job=dcgm}", '{job="x"', '{a=~"("}', '{a="b"c="d"}'])
def test_conditions_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(PowerFault):
        parse_match(text)


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader_of_conditions(text: str) -> None:
    try:
        matchers = parse_match(text)
    except PowerFault:
        return
    again = parse_match("{" + ",".join(matcher.text for matcher in matchers) + "}")
    assert again == matchers


@given(
    st.dictionaries(
        st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), max_size=30),
        max_size=5,
    )
)
def test_no_labels_break_the_table(labels: dict[str, str]) -> None:
    written = ",".join(
        f'{name}="{value}"'.replace("\\", "\\\\").replace("\n", "\\n")
        for name, value in labels.items()
        if '"' not in value
    )
    series = parse_series("DCGM_FI_DEV_POWER_USAGE{" + written + "}")
    if series is None:
        return
    meant = read_table(None).meaning(series, "host")
    if meant is not None:
        assert meant.uid
        assert meant.uid.isprintable()
        assert meant.host.isprintable()

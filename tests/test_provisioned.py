"""system_power.json: what it comes to by the published arithmetic, and that nothing in it is taken on trust."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agentdyno import main
from replay.provisioned import (
    ProvisionedFault,
    nodes_under_feed,
    provisioned_lines,
    read_provisioned,
    system_power_json,
)
from replay.system import SystemFault, load_system

type Change = Callable[[dict[str, Any]], Any]


def sourced(value: float, unit: str = "value_w", kind: str = "vendor_spec", source: str = "") -> dict[str, Any]:
    return {unit: value, "source_type": kind, "source": source or "https://vendor.example/sheet"}


def node_set(**changes: Any) -> dict[str, Any]:
    """One air- or liquid-cooled node of 2 CPUs, 8 accelerators and 1 switch: 9,800 W of major components."""
    found: dict[str, Any] = {
        "node_set_id": 0,
        "system_node_ensemble_id": 0,
        "nodes_provisioned": 1,
        "power_method": "component_sum",
        "components": {
            "cpu": {"model": "c", "count_per_node": 2, "tdp_per_unit": sourced(350)},
            "accelerator": {"model": "a", "count_per_node": 8, "tdp_per_unit": sourced(0.7, "value_kw")},
            "scale_up_network": {"method": "declared_tdp", "switch_count": 1, "tdp_per_switch": sourced(3500)},
        },
    }
    return found | changes


def descriptor(*sets: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "system_desc_id": "s",
        "cooling": "liquid",
        "node_sets": list(sets) or [node_set()],
        "scale_out": {"present": False},
    }
    return found | changes


def published(method: str, nodes: int, kilowatts: float, of: int | None = None, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {
        "node_set_id": number,
        "system_node_ensemble_id": number,
        "nodes_provisioned": nodes,
        "power_method": method,
        "published_power": sourced(kilowatts, "value_kw"),
    }
    return found if of is None else found | {"nodes_in_published_rack": of}


def fabric(**changes: Any) -> dict[str, Any]:
    """Two switches of 900 W for ten nodes with eight adapters of 800 Gb/s each."""
    found: dict[str, Any] = {
        "present": True,
        "cabling": "passive",
        "required_bandwidth_tbps": 64.0,
        "nics": {"count_per_node": 8, "bandwidth_per_nic_gbps": 800, "counted": False},
        "switches": [{"model": "m", "count": 2, "bandwidth_tbps": 51.2, "power_per_switch": sourced(900)}],
    }
    return found | changes


FLAT = {
    "cpu": {"num_cpu": 2, "tdp_per_cpu": 350, "link": "https://vendor.example/cpu"},
    "accelerator": {"num_accelerator": 8, "tdp_per_accelerator": 700, "link": "https://vendor.example/accelerator"},
    "scale_up_network": {"num_switches": 1, "tdp_per_switch": 3500, "public_specification": "https://vendor.example/s"},
    "overhead_fraction": 0.30,
}


# -- the arithmetic


def test_a_sum_of_components_takes_the_overhead_of_its_cooling() -> None:
    liquid, air = (read_provisioned(descriptor(cooling=cooling)) for cooling in ("liquid", "air"))
    assert (liquid.major_w, liquid.power_w) == (pytest.approx(9800), pytest.approx(12_740))
    assert (air.other_w, air.power_w) == (pytest.approx(4900), pytest.approx(14_700))
    assert (liquid.nodes, liquid.accelerators) == (1, 8)
    assert [item.power_w for item in liquid.node_sets] == [pytest.approx(12_740)]


def test_a_rack_whose_components_are_all_estimates_says_so() -> None:
    """18 CPUs of 500 W, 72 accelerators of 2,500 W and 6 switches of 7 kW, liquid-cooled: 300.3 kW."""
    parts = {
        "cpu": {"count_per_node": 18, "tdp_per_unit": sourced(500, kind="mlc_default", source="D.2")},
        "accelerator": {"count_per_node": 72, "tdp_per_unit": sourced(2500, kind="mlc_default", source="D.3")},
        "scale_up_network": {"method": "declared_tdp", "switch_count": 6, "tdp_per_switch": sourced(7000)},
    }
    found = read_provisioned(descriptor(node_set(components=parts)))
    assert found.power_w == pytest.approx(300_300)
    assert len(found.estimated) == 2
    assert "cpu.tdp_per_unit (D.2)" in found.estimated[0]


def test_bandwidth_stands_for_a_switch() -> None:
    """14.4 TB/s at 5 pJ/bit are 576 W: (700 + 5,600 + 576) W of majors."""
    data = descriptor()
    data["node_sets"][0]["components"]["scale_up_network"] = {
        "method": "bandwidth_estimate",
        "aggregate_bandwidth_tbps": 14.4,
        "energy_per_bit_pj": sourced(5, "value_pj", "mlc_default", "D.1"),
    }
    assert read_provisioned(data).major_w == pytest.approx(6876)


def test_published_nodes_and_switches_take_no_overhead() -> None:
    """Ten nodes of 14.5 kW and two switches of 900 W: 146.8 kW."""
    found = read_provisioned(descriptor(published("published_system", 10, 14.5), cooling="air", scale_out=fabric()))
    assert found.power_w == pytest.approx(146_800)
    assert (found.major_w, found.other_w, found.published_w, found.switches_w) == (0, 0, 145_000, 1800)
    assert found.nodes_w(5) == pytest.approx(73_400)  # P × Y/N, switches too


def test_adapters_are_major_components_of_nodes_that_are_summed() -> None:
    """(700 + 5,600 + 3,500 + 8 × 75) W × 1.5 for each of ten nodes, and the switches."""
    nics = {"count_per_node": 8, "bandwidth_per_nic_gbps": 800, "counted": True, "tdp_per_nic": sourced(75)}
    data = descriptor(node_set(nodes_provisioned=10), cooling="air", scale_out=fabric(nics=nics))
    assert read_provisioned(data).power_w == pytest.approx(10 * 10_400 * 1.5 + 1800)


def test_racks_are_scaled_by_whole_nodes_of_each_kind() -> None:
    """120 kW × 5/8 and 96 kW × 3/8: 111 kW."""
    sets = (published("node_scaling", 5, 120, 8), published("node_scaling", 3, 96, 8, number=1))
    found = read_provisioned(descriptor(*sets))
    assert found.power_w == pytest.approx(111_000)
    assert [item.power_w for item in found.node_sets] == [75_000, 36_000]
    with pytest.raises(ProvisionedFault, match="alike nodes only"):
        found.nodes_w(4)


def test_a_declared_figure_governs_and_the_parts_beneath_it_may_have_gaps() -> None:
    data = descriptor(declared_provisioned_power=sourced(14.5, "value_kw"))
    del data["node_sets"][0]["components"]["cpu"]["tdp_per_unit"]
    found = read_provisioned(data)
    assert found.power_w == 14_500
    assert found.gaps == ("system_power.json: node_sets[0].components.cpu.tdp_per_unit",)
    assert "says nothing" in "\n".join(provisioned_lines(found))
    written = system_power_json(data, "f", name="n")
    assert "computed" not in written
    assert (written["provisioned_power_kw"], written["mlc_estimated_power"]) == (14.5, False)


# -- the flat form


@pytest.mark.parametrize(
    ("data", "watts"),
    [
        (FLAT, 12_740),
        ({**FLAT, "overhead_fraction": 0.5}, 14_700),
        ({key: value for key, value in FLAT.items() if key != "overhead_fraction"} | {"cooling": "air"}, 14_700),
        ({"cpu": {"count": 2, "tdp_per_unit": 350}, "accelerator": {"count": 8, "tdp_per_unit": 700}}
         | {"overhead_fraction": 0.3}, 8190),
        ({"compute": {"count": 8, "tdp_per_unit": 1000}, "overhead_fraction": 0.5}, 12_000),
        ({"provisioned_power_w": 10_200, **FLAT}, 10_200),
        ({"rack_power_w": 132_000, "rack_nodes": 18, "submitted_nodes": 10}, 132_000 * 10 / 18),
    ],
)  # fmt: skip
def test_the_flat_form_of_earlier_drafts_is_read(data: dict[str, Any], watts: float) -> None:
    found = read_provisioned(data)
    assert found.form == "groups"
    assert found.power_w == pytest.approx(watts)


def test_the_flat_form_is_written_as_appendix_e() -> None:
    written = system_power_json(FLAT, "old.json", name="one node")
    found = read_provisioned(written)
    assert (found.form, found.name, found.cooling, found.accelerators) == ("appendix E", "one node", "liquid", 8)
    assert written["computed"]["total_system_power_w"] == pytest.approx(12_740)
    assert written["provisioned_power_kw"] == 12.74
    assert system_power_json(written, "f", name="n") == written
    for name in ("cpu", "accelerator", "scale_up_network"):
        group = {key: value for key, value in FLAT[name].items() if "vendor" not in str(value)}  # type: ignore[attr-defined]
        with pytest.raises(ProvisionedFault, match=rf"old.json: {name}.link must be the URL"):
            system_power_json({**FLAT, name: group}, "old.json", name="n")
    for data in ({"provisioned_power_w": 1.0}, {"rack_power_w": 1e5, "rack_nodes": 8, "submitted_nodes": 4}):
        with pytest.raises(ProvisionedFault, match="has no source in this form"):
            system_power_json(data, "old.json", name="n")


# -- what is refused


def without(*path: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        at: Any = data
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


def put(*path: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        at: Any = data
        for key in path[:-2]:
            at = at[key]
        at[path[-2]] = path[-1]

    return change


CPU = ("node_sets", 0, "components", "cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("system_desc_id"), "system_desc_id must be a text, not nothing"),
        (without("cooling"), "cooling must be one of liquid, air, not nothing"),
        (put("cooling", "passive"), "cooling must be one of liquid, air, not 'passive'"),
        (without("scale_out"), "scale_out must be an object, not nothing"),
        (put("node_sets", []), "node_sets must be a list of 1 to 1,000 objects"),
        (put("node_sets", 0, "nodes_provisioned", 0), "nodes_provisioned must be a whole number of at least 1"),
        (put("node_sets", 0, "nodes_provisioned", 4.5), "nodes_provisioned must be a whole number"),
        (put("node_sets", 0, "nodes_provisioned", True), "nodes_provisioned must be a whole number"),
        (put("node_sets", 0, "power_method", "guessed"), "power_method must be one of component_sum"),
        (put("node_sets", 0, "power_method", "published_system"), "published_power is missing; nothing is filled in"),
        (without(*CPU), "components.cpu must be an object"),
        (without(*CPU, "tdp_per_unit"), "cpu.tdp_per_unit is missing; nothing is filled in"),
        (put(*CPU, "tdp_per_unit", 350), "cpu.tdp_per_unit must be an object"),
        (put(*CPU, "tdp_per_unit", sourced(1, kind="self_declared")), "source_type must be one of vendor_spec"),
        (put(*CPU, "tdp_per_unit", sourced(1, source="our sheet")), "source must be the URL of a public vendor_spec"),
        (put(*CPU, "tdp_per_unit", sourced(1, kind="mlc_default", source="D.9")), "source must be one of D.1"),
        (put(*CPU, "tdp_per_unit", sourced(1) | {"value_kw": 1}), "must give value_w or value_kw, and one value only"),
        (put(*CPU, "tdp_per_unit", sourced(1, "value_pj")), "must give value_w or value_kw"),
        (put(*CPU, "tdp_per_unit", sourced(-1)), "value_w must be a number of at least 0"),
        (put(*CPU, "tdp_per_unit", sourced(math.nan)), "value_w must be a number of at least 0"),
        (put(*CPU, "tdp_per_unit", sourced(math.inf)), "value_w must be a number of at least 0"),
        (put(*CPU, "tdp_per_unit", sourced(10**400)), "value_w must be a number of at least 0"),
        (without("node_sets", 0, "components", "scale_up_network"), "scale_up_network must be an object"),
        (put("node_sets", 0, "components", "combined_cpu_accelerator", sourced(1)), "cpu must not give tdp_per_unit"),
        (put("computed", {"major_components_w": 9000}), "computed.major_components_w is 9000, and the sum says 9800"),
        (put("computed", {"overhead_fraction": 0.5}), "computed.overhead_fraction is 0.5, and the sum says 0.3"),
        (put("provisioned_power_kw", 10.0), "provisioned_power_kw is 10, and the sum says 12.74"),
        (put("scale_out", fabric()), "nics.counted must be true"),
        (put("scale_out", fabric(cabling=None)), "scale_out.cabling must be one of passive, active_optical"),
    ],
)  # fmt: skip
def test_a_fault_names_its_place(change: Change, words: str) -> None:
    data = copy.deepcopy(descriptor())
    change(data)
    with pytest.raises(ProvisionedFault) as fault:
        read_provisioned(data, "p.json")
    assert words in str(fault.value)
    assert str(fault.value).startswith("p.json: ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (descriptor(published("node_scaling", 5, 120, 5)), "nodes_in_published_rack must be more than the 5 nodes"),
        (descriptor(published("node_scaling", 5, 120)), "nodes_in_published_rack must be a whole number"),
        (descriptor(node_set(), node_set()), "node_sets must have unlike node_set_id"),
        (descriptor(published("published_system", 10, 14.5), scale_out=fabric(required_bandwidth_tbps=32.0)),
         "required_bandwidth_tbps must be at least the adapters' sum, 64"),
        (descriptor(published("published_system", 20, 14.5), scale_out=fabric(required_bandwidth_tbps=128.0)),
         "switches carry 102.4 Tb/s and 128 are required"),
        (descriptor(published("published_system", 10, 14.5),
                    scale_out=fabric(nics={"count_per_node": 8, "bandwidth_per_nic_gbps": 800, "counted": True})),
         "nics.counted must be false"),
        (descriptor(node_set(nodes_provisioned=2, components={
            **node_set()["components"], "scale_up_network": {"method": "none"}})),
         "scale_out.present must be true: nothing else joins 2 nodes"),
        (descriptor(published("published_system", 1, 0)), "yields a total of 0 W"),
        ({}, "no node_sets (Appendix E), and none of the earlier"),
        ([], "must hold a JSON object"),
        ({"cooling": "air"} | {key: value for key, value in FLAT.items() if key == "accelerator"},
         "cpu and accelerator are needed"),
        ({key: value for key, value in FLAT.items() if key != "overhead_fraction"}, "overhead_fraction is missing"),
        ({**FLAT, "overhead_fraction": 0.0}, "overhead_fraction must be 0.30 (liquid) or 0.50 (air)"),
        ({**FLAT, "cooling": "air"}, "overhead_fraction must be"),
        ({"rack_power_w": 1e5, "rack_nodes": 8}, "submitted_nodes must be a whole number"),
        ({"rack_power_w": 1e5, "rack_nodes": 8, "submitted_nodes": 9}, "submitted_nodes is 9, more than the 8"),
    ],
)  # fmt: skip
def test_what_yields_no_total_is_refused(data: Any, words: str) -> None:
    with pytest.raises(ProvisionedFault) as fault:
        read_provisioned(data, "p.json")
    assert words in str(fault.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_any_value_anywhere_is_read_or_refused_with_its_place(data: st.DataObject) -> None:
    form = copy.deepcopy(data.draw(st.sampled_from([descriptor(), FLAT, descriptor(scale_out=fabric())])))
    at: Any = form
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            at[key] = data.draw(JSON)
            break
        at = at[key]
    try:
        found = read_provisioned(form, "p.json")
    except ProvisionedFault as fault:
        assert str(fault).startswith("p.json")  # noqa: PT017 - either is right
    else:
        assert 0 < found.power_w < math.inf


@given(st.integers(1, 40), st.integers(1, 60))
def test_a_missing_figure_never_makes_a_system_smaller(nodes: int, watts: int) -> None:
    """Without any one of its figures there is no total, rather than a lower one."""
    data = descriptor(node_set(nodes_provisioned=nodes), cooling="air")
    data["node_sets"][0]["components"]["cpu"]["tdp_per_unit"]["value_w"] = watts
    assert read_provisioned(data).power_w > 0
    for key in ("cpu", "accelerator", "scale_up_network"):
        part = copy.deepcopy(data)
        del part["node_sets"][0]["components"][key]
        with pytest.raises(ProvisionedFault):
            read_provisioned(part)


# -- under a feed


def test_whole_nodes_fit_under_a_feed() -> None:
    found = read_provisioned(descriptor(published("published_system", 10, 14.5), cooling="air", scale_out=fabric()))
    fit = nodes_under_feed(found, 1e6)
    assert (fit.unit, fit.units, fit.unit_w) == ("node", 68, pytest.approx(14_680))
    assert fit.systems == pytest.approx(6.8)
    assert fit.used_w <= 1e6 < fit.used_w + fit.unit_w
    cooled = nodes_under_feed(found, 1e6, pue=1.25)
    assert (cooled.units, cooled.unit_w) == (54, pytest.approx(18_350))
    assert nodes_under_feed(found, 1e6, nodes=5).systems == pytest.approx(68 / 5)
    one = nodes_under_feed(read_provisioned(descriptor()), 12_740 * 3)
    assert (one.units, one.accelerators) == (3, 24)
    assert nodes_under_feed(found, 1000).units == 0
    mixed = descriptor(published("node_scaling", 5, 120, 8), published("node_scaling", 3, 96, 8, number=1))
    assert nodes_under_feed(read_provisioned(mixed), 1e6).unit == "system"
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ProvisionedFault, match="number of watts above 0"):
            nodes_under_feed(found, wrong)


# -- in a system file, and by the command


def test_a_system_file_refuses_one_that_yields_no_total(tmp_path: Path) -> None:
    (tmp_path / "system.toml").write_text('name = "s"\nprovisioned = "power.json"\n')
    (tmp_path / "power.json").write_text(json.dumps(FLAT))
    assert load_system(tmp_path / "system.toml").provisioned == FLAT
    (tmp_path / "power.json").write_text(json.dumps({**FLAT, "overhead_fraction": 0.4}))
    with pytest.raises(SystemFault, match=r"provisioned: .*power.json: overhead_fraction must be"):
        load_system(tmp_path / "system.toml")
    for content in ("[1]", "{", "[" * 100_000):
        (tmp_path / "power.json").write_text(content)
        with pytest.raises(SystemFault, match="power"):
            load_system(tmp_path / "system.toml")


def test_the_command_checks_sums_and_writes(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "system_power.json"
    old.write_text(json.dumps(FLAT))
    said = CliRunner().invoke(main, ["replay", "power", "provisioned", str(old), "--out", str(new)])
    assert said.exit_code == 0, said.output
    assert "12.74 kW provisioned, by its sum" in said.stdout
    assert json.loads(new.read_text())["system_desc_id"] == "old"
    listed = CliRunner().invoke(main, ["replay", "power", "provisioned", str(new), "--json"])
    assert json.loads(listed.stdout)["power_w"] == pytest.approx(12_740)
    piped = CliRunner().invoke(main, ["replay", "power", "provisioned", str(old), "--out", "-", "--name", "mine"])
    assert json.loads(piped.stdout)["system_desc_id"] == "mine"
    old.write_text(json.dumps({**FLAT, "cooling": "\x1b[2J"}))
    wrong = CliRunner().invoke(main, ["replay", "power", "provisioned", str(old)])
    assert wrong.exit_code == 2
    assert "cooling must be one of liquid, air" in wrong.output
    assert "\x1b" not in wrong.output

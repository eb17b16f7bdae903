"""The tree of power domains: what lies inside what, and which sets of devices are a total."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.power.domain import (
    SCOPES,
    Scope,
    ScopeSet,
    contains,
    overlap_sentence,
    overlaps,
    place_devices,
    scope_devices,
)
from replay.power.source import PowerDevice, PowerDomain, PowerFault, SourceInfo
from replay.system import System, read_system

DOMAINS: tuple[PowerDomain, ...] = get_args(PowerDomain.__value__)


def device(uid: str, domain: PowerDomain = "accelerator", **options: Any) -> PowerDevice:
    return PowerDevice(uid=uid, name=options.pop("name", uid), domain=domain, limit_w=None, wrap_j=None, **options)


def source(*devices: PowerDevice, name: str = "nvml", kind: str = "nvml") -> SourceInfo:
    return SourceInfo(kind=kind, name=name, measured=True, version=None, devices=devices, notes=())


def gpus(*uuids: str, **options: Any) -> list[dict[str, Any]]:
    return [{"name": "H", "uuid": uuid, **options} for uuid in uuids]


def system_of(**tables: Any) -> System:
    return read_system({"name": "s", **tables}, "s")


def sets(system: System, *infos: SourceInfo) -> dict[Scope, ScopeSet]:
    return scope_devices(place_devices(infos, system), system)


# -- the tree


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("facility", "hbm"), ("facility", "rack"), ("rack", "node"), ("node", "cpu_package"), ("node", "dram"),
        ("node", "module"), ("node", "nic"), ("node", "switch"), ("module", "accelerator"), ("accelerator", "hbm"),
    ],
)  # fmt: skip
def test_what_contains_what(outer: PowerDomain, inner: PowerDomain) -> None:
    assert contains(outer, inner)
    assert not contains(inner, outer)


def test_the_tree_is_an_order_and_a_nameplate_is_outside_it() -> None:
    for one in DOMAINS:
        assert contains(one, one)
        assert one == "declared" or contains("facility", one)
        assert one == "declared" or not contains(one, "declared")
    assert not contains("module", "cpu_package")
    assert not contains("cpu_package", "dram")


PLACES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple)


@given(st.lists(PLACES, max_size=8))
def test_overlaps_are_the_prefixes(places: list[tuple[str, ...]]) -> None:
    devices = [device(str(number), place=place) for number, place in enumerate(places)]
    found = overlaps(devices)
    place_of = {item.uid: item.place for item in devices}
    for outer, inner in found:
        assert outer != inner
        assert place_of[inner][: len(place_of[outer])] == place_of[outer]
    named = {uid for pair in found for uid in pair}
    for one in devices:
        clashes = any(
            other.uid != one.uid and one.place[: len(other.place)] == other.place for other in devices
        )  # one lies in another: it is named
        assert not clashes or one.uid in named


# -- where things stand


def test_the_system_file_completes_every_place() -> None:
    system = system_of(
        racks=[{"name": "r1"}],
        nodes=[{"name": "n1", "rack": "r1"}, {"name": "n2", "rack": "r1"}],
        accelerators=[*gpus("A", "B", node="n1", module="m0"), *gpus("C", node="n2")],
        meters=[
            {"device": "pdu-7", "covers": "rack r1", "u_percent": 1.0, "evidence": "class 1"},
            {"device": ["feed-a", "feed-b"], "covers": "node n2"},
            {"device": "outlet-3", "covers": "switch s1"},
            {"device": "shunt", "covers": "accelerator C"},
        ],
    )
    infos = place_devices(
        (
            source(device("A"), device("A/memory", "hbm"), device("A/module", "module"), device("C")),
            source(device("n1.example/intel-rapl:0", "cpu_package", host="n1.example"), name="rapl"),
            source(*(device(uid, "node") for uid in ("pdu-7", "feed-a", "feed-b", "outlet-3", "shunt")), name="pdu"),
        ),
        system,
    )
    found = {item.uid: item for info in infos for item in info.devices}
    assert {uid: " / ".join(item.place) for uid, item in found.items()} == {
        "A": "rack r1 / node n1 / module m0 / accelerator A",
        "A/memory": "rack r1 / node n1 / module m0 / accelerator A / hbm",
        "A/module": "rack r1 / node n1 / module m0",
        "C": "rack r1 / node n2 / accelerator C",
        "n1.example/intel-rapl:0": "rack r1 / node n1 / cpu_package n1.example/intel-rapl:0",
        "pdu-7": "rack r1",
        "feed-a": "rack r1 / node n2 / feed feed-a",
        "feed-b": "rack r1 / node n2 / feed feed-b",
        "outlet-3": "switch s1",
        "shunt": "rack r1 / node n2 / accelerator C",
    }
    assert found["pdu-7"].domain == "rack"
    assert (found["pdu-7"].u_gain, found["pdu-7"].u_evidence) == (pytest.approx(0.01 / 3**0.5), "class 1")
    assert (found["outlet-3"].domain, found["outlet-3"].u_gain) == ("switch", None)
    assert place_devices(infos, system) == infos  # once placed, always so


def test_a_source_that_knows_its_host_is_believed_where_the_file_is_silent() -> None:
    remote = device("A", host="n7", place=("rack r9", "node n7", "accelerator A"))
    ((placed,),) = (info.devices for info in place_devices([source(remote)], system_of()))
    assert placed.place == ("rack r9", "node n7", "accelerator A")


def test_a_facility_meter_contains_everything() -> None:
    infos = place_devices([source(device("A"), device("meter", "facility"), device("r", "rack"))], system_of())
    assert [item.place[0] for item in infos[0].devices] == ["facility"] * 3
    assert len(overlaps(infos[0].devices)) == 2


def test_a_device_that_is_shown_twice_names_both_sources() -> None:
    with pytest.raises(PowerFault, match=r"the device A is shown by nvml and by dcgm: it would be charged twice"):
        place_devices([source(device("A")), source(device("A"), name="dcgm")], system_of())


# -- what is charged


def test_every_accelerator_of_the_file_is_expected_and_no_other_is_charged() -> None:
    system = system_of(accelerators=[*gpus("A", "B"), *gpus("C", role="idle")])
    found = sets(system, source(*(device(uid) for uid in "ABCD")))
    assert found["accelerator"].devices == ("A", "B", "C")
    assert found["accelerator_engaged"].devices == ("A", "B")
    assert all(part.whole for part in found.values())
    found = sets(system, source(*(device(uid) for uid in "AB")))
    assert found["accelerator"].missing == ("C",)
    assert not found["accelerator"].whole
    assert found["accelerator_engaged"].whole


def test_accelerators_without_a_name_are_counted() -> None:
    system = system_of(accelerators=[{"name": "H", "count": 3}])
    assert sets(system, source(device("A"), device("B")))["accelerator"].missing == (
        "1 of the 3 accelerators of the system file",
    )
    found = sets(system, source(*(device(uid) for uid in "ABCD")))["accelerator"]
    assert (found.devices, found.whole) == (("A", "B", "C", "D"), True)  # more watts, never fewer
    assert "1 more are shown" in found.notes[0]
    assert "lists no accelerator" in sets(system_of(), source(device("A")))["accelerator"].notes[0]
    idle = system_of(accelerators=[{"name": "H"}, {"name": "H", "role": "idle"}])
    assert "which accelerators are engaged" in sets(idle, source(device("A"), device("B")))[
        "accelerator_engaged"
    ].missing[0]  # fmt: skip


def test_a_module_that_two_accelerators_report_is_charged_once() -> None:
    modules = [device(f"{uuid}/module", "module") for uuid in "ABCD"]
    system = system_of(
        nodes=[{"name": "n1"}, {"name": "n2"}],
        accelerators=[*gpus("A", "B", node="n1", module="m0"), *gpus("C", "D", node="n2", module="m0")],
    )
    found = sets(system, source(*modules))["module"]
    assert (found.devices, found.whole) == (("A/module", "C/module"), True)
    found = sets(system, source(modules[1]))["module"]
    assert (found.devices, found.missing) == (("B/module",), ("module m0 (C, D)",))
    partly = system_of(accelerators=[*gpus("A", module="m0"), *gpus("B")])
    assert sets(partly, source(*modules))["module"].missing == ("the module of B",)


def test_modules_that_nobody_tells_apart_are_no_total() -> None:
    modules = [device(f"{uuid}/module", "module") for uuid in "AB"]
    found = sets(system_of(accelerators=gpus("A", "B")), source(*modules))["module"]
    assert found.overlaps == (("A/module", "B/module"),)
    assert "A/module and B/module overlap" in overlap_sentence(found)
    assert "give each accelerator its module" in overlap_sentence(found)
    assert sets(system_of(accelerators=gpus("A")), source(modules[0]))["module"].whole
    assert not sets(system_of(accelerators=gpus("A", "B")), source(modules[0]))["module"].whole


def test_a_module_with_a_meter_of_its_own_is_not_charged_twice() -> None:
    system = system_of(accelerators=gpus("A", "B", module="m0"), meters=[{"device": "shunt", "covers": "module m0"}])
    meter = source(device("shunt", "node"), name="pdu")
    assert sets(system, meter)["module"].devices == ("shunt",)
    assert sets(system, meter, source(device("A/module", "module")))["module"].overlaps == (("shunt", "A/module"),)


NODES = [{"name": "n1", "rack": "r1"}, {"name": "n2", "rack": "r1"}, {"name": "n3"}]
METERS = [
    {"device": "pdu", "covers": "rack r1"},
    {"device": ["a", "b"], "covers": "node n3"},
]


def test_machines_and_racks_together_cover_the_system() -> None:
    system = system_of(nodes=NODES, meters=METERS)
    found = sets(system, source(device("pdu", "rack"), device("a", "node"), device("b", "node")))["node_or_rack"]
    assert (found.devices, found.whole) == (("pdu", "a", "b"), True)
    found = sets(system, source(device("pdu", "rack"), device("a", "node")))["node_or_rack"]
    assert (found.missing, found.whole) == (("b",), False)  # one feed of two is half the power
    found = sets(system_of(nodes=NODES), source(device("n1", "node"), device("n2", "node")))["node_or_rack"]
    assert found.missing == ("node n3",)
    assert not sets(system_of(), source(device("n1", "node")))["node_or_rack"].whole
    assert sets(system_of(racks=[{"name": "r"}]), source(device("r", "rack")))["node_or_rack"].whole


def test_a_rack_that_is_the_systems_in_part_is_charged_whole() -> None:
    system = system_of(racks=[{"name": "r1", "nodes": 18}], nodes=NODES[:2], meters=METERS[:1])
    found = sets(system, source(device("pdu", "rack")))["node_or_rack"]
    assert found.whole
    assert found.notes == ("rack r1 has 18 nodes, 2 of them the system's: all of the rack is charged",)


def test_a_rack_and_a_machine_in_it_overlap_and_both_are_named() -> None:
    infos = (source(device("pdu", "rack"), device("a", "node"), device("b", "node"), device("n1", "node")),)
    found = sets(system_of(nodes=NODES, meters=METERS), *infos)["node_or_rack"]
    assert found.overlaps == (("pdu", "n1"),)
    assert overlap_sentence(found).startswith("pdu and n1 overlap: the same watts would be charged twice")
    twice = [{"device": "x", "covers": "node n1"}, {"device": "y", "covers": "node n1"}]
    found = sets(system_of(nodes=[{"name": "n1"}], meters=twice), source(device("x"), device("y")))["node_or_rack"]
    assert found.overlaps == (("x", "y"),)


def test_a_meter_that_no_source_shows_is_missing() -> None:
    found = sets(system_of(nodes=NODES, meters=METERS), source(device("A")))
    assert set(found) == {"accelerator", "node_or_rack"}
    assert {"pdu", "a", "b"} <= set(found["node_or_rack"].missing)
    empty = sets(system_of(accelerators=gpus("A", module="m"), meters=[{"device": "x", "covers": "module m"}]))
    assert "x" in empty["module"].missing


def test_every_machine_must_show_its_processors() -> None:
    system = system_of(nodes=[{"name": "n1"}, {"name": "n2"}])
    one = source(device("n1/intel-rapl:0", "cpu_package", host="n1"), name="rapl")
    two = source(device("n2/intel-rapl:0", "cpu_package", host="n2"), name="remote")
    assert sets(system, one)["cpu_package"].missing == ("the cpu_package of node n2",)
    assert sets(system, one, two)["cpu_package"].whole
    assert sets(system_of(), one)["cpu_package"].whole


def test_memory_is_never_added_to_its_accelerator() -> None:
    system = system_of(accelerators=gpus("A", "B"))
    found = sets(system, source(device("A"), device("A/memory", "hbm"), device("B")))
    assert found["accelerator"].devices == ("A", "B")
    assert found["hbm"].devices == ("A/memory",)
    assert found["hbm"].missing == ("B/memory",)


FIXED = system_of(
    nodes=NODES,
    accelerators=[*gpus("A", "B", node="n1", module="m0"), *gpus("C", node="n2", module="m1", role="idle")],
    meters=METERS,
)
ALL = (
    *(device(uid) for uid in "ABC"),
    *(device(f"{uid}/memory", "hbm") for uid in "ABC"),
    *(device(f"{uid}/module", "module") for uid in "ABC"),
    *(device(f"n{number}/intel-rapl:0", "cpu_package", host=f"n{number}") for number in (1, 2, 3)),
    device("pdu", "rack"),
    device("a", "node"),
    device("b", "node"),
    device("site", "facility"),
)


@given(st.sets(st.sampled_from(range(len(ALL)))))
def test_losing_a_device_of_a_total_never_leaves_a_smaller_total(lost: set[int]) -> None:
    whole = sets(FIXED, source(*ALL))
    assert all(part.whole for part in whole.values())
    left = sets(FIXED, source(*(item for number, item in enumerate(ALL) if number not in lost)))
    gone = {ALL[number].uid for number in lost}
    for scope, part in left.items():
        # The other GPU of the module reports the same watts.
        same = {"B/module": "A/module"} if scope == "module" else {}
        charged = {same.get(uid, uid) for uid in part.devices}
        assert charged == set(whole[scope].devices) or not part.whole
        assert not set(part.devices) & gone


@given(st.sets(st.sampled_from(DOMAINS)))
def test_a_source_of_another_domain_changes_no_set(domains: set[PowerDomain]) -> None:
    alone = sets(FIXED, source(*(device(uid) for uid in "ABC")))
    others = [device(f"new {domain}", domain) for domain in domains if domain != "accelerator"]
    beside = sets(FIXED, source(*(device(uid) for uid in "ABC")), source(*others, name="other"))
    for scope in ("accelerator", "accelerator_engaged"):
        assert beside[scope] == alone[scope]
    assert set(beside) <= set(SCOPES)


def test_a_module_of_two_machines_is_no_module() -> None:
    modules = [device(f"{uuid}/module", "module", host=host) for uuid, host in zip("ABCD", "xxyy", strict=True)]
    found = sets(system_of(accelerators=gpus(*"ABCD", module="m0")), source(*modules))["module"]
    assert not found.whole
    assert "x and y have one" in found.missing[0]


def test_every_processor_of_the_file_is_expected() -> None:
    system = system_of(accelerators=[{"name": "EPYC", "kind": "cpu", "count": 2}])
    packages = [device(f"h/cpu{number}", "cpu_package") for number in range(2)]
    assert sets(system, source(*packages))["cpu_package"].whole
    assert sets(system, source(packages[0]))["cpu_package"].missing == ("1 of the 2 processors of the system file",)

"""system.toml: what is wrong with one is said in a sentence, and what it leaves out is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from replay.provisioned import LARGEST_FILE_BYTES
from replay.system import (
    SystemFault,
    load_system,
    read_system,
    system_from_json,
    system_to_json,
)

WHOLE = """
name = "two machines"
pue = 1.2
pue_kind = "annual"
agents_per_engineer = 3.5
provisioned = "power.json"

[prices]
currency = "EUR"
per_accelerator_hour = 2
energy_per_kwh = 0.11

[[racks]]
name = "r1"
accelerators = 72
nodes = 18

[[nodes]]
name = "n1"
rack = "r1"

[[nodes]]
name = "n2"
rack = "r1"

[[accelerators]]
name = "GB300"
uuid = "GPU-0"
node = "n1"
module = "m0"

[[meters]]
device = ["pdu-a", "pdu-b"]
covers = "node n1"
u_percent = 1
evidence = "class 1"

[[meters]]
device = "site"
covers = "facility"
"""


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "name is missing"),
        ({"name": "a", "gpus": 1}, "unknown key 'gpus'"),
        ({"name": "a", "pue": 0.9}, "at least 1"),
        ({"name": "a", "weights": "random"}, '"trained" or "made-up"'),
        ({"name": "a", "moe": "yes"}, "moe must be true or false"),
        ({"name": "a", "accelerators": [{"name": "x", "cores": 1}]}, "accelerator 1: unknown key 'cores'"),
        ({"name": "a", "accelerators": [{"name": "x", "role": "spare"}]}, "role must be one of"),
        ({"name": "a", "accelerators": [{"name": "x", "uuid": "u", "count": 2}]}, "exactly one accelerator"),
        ({"name": "a", "accelerators": [{"name": "x", "uuid": "u"}, {"name": "y", "uuid": "u"}]}, "same uuid"),
        ({"name": "a", "accelerators": {"name": "x"}}, "accelerators are written as [[accelerators]] tables"),
        ({"name": "a", "accelerators": [{"name": "x", "count": True}]}, "count must be a whole number"),
        ({"name": "a", "accelerators": [{"name": "x", "node": "n"}]}, "node 'n' is not one of [[nodes]]"),
        ({"name": "a", "accelerators": [{"name": "x", "module": "m"}]}, "accelerator 1: module needs uuid"),
        ({"name": "a", "nodes": [{"rack": "r"}]}, "node 1: name is missing"),
        ({"name": "a", "nodes": [{"name": "n"}, {"name": "n"}]}, "two nodes are named 'n'"),
        ({"name": "a", "racks": [{"name": "r", "nodes": 0}]}, "rack 1: nodes must be a whole number"),
        ({"name": "a", "meters": [{"covers": "facility"}]}, "meter 1: device is the name under which"),
        ({"name": "a", "meters": [{"device": [], "covers": "facility"}]}, "meter 1: device is the name"),
        ({"name": "a", "meters": [{"device": "d"}]}, 'covers is "facility", or a name behind rack, node'),
        ({"name": "a", "meters": [{"device": "d", "covers": "node "}]}, 'covers is "facility", or a name'),
        ({"name": "a", "meters": [{"device": "d", "covers": "facility x"}]}, 'covers is "facility", or a name'),
        ({"name": "a", "meters": [{"device": "d", "covers": "node n"}]}, "has no node n: name it in [[nodes]]"),
        ({"name": "a", "meters": [{"device": "d", "covers": "module m"}]}, "no module m: name it in [[accelerators]]"),
        ({"name": "a", "meters": [{"device": "d", "covers": "facility", "u_percent": -1}]}, "a number above 0"),
        ({"name": "a", "meters": [{"device": x, "covers": "facility"} for x in "dd"]}, "two meters are named 'd'"),
        ({"name": "a", "power_cap_w": "700"}, "must be a number"),
        ({"name": "a", "power_cap_w": math.inf}, "must be a number"),
        ({"name": "a", "power_cap_w": math.nan}, "must be a number"),
        ({"name": "a", "pue": 1.2}, "pue and pue_kind stand together"),
        ({"name": "a", "pue_kind": "annual"}, "pue and pue_kind stand together"),
        ({"name": "a", "pue": 1.2, "pue_kind": "best"}, '"annual" or "design", not'),
        ({"name": "a", "prices": [1]}, "prices are written as a [prices] table"),
        ({"name": "a", "prices": {"per_hour": 2}}, "currency is missing"),
        ({"name": "a", "prices": {"currency": "USD"}}, "no price is stated"),
        ({"name": "a", "prices": {"currency": "USD", "per_hour": 0}}, "per_hour must be a number above 0"),
        ({"name": "a", "prices": {"currency": "USD", "per_hour": 2, "per_accelerator_hour": 1}}, "not both"),
        ({"name": "a", "price_per_hour": "22 USD"}, "unknown key 'price_per_hour'"),
        ({"name": "a", "provisioned": 5}, "the path of a system_power.json"),
        ({"name": "a", "provisioned": "no-such-file.json"}, "no-such-file.json cannot be read"),
        ({"name": 7}, "name must be a text"),
        ({"name": "a", "power_cap_w": 10**400}, "power_cap_w must be a number above 0"),
        ({"name": "a", "accelerators": [{"name": "g", "count": 10**30}]}, "count must be a whole number"),
    ],
)
def test_a_system_file_says_what_is_wrong(table: dict[str, Any], says: str) -> None:
    with pytest.raises(SystemFault, match=r"system\.toml") as caught:
        read_system(table, "system.toml")
    assert says in str(caught.value)


def test_a_system_knows_its_power_devices() -> None:
    gpus = [{"name": "H200", "uuid": f"GPU-{index}"} for index in range(2)]
    system = read_system({"name": "a", "accelerators": [*gpus, {"name": "cpu", "kind": "cpu"}]}, "s")
    assert system.gpu_uuids == ("GPU-0", "GPU-1")
    assert (system.gpu_count, system.accelerator_count) == (2, 3)
    partly = read_system({"name": "a", "moe": False, "accelerators": [gpus[0], {"name": "H200", "count": 7}]}, "s")
    assert (partly.gpu_uuids, partly.gpu_count) == ((), 8)
    assert "launch_command" in partly.undisclosed
    assert "moe" not in partly.undisclosed


def test_a_whole_system_file_is_read_and_kept(tmp_path: Path) -> None:
    (tmp_path / "system.toml").write_text(WHOLE)
    (tmp_path / "power.json").write_text('{"provisioned_power_w": 4000}')
    system = load_system(tmp_path / "system.toml")
    assert [node.name for node in system.nodes] == ["n1", "n2"]
    assert (system.racks[0].accelerators, system.racks[0].nodes) == (72, 18)
    assert (system.meters[0].device, system.meters[0].domain, system.meters[0].name) == (
        ("pdu-a", "pdu-b"), "node", "n1"
    )  # fmt: skip
    assert (system.meters[1].device, system.meters[1].domain, system.meters[1].name) == (("site",), "facility", "")
    assert system.prices is not None
    assert (system.prices.per_accelerator_hour, system.prices.energy_per_kwh) == (2, 0.11)
    assert system.provisioned == {"provisioned_power_w": 4000}
    assert (system.pue_kind, system.agents_per_engineer) == ("annual", 3.5)
    kept = json.loads(json.dumps(system_to_json(system)))
    assert system_from_json(kept) == system
    assert {"pue_kind", "agents_per_engineer", "prices", "provisioned"}.isdisjoint(system.undisclosed)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1]", "must hold a JSON object"),
        (b'{"watts": 5}', "power.json"),
        (b"{", "is not readable JSON"),
        (b"\xff", "is not readable JSON"),
        (b"[" * 200_000, "is not readable JSON"),
        (b'{"x": ' + b"[" * 400 + b"]" * 400 + b"}", "more than 64 deep"),
        (b'{"x": NaN}', "NaN is no number"),
        (b'{"x": ' + b"9" * 400 + b"}", "too large"),
        (b'{"x": "\\ud800"}', "surrogates"),
        (b" " * (LARGEST_FILE_BYTES + 1), "is larger than"),
    ],
    ids=["list", "unlike", "half", "bytes", "deep", "deeper than kept", "no number", "huge", "surrogate", "large"],
)
def test_a_provisioned_file_that_is_none_says_so(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "power.json").write_bytes(content)
    with pytest.raises(SystemFault, match=r"s: provisioned: .*power\.json") as caught:
        read_system({"name": "a", "provisioned": "power.json"}, "s", folder=tmp_path)
    assert says in str(caught.value)


def test_a_system_that_was_altered_is_refused() -> None:
    kept = system_to_json(read_system({"name": "a"}, "s"))
    for change in ({"accelerators": None}, {"nodes": [{}]}, {"pue": "much"}, {"prices": 5}):
        with pytest.raises(ValueError, match=r"Object|Expected"):
            system_from_json({**kept, **change})

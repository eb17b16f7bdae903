"""system.toml: what is wrong with one is said in a sentence, and what it leaves out is named."""

from __future__ import annotations

from typing import Any

import pytest

from replay.system import SystemFault, read_system


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
        ({"name": "a", "power_cap_w": "700"}, "must be a number"),
        ({"name": 7}, "name must be a text"),
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

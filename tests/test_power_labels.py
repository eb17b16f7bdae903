"""What must be said beside a megawatt: a cap, a part of a rack, an estimate, a reading that failed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from replay.idle import IdlePower, IdleReading, load_flags
from replay.judge import Judged, judge_trials, score_json
from replay.labels import device_words
from replay.power.source import DeviceState, SourceInfo
from replay.runfolder import RunFolder
from replay.system import Accelerator, Rack, System, system_to_json
from tests.power_trials import totals
from tests.simulated_run import SimulatedDriver
from tests.test_denominator import IDLE_W, gpus, partial_rack
from tests.test_provisioned import descriptor, node_set, published, sourced
from tests.test_score import score_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("labels") / "run"
    score_of(out, SimulatedDriver())
    return RunFolder(path=out)


def labels_of(folder: RunFolder, system: System, judged: list[Judged]) -> list[str]:
    inputs = dataclasses.replace(folder.inputs(), system=system_to_json(system), power=("nvml",))
    found: list[str] = score_json(folder, inputs, folder.plan(), judged)["labels"]
    return found


def test_a_partial_rack_and_what_its_idle_part_is_left_out_of(finished: RunFolder) -> None:
    system = partial_rack()
    power = totals([*gpus(72, 900.0)[:40], *gpus(72, IDLE_W)[40:]], system)
    judged = [dataclasses.replace(item, power=power) for item in judge_trials(finished)]
    labels = labels_of(finished, system, judged)
    assert "partial rack: 40 of the 72 accelerators of r1" not in labels  # all 72 are listed: 32 of them idle
    assert "32 idle accelerators are part of the deployment and counted" in labels
    assert any("accelerators that serve leaves the idle ones" in label for label in labels)
    forty = System(
        name="forty", racks=(Rack(name="r1", accelerators=72, nodes=18),), accelerators=system.accelerators[:40],
        nodes=system.nodes[:10],
    )  # fmt: skip
    judged = [dataclasses.replace(item, power=totals(gpus(40, 900.0), forty)) for item in judged]
    assert "partial rack: 40 of the 72 accelerators of r1" in labels_of(finished, forty, judged)
    nodes_only = dataclasses.replace(forty, racks=(Rack(name="r1", nodes=18),))
    assert "partial rack: 10 of the 18 nodes of r1" in labels_of(finished, nodes_only, judged)
    assert not any(
        "partial rack" in label for label in labels_of(finished, dataclasses.replace(forty, racks=()), judged)
    )


def test_estimates_caps_and_refusals_are_said(finished: RunFolder) -> None:
    parts: dict[str, Any] = node_set()["components"]
    parts["accelerator"]["tdp_per_unit"] = sourced(1400, kind="mlc_default", source="D.3")
    system = System(
        name="s",
        accelerators=(Accelerator(name="GB300", count=2),),
        power_cap_w=600.0,
        provisioned=descriptor(node_set(components=parts)),
    )
    judged = [
        dataclasses.replace(item, power=totals(gpus(2, 500.0), system), devices_say=("power limit of 600 W",))
        for item in judge_trials(finished)
    ]
    labels = labels_of(finished, system, judged)
    assert any("MLCommons' own estimates" in label and "(D.3)" in label for label in labels)
    assert "accelerators are capped at 600 W each, by the system file" in labels
    assert "power limit of 600 W" in labels
    assert any("power of whole nodes was not measured" in label for label in labels)
    refused = dataclasses.replace(system, accelerators=(Accelerator(name="GB300", count=9),))
    labels = labels_of(finished, refused, judged)
    assert any(label.startswith("no provisioned power: the system file lists 9 accelerators") for label in labels)


def test_a_flag_that_many_devices_share_is_one_label(finished: RunFolder) -> None:
    system = System(name="s", accelerators=tuple(Accelerator(name="g", uuid=f"GPU-{at}") for at in range(5)))
    (total,) = totals(gpus(5, 500.0), system)
    flagged = tuple(dataclasses.replace(device, flags=("counter_stuck",)) for device in total.devices)
    judged = [
        dataclasses.replace(item, power=(dataclasses.replace(total, devices=flagged),))
        for item in judge_trials(finished)
    ]
    labels = labels_of(finished, system, judged)
    assert [label for label in labels if "counter_stuck" in label] == ["GPU-0, GPU-1, GPU-2 and 2 more: counter_stuck"]


def test_devices_say_what_caps_and_splits_them() -> None:
    states = [
        DeviceState(device=f"GPU-{number}", power_limit_w=limit_w, default_limit_w=700.0, mig=number == 3)
        for number, limit_w in enumerate((500.0, 500.0, 700.0, 600.0))
    ]
    states.append(DeviceState(device="GPU-4", power_limit_w=500.0))
    info = SourceInfo(kind="nvml", measured=True, version=None, devices=(), notes=(), states=tuple(states))
    assert device_words([info]) == (
        "power limit of 500 W on 2 devices, 700 W by default",
        "power limit of 600 W on 1 device, 700 W by default",
        "GPU-3 split into instances (MIG): the whole device is charged, others' work too",
    )
    assert device_words([]) == ()


def test_a_descriptor_that_measured_power_exceeds_is_said(finished: RunFolder) -> None:
    system = System(
        name="s",
        accelerators=tuple(Accelerator(name="H", uuid=f"GPU-{number}") for number in range(2)),
        provisioned=descriptor(published("published_system", 1, 0.5)),
    )
    judged = [dataclasses.replace(item, power=totals(gpus(2, 700.0), system)) for item in judge_trials(finished)]
    words = "provisioned power of 500 W is less than the 1400 W that was measured of accelerator"
    assert any(words in label for label in labels_of(finished, system, judged))
    plain = dataclasses.replace(system, provisioned=descriptor(published("published_system", 1, 10.2)))
    assert not any("is less than the" in label for label in labels_of(finished, plain, judged))


def test_accelerators_that_are_called_idle_and_work_are_said(finished: RunFolder) -> None:
    system = System(
        name="s",
        accelerators=tuple(
            Accelerator(name="H", uuid=f"GPU-{number}", role="idle" if number else "serve") for number in range(2)
        ),
    )

    def flags(idle_one_w: float) -> list[str]:
        loads = [*gpus(2, 700.0)[:1], *gpus(2, idle_one_w)[1:]]
        item = dataclasses.replace(judge_trials(finished)[0], power=totals(loads, system))
        rest = IdleReading(started_unix_us=0, seconds=60.0, power=totals(gpus(2, 100.0), system), reasons=())
        return load_flags([item], IdlePower(before=rest, after=rest, drift=()))

    assert flags(110.0) == []
    assert "the system file calls idle drew 700 W each, and 100 W at rest" in flags(700.0)[0]

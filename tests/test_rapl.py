"""RAPL by a made-up powercap tree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from replay.power.choice import parse_power
from replay.power.energy import integrate
from replay.power.rapl import RaplSource
from replay.power.source import PowerFault

WRAP_UJ = 262_143_328_850


def zone(root: Path, folder: str, name: str, microjoules: int, wrap: int = WRAP_UJ) -> Path:
    path = root / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{wrap}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_packages_and_their_memory_are_read_and_nothing_inside_or_over_them(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 100_000, wrap=65_712_999_613)
    zone(tmp_path, "intel-rapl:1", "package-1-die-0", 2_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    zone(tmp_path, "intel-rapl:10", "package-10", 3_000_000)
    (tmp_path / "intel-rapl").mkdir()
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_500_000)
    source = RaplSource(tmp_path, host="n1")
    info = source.describe()
    assert [(device.uid, device.name, device.domain, device.place) for device in info.devices] == [
        ("n1/intel-rapl:0", "package-0", "cpu_package", ("cpu_package n1/intel-rapl:0",)),
        ("n1/intel-rapl:0:1", "dram", "dram", ("dram n1/intel-rapl:0:1",)),
        ("n1/intel-rapl:1", "package-1-die-0", "cpu_package", ("cpu_package n1/intel-rapl:1",)),
        ("n1/intel-rapl:10", "package-10", "cpu_package", ("cpu_package n1/intel-rapl:10",)),
    ]
    assert {device.host for device in info.devices} == {"n1"}
    assert [device.wrap_j for device in info.devices[:2]] == pytest.approx([262_143.32885, 65_712.999613])
    assert "and their memory" in info.notes[0]
    assert [(item.device, item.value, item.kind) for item in source.read()] == [
        ("n1/intel-rapl:0", 1.5, "energy_j"),
        ("n1/intel-rapl:0:1", 0.1, "energy_j"),
        ("n1/intel-rapl:1", 2.0, "energy_j"),
        ("n1/intel-rapl:10", 3.0, "energy_j"),
    ]


def test_a_host_is_this_machine_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    monkeypatch.setattr("platform.node", lambda: "gpu-7")
    (device,) = RaplSource(tmp_path).describe().devices
    assert (device.uid, device.host) == ("gpu-7/intel-rapl:0", "gpu-7")


def test_a_counter_that_wraps_is_charged_across_it(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    source = RaplSource(tmp_path)
    (device,) = source.describe().devices
    samples = []
    for second in range(11):  # 500 W, and the counter starts again in the middle
        (folder / "energy_uj").write_text(f"{(WRAP_UJ - 2_250_000_000 + second * 500_000_000) % WRAP_UJ}\n")
        (sample,) = source.read()
        samples.append(replace(sample, t_ns=second * 1_000_000_000))
    found = integrate(samples, device, start_ns=1_000_000_000, end_ns=9_000_000_000, period_s=1.0)
    assert found.valid
    assert found.energy_j == pytest.approx(500 * 8)
    assert "counter_wrapped" in found.flags


def test_a_counter_that_goes_away_is_a_flag_not_a_zero(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    source = RaplSource(tmp_path)
    for text in ("", "busy", "-3", "1" * 30):
        (folder / "energy_uj").write_text(text)
        assert [(item.value, item.flag) for item in source.read()] == [(None, "error")]
    (folder / "energy_uj").unlink()
    assert [(item.value, item.flag) for item in source.read()] == [(None, "lost")]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert [(item.value, item.flag) for item in source.read()] == [(None, "lost")]


@pytest.mark.parametrize("there", [True, False])
def test_no_package_is_one_sentence(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "powercap"
    if there:
        root.mkdir()
        zone(root, "intel-rapl:0", "psys", 1)
    with pytest.raises(PowerFault, match=r"no RAPL package counter under .*declared:150W"):
        RaplSource(root)


@pytest.mark.parametrize("wrap", ["0", "never", ""])
def test_a_zone_without_a_range_is_refused(tmp_path: Path, wrap: str) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (folder / "max_energy_range_uj").write_text(wrap)
    with pytest.raises(PowerFault, match=r"RAPL zone .*intel-rapl:0"):
        RaplSource(tmp_path)


def test_a_counter_for_root_only_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    refused = True

    def refuse(self: Path, *arguments: object, **options: object) -> str:
        if refused and self == folder / "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self)

    # The tests may run as root, for whom no mode bits hold.
    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PowerFault, match=r"readable by root only: run `sudo chmod a\+r"):
        RaplSource(tmp_path)
    refused = False
    source = RaplSource(tmp_path)
    refused = True  # taken away while it is read: not known, and not gone
    assert [(item.value, item.flag) for item in source.read()] == [(None, "error")]


def test_the_choice_opens_the_kernels_own_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    monkeypatch.setattr("replay.power.rapl.RaplSource.__init__.__defaults__", (tmp_path,))
    source = parse_power("rapl").open()
    assert source.describe().kind == "rapl"
    source.close()

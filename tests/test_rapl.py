"""RAPL by a made-up powercap tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.power.choice import parse_power
from replay.power.rapl import RaplSource
from replay.power.source import PowerFault


def zone(root: Path, folder: str, name: str, microjoules: int, wrap: int = 262_143_328_850) -> Path:
    path = root / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{wrap}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_packages_are_read_and_nothing_inside_or_over_them(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 100_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    (tmp_path / "intel-rapl").mkdir()
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_500_000)
    source = RaplSource(tmp_path)
    info = source.describe()
    assert [(device.uid, device.name, device.domain) for device in info.devices] == [
        ("intel-rapl:0", "package-0", "cpu_package"),
        ("intel-rapl:1", "package-1", "cpu_package"),
    ]
    assert info.devices[0].wrap_j == pytest.approx(262_143.32885)
    assert [(item.device, item.value, item.kind) for item in source.read()] == [
        ("intel-rapl:0", 1.5, "energy_j"),
        ("intel-rapl:1", 2.0, "energy_j"),
    ]


def test_a_counter_that_goes_away_is_a_flag_not_a_zero(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    source = RaplSource(tmp_path)
    (folder / "energy_uj").write_text("")
    assert [(item.value, item.flag) for item in source.read()] == [(None, "error")]
    (folder / "energy_uj").unlink()
    assert [(item.value, item.flag) for item in source.read()] == [(None, "error")]


@pytest.mark.parametrize("there", [True, False])
def test_no_package_is_one_sentence(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "powercap"
    if there:
        root.mkdir()
    with pytest.raises(PowerFault, match=r"no RAPL package counter under .*declared:150W"):
        RaplSource(root)


def test_a_counter_for_root_only_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)

    def refuse(self: Path, *arguments: object, **options: object) -> str:
        if self == folder / "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self)

    # The tests may run as root, for whom no mode bits hold.
    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PowerFault, match=r"readable by root only: run `sudo chmod a\+r"):
        RaplSource(tmp_path)


def test_the_choice_opens_the_kernels_own_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    monkeypatch.setattr("replay.power.rapl.RaplSource.__init__.__defaults__", (tmp_path,))
    source = parse_power("rapl").open()
    assert source.describe().kind == "rapl"

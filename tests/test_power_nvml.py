"""NVML through the real nvidia-ml-py, against a compiled stand-in whose energy has a closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from replay.power.domain import place_devices, scope_devices
from replay.power.energy import scope_totals
from replay.system import Accelerator, System
from tests.fake_nvml import LATCH_S, build_library, write_page
from tests.nvml_boards import BOARDS, INDEX, LOADS, MIDDLE, PERIOD_S, TICKS, Read, Reads, finish, gpu, read_all, start


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def reads(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Reads:
    return read_all(library, tmp_path_factory.mktemp("pages"))


@pytest.fixture
def boards(reads: Reads) -> Read:
    return reads.boards


# -- energy against the closed form


@pytest.mark.parametrize("name", LOADS)
def test_the_counters_energy_is_within_one_latch_period_of_the_truth(boards: Read, name: str) -> None:
    board = BOARDS[name]
    most_w, swing_w = board.get("base_w", 500.0) + board.get("swing_w", 0.0), 2 * board.get("swing_w", 0.0)
    latch_j = most_w * board.get("counter_latch_s", LATCH_S) + board.get("counter_step_j", 0.0)
    for at_readings in (True, False):
        # Between two readings a window's edge is interpolated: off by the swing over half the time between them.
        between_j = 0.0 if at_readings else swing_w * PERIOD_S
        for start_ns, end_ns in boards.windows(gpu(name), at_readings=at_readings):
            found = boards.energy(gpu(name), start_ns, end_ns)
            truth_j = boards.truth.energy_j(INDEX[name], start_ns / 1e9, end_ns / 1e9)
            assert (found.method, found.reasons) == ("counter", ())
            assert found.energy_j == pytest.approx(truth_j, abs=latch_j + between_j)


def test_the_closed_form_is_the_integral_of_the_power(boards: Read) -> None:
    truth, from_s, steps = boards.truth, 1000.0, 4000
    for name in LOADS:
        watts = [truth.power_w(INDEX[name], from_s + (step + 0.5) * 2 / steps) for step in range(steps)]
        assert truth.energy_j(INDEX[name], from_s, from_s + 2) == pytest.approx(sum(watts) * 2 / steps, rel=1e-3)


def test_a_gauge_alone_gives_the_energy_of_a_steady_load_exactly(boards: Read) -> None:
    for start_ns, end_ns in boards.windows(gpu("no counter")):
        found = boards.energy(gpu("no counter"), start_ns, end_ns)
        assert (found.method, found.reasons) == ("gauge", ())
        assert found.energy_j == pytest.approx(500 * (end_ns - start_ns) / 1e9, rel=1e-6)


def test_a_board_with_an_instant_gauge_alone_is_measured_by_it(boards: Read) -> None:
    """As the A100 is: no mean, no memory. The error is that of a reading's age, and of steps between readings."""
    uid = gpu("only instant")
    assert boards.state(uid).scopes == ("accelerator power_instant_w",)
    for start_ns, end_ns in boards.windows(uid):
        found = boards.energy(uid, start_ns, end_ns)
        truth_j = boards.truth.energy_j(INDEX["only instant"], start_ns / 1e9, end_ns / 1e9)
        assert found.method == "gauge"
        assert found.energy_j == pytest.approx(truth_j, abs=200 * 2 * (LATCH_S + PERIOD_S))


def test_memory_is_a_device_of_its_own_and_inside_its_gpu(boards: Read) -> None:
    memory = boards.device(f"{gpu('constant')}/memory")
    assert (memory.domain, memory.place) == ("hbm", (f"accelerator {gpu('constant')}", "hbm"))
    start_ns, end_ns = next(boards.windows(memory.uid))
    assert boards.energy(memory.uid, start_ns, end_ns).energy_j == pytest.approx(100 * (end_ns - start_ns) / 1e9)


# -- what the energy counter covers


def test_a_counter_is_the_gpus_where_its_slope_says_so(boards: Read) -> None:
    for name in (*LOADS, "GB300 a", "GB300 b"):
        assert boards.state(gpu(name)).counter_scope == "accelerator", name


@pytest.mark.parametrize("name", ["GH200", "GB200"])
def test_a_counter_of_the_module_goes_to_the_module(boards: Read, name: str) -> None:
    gpu_w = BOARDS[name].get("base_w", 500.0)
    module = f"{gpu(name)}/module"
    assert boards.state(gpu(name)).counter_scope == "module"
    assert boards.notes(gpu(name))[0] == f"{gpu(name)}: its energy counter counts the whole module"
    assert boards.of(gpu(name), "energy_j") == []
    start_ns, end_ns = next(boards.windows(module))
    found = boards.energy(module, start_ns, end_ns)
    truth_j = boards.truth.energy_j(INDEX[name], start_ns / 1e9, end_ns / 1e9, module=True)
    assert found.method == "counter"
    assert found.energy_j == pytest.approx(truth_j, abs=(gpu_w + 300) * LATCH_S)
    assert boards.device(module).limit_w == BOARDS[name]["module_limit_w"]


def test_a_grace_hopper_gpu_has_no_power_of_its_own(boards: Read) -> None:
    found = boards.middle(gpu("GH200"))
    assert (found.energy_j, found.reasons) == (None, ("the device reports neither energy nor power",))
    assert set(boards.flags(gpu("GH200"), "power_w")) == {"unsupported"}
    assert f"{gpu('GH200')} itself reports neither energy nor power" in boards.info.notes


def test_both_gpus_of_a_module_show_the_whole_module(boards: Read) -> None:
    """As on GB300: the same watts twice, as two devices, which only the system file can tell to be one."""
    energies = []
    start_ns, end_ns = next(boards.windows(f"{gpu('GB300 a')}/module"))
    for name, method in (("GB300 a", "counter"), ("GB300 b", "gauge")):
        found = boards.energy(f"{gpu(name)}/module", start_ns, end_ns)
        truth_j = boards.truth.energy_j(INDEX[name], start_ns / 1e9, end_ns / 1e9, module=True)
        assert (found.method, found.domain) == (method, "module")
        assert found.energy_j == pytest.approx(truth_j, abs=1500 * LATCH_S)
        energies.append(truth_j)
    assert energies[0] == pytest.approx(energies[1])


def test_a_module_is_charged_once_where_the_system_file_names_it_and_else_not_at_all(boards: Read) -> None:
    shared = [gpu("GB300 a"), gpu("GB300 b")]
    kept = tuple(device for device in boards.info.devices if device.uid.split("/")[0] in shared)
    start_ns, end_ns = next(boards.windows(f"{shared[0]}/module"))
    totals = {}
    for module in ("m0", None):
        items = tuple(Accelerator(name="GB300", uuid=uuid, module=module) for uuid in shared)
        system = System(name="one module", accelerators=items)
        infos = place_devices([replace(boards.info, devices=kept)], system)
        scopes = scope_devices(infos, system)
        found = scope_totals(infos, boards.samples, scopes, start_ns=start_ns, end_ns=end_ns)
        totals[module] = {total.scope: total for total in found}
    truth_j = boards.truth.energy_j(INDEX["GB300 a"], start_ns / 1e9, end_ns / 1e9, module=True)
    assert totals["m0"]["module"].energy_j == pytest.approx(truth_j, abs=1500 * LATCH_S)
    assert totals["m0"]["accelerator"].energy_j == pytest.approx(1200 * (end_ns - start_ns) / 1e9, abs=1200 * LATCH_S)
    assert totals[None]["module"].energy_j is None
    assert "overlap: the same watts would be counted twice" in totals[None]["module"].reasons[0]
    assert totals[None]["accelerator"].valid


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "unknown counter",
            "W, while the GPU's gauge reads 500 W; what it covers is not known: no gauge is within 10%",
        ),
        ("one and the same", "both are within 10%, so what it covers cannot be told"),
    ],
)
def test_a_counter_that_cannot_be_told_is_refused(boards: Read, name: str, says: str) -> None:
    assert boards.state(gpu(name)).counter_scope == "unknown"
    assert any(says in note for note in boards.notes(gpu(name)))
    found = boards.middle(gpu(name))
    assert (found.energy_j, found.valid) == (None, False)
    assert "what it covers is not known" in found.reasons[0]


def test_a_counter_that_stands_still_is_left_aside(boards: Read) -> None:
    uid = gpu("standing counter")
    assert boards.state(uid).counter_scope is None
    assert boards.notes(uid) == [f"{uid}: the energy counter did not move in 1.5 s"]
    start_ns, end_ns = next(boards.windows(uid))
    found = boards.energy(uid, start_ns, end_ns)
    assert (found.method, "counter_stuck" in found.flags) == ("gauge", True)
    assert found.energy_j == pytest.approx(500 * (end_ns - start_ns) / 1e9)


def test_update_periods_are_measured(boards: Read) -> None:
    for name in ("square", "sine", "quantised"):
        state = boards.state(gpu(name))
        latch_s = BOARDS[name].get("counter_latch_s", LATCH_S)
        assert state.counter_latch_s == pytest.approx(latch_s, abs=0.011), name  # the watch polls every 10 ms
        assert state.gauge_latch_s == pytest.approx(0.1, abs=0.011), name
        assert boards.device(gpu(name)).latch_s == state.counter_latch_s
    assert boards.state(gpu("constant")).gauge_latch_s is None  # what never changes shows no period


def test_what_a_device_says_of_itself_is_on_record(boards: Read) -> None:
    uid = gpu("stated")
    state = boards.state(uid)
    assert (state.power_limit_w, state.default_limit_w, state.highest_limit_w) == (500.0, 700.0, 750.0)
    assert (state.ecc, state.mig, state.processes, state.temperature_c) == (True, True, 3, 41.0)
    assert (state.sm_clock_mhz, state.memory_clock_mhz) == (1980, 2619)
    assert (state.throttled_by, state.power_profile) == (("power cap",), "llm-inference, power smoothing on")
    assert boards.notes(uid) == [
        f"{uid} is split by MIG: the whole GPU is charged",
        f"{uid} is a virtual GPU: what it reads may be of the whole board, which others share",
        f"{uid} is capped at 500 W; 700 W is its default",
    ]
    silent = boards.state(gpu("constant"))
    assert (silent.mig, silent.power_profile, silent.throttled_by) == (None, None, ())


# -- failures, each with its reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "the device reports neither energy nor power"),
        ("zero gauge", "the device reports neither energy nor power"),
        ("blank", "the device reports neither energy nor power"),
        ("lost", "the device was lost while it was measured"),
        ("gone", "the device was lost while it was measured"),
        ("to be reset", "the device was lost while it was measured"),
    ],
)
def test_a_device_without_power_has_a_reason_and_no_energy(boards: Read, name: str, reason: str) -> None:
    found = boards.middle(gpu(name))
    assert (found.valid, found.energy_j, found.reasons) == (False, None, (reason,))


def test_each_failed_reading_has_its_flag(boards: Read) -> None:
    assert set(boards.flags(gpu("nothing"), "energy_j")) == {"unsupported"}
    assert set(boards.flags(gpu("blank"), "power_instant_w")) == {"blank"}
    assert set(boards.flags(gpu("no counter"), "power_w")) == {"ok"}
    for name in ("lost", "gone", "to be reset"):
        assert boards.flags(gpu(name), "energy_j") == ["ok"] * MIDDLE + ["lost"] * (TICKS - MIDDLE)
    assert boards.flags(gpu("transient"), "energy_j")[MIDDLE - 1 : MIDDLE + 3] == ["ok", *["unsupported"] * 2, "ok"]
    assert all((sample.value is None) == (sample.flag != "ok") for sample in boards.samples)


def test_a_counter_that_is_not_supported_for_a_moment_costs_nothing(boards: Read) -> None:
    uid = gpu("transient")
    start_ns, end_ns = next(boards.windows(uid))
    found = boards.energy(uid, start_ns, end_ns)
    assert (found.valid, found.method, "reading_unsupported" in found.flags) == (True, "counter", True)
    assert found.energy_j == pytest.approx(500 * (end_ns - start_ns) / 1e9, abs=500 * LATCH_S)


def test_a_counter_that_was_reset_is_bridged_by_the_gauge(boards: Read) -> None:
    uid = gpu("counter reset")
    start_ns, end_ns = next(boards.windows(uid))
    found = boards.energy(uid, start_ns, end_ns)
    truth_j = boards.truth.energy_j(INDEX["counter reset"], start_ns / 1e9, end_ns / 1e9)
    assert (found.valid, found.method, "counter_reset" in found.flags) == (True, "counter", True)
    # One interval is the gauge's, which is the mean of the second before it: off by the swing at most.
    assert found.energy_j == pytest.approx(truth_j, abs=640 * LATCH_S + 380 * 2 * PERIOD_S)


def test_watts_above_the_limit_are_flagged(boards: Read) -> None:
    found = boards.middle(gpu("over its limit"))
    assert {"gauge_over_limit", "mean_over_limit"} <= set(found.flags)


def test_a_driver_that_is_loaded_again_is_followed(reads: Reads) -> None:
    """Handles are stale, then nothing answers, then the counters begin at 0: the hole is charged, never skipped."""
    read = reads.steps["reload"]
    for index, watts in ((0, 500.0), (1, 700.0)):
        uid = f"GPU-fake-{index}"
        flags = read.flags(uid, "energy_j")
        assert flags[:4] == ["ok"] * 4
        assert set(flags[4:6]) == {"error"}
        assert flags[7:] == ["ok"] * 3
        values = [sample.value for sample in read.of(uid, "energy_j") if sample.value is not None]
        assert values[0] > values[-1]
        times = [sample.t_ns for sample in read.of(uid, "energy_j")]
        found = read.energy(uid, times[1], times[8])
        seconds = (times[8] - times[1]) / 1e9
        assert (found.valid, found.method) == (True, "counter")
        assert {"counter_reset", "reading_error"} <= set(found.flags)
        assert watts * seconds - watts * LATCH_S <= found.energy_j <= watts * seconds + 1400 * 6 * PERIOD_S


def test_a_gpu_that_is_not_shown_any_more_is_lost(reads: Reads) -> None:
    read = reads.steps["fewer"]
    assert read.flags("GPU-fake-1", "energy_j") == ["ok"] * 4 + ["lost"] * 4
    assert read.flags("GPU-fake-0", "energy_j") == ["ok"] * 8


def test_a_library_without_field_values_is_read_by_its_functions(reads: Reads) -> None:
    read = reads.steps["old library"]
    assert read.state("GPU-fake-1").counter_scope == "accelerator"
    assert {(sample.kind, sample.flag) for sample in read.samples} == {("energy_j", "ok"), ("power_w", "ok")}
    assert {sample.value for sample in read.of("GPU-fake-1", "power_w")} == {700.0}


# -- which devices


def test_only_the_expected_devices_are_read(reads: Reads) -> None:
    assert [device.uid for device in reads.steps["old library"].info.devices] == ["GPU-fake-1"]


def test_without_an_expected_set_all_are_read_and_it_says_so(reads: Reads) -> None:
    """A GPU that is shown later is none of them."""
    read = reads.steps["more"]
    assert "every visible GPU is read, 1 in all" in read.info.notes
    assert (read.info.kind, read.info.name, read.info.version, read.info.measured) == ("nvml", "nvml", "999.01", True)
    assert {sample.device for sample in read.samples} == {"GPU-fake-0", "GPU-fake-0/memory"}
    assert set(read.flags("GPU-fake-0", "energy_j")) == {"ok"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("another uuid", "expects GPU-other, but NVML shows GPU-fake-0, GPU-fake-1: correct the uuid"),
        ("part of a GPU", "MIG-1 is a part of a GPU, and NVML knows no power of parts: name the whole GPU"),
        ("too few", "has 8 accelerators, but NVML shows 2"),
        ("too many", "has 1 accelerators, but NVML shows 2 (GPU-fake-0, GPU-fake-1): give each"),
        ("lost before", "GPU 1 does not answer NVML (GPU is lost): reset or exclude it, then try again"),
        ("none", "NVML shows no GPU; state a nameplate instead"),
        ("no module", "no GPU here reports the power of its module: use --power nvml"),
        ("not loaded", "NVML does not start (Driver Not Loaded): the NVIDIA driver is not loaded here"),
        ("no permission", "NVML does not start (Insufficient Permissions): this user may not talk to"),
        ("mismatch", "library and the loaded driver are of different versions"),
    ],
)
def test_what_cannot_be_opened_says_why(reads: Reads, name: str, says: str) -> None:
    assert says in reads.faults[name]


def test_without_a_library_it_says_what_to_do(tmp_path: Path) -> None:
    if any(
        Path(folder, "libnvidia-ml.so.1").exists() for folder in ("/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu")
    ):
        pytest.skip("this machine has an NVIDIA driver")
    write_page(tmp_path / "page", [{}])
    fault = finish(start(None, tmp_path / "page", [{}]))[0]["fault"]
    assert fault.startswith("NVML does not start (NVML Shared Library Not Found): no NVIDIA driver is visible here")
    assert "declared:700W" in fault


def test_without_a_compiler_nothing_is_skipped_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no C compiler"):
        build_library(tmp_path)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception):
        build_library(tmp_path)

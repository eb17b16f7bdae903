"""The energy integral: closed forms, and its three laws as properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from replay.power.choice import PowerChoice, parse_power, parse_powers
from replay.power.declared import DeclaredSource
from replay.power.energy import EnergyEstimate, integrate, total_power
from replay.power.source import Meter, PowerDevice, PowerSample, SampleFlag, SampleKind, SourceInfo

GPU = PowerDevice(uid="GPU-a", name="test", domain="accelerator", limit_w=1000.0, wrap_j=None)
CPU = PowerDevice(uid="intel-rapl:0", name="package-0", domain="cpu_package", limit_w=None, wrap_j=262_143.0)
PERIOD_S = 1.0
SECOND = 1_000_000_000


def sample(
    at_s: float, value: float | None, kind: SampleKind = "energy_j", flag: SampleFlag = "ok", device: str = GPU.uid
) -> PowerSample:
    return PowerSample(t_ns=round(at_s * SECOND), device=device, kind=kind, value=value, read_us=100, flag=flag)


def sampled(
    power: Callable[[float], float], energy: Callable[[float], float], end_s: float, *, kinds: str = "both"
) -> list[PowerSample]:
    """One reading a second from second 0 on, of a load whose energy has a closed form."""
    found = []
    for at_s in range(int(end_s) + 1):
        if kinds in ("both", "counter"):
            found.append(sample(at_s, energy(at_s)))
        if kinds in ("both", "gauge"):
            found.append(sample(at_s, power(at_s), "power_w"))
    return found


def over(
    samples: list[PowerSample], start_s: float, end_s: float, device: PowerDevice = GPU, period_s: float = PERIOD_S
) -> EnergyEstimate:
    return integrate(samples, device, start_ns=round(start_s * SECOND), end_ns=round(end_s * SECOND), period_s=period_s)


def constant(watts: float) -> tuple[Callable[[float], float], Callable[[float], float]]:
    return lambda _: watts, lambda at: 5000 + watts * at


def test_a_constant_load_is_exact_by_either_way() -> None:
    for kinds, method in (("counter", "counter"), ("gauge", "gauge"), ("both", "counter")):
        found = over(sampled(*constant(650), 30, kinds=kinds), 2.5, 22.25)
        assert (found.valid, found.method) == (True, method)
        assert found.energy_j == pytest.approx(650 * 19.75, rel=1e-12)
        assert found.coverage == 1.0
        assert found.largest_gap_s == 1.0


def test_a_ramp_is_exact_at_the_edges_of_a_gauge() -> None:
    found = over(sampled(lambda at: 100 + 20 * at, lambda _: 0, 30, kinds="gauge"), 3.3, 17.9)
    assert found.energy_j == pytest.approx(100 * 14.6 + 10 * (17.9**2 - 3.3**2), rel=1e-12)


def test_the_counter_knows_what_the_gauge_did_not_see() -> None:
    # A square wave of 0.5 s: the gauge, read once a second, always sees the high half.
    found = over(sampled(lambda _: 900.0, lambda at: 500 * at, 30), 5, 25)
    assert found.energy_j == pytest.approx(500 * 20)
    assert found.gauge_energy_j == pytest.approx(900 * 20)
    assert "counter_and_gauge_disagree" in found.flags


def test_uncertainty_is_at_least_that_of_an_uncalibrated_sensor() -> None:
    found = over(sampled(*constant(650), 30), 5, 25)
    assert found.energy_j is not None
    assert found.u_gain_j == pytest.approx(0.05 / math.sqrt(3) * found.energy_j)
    assert found.u_rest_j == pytest.approx(math.sqrt(2) * 650 * 0.1 / math.sqrt(12))


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (lambda at: at < 6, "on both sides"),
        (lambda at: at > 24, "on both sides"),
        (lambda at: 10 < at < 17, "a hole of 7.0 s"),
        (lambda _: True, "neither energy nor power"),
    ],
    ids=["none before", "none after", "a hole", "nothing"],
)
@pytest.mark.parametrize("kinds", ["counter", "gauge"])
def test_missing_readings_void_the_estimate(kinds: str, drop: Callable[[float], bool], reason: str) -> None:
    samples = [item for item in sampled(*constant(650), 30, kinds=kinds) if not drop(item.t_ns / SECOND)]
    found = over(samples, 5.5, 24.5)
    assert not found.valid
    assert found.energy_j is None
    assert reason in found.reasons[0]


def test_the_longest_hole_grows_with_the_period() -> None:
    samples = [sample(at, 100.0 * at) for at in range(0, 101, 10)]
    assert not over(samples, 15, 85, period_s=1.0).valid
    assert over(samples, 15, 85, period_s=10.0).energy_j == pytest.approx(7000)


def test_a_lost_device_has_no_energy_even_if_it_comes_back() -> None:
    samples = sampled(*constant(650), 30)
    lost = [sample(12, None, flag="lost"), sample(12, None, "power_w", "lost")]
    found = over([item for item in samples if item.t_ns != 12 * SECOND] + lost, 5, 25)
    assert (found.valid, found.energy_j, found.reasons) == (
        False,
        None,
        ("the device was lost while it was measured",),
    )


def test_an_unsupported_counter_leaves_the_gauge() -> None:
    samples = sampled(*constant(650), 30, kinds="gauge")
    samples += [sample(at, None, flag="unsupported") for at in range(31)]
    found = over(samples, 5, 25)
    assert (found.method, found.energy_j) == ("gauge", pytest.approx(650 * 20))


def test_a_reset_counter_is_filled_from_the_gauge_and_says_so() -> None:
    samples = sampled(*constant(650), 30)
    samples = [
        replace(item, value=item.value - 5000 - 650 * 12.5)
        if item.kind == "energy_j" and item.t_ns > 12.5 * SECOND and item.value is not None
        else item
        for item in samples
    ]
    found = over(samples, 5, 25)
    assert found.valid
    assert found.energy_j == pytest.approx(650 * 20)
    assert found.flags == ("counter_reset",)
    alone = over([item for item in samples if item.kind == "energy_j"], 5, 25)
    assert not alone.valid
    assert "no power gauge covers" in alone.reasons[0]


def test_a_counter_that_jumps_is_not_believed() -> None:
    samples = sampled(*constant(650), 30)
    samples = [
        replace(item, value=(item.value or 0) + 1e6) if item.kind == "energy_j" and item.t_ns > 9 * SECOND else item
        for item in samples
    ]
    found = over(samples, 5, 25)
    assert found.energy_j == pytest.approx(650 * 20)
    assert found.flags == ("counter_jump",)


def test_a_stuck_counter_is_never_zero_joules() -> None:
    stuck = [sample(at, 77.0) for at in range(31)]
    assert not over(stuck, 5, 25).valid
    found = over(stuck + sampled(*constant(650), 30, kinds="gauge"), 5, 25)
    assert (found.method, found.flags[0], found.energy_j) == ("gauge", "counter_stuck", pytest.approx(13_000))


def test_a_gauge_of_zero_watts_did_not_answer() -> None:
    assert not over([sample(at, 0.0, "power_w") for at in range(31)], 5, 25).valid


def test_a_wrapped_counter_goes_on() -> None:
    assert CPU.wrap_j is not None
    samples = [sample(at, (CPU.wrap_j - 1000 + 150 * at) % CPU.wrap_j, device=CPU.uid) for at in range(31)]
    found = over(samples, 2.5, 22.5, CPU)
    assert (found.energy_j, found.flags) == (pytest.approx(3000), ("counter_wrapped",))


def test_a_total_needs_every_device() -> None:
    other = replace(GPU, uid="GPU-b")
    source = SourceInfo(kind="nvml", measured=True, version="1", devices=(GPU, other), notes=())
    samples = sampled(*constant(600), 30)
    both = samples + [replace(item, device="GPU-b") for item in samples]
    window = {"start_ns": 5 * SECOND, "end_ns": 25 * SECOND, "period_s": PERIOD_S}
    total = total_power(source, both, **window)  # type: ignore[arg-type]
    assert total.power_w == pytest.approx(1200)
    # The sensors' gain is common to devices of a kind: it does not average out.
    assert total.power_u_w is not None
    assert total.power_u_w >= 2 * 0.05 / math.sqrt(3) * 1200
    assert total.power_u_w == pytest.approx(2 * 0.05 / math.sqrt(3) * 1200, rel=0.05)
    partly = total_power(source, samples, **window)  # type: ignore[arg-type]
    assert (partly.valid, partly.power_w, partly.energy_j) == (False, None, None)
    assert partly.reasons == ("GPU-b: the device reports neither energy nor power",)


def test_a_nameplate_is_declared_and_exact() -> None:
    source = DeclaredSource(700.0, 8)
    total = total_power(source.describe(), source.read(), start_ns=0, end_ns=10 * SECOND, period_s=0.2)
    assert (total.measured, total.power_w, total.power_u_w, total.domain) == (False, 5600.0, 0.0, "declared")
    altered = [replace(item, value=500.0) for item in source.read()]
    assert not total_power(source.describe(), altered, start_ns=0, end_ns=10 * SECOND, period_s=0.2).valid


# Properties. Counters that never fall, read about once a second for a minute, with jitter; powers below the limit.
steps = st.lists(st.tuples(st.floats(0.8, 1.2), st.floats(1.0, 999.0)), min_size=20, max_size=60)


def readings(walk: list[tuple[float, float]], kind: SampleKind) -> list[PowerSample]:
    at_s, joules, found = 0.0, 1e6, []
    for step_s, watts in walk:
        found.append(sample(at_s, joules if kind == "energy_j" else watts, kind))
        joules += watts * step_s
        at_s += step_s
    return found


@given(
    walk=steps,
    cuts=st.tuples(st.floats(1.3, 14), st.floats(1.3, 14), st.floats(1.3, 14)),
    kind=st.sampled_from(["energy_j", "power_w"]),
)
def test_splitting_a_window_conserves_energy(
    walk: list[tuple[float, float]], cuts: tuple[float, float, float], kind: SampleKind
) -> None:
    start, middle, end = sorted(cuts)
    assume(start + 1e-6 < middle < end - 1e-6)  # window edges are whole nanoseconds
    samples = readings(walk, kind)
    whole, first, second = over(samples, start, end), over(samples, start, middle), over(samples, middle, end)
    assert whole.energy_j is not None
    assert first.energy_j is not None
    assert second.energy_j is not None
    # Window edges are whole nanoseconds: a few of them at 1 kW.
    assert first.energy_j + second.energy_j == pytest.approx(whole.energy_j, rel=1e-9, abs=1e-5)


@given(walk=steps, other=steps, cuts=st.tuples(st.floats(1.3, 14), st.floats(1.3, 14)))
def test_adding_a_device_never_lowers_the_total(
    walk: list[tuple[float, float]], other: list[tuple[float, float]], cuts: tuple[float, float]
) -> None:
    start, end = sorted(cuts)
    assume(end - start > 0.1)
    second = replace(GPU, uid="GPU-b")
    samples = readings(walk, "energy_j")
    added = samples + [replace(item, device="GPU-b") for item in readings(other, "energy_j")]
    window = {"start_ns": round(start * SECOND), "end_ns": round(end * SECOND), "period_s": PERIOD_S}
    alone = total_power(
        SourceInfo(kind="nvml", measured=True, version=None, devices=(GPU,), notes=()),
        samples,
        **window,  # type: ignore[arg-type]
    )
    both = total_power(
        SourceInfo(kind="nvml", measured=True, version=None, devices=(GPU, second), notes=()),
        added,
        **window,  # type: ignore[arg-type]
    )
    assert alone.power_w is not None
    assert both.power_w is not None
    assert both.power_w >= alone.power_w


@given(
    walk=steps,
    cuts=st.tuples(st.floats(1.3, 14), st.floats(1.3, 14)),
    dropped=st.sets(st.integers(0, 59), max_size=40),
    kind=st.sampled_from(["energy_j", "power_w"]),
)
def test_dropping_samples_never_raises_agents_per_megawatt(
    walk: list[tuple[float, float]], cuts: tuple[float, float], dropped: set[int], kind: SampleKind
) -> None:
    start, end = sorted(cuts)
    assume(end - start > 0.1)
    samples = readings(walk, kind)
    fewer = [item for index, item in enumerate(samples) if index not in dropped]
    source = SourceInfo(kind="nvml", measured=True, version=None, devices=(GPU,), notes=())
    window = {"start_ns": round(start * SECOND), "end_ns": round(end * SECOND), "period_s": PERIOD_S}
    whole = total_power(source, samples, **window)  # type: ignore[arg-type]
    partly = total_power(source, fewer, **window)  # type: ignore[arg-type]
    assert whole.power_w is not None
    if partly.power_w is not None:
        assert 1e6 * 10 / partly.power_w <= 1e6 * 10 / whole.power_w * (1 + 1e-9)


def test_a_meter_reads_before_during_and_after() -> None:
    with Meter([DeclaredSource(100.0, 2)], period_s=0.02) as meter:
        assert len(meter.samples) == 2
        while len(meter.samples) < 8:
            pass
    assert len(meter.samples) % 2 == 0
    count = len(meter.samples)
    meter.stop()
    assert len(meter.samples) == count
    times = [item.t_ns for item in meter.samples]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("nvml", PowerChoice(kind="nvml")),
        ("rapl", PowerChoice(kind="rapl")),
        ("declared:700W", PowerChoice(kind="declared", watts=700.0)),
        ("declared:1.2kW*8", PowerChoice(kind="declared", watts=1200.0, count=8)),
    ],
)
def test_power_is_read_from_the_command_line(text: str, choice: PowerChoice) -> None:
    assert parse_power(text) == choice
    assert parse_power(choice.text) == choice


@pytest.mark.parametrize("texts", [["declared:700W", "declared:500W"], ["rapl", "declared:5W", "rapl"]])
def test_a_kind_of_power_source_counts_once(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="is named 2 times"):
        parse_powers(texts)
    assert [choice.kind for choice in parse_powers(["rapl", "declared:5W"])] == ["rapl", "declared"]


@pytest.mark.parametrize(
    "text", ["", "watts", "declared", "declared:", "declared:700", "declared:0W", "declared:-5W", "nvml:0"]
)
def test_a_power_source_that_is_not_known_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"declared:700W|above 0"):
        parse_power(text)

"""The energy integral: closed forms, and a named reason for each failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from replay.power.declared import DeclaredSource
from replay.power.domain import Scope, ScopeSet
from replay.power.energy import EnergyEstimate, PowerTotal, integrate, scope_totals
from replay.power.source import DeviceState, PowerDevice, PowerDomain, PowerSample, SampleFlag, SampleKind, SourceInfo

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
    samples: list[PowerSample],
    start_s: float,
    end_s: float,
    device: PowerDevice = GPU,
    *,
    period_s: float = PERIOD_S,
    refresh_s: float | None = None,
    clock_u_s: float = 0.0,
    state: DeviceState | None = None,
) -> EnergyEstimate:
    return integrate(
        samples,
        device,
        start_ns=round(start_s * SECOND),
        end_ns=round(end_s * SECOND),
        period_s=period_s,
        refresh_s=refresh_s,
        clock_u_s=clock_u_s,
        state=state,
    )


def source(*devices: PowerDevice, name: str = "nvml", measured: bool = True, clock_u_s: float = 0.0) -> SourceInfo:
    return SourceInfo(
        kind=name,
        name=name,
        measured=measured,
        version="1",
        devices=devices,
        notes=(),
        period_s=PERIOD_S,
        clock_u_s=clock_u_s,
    )


def wanted(*uids: str, scope: Scope = "accelerator") -> dict[Scope, ScopeSet]:
    return {scope: ScopeSet(scope=scope, devices=uids, sources=(), missing=(), overlaps=())}


def total(
    infos: list[SourceInfo], samples: list[PowerSample], scopes: dict[Scope, ScopeSet], end_s: float = 25
) -> PowerTotal:
    (found,) = scope_totals(infos, samples, scopes, start_ns=5 * SECOND, end_ns=round(end_s * SECOND))
    return found


def changed(
    samples: list[PowerSample], kind: SampleKind, value: Callable[[float, float], float | None]
) -> list[PowerSample]:
    """The samples with those of one kind replaced: by second and value, None drops the sample."""
    found = []
    for item in samples:
        if item.kind != kind or item.value is None:
            found.append(item)
        elif (new := value(item.t_ns / SECOND, item.value)) is not None:
            found.append(replace(item, value=new))
    return found


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


def test_the_uncertainty_has_a_term_for_each_of_its_causes() -> None:
    found = over(sampled(*constant(650), 30), 5.5, 25.5)
    assert found.energy_j == pytest.approx(13_000)
    assert found.u_gain_j == pytest.approx(0.05 / math.sqrt(3) * 13_000)  # an uncalibrated sensor
    assert found.u_latch_j == pytest.approx(math.sqrt(2) * 650 * 0.1 / math.sqrt(12))  # of either edge
    # An edge half way between two readings: of 650 J, 150 to 500 J can lie on either side at 1 kW at most.
    assert found.u_sampling_j == pytest.approx(math.sqrt(2) * 350 / math.sqrt(12))
    assert (found.u_clock_j, found.u_gap_j) == (0, 0)
    assert found.u_rest_j == pytest.approx(math.hypot(found.u_latch_j, found.u_sampling_j))
    calibrated = over(sampled(*constant(650), 30), 5, 25, replace(GPU, u_gain=0.01, latch_s=0.02))
    assert calibrated.u_gain_j == pytest.approx(130)
    assert calibrated.u_latch_j == pytest.approx(math.sqrt(2) * 650 * 0.02 / math.sqrt(12))


def test_a_clock_that_is_off_costs_what_the_power_changes_from_edge_to_edge() -> None:
    ramp = sampled(lambda at: 100 + 20 * at, lambda at: 5000 + 100 * at + 10 * at * at, 30)
    assert over(ramp, 5, 25).u_clock_j == 0
    found = over(ramp, 5, 25, clock_u_s=0.5)
    assert found.u_clock_j == pytest.approx(20 * 20 * 0.5)
    gauge = over([item for item in ramp if item.kind == "power_w"], 5, 25)
    assert gauge.u_clock_j >= 20 * 20 / math.sqrt(3)  # the mean of a second is up to a second late


def test_a_gauge_that_sees_instants_is_less_sure_than_one_that_averages() -> None:
    wave = sampled(lambda at: 300 + 400 * (round(at) % 2), lambda _: 0, 30, kinds="gauge")
    averaged = over(wave, 5, 25)
    instant = over([replace(item, kind="power_instant_w") for item in wave], 5, 25)
    assert instant.energy_j == averaged.energy_j == pytest.approx(10_000)
    assert instant.u_sampling_j == pytest.approx(math.sqrt(20 * 400**2 / 2))
    assert averaged.u_sampling_j < instant.u_sampling_j / 5


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (lambda at: at < 6, "on both sides"),
        (lambda at: at > 24, "on both sides"),
        (lambda at: 2 < at < 9, "a hole of 7.0 s"),
        (lambda _: True, "neither energy nor power"),
    ],
    ids=["none before", "none after", "a hole at the edge", "nothing"],
)
@pytest.mark.parametrize("kinds", ["counter", "gauge"])
def test_missing_readings_void_the_estimate(kinds: str, drop: Callable[[float], bool], reason: str) -> None:
    samples = [item for item in sampled(*constant(650), 30, kinds=kinds) if not drop(item.t_ns / SECOND)]
    found = over(samples, 5.5, 24.5)
    assert not found.valid
    assert found.energy_j is None
    assert reason in found.reasons[0]


def test_a_hole_inside_voids_a_gauge_and_not_a_counter_that_must_have_counted_on() -> None:
    samples = [item for item in sampled(*constant(650), 30) if not 10 < item.t_ns / SECOND < 17]
    gauge = over([item for item in samples if item.kind == "power_w"], 5.5, 24.5)
    assert (gauge.valid, gauge.energy_j, gauge.withheld_j) == (False, None, pytest.approx(650 * 19))
    assert "a hole of 7.0 s, more than 5.0 s" in gauge.reasons[0]
    counter = over(samples, 5.5, 24.5)
    assert (counter.method, counter.energy_j) == ("counter", pytest.approx(650 * 19))
    assert counter.flags == ("counter_bridged_a_hole",)
    assert counter.coverage == pytest.approx(12 / 19)
    assert counter.largest_gap_s == 7


@pytest.mark.parametrize(
    "device",
    [replace(GPU, limit_w=None), replace(GPU, wrap_j=5000.0)],
    ids=["no limit is known", "it could have gone round twice"],
)
def test_a_hole_in_which_a_counter_could_hide_something_voids_it(device: PowerDevice) -> None:
    samples = [item for item in sampled(*constant(650), 30, kinds="counter") if not 10 < item.t_ns / SECOND < 17]
    found = over(samples, 5.5, 24.5, device)
    assert not found.valid
    assert "a hole of 7.0 s" in found.reasons[0]


def test_a_counter_near_zero_could_hide_a_reset_in_a_hole() -> None:
    samples = [sample(at, 650.0 * at) for at in range(31) if not 8 < at < 15]
    found = over(samples, 5.5, 24.5)
    assert (found.valid, found.withheld_j) == (False, pytest.approx(650 * 19))


@pytest.mark.parametrize(
    ("watts", "charged_j"),
    [(200.0, 3 * 200.0), (900.0, 1.2 * 1000 * (0.5 + 1.1))],
    ids=["the whole rise", "what it can draw inside the window"],
)
def test_an_edge_without_its_reading_is_charged_no_less_than_it_can_have_used(watts: float, charged_j: float) -> None:
    samples = [item for item in sampled(*constant(watts), 30, kinds="counter") if item.t_ns / SECOND not in (6, 7)]
    found = over(samples, 7.5, 25)
    assert found.flags == ("edge_charged_in_full",)
    assert found.energy_j == pytest.approx(17 * watts + charged_j)
    assert found.u_gap_j > 0


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


def test_readings_that_fail_or_are_out_of_range_are_flagged() -> None:
    samples = sampled(*constant(650), 30)
    samples += [
        sample(7.5, 0.0, "power_w"),
        sample(8.5, None, "power_w", "blank"),
        sample(9.5, None, "energy_j", "error"),
        sample(10.5, None, "power_instant_w", "unsupported"),
        sample(11.5, 1200.0, "power_w"),
        sample(12.5, math.nan, "power_w"),
    ]
    found = over(samples, 5, 25)
    assert found.energy_j == pytest.approx(13_000)
    assert found.flags == ("gauge_zero", "reading_blank", "reading_error", "gauge_over_limit")


def test_a_mean_above_the_limit_is_flagged() -> None:
    found = over(sampled(*constant(1060), 30, kinds="counter"), 5, 25)
    assert (found.energy_j, found.flags) == (pytest.approx(21_200), ("mean_over_limit",))


def test_a_gauge_that_sticks_is_stale_and_one_that_is_constant_is_not() -> None:
    noisy = sampled(lambda at: 600 + 7 * math.sin(at), lambda _: 0, 60, kinds="gauge")
    stuck = changed(noisy, "power_w", lambda at, value: 100.25 if 20 <= at <= 30 else value)
    assert over(noisy, 5, 55).valid
    found = over(stuck, 5, 55)
    assert (found.valid, found.flags) == (False, ("gauge_stale",))
    assert "one value for 10.0 s" in found.reasons[0]
    constantly = over(sampled(*constant(650), 60, kinds="gauge"), 5, 55)
    assert (constantly.valid, constantly.flags) == (True, ("gauge_constant",))


def test_a_gauge_that_is_refreshed_too_seldom_is_no_energy() -> None:
    samples = sampled(*constant(650), 90, kinds="gauge")
    found = over(samples, 5, 85, refresh_s=30.0)
    assert (found.valid, found.energy_j, found.withheld_j) == (False, None, pytest.approx(650 * 80))
    assert "a new value every 30 s" in found.reasons[0]


def test_a_counter_that_stops_before_the_window_ends_is_charged_at_its_limit_or_void() -> None:
    moving = sampled(*constant(650), 40, kinds="counter")
    stopped = changed(moving, "energy_j", lambda _, value: min(value, 5000 + 650 * 23))
    found = over(stopped, 5, 25)
    assert found.flags == ("counter_stale",)
    assert found.energy_j == pytest.approx(650 * 18 + 1.2 * 1000 * 2.1)
    later = over(stopped, 5, 30)
    assert not later.valid
    assert later.reasons == ("the energy counter did not change in the last 7.0 s of the window, nor after it",)


def test_readings_of_one_value_are_one_reading() -> None:
    """A page that is refreshed every 10 s and read every second: the edge lies between two refreshes, not two reads."""
    page = [sample(at, 5000.0 + 650 * 10 * (at // 10)) for at in range(61)]
    found = over(page, 14, 48, refresh_s=10.0)
    assert (found.energy_j, found.valid) == (pytest.approx(650 * 34), True)
    assert found.largest_gap_s == 1
    # Without the one read that shows the new value first, nobody knows when it was new.
    assert over([item for item in page if item.t_ns != 20 * SECOND], 14, 48, refresh_s=10.0).flags == (
        "edge_charged_in_full",
    )


@pytest.mark.parametrize(
    ("kind", "factor", "reason"),
    [
        ("energy_j", 1000, "one of them is read in the wrong unit (mJ for J"),
        ("energy_j", 0.001, "one of them is read in the wrong unit (mJ for J"),
        ("power_w", 0.001, "or mW for W)"),
        ("power_w", 1e6, "or mW for W)"),
    ],
)
def test_a_unit_that_is_off_by_a_thousand_is_found_by_the_other_reading(
    kind: SampleKind, factor: float, reason: str
) -> None:
    samples = changed(sampled(*constant(650), 30), kind, lambda _, value: value * factor)
    for device in (GPU, replace(GPU, limit_w=None)):
        found = over(samples, 5, 25, device)
        assert (found.valid, found.energy_j) == (False, None)
        assert reason in found.reasons[0]


@pytest.mark.parametrize("kinds", ["counter", "gauge"])
@pytest.mark.parametrize("factor", [1000, 0.001])
def test_a_unit_that_is_off_by_a_thousand_is_found_by_the_limit(kinds: str, factor: float) -> None:
    samples = [replace(item, value=(item.value or 0) * factor) for item in sampled(*constant(650), 30, kinds=kinds)]
    found = over(samples, 5, 25)
    assert (found.valid, found.energy_j) == (False, None)
    assert "the power limit is 1e+03 W: the unit is wrong" in found.reasons[0]


def test_a_counter_of_another_scope_is_left_aside_or_refused() -> None:
    samples = sampled(lambda _: 600.0, lambda at: 1e6 + 1500 * at, 30)
    samples = [item for item in samples if item.kind == "power_w" or item.t_ns % 2 == 0]

    def of(scope: str, some: list[PowerSample]) -> EnergyEstimate:
        return over(some, 5, 25, state=DeviceState(device=GPU.uid, counter_scope=scope))  # type: ignore[arg-type]

    unknown = of("unknown", samples)
    assert (unknown.valid, unknown.energy_j) == (False, None)
    assert "what it covers is not known" in unknown.reasons[0]
    module = of("module", samples)
    assert (module.method, module.energy_j) == ("gauge", pytest.approx(12_000))
    assert module.flags == ("counter_covers_module", "gauge_constant")
    alone = of("module", [item for item in samples if item.kind == "energy_j"])
    assert alone.reasons == ("the energy counter covers the module, not the accelerator, which has no gauge",)
    own = of("accelerator", sampled(*constant(600), 30))
    assert (own.method, own.energy_j) == ("counter", pytest.approx(12_000))


def test_a_counter_that_answered_at_the_start_is_missed_when_it_is_gone() -> None:
    state = DeviceState(device=GPU.uid, counter_scope="accelerator", counter_latch_s=0.1)
    found = over(sampled(*constant(650), 30, kinds="gauge"), 5, 25, state=state)
    assert found.reasons == ("the energy counter answered at the start and was never read again",)


def test_a_total_needs_every_device() -> None:
    other = replace(GPU, uid="GPU-b")
    infos = [source(GPU, other)]
    samples = sampled(*constant(600), 30)
    both = samples + [replace(item, device="GPU-b") for item in samples]
    found = total(infos, both, wanted("GPU-a", "GPU-b"))
    assert (found.power_w, found.sources, found.sensors) == (pytest.approx(1200), ("nvml",), ("test",))
    # The sensors' gain is common to devices of a model: it does not average out.
    assert found.u_gain_w == pytest.approx(0.05 / math.sqrt(3) * 1200)
    assert found.u_rest_w == pytest.approx(math.sqrt(2) * found.devices[0].u_rest_j / 20)
    assert found.power_u_w == pytest.approx(2 * math.hypot(found.u_gain_w or 0, found.u_rest_w or 0))
    partly = total(infos, samples, wanted("GPU-a", "GPU-b"))
    assert (partly.valid, partly.power_w, partly.energy_j) == (False, None, None)
    assert partly.reasons == ("GPU-b: the device reports neither energy nor power",)


def test_a_total_over_sources_adds_gains_by_model_and_clocks_by_source() -> None:
    other = replace(GPU, uid="GPU-b", name="another")
    ramp = sampled(lambda at: 100 + 20 * at, lambda at: 5000 + 100 * at + 10 * at * at, 30)
    both = ramp + [replace(item, device="GPU-b") for item in ramp]
    infos = [source(GPU, name="n1", clock_u_s=0.1), source(other, name="n2", clock_u_s=0.2)]
    found = total(infos, both, wanted("GPU-a", "GPU-b"))
    one = found.devices[0]
    assert found.sources == ("n1", "n2")
    assert found.sensors == ("another", "test")
    assert found.u_gain_w == pytest.approx(math.sqrt(2) * one.u_gain_j / 20)
    clocks = math.hypot(*(device.u_clock_j for device in found.devices))
    assert found.u_rest_w == pytest.approx(math.hypot(clocks, math.sqrt(2) * one.u_own_j) / 20)
    together = total([source(GPU, other, clock_u_s=0.2)], both, wanted("GPU-a", "GPU-b"))
    assert (together.u_rest_w or 0) > (found.u_rest_w or 0)


def test_a_total_names_what_is_missing_and_what_overlaps() -> None:
    samples = sampled(*constant(600), 30)
    gone = ScopeSet(scope="accelerator", devices=("GPU-a", "GPU-b"), sources=(), missing=("GPU-c",), overlaps=())
    found = total([source(GPU)], samples, {"accelerator": gone})
    assert found.reasons == (
        "GPU-c is expected, and no power source shows it",
        "GPU-b is expected, and no power source shows it",
    )
    twice = total([source(GPU, name="n1"), source(GPU, name="n2")], samples, wanted("GPU-a"))
    assert twice.reasons == ("GPU-a is shown by n1 and by n2",)
    named = total([source(GPU)], samples, wanted("GPU-a", "GPU-a"))
    assert (named.valid, named.reasons) == (False, ("a device is named twice",))
    nothing = total([source(GPU)], samples, wanted())
    assert (nothing.valid, nothing.measured, nothing.reasons) == (False, False, ("no device is expected",))


def test_a_nameplate_is_declared_and_exact() -> None:
    stated = DeclaredSource(700.0, 8)
    info, samples = stated.describe(), stated.read()
    scopes = wanted(*(device.uid for device in info.devices), scope="declared")
    found = total([info], samples, scopes)
    assert (found.measured, found.power_w, found.power_u_w, found.scope) == (False, 5600.0, 0.0, "declared")
    assert not total([info], [replace(item, value=500.0) for item in samples], scopes).valid


# -- what cannot be


@pytest.mark.parametrize("kinds", ["counter", "both"])
def test_a_counter_that_was_stuck_and_does_not_catch_up_loses_no_energy(kinds: str) -> None:
    """Eight seconds of 800 W that the counter never counted."""
    device = replace(GPU, latch_s=0.1)

    def stuck(at_s: float) -> float:
        return 5000 + 800 * (min(at_s, 6) if at_s < 14 else at_s - 8)

    found = over(sampled(lambda _: 800.0, stuck, 22, kinds=kinds), 1, 21, device)
    assert "counter_stuck" in found.flags
    if kinds == "both":
        assert found.energy_j == pytest.approx(16_000, rel=0.01)
    else:
        assert (found.energy_j, found.valid) == (None, False)
        assert "did not catch up" in found.reasons[0]
    late = over(sampled(lambda _: 800.0, lambda at_s: 5000 + 800 * (6 if 6 < at_s < 14 else at_s), 22), 1, 21, device)
    assert (late.energy_j, late.flags) == (pytest.approx(16_000), ())  # it catches up


def test_a_gauge_that_is_stale_twice_is_stale() -> None:
    def shown(at_s: float) -> float:
        return 200.0 if 2 <= at_s < 10 or 12 <= at_s < 19 else 800.0 + at_s % 7

    found = over([sample(at / 5, shown(at / 5), "power_w") for at in range(251)], 0.5, 49, period_s=0.2)
    assert (found.energy_j, "gauge_stale" in found.flags) == (None, True)


def test_a_counter_that_hardly_moved_at_the_start_is_not_believed_when_it_moves() -> None:
    state = DeviceState(device=GPU.uid, scopes=("accelerator energy_j", "accelerator power_w"))
    found = over(sampled(lambda _: 800.0, lambda at_s: 5000 + 400 * at_s, 22), 1, 21, state=state)
    assert "what it covers is not known" in found.reasons[0]
    still = over(sampled(lambda _: 800.0, lambda _: 5000.0, 22), 1, 21, state=state)
    assert (still.energy_j, still.method) == (pytest.approx(16_000), "gauge")


def test_a_total_below_what_is_inside_it_is_none() -> None:
    node = PowerDevice(uid="pdu", name="pdu", domain="node", limit_w=None, wrap_j=None)

    def node_total(watts: float) -> PowerTotal:
        samples = sampled(lambda _: 800.0, lambda at_s: 5000 + 800 * at_s, 22)
        samples += [sample(at_s, watts, "power_w", device="pdu") for at_s in range(23)]
        scopes: dict[Scope, ScopeSet] = {
            scope: ScopeSet(scope=scope, devices=(uid,), sources=(), missing=(), overlaps=())
            for scope, uid in (("accelerator", GPU.uid), ("node_or_rack", "pdu"))
        }
        infos = (source(GPU), source(node, name="file"))
        accelerator, found = scope_totals(infos, samples, scopes, start_ns=SECOND, end_ns=21 * SECOND)
        assert accelerator.power_w == pytest.approx(800)
        return found

    assert node_total(790.0).power_w == pytest.approx(790)  # within what both may be off by
    found = node_total(90.0)  # a meter that counts in tens of watts
    assert (found.power_w, found.energy_j, found.valid) == (None, None, False)
    assert "is 90 W, less than the 800 W of accelerator power inside it" in found.reasons[0]


def test_a_nameplate_is_never_measured_whatever_its_source_says() -> None:
    plate = PowerDevice(uid="p", name="p", domain="declared", limit_w=100.0, wrap_j=None)
    scopes: dict[Scope, ScopeSet] = {
        "declared": ScopeSet(scope="declared", devices=("p",), sources=(), missing=(), overlaps=())
    }
    samples = [sample(at_s, 100.0, "power_w", device="p") for at_s in (0, 10)]
    (found,) = scope_totals((source(plate, name="file"),), samples, scopes, start_ns=0, end_ns=9 * SECOND)
    assert (found.power_w, found.measured) == (100.0, False)


@pytest.mark.parametrize(
    ("names", "domain", "alike"),
    [
        (("H200", "H200"), "accelerator", True),
        (("H200", "H100"), "accelerator", False),
        (("a", "b"), "accelerator", True),  # their own names: no model is known
        (("package-0", "package-1"), "cpu_package", True),
        (("left", "right"), "node", True),
    ],
)
def test_a_gain_is_common_unless_the_models_are_known_to_be_unlike(
    names: tuple[str, str], domain: PowerDomain, alike: bool
) -> None:
    devices = [
        PowerDevice(uid=uid, name=name, domain=domain, limit_w=1000.0, wrap_j=None)
        for uid, name in zip("ab", names, strict=True)
    ]
    samples = [sample(at_s, 5000 + 500.0 * at_s, device=uid) for uid in "ab" for at_s in range(23)]
    scopes: dict[Scope, ScopeSet] = {
        "accelerator": ScopeSet(scope="accelerator", devices=("a", "b"), sources=(), missing=(), overlaps=())
    }
    (found,) = scope_totals((source(*devices),), samples, scopes, start_ns=SECOND, end_ns=21 * SECOND)
    assert found.u_gain_w == pytest.approx(1000 * 0.05 / math.sqrt(3) / (1 if alike else math.sqrt(2)))

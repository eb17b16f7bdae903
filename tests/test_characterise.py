"""What a GPU's readings tell of themselves: update periods, and whose energy a counter counts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.power.characterise import (
    AGREE,
    Reading,
    Trace,
    describe_gpu,
    find_counter,
    mean_w,
    update_period_s,
    watch,
)
from replay.power.source import DeviceState

watts = st.floats(1.0, 3000.0)


def counter(
    power_w: float, *, latch_s: float = 0.1, pace_s: float = 0.004, seconds: float = 2.0, offset_s: float = 50.0
) -> Trace:
    trace = Trace()
    for step in range(math.ceil(seconds / pace_s)):
        at_s = offset_s + step * pace_s
        trace.add(round(at_s * 1e9), power_w * math.floor(at_s / latch_s) * latch_s)
    return trace


def gauge(power_w: float, *, seconds: float = 2.0, offset_s: float = 50.0) -> Trace:
    trace = Trace()
    for step in range(round(seconds / 0.01)):
        trace.add(round((offset_s + step * 0.01) * 1e9), power_w)
    return trace


@given(watts, st.floats(0.02, 0.25), st.floats(0.0, 100.0))
def test_slope_and_update_period_are_found_whatever_the_phase(power_w: float, latch_s: float, offset_s: float) -> None:
    found = find_counter(
        counter(power_w, latch_s=latch_s, offset_s=offset_s), {"accelerator": [gauge(power_w, offset_s=offset_s)]}
    )
    assert found.scope == "accelerator"
    assert found.reason is None
    assert found.slope_w == pytest.approx(power_w, rel=0.01)
    assert found.latch_s == pytest.approx(latch_s, abs=0.0041)


@given(watts, st.floats(0.2, 5.0), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_counter_is_that_of_the_gauge_it_agrees_with(power_w: float, ratio: float, unit: float) -> None:
    """In whatever unit both are."""
    found = find_counter(counter(power_w * unit), {"module": [gauge(power_w * unit / ratio)]})
    if abs(ratio - 1) < AGREE - 0.01:
        assert found.scope == "module"
    elif abs(ratio - 1) > AGREE + 0.01:
        assert found.scope == "unknown"
        assert "what it covers is not known" in (found.reason or "")


@given(watts, watts)
def test_of_two_gauges_one_alone_may_agree(gpu_w: float, more_w: float) -> None:
    gauges = {"accelerator": [gauge(gpu_w)], "module": [gauge(gpu_w + more_w)]}
    for power_w, scope in ((gpu_w, "accelerator"), (gpu_w + more_w, "module")):
        found = find_counter(counter(power_w), gauges)
        if more_w > 0.2 * gpu_w:
            assert found.scope == scope
        assert found.scope in (scope, "unknown")


def test_one_gauge_of_a_scope_that_agrees_is_enough() -> None:
    """As where the load moved: the mean of a second lags behind the counter, and instants meet it by chance."""
    assert find_counter(counter(500), {"accelerator": [gauge(300), gauge(510)]}).scope == "accelerator"
    assert find_counter(counter(500), {"accelerator": [gauge(300), gauge(700)]}).scope == "unknown"


def test_a_counter_without_a_gauge_is_not_told() -> None:
    found = find_counter(counter(500), {})
    assert (found.scope, found.reason) == (
        "unknown",
        "no power gauge answers that would tell what the energy counter covers",
    )
    assert (
        find_counter(counter(500), {"accelerator": [gauge(0.0)]}).scope == "unknown"
    )  # a device that is on draws more


def test_a_counter_that_hardly_moves_does_not_count() -> None:
    still = Trace(times_ns=[0, 1_000_000_000, 2_000_000_000], values=[7.0, 7.0, 7.0])
    assert (find_counter(still, {}).scope, find_counter(still, {}).reason) == (
        None,
        "the energy counter did not move in 2.0 s",
    )
    slow = counter(500, latch_s=1.0)
    assert find_counter(slow, {"accelerator": [gauge(500)]}).reason == "the energy counter moved 1 times only in 2.0 s"
    assert find_counter(Trace(), {}).scope is None


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1000)), min_size=1, max_size=30), st.data())
def test_a_mean_lies_between_the_readings(steps: list[tuple[int, float]], data: st.DataObject) -> None:
    trace, at_ns = Trace(), 0
    for step_ns, value in steps:
        at_ns += step_ns
        trace.add(at_ns, value)
    from_ns = data.draw(st.integers(0, at_ns))
    to_ns = data.draw(st.integers(from_ns, at_ns + 10**9))
    found = mean_w(trace, from_ns, to_ns)
    known = [value for _, value in steps if value > 0]
    assert found is None or min(known) * (1 - 1e-9) <= found <= max(known) * (1 + 1e-9)


def test_a_period_needs_some_changes_and_passes_over_repeats() -> None:
    assert update_period_s(gauge(500)) is None
    trace = Trace()
    for step in range(200):  # changes every 100 ms, but one update in ten repeats the value before it
        update = step // 10
        trace.add(step * 10_000_000, float(update - (update % 10 == 9)))
    assert update_period_s(trace) == pytest.approx(0.1)


def test_watching_ends_when_all_is_known_and_else_when_the_time_is_up() -> None:
    def poll(power_w: float) -> Mapping[Reading, float]:
        at_s = time.monotonic()
        return {"counter": 500 * math.floor(at_s / 0.005) * 0.005, "instant": power_w}

    began_s = time.monotonic()
    traces = watch(lambda: poll(500), shortest_s=0.15, longest_s=5.0, pace_s=0.001)
    assert set(traces) == {"counter", "instant"}
    assert time.monotonic() - began_s < 5.0
    began_s = time.monotonic()
    watch(lambda: poll(900), shortest_s=0.05, longest_s=0.2, pace_s=0.001)
    assert time.monotonic() - began_s >= 0.2
    assert watch(dict, shortest_s=0.01, longest_s=0.01, pace_s=0.001) == {}


def described(traces: dict[Reading, Trace]) -> tuple[dict[tuple[str, str], Reading], tuple[str, ...]]:
    gpu = describe_gpu(traces, DeviceState(device="G"), name="N", host=None, module_limit_w=None)
    return {(uid, kind): reading for uid, kind, reading in gpu.readings}, gpu.notes


def test_a_modules_own_counter_comes_before_a_gpus_that_counts_the_module() -> None:
    gauges: dict[Reading, Trace] = {"instant": gauge(200), "module instant": gauge(500)}
    readings, notes = described({**gauges, "counter": counter(500), "module counter": counter(500)})
    assert readings["G/module", "energy_j"] == "module counter"
    assert ("G", "energy_j") not in readings
    assert notes == ("G: its energy counter counts the whole module",)
    readings, _ = described({**gauges, "counter": counter(500), "module counter": counter(900)})
    assert readings["G/module", "energy_j"] == "counter"  # one that is understood before one that is not


def test_a_module_counter_that_counts_the_gpu_is_not_used() -> None:
    gauges: dict[Reading, Trace] = {"instant": gauge(200), "module instant": gauge(500)}
    readings, notes = described({**gauges, "counter": counter(200), "module counter": counter(200)})
    assert readings["G", "energy_j"] == "counter"
    assert ("G/module", "energy_j") not in readings
    assert notes == ("G: its module's energy counter counts the GPU alone, and is not used",)


def test_no_reading_is_read_as_two_devices() -> None:
    """Else the same watts would be charged twice."""
    readings, _ = described({"module instant": gauge(500), "counter": counter(500)})
    assert readings["G/module", "energy_j"] == "counter"
    assert len(set(readings.values())) == len(readings)

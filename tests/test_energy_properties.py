"""The laws of the energy integral, as properties: what is missing, added, lost, misread or doubled never helps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from replay.power.domain import Scope, ScopeSet
from replay.power.energy import EnergyEstimate, PowerTotal, integrate, scope_totals
from replay.power.source import PowerDevice, PowerSample, SampleKind, SourceInfo

GPU = PowerDevice(uid="GPU-a", name="test", domain="accelerator", limit_w=1000.0, wrap_j=None)
UNLIMITED = replace(GPU, limit_w=None)
AGENTS = 10
SECOND = 1_000_000_000

# Seconds until the next reading and watts until then: readings about once a second, powers below the limit.
steps = st.lists(st.tuples(st.floats(0.8, 1.2), st.floats(20.0, 990.0)), min_size=20, max_size=60)
edges = st.tuples(st.floats(1.3, 14), st.floats(1.3, 14)).map(sorted).filter(lambda cut: cut[1] - cut[0] > 0.1)
kinds = st.sampled_from([("energy_j",), ("power_w",), ("power_instant_w",), ("energy_j", "power_w", "power_instant_w")])
cadences = st.sampled_from([(1.0, None, 0.0), (1.0, None, 0.3), (0.5, 1.0, 0.0)])


def readings(walk: list[tuple[float, float]], wanted: Sequence[SampleKind], device: str = GPU.uid) -> list[PowerSample]:
    at_s, joules, found = 0.0, 1e6, []
    for step_s, watts in walk:
        for kind in wanted:
            value = joules if kind == "energy_j" else watts
            t_ns = round(at_s * SECOND)
            found.append(PowerSample(t_ns=t_ns, device=device, kind=kind, value=value, read_us=90, flag="ok"))
        joules += watts * step_s
        at_s += step_s
    return found


def over(
    samples: Sequence[PowerSample],
    start_s: float,
    end_s: float,
    device: PowerDevice = GPU,
    cadence: tuple[float, float | None, float] = (1.0, None, 0.0),
) -> EnergyEstimate:
    period_s, refresh_s, clock_u_s = cadence
    return integrate(
        samples,
        device,
        start_ns=round(start_s * SECOND),
        end_ns=round(end_s * SECOND),
        period_s=period_s,
        refresh_s=refresh_s,
        clock_u_s=clock_u_s,
    )


def total(
    samples: Sequence[PowerSample],
    devices: Sequence[PowerDevice],
    cut: Sequence[float],
    missing: tuple[str, ...] = (),
    overlaps: tuple[tuple[str, str], ...] = (),
    scope: Scope = "accelerator",
) -> PowerTotal:
    info = SourceInfo(kind="nvml", measured=True, version=None, devices=tuple(devices), notes=(), period_s=1.0)
    wanted = ScopeSet(
        scope=scope,
        devices=tuple(device.uid for device in devices),
        sources=("nvml",),
        missing=missing,
        overlaps=overlaps,
    )
    (found,) = scope_totals(
        [info], samples, {scope: wanted}, start_ns=round(cut[0] * SECOND), end_ns=round(cut[1] * SECOND)
    )
    return found


def per_megawatt(found: PowerTotal) -> float:
    """Agents per megawatt; 0 where no power is known."""
    return 0.0 if found.power_w is None else 1e6 * AGENTS / found.power_w


@given(walk=steps, cuts=st.lists(st.floats(1.3, 14), min_size=3, max_size=3, unique=True), kinds=kinds, how=cadences)
def test_splitting_a_window_conserves_energy(
    walk: list[tuple[float, float]],
    cuts: list[float],
    kinds: tuple[SampleKind, ...],
    how: tuple[float, float | None, float],
) -> None:
    start, middle, end = sorted(cuts)
    assume(start + 1e-6 < middle < end - 1e-6)  # window edges are whole nanoseconds
    samples = readings(walk, kinds)
    whole, first, second = (over(samples, *cut, cadence=how) for cut in ((start, end), (start, middle), (middle, end)))
    assert whole.energy_j is not None
    assert first.energy_j is not None
    assert second.energy_j is not None
    # Window edges are whole nanoseconds: a few of them at 1 kW.
    assert abs(first.energy_j + second.energy_j - whole.energy_j) <= 1e-9 * whole.energy_j + 1e-5


@given(
    walk=steps,
    cuts=st.lists(st.floats(1.3, 14), min_size=3, max_size=3, unique=True),
    dropped=st.sets(st.integers(0, 179), max_size=90),
    kinds=kinds,
)
def test_splitting_a_window_with_missing_readings_loses_no_energy(
    walk: list[tuple[float, float]], cuts: list[float], dropped: set[int], kinds: tuple[SampleKind, ...]
) -> None:
    start, middle, end = sorted(cuts)
    assume(start + 1e-6 < middle < end - 1e-6)
    samples = [item for index, item in enumerate(readings(walk, kinds)) if index not in dropped]
    whole, first, second = (over(samples, *cut) for cut in ((start, end), (start, middle), (middle, end)))
    assume(first.method == second.method == whole.method)
    if whole.energy_j is not None and first.energy_j is not None and second.energy_j is not None:
        assert first.energy_j + second.energy_j >= whole.energy_j * (1 - 1e-9) - 1e-5


@given(
    walk=steps,
    cut=edges,
    dropped=st.sets(st.integers(0, 179), max_size=150),
    kinds=kinds,
    device=st.sampled_from([GPU, UNLIMITED]),
)
def test_dropping_samples_never_raises_agents_per_megawatt(
    walk: list[tuple[float, float]],
    cut: list[float],
    dropped: set[int],
    kinds: tuple[SampleKind, ...],
    device: PowerDevice,
) -> None:
    samples = readings(walk, kinds)
    fewer = [item for index, item in enumerate(samples) if index not in dropped]
    # A kind that is gone altogether was never there.
    assume({item.kind for item in fewer} == set(kinds))
    whole, partly = total(samples, [device], cut), total(fewer, [device], cut)
    assert whole.power_w is not None
    assert per_megawatt(partly) <= per_megawatt(whole) * (1 + 1e-9)
    if partly.power_w is not None and partly.power_u_w is not None and whole.power_u_w is not None:  # as certified
        assert partly.power_w + partly.power_u_w >= (whole.power_w + whole.power_u_w) * (1 - 1e-9)


@given(walk=steps, other=steps, cut=edges, kinds=kinds)
def test_adding_a_device_never_raises_agents_per_megawatt(
    walk: list[tuple[float, float]], other: list[tuple[float, float]], cut: list[float], kinds: tuple[SampleKind, ...]
) -> None:
    second = replace(GPU, uid="GPU-b", name="another model")
    alone = total(readings(walk, kinds), [GPU], cut)
    both = total(readings(walk, kinds) + readings(other, kinds, "GPU-b"), [GPU, second], cut)
    assert alone.power_w is not None
    assert alone.power_u_w is not None
    assert both.power_w is not None
    assert both.power_u_w is not None
    assert both.power_w >= alone.power_w
    assert both.power_u_w >= alone.power_u_w * (1 - 1e-9)


@given(walk=steps, cut=edges, kinds=kinds)
def test_a_domain_more_is_charged_or_refused(
    walk: list[tuple[float, float]], cut: list[float], kinds: tuple[SampleKind, ...]
) -> None:
    memory = replace(GPU, uid="GPU-a/memory", domain="hbm")
    samples = readings(walk, kinds) + readings(walk, kinds, "GPU-a/memory")
    alone = total(samples, [GPU], cut)
    added = total(samples, [GPU, memory], cut)
    assert alone.power_w is not None
    assert per_megawatt(added) <= per_megawatt(alone)
    overlapping = total(samples, [GPU, memory], cut, overlaps=(("GPU-a", "GPU-a/memory"),))
    assert (overlapping.valid, overlapping.power_w) == (False, None)
    assert "GPU-a and GPU-a/memory overlap" in overlapping.reasons[0]


@given(walk=steps, cut=edges, kinds=kinds, flag=st.sampled_from(["lost", "error", "unsupported", "blank"]))
def test_losing_a_device_leaves_no_total(
    walk: list[tuple[float, float]], cut: list[float], kinds: tuple[SampleKind, ...], flag: str
) -> None:
    second = replace(GPU, uid="GPU-b")
    first, other = readings(walk, kinds), readings(walk, kinds, "GPU-b")
    lost = [replace(item, value=None, flag=flag) for item in other]  # type: ignore[arg-type]
    for samples in (first, first + lost):
        found = total(samples, [GPU, second], cut)
        assert (found.valid, found.energy_j, found.power_w, found.power_u_w) == (False, None, None, None)
        assert found.reasons[0].startswith("GPU-b: ")
    gone = total(first, [GPU], cut, missing=("GPU-b",))
    assert not gone.valid
    assert gone.reasons == ("GPU-b is expected, and no power source shows it",)


@given(
    walk=st.lists(st.tuples(st.floats(0.8, 1.2), st.floats(50.0, 990.0)), min_size=20, max_size=60),
    cut=edges,
    factor=st.sampled_from([1e-6, 1e-3, 1e3, 1e6]),
    read=kinds,
    changed=st.sets(st.sampled_from(["energy_j", "power_w", "power_instant_w"]), min_size=1),
)
def test_a_wrong_unit_never_raises_agents_per_megawatt(
    walk: list[tuple[float, float]],
    cut: list[float],
    factor: float,
    read: tuple[SampleKind, ...],
    changed: set[str],
) -> None:
    samples = readings(walk, read)
    wrong = [
        replace(item, value=item.value * factor) if item.kind in changed and item.value is not None else item
        for item in samples
    ]
    right, misread = total(samples, [GPU], cut), total(wrong, [GPU], cut)
    assert right.power_w is not None
    assert per_megawatt(misread) <= per_megawatt(right) * (1 + 1e-9)
    if changed & {"energy_j", "power_w"} & set(read) or changed & set(read) == set(read):
        assert not misread.valid
        assert "unit" in misread.reasons[0]


@given(walk=steps, cut=edges, kinds=kinds, seed=st.integers(0, 1000), how=cadences)
def test_neither_order_nor_duplicates_matter(
    walk: list[tuple[float, float]],
    cut: list[float],
    kinds: tuple[SampleKind, ...],
    seed: int,
    how: tuple[float, float | None, float],
) -> None:
    samples = readings(walk, kinds)
    draw = random.Random(seed)
    shuffled = samples + draw.choices(samples, k=20)
    draw.shuffle(shuffled)
    assert over(shuffled, *cut, cadence=how) == over(samples, *cut, cadence=how)


@given(
    walk=st.lists(st.floats(20.0, 990.0), min_size=10, max_size=30),
    cut=st.tuples(st.floats(35, 60), st.floats(120, 200)),
    phase=st.floats(0, 1),
)
def test_a_page_that_repeats_itself_is_one_reading_a_refresh(
    walk: list[float], cut: tuple[float, float], phase: float
) -> None:
    """A counter that is shown anew every 30 s and read every second, with and without the repeats."""
    shown = readings([(30.0, watts) for watts in walk], ["energy_j"])
    once = [replace(item, t_ns=item.t_ns + round(phase * SECOND)) for item in shown]
    often = [replace(item, t_ns=item.t_ns + at * SECOND) for item in once for at in range(30)]
    alone = over(once, *cut, cadence=(30.0, None, 0.0))
    repeated = over(often, *cut, cadence=(1.0, 30.0, 0.0))
    assert alone.energy_j is not None
    assert repeated.energy_j is not None
    assert abs(repeated.energy_j - alone.energy_j) <= 1e-6 * alone.energy_j

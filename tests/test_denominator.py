"""What agents are divided by: four denominators side by side, and no way to make one smaller by knowing less."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from agentdyno import main
from replay.curve import curve
from replay.denominator import agents_per_megawatt, denominator_rows, denominators, watts_per_accelerator
from replay.energy_use import energy_use
from replay.exposition import SeriesName
from replay.idle import IdlePower, IdleReading
from replay.judge import Judged, judge_trials
from replay.mean_power import interpolation_weights
from replay.money import engineers, money
from replay.nodes import provisioned_refusal, system_under_feed
from replay.power.series import read_table
from replay.runfolder import RunFolder
from replay.system import Accelerator, Node, Prices, Rack, System
from tests.power_trials import Load, totals, trial
from tests.simulated_run import SimulatedDriver
from tests.test_provisioned import descriptor, published
from tests.test_score import score_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A drawn trial, whose power the tests replace."""
    out = tmp_path_factory.mktemp("base") / "run"
    score_of(out, SimulatedDriver())
    return judge_trials(RunFolder(path=out))[0]


def gpus(count: int, watts: float, **changes: Any) -> list[Load]:
    return [Load(uid=f"GPU-{number}", watts=watts, **changes) for number in range(count)]


def system_of(count: int, **changes: Any) -> System:
    accelerators = tuple(Accelerator(name="GB300", uuid=f"GPU-{number}") for number in range(count))
    return dataclasses.replace(System(name="s", accelerators=accelerators), **changes)


def rows_of(
    system: System,
    trials: list[Judged],
    agents: float,
    interval: tuple[float, float] | None = None,
    certified: int | None = None,
) -> dict[str, dict[str, Any]]:
    found = denominators(system, trials, agents)
    rows = denominator_rows(system, found, agents, interval=interval, certified=certified, goodput=None)
    return {row["id"]: row for row in rows}


# -- published pairs


@pytest.mark.parametrize(
    ("per_gpu", "per_megawatt", "gpus_in_all", "watts", "watts_per_agent"),
    [(57.5, 61_354, 32, 937, 16.3), (1.375, 2594, 8, 530, 386)],  # GB300 NVL72 and H200, AA-AgentPerf, 12 June 2026
)
def test_published_pairs_pass_through_both_ways(
    base: Judged, per_gpu: float, per_megawatt: float, gpus_in_all: int, watts: float, watts_per_agent: float
) -> None:
    each_w = watts_per_accelerator(per_gpu, per_megawatt)
    assert round(each_w) == watts
    agents = per_gpu * gpus_in_all
    power = totals(gpus(gpus_in_all, each_w, limit_w=1400.0), system_of(gpus_in_all))
    rows = rows_of(system_of(gpus_in_all), [trial(base, 1, round(agents), power)], agents)
    measured = rows["accelerator"]
    assert rows["accelerator_count"]["agents"] == pytest.approx(per_gpu)
    assert measured["agents"] == pytest.approx(per_megawatt, rel=1e-3)  # 11 agents and 1,840: whole numbers
    assert measured["watts_per_accelerator"] == pytest.approx(each_w, rel=1e-3)
    assert measured["watts_per_agent"] == pytest.approx(watts_per_agent, rel=2e-3)
    assert agents_per_megawatt(1e6 / measured["watts_per_agent"], 1e6) == pytest.approx(measured["agents"])


# -- partial racks: 40 of 72, engaged alone, by domain, and as provisioned

IDLE_W, BUSY_W, RACK_W = 178.0, 937.0, 132_000.0


def partial_rack(serving: int = 40, *, placed: bool = True) -> System:
    """A rack of 18 trays with four accelerators each, of which some trays serve."""
    return System(
        name="rack",
        racks=(Rack(name="r1", accelerators=72, nodes=18),),
        nodes=tuple(Node(name=f"t{tray}", rack="r1") for tray in range(18)),
        accelerators=tuple(
            Accelerator(
                name="GB300",
                uuid=f"GPU-{number}",
                node=f"t{number // 4}" if placed else None,
                role="serve" if number < serving else "idle",
            )
            for number in range(72)
        ),
        provisioned=descriptor(published("published_system", 18, RACK_W / 18 / 1000)),
    )


def test_a_partial_rack_is_charged_three_ways(base: Judged) -> None:
    system = partial_rack()
    loads = [*gpus(72, BUSY_W)[:40], *gpus(72, IDLE_W)[40:]]
    agents = 57.5 * 40
    rows = rows_of(system, [trial(base, 1, round(agents), totals(loads, system))], agents)
    engaged, domain, provisioned = (rows[name] for name in ("accelerator_engaged", "accelerator", "provisioned"))
    assert engaged["denominator"] == pytest.approx(40 * BUSY_W)
    assert domain["denominator"] == pytest.approx(40 * BUSY_W + 32 * IDLE_W)
    assert domain["denominator"] / engaged["denominator"] - 1 == pytest.approx(0.15, abs=0.005)
    assert provisioned["denominator"] == pytest.approx(RACK_W * 10 / 18)
    assert "10 nodes serve and are charged whole, of the 18" in provisioned["scope"]
    assert engaged["watts_per_accelerator"] == pytest.approx(BUSY_W)
    assert provisioned["agents"] < domain["agents"] < engaged["agents"]
    fit = system_under_feed(system, 1e6)
    assert fit is not None
    assert (fit.units, fit.systems) == (136, pytest.approx(13.6))  # of ten trays, as scored


def test_a_part_of_a_node_is_charged_as_the_whole_of_it(base: Judged) -> None:
    def provisioned_w(system: System) -> float:
        loads = [*gpus(72, BUSY_W)[:38], *gpus(72, IDLE_W)[38:]]
        watts: float = rows_of(system, [trial(base, 1, 100, totals(loads, system))], 100)["provisioned"]["denominator"]
        return watts

    assert provisioned_w(partial_rack(38)) == pytest.approx(RACK_W * 10 / 18)
    # Where the system file does not say which nodes idle, none does.
    assert provisioned_w(partial_rack(38, placed=False)) == pytest.approx(RACK_W)
    scaled = published("node_scaling", 9, RACK_W / 1000, 18)
    too_few = dataclasses.replace(partial_rack(38), provisioned=descriptor(scaled))
    refusal = provisioned_refusal(too_few)
    assert refusal is not None
    assert "10 nodes are engaged and 9 are provisioned" in refusal
    some = System(
        name="38 of a rack",
        racks=(Rack(name="r1", accelerators=72, nodes=18),),
        accelerators=(Accelerator(name="GB300", count=38),),
        provisioned=descriptor(scaled),
    )
    refusal = provisioned_refusal(some)
    assert refusal is not None
    assert "lists 38 accelerators and system_power.json provisions nodes for 36" in refusal
    assert "provisioned" not in rows_of(some, [trial(base, 1, 100, ())], 100)
    ten = dataclasses.replace(some, provisioned=descriptor(published("node_scaling", 10, RACK_W / 1000, 18)))
    assert rows_of(ten, [trial(base, 1, 100, ())], 100)["provisioned"]["denominator"] == pytest.approx(RACK_W * 10 / 18)


# -- nodes and the facility


def node_system(**changes: Any) -> System:
    return system_of(2, nodes=(Node(name="n1"),), **changes)


def node_load(watts: float = 2000.0) -> Load:
    return Load(uid="n1", watts=watts, domain="node", source="file:pdu.csv", name="pdu", limit_w=None)


def test_power_times_a_stated_pue_is_declared_and_says_of_what(base: Judged) -> None:
    system = node_system(pue=1.2, pue_kind="annual", provisioned=descriptor(published("published_system", 1, 10.2)))
    power = totals([*gpus(2, 700.0), node_load()], system)
    rows = rows_of(system, [trial(base, 1, 10, power)], 10.0)
    assert rows["node_or_rack"]["basis"] == "measured"
    facility, provisioned = rows["facility_measured"], rows["facility_provisioned"]
    assert (facility["basis"], facility["denominator"]) == ("declared", pytest.approx(2400))
    assert facility["scope"].startswith("the facility: measured power of file:pdu.csv times a stated annual PUE of 1.2")
    assert (provisioned["basis"], provisioned["denominator"]) == ("declared", pytest.approx(12_240))
    assert facility["u_gain"] / facility["denominator"] == pytest.approx(
        rows["node_or_rack"]["u_gain"] / rows["node_or_rack"]["denominator"]
    )
    assert set(rows_of(node_system(), [trial(base, 1, 10, power)], 10.0)) == {
        "accelerator_count", "accelerator", "node_or_rack",
    }  # fmt: skip
    meter = Load(uid="main", watts=5000.0, domain="facility", source="file:main.csv", name="meter", limit_w=None)
    metered = rows_of(system, [trial(base, 1, 10, totals([*gpus(2, 700.0), node_load(), meter], system))], 10.0)
    assert (metered["facility_measured"]["basis"], metered["facility_measured"]["denominator"]) == ("measured", 5000)


def test_the_certified_number_is_over_the_highest_power_and_twice_its_uncertainty(base: Judged) -> None:
    system = system_of(2)
    trials = [trial(base, number, 8 + number, totals(gpus(2, 500.0 + 10 * number), system)) for number in range(5)]
    row = rows_of(system, trials, 10.5, (9.5, 11.5), 9)["accelerator"]
    assert row["denominator"] == pytest.approx(1000 + 20 * (2 + math.log(10.5 / 10) / math.log(11 / 10)))
    highest_w = 1040  # of 8 to 10 agents: less than at 10.5, so that the power there counts
    assert row["denominator"] > highest_w
    expanded_w = 2 * math.hypot(row["u_gain"], row["u_rest"])
    assert row["agents_certified"] == pytest.approx(1e6 * 9 / (row["denominator"] + expanded_w), rel=1e-3)
    assert row["agents_low"] < 1e6 * 9.5 / row["denominator"]
    noisy = [*trials[:2], trial(base, 2, 10, totals(gpus(2, 600.0), system)), *trials[3:]]
    certain_w = 1e6 * 9 / rows_of(system, noisy, 10.5, (9.5, 11.5), 9)["accelerator"]["agents_certified"]
    assert certain_w > 1200  # that one trial, and what its sensors may be off by
    assert rows_of(system, trials, 10.5)["accelerator"]["agents_certified"] is None


def test_the_curve_has_every_trial_and_an_idle_machine_bends_it(base: Judged) -> None:
    system = system_of(2)
    trials = [
        trial(base, agents, agents, totals(gpus(2, 200.0 + 50 * agents / 2), system)) for agents in (1, 2, 4, 8, 16)
    ]
    found = curve(system, trials, finite=False)
    ratios = [item["power"]["accelerator"]["agents_per_megawatt"] for item in found]
    assert ratios == sorted(ratios)
    assert ratios[0] == pytest.approx(1e6 / 450)
    assert found[0]["verdicts"] == [result.verdict for result in base.measure.slos]
    assert [item["power"] for item in curve(system, trials, finite=True)] == [{}] * 5


# -- energy, money, engineers


def test_energy_is_of_one_trials_own_work(base: Judged) -> None:
    system = system_of(2)
    power = totals(gpus(2, 700.0), system)
    low, high = (totals(gpus(2, watts), system) for watts in (100.0, 120.0))
    readings = [IdleReading(started_unix_us=0, seconds=20.0, power=found, reasons=()) for found in (low, high)]
    idle = IdlePower(before=readings[0], after=readings[1], drift=())
    item = trial(base, 1, base.agents, power)
    found = energy_use(system, item, idle)["accelerator"]
    numbers = item.measure
    assert found["joules_per_turn"] == pytest.approx(1400 * numbers.window_s / numbers.outcomes["ok"])
    assert found["joules_per_output_token"] == pytest.approx(1400 / numbers.output_tok_per_s)
    jobs_per_h = numbers.metrics.jobs.per_h or 0
    assert found["jobs_per_mwh"] == pytest.approx(jobs_per_h / 1400 * 1e6)
    assert (found["kwh_per_job"] or 0) * (found["jobs_per_mwh"] or 0) == pytest.approx(1000)
    assert found["idle_share"] == pytest.approx(200 / 1400)  # the lower of both readings
    assert found["dynamic_watts_per_agent"] == pytest.approx(1200 / item.agents)
    half = energy_use(system, item, IdlePower(before=readings[0], after=None, drift=()))["accelerator"]
    assert (half["idle_share"], half["dynamic_watts_per_agent"]) == (None, None)
    lost = dataclasses.replace(power[0], valid=False, power_w=None, energy_j=None)
    assert energy_use(system, trial(base, 1, 2, (lost,)), idle) == {}


def test_money_and_engineers(base: Judged) -> None:
    prices = Prices(currency="USD", per_hour=20.0, energy_per_kwh=0.1)
    system = node_system(prices=prices, agents_per_engineer=3.0, pue=1.5, pue_kind="annual")
    powers = denominators(system, [trial(base, 1, 10, totals([*gpus(2, 700.0), node_load()], system))], 10.0)
    found = money(system, powers, 10.0, certified=8, jobs_per_h=40.0)
    assert found is not None
    assert (found["per_agent_hour"], found["per_agent_hour_certified"], found["per_job"]) == (2.0, 2.5, 0.5)
    assert found["energy_per_agent_hour"] == pytest.approx(3.0 * 0.1 / 10)  # of the facility: the widest that is known
    assert found["energy_of"] == "facility_measured"
    assert "20 USD an hour for the whole system" in found["basis"]
    each = dataclasses.replace(system, prices=Prices(currency="EUR", per_accelerator_hour=4.0))
    found = money(each, powers, 10.0, certified=None, jobs_per_h=None)
    assert found is not None
    assert (found["per_agent_hour"], found["per_job"], found["energy_per_agent_hour"]) == (0.8, None, None)
    assert money(dataclasses.replace(system, prices=None), powers, 10.0, certified=8, jobs_per_h=None) is None
    only_energy = dataclasses.replace(system, prices=Prices(currency="EUR", energy_per_kwh=0.1))
    assert money(only_energy, (), 10.0, certified=None, jobs_per_h=None) is None
    assert engineers(system, 10.0, interval=(9.0, 11.0), certified=9) == {
        "agents_per_engineer": 3.0, "engineers": 10 / 3, "low": 3.0, "certified": 3.0,
    }  # fmt: skip
    assert engineers(node_system(), 10.0, interval=None, certified=None) is None


# -- nothing that is missing makes a score better

LEVELS = (8, 9, 10, 11, 12)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=9),
    st.floats(0.5, 80.0),
    st.integers(0, 8),
    st.floats(0.01, 100),
    st.data(),
)
def test_charging_a_trial_more_never_charges_the_number_less(
    levels: list[int], agents: float, at: int, more: float, data: st.DataObject
) -> None:
    """No weight is negative, which a fitted line's may be."""
    weights = interpolation_weights(levels, agents)
    assert all(weight >= 0 for weight in weights)
    watts = data.draw(st.lists(st.floats(1, 1000), min_size=len(levels), max_size=len(levels)))
    raised = [value + (more if number == at % len(levels) else 0) for number, value in enumerate(watts)]
    before, after = (math.fsum(map(math.prod, zip(weights, values, strict=True))) for values in (watts, raised))
    assert after >= before
    assert math.fsum(weights) >= 1 - 1e-12
    assert before >= min(watts) * (1 - 1e-12)


SYSTEM = system_of(2)
LOADS = {level: gpus(2, 300.0 + 25 * level) for level in LEVELS}
SAMPLES = {level: [sample for load in LOADS[level] for sample in load.samples()] for level in LEVELS}


def scores(rows: dict[str, dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {
        (name, key): row[key]
        for name, row in rows.items()
        for key in ("agents", "agents_certified")
        if row["unit"] == "W" and row[key] is not None
    }


def no_better(after: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> None:
    """Every score that is still there is at most what it was; and none is new."""
    was = scores(before)
    for key, value in scores(after).items():
        assert value <= was[key] * (1 + 1e-9), key


@pytest.fixture(scope="module")
def whole(base: Judged) -> dict[str, dict[str, Any]]:
    """The score from all samples of five trials."""
    trials = [trial(base, level, level, totals(LOADS[level], SYSTEM)) for level in LEVELS]
    return rows_of(SYSTEM, trials, 10.3, (9.5, 11.0), 9)


@settings(max_examples=60)
@given(st.sampled_from(LEVELS), st.sampled_from(["GPU-0", "GPU-1"]), st.data())
def test_dropping_samples_never_raises_a_score(
    base: Judged, whole: dict[str, dict[str, Any]], level: int, device: str, data: st.DataObject
) -> None:
    kinds = data.draw(st.sampled_from([("energy_j", "power_w"), ("energy_j",), ("power_w",)]))
    start, length = data.draw(st.tuples(st.integers(-6, 105), st.integers(1, 30)))
    dropped = range(start, start + length)
    thinned = data.draw(st.integers(1, 4))
    kept = [
        sample
        for sample in SAMPLES[level]
        if not (
            sample.device == device
            and sample.kind in kinds
            and (sample.t_ns // 200_000_000 in dropped or sample.t_ns // 200_000_000 % thinned)
        )
    ]
    trials = [trial(base, item, item, totals(LOADS[item], SYSTEM, kept if item == level else None)) for item in LEVELS]
    no_better(rows_of(SYSTEM, trials, 10.3, (9.5, 11.0), 9), whole)


@settings(max_examples=30)
@given(st.sampled_from(LEVELS), st.floats(0.0, 900.0), st.sampled_from(["idle", "serve"]))
def test_adding_a_device_never_raises_a_score(
    base: Judged, whole: dict[str, dict[str, Any]], level: int, watts: float, role: str
) -> None:
    """One more accelerator in the deployment, in every trial; its power differs in one."""
    more = Accelerator(name="GB300", uuid="GPU-2", role="idle" if role == "idle" else "serve")
    system = dataclasses.replace(SYSTEM, accelerators=(*SYSTEM.accelerators, more))
    trials = [
        trial(
            base,
            item,
            item,
            totals([*LOADS[item], Load(uid="GPU-2", watts=watts if item == level else 50.0)], system),
        )
        for item in LEVELS
    ]
    found = rows_of(system, trials, 10.3, (9.5, 11.0), 9)
    found.pop("accelerator_engaged", None)  # another denominator, which leaves that one out by its name
    no_better(found, whole)


@settings(max_examples=20)
@given(st.sampled_from(LEVELS), st.floats(100.0, 3000.0))
def test_adding_a_domain_never_raises_a_score(
    base: Judged, whole: dict[str, dict[str, Any]], level: int, watts: float
) -> None:
    """A meter at the node adds its own row and changes no other; one that shows less than what is in it adds none."""
    system = dataclasses.replace(SYSTEM, nodes=(Node(name="n1"),))
    trials = [
        trial(base, item, item, totals([*LOADS[item], node_load(watts if item == level else 1500.0)], system))
        for item in LEVELS
    ]
    found = rows_of(system, trials, 10.3, (9.5, 11.0), 9)
    row, inside_w = found.pop("node_or_rack", None), sum(load.watts for load in LOADS[level])
    assert row is None or row["basis"] == "measured"
    assert (row is not None) if watts > inside_w else (row is None or watts > 0.85 * inside_w)
    assert found == whole


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("how", ["not shown", "silent", "lost", "not shown by any source"])
def test_losing_a_device_leaves_no_score(base: Judged, whole: dict[str, dict[str, Any]], level: int, how: str) -> None:
    loads, samples = LOADS[level], SAMPLES[level]
    if how == "not shown":
        loads = loads[:1]
    elif how == "silent":
        samples = [sample for sample in samples if sample.device != "GPU-1"]
    elif how == "lost":
        samples = [
            dataclasses.replace(sample, value=None, flag="lost")
            if sample.device == "GPU-1" and sample.t_ns > 8e9
            else sample
            for sample in samples
        ]
    else:
        loads, samples = [], []
    trials = [
        trial(base, item, item, totals(loads, SYSTEM, samples) if item == level else totals(LOADS[item], SYSTEM))
        for item in LEVELS
    ]
    found = rows_of(SYSTEM, trials, 10.3, (9.5, 11.0), 9)
    assert set(whole) - set(found) == {"accelerator"}


@pytest.mark.parametrize("unit", [1e-3, 1e3, 1e-6])
@pytest.mark.parametrize("kinds", [("energy_j",), ("power_w",), ("energy_j", "power_w")])
def test_a_wrong_unit_never_raises_a_score(
    base: Judged, whole: dict[str, dict[str, Any]], unit: float, kinds: tuple[Any, ...]
) -> None:
    """Of one of two readings the other shows it; of both the power limit, or that nothing draws next to nothing."""
    trials = [
        trial(
            base,
            item,
            item,
            totals([dataclasses.replace(load, unit=dict.fromkeys(kinds, unit)) for load in LOADS[item]], SYSTEM),
        )
        for item in LEVELS
    ]
    no_better(rows_of(SYSTEM, trials, 10.3, (9.5, 11.0), 9), whole)


@pytest.mark.parametrize(
    ("name", "labels", "counts_in_a_joule"),
    [
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", (("UUID", "GPU-0"),), 1e3),
        ("DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL", (("UUID", "GPU-0"),), 1.0),
        ("gpu_energy_consumed", (("serial_number", "GPU-0"),), 1e6),
    ],
)
def test_the_unit_in_which_an_exporter_counts_changes_no_score(
    base: Judged,
    whole: dict[str, dict[str, Any]],
    name: str,
    labels: tuple[tuple[str, str], ...],
    counts_in_a_joule: float,
) -> None:
    """What the page shows is the same energy in millijoules, joules or microjoules."""
    meant = read_table(None).meaning(SeriesName(name=name, labels=labels), "node-1")
    assert meant is not None
    trials = []
    for item in LEVELS:
        samples = [
            dataclasses.replace(sample, value=(sample.value or 0.0) * counts_in_a_joule * meant.rule.scale)
            if sample.kind == "energy_j"
            else sample
            for sample in SAMPLES[item]
        ]
        trials.append(trial(base, item, item, totals(LOADS[item], SYSTEM, samples)))
    assert scores(rows_of(SYSTEM, trials, 10.3, (9.5, 11.0), 9)) == pytest.approx(scores(whole), rel=1e-9)


def test_beyond_the_trials_power_is_never_less_than_it_can_be() -> None:
    assert interpolation_weights([8, 10, 10], 12.0) == [0, 0.6, 0.6]  # grows as the agents do
    assert interpolation_weights([8, 10, 10], 5.0) == [1, 0, 0]  # and stays below
    assert interpolation_weights([8, 10, 10], 10.0) == [0, 0.5, 0.5]


def test_a_run_folder_holds_all_of_it(tmp_path: Path) -> None:
    """From the files of a drawn run to its rows, its curve and its prices."""
    out = tmp_path / "run"
    system = System(
        name="drawn",
        accelerators=(Accelerator(name="H200", count=2),),
        weights="trained",
        speculation="none",
        pue=1.3,
        pue_kind="design",
        prices=Prices(currency="USD", per_accelerator_hour=2.5, energy_per_kwh=0.08),
        agents_per_engineer=2.0,
        provisioned=descriptor(published("published_system", 1, 10.2)),
    )
    score = score_of(out, SimulatedDriver(measured=True), system=system)
    result = score["results"][0]
    assert [row["id"] for row in result["denominators"]] == [
        "accelerator_count", "accelerator", "provisioned", "facility_provisioned",
    ]  # fmt: skip
    assert set(result["energy"]) == {"accelerator", "provisioned", "facility_provisioned"}
    assert result["money"]["per_agent_hour"] == pytest.approx(5 / result["agents"])
    assert result["engineers"]["engineers"] == pytest.approx(result["agents"] / 2)
    assert [item["trial"] for item in score["curve"]] == [item["trial"] for item in score["trials"]]
    labels = " | ".join(score["labels"])
    assert "power of whole nodes was not measured" in labels
    assert "rests on a stated design PUE of 1.3" in labels
    assert not any("no provisioned power" in label for label in score["labels"])
    said = CliRunner().invoke(main, ["replay", "power", "provisioned", str(out), "--out", str(tmp_path / "p.json")])
    assert said.exit_code == 0, said.output
    assert "10.20 kW provisioned" in said.stdout
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["computed"]["published_node_power_w"] == pytest.approx(10_200)
    for run in (tmp_path, score_folder(tmp_path / "bare")):
        refused = CliRunner().invoke(main, ["replay", "power", "provisioned", str(run)])
        assert refused.exit_code == 3
    assert "names no system_power.json" in refused.output


def score_folder(out: Path) -> Path:
    score_of(out, SimulatedDriver())
    return out


def test_a_processor_beside_accelerators_is_none_of_them(base: Judged) -> None:
    system = system_of(2)
    mixed = dataclasses.replace(
        system, accelerators=(*system.accelerators, Accelerator(name="EPYC", kind="cpu", count=2))
    )
    rows = rows_of(mixed, [trial(base, 1, 10, totals(gpus(2, 700.0), mixed))], 10.0)
    assert (rows["accelerator_count"]["denominator"], rows["accelerator_count"]["unit"]) == (2, "accelerators")
    assert rows["accelerator"]["watts_per_accelerator"] == pytest.approx(700)


def test_a_descriptor_of_fewer_nodes_gives_no_provisioned_power() -> None:
    system = dataclasses.replace(
        system_of(2),
        nodes=(Node(name="n1"), Node(name="n2")),
        provisioned=descriptor(published("published_system", 1, 10.2)),
    )
    refusal = provisioned_refusal(system)
    assert refusal is not None
    assert "has 2 nodes and system_power.json provisions 1" in refusal
    assert provisioned_refusal(dataclasses.replace(system, nodes=system.nodes[:1])) is None
    flat = {
        "cpu": {"num_cpu": 2, "tdp_per_cpu": 350},
        "accelerator": {"num_accelerator": 1, "tdp_per_accelerator": 700},
        "overhead_fraction": 0.5,
    }
    refusal = provisioned_refusal(dataclasses.replace(system_of(2), provisioned=flat))
    assert refusal is not None
    assert "lists 2 accelerators and system_power.json provisions nodes for 1" in refusal


def test_what_is_certified_is_charged_the_power_of_its_holdout_and_each_trials_own_uncertainty(base: Judged) -> None:
    system = system_of(2)
    trials = [trial(base, agents, agents, totals(gpus(2, 500.0), system)) for agents in (8, 10, 11)]
    (total,) = trials[0].power
    # As if readings had been missing there, and were charged.
    unsure = dataclasses.replace(trials[0], power=(dataclasses.replace(total, u_rest_w=300.0),))

    def certain_w(basis: list[Judged], holdouts: list[Judged]) -> float | None:
        (found,) = denominators(system, basis, 10.5, holdouts)
        return found.certain_w

    usual_w = certain_w(trials, [])
    assert usual_w is not None
    assert usual_w == pytest.approx(1000 + 2 * (total.u_gain_w or 0), rel=1e-3)
    assert (certain_w([unsure, *trials[1:]], []) or 0) > 1600
    assert (certain_w(trials, [trial(base, 9, 9, totals(gpus(2, 600.0), system))]) or 0) > usual_w + 200
    assert certain_w(trials, [trial(base, 9, 9, ())]) is None
    rows = denominator_rows(
        system,
        denominators(system, trials, 10.5, [trial(base, 9, 9, ())]),
        10.5,
        interval=None,
        certified=9,
        goodput=None,
    )
    assert (rows[1]["agents_certified"], rows[1]["agents"]) == (None, pytest.approx(10_500))

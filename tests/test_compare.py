"""Two scores against each other: which is better, by how much, and when nothing may be said."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agentdyno import main
from replay.against import request_against
from replay.compare import Comparison, compare, comparison_lines, comparison_markdown
from replay.power.choice import parse_power
from replay.request import PlanRules
from replay.rules import LengthPolicy
from replay.runfolder import RunFolder
from replay.score import run
from replay.system import Accelerator, System
from tests.simulated_run import SimulatedDriver, simulated_request
from tests.test_score import RULES, canary, score_of, sessions

SYSTEM = System(
    name="other", accelerators=(Accelerator(name="H200", count=2),), weights="trained", speculation="none", engine="e"
)


def of(a: Path, b: Path) -> Comparison:
    return compare(RunFolder(path=a), RunFolder(path=b))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of drawn servers that hold 10, 13 and again 10 agents, and one against the first."""
    folder = tmp_path_factory.mktemp("compare")
    score_of(folder / "ten")
    score_of(folder / "thirteen", SimulatedDriver(capacity=13.0, seed=1, watts=1500.0), system=SYSTEM)
    score_of(folder / "ten-again", SimulatedDriver(seed=2))
    return folder


def test_the_better_one_is_told_with_an_interval(runs: Path) -> None:
    found = of(runs / "ten", runs / "thirteen")
    assert found.comparable
    agents, per_accelerator, per_megawatt = found.ratios
    assert (agents.what, agents.word) == ("agents", "better")
    assert agents.low is not None
    assert agents.high is not None
    assert agents.low < 1.3 < agents.high
    assert per_accelerator.ratio == pytest.approx(agents.ratio)
    assert agents.ratio is not None
    assert per_megawatt.ratio == pytest.approx(agents.ratio * 1400 / 1500)
    assert per_megawatt.basis == "declared"
    names = {item.name for item in found.differences}
    assert names == {"system.name", "system.engine"}
    assert any("--against" in note for note in found.notes)
    back = of(runs / "thirteen", runs / "ten").ratios[0]
    assert (back.word, back.low, back.high) == ("worse", pytest.approx(1 / agents.high), pytest.approx(1 / agents.low))


def test_two_runs_of_one_server_are_not_told_apart(runs: Path) -> None:
    ratio = of(runs / "ten", runs / "ten-again").ratios[0]
    assert ratio.word == "not told apart"
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1 < ratio.high
    same = of(runs / "ten", runs / "ten")
    assert same.differences == ()
    assert same.ratios[0].ratio == 1


def test_the_limits_are_those_of_zou_and_donner(runs: Path) -> None:
    ratio = of(runs / "ten", runs / "thirteen").ratios[0]
    a, b = (json.loads((runs / name / "score.json").read_text())["results"][0] for name in ("ten", "thirteen"))
    assert ratio.low is not None
    below = math.log(b["agents"] / a["agents"]) - math.log(ratio.low)
    parts = (b["agents"] / b["interval"]["low"], a["interval"]["high"] / a["agents"])
    assert below**2 == pytest.approx(sum(math.log(part) ** 2 for part in parts))


def test_measured_power_adds_its_uncertainty_and_a_common_gain_cancels(runs: Path, tmp_path: Path) -> None:
    def with_power(name: str, sensors: list[str], source: str, name_of: str = "accelerator") -> Path:
        out = tmp_path / name

        def change(score: dict[str, Any]) -> None:
            row = score["results"][0]["denominators"][1]
            row.update(id=name_of, basis="measured", source=source, sensors=sensors, u_gain=40.0, u_rest=7.0)

        return altered(runs / "ten", out, change)

    def width(a: Path, b: Path) -> float:
        ratio = next(item for item in of_unverified(a, b).ratios if item.what == "agents per megawatt")
        assert ratio.low is not None
        assert ratio.high is not None
        return math.log(ratio.high / ratio.low)

    agents = math.log((of(runs / "ten", runs / "ten").ratios[0].high or 0) ** 2)
    like = width(with_power("a", ["H200"], "nvml"), with_power("b", ["H200"], "nvml"))
    unlike = width(with_power("c", ["H200"], "nvml"), with_power("d", ["B200"], "nvml"))
    packages = width(*(with_power(name, ["package-0"], "rapl", "cpu_package") for name in "ef"))
    assert agents < like < unlike
    assert packages == pytest.approx(unlike)  # of CPU packages nobody knows the model
    rest = 2 * math.hypot(7 / 1400, 7 / 1400)
    assert like == pytest.approx(2 * math.hypot(agents / 2, rest), rel=0.05)
    apart = of_unverified(tmp_path / "a", tmp_path / "e")
    assert [ratio.what for ratio in apart.ratios] == ["agents", "agents per accelerator"]
    assert any(
        note == "no ratio per megawatt of accelerators (measured): only one of the two has it" for note in apart.notes
    )


def test_unlike_denominators_have_no_ratio_and_it_is_said(runs: Path, tmp_path: Path) -> None:
    def with_row(name: str, pue_kind: str | None = None, **changes: Any) -> Path:
        def change(score: dict[str, Any]) -> None:
            score["results"][0]["denominators"][1].update(changes)
            score["system"]["pue_kind"] = pue_kind

        return altered(runs / "ten", tmp_path / name, change)

    def with_meter(name: str, domain: str, **changes: Any) -> Path:
        def change(score: dict[str, Any]) -> None:
            score["results"][0]["denominators"][1].update(changes)
            total = score["trials"][0]["power"][0]
            total["scope"], total["devices"][0]["domain"] = "node_or_rack", domain

        return altered(runs / "ten", tmp_path / name, change)

    measured = with_row("a", id="node_or_rack", basis="measured")
    stated = with_row("b", id="node_or_rack", basis="declared")
    found = of_unverified(measured, stated)
    assert [ratio.denominator for ratio in found.ratios] == [None, "accelerator_count"]
    assert "no ratio per megawatt of nodes or racks: unlike basis: measured and declared" in found.notes
    facility = {"id": "facility_measured", "basis": "declared"}
    bill, feed = with_row("c", "annual", **facility), with_row("d", "design", **facility)
    assert any("the facility, from what was drawn and a stated PUE: unlike PUE: annual and design" in note
               for note in of_unverified(bill, feed).notes)  # fmt: skip
    words = "the facility: {} power of meter times a stated annual PUE of 1.2"
    one = with_row("e", "annual", **facility, scope=words.format("measured"))
    other = with_row("f", "annual", **facility, scope=words.format("declared"))
    assert any("unlike power under the PUE" in note for note in of_unverified(one, other).notes)
    racks = with_meter("h", "rack", id="node_or_rack", basis="measured")
    nodes = with_meter("i", "node", id="node_or_rack", basis="measured")
    assert any("unlike meters: of nodes and of racks" in note for note in of_unverified(nodes, racks).notes)
    like = of_unverified(one, with_row("g", "annual", **facility, scope=words.format("measured")))
    assert [ratio.denominator for ratio in like.ratios] == [None, "accelerator_count", "facility_measured"]
    assert "agents per megawatt of the facility, from what was drawn (declared)" in "\n".join(comparison_lines(like))


def altered(source: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(source, out)
    score = json.loads((out / "score.json").read_text())
    change(score)
    (out / "score.json").write_text(json.dumps(score))
    return out


def of_unverified(a: Path, b: Path) -> Comparison:
    """The comparison of scores that were altered on purpose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replay.compare.verify", lambda _: ())
        return of(a, b)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda score: score.update(dataset_digest="e" * 64), "unlike dataset"),
        (lambda score: score["plan"].update(digest="e" * 64), "unlike plan"),
        (lambda score: score.update(methodology_version="0.9"), "unlike methodology: 1.1 and 0.9"),
        (lambda score: score["policies"].update(delay="recorded"), "unlike delay policy"),
        (lambda score: score["policies"].update(isolation="none"), "unlike isolation policy: play and none"),
        (lambda score: score["policies"].update(history="live"), "unlike history policy"),
        (lambda score: score.update({"class": "record"}), "unlike class: screen and record"),
        (lambda score: score["protocol"].update(settle_s=9.0), "unlike protocol"),
        (lambda score: score["slos"][0]["terms"][0].update(limit=30.0), "limits under the name simulated (1)"),
        (lambda score: score["slos"][0].update(version="2"), "unlike service levels"),
        (lambda score: score["canary"].update(reasons=["it shifted"]), "shifted: it shifted"),
        (lambda score: score["trials"][0].update(cross_warming=["warm"]), "plays warmed each other in trial 1"),
        (lambda score: score.update(kind="run"), "is a single trial"),
        (lambda score: score["system"].update(speculation="ngram"), "speculates on synthetic text"),
    ],
)
def test_what_is_unlike_is_not_compared(
    runs: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    def change_all(score: dict[str, Any]) -> None:
        score["canary"] = {"reasons": []}
        change(score)

    found = of_unverified(runs / "ten", altered(runs / "ten-again", tmp_path / "run", change_all))
    assert not found.comparable
    assert any(says in reason for reason in found.reasons), found.reasons
    assert found.ratios == ()


def test_every_reason_is_listed_and_the_exit_code_is_1(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "capped"
    score_of(out, rules=PlanRules(delay=RULES.delay, length=LengthPolicy(cap=60), isolation="agent"), quick=True)
    score = json.loads((out / "score.json").read_text())
    score["labels"].pop()
    (out / "score.json").write_text(json.dumps(score))
    done = CliRunner().invoke(main, ["replay", "compare", str(runs / "ten"), str(out)])
    assert done.exit_code == 1
    words = " ".join(done.stdout.split())
    for says in ("unlike plan", "unlike length policy", "unlike isolation policy", "does not follow from its records"):
        assert says in words
    listed = CliRunner().invoke(main, ["replay", "compare", str(runs / "ten"), str(out), "--json"])
    assert listed.exit_code == 1
    value = json.loads(listed.stdout)
    assert value["comparable"] is False
    assert len(value["reasons"]) >= 4
    both = CliRunner().invoke(main, ["replay", "compare", str(out), str(out), "--json", "--markdown"])
    assert both.exit_code == 2
    missing = CliRunner().invoke(main, ["replay", "compare", str(out), str(tmp_path / "nothing")])
    assert missing.exit_code == 3


def test_a_server_that_answers_otherwise_is_not_compared_unless_its_weights_are_made_up(tmp_path: Path) -> None:
    for name, words in (("a", "two three five"), ("b", "eleven and so on")):
        for weights in ("trained", "made-up"):
            system = dataclasses.replace(SYSTEM, weights=weights)
            score_of(tmp_path / name / weights, SimulatedDriver(canaries=[canary(words), canary(words)]), system=system)
    found = of(tmp_path / "a" / "trained", tmp_path / "b" / "trained")
    assert any("differs from that of" in reason for reason in found.reasons), found.reasons
    able = canary("two three five")
    tools = dataclasses.replace(able.servers[0].tools, sound=3)
    able = dataclasses.replace(able, servers=(dataclasses.replace(able.servers[0], tools=tools),))
    score_of(tmp_path / "able", SimulatedDriver(canaries=[able, able]), system=SYSTEM)
    worse, better = tmp_path / "a" / "trained", tmp_path / "able"
    for found in (of(worse, better), of(better, worse)):  # whichever stands first
        assert any(f"canary of {worse} differs" in reason for reason in found.reasons), found.reasons
    found = of(tmp_path / "a" / "made-up", tmp_path / "b" / "made-up")
    assert found.comparable
    assert any("cannot be asked" in note for note in found.notes)


def test_unlike_work_is_not_compared(runs: Path, tmp_path: Path) -> None:
    class Short(SimulatedDriver):
        """A server that stops answers early: other work for the same plan."""

        def trial(self, *words: Any, **named: Any) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tests.simulated_run.served_tokens", lambda tokens: max(1, tokens // 2))
                SimulatedDriver.trial(self, *words, **named)

    out = tmp_path / "free"
    rules = dataclasses.replace(RULES, length=LengthPolicy(mode="free", cap=30))
    score_of(out / "whole", rules=rules)
    score_of(out / "short", Short(), rules=rules)
    found = of(out / "whole", out / "short")
    assert not found.comparable
    assert any("output tokens of the" in reason for reason in found.reasons), found.reasons


def test_where_one_has_no_interval_nothing_is_told(runs: Path, tmp_path: Path) -> None:
    score_of(tmp_path / "most", SimulatedDriver(capacity=500.0), maximum_agents=12)
    found = of(runs / "ten", tmp_path / "most")
    assert found.comparable
    assert {ratio.word for ratio in found.ratios} == {"not told apart"}
    assert all("at least 12 agents" in (ratio.why_not or "") for ratio in found.ratios)
    assert "search.maximum" in {item.name for item in found.differences}


def test_a_run_against_another_takes_its_rules_and_turns_the_order(runs: Path, tmp_path: Path) -> None:
    request = simulated_request(
        tmp_path / "against", rules=PlanRules(seed=77), system=SYSTEM, slos=(), agents=5, power=(parse_power("rapl"),)
    )
    asked = request_against(request, RunFolder(path=runs / "ten"))
    first, second = SimulatedDriver(seed=3), SimulatedDriver(seed=3)
    score = run(asked, sessions, driver=first)
    score_of(tmp_path / "forward", second)
    levels, forward = (
        [order.agents for order in driver.orders if order.purpose == "confirm"] for driver in (first, second)
    )
    assert levels == forward[::-1]
    assert score["against"]["order"] == "reversed"
    found = of(runs / "ten", tmp_path / "against")
    assert found.comparable
    assert not any("--against" in note for note in found.notes)
    again = request_against(dataclasses.replace(request, out=tmp_path / "third"), RunFolder(path=tmp_path / "against"))
    assert again.against is not None
    assert again.against.order == "forward"


def test_a_comparison_reads_as_text_and_as_markdown(runs: Path) -> None:
    found = of(runs / "ten", runs / "thirteen")
    text = "\n".join(comparison_lines(found))
    assert "agents: B is better — B/A 1.3" in text
    assert "system.engine: null | e" in text
    table = comparison_markdown(found)
    assert "| service level | what | A | B | B/A | 95 % interval | B is |" in table
    assert "| system.engine | `null` | `e` |" in table
    done = CliRunner().invoke(main, ["replay", "compare", str(runs / "ten"), str(runs / "thirteen"), "--markdown"])
    assert (done.exit_code, done.stdout) == (0, table)


def test_the_ratio_of_two_fitted_roots_covers_the_truth() -> None:
    """2,000 pairs of drawn searches' confirmations: the share of intervals that hold the true ratio, within 3 sd."""
    from replay.fit import Point, fieller
    from replay.ratio import Estimate, ratio_limits

    draw = random.Random(5)

    def root(capacity: float) -> Estimate:
        levels = [round(capacity * math.exp(0.12 * (step / 4 - 1))) for step in range(9)]
        points = [
            Point(trial=number, agents=level, margin=3 * math.log(level / capacity) + draw.gauss(0, 0.05))
            for number, level in enumerate(levels)
        ]
        fit = fieller(points)
        assert fit is not None
        assert fit.root is not None
        assert fit.low is not None
        assert fit.high is not None
        return Estimate(value=fit.root, low=fit.low, high=fit.high)

    inside = 0
    for _ in range(2000):
        low, high = ratio_limits(denominator=root(1000.0), numerator=root(1300.0), relative=0.0)
        inside += low <= 1.3 <= high
    assert 0.935 <= inside / 2000 <= 0.985

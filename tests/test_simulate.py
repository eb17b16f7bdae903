"""The simulated comparison: the interval holds the capacity, certified numbers rarely exceed it, a search resumes."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agentdyno import main
from replay.simulate import MODELS, NAIVE, Case, Model, Source, search_once, simulate


def test_intervals_hold_the_capacity_and_certified_numbers_rarely_exceed_it() -> None:
    """Loose bounds for 300 searches: 5,000 are the business of `agentdyno replay statistics`."""
    rows = {row.procedure: row for row in simulate(Case(model="linear", capacity=1000.0, sigma=0.15), 300, seed=7)}
    found, certified = rows["agentdyno: the estimate"], rows["agentdyno: the certified number"]
    assert found.coverage is not None
    assert 0.91 < found.coverage <= 0.99
    assert found.bias == pytest.approx(0, abs=0.01)
    assert found.answered > 0.98
    assert certified.over_claims is not None
    assert certified.over_claims < 0.04
    assert certified.answered > 0.9
    retried = rows["retry until one of three passes"].over_claims
    assert retried is not None
    assert retried > 0.5  # what the fit is for


@pytest.mark.parametrize("model", MODELS)
def test_under_every_model_few_certified_numbers_exceed_the_capacity(model: Model) -> None:
    rows = {row.procedure: row for row in simulate(Case(model=model, capacity=11.0, sigma=0.15), 20, seed=3)}
    certified = rows["agentdyno: the certified number"]
    assert certified.over_claims_of_all is None or certified.over_claims_of_all <= 0.15
    assert set(NAIVE) < set(rows)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    case = Case(model="linear", capacity=11.0, sigma=0.3)
    assert simulate(case, 5, seed=1) == simulate(case, 5, seed=1) != simulate(case, 5, seed=2)


def test_a_search_that_was_cut_anywhere_resumes_to_the_same_end() -> None:
    case = Case(model="linear", capacity=100.0, sigma=0.3)
    conclusion, history = search_once(case, 5, 0)
    assert len(history) > 10
    for cut in range(len(history) + 1):
        assert search_once(case, 5, 0, history[:cut]) == (conclusion, history)


def test_a_simulated_margin_is_a_function_of_seed_level_and_draw() -> None:
    case = Case(model="linear", capacity=100.0, sigma=0.3)
    source = Source(case, 5, 0)
    first = source.margin(90, 1)
    assert source.margin(90, 2) != first
    assert source.margin(90, 1) == first == Source(case, 5, 0).margin(90, 1)
    assert Source(case, 6, 0).margin(90, 1) != first


def test_the_command_prints_a_table_of_simulated_numbers_and_json() -> None:
    shown = CliRunner().invoke(main, ["replay", "statistics", "--searches", "3"])
    assert shown.exit_code == 0
    tables = [line for line in shown.stdout.splitlines() if line.startswith("simulated: ")]
    assert len(tables) == 6
    assert shown.stdout.count("agentdyno: the certified number") == 6
    printed = CliRunner().invoke(main, ["replay", "statistics", "--searches", "2", "--model", "concave", "--json"])
    document = json.loads(printed.stdout)
    assert document["simulated"] is True
    assert {case["model"] for case in document["cases"]} == {"concave"}
    assert {case["sigma"] for case in document["cases"]} == {0.05, 0.15, 0.3}
    assert len(document["cases"][0]["rows"]) == 7


def test_the_command_lists_its_models_and_refuses_others() -> None:
    listed = CliRunner().invoke(main, ["replay", "statistics", "--model", "list"])
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(MODELS)
    refused = CliRunner().invoke(main, ["replay", "statistics", "--model", "magic"])
    assert refused.exit_code == 2
    assert "no model 'magic'" in refused.stderr

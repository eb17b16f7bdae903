"""The table of integrators: ours beside those of others, on simulated loads whose energy is known."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from replay.command import replay
from replay.power.integrators import OTHERS, OURS, SAMPLINGS, Row, simulate

RUNS = 60  # as the command runs by itself


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.sampling.name: row for row in simulate(RUNS, 0)}


EXACT = 1 + 1e-6  # sums in another order


@pytest.mark.parametrize("name", [sampling.name for sampling in SAMPLINGS])
def test_ours_is_at_or_under_the_better_of_the_others(rows: dict[str, Row], name: str) -> None:
    worst = {way: error.worst for way, error in rows[name].errors.items()}
    assert worst["our_counter"] <= worst["ends"] * EXACT
    assert worst["our_scraped"] <= worst["scraped"] * EXACT
    assert worst["our_gauge"] <= min(worst["clipped"], worst["edges"]) * EXACT


@pytest.mark.parametrize(
    ("name", "way", "low", "high"),
    [
        ("instant, 1 Hz", "clipped", 0.015, 0.03),
        ("instant, 10 Hz", "edges", 0.001, 0.003),
        ("1 s average, 1 Hz", "clipped", 0.004, 0.009),
        ("1 s average, 1 Hz", "edges", 0.001, 0.004),
        ("instant, 1 Hz, 6 s gap", "edges", 0.02, 0.04),
        ("30 s exporter, instant", "edges", 0.2, 0.4),
        ("30 s exporter, instant", "clipped", 0.25, 0.5),
        ("30 s exporter, average", "scraped", 0.01, 0.03),
        ("30 s exporter, average", "ends", 0.0, 0.0005),
    ],
)
def test_others_are_as_far_off_as_was_found_before(
    rows: dict[str, Row], name: str, way: str, low: float, high: float
) -> None:
    assert low <= rows[name].errors[way].worst <= high


def test_a_trapezoid_without_its_edges_is_too_low_by_what_it_leaves_out(rows: dict[str, Row]) -> None:
    clipped = rows["30 s exporter, average"].errors["clipped"]
    assert clipped.bias == pytest.approx(-0.1, abs=0.01)  # 30 s of 300 s
    # Mirrored loads: what is left over is no bias.
    assert abs(rows["30 s exporter, average"].errors["edges"].bias) < 1e-9


def test_ours_refuses_what_it_cannot_know_and_says_why(rows: dict[str, Row]) -> None:
    refused = {
        (name, way): error.reason for name, row in rows.items() for way, error in row.errors.items() if error.refused
    }
    assert set(refused) == {
        ("instant, 1 Hz, 6 s gap", "our_gauge"),
        ("30 s exporter, instant", "our_gauge"),
        ("30 s exporter, average", "our_gauge"),
        ("30 s page, read at 1 Hz", "our_gauge"),
    }
    assert all(rows[name].errors[way].refused == RUNS for name, way in refused)
    assert "a hole of" in str(refused["instant, 1 Hz, 6 s gap", "our_gauge"])
    assert "a new value every 30 s" in str(refused["30 s exporter, average", "our_gauge"])


def test_the_stated_uncertainty_holds_the_truth(rows: dict[str, Row]) -> None:
    stated = [error.within for row in rows.values() for way, error in row.errors.items() if way in OURS]
    given = [share for share in stated if share is not None]
    assert len(given) == len(stated) - 4  # all but the refused
    assert min(given) >= 0.95
    assert all(row.errors[way].within is None for row in rows.values() for way in OTHERS)


def test_the_command_prints_the_table_and_calls_it_simulated() -> None:
    found = CliRunner().invoke(replay, ["power", "integrators", "--runs", "2", "--seed", "3"])
    assert (found.exit_code, found.stderr.strip()) == (0, "")
    assert found.stdout.startswith("Simulated, no device was read: 2 simulated runs a row, seed 3")
    for sampling in SAMPLINGS:
        assert f"simulated {sampling.name}: {sampling.source}" in found.stdout
    assert "* refused: this is what it would have given" in found.stdout


def test_the_command_prints_every_number_as_json() -> None:
    arguments = ["power", "integrators", "--runs", "2", "--json"]
    found = CliRunner().invoke(replay, arguments)
    assert found.exit_code == 0
    document = json.loads(found.stdout)
    assert (document["simulated"], document["runs"], document["seed"]) == (True, 2, 0)
    assert set(document["ways"]) == {*OTHERS, *OURS}
    assert [row["sampling"]["name"] for row in document["rows"]] == [sampling.name for sampling in SAMPLINGS]
    assert all(row["simulated"] and row["sampling"]["source"] for row in document["rows"])
    assert CliRunner().invoke(replay, arguments).stdout == found.stdout

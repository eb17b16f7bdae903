"""Drift: distances hold against the exact ones, sessions are counted, and unknown is not "unmoved"."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agentdyno import main
from curate.card import write_papers
from curate.distribution import describe
from curate.drift import drift, ks_distance
from curate.manifest import SessionEntry, read_manifest
from curate.recipe import Recipe, Statistics
from curate.stats import Stats, read_stats
from tests.sample_sessions import make, text_session

NO_PLOTS = Recipe(statistics=Statistics(plots=False))
whole_numbers = st.lists(st.integers(0, 3000), min_size=1, max_size=40)


def exact_distance(one: list[float], other: list[float]) -> float:
    at = sorted({*one, *other})
    below = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (one, other)]
    return float(np.max(np.abs(below[0] - below[1])))


@given(whole_numbers, whole_numbers)
def test_the_distance_never_exceeds_the_exact_one(one: list[float], other: list[float]) -> None:
    found = ks_distance(describe(one), describe(other))
    assert found is not None
    assert found <= exact_distance(one, other) + 1e-12
    assert found == pytest.approx(ks_distance(describe(other), describe(one)))
    assert ks_distance(describe(one), describe(one)) == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 2], 0.25),  # all on an edge: that is where edges mean the same in both
        ([3, 4], [300, 400], 1.0),
        ([1, 10, 100], [1, 10, 100], 0.0),
        ([1000] * 3, [1000, 1500, 4000], 1 / 3),
    ],
)
def test_distances_by_hand(one: list[float], other: list[float], expected: float) -> None:
    assert ks_distance(describe(one), describe(other)) == pytest.approx(expected)


def test_shares_are_compared_on_their_own_edges() -> None:
    assert ks_distance(describe([0.1, 0.2, 1.0, 1.0], share=True), describe([0.1, 0.2, 0.3, 1.0], share=True)) == 0.25
    assert ks_distance(describe([]), describe([1.0])) is None


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Forty sessions of one turn, then thirty-five of them, one changed, and forty longer ones."""
    folder = tmp_path_factory.mktemp("releases")
    first = [text_session(f"s{n:02}", turns=1) for n in range(40)]
    later = [
        replace(first[0], harness_version="9"),
        *first[1:35],
        *(text_session(f"t{n:02}", turns=6) for n in range(40)),
    ]
    make(first, folder / "first", recipe=NO_PLOTS)
    make(later, folder / "later", recipe=NO_PLOTS)
    return folder / "first", folder / "later"


def entries(folder: Path) -> list[SessionEntry]:
    return [entry for shard in read_manifest(folder).shards for entry in shard.sessions]


def stats_of(releases: tuple[Path, Path]) -> tuple[Stats, Stats]:
    return read_stats(releases[0]), read_stats(releases[1])


def test_sessions_that_came_went_and_changed_are_counted(releases: tuple[Path, Path]) -> None:
    before, after = stats_of(releases)
    found = drift(after, before, sessions=entries(releases[1]), previous_sessions=entries(releases[0]))
    assert (found.sessions_added, found.sessions_removed) == (40, 5)
    assert (found.sessions_changed, found.sessions_unchanged) == (1, 34)
    assert found.previous_digest == before.digest


def test_what_moved_is_said_with_its_limit(releases: tuple[Path, Path]) -> None:
    before, after = stats_of(releases)
    found = drift(after, before).quantities
    turns = found["turns_per_session"]
    assert (turns.n_before, turns.n, turns.p50_before, turns.p90) == (40, 75, 1, 6)
    assert turns.distance == pytest.approx(40 / 75)
    assert turns.limit == pytest.approx(1.358 * math.sqrt((40 + 75) / (40 * 75)))
    assert turns.moved is True
    assert found["ttft_us"].moved is False
    # Requests of a session are no independent draws: the limit counts sessions.
    assert found["ttft_us"].limit == turns.limit
    assert drift(after, before).sessions_added is None


def test_what_one_release_does_not_know_has_not_stayed(releases: tuple[Path, Path]) -> None:
    before, after = stats_of(releases)
    unknown = replace(
        after,
        quantities={
            **after.quantities,
            "ttft_us": replace(after.quantities["ttft_us"], all=describe([None])),
            "new_one": after.quantities["gap_us"],
        },
    )
    found = drift(unknown, before).quantities
    assert (found["ttft_us"].n, found["ttft_us"].moved, found["ttft_us"].p50) == (0, None, None)
    assert (found["new_one"].n_before, found["new_one"].moved) == (0, None)
    assert "human_gap_us" not in found  # neither knows it


def test_the_card_and_the_statistics_tell_the_drift(releases: tuple[Path, Path]) -> None:
    first, later = releases
    write_papers(later, read_manifest(later), previous=read_stats(first), previous_sessions=entries(first))
    told = read_stats(later).drift
    assert told is not None
    assert told.sessions_added == 40
    body = (later / "README.md").read_text()
    assert "40 sessions added, 5 removed, 1 changed, 34 unchanged." in body
    moved = {name: each for name, each in told.quantities.items() if each.moved}
    assert f"{len(moved)} of " in body
    name, most = max(moved.items(), key=lambda item: item[1].distance or 0)
    assert f"| `{name}` | {most.n_before} | {most.n} |" in body
    write_papers(later, read_manifest(later))
    assert "Since the release before" not in (later / "README.md").read_text()


def test_the_command_compares_two_folders(releases: tuple[Path, Path]) -> None:
    first, later = map(str, releases)
    said = CliRunner().invoke(main, ["curate", "stats", later, "--against", first])
    assert said.exit_code == 0
    assert "40 sessions added, 5 removed, 1 changed, 34 unchanged" in said.stdout
    (line,) = [line for line in said.stdout.splitlines() if line.startswith("turns_per_session")]
    assert line.split()[-1] == "yes"
    told = CliRunner().invoke(main, ["curate", "stats", later, "--against", first, "--json"])
    assert json.loads(told.stdout)["drift"]["quantities"]["turns_per_session"]["moved"] is True
    none = CliRunner().invoke(main, ["curate", "stats", later, "--against", "/nowhere"])
    assert (none.exit_code, "no such folder" in none.stderr) == (2, True)

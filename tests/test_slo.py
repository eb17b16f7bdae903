"""Service levels: presets, files, and the rules of a protocol that were not met."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from replay.protocol import FULL
from replay.slo import PRESETS, Measured, Quantity, SloFault, Term, load_slos, slo_from_json, slo_to_json, unmet_rules

AS_FULL = Measured(
    ramp_per_s=1.0,
    settle_s=60.0,
    measure_s=600.0,
    finished_trajectories=30,
    finished_per_agent_min=3,
    start_offset_turns=10,
    request_timeout_s=300.0,
)


@pytest.mark.parametrize(("name", "speed", "ttft"), [("20", 20, 10), ("60", 60, 5), ("180", 180, 3)])
def test_presets_hold_the_published_limits(name: str, speed: float, ttft: float) -> None:
    (slo,) = load_slos(f"aa-shape-2026-07/{name}")
    assert {term.name: term.limit for term in slo.terms} == {"p25_output_tok_s": speed, "p95_ttft_s": ttft}
    assert slo.protocol == FULL
    assert "not an AA result" in slo.note


def test_a_service_level_survives_its_run_folder() -> None:
    for slo in PRESETS.values():
        assert slo_from_json(slo_to_json(slo)) == slo


def test_a_file_sets_limits_and_changes_the_protocol(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[limits]\np25_output_tok_s = 33\np95_ttft_s = 2.5\n[protocol]\nmin_measure_s = 30\n")
    (slo,) = load_slos(str(path))
    assert slo.name == "mine"
    assert {term.name: term.limit for term in slo.terms} == {"p25_output_tok_s": 33, "p95_ttft_s": 2.5}
    assert slo.protocol == replace(FULL, name="mine", min_measure_s=30.0)


def test_any_percentile_of_any_quantity_pooled_and_per_agent(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[limits]\np25_output_tok_s = 20\n'p99.9_ttft_s' = 30\np50_job_s = 600\np75_turn_s = 40\n"
        "[agent_limits]\nshare = 0.95\np10_end_to_end_tok_s = 5\n"
    )
    (slo,) = load_slos(str(path))
    assert [(term.name, term.scope, term.at_least) for term in slo.terms] == [
        ("p25_output_tok_s", "pooled", True),
        ("p99.9_ttft_s", "pooled", False),
        ("p50_job_s", "pooled", False),
        ("p75_turn_s", "pooled", False),
        ("p10_end_to_end_tok_s", "agent", True),
    ]
    assert slo.agent_share == 0.95
    assert slo_from_json(slo_to_json(slo)) == slo
    assert "95% of the agents: P10 end-to-end speed of an agent's own requests at least 5 tok/s" in slo.words
    changed = slo.version
    path.write_text(path.read_text() + "\n")
    assert load_slos(str(path))[0].version != changed


def test_a_family_is_all_its_presets_and_each_has_the_version_of_its_limits() -> None:
    family = load_slos("aa-shape-2026-07")
    assert [slo.name for slo in family] == [f"aa-shape-2026-07/{speed}" for speed in (20, 60, 180)]
    assert {slo.version for slo in family} == {"2026-07"}


@pytest.mark.parametrize(
    ("quantity", "observed", "margin"),
    [
        ("output_tok_s", 10.0, math.log(2)),
        ("output_tok_s", 40.0, -math.log(2)),
        ("output_tok_s", 20.0, 0.0),
        ("output_tok_s", 0.0, math.inf),
        ("ttft_s", 40.0, math.log(2)),
        ("ttft_s", 10.0, -math.log(2)),
        ("ttft_s", math.inf, math.inf),
        ("job_s", 20.0, 0.0),
    ],
)
def test_a_margin_is_above_0_exactly_where_the_limit_fails(quantity: Quantity, observed: float, margin: float) -> None:
    term = Term(quantity=quantity, percentile=50.0, limit=20.0)
    assert term.margin(observed) == pytest.approx(margin)
    assert term.holds(observed) is (margin <= 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("limits = 3", "[limits] must be a table"),
        ("", "[limits] is missing or empty"),
        ("[limits]\np99.9_ttft_s = 2", 'in quotes: "p99.9_ttft_s"'),
        ("[limits]\np0_ttft_s = 2", "N above 0 and below 100"),
        ("[limits]\np50_ttft_s = 2\n'p50.0_ttft_s' = 3", "p50_ttft_s twice"),
        ("[agent_limits]\nshare = 1.5\np95_ttft_s = 2", "agent_limits.share must be at most 1"),
        ("[agent_limits]\nshare = 0.9", "missing or empty"),
        ("[limits]\np25_output_tok_s = 0\np95_ttft_s = 2", "above 0, not 0"),
        ("[limits]\np25_output_tok_s = true\np95_ttft_s = 2", "not True"),
        ("[limits]\np25 = 1", "unknown key 'p25'"),
        ("[limit]\n", "unknown key 'limit'"),
        ("[limits]\np25_output_tok_s = 1\np95_ttft_s = 2\n[protocol]\nsettle = 3", "unknown key 'settle'"),
        ("[limits]\np25_output_tok_s = 1\np95_ttft_s = 2\n[protocol]\nsettle_s = 'a'", "protocol.settle_s must be"),
        ("[limits]\np25_output_tok_s = 1\np95_ttft_s = inf", "limits.p95_ttft_s must be a number above 0, not inf"),
        ("[limits]\np25_output_tok_s = nan\np95_ttft_s = 2", "above 0, not nan"),
        (
            "[limits]\np25_output_tok_s = 1\np95_ttft_s = 2\n[protocol]\nramp_per_s = 0",
            "ramp_per_s must be a number above",
        ),
        ("[limits]\np25_output_tok_s = 1\np95_ttft_s = 2\n[protocol]\nmax_phase_s = 60", "alone take 660 s"),
        ("not toml", "not TOML"),
        ('name = "aa-shape-2026-07/20"\n[limits]\np25_output_tok_s = 1\np95_ttft_s = 2', "that no preset has"),
    ],
)
def test_a_bad_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SloFault) as caught:
        load_slos(str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(SloFault, match="aa-shape-2026-07/60"):
        load_slos("aa-shape-2026-07/30")


def test_a_trial_that_met_the_protocol_has_no_unmet_rule() -> None:
    assert unmet_rules(FULL, AS_FULL) == ()
    assert unmet_rules(FULL, replace(AS_FULL, ramp_per_s=None)) == ()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"measure_s": 15.0}, "measured 15 s, the preset asks for 600 s"),
        ({"settle_s": 2.0}, "settled 2 s, the preset asks for 60 s"),
        ({"finished_trajectories": 4}, "4 trajectories finished, the preset asks for 30"),
        ({"finished_per_agent_min": 0}, "the slowest agent finished 0 trajectories, the preset asks for 3"),
        ({"ramp_per_s": 8.0}, "started 8 agents per second, the preset allows 1"),
        ({"start_offset_turns": 0}, "first trajectories start up to 0 turns in, the preset asks for 10"),
        ({"request_timeout_s": 60.0}, "requests time out after 60 s, the preset asks for 300 s"),
    ],
)
def test_each_rule_is_held_against_what_was_measured(change: dict[str, float], sentence: str) -> None:
    assert unmet_rules(FULL, replace(AS_FULL, **change)) == (sentence,)  # type: ignore[arg-type]

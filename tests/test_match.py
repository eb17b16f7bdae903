"""Match: each axis by its own rule, the figures as published, and no score."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib import resources, util
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentdyno import main
from capture.importers.agentperf_local import import_agentperf_local
from curate.frames import frames_of
from curate.match import (
    Figure,
    Match,
    Published,
    PublishedAxis,
    Side,
    agentperf_local_sides,
    match_published,
    match_sessions,
    published,
    sides,
    within,
)
from curate.recipe import Recipe, Statistics
from curate.row import rows_of
from tests.sample_sessions import KEY, content_free_session, make, request, text_session

NO_PLOTS = Recipe(statistics=Statistics(plots=False))


def session(name: str = "s", prompts: tuple[int, ...] = (6000, 27000, 40000), **changes):
    """A content-free session of these prompts, a tool gap of one second before each but the first."""
    return replace(
        content_free_session(),
        session_id=name,
        requests=tuple(
            request(
                n,
                prompt_tokens=tokens,
                gap_us=1_000_000 if n else None,
                reasoning_tokens=5,
                model="kimi-k2.5",
                tools_index=None,
            )
            for n, tokens in enumerate(prompts)
        ),
        harness="opencode",
        **changes,
    )


def sides_of(*sessions) -> dict[str, Side]:
    return sides(frames_of(map(rows_of, sessions)), None)


def verdicts(found: Match) -> dict[str, str]:
    return {axis.name: axis.verdict for axis in found.axes}


def one_axis(ours: Side, *figures: Figure, name: str = "turns") -> str:
    everything = {**sides_of(session()), name: ours}
    found = match_published(
        everything, Published(name="x", as_of="2026", axis=(PublishedAxis(name=name, figure=figures),))
    )
    return verdicts(found)[name]


def figure(statistic, **values) -> Figure:
    return Figure(statistic=statistic, words="w", source="https://example.org", date="2026-07-21", **values)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (Side(n=9, p50=10, p95=20), figure("range", low=10, high=20), "inside"),
        (Side(n=9, p50=10, p95=21), figure("range", low=10, high=20), "outside"),
        (Side(n=9, p50=9, p95=15), figure("range", low=10, high=20), "outside"),
        (Side(n=9, mean=125), figure("mean", value=100), "inside"),
        (Side(n=9, mean=126), figure("mean", value=100), "outside"),
        (Side(n=9, p50=80), figure("p50", value=100), "inside"),
        (Side(n=9, p50=79), figure("p50", value=100), "outside"),
        (Side(n=9, p95=200), figure("max", value=200), "inside"),
        (Side(n=9, p95=201), figure("max", value=200), "outside"),
        (Side(n=9, value=12), figure("at_least", value=12), "inside"),
        (Side(n=9, value=11), figure("at_least", value=12), "outside"),
        (Side(n=9, names={"python": 0.6, "go": 0.4}), figure("most", values=("python",)), "inside"),
        (Side(n=9, names={"go": 0.6, "python": 0.4}), figure("most", values=("python",)), "outside"),
        (Side(n=9, names={"GLM-4.7-FP8": 0.95, "x": 0.05}), figure("all_of", values=("*glm-4.7*",)), "inside"),
        (Side(n=9, names={"GLM-4.7": 0.94, "x": 0.06}), figure("all_of", values=("*glm-4.7*",)), "outside"),
        (Side(), figure("max", value=200), "not known here"),
    ],
)
def test_each_statistic_has_its_rule(ours: Side, theirs: Figure, verdict: str) -> None:
    assert one_axis(ours, theirs) == verdict


def test_an_axis_is_inside_when_all_its_figures_are() -> None:
    low = figure("range", low=1, high=50)
    ours = Side(n=9, p50=10, p95=20, mean=12)
    assert one_axis(ours, low, figure("mean", value=12)) == "inside"
    assert one_axis(ours, low, figure("mean", value=99)) == "outside"


def test_shares_and_zeros_have_a_tolerance_that_fits_them() -> None:
    assert within(0.90, 0.95, "share")
    assert not within(0.89, 0.95, "share")
    assert within(0, 0, "chains")
    assert not within(0, 1, "chains")


def test_the_published_figures_have_sources_dates_and_words() -> None:
    file = published()
    axes = {axis.name: axis.figure for axis in file.axis}
    known = {axis.name for axis in match_published(sides_of(session()), file).axes}
    assert set(axes) <= known
    for figures in axes.values():
        assert figures
        for each in figures:
            assert each.source.startswith("https://")
            assert each.date <= file.as_of
            assert each.words
    isl = {each.statistic: each for each in axes["isl"]}
    assert (isl["range"].low, isl["range"].high, isl["mean"].value) == (5000, 131_000, 27_000)
    assert resources.files("curate").joinpath("data", "agentperf-2026-07.toml").is_file()


def test_sessions_shaped_like_the_published_ones_are_inside() -> None:
    found = match_published(sides_of(session()), published())
    said = verdicts(found)
    assert [said[name] for name in ("isl", "turns", "context_max", "harness", "models", "reasoning", "tool_time")] == [
        "inside"
    ] * 7
    assert said["osl"] == "outside"  # 50 tokens each
    assert said["languages"] == "not known here"
    assert said["cache_share"] == said["subagents"] == "not published"


def test_longer_sessions_by_others_are_outside() -> None:
    long = replace(session(prompts=(100_000, 150_000, 200_000)), harness="codex")
    said = verdicts(match_published(sides_of(long), published()))
    assert [said[name] for name in ("isl", "context_max", "harness")] == ["outside"] * 3


def test_there_is_no_score() -> None:
    assert {field.name for field in fields(Match)} == {"against", "as_of", "rule", "axes"}


def test_two_sets_of_sessions_are_compared_axis_by_axis() -> None:
    ours = sides_of(session("a"), session("b"))
    near = sides_of(session("c", prompts=(6500, 26000, 39000)))
    far = sides_of(session("d", prompts=(60, 270, 400, 500), human_us=5))
    said = verdicts(match_sessions(ours, near, "near"))
    assert {said[name] for name in ("isl", "osl", "turns", "context_max", "harness", "models")} == {"inside"}
    said = verdicts(match_sessions(ours, far, "far"))
    assert [said[name] for name in ("isl", "turns", "osl")] == ["outside", "outside", "inside"]
    assert said["human_time"] == "not published"
    other = replace(session("e"), harness="codex[1]")
    assert verdicts(match_sessions(sides_of(other), sides_of(other), "x"))["harness"] == "inside"
    assert verdicts(match_sessions(sides_of(other), ours, "x"))["harness"] == "outside"


def test_tool_time_is_that_of_tool_gaps_alone() -> None:
    human = replace(session("h"), requests=(request(0), request(1, gap_kind="human", gap_us=9, think_us=9)))
    assert sides_of(human)["tool_time"] == Side()
    assert sides_of(session())["tool_time"].p50 == pytest.approx(1.0)


def test_markup_does_not_count_as_a_language() -> None:
    text = sides(frames_of([rows_of(text_session())]), None)["languages"]
    assert (text.names, text.value) == ({"python": 1.0}, 1.0)
    frames = frames_of([rows_of(text_session())])
    import polars as pl

    mixed = replace(
        frames,
        sessions=frames.sessions.with_columns(
            lang_mix=pl.Series([[{"lang": "markdown", "share": 0.75}, {"lang": "python", "share": 0.25}]])
        ),
    )
    found = sides(mixed, None)
    assert (list(found["languages"].names or ()), found["languages"].value) == (["markdown", "python"], 1.0)
    said = match_published({**sides_of(session()), "languages": found["languages"]}, published())
    (axis,) = [axis for axis in said.axes if axis.name == "languages"]
    assert [(check.ours, check.inside) for check in axis.checks] == [("1", False), ("python", True)]


@pytest.mark.skipif(util.find_spec("agentperf_local") is None, reason="agentperf-local is not installed")
def test_the_replays_of_the_installed_package_are_the_other_side() -> None:
    """The figures are those of its 168 turns: median prompt 11,884.5, output 73, growth 421.5 tokens."""
    theirs = agentperf_local_sides()
    assert (theirs["isl"].n, theirs["isl"].p50, theirs["osl"].p50) == (168, 11_884.5, 73)
    assert theirs["growth"].p50 == 421.5
    mine = sides_of(*import_agentperf_local(None, KEY).trajectories)
    assert set(verdicts(match_sessions(mine, theirs, "itself")).values()) <= {"inside", "not published"}


def test_a_missing_package_is_a_sentence_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make([text_session()], tmp_path / "d", recipe=NO_PLOTS)
    monkeypatch.setattr("capture.importers.agentperf_local.PACKAGE", "no_such_package")
    said = CliRunner().invoke(main, ["curate", "match", str(tmp_path / "d"), "--against", "agentperf-local"])
    assert said.exit_code == 3
    assert "agentperf-local is not installed" in said.stderr


def test_the_command_reports_and_always_ends_well(tmp_path: Path) -> None:
    make([text_session()], tmp_path / "d", recipe=NO_PLOTS)
    make([session()], tmp_path / "other", recipe=NO_PLOTS)
    said = CliRunner().invoke(main, ["curate", "match", str(tmp_path / "d"), "--against", "agentperf"])
    assert said.exit_code == 0
    assert "source: https://artificialanalysis.ai/methodology/agentperf (2026-07-21)" in said.stdout
    told = CliRunner().invoke(
        main, ["curate", "match", str(tmp_path / "d"), "--against", str(tmp_path / "other"), "--json"]
    )
    assert told.exit_code == 0
    found = json.loads(told.stdout)
    assert found["against"] == "other"
    assert {axis["verdict"] for axis in found["axes"]} <= {"inside", "outside", "not published", "not known here"}
    none = CliRunner().invoke(main, ["curate", "match", str(tmp_path / "d"), "--against", "aa"])
    assert (none.exit_code, "no such folder" in none.stderr) == (2, True)

"""Percentiles are numpy's, counters are never mixed, and Weka inputs come out as the files say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agentdyno import main
from capture.importers.weka import import_weka
from capture.trajectory import Trajectory
from curate.cache import DistinctSample, ideal_cache
from curate.card import card
from curate.distribution import PERCENTILES, describe, histogram_edges, percentile
from curate.frames import frames_of, read_frames
from curate.manifest import DatasetFault, Drop, read_manifest
from curate.measurement import PARTS_DESCRIBED, measure
from curate.quantities import Quantity, best_counted
from curate.recipe import Recipe, Splits, Statistics, read_recipe
from curate.row import rows_of
from curate.stats import Stats, compute_stats, read_stats
from curate.tally import tally
from tests.sample_sessions import KEY, content_free_session, make, request, text_session
from tests.test_row import WordCounter

numbers = st.lists(st.floats(-1e12, 1e12) | st.integers(-(10**12), 10**12), min_size=1, max_size=60)
NO_PLOTS = Recipe(statistics=Statistics(plots=False))


def built(
    sessions: Iterable[Trajectory], out: Path, problems: tuple[str, ...] = (), recipe: Recipe = NO_PLOTS
) -> Stats:
    make(sessions, out, problems=problems, recipe=recipe)
    return read_stats(out)


def quantities(*sessions: Trajectory, by: tuple[str, ...] = ()) -> dict[str, Quantity]:
    """Quantities of sessions, our own counts in words."""
    counter = WordCounter()
    frames = frames_of(rows_of(session, tally(session, counter)) for session in sessions)
    return measure(frames, ideal_cache(frames), by=by, tokenizer="words").quantities


def requests_only(*requests, **changes) -> Trajectory:
    """A session without text, of these requests."""
    return replace(content_free_session(), requests=tuple(requests), **changes)


@pytest.fixture(scope="module")
def weka_stats(tmp_path_factory: pytest.TempPathFactory, weka_traces: Path) -> Stats:
    return built(import_weka([weka_traces], KEY).trajectories, tmp_path_factory.mktemp("weka") / "d")


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sessions with text, of 1 to 3 turns and one sub-agent each, and a content-free one of 3 turns."""
    out = tmp_path_factory.mktemp("small") / "d"
    built(
        [*(text_session(f"s{n}", turns=n) for n in (1, 2, 3)), content_free_session()],
        out,
        ("shelf: x.json is damaged",),
    )
    return out


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Stats:
    return read_stats(small_folder)


@given(numbers, st.floats(0, 100))
def test_percentiles_are_numpys_linear_ones(values: list[float], p: float) -> None:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    expected = np.percentile(ordered, p, method="linear")
    assert percentile(ordered, p) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert ordered[0] <= percentile(ordered, p) <= ordered[-1]


@given(numbers)
def test_a_description_counts_every_value_once(values: list[float]) -> None:
    found = describe([*values, None, math.nan])
    assert (found.n, found.null_count) == (len(values), 2)
    assert found.histogram is not None
    assert sum(found.histogram.counts) == len(values)
    assert found.histogram.edges[0] <= min(values)
    assert found.histogram.edges[-1] >= max(values)
    assert list(found.histogram.edges) == sorted(set(found.histogram.edges))
    assert found.mean == pytest.approx(math.fsum(values) / len(values))
    shown = [found.min, *(getattr(found, f"p{p}") for p in PERCENTILES), found.max]
    assert shown == sorted(shown)


@given(numbers)
def test_a_histogram_counts_what_lies_between_its_edges(values: list[float]) -> None:
    histogram = describe(values).histogram
    assert histogram is not None
    for below, above, n in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        assert n == sum(below <= value < above for value in values)


def test_nothing_known_is_described_as_nothing() -> None:
    found = describe([None, None])
    assert (found.n, found.null_count, found.min, found.p50, found.mean, found.histogram) == (0, 2, *[None] * 4)


@pytest.mark.parametrize(
    ("low", "high", "edges"),
    [
        (0, 7, [0, 1, 2, 5, 10]),
        (30, 900, [20, 50, 100, 200, 500, 1000]),
        (5, 5, [5, 10]),
        (1, 1, [1, 2]),
        (0, 0, [0, 1]),
        (-3, 2, [-5, -2, -1, 0, 1, 2, 5]),
    ],
    ids=["from zero", "only what is needed", "one value on an edge", "only ones", "only zeros", "negative"],
)
def test_edges_are_those_of_every_dataset(low: float, high: float, edges: list[float]) -> None:
    found = histogram_edges(low, high)
    assert found == edges
    assert found[0] <= low <= high < found[-1]


def test_shares_have_linear_edges() -> None:
    found = describe([0.0, 0.5, 1.0], share=True).histogram
    assert found is not None
    assert (found.edges[0], found.edges[1], found.edges[-1]) == (0, 0.05, 1)
    assert sum(found.counts) == 3
    assert found.counts[-1] == 1  # the last bin holds its upper edge


def test_percentiles_of_weka_inputs_are_those_of_the_files(weka_stats: Stats, weka_traces: Path) -> None:
    inputs, outputs, longest, per_session, by_model = [], [], [], [], {}
    for path in weka_traces.glob("trace_*.json"):
        calls = []
        for entry in json.loads(path.read_text())["requests"]:
            calls += entry["requests"] if entry["type"] == "subagent" else [entry]
        inputs += [call["in"] for call in calls]
        outputs += [call["out"] for call in calls]
        longest.append(max(call["in"] for call in calls))
        per_session.append(len(calls))
        for call in calls:
            by_model.setdefault(call["model"], []).append(call["in"])
    for name, values in (
        ("prompt_tokens_cl100k_base", inputs),
        ("completion_tokens_cl100k_base", outputs),
        ("context_max_tokens_cl100k_base", longest),
        ("requests_per_session", per_session),
    ):
        found = weka_stats.quantities[name].all
        assert (found.n, found.null_count) == (len(values), 0)
        assert (found.min, found.max) == (min(values), max(values))
        assert found.mean == pytest.approx(np.mean(values))
        for p in PERCENTILES:
            assert getattr(found, f"p{p}") == pytest.approx(np.percentile(values, p))
    found_models = weka_stats.quantities["prompt_tokens_cl100k_base"].by["model"]
    assert {model: part.n for model, part in found_models.items()} == {m: len(v) for m, v in by_model.items()}
    assert all(part.p50 == pytest.approx(np.median(by_model[model])) for model, part in found_models.items())
    assert [total.counted_by for total in weka_stats.tokens] == ["cl100k_base"]
    assert weka_stats.tokens[0].prompt_tokens == sum(inputs)


def test_reuse_of_weka_prompts_is_what_their_hashes_say(weka_stats: Stats, weka_traces: Path) -> None:
    """Against sets, block by block, over all requests of a file in order of sending."""
    reused = blocks = 0
    for session in import_weka([weka_traces], KEY).trajectories:
        seen: set[int] = set()
        for each in session.requests:
            hashes = each.block_hashes or ()
            blocks += len(hashes)
            reused += next((at for at, block in enumerate(hashes) if block not in seen), len(hashes))
            seen.update(hashes)
    assert weka_stats.cache.blocks == blocks
    assert weka_stats.cache.session_share == pytest.approx(reused / blocks)
    assert weka_stats.cache.release_share is None  # their hashes compare within a session only
    assert weka_stats.cache.measured_share is None  # and no provider told its own


def test_quantities_of_known_sessions(small: Stats) -> None:
    def of(name: str):
        return small.quantities[name].all

    assert small.rows == {"sessions": 4, "requests": 12, "tool_calls": 6}
    assert (of("requests_per_session").min, of("requests_per_session").max) == (2, 4)
    assert (of("turns_per_session").min, of("turns_per_session").max) == (1, 3)
    assert (of("peak_concurrency").min, of("peak_concurrency").max) == (1, 2)  # the sub-agent overlaps the first turn
    assert (of("ttft_us").min, of("ttft_us").max, of("ttft_us").null_count) == (200_000, 200_000, 0)
    assert (of("user_messages_per_session").n, of("user_messages_per_session").null_count) == (3, 1)
    # two calls of six have no result yet; three more sessions' last calls neither
    assert (of("tool_wall_us").n, of("tool_wall_us").null_count) == (3, 3)
    assert set(small.quantities["tool_wall_us"].by["kind"]) == {"exec"}
    assert {kind: part.n for kind, part in small.quantities["gap_us"].by["kind"].items()} == {
        "none": 0,
        "spawn": 0,
        "tool": 5,
    }
    assert of("human_gap_us").n == 0
    assert small.quantities["cache_read_share"].all.max == pytest.approx(2000 / 3000)
    assert set(small.quantities["prompt_tokens"].by["model"]) == {"model-a", "model-b"}
    (provider, own) = small.tokens
    assert (provider.counted_by, provider.own, provider.reasoning_tokens) == ("provider", False, None)
    assert (own.counted_by, own.own, own.completion_tokens) == ("o200k_base", True, None)


def test_quantities_by_hand() -> None:
    """Three turns: prompts 1000, 3000, 2000; two of them overlap by a second; sums in seconds."""
    second = 1_000_000
    session = requests_only(
        request(0, t_send_us=0, t_end_us=2 * second, prompt_tokens=1000, block_hashes=(1, 2), cache_read_tokens=0),
        request(
            1,
            t_send_us=second,
            t_end_us=4 * second,
            prompt_tokens=3000,
            block_hashes=(1, 2, 3, 4),
            cache_read_tokens=1500,
            t_first_token_us=2 * second,
            t_last_token_us=3 * second,
            completion_tokens=101,
            retry_of=0,
            error="overloaded",
        ),
        request(
            2,
            t_send_us=8 * second,
            t_end_us=10 * second,
            prompt_tokens=2000,
            block_hashes=(1, 9),
            cache_read_tokens=None,
            reasoning_tokens=40,  # not streamed: its time is not in the window
            permission_us=3 * second,
            itl_us=(5, 7, 90),
        ),
        duration_us=10 * second,
        api_us=6 * second,
        contributor="anna",
        contributor_peak_agents=3,
        peak_agents=2,
    )
    other = replace(session, session_id="other", contributor_peak_agents=4)
    found = quantities(session, other)

    def values(name: str) -> tuple[float | None, float | None, int]:
        return found[name].all.min, found[name].all.max, found[name].all.n

    assert values("context_first_tokens") == (1000, 1000, 2)
    assert values("context_last_tokens") == (2000, 2000, 2)
    assert values("context_max_tokens") == (3000, 3000, 2)
    assert values("context_growth_ratio") == (3, 3, 2)
    assert values("growth_tokens") == (-1000, 2000, 4)
    assert values("peak_concurrency") == (2, 2, 2)
    assert values("mean_concurrency") == (0.7, 0.7, 2)  # 2 + 3 + 2 seconds of 10
    assert values("duty_cycle") == (0.6, 0.6, 2)
    assert values("active_agents_per_contributor") == (4, 4, 1)
    assert values("peak_agents") == (2, 2, 2)
    assert values("errors_per_session") == (1, 1, 2)
    assert values("retries_per_session") == (1, 1, 2)
    assert values("cache_read_share") == (0, 0.5, 4)
    assert values("ideal_cache_share_chain") == (0, 0.5, 6)
    assert values("permission_us") == (3 * second, 3 * second, 2)
    assert found["itl_us"].all.min == 7
    speed = found["output_tokens_per_second"].all
    assert (speed.n, speed.max, speed.null_count) == (4, 100, 2)  # (101 − 1) in one second; the third has hidden time


def test_what_different_counters_said_is_never_in_one_percentile() -> None:
    """Three sources count the same prompt differently; the wire session is counted by us as well."""
    wire = text_session("wire", turns=1)
    sessions = [
        wire,
        requests_only(request(0, prompt_tokens=7), session_id="log", token_source="agent"),
        requests_only(request(0, prompt_tokens=70), session_id="a", token_source="tokenizer", tokenizer="gpt-2"),
        requests_only(request(0, prompt_tokens=700), session_id="b", token_source="tokenizer", tokenizer="qwen 3/8b"),
        requests_only(request(0, prompt_tokens=None), session_id="n", token_source="none"),
    ]
    found = quantities(*sessions)
    told = {
        name: (each.counted_by, each.all.n, each.all.min)
        for name, each in found.items()
        if name.startswith("prompt_tokens") and each.all.n
    }
    known = [each.prompt_tokens for each in wire.requests if each.prompt_tokens is not None]
    assert told["prompt_tokens"] == ("provider", len(known), min(known))
    assert told["prompt_tokens_agent"] == ("agent", 1, 7)
    assert told["prompt_tokens_gpt_2"] == ("gpt-2", 1, 70)
    assert told["prompt_tokens_qwen_3_8b"] == ("qwen 3/8b", 1, 700)
    assert told["prompt_tokens_est"][:2] == ("words", len(wire.requests))
    assert len(told) == 5
    assert best_counted(found, "prompt_tokens") == ("prompt_tokens", found["prompt_tokens"])


def test_a_session_takes_its_contexts_from_one_counter() -> None:
    """A failed call without usage is unknown: our estimate is no stand-in beside what the provider counted."""
    session = text_session(turns=3)
    first, *rest = session.requests
    silent = replace(session, requests=(replace(first, prompt_tokens=None), *rest))
    row = rows_of(silent, tally(silent, WordCounter())).session
    assert row["context_tokens_first"] == 2000
    none = replace(session, requests=tuple(replace(each, prompt_tokens=None) for each in session.requests))
    ours = rows_of(none, tally(none, WordCounter()))
    assert ours.session["prompt_tokens_total"] is None
    assert ours.session["context_tokens_first"] == ours.requests[0]["prompt_tokens_est"]


def test_an_estimate_stands_in_only_where_it_knows_far_more() -> None:
    counted = [
        requests_only(*(request(n) for n in range(3)), session_id="counted", contributor=None),
        *(
            replace(
                text_session(f"t{n}", turns=9),
                token_source="none",
                requests=tuple(replace(each, prompt_tokens=None) for each in text_session(turns=9).requests),
            )
            for n in range(1)
        ),
    ]
    best = best_counted(quantities(*counted), "prompt_tokens")
    assert best is not None
    assert best[0] == "prompt_tokens_est"
    assert best_counted(quantities(counted[0]), "human_gap_us") is None


def test_parts_hold_the_most_frequent_names_and_all_their_rows() -> None:
    sessions = [
        requests_only(*(request(k, model=f"m{n:02}") for k in range(n + 1)), session_id=f"s{n:02}", harness=f"h{n % 2}")
        for n in range(PARTS_DESCRIBED + 3)
    ]
    found = quantities(*sessions, by=("model", "harness", "contributor"))["prompt_tokens"]
    assert len(found.by["model"]) == PARTS_DESCRIBED
    assert found.by["model"]["m10"].n == 11
    assert "m00" not in found.by["model"]
    assert found.by["harness"]["h0"].n + found.by["harness"]["h1"].n == found.all.n
    assert found.by["contributor"] == {}


def test_an_unknown_part_is_refused(small_folder: Path) -> None:
    manifest = read_manifest(small_folder)
    with pytest.raises(DatasetFault, match=r"unknown part 'weather'; known are model, harness"):
        compute_stats(read_frames(small_folder, manifest), manifest, by=("weather",))


@given(st.lists(st.lists(st.integers(1, 6), max_size=5), max_size=8))
def test_reuse_is_the_longest_known_head(prompts: list[list[int]]) -> None:
    """Against a plain count with one set, for hashes that need not chain."""
    session = requests_only(*(request(n, block_hashes=tuple(blocks)) for n, blocks in enumerate(prompts)))
    if not prompts:
        session = requests_only(request(0, block_hashes=None))
    found = ideal_cache(frames_of([rows_of(session)]))
    seen: set[int] = set()
    expected = []
    for blocks in prompts or [[]]:
        head = next((at for at, block in enumerate(blocks) if block not in seen), len(blocks))
        expected.append(head / len(blocks) if blocks else math.nan)
        seen.update(blocks)
    np.testing.assert_array_equal(found.session, expected)
    np.testing.assert_array_equal(found.chain, expected)


def test_a_release_computes_each_distinct_block_once() -> None:
    shared = [
        requests_only(
            request(0, block_hashes=(1, 2, 10 + n)), request(1, block_hashes=(1, 2, 10 + n, 20 + n)),
            session_id=f"s{n}", hash_scope="release",
        )
        for n in range(4)
    ]  # fmt: skip
    apart = requests_only(request(0, block_hashes=(1, 2, 10)), session_id="apart", hash_scope="session")
    total = ideal_cache(frames_of(map(rows_of, [*shared, apart]))).total
    assert (total.blocks, total.release_blocks, total.requests) == (31, 28, 9)
    assert total.release_share == pytest.approx(1 - 10 / 28)  # 1, 2 and two more for each of four sessions
    assert total.session_share == pytest.approx(12 / 31)
    assert not total.release_is_estimate


def test_distinct_hashes_are_counted_in_bounded_memory() -> None:
    exact, sampled = DistinctSample(), DistinctSample(held=1 << 12)
    for start in range(0, 100_000, 5_000):
        hashes = np.arange(start, start + 10_000, dtype=np.uint64)
        exact.add(hashes)
        sampled.add(hashes)
    assert (exact.count, exact.is_estimate) == (105_000, False)
    assert sampled.is_estimate
    assert sampled.count == pytest.approx(105_000, rel=0.05)


def test_the_rest_of_the_statistics(small: Stats) -> None:
    assert (small.funnel.read, small.funnel.kept) == (5, 4)
    (step,) = small.funnel.stages
    assert (step.stage, step.left_out, step.kept) == ("read", 1, 4)
    assert step.reasons == (Drop(stage="read", reason="shelf: x.json is damaged", n=1),)
    assert {(share.value, share.source, share.sessions) for share in small.licenses} == {
        (None, "wire", 3),
        ("Apache-2.0", "weka", 1),
    }
    assert {(share.value, share.source, share.sessions) for share in small.harnesses} == {
        ("codex 1.2.3", "wire", 3),
        ("codex 1.2.3", "weka", 1),
    }
    assert small.models == {"model-a": 9, "model-b": 3}
    assert small.languages == {"python": 1.0}
    assert small.language_sessions == 3
    assert small.outcomes == {"unknown": 4}
    assert (small.tier, small.sessions_with_text, small.complete_sessions) == ("full", 3, 4)
    assert small.splits == {"train": small.rows}
    assert small.tokenizer == "o200k_base"
    assert small.tokenizer_sha is not None
    assert {entry.path.split("/")[1] for entry in small.shards} == {"sessions", "requests", "tool_calls"}
    assert {"agentdyno", "python", "pyarrow", "altair"} <= set(small.software)
    assert small.drift is None


def test_the_funnel_goes_stage_by_stage(small_folder: Path) -> None:
    manifest = read_manifest(small_folder)
    drops = (
        Drop(stage="sample", reason="not drawn", n=2),
        Drop(stage="filter", reason="few turns", n=1),
        Drop(stage="filter", reason="no consent", n=4),
        Drop(stage="withdrawn", reason="withdrawn", n=1),
        Drop(stage="read", reason="damaged", n=3),
    )
    stats = compute_stats(read_frames(small_folder, manifest), replace(manifest, drops=drops))
    assert [(step.stage, step.left_out, step.kept) for step in stats.funnel.stages] == [
        ("read", 3, 12),
        ("filter", 5, 7),
        ("sample", 2, 5),
        ("withdrawn", 1, 4),
    ]
    assert [reason.reason for reason in stats.funnel.stages[1].reasons] == ["no consent", "few turns"]
    assert (stats.funnel.read, stats.withdrawals) == (15, 1)


def test_splits_are_counted_apart(tmp_path: Path) -> None:
    recipe = replace(NO_PLOTS, splits=Splits(shares={"train": 0.5, "test": 0.5}))
    stats = built([text_session(f"s{n}", turns=1) for n in range(12)], tmp_path / "d", recipe=recipe)
    assert set(stats.splits) == {"train", "test"}
    assert sum(rows["sessions"] for rows in stats.splits.values()) == 12


def test_auxiliary_calls_are_rows_but_no_turns() -> None:
    session = text_session(turns=2)
    probe = replace(session.requests[1], request_index=9, kind="auxiliary", agent_path="side/1", prompt_tokens=3)
    found = quantities(replace(session, requests=(*session.requests, probe)))
    # The sub-agent's prompt is known by our count only: it is unknown here, not estimated.
    assert (found["prompt_tokens"].all.n, found["prompt_tokens"].all.null_count) == (2, 1)
    assert found["prompt_tokens"].all.min == 1000
    assert found["prompt_tokens_est"].all.n == 3
    assert found["turns_per_session"].all.max == 2
    assert found["requests_per_session"].all.max == 4


def test_tables_alone_are_described_too(small_folder: Path) -> None:
    """`requests` and `tool_calls` without `sessions`, and no column of text."""
    manifest = read_manifest(small_folder)
    alone = replace(
        manifest,
        tier="content-free",
        rows={name: n for name, n in manifest.rows.items() if name != "sessions"},
        shards=tuple(
            replace(shard, files={name: entry for name, entry in shard.files.items() if name != "sessions"})
            for shard in manifest.shards
        ),
    )
    stats = compute_stats(read_frames(small_folder, alone), alone)
    whole = read_stats(small_folder)
    assert stats.funnel.kept == 4
    assert stats.sessions_with_text == 0
    assert stats.quantities["ttft_us"].all == whole.quantities["ttft_us"].all
    assert stats.quantities["turns_per_session"].all == whole.quantities["turns_per_session"].all
    assert stats.quantities["session_duration_us"].all.n == 0
    text = card(stats, (), manifest.recipe)
    assert "config_name: sessions" not in text
    assert "4 recorded sessions of coding agents" in text


def test_missing_and_spoiled_statistics_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetFault, match="is missing"):
        read_stats(tmp_path)
    (tmp_path / "stats.json").write_text("{}")
    with pytest.raises(DatasetFault, match="cannot be read"):
        read_stats(tmp_path)


def test_the_command_prints_numbers_parts_and_json(small_folder: Path) -> None:
    said = CliRunner().invoke(main, ["curate", "stats", str(small_folder)])
    assert said.exit_code == 0
    assert "prompt_tokens_est" in said.stdout
    assert "unknown here: " in said.stdout
    parts = CliRunner().invoke(main, ["curate", "stats", str(small_folder), "--by", "source"])
    assert "  weka" in parts.stdout
    told = CliRunner().invoke(main, ["curate", "stats", str(small_folder), "--json", "--by", "source"])
    assert set(json.loads(told.stdout)["quantities"]["ttft_us"]["by"]) == {"source"}
    wrong = CliRunner().invoke(main, ["curate", "stats", str(small_folder), "--by", "weather"])
    assert (wrong.exit_code, "unknown part 'weather'" in wrong.stderr) == (2, True)


def test_a_recipe_names_parts_that_there_are(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[statistics]\nby = ["model", "language", "split"]\n')
    assert read_recipe(file).recipe.statistics.by == ("model", "language", "split")
    file.write_text('[statistics]\nby = ["weather"]\n')
    with pytest.raises(ValueError, match=r"\[statistics\] by takes model, harness, .*, not weather"):
        read_recipe(file)


def test_a_name_in_square_brackets_is_no_markup(tmp_path: Path) -> None:
    session = content_free_session()
    models = ("[bold]m[/red]", "")
    requests = (replace(each, model=models[n % 2]) for n, each in enumerate(session.requests))
    built([replace(session, requests=tuple(requests))], tmp_path / "d")
    said = CliRunner().invoke(main, ["curate", "stats", str(tmp_path / "d"), "--by", "model"])
    assert said.exception is None
    assert "  [bold]m[/red] " in said.stdout
    assert "  not named " in said.stdout
    told = CliRunner().invoke(main, ["curate", "match", str(tmp_path / "d"), "--against", str(tmp_path / "d")])
    assert told.exception is None

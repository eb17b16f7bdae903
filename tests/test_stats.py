"""Percentiles are numpy's, histograms count everything once, and Weka inputs come out as the files say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.importers.weka import import_weka
from curate.build import Source, build_sources
from curate.distribution import PERCENTILES, describe, histogram_edges, percentile
from curate.manifest import DatasetFault
from curate.redact import Redactor
from curate.stats import Stats, read_stats
from tests.sample_sessions import content_free_session, text_session

KEY = b"k" * 32
numbers = st.lists(st.floats(-1e12, 1e12) | st.integers(-(10**12), 10**12), min_size=1, max_size=60)


def built(sessions, out: Path, problems: tuple[str, ...] = ()) -> Stats:
    def read(found: list[str]):
        yield from sessions
        found.extend(problems)

    source = Source(store_id="s", sessions=read, redactor=Redactor(key=KEY), rules="")
    build_sources([source], out, tokenizer="o200k_base", jobs=1)
    return read_stats(out)


@pytest.fixture(scope="module")
def weka_stats(tmp_path_factory: pytest.TempPathFactory, weka_traces: Path) -> Stats:
    return built(import_weka([weka_traces], KEY).trajectories, tmp_path_factory.mktemp("weka") / "d")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Stats:
    """Three sessions with text, of 1 to 3 turns and one sub-agent each, and a content-free one of 3 turns."""
    sessions = [*(text_session(f"s{n}", turns=n) for n in (1, 2, 3)), content_free_session()]
    return built(sessions, tmp_path_factory.mktemp("small") / "d", ("shelf: x.json is damaged",))


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


def test_nothing_known_is_described_as_nothing() -> None:
    found = describe([None, None])
    assert (found.n, found.null_count, found.min, found.p50, found.mean, found.histogram) == (0, 2, *[None] * 4)


@pytest.mark.parametrize(
    ("low", "high", "edges"),
    [
        (0, 7, [0, 1, 2, 5, 10]),
        (30, 900, [20, 50, 100, 200, 500, 1000]),
        (5, 5, [2, 5]),
        (0, 0, [0, 1]),
        (-3, 2, [-5, -2, -1, 0, 1]),
    ],
    ids=["from zero", "only what is needed", "one value on an edge", "only zeros", "negative"],
)
def test_edges_are_those_of_every_dataset(low: float, high: float, edges: list[float]) -> None:
    found = histogram_edges(low, high)
    assert found[: len(edges)] == edges
    assert found[0] <= low <= high <= found[-1]


def test_shares_have_linear_edges() -> None:
    found = describe([0.0, 0.5, 1.0], share=True).histogram
    assert found is not None
    assert (found.edges[0], found.edges[1], found.edges[-1]) == (0, 0.05, 1)
    assert sum(found.counts) == 3


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
        ("input_tokens", inputs),
        ("output_tokens", outputs),
        ("context_max_tokens", longest),
        ("requests_per_session", per_session),
    ):
        found = weka_stats.quantities[name].all
        assert (found.n, found.null_count) == (len(values), 0)
        assert (found.min, found.max) == (min(values), max(values))
        assert found.mean == pytest.approx(np.mean(values))
        for p in PERCENTILES:
            assert getattr(found, f"p{p}") == pytest.approx(np.percentile(values, p))
    found_models = weka_stats.quantities["input_tokens"].by_model
    assert {model: part.n for model, part in found_models.items()} == {m: len(v) for m, v in by_model.items()}
    assert all(part.p50 == pytest.approx(np.median(by_model[model])) for model, part in found_models.items())


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
    assert set(small.quantities["tool_wall_us"].by_kind) == {"exec"}
    assert {kind: part.n for kind, part in small.quantities["gap_us"].by_kind.items()} == {
        "none": 0,
        "spawn": 0,
        "tool": 5,
    }
    assert of("human_gap_us").n == 0
    share = small.quantities["cache_read_share"]
    assert share.all.max == pytest.approx(2000 / 3000)
    assert set(small.quantities["input_tokens"].by_model) == {"model-a", "model-b"}
    assert small.totals["reasoning_tokens"] is None


def test_the_rest_of_the_statistics(small: Stats) -> None:
    assert small.funnel.read == 5
    assert small.funnel.kept == 4
    assert [(reason.reason, reason.n) for reason in small.funnel.dropped] == [("shelf: x.json is damaged", 1)]
    assert {(share.value, share.source, share.sessions) for share in small.licenses} == {
        (None, "wire", 3),
        ("Apache-2.0", "weka", 1),
    }
    assert [(share.value, share.sessions) for share in small.harnesses] == [("codex 1.2.3", 1), ("codex 1.2.3", 3)] or [
        (share.value, share.sessions) for share in small.harnesses
    ] == [("codex 1.2.3", 3), ("codex 1.2.3", 1)]
    assert small.models == {"model-a": 9, "model-b": 3}
    assert small.languages == {"python": 1.0}
    assert small.tokenizer == "o200k_base"
    assert small.tokenizer_sha is not None
    assert {entry.path.split("/")[1] for entry in small.shards} == {"sessions", "requests", "tool_calls"}
    assert {"agentdyno", "python", "pyarrow"} <= set(small.software)


def test_auxiliary_calls_are_rows_but_no_turns(tmp_path: Path) -> None:
    from dataclasses import replace

    session = text_session(turns=2)
    probe = replace(session.requests[1], request_index=9, kind="auxiliary", agent_path="side/1", prompt_tokens=3)
    found = built([replace(session, requests=(*session.requests, probe))], tmp_path / "d")
    assert found.rows["requests"] == 4
    assert found.quantities["input_tokens"].all.n == 3
    assert found.quantities["turns_per_session"].all.max == 2


def test_missing_and_spoiled_statistics_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetFault, match="is missing"):
        read_stats(tmp_path)
    (tmp_path / "stats.json").write_text("{}")
    with pytest.raises(DatasetFault, match="cannot be read"):
        read_stats(tmp_path)

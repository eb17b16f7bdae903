"""A sample is spread as asked, the same for every order of reading, and says of each session why it is left out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.features import Features, sample_value
from curate.manifest import DatasetFault
from curate.recipe import Sample
from curate.row import Rows
from curate.sample import bins, draw


def feature(name: str, value: float | str | None = None) -> Features:
    return Features(
        session_id=name,
        split="train",
        requests=1,
        t0_utc_us=None,
        exact_key=name,
        heads=b"",
        minhash=None,
        sample_value=value,
    )


def test_without_a_sample_everything_stays() -> None:
    assert draw([feature("a"), feature("b")], Sample()) == {}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.randoms())
def test_an_even_draw_keeps_so_many_whatever_the_order(there: int, asked: int, seed: int, random) -> None:  # type: ignore[no-untyped-def]
    features = [feature(f"s{n}") for n in range(there)]
    left_out = draw(features, Sample(sessions=asked, seed=seed))
    assert len(left_out) == max(0, there - asked)
    assert set(left_out.values()) <= {f"over the {asked} sessions of the sample"}
    random.shuffle(features)
    assert draw(features, Sample(sessions=asked, seed=seed)) == left_out


COUNTS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 10)), min_size=1, max_size=5)


@given(COUNTS, st.one_of(st.none(), st.integers(1, 120)), st.integers(0, 3))
def test_shares_hold_within_one_session(counts: list[tuple[int, int]], sessions: int | None, seed: int) -> None:
    whole = sum(weight for _, weight in counts)
    shares = tuple(weight / whole for _, weight in counts)
    sample = Sample(by="num_requests", edges=tuple(range(len(counts) + 1)), shares=shares, sessions=sessions, seed=seed)
    features = [feature(f"{place}-{n}", place) for place, (there, _) in enumerate(counts) for n in range(there)]
    left_out = draw(features, sample)
    kept = Counter(each.sample_value for each in features if each.session_id not in left_out)
    total = kept.total()
    assert total >= 1
    if sessions is not None:
        assert total <= sessions
    for place, share in enumerate(shares):
        assert abs(kept[place] - share * total) < 1
    # It shrinks no further than the scarcest bin demands.
    fits = min(there / share for (there, _), share in zip(counts, shares, strict=True))
    assert total >= int(min(fits, sessions or fits) * (1 - 1e-9)) - 1e-6
    assert draw(features[::-1], sample) == left_out


@given(COUNTS, st.one_of(st.none(), st.integers(1, 60)), st.data())
def test_a_session_that_comes_later_displaces_at_most_one(
    counts: list[tuple[int, int]], sessions: int | None, data: st.DataObject
) -> None:
    whole = sum(weight for _, weight in counts)
    shares = tuple(weight / whole for _, weight in counts)
    sample = Sample(by="num_requests", edges=tuple(range(len(counts) + 1)), shares=shares, sessions=sessions)
    features = [feature(f"{place}-{n}", place) for place, (there, _) in enumerate(counts) for n in range(there)]
    before = {each.session_id for each in features} - draw(features, sample).keys()
    more = [*features, feature("late", data.draw(st.integers(0, len(counts) - 1)))]
    after = {each.session_id for each in more} - draw(more, sample).keys()
    assert len(before - after) <= ("late" in after)


def test_thirds_are_thirds() -> None:
    sample = Sample(by="harness", values=("x", "y", "z"), shares=(0.333333, 0.333333, 0.333334))
    assert draw([feature(f"{name}-{n}", name) for name in "xyz" for n in range(7)], sample) == {}


def test_decimals_are_the_ones_that_were_written() -> None:
    sample = Sample(by="num_requests", edges=(0, 1, 2, 3), shares=(0.3, 0.5, 0.2))
    features = [feature(f"{place}-{n}", place) for place in range(3) for n in (range(3), range(9), range(9))[place]]
    left_out = draw(features, sample)
    kept = Counter(each.sample_value for each in features if each.session_id not in left_out)
    assert kept == {0: 3, 1: 5, 2: 2}  # .3 of ten is three, not two and a rest


def test_reasons_name_the_bin_or_what_is_unknown() -> None:
    sample = Sample(by="context_tokens_max", edges=(0, 16000, 64000.5), shares=(0.5, 0.5))
    features = [
        *(feature(f"short-{n}", 100 + n) for n in range(3)),
        feature("edge", 64000.5),
        feature("beyond", 64001),
        feature("nothing"),
    ]
    left_out = draw(features, sample)
    assert Counter(left_out.values()) == {
        "over the share of context_tokens_max 0–16000": 2,
        "context_tokens_max outside the bins of the sample": 1,
        "context_tokens_max unknown, and the sample is spread by it": 1,
    }
    assert "edge" not in left_out  # the last bin holds its upper edge
    assert bins(sample) == ("0–16000", "16000–64000.5")


def test_texts_are_bins_as_well() -> None:
    sample = Sample(by="harness", values=("codex", "pi"), shares=(1, 0))
    left_out = draw([feature("a", "codex"), feature("b", "pi"), feature("c", "other")], sample)
    assert left_out == {"b": "over the share of harness pi", "c": "harness outside the bins of the sample"}


def test_of_equal_claims_the_first_bin_has_the_odd_one() -> None:
    sample = Sample(by="harness", values=("codex", "pi"), shares=(0.5, 0.5), sessions=1)
    assert set(draw([feature("a", "pi"), feature("b", "codex")], sample)) == {"a"}


def test_a_share_of_nothing_is_refused() -> None:
    sample = Sample(by="num_requests", edges=(0, 10, 20), shares=(0.9, 0.1))
    with pytest.raises(DatasetFault, match="share of num_requests 10–20, and no session is left with it"):
        draw([feature("a", 3)], sample)
    assert draw([], sample) == {}
    assert draw([feature("a")], sample) == {"a": "num_requests unknown, and the sample is spread by it"}


def test_a_value_comes_from_its_column_or_the_first_of_a_list() -> None:
    rows = Rows(
        session={
            "models": ["m2", "m1"],
            "lang_mix": [{"lang": "rust", "share": 0.7}, {"lang": "toml", "share": 0.3}],
            "harness": "unknown",
            "num_requests": 7,
        },
        requests=[],
        tool_calls=[],
    )
    assert [sample_value(rows, by) for by in ("model", "language", "harness", "num_requests", None)] == [
        *("m2", "rust"),
        *(None, 7, None),
    ]
    bare = Rows(session={"models": [], "lang_mix": None}, requests=[], tool_calls=[])
    assert [sample_value(bare, by) for by in ("model", "language")] == [None, None]

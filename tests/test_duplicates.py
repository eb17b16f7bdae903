"""Clusters of sessions that say the same: the longest stays, each that goes is like the one that stays for it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.duplicates import EXACT, HEAD, NEAR, STRICTNESS, band_rows, find_duplicates
from curate.features import Features, features_of
from curate.fingerprint import HEAD_BYTES, PERMUTATIONS
from curate.recipe import Duplicates, Sample
from curate.row import rows_of
from tests.sample_sessions import content_free_session, text_session
from tests.talks import talk, words

DROP = Duplicates(exact="drop", near="drop")


def feature(name: str, requests: int = 1, *, t0: int | None = 0, key: str | None = None, **more: object) -> Features:
    values = {"heads": b"", "minhash": None, "sample_value": None, "split": "train", "t0_utc_us": t0} | more
    return Features(session_id=name, requests=requests, exact_key=key or name, **values)  # type: ignore[arg-type]


def minima(seed: int, changed: int = 0) -> bytes:
    """128 numbers of a seed, of which the first few are others."""
    found = np.random.default_rng(seed).integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint64).astype("<u4")
    found[:changed] += 1
    return found.tobytes()


def head(*names: str) -> bytes:
    return b"".join(name.encode().ljust(HEAD_BYTES, b".") for name in names)


def reasons(features: list[Features], policy: Duplicates) -> dict[str, tuple[str, str | None]]:
    return {name: (verdict.role, verdict.reason) for name, verdict in find_duplicates(features, policy).items()}


def test_sessions_that_stand_alone_have_no_verdict() -> None:
    assert find_duplicates([], DROP) == {}
    assert find_duplicates([feature("a"), feature("b", minhash=minima(1)), feature("c", heads=head("x"))], DROP) == {}


def test_the_longest_stays_then_the_earliest_then_the_lowest_id() -> None:
    same = [
        feature("d", 3, t0=None, key="k"),
        feature("c", 3, t0=5, key="k"),
        feature("b", 3, t0=5, key="k"),
        feature("a", 2, t0=1, key="k"),
    ]
    assert reasons(same, DROP) == {
        "b": ("kept", None),
        **dict.fromkeys(("a", "c", "d"), ("duplicate", EXACT)),
    }
    assert reasons(same[:1] + same[3:], DROP)["d"] == ("kept", None)


@pytest.mark.parametrize(
    ("exact", "near", "of_exact", "of_near"),
    [
        ("keep", "keep", None, None),
        ("mark", "keep", "mark", None),
        ("drop", "keep", "drop", None),
        ("keep", "mark", "mark", "mark"),  # nothing is nearer than the same
        ("keep", "drop", "drop", "drop"),
        ("drop", "mark", "drop", "mark"),
    ],
)
def test_a_policy_keeps_marks_or_drops(exact: str, near: str, of_exact: str | None, of_near: str | None) -> None:
    features = [
        feature("long", 9, minhash=minima(1)),
        feature("copy", 9, t0=1, key="long", minhash=minima(1)),
        feature("near", 5, minhash=minima(1, 5)),
    ]
    found = reasons(features, Duplicates(exact=exact, near=near))  # type: ignore[arg-type]
    for name, policy, reason in (("copy", of_exact, EXACT), ("near", of_near, NEAR)):
        expected = None if policy is None else ("duplicate", reason if policy == "drop" else None)
        assert found.get(name) == expected
    assert ("long" in found) == bool(of_exact or of_near)
    assert set(STRICTNESS) == {"keep", "mark", "drop"}


def test_a_session_that_another_begins_with_goes() -> None:
    features = [
        feature("whole", 9, heads=head("a", "b", "c")),
        feature("begun", 3, heads=head("a", "b")),
        feature("fork", 5, heads=head("a", "b", "z")),
        feature("again", 3, t0=1, heads=head("a", "b", "c")),
    ]
    assert reasons(features, DROP) == {
        "whole": ("kept", None),
        "begun": ("duplicate", HEAD),
        "again": ("duplicate", NEAR),
    }


def test_likeness_is_not_passed_on_along_a_chain() -> None:
    a, b, c = (feature(name, requests, minhash=minima(1, changed)) for name, requests, changed in CHAIN)
    found = reasons([a, b, c], Duplicates(near="drop", similarity=0.9))
    assert found == {"a": ("kept", None), "b": ("duplicate", NEAR)}  # c is like b, not like a


CHAIN = (("a", 3, 0), ("b", 2, 10), ("c", 1, 20))


def test_a_copy_of_a_session_that_goes_joins_its_cluster() -> None:
    features = [
        feature("long", 9, minhash=minima(1)),
        feature("near", 5, minhash=minima(1, 5)),
        feature("copy", 5, t0=9, key="near", minhash=minima(1, 5)),
    ]
    found = find_duplicates(features, DROP)
    assert len({verdict.cluster for verdict in found.values()}) == 1
    assert (found["near"].reason, found["copy"].reason) == (NEAR, EXACT)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.85, 0.95, 1.0])
def test_bands_miss_few_pairs_that_are_just_similar_enough(similarity: float) -> None:
    rows = band_rows(similarity)
    bands = PERMUTATIONS // rows
    assert (1 - similarity**rows) ** bands <= 1e-3
    assert rows == PERMUTATIONS or (1 - similarity ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) > 1e-3
    equal = int(np.ceil(similarity * PERMUTATIONS))
    source = np.random.default_rng(7)
    features, misses = [], 0
    for pair in range(100):
        one = np.frombuffer(minima(pair), "<u4")
        other = one.copy()
        other[source.permutation(PERMUTATIONS)[: PERMUTATIONS - equal]] += 1
        features += [feature(f"{pair}-a", 2, minhash=one.tobytes()), feature(f"{pair}-b", minhash=other.tobytes())]
    found = find_duplicates(features, Duplicates(near="drop", similarity=similarity))
    misses = sum(f"{pair}-b" not in found for pair in range(100))
    assert misses <= 2
    below = Duplicates(near="drop", similarity=min(1.0, (equal + 1) / PERMUTATIONS))
    assert equal == PERMUTATIONS or find_duplicates(features, below) == {}


@st.composite
def corpora(draw: st.DrawFn) -> list[Features]:
    return [
        feature(
            f"s{number}",
            draw(st.integers(1, 3)),
            t0=draw(st.one_of(st.none(), st.integers(0, 2))),
            key=draw(st.sampled_from("wxyz")) + ("" if draw(st.booleans()) else str(number)),
            heads=head(*draw(st.sampled_from(["", "a", "ab", "abc", "ax", "q"]))),
            minhash=draw(st.one_of(st.none(), st.builds(minima, st.integers(0, 2), st.integers(0, 40)))),
        )
        for number in range(draw(st.integers(0, 12)))
    ]


POLICIES = st.builds(
    Duplicates,
    exact=st.sampled_from(["keep", "mark", "drop"]),
    near=st.sampled_from(["keep", "mark", "drop"]),
    similarity=st.sampled_from([0.7, 0.85, 1.0]),
)


@given(corpora(), POLICIES, st.randoms())
def test_the_result_is_the_same_for_every_order(
    features: list[Features], policy: Duplicates, order: random.Random
) -> None:
    found = find_duplicates(features, policy)
    order.shuffle(features)
    assert find_duplicates(features, policy) == found


@given(corpora(), POLICIES)
def test_every_cluster_has_one_that_stays_and_others_like_it(features: list[Features], policy: Duplicates) -> None:
    by_id = {each.session_id: each for each in features}
    found = find_duplicates(features, policy)
    for cluster, size in Counter(verdict.cluster for verdict in found.values()).items():
        (kept,) = [name for name, each in found.items() if each.cluster == cluster and each.role == "kept"]
        assert size >= 2
        assert found[kept].reason is None
        keys = {kept: by_id[kept]}
        keys |= {name: by_id[name] for name, each in found.items() if each.cluster == cluster}
        assert max(each.requests for each in keys.values()) == by_id[kept].requests
    # Who stays without a verdict says what nobody else does.
    if policy.exact == "drop":
        alive = [each for each in features if each.session_id not in found or found[each.session_id].reason is None]
        assert len({each.exact_key for each in alive}) == len(alive)


@given(corpora())
def test_dropping_again_drops_nothing_more(features: list[Features]) -> None:
    found = find_duplicates(features, DROP)
    left = [each for each in features if each.session_id not in found or found[each.session_id].role == "kept"]
    assert find_duplicates(left, DROP) == {}


def test_real_words_are_clustered_as_people_would() -> None:
    def of(session, name: str) -> Features:  # type: ignore[no-untyped-def]
        session = replace(session, session_id=name)
        return features_of(session, rows_of(session), "train", Sample())

    story = [" ".join(words(seed, 150)) for seed in range(6)]
    short = replace(talk(*story[:2]), requests=text_session().requests[:1])
    small_edit = [*story[:5], story[5].replace("word1", "other1", 1)]
    features = [
        of(talk(*story), "whole"),
        of(replace(talk(*story, tag="b"), t0_utc_us=10**16), "copy"),
        of(short, "begun"),
        of(replace(talk(*small_edit), t0_utc_us=10**16), "edited"),
        of(talk(*(" ".join(words(seed, 150)) for seed in range(20, 26))), "foreign"),
        of(content_free_session(), "bare"),
    ]
    assert reasons(features, DROP) == {
        "whole": ("kept", None),
        "copy": ("duplicate", EXACT),
        "begun": ("duplicate", HEAD),
        "edited": ("duplicate", NEAR),
    }

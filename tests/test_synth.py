"""Synthetic prompts: exact lengths, and exactly the block sharing that the hashes say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay import synth

TOKEN_IDS = (1_000, 30_000)
hashes = st.lists(st.integers(0, 2**64 - 1), max_size=40)
scales = st.sampled_from([1.0, 0.5, 0.25, 0.3, 0.125, 1 / 3])


def ids_of(blocks: list[int], length: int, *, scale: float = 1.0, key: int = 1, tail_key: int = 2) -> list[int]:
    ids = synth.prompt_ids(
        blocks, length=length, block_size=64, scale=scale, key=key, tail_key=tail_key, token_ids=TOKEN_IDS
    )
    return [int(value) for value in ids]


def edge(blocks: int, scale: float) -> int:
    return synth.covered_length(blocks, 64, scale)


@given(blocks=hashes, length=st.integers(1, 3_000), scale=scales)
def test_a_prompt_has_exactly_the_planned_length_and_only_allowed_ids(
    blocks: list[int], length: int, scale: float
) -> None:
    ids = ids_of(blocks, length, scale=scale)
    assert len(ids) == length
    assert all(TOKEN_IDS[0] <= value < TOKEN_IDS[1] for value in ids)
    assert ids == ids_of(blocks, length, scale=scale)


@given(shared=hashes, left=hashes, right=hashes, scale=scales, data=st.data())
def test_two_prompts_share_exactly_the_blocks_whose_hashes_they_share(
    shared: list[int], left: list[int], right: list[int], scale: float, data: st.DataObject
) -> None:
    if left and right and left[0] == right[0]:
        right[0] = (right[0] + 1) % 2**64
    one, two = shared + left, shared + right
    tails = data.draw(st.tuples(st.integers(1, 63), st.integers(1, 63)))
    first = ids_of(one, edge(len(one), scale) + tails[0], scale=scale, tail_key=3)
    second = ids_of(two, edge(len(two), scale) + tails[1], scale=scale, tail_key=4)
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    # Where the prompts part, a token may agree by chance (1 in 29,000); four in a row do not.
    assert edge(len(shared), scale) <= same < edge(len(shared), scale) + 4


@given(blocks=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40))
def test_another_play_shares_nothing(blocks: list[int]) -> None:
    length = 64 * len(blocks)
    mine = ids_of(blocks, length, key=synth.scope_key("0123", "session a"))
    for other in (synth.scope_key("0124", "session a"), synth.scope_key("0123", "session b")):
        theirs = ids_of(blocks, length, key=other)
        for block in range(len(blocks)):
            assert mine[block * 64 : block * 64 + 64] != theirs[block * 64 : block * 64 + 64]


def test_the_length_wins_over_hashes_that_cover_more() -> None:
    blocks = [11, 12, 13]
    assert ids_of(blocks, 130) == ids_of(blocks, 192)[:130]
    assert ids_of(blocks, 1) == ids_of(blocks, 192)[:1]


def test_equal_hashes_at_unlike_places_are_unlike_blocks() -> None:
    ids = ids_of([7, 7], 128)
    assert ids[:64] != ids[64:]


def test_without_hashes_a_prompt_is_its_own() -> None:
    assert ids_of([], 50, tail_key=1) != ids_of([], 50, tail_key=2)


@pytest.mark.parametrize(
    ("recorded", "blocks", "scale", "planned"),
    [(20_068, 313, 1.0, 20_068), (20_068, 313, 0.125, 2_509), (0, 0, 1.0, 1), (None, 3, 1.0, 192), (10, 0, 0.3, 3)],
)
def test_planned_length(recorded: int | None, blocks: int, scale: float, planned: int) -> None:
    assert synth.planned_length(recorded, blocks, 64, scale) == planned


def test_a_scale_that_empties_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use at least 0\.015625"):
        ids_of([1], 10, scale=0.01)


@pytest.mark.parametrize("bad", [(5, 5), (-1, 4), (9, 3)])
def test_an_empty_range_of_ids_is_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no range"):
        synth.prompt_ids([], length=1, block_size=64, scale=1.0, key=1, tail_key=1, token_ids=bad)


@given(st.lists(st.integers(0, 999_999), max_size=200))
def test_encoded_ids_are_the_json_list(values: list[int]) -> None:
    assert json.loads(synth.encode_ids(np.array(values, dtype=np.uint64))) == values


def test_scope_keys_do_not_depend_on_how_parts_are_split() -> None:
    assert synth.scope_key("ab", "c") != synth.scope_key("a", "bc")

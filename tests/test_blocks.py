"""Published block hashes: keyed, the same for the same head in a whole release, and no more work than what is new."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.call import Message, Tool
from capture.trajectory import Trajectory
from curate.blocks import RELEASE_BLOCK_TOKENS, Encoded, with_release_hashes
from curate.tally import tally
from curate.tokens import TokenCounter, message_body, tools_body
from tests.sample_sessions import content_free_session, make, pooled, request, text_session

KEY = b"k" * 32


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter()


def hashes_of_whole_prompts(session: Trajectory, counter: TokenCounter, key: bytes) -> list[tuple[int, ...]]:
    """The definition, one whole prompt after the other."""
    found = []
    for each in session.requests:
        ids: list[int] = []
        if each.tools_index is not None and session.tool_sets[each.tools_index]:
            ids += counter.token_ids(tools_body(session.tool_sets[each.tools_index]))
        for start, stop in each.prompt_spans or ():
            for position in range(start, stop):
                ids += counter.token_ids(message_body(session.pool[position].message))
        hashes, before = [], b""
        for at in range(0, len(ids) - 63, 64):
            block = array("I", ids[at : at + 64]).tobytes()
            before = hashlib.blake2b(before + block, digest_size=8, key=key).digest()
            hashes.append(int.from_bytes(before))
        found.append(tuple(hashes))
    return found


WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "\n", "naïve", "{}"]), max_size=60).map(" ".join)


@st.composite
def sessions(draw: st.DrawFn) -> Trajectory:
    """Chains that grow, are rewound, compacted and share a pool, in any order."""
    texts = draw(st.lists(WORDS, min_size=1, max_size=8))
    pool = tuple(pooled(Message(role="user", content=text * 3), 0) for text in texts)
    bounds = st.tuples(st.integers(0, len(pool)), st.integers(0, len(pool))).map(lambda pair: tuple(sorted(pair)))
    spans = st.lists(bounds, max_size=3).map(tuple)
    count = draw(st.integers(1, 6))
    requests = tuple(
        request(
            index,
            agent_path=draw(st.sampled_from(["main", "main/1"])),
            prompt_spans=draw(spans),
            tools_index=draw(st.sampled_from([None, 0, 1])),
        )
        for index in range(count)
    )
    tools = (Tool(name="bash", description=draw(WORDS), parameters="{}"),)
    return dataclasses.replace(text_session(), pool=pool, tool_sets=(tools, ()), requests=requests, tool_calls=())


@settings(max_examples=60, deadline=None)
@given(session=sessions())
def test_hashes_are_those_of_whole_prompts(session: Trajectory, counter: TokenCounter) -> None:
    found = with_release_hashes(session, Encoded(counter), KEY)
    assert [each.block_hashes for each in found.requests] == hashes_of_whole_prompts(session, counter, KEY)
    assert {each.block_size for each in found.requests} == {RELEASE_BLOCK_TOKENS}
    assert found.hash_scope == "release"


@settings(max_examples=30, deadline=None)
@given(session=sessions())
def test_counts_are_those_of_the_counter(session: Trajectory, counter: TokenCounter) -> None:
    assert tally(session, Encoded(counter)) == tally(session, counter)


class Counting:
    """A counter that notes what it was asked to encode."""

    def __init__(self, counter: TokenCounter) -> None:
        self.encoding_name, self.sha, self.text = counter.encoding_name, counter.sha, counter.text
        self.bodies: list[str] = []
        self._counter = counter

    def token_ids(self, body: str) -> list[int]:
        self.bodies.append(body)
        return self._counter.token_ids(body)


def test_a_text_is_encoded_once(counter: TokenCounter) -> None:
    counting: Any = Counting(counter)
    encoded = Encoded(counting)
    for name in ("a", "b"):  # two sessions that share their system prompt and tools
        encoded.next_session()
        session = text_session(name, turns=30)
        tally(session, encoded)
        with_release_hashes(session, encoded, KEY)
    assert len(counting.bodies) == len(set(counting.bodies))


def test_another_key_gives_other_hashes(counter: TokenCounter) -> None:
    session = text_session(turns=20)
    one, other = (with_release_hashes(session, Encoded(counter), key).requests[-2] for key in (KEY, b"o" * 32))
    assert one.block_hashes
    assert not set(one.block_hashes) & set(other.block_hashes or ())


def test_a_session_without_text_keeps_its_own(counter: TokenCounter) -> None:
    assert with_release_hashes(content_free_session(), Encoded(counter), KEY) == content_free_session()


def test_the_same_text_in_two_sessions_of_a_release_shares_blocks(tmp_path: Path) -> None:
    """Also where they lie in shards of unlike stores, and behind redaction."""
    make([text_session("a", turns=20), text_session("b", turns=25)], tmp_path / "d")
    rows = pl.read_parquet(tmp_path / "d/data/requests/*.parquet").filter(pl.col("agent_path") == "main")
    last = {
        session: rows.filter(pl.col("session_id") == session).sort("request_index")["block_hashes"].to_list()[-1]
        for session in ("a", "b")
    }
    assert len(last["a"]) > 5
    assert last["b"][: len(last["a"])] == last["a"]
    assert set(rows["hash_scope"]) == {"release"}
    assert rows["block_hashes"].list.len().to_list() == [tokens // 64 for tokens in rows["prompt_tokens_est"]]

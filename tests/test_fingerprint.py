"""Keys of what a session says: equal for equal words, near for near ones, and blind to ids, times and the harness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.call import Message
from capture.trajectory import Trajectory
from curate.features import Features, features_of
from curate.fingerprint import HEAD_BYTES, LEAST_REQUESTS, PERMUTATIONS
from curate.recipe import Sample
from curate.row import rows_of
from tests.sample_sessions import content_free_session, pooled
from tests.talks import talk, words


def features(session: Trajectory) -> Features:
    return features_of(session, rows_of(session), "train", Sample())


def similarity(one: Trajectory, other: Trajectory) -> float:
    mine, theirs = features(one).minhash, features(other).minhash
    assert mine is not None
    assert theirs is not None
    return float(np.mean(np.frombuffer(mine, "<u4") == np.frombuffer(theirs, "<u4")))


def test_ids_and_times_do_not_matter_and_words_do() -> None:
    one, other = talk("Hello", "Hi", tag="a"), talk("Hello", "Hi", tag="b")
    other = replace(other, t0_utc_us=5, pool=tuple(replace(each, t_us=7) for each in other.pool))
    assert features(one).exact_key == features(other).exact_key
    assert features(one).heads == features(other).heads
    for changed in (talk("Hello", "Hi!"), talk("Hello", "Hi", system="It is Monday."), talk("HelloHi"), talk("Hello")):
        assert features(one).exact_key != features(changed).exact_key


@given(st.lists(st.text(alphabet="ab ", min_size=1).filter(str.strip), min_size=2, max_size=8))
def test_a_session_that_another_begins_with_has_its_last_head_there(texts: list[str]) -> None:
    whole = features(talk(*texts, system="Today is Tuesday."))
    heads = [whole.heads[at : at + HEAD_BYTES] for at in range(0, len(whole.heads), HEAD_BYTES)]
    assert len(heads) == len(texts) // 2
    begun = features(talk(*texts[:2]))
    assert begun.heads == heads[0]
    assert features(talk(texts[0], texts[1] + "x")).heads not in heads


def test_heads_are_of_the_main_chain() -> None:
    session = talk("Go", "Done", "More", "All done")
    other = pooled(Message(role="assistant", content="A sub-agent's answer"), 1, path="main/1", answer=True)
    among = replace(session, pool=(*session.pool[:3], other, *session.pool[3:]))
    assert features(among).heads == features(session).heads


def test_heads_do_not_see_how_an_answer_is_spelled_or_thought() -> None:
    session = talk("Go", "Done")
    answer = session.pool[-1]
    use = replace(answer.message.tool_calls[0], arguments='{"command":"run 1"}')
    spelled = replace(answer.message, content="Done\n", reasoning_content="Hm.", tool_calls=(use,))
    again = replace(session, pool=(*session.pool[:-1], replace(answer, message=spelled)))
    assert features(again).heads == features(session).heads
    assert features(again).exact_key != features(session).exact_key


@pytest.mark.parametrize(("changed", "expected"), [(0, 1.0), (20, 0.9), (150, 0.6), (1000, 0.0)])
def test_minhash_estimates_how_many_phrases_are_shared(changed: int, expected: float) -> None:
    found, truth = [], []
    for seed in range(12):
        one = words(seed, 1000)
        other = [*one[: 1000 - changed], *words(seed + 500, changed)]
        phrases = [{tuple(text[at : at + 5]) for at in range(len(text) - 4)} for text in (one, other)]
        truth.append(len(phrases[0] & phrases[1]) / len(phrases[0] | phrases[1]))
        found.append(similarity(talk(" ".join(one)), talk(" ".join(other))))
    assert abs(np.mean(truth) - expected) < 0.15
    assert abs(np.mean(found) - np.mean(truth)) < 0.04
    assert max(abs(np.array(found) - truth)) < 5 * (0.25 / PERMUTATIONS) ** 0.5


def test_what_all_sessions_of_an_agent_share_does_not_make_them_alike() -> None:
    system = " ".join(words(1, 5000))
    reminder = f"<system-reminder>{' '.join(words(2, 2000))}</system-reminder>"
    one = talk(reminder, *(" ".join(words(seed, 100)) for seed in (3, 4)), system=system)
    other = talk(reminder, *(" ".join(words(seed, 100)) for seed in (5, 6)), system=system)
    assert similarity(one, other) < 0.1


def test_too_little_to_compare_has_no_minhash() -> None:
    assert features(talk("one two three four five")).minhash is None
    assert features(content_free_session(turns=3)).minhash is None


def test_a_text_gives_the_same_keys_on_every_machine() -> None:
    found = features(talk(" ".join(words(1, 200)), "Größe 😀 naïve"))
    assert found.minhash is not None
    assert (found.exact_key, found.heads.hex(), found.minhash[:8].hex()) == GOLDEN


GOLDEN = ("75d9c64a06c51f1264267653dbfa6b5c", "079a70974577ab94", "a755a417f45a1b30")


def test_long_texts_are_hashed_piece_by_piece_as_if_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    session = talk(" ".join(words(1, 3000)) + "x" * 2000 + " ".join(words(2, 500)))
    whole = features(session)
    monkeypatch.setattr("curate.fingerprint._CHUNK", 2500)
    assert features(session) == whole


def test_without_text_lengths_are_compared_if_there_are_enough() -> None:
    def free(name: str, *prompts: int, known: bool = True) -> Trajectory:
        session = content_free_session(name, turns=len(prompts))
        requests = [
            replace(each, prompt_tokens=tokens, completion_tokens=tokens % 97 if known else None)
            for each, tokens in zip(session.requests, prompts, strict=True)
        ]
        return replace(session, requests=tuple(requests))

    long = [1000 + 37 * n * n for n in range(40)]
    one, other = features(free("one", *long)), features(free("other", *long))
    assert one.exact_key == other.exact_key
    assert one.heads == other.heads
    assert one.minhash == other.minhash is not None
    assert len(one.heads) == HEAD_BYTES * (40 - LEAST_REQUESTS + 1)
    begun = features(free("begun", *long[:20]))
    assert begun.heads == one.heads[: len(begun.heads)]
    assert begun.exact_key != one.exact_key
    edited = free("edited", *long[:20], 5, *long[21:])
    assert 0.75 < similarity(edited, free("one", *long)) < 1
    # Three requests, or lengths that nobody tells, prove nothing: such sessions are like no other.
    for least in ([1000, 2000, 3000], long):
        pair = [features(free(name, *least, known=least is not long)) for name in ("one", "other")]
        assert pair[0].exact_key != pair[1].exact_key
        assert pair[0].heads == pair[1].heads == b""

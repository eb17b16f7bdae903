"""The answers of a power server, and clocks that are matched by them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from replay.power.exchange import DRIFT, ClockMatch, decode_answer, unpack_sample

ANSWER = {"agentdyno_power_server": 1, "server": "s", "received_ns": 1, "sent_ns": 2, "next": 0}

values: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["GPU-a", "energy_j", "ok"]),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=8,
)
ways = st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**7))


@given(st.integers(-(2**60), 2**60), st.lists(ways, min_size=1, max_size=80))
def test_the_clocks_offset_is_within_its_bound_however_unlike_the_ways_are(
    ahead_ns: int, exchanges: list[tuple[int, int, int]]
) -> None:
    clocks, now_ns = ClockMatch(), 10**18
    for there_ns, back_ns, within_ns in exchanges:
        asked_ns, now_ns = now_ns, now_ns + there_ns + within_ns + back_ns
        received_ns = asked_ns + there_ns + ahead_ns
        clocks.add(asked_ns, received_ns, received_ns + within_ns, now_ns)
    bound_ns = clocks.u_s(now_ns) * 3**0.5 * 1e9
    assert abs(clocks.offset_ns(now_ns) - ahead_ns) <= bound_ns + 2
    assert bound_ns <= min((there + back) / 2 for there, back, _ in exchanges[-1:]) + 2
    assert clocks.u_s(now_ns + 10**9) >= clocks.u_s(now_ns)


def test_clocks_that_drift_are_followed() -> None:
    clocks = ClockMatch()
    for second in range(600):
        now_ns = second * 1_000_000_000
        there_ns = now_ns + round(second * DRIFT * 1e9)
        clocks.add(now_ns - 500_000, there_ns, there_ns, now_ns + 500_000)
        assert (
            abs(clocks.offset_ns(now_ns + 500_000) - (there_ns - now_ns)) <= clocks.u_s(now_ns + 500_000) * 3**0.5 * 1e9
        )


def test_a_clock_that_stood_still_is_matched_anew() -> None:
    clocks = ClockMatch()
    for second in range(20):
        now_ns, slept_ns = second * 1_000_000_000, 0 if second < 10 else 3_600_000_000_000
        # The exchange right after the sleep is the slowest: it must not be the old ones that are believed.
        way_ns = 40_000_000 if second == 10 else 1_000_000
        clocks.add(now_ns - way_ns, now_ns - slept_ns, now_ns - slept_ns, now_ns + way_ns)
        assert abs(clocks.offset_ns(now_ns) + slept_ns) <= way_ns


@given(st.binary(max_size=100) | st.dictionaries(st.sampled_from([*ANSWER, "sources", "samples", "more"]), values))
def test_any_answer_is_one_or_a_sentence(body: bytes | dict[str, object]) -> None:
    raw = body if isinstance(body, bytes) else json.dumps({**ANSWER, **body}).encode()
    try:
        answer = decode_answer(raw)
    except ValueError as fault:
        assert str(fault).isprintable()  # noqa: PT017 - there may be none
        return
    for packed in answer.samples:
        sample = unpack_sample(packed, 0)
        assert sample is None or (sample.value is None) == (sample.flag != "ok")

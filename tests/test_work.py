"""Two runs compare only when they did the same work, turn by turn."""

from __future__ import annotations

from typing import Any

from replay.record import RequestRecord
from replay.work import same_work, token_work
from tests.test_measure import failed, record


def turns(*indices: int, **changes: Any) -> list[RequestRecord]:
    return [record(request_index=index, turn=index, **changes) for index in indices]


def test_the_audit_counts_each_turn_and_all() -> None:
    audit = token_work([*turns(0, 1), *turns(1, prompt_tokens=1020, completion_tokens=99), failed(request_index=2)])
    assert [(turn.request_index, turn.requests, turn.prompt_tokens, turn.output_tokens) for turn in audit.turns] == [
        (0, 1, 1000, 101),
        (1, 2, 1010, 100),
    ]
    assert (audit.requests, audit.planned_prompt_tokens, audit.served_prompt_tokens) == (3, 3000, 3020)
    assert (audit.planned_output_tokens, audit.served_output_tokens) == (303, 301)
    assert token_work([]).turns == ()


def test_how_often_a_turn_was_played_is_not_its_work() -> None:
    short, long = token_work(turns(0, 1, 2)), token_work([*turns(2, 2, 2, 1, 0), *turns(7, completion_tokens=5)])
    assert same_work(short, short) == same_work(short, long) == same_work(long, short) == ()
    assert short.digest != long.digest
    assert short.digest == token_work(turns(2, 1, 0, 0)).digest


def test_unlike_plans_are_unlike_work() -> None:
    one = token_work(turns(0, 1))
    (reason,) = same_work(one, token_work([*turns(0), *turns(1, planned_output_tokens=50)]))
    assert reason == (
        "1 of 2 common turns were planned unlike: session s, request 1: 1,000 in, 101 out against 1,000 in, 50 out"
    )
    assert same_work(one, token_work(turns(8))) == ("no turn was served in both",)


def test_a_server_that_stops_early_or_reads_less_did_less() -> None:
    one = token_work(turns(0, 1))
    assert same_work(one, token_work(turns(0, 1, completion_tokens=100, prompt_tokens=1009))) == ()
    assert same_work(one, token_work(turns(0, 1, completion_tokens=90))) == (
        "output tokens of the 2 common turns: 202 against 180, more than 2% apart",
    )
    assert same_work(one, token_work(turns(0, 1, prompt_tokens=900))) == (
        "prompt tokens of the 2 common turns: 2,000 against 1,800, more than 1% apart",
    )


def test_what_nobody_counted_was_not_the_same() -> None:
    one, silent = token_work(turns(0)), token_work(turns(0, prompt_tokens=None, completion_tokens=None))
    assert same_work(one, silent) == (
        "prompt tokens: no common turn was counted by both servers",
        "output tokens: no common turn was counted by both servers",
    )
    text = {"planned_prompt_tokens": None}
    assert same_work(token_work(turns(0, **text)), token_work(turns(0, **text))) == ()
    assert "text in, 101 out against 1,000 in" in same_work(token_work(turns(0, **text)), one)[0]

"""Two recorders in a row: what both saw counts once, and goes as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capture.assemble import assemble, contributor_id
from capture.call import ModelCall
from capture.erase import delete, sessions_held
from capture.journal import JournalWriter
from capture.sessions import read_sessions
from capture.store import Store
from tests.calls import KEY, SYSTEM, Wire, result, said, user
from tests.recorded_sessions import write

BEHIND_US = 333  # the second recorder's zero


def in_a_row(**named: Any) -> tuple[Wire, Wire]:
    """A call, one that is refused, and its retry, as seen near the agent and two milliseconds behind."""
    near, behind = Wire(), Wire(anchor_us=1_790_000_000_000_000 + BEHIND_US)
    task = [SYSTEM, user("Do it.")]
    ask = said("", ("t", "Bash", "{}"))
    for wire, late, person in ((near, 0, None), (behind, 2, "alice")):
        own = named | {"contributor": person, "consent": person and "team"}
        journal = "behind" if late else "near"
        wire.call(late, task, ask, took_ms=100 - 2 * late, response_id="r1", exchange_id=f"{journal}-1", **own)
        again = [*task, ask, result("t")]
        wire.call(300 + late, again, None, took_ms=100 - 2 * late, status=529, exchange_id=f"{journal}-2", **own)
        wire.call(
            600 + late,
            again,
            said("Done."),
            took_ms=100 - 2 * late,
            response_id="r2",
            exchange_id=f"{journal}-3",
            **own,
        )
    return near, behind


@pytest.mark.parametrize("named", [{}, {"session": "s"}], ids=["nameless", "named"])
def test_what_both_saw_counts_once_as_seen_near_the_agent(named: dict[str, Any]) -> None:
    near, behind = in_a_row(**named)
    (found,) = assemble([*behind.calls, *near.calls], KEY)
    (alone,) = assemble([replace(call, contributor="alice", consent="team") for call in near.calls[:1]], KEY)
    assert [request.exchange_id for request in found.requests] == [call.exchange_id for call in near.calls]
    assert [request.relation for request in found.requests] == ["start", "continue", "retry"]
    assert (found.contributor, found.consent) == (contributor_id(KEY, "alice"), "team")  # only the one behind knows
    assert found.session_id == alone.session_id


def _other_answer(call: ModelCall) -> ModelCall:
    return replace(call, response_id=call.response_id and f"{call.response_id}'")


def _later(call: ModelCall) -> ModelCall:
    return replace(call, wall_anchor_us=call.wall_anchor_us + 60_000_000)


@pytest.mark.parametrize("change", [_other_answer, _later])
def test_two_runs_of_one_task_stay_two(change: Callable[[ModelCall], ModelCall]) -> None:
    near, behind = in_a_row()
    calls = [*near.calls, *(replace(change(call), contributor=None) for call in behind.calls)]
    found = assemble(calls, KEY)
    assert sorted(str(request.exchange_id) for one in found for request in one.requests) == sorted(
        call.exchange_id for call in calls
    )


def test_what_is_deleted_is_deleted_behind_as_well(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    for _ in range(2):
        journal = JournalWriter(store.path, key=store.key, meta={"mode": "test"})
        for tag in ("alpha", "beta"):
            write(journal, tag, 0, 0, session=None)
        journal.close()
    assert len(list(store.exchanges())) == 4
    held = sessions_held(store, [])
    assert len(held) == 2
    delete(store, held[:1], held)
    assert len(list(store.exchanges())) == 2
    assert [one.session_id for one in read_sessions(store.path, [])] == [held[1].session_id]

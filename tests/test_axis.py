"""One time axis for a session: monotonic inside a journal, the wall clock between journals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capture.assemble import Origin, assemble
from capture.axis import clock_jump_us
from tests.calls import KEY, Wire, conversation

HOUR_US = 3_600_000_000


def moved(wire: Wire, *offsets: tuple[int, int]) -> None:
    """Lets the wall clock stand so far off at the send and the end of each call, in microseconds."""
    wire.calls = [
        replace(call, wall_offset_us=at_send, wall_offset_end_us=at_end)
        for call, (at_send, at_end) in zip(wire.calls, offsets, strict=True)
    ]


def test_a_laptop_that_slept() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s")
    moved(wire, (0, 0), (HOUR_US, HOUR_US), (HOUR_US, HOUR_US + 30_000), (HOUR_US + 30_000, 2 * HOUR_US))
    found = wire.one()
    assert [request.gap_us for request in found.requests] == [None, 900_000, 900_000, 900_000]
    assert [request.clock_jump_us for request in found.requests] == [None, HOUR_US, None, HOUR_US - 30_000]
    assert (found.quality.clock_err_us, found.duration_us, found.t0_utc_us) == (HOUR_US, 3_100_000, wire.anchor_us)
    assert found.quality.complete


def test_a_clock_set_back_changes_no_order() -> None:
    wire = Wire()
    conversation(wire, "alpha")
    still = wire.one()
    moved(wire, (0, 0), (-HOUR_US, -HOUR_US), (-HOUR_US, -HOUR_US), (-HOUR_US, -HOUR_US))
    found = wire.one()
    assert [request.t_send_us for request in found.requests] == [request.t_send_us for request in still.requests]
    assert [request.agent_path for request in found.requests] == ["main"] * 4
    assert found.requests[1].clock_jump_us == -HOUR_US
    assert found.quality.clock_err_us == HOUR_US


def test_the_start_is_what_the_wall_clock_showed_then() -> None:
    wire = Wire()
    conversation(wire, "alpha", turns=1)
    moved(wire, (HOUR_US, HOUR_US))
    assert wire.one().t0_utc_us == wire.anchor_us + HOUR_US


@pytest.mark.parametrize("slept_us", [0, HOUR_US])
def test_from_one_journal_to_the_next(slept_us: int) -> None:
    """The second journal's anchor knows of the sleep; the first one's monotonic clock does not."""
    first = Wire()
    conversation(first, "alpha", session="s", turns=3)
    moved(first, (0, 0), (slept_us, slept_us), (slept_us, slept_us))
    second = Wire(anchor_us=first.anchor_us + slept_us + 60_000_000, name="later")
    conversation(second, "alpha", session="s", turns=5)
    for kept in (second.calls[3:], list(reversed(second.calls[3:]))):
        (found,) = assemble([*kept, *first.calls], KEY)
        assert [request.t_send_us for request in found.requests] == [0, 1_000_000, 2_000_000, 63_000_000, 64_000_000]
        assert [request.gap_us for request in found.requests][3:] == [60_900_000, 900_000]
        assert [request.relation for request in found.requests] == ["start"] + ["continue"] * 4


def test_two_recorders_at_once() -> None:
    one, other = Wire(), Wire(anchor_us=1_790_000_000_000_000 - 5_000_000, name="other")
    conversation(one, "alpha", session="s", turns=4)
    conversation(other, "alpha", session="s", turns=4, base_ms=5000)
    (found,) = assemble([one.calls[0], other.calls[1], one.calls[2], other.calls[3]], KEY)
    assert [request.t_send_us for request in found.requests] == [0, 1_000_000, 2_000_000, 3_000_000]
    assert [request.gap_us for request in found.requests] == [None, 900_000, 900_000, 900_000]


def test_a_log_has_no_clock_to_watch() -> None:
    wire = Wire()
    conversation(wire, "alpha", session="s")
    (found,) = assemble(wire.calls, KEY, Origin(source="claude-code-log", token_source="provider"))
    assert found.quality.clock_err_us is None
    assert wire.one().quality.clock_err_us == 0


@pytest.mark.parametrize(
    ("before", "after", "jump"),
    [
        ((0, 0), (40_000, 80_000), None),
        ((0, 60_000), (60_000, 60_000), None),
        ((0, 0), (60_000, 60_000), 60_000),
        ((0, 0), (-60_000, 20_000), 80_000),
        ((0, None), (70_000, None), 70_000),
    ],
)
def test_jumps(before: tuple[int, Any], after: tuple[int, Any], jump: int | None) -> None:
    wire = Wire()
    conversation(wire, "alpha", turns=2)
    moved(wire, before, after)
    assert clock_jump_us(*wire.calls) == jump
    elsewhere = replace(wire.calls[0], wall_anchor_us=1)
    assert clock_jump_us(elsewhere, replace(wire.calls[1], wall_offset_end_us=after[0])) is None

"""Sessions out of real journals: whole ones, side by side, and one whose recorder never came to the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capture.journal import JournalWriter
from capture.sessions import find_session, read_sessions
from capture.store import Store
from capture.trajectory import Trajectory
from tests.exchanges import MS, sse

SESSIONS = ("11111111-aaaa-4bbb-8ccc-222222222222", "33333333-aaaa-4bbb-8ccc-444444444444")


def prompt(tag: str, turns: int) -> dict[str, Any]:
    """A request of Claude Code after so many tool calls."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": f"Do {tag}."}]}]
    for turn in range(turns):
        use = {"type": "tool_use", "id": f"toolu_{tag}_{turn}", "name": "Bash", "input": {"command": f"{tag} {turn}"}}
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": f"{turn}\n"}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return {
        "model": "claude-sonnet-4-5",
        "stream": True,
        "max_tokens": 100,
        "system": "Be brief.",
        "messages": messages,
        "tools": [{"name": "Bash", "description": "", "input_schema": {}}],
    }


def answer(tag: str, turn: int) -> list[bytes]:
    """The stream of one tool call."""
    command = json.dumps({"command": f"{tag} {turn}"})
    usage = {"input_tokens": 5, "cache_read_input_tokens": 100 * turn, "output_tokens": 1}
    block = {"type": "tool_use", "id": f"toolu_{tag}_{turn}", "name": "Bash", "input": {}}
    return sse(
        ("message_start", {"type": "message_start", "message": {"id": f"msg_{tag}_{turn}", "usage": usage}}),
        ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}),
        (
            "content_block_delta",
            {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": command}},
        ),
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        (
            "message_delta",
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        ),
        ("message_stop", {"type": "message_stop"}),
    )


def write(
    journal: JournalWriter, tag: str, turn: int, at_ms: int, *, session: str | None, pieces: int | None = None
) -> None:
    """Journal one call; with `pieces` only so many reads of the answer and no end."""
    headers = [(b"user-agent", b"claude-cli/2.1.328 (external, sdk-cli)"), (b"content-type", b"application/json")]
    if session is not None:
        headers.append((b"x-claude-code-session-id", session.encode()))
    number = journal.send(
        at_ns=at_ms * MS,
        connection=f"c-{tag}",
        method="POST",
        host="api.anthropic.com:443",
        path="/v1/messages?beta=true",
        headers=tuple(headers),
    )
    journal.sent(number, at_ns=(at_ms + 1) * MS, body=json.dumps(prompt(tag, turn)).encode())
    journal.headers(number, at_ns=(at_ms + 40) * MS, status=200, headers=((b"content-type", b"text/event-stream"),))
    stream = answer(tag, turn)
    for place, data in enumerate(stream[:pieces]):
        journal.read(number, (at_ms + 50 + 10 * place) * MS, data)
    if pieces is None:
        journal.end(number, at_ns=(at_ms + 100) * MS, outcome="complete")


def journal(store: Store, calls: Sequence[tuple[str, int, int, str | None, int | None]]) -> JournalWriter:
    writer = JournalWriter(store.path, key=store.key, meta={"mode": "test"})
    for tag, turn, at_ms, session, pieces in calls:
        write(writer, tag, turn, at_ms, session=session, pieces=pieces)
    return writer


def read(store: Store) -> list[Trajectory]:
    problems: list[str] = []
    found = list(read_sessions(store.path, problems))
    assert problems == []
    return found


def test_two_sessions_side_by_side_in_one_journal(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    calls = [
        (tag, turn, 1000 * turn + 70 * number, SESSIONS[number], None)
        for turn in range(3)
        for number, tag in enumerate(("alpha", "beta"))
    ]
    journal(store, calls).close()
    found = read(store)
    assert [len(trajectory.requests) for trajectory in found] == [3, 3]
    for trajectory, tag in zip(found, ("alpha", "beta"), strict=True):
        assert (trajectory.harness, trajectory.harness_version) == ("claude-code", "2.1.328")
        assert [call.tool_call_id for call in trajectory.tool_calls] == [f"toolu_{tag}_{turn}" for turn in range(3)]
        assert [call.wall_us for call in trajectory.tool_calls] == [900_000, 900_000, None]
        assert [call.t_emitted_us for call in trajectory.tool_calls] == [80_000, 1_080_000, 2_080_000]
        assert [request.prompt_tokens for request in trajectory.requests] == [5, 105, 205]
        assert [request.t_first_token_us for request in trajectory.requests] == [60_000, 1_060_000, 2_060_000]
        assert [request.prompt_spans for request in trajectory.requests] == [((0, 2),), ((0, 4),), ((0, 6),)]
        assert trajectory.quality.complete
    assert find_session(store.path, found[1].session_id[:6]) == found[1]


def test_a_journal_without_its_end_is_read_and_marked(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal(store, [("alpha", 0, 0, None, None), ("alpha", 1, 1000, None, 3)]).close()
    (found,) = read(store)
    first, last = found.requests
    assert (first.error, last.error, last.t_end_us) == (None, "open", None)
    assert last.link == "echo"
    assert last.tool_call_ids == ("toolu_alpha_1",)
    assert not found.quality.complete


def test_a_session_goes_on_in_a_second_journal_under_the_same_id(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal(store, [("alpha", 0, 0, SESSIONS[0], None)]).close()
    (before,) = read(store)
    journal(store, [("alpha", 1, 5000, SESSIONS[0], None)]).close()
    (after,) = read(store)
    assert after.session_id == before.session_id
    assert [request.gap_kind for request in after.requests] == ["none", "tool"]

"""Sessions of Claude Code as a recorder writes them, and its own log of them: real protocol, made-up words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from capture.exchange import Exchange
from capture.journal import JournalWriter
from capture.store import Store
from tests.exchanges import sse

MS = 1_000_000  # ns
LOG_START = datetime(2031, 1, 1, tzinfo=UTC)  # of the agent's clock, years from the recorder's: no time may match

type Told = tuple[str, int, int, str | None, int | None]
"""One call: (tag, turn, send in ms, session's native id, reads of the answer or None for all)."""


def prompt(tag: str, turn: int) -> dict[str, Any]:
    """The request of a turn: every earlier answer and result, then the newest result.

    A tag that begins with `talk` is a session of words alone: a human speaks in each turn.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Start {tag}"}]
    for earlier in range(turn):
        if tag.startswith("talk"):
            messages += [{"role": "assistant", "content": f"{tag} {earlier}"}, {"role": "user", "content": "Go on"}]
            continue
        use = {
            "type": "tool_use",
            "id": f"toolu_{tag}_{earlier}",
            "name": "Bash",
            "input": {"command": f"{tag} {earlier}"},
        }
        result = {"type": "tool_result", "tool_use_id": f"toolu_{tag}_{earlier}", "content": f"{tag} result {earlier}"}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return {
        "model": "claude-x",
        "stream": True,
        "max_tokens": 100,
        "system": "Be brief.",
        "messages": messages,
        "tools": [{"name": "Bash", "description": "", "input_schema": {}}],
    }


def answer(tag: str, turn: int) -> list[bytes]:
    """The stream of one tool call, or of a text."""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 100 * turn, "output_tokens": 1}
    if tag.startswith("talk"):
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta, stop = {"type": "text_delta", "text": f"{tag} {turn}"}, "end_turn"
    else:
        block = {"type": "tool_use", "id": f"toolu_{tag}_{turn}", "name": "Bash", "input": {}}
        command = json.dumps({"command": f"{tag} {turn}"})
        delta, stop = {"type": "input_json_delta", "partial_json": command}, "tool_use"
    return sse(
        ("message_start", {"type": "message_start", "message": {"id": f"msg_{tag}_{turn}", "usage": usage}}),
        ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}),
        ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}),
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        ("message_delta", {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 9}}),
        ("message_stop", {"type": "message_stop"}),
    )


def write(
    journal: JournalWriter,
    tag: str,
    turn: int,
    at_ms: int,
    *,
    session: str | None,
    pieces: int | None = None,
    contributor: str | None = None,
) -> None:
    """Journal one call of 100 ms; with `pieces` only so many reads of the answer and no end."""
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
        contributor=contributor,
    )
    journal.sent(number, at_ns=(at_ms + 1) * MS, body=json.dumps(prompt(tag, turn)).encode())
    journal.headers(number, at_ns=(at_ms + 40) * MS, status=200, headers=((b"content-type", b"text/event-stream"),))
    stream = answer(tag, turn)
    for place, data in enumerate(stream[:pieces]):
        journal.read(number, (at_ms + 50 + 10 * place) * MS, data)
    if pieces is None:
        journal.end(number, at_ns=(at_ms + 100) * MS, outcome="complete")


def write_export(journal: JournalWriter, export: Exchange, at_ms: int, *, contributor: str | None = None) -> None:
    """Journal an export of telemetry as the recorder does when it answers one itself."""
    number = journal.send(
        at_ns=at_ms * MS,
        connection="c-otlp",
        method="POST",
        host=export.host,
        path=export.path,
        headers=tuple((name.encode(), value.encode()) for name, value in export.request_headers),
        contributor=contributor,
    )
    journal.sent(number, at_ns=(at_ms + 1) * MS, body=export.request_body)
    journal.headers(number, at_ns=(at_ms + 2) * MS, status=200, headers=())
    journal.end(number, at_ns=(at_ms + 2) * MS, outcome="complete")


def recorded(
    store: Store, calls: Sequence[Told], *, exports: Sequence[Exchange] = (), contributor: str | None = None
) -> None:
    """One journal of these calls, and of exports that come after them."""
    journal = JournalWriter(store.path, key=store.key, meta={"mode": "test"})
    for tag, turn, at_ms, session, pieces in calls:
        write(journal, tag, turn, at_ms, session=session, pieces=pieces, contributor=contributor)
    for number, export in enumerate(exports):
        write_export(journal, export, calls[-1][2] + 200 + number)
    journal.close()


def _line(session: str, number: int, at_ms: int, kind: str, message: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{session}-{number}",
        "parentUuid": f"{session}-{number - 1}" if number else None,
        "isSidechain": False,
        "sessionId": session,
        "version": "2.1.328",
        "timestamp": (LOG_START + timedelta(milliseconds=at_ms)).isoformat().replace("+00:00", "Z"),
        "message": {"role": kind, **message},
        **more,
    }


def claude_log(folder: Path, session: str, tag: str, turns: int, *, tool_ms: int) -> Path:
    """Claude Code's log of the turns that `write` makes, one a second, each tool running for `tool_ms`.

    In a session of words alone the human takes that long.
    """
    lines = [_line(session, 0, 0, "user", {"content": f"Start {tag}"})]
    for turn in range(turns):
        at_ms = 1000 * turn
        talk = tag.startswith("talk")
        use = {"type": "tool_use", "id": f"toolu_{tag}_{turn}", "name": "Bash", "input": {"command": f"{tag} {turn}"}}
        said = {
            "id": f"msg_{tag}_{turn}",
            "type": "message",
            "model": "claude-x",
            "content": [{"type": "text", "text": f"{tag} {turn}"} if talk else use],
            "stop_reason": "end_turn" if talk else "tool_use",
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 100 * turn, "output_tokens": 9},
        }
        lines.append(_line(session, len(lines), at_ms + 100, "assistant", said, requestId=f"req_{tag}_{turn}"))
        if talk and turn < turns - 1:
            lines.append(_line(session, len(lines), at_ms + 100 + tool_ms, "user", {"content": "Go on"}))
        elif not talk:
            text = f"{tag} result {turn}"
            result = {"type": "tool_result", "tool_use_id": use["id"], "content": text, "is_error": turn == 1}
            told = {"stdout": text, "stderr": "", "interrupted": False}
            at_ms += 100 + tool_ms
            lines.append(_line(session, len(lines), at_ms, "user", {"content": [result]}, toolUseResult=told))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{session}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path

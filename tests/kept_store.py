"""A store with sessions of real protocol bytes, and every byte that it keeps."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zstandard

from capture.journal import JournalWriter
from capture.store import Store


def everything(folder: Path) -> bytes:
    """All bytes of a store's files, and all that is compressed or packed in its journals."""
    found = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    for path in Store.open(folder).journals():
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        for (data,) in database.execute("SELECT data FROM packs"):
            found += zstandard.ZstdDecompressor().decompress(data)
        for exchange in Store.open(folder).exchanges():
            found += repr(exchange).encode() + exchange.request_body + b"".join(read.data for read in exchange.reads)
        database.close()
    return found


def turn(journal: JournalWriter, session: str, text: str, at_ms: int, messages: list[dict[str, str]]) -> None:
    """One call of a Claude Code session; `messages` grow."""
    messages.append({"role": "user", "content": f"{text} asked {os.urandom(400).hex()}"})
    body = json.dumps({"model": "claude-x", "max_tokens": 9, "stream": True, "messages": messages}).encode()
    answer: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": f"msg_{session}_{at_ms}", "model": "claude-x", "role": "assistant",
                                              "content": [], "usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"{text} answered"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]  # fmt: skip
    at_ns = time.monotonic_ns() + at_ms * 1_000_000
    headers = ((b"user-agent", b"claude-cli/2.1"), (b"x-claude-code-session-id", session.encode()))
    number = journal.send(
        at_ns=at_ns, connection=session, method="POST", host="api.x:443", path="/v1/messages", headers=headers
    )
    journal.sent(number, at_ns=at_ns + 1, body=body)
    journal.headers(number, at_ns=at_ns + 2, status=200, headers=((b"content-type", b"text/event-stream"),))
    for index, event in enumerate(answer):
        journal.read(number, at_ns + 3 + index, f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    journal.end(number, at_ns=at_ns + 99, outcome="complete")
    messages.append({"role": "assistant", "content": f"{text} answered"})


SESSIONS = {
    "kept": "aaaaaaaa-1111-4111-8111-000000000001",
    "doomed": "bbbbbbbb-1111-4111-8111-000000000002",
    "also": "cccccccc-1111-4111-8111-000000000003",
}


def record(store: Store, names: Iterable[str] = SESSIONS, *, close: bool = True) -> JournalWriter:
    """Interleaved sessions of two turns each, a call that names the doomed one, one that names nobody."""
    journal = JournalWriter(store.path, key=store.key, meta={"mode": "reverse"})
    said: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    for step in range(2):
        for name, messages in said.items():
            turn(journal, SESSIONS[name], name, step * 1000 + len(said), messages)
    for path, body in (("/v1/metrics", f"doomed telemetry of {SESSIONS['doomed']}"), ("/v1/models", "nobody's")):
        number = journal.send(at_ns=5, connection="c", method="POST", host="h:1", path=path, headers=())
        journal.sent(number, at_ns=6, body=body.encode())
        journal.end(number, at_ns=7, outcome="complete")
    journal.gap(None, at_ns=8, kind="recorder_error", lost_bytes=3)
    if close:
        journal.close()
    return journal

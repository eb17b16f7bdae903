"""Exchanges written by hand: real protocol bytes with times of our choosing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from capture.call import ModelCall
from capture.dialect import read_call
from capture.exchange import Exchange, Outcome, Read

MS = 1_000_000  # ns


def sse(*events: tuple[str | None, Any]) -> list[bytes]:
    """Each (name, data) as the bytes of one event; data that is no text becomes JSON."""
    encoded = []
    for name, data in events:
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        encoded.append((f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode())
    return encoded


def exchange(
    path: str,
    body: Any,
    answer: Sequence[bytes] | bytes = b"",
    *,
    headers: Iterable[tuple[str, str]] = (),
    response_headers: Iterable[tuple[str, str]] | None = None,
    status: int | None = 200,
    send_ms: int = 0,
    first_ms: int = 100,
    step_ms: int = 10,
    outcome: Outcome = "complete",
    error: str | None = None,
    exchange_id: str = "journal/1",
    connection_id: str = "connection/1",
    wall_anchor_us: int = 1_790_000_000_000_000,
    method: str = "POST",
) -> Exchange:
    """One exchange: the answer's pieces come `first_ms` after the send and then every `step_ms`."""
    pieces = [answer] if isinstance(answer, bytes) else list(answer)
    pieces = [piece for piece in pieces if piece]
    start = send_ms * MS
    reads = tuple(
        Read(at_ns=start + (first_ms + number * step_ms) * MS, data=piece) for number, piece in enumerate(pieces)
    )
    streamed = not isinstance(answer, bytes)
    if response_headers is None:
        response_headers = [("content-type", "text/event-stream" if streamed else "application/json")]
    return Exchange(
        exchange_id=exchange_id,
        connection_id=connection_id,
        wall_anchor_us=wall_anchor_us,
        method=method,
        host="api.example:443",
        path=path,
        request_headers=tuple(headers),
        request_body=body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode(),
        t_send_ns=start,
        t_sent_ns=start + MS,
        status=status,
        response_headers=tuple(response_headers),
        t_headers_ns=None if status is None else start + (first_ms - 1) * MS,
        reads=reads,
        t_end_ns=None if outcome == "open" else (reads[-1].at_ns if reads else start + first_ms * MS),
        outcome=outcome,
        error=error,
    )


def call(*arguments: Any, **named: Any) -> ModelCall:
    """`exchange` read as a model call."""
    found = read_call(exchange(*arguments, **named))
    assert found is not None
    return found


def at_ms(call: ModelCall, at_ns: int | None) -> float | None:
    """A time of the call in milliseconds after its send."""
    return None if at_ns is None else (at_ns - call.t_send_ns) / MS

"""The words after a run: what was recorded, and what in it looks wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capture.agents.table import AGENTS
from capture.exchange import Exchange
from capture.run_summary import Look
from capture.store import Store
from tests.exchanges import exchange, sse

CLAUDE = AGENTS[0]
ASKED = {"model": "m-1", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}]}


def streamed(step_ms: int = 100, first_ms: int = 100, words: int = 40, **named: Any) -> Exchange:
    start: dict[str, Any] = {
        "type": "message_start",
        "message": {"id": "msg_1", "model": "m-1", "usage": {"input_tokens": 1}},
    }
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word "}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}
    events = [
        start,
        block,
        *[delta] * words,
        {"type": "content_block_stop", "index": 0},
        stop,
        {"type": "message_stop"},
    ]
    pieces = sse(*((str(event["type"]), event) for event in events))
    return exchange("/v1/messages", ASKED, pieces, step_ms=step_ms, first_ms=first_ms, **named)


def look(*exchanges: Exchange, agent: Any = CLAUDE) -> Look:
    looked = Look(agent)
    for one in exchanges:
        looked.take(one)
    return looked


def test_calls_are_counted_by_model_and_sessions_are_told(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", create=True)
    looked = look(streamed(), exchange("/v1/models", b"", b"{}", method="GET", exchange_id="journal/2"))
    assert looked.head(store, whole=True) == (
        f"2 exchanges, 1 model call in 1 session (m-1 1; anthropic.messages), 0 gaps; store {store.path}"
    )
    assert looked.warnings() == []


@pytest.mark.parametrize(
    ("exchanges", "words"),
    [
        ([], "no model call passed the recorder: a managed settings file"),
        ([exchange("/v1/models", b"", b"{}", method="GET")], "only a list of models was asked for"),
        ([streamed(step_ms=0, first_ms=4000)], "1 of 1 answers came in one piece at their end"),
        ([exchange("/v1/messages", ASKED, b"{}", status=529)], "1 call failed (529 1)"),
        (
            [streamed(), replace(streamed(send_ms=9000, exchange_id="journal/2"), wall_offset_us=60_000_000)],
            "the wall clock jumped",
        ),
        (
            [exchange("/v1/responses", b"", b"", method="GET", status=426, headers=[("upgrade", "websocket")])],
            "1 WebSocket refused by the upstream",
        ),
        ([exchange("/model/x/invoke", {}, b"{}"), streamed()], "1 exchange kept but not read: Amazon Bedrock"),
    ],
)
def test_what_looks_wrong_is_said_in_one_line(exchanges: list[Exchange], words: str) -> None:
    found = look(*exchanges).warnings()
    assert [line for line in found if words in line], found


def test_a_quick_stream_and_a_slow_one_are_no_buffering() -> None:
    assert look(streamed(step_ms=0, first_ms=300), streamed(step_ms=50, first_ms=3000)).warnings() == []


def test_tool_times_that_should_have_come_are_missed() -> None:
    body = dict(ASKED)
    body["messages"] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "x"}]},
    ]
    answer = b'{"id":"m","type":"message","role":"assistant","model":"m-1","content":[],"usage":{}}'
    calls = [exchange("/v1/messages", body, answer, exchange_id=f"journal/{number}") for number in (1, 2)]
    assert [line for line in look(*calls).warnings() if "declared no tool times" in line]
    assert look(*calls, agent=AGENTS[1]).warnings() == []
    declared = ("x-claude-code-prev-tool-durations", "Bash=742")
    told = exchange("/v1/messages", body, answer, headers=[declared])
    assert look(*calls, told).warnings() == []
    telemetry = replace(exchange("/v1/traces", b"", b""), host="agentdyno.otlp")
    assert look(*calls, telemetry).warnings() == []

"""Golden recordings of what one call does not show: whose sub-agent a call is of, and the calls of a WebSocket."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from capture.call import ModelCall
from capture.dialect import read_calls
from capture.exchange import Exchange, SocketMessage
from tests.test_recordings import START_NS, expected, read

FOLDER = Path(__file__).parent / "recordings"
SOCKET = FOLDER / "codex-websockets"

# Where each agent's headers name the sub-agent and whoever started it.
NAMES = {
    "claude-code-sub-agent": ("x-claude-code-session-id", "x-claude-code-agent-id"),
    "codex-sub-agent": ("session-id", "thread-id"),
    "opencode-sub-agent": ("x-parent-session-id", "x-session-id"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_sub_agents_call_says_whose_it_is(name: str) -> None:
    call = read(FOLDER / name)
    identity = expected(FOLDER / name)["identity"]
    session, agent = (identity[header] for header in NAMES[name])
    assert session != agent
    hint = call.hints[0]
    assert (hint.session, hint.agent, hint.evidence) == (session, agent, "header")


def socket_calls() -> tuple[list[ModelCall], list[dict[str, Any]]]:
    """The recorded socket's calls, and what the server knows of each."""
    raw = json.loads((SOCKET / "socket.json").read_text(encoding="utf-8"))
    messages = [
        SocketMessage(
            at_ns=START_NS + message["at_us"] * 1000,
            from_agent=message["from_agent"],
            data=json.dumps(message["data"], ensure_ascii=False).encode(),
        )
        for message in raw["messages"]
    ]
    exchange = Exchange(
        exchange_id="golden/1",
        connection_id="1",
        wall_anchor_us=0,
        method=raw["method"],
        host="127.0.0.1",
        path=raw["path"],
        request_headers=tuple((name, value) for name, value in raw["request_headers"]),
        request_body=b"",
        t_send_ns=START_NS,
        t_sent_ns=START_NS,
        status=raw["status"],
        response_headers=tuple((name, value) for name, value in raw["response_headers"]),
        t_headers_ns=START_NS + raw["t_headers_us"] * 1000,
        reads=(),
        t_end_ns=START_NS + raw["t_end_us"] * 1000,
        outcome=raw["outcome"],
        error=None,
        messages=tuple(messages),
    )
    known: list[dict[str, Any]] = json.loads((SOCKET / "expected.json").read_text(encoding="utf-8"))
    return read_calls(exchange), known


def test_a_socket_holds_the_calls_that_the_server_answered() -> None:
    calls, known = socket_calls()
    assert [call.exchange_id for call in calls] == [f"golden/1#{number}" for number in range(1, len(known) + 1)]
    assert [call.kind for call in calls] == [
        "auxiliary" if entry["purpose"] == "prewarm" else "turn" for entry in known
    ]
    for call, entry in zip(calls, known, strict=True):
        assert (call.transport, call.status, call.error, call.complete) == ("websocket", 200, None, True)
        assert (call.response_id, call.previous_response_id) == (entry["response_id"], entry["previous_response_id"])
        assert (call.usage.input_total, call.usage.output_total) == (entry["input_total"], entry["output_total"])
        if entry["purpose"] == "prewarm":
            continue
        assert call.answer is not None
        assert call.answer.content == entry["text"]
        uses = [[use.id, use.name, use.arguments] for use in call.answer.tool_calls]
        assert uses == entry["calls"]


def test_the_calls_of_a_socket_follow_one_another() -> None:
    calls, _ = socket_calls()
    assert len(calls) >= 3
    for one, other in pairwise(calls):
        assert one.t_end_ns is not None
        assert one.t_send_ns < one.t_end_ns <= other.t_send_ns
        assert other.previous_response_id == one.response_id
    assert all(call.t_first_content_ns is not None and call.t_send_ns < call.t_first_content_ns for call in calls[1:])


def test_nothing_private_is_in_a_recorded_socket() -> None:
    text = (SOCKET / "socket.json").read_text(encoding="utf-8")
    for word in ("/root/", "/Users/", "/tmp/", "sk-scripted", "Bearer "):
        assert word not in text, word

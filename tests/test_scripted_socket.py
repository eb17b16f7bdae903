"""The scripted server's WebSocket: chains of responses, prewarms, streams side by side, faults."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from capture.script import HttpError, Script, ScriptedCall, ScriptedRequest, Step, StreamBreak
from capture.scripted import ScriptedServer
from tests.test_scripted import events, finished, post, prompt
from tests.websocket_client import WebSocketClient

FAST = {"first_content_ms": 0, "between_ms": 0}
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
CALL = Step(text="one", calls=(ScriptedCall(name="run", arguments='{"command": "ls"}'),), **FAST)  # type: ignore[arg-type]
TOOLS = [{"type": "function", "name": "run", "parameters": {}}]


def create(given: Any, **extra: Any) -> dict[str, Any]:
    return {"type": "response.create", "model": "m", "input": given, "tools": TOOLS} | extra


def result(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "out"}


def test_a_chain_sends_only_what_is_new_and_the_server_knows_the_rest() -> None:
    seen: list[ScriptedRequest] = []

    def choose(request: ScriptedRequest) -> Step:
        seen.append(request)
        return Script(steps=(CALL, Step(text="two")))(request)

    with ScriptedServer(choose) as server, WebSocketClient(server.port) as client:
        headers = {"type": "message", "role": "developer", "content": "be brief"}
        client.send(create([headers], generate=False))
        prewarm = client.until(*ENDS)
        client.send(create("go", previous_response_id=prewarm[-1]["response"]["id"]))
        first = client.until(*ENDS)[-1]["response"]
        call_id = first["output"][-1]["call_id"]
        client.send(create([result(call_id)], previous_response_id=first["id"]))
        second = client.until(*ENDS)
        log = finished(server, 3)
    assert [frame["type"] for frame in prewarm] == ["response.created", "response.in_progress", "response.completed"]
    assert prewarm[-1]["response"]["output"] == []
    assert second[-1]["response"]["output"][0]["content"][0]["text"] == "two"
    assert second[-1]["response"]["previous_response_id"] == first["id"]
    assert [entry.purpose for entry in log] == ["prewarm", "turn", "turn"]
    assert [entry.answered for entry in log] == [0, 0, 1]
    assert (log[0].text, log[0].calls, len(log[1].calls)) == ("", (), 1)
    assert [entry.step for entry in log] == ["steps[0]", "steps[0]", "steps[1]"]
    assert {(entry.transport, entry.method, entry.connection) for entry in log} == {("websocket", "WEBSOCKET", 1)}
    assert log[2].previous_response_id == log[1].response_id == first["id"]
    assert log[2].body_bytes < seen[2].body_bytes  # what came, and what it stands for
    assert (seen[2].system_text, seen[2].opening_text) == ("be brief", "go")
    assert [entry.number for entry in server.calls] == [2, 3]
    assert log[1].usage is not None
    assert log[1].usage.input_total == first["usage"]["input_tokens"]


def test_frames_say_what_server_sent_events_say() -> None:
    with ScriptedServer(lambda _: CALL, salt="00") as server:
        _, body, _ = post(server, "/v1/responses", prompt("openai.responses", stream=True))
        with WebSocketClient(server.port) as client:
            client.send(create("go"))
            frames = client.until(*ENDS)
    streamed = list(events(body))
    assert [frame["type"] for frame in frames] == [event["type"] for event in streamed]
    assert [frame.get("delta") for frame in frames] == [event.get("delta") for event in streamed]


def test_streams_run_side_by_side_and_their_events_name_them() -> None:
    slow = Step(text="a" * 40, piece_chars=4, first_content_ms=20, between_ms=10)
    with ScriptedServer(lambda _: slow) as server, WebSocketClient(server.port) as client:
        for name in ("left", "right"):
            client.send(create(name, stream_id=name))
        frames = client.until(*ENDS) + client.until(*ENDS)
        log = finished(server, 2)
    assert {frame["stream_id"] for frame in frames} == {"left", "right"}
    order = [frame["stream_id"] for frame in frames if frame["type"] == "response.output_text.delta"]
    assert len(order) == 20
    assert order != sorted(order)  # in turns, not one after the other
    assert {entry.stream_id for entry in log} == {"left", "right"}


def test_requests_of_one_stream_wait_for_each_other() -> None:
    step = Step(text="aaaa", piece_chars=1, first_content_ms=5, between_ms=5)
    with ScriptedServer(lambda _: step) as server, WebSocketClient(server.port) as client:
        client.send(create("one"))
        client.send(create("two"))
        frames = client.until(*ENDS) + client.until(*ENDS)
    kinds = [frame["type"] for frame in frames]
    assert kinds[: len(kinds) // 2] == kinds[len(kinds) // 2 :]


def test_faults_of_a_socket() -> None:
    steps = {
        "refused": Step(text="x", error=HttpError(status=529, kind="overloaded_error", retry_after_s=1, attempts=1)),
        "event": Step(text="x" * 240, broken=StreamBreak(after_content_events=3, how="error_event")),
        "cut": Step(text="x" * 240, broken=StreamBreak(after_content_events=2, how="cut")),
    }
    with ScriptedServer(lambda request: steps[request.last_user_text]) as server:
        with WebSocketClient(server.port) as client:
            client.send(create("refused"))
            (refused,) = client.until(*ENDS)
            client.send(create("refused"))
            assert client.until(*ENDS)[-1]["type"] == "response.completed"
            client.send(create("event"))
            assert client.until(*ENDS)[-1]["type"] == "response.failed"
            client.send(create([], previous_response_id="resp_of_nobody"))
            (unknown,) = client.until(*ENDS)
            client.send("no JSON")
            (bad,) = client.until(*ENDS)
            client.send({"type": "response.guess"})
            (guess,) = client.until(*ENDS)
            client.send(create("cut"))
            assert client.until(*ENDS)[-1]["type"] == "response.output_text.delta"
            assert client.closed
        log = finished(server, 5)
    assert (refused["status"], refused["error"]["code"]) == (529, "overloaded_error")
    assert refused["headers"] == {"retry-after": "1"}
    assert unknown["error"]["code"] == "previous_response_not_found"
    assert (bad["status"], guess["status"]) == (400, 400)
    assert [(e.fault, e.status, e.attempt) for e in log] == [
        ("HTTP 529", 529, 0),
        (None, 200, 1),
        ("error_event", 200, 0),
        (None, 400, 0),
        ("cut", 200, 0),
    ]
    assert [entry.usage is None for entry in log] == [True, False, True, True, True]


def test_an_upgrade_may_be_refused_so_that_clients_fall_back() -> None:
    with ScriptedServer(lambda _: CALL, websocket_refusal=426) as server:
        with WebSocketClient(server.port) as client:
            assert client.refused == 426
        assert post(server, "/v1/responses", prompt("openai.responses"))[0] == 200
    assert server.log[0].dialect is None


def test_an_upgrade_that_is_none_is_refused() -> None:
    with ScriptedServer(lambda _: CALL) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/v1/responses", headers={"upgrade": "websocket", "connection": "upgrade"})
        assert connection.getresponse().status == 400
        connection.close()


def test_a_frames_own_metadata_wins_over_the_handshakes() -> None:
    turn = json.dumps({"request_kind": "turn", "parent_thread_id": "p"})
    headers = {
        "session-id": "s",
        "x-codex-turn-metadata": json.dumps({"request_kind": "prewarm"}),
        "authorization": "k",
    }
    with ScriptedServer(lambda _: CALL) as server, WebSocketClient(server.port, headers=headers) as client:
        client.send(create("go", client_metadata={"x-codex-turn-metadata": turn, "thread_id": "t"}))
        client.until(*ENDS)
        (log,) = finished(server, 1)
    identity = dict(log.identity)
    assert (identity["session-id"], identity["body.thread_id"]) == ("s", "t")
    assert (identity["body.request_kind"], identity["body.parent_thread_id"]) == ("turn", "p")
    assert "authorization" not in identity


@pytest.mark.parametrize("leaves", ["between", "within"])
def test_a_client_that_leaves_ends_its_socket(leaves: str) -> None:
    step = Step(text="a" * 200, piece_chars=1, first_content_ms=0, between_ms=5)
    with ScriptedServer(lambda _: step) as server:
        with WebSocketClient(server.port) as client:
            if leaves == "within":
                client.send(create("go"))
                client.receive()
        if leaves == "within":
            (log,) = finished(server, 1)
            assert log.client_left
            assert log.last_byte_ns is None
        assert post(server, "/anything", b"")[0] == 200

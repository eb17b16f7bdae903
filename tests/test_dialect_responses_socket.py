"""Responses over a WebSocket: one model call for each frame that asks, whatever else the socket carries."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from capture.call import Message, ModelCall, SessionHint, ToolUse
from capture.dialect import read_calls
from capture.exchange import Exchange, Gap, SocketMessage
from capture.script import HttpError, Script, ScriptedCall, ScriptedUsage, Step, StreamBreak
from capture.scripted import ScriptedServer
from tests.exchanges import MS, exchange
from tests.test_scripted import finished
from tests.websocket_client import WebSocketClient

THREAD = "01a1f874-e09a-7542-99f7-469eec25597c"
HEADERS = (
    ("user-agent", "codex_exec/0.169.0 (Linux; x86_64) dumb (codex_exec; 0.169.0)"),
    ("originator", "codex_exec"),
    ("session-id", THREAD),
    ("thread-id", THREAD),
    ("x-codex-turn-metadata", json.dumps({"request_kind": "prewarm", "window_id": f"{THREAD}:0"})),
)
TOOLS = [{"type": "function", "name": "exec_command", "parameters": {"type": "object"}}]


def metadata(kind: str, generation: int = 0, *, thread: str = THREAD, parent: str | None = None, **extra: Any) -> Any:
    """`client_metadata` as Codex sends it with each frame."""
    turn = {"session_id": THREAD, "thread_id": thread, "request_kind": kind, "window_number": generation} | extra
    own = {"session_id": THREAD, "thread_id": thread, "x-codex-window-id": f"{thread}:{generation}"}
    if parent is not None:
        own["x-codex-parent-thread-id"] = parent
    return own | {"x-codex-turn-metadata": json.dumps(turn)}


def create(given: list[Any], **extra: Any) -> dict[str, Any]:
    return {"type": "response.create", "model": "gpt-5.1-codex", "input": given, "tools": TOOLS, "stream": True} | extra


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def answer(response_id: str, text: str = "", *, calls: tuple[tuple[str, str], ...] = ()) -> list[dict[str, Any]]:
    """The events of one response."""
    events: list[dict[str, Any]] = [{"type": "response.created", "response": {"id": response_id}}]
    output: list[dict[str, Any]] = []
    if text:
        place = {"output_index": 0}
        events.append({"type": "response.output_item.added", "item": {"type": "message"}} | place)
        events += [{"type": "response.output_text.delta", "delta": piece} | place for piece in (text[:3], text[3:])]
        output.append({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]})
        events.append({"type": "response.output_item.done", "item": output[-1]} | place)
    for call_id, arguments in calls:
        item = {"type": "function_call", "call_id": call_id, "name": "exec_command", "arguments": arguments}
        events.append({"type": "response.output_item.done", "item": item, "output_index": len(output)})
        output.append(item)
    usage = {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 60}, "output_tokens": 9}
    done = {"id": response_id, "status": "completed", "output": output, "usage": usage}
    return [*events, {"type": "response.completed", "response": done}]


def socket(*frames: tuple[int, bool, Any], **named: Any) -> Exchange:
    """An upgraded exchange; each frame is (ms, whether the agent sent it, its object or its raw bytes)."""
    base = exchange("/v1/responses", b"", b"", status=101, method="GET", headers=HEADERS, exchange_id="journal-1")
    messages = tuple(
        SocketMessage(
            at_ns=ms * MS, from_agent=sent, data=data if isinstance(data, bytes) else json.dumps(data).encode()
        )
        for ms, sent, data in frames
    )
    return replace(base, messages=messages, **named)


def replies(start_ms: int, events: list[dict[str, Any]], **extra: Any) -> list[tuple[int, bool, Any]]:
    """Events as frames of the service, one a millisecond."""
    return [(start_ms + number, False, event | extra) for number, event in enumerate(events)]


def test_a_prewarm_and_two_turns() -> None:
    calls = read_calls(
        socket(
            (0, True, create([user("be brief")], generate=False, client_metadata=metadata("prewarm"))),
            *replies(5, answer("resp_0")),
            (20, True, create([user("go")], previous_response_id="resp_0", client_metadata=metadata("turn"))),
            *replies(30, answer("resp_1", "I look.", calls=(("call_1", '{"cmd":"ls"}'),))),
            (38, False, {"type": "codex.rate_limits", "plan_type": "pro"}),
            (39, True, {"type": "response.processed", "response_id": "resp_1"}),
            (
                60,
                True,
                create(
                    [{"type": "function_call_output", "call_id": "call_1", "output": "a.py"}],
                    previous_response_id="resp_1",
                    client_metadata=metadata("turn", 1),
                ),
            ),
            *replies(70, answer("resp_2", "Done.")),
            contributor="ada",
            consent="research",
            mode="reverse",
            wall_offset_us=7,
            wall_offset_end_us=7,
        )
    )
    prewarm, first, second = calls
    assert [call.exchange_id for call in calls] == ["journal-1#1", "journal-1#2", "journal-1#3"]
    assert {(call.transport, call.harness, call.harness_version, call.stream) for call in calls} == {
        ("websocket", "codex", "0.169.0", True)
    }
    assert [(call.kind, call.request_class) for call in calls] == [
        ("auxiliary", "prewarm"),
        ("turn", "turn"),
        ("turn", "turn"),
    ]
    assert [call.previous_response_id for call in calls] == [None, "resp_0", "resp_1"]
    assert [call.response_id for call in calls] == ["resp_0", "resp_1", "resp_2"]
    assert [call.context_generation for call in calls] == [0, 0, 1]
    assert [call.complete for call in calls] == [True, True, True]
    assert [call.notes for call in calls] == [(), (), ()]
    assert prewarm.answer is None
    assert first.messages == (Message(role="user", content="go"),)
    assert first.answer == Message(
        role="assistant",
        content="I look.",
        tool_calls=(ToolUse(id="call_1", name="exec_command", arguments='{"cmd":"ls"}', t_emitted_ns=35 * MS),),
    )
    assert second.messages == (Message(role="tool", content="a.py", tool_call_id="call_1"),)
    assert first.hints[0] == SessionHint(session=THREAD, evidence="header")
    assert (first.usage.input_total, first.usage.cache_read, first.usage.output_total) == (100, 60, 9)
    assert (first.t_send_ns, first.t_headers_ns, first.t_first_byte_ns) == (20 * MS, None, 30 * MS)
    assert (first.t_first_content_ns, first.t_first_text_ns, first.t_end_ns) == (32 * MS, 32 * MS, 36 * MS)
    assert (first.status, first.events, first.error) == (200, 7, None)
    assert (first.contributor, first.consent, first.mode) == ("ada", "research", "reverse")
    assert (first.wall_offset_us, first.wall_offset_end_us) == (7, 7)
    assert first.bytes_up == len(json.dumps(create([user("go")], previous_response_id="resp_0") | {
        "client_metadata": metadata("turn")}))  # fmt: skip


def test_conversations_of_several_streams_do_not_mix() -> None:
    left, right = answer("resp_l", "left words"), answer("resp_r", "right words")
    mixed: list[tuple[int, bool, Any]] = []
    for number, (one, other) in enumerate(zip(left, right, strict=True)):
        mixed += [(10 + number, False, one | {"stream_id": "L"}), (10 + number, False, other | {"stream_id": "R"})]
    child = metadata("turn", thread="child", parent=THREAD)
    found = read_calls(
        socket(
            (0, True, create([user("left")], stream_id="L", client_metadata=metadata("turn"))),
            (1, True, create([user("right")], stream_id="R", client_metadata=child)),
            *mixed,
        )
    )
    assert [call.answer.content for call in found if call.answer] == ["left words", "right words"]
    assert [call.messages[0].content for call in found] == ["left", "right"]
    assert found[1].hints[0] == SessionHint(session=THREAD, evidence="header", agent="child", parent_agent=THREAD)


def test_without_stream_ids_events_go_to_the_response_that_they_name() -> None:
    found = read_calls(
        socket(
            (0, True, create([user("one")])),
            (1, True, create([user("two")])),
            *replies(10, answer("resp_1", "answer one")),
            *replies(20, answer("resp_2", "answer two")),
        )
    )
    assert [call.answer.content for call in found if call.answer] == ["answer one", "answer two"]
    assert [call.t_first_byte_ns for call in found] == [10 * MS, 20 * MS]


WRAPPED = {"type": "error", "status": 529, "error": {"type": "overloaded_error", "message": "busy"}}
FAILED = {
    "type": "response.failed",
    "response": {"id": "r", "status": "failed", "error": {"code": "x", "message": "y"}},
}
INCOMPLETE = {
    "type": "response.incomplete",
    "response": {"id": "r", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
}


@pytest.mark.parametrize(
    ("last", "status", "error", "complete", "stop"),
    [
        (WRAPPED, 529, "overloaded_error: busy", False, None),
        ({"type": "error", "code": "server_error", "message": "gone"}, 200, "server_error: gone", False, None),
        (FAILED, 200, "x: y", False, "failed"),
        (INCOMPLETE, 200, None, True, "max_output_tokens"),
        ({"type": "response.cancelled", "response": {"status": "cancelled"}}, 200, "response cancelled", False,
         "cancelled"),
    ],
    ids=["wrapped status", "error", "failed", "incomplete", "cancelled"],
)  # fmt: skip
def test_how_a_response_may_end(
    last: dict[str, Any], status: int, error: str | None, complete: bool, stop: str | None
) -> None:
    begun = answer("r", "some words")[:3]
    before = [] if status == 529 else replies(10, begun)
    (call,) = read_calls(socket((0, True, create([user("go")])), *before, (40, False, last)))
    assert (call.status, call.error, call.complete, call.stop) == (status, error, complete, stop)
    assert call.t_end_ns == 40 * MS
    assert (call.answer is None) == (status == 529)


@pytest.mark.parametrize(
    ("outcome", "error", "says"),
    [
        ("upstream_cut", "Connection reset", "Connection reset"),
        ("client_aborted", None, "client_aborted"),
        ("complete", None, "the socket ended before the answer did"),
        ("open", None, "the socket is still open"),
    ],
)
def test_a_socket_cut_within_an_answer_keeps_what_came(outcome: Any, error: str | None, says: str) -> None:
    frames = replies(10, answer("r", "some words")[:3])
    gap = Gap(at_ns=11 * MS, kind="queue_full", lost_bytes=9)
    base = socket((0, True, create([user("go")])), *frames, outcome=outcome, error=error, t_end_ns=50 * MS, gaps=(gap,))
    (call,) = read_calls(base)
    assert call.answer is not None
    assert (call.answer.content, call.complete, call.error) == ("som", False, says)
    assert (call.t_end_ns, call.gaps) == (50 * MS, 1)


def test_gaps_belong_to_the_call_under_way() -> None:
    frames = [(0, True, create([user("a")])), *replies(5, answer("r1")), (20, True, create([user("b")]))]
    gaps = tuple(Gap(at_ns=at * MS, kind="disk", lost_bytes=None) for at in (-1, 6, 21, 22))
    assert [call.gaps for call in read_calls(socket(*frames, gaps=gaps))] == [2, 2]


def test_other_frames_are_noted_where_they_came() -> None:
    found = read_calls(
        socket(
            (0, False, {"type": "response.output_text.delta", "delta": "from before"}),
            (1, True, b"no JSON"),
            (2, True, create([user("go")])),
            (3, True, {"type": "response.steer", "input": []}),
            *replies(5, answer("r1", "words")),
            (30, True, {"type": "response.cancel"}),
            (31, False, b"\xff\xfe"),
            (32, False, [1]),  # type: ignore[arg-type]
            (33, False, {"type": "response.novelty"}),
        )
    )
    assert [call.notes for call in found] == [
        (
            "the service sent response.output_text.delta outside of any response",
            "a frame of the agent holds no JSON object",
            "the agent sent response.steer",
            "the agent sent response.cancel",
            "a frame of the service holds no JSON object",
            "a frame of the service holds no JSON object",
            "the service sent response.novelty outside of any response",
        )
    ]


def test_a_compaction_says_so_by_metadata_or_by_its_last_item() -> None:
    why = {"trigger": "auto", "reason": "context_limit", "phase": "mid_turn"}
    by_kind = create([user("go")], client_metadata=metadata("compaction", compaction=why))
    by_item = create([user("go"), {"type": "compaction_trigger"}])
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": "opaque"}
    compacted = [
        {"type": "response.output_item.done", "item": item, "output_index": 0},
        {"type": "response.completed", "response": {"id": "r2", "status": "completed", "output": [item]}},
    ]
    found = read_calls(
        socket((0, True, by_kind), *replies(5, answer("r1", "SUMMARY")), (20, True, by_item), *replies(30, compacted))
    )
    assert [(call.compaction, call.kind, call.request_class) for call in found] == [
        ("auto", "turn", "compaction"),
        ("unknown", "turn", None),
    ]
    assert found[1].answer is not None
    assert found[1].answer.omitted_bytes > 0


def test_a_socket_without_calls_holds_none() -> None:
    assert read_calls(socket()) == []
    assert read_calls(socket((0, False, {"type": "session.created"}))) == []
    assert read_calls(replace(socket((0, True, create([]))), path="/v1/realtime")) == []


def record(client: WebSocketClient, frames: list[SocketMessage], frame: dict[str, Any]) -> list[dict[str, Any]]:
    """Sends a frame and takes the answer, both written down as the recorder would."""
    frames.append(SocketMessage(at_ns=len(frames) * MS, from_agent=True, data=json.dumps(frame).encode()))
    client.send(frame)
    got = client.until("response.completed", "response.failed", "error")
    for event in got:
        frames.append(SocketMessage(at_ns=len(frames) * MS, from_agent=False, data=json.dumps(event).encode()))
    return got


def test_what_the_scripted_server_said_is_what_is_read() -> None:
    usage = ScriptedUsage(input_total=1000, cache_read=300, cache_write=100, output_total=50, reasoning=20)
    call = ScriptedCall(name="exec_command", arguments='{"cmd": "ls"}')
    steps = (
        Step(text="First — then.", reasoning="Think.", calls=(call, call), usage=usage, between_ms=0),
        Step(text="x" * 90, error=HttpError(status=529, kind="overloaded_error", attempts=1), between_ms=0),
        Step(text="y" * 90, broken=StreamBreak(after_content_events=2, how="error_event"), between_ms=0),
    )
    frames: list[SocketMessage] = []
    with ScriptedServer(Script(steps=steps)) as server, WebSocketClient(server.port) as client:
        prewarm = record(client, frames, create([user("brief")], generate=False))[-1]["response"]["id"]
        first = record(client, frames, create([user("go")], previous_response_id=prewarm))[-1]["response"]["id"]
        results = [
            {"type": "function_call_output", "call_id": made.call_id, "output": "out"}
            for made in finished(server, 2)[1].calls
        ]
        for _ in range(2):
            second = record(client, frames, create(results, previous_response_id=first))[-1]
        record(client, frames, create([user("more")], previous_response_id=second["response"]["id"]))
        log = finished(server, 5)
    calls: list[ModelCall] = read_calls(replace(socket(), messages=tuple(frames)))
    assert [call.status for call in calls] == [entry.status for entry in log] == [200, 200, 529, 200, 200]
    assert [call.complete for call in calls] == [entry.usage is not None for entry in log]
    assert [call.response_id for call in calls if call.complete] == [e.response_id for e in log if e.usage is not None]
    assert [call.previous_response_id for call in calls] == [entry.previous_response_id for entry in log]
    assert [call.kind == "auxiliary" for call in calls] == [entry.purpose == "prewarm" for entry in log]
    said = calls[1].answer
    assert said is not None
    assert (said.content, said.reasoning_content) == ("First — then.", "Think.")
    assert [(use.id, use.arguments) for use in said.tool_calls] == [(c.call_id, c.arguments) for c in log[1].calls]
    read = calls[1].usage
    assert (read.input_total, read.cache_read, read.cache_write, read.output_total, read.reasoning) == (
        usage.input_total,
        usage.cache_read,
        usage.cache_write,
        usage.output_total,
        usage.reasoning,
    )
    assert calls[4].error == "overloaded_error: scripted break"
    assert [len(call.content_at_ns) >= entry.content_events for call, entry in zip(calls, log, strict=True)] == [
        True
    ] * 5


def test_a_status_that_is_none_is_not_taken() -> None:
    odd = WRAPPED | {"status": 5_290_000_000}  # no file's column holds it
    (found,) = read_calls(socket((1, True, create([user("Go")])), (9, False, odd)))
    assert (found.status, found.complete, found.error) == (200, False, "overloaded_error: busy")

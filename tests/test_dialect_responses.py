"""OpenAI Responses over server-sent events, as Codex and pi speak it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import zstandard

from capture.call import Message, SessionHint, ToolUse
from tests.exchanges import MS, at_ms, call, sse

THREAD = "0199c0de-1111-7222-8333-444455556666"
CODEX = [
    ("user-agent", "codex_exec/0.140.0 (Debian 12; x86_64) xterm (codex_exec; 0.140.0)"),
    ("originator", "codex_exec"),
    ("session-id", THREAD),
    ("thread-id", THREAD),
    ("accept", "text/event-stream"),
]
REQUEST: dict[str, Any] = {
    "model": "gpt-5.5-codex",
    "instructions": "You are Codex, a coding agent.",
    "stream": True,
    "store": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": THREAD,
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Run",
            "strict": False,
            "parameters": {"type": "object"},
        },
        {"type": "custom", "name": "apply_patch", "description": "Edit", "format": {"type": "grammar"}},
        {"type": "web_search"},
    ],
    "input": [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "<permissions instructions>"}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix it."}]},
        {
            "type": "reasoning",
            "id": "rs_0",
            "summary": [{"type": "summary_text", "text": "Look."}],
            "encrypted_content": "gAAA",
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "call_a", "name": "exec_command", "arguments": '{"cmd": "ls"}'},
        {"type": "custom_tool_call", "call_id": "call_b", "name": "apply_patch", "input": "*** Begin Patch"},
        {"type": "function_call_output", "call_id": "call_a", "output": "Process exited with code 0\na.py"},
        {"type": "custom_tool_call_output", "call_id": "call_b", "output": [{"type": "input_text", "text": "done"}]},
        {"type": "message", "role": "user", "content": "And test it."},
    ],
}


def event(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"type": kind} | fields


REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "Hm."}],
    "encrypted_content": "gBBBB",
}
SAID = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Gleich 🙂"}],
}
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_c",
    "name": "exec_command",
    "arguments": '{"cmd":"make"}',
}
PATCH = {"type": "custom_tool_call", "id": "ct_1", "call_id": "call_d", "name": "apply_patch", "input": "*** End"}
USAGE = {
    "input_tokens": 2000,
    "input_tokens_details": {"cached_tokens": 1536},
    "output_tokens": 60,
    "output_tokens_details": {"reasoning_tokens": 21},
    "total_tokens": 2060,
}


def completed(**fields: Any) -> tuple[str, dict[str, Any]]:
    return event("response.completed", response={"id": "resp_1", "status": "completed", "usage": USAGE} | fields)


EVENTS = [
    event("response.created", response={"id": "resp_1", "status": "in_progress", "model": "gpt-5.5-codex"}),
    event("response.output_item.added", output_index=0, item={"type": "reasoning", "id": "rs_1", "summary": []}),
    event("response.reasoning_summary_text.delta", output_index=0, delta="Hm."),
    event("response.output_item.done", output_index=0, item=REASONING),
    event("response.output_item.added", output_index=1, item={"type": "message", "role": "assistant", "content": []}),
    event("response.output_text.delta", output_index=1, delta="Gleich "),
    event("response.output_text.delta", output_index=1, delta="🙂"),
    event("response.output_item.done", output_index=1, item=SAID),
    event("response.output_item.added", output_index=2, item=CALL | {"arguments": ""}),
    event("response.function_call_arguments.delta", output_index=2, delta='{"cmd":'),
    event("response.function_call_arguments.delta", output_index=2, delta='"make"}'),
    event("response.function_call_arguments.done", output_index=2, arguments='{"cmd":"make"}'),
    event("response.output_item.done", output_index=2, item=CALL),
    event("response.output_item.done", output_index=3, item=PATCH),
    event("codex.rate_limits", primary={"used_percent": 3}),
]
ANSWER = Message(
    role="assistant",
    content="Gleich 🙂",
    reasoning_content="Hm.",
    tool_calls=(
        ToolUse(id="call_c", name="exec_command", arguments='{"cmd":"make"}', t_emitted_ns=220 * MS),
        ToolUse(id="call_d", name="apply_patch", arguments="*** End", t_emitted_ns=230 * MS),
    ),
    omitted_bytes=5,
)


def test_a_request() -> None:
    found = call("/v1/responses", REQUEST, sse(*EVENTS, completed()), headers=CODEX)
    assert (found.api, found.harness, found.harness_version) == ("openai.responses", "codex", "0.140.0")
    assert (found.effort, found.kind, found.previous_response_id) == ("medium", "turn", None)
    assert found.messages == (
        Message(role="system", content="You are Codex, a coding agent."),
        Message(role="developer", content="<permissions instructions>"),
        Message(role="user", content="Fix it."),
        Message(
            role="assistant",
            content="I look.",
            reasoning_content="Look.",
            tool_calls=(
                ToolUse(id="call_a", name="exec_command", arguments='{"cmd": "ls"}'),
                ToolUse(id="call_b", name="apply_patch", arguments="*** Begin Patch"),
            ),
            omitted_bytes=4,
        ),
        Message(role="tool", content="Process exited with code 0\na.py", tool_call_id="call_a"),
        Message(role="tool", content="done", tool_call_id="call_b"),
        Message(role="user", content="And test it."),
    )
    assert [(tool.name, tool.parameters) for tool in found.tools] == [
        ("exec_command", '{"type":"object"}'),
        ("apply_patch", '{"type":"grammar"}'),
        ("web_search", "{}"),
    ]
    assert found.hints == (
        SessionHint(session=THREAD, evidence="header"),
        SessionHint(session=THREAD, evidence="body", cache_key=True),
    )


@pytest.mark.parametrize("output", [None, [], [REASONING, SAID, CALL, PATCH]], ids=["absent", "empty", "full"])
def test_a_stream_whose_last_event_may_hold_no_items(output: list[Any] | None) -> None:
    last = completed() if output is None else completed(output=output)
    found = call("/backend-api/codex/responses", REQUEST, sse(*EVENTS, last))
    assert found.answer == ANSWER
    assert (found.stop, found.complete, found.error, found.response_id) == ("completed", True, None, "resp_1")
    assert [at_ms(found, at) for at in found.content_at_ns] == [
        120,
        150,
        160,
        180,
        190,
        200,
        230,
    ]  # the last item came whole
    usage = found.usage
    assert (usage.input_total, usage.cache_read, usage.output_total, usage.reasoning) == (2000, 1536, 60, 21)
    assert found.notes == ()


def test_the_live_answer_reads_as_its_echo() -> None:
    live = call("/v1/responses", REQUEST, sse(*EVENTS, completed())).answer
    echo = call("/v1/responses", REQUEST | {"input": [REASONING, SAID, CALL, PATCH]}, b"{}").messages[-1]
    assert live is not None
    assert (live.content, live.reasoning_content, live.omitted_bytes) == (echo.content, "Hm.", echo.omitted_bytes)
    assert [(use.id, use.arguments) for use in live.tool_calls] == [(use.id, use.arguments) for use in echo.tool_calls]


def test_codex_hangs_up_after_the_end_it_waits_for() -> None:
    found = call(
        "/v1/responses",
        REQUEST,
        sse(*EVENTS, completed(output=[])),
        outcome="client_aborted",
        error="Client disconnected.",
    )
    assert (found.complete, found.error) == (True, None)
    assert at_ms(found, found.t_end_ns) == 250


def test_items_only_in_the_last_event() -> None:
    found = call("/v1/responses", REQUEST, sse(completed(output=[SAID, CALL])))
    assert found.answer is not None
    assert found.answer.content == "Gleich 🙂"
    assert [use.id for use in found.answer.tool_calls] == ["call_c"]


@pytest.mark.parametrize(
    ("last", "complete", "stop", "error"),
    [
        (
            event(
                "response.incomplete",
                response={"id": "r", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            ),
            True,
            "max_output_tokens",
            None,
        ),
        (
            event(
                "response.failed",
                response={"id": "r", "status": "failed", "error": {"code": "server_error", "message": "no"}},
            ),
            False,
            "failed",
            "server_error: no",
        ),
        (
            event("error", code="rate_limit_exceeded", message="slow down"),
            False,
            None,
            "rate_limit_exceeded: slow down",
        ),
    ],
    ids=["incomplete", "failed", "error"],
)
def test_other_ends(last: tuple[str, Any], complete: bool, stop: str | None, error: str | None) -> None:
    found = call("/v1/responses", REQUEST, sse(*EVENTS, last))
    assert (found.complete, found.stop, found.status) == (complete, stop, 200)
    assert (found.error or "").endswith(error or "")
    assert bool(found.error) == bool(error)


def test_a_stream_cut_inside_an_item_keeps_what_came() -> None:
    found = call("/v1/responses", REQUEST, sse(*EVENTS[:10]), outcome="client_aborted")
    assert (found.complete, found.error) == (False, "client_aborted")
    assert found.answer is not None
    assert (found.answer.content, found.answer.reasoning_content) == ("Gleich 🙂", "Hm.")
    assert found.answer.tool_calls == ()
    assert found.notes == ("a call of exec_command was cut and is left out",)
    assert found.usage.input_total is None


def test_text_without_an_item_done() -> None:
    found = call("/v1/responses", REQUEST, sse(*EVENTS[:6]), outcome="upstream_cut")
    assert found.answer is not None
    assert found.answer.content == "Gleich "


def test_one_piece_without_streaming() -> None:
    body = {
        "id": "resp_2",
        "object": "response",
        "status": "completed",
        "output": [REASONING, SAID, CALL],
        "usage": USAGE,
    }
    found = call("/v1/responses", REQUEST | {"stream": False}, json.dumps(body).encode())
    assert (found.complete, found.stop, found.usage.output_total) == (True, "completed", 60)
    assert found.answer is not None
    assert [at_ms(found, use.t_emitted_ns) for use in found.answer.tool_calls] == [100]


def test_a_zstd_request_as_codex_sends_it() -> None:
    sent = zstandard.compress(json.dumps(REQUEST).encode())
    found = call("/v1/responses", sent, sse(completed()), headers=[*CODEX, ("content-encoding", "zstd")])
    assert len(found.messages) == 7
    assert found.notes == ()


@pytest.mark.parametrize(
    ("path", "change", "headers", "kind"),
    [
        ("/v1/responses", {"generate": False}, [], "auxiliary"),
        ("/v1/responses/compact", {}, [], "turn"),
        ("/v1/responses", {}, [("x-codex-turn-metadata", '{"request_kind":"prewarm"}')], "auxiliary"),
        ("/v1/responses", {}, [("x-codex-turn-metadata", '{"request_kind":"turn"}')], "turn"),
        ("/v1/responses", {"client_metadata": {"x-codex-turn-metadata": '{"request_kind":"memory"}'}}, [], "auxiliary"),
        ("/v1/responses", {}, [("x-codex-turn-metadata", "{broken")], "turn"),
    ],
)
def test_auxiliary_calls(path: str, change: dict[str, Any], headers: list[tuple[str, str]], kind: str) -> None:
    assert call(path, REQUEST | change, sse(completed()), headers=headers).kind == kind


def test_a_compaction_says_so() -> None:
    metadata = json.dumps({"request_kind": "compaction", "compaction": {"trigger": "auto"}})
    found = call("/v1/responses", REQUEST, sse(completed()), headers=[("x-codex-turn-metadata", metadata)])
    assert (found.compaction, found.kind) == ("auto", "turn")
    assert call("/v1/responses/compact", REQUEST, b"{}").compaction == "unknown"


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ([("session-id", "s"), ("thread-id", "s")], SessionHint(session="s", evidence="header")),
        ([("session_id", "pi-1")], SessionHint(session="pi-1", evidence="header")),
        ([("conversation_id", "old")], SessionHint(session="old", evidence="header")),
        (
            [("session-id", "s"), ("thread-id", "t"), ("x-codex-parent-thread-id", "s")],
            SessionHint(session="s", evidence="header", agent="t", parent_agent="s"),
        ),
        (
            [("session-id", "t"), ("thread-id", "t"), ("x-codex-parent-thread-id", "s")],
            SessionHint(session="s", evidence="header", agent="t"),
        ),
    ],
)
def test_hints(headers: list[tuple[str, str]], hint: SessionHint) -> None:
    assert call("/v1/responses", REQUEST, sse(completed()), headers=headers).hints[0] == hint


def test_input_may_be_a_plain_text() -> None:
    found = call("/v1/responses", {"model": "m", "input": "Hello"}, b"{}")
    assert found.messages == (Message(role="user", content="Hello"),)


def test_a_sub_agent_of_codex_and_tools_in_a_namespace() -> None:
    turn = {"session_id": "root", "thread_id": "child", "parent_thread_id": "root", "subagent_kind": "thread_spawn"}
    group = {"type": "namespace", "name": "multi_agent_v1", "tools": [{"type": "function", "name": "spawn_agent"}]}
    headers = [
        ("session-id", "root"),
        ("thread-id", "child"),
        ("x-codex-parent-thread-id", "root"),
        ("x-openai-subagent", "collab_spawn"),
        ("x-codex-window-id", "child:2"),
        ("x-codex-turn-metadata", json.dumps(turn | {"request_kind": "turn"})),
    ]
    item = {"type": "function_call", "namespace": "multi_agent_v1", "name": "spawn_agent", "call_id": "c"}
    request = REQUEST | {"tools": [group], "input": [item | {"arguments": "{}"}]}
    found = call("/v1/responses", request, sse(completed()), headers=headers)
    assert found.hints[0] == SessionHint(session="root", evidence="header", agent="child", parent_agent="root")
    assert (found.agent_type, found.request_class, found.context_generation) == ("collab_spawn", "turn", 2)
    assert [tool.name for tool in found.tools] == ["spawn_agent"]
    assert found.messages[-1].tool_calls == (ToolUse(id="c", name="spawn_agent", arguments="{}"),)


def test_a_call_that_the_service_ran_brings_its_result_itself() -> None:
    ran = {"type": "mcp_call", "id": "mcp_1", "name": "ask", "server_label": "s", "arguments": "{}", "output": "yes"}
    events = [event("response.output_item.done", output_index=at, item=item) for at, item in enumerate([ran, SAID])]
    live = call("/v1/responses", REQUEST, sse(*events, completed())).answer
    items = [{"role": "user", "content": "Ask."}, ran, SAID, {"role": "user", "content": "More."}]
    echo = call("/v1/responses", REQUEST | {"input": items}, b"{}").messages[1:]
    assert [message.role for message in echo] == ["user", "assistant", "user"]
    assert echo[1] == live


def test_a_persons_yes_is_no_word_of_the_model() -> None:
    asked = {"type": "mcp_approval_request", "id": "q", "name": "ask", "arguments": "{}", "server_label": "s"}
    items = [SAID, asked, {"type": "mcp_approval_response", "approval_request_id": "q", "approve": True}]
    found = call("/v1/responses", REQUEST | {"input": items}, b"{}").messages[1:]
    assert [message.role for message in found] == ["assistant", "user"]


def test_a_response_in_the_background_has_no_answer_yet() -> None:
    body = {"id": "resp_1", "status": "queued", "output": [], "background": True}
    found = call("/v1/responses", REQUEST | {"stream": False, "background": True}, json.dumps(body).encode())
    assert (found.complete, found.answer, found.response_id) == (False, None, "resp_1")
    assert found.error == "the answer was still queued; what was fetched later is not read"

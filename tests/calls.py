"""Model calls written by hand, one recorder at a time, and the laws that every assembled session obeys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capture.assemble import assemble
from capture.call import Message, ModelCall, SessionHint, Tool, ToolUse, Usage
from capture.pool import render
from capture.trajectory import Trajectory

KEY = b"k" * 32


MS = 1_000_000


TOOLS = (Tool(name="Bash", description="", parameters="{}"), Tool(name="Task", description="", parameters="{}"))


SYSTEM = Message(role="system", content="You are an agent.")


LONG = "The user asked for a parser; files a.py and b.py were read, the bug is in line 40 of b.py and is fixed by now."


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str, *calls: tuple[str, str, str]) -> Message:
    uses = tuple(ToolUse(id=call_id, name=name, arguments=arguments) for call_id, name, arguments in calls)
    return Message(role="assistant", content=text, tool_calls=uses)


def result(call_id: str, text: str = "ok") -> Message:
    return Message(role="tool", content=text, tool_call_id=call_id)


class Wire:
    """Builds calls of one recorder in order of sending; times in milliseconds."""

    def __init__(self, anchor_us: int = 1_790_000_000_000_000, name: str = "journal") -> None:
        self.calls: list[ModelCall] = []
        self.anchor_us = anchor_us
        self.name = name

    def call(
        self,
        send_ms: int,
        messages: list[Message],
        answer: Message | None,
        *,
        took_ms: int = 100,
        session: str | None = None,
        agent: str | None = None,
        parent_agent: str | None = None,
        body_session: str | None = None,
        **changes: Any,
    ) -> ModelCall:
        hints = (
            [SessionHint(session=session, evidence="header", agent=agent, parent_agent=parent_agent)] if session else []
        )
        hints += [SessionHint(session=body_session, evidence="body")] if body_session else []
        start = send_ms * MS
        end = start + took_ms * MS
        if answer is not None:
            timed = tuple(replace(use, t_emitted_ns=end - 5 * MS) for use in answer.tool_calls)
            answer = replace(answer, tool_calls=timed)
        complete = answer is not None
        values: dict[str, Any] = {
            "exchange_id": f"{self.name}/{len(self.calls)}",
            "connection_id": "c1",
            "wall_anchor_us": self.anchor_us,
            "api": "openai.chat",
            "harness": "pi",
            "harness_version": "1",
            "model": "m",
            "stream": True,
            "status": 200 if complete else None,
            "error": None if complete else "upstream_cut",
            "complete": complete,
            "system": tuple(message for message in messages if message.role == "system"),
            "messages": tuple(messages),
            "tools": TOOLS,
            "answer": answer,
            "stop": "stop",
            "usage": Usage(input_total=10 * len(messages), output_total=5),
            "response_id": None,
            "previous_response_id": None,
            "hints": tuple(hints),
            "max_tokens": None,
            "temperature": None,
            "effort": None,
            "t_send_ns": start,
            "t_headers_ns": start + 10 * MS,
            "t_first_byte_ns": start + 11 * MS,
            "t_first_content_ns": start + 20 * MS if complete else None,
            "t_last_content_ns": end - 6 * MS if complete else None,
            "t_end_ns": end,
            "content_at_ns": (start + 20 * MS, start + 50 * MS, end - 6 * MS) if complete else (),
            "events": 6,
            "bytes_up": 100,
            "bytes_down": 200,
        }
        call = ModelCall(**(values | changes))
        self.calls.append(call)
        return call

    def assemble(self) -> list[Trajectory]:
        found = assemble(self.calls, KEY)
        check(found, self.calls)
        return found

    def one(self) -> Trajectory:
        (found,) = self.assemble()
        return found


def check(found: list[Trajectory], calls: list[ModelCall]) -> None:
    """The laws: every call in one place, prompts exact, times in order."""
    by_exchange = {call.exchange_id: call for call in calls}
    seen = [request.exchange_id for trajectory in found for request in trajectory.requests]
    assert sorted(map(str, seen)) == sorted(by_exchange)
    for trajectory in found:
        sends = [request.t_send_us for request in trajectory.requests]
        assert sends == sorted(sends)
        assert sends[0] == 0
        assert [request.request_index for request in trajectory.requests] == list(range(len(sends)))
        for request in trajectory.requests:
            call = by_exchange[str(request.exchange_id)]
            assert request.prompt_spans is not None
            assert render(trajectory.pool, request.prompt_spans) == call.messages
            if call.answer is not None:
                assert request.answer_index is not None
                pooled = trajectory.pool[request.answer_index]
                assert pooled.answer
                assert pooled.message.content == call.answer.content
            if request.parent_request_index is not None:
                assert request.parent_request_index < request.request_index


def conversation(wire: Wire, tag: str, *, base_ms: int = 0, turns: int = 4, **named: Any) -> None:
    """A linear session: a task, then tool calls, then a closing word."""
    messages = [SYSTEM, user(f"Do {tag}.")]
    for turn in range(turns):
        last = turn == turns - 1
        answer = said(f"{tag} {turn}", *(() if last else [(f"{tag}-{turn}", "Bash", f'{{"command":"{tag} {turn}"}}')]))
        wire.call(base_ms + turn * 1000, list(messages), answer, **named)
        messages += [answer, result(f"{tag}-{turn}")]

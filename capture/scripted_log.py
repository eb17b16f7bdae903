"""What the scripted model server writes down, and what it must remember to know which answer is due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from capture.script import Dialect, Purpose, ScriptedUsage, ToolResult

type Transport = Literal["http", "sse", "websocket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCall:
    """A tool call as it went out."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLog:
    """One request as the server saw it, or one `response.create` of a WebSocket. Times are monotonic ns of the process.

    Of headers only the names are kept, and the values of those that name a session, an agent or a kind of request.
    """

    number: int  # from 1, in order of arrival
    connection: int
    method: str  # WEBSOCKET for a frame on a socket
    path: str
    header_names: tuple[str, ...]  # lower case, as sent, in order; of a frame: those of the handshake
    user_agent: str
    content_encoding: str
    dialect: Dialect | None  # None: no call to a model (models list, count_tokens, telemetry, unknown paths)
    model: str
    stream: bool
    tool_names: tuple[str, ...]
    tool_results: tuple[ToolResult, ...]
    answered: int | None  # answers in the whole prompt, over the whole chain where only its end was sent
    calls: tuple[MadeCall, ...]  # tool calls of the answer
    status: int | None
    received_headers_ns: int
    received_body_ns: int
    headers_written_ns: int | None
    first_content_ns: int | None
    last_content_ns: int | None
    last_byte_ns: int | None
    content_events: int
    body_bytes: int  # of the request, as it came
    client_left: bool  # the client hung up before the last byte
    transport: Transport = "http"
    purpose: Purpose | None = None
    identity: tuple[tuple[str, str], ...] = ()  # (name, value) of what names a session, an agent, a kind of request
    previous_response_id: str | None = None
    stream_id: str | None = None
    response_id: str | None = None  # id of the answer; None where there was none
    step: str = ""  # label of the step that was played: `steps[3]`, `child/steps[0]`, `side`, `summary`, …
    attempt: int = 0  # from 0
    usage: ScriptedUsage | None = None  # as reported to the client; None where nothing was
    text: str = ""  # of the answer
    fault: str | None = None  # `HTTP 529`, `error_event` or `cut`, where the step made one
    opening_text: str = ""  # user text before the model's first answer: says which session a nameless request is of


class Times:
    """Stamps of one answer while it is being written."""

    def __init__(self) -> None:
        self.headers: int | None = None
        self.first_content: int | None = None
        self.last_content: int | None = None
        self.last_byte: int | None = None
        self.content_events = 0
        self.status: int | None = None
        self.fault: str | None = None


@dataclass(slots=True)
class Memory:
    """What earlier answers left behind."""

    issued: dict[str, int] = field(default_factory=dict)  # id of a tool call → number of the answer that held it
    attempts: Counter[Hashable] = field(default_factory=Counter)
    summaries: list[tuple[str, int]] = field(default_factory=list)  # (text, number of the answer)
    chains: dict[str, tuple[list[Any], int]] = field(default_factory=dict)  # response id → (whole input, its bytes)

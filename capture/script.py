"""What a scripted model answers: steps with text, reasoning, tool calls, timing and faults on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

type Dialect = Literal["anthropic.messages", "openai.chat", "openai.responses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCall:
    """A tool call that the scripted model makes; the server gives it an id, as a provider would."""

    name: str
    arguments: str  # JSON text, or free text for a tool that the request offers as a custom one


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedUsage:
    """Token counts that an answer reports; `input_total` includes what is read from cache, `output_total` reasoning.

    None is filled by an estimate from the sizes of request and answer (four bytes a token).
    """

    input_total: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    output_total: int | None = None
    reasoning: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpError:
    """The request is refused with a status and a body in the dialect's own error shape."""

    status: int
    message: str = "scripted error"
    kind: str = "api_error"  # the provider's word: overloaded_error, rate_limit_exceeded, …
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBreak:
    """A stream that began well ends early: with an error event, or with the connection closed."""

    after_content_events: int
    how: Literal["error_event", "cut"]
    message: str = "scripted break"
    kind: str = "overloaded_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One answer of the scripted model: reasoning, then text, then tool calls, each left out when empty."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    usage: ScriptedUsage = ScriptedUsage()
    stop: str | None = None  # the dialect's own word; None: what the dialect says for this content
    headers_ms: float = 0.0  # from the request's last byte to the response headers
    first_content_ms: float = 20.0  # from the response headers to the first content event
    between_ms: float = 2.0  # between content events
    piece_chars: int = 24  # characters of text, reasoning or arguments in one content event
    error: HttpError | None = None
    broken: StreamBreak | None = None  # a request that does not stream is cut before its body


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """A tool's result as a request carries it."""

    call_id: str
    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedRequest:
    """What a script may look at when it chooses an answer."""

    dialect: Dialect
    path: str
    model: str
    stream: bool
    include_usage: bool  # chat only: the client asked for a usage chunk
    tool_names: tuple[str, ...]
    custom_tool_names: tuple[str, ...]  # Responses only: tools that take free text
    tool_results: tuple[ToolResult, ...]  # in order of the prompt
    answered: int  # answers of the model that the prompt holds
    last_user_text: str
    body_bytes: int  # after decoding


type Choose = Callable[[ScriptedRequest], Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Steps in order; the number of answers in the prompt says which one is due, so a retry gets the same step.

    A request that offers no tools (titles, summaries, quota probes of real agents) gets `side` and moves nothing.
    After the last step comes `after`.
    """

    steps: tuple[Step, ...]
    side: Step = Step(text="A scripted session")
    after: Step = Step(text="The script is over.")

    def __call__(self, request: ScriptedRequest) -> Step:
        if not request.tool_names:
            return self.side
        return self.steps[request.answered] if request.answered < len(self.steps) else self.after


def read_script(path: Path) -> Script:
    """Reads a script from JSON: {"steps": [STEP…], "side": STEP, "after": STEP}, STEP with the fields of `Step`.

    A call's arguments may be a JSON value or text. Raises ValueError naming the step that cannot be read.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    steps = raw.get("steps") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(steps, list):
        message = f"{path}: not a script: it needs a JSON object with a list named steps"
        raise ValueError(message)  # noqa: TRY004 - a fault of the file
    default = Script(steps=())
    return Script(
        steps=tuple(_read_step(step, f"{path}: step {number}") for number, step in enumerate(steps)),
        side=_read_step(raw["side"], f"{path}: side") if "side" in raw else default.side,
        after=_read_step(raw["after"], f"{path}: after") if "after" in raw else default.after,
    )


def _read_step(raw: dict[str, Any], place: str) -> Step:
    try:
        fields = dict(raw)
        if "calls" in fields:
            fields["calls"] = tuple(_read_call(call) for call in fields["calls"])
        for name, kind in (("usage", ScriptedUsage), ("error", HttpError), ("broken", StreamBreak)):
            if fields.get(name) is not None:
                fields[name] = kind(**fields[name])
        return Step(**fields)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{place}: {error}") from error


def _read_call(raw: dict[str, Any]) -> ScriptedCall:
    arguments = raw["arguments"]
    return ScriptedCall(name=raw["name"], arguments=arguments if isinstance(arguments, str) else json.dumps(arguments))

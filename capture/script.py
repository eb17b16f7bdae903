"""What a scripted model answers: steps with text, reasoning, tool calls, timing and faults on purpose."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

type Dialect = Literal["anthropic.messages", "openai.chat", "openai.responses", "google.gemini"]

type Purpose = Literal["turn", "side", "summary", "prewarm"]
"""What a request is for: a turn of the agent (it offers tools), a side call, a summary of the context, a prewarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCall:
    """A tool call that the scripted model makes; the server gives it an id, as a provider would."""

    name: str
    arguments: str  # JSON text, or free text for a tool that the request offers as a custom one
    namespace: str = ""  # Responses only; empty: the one in which the request offers the tool, if it does


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
    attempts: int | None = None  # how many attempts at this step fail before it succeeds; None: all


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBreak:
    """A stream that began well ends early: with an error event, or with the connection closed."""

    after_content_events: int
    how: Literal["error_event", "cut"]
    message: str = "scripted break"
    kind: str = "overloaded_error"
    attempts: int | None = None  # how many attempts at this step break before it succeeds; None: all


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
    label: str = ""  # how the log names the step; a script fills it where it is empty

    def at_attempt(self, attempt: int) -> Step:
        """The step as the given attempt (from 0) meets it: without the faults that only earlier ones meet."""
        error, broken = self.error, self.broken
        if error is not None and error.attempts is not None and attempt >= error.attempts:
            attempt -= error.attempts  # a step with both is first refused, then broken, then well
            error = None
        if error is None and broken is not None and broken.attempts is not None and attempt >= broken.attempts:
            broken = None
        return replace(self, error=error, broken=broken)


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
    body_bytes: int  # after decoding; over a WebSocket the whole chain's
    purpose: Purpose = "turn"
    system_text: str = ""
    opening_text: str = ""  # user text before the model's first answer in the prompt: the task, or a summary
    user_texts: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)  # of the request or the handshake; lower case
    identity: tuple[tuple[str, str], ...] = ()  # (name, value) of what names a session or an agent
    previous_response_id: str | None = None
    compaction_item: bool = False  # Responses only: the summary is wanted as one opaque item
    namespaces: Mapping[str, str] = field(default_factory=dict)  # Responses only: tool name → the namespace it is in
    stream_id: str | None = None  # of a frame on a WebSocket that carries several conversations
    attempt: int = 0  # requests for the same answer that this server has seen before
    compactions: int = 0  # summaries by this server, up to the latest that the prompt carries
    answered_since_summary: int = 0  # answers in the prompt that this server gave after that summary


type Choose = Callable[[ScriptedRequest], Step]


_ASKS_SUMMARY = re.compile(
    r"detailed summary of (?:the|our|this) conversation|context checkpoint|handoff summary|state_snapshot"
    r"|context summarization assistant|anchored (?:context )?summary|prompt for continuing our conversation"
    r"|summar\w+ (?:of )?(?:the|our|this) conversation",
    re.IGNORECASE,
)


def asks_summary(text: str) -> bool:
    """Whether an instruction asks for a summary of the conversation, in the words of agents that were read."""
    return _ASKS_SUMMARY.search(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Steps in order; the number of answers in the prompt says which one is due, so a retry gets the same step.

    A request that offers no tools (titles, quota probes of real agents) gets `side` and moves nothing. One that asks
    for a summary of the context gets `summary`; once a prompt carries that summary, `compacted` takes over from its
    first step, counted by the answers given since. After the last step comes `after`.
    """

    steps: tuple[Step, ...]
    side: Step = Step(text="A scripted session")
    after: Step = Step(text="The script is over.")
    summary: Step = Step(text="Summary by the script: the work so far is done, the rest of the steps is due.")
    compacted: tuple[Step, ...] = ()  # empty: `steps` go on as counted

    def __call__(self, request: ScriptedRequest) -> Step:
        """The step that is due, labelled by its place: `steps[3]`, `compacted[0]`, `after`, `side`, `summary`."""
        if request.purpose == "summary":
            return _labelled(self.summary, "summary")
        if request.purpose == "side":
            return _labelled(self.side, "side")
        steps, place, name = self.steps, request.answered, "steps"
        if request.compactions and self.compacted:
            steps, place, name = self.compacted, request.answered_since_summary, "compacted"
        return _labelled(steps[place], f"{name}[{place}]") if place < len(steps) else _labelled(self.after, "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripts:
    """One script per session or sub-agent, told apart by what their prompts say.

    The first key that stands in the text before the model's first answer (`by_task`) or in the system prompt
    (`by_system`), or that equals an identity value the request declares (`by_identity`: a session or agent id, an agent
    type), chooses; else `other`. Labels in the log are prefixed with the key: `child/steps[0]`.
    """

    by_task: Mapping[str, Choose] = field(default_factory=dict)
    by_system: Mapping[str, Choose] = field(default_factory=dict)
    by_identity: Mapping[str, Choose] = field(default_factory=dict)
    other: Choose = Script(steps=())

    def __call__(self, request: ScriptedRequest) -> Step:
        """The step of the script that the request belongs to."""
        declared = {value for _, value in request.identity}
        for choices, found in (
            (self.by_identity, declared.__contains__),
            (self.by_task, request.opening_text.__contains__),
            (self.by_system, request.system_text.__contains__),
        ):
            for key, script in choices.items():
                if found(key):
                    step = script(request)
                    return replace(step, label=f"{key}/{step.label}")
        return self.other(request)


def _labelled(step: Step, label: str) -> Step:
    return step if step.label else replace(step, label=label)


def growing_usage(
    steps: tuple[Step, ...], *, first_input_tokens: int, input_tokens_per_step: int, output_tokens: int = 50
) -> tuple[Step, ...]:
    """The steps with a reported input that grows by a fixed amount, as a context does until its agent compacts it."""
    return tuple(
        replace(
            step,
            usage=ScriptedUsage(
                input_total=first_input_tokens + place * input_tokens_per_step,
                cache_read=0 if place == 0 else first_input_tokens + (place - 1) * input_tokens_per_step,
                output_total=output_tokens,
            ),
        )
        for place, step in enumerate(steps)
    )


def read_script(path: Path) -> Script:
    """Reads a script from JSON: an object with `steps`, and maybe `side`, `after`, `summary` and `compacted`.

    Each step has the fields of `Step`. A call's arguments may be a JSON value or text. Raises ValueError naming the
    step that cannot be read.
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
    compacted = raw.get("compacted", [])
    if not isinstance(compacted, list):
        raise ValueError(f"{path}: compacted is not a list of steps")  # noqa: TRY004 - a fault of the file

    def single(name: str, otherwise: Step) -> Step:
        return _read_step(raw[name], f"{path}: {name}") if name in raw else otherwise

    return Script(
        steps=tuple(_read_step(step, f"{path}: step {number}") for number, step in enumerate(steps)),
        side=single("side", default.side),
        after=single("after", default.after),
        summary=single("summary", default.summary),
        compacted=tuple(_read_step(step, f"{path}: compacted {number}") for number, step in enumerate(compacted)),
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
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ScriptedCall(name=raw["name"], arguments=text, namespace=raw.get("namespace", ""))

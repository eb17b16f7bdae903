"""One session as a script: its turns in order, and the bytes of each request made on demand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from replay.rules import LONGEST_FREE_OUTPUT, TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from capture.trajectory import Trajectory
    from replay.chat import Cutter
    from replay.delay import DelayPolicy, Durations, Gap
    from replay.order import Step
    from replay.rules import ContextPolicy, History, LengthPolicy, Retries
    from replay.synth import Words

type Prompts = Literal["text", "token_ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request of a script and what it waits for."""

    request_index: int
    wait_for: tuple[int, ...]  # request indices of this script that must be complete
    delay_us: int  # waited after the last of them
    delay_kind: str
    recorded_prompt_tokens: int | None
    planned_prompt_tokens: int | None
    output_tokens: int  # ≥ 1
    estimated_prompt_tokens: int | None = None  # of a text prompt, by the plan's own counting
    wait_for_dispatch: tuple[int, ...] = ()  # request indices of this script that must have been sent
    tool_delay_us: int = 0  # part of `delay_us` that stands for tools, or for a gap that the source does not split
    human_delay_us: int = 0  # part of `delay_us` that stands for a human
    delay_rule: str = "recorded"  # mode of the rule that the wait came from; `tool+human` where a gap holds both


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """What goes over the wire for one turn: a JSON body and the path it is posted to."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """How much of a turn's prompt an earlier turn of the same play has sent: in tokens, or for text in bytes."""

    shared: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptUnits:
    """A prompt as units of which a server may have seen a prefix: blocks of token ids, or encoded messages.

    Equal keys at equal places mean equal units. A prompt that repeats an earlier turn's is told as the difference.
    """

    space: str  # prompts of unlike spaces share nothing
    base: int | None  # position of the turn whose first `shared` units this one repeats
    shared: int
    rest: Words


class Script(Protocol):
    """A session that an agent can play."""

    session_id: str
    turns: tuple[Turn, ...]
    chains: int  # the main agent and its sub-agents
    left_out: Counter[str]  # requests that are not replayed, by reason
    prefixes: tuple[SharedPrefix, ...]  # one per turn
    recorded_api_us: int | None  # sum over the turns of what their answers took when they were recorded

    @property
    def prompts(self) -> Prompts:
        """Whether prompts are sent as text or as token ids."""
        ...

    def request(self, turn: Turn, *, salt: str, model: str, said: Mapping[int, str] | None = None) -> PreparedRequest:
        """The request of a turn; `salt` keeps its prompt apart from that of every other salt.

        `said` holds what the model answered in this play, by request index: it takes the place of what it had said
        when the session was recorded.
        """
        ...

    def units(self, position: int) -> PromptUnits:
        """The units of a turn's prompt."""
        ...

    def size(self, position: int, units: int) -> SharedPrefix:
        """How large the first `units` units of a turn's prompt are."""
        ...

    def head_units(self, position: int) -> int:
        """How many of a turn's first units are shared between plays in spite of unlike salts."""
        ...


class SessionScript:
    """What a script is made of whatever its prompts are."""

    def __init__(self, trajectory: Trajectory, ordered: tuple[Step, ...], rules: Rules, left_out: Counter[str]) -> None:
        self.session_id = trajectory.session_id
        self.left_out = left_out
        self.chains = len({step.request.agent_path for step in ordered})
        self.recorded_api_us = recorded_api_us(ordered)
        self._delay = rules.delay
        self._length = rules.length
        self._head_salt = rules.head_salt
        self._limit = rules.context.limit
        self._refused_fields = rules.refused_fields


class NothingToReplay(ValueError):
    """A session that holds no request that could be sent; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything but the session itself that a script depends on."""

    delay: DelayPolicy
    length: LengthPolicy
    context: ContextPolicy
    token_ids: tuple[int, int]
    cutter: Callable[[], Cutter]  # made at first use: an encoding takes half a second to load
    retries: Retries = "drop"
    history: History = "recorded"
    head_salt: str | None = None  # of the head that all plays share; None: every play salts its own
    refused_fields: tuple[str, ...] = ()  # of a request: what this server does not take


def make_turn(
    step: Step,
    delay: DelayPolicy,
    *,
    planned_prompt_tokens: int | None,
    output_tokens: int,
    estimated_prompt_tokens: int | None = None,
) -> Turn:
    """A turn of a script; a delay that is to be drawn stands as recorded until `redraw`."""
    found = delay.delay(step.gap)
    return Turn(
        request_index=step.request.request_index,
        wait_for=step.wait_for,
        wait_for_dispatch=step.wait_for_dispatch,
        delay_us=found.total_us,
        delay_kind=step.gap.kind,
        tool_delay_us=found.tool_us,
        human_delay_us=found.human_us,
        delay_rule=found.rule,
        recorded_prompt_tokens=step.request.prompt_tokens,
        planned_prompt_tokens=planned_prompt_tokens,
        output_tokens=output_tokens,
        estimated_prompt_tokens=estimated_prompt_tokens,
    )


def redraw(turn: Turn, gap: Gap, session_id: str, delay: DelayPolicy, durations: Durations) -> Turn:
    """A turn with its delay drawn from the dataset's own distribution, as far as the policy says so."""
    found = delay.delay(gap, durations.draw(gap, session_id, turn.request_index))
    return replace(turn, delay_us=found.total_us, tool_delay_us=found.tool_us, human_delay_us=found.human_us)


def recorded_api_us(ordered: Sequence[Step]) -> int | None:
    """What the answers took when they were recorded, in microseconds; None where that is not known of all."""
    spans = [span for step in ordered if (span := step.request.call_span) is not None]
    return sum(end - start for start, end in spans) if len(spans) == len(ordered) else None


def body_head(
    model: str,
    turn: Turn,
    length: LengthPolicy,
    limit: int | None,
    prompt_tokens: int | None,
    refused_fields: tuple[str, ...],
) -> bytes:
    """The part of a body that does not depend on the prompt, without its closing brace.

    `limit` is the context's; with a known prompt it bounds what a model that stops by itself may answer.
    `refused_fields` are left out.
    """
    shape: dict[str, object] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": TEMPERATURE,
    }
    if length.mode == "exact":
        shape["max_tokens"] = turn.output_tokens
        shape["ignore_eos"] = True
    else:
        longest = length.cap or LONGEST_FREE_OUTPUT
        room = longest if limit is None or prompt_tokens is None else limit - prompt_tokens
        shape["max_tokens"] = max(1, min(longest, room))
    for name in refused_fields:
        shape.pop(name, None)
    return msgspec.json.encode(shape)[:-1]

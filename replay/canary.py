"""A quality canary: a few small questions before the first trial and after the last, and what has shifted in between.

Speed can be bought with quality: a cache in fewer bits, a smaller draft taken on trust, a model swapped under load. The
canary judges no model by an absolute standard, since it has to work on made-up weights too: it compares a server with
itself, and with an earlier run where one is named. Every question is asked at temperature 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from replay.answer import error_message

if TYPE_CHECKING:
    from replay.endpoint import Caller

CANARY_VERSION = 1
REQUEST_TIMEOUT_S = 12.0
FIRST_USE_TIMEOUT_S = 60.0
"""Of the question for log-probabilities, which is asked alone: an engine may compile what it takes to answer the first
such question and serve nobody meanwhile, and no trial may begin in that time."""
GREEDY_TOKENS = 40
FREE_TOKENS = 200
TOOL_TOKENS = 96
LONGEST_KEPT = 4_000
"""Characters of an answer."""

GREEDY_LEFT = 0.5
"""An equal start between two answers must keep this share of what the server itself repeats before the trials."""
LEAST_REPEATED = 0.2
"""Below this share of equal start a server's greedy answers do not repeat at all, and nothing can be said of them."""
DISTINCT_LEFT = 0.5
"""The share of distinct words in the free answer must keep this share of what it was."""
LEAST_WORDS = 30
"""A shorter free answer says nothing about repetition."""
TOOL_CALLS_LOST = 2
"""So many sound tool calls fewer, of three, are a shift; one may be a near tie in the model."""
LOG_PROBABILITY_SHIFT_NATS = 0.1
"""Per token: a perplexity that differs by a tenth. Rounding in the server's arithmetic stays well below."""

SLOW = "no answer in time"
"""How the text of a question begins that was still open at its time-out. That is no statement about quality."""

GREEDY_PROMPTS = (
    "List the first twelve prime numbers, separated by commas.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Explain in two sentences what a prefix cache is.",
)
FREE_PROMPT = (
    "Describe how you would find out why a web service answers slowly on Mondays: what to measure first, "
    "what to rule out, and how to check the fix."
)
TOOL_PROMPTS = (
    "Read the file README.md.",
    "Show me what is in src/main.py.",
    "Open the file docs/setup.txt with your tool.",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file and return its text.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "description": "Path of the file."}},
            "required": ["path"],
        },
    },
}
RECORDED_ANSWER = (
    "The request waited because the cache was full: eight sessions had to share the memory of five. I moved the "
    "longest one to the second machine, watched the queue for ten minutes, and saw it stay empty. The change is one "
    "line in the configuration, and the test that I added fails without it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """One prompt asked twice. The same words are expected; None where it failed."""

    first: str | None
    second: str | None
    error: str | None

    @property
    def repeated(self) -> float | None:
        """How much of the answer the server gave again."""
        return None if self.first is None or self.second is None else equal_start(self.first, self.second)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalls:
    """Questions that call for a tool, and the answers that called it by name with arguments that fit its schema."""

    asked: int
    answered: int
    sound: int
    skipped: str | None  # why nothing was asked or counted


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeAnswer:
    """A longer answer and how many of its words are distinct."""

    words: int
    distinct_share: float | None
    skipped: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProbability:
    """How likely the model finds a text that it did not write: mean natural logarithm per token."""

    tokens: int
    mean_nats: float | None
    skipped: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCanary:
    """What one server answered."""

    greedy: tuple[Greedy, ...]
    tools: ToolCalls
    free: FreeAnswer
    recorded: LogProbability


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """What was asked and answered, without a verdict; one entry per URL."""

    version: int
    model: str
    seconds: float
    servers: tuple[ServerCanary, ...]


async def run_canary(caller: Caller, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> CanaryResult:
    """Ask every server of the endpoint; failures are facts of the result, nothing is raised for them."""
    started_ns = time.monotonic_ns()
    askers = [_Asker(caller, server, request_timeout_s) for server in range(len(caller.endpoint.urls))]
    servers = await asyncio.gather(*(asker.run() for asker in askers))
    return CanaryResult(
        version=CANARY_VERSION,
        model=caller.endpoint.model,
        seconds=round((time.monotonic_ns() - started_ns) / 1e9, 3),
        servers=tuple(servers),
    )


class _Refused(Exception):
    """The server did not answer; the text says how."""


class _Asker:
    def __init__(self, caller: Caller, server: int, timeout_s: float) -> None:
        self.caller = caller
        self.server = server
        self.timeout_s = timeout_s

    async def run(self) -> ServerCanary:
        # In two rounds, so that the second greedy answers are made in other company than the first: what differs
        # between them is what the server's batching does to greedy answers anyway.
        firsts, free, tools = await asyncio.gather(self.greedy(), self.free(), self.tools())
        seconds = await self.greedy()
        recorded = await self.recorded()
        pairs = [
            Greedy(first=first[0], second=second[0], error=first[1] or second[1])
            for first, second in zip(firsts, seconds, strict=True)
        ]
        return ServerCanary(greedy=tuple(pairs), tools=tools, free=free, recorded=recorded)

    async def ask(self, path: str, fields: dict[str, object], timeout_s: float) -> dict[str, Any]:
        """The first choice of an answer that is not streamed, with `usage` beside it."""
        body = msgspec.json.encode({"model": self.caller.endpoint.model, "temperature": 0.0, "stream": False, **fields})
        try:
            response = await self.caller.post(path, body, timeout_s=timeout_s, server=self.server)
        except httpx.TimeoutException as fault:
            raise _Refused(f"{SLOW} ({timeout_s:g} s)") from fault
        except (httpx.TransportError, httpx.DecodingError) as fault:
            raise _Refused(str(fault) or type(fault).__name__) from fault
        if response.status_code != 200:
            said = self.caller.quoted(error_message(response.content) or "no reason given")
            raise _Refused(f"HTTP {response.status_code}: {said}")
        try:
            value = msgspec.json.decode(response.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise _Refused("the answer is not JSON") from fault
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise _Refused("the answer holds no choice")
        return {**choices[0], "usage": value.get("usage")}

    async def say(self, prompt: str, max_tokens: int, **fields: object) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, **fields}
        choice = await self.ask("/v1/chat/completions", asked, self.timeout_s)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise _Refused("the answer holds no message")
        return message

    async def greedy(self) -> list[tuple[str | None, str | None]]:
        """Each prompt's answer, or what came instead."""

        async def one(prompt: str) -> tuple[str | None, str | None]:
            try:
                return _text(await self.say(prompt, GREEDY_TOKENS)), None
            except _Refused as fault:
                return None, str(fault)

        return await asyncio.gather(*map(one, GREEDY_PROMPTS))

    async def free(self) -> FreeAnswer:
        try:
            words = _text(await self.say(FREE_PROMPT, FREE_TOKENS)).split()
        except _Refused as fault:
            return FreeAnswer(words=0, distinct_share=None, skipped=str(fault))
        share = round(len(set(words)) / len(words), 4) if words else None
        return FreeAnswer(words=len(words), distinct_share=share, skipped=None)

    async def tools(self) -> ToolCalls:
        async def one(prompt: str) -> bool | str:
            try:
                return sound_call(await self.say(prompt, TOOL_TOKENS, tools=[TOOL]))
            except _Refused as fault:
                return str(fault)

        answers = await asyncio.gather(*map(one, TOOL_PROMPTS))
        refusals = [answer for answer in answers if isinstance(answer, str)]
        return ToolCalls(
            asked=len(answers),
            answered=len(answers) - len(refusals),
            sound=sum(answer is True for answer in answers),
            skipped=refusals[0] if len(refusals) == len(answers) else None,
        )

    async def recorded(self) -> LogProbability:
        """By the completions interface's `echo`, which few servers have with log-probabilities."""
        try:
            asked = {"prompt": RECORDED_ANSWER, "max_tokens": 1, "echo": True, "logprobs": 1}
            choice = await self.ask("/v1/completions", asked, FIRST_USE_TIMEOUT_S)
        except _Refused as fault:
            return LogProbability(tokens=0, mean_nats=None, skipped=str(fault))
        values = prompt_log_probabilities(choice)
        if not values:
            return LogProbability(tokens=0, mean_nats=None, skipped="the server gives none for the tokens of a prompt")
        return LogProbability(tokens=len(values), mean_nats=round(sum(values) / len(values), 6), skipped=None)


def _text(message: dict[str, Any]) -> str:
    parts = [message.get("reasoning_content"), message.get("reasoning"), message.get("content")]
    return "".join(part for part in parts if isinstance(part, str))[:LONGEST_KEPT]


def sound_call(message: dict[str, Any]) -> bool:
    """Whether a message calls our tool by its name with the arguments that its schema asks for."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls or not isinstance(calls[0], dict):
        return False
    function = calls[0].get("function")
    if not isinstance(function, dict) or function.get("name") != "read_file":
        return False
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            return False
    return isinstance(arguments, dict) and isinstance(arguments.get("path"), str)


def prompt_log_probabilities(choice: dict[str, Any]) -> list[float]:
    """Those of the prompt's tokens after the first; none where the server gives only the output's."""
    held, usage = choice.get("logprobs"), choice.get("usage")
    values = held.get("token_logprobs") if isinstance(held, dict) else None
    prompt_tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if not isinstance(values, list) or type(prompt_tokens) is not int or len(values) < max(2, prompt_tokens):
        return []
    return [float(value) for value in values[1:prompt_tokens] if isinstance(value, int | float)]


def equal_start(left: str, right: str) -> float:
    """The share of two answers, by characters, up to where they part."""
    if left == right:
        return 1.0
    same = next(
        (place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other),
        min(len(left), len(right)),
    )
    return same / max(len(left), len(right))


def compare_canaries(
    before: CanaryResult, after: CanaryResult | None, baseline: CanaryResult | None = None
) -> tuple[str, ...]:
    """Why the quality is not what it was, in sentences; none where nothing shifted that can be told apart from noise.

    `after` is held against `before`, and `before` against `baseline`, an earlier run of the same model. Raises
    ValueError for canaries of different versions.
    """
    reasons: list[str] = []
    pairs = ((before, after, "after the trials"), (baseline, before, "against the baseline"))
    for earlier, later, when in pairs:
        if earlier is None or later is None:
            continue
        if earlier.version != later.version:
            raise ValueError(
                f"a canary of version {earlier.version} cannot be held against one of version {later.version}: "
                "run the earlier one again"
            )
        for number, server in enumerate(later.servers):
            place = f" on server {number + 1}" if len(later.servers) > 1 else ""
            reasons += _shifts(earlier.servers[min(number, len(earlier.servers) - 1)], server, f"{when}{place}")
    return tuple(reasons)


def _shifts(before: ServerCanary, after: ServerCanary, when: str) -> list[str]:
    if _is_silent(after) and not _is_silent(before):
        return [f"{when} none of the questions was answered in time"]
    return [
        f"{when} {shift}"
        for shift in (
            *_greedy_shifts(before.greedy, after.greedy),
            _tools_shift(before.tools, after.tools),
            _free_shift(before.free, after.free),
            _recorded_shift(before.recorded, after.recorded),
        )
        if shift is not None
    ]


def _is_slow(text: str | None) -> bool:
    return text is not None and text.startswith(SLOW)


def _is_silent(server: ServerCanary) -> bool:
    greedy = all(pair.first is None and _is_slow(pair.error) for pair in server.greedy)
    return greedy and _is_slow(server.tools.skipped) and _is_slow(server.free.skipped)


def _greedy_shifts(before: Sequence[Greedy], after: Sequence[Greedy]) -> list[str]:
    pairs = tuple(zip(before, after, strict=True))
    found = []
    lost = [new.error or "empty" for old, new in pairs if old.first and not new.first and not _is_slow(new.error)]
    if lost:
        found.append(f"{len(lost)} of {len(before)} greedy prompts were not answered: {lost[0]}")
    repeated = _mean([pair.repeated for pair in before])
    kept = _mean(
        [equal_start(old.first, new.first) for old, new in pairs if old.first is not None and new.first is not None]
    )
    if repeated is not None and kept is not None and repeated >= LEAST_REPEATED and kept < GREEDY_LEFT * repeated:
        found.append(
            f"the greedy answers agree for {kept:.0%} of their length; the server itself repeated {repeated:.0%}"
        )
    return found


def _tools_shift(before: ToolCalls, after: ToolCalls) -> str | None:
    if before.skipped is not None or _is_slow(after.skipped):
        return None
    if after.skipped is not None:
        return f"tools are no longer taken: {after.skipped}"
    unanswered = after.asked - after.answered
    if before.sound - after.sound - unanswered < TOOL_CALLS_LOST:
        return None
    return f"{after.sound} of {after.asked} tool calls were sound; {before.sound} had been"


def _free_shift(before: FreeAnswer, after: FreeAnswer) -> str | None:
    if before.distinct_share is None or before.words < LEAST_WORDS or _is_slow(after.skipped):
        return None
    if after.distinct_share is None:
        return f"the free answer was {f'refused: {after.skipped}' if after.skipped else 'empty'}"
    if after.words < LEAST_WORDS or after.distinct_share >= DISTINCT_LEFT * before.distinct_share:
        return None
    return f"{after.distinct_share:.0%} of the free answer's words were distinct; {before.distinct_share:.0%} had been"


def _recorded_shift(before: LogProbability, after: LogProbability) -> str | None:
    if before.mean_nats is None or _is_slow(after.skipped):
        return None
    if after.mean_nats is None:
        return f"the recorded answer got no log-probability: {after.skipped}"
    if abs(after.mean_nats - before.mean_nats) <= LOG_PROBABILITY_SHIFT_NATS:
        return None
    return (
        f"the recorded answer's mean log-probability was {after.mean_nats:.3f} nats a token; "
        f"it had been {before.mean_nats:.3f}"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

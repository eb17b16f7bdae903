"""The questions of the probe, and how each is settled.

The one that matters most is whether `ignore_eos` holds: with the length forced, two systems do the same token work;
without, the one whose model stops early looks faster. A model that rambles proves nothing, so the question is forced
where the server lets us: a logit bias makes the end token certain, a control shows that the model then stops at once,
and the same request with `ignore_eos` must go on to the length asked for.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import msgspec

from replay.answer import Answer, error_message, read_answer
from replay.endpoint import Caller, EndpointError
from replay.identify import Identity, identify
from replay.probe import EosVerdict, KeepAlive, OptionVerdict, ProbeReport, Reuse, Taken, TokenPromptVerdict
from replay.transport import WIRE

if TYPE_CHECKING:
    from replay.wire import Wire

PAGE_OF_CODE = Path(__file__).with_name("page_of_code.txt")
"""Some real code, as agents read all day: 6,000 characters of our own."""
PAGE_TOKENS = 1487
"""Of that page as o200k_base counts: loading the encoding would take half a second of every run's start."""
FORCED_TOKENS = 16
LEAST_TOKENS = 8
END_TOKEN_TEXTS = (
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
    "<|user|>",
)
MOST_END_TOKENS_TRIED = 3
TOKEN_PROMPT_LENGTHS = (24, 57)
PREFIX_LENGTHS = ((2047, 1535, 2100), (1023, 767, 1080))
"""Shared starts and whole length, in tokens. For every power of two up to an eighth of them, the whole blocks in the
two starts are numbers without a common divisor: the block is then the greatest common divisor of what was cached."""
CONTEXT_LIMIT = re.compile(
    r"(?:maximum context length|max_model_len|context size|context length|context window|n_ctx)\D{0,30}?(\d{3,9})",
    re.IGNORECASE,
)
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_FINGERPRINT = re.compile(rb'"system_fingerprint"\s*:\s*"([^"]{1,80})"')
_QUESTION = "Reply with the single word OK."
_TOOL = {
    "type": "function",
    "function": {
        "name": "list_files",
        "description": "List the files of a folder.",
        "parameters": {"type": "object", "properties": {"folder": {"type": "string"}}, "required": ["folder"]},
    },
}
_TOOL_HISTORY = (
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": "Which files are here?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "A tool knows.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "list_files", "arguments": '{"folder": "."}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "README.md"},
    {"role": "user", "content": "Thank you."},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """One answer to a question of the probe."""

    status: int | None
    answer: Answer | None  # None: no stream came
    error: str | None
    server: str | None = None
    body: bytes = b""
    wire: Wire | None = None
    closes: bool = False  # the server says that it closes the connection

    @property
    def refused(self) -> bool:
        """The server understood, and does not take it."""
        return self.status is not None and 400 <= self.status < 500

    @property
    def sound(self) -> bool:
        return self.status == 200 and self.answer is not None and self.answer.error is None

    @property
    def words(self) -> str:
        return f"HTTP {self.status}: {self.error}" if self.status not in (None, 200) else str(self.error)


class Questions:
    """Asks one server; `run` once."""

    def __init__(self, caller: Caller, timeout_s: float) -> None:
        self.caller = caller
        self.timeout_s = timeout_s
        self.requests = 0
        self.end_token: int | None = None
        self.tokenizes = False
        self.refused: list[str] = []  # fields of a replay's request that this server does not take

    async def run(self) -> tuple[ProbeReport, Identity]:
        endpoint = self.caller.endpoint
        cards = await self.caller.reach()
        card = await self.caller.check_model() if cards is not None else None
        properties = await self.caller.properties()
        # Long enough for an engine that caches by blocks to have one to reuse.
        long_prompt = "Count the words of this text. " + "Many agents read many files and wait for their tools. " * 30
        first = await self.first(long_prompt)
        again = await self.chat(long_prompt, 8)
        continuous, chunked = await self.ask_chunks()
        fingerprint = _FINGERPRINT.search(first.body)
        async with asyncio.TaskGroup() as group:
            identifying = group.create_task(
                identify(
                    self.caller,
                    owner=card.owner if card else None,
                    header=first.server,
                    fingerprint=fingerprint[1].decode("utf-8", "replace") if fingerprint else None,
                )
            )
            lengths = group.create_task(self.ask_lengths(properties))
            token_ids = group.create_task(self.ask_token_prompts(card.vocabulary_tokens if card else None))
            limit = group.create_task(self.ask_context(properties, card.context_tokens if card else None))
            unknown = group.create_task(self.chat(_QUESTION, 1, agentdyno_does_not_exist=True))
            tools = group.create_task(self.chat(_QUESTION, 1, tools=[_TOOL]))
            history = group.create_task(self.messages(_TOOL_HISTORY, 1))
            text = group.create_task(self.ask_text_tokens(long_prompt, first))
        identity = identifying.result()
        verdict, evidence, bias, least = lengths.result()
        token_prompts, token_evidence = token_ids.result()
        context, source = limit.result()
        text_tokens_x, tokenize_difference = text.result()
        reuse, block, prefix_evidence = await self.ask_prefix(token_prompts, context, again)
        answer = first.answer
        return (
            ProbeReport(
                url=endpoint.url,
                model=endpoint.model,
                engine=identity.engine,
                engine_version=identity.version,
                engine_evidence=identity.evidence,
                server=first.server or (card.owner if card else None),
                models=tuple(entry.model for entry in cards) if cards is not None else None,
                metrics_page=identity.metrics_page,
                streams=answer is not None and answer.events > 1,
                usage_in_stream=answer is not None and answer.completion_tokens is not None,
                continuous_usage=continuous,
                done_marker=answer is not None and answer.done,
                tokens_per_chunk=_tokens_per_chunk(chunked),
                keep_alive=_keep_alive(first, again, chunked),
                ignore_eos=verdict,
                ignore_eos_evidence=evidence,
                min_tokens=least,
                logit_bias=bias,
                end_token=self.end_token,
                refused_fields=tuple(self.refused),
                unknown_fields="refused" if unknown.result().refused else "taken",
                tools=_taken(tools.result()),
                tools_evidence=_tools_evidence(tools.result()),
                tool_history=_taken(history.result()),
                tool_history_evidence="answered" if history.result().sound else history.result().words,
                token_prompts=token_prompts,
                token_prompts_evidence=token_evidence,
                context_tokens=context,
                context_source=source,
                vocabulary_tokens=card.vocabulary_tokens if card else None,
                text_tokens_x=text_tokens_x,
                tokenizes=self.tokenizes,
                tokenize_difference=tokenize_difference,
                cached_tokens_reported=any(
                    reply.answer is not None and reply.answer.cached_tokens is not None for reply in (first, again)
                ),
                prefix_reuse=reuse,
                prefix_block_tokens=block,
                prefix_evidence=prefix_evidence,
                requests=self.requests,
            ),
            identity,
        )

    # -- asking

    async def ask(self, path: str, fields: dict[str, object], timeout_s: float | None = None) -> _Reply:
        self.requests += 1
        body: dict[str, object] = {
            "model": self.caller.endpoint.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            **fields,
        }
        for name in self.refused:
            if name not in fields:
                body.pop(name, None)
        try:
            response = await self.caller.post(path, msgspec.json.encode(body), timeout_s=timeout_s or self.timeout_s)
        except (httpx.TransportError, httpx.DecodingError) as fault:
            return _Reply(status=None, answer=None, error=str(fault))
        server = response.headers.get("server")
        status = response.status_code
        if status != 200:
            error = self.caller.quoted(error_message(response.content) or "no reason given")
            return _Reply(status=status, answer=None, error=error, server=server)
        wire: Wire = response.extensions[WIRE]
        answer = read_answer(wire.reads)
        return _Reply(
            status=status,
            answer=answer if answer.events else None,
            error=self.caller.quoted(answer.error or "") or None if answer.events else "no event stream",
            server=server,
            body=response.content,
            wire=wire,
            closes=response.headers.get("connection", "").lower() == "close",
        )

    async def messages(self, messages: object, max_tokens: int, **fields: object) -> _Reply:
        return await self.ask("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens, **fields})

    async def chat(self, text: str, max_tokens: int, **fields: object) -> _Reply:
        return await self.messages([{"role": "user", "content": text}], max_tokens, **fields)

    async def first(self, text: str) -> _Reply:
        """The first answer, if need be without the fields that this server does not know; raises `EndpointError`."""
        reply = await self.chat(text, 8)
        if reply.status in (400, 422):
            for left_out in (["stream_options"], ["temperature"], ["stream_options", "temperature"]):
                self.refused = left_out
                plainer = await self.chat(text, 8)
                if plainer.sound:
                    return plainer
            self.refused = []
        endpoint = self.caller.endpoint
        if reply.status == 200 and reply.answer is None and reply.body.lstrip()[:1] != b"{":
            raise EndpointError(
                f"what listens at {endpoint.url} is no model server: it answers a chat completion with neither events "
                "nor JSON; is that the base URL?"
            )
        if reply.status != 200 or (reply.answer is not None and reply.answer.error is not None):
            status = f" (HTTP {reply.status})" if reply.status not in (None, 200) else ""
            raise EndpointError(
                f"the server at {endpoint.url} does not answer a chat completion{status}: {reply.error}; "
                f"is {endpoint.model!r} its model?"
            )
        return reply

    async def ask_chunks(self) -> tuple[bool | None, _Reply]:
        """Whether usage comes with every chunk where it is asked for, and an answer of some length."""
        options = {"include_usage": True, "continuous_usage_stats": True}
        reply = await self.chat(_QUESTION, 3 * FORCED_TOKENS, stream_options=options)
        if reply.answer is None:
            return (False if reply.refused else None), reply
        return len(_USAGE.findall(reply.body)) > 2, reply

    async def ask_text_tokens(self, short: str, first: _Reply) -> tuple[float | None, int | None]:
        """How this server counts code: over what datasets are counted by, and minus what its `/tokenize` says.

        What its chat template adds is the same for a short text, and taken off for the second number.
        """
        code = PAGE_OF_CODE.read_text(encoding="utf-8")
        reply = await self.chat(code, 1)
        if reply.answer is None or reply.answer.prompt_tokens is None:
            return None, None
        ratio = round(reply.answer.prompt_tokens / PAGE_TOKENS, 3)
        of_code, of_short = await self.caller.tokenize(code), await self.caller.tokenize(short)
        counted = first.answer.prompt_tokens if first.answer is not None else None
        if of_code is None or of_short is None or counted is None:
            return ratio, None
        self.tokenizes = True
        return ratio, (reply.answer.prompt_tokens - len(of_code)) - (counted - len(of_short))

    # -- lengths of answers

    async def ask_lengths(self, properties: dict[str, object]) -> tuple[EosVerdict, str, OptionVerdict, OptionVerdict]:
        """Verdicts about ignore_eos with its evidence, logit_bias and min_tokens."""
        bias_verdict: OptionVerdict = "unforced"
        for token in await self.end_tokens(properties):
            bias = {str(token): 100}
            control = await self.chat(_QUESTION, FORCED_TOKENS, logit_bias=bias)
            if control.status != 200 or control.answer is None:
                bias_verdict = "refused" if control.refused else "unforced"
                break
            if not _stopped_early(control.answer, FORCED_TOKENS):
                continue  # not this model's end token
            self.end_token = token
            forced = await self.chat(_QUESTION, FORCED_TOKENS, logit_bias=bias, ignore_eos=True)
            self.note_refusal("ignore_eos", forced)
            least = await self.chat(_QUESTION, FORCED_TOKENS, logit_bias=bias, min_tokens=LEAST_TOKENS)
            verdict, evidence = _compare(forced, FORCED_TOKENS, f"with its end token {token} made certain")
            return verdict, evidence, "obeyed", _at_least(least)
        least = await self.chat(_QUESTION, FORCED_TOKENS, min_tokens=LEAST_TOKENS)
        least_verdict: OptionVerdict = "refused" if least.refused else "unforced"
        verdict, evidence = await self.ask_unforced()
        return verdict, evidence, bias_verdict, least_verdict

    async def ask_unforced(self) -> tuple[EosVerdict, str]:
        control = await self.chat(_QUESTION, 3 * FORCED_TOKENS)
        stops_itself = control.answer is not None and _stopped_early(control.answer, 3 * FORCED_TOKENS)
        evidence = ""
        for length in (7, 3 * FORCED_TOKENS):
            way = "where it stops by itself otherwise" if stops_itself else "and it does not stop by itself either"
            reply = await self.chat(_QUESTION, length, ignore_eos=True)
            self.note_refusal("ignore_eos", reply)
            found, evidence = _compare(reply, length, way)
            if found != "obeyed":
                return found, evidence
        return ("obeyed" if stops_itself else "unforced"), evidence

    def note_refusal(self, field: str, reply: _Reply) -> None:
        if reply.refused and field not in self.refused:
            self.refused.append(field)

    async def end_tokens(self, properties: dict[str, object]) -> list[int]:
        """Candidates for the end token: what `/tokenize` takes for one token of its own."""
        named = properties.get("eos_token")
        texts = ([named] if isinstance(named, str) and named else []) + list(END_TOKEN_TEXTS)
        found: list[int] = []
        for text in dict.fromkeys(texts):
            tokens = await self.caller.tokenize(text)
            if tokens is None:
                break
            self.tokenizes = True
            if len(tokens) == 1 and tokens[0] not in found:
                found.append(tokens[0])
            if len(found) == MOST_END_TOKENS_TRIED:
                break
        return found

    # -- prompts of token ids

    async def complete(self, prompt: list[int], max_tokens: int) -> _Reply:
        return await self.ask("/v1/completions", {"prompt": prompt, "max_tokens": max_tokens})

    async def ask_token_prompts(self, vocabulary_tokens: int | None) -> tuple[TokenPromptVerdict, str]:
        counted = []
        for length in TOKEN_PROMPT_LENGTHS:
            # Low ids exist in every vocabulary; the first few are special tokens in many.
            spread = min(vocabulary_tokens or 256, 256) - 100
            prompt = [100 + 7 * place % max(1, spread) for place in range(length)]
            reply = await self.complete(prompt, 2)
            if reply.status != 200 or reply.answer is None:
                return "refused", f"HTTP {reply.status}: {reply.error}" if reply.status else str(reply.error)
            counted.append(reply.answer.prompt_tokens)
        asked = " and ".join(map(str, TOKEN_PROMPT_LENGTHS))
        seen = " and ".join(str(count) if count is not None else "unknown" for count in counted)
        verdict: TokenPromptVerdict = "exact" if counted == list(TOKEN_PROMPT_LENGTHS) else "inexact"
        return verdict, f"sent {asked} ids, counted as {seen}"

    # -- the prefix cache

    async def ask_prefix(
        self, token_prompts: TokenPromptVerdict, context: int | None, again: _Reply
    ) -> tuple[Reuse | None, int | None, str]:
        """The unit in which a start that was sent before is reused, by the server's own count of cached tokens."""
        lengths = next((each for each in PREFIX_LENGTHS if context is None or each[2] + 8 <= context), None)
        if token_prompts != "exact" or lengths is None:  # noqa: S105 - tokens of a model, not secrets
            return _reuse_of_a_repeat(again.answer)
        long, short, whole = lengths
        # Random, so that no earlier probe's prompts are in the cache; the ends differ from their first token on.
        begin = [100 + secrets.randbelow(100) for _ in range(whole)]
        await self.complete(begin, 1)
        cached = []
        for shared in (long, short):
            end = [100 + (begin[place] - 100 + 1 + secrets.randbelow(98)) % 100 for place in range(shared, whole)]
            reply = await self.complete(begin[:shared] + end, 1)
            cached.append(reply.answer.cached_tokens if reply.answer is not None else None)
        return prefix_reuse((long, short), cached)

    # -- the context limit

    async def ask_context(self, properties: dict[str, object], from_list: int | None) -> tuple[int | None, str | None]:
        settings = properties.get("default_generation_settings")
        slot = settings.get("n_ctx") if isinstance(settings, dict) else None
        if isinstance(slot, int) and slot > 0:
            return slot, "/props"  # of one slot; llama.cpp's model list tells what the model was trained with
        if from_list is not None:
            return from_list, "/v1/models"
        # More output than any context holds: a server that checks says what it has, one that does not is hung up on.
        reply = await self.ask(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100_000_000},
            timeout_s=min(5.0, self.timeout_s),
        )
        found = CONTEXT_LIMIT.search(reply.error or "") if reply.status != 200 else None
        return (int(found[1]), "the words of its refusal") if found else (None, None)


def prefix_reuse(shared: tuple[int, int], cached: list[int | None]) -> tuple[Reuse | None, int | None, str]:
    """The unit of reuse from two shared starts and what was counted as cached of each."""
    seen = [count for count in cached if count is not None]
    if len(seen) < len(cached):
        if not seen or max(seen) == 0:
            return None, None, "cached tokens are not reported"
        seen = [count or 0 for count in cached]
    evidence = f"of {shared[0]} and {shared[1]} shared tokens it took {seen[0]} and {seen[1]} from its cache"
    if seen == list(shared):
        return "token", 1, evidence
    if not any(seen):
        return "none", None, evidence
    block = math.gcd(*seen)
    if (
        min(seen) > 0
        and block > 1
        and all(length // block * block == count for length, count in zip(shared, seen, strict=True))
    ):
        return "block", block, evidence
    return "irregular", None, evidence


def _reuse_of_a_repeat(answer: Answer | None) -> tuple[Reuse | None, int | None, str]:
    """What a repeated prompt says: nothing of the size of a block."""
    if answer is None or answer.cached_tokens is None or answer.prompt_tokens is None:
        return None, None, "cached tokens are not reported"
    evidence = f"of a repeated prompt of {answer.prompt_tokens} tokens it took {answer.cached_tokens} from its cache"
    if answer.cached_tokens == 0:
        return "none", None, evidence
    return ("token" if answer.prompt_tokens - answer.cached_tokens <= 1 else "block"), None, evidence


def _tokens_per_chunk(reply: _Reply) -> float | None:
    answer = reply.answer
    if answer is None or not answer.completion_tokens or not answer.content_events:
        return None
    return round(answer.completion_tokens / answer.content_events, 3)


def _keep_alive(*replies: _Reply) -> KeepAlive | None:
    """By three requests one after the other: whether each found the connection of the one before still open."""
    wires = [reply.wire for reply in replies if reply.wire is not None]
    if len(wires) < 2:
        return None
    if all(wire.reused_connection and wire.redialled_from_ns is None for wire in wires[1:]):
        return "kept"
    return "closed" if any(reply.closes for reply in replies) else "announced, not kept"


def _taken(reply: _Reply) -> Taken:
    return "taken" if reply.sound else "refused"


def _tools_evidence(reply: _Reply) -> str:
    if not reply.sound:
        return reply.words
    count = reply.answer.prompt_tokens if reply.answer is not None else None
    return "answered" if count is None else f"answered; a short question and one tool are {count} prompt tokens"


def _stopped_early(answer: Answer, asked: int) -> bool:
    if answer.completion_tokens is not None:
        return answer.completion_tokens < asked
    return answer.finish_reason is not None and answer.finish_reason != "length"


def _at_least(reply: _Reply) -> OptionVerdict:
    if reply.refused:
        return "refused"
    count = reply.answer.completion_tokens if reply.answer is not None else None
    return "obeyed" if count is not None and count >= LEAST_TOKENS else "ignored"


def _compare(reply: _Reply, asked: int, way: str) -> tuple[EosVerdict, str]:
    if reply.refused:
        return "refused", reply.words
    if reply.answer is None:
        return "ignored", f"asked for {asked} tokens {way}, it failed: {reply.error}"
    answer = reply.answer
    count = "an unknown number" if answer.completion_tokens is None else str(answer.completion_tokens)
    evidence = f"asked for {asked} tokens {way}, it gave {count}, finish reason {answer.finish_reason!r}"
    obeyed = answer.finish_reason == "length" and answer.completion_tokens in (asked, None)
    return ("obeyed" if obeyed else "ignored"), evidence

"""What a server honours of what a replay asks, found by asking, before a run depends on it.

The question that matters most is whether `ignore_eos` holds: with the length forced, two systems do the same token
work; without, the one whose model stops early looks faster. A model that rambles proves nothing, so the question
is forced where the server lets us: a logit bias makes the end token certain, a control shows that the model then
stops at once, and the same request with `ignore_eos` must go on to the length asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import msgspec

from replay.answer import Answer, error_message, read_answer
from replay.endpoint import Caller, Endpoint, EndpointError
from replay.transport import WIRE

REQUEST_TIMEOUT_S = 60.0
"""Of one request of the probe; a server that loads lazily takes long for the first."""
CODE_CHARACTERS = 6000
FORCED_TOKENS = 16
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
CONTEXT_LIMIT = re.compile(
    r"(?:maximum context length|max_model_len|context size|context length|context window|n_ctx)\D{0,30}?(\d{3,9})",
    re.IGNORECASE,
)

type EosVerdict = Literal["obeyed", "ignored", "refused", "unforced"]
"""`obeyed`: the model would have stopped, and went on. `ignored`: it stopped. `refused`: an error. `unforced`: it gave
the counts asked for, but nothing here could make it stop without the option either."""
type TokenPromptVerdict = Literal["exact", "inexact", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What the probe saw. Unknown is None."""

    url: str
    model: str
    server: str | None  # as it names itself, in a header or as the models' owner
    models: tuple[str, ...] | None  # None: it keeps no list
    streams: bool
    usage_in_stream: bool
    done_marker: bool
    ignore_eos: EosVerdict
    ignore_eos_evidence: str
    end_token: int | None  # the one that the question was forced with
    token_prompts: TokenPromptVerdict
    token_prompts_evidence: str
    context_tokens: int | None
    context_source: str | None
    vocabulary_tokens: int | None
    text_tokens_x: float | None  # tokens the server makes of one that o200k_base counts, over a page of code
    cached_tokens_reported: bool
    tokenizes: bool
    requests: int  # completions that the probe asked for

    def problem(self, *, exact_length: bool, token_prompts: bool) -> str | None:
        """Why a run must not start, in one sentence with the next step; None when it may."""
        if not self.streams:
            return f"the server at {self.url} does not stream its answers: a replay needs `stream: true` to be honoured"
        if not self.usage_in_stream:
            return (
                f"the server at {self.url} reports no usage in its stream: a replay counts tokens by the server's own "
                "count and needs `stream_options.include_usage` to be honoured"
            )
        if exact_length and self.ignore_eos in ("ignored", "refused"):
            return (
                f"the server at {self.url} does not honour ignore_eos ({self.ignore_eos_evidence}), so output lengths "
                "cannot be forced: use a server that does, or let the model stop with `--length free`"
            )
        if token_prompts and self.token_prompts != "exact":  # noqa: S105 - tokens of a model, not secrets
            return (
                f"the server at {self.url} does not take prompts of token ids as they are "
                f"({self.token_prompts_evidence}), and content-free sessions need them: replay sessions with text only"
            )
        return None


async def probe(endpoint: Endpoint, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> ProbeReport:
    """Ask the server about a dozen small questions; raises `EndpointError` when it cannot be used at all."""
    async with endpoint.connect() as caller:
        return await _Probe(caller, request_timeout_s).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """One answer to a question of the probe."""

    status: int | None
    answer: Answer | None  # None: no stream came
    error: str | None
    server: str | None


class _Probe:
    def __init__(self, caller: Caller, timeout_s: float) -> None:
        self.caller = caller
        self.timeout_s = timeout_s
        self.requests = 0
        self.end_token: int | None = None
        self.tokenizes = False

    async def run(self) -> ProbeReport:
        endpoint = self.caller.endpoint
        cards = await self.caller.reach()
        card = await self.caller.check_model() if cards is not None else None
        properties = await self.caller.properties()
        # Long enough for an engine that caches by blocks to have one to reuse.
        long_prompt = "Count the words of this text. " + "Many agents read many files and wait for their tools. " * 30
        first = await self.chat(long_prompt, 8)
        if first.status != 200 or (first.answer is not None and first.answer.error is not None):
            status = f" (HTTP {first.status})" if first.status not in (None, 200) else ""
            raise EndpointError(
                f"the server at {endpoint.url} does not answer a chat completion{status}: {first.error}; "
                f"is {endpoint.model!r} its model?"
            )
        streams = first.answer is not None and first.answer.events > 1
        again = await self.chat(long_prompt, 8)
        cached = again.answer.cached_tokens if again.answer is not None else None
        verdict, evidence = await self.ask_ignore_eos(properties)
        token_prompts, token_evidence = await self.ask_token_prompts(card.vocabulary_tokens if card else None)
        context, source = await self.ask_context(properties, card.context_tokens if card else None)
        return ProbeReport(
            url=endpoint.url,
            model=endpoint.model,
            server=first.server or (card.owner if card else None),
            models=tuple(entry.model for entry in cards) if cards is not None else None,
            streams=streams,
            usage_in_stream=first.answer is not None and first.answer.completion_tokens is not None,
            done_marker=first.answer is not None and first.answer.done,
            ignore_eos=verdict,
            ignore_eos_evidence=evidence,
            end_token=self.end_token,
            token_prompts=token_prompts,
            token_prompts_evidence=token_evidence,
            context_tokens=context,
            context_source=source,
            vocabulary_tokens=card.vocabulary_tokens if card else None,
            text_tokens_x=await self.ask_text_tokens(),
            cached_tokens_reported=cached is not None,
            tokenizes=self.tokenizes,
            requests=self.requests,
        )

    async def ask(self, path: str, fields: dict[str, object], timeout_s: float | None = None) -> _Reply:
        self.requests += 1
        body = {
            "model": self.caller.endpoint.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            **fields,
        }
        try:
            response = await self.caller.post(path, msgspec.json.encode(body), timeout_s=timeout_s or self.timeout_s)
        except (httpx.TransportError, httpx.DecodingError) as fault:
            return _Reply(status=None, answer=None, error=str(fault), server=None)
        server = response.headers.get("server")
        if response.status_code != 200:
            error = error_message(response.content) or "no reason given"
            return _Reply(status=response.status_code, answer=None, error=error, server=server)
        answer = read_answer(response.extensions[WIRE].reads)
        if not answer.events:
            return _Reply(status=200, answer=None, error="no event stream", server=server)
        return _Reply(status=200, answer=answer, error=answer.error, server=server)

    async def chat(self, text: str, max_tokens: int, **fields: object) -> _Reply:
        messages = [{"role": "user", "content": text}]
        return await self.ask("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens, **fields})

    async def ask_text_tokens(self) -> float | None:
        """How this server's tokenizer counts code, compared with the one that datasets are counted by."""
        from curate.tokens import load_encoding

        code = _page_of_code()
        reply = await self.chat(code, 1)
        if reply.answer is None or reply.answer.prompt_tokens is None:
            return None
        return round(reply.answer.prompt_tokens / len(load_encoding("o200k_base").encode_ordinary(code)), 3)

    # -- the end token

    async def ask_ignore_eos(self, properties: dict[str, object]) -> tuple[EosVerdict, str]:
        question = "Reply with the single word OK."
        for token in await self.end_tokens(properties):
            bias = {str(token): 100}
            control = await self.chat(question, FORCED_TOKENS, logit_bias=bias)
            if control.status != 200 or control.answer is None:
                break  # no logit bias here
            if not _stopped_early(control.answer, FORCED_TOKENS):
                continue  # not this model's end token
            self.end_token = token
            forced = await self.chat(question, FORCED_TOKENS, logit_bias=bias, ignore_eos=True)
            return _compare(forced, FORCED_TOKENS, f"with its end token {token} made certain")
        control = await self.chat(question, 3 * FORCED_TOKENS)
        stops_itself = control.answer is not None and _stopped_early(control.answer, 3 * FORCED_TOKENS)
        verdict: EosVerdict = "obeyed" if stops_itself else "unforced"
        evidence = ""
        for length in (7, 3 * FORCED_TOKENS):
            way = "where it stops by itself otherwise" if stops_itself else "and it does not stop by itself either"
            found, evidence = _compare(await self.chat(question, length, ignore_eos=True), length, way)
            if found != "obeyed":
                return found, evidence
        return verdict, evidence

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

    async def ask_token_prompts(self, vocabulary_tokens: int | None) -> tuple[TokenPromptVerdict, str]:
        counted = []
        for length in TOKEN_PROMPT_LENGTHS:
            # Low ids exist in every vocabulary; the first few are special tokens in many.
            spread = min(vocabulary_tokens or 256, 256) - 100
            prompt = [100 + 7 * place % max(1, spread) for place in range(length)]
            reply = await self.ask("/v1/completions", {"prompt": prompt, "max_tokens": 2})
            if reply.status != 200 or reply.answer is None:
                return "refused", f"HTTP {reply.status}: {reply.error}" if reply.status else str(reply.error)
            counted.append(reply.answer.prompt_tokens)
        asked = " and ".join(map(str, TOKEN_PROMPT_LENGTHS))
        seen = " and ".join(str(count) if count is not None else "unknown" for count in counted)
        verdict: TokenPromptVerdict = "exact" if counted == list(TOKEN_PROMPT_LENGTHS) else "inexact"
        return verdict, f"sent {asked} ids, counted as {seen}"

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


def _page_of_code() -> str:
    """Some real code, as agents read all day: the head of this very file."""
    return Path(__file__).read_text(encoding="utf-8")[:CODE_CHARACTERS]


def _stopped_early(answer: Answer, asked: int) -> bool:
    if answer.completion_tokens is not None:
        return answer.completion_tokens < asked
    return answer.finish_reason is not None and answer.finish_reason != "length"


def _compare(reply: _Reply, asked: int, way: str) -> tuple[EosVerdict, str]:
    if reply.status is not None and 400 <= reply.status < 500:
        return "refused", f"HTTP {reply.status}: {reply.error}"
    if reply.answer is None:
        return "ignored", f"asked for {asked} tokens {way}, it failed: {reply.error}"
    answer = reply.answer
    count = "an unknown number" if answer.completion_tokens is None else str(answer.completion_tokens)
    evidence = f"asked for {asked} tokens {way}, it gave {count}, finish reason {answer.finish_reason!r}"
    obeyed = answer.finish_reason == "length" and answer.completion_tokens in (asked, None)
    return ("obeyed" if obeyed else "ignored"), evidence

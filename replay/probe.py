"""What a server is and honours of what a replay asks, found by asking, before a run depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from replay.identify import TITLES, Engine

if TYPE_CHECKING:
    from replay.endpoint import Endpoint
    from replay.identify import Identity

REQUEST_TIMEOUT_S = 60.0
"""Of one request of the probe; a server that loads lazily takes long for the first."""

type EosVerdict = Literal["obeyed", "ignored", "refused", "unforced"]
"""`obeyed`: the model would have stopped, and went on. `ignored`: it stopped. `refused`: an error. `unforced`: it gave
the counts asked for, but nothing here could make it stop without the option either."""
type TokenPromptVerdict = Literal["exact", "inexact", "refused"]
type OptionVerdict = Literal["obeyed", "ignored", "refused", "unforced"]
type Taken = Literal["taken", "refused"]
type Reuse = Literal["token", "block", "none", "irregular"]
type KeepAlive = Literal["kept", "closed", "announced, not kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What the probe saw. Unknown is None."""

    url: str
    model: str
    engine: Engine
    engine_version: str | None
    engine_evidence: str  # what it was recognised by
    server: str | None  # as it names itself, in a header or as the models' owner
    models: tuple[str, ...] | None  # None: it keeps no list
    metrics_page: str | None  # address of its own metrics, as far as we read them
    # what an answer is like
    streams: bool
    usage_in_stream: bool
    continuous_usage: bool | None  # usage with every chunk, where asked for
    done_marker: bool
    tokens_per_chunk: float | None  # of one request alone; under load a chunk may hold more
    keep_alive: KeepAlive | None  # whether a connection serves a second request after a stream
    # what is honoured
    ignore_eos: EosVerdict
    ignore_eos_evidence: str
    min_tokens: OptionVerdict
    logit_bias: OptionVerdict
    end_token: int | None  # the one that the question was forced with
    refused_fields: tuple[str, ...]  # of a replay's requests: it has to leave them out
    unknown_fields: Taken
    tools: Taken
    tools_evidence: str
    tool_history: Taken
    tool_history_evidence: str
    token_prompts: TokenPromptVerdict
    token_prompts_evidence: str
    # lengths
    context_tokens: int | None
    context_source: str | None
    vocabulary_tokens: int | None
    text_tokens_x: float | None  # tokens the server makes of one that o200k_base counts, over a page of code
    tokenizes: bool  # `/tokenize` answers
    tokenize_difference: int | None  # tokens by which usage and `/tokenize` differ over that page
    # prefix cache
    cached_tokens_reported: bool
    prefix_reuse: Reuse | None
    prefix_block_tokens: int | None
    prefix_evidence: str
    requests: int  # completions that the probe asked for

    @property
    def counts_by(self) -> str | None:
        """Whose tokenizer the server's usage counts by, as far as it shows."""
        if self.tokenize_difference is not None:
            # The chat template may treat white space at the ends of a text in its own way.
            if abs(self.tokenize_difference) <= 2:
                return "its own tokenizer: usage equals /tokenize"
            return f"not its /tokenize: usage is {self.tokenize_difference:+d} tokens"
        if self.text_tokens_x is None:
            return None
        if abs(self.text_tokens_x - 1) < 0.005:
            return "perhaps o200k_base: the counts are the same"
        return "a tokenizer other than o200k_base"

    def problem(self, *, exact_length: bool, token_prompts: bool, tools: bool = False) -> str | None:
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
        if tools and self.tools == "refused":
            return (
                f"the server at {self.url} does not take tools ({self.tools_evidence}), and sessions of the dataset "
                "have some: start the server with tool calls enabled"
            )
        return None


async def probe(endpoint: Endpoint, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> ProbeReport:
    """Ask the server about two dozen small questions; raises `EndpointError` when it cannot be used at all."""
    report, _ = await examine(endpoint, request_timeout_s=request_timeout_s)
    return report


async def examine(endpoint: Endpoint, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> tuple[ProbeReport, Identity]:
    """The probe's report, and what the server tells about its configuration; raises `EndpointError`."""
    from replay.questions import Questions

    async with endpoint.connect() as caller:
        return await Questions(caller, request_timeout_s).run()


def probe_lines(report: ProbeReport) -> list[str]:
    """The report for a terminal: a heading in brackets, then names and values in two columns."""
    engine = TITLES[report.engine] + (f" {report.engine_version}" if report.engine_version else "")
    models = None if report.models is None else ", ".join(report.models[:5]) + (" …" if len(report.models) > 5 else "")
    groups: list[tuple[str, list[tuple[str, object]]]] = [
        (
            "server",
            [
                ("engine", f"{engine} (by {report.engine_evidence})" if report.engine != "unknown" else None),
                ("names itself", report.server),
                ("models", models or "no list"),
                ("metrics", report.metrics_page or "none that we read"),
                ("connection", report.keep_alive),
            ],
        ),
        (
            "answers",
            [
                ("streams", report.streams),
                ("usage in the stream", report.usage_in_stream),
                ("usage with every chunk", report.continuous_usage),
                ("ends with [DONE]", report.done_marker),
                ("tokens per chunk", report.tokens_per_chunk),
            ],
        ),
        (
            "honours",
            [
                ("ignore_eos", f"{report.ignore_eos}: {report.ignore_eos_evidence}"),
                ("min_tokens", report.min_tokens),
                ("logit_bias", report.logit_bias),
                ("tools", f"{report.tools}: {report.tools_evidence}"),
                ("tool calls in history", f"{report.tool_history}: {report.tool_history_evidence}"),
                ("token-id prompts", f"{report.token_prompts}: {report.token_prompts_evidence}"),
                ("unknown fields", report.unknown_fields),
                ("fields it refuses", ", ".join(report.refused_fields) or "none of ours"),
            ],
        ),
        (
            "tokens",
            [
                ("context limit", _with_source(report.context_tokens, report.context_source)),
                ("vocabulary", report.vocabulary_tokens),
                ("counts by", report.counts_by),
                ("tokens per o200k token", report.text_tokens_x),
                ("usage minus /tokenize", report.tokenize_difference if report.tokenizes else "no /tokenize"),
            ],
        ),
        (
            "prefix cache",
            [
                ("cached tokens reported", report.cached_tokens_reported),
                ("unit of reuse", _unit(report)),
                ("seen", report.prefix_evidence),
            ],
        ),
    ]
    lines = []
    for heading, rows in groups:
        lines.append(f"[{heading}]")
        lines += [f"  {name:<24}{_in_words(value)}" for name, value in rows]
    return lines


def _with_source(count: int | None, source: str | None) -> str | None:
    return None if count is None else f"{count} (from {source})"


def _unit(report: ProbeReport) -> str | None:
    if report.prefix_reuse == "block" and report.prefix_block_tokens is not None:
        return f"block of {report.prefix_block_tokens} tokens"
    return report.prefix_reuse


def _in_words(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)

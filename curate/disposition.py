"""Which words may leave without text: names that are public knowledge, ids of our own making, and keyed pseudonyms.

A content-free release holds no word that somebody wrote. A text column of it is removed, or becomes a value of a list
in this module, or a pseudonym under a key that stays with the owner.
"""

from __future__ import annotations

import hmac
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from capture.call import TimeSource, Transport
from capture.tool_kind import ToolKind, asks_human, tool_kind
from capture.trajectory import ContextEvent, GapKind, LinkConfidence, LinkEvidence, Relation, TokenSource
from curate.language import LANGUAGES
from curate.words import printable

HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Names in the place of names: the same for the same name and key, and nobody without the key can tell which."""

    key: bytes

    def name(self, kind: str, value: str) -> str:
        """`mcp-3f2a91c0`; the kind says what it stands for."""
        text = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        return f"{kind}-{hmac.digest(self.key, b'pseudonym:' + text, 'sha256').hex()[:8]}"


type Change = Callable[[Any, Pseudonyms], Any]
"""A value of a column, not null, to the value that leaves; None removes it."""


def one_of(words: Iterable[str], *, otherwise: str | None = None) -> Change:
    """A word of a list; anything else becomes `otherwise`."""
    known = frozenset(words)
    return lambda value, _: value if value in known else otherwise


def shaped(pattern: str) -> Change:
    """A value of our own making, by its whole shape; anything else is removed."""
    shape = re.compile(pattern, re.ASCII)
    return lambda value, _: value if shape.fullmatch(value) else None


def stated(value: str, _: Pseudonyms) -> str:
    """A statement that is made to be read, on one line, without what a terminal or a page takes for an order."""
    return printable(value)


def some_of(words: Iterable[str]) -> Change:
    """The words of a list column that are on the list."""
    known = frozenset(words)
    return lambda values, _: [value for value in values if value in known]


def pseudonym(kind: str) -> Change:
    """Always a pseudonym."""
    return lambda value, names: names.name(kind, value)


# Names ------------------------------------------------------------------------------------------------------------

# A name of a model is public when each of its words is: of a family, a size, a version, a way of quantising.
_MODEL_WORDS = frozenset(
    """
    ada ai ai21 air alpha amazon anthropic apac audio awq baidu base beta bf16 bytedance chat chatgpt claude code codex
    codestral coder cohere command dense deepseek dev devstral distill doubao eagle ernie eu exaone exp experimental
    fast flash fp4 fp8 fp16 free gemini gemma gguf glm global google gpt gptq granite grok haiku hf high hunyuan ibm
    image inclusionai instant instruct int4 int8 intern internlm it jamba kimi large latest ling lite live llama longcat
    low magistral max maverick max medium meituan meta microsoft mini minimax minimaxai ministral mistral mistralai
    mixtral moe moonshot moonshotai mtp mxfp4 nano nemo nemotron next nova nvfp4 nvidia olmo omni online openai opus org
    oss phi plus preview pro qwen qwq reasoner reasoning ring scout seed small sonnet spark stable step stepfun super
    synthetic tencent text thinking tiny turbo ultra us v vision vl xai xl xs yi zai
    """.split()  # noqa: SIM905 - a list of a hundred strings would be a hundred lines
)
_MODEL_BREAK = re.compile(r"[-_./:@ \[\]<>]+")
_NUMBERED = re.compile(r"\d{1,4}\Z")  # qwen3, mixtral8; more digits are somebody's number
_VERSION = re.compile(r"\d{1,8}|v?\d{1,3}[a-z]?|\d{1,4}[bmkte]|[akmorv]\d{1,4}b?|\d{1,2}x\d{1,3}b")


def public_model(name: str) -> bool:
    """Whether every word of a model's name is public: `claude-opus-4-6` is, `ft:gpt-4o:acme` and a path are not."""
    if len(name) > 80 or not name.isascii():
        return False
    words = [word for word in _MODEL_BREAK.split(name.lower()) if word]
    named = [
        word in _MODEL_WORDS or _NUMBERED.sub("", word) in _MODEL_WORDS or re.fullmatch(r"o\d", word) is not None
        for word in words
    ]
    return any(named) and all(
        known or _VERSION.fullmatch(word) is not None for word, known in zip(words, named, strict=True)
    )


def model(value: str, names: Pseudonyms) -> str:
    """The name of a model, or a pseudonym where a word of it is not public; none stays none."""
    return value if not value or public_model(value) else names.name("model", value)


def models(values: list[str | None], names: Pseudonyms) -> list[str | None]:
    """The same for a list of models."""
    return [None if value is None else model(value, names) for value in values]


ENCODINGS = ("o200k_base", "o200k_harmony", "cl100k_base", "p50k_base", "r50k_base")


def tokenizer(value: str, names: Pseudonyms) -> str:
    """The name of a public encoding or model; a pseudonym for any other."""
    return value if value in ENCODINGS or public_model(value) else names.name("tokenizer", value)


_TOOLS = frozenset(
    """
    activate_skill agentoutputtool batch close_agent codebase_investigator complete_task delegate_to_agent edit_notebook
    enter_plan_mode enterplanmode enterworktree exitworktree get_internal_docs invalid js_repl killbash
    list_directory list_mcp_resource_templates listmcpresourcestool local_shell_call lsp monitor multi_edit
    multi_tool_use plan_enter plan_exit read_mcp_resource readmcpresourcetool report_intent resume_agent save_memory
    search_file_content grep_search send_input send_message sendmessage shell_exec skill slashcommand
    structuredoutput submit taskcreate taskget tasklist taskoutput taskstop taskupdate teamcreate teamdelete think
    todo_read todo_write todoread todowrite tool_search unified_exec update_plan wait write_todos
    """.split()  # noqa: SIM905
)


def public_tool(name: str) -> bool:
    """Whether a tool is built into a well-known agent; servers of tools (MCP) and own tools are not."""
    known = name.lower() in _TOOLS or tool_kind(name) not in ("other", "mcp") or asks_human(name)
    return known and name.isascii()  # some letters of other scripts become ours in lower case


def tool(value: str, names: Pseudonyms) -> str:
    """The name of a built-in tool; a pseudonym by kind (`mcp-3f2a91c0`, `tool-…`) for any other."""
    if public_tool(value):
        return value
    return names.name("mcp" if tool_kind(value) == "mcp" else "tool", value)


_HARNESSES = frozenset(
    """
    agentperf aider amp claude-code cline codex copilot-cli crush cursor droid gemini-cli goose hermes kimi-cli
    mini-swe-agent opencode openhands pi qwen-code roo-code swe-agent terminus terminus-2 unknown
    """.split()  # noqa: SIM905
)


# A version's numbers, and what may stand behind them: who works on a fork writes its name there.
_RELEASE = re.compile(
    r"v?[0-9]{1,8}(?:\.[0-9]{1,8}){0,5}"
    r"(?:[.+-]?(?:alpha|beta|rc|pre|preview|dev|nightly|canary|insiders|next|latest|stable|post|a|b|c)?[.-]?[0-9]{0,8}){0,3}"
)


def version(value: str, _: Pseudonyms) -> str | None:
    """A version without words that are not every version's; its numbers alone where it has others; else None."""
    if len(value) <= 40 and _RELEASE.fullmatch(value):
        return value
    found = re.match(r"v?[0-9]{1,8}(?:\.[0-9]{1,8}){1,3}(?![0-9])", value)
    return found[0] if found else None


def harness(value: str, names: Pseudonyms) -> str:
    """The name of a well-known agent; a pseudonym for any other."""
    return value if value in _HARNESSES else names.name("agent", value)


def harness_pattern(value: str, names: Pseudonyms) -> str:
    """A pattern of a recipe that some well-known agent matches; a pseudonym for any other."""
    known = "[" not in value and any(fnmatchcase(each, value.lower()) for each in _HARNESSES)
    return value if known else names.name("agent", value)


def model_pattern(value: str, names: Pseudonyms) -> str:
    """A pattern of a recipe of which every word is public (`claude-*`); a pseudonym for any other."""
    bare = value.replace("*", "-").replace("?", "-")
    known = "[" not in value and (public_model(bare) or not bare.strip("-"))
    return value if known else names.name("model", value)


_AGENT_TYPES = frozenset(
    """
    build codebase_investigator compaction default explore explorer general general-purpose generalist
    output-style-setup plan review statusline-setup summary task title worker
    """.split()  # noqa: SIM905
)


def agent_type(value: str, names: Pseudonyms) -> str:
    """A built-in kind of sub-agent; a pseudonym for any other."""
    return value if value.isascii() and value.lower() in _AGENT_TYPES else names.name("agent-type", value)


# Words ------------------------------------------------------------------------------------------------------------


def _words(alias: Any) -> tuple[str, ...]:
    return typing.get_args(alias.__value__)


GAP_KINDS = _words(GapKind)
CONTEXT_EVENTS = _words(ContextEvent)
LINKS = _words(LinkEvidence)
LINK_CONFIDENCES = _words(LinkConfidence)
RELATIONS = _words(Relation)
TOKEN_SOURCES = _words(TokenSource)
TRANSPORTS = _words(Transport)
TIME_SOURCES = _words(TimeSource)
TOOL_KINDS = _words(ToolKind)
SOURCES = (
    *("wire", "weka", "agentperf-local", "claude-code-log", "codex-log", "gemini-cli-log", "pi-log", "opencode-log"),
    *("mini-swe-agent", "mini-swe-agent-log", "messages", "openai", "atif", "otel", "otlp", "dataset", "script"),
)
APIS = (
    *("anthropic.messages", "anthropic.count_tokens", "openai.chat", "openai.responses", "openai.completions"),
    *("google.gemini", "unknown", "other"),
)
CAPTURE_MODES = ("reverse", "forward", "script")
JOINED = ("otel", *SOURCES)
HASH_SCOPES = ("session", "release")
OUTCOMES = ("success", "failure", "abandoned", "unknown")
JUDGES = ("agent", "benchmark", "exit-code", "grader", "human", "label", "labels", "model", "test", "tests", "user")
EXIT_STATUSES = (
    *("completed", "exited", "failed", "killed", "limit", "submitted", "success", "timeout", "error", "interrupted"),
    *("Submitted", "LimitsExceeded", "TimeoutError", "FormatError", "ContextWindowExceeded"),
)
REVIEWS = ("approved", "sampled", "pending", "dropped", "none")
DUPLICATE_ROLES = ("kept", "duplicate")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "auto", "adaptive", "enabled", "disabled")
STOPS = (
    *("end_turn", "tool_use", "max_tokens", "stop_sequence", "pause_turn", "refusal", "model_context_window_exceeded"),
    *("stop", "tool_calls", "length", "content_filter", "function_call", "completed", "incomplete", "failed"),
    *("cancelled", "max_output_tokens", "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "MALFORMED_FUNCTION_CALL"),
    *("UNEXPECTED_TOOL_CALL", "OTHER", "error", "aborted", "toolUse", "tool-calls", "unknown", "queued", "in_progress"),
)
PARTS = (
    *("text", "thinking", "reasoning", "tool_use", "tool_result", "image", "document", "file", "audio", "video"),
    *("redacted_thinking", "system", "user", "assistant", "tool", "none", "compaction"),
)

# Our own words of what went wrong, by what a message says; the first that fits.
_FAULTS = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("rate-limit", r"rate.?limit|too many requests|quota|\b429\b"),
        ("overloaded", r"overload|capacity|unavailable|\b529\b|\b503\b"),
        ("context-length", r"context.?(?:length|window)|too long|maximum.{0,20}tokens|prompt is too"),
        ("credentials", r"auth|api.?key|credential|permission|forbidden|unauthori[sz]ed|\b40[13]\b"),
        ("timeout", r"time.?d? ?out|deadline"),
        ("cut", r"ended before|truncat|incomplete|reset|closed|disconnect|eof|aborted|cancel|interrupt|\bcut\b|open\b"),
        ("connection", r"connect|network|dns|resolve|socket|tls|certificate|refused"),
        ("empty", r"empty"),
        ("refusal", r"refus|safety|content.?filter|policy"),
        ("invalid-request", r"invalid|malformed|bad request|not found|unsupported|\b400\b|\b404\b|\b422\b"),
        ("server", r"internal|server error|\b5\d\d\b"),
    )
)
_HTTP = re.compile(r"HTTP [45][0-9][0-9]")


def effort(value: str, _: Pseudonyms) -> str:
    """A level of effort or `budget:4096`; `other` for anything else."""
    return value if value in EFFORTS or re.fullmatch(r"budget:-?[0-9]{1,9}", value) else "other"


def error_class(value: str, _: Pseudonyms) -> str:
    """What kind of failure an error's text tells of: `HTTP 429` as it is, else one of eleven words or `other`."""
    if _HTTP.fullmatch(value):
        return value
    return next((name for name, pattern in _FAULTS if pattern.search(value)), "other")


_LICENSES = frozenset(
    """
    0bsd agpl-3.0 agpl-3.0-only agpl-3.0-or-later apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsl-1.0 busl-1.1
    cc-by-4.0 cc-by-nc-4.0 cc-by-sa-4.0 cc0-1.0 cddl-1.0 ecl-2.0 epl-1.0 epl-2.0 eupl-1.2 gpl-2.0 gpl-2.0-only
    gpl-2.0-or-later gpl-3.0 gpl-3.0-only gpl-3.0-or-later isc lgpl-2.1 lgpl-2.1-only lgpl-2.1-or-later lgpl-3.0
    lgpl-3.0-only lgpl-3.0-or-later mit mit-0 mpl-2.0 ms-pl mulanpsl-2.0 ncsa ofl-1.1 postgresql psf-2.0 python-2.0
    unlicense upl-1.0 wtfpl zlib zpl-2.1 none unknown proprietary mixed
    """.split()  # noqa: SIM905
)


def repo_license(value: str, _: Pseudonyms) -> str:
    """A well-known licence of code, `other` for any other."""
    return value if value.lower() in _LICENSES else "other"


def languages(values: list[dict[str, Any]], _: Pseudonyms) -> list[dict[str, Any]]:
    """Shares of languages that `curate.language` names."""
    return [value for value in values if value["lang"] in LANGUAGES]


_RULE = re.compile(r"[a-z0-9][a-z0-9_.:+-]{0,63}")


def rules(values: list[dict[str, Any]], _: Pseudonyms) -> list[dict[str, Any]]:
    """Findings by rule; the names of rules are ours and the scanner's."""
    return [value for value in values if _RULE.fullmatch(value["rule"])]


# Times ------------------------------------------------------------------------------------------------------------


def hour(value: int, _: Pseudonyms) -> int:
    """Microseconds since 1970 without minutes and seconds."""
    return value - value % HOUR_US


def hour_text(value: str, _: Pseudonyms) -> str | None:
    """An ISO 8601 time in UTC without minutes and seconds; None where it is no such text."""
    return f"{value[:13]}:00:00Z" if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z", value) else None


# Numbers for ids ---------------------------------------------------------------------------------------------------


class Calls:
    """Numbers for the tool calls of each session, in the order in which they are first asked for."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, str]] = {}

    def renumber(self, sessions: list[str], ids: list[Any]) -> list[Any]:
        """`call-0001` for ids, or lists of ids, of the sessions beside them."""
        return [
            None if value is None else self._of(session, value) for session, value in zip(sessions, ids, strict=True)
        ]

    def _of(self, session: str, value: Any) -> Any:
        if isinstance(value, list):
            return [None if each is None else self._of(session, each) for each in value]
        numbers = self._numbers.setdefault(session, {})
        return numbers.setdefault(value, f"call-{len(numbers) + 1:04}")

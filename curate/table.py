"""The three tables of a dataset: every column with its Arrow type and one sentence.

The schema, the card's column tables and the documentation all come from this one list. Types are Arrow's plain ones
(no `arrow.json` extension), so that datasets, polars, duckdb and older readers see the same thing.
Times are integer microseconds since the session's first send. Null is "unknown", never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = "agentdyno/3"

TEXT = pa.string()
FLAG = pa.bool_()
COUNT = pa.int32()
TOTAL = pa.int64()
MICROSECONDS = pa.int64()

TOOL_CALL_TYPE = pa.struct(
    [("id", TEXT), ("type", TEXT), ("function", pa.struct([("name", TEXT), ("arguments", TEXT)]))]
)
MESSAGE_TYPE = pa.struct(
    [
        ("role", TEXT),
        ("content", TEXT),
        ("name", TEXT),
        ("tool_call_id", TEXT),
        ("tool_calls", pa.list_(TOOL_CALL_TYPE)),
        ("reasoning_content", TEXT),
        ("is_error", FLAG),
        ("agent_path", TEXT),
        ("request_index", COUNT),
        ("t_us", MICROSECONDS),
        ("answer", FLAG),
        ("content_sha", TEXT),
        ("tokens", COUNT),
        ("omitted_bytes", TOTAL),
        ("truncated_bytes", TOTAL),
        ("redactions", COUNT),
    ]
)
TOOL_TYPE = pa.struct([("name", TEXT), ("description", TEXT), ("parameters", TEXT)])
QUALITY_TYPE = pa.struct([("complete", FLAG), ("gaps", COUNT), ("clock_err_us", MICROSECONDS), ("body_missing", COUNT)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its name, its Arrow type and what it means in one sentence."""

    name: str
    type: pa.DataType
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of the dataset; each is one config of the card and one folder under `data/`."""

    name: str
    sentence: str
    columns: tuple[Column, ...]
    text_columns: frozenset[str] = frozenset()  # hold what people and models wrote; absent in a content-free dataset

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema; every column may be null."""
        return pa.schema([(column.name, column.type) for column in self.columns])


def _columns(*entries: tuple[str, pa.DataType, str]) -> tuple[Column, ...]:
    return tuple(Column(name=name, type=type_, sentence=sentence) for name, type_, sentence in entries)


SESSIONS = Table(
    name="sessions",
    sentence="One row per agent session: what was said, totals, and where it comes from.",
    text_columns=frozenset({"prompt", "messages", "tools", "tool_sets"}),
    columns=_columns(
        ("session_id", TEXT, "Name of the session, the same in every table and in every build from the same store."),
        ("source", TEXT, "What the session was read from: `wire` (recorded by the proxy) or the name of an importer."),
        ("source_ref", TEXT, "Journal, file or task that held it, without its folder."),
        ("harness", TEXT, "The agent program, from its user agent or the source; `unknown` if neither says."),
        ("harness_version", TEXT, "Version of the agent program."),
        ("t0_utc", pa.timestamp("us", tz="UTC"), "Wall time of the first send, the zero of every `*_us` time."),
        ("prompt", TEXT, "The first user message, cut at 2 kB."),
        (
            "messages",
            pa.list_(MESSAGE_TYPE),
            "Every message of the session once, in order of first use; `agent_path` names the chain, `answer` marks "
            "the model's, `tokens` counts by `tokenizer`; null in a content-free session.",
        ),
        ("tools", pa.list_(TOOL_TYPE), "Every tool definition once; `parameters` is JSON Schema as text."),
        (
            "tool_sets",
            pa.list_(pa.list_(COUNT)),
            "The lists of tools that were offered, as positions in `tools`; `requests.tools_index` picks one.",
        ),
        ("tools_sha", TEXT, "First 32 hex digits of the SHA-256 of `tools` and `tool_sets`."),
        ("metadata", TEXT, "JSON text for what has no column; null when there is nothing."),
        ("sent_at", TEXT, "`t0_utc` as ISO 8601 text."),
        ("models", pa.list_(TEXT), "Models called, in order of first use."),
        ("num_user_messages", TOTAL, "Messages a human wrote; null where the source does not tell."),
        (
            "num_tool_calls",
            TOTAL,
            "Rows of this session in `tool_calls`; null where the source does not tell of tool calls.",
        ),
        ("num_requests", COUNT, "Rows of this session in `requests`, sub-agents included."),
        ("num_subagents", COUNT, "Chains besides the main one."),
        ("num_compactions", COUNT, "Times the context was summarised and started over."),
        ("num_errors", COUNT, "Requests that ended in an error; null where the source does not tell."),
        ("duration_us", MICROSECONDS, "First send to last end."),
        ("api_us", MICROSECONDS, "Time during which at least one request was open."),
        ("tool_us", MICROSECONDS, "Time during which at least one tool gap was open."),
        (
            "human_us",
            MICROSECONDS,
            "Time spent waiting for a human; null where the source does not split it from tools.",
        ),
        ("prompt_tokens_total", TOTAL, "Sum of `requests.prompt_tokens` where known."),
        ("cached_tokens_total", TOTAL, "Sum of `requests.cache_read_tokens` where known."),
        ("completion_tokens_total", TOTAL, "Sum of `requests.completion_tokens` where known."),
        ("reasoning_tokens_total", TOTAL, "Sum of `requests.reasoning_tokens` where known."),
        (
            "context_tokens_first",
            TOTAL,
            "Prompt of the main chain's first request; by `token_source` where `prompt_tokens_total` is known, else by "
            "`tokenizer`.",
        ),
        ("context_tokens_last", TOTAL, "Prompt of the main chain's last request, counted likewise."),
        ("context_tokens_max", TOTAL, "Longest prompt of any chain, counted likewise."),
        (
            "token_source",
            TEXT,
            "Who counted prompt and completion tokens: `provider`, `tokenizer`, `agent` (its log) or `none`.",
        ),
        ("source_tokenizer", TEXT, "Tokenizer behind them where `token_source` is `tokenizer`."),
        ("tokenizer", TEXT, "Tokenizer of our own counts: `messages.tokens`, `prompt_tokens_est` and their like."),
        ("tokenizer_sha", TEXT, "SHA-256 of that tokenizer's rank file."),
        (
            "lang_mix",
            pa.list_(pa.struct([("lang", TEXT), ("share", pa.float32())])),
            "Languages of the files that tool calls name, by share of those calls.",
        ),
        ("outcome", TEXT, "`success`, `failure`, `abandoned` or `unknown`."),
        ("outcome_source", TEXT, "Who judged the outcome."),
        ("resolved", FLAG, "Whether the task's own check passed."),
        ("exit_status", TEXT, "How the agent program ended."),
        ("repo_license", TEXT, "SPDX id of the code worked on."),
        ("task_id", TEXT, "Name of the benchmark task, if it was one."),
        ("license", TEXT, "SPDX id under which this session is given."),
        ("consent", TEXT, "Who agreed to its use, and to what."),
        ("contributor", TEXT, "Keyed hash of who contributed it."),
        ("capture_mode", TEXT, "How it was recorded: `reverse` (by base URL), `forward` (as a proxy) or `script`."),
        ("joined", pa.list_(TEXT), "What else told about it, such as `otel` or `claude-code-log`."),
        ("peak_agents", COUNT, "Most agents of this session at work at one time, sub-agents included."),
        ("contributor_peak_agents", COUNT, "The same over all sessions of this contributor's store."),
        ("redaction_policy", TEXT, "Name and version of the rules that redacted the text."),
        (
            "redaction_counts",
            pa.list_(pa.struct([("rule", TEXT), ("n", COUNT)])),
            "Findings replaced in this session, by rule; null when no redaction ran.",
        ),
        ("review", TEXT, "State of the human review."),
        ("review_digest", TEXT, "Digest of what the review saw."),
        ("content_sha", TEXT, "First 32 hex digits of the SHA-256 of all messages in order; null without text."),
        ("dup_cluster", TEXT, "Name of the group of near duplicates."),
        ("dup_role", TEXT, "Role in that group: `kept` or `duplicate`."),
        ("split", TEXT, "Dataset split."),
        (
            "truncated_requests",
            COUNT,
            "Requests left out because their prompt was beyond the recipe's limit, and all after them on the chain.",
        ),
        ("hash_scope", TEXT, "Scope in which `requests.block_hashes` compare: `session` or `release`."),
        (
            "capture_quality",
            QUALITY_TYPE,
            "How whole the record is: all seen, recorder gaps, bound of the clock error, bodies missing.",
        ),
        ("schema", TEXT, "Version of these tables."),
    ),
)

REQUESTS = Table(
    name="requests",
    sentence="One row per call to a model: when, how long, how many tokens, what shared with the call before. No text.",
    columns=_columns(
        ("session_id", TEXT, "The session."),
        ("request_index", COUNT, "Order of sending within the session, from 0."),
        ("agent_path", TEXT, "The chain: `main`, or `main/1` and so on for sub-agents."),
        ("parent_request_index", COUNT, "The request it continues; for a chain's first, the one that spawned it."),
        ("link", TEXT, "Evidence for that parent: `header`, `body`, `echo`, `prefix`, `source` or `none`."),
        ("link_confidence", TEXT, "How sure that link is: `certain`, `likely` or `possible`."),
        (
            "relation",
            TEXT,
            "What it is to that parent: `start`, `continue`, `retry`, `fork`, `compaction`, `subagent` or `side`.",
        ),
        ("agent_type", TEXT, "The agent's own word for its sub-agent, such as `Explore`."),
        ("kind", TEXT, "`turn`, or `auxiliary` for a call that is no turn of the agent (a token count, a title)."),
        ("api", TEXT, "Wire protocol, such as `anthropic.messages`, `openai.chat` or `openai.responses`."),
        ("model", TEXT, "Model asked for."),
        ("transport", TEXT, "`http`, `sse` or `websocket`; null where the source does not tell."),
        ("stream", FLAG, "Whether the answer was streamed."),
        ("status", COUNT, "HTTP status."),
        ("error", TEXT, "What went wrong; null when the call succeeded."),
        ("retry_of", COUNT, "The request that this one repeats."),
        ("t_send_us", MICROSECONDS, "Request sent."),
        ("t_headers_us", MICROSECONDS, "Response headers received."),
        ("t_first_byte_us", MICROSECONDS, "First byte of the response body."),
        ("t_first_token_us", MICROSECONDS, "First text, reasoning or tool-call fragment."),
        ("t_first_text_us", MICROSECONDS, "First fragment of text."),
        ("t_first_thinking_us", MICROSECONDS, "First fragment of reasoning."),
        ("t_first_tool_call_us", MICROSECONDS, "First fragment of a tool call."),
        ("t_last_token_us", MICROSECONDS, "Last such fragment."),
        ("t_end_us", MICROSECONDS, "Last byte of the response."),
        ("gap_us", MICROSECONDS, "End of the chain's previous request to this send; null for a chain's first."),
        (
            "gap_kind",
            TEXT,
            "What filled the gap: `tool`, `human`, `client`, `spawn`, `unsplit` (source does not tell), `none`.",
        ),
        ("think_us", MICROSECONDS, "Human part of the gap, permissions left out."),
        ("permission_us", MICROSECONDS, "Part of the gap that waited for a person's permission; null: not told."),
        ("client_us", MICROSECONDS, "Part of the gap that was the agent's own work; null: not told."),
        ("clock_jump_us", MICROSECONDS, "The wall clock moved by this much in the gap or the call: sleep, a new time."),
        ("msg_upto", COUNT, "When set, the prompt is `messages[0:msg_upto]`."),
        (
            "prompt_spans",
            pa.list_(pa.struct([("start", COUNT), ("stop", COUNT)])),
            "The prompt as slices of `messages`, in order; null in a content-free session.",
        ),
        ("answer_index", COUNT, "Position of the answer in `messages`."),
        ("tools_index", COUNT, "Position in `tool_sets` of the tools offered."),
        (
            "context_event",
            TEXT,
            "How the prompt follows from its parent's: `append`, `compaction`, `edit`, `branch`, `reset`.",
        ),
        (
            "lcp_tokens",
            TOTAL,
            "Tokens at the head of this prompt that the parent's prompt held as well; 0 without a parent.",
        ),
        ("prompt_tokens", TOTAL, "Prompt as `token_source` counted, cache reads included."),
        ("cache_read_tokens", TOTAL, "Part of the prompt that the provider read from its cache."),
        ("cache_write_tokens", TOTAL, "Part of the prompt that the provider wrote to its cache."),
        ("completion_tokens", TOTAL, "Answer, reasoning included."),
        ("reasoning_tokens", TOTAL, "Reasoning part of the answer."),
        (
            "prompt_tokens_est",
            TOTAL,
            "Tools and messages of the prompt by `tokenizer`, rendered as ChatML.",
        ),
        ("system_tokens", TOTAL, "System prompt; by the source where it says, else by `tokenizer`."),
        ("tools_tokens", TOTAL, "Tool definitions; by the source where it says, else by `tokenizer`."),
        ("max_tokens", TOTAL, "Limit on the answer that the request set."),
        ("temperature", pa.float64(), "Sampling temperature that the request set."),
        ("effort", TEXT, "Reasoning effort that the request set."),
        ("stop", TEXT, "Why the answer ended, in the provider's word."),
        ("new_input", pa.list_(TEXT), "Kinds of what is new in the prompt, such as `text`, `tool_result`, `image`."),
        ("new_output", pa.list_(TEXT), "Kinds of what the answer holds: `text`, `thinking`, `tool_use`."),
        ("tool_call_ids", pa.list_(TEXT), "Tool calls in the answer."),
        ("block_size", COUNT, "Tokens per hashed block."),
        (
            "block_hashes",
            pa.list_(pa.uint64()),
            "One hash per block of the prompt; equal means equal up to and including that block, within `hash_scope`.",
        ),
        ("hash_scope", TEXT, "Scope in which `block_hashes` compare: `session` or `release`."),
        ("bytes_up", TOTAL, "Bytes of the request body."),
        ("bytes_down", TOTAL, "Bytes of the response body."),
        ("sse_events", COUNT, "Events in the streamed answer."),
        ("itl_us", pa.list_(MICROSECONDS), "Times between content events."),
        ("cache_ttl_s", COUNT, "Lifetime asked for in the provider's cache, in seconds."),
        (
            "token_source",
            TEXT,
            "Who counted prompt and completion tokens: `provider`, `tokenizer`, `agent` (its log) or `none`.",
        ),
    ),
)

TOOL_CALLS = Table(
    name="tool_calls",
    sentence="One row per tool call: which, when and how long it took. No text.",
    columns=_columns(
        ("session_id", TEXT, "The session."),
        ("tool_call_id", TEXT, "The call, as the model named it."),
        ("agent_path", TEXT, "The chain that called."),
        ("request_index", COUNT, "The request whose answer held the call."),
        ("result_request_index", COUNT, "The request that carried the result; null when none did."),
        ("name", TEXT, "Tool called."),
        ("kind", TEXT, "`read`, `edit`, `search`, `exec`, `web`, `mcp`, `subagent` or `other`."),
        ("t_emitted_us", MICROSECONDS, "End of the call's own block in the answer."),
        ("t_result_us", MICROSECONDS, "Send of the request that carries the result."),
        (
            "wall_us",
            MICROSECONDS,
            "`t_result_us` less the last byte of the answer that held the call: an upper bound of the tool's time.",
        ),
        ("internal_us", MICROSECONDS, "Execution alone, as `internal_source` declares it."),
        ("internal_source", TEXT, "Who declares it: `header`, `body`, `otel` (telemetry) or `log`."),
        ("permission_us", MICROSECONDS, "Wait for a person's permission before it ran; null: not told."),
        ("parallel_group", COUNT, "Calls of one answer share this number."),
        ("args_tokens", TOTAL, "Arguments by `sessions.tokenizer`."),
        ("result_tokens", TOTAL, "Result message by `sessions.tokenizer`."),
        ("result_bytes", TOTAL, "Bytes of the result."),
        ("is_error", FLAG, "The agent marked the result as a failure."),
        ("exit_code", COUNT, "Exit code of a command."),
        ("timed_out", FLAG, "The call hit its time limit."),
        ("mixed", FLAG, "New human text came with the result, so `wall_us` includes human time."),
    ),
)

TABLES = (SESSIONS, REQUESTS, TOOL_CALLS)

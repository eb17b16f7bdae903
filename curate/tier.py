"""The two tiers in which a dataset is published, column by column.

`content-free` (the default): times, lengths, counts and keyed hashes; no word that somebody wrote. `text`: everything
that was reviewed and approved, less what tells when and where it was recorded. A column without a disposition is never
published: staging refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import pyarrow as pa

from curate import disposition as of
from curate.disposition import Change, Pseudonyms
from curate.manifest import DatasetFault, Tier
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS, Table

type Action = Literal["kept", "coarsened", "pseudonym", "removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disposition:
    """What becomes of a column when it leaves."""

    action: Action
    sentence: str
    change: Change | None = None  # None: as it is, or removed
    renumbered: bool = False  # ids of tool calls, which get numbers over all tables of a session


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """The disposition of a column in each tier."""

    content_free: Disposition
    text: Disposition

    def of(self, tier: Tier) -> Disposition:
        """The one for a tier."""
        return self.text if tier == "text" else self.content_free


AS_APPROVED = Disposition(action="kept", sentence="As it was reviewed and approved.")
NUMBER = Disposition(action="kept", sentence="A number or a flag.")


def _both(content_free: Disposition, text: Disposition = AS_APPROVED) -> Both:
    return Both(content_free=content_free, text=text)


def _kept(sentence: str, change: Change, text: Disposition = AS_APPROVED) -> Both:
    return _both(Disposition(action="kept", sentence=sentence, change=change), text)


def _coarsened(sentence: str, change: Change, text: Disposition = AS_APPROVED) -> Both:
    return _both(Disposition(action="coarsened", sentence=sentence, change=change), text)


def _pseudonym(sentence: str, change: Change, text: Disposition = AS_APPROVED) -> Both:
    return _both(Disposition(action="pseudonym", sentence=sentence, change=change), text)


def _removed(sentence: str, text: Disposition = AS_APPROVED) -> Both:
    return _both(Disposition(action="removed", sentence=sentence), text)


def _alike(disposition: Disposition) -> Both:
    return Both(content_free=disposition, text=disposition)


def _stated(sentence: str) -> Disposition:
    return Disposition(action="kept", sentence=sentence, change=of.stated)


_SESSION = _kept("An id of our own: HMAC of the agent's id under the store's key.", of.shaped(r"[0-9A-Za-z_.-]{1,64}"))
_AGENT_PATH = _kept("Our own numbering of chains.", of.shaped(r"(?:main|side)(?:/\d+)*"))
_MODEL = "Kept where every word of the name is public (`claude-opus-4-6`), else a pseudonym (fine-tunes, paths)."
_HASH_SCOPE = _kept("One of two words.", of.one_of(of.HASH_SCOPES))
_TOKEN_SOURCE = _kept("One of four words.", of.one_of(of.TOKEN_SOURCES, otherwise="none"))
_CALL_IDS = _both(
    Disposition(action="pseudonym", sentence="Renumbered within its session: `call-0001`.", renumbered=True)
)
_IN_TEXT = "A position in the messages, which are not there."

_SESSIONS: dict[str, Both] = {
    "session_id": _SESSION,
    "source": _kept("`wire` or the name of an importer of ours.", of.one_of(of.SOURCES, otherwise="other")),
    "source_ref": _alike(
        Disposition(action="removed", sentence="Names of journals and files tell dates and projects.")
    ),
    "harness": _pseudonym("Kept for well-known agents, else a pseudonym.", of.harness),
    "harness_version": _coarsened("Its numbers, and words as every version has them (`beta`).", of.version),
    "t0_utc": _alike(Disposition(action="coarsened", sentence="To the hour.", change=of.hour)),
    "prompt": _removed("Text."),
    "messages": _removed("Text."),
    "tools": _removed("Text: names, descriptions and schemas of tools."),
    "tool_sets": _removed("Positions in `tools`, which are not there."),
    "tools_sha": _pseudonym("The digest of a text would confirm a guess of it.", of.pseudonym("tools")),
    "metadata": _removed("Free text."),
    "sent_at": _removed(
        "The same as `t0_utc`.", Disposition(action="coarsened", sentence="To the hour.", change=of.hour_text)
    ),
    "models": _pseudonym(_MODEL, of.models),
    **dict.fromkeys(
        (
            *("num_user_messages", "num_tool_calls", "num_requests", "num_subagents", "num_compactions", "num_errors"),
            *("duration_us", "api_us", "tool_us", "human_us"),
            *("prompt_tokens_total", "cached_tokens_total", "completion_tokens_total", "reasoning_tokens_total"),
            *("context_tokens_first", "context_tokens_last", "context_tokens_max", "resolved"),
            *("peak_agents", "contributor_peak_agents", "truncated_requests", "capture_quality"),
        ),
        _both(NUMBER),
    ),
    "token_source": _TOKEN_SOURCE,
    "source_tokenizer": _pseudonym("Kept where every word of the name is public.", of.tokenizer),
    "tokenizer": _kept("The encoding of our own counts.", of.one_of(of.ENCODINGS, otherwise="other")),
    "tokenizer_sha": _kept("The digest of a public rank file.", of.shaped("[0-9a-f]{64}")),
    "lang_mix": _kept("Names of languages and shares.", of.languages),
    "outcome": _kept("One of four words.", of.one_of(of.OUTCOMES, otherwise="unknown")),
    "outcome_source": _coarsened("One of a dozen words, else `other`.", of.one_of(of.JUDGES, otherwise="other")),
    "exit_status": _coarsened("One of a dozen words, else `other`.", of.one_of(of.EXIT_STATUSES, otherwise="other")),
    "repo_license": _coarsened("A well-known licence, else `other`.", of.repo_license),
    "task_id": _pseudonym("The name of a task may be that of a ticket.", of.pseudonym("task")),
    "license": _alike(_stated("The licence under which it is given, as stated.")),
    "consent": _alike(_stated("The statement of consent, as stated.")),
    "contributor": _alike(
        Disposition(action="pseudonym", sentence="Keyed for the release.", change=of.pseudonym("contributor"))
    ),
    "capture_mode": _kept("One of three words.", of.one_of(of.CAPTURE_MODES)),
    "joined": _kept("Names of importers of ours.", of.some_of(of.JOINED)),
    "redaction_policy": _kept("The name of our rules.", of.shaped(r"[a-z0-9][a-z0-9_.:+, -]{0,127}")),
    "redaction_counts": _kept("Names of rules and how often they found something.", of.rules),
    "review": _kept("One of a few words.", of.one_of(of.REVIEWS, otherwise="other")),
    "review_digest": _removed("The digest of what a reviewer saw."),
    "content_sha": _removed("The digest of a text would confirm a guess of it."),
    "dup_cluster": _pseudonym("Keyed for the release.", of.pseudonym("cluster")),
    "dup_role": _kept("One of two words.", of.one_of(of.DUPLICATE_ROLES)),
    "split": _kept("The name of a split, as in the file's name.", of.shaped("[a-z][a-z0-9_]*")),
    "hash_scope": _HASH_SCOPE,
    "schema": _kept("The version of the tables.", of.shaped(r"agentdyno/\d+")),
}

_REQUESTS: dict[str, Both] = {
    "session_id": _SESSION,
    "agent_path": _AGENT_PATH,
    **dict.fromkeys(
        (
            *("request_index", "parent_request_index", "stream", "status", "retry_of"),
            *("t_send_us", "t_headers_us", "t_first_byte_us", "t_first_token_us", "t_first_text_us"),
            *("t_first_thinking_us", "t_first_tool_call_us", "t_last_token_us", "t_end_us"),
            *("gap_us", "think_us", "permission_us", "client_us", "clock_jump_us"),
            *("lcp_tokens", "prompt_tokens", "cache_read_tokens", "cache_write_tokens", "completion_tokens"),
            *("reasoning_tokens", "prompt_tokens_est", "system_tokens", "tools_tokens", "max_tokens", "temperature"),
            *("block_size", "bytes_up", "bytes_down", "sse_events", "itl_us", "cache_ttl_s"),
        ),
        _both(NUMBER),
    ),
    "block_hashes": _both(
        Disposition(action="kept", sentence="Keyed hashes: equal heads of prompts are equal, and no text can be tried.")
    ),
    "link": _kept("One of six words.", of.one_of(of.LINKS, otherwise="none")),
    "link_confidence": _kept("One of three words.", of.one_of(of.LINK_CONFIDENCES)),
    "relation": _kept("One of seven words.", of.one_of(of.RELATIONS)),
    "agent_type": _pseudonym("Kept for built-in kinds of sub-agents, else a pseudonym.", of.agent_type),
    "kind": _kept("One of two words.", of.one_of(("turn", "auxiliary"))),
    "api": _kept("The name of a protocol.", of.one_of(of.APIS, otherwise="other")),
    "model": _pseudonym(_MODEL, of.model),
    "transport": _kept("One of three words.", of.one_of(of.TRANSPORTS)),
    "error": _coarsened("The kind of failure or the HTTP status; the provider's words are removed.", of.error_class),
    "gap_kind": _kept("One of six words.", of.one_of(of.GAP_KINDS, otherwise="unsplit")),
    "msg_upto": _removed(_IN_TEXT),
    "prompt_spans": _removed(_IN_TEXT),
    "answer_index": _removed(_IN_TEXT),
    "tools_index": _removed(_IN_TEXT),
    "context_event": _kept("One of five words.", of.one_of(of.CONTEXT_EVENTS)),
    "effort": _coarsened("A level or a budget of tokens, else `other`.", of.effort),
    "stop": _coarsened("A protocol's word, else `other`.", of.one_of(of.STOPS, otherwise="other")),
    "new_input": _kept("Kinds of parts.", of.some_of(of.PARTS)),
    "new_output": _kept("Kinds of parts.", of.some_of(of.PARTS)),
    "tool_call_ids": _CALL_IDS,
    "hash_scope": _HASH_SCOPE,
    "token_source": _TOKEN_SOURCE,
}

_TOOL_CALLS: dict[str, Both] = {
    "session_id": _SESSION,
    "tool_call_id": _CALL_IDS,
    "agent_path": _AGENT_PATH,
    **dict.fromkeys(
        (
            *("request_index", "result_request_index", "t_emitted_us", "t_result_us", "wall_us", "internal_us"),
            *("permission_us", "parallel_group", "args_tokens", "result_tokens", "result_bytes", "is_error"),
            *("exit_code", "timed_out", "mixed"),
        ),
        _both(NUMBER),
    ),
    "name": _pseudonym("Kept for tools built into well-known agents; others by kind (`mcp-3f2a91c0`).", of.tool),
    "kind": _kept("One of eight words.", of.one_of(of.TOOL_KINDS, otherwise="other")),
    "internal_source": _kept("One of four words.", of.one_of(of.TIME_SOURCES)),
}

DISPOSITIONS: Mapping[str, Mapping[str, Both]] = MappingProxyType(
    {SESSIONS.name: _SESSIONS, REQUESTS.name: _REQUESTS, TOOL_CALLS.name: _TOOL_CALLS}
)


def disposition(table: Table, column: str, tier: Tier) -> Disposition:
    """What becomes of a column in a tier; raises DatasetFault for one that nobody decided on."""
    both = DISPOSITIONS[table.name].get(column)
    if both is None:
        raise DatasetFault(
            f"column {column!r} of {table.name} has no disposition, so nothing is published; use the version of "
            "agentdyno that built the dataset"
        )
    return both.of(tier)


def disposition_table() -> str:
    """Every column of every table with what becomes of it in both tiers, as Markdown."""
    parts = []
    for table in TABLES:
        rows = "\n".join(
            f"| `{column.name}` | {_cell(both.content_free)} | {_cell(both.text)} |"
            for column in table.columns
            for both in (DISPOSITIONS[table.name][column.name],)
        )
        parts.append(f"### `{table.name}`\n\n| column | content-free | text |\n| --- | --- | --- |\n{rows}")
    return "\n\n".join(parts)


def _cell(found: Disposition) -> str:
    return found.action if found in (NUMBER, AS_APPROVED) else f"{found.action}: {found.sentence}".replace("|", "\\|")


def staged_schema(table: Table, present: pa.Schema, tier: Tier) -> pa.Schema:
    """The columns of a table that a tier holds: a content-free one lacks those of text.

    DatasetFault for a column of another type than ours: a text would leave in the place of a number.
    """
    ours = table.schema
    for field in present:
        disposition(table, field.name, tier)
        wanted = ours.field(field.name).type
        if field.type != wanted:
            raise DatasetFault(
                f"column {field.name!r} of {table.name} holds {field.type}, not {wanted}; build the dataset again"
            )
    held = [name for name in present.names if not (tier == "content-free" and name in table.text_columns)]
    return pa.schema([ours.field(name) for name in held])


def staged_table(table: Table, rows: pa.Table, tier: Tier, names: Pseudonyms, calls: of.Calls) -> pa.Table:
    """The rows of some whole sessions as they leave; `calls` numbers the tool calls of each session."""
    schema = staged_schema(table, rows.schema, tier)
    sessions = rows.column("session_id")
    columns = []
    for field in schema:
        found = disposition(table, field.name, tier)
        column = rows.column(field.name)
        if found.action == "removed":
            column = pa.nulls(len(rows), field.type)
        elif found.renumbered:
            column = pa.array(calls.renumber(sessions.to_pylist(), column.to_pylist()), field.type)
        elif found.change is not None:
            column = _changed(column, field.type, found.change, names)
        if field.name in ("session_id", "agent_path") and column.null_count:
            raise DatasetFault(f"{table.name} has a {field.name} that is not of agentdyno's making; build it again")
        columns.append(column)
    return pa.table(columns, schema=schema)


def _changed(column: pa.ChunkedArray, kind: pa.DataType, change: Change, names: Pseudonyms) -> pa.Array:
    stamps = pa.types.is_timestamp(kind)
    values: list[Any] = (column.cast(pa.int64()) if stamps else column).to_pylist()
    changed = [None if value is None else change(value, names) for value in values]
    return pa.array(changed, pa.int64()).cast(kind) if stamps else pa.array(changed, kind)

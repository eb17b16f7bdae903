"""Trajectory to rows of the three tables, and back: `trajectory_of(rows_of(t)) == published(t)` for every one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from capture.call import Message, Tool, ToolUse
from capture.intervals import union_length
from capture.trajectory import CaptureQuality, PooledMessage, Request, ToolCall, Trajectory
from curate.labels import NO_LABEL, Label
from curate.language import language_mix
from curate.published import published
from curate.table import SCHEMA_VERSION
from curate.tally import RequestTally, Tally, ToolCallTally

type Row = dict[str, Any]
"""A row as pyarrow takes and gives it; rows live only between this module and the Parquet files."""

PROMPT_BYTES = 2048
LATE = ("contributor_peak_agents", "dup_cluster", "dup_role")
"""Columns of `sessions` that other sessions of the dataset decide: known last, and patched without other work."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One session as rows of the three tables."""

    session: Row
    requests: list[Row]
    tool_calls: list[Row]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the rows' contents, late columns left out; the same whatever file or shard holds them."""
        session = {name: value for name, value in self.session.items() if name not in LATE}
        encoded = msgspec.json.encode([session, self.requests, self.tool_calls], order="sorted")
        return hashlib.sha256(encoded).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What curate knows about a session beyond the session itself."""

    tokenizer: str | None = None
    tokenizer_sha: str | None = None
    redaction_policy: str | None = None
    redaction_counts: Mapping[str, int] | None = None  # None: no redaction ran
    message_redactions: Sequence[int] | None = None
    message_truncated_bytes: Sequence[int] | None = None
    truncated_requests: int | None = None
    split: str = "train"
    label: Label = NO_LABEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """The late columns of one session."""

    contributor_peak_agents: int | None = None
    dup_cluster: str | None = None
    dup_role: str | None = None

    def digest(self, rows: str) -> str:
        """Digest of a session's rows with these columns, from the digest without them."""
        return hashlib.sha256(msgspec.json.encode([rows, *(getattr(self, name) for name in LATE)])).hexdigest()


def rows_of(trajectory: Trajectory, tally: Tally | None = None, provenance: Provenance | None = None) -> Rows:
    """Rows of one session; without a tally the columns of our own counts are null."""
    trajectory = published(trajectory)
    requests = [
        _request_row(trajectory, request, tally.requests[position] if tally else None)
        for position, request in enumerate(trajectory.requests)
    ]
    tool_calls = [
        _tool_call_row(trajectory, call, tally.tool_calls[position] if tally else None)
        for position, call in enumerate(trajectory.tool_calls)
    ]
    return Rows(
        session=_session_row(trajectory, requests, tally, provenance or Provenance()),
        requests=requests,
        tool_calls=tool_calls,
    )


def _short_sha(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:32]


def _sum(rows: Sequence[Row], column: str) -> int | None:
    known = [row[column] for row in rows if row[column] is not None]
    return sum(known) if known else None


def _errors(requests: Sequence[Row], *, with_text: bool) -> int | None:
    """Requests that failed; None where the source says of some neither a status nor an error, nor what was answered."""
    told = with_text or all(row["status"] is not None or row["error"] is not None for row in requests)
    return sum(row["error"] is not None for row in requests) if told else None


def _first_prompt(trajectory: Trajectory) -> str | None:
    """First user text of the main chain, cut at a character's border."""
    for pooled in trajectory.pool:
        if pooled.agent_path == "main" and pooled.message.role == "user" and pooled.message.content:
            return pooled.message.content.encode()[:PROMPT_BYTES].decode(errors="ignore")
    return None


def _context_counter(requests: Sequence[Row]) -> str:
    """The column that a session's contexts are taken from: one counter for all of it, ours only where nobody else."""
    return "prompt_tokens" if any(row["prompt_tokens"] is not None for row in requests) else "prompt_tokens_est"


def _session_row(trajectory: Trajectory, requests: list[Row], tally: Tally | None, known: Provenance) -> Row:
    tools, tool_sets = _pool_tools(trajectory.tool_sets)
    with_text = bool(trajectory.pool or trajectory.tool_sets)
    messages = [
        _message_row(
            pooled,
            tally.messages[position] if tally else None,
            known.message_redactions[position] if known.message_redactions is not None else None,
            known.message_truncated_bytes[position] if known.message_truncated_bytes is not None else None,
        )
        for position, pooled in enumerate(trajectory.pool)
    ]
    counter = _context_counter(requests)
    main = [row[counter] for row in requests if row["agent_path"] == "main" and row[counter] is not None]
    contexts = [row[counter] for row in requests if row[counter] is not None]
    t0 = None if trajectory.t0_utc_us is None else EPOCH + timedelta(microseconds=trajectory.t0_utc_us)
    mix = language_mix(trajectory)
    return {
        "session_id": trajectory.session_id,
        "source": trajectory.source,
        "source_ref": trajectory.source_ref,
        "harness": trajectory.harness,
        "harness_version": trajectory.harness_version,
        "t0_utc": trajectory.t0_utc_us,
        "prompt": _first_prompt(trajectory),
        "messages": messages if with_text else None,
        "tools": tools if with_text else None,
        "tool_sets": tool_sets if with_text else None,
        "tools_sha": _short_sha([tools, tool_sets]) if with_text else None,
        "metadata": None,
        "sent_at": None if t0 is None else t0.isoformat().replace("+00:00", "Z"),
        "models": list(trajectory.models),
        "num_user_messages": trajectory.num_user_messages,
        # Without text, no row may as well mean that the source does not tell.
        "num_tool_calls": len(trajectory.tool_calls) if trajectory.pool or trajectory.tool_calls else None,
        "num_requests": len(requests),
        "num_subagents": trajectory.num_subagents,
        "num_compactions": trajectory.num_compactions,
        "num_errors": _errors(requests, with_text=with_text),
        "duration_us": trajectory.duration_us,
        "api_us": trajectory.api_us,
        "tool_us": trajectory.tool_us,
        "human_us": trajectory.human_us,
        "prompt_tokens_total": _sum(requests, "prompt_tokens"),
        "cached_tokens_total": _sum(requests, "cache_read_tokens"),
        "completion_tokens_total": _sum(requests, "completion_tokens"),
        "reasoning_tokens_total": _sum(requests, "reasoning_tokens"),
        "context_tokens_first": main[0] if main else None,
        "context_tokens_last": main[-1] if main else None,
        "context_tokens_max": max(contexts, default=None),
        "token_source": trajectory.token_source,
        "source_tokenizer": trajectory.tokenizer,
        "tokenizer": known.tokenizer if with_text else None,
        "tokenizer_sha": known.tokenizer_sha if with_text else None,
        "lang_mix": None if mix is None else [{"lang": language, "share": share} for language, share in mix],
        "outcome": trajectory.outcome,
        "outcome_source": known.label.outcome_source,
        "resolved": known.label.resolved,
        "exit_status": known.label.exit_status,
        "repo_license": known.label.repo_license,
        "task_id": known.label.task_id,
        "license": trajectory.license,
        "consent": trajectory.consent,
        "contributor": trajectory.contributor,
        "capture_mode": trajectory.mode,
        "joined": list(trajectory.joined),
        "peak_agents": trajectory.peak_agents,
        "contributor_peak_agents": trajectory.contributor_peak_agents,
        "redaction_policy": known.redaction_policy,
        "redaction_counts": None
        if known.redaction_counts is None
        else [{"rule": rule, "n": n} for rule, n in sorted(known.redaction_counts.items())],
        "review": None,
        "review_digest": None,
        "content_sha": _short_sha([message["content_sha"] for message in messages]) if messages else None,
        "dup_cluster": None,
        "dup_role": None,
        "split": known.split,
        "truncated_requests": known.truncated_requests,
        "hash_scope": trajectory.hash_scope,
        "capture_quality": {
            "complete": trajectory.quality.complete,
            "gaps": trajectory.quality.gaps,
            "clock_err_us": trajectory.quality.clock_err_us,
            "body_missing": trajectory.quality.body_missing,
        },
        "schema": SCHEMA_VERSION,
    }


def _pool_tools(tool_sets: Sequence[Sequence[Tool]]) -> tuple[list[Row], list[list[int]]]:
    """Every tool once, and each set as positions: agents offer the same twenty tools in many combinations."""
    positions: dict[Tool, int] = {}
    sets = [[positions.setdefault(tool, len(positions)) for tool in tools] for tools in tool_sets]
    return [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in positions
    ], sets


def _message_row(pooled: PooledMessage, tokens: int | None, redactions: int | None, truncated_bytes: int | None) -> Row:
    message = pooled.message
    said = {
        "role": message.role,
        "content": message.content,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [
            {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.arguments}}
            for use in message.tool_calls
        ],
        "reasoning_content": message.reasoning_content,
        "is_error": message.is_error,
    }
    return {
        **said,
        "agent_path": pooled.agent_path,
        "request_index": pooled.request_index,
        "t_us": pooled.t_us,
        "answer": pooled.answer,
        "content_sha": _short_sha(said),
        "tokens": tokens,
        "omitted_bytes": message.omitted_bytes,
        "truncated_bytes": truncated_bytes,
        "redactions": redactions,
    }


# Columns whose value is the field of the same name.
REQUEST_FIELDS = (
    "request_index",
    "agent_path",
    "parent_request_index",
    "link",
    "link_confidence",
    "relation",
    "agent_type",
    "kind",
    "api",
    "model",
    "transport",
    "stream",
    "status",
    "error",
    "retry_of",
    "t_send_us",
    "t_headers_us",
    "t_first_byte_us",
    "t_first_token_us",
    "t_first_text_us",
    "t_first_thinking_us",
    "t_first_tool_call_us",
    "t_last_token_us",
    "t_end_us",
    "gap_us",
    "gap_kind",
    "think_us",
    "permission_us",
    "client_us",
    "clock_jump_us",
    "answer_index",
    "tools_index",
    "context_event",
    "prompt_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "system_tokens",
    "tools_tokens",
    "max_tokens",
    "temperature",
    "effort",
    "stop",
    "block_size",
    "bytes_up",
    "bytes_down",
    "sse_events",
)
TOOL_CALL_FIELDS = tuple(field.name for field in fields(ToolCall))


def _request_row(trajectory: Trajectory, request: Request, counts: RequestTally | None) -> Row:
    spans = request.prompt_spans
    row = {name: getattr(request, name) for name in REQUEST_FIELDS}
    row |= {
        "session_id": trajectory.session_id,
        "msg_upto": spans[0][1] if spans is not None and len(spans) == 1 and spans[0][0] == 0 else None,
        "prompt_spans": None if spans is None else [{"start": start, "stop": stop} for start, stop in spans],
        "lcp_tokens": counts.lcp_tokens if counts else None,
        "prompt_tokens_est": counts.prompt_tokens_est if counts else request.prompt_tokens_est,
        "new_input": list(request.new_input),
        "new_output": None if request.new_output is None else list(request.new_output),
        "tool_call_ids": list(request.tool_call_ids),
        "block_hashes": None if request.block_hashes is None else list(request.block_hashes),
        "hash_scope": trajectory.hash_scope,
        "itl_us": None if request.itl_us is None else list(request.itl_us),
        "cache_ttl_s": None,
        "token_source": trajectory.token_source,
    }
    if counts:
        row |= {"system_tokens": counts.system_tokens, "tools_tokens": counts.tools_tokens}
    return row


def _tool_call_row(trajectory: Trajectory, call: ToolCall, counts: ToolCallTally | None) -> Row:
    return {
        "session_id": trajectory.session_id,
        **{name: getattr(call, name) for name in TOOL_CALL_FIELDS},
        "args_tokens": counts.args_tokens if counts else None,
        "result_tokens": counts.result_tokens if counts else None,
    }


def trajectory_of(session: Row | None, requests: Sequence[Row], tool_calls: Sequence[Row]) -> Trajectory:
    """The trajectory that rows describe.

    Columns of text may be absent, and so may the whole session row (a dataset of `requests` and `tool_calls` alone):
    then the session's own facts are unknown and its times are recomputed from the requests.
    """
    with_text = session is not None and session.get("messages") is not None
    if session is None:
        session = _derived_session(requests, tool_calls)
    quality = session["capture_quality"]
    return Trajectory(
        session_id=session["session_id"],
        source=session["source"],
        source_ref=session["source_ref"],
        harness=session["harness"],
        harness_version=session["harness_version"],
        t0_utc_us=session["t0_utc"],
        models=tuple(session["models"]),
        pool=tuple(_pooled(row) for row in session["messages"]) if with_text else (),
        tool_sets=_tool_sets(session) if with_text else (),
        requests=tuple(_request(row, with_text=with_text) for row in requests),
        tool_calls=tuple(ToolCall(**{name: row[name] for name in TOOL_CALL_FIELDS}) for row in tool_calls),
        duration_us=session["duration_us"],
        api_us=session["api_us"],
        tool_us=session["tool_us"],
        human_us=session["human_us"],
        num_user_messages=session["num_user_messages"],
        num_subagents=session["num_subagents"],
        num_compactions=session["num_compactions"],
        hash_scope=session["hash_scope"],
        token_source=session["token_source"],
        tokenizer=session["source_tokenizer"],
        license=session["license"],
        quality=CaptureQuality(**quality),
        outcome=session["outcome"],
        mode=session["capture_mode"],
        joined=tuple(session["joined"] or ()),
        contributor=session["contributor"],
        consent=session["consent"],
        peak_agents=session["peak_agents"],
        contributor_peak_agents=session["contributor_peak_agents"],
    )


def _tool_sets(session: Row) -> tuple[tuple[Tool, ...], ...]:
    tools = [
        Tool(name=row["name"], description=row["description"], parameters=row["parameters"]) for row in session["tools"]
    ]
    return tuple(tuple(tools[position] for position in positions) for positions in session["tool_sets"])


def _pooled(row: Row) -> PooledMessage:
    return PooledMessage(
        message=Message(
            role=row["role"],
            content=row["content"],
            reasoning_content=row["reasoning_content"],
            name=row["name"],
            tool_call_id=row["tool_call_id"],
            tool_calls=tuple(
                ToolUse(id=use["id"], name=use["function"]["name"], arguments=use["function"]["arguments"])
                for use in row["tool_calls"]
            ),
            is_error=row["is_error"],
            omitted_bytes=row["omitted_bytes"],
        ),
        agent_path=row["agent_path"],
        request_index=row["request_index"],
        t_us=row["t_us"],
        answer=row["answer"],
    )


def _request(row: Row, *, with_text: bool) -> Request:
    spans = row["prompt_spans"] if with_text else None
    values = {name: row[name] for name in REQUEST_FIELDS}
    values["prompt_tokens_est"] = row["prompt_tokens_est"]
    if not with_text:  # they point into text that is not here
        values |= {"answer_index": None, "tools_index": None}
    return Request(
        **values,
        prompt_spans=None if spans is None else tuple((span["start"], span["stop"]) for span in spans),
        new_input=tuple(row["new_input"]),
        new_output=None if row["new_output"] is None else tuple(row["new_output"]),
        tool_call_ids=tuple(row["tool_call_ids"]),
        block_hashes=tuple(hashes) if isinstance(hashes := row["block_hashes"], list) else hashes,
        itl_us=None if row["itl_us"] is None else tuple(row["itl_us"]),
        exchange_id=None,
    )


def _derived_session(requests: Sequence[Row], tool_calls: Sequence[Row]) -> Row:
    """What `requests` and `tool_calls` alone tell about a session; everything else is unknown."""
    spent = [row for row in requests if row["t_send_us"] is not None and row["t_end_us"] is not None]
    thinks = [row["think_us"] for row in requests]
    gaps = [
        (row["t_send_us"] - row["gap_us"], row["t_send_us"])
        for row in requests
        if row["gap_kind"] == "tool" and row["gap_us"] is not None and row["t_send_us"] is not None
    ]
    any_row = (requests or tool_calls)[0]
    return {
        "session_id": any_row["session_id"],
        "source": "dataset",
        "source_ref": "",
        "harness": "unknown",
        "harness_version": None,
        "t0_utc": None,
        "models": list(dict.fromkeys(row["model"] for row in requests)),
        "duration_us": max((row["t_end_us"] for row in requests if row["t_end_us"] is not None), default=None),
        "api_us": union_length((row["t_send_us"], row["t_end_us"]) for row in spent) if spent else None,
        "tool_us": union_length(gaps) if gaps else None,
        "human_us": sum(us for us in thinks if us is not None) if any(us is not None for us in thinks) else None,
        "num_user_messages": None,
        "num_subagents": len({row["agent_path"] for row in requests if row["agent_path"].startswith("main/")}),
        "num_compactions": sum(row["context_event"] == "compaction" for row in requests),
        "hash_scope": any_row.get("hash_scope"),
        "token_source": any_row.get("token_source") or "provider",
        "source_tokenizer": None,
        "license": None,
        "capture_quality": {"complete": False, "gaps": 0, "clock_err_us": None, "body_missing": 0},
        "outcome": "unknown",
        "capture_mode": None,
        "joined": None,
        "contributor": None,
        "consent": None,
        "peak_agents": None,
        "contributor_peak_agents": None,
    }

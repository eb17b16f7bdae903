"""A session as JSON with the dataset's column names: what `capture show --json` and `capture sessions --json` print.

No text and no tool schema leaves here. A column that only curation can fill is null.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from capture.trajectory import Request, ToolCall, Trajectory

# In the order of the dataset's columns; null here, because a tokenizer, a redactor or a person fills them.
_CURATED_SESSION = (
    "tools_sha",
    "metadata",
    "sent_at",
    "tokenizer_sha",
    "lang_mix",
    "outcome_source",
    "resolved",
    "exit_status",
    "repo_license",
    "task_id",
    "redaction_policy",
    "redaction_counts",
    "review",
    "review_digest",
    "content_sha",
    "dup_cluster",
    "dup_role",
    "split",
    "schema",
)
_CURATED_REQUEST = ("msg_upto", "lcp_tokens", "prompt_tokens_est", "cache_ttl_s")
_CURATED_TOOL_CALL = ("args_tokens", "result_tokens")


def _sum(values: Iterable[int | None]) -> int | None:
    """Sum of the known values; None where none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def session_columns(trajectory: Trajectory) -> dict[str, Any]:
    """The columns of `sessions` less the text, and ours beside them."""
    requests = trajectory.requests
    contexts = [
        request.prompt_tokens
        for request in requests
        if request.agent_path == "main" and request.prompt_tokens is not None
    ]
    everywhere = [request.prompt_tokens for request in requests if request.prompt_tokens is not None]
    started = trajectory.t0_utc_us
    columns: dict[str, Any] = {
        "session_id": trajectory.session_id,
        "harness": trajectory.harness,
        "harness_version": trajectory.harness_version,
        "t0_utc": None if started is None else _iso(started),
        **dict.fromkeys(_CURATED_SESSION),
        "models": list(trajectory.models),
        "num_user_messages": trajectory.num_user_messages,
        "num_tool_calls": len(trajectory.tool_calls) if trajectory.pool else None,
        "num_requests": len(requests),
        "num_subagents": trajectory.num_subagents,
        "num_compactions": trajectory.num_compactions,
        "num_errors": sum(request.error is not None for request in requests),
        "duration_us": trajectory.duration_us,
        "api_us": trajectory.api_us,
        "tool_us": trajectory.tool_us,
        "human_us": trajectory.human_us,
        "prompt_tokens_total": _sum(request.prompt_tokens for request in requests),
        "cached_tokens_total": _sum(request.cache_read_tokens for request in requests),
        "completion_tokens_total": _sum(request.completion_tokens for request in requests),
        "reasoning_tokens_total": _sum(request.reasoning_tokens for request in requests),
        "context_tokens_max": max(everywhere, default=None),
        "context_tokens_last": contexts[-1] if contexts else None,
        "tokenizer": trajectory.tokenizer,
        "outcome": trajectory.outcome,
        "license": trajectory.license,
        "capture_quality": dataclasses.asdict(trajectory.quality),
        "consent": trajectory.consent,
        "contributor": trajectory.contributor,
        "capture_mode": trajectory.mode,
        "joined": list(trajectory.joined),
        "peak_agents": trajectory.peak_agents,
        "contributor_peak_agents": trajectory.contributor_peak_agents,
        # Ours.
        "source": trajectory.source,
        "source_ref": trajectory.source_ref,
        "hash_scope": trajectory.hash_scope,
        "token_source": trajectory.token_source,
    }
    return columns


def _iso(at_us: int) -> str:
    seconds, micro = divmod(at_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micro).isoformat().replace("+00:00", "Z")


def request_columns(session_id: str, request: Request) -> dict[str, Any]:
    """The columns of `requests`, and ours beside them; the prompt's spans stay, they hold no text."""
    columns = {"session_id": session_id, **_fields(request), **dict.fromkeys(_CURATED_REQUEST)}
    spans = request.prompt_spans
    if spans is not None:
        columns["prompt_spans"] = [list(span) for span in spans]
        # Only then is "messages[0:msg_upto]" the whole truth about the prompt.
        if len(spans) == 1 and spans[0][0] == 0:
            columns["msg_upto"] = spans[0][1]
    return columns


def tool_call_columns(session_id: str, call: ToolCall) -> dict[str, Any]:
    """The columns of `tool_calls`, and ours beside them."""
    return {"session_id": session_id, **_fields(call), **dict.fromkeys(_CURATED_TOOL_CALL)}


def _fields(value: Request | ToolCall) -> dict[str, Any]:
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: list(item) if isinstance(item, tuple) else item for name, item in fields.items()}


def session_json(trajectory: Trajectory) -> dict[str, Any]:
    """One object with `session`, `requests` and `tool_calls`; plain JSON values throughout."""
    own = trajectory.session_id
    return {
        "session": session_columns(trajectory),
        "requests": [request_columns(own, request) for request in trajectory.requests],
        "tool_calls": [tool_call_columns(own, call) for call in trajectory.tool_calls],
    }

"""What of a session each format carries there and back again, and so what it drops.

A field is carried when it comes back equal for every session that the format takes: written by `curate export`, read by
our importer of the format (or, where there is none, read off the file). The rest is dropped: it comes back as None, or
as something else. Names are those of the border types, `request.itl_us`. As the comparison has it:

- a session is the requests that the format can hold (the others are counted as left out, by reason), so an index counts
  those, `session.models` are theirs, and the clock starts with the first of them;
- `request.prompt_spans`, `answer_index` and `tools_index` are carried when they point to as many messages and tools as
  before, whose own fields are told apart under `message.` and `tool.`;
- an agent's first request has no gap before it, whatever was left out there;
- the first token of an answer that came in one piece tells nothing; a tool's result that only a request carried which
  was left out is left out with it;
- an empty thought is none;
- JSON as text (tool arguments, schemas) is compared as a value: spaces come and go.
"""

from __future__ import annotations

from dataclasses import fields

from capture.call import Message, Tool
from capture.trajectory import Request, ToolCall, Trajectory

# What holds the others, and what a dataset never has.
_NO_FIELDS = frozenset(
    ("session.pool", "session.tool_sets", "session.requests", "session.tool_calls", "request.exchange_id")
)
FIELDS: tuple[str, ...] = tuple(
    name
    for prefix, type_ in (
        ("session", Trajectory),
        ("request", Request),
        ("tool_call", ToolCall),
        ("message", Message),
        ("tool", Tool),
    )
    for each in fields(type_)
    if (name := f"{prefix}.{each.name}") not in _NO_FIELDS
)
TEXT_FIELDS = frozenset(
    name for name in FIELDS if name.startswith(("message.", "tool."))
) | {"request.prompt_spans", "request.answer_index", "request.tools_index"}  # fmt: skip


def _fields(**words: str) -> frozenset[str]:
    return frozenset(f"{prefix}.{word}" for prefix, named in words.items() for word in named.split())


_OTEL = _fields(  # spans hold no text, so that of a session changes nothing
    session="session_id source harness harness_version token_source license",
    request="request_index agent_path model stream status retry_of t_send_us t_first_token_us t_end_us gap_us "
    "gap_kind think_us context_event prompt_tokens cache_read_tokens cache_write_tokens completion_tokens "
    "reasoning_tokens max_tokens temperature stop kind relation permission_us client_us",
    tool_call="tool_call_id agent_path name kind wall_us result_bytes exit_code timed_out internal_source",
)

# By format and whether the sessions have text.
CARRIED: dict[tuple[str, bool], frozenset[str]] = {
    ("weka", False): _fields(
        session="models num_subagents hash_scope",
        request="request_index agent_path model stream error retry_of t_send_us t_first_token_us t_end_us gap_us "
        "completion_tokens tools_tokens new_input block_size block_hashes kind",
    ),
    ("weka", True): _fields(
        session="models num_subagents",
        request="request_index agent_path parent_request_index model stream retry_of t_send_us t_first_token_us "
        "t_end_us gap_us new_input kind",
    ),
    ("mooncake", False): _fields(
        session="session_id",
        request="request_index model t_send_us completion_tokens",
    ),
    ("mooncake", True): _fields(
        session="session_id",
        request="request_index model t_send_us",
    ),
    ("mooncake+messages", True): _fields(
        session="session_id",
        request="request_index agent_path model t_send_us prompt_spans temperature tools_index",
        message="role content reasoning_content name tool_call_id tool_calls",
        tool="name description parameters",
    ),
    ("openai", True): _fields(
        session="session_id harness models license",
        request="request_index agent_path model stream status t_send_us t_end_us gap_us gap_kind prompt_spans "
        "prompt_tokens completion_tokens max_tokens temperature tools_index",
        message="role content reasoning_content name tool_call_id tool_calls",
        tool="name description parameters",
    ),
    ("atif", True): _fields(
        session="harness t0_utc_us models num_subagents num_compactions",
        request="request_index agent_path parent_request_index model stream status retry_of t_send_us t_headers_us "
        "t_first_byte_us t_first_token_us t_last_token_us t_end_us prompt_spans answer_index context_event "
        "prompt_tokens cache_read_tokens cache_write_tokens completion_tokens reasoning_tokens max_tokens "
        "temperature effort stop tool_call_ids tools_index kind t_first_text_us t_first_thinking_us "
        "t_first_tool_call_us agent_type",
        tool_call="tool_call_id agent_path request_index name kind t_emitted_us internal_us parallel_group timed_out "
        "permission_us",
        message="role content reasoning_content tool_call_id tool_calls is_error omitted_bytes",
        tool="name description parameters",
    ),
    ("otel", False): _OTEL,
    ("otel", True): _OTEL,
    ("agentperf-local", True): _fields(
        session="harness num_compactions token_source",
        request="request_index agent_path parent_request_index retry_of t_send_us t_end_us prompt_spans prompt_tokens "
        "max_tokens tool_call_ids tools_index kind agent_type",
        tool_call="tool_call_id agent_path request_index name kind parallel_group exit_code",
        message="role content reasoning_content name tool_call_id tool_calls",
        tool="name description parameters",
    ),
    ("claude-code", True): _fields(
        session="harness_version models num_subagents num_compactions token_source",
        request="request_index agent_path parent_request_index model retry_of t_send_us t_end_us gap_us prompt_spans "
        "answer_index context_event prompt_tokens cache_read_tokens cache_write_tokens completion_tokens "
        "reasoning_tokens max_tokens temperature effort tool_call_ids tools_index kind relation agent_type",
        tool_call="tool_call_id agent_path request_index result_request_index name kind t_result_us wall_us "
        "internal_us parallel_group result_bytes",
        message="role content reasoning_content tool_call_id tool_calls is_error",
        tool="name description parameters",
    ),
}


def dropped_fields(format_name: str, *, text: bool, with_messages: bool = False) -> tuple[str, ...]:
    """Fields that the format drops, in the order of the border types; of sessions with or without text."""
    carried = CARRIED[format_name + ("+messages" if with_messages else ""), text]
    return tuple(name for name in FIELDS if name not in carried and (text or name not in TEXT_FIELDS))

"""A trajectory as it may leave its store, before redaction.

What never does: `exchange_id`, a tool call's journal clock (`ToolUse.t_emitted_ns`; the published time is
`tool_calls.t_emitted_us`) and the folder in `source_ref`.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import Any

import msgspec

from capture.call import Message
from capture.trajectory import Trajectory


def published(trajectory: Trajectory) -> Trajectory:
    """The trajectory without what never leaves the store, its text made valid Unicode."""
    return _clean(_stripped(trajectory))


def published_json(trajectory: Trajectory) -> bytes:
    """The published trajectory as JSON."""
    return valid_json(_stripped(trajectory))


def valid_json(value: Any) -> bytes:
    """A border type as JSON, lone surrogates replaced."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_clean_value(value))


def _stripped(trajectory: Trajectory) -> Trajectory:
    return replace(
        trajectory,
        source_ref=PurePosixPath(trajectory.source_ref.replace("\\", "/")).name,
        pool=tuple(
            replace(pooled, message=_without_clock(pooled.message)) if pooled.message.tool_calls else pooled
            for pooled in trajectory.pool
        ),
        requests=tuple(
            request if request.exchange_id is None else replace(request, exchange_id=None)
            for request in trajectory.requests
        ),
    )


def _without_clock(message: Message) -> Message:
    return replace(message, tool_calls=tuple(replace(use, t_emitted_ns=None) for use in message.tool_calls))


def _clean(trajectory: Trajectory) -> Trajectory:
    """Replace lone surrogates, which JSON allows and UTF-8 does not, by U+FFFD."""
    try:
        msgspec.json.encode(trajectory)
    except UnicodeEncodeError:
        return _clean_value(trajectory)  # type: ignore[no-any-return]
    return trajectory


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, tuple):
        return tuple(_clean_value(item) for item in value)
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{field.name: _clean_value(getattr(value, field.name)) for field in fields(value)})
    return value

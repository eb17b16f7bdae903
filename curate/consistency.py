"""Whether a session's parts fit together: every reference of a row points to something that is there, time goes on."""

from __future__ import annotations

from collections.abc import Iterable

from capture.trajectory import Request, ToolCall, Trajectory

_HASHES = 2**64


class Inconsistent(ValueError):
    """A session refers to what it does not hold, or contradicts itself; the text says how."""


def check(trajectory: Trajectory) -> None:
    """Raise Inconsistent for the first thing that does not fit."""
    if not trajectory.requests:
        raise Inconsistent("holds no request")
    indices = [request.request_index for request in trajectory.requests]
    if len(set(indices)) != len(indices):
        raise Inconsistent("a request index stands twice")
    known = set(indices)
    for request in trajectory.requests:
        _check_request(trajectory, request, known)
        _check_times(request)
    _check_descent(trajectory)
    for call in trajectory.tool_calls:
        if call.request_index not in known or (call.result_request_index or call.request_index) not in known:
            raise Inconsistent("a tool call belongs to a request that is not there")
        _check_tool_times(call)
    if _negative((trajectory.duration_us, trajectory.api_us, trajectory.tool_us, trajectory.human_us)):
        raise Inconsistent("its clock goes backwards: a duration of the session is negative")


def _check_request(trajectory: Trajectory, request: Request, known: set[int]) -> None:
    pool = len(trajectory.pool)
    if any(not 0 <= start <= stop <= pool for start, stop in request.prompt_spans or ()):
        raise Inconsistent("a prompt reaches beyond the session's messages")
    if request.answer_index is not None and not 0 <= request.answer_index < pool:
        raise Inconsistent("an answer lies beyond the session's messages")
    if request.tools_index is not None and not 0 <= request.tools_index < len(trajectory.tool_sets):
        raise Inconsistent("a request offers tools that are not there")
    for index in (request.parent_request_index, request.retry_of):
        if index is not None and index not in known:
            raise Inconsistent("a request continues one that is not there")
    if any(not 0 <= value < _HASHES for value in request.block_hashes or ()):
        raise Inconsistent("a block hash is no 64-bit number")
    if request.block_hashes is not None and (request.block_size is None or request.block_size < 1):
        raise Inconsistent("block hashes have no block size")


def _check_descent(trajectory: Trajectory) -> None:
    """Every request has a first ancestor, and repeats no request that repeats it."""
    for reference in ("parent_request_index", "retry_of"):
        before = {request.request_index: getattr(request, reference) for request in trajectory.requests}
        whole: set[int] = set()  # those whose ancestors end somewhere
        for start in before:
            path: set[int] = set()
            index: int | None = start
            while index is not None and index not in whole:
                if index in path:
                    raise Inconsistent("a request is its own ancestor")
                path.add(index)
                index = before[index]
            whole |= path


def _check_times(request: Request) -> None:
    """A request ends after it was sent, and nothing that took time took less than none."""
    sent = request.t_send_us
    if sent is not None and sent < 0:
        raise Inconsistent("its clock goes backwards: a request was sent before the first one")
    for at in (
        request.t_headers_us,
        request.t_first_byte_us,
        request.t_first_token_us,
        request.t_last_token_us,
        request.t_end_us,
    ):
        if sent is not None and at is not None and at < sent:
            raise Inconsistent("its clock goes backwards: a request is answered or over before it was sent")
    if _negative((request.gap_us, request.think_us, request.permission_us, request.client_us, *(request.itl_us or ()))):
        raise Inconsistent("its clock goes backwards: a gap is negative")
    if _negative(
        (
            request.prompt_tokens,
            request.cache_read_tokens,
            request.cache_write_tokens,
            request.completion_tokens,
            request.reasoning_tokens,
        )
    ):
        raise Inconsistent("a token count is negative")


def _check_tool_times(call: ToolCall) -> None:
    if _negative((call.wall_us, call.internal_us, call.permission_us)):
        raise Inconsistent("its clock goes backwards: a tool's time is negative")


def _negative(values: Iterable[int | None]) -> bool:
    return any(value is not None and value < 0 for value in values)

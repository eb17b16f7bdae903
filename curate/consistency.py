"""Whether a session's parts fit together: every reference of a row points to something that is there."""

from __future__ import annotations

from capture.trajectory import Request, Trajectory


class Inconsistent(ValueError):
    """A session refers to what it does not hold; the text says where."""


def check(trajectory: Trajectory) -> None:
    """Raise Inconsistent for the first reference that leads nowhere."""
    if not trajectory.requests:
        raise Inconsistent("holds no request")
    indices = [request.request_index for request in trajectory.requests]
    if len(set(indices)) != len(indices):
        raise Inconsistent("a request index stands twice")
    known = set(indices)
    for request in trajectory.requests:
        _check_request(trajectory, request, known)
    for call in trajectory.tool_calls:
        if call.request_index not in known or (call.result_request_index or call.request_index) not in known:
            raise Inconsistent("a tool call belongs to a request that is not there")


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

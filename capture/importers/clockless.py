"""Sessions of sources that keep no clock: the order of calls is known, and no time at all."""

from __future__ import annotations

from dataclasses import replace

from capture.trajectory import PooledMessage, Request, ToolCall, Trajectory

STEP_NS = 1000
"""Calls of such a source are laid one microsecond apart, so that assembling keeps their order; then this goes away."""


def without_clock(trajectory: Trajectory) -> Trajectory:
    """The session with every time unknown, rather than the made-up ones that only kept its order."""
    return replace(
        trajectory,
        t0_utc_us=None,
        pool=tuple(_untimed_message(pooled) for pooled in trajectory.pool),
        requests=tuple(_untimed_request(request) for request in trajectory.requests),
        tool_calls=tuple(_untimed_call(call) for call in trajectory.tool_calls),
        duration_us=None,
        api_us=None,
        tool_us=None,
        human_us=None,
        peak_agents=None,
        contributor_peak_agents=None,
    )


def _untimed_message(pooled: PooledMessage) -> PooledMessage:
    return replace(pooled, t_us=None)


def _untimed_request(request: Request) -> Request:
    return replace(
        request,
        t_send_us=None,
        t_end_us=None,
        gap_us=None,
        think_us=None,
        permission_us=None,
        client_us=None,
        clock_jump_us=None,
    )


def _untimed_call(call: ToolCall) -> ToolCall:
    return replace(call, t_emitted_us=None, t_result_us=None, wall_us=None)

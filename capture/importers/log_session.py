"""What an agent's own log tells of one session: the border between the log importers and the join with the wire."""

from __future__ import annotations

from dataclasses import dataclass

from capture.call import ModelCall, ToolTime


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanWait:
    """A stretch in which the agent waited for a person's next words. Wall clock of the agent, UTC microseconds."""

    started_utc_us: int  # the agent had finished its turn
    ended_utc_us: int  # the person's words arrived


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSession:
    """One session as an agent's log holds it, sub-agents included.

    Each `ModelCall.hints[0].session` equals `native_session_id` and is the id that the agent sends on the wire, so
    that `join` finds the twin by it; `ModelCall.response_id` is the provider's own id where the log keeps it
    (Claude Code: `message.id`), and tool calls keep the ids of the wire. Times of calls are wall clock: anchor zero,
    `t_*_ns` = UTC nanoseconds of the agent's clock.
    """

    native_session_id: str
    harness: str  # claude-code | codex | gemini-cli | …
    harness_version: str | None
    source: str  # name of the source in `Trajectory.source`, `.joined` and session ids: claude-code-log, codex-log, …
    paths: tuple[str, ...]  # files that it was read from
    calls: tuple[ModelCall, ...]
    tool_times: tuple[ToolTime, ...]  # all with source "log"
    human_waits: tuple[HumanWait, ...] = ()
    notes: tuple[str, ...] = ()  # what the log cannot tell or what was left out, in words

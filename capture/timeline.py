"""Sessions for people: the table of `capture sessions` and the timeline of `capture show`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capture.trajectory import Request, ToolCall, Trajectory

UNKNOWN = "–"


def seconds(duration_us: int | None) -> str:
    """A duration for a person, from microseconds; a dash where it is unknown."""
    if duration_us is None:
        return UNKNOWN
    value = duration_us / 1e6
    if abs(value) < 10:
        return f"{value:.3f} s"
    if value < 600:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def count(value: int | None) -> str:
    """A number with thin groups of three; a dash where it is unknown."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", " ")


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _started(trajectory: Trajectory) -> str:
    if trajectory.t0_utc_us is None:
        return UNKNOWN
    return datetime.fromtimestamp(trajectory.t0_utc_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_sessions(trajectories: Sequence[Trajectory], console: Console) -> None:
    """One line per session."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right in (
        ("session", False),
        ("from", False),
        ("agent", False),
        ("started (UTC)", False),
        ("calls", True),
        ("sub-agents", True),
        ("tools", True),
        ("prompt tokens", True),
        ("answer tokens", True),
        ("model time", True),
        ("tool time", True),
        ("duration", True),
        ("whole", False),
    ):
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for trajectory in trajectories:
        table.add_row(
            trajectory.session_id,
            escape(trajectory.source),
            escape(" ".join(filter(None, (trajectory.harness, trajectory.harness_version)))),
            _started(trajectory),
            count(len(trajectory.requests)),
            count(trajectory.num_subagents),
            count(len(trajectory.tool_calls)) if trajectory.pool else UNKNOWN,
            count(_total(request.prompt_tokens for request in trajectory.requests)),
            count(_total(request.completion_tokens for request in trajectory.requests)),
            seconds(trajectory.api_us),
            seconds(trajectory.tool_us),
            seconds(trajectory.duration_us),
            "yes" if trajectory.quality.complete else "no",
        )
    # Ids are there to be copied: a wide table may leave the window, a cut id helps nobody.
    console.width = max(console.width, 200)
    console.print(table)


def print_session(trajectory: Trajectory, console: Console) -> None:
    """What happened when: one line per call, and one per tool below the call that asked for it."""
    tools: defaultdict[int, list[ToolCall]] = defaultdict(list)
    for call in trajectory.tool_calls:
        tools[call.request_index].append(call)
    head = (
        f"[bold]{trajectory.session_id}[/]  {escape(trajectory.harness)} {escape(trajectory.harness_version or '')}"
        f"  {escape(', '.join(trajectory.models) or 'model unknown')}"
    )
    console.print(head, soft_wrap=True)
    console.print(
        f"{len(trajectory.requests)} calls, {len(trajectory.tool_calls) if trajectory.pool else UNKNOWN} tool calls, "
        f"{trajectory.num_subagents} sub-agents, {trajectory.num_compactions} compactions; "
        f"{seconds(trajectory.duration_us)} in all: model {seconds(trajectory.api_us)}, "
        f"tools {seconds(trajectory.tool_us)}, human {seconds(trajectory.human_us)}",
        soft_wrap=True,
    )
    if not trajectory.quality.complete:
        console.print("[yellow]not whole: an answer was cut, or the recorder lost something[/]", soft_wrap=True)
    console.print()
    for request in trajectory.requests:
        console.print(_request_line(request), soft_wrap=True)
        for call in tools[request.request_index]:
            console.print(_tool_line(call), soft_wrap=True)


def _request_line(request: Request) -> str:
    first = None if request.t_first_token_us is None else request.t_first_token_us - request.t_send_us
    whole = None if request.t_end_us is None else request.t_end_us - request.t_send_us
    parts = [
        f"{seconds(request.t_send_us):>12}",
        f"[cyan]#{request.request_index:<3}[/]",
        f"{request.agent_path:<8}",
        f"prompt {count(request.prompt_tokens):>9}",
        f"cached {count(request.cache_read_tokens):>9}",
        f"answer {count(request.completion_tokens):>7}",
        f"first token {seconds(first):>9}",
        f"end {seconds(whole):>9}",
        f"{escape(request.stop or ''):<10}",
    ]
    if request.gap_us is not None:
        parts.append(f"after {seconds(request.gap_us)} {request.gap_kind}")
    elif request.gap_kind == "spawn":
        parts.append(f"started by #{request.parent_request_index}")
    if request.context_event != "append":
        parts.append(f"[magenta]{request.context_event}[/]")
    if request.retry_of is not None:
        parts.append(f"[yellow]retry of #{request.retry_of}[/]")
    if request.kind == "auxiliary":
        parts.append("auxiliary")
    if request.error is not None:
        parts.append(f"[red]{escape(request.error.splitlines()[0][:120] if request.error else '')}[/]")
    return "  ".join(parts)


def _tool_line(call: ToolCall) -> str:
    end = [f"exit {call.exit_code}"] if call.exit_code is not None else []
    if call.is_error:
        end.append("[red]error[/]")
    if call.mixed:
        end.append("with human time")
    if call.result_request_index is None:
        end.append("no result seen")
    internal = f" (own count {seconds(call.internal_us)})" if call.internal_us is not None else ""
    return (
        f"{'':>12}  └ {escape(call.name)} [dim]{call.kind}[/]  {seconds(call.wall_us)}{internal}  "
        f"{count(call.result_bytes)} bytes  {', '.join(end)}".rstrip()
    )

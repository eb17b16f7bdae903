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

_WIDE = 200
_SHORT_ID = 12  # digits: every command takes the first ones of an id
_COLUMNS = (  # heading, to the right, in a narrow terminal too
    ("session", False, True),
    ("from", False, False),
    ("agent", False, True),
    ("started (UTC)", False, True),
    ("calls", True, True),
    ("sub-agents", True, False),
    ("tools", True, True),
    ("prompt tokens", True, False),
    ("answer tokens", True, False),
    ("model time", True, False),
    ("tool time", True, False),
    ("duration", True, True),
    ("whole", False, False),
)


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
    """One line per session; in a narrow terminal only what tells sessions apart."""
    narrow = console.is_terminal and console.width < _WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right, always in _COLUMNS:
        if always or not narrow:
            table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for trajectory in trajectories:
        cells = (
            trajectory.session_id[: _SHORT_ID if narrow else None],
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
        table.add_row(*(cell for cell, column in zip(cells, _COLUMNS, strict=True) if column[2] or not narrow))
    if not narrow:
        # Ids are there to be copied: a wide table may leave the window, a cut id helps nobody.
        console.width = max(console.width, _WIDE)
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
    for line in _recorded(trajectory):
        console.print(line, soft_wrap=True)
    if not trajectory.quality.complete:
        console.print("[yellow]not whole: an answer was cut, or the recorder lost something[/]", soft_wrap=True)
    console.print()
    width = max((len(_place(request)) for request in trajectory.requests), default=0)
    for request in trajectory.requests:
        console.print(_request_line(request, width), soft_wrap=True)
        for call in tools[request.request_index]:
            console.print(_tool_line(call, _depth(request)), soft_wrap=True)


def _recorded(trajectory: Trajectory) -> list[str]:
    """How the session was recorded, by whom, and what else told about it."""
    known = [
        f"recorded by {trajectory.mode}" if trajectory.mode else "",
        f"contributor {trajectory.contributor}" if trajectory.contributor else "",
        f"consent {trajectory.consent}" if trajectory.consent else "",
        f"joined with {', '.join(trajectory.joined)}" if trajectory.joined else "",
        "" if trajectory.peak_agents is None else f"{trajectory.peak_agents} agents at work at most",
    ]
    lines = ["; ".join(escape(one) for one in known if one)]
    if trajectory.quality.clock_err_us:
        lines.append(f"[yellow]the wall clock moved by {seconds(trajectory.quality.clock_err_us)}[/]")
    return [line for line in lines if line]


def _depth(request: Request) -> int:
    """How deep a chain is nested: 0 for the main one."""
    return request.agent_path.count("/")


def _place(request: Request) -> str:
    return "  " * _depth(request) + request.agent_path


def _link(request: Request) -> str:
    """What the request is to its parent, and what shows that."""
    parent = "" if request.parent_request_index is None else f" of #{request.parent_request_index}"
    if request.retry_of is not None:
        parent = f" of #{request.retry_of}"
    sure = "" if request.link_confidence is None else f", {request.link_confidence}"
    colour = {"start": "bold", "continue": "dim", "side": "dim", "subagent": "cyan", "retry": "yellow"}
    word = "sub-agent" if request.relation == "subagent" else request.relation
    return f"[{colour.get(request.relation, 'magenta')}]{word}{parent}[/] [dim]({request.link}{sure})[/]"


def _gap(request: Request) -> str:
    """The time before a request, and what is known of whose it was."""
    if request.gap_us is None:
        return ""
    shares = [
        f"{word} {seconds(share)}"
        for word, share in (
            ("human", request.think_us),
            ("permission", request.permission_us),
            ("client", request.client_us),
        )
        if share and share != request.gap_us
    ]
    told = f" ({', '.join(shares)})" if shares else ""
    return f"after {seconds(request.gap_us)} {request.gap_kind}{told}"


def _request_line(request: Request, width: int) -> str:
    sent = request.t_send_us
    first = None if sent is None or request.t_first_token_us is None else request.t_first_token_us - sent
    whole = None if sent is None or request.t_end_us is None else request.t_end_us - sent
    parts = [
        f"{seconds(request.t_send_us):>12}",
        f"[cyan]#{request.request_index:<3}[/]",
        f"{_place(request):<{width}}",
        f"prompt {count(request.prompt_tokens):>9}",
        f"cached {count(request.cache_read_tokens):>9}",
        f"answer {count(request.completion_tokens):>7}",
        f"first token {seconds(first):>9}",
        f"end {seconds(whole):>9}",
        f"{escape(request.stop or ''):<10}",
        _link(request),
        _gap(request),
    ]
    if request.context_event not in ("append", request.relation):
        parts.append(f"[magenta]{request.context_event}[/]")
    if request.agent_type is not None:
        parts.append(f"[cyan]{escape(request.agent_type)}[/]")
    if request.transport is not None:
        parts.append(request.transport)
    if request.kind == "auxiliary":
        parts.append("auxiliary")
    if request.clock_jump_us is not None:
        parts.append(f"[yellow]wall clock moved by {seconds(request.clock_jump_us)}[/]")
    if request.error is not None:
        parts.append(f"[red]{escape(request.error.splitlines()[0][:120] if request.error else '')}[/]")
    return "  ".join(part for part in parts if part)


def _tool_line(call: ToolCall, depth: int) -> str:
    end = [f"exit {call.exit_code}"] if call.exit_code is not None else []
    if call.is_error:
        end.append("[red]error[/]")
    if call.mixed:
        end.append("with human time")
    if call.result_request_index is None:
        end.append("no result seen")
    told = []
    if call.internal_us is not None:
        told.append(
            f"own count {seconds(call.internal_us)}" + (f", {call.internal_source}" if call.internal_source else "")
        )
    if call.permission_us:
        told.append(f"permission {seconds(call.permission_us)}")
    internal = f" ({'; '.join(told)})" if told else ""
    return (
        f"{'':>12}  {'  ' * depth}└ {escape(call.name)} [dim]{call.kind}[/]  {seconds(call.wall_us)}{internal}  "
        f"{count(call.result_bytes)} bytes  {', '.join(end)}".rstrip()
    )

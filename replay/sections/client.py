"""Was it the server that was measured? The client's own lateness, window by window."""

from __future__ import annotations

from functools import partial
from typing import Any

from replay import chart
from replay.document import Cell, Chart, Row, Section, Table, columns, row
from replay.sections.source import Source
from replay.sentence import UNKNOWN, count, share, value


def client(source: Source) -> Section:
    """Loop lag, dispatch lag, CPU and backlog of every trial; void windows; connections that were dialled again."""
    score, item = source.score, source.shown
    rows = tuple(_trial(source, each) for each in score["trials"])
    points = []
    limit = score.get("client_limit")
    if limit:
        points.append(f"The client's limit on this machine: {_limit(limit)}.")
    void = sum(len(each["measure"]["late"]) for each in score["trials"])
    lost = sum(each["measure"]["void_requests"] for each in score["trials"])
    windows = sum(len(each["health"]["windows"]) for each in score["trials"])
    if void:
        points.append(
            f"{count(void, 'window')} of {windows:,} void: the client was late there. {count(lost, 'request')} left "
            "out "
            "for it, neither averaged in nor charged to the server; above a fifth of a trial's requests the trial is "
            "void."
        )
    elif windows:
        points.append(f"No window of {windows:,} is void: the client was in time throughout.")
    blocks: list[Table | Chart] = []
    if item is not None:
        drawn = _lags(item)
        blocks += [drawn] if drawn is not None else []
    blocks.append(
        Table(
            caption="The client in every trial: 99th percentiles of the worst process, and how many windows were "
            "void. CPU and "
            "memory are summed over its processes. Backlog: received, but not yet read. Redials: kept-alive "
            "connections that the server had closed before "
            "it sent a byte.",
            columns=columns(
                *("trial", "agents", "workers", "loop lag P99", "dispatch lag P99", "CPU of a core", "peak memory"),
                *("largest backlog", "redials", "void windows", "void requests"),
            ),
            rows=rows,
        )
    )
    health = item["health"] if item is not None else None
    lead = (
        "Times run from the moment at which the plan wanted a request sent, so a late client makes a server look "
        "slow, never fast."
        + (
            f" A window is void when its 99th percentile of loop lag exceeds "
            f"{value(health['late_loop_lag_ms'], 'ms')} or "
            f"of dispatch lag {value(health['late_dispatch_ms'], 'ms')}, or either exceeds 2 % of the strictest "
            "first-token limit."
            if health is not None
            else ""
        ),
    )
    return Section(
        slug="client", title="Was the client in time?", lead=lead, points=tuple(points), blocks=tuple(blocks)
    )


def _trial(source: Source, item: dict[str, Any]) -> Row:
    health = item["health"]
    late = item["measure"]["late"]
    backlog = health["socket_backlog_max_bytes"]
    trial = source.trials.get(item["trial"])
    redials = sum(record.redialled for record in trial.records) if trial is not None else None
    return row(
        str(item["trial"]),
        str(item["agents"]),
        str(max(1, len(health["workers"]))),
        value(health["loop_lag_p99_ms"], "ms"),
        value(health["dispatch_lag_p99_ms"], "ms"),
        share(health["cpu_share"]),
        value(health["peak_memory_mb"], "MB"),
        UNKNOWN if backlog is None else value(backlog / 1000, "kB"),
        UNKNOWN if redials is None else f"{redials:,}",
        Cell(text=f"{len(late)} of {len(health['windows'])}", tone="invalid" if late else None),
        f"{item['measure']['void_requests']:,}",
        note="; ".join([*filter(None, [health["fault"]]), *(f"late: {each['why']}" for each in late[:3])]) or None,
    )


def _lags(item: dict[str, Any]) -> Chart | None:
    windows = item["health"]["windows"]
    series = [
        chart.Line(
            label=name,
            points=tuple(
                ((window["start_ns"] + window["end_ns"]) / 2e9, window[key])
                for window in windows
                if window[key] is not None
            ),
            tone=tone,
        )
        for name, key, tone in (
            ("loop lag P99", "loop_lag_p99_ms", chart.ACCENT),
            ("dispatch lag P99", "dispatch_lag_p99_ms", chart.MISSED),
        )
    ]
    if not any(len(line.points) > 1 for line in series):
        return None
    void = [(window["start_ns"] / 1e9, window["end_ns"] / 1e9) for window in item["measure"]["late"]]
    return Chart(
        draw=partial(chart.over, series, title="How late the client was", y="ms", void=void, marks=True),
        caption=f"Trial {item['trial']}: lag in each window of 5 s; hatched windows are void.",
        says=f"Loop and dispatch lag of {count(len(windows), 'window')}; {count(len(void), 'window')} void.",
    )


def _limit(limit: dict[str, Any]) -> str:
    number = ("at least " if limit.get("at_least") else "") + count(limit["agents"], "agent")
    if limit["basis"] == "stated":
        return f"{number}, as the user stated"
    return (
        f"{number} at {value(limit['tok_s'], 'tok/s')} and prompts of {value(limit['prompt_bytes'] / 1000, 'kB')}, "
        "tried before the first trial; the search does not go beyond"
    )

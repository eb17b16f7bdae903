"""What the server says about itself: queue, KV cache, prefix hits, preemptions, acceptance length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from replay import chart
from replay.document import Cell, Chart, Section, Table, columns, row
from replay.scrape import ServerSample, server_metrics
from replay.sections.source import Source
from replay.sentence import UNKNOWN, count, share, value
from replay.window import Window

SLICES = 60


def server(source: Source) -> Section:
    """The server's own metrics in every trial that has them, and their course in the one that is shown."""
    known = [item for item in source.score["trials"] if item.get("server")]
    if not known:
        return Section(
            slug="server",
            title="The server's own metrics",
            lead=("The server showed no metrics that are understood: no queue, KV use or preemptions are known.",),
        )
    rows = []
    for item in known:
        total = item["server"]["total"]
        rows.append(
            row(
                *(str(item["trial"]), str(item["agents"])),
                *(_gauge(total["running"]), _gauge(total["waiting"]), _gauge(total["kv_use"], part=True)),
                share(total["prefix_hit_share"]),
                share(item["measure"]["cached_share"]),
                *(value(total["preemptions"]), value(total["acceptance_length"]), value(total["queue_mean_s"], "s")),
                f"{total['readings']:,}",
                note=_trouble(total),
            )
        )
    blocks: list[Table | Chart] = []
    trial = source.shown_trial
    if trial is not None and trial.server:
        window = Window(start_ns=0, end_ns=trial.window.end_ns)
        blocks += _over_time(trial.server, window, trial.window)
    blocks.append(
        Table(
            caption="As the server counts, over each trial's window: mean and, after the slash, peak. Acceptance "
            "length: "
            "tokens per step of speculative decoding, 1 without it.",
            columns=columns(
                *("trial", "agents", "running", "waiting", "KV use", "prefix hits", "cached by its answers"),
                *("preemptions", "acceptance length", "mean queue", "readings"),
            ),
            rows=tuple(rows),
        )
    )
    several = max(len(item["server"]["servers"]) for item in known)
    lead = (f"Added up over {count(several, 'server')}.",) if several > 1 else ()
    return Section(slug="server", title="The server's own metrics", lead=lead, blocks=tuple(blocks))


def _gauge(gauge: dict[str, Any] | None, *, part: bool = False) -> str | Cell:
    if gauge is None:
        return UNKNOWN
    words = share if part else value
    return f"{words(gauge['mean'])} / {words(gauge['peak'])}"


def _trouble(total: dict[str, Any]) -> str | None:
    said = []
    if total["failed_readings"]:
        said.append(f"{count(total['failed_readings'], 'reading')} failed: {', '.join(total['failures'])}")
    if total["resets"]:
        said.append(f"{count(total['resets'], 'restart')} of the server inside the window")
    return "; ".join(said) or None


def _over_time(samples: Sequence[ServerSample], window: Window, span: Window) -> list[Chart]:
    width = max(1_000_000_000, (window.end_ns - window.start_ns) // SLICES)
    slices: dict[int, list[ServerSample]] = {}
    for sample in samples:
        if window.start_ns <= sample.t_ns < window.end_ns:
            slices.setdefault((sample.t_ns - window.start_ns) // width, []).append(sample)
    points: dict[str, list[tuple[float, float]]] = {"running": [], "waiting": [], "kv_use": []}
    for place, own in sorted(slices.items()):
        start_ns = window.start_ns + place * width
        found = server_metrics(own, Window(start_ns=start_ns, end_ns=start_ns + width))
        for name, gauges in points.items():
            gauge = getattr(found.total, name) if found is not None else None
            if gauge is not None:
                gauges.append(((start_ns + width / 2) / 1e9, gauge.mean))
    charts = []
    measured = (span.start_ns / 1e9, span.end_ns / 1e9)
    if points["running"] or points["waiting"]:
        charts.append(
            Chart(
                draw=partial(
                    chart.over,
                    [
                        chart.Line(label="running", points=tuple(points["running"])),
                        chart.Line(label="waiting in the queue", points=tuple(points["waiting"]), tone=chart.MISSED),
                    ],
                    title="Requests in the server",
                    y="requests",
                    span=measured,
                ),
                caption="Requests that the server computes and those in its queue; the measured window is shaded.",
                says="Running and waiting requests over time.",
            )
        )
    if points["kv_use"]:
        charts.append(
            Chart(
                draw=partial(
                    chart.over,
                    [chart.Line(label="KV use", points=tuple(points["kv_use"]), tone=chart.SECOND)],
                    title="KV cache in use",
                    y="",
                    span=measured,
                    share=True,
                    height_in=1.9,
                ),
                caption="Share of the KV cache that is in use, of the fullest part.",
                says=f"KV use between {share(min(at for _, at in points['kv_use']))} and "
                f"{share(max(at for _, at in points['kv_use']))}.",
            )
        )
    return charts

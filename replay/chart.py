"""The plots of a report, as inline SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replay.measure import Sample
from replay.power.source import PowerSample, SourceInfo
from replay.record import RequestRecord
from replay.window import Window

INK, ACCENT, LIMIT, QUIET = "#1f2933", "#2667a8", "#b3362b", "#9aa5b1"
_VERDICTS = {"met": "#2f855a", "missed": "#c27803", "invalid": "#9b2c2c"}
_STYLE: Any = {  # matplotlib types every key by itself
    "svg.fonttype": "none",  # text stays text: smaller, searchable, in the page's own font
    "svg.hashsalt": "agentdyno",  # the same run gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}


def distributions(levels: Sequence[tuple[str, str, Sequence[Sample]]], limits: dict[str, float] | None) -> str:
    """Cumulative distributions of first token and speed: one line per trial of (label, verdict, samples)."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.3), layout="constrained")
        ttft, speed = figure.subplots(1, 2)
        for order, (label, verdict, samples) in enumerate(levels):
            fade = 0.35 + 0.65 * (order + 1) / len(levels)
            ttfts = [sample.ttft_s for sample in samples if sample.ttft_s is not None]
            speeds = [sample.speed_tok_s for sample in samples if sample.speed_tok_s is not None]
            for axes, values in ((ttft, ttfts), (speed, speeds)):
                _cumulative(axes, values, label, _VERDICTS.get(verdict, INK), fade)
        ttft.set(title="Time to first token", xlabel="seconds", ylabel="share of requests")
        speed.set(title="Output speed", xlabel="tokens per second")
        for axes, share, name in ((ttft, 0.95, "p95_ttft_s"), (speed, 0.25, "p25_output_tok_s")):
            _logarithmic(axes)
            axes.set_ylim(0, 1.02)
            if limits is not None:
                axes.axvline(limits[name], color=LIMIT, linewidth=1)
                axes.axhline(share, color=LIMIT, linewidth=0.8, linestyle=":")
                axes.annotate(
                    f"limit {limits[name]:g}",
                    (limits[name], 0.02),
                    color=LIMIT,
                    rotation=90,
                    fontsize=8,
                    ha="right",
                )
        if len(levels) <= 12:
            speed.legend(frameon=False, fontsize=8, loc="lower right" if limits is None else "best")
        return _svg(figure)


def timeline(records: Sequence[RequestRecord], window: Window) -> str:
    """What each agent did, and how many requests were in flight, over a whole trial."""
    with mpl.rc_context(_STYLE):
        agents = sorted({record.agent for record in records})
        shown = agents[:40]
        figure = Figure(figsize=(9.2, 1.9 + 0.09 * len(shown)), layout="constrained")
        top, rows = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 0.6 + 0.09 * len(shown)])
        end_s = window.end_ns / 1e9
        steps: list[tuple[float, int]] = []
        for record in records:
            stop_s = end_s if record.end_at_ns is None else record.end_at_ns / 1e9
            steps += [(record.sent_at_ns / 1e9, 1), (stop_s, -1)]
            if record.agent not in shown:
                continue
            row = shown.index(record.agent)
            first_s = stop_s if record.first_content_at_ns is None else record.first_content_at_ns / 1e9
            good = record.outcome in ("ok", "stopped")
            rows.barh(row, first_s - record.sent_at_ns / 1e9, left=record.sent_at_ns / 1e9, height=0.8, color=QUIET)
            rows.barh(row, stop_s - first_s, left=first_s, height=0.8, color=ACCENT if good else LIMIT)
        at, height, running = [0.0], [0], 0
        for time_s, change in sorted(steps):
            running += change
            at.append(time_s)
            height.append(running)
        top.step(at, height, where="post", color=INK, linewidth=1)
        top.set(ylabel="in flight", title="Requests in flight")
        rows.set(
            title="Turns by agent: waiting for the first token (grey), receiving (blue)"
            + ("" if len(shown) == len(agents) else f"; the first {len(shown)} of {len(agents)} agents"),
            xlabel="seconds",
            ylabel="agent",
            ylim=(len(shown) - 0.4, -0.6),
        )
        for axes in (top, rows):
            axes.axvspan(window.start_ns / 1e9, end_s, color=ACCENT, alpha=0.07, linewidth=0)
        return _svg(figure)


def power(samples: Sequence[PowerSample], sources: Sequence[SourceInfo], window: Window) -> str | None:
    """Watts over time, per source: from counters where there are any, else from gauges; None without a sample."""
    lines = [(source, _watts(samples, source)) for source in sources]
    lines = [(source, points) for source, points in lines if points]
    if not lines:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 2.2), layout="constrained")
        axes = figure.subplots()
        for source, points in lines:
            label = f"{source.kind} ({'measured' if source.measured else 'declared'})"
            axes.plot([at for at, _ in points], [watts for _, watts in points], linewidth=1, label=label)
        axes.axvspan(window.start_ns / 1e9, window.end_ns / 1e9, color=ACCENT, alpha=0.07, linewidth=0)
        axes.set(title="Power, all devices of a source", xlabel="seconds", ylabel="watts")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
        return _svg(figure)


def _watts(samples: Sequence[PowerSample], source: SourceInfo) -> list[tuple[float, float]]:
    """Sum over devices by tick; a tick at which a device is missing is left out."""
    devices = {device.uid for device in source.devices}
    own = [sample for sample in samples if sample.device in devices and sample.value is not None]
    counters = [sample for sample in own if sample.kind == "energy_j"]
    points: dict[int, dict[str, float]] = {}
    if counters:
        previous: dict[str, PowerSample] = {}
        for sample in sorted(counters, key=lambda item: item.t_ns):
            before = previous.get(sample.device)
            previous[sample.device] = sample
            if before is None or sample.t_ns <= before.t_ns:
                continue
            assert sample.value is not None
            assert before.value is not None
            rise = sample.value - before.value
            if rise >= 0:
                watts = rise / ((sample.t_ns - before.t_ns) / 1e9)
                points.setdefault(sample.t_ns // 200_000_000, {})[sample.device] = watts
    else:
        for sample in own:
            assert sample.value is not None
            points.setdefault(sample.t_ns // 200_000_000, {})[sample.device] = sample.value
    return [
        (tick * 0.2, math.fsum(values.values()))
        for tick, values in sorted(points.items())
        if len(values) == len(devices)
    ]


def _cumulative(axes: Axes, values: Sequence[float], label: str, color: str, fade: float) -> None:
    finite = sorted(value for value in values if math.isfinite(value) and value > 0)
    below = sum(value <= 0 for value in values)
    if finite:
        shares = [(below + index + 1) / len(values) for index in range(len(finite))]
        axes.step(finite, shares, where="post", label=label, color=color, alpha=fade, linewidth=1.2)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with plain labels: 0.2, 5, 20; decades alone where there are many."""
    axes.set_xscale("log")

    def plain(number: float, _: float) -> str:
        low, high = axes.get_xlim()
        leading = round(number / 10 ** math.floor(math.log10(number)), 6)
        return f"{number:g}" if leading == 1 or (leading in (2, 5) and high / low < 1000) else ""

    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(plain)


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]

"""The charts of a report, as inline SVG text whose colours follow the page's theme; the same data, the same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH_IN = 9.2
TURNS_MOST = 4000  # drawn of one kind
POINTS_MOST = 400  # of one line: more cannot be seen, and would be most of the page's bytes

# Drawn in these, then replaced by the page's own variables, so that a chart is readable on light and on dark. The hues
# are Okabe and Ito's, which colour-blind readers tell apart; shapes and words say the same.
INK, QUIET, GRID = "#010101", "#020202", "#030303"
MET, MISSED, VOID, LIMIT, ACCENT, SECOND = "#010200", "#010300", "#010400", "#010500", "#010600", "#010700"
_VARIABLES = {
    INK: "ink",
    QUIET: "quiet",
    GRID: "line",
    MET: "met",
    MISSED: "missed",
    VOID: "void",
    LIMIT: "limit",
    ACCENT: "accent",
    SECOND: "second",
}
TONES = {"met": MET, "missed": MISSED, "invalid": VOID}
STYLE: Any = {  # matplotlib types every key by itself
    "svg.fonttype": "none",  # text stays text: smaller, searchable, in the page's own font
    "svg.hashsalt": "agentdyno",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One labelled series of (x, y)."""

    label: str
    points: tuple[tuple[float, float], ...]
    tone: str = ACCENT
    dashed: bool = False
    bold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request of an agent, in seconds since the trial began."""

    agent: int
    sent_s: float
    first_s: float
    end_s: float
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One of several small charts side by side."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    limits: tuple[float, ...]


def distributions(lines: Sequence[Sequence[Line]], titles: Sequence[tuple[str, str]], limits: Sequence[Any]) -> str:
    """Cumulative distributions side by side. Per panel: its lines of (value, share), (title, unit) and its limits.

    A limit is (value, share): the crossing that decides.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.4), layout="constrained")
        panels = figure.subplots(1, len(lines), squeeze=False, sharey=True)[0]
        for number, axes in enumerate(panels):
            for line in lines[number]:
                if not line.points:
                    continue
                at, shares = zip(*line.points, strict=True)
                axes.step(
                    *(at, shares),
                    where="post",
                    label=line.label,
                    color=line.tone,
                    linewidth=2 if line.bold else 1,
                    alpha=1 if line.bold else 0.55,
                    linestyle="--" if line.dashed else "-",
                )
            _logarithmic(axes)
            axes.set_ylim(0, 1.02)
            for limit, part in limits[number]:
                axes.axvline(limit, color=LIMIT, linewidth=1)
                axes.axhline(part, color=LIMIT, linewidth=0.8, linestyle=":")
                axes.annotate(
                    f"limit {limit:g}",
                    (limit, 1),
                    xycoords=("data", "axes fraction"),
                    color=LIMIT,
                    fontsize=8,
                    ha="center",
                    va="bottom",
                )
            axes.set_title(titles[number][0], pad=16)
            axes.set_xlabel(titles[number][1])
            axes.grid()
        panels[0].set(ylabel="share of requests at most")
        if any(line.points for line in lines[-1]) and sum(len(line.label) > 0 for line in lines[-1]) <= 12:
            panels[-1].legend(frameon=False, fontsize=8, labelcolor=INK)
        return svg(figure)


def over(
    lines: Sequence[Line],
    *,
    title: str,
    y: str,
    span: tuple[float, float] | None = None,
    void: Sequence[tuple[float, float]] = (),
    share: bool = False,
    marks: bool = False,
    height_in: float = 2.3,
) -> str:
    """Lines over time. `span` is the measured window, `void` what the client voided."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            if line.points:
                at, values = zip(*_thinned(line.points), strict=True)
                axes.plot(
                    *(at, values),
                    label=line.label,
                    color=line.tone,
                    linewidth=1.4,
                    linestyle="--" if line.dashed else "-",
                    marker="o" if marks else None,
                    markersize=4,
                )
        if span is not None:
            axes.axvspan(*span, color=ACCENT, alpha=0.08, linewidth=0)
        for stretch in void:
            axes.axvspan(*stretch, color=VOID, alpha=0.35, linewidth=0, hatch="///")
        axes.set(title=title, xlabel="seconds since the trial began", ylabel=y)
        if share:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(lambda number, _: f"{number:.0%}")
        else:  # with room for the names of several lines above the highest
            axes.set_ylim(0, axes.get_ylim()[1] * (1.2 if len(lines) > 1 else 1.0))
        axes.grid(axis="y")
        _legend(axes, lines, 4)
        return svg(figure)


def beside(panels: Sequence[Panel], unit: str, labels: Sequence[str] = ()) -> str:
    """Small charts side by side; with labels, x is a place among these bands, since bands are no scale."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.5), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for line in panel.lines:
                if line.points:
                    at, values = zip(*line.points, strict=True)
                    dashes = "--" if line.dashed else "-"
                    marker = "o" if len(at) <= 100 else None
                    axes.plot(
                        at, values, label=line.label, color=line.tone, linestyle=dashes, marker=marker, markersize=4
                    )
            top = axes.get_ylim()[1]
            near = [limit for limit in panel.limits if limit < 3 * top]  # a far limit would press the points flat
            for limit in near:
                axes.axhline(limit, color=LIMIT, linewidth=1)
                _limit_label(axes, limit)
            axes.set_ylim(0, 1.1 * max([top, *near]))
            axes.set(title=f"{panel.title}, {panel.unit}", xlabel=unit)
            if labels:
                axes.set_xlim(-0.4, len(labels) - 0.6)
                axes.set_xticks(range(len(labels)), labels, fontsize=8)
            axes.grid(axis="y")
            _legend(axes, panel.lines, 2)
        return svg(figure)


def turns(requests: Sequence[Turn], agents: Sequence[int], span: tuple[float, float]) -> str:
    """Requests in flight over all agents, and what each of the given agents did, over a whole trial."""
    with mpl.rc_context(STYLE):
        rows_in = 0.5 + 0.075 * len(agents)
        figure = Figure(figsize=(WIDTH_IN, 1.7 + rows_in), layout="constrained")
        top, rows = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, rows_in])
        at, height, running = [0.0], [0], 0
        steps = [(request.sent_s, 1) for request in requests] + [(request.end_s, -1) for request in requests]
        for time_s, change in sorted(steps):
            running += change
            at.append(time_s)
            height.append(running)
        points = _thinned(list(zip(at, height, strict=True)))
        top.step([point[0] for point in points], [point[1] for point in points], where="post", color=INK, linewidth=1)
        top.set(ylabel="in flight", ylim=(0, None))
        row_of = {agent: row for row, agent in enumerate(agents)}
        parts: dict[str, list[tuple[int, float, float]]] = {QUIET: [], ACCENT: [], LIMIT: []}
        for request in requests:
            row = row_of.get(request.agent)
            if row is not None:
                parts[QUIET].append((row, request.sent_s, request.first_s))
                parts[LIMIT if request.failed else ACCENT].append((row, request.first_s, request.end_s))
        names = {QUIET: "waiting for the first token", ACCENT: "receiving", LIMIT: "failed"}
        for color, spans in parts.items():
            if not spans:
                continue
            # One path per colour: a rectangle per request would be most of the page's bytes.
            x = [value for _, start, end in spans[:TURNS_MOST] for value in (start, end, math.nan)]
            y = [value for row, _, _ in spans[:TURNS_MOST] for value in (row, row, math.nan)]
            rows.plot(
                x,
                y,
                color=color,
                linewidth=4,
                solid_capstyle="butt",
                alpha=0.55 if color == QUIET else 1,
                label=names[color],
            )
        rows.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.99))
        rows.set(xlabel="seconds since the trial began", ylabel="agent", ylim=(len(agents) - 0.4, -0.6))
        for axes in (top, rows):
            axes.axvspan(*span, color=ACCENT, alpha=0.08, linewidth=0)
            axes.margins(x=0.01)
        return svg(figure)


def cumulative(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(value, share of values at most that), thinned; shares count infinite and non-positive values too."""
    finite = sorted(number for number in values if math.isfinite(number) and number > 0)
    below = sum(number <= 0 for number in values)
    return tuple(_thinned([(number, (below + index + 1) / len(values)) for index, number in enumerate(finite)]))


def svg(figure: Figure) -> str:
    """The figure as an <svg> element that can stand in a page beside others."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)  # would style the whole page
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found.group(0) if found.group(1) in used else "", text)
    text = re.sub(r"font(-family)?: ([0-9.]+px )?[^;\"]*sans-serif", _font, text)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    text = re.sub(r"\s*\n\s*", "\n", text)
    return re.sub(
        r'width="[0-9.]+pt" height="[0-9.]+pt"', 'class="chart" focusable="false" aria-hidden="true"', text, count=1
    )


def with_own_ids(text: str, prefix: str) -> str:
    """A chart whose ids no other chart on the page has: those of alike markers are alike otherwise."""
    text = re.sub(r' id="([\w.-]+)"', rf' id="{prefix}-\1"', text)
    text = re.sub(r'href="#([\w.-]+)"', rf'href="#{prefix}-\1"', text)
    return re.sub(r"url\(#([\w.-]+)\)", rf"url(#{prefix}-\1)", text)


def _font(found: re.Match[str]) -> str:
    return f"font: {found.group(2)}system-ui, sans-serif" if found.group(2) else "font-family: system-ui, sans-serif"


def _legend(axes: Axes, lines: Sequence[Line], columns: int) -> None:
    if sum(bool(line.points) for line in lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=columns, loc="best")


def _limit_label(axes: Axes, limit: float) -> None:
    axes.annotate(
        f"limit {limit:g}",
        (1, limit),
        xycoords=("axes fraction", "data"),
        color=LIMIT,
        fontsize=8,
        ha="right",
        va="bottom",
    )


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with plain labels: 0.2, 5, 20; decades alone where there are many."""
    axes.set_xscale("log")

    def plain(number: float, _: float) -> str:
        low, high = axes.get_xlim()
        leading = round(number / 10 ** math.floor(math.log10(number)), 6)
        return f"{number:g}" if leading == 1 or (leading in (2, 5) and high / low < 1000) else ""

    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(plain)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS_MOST of the points, the first and the last among them."""
    if len(points) <= POINTS_MOST:
        return list(points)
    step = (len(points) - 1) / (POINTS_MOST - 1)
    return [points[round(index * step)] for index in range(POINTS_MOST)]

"""The chart of a search: every trial's margin over its number of agents, and what the fit makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replay.chart import ACCENT, INK, LIMIT, MET, STYLE, TONES, VOID, WIDTH_IN, svg


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One trial in the search's chart. `margin` is ln(observed / limit) of its worst term; more than 0 fails."""

    trial: int
    agents: int
    purpose: str
    verdict: str
    margin: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the search made of the points; None where it gave none."""

    root: float | None
    low: float | None
    high: float | None
    certified: int | None
    slope: float | None  # of the margin over ln(agents)
    intercept: float | None


def draw_search(points: Sequence[Point], answer: Answer) -> str:
    """Every trial's margin over its number of agents, the fitted line, its root with its interval, the certified level.

    Trials without a margin stand in a strip below: nothing that was run is left out.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.9), layout="constrained")
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
        finite = [point.margin for point in points if point.margin is not None and math.isfinite(point.margin)]
        low, high = _margin_range(finite)
        for point in points:
            _trial_mark(axes, strip, point, low, high)
        axes.axhline(0, color=LIMIT, linewidth=1.2)
        agents = sorted({point.agents for point in points} or {1})
        left = min([*agents, *([answer.low] if answer.low else [])]) / 1.25
        right = max([*agents, *([answer.high] if answer.high else [])]) * 1.25
        axes.annotate(
            "limit: above it fails", (left, 0), xytext=(3, 1), textcoords="offset points", color=LIMIT, fontsize=8
        )
        if answer.slope is not None and answer.intercept is not None:
            ends = [left, right]
            line = [answer.intercept + answer.slope * math.log(at) for at in ends]
            axes.plot(ends, line, color=INK, linewidth=1, dashes=(5, 3))
        if answer.low is not None and answer.high is not None:
            axes.axvspan(answer.low, answer.high, color=ACCENT, alpha=0.15, linewidth=0)
        if answer.root is not None:
            axes.axvline(answer.root, color=ACCENT, linewidth=1.4)
            _upright(axes, answer.root, f"estimate {answer.root:.3g}", ACCENT, high, right=True)
        if answer.certified is not None and answer.certified > 0:
            axes.axvline(answer.certified, color=MET, linewidth=1.4, dashes=(2, 2))
            _upright(axes, answer.certified, f"certified {answer.certified}", MET, high, right=False)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
        plain_ticks(axes, agents)
        _margin_ticks(axes, low, high)
        axes.set(
            ylabel="worst term ÷ limit", title="Every trial: filled met, open missed; squares confirm, stars hold out"
        )
        axes.grid(axis="y")
        strip.set(xlabel="agents (logarithmic)", ylim=(-1, 1), yticks=[0], yticklabels=["no margin"])
        strip.tick_params(length=0)
        for side in ("left", "bottom"):
            strip.spines[side].set_visible(side == "bottom")
        return svg(figure)


def _trial_mark(axes: Axes, strip: Axes, point: Point, low: float, high: float) -> None:
    tone = TONES.get(point.verdict, VOID)
    shape = {"confirm": "s", "holdout": "*"}.get(point.purpose, "o")
    size = 90 if shape == "*" else 34
    if point.margin is None or math.isnan(point.margin) or point.verdict == "invalid":
        strip.scatter([point.agents], [0], marker="x", color=tone, s=30, clip_on=False)
        return
    margin, drawn = point.margin, point.margin
    if margin > high or margin < low:  # a request that was never answered leaves an infinite margin
        drawn, shape = (high, "^") if margin > 0 else (low, "v")
    axes.scatter(
        *([point.agents], [drawn]),
        marker=shape,
        s=size,
        facecolors=tone if point.verdict == "met" else "none",
        edgecolors=tone,
        linewidths=1.3,
        zorder=3,
        clip_on=False,
    )


def _margin_range(margins: Sequence[float]) -> tuple[float, float]:
    """From a little below the best to a little above the worst; a far outlier is drawn at the edge."""
    inside = [margin for margin in margins if -3 <= margin <= 3]
    low, high = min([*inside, -0.15]), max([*inside, 0.15])
    room = 0.12 * (high - low)
    return low - room, high + room


def _margin_ticks(axes: Axes, low: float, high: float) -> None:
    """Margins are logarithms; people read factors."""
    steps = (0.05, 0.1, 0.2, 0.33, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20)
    inside = [step for step in steps if low <= math.log(step) <= high]
    while len(inside) > 7:
        inside = [step for index, step in enumerate(inside) if index % 2 == inside.index(1.0) % 2]
    axes.set_yticks([math.log(step) for step in inside], [f"{step:g}×" for step in inside])


def plain_ticks(axes: Axes, agents: Sequence[int]) -> None:
    """The levels that were tried, as far as they leave room for one another."""
    shown: list[int] = []
    room = math.log(agents[-1] / agents[0]) / 16 if len(agents) > 1 else 0
    for level in agents:
        if not shown or math.log(level / shown[-1]) >= room:
            shown.append(level)
    axes.set_xticks(shown, [str(level) for level in shown])
    axes.set_xticks([], minor=True)


def _upright(axes: Axes, at: float, text: str, color: str, high: float, *, right: bool) -> None:
    axes.annotate(
        *(text, (at, high)),
        xytext=(4 if right else -4, -2),
        textcoords="offset points",
        color=color,
        fontsize=8,
        ha="left" if right else "right",
        va="top",
    )

"""The chart of agents per megawatt over the number of agents, with every trial that was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from replay.chart import ACCENT, INK, LIMIT, MET, MISSED, SECOND, STYLE, WIDTH_IN, svg
from replay.search_chart import plain_ticks


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One trial over one denominator; `u_relative` is the expanded (k = 2) uncertainty of its power."""

    agents: int
    purpose: str
    verdict: str  # of the first service level
    of: str  # the denominator in words
    agents_per_megawatt: float
    u_relative: float


def draw_curve(points: Sequence[Point], names: Sequence[str], *, estimate: float | None, certified: int | None) -> str:
    """S(N): a colour for each denominator, filled where the level was met, with bars of k = 2."""
    tones = (ACCENT, SECOND, MISSED, LIMIT, INK)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.4), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(names):
            tone = tones[number % len(tones)]
            own = [point for point in points if point.of == name]
            # The mean over the trials of a level: trials of one level are repeated, not in an order.
            levels = sorted({point.agents for point in own})
            means = [_mean([point.agents_per_megawatt for point in own if point.agents == level]) for level in levels]
            axes.plot(levels, means, color=tone, linewidth=0.9, alpha=0.6, label=name)
            for point in own:
                shape = {"confirm": "s", "holdout": "*"}.get(point.purpose, "o")
                bar = 2 * [[point.agents_per_megawatt * point.u_relative]]
                axes.errorbar([point.agents], [point.agents_per_megawatt], yerr=bar, color=tone, linewidth=0.7)
                axes.scatter(
                    *([point.agents], [point.agents_per_megawatt]),
                    marker=shape,
                    s=80 if shape == "*" else 28,
                    facecolors=tone if point.verdict == "met" else "none",
                    edgecolors=tone,
                    linewidths=1.2,
                    zorder=3,
                )
        if estimate:
            axes.axvline(estimate, color=ACCENT, linewidth=1.1)
        if certified:
            axes.axvline(certified, color=MET, linewidth=1.1, dashes=(2, 2))
        axes.set_xscale("log")
        plain_ticks(axes, sorted({point.agents for point in points}))
        axes.set_ylim(bottom=0)
        axes.set(
            title="Agents per megawatt: filled met, open missed; squares confirm, stars hold out",
            xlabel="agents (logarithmic)",
            ylabel="agents per MW",
        )
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
        return svg(figure)


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)

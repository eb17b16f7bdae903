"""The card's pictures: how contexts grow, how lengths and times are spread. Drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from curate.distribution import percentile
from curate.stats import Frames
from curate.words import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160  # twice the card's width, for dense screens
INK = "#22303c"
MUTED = "#6b7a86"
GRID = "#e3e8ec"
BLUE = "#2f6fb2"
BAND = "#9cc3e6"
PALETTE = ("#2f6fb2", "#e07b39", "#3a9d6e", "#b0457b", "#8a6fc1", "#c9a227", "#5f7d8c", "#d1495b")
MARKS = (50, 90, 99)
SHORTEST_S = 1e-3
TIME_TICKS_S = (1e-3, 1e-2, 0.1, 1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400)
LABEL_WIDTH = 0.07  # of a panel: a label of two digits and the space around it
MAX_LINES = 60  # single sessions drawn behind the median


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture of the card."""

    path: str  # inside the dataset
    title: str
    caption: str


def draw_plots(frames: Frames, folder: Path) -> tuple[Plot, ...]:
    """Write the PNG files that the data allow; a quantity nobody measured gets no panel."""
    turns = frames.requests.filter(pl.col("kind") == "turn")
    frames = Frames(sessions=frames.sessions, requests=turns, tool_calls=frames.tool_calls)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = []
    for name, title, caption, draw in (
        (
            "context-growth",
            "Growth of contexts",
            "Prompt length of the main chain, request by request: one thin line per session, the median and the "
            "middle 80 % over the sessions that got that far.",
            _context_growth,
        ),
        (
            "lengths",
            "Lengths of requests",
            "Tokens per request on a logarithmic axis, marked at the median, the 90th and the 99th percentile. Input: "
            "the whole prompt. New input: what the parent's prompt did not hold. Output: answer and reasoning.",
            _lengths,
        ),
        ("times", "Times", "The share of events that took at most that long, on logarithmic axes.", _times),
    ):
        figure = draw(frames)
        if figure is not None:
            path = plots / f"{name}.png"
            # No software version and no date inside: the same data give the same bytes.
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
            drawn.append(Plot(path=path.relative_to(folder).as_posix(), title=title, caption=caption))
    return tuple(drawn)


def _figure(columns: int, rows: int = 1, *, width: float = 9.0, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, position + 1) for position in range(columns * rows)]
    for ax in axes:
        ax.grid(visible=True, color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(MUTED)
        ax.tick_params(colors=INK, labelsize=9, which="both", length=3)
    return figure, axes


def _title(ax: Axes, title: str, note: str) -> None:
    ax.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=20)
    ax.text(0, 1.03, note, transform=ax.transAxes, fontsize=9, color=MUTED, va="bottom")


def _label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def short_number(value: float, _position: Any = None) -> str:
    """12000 as 12k, three digits."""
    value = float(f"{value:.3g}")  # first, or 999.9 would become 1e+03
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def short_time(seconds: float, _position: Any = None) -> str:
    """A duration in the largest unit that keeps it at one or above, three digits."""
    seconds = float(f"{seconds:.3g}")
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _context_growth(frames: Frames) -> Figure | None:
    contexts = frames.requests.filter(pl.col("agent_path") == "main").select(
        "session_id", tokens=pl.coalesce("prompt_tokens", "prompt_tokens_est")
    )
    lines = [
        part["tokens"].to_numpy().astype(np.float64)
        for part in contexts.drop_nulls().partition_by("session_id", maintain_order=True)
    ]
    if not lines:
        return None
    figure, (by_turn, growth) = _figure(2, height=3.9)
    from matplotlib.ticker import FuncFormatter

    for line in lines[:MAX_LINES]:
        by_turn.plot(np.arange(1, len(line) + 1), line, color=BAND, linewidth=0.7, alpha=0.7)
    enough = max(3, len(lines) // 10)  # a percentile over one or two sessions would be their own line
    longest = sorted((len(line) for line in lines), reverse=True)
    reach = longest[min(enough, len(longest)) - 1]
    columns = [np.sort([line[turn] for line in lines if len(line) > turn]) for turn in range(reach)]
    turns = np.arange(1, reach + 1)
    if len(lines) >= 3:
        by_turn.fill_between(
            turns,
            [percentile(column, 10) for column in columns],
            [percentile(column, 90) for column in columns],
            color=BLUE,
            alpha=0.18,
            linewidth=0,
            label="middle 80 %",
        )
    by_turn.plot(turns, [percentile(column, 50) for column in columns], color=BLUE, linewidth=2, label="median")
    by_turn.set_ylim(bottom=0)
    by_turn.set_xlim(left=0, right=max(longest[0], 2))
    by_turn.xaxis.set_major_formatter(FuncFormatter(short_number))
    by_turn.yaxis.set_major_formatter(FuncFormatter(short_number))
    by_turn.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK)
    _title(by_turn, "Context by turn", f"{count(len(lines), 'session')}, main chain")
    _label(by_turn, "request of the main chain", "prompt tokens")

    for position, (name, values) in enumerate(
        (
            ("first", [line[0] for line in lines]),
            ("last", [line[-1] for line in lines]),
            ("longest", [line.max() for line in lines]),
        )
    ):
        _steps(
            growth,
            np.sort(values),
            PALETTE[position],
            f"{name}, median {short_number(percentile(np.sort(values), 50))}",
            dashed=name == "longest",  # often the last one too, whose line would be hidden
        )
    growth.set_xscale("log")
    growth.xaxis.set_major_formatter(FuncFormatter(short_number))
    growth.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK)
    _title(growth, "Context of a session", "first, last and longest prompt of the main chain")
    _label(growth, "prompt tokens", "share of sessions")
    return figure


def _steps(ax: Axes, ordered: np.ndarray, color: str, label: str, *, dashed: bool = False) -> None:
    """The empirical distribution function as steps."""
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    ax.step(
        np.concatenate([ordered[:1], ordered]),
        np.concatenate([[0.0], shares]),
        where="post",
        color=color,
        linewidth=1.8,
        linestyle=(0, (3, 2)) if dashed else "-",
        label=label,
    )
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])


def _known(frame: pl.DataFrame, value: pl.Expr) -> np.ndarray:
    return np.sort(frame.select(value.cast(pl.Float64).drop_nulls()).to_series().to_numpy())


def _lengths(frames: Frames) -> Figure | None:
    prompt = pl.coalesce("prompt_tokens", "prompt_tokens_est")
    new = pl.coalesce("prompt_tokens_est", "prompt_tokens") - pl.col("lcp_tokens")
    panels = [
        (title, values, color)
        for title, values, color in (
            ("Input", _known(frames.requests, prompt), PALETTE[0]),
            ("New input", _known(frames.requests, new), PALETTE[1]),
            ("Output", _known(frames.requests, pl.col("completion_tokens")), PALETTE[2]),
        )
        if len(values)
    ]
    if not panels:
        return None
    figure, axes = _figure(len(panels), width=3.4 * len(panels) if len(panels) < 3 else 10.2, height=3.5)
    for ax, (title, values, color) in zip(axes, panels, strict=True):
        _log_histogram(ax, values, color)
        zeros = int((values <= 0).sum())
        marks = " · ".join(f"p{p} {short_number(percentile(values, p))}" for p in MARKS)
        _title(ax, title, marks)
        _label(ax, "tokens" + (f" ({zeros:,} of {len(values):,} not drawn: 0)" if zeros else ""), "requests")
    return figure


def _log_histogram(ax: Axes, values: np.ndarray, color: str) -> None:
    from matplotlib.ticker import FuncFormatter

    positive = values[values > 0]
    if not len(positive):
        return
    # Eight bins per decade; fewer would hide modes, more would show whole numbers at the low end.
    first = math.floor(math.log10(positive[0]) * 8)
    last = math.floor(math.log10(positive[-1]) * 8) + 1
    ax.hist(
        positive,
        bins=[10 ** (step / 8) for step in range(first, last + 1)],
        color=color,
        alpha=0.75,
        edgecolor="white",
        linewidth=0.5,
    )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(short_number))
    top = ax.get_ylim()[1]
    ax.set_ylim(0, top * 1.12)
    ticks = [(at, p) for p in MARKS if (at := percentile(values, p)) > 0]
    for at, _ in ticks:
        ax.plot([at, at], [0, top * 1.04], color=INK, linewidth=1, linestyle=(0, (4, 2)))
    low, high = ax.get_xlim()
    for at, label in mark_labels(ticks, LABEL_WIDTH * math.log10(high / low)):
        ax.text(at, top * 1.05, label, ha="center", va="bottom", fontsize=7.5, color=INK)


def mark_labels(marks: Sequence[tuple[float, int]], width: float) -> list[tuple[float, str]]:
    """Where to write which percentiles: those closer than `width` decades share a label, between them."""
    groups: list[list[tuple[float, int]]] = []
    for mark in marks:
        if groups and math.log10(mark[0] / groups[-1][-1][0]) < width:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [(math.sqrt(group[0][0] * group[-1][0]), ", ".join(str(p) for _, p in group)) for group in groups]


def _times(frames: Frames) -> Figure | None:
    requests, calls = frames.requests, frames.tool_calls
    seconds = 1e-6
    model = {
        "time to first token": _known(requests, (pl.col("t_first_token_us") - pl.col("t_send_us")) * seconds),
        "whole request": _known(requests, (pl.col("t_end_us") - pl.col("t_send_us")) * seconds),
    }
    gaps = {
        f"{kind} gap": _known(requests.filter(pl.col("gap_kind") == kind), pl.col("gap_us") * seconds)
        for kind in ("tool", "human", "client", "spawn", "unsplit")
    }
    tools = {
        kind: _known(calls.filter((pl.col("kind") == kind) & ~pl.col("mixed")), pl.col("wall_us") * seconds)
        for kind in ("exec", "edit", "read", "search", "web", "mcp", "subagent", "other")
    }
    panels = [
        (title, note, {name: values for name, values in lines.items() if len(values)})
        for title, note, lines in (
            ("Model", "as the agent saw it", model),
            ("Between requests", "end of one to the send of the next", gaps),
            ("Tools", "wall time by kind, an upper bound", tools),
        )
        if any(len(values) for values in lines.values())
    ]
    if not panels:
        return None
    height = 3.3 + 0.19 * max(len(lines) for _, _, lines in panels)  # the legends stand below
    figure, axes = _figure(len(panels), width=10.2 if len(panels) == 3 else 4.6 * len(panels), height=height)
    from matplotlib.ticker import NullLocator

    for ax, (title, note, lines) in zip(axes, panels, strict=True):
        low = max(SHORTEST_S, min(float(values[0]) for values in lines.values()))
        high = max(float(values[-1]) for values in lines.values())
        for position, (name, values) in enumerate(lines.items()):
            positive = np.maximum(values, low)  # a logarithmic axis has no zero: what is shorter stands at its left end
            _steps(
                ax,
                positive,
                PALETTE[position],
                f"{name} {short_time(percentile(values, 50))} ({len(values):,})",
            )
        ax.set_xscale("log")
        ax.set_xlim(low * 0.8, max(high, 2 * low) * 1.25)
        inside = [tick for tick in TIME_TICKS_S if low * 0.8 <= tick <= max(high, 2 * low) * 1.25]
        ticks = inside[:: math.ceil(len(inside) / 6)] if inside else [low]
        ax.set_xticks(ticks, [short_time(tick) for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="x", labelsize=8)
        ax.legend(
            frameon=False,
            fontsize=8.5,
            loc="upper left",
            bbox_to_anchor=(-0.03, -0.08),
            labelcolor=INK,
            title="median (number of events)",
            title_fontsize=8.5,
            alignment="left",
        )
        _title(ax, title, note)
        _label(ax, "", "share of events")
    return figure

"""The card's pictures, as PNG and SVG: how contexts grow, how lengths, times and reuse are spread, what is in it.

Charts are Vega-Lite (altair), drawn by vl-convert: no browser, no display, no network. Its own copy of Liberation Sans
is the font, so that the same data give the same picture on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from capture.atomic import write_atomically
from curate.cache import IdealCache
from curate.chart import (
    PALETTE,
    TIME_TICKS_S,
    bars,
    distribution_lines,
    growth_lines,
    log_histogram,
    side_by_side,
    to_png,
    to_svg,
)
from curate.distribution import percentile
from curate.frames import Frames, collect
from curate.quantities import OWN, Quantity, best_counted
from curate.stats import Stats
from curate.units import short_number, short_time
from curate.words import count

if TYPE_CHECKING:
    from curate.chart import Panel

MAX_LINES = 50  # single sessions drawn behind the median
LONGEST_LINE = 60  # points of one of them
LANGUAGES_SHOWN = 10
SECONDS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture of the card, once as PNG and once as SVG."""

    path: str  # of the PNG, inside the dataset
    svg: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Material:
    """What the pictures are drawn from."""

    frames: Frames
    cache: IdealCache
    stats: Stats
    numbers: np.ndarray  # session of each turn

    def counted(self, name: str) -> tuple[np.ndarray, Quantity] | None:
        """Known values of a quantity of requests as one counter counted them, sorted."""
        found = best_counted(self.stats.quantities, name)
        if found is None:
            return None
        key, quantity = found
        own = key == name + OWN
        value = {
            "prompt_tokens": pl.col("prompt_tokens_est" if own else "prompt_tokens"),
            "new_tokens": pl.col("prompt_tokens_est") - pl.col("lcp_tokens")
            if own
            else pl.when(pl.col("prompt_tokens_est").is_null()).then(pl.col("prompt_tokens") - pl.col("lcp_tokens")),
            "completion_tokens": pl.col("completion_tokens"),
        }[name]
        values = self.turns(value)
        if not own:
            values = values[self.of_counter(quantity.counted_by)]
        return np.sort(values[~np.isnan(values)]), quantity

    def of_counter(self, counter: str | None) -> np.ndarray:
        """Which turns belong to sessions that this one counted."""
        counted: np.ndarray = (self.frames.sessions["counter"] == counter).fill_null(value=False).to_numpy()
        chosen: np.ndarray = counted[self.numbers]
        return chosen

    def turns(self, value: pl.Expr) -> np.ndarray:
        values: np.ndarray = collect(self.frames.turns.select(value.cast(pl.Float64))).to_series().to_numpy()
        return values


def draw_plots(frames: Frames, cache: IdealCache, stats: Stats, folder: Path) -> tuple[Plot, ...]:
    """Write the pictures that the data allow; a quantity nobody measured gets no panel."""
    material = _Material(frames=frames, cache=cache, stats=stats, numbers=frames.numbers(frames.turns))
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = []
    for name, title, caption, draw in PICTURES:
        panels = draw(material)
        if not panels:
            continue
        text = to_svg(side_by_side(panels))
        png, svg = plots / f"{name}.png", plots / f"{name}.svg"
        write_atomically(svg, text.encode())
        write_atomically(png, to_png(text))
        drawn.append(
            Plot(
                path=png.relative_to(folder).as_posix(),
                svg=svg.relative_to(folder).as_posix(),
                title=title,
                caption=caption,
            )
        )
    return tuple(drawn)


def _counted_by(quantity: Quantity) -> str:
    return "counted by the provider" if quantity.counted_by == "provider" else f"counted by {quantity.counted_by}"


def _context_growth(material: _Material) -> list[Panel]:
    found = best_counted(material.stats.quantities, "prompt_tokens")
    if found is None:
        return []
    key, quantity = found
    column = "prompt_tokens_est" if key.endswith(OWN) else "prompt_tokens"
    held = collect(material.frames.turns.select("agent_path", tokens=column)).with_columns(
        session=pl.Series(material.numbers)
    )
    if column == "prompt_tokens":
        held = held.filter(pl.Series(material.of_counter(quantity.counted_by)))
    main = held.filter((pl.col("agent_path") == "main") & pl.col("tokens").is_not_null()).select(
        "session", "tokens", turn=pl.int_range(1, pl.len() + 1).over("session")
    )
    if not len(main):
        return []
    lengths = main.group_by("session", maintain_order=True).len().sort("session")
    sessions = len(lengths)
    enough = max(3, sessions // 10)  # a percentile over one or two sessions would be their own line
    reach = int(lengths["len"].top_k(min(enough, sessions)).min() or 1)  # type: ignore[arg-type]
    by_turn = (
        main.filter(pl.col("turn") <= reach)
        .group_by("turn")
        .agg(
            low=pl.col("tokens").quantile(0.1, "linear"),
            median=pl.col("tokens").quantile(0.5, "linear"),
            high=pl.col("tokens").quantile(0.9, "linear"),
        )
        .sort("turn")
    )
    by_turn = by_turn[sorted({round(at) for at in np.linspace(0, len(by_turn) - 1, min(len(by_turn), 200))})]
    chosen = lengths["session"][sorted({round(at) for at in np.linspace(0, sessions - 1, min(sessions, MAX_LINES))})]
    lines = []
    for part in main.filter(pl.col("session").is_in(chosen.implode())).partition_by("session", maintain_order=True):
        at = sorted({round(step) for step in np.linspace(0, len(part) - 1, min(len(part), LONGEST_LINE))})
        lines.append((part["turn"][at].to_list(), part["tokens"][at].to_list()))
    spread = main.group_by("session").agg(
        first=pl.col("tokens").first(), last=pl.col("tokens").last(), longest=pl.col("tokens").max()
    )
    note = f"{count(sessions, 'session')}, {_counted_by(quantity)}"
    return [
        growth_lines(
            "Context by turn",
            note,
            lines=lines,
            turns=by_turn["turn"].to_list(),
            band=None if sessions < 3 else (by_turn["low"].to_list(), by_turn["high"].to_list()),
            median=by_turn["median"].to_list(),
        ),
        distribution_lines(
            "Context of a session",
            "first, last and longest prompt of the main chain",
            {name: np.sort(spread[name].to_numpy().astype(np.float64)) for name in ("first", "last", "longest")},
            of="sessions",
            axis="tokens",
            label=short_number,
            dashed=("longest",),
        ),
    ]


def _lengths(material: _Material) -> list[Panel]:
    panels: list[Panel] = []
    for position, (name, title) in enumerate(
        (("prompt_tokens", "Input"), ("new_tokens", "New input"), ("completion_tokens", "Output"))
    ):
        found = material.counted(name)
        if found is not None and found[0][-1] > 0:
            values, quantity = found
            panels.append(
                log_histogram(
                    title,
                    _counted_by(quantity),
                    values,
                    color=PALETTE[position],
                    marks=[(percentile(values, p), p) for p in (50, 90, 99)],
                )
            )
    return panels


def _times(material: _Material) -> list[Panel]:
    frames = material.frames
    send = pl.col("t_send_us")
    model = {
        "first token": material.turns((pl.col("t_first_token_us") - send) * SECONDS),
        "whole request": material.turns((pl.col("t_end_us") - send) * SECONDS),
    }
    held = collect(frames.turns.select("gap_kind", gap=pl.col("gap_us").cast(pl.Float64) * SECONDS))
    gaps = {
        kind: held.filter(pl.col("gap_kind") == kind)["gap"].to_numpy()
        for kind in ("tool", "human", "client", "spawn", "unsplit")
    }
    calls = collect(
        frames.tool_calls.select(
            "kind", wall=pl.when(~pl.col("mixed")).then(pl.col("wall_us").cast(pl.Float64) * SECONDS)
        )
    )
    tools = {
        kind: calls.filter(pl.col("kind") == kind)["wall"].to_numpy()
        for kind in ("exec", "edit", "read", "search", "web", "mcp", "subagent", "other")
    }
    panels: list[Panel] = []
    for title, note, lines, of in (
        ("Model", "as the agent saw it", model, "requests"),
        ("Between requests", "gaps of one chain, by what filled them", gaps, "gaps"),
        ("Tools", "wall time by kind, an upper bound", tools, "calls"),
    ):
        known = {name: ordered for name, values in lines.items() if len(ordered := _ordered(values))}
        if known:
            panels.append(
                distribution_lines(
                    title, note, known, of=of, axis="", label=short_time, ticks=TIME_TICKS_S, shortest=1e-3
                )
            )
    return panels


def _reuse(material: _Material) -> list[Panel]:
    cache, total = material.cache, material.cache.total
    read = pl.when(pl.col("prompt_tokens") > 0).then(pl.col("cache_read_tokens") / pl.col("prompt_tokens"))
    measured = material.turns(read)[material.of_counter("provider")]
    lines = {
        name: ordered
        for name, values in (
            ("ideal, chain", cache.chain),
            ("ideal, session", cache.session),
            ("provider's own", measured),
        )
        if len(ordered := _ordered(values))
    }
    if not lines:
        return []
    shares = {
        name: share
        for name, share in (
            ("ideal, chain", total.chain_share),
            ("ideal, session", total.session_share),
            ("ideal, release", total.release_share),
            ("provider's own", total.measured_share),
        )
        if share is not None
    }
    return [
        distribution_lines(
            "Cached part of a prompt",
            "share of each request",
            lines,
            of="requests",
            axis="share of the prompt",
            label=lambda share: f"{100 * share:.3g} %",
            ticks=(0, 0.25, 0.5, 0.75, 1),
            linear=True,
            dashed=("ideal, session",),
        ),
        bars(
            "Cached part of all prompts",
            "ideal: of blocks; provider's own: of tokens",
            shares,
            label=lambda share: f"{100 * share:.1f} %",
            longest=1,
        ),
    ]


def _sessions(material: _Material) -> list[Panel]:
    sessions = material.frames.sessions
    counts = {
        "requests": sessions["num_requests"],
        "tool calls": sessions["num_tool_calls"],
        "user messages": sessions["num_user_messages"],
    }
    times = {
        "session": sessions["duration_us"],
        "model": sessions["api_us"],
        "tools": sessions["tool_us"],
        "human": sessions["human_us"],
    }
    panels: list[Panel] = []
    known = {name: found for name, values in counts.items() if len(found := _ordered(_floats(values)))}
    if known:
        panels.append(
            distribution_lines(
                "Size", "per session", known, of="sessions", axis="", label=short_number, dashed=("tool calls",)
            )
        )
    spent = {name: found * SECONDS for name, values in times.items() if len(found := _ordered(_floats(values)))}
    if spent:
        panels.append(
            distribution_lines(
                "Time",
                "per session, in all",
                spent,
                of="sessions",
                axis="",
                label=short_time,
                ticks=TIME_TICKS_S,
                shortest=1,
            )
        )
    peak = material.stats.quantities["peak_concurrency"]
    if peak.all.n:
        from curate.measurement import concurrency

        peaks = concurrency(material.frames)["peak"].to_numpy()
        most = int(peaks.max())
        top = 6
        shown = {str(n): int((peaks == n).sum()) for n in range(1, min(most, top) + 1)}
        if most > top:
            shown[f"{top + 1}+"] = int((peaks > top).sum())
        panels.append(
            bars(
                "Concurrency",
                "most requests of a session open at once",
                {name: float(n) for name, n in shown.items()},
                label=lambda n: f"{n:,.0f}",
            )
        )
    return panels


def _contents(material: _Material) -> list[Panel]:
    stats = material.stats
    panels: list[Panel] = []
    if stats.languages:
        shown = dict(list(stats.languages.items())[:LANGUAGES_SHOWN])
        rest = sum(stats.languages.values()) - sum(shown.values())
        if len(stats.languages) > LANGUAGES_SHOWN:
            shown["others"] = rest
        panels.append(
            bars(
                "Languages",
                f"of the files that tool calls name, {count(stats.language_sessions, 'session')}",
                shown,
                label=lambda share: f"{100 * share:.1f} %",
            )
        )
    if stats.funnel.stages:
        steps = {"read": float(stats.funnel.read)}
        steps |= {f"after {step.stage}": float(step.kept) for step in stats.funnel.stages}
        panels.append(
            bars("Funnel", "sessions left at each stage", steps, label=lambda n: f"{n:,.0f}", color=PALETTE[2])
        )
    return panels


def _ordered(values: np.ndarray) -> np.ndarray:
    return np.sort(values[~np.isnan(values)])


def _floats(values: pl.Series) -> np.ndarray:
    return values.cast(pl.Float64).to_numpy()


type _Draw = Callable[[_Material], list[Any]]

PICTURES: tuple[tuple[str, str, str, _Draw], ...] = (
    (
        "context-growth",
        "Growth of contexts",
        "Prompt length of the main chain, turn by turn: one thin line per session, the median and the middle 80 % over "
        "the sessions that got that far.",
        _context_growth,
    ),
    (
        "lengths",
        "Lengths of requests",
        "Tokens per turn on logarithmic axes, marked at the median, the 90th and the 99th percentile. Input: the whole "
        "prompt. New input: what the parent's prompt did not hold. Output: answer and reasoning.",
        _lengths,
    ),
    ("times", "Times", "The share of events that took at most that long, on logarithmic axes.", _times),
    (
        "cache",
        "Prefix cache",
        "What a cache that forgets nothing would have held of each prompt, and what the provider read from its own.",
        _reuse,
    ),
    (
        "sessions",
        "Sessions",
        "Sizes and times of sessions as the share of sessions up to that value, on logarithmic axes, and how many "
        "requests of one session were open at once.",
        _sessions,
    ),
    (
        "contents",
        "What is in it",
        "Languages worked on, and the sessions left after each stage of the build.",
        _contents,
    ),
)

"""Prefix cache: what the server reports, against what a cache that forgets nothing would reach."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from replay import chart
from replay.document import Chart, Section, Table, columns, row
from replay.record import RequestRecord
from replay.sections.source import Source
from replay.sentence import UNKNOWN, share
from replay.window import Window

SLICES = 30


def cache(source: Source) -> Section | None:
    """Reported and ideal share of the prompt tokens, per trial and over time."""
    trials = source.score["trials"]
    if not trials:
        return None
    rows = []
    for item in trials:
        reported, ideal = item["measure"]["cached_share"], item["measure"]["ideal_cached_share"]
        lost = None if reported is None or ideal is None else max(0.0, ideal - reported)
        rows.append(row(str(item["trial"]), str(item["agents"]), share(ideal), share(reported), share(lost)))
    table = Table(
        caption="Share of the prompt tokens that came from the prefix cache, by the server's own count. Ideal: what "
        "the "
        "same play had sent before.",
        columns=columns("trial", "agents", "ideal", "reported", "lost"),
        rows=tuple(rows),
        folded=len(rows) > 12,
    )
    points = []
    if all(item["measure"]["cached_share"] is None for item in trials):
        points.append("The server reports no cached tokens: nothing is known of its prefix cache from its answers.")
    trial = source.shown_trial
    drawn = _over_time(trial.observation.requests, trial.window) if trial is not None else None
    isolation = source.score["policies"]["isolation"]
    lead = (
        f"Prefixes are shared only within one {isolation}: nothing that another {isolation} sent can be hit."
        if isolation in ("play", "agent", "run")
        else "Nothing keeps plays apart: a prefix that an earlier play sent can be hit.",
    )
    blocks: tuple[Table | Chart, ...] = (table,) if drawn is None else (drawn, table)
    return Section(slug="cache", title="Prefix cache", lead=lead, points=tuple(points), blocks=blocks)


def shares_over_time(
    records: Sequence[RequestRecord], window: Window, slices: int = SLICES
) -> list[tuple[float, float | None, float | None]]:
    """(middle of the slice in seconds, reported, ideal), both weighted by the prompt tokens that the server counted."""
    width = max(1, (window.end_ns - window.start_ns) // slices)
    reports = any(record.cached_tokens is not None for record in records)
    sums: dict[int, tuple[float, float, float]] = {}
    for record in records:
        known = record.outcome == "ok" and record.prompt_tokens and record.ideal_cached_share is not None
        if not known or not window.start_ns <= record.sent_at_ns < window.end_ns:
            continue
        assert record.prompt_tokens is not None
        assert record.ideal_cached_share is not None
        place = min(slices - 1, (record.sent_at_ns - window.start_ns) // width)
        tokens, cached, ideal = sums.get(place, (0.0, 0.0, 0.0))
        sums[place] = (
            tokens + record.prompt_tokens,
            cached + (record.cached_tokens or 0),
            ideal + record.ideal_cached_share * record.prompt_tokens,
        )
    return [
        ((window.start_ns + (place + 0.5) * width) / 1e9, cached / tokens if reports else None, ideal / tokens)
        for place, (tokens, cached, ideal) in sorted(sums.items())
    ]


def _over_time(records: Sequence[RequestRecord], window: Window) -> Chart | None:
    found = shares_over_time(records, window)
    if len(found) < 2:
        return None
    lines = [
        chart.Line(
            label="ideal",
            points=tuple((at, ideal) for at, _, ideal in found if ideal is not None),
            tone=chart.QUIET,
            dashed=True,
        ),
        chart.Line(
            label="reported",
            points=tuple((at, reported) for at, reported, _ in found if reported is not None),
            tone=chart.ACCENT,
        ),
    ]
    reported = [number for _, number, _ in found if number is not None]
    said = f"reported between {share(min(reported))} and {share(max(reported))}" if reported else f"reported {UNKNOWN}"
    return Chart(
        draw=partial(chart.over, lines, title="Cached share of the prompt tokens", y="", share=True),
        caption="By the time at which a request was sent. A gap that opens over time is a cache that is too small.",
        says=f"Cached share over time: {said}.",
    )

"""Was the measured window steady? Warm-up that was found, the tests of trend, and the course to look at."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from replay import chart
from replay.attain import percentile
from replay.document import Cell, Chart, Section, Table, columns, row
from replay.sections.source import Seen, Source
from replay.sentence import UNKNOWN, count, value

BATCH_S = 5.0


def steady(source: Source) -> Section | None:
    """What was tested in each trial, and the course of the one that is shown."""
    known = source.score["trials"]
    blocks: list[Table | Chart] = []
    if source.shown_trial is not None:
        blocks += _course(source.shown_trial)
    if known:
        blocks.append(_tests(known))
    if not blocks:
        return None
    points: list[str] = []
    if source.shown is not None:
        shown = source.shown["measure"]["steady"]
        warm = shown["warm_up_s"]
        found = f"warm-up took {value(warm, 's')} after settling and is left out" if warm else "no warm-up was found"
        points.append(f"Trial {source.shown['trial']}: {shown['abstained'] or found}.")
        points += [f"{note}." for note in shown["notes"]]
    lead = (
        "Warm-up ends where the dispersion of what is left is smallest (MSER); what is left must show no trend "
        "(Mann-Kendall, corrected for autocorrelation) that changes a series by more than a published factor.",
    )
    return Section(slug="steady", title="Was it steady?", lead=lead, points=tuple(points), blocks=tuple(blocks))


def _tests(items: list[dict[str, Any]]) -> Table:
    rows = []
    for item in items:
        tested = item["measure"]["steady"]
        unsteady = [each["reason"] for each in tested["unsteady"]]
        series = ", ".join(_series(each) for each in tested["series"])
        rows.append(
            row(
                *(str(item["trial"]), str(item["agents"]), value(tested["warm_up_s"], "s")),
                Cell(text="not tested", tone="quiet")
                if tested["abstained"]
                else Cell(text="no", tone="invalid")
                if unsteady
                else Cell(text="yes", tone="met"),
                series or UNKNOWN,
                note="; ".join([*unsteady, *filter(None, [tested["abstained"]])]) or None,
            )
        )
    return Table(
        caption="Change over the steady window by its robust trend line, with the z of its test (beyond 2.58 is "
        "significant).",
        columns=columns("trial", "agents", "warm-up", "steady:", "change of each series:"),
        rows=tuple(rows),
        folded=len(rows) > 20,
    )


def _series(series: dict[str, Any]) -> str:
    if series["factor"] is None or series["trend_z"] is None:
        return f"{series['name']} not tested"
    return f"{series['name']} {series['factor']:.2f}× (z {series['trend_z']:.1f})"


def _course(trial: Seen) -> list[Chart]:
    """Medians of every 5 s of the whole trial, settling included."""
    ttft: dict[int, list[float]] = {}
    speed: dict[int, list[float]] = {}
    for record in trial.records:
        first_ns, last_ns = record.first_content_at_ns, record.last_content_at_ns
        if first_ns is None:
            continue
        place = math.floor(record.sent_at_ns / 1e9 / BATCH_S)
        ttft.setdefault(place, []).append((first_ns - record.intended_at_ns) / 1e9)
        if record.outcome == "ok" and last_ns is not None and last_ns > first_ns and record.content_events > 1:
            tokens = record.completion_tokens or record.content_events
            speed.setdefault(place, []).append((tokens - 1) / ((last_ns - first_ns) / 1e9))
    charts = []
    span = (trial.window.start_ns / 1e9, trial.window.end_ns / 1e9)
    for name, unit, batches, tone in (
        ("time to first token", "s", ttft, chart.ACCENT),
        ("output speed", "tok/s", speed, chart.SECOND),
    ):
        if len(batches) < 3:
            continue
        lines = [
            chart.Line(label=label, points=_points(batches, part), tone=tone, dashed=dashed)
            for label, part, dashed in (("median", 0.5, False), ("P90" if unit == "s" else "P10", _far(unit), True))
        ]
        charts.append(
            Chart(
                draw=partial(
                    chart.over,
                    lines,
                    title=f"{name.capitalize()} of each {BATCH_S:g} s",
                    y=unit,
                    span=span,
                    height_in=1.9,
                ),
                caption=f"{name.capitalize()} over the whole trial; the measured window is shaded.",
                says=f"{name.capitalize()} in {count(len(batches), 'batch', 'batches')}.",
            )
        )
    return charts


def _far(unit: str) -> float:
    return 0.9 if unit == "s" else 0.1


def _points(batches: dict[int, list[float]], part: float) -> tuple[tuple[float, float], ...]:
    found = []
    for place, values in sorted(batches.items()):
        at = percentile(values, part)
        assert at is not None
        found.append(((place + 0.5) * BATCH_S, at))
    return tuple(found)

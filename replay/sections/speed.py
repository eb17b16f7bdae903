"""Time to first token and speed: whole distributions against the limits, agent by agent, by context and by turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from replay import chart
from replay.attain import percentile
from replay.buffering import Buffering
from replay.document import Chart, Section, Table, columns, row
from replay.sample import Sample
from replay.sections.score import percentile as spread_cell
from replay.sections.source import Seen, Source
from replay.sentence import count, share, value
from replay.slo import Quantity

LINES_MOST = 8
AGENTS_SHOWN = 40
_NAMES = {"context": "length of context", "turn": "turn of the session"}


def speed(source: Source) -> Section | None:
    """What agents felt in the trial that is shown, beside the other levels."""
    item = source.shown
    if item is None:
        return None
    numbers = item["measure"]
    spreads = [
        ("time to first token", "s", numbers["ttft_s"]),
        ("… from the first byte sent, as other tools count", "s", numbers["ttft_from_send_s"]),
        ("turn time", "s", numbers["turn_s"]),
        ("time between tokens", "s", numbers["metrics"]["itl_s"]),
        ("longest silence in an answer", "s", numbers["metrics"]["longest_gap_s"]),
        ("output speed", "tok/s", numbers["speed_tok_s"]),
        ("end-to-end speed", "tok/s", numbers["end_to_end_tok_s"]),
    ]
    table = Table(
        caption=f"Trial {item['trial']}, {count(item['agents'], 'agent')}, requests sent in its "
        f"{value(numbers['window_s'], 's')} window.",
        columns=columns("quantity:", "unit:", "requests", "P5", "P25", "P50", "P75", "P95", "P99"),
        rows=tuple(
            row(
                *(name, unit, f"{each['count']:,}"),
                *(spread_cell(each, key) for key in ("p5", "p25", "p50", "p75", "p95", "p99")),
            )
            for name, unit, each in spreads
        ),
    )
    points = [
        f"{numbers['undecided']:,} of {numbers['requests']:,} requests were undecided when the window ended; "
        f"{numbers['without_speed']:,} have no output speed (fewer than two tokens, or still waiting); "
        f"{numbers['held_back']:,} answers came all at once and count with the speed of their whole request.",
        *_buffered(numbers),
        *(f"{note}." for note in numbers["notes"]),
    ]
    blocks: list[Table | Chart] = [table]
    trial = source.shown_trial
    if source.trials:
        blocks.append(_distributions(source))
    if trial is not None:
        blocks += _by_agent(source, trial.observation.samples)
    blocks += _bands(source, item)
    if trial is not None:
        blocks.append(_timeline(trial))
    return Section(slug="speed", title="Time to first token and speed", points=tuple(points), blocks=tuple(blocks))


def _buffered(numbers: dict[str, Any]) -> list[str]:
    """Whether the server holds answers back, as far as the first token tells."""
    buffering = Buffering(**{field.name: numbers["buffering"][field.name] for field in dataclasses.fields(Buffering)})
    held, z = buffering.held_share, buffering.z
    if held is None or z is None:
        return []
    words = "speeds are those of whole requests" if buffering.found else "no sign that answers are held back"
    return [
        f"{share(max(0.0, held))} of the time per token passes before the first token of an answer "
        f"({count(buffering.answers, 'answer')}, z {z:.1f}): {words}."
    ]


def _bands(source: Source, item: dict[str, Any]) -> list[Table | Chart]:
    """Time to first token and speed by length of context and by turn."""
    blocks: list[Table | Chart] = []
    metrics = item["measure"]["metrics"]
    for name, unit, bands in (
        ("context", "prompt tokens", metrics["by_context"]),
        ("turn", "turn of the session", metrics["by_turn"]),
    ):
        if not bands:
            continue
        labels = [_band(band) for band in bands]
        if len(bands) > 1:
            blocks.append(_band_chart(source, name, unit, bands, item["trial"]))
        rows = tuple(
            row(
                *(label, f"{band['requests']:,}"),
                *(spread_cell(band["ttft_s"], key, "s") for key in ("p50", "p95")),
                *(spread_cell(band["speed_tok_s"], key) for key in ("p25", "p50")),
                *(share(band["cached_share"]), share(band["ideal_cached_share"])),
            )
            for label, band in zip(labels, bands, strict=True)
        )
        blocks.append(
            Table(
                caption=f"By {_NAMES[name]}, trial {item['trial']}.",
                columns=columns(
                    *(f"{unit}:", "requests", "TTFT P50", "TTFT P95", "speed P25", "speed P50"),
                    *("cached", "ideal"),
                ),
                rows=rows,
            )
        )
    return blocks


def _band(band: dict[str, Any]) -> str:
    if band["high"] is None:
        return f"over {band['low'] - 1:,}"
    return f"{band['low']:,} to {band['high']:,}" if band["low"] > 1 else f"up to {band['high']:,}"


def _short(band: dict[str, Any]) -> str:
    """`≤ 33k`."""
    end = band["low"] - 1 if band["high"] is None else band["high"]
    size = f"{end / 1000:.0f}k" if end >= 10_000 else f"{end:,}"
    return f"> {size}" if band["high"] is None else f"≤ {size}"


def _band_chart(source: Source, name: str, unit: str, bands: list[dict[str, Any]], number: int) -> Chart:
    labels = [_short(band) for band in bands]
    panels = []
    for title, side, quantity, keys in (
        ("Time to first token", "seconds", "ttft_s", ("p50", "p95")),
        ("Output speed", "tok/s", "speed_tok_s", ("p25", "p50")),
    ):
        lines = [
            chart.Line(
                label=key.upper(),
                points=tuple(
                    (place, band[quantity][key]) for place, band in enumerate(bands) if band[quantity][key] is not None
                ),
                tone=tone,
                dashed=dashed,
            )
            for key, tone, dashed in zip(keys, (chart.ACCENT, chart.SECOND), (False, True), strict=True)
        ]
        limits = source.limits("ttft_s" if quantity == "ttft_s" else "output_tok_s")
        panels.append(
            chart.Panel(title=title, unit=side, lines=tuple(lines), limits=tuple(limit for limit, _ in limits))
        )
    return Chart(
        draw=partial(chart.beside, panels, unit, labels),
        caption=f"By {_NAMES[name]}, trial {number}: what the pooled percentiles hide.",
        says=f"Time to first token and output speed over {len(bands)} bands of {unit}.",
    )


def _distributions(source: Source) -> Chart:
    """The shown trial boldly; of the others one per level, the nearest levels first."""
    shown = source.shown
    assert shown is not None
    others = {item["agents"]: item for item in source.score["trials"] if item["trial"] != shown["trial"]}
    near = sorted(others.values(), key=lambda item: (abs(item["agents"] - shown["agents"]), item["trial"]))
    drawn = sorted([shown, *near[: LINES_MOST - 1]], key=lambda item: item["agents"])
    panels: tuple[tuple[Quantity, str, str], ...] = (
        ("ttft_s", "Time to first token", "seconds"),
        ("output_tok_s", "Output speed", "tokens per second"),
    )
    lines: list[list[chart.Line]] = [[], []]
    for item in drawn:
        trial = source.trials.get(item["trial"])
        if trial is None:
            continue
        samples = trial.observation.samples
        verdict = item["measure"]["verdict"]
        for panel, (quantity, _, _) in enumerate(panels):
            known = [number for sample in samples if (number := sample.value(quantity, None)) is not None]
            lines[panel].append(
                chart.Line(
                    label=f"{item['agents']} agents, {verdict}",
                    points=chart.cumulative(known) if known else (),
                    tone=chart.TONES.get(verdict, chart.VOID),
                    dashed=verdict != "met",
                    bold=item is shown,
                )
            )
    return Chart(
        draw=partial(
            chart.distributions,
            lines,
            [(title, unit) for _, title, unit in panels],
            [source.limits(quantity) for quantity, _, _ in panels],
        ),
        caption=f"Cumulative distributions; trial {shown['trial']} bold, dashed where the trial did not meet. A speed "
        "must "
        "cross the dotted share right of its limit, a time left of it.",
        says=f"Distributions of time to first token and output speed at {', '.join(str(i['agents']) for i in drawn)} "
        "agents.",
    )


def _by_agent(source: Source, samples: Sequence[Sample]) -> list[Chart]:
    """Each agent's own percentiles, sorted: how far the pooled rule hides the worst served."""
    panels, said = [], []
    kinds: tuple[tuple[Quantity, float, str, str], ...] = (
        ("ttft_s", 0.95, "P95 time to first token", "s"),
        ("output_tok_s", 0.25, "P25 output speed", "tok/s"),
    )
    for quantity, part, title, unit in kinds:
        own: dict[int, list[float]] = {}
        for sample in samples:
            number = sample.value(quantity, None)
            if number is not None:
                own.setdefault(sample.agent, []).append(number)
        found = [at for values in own.values() if (at := percentile(values, part)) is not None]
        finite = sorted((at for at in found if math.isfinite(at)), reverse=unit == "s")
        if len(finite) < 2:
            continue
        never = len(found) - len(finite)
        panels.append(
            chart.Panel(
                title=title,
                unit=unit,
                lines=(chart.Line(label=title, points=tuple(enumerate(finite, 1 + never))),),
                limits=tuple(limit for limit, _ in source.limits(quantity)),
            )
        )
        without = f", {count(never, 'agent')} infinite and not drawn" if never else ""
        said.append(f"{title} from {value(finite[0], unit)} to {value(finite[-1], unit)}{without}")
    if not panels:
        return []
    return [
        Chart(
            draw=partial(chart.beside, panels, "agents, the worst served first"),
            caption=f"Every agent by itself: {'; '.join(said)}.",
            says=f"{'; '.join(said)}.",
        )
    ]


def _timeline(trial: Seen) -> Chart:
    agents = sorted({record.agent for record in trial.records})
    shown = agents[:AGENTS_SHOWN]
    end_s = trial.window.end_ns / 1e9
    spans = []
    for record in trial.records:
        stop_s = end_s if record.end_at_ns is None else record.end_at_ns / 1e9
        first_s = stop_s if record.first_content_at_ns is None else record.first_content_at_ns / 1e9
        good = record.outcome in ("ok", "stopped")
        spans.append(
            chart.Turn(
                agent=record.agent, sent_s=record.sent_at_ns / 1e9, first_s=first_s, end_s=stop_s, failed=not good
            )
        )
    window = trial.window
    more = "" if len(shown) == len(agents) else f" The first {len(shown)} of {len(agents)} agents."
    return Chart(
        draw=partial(chart.turns, spans, shown, (window.start_ns / 1e9, end_s)),
        caption="Requests in flight, and every agent's turns: waiting for the first token, receiving, failed. The "
        "measured "
        f"window is shaded.{more}",
        says=f"{count(len(trial.records), 'request')} of {count(len(agents), 'agent')} over {value(end_s, 's')}.",
    )

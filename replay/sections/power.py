"""What the system drew while it was measured, and what the number of agents is divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from replay import chart
from replay.document import Cell, Chart, Section, Table, columns, row
from replay.power.source import PowerSample, SourceInfo
from replay.sections.score import denominators
from replay.sections.source import Source
from replay.sentence import UNKNOWN, share, value
from replay.window import Window

_TICK_NS = 200_000_000


def power(source: Source) -> Section:
    """Power of the trial that is shown, device by device, and every ratio with its denominator."""
    item, blocks, points = source.shown, [], list(denominators(source.score))
    for total in item["power"] if item else ():
        name = f"{total['source']} ({total['basis']})"
        if total["valid"]:
            points.append(
                f"{name}: {value(total['power_w'], 'W')} ± {value(total['power_u_w'], 'W')} (k = 2), "
                f"{value(total['energy_j'], 'J')} over the window of trial {item['trial'] if item else ''}."
            )
        else:
            points.append(f"{name}: no power, because {'; '.join(total['reasons'])}.")
        blocks.append(_devices(total))
    trial = source.shown_trial
    drawn = over_time(trial.samples, trial.power_sources, trial.window) if trial is not None else None
    lead = () if points else ("No power source was named: nothing is given per megawatt.",)
    charts = (drawn,) if drawn is not None else ()
    return Section(slug="power", title="Power", lead=lead, points=tuple(points), blocks=(*charts, *blocks))


def _devices(total: dict[str, Any]) -> Table:
    rows = tuple(
        row(
            Cell(text=device["device"], code=True),
            device["method"],
            value(device["energy_j"], "J"),
            value(device["gauge_energy_j"], "J"),
            share(device["coverage"]),
            value(device["largest_gap_s"], "s"),
            f"{device['readings']:,}",
            ", ".join(device["flags"]) or UNKNOWN,
        )
        for device in total["devices"]
    )
    return Table(
        caption=f"Devices of {total['source']} ({total['basis']}). Coverage: share of the window between readings "
        "close "
        "enough to count. The gauge is the cross-check of a counter.",
        columns=columns("device:", "method:", "energy", "gauge says", "coverage", "largest gap", "readings", "flags:"),
        rows=rows,
    )


def over_time(samples: Sequence[PowerSample], sources: Sequence[SourceInfo], window: Window) -> Chart | None:
    """Watts over time, per source: from counters where there are any, else from gauges; None without a sample."""
    tones = (chart.ACCENT, chart.MISSED, chart.SECOND, chart.MET)
    lines = [
        chart.Line(
            label=f"{source.kind} ({'measured' if source.measured else 'declared'})",
            points=tuple(_watts(samples, source)),
            tone=tones[number % len(tones)],
        )
        for number, source in enumerate(sources)
    ]
    if not any(line.points for line in lines):
        return None
    return Chart(
        draw=partial(
            chart.over,
            lines,
            title="Power, all devices of a source",
            y="watts",
            span=(window.start_ns / 1e9, window.end_ns / 1e9),
        ),
        caption="Power over the trial; the measured window is shaded.",
        says=f"Watts over time of {', '.join(line.label for line in lines)}.",
    )


def _watts(samples: Sequence[PowerSample], source: SourceInfo) -> list[tuple[float, float]]:
    """Sum over devices by tick; a tick at which a device is missing is left out."""
    devices = {device.uid for device in source.devices}
    own = [(sample, sample.value) for sample in samples if sample.device in devices and sample.value is not None]
    counters = [(sample, number) for sample, number in own if sample.kind == "energy_j"]
    points: dict[int, dict[str, float]] = {}
    previous: dict[str, tuple[int, float]] = {}
    for sample, number in sorted(counters, key=lambda item: item[0].t_ns):
        before = previous.get(sample.device)
        previous[sample.device] = (sample.t_ns, number)
        if before is None or sample.t_ns <= before[0] or number < before[1]:
            continue
        watts = (number - before[1]) / ((sample.t_ns - before[0]) / 1e9)
        points.setdefault(sample.t_ns // _TICK_NS, {})[sample.device] = watts
    if not counters:
        for sample, number in own:
            points.setdefault(sample.t_ns // _TICK_NS, {})[sample.device] = number
    return [
        (tick * _TICK_NS / 1e9, math.fsum(values.values()))
        for tick, values in sorted(points.items())
        if len(values) == len(devices)
    ]

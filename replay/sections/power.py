"""What was read of each device while the system was measured and while it idled, and what may not be believed of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from replay import chart
from replay.document import Cell, Chart, Section, Table, columns, row
from replay.labels import scope_words
from replay.power.source import DeviceState, PowerSample, SourceInfo
from replay.sections.source import Source
from replay.sentence import UNKNOWN, count, share, value
from replay.window import Window

TICK_S = 1.0  # of the chart: shorter ones show how a counter is latched, not what is drawn
_FOLDED = 16  # devices that are shown without opening
_READINGS = {"energy_j": "energy counter", "power_w": "average", "power_instant_w": "instant", "limit_w": "limit"}
_TERMS = {"u_gain_j": "gain", "u_clock_j": "clock", "u_latch_j": "latch", "u_sampling_j": "sampling", "u_gap_j": "gaps"}


def power(source: Source) -> Section:
    """Power of the trial that is shown: totals by scope, every device, idle power, and what the devices said."""
    item, seen = source.shown, source.shown_trial
    totals = item["power"] if item is not None else []
    blocks: list[Chart | Table] = []
    if seen is not None and (drawn := over_time(seen.samples, totals, seen.window)) is not None:
        blocks.append(drawn)
    if totals:
        blocks += [_totals(totals, f"Trial {item['trial'] if item else ''}"), *_devices(totals)]
    idle = source.score.get("idle")
    if idle is not None:
        blocks.append(_idle(idle))
    if seen is not None:
        blocks += _sources(seen.power_sources)
    meters = tuple(
        f"Meter {meter['number']} was added after the run: "
        f"{meter['source']['name'].removesuffix(f', added as meter {meter["number"]}') or meter['source']['kind']}, "
        f"{count(meter['samples'], 'reading')}, "
        f"{f'its times moved by {meter["offset_s"]:+g} s' if meter['offset_s'] else 'its times as they are'}."
        for meter in source.score.get("meters", ())
    )
    lead = (
        (
            "Energy is integrated over the steady window, the same that the requests were judged in. ± is the expanded "
            "uncertainty (k = 2). A scope with a missing or overlapping device has no power at all.",
        )
        if totals
        else ("No power was read.",)
    )
    return Section(slug="devices", title="Power, device by device", lead=lead, points=meters, blocks=tuple(blocks))


def _totals(totals: Sequence[dict[str, Any]], what: str) -> Table:
    return Table(
        caption=f"{what}: mean power of each scope, summed over all of its expected devices or not given.",
        columns=columns("scope:", "basis:", "sources:", "power", "±", "energy", "devices", "limit", "believed:"),
        rows=tuple(
            row(
                scope_words(total["scope"]),
                total["basis"],
                ", ".join(total["sources"]) or UNKNOWN,
                value(total["power_w"], "W"),
                value(total["power_u_w"], "W"),
                value(total["energy_j"], "J"),
                f"{len(total['devices']):,}",
                value(total.get("limit_w"), "W"),
                Cell(text="yes", tone="met") if total["valid"] else Cell(text="no", tone="invalid"),
                note="; ".join(total["reasons"]) or None,
            )
            for total in totals
        ),
    )


def _devices(totals: Sequence[dict[str, Any]]) -> list[Table]:
    """Each device once, with every scope that it is summed in, and what its uncertainty is made of."""
    found: dict[str, dict[str, Any]] = {}
    scopes: dict[str, list[str]] = {}
    for total in totals:
        for device in total["devices"]:
            found.setdefault(device["device"], device)
            scopes.setdefault(device["device"], []).append(scope_words(total["scope"]))
    rows = tuple(
        row(
            Cell(text=uid, code=True),
            ", ".join(scopes[uid]),
            device["method"],
            value(device["energy_j"], "J"),
            value(_expanded_j(device), "J"),
            value(device["gauge_energy_j"], "J"),
            share(device["coverage"]),
            value(device["largest_gap_s"], "s"),
            f"{device['readings']:,}",
            ", ".join(flag.replace("_", " ") for flag in device["flags"]) or UNKNOWN,
            note="; ".join(device["reasons"]) or None,
        )
        for uid, device in found.items()
    )
    listed = Table(
        caption="Devices. Coverage: share of the window between readings close enough to count. The gauge is the "
        "cross-check of a counter.",
        columns=columns(
            *("device:", "summed in:", "method:", "energy", "±", "gauge says", "coverage", "largest gap", "readings"),
            "flags:",
        ),
        rows=rows,
        folded=len(rows) > _FOLDED,
    )
    budget = Table(
        caption="What the uncertainty of each energy is made of, as standard uncertainties (k = 1). Gain is common to "
        "all devices of a model and the clock to all of a source: they are added, not averaged out. ±: all, k = 2.",
        columns=columns("device:", *_TERMS.values(), "±", "± of energy"),
        rows=tuple(
            row(
                Cell(text=uid, code=True),
                *(value(device[term] if device["valid"] else None, "J") for term in _TERMS),
                value(_expanded_j(device), "J"),
                share((_expanded_j(device) or 0.0) / device["energy_j"] if device["energy_j"] else None),
            )
            for uid, device in found.items()
        ),
        folded=True,
    )
    return [listed, budget]


def _expanded_j(device: dict[str, Any]) -> float | None:
    return 2 * math.hypot(*(device[term] for term in _TERMS)) if device["valid"] else None


def _idle(idle: dict[str, Any]) -> Table:
    readings = {moment: idle[moment] for moment in ("before", "after") if idle[moment] is not None}
    drift = {item["scope"]: item for item in idle["drift"]}
    scopes = dict.fromkeys(total["scope"] for reading in readings.values() for total in reading["power"])
    rows = []
    for scope in scopes:
        own = {
            moment: next((total for total in reading["power"] if total["scope"] == scope), None)
            for moment, reading in readings.items()
        }
        moved = drift.get(scope)
        reasons = [
            f"{moment}: {reason}"
            for moment, reading in readings.items()
            for reason in (*reading["reasons"], *((own[moment] or {}).get("reasons") or ()))
        ]
        rows.append(
            row(
                scope_words(scope),
                *(_idle_watts(own.get(moment)) for moment in ("before", "after")),
                Cell(text=_moved(moved["change"]), tone="missed" if moved["flagged"] else None) if moved else UNKNOWN,
                note="; ".join(dict.fromkeys(reasons)) or None,
            )
        )
    times = " and ".join(f"{value(reading['seconds'], 's')} {moment}" for moment, reading in readings.items())
    return Table(
        caption=f"Idle power with the engine up and no request of ours under way: {times} the trials.",
        columns=columns("scope:", "before", "after", "moved by"),
        rows=tuple(rows),
    )


def _moved(change: float) -> str:
    text = f"{change:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def _idle_watts(total: dict[str, Any] | None) -> str:
    if total is None or not total["valid"]:
        return UNKNOWN
    return f"{value(total['power_w'], 'W')} ± {value(total['power_u_w'])}"


# -- what the sources said of themselves


def _sources(sources: Sequence[SourceInfo]) -> list[Chart | Table]:
    if not sources:
        return []
    rows = tuple(
        row(
            info.name or info.kind,
            "measured" if info.measured else "declared",
            info.version or UNKNOWN,
            value(info.period_s, "s"),
            value(info.refresh_s, "s"),
            "under 1 ms" if 0 < info.clock_u_s < 1e-3 else value(info.clock_u_s, "s"),
            f"{len(info.devices):,}",
            note="; ".join(info.notes) or None,
        )
        for info in sources
    )
    blocks: list[Chart | Table] = [
        Table(
            caption="Power sources, as they were opened. Its own interval: how often what it shows changes.",
            columns=columns("source:", "basis:", "version:", "read every", "its own interval", "clock ±", "devices"),
            rows=rows,
        )
    ]
    states = [state for info in sources for state in info.states]
    # A part of a device, as its memory, answers one gauge and has no state of its own.
    told = [state for state in states if _tells(state)] or states
    if told:
        blocks.append(_states(told))
    return blocks


def _tells(state: DeviceState) -> bool:
    """Whether a device said more than which readings answer, and how often its gauge changes."""
    return dataclasses.replace(state, gauge_latch_s=None, scopes=()) != DeviceState(device=state.device)


def _states(states: Sequence[DeviceState]) -> Table:
    """Caps, clocks and what held them down, when the sources were opened."""
    told = [_said(state) for state in states]
    alike = len(set(told)) == 1 and told[0] is not None
    rows = tuple(
        row(
            Cell(text=state.device, code=True),
            value(state.power_limit_w, "W"),
            _limits(state),
            _latches(state),
            state.counter_scope or UNKNOWN,
            _clocks(state),
            value(state.temperature_c, "°C"),
            Cell(text=", ".join(state.throttled_by), tone="missed") if state.throttled_by else UNKNOWN,
            value(state.processes),
            note=None if alike else note,
        )
        for state, note in zip(states, told, strict=True)
    )
    return Table(
        caption="What the devices said of themselves when the sources were opened. Cap: the enforced power limit."
        + (f" All: {told[0]}." if alike else ""),
        columns=columns(
            *("device:", "cap", "default, highest", "latch", "counter covers:", "SM, memory clock", "temperature"),
            *("held down by:", "processes"),
        ),
        rows=rows,
        folded=len(rows) > _FOLDED,
    )


def _limits(state: DeviceState) -> str:
    if state.default_limit_w is None and state.highest_limit_w is None:
        return UNKNOWN
    return f"{value(state.default_limit_w)}, {value(state.highest_limit_w)} W"


def _latches(state: DeviceState) -> str:
    return _milliseconds((("counter", state.counter_latch_s), ("gauge", state.gauge_latch_s)))


def _milliseconds(items: Iterable[tuple[str, float | None]]) -> str:
    return ", ".join(f"{name} {value(each * 1000, 'ms')}" for name, each in items if each is not None) or UNKNOWN


def _clocks(state: DeviceState) -> str:
    if state.sm_clock_mhz is None and state.memory_clock_mhz is None:
        return UNKNOWN
    return f"{value(state.sm_clock_mhz)}, {value(state.memory_clock_mhz)} MHz"


def _said(state: DeviceState) -> str | None:
    said = [f"answers {', '.join(map(_reading_words, state.scopes))}"] if state.scopes else []
    said += [f"ECC {'on' if state.ecc else 'off'}"] if state.ecc is not None else []
    said += ["MIG on"] if state.mig else []
    said += [f"power profile {state.power_profile}"] if state.power_profile else []
    return "; ".join(said) or None


def _reading_words(scope: str) -> str:
    """`hbm power_w` as `hbm average`."""
    domain, _, kind = scope.rpartition(" ")
    return f"{domain} {_READINGS[kind]}" if kind in _READINGS else scope


# -- over time


def over_time(samples: Sequence[PowerSample], totals: Sequence[dict[str, Any]], window: Window) -> Chart | None:
    """Watts over time of each scope: from counters where there are any, else from gauges; None without a sample."""
    tones = (chart.ACCENT, chart.MISSED, chart.SECOND, chart.MET, chart.LIMIT)
    by_device: dict[str, list[PowerSample]] = {}
    for sample in samples:
        by_device.setdefault(sample.device, []).append(sample)
    lines = [
        chart.Line(
            label=f"{scope_words(total['scope'])} ({total['basis']})",
            points=tuple(scope_watts([by_device.get(device["device"], []) for device in total["devices"]])),
            tone=tones[number % len(tones)],
        )
        for number, total in enumerate(totals)
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    return Chart(
        draw=partial(
            chart.over,
            lines,
            title="Power, all devices of a scope",
            y="watts",
            span=(window.start_ns / 1e9, window.end_ns / 1e9),
        ),
        caption="Power over the trial; the measured window is shaded. Where a device has no reading, nothing is drawn.",
        says=f"Watts over time of {', '.join(line.label for line in lines)}.",
    )


def scope_watts(devices: Sequence[Sequence[PowerSample]]) -> list[tuple[float, float]]:
    """(seconds, watts) summed over devices by tick; a tick that is not half covered of every device is left out.

    The tick is two of the longest usual step between readings, or a second.
    """
    if not devices:
        return []
    steps = [_steps(samples) for samples in devices]
    usual_s = [sorted(end - start for start, end, _ in own)[len(own) // 2] for own in steps if own]
    tick_s = max([TICK_S, *(2 * each for each in usual_s)])
    ticks = [_ticks(own, tick_s) for own in steps]
    common = set(ticks[0]).intersection(*ticks[1:])
    return [((tick + 0.5) * tick_s, math.fsum(own[tick] for own in ticks)) for tick in sorted(common)]


def _steps(samples: Sequence[PowerSample]) -> list[tuple[float, float, float]]:
    """(start, end, mean watts) between neighbouring readings of a device, in seconds; a counter that falls has none."""
    known = sorted(
        ((sample.t_ns / 1e9, sample.value, sample.kind) for sample in samples if sample.value is not None),
        key=lambda reading: reading[0],
    )
    kinds = {kind for _, _, kind in known}
    used = next((kind for kind in ("energy_j", "power_w", "power_instant_w") if kind in kinds), None)
    readings = [(at, number) for at, number, kind in known if kind == used]
    found = []
    for (start, before), (end, after) in itertools.pairwise(readings):
        if end <= start or (used == "energy_j" and after < before):
            continue
        found.append((start, end, (after - before) / (end - start) if used == "energy_j" else (before + after) / 2))
    return found


def _ticks(steps: Sequence[tuple[float, float, float]], tick_s: float) -> dict[int, float]:
    """Mean watts of each tick that is at least half covered; a step over many ticks is a gap, not a reading."""
    joules: dict[int, float] = {}
    covered: dict[int, float] = {}
    for start, end, watts in steps:
        if end - start > 3 * tick_s:
            continue
        for tick in range(math.floor(start / tick_s), math.floor(end / tick_s) + 1):
            part = min(end, (tick + 1) * tick_s) - max(start, tick * tick_s)
            if part > 0:
                joules[tick] = joules.get(tick, 0.0) + watts * part
                covered[tick] = covered.get(tick, 0.0) + part
    return {tick: joules[tick] / covered[tick] for tick in joules if covered[tick] >= tick_s / 2}

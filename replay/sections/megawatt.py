"""What the number of agents is divided by: every denominator side by side, and what an agent draws and costs."""

from __future__ import annotations

from functools import partial
from typing import Any

from replay.curve_chart import Point, draw_curve
from replay.document import Cell, Chart, Section, Table, columns, row
from replay.sections.source import Source, verdict_cell
from replay.sentence import (
    UNKNOWN,
    count,
    denominator_name,
    denominator_of,
    engineers_line,
    headline_rows,
    money_line,
    share,
    value,
    watts_pm,
)

_FOLDED = 12  # rows of a table that stays open


def megawatt(source: Source) -> Section:
    """Agents per megawatt over every denominator that is known, energy, money, engineers, and the curve over N."""
    score = source.score
    points: list[str] = []
    blocks: list[Chart | Table] = []
    for result in score["results"]:
        if not result["denominators"]:
            continue
        blocks.append(_denominators(result))
        if result.get("energy"):
            blocks.append(_energy(result))
        lines = (money_line(result.get("money")), engineers_line(result.get("engineers")))
        points += [f"{result['slo']}: {line}." for line in lines if line is not None]
    blocks += _curve(score)
    powered = any(item["unit"] == "W" for result in score["results"] for item in result["denominators"])
    lead = (
        (
            "Agents per megawatt are agent-hours per megawatt-hour: one number reads as a capacity and as a bill. No "
            "row stands for another: each says what its watts cover, and what they leave out.",
        )
        if powered
        else (_why_none(score),)
    )
    return Section(
        slug="power", title="Agents per megawatt", lead=lead, points=tuple(dict.fromkeys(points)), blocks=tuple(blocks)
    )


def _why_none(score: dict[str, Any]) -> str:
    if score.get("power") == [] and not any(item["power"] for item in score["trials"]):
        return "No power source was named: nothing is given per megawatt."
    return "Nothing is given per megawatt: the reasons stand with the devices below."


def _denominators(result: dict[str, Any]) -> Table:
    rows = []
    for item in result["denominators"]:
        watts = item["unit"] == "W"
        low, high = item["agents_low"], item["agents_high"]
        by = "" if item["source"] == item["basis"] else f"By {item['source']}. "
        sensors = f" Sensors of {', '.join(item['sensors'])}." if item["sensors"] else ""
        rows.append(
            row(
                f"{'MW of ' if watts else ''}{denominator_name(item) if watts else item['per']}",
                Cell(text=item["basis"], tone=None if item["basis"] == "measured" else "quiet"),
                value(item["agents"]),
                f"{value(low)} to {value(high)}" if low is not None and high is not None else UNKNOWN,
                value(item["agents_certified"]),
                value(item["agents_goodput"]),
                watts_pm(item) if watts else f"{item['denominator']:g}",
                value(item["watts_per_agent"], "W"),
                value(item["watts_per_accelerator"], "W"),
                note=f"{by}Covers {item['scope']}.{sensors}",
            )
        )
    return Table(
        caption=f"{result['slo']}: agents per each denominator. Certified: the certified level over the power with its "
        "expanded uncertainty (k = 2) added. Measured, provisioned (by MLPerf's rules) and declared are unlike bases.",
        columns=columns(
            # On a phone the first three are what is in sight.
            *("per:", "basis:", "agents", "95 % interval", "certified", "goodput", "denominator", "W per agent"),
            "W per accelerator",
        ),
        rows=tuple(rows),
    )


def _energy(result: dict[str, Any]) -> Table:
    named = {item["id"]: denominator_of(item) for item in result["denominators"]}
    rows = tuple(
        row(
            named.get(key, key),
            value(item["joules_per_turn"], "J"),
            value(item["joules_per_output_token"], "J"),
            value(item["kwh_per_job"]),
            value(item["jobs_per_mwh"]),
            share(item["idle_share"]),
            value(item["dynamic_watts_per_agent"], "W"),
        )
        for key, item in result["energy"].items()
    )
    return Table(
        caption=f"{result['slo']}, trial {result['reference_trial']}: energy of its window over what was done in it. A "
        "job is a session played to its end. Idle share: what the same devices drew with no request under way; "
        "dynamic: what they drew above that.",
        columns=columns(
            *("power of:", "J per turn", "J per output token", "kWh per job", "jobs per MWh", "idle share"),
            "dynamic W per agent",
        ),
        rows=rows,
    )


def _curve(score: dict[str, Any]) -> list[Chart | Table]:
    """Every trial's agents per megawatt over its agents: below the knee idle power dominates."""
    curve = score.get("curve") or []
    known = {item["id"]: item for result in score["results"] for item in result["denominators"] if item["unit"] == "W"}
    tried = dict.fromkeys(name for item in curve for name in item["power"])
    names = [item["id"] for item in headline_rows([known[name] for name in tried if name in known])] or list(tried)
    if not names:
        return []
    drawn_power = [name for name in names if name not in known or known[name]["basis"] == "measured"]
    blocks: list[Chart | Table] = [_curve_table(score, curve, drawn_power or names)]
    if len({item["agents"] for item in curve}) < 2:
        return blocks
    titles = {name: denominator_of(known[name]) if name in known else name for name in names}
    points = [
        Point(
            agents=item["agents"],
            purpose=item["purpose"],
            verdict=item["verdicts"][0] if item["verdicts"] else "met",
            of=titles[name],
            agents_per_megawatt=item["power"][name]["agents_per_megawatt"],
            u_relative=(item["power"][name]["u_w"] or 0.0) / item["power"][name]["power_w"],
        )
        for name in names
        for item in curve
        if name in item["power"] and item["power"][name]["power_w"]
    ]
    first = score["results"][0] if score["results"] else None
    drawn = Chart(
        draw=partial(
            draw_curve,
            points,
            list(titles.values()),
            estimate=first["agents"] if first is not None else None,
            certified=first["certified"] if first is not None else None,
        ),
        caption="Agents per megawatt in every trial. A trial that missed the level holds no capacity: its point says "
        "what its agents drew, no more." + _upright(first),
        says=f"{count(len(curve), 'trial')} between {min(item['agents'] for item in curve)} and "
        f"{max(item['agents'] for item in curve)} agents, each over the power of {', '.join(titles.values())}.",
    )
    return [drawn, *blocks]


def _upright(result: dict[str, Any] | None) -> str:
    """What the upright lines of the curve stand for."""
    if result is None or not result["agents"]:
        return ""
    return f" Upright line: the estimate{'; dashed: the certified level' if result['certified'] else ''}."


def _curve_table(score: dict[str, Any], curve: list[dict[str, Any]], names: list[str]) -> Table:
    known = {item["id"]: denominator_of(item) for result in score["results"] for item in result["denominators"]}
    heads = [head for name in names for head in (f"W, {known.get(name, name)}", "agents per MW", "W per agent")]
    slos = [f"{slo['name']}:" for slo in score["slos"]]
    rows = []
    for item in sorted(curve, key=lambda item: (item["agents"], item["trial"])):
        cells = []
        for name in names:
            power = item["power"].get(name)
            cells += (
                [
                    f"{value(power['power_w'])} ± {value(power['u_w'])}" if power["u_w"] else value(power["power_w"]),
                    value(power["agents_per_megawatt"]),
                    value(power["watts_per_agent"]),
                ]
                if power is not None
                else [UNKNOWN] * 3
            )
        rows.append(
            row(str(item["trial"]), str(item["agents"]), *(verdict_cell(word) for word in item["verdicts"]), *cells)
        )
    return Table(
        caption="Every trial's agents over its power, by level: ± is the expanded uncertainty (k = 2).",
        columns=columns("trial", "agents", *slos, *heads),
        rows=tuple(rows),
        folded=len(rows) > _FOLDED,
    )

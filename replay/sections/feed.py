"""What a feed of so many watts holds: whole nodes, and the agents and engineers that they serve."""

from __future__ import annotations

import math
import re
from typing import Any

from replay.document import Section, Table, columns, row
from replay.nodes import system_under_feed
from replay.provisioned import FeedFit, ProvisionedFault
from replay.sentence import UNKNOWN, count, value
from replay.system import system_from_json

_UNITS = {"W": 1.0, "KW": 1e3, "MW": 1e6, "GW": 1e9}


def parse_feed(text: str) -> float:
    """`1MW`, `250kW`, `800000W` in watts; raises ValueError with a sentence."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMG]?W)", text.strip())
    watts = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not (math.isfinite(watts) and watts > 0):
        raise ValueError(f"--feed {text!r} is no power; write for example --feed 1MW, 250kW or 800000W")
    return watts


def under_feed(score: dict[str, Any], watts: float) -> dict[str, Any]:
    """What fits, as JSON; `why_not` where the system file does not say how much a node is built to draw.

    A feed is sized by what is provisioned, never by what was drawn: it must carry the load that nobody measured, too.
    """
    nothing: dict[str, Any] = {"feed_w": watts, "fit": None, "why_not": None, "results": []}
    try:
        fit = system_under_feed(system_from_json(score["system"]), watts)
    except ProvisionedFault as fault:
        return nothing | {"why_not": str(fault)}
    if fit is None:
        return nothing | {
            "why_not": "the system file names no system_power.json, and power that was drawn does not size a feed: "
            'write provisioned = "system_power.json" into it, and score again'
        }
    return nothing | {"fit": _fit(fit), "results": [_result(result, fit) for result in score["results"]]}


def _fit(fit: FeedFit) -> dict[str, Any]:
    return {
        "unit": fit.unit,
        "unit_w": fit.unit_w,
        "units": fit.units,
        "used_w": fit.used_w,
        "systems": fit.systems,
        "accelerators": fit.accelerators,
        "pue": fit.pue,
    }


def _result(result: dict[str, Any], fit: FeedFit) -> dict[str, Any]:
    """Of a single run too: its agents are what was asked, and its verdict says whether they were held."""
    held = result["verdict"] == "met"
    engineers, interval = result.get("engineers"), result["interval"]

    def times(number: float | None) -> float | None:
        return number * fit.systems if held and number is not None else None

    return {
        "slo": result["slo"],
        "verdict": result["verdict"],
        "agents": times(result["agents"]),
        "agents_low": times(interval["low"] if interval else None),
        "agents_high": times(interval["high"] if interval else None),
        "agents_certified": times(result["certified"]),
        "engineers": times(engineers["engineers"] if engineers else None),
        "engineers_certified": times(engineers["certified"] if engineers else None),
    }


def feed(found: dict[str, Any]) -> Section:
    """The same in words."""
    watts, fit = power_words(found["feed_w"]), found["fit"]
    if fit is None:
        return Section(
            slug="feed",
            title=f"Under a feed of {watts}",
            lead=(f"Not known, because {found['why_not']}.",),
        )
    cooling = (
        f"with cooling and conversion at a design PUE of {fit['pue']:g}"
        if fit["pue"] is not None
        else "for the racks alone: no design PUE is stated, so neither cooling nor conversion is in it"
    )
    holds = f", {count(fit['accelerators'], 'accelerator')}" if fit["accelerators"] is not None else ""
    lead = (
        f"{watts} hold {count(fit['units'], 'whole ' + fit['unit'])}{holds}, at {power_words(fit['unit_w'])} "
        f"each as provisioned, {cooling}; {power_words(found['feed_w'] - fit['used_w'])} are left over.",
        f"That is {value(fit['systems'])} times the system that was scored. Agents are multiplied by that: replicas "
        "side by side, with a router that was not measured."
        if fit["units"]
        else f"It is too small for one {fit['unit']}.",
    )
    rows = tuple(
        row(
            item["slo"],
            value(item["agents"]),
            f"{value(item['agents_low'])} to {value(item['agents_high'])}"
            if item["agents_low"] is not None and item["agents_high"] is not None
            else UNKNOWN,
            value(item["agents_certified"]),
            value(item["engineers"]),
            value(item["engineers_certified"]),
        )
        for item in found["results"]
    )
    table = Table(
        caption=f"Agents and engineers under {watts}.",
        columns=columns("service level:", "agents", "95 % interval", "certified", "engineers", "certified engineers"),
        rows=rows,
    )
    return Section(slug="feed", title=f"Under a feed of {watts}", lead=lead, blocks=(table,) if rows else ())


def power_words(watts: float) -> str:
    """`1 MW`, `12.5 kW`, `800 W`."""
    for unit, factor in (("MW", 1e6), ("kW", 1e3)):
        if abs(watts) >= factor:
            return f"{watts / factor:,.4g} {unit}"
    return f"{watts:,.4g} W"

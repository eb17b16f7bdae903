"""Numbers and verdicts in words: the same ones in the terminal, on the page and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from replay.document import Finding, Tone
from replay.slo import WORDS

UNKNOWN = "–"
NEVER = "∞"  # of a time: no first token ever came
DENOMINATORS = {
    "accelerator_count": "accelerators",
    "accelerator": "accelerators",
    "accelerator_engaged": "engaged accelerators alone",
    "module": "modules",
    "cpu_package": "CPU packages",
    "node_or_rack": "nodes or racks",
    "provisioned": "provisioned power",
    "facility_measured": "the facility, from what was drawn",
    "facility_provisioned": "the facility, as provisioned",
    "declared": "a stated nameplate",
}
_HEADLINE = ("accelerator", "node_or_rack", "provisioned", "facility_measured", "facility_provisioned")


def value(number: float | None, unit: str = "") -> str:
    """A number with its unit, or a dash where it is unknown."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    text = f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"
    return f"{text} {unit}".rstrip()


def share(number: float | None) -> str:
    """A share in percent, or a dash where it is unknown."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    return f"{number:.0%}" if number in (0, 1) or 0.1 <= number <= 0.9 else f"{number:.1%}"


def short(item: object, most: int = 80) -> str:
    """A value as JSON, cut where it is longer than `most` characters."""
    text = msgspec.json.encode(item).decode()
    return text if len(text) <= most else text[: most - 3] + "…"


def plain(item: Any) -> str:
    """Any JSON value in a few words."""
    if item is None or item in ("", [], {}):
        return UNKNOWN
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int):
        return f"{item:,}" if abs(item) >= 10_000 else str(item)
    if isinstance(item, float):
        return value(item)
    if isinstance(item, list):
        return ", ".join(plain(each) for each in item[:8]) + (f", … {len(item)} in all" if len(item) > 8 else "")
    if isinstance(item, dict):
        return "; ".join(f"{name_of(key)} {plain(each)}" for key, each in item.items())
    return str(item)


def name_of(field: str) -> str:
    """A field's name in words, with its unit: `power cap (W)`."""
    for suffix, unit in (("_tok_s", "tok/s"), ("_per_s", "per second"), ("_ms", "ms"), ("_s", "s"), ("_w", "W")):
        if field.endswith(suffix):
            return f"{field.removesuffix(suffix).replace('_', ' ')} ({unit})"
    return field.replace("_", " ")


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def term_name(term: dict[str, Any]) -> str:
    """`P95 time to first token`, and whose."""
    words, _ = WORDS[term["quantity"]]
    return f"P{term['percentile']:g} {words}" + (" of each agent" if term["scope"] == "agent" else "")


def term_limit(term: dict[str, Any]) -> str:
    """`at most 10 s`."""
    _, unit = WORDS[term["quantity"]]
    side = "at least" if term["quantity"].endswith("tok_s") else "at most"
    return f"{side} {term['limit']:g} {unit}".rstrip()


def slo_text(slo: dict[str, Any]) -> str:
    """A service level's terms in one line."""
    terms = ", ".join(f"{term_name(term)} {term_limit(term)}" for term in slo["terms"])
    if any(term["scope"] == "agent" for term in slo["terms"]) and slo["agent_share"] < 1:
        terms += f" (for {share(slo['agent_share'])} of the agents)"
    return terms


def observed(result: dict[str, Any]) -> str:
    """A term's observed value; a first token that never came is infinite, not unknown."""
    if result.get("infinite"):
        return NEVER
    return value(result["observed"], WORDS[result["term"]["quantity"]][1])


def times_limit(margin: float | None) -> str:
    """A margin ln(observed / limit), signed so that more than 0 fails, as the factor by which the limit is used."""
    return UNKNOWN if margin is None or not math.isfinite(margin) else f"{math.exp(margin):.2f}×"


def findings(score: dict[str, Any]) -> tuple[Finding, ...]:
    """One per service level, in order; of a run without one, that it ran."""
    if score["results"]:
        return tuple(finding(score, result) for result in score["results"])
    agents, tail = score["agents"], f"no service level was asked; {_foot(score)}"
    if score["verdict"] == "invalid":
        claim = f"{_agents(agents)} driven, and the numbers may not be believed".capitalize()
        return (Finding(claim=claim, detail=f"{_why(score, 'no trial was run')}; {_kind(score)}", tone="invalid"),)
    return (Finding(claim=f"{_agents(agents)} driven", detail=tail, tone="met"),)


def finding(score: dict[str, Any], result: dict[str, Any]) -> Finding:
    """The verdict sentence of one service level: estimate, interval, certified, power, class, methodology."""
    name, verdict = result["slo"], result["verdict"]
    foot = _foot(score, result)
    if score["kind"] == "run":
        agents, words = result["agents"], {"met": "hold", "missed": "miss"}.get(verdict)
        if words is None:
            why = _why(result, "its numbers may not be believed")
            return Finding(claim=f"No verdict on {name}", detail=f"one trial, {why}; {foot}", tone=_tone(verdict))
        detail = f"one trial, not searched; {_goodput(result)}{foot}"
        return Finding(claim=f"{_agents(agents)} {words} {name}", detail=detail, tone=_tone(verdict))
    outcome = (result["search"] or {}).get("outcome")
    kind = _kind(score)
    if outcome == "none_holds":
        return Finding(claim=f"Not even one agent holds {name}", detail=f"{_why(result, '')}; {kind}", tone="missed")
    if verdict == "met" and result["agents"] is not None:
        whole = result["whole"] if result["whole"] is not None else math.floor(result["agents"])
        least = "At least " if outcome == "maximum" else ""
        claim = f"{least}{_agents(whole)} {'hold' if whole != 1 else 'holds'} {name}"
        detail = f"{_estimate(result, outcome)}; {_certified(result)}; {_goodput(result)}{foot}"
        return Finding(claim=claim, detail=detail, tone="met")
    claim = f"{'Undecided' if verdict == 'undecided' else 'No score'} on {name}"
    return Finding(claim=claim, detail=f"{_why(result, 'the search found no answer')}; {kind}", tone=_tone(verdict))


def _tone(verdict: str) -> Tone:
    tones: dict[str, Tone] = {"met": "met", "missed": "missed", "undecided": "undecided"}
    return tones.get(verdict, "invalid")


def _agents(number: float | None) -> str:
    return "no agents" if number is None else count(int(number), "agent")


def _estimate(result: dict[str, Any], outcome: str | None) -> str:
    interval = result["interval"]
    estimate = f"estimate {result['agents']:.3g}" if outcome != "maximum" else "the search ended at its maximum"
    if interval is None:
        return f"{estimate}, no interval"
    return f"{estimate}, {interval['level']:.0%} interval {interval['low']:.3g} to {interval['high']:.3g}".replace(
        "95% ", "95 % "
    )


def _certified(result: dict[str, Any]) -> str:
    return "nothing certified" if result["certified"] is None else f"{result['certified']} certified"


def _goodput(result: dict[str, Any]) -> str:
    agents, trial = result.get("goodput_agents"), result.get("goodput_trial")
    if agents is None or trial is None:
        return ""
    return f"{count(agents, 'agent holds', 'agents hold')} it on {'its' if agents == 1 else 'their'} own requests; "


def _foot(score: dict[str, Any], result: dict[str, Any] | None = None) -> str:
    rows = _one_facility(headline_rows((result or {}).get("denominators", ())))
    power = ", ".join(
        f"{row['agents']:,.0f}{' agents per MW' if place == 0 else ''} of {denominator_of(row)}"
        for place, row in enumerate(rows)
    )
    if not power:
        bases = sorted({total["basis"] for trial in score["trials"] for total in trial["power"] if total["valid"]})
        power = f"power {' and '.join(bases)}" if bases else "no power"
    return f"{power}; {_kind(score)}"


def headline_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is said per megawatt in one breath: accelerators, nodes, provisioned, facility; where none is known, all."""
    watts = [row for row in rows if row["unit"] == "W"]
    return [row for name in _HEADLINE for row in watts if row["id"] == name] or watts


def _one_facility(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    facilities = [row for row in rows if row["id"].startswith("facility")]
    return [row for row in rows if row not in facilities[1:]]


def denominator_name(row: dict[str, Any]) -> str:
    """What the agents are divided by, in two or three words."""
    if row["id"] == "accelerator_count" and row["denominator"] == 1:
        return str(row["per"])
    if row["id"] == "facility_measured" and row["basis"] == "declared":
        return f"{DENOMINATORS[row['id']]} and a stated PUE"
    return str(row["unit"]) if row["id"] == "accelerator_count" else DENOMINATORS.get(row["id"], str(row["id"]))


def denominator_of(row: dict[str, Any]) -> str:
    """The same with its basis, which is never left out: `accelerators (measured)`."""
    name = denominator_name(row)
    return name if row["id"] == row["basis"] else f"{name} ({row['basis']})"


def _kind(score: dict[str, Any]) -> str:
    kind = f"class {score['class']}; " if score["class"] else ""
    return f"{kind}methodology {score['methodology_version']}"


def _why(result: dict[str, Any], otherwise: str) -> str:
    return result["reasons"][0] if result["reasons"] else otherwise


def denominator_line(row: dict[str, Any]) -> str:
    """One ratio with its interval and its denominator: what that is, whether it was measured, what it leaves out."""
    low, high = row.get("agents_low"), row.get("agents_high")
    between = f" ({_ratio(low)} to {_ratio(high)})" if low is not None and high is not None else ""
    certified = row.get("agents_certified")
    sure = f", {_ratio(certified)} certified" if certified is not None else ""
    if row["unit"] != "W":
        basis = f"{row['denominator']:g} {denominator_name(row)}, {row['basis']}"
        return f"{_ratio(row['agents'])} agents per {row['per']}{between}{sure} ({basis})"
    each = row.get("watts_per_agent")
    watts = f", {value(each, 'W')} per agent" if each is not None else ""
    return (
        f"{row['agents']:,.0f} agents per MW of {denominator_name(row)}{between}{sure} ({row['basis']}"
        f"{'' if row['source'] == row['basis'] else ' by ' + row['source']}: {watts_pm(row)}{watts}; {row['scope']})"
    )


def energy_line(result: dict[str, Any]) -> str | None:
    """What a turn, a token and a job cost in energy, over the first denominator that stands for the result."""
    rows = [row for row in headline_rows(result["denominators"]) if row["id"] in result["energy"]]
    if not rows:
        return None
    item = result["energy"][rows[0]["id"]]
    said = [
        f"{value(item[key], unit)} {words}".replace("  ", " ")
        for key, unit, words in (
            ("joules_per_turn", "J", "per turn"),
            ("joules_per_output_token", "J", "per output token"),
            ("kwh_per_job", "kWh", "per job"),
            ("jobs_per_mwh", "jobs", "per MWh"),
            ("dynamic_watts_per_agent", "W", "above idle per agent"),
        )
        if item[key] is not None
    ]
    return f"{', '.join(said)}, over {denominator_of(rows[0])}" if said else None


def money_line(money: dict[str, Any] | None) -> str | None:
    """What an agent and a job cost, with what that rests on."""
    if money is None:
        return None
    price = ", ".join(
        f"{value(money[key], money['currency'])} {words}"
        for key, words in (("per_agent_hour", "per agent-hour"), ("per_job", "per job"))
        if money[key] is not None
    )
    energy = None
    if money["energy_per_agent_hour"] is not None:
        # Whether a stated price holds its energy is the user's to know: neither is added to the other.
        said = f"{value(money['energy_per_agent_hour'], money['currency'])} of energy per agent-hour"
        energy = f"{said}, which is not added to that" if price else said
    words = "; ".join(text for text in (price, energy) if text)
    return f"{words} ({money['basis']})" if words else None


def engineers_line(found: dict[str, Any] | None) -> str | None:
    """How many engineers the agents serve."""
    if found is None:
        return None
    sure = f", {value(found['certified'])} certified" if found["certified"] is not None else ""
    low = f" (at least {value(found['low'])} by the interval)" if found["low"] is not None else ""
    return (
        f"serves {value(found['engineers'])} engineers{low}{sure}, each with "
        f"{value(found['agents_per_engineer'])} agents at work"
    )


def watts_pm(row: dict[str, Any]) -> str:
    """The watts of a denominator with their expanded uncertainty (k = 2), as far as it has one."""
    watts, expanded = f"{row['denominator']:,.1f} W", 2 * math.hypot(row["u_gain"], row["u_rest"])
    return f"{watts} ± {value(expanded, 'W')}, k = 2" if expanded else watts


def _ratio(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:,.3g}"

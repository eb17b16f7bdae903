"""The answer and how it was found: attainment of every term, and every trial that was run."""

from __future__ import annotations

from functools import partial
from typing import Any

from replay.document import Cell, Chart, Row, Section, Table, columns, row
from replay.failure import FAILED_MOST, failure_margin
from replay.labels import scope_words
from replay.search_chart import Answer, Point, draw_search
from replay.sections.source import Source, verdict_cell
from replay.sentence import (
    NEVER,
    UNKNOWN,
    count,
    denominator_of,
    finding,
    headline_rows,
    observed,
    share,
    slo_text,
    term_limit,
    term_name,
    times_limit,
    value,
)

_PURPOSES = {
    "bracket": "bracket",
    "bisect": "bisect",
    "confirm": "confirm",
    "holdout": "hold out",
    "run": "run",
}


def at_a_glance(score: dict[str, Any]) -> Table | None:
    """All service levels of the set, one line each."""
    if not score["results"]:
        return None
    rows = []
    slos = {slo["name"]: slo for slo in score["slos"]}
    for result in score["results"]:
        interval = result["interval"]
        unit = next((item for item in result["denominators"] if item["unit"] != "W"), None)
        watts = headline_rows(result["denominators"])
        rows.append(
            row(
                result["slo"],
                verdict_cell(result["verdict"]),
                value(result["agents"]),
                f"{interval['low']:.3g} to {interval['high']:.3g}" if interval else UNKNOWN,
                value(result["certified"]),
                value(result["goodput_agents"]),
                f"{unit['agents']:,.3g}" if unit else UNKNOWN,
                "; ".join(f"{item['agents']:,.0f} of {denominator_of(item)}" for item in watts) or UNKNOWN,
                note=_beneath(score, slos[result["slo"]], result),
            )
        )
    return Table(
        caption="Each service level that was asked. Agents: the estimate by the pooled rule. Certified: the level that "
        "a holdout trial confirmed. Goodput: agents that hold every limit on their own requests.",
        columns=columns(
            *("service level:", "verdict:", "agents", "95 % interval", "certified", "goodput"),
            *("per accelerator", "per MW:"),
        ),
        rows=tuple(rows),
    )


def _beneath(score: dict[str, Any], slo: dict[str, Any], result: dict[str, Any]) -> str:
    said = [f"version {slo['version']}: {slo_text(slo)}"]
    said += result["reasons"] if (result["search"] or {}).get("outcome") != "found" else []
    if score["kind"] == "score" and result["agents"] is not None:
        why = result["interval_why_not"]
        said += [f"no interval: {why}"] if why and result["interval"] is None else []
        why = result["certified_why_not"]
        said += [f"nothing certified: {why}"] if why and result["certified"] is None else []
    return "; ".join(said) + "."


def attainment(source: Source) -> Section | None:
    """Every term at the reference trial, pooled and of the agents by themselves."""
    score, blocks, points = source.score, [], []
    items = {item["trial"]: item for item in score["trials"]}
    for index, result in enumerate(score["results"]):
        item = items.get(result["reference_trial"]) or source.shown
        if item is None:
            continue
        held = item["measure"]["slos"][index]
        intervals = (result.get("percentiles") or {}).get("terms") or [None] * len(held["terms"])
        rows = tuple(
            row(
                term_name(term["term"]),
                term_limit(term["term"]),
                observed(term),
                _between(interval),
                times_limit(term["margin"]),
                f"{term['samples']:,}",
                _holds(term),
            )
            for term, interval in zip(held["terms"], intervals, strict=True)
        )
        rows = (*rows, _failed(item["measure"]))
        goodput = f"{held['goodput_agents']} of {count(item['agents'], 'agent')} hold every limit on their own requests"
        blocks.append(
            Table(
                caption=f"{result['slo']} at {count(item['agents'], 'agent')} (trial {item['trial']}). {goodput}.",
                columns=columns("term:", "limit:", "observed", "95 % of draws", "of the limit", "samples", "holds:"),
                rows=rows,
            )
        )
        if held.get("undecided_matters"):
            points.append(
                f"{result['slo']}: requests that were still waiting within the limit when trial {item['trial']} ended "
                "matter: had all of them failed, the level would have missed."
            )
    if not blocks:
        return None
    lead = (
        "Of the limit: below 1× a term holds. 95 % of draws: where the percentile lies when the agents of this trial "
        "are "
        "drawn again and again; no interval of the number of agents. Pooled terms look at all requests of the window "
        "together; terms of each "
        "agent and the goodput count look at every agent by itself.",
    )
    return Section(
        slug="attainment",
        title="Are the limits held?",
        lead=lead,
        points=tuple(points),
        blocks=tuple(blocks),
    )


def _failed(numbers: dict[str, Any]) -> Row:
    """The share of failed requests, which every service level limits alike."""
    outcomes, requests = numbers["outcomes"], numbers["requests"]
    failed = requests - outcomes.get("ok", 0) - outcomes.get("stopped", 0)
    part = failed / requests if requests else None
    beyond = failure_margin(failed, requests) is not None
    return row(
        *("failed requests", f"at most {FAILED_MOST:.0%}", share(part), UNKNOWN),
        *(UNKNOWN if part is None else f"{part / FAILED_MOST:.2f}×", f"{requests:,}"),
        Cell(text="no", tone="missed") if beyond else Cell(text="yes", tone="met"),
    )


def _between(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return UNKNOWN
    low, high = (NEVER if end is None else value(end) for end in (interval["low"], interval["high"]))
    return f"{low} to {high}"


def _holds(term: dict[str, Any]) -> Cell:
    if term.get("infinite"):
        return Cell(text="no", tone="missed")
    if term["margin"] is None:
        return Cell(text="not known", tone="invalid")
    return Cell(text="yes", tone="met") if term["margin"] <= 0 else Cell(text="no", tone="missed")


def search(source: Source) -> Section:
    """S(N): every trial, failed and void ones too, and what the fit makes of them."""
    score, charts, points = source.score, [], []
    for index, result in enumerate(score["results"]):
        if score["kind"] != "score":
            break
        drawn = [_point(item, index) for item in score["trials"]]
        answer = _answer(result)
        if drawn:
            charts.append(
                Chart(
                    draw=partial(draw_search, drawn, answer),
                    caption=f"{result['slo']}: how far the worst term stood from its limit in every trial.",
                    says=f"{count(len(drawn), 'trial')} between {min(point.agents for point in drawn)} and "
                    f"{max(point.agents for point in drawn)} agents. {finding(score, result).sentence}",
                )
            )
        points += _fit_points(result)
    sampled = len({item["agents"] for item in score["trials"]})
    lead = []
    if score["kind"] == "score":
        lead.append(
            f"{count(len(score['trials']), 'trial')} at {count(sampled, 'level')}. The search doubles until a level "
            "fails, "
            "bisects, then tries levels around the answer again with fresh draws of sessions and start offsets."
        )
        if not score.get("restart", {}).get("command_given"):
            lead.append("The server was not restarted between trials: the interval excludes restart variance.")
        else:
            lead.append(f"The server was restarted {count(score['restart']['count'], 'time')} between confirmations.")
    return Section(
        slug="trials",
        title="Every trial",
        lead=tuple(lead),
        points=tuple(points),
        blocks=(*charts, _trial_table(source)),
    )


def _point(item: dict[str, Any], index: int) -> Point:
    slos = item["measure"]["slos"]
    result = slos[index] if index < len(slos) else None
    margin = result["margin"] if result else None
    if result and margin is None and any(term.get("infinite") for term in result["terms"]):
        margin = float("inf")
    return Point(
        trial=item["trial"],
        agents=item["agents"],
        purpose=item["purpose"],
        verdict=result["verdict"] if result else "invalid",
        margin=margin,
    )


def _answer(result: dict[str, Any]) -> Answer:
    fit, interval = (result["search"] or {}).get("fit") or {}, result["interval"] or {}
    return Answer(
        root=result["agents"],
        low=interval.get("low"),
        high=interval.get("high"),
        certified=result["certified"],
        slope=fit.get("slope"),
        intercept=fit.get("intercept"),
    )


def _fit_points(result: dict[str, Any]) -> list[str]:
    search = result["search"] or {}
    points = [f"{result['slo']}: {search['why']}"] if search.get("why") else []
    fit = search.get("fit")
    if fit:
        points.append(
            f"{result['slo']}: the margin was fitted over the logarithm of the agents in "
            f"{count(len(fit['trials']), 'trial')} ({', '.join(str(trial) for trial in fit['trials'])}); "
            f"slope {fit['slope']:.3g}, residual standard deviation {fit['residual_sd']:.3g}"
            + (f", Fieller's g {fit['g']:.3g}." if fit.get("g") is not None else ".")
        )
    return points


def _trial_table(source: Source) -> Table:
    score = source.score
    several = len(score["results"]) > 1
    names = [result["slo"] for result in score["results"]]
    rows = [_trial_row(item, names, marked=item is source.shown) for item in score["trials"]]
    limits = [f"{name} (÷ limit):" for name in names] if several else ["verdict:", "÷ limit"]
    heads = ["trial", "agents", "purpose:", *(limits if names else ["verdict:"])]
    return Table(
        caption="All trials in the order in which they ran. The numbers of the shaded one are shown below. "
        f"{NEVER}: so many requests never got a first token that the percentile is infinite.",
        columns=columns(
            *heads,
            *(
                "requests",
                "failed",
                "speed P25",
                "speed P50",
                "TTFT P50",
                "TTFT P95",
                "waits",
                "cached",
                "output tok/s",
            ),
            *("W, of:",),
        ),
        rows=tuple(rows),
    )


def _trial_row(item: dict[str, Any], names: list[str], *, marked: bool) -> Row:
    numbers = item["measure"]
    outcomes = numbers["outcomes"]
    purpose = _PURPOSES.get(item["purpose"], item["purpose"]) + (f"\u00a0{item['draw']}" if item["draw"] else "")
    if len(names) > 1:
        verdicts = [
            Cell(text=f"{held['verdict']}\u00a0{_factor(held)}", tone=verdict_cell(held["verdict"]).tone)
            for held in numbers["slos"]
        ]
    elif names:
        held = numbers["slos"][0]
        verdicts = [verdict_cell(held["verdict"]), Cell(text=_factor(held))]
    else:
        verdicts = [verdict_cell(numbers["verdict"])]
    watts = [f"{value(total['power_w'])} {scope_words(total['scope'])}" for total in item["power"] if total["valid"]]
    reasons = dict.fromkeys([*numbers["reasons"], *(reason for held in numbers["slos"] for reason in held["reasons"])])
    return row(
        str(item["trial"]),
        str(item["agents"]),
        purpose,
        *verdicts,
        f"{numbers['requests']:,}",
        f"{numbers['requests'] - outcomes.get('ok', 0) - outcomes.get('stopped', 0):,}",
        percentile(numbers["speed_tok_s"], "p25"),
        percentile(numbers["speed_tok_s"], "p50"),
        percentile(numbers["ttft_s"], "p50", "s"),
        percentile(numbers["ttft_s"], "p95", "s"),
        share(numbers["duty_cycle"]),
        share(numbers["cached_share"]),
        value(numbers["output_tok_per_s"]),
        ", ".join(watts) or UNKNOWN,
        note="; ".join(reasons) or None,
        marked=marked,
    )


def percentile(spread: dict[str, Any], name: str, unit: str = "") -> str:
    """A percentile of a spread; infinite where values are, but this one is not finite."""
    if spread[name] is None and spread["infinite"]:
        return NEVER
    return value(spread[name], unit)


def _factor(held: dict[str, Any]) -> str:
    if held["margin"] is None and any(term.get("infinite") for term in held["terms"]):
        return f"{NEVER}×"
    return times_limit(held["margin"])

"""A score in a few lines of text."""

from __future__ import annotations

from typing import Any


def summary_lines(score: dict[str, Any]) -> list[str]:
    """The number, what it rests on, and what must stand beside it."""
    lines = [headline(score)]
    slo = score["slo"]
    if slo is not None:
        limits = slo["limits"]
        lines.append(
            f"service level {slo['name']}: P25 output speed at least {limits['p25_output_tok_s']:g} tok/s, "
            f"P95 time to first token at most {limits['p95_ttft_s']:g} s"
        )
    lines += [f"  because {reason}" for reason in score["reasons"]]
    for row in score["denominators"]:
        lines.append("  " + denominator_line(row))
    winner = next((item for item in score["trials"] if item["trial"] == score["winning_trial"]), None)
    if winner is not None:
        numbers = winner["measure"]
        lines.append(
            f"  in {numbers['window_s']:.0f} s: {numbers['requests']} requests, "
            f"speed P25 {value(numbers['speed_tok_s']['p25'], 'tok/s')}, "
            f"first token P50 {value(numbers['ttft_s']['p50'], 's')} P95 {value(numbers['ttft_s']['p95'], 's')}, "
            f"duty cycle {share(numbers['duty_cycle'])}, "
            f"cached {share(numbers['cached_share'])} of at best {share(numbers['ideal_cached_share'])}"
        )
    lines.append(f"  delays {score['policies']['delay']}; methodology {score['methodology_version']}")
    lines += [f"  ! {label}" for label in score["labels"]]
    lines += [f"  ! not met: {rule}" for rule in score["protocol_unmet"]]
    return lines


def headline(score: dict[str, Any]) -> str:
    """One sentence with the number."""
    agents, verdict = score["agents"], score["verdict"]
    if score["kind"] == "run":
        return f"{agents} agents: {verdict}" if score["slo"] is not None else f"{agents} agents driven"
    if agents is None:
        return f"no score: {verdict}"
    if verdict == "invalid":
        return f"no score: the search ended early; {agents} agents held both limits"
    if agents == 0:
        return "0 agents: not even one agent holds both limits"
    more = "at least " if score["search"]["reason"] == "maximum" else ""
    goodput = score["agents_goodput"]
    return f"{more}{agents} agents (pooled rule); {goodput} of them hold both limits each"


def denominator_line(row: dict[str, Any]) -> str:
    """One ratio with its denominator."""
    if row["unit"] != "W":
        unit = row["per"] if row["denominator"] == 1 else row["unit"]
        return f"{row['agents']:,.3g} agents per {row['per']} ({row['denominator']} {unit}, {row['basis']})"
    return (
        f"{row['agents']:,.0f} agents per MW ({row['basis']}, {row['source']}: {row['denominator']:,.1f} W, "
        f"{row['watts_per_agent']:,.3g} W per agent; {row['scope']})"
    )


def value(number: float | None, unit: str) -> str:
    """A number with its unit, or a dash where it is unknown."""
    if number is None:
        return "–"
    return f"{number:,.0f} {unit}" if abs(number) >= 100 else f"{number:.3g} {unit}"


def share(number: float | None) -> str:
    """A share in percent, or a dash where it is unknown."""
    return "–" if number is None else f"{number:.0%}"

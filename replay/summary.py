"""A score in a few lines of text: what is printed when a run ends."""

from __future__ import annotations

from typing import Any

from replay.sentence import (
    count,
    denominator_line,
    energy_line,
    engineers_line,
    findings,
    money_line,
    share,
    value,
)

REASONS_MOST = 3  # of one service level
LABELS_MOST = 6


def summary_lines(score: dict[str, Any]) -> list[str]:
    """The verdicts, why, what they are divided by, the numbers behind them, and the weightiest labels."""
    lines = []
    for number, finding in enumerate(findings(score)):
        result = score["results"][number] if score["results"] else score
        lines.append(finding.sentence)
        reasons = [reason for reason in dict.fromkeys(result["reasons"]) if reason not in finding.detail]
        lines += [f"  because {reason}" for reason in reasons[:REASONS_MOST]]
        if len(reasons) > REASONS_MOST:
            lines.append(f"  … and {len(reasons) - REASONS_MOST} more reasons, in the report")
        lines += ["  " + denominator_line(row) for row in result.get("denominators", ())]
        if result.get("denominators"):
            said = (energy_line(result), money_line(result["money"]), engineers_line(result["engineers"]))
            lines += ["  " + line for line in said if line is not None]
    items = {item["trial"]: item for item in score["trials"]}
    reference = next((result["reference_trial"] for result in score["results"] if result["reference_trial"]), None)
    shown = items.get(reference) if reference is not None else next(reversed(items.values()), None)
    if shown is not None:
        lines.append("  " + trial_line(shown))
    labels = list(dict.fromkeys(score["labels"]))
    lines += [f"  ! {label}" for label in labels[:LABELS_MOST]]
    if len(labels) > LABELS_MOST:
        lines.append(f"  ! … and {len(labels) - LABELS_MOST} more, in the report")
    return lines


def trial_line(item: dict[str, Any]) -> str:
    """The numbers of one trial in one line."""
    numbers = item["measure"]
    return (
        f"trial {item['trial']}, {count(item['agents'], 'agent')}, {numbers['window_s']:.0f} s: "
        f"{count(numbers['requests'], 'request')}, "
        f"speed P25 {value(numbers['speed_tok_s']['p25'], 'tok/s')}, "
        f"first token P50 {value(numbers['ttft_s']['p50'], 's')} P95 {value(numbers['ttft_s']['p95'], 's')}, "
        f"agents wait {share(numbers['duty_cycle'])} of the time, "
        f"cached {share(numbers['cached_share'])} of at best {share(numbers['ideal_cached_share'])}"
    )

"""A run as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

from capture.atomic import write_atomically
from replay import chart
from replay.judge import read_score
from replay.measure import judge
from replay.runfolder import RunFolder
from replay.slo import slo_from_json
from replay.summary import denominator_line, headline, share, value
from replay.trial import Trial, read_trial
from replay.verify import verify
from replay.window import in_window

NOT_SAID = (
    "Whether the answers are any good: they are drained and thrown away, and tools are a wait, not a program.",
    "How other traces, other delays or another length policy would do: results under unlike policies do not compare.",
    "The power of anything outside the named scope: a megawatt here is not a facility's megawatt.",
    "How sure the number of agents is: one trial per level was run, and the next run may pass one agent more or less.",
)


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Writes report.html and returns its path. Raises RunFault, TrialFault or ValueError for what is missing."""
    path = out or folder.path / "report.html"
    write_atomically(path, render(folder).encode())
    return path


def render(folder: RunFolder) -> str:
    """The page's text."""
    score = read_score(folder.score_path)
    differences = verify(folder)
    trials = {number: read_trial(folder.trial_path(number)) for number in folder.trial_numbers()}
    slo = slo_from_json(score["slo"]) if score["slo"] is not None else None
    limits = slo.limits if slo is not None else None
    levels = []
    for item in sorted(score["trials"], key=lambda item: item["agents"]):
        trial = trials[item["trial"]]
        samples = judge(trial.records, trial.facts.window, limits)
        levels.append((f"{item['agents']} agents", item["measure"]["verdict"], samples))
    # Where nothing passed, the last trial is what there is to look at.
    shown_number = score["winning_trial"] or max(trials)
    shown = trials[shown_number]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["share"] = share
    environment.filters["number"] = lambda number, unit="": value(number, unit).strip()
    return environment.get_template("report.html.j2").render(
        score=score,
        headline=headline(score),
        denominators=[denominator_line(row) for row in score["denominators"]],
        not_said=NOT_SAID,
        differences=[str(difference) for difference in differences[:10]],
        shown=next(item for item in score["trials"] if item["trial"] == shown_number),
        won=score["winning_trial"] is not None,
        plan=folder.plan(),
        sessions=_sessions(shown),
        distributions=chart.distributions(levels, score["slo"]["limits"] if score["slo"] else None),
        timeline=chart.timeline(shown.records, shown.facts.window),
        power=chart.power(shown.samples, shown.facts.power_sources, shown.facts.window),
    )


def _sessions(trial: Trial) -> list[dict[str, Any]]:
    """The requests of the window by session."""
    rows: dict[str, list[Any]] = {}
    for record in in_window(trial.records, trial.facts.window):
        rows.setdefault(record.session_id, []).append(record)
    finished = Counter(play.session_id for play in trial.facts.finished_plays)
    found = []
    for session_id, records in sorted(rows.items()):
        prompts = [record.prompt_tokens for record in records if record.prompt_tokens is not None]
        cached = [record.cached_tokens for record in records if record.cached_tokens is not None]
        waits = sorted(
            (record.first_content_at_ns - record.intended_at_ns) / 1e9
            for record in records
            if record.first_content_at_ns is not None
        )
        found.append(
            {
                "session_id": session_id,
                "requests": len(records),
                "failed": sum(record.outcome not in ("ok", "stopped") for record in records),
                "finished": finished[session_id],
                "prompt_tokens": sum(prompts) if prompts else None,
                "cached_share": sum(cached) / sum(prompts) if cached and sum(prompts) else None,
                "output_tokens": sum(record.completion_tokens or 0 for record in records),
                "ttft_p50": waits[len(waits) // 2] if waits else None,
            }
        )
    return found

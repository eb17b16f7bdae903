"""The figures of a run that a page of the docs needs, from its files alone: power, idle power, latches, agents.

python bench/gpu_figures.py RUN
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def figures(run: Path) -> dict[str, Any]:
    """What stands in a finished run's score.json and in the facts of its reference trial; nothing is computed anew."""
    score = json.loads((run / "score.json").read_text())
    result = score["results"][0]
    numbers = [item["trial"] for item in score["trials"]]
    number = result["reference_trial"] or numbers[-1]
    facts = json.loads((run / "trials" / str(number) / "trial.json").read_text())
    trial = next(item for item in score["trials"] if item["trial"] == number)
    return {
        "verdict": {key: result[key] for key in ("slo", "verdict", "reasons", "agents", "interval", "certified")},
        "class": score["class"],
        "methodology": score["methodology_version"],
        "server": {key: score["probe"].get(key) for key in ("engine", "engine_version", "context_tokens")},
        "trials": len(numbers),
        "trial": {
            "trial": number,
            "agents": trial["agents"],
            "window_s": trial["measure"]["window_s"],
            "requests": trial["measure"]["requests"],
            "power": [_total(total) for total in trial["power"]],
        },
        "sources": [
            {
                "name": source["name"],
                "version": source["version"],
                "notes": source["notes"],
                "states": source["states"],
                "devices": [
                    {key: device[key] for key in ("uid", "name", "domain", "limit_w", "latch_s")}
                    for device in source["devices"]
                ],
            }
            for source in facts["power_sources"]
        ],
        "idle": _idle(score["idle"]),
        "denominators": [
            {
                key: row[key]
                for key in (
                    *("id", "basis", "denominator", "u_gain", "u_rest", "agents", "agents_low", "agents_high"),
                    *("agents_certified", "watts_per_agent"),
                )
            }
            for row in result["denominators"]
        ],
        "energy": result["energy"],
        "labels": score["labels"],
    }


def _total(total: dict[str, Any]) -> dict[str, Any]:
    kept = ("scope", "power_w", "power_u_w", "valid", "reasons")
    devices = [
        {
            key: device[key]
            for key in ("device", "method", "energy_j", "gauge_energy_j", "coverage", "largest_gap_s", "flags")
        }
        for device in total["devices"]
    ]
    return {**{key: total[key] for key in kept}, "devices": devices}


def _idle(idle: dict[str, Any] | None) -> dict[str, Any] | None:
    if idle is None:
        return None
    readings = {
        moment: None
        if idle[moment] is None
        else {
            "seconds": idle[moment]["seconds"],
            "reasons": idle[moment]["reasons"],
            "power": [
                {key: total[key] for key in ("scope", "power_w", "power_u_w", "valid", "reasons")}
                for total in idle[moment]["power"]
            ],
        }
        for moment in ("before", "after")
    }
    return {**readings, "drift": idle["drift"]}


def main() -> None:
    """Print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished score")
    print(json.dumps(figures(parser.parse_args().run), indent=1))


if __name__ == "__main__":
    main()

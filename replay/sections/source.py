"""What a report is made from: the score, and the trials' files where they are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replay.document import Cell, Tone
from replay.observation import Observation
from replay.power.source import PowerSample, SourceInfo
from replay.record import RequestRecord
from replay.scrape import ServerSample
from replay.window import Window

_TONES: dict[str, Tone] = {"met": "met", "missed": "missed", "undecided": "undecided", "invalid": "invalid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was recorded of one trial, and what of it counts."""

    records: tuple[RequestRecord, ...]
    observation: Observation
    samples: tuple[PowerSample, ...]
    power_sources: tuple[SourceInfo, ...]
    server: tuple[ServerSample, ...]

    @property
    def window(self) -> Window:
        """The steady window."""
        return self.observation.window


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The contents of score.json, the trials by number (none: a report without charts), and the folder's name."""

    score: dict[str, Any]
    trials: Mapping[int, Seen]
    folder: str
    differences: tuple[str, ...] = ()
    unfinished: bool = False
    feed: dict[str, Any] | None = None  # what one of so many watts holds, where that was asked

    @property
    def shown(self) -> dict[str, Any] | None:
        """The trial whose numbers are shown: the reference of the first service level, else the last one measured."""
        items: dict[int, dict[str, Any]] = {item["trial"]: item for item in self.score["trials"]}
        for result in self.score["results"]:
            if result["reference_trial"] in items:
                return items[result["reference_trial"]]
        valid = [item for item in items.values() if item["measure"]["verdict"] != "invalid"]
        return next(iter([*valid[-1:], *list(items.values())[-1:]]), None)

    @property
    def shown_trial(self) -> Seen | None:
        """What was recorded of that trial."""
        return self.trials.get(self.shown["trial"]) if self.shown is not None else None

    def limits(self, quantity: str) -> list[tuple[float, float]]:
        """(limit, percentile as a share) of every pooled term on a quantity, over all service levels, each once."""
        found = {
            (term["limit"], term["percentile"] / 100)
            for slo in self.score["slos"]
            for term in slo["terms"]
            if term["quantity"] == quantity and term["scope"] == "pooled"
        }
        return sorted(found)


def verdict_cell(verdict: str) -> Cell:
    """A verdict as a word with its colour."""
    return Cell(text=verdict, tone=_TONES.get(verdict))

"""What redaction was measured to find and to take by mistake; the card says it.

The figures are made by `agentdyno curate measure-redaction` and kept with the rules that they are about: rules that
have changed since are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec

FORMAT = "agentdyno-measured-redaction/1"
SHIPPED = Path(__file__).parent / "data" / "measured-redaction.json"

LEAST_RECALL = 0.97
MOST_FINDINGS_PER_MB = 2.0
LEAST_MB_PER_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share with its 95 % interval (Wilson score)."""

    found: int
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PerMegabyte:
    """Findings per megabyte with its exact 95 % Poisson interval (Garwood)."""

    findings: int
    megabytes: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRedaction:
    """One measurement of one set of rules."""

    format: str
    rules: str  # `Redactor.rules`: names and versions of all that finds, own and scanner
    corpus: str  # version of the corpus
    seed: int
    unseen: Rate  # secrets of held-out kinds in held-out contexts
    tuned: Rate  # of the kinds and contexts that the rules were made with
    by_family: dict[str, Rate]  # families of kinds, held out or not, in all contexts
    by_context: dict[str, Rate]  # contexts, held out or not, with all kinds
    held_out_families: tuple[str, ...]
    held_out_contexts: tuple[str, ...]
    clean_source: str
    clean: PerMegabyte  # findings called secrets
    clean_identity: PerMegabyte  # e-mails, names, paths: counted apart
    mb_per_s: float  # of one core, CPU time, on the clean text
    where_time_goes: dict[str, float]  # part of redaction → share of its CPU time
    unseen_resampled: tuple[float, float] | None = None  # 95 %, families and contexts drawn anew
    unseen_kinds: Rate | None = None  # held-out kinds in tuned contexts
    unseen_contexts: Rate | None = None  # tuned kinds in held-out contexts
    unseen_without_scanner_rule: Rate | None = None  # of `unseen`, the kinds that the scanner has no rule for
    undecidable: Rate | None = None  # secrets that no reader could tell to be one: in no other rate but the next
    unseen_with_undecidable: Rate | None = None  # `unseen` if those of its cell counted
    false_alarms: dict[str, Rate] = field(default_factory=dict)  # look-alikes taken for secrets, by class
    held_out_look_alikes: tuple[str, ...] = ()
    clean_characters_lost: float | None = None  # share of the clean text's characters, for any reason
    first_met: dict[str, float] = field(default_factory=dict)  # share removed of what the rules were later tuned on

    @property
    def recall_suffices(self) -> bool:
        return self.unseen.value >= LEAST_RECALL

    @property
    def precision_suffices(self) -> bool:
        return self.clean.value <= MOST_FINDINGS_PER_MB

    @property
    def speed_suffices(self) -> bool:
        return self.mb_per_s >= LEAST_MB_PER_S


@cache
def shipped() -> MeasuredRedaction | None:
    """The measurement that this version comes with; None when it comes without."""
    try:
        return msgspec.json.decode(SHIPPED.read_bytes(), type=MeasuredRedaction)
    except FileNotFoundError:
        return None


def measured_for(rules: str) -> MeasuredRedaction | None:
    """The shipped measurement where it is about these rules; None where they have not been measured."""
    found = shipped()
    return found if found is not None and found.rules == rules else None

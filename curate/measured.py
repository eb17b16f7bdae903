"""What redaction was measured to find and to take by mistake; the card says it.

The figures are made by `agentdyno curate measure-redaction` and kept with the rules that they are about: rules that
have changed since are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = "agentdyno-measured-redaction/1"


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
    by_family: dict[str, Rate]  # families of kinds, held out or not
    by_context: dict[str, Rate]
    held_out_families: tuple[str, ...]
    held_out_contexts: tuple[str, ...]
    clean_source: str
    clean: PerMegabyte  # findings called secrets
    clean_identity: PerMegabyte  # e-mails, names, paths: counted apart
    mb_per_s: float  # of one core, CPU time, on the clean text
    where_time_goes: dict[str, float]  # part of redaction → share of its CPU time

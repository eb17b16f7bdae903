"""A service level: limits on percentiles, and the measurement protocol under which they count."""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from replay.protocol import FULL, Protocol
from replay.search import Verdict

type Quantity = Literal["output_tok_s", "end_to_end_tok_s", "ttft_s", "turn_s", "job_s"]
"""What a limit is about; docs/METHODOLOGY.md defines each. Speeds (`*_tok_s`) must be at least, times at most."""
type Scope = Literal["pooled", "agent"]

QUANTITIES: tuple[Quantity, ...] = ("output_tok_s", "end_to_end_tok_s", "ttft_s", "turn_s", "job_s")
WORDS: dict[Quantity, tuple[str, str]] = {
    "output_tok_s": ("output speed", "tok/s"),
    "end_to_end_tok_s": ("end-to-end speed", "tok/s"),
    "ttft_s": ("time to first token", "s"),
    "turn_s": ("end-to-end turn time", "s"),
    "job_s": ("job time", "s"),
}


class SloFault(ValueError):
    """The service level is not known or not well formed; the sentence names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One limit: a percentile of a quantity over all requests of the window, or over each agent's own."""

    quantity: Quantity
    percentile: float  # 0 to 100, both excluded
    limit: float  # in the quantity's unit, above 0
    scope: Scope = "pooled"

    @property
    def name(self) -> str:
        """As a file writes it: `p25_output_tok_s`."""
        return f"p{self.percentile:g}_{self.quantity}"

    @property
    def at_least(self) -> bool:
        """Whether the limit is the lowest allowed value rather than the highest."""
        return self.quantity.endswith("_tok_s")

    @property
    def words(self) -> str:
        """The limit in words: `P25 output speed at least 20 tok/s`."""
        what, unit = WORDS[self.quantity]
        each = "" if self.scope == "pooled" else " of an agent's own requests"
        return f"P{self.percentile:g} {what}{each} at {'least' if self.at_least else 'most'} {self.limit:g} {unit}"

    def holds(self, observed: float) -> bool:
        """Whether an observed percentile keeps the limit; exactly the limit does."""
        return observed >= self.limit if self.at_least else observed <= self.limit

    def margin(self, observed: float) -> float:
        """ln of how far beyond the limit: above 0 fails, +0.1 is about 10 % too slow; infinite for no speed at all."""
        if self.at_least:
            return math.log(self.limit / observed) if observed > 0 else math.inf
        return math.log(observed / self.limit) if observed > 0 else -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits, all of which must hold, and the protocol that a result under this name asks for."""

    name: str
    version: str  # of a preset the month of its limits; of a file the start of its SHA-256
    terms: tuple[Term, ...]
    agent_share: float = 1.0  # of the agents that must each hold every term of scope `agent`
    protocol: Protocol
    note: str

    @property
    def words(self) -> str:
        """All limits in words, on one line."""
        pooled = [term.words for term in self.terms if term.scope == "pooled"]
        own = [f"{self.agent_share:.0%} of the agents: {term.words}" for term in self.terms if term.scope == "agent"]
        return ", ".join([*pooled, *own])


@dataclass(frozen=True, slots=True, kw_only=True)
class TermResult:
    """How a trial stands to one limit."""

    term: Term
    observed: float | None  # the percentile; None where nothing could be judged. Infinite in memory, null in JSON
    infinite: bool
    samples: int  # requests, jobs or agents that were judged
    undecided: int  # still in flight within the limit when the phase ended: not among the samples
    margin: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SloResult:
    """How a trial stands to a service level."""

    slo: str
    verdict: Verdict
    margin: float | None  # the largest of the terms'; None where the trial is invalid
    terms: tuple[TermResult, ...]
    reasons: tuple[str, ...]
    goodput_agents: int  # agents that hold every term over their own requests
    undecided_matters: bool  # had everything undecided failed, the verdict were another


_AA_NOTE = "same limits as AA-AgentPerf (July 2026), other traces and length policy: not an AA result"

FAMILIES = {
    "aa-shape-2026-07": tuple(
        Slo(
            name=f"aa-shape-2026-07/{speed:g}",
            version="2026-07",
            terms=(
                Term(quantity="output_tok_s", percentile=25.0, limit=speed),
                Term(quantity="ttft_s", percentile=95.0, limit=ttft),
            ),
            protocol=FULL,
            note=_AA_NOTE,
        )
        for speed, ttft in ((20.0, 10.0), (60.0, 5.0), (180.0, 3.0))
    )
}
"""Presets that one sweep can score together, by the name that stands for all of them."""
PRESETS = {slo.name: slo for family in FAMILIES.values() for slo in family}

_TERM = re.compile(r"p(\d{1,2}(?:\.\d+)?)_(" + "|".join(QUANTITIES) + ")")


def load_slos(text: str) -> tuple[Slo, ...]:
    """A preset, all presets of a family, or a TOML file with [limits] or [agent_limits]; raises SloFault."""
    if text in FAMILIES:
        return FAMILIES[text]
    if text in PRESETS:
        return (PRESETS[text],)
    path = Path(text)
    if not path.is_file():
        known = ", ".join([*FAMILIES, *PRESETS])
        raise SloFault(f"service level {text!r} is neither a preset ({known}) nor a TOML file")
    raw = path.read_bytes()
    try:
        data = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SloFault(f"{path}: not TOML: {error}") from error
    _only(path, "the file", data, {"name", "limits", "agent_limits", "protocol"})
    name = data.get("name", path.stem)
    if not isinstance(name, str) or not name or name in PRESETS or name in FAMILIES:
        raise SloFault(f"{path}: name must be a text that no preset has")
    tables: dict[str, dict[str, Any]] = {}
    for key in ("limits", "agent_limits", "protocol"):
        table = data.get(key, {})
        if not isinstance(table, dict):
            raise SloFault(f"{path}: [{key}] must be a table")
        tables[key] = dict(table)
    share = 1.0
    if "share" in tables["agent_limits"]:
        share = _number(path, "agent_limits.share", tables["agent_limits"].pop("share"))
        if share > 1:
            raise SloFault(f"{path}: agent_limits.share must be at most 1, a share of the agents, not {share:g}")
    terms = (
        *_terms(path, "limits", tables["limits"], "pooled"),
        *_terms(path, "agent_limits", tables["agent_limits"], "agent"),
    )
    if not terms:
        raise SloFault(f"{path}: [limits] is missing or empty: it holds limits such as p25_output_tok_s and p95_ttft_s")
    return (
        Slo(
            name=name,
            version=hashlib.sha256(raw).hexdigest()[:12],
            terms=terms,
            agent_share=share,
            protocol=_protocol(path, tables["protocol"]),
            note=f"limits from {path.name}",
        ),
    )


def _terms(path: Path, table: str, data: dict[str, Any], scope: Scope) -> tuple[Term, ...]:
    terms: dict[str, Term] = {}
    for key, value in data.items():
        match = _TERM.fullmatch(key)
        percentile = float(match[1]) if match else 0.0
        if match is None or not 0 < percentile < 100:
            quantities = ", ".join(f"pN_{quantity}" for quantity in QUANTITIES)
            quoted = f'; write a percentile with a point in quotes: "{key}.9_ttft_s"' if isinstance(value, dict) else ""
            raise SloFault(
                f"{path}: [{table}] has the unknown key {key!r}; it may hold {quantities} "
                f"with N above 0 and below 100{quoted}"
            )
        quantity: Quantity = next(item for item in QUANTITIES if item == match[2])
        limit = _number(path, f"{table}.{key}", value)
        term = Term(quantity=quantity, percentile=percentile, limit=limit, scope=scope)
        if term.name in terms:
            raise SloFault(f"{path}: [{table}] has {term.name} twice")
        terms[term.name] = term
    return tuple(terms.values())


def slo_from_json(data: dict[str, Any]) -> Slo:
    """The service level as a run folder holds it; raises KeyError, TypeError or ValueError for what is none."""
    terms = tuple(Term(**{key: value for key, value in term.items() if key != "name"}) for term in data["terms"])
    for term in terms:
        number = isinstance(term.limit, int | float) and isinstance(term.percentile, int | float)
        if term.quantity not in QUANTITIES or not number or not 0 < term.percentile < 100 or not term.limit > 0:
            raise ValueError(f"{term} is no limit")
    return Slo(
        name=data["name"],
        version=data["version"],
        terms=terms,
        agent_share=data["agent_share"],
        protocol=Protocol(**data["protocol"]),
        note=data["note"],
    )


def slo_to_json(slo: Slo) -> dict[str, Any]:
    """All of the service level, so that a later version of a preset changes no old result."""
    terms = [{"name": term.name, **asdict(term)} for term in slo.terms]
    return {**asdict(slo), "terms": terms}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a trial really did, in the protocol's terms."""

    ramp_per_s: float | None
    settle_s: float
    measure_s: float
    finished_trajectories: int
    finished_per_agent_min: int
    start_offset_turns: int
    request_timeout_s: float


def unmet_rules(asked: Protocol, measured: Measured) -> tuple[str, ...]:
    """Rules of a protocol that a trial did not meet, one sentence each, from what was measured."""
    unmet = []
    if measured.ramp_per_s is not None and measured.ramp_per_s > asked.ramp_per_s * 1.05:
        unmet.append(f"started {measured.ramp_per_s:.3g} agents per second, the preset allows {asked.ramp_per_s:g}")
    for label, value, least in (
        ("settled {} s", measured.settle_s, asked.settle_s),
        ("measured {} s", measured.measure_s, asked.min_measure_s),
        ("{} trajectories finished", measured.finished_trajectories, asked.min_trajectories),
        (
            "the slowest agent finished {} trajectories",
            measured.finished_per_agent_min,
            asked.min_trajectories_per_agent,
        ),
        ("first trajectories start up to {} turns in", measured.start_offset_turns, asked.start_offset_turns),
        ("requests time out after {} s", measured.request_timeout_s, asked.request_timeout_s),
    ):
        # Half a percent: a timer that fires a little early has not broken the rule.
        if value < least * 0.995:
            unit = " s" if label.endswith(" s") else ""
            unmet.append(f"{label.format(f'{value:.4g}')}, the preset asks for {least:g}{unit}")
    return tuple(unmet)


def _protocol(path: Path, data: dict[str, Any]) -> Protocol:
    known = {field.name: field for field in fields(Protocol)}
    _only(path, "[protocol]", data, set(known))
    changes: dict[str, Any] = {}
    for key, value in data.items():
        if key == "name":
            if not isinstance(value, str):
                raise SloFault(f"{path}: protocol.name must be a text")
            changes[key] = value
            continue
        positive = key.startswith("ramp_") or key.endswith("timeout_s")
        number = _number(path, f"protocol.{key}", value, zero=not positive)
        changes[key] = int(number) if known[key].type == "int" else number
    if data and "name" not in data:
        changes["name"] = path.stem
    protocol = replace(FULL, **changes)
    if protocol.max_phase_s < protocol.settle_s + protocol.min_measure_s:
        raise SloFault(
            f"{path}: protocol.max_phase_s is {protocol.max_phase_s:g}; settling and measuring alone take "
            f"{protocol.settle_s + protocol.min_measure_s:g} s"
        )
    return protocol


def _only(path: Path, place: str, data: dict[str, Any], known: set[str]) -> None:
    for key in data:
        if key not in known:
            raise SloFault(f"{path}: {place} has the unknown key {key!r}; it may hold {', '.join(sorted(known))}")


def _number(path: Path, place: str, value: object, *, zero: bool = False) -> float:
    number = -1.0
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
    if number < 0 or (number == 0 and not zero):
        raise SloFault(f"{path}: {place} must be a number {'of at least' if zero else 'above'} 0, not {value!r}")
    return number

"""A service level: two limits and the measurement protocol under which they count."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from replay.protocol import FULL, Protocol


class SloFault(ValueError):
    """The service level is not known or not well formed; the sentence names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Both must hold over the requests of the steady window, pooled over agents."""

    p25_output_tok_s: float  # the 25th percentile of per-request output speed is at least this
    p95_ttft_s: float  # the 95th percentile of the time to first token is at most this


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits and the protocol that a result under this name asks for."""

    name: str
    limits: Limits
    protocol: Protocol
    note: str


_AA_NOTE = "same limits as AA-AgentPerf (July 2026), other traces and length policy: not an AA result"

PRESETS = {
    slo.name: slo
    for slo in (
        Slo(
            name=f"aa-shape-2026-07/{speed:g}",
            limits=Limits(p25_output_tok_s=speed, p95_ttft_s=ttft),
            protocol=FULL,
            note=_AA_NOTE,
        )
        for speed, ttft in ((20.0, 10.0), (60.0, 5.0), (180.0, 3.0))
    )
}


def load_slo(text: str) -> Slo:
    """A preset by name, or a TOML file with [limits] and an optional [protocol]; raises SloFault."""
    if text in PRESETS:
        return PRESETS[text]
    path = Path(text)
    if not path.is_file():
        raise SloFault(f"service level {text!r} is neither a preset ({', '.join(PRESETS)}) nor a TOML file")
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SloFault(f"{path}: not TOML: {error}") from error
    _only(path, "the file", data, {"name", "limits", "protocol"})
    name = data.get("name", path.stem)
    if not isinstance(name, str) or not name or name in PRESETS:
        raise SloFault(f"{path}: name must be a text that no preset has")
    limits = data.get("limits")
    if not isinstance(limits, dict):
        raise SloFault(f"{path}: [limits] is missing: it holds p25_output_tok_s and p95_ttft_s")
    names = {"p25_output_tok_s", "p95_ttft_s"}
    _only(path, "[limits]", limits, names)
    values = {key: _number(path, f"limits.{key}", limits.get(key)) for key in sorted(names)}
    protocol = data.get("protocol", {})
    if not isinstance(protocol, dict):
        raise SloFault(f"{path}: [protocol] must be a table")
    return Slo(name=name, limits=Limits(**values), protocol=_protocol(path, protocol), note=f"limits from {path.name}")


def slo_from_json(data: dict[str, Any]) -> Slo:
    """The service level as a run folder holds it."""
    return Slo(
        name=data["name"],
        limits=Limits(**data["limits"]),
        protocol=Protocol(**data["protocol"]),
        note=data["note"],
    )


def slo_to_json(slo: Slo) -> dict[str, Any]:
    """All of the service level, so that a later version of a preset changes no old result."""
    return asdict(slo)


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
        number = _number(path, f"protocol.{key}", value, zero=key not in ("ramp_per_s", "request_timeout_s"))
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

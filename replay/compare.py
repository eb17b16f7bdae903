"""Two scores side by side: may they be compared, what differs between them, and which one is better.

A ratio is the quotient of two roots, each with Fieller's interval; `replay.ratio` has the formula of its limits.
Per megawatt the relative expanded (k = 2) uncertainty of both powers is added under both roots. Sensors of one model
err alike: where both sides were read by the same model of accelerator, that common gain cancels and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from replay.canary import compare_canaries
from replay.judge import read_score
from replay.labels import speculates, synthetic_sessions
from replay.plan import PlanFile
from replay.ratio import Estimate, ratio_limits
from replay.record import RequestRecord
from replay.runfolder import RunFolder
from replay.sentence import DENOMINATORS, denominator_name, denominator_of
from replay.system import System, system_from_json
from replay.trial import read_trial
from replay.verify import verify
from replay.work import same_work, token_work

type Word = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting that differs between two runs, as JSON."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """B over A. `word` says whether B is better. Without an interval nothing is told apart, and `why_not` says why."""

    slo: str
    what: str  # agents | agents per accelerator | agents per processor | agents per megawatt
    denominator: str | None  # the id of its row; None for agents alone
    basis: str | None  # measured | declared | provisioned; None for agents alone
    a: float | None
    b: float | None
    ratio: float | None
    low: float | None
    high: float | None
    word: Word
    why_not: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two runs say of each other. With any reason against it there is no ratio."""

    a: str
    b: str
    methodology_version: str
    reasons: tuple[str, ...]
    differences: tuple[Setting, ...]
    ratios: tuple[Ratio, ...]
    notes: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    folder: RunFolder
    score: dict[str, Any]
    plan: PlanFile
    system: System

    @property
    def name(self) -> str:
        return str(self.folder.path)


def compare(a: RunFolder, b: RunFolder) -> Comparison:
    """Compares two finished runs; raises RunFault or TrialFault where one is not whole."""
    left, right = _side(a), _side(b)
    reasons = tuple(dict.fromkeys(_reasons(left, right)))
    return Comparison(
        a=left.name,
        b=right.name,
        methodology_version=right.score["methodology_version"],
        reasons=reasons,
        differences=tuple(_differences(left, right)),
        ratios=() if reasons else tuple(_ratios(left, right)),
        notes=tuple(_notes(left, right)),
    )


def _side(folder: RunFolder) -> _Side:
    score = read_score(folder.score_path)
    return _Side(folder=folder, score=score, plan=folder.plan(), system=system_from_json(score["system"]))


# -- may they be compared?


def _reasons(a: _Side, b: _Side) -> Iterator[str]:
    """Every reason why no ratio of these two means anything."""
    for side in (a, b):
        if side.score["kind"] != "score":
            yield f"{side.name} is a single trial: it holds no capacity"
        differences = verify(side.folder)
        if differences:
            yield f"{side.name} does not follow from its records: {differences[0]}"
        canary = side.score["canary"]
        for reason in canary["reasons"] if canary is not None else ():
            yield f"the quality canary of {side.name} shifted: {reason}"
        for item in side.score["trials"]:
            yield from (
                f"plays warmed each other in trial {item['trial']} of {side.name}: {reason}"
                for reason in item["cross_warming"]
            )
        if side.plan.history == "live":
            yield f"{side.name} has live history: its model's own answers made its prompts"
    for what, left, right in _must_be_equal(a, b):
        if left != right:
            hint = "; score the second with --against the first" if what == "plan" else ""
            yield f"unlike {what}: {_short(left)} and {_short(right)}{hint}"
    yield from _synthetic(a, b)
    yield from _other_answers(a, b)
    if a.score["plan"]["digest"] == b.score["plan"]["digest"]:
        yield from same_work(token_work(_records(a)), token_work(_records(b)))


def _must_be_equal(a: _Side, b: _Side) -> Iterator[tuple[str, Any, Any]]:
    def of(side: _Side, *path: str) -> Any:
        value: Any = side.score
        for key in path:
            value = value[key]
        return value

    for what, path in (
        ("methodology", ("methodology_version",)),
        ("dataset", ("dataset_digest",)),
        ("plan", ("plan", "digest")),
        ("class", ("class",)),
        ("protocol", ("protocol",)),
        *((f"{key} policy", ("policies", key)) for key in a.score["policies"]),
    ):
        yield what, of(a, *path), of(b, *path)
    for what, side in (("service levels", "slos"),):
        left, right = (
            [{key: value for key, value in slo.items() if key != "note"} for slo in of(one, side)] for one in (a, b)
        )
        yield what, [_slo_name(slo) for slo in left], [_slo_name(slo) for slo in right]
        for mine, other in zip(left, right, strict=False):
            if _slo_name(mine) == _slo_name(other):
                yield f"limits under the name {_slo_name(mine)}", mine, other


def _slo_name(slo: Mapping[str, Any]) -> str:
    return f"{slo['name']} ({slo['version']})"


def _synthetic(a: _Side, b: _Side) -> Iterator[str]:
    """Synthetic text where something in play depends on what the text says."""
    for side in (a, b):
        if synthetic_sessions(side.plan) and speculates(side.system):
            yield f"{side.name} speculates on synthetic text: how much is accepted says nothing of real work"
    if bool(synthetic_sessions(a.plan)) == bool(synthetic_sessions(b.plan)):
        return
    for side in (a, b):
        for in_play, what in ((speculates(side.system), "speculation"), (side.system.moe, "a mixture of experts")):
            if in_play:
                yield f"one run is of text, the other of synthetic text, and {side.name} has {what} in play"


def _other_answers(a: _Side, b: _Side) -> Iterator[str]:
    """Where one server answers worse than the other from the beginning: speed bought with quality.

    Of made-up weights no answer is better than another, and rounding alone changes all of them: nothing is held against
    these.
    """
    first, second = a.folder.canary(), b.folder.canary()
    if first is None or second is None or _made_up(a, b):
        return
    for worse, better, name, other in ((second, first, b.name, a.name), (first, second, a.name, b.name)):
        reasons = compare_canaries(worse.before, None, better.before)
        yield from (f"the quality canary of {name} differs from that of {other}: {reason}" for reason in reasons)
        if reasons:
            return


def _made_up(a: _Side, b: _Side) -> bool:
    return a.system.weights == b.system.weights == "made-up"


def _records(side: _Side) -> list[RequestRecord]:
    """Records of the trials that the answers rest on."""
    trials = {
        number
        for result in side.score["results"]
        if result["search"] is not None and result["search"]["fit"] is not None
        for number in result["search"]["fit"]["trials"]
    }
    return [
        record
        for number in sorted(trials or {item["trial"] for item in side.score["trials"]})
        for record in read_trial(side.folder.trial_path(number)).records
    ]


# -- what differs


def _differences(a: _Side, b: _Side) -> Iterator[Setting]:
    for name, left, right in (
        ("agentdyno", a.score["agentdyno_version"], b.score["agentdyno_version"]),
        ("endpoint", a.score["endpoint"], b.score["endpoint"]),
        ("system", a.score["system"], b.score["system"]),
        ("probe", a.score["probe"], b.score["probe"]),
        ("class", a.score["class"], b.score["class"]),
        ("protocol", a.score["protocol"], b.score["protocol"]),
        ("policies", a.score["policies"], b.score["policies"]),
        ("search", a.score["search"], b.score["search"]),
        ("client_limit", _limit(a), _limit(b)),
        ("workers", a.score["workers"], b.score["workers"]),
        ("restart.command_given", a.score["restart"]["command_given"], b.score["restart"]["command_given"]),
        ("power", a.score["power"], b.score["power"]),
    ):
        yield from _unlike(name, left, right)


def _limit(side: _Side) -> int | None:
    limit = side.score["client_limit"]
    return limit["agents"] if limit is not None else None


def _unlike(name: str, a: Any, b: Any) -> Iterator[Setting]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from _unlike(f"{name}.{key}", a.get(key), b.get(key))
    elif a != b:
        yield Setting(name=name, a=a, b=b)


# -- which is better


def _ratios(a: _Side, b: _Side) -> Iterator[Ratio]:
    for left, right in zip(a.score["results"], b.score["results"], strict=True):
        yield _of_agents(left, right)
        for row, other in _row_pairs(left, right):
            if row is not None and other is not None and _unlike_rows(a, b, row, other) is None:
                yield _per(left, right, row, other)


def _row_pairs(
    a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Rows of both sides by their id; None where a side has none of it."""
    left, right = ({row["id"]: row for row in side["denominators"]} for side in (a, b))
    for name in dict.fromkeys((*left, *right)):
        yield left.get(name), right.get(name)


def _unlike_rows(a: _Side, b: _Side, row: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Why two rows of one id are no one denominator."""
    for key in ("per", "unit", "basis"):
        if row[key] != other[key]:
            return f"unlike {key}: {row[key]} and {other[key]}"
    metered = row["id"] == "node_or_rack" or (row["id"] == "facility_measured" and row["basis"] == "declared")
    if metered and (domains := _domains(a)) != _domains(b):
        return f"unlike meters: of {domains} and of {_domains(b)}"
    kinds = [side.system.pue_kind for side in (a, b)]
    if row["id"].startswith("facility") and row["basis"] == "declared" and kinds[0] != kinds[1]:
        return f"unlike PUE: {kinds[0]} and {kinds[1]}"
    if row["id"] == "facility_measured" and row["basis"] == "declared" and _of(row) != _of(other):
        return f"unlike power under the PUE: {_of(row)} and {_of(other)}"
    return None


def _domains(side: _Side) -> str:
    """Whether nodes or racks were metered: racks hold switches and losses that nodes do not."""
    found = {
        device["domain"]
        for item in side.score["trials"]
        for total in item["power"]
        if total["scope"] == "node_or_rack"
        for device in total["devices"]
    }
    return " and ".join(f"{domain}s" for domain in sorted(found)) or "none"


def _of(row: Mapping[str, Any]) -> str:
    """What a facility's power is a product of: its scope begins with that."""
    return str(row["scope"]).partition(" power of ")[0]


def _of_agents(a: Mapping[str, Any], b: Mapping[str, Any]) -> Ratio:
    return _ratio(a, b, "agents", None, a["agents"], b["agents"], 0.0)


def _per(a: Mapping[str, Any], b: Mapping[str, Any], row: Mapping[str, Any], other: Mapping[str, Any]) -> Ratio:
    relative = 0.0
    if row["unit"] == "W":
        rest = math.hypot(*(side["u_rest"] / side["denominator"] for side in (row, other)))
        gain = math.hypot(*(side["u_gain"] / side["denominator"] for side in (row, other)))
        relative = 2 * math.hypot(rest, 0.0 if _same_sensors(row, other) else gain)
    return _ratio(a, b, f"agents per {row['per']}", row, row["agents"], other["agents"], relative)


def _same_sensors(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both were read by one model of sensor, each by its own driver; of CPU packages the model is not known."""
    own = row["source"] == other["source"] and row["source"].partition(",")[0] == "nvml"
    return bool(own and len(row["sensors"]) == 1 and row["sensors"] == other["sensors"])


def _ratio(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    what: str,
    row: Mapping[str, Any] | None,
    value_a: float | None,
    value_b: float | None,
    relative: float,
) -> Ratio:
    """`relative` is the expanded relative uncertainty of the denominators."""
    why_not = next((why for name, side in (("A", a), ("B", b)) if (why := _why_not(name, side)) is not None), None)
    value = value_b / value_a if value_a and value_b else None
    low = high = None
    if why_not is None and value is not None:
        of_a, of_b = (Estimate(value=side["agents"], **_limits(side)) for side in (a, b))
        below, above = ratio_limits(of_b, of_a, relative)
        middle = b["agents"] / a["agents"]
        low, high = value * below / middle, value * above / middle
    word: Word = "not told apart"
    if low is not None and high is not None:
        word = "better" if low > 1 else "worse" if high < 1 else "not told apart"
    return Ratio(
        slo=b["slo"],
        what=what,
        denominator=row["id"] if row is not None else None,
        basis=row["basis"] if row is not None else None,
        a=value_a,
        b=value_b,
        ratio=value if why_not is None else None,
        low=low,
        high=high,
        word=word,
        why_not=why_not,
    )


def _limits(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: result["interval"][name] for name in ("low", "high")}


def _why_not(name: str, result: Mapping[str, Any]) -> str | None:
    if result["at_least"]:
        return f"{name} holds at least {result['agents']:g} agents: its search ended at its maximum"
    if result["interval"] is not None and result["interval"]["low"] > 0 and result["agents"]:
        return None
    if result["agents"] == 0:
        return f"{name} holds not even one agent"
    return f"{name} has no interval: {result['interval_why_not']}"


def _notes(a: _Side, b: _Side) -> Iterator[str]:
    """What a reader must know of the ratios that are there, and of those that are not."""
    for left, right in zip(a.score["results"], b.score["results"], strict=False):
        for row, other in _row_pairs(left, right):
            shown = row or other
            if shown is None:
                continue
            name = f"no ratio per {shown['per']} of {denominator_of(shown)}"
            if row is None or other is None:
                yield f"{name}: only one of the two has it"
            elif (unlike := _unlike_rows(a, b, row, other)) is not None:
                yield f"no ratio per {shown['per']} of {denominator_name(shown)}: {unlike}"
    if not a.score["restart"]["command_given"] or not b.score["restart"]["command_given"]:
        yield "not both servers were restarted between trials: the intervals exclude what a restart changes"
    if a.folder.canary() is None or b.folder.canary() is None:
        yield "not both runs have a quality canary: whether one bought speed with quality is not known"
    elif _made_up(a, b):
        yield "the weights are made up: whether one bought speed with quality cannot be asked"
    against = b.score["against"] or a.score["against"]
    if against is None:
        yield "the two were not run against each other (score --against): what drifted in between is not balanced"
    for side in (a, b):
        undisclosed = side.score["undisclosed"]
        if undisclosed:
            yield f"{side.name} does not disclose {', '.join(undisclosed)}"


# -- in words


def comparison_lines(found: Comparison) -> list[str]:
    """The comparison as text."""
    lines = [f"A {found.a}", f"B {found.b}"]
    if found.reasons:
        lines.append("not comparable:")
        lines += [f"  - {reason}" for reason in found.reasons]
    lines += [f"{ratio.slo}: {ratio_words(ratio)}" for ratio in found.ratios]
    if found.differences:
        lines.append(f"{len(found.differences)} settings differ:")
        lines += [f"  {item.name}: {_short(item.a)} | {_short(item.b)}" for item in found.differences]
    else:
        lines.append("no setting differs")
    lines += [f"  ! {note}" for note in found.notes]
    return lines


def ratio_words(ratio: Ratio) -> str:
    """One ratio in a clause."""
    what = _what(ratio)
    if ratio.ratio is None or ratio.low is None:
        return f"{what}: not told apart, since {ratio.why_not}"
    return (
        f"{what}: B is {ratio.word} — B/A {ratio.ratio:.3f} [{ratio.low:.3f} to {ratio.high:.3f}, 95 %] "
        f"({_number(ratio.a)} and {_number(ratio.b)})"
    )


def _what(ratio: Ratio) -> str:
    """What a ratio is of: agents over what, and where that is from."""
    of = DENOMINATORS.get(ratio.denominator or "") if ratio.what == "agents per megawatt" else None
    basis = f" ({ratio.basis})" if ratio.basis is not None else ""
    return ratio.what + (f" of {of}" if of is not None else "") + basis


def comparison_markdown(found: Comparison) -> str:
    """The comparison as Markdown tables."""
    lines = [f"**A** `{found.a}`  ", f"**B** `{found.b}`", ""]
    if found.reasons:
        lines += ["Not comparable:", "", *(f"- {reason}" for reason in found.reasons), ""]
    if found.ratios:
        lines += ["| service level | what | A | B | B/A | 95 % interval | B is |", "|---|---|---|---|---|---|---|"]
        for ratio in found.ratios:
            interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio.low is not None else ratio.why_not
            value = f"{ratio.ratio:.3f}" if ratio.ratio is not None else "–"
            cells = (ratio.slo, _what(ratio), _number(ratio.a), _number(ratio.b), value, interval, ratio.word)
            lines.append(_row(cells))
        lines.append("")
    if found.differences:
        lines += ["| setting | A | B |", "|---|---|---|"]
        lines += [_row((item.name, f"`{_short(item.a)}`", f"`{_short(item.b)}`")) for item in found.differences]
        lines.append("")
    lines += [f"- {note}" for note in found.notes]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 100 else text[:97] + "…"

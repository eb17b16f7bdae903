"""How a dataset compares with another workload, axis by axis: inside, outside or not published; never one score.

Against published figures each figure is one check, and an axis is inside when all of its checks are:
range: our p50 and p95 both lie in it · mean, p50, p95: ours is within a factor of 1.25 of theirs, either way ·
max: our p95 is at most theirs · at_least: ours is at least theirs · most: our most frequent is theirs ·
all_of: at least 95 % of ours are of theirs (names by glob pattern).

Against sessions themselves (another dataset, or the replays of the installed agentperf-local) an axis is inside when
our p50 and p90 are both within a factor of 1.25 of theirs, shares within 5 percentage points; of names, when at least
95 % of ours are among theirs. Where either side does not know, it is not published.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import polars as pl

from curate.cache import ideal_cache
from curate.distribution import Distribution
from curate.frames import Frames, collect, frames_of
from curate.measurement import measure
from curate.quantities import Quantity, best_counted

PUBLISHED = "agentperf-2026-07.toml"
FACTOR = 1.25
SHARE_POINTS = 0.05
NEARLY_ALL = 0.95
# Kinds of file that are no programming languages: they do not help to reach a published number of languages.
NO_LANGUAGES = frozenset(
    """
    cmake css csv graphql handlebars html ini jinja json less make markdown protobuf restructuredtext sass svg tex text
    thrift toml xml yaml
    """.split()  # noqa: SIM905 - a list of words would be a page
)

type Verdict = Literal["inside", "outside", "not published", "not known here"]
type Statistic = Literal["range", "mean", "p50", "p95", "max", "at_least", "most", "all_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published figure, in the axis's unit."""

    statistic: Statistic
    words: str  # as published, shortened
    source: str  # URL
    date: str  # of the page as read
    value: float | None = None
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAxis:
    """What is published on one axis."""

    name: str
    figure: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file of published figures."""

    name: str
    as_of: str
    axis: tuple[PublishedAxis, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side's knowledge of one axis; everything None where it knows nothing."""

    n: int = 0
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    mean: float | None = None
    value: float | None = None  # a single number: of languages, a share
    names: dict[str, float] | None = None  # name → share, the most frequent first
    counted_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One published figure, or one statistic of the other side, against ours."""

    statistic: str
    ours: str
    theirs: str
    inside: bool
    words: str | None = None
    source: str | None = None
    date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisMatch:
    """One axis: what we have, what they have, and the verdict."""

    name: str
    unit: str
    sentence: str
    ours: Side
    theirs: Side | None  # None against published figures
    verdict: Verdict
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A dataset against another workload. There is no overall score, on purpose."""

    against: str
    as_of: str | None
    rule: str
    axes: tuple[AxisMatch, ...]


# name, unit, sentence, quantity
QUANTITY_AXES = (
    ("isl", "tokens", "Input sequence length of a turn", "prompt_tokens"),
    ("osl", "tokens", "Output sequence length of a turn", "completion_tokens"),
    ("turns", "turns", "Turns of the main chain per session", "turns_per_session"),
    ("context_max", "tokens", "Longest prompt of a session", "context_max_tokens"),
    ("growth", "tokens", "Growth of the prompt from turn to turn", "growth_tokens"),
    ("tool_time", "s", "Tool time: a tool gap between two turns of a chain", "tool_gap_us"),
    ("human_time", "s", "Human part of a gap", "human_gap_us"),
    ("cache_share", "share", "Part of the prompt read from the provider's cache", "cache_read_share"),
    (
        "ideal_cache_share",
        "share",
        "Part of the prompt that an ideal cache of the session holds",
        "ideal_cache_share_session",
    ),
    ("subagents", "chains", "Sub-agents of a session", "subagents_per_session"),
    ("compactions", "compactions", "Compactions of a session", "compactions_per_session"),
    ("duration", "s", "First send to last end of a session", "session_duration_us"),
    ("concurrency", "requests", "Most requests of a session open at once", "peak_concurrency"),
)
NAME_AXES = (
    ("languages", "languages", "Languages of the files that tool calls name"),
    ("harness", "sessions", "Agent programs, by sessions"),
    ("models", "turns", "Models, by turns"),
)
REASONING = ("reasoning", "share", "Sessions with reasoning in an answer, of those that tell")
RULE_PUBLISHED = (
    "range: our p50 and p95 lie in it; mean, p50, p95: within a factor of 1.25; max: our p95 is at most theirs; "
    "at_least: ours is at least theirs; most: our most frequent is theirs; all_of: at least 95 % of ours are theirs"
)
RULE_SESSIONS = (
    "our p50 and p90 are within a factor of 1.25 of theirs, shares within 5 percentage points; of names, at least 95 % "
    "of ours are among theirs"
)


def published() -> Published:
    """The dated file of what Artificial Analysis has published about AA-AgentPerf."""
    text = resources.files("curate").joinpath("data", PUBLISHED).read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Published)


def sides(frames: Frames, tokenizer: str | None) -> dict[str, Side]:
    """What the tables tell, by axis."""
    names = frozenset(quantity for _, _, _, quantity in QUANTITY_AXES)
    found = measure(frames, ideal_cache(frames), by=(), tokenizer=tokenizer, only=names | {"gap_us"}).quantities
    sides = {}
    for name, unit, _, quantity in QUANTITY_AXES:
        if quantity == "tool_gap_us":
            part = found["gap_us"].by.get("kind", {}).get("tool")
            sides[name] = _side(part, None, unit) if part is not None else Side()
            continue
        best = best_counted(found, quantity)
        sides[name] = Side() if best is None else _side(best[1].all, best[1], unit)
    sessions = frames.sessions
    mixes = [mix for mix in sessions["lang_mix"].to_list() if mix]
    languages: dict[str, float] = {}
    for mix in mixes:
        for part in mix:
            languages[part["lang"]] = languages.get(part["lang"], 0.0) + part["share"] / len(mixes)
    sides["languages"] = _names(languages, len(mixes), counted=lambda name: name not in NO_LANGUAGES)
    harnesses = sessions.filter(pl.col("harness") != "unknown")["harness"]
    sides["harness"] = _names(_shares(harnesses), len(harnesses))
    models = collect(frames.turns.filter(pl.col("model") != "").select("model"))["model"]
    sides["models"] = _names(_shares(models), len(models))
    sides["reasoning"] = _reasoning(frames)
    return sides


def _side(found: Distribution, quantity: Quantity | None, unit: str) -> Side:
    if not found.n:
        return Side()
    scale = 1e-6 if unit == "s" else 1.0
    p50, p90, p95, mean = (
        None if value is None else value * scale for value in (found.p50, found.p90, found.p95, found.mean)
    )
    return Side(
        n=found.n, p50=p50, p90=p90, p95=p95, mean=mean, counted_by=None if quantity is None else quantity.counted_by
    )


def _shares(values: pl.Series) -> dict[str, float]:
    counts = values.drop_nulls().value_counts(name="n")
    return {str(name): n / len(values) for name, n in counts.iter_rows()}


def _names(shares: Mapping[str, float], n: int, counted: Callable[[str], bool] = bool) -> Side:
    if not shares:
        return Side()
    ordered = dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
    return Side(n=n, names=ordered, value=float(sum(map(counted, ordered))))


def _reasoning(frames: Frames) -> Side:
    """Sessions of which a turn thought, of those of which a turn tells whether it did."""
    told = collect(
        frames.turns.select(
            "session_id",
            thought=pl.when(pl.col("reasoning_tokens").is_not_null())
            .then(pl.col("reasoning_tokens") > 0)
            .otherwise(pl.col("new_output").list.contains("thinking")),
        )
    ).drop_nulls("thought")
    if not len(told):
        return Side()
    sessions = told.group_by("session_id").agg(pl.col("thought").any())["thought"]
    return Side(n=len(sessions), value=float(sessions.mean() or 0.0))  # type: ignore[arg-type]


def match_published(ours: Mapping[str, Side], theirs: Published) -> Match:
    """Compare with published figures."""
    figures = {axis.name: axis.figure for axis in theirs.axis}
    axes = []
    for name, unit, sentence in _axes():
        checks = tuple(check for figure in figures.get(name, ()) if (check := _against(figure, ours[name], unit)))
        axes.append(
            AxisMatch(
                name=name,
                unit=unit,
                sentence=sentence,
                ours=ours[name],
                theirs=None,
                verdict=_verdict(checks, published=bool(figures.get(name)), known=ours[name].n > 0),
                checks=checks,
            )
        )
    return Match(against=theirs.name, as_of=theirs.as_of, rule=RULE_PUBLISHED, axes=tuple(axes))


def match_sessions(ours: Mapping[str, Side], theirs: Mapping[str, Side], against: str) -> Match:
    """Compare with the sessions of another workload."""
    axes = []
    for name, unit, sentence in _axes():
        checks = _between(ours[name], theirs[name], unit)
        axes.append(
            AxisMatch(
                name=name,
                unit=unit,
                sentence=sentence,
                ours=ours[name],
                theirs=theirs[name],
                verdict=_verdict(checks, published=theirs[name].n > 0, known=ours[name].n > 0),
                checks=checks,
            )
        )
    return Match(against=against, as_of=None, rule=RULE_SESSIONS, axes=tuple(axes))


def agentperf_local_sides() -> dict[str, Side]:
    """The replays that come with the installed package agentperf-local; EnvironmentFault where it is not there."""
    from capture.fault import EnvironmentFault
    from capture.importers.agentperf_local import import_agentperf_local
    from capture.importers.imported import ImportFault
    from curate.row import rows_of

    try:
        # The key names sessions only, and they stay here.
        found = import_agentperf_local(None, b"\0" * 32)
    except ImportFault as fault:
        raise EnvironmentFault(f"{fault}; --against agentperf-local reads its replays") from fault
    return sides(frames_of(rows_of(trajectory) for trajectory in found.trajectories), None)


def dataset_sides(folder: Path) -> dict[str, Side]:
    """What a dataset folder tells, by axis; raises DatasetFault for anything else."""
    from curate.dataset import Dataset
    from curate.frames import read_frames

    dataset = Dataset.open(folder)
    return sides(read_frames(folder, dataset.manifest), dataset.manifest.inputs.tokenizer)


def _axes() -> Iterable[tuple[str, str, str]]:
    yield from ((name, unit, sentence) for name, unit, sentence, _ in QUANTITY_AXES)
    yield from NAME_AXES
    yield REASONING


def _verdict(checks: Sequence[Check], *, published: bool, known: bool) -> Verdict:
    if not published:
        return "not published"
    if not known or not checks:
        return "not known here"
    return "inside" if all(check.inside for check in checks) else "outside"


def _against(figure: Figure, ours: Side, unit: str) -> Check | None:
    """One figure against ours; None where ours is unknown."""
    said, theirs, inside = "", "", None
    number = {"mean": ours.mean, "p50": ours.p50, "p95": ours.p95}.get(figure.statistic)
    if figure.statistic == "range" and ours.p50 is not None and ours.p95 is not None:
        assert figure.low is not None
        assert figure.high is not None
        said = f"p50 {shown(ours.p50, unit)}, p95 {shown(ours.p95, unit)}"
        theirs = f"{shown(figure.low, unit)} to {shown(figure.high, unit)}"
        inside = figure.low <= ours.p50 <= figure.high and figure.low <= ours.p95 <= figure.high
    elif number is not None and figure.value is not None:
        said, theirs = f"{figure.statistic} {shown(number, unit)}", shown(figure.value, unit)
        inside = within(number, figure.value, unit)
    elif figure.statistic == "max" and ours.p95 is not None and figure.value is not None:
        said, theirs, inside = f"p95 {shown(ours.p95, unit)}", shown(figure.value, unit), ours.p95 <= figure.value
    elif figure.statistic == "at_least" and ours.value is not None and figure.value is not None:
        said, theirs, inside = shown(ours.value, unit), shown(figure.value, unit), ours.value >= figure.value
    elif figure.statistic == "most" and ours.names:
        first = next((name for name in ours.names if name not in NO_LANGUAGES), "none")
        said, theirs, inside = first, " or ".join(figure.values), first in figure.values
    elif figure.statistic == "all_of" and ours.names is not None:
        share = _share_of(ours.names, figure.values)
        said, theirs, inside = f"{100 * share:.0f} % of ours", ", ".join(figure.values), share >= NEARLY_ALL
    if inside is None:
        return None
    return Check(
        statistic=figure.statistic,
        ours=said,
        theirs=theirs,
        inside=inside,
        words=figure.words,
        source=figure.source,
        date=figure.date,
    )


def _share_of(names: Mapping[str, float], patterns: Sequence[str]) -> float:
    return sum(
        share for name, share in names.items() if any(fnmatch.fnmatch(name.lower(), each.lower()) for each in patterns)
    )


def _between(ours: Side, theirs: Side, unit: str) -> tuple[Check, ...]:
    checks = [
        Check(statistic=name, ours=shown(one, unit), theirs=shown(other, unit), inside=within(one, other, unit))
        for name, one, other in (("p50", ours.p50, theirs.p50), ("p90", ours.p90, theirs.p90))
        if one is not None and other is not None
    ]
    if ours.names is not None and theirs.names is not None:
        share = _share_of(ours.names, [fnmatch_literal(name) for name in theirs.names])
        checks.append(
            Check(
                statistic="names",
                ours=f"{100 * share:.0f} % of ours",
                theirs=", ".join(theirs.names),
                inside=share >= NEARLY_ALL,
            )
        )
    elif ours.value is not None and theirs.value is not None and not checks:
        checks.append(
            Check(
                statistic="share",
                ours=shown(ours.value, unit),
                theirs=shown(theirs.value, unit),
                inside=within(ours.value, theirs.value, unit),
            )
        )
    return tuple(checks)


def fnmatch_literal(name: str) -> str:
    """A pattern that only this name matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def within(one: float, other: float, unit: str) -> bool:
    """Whether two values are near enough for the rule."""
    if unit == "share":
        return abs(one - other) <= SHARE_POINTS
    if one <= 0 or other <= 0:
        return one == other
    return 1 / FACTOR <= one / other <= FACTOR


def shown(value: float, unit: str) -> str:
    """A value in the axis's unit."""
    from curate.units import short_number, short_time

    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "s":
        return "0 s" if value == 0 else short_time(value)
    return short_number(value)

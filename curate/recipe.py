"""A recipe: what a dataset is made from and how, as one TOML file. Every key is optional; the defaults drop nothing.

    name = "team-week-12"
    pretty_name = "Team traces, week 12"
    license = "CC-BY-4.0"              # SPDX id for sessions that bring none
    consent = "all-contributors-agreed-2026-11"
    card = "card.md"                   # text spliced into the card; beside the recipe
    stores = ["../traces"]             # used where the command names no --store
    labels = "labels.jsonl"            # outcome, repo_license, task_id, … by session_id

    [filters]
    min_turns = 2
    harnesses = ["claude-code", "codex"]
    complete = true

    [duplicates]
    exact = "drop"
    near = "drop"

    [truncate]
    context_tokens = 131072

    [sample]
    sessions = 500
    by = "context_tokens_max"
    edges = [0, 16000, 64000, 131072]
    shares = [0.3, 0.5, 0.2]

    [redaction]
    identity = true

    [splits]
    by = "contributor"
    shares = { train = 0.9, test = 0.1 }

docs/CURATE.md has every key with its meaning.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from curate.language import LANGUAGES

LEAST_MESSAGE_BYTES = 1000
SUM_ERROR = 1e-6  # thirds are written as .333333
# Columns of `sessions` that say who a session is or what a build did with it: nothing to spread a sample by.
OF_THE_BUILD = frozenset(
    {
        *("session_id", "source_ref", "sent_at", "metadata", "schema", "split", "dup_cluster", "dup_role"),
        *("tokenizer", "tokenizer_sha", "tools_sha", "content_sha", "redaction_policy", "review", "review_digest"),
    }
)
SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]*")

# What quantities may be parted by, besides `kind` of tool or gap.
PARTS = ("model", "harness", "harness_version", "source", "split", "language", "contributor", "outcome", "task_id")

type OnDuplicate = Literal["keep", "mark", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Limits that a session must hold to be kept; None or empty: no limit. `curate.filters` gives the reasons.

    A session of which a limited quantity is unknown is dropped, with a reason that says so. Lists of harnesses,
    models, sources, licences and consents hold glob patterns, compared without regard to case. `false` asks nothing.
    """

    min_requests: int | None = None
    max_requests: int | None = None
    min_turns: int | None = None  # calls of kind `turn` on the main chain
    max_turns: int | None = None
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    min_context_tokens: int | None = None  # longest prompt of the session
    max_context_tokens: int | None = None
    min_context_growth: float | None = None  # longest prompt of the main chain ÷ its first
    max_context_growth: float | None = None
    min_output_tokens: int | None = None  # sum over the session
    max_output_tokens: int | None = None
    max_errors: int | None = None  # requests that ended in an error
    max_error_share: float | None = None
    complete: bool | None = None  # True: no recorder gap, no missing body, all calls seen to their end
    max_gaps: int | None = None
    outcomes: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()  # at least one of them among the files touched
    not_languages: tuple[str, ...] = ()
    min_language_share: float | None = None  # of the named languages together
    repo_licenses: tuple[str, ...] = ()  # SPDX ids
    licenses: tuple[str, ...] = ()
    consents: tuple[str, ...] = ()
    require_consent: bool | None = None
    harnesses: tuple[str, ...] = ()
    not_harnesses: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # every model that a session's turns called must match one
    not_models: tuple[str, ...] = ()  # none may match
    sources: tuple[str, ...] = ()
    require_text: bool | None = None
    require_times: bool | None = None
    exclude_sessions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """What to do with sessions that say the same; `mark` keeps them with `dup_cluster` and `dup_role`."""

    exact: OnDuplicate = "keep"  # at least what `near` says: nothing is nearer
    near: OnDuplicate = "keep"  # MinHash over five words in a row, and a session that another begins with
    similarity: float = 0.85  # estimated Jaccard from which two sessions are near duplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """Cut what is too long rather than drop the session."""

    context_tokens: int | None = None  # a longer prompt (by our count) ends its chain
    message_bytes: int | None = 8_000_000  # longer contents are cut in the middle; `messages.truncated_bytes` says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Keep so many sessions, drawn by a seeded hash, so that a quantity is spread as asked."""

    sessions: int | None = None  # None: as many as the shares allow
    seed: int = 0
    by: str | None = None  # a numeric or text column of `sessions`; None: draw evenly
    edges: tuple[float, ...] = ()  # of bins [a, b); the last holds its upper edge too
    values: tuple[str, ...] = ()  # instead of edges, for a text column
    shares: tuple[float, ...] = ()  # one per bin or value; they sum to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RedactionPolicy:
    """What is taken out of texts. Secrets always are."""

    identity: bool = True  # e-mails, user names, home paths, host names, git remotes: consistent pseudonyms
    scanner: bool = True  # betterleaks beside our own rules; without it recall is lower, and the card says so
    values: tuple[str, ...] = ()  # exact texts to take out as well, such as a project's code name
    allow: tuple[str, ...] = ()  # exact texts that are no finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """How sessions are divided; the same group always lands in the same split."""

    by: Literal["session", "contributor", "task_id", "harness"] = "session"
    shares: dict[str, float] = field(default_factory=lambda: {"train": 1.0})
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What `stats.json` and the card show."""

    by: tuple[str, ...] = ("model", "harness")  # parts of every quantity, from PARTS
    plots: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything about a dataset that its sessions cannot tell. Holds no path of the machine: it is published."""

    name: str | None = None
    pretty_name: str | None = None
    license: str | None = None  # SPDX id for sessions that bring none
    consent: str | None = None  # for sessions that bring none
    tokenizer: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    card: str | None = None  # text spliced into the card
    filters: Filters = Filters()
    duplicates: Duplicates = Duplicates()
    truncate: Truncate = Truncate()
    sample: Sample = Sample()
    redaction: RedactionPolicy = RedactionPolicy()
    splits: Splits = field(default_factory=Splits)
    statistics: Statistics = Statistics()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    """A recipe and what it names on this machine; paths count from the recipe's own folder."""

    recipe: Recipe
    stores: tuple[Path, ...]
    labels: Path | None


def published(recipe: Recipe) -> Recipe:
    """The recipe as others may read it: how many texts are taken out, not which."""
    values = tuple(f"<value {number}>" for number, _ in enumerate(recipe.redaction.values, start=1))
    return replace(recipe, redaction=replace(recipe.redaction, values=values))


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe; raises ValueError naming the file and the key that is wrong."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise ValueError(f"recipe {path} cannot be read: {fault.strerror or fault}") from fault
    except UnicodeDecodeError as fault:
        raise ValueError(f"recipe {path} is no UTF-8 text: {fault.reason} at byte {fault.start}") from fault
    except tomllib.TOMLDecodeError as fault:
        raise ValueError(f"recipe {path}: {fault}") from fault
    stores, labels = found.pop("stores", []), found.pop("labels", None)
    if not isinstance(stores, list) or not all(isinstance(item, str) for item in stores):
        raise ValueError(f"recipe {path}: stores must be a list of folders")
    if labels is not None and not isinstance(labels, str):
        raise ValueError(f"recipe {path}: labels must be the name of a file")
    _refuse_unknown(found, Recipe, f"recipe {path}:")
    try:
        recipe = msgspec.convert({"name": path.stem, **found}, Recipe)
    except msgspec.ValidationError as fault:
        raise ValueError(f"recipe {path}: {_in_words(str(fault))}") from fault
    _check(recipe, path)
    if recipe.card is not None:
        card = path.parent / recipe.card
        try:
            recipe = replace(recipe, card=card.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as fault:
            why = (fault.strerror or fault) if isinstance(fault, OSError) else "it is no UTF-8 text"
            raise ValueError(f"recipe {path}: card text {card} cannot be read: {why}") from fault
    return RecipeFile(
        recipe=recipe,
        stores=tuple(path.parent / Path(store).expanduser() for store in stores),
        labels=None if labels is None else path.parent / labels,
    )


def _refuse_unknown(found: dict[str, Any], type_: type, where: str) -> None:
    known = {each.name: each for each in fields(type_)}
    extra = {"stores", "labels"} if type_ is Recipe else set()
    for key, value in found.items():
        if key not in known:
            raise ValueError(f"{where} unknown key {key!r}; known are {', '.join(sorted(known.keys() | extra))}")
        default = TABLES.get(key) if type_ is Recipe else None
        if default is not None:
            if not isinstance(value, dict):
                raise ValueError(f"{where} {key} must be a table: [{key}]")
            _refuse_unknown(value, default, f"{where} [{key}]")


def _in_words(fault: str) -> str:
    """msgspec's sentence in a recipe's words: `Expected `int | null`, got `str` - at `$.filters.min_turns``."""
    said, _, place = fault.partition(" - at ")
    match = re.fullmatch(r"Expected `([^`]*)`, got `([^`]*)`", said)
    if match is not None:
        wanted = " or ".join(TYPES.get(word, word) for word in match[1].split(" | ") if word != "null")
        said = f"must be {wanted}, not {TYPES.get(match[2], match[2])}"
    key = place.strip("`").removeprefix("$.")
    if (match := re.fullmatch(r"Invalid enum value (.*)", said)) is not None:
        said = f"is one of {', '.join(_words_for(key))}, not {match[1]}"
    return f"{key} {said}" if place else said


def _words_for(place: str) -> tuple[str, ...]:
    """The words that `table.key` may have."""
    table, _, key = place.partition(".")
    hint = get_type_hints(TABLES[table])[key]
    return get_args(getattr(hint, "__value__", hint))


TYPES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def _check(recipe: Recipe, path: Path) -> None:
    for wrong, said in chain(
        _limits(recipe.filters),
        _lists(recipe),
        _sample(recipe.sample),
        _splits(recipe.splits),
        (
            (not 0 < recipe.duplicates.similarity <= 1, "[duplicates] similarity lies in (0, 1]"),
            (
                not set(recipe.statistics.by) <= set(PARTS),
                f"[statistics] by takes {', '.join(PARTS)}, not "
                + ", ".join(sorted(set(recipe.statistics.by) - set(PARTS))),
            ),
            (
                recipe.truncate.message_bytes is not None and recipe.truncate.message_bytes < LEAST_MESSAGE_BYTES,
                f"[truncate] message_bytes must be at least {LEAST_MESSAGE_BYTES}",
            ),
            (
                recipe.truncate.context_tokens is not None and recipe.truncate.context_tokens < 1,
                "[truncate] context_tokens must be at least 1",
            ),
        ),
    ):
        if wrong:
            raise ValueError(f"recipe {path}: {said}")


type Finding = tuple[bool, str]
"""Whether something is wrong, and what to say then."""


def _limits(filters: Filters) -> Iterator[Finding]:
    for each in fields(filters):
        value = getattr(filters, each.name)
        if isinstance(value, int | float):
            yield not 0 <= value < math.inf, f"[filters] {each.name} must be 0 or more"
            if each.name.endswith("_share"):
                yield value > 1, f"[filters] {each.name} is a share: it lies in [0, 1]"
        other = f"max_{each.name.removeprefix('min_')}"
        most = getattr(filters, other, None) if each.name.startswith("min_") else None
        if value is not None and most is not None:
            yield value > most, f"[filters] no session holds {each.name} = {value} and {other} = {most}"


def _lists(recipe: Recipe) -> Iterator[Finding]:
    from curate.labels import Outcome  # it needs the manifest, which holds a recipe

    known_outcomes = get_args(Outcome.__value__)
    filters = recipe.filters
    for outcome in filters.outcomes:
        said = f"[filters] outcome {outcome!r} is none of {', '.join(known_outcomes)}"
        yield outcome not in known_outcomes, said
    for language in (*filters.languages, *filters.not_languages):
        known = ", ".join(sorted(LANGUAGES))
        yield language not in LANGUAGES, f"[filters] language {language!r} is unknown; known are {known}"
    yield (
        filters.min_language_share is not None and not filters.languages,
        "[filters] min_language_share needs `languages`, of which it is the share",
    )
    yield "" in recipe.redaction.values, "[redaction] values must not hold an empty text: it is everywhere"
    yield "" in recipe.redaction.allow, "[redaction] allow must not hold an empty text"


def _sample(sample: Sample) -> Iterator[Finding]:
    bins = len(sample.values) or max(0, len(sample.edges) - 1)
    shares = sample.shares
    yield sample.sessions is not None and sample.sessions < 1, "[sample] sessions must be at least 1"
    yield bool(sample.edges and sample.values), "[sample] takes edges or values, not both"
    yield (
        sample.by is None and bool(sample.edges or sample.values or shares),
        "[sample] edges, values and shares need `by`, the column that they are about",
    )
    if sample.by is None:
        return
    columns = _columns()
    yield (
        sample.by not in columns,
        f"[sample] cannot spread by {sample.by!r}; columns are {', '.join(sorted(columns))}",
    )
    number = columns.get(sample.by) == "number"
    yield number and bool(sample.values), f"[sample] {sample.by} is a number: it takes edges, not values"
    yield not number and bool(sample.edges), f"[sample] {sample.by} is a text: it takes values, not edges"
    yield bins == 0, f"[sample] needs the {'edges' if number else 'values'} of {sample.by}, and a share for each"
    yield len(shares) != bins, f"[sample] has {len(shares)} shares for {bins} bins"
    yield (
        any(not a < b for a, b in pairwise(sample.edges)) or any(not math.isfinite(edge) for edge in sample.edges),
        "[sample] edges must be numbers that rise",
    )
    yield len(set(sample.values)) < len(sample.values), "[sample] a value stands twice"
    yield any(not 0 <= share <= 1 for share in shares), "[sample] each share lies in [0, 1]"
    yield not abs(sum(shares) - 1) <= SUM_ERROR, "[sample] shares must sum to 1"


def _columns() -> dict[str, str]:
    """What a sample can be spread by → number or text."""
    import pyarrow as pa

    from curate.table import SESSIONS

    found = {"model": "text", "language": "text"}
    for column in SESSIONS.columns:
        if column.name in SESSIONS.text_columns | OF_THE_BUILD:
            continue
        if pa.types.is_integer(column.type):
            found[column.name] = "number"
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found[column.name] = "text"
    return found


def _splits(splits: Splits) -> Iterator[Finding]:
    shares = splits.shares.values()
    yield any(not 0 < share <= 1 for share in shares), "[splits] each share lies in (0, 1]"
    yield not abs(sum(shares) - 1) <= SUM_ERROR, "[splits] shares must sum to 1"
    yield (
        any(SPLIT_NAME.fullmatch(name) is None for name in splits.shares),
        "[splits] a name is lower-case letters, digits and underscores",
    )


TABLES: dict[str, type] = {
    "filters": Filters,
    "duplicates": Duplicates,
    "truncate": Truncate,
    "sample": Sample,
    "redaction": RedactionPolicy,
    "splits": Splits,
    "statistics": Statistics,
}

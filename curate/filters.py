"""Filters: whether a session holds the recipe's limits, and if not, why.

One reason for each session that is left out: the first limit that it misses, in the order of `FACTS` (whose session it
is and what it is about), then how long it is. Reasons name the recipe's limit and nothing of the session,
so that equal causes count together in the funnel. Of a limited quantity that is not wholly known, what is known
decides if it can (three known errors are too many for `max_errors = 2`); else the session goes as unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import Any

from capture.trajectory import Request, Trajectory
from curate.labels import Label
from curate.language import language_mix
from curate.recipe import Filters, Recipe
from curate.row import Rows


def facts_reason(trajectory: Trajectory, label: Label, recipe: Recipe) -> str | None:
    """Why a session is left out, as far as it tells as read; None: it stays so far.

    Where the recipe cuts sessions to a context limit, upper limits wait for `lengths_reason`: the rest may hold them.
    """
    session = _Session(trajectory, label, recipe)
    for fact in FACTS:
        reason = fact(session, recipe.filters)
        if reason is not None:
            return reason
    calls = [_call(partial(_column, request)) for request in trajectory.requests]
    limits = _limits(trajectory.duration_us, calls, recipe.filters, with_text=bool(trajectory.pool))
    return _size_reason(limits, upper=recipe.truncate.context_tokens is None)


def lengths_reason(rows: Rows, filters: Filters) -> str | None:
    """Why a session is left out as it stands in the dataset: cut, and counted by our own tokenizer where need be."""
    calls = [_call(row.get) for row in rows.requests]
    with_text = rows.session["content_sha"] is not None
    limits = _limits(rows.session["duration_us"], calls, filters, with_text=with_text)
    return _size_reason(chain(limits, _context_limits(calls, filters)), upper=True)


# Facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Session:
    """A session with all that is said about it."""

    trajectory: Trajectory
    label: Label
    recipe: Recipe

    @property
    def harness(self) -> str | None:
        return _told(self.trajectory.harness)

    @property
    def models(self) -> frozenset[str | None]:
        """Of its turns; a title may be written by another model. None: a turn that does not tell."""
        return frozenset(_told(each.model) for each in self.trajectory.requests if each.kind == "turn")

    @property
    def outcome(self) -> str:
        return self.label.outcome or self.trajectory.outcome

    @property
    def license(self) -> str | None:
        return self.label.license or self.trajectory.license or self.recipe.license

    @property
    def consent(self) -> str | None:
        return self.label.consent or self.trajectory.consent or self.recipe.consent


def _told(value: str) -> str | None:
    return None if value in ("", "unknown") else value


def _listed(said: str, value: str | None, patterns: tuple[str, ...]) -> str | None:
    """What is said of a value that none of some patterns matches; no patterns: nothing."""
    if not patterns:
        return None
    if value is None:
        return f"{said} unknown"
    return None if _matches(value, patterns) else f"{said} not among the recipe's"


def _matches(value: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns)


def _exclude(session: _Session, filters: Filters) -> str | None:
    return "excluded by the recipe" if session.trajectory.session_id in filters.exclude_sessions else None


def _source(session: _Session, filters: Filters) -> str | None:
    return _listed("source", session.trajectory.source, filters.sources)


def _harness(session: _Session, filters: Filters) -> str | None:
    if filters.not_harnesses:
        if session.harness is None:
            return "harness unknown"
        if _matches(session.harness, filters.not_harnesses):
            return "harness excluded by the recipe"
    return _listed("harness", session.harness, filters.harnesses)


def _models(session: _Session, filters: Filters) -> str | None:
    if not (filters.models or filters.not_models):
        return None
    if not session.models or None in session.models:
        return "model unknown"
    models = [model for model in session.models if model is not None]
    if any(_matches(model, filters.not_models) for model in models):
        return "model excluded by the recipe"
    if filters.models and not all(_matches(model, filters.models) for model in models):
        return "model not among the recipe's"
    return None


def _license(session: _Session, filters: Filters) -> str | None:
    return _listed("licence", session.license, filters.licenses)


def _repo_license(session: _Session, filters: Filters) -> str | None:
    return _listed("repository licence", session.label.repo_license, filters.repo_licenses)


def _consent(session: _Session, filters: Filters) -> str | None:
    if filters.require_consent and session.consent is None:
        return "no consent"
    return _listed("consent", session.consent, filters.consents)


def _text(session: _Session, filters: Filters) -> str | None:
    return "no text" if filters.require_text and not session.trajectory.pool else None


def _times(session: _Session, filters: Filters) -> str | None:
    if not filters.require_times:
        return None
    timed = all(
        each.t_send_us is not None and (each.t_end_us is not None or each.error is not None)
        for each in session.trajectory.requests
    )
    return None if timed else "times unknown"


def _complete(session: _Session, filters: Filters) -> str | None:
    quality = session.trajectory.quality
    if filters.complete and not quality.complete:
        return "recording incomplete"
    if filters.max_gaps is not None and quality.gaps > filters.max_gaps:
        return f"more than {_count(filters.max_gaps, 'recorder gap')}"
    return None


def _outcome(session: _Session, filters: Filters) -> str | None:
    if not filters.outcomes or session.outcome in filters.outcomes:
        return None
    return f"outcome {session.outcome}, and the recipe asks for {' or '.join(filters.outcomes)}"


def _languages(session: _Session, filters: Filters) -> str | None:
    if not (filters.languages or filters.not_languages):
        return None
    mix = dict(language_mix(session.trajectory) or ())
    if not mix:
        return "languages unknown"
    if not mix.keys().isdisjoint(filters.not_languages):
        return "a language excluded by the recipe"
    if filters.languages and mix.keys().isdisjoint(filters.languages):
        return "no file in the recipe's languages"
    share = sum(mix.get(language, 0) for language in dict.fromkeys(filters.languages))
    # Shares are quotients: three tenths are three tenths.
    if filters.min_language_share is not None and share < filters.min_language_share - 1e-9:
        return f"less than {filters.min_language_share:.0%} in the recipe's languages"
    return None


type Fact = Callable[[_Session, Filters], str | None]

FACTS: tuple[Fact, ...] = (
    _exclude,
    _source,
    _harness,
    _models,
    _license,
    _repo_license,
    _consent,
    _text,
    _times,
    _complete,
    _outcome,
    _languages,
)


# Sizes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What the limits look at of one request."""

    turn: bool  # of the main chain
    failed: bool
    told: bool  # the source says whether it failed
    speaks: bool  # it may have answered something: neither refused nor auxiliary
    output_tokens: int | None
    context_tokens: int | None


def _call(of: Callable[[str], Any]) -> _Call:
    """From the columns of a request; `prompt_tokens_est` is None before it is counted."""
    status, error, kind, prompt = of("status"), of("error"), of("kind"), of("prompt_tokens")
    return _Call(
        turn=kind == "turn" and of("agent_path") == "main",
        failed=error is not None,
        told=status is not None or error is not None,
        speaks=kind == "turn" and (status is None or status < 400),
        output_tokens=of("completion_tokens"),
        context_tokens=of("prompt_tokens_est") if prompt is None else prompt,
    )


def _column(request: Request, name: str) -> Any:
    return getattr(request, name, None)


@dataclass(frozen=True, slots=True)
class _Size:
    """A quantity: at least `low`, at most `high` (None: nobody knows)."""

    low: float
    high: float | None

    def over(self, divisor: float) -> _Size:
        return _Size(self.low / divisor, None if self.high is None else self.high / divisor)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """A quantity, its limits, and what is said of one that misses them."""

    name: str
    size: _Size
    least: float | None = None
    most: float | None = None
    below: str = ""
    above: str = ""

    def reason(self, *, upper: bool) -> str | None:
        low, high = self.size.low, self.size.high
        if self.least is not None and low < self.least:
            return self.below if high is not None and high < self.least else f"{self.name} unknown"
        if upper and self.most is not None and (high is None or high > self.most):
            return self.above if low > self.most else f"{self.name} unknown"
        return None


def _size_reason(limits: Iterable[_Limit], *, upper: bool) -> str | None:
    return next((reason for limit in limits if (reason := limit.reason(upper=upper)) is not None), None)


def _limits(duration_us: int | None, calls: Sequence[_Call], filters: Filters, *, with_text: bool) -> Iterator[_Limit]:
    """The limits that need no count of ours, in their order."""
    errors = sum(call.failed for call in calls)
    # A log that holds the words holds the faults as well, even without a status.
    errors_size = _Size(errors, errors if with_text or all(call.told for call in calls) else None)
    yield _counted("request", _Size(len(calls), len(calls)), filters.min_requests, filters.max_requests)
    turns = sum(call.turn for call in calls)
    yield _counted("turn", _Size(turns, turns), filters.min_turns, filters.max_turns)
    seconds = None if duration_us is None else duration_us / 1_000_000
    yield _Limit(
        name="duration",
        size=_Size(seconds or 0, seconds),
        least=filters.min_duration_s,
        most=filters.max_duration_s,
        below=f"shorter than {_number(filters.min_duration_s)} s",
        above=f"longer than {_number(filters.max_duration_s)} s",
    )
    yield _counted("error", errors_size, None, filters.max_errors)
    yield _Limit(
        name="errors",
        size=errors_size.over(max(1, len(calls))),
        most=filters.max_error_share,
        above=f"more than {100 * (filters.max_error_share or 0):g}% of requests failed",
    )
    spoken = sum(call.output_tokens or 0 for call in calls)
    silent = any(call.output_tokens is None and call.speaks for call in calls)
    yield _counted(
        "output token", _Size(spoken, None if silent else spoken), filters.min_output_tokens, filters.max_output_tokens
    )


def _context_limits(calls: Sequence[_Call], filters: Filters) -> Iterator[_Limit]:
    contexts = _longest(call.context_tokens for call in calls)
    yield _counted("context token", contexts, filters.min_context_tokens, filters.max_context_tokens)
    turns = [call.context_tokens for call in calls if call.turn]
    yield _Limit(
        name="context growth",
        # Without a first prompt there is nothing to measure by.
        size=_longest(turns).over(turns[0]) if turns and turns[0] else _Size(0, None),
        least=filters.min_context_growth,
        most=filters.max_context_growth,
        below=f"context growth below {_number(filters.min_context_growth)}",
        above=f"context growth above {_number(filters.max_context_growth)}",
    )


def _longest(contexts: Iterable[int | None]) -> _Size:
    known = list(contexts)
    longest = max((tokens for tokens in known if tokens is not None), default=0)
    return _Size(longest, None if None in known or not known else longest)


def _counted(name: str, size: _Size, least: float | None, most: float | None) -> _Limit:
    return _Limit(
        name=f"{name}s",
        size=size,
        least=least,
        most=most,
        below=f"fewer than {_count(least, name)}",
        above=f"more than {_count(most, name)}",
    )


def _count(limit: float | None, name: str) -> str:
    return f"{_number(limit)} {name}{'' if limit == 1 else 's'}"


def _number(value: float | None) -> str:
    return "" if value is None else str(int(value)) if value == int(value) else str(value)

"""Every limit of a recipe keeps what holds it, and drops the rest with one reason that counts in a funnel."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import pytest

from capture.call import Message, ToolUse
from capture.trajectory import CaptureQuality, Trajectory
from curate.filters import facts_reason, lengths_reason
from curate.labels import Label
from curate.recipe import Filters, Recipe, Truncate
from curate.row import Rows, rows_of
from tests.sample_sessions import content_free_session, pooled, text_session

TEXT = text_session(turns=3)  # four requests, three turns of the main chain, prompts of 1000 to 3000 tokens
FREE = content_free_session(turns=3)


def of_request(session: Trajectory, index: int, **changes: Any) -> Trajectory:
    requests = list(session.requests)
    requests[index] = replace(requests[index], **changes)
    return replace(session, requests=tuple(requests))


def quality(**changes: Any) -> Trajectory:
    return replace(
        TEXT, quality=replace(CaptureQuality(complete=True, gaps=0, clock_err_us=0, body_missing=0), **changes)
    )


def reason(session: Trajectory, filters: Filters, label: Label | None = None, **recipe: Any) -> str | None:
    return facts_reason(session, label or Label(), Recipe(filters=filters, **recipe))


FACTS = [
    (TEXT, {"exclude_sessions": ("other",)}, None, None),
    (TEXT, {"exclude_sessions": ("session-a",)}, None, "excluded by the recipe"),
    (TEXT, {"sources": ("wire", "weka")}, None, None),
    (TEXT, {"sources": ("*-log",)}, None, "source not among the recipe's"),
    (TEXT, {"harnesses": ("Cod*",)}, None, None),
    (TEXT, {"harnesses": ("pi",)}, None, "harness not among the recipe's"),
    (replace(TEXT, harness="unknown"), {"harnesses": ("*",)}, None, "harness unknown"),
    (TEXT, {"not_harnesses": ("pi",)}, None, None),
    (TEXT, {"not_harnesses": ("cod*",)}, None, "harness excluded by the recipe"),
    (replace(TEXT, harness="unknown"), {"not_harnesses": ("pi",)}, None, "harness unknown"),
    (TEXT, {"models": ("model-?",)}, None, None),
    (TEXT, {"models": ("model-a",)}, None, "model not among the recipe's"),
    (of_request(TEXT, 3, kind="auxiliary"), {"models": ("model-a",)}, None, None),  # a title by another model
    (of_request(TEXT, 3, model=""), {"models": ("*",)}, None, "model unknown"),
    (of_request(TEXT, 3, model=""), {"not_models": ("x",)}, None, "model unknown"),
    (TEXT, {"not_models": ("*-b",)}, None, "model excluded by the recipe"),
    (TEXT, {"not_models": ("*-c",)}, None, None),
    (FREE, {"licenses": ("apache-2.0",)}, None, None),
    (FREE, {"licenses": ("MIT",)}, None, "licence not among the recipe's"),
    (FREE, {"licenses": ("MIT",)}, Label(license="MIT"), None),
    (TEXT, {"licenses": ("MIT",)}, None, "licence unknown"),
    (TEXT, {"repo_licenses": ("MIT", "BSD-*")}, Label(repo_license="BSD-3-Clause"), None),
    (TEXT, {"repo_licenses": ("MIT",)}, Label(repo_license="GPL-3.0"), "repository licence not among the recipe's"),
    (TEXT, {"repo_licenses": ("MIT",)}, None, "repository licence unknown"),
    (TEXT, {"require_consent": True}, None, "no consent"),
    (TEXT, {"require_consent": False}, None, None),
    (TEXT, {"require_consent": True}, Label(consent="c1"), None),
    (replace(TEXT, consent="c1"), {"require_consent": True, "consents": ("c1",)}, None, None),
    (replace(TEXT, consent="c2"), {"consents": ("c1",)}, None, "consent not among the recipe's"),
    (TEXT, {"consents": ("c1",)}, None, "consent unknown"),
    (TEXT, {"require_text": True}, None, None),
    (FREE, {"require_text": True}, None, "no text"),
    (FREE, {"require_text": False}, None, None),
    (TEXT, {"require_times": True}, None, None),
    (of_request(TEXT, 1, t_send_us=None), {"require_times": True}, None, "times unknown"),
    (of_request(TEXT, 1, t_end_us=None), {"require_times": True}, None, "times unknown"),
    (of_request(TEXT, 1, t_end_us=None, error="cut"), {"require_times": True}, None, None),
    (TEXT, {"complete": True, "max_gaps": 0}, None, None),
    (quality(complete=False), {"complete": True}, None, "recording incomplete"),
    (quality(complete=False), {"complete": False}, None, None),
    (quality(gaps=2), {"max_gaps": 1}, None, "more than 1 recorder gap"),
    (TEXT, {"outcomes": ("success",)}, None, "outcome unknown, and the recipe asks for success"),
    (TEXT, {"outcomes": ("unknown",)}, None, None),
    (replace(TEXT, outcome="failure"), {"outcomes": ("success",)}, Label(outcome="success"), None),
    (
        replace(TEXT, outcome="failure"),
        {"outcomes": ("success", "abandoned")},
        None,
        "outcome failure, and the recipe asks for success or abandoned",
    ),
    (TEXT, {"languages": ("rust", "python"), "min_language_share": 1.0}, None, None),
    (TEXT, {"languages": ("rust",)}, None, "no file in the recipe's languages"),
    (TEXT, {"not_languages": ("python",)}, None, "a language excluded by the recipe"),
    (TEXT, {"not_languages": ("rust",)}, None, None),
    (FREE, {"languages": ("rust",)}, None, "languages unknown"),
    (FREE, {"not_languages": ("rust",)}, None, "languages unknown"),
]


@pytest.mark.parametrize(("session", "limits", "label", "expected"), FACTS)
def test_a_fact_keeps_or_drops(
    session: Trajectory, limits: dict[str, Any], label: Label | None, expected: str | None
) -> None:
    assert reason(session, Filters(**limits), label) == expected


SIZES = [
    (TEXT, {"min_requests": 4, "max_requests": 4}, None),
    (TEXT, {"min_requests": 5}, "fewer than 5 requests"),
    (TEXT, {"max_requests": 1}, "more than 1 request"),
    (TEXT, {"min_turns": 3, "max_turns": 3}, None),
    (TEXT, {"min_turns": 4}, "fewer than 4 turns"),
    (TEXT, {"max_turns": 2}, "more than 2 turns"),
    (TEXT, {"min_duration_s": 30, "max_duration_s": 30}, None),
    (TEXT, {"min_duration_s": 30.5}, "shorter than 30.5 s"),
    (TEXT, {"max_duration_s": 29}, "longer than 29 s"),
    (replace(TEXT, duration_us=None), {"min_duration_s": 1}, "duration unknown"),
    (replace(TEXT, duration_us=None), {"max_duration_s": 1}, "duration unknown"),
    (replace(TEXT, duration_us=None), {"min_turns": 1}, None),
    (TEXT, {"max_errors": 0, "max_error_share": 0}, None),
    (of_request(TEXT, 1, error="x"), {"max_errors": 0}, "more than 0 errors"),
    (of_request(TEXT, 1, error="x"), {"max_errors": 1, "max_error_share": 0.25}, None),
    (of_request(TEXT, 1, error="x"), {"max_error_share": 0.2}, "more than 20% of requests failed"),
    (of_request(FREE, 1, status=None), {"max_errors": 0}, "errors unknown"),
    (of_request(FREE, 1, status=None), {"max_error_share": 0.1}, "errors unknown"),
    (of_request(TEXT, 1, status=None), {"max_errors": 0}, None),  # a log that holds the words holds the faults
    (TEXT, {"min_output_tokens": 200, "max_output_tokens": 200}, None),
    (TEXT, {"min_output_tokens": 201}, "fewer than 201 output tokens"),
    (TEXT, {"max_output_tokens": 199}, "more than 199 output tokens"),
    (of_request(TEXT, 1, completion_tokens=None), {"min_output_tokens": 150}, None),  # what is known suffices
    (of_request(TEXT, 1, completion_tokens=None), {"min_output_tokens": 151}, "output tokens unknown"),
    (of_request(TEXT, 1, completion_tokens=None), {"max_output_tokens": 149}, "more than 149 output tokens"),
    (of_request(TEXT, 1, completion_tokens=None), {"max_output_tokens": 999}, "output tokens unknown"),
    (of_request(TEXT, 1, completion_tokens=None, status=429), {"max_output_tokens": 150}, None),  # it answered nothing
    (of_request(TEXT, 1, completion_tokens=None, kind="auxiliary"), {"max_output_tokens": 150}, None),
]


@pytest.mark.parametrize(("session", "limits", "expected"), SIZES)
def test_a_size_keeps_or_drops_before_and_after_counting(
    session: Trajectory, limits: dict[str, Any], expected: str | None
) -> None:
    assert reason(session, Filters(**limits)) == expected
    rows = rows_of(session)
    assert lengths_reason(rows, Filters(**limits)) == expected
    # As they are looked at again for another recipe: without texts and lists.
    bare = [{name: value for name, value in row.items() if not isinstance(value, list)} for row in rows.requests]
    session_row = {name: value for name, value in rows.session.items() if not isinstance(value, list)}
    assert lengths_reason(Rows(session=session_row, requests=bare, tool_calls=[]), Filters(**limits)) == expected


def rows_with(*contexts: int | None, first: int | None = 1000) -> Rows:
    """Rows of a session with these prompts behind the first; the provider counted none of them."""
    session = text_session(turns=len(contexts) + 1)
    rows = rows_of(replace(session, requests=session.requests[:-1]))
    for row, tokens in zip(rows.requests, (first, *contexts), strict=True):
        row |= {"prompt_tokens": None, "prompt_tokens_est": tokens}
    return rows


@pytest.mark.parametrize(
    ("rows", "limits", "expected"),
    [
        (rows_with(2000, 3000), {"min_context_tokens": 3000, "max_context_tokens": 3000}, None),
        (rows_with(2000, 3000), {"min_context_tokens": 3001}, "fewer than 3001 context tokens"),
        (rows_with(2000, 3000), {"max_context_tokens": 2999}, "more than 2999 context tokens"),
        (rows_with(2000, None), {"max_context_tokens": 1999}, "more than 1999 context tokens"),
        (rows_with(2000, None), {"max_context_tokens": 9999}, "context tokens unknown"),
        (rows_with(2000, None), {"min_context_tokens": 2000}, None),
        (rows_with(2000, None), {"min_context_tokens": 2001}, "context tokens unknown"),
        (rows_with(2000, 3000), {"min_context_growth": 3, "max_context_growth": 3}, None),
        (rows_with(2000, 3000), {"min_context_growth": 3.5}, "context growth below 3.5"),
        (rows_with(2000, 3000), {"max_context_growth": 2}, "context growth above 2"),
        (rows_with(2000, None), {"max_context_growth": 2}, "context growth unknown"),
        (rows_with(2000, None), {"max_context_growth": 1.5}, "context growth above 1.5"),
        (rows_with(2000, first=None), {"min_context_growth": 1}, "context growth unknown"),
        (rows_with(2000, first=0), {"max_context_growth": 9}, "context growth unknown"),
    ],
)
def test_contexts_count_once_they_are_counted(rows: Rows, limits: dict[str, Any], expected: str | None) -> None:
    assert lengths_reason(rows, Filters(**limits)) == expected
    assert reason(text_session(turns=1), Filters(**limits)) is None  # not counted yet


def test_the_providers_count_of_a_context_is_taken_first() -> None:
    rows = rows_with(2000)
    rows.requests[1] |= {"prompt_tokens": 5000}
    assert lengths_reason(rows, Filters(max_context_tokens=4000)) == "more than 4000 context tokens"


def test_upper_limits_wait_where_the_recipe_cuts_sessions() -> None:
    filters = Filters(max_turns=2, min_turns=2)
    assert reason(TEXT, filters, truncate=Truncate(context_tokens=1500)) is None
    assert reason(TEXT, replace(filters, min_turns=4), truncate=Truncate(context_tokens=1500)) == "fewer than 4 turns"
    assert lengths_reason(rows_of(TEXT), filters) == "more than 2 turns"
    assert lengths_reason(rows_of(replace(TEXT, requests=TEXT.requests[:1])), filters) == "fewer than 2 turns"


def test_the_recipes_licence_and_consent_count_for_sessions_that_bring_none() -> None:
    filters = Filters(licenses=("CC-BY-4.0",), require_consent=True)
    assert reason(TEXT, filters, license="CC-BY-4.0", consent="team") is None
    assert reason(FREE, filters, license="CC-BY-4.0", consent="team") == "licence not among the recipe's"


def test_the_first_limit_that_is_missed_is_the_reason() -> None:
    filters = Filters(harnesses=("pi",), outcomes=("success",), min_turns=9, max_errors=0)
    assert reason(TEXT, filters) == "harness not among the recipe's"
    assert reason(TEXT, replace(filters, harnesses=())) == "outcome unknown, and the recipe asks for success"
    assert reason(TEXT, replace(filters, harnesses=(), outcomes=())) == "fewer than 9 turns"


def test_shares_of_languages_are_what_they_look_like() -> None:
    def touching(*paths: str) -> Trajectory:
        uses = tuple(ToolUse(id=path, name="read", arguments=f'{{"path": "{path}"}}') for path in paths)
        return replace(TEXT, pool=(pooled(Message(role="assistant", content="", tool_calls=uses), 0),))

    session = touching(*(f"{n}.py" for n in range(7)), "a.rs", "a.c", "b.c")
    filters = Filters(languages=("python", "rust"), min_language_share=0.8)  # 0.7 + 0.1 is less to a computer
    assert reason(session, filters) is None
    assert reason(session, replace(filters, min_language_share=0.81)) == "less than 81% in the recipe's languages"


def test_without_filters_everything_stays() -> None:
    for session in (TEXT, FREE, quality(complete=False, gaps=9), replace(TEXT, duration_us=None)):
        assert reason(session, Filters()) is None
        assert lengths_reason(rows_of(session), Filters()) is None


def test_every_filter_has_a_case_and_reasons_name_no_session() -> None:
    limits = [case[1] for case in (*FACTS, *SIZES)]
    tried = {name for each in limits for name in each}  # type: ignore[attr-defined]
    contexts = {"min_context_tokens", "max_context_tokens", "min_context_growth", "max_context_growth"}
    assert tried | contexts == {each.name for each in fields(Filters)}
    said = [case[-1] for case in (*FACTS, *SIZES) if case[-1] is not None]
    assert not [reason for reason in said if re.search(r"session-|model-|[/\\]", str(reason))]

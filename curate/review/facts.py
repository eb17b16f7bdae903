"""The facts about a session that stand beside it in a review, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from curate.row import Row
from curate.words import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line: a name and a value; `warn` where it needs a look."""

    name: str
    value: str
    warn: bool = False


def facts_of(session: Row, requests: Sequence[Row]) -> tuple[Fact, ...]:
    """What is known; lines without a value are left out, but those that must not be missing for a release."""
    return tuple(_facts(session, requests))


def _facts(session: Row, requests: Sequence[Row]) -> Iterator[Fact]:
    get = session.get
    version = get("harness_version")
    yield Fact(name="agent", value=f"{get('harness') or 'unknown'}{f' {version}' if version else ''}")
    models = get("models") or list(dict.fromkeys(row["model"] for row in requests))
    yield Fact(name="models", value=", ".join(models))
    yield Fact(name="licence", value=get("license") or "not said", warn=not get("license"))
    yield Fact(name="consent", value=get("consent") or "not said", warn=not get("consent"))
    yield from _known(("contributor", get("contributor")), ("repository licence", get("repo_license")))
    outcome = get("outcome") or "unknown"
    said = get("outcome_source")
    yield Fact(name="outcome", value=f"{outcome} (by {said})" if said else outcome)
    yield from _known(
        ("task", get("task_id")),
        ("source", " ".join(word for word in (get("source"), get("capture_mode")) if word) or None),
        ("file", get("source_ref") or None),
        ("joined", ", ".join(get("joined") or ()) or None),
        ("started", _to_the_second(get("sent_at"))),
        ("took", duration(get("duration_us"))),
    )
    parts = [
        f"{name} {text}"
        for name, key in (("models", "api_us"), ("tools", "tool_us"), ("people", "human_us"))
        if (text := duration(get(key))) is not None
    ]
    yield from _known(("of which", ", ".join(parts) or None))
    counts = [("request", len(requests))]
    counts += [
        (name, get(key) or 0)
        for name, key in (("sub-agent", "num_subagents"), ("compaction", "num_compactions"), ("error", "num_errors"))
    ]
    yield Fact(name="counts", value=", ".join(count(n, name) for name, n in counts if n or name == "request"))
    tokens = [
        f"{name} {total:,}"
        for name, key in (
            ("prompts", "prompt_tokens_total"),
            ("from cache", "cached_tokens_total"),
            ("answers", "completion_tokens_total"),
        )
        if (total := get(key)) is not None
    ]
    yield from _known(
        ("tokens", ", ".join(tokens) or None),
        ("counted by", (get("source_tokenizer") or get("token_source")) if tokens else None),
    )
    if get("context_tokens_first") is not None:
        yield Fact(
            name="context",
            value=f"{get('context_tokens_first'):,} at first, {get('context_tokens_max'):,} at most",
        )
    languages = ", ".join(f"{each['lang']} {each['share']:.0%}" for each in get("lang_mix") or ())
    yield from _known(("languages", languages or None))
    yield Fact(name="redaction", value=get("redaction_policy") or "none ran", warn=get("redaction_counts") is None)
    quality = get("capture_quality")
    if quality is not None:
        whole = quality["complete"] and not quality["gaps"] and not quality["body_missing"]
        missing = f"{quality['gaps'] or 0} gaps, {quality['body_missing'] or 0} bodies missing"
        yield Fact(name="recording", value="complete" if whole else f"not complete: {missing}", warn=not whole)
    yield from _known(
        ("left out", f"{get('truncated_requests')} requests beyond the limit" if get("truncated_requests") else None),
        ("duplicates", f"{get('dup_role')} in {get('dup_cluster')}" if get("dup_cluster") else None),
        ("split", get("split")),
        ("metadata", get("metadata")),
    )


def _known(*facts: tuple[str, str | None]) -> Iterator[Fact]:
    for name, value in facts:
        if value is not None:
            yield Fact(name=name, value=value)


def _to_the_second(at: str | None) -> str | None:
    return None if at is None else f"{at[:19].replace('T', ' ')} UTC"


def duration(microseconds: int | None) -> str | None:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if microseconds is None:
        return None
    seconds = microseconds / 1e6
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"

"""The token-work audit: what each turn was planned to cost and what it did, so that only like work is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from replay.record import RequestRecord

PROMPT_TOLERANCE = 0.01
"""Of a turn set's prompt tokens: salts and templates make the same prompt a few tokens longer or shorter."""

OUTPUT_TOLERANCE = 0.02
"""Of its output tokens: servers count an end token or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnWork:
    """Work of one turn over all plays of it that were answered whole. Means of what the server counted."""

    session_id: str
    request_index: int
    requests: int
    planned_prompt_tokens: int | None
    planned_output_tokens: int
    prompt_tokens: float | None
    output_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAudit:
    """Planned and served tokens of a set of requests, by turn and in sum.

    The sums of planned and of served prompt tokens are over the requests where both are known; likewise of outputs.
    """

    turns: tuple[TurnWork, ...]  # in order of session and request
    requests: int
    planned_prompt_tokens: int
    served_prompt_tokens: int
    planned_output_tokens: int
    served_output_tokens: int
    digest: str  # over the turns and what was planned for each: equal digests are equal plans of equal turns


def token_work(records: Iterable[RequestRecord]) -> TokenAudit:
    """The audit over the requests that were answered whole."""
    by_turn: dict[tuple[str, int], list[RequestRecord]] = {}
    for record in records:
        if record.outcome == "ok":
            by_turn.setdefault((record.session_id, record.request_index), []).append(record)
    digest = hashlib.sha256()
    turns = []
    sums = [0, 0, 0, 0]
    for (session_id, request_index), group in sorted(by_turn.items()):
        first = group[0]
        planned_prompt, planned_output = first.planned_prompt_tokens, first.planned_output_tokens
        prompts = [record.prompt_tokens for record in group if record.prompt_tokens is not None]
        outputs = [record.completion_tokens for record in group if record.completion_tokens is not None]
        if planned_prompt is not None:
            sums[0] += planned_prompt * len(prompts)
            sums[1] += sum(prompts)
        sums[2] += planned_output * len(outputs)
        sums[3] += sum(outputs)
        digest.update(repr((session_id, request_index, planned_prompt, planned_output)).encode())
        turns.append(
            TurnWork(
                session_id=session_id,
                request_index=request_index,
                requests=len(group),
                planned_prompt_tokens=planned_prompt,
                planned_output_tokens=planned_output,
                prompt_tokens=sum(prompts) / len(prompts) if prompts else None,
                output_tokens=sum(outputs) / len(outputs) if outputs else None,
            )
        )
    return TokenAudit(
        turns=tuple(turns),
        requests=sum(turn.requests for turn in turns),
        planned_prompt_tokens=sums[0],
        served_prompt_tokens=sums[1],
        planned_output_tokens=sums[2],
        served_output_tokens=sums[3],
        digest=digest.hexdigest(),
    )


def same_work(left: TokenAudit, right: TokenAudit) -> tuple[str, ...]:
    """Why two sets of requests did not do the same work; nothing where they did.

    Compared are the turns that both served, each weighing once, so that it does not matter how often which was played:
    what was planned must be equal, what was served must agree in sum to within 1 % of the prompt tokens and 2 % of the
    output tokens. Two sets without a common turn, or whose server counted nothing, did nothing comparable.
    """
    others = {(turn.session_id, turn.request_index): turn for turn in right.turns}
    pairs = [
        (turn, other) for turn in left.turns if (other := others.get((turn.session_id, turn.request_index))) is not None
    ]
    if not pairs:
        return ("no turn was served in both",)
    found = []
    unlike = [
        (one, two)
        for one, two in pairs
        if (one.planned_prompt_tokens, one.planned_output_tokens)
        != (two.planned_prompt_tokens, two.planned_output_tokens)
    ]
    if unlike:
        one, two = unlike[0]
        found.append(
            f"{len(unlike)} of {len(pairs)} common turns were planned unlike: session {one.session_id}, request "
            f"{one.request_index}: {_planned(one)} against {_planned(two)}"
        )
    for name, tolerance, counted in (
        ("prompt", PROMPT_TOLERANCE, [(one.prompt_tokens, two.prompt_tokens) for one, two in pairs]),
        ("output", OUTPUT_TOLERANCE, [(one.output_tokens, two.output_tokens) for one, two in pairs]),
    ):
        both = [(one, two) for one, two in counted if one is not None and two is not None]
        if not both:
            found.append(f"{name} tokens: no common turn was counted by both servers")
            continue
        first, second = sum(one for one, _ in both), sum(two for _, two in both)
        if abs(first - second) > tolerance * max(first, second):
            found.append(
                f"{name} tokens of the {len(both)} common turns: {first:,.0f} against {second:,.0f}, "
                f"more than {tolerance:.0%} apart"
            )
    return tuple(found)


def _planned(turn: TurnWork) -> str:
    prompt = "text" if turn.planned_prompt_tokens is None else f"{turn.planned_prompt_tokens:,}"
    return f"{prompt} in, {turn.planned_output_tokens:,} out"

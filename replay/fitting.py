"""Which sessions of a dataset a server can be asked to serve, by the rules of the plan, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from replay.plan import EmptyPlan, LeftOut, make_plan, token_id_range
from replay.score import text_bound

if TYPE_CHECKING:
    from capture.trajectory import Trajectory
    from replay.probe import ProbeReport
    from replay.rules import ContextPolicy, LengthPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingSession:
    """A session that can be replayed."""

    session_id: str
    turns: int
    longest_context_tokens: int | None  # prompt and output of its longest turn; for text an estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """A dataset against a server."""

    context_limit: int | None
    fits: tuple[FittingSession, ...]
    left_out: tuple[LeftOut, ...]


def fitting(
    trajectories: Iterable[Trajectory],
    report: ProbeReport,
    *,
    dataset_digest: str,
    context: ContextPolicy,
    length: LengthPolicy,
) -> Fitting:
    """Which sessions fit the server that was probed, as a run with these rules would have it."""
    if context.limit is None:
        context = replace(context, limit=report.context_tokens)
    if report.text_tokens_x is not None:
        context = replace(context, text_tokens_x=text_bound(report.text_tokens_x))
    refused: list[LeftOut] = []

    def taken() -> Iterator[Trajectory]:
        for trajectory in trajectories:
            reason = _refusal(trajectory, report)
            if reason is None:
                yield trajectory
            else:
                refused.append(LeftOut(session_id=trajectory.session_id, reason=reason))

    try:
        plan = make_plan(
            taken(),
            dataset_digest=dataset_digest,
            context=context,
            length=length,
            token_ids=token_id_range(report.vocabulary_tokens),
        )
    except EmptyPlan as fault:
        return Fitting(context_limit=context.limit, fits=(), left_out=_ordered(refused, fault.left_out))
    fits = tuple(
        FittingSession(
            session_id=session.session_id,
            turns=session.turns,
            longest_context_tokens=session.longest_context_tokens,
        )
        for session in plan.summary().sessions
    )
    return Fitting(context_limit=context.limit, fits=fits, left_out=_ordered(refused, plan.left_out))


def _refusal(trajectory: Trajectory, report: ProbeReport) -> str | None:
    if not trajectory.pool and report.token_prompts != "exact":  # noqa: S105 - tokens of a model, not secrets
        return f"it holds no text, and the server does not take token ids as they are ({report.token_prompts_evidence})"
    if trajectory.tool_sets and report.tools == "refused":
        return f"it has tools, and the server does not take them ({report.tools_evidence})"
    return None


def _ordered(*parts: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    return tuple(sorted((left_out for part in parts for left_out in part), key=lambda entry: entry.session_id))


def fitting_lines(found: Fitting) -> list[str]:
    """The sessions for a terminal: how many fit, the longest first, then those that do not, with the reason."""
    total = len(found.fits) + len(found.left_out)
    limit = "unknown" if found.context_limit is None else f"{found.context_limit} tokens"
    lines = [f"[dataset] {len(found.fits)} of {total} sessions fit; context limit {limit}"]
    longest = sorted(found.fits, key=lambda session: (-(session.longest_context_tokens or 0), session.session_id))
    for session in longest:
        tokens = "unknown" if session.longest_context_tokens is None else str(session.longest_context_tokens)
        lines.append(f"  fits      {session.session_id}  {session.turns} turns, longest context {tokens} tokens")
    lines += [f"  left out  {entry.session_id}  {entry.reason}" for entry in found.left_out]
    return lines

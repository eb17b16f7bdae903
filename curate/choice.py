"""The reduce step: which of the sessions that were built stay, decided over their keys alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from curate.duplicates import find_duplicates
from curate.features import Features, sample_value
from curate.filters import lengths_reason
from curate.finish import rows_without_text
from curate.intake import Present
from curate.manifest import Stage
from curate.receipts import Ledger, ShardReceipt
from curate.recipe import Filters, Recipe
from curate.review.decision import Decisions, drop_reason
from curate.row import Late, Rows
from curate.sample import draw
from curate.shard import filters_digest


@dataclass(slots=True, kw_only=True)
class Choice:
    """Who stays and who goes."""

    kept: dict[str, Late] = field(default_factory=dict)  # by session id, in the order of reading
    left_out: dict[str, tuple[Stage, str]] = field(default_factory=dict)  # by session id
    requests: int = 0  # of the sessions kept

    @property
    def counts(self) -> Counter[tuple[Stage, str]]:
        """Sessions left out, by stage and reason."""
        return Counter(self.left_out.values())


def choose(folder: Path, sessions: Sequence[Present], ledger: Ledger, recipe: Recipe) -> Choice:
    """Filters, where they are not those that the work was done under; then duplicates, the sample, and what a reviewer
    or a contributor took out before.
    """
    choice = Choice()
    again = _Again(folder, recipe)
    features: dict[str, Features] = {}
    for session in sessions:
        receipt, work = ledger.receipt_of(session.input), ledger.work_of(session.input)
        assert receipt is not None
        assert work is not None
        found = work.features
        if work.digest is None or found is None:
            choice.left_out[session.session_id] = "filter", work.reason or "gives no rows"
        elif session.reason is not None:
            choice.left_out[session.session_id] = "filter", session.reason
        elif (reason := again.reason(receipt, session.session_id)) is not None:
            choice.left_out[session.session_id] = "filter", reason
        else:
            features[session.session_id] = again.features(receipt, found)
    verdicts = find_duplicates(tuple(features.values()), recipe.duplicates)
    for session_id, verdict in verdicts.items():
        if verdict.reason is not None:
            choice.left_out[session_id] = "duplicate", verdict.reason
            del features[session_id]
    for session_id, reason in draw(tuple(features.values()), recipe.sample).items():
        choice.left_out[session_id] = "sample", reason
        del features[session_id]
    decisions = Decisions(folder)
    for session in sessions:
        if session.session_id not in features:
            continue
        verdict_ = verdicts.get(session.session_id)
        late = Late(
            contributor_peak_agents=session.peak_agents,
            dup_cluster=None if verdict_ is None else verdict_.cluster,
            dup_role=None if verdict_ is None else verdict_.role,
        )
        work = ledger.work_of(session.input)
        standing = decisions.standing(session.session_id, late.digest((work and work.digest) or ""))
        if standing.state == "dropped":
            choice.left_out[session.session_id] = "review", drop_reason(standing)
        else:
            choice.kept[session.session_id] = late
            choice.requests += features[session.session_id].requests
    return choice


class _Again:
    """Sessions that were built under other filters or for another sample, looked at again by their rows."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder = folder
        self._recipe = recipe
        self._filters = filters_digest(recipe.filters)
        self._last: tuple[str, dict[str, Rows]] = ("", {})  # of one shard: they come one after the other

    def reason(self, receipt: ShardReceipt, session_id: str) -> str | None:
        """Why today's filters leave a session out."""
        if receipt.filters == self._filters or self._recipe.filters == Filters():
            return None
        return lengths_reason(self._rows(receipt)[session_id], self._recipe.filters)

    def features(self, receipt: ShardReceipt, features: Features) -> Features:
        """Features with the value that today's sample is spread by."""
        by = self._recipe.sample.by
        if by is None or receipt.sample_by == by:
            return features
        return replace(features, sample_value=sample_value(self._rows(receipt)[features.session_id], by))

    def _rows(self, receipt: ShardReceipt) -> dict[str, Rows]:
        if self._last[0] != receipt.input_digest:
            self._last = receipt.input_digest, rows_without_text(self._folder, receipt)
        return self._last[1]

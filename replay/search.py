"""The search for the largest passing number of agents, as one pure decision over what was tried.

Double from a start until a level fails, then bisect to the largest passing integer. A level that is invalid is
tried once more; invalid twice ends the search, since neither answer would be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

type Verdict = Literal["met", "missed", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One trial as the search sees it."""

    agents: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """Run a trial at this many agents next."""

    agents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The search is over. `agents` is the largest level that passed, 0 where none did.

    `bracketed`: agents + 1 failed. `maximum`: the largest allowed level passed, so the system may hold more.
    `invalid`: a level could not be measured twice, so the answer lies between `agents` and the next failed level.
    """

    agents: int
    reason: Literal["bracketed", "maximum", "invalid"]


def next_step(history: Sequence[Level], *, start: int, maximum: int) -> Try | Done:
    """What to do after these trials, in their order. `start` and `maximum` are at least 1."""
    if start < 1 or maximum < 1:
        raise ValueError("a search starts at 1 agent or more and ends at 1 or more")
    passed = max((level.agents for level in history if level.verdict == "met"), default=0)
    failed = min((level.agents for level in history if level.verdict == "missed"), default=None)
    if failed is not None and failed <= passed:
        raise ValueError(f"the history holds {passed} as passed and {failed} as failed: not a search of this kind")
    if history and history[-1].verdict == "invalid":
        agents = history[-1].agents
        times = sum(level.agents == agents and level.verdict == "invalid" for level in history)
        return Try(agents=agents) if times < 2 else Done(agents=passed, reason="invalid")
    if failed is None:
        if passed >= maximum:
            return Done(agents=passed, reason="maximum")
        return Try(agents=min(maximum, 2 * passed if passed else start))
    if failed - passed == 1:
        return Done(agents=passed, reason="bracketed")
    return Try(agents=(passed + failed) // 2)

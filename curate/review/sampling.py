"""Which sessions of a large set a person looks at, and what a sample says about the rest.

All sessions of high risk are looked at; of the others, so many are drawn at random. The draw is seeded by the
dataset's own digest: nobody chooses it, and anybody with the folder can draw it again.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

CONFIDENCE = 0.95
_ASKED = re.compile(r"(\d+)|(\d+(?:\.\d+)?)%")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSize:
    """How many to draw of those that are not of high risk: a number, or a share of them."""

    sessions: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> SampleSize:
        """Of `50` or `10%`; raises ValueError for anything else."""
        match = _ASKED.fullmatch(text.strip())
        if match is None or float(match[1] or match[2]) == 0 or (match[2] and float(match[2]) > 100):
            raise ValueError(f"a sample is a number such as 50 or a share such as 10%, not {text!r}")
        return cls(sessions=int(match[1])) if match[1] else cls(share=float(match[2]) / 100)

    def of(self, population: int) -> int:
        """Sessions to draw from so many; a share is rounded up."""
        wanted = self.sessions if self.sessions is not None else math.ceil(round((self.share or 0) * population, 9))
        return min(population, wanted)

    def __str__(self) -> str:
        return str(self.sessions) if self.sessions is not None else f"{100 * (self.share or 0):g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The sessions to look at."""

    seed: str  # the dataset's content digest
    always: frozenset[str]  # of high risk
    drawn: frozenset[str]
    rest: int  # the sessions not of high risk, from which `drawn` was drawn

    def __contains__(self, session_id: str) -> bool:
        return session_id in self.always or session_id in self.drawn


def draw(size: SampleSize, seed: str, high: Iterable[str], others: Iterable[str]) -> Draw:
    """Draw without replacement: the smallest of the sessions' seeded hashes; the same in every order of sessions."""
    ranked = sorted(others, key=lambda name: (hashlib.sha256(f"review {seed} {name}".encode()).digest(), name))
    return Draw(seed=seed, always=frozenset(high), drawn=frozenset(ranked[: size.of(len(ranked))]), rest=len(ranked))


def most_bad_left(bad: int, drawn: int, population: int) -> int:
    """Of `population` sessions `drawn` were drawn and `bad` of them were bad: how many of the others may be, at most.

    The one-sided 95 % bound of the hypergeometric distribution (Buonaccorsi 1987): the most for which so few bad ones
    in the draw have a chance above 5 %. For none bad in a small draw of many it is about 3/drawn of the others.
    """
    left = population - drawn
    low, high = 0, left
    while low < high:
        middle = (low + high + 1) // 2
        if _at_most(bad, drawn, population, bad + middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle - 1
    return low


def _at_most(bad: int, drawn: int, population: int, bad_in_all: int) -> float:
    """Chance that a draw holds at most `bad`."""
    total = _log_choose(population, drawn)
    return math.fsum(
        math.exp(_log_choose(bad_in_all, k) + _log_choose(population - bad_in_all, drawn - k) - total)
        for k in range(max(0, drawn - (population - bad_in_all)), min(bad, bad_in_all) + 1)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

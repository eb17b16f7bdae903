"""The rules by which a recorded session becomes a script: delays, output lengths, context lengths, cache isolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capture.trajectory import GapKind

type Isolation = Literal["play", "run", "none"]
"""Which requests may share a prefix in the server's cache. `play`: those of one play only. `run`: all of this run, none
of any other run. `none`: also those of earlier runs, so a warm server makes a second run faster."""

TEMPERATURE = 0.0
"""Sent with every request, so that two runs ask for the same work."""

LONGEST_FREE_OUTPUT = 16_384
"""Output limit, in tokens, where the model may stop by itself: it ends repetition loops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayPolicy:
    """What an agent waits for between turns. Gaps are capped, each kind by its own rule, in seconds.

    The default: human gaps 0; tool gaps as recorded up to 300 s; gaps that the source does not split into
    tool and human time up to 10 s.
    """

    human_cap_s: float = 0.0
    tool_cap_s: float = 300.0
    unsplit_cap_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("human_cap_s", "tool_cap_s", "unsplit_cap_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"delay policy: {name} is {getattr(self, name)}; it must be 0 or more seconds")

    @property
    def policy_id(self) -> str:
        """Short name that stands beside every N; results under unlike policies never compare."""
        return f"human{self.human_cap_s:g}-tool{self.tool_cap_s:g}-unsplit{self.unsplit_cap_s:g}"

    def delay_us(self, gap_us: int, kind: GapKind, think_us: int | None) -> int:
        """Microseconds to wait for a recorded gap.

        A gap that holds tool and human time is split by `think_us` and each part capped by its own rule. Time in which
        the client worked or started a sub-agent counts as tool time.
        """
        if kind == "none" or gap_us <= 0:
            return 0
        if kind == "unsplit":
            return min(gap_us, _microseconds(self.unsplit_cap_s))
        human_us = gap_us if kind == "human" else 0
        if think_us is not None:
            human_us = min(max(think_us, 0), gap_us)
        return min(human_us, _microseconds(self.human_cap_s)) + min(gap_us - human_us, _microseconds(self.tool_cap_s))


def _microseconds(seconds: float) -> int:
    # A cap may be infinite: "as recorded".
    return round(min(seconds, 1e9) * 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPolicy:
    """How the output length is set: `exact` forces the recorded length past the end token, `free` lets the model stop.

    `scale` and `cap` shorten the recorded lengths (never below 1); both print in the result.
    """

    mode: Literal["exact", "free"] = "exact"
    scale: float = 1.0
    cap: int | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"length policy: scale is {self.scale}; it must be above 0")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"length policy: cap is {self.cap}; it must be at least 1 token")

    def output_tokens(self, recorded: int) -> int:
        """Output length in tokens for a recorded one; a recorded 0 becomes 1, since no server sends an empty answer."""
        tokens = max(1, round(recorded * self.scale))
        return tokens if self.cap is None else min(tokens, self.cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPolicy:
    """How contexts are shortened, if at all, keeping the prefix-sharing structure; prints in the result.

    `scale` multiplies every message (or hashed block) by the same factor. Sessions whose longest scaled context
    does not fit `limit` tokens are left out and listed. Text is counted by another tokenizer than the server's:
    `text_tokens_x` is how many tokens the server makes of one counted token, where that was measured.
    """

    scale: float = 1.0
    limit: int | None = None
    text_tokens_x: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"context policy: scale is {self.scale}; it must be above 0 and at most 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"context policy: limit is {self.limit}; it must be at least 1 token")
        if not self.text_tokens_x > 0:
            raise ValueError(f"context policy: text_tokens_x is {self.text_tokens_x}; it must be above 0")

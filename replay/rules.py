"""The rules by which a recorded session becomes a script: output and context lengths, isolation, history, retries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

type Isolation = Literal["play", "agent", "run", "none"]
"""Which requests may share a prefix in the server's cache. `play`: those of one play only. `agent`: all plays of one
agent in one trial. `run`: all of this run, none of any other run. `none`: also those of earlier runs, so a warm server
makes a second run faster."""

type History = Literal["recorded", "live"]
"""What the model is told that it has said. `recorded`: what it said when the session was recorded. `live`: the text
that it gave in this play; the recorded tool calls stay, so that the tool results still fit."""

type Retries = Literal["drop", "keep"]
"""Requests that failed when they were recorded, and those that repeat one that succeeded. `drop`: left out, and what
waited for them waits for what they waited for. `keep`: sent like any other request, with the recorded back-off."""

TEMPERATURE = 0.0
"""Sent with every request, so that two runs ask for the same work."""

LONGEST_FREE_OUTPUT = 16_384
"""Output limit, in tokens, where the model may stop by itself: it ends repetition loops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPolicy:
    """How the output length is set: `exact` forces the recorded length past the end token, `free` lets the model stop.

    `scale` and `cap` shorten the recorded lengths (never below 1); both print in the result. With `free`, `cap` is the
    longest answer that is asked for.
    """

    mode: Literal["exact", "free"] = "exact"
    scale: float = 1.0
    cap: int | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"length policy: scale is {self.scale}; it must be above 0")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"length policy: cap is {self.cap}; it must be at least 1 token")

    @classmethod
    def parse(cls, text: str) -> LengthPolicy:
        """A policy from `exact`, `capped:TOKENS`, `free` or `free:TOKENS`; raises ValueError with the grammar."""
        name, colon, number = text.strip().partition(":")
        numbered = {"exact": (False,), "capped": (True,), "free": (False, True)}.get(name, ())
        if bool(colon) not in numbered or (colon and not (number.isascii() and number.isdecimal())):
            raise ValueError(f"a length is exact, capped:TOKENS, free or free:TOKENS; not {text!r}")
        return cls(mode="free" if name == "free" else "exact", cap=int(number) if colon else None)

    @property
    def text(self) -> str:
        """The policy as it is written on the command line; a scale stands behind it."""
        name = "free" if self.mode == "free" else "exact" if self.cap is None else "capped"
        cap = "" if self.cap is None else f":{self.cap}"
        return name + cap + ("" if self.scale == 1 else f" x{self.scale:g}")

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

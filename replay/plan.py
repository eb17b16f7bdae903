"""Who sends what after what: a seeded plan, dumped beside the results, so that two runs can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayPolicy:
    """What an agent waits for between turns. Gaps are capped, each kind by its own rule, in seconds.

    The default: human gaps 0; tool gaps as recorded up to 300 s; gaps that the source does not split into
    tool and human time up to 10 s.
    """

    human_cap_s: float = 0.0
    tool_cap_s: float = 300.0
    unsplit_cap_s: float = 10.0

    @property
    def policy_id(self) -> str:
        """Short name that stands beside every N; results under unlike policies never compare."""
        return f"human{self.human_cap_s:g}-tool{self.tool_cap_s:g}-unsplit{self.unsplit_cap_s:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPolicy:
    """How the output length is set: `exact` forces the recorded length past the end token, `free` lets the model stop.

    `scale` and `cap` shorten the recorded lengths (never below 1); both print in the result.
    """

    mode: Literal["exact", "free"] = "exact"
    scale: float = 1.0
    cap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPolicy:
    """How contexts are shortened, if at all, keeping the prefix-sharing structure; prints in the result.

    `scale` multiplies every message (or hashed block) by the same factor. Sessions whose longest scaled context
    does not fit `limit` tokens are left out and listed.
    """

    scale: float = 1.0
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request of a script and what it waits for."""

    request_index: int
    wait_for: tuple[int, ...]  # request indices of this script that must be complete
    delay_us: int  # waited after the last of them
    delay_kind: str
    recorded_prompt_tokens: int | None
    planned_prompt_tokens: int | None
    output_tokens: int  # ≥ 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One agent works through one session once."""

    agent: int
    play: int
    session_id: str
    salt: str  # isolates the prefix cache of this play from every other
    first_turn: int  # position in the script at which it starts

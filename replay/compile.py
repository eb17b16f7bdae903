"""From a recorded session to its script, by the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.order import steps
from replay.script import NothingToReplay
from replay.text_script import TextScript
from replay.token_script import TokenScript

if TYPE_CHECKING:
    from collections import Counter

    from capture.trajectory import Trajectory
    from replay.delay import Gap
    from replay.script import Rules

type AnyScript = TextScript | TokenScript


def compile_script(trajectory: Trajectory, rules: Rules) -> tuple[AnyScript, tuple[Gap, ...]]:
    """The script of a session and the recorded gaps before its turns; raises NothingToReplay.

    Raises ValueError for a session without text whose history shall be live.
    """
    ordered, left_out = steps(trajectory, rules.retries)
    if not ordered:
        raise NothingToReplay("no request of it can be replayed: " + _in_words(left_out))
    if rules.history == "live" and not trajectory.pool:
        raise ValueError(
            f"session {trajectory.session_id} holds no text, so nothing that the model says can be put into its "
            "prompts: replay it with the recorded history"
        )
    kind = TextScript if trajectory.pool else TokenScript
    return kind(trajectory, ordered, rules, left_out), tuple(step.gap for step in ordered)


def _in_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "it has none"

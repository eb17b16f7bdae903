"""Conversations of made-up words, for what compares sessions by what they say."""

from __future__ import annotations

import random
from dataclasses import replace

from capture.call import Message, ToolUse
from capture.trajectory import Trajectory
from tests.sample_sessions import pooled, text_session


def words(seed: int, count: int) -> list[str]:
    source = random.Random(seed)
    return [f"word{source.randrange(3000)}" for _ in range(count)]


def talk(*texts: str, system: str = "You help.", tag: str = "a") -> Trajectory:
    """A conversation of these texts, by turns of a person and the model."""
    pool = [pooled(Message(role="system", content=system), 0)]
    for number, text in enumerate(texts):
        if number % 2:
            use = ToolUse(id=f"{tag}-{number}", name="bash", arguments=f'{{"command": "run {number}"}}')
            answer = Message(role="assistant", content=text, tool_calls=(use,))
            pool.append(pooled(answer, number // 2, answer=True))
        else:
            pool.append(pooled(Message(role="user", content=text), number // 2))
    return replace(text_session(f"talk-{tag}"), pool=tuple(pool))

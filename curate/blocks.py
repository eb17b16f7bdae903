"""Which blocks of a prompt were sent before: the prefix-sharing structure of a session with text."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from capture.trajectory import Request, Trajectory
from curate.tokens import TokenCounter, message_body, tools_body


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBlocks:
    """A prompt's length and the ids of its full blocks; equal ids: equal prefixes up to and including the block."""

    tokens: int
    ids: tuple[int, ...]


def prompt_blocks(
    trajectory: Trajectory, counter: TokenCounter, block_size: int
) -> Iterator[tuple[Request, PromptBlocks | None]]:
    """Each request of a session with the blocks of its prompt as `TokenCounter` renders it; None where it has no text.

    Ids are 1, 2, … in order of first appearance in the session. They are given by comparing blocks, each chained to
    its predecessor, so they collide never and hold nothing of the text. A last block that is not full has no id.
    """
    width = array("I").itemsize
    step = block_size * width
    messages: dict[int, bytes] = {}
    tools: dict[int, bytes] = {}
    known: dict[tuple[int, bytes], int] = {}
    for request in trajectory.requests:
        if request.prompt_spans is None:
            yield request, None
            continue
        parts = []
        if request.tools_index is not None and trajectory.tool_sets[request.tools_index]:
            if request.tools_index not in tools:
                body = tools_body(trajectory.tool_sets[request.tools_index])
                tools[request.tools_index] = array("I", counter.token_ids(body)).tobytes()
            parts.append(tools[request.tools_index])
        for start, end in request.prompt_spans:
            for position in range(start, end):
                if position not in messages:
                    body = message_body(trajectory.pool[position].message)
                    messages[position] = array("I", counter.token_ids(body)).tobytes()
                parts.append(messages[position])
        prompt = b"".join(parts)
        ids = []
        parent = 0
        for at in range(0, len(prompt) - step + 1, step):
            parent = known.setdefault((parent, prompt[at : at + step]), len(known) + 1)
            ids.append(parent)
        yield request, PromptBlocks(tokens=len(prompt) // width, ids=tuple(ids))

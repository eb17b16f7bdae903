"""Which blocks of a prompt were sent before: the prefix-sharing structure of a session with text."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from capture.trajectory import Request, Trajectory
from curate.tokens import TokenCounter, message_body, tools_body


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBlocks:
    """A prompt's length and the ids of its blocks; equal ids: equal prefixes up to and including the block."""

    tokens: int
    ids: tuple[int, ...]


class BlockNumbers:
    """Ids 1, 2, … in order of first appearance; they hold nothing of the text."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._given = 0

    def of(self, key: Hashable) -> int:
        """The id of a key, a new one where it is new."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self.fresh()
        return found

    def fresh(self) -> int:
        """An id that nothing else has."""
        self._given += 1
        return self._given

    def of_block(self, parent: int, tokens: bytes) -> int:
        """The id of a block behind the one with the id `parent` (0: it is the first)."""
        return self.of((parent, hashlib.blake2b(tokens, digest_size=16).digest()))


def prompt_blocks(
    trajectory: Trajectory,
    counter: TokenCounter,
    block_size: int,
    *,
    numbers: BlockNumbers | None = None,
    with_tail: bool = False,
) -> Iterator[tuple[Request, PromptBlocks | None]]:
    """Each request of a session with the blocks of its prompt as `TokenCounter` renders it; None where it has no text.

    Ids are told apart by a block's content and its predecessor: the session's own, or those of `numbers`, which several
    sessions may share. A last block that is not full has no id unless `with_tail`.
    """
    width = array("I").itemsize
    step = block_size * width
    messages: dict[int, bytes] = {}
    tools: dict[int, bytes] = {}
    numbers = numbers or BlockNumbers()
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
        for at in range(0, len(prompt) if with_tail else len(prompt) - step + 1, step):
            parent = numbers.of_block(parent, prompt[at : at + step])
            ids.append(parent)
        yield request, PromptBlocks(tokens=len(prompt) // width, ids=tuple(ids))

"""Which blocks of a prompt were sent before: the prefix-sharing structure of a session with text.

Published hashes (`with_release_hashes`) are keyed: hash i is BLAKE2b-64 under the release's key of hash i−1 and the
token ids of block i, so equal means equal up to and including that block, in the whole release, and nobody without the
key can test a guess. Ids of an export (`prompt_blocks`) are small numbers in order of appearance.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from capture.call import Message, Tool
from capture.trajectory import Request, Trajectory
from curate.tokens import TokenCounter, message_body, tools_body

RELEASE_BLOCK_TOKENS = 64
_WIDTH = array("I").itemsize
_REMEMBERED_BYTES = 8 << 20


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


class Encoded:
    """Token ids of messages and tool blocks, each distinct text encoded once; counts exactly as its counter does."""

    def __init__(self, counter: TokenCounter) -> None:
        self.encoding_name = counter.encoding_name
        self.sha = counter.sha
        self._counter = counter
        self._known: dict[bytes, bytes] = {}
        self._size = 0
        self._same: dict[int, tuple[Message, bytes]] = {}

    def message(self, message: Message) -> int:
        """Tokens of one rendered message, its two markers included."""
        return len(self.message_ids(message)) // _WIDTH

    def tools(self, tools: Iterable[Tool]) -> int:
        """Tokens of the tool block; 0 where no tool is offered."""
        return len(self.tools_ids(tuple(tools))) // _WIDTH

    def text(self, text: str) -> int:
        """Tokens of a bare text, without markers."""
        return self._counter.text(text)

    def message_ids(self, message: Message) -> bytes:
        """Token ids of one rendered message, four bytes each."""
        same = self._same.get(id(message))
        if same is not None:
            return same[1]
        ids = self._ids(message_body(message))
        self._same[id(message)] = message, ids  # the message is kept, so nothing else gets its id
        return ids

    def tools_ids(self, tools: Sequence[Tool]) -> bytes:
        """Token ids of the tool block, four bytes each; empty where no tool is offered."""
        return self._ids(tools_body(tools)) if tools else b""

    def next_session(self) -> None:
        """Let go of the messages of the session before."""
        self._same.clear()
        if self._size > _REMEMBERED_BYTES:
            self._known.clear()
            self._size = 0

    def _ids(self, body: str) -> bytes:
        digest = hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        found = self._known.get(digest)
        if found is None:
            found = self._known[digest] = array("I", self._counter.token_ids(body)).tobytes()
            self._size += 100 + len(found)
        return found


@dataclass(slots=True)
class _Chain:
    """The prompt sent last on a chain: its parts, where each ends, its token ids and the hashes of its blocks."""

    parts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    prompt: bytearray = field(default_factory=bytearray)
    hashes: list[int] = field(default_factory=list)


def with_release_hashes(trajectory: Trajectory, encoded: Encoded, key: bytes) -> Trajectory:
    """The session with keyed hashes of every prompt that has text; a session without text keeps its own.

    Work is O(what is new in a prompt): the common head with the chain's prompt before keeps tokens and hashes.
    """
    if not any(request.prompt_spans is not None for request in trajectory.requests):
        return trajectory
    chains: dict[str, _Chain] = {}
    requests = []
    for request in trajectory.requests:
        if request.prompt_spans is None:
            requests.append(replace(request, block_size=None, block_hashes=None))
            continue
        chain = chains.setdefault(request.agent_path, _Chain())
        _send(chain, _parts(trajectory, request), trajectory, encoded, key)
        requests.append(replace(request, block_size=RELEASE_BLOCK_TOKENS, block_hashes=tuple(chain.hashes)))
    return replace(trajectory, requests=tuple(requests), hash_scope="release")


def _parts(trajectory: Trajectory, request: Request) -> list[int]:
    """What a prompt is made of: a tool set as −1 − index, then positions in the pool."""
    index = request.tools_index
    parts = [] if index is None or not trajectory.tool_sets[index] else [-1 - index]
    for start, stop in request.prompt_spans or ():
        parts.extend(range(start, stop))
    return parts


def _send(chain: _Chain, parts: list[int], trajectory: Trajectory, encoded: Encoded, key: bytes) -> None:
    """Make a prompt the chain's last."""
    common = _common(chain.parts, parts)
    del chain.ends[common:]
    del chain.prompt[chain.ends[-1] if chain.ends else 0 :]
    step = RELEASE_BLOCK_TOKENS * _WIDTH
    del chain.hashes[len(chain.prompt) // step :]
    for part in parts[common:]:
        ids = (
            encoded.message_ids(trajectory.pool[part].message)
            if part >= 0
            else encoded.tools_ids(trajectory.tool_sets[-1 - part])
        )
        chain.prompt += ids
        chain.ends.append(len(chain.prompt))
    chain.parts = parts
    before = chain.hashes[-1].to_bytes(8) if chain.hashes else b""
    for at in range(len(chain.hashes) * step, len(chain.prompt) - step + 1, step):
        before = hashlib.blake2b(before + chain.prompt[at : at + step], digest_size=8, key=key).digest()
        chain.hashes.append(int.from_bytes(before))


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common head."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while low < high:  # by halves: comparing slices is quick
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low

"""A content-free session as a script: prompts are token ids with the recorded block-sharing structure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from replay import synth
from replay.script import (
    PreparedRequest,
    Prompts,
    PromptUnits,
    Rules,
    SessionScript,
    SharedPrefix,
    Turn,
    body_head,
    make_turn,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capture.trajectory import Request, Trajectory
    from replay.order import Step
    from replay.synth import Words


class TokenScript(SessionScript):
    """A content-free session: prompts are token ids with the recorded block-sharing structure.

    A turn's hashes are kept as the difference to an earlier turn, since each repeats nearly all of it: a release of
    hundreds of sessions would not fit memory otherwise.
    """

    def __init__(self, trajectory: Trajectory, ordered: tuple[Step, ...], rules: Rules, left_out: Counter[str]) -> None:
        super().__init__(trajectory, ordered, rules, left_out)
        self._token_ids = rules.token_ids
        self._scale = rules.context.scale
        # Hashes of a session-scoped source are small numbers that mean something else in every session.
        self.scope = "release" if trajectory.hash_scope == "release" else f"session {trajectory.session_id}"
        self._deltas: list[tuple[int | None, int, Words, int]] = []  # earlier turn, blocks shared with it, rest, size
        self._place: dict[int, int] = {}
        self._heads: list[int] = []  # blocks of each turn's head, once `share_head` has told which those are
        self.first_of_chains: list[tuple[Words, int | None]] = []  # hashes, blocks of system and tools where told
        self.turns, self.prefixes = self._compile(ordered)

    @property
    def prompts(self) -> Prompts:
        return "token_ids"

    def _compile(self, ordered: tuple[Step, ...]) -> tuple[tuple[Turn, ...], tuple[SharedPrefix, ...]]:
        turns: list[Turn] = []
        prefixes: list[SharedPrefix] = []
        whole: list[Words] = []
        holder: dict[int, int] = {}  # hash → a turn that brought it
        begun: set[str] = set()
        for step in ordered:
            request = step.request
            block_size = request.block_size or 1
            synth.check_scale(block_size, self._scale)
            hashes = _words(request.block_hashes or ())
            planned = synth.planned_length(request.hashed_tokens, len(hashes), block_size, self._scale)
            near = {self._place[index] for index in (*step.wait_for, *step.wait_for_dispatch)}
            near |= {len(whole) - 1} if whole else set()
            base, shared = self._longest_shared(hashes, block_size, near, whole, holder)
            covered = min(planned, synth.covered_length(shared, block_size, self._scale))
            prefixes.append(SharedPrefix(shared=covered, total=planned))
            holder.update(dict.fromkeys(hashes[shared:].tolist(), len(whole)))
            self._place[request.request_index] = len(whole)
            self._deltas.append((base, shared, hashes[shared:].copy(), block_size))
            whole.append(hashes)
            if self._head_salt is not None and request.agent_path not in begun:
                begun.add(request.agent_path)
                self.first_of_chains.append((hashes.copy(), _head_blocks(request, block_size)))
            turns.append(
                make_turn(
                    step,
                    self._delay,
                    planned_prompt_tokens=planned,
                    output_tokens=self._length.output_tokens(request.completion_tokens or 0),
                )
            )
        return tuple(turns), tuple(prefixes)

    def _longest_shared(
        self, hashes: Words, block_size: int, near: set[int], whole: list[Words], holder: dict[int, int]
    ) -> tuple[int | None, int]:
        """The earlier turn that shares the longest prefix, and its length in blocks."""
        base, shared = None, 0
        tried: set[int] = set()
        while near:
            for place in sorted(near):
                same = _common_blocks(hashes, whole[place])
                if same > shared and self._deltas[place][3] == block_size:
                    base, shared = place, same
            tried |= near
            # Whoever brought the first block that is still unshared may share more than those tried so far.
            further = holder.get(int(hashes[shared])) if shared < len(hashes) else None
            near = set() if further is None or further in tried else {further}
        return base, shared

    def hashes(self, turn: Turn) -> Words:
        """Block hashes of a turn's prompt, as unsigned 64-bit numbers."""
        import numpy as np

        place: int | None = self._place[turn.request_index]
        wanted: int | None = None
        pieces = []
        while place is not None:
            base, shared, rest, _ = self._deltas[place]
            have = len(rest) if wanted is None else wanted - shared
            if have > 0:
                pieces.append(rest[:have])
            wanted = shared if wanted is None else min(wanted, shared)
            place = base if wanted else None
        return np.concatenate(pieces[::-1]) if pieces else np.empty(0, dtype=np.uint64)

    def share_head(self, hashes: Words) -> None:
        """Take these blocks, where they lead a prompt, for its head: shared by all plays of the run."""
        import numpy as np

        self.first_of_chains = []
        if not len(hashes):
            return
        for base, shared, rest, _ in self._deltas:
            if base is not None and self._heads[base] < shared:
                self._heads.append(self._heads[base])  # its first block that is not of the head is repeated here
                continue
            other = np.flatnonzero(~np.isin(rest, hashes))
            self._heads.append(shared + (int(other[0]) if len(other) else len(rest)))

    def head_units(self, position: int) -> int:
        return self._heads[position] if self._heads else 0

    def units(self, position: int) -> PromptUnits:
        base, shared, rest, block_size = self._deltas[position]
        return PromptUnits(space=f"{self.scope} {block_size}", base=base, shared=shared, rest=rest)

    def size(self, position: int, units: int) -> SharedPrefix:
        planned = self.turns[position].planned_prompt_tokens
        assert planned is not None
        covered = synth.covered_length(units, self._deltas[position][3], self._scale)
        return SharedPrefix(shared=min(planned, covered), total=planned)

    def request(
        self,
        turn: Turn,
        *,
        salt: str,
        model: str,
        said: Mapping[int, str] | None = None,  # noqa: ARG002 - a session without text takes none
    ) -> PreparedRequest:
        assert turn.planned_prompt_tokens is not None
        place = self._place[turn.request_index]
        ids = synth.prompt_ids(
            self.hashes(turn),
            length=turn.planned_prompt_tokens,
            block_size=self._deltas[place][3],
            scale=self._scale,
            key=synth.scope_key(salt, self.scope),
            head_blocks=self.head_units(place),
            head_key=synth.scope_key(self._head_salt or "", self.scope),
            tail_key=synth.scope_key(salt, "tail", self.session_id, str(turn.request_index)),
            token_ids=self._token_ids,
        )
        head = body_head(model, turn, self._length, self._limit, turn.planned_prompt_tokens, self._refused_fields)
        return PreparedRequest(path="/v1/completions", body=head + b',"prompt":' + synth.encode_ids(ids) + b"}")


def shared_heads(scripts: Sequence[TokenScript]) -> None:
    """Tell each script which blocks are its prompts' heads.

    The head is what system message and tools cover, where the source counts both; else the leading blocks that the
    first requests of two chains share, of one session or of two. Hashes compare within their scope only. It is a set
    of blocks, not a length, so that no prefix is cut in two where a count differs between requests.
    """
    import numpy as np

    scopes: dict[str, list[TokenScript]] = {}
    for script in scripts:
        scopes.setdefault(script.scope, []).append(script)
    for members in scopes.values():
        firsts = [first for script in members for first in script.first_of_chains]
        told = [hashes[:blocks] for hashes, blocks in firsts if blocks is not None]
        values, counts = np.unique(np.concatenate([np.unique(hashes) for hashes, _ in firsts]), return_counts=True)
        head = np.unique(np.concatenate([*told, values[counts > 1]]))
        for script in members:
            script.share_head(head)


def _head_blocks(request: Request, block_size: int) -> int | None:
    if request.system_tokens is None or request.tools_tokens is None:
        return None
    return (request.system_tokens + request.tools_tokens) // block_size


def _words(values: Sequence[int]) -> Words:
    import numpy as np

    if isinstance(values, memoryview):
        return np.frombuffer(values, dtype=np.uint64)
    try:
        return np.array(values, dtype=np.int64).view(np.uint64)
    except OverflowError:  # unsigned hashes with the top bit set: only their bits matter
        return np.array([value & 0xFFFF_FFFF_FFFF_FFFF for value in values], dtype=np.uint64)


def _common_blocks(left: Words, right: Words) -> int:
    import numpy as np

    size = min(len(left), len(right))
    unlike = np.flatnonzero(left[:size] != right[:size])
    return int(unlike[0]) if len(unlike) else size

"""One session as a script: its turns in order, and the bytes of each request made on demand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from replay import chat, synth
from replay.order import Step, steps
from replay.rules import LONGEST_FREE_OUTPUT, TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capture.trajectory import Request, Trajectory
    from replay.chat import Cutter, Piece
    from replay.rules import ContextPolicy, DelayPolicy, LengthPolicy
    from replay.synth import Words

type Prompts = Literal["text", "token_ids"]


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
    estimated_prompt_tokens: int | None = None  # of a text prompt, by the plan's own counting


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """What goes over the wire for one turn: a JSON body and the path it is posted to."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """How much of a turn's prompt an earlier turn of the same play has sent: in tokens, or for text in bytes."""

    shared: int
    total: int


class Script(Protocol):
    """A session that an agent can play."""

    session_id: str
    turns: tuple[Turn, ...]
    chains: int  # the main agent and its sub-agents
    left_out: Counter[str]  # requests that are not replayed, by reason
    prefixes: tuple[SharedPrefix, ...]  # one per turn
    recorded_api_us: int | None  # sum over the turns of what their answers took when they were recorded

    @property
    def prompts(self) -> Prompts:
        """Whether prompts are sent as text or as token ids."""
        ...

    def request(self, turn: Turn, *, salt: str, model: str) -> PreparedRequest:
        """The request of a turn; `salt` keeps its prompt apart from that of every other salt."""
        ...


class NothingToReplay(ValueError):
    """A session that holds no request that could be sent; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything but the session itself that a script depends on."""

    delay: DelayPolicy
    length: LengthPolicy
    context: ContextPolicy
    token_ids: tuple[int, int]
    cutter: Callable[[], Cutter]  # made at first use: an encoding takes half a second to load


def compile_script(trajectory: Trajectory, rules: Rules) -> Script:
    """The script of a session; raises NothingToReplay."""
    ordered, left_out = steps(trajectory, rules.delay)
    if not ordered:
        raise NothingToReplay("no request of it can be replayed: " + _in_words(left_out))
    kind = TextScript if trajectory.pool else TokenScript
    return kind(trajectory, ordered, rules, left_out)


def _in_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "it has none"


def _recorded_api_us(ordered: Sequence[Step]) -> int | None:
    spans = [span for step in ordered if (span := step.request.call_span) is not None]
    return sum(end - start for start, end in spans) if len(spans) == len(ordered) else None


class TokenScript:
    """A content-free session: prompts are token ids with the recorded block-sharing structure.

    A turn's hashes are kept as the difference to an earlier turn, since each repeats nearly all of it: a release of
    hundreds of sessions would not fit memory otherwise.
    """

    def __init__(self, trajectory: Trajectory, ordered: tuple[Step, ...], rules: Rules, left_out: Counter[str]) -> None:
        self.session_id = trajectory.session_id
        self.left_out = left_out
        self.chains = len({step.request.agent_path for step in ordered})
        self.recorded_api_us = _recorded_api_us(ordered)
        self._length = rules.length
        self._limit = rules.context.limit
        self._token_ids = rules.token_ids
        self._scale = rules.context.scale
        # Hashes of a session-scoped source are small numbers that mean something else in every session.
        self._scope = "release" if trajectory.hash_scope == "release" else f"session {trajectory.session_id}"
        self._deltas: list[tuple[int | None, int, Words, int]] = []  # earlier turn, blocks shared with it, rest, size
        self._place: dict[int, int] = {}
        self.turns, self.prefixes = self._compile(ordered)

    @property
    def prompts(self) -> Prompts:
        return "token_ids"

    def _compile(self, ordered: tuple[Step, ...]) -> tuple[tuple[Turn, ...], tuple[SharedPrefix, ...]]:
        turns: list[Turn] = []
        prefixes: list[SharedPrefix] = []
        whole: list[Words] = []
        holder: dict[int, int] = {}  # hash → the turn that brought it
        for step in ordered:
            request = step.request
            block_size = request.block_size or 1
            synth.check_scale(block_size, self._scale)
            hashes = _words(request.block_hashes or ())
            planned = synth.planned_length(request.hashed_tokens, len(hashes), block_size, self._scale)
            near = {self._place[index] for index in step.wait_for} | ({len(whole) - 1} if whole else set())
            base, shared = self._longest_shared(hashes, block_size, near, whole, holder)
            covered = min(planned, synth.covered_length(shared, block_size, self._scale))
            prefixes.append(SharedPrefix(shared=covered, total=planned))
            for value in hashes[shared:].tolist():
                holder.setdefault(value, len(whole))
            self._place[request.request_index] = len(whole)
            self._deltas.append((base, shared, hashes[shared:].copy(), block_size))
            whole.append(hashes)
            turns.append(
                Turn(
                    request_index=request.request_index,
                    wait_for=step.wait_for,
                    delay_us=step.delay_us,
                    delay_kind=step.delay_kind,
                    recorded_prompt_tokens=request.prompt_tokens,
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

    def request(self, turn: Turn, *, salt: str, model: str) -> PreparedRequest:
        assert turn.planned_prompt_tokens is not None
        ids = synth.prompt_ids(
            self.hashes(turn),
            length=turn.planned_prompt_tokens,
            block_size=self._deltas[self._place[turn.request_index]][3],
            scale=self._scale,
            key=synth.scope_key(salt, self._scope),
            tail_key=synth.scope_key(salt, "tail", self.session_id, str(turn.request_index)),
            token_ids=self._token_ids,
        )
        head = _head(model, turn, self._length, _room(self._limit, turn.planned_prompt_tokens))
        return PreparedRequest(path="/v1/completions", body=head + b',"prompt":' + synth.encode_ids(ids) + b"}")


def _words(values: tuple[int, ...]) -> Words:
    import numpy as np

    try:
        return np.array(values, dtype=np.int64).view(np.uint64)
    except OverflowError:  # unsigned hashes with the top bit set: only their bits matter
        return np.array([value & 0xFFFF_FFFF_FFFF_FFFF for value in values], dtype=np.uint64)


def _common_blocks(left: Words, right: Words) -> int:
    import numpy as np

    size = min(len(left), len(right))
    unlike = np.flatnonzero(left[:size] != right[:size])
    return int(unlike[0]) if len(unlike) else size


class TextScript:
    """A session with text: prompts are chat messages, each encoded once."""

    def __init__(self, trajectory: Trajectory, ordered: tuple[Step, ...], rules: Rules, left_out: Counter[str]) -> None:
        self.session_id = trajectory.session_id
        self.left_out = left_out
        self.chains = len({step.request.agent_path for step in ordered})
        self.recorded_api_us = _recorded_api_us(ordered)
        self._length = rules.length
        self._limit = rules.context.limit
        self._text_tokens_x = rules.context.text_tokens_x
        count = rules.context.scale < 1 or any(
            step.request.prompt_tokens is None or step.request.completion_tokens is None for step in ordered
        )
        self._cutter = rules.cutter() if count else None
        self._scaled = rules.context.scale < 1
        self._tools = [chat.encode_tools(tools, self._cutter) if tools else None for tools in trajectory.tool_sets]
        self._heads: dict[tuple[int, ...], Piece] = {}
        self._pieces: dict[int, Piece] = {}
        self._prompts: dict[int, tuple[tuple[Piece, ...], int | None]] = {}
        self.turns, self.prefixes = self._compile(trajectory, ordered)

    @property
    def prompts(self) -> Prompts:
        return "text"

    def _compile(
        self, trajectory: Trajectory, ordered: tuple[Step, ...]
    ) -> tuple[tuple[Turn, ...], tuple[SharedPrefix, ...]]:
        turns: list[Turn] = []
        prefixes: list[SharedPrefix] = []
        seen: set[int] = set()
        for step in ordered:
            request = step.request
            pieces = self._prompt(trajectory, request)
            self._prompts[request.request_index] = (pieces, request.tools_index)
            prefixes.append(self._prefix(pieces, request.tools_index, seen))
            turns.append(
                Turn(
                    request_index=request.request_index,
                    wait_for=step.wait_for,
                    delay_us=step.delay_us,
                    delay_kind=step.delay_kind,
                    recorded_prompt_tokens=request.prompt_tokens,
                    planned_prompt_tokens=None,
                    output_tokens=self._output_tokens(trajectory, request),
                    estimated_prompt_tokens=self._estimate(pieces, request),
                )
            )
        return tuple(turns), tuple(prefixes)

    def _prompt(self, trajectory: Trajectory, request: Request) -> tuple[Piece, ...]:
        """The prompt's pieces. Leading system messages become one, later ones are sent as the user's.

        Many chat templates take a system message only once and only at the head.
        """
        places = [place for first, last in request.prompt_spans or () for place in range(first, last)]
        leading = 0
        while leading < len(places) and trajectory.pool[places[leading]].message.role in chat.SYSTEM_ROLES:
            leading += 1
        pieces = []
        if leading:
            head = tuple(places[:leading])
            if head not in self._heads:
                messages = [trajectory.pool[place].message for place in head]
                text = "\n\n".join(message.content for message in messages)
                self._heads[head] = chat.encode_message("system", text, messages[0], self._cutter)
            pieces.append(self._heads[head])
        for place in places[leading:]:
            if place not in self._pieces:
                message = trajectory.pool[place].message
                role = "user" if message.role in chat.SYSTEM_ROLES else message.role
                self._pieces[place] = chat.encode_message(role, message.content, message, self._cutter)
            pieces.append(self._pieces[place])
        if not pieces:
            raise NothingToReplay(f"request {request.request_index} has an empty prompt")
        return tuple(pieces)

    def _tools_of(self, tools_index: int | None) -> Piece | None:
        return None if tools_index is None else self._tools[tools_index]

    def _prefix(self, pieces: tuple[Piece, ...], tools_index: int | None, seen: set[int]) -> SharedPrefix:
        tools = self._tools_of(tools_index)
        chain = hash(None if tools is None else tools.data)
        shared = total = 0
        together = True
        for piece in (*(() if tools is None else (tools,)), *pieces):
            chain = hash((chain, piece.data))
            total += len(piece.data)
            together = together and chain in seen
            if together:
                shared = total
            seen.add(chain)
        return SharedPrefix(shared=shared, total=total)

    def _estimate(self, pieces: tuple[Piece, ...], request: Request) -> int | None:
        if not self._scaled and request.prompt_tokens is not None:
            return request.prompt_tokens
        tools = self._tools_of(request.tools_index)
        return sum(piece.tokens or 0 for piece in (*(() if tools is None else (tools,)), *pieces))

    def _output_tokens(self, trajectory: Trajectory, request: Request) -> int:
        recorded = request.completion_tokens
        if recorded is None and request.answer_index is not None and self._cutter is not None:
            answer = trajectory.pool[request.answer_index].message
            recorded = self._cutter.count(answer.content) + sum(
                self._cutter.count(call.arguments) for call in answer.tool_calls
            )
        return self._length.output_tokens(recorded or 0)

    def request(self, turn: Turn, *, salt: str, model: str) -> PreparedRequest:
        pieces, tools_index = self._prompts[turn.request_index]
        data = [piece.data for piece in pieces]
        if salt:
            data[0] = _salted(data[0], salt)
        tools = self._tools_of(tools_index)
        expected = turn.estimated_prompt_tokens
        if expected is not None:
            expected = math.ceil(expected * self._text_tokens_x)
        body = [_head(model, turn, self._length, _room(self._limit, expected))]
        if tools is not None:
            body += [b',"tools":', tools.data]
        body += [b',"messages":[', b",".join(data), b"]}"]
        return PreparedRequest(path="/v1/chat/completions", body=b"".join(body))


def _room(limit: int | None, prompt_tokens: int | None) -> int | None:
    return None if limit is None or prompt_tokens is None else limit - prompt_tokens


def _salted(piece: bytes, salt: str) -> bytes:
    """A message whose content begins with the salt; it is digits, so it needs no escape."""
    mark = b'"content":"'
    at = piece.index(mark) + len(mark)
    return piece[:at] + salt.encode("ascii") + rb"\n" + piece[at:]


def _head(model: str, turn: Turn, length: LengthPolicy, room: int | None) -> bytes:
    """The part of a body that does not depend on the prompt, without its closing brace."""
    shape: dict[str, object] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": TEMPERATURE,
    }
    if length.mode == "exact":
        shape["max_tokens"] = turn.output_tokens
        shape["ignore_eos"] = True
    else:
        longest = length.cap or LONGEST_FREE_OUTPUT
        shape["max_tokens"] = longest if room is None else max(1, min(longest, room))
    return msgspec.json.encode(shape)[:-1]

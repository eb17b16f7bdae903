"""A session with text as a script: prompts are chat messages, each encoded once."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from replay import chat
from replay.script import (
    NothingToReplay,
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
    from collections.abc import Mapping

    from capture.trajectory import Request, Trajectory
    from replay.chat import Piece
    from replay.order import Step


class TextScript(SessionScript):
    """A session with text: prompts are chat messages, each encoded once."""

    def __init__(self, trajectory: Trajectory, ordered: tuple[Step, ...], rules: Rules, left_out: Counter[str]) -> None:
        super().__init__(trajectory, ordered, rules, left_out)
        self._text_tokens_x = rules.context.text_tokens_x
        count = rules.context.scale < 1 or any(
            step.request.prompt_tokens is None or step.request.completion_tokens is None for step in ordered
        )
        self._cutter = rules.cutter() if count else None
        self._scaled = rules.context.scale < 1
        self._tools = [chat.encode_tools(tools, self._cutter) if tools else None for tools in trajectory.tool_sets]
        self._heads: dict[tuple[int, ...], Piece] = {}
        self._pieces: dict[int, Piece] = {}
        self._prompts: list[_Prompt] = []
        self._place: dict[int, int] = {}
        self._keys: dict[int, int] = {}  # of the pieces, made at first use
        # What the model said, by its place in the pool: which request it answered, and its message without the text.
        self._answers: dict[int, tuple[int, tuple[bytes, bytes]]] = {}
        if rules.history == "live":
            for step in ordered:
                place = step.request.answer_index
                if place is not None:
                    message = replace(trajectory.pool[place].message, reasoning_content=None)
                    hull = chat.encode_message("assistant", "", message, self._cutter).data
                    before, _, behind = hull.partition(b'"content":""')
                    self._answers[place] = (step.request.request_index, (before + b'"content":', behind))
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
            prompt = self._prompt(trajectory, request)
            self._place[request.request_index] = len(self._prompts)
            self._prompts.append(prompt)
            prefixes.append(self._prefix(prompt, seen))
            turns.append(
                make_turn(
                    step,
                    self._delay,
                    planned_prompt_tokens=None,
                    output_tokens=self._output_tokens(trajectory, request),
                    estimated_prompt_tokens=self._estimate(prompt, request),
                )
            )
        return tuple(turns), tuple(prefixes)

    def _prompt(self, trajectory: Trajectory, request: Request) -> _Prompt:
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
        return _Prompt(
            pieces=tuple(pieces),
            tools=None if request.tools_index is None else self._tools[request.tools_index],
            system=leading > 0,
            answers=tuple(
                (len(pieces) - len(places) + i, place)
                for i, place in enumerate(places)
                if i >= leading and place in self._answers
            ),
        )

    def _prefix(self, prompt: _Prompt, seen: set[int]) -> SharedPrefix:
        chain = hash(None if prompt.tools is None else prompt.tools.data)
        shared = total = 0
        together = True
        for piece in prompt.units:
            chain = hash((chain, piece.data))
            total += len(piece.data)
            together = together and chain in seen
            if together:
                shared = total
            seen.add(chain)
        return SharedPrefix(shared=shared, total=total)

    def _estimate(self, prompt: _Prompt, request: Request) -> int | None:
        if not self._scaled and request.prompt_tokens is not None:
            return request.prompt_tokens
        return sum(piece.tokens or 0 for piece in prompt.units)

    def _output_tokens(self, trajectory: Trajectory, request: Request) -> int:
        recorded = request.completion_tokens
        if recorded is None and request.answer_index is not None and self._cutter is not None:
            answer = trajectory.pool[request.answer_index].message
            recorded = self._cutter.count(answer.content) + sum(
                self._cutter.count(call.arguments) for call in answer.tool_calls
            )
        return self._length.output_tokens(recorded or 0)

    def units(self, position: int) -> PromptUnits:
        import numpy as np

        prompt = self._prompts[position]
        keys = []
        for piece in prompt.units:
            key = self._keys.get(id(piece))
            if key is None:
                digest = hashlib.blake2b(piece.data, digest_size=8).digest()
                key = self._keys[id(piece)] = int.from_bytes(digest, "little")
            keys.append(key)
        space = "text with tools" if prompt.tools is not None else "text"
        return PromptUnits(space=space, base=None, shared=0, rest=np.array(keys, dtype=np.uint64))

    def size(self, position: int, units: int) -> SharedPrefix:
        sizes = [len(piece.data) for piece in self._prompts[position].units]
        return SharedPrefix(shared=sum(sizes[:units]), total=sum(sizes))

    def head_units(self, position: int) -> int:
        prompt = self._prompts[position]
        if self._head_salt is None or (prompt.system and len(prompt.pieces) == 1):
            return 0  # nothing follows that could hold the play's own salt
        return (prompt.tools is not None) + prompt.system

    def request(self, turn: Turn, *, salt: str, model: str, said: Mapping[int, str] | None = None) -> PreparedRequest:
        place = self._place[turn.request_index]
        prompt = self._prompts[place]
        data = [piece.data for piece in prompt.pieces]
        for i, answer in prompt.answers if said else ():
            request_index, (before, behind) = self._answers[answer]
            text = said.get(request_index) if said else None
            if text is not None:
                data[i] = before + msgspec.json.encode(chat.sendable(text)) + behind
        if salt:
            behind_head = int(prompt.system and self.head_units(place) > 0)
            if behind_head and self._head_salt:
                data[0] = _salted(data[0], self._head_salt)
            data[behind_head] = _salted(data[behind_head], salt)
        expected = turn.estimated_prompt_tokens
        if expected is not None:
            expected = math.ceil(expected * self._text_tokens_x)
        body = [body_head(model, turn, self._length, self._limit, expected, self._refused_fields)]
        if prompt.tools is not None:
            body += [b',"tools":', prompt.tools.data]
        body += [b',"messages":[', b",".join(data), b"]}"]
        return PreparedRequest(path="/v1/chat/completions", body=b"".join(body))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """The pieces of one turn's prompt."""

    pieces: tuple[Piece, ...]  # messages
    tools: Piece | None
    system: bool  # the first piece is the system message
    answers: tuple[tuple[int, int], ...]  # pieces that the model said: their place here and in the pool

    @property
    def units(self) -> tuple[Piece, ...]:
        """Everything in the order in which servers lay it out: tools stand beside the system message."""
        return self.pieces if self.tools is None else (self.tools, *self.pieces)


def _salted(piece: bytes, salt: str) -> bytes:
    """A message whose content begins with the salt; it is digits, so it needs no escape."""
    mark = b'"content":"'
    at = piece.index(mark) + len(mark)
    return piece[:at] + salt.encode("ascii") + rb"\n" + piece[at:]

"""Each message of a session once; a prompt is a list of spans of the pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from capture.call import Message
from capture.canonical import canonical_arguments
from capture.trajectory import PooledMessage

type _Meaning = tuple[str, str, tuple[tuple[str, str, str], ...]]

_CANDIDATES = 16  # positions of an often-repeated message that are tried; more only costs time


class MessagePool:
    """Grows as the requests of a session are added in order of sending.

    The law: the messages under the spans that `add_prompt` returns are exactly the messages it was given.

    An agent may spell an answer anew when it sends it back (pi writes `{"a":1}` where the model wrote `{"a": 1}`). As
    long as no prompt holds the answer, it then takes the prompt's spelling, so that it stands in the pool once.
    """

    def __init__(self) -> None:
        self._pooled: list[PooledMessage] = []
        self._positions: defaultdict[Message, list[int]] = defaultdict(list)
        self._unspoken: dict[int, _Meaning] = {}  # answers that no prompt holds yet

    @property
    def messages(self) -> tuple[PooledMessage, ...]:
        """The pool so far."""
        return tuple(self._pooled)

    def add_prompt(
        self, messages: Sequence[Message], *, agent_path: str, request_index: int, t_us: int
    ) -> tuple[tuple[int, int], ...]:
        """Spans of a prompt that was sent at `t_us`; what the pool lacks is appended."""
        for message in messages:
            if message.role == "assistant" and not self._positions.get(message):
                self._respell(message)
        spans: list[tuple[int, int]] = []
        done = 0
        while done < len(messages):
            start, length = self._longest_run(messages, done, spans[-1][1] if spans else 0)
            if length == 0:
                start, length = len(self._pooled), 1
                self._append(messages[done], agent_path, request_index, t_us, answer=False)
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], start + length)
            else:
                spans.append((start, start + length))
            done += length
        for at in [at for at in self._unspoken if any(start <= at < stop for start, stop in spans)]:
            del self._unspoken[at]
        return tuple(spans)

    def add_answer(self, message: Message, *, agent_path: str, request_index: int, t_us: int) -> int:
        """Position of an answer whose last byte came at `t_us`; emission times live in the tool calls, not here."""
        calls = tuple(replace(call, t_emitted_ns=None) for call in message.tool_calls)
        message = replace(message, tool_calls=calls)
        self._append(message, agent_path, request_index, t_us, answer=True)
        self._unspoken[len(self._pooled) - 1] = _meaning(message)
        return len(self._pooled) - 1

    def _respell(self, message: Message) -> None:
        meaning = _meaning(message)
        at = next((at for at, unspoken in reversed(self._unspoken.items()) if unspoken == meaning), None)
        if at is None:
            return
        old = self._pooled[at]
        self._positions[old.message].remove(at)
        self._pooled[at] = replace(old, message=message)
        self._positions[message].append(at)

    def _append(self, message: Message, agent_path: str, request_index: int, t_us: int, *, answer: bool) -> None:
        self._positions[message].append(len(self._pooled))
        self._pooled.append(
            PooledMessage(message=message, agent_path=agent_path, request_index=request_index, t_us=t_us, answer=answer)
        )

    def _longest_run(self, messages: Sequence[Message], done: int, preferred: int) -> tuple[int, int]:
        """(start, length) of the longest pool run that equals messages[done:]; at a tie the one at `preferred`."""
        known = self._positions.get(messages[done], [])
        candidates = [*known[:1], *known[-_CANDIDATES:]]
        if preferred < len(self._pooled) and self._pooled[preferred].message == messages[done]:
            candidates.insert(0, preferred)
        best, best_length = 0, 0
        for start in dict.fromkeys(candidates):
            length = 0
            while (
                start + length < len(self._pooled)
                and done + length < len(messages)
                and self._pooled[start + length].message == messages[done + length]
            ):
                length += 1
            if length > best_length:
                best, best_length = start, length
        return best, best_length


def _meaning(message: Message) -> _Meaning:
    """What an answer says, whatever the spelling; its thoughts count, since an agent that drops them says less."""
    calls = tuple((use.id, use.name, canonical_arguments(use.arguments)) for use in message.tool_calls)
    return message.content.strip(), (message.reasoning_content or "").strip(), calls


def render(pool: Sequence[PooledMessage], spans: Sequence[tuple[int, int]]) -> tuple[Message, ...]:
    """The messages under the spans, in order."""
    return tuple(pooled.message for start, stop in spans for pooled in pool[start:stop])

"""A call prepared for comparing: its whole prompt in canonical hashes, and its place on the wall clock."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

from capture.call import Message, ModelCall, SessionHint, ToolUse
from capture.canonical import Digests, asks_for_summary, declares_compaction, human_text, tools_hash
from capture.trajectory import LinkEvidence

RETRY_WINDOW_US = 600_000_000  # nobody's back-off is longer; the same words later are said anew
SUMMARY_CHARACTERS = 80  # an answer shorter than that may be repeated by chance
TASK_CHARACTERS = 20  # and so may a task
_SUMMARY = re.compile(r"<summary>(.*?)</summary>", re.DOTALL)


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """A call with what comparing needs; times in microseconds. Not slotted: what is costly is worked out once."""

    call: ModelCall
    send_us: int
    end_us: int | None
    head: bytes | None  # digest of the system prompt
    talk: tuple[bytes, ...]  # canonical messages of the conversation, the system prompt left out
    voices: str  # first letter of each one's role
    opening: int  # of them those before the model's first word; alike in many sessions of one agent
    answer_hash: bytes | None
    tools: bytes
    history_missing: bool = False  # the prompt goes on from a response that the store does not hold
    evidence: LinkEvidence = "none"  # what placed it in its session

    @property
    def failed(self) -> bool:
        """Whether the answer did not come to its own end."""
        return not self.call.complete

    @property
    def hint(self) -> SessionHint | None:
        """The best id of a session; a cache key alone is none."""
        return next((hint for hint in self.call.hints if not hint.cache_key), None)

    @cached_property
    def answer_ids(self) -> frozenset[str]:
        """Ids of the tool calls in the answer."""
        return frozenset(use.id for use in made_calls(self.call) if use.id)

    @cached_property
    def result_ids(self) -> frozenset[str]:
        """Ids of the tool calls whose results the prompt holds."""
        return frozenset(message.tool_call_id for message in self.call.messages if message.tool_call_id)

    @cached_property
    def size(self) -> int:
        """Characters of the conversation."""
        return sum(len(message.content) for message in self.call.messages if message.role != "system")

    @cached_property
    def summary(self) -> str | None:
        """The text that a compacted context would carry, if this answer were a summary; None where it is too short."""
        answer = self.call.answer
        if answer is None or answer.tool_calls:
            return None
        inner = _SUMMARY.search(answer.content)
        text = (inner[1] if inner else answer.content).strip()
        return text if len(text) >= SUMMARY_CHARACTERS else None

    @cached_property
    def asks_for_summary(self) -> bool:
        """Whether the last words of the prompt ask for a summary of it, or the agent says so."""
        if self.call.compaction is not None:
            return True
        last = next((message for message in reversed(self.call.messages) if message.role != "system"), None)
        return last is not None and last.role == "user" and asks_for_summary(last.content)

    @cached_property
    def declares_compaction(self) -> bool:
        """Whether the prompt holds the words by which an agent introduces a summary of what was before."""
        return any(declares_compaction(message) for message in self.call.messages)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """First lines of the user texts: what somebody may have been asked to do."""
        texts = [human_text(message) for message in self.call.messages]
        # JSON escapes quotes and line breaks: compare up to the first of them.
        heads = (text.splitlines()[0].partition('"')[0].strip() for text in texts if len(text) >= TASK_CHARACTERS)
        return tuple(dict.fromkeys(head for head in heads if len(head) >= TASK_CHARACTERS))

    @cached_property
    def user_text(self) -> str:
        """All user texts, for quotes of what others said."""
        return "\n".join(message.content for message in self.call.messages if message.role == "user")

    def carries(self, summary: str | None, *, by_model: bool = False) -> bool:
        """Whether the prompt holds this summary: in a user or system message, or (`by_model`) as the model's words."""
        if summary is None:
            return False
        told = ("tool",) if by_model else ("tool", "assistant")
        return any(summary in message.content for message in self.call.messages if message.role not in told)

    def asked_by(self, earlier: Node) -> bool:
        """Whether one of an earlier answer's tool calls asks somebody to do what this prompt begins with."""
        answer = earlier.call.answer
        if answer is None or not self.tasks:
            return False
        return any(self.is_task_of(use) for use in answer.tool_calls)

    def takes_over(self, before: Iterable[Node]) -> bool:
        """Whether a summary in this prompt may stand for one of these conversations.

        Answers are quoted to other agents too: where the prompt does not speak of a summary, the program has to be the
        same.
        """
        return self.declares_compaction or any(self.head == one.head and self.tools == one.tools for one in before)

    def is_task_of(self, use: ToolUse) -> bool:
        """Whether a tool call asks somebody to do what this prompt begins with."""
        return any(task in use.arguments for task in self.tasks)

    def resumes(self, earlier: Node) -> bool:
        """Whether this goes on from an answer that the service itself had paused and that holds no words to compare."""
        same = earlier.call.stop == "pause_turn" and earlier.answer_hash is None and self.same_prompt(earlier)
        return same and earlier.end_us is not None and 0 <= self.send_us - earlier.end_us <= RETRY_WINDOW_US

    def same_prompt(self, other: Node) -> bool:
        """Whether both asked the same."""
        if self.head == other.head and self.talk == other.talk:
            return True
        # A new connection sends the whole prompt where the old one had named an earlier response.
        short = other.talk
        return other.history_missing and 0 < len(short) <= len(self.talk) and self.talk[-len(short) :] == short

    def retries(self, earlier: Node) -> bool:
        """Whether this tries an earlier call again: the same prompt soon after it failed, or its client says so.

        A stream that looked whole here may have looked broken to the client: then it counts its attempts, or asks for
        the same in one piece.
        """
        if not self.same_prompt(earlier) or self.call.kind != earlier.call.kind:
            return False
        since = earlier.end_us if earlier.end_us is not None else earlier.send_us
        if self.send_us - since > RETRY_WINDOW_US:
            return False
        fallback = earlier.call.stream is True and self.call.stream is False
        return earlier.failed or bool(self.call.attempt) or (fallback and bool(self.talk))


def send_us(call: ModelCall) -> int:
    """Wall clock of the send in UTC microseconds, as its journal's clock stood then."""
    return call.wall_anchor_us + call.wall_offset_us + call.t_send_ns // 1000


def in_order(calls: Iterable[ModelCall]) -> list[tuple[int, ModelCall]]:
    """(microseconds, call) in order of sending over all journals.

    One journal's own order is that of its monotonic clock, whatever the wall clock did meanwhile; the wall clock only
    ties journals to each other.
    """
    journals: defaultdict[int, list[ModelCall]] = defaultdict(list)
    for call in calls:
        journals[call.wall_anchor_us].append(call)
    placed = []
    for anchor_us, own in journals.items():
        moved = None
        for call in sorted(own, key=attrgetter("t_send_ns", "exchange_id")):
            moved = call.wall_offset_us if moved is None else max(moved, call.wall_offset_us)
            placed.append((anchor_us + moved + call.t_send_ns // 1000, call))
    return sorted(placed, key=lambda entry: (entry[0], entry[1].exchange_id))


def make_nodes(calls: Iterable[ModelCall]) -> list[Node]:
    """Nodes in order of sending, over all journals."""
    digests = Digests()
    nodes = []
    by_response: defaultdict[str, list[tuple[ModelCall, bool]]] = defaultdict(list)
    for sent_us, sent in in_order(calls):
        before, missing = _response_before(sent, by_response)
        call = _with_history(sent, before)
        if call.response_id:
            by_response[call.response_id].append((call, missing))
        end_ns = call.t_end_ns
        talk = call.messages[len(call.system) :]
        said = next((at for at, message in enumerate(talk) if message.role == "assistant"), len(talk))
        hashes = tuple(digests.of(message) for message in talk)
        nodes.append(
            Node(
                call=call,
                send_us=sent_us,
                end_us=None if end_ns is None else sent_us + (end_ns - call.t_send_ns) // 1000,
                head=digests.of_all(call.system),
                talk=tuple(digest for digest in hashes if digest is not None),
                voices="".join(
                    message.role[0] for message, digest in zip(talk, hashes, strict=True) if digest is not None
                ),
                opening=sum(1 for digest in hashes[:said] if digest is not None),
                answer_hash=None if call.answer is None else digests.of(as_said(call.answer)),
                tools=tools_hash(call.tools),
                history_missing=missing,
            )
        )
    return nodes


def _response_before(
    call: ModelCall, by_response: dict[str, list[tuple[ModelCall, bool]]]
) -> tuple[ModelCall | None, bool]:
    """(the call whose response this one goes on from, whether some of the history is missing).

    Servers of one's own may give the same id twice: then the same connection counts, then the latest.
    """
    if not call.previous_response_id:
        return None, False
    known = [
        entry for entry in by_response.get(call.previous_response_id, ()) if entry[0].contributor == call.contributor
    ]
    if not known:
        return None, True
    return max(enumerate(known), key=lambda entry: (entry[1][0].connection_id == call.connection_id, entry[0]))[1]


def _with_history(call: ModelCall, before: ModelCall | None) -> ModelCall:
    """The call with the whole prompt that the model saw, where it sent only what follows an earlier response.

    The instructions are the call's own: the API does not carry them over.
    """
    if before is None:
        return call
    said = [] if before.answer is None else [as_said(before.answer)]
    own = call.messages[len(call.system) :]
    return replace(call, messages=(*call.system, *before.messages[len(before.system) :], *said, *own))


def as_said(answer: Message) -> Message:
    """An answer as a later prompt holds it: without the times of a live one."""
    if all(use.t_emitted_ns is None for use in answer.tool_calls):
        return answer
    return replace(answer, tool_calls=tuple(replace(use, t_emitted_ns=None) for use in answer.tool_calls))


def made_calls(call: ModelCall) -> tuple[ToolUse, ...]:
    """Tool calls that an answer really made: one whose block never closed in a stream that broke was never run."""
    if call.answer is None:
        return ()
    if call.complete or call.transport is None:
        return call.answer.tool_calls
    return tuple(use for use in call.answer.tool_calls if use.t_emitted_ns is not None)


def since_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """What the client added after the model's last word; all but the system prompt where it has not spoken."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "assistant":
            return messages[at + 1 :]
    return [message for message in messages if message.role not in ("system", "developer")]

"""Which calls belong to one session: a ladder of evidence, best first.

1. `header`, `body`: an id that the agent sends.
2. `echo`: the prompt repeats the tool-call ids of an earlier answer, names its response id, carries its text as a
   summary, or is the text that an open tool call asked a sub-agent to work on.
3. `prefix`: the prompt repeats an earlier answer word for word, or an earlier prompt whose answer failed.

Equal system prompts and an equal first message prove nothing: the same task may run twice side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from capture.call import Message, ModelCall
from capture.canonical import canonical_hash, common_length, human_text, tools_hash
from capture.trajectory import LinkEvidence

_SUMMARY_CHARACTERS = 80  # an answer shorter than that may be repeated by chance
_TASK_CHARACTERS = 20  # and so may a task
_LOOK_BACK = 256  # answers that are searched for a summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A call with what comparing needs, on the wall clock in microseconds."""

    call: ModelCall
    send_us: int
    end_us: int | None
    hashes: tuple[bytes, ...]  # canonical prompt
    answer_hash: bytes | None
    tools: bytes
    opening: int  # canonical messages before the model's first word; alike in many sessions of one agent
    history_missing: bool = False  # the prompt goes on from a response that the store does not hold
    evidence: LinkEvidence = "none"

    @property
    def failed(self) -> bool:
        """Whether the answer did not come to its own end."""
        return not self.call.complete

    @property
    def answer_ids(self) -> frozenset[str]:
        """Ids of the tool calls in the answer."""
        answer = self.call.answer
        return frozenset(use.id for use in answer.tool_calls if use.id) if answer else frozenset()

    @property
    def conversation_start(self) -> int:
        """How many canonical messages stand before the first one of the conversation."""
        return sum(1 for message in self.call.system if message.content.strip())


@dataclass(slots=True)
class Group:
    """One session while it grows."""

    native_id: str | None
    nodes: list[Node] = field(default_factory=list)


def make_nodes(calls: Iterable[ModelCall]) -> list[Node]:
    """Nodes in order of sending, over all journals."""
    memo: dict[Message, bytes | None] = {}

    def digest(message: Message) -> bytes | None:
        if message not in memo:
            memo[message] = canonical_hash(message)
        return memo[message]

    nodes = []
    by_response: dict[str, ModelCall] = {}
    for sent in sorted(calls, key=lambda call: (_send_us(call), call.exchange_id)):
        before = by_response.get(sent.previous_response_id) if sent.previous_response_id else None
        call = _with_history(sent, before)
        if call.response_id:
            by_response[call.response_id] = call
        end_ns = call.t_end_ns
        said = next((at for at, message in enumerate(call.messages) if message.role == "assistant"), len(call.messages))
        nodes.append(
            Node(
                call=call,
                send_us=_send_us(call),
                end_us=None if end_ns is None else call.wall_anchor_us + end_ns // 1000,
                hashes=tuple(found for message in call.messages if (found := digest(message)) is not None),
                opening=sum(1 for message in call.messages[:said] if digest(message) is not None),
                answer_hash=None if call.answer is None else canonical_hash(call.answer),
                tools=tools_hash(call.tools),
                history_missing=bool(call.previous_response_id) and before is None,
            )
        )
    return nodes


def _send_us(call: ModelCall) -> int:
    return call.wall_anchor_us + call.t_send_ns // 1000


def _with_history(call: ModelCall, before: ModelCall | None) -> ModelCall:
    """The call with the whole prompt that the model saw, where it sent only what follows an earlier response.

    The instructions are the call's own: the API does not carry them over.
    """
    if before is None:
        return call
    said = [] if before.answer is None else [_as_said(before.answer)]
    own = call.messages[len(call.system) :]
    return replace(call, messages=(*call.system, *before.messages[len(before.system) :], *said, *own))


def _as_said(answer: Message) -> Message:
    """An answer as a later prompt holds it: without the times of a live one."""
    return replace(answer, tool_calls=tuple(replace(use, t_emitted_ns=None) for use in answer.tool_calls))


def carries_summary(prompt: Sequence[Message], answer: Message | None) -> bool:
    """Whether a user or system message holds the whole text of an earlier answer: a compacted context."""
    text = answer.content.strip() if answer is not None else ""
    if len(text) < _SUMMARY_CHARACTERS:
        return False
    return any(text in message.content for message in prompt if message.role not in ("assistant", "tool"))


def carries_task(prompt: Sequence[Message], answer: Message | None) -> bool:
    """Whether the prompt's user text is what one of the answer's tool calls asks somebody to do."""
    if answer is None or not answer.tool_calls:
        return False
    tasks = [text for message in prompt if len(text := human_text(message)) >= _TASK_CHARACTERS]
    # JSON escapes quotes and line breaks: compare up to the first of them.
    heads = [text.splitlines()[0].partition('"')[0].strip() for text in tasks]
    return any(head in use.arguments for head in heads if len(head) >= _TASK_CHARACTERS for use in answer.tool_calls)


class _Index:
    """What has been seen, by each kind of evidence."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.by_native: dict[str, Group] = {}
        self.by_response: dict[str, Group] = {}
        self.by_tool_id: defaultdict[str, list[tuple[Group, Node]]] = defaultdict(list)
        self.by_answer: defaultdict[bytes, list[tuple[Group, Node]]] = defaultdict(list)
        self.unfinished: list[tuple[Group, Node]] = []
        self.recent: list[tuple[Group, Node]] = []

    def place(self, node: Node) -> tuple[Group, LinkEvidence]:
        """The group of a node and the evidence for it; a new group where there is none."""
        hint = node.call.hints[0] if node.call.hints else None
        if hint is not None and (group := self.by_native.get(hint.session)) is not None:
            return group, hint.evidence
        found = self._by_content(node)
        if hint is None:
            if found is not None:
                return found
            group = Group(None)
        elif found is not None and found[0].native_id is None:
            # The id came late, or headers went missing for a while: the session adopts it.
            group = found[0]
            group.native_id = hint.session
            self.by_native[hint.session] = group
            return group, hint.evidence
        else:
            group = Group(hint.session)
            self.by_native[hint.session] = group
        self.groups.append(group)
        return group, "none" if hint is None else hint.evidence

    def add(self, group: Group, node: Node) -> None:
        """Remember a placed node."""
        group.nodes.append(node)
        if node.call.kind == "auxiliary":
            return
        entry = (group, node)
        if node.call.response_id:
            self.by_response[node.call.response_id] = group
        for tool_id in node.answer_ids:
            self.by_tool_id[tool_id].append(entry)
        if node.answer_hash is not None:
            self.by_answer[node.answer_hash].append(entry)
            self.recent.append(entry)
            del self.recent[:-_LOOK_BACK]
        if node.failed:
            self.unfinished.append(entry)

    def _by_content(self, node: Node) -> tuple[Group, LinkEvidence] | None:
        call = node.call
        if call.previous_response_id and (group := self.by_response.get(call.previous_response_id)) is not None:
            return group, "echo"
        for message in reversed(call.messages):
            if message.role != "assistant":
                continue
            echoed = [entry for use in message.tool_calls for entry in self.by_tool_id.get(use.id, ())]
            if (best := self._best(node, echoed, by_id=True)) is not None:
                return best, "echo"
            digest = canonical_hash(message)
            said = self.by_answer.get(digest, []) if digest is not None else []
            if (best := self._best(node, said, by_id=False)) is not None:
                return best, "prefix"
        repeated = [
            (group, earlier)
            for group, earlier in self.unfinished
            if group.nodes[-1] is earlier
            and len(earlier.hashes) > earlier.conversation_start
            and node.hashes[: len(earlier.hashes)] == earlier.hashes
        ]
        if (best := self._best(node, repeated, by_id=False)) is not None:
            return best, "prefix"
        for group, earlier in reversed(self.recent):
            if carries_summary(call.messages, earlier.call.answer):
                return group, "echo"
            waiting = group.nodes[-1] is earlier or earlier.end_us is None or earlier.end_us <= node.send_us
            if waiting and earlier.answer_ids and carries_task(call.messages, earlier.call.answer):
                return group, "echo"
        return None

    @staticmethod
    def _best(node: Node, entries: list[tuple[Group, Node]], *, by_id: bool) -> Group | None:
        """The entry that shares most of the prompt; at a tie the same connection, then the latest.

        Ids may repeat between sessions (scripted servers count from 1), so sharing decides; an id that only one
        session knows needs none, since that session may have rewritten its history. Words alone ("Done.") have to
        stand where they stood before.
        """
        if not entries:
            return None
        shared, _, _, best, earlier = max(
            (
                (
                    common_length(entry.hashes, node.hashes),
                    entry.call.connection_id == node.call.connection_id,
                    position,
                    group,
                    entry,
                )
                for position, (group, entry) in enumerate(entries)
            ),
            key=lambda found: found[:3],
        )
        if shared > earlier.conversation_start if by_id else shared >= earlier.opening > 0:
            return best
        return best if by_id and len({id(group) for group, _ in entries}) == 1 else None


def group_calls(calls: Iterable[ModelCall]) -> list[Group]:
    """Sessions in order of their first send; each holds its nodes in order of sending."""
    index = _Index()
    for node in make_nodes(calls):
        group, evidence = index.place(node)
        index.add(group, replace(node, evidence=evidence))
    return index.groups

"""Which calls belong to one session: a ladder of evidence, best first.

1. `header`, `body`, `source`: an id that the agent sends. A better rung that disagrees with a session outweighs a
   worse one that agrees; an id that goes missing for a while, or comes late, is bridged by the rungs below.
2. `echo`: the prompt names an earlier response, repeats the tool-call ids of an earlier answer, carries its text as a
   summary, is the text that a tool call asked a sub-agent to work on, or quotes a session's task without tools of its
   own (a title, a summary).
3. `prefix`: the prompt repeats an earlier answer word for word, or an earlier prompt whose answer failed.

Equal system prompts and an equal first message prove nothing: the same task may run twice side by side. A cache key
proves little, since an application may give one key to all its sessions: it ties only what cannot stand alone. What
different contributors send never comes together. No later call moves an earlier one to another session.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from capture.call import ModelCall, SessionHint
from capture.canonical import Digests, common_length, human_text
from capture.node import RETRY_WINDOW_US, SUMMARY_CHARACTERS, TASK_CHARACTERS, Node, make_nodes
from capture.trajectory import LinkEvidence

_ABORTED_US = 86_400_000_000  # a prompt that was aborted may be taken up again for a day
_ACTIVE = 256  # sessions that are searched for a summary, a task or a quote: those used last
_RECENT = 8  # calls of each of them
_MANY = 16  # answers that a prompt may echo; more are first sifted
_WORDS = 8  # characters; shorter texts are quoted by chance
_TITLE_US = 60_000_000  # a title is asked for close to the first call


@dataclass(slots=True, eq=False)
class Group:
    """One session while it grows."""

    native_id: str | None  # what its id is made of; None: its first call's
    nodes: list[Node] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # the id that each rung gives it
    armed: bool = False  # a call of it offers tools
    task: str = ""  # the human's first words

    def recent(self) -> Sequence[Node]:
        """Its latest calls, the last one first."""
        return self.nodes[: -_RECENT - 1 : -1]


type _Found = tuple[Group, LinkEvidence]


class _Index:
    """What one contributor has sent, by each kind of evidence."""

    def __init__(self) -> None:
        self.by_native: dict[str, Group] = {}
        self.by_cache_key: defaultdict[str, list[Group]] = defaultdict(list)
        self.by_response: defaultdict[str, list[tuple[Group, Node]]] = defaultdict(list)
        self.by_tool_id: defaultdict[str, list[tuple[Group, Node]]] = defaultdict(list)
        self.by_answer: defaultdict[bytes, list[tuple[Group, Node]]] = defaultdict(list)
        self.by_prompt: defaultdict[tuple[bytes | None, tuple[bytes, ...]], list[tuple[Group, Node]]] = defaultdict(
            list
        )
        self.unfinished: list[tuple[Group, Node]] = []
        self.active: dict[int, Group] = {}  # in order of their latest call
        self.digests = Digests()

    def place(self, node: Node) -> tuple[Group | None, LinkEvidence]:
        """The group of a node, None where it begins one, and the evidence for that."""
        ids = [hint for hint in node.call.hints if not hint.cache_key]
        keys = [hint for hint in node.call.hints if hint.cache_key]
        for order, hint in enumerate([*ids, *keys]):
            group = self.by_native.get(hint.session)
            if group is not None and not _contradicts(group, ids[:order]):
                return group, hint.evidence
        found = self._by_content(node)
        if ids:
            if found is not None and not found[0].names:
                return found[0], ids[0].evidence  # the id came late: the session adopts it
            return None, ids[0].evidence
        if found is not None:
            return found
        for key in keys:
            for group in reversed(self.by_cache_key.get(key.session, ())):
                if _leans(node, group):
                    return group, key.evidence
        return None, keys[0].evidence if keys else "none"

    def new_group(self, node: Node) -> Group:
        """A group that the node begins."""
        named = node.hint
        if named is not None:
            return Group(named.session)
        key = next((hint.session for hint in node.call.hints), None)
        return Group(None if key is None or self.by_cache_key.get(key) or key in self.by_native else key)

    def add(self, group: Group, node: Node) -> None:
        """Remember a placed node."""
        group.nodes.append(node)
        self._name(group, node.call.hints)
        if node.call.response_id:
            self.by_response[node.call.response_id].append((group, node))
        if node.call.kind == "auxiliary":
            return
        self.active.pop(id(group), None)
        self.active[id(group)] = group
        if len(self.active) > _ACTIVE:
            del self.active[next(iter(self.active))]
        group.armed = group.armed or bool(node.call.tools)
        if not group.task:
            group.task = next((text for message in node.call.messages if (text := human_text(message))), "")
        entry = (group, node)
        for tool_id in node.answer_ids:
            self.by_tool_id[tool_id].append(entry)
        if node.answer_hash is not None:
            self.by_answer[node.answer_hash].append(entry)
        self.by_prompt[node.head, node.talk].append(entry)
        if node.failed:
            self.unfinished.append(entry)

    def _name(self, group: Group, hints: Sequence[SessionHint]) -> None:
        for hint in hints:
            if hint.cache_key:
                if group not in self.by_cache_key[hint.session][-1:]:
                    self.by_cache_key[hint.session].append(group)
                continue
            self.by_native.setdefault(hint.session, group)
            group.names.setdefault(hint.evidence, hint.session)
            if hint.agent:  # a sub-agent's sub-agent names only its own parent
                self.by_native.setdefault(hint.agent, group)

    def _by_content(self, node: Node) -> _Found | None:
        call = node.call
        named = self.by_response.get(call.previous_response_id or "")
        if named:  # a server of one's own may give an id twice
            return max(named, key=lambda entry: entry[1].call.connection_id == call.connection_id)[0], "echo"
        for message in reversed(call.messages):
            if message.role != "assistant":
                continue
            echoed = [entry for use in message.tool_calls for entry in self.by_tool_id.get(use.id, ())]
            if (best := _best(node, echoed, by_id=True)) is not None:
                return best, "echo"
            digest = self.digests.of(message)
            said = self.by_answer.get(digest, []) if digest is not None else []
            # Behind a summary the last words stand elsewhere than before.
            if (best := _best(node, said, by_id=node.declares_compaction)) is not None:
                return best, "prefix"
        if (best := _best(node, self._unanswered(node), by_id=False)) is not None:
            return best, "prefix"
        return self._by_words(node)

    def _unanswered(self, node: Node) -> list[tuple[Group, Node]]:
        """Calls that this one tries again, or whose prompt it goes on from because no answer came."""
        again = [
            (group, earlier)
            for group, earlier in self.by_prompt.get((node.head, node.talk), ())
            if (node.retries(earlier) or node.resumes(earlier)) and not _taken_up(group, earlier)
        ]
        if again or node.call.kind == "auxiliary":
            return again
        self.unfinished = [entry for entry in self.unfinished if node.send_us - entry[1].send_us < _ABORTED_US]
        return [
            (group, earlier)
            for group, earlier in self.unfinished
            if 0 < len(earlier.talk) < len(node.talk)
            and node.talk[: len(earlier.talk)] == earlier.talk
            and not _taken_up(group, earlier)
        ]

    def _by_words(self, node: Node) -> _Found | None:
        for group in reversed(self.active.values()):
            for earlier in group.recent():
                written = node.carries(earlier.summary, by_model=earlier.asks_for_summary)
                if written and node.takes_over(group.recent()):
                    return group, "echo"
                waiting = group.nodes[-1] is earlier or earlier.end_us is None or earlier.end_us <= node.send_us
                if waiting and earlier.answer_ids and node.asked_by(earlier):
                    return group, "echo"
        near = [
            (quoted, group)
            for group in reversed(self.active.values())
            if (quoted := _quotes(node, group)) or _quoted_by(node, group)
        ]
        return (max(near, key=lambda entry: entry[0])[1], "echo") if near else None


def _taken_up(group: Group, earlier: Node) -> bool:
    """Whether a later call of the session went on from a call, or tried it again."""
    for later in reversed(group.nodes):
        if later is earlier:
            return False
        if later.talk[: len(earlier.talk)] == earlier.talk and later.call.kind == earlier.call.kind:
            return True
    return True


def _contradicts(group: Group, better: Sequence[SessionHint]) -> bool:
    return any(group.names.get(hint.evidence, hint.session) != hint.session for hint in better)


def _leans(node: Node, group: Group) -> bool:
    """Whether a call that shares a session's cache key cannot well stand alone."""
    if node.history_missing:
        return group.nodes[-1].call.connection_id == node.call.connection_id
    return node.call.kind == "auxiliary" or (group.armed and not node.call.tools)


def _akin(node: Node, other: Node) -> bool:
    """Whether the same program sent both, as far as anybody can tell."""
    if node.call.connection_id == other.call.connection_id:
        return bool(node.call.connection_id)
    return node.call.harness == other.call.harness != "unknown"


def _quotes(node: Node, group: Group) -> int:
    """How much of a session that has tools a call without tools speaks of, in characters: a title, a summary of it."""
    if node.call.tools or not group.armed:
        return 0
    last = group.nodes[-1]
    said = [message.content.strip() for message in last.call.messages if message.role in ("user", "assistant")]
    if last.call.answer is not None:
        said.append(last.call.answer.content.strip())
    told = {text for text in said if len(text) >= _WORDS and text in node.user_text}
    quoted = sum(map(len, told))
    if quoted >= SUMMARY_CHARACTERS or (len(told) > 1 and quoted >= TASK_CHARACTERS):
        return quoted
    if group.task and f"[User]: {group.task}" in node.user_text:  # a transcript, as pi and opencode write it
        return max(quoted, 1)
    since = last.end_us if last.end_us is not None else last.send_us
    near = _akin(node, last) and node.send_us - since < RETRY_WINDOW_US
    return len(group.task) if near and len(group.task) >= TASK_CHARACTERS and group.task in node.user_text else 0


def _quoted_by(node: Node, group: Group) -> bool:
    """The other way round: the title was asked for before the first call of the conversation itself."""
    if not node.call.tools or group.armed or group.names or len(group.nodes) > 1:
        return False
    first = group.nodes[0]
    return (
        node.send_us - first.send_us < _TITLE_US
        and _akin(node, first)
        and first.head != node.head
        and any(task in first.user_text for task in node.tasks)
    )


def _best(node: Node, entries: Sequence[tuple[Group, Node]], *, by_id: bool) -> Group | None:
    """The entry that shares most of the conversation; at a tie the same system prompt, the same connection, then the
    one that nobody has gone on from, the earliest of them.

    Ids may repeat between sessions (scripted servers count from 1), so sharing decides; an id that only one
    session knows needs none, since that session may have rewritten its history. Words alone ("Done.") have to
    stand where they stood before.
    """
    if not entries:
        return None
    if len(entries) > _MANY:  # "Done.", or a server that gives the same id again and again
        entries = [entry for entry in entries if _stands(entry[1], node)] or entries[-_MANY:]
    shared, _, _, _, _, best, earlier = max(
        (
            (
                common_length(_with_answer(entry), node.talk),
                entry.head == node.head,
                entry.call.connection_id == node.call.connection_id,
                group.nodes[-1] is entry,
                -position,
                group,
                entry,
            )
            for position, (group, entry) in enumerate(entries)
        ),
        key=lambda found: found[:5],
    )
    if shared > 0 if by_id else shared >= earlier.opening > 0:
        return best
    return best if by_id and len({id(group) for group, _ in entries}) == 1 else None


def _stands(earlier: Node, node: Node) -> bool:
    """Whether an answer stands in a prompt at the very place that it had."""
    at = len(earlier.talk)
    return at < len(node.talk) and node.talk[at] == earlier.answer_hash and node.talk[:at] == earlier.talk


def _with_answer(node: Node) -> tuple[bytes, ...]:
    return node.talk if node.answer_hash is None else (*node.talk, node.answer_hash)


def group_calls(calls: Iterable[ModelCall]) -> list[Group]:
    """Sessions in order of their first send; each holds its nodes in order of sending."""
    indexes: defaultdict[str | None, _Index] = defaultdict(_Index)
    groups: list[Group] = []
    taken: set[str] = set()
    for node in make_nodes(calls):
        index = indexes[node.call.contributor]
        group, evidence = index.place(node)
        if group is None:
            group = index.new_group(node)
            if group.native_id in taken:  # two people, one id
                group.native_id = f"{node.call.contributor}:{group.native_id}"
            taken.add(group.native_id or "")
            groups.append(group)
        index.add(group, replace(node, evidence=evidence))
    return groups

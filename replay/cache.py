"""What a prefix cache can and must not hit: the ideal share of each prompt, and plays that found a warm cache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.plan import Plan, PlanFile
    from replay.record import RequestRecord
    from replay.script import Script
    from replay.synth import Words

SLACK_TOKENS = 64
"""Of a fresh play's first prompt that may come from the cache: what a chat template puts before the salt."""

HEAD_SLACK = 1.25
"""Of a head of text that may come from the cache: its tokens are known by the plan's counting, not by the server's."""

NEVER_READ = ("refused", "http_error")
"""Outcomes after which a server has not taken the prompt into its cache."""


def with_ideal(
    records: Sequence[RequestRecord], plan: Plan, *, earlier: Iterable[RequestRecord] = ()
) -> tuple[RequestRecord, ...]:
    """The records with the share of each prompt that a cache which forgets nothing would hold.

    The longest prefix that a request sent before it had, within the plan's isolation: of the same play, of the same
    agent, of all agents; of a shared head within the whole run. In tokens for token ids, in bytes for text. Records are
    taken in order of sending. `earlier` holds the records of the run's earlier trials: they count where all of the run
    may share, and for a shared head. With a live history the share is unknown, since nobody planned what was said.
    """
    if plan.history == "live":
        return tuple(dataclasses.replace(record, ideal_cached_share=None) for record in records)
    before = tuple(earlier)
    warm = _Warm(plan, {record.session_id for record in (*records, *before)})
    for record in before:
        warm.take(record, earlier=True)
    return tuple(dataclasses.replace(record, ideal_cached_share=warm.take(record)) for record in records)


class _Warm:
    """What has been sent so far, by scope: prompts as paths in one tree of their units."""

    def __init__(self, plan: Plan, session_ids: Iterable[str]) -> None:
        self.plan = plan
        self.tree = PrefixTree()
        self.position: dict[tuple[str, int], int] = {}
        self.leaf: dict[tuple[str, int], int] = {}
        self.head_leaf: dict[tuple[str, int], int] = {}
        self.seen: dict[tuple[object, ...], set[int]] = {}
        for session_id in sorted(session_ids):
            self._add(plan.script(session_id))

    def _add(self, script: Script) -> None:
        leaves: list[int] = []
        for position, turn in enumerate(script.turns):
            units = script.units(position)
            start = None if units.base is None else (leaves[units.base], units.shared)
            leaf = self.tree.insert(units.space, start, units.rest)
            leaves.append(leaf)
            name = (script.session_id, turn.request_index)
            self.position[name], self.leaf[name] = position, leaf
            head = script.head_units(position)
            if head:
                self.head_leaf[name] = self.tree.cut(leaf, head)

    def take(self, record: RequestRecord, *, earlier: bool = False) -> float | None:
        """The warm share of a record's prompt, which then is warm."""
        name = (record.session_id, record.request_index)
        if name not in self.leaf:
            return None
        script = self.plan.script(record.session_id)
        read = record.outcome not in NEVER_READ
        units = 0
        scope = self._scope(record)
        if not earlier or not scope:
            units = self.tree.warm(self.leaf[name], self.seen.setdefault(scope, set()), mark=read)
        if name in self.head_leaf:
            units = max(units, self.tree.warm(self.head_leaf[name], self.seen.setdefault(("head",), set()), mark=read))
        prefix = script.size(self.position[name], units)
        return prefix.shared / prefix.total if prefix.total else 0.0

    def _scope(self, record: RequestRecord) -> tuple[object, ...]:
        if self.plan.isolation == "play":
            return (record.agent, record.play)
        return (record.agent,) if self.plan.isolation == "agent" else ()


class PrefixTree:
    """Sequences of unit keys as paths of one tree, each node a run of units that no sequence leaves in between.

    Insert everything first: a later insertion may cut a node in two, and a set of seen nodes would not know.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._depth: list[int] = []  # units from the root to the node's end
        self._keys: list[Words] = []
        self._children: list[dict[int, int]] = []
        self._roots: dict[str, int] = {}

    def _node(self, parent: int, depth: int, keys: Words) -> int:
        self._parent.append(parent)
        self._depth.append(depth)
        self._keys.append(keys)
        self._children.append({})
        return len(self._parent) - 1

    def insert(self, space: str, start: tuple[int, int] | None, rest: Words) -> int:
        """The node at which a sequence ends: the first so many units of another node's path, then `rest`."""
        import numpy as np

        if start is None or not start[1]:
            if space not in self._roots:
                self._roots[space] = self._node(-1, 0, np.empty(0, dtype=np.uint64))
            node = self._roots[space]
        else:
            node = self.cut(*start)
        while len(rest):
            child = self._children[node].get(int(rest[0]))
            if child is None:
                new = self._node(node, self._depth[node] + len(rest), rest)
                self._children[node][int(rest[0])] = new
                return new
            keys = self._keys[child]
            size = min(len(keys), len(rest))
            unlike = np.flatnonzero(keys[:size] != rest[:size])
            same = int(unlike[0]) if len(unlike) else size
            node = self.cut(child, self._depth[node] + same)
            rest = rest[same:]
        return node

    def cut(self, node: int, depth: int) -> int:
        """The node that ends at `depth` on the path to `node`; cut out of a longer one where there is none."""
        while self._parent[node] >= 0 and self._depth[self._parent[node]] >= depth:
            node = self._parent[node]
        if self._depth[node] <= depth:
            return node
        parent, keys = self._parent[node], self._keys[node]
        here = depth - self._depth[parent]
        upper = self._node(parent, depth, keys[:here])
        self._children[parent][int(keys[0])] = upper
        self._children[upper][int(keys[here])] = node
        self._parent[node], self._keys[node] = upper, keys[here:]
        return upper

    def warm(self, node: int, seen: set[int], *, mark: bool) -> int:
        """Units of a path that were seen; with `mark` all of it is, from now on."""
        way = []
        while node >= 0 and node not in seen:
            way.append(node)
            node = self._parent[node]
        if mark:
            seen.update(way)
        return self._depth[node] if node >= 0 else 0


def cross_warming(records: Sequence[RequestRecord], plan: PlanFile) -> tuple[str, ...]:
    """Why the isolation of this trial's plays is not to be believed; nothing where it held, or none was asked for.

    The first request under a fresh salt must be cold but for the shared head. One that was overtaken by another of its
    own salt, or sent twice, says nothing; nor does a server that tells no cached tokens.
    """
    if plan.isolation not in ("play", "agent"):
        return ()
    factor = plan.context.text_tokens_x
    allowed = {
        session.session_id: SLACK_TOKENS
        + (
            session.head_tokens
            if session.prompts == "token_ids"
            else math.ceil(session.head_tokens * factor * HEAD_SLACK)
        )
        for session in plan.sessions
    }
    firsts: dict[str, RequestRecord] = {}
    overtaken: set[str] = set()
    for record in sorted(records, key=lambda record: record.sent_at_ns):
        first = firsts.setdefault(record.salt, record)
        if first is not record and record.sent_at_ns < _prefilled_at_ns(first):
            overtaken.add(record.salt)
    checked = [
        record
        for salt, record in firsts.items()
        if salt not in overtaken
        and not record.redialled
        and record.cached_tokens is not None
        and record.session_id in allowed
    ]
    warm = [record for record in checked if (record.cached_tokens or 0) > allowed[record.session_id]]
    if not warm:
        return ()
    worst = max(warm, key=lambda record: (record.cached_tokens or 0) - allowed[record.session_id])
    of = "" if worst.prompt_tokens is None else f" of {worst.prompt_tokens:,}"
    return (
        f"{len(warm)} of {len(checked)} fresh plays found a warm prefix cache: agent {worst.agent}, play {worst.play} "
        f"had {worst.cached_tokens:,}{of} tokens of its first prompt cached, where its salt allows "
        f"{allowed[worst.session_id]:,}",
    )


def _prefilled_at_ns(record: RequestRecord) -> float:
    """When a request's prompt was in the cache for certain; until then a later one may have come first."""
    for moment in (record.first_content_at_ns, record.end_at_ns):
        if moment is not None:
            return moment
    return math.inf

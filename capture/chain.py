"""The linear chains of one session: which call continues which, and what happened to the context in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from capture.canonical import common_length
from capture.grouping import Node, carries_summary, carries_task
from capture.tool_kind import tool_kind
from capture.trajectory import ContextEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call's place in its chain. Numbers are positions in the session, in order of sending."""

    position: int
    node: Node
    parent: int | None  # the call that it continues; for a chain's first the one that spawned it
    previous: int | None  # the call before it on the same chain
    retry_of: int | None
    event: ContextEvent


@dataclass(slots=True)
class Chain:
    """One linear run of calls."""

    agent: str | None  # id of the sub-agent, where the wire names it
    side: bool = False  # a single call beside the conversation
    spawned: bool = False  # began while the parent waited for tool results
    steps: list[Step] = field(default_factory=list)
    path: str = ""

    @property
    def last(self) -> Step:
        """The latest step."""
        return self.steps[-1]


def _echoes(later: Node, earlier: Node) -> bool:
    """Whether a prompt holds the earlier answer: then it was sent after it, whatever the clocks say."""
    if earlier.answer_hash is None:
        return False
    if earlier.answer_hash in later.hashes:
        return True
    ids = earlier.answer_ids
    return bool(ids) and any(message.tool_call_id in ids for message in later.call.messages)


def _idle(chain: Chain, send_us: int) -> bool:
    end = chain.last.node.end_us
    return end is not None and end <= send_us


class ChainBuilder:
    """Takes a session's nodes in order of sending and lays each on a chain."""

    def __init__(self) -> None:
        self.chains: list[Chain] = []
        self._compactions: list[tuple[int, Chain]] = []  # calls that summarised the context
        self._count = 0

    def add(self, node: Node) -> None:
        """Lay the next node."""
        position, self._count = self._count, self._count + 1
        if node.call.kind == "auxiliary":
            chain = self._start(Chain(agent=None, side=True), position, node, self._latest_turn())
        else:
            chain = self._lay(position, node)
        if node.call.compaction is not None:
            self._compactions.append((position, chain))

    def _lay(self, position: int, node: Node) -> Chain:
        agent = node.call.hints[0].agent if node.call.hints else None
        own = [chain for chain in self.chains if not chain.side and chain.agent == agent]
        best = max(
            (
                (*rank, chain.last.position, chain, event, base)
                for chain in own
                if (found := self._fit(chain, node)) is not None
                for rank, event, base in (found,)
            ),
            key=lambda entry: entry[:3],
            default=None,
        )
        if best is not None:
            _, _, _, chain, event, base = best
            return self._continue(chain, position, node, event, base)
        compacted = node.call.context_compacted or any(
            carries_summary(node.call.messages, step.node.call.answer) for chain in self.chains for step in chain.steps
        )
        waiting = self._waiting(node)
        same_tools = [chain for chain in own if chain.last.node.tools == node.tools and _idle(chain, node.send_us)]
        if own and (compacted or agent is not None):
            chain = max(same_tools or own, key=lambda chain: chain.last.position)
            return self._continue(chain, position, node, "compaction" if compacted else "reset", chain.last)
        if waiting is not None:
            return self._start(Chain(agent=agent, spawned=True), position, node, waiting)
        if same_tools:
            chain = max(same_tools, key=lambda chain: chain.last.position)
            return self._continue(chain, position, node, "reset", chain.last)
        return self._start(Chain(agent=agent), position, node, self._latest_turn())

    def _fit(self, chain: Chain, node: Node) -> tuple[tuple[int, int], ContextEvent, Step] | None:
        """((kind of fit, shared messages), event, step continued) of a node on a chain; None where it does not fit."""
        last = chain.last
        shared = common_length(last.node.hashes, node.hashes)
        whole = shared == len(last.node.hashes) and shared > 0
        if whole and shared == len(node.hashes) and not _echoes(node, last.node):
            # The same prompt again: a new attempt, or a second opinion while the first is still being written.
            if last.node.failed or _idle(chain, node.send_us):
                return (3, shared), "append" if last.node.failed else "branch", last
            return None
        if whole and (_echoes(node, last.node) or last.node.failed or _idle(chain, node.send_us)):
            return (4, shared), "append", last
        if not whole and self._compacted_since(chain, node):
            return (3, shared), "compaction", last
        if _echoes(node, last.node) and shared >= min(last.node.conversation_start, len(node.hashes)):
            return (3, shared), "edit", last
        if not _idle(chain, node.send_us) and not last.node.failed:
            return None
        # Older states of the chain: a rewind goes on from one of them.
        ranked = [(common_length((*step.node.hashes, *_answer(step.node)), node.hashes), step) for step in chain.steps]
        depth, step = max(ranked, key=lambda entry: (entry[0], -entry[1].position))
        if depth > step.node.opening:
            # History rewritten in place keeps most of its length; a rewind drops the tail.
            rewritten = len(node.hashes) > len(last.node.hashes)
            return (2, depth), "edit" if rewritten else "branch", last if rewritten else step
        return None

    def _compacted_since(self, chain: Chain, node: Node) -> bool:
        last = chain.last
        # A summary by a call of its own (`/responses/compact`) stands beside the chain.
        if any(at >= last.position and (by is chain or by.side) for at, by in self._compactions):
            return True
        return len(node.hashes) < len(last.node.hashes) and carries_summary(node.call.messages, last.node.call.answer)

    def _waiting(self, node: Node) -> int | None:
        """The call whose tool results are awaited at this time; the one that asks for this very task first."""
        found: list[tuple[bool, bool, int]] = []
        for chain in self.chains:
            answer = chain.last.node.call.answer
            if chain.side or answer is None or not answer.tool_calls:
                continue
            task = carries_task(node.call.messages, answer)
            # A client may start a tool at the end of its own block, before the answer is over.
            if not task and not _idle(chain, node.send_us):
                continue
            delegates = any(tool_kind(use.name) == "subagent" for use in answer.tool_calls)
            found.append((task, delegates, chain.last.position))
        return max(found)[2] if found else None

    def _latest_turn(self) -> int | None:
        turns = [chain.last.position for chain in self.chains if not chain.side]
        return max(turns, default=None)

    def _start(self, chain: Chain, position: int, node: Node, parent: int | None) -> Chain:
        chain.steps.append(
            Step(position=position, node=node, parent=parent, previous=None, retry_of=None, event="append")
        )
        self.chains.append(chain)
        return chain

    def _continue(self, chain: Chain, position: int, node: Node, event: ContextEvent, base: Step) -> Chain:
        last = chain.last
        retry = last.node.failed and last.node.hashes == node.hashes
        chain.steps.append(
            Step(
                position=position,
                node=node,
                parent=last.parent if retry else base.position,
                previous=last.position,
                retry_of=last.position if retry else None,
                event=event,
            )
        )
        return chain


def _answer(node: Node) -> tuple[bytes, ...]:
    return () if node.answer_hash is None else (node.answer_hash,)


def build_chains(nodes: Sequence[Node]) -> list[Chain]:
    """Chains of one session, each with its agent path: `main`, `main/1`, …, and `side/1`, … for side calls."""
    builder = ChainBuilder()
    for node in nodes:
        builder.add(node)
    chains = builder.chains
    main = _elect_main(chains)
    numbers = {"main": 0, "side": 0}
    for chain in chains:
        # No tools where the main chain has them, and nobody waits for it: a title, a summary, a classifier.
        beside = (
            chain is not main
            and not chain.spawned
            and chain.agent is None
            and len(chain.steps) == 1
            and not chain.last.node.call.tools
            and bool(main.last.node.call.tools)
        )
        kind = "side" if chain.side or beside else "main"
        if chain is main:
            chain.path = "main"
        else:
            numbers[kind] += 1
            chain.path = f"{kind}/{numbers[kind]}"
    return chains


def _elect_main(chains: Sequence[Chain]) -> Chain:
    turns = [chain for chain in chains if not chain.side] or list(chains)
    # Where the wire names sub-agents, a chain without a name is the main one.
    unnamed = [chain for chain in turns if chain.agent is None] or turns
    armed = [chain for chain in unnamed if chain.last.node.call.tools and not chain.spawned]
    return next((chain for chain in armed if len(chain.steps) > 1), None) or next(
        iter(armed), max(unnamed, key=lambda chain: len(chain.steps))
    )

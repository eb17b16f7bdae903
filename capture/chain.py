"""The linear chains of one session: which call continues which, and what happened to the context in between.

What ties a call to the one that it continues, best first, each with how sure it is:

1. The agent's ids, where they lead to one chain: both calls carry the same session and agent, and the conversation
   goes on as it stood (`header`, `body`, `source`; certain).
2. `echo`: the id of the earlier response, or ids of its tool calls among the prompt's (certain); the summary or the
   task that an earlier answer wrote (likely).
3. `prefix`: the earlier prompt and answer stand at the head of this one (likely).
4. The times alone: the same agent was idle, a parent waited for a tool (possible); `link` then says what put the call
   into the session.

A rewind, an edit and a retry stay on the chain that they belong to: it is one agent's work. A fork that runs beside the
chain that it left is a chain of its own. The call that writes a summary is laid where its prompt stands: on the chain
if it repeats the conversation, beside it (`side`) if it is a call of its own; the first call of the new context is the
`compaction`, on the chain, once for each compaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from capture.canonical import common_length
from capture.node import Node
from capture.tool_kind import tool_kind
from capture.trajectory import ContextEvent, LinkConfidence, LinkEvidence, Relation

_ASKS = 64  # answers with tool calls that may still have somebody at work


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call's place in its chain. Numbers are positions in the session, in order of sending."""

    position: int
    node: Node
    parent: int | None  # the call that it continues; for a chain's first the one that spawned it
    previous: int | None  # the call before it on the same chain
    retry_of: int | None
    event: ContextEvent
    relation: Relation
    link: LinkEvidence
    confidence: LinkConfidence | None


@dataclass(slots=True, eq=False)
class Chain:
    """One linear run of calls."""

    agent: str | None  # id of the sub-agent, where the wire names it
    named: bool  # the agent's ids told whose it is; None in `agent` is then the main agent
    side: bool = False  # a call beside the conversation
    spawned: bool = False  # began while the parent waited for tool results
    steps: list[Step] = field(default_factory=list)
    path: str = ""

    @property
    def last(self) -> Step:
        """The latest step."""
        return self.steps[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """How a call fits onto a chain; `rank` orders fits, the best last."""

    rank: tuple[int, int, int]  # kind of fit, likeness of the callers, messages shared
    event: ContextEvent
    base: Step
    by: Literal["id", "words", "time"]
    retry: bool = False


def _echoes(later: Node, earlier: Node) -> bool:
    """Whether a prompt holds the earlier answer: then it was sent after it, whatever the clocks say."""
    if not earlier.answer_ids.isdisjoint(later.result_ids):
        return True
    return earlier.answer_hash is not None and earlier.answer_hash in later.talk


def _idle(chain: Chain, send_us: int) -> bool:
    end = chain.last.node.end_us
    return end is not None and end <= send_us


class ChainBuilder:
    """Takes a session's nodes in order of sending and lays each on a chain."""

    def __init__(self) -> None:
        self.chains: list[Chain] = []
        self.by_position: list[tuple[Chain, Step]] = []
        self._by_response: dict[str, tuple[Chain, Step]] = {}
        self._asks: list[Step] = []  # answers with tool calls, the latest last
        self._started: Counter[int] = Counter()  # sub-agents that each call is known to have started
        self._compactions: list[tuple[int, Chain]] = []  # calls that summarised the context, by the agent's own word

    def add(self, node: Node) -> None:
        """Lay the next node."""
        chain = self._beside(node) if node.call.kind == "auxiliary" else self._lay(node)
        step = chain.last
        if node.call.response_id:
            self._by_response[node.call.response_id] = (chain, step)
        if node.answer_ids and not chain.side:
            self._asks.append(step)
            del self._asks[:-_ASKS]
        if node.call.compaction is not None:
            self._compactions.append((step.position, chain))

    def _beside(self, node: Node) -> Chain:
        """A call that is no turn by the agent's own word: alone, or a new attempt at one."""
        for chain in self.chains:
            if chain.side and node.retries(chain.last.node):
                return self._continue(
                    chain, node, _Fit(rank=(0, 0, 0), event="append", base=chain.last, by="words", retry=True)
                )
        sure: LinkConfidence = "certain" if node.hint is not None else "likely"
        chain = Chain(agent=None, named=False, side=True)
        return self._start(chain, node, self._latest_turn(node), "side", _placed(node), sure)

    def _lay(self, node: Node) -> Chain:
        hint = node.hint
        agent = None if hint is None else hint.agent
        # Ids that are missing for a while, or come late, hide whose call it is: then any chain will do.
        own = [
            chain
            for chain in self.chains
            if not chain.side and (hint is None or not chain.named or chain.agent == agent)
        ]
        if node.asks_for_summary and node.call.compaction is None and self._unlike(node):
            # A summary that is asked for without the conversation's tools is a call of its own.
            own = [chain for chain in own if not chain.last.node.call.tools]
        if (named := self._named_response(node, own)) is not None:
            return named
        fits = [(chain, fit) for chain in own if (fit := self._fit(chain, node)) is not None]
        if fits:
            chain, fit = max(fits, key=lambda entry: (entry[1].rank, entry[0].last.position))
            return self._continue(chain, node, fit)
        mine = [chain for chain in own if chain.named and chain.agent == agent] if agent is not None else own
        same_tools = [
            chain
            for chain in mine
            if chain.last.node.tools == node.tools
            and chain.last.node.call.agent_type == node.call.agent_type
            and _idle(chain, node.send_us)
        ]
        if mine and (agent is not None or node.call.context_compacted or node.declares_compaction):
            chain = max(same_tools or mine, key=lambda chain: chain.last.position)
            compacted = node.call.context_compacted or node.declares_compaction
            event: ContextEvent = "compaction" if compacted else "reset"
            by: Literal["words", "time"] = "words" if compacted else "time"
            return self._continue(chain, node, _Fit(rank=(0, 0, 0), event=event, base=chain.last, by=by))
        spawner = self._spawner(node)
        if spawner is not None:
            step, link, sure = spawner
            chain = Chain(agent=agent, named=hint is not None, spawned=True)
            self._started[step.position] += 1
            return self._start(chain, node, step.position, "subagent", link, sure)
        if same_tools and not self._unlike(node):
            chain = max(same_tools, key=lambda chain: chain.last.position)
            return self._continue(chain, node, _Fit(rank=(0, 0, 0), event="reset", base=chain.last, by="time"))
        return self._open(node, agent)

    def _open(self, node: Node, agent: str | None) -> Chain:
        """A chain that nobody is known to have asked for."""
        parent = self._latest_turn(node)
        named = node.hint is not None
        relation: Relation = "start" if parent is None else "subagent"
        sure: LinkConfidence | None = None if parent is None else "likely" if agent is not None else "possible"
        return self._start(Chain(agent=agent, named=named), node, parent, relation, _placed(node), sure)

    def _unlike(self, node: Node) -> bool:
        """Whether a call offers no tools where the session has some: a title, a summary, a classifier."""
        return not node.call.tools and any(
            chain.last.node.call.tools for chain in self.chains if not chain.side and chain.agent is None
        )

    def _named_response(self, node: Node, own: Sequence[Chain]) -> Chain | None:
        """The chain of the response that the call names, where it is known and no mere prewarming."""
        found = self._by_response.get(node.call.previous_response_id or "")
        if found is None or found[0].side or found[0] not in own:
            return None
        chain, base = found
        if node.talk[: len(base.node.talk)] != base.node.talk:
            return None  # a server of one's own gave the same id twice
        event: ContextEvent = "append" if base is chain.last else "branch"
        retried = base is not chain.last and node.retries(chain.last.node)
        if event == "append" or retried or chain.last.node.failed or _idle(chain, node.send_us):
            base, event = (chain.last, "append") if retried else (base, event)
            return self._continue(chain, node, _Fit(rank=(9, 0, 0), event=event, base=base, by="id", retry=retried))
        # The chain is still at work: a second conversation on the same socket leaves it here.
        fork = Chain(agent=chain.agent, named=chain.named)
        return self._start(fork, node, base.position, "fork", "echo", "certain", event="branch")

    def _fit(self, chain: Chain, node: Node) -> _Fit | None:
        """How a node fits onto a chain; None where it does not."""
        last = chain.last
        before = last.node
        if node.retries(before):
            return _Fit(rank=(8, 0, len(node.talk)), event="append", base=last, by="words", retry=True)
        if node.resumes(before):
            return _Fit(rank=(8, 0, len(node.talk)), event="append", base=last, by="words")
        shared = common_length(before.talk, node.talk)
        whole = shared == len(before.talk) and shared > 0
        idle = _idle(chain, node.send_us)
        echoes = _echoes(node, before)
        by: Literal["id", "words"] = "words" if before.answer_ids.isdisjoint(node.result_ids) else "id"
        steady = node.head == before.head
        alike = steady + (node.tools == before.tools)
        if whole and shared == len(node.talk) and not echoes:
            # The same prompt again: said anew, or a second opinion while the first is still being written. A
            # sub-agent that is done and asked the same is another one; so is one that was given its asker's own task.
            done = chain.spawned and not before.answer_ids and not before.failed
            if done or self._handed_on(node) or not (idle or before.failed):
                return None
            return _Fit(rank=(3, alike, shared), event="branch", base=last, by="words")
        if node.call.compaction is not None and shared >= max(1, before.opening):
            # The call that writes the summary may drop the last tools, to send them behind the summary.
            return _Fit(rank=(4 + steady + echoes, alike, shared), event="append", base=last, by=by)
        if whole and steady and not echoes and not before.failed and before.answer_hash is not None:
            if not idle:
                return None
            if node.voices[shared] != "a":  # the answer was taken back
                return _Fit(rank=(4, alike, shared), event="branch", base=last, by="words")
        if whole and (echoes or (steady and (before.failed or idle))) and not self._told_compacted(chain, node):
            # The conversation goes on as it stood; with other instructions the engine starts anew all the same.
            event: ContextEvent = "append" if steady else "edit"
            return _Fit(rank=(4 + steady + echoes, alike, shared), event=event, base=last, by=by)
        if (how := self._compacted(chain, node)) is not None:
            return _Fit(rank=(3, alike, shared), event="compaction", base=last, by=how)
        if echoes and (shared or steady or by == "id"):
            return _Fit(rank=(3, alike, shared), event="edit", base=last, by=by)
        if not idle and not before.failed:
            return None
        return self._rewound(chain, node)

    def _handed_on(self, node: Node) -> bool:
        """Whether somebody waits for sub-agents that he asked for what this call begins with, and one is to begin."""
        for chain in self.chains:
            answer = chain.last.node.call.answer
            if chain.side or answer is None or not _idle(chain, node.send_us):
                continue
            asked = [use for use in answer.tool_calls if tool_kind(use.name) == "subagent" and node.is_task_of(use)]
            if len(asked) > self._started[chain.last.position]:
                return True
        return False

    def _rewound(self, chain: Chain, node: Node) -> _Fit | None:
        """Older states of the chain: a rewind goes on from one of them."""
        best: tuple[int, int] = (0, 0)
        for order, step in enumerate(chain.steps):
            depth = common_length(step.node.talk, node.talk)
            if depth == len(step.node.talk) < len(node.talk) and node.talk[depth] == step.node.answer_hash:
                depth += 1
            best = max(best, (depth, -order))
        depth, order = best[0], -best[1]
        step = chain.steps[order]
        if depth <= step.node.opening:
            return None
        by: Literal["id", "words"] = "words" if step.node.answer_ids.isdisjoint(node.result_ids) else "id"
        # History rewritten in place keeps what the model said behind that place; a rewind drops the tail.
        if len(node.talk) > len(chain.last.node.talk) and "a" in node.voices[depth:]:
            return _Fit(rank=(2, 0, depth), event="edit", base=chain.last, by=by)
        return _Fit(rank=(2, 0, depth), event="branch", base=step, by=by)

    def _told_compacted(self, chain: Chain, node: Node) -> bool:
        """Whether the agent counts more compactions than at the chain's last call."""
        then, now = chain.last.node.call.context_generation, node.call.context_generation
        return then is not None and now is not None and now > then

    def _compacted(self, chain: Chain, node: Node) -> Literal["id", "words"] | None:
        """What tells that the context was summarised since the chain's last call; None where nothing does."""
        last = chain.last
        if node.call.context_compacted or self._told_compacted(chain, node):
            return "id"
        if any(
            at >= last.position and (by is chain or (by.side and _same_agent(by.last.node, last.node)))
            for at, by in self._compactions
        ):
            return "id"
        if last.node.call.tools and not node.call.tools:
            return None  # a title or the like that quotes
        if node.declares_compaction and node.talk[:1] != last.node.talk[:1]:
            return "words"
        if len(node.talk) >= len(last.node.talk) and node.size >= last.node.size:
            return None
        # A summary may be written by a call of its own, beside the chain.
        writers = [last.node] + [
            other.last.node
            for other in self.chains
            if other is not chain and len(other.steps) == 1 and other.last.position > last.position
        ]
        for writer in writers:
            shorter = 2 * node.size < max(writer.size, last.node.size)
            written = node.carries(writer.summary, by_model=writer.asks_for_summary and shorter)
            if written and node.takes_over((last.node,)):
                return "words"
        return None

    def _spawner(self, node: Node) -> tuple[Step, LinkEvidence, LinkConfidence] | None:
        """The call that asked for a sub-agent's work, and what shows it; None where nobody seems to have."""
        hint = node.hint
        agent = None if hint is None else hint.agent
        parent_agent = None if hint is None else hint.parent_agent
        known = {chain.agent for chain in self.chains if chain.agent is not None}
        best: tuple[tuple[bool, bool, bool, bool, int], Step, bool] | None = None
        for step in self._asks:
            chain, _ = self.by_position[step.position]
            answer = step.node.call.answer
            if answer is None or (agent is not None and chain.agent == agent):
                continue
            task = node.asked_by(step.node)
            waiting = chain.last is step and _idle(chain, node.send_us)
            asked = sum(tool_kind(use.name) == "subagent" for use in answer.tool_calls)
            delegates = asked > self._started[step.position]
            if not (task or waiting or (agent is not None and asked)):
                continue
            by_parent = parent_agent in known and chain.agent == parent_agent
            rank = (by_parent, task, waiting, delegates, step.position)
            if best is None or rank > best[0]:
                best = (rank, step, task or (by_parent and asked > 0))
        if best is None:
            return None
        (_, task, _, delegates, _), step, told = best
        if agent is not None:
            return step, "echo" if task else _placed(node), "certain" if told else "likely"
        if task:
            return step, "echo", "likely"
        # Somebody waits, but nothing says that it is for this: a call without tools may as well be a classifier.
        return (step, _placed(node), "possible") if node.call.tools or delegates else None

    def _latest_turn(self, node: Node) -> int | None:
        """The latest turn, of the same agent where the ids tell."""
        turns = [chain for chain in self.chains if not chain.side]
        if node.hint is not None:
            turns = [chain for chain in turns if chain.named and chain.agent == node.hint.agent] or turns
        return max((chain.last.position for chain in turns), default=None)

    def _start(
        self,
        chain: Chain,
        node: Node,
        parent: int | None,
        relation: Relation,
        link: LinkEvidence,
        confidence: LinkConfidence | None,
        event: ContextEvent = "append",
    ) -> Chain:
        self.chains.append(chain)
        return self._put(
            chain,
            Step(
                position=len(self.by_position),
                node=node,
                parent=parent,
                previous=None,
                retry_of=None,
                event=event,
                relation=relation,
                link=link,
                confidence=confidence,
            ),
        )

    def _continue(self, chain: Chain, node: Node, fit: _Fit) -> Chain:
        last = chain.last
        link, confidence = self._link(node, fit)
        if not chain.named and node.hint is not None and not chain.side:
            chain.named, chain.agent = True, node.hint.agent
        return self._put(
            chain,
            Step(
                position=len(self.by_position),
                node=node,
                parent=last.parent if fit.retry else fit.base.position,
                previous=last.position,
                retry_of=last.position if fit.retry else None,
                event=fit.event,
                relation=_relation(chain, last.node, node, fit),
                link=link,
                confidence=confidence,
            ),
        )

    def _put(self, chain: Chain, step: Step) -> Chain:
        chain.steps.append(step)
        self.by_position.append((chain, step))
        return chain

    def _link(self, node: Node, fit: _Fit) -> tuple[LinkEvidence, LinkConfidence]:
        """The best evidence for this very link."""
        one, other = node.hint, fit.base.node.hint
        told = one is not None and other is not None and (one.session, one.agent) == (other.session, other.agent)
        alike = [
            chain
            for chain in self.chains
            # Titles and summaries, which have no tools, go by the same id.
            if not chain.side
            and chain.agent == (one.agent if one else None)
            and bool(chain.last.node.call.tools) == bool(fit.base.node.call.tools)
        ]
        if one is not None and told and len(alike) == 1 and fit.event == "append" and not fit.retry:
            return one.evidence, "certain"
        if fit.retry and node.call.attempt:
            return (one.evidence, "certain") if one is not None and told else ("prefix", "certain")
        if fit.by == "time":
            return _placed(node), "possible"
        if fit.event == "compaction":
            if fit.by == "id":
                return (one.evidence, "certain") if one is not None and told else ("echo", "likely")
            return "echo", "likely"
        return ("echo", "certain") if fit.by == "id" else ("prefix", "likely")


def _relation(chain: Chain, before: Node, node: Node, fit: _Fit) -> Relation:
    if chain.side:
        return "retry" if fit.retry else "side"
    if fit.retry:
        return "retry"
    # Other instructions before the same conversation are no fork of it.
    if fit.event == "edit" and before.talk == node.talk[: len(before.talk)]:
        return "continue"
    return relation_of(fit.event)


def relation_of(event: ContextEvent) -> Relation:
    """What a call that goes on a chain is to the one before, by what happened to the context between them."""
    if event == "compaction":
        return "compaction"
    return "continue" if event == "append" else "fork"


def _placed(node: Node) -> LinkEvidence:
    """What put a call into its session."""
    return node.evidence


def _same_agent(one: Node, other: Node) -> bool:
    """Whether two calls may be one agent's: by its ids, else by what was said."""
    if one.hint is not None and other.hint is not None:
        return one.hint.agent == other.hint.agent
    return common_length(one.talk, other.talk) >= min(len(one.talk), len(other.talk)) // 2

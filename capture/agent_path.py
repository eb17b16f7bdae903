"""Which chain of a session is the main one, who started each other one, and what only stands beside.

Told when the session is read to its end: that a call was a title, or that a sub-agent's words came back to the call
that asked for them, shows afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from capture.chain import Chain, ChainBuilder, Step
from capture.node import TASK_CHARACTERS, Node
from capture.trajectory import LinkConfidence


def build_chains(nodes: Sequence[Node]) -> list[Chain]:
    """Chains of one session, each with its agent path.

    `main`; `main/1`, … for what it started, `main/1/1`, … for what that started; `side/1`, … for side calls.
    """
    builder = ChainBuilder()
    for node in nodes:
        builder.add(node)
    chains = builder.chains
    main = _elect_main(chains)
    if main.steps[0].relation in ("subagent", "fork"):  # what came before it was beside it
        main.steps[0] = replace(main.steps[0], relation="start", parent=None, confidence=None)
    numbers: dict[str, int] = {}
    for chain in chains:
        if chain is main:
            chain.path = "main"
            continue
        if not chain.side and _is_beside(chain, main):
            chain.side = True
            chain.steps = [
                step
                if step.relation == "retry"
                else replace(step, relation="side", event="append", confidence=step.confidence or "possible")
                for step in chain.steps
            ]
        parent = chain.steps[0].parent
        while parent is not None and chain.side and builder.by_position[parent][0].side:
            parent = builder.by_position[parent][0].steps[0].parent  # what stood beside asked for nothing
            chain.steps[0] = replace(chain.steps[0], parent=parent)
        if chain.spawned and parent is not None:
            _confirm(chain, *builder.by_position[parent])
        above = "side" if chain.side else "main"
        if not chain.side and parent is not None:
            by, _ = builder.by_position[parent]
            above = "main" if by.side or not by.path else by.path
        numbers[above] = numbers.get(above, 0) + 1
        chain.path = f"{above}/{numbers[above]}"
    return chains


def _confirm(chain: Chain, by: Chain, asked: Step) -> None:
    """A sub-agent whose last words came back as the result of its parent's tool call is surely that call's."""
    first, answer = chain.steps[0], chain.last.node.call.answer
    words = "" if answer is None else answer.content.strip()
    if first.confidence == "certain" or len(words) < TASK_CHARACTERS:
        return
    back = next((step for step in by.steps if step.previous == asked.position), None)
    if back is None or back.node.send_us < chain.last.node.send_us:
        return
    ids = asked.node.answer_ids
    if any(message.tool_call_id in ids and words in message.content for message in back.node.call.messages):
        sure: LinkConfidence = "likely" if first.confidence == "possible" else "certain"
        chain.steps[0] = replace(first, link="echo", confidence=sure)


def _is_beside(chain: Chain, main: Chain) -> bool:
    """No tools where the main chain has them, and nobody waits for it: a title, a summary, a classifier."""
    return (
        not chain.spawned
        and chain.agent is None
        and not chain.last.node.call.tools
        and all(step.node.talk == chain.last.node.talk for step in chain.steps)
        and bool(main.last.node.call.tools)
    )


def _elect_main(chains: Sequence[Chain]) -> Chain:
    turns = [chain for chain in chains if not chain.side] or list(chains)
    # Where the wire names sub-agents, a chain without a name is the main one.
    unnamed = [chain for chain in turns if chain.agent is None] or turns
    armed = [chain for chain in unnamed if chain.last.node.call.tools and not chain.spawned]
    return next((chain for chain in armed if len(chain.steps) > 1), None) or next(
        iter(armed), max(unnamed, key=lambda chain: len(chain.steps))
    )

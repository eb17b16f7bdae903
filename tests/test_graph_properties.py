"""Laws of the session graph under any calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from capture.assemble import assemble
from capture.call import Message, ModelCall
from capture.canonical import canonical_hash
from tests.calls import KEY, SYSTEM, Wire, check, result, said, user
from tests.test_pool import MESSAGES

ACTIONS = ("tool", "two tools", "text", "retry", "side", "sub-agent", "compaction", "rewind", "edit")
type Plan = list[tuple[str, int, int]]  # (action, pause before it in ms, time of its calls in ms)
PLANS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3000), st.integers(1, 900)), min_size=1, max_size=6)


class Agent:
    """Plays a session: what it says is its own, so that nobody may take it for another's."""

    def __init__(self, tag: str, start_ms: int, *, named: bool, task: str) -> None:
        self.tag = tag
        self.named = {"session": tag} if named else {}
        self.wire = Wire(name=tag)
        self.at_ms = start_ms
        self.task = task
        self.messages = [SYSTEM, user(task)]
        self.turn = 0
        self.wanted: list[str] = []  # relation of each call

    def send(
        self, prompt: Sequence[Message], answer: Message | None, took_ms: int, relation: str, **changes: Any
    ) -> None:
        self.wire.call(self.at_ms, list(prompt), answer, took_ms=took_ms, **(self.named | changes))
        self.at_ms += took_ms + 1
        self.wanted.append(relation if self.wanted or relation == "side" else "start")

    def play(self, action: str, pause_ms: int, took_ms: int) -> None:
        self.at_ms += pause_ms
        self.turn += 1
        word = f"{self.tag} turn {self.turn}"
        relation = "continue"
        match action:
            case "retry":
                self.send(self.messages, None, took_ms, relation)
                relation = "retry"
            case "side":
                title = [Message(role="system", content="Give a title."), user(f"A title, please: {self.task}")]
                self.send(title, said(f"{word} title"), took_ms, "side", tools=())
            case "compaction" if self.turn > 2:
                summary = f"{word}: the summary of everything that was done so far, in so many words that none doubts."
                self.send([*self.messages, user("Please write a summary.")], said(summary), took_ms, relation)
                self.messages = [SYSTEM, user(f"{self.tag}: what was before: {summary}")]
                relation = "compaction"
            case "rewind" if self.turn > 2:
                spoken = [at for at, message in enumerate(self.messages) if message.role == "assistant"]
                asked = spoken[0]
                relation = "fork" if len(spoken) > 1 else "continue"
                self.messages = [*self.messages[: asked + 1], *self.answers(asked), user(f"{word}: no, otherwise")]
            case "edit" if self.turn > 2:
                at = max((at for at, one in enumerate(self.messages) if one.role == "tool"), default=None)
                if at is not None and any(one.role == "assistant" for one in self.messages[at:]):
                    self.messages[at] = replace(self.messages[at], content=f"[{word} cleared]")
                    relation = "fork"
        uses = {"tool": 1, "two tools": 2, "sub-agent": 1, "retry": 1}.get(action, 0)
        name = "Task" if action == "sub-agent" else "Bash"
        ask = f'{{"prompt":"{word}: look into this matter"}}'
        answer = said(word, *((f"{word}-{number}", name, ask) for number in range(uses)))
        self.send(self.messages, answer, took_ms, relation)
        self.messages = [*self.messages, answer]
        if action == "sub-agent":
            task = [Message(role="system", content="You help."), user(f"{word}: look into this matter")]
            first = said(f"{word} sub", (f"{word}-sub", "Bash", "{}"))
            agent = {"agent": f"{self.tag}-{self.turn}"} if self.named else {}
            self.send(task, first, took_ms, "subagent", **agent)
            self.send([*task, first, result(f"{word}-sub")], said(f"{word} found it"), took_ms, "continue", **agent)
        self.messages += [result(f"{word}-{number}", f"{word} result") for number in range(uses)]
        if not uses:
            self.messages.append(user(f"{word}: and now?"))

    def answers(self, asked: int) -> list[Message]:
        return [
            message
            for message in self.messages[asked + 1 :]
            if message.tool_call_id in {use.id for use in self.messages[asked].tool_calls}
        ]


def agents(plans: Sequence[Plan], starts: Sequence[int], *, named: bool, same_task: bool) -> list[Agent]:
    played = []
    for number, (plan, start) in enumerate(zip(plans, starts, strict=True)):
        tag = f"agent {number}"
        agent = Agent(tag, start, named=named, task="Do it all." if same_task else f"Do what {tag} does.")
        for position, (action, pause_ms, took_ms) in enumerate(plan):
            # Two runs of one task that both fail at the first call look alike to anybody.
            safe = "tool" if position == 0 or (action == "side" and same_task and not named) else action
            agent.play(safe, pause_ms, took_ms)
        played.append(agent)
    return played


@settings(max_examples=80, deadline=None)
@given(
    plans=st.tuples(PLANS, PLANS),
    starts=st.tuples(st.integers(0, 4000), st.integers(0, 4000)),
    connections=st.lists(st.sampled_from(["c1", "c2", "c3"]), min_size=1, max_size=8),
    named=st.booleans(),
    same_task=st.booleans(),
)
def test_any_interleaving_gives_what_each_gives_alone(
    plans: tuple[Plan, Plan], starts: tuple[int, int], connections: list[str], named: bool, same_task: bool
) -> None:
    played = agents(plans, starts, named=named, same_task=same_task)
    calls: list[list[ModelCall]] = [
        [
            replace(call, connection_id=connections[number % len(connections)])
            for number, call in enumerate(agent.wire.calls)
        ]
        for agent in played
    ]
    alone = [assemble(own, KEY) for own in calls]
    for agent, found in zip(played, alone, strict=True):
        assert len(found) == 1
        assert [request.relation for request in found[0].requests] == agent.wanted
    together = assemble([*calls[0], *calls[1]], KEY)
    check(together, [*calls[0], *calls[1]])
    assert sorted(together, key=lambda one: one.source_ref) == [alone[0][0], alone[1][0]]


@settings(max_examples=40, deadline=None)
@given(
    plans=st.lists(PLANS, min_size=1, max_size=3),
    start=st.integers(0, 2000),
    named=st.booleans(),
    shown=st.integers(1, 60),
)
def test_what_comes_later_changes_no_earlier_place(plans: list[Plan], start: int, named: bool, shown: int) -> None:
    played = agents(plans, [start * number for number in range(len(plans))], named=named, same_task=False)
    calls = sorted((call for agent in played for call in agent.wire.calls), key=lambda call: call.t_send_ns)
    known = calls[:shown]
    before, after = assemble(known, KEY), assemble(calls, KEY)
    assert [one.session_id for one in after][: len(before)] == [one.session_id for one in before]
    for early, late in zip(before, after, strict=False):
        places = [(request.exchange_id, request.t_send_us, request.gap_us) for request in early.requests]
        assert [(one.exchange_id, one.t_send_us, one.gap_us) for one in late.requests][: len(places)] == places


@given(message=MESSAGES, reminder=st.sampled_from(["", "one", "x" * 40]), before=st.booleans())
def test_reminders_thoughts_and_attribution_do_not_change_what_was_said(
    message: Message, reminder: str, before: bool
) -> None:
    mark = f"<system-reminder>{reminder}</system-reminder>"
    changed = f"{mark}\n{message.content}" if before else f"{message.content}\n\n{mark}"
    assert canonical_hash(replace(message, content=changed)) == canonical_hash(message)
    signed = f"x-anthropic-billing-header: cc_version=1; cch={reminder};\n{message.content}"
    assert canonical_hash(replace(message, content=signed)) == canonical_hash(message)
    assert canonical_hash(replace(message, reasoning_content=reminder)) == canonical_hash(message)
    assert canonical_hash(replace(message, content=f"{message.content}!")) != canonical_hash(message)


@settings(max_examples=60)
@given(
    plan=st.lists(
        st.tuples(
            st.sampled_from([None, "s", "t"]),
            st.sampled_from([None, None, "agent"]),
            st.lists(MESSAGES, max_size=5),
            MESSAGES | st.none(),
            st.integers(0, 300),
            st.sampled_from(["turn", "turn", "turn", "auxiliary"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_any_calls_obey_the_laws(plan: list[tuple[Any, ...]]) -> None:
    wire = Wire()
    history: list[Message] = []
    for number, (session, agent, messages, answer, took_ms, kind, keep) in enumerate(plan):
        prompt = [*history, *messages] if keep else messages
        spoken = None if answer is None else replace(answer, role="assistant")
        wire.call(number * 100, prompt, spoken, session=session, agent=agent, took_ms=took_ms, kind=kind)
        history = [*prompt, *([spoken] if spoken else [])]
    wire.assemble()

"""Sub-agents and side calls: who started whom, and what stands beside the conversation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capture.assemble import session_id
from capture.call import Message
from capture.trajectory import Trajectory
from tests.calls import KEY, SYSTEM, Wire, conversation, result, said, user


def parallel(wire: Wire, *, ids: bool) -> None:
    """A main chain that starts two sub-agents at once; each works two calls long."""
    named = {"session": "s"} if ids else {}
    asks = [
        ("task-1", "Task", '{"prompt":"Look for the parser in this repository"}'),
        ("task-2", "Task", '{"prompt":"Look for the printer in this repository"}'),
    ]
    opening = [SYSTEM, user("Find both.")]
    wire.call(0, opening, said("I ask two.", *asks), session="s")
    sub = Message(role="system", content="You are a sub-agent.")
    for number, thing in enumerate(("parser", "printer")):
        agent = f"agent-{thing}" if ids else None
        task = [sub, user(f"Look for the {thing} in this repository")]
        first = said(f"{thing} 1", (f"{thing}-1", "Bash", "{}"))
        wire.call(200 + number, task, first, agent=agent, session="s", took_ms=300)
        wire.call(700 + number, [*task, first, result(f"{thing}-1")], said(f"{thing} found"), agent=agent, session="s")
    wire.calls.sort(key=lambda call: call.t_send_ns)
    back = [*opening, said("I ask two.", *asks), result("task-1", "parser found"), result("task-2", "printer found")]
    wire.call(1500, back, said("Done"), **({"session": "s"} | named))


@pytest.mark.parametrize("ids", [True, False])
def test_sub_agents_that_run_side_by_side(ids: bool) -> None:
    wire = Wire()
    parallel(wire, ids=ids)
    found = wire.one()
    assert [request.agent_path for request in found.requests] == [
        "main",
        "main/1",
        "main/2",
        "main/1",
        "main/2",
        "main",
    ]
    assert [request.parent_request_index for request in found.requests] == [None, 0, 0, 1, 2, 0]
    assert [request.gap_kind for request in found.requests] == ["none", "spawn", "spawn", "tool", "tool", "tool"]
    assert [request.gap_us for request in found.requests] == [None, None, None, 200_000, 200_000, 1_400_000]
    assert (found.num_subagents, found.num_user_messages) == (2, 1)
    tasks = [call for call in found.tool_calls if call.kind == "subagent"]
    assert [(call.wall_us, call.parallel_group) for call in tasks] == [(1_400_000, 0)] * 2
    # 0–100, 200–500 and 201–501, 700–800 and 701–801, 1500–1600
    assert found.api_us == 100_000 + 301_000 + 101_000 + 100_000
    assert found.tool_us == 1_400_000


def test_a_sub_agent_without_any_id_is_known_by_its_task() -> None:
    wire = Wire()
    parallel(wire, ids=False)
    wire.calls = [replace(call, hints=()) for call in wire.calls]
    found = wire.one()
    assert found.num_subagents == 2
    assert [request.link for request in found.requests] == ["none", "echo", "echo", "echo", "echo", "echo"]


def test_side_calls_stand_beside() -> None:
    wire = Wire()
    wire.call(0, [user("quota")], said("q"), session="s", tools=(), kind="auxiliary")
    conversation(wire, "alpha", base_ms=10, session="s", turns=2)
    wire.call(20, [Message(role="system", content="Name it."), user("Do alpha.")], said("Alpha"), session="s", tools=())
    wire.calls.sort(key=lambda call: call.t_send_ns)
    found = wire.one()
    assert [request.agent_path for request in found.requests] == ["side/1", "main", "side/2", "main"]
    assert [request.kind for request in found.requests] == ["auxiliary", "turn", "auxiliary", "turn"]
    assert found.num_subagents == 0


def places(found: Trajectory) -> list[tuple[str, str, int | None]]:
    return [(request.agent_path, request.relation, request.parent_request_index) for request in found.requests]


def asks(word: str, *names: str) -> Message:
    uses = [(f"ask-{name}", "Task", f'{{"prompt":"Please look for the {name} here"}}') for name in names]
    return said(word, *uses)


HELPER = Message(role="system", content="You are a sub-agent.")


def task(name: str) -> list[Message]:
    return [HELPER, user(f"Please look for the {name} here")]


NESTED = ("main", "start", None), ("main/1", "subagent", 0), ("main/1/1", "subagent", 1), ("main/1/1", "continue", 2)


def nested(wire: Wire, outer: dict[str, Any], inner: dict[str, Any], **named: Any) -> None:
    """A sub-agent that starts one itself."""
    look = said("I look.", ("look", "Bash", "{}"))
    top, middle = asks("I ask.", "parser"), asks("I ask, too.", "lexer")
    wire.call(0, [SYSTEM, user("Find all.")], top, **named)
    wire.call(200, task("parser"), middle, **(named | outer))
    wire.call(400, task("lexer"), look, **(named | inner))
    wire.call(600, [*task("lexer"), look, result("look")], said("lexer found"), **(named | inner))
    wire.call(800, [*task("parser"), middle, result("ask-lexer", "lexer found")], said("both"), **(named | outer))
    wire.call(1000, [SYSTEM, user("Find all."), top, result("ask-parser", "both")], said("Done."), **named)


@pytest.mark.parametrize(
    ("outer", "inner", "named", "sure"),
    [
        ({"agent": "a"}, {"agent": "b", "parent_agent": "a"}, {"session": "s"}, "certain"),
        ({}, {}, {"session": "s"}, "likely"),
        ({}, {}, {}, "likely"),
    ],
    ids=["named by headers", "one session, no names", "no ids at all"],
)
def test_nested_sub_agents(outer: dict[str, Any], inner: dict[str, Any], named: dict[str, Any], sure: str) -> None:
    wire = Wire()
    nested(wire, outer, inner, **named)
    found = wire.one()
    assert tuple(places(found)[:4]) == NESTED
    assert places(found)[4:] == [("main/1", "continue", 1), ("main", "continue", 0)]
    assert [found.requests[at].link_confidence for at in (1, 2)] == [sure, sure]
    assert found.num_subagents == 2


def test_sub_agents_that_name_only_their_own_parent() -> None:
    """Codex and opencode: a sub-agent's session names its parent's, which may be a sub-agent itself."""
    wire = Wire()
    nested(wire, {"agent": "child"}, {"session": "child", "agent": "grandchild"}, session="root")
    found = wire.one()
    assert tuple(places(found)[:4]) == NESTED
    assert found.session_id == session_id(KEY, "root")


def test_sub_agents_in_the_background() -> None:
    wire = Wire()
    ask = asks("I start one.", "parser")
    started = result("ask-parser", "Started in the background.")
    wire.call(0, [SYSTEM, user("Find it.")], ask, session="s")
    wire.call(200, [SYSTEM, user("Find it."), ask, started], said("I wait."), session="s", took_ms=300)
    wire.call(250, task("parser"), said("found it"), session="s", agent="a1", agent_type="Explore", took_ms=900)
    news = user("<task-notification>a1 has found it</task-notification>")
    wire.call(2000, [SYSTEM, user("Find it."), ask, started, said("I wait."), news], said("Done."), session="s")
    found = wire.one()
    assert places(found) == [
        ("main", "start", None),
        ("main", "continue", 0),
        ("main/1", "subagent", 0),
        ("main", "continue", 1),
    ]
    assert [request.agent_type for request in found.requests] == [None, None, "Explore", None]
    assert [request.gap_kind for request in found.requests] == ["none", "tool", "spawn", "tool"]
    assert (found.requests[3].gap_us, found.requests[3].client_us, found.num_user_messages) == (1_500_000, None, 1)


def test_the_same_task_twice_is_two_sub_agents() -> None:
    wire = Wire()
    ask = said("I ask two.", *((f"ask-{n}", "Task", '{"prompt":"Please look for the parser here"}') for n in "ab"))
    wire.call(0, [SYSTEM, user("Find it.")], ask, session="s")
    wire.call(200, task("parser"), said("in a.py"), session="s")
    wire.call(500, task("parser"), said("in b.py"), session="s")
    back = [SYSTEM, user("Find it."), ask, result("ask-a", "in a.py"), result("ask-b", "in b.py")]
    wire.call(900, back, said("Done."), session="s")
    assert [place[:2] for place in places(wire.one())] == [
        ("main", "start"),
        ("main/1", "subagent"),
        ("main/2", "subagent"),
        ("main", "continue"),
    ]


def test_a_classifier_while_a_tool_runs_is_no_sub_agent() -> None:
    wire = Wire()
    ask = said("", ("t1", "Bash", "{}"))
    wire.call(0, [SYSTEM, user("Go")], ask, session="s")
    wire.call(300, [Message(role="system", content="Classify."), user("ls -l")], said("safe"), session="s", tools=())
    wire.call(900, [SYSTEM, user("Go"), ask, result("t1")], said("ok"), session="s")
    found = wire.one()
    assert places(found) == [("main", "start", None), ("side/1", "side", 0), ("main", "continue", 0)]
    assert [request.kind for request in found.requests] == ["turn", "auxiliary", "turn"]
    assert found.requests[2].gap_us == 800_000


def test_titles_of_agents_that_send_no_id() -> None:
    """opencode asks for its title beside the first call; whichever comes first, it is one session."""
    job = "Find the parser in this repository."
    namer = [Message(role="system", content="You are a title generator."), user("Name this:"), user(job)]
    for title_ms, main_ms, paths in ((10, 0, ["main", "side/1", "main"]), (0, 10, ["side/1", "main", "main"])):
        wire = Wire()
        ask = said("", ("t1", "Bash", "{}"))
        named = {"harness": "opencode"}
        wire.call(main_ms, [SYSTEM, user(job)], ask, connection_id="c1", **named)
        wire.call(title_ms, namer, said("Parser"), connection_id="c2", tools=(), **named)
        wire.call(900, [SYSTEM, user(job), ask, result("t1")], said("ok"), **named)
        wire.calls.sort(key=lambda call: call.t_send_ns)
        found = wire.one()
        assert [request.agent_path for request in found.requests] == paths
        start = paths.index("main")
        assert (found.requests[start].relation, found.requests[start].parent_request_index) == ("start", None)


def test_the_same_task_by_another_agent_without_tools_is_another_session() -> None:
    wire = Wire()
    job = "Find the parser in this repository."
    wire.call(0, [SYSTEM, user(job)], said("", ("t1", "Bash", "{}")), harness="pi", connection_id="c1")
    plain = [Message(role="system", content="Answer with a command."), user(job)]
    wire.call(10, plain, said("ls"), harness="mini-swe-agent", connection_id="c2", tools=())
    assert len(wire.assemble()) == 2


def test_one_of_two_nameless_sub_agents_tries_again() -> None:
    wire = Wire()
    ask = asks("I ask two.", "parser", "printer")
    look = said("I look.", ("look", "Bash", "{}"))
    wire.call(0, [SYSTEM, user("Find both.")], ask)
    wire.call(200, task("parser"), None, status=529, error="overloaded", connection_id="c1")
    wire.call(210, task("printer"), look, connection_id="c2")
    wire.call(400, [*task("printer"), look, result("look")], said("printer found"), connection_id="c2")
    wire.call(600, task("parser"), said("The parser is in the file a.py."), connection_id="c3")
    answers = result("ask-parser", "The parser is in the file a.py."), result("ask-printer", "printer found")
    wire.call(900, [SYSTEM, user("Find both."), ask, *answers], said("Done."))
    found = wire.one()
    assert places(found) == [
        ("main", "start", None),
        ("main/1", "subagent", 0),
        ("main/2", "subagent", 0),
        ("main/2", "continue", 2),
        ("main/1", "retry", 0),
        ("main", "continue", 0),
    ]
    # The one whose words came back as the result of the call that asked for it is certain.
    assert [found.requests[at].link_confidence for at in (1, 2)] == ["certain", "likely"]


TASK = "Look into this matter deeply and report"
DONE = "It is all there, and the outcome is this and that"


@pytest.mark.parametrize("helper", [Message(role="system", content="You help."), SYSTEM], ids=["other", "same"])
def test_a_task_that_is_handed_on_word_for_word(helper: Message) -> None:
    wire = Wire()
    ask = [said("", (name, "Task", f'{{"prompt":"{TASK}"}}')) for name in "AB"]
    work = said("", ("C", "Bash", "{}"))
    main, first = [SYSTEM, user(TASK)], [helper, user(TASK)]
    wire.call(0, main, ask[0])
    wire.call(200, first, ask[1])
    wire.call(400, first, work)
    wire.call(600, [*first, work, result("C")], said(DONE))
    wire.call(800, [*first, ask[1], result("B", DONE)], said(f"{DONE}!"))
    wire.call(1000, [*main, ask[0], result("A", f"{DONE}!")], said("Done"))
    found = wire.one()
    assert [request.agent_path for request in found.requests] == [
        "main",
        "main/1",
        "main/1/1",
        "main/1/1",
        "main/1",
        "main",
    ]
    assert (found.num_subagents, found.num_user_messages, found.human_us) == (2, 1, 0)

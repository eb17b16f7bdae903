"""Rules for what an agent waits for: one grammar, three kinds of time, draws that come out the same again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.trajectory import ToolCall, Trajectory
from replay.delay import LONGEST_US, DelayPolicy, Durations, Gap, gap_of, parse_delay_rule
from replay.plan import make_plan
from tests.test_plan import S, after, plan_of, request, session


@pytest.mark.parametrize(
    ("text", "waited_s"),
    [
        ("recorded", 40.0),
        ("scaled:0.25", 10.0),
        ("scaled:2", 80.0),
        ("capped:10", 10.0),
        ("capped:300", 40.0),
        ("sampled", 40.0),  # what was drawn stands in for what was recorded
        ("sampled:30", 30.0),
        ("none", 0.0),
    ],
)
def test_a_rule_says_how_long(text: str, waited_s: float) -> None:
    rule = parse_delay_rule(text)
    assert rule.wait_us(40 * S) == waited_s * S
    assert rule.text == text


@pytest.mark.parametrize(
    "text", ["", "300", "capped", "scaled", "none:1", "recorded:2", "capped:x", "capped:-1", "scaled:inf", "capped:nan"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a delay"):
        parse_delay_rule(text)
    with pytest.raises(ValueError, match="tool delay: a delay"):
        DelayPolicy(tool=text)


@pytest.mark.parametrize(
    ("policy", "policy_id"),
    [
        (DelayPolicy(), "human0-tool300-unsplit10"),
        (DelayPolicy(human="recorded", tool="scaled:0.5", unsplit="none"), "humanrecorded-toolscaled0.5-unsplit0"),
        (DelayPolicy(tool="sampled:60", unsplit="sampled"), "human0-toolsampled60-unsplitsampled"),
    ],
)
def test_a_policy_has_a_name(policy: DelayPolicy, policy_id: str) -> None:
    assert policy.policy_id == policy_id


def test_one_policy_has_one_spelling() -> None:
    assert DelayPolicy(tool="capped:300.0") == DelayPolicy()
    plans = [plan_of(session(request(0)), delay=DelayPolicy(tool=text)) for text in ("capped:5", "capped:5.00")]
    assert plans[0].summary().plan_digest == plans[1].summary().plan_digest


def test_each_turn_says_which_rule_its_delay_came_from() -> None:
    policy = DelayPolicy(human="scaled:0.5", tool="capped:7", unsplit="none")
    plan = plan_of(
        session(
            request(0),
            after(1, 0, 8.0),
            after(2, 1, 8.0, think_us=6 * S),
            after(3, 2, 8.0, "human"),
            after(4, 3, 8.0, "unsplit"),
            after(5, 4, 8.0, "client"),
        ),
        delay=policy,
    )
    found = [
        (turn.delay_rule, turn.delay_us / S, turn.tool_delay_us / S, turn.human_delay_us / S)
        for turn in plan.script("a").turns
    ]
    assert found == [
        ("none", 0, 0, 0),
        ("capped", 7, 7, 0),
        ("capped+scaled", 5, 2, 3),
        ("scaled", 4, 0, 4),
        ("none", 0, 0, 0),
        ("capped", 7, 7, 0),
    ]
    (told,) = plan.summary().sessions
    assert told.delay_rules == {"capped": 2, "capped+scaled": 1, "none": 2, "scaled": 1}
    assert plan.summary().delay_policy_id == "humanscaled0.5-tool7-unsplit0"


# ---- drawn delays


def call(number: int, name: str, result: int) -> ToolCall:
    unknown = dict.fromkeys(
        ("t_emitted_us", "t_result_us", "wall_us", "internal_us", "result_bytes", "is_error", "exit_code", "timed_out")
    )
    return ToolCall(
        tool_call_id=f"c{number}",
        agent_path="main",
        request_index=result - 1,
        result_request_index=result,
        name=name,
        kind="other",
        parallel_group=0,
        mixed=False,
        **unknown,  # type: ignore[arg-type]
    )


def with_tools(session_id: str, gaps_s: tuple[float, ...], tools: tuple[str, ...]) -> Trajectory:
    requests = [request(0), *(after(i + 1, i, gap_s) for i, gap_s in enumerate(gaps_s))]
    calls = tuple(call(i, name, i + 1) for i, names in enumerate(tools) for name in names.split())
    return session(*requests, session_id=session_id, tool_calls=calls)


SESSIONS = (
    with_tools("a", (1.0, 100.0, 2.0, 50.0), ("Read", "Bash", "Read", "Bash Read")),
    with_tools("b", (3.0, 200.0, 7.0), ("Read", "Bash", "Alone Elsewhere")),
)


def test_delays_are_drawn_from_the_tools_own_durations() -> None:
    seen: dict[str, set[float]] = {"Read": set(), "Bash": set(), "Bash Read": set()}
    for seed in range(30):
        plan = make_plan(SESSIONS, dataset_digest="d", seed=seed, delay=DelayPolicy(tool="sampled"))
        waits = [turn.delay_us / S for turn in plan.script("a").turns[1:]]
        for name, wait in zip(("Read", "Bash", "Read", "Bash Read"), waits, strict=True):
            seen[name].add(wait)
        assert {turn.delay_rule for turn in plan.script("a").turns[1:]} == {"sampled"}
        # Two tools that never ran alone: the longer of two draws from all tools' durations.
        assert plan.script("b").turns[3].delay_us / S in {1, 2, 3, 7, 50, 100, 200}
    assert seen == {"Read": {1.0, 2.0, 3.0}, "Bash": {100.0, 200.0}, "Bash Read": {100.0, 200.0}}


def test_drawn_delays_are_part_of_a_plan_that_can_be_made_again() -> None:
    policy = DelayPolicy(tool="sampled:150")
    plan, again = (make_plan(order, dataset_digest="d", delay=policy) for order in (SESSIONS, SESSIONS[::-1]))
    assert plan.summary().plan_digest == again.summary().plan_digest
    other = make_plan(SESSIONS, dataset_digest="d", seed=1, delay=policy)
    assert other.summary().plan_digest != plan.summary().plan_digest
    assert max(turn.delay_us for script in plan.scripts.values() for turn in script.turns) <= 150 * S


def test_human_and_unsplit_times_are_drawn_from_their_own() -> None:
    people = session(request(0), after(1, 0, 5.0, "human"), after(2, 1, 9.0, think_us=8 * S), session_id="p")
    neither = session(request(0), after(1, 0, 40.0, "unsplit"), session_id="u")
    policy = DelayPolicy(human="sampled", tool="none", unsplit="sampled")
    plan = make_plan([people, neither], dataset_digest="d", delay=policy)
    assert [turn.human_delay_us / S in {5.0, 8.0} for turn in plan.script("p").turns] == [False, True, True]
    assert [turn.tool_delay_us for turn in plan.script("p").turns] == [0, 0, 0]
    assert plan.script("u").turns[1].delay_us == 40 * S


def test_nothing_to_draw_from_leaves_what_was_recorded() -> None:
    gap = Gap(kind="tool", tool_us=3 * S, tools=("Bash",))
    assert Durations(seed=0).draw(gap, "a", 1) == gap


def test_the_time_since_a_dispatch_is_never_drawn() -> None:
    durations = Durations(seed=0)
    durations.add([gap_of(9 * S, "tool", None, ("Bash",)), Gap(kind="spawn", tool_us=2 * S, offset=True)])
    offset = Gap(kind="spawn", tool_us=2 * S, offset=True)
    found = DelayPolicy(tool="sampled:1").delay(offset, durations.draw(offset, "a", 1))
    assert (found.tool_us, found.rule) == (2 * S, "recorded")
    scaled = DelayPolicy(tool="scaled:0.5").delay(offset)
    assert (scaled.tool_us, scaled.rule) == (1 * S, "scaled")


rules = st.sampled_from(["recorded", "scaled:0.3", "scaled:7", "capped:2.5", "sampled", "sampled:4", "none"])


@given(
    st.builds(DelayPolicy, human=rules, tool=rules, unsplit=rules),
    st.integers(-(10**19), 10**19),
    st.sampled_from(["tool", "human", "client", "spawn", "unsplit", "none"]),
    st.none() | st.integers(-(10**12), 10**12),
)
def test_no_gap_makes_a_wait_that_is_negative_or_longer_than_the_clock(policy, gap_us, kind, think_us) -> None:  # type: ignore[no-untyped-def]
    gap = gap_of(gap_us, kind, think_us)
    found = policy.delay(gap, Durations(seed=0).draw(gap, "a", 0))
    assert 0 <= found.total_us <= 2 * LONGEST_US
    assert set(found.rule.split("+")) <= {"recorded", "scaled", "capped", "sampled", "none"}

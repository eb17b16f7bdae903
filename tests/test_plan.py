"""Plans: what waits for what, which bytes go out, who plays what."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from capture.call import Message, Tool, ToolUse
from capture.importers.weka import import_weka
from capture.trajectory import CaptureQuality, PooledMessage, Request, Trajectory
from curate.tokens import load_encoding
from replay.plan import (
    ContextPolicy,
    DelayPolicy,
    LengthPolicy,
    Plan,
    Script,
    load_plan,
    make_plan,
    token_id_range,
)

BLANK: dict[str, Any] = {
    field.name: None for field in dataclasses.fields(Request) if field.default is dataclasses.MISSING
}
S = 1_000_000


def request(index: int, **given: Any) -> Request:
    values = BLANK | {
        "request_index": index,
        "agent_path": "main",
        "link": "source",
        "api": "openai.chat",
        "model": "m",
        "stream": True,
        "t_send_us": index * 10 * S,
        "t_end_us": index * 10 * S + 4 * S,
        "gap_kind": "none",
        "context_event": "append",
        "prompt_tokens": 640,
        "completion_tokens": 20,
        "new_input": (),
        "tool_call_ids": (),
        "block_size": 64,
        "block_hashes": tuple(range(1, 11)),
    }
    return Request(**(values | given))


def after(index: int, before: int, gap_s: float, kind: str = "tool", **given: Any) -> Request:
    return request(index, **({"parent_request_index": before, "gap_us": round(gap_s * S), "gap_kind": kind} | given))


def session(*requests: Request, session_id: str = "a", **given: Any) -> Trajectory:
    values: dict[str, Any] = {field.name: None for field in dataclasses.fields(Trajectory)}
    values |= {
        "session_id": session_id,
        "source": "wire",
        "source_ref": "x",
        "harness": "h",
        "models": ("m",),
        "pool": (),
        "tool_sets": (),
        "requests": requests,
        "tool_calls": (),
        "num_subagents": 0,
        "num_compactions": 0,
        "hash_scope": "session",
        "token_source": "provider",
        "quality": CaptureQuality(complete=True, gaps=0, clock_err_us=None, body_missing=0),
        "outcome": "unknown",
    }
    return Trajectory(**(values | given))


def plan_of(*sessions: Trajectory, **given: Any) -> Plan:
    return make_plan(sessions, **({"dataset_digest": "d", "nonce": "n"} | given))


def script_of(*requests: Request, **given: Any) -> Script:
    return plan_of(session(*requests), **given).script("a")


# ---- order and delays


def waits(script: Script) -> dict[int, tuple[int, ...]]:
    return {turn.request_index: turn.wait_for for turn in script.turns}


def delays(script: Script) -> dict[int, float]:
    return {turn.request_index: turn.delay_us / S for turn in script.turns}


def test_a_chain_waits_turn_by_turn_for_its_recorded_gaps() -> None:
    script = script_of(request(0), after(1, 0, 6.0), after(2, 1, 1.5))
    assert waits(script) == {0: (), 1: (0,), 2: (1,)}
    assert delays(script) == {0: 0, 1: 6.0, 2: 1.5}


@pytest.mark.parametrize(
    ("kind", "think_s", "gap_s", "delay_s"),
    [
        ("tool", None, 400.0, 300.0),
        ("tool", 30.0, 50.0, 20.0),
        ("tool", 30.0, 400.0, 300.0),
        ("human", None, 50.0, 0.0),
        ("human", 48.0, 50.0, 2.0),
        ("human", 99.0, 50.0, 0.0),
        ("unsplit", None, 50.0, 10.0),
        ("unsplit", None, 3.0, 3.0),
        ("client", None, 2.0, 2.0),
        ("none", None, 2.0, 0.0),
        ("tool", None, -1.0, 0.0),
    ],
)
def test_each_kind_of_gap_has_its_own_cap(kind: str, think_s: float | None, gap_s: float, delay_s: float) -> None:
    think_us = None if think_s is None else round(think_s * S)
    assert delays(script_of(request(0), after(1, 0, gap_s, kind, think_us=think_us)))[1] == delay_s


def test_human_time_can_be_waited_for() -> None:
    policy = DelayPolicy(human="capped:5", tool="recorded")
    script = script_of(request(0), after(1, 0, 1000.0, think_us=100 * S), delay=policy)
    assert delays(script)[1] == 905.0
    assert policy.policy_id == "human5-toolrecorded-unsplit10"


def test_a_sub_agent_waits_for_its_parent_and_the_parent_joins_it() -> None:
    script = script_of(
        request(0),
        request(1, agent_path="main/1", parent_request_index=0, t_send_us=5 * S, t_end_us=8 * S, gap_kind="spawn"),
        after(2, 1, 0.5, agent_path="main/1", t_send_us=8_500_000, t_end_us=12 * S),
        request(3, agent_path="main/2", parent_request_index=0, t_send_us=5 * S, t_end_us=90 * S, gap_kind="spawn"),
        after(4, 0, 9.0, t_send_us=13 * S, t_end_us=14 * S),
        after(5, 4, 86.0, t_send_us=100 * S, t_end_us=101 * S),
    )
    # main/1 ended before request 4 was sent; main/2 ran on in the background and nobody is known to have waited.
    assert waits(script) == {0: (), 1: (0,), 3: (0,), 2: (1,), 4: (0, 2), 5: (4,)}
    assert delays(script) == {0: 0, 1: 1.0, 3: 1.0, 2: 0.5, 4: 1.0, 5: 86.0}
    assert script.chains == 3


def test_a_rewind_waits_for_what_the_chain_did_before_it() -> None:
    script = script_of(
        request(0), after(1, 0, 6.0), after(2, 1, 6.0), after(3, 0, 6.0, "human", context_event="branch")
    )
    assert waits(script) == {0: (), 1: (0,), 2: (1,), 3: (2,)}


def test_a_chain_without_a_known_parent_keeps_its_time() -> None:
    script = script_of(
        request(0),
        request(1, agent_path="main/1", t_send_us=1 * S, t_end_us=2 * S),
        after(2, 0, 6.0),
        request(3, agent_path="main/2", t_send_us=17 * S, t_end_us=19 * S),
    )
    assert waits(script) == {0: (), 1: (), 2: (0,), 3: (0,)}
    assert delays(script) == {0: 0, 1: 1.0, 2: 6.0, 3: 13.0}


def test_failed_repeated_and_auxiliary_requests_are_left_out_and_bridged() -> None:
    script = script_of(
        request(0),
        after(1, 0, 5.0, status=529, error="overloaded"),
        after(2, 1, 30.0, "client", retry_of=1),
        after(3, 2, 1.0),
        after(4, 3, 0.0, "client", retry_of=3),
        request(5, agent_path="main/1", max_tokens=1),
        after(6, 4, 2.0),
        after(7, 6, 2.0, block_hashes=None),
    )
    assert waits(script) == {0: (), 2: (0,), 3: (2,), 6: (3,)}
    # The retry waits what the agent waited before the request that failed, not the back-off.
    assert delays(script) == {0: 0, 2: 5.0, 3: 1.0, 6: 2.0}
    assert script.left_out == Counter(
        {
            "failed": 1,
            "repeats a request that succeeded": 1,
            "auxiliary: asks for one token": 1,
            "prompt not recorded": 1,
        }
    )


def test_a_session_without_a_usable_request_is_left_out_with_its_reason() -> None:
    plan = plan_of(session(request(0)), session(request(0, error="refused"), session_id="b"))
    assert plan.session_ids == ("a",)
    assert [(left.session_id, left.reason) for left in plan.left_out] == [
        ("b", "no request of it can be replayed: 1 failed")
    ]
    with pytest.raises(ValueError, match="the plan is empty: 1 sessions were left out; the first: b: no request"):
        plan_of(session(request(0, error="refused"), session_id="b"))


def test_two_sessions_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="session a is in the dataset twice"):
        plan_of(session(request(0)), session(request(0)))


# ---- output and context lengths


@pytest.mark.parametrize(
    ("recorded", "policy", "planned"),
    [
        (700, LengthPolicy(), 700),
        (0, LengthPolicy(), 1),
        (None, LengthPolicy(), 1),
        (700, LengthPolicy(cap=64), 64),
        (3, LengthPolicy(scale=0.1), 1),
        (700, LengthPolicy(scale=0.5, cap=512), 350),
    ],
)
def test_output_lengths(recorded: int | None, policy: LengthPolicy, planned: int) -> None:
    (turn,) = script_of(request(0, completion_tokens=recorded), length=policy).turns
    assert turn.output_tokens == planned


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("exact", LengthPolicy()),
        ("capped:2000", LengthPolicy(cap=2000)),
        ("free", LengthPolicy(mode="free")),
        ("free:64", LengthPolicy(mode="free", cap=64)),
    ],
)
def test_a_length_policy_is_one_text(text: str, policy: LengthPolicy) -> None:
    assert LengthPolicy.parse(text) == policy
    assert policy.text == text


@pytest.mark.parametrize("text", ["", "capped", "exact:5", "capped:x", "free:-1", "capped:1.5", "shorter"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a length is exact, capped:TOKENS, free or free:TOKENS"):
        LengthPolicy.parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LengthPolicy(scale=0),
        lambda: LengthPolicy(cap=0),
        lambda: ContextPolicy(scale=1.5),
        lambda: ContextPolicy(limit=0),
        lambda: ContextPolicy(text_tokens_x=0),
        lambda: DelayPolicy(tool="capped:-1"),
        lambda: plan_of(session(request(0)), token_ids=(9, 9)),
        lambda: plan_of(session(request(0)), context=ContextPolicy(scale=0.01)),
    ],
)
def test_impossible_rules_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|no range|use at least"):
        make()


def test_sessions_that_do_not_fit_are_left_out() -> None:
    long = session(request(0), after(1, 0, 1.0, prompt_tokens=1_000), session_id="b")
    plan = plan_of(session(request(0)), long, context=ContextPolicy(limit=1_019))
    assert plan.session_ids == ("a",)
    assert plan.left_out[0].reason == "its longest context needs 1020 tokens; the limit is 1019"
    assert plan_of(session(request(0)), long, context=ContextPolicy(limit=1_020)).session_ids == ("a", "b")
    assert plan_of(long, context=ContextPolicy(limit=520, scale=0.5)).session_ids == ("b",)


# ---- token-id prompts


def body_of(plan: Plan, place: int = 0, *, salt: str = "1", session_id: str = "a") -> dict[str, Any]:
    script = plan.script(session_id)
    prepared = script.request(script.turns[place], salt=salt, model="served")
    parsed: dict[str, Any] = json.loads(prepared.body)
    assert prepared.path == ("/v1/chat/completions" if "messages" in parsed else "/v1/completions")
    return parsed


def test_a_content_free_turn_becomes_a_prompt_of_token_ids() -> None:
    body = body_of(plan_of(session(request(0, prompt_tokens=650)), token_ids=(50, 60)))
    prompt = body.pop("prompt")
    assert len(prompt) == 650
    assert set(prompt) <= set(range(50, 60))
    assert body == {
        "model": "served",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": 20,
        "ignore_eos": True,
    }


def test_free_length_lets_the_model_stop_within_the_context() -> None:
    free = LengthPolicy(mode="free")
    body = body_of(plan_of(session(request(0)), length=free))
    assert "ignore_eos" not in body
    assert body["max_tokens"] == 16_384
    assert body_of(plan_of(session(request(0)), length=free, context=ContextPolicy(limit=1_000)))["max_tokens"] == 360
    capped = LengthPolicy(mode="free", cap=7)
    assert body_of(plan_of(session(request(0)), length=capped))["max_tokens"] == 7


@pytest.mark.parametrize(
    ("vocabulary", "ids"),
    [(None, (1_000, 30_000)), (128_256, (1_000, 30_000)), (30_000, (1_875, 28_125)), (256, (16, 240))],
)
def test_token_ids_stay_away_from_the_ends_of_a_vocabulary(vocabulary: int | None, ids: tuple[int, int]) -> None:
    assert token_id_range(vocabulary) == ids


def test_hash_scopes_and_salts_keep_prompts_apart() -> None:
    plan = plan_of(session(request(0)), session(request(0), session_id="b"))
    prompts = [body_of(plan, salt=salt, session_id=name)["prompt"] for name in "ab" for salt in "12"]
    assert all(left[:64] != right[:64] for i, left in enumerate(prompts) for right in prompts[:i])
    release = plan_of(
        session(request(0), hash_scope="release"), session(request(0), session_id="b", hash_scope="release")
    )
    assert body_of(release)["prompt"] == body_of(release, session_id="b")["prompt"]


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_real_traces_keep_their_lengths_and_their_block_sharing(weka_traces: Path, scale: float) -> None:
    paths = [weka_traces / f"trace_{name}.json" for name in ("0026", "0374", "0693", "0291", "0277")]
    sessions = import_weka(paths, b"k" * 32).trajectories
    plan = plan_of(*sessions, context=ContextPolicy(scale=scale), once=True)
    for trajectory in sessions:
        script: Any = plan.script(trajectory.session_id)
        recorded = {one.request_index: one for one in trajectory.requests}
        assert len(script.turns) == len(recorded)
        for turn in script.turns:
            hashes = recorded[turn.request_index].block_hashes or ()
            assert tuple(int(value) for value in script.hashes(turn)) == hashes
        prompts = []
        for turn in islice(script.turns, 12):
            body = json.loads(script.request(turn, salt="5", model="m").body)
            hashes = recorded[turn.request_index].block_hashes or ()
            assert len(body["prompt"]) == turn.planned_prompt_tokens
            assert turn.planned_prompt_tokens == math.ceil(recorded[turn.request_index].prompt_tokens * scale)  # type: ignore[operator]
            prompts.append((hashes, body["prompt"]))
        for (left, left_ids), (right, right_ids) in pairwise(prompts):
            blocks = shared(left, right)
            same = shared(left_ids, right_ids)
            assert blocks * 64 * scale <= same < blocks * 64 * scale + 4


def shared(left: Any, right: Any) -> int:
    return next(
        (i for i, (one, two) in enumerate(zip(left, right, strict=False)) if one != two), min(map(len, (left, right)))
    )


def test_the_ideal_share_is_what_a_cache_that_forgets_nothing_would_hit(weka_traces: Path) -> None:
    sessions = import_weka([weka_traces / "trace_0291.json"], b"k" * 32).trajectories
    (trajectory,) = sessions
    seen: set[int] = set()
    hit = total = 0
    for one in sorted(trajectory.requests, key=lambda one: (one.t_send_us, one.request_index)):
        hashes = one.block_hashes or ()
        hit += 64 * next((i for i, value in enumerate(hashes) if value not in seen), len(hashes))
        total += one.prompt_tokens or 0
        seen.update(hashes)
    (summary,) = plan_of(trajectory).summary().sessions
    assert summary.ideal_cached_share == pytest.approx(hit / total)
    assert (summary.prompt_tokens, summary.chains) == (total, 3)


# ---- text prompts

SYSTEM = "You are a careful coding agent. " * 20
BASH = Tool(
    name="bash",
    description="Runs a command in a shell and returns what it printed, both streams together.",
    parameters='{"type": "object", "properties": {"command": {"type": "string", "description": "as it is typed"}}}',
)


def pooled(*messages: Message) -> tuple[PooledMessage, ...]:
    return tuple(
        PooledMessage(message=message, agent_path="main", request_index=0, t_us=0, answer=False) for message in messages
    )


def text_session(session_id: str = "a") -> Trajectory:
    call = ToolUse(
        id="call_1", name="bash", arguments='{"command": "grep -rn \\"größe\\" src | head -100 | sort", "n": 3}'
    )
    odd = ToolUse(id="call_2", name="patch", arguments="*** Begin Patch, not JSON at all ***")
    pool = pooled(
        Message(role="system", content=SYSTEM),
        Message(role="developer", content="Answer in short sentences."),
        Message(role="user", content="Find the größe of things 🙂 " * 30),
        Message(role="assistant", content="", reasoning_content="They want a search.", tool_calls=(call, odd)),
        Message(role="tool", content="src/a.py:1: größe = 1\n" * 50, tool_call_id="call_1"),
        Message(role="tool", content="done", tool_call_id="call_2"),
        Message(role="developer", content="Turn 2 of 100."),
    )
    blank = {"block_size": None, "block_hashes": None, "tools_index": 0}
    return session(
        request(0, prompt_spans=((0, 3),), prompt_tokens=300, answer_index=3, **blank),
        after(1, 0, 1.0, prompt_spans=((0, 7),), prompt_tokens=700, **blank),
        session_id=session_id,
        pool=pool,
        tool_sets=((BASH,),),
        hash_scope=None,
    )


def test_a_turn_with_text_becomes_a_chat_request() -> None:
    plan = plan_of(text_session())
    body = body_of(plan, 1, salt="0042")
    messages = body["messages"]
    # The leading system messages are one, as most templates want it; a later one is the user's.
    assert messages[0] == {"role": "system", "content": f"0042\n{SYSTEM}\n\nAnswer in short sentences."}
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert messages[2]["reasoning_content"] == "They want a search."
    first, second = messages[2]["tool_calls"]
    assert first["function"]["arguments"] == '{"command": "grep -rn \\"größe\\" src | head -100 | sort", "n": 3}'
    assert json.loads(second["function"]["arguments"]) == {"input": "*** Begin Patch, not JSON at all ***"}
    assert messages[3]["tool_call_id"] == first["id"] == "call_1"
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "bash",
                "description": BASH.description,
                "parameters": json.loads(BASH.parameters),
            },
        }
    ]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (20, True, 0.0)
    assert [turn.estimated_prompt_tokens for turn in plan.script("a").turns] == [300, 700]
    assert [turn.planned_prompt_tokens for turn in plan.script("a").turns] == [None, None]


def test_without_isolation_text_goes_out_as_recorded() -> None:
    body = body_of(plan_of(text_session(), isolation="none"), 0, salt="")
    assert body["messages"][0]["content"].startswith(SYSTEM)


def test_half_characters_do_not_stop_a_request() -> None:
    broken = session(
        request(0, prompt_spans=((0, 1),), block_hashes=None),
        pool=pooled(Message(role="user", content="cut \ud83d here")),
    )
    assert body_of(plan_of(broken), salt="")["messages"][0]["content"] == "cut ? here"


def test_scaled_text_is_cut_message_by_message() -> None:
    encoding = load_encoding("o200k_base")
    plan = plan_of(text_session(), context=ContextPolicy(scale=0.25))
    whole = body_of(plan_of(text_session()), 1, salt="")
    early, late = body_of(plan, 0, salt=""), body_of(plan, 1, salt="")
    assert late["messages"][:2] == early["messages"]
    assert late["tools"] == early["tools"]
    for before, after_cut in zip(whole["messages"], late["messages"], strict=True):
        assert before["content"].startswith(after_cut["content"])
        kept = encoding.encode_ordinary(before["content"])[
            : math.ceil(0.25 * len(encoding.encode_ordinary(before["content"])))
        ]
        assert after_cut["content"] == encoding.decode(kept, errors="ignore")
    arguments = json.loads(late["messages"][2]["tool_calls"][0]["function"]["arguments"])
    assert arguments["n"] == 3
    assert 'grep -rn "größe" src'.startswith(arguments["command"])
    function = late["tools"][0]["function"]
    assert BASH.description.startswith(function["description"])
    assert function["parameters"]["properties"]["command"]["type"] == "string"
    first, second = plan.script("a").turns
    assert first.estimated_prompt_tokens is not None
    assert second.estimated_prompt_tokens is not None
    assert 30 < first.estimated_prompt_tokens < second.estimated_prompt_tokens < 700


def test_text_limits_leave_room_for_another_tokenizer() -> None:
    with pytest.raises(ValueError, match="its longest context needs about 784 tokens; the limit is 783"):
        plan_of(text_session(), context=ContextPolicy(limit=783))
    with pytest.raises(ValueError, match="about 1134 tokens"):
        plan_of(text_session(), context=ContextPolicy(limit=1_000, text_tokens_x=1.5))


# ---- who plays what


def many(count: int) -> list[Trajectory]:
    return [
        session(request(0), after(1, 0, 1.0), after(2, 1, 1.0, prompt_tokens=640 + number), session_id=f"s{number:02d}")
        for number in range(count)
    ]


def test_an_agent_plays_seeded_permutations_without_end() -> None:
    plan = plan_of(*many(7), seed=5)
    played = [play.session_id for play in islice(plan.plays(3), 21)]
    for start in (0, 7, 14):
        assert sorted(played[start : start + 7]) == sorted(plan.session_ids)
    assert played == [play.session_id for play in islice(plan_of(*many(7), seed=5).plays(3, agents=50), 21)]
    assert played != [play.session_id for play in islice(plan_of(*many(7), seed=6).plays(3), 21)]
    assert len({next(plan.plays(agent)).session_id for agent in range(7)}) == 7


def test_each_draw_is_another_order_of_the_same_sessions() -> None:
    plan = plan_of(*many(7))

    def order(agent: int, draw: int) -> list[tuple[str, int]]:
        plays = islice(plan.plays(agent, start_offset_turns=10, draw=draw), 7)
        return [(play.session_id, play.first_turn) for play in plays]

    assert order(3, 0) == [
        (play.session_id, play.first_turn) for play in islice(plan.plays(3, start_offset_turns=10), 7)
    ]
    for draw in (1, 2):
        assert order(3, draw) == order(3, draw) != order(3, draw - 1)
        assert sorted(name for name, _ in order(3, draw)) == list(plan.session_ids)
        assert len({order(agent, draw)[0][0] for agent in range(7)}) == 7
    assert [play.salt for play in islice(plan.plays(3, draw=1), 3)] == [play.salt for play in islice(plan.plays(3), 3)]


def test_only_first_plays_start_in_the_middle() -> None:
    plan = plan_of(*many(7))
    starts = [[play.first_turn for play in islice(plan.plays(agent, start_offset_turns=10), 5)] for agent in range(40)]
    assert {start[0] for start in starts} == {0, 1, 2}
    assert all(start[1:] == [0, 0, 0, 0] for start in starts)
    assert next(plan.plays(0)).first_turn == 0


def test_once_deals_every_session_exactly_once() -> None:
    plan = plan_of(*many(7), once=True)
    plays = [play for agent in range(3) for play in plan.plays(agent, agents=3, start_offset_turns=10)]
    assert sorted(play.session_id for play in plays) == list(plan.session_ids)
    assert {play.first_turn for play in plays} == {0}
    assert next(plan.plays(0, agents=3)).session_id == "s06"  # the largest first
    assert list(plan.plays(8, agents=9)) == []
    with pytest.raises(ValueError, match="agent 3 of 3"):
        next(plan.plays(3, agents=3))


@pytest.mark.parametrize(("isolation", "salts"), [("play", 40), ("agent", 8), ("run", 1), ("none", 1)])
def test_isolation_sets_the_salts(isolation: Any, salts: int) -> None:
    plan = plan_of(*many(3), isolation=isolation)
    seen = {play.salt for trial in range(2) for agent in range(4) for play in islice(plan.plays(agent, trial=trial), 5)}
    assert len(seen) == salts
    other = plan_of(*many(3), isolation=isolation, nonce="other run")
    again = {play.salt for agent in range(4) for play in islice(other.plays(agent), 5)}
    assert seen.isdisjoint(again) == (isolation != "none")
    assert seen == {""} if isolation == "none" else all(len(salt) == 16 and salt.isdigit() for salt in seen)


# ---- the file


def test_a_plan_is_written_and_read_and_made_again(tmp_path: Path) -> None:
    sessions = [text_session("t"), *many(2), session(request(0, status=500), session_id="z")]
    rules: dict[str, Any] = {
        "seed": 9,
        "delay": DelayPolicy(unsplit="capped:2"),
        "length": LengthPolicy(cap=64),
        "context": ContextPolicy(scale=0.5, limit=4_096),
    }
    plan = make_plan(sessions, dataset_digest="abc", **rules)
    path = tmp_path / "plan.json"
    plan.summary().dump(path)
    file = load_plan(path)
    assert file == plan.summary()
    assert (file.version, file.seed, file.dataset_digest, file.temperature) == (2, 9, "abc", 0.0)
    assert [(one.session_id, one.prompts, one.turns) for one in file.sessions] == [
        ("s00", "token_ids", 3),
        ("s01", "token_ids", 3),
        ("t", "text", 2),
    ]
    assert file.delay_us == {"none": 0, "tool": 5 * S}
    assert file.recorded_api_us == 8 * 4 * S
    assert file.prompt_tokens == sum(one.prompt_tokens or 0 for one in file.sessions)
    assert [left.session_id for left in file.left_out] == ["z"]
    again = make_plan(
        sessions,
        dataset_digest=file.dataset_digest,
        seed=file.seed,
        delay=file.delay,
        length=file.length,
        context=file.context,
        isolation=file.isolation,
        share_head=file.share_head,
        history=file.history,
        retries=file.retries,
        tokenizer=file.tokenizer,
        once=file.once,
        token_ids=file.token_ids,
        nonce=file.nonce,
    )
    assert again.summary().to_json() == plan.summary().to_json()
    assert make_plan(sessions, dataset_digest="abc", **rules).summary().plan_digest == file.plan_digest
    assert make_plan(sessions, dataset_digest="abc", **rules).nonce != file.nonce
    assert make_plan(sessions, dataset_digest="abc", **(rules | {"seed": 8})).summary().plan_digest != file.plan_digest


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"version": 1, "seed": ')
    with pytest.raises(ValueError, match=r"plan\.json is no plan of agentdyno"):
        load_plan(path)
    plan_of(session(request(0))).summary().dump(path)
    path.write_bytes(path.read_bytes().replace(b'"version": 2,', b'"version": 7,'))
    with pytest.raises(ValueError, match=r"has plan version 7; this agentdyno reads version 2"):
        load_plan(path)

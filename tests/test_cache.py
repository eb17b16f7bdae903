"""The ideal share of every isolation against the very prompts that are sent, and plays that found a warm cache."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from capture.importers.weka import import_weka
from capture.trajectory import Trajectory
from replay.cache import HEAD_SLACK, SLACK_TOKENS, cross_warming, with_ideal
from replay.drive import drive
from replay.endpoint import Endpoint
from replay.loop import run
from replay.plan import ContextPolicy, DelayPolicy, LengthPolicy, Plan, make_plan
from replay.protocol import QUICK
from replay.record import RequestRecord
from tests.fake_server import serving
from tests.test_measure import record
from tests.test_plan import after, plan_of, request, session, text_session

HEAD = tuple(range(900, 905))  # five blocks of system message and tools that sessions of a release share


def chain(name: str, first: int, *, head: tuple[int, ...] = HEAD, **given: Any) -> Trajectory:
    """A session of three turns and a sub-agent, with a compaction before the last; its blocks begin at `first`."""
    own = tuple(range(first, first + 40))
    return session(
        request(0, block_hashes=head + own[:5], prompt_tokens=640),
        request(
            1,
            agent_path="main/1",
            parent_request_index=0,
            t_send_us=5_000_000,
            t_end_us=6_000_000,
            gap_kind="spawn",
            block_hashes=(*head, first + 90, first + 91),
            prompt_tokens=470,
        ),
        after(2, 0, 1.0, block_hashes=head + own[:12], prompt_tokens=17 * 64 + 9),
        after(3, 2, 1.0, block_hashes=(*head, first + 70, first + 71), context_event="compaction", prompt_tokens=448),
        session_id=name,
        **({"hash_scope": "release"} | given),
    )


def played(plan: Plan, *, agents: int = 2, plays: int = 3, offset: int = 0) -> list[tuple[RequestRecord, Any]]:
    """Records of agents that take turns, each with the prompt that was sent, as a sequence of units."""
    sent: list[tuple[RequestRecord, Any]] = []
    queues = []
    for agent in range(agents):
        queue = []
        for play in islice(plan.plays(agent, agents=agents, start_offset_turns=offset), plays):
            script = plan.script(play.session_id)
            queue += [(play, script, position) for position in range(play.first_turn, len(script.turns))]
        queues.append(queue)
    chooser = random.Random(4)
    while any(queues):
        play, script, position = chooser.choice([queue for queue in queues if queue]).pop(0)
        turn = script.turns[position]
        body = json.loads(script.request(turn, salt=play.salt, model="m").body)
        prompt = body["prompt"] if "prompt" in body else json.dumps([body.get("tools"), body["messages"]])
        one = record(
            agent=play.agent,
            play=play.play,
            session_id=play.session_id,
            request_index=turn.request_index,
            turn=position,
            salt=play.salt,
            sent_s=10.0 + len(sent),
            ttft_s=0.1,
            cached_tokens=None,
            prompt_tokens=turn.planned_prompt_tokens or 1000,
        )
        sent.append((one, prompt))
    return sent


def longest_shared(prompts: list[Any]) -> list[int]:
    """How much of each prompt any earlier one began with: what a cache that forgets nothing holds."""
    found = []
    for i, prompt in enumerate(prompts):
        best = 0
        for other in prompts[:i]:
            same = next(
                (at for at, (one, two) in enumerate(zip(prompt, other, strict=False)) if one != two),
                min(len(prompt), len(other)),
            )
            best = max(best, same)
        found.append(best)
    return found


ISOLATIONS = [("play", False), ("play", True), ("agent", False), ("agent", True), ("run", False), ("none", False)]


@pytest.mark.parametrize(("isolation", "share_head"), ISOLATIONS)
def test_the_ideal_share_is_that_of_the_prompts_that_are_sent(isolation: Any, share_head: bool) -> None:
    sessions = [chain("a", 1), chain("b", 1_000), chain("c", 2_000, hash_scope="session")]
    plan = plan_of(*sessions, isolation=isolation, share_head=share_head)
    sent = played(plan, plays=5, offset=2)
    records = with_ideal([one for one, _ in sent], plan)
    shares = []
    for one, (_, prompt), shared in zip(records, sent, longest_shared([prompt for _, prompt in sent]), strict=True):
        assert one.ideal_cached_share is not None
        planned = one.ideal_cached_share * len(prompt)
        # The tail that no block covers, and a block's first token that is the same by chance, are left out.
        assert planned - 1e-6 <= shared < planned + 64
        shares.append(one.ideal_cached_share)
    assert shares[0] == 0
    firsts = {
        key: share for one, share in zip(records[::-1], shares[::-1], strict=True) if (key := (one.agent, one.play))
    }
    later = [share for (_, play), share in firsts.items() if play > 0]
    if isolation == "play" and not share_head:
        assert set(firsts.values()) == {0.0}
    elif isolation == "play":
        assert 0.2 < min(later) <= max(later) < 0.8  # the head, and nothing else
    else:
        assert max(later) > 0.8  # a session that this agent, or anybody, has played before


def test_real_sessions_have_the_ideal_share_of_their_prompts(weka_traces: Path) -> None:
    traces = [weka_traces / f"trace_{name}.json" for name in ("0291", "0693")]
    sessions = import_weka(traces, b"k" * 32).trajectories
    for share_head in (False, True):
        plan = make_plan(sessions, dataset_digest="d", context=ContextPolicy(scale=1 / 64), share_head=share_head)
        sent = played(plan, plays=2)
        records = with_ideal([one for one, _ in sent], plan)
        shared = longest_shared([prompt for _, prompt in sent])
        for one, (_, prompt), same in zip(records, sent, shared, strict=True):
            assert one.ideal_cached_share is not None
            # A block is one token here: a few are alike by chance.
            assert 0 <= same - one.ideal_cached_share * len(prompt) + 1e-6 < 4


@pytest.mark.parametrize(("isolation", "share_head"), ISOLATIONS)
def test_the_ideal_share_of_text(isolation: Any, share_head: bool) -> None:
    plan = plan_of(text_session("a"), text_session("b"), isolation=isolation, share_head=share_head)
    sent = played(plan, plays=3)
    records = with_ideal([one for one, _ in sent], plan)
    for one, (_, prompt), same in zip(records, sent, longest_shared([text for _, text in sent]), strict=True):
        ideal = one.ideal_cached_share or 0.0
        if ideal == 0:
            assert same < 0.2 * len(prompt) + 300  # nothing but the tools, which stand before the salt here
        else:
            assert ideal == pytest.approx(same / len(prompt), abs=0.12)
    assert {one.ideal_cached_share == 1.0 for one in records} == ({False} if isolation == "play" else {False, True})


def test_earlier_trials_warm_what_the_run_shares() -> None:
    for isolation, share_head, first in (("play", False, 0.0), ("play", True, 0.5), ("run", False, 1.0)):
        plan = plan_of(chain("a", 1), chain("b", 1_000), isolation=isolation, share_head=share_head)  # type: ignore[arg-type]
        records = [one for one, _ in played(plan)]
        again = with_ideal(records, plan, earlier=records)
        assert again[0].ideal_cached_share == pytest.approx(first, abs=0.01)
        assert with_ideal(records, plan)[0].ideal_cached_share == 0


def test_what_a_server_never_read_warms_nothing() -> None:
    plan = plan_of(chain("a", 1), chain("b", 1_000))
    (first, second, *rest) = (one for one, _ in played(plan, agents=1))
    refused = record(**{name: getattr(first, name) for name in ("session_id", "request_index")}, outcome="refused")
    shares = [one.ideal_cached_share for one in with_ideal([refused, second, *rest], plan)]
    assert shares[:2] == [0.0, 0.0]
    assert (with_ideal([first, second], plan)[1].ideal_cached_share or 0) > 0


def test_with_a_live_history_nobody_knows_the_ideal() -> None:
    plan = plan_of(text_session("a"), history="live")
    assert {one.ideal_cached_share for one in with_ideal([one for one, _ in played(plan)], plan)} == {None}


# ---- the head


def test_a_shared_head_is_the_same_tokens_in_every_play_and_nothing_else_is() -> None:
    plan = plan_of(chain("a", 1), chain("b", 1_000), share_head=True)
    prompts = {}
    for name in "ab":
        script = plan.script(name)
        for salt in ("1", "2"):
            prompts[name, salt] = json.loads(script.request(script.turns[0], salt=salt, model="m").body)["prompt"]
    one, other, elsewhere = prompts["a", "1"], prompts["a", "2"], prompts["b", "1"]
    head = 5 * 64
    assert one[:head] == other[:head] == elsewhere[:head]
    assert longest_shared([one, other, elsewhere]) == [0, pytest.approx(head, abs=2), pytest.approx(head, abs=2)]
    assert {told.head_tokens for told in plan.summary().sessions} == {head}
    # Another run, on a server that is still warm from this one, finds none of it.
    script = plan_of(chain("a", 1), chain("b", 1_000), share_head=True, nonce="other").script("a")
    assert json.loads(script.request(script.turns[0], salt="1", model="m").body)["prompt"][:64] != one[:64]


def test_the_head_is_what_system_and_tools_cover_where_the_source_counts_them() -> None:
    alone = plan_of(session(request(0), hash_scope="session"), share_head=True).summary().sessions[0]
    assert alone.head_tokens == 0  # one chain, nothing to compare it with
    known = plan_of(session(request(0, system_tokens=100, tools_tokens=60)), share_head=True).summary().sessions[0]
    assert known.head_tokens == 2 * 64


def test_the_head_of_text_is_its_tools_and_its_system_message() -> None:
    plan = plan_of(text_session("a"), share_head=True)
    script = plan.script("a")
    bodies = [json.loads(script.request(script.turns[1], salt=salt, model="m").body) for salt in ("0" * 16, "1" * 16)]
    assert bodies[0]["tools"] == bodies[1]["tools"]
    assert bodies[0]["messages"][0] == bodies[1]["messages"][0]
    assert bodies[0]["messages"][0]["content"][:16].isdigit()  # the run's own salt, the same for all plays
    assert [body["messages"][1]["content"][:17] for body in bodies] == ["0" * 16 + "\n", "1" * 16 + "\n"]
    assert bodies[0]["messages"][2:] == bodies[1]["messages"][2:]
    assert 0 < plan.summary().sessions[0].head_tokens < 300


def test_compaction_keeps_the_head_and_nothing_else() -> None:
    plan = plan_of(chain("a", 1))
    script = plan.script("a")
    assert [(prefix.shared, prefix.total) for prefix in script.prefixes] == [
        (0, 640),
        (320, 470),
        (640, 1097),
        (320, 448),
    ]


# ---- recycled plays


def fresh(plan: Plan, *cached: int, **given: Any) -> list[RequestRecord]:
    """First requests of an agent's plays, with these cached tokens."""
    plays = islice(plan.plays(0), len(cached))
    return [
        record(
            play=play.play,
            session_id=play.session_id,
            salt=play.salt,
            sent_s=10.0 + 10 * play.play,
            cached_tokens=tokens,
            prompt_tokens=640,
            **given,
        )
        for play, tokens in zip(plays, cached, strict=True)
    ]


def test_a_recycled_play_that_finds_a_warm_cache_is_named() -> None:
    plan = plan_of(chain("a", 1), chain("b", 1_000))
    cold, file = fresh(plan, 0, SLACK_TOKENS, 0), plan.summary()
    assert cross_warming(cold, file) == ()
    assert cross_warming(fresh(plan, 0, SLACK_TOKENS + 1, 600), file) == (
        "2 of 3 fresh plays found a warm prefix cache: agent 0, play 2 had 600 of 640 tokens of its first prompt "
        "cached, where its salt allows 64",
    )
    head = plan_of(chain("a", 1), chain("b", 1_000), share_head=True)
    assert cross_warming(fresh(head, 0, 320 + SLACK_TOKENS), head.summary()) == ()
    assert len(cross_warming(fresh(head, 0, 320 + SLACK_TOKENS + 1), head.summary())) == 1
    text = plan_of(text_session("a"), share_head=True)
    allowed = text.summary().sessions[0].head_tokens * HEAD_SLACK + SLACK_TOKENS
    assert cross_warming(fresh(text, 0, int(allowed)), text.summary()) == ()
    assert len(cross_warming(fresh(text, 0, int(allowed) + 2), text.summary())) == 1


def test_where_nothing_is_isolated_nothing_is_cross_warming() -> None:
    for isolation in ("run", "none"):
        plan = plan_of(chain("a", 1), chain("b", 1_000), isolation=isolation)
        assert cross_warming(fresh(plan, 0, 640), plan.summary()) == ()
    plan = plan_of(chain("a", 1), chain("b", 1_000), isolation="agent")
    assert cross_warming(fresh(plan, 0, 640), plan.summary()) == ()  # the second play has the agent's own salt
    assert len(cross_warming(fresh(plan, 640), plan.summary())) == 1


def test_a_first_request_that_was_overtaken_or_sent_twice_says_nothing() -> None:
    plan = plan_of(chain("a", 1), chain("b", 1_000))
    file = plan.summary()
    (first,) = fresh(plan, 600)
    assert len(cross_warming([first], file)) == 1
    beside = record(session_id=first.session_id, request_index=1, salt=first.salt, sent_s=10.1)
    assert cross_warming([first, beside], file) == ()
    behind = record(session_id=first.session_id, request_index=1, salt=first.salt, sent_s=14.0)
    assert len(cross_warming([first, behind], file)) == 1
    assert cross_warming(fresh(plan, 600, redialled=True), file) == ()


def test_recycled_plays_on_a_server_do_not_warm_each_other() -> None:
    sessions = (chain("a", 1), chain("b", 1_000))
    quiet = DelayPolicy(tool="none", human="none", unsplit="none")
    protocol = dataclasses.replace(QUICK, settle_s=0.0, min_measure_s=0.5, max_phase_s=0.5, start_offset_turns=0)
    found = {}
    with serving(ttft_ms=2, itl_ms=0.1) as server:
        endpoint = Endpoint((server.url,), server.knobs.model)
        for isolation in ("play", "none"):
            plan = plan_of(*sessions, delay=quiet, isolation=isolation, length=LengthPolicy(cap=4))
            records = run(drive(plan, endpoint, agents=2, protocol=protocol)).records
            assert max(record.play for record in records) >= 2
            salted = plan_of(*sessions, delay=quiet, length=LengthPolicy(cap=4))
            found[isolation] = cross_warming(
                # What a server that ignores salts would say, or a client that forgets them.
                [dataclasses.replace(record, salt=f"{record.agent} {record.play}") for record in records],
                salted.summary(),
            )
    assert found["play"] == ()
    assert "fresh plays found a warm prefix cache" in found["none"][0]

"""What truncation leaves is a session that fits together and holds the limit; a second cut changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.call import Message, Tool, ToolUse
from capture.importers.agentperf_local import import_agentperf_local
from capture.pool import render
from capture.trajectory import PooledMessage, Request, ToolCall, Trajectory
from curate.consistency import check
from curate.recipe import LEAST_MESSAGE_BYTES, Truncate
from curate.row import Provenance, rows_of
from curate.tally import tally
from curate.truncate import MARKER_BYTES, cut_middle, truncate
from tests.sample_sessions import TOOLS, content_free_session, pooled, request, text_session


class Letters:
    """A counter whose tokens are characters: quick, and easy to reckon with."""

    encoding_name = "letters"
    sha = "0"

    def message(self, message: Message) -> int:
        return len(message.content)

    def tools(self, tools: Iterable[Tool]) -> int:
        return sum(len(tool.name) for tool in tools)

    def text(self, text: str) -> int:
        return len(text)


class Session:
    """Grows call by call, as an agent's session does."""

    def __init__(self) -> None:
        self.pool: list[PooledMessage] = []
        self.requests: list[Request] = []
        self.calls: list[ToolCall] = []
        self.prompts: dict[str, list[int]] = {}
        self.last: dict[str, int] = {}

    def say(self, path: str, message: Message, *, answer: bool = False) -> int:
        entry = pooled(message, len(self.requests), path=path, answer=answer)
        self.pool.append(replace(entry, t_us=len(self.requests) * 1000 + (900 if answer else 0)))
        return len(self.pool) - 1

    def call(self, path: str, letters: int, parent: int | None, *, kind: str = "turn", fork: int | None = None) -> None:
        index = len(self.requests)
        history = self.prompts.setdefault(path, [] if fork is None else list(self.prompts["main"][:fork]))
        before = self.last.get(path)
        if before is not None and self.requests[before].tool_call_ids:
            history.append(self.say(path, Message(role="tool", content="r" * letters, tool_call_id=f"call-{before}")))
            at = next(n for n, call in enumerate(self.calls) if call.request_index == before)
            result = {"result_request_index": index, "t_result_us": index * 1000, "wall_us": 1, "result_bytes": letters}
            self.calls[at] = replace(self.calls[at], **result)  # type: ignore[arg-type]
        else:
            history.append(self.say(path, Message(role="user", content="u" * letters)))
        spans: list[tuple[int, int]] = []
        for position in history:
            if spans and spans[-1][1] == position:
                spans[-1] = spans[-1][0], position + 1
            else:
                spans.append((position, position + 1))
        use = ToolUse(id=f"call-{index}", name="bash", arguments="{}")
        answer = self.say(path, Message(role="assistant", content="a", tool_calls=(use,)), answer=True)
        self.requests.append(
            request(
                index,
                agent_path=path,
                parent_request_index=before if before is not None else parent,
                relation="continue" if before is not None else "fork" if fork is not None else "subagent",
                kind=kind,
                prompt_spans=tuple(spans),
                answer_index=answer,
                tool_call_ids=(use.id,),
                t_send_us=index * 1000,
                t_end_us=index * 1000 + 900,
                tools_index=index % 2,
                gap_us=None if before is None else 100,
            )
        )
        history.append(answer)
        self.calls.append(
            replace(
                text_session().tool_calls[0],
                tool_call_id=use.id,
                agent_path=path,
                request_index=index,
                result_request_index=None,
                t_result_us=None,
                wall_us=None,
                result_bytes=None,
            )
        )
        self.last[path] = index

    def trajectory(self) -> Trajectory:
        return replace(
            text_session(),
            pool=tuple(self.pool),
            requests=tuple(self.requests),
            tool_calls=tuple(self.calls),
            tool_sets=(TOOLS, TOOLS[:1]),
            num_user_messages=sum(each.message.role == "user" and each.agent_path == "main" for each in self.pool),
        )


@st.composite
def sessions(draw: st.DrawFn) -> Trajectory:
    session = Session()
    if draw(st.booleans()):
        session.call("side/1", draw(st.integers(1, 60)), None, kind="auxiliary")
    session.call("main", draw(st.integers(1, 20)), None)
    for number in range(draw(st.integers(0, 12))):
        what = draw(st.sampled_from(["main", "main", "sub", "again", "fork", "side"]))
        letters = draw(st.integers(1, 40))
        others = [path for path in session.last if path.startswith("main/")]
        if what == "sub":
            session.call(f"main/{number}", letters, draw(st.sampled_from(sorted(session.last.values()))))
        elif what == "again" and others:
            session.call(draw(st.sampled_from(others)), letters, None)
        elif what == "fork":
            upto = draw(st.integers(1, len(session.prompts["main"])))
            session.call(f"main/{number}", letters, session.last["main"], fork=upto)
        elif what == "side":
            session.call(f"side/{number}", letters, draw(st.sampled_from([None, session.last["main"]])))
        else:
            session.call("main", letters, None)
    return session.trajectory()


@given(sessions(), st.data())
def test_what_is_left_fits_together_and_holds_the_limit(session: Trajectory, data: st.DataObject) -> None:
    lengths = {each.prompt_tokens_est or 0 for each in tally(session, Letters()).requests}
    limit = data.draw(st.sampled_from(sorted(lengths))) - data.draw(st.integers(0, 1))
    policy = Truncate(context_tokens=limit)
    found = truncate(session, Letters(), policy)
    if found.trajectory is None:
        assert found.reason == f"first prompt beyond {limit} tokens"
        return
    left = found.trajectory
    check(left)
    assert found.requests_left_out == len(session.requests) - len(left.requests)
    assert [each.request_index for each in left.requests] == list(range(len(left.requests)))
    counts = tally(left, Letters())
    assert all(each.prompt_tokens_est is not None and each.prompt_tokens_est <= limit for each in counts.requests)
    assert [each.message for each in left.pool] == [session.pool[at].message for at in found.positions]
    # Whoever stays says what it said, with the same tools.
    by_name = {each.exchange_id: each for each in session.requests}
    for each in left.requests:
        whole = by_name[each.exchange_id]
        assert render(left.pool, each.prompt_spans or ()) == render(session.pool, whole.prompt_spans or ())
        assert left.pool[each.answer_index or 0].message == session.pool[whole.answer_index or 0].message
        assert left.tool_sets[each.tools_index or 0] == session.tool_sets[whole.tools_index or 0]
        assert left.pool[each.answer_index or 0].request_index == each.request_index
    # Nothing that is left needs what is gone; nothing is gone without a cause.
    stays = {each.exchange_id for each in left.requests}
    for each in session.requests:
        own = tally(session, Letters()).requests[each.request_index].prompt_tokens_est or 0
        parent = each.parent_request_index
        earlier = [
            other.exchange_id in stays
            for other in session.requests[: each.request_index]
            if other.agent_path == each.agent_path
        ]
        if each.exchange_id in stays:
            assert all(earlier)
            assert parent is None or by_name[session.requests[parent].exchange_id].exchange_id in stays
        else:
            ended = any(
                other.exchange_id not in stays
                for other in session.requests[: each.request_index]
                if other.agent_path == "main"
            )
            orphan = parent is None and ended
            gone = parent is not None and session.requests[parent].exchange_id not in stays
            assert own > limit or not all(earlier) or gone or orphan
    if found.requests_left_out == 0:
        assert left == session
    assert min(each.t_send_us or 0 for each in left.requests) == 0
    assert left.duration_us is not None
    assert left.duration_us <= (session.duration_us or 0) or found.requests_left_out == 0
    again = truncate(left, Letters(), policy)
    assert (again.trajectory, again.requests_left_out) == (left, 0)
    assert set(again.truncated_bytes) <= {0}
    rows_of(left, counts, Provenance(message_truncated_bytes=found.truncated_bytes))


def test_totals_are_of_what_is_left() -> None:
    session = text_session(turns=3)  # a sub-agent started by the first request comes last
    upto = [tally(session, Letters()).requests[index].prompt_tokens_est or 0 for index in range(3)]
    found = truncate(session, Letters(), Truncate(context_tokens=upto[1]))
    left = found.trajectory
    assert left is not None
    assert found.requests_left_out == 1
    assert [each.agent_path for each in left.requests] == ["main", "main", "main/1"]
    assert (left.duration_us, left.api_us, left.tool_us, left.human_us) == (12_000_000, 4_500_000, 8_000_000, 0)
    assert (left.num_user_messages, left.num_subagents, left.models) == (1, 1, ("model-a", "model-b"))
    assert [each.request_index for each in left.tool_calls] == [0, 1]
    first, second = left.tool_calls
    assert (first.result_request_index, first.is_error) == (1, False)
    assert (second.result_request_index, second.t_result_us, second.wall_us) == (None, None, None)
    assert (second.result_bytes, second.is_error, second.exit_code, second.timed_out) == (None, None, None, None)
    with_sub = truncate(session, Letters(), Truncate(context_tokens=upto[0])).trajectory
    assert with_sub is not None
    assert (len(with_sub.requests), with_sub.num_subagents, with_sub.tool_us) == (2, 1, 0)


def test_what_happened_behind_the_cut_counts_no_more() -> None:
    session = Session()
    session.call("main", 5, None)
    session.call("main/1", 5, 0, fork=1)
    session.call("main/2", 5, 0)
    session.call("main", 50, None)
    session.call("main", 5, None)
    whole = session.trajectory()
    requests = list(whole.requests)
    requests[3] = replace(requests[3], context_event="compaction")
    whole = replace(
        whole,
        requests=tuple(requests),
        tool_calls=(replace(whole.tool_calls[0], mixed=True), *whole.tool_calls[1:]),
        num_compactions=1,
        peak_agents=7,
    )
    left = truncate(whole, Letters(), Truncate(context_tokens=40)).trajectory
    assert left is not None
    assert [each.agent_path for each in left.requests] == ["main", "main/1", "main/2"]
    assert (left.num_subagents, left.num_compactions) == (1, 0)  # a fork is no sub-agent
    assert left.peak_agents == 1
    assert not left.tool_calls[0].mixed  # the message that brought its result is gone
    assert truncate(replace(whole, peak_agents=None), Letters(), Truncate(context_tokens=40)).trajectory == replace(
        left, peak_agents=None
    )


def test_a_title_asked_for_behind_the_cut_goes_and_an_earlier_one_stays() -> None:
    session = Session()
    session.call("side/1", 5, None, kind="auxiliary")
    session.call("main", 5, None)
    session.call("main", 50, None)
    session.call("side/2", 5, None, kind="auxiliary")
    found = truncate(session.trajectory(), Letters(), Truncate(context_tokens=40))
    assert found.trajectory is not None
    assert [each.agent_path for each in found.trajectory.requests] == ["side/1", "main"]


def test_a_retry_goes_with_what_it_repeats() -> None:
    session = Session()
    session.call("main", 5, None)
    session.call("side/1", 50, 0, kind="auxiliary")
    session.call("side/2", 5, 0, kind="auxiliary")
    whole = session.trajectory()
    again = replace(whole.requests[2], retry_of=1)
    left = truncate(replace(whole, requests=(*whole.requests[:2], again)), Letters(), Truncate(context_tokens=40))
    assert left.trajectory is not None
    check(left.trajectory)
    assert [each.agent_path for each in left.trajectory.requests] == ["main"]


def test_a_session_that_begins_later_has_its_clock_set_anew() -> None:
    session = Session()
    session.call("side/1", 50, None, kind="auxiliary")
    session.call("main", 5, None)
    session.call("main", 5, None)
    whole = session.trajectory()
    left = truncate(whole, Letters(), Truncate(context_tokens=20)).trajectory
    assert left is not None
    assert left.t0_utc_us == (whole.t0_utc_us or 0) + 1000
    assert [each.t_send_us for each in left.requests] == [0, 1000]
    assert [each.t_us for each in left.pool] == [0, 900, 1000, 1900]
    assert left.tool_calls[0].t_result_us == 1000


def test_unknown_totals_stay_unknown() -> None:
    session = replace(text_session(), duration_us=None, api_us=None, tool_us=None, human_us=None, num_user_messages=7)
    left = truncate(session, Letters(), Truncate(context_tokens=60)).trajectory
    assert left is not None
    assert len(left.requests) < len(session.requests)
    assert (left.duration_us, left.api_us, left.tool_us, left.human_us) == (None, None, None, None)
    assert left.num_user_messages is None  # the source counts otherwise than we do


def test_an_answer_whose_request_is_gone_goes_on_as_words_of_who_repeats_it() -> None:
    session = Session()
    session.call("main", 5, None)
    session.call("main/1", 5, 0)
    session.call("main/1", 5, None)
    whole = session.trajectory()
    # A second sub-agent repeats what the first one, whose second prompt is too long, was answered.
    repeated = whole.requests[2].answer_index or 0
    last = request(
        3, agent_path="main/2", parent_request_index=0, prompt_spans=((repeated, repeated + 1),), tools_index=0
    )
    left = truncate(replace(whole, requests=(*whole.requests, last)), Letters(), Truncate(context_tokens=15)).trajectory
    assert left is not None
    check(left)
    (entry,) = [each for each in left.pool if each.agent_path == "main/2"]
    assert (entry.request_index, entry.answer, entry.t_us) == (2, False, last.t_send_us)


@pytest.mark.parametrize(("limit", "left"), [(64 * 3 + 5, 1), (64 * 5 + 5, 2), (64 * 9, 3)])
def test_sessions_without_text_go_by_the_sources_count(limit: int, left: int) -> None:
    found = truncate(content_free_session(turns=3), Letters(), Truncate(context_tokens=limit))
    assert found.trajectory is not None
    assert len(found.trajectory.requests) == left
    assert (found.positions, found.truncated_bytes) == ((), ())


def test_blocks_tell_a_length_and_an_unknown_one_is_too_long() -> None:
    session = content_free_session(turns=3)
    by_blocks = replace(session, requests=tuple(replace(each, prompt_tokens=None) for each in session.requests))
    left = truncate(by_blocks, Letters(), Truncate(context_tokens=64 * 5)).trajectory
    assert left is not None
    assert len(left.requests) == 2
    nothing = tuple(replace(each, block_hashes=None) for each in by_blocks.requests)
    assert truncate(replace(session, requests=nothing), Letters(), Truncate(context_tokens=10**9)).trajectory is None


@given(st.text(alphabet="aé€😀\n\ud800", max_size=900), st.integers(MARKER_BYTES, 700))
def test_a_middle_is_cut_between_characters(text: str, limit: int) -> None:
    data = text.encode("utf-8", "surrogatepass")
    cut, gone = cut_middle(text, limit)
    again = cut_middle(cut, limit)
    assert again == (cut, 0)
    if len(data) <= limit:
        assert (cut, gone) == (text, 0)
        return
    head, said, tail = re.split(r"\n(\[\.\.\. \d+ bytes left out of this dataset \.\.\.\])\n", cut)
    assert said == f"[... {gone} bytes left out of this dataset ...]"
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len((head + tail).encode("utf-8", "surrogatepass")) + gone == len(data)
    assert limit - MARKER_BYTES - 8 <= len((head + tail).encode("utf-8", "surrogatepass")) <= limit - MARKER_BYTES


def test_long_messages_are_cut_and_say_so() -> None:
    session = text_session(secret="x" * 5000)
    found = truncate(session, Letters(), Truncate(message_bytes=LEAST_MESSAGE_BYTES))
    left = found.trajectory
    assert left is not None
    check(left)
    for before, after, gone in zip(session.pool, left.pool, found.truncated_bytes, strict=True):
        assert len(after.message.content.encode()) <= LEAST_MESSAGE_BYTES
        assert (gone > 0) == (len(before.message.content.encode()) > LEAST_MESSAGE_BYTES)
    assert truncate(left, Letters(), Truncate(message_bytes=LEAST_MESSAGE_BYTES)).trajectory == left
    rows = rows_of(left, tally(left, Letters()), Provenance(message_truncated_bytes=found.truncated_bytes))
    assert [row["truncated_bytes"] or 0 for row in rows.session["messages"]] == list(found.truncated_bytes)
    with pytest.raises(ValueError, match="fewer than 80 bytes"):
        truncate(session, Letters(), Truncate(message_bytes=10))


def test_a_cut_message_counts_as_it_is_left() -> None:
    session = text_session(secret="x" * 5000)
    policy = Truncate(message_bytes=LEAST_MESSAGE_BYTES, context_tokens=3000)
    left = truncate(session, Letters(), policy).trajectory
    assert left is not None
    assert len(left.requests) > len(
        (truncate(session, Letters(), Truncate(context_tokens=6000)).trajectory or left).requests
    )


def test_nothing_is_cut_of_what_is_short_enough() -> None:
    for session in (text_session(), content_free_session()):
        found = truncate(session, Letters(), Truncate(context_tokens=10**6))
        assert found.trajectory is session
        assert (found.requests_left_out, found.reason) == (0, None)
        assert found.positions == tuple(range(len(session.pool)))


def test_real_tasks_are_cut_at_every_limit() -> None:
    for session in import_agentperf_local(None, b"k" * 32).trajectories:
        lengths = sorted(each.prompt_tokens_est or 0 for each in tally(session, Letters()).requests)
        for limit in (lengths[0], lengths[len(lengths) // 2], lengths[-1]):
            found = truncate(session, Letters(), Truncate(context_tokens=limit))
            assert found.trajectory is not None
            check(found.trajectory)
            kept = tally(found.trajectory, Letters()).requests
            assert max(each.prompt_tokens_est or 0 for each in kept) <= limit
            assert found.requests_left_out == 0 or limit < lengths[-1]

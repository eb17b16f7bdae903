"""Each message once; spans give back exactly the prompt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capture.call import Message, ToolUse
from capture.pool import MessagePool, render
from tests.calls import Wire, result, said, user


def test_an_answer_that_the_agent_spells_anew_stands_in_the_pool_once() -> None:
    wire = Wire()
    wire.call(0, [user("Go")], said("I look.", ("t1", "Bash", '{"a": 1}')), session="s")
    echo = said("I look.", ("t1", "Bash", '{"a":1}'))
    wire.call(1000, [user("Go"), echo, result("t1")], said("ok"), session="s")
    found = wire.one()
    assert [request.prompt_spans for request in found.requests] == [((0, 1),), ((0, 3),)]
    assert found.pool[1].answer
    assert found.pool[1].message == echo


MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool", "system"]),
    content=st.sampled_from(["a", "b", "c"]),
    tool_calls=st.sampled_from(
        [(), (ToolUse(id="1", name="t", arguments='{"a":1}'),), (ToolUse(id="1", name="t", arguments='{"a": 1}'),)]
    ),
    omitted_bytes=st.sampled_from([0, 1]),
)


@given(prompts=st.lists(st.tuples(st.lists(MESSAGES, max_size=8), MESSAGES | st.none()), max_size=10))
def test_spans_give_back_exactly_the_prompt(prompts: list[tuple[list[Message], Message | None]]) -> None:
    pool = MessagePool()
    spans = []
    for number, (prompt, answer) in enumerate(prompts):
        spans.append(pool.add_prompt(prompt, agent_path="main", request_index=number, t_us=number))
        if answer is not None:
            at = pool.add_answer(answer, agent_path="main", request_index=number, t_us=number)
            assert pool.messages[at].message == answer
            assert pool.messages[at].answer
    for (prompt, _), found in zip(prompts, spans, strict=True):
        assert render(pool.messages, found) == tuple(prompt)
        assert all(start < stop for start, stop in found)

"""Answers read after the close: every case whole, byte by byte and cut anywhere; faults are named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.answer import MOST_CHARACTERS_OF_AN_ERROR, Answer, AnswerReader, error_message, read_answer


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(finish: str | None = None, **delta: object) -> bytes:
    return event({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


ROLE = chunk(role="assistant", content="")
USAGE = event(
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 40,
            "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 32},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }
)
DONE = b"data: [DONE]\n\n"
PLAIN = [ROLE, chunk(content="a"), chunk(content="b c d"), chunk(finish="stop"), USAGE, DONE]


def timed(parts: list[bytes], step_ns: int = 1_000_000) -> list[tuple[int, bytes]]:
    return [(step_ns * number, part) for number, part in enumerate(parts, start=1)]


def test_a_plain_answer() -> None:
    assert read_answer(timed(PLAIN)) == Answer(
        events=6,
        content_events=2,
        first_content_at_ns=2_000_000,  # not the role, which holds nothing
        last_content_at_ns=3_000_000,
        content_gaps_us=(1000,),
        prompt_tokens=40,
        cached_tokens=32,
        completion_tokens=7,
        reasoning_tokens=2,
        finish_reason="stop",
        done=True,
        error=None,
        distinct_share=1.0,
        content_bytes=6,
    )


@pytest.mark.parametrize(
    ("delta", "is_content"),
    [
        ({"content": "x"}, True),
        ({"content": ""}, False),
        ({"content": None}, False),
        ({"reasoning_content": "x"}, True),
        ({"reasoning": "x"}, True),
        ({"refusal": "no"}, True),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "ls", "arguments": ""}}]}, True),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, True),
        ({"tool_calls": [{"index": 0, "id": "c"}]}, False),
        ({"tool_calls": []}, False),
        ({"function_call": {"arguments": "{"}}, True),
        ({"role": "assistant"}, False),
        ({"unheard_of": {"x": [1]}}, False),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_counts_as_content(delta: dict[str, object], is_content: bool) -> None:
    answer = read_answer(timed([chunk(**delta)]))
    assert (answer.content_events, answer.error) == (int(is_content), None)


def test_completions_stream_text() -> None:
    parts = [event({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in ("", "a", "b")]
    answer = read_answer(timed([*parts, event({"choices": [{"text": "", "finish_reason": "length"}]}), DONE]))
    assert (answer.content_events, answer.first_content_at_ns, answer.finish_reason) == (2, 2_000_000, "length")


def test_two_choices_in_one_event_are_one_content_event() -> None:
    choice = {"delta": {"content": "x"}, "finish_reason": None}
    assert read_answer(timed([event({"choices": [choice, choice]})])).content_events == 1


def test_events_of_one_read_have_no_gap() -> None:
    reads = [(5_000_000, b"".join([ROLE, chunk(content="a"), chunk(content="b"), chunk(content="c")]))]
    reads.append((9_000_000, chunk(content="d") + DONE))
    answer = read_answer(reads)
    assert answer.content_gaps_us == (0, 0, 4000)
    assert answer.events == 6


@pytest.mark.parametrize(
    ("parts", "ended", "error"),
    [
        ([*PLAIN[:-1]], True, None),
        ([ROLE, chunk(content="a"), DONE], True, None),
        ([ROLE, chunk(content="a")], False, None),
        ([ROLE, event({"error": {"message": "out of memory", "code": 500}}), DONE], True, "out of memory"),
        ([ROLE, event({"error": "out of memory"})], False, "out of memory"),
        ([ROLE, b'event: error\ndata: {"message": "out of memory"}\n\n'], False, "out of memory"),
        ([ROLE, event({"error": None, "choices": []}), DONE], True, None),
        ([ROLE, b"data: <html>502</html>\n\n", *PLAIN[1:]], True, "event 2 is not a chunk of a completion: <html>502"),
        ([b'data: {"choices": [{"delta": {"content": 5}}]}\n\n', DONE], True, "event 1 is not a chunk"),
        ([b"data: \xff\xfe\n\n", DONE], True, "event 1 is not a chunk"),
        ([b'data: {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n", DONE], True, "event 1 is not a chunk"),
        ([b"<html>nothing like an event stream</html>"], False, None),
        ([], False, None),
        ([b": keep-alive\n\n", *PLAIN], True, None),
        ([b"id: 7\nevent: message\nretry: 5\n" + chunk(content="a"), DONE], True, None),
        ([ROLE, chunk(content="a"), DONE.rstrip()], True, None),
        ([ROLE, chunk(content="a"), chunk(content="b", finish="stop").rstrip()], True, None),
        ([ROLE, chunk(content="a"), chunk(content="b")[:30]], False, None),
    ],
    ids=[
        "no [DONE]", "no finish reason", "neither", "error event", "error as text", "named error", "null error",
        "garbage", "wrong type", "not UTF-8", "nested", "not a stream", "empty", "comments", "other fields",
        "[DONE] unterminated", "last event unterminated", "cut in an event",
    ],
)  # fmt: skip
def test_ends_and_faults(parts: list[bytes], ended: bool, error: str | None) -> None:
    answer = read_answer(timed(parts))
    assert answer.ended == ended
    assert answer.error is None if error is None else (answer.error or "").startswith(error)


STREAMS = {
    "LF": b"".join(PLAIN),
    "CRLF": b"".join(PLAIN).replace(b"\n", b"\r\n"),
    "CR": b"".join(PLAIN).replace(b"\n", b"\r"),
    "split data": b'data: {"choices": [{"delta":\ndata: {"content": "x"}}]}\n\n' + DONE,
    "no space": b"".join(PLAIN).replace(b"data: ", b"data:"),
    "accents": 'data: {"choices": [{"delta": {"content": "é€😀"}}]}\n\n'.encode() + DONE,
}  # fmt: skip


@pytest.mark.parametrize("stream", STREAMS.values(), ids=list(STREAMS))
@given(data=st.data())
def test_any_cut_reads_the_same(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)))
    parts = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, cut = read_answer([(0, stream)]), read_answer([(0, part) for part in parts])
    assert cut == whole
    assert whole.error is None
    assert whole.done
    assert whole.content_events >= 1


@pytest.mark.parametrize("stream", STREAMS.values(), ids=list(STREAMS))
def test_byte_by_byte(stream: bytes) -> None:
    assert read_answer([(0, stream[at : at + 1]) for at in range(len(stream))]) == read_answer([(0, stream)])


def test_an_events_time_is_that_of_the_read_that_completes_it() -> None:
    first = chunk(content="a")
    answer = read_answer([(10, first[:20]), (20, first[20:] + chunk(content="b")), (30, DONE)])
    assert (answer.first_content_at_ns, answer.last_content_at_ns) == (20, 20)


def test_slices_read_like_the_whole() -> None:
    reads = timed(PLAIN)
    reader = AnswerReader()
    for read in reads:
        reader.feed([read])
    assert reader.close() == read_answer(reads)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_never_raises(parts: list[bytes]) -> None:
    answer = read_answer(timed(parts))
    assert answer.content_events <= answer.events


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"error": "too long"}', "too long"),
        (b'{"detail": "too long"}', "too long"),
        (b'{"message": "too long"}', "too long"),
        (b"<h1>Bad\nGateway</h1>", "<h1>Bad Gateway</h1>"),
        (b'{"status": "no"}', '{"status": "no"}'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\x1b[31mno\x1b[0m \x9b2J \u202eyes".encode(), "[31mno [0m 2J yes"),
        (b"[" * 100_000, "[" * (MOST_CHARACTERS_OF_AN_ERROR - 1) + "…"),
        (b"  ", None),
    ],
)
def test_the_words_of_a_refusal(body: bytes, text: str | None) -> None:
    assert error_message(body) == text


def test_a_long_refusal_is_shortened() -> None:
    assert len(error_message(b"x" * 10_000) or "") == MOST_CHARACTERS_OF_AN_ERROR


def test_the_share_of_distinct_fragments_shows_a_repetition() -> None:
    def answer(*fragments: str, name: str = "content") -> Answer:
        return read_answer(timed([event({"choices": [{"delta": {name: text}}]}) for text in fragments]))

    assert answer("a", "b", "c").distinct_share == 1.0
    assert answer(*["loop "] * 50).distinct_share == 0.02
    assert answer(*["loop "] * 512).distinct_share == 2 / 512
    assert answer(*map(str, range(256)), *map(str, range(256)), "x").distinct_share == 1.0  # no loop of a short period
    assert answer("a", "b", "a", "b", name="reasoning_content").distinct_share == 0.5
    assert answer().distinct_share is None
    assert answer("a").text is None


def test_the_text_is_kept_where_it_is_asked_for() -> None:
    reader = AnswerReader(keep_text=True)
    call = {"function": {"name": "bash", "arguments": '{"x":'}}
    deltas = ({"reasoning": "hm"}, {"content": "Hello, "}, {"content": "größe"}, {"tool_calls": [call]})
    reader.feed(timed([event({"choices": [{"delta": delta}]}) for delta in deltas]))
    answer = reader.close()
    assert (answer.text, answer.content_events, answer.distinct_share) == ("Hello, größe", 4, 1.0)
    completion = AnswerReader(keep_text=True)
    completion.feed(timed([event({"choices": [{"text": "plain"}]})]))
    assert completion.close().text == "plain"

"""The event stream parser: every case whole, byte by byte and cut at random gives the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.sse import ServerEvent, SseParser

CASES: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "one line of data": (b"data: hello\n\n", [("message", "hello")]),
    "a named event": (b'event: ping\ndata: {"type":"ping"}\n\n', [("ping", '{"type":"ping"}')]),
    "data before its name": (b"data: x\nevent: late\n\n", [("late", "x")]),
    "several data lines": (b"data: a\ndata:b\ndata:  c\n\n", [("message", "a\nb\n c")]),
    "CRLF": (b"event: a\r\ndata: 1\r\n\r\nevent: b\r\ndata: 2\r\n\r\n", [("a", "1"), ("b", "2")]),
    "bare CR": (b"event: a\rdata: 1\r\rdata: 2\r\r", [("a", "1"), ("message", "2")]),
    "line ends mixed": (
        b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\r",
        [("message", "1"), ("message", "2"), ("message", "3")],
    ),
    "byte order mark": (b"\xef\xbb\xbfdata: 1\n\n", [("message", "1")]),
    "a mark only at the start": (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [("message", "1")]),
    "text beyond ASCII": ("data: grüße 🙂 漢字\n\n".encode(), [("message", "grüße 🙂 漢字")]),
    "broken UTF-8": (b"data: a\xff\xfeb\n\n", [("message", "a\ufffd\ufffdb")]),
    "no space after the colon": (b"data:x\n\n", [("message", "x")]),
    "a field without a colon": (b"data\n\n", [("message", "")]),
    "an event without data": (b"event: lonely\n\ndata: 1\n\n", [("message", "1")]),
    "id and retry": (b"id: 7\nretry: 100\ndata: 1\n\n", [("message", "1")]),
    "many blank lines": (b"\n\n\ndata: 1\n\n\n\n", [("message", "1")]),
    "nothing": (b"", []),
}


def parse(stream: bytes, cuts: list[int]) -> list[ServerEvent]:
    parser = SseParser()
    events = []
    edges = [0, *sorted(cuts), len(stream)]
    for at_ns, (start, stop) in enumerate(pairwise(edges)):
        events += parser.feed(at_ns, stream[start:stop])
    return events + parser.close(len(edges))


def said(events: list[ServerEvent]) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in events if not event.comment]


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES.keys())
def test_whole_and_byte_by_byte(stream: bytes, expected: list[tuple[str, str]]) -> None:
    assert said(parse(stream, [])) == expected
    assert said(parse(stream, list(range(1, len(stream))))) == expected


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES.keys())
@given(data=st.data())
def test_cut_at_random(stream: bytes, expected: list[tuple[str, str]], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert said(parse(stream, cuts)) == expected


@given(
    stream=st.lists(st.sampled_from([b"data", b":", b" ", b"\r", b"\n", b"event", b"x", b"\xc3", b"\xbc"])).map(
        b"".join
    ),
    data=st.data(),
)
def test_any_bytes_give_the_same_events_however_cut(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert said(parse(stream, cuts)) == said(parse(stream, []))


def test_an_event_has_the_time_of_the_read_that_completed_it() -> None:
    parser = SseParser()
    assert parser.feed(10, b"data: 1\n") == []
    assert [event.at_ns for event in parser.feed(20, b"\ndata: 2\n\ndata: 3")] == [20, 20]
    assert [event.at_ns for event in parser.feed(30, b"\r\n\r")] == [30]
    assert parser.feed(40, b"\n") == []


def test_comments_are_kept_as_signs_of_life() -> None:
    events = parse(b": keep-alive\n\ndata: 1\n: in between\ndata: 2\n\n", [])
    assert [(event.data, event.comment) for event in events] == [
        ("keep-alive", True),
        ("in between", True),
        ("1\n2", False),
    ]


@pytest.mark.parametrize(
    ("stream", "left"),
    [
        (b'data: 1\n\ndata: {"half', '{"half'),
        (b"data: 1\n\nevent: e\ndata: whole\n", "whole"),
        (b"data: 1\n\ndata: [DONE]", "[DONE]"),
    ],
    ids=["in a line", "before the blank line", "without a line end"],
)
def test_the_end_of_the_stream_cuts_an_event(stream: bytes, left: str) -> None:
    *whole, last = parse(stream, [])
    assert said(whole) == [("message", "1")]
    assert all(event.terminated for event in whole)
    assert (last.data, last.terminated) == (left, False)


def test_bytes_after_the_last_event_change_nothing() -> None:
    assert said(parse(b"data: 1\n\nevent: next", [])) == [("message", "1")]

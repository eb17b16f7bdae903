"""The first glance over a text: words found together, long runs, and lines that a terminal broke."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from curate.anchors import Anchors
from curate.glance import Glance, is_wide_line, long_runs

WORDS = (b"key", b"keys", b"token", b"pw ", b"pw:", b"secret", b"sec", b"tok3n")
TEXTS = st.lists(st.sampled_from([*WORDS, b"ke", b"y", b" ", b"x" * 40, b"\x00", b"tokekey", b"s3"]), max_size=120).map(
    b"".join
)


@given(TEXTS)
def test_words_are_found_wherever_they_stand(text: bytes) -> None:
    expected = {
        word: [at for at in range(len(text)) if text.startswith(word, at)] for word in set(WORDS) if word in text
    }
    assert Anchors(WORDS).find(text) == expected


@given(st.lists(st.integers(0, 70), max_size=20), st.integers(1, 40))
def test_long_runs_are_those_of_a_pattern(lengths: list[int], least: int) -> None:
    marks = b"\0".join(b"\1" * length for length in lengths)
    begins, ends = long_runs(marks, least)
    expected = [match.span() for match in re.finditer(rb"\x01{%d,}" % least, marks)]
    assert list(zip(begins.tolist(), ends.tolist(), strict=True)) == expected


def test_runs_are_stretches_of_the_text() -> None:
    digest = "0123456789abcdef" * 3
    glance = Glance(f"é {digest}\nshort abc_def-{'x' * 20} end")
    assert glance.hex_runs == [(2, 50)]
    assert glance.runs == [digest, f"abc_def-{'x' * 20}"]


def test_lines_that_a_terminal_broke() -> None:
    assert is_wide_line(b"x" * 60, 60)
    assert not is_wide_line(b"x" * 59, 59)
    narrow = b"before\n$ run --quiet --token=aB3dE5gH7jK9"
    assert is_wide_line(narrow, len(narrow))
    assert not is_wide_line(b"short\n$ run --x=1", 17)

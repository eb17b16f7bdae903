"""All readings of a text, and one pass over many texts at once that tells which of them need a closer look.

A transcript is thousands of short texts, nearly all of them clean. The rules' fixed cost is that of a long text, so
short ones are looked at together; what is found in the heap only names the texts that are then looked at by themselves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise

from curate.glance import Glance
from curate.shapes import Finding
from curate.views import DEPTH, Decoded, View, views

_HEAP = 96_000  # characters looked at together
_BLOCK = 32_000  # characters of a long text's blocks, at least
_SEAM = 500  # characters on either side of a cut in which nothing may be found
_REMEMBERED = 64_000  # characters: what was read of a longer text takes more memory than it saves time
_SEPARATOR = "\n\n"

type Find = Callable[[Glance], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as it stands (no steps), or as it reads after some decoding."""

    glance: Glance
    steps: tuple[View | Decoded, ...] = ()

    def spans(self, start: int, end: int) -> list[tuple[int, int]]:
        """Stretches of the text itself that [start, end) of this reading came from."""
        spans = [(start, end)]
        for step in reversed(self.steps):
            spans = [span for begin, stop in spans for span in step.spans(begin, stop)]
        return spans


def readings(text: str, *, heap: bool = False) -> Iterable[Reading]:
    """The text and its other readings, and theirs."""
    return _read(text, heap=heap) if heap or len(text) > _REMEMBERED else _remembered(text)


@lru_cache(maxsize=8)
def _remembered(text: str) -> tuple[Reading, ...]:
    """The readings of a text that was just gone through: those that find something come next, and look again."""
    return tuple(_read(text, heap=False))


def _read(text: str, *, heap: bool) -> Iterator[Reading]:
    waiting = [Reading(Glance(text, heap=heap))]
    while waiting:
        reading = waiting.pop()
        yield reading
        if len(reading.steps) < DEPTH:
            waiting += [
                Reading(Glance(view.text, looks=view.looks, heap=heap), (*reading.steps, view))
                for view in views(reading.glance)
            ]


def everywhere(find: Find, text: str) -> Iterator[Finding]:
    """Findings in a text and in its other readings, as stretches of the text itself; they may overlap."""
    for reading in readings(text):
        yield from _at_home(reading, find)


def _at_home(reading: Reading, find: Find) -> Iterator[Finding]:
    for finding in find(reading.glance):
        for number, (begin, end) in enumerate(reading.spans(finding.start, finding.end)):
            yield replace(finding, start=begin, end=end, rest=finding.rest or number > 0)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep says of texts."""

    marked: tuple[set[str], ...]  # for each of the ways to find: texts that hold a finding
    findings: tuple[list[Finding], ...]  # for each of them what was found, at no position of use
    decoded: list[tuple[str, set[str]]]  # other readings, and the texts that they came from


def cut(text: str, finds: Sequence[Find]) -> list[str]:
    """A long text in blocks, so that only those with a finding are gone through again; never through a finding."""
    ends: list[int] = []
    at = 0
    while len(text) - at > 2 * _BLOCK:
        end = text.rfind("\n\n", at + _BLOCK, at + 2 * _BLOCK) + 2
        if end < at + _BLOCK:
            end = text.rfind("\n", at + _BLOCK, at + 2 * _BLOCK) + 1
        if end < at + _BLOCK:
            end = text.find("\n", at + 2 * _BLOCK) + 1 or len(text)
        if end >= len(text):
            break
        ends.append(end)
        at = end
    if not ends:
        return [text]
    seams = {end: text[max(0, end - _SEAM) : end + _SEAM] for end in ends}
    swept = sweep(dict.fromkeys(seams.values()), finds)
    ends = [end for end in ends if not any(seams[end] in marked for marked in swept.marked)]
    return [text[begin:end] for begin, end in pairwise((0, *ends, len(text)))]


def sweep(texts: Iterable[str], finds: Sequence[Find]) -> Swept:
    """Look for findings in many texts at once."""
    swept = Swept(tuple(set() for _ in finds), tuple([] for _ in finds), [])
    heap: list[str] = []
    size = 0
    for text in texts:
        heap.append(text)
        size += len(text)
        if size >= _HEAP:
            _sweep_heap(heap, finds, swept)
            heap, size = [], 0
    if heap:
        _sweep_heap(heap, finds, swept)
    return swept


def _sweep_heap(heap: list[str], finds: Sequence[Find], swept: Swept) -> None:
    starts = list(accumulate((len(text) + len(_SEPARATOR) for text in heap), initial=0))

    def owners(spans: list[tuple[int, int]]) -> set[str]:
        return {
            heap[number]
            for begin, end in spans
            for number in range(
                bisect_right(starts, begin) - 1, min(bisect_right(starts, max(begin, end - 1)), len(heap))
            )
        }

    for reading in readings(_SEPARATOR.join(heap), heap=len(heap) > 1):
        for find, marked, findings in zip(finds, swept.marked, swept.findings, strict=True):
            for finding in find(reading.glance):
                marked |= owners(reading.spans(finding.start, finding.end))
                findings.append(finding)
        if reading.steps and (length := len(reading.glance.text)):
            swept.decoded.append((reading.glance.text, owners(reading.spans(0, length))))

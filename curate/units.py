"""Numbers with their units in few characters, as cards, plots and commands show them."""

from __future__ import annotations

from curate.distribution import Number


def short_number(value: float) -> str:
    """12000 as 12k, three digits."""
    value = float(f"{value:.3g}")  # first, or 999.9 would become 1e+03
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def short_time(seconds: float) -> str:
    """A duration in the largest unit that keeps it at one or above, three digits."""
    seconds = float(f"{seconds:.3g}")
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def format_value(value: Number | None, unit: str) -> str:
    """A value of a table in its unit, three digits; a dash for the unknown."""
    if value is None:
        return "–"
    if unit == "µs":
        return "0 s" if value == 0 else short_time(value / 1e6)
    if unit == "share":
        return f"{100 * value:.3g} %"
    return short_number(value)

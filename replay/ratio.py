"""The limits of a ratio of two numbers, each with 95 % limits of its own.

In logarithms a ratio is a difference, and its limits follow from the limits of its two parts, each side by its own
(Zou & Donner, "Construction of confidence limits about effect measures: a general approach", Statistics in Medicine 27
(2008) 1693):

    d = ln X − ln Y
    low  = d − sqrt((ln X − ln low_X)² + (ln high_Y − ln Y)²)
    high = d + sqrt((ln high_X − ln X)² + (ln Y − ln low_Y)²)

A further relative uncertainty that both sides share is added under both roots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A positive number and its 95 % limits; an exact one is its own limits."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        return cls(value=value, low=value, high=value)


def ratio_limits(numerator: Estimate, denominator: Estimate, relative: float) -> tuple[float, float]:
    """95 % limits of the ratio; `relative` is a further relative uncertainty, expanded (k = 2), or 0."""
    x, y = numerator, denominator
    below = math.hypot(math.log(x.value / x.low), math.log(y.high / y.value), relative)
    above = math.hypot(math.log(x.high / x.value), math.log(y.value / y.low), relative)
    middle = x.value / y.value
    return middle * math.exp(-below), middle * math.exp(above)

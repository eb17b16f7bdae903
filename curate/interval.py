"""95 % intervals of shares and of rates, and by resampling what repeats would vary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from curate.measured import PerMegabyte, Rate

Z = 1.959963984540054  # 97.5th percentile of the normal distribution
TAIL = 0.025


def wilson(found: int, n: int) -> Rate:
    """A share with its Wilson score interval; raises ValueError where nothing was tried.

    Wilson (1927), Journal of the American Statistical Association 22, 209-212.
    """
    if n < 1:
        raise ValueError("a share of nothing is unknown")
    share = found / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # At the ends the bound is the end itself, which rounding would miss.
    low = 0.0 if found == 0 else max(0.0, middle - half)
    high = 1.0 if found == n else min(1.0, middle + half)
    return Rate(found=found, n=n, value=share, low=low, high=high)


def garwood(findings: int, megabytes: float) -> PerMegabyte:
    """Findings per megabyte with the exact interval of a Poisson mean; raises ValueError without any text.

    Garwood (1936), Biometrika 28, 437-442.
    """
    if megabytes <= 0:
        raise ValueError("findings per megabyte of no text are unknown")
    low = 0.0 if findings == 0 else _mean_where(lambda mean: 1 - _at_most(findings - 1, mean) < TAIL, findings)
    high = _mean_where(lambda mean: _at_most(findings, mean) > TAIL, findings)
    return PerMegabyte(
        findings=findings,
        megabytes=megabytes,
        value=findings / megabytes,
        low=low / megabytes,
        high=high / megabytes,
    )


def _at_most(count: int, mean: float) -> float:
    """Probability of at most so many events of a Poisson variable."""
    if mean <= 0:
        return 1.0
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))


def _mean_where(below: Callable[[float], bool], findings: int) -> float:
    """The mean at which a condition that holds for small means stops to hold."""
    low, high = 0.0, findings + 10 * math.sqrt(findings + 1) + 10
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def resampled(counts: dict[tuple[str, str], tuple[int, int]], seed: int, *, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a share when rows and columns of a table (found, n) are both drawn anew, with replacement.

    Cases of one family, and of one context, succeed or fail together; Wilson's interval takes them for independent and
    is too narrow for families and contexts that are not in the corpus. Owen (2007), Annals of Applied Statistics 1,
    386-411.
    """
    rows = sorted({row for row, _ in counts})
    columns = sorted({column for _, column in counts})
    draw = Random(seed)
    shares: list[float] = []
    for _ in range(draws):
        row_weights = _weights(rows, draw)
        column_weights = _weights(columns, draw)
        found = n = 0
        for (row, column), (cell_found, cell_n) in counts.items():
            weight = row_weights.get(row, 0) * column_weights.get(column, 0)
            found += weight * cell_found
            n += weight * cell_n
        if n:
            shares.append(found / n)
    shares.sort()
    return shares[int(TAIL * len(shares))], shares[min(len(shares) - 1, int((1 - TAIL) * len(shares)))]


def _weights(names: Sequence[str], draw: Random) -> dict[str, int]:
    weights: dict[str, int] = {}
    for name in draw.choices(names, k=len(names)):
        weights[name] = weights.get(name, 0) + 1
    return weights

"""The slope of Theil and Sen, the median over all pairs of points, and Kendall's count behind its significance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def theil_sen(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Slope, Kendall's S (concordant less discordant pairs) and the variance of S where nothing depends on anything.

    Pairs of equal x say nothing; of nothing else the slope is 0. Kendall, Rank Correlation Methods, 4th ed., 4.6.
    """
    import numpy as np

    count = len(x)
    i, j = np.triu_indices(count, 1)
    dx, dy = x[j] - x[i], y[j] - y[i]
    apart = np.abs(dx) > 1e-9 * (1 + np.abs(x).max())
    slope = float(np.median(dy[apart] / dx[apart])) if apart.any() else 0.0
    concordance = float(np.sign(dx[apart] * dy[apart]).sum())
    return slope, concordance, count * (count - 1) * (2 * count + 5) / 18

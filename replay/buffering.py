"""Does a server hold answers back before it streams them? Then the first token comes the later, the longer the answer.

Of a server that sends as it decodes, the time to first token cannot depend on how many tokens will follow. Over the
window's answers it is regressed on them, robustly: both are first freed of what prompts and the hour explain (least
squares on prompt tokens, prompt tokens that were not cached and their square, and the time of sending), then the slope
is that of Theil and Sen and its significance Kendall's. The slope's share of the whole time per token, taken alike from
the turn time, says how much of the decoding happened before the first token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay.sample import Sample
from replay.slope import theil_sen

if TYPE_CHECKING:
    import numpy as np

LEAST_ANSWERS = 20
LEAST_SPREAD = (
    4.0  # the 90th percentile of output tokens over the 10th, at least in the square root: a slope needs room
)
HELD_SHARE = 0.25  # of the time per token: what a server may hold back before its speed is that of whole requests
SIGNIFICANT_Z = 3.3  # two-sided, 1 in 1,000
MOST_ANSWERS = 400  # of which all pairs are taken; of more, evenly spaced ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffering:
    """What the regression found. None where there are too few answers, or all are alike in length."""

    answers: int
    ttft_s_per_token: float | None
    turn_s_per_token: float | None
    z: float | None  # of Kendall's tau between first token and output tokens, freed of prompt and time

    @property
    def held_share(self) -> float | None:
        """Share of the time per token that passes before the first token; 0 of an honest server, within noise."""
        if self.ttft_s_per_token is None or not self.turn_s_per_token or self.turn_s_per_token <= 0:
            return None
        return self.ttft_s_per_token / self.turn_s_per_token

    @property
    def untested(self) -> str | None:
        """Why nothing can be said; None where the regression was made."""
        if self.ttft_s_per_token is not None:
            return None
        if self.answers < LEAST_ANSWERS:
            return f"{self.answers} answers are too few"
        return "they are alike in length"

    @property
    def found(self) -> bool:
        """Whether answers are held back, beyond what chance explains and beyond the published share."""
        share = self.held_share
        return share is not None and share > HELD_SHARE and self.z is not None and self.z > SIGNIFICANT_Z


def find_buffering(samples: Sequence[Sample]) -> Buffering:
    """Looks at the answers that ended well and whose first token came apart from their last."""
    known = [
        (sample, sample.tokens, sample.ttft_s, sample.turn_s)
        for sample in samples
        if sample.tokens is not None and sample.tokens >= 2 and sample.ttft_s is not None and sample.turn_s is not None
    ]
    lengths = sorted(tokens for _, tokens, _, _ in known)
    nothing = Buffering(answers=len(known), ttft_s_per_token=None, turn_s_per_token=None, z=None)
    if len(known) < LEAST_ANSWERS:
        return nothing
    short, long = lengths[len(lengths) // 10], lengths[-1 - len(lengths) // 10]
    if long < math.sqrt(LEAST_SPREAD) * short:
        return nothing
    import numpy as np

    if len(known) > MOST_ANSWERS:
        known = [known[round(place)] for place in np.linspace(0, len(known) - 1, MOST_ANSWERS)]
    tokens = np.array([item[1] for item in known], dtype=float)
    controls = _controls([item[0] for item in known])
    free_tokens = _residual(tokens, controls)
    first, count, variance = theil_sen(free_tokens, _residual(_winsorised([item[2] for item in known]), controls))
    z = count / math.sqrt(variance)
    turn, _, _ = theil_sen(free_tokens, _residual(_winsorised([item[3] for item in known]), controls))
    return Buffering(answers=len(known), ttft_s_per_token=first, turn_s_per_token=turn, z=z)


def _controls(samples: Sequence[Sample]) -> np.ndarray[Any, Any]:
    import numpy as np

    fresh = np.array([sample.fresh_tokens or 0.0 for sample in samples])
    prompt = np.array([float(sample.prompt_tokens or 0) for sample in samples])
    at = np.array([sample.sent_s for sample in samples])
    columns = [np.ones(len(samples))]
    for values in (fresh, fresh**2, prompt, at):
        scale = values.std()
        if scale > 0:
            columns.append((values - values.mean()) / scale)
    return np.column_stack(columns)


def _residual(values: np.ndarray[Any, Any], controls: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    fit, *_ = np.linalg.lstsq(controls, values, rcond=None)
    free: np.ndarray[Any, Any] = values - controls @ fit
    return free


def _winsorised(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Values with their outer 2 % on either side drawn in: one stall must not bend the controls."""
    import numpy as np

    array = np.array(values, dtype=float)
    low, high = np.quantile(array, (0.02, 0.98))
    drawn: np.ndarray[Any, Any] = np.clip(array, low, high)
    return drawn

"""Where warm-up ends, and whether what follows is steady: over batches of a trial, from dispersion and trend alone.

Batches are 5 s, or a twelfth of the phase where that is shorter. Three series: ln of the time to first token, ln of the
output speed, and tokens per second. The first two are freed of what the workload itself changes (contexts grow while
sessions are worked through): prompt tokens, and those that no cache could hold.

- *Warm-up* ends at the batch that MSER picks: it minimises Σ(x − mean)² / (n − d)² over the batches that are left
  (White 1997). The crop counts only where the batches cut off lie apart from the rest by four standard errors, in
  either direction. Nothing asks which choice would score better: swapping fast for slow gives the same crop.
- *Steady* is what has no trend: no series may change by more than a published factor over what is left and be
  significant by the Mann-Kendall test as Hamed and Rao (1998) correct it for autocorrelation; nor may its level shift
  (Pettitt 1979).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replay.sample import Sample
from replay.slope import theil_sen
from replay.window import Window

if TYPE_CHECKING:
    import numpy as np

BATCH_S = 5.0
BATCHES = 12  # at least, in a phase that is shorter than 60 s
SHORTEST_BATCH_S = 2.0
LEAST_BATCHES = 8  # fewer say nothing of a trend: the test abstains
LEAST_PER_BATCH = 2.0  # requests, on average
LEAST_LEFT = 0.5  # of the phase: what warm-up must leave
CROP_Z = 4.0
CROP_FACTOR = 1.1  # by which what is cut must differ from the rest: less is no warm-up
TREND_Z = 2.576  # two-sided, 1 in 100
TREND_MOST: dict[str, float] = {"time to first token": 1.5, "output speed": 1.25}
"""The factor by which a series may change over the steady window. Tokens per second follow the workload as well: they
show where warm-up ends, but have no gate."""
SHIFT_P = 0.01
SHIFT_MOST: dict[str, float] = {"time to first token": 2.0, "output speed": 1.5}
"""The factor between the medians before and after the most likely change point."""

type Stream = tuple[float, float, float]
"""First and last content, in seconds since the trial's zero, and the tokens between them."""
type Direction = Literal["better", "worse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of batches and what the tests say of it."""

    name: str
    batches: int
    warm_up_batches: int  # where MSER cuts, if that counts; else 0
    factor: float | None  # last over first of what is left, by the Theil-Sen line
    trend_z: float | None
    shift_p: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsteady:
    """One reason why a trial is not steady, and which way it went while it was measured."""

    reason: str
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The window that counts, and why it may be believed."""

    window: Window
    warm_up_s: float  # cut off after settling
    batch_s: float
    series: tuple[Series, ...]
    abstained: str | None  # why nothing was tested
    unsteady: tuple[Unsteady, ...]
    notes: tuple[str, ...]


def find_steady(samples: Sequence[Sample], streams: Iterable[Stream], phase: Window) -> Steady:
    """Finds the end of warm-up inside a phase, never before its start, and tests what is left.

    `samples` are those of requests sent in the phase, `streams` all answers of the trial: what streams in it may have
    been sent before.
    """
    batch_s = max(SHORTEST_BATCH_S, min(BATCH_S, phase.seconds / BATCHES))
    count = int(phase.seconds / batch_s + 1e-9)
    series = _series(samples, streams, phase, batch_s, count) if count >= LEAST_BATCHES else []
    if not series:
        why = (
            f"{phase.seconds:.0f} s hold fewer than {LEAST_BATCHES} batches of {batch_s:g} s"
            if count < LEAST_BATCHES
            else f"fewer than {LEAST_PER_BATCH:g} requests in a batch of {batch_s:g} s"
        )
        return Steady(window=phase, warm_up_s=0.0, batch_s=batch_s, series=(), abstained=why, unsteady=(), notes=())
    crops = {name: _crop(values) for name, values, _ in series}
    crop = max(crops.values())
    tested, unsteady, notes = [], [], []
    for name, values, larger_is_better in series:
        if name in TREND_MOST and crops[name] >= int(count * (1 - LEAST_LEFT)):
            early, late = _mean(values[: crops[name]]), _mean(values[crops[name] :])
            unsteady.append(
                Unsteady(
                    reason=f"not steady: the {name} had not settled by the middle of the {phase.seconds:.0f} s",
                    direction="better" if (late > early) == larger_is_better else "worse",
                )
            )
        left = values[crop:]
        factor, z = _trend(left)
        shift_p, shift = _pettitt(left)
        most = TREND_MOST.get(name, math.inf)
        if factor is not None and z is not None and abs(z) > TREND_Z and abs(math.log(factor)) > math.log(most):
            grew = factor > 1
            unsteady.append(
                Unsteady(
                    reason=f"not steady: the {name} {'rose' if grew else 'fell'} by a factor of "
                    f"{factor if grew else 1 / factor:.2f} over the window (at most {most:g}; z = {z:.1f})",
                    direction="better" if grew == larger_is_better else "worse",
                )
            )
        elif shift_p is not None and shift_p < SHIFT_P and abs(shift) > math.log(SHIFT_MOST.get(name, math.inf)):
            unsteady.append(
                Unsteady(
                    reason=f"not steady: the {name} {'rose' if shift > 0 else 'fell'} by a factor of "
                    f"{math.exp(abs(shift)):.2f} within the window and stayed there (at most {SHIFT_MOST[name]:g})",
                    direction="better" if (shift > 0) == larger_is_better else "worse",
                )
            )
        tested.append(
            Series(name=name, batches=len(left), warm_up_batches=crops[name], factor=factor, trend_z=z, shift_p=shift_p)
        )
    warm_up_s = crop * batch_s
    if crop:
        notes.append(f"warm-up: the first {warm_up_s:.0f} s after settling are left out, failed requests excepted")
    return Steady(
        window=Window(start_ns=phase.start_ns + round(warm_up_s * 1e9), end_ns=phase.end_ns),
        warm_up_s=warm_up_s,
        batch_s=batch_s,
        series=tuple(tested),
        abstained=None,
        unsteady=tuple(unsteady),
        notes=tuple(notes),
    )


type _Named = tuple[str, list[float | None], bool]


def _series(
    samples: Sequence[Sample], streams: Iterable[Stream], phase: Window, batch_s: float, count: int
) -> list[_Named]:
    found: list[_Named] = []
    start_s = phase.start_ns / 1e9

    def batched(name: str, of: Callable[[Sample], float | None], larger_is_better: bool) -> None:
        known = [(sample, value) for sample in samples if (value := of(sample)) is not None and 0 < value < math.inf]
        if len(known) < LEAST_PER_BATCH * count:
            return
        batches: list[list[float]] = [[] for _ in range(count)]
        for (sample, _), value in zip(known, _freed(known), strict=True):
            batches[min(count - 1, max(0, int((sample.sent_s - start_s) / batch_s)))].append(value)
        if sum(bool(batch) for batch in batches) >= LEAST_BATCHES:
            found.append((name, [_median(batch) for batch in batches], larger_is_better))

    usual_s = _median([item.ttft_s for item in samples if item.ttft_s is not None]) or 0.0

    def ttft(sample: Sample) -> float | None:
        if sample.ttft_s is not None:
            return sample.ttft_s
        # In flight at the end: a bound, which says something once it is beyond what is usual.
        return sample.waiting_s if sample.waiting_s is not None and sample.waiting_s > usual_s else None

    batched("time to first token", ttft, False)
    batched("output speed", lambda item: item.speed_tok_s, True)
    flow = [0.0] * count
    for first_s, last_s, tokens in streams:
        _spread_over(flow, batch_s, first_s - start_s, last_s - start_s, tokens)
    if found and min(flow) > 0:
        found.append(("tokens per second", [math.log(tokens) for tokens in flow], True))
    return found


def _spread_over(flow: list[float], batch_s: float, start_s: float, end_s: float, tokens: float) -> None:
    """Adds an answer's tokens to the batches during which they came."""
    span = max(end_s - start_s, 1e-9)
    for index in range(max(0, int(start_s / batch_s)), min(len(flow) - 1, int(end_s / batch_s)) + 1):
        overlap = min(end_s, (index + 1) * batch_s) - max(start_s, index * batch_s)
        if overlap > 0 or span <= 1e-9:
            flow[index] += tokens * min(1.0, max(overlap, 0.0) / span if span > 1e-9 else 1.0)


def _freed(known: Sequence[tuple[Sample, float]]) -> list[float]:
    """ln of the values, less what a line in ln of prompt and of never-sent prompt tokens explains beside time."""
    import numpy as np

    values = np.log([value for _, value in known])
    columns = [np.ones(len(known)), np.array([sample.sent_s for sample, _ in known])]
    work = [
        np.log1p([sample.ideal_fresh_tokens or 0.0 for sample, _ in known]),
        np.log1p([float(sample.prompt_tokens or 0) for sample, _ in known]),
    ]
    work = [column - column.mean() for column in work if column.std() > 0.05]
    if not work or len(known) < 10 * (2 + len(work)):
        return [float(value) for value in values]
    columns[1] = columns[1] - columns[1].mean()
    fit, *_ = np.linalg.lstsq(np.column_stack([*columns, *work]), values, rcond=None)
    freed = values - np.column_stack(work) @ fit[2:]
    return [float(value) for value in freed]


def _crop(values: Sequence[float | None]) -> int:
    """How many batches MSER cuts off at the start; 0 where what it cuts lies within the noise of the rest."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    numbers = [value for _, value in known]
    best, cut = math.inf, 0
    for drop in range(int(len(numbers) * (1 - LEAST_LEFT)) + 1):
        rest = numbers[drop:]
        mean = math.fsum(rest) / len(rest)
        spread = math.fsum((value - mean) ** 2 for value in rest) / len(rest) ** 2
        if spread < best:
            best, cut = spread, drop
    if not cut:
        return 0
    rest = numbers[cut:]
    mean = math.fsum(rest) / len(rest)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in rest) / (len(rest) - 1))
    # The median of what is cut: one stall in the middle is no warm-up. Its variance is π/2 that of a mean.
    error = deviation * math.sqrt(math.pi / 2 / cut + 1 / len(rest)) * _inflation(rest)
    early = _median(numbers[:cut])
    assert early is not None
    apart = abs(early - mean)
    return known[cut][0] if apart > max(CROP_Z * error, math.log(CROP_FACTOR)) else 0


def _inflation(values: Sequence[float]) -> float:
    """By how much lag-1 autocorrelation widens the standard error of a mean; at least 1."""
    mean = math.fsum(values) / len(values)
    total = math.fsum((value - mean) ** 2 for value in values)
    if total <= 0:
        return 1.0
    lag = math.fsum((a - mean) * (b - mean) for a, b in itertools.pairwise(values)) / total
    lag = min(0.9, max(0.0, lag))
    return math.sqrt((1 + lag) / (1 - lag))


def _trend(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Factor over all batches by the Theil-Sen line of a logarithm, and the modified Mann-Kendall z."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    count = len(known)
    if count < LEAST_BATCHES:
        return None, None
    import numpy as np

    at = np.array([index for index, _ in known], dtype=float)
    y = np.array([value for _, value in known], dtype=float)
    slope, score, independent = theil_sen(at, y)
    variance = independent * _hamed_rao(y - slope * at)
    z = 0.0 if score == 0 else (score - math.copysign(1, score)) / math.sqrt(variance)
    return math.exp(slope * (len(values) - 1)), z


def _hamed_rao(detrended: np.ndarray[Any, Any]) -> float:
    """Hamed & Rao 1998, equation 22: the factor of the variance for autocorrelated ranks; at least 1."""
    import numpy as np

    count = len(detrended)
    ranks = np.argsort(np.argsort(detrended)).astype(float)
    ranks -= ranks.mean()
    total = float((ranks**2).sum())
    if total <= 0:
        return 1.0
    extra = 0.0
    for lag in range(1, count - 2):
        correlation = float((ranks[:-lag] * ranks[lag:]).sum()) / total
        if abs(correlation) > 1.96 / math.sqrt(count):
            extra += (count - lag) * (count - lag - 1) * (count - lag - 2) * correlation
    return max(1.0, 1 + 2 * extra / (count * (count - 1) * (count - 2)))


def _pettitt(values: Sequence[float | None]) -> tuple[float | None, float]:
    """Approximate p of the most likely change point, and the medians' difference across it."""
    known = [value for value in values if value is not None]
    count = len(known)
    if count < LEAST_BATCHES:
        return None, 0.0
    best, at, running = 0.0, 1, 0.0
    for split in range(1, count):
        running += sum((known[split - 1] > other) - (known[split - 1] < other) for other in known)
        if abs(running) > best:
            best, at = abs(running), split
    p = min(1.0, 2 * math.exp(-6 * best**2 / (count**3 + count**2)))
    before, after = _median(known[:at]), _median(known[at:])
    assert before is not None
    assert after is not None
    return p, after - before


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else 0.0


def _median(values: Sequence[float]) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
